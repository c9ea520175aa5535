"""Group commit: who leads, who is carried, and that nobody is ever left waiting.

The writer is a double in memory, so that every interleaving can be set up; what real connections do is tested in
``tests/conformance``.
"""

from __future__ import annotations

import asyncio
import dis
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from types import CodeType, FrameType
from typing import Any

import pytest

from dbos._clock import SystemClock, VirtualClock
from dbos._error import DBOSDatabaseUnavailableError
from dbos._sysdb import committer as committer_module
from dbos._sysdb.committer import LARGE_UNIT_CHARACTERS, MAX_BATCH_CHARACTERS, MAX_BATCH_UNITS, Committer
from dbos._sysdb.operations import Operation, RecordStep, call
from tests.unit.memory_writer import PATIENCE_S, Blocked, Busy, Gate, Lost, MemoryWriter, Poison, eventually, operation


@pytest.fixture
def writer() -> MemoryWriter:
    return MemoryWriter()


@pytest.fixture
def second_writer() -> MemoryWriter:
    return MemoryWriter()


@pytest.fixture
def committer(writer: MemoryWriter, second_writer: MemoryWriter) -> Iterator[Committer]:
    overflow = Committer("second-writer", second_writer, SystemClock())
    overflow.start()
    committer = Committer("writer", writer, SystemClock(), overflow=overflow)
    committer.start()
    yield committer
    committer.close()
    overflow.close()
    assert writer.overlaps == second_writer.overlaps == 0


@pytest.fixture
def threads() -> Iterator[Callable[..., Future[Any]]]:
    """Runs a call in a thread of its own, which does not keep a test that fails from ending."""
    started: list[threading.Thread] = []

    def run(function: Callable[..., Any], *arguments: Any, name: str = "worker") -> Future[Any]:
        answer: Future[Any] = Future()

        def call() -> None:
            try:
                answer.set_result(function(*arguments))
            except BaseException as error:
                answer.set_exception(error)

        started.append(threading.Thread(target=call, name=name, daemon=True))
        started[-1].start()
        return answer

    yield run
    for thread in started:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def queued(committer: Committer) -> int:
    return len(committer._queue)


def commit_in_thread(
    threads: Callable[..., Future[Any]], committer: Committer, name: str, *operations: Operation
) -> Future[Any]:
    """Commit in another thread, and return once its unit is queued behind a leader that is held."""
    before = queued(committer)
    answer = threads(committer.commit, *(operations or (operation(name),)), name=name)
    eventually(lambda: queued(committer) == before + 1, f"{name} queued")
    return answer


def hold_writer(writer: MemoryWriter, committer: Committer, threads: Callable[..., Future[Any]]) -> Gate:
    """Have a thread lead, and stay in its transaction until the gate is opened."""
    gate = Gate()

    def before(names: list[str]) -> None:
        if names == ["held"]:
            gate.pass_through()

    writer.before = before
    threads(committer.commit, operation("held"), name="holder")
    gate.await_arrival()
    return gate


def step(output: str) -> RecordStep:
    return RecordStep("workflow", 1, "step", output, None, None, 1, 2, "json", "token")


def is_at_rest(committer: Committer) -> bool:
    return committer._leader is None and not committer._queue and not committer._batch and not committer._interrupted


# -- leading and being carried ----------------------------------------------------------------------------------------


def test_alone_a_caller_commits_in_its_own_thread(committer: Committer, writer: MemoryWriter) -> None:
    results = committer.commit(operation("a"), operation("b"))

    assert results == ["done a", "done b"]
    assert writer.leaders == [threading.current_thread().name]


def test_who_arrives_meanwhile_is_carried_in_one_batch_in_order_by_the_first_of_them(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)
    answers = [commit_in_thread(threads, committer, name) for name in "abcd"]

    gate.open()

    assert [answer.result(PATIENCE_S) for answer in answers] == [[f"done {name}"] for name in "abcd"]
    assert writer.batches == [["held"], ["a", "b", "c", "d"]]
    assert writer.leaders == ["holder", "a"]


def test_a_leader_commits_one_batch_and_leaves_the_next_to_the_next(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    """However much arrives, a leader's own caller gets its answer after one batch."""
    gate = hold_writer(writer, committer, threads)
    during_second = Gate()
    hold_first = writer.before
    writer.before = lambda names: during_second.pass_through() if names == ["a"] else hold_first(names)
    first = commit_in_thread(threads, committer, "a")
    gate.open()
    during_second.await_arrival()
    second = commit_in_thread(threads, committer, "b")
    third = commit_in_thread(threads, committer, "c")

    during_second.open()

    assert first.result(PATIENCE_S) == ["done a"]
    assert second.result(PATIENCE_S) == ["done b"]
    assert third.result(PATIENCE_S) == ["done c"]
    assert list(zip(writer.leaders, writer.batches, strict=True)) == [
        ("holder", ["held"]),
        ("a", ["a"]),
        ("b", ["b", "c"]),
    ]


def test_each_unit_gets_the_results_of_its_own_operations(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)
    one = commit_in_thread(threads, committer, "one", operation("1"), operation("2"))
    none = commit_in_thread(threads, committer, "none", *[])
    three = commit_in_thread(threads, committer, "three", operation("3"), operation("4"), operation("5"))

    gate.open()

    assert one.result(PATIENCE_S) == ["done 1", "done 2"]
    assert none.result(PATIENCE_S) == ["done none"]
    assert three.result(PATIENCE_S) == ["done 3", "done 4", "done 5"]


def test_a_batch_is_bounded_in_units(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    async def submit_many() -> Sequence[Any]:
        gate = hold_writer(writer, committer, threads)
        futures = [committer.submit(operation(str(number))) for number in range(MAX_BATCH_UNITS + 10)]
        gate.open()
        return list(await asyncio.gather(*futures))

    results = asyncio.run(submit_many())

    assert results == [[f"done {number}"] for number in range(MAX_BATCH_UNITS + 10)]
    assert [len(batch) for batch in writer.batches] == [1, MAX_BATCH_UNITS, 10]


def test_a_batch_is_bounded_in_characters(threads: Callable[..., Future[Any]]) -> None:
    sizes: list[int] = []

    class Sizes(MemoryWriter):
        def write(self, operations: Sequence[Operation]) -> list[Any]:
            sizes.append(sum(each.size for each in operations))
            super().write(operations)
            return [None for _ in operations]

    writer = Sizes()
    committer = Committer("writer", writer, SystemClock())
    committer.start()
    gate = hold_writer(writer, committer, threads)
    text = "x" * (MAX_BATCH_CHARACTERS // 3)
    answers = [commit_in_thread(threads, committer, name, step(text)) for name in "abcdefg"]

    gate.open()

    assert all(answer.result(PATIENCE_S) == [None] for answer in answers)
    assert max(sizes) <= MAX_BATCH_CHARACTERS
    assert len(sizes) == 4  # the held one, then three, three and one
    committer.close()


def test_a_large_unit_commits_on_the_second_connection_while_the_first_is_busy(
    committer: Committer, writer: MemoryWriter, second_writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)
    large = step("x" * (LARGE_UNIT_CHARACTERS + 1))

    async def submit() -> object:
        return await committer.submit(large, operation("b"))

    committer.commit(large, operation("a"))
    asyncio.run(submit())

    assert second_writer.batches == [["a"], ["b"]]
    gate.open()


def test_a_verbs_text_counts_towards_its_size() -> None:
    assert call(len, "x" * 1000, 7, None, "y" * 10).size == 1010


# -- coroutines -------------------------------------------------------------------------------------------------------


async def test_a_coroutines_unit_is_led_by_the_writer_thread(committer: Committer, writer: MemoryWriter) -> None:
    assert await committer.submit(operation("a")) == ["done a"]

    assert writer.leaders == ["dbos-writer"]


async def test_the_event_loop_runs_on_while_its_unit_waits(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)
    future = committer.submit(operation("a"))

    await asyncio.sleep(0)
    gate.open()

    assert await future == ["done a"]


async def test_a_loop_is_called_once_for_all_its_futures_of_a_batch(
    committer: Committer,
    writer: MemoryWriter,
    threads: Callable[..., Future[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = hold_writer(writer, committer, threads)
    loop = asyncio.get_running_loop()
    calls: list[object] = []
    call_soon = loop.call_soon_threadsafe

    def count(*given: Any) -> object:
        calls.append(given)
        return call_soon(*given)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    futures = [committer.submit(operation(str(number))) for number in range(100)]

    gate.open()
    await asyncio.gather(*futures)

    assert len(calls) == 1


async def test_a_cancelled_future_is_committed_all_the_same_and_disturbs_nobody(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)
    cancelled, other = committer.submit(operation("a")), committer.submit(operation("b"))

    cancelled.cancel()
    gate.open()

    assert await other == ["done b"]
    assert cancelled.cancelled()
    assert writer.written["a"] == 1


def test_an_event_loop_that_was_closed_meanwhile_disturbs_nobody(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)

    async def submit() -> None:
        committer.submit(operation("a"))

    asyncio.run(submit())
    waiting = commit_in_thread(threads, committer, "b")
    gate.open()

    assert waiting.result(PATIENCE_S) == ["done b"]
    assert writer.written["a"] == 1


# -- failures ---------------------------------------------------------------------------------------------------------


def refuse(*poisonous: str) -> Callable[[list[str]], None]:
    def before(names: list[str]) -> None:
        for name in names:
            if name in poisonous:
                raise Poison(name)

    return before


@pytest.mark.parametrize("poisonous", ["a", "d", "h", "ah", "cd", "abcdefgh"])
async def test_poisonous_units_fail_alone(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]], poisonous: str
) -> None:
    gate = hold_writer(writer, committer, threads)
    futures = {name: committer.submit(operation(name)) for name in "abcdefgh"}
    writer.before = refuse(*poisonous)

    gate.open()
    results = await asyncio.gather(*futures.values(), return_exceptions=True)

    for name, result in zip(futures, results, strict=True):
        if name in poisonous:
            assert isinstance(result, Poison)
            assert str(result) == name
            assert writer.written[name] == 0
        else:
            assert result == [f"done {name}"]
            assert writer.written[name] == 1


def test_a_committer_that_does_not_reconnect_fails_what_was_lost_and_tries_once_for_the_next() -> None:
    lost, unreachable = [Lost()], [Lost(), Lost()]

    def lose(names: list[str]) -> None:
        if lost or names == ["during"]:
            raise lost.pop() if lost else Lost()

    def fail_to_connect() -> None:
        if unreachable:
            raise unreachable.pop()

    writer = MemoryWriter()
    writer.before, writer.on_reset = lose, fail_to_connect
    committer = Committer("writer", writer, SystemClock(), reconnects=False)
    committer.start()

    for name in ("before", "during"):
        with pytest.raises(DBOSDatabaseUnavailableError, match="Whether this was committed is not known"):
            committer.commit(operation(name))
    with pytest.raises(DBOSDatabaseUnavailableError):
        committer.commit(operation("during"))
    answer = committer.commit(operation("after"))
    committer.close()

    assert answer == ["done after"]
    assert writer.written == {"after": 1}
    assert writer.resets == 3


@pytest.mark.parametrize("error", [Lost, Busy])
def test_a_batch_that_failed_for_a_passing_reason_is_executed_again(
    committer: Committer, writer: MemoryWriter, error: type[Exception]
) -> None:
    failures = [error(), error()]

    def before(names: list[str]) -> None:
        if failures:
            raise failures.pop()

    writer.before = before

    assert committer.commit(operation("a")) == ["done a"]
    assert writer.written["a"] == 1
    assert writer.resets == (2 if error is Lost else 0)


def test_a_commit_whose_answer_was_lost_is_executed_again(committer: Committer, writer: MemoryWriter) -> None:
    failures = [Lost()]

    def after(names: list[str]) -> None:
        if failures:
            raise failures.pop()

    writer.after = after

    assert committer.commit(operation("a")) == ["done a"]
    assert writer.written["a"] == 2


def test_an_outage_is_waited_for(committer: Committer, writer: MemoryWriter) -> None:
    failures = [Lost() for _ in range(3)]

    def on_reset() -> None:
        if failures:
            raise failures.pop()

    writer.on_reset = on_reset
    writer.before = lambda names: on_reset()

    assert committer.commit(operation("a")) == ["done a"]


async def test_a_blocked_unit_is_moved_to_the_second_connection_and_its_neighbours_go_on(
    committer: Committer, writer: MemoryWriter, second_writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)
    is_locked = Gate()
    second_writer.before = is_locked.pass_through
    thread = commit_in_thread(threads, committer, "blocked thread")
    futures = {name: committer.submit(operation(name)) for name in ("a", "blocked", "b", "c")}

    def before(names: list[str]) -> None:
        if any("blocked" in name for name in names):
            raise Blocked

    writer.before = before
    gate.open()

    assert await futures["a"] == ["done a"]
    assert await futures["b"] == ["done b"]
    assert await futures["c"] == ["done c"]
    assert not futures["blocked"].done()
    assert not thread.done()
    is_locked.open()
    assert await futures["blocked"] == ["done blocked"]
    assert await asyncio.wrap_future(thread) == ["done blocked thread"]


async def test_neighbours_do_not_wait_for_the_half_that_is_blocked(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)
    free, blocked = committer.submit(operation("free")), committer.submit(operation("blocked"))
    is_waiting_for_lock = Gate()

    def before(names: list[str]) -> None:
        if names == ["blocked"]:
            is_waiting_for_lock.pass_through()
        if "blocked" in names:
            raise Blocked

    writer.before = before
    gate.open()

    assert await free == ["done free"]
    is_waiting_for_lock.open()
    assert await blocked == ["done blocked"]


async def test_on_the_second_connection_a_blocked_unit_does_not_hold_up_the_others(
    committer: Committer, writer: MemoryWriter, second_writer: MemoryWriter
) -> None:
    """A row that stays locked once kept every large payload waiting behind it."""
    is_locked = True

    def before(names: list[str]) -> None:
        if is_locked and "blocked" in names:
            raise Blocked

    writer.before = second_writer.before = before
    blocked = committer.submit(operation("blocked"))
    large = step("x" * (LARGE_UNIT_CHARACTERS + 1))

    for name in "abc":
        await committer.submit(large, operation(name))
    assert not blocked.done()
    is_locked = False

    assert await blocked == ["done blocked"]


def test_results_are_matched_although_a_neighbour_was_moved_away(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)

    def before(names: list[str]) -> None:
        if "blocked" in names:
            raise Blocked

    answers = {name: commit_in_thread(threads, committer, name) for name in ("a", "blocked", "b")}
    writer.before = before
    gate.open()

    for name, answer in answers.items():
        assert answer.result(PATIENCE_S) == [f"done {name}"]


def test_upkeep_that_fails_does_not_fail_the_unit(committer: Committer, writer: MemoryWriter) -> None:
    """The unit was committed: its caller must not be told otherwise."""
    failures = [Poison("upkeep")]

    def on_idle() -> None:
        if failures:
            raise failures.pop()

    writer.on_idle = on_idle

    assert committer.commit(operation("a")) == ["done a"]
    assert committer.commit(operation("b")) == ["done b"]
    assert writer.resets == 1


def test_the_writer_thread_survives_what_no_batch_can(committer: Committer, writer: MemoryWriter) -> None:
    def before(names: list[str]) -> None:
        if names == ["exit"]:
            raise SystemExit

    writer.before = before

    async def submit() -> None:
        with pytest.raises(DBOSDatabaseUnavailableError) as raised:
            await committer.submit(operation("exit"))
        assert isinstance(raised.value.__cause__, SystemExit)
        assert await committer.submit(operation("a")) == ["done a"]

    asyncio.run(submit())


def test_a_broken_log_handler_costs_nobody_a_commit(committer: Committer, writer: MemoryWriter) -> None:
    failures: list[Exception] = [Lost(), Busy()]

    def before(names: list[str]) -> None:
        if failures:
            raise failures.pop()

    writer.before = before

    def broken(record: logging.LogRecord) -> bool:
        raise RuntimeError("no log today")

    committer_module.logger.addFilter(broken)
    try:
        results = committer.commit(operation("a"))
    finally:
        committer_module.logger.removeFilter(broken)

    assert results == ["done a"]


# -- exclusive turns --------------------------------------------------------------------------------------------------


def test_an_exclusive_turn_comes_in_order_and_keeps_commits_waiting(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)
    in_turn = Gate()

    def take_turn() -> None:
        with committer.exclusive("a transaction"):
            writer.batches.append(["turn"])
            in_turn.pass_through()

    before = commit_in_thread(threads, committer, "before")
    turn = threads(take_turn, name="turn")
    eventually(lambda: queued(committer) == 2)
    after = commit_in_thread(threads, committer, "after")
    gate.open()
    in_turn.await_arrival()

    assert before.result(PATIENCE_S) == ["done before"]
    assert writer.batches == [["held"], ["before"], ["turn"]]
    in_turn.open()
    turn.result(PATIENCE_S)
    assert after.result(PATIENCE_S) == ["done after"]
    assert writer.batches == [["held"], ["before"], ["turn"], ["after"]]


async def test_a_turn_that_raises_passes_on(committer: Committer) -> None:
    waiting: list[asyncio.Future[Any]] = []

    def take_turn() -> None:
        with committer.exclusive("a transaction"):
            waiting.append(committer.submit(operation("a")))
            raise Poison

    with pytest.raises(Poison):
        take_turn()

    assert await waiting[0] == ["done a"]
    assert is_at_rest(committer)


def test_turns_are_taken_by_one_thread_at_a_time(committer: Committer, threads: Callable[..., Future[Any]]) -> None:
    in_turn = threading.Lock()

    def take_turns(number: int) -> None:
        for round in range(50):
            if (number + round) % 3:
                committer.commit(operation(f"{number}-{round}"))
            else:
                with committer.exclusive("a transaction"):
                    assert in_turn.acquire(blocking=False)
                    in_turn.release()

    for answer in [threads(take_turns, number) for number in range(8)]:
        answer.result(PATIENCE_S)

    assert is_at_rest(committer)


def test_a_long_turn_is_logged_with_its_purpose(writer: MemoryWriter, caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    committer = Committer("writer", writer, clock)

    with caplog.at_level("WARNING", "dbos.committer"), committer.exclusive("Transaction transfer"):
        clock.advance(6)

    assert "Transaction transfer kept all other commits waiting for 6.0 s" in caplog.text


# -- upkeep -----------------------------------------------------------------------------------------------------------


def test_a_poll_is_a_moment_of_upkeep_if_nobody_leads(committer: Committer, writer: MemoryWriter) -> None:
    committer.poll()

    assert writer.idles == 1
    assert is_at_rest(committer)


def test_a_poll_leaves_a_leader_alone(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)

    committer.poll()

    assert writer.idles == 0
    gate.open()


def test_who_arrives_during_a_poll_is_committed(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = Gate()
    writer.on_idle = gate.pass_through
    polling = threads(committer.poll)
    gate.await_arrival()
    waiting = commit_in_thread(threads, committer, "a")

    gate.open()

    assert waiting.result(PATIENCE_S) == ["done a"]
    polling.result(PATIENCE_S)


# -- closing ----------------------------------------------------------------------------------------------------------


def test_closing_commits_what_is_queued_and_refuses_the_rest(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)
    queued_answer = commit_in_thread(threads, committer, "queued")
    closing = threads(committer.close)
    eventually(lambda: committer._is_closing)

    with pytest.raises(DBOSDatabaseUnavailableError):
        committer.commit(operation("late"))
    with pytest.raises(DBOSDatabaseUnavailableError), committer.exclusive("late"):
        pass
    gate.open()

    assert queued_answer.result(PATIENCE_S) == ["done queued"]
    closing.result(PATIENCE_S)
    assert writer.is_closed
    assert not committer._interrupted


async def test_closing_refuses_coroutines_too(committer: Committer) -> None:
    committer.close()

    with pytest.raises(DBOSDatabaseUnavailableError):
        committer.submit(operation("late"))


def test_closing_twice_is_fine(committer: Committer) -> None:
    committer.close()
    committer.close()


@pytest.mark.parametrize("error", [Lost, Busy])
def test_closing_during_an_outage_fails_what_is_queued(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]], error: type[Exception]
) -> None:
    """A database that stays full or locked once kept close() spinning for ever."""
    gate = hold_writer(writer, committer, threads)
    answers = [commit_in_thread(threads, committer, name) for name in "abc"]

    def away(*_: object) -> None:
        raise error

    writer.before = away
    if error is Lost:
        writer.on_reset = away
    gate.open()
    committer.close()

    errors = [answer.exception(PATIENCE_S) for answer in answers]
    assert all(isinstance(each, DBOSDatabaseUnavailableError) for each in errors)
    assert all(isinstance(each.__cause__, error) for each in errors if each is not None)
    assert len({id(each) for each in errors}) == 3
    assert writer.is_closed


def test_closing_while_a_unit_is_blocked_answers_it(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    gate = hold_writer(writer, committer, threads)
    answer = commit_in_thread(threads, committer, "blocked")
    neighbour = commit_in_thread(threads, committer, "neighbour")

    def before(names: list[str]) -> None:
        if "blocked" in names:
            raise Blocked

    writer.before = before
    gate.open()
    assert neighbour.result(PATIENCE_S) == ["done neighbour"]
    committer.close()

    error = answer.exception(PATIENCE_S)
    assert error is None or isinstance(error, Blocked)


@pytest.mark.parametrize("stuck", ["in the database", "in a turn"])
def test_closing_does_not_wait_for_ever_for_a_leader_that_does_not_come_back(
    writer: MemoryWriter, threads: Callable[..., Future[Any]], stuck: str
) -> None:
    committer = Committer("writer", writer, SystemClock())
    committer.start()
    gate = Gate()
    if stuck == "in the database":
        gate = hold_writer(writer, committer, threads)
    else:

        def take_turn() -> None:
            with committer.exclusive("stuck"):
                gate.pass_through()

        threads(take_turn)
        gate.await_arrival()
    waiting = commit_in_thread(threads, committer, "a")

    def wait_for_turn() -> None:
        with committer.exclusive("late"):
            pass

    turn = threads(wait_for_turn)
    eventually(lambda: queued(committer) >= 2)
    committer.close(patience_s=0.05)

    assert isinstance(waiting.exception(PATIENCE_S), DBOSDatabaseUnavailableError)
    assert isinstance(turn.exception(PATIENCE_S), DBOSDatabaseUnavailableError)
    assert not writer.is_closed  # somebody is still using it
    gate.open()
    eventually(lambda: writer.is_closed, "the connection is closed by the last to use it")


# -- interrupts -------------------------------------------------------------------------------------------------------

# After these CPython looks for signals; and where a function is entered.
INTERRUPTIBLE = {"CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD"}


class InterruptAt:
    """Raises KeyboardInterrupt in this thread at the n-th of the places where a signal can be noticed."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.is_raised = False
        self._previous: dict[FrameType, str] = {}
        self._names: dict[CodeType, dict[int, str]] = {}

    def __enter__(self) -> InterruptAt:
        self._tracing = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._tracing)

    def _is_ours(self, frame: FrameType) -> bool:
        """The code under test, and what it calls of :mod:`threading`; not what the double and the test call."""
        caller: FrameType | None = frame
        while caller is not None and caller.f_code.co_filename.endswith("/threading.py"):
            caller = caller.f_back
        return caller is not None and caller.f_code.co_filename.endswith(("/_sysdb/committer.py", "/_sysdb/unit.py"))

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if not self._is_ours(frame):
            return None
        frame.f_trace_opcodes = True
        if event == "call":
            self._pass()
        elif event == "opcode":
            code = frame.f_code
            if code not in self._names:
                self._names[code] = {each.offset: each.opname for each in dis.get_instructions(code)}
            if self._previous.get(frame) in INTERRUPTIBLE:
                self._pass()
            self._previous[frame] = self._names[code][frame.f_lasti]
        return self._trace

    def _pass(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.is_raised = True
            raise KeyboardInterrupt


def interrupt_everywhere(scenario: Callable[[InterruptAt], None]) -> int:
    """Run the scenario with an interrupt at the first place, at the second …, until none is left."""
    number = 1
    while True:
        interrupt = InterruptAt(number)
        scenario(interrupt)
        if not interrupt.is_raised:
            return number - 1
        number += 1


@pytest.fixture
def short_safety_net(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "SAFETY_NET_S", 0.01)


@pytest.mark.usefixtures("short_safety_net")
@pytest.mark.parametrize("failure", [None, Lost, Poison, Blocked])
def test_an_interrupt_anywhere_in_a_leader_leaves_nobody_waiting(
    threads: Callable[..., Future[Any]], failure: type[Exception] | None
) -> None:
    def scenario(interrupt: InterruptAt) -> None:
        writer, second_writer = MemoryWriter(), MemoryWriter()
        overflow = Committer("second-writer", second_writer, SystemClock())
        overflow.start()
        committer = Committer("writer", writer, SystemClock(), overflow=overflow)
        committer.start()
        failures = [] if failure is None else [failure]

        def before(names: list[str]) -> None:
            if names == ["ours", "carried", "coroutine"]:
                others.append(commit_in_thread(threads, committer, "next"))
            if len(names) > 2 and failures:
                raise failures[0]
            if failure in (Poison, Blocked) and "carried" in names:
                raise failures[0]
            if names == ["held"]:
                gate.pass_through()

        gate = Gate()
        writer.before = before
        others = [threads(committer.commit, operation("held"))]
        gate.await_arrival()

        def join_behind_us() -> None:
            eventually(lambda: queued(committer) == 1 or is_raised(interrupt))
            others.append(commit_in_thread(threads, committer, "carried"))
            loop.call_soon_threadsafe(submit)
            eventually(submitted.is_set)
            gate.open()

        loop = asyncio.new_event_loop()
        submitted = threading.Event()
        futures: list[asyncio.Future[Any]] = []

        def submit() -> None:
            futures.append(committer.submit(operation("coroutine")))
            submitted.set()

        running = threads(loop.run_forever)
        joining = threads(join_behind_us)
        if failure is Lost:
            threading.Timer(0.005, failures.clear).start()
        try:
            with interrupt:
                results = committer.commit(operation("ours"))
        except KeyboardInterrupt:
            pass
        else:
            assert results == ["done ours"]

        joining.result(PATIENCE_S)
        for other in others:
            try:
                assert other.result(PATIENCE_S)[0].startswith("done")
            except Poison:
                assert failure is Poison
        eventually(futures[0].done, "the coroutine is answered")
        assert committer.commit(operation("after")) == ["done after"]
        loop.call_soon_threadsafe(loop.stop)
        running.result(PATIENCE_S)
        loop.close()
        eventually(lambda: is_at_rest(committer) and is_at_rest(overflow), "rest")
        committer.close()
        overflow.close()
        assert writer.overlaps == 0
        assert writer.written["coroutine"] + second_writer.written["coroutine"] >= 1

    places = interrupt_everywhere(scenario)

    assert places > 40


def is_raised(interrupt: InterruptAt) -> bool:
    return interrupt.is_raised


@pytest.mark.usefixtures("short_safety_net")
def test_an_interrupt_anywhere_in_an_exclusive_turn_leaves_nobody_waiting(
    threads: Callable[..., Future[Any]],
) -> None:
    def scenario(interrupt: InterruptAt) -> None:
        writer = MemoryWriter()
        committer = Committer("writer", writer, SystemClock())
        committer.start()
        gate = hold_writer(writer, committer, threads)

        def join_behind_us() -> Future[Any]:
            eventually(lambda: queued(committer) == 1 or interrupt.is_raised)
            waiting = commit_in_thread(threads, committer, "waiting")
            gate.open()
            return waiting

        joining = threads(join_behind_us)
        try:
            with interrupt, committer.exclusive("a transaction"):
                pass
        except KeyboardInterrupt:
            pass

        assert joining.result(PATIENCE_S).result(PATIENCE_S) == ["done waiting"]
        eventually(lambda: is_at_rest(committer), "rest")
        committer.close()
        assert writer.overlaps == 0

    places = interrupt_everywhere(scenario)

    assert places > 10


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_an_interrupt_is_held_until_the_leaders_batch_is_settled(
    committer: Committer, writer: MemoryWriter, interrupt: type[BaseException]
) -> None:
    interrupts: list[BaseException] = [interrupt()]

    def before(names: list[str]) -> None:
        if interrupts:
            raise interrupts.pop()

    writer.before = before

    with pytest.raises(interrupt):
        committer.commit(operation("a"))

    assert writer.written["a"] == 1
    assert writer.leaders == ["dbos-writer"]
    assert writer.resets == 1  # the interrupted transaction was rolled back first


@pytest.mark.usefixtures("short_safety_net")
def test_a_second_interrupt_before_the_first_is_dealt_with_leaves_nobody_waiting(
    committer: Committer, writer: MemoryWriter, monkeypatch: pytest.MonkeyPatch, threads: Callable[..., Future[Any]]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    interrupts = [interrupt]

    def before(names: list[str]) -> None:
        if interrupts:
            waiting.append(commit_in_thread(threads, committer, "waiting"))
            interrupts.pop()()

    waiting: list[Future[Any]] = []
    writer.before = before
    monkeypatch.setattr(committer, "_hold", interrupt)

    with pytest.raises(KeyboardInterrupt):
        committer.commit(operation("a"))

    assert waiting[0].result(PATIENCE_S) == ["done waiting"]
    eventually(lambda: is_at_rest(committer))
    assert writer.written["a"] == 1


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals cannot be sent to a thread here")
@pytest.mark.usefixtures("short_safety_net")
def test_interrupts_at_random_instants_leave_nobody_waiting(
    committer: Committer, writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    is_armed, is_over = False, threading.Event()
    main = threading.main_thread().ident
    assert main == threading.get_ident()
    seeded = random.Random(1)
    writer.after = lambda names: time.sleep(0.0002)

    def interrupt(*_: object) -> None:
        if is_armed:
            raise KeyboardInterrupt

    def send_signals() -> None:
        while not is_over.wait(seeded.random() * 0.002):
            signal.pthread_kill(main, signal.SIGINT)

    def commit_many(name: str) -> int:
        for number in range(10**6):
            if is_over.is_set():
                return number
            assert committer.commit(operation(f"{name}-{number}")) == [f"done {name}-{number}"]
        raise AssertionError("unreachable")

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        workers = [threads(commit_many, name) for name in "abcd"]
        sender = threads(send_signals)
        interrupted = 0
        for number in range(10**6):
            try:
                is_armed = True
                committer.commit(operation(f"main-{number}"))
                is_armed = False
            except KeyboardInterrupt:
                is_armed = False
                interrupted += 1
            if interrupted == 300:
                break
        is_over.set()
        counts = [worker.result(PATIENCE_S) for worker in workers]
        sender.result(PATIENCE_S)
    finally:
        is_over.set()
        signal.signal(signal.SIGINT, previous)

    eventually(lambda: is_at_rest(committer), "rest")
    for name, count in zip("abcd", counts, strict=True):
        assert all(writer.written[f"{name}-{number}"] >= 1 for number in range(count))


# -- all at once ------------------------------------------------------------------------------------------------------


def test_a_crowd_of_threads_coroutines_and_turns_under_random_failures_is_all_answered(
    committer: Committer, writer: MemoryWriter, second_writer: MemoryWriter, threads: Callable[..., Future[Any]]
) -> None:
    seeded = random.Random(7)

    def before(names: list[str]) -> None:
        fate = seeded.random()
        if fate < 0.02:
            raise Busy
        if fate < 0.1 and any(name.startswith("blocked") for name in names):
            raise Blocked
        if any(name.startswith("poison") for name in names):
            raise Poison

    writer.before = second_writer.before = before

    def kind(number: int) -> str:
        return "poison" if number % 37 == 0 else "blocked" if number % 11 == 0 else "plain"

    def commit_many(worker: int) -> None:
        for number in range(60):
            name = f"{kind(number)} {worker}-{number}"
            if number % 20 == 10:
                with committer.exclusive("a transaction"):
                    pass
            if name.startswith("poison"):
                with pytest.raises(Poison):
                    committer.commit(operation(name))
            else:
                assert committer.commit(operation(name)) == [f"done {name}"]

    async def submit_many(worker: int) -> None:
        for number in range(60):
            name = f"{kind(number)} async {worker}-{number}"
            if name.startswith("poison"):
                with pytest.raises(Poison):
                    await committer.submit(operation(name))
            else:
                assert await committer.submit(operation(name)) == [f"done {name}"]

    async def crowd() -> None:
        await asyncio.gather(*(submit_many(worker) for worker in range(20)))

    workers = [threads(commit_many, worker) for worker in range(10)]
    loops = [threads(asyncio.run, crowd()) for _ in range(2)]
    for each in (*workers, *loops):
        each.result(PATIENCE_S * 2)

    assert is_at_rest(committer)
    assert set(writer.written.values()) | set(second_writer.written.values()) == {1, 2} or set(
        writer.written.values()
    ) == {1}
