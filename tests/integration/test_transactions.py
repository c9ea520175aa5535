"""Transactions: their effect and their record commit together, in one database or in two."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import InvalidRequestError, OperationalError

from dbos import DBOS, DBOSConfig, SetWorkflowID
from dbos._error import DBOSAwaitedWorkflowCancelledError
from dbos._types import IsolationLevel
from dbos.testing._postgres_server import Cluster
from tests.integration.histories import PATIENCE_S, change, engine, eventually, execute_again, recorded, row, steps

on_postgres = pytest.mark.dbos_databases("postgres")

INSERT = sa.text("INSERT INTO notes (note) VALUES (:note)")


def open_application_database(config: DBOSConfig) -> sa.Engine:
    url = sa.make_url(config["application_database_url"])  # type: ignore[arg-type]  # the fixtures give one
    return sa.create_engine(url.set(drivername="postgresql+psycopg") if url.get_backend_name() != "sqlite" else url)


@pytest.fixture
def notes(config: DBOSConfig) -> Iterator[Callable[[], list[str]]]:
    """A table in the application database, once DBOS is launched; read past DBOS."""
    database = open_application_database(config)

    def read() -> list[str]:
        with database.connect() as connection:
            return list(connection.scalars(sa.text("SELECT note FROM notes ORDER BY note")))

    yield read
    database.dispose()


def create_notes(config: DBOSConfig) -> None:
    database = open_application_database(config)
    with database.begin() as connection:
        connection.execute(sa.text("CREATE TABLE notes (note TEXT)"))
    database.dispose()


@pytest.fixture
def launched(dbos: type[DBOS], config: DBOSConfig) -> type[DBOS]:
    dbos.launch()
    create_notes(config)
    return dbos


@pytest.fixture
def separate(request: pytest.FixtureRequest, config: DBOSConfig, tmp_path: Path) -> Iterator[type[DBOS]]:
    """DBOS launched with an application database of its own."""
    if str(config["system_database_url"]).startswith("sqlite"):
        config["application_database_url"] = f"sqlite:///{tmp_path / 'application.sqlite'}"
    else:
        config["application_database_url"] = request.getfixturevalue("postgres_url")
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)
    DBOS.launch()
    create_notes(config)
    yield DBOS
    DBOS.destroy(destroy_registry=True)


def add_note(note: str) -> str:
    DBOS.sql_session.execute(INSERT, {"note": note})
    return note.upper()


def run(function: Callable[..., Any], *args: Any, workflow_id: str = "wf") -> Any:
    with SetWorkflowID(workflow_id):
        return function(*args)


# -- in the system database --------------------------------------------------------------------------------------------


def test_a_transaction_commits_its_effect_and_one_record(
    launched: type[DBOS], config: DBOSConfig, notes: Callable[[], list[str]]
) -> None:
    transaction = launched.transaction(name="add")(add_note)

    @launched.workflow()
    def workflow() -> str:
        return transaction("hello")

    assert run(workflow) == "HELLO"

    assert notes() == ["hello"]
    [step] = steps("wf")
    assert (step.function_id, step.function_name, step.output, step.error) == (1, "add", '"HELLO"', None)
    assert step.started_at_epoch_ms is not None
    database = open_application_database(config)
    tables = {
        (schema, name)
        for schema in sa.inspect(database).get_schema_names()
        for name in sa.inspect(database).get_table_names(schema=schema)
    }
    database.dispose()
    assert not any(name == "transaction_outputs" for _, name in tables)


def test_a_transaction_that_raises_is_rolled_back_and_its_error_recorded(
    launched: type[DBOS], notes: Callable[[], list[str]]
) -> None:
    calls: list[int] = []

    @launched.transaction()
    def fail() -> None:
        calls.append(1)
        add_note("lost")
        raise LookupError("no")

    @launched.workflow()
    def workflow() -> None:
        with pytest.raises(LookupError, match="no"):
            fail()

    run(workflow)
    execute_again("wf").get_result()

    assert notes() == []
    assert len(calls) == 1
    [info] = launched.list_workflow_steps("wf")
    assert repr(info["error"]) == "LookupError('no')"


def test_a_result_that_cannot_be_stored_rolls_the_transaction_back(
    launched: type[DBOS], notes: Callable[[], list[str]]
) -> None:
    @launched.transaction()
    def transaction() -> Any:
        add_note("lost")
        return threading.Lock()

    @launched.workflow()
    def workflow() -> None:
        transaction()

    with pytest.raises(TypeError, match="lock"):
        run(workflow)

    assert notes() == []
    [info] = launched.list_workflow_steps("wf")
    assert isinstance(info["error"], TypeError)


def test_a_recorded_transaction_is_not_run_again(launched: type[DBOS], notes: Callable[[], list[str]]) -> None:
    transaction = launched.transaction()(add_note)

    @launched.workflow()
    def workflow() -> str:
        return transaction("once")

    run(workflow)

    assert execute_again("wf").get_result() == "ONCE"
    assert notes() == ["once"]


def test_called_outside_of_a_workflow_a_transaction_is_one(
    launched: type[DBOS], notes: Callable[[], list[str]]
) -> None:
    transaction = launched.transaction(name="add")(add_note)

    assert run(transaction, "first") == "FIRST"
    assert run(transaction, "second") == "FIRST"

    assert notes() == ["first"]
    assert row("wf").name == "<temp>.add"
    assert recorded("wf") == [(1, "add")]


def test_a_transaction_cannot_be_called_from_a_transaction_or_a_step(launched: type[DBOS]) -> None:
    inner = launched.transaction()(add_note)

    @launched.transaction()
    def outer() -> None:
        inner("x")

    @launched.step()
    def step() -> None:
        inner("x")

    @launched.workflow()
    def workflow() -> None:
        for function in (outer, step):
            with pytest.raises(AssertionError, match="Transactions must be called from within workflows"):
                function()

    run(workflow)


def test_a_step_called_in_a_transaction_is_a_plain_call(launched: type[DBOS]) -> None:
    @launched.step()
    def step() -> int | None:
        return launched.step_id

    @launched.transaction(name="transaction")
    def transaction() -> tuple[int | None, Any]:
        return step(), launched.run_step(None, lambda: launched.workflow_id)

    @launched.workflow()
    def workflow() -> Any:
        return transaction()

    assert run(workflow) == (1, "wf")
    assert recorded("wf") == [(1, "transaction")]


OPERATIONS: dict[str, tuple[str, Callable[[type[DBOS]], Any]]] = {
    "get_workflow_status": ("getStatus", lambda dbos: dbos.get_workflow_status("x")),
    "retrieve_workflow": ("getStatus", lambda dbos: dbos.retrieve_workflow("x")),
    "get_result": ("getResult", lambda dbos: dbos.get_result("x")),
    "handle": ("getResult", lambda dbos: dbos.retrieve_workflow("x", existing_workflow=False).get_result()),
    "list_workflows": ("listWorkflows", lambda dbos: dbos.list_workflows()),
    "list_workflow_steps": ("listWorkflowSteps", lambda dbos: dbos.list_workflow_steps("x")),
    "cancel_workflow": ("cancelWorkflow", lambda dbos: dbos.cancel_workflow("x")),
    "resume_workflow": ("resumeWorkflow", lambda dbos: dbos.resume_workflow("x")),
    "set_version": ("setLatestApplicationVersion", lambda dbos: dbos.set_latest_application_version("x")),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_of_dbos_are_refused_within_a_transaction(launched: type[DBOS], operation: str) -> None:
    name, call = OPERATIONS[operation]

    @launched.transaction()
    def transaction() -> None:
        call(launched)

    with pytest.raises(Exception, match=f"Invalid call to `DBOS.{name}` inside a transaction"):
        transaction()


def test_a_write_that_would_wait_for_the_transaction_it_is_made_in_is_refused(launched: type[DBOS]) -> None:
    @launched.transaction()
    def transaction() -> None:
        launched.start_workflow(other)

    @launched.transaction()
    def sleeping() -> None:
        launched.sleep(1)

    @launched.workflow()
    def other() -> None: ...

    for function in (transaction, sleeping):
        with pytest.raises(AssertionError):
            function()


@pytest.mark.parametrize("name", ["commit", "rollback"])
def test_a_transaction_that_ends_itself_is_refused_and_leaves_nothing(
    launched: type[DBOS], notes: Callable[[], list[str]], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    @launched.transaction()
    def transaction() -> None:
        add_note("lost")
        getattr(launched.sql_session, name)()
        add_note("lost too")

    @launched.workflow()
    def workflow() -> None:
        transaction()

    with pytest.raises(InvalidRequestError, match=rf"{name}\(\) may not be called"):
        run(workflow)

    assert notes() == []
    assert "may not call commit() or rollback()" in caplog.text
    [info] = launched.list_workflow_steps("wf")
    assert isinstance(info["error"], InvalidRequestError)


def test_a_transaction_whose_session_was_closed_leaves_nothing(
    launched: type[DBOS], notes: Callable[[], list[str]]
) -> None:
    @launched.transaction()
    def transaction() -> None:
        add_note("lost")
        launched.sql_session.close()

    with pytest.raises(InvalidRequestError):
        transaction()

    assert notes() == []


def test_a_savepoint_can_be_rolled_back(launched: type[DBOS], notes: Callable[[], list[str]]) -> None:
    @launched.transaction()
    def transaction() -> None:
        add_note("kept")
        savepoint = launched.sql_session.begin_nested()
        add_note("undone")
        savepoint.rollback()
        with launched.sql_session.begin_nested():
            add_note("kept too")

    transaction()

    assert notes() == ["kept", "kept too"]


def test_a_transaction_that_is_running_when_its_workflow_is_cancelled_is_recorded(
    launched: type[DBOS], config: DBOSConfig, notes: Callable[[], list[str]]
) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    @launched.transaction(name="slow")
    def slow() -> None:
        has_begun.set()
        assert may_end.wait(PATIENCE_S)
        add_note("written")

    @launched.workflow()
    def workflow() -> None:
        slow()
        slow()

    with SetWorkflowID("wf"):
        handle = launched.start_workflow(workflow)
    assert has_begun.wait(PATIENCE_S)
    # On SQLite the cancellation waits for the transaction, so it is asked for in a thread.
    canceller = threading.Thread(target=launched.cancel_workflow, args=("wf",))

    canceller.start()
    if not str(config["system_database_url"]).startswith("sqlite"):
        eventually(lambda: row("wf").status == "CANCELLED")
    may_end.set()

    canceller.join(PATIENCE_S)
    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        handle.get_result()
    eventually(lambda: not engine().runs.all())  # who awaits a cancelled workflow does not wait for what runs of it
    assert recorded("wf")[0] == (1, "slow")
    assert len(notes()) == len(recorded("wf"))


def test_a_connection_that_comes_back_after_the_pool_was_closed_is_closed(launched: type[DBOS]) -> None:
    database = engine().application_database
    connection = database.engine.connect()
    raw: Any = connection.connection.driver_connection

    database.close()
    connection.close()

    with pytest.raises((sqlite3.ProgrammingError, psycopg.OperationalError), match="closed"):
        raw.execute("SELECT 1")


def test_transactions_of_many_threads_lose_nothing(launched: type[DBOS], notes: Callable[[], list[str]]) -> None:
    transaction = launched.transaction()(add_note)

    @launched.workflow()
    def workflow(number: int) -> str:
        return transaction(f"{number:02}")

    handles = [launched.start_workflow(workflow, number) for number in range(30)]

    assert [handle.get_result() for handle in handles] == [f"{number:02}" for number in range(30)]
    assert notes() == [f"{number:02}" for number in range(30)]


async def test_transactions_called_in_threads_keep_the_context_of_their_async_workflow(
    launched: type[DBOS], notes: Callable[[], list[str]]
) -> None:
    @launched.transaction(name="add")
    def transaction(note: str) -> tuple[str | None, int | None]:
        add_note(note)
        return launched.workflow_id, launched.step_id

    @launched.workflow()
    async def workflow() -> Any:
        return await asyncio.gather(*(asyncio.to_thread(transaction, note) for note in "abcd"))

    with SetWorkflowID("wf"):
        results = await workflow()

    assert sorted(results) == [("wf", 1), ("wf", 2), ("wf", 3), ("wf", 4)]
    assert notes() == ["a", "b", "c", "d"]
    assert recorded("wf") == [(number, "add") for number in range(1, 5)]


async def test_a_transaction_that_blocks_a_loop_is_warned_about(
    launched: type[DBOS], caplog: pytest.LogCaptureFixture
) -> None:
    transaction = launched.transaction()(add_note)

    @launched.workflow()
    async def workflow() -> str:
        return transaction("x")

    await workflow()

    assert "asyncio.to_thread" in caplog.text


def test_there_is_no_session_outside_of_a_transaction(launched: type[DBOS]) -> None:
    with pytest.raises(AssertionError, match="only available within a transaction"):
        _ = launched.sql_session


@on_postgres
def test_a_transaction_needs_an_application_database(config: DBOSConfig) -> None:
    config["application_database_url"] = None
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)
    transaction = DBOS.transaction()(add_note)
    DBOS.launch()
    try:
        with pytest.raises(AssertionError, match="application_database_url"):
            transaction("x")
    finally:
        DBOS.destroy(destroy_registry=True)


# -- isolation and repetition ------------------------------------------------------------------------------------------


@on_postgres
@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED"])
def test_a_transaction_has_the_isolation_level_it_asks_for(launched: type[DBOS], level: IsolationLevel) -> None:
    @launched.transaction(level)
    def transaction() -> str:
        found: str = launched.sql_session.execute(sa.text("SHOW transaction_isolation")).scalar_one()
        return found

    assert transaction() == level.lower()


@on_postgres
def test_a_transaction_that_cannot_be_serialized_is_run_again(
    launched: type[DBOS], config: DBOSConfig, notes: Callable[[], list[str]]
) -> None:
    database = open_application_database(config)
    with database.begin() as connection:
        connection.execute(INSERT, {"note": "0"})
    attempts: list[int] = []

    @launched.transaction()
    def increment() -> int:
        attempts.append(1)
        value = int(launched.sql_session.execute(sa.text("SELECT note FROM notes")).scalar_one())
        if len(attempts) == 1:
            with database.begin() as connection:
                connection.execute(sa.text("UPDATE notes SET note = '10'"))
        launched.sql_session.execute(sa.text("UPDATE notes SET note = :note"), {"note": str(value + 1)})
        return value + 1

    assert increment() == 11

    assert len(attempts) == 2
    assert notes() == ["11"]
    database.dispose()


@on_postgres
def test_heartbeats_during_a_long_transaction_do_not_make_it_fail(launched: type[DBOS]) -> None:
    attempts: list[int] = []

    @launched.transaction("SERIALIZABLE")
    def transaction() -> None:
        attempts.append(1)
        add_note("x")
        if len(attempts) < 3:
            change_elsewhere("UPDATE dbos.executor_instances SET heartbeat = heartbeat + 1")

    transaction()

    assert len(attempts) == 1


def change_elsewhere(sql: str) -> None:
    """Commit a change in a thread of its own, which is in no transaction."""
    thread = threading.Thread(target=change, args=(sql,))
    thread.start()
    thread.join(PATIENCE_S)


@on_postgres
def test_a_transaction_whose_workflow_was_taken_over_is_rolled_back(
    launched: type[DBOS], notes: Callable[[], list[str]]
) -> None:
    taken_over: list[int] = []

    @launched.transaction()
    def transaction() -> None:
        add_note("lost")
        taken_over.append(1)
        change_elsewhere("UPDATE dbos.workflow_status SET run_token = 'another', status = 'CANCELLED'")

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        run(transaction)

    assert notes() == []
    assert recorded("wf") == []


POOLS: dict[str, dict[str, Any]] = {
    "one connection": {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01},
    "one connection for all": {"poolclass": sa.pool.QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 30},
    "no pool": {"poolclass": sa.pool.NullPool},
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("databases", ["one", "two"])
def test_transactions_are_content_with_any_pool(
    request: pytest.FixtureRequest,
    config: DBOSConfig,
    tmp_path: Path,
    pool: str,
    databases: str,
) -> None:
    """A transaction needs one connection at a time; who finds none waits, and nothing fails for that."""
    config["db_engine_kwargs"] = POOLS[pool]
    if databases == "two":
        is_sqlite = str(config["system_database_url"]).startswith("sqlite")
        file = f"sqlite:///{tmp_path / 'application.sqlite'}"
        config["application_database_url"] = file if is_sqlite else request.getfixturevalue("postgres_url")
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)
    transaction = DBOS.transaction()(add_note)

    @DBOS.step()
    def step() -> None: ...

    @DBOS.workflow()
    def workflow(note: str) -> str:
        step()
        return transaction(note)

    DBOS.launch()
    create_notes(config)
    try:
        handles = [DBOS.start_workflow(workflow, str(number)) for number in range(8)]

        assert [handle.get_result() for handle in handles] == [str(number) for number in range(8)]
        database = open_application_database(config)
        with database.connect() as connection:
            found = connection.scalars(sa.text("SELECT note FROM notes ORDER BY note"))
            assert list(found) == [str(number) for number in range(8)]
        database.dispose()
    finally:
        DBOS.destroy(destroy_registry=True)


@on_postgres
def test_a_transaction_that_exceeds_the_servers_time_limit_fails_once(
    launched: type[DBOS], notes: Callable[[], list[str]]
) -> None:
    attempts: list[int] = []

    @launched.transaction(name="slow")
    def slow() -> None:
        attempts.append(1)
        add_note("lost")
        launched.sql_session.execute(sa.text("SET LOCAL statement_timeout = '20ms'"))
        launched.sql_session.execute(sa.text("SELECT pg_sleep(60)"))

    @launched.workflow()
    def workflow() -> None:
        slow()

    with pytest.raises(OperationalError, match="statement timeout"):
        run(workflow)

    assert (len(attempts), notes(), recorded("wf")) == (1, [], [(1, "slow")])
    with pytest.raises(Exception, match="statement timeout"):
        execute_again("wf").get_result()
    assert len(attempts) == 1


@pytest.mark.parametrize("databases", ["launched", "separate"])
def test_what_a_transaction_reads_does_not_change_before_it_writes(
    request: pytest.FixtureRequest, config: DBOSConfig, databases: str
) -> None:
    """Somebody else's program counts in the same file, or the same table, at the same time."""
    dbos: type[DBOS] = request.getfixturevalue(databases)
    database = open_application_database(config)
    with database.begin() as connection:
        connection.execute(INSERT, {"note": "0"})
    stop = threading.Event()
    theirs: list[int] = []
    attempts: list[int] = []

    def count_elsewhere() -> None:
        engine = open_application_database(config)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not stop.is_set() or not theirs:
                connection.execute(sa.text("UPDATE notes SET note = CAST(CAST(note AS INTEGER) + 1 AS TEXT)"))
                theirs.append(1)
                stop.wait(0.002)
        engine.dispose()

    @dbos.transaction()
    def increment() -> None:
        attempts.append(1)
        value = int(dbos.sql_session.execute(sa.text("SELECT note FROM notes")).scalar_one())
        dbos.sql_session.execute(sa.text("UPDATE notes SET note = :note"), {"note": str(value + 1)})

    counting = threading.Thread(target=count_elsewhere)
    counting.start()
    for _ in range(30):
        increment()
    stop.set()
    counting.join(PATIENCE_S)

    with database.connect() as connection:
        assert connection.scalar(sa.text("SELECT note FROM notes")) == str(30 + len(theirs))
    if database.dialect.name == "sqlite":
        assert len(attempts) == 30  # the file is theirs from the start, so none is in vain
    database.dispose()


def test_a_transaction_whose_record_the_database_refuses_leaves_nothing(
    launched: type[DBOS], config: DBOSConfig, notes: Callable[[], list[str]]
) -> None:
    on_sqlite = str(config["system_database_url"]).startswith("sqlite")
    change(
        "CREATE TRIGGER refuse BEFORE INSERT ON operation_outputs WHEN NEW.output = '\"unstorable\"' "
        "BEGIN SELECT RAISE(ABORT, 'too large'); END"
        if on_sqlite
        else "ALTER TABLE dbos.operation_outputs ADD CHECK (output <> '\"unstorable\"')"
    )
    calls: list[int] = []

    @launched.transaction(name="transaction")
    def transaction() -> str:
        calls.append(1)
        add_note("lost")
        return "unstorable"

    @launched.workflow()
    def workflow() -> str:
        try:
            return transaction()
        except Exception as error:
            return type(error).__name__

    first = run(workflow)

    assert first == "IntegrityError"
    assert (notes(), recorded("wf"), len(calls)) == ([], [(1, "transaction")], 1)
    execute_again("wf").get_result()
    assert (notes(), len(calls)) == ([], 1)


def test_an_error_of_the_database_that_is_not_temporary_is_raised(launched: type[DBOS]) -> None:
    @launched.transaction()
    def transaction() -> None:
        launched.sql_session.execute(sa.text("SELECT * FROM missing"))

    with pytest.raises((OperationalError, sa.exc.ProgrammingError), match="missing"):
        transaction()


@pytest.mark.postgres
@pytest.mark.parametrize("use", ["first", "later"])
def test_an_application_database_that_is_away_is_waited_for(
    sqlite_url: str, private_postgres: Cluster, caplog: pytest.LogCaptureFixture, use: str
) -> None:
    """Its absence is no failure of the transaction, not even of the first one, which finds no table of records yet."""
    DBOS.destroy(destroy_registry=True)
    DBOS(
        config={
            "name": "test-app",
            "system_database_url": sqlite_url,
            "application_database_url": private_postgres.url("application"),
        }
    )
    has_begun = threading.Event()

    @DBOS.step()
    def begin() -> None:
        has_begun.set()

    @DBOS.transaction()
    def transaction() -> int:
        found: int = DBOS.sql_session.execute(sa.text("SELECT 42")).scalar_one()
        return found

    @DBOS.workflow()
    def workflow() -> int:
        begin()
        return transaction()

    DBOS.launch()
    try:
        if use == "later":
            assert transaction() == 42
        private_postgres.stop("immediate")
        with SetWorkflowID("wf"):
            handle = DBOS.start_workflow(workflow)
        assert has_begun.wait(PATIENCE_S)
        with caplog.at_level(logging.DEBUG, logger="dbos.transaction"):
            eventually(lambda: "will be repeated" in caplog.text or row("wf").status != "PENDING")

        private_postgres.start()

        assert handle.get_result() == 42
    finally:
        DBOS.destroy(destroy_registry=True)


# -- in a database of its own ------------------------------------------------------------------------------------------


def records(config: DBOSConfig) -> list[tuple[str, int, str | None]]:
    database = open_application_database(config)
    prefix = "" if database.dialect.name == "sqlite" else "dbos."
    with database.connect() as connection:
        rows = connection.execute(
            sa.text(f"SELECT workflow_uuid, function_id, output FROM {prefix}transaction_outputs ORDER BY 1, 2")
        ).all()
    database.dispose()
    return [tuple(each) for each in rows]


def test_in_another_database_the_record_is_kept_beside_the_effect_and_in_the_history(
    separate: type[DBOS], config: DBOSConfig, notes: Callable[[], list[str]]
) -> None:
    transaction = separate.transaction(name="add")(add_note)

    @separate.workflow()
    def workflow() -> str:
        return transaction("hello")

    assert run(workflow) == "HELLO"

    assert notes() == ["hello"]
    assert records(config) == [("wf", 1, '"HELLO"')]
    assert [(each.function_id, each.output) for each in steps("wf")] == [(1, '"HELLO"')]


def test_a_transaction_that_committed_before_a_crash_is_not_run_again(
    separate: type[DBOS], config: DBOSConfig, notes: Callable[[], list[str]]
) -> None:
    transaction = separate.transaction()(add_note)

    @separate.workflow()
    def workflow() -> list[str]:
        return [transaction("a"), transaction("b")]

    run(workflow)

    assert execute_again("wf", to_step=1).get_result() == ["A", "B"]
    assert notes() == ["a", "b"]
    assert [(each.function_id, each.output) for each in steps("wf")] == [(1, '"A"'), (2, '"B"')]


def test_a_workflow_that_takes_a_deleted_ones_id_does_not_meet_its_transactions(
    separate: type[DBOS], config: DBOSConfig, notes: Callable[[], list[str]]
) -> None:
    transaction = separate.transaction()(add_note)

    @separate.workflow()
    def workflow(note: str) -> str:
        return transaction(note)

    run(workflow, "old")
    change("DELETE FROM dbos.operation_outputs")
    change("DELETE FROM dbos.workflow_status")

    assert run(workflow, "new") == "NEW"

    assert notes() == ["new", "old"]
    assert records(config) == [("wf", 1, '"NEW"')]


def test_in_another_database_too_an_error_rolls_back_and_is_recorded(
    separate: type[DBOS], config: DBOSConfig, notes: Callable[[], list[str]]
) -> None:
    @separate.transaction()
    def fail() -> None:
        add_note("lost")
        raise LookupError("no")

    @separate.workflow()
    def workflow() -> None:
        with pytest.raises(LookupError, match="no"):
            fail()

    run(workflow)
    execute_again("wf").get_result()

    assert notes() == []
    assert records(config) == []
    assert recorded("wf") == [(1, fail.__qualname__)]


def test_in_another_database_too_threads_lose_nothing(separate: type[DBOS], notes: Callable[[], list[str]]) -> None:
    transaction = separate.transaction()(add_note)

    @separate.workflow()
    def workflow(number: int) -> str:
        return transaction(f"{number:02}")

    handles = [separate.start_workflow(workflow, number) for number in range(20)]

    assert [handle.get_result() for handle in handles] == [f"{number:02}" for number in range(20)]
    assert notes() == [f"{number:02}" for number in range(20)]


def test_transactions_are_logged_when_they_run_and_when_they_are_replayed(
    launched: type[DBOS], caplog: pytest.LogCaptureFixture
) -> None:
    transaction = launched.transaction(name="add")(add_note)

    with caplog.at_level(logging.DEBUG, logger="dbos"):
        run(transaction, "x")
        execute_again("wf").get_result()

    assert "Running transaction, id: 1, name: add" in caplog.text
    assert "Replaying transaction, id: 1, name: add" in caplog.text


def test_an_error_of_some_other_sqlite_file_is_the_transactions_own(launched: type[DBOS], tmp_path: Path) -> None:
    """It looks like one of ours that is worth another attempt, and would be repeated for ever."""
    attempts: list[int] = []

    def open_another() -> None:
        attempts.append(1)
        sqlite3.connect(tmp_path / "missing" / "another.sqlite")

    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        launched.transaction()(open_another)()

    assert attempts == [1]
