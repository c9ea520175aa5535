"""Datasources: transactions against several databases, whose effect and record are both there or neither."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import create_async_engine

from dbos import (
    DBOS,
    AsyncSQLAlchemyDatasource,
    DBOSConfig,
    DBOSContextSetAuth,
    DBOSException,
    SetWorkflowID,
    SQLAlchemyDatasource,
)
from dbos._error import DBOSInitializationError, DBOSNotAuthorizedError, DBOSUnexpectedStepError
from tests.integration.histories import change, engine, eventually, execute_again, recorded, steps

INSERT = sa.text("INSERT INTO notes (note) VALUES (:note)")


class Place:
    """A user's database with a table of notes, each of them once; looked at past the library."""

    def __init__(self, url: str, *, schema: str = "dbos") -> None:
        self.url = url
        is_sqlite = url.startswith("sqlite")
        parsed = sa.make_url(url)
        self.engine = sa.create_engine(parsed if is_sqlite else parsed.set(drivername="postgresql+psycopg"))
        self._prefix = "" if is_sqlite else f'"{schema}".'
        with self.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE notes (note TEXT PRIMARY KEY)"))

    def notes(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.text("SELECT note FROM notes ORDER BY note")))

    def records(self) -> list[tuple[Any, ...]]:
        columns = "workflow_uuid, function_id, function_name, output"
        with self.engine.connect() as connection:
            found = connection.execute(
                sa.text(f"SELECT {columns} FROM {self._prefix}transaction_outputs ORDER BY 1, 2")
            )
            return [tuple(each) for each in found]

    def has_records(self) -> bool:
        schemas = [None] if self.url.startswith("sqlite") else sa.inspect(self.engine).get_schema_names()
        return any("transaction_outputs" in sa.inspect(self.engine).get_table_names(schema) for schema in schemas)

    def execute(self, sql: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(sql))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A database of the user, once for each engine; the system database is always SQLite's."""
    file = f"sqlite:///{tmp_path / 'orders.sqlite'}"
    place = Place(file if request.param == "sqlite" else request.getfixturevalue("postgres_url"))
    yield place
    place.engine.dispose()


@pytest.fixture
def system(sqlite_url: str) -> Iterator[DBOSConfig]:
    """DBOS, constructed on a file and not launched."""
    config: DBOSConfig = {"name": "test-app", "system_database_url": sqlite_url, "log_level": "WARNING"}
    config["application_version"] = "test"
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)
    yield config
    DBOS.destroy(destroy_registry=True)


class Orders:
    """A datasource of either kind with one transaction, ``add``, and a workflow of that kind that calls it."""

    def __init__(self, kind: str, url: Any, **options: Any) -> None:
        self.kind = kind
        self.inside: Callable[[], None] = lambda: None  # called after each note
        self.calls: list[str] = []
        self.source: Any
        self.add: Any
        self.workflow: Any
        (self._declare_async if kind == "async" else self._declare)(url, options)

    def _declare(self, url: Any, options: dict[str, Any]) -> None:
        orders = self.source = SQLAlchemyDatasource("orders", url, **options)

        @orders.transaction(name="add")
        def add(note: str) -> str:
            self.calls.append(note)
            orders.session.execute(INSERT, {"note": note})
            self.inside()
            return note.upper()

        @DBOS.workflow(name="workflow")
        def workflow(*notes: str) -> list[str]:
            return [add(note) for note in notes]

        self.add, self.workflow = add, workflow

    def _declare_async(self, url: Any, options: dict[str, Any]) -> None:
        orders = self.source = AsyncSQLAlchemyDatasource("orders", url, **options)

        @orders.transaction(name="add")
        async def add(note: str) -> str:
            self.calls.append(note)
            await orders.session.execute(INSERT, {"note": note})
            self.inside()
            return note.upper()

        @DBOS.workflow(name="workflow")
        async def workflow(*notes: str) -> list[str]:
            return [await add(note) for note in notes]

        self.add, self.workflow = add, workflow

    def run(self, *notes: str, workflow_id: str = "wf") -> Any:
        with SetWorkflowID(workflow_id):
            return DBOS.start_workflow(self.workflow, *notes).get_result()

    def call(self, note: str) -> Any:
        return asyncio.run(self.add(note)) if self.kind == "async" else self.add(note)


@pytest.fixture(params=["sync", "async"])
def orders(request: pytest.FixtureRequest, system: DBOSConfig, place: Place) -> Iterator[Orders]:
    orders = Orders(request.param, place.url)
    DBOS.launch()
    yield orders
    orders.source.close()


def test_the_record_is_kept_beside_the_effect_and_in_the_history(orders: Orders, place: Place) -> None:
    assert orders.run("a", "b") == ["A", "B"]

    assert place.notes() == ["a", "b"]
    assert place.records() == [("wf", 1, "add", '"A"'), ("wf", 2, "add", '"B"')]
    assert [step[:4] for step in steps("wf")] == [("wf", 1, "add", '"A"'), ("wf", 2, "add", '"B"')]


def test_what_was_committed_before_a_crash_is_not_done_again(orders: Orders, place: Place) -> None:
    orders.run("a", "b")

    assert execute_again("wf", to_step=1).get_result() == ["A", "B"]
    assert execute_again("wf").get_result() == ["A", "B"]

    assert place.notes() == orders.calls == ["a", "b"]
    assert recorded("wf") == [(1, "add"), (2, "add")]


def test_an_error_rolls_back_and_is_recorded(orders: Orders, place: Place) -> None:
    def fail() -> None:
        raise LookupError("no")

    orders.inside = fail
    with pytest.raises(LookupError, match="no"):
        orders.run("lost")
    with pytest.raises(LookupError, match="no"):
        execute_again("wf").get_result()

    assert (place.notes(), place.records(), orders.calls) == ([], [], ["lost"])
    assert recorded("wf") == [(1, "add")]


def test_a_result_that_cannot_be_stored_rolls_back(system: DBOSConfig, place: Place) -> None:
    source = SQLAlchemyDatasource("orders", place.url)

    def unstorable() -> Any:
        source.session.execute(INSERT, {"note": "lost"})
        return threading.Lock()

    @DBOS.workflow()
    def workflow() -> Any:
        return source.run_transaction(None, unstorable)

    DBOS.launch()
    with pytest.raises(TypeError, match="lock"):
        workflow()

    assert place.notes() == []


def test_outside_of_workflows_it_is_a_transaction_and_no_more(orders: Orders, place: Place) -> None:
    def fail() -> None:
        raise LookupError("no")

    assert orders.call("a") == "A"
    orders.inside = fail
    with pytest.raises(LookupError, match="no"):
        orders.call("lost")
    with pytest.raises(AssertionError, match="only available in its transactions"):
        _ = orders.source.session

    assert (place.notes(), place.records()) == (["a"], [])
    assert DBOS.list_workflows() == []


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_it_needs_no_dbos_outside_of_workflows(place: Place, kind: str) -> None:
    DBOS.destroy(destroy_registry=True)
    orders = Orders(kind, place.url)

    assert orders.call("a") == "A"

    orders.source.close()
    assert place.notes() == ["a"]
    assert not place.has_records()


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("level", ["READ COMMITTED", "SERIALIZABLE"])
def test_a_rival_that_commits_first_counts_and_what_this_one_wrote_is_undone(
    system: DBOSConfig, postgres_url: str, kind: str, level: str
) -> None:
    """Nothing in the user's database fences an execution that was declared dead, and wakes up to commit."""
    place = Place(postgres_url)
    orders = Orders(kind, postgres_url, engine_kwargs={"isolation_level": level})
    DBOS.launch()

    def commit_as_rival() -> None:
        running = engine().runs.get("wf")
        assert running is not None
        place.execute("INSERT INTO notes (note) VALUES ('by the rival')")
        place.execute(
            "INSERT INTO dbos.transaction_outputs "
            "(workflow_uuid, function_id, function_name, output, serialization, start_token) "
            f"VALUES ('wf', 1, 'add', '\"RIVAL\"', 'json', '{running.start_token}')"
        )

    orders.inside = commit_as_rival

    assert orders.run("a") == ["RIVAL"]

    assert orders.calls == ["a"]
    assert place.notes() == ["by the rival"]
    assert [(step.output, step.error) for step in steps("wf")] == [('"RIVAL"', None)]
    place.engine.dispose()


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_stumbling_over_what_a_rival_has_committed_is_no_failure(
    system: DBOSConfig, postgres_url: str, kind: str
) -> None:
    """Its rows violate a constraint of the user's table; what it recorded is the result, and not that error."""
    place = Place(postgres_url)
    orders = Orders(kind, postgres_url)
    DBOS.launch()
    orders.run("a")
    place.execute("DELETE FROM notes")
    place.execute("CREATE TABLE kept AS SELECT * FROM dbos.transaction_outputs")
    place.execute("DELETE FROM dbos.transaction_outputs")

    # The rival's transaction is under way when ours looks for its record, and commits while ours waits for its row.
    with place.engine.connect() as rival:
        rival.execute(INSERT, {"note": "a"})
        rival.execute(sa.text("INSERT INTO dbos.transaction_outputs SELECT * FROM kept"))
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        handle = execute_again("wf", to_step=1)

        def is_waiting() -> object:
            with place.engine.connect() as connection:
                return connection.scalar(sa.text(waiting))

        eventually(is_waiting)
        rival.commit()

        assert handle.get_result() == ["A"]
    assert orders.calls == ["a", "a"]
    assert place.notes() == ["a"]
    assert [(step.output, step.error) for step in steps("wf")] == [('"A"', None)]
    place.engine.dispose()


def test_a_constraint_that_is_violated_is_the_functions_own_error(orders: Orders, place: Place) -> None:
    place.execute("INSERT INTO notes (note) VALUES ('a')")

    with pytest.raises(IntegrityError):
        orders.run("a")

    assert place.records() == []
    assert steps("wf")[0].error is not None


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("instant", ["before", "after"])
def test_a_connection_that_is_lost_at_the_commit_leaves_effect_and_record_or_neither(
    system: DBOSConfig, postgres_url: str, kind: str, instant: str
) -> None:
    place = Place(postgres_url)
    orders = Orders(kind, postgres_url)
    DBOS.launch()
    orders.run("warm", workflow_id="first")
    database: Any = engine()._databases[orders.source]
    sync_engine = database.engine if kind == "sync" else next(iter(database._pools.values())).engine.sync_engine
    commit = sync_engine.dialect.do_commit
    lost: list[str] = []

    def lose(connection: Any) -> None:
        if instant == "after":
            commit(connection)
        if not lost:
            lost.append(instant)
            place.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE pid = {connection.driver_connection.info.backend_pid}"
            )
            connection.cursor().execute("SELECT 1")
        if instant == "before":
            commit(connection)

    sync_engine.dialect.do_commit = lose
    try:
        assert orders.run("a") == ["A"]
    finally:
        sync_engine.dialect.do_commit = commit

    assert lost == [instant]
    assert orders.calls == (["warm", "a"] if instant == "after" else ["warm", "a", "a"])
    assert place.notes() == ["a", "warm"]
    assert ("wf", 1, "add", '"A"') in place.records()
    place.engine.dispose()


def test_a_workflow_that_takes_a_deleted_ones_id_does_not_meet_its_transactions(orders: Orders, place: Place) -> None:
    orders.run("old")
    change("DELETE FROM dbos.operation_outputs")
    change("DELETE FROM dbos.workflow_status")

    assert orders.run("new") == ["NEW"]

    assert place.notes() == ["new", "old"]
    assert place.records() == [("wf", 1, "add", '"NEW"')]


def test_a_record_of_another_function_is_not_taken_for_this_ones(orders: Orders, place: Place) -> None:
    orders.run("a")
    table = "transaction_outputs" if place.url.startswith("sqlite") else "dbos.transaction_outputs"
    place.execute(f"UPDATE {table} SET function_name = 'remove'")

    with pytest.raises(DBOSUnexpectedStepError) as raised:
        execute_again("wf", to_step=1).get_result()

    assert raised.value.inputs == ("wf", 1, "add", "remove")
    assert recorded("wf") == []


def test_many_at_once_lose_nothing(orders: Orders, place: Place) -> None:
    handles = [DBOS.start_workflow(orders.workflow, f"{number:02}") for number in range(20)]

    assert [handle.get_result() for handle in handles] == [[f"{number:02}"] for number in range(20)]
    assert place.notes() == [f"{number:02}" for number in range(20)]


async def test_coroutines_side_by_side_keep_their_sessions_apart(system: DBOSConfig, place: Place) -> None:
    source = AsyncSQLAlchemyDatasource("orders", place.url)

    @source.transaction()
    async def add(note: str) -> tuple[int | None, int]:
        session = source.session
        await session.execute(INSERT, {"note": note})
        await asyncio.sleep(0)
        assert source.session is session
        return DBOS.step_id, id(session)

    @DBOS.workflow()
    async def workflow() -> list[tuple[int | None, int]]:
        return await asyncio.gather(*(add(note) for note in "abcd"))

    DBOS.launch()
    results = await workflow()

    assert [step_id for step_id, _ in results] == [1, 2, 3, 4]
    assert place.notes() == list("abcd")


async def test_a_coroutine_that_is_cancelled_leaves_nothing_and_holds_up_nobody(
    system: DBOSConfig, place: Place
) -> None:
    source = AsyncSQLAlchemyDatasource("orders", place.url)
    has_begun = asyncio.Event()

    @source.transaction()
    async def add(note: str, *, is_slow: bool = False) -> str:
        await source.session.execute(INSERT, {"note": note})
        if is_slow:
            has_begun.set()
            await asyncio.Event().wait()
        return note

    DBOS.launch()
    slow = asyncio.create_task(add("lost", is_slow=True))
    await has_begun.wait()
    waiting = asyncio.create_task(add("lost too")) if place.url.startswith("sqlite") else None
    await asyncio.sleep(0)
    for task in (waiting, slow):
        if task is not None:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    assert await add("kept") == "kept"

    assert place.notes() == ["kept"]


def test_several_databases_in_one_workflow(system: DBOSConfig, place: Place, tmp_path: Path) -> None:
    other = Place(f"sqlite:///{tmp_path / 'billing.sqlite'}")
    orders, billing = SQLAlchemyDatasource("orders", place.url), SQLAlchemyDatasource("billing", other.url)

    @orders.transaction()
    def add_order(note: str) -> str:
        orders.session.execute(INSERT, {"note": note})
        with pytest.raises(AssertionError, match="only available in its transactions"):
            _ = billing.session
        with pytest.raises(AssertionError, match="one of a datasource"):
            _ = DBOS.sql_session
        return note

    @billing.transaction()
    def add_bill(note: str) -> str:
        billing.session.execute(INSERT, {"note": note})
        return note

    @DBOS.transaction()
    def add_note() -> int:
        found: int = DBOS.sql_session.execute(sa.text("SELECT 42")).scalar_one()
        return found

    @DBOS.workflow()
    def workflow() -> list[Any]:
        return [add_order("order"), add_bill("bill"), add_note()]

    DBOS.launch()
    with SetWorkflowID("wf"):
        assert workflow() == ["order", "bill", 42]

    assert execute_again("wf", to_step=1).get_result() == ["order", "bill", 42]
    assert (place.notes(), other.notes()) == (["order"], ["bill"])
    assert [record[1] for record in place.records()] == [1]
    assert [record[1] for record in other.records()] == [2]
    other.engine.dispose()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_in_the_system_database_the_steps_own_row_is_the_record(
    dbos: type[DBOS], config: DBOSConfig, kind: str
) -> None:
    place = Place(str(config["system_database_url"]))
    orders = Orders(kind, place.url)
    dbos.launch()

    @dbos.step()
    def step() -> int:
        return 42

    @dbos.workflow()
    def beside(number: int) -> int:
        return sum(step() for _ in range(number))

    handles = [dbos.start_workflow(beside, 5) for _ in range(5)]
    results = [orders.run(f"{number}", workflow_id=f"{number}") for number in range(5)]

    assert results == [["0"], ["1"], ["2"], ["3"], ["4"]]
    assert [handle.get_result() for handle in handles] == [210] * 5
    assert execute_again("3").get_result() == ["3"]
    assert place.notes() == ["0", "1", "2", "3", "4"]
    assert recorded("3") == [(1, "add")]
    assert not place.has_records()
    orders.source.close()
    place.engine.dispose()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_engine_that_is_given_is_used_and_left_as_it_is(system: DBOSConfig, place: Place, kind: str) -> None:
    url = place.engine.url
    if kind == "async":
        url = url.set(drivername="sqlite+aiosqlite") if place.url.startswith("sqlite") else url
        given: Any = create_async_engine(url, poolclass=sa.pool.NullPool)
    else:
        given = sa.create_engine(url)
    orders = Orders(kind, given)
    DBOS.launch()

    assert orders.run("a") == ["A"]
    assert orders.call("b") == "B"
    DBOS.destroy()

    if kind == "sync":
        with given.connect() as connection, given.connect() as other:  # neither waits for the other: no BEGIN IMMEDIATE
            assert connection.scalar(sa.text("SELECT count(*) FROM notes")) == 2
            assert other.scalar(sa.text("SELECT count(*) FROM notes")) == 2
        given.dispose()
    assert place.notes() == ["a", "b"]


def test_it_works_again_after_the_next_launch_and_when_declared_after_it(
    system: DBOSConfig, place: Place, tmp_path: Path
) -> None:
    orders = Orders("async", place.url)
    DBOS.launch()
    orders.run("a")
    DBOS.destroy()
    DBOS(config=system)
    DBOS.launch()
    late = Place(f"sqlite:///{tmp_path / 'late.sqlite'}")

    orders.run("b", workflow_id="second")
    later = Orders("sync", late.url)
    later.run("c", workflow_id="third")

    assert place.notes() == ["a", "b"]
    assert late.records() == [("third", 1, "add", '"C"')]
    late.engine.dispose()


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_table_of_records_is_where_it_is_wanted_and_is_only_looked_for_where_it_may_not_be_made(
    system: DBOSConfig, postgres_url: str, kind: str
) -> None:
    place = Place(postgres_url, schema="our records")
    DBOS.destroy(destroy_registry=True)
    DBOS(config={**system, "run_migrations": True})
    DBOS.launch()
    DBOS.destroy()
    DBOS(config={**system, "run_migrations": False})
    orders = Orders(kind, postgres_url, schema="our records")
    with pytest.raises(DBOSInitializationError, match="has no complete table transaction_outputs"):
        DBOS.launch()
    type(orders.source).create_tables(postgres_url, schema="our records")

    DBOS.launch()

    assert orders.run("a") == ["A"]
    assert place.records() == [("wf", 1, "add", '"A"')]
    place.engine.dispose()


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED", None])
def test_a_transaction_has_the_isolation_level_that_it_asks_for(
    system: DBOSConfig, postgres_url: str, kind: str, level: Any
) -> None:
    expected = (level or "READ COMMITTED").lower()

    if kind == "sync":
        source = SQLAlchemyDatasource("orders", postgres_url)
        shown = source.run_transaction(
            {"isolation_level": level}, lambda: source.session.scalar(sa.text("SHOW transaction_isolation"))
        )
        source.close()
    else:
        awaited = AsyncSQLAlchemyDatasource("orders", postgres_url)

        async def show() -> Any:
            return await awaited.session.scalar(sa.text("SHOW transaction_isolation"))

        shown = asyncio.run(awaited.run_transaction({"isolation_level": level}, show))
        awaited.close()

    assert shown == expected


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_engine_that_commits_each_statement_by_itself_is_refused(
    system: DBOSConfig, postgres_url: str, kind: str
) -> None:
    place = Place(postgres_url)
    orders = Orders(kind, postgres_url, engine_kwargs={"isolation_level": "AUTOCOMMIT"})
    DBOS.launch()

    with pytest.raises(InvalidRequestError, match="AUTOCOMMIT"):
        orders.run("a")

    assert (place.notes(), orders.calls) == ([], [])
    place.engine.dispose()


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_could_not_be_serialized_is_done_again(system: DBOSConfig, postgres_url: str, kind: str) -> None:
    place = Place(postgres_url)
    orders = Orders(kind, postgres_url)
    other = SQLAlchemyDatasource("other", postgres_url)
    attempts: list[int] = []

    def change_it() -> int:
        attempts.append(1)
        other.session.execute(sa.text("SELECT * FROM notes"))
        if len(attempts) == 1:
            place.execute("UPDATE notes SET note = 'theirs'")
        other.session.execute(sa.text("UPDATE notes SET note = 'ours'"))
        return len(attempts)

    @DBOS.workflow()
    def workflow() -> int:
        return other.run_transaction({"name": "change", "isolation_level": "REPEATABLE READ"}, change_it)

    DBOS.launch()
    orders.run("a", workflow_id="first")
    with SetWorkflowID("wf"):
        assert workflow() == 2

    assert place.notes() == ["ours"]
    assert recorded("wf") == [(1, "change")]
    place.engine.dispose()


def test_transactions_belong_in_workflows_bodies(orders: Orders) -> None:
    other = SQLAlchemyDatasource("other", orders.source._source.url)

    @other.transaction()
    def nested() -> None: ...

    @DBOS.step()
    def step() -> None:
        nested()

    @DBOS.workflow()
    def workflow() -> None:
        step()

    orders.inside = nested
    calls: list[Callable[[], object]] = [workflow, lambda: orders.run("a"), lambda: orders.call("b")]
    for call in calls:
        with pytest.raises(AssertionError, match="Transactions must be called from within workflows"):
            call()
    other.close()


@pytest.mark.parametrize("name", ["commit", "rollback"])
def test_a_transaction_that_ends_itself_is_refused(system: DBOSConfig, place: Place, name: str) -> None:
    source = AsyncSQLAlchemyDatasource("orders", place.url)

    async def end() -> None:
        await source.session.execute(INSERT, {"note": "lost"})
        await getattr(source.session, name)()

    with pytest.raises(InvalidRequestError, match=rf"{name}\(\) may not be called"):
        asyncio.run(source.run_transaction(None, end))

    source.close()
    assert place.notes() == []


def test_operations_of_dbos_are_refused_within(orders: Orders) -> None:
    def operate() -> None:
        DBOS.set_latest_application_version("test")

    orders.inside = operate
    for call in (orders.run, orders.call):
        with pytest.raises(Exception, match="inside a transaction"):
            call("a")


def test_required_roles_are_asked_for(orders: Orders) -> None:
    orders.add = DBOS.required_roles(["clerk"])(orders.add)

    with pytest.raises(DBOSNotAuthorizedError):
        orders.call("a")
    with pytest.raises(DBOSNotAuthorizedError):
        orders.run("a")
    with DBOSContextSetAuth("ann", ["clerk"]):
        assert orders.call("a") == "A"
        assert orders.run("b", workflow_id="allowed") == ["B"]


async def test_a_transaction_that_blocks_a_loop_is_warned_about(
    system: DBOSConfig, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    orders = Orders("sync", place.url)

    @DBOS.workflow()
    async def workflow() -> str:
        return str(orders.add("a"))

    DBOS.launch()
    with caplog.at_level(logging.WARNING, logger="dbos.transaction"):
        await workflow()

    assert "asyncio.to_thread" in caplog.text


def test_functions_of_the_wrong_kind_are_refused() -> None:
    source = SQLAlchemyDatasource("orders", "sqlite:///orders.sqlite")
    awaited = AsyncSQLAlchemyDatasource("orders-async", "sqlite:///orders.sqlite")

    async def coroutine() -> None: ...

    def function() -> None: ...

    with pytest.raises(DBOSException, match="Use AsyncSQLAlchemyDatasource"):
        source.transaction()(coroutine)
    with pytest.raises(DBOSException, match="Use SQLAlchemyDatasource"):
        awaited.transaction()(function)  # type: ignore[type-var]
    with pytest.raises(DBOSException, match="with parentheses"):
        source.transaction(function)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://user:s3cret@host:nonsense/orders", "cannot be parsed"),
        ("postgresql://user:s3cret@host", "Database name must be specified"),
        ("mysql://user:s3cret@host/orders", "'mysql' database"),
        ("sqlite://", "in memory"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(DBOSInitializationError, match=message) as raised:
        SQLAlchemyDatasource("orders", url)

    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("url", ["postgresql://user:s3cret@127.0.0.1:9/orders", "sqlite:////nonexistent/orders.sqlite"])
def test_a_database_that_cannot_be_reached_stops_the_launch_and_is_named(
    system: DBOSConfig, kind: str, url: str
) -> None:
    Orders(kind, url)

    with pytest.raises(DBOSInitializationError, match="of datasource 'orders' cannot be used") as raised:
        DBOS.launch()

    assert "s3cret" not in str(raised.value)


def test_an_engine_of_the_wrong_kind_is_refused(sqlite_url: str) -> None:
    given = sa.create_engine(sqlite_url)

    with pytest.raises(DBOSInitializationError, match="AsyncEngine of SQLAlchemy, not Engine"):
        AsyncSQLAlchemyDatasource("orders", given)  # type: ignore[arg-type]
    with pytest.raises(DBOSInitializationError, match="not NoneType"):
        SQLAlchemyDatasource("orders", None)  # type: ignore[arg-type]
    with pytest.raises(DBOSInitializationError, match="engine_kwargs"):
        SQLAlchemyDatasource("orders", given, engine_kwargs={"echo": True})


def test_an_engine_for_the_system_databases_own_file_is_refused(system: DBOSConfig, sqlite_url: str) -> None:
    given = sa.create_engine(sqlite_url)
    SQLAlchemyDatasource("orders", given)

    with pytest.raises(DBOSInitializationError, match="the very SQLite file that workflows are recorded in"):
        DBOS.launch()
    given.dispose()
