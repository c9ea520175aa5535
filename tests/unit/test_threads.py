"""Threads and workers when the system refuses another thread: nothing is counted that does not run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dbos._threads import Threads, Workers

PATIENCE_S = 20.0


@contextmanager
def no_more_threads() -> Iterator[None]:
    """As with a limit of processes that is reached."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


def test_what_is_refused_a_thread_takes_no_place() -> None:
    workers, done = Workers(2, "test"), threading.Event()

    for _ in range(5):
        with no_more_threads(), pytest.raises(RuntimeError):
            workers.submit(lambda: None)
    free = workers.free
    workers.submit(done.set)

    assert free == 2
    assert done.wait(PATIENCE_S)
    workers.close(join=True)


def test_closing_does_not_wait_for_a_thread_that_never_began() -> None:
    threads = Threads("test")

    with no_more_threads(), pytest.raises(RuntimeError):
        threads.run(lambda: None)

    threads.close(join=True)  # joining a thread that was not started raises


def test_what_waits_gets_the_place_of_whoever_ends_although_no_thread_is_to_be_had() -> None:
    workers, may_end, order = Workers(1, "test"), threading.Event(), []
    has_ended = threading.Event()
    workers.submit(lambda: assert_set(may_end))
    workers.submit(lambda: order.append("first"))
    workers.submit(lambda: order.append("second"))
    workers.submit(has_ended.set)

    with no_more_threads():
        may_end.set()

        assert has_ended.wait(PATIENCE_S)
    assert order == ["first", "second"]
    workers.close(join=True)


def test_what_cannot_begin_while_another_steps_aside_waits_on() -> None:
    workers, has_stepped_back, done = Workers(1, "test"), threading.Event(), threading.Event()
    may_step_aside = threading.Event()

    def step_aside() -> None:
        assert_set(may_step_aside)
        with no_more_threads(), workers.stepping_aside():
            has_stepped_back.set()

    workers.submit(step_aside)
    workers.submit(done.set)
    may_step_aside.set()

    assert has_stepped_back.wait(PATIENCE_S)
    assert done.wait(PATIENCE_S)
    workers.close(join=True)
    assert workers.free == 1


def assert_set(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S)
