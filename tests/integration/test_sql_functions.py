"""What programs in any language do with SQL alone: enqueue a workflow, send a message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.types.json import Json

from dbos import DBOS, DBOSConfig, Queue
from dbos._schemas.rendering import quote_identifier
from dbos._services import dispatcher, notifier

pytestmark = pytest.mark.dbos_databases("postgres")

PATIENCE_S = 30.0
NOWHERE = {"workflow_name": "add", "queue_name": "nowhere"}


@pytest.fixture(params=["dbos", "od:d %s'\"$s"])
def schema(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def app(dbos: type[DBOS], config: DBOSConfig, schema: str, monkeypatch: pytest.MonkeyPatch) -> type[DBOS]:
    """A launched application that looks for work when it is told of some."""
    monkeypatch.setattr(dispatcher, "SAFETY_NET_S", 3600.0)
    monkeypatch.setattr(notifier, "INTERVAL_S", 3600.0)
    dbos.destroy()
    DBOS(config={**config, "dbos_system_schema": schema})
    Queue("work", polling_interval_sec=3600)

    @dbos.workflow(name="add")
    def add(a: int, b: int = 1) -> dict[str, int]:
        return {"sum": a + b}

    dbos.launch()
    return dbos


class Caller:
    """A program that knows SQL."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        self.connection = connection
        self._schema = quote_identifier(schema)

    def call(self, function: str, **arguments: Any) -> Any:
        named = ", ".join(f"{name} => ${number}" for number, name in enumerate(arguments, 1))
        query = f"SELECT {self._schema}.{function}({named})"
        row = self.connection.execute(query, list(arguments.values())).fetchone()
        return None if row is None else row[0]


@pytest.fixture
def caller(app: type[DBOS], dbos_postgres_url: str, schema: str) -> Iterator[Caller]:
    with psycopg.connect(dbos_postgres_url, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
        connection.execute("SET search_path = pg_temp")  # the functions find their tables by themselves
        yield Caller(connection, schema)


def test_a_workflow_that_sql_enqueues_begins_at_once_after_the_commit(app: type[DBOS], caller: Caller) -> None:
    with caller.connection.transaction():
        workflow_id = caller.call(
            "enqueue_workflow",
            workflow_name="add",
            queue_name="work",
            positional_args=[Json(3)],
            named_args=Json({"b": 4}),
        )
        before = app.get_workflow_status(workflow_id)

    assert before is None
    assert app.get_result(workflow_id) == {"sum": 7}


def test_a_message_that_sql_sends_is_received_at_once(app: type[DBOS], caller: Caller) -> None:
    @app.workflow()
    def receive() -> list[Any]:
        return [app.recv(topic, timeout_seconds=PATIENCE_S) for topic in (None, "a", "a")]

    handle = app.start_workflow(receive)
    for message in ("first", "again"):
        caller.call("send_message", destination_id=handle.workflow_id, message=Json(message), message_id="key")
    caller.call("send_message", destination_id=handle.workflow_id, message=Json({"x": [1]}), topic="a")
    caller.call("send_message", destination_id=handle.workflow_id, message=None, topic="a")
    with pytest.raises(errors.ForeignKeyViolation, match="DBOS non-existent workflow"):
        caller.call("send_message", destination_id="missing", message=Json(1))

    assert handle.get_result() == ["first", {"x": [1]}, None]


def test_every_argument_is_in_the_row(app: type[DBOS], caller: Caller) -> None:
    full = caller.call(
        "enqueue_workflow",
        **NOWHERE,
        class_name="C",
        config_name="i",
        workflow_id="full",
        app_version="v7",
        timeout_ms=2500,
        deadline_epoch_ms=2**45,
        deduplication_id="d",
        priority=3,
        queue_partition_key="k",
        authenticated_user="alice",
        authenticated_roles=["admin", "root"],
        delay_until_epoch_ms=2**44,
        application_name="shop",
    )
    bare = caller.call("enqueue_workflow", **NOWHERE)

    status, other = app.get_workflow_status(full), app.get_workflow_status(bare)
    assert full == "full"
    assert status is not None
    assert (status.name, status.queue_name, status.class_name, status.config_name) == ("add", "nowhere", "C", "i")
    assert (status.app_version, status.workflow_timeout_ms, status.priority) == ("v7", 2500, 3)
    assert (status.status, status.delay_until_epoch_ms, status.workflow_deadline_epoch_ms) == ("DELAYED", 2**44, 2**45)
    assert (status.deduplication_id, status.queue_partition_key, status.application_name) == ("d", "k", "shop")
    assert (status.authenticated_user, status.authenticated_roles) == ("alice", ["admin", "root"])
    assert other is not None
    assert (other.status, other.app_version, other.priority, other.recovery_attempts) == ("ENQUEUED", None, 0, 0)
    assert (other.authenticated_roles, other.executor_id) == (None, None)
    assert other.input == {"args": (), "kwargs": {}}


def test_ids_and_deduplication_ids_belong_to_one_workflow(app: type[DBOS], caller: Caller) -> None:
    held = {**NOWHERE, "workflow_id": "first", "deduplication_id": "d"}
    caller.call("enqueue_workflow", **held)

    again = caller.call("enqueue_workflow", **NOWHERE, workflow_id="first")
    with pytest.raises(errors.UniqueViolation, match="DBOS queue duplicated") as duplicated:
        caller.call("enqueue_workflow", **NOWHERE, deduplication_id="d")
    with pytest.raises(errors.UniqueViolation, match="DBOS conflicting workflow"):
        caller.call("enqueue_workflow", workflow_name="other", queue_name="nowhere", workflow_id="first")

    assert again == "first"
    assert "in queue nowhere with deduplication ID d" in str(duplicated.value.diag.message_detail)
    assert len(app.list_workflows()) == 1


@pytest.mark.parametrize("schema", ["dbos"], indirect=True)
@pytest.mark.parametrize(
    "arguments",
    [
        {"workflow_name": "", "queue_name": "q"},
        {"workflow_name": "w", "queue_name": " "},
        {**NOWHERE, "workflow_id": ""},
        {**NOWHERE, "workflow_id": " \t"},
        {**NOWHERE, "named_args": Json([1])},
        {**NOWHERE, "priority": -1},
        {**NOWHERE, "timeout_ms": 0},
    ],
)
def test_what_cannot_be_is_refused(app: type[DBOS], caller: Caller, arguments: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidParameterValue):
        caller.call("enqueue_workflow", **arguments)

    assert app.list_workflows() == []


@pytest.mark.parametrize("schema", ["dbos"], indirect=True)
def test_functions_have_the_rights_of_their_caller(app: type[DBOS], caller: Caller) -> None:
    caller.connection.execute("DROP ROLE IF EXISTS dbos_test_nobody")
    caller.connection.execute("CREATE ROLE dbos_test_nobody")
    caller.connection.execute("GRANT USAGE ON SCHEMA dbos TO dbos_test_nobody")
    caller.connection.execute("SET ROLE dbos_test_nobody")

    with pytest.raises(errors.InsufficientPrivilege):
        caller.call("enqueue_workflow", **NOWHERE)

    caller.connection.execute("RESET ROLE")
    caller.connection.execute("DROP OWNED BY dbos_test_nobody")
    caller.connection.execute("DROP ROLE dbos_test_nobody")
