"""Export and import: workflows as values, from one database into another."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSException, Queue, SetWorkflowID
from dbos._error import DBOSNonExistentWorkflowError, DBOSPayloadTooLargeError, DBOSSerializationNotAllowedError
from dbos._operations import archives
from dbos._operations.archives import _as_json, _tables
from dbos._sysdb.connection import Connection
from dbos._sysdb.stores.archives import TABLES, Archive
from tests.integration.histories import change, engine, recorded, rewind, row

INSERT_PARTS = """
INSERT INTO dbos.workflow_events (workflow_uuid, key, value, serialization) VALUES (:id, 'k"', '"ü"', 'portable_json')
INSERT INTO dbos.workflow_events_history (workflow_uuid, function_id, key, value) VALUES (:id, 1, 'k"', '"first"')
INSERT INTO dbos.workflow_events_history (workflow_uuid, function_id, key, value) VALUES (:id, 2, 'k"', '"ü"')
INSERT INTO dbos.streams (workflow_uuid, key, value, "offset", function_id) VALUES (:id, 'log', 'second', 1, 2)
INSERT INTO dbos.streams (workflow_uuid, key, value, "offset", function_id) VALUES (:id, 'log', 'first', 0, 1)
INSERT INTO dbos.notifications (message_uuid, destination_uuid, topic, message, created_at_epoch_ms, consumed) \
VALUES ('z' || :id, :id, 'topic', '1', 1, TRUE)
INSERT INTO dbos.notifications (message_uuid, destination_uuid, topic, message, created_at_epoch_ms, idempotency_key) \
VALUES ('a' || :id, :id, 'topic', '2', 1795000000000, 'key')
"""


def insert_parts(workflow_id: str) -> None:
    """Something in every table."""
    for sql in INSERT_PARTS.strip().splitlines():
        change(sql, id=workflow_id)


def count(table: str = "workflow_status") -> int:
    (found,) = engine().db.read(lambda connection: connection.one(f"SELECT count(*) FROM dbos.{table}"))
    return int(found)


@pytest.fixture(params=["sqlite to postgres", "postgres to sqlite"])
def urls(request: pytest.FixtureRequest, dbos_sqlite_url: str, dbos_postgres_url: str) -> tuple[str, str]:
    """Two databases, of either kind."""
    both = dbos_sqlite_url, dbos_postgres_url
    return both if request.param == "sqlite to postgres" else (both[1], both[0])


@pytest.fixture
def move(urls: tuple[str, str]) -> Iterator[Callable[[str], None]]:
    """Launches the application, with what it has declared, on one of ``urls``; it ends before these databases do."""
    DBOS.destroy(destroy_registry=True)

    def launch(url: str) -> None:
        DBOS.destroy()
        DBOS(config={"name": "test-app", "system_database_url": url, "application_version": "test"})
        DBOS.launch()

    yield launch
    DBOS.destroy(destroy_registry=True)


# -- from one database into another ------------------------------------------------------------------------------------


@pytest.mark.postgres
def test_finished_workflows_arrive_as_they_were(move: Callable[[str], None], urls: tuple[str, str]) -> None:
    source, target = urls

    @DBOS.step()
    def step(value: Any) -> Any:
        return value

    @DBOS.workflow()
    def child(value: Any) -> Any:
        if value == "fails":
            raise ValueError("no\N{SNOWMAN}", {1, 2})
        return step({value: (value, b"\xff")})

    @DBOS.workflow()
    def parent(value: Any) -> list[Any]:
        results = [child(value), step(float("inf"))]
        try:
            child("fails")
        except ValueError as error:
            results.append(str(error))
        return results

    move(source)
    with SetWorkflowID("parent"):
        result = parent(7)
    insert_parts("parent")
    change(
        "UPDATE dbos.workflow_status SET attributes = '{\"a\": 1}', was_forked_from = TRUE WHERE name LIKE '%parent'"
    )
    steps = repr(DBOS.list_workflow_steps("parent"))

    exported = DBOS.export_workflow("parent", export_children=True)
    alone = DBOS.export_workflow("parent")
    received = json.loads(json.dumps(exported))

    assert received == exported
    assert alone["workflows"] == exported["workflows"][:1]
    assert [each["workflow_status"]["workflow_uuid"] for each in exported["workflows"]] == [
        "parent",
        "parent-1",
        "parent-4",
    ]
    assert {name: len(rows) for name, rows in alone["workflows"][0].items() if name != "workflow_status"} == {
        "operation_outputs": 5,
        "workflow_events": 1,
        "workflow_events_history": 2,
        "streams": 2,
        "notifications": 2,
    }

    move(target)
    assert DBOS.import_workflow(received) == ["parent", "parent-1", "parent-4"]

    assert DBOS.export_workflow("parent", export_children=True) == exported
    assert DBOS.retrieve_workflow("parent").get_result() == result
    assert repr(DBOS.list_workflow_steps("parent")) == steps
    with pytest.raises(ValueError, match="no\N{SNOWMAN}"):
        DBOS.retrieve_workflow("parent-4").get_result()
    status: Any = DBOS.get_workflow_status("parent")
    assert (status.status, status.input, status.was_forked_from) == ("SUCCESS", {"args": (7,), "kwargs": {}}, True)


@pytest.mark.postgres
def test_an_unfinished_workflow_goes_on_from_its_last_step(move: Callable[[str], None], urls: tuple[str, str]) -> None:
    executed: list[str] = []
    has_come, may_go = threading.Event(), threading.Event()

    @DBOS.step()
    def first() -> int:
        executed.append("first")
        return 1

    @DBOS.step()
    def second() -> int:
        executed.append("second")
        has_come.set()
        may_go.wait()
        return 2

    @DBOS.workflow()
    def workflow() -> int:
        return first() + second()

    move(urls[0])
    Queue("busy", concurrency=1)
    with SetWorkflowID("running"):
        handle = DBOS.start_workflow(workflow)
    has_come.wait()
    exported = DBOS.export_workflow("running")
    may_go.set()
    assert handle.get_result() == 3

    move(urls[1])
    ids = DBOS.import_workflow(exported)

    imported = row("running")
    assert (imported.status, imported.owner_instance, imported.queue_name) == ("CANCELLED", None, None)
    assert imported.completed_at is not None
    assert recorded("running") == [(1, "test_an_unfinished_workflow_goes_on_from_its_last_step.<locals>.first")]
    DBOS.resume_workflows(ids)
    assert DBOS.retrieve_workflow("running").get_result() == 3
    assert executed == ["first", "second", "second"]


def test_what_was_unfinished_waits_to_be_resumed(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    for status in ("PENDING", "ENQUEUED", "DELAYED"):
        with SetWorkflowID(status):
            workflow()
        exported = dbos.export_workflow(status)
        exported["workflows"][0]["workflow_status"].update(
            status=status,
            output=None,
            completed_at=None,
            queue_name="nowhere",
            deduplication_id="one",
            delay_until_epoch_ms=2**50,
            workflow_deadline_epoch_ms=1,
        )
        change("DELETE FROM dbos.workflow_status")

        assert dbos.import_workflow(exported) == [status]

        imported = row(status)
        assert (imported.status, imported.queue_name, imported.deduplication_id) == ("CANCELLED", None, None)
        assert dbos.resume_workflow(status).get_result() == "done"


# -- all or nothing ----------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(dbos: type[DBOS]) -> dict[str, Any]:
    """Two workflows, which are there still, with something in every table; ``dbos`` is launched."""

    @dbos.workflow()
    def child() -> int:
        return 1

    @dbos.workflow()
    def parent() -> int:
        return child()

    dbos.launch()
    with SetWorkflowID("parent"):
        parent()
    insert_parts("parent")
    return dbos.export_workflow("parent", export_children=True)


def test_what_is_there_is_not_written_over(dbos: type[DBOS], exported: dict[str, Any]) -> None:
    message = "Nothing was imported: there is a workflow with the ID"
    with pytest.raises(DBOSException, match=f"{message} 'parent'"):
        dbos.import_workflow(exported)

    change("DELETE FROM dbos.workflow_status WHERE workflow_uuid = 'parent'")
    with pytest.raises(DBOSException, match=f"{message} 'parent-1'"):
        dbos.import_workflow(exported)
    assert count() == 1

    change("DELETE FROM dbos.workflow_status")
    change("UPDATE dbos.notifications SET destination_uuid = 'another'")
    with pytest.raises(DBOSException, match="a row for the table notifications is there already"):
        dbos.import_workflow(exported)
    assert (count(), count("streams")) == (0, 2)

    change("DELETE FROM dbos.notifications")  # what is left of a workflow that was deleted is in nobody's way
    assert dbos.import_workflow(exported) == ["parent", "parent-1"]
    assert dbos.export_workflow("parent", export_children=True) == exported


def test_an_import_whose_answer_was_lost_is_repeated(dbos: type[DBOS], exported: dict[str, Any]) -> None:
    change("DELETE FROM dbos.workflow_status")
    change("DELETE FROM dbos.notifications")
    store = engine().db.archives
    tables = _tables(
        [{**each, "workflow_status": [each["workflow_status"]]} for each in exported["workflows"]], now_ms=1
    )
    rows = {name: (_as_json(name, found), len(found)) for name, found in tables.items()}
    archive = Archive("token", ["parent", "parent-1"], rows)

    for _ in range(2):
        assert engine().db.change(store.write, archive) == ["parent", "parent-1"]

    assert dbos.export_workflow("parent", export_children=True) == exported
    with pytest.raises(DBOSException, match="there is a workflow"):
        engine().db.change(store.write, archive._replace(token="another"))


def test_what_is_deleted_meanwhile_is_exported_whole(dbos: type[DBOS], exported: dict[str, Any]) -> None:
    db = engine().db

    class Deleting:
        """A reader on which everything is deleted after the first of the tables was read."""

        def __init__(self, reader: Any) -> None:
            self.snapshot, self._reader = reader.snapshot, reader

        def all(self, sql: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
            found: list[tuple[Any, ...]] = self._reader.all(sql, **parameters)
            db.change(db.deletions.delete, ["parent", "parent-1"])
            return found

    reading: Any = Deleting

    found = db.read(lambda reader: db.archives.read(reading(reader), "parent", with_children=True))

    assert [{**each, "workflow_status": each["workflow_status"][0]} for each in found] == exported["workflows"]
    assert (count(), count("streams")) == (0, 0)
    with pytest.raises(DBOSNonExistentWorkflowError):
        dbos.export_workflow("parent")


# -- what may be imported ----------------------------------------------------------------------------------------------


def at(*path: Any, value: Any) -> Callable[[Any], Any]:
    """An edit of the first workflow: sets the value at a path, or removes it if that is ``...``."""

    def edit(exported: Any) -> Any:
        place = exported["workflows"][0]
        for step in path[:-1]:
            place = place[step]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        return exported

    return edit


REFUSED: list[tuple[Callable[[Any], Any], str]] = [
    (lambda exported: [exported], "it is no export of workflows: .* not list"),
    (json.dumps, "it is no export of workflows: .* not str"),
    (lambda exported: {**exported, "format": "other"}, "it is no export of workflows"),
    (lambda exported: {**exported, "version": 2}, "it has the version 2, and this library reads 1"),
    (lambda exported: {**exported, "workflows": []}, "workflows must be a list that is not empty"),
    (lambda exported: {**exported, "workflows": [7]}, r"workflows\[0\] must be a dictionary with the keys"),
    (lambda exported: {**exported, "workflows": exported["workflows"] * 2}, "have several rows .'parent',."),
    (at("executor_instances", value=[]), r"workflows\[0\] must be a dictionary with the keys"),
    (at("streams", value=...), r"workflows\[0\] must be a dictionary with the keys"),
    (at("streams", value={}), r"workflows\[0\].streams must be a list, not dict"),
    (at("streams", 1, value=None), r"workflows\[0\].streams\[1\] must be a dictionary, not null"),
    (at("streams", 0, "x); DROP TABLE y", value=1), r"streams\[0\] has an unknown column 'x\); DROP TABLE y'"),
    (at("workflow_status", "owner_instance", value="me"), "has an unknown column 'owner_instance'"),
    (at("workflow_status", "inputs", value=...), "lacks the column 'inputs'"),
    (at("workflow_status", "name", value=None), r"workflow_status.name must not be null"),
    (at("workflow_status", "inputs", value=b"x"), "inputs must be a string, not bytes"),
    (at("workflow_status", "inputs", value="\0"), "inputs must be valid Unicode without NUL"),
    (at("workflow_status", "inputs", value="\ud800"), "inputs must be valid Unicode"),
    (at("workflow_status", "class_name", value="x" * 256), "class_name must have 255 characters at most"),
    (at("workflow_status", "created_at", value="1"), "created_at must be a whole number"),
    (at("workflow_status", "created_at", value=2**53), "created_at must be a whole number from 0 to"),
    (at("workflow_status", "workflow_timeout_ms", value=2**63 - 1), "workflow_timeout_ms must be a whole number"),
    (at("workflow_status", "queue_name", value="x" * 513), "queue_name must take 512 bytes at most"),
    (at("workflow_status", "deduplication_id", value="x" * 2049), "deduplication_id must take 2,048 bytes at most"),
    (at("workflow_status", "attributes", value=json.dumps({"a": "x" * 65_536})), "attributes must take 65,536 bytes"),
    (at("streams", 0, "key", value="é" * 1025), r"streams\[0\].key must take 2,048 bytes at most"),
    (at("notifications", 0, "topic", value="x" * 2049), "topic must take 2,048 bytes at most"),
    (at("workflow_status", "priority", value=-1), "priority must be a whole number from 0 to 2147483647"),
    (at("workflow_status", "was_forked_from", value=1), "was_forked_from must be true or false, not int"),
    (at("workflow_status", "status", value="RUNNING"), "workflow_status.status must be one of CANCELLED, "),
    (at("workflow_status", "workflow_uuid", value=" "), "Invalid workflow ID"),
    (at("workflow_status", "attributes", value="[1"), "workflow_status.attributes must be a JSON object"),
    (at("workflow_status", "authenticated_roles", value="{}"), "authenticated_roles must be a JSON list of strings"),
    (at("streams", 0, "workflow_uuid", value="other"), "streams must be rows of the workflow 'parent' only"),
    (at("streams", 0, "offset", value=True), "offset must be a whole number"),
    (at("streams", 0, "offset", value=1), "have several rows .'parent', 'log', 1. for the table streams"),
]


def test_what_is_no_export_is_refused(dbos: type[DBOS], exported: dict[str, Any]) -> None:
    before = count("operation_outputs")
    change("DELETE FROM dbos.workflow_status")
    change("DELETE FROM dbos.notifications")

    for edit, message in REFUSED:
        with pytest.raises(DBOSException, match=message):
            dbos.import_workflow(edit(copy.deepcopy(exported)))

    assert (count(), count("operation_outputs")) == (0, before)


def test_what_is_too_large_is_refused_where_it_is_imported(
    dbos: type[DBOS], config: DBOSConfig, exported: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_UNIT_CHARACTERS", 1000)
    with pytest.raises(DBOSException, match=r"it takes \d,\d+ characters, and one transaction takes 1,000 at most"):
        dbos.import_workflow(exported)
    dbos.destroy()

    dbos(config={**config, "max_payload_bytes": 100_000})
    dbos.launch()
    at("workflow_status", "inputs", value="é" * 60_000)(exported)
    with pytest.raises(
        DBOSPayloadTooLargeError, match=r"value workflows\[0\].workflow_status.inputs takes 120,000 bytes"
    ):
        dbos.import_workflow(exported)


@pytest.mark.dbos_databases("postgres")  # SQLite takes keys of any length
def test_what_a_database_refuses_is_refused_with_its_reason(dbos: type[DBOS], exported: dict[str, Any]) -> None:
    change("DELETE FROM dbos.workflow_status")
    change("DELETE FROM dbos.notifications")
    key = "".join(str(number) for number in range(5000))  # which compresses badly
    at("workflow_status", "parent_workflow_id", value=key)(exported)

    with pytest.raises(DBOSException, match="Nothing was imported, because the database refuses it: index row"):
        dbos.import_workflow(exported)

    assert count() == 0


def test_nothing_is_decoded_and_what_is_not_allowed_is_refused(
    dbos: type[DBOS], config: DBOSConfig, exported: dict[str, Any]
) -> None:
    at("workflow_status", "inputs", value="cnoxious")(exported)
    at("workflow_status", "serialization", value="py_pickle")(exported)
    change("DELETE FROM dbos.workflow_status")
    change("DELETE FROM dbos.notifications")
    dbos.import_workflow(exported)
    assert dbos.export_workflow("parent", export_children=True) == exported
    change("DELETE FROM dbos.workflow_status")
    change("DELETE FROM dbos.notifications")
    dbos.destroy()

    dbos(config={**config, "allowed_serializers": ["json"]})
    dbos.launch()
    with pytest.raises(DBOSSerializationNotAllowedError, match=r"see workflows\[0\].workflow_status"):
        dbos.import_workflow(exported)
    assert count() == 0


# -- its forms ---------------------------------------------------------------------------------------------------------


async def test_coroutines_clients_and_workflows_export_and_import(
    dbos: type[DBOS], config: DBOSConfig, exported: dict[str, Any]
) -> None:
    @dbos.workflow()
    async def replace(exported: dict[str, Any]) -> list[str]:
        change("DELETE FROM dbos.workflow_status WHERE workflow_uuid <> 'replace'")
        change("DELETE FROM dbos.notifications")
        return await dbos.import_workflow_async(exported)

    assert await dbos.export_workflow_async("parent", export_children=True) == exported
    with SetWorkflowID("replace"):
        assert await replace(exported) == ["parent", "parent-1"]
    assert recorded("replace") == [(1, "DBOS.importWorkflow")]
    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        assert await client.export_workflow_async("parent", export_children=True) == exported
        assert [each["action"] for each in client.list_management_actions(workflow_id="parent-1")] == ["import"]
        with pytest.raises(DBOSNonExistentWorkflowError):
            client.export_workflow("unknown")
        with pytest.raises(DBOSException, match="there is a workflow"):
            await client.import_workflow_async(exported)


def test_a_workflow_that_died_before_it_recorded_an_import_goes_on(dbos: type[DBOS], exported: dict[str, Any]) -> None:
    @dbos.workflow()
    def put_in() -> list[str]:
        return dbos.import_workflow(exported)

    change("DELETE FROM dbos.workflow_status")
    change("DELETE FROM dbos.notifications")
    with SetWorkflowID("importer"):
        assert put_in() == ["parent", "parent-1"]

    rewind("importer", to_step=1)
    dbos._recover_pending_workflows()

    assert dbos.retrieve_workflow("importer").get_result() == ["parent", "parent-1"]


def test_every_column_is_known(exported: dict[str, Any]) -> None:
    """What is not exported is named here: a new column is one or the other."""
    left_out = {
        "workflow_status": {
            "request",
            "run_token",
            "owner_instance",
            "was_unversioned",
            "enqueue_sequence",
            "is_debounced",
            "debounce_deadline_epoch_ms",
        },
        "streams": {"write_token"},
        "notifications": {"message_sequence"},
    }

    def columns(connection: Connection, table: str) -> set[str]:
        if engine().db.dialect.name == "sqlite":
            return {each[1] for each in connection.all(f"PRAGMA table_info({table})")}
        sql = "SELECT column_name::text FROM information_schema.columns WHERE table_name = :table"
        return {each[0] for each in connection.all(sql, table=table)}

    for name, table in TABLES.items():
        assert engine().db.read(columns, name) - left_out.get(name, set()) == table.columns.keys()
