"""Replay: a workflow that is executed again goes on from what it has recorded."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dbos import DBOS, DBOSContextSetAuth, SetWorkflowID, SetWorkflowTimeout
from dbos._error import (
    DBOSAwaitedWorkflowCancelledError,
    DBOSConflictingWorkflowError,
    DBOSRecoveryError,
    DBOSUnexpectedStepError,
)
from tests.integration.histories import change, eventually, execute_again, recorded, rewind, row, steps


def run(workflow: Callable[..., Any], *args: Any, workflow_id: str = "wf") -> Any:
    with SetWorkflowID(workflow_id):
        return workflow(*args)


def test_recorded_steps_are_not_run_again(dbos: type[DBOS]) -> None:
    calls: list[str] = []

    @dbos.step()
    def step(name: str) -> str:
        calls.append(name)
        return name * 2

    @dbos.workflow()
    def workflow() -> list[str]:
        return [step("a"), step("b"), step("c")]

    dbos.launch()
    run(workflow)

    assert execute_again("wf", to_step=3).get_result() == ["aa", "bb", "cc"]

    assert calls == ["a", "b", "c", "c"]
    assert row("wf").status == "SUCCESS"
    assert row("wf").recovery_attempts == 2


async def test_recorded_steps_of_an_async_workflow_are_not_run_again(dbos: type[DBOS]) -> None:
    calls: list[int] = []

    @dbos.step()
    async def step(number: int) -> int:
        calls.append(number)
        await asyncio.sleep(0)
        return number * 2

    @dbos.workflow()
    async def workflow() -> list[int]:
        return await asyncio.gather(*(step(number) for number in range(5)))

    dbos.launch()
    with SetWorkflowID("wf"):
        await workflow()
    calls.clear()

    handle = await asyncio.to_thread(execute_again, "wf", to_step=3)

    assert await asyncio.to_thread(handle.get_result) == [0, 2, 4, 6, 8]
    assert calls == [2, 3, 4]


def test_a_workflow_whose_process_died_between_any_two_steps_converges(dbos: type[DBOS]) -> None:
    effects: list[int] = []

    @dbos.step()
    def step(number: int) -> int:
        effects.append(number)
        return number

    @dbos.workflow()
    def child(number: int) -> int:
        return step(number)

    @dbos.workflow()
    def workflow() -> list[int]:
        handle = dbos.start_workflow(child, 4)
        return [step(1), child(2), step(3), handle.get_result()]

    dbos.launch()
    run(workflow)
    history = steps("wf")
    assert len(history) == 6

    for first_lost in range(1, len(history) + 2):
        effects.clear()

        assert execute_again("wf", to_step=first_lost).get_result() == [1, 2, 3, 4]

        lost_steps = [each for each in history[first_lost - 1 :] if each.function_name == step.__qualname__]
        assert len(effects) == len(lost_steps)  # what the children have recorded is never run again
        assert [each[:4] for each in steps("wf")] == [each[:4] for each in history]


def test_recorded_errors_are_raised_again(dbos: type[DBOS]) -> None:
    calls: list[int] = []

    @dbos.step()
    def fail() -> None:
        calls.append(1)
        raise LookupError("recorded")

    @dbos.workflow()
    def child() -> None:
        raise KeyError("child")

    @dbos.workflow()
    def workflow() -> list[str]:
        seen = []
        for function in (fail, child):
            try:
                function()
            except LookupError as error:
                seen.append(repr(error))
        return seen

    dbos.launch()

    first = run(workflow)

    assert first == ["LookupError('recorded')", "KeyError('child')"]
    assert execute_again("wf").get_result() == first
    assert len(calls) == 1


def test_changed_code_meets_an_error_that_names_both_steps(dbos: type[DBOS]) -> None:
    is_changed = False

    @dbos.step(name="before")
    def before() -> None: ...

    @dbos.step(name="after")
    def after() -> None: ...

    @dbos.workflow()
    def workflow() -> None:
        (after if is_changed else before)()

    dbos.launch()
    run(workflow)
    is_changed = True

    with pytest.raises(DBOSUnexpectedStepError, match="function before was recorded when after was expected"):
        execute_again("wf").get_result()

    assert row("wf").status == "ERROR"
    assert recorded("wf") == [(1, "before")]


@pytest.mark.parametrize("changed", ["child", "sleep", "status", "result", "transaction"])
def test_every_kind_of_operation_notices_that_another_was_recorded(dbos: type[DBOS], changed: str) -> None:
    is_changed = False

    @dbos.step(name="before")
    def before() -> None: ...

    @dbos.workflow()
    def child() -> None: ...

    @dbos.transaction()
    def transaction() -> None: ...

    operations: dict[str, Callable[[], Any]] = {
        "child": child,
        "sleep": lambda: dbos.sleep(3600),
        "status": lambda: dbos.get_workflow_status("wf"),
        "result": lambda: dbos.retrieve_workflow("other", existing_workflow=False).get_result(),
        "transaction": transaction,
    }

    @dbos.workflow()
    def workflow() -> None:
        if is_changed:
            operations[changed]()
        else:
            before()
            before()

    dbos.launch()
    run(workflow)
    is_changed = True

    with pytest.raises(DBOSUnexpectedStepError, match="function before was recorded"):
        execute_again("wf").get_result()


async def test_asyncio_wait_takes_the_same_branch_again(dbos: type[DBOS]) -> None:
    first_is_slow = False
    may_end = asyncio.Event()

    @dbos.step()
    async def step(name: str) -> str:
        if (name == "first") == first_is_slow:
            await may_end.wait()
        return name

    @dbos.workflow()
    async def workflow() -> list[str]:
        tasks = [asyncio.ensure_future(step("first")), asyncio.ensure_future(step("second"))]
        done, pending = await dbos.asyncio_wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        winners = [task.result() for task in done]
        may_end.set()
        await asyncio.gather(*pending)
        return winners

    dbos.launch()
    with SetWorkflowID("wf"):
        assert await workflow() == ["first"]
    assert [(each.function_name, each.output) for each in steps("wf")] == [
        ("DBOS.asyncio_wait", "[0]"),
        (step.__qualname__, '"first"'),
        (step.__qualname__, '"second"'),
    ]
    first_is_slow = True
    may_end.clear()

    def lose_the_steps() -> None:
        change("DELETE FROM dbos.operation_outputs WHERE function_id > 1")

    await asyncio.to_thread(lose_the_steps)
    handle = await asyncio.to_thread(execute_again, "wf")
    await asyncio.sleep(0.05)
    may_end.set()

    assert await asyncio.to_thread(handle.get_result) == ["first"]


async def test_asyncio_wait_with_a_timeout_records_what_was_done_in_time(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> tuple[int, int]:
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done, pending = await dbos.asyncio_wait([never, asyncio.sleep(0)], timeout=0.05)
        return len(done), len(pending)

    dbos.launch()

    with SetWorkflowID("wf"):
        assert await workflow() == (1, 1)

    assert [(each.function_name, each.output) for each in steps("wf")] == [("DBOS.asyncio_wait", "[1]")]


async def test_outside_of_a_workflow_asyncio_wait_is_asyncios(dbos: type[DBOS]) -> None:
    done, pending = await dbos.asyncio_wait([asyncio.sleep(0, "x")])

    assert [task.result() for task in done] == ["x"]
    assert pending == set()


def test_a_replayed_result_is_not_asked_for_again(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def other() -> str:
        return "first"

    @dbos.workflow()
    def workflow() -> list[Any]:
        status = dbos.get_workflow_status("other")
        assert status is not None
        return [dbos.get_result("other"), status.output, len(dbos.list_workflows(workflow_ids=["other"]))]

    dbos.launch()
    run(other, workflow_id="other")
    run(workflow)
    change("DELETE FROM dbos.workflow_status WHERE workflow_uuid = 'other'")

    assert execute_again("wf").get_result() == ["first", "first", 1]


def test_a_recovered_workflow_acts_for_the_same_user_in_the_same_format_until_the_same_deadline(
    dbos: type[DBOS],
) -> None:
    @dbos.required_roles(["admin"])
    @dbos.workflow()
    def workflow() -> list[Any]:
        return [dbos.authenticated_user, dbos.authenticated_roles, dbos.assumed_role]

    dbos.launch()
    with DBOSContextSetAuth("alice", ["user", "admin"]), SetWorkflowTimeout(3600):
        first = run(workflow)
    before = row("wf")

    assert execute_again("wf").get_result() == first == ["alice", ["user", "admin"], "admin"]

    after = row("wf")
    assert after.workflow_deadline_epoch_ms == before.workflow_deadline_epoch_ms
    assert (after.serialization, after.outcome_serialization) == (before.serialization, before.outcome_serialization)


def test_an_error_that_cannot_be_serialized_is_recorded_by_what_it_said(dbos: type[DBOS]) -> None:
    class Unspeakable(Exception):
        def __init__(self) -> None:
            self.lock = threading.Lock()  # it cannot be pickled

        def __str__(self) -> str:
            raise ValueError("broken")

    @dbos.workflow()
    def workflow() -> None:
        raise Unspeakable

    dbos.launch()

    with pytest.raises(Unspeakable):
        run(workflow)

    assert row("wf").status == "ERROR"
    with pytest.raises(Exception, match="Unspeakable"):
        dbos.retrieve_workflow("wf").get_result()


def test_one_workflow_can_be_executed_by_its_id(dbos: type[DBOS]) -> None:
    calls: list[int] = []

    @dbos.workflow()
    def workflow() -> int:
        calls.append(1)
        return len(calls)

    dbos.launch()
    run(workflow)

    assert dbos._execute_workflow_id("wf").get_result() == 1
    rewind("wf")
    assert dbos._execute_workflow_id("wf").get_result() == 2
    with pytest.raises(DBOSRecoveryError, match="missing"):
        dbos._execute_workflow_id("missing")


@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "coroutine"])
@pytest.mark.parametrize("fails", [False, True], ids=["success", "error"])
async def test_a_finished_workflow_is_not_run_again_nor_what_decorates_it(
    dbos: type[DBOS], is_async: bool, fails: bool
) -> None:
    calls: list[str] = []

    def announced(func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        async def call_async(argument: str) -> Any:
            calls.append(f"around {argument}")
            return await func(argument)

        @functools.wraps(func)
        def call(argument: str) -> Any:
            calls.append(f"around {argument}")
            return func(argument)

        return call_async if is_async else call

    def body(argument: str) -> str:
        calls.append(argument)
        if fails:
            raise LookupError(argument)
        return argument

    async def body_async(argument: str) -> str:
        return body(argument)

    workflow = dbos.workflow(name="work")(announced(body_async if is_async else body))

    async def call(argument: str, how: str) -> Any:
        with SetWorkflowID("wf"):
            if how == "call":
                return await workflow(argument) if is_async else await asyncio.to_thread(workflow, argument)
            handle = await dbos.start_workflow_async(workflow, argument)
            return await handle.get_result()

    dbos.launch()

    results = [
        await asyncio.gather(call(argument, how), return_exceptions=True)
        for argument, how in (("first", "call"), ("second", "call"), ("third", "start"))
    ]

    assert [repr(result) for [result] in results] == ["LookupError('first')" if fails else "'first'"] * 3
    assert calls == ["around first", "first"]


def test_an_id_that_belongs_to_another_function_is_refused_and_its_workflow_untouched(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def one() -> str:
        return "one"

    @dbos.workflow()
    def another() -> str:
        return "another"

    dbos.launch()
    run(one)
    before = row("wf")

    with pytest.raises(DBOSConflictingWorkflowError, match="different function name"):
        run(another)
    with pytest.raises(DBOSConflictingWorkflowError, match="different function name"), SetWorkflowID("wf"):
        dbos.start_workflow(another)
    with pytest.raises(DBOSConflictingWorkflowError, match="different function name"), SetWorkflowID("wf"):
        asyncio.run(dbos.start_workflow_async(another))

    assert row("wf") == before
    assert execute_again("wf").get_result() == "one"


def test_a_deadline_that_passed_while_the_process_was_dead_cancels_before_anything_runs(dbos: type[DBOS]) -> None:
    calls: list[int] = []

    @dbos.workflow()
    def workflow() -> None:
        calls.append(1)

    dbos.launch()
    with SetWorkflowTimeout(3600):
        run(workflow)
    change("UPDATE dbos.workflow_status SET workflow_deadline_epoch_ms = 1")

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        execute_again("wf").get_result()

    assert len(calls) == 1
    eventually(lambda: row("wf").status == "CANCELLED")
