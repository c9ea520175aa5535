"""Cancelling stops a workflow at its next operation and ends its waits; resuming lets it go on from there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dbos import DBOS, SetWorkflowID
from dbos._engine.execution import note_cancelled
from dbos._engine.flow import drive
from dbos._error import DBOSAwaitedWorkflowCancelledError, DBOSWorkflowCancelledError
from tests.integration.histories import PATIENCE_S, engine, eventually, recorded, row


def start(dbos: type[DBOS], workflow: Callable[..., Any], *args: Any, workflow_id: str = "wf") -> Any:
    with SetWorkflowID(workflow_id):
        return dbos.start_workflow(workflow, *args)


class Gate:
    """A place in the user's code that a test waits for and lets go on."""

    def __init__(self) -> None:
        self._reached, self._open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self._reached.set()
        assert self._open.wait(PATIENCE_S)

    def reached(self) -> None:
        assert self._reached.wait(PATIENCE_S)

    def open(self) -> None:
        self._open.set()


def test_a_running_step_is_recorded_and_the_next_one_does_not_start(dbos: type[DBOS]) -> None:
    gate, calls = Gate(), []

    @dbos.step()
    def step(number: int) -> int:
        calls.append(number)
        if number == 1:
            gate()
        return number

    @dbos.workflow()
    def workflow() -> list[int]:
        return [step(1), step(2)]

    dbos.launch()
    handle = start(dbos, workflow)
    gate.reached()

    dbos.cancel_workflow("wf")
    gate.open()

    with pytest.raises(DBOSAwaitedWorkflowCancelledError, match="wf"):
        handle.get_result()
    eventually(lambda: engine().runs.get("wf") is None)
    assert calls == [1]
    assert recorded("wf") == [(1, step.__qualname__)]
    assert dbos.resume_workflow("wf").get_result() == [1, 2]
    assert calls == [1, 2]


def test_the_body_is_stopped_by_what_except_exception_does_not_catch(dbos: type[DBOS]) -> None:
    caught: list[str] = []

    @dbos.step()
    def step() -> None: ...

    @dbos.workflow()
    def workflow() -> None:
        dbos.cancel_workflow("wf")
        try:
            step()
        except Exception:
            caught.append("Exception")
        except DBOSWorkflowCancelledError as error:
            caught.append(str(error))
            raise

    dbos.launch()

    with pytest.raises(DBOSAwaitedWorkflowCancelledError), SetWorkflowID("wf"):
        workflow()

    assert caught == ["DBOS Error 10: Workflow wf is cancelled. Aborting function."]
    assert recorded("wf") == [(1, "DBOS.cancelWorkflow")]


def test_a_workflow_that_ignores_its_cancellation_stays_cancelled(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> None: ...

    @dbos.workflow()
    def workflow() -> str:
        dbos.cancel_workflow("wf")
        for _ in range(3):
            with pytest.raises(DBOSWorkflowCancelledError):
                step()
        return "finished all the same"

    dbos.launch()

    with pytest.raises(DBOSAwaitedWorkflowCancelledError), SetWorkflowID("wf"):
        workflow()

    assert row("wf").status == "CANCELLED"
    assert row("wf").output is None


def test_a_workflow_that_cancelled_itself_does_not_do_so_again_when_it_is_resumed(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> str:
        return "done"

    @dbos.workflow()
    def workflow() -> str:
        dbos.cancel_workflow("wf")
        return step()

    dbos.launch()
    with pytest.raises(DBOSAwaitedWorkflowCancelledError), SetWorkflowID("wf"):
        workflow()

    assert dbos.resume_workflow("wf").get_result() == "done"


WAITS: dict[str, Callable[[type[DBOS]], Any]] = {
    "sleep": lambda dbos: dbos.sleep(3600),
    "result": lambda dbos: dbos.get_result("never"),
    "handle": lambda dbos: dbos.retrieve_workflow("never", existing_workflow=False).get_result(),
    "retry": lambda dbos: dbos.run_step(
        {"retries_allowed": True, "interval_seconds": 3600}, lambda: (_ for _ in ()).throw(OSError())
    ),
}


@pytest.mark.parametrize("wait", WAITS)
def test_cancelling_ends_a_wait_at_once(dbos: type[DBOS], wait: str) -> None:
    gate = Gate()
    gate.open()

    @dbos.workflow()
    def workflow() -> None:
        gate()
        WAITS[wait](dbos)

    dbos.launch()
    handle = start(dbos, workflow)
    gate.reached()

    dbos.cancel_workflow("wf")

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        handle.get_result()
    eventually(lambda: engine().runs.get("wf") is None)


def test_cancelling_a_parent_ends_its_wait_and_leaves_its_child_running(dbos: type[DBOS]) -> None:
    gate = Gate()

    @dbos.workflow()
    def child() -> str:
        gate()
        return "child"

    @dbos.workflow()
    def workflow() -> Any:
        return dbos.start_workflow(child).get_result()

    dbos.launch()
    handle = start(dbos, workflow)
    gate.reached()

    dbos.cancel_workflow("wf")

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        handle.get_result()
    eventually(lambda: engine().runs.get("wf") is None)
    gate.open()
    assert dbos.get_result("wf-1") == "child"
    assert dbos.resume_workflow("wf").get_result() == "child"


async def test_cancelling_ends_the_waits_of_coroutines(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def sleeping() -> None:
        await dbos.sleep_async(3600)

    @dbos.workflow()
    async def waiting() -> None:
        await dbos.get_result_async("never")

    @dbos.workflow()
    async def gathering() -> None:
        await asyncio.gather(dbos.sleep_async(3600), dbos.sleep_async(3600))

    @dbos.workflow()
    async def grouping() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(dbos.sleep_async(3600))
            group.create_task(dbos.sleep_async(3600))

    @dbos.workflow()
    async def choosing() -> None:
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await dbos.asyncio_wait([never])

    dbos.launch()
    handles = [await dbos.start_workflow_async(each) for each in (sleeping, waiting, gathering, grouping, choosing)]
    await asyncio.sleep(0.05)

    await dbos.cancel_workflows_async([handle.workflow_id for handle in handles])

    for handle in handles:
        with pytest.raises(DBOSAwaitedWorkflowCancelledError):
            await handle.get_result()
    while engine().runs.all():
        await asyncio.sleep(0.005)


async def test_a_task_group_that_is_cancelled_from_within_a_direct_call(dbos: type[DBOS]) -> None:
    @dbos.step()
    async def step() -> None: ...

    @dbos.workflow()
    async def workflow() -> None:
        await dbos.cancel_workflow_async("wf")
        async with asyncio.TaskGroup() as group:
            group.create_task(step())
            group.create_task(step())

    dbos.launch()

    with pytest.raises(DBOSAwaitedWorkflowCancelledError), SetWorkflowID("wf"):
        await workflow()


def test_cancelling_is_idempotent(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(3600)

    dbos.launch()
    start(dbos, workflow)
    dbos.cancel_workflow("wf")
    before = row("wf")

    dbos.cancel_workflow("wf")
    dbos.cancel_workflows(["wf", "wf", "missing"])

    assert row("wf") == before
    assert before.completed_at is not None


@pytest.mark.parametrize("fails", [True, False])
def test_a_finished_workflow_is_neither_cancelled_nor_resumed(dbos: type[DBOS], fails: bool) -> None:
    @dbos.workflow()
    def workflow() -> None:
        if fails:
            raise LookupError

    dbos.launch()
    with SetWorkflowID("wf"):
        if fails:
            with pytest.raises(LookupError):
                workflow()
        else:
            workflow()
    before = row("wf")

    dbos.cancel_workflow("wf")
    dbos.resume_workflow("wf")

    assert row("wf") == before


def test_cancelling_while_it_completes_gives_one_final_status_that_stays(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    statuses = []
    for number in range(40):
        workflow_id = f"wf{number}"
        canceller = threading.Thread(target=dbos.cancel_workflow, args=(workflow_id,))
        handle = start(dbos, workflow, workflow_id=workflow_id)
        canceller.start()
        try:
            outcome = handle.get_result()
        except DBOSAwaitedWorkflowCancelledError:
            outcome = "cancelled"
        first = row(workflow_id)
        canceller.join(PATIENCE_S)
        statuses.append(first.status)

        assert row(workflow_id) == first
        assert (first.status, outcome) in {("SUCCESS", "done"), ("CANCELLED", "cancelled")}

    assert statuses


def test_a_handle_from_before_a_cancellation_gives_the_outcome_after_the_resume(dbos: type[DBOS]) -> None:
    gate, runs = Gate(), []

    @dbos.workflow()
    def workflow() -> str:
        runs.append(1)
        gate()
        dbos.sleep(0.001 if len(runs) > 1 else 3600)
        return "resumed"

    dbos.launch()
    handle = start(dbos, workflow)
    gate.reached()
    dbos.cancel_workflow("wf")
    gate.open()
    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        handle.get_result()

    dbos.resume_workflow("wf")

    assert handle.get_result() == "resumed"
    assert row("wf").recovery_attempts == 1


def test_what_an_old_run_does_after_a_resume_is_refused(dbos: type[DBOS]) -> None:
    old, calls = Gate(), []

    @dbos.step()
    def step() -> str:
        calls.append(1)
        if len(calls) == 1:
            old()
            return "old"
        return "new"

    @dbos.workflow()
    def workflow() -> str:
        return step()

    dbos.launch()
    handle = start(dbos, workflow)
    old.reached()
    old_run = engine().runs.get("wf")
    assert old_run is not None
    dbos.cancel_workflow("wf")

    resumed = dbos.resume_workflow("wf")

    assert resumed.get_result() == "new"
    old.open()
    assert old_run.finished.wait(PATIENCE_S)
    assert handle.get_result() == "new"
    assert [info["output"] for info in dbos.list_workflow_steps("wf")] == ["new"]


def test_news_of_a_cancellation_that_arrive_after_the_resume_do_not_stop_the_next_run(dbos: type[DBOS]) -> None:
    gate, runs = Gate(), []

    @dbos.step()
    def step() -> str:
        return "done"

    @dbos.workflow()
    def workflow() -> str:
        runs.append(1)
        if len(runs) == 2:
            gate()
        dbos.cancel_workflow("wf")
        return step()

    dbos.launch()
    handle = start(dbos, workflow)
    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        handle.get_result()
    eventually(lambda: not engine().runs.all())  # by then it has recorded that it cancelled itself
    resumed = dbos.resume_workflow("wf")
    gate.reached()

    drive(engine(), note_cancelled(engine(), ["wf"]))
    gate.open()

    assert resumed.get_result() == "done"
    assert len(runs) == 2


def test_many_workflows_are_cancelled_and_resumed_together(dbos: type[DBOS]) -> None:
    is_resumed = False

    @dbos.workflow()
    def workflow(number: int) -> int:
        if not is_resumed:
            dbos.sleep(3600)
        return number

    dbos.launch()
    ids = [f"wf{number}" for number in range(20)]
    handles = [start(dbos, workflow, number, workflow_id=f"wf{number}") for number in range(20)]

    dbos.cancel_workflows(ids)

    for handle in handles:
        with pytest.raises(DBOSAwaitedWorkflowCancelledError):
            handle.get_result()
    is_resumed = True
    engine().db.change(lambda connection: connection.run("DELETE FROM dbos.operation_outputs"))
    assert [handle.get_result() for handle in dbos.resume_workflows(ids)] == list(range(20))


def test_calling_a_cancelled_workflow_again_raises_that_it_was_cancelled(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(3600)

    dbos.launch()
    start(dbos, workflow)
    dbos.cancel_workflow("wf")

    with pytest.raises(DBOSAwaitedWorkflowCancelledError), SetWorkflowID("wf"):
        workflow()
    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        start(dbos, workflow).get_result()


def test_in_a_workflow_cancelling_and_resuming_others_is_recorded(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.cancel_workflow("missing")
        dbos.cancel_workflows(["missing", "missing too"])
        dbos.resume_workflow("cancelled")

    @dbos.workflow()
    def other() -> None:
        dbos.cancel_workflow("cancelled")
        dbos.sleep(3600)

    dbos.launch()
    with SetWorkflowID("cancelled"), pytest.raises(DBOSAwaitedWorkflowCancelledError):
        other()

    with SetWorkflowID("wf"):
        workflow()

    assert recorded("wf") == [(1, "DBOS.cancelWorkflow"), (2, "DBOS.cancelWorkflow"), (3, "DBOS.resumeWorkflow")]
