"""Steps: what is recorded, retries, running any function as a step, and steps that are stopped."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, SetWorkflowID, StepOptions
from dbos._engine.execution import note_cancelled
from dbos._engine.flow import drive_async
from dbos._engine.step import StepPolicy
from dbos._error import (
    DBOSAwaitedWorkflowCancelledError,
    DBOSException,
    DBOSMaxStepRetriesExceeded,
    DBOSNonExistentWorkflowError,
    DBOSStepTimeoutError,
)
from dbos._process import process as _process
from dbos._services.leases import Leases
from tests.integration.histories import PATIENCE_S, engine, eventually, recorded, row, steps


def run(workflow: Callable[..., Any], *args: Any, workflow_id: str = "wf") -> Any:
    with SetWorkflowID(workflow_id):
        return workflow(*args)


# -- what is recorded --------------------------------------------------------------------------------------------------


def test_a_step_is_recorded_under_its_name_with_its_result(dbos: type[DBOS]) -> None:
    @dbos.step(name="doubling")
    def double(value: int) -> int:
        return value * 2

    @dbos.workflow()
    def workflow() -> int:
        return double(21)

    dbos.launch()

    assert run(workflow) == 42

    [step] = steps("wf")
    assert step[:6] == ("wf", 1, "doubling", "42", None, None)
    assert step.serialization == "json"
    assert step.started_at_epoch_ms is not None
    assert step.completed_at_epoch_ms is not None
    assert row("wf").created_at <= step.started_at_epoch_ms <= step.completed_at_epoch_ms


def test_a_result_of_none_is_recorded_as_a_value(dbos: type[DBOS]) -> None:
    @dbos.step()
    def nothing() -> None: ...

    @dbos.workflow()
    def workflow() -> None:
        nothing()

    dbos.launch()

    run(workflow)

    assert steps("wf")[0].output == "null"


def test_the_error_of_a_step_is_recorded_and_raised_as_itself(dbos: type[DBOS]) -> None:
    error = KeyError("gone")

    @dbos.step()
    def fail() -> None:
        raise error

    @dbos.workflow()
    def workflow() -> bool:
        with pytest.raises(KeyError) as caught:
            fail()
        return caught.value is error

    dbos.launch()

    assert run(workflow)

    [info] = dbos.list_workflow_steps("wf")
    assert info["output"] is None
    assert repr(info["error"]) == "KeyError('gone')"


@pytest.mark.parametrize("error", [StopIteration("end"), StopAsyncIteration("end"), RuntimeError("end")])
def test_exceptions_that_generators_use_pass_through_unchanged(dbos: type[DBOS], error: Exception) -> None:
    @dbos.step()
    def fail() -> None:
        raise error

    @dbos.workflow()
    def workflow() -> None:
        fail()

    @dbos.workflow()
    def parent() -> None:
        workflow()

    dbos.launch()

    with pytest.raises(type(error)) as caught:
        run(parent)

    assert caught.value is error


def test_a_step_within_a_step_is_a_plain_call(dbos: type[DBOS]) -> None:
    @dbos.step(retries_allowed=True, interval_seconds=3600)
    def inner() -> int | None:
        return dbos.step_id

    @dbos.step()
    def outer() -> int | None:
        return inner()

    @dbos.workflow()
    def workflow() -> int | None:
        return outer()

    dbos.launch()

    assert run(workflow) == 1

    assert recorded("wf") == [(1, outer.__qualname__)]


def test_a_step_outside_of_a_workflow_is_a_plain_call_even_without_dbos() -> None:
    DBOS.destroy(destroy_registry=True)

    @DBOS.step(retries_allowed=True, interval_seconds=3600)
    def fail() -> None:
        assert DBOS.step_id is None
        assert DBOS.step_status is None
        raise ValueError("once")

    with pytest.raises(ValueError, match="once"):
        fail()

    DBOS.destroy(destroy_registry=True)


def test_a_step_that_is_started_runs_in_a_workflow_made_for_it(dbos: type[DBOS]) -> None:
    @dbos.step(name="double")
    def double(value: int) -> int:
        return value * 2

    dbos.launch()

    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(double, 4)

    assert handle.get_result() == 8
    assert row("wf").name == "<temp>.double"
    assert recorded("wf") == [(1, "double")]


def test_operations_that_raise_leave_a_gap(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> None: ...

    @dbos.workflow()
    def workflow() -> None:
        step()
        with pytest.raises(DBOSNonExistentWorkflowError):
            dbos.send("nobody", "message")
        step()

    dbos.launch()

    run(workflow)

    assert recorded("wf") == [(1, step.__qualname__), (3, step.__qualname__)]


async def test_gathered_steps_and_children_are_numbered_in_source_order(dbos: type[DBOS]) -> None:
    @dbos.step(name="step")
    async def step(delay: int) -> int:
        for _ in range(delay):
            await asyncio.sleep(0)
        return delay

    @dbos.workflow(name="child")
    async def child(delay: int) -> int:
        return await step(delay)

    @dbos.workflow()
    async def workflow() -> Any:
        return await asyncio.gather(
            step(30), child(20), step(10), child(0), dbos.run_step_async({"name": "run"}, step, 5)
        )

    dbos.launch()

    with SetWorkflowID("wf"):
        assert await workflow() == [30, 20, 10, 0, 5]

    rows = steps("wf")
    assert [(each.function_id, each.function_name, each.child_workflow_id) for each in rows] == [
        (1, "step", None),
        (2, "child", "wf-2"),
        (3, "DBOS.getResult", "wf-2"),
        (4, "step", None),
        (5, "child", "wf-5"),
        (6, "DBOS.getResult", "wf-5"),
        (7, "run", None),
    ]
    assert [each.output for each in rows] == ["30", None, "20", "10", None, "0", "5"]


def test_threads_of_one_workflow_never_share_a_function_id(dbos: type[DBOS]) -> None:
    @dbos.step()
    def echo(value: int) -> int:
        return value

    @dbos.workflow()
    async def workflow() -> list[int]:
        return await asyncio.gather(*(asyncio.to_thread(echo, value) for value in range(200)))

    dbos.launch()
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with SetWorkflowID("wf"):
            assert asyncio.run(workflow()) == list(range(200))
    finally:
        sys.setswitchinterval(switch_interval)

    assert [each.function_id for each in steps("wf")] == list(range(1, 201))


# -- retries -----------------------------------------------------------------------------------------------------------


def test_a_step_is_retried_until_it_succeeds_and_recorded_once(
    dbos: type[DBOS], caplog: pytest.LogCaptureFixture
) -> None:
    statuses = []

    @dbos.step(name="flaky", retries_allowed=True, max_attempts=5, interval_seconds=0.001)
    def flaky() -> str:
        statuses.append(dbos.step_status)
        if len(statuses) < 3:
            raise ValueError("not yet")
        return "done"

    @dbos.workflow()
    def workflow() -> str:
        return flaky()

    dbos.launch()

    with caplog.at_level(logging.WARNING, logger="dbos"):
        assert run(workflow) == "done"

    assert [(each.step_id, each.current_attempt, each.max_attempts) for each in statuses if each] == [
        (1, 0, 5),
        (1, 1, 5),
        (1, 2, 5),
    ]
    assert recorded("wf") == [(1, "flaky")]
    messages = [each.getMessage() for each in caplog.records if "automatically retried" in each.getMessage()]
    assert [message.partition(":")[0] for message in messages] == [
        "Step being automatically retried (attempt 1 of 5)",
        "Step being automatically retried (attempt 2 of 5)",
    ]


def test_without_retries_a_step_has_no_attempts(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> tuple[int, int | None, int | None]:
        status = dbos.step_status
        assert status is not None
        return status.step_id, status.current_attempt, status.max_attempts

    @dbos.workflow()
    def workflow() -> Any:
        return step()

    dbos.launch()

    assert run(workflow) == (1, None, None)


def test_a_step_that_never_succeeds_raises_all_its_errors(dbos: type[DBOS]) -> None:
    attempts = iter(range(10))

    @dbos.step(name="doomed", retries_allowed=True, max_attempts=3, interval_seconds=0)
    def doomed() -> None:
        raise ValueError(next(attempts))

    @dbos.workflow()
    def workflow() -> None:
        doomed()

    dbos.launch()

    with pytest.raises(DBOSMaxStepRetriesExceeded) as caught:
        run(workflow)

    assert caught.value.step_name == "doomed"
    assert caught.value.max_retries == 3
    assert [error.args for error in caught.value.errors] == [(0,), (1,), (2,)]
    [info] = dbos.list_workflow_steps("wf")
    assert str(info["error"]) == str(caught.value)


@pytest.mark.parametrize("is_async", [False, True])
def test_there_is_no_pause_after_the_last_attempt(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    options: Any = {"retries_allowed": True, "max_attempts": 3}
    monkeypatch.setattr(StepPolicy, "pause_s", lambda self, attempt: 0.0 if attempt < 2 else 3600.0)

    @dbos.step(**options)
    def doomed() -> None:
        raise ValueError

    @dbos.step(**options)
    async def doomed_async() -> None:
        raise ValueError

    @dbos.workflow()
    def workflow() -> None:
        doomed()

    @dbos.workflow()
    async def workflow_async() -> None:
        await doomed_async()

    dbos.launch()

    with pytest.raises(DBOSMaxStepRetriesExceeded) as caught:
        dbos.start_workflow(workflow_async if is_async else workflow).get_result()

    assert len(caught.value.errors) == 3


@pytest.mark.parametrize("is_async", [False, True])
def test_a_step_that_is_recovered_between_two_attempts_has_all_its_attempts_again(
    dbos: type[DBOS], config: DBOSConfig, is_async: bool
) -> None:
    attempts: list[int | None] = []
    interval_s = 3600.0

    def options() -> StepOptions:
        return {"name": "flaky", "retries_allowed": True, "max_attempts": 4, "interval_seconds": interval_s}

    def attempt() -> str:
        status = dbos.step_status
        assert status is not None
        attempts.append(status.current_attempt)
        if len(attempts) < 5:
            raise ValueError(len(attempts))
        return "done"

    @dbos.step(name="before")
    def before() -> None:
        attempts.append(None)

    async def attempt_async() -> str:
        return attempt()

    @dbos.workflow()
    def workflow() -> str:
        before()
        return dbos.run_step(options(), attempt)

    @dbos.workflow()
    async def workflow_async() -> str:
        before()
        return await dbos.run_step_async(options(), attempt_async)

    dbos.launch()
    with SetWorkflowID("wf"):
        dbos.start_workflow(workflow_async if is_async else workflow)
    eventually(lambda: attempts == [None, 0])  # and now it pauses

    dbos.destroy()

    interval_s = 0.001
    DBOS(config=config)
    dbos.launch()
    assert dbos.get_result("wf") == "done"
    assert attempts == [None, 0, 0, 1, 2]
    assert recorded("wf") == [(1, "before"), (2, "flaky")]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_cancellation_ends_the_pause_between_two_attempts(dbos: type[DBOS], is_async: bool) -> None:
    attempts: list[int] = []

    def attempt() -> None:
        attempts.append(1)
        raise ValueError

    async def attempt_async() -> None:
        attempt()

    options: Any = {"name": "flaky", "retries_allowed": True, "interval_seconds": 3600}

    @dbos.workflow()
    def workflow() -> None:
        dbos.run_step(options, attempt)

    @dbos.workflow()
    async def workflow_async() -> None:
        await dbos.run_step_async(options, attempt_async)

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow_async if is_async else workflow)
    eventually(lambda: attempts)

    dbos.cancel_workflow("wf")

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        handle.get_result()
    eventually(lambda: not engine().runs.all())
    assert (len(attempts), recorded("wf")) == (1, [])


def test_no_attempts_at_all_are_refused(dbos: type[DBOS]) -> None:
    @dbos.step(retries_allowed=True, max_attempts=0)
    def step() -> None: ...

    @dbos.workflow()
    def workflow() -> None:
        step()

    dbos.launch()

    with pytest.raises(AssertionError):
        run(workflow)


def test_should_retry_decides_whether_an_error_is_worth_another_attempt(dbos: type[DBOS]) -> None:
    errors = iter([OSError("again"), ValueError("final")])

    @dbos.step(
        retries_allowed=True,
        max_attempts=10,
        interval_seconds=0,
        should_retry=lambda error: isinstance(error, OSError),
    )
    def step() -> None:
        raise next(errors)

    @dbos.workflow()
    def workflow() -> None:
        step()

    dbos.launch()

    with pytest.raises(ValueError, match="final"):
        run(workflow)


@pytest.mark.parametrize("predicate", ["a function", "a coroutine function"])
async def test_an_async_step_may_decide_with_either_kind_of_predicate(dbos: type[DBOS], predicate: str) -> None:
    errors = iter([OSError("again"), ValueError("final")])

    def is_temporary_now(error: Exception) -> bool:
        return isinstance(error, OSError)

    async def is_temporary_later(error: Exception) -> bool:
        await asyncio.sleep(0)
        return isinstance(error, OSError)

    is_temporary: Any = is_temporary_now if predicate == "a function" else is_temporary_later

    @dbos.step(retries_allowed=True, max_attempts=10, interval_seconds=0, should_retry=is_temporary)
    async def step() -> None:
        raise next(errors)

    @dbos.workflow()
    async def workflow() -> None:
        await step()

    dbos.launch()

    with pytest.raises(ValueError, match="final"):
        await workflow()


def test_a_sync_step_cannot_await_its_predicate(dbos: type[DBOS]) -> None:
    async def predicate(error: Exception) -> bool:
        return True

    with pytest.raises(DBOSException, match="sync but should_retry is async"):

        @dbos.step(retries_allowed=True, should_retry=predicate)
        def step() -> None: ...


def test_what_a_predicate_raises_is_the_recorded_error_of_the_step(dbos: type[DBOS]) -> None:
    def predicate(error: Exception) -> bool:
        raise LookupError("predicate")

    @dbos.step(retries_allowed=True, should_retry=predicate)
    def step() -> None:
        raise ValueError

    @dbos.workflow()
    def workflow() -> None:
        with pytest.raises(LookupError, match="predicate"):
            step()

    dbos.launch()

    run(workflow)

    [info] = dbos.list_workflow_steps("wf")
    assert isinstance(info["error"], LookupError)


def test_an_interrupt_is_not_recorded_and_leaves_the_workflow_pending(dbos: type[DBOS]) -> None:
    @dbos.step(retries_allowed=True)
    def step() -> None:
        raise KeyboardInterrupt

    @dbos.workflow()
    def workflow() -> None:
        step()

    dbos.launch()

    with pytest.raises(KeyboardInterrupt):
        run(workflow)

    assert recorded("wf") == []
    assert row("wf").status == "PENDING"


@pytest.mark.skipif(sys.platform == "win32", reason="signals to a thread")
def test_ctrl_c_ends_the_pause_between_two_attempts(dbos: type[DBOS]) -> None:
    main = threading.main_thread().ident
    assert main is not None

    @dbos.step(retries_allowed=True, interval_seconds=3600)
    def step() -> None:
        threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
        raise ValueError

    @dbos.workflow()
    def workflow() -> None:
        step()

    dbos.launch()

    with pytest.raises(KeyboardInterrupt):
        run(workflow)

    assert recorded("wf") == []
    assert row("wf").status == "PENDING"


@pytest.mark.skipif(sys.platform == "win32", reason="signals to a thread")
def test_ctrl_c_ends_the_pause_of_a_coroutine_too(dbos: type[DBOS]) -> None:
    main = threading.main_thread().ident
    assert main is not None

    @dbos.step(retries_allowed=True, interval_seconds=3600)
    async def step() -> None:
        threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
        raise ValueError

    @dbos.workflow()
    async def workflow() -> None:
        await step()

    async def serve() -> None:
        with SetWorkflowID("wf"):
            await workflow()

    dbos.launch()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(serve())

    assert recorded("wf") == []
    assert row("wf").status == "PENDING"


# -- any function as a step --------------------------------------------------------------------------------------------


def plain(value: int) -> tuple[int, int | None]:
    return value, DBOS.step_id


async def awaited(value: int) -> tuple[int, int | None]:
    await asyncio.sleep(0)
    return value, DBOS.step_id


@pytest.mark.parametrize("func", [plain, awaited, functools.partial(awaited)])
def test_run_step_runs_any_function_in_a_sync_workflow(dbos: type[DBOS], func: Callable[..., Any]) -> None:
    @dbos.workflow()
    def workflow() -> list[Any]:
        return [
            dbos.run_step({"name": "named"}, func, 1),
            dbos.run_step(None, func, value=2),
            dbos.run_step({}, func, 3),
        ]

    dbos.launch()

    assert run(workflow) == [(1, 1), (2, 2), (3, 3)]

    qualname = getattr(func, "__qualname__", "awaited")
    assert recorded("wf") == [(1, "named"), (2, qualname), (3, qualname)]


@pytest.mark.parametrize("func", [plain, awaited, functools.partial(awaited), lambda value: awaited(value)])
async def test_run_step_async_runs_any_function_in_an_async_workflow(
    dbos: type[DBOS], func: Callable[..., Any]
) -> None:
    @dbos.workflow()
    async def workflow() -> Any:
        return await asyncio.gather(
            dbos.run_step_async({"name": "a"}, func, 1), dbos.run_step_async({"name": "b"}, func, 2)
        )

    dbos.launch()

    with SetWorkflowID("wf"):
        result = await workflow()

    assert [value for value, _ in result] == [1, 2]
    assert recorded("wf") == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("is_decorated", [False, True], ids=["plain", "decorated"])
async def test_a_sync_function_does_not_block_the_loop_of_an_async_workflow(
    dbos: type[DBOS], is_decorated: bool
) -> None:
    is_set = threading.Event()

    def wait() -> bool:
        return is_set.wait(PATIENCE_S)

    step = dbos.step()(wait) if is_decorated else wait

    @dbos.workflow()
    async def workflow() -> bool:
        waiting = asyncio.ensure_future(dbos.run_step_async(None, step))
        await asyncio.sleep(0.01)
        is_set.set()
        result: bool = await waiting
        return result

    dbos.launch()

    assert await workflow()


async def test_a_sync_function_that_raises_stop_iteration_does_not_hang_its_awaiter(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> None:
        await dbos.run_step_async(None, next, iter([]))

    dbos.launch()

    with pytest.raises(RuntimeError, match="StopIteration"):
        await workflow()


def test_outside_of_a_workflow_run_step_just_calls(dbos: type[DBOS]) -> None:
    dbos.launch()

    assert dbos.run_step(None, plain, 1) == (1, None)
    assert dbos.run_step(None, awaited, 2) == (2, None)

    async def main() -> list[Any]:
        return [await dbos.run_step_async(None, plain, 3), await dbos.run_step_async(None, awaited, 4)]

    assert asyncio.run(main()) == [(3, None), (4, None)]
    assert dbos.list_workflows() == []


async def test_run_step_refuses_to_block_a_running_loop(dbos: type[DBOS]) -> None:
    dbos.launch()

    with pytest.raises(RuntimeError, match=r"run_step\(\) was called while an event loop is running"):
        dbos.run_step(None, plain, 1)


def test_run_step_async_needs_a_running_loop(dbos: type[DBOS]) -> None:
    dbos.launch()

    coroutine = dbos.run_step_async(None, plain, 1)

    with pytest.raises(RuntimeError, match="event loop is not running"):
        coroutine.send(None)


def test_a_decorated_step_given_to_run_step_is_recorded_once(dbos: type[DBOS]) -> None:
    @dbos.step(name="own name")
    def step() -> int | None:
        return dbos.step_id

    @dbos.workflow()
    def workflow() -> Any:
        return dbos.run_step(None, step)

    dbos.launch()

    assert run(workflow) == 1

    assert recorded("wf") == [(1, step.__qualname__)]


def test_run_step_takes_a_retry_policy(dbos: type[DBOS]) -> None:
    attempts: list[int] = []

    async def fail() -> None:
        attempts.append(1)
        raise OSError

    async def has_tries_left(error: Exception) -> bool:
        return len(attempts) < 2

    @dbos.workflow()
    def workflow() -> None:
        options: Any = {
            "retries_allowed": True,
            "max_attempts": 9,
            "interval_seconds": 0,
            "should_retry": has_tries_left,
        }
        dbos.run_step(options, fail)

    dbos.launch()

    with pytest.raises(OSError):  # noqa: PT011  # it has no message
        run(workflow)

    assert len(attempts) == 2


# -- steps that are stopped --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"preemptible": True}, {"timeout_seconds": 1.0}])
def test_only_async_steps_can_be_stopped(dbos: type[DBOS], options: dict[str, Any]) -> None:
    with pytest.raises(DBOSException, match="only supported for async steps"):

        @dbos.step(**options)
        def step() -> None: ...


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), float("nan")])
def test_a_step_timeout_is_positive_and_finite(dbos: type[DBOS], timeout: float) -> None:
    with pytest.raises(DBOSException, match="positive and finite"):

        @dbos.step(timeout_seconds=timeout)
        async def step() -> None: ...


async def test_a_step_that_exceeds_its_timeout_is_cancelled_and_recorded_as_failed(dbos: type[DBOS]) -> None:
    was_cancelled = asyncio.Event()

    @dbos.step(name="slow", timeout_seconds=0.01)
    async def slow() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            was_cancelled.set()

    @dbos.workflow()
    async def workflow() -> None:
        await slow()

    dbos.launch()

    with SetWorkflowID("wf"), pytest.raises(DBOSStepTimeoutError, match=r"slow .* timeout of 0.01 seconds"):
        await workflow()

    assert was_cancelled.is_set()
    [info] = await dbos.list_workflow_steps_async("wf")
    assert isinstance(info["error"], DBOSStepTimeoutError)


async def test_each_attempt_has_the_whole_timeout(dbos: type[DBOS]) -> None:
    attempts: list[int] = []

    @dbos.step(retries_allowed=True, max_attempts=3, interval_seconds=0, timeout_seconds=0.05)
    async def step() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            await asyncio.sleep(3600)
        return "in time"

    @dbos.workflow()
    async def workflow() -> str:
        return await step()

    dbos.launch()

    assert await workflow() == "in time"


async def test_a_step_that_finishes_when_it_is_stopped_keeps_its_result(dbos: type[DBOS]) -> None:
    @dbos.step(timeout_seconds=0.01)
    async def stubborn() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "finished"
        return "never"

    @dbos.workflow()
    async def workflow() -> str:
        return await stubborn()

    dbos.launch()

    assert await workflow() == "finished"


async def test_what_a_stopped_step_raises_in_cleaning_up_is_the_cause_of_its_timeout(dbos: type[DBOS]) -> None:
    @dbos.step(timeout_seconds=0.01)
    async def untidy() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise LookupError("while cleaning up")

    @dbos.workflow()
    async def workflow() -> str:
        with pytest.raises(DBOSStepTimeoutError) as caught:
            await untidy()
        return str(caught.value.__cause__)

    dbos.launch()

    assert await workflow() == "while cleaning up"


async def test_a_timeout_of_its_own_is_not_taken_for_the_steps(dbos: type[DBOS]) -> None:
    @dbos.step(timeout_seconds=3600)
    async def step() -> None:
        async with asyncio.timeout(0):
            await asyncio.sleep(3600)

    @dbos.workflow()
    async def workflow() -> None:
        await step()

    dbos.launch()

    with pytest.raises(TimeoutError):
        await workflow()


def test_a_coroutine_function_run_in_a_sync_workflow_can_be_stopped(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.run_step({"name": "nap", "timeout_seconds": 0.01}, asyncio.sleep, 3600)

    dbos.launch()

    with pytest.raises(DBOSStepTimeoutError, match="nap"):
        run(workflow)


async def test_cancelling_the_workflow_stops_a_preemptible_step_which_runs_again_after_resume(dbos: type[DBOS]) -> None:
    runs: list[int] = []
    has_begun = asyncio.Event()

    @dbos.step(preemptible=True, timeout_seconds=3600)
    async def step() -> str:
        runs.append(1)
        if len(runs) == 1:
            has_begun.set()
            await asyncio.sleep(3600)
        return "done"

    @dbos.workflow()
    async def workflow() -> str:
        return await step()

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = await dbos.start_workflow_async(workflow)
    await has_begun.wait()

    await dbos.cancel_workflow_async("wf")

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        await handle.get_result()
    assert recorded("wf") == []
    resumed = await dbos.resume_workflow_async("wf")
    assert await resumed.get_result() == "done"
    assert len(runs) == 2


def test_a_step_that_is_not_preemptible_finishes_when_its_workflow_is_cancelled(dbos: type[DBOS]) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    @dbos.step(name="step")
    async def step() -> str:
        has_begun.set()
        while not may_end.is_set():
            await asyncio.sleep(0.001)
        return "done"

    @dbos.workflow()
    async def workflow() -> str:
        return await step()

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)
    assert has_begun.wait(PATIENCE_S)

    dbos.cancel_workflow("wf")
    may_end.set()

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        handle.get_result()
    eventually(lambda: recorded("wf") == [(1, "step")])


async def test_a_cancellation_of_the_workflow_counts_more_than_the_timeout_of_its_step(dbos: type[DBOS]) -> None:
    runs: list[int] = []
    is_stopped, may_end = asyncio.Event(), asyncio.Event()

    @dbos.step(preemptible=True, timeout_seconds=0.01)
    async def step() -> str:
        runs.append(1)
        if len(runs) == 1:
            try:
                await asyncio.sleep(3600)
            finally:
                is_stopped.set()
                await may_end.wait()
        return "done"

    @dbos.workflow()
    async def workflow() -> str:
        return await step()

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = await dbos.start_workflow_async(workflow)
    await is_stopped.wait()

    await dbos.cancel_workflow_async("wf")
    may_end.set()

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        await handle.get_result()
    await asyncio.to_thread(eventually, lambda: not engine().runs.all())
    assert recorded("wf") == []
    assert await (await dbos.resume_workflow_async("wf")).get_result() == "done"


async def test_a_preemptible_step_that_finishes_after_all_keeps_its_result(dbos: type[DBOS]) -> None:
    runs: list[int] = []
    has_begun = asyncio.Event()

    @dbos.step(name="stubborn", preemptible=True)
    async def stubborn() -> str:
        runs.append(1)
        has_begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "finished"
        return "never"

    @dbos.workflow()
    async def workflow() -> str:
        return await stubborn()

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = await dbos.start_workflow_async(workflow)
    await has_begun.wait()

    await dbos.cancel_workflow_async("wf")

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        await handle.get_result()
    await asyncio.to_thread(eventually, lambda: recorded("wf") == [(1, "stubborn")])
    assert await (await dbos.resume_workflow_async("wf")).get_result() == "finished"
    assert len(runs) == 1


async def test_a_task_that_is_cancelled_stops_its_step_and_leaves_nothing_of_it_behind(dbos: type[DBOS]) -> None:
    has_begun, was_cancelled = asyncio.Event(), asyncio.Event()

    @dbos.step(preemptible=True, timeout_seconds=3600)
    async def step() -> None:
        has_begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            was_cancelled.set()

    @dbos.workflow()
    async def workflow() -> tuple[bool, bool, int]:
        run = engine().runs.all()[0]
        task = asyncio.ensure_future(step())
        await has_begun.wait()
        was_waiting = run.is_waiting
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return was_waiting, run.is_waiting, len(run.operations)

    dbos.launch()

    with SetWorkflowID("wf"):
        assert await workflow() == (True, False, 0)

    assert was_cancelled.is_set()
    assert recorded("wf") == []


def leases() -> Leases:
    assert _process.runtime is not None
    return _process.runtime._leases


async def test_a_look_for_cancellations_that_fails_stops_no_step_and_the_next_one_does(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    has_begun, was_stopped = asyncio.Event(), asyncio.Event()

    def fail(*_: object) -> None:
        raise OSError("away")

    @dbos.step(preemptible=True)
    async def step() -> str:
        runs.append(1)
        has_begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            was_stopped.set()
        return "never"

    @dbos.workflow()
    async def workflow() -> str:
        return await step()

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = await dbos.start_workflow_async(workflow)
    await has_begun.wait()
    db = engine().db

    with monkeypatch.context() as patch:
        patch.setattr(db.workflows, "running", fail)
        with pytest.raises(OSError, match="away"):
            await asyncio.to_thread(leases().reconcile_once)
    await asyncio.sleep(0)
    was_stopped_by_that = was_stopped.is_set()
    await asyncio.to_thread(db.change, db.workflows.cancel, ["wf"], db.now_ms())  # by another process
    await asyncio.to_thread(leases().reconcile_once)

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        await handle.get_result()
    await was_stopped.wait()
    assert not was_stopped_by_that
    assert recorded("wf") == []


async def test_news_of_a_cancellation_that_arrive_after_the_resume_do_not_stop_the_next_runs_step(
    dbos: type[DBOS],
) -> None:
    runs: list[int] = []
    begun, may_end = [asyncio.Event(), asyncio.Event()], asyncio.Event()

    @dbos.step(preemptible=True)
    async def step() -> str:
        runs.append(1)
        begun[len(runs) - 1].set()
        await may_end.wait()
        return "done"

    @dbos.workflow()
    async def workflow() -> str:
        return await step()

    dbos.launch()
    with SetWorkflowID("wf"):
        await dbos.start_workflow_async(workflow)
    await begun[0].wait()
    await dbos.cancel_workflow_async("wf")
    resumed = await dbos.resume_workflow_async("wf")
    await begun[1].wait()

    await drive_async(engine(), note_cancelled(engine(), ["wf"]))
    await asyncio.to_thread(leases().reconcile_once)
    await asyncio.sleep(0)
    may_end.set()

    assert await resumed.get_result() == "done"
    assert len(runs) == 2
