"""How statements are rendered, arrays are written, and failures are classed."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from psycopg import errors

from dbos._error import ExecutorFencedError
from dbos._schemas.rendering import quote_identifier
from dbos._sysdb import statements
from dbos._sysdb.connection import Failure
from dbos._sysdb.dialects.postgres import PostgresDialect
from dbos._sysdb.dialects.postgres.connection import array_literal
from dbos._sysdb.dialects.sqlite import SQLiteDialect
from dbos._sysdb.dialects.sqlite.checkpoints import CHECKPOINT_BYTES, PAGE_BYTES, CheckpointPlan
from dbos._sysdb.statements import Renderer

NUMBERED = Renderer("numbered", '"dbos".')
QMARK = Renderer("qmark", "")


# -- rendering --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "numbered", "qmark"),
    [
        ("SELECT :a, :b", "SELECT $1, $2", "SELECT ?, ?"),
        ("SELECT :b, :a, :b", "SELECT $1, $2, $1", "SELECT ?, ?, ?"),
        ("SELECT :a::text[]", "SELECT $1::text[]", "SELECT ?::text[]"),
        ("SELECT x::bigint", "SELECT x::bigint", "SELECT x::bigint"),
        ("x IN :ids", "x = ANY($1)", "x IN (SELECT value FROM json_each(?))"),
        ("NOT (x || y IN :ids)", "NOT (x || y = ANY($1))", "NOT (x || y IN (SELECT value FROM json_each(?)))"),
        ("x IN ('a', 'b')", "x IN ('a', 'b')", "x IN ('a', 'b')"),
        ("FROM dbos.t JOIN dbos.u", 'FROM "dbos".t JOIN "dbos".u', "FROM t JOIN u"),
        ("(:a_1+:a_2)", "($1+$2)", "(?+?)"),
        ("'12:30'", "'12:30'", "'12:30'"),
    ],
)
def test_a_statement_is_rendered_for_its_driver(sql: str, numbered: str, qmark: str) -> None:
    assert NUMBERED.render(sql).sql == numbered
    assert QMARK.render(sql).sql == qmark


def test_values_are_bound_in_the_drivers_order() -> None:
    sql = "SELECT :b, :a, :b, :c"

    assert NUMBERED.render(sql).bind({"a": 1, "b": 2, "c": None}) == [2, 1, None]
    assert QMARK.render(sql).bind({"a": 1, "b": 2, "c": None}) == [2, 1, 2, None]


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(KeyError):
        NUMBERED.render("SELECT :a").bind({})


@pytest.mark.parametrize("schema", ["a:b", "x IN :ids", "$1", "a?b", 'quo"te', "per%cent", "dbos."])
def test_whatever_a_schemas_name_looks_like_it_stays_a_name(schema: str) -> None:
    """A colon in it was once taken for a parameter."""
    renderer = Renderer("numbered", quote_identifier(schema) + ".")

    rendered = renderer.render("SELECT :a FROM dbos.t")

    assert rendered.sql == f"SELECT $1 FROM {quote_identifier(schema)}.t"
    assert rendered.names == ("a",)


def test_statements_put_together_at_run_time_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "MAX_RENDERED", 10)
    renderer = Renderer("qmark", "")

    for number in range(100):
        assert renderer.render(f"SELECT {number}").sql == f"SELECT {number}"

    assert len(renderer._rendered) <= 10


# -- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "literal"),
    [
        ([], "{}"),
        ([None, "NULL", ""], '{NULL,"NULL",""}'),
        ([1, -2, None], "{1,-2,NULL}"),
        (['say "a"', "b\\c"], '{"say \\"a\\"","b\\\\c"}'),
        (["{a,b}", "x\ny"], '{"{a,b}","x\ny"}'),
    ],
)
def test_an_array_literal_quotes_what_needs_it(values: list[str | int | None], literal: str) -> None:
    assert array_literal(values) == literal


# -- failures ---------------------------------------------------------------------------------------------------------

POSTGRES = PostgresDialect({}, "dbos", "tag")
SQLITE = SQLiteDialect("unused")


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (errors.SerializationFailure(), Failure.CONTENTION),
        (errors.DeadlockDetected(), Failure.CONTENTION),
        (errors.LockNotAvailable(), Failure.BLOCKED),
        (errors.AdminShutdown(), Failure.CONNECTION_LOST),
        (errors.CrashShutdown(), Failure.CONNECTION_LOST),
        (errors.CannotConnectNow(), Failure.CONNECTION_LOST),
        (errors.ConnectionFailure(), Failure.CONNECTION_LOST),
        (errors.ConnectionDoesNotExist(), Failure.CONNECTION_LOST),
        (errors.TooManyConnections(), Failure.CONNECTION_LOST),
        (errors.DiskFull(), Failure.CONNECTION_LOST),
        (errors.OutOfMemory(), Failure.CONNECTION_LOST),
        (errors.IoError(), Failure.CONNECTION_LOST),
        (errors.ReadOnlySqlTransaction(), Failure.CONNECTION_LOST),
        (errors.IdleInTransactionSessionTimeout(), Failure.CONNECTION_LOST),
        (errors.StatementCompletionUnknown(), Failure.CONNECTION_LOST),
        (psycopg.OperationalError("server closed the connection unexpectedly"), Failure.CONNECTION_LOST),
        (psycopg.InterfaceError("the connection is closed"), Failure.CONNECTION_LOST),
        (errors.QueryCanceled(), Failure.REFUSED),
        (errors.ProgramLimitExceeded(), Failure.REFUSED),
        (errors.UniqueViolation(), Failure.REFUSED),
        (errors.CheckViolation(), Failure.REFUSED),
        (errors.StringDataRightTruncation(), Failure.REFUSED),
        (errors.InsufficientPrivilege(), Failure.REFUSED),
        (errors.UndefinedTable(), Failure.REFUSED),
        (errors.InvalidCatalogName(), Failure.REFUSED),
        (psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"), Failure.REFUSED),
        (psycopg.ProgrammingError(), Failure.REFUSED),
        (ExecutorFencedError("ours"), Failure.REFUSED),
        (ValueError(), Failure.REFUSED),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), Failure.REFUSED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.name,
)
def test_postgresqls_errors_are_classed(error: BaseException, failure: Failure) -> None:
    """An index row that is too large was once taken for a lost connection, and repeated for ever."""
    assert POSTGRES.classify(error) is failure


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (sqlite3.SQLITE_BUSY, Failure.CONTENTION),
        (sqlite3.SQLITE_BUSY_RECOVERY, Failure.CONTENTION),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Failure.CONTENTION),
        (sqlite3.SQLITE_LOCKED, Failure.CONTENTION),
        (sqlite3.SQLITE_PROTOCOL, Failure.CONTENTION),
        (sqlite3.SQLITE_FULL, Failure.CONTENTION),
        (sqlite3.SQLITE_IOERR, Failure.CONNECTION_LOST),
        (sqlite3.SQLITE_IOERR_WRITE, Failure.CONNECTION_LOST),
        (sqlite3.SQLITE_CANTOPEN, Failure.CONNECTION_LOST),
        (sqlite3.SQLITE_READONLY, Failure.REFUSED),
        (sqlite3.SQLITE_READONLY_DBMOVED, Failure.REFUSED),
        (sqlite3.SQLITE_CORRUPT, Failure.REFUSED),
        (sqlite3.SQLITE_NOTADB, Failure.REFUSED),
        (sqlite3.SQLITE_CONSTRAINT_CHECK, Failure.REFUSED),
        (sqlite3.SQLITE_TOOBIG, Failure.REFUSED),
    ],
)
def test_sqlites_errors_are_classed(code: int, failure: Failure) -> None:
    error = sqlite3.OperationalError("…")
    error.sqlite_errorcode = code

    assert SQLITE.classify(error) is failure


def test_what_is_no_error_of_the_database_is_refused() -> None:
    assert SQLITE.classify(ValueError()) is Failure.REFUSED
    assert SQLITE.classify(sqlite3.ProgrammingError("closed")) is Failure.REFUSED


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_the_first_checkpoint_is_due_when_the_log_has_grown() -> None:
    plan = CheckpointPlan()
    plan.batches = 100

    assert not plan.is_due(CHECKPOINT_BYTES - 1)
    assert plan.is_due(CHECKPOINT_BYTES)


def test_the_next_checkpoint_is_due_after_as_many_batches_as_filled_the_log() -> None:
    """The file stays as large as it was; its size alone would have every look at it find a checkpoint due."""
    plan = CheckpointPlan()
    plan.batches = 1000
    plan.done(CHECKPOINT_BYTES, frames=CHECKPOINT_BYTES // PAGE_BYTES)

    plan.batches = 1900
    assert not plan.is_due(CHECKPOINT_BYTES)
    plan.batches = 2010
    assert plan.is_due(CHECKPOINT_BYTES)


def test_a_log_that_grows_all_the_same_is_due_before() -> None:
    plan = CheckpointPlan()
    plan.batches = 1000
    plan.done(CHECKPOINT_BYTES, frames=10)

    assert not plan.is_due(CHECKPOINT_BYTES)
    assert plan.is_due(2 * CHECKPOINT_BYTES)
