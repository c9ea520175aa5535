"""Deleting workflows: nothing of them is left, whatever they were doing, and nothing comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSException, Queue, SetWorkflowID
from dbos._error import DBOSNonExistentWorkflowError
from dbos._sysdb.rows import ExecutorRow
from dbos._sysdb.stores.deletions import PARTS
from tests.integration.histories import PATIENCE_S, change, engine, eventually, execute_again, recorded, row

LEAVE_TRACES = [
    "INSERT INTO dbos.notifications (message_uuid, destination_uuid, message, created_at_epoch_ms, consumed) "
    "VALUES (:id || '-message', :id, '1', 1, FALSE)",
    "INSERT INTO dbos.workflow_events (workflow_uuid, key, value) VALUES (:id, 'key', '1')",
    "INSERT INTO dbos.workflow_events_history (workflow_uuid, function_id, key, value) VALUES (:id, 1, 'key', '1')",
    "INSERT INTO dbos.streams (workflow_uuid, key, value, \"offset\", function_id) VALUES (:id, 'key', '1', 0, 1)",
]


def start(dbos: type[DBOS], workflow: Callable[..., Any], *args: Any, workflow_id: str = "wf") -> Any:
    with SetWorkflowID(workflow_id):
        return dbos.start_workflow(workflow, *args)


def traces(workflow_id: str) -> set[str]:
    """The tables that hold something of a workflow."""

    def read(connection: Any) -> set[str]:
        tables = {"workflow_status": "workflow_uuid", **PARTS}
        return {
            table
            for table, column in tables.items()
            if connection.all(f"SELECT 1 FROM dbos.{table} WHERE {column} = :id", id=workflow_id)
        }

    return engine().db.read(read)


class Family:
    """A workflow that starts a child, which starts a grandchild, and awaits somebody else's."""

    def __init__(self, dbos: type[DBOS]) -> None:
        @dbos.workflow(name="leaf")
        def leaf() -> str:
            return "leaf"

        @dbos.workflow(name="child")
        def child() -> str:
            return dbos.start_workflow(leaf).get_result()

        @dbos.workflow(name="parent")
        def parent() -> list[str]:
            mine = dbos.start_workflow(child)
            with SetWorkflowID("other"):
                others = dbos.start_workflow(leaf)  # which exists
            return [mine.get_result(), others.get_result()]

        self.leaf, self.parent = leaf, parent

    def run(self, dbos: type[DBOS]) -> None:
        dbos.launch()
        start(dbos, self.leaf, workflow_id="other").get_result()
        start(dbos, self.parent).get_result()
        for workflow_id in ("wf", "wf-1", "other"):
            for sql in LEAVE_TRACES:
                change(sql, id=workflow_id)


def test_nothing_is_left_of_a_deleted_workflow_and_all_of_the_others(dbos: type[DBOS]) -> None:
    Family(dbos).run(dbos)
    everything = {"workflow_status", *PARTS}
    before = {workflow_id: traces(workflow_id) for workflow_id in ("wf", "wf-1", "wf-1-1", "other")}

    dbos.delete_workflows(["wf", "unknown", "wf"])

    assert before["wf"] == before["wf-1"] == everything
    assert traces("wf") == set()
    assert {workflow_id: traces(workflow_id) for workflow_id in ("wf-1", "wf-1-1", "other")} == {
        workflow_id: before[workflow_id] for workflow_id in ("wf-1", "wf-1-1", "other")
    }
    assert dbos.get_workflow_status("wf") is None
    assert [each["workflow_id"] for each in dbos.list_management_actions(action="delete")] == ["wf"]


def test_children_are_deleted_with_their_parents_but_not_what_those_were_handed(dbos: type[DBOS]) -> None:
    family = Family(dbos)
    family.run(dbos)

    dbos.delete_workflow("wf", delete_children=True)

    assert [traces(workflow_id) for workflow_id in ("wf", "wf-1", "wf-1-1")] == [set(), set(), set()]
    assert row("other").status == "SUCCESS"


async def test_coroutines_and_clients_delete_too(dbos: type[DBOS], config: DBOSConfig) -> None:
    Family(dbos)
    dbos.launch()
    client = DBOSClient(system_database_url=config["system_database_url"])
    for workflow_id in ("a", "b", "c", "d"):
        await client.enqueue_async({"workflow_name": "leaf", "queue_name": "nowhere", "workflow_id": workflow_id})

    await dbos.delete_workflow_async("a")
    await dbos.delete_workflows_async(["b"], delete_children=True)
    await client.delete_workflow_async("c")
    await client.delete_workflows_async(["d"])

    client.destroy()
    assert await dbos.list_workflows_async() == []


def test_what_cannot_be_deleted_is_refused(dbos: type[DBOS]) -> None:
    dbos.launch()

    with pytest.raises(TypeError, match=r"\['wf'\]"):
        dbos.delete_workflows("wf")
    with pytest.raises(DBOSException, match="Invalid workflow ID"):
        dbos.delete_workflow(" ")


def test_a_running_workflow_that_is_deleted_records_nothing_more(dbos: type[DBOS]) -> None:
    """Fault J6; and its id can be used again at once, while the old run is still there (fault B20)."""
    reached, go_on, calls = threading.Event(), threading.Event(), []

    @dbos.step()
    def step(number: int) -> int:
        calls.append(number)
        if len(calls) == 1:
            reached.set()
            assert go_on.wait(PATIENCE_S)
        return number

    @dbos.workflow()
    def workflow(number: int) -> int:
        return step(number) + step(number)

    dbos.launch()
    handle = start(dbos, workflow, 1)
    assert reached.wait(PATIENCE_S)
    old_run = engine().runs.get("wf")
    assert old_run is not None
    with ThreadPoolExecutor() as threads:
        waits = [threads.submit(handle.get_result), threads.submit(dbos.get_result, "wf")]
        eventually(lambda: engine().db.wakeups.keys())

        dbos.delete_workflow("wf")
        errors = [wait.exception(PATIENCE_S) for wait in waits]
        is_anything_left = traces("wf")
        again = start(dbos, workflow, 2).get_result()
        go_on.set()

    assert old_run.finished.wait(PATIENCE_S)
    assert [type(error) for error in errors] == [DBOSNonExistentWorkflowError] * 2
    assert is_anything_left == set()
    assert again == 4
    assert calls == [1, 2, 2]
    assert recorded("wf") == [(1, step.__qualname__), (2, step.__qualname__)]
    assert row("wf").status == "SUCCESS"


SLOW_STEPS = """
CREATE FUNCTION dbos.be_slow() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$
"""
SLOW_TRIGGER = """
CREATE TRIGGER be_slow BEFORE INSERT ON dbos.operation_outputs FOR EACH ROW EXECUTE FUNCTION dbos.be_slow()
"""
SLEEPING = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"


@pytest.mark.dbos_databases("postgres")
def test_what_is_being_recorded_while_its_workflow_is_deleted_from_elsewhere_is_not_left_behind(
    dbos: type[DBOS], config: DBOSConfig
) -> None:
    """Who deletes cannot see it yet, and whoever records it still saw the workflow."""

    @dbos.step()
    def step() -> None: ...

    @dbos.workflow()
    def workflow() -> None:
        step()

    dbos.launch()
    change(SLOW_STEPS)
    change(SLOW_TRIGGER)
    handle = start(dbos, workflow)
    eventually(lambda: engine().db.read(lambda connection: connection.one(SLEEPING)))

    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        client.delete_workflow("wf")

    with pytest.raises(DBOSNonExistentWorkflowError):
        handle.get_result()
    assert traces("wf") == set()


SLOW_EXECUTOR = """
INSERT INTO dbos.executor_instances ({columns}) SELECT {values} FROM dbos.executor_instances
"""
WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@pytest.mark.dbos_databases("postgres")
def test_a_deletion_that_waits_for_a_slow_writer_keeps_no_other_waiting(
    dbos: type[DBOS], dbos_database_url: str
) -> None:
    """Each executor holds its row while it writes, and needs it for its lease."""

    @dbos.step()
    def step() -> str:
        return "done"

    @dbos.workflow()
    def workflow() -> str:
        return step()

    dbos.launch()
    start(dbos, workflow).get_result()
    columns = list(ExecutorRow._fields)
    values = ["'zzz'", *columns[1:]]  # behind this process, in the order in which they are waited for
    change(SLOW_EXECUTOR.format(columns=", ".join(columns), values=", ".join(values)))
    hold = "SELECT 1 FROM dbos.executor_instances WHERE instance_id = %s FOR KEY SHARE"
    with (
        ThreadPoolExecutor() as threads,
        psycopg.connect(dbos_database_url) as slow,
        psycopg.connect(dbos_database_url) as other,
    ):
        slow.execute(hold, ["zzz"])
        deletion = threads.submit(dbos.delete_workflow, "wf")
        eventually(lambda: engine().db.read(lambda connection: connection.one(WAITING)))

        other.execute(f"{hold} NOWAIT", [engine().instance_id])
        other.commit()
        assert start(dbos, workflow, workflow_id="other").get_result() == "done"
        assert not deletion.done()

        slow.commit()
        deletion.result(PATIENCE_S)

    assert traces("wf") == set()


@pytest.mark.parametrize("is_client", [False, True])
def test_whoever_waits_for_an_enqueued_workflow_learns_that_it_was_deleted(
    dbos: type[DBOS], config: DBOSConfig, is_client: bool
) -> None:
    @dbos.workflow(name="workflow")
    def workflow() -> None: ...

    dbos.launch()
    with DBOSClient(system_database_url=config["system_database_url"]) as client, ThreadPoolExecutor() as threads:
        handle = client.enqueue({"workflow_name": "workflow", "queue_name": "nowhere"})
        waiter = client if is_client else dbos
        wait = threads.submit(waiter.retrieve_workflow(handle.workflow_id).get_result)
        waiting = client._open() if is_client else engine()
        eventually(lambda: waiting.db.wakeups.keys())

        dbos.delete_workflow(handle.workflow_id)

        assert isinstance(wait.exception(PATIENCE_S), DBOSNonExistentWorkflowError)


def test_a_deleted_workflow_leaves_its_place_in_its_queue_to_the_next(dbos: type[DBOS]) -> None:
    go_on = threading.Event()
    queue = Queue("queue", concurrency=1)

    @dbos.workflow()
    def workflow(is_first: bool) -> str:
        while is_first and not go_on.is_set():
            dbos.sleep(0.01)
        return "done"

    dbos.launch()
    first, second = queue.enqueue(workflow, True), queue.enqueue(workflow, False)
    eventually(lambda: row(first.workflow_id).status == "PENDING")

    dbos.delete_workflow(first.workflow_id)

    assert second.get_result() == "done"
    go_on.set()


def test_in_a_workflow_a_deletion_is_a_step(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def victim() -> None: ...

    @dbos.workflow()
    def workflow() -> str:
        dbos.delete_workflow("victim")
        return "done"

    dbos.launch()
    start(dbos, victim, workflow_id="victim").get_result()
    start(dbos, workflow).get_result()
    start(dbos, victim, workflow_id="victim").get_result()

    assert execute_again("wf").get_result() == "done"
    assert recorded("wf") == [(1, "DBOS.deleteWorkflow")]
    assert row("victim").status == "SUCCESS"
    [action] = dbos.list_management_actions(workflow_id="victim")
    assert action["details"] == {"by_workflow": "wf"}


def test_a_workflow_that_deletes_itself_ends_there(dbos: type[DBOS]) -> None:
    goes_on: list[bool] = []

    @dbos.workflow()
    def workflow() -> None:
        dbos.delete_workflow("wf")
        goes_on.append(True)

    dbos.launch()

    with pytest.raises(DBOSNonExistentWorkflowError):
        start(dbos, workflow).get_result()

    assert goes_on == []
    assert traces("wf") == set()


@pytest.fixture
def apart(dbos: type[DBOS], config: DBOSConfig, tmp_path: Path) -> Iterator[sa.Engine]:
    """An application database of its own, whose transactions are recorded there."""
    dbos.destroy(destroy_registry=True)
    url = f"sqlite:///{tmp_path / 'application.sqlite'}"
    dbos(config={**config, "application_database_url": url})
    database = sa.create_engine(url)
    yield database
    database.dispose()


def test_records_of_transactions_are_deleted_from_the_application_database(
    dbos: type[DBOS], config: DBOSConfig, apart: sa.Engine
) -> None:
    @dbos.transaction()
    def transaction() -> None:
        dbos.sql_session.execute(sa.text("SELECT 1"))

    @dbos.workflow()
    def workflow() -> None:
        transaction()

    def transactions() -> list[str]:
        with apart.connect() as connection:
            query = sa.text("SELECT workflow_uuid FROM transaction_outputs ORDER BY workflow_uuid")
            return list(connection.scalars(query))

    dbos.launch()
    for workflow_id in ("a", "b", "c"):
        start(dbos, workflow, workflow_id=workflow_id).get_result()

    dbos.delete_workflow("a")
    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        client.delete_workflow("b")

    assert transactions() == ["b", "c"]  # a client does not know that database
    assert [status.workflow_id for status in dbos.list_workflows()] == ["c"]
