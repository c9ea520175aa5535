"""Enqueueing and sending in the caller's own transaction: both or neither."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSException, EnqueueOptions, Queue, SendMessage
from dbos._error import DBOSConflictingWorkflowError, DBOSNonExistentWorkflowError, DBOSQueueDeduplicatedError
from dbos._services import dispatcher, notifier

PATIENCE_S = 30.0
ADD: EnqueueOptions = {"workflow_name": "add", "queue_name": "work"}
NOWHERE: EnqueueOptions = {"workflow_name": "add", "queue_name": "nowhere"}

on_postgres = pytest.mark.dbos_databases("postgres")
Enqueue = Callable[..., Any]


@pytest.fixture
def engine(config: DBOSConfig) -> Iterator[sa.Engine]:
    """The user's own, with a table of theirs."""
    engine = sa.create_engine(str(config["system_database_url"]).replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE orders (id TEXT)"))
    yield engine
    engine.dispose()


@pytest.fixture
def app(dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch) -> type[DBOS]:
    """A launched application that looks for work when it is told of some."""
    monkeypatch.setattr(dispatcher, "SAFETY_NET_S", 3600.0)
    monkeypatch.setattr(notifier, "INTERVAL_S", 3600.0)
    Queue("work", polling_interval_sec=3600)

    @dbos.workflow(name="add")
    def add(a: int, b: int = 1) -> int:
        return a + b

    dbos.launch()
    return dbos


@pytest.fixture
def client(app: type[DBOS], config: DBOSConfig) -> Iterator[DBOSClient]:
    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        yield client


def orders(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(sa.text("SELECT id FROM orders")))


def insert_order(given: sa.Connection | Session) -> None:
    given.execute(sa.text("INSERT INTO orders (id) VALUES ('o')"))


def test_what_is_committed_is_run_at_once_and_the_rest_never_was(client: DBOSClient, engine: sa.Engine) -> None:
    with Session(engine) as session, session.begin():
        insert_order(session)
        committed = client.enqueue_in_transaction(session, ADD, 1, b=2)
        by_dbos = DBOS.enqueue_in_transaction(session, {**ADD, "workflow_id": "chosen"}, 2)
    with engine.connect() as connection:
        insert_order(connection)
        client.enqueue_in_transaction(connection, {**ADD, "workflow_id": "undone"}, 3)
        connection.rollback()
        kept = client.enqueue_in_transaction(connection, ADD, 4)
        connection.commit()

    assert (committed.get_result(), by_dbos.get_result(), kept.get_result()) == (3, 3, 5)
    assert by_dbos.workflow_id == "chosen"
    assert client.get_workflow_status("undone") is None
    assert orders(engine) == ["o"]


def test_a_savepoint_that_is_rolled_back_takes_its_workflow_along(client: DBOSClient, engine: sa.Engine) -> None:
    registry = scoped_session(sessionmaker(engine))

    with registry.begin():
        kept = client.enqueue_in_transaction(registry, ADD, 1)  # type: ignore[arg-type]  # which stands for a session
        with registry.begin_nested() as savepoint:
            client.enqueue_in_transaction(registry, {**ADD, "workflow_id": "undone"}, 2)  # type: ignore[arg-type]
            savepoint.rollback()
    registry.remove()

    assert kept.get_result() == 2
    assert client.get_workflow_status("undone") is None


def test_nobody_sees_a_workflow_before_the_commit(client: DBOSClient, engine: sa.Engine) -> None:
    with Session(engine) as session:
        handle = client.enqueue_in_transaction(session, {**ADD, "delay_seconds": 0.0}, 1)
        before = client.get_workflow_status(handle.workflow_id)
        session.commit()

    assert before is None
    assert handle.get_result() == 2


@pytest.mark.parametrize("enqueue", [DBOSClient.enqueue_in_transaction, None], ids=["client", "dbos"])
def test_what_cannot_be_enqueued_leaves_the_transaction_usable(
    client: DBOSClient, engine: sa.Engine, enqueue: Enqueue | None
) -> None:
    def attempt(options: Any, *args: Any) -> Any:
        return enqueue(client, session, options, *args) if enqueue else DBOS.enqueue_in_transaction(session, options)

    client.enqueue({**NOWHERE, "workflow_id": "taken", "deduplication_id": "d"})
    with Session(engine) as session, session.begin():
        insert_order(session)
        with pytest.raises(DBOSQueueDeduplicatedError) as held:
            attempt({**NOWHERE, "deduplication_id": "d"})
        with pytest.raises(DBOSConflictingWorkflowError):
            attempt({**NOWHERE, "workflow_name": "other", "workflow_id": "taken"})
        with pytest.raises(DBOSException, match="'return-existing' cannot be used"):
            attempt({**NOWHERE, "deduplication_id": "d", "duplication_policy": "return-existing"})
        with pytest.raises(DBOSException, match="not blank"):
            attempt({**NOWHERE, "workflow_id": " "})
        with pytest.raises(KeyError, match="queue_name"):
            attempt({"workflow_name": "add"})
        same = attempt({**NOWHERE, "workflow_id": "taken"})

    assert held.value.deduplication_id == "d"
    assert same.workflow_id == "taken"
    assert len(client.list_workflows()) == 1
    assert orders(engine) == ["o"]


def test_messages_are_received_once_they_are_committed(client: DBOSClient, engine: sa.Engine) -> None:
    @DBOS.workflow()
    def receive() -> list[Any]:
        return [DBOS.recv(topic, timeout_seconds=PATIENCE_S) for topic in (None, "a", "a", "a")]

    handle = DBOS.start_workflow(receive)
    destination = handle.workflow_id
    with Session(engine) as session, session.begin():
        insert_order(session)
        with pytest.raises(DBOSNonExistentWorkflowError):
            client.send_in_transaction(session, "missing", "lost")
        client.send_in_transaction(session, destination, "plain", None, "key")
        client.send_in_transaction(session, destination, "again", None, "key")
    with engine.connect() as connection:
        client.send_in_transaction(connection, destination, "undone", "a")
        connection.rollback()
        client.send_bulk_in_transaction(
            connection, [SendMessage(destination, 1, "a"), SendMessage(destination, 2, "a")]
        )
        DBOS.send_in_transaction(connection, destination, {"x": 3}, "a")
        connection.commit()

    assert handle.get_result() == ["plain", 1, 2, {"x": 3}]
    assert orders(engine) == ["o"]


def test_only_a_transaction_on_the_system_database_is_taken(
    client: DBOSClient, config: DBOSConfig, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    elsewhere = sa.create_engine(f"sqlite:///{tmp_path / 'other.sqlite'}")
    same_server = elsewhere
    if config["system_database_url"] and config["system_database_url"].startswith("postgresql"):
        url: str = request.getfixturevalue("postgres_url")
        same_server = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    with elsewhere.connect() as connection, pytest.raises(DBOSException, match="another database"):
        client.enqueue_in_transaction(connection, ADD, 1)
    with same_server.connect() as connection:
        with pytest.raises(DBOSException, match="another database"):
            client.enqueue_in_transaction(connection, ADD, 1)
        assert connection.scalar(sa.text("SELECT 1")) == 1
    for wrong in (elsewhere, AsyncSession(), "session"):
        with pytest.raises(TypeError, match="Connection or Session"):
            client.enqueue_in_transaction(wrong, ADD, 1)  # type: ignore[arg-type]  # that is what is tried
    elsewhere.dispose()
    same_server.dispose()


@on_postgres
def test_an_asynchronous_session_passes_its_own_on(app: type[DBOS], config: DBOSConfig) -> None:
    url = str(config["system_database_url"])

    async def enqueue() -> str:
        engine = create_async_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        async with AsyncSession(engine) as session, session.begin():
            handle = await session.run_sync(lambda own: DBOS.enqueue_in_transaction(own, ADD, 1))
        await engine.dispose()
        return handle.workflow_id

    assert DBOS.get_result(asyncio.run(enqueue())) == 2


def test_a_transaction_function_enqueues_with_its_own_effect_and_record(app: type[DBOS], engine: sa.Engine) -> None:
    attempts = []

    @app.transaction()
    def order(is_failing: bool) -> str:
        attempts.append(is_failing)
        insert_order(app.sql_session)
        handle = app.enqueue_in_transaction(app.sql_session, ADD, 1)
        if is_failing:
            raise ValueError("undo")
        return handle.workflow_id

    @app.workflow()
    def shop() -> str:
        with pytest.raises(ValueError, match="undo"):
            order(True)
        return order(False)

    @app.workflow()
    def careless() -> None:
        with Session(engine) as session:
            app.enqueue_in_transaction(session, ADD, 1)

    enqueued = shop()
    with pytest.raises(DBOSException, match="cannot be called from within a workflow"):
        careless()

    assert app.get_result(enqueued) == 2
    assert attempts == [True, False]
    assert orders(engine) == ["o"]
    assert [status.workflow_id for status in app.list_workflows(queue_name="work")] == [enqueued]
    status = app.get_workflow_status(enqueued)
    assert status is not None
    assert status.parent_workflow_id is None


def test_a_thread_does_not_wait_for_its_own_transaction(
    client: DBOSClient, engine: sa.Engine, config: DBOSConfig
) -> None:
    """On SQLite nobody else can write meanwhile, so it would wait for ever; on PostgreSQL others can."""
    is_alone = str(config["system_database_url"]).startswith("sqlite")
    finished = []

    @DBOS.transaction()
    def transaction() -> None:
        attempt()

    @DBOS.workflow()
    def workflow() -> None:
        transaction()

    def attempt() -> None:
        if is_alone:
            with pytest.raises(DBOSException, match="wait for ever"):
                client.enqueue(NOWHERE)
        else:
            client.enqueue(NOWHERE)

    with Session(engine) as session:
        client.enqueue_in_transaction(session, NOWHERE)
        attempt()
        other = threading.Thread(target=lambda: finished.append(client.enqueue(NOWHERE)))
        other.start()  # another thread may wait: this one goes on
        assert len(client.list_workflows()) >= 0  # reading waits for nobody
        session.commit()
        other.join(PATIENCE_S)
        client.enqueue(NOWHERE)
    workflow()

    assert len(finished) == 1
    assert len(client.list_workflows(queue_name="nowhere")) == (3 if is_alone else 5)


def test_where_statements_commit_by_themselves_so_does_what_is_enqueued(client: DBOSClient, engine: sa.Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        first = client.enqueue_in_transaction(connection, ADD, 1)
        second = client.enqueue(ADD, 2)  # which has nothing to wait for

        assert (first.get_result(), second.get_result()) == (2, 3)


@on_postgres
def test_a_prepared_transaction_and_another_schema_are_served(dbos: type[DBOS], config: DBOSConfig) -> None:
    schema = "od:d %s'\"s"
    dbos.destroy()
    DBOS(config={**config, "dbos_system_schema": schema})
    dbos.launch()
    engine = sa.create_engine(str(config["system_database_url"]).replace("postgresql://", "postgresql+psycopg://"))

    with DBOSClient(system_database_url=config["system_database_url"], dbos_system_schema=schema) as client:
        with engine.begin() as connection:
            plain = client.enqueue_in_transaction(connection, NOWHERE, 1)
        with engine.connect() as connection, connection.begin_twophase() as transaction:
            second = client.enqueue_in_transaction(connection, NOWHERE, 2)
            transaction.rollback()  # the server keeps no prepared transactions, and is asked for none

        assert plain.get_status().status == "ENQUEUED"
        assert client.get_workflow_status(second.workflow_id) is None
    engine.dispose()
