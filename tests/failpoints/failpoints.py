"""Every call to the databases, seen and named; one of them can be made to fail.

A call is a batch of operations that a writer commits, a statement within it, a statement of a reader, or what a user's
transaction does. Its name says what it is about rather than when it comes, because services call when they like:
``record(W:2)`` is the record of the second operation of the workflow that a run is about, and ``record(W:2)#2`` the
second time that it is written. ``claim(W)`` is the first claim from its queue after it was enqueued, and so the one
that finds it. What other workflows do has no name.

The drivers' errors are real where they can be had: a PostgreSQL connection is lost by shutting down its socket, and a
deadlock is raised by the server.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn, Protocol

import psycopg
import pytest
import sqlalchemy as sa

from dbos import _app_db, _sys_db
from dbos._app_db import ApplicationDatabase
from dbos._context import current_context
from dbos._dbos_config import Settings
from dbos._sysdb.connection import Failure
from dbos._sysdb.dialects import open_dialect
from dbos._sysdb.dialects.base import Dialect, FencedWriter, Reader
from dbos._sysdb.operations import Operation, RecordOutcome, RecordStep, StartWorkflow
from dbos._sysdb.stores.queue_claims import ClaimRequest

__all__ = ["Call", "Failpoints", "Fault", "Link", "install"]


class Link(Protocol):
    """A driver's connection, to be made to fail."""

    def cut(self) -> None:
        """Cut the connection, so that the call to come fails."""
        ...

    def lose(self) -> NoReturn:
        """Cut the connection, and raise what the driver says to that."""
        ...

    def contend(self) -> NoReturn:
        """Raise what the database says when somebody else was first."""
        ...


class Call:
    """A call at which a fault happens; ``operations`` are those of the batch, if it is one."""

    def __init__(self, label: str, link: Link, operations: Sequence[Operation] = ()) -> None:
        self.label = label
        self.link = link
        self.operations = operations


class Fault:
    """What happens around one call."""

    def before(self, call: Call) -> None:
        """The call has not been made."""

    def after(self, call: Call) -> None:
        """It has been made, and its answer has not arrived."""


class Failpoints:
    """Names the calls of a run and lets a fault happen at one of them."""

    def __init__(self) -> None:
        self.has_fired = False
        self.runs = 0
        self._lock = threading.Lock()
        self._subject = ""
        self._seen: Counter[str] = Counter()
        self._trace: list[str] = []
        self._armed: tuple[str, Fault] | None = None
        self._refusals = 0
        self._enqueued: dict[str, list[str]] = {}

    def begin(self, subject: str, label: str | None = None, fault: Fault | None = None) -> None:
        """A run about the workflow ``subject`` begins; ``fault`` is to happen at the call ``label``."""
        with self._lock:
            self.runs += 1
            self._subject = subject
            self._seen.clear()
            self._trace = []
            self._refusals = 0
            self._enqueued = {}
            self.has_fired = False
            self._armed = None if label is None or fault is None else (label, fault)

    def trace(self) -> list[str]:
        """The labels of all calls since :meth:`begin`, in order."""
        with self._lock:
            return list(self._trace)

    @contextmanager
    def call(self, names: Sequence[str], link: Link, operations: Sequence[Operation] = ()) -> Iterator[None]:
        """A call is made in the body, known by any of these names."""
        label, fault = self._pass(names)
        if fault is None:
            yield
            return
        call = Call(label, link, operations)
        fault.before(call)
        yield
        fault.after(call)

    def _pass(self, names: Sequence[str]) -> tuple[str, Fault | None]:
        with self._lock:
            hit: tuple[str, Fault | None] = ("", None)
            for name in names:
                self._seen[name] += 1
                label = name if self._seen[name] == 1 else f"{name}#{self._seen[name]}"
                self._trace.append(label)
                if self._armed is not None and label == self._armed[0]:
                    hit, self._armed = self._armed, None
                    self.has_fired = True
            return hit

    def refuse(self, count: int) -> None:
        """Have the next attempts to connect fail."""
        with self._lock:
            self._refusals = count

    def takes_refusal(self) -> bool:
        """Whether this attempt to connect is to fail."""
        with self._lock:
            self._refusals -= self._refusals > 0
            return self._refusals > 0

    def enqueued(self, queue_name: str, workflow: str) -> None:
        """A workflow, by what it is called in labels, is in a queue."""
        with self._lock:
            names = self._enqueued.setdefault(queue_name, [])
            if workflow not in names:
                names.append(workflow)

    def claimable(self, queue_name: str) -> list[str]:
        """What has been enqueued in a queue."""
        with self._lock:
            return list(self._enqueued.get(queue_name, ()))

    def short(self, values: Sequence[Any]) -> str | None:
        """What the run's workflow, or a child of it, is called in labels, if one of the values names it."""
        for text in _texts(values):
            if text == self._subject or text.startswith(f"{self._subject}-"):
                return "W" + text.removeprefix(self._subject)
        return None


def _texts(value: Any) -> Iterator[str]:
    """The texts among values, and in what they hold."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    else:
        yield from _texts(getattr(value, "workflow_id", ()))


# -- links -------------------------------------------------------------------------------------------------------------


class _SQLiteLink:
    def __init__(self, raw: sqlite3.Connection, *, closes: bool) -> None:
        self._raw = raw
        self._closes = closes

    def cut(self) -> None:
        self.lose()

    def lose(self) -> NoReturn:
        if self._closes:
            self._raw.close()
        raise _sqlite_error("disk I/O error", sqlite3.SQLITE_IOERR)

    def contend(self) -> NoReturn:
        raise _sqlite_error("database is locked", sqlite3.SQLITE_BUSY)


def _sqlite_error(message: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


class _PostgresLink:
    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self._raw = raw

    def cut(self) -> None:
        if not self._raw.closed:
            with socket.socket(fileno=os.dup(self._raw.fileno())) as connection:
                connection.shutdown(socket.SHUT_RDWR)

    def lose(self) -> NoReturn:
        self.cut()
        self._raw.execute("SELECT 1")
        raise AssertionError("a lost connection has answered")

    def contend(self) -> NoReturn:
        self._raw.execute("DO $$ BEGIN RAISE EXCEPTION 'contended' USING ERRCODE = 'deadlock_detected'; END $$")
        raise AssertionError("the server has not raised")


def _link(raw: Any, *, closes: bool) -> Link:
    return _SQLiteLink(raw, closes=closes) if isinstance(raw, sqlite3.Connection) else _PostgresLink(raw)


# -- the system database -----------------------------------------------------------------------------------------------


class _FailpointWriter:
    def __init__(self, dialect: _FailpointDialect, lock_timeout_ms: int | None) -> None:
        self._dialect = dialect
        self._failpoints = dialect.failpoints
        self._writer: FencedWriter
        self._raw: Any
        self._writer, self._raw = dialect.opened(lambda: dialect.inner.open_writer(lock_timeout_ms=lock_timeout_ms))

    @property
    def instance_id(self) -> str | None:
        return self._writer.instance_id

    @instance_id.setter
    def instance_id(self, value: str | None) -> None:
        self._writer.instance_id = value

    def write(self, operations: Sequence[Operation]) -> Sequence[Any]:
        names = [name for operation in operations for name in self._names(operation)]
        statements = self._dialect.statements
        with self._failpoints.call(names, _link(self._raw, closes=True), operations):
            statements.begin(names)
            try:
                results = self._writer.write(operations)
            finally:
                statements.begin(())
            for operation in operations:
                if isinstance(operation, StartWorkflow) and operation.queue_name is not None:
                    workflow = self._failpoints.short([operation.workflow_uuid])
                    if workflow is not None:
                        self._failpoints.enqueued(operation.queue_name, workflow)
            return results

    def _names(self, operation: Operation) -> list[str]:
        if isinstance(operation, StartWorkflow | RecordStep | RecordOutcome):
            workflow = self._failpoints.short([operation.workflow_uuid])
            if workflow is None:
                return []
            if isinstance(operation, RecordStep):
                return [f"record({workflow}:{operation.function_id})"]
            return [f"{'start' if isinstance(operation, StartWorkflow) else 'outcome'}({workflow})"]
        verb: Any = operation.verb
        values = list(operation.arguments)
        if len(values) == 1 and isinstance(values[0], ClaimRequest):
            workflows = self._failpoints.claimable(values[0].queue.name)
            return [_called(verb.__name__, workflow) for workflow in workflows] or [verb.__name__]
        if isinstance(verb, partial):
            verb, values = verb.func, [*values, *verb.args, *verb.keywords.values()]
        return [_called(verb.__name__, self._failpoints.short(values))]

    def reset(self) -> None:
        if self._failpoints.takes_refusal():
            self._dialect.refuse()
        _, self._raw = self._dialect.opened(self._writer.reset, self._raw)

    def classify(self, error: BaseException) -> Failure:
        return self._writer.classify(error)

    def idle(self) -> None:
        self._writer.idle()

    def close(self) -> None:
        self._writer.close()


class _FailpointReader:
    def __init__(self, dialect: _FailpointDialect) -> None:
        if dialect.failpoints.takes_refusal():
            dialect.refuse()
        self._failpoints = dialect.failpoints
        self._reader, raw = dialect.opened(dialect.inner.open_reader)
        self._link = _link(raw, closes=True)

    def _call(self, method: Callable[..., Any], sql: str, parameters: dict[str, Any]) -> Any:
        verb = sys._getframe(2).f_code.co_name  # the store's
        name = _called(verb, self._failpoints.short(list(parameters.values())))
        with self._failpoints.call([name], self._link):
            return method(sql, **parameters)

    def all(self, sql: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._call(self._reader.all, sql, parameters)
        return rows

    def one(self, sql: str, /, **parameters: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._call(self._reader.one, sql, parameters)
        return row

    def run(self, sql: str, /, **parameters: Any) -> int:
        count: int = self._call(self._reader.run, sql, parameters)
        return count

    def limited(self, timeout_s: float) -> AbstractContextManager[None]:
        limited: AbstractContextManager[None] = self._reader.limited(timeout_s)
        return limited

    def snapshot(self) -> AbstractContextManager[None]:
        snapshot: AbstractContextManager[None] = self._reader.snapshot()
        return snapshot

    def close(self) -> None:
        self._reader.close()


def _called(verb: str, workflow: str | None) -> str:
    return verb if workflow is None else f"{verb}({workflow})"


class _FailpointDialect:
    def __init__(self, inner: Dialect, failpoints: Failpoints, statements: _Statements) -> None:
        self.inner = inner
        self.failpoints = failpoints
        self.statements = statements
        self._connections = threading.local()
        connect = inner.connect  # type: ignore[attr-defined]  # both dialects have it, the protocol does not

        def watched() -> Any:
            self._connections.last = connect()
            return self._connections.last

        inner.connect = watched  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # whatever makes no call to the database

    def opened(self, open: Callable[[], Any], default: Any = None) -> tuple[Any, Any]:
        """What ``open`` returns, and the driver's connection that it has opened in doing so."""
        self._connections.last = default
        return open(), self._connections.last

    def refuse(self) -> NoReturn:
        """Raise what the driver says to a database that is not there."""
        if self.name == "sqlite":
            sqlite3.connect("/nonexistent/database")
        psycopg.connect("host=/nonexistent")
        raise AssertionError("connected to nothing")

    def open_writer(self, *, lock_timeout_ms: int | None = None) -> FencedWriter:
        return _FailpointWriter(self, lock_timeout_ms)

    def open_reader(self) -> Reader:
        return _FailpointReader(self)


class _Statements:
    """Sees the statements that a batch is made of, between the driver's connection and who uses it."""

    def __init__(self, failpoints: Failpoints) -> None:
        self._failpoints = failpoints
        self._batch = threading.local()

    def begin(self, names: Sequence[str]) -> None:
        """What this thread executes next belongs to the batch of these names; without any, to none."""
        self._batch.names, self._batch.run = names, self._failpoints.runs

    def execute(self, raw: Any, execute: Callable[[], Any], sql: str) -> Any:
        """Execute a statement."""
        names = getattr(self._batch, "names", ())
        if not names or sql == "ROLLBACK" or self._batch.run != self._failpoints.runs:
            return execute()
        verb = _first_words(sql)
        with self._failpoints.call([f"{name} {verb}" for name in names], _link(raw, closes=False)):
            return execute()

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """See what is executed on every connection that is opened from now on."""
        statements = self

        class SQLiteCursor(sqlite3.Cursor):
            def execute(self, sql: str, parameters: Any = (), /) -> SQLiteCursor:
                statements.execute(self.connection, lambda: super(SQLiteCursor, self).execute(sql, parameters), sql)
                return self

        class SQLiteConnection(sqlite3.Connection):
            def cursor(self, factory: Any = None) -> Any:
                return super().cursor(SQLiteCursor)

            def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
                return SQLiteCursor(self).execute(sql, parameters)

        class PostgresCursor(psycopg.RawCursor[Any]):
            def execute(self, query: Any, *arguments: Any, **options: Any) -> PostgresCursor:
                def execute() -> Any:
                    return super(PostgresCursor, self).execute(query, *arguments, **options)

                statements.execute(self.connection, execute, str(query))
                return self

        patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=SQLiteConnection))
        patch.setattr(psycopg, "RawCursor", PostgresCursor)


def _first_words(sql: str) -> str:
    """What a statement does, to which table."""
    words = [word for line in sql.split("\n") if not line.startswith("--") for word in line.split()]
    verbs = [word for word in words if word in ("BEGIN", "COMMIT", "INSERT", "UPDATE", "DELETE")]
    written = [after for word, after in pairwise(words) if word in ("INTO", "UPDATE")]
    read = [after for word, after in pairwise(words) if word == "FROM"]
    tables = [table.rpartition(".")[2] for table in written or read]
    return " ".join([(verbs or words)[0], *tables[:1]])


# -- the application database ------------------------------------------------------------------------------------------


def _watch_application(database: ApplicationDatabase, failpoints: Failpoints) -> None:
    engine = database.engine

    def call(raw: Any, what: str) -> Any:
        context = current_context()
        run = None if context is None else context.run
        workflow = None if run is None else failpoints.short([run.workflow_id])
        names = [] if workflow is None else [f"transaction({workflow}) {what}"]
        return failpoints.call(names, _link(raw, closes=False))

    @sa.event.listens_for(engine, "do_execute")
    def execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        with call(cursor.connection, _first_words(statement)):
            cursor.execute(statement, parameters)
        return True

    @sa.event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: Any, parameters: Any) -> None:
        if failpoints.takes_refusal():
            if dialect.name == "sqlite":
                sqlite3.connect("/nonexistent/database")
            psycopg.connect("host=/nonexistent")

    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "begin", insert=True)
        def begin(connection: sa.Connection) -> None:
            try:
                with call(connection.connection.driver_connection, "BEGIN"):
                    pass
            except sqlite3.Error as error:  # as the library's own listener does, which begins the transaction
                raise sa.exc.OperationalError("BEGIN IMMEDIATE", None, error) from error

    commit = engine.dialect.do_commit

    def watched_commit(connection: Any) -> None:
        with call(connection.driver_connection, "COMMIT"):
            commit(connection)

    dialect: Any = engine.dialect
    dialect.do_commit = watched_commit  # there is no event after a commit


def install(patch: pytest.MonkeyPatch, failpoints: Failpoints, *, sees_statements: bool = False) -> None:
    """Have everything that DBOS opens from now on call by way of ``failpoints``; of batches also each statement."""
    statements = _Statements(failpoints)
    if sees_statements:
        statements.watch(patch)

    def open_watched(settings: Settings, process_tag: str) -> Dialect:
        return _FailpointDialect(open_dialect(settings, process_tag), failpoints, statements)

    class Watched(ApplicationDatabase):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            _watch_application(self, failpoints)

    patch.setattr(_sys_db, "open_dialect", open_watched)
    patch.setattr(_app_db, "ApplicationDatabase", Watched)  # where the engine imports it from
