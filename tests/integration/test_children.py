"""Child workflows: their ids, how results reach the parent, and many parents on few threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, SetWorkflowID
from dbos._error import DBOSAwaitedWorkflowCancelledError, DBOSNonExistentWorkflowError, DBOSWorkflowCancelledError
from tests.integration.histories import PATIENCE_S, change, engine, eventually, execute_again, recorded, row, steps


def run(workflow: Callable[..., Any], *args: Any, workflow_id: str = "wf") -> Any:
    with SetWorkflowID(workflow_id):
        return workflow(*args)


def test_a_called_child_takes_two_ids_and_records_its_result(dbos: type[DBOS]) -> None:
    @dbos.workflow(name="grandchild")
    def grandchild() -> str | None:
        return dbos.workflow_id

    @dbos.workflow(name="child")
    def child() -> list[str | None]:
        return [dbos.workflow_id, grandchild()]

    @dbos.workflow()
    def workflow() -> list[str | None]:
        return child()

    dbos.launch()

    assert run(workflow) == ["wf-1", "wf-1-1"]

    start, result = steps("wf")
    assert (start.function_id, start.function_name, start.child_workflow_id) == (1, "child", "wf-1")
    assert start[3:5] == (None, None)
    assert (result.function_id, result.function_name, result.child_workflow_id) == (2, "DBOS.getResult", "wf-1")
    assert result.output == '["wf-1","wf-1-1"]'
    assert row("wf-1").parent_workflow_id == "wf"
    assert row("wf-1-1").parent_workflow_id == "wf-1"


def test_a_started_child_takes_one_id_and_its_result_another(dbos: type[DBOS]) -> None:
    @dbos.step(name="step")
    def step() -> None: ...

    @dbos.workflow(name="child")
    def child(value: int) -> int:
        return value

    @dbos.workflow()
    def workflow() -> list[int]:
        handles = [dbos.start_workflow(child, value) for value in (1, 2)]
        step()
        return [handle.get_result() for handle in handles]

    dbos.launch()

    assert run(workflow) == [1, 2]

    assert [(each.function_id, each.function_name, each.child_workflow_id) for each in steps("wf")] == [
        (1, "child", "wf-1"),
        (2, "child", "wf-2"),
        (3, "step", None),
        (4, "DBOS.getResult", "wf-1"),
        (5, "DBOS.getResult", "wf-2"),
    ]


def test_an_assigned_id_replaces_the_childs_and_takes_the_function_id_all_the_same(dbos: type[DBOS]) -> None:
    @dbos.workflow(name="child")
    def child() -> str | None:
        return dbos.workflow_id

    @dbos.workflow()
    def workflow() -> list[str | None]:
        with SetWorkflowID("own"):
            first = child()
        return [first, child()]

    dbos.launch()

    assert run(workflow) == ["own", "wf-3"]
    assert execute_again("wf", to_step=3).get_result() == ["own", "wf-3"]


def test_a_child_that_exists_is_attached_to(dbos: type[DBOS]) -> None:
    calls: list[int] = []

    @dbos.workflow(name="child")
    def child() -> int:
        calls.append(1)
        return 7

    @dbos.workflow()
    def workflow() -> int:
        with SetWorkflowID("child"):
            return child()

    dbos.launch()
    run(child, workflow_id="child")

    assert run(workflow) == 7

    assert len(calls) == 1
    assert recorded("wf") == [(1, "child"), (2, "DBOS.getResult")]


def test_a_child_whose_start_was_not_recorded_is_found_again(dbos: type[DBOS]) -> None:
    calls: list[int] = []

    @dbos.workflow(name="child")
    def child() -> int:
        calls.append(1)
        return 7

    @dbos.workflow()
    def workflow() -> int:
        result: int = dbos.start_workflow(child).get_result()
        return result

    dbos.launch()
    run(workflow)

    assert execute_again("wf", to_step=1).get_result() == 7

    assert len(calls) == 1
    assert recorded("wf") == [(1, "child"), (2, "DBOS.getResult")]


def test_parent_and_child_that_died_together_are_recovered_together(dbos: type[DBOS]) -> None:
    calls: list[int] = []

    @dbos.step()
    def step() -> int:
        calls.append(1)
        return 7

    @dbos.workflow()
    def child() -> int:
        return step()

    @dbos.workflow()
    def workflow() -> int:
        return child()

    dbos.launch()
    run(workflow)
    change("DELETE FROM dbos.operation_outputs WHERE function_name = 'DBOS.getResult'")
    change("UPDATE dbos.workflow_status SET status = 'PENDING', owner_instance = NULL")

    handles = {handle.workflow_id: handle for handle in dbos._recover_pending_workflows()}

    assert sorted(handles) == ["wf", "wf-1"]
    assert handles["wf"].get_result() == 7
    assert len(calls) == 1


@pytest.mark.parametrize("way", ["called", "by its handle", "by its id"])
def test_an_error_of_a_child_is_recorded_in_its_parent_once(dbos: type[DBOS], way: str) -> None:
    calls: list[int] = []

    @dbos.workflow()
    def child() -> None:
        calls.append(1)
        raise LookupError("child")

    @dbos.workflow()
    def workflow() -> str:
        try:
            if way == "called":
                child()
            else:
                handle = dbos.start_workflow(child)
                handle.get_result() if way == "by its handle" else dbos.get_result(handle.workflow_id)
        except LookupError as error:
            return str(error)
        return "no error"

    dbos.launch()

    assert run(workflow) == "child"

    assert recorded("wf") == [(1, child.__qualname__), (2, "DBOS.getResult")]
    assert execute_again("wf").get_result() == "child"
    assert len(calls) == 1


@pytest.mark.parametrize("way", ["by its handle", "by its id"])
def test_that_a_child_was_cancelled_is_recorded_even_if_it_is_resumed_later(dbos: type[DBOS], way: str) -> None:
    has_begun = threading.Event()

    @dbos.workflow()
    def child() -> str:
        has_begun.set()
        dbos.sleep(0.01 if resumed else 3600)
        return "resumed"

    @dbos.workflow()
    def workflow() -> str:
        try:
            handle = dbos.start_workflow(child)
            handle.get_result() if way == "by its handle" else dbos.get_result(handle.workflow_id)
        except DBOSAwaitedWorkflowCancelledError as error:
            return error.workflow_id
        return "not cancelled"

    resumed = False
    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)
    assert has_begun.wait(PATIENCE_S)

    dbos.cancel_workflow("wf-1")

    assert handle.get_result() == "wf-1"
    resumed = True
    change("DELETE FROM dbos.operation_outputs WHERE workflow_uuid = 'wf-1'")
    assert dbos.resume_workflow("wf-1").get_result() == "resumed"
    assert execute_again("wf").get_result() == "wf-1"


def test_a_parent_that_does_not_handle_the_cancellation_of_its_child_fails_with_it(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def child() -> None:
        dbos.cancel_workflow("wf-1")
        dbos.sleep(0.01)

    @dbos.workflow()
    def workflow() -> None:
        child()

    dbos.launch()

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        run(workflow)

    assert row("wf").status == "ERROR"
    assert row("wf-1").status == "CANCELLED"


def test_a_local_handle_gives_the_very_object_and_a_retrieved_one_an_equal(dbos: type[DBOS]) -> None:
    result = {"a": [1]}

    @dbos.workflow()
    def workflow() -> dict[str, list[int]]:
        return result

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)

    assert handle.get_result() is result
    retrieved = dbos.retrieve_workflow("wf")
    assert retrieved.get_result() == result
    assert retrieved.get_result() is not result
    assert handle.get_workflow_id() == retrieved.get_workflow_id() == "wf"
    assert handle.get_status().status == "SUCCESS"


def test_a_handle_for_what_does_not_exist(dbos: type[DBOS]) -> None:
    dbos.launch()

    with pytest.raises(DBOSNonExistentWorkflowError, match="target"):
        dbos.retrieve_workflow("missing")
    handle = dbos.retrieve_workflow("missing", existing_workflow=False)
    with pytest.raises(DBOSNonExistentWorkflowError, match="target"):
        handle.get_status()


def test_awaiting_a_workflow_that_is_started_later(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> int:
        return 5

    dbos.launch()
    results: list[int] = []
    waiting = threading.Thread(target=lambda: results.append(dbos.get_result("wf")))
    waiting.start()
    eventually(lambda: ("outcome", "wf") in engine().db.wakeups.keys())  # noqa: SIM118  # not a dict

    run(workflow)

    waiting.join(PATIENCE_S)
    assert results == [5]


def test_a_run_whose_row_is_deleted_ends_without_an_outcome(dbos: type[DBOS]) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    @dbos.step()
    def step() -> None:
        has_begun.set()
        assert may_end.wait(PATIENCE_S)

    @dbos.workflow()
    def workflow() -> None:
        step()

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)
    assert has_begun.wait(PATIENCE_S)
    change("DELETE FROM dbos.workflow_status")

    may_end.set()

    with pytest.raises(DBOSNonExistentWorkflowError):
        handle.get_result()
    assert steps("wf") == []


def test_parents_that_wait_for_children_leave_them_their_threads(config: DBOSConfig) -> None:
    config["max_executor_threads"] = 2
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)

    @DBOS.workflow()
    def child(value: int) -> int:
        return value * 2

    @DBOS.workflow()
    def parent(value: int) -> int:
        result: int = DBOS.start_workflow(child, value).get_result()
        return result

    DBOS.launch()
    try:
        handles = [DBOS.start_workflow(parent, value) for value in range(20)]

        assert [handle.get_result() for handle in handles] == [value * 2 for value in range(20)]
    finally:
        DBOS.destroy(destroy_registry=True)


def test_no_more_workflows_run_at_once_than_there_are_executor_threads(config: DBOSConfig) -> None:
    config["max_executor_threads"] = 2
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)
    running, most = set(), 0
    lock = threading.Lock()

    @DBOS.workflow()
    def workflow(number: int) -> int:
        nonlocal most
        with lock:
            running.add(number)
            most = max(most, len(running))
        for _ in range(200):
            threading.Event().wait(0)
        with lock:
            running.discard(number)
        return number

    DBOS.launch()
    try:
        handles = [DBOS.start_workflow(workflow, number) for number in range(12)]

        assert [handle.get_result() for handle in handles] == list(range(12))
        assert most <= 2
    finally:
        DBOS.destroy(destroy_registry=True)


def test_a_coroutine_that_a_thread_waits_for_may_itself_wait_for_a_workflow(config: DBOSConfig) -> None:
    config["max_executor_threads"] = 1
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)

    @DBOS.workflow()
    def child() -> int:
        return 3

    @DBOS.workflow()
    def parent() -> Any:
        child_id = DBOS.start_workflow(child).get_workflow_id()

        async def wait() -> Any:
            return await DBOS.get_result_async(child_id)

        return DBOS.run_step(None, wait)

    DBOS.launch()
    try:
        assert DBOS.start_workflow(parent).get_result() == 3
    finally:
        DBOS.destroy(destroy_registry=True)


def test_a_hundred_threads_that_call_one_id_run_it_once(dbos: type[DBOS]) -> None:
    calls: list[int] = []
    barrier = threading.Barrier(100)
    results: list[int] = []

    @dbos.step()
    def step() -> int:
        calls.append(1)
        return 42

    @dbos.workflow()
    def workflow() -> int:
        return step()

    def call(number: int) -> None:
        barrier.wait(PATIENCE_S)
        with SetWorkflowID("wf"):
            results.append(workflow() if number % 2 else dbos.start_workflow(workflow).get_result())

    dbos.launch()
    threads = [threading.Thread(target=call, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert results == [42] * 100
    assert len(calls) == 1
    assert recorded("wf") == [(1, step.__qualname__)]


async def test_coroutines_that_call_one_id_run_it_once(dbos: type[DBOS]) -> None:
    calls: list[int] = []

    @dbos.step()
    async def step() -> int:
        calls.append(1)
        await asyncio.sleep(0)
        return 42

    @dbos.workflow()
    async def workflow() -> int:
        return await step()

    async def call(number: int) -> Any:
        with SetWorkflowID("wf"):
            if number % 2:
                return await workflow()
            return await (await dbos.start_workflow_async(workflow)).get_result()

    dbos.launch()

    assert await asyncio.gather(*(call(number) for number in range(100))) == [42] * 100

    assert len(calls) == 1


class Slow:
    """An argument that takes as long to be serialized as the test wants."""

    def __init__(self, reached: threading.Event, may_go_on: threading.Event) -> None:
        self._reached, self._may_go_on = reached, may_go_on

    def __reduce__(self) -> tuple[Any, ...]:
        self._reached.set()
        assert self._may_go_on.wait(PATIENCE_S)
        return str, ("slow",)


@pytest.mark.parametrize("ending", ["the task is cancelled", "the workflow is cancelled"])
async def test_a_child_that_a_thread_is_starting_when_its_parent_stops_is_the_parents_or_nobodys(
    dbos: type[DBOS], ending: str
) -> None:
    reached, may_go_on = threading.Event(), threading.Event()
    attempts: list[BaseException | None] = []

    @dbos.workflow(name="child")
    def child(argument: Any) -> str:
        return "done"

    def start(argument: Any) -> None:
        try:
            dbos.start_workflow(child, argument)
            attempts.append(None)
        except BaseException as error:
            attempts.append(error)

    @dbos.workflow()
    async def workflow() -> None:
        await asyncio.to_thread(start, Slow(reached, may_go_on))

    async def serve() -> None:
        with SetWorkflowID("wf"):
            await workflow()

    dbos.launch()
    request = asyncio.create_task(serve())
    assert await asyncio.to_thread(reached.wait, PATIENCE_S)

    if ending == "the task is cancelled":
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    else:
        await dbos.cancel_workflow_async("wf")
    may_go_on.set()
    await asyncio.to_thread(eventually, lambda: attempts)
    await asyncio.gather(request, return_exceptions=True)

    ids = {status.workflow_id for status in await dbos.list_workflows_async()}
    if ending == "the task is cancelled":
        # The row is still the run's, which nobody has told to stop: the child is recorded, and found by recovery.
        assert (ids, recorded("wf"), attempts) == ({"wf", "wf-1"}, [(1, "child")], [None])
        assert row("wf-1").parent_workflow_id == "wf"
        assert await dbos.get_result_async("wf-1") == "done"
    else:
        assert (ids, recorded("wf")) == ({"wf"}, [])
        assert isinstance(attempts[0], DBOSWorkflowCancelledError)
