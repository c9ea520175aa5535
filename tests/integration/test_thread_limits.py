"""A process that gets no more threads gives back what it cannot execute, and goes on when it gets them again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dbos import DBOS, Queue, SetWorkflowID
from dbos._process import process
from tests.integration.histories import PATIENCE_S, engine, eventually, row


@contextmanager
def no_more_executor_threads(after: int = 0) -> Iterator[list[str]]:
    """As with a limit of processes that is reached, but for the threads of the services and of the test."""
    begin, refused, begun = threading.Thread.start, list[str](), list[str]()

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("dbos-executor"):
            if len(begun) >= after:
                refused.append(thread.name)
                raise RuntimeError("can't start new thread")
            begun.append(thread.name)
        begin(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        yield refused


@pytest.mark.parametrize("after", [0, 1])
def test_what_gets_no_thread_is_in_its_queue_again_and_runs_when_there_are_some(dbos: type[DBOS], after: int) -> None:
    """It stayed PENDING in this process, until that was restarted."""
    queue, gate, names = Queue("q"), threading.Event(), ["a", "b", "c"]

    @dbos.workflow()
    def workflow(name: str) -> str:
        assert gate.wait(PATIENCE_S)
        return name

    dbos.launch()
    with no_more_executor_threads(after) as refused:
        for name in names:
            with SetWorkflowID(name):
                queue.enqueue(workflow, name)
        eventually(lambda: refused and [row(name).status for name in names].count("ENQUEUED") == 3 - after)
        counted = len(engine().runs)
    gate.set()
    assert process.runtime is not None
    process.runtime._dispatcher.dispatch_soon("q")

    assert counted == after
    assert [DBOS.retrieve_workflow(name).get_result() for name in names] == names
    assert [row(name).recovery_attempts for name in names] == [1, 1, 1]
    eventually(lambda: engine().workers.free == engine().settings.max_executor_threads)


def test_a_start_that_gets_no_thread_says_so_and_is_executed_later(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    with no_more_executor_threads(), pytest.raises(RuntimeError), SetWorkflowID("wf"):
        dbos.start_workflow(workflow)
    held = engine().runs.get("wf")
    assert process.runtime is not None
    for _ in range(2):
        process.runtime._leases.reconcile_once()

    assert held is None
    assert dbos.retrieve_workflow("wf").get_result() == "done"


def test_an_interrupted_start_is_no_other_error_without_a_thread_to_give_it_back(dbos: type[DBOS]) -> None:
    dbos.launch()

    with no_more_executor_threads() as refused:
        engine().give_back("wf", "token")

    assert len(refused) == 1


def test_a_coroutine_whose_loop_was_just_closed_goes_on_on_ours(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ran on, and was taken for lost because the loop that it had been meant for was closed."""
    may_end, closed = threading.Event(), asyncio.new_event_loop()
    closed.close()

    @dbos.workflow()
    async def workflow() -> str:
        assert await asyncio.to_thread(may_end.wait, PATIENCE_S)
        return "done"

    dbos.launch()
    monkeypatch.setattr(engine().loops, "background", lambda: closed)
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)
    assert process.runtime is not None
    process.runtime._leases.reconcile_once()
    run = engine().runs.get("wf")
    may_end.set()

    assert run is not None
    assert handle.get_result() == "done"
