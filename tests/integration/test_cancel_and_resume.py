"""Cancelling stops a workflow at its next operation and ends its waits; resuming lets it go on from there."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSException, Queue, SetEnqueueOptions, SetWorkflowID
from dbos._engine.execution import note_cancelled
from dbos._engine.flow import drive
from dbos._error import DBOSAwaitedWorkflowCancelledError, DBOSNonExistentWorkflowError, DBOSWorkflowCancelledError
from tests.integration.histories import PATIENCE_S, change, engine, eventually, recorded, row


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


def test_of_several_none_is_resumed_if_one_does_not_exist(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(3600)

    dbos.launch()
    start(dbos, workflow)
    dbos.cancel_workflow("wf")

    with pytest.raises(DBOSNonExistentWorkflowError, match="unknown"):
        dbos.resume_workflows(["wf", "unknown"])
    with pytest.raises(DBOSNonExistentWorkflowError, match="unknown"):
        dbos.resume_workflow("unknown")

    assert row("wf").status == "CANCELLED"


def test_one_id_is_no_list_of_ids(dbos: type[DBOS]) -> None:
    dbos.launch()

    with pytest.raises(TypeError, match=r"cancel_workflows takes a list of ids: write \['abc'\]"):
        dbos.cancel_workflows("abc")
    with pytest.raises(TypeError, match=r"resume_workflows takes a list of ids: write \['abc'\]"):
        dbos.resume_workflows("abc")


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


# -- where a workflow is resumed ---------------------------------------------------------------------------------------


def cancelled(dbos: type[DBOS], workflow_id: str = "wf", partition_key: str | None = None) -> None:
    """A cancelled workflow, which would return ``"resumed"``; with a partition key if it was in a partitioned queue."""

    @dbos.workflow(name=f"workflow of {workflow_id}")
    def workflow() -> str:
        return "resumed"

    with SetWorkflowID(workflow_id), SetEnqueueOptions(queue_partition_key=partition_key, delay_seconds=1000):
        dbos.enqueue_workflow("unknown", workflow)
    dbos.cancel_workflow(workflow_id)


def test_what_could_never_run_where_it_is_resumed_is_refused(dbos: type[DBOS]) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"queue_name": "declared"}, "partitioned queue declared without a partition key"),
        ({"queue_name": "registered"}, "partitioned queue registered without a partition key"),
        ({"queue_name": "plain", "queue_partition_key": "k"}, "Key k was used with non-partitioned queue plain"),
        ({"queue_partition_key": "k"}, "Key k was used with non-partitioned queue _dbos_internal_queue"),
        ({"queue_name": ""}, "Invalid queue name ''"),
        ({"queue_name": "q" * 3000}, "Invalid queue name"),
        ({"queue_name": "declared", "queue_partition_key": "a\0b"}, "Invalid queue_partition_key"),
        ({"queue_name": "declared", "queue_partition_key": "k" * 3000}, "Invalid queue_partition_key"),
    ]
    Queue("declared", partition_queue=True)
    Queue("plain")
    dbos.launch()
    dbos.register_queue("registered", partition_concurrency=1)
    cancelled(dbos, "keyed", "k")
    cancelled(dbos)

    for choices, message in refused:
        with pytest.raises(Exception, match=message) as caught:
            dbos.resume_workflow("wf", **choices)
        with pytest.raises(Exception, match=message):
            dbos.resume_workflows(["keyed", "wf"], **choices)
        assert isinstance(caught.value, DBOSException) == message.startswith("Invalid")

    assert [row(each).status for each in ("keyed", "wf")] == ["CANCELLED"] * 2


@pytest.mark.parametrize("queue_name", ["declared", "registered"])
def test_a_workflow_is_resumed_in_a_partition_of_its_own_or_in_one_that_is_given(
    dbos: type[DBOS], queue_name: str
) -> None:
    Queue("declared", 1, partition_queue=True)
    dbos.launch()
    dbos.register_queue("registered", partition_concurrency=1)
    cancelled(dbos, "own", "k")
    cancelled(dbos, "none")
    cancelled(dbos, "other", "k")

    resumed = [
        dbos.resume_workflow("own", queue_name=queue_name),
        *dbos.resume_workflows(["none", "other"], queue_name=queue_name, queue_partition_key="new"),
    ]

    assert [handle.get_result() for handle in resumed] == ["resumed"] * 3
    assert [row(handle.workflow_id).queue_partition_key for handle in resumed] == ["k", "new", "new"]
    again = dbos.resume_workflows([handle.workflow_id for handle in resumed], queue_name=queue_name)  # all finished
    assert len(again) == 3


def test_a_finished_workflow_needs_no_partition(dbos: type[DBOS]) -> None:
    Queue("declared", partition_queue=True)

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    start(dbos, workflow).get_result()

    assert dbos.resume_workflow("wf", queue_name="declared").get_result() == "done"


# -- ids that no workflow can have -------------------------------------------------------------------------------------


def test_an_id_that_no_workflow_can_have_is_refused_wherever_it_is_given(dbos: type[DBOS]) -> None:
    impossible: list[Any] = ["a\0b", "a\ud800", "", 7, None]
    operations: tuple[Callable[[Any], Any], ...] = (
        dbos.get_result,
        dbos.get_workflow_status,
        dbos.list_workflow_steps,
        dbos.retrieve_workflow,
        lambda each: dbos.retrieve_workflow(each, existing_workflow=False),
        dbos.cancel_workflow,
        lambda each: dbos.cancel_workflows(["good", each]),
        dbos.resume_workflow,
        lambda each: dbos.resume_workflows(["good", each]),
        lambda each: dbos.fork_workflow(each, 1),
        lambda each: dbos.set_workflow_delay(each, delay_seconds=1),
        SetWorkflowID,
    )
    dbos.launch()

    for operation, workflow_id in itertools.product(operations, impossible):
        with pytest.raises(DBOSException, match="Invalid workflow ID"):
            operation(workflow_id)


# -- children ----------------------------------------------------------------------------------------------------------


class Tree:
    """A workflow that starts children, which start theirs, and all of them wait."""

    def __init__(self, dbos: type[DBOS]) -> None:
        @dbos.workflow(name="leaf")
        def leaf() -> None:
            dbos.sleep(3600)

        @dbos.workflow(name="branch")
        def branch(ends: bool) -> None:
            dbos.start_workflow(leaf)
            if not ends:
                dbos.sleep(3600)

        @dbos.workflow(name="root")
        def root() -> None:
            dbos.start_workflow(branch, False)
            dbos.start_workflow(branch, True).get_result()
            dbos.start_workflow(leaf)
            with SetWorkflowID("other"):
                dbos.start_workflow(leaf)  # which exists
            dbos.sleep(3600)

        self.leaf, self.root = leaf, root


def test_children_are_cancelled_with_their_parent_also_those_of_a_child_that_has_ended(dbos: type[DBOS]) -> None:
    tree = Tree(dbos)
    dbos.launch()
    start(dbos, tree.leaf, workflow_id="other")
    start(dbos, tree.root)
    eventually(lambda: (6, "DBOS.sleep") in recorded("wf"))

    dbos.cancel_workflow("wf", cancel_children=True)

    statuses = {each.workflow_id: each.status for each in dbos.list_workflows()}
    assert statuses == {
        "wf": "CANCELLED",
        "wf-1": "CANCELLED",
        "wf-1-1": "CANCELLED",
        "wf-2": "SUCCESS",
        "wf-2-1": "CANCELLED",
        "wf-4": "CANCELLED",
        "other": "PENDING",
    }
    eventually(lambda: [run.workflow_id for run in engine().runs.all()] == ["other"])


async def test_coroutines_and_clients_cancel_children_too(dbos: type[DBOS], config: DBOSConfig) -> None:
    tree = Tree(dbos)
    dbos.launch()
    for workflow_id in ("other", "ours", "theirs"):
        with SetWorkflowID(workflow_id):
            await dbos.start_workflow_async(tree.leaf if workflow_id == "other" else tree.root)
    await asyncio.to_thread(eventually, lambda: all((6, "DBOS.sleep") in recorded(root) for root in ("ours", "theirs")))

    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        await dbos.cancel_workflow_async("ours", cancel_children=True)
        await client.cancel_workflows_async(["theirs"], cancel_children=True)

    running = await dbos.list_workflows_async(status="PENDING")
    assert [each.workflow_id for each in running] == ["other"]


def test_no_child_outlives_a_parent_that_is_cancelled_while_it_starts_them(
    dbos: type[DBOS], config: DBOSConfig
) -> None:
    """Fault F3: here and from another process, while children and theirs are started as fast as it goes."""
    queue = Queue("queue")

    @dbos.workflow()
    def leaf(depth: int) -> None:
        dbos.sleep(3600)

    @dbos.workflow()
    def busy(depth: int) -> None:
        for number in itertools.count():
            child: Any = busy if depth < 2 else leaf
            if number % 2:
                queue.enqueue(child, depth + 1)
            else:
                dbos.start_workflow(child, depth + 1)

    dbos.launch()
    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        cancellers: list[Any] = [dbos, client, dbos, client]
        for canceller in cancellers:
            start(dbos, busy, 0)
            eventually(lambda: len(dbos.list_workflows(workflow_id_prefix="wf")) > 20)

            canceller.cancel_workflow("wf", cancel_children=True)

            assert dbos.list_workflows(workflow_id_prefix="wf", status=["PENDING", "ENQUEUED"]) == []
            canceller.delete_workflow("wf", delete_children=True)
            assert dbos.list_workflows(workflow_id_prefix="wf") == []


SLOW_CHILDREN = """
CREATE FUNCTION dbos.be_slow() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$
"""
SLOW_TRIGGER = """
CREATE TRIGGER be_slow BEFORE INSERT ON dbos.workflow_status FOR EACH ROW
WHEN (NEW.parent_workflow_id IS NOT NULL) EXECUTE FUNCTION dbos.be_slow()
"""
SLEEPING = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"


@pytest.mark.dbos_databases("postgres")
@pytest.mark.parametrize("verb", ["cancel", "delete"])
def test_a_child_that_is_being_written_when_its_parent_is_cancelled_is_found(dbos: type[DBOS], verb: str) -> None:
    """Its parent was still there when that was looked at, and it is not there yet when children are looked for."""

    @dbos.workflow()
    def child() -> None:
        dbos.sleep(3600)

    @dbos.workflow()
    def parent() -> None:
        dbos.start_workflow(child)

    dbos.launch()
    change(SLOW_CHILDREN)
    change(SLOW_TRIGGER)
    start(dbos, parent)
    eventually(lambda: engine().db.read(lambda connection: connection.one(SLEEPING)))

    if verb == "cancel":
        dbos.cancel_workflow("wf", cancel_children=True)
        assert {each.workflow_id: each.status for each in dbos.list_workflows()} == dict.fromkeys(
            ("wf", "wf-1"), "CANCELLED"
        )
    else:
        dbos.delete_workflow("wf", delete_children=True)
        assert dbos.list_workflows() == []


def test_overlapping_bulk_changes_from_several_sides_do_not_block_each_other(
    dbos: type[DBOS], config: DBOSConfig
) -> None:
    """Fault F9."""
    dbos.launch()
    ids = [f"w{number}" for number in range(60)]
    for workflow_id in ids:
        dbos.enqueue_workflow_with_options(
            {"workflow_name": "workflow", "queue_name": "nowhere", "workflow_id": workflow_id}
        )

    def cancel(side: Any, some: list[str]) -> None:
        for _ in range(10):
            side.cancel_workflows(some)

    def resume(side: Any, some: list[str]) -> None:
        for _ in range(10):
            side.resume_workflows(some, queue_name="nowhere")

    with (
        DBOSClient(system_database_url=config["system_database_url"]) as client,
        ThreadPoolExecutor() as threads,
    ):
        some, others = ids[:40], ids[:19:-1]
        changes = [
            threads.submit(change, side, chosen)
            for change, side, chosen in (
                (cancel, dbos, some),
                (resume, dbos, others),
                (cancel, client, others),
                (resume, client, some),
            )
        ]
        for each in changes:
            each.result(PATIENCE_S)
        deletions = [threads.submit(side.delete_workflows, chosen) for side, chosen in ((dbos, some), (client, others))]
        for deletion in deletions:
            deletion.result(PATIENCE_S)

    assert dbos.list_workflows() == []
