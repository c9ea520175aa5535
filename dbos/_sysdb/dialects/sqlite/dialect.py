"""The SQLite dialect: a system database in one file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

from dbos._error import DatabaseGoneError, DBOSDatabaseUnavailableError, DBOSInitializationError
from dbos._migration import create_application_tables, migrate, verify, verify_application_tables
from dbos._sysdb.connection import Connection, Failure
from dbos._sysdb.statements import Renderer
from dbos._sysdb.user_connection import UserConnection, check_free, hold

from .connection import BUSY_PATIENCE_S, configure, create_private_file, enter_wal_mode
from .listener import SQLiteListener
from .migration import SQLiteMigrationTarget, delete_database
from .reader import SQLiteReader
from .writer import SQLiteWriter

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["SQLiteDialect", "prepare_application_database"]

_RETRYABLE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_FULL}
_LOST = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}


class SQLiteDialect:
    """A system database in one SQLite file."""

    name = "sqlite"
    now_ms = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
    has_own_clock = False
    text_size = "length"
    skip_locked = ""  # one writer at a time: there is nothing to pass over
    hold = ""
    contains_attributes = "attributes IS NOT NULL AND contains_json(attributes, :attributes)"
    enqueue_order = "rowid"
    message_order = "rowid"
    lock_queue: str | None = None

    def __init__(self, path: str, *, synchronous: str = "FULL") -> None:
        self.path = path
        self.renderer = Renderer("qmark", "")
        self._synchronous = synchronous
        self._writer: SQLiteWriter | None = None

    def rows(self, **types: str) -> str:
        columns = ", ".join(f"json_extract(value, '$.{name}') AS {name}" for name in types)
        return f"(SELECT {columns} FROM json_each(:rows)) AS r"

    def connect(self) -> sqlite3.Connection:
        """Open a connection with the settings that durability rests on."""
        if not os.path.exists(self.path):  # SQLite would make a new one
            raise DatabaseGoneError(f"The SQLite database {self.path} was deleted while it was open.")
        raw = sqlite3.connect(
            self.path, timeout=BUSY_PATIENCE_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        configure(raw, self._synchronous)
        return raw

    def prepare(self, *, may_migrate: bool) -> None:
        create_private_file(self.path)
        raw = sqlite3.connect(self.path, timeout=BUSY_PATIENCE_S, isolation_level=None)
        try:
            raw.execute("PRAGMA wal_autocheckpoint = 0")  # others may be writing
            target = SQLiteMigrationTarget(raw)
            if may_migrate:
                migrate(target)
            else:
                verify(target)
            enter_wal_mode(raw)
        finally:
            raw.close()

    def grant(self, role: str) -> None:
        raise DBOSInitializationError(
            f"SQLite has no roles, so {role!r} cannot be granted anything: the file's mode says who may use it."
        )

    def drop(self) -> None:
        delete_database(self.path)

    def open_writer(self, *, lock_timeout_ms: int | None = None) -> SQLiteWriter:
        writer = SQLiteWriter(self)
        self._writer = writer
        return writer

    def has_second_writer(self) -> bool:
        return False

    def open_reader(self) -> SQLiteReader:
        return SQLiteReader(self.connect(), self.renderer)

    def listener(self, on_wakeup: Callable[[str | None], None], poll_writer: Callable[[], None]) -> SQLiteListener:
        assert self._writer is not None
        return SQLiteListener(self._writer, on_wakeup, poll_writer)

    def adopt(self, connection: sa.Connection) -> UserConnection:
        # Checkpoints are the writer's: SQLite before 3.51.3 can lose commits otherwise (docs/decisions/0003).
        connection.exec_driver_sql("PRAGMA wal_autocheckpoint = 0")
        # The write lock first: who reads before it writes is turned away if anybody has written in between.
        connection.exec_driver_sql("UPDATE workflow_status SET status = status WHERE FALSE")
        hold(self.path, connection)
        return UserConnection(connection, "")

    def identity(self, connection: Connection) -> object:
        return connection.one("SELECT file FROM pragma_database_list WHERE name = 'main'")

    def announce(self, connection: UserConnection, topic: str) -> None:
        """The commit itself is what others notice."""

    def check_free(self) -> None:
        check_free(self.path)

    def classify(self, error: BaseException) -> Failure:
        if not isinstance(error, sqlite3.Error):
            return Failure.REFUSED
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _RETRYABLE:
            return Failure.CONTENTION
        if code in _LOST:
            return Failure.CONNECTION_LOST
        return Failure.REFUSED

    def refuses_value(self, error: BaseException) -> bool:
        if not isinstance(error, sqlite3.Error):
            # Before it reached the database: the value could not be bound, unless there is no database.
            return not isinstance(error, DBOSDatabaseUnavailableError)
        return not isinstance(error, sqlite3.OperationalError)

    def sqlalchemy_dialect(self) -> sa.Dialect:
        from sqlalchemy.dialects import sqlite  # slow to import, and rarely needed

        return sqlite.dialect(paramstyle="named")


def prepare_application_database(path: str, *, may_migrate: bool) -> None:
    """Create or verify the table of transaction records in an application's own file."""
    raw = sqlite3.connect(path, timeout=BUSY_PATIENCE_S, isolation_level=None)
    try:
        target = SQLiteMigrationTarget(raw)
        (create_application_tables if may_migrate else verify_application_tables)(target)
    finally:
        raw.close()
