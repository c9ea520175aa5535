"""Migrating an SQLite file, and deleting it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dbos._clock import Clock, SystemClock
from dbos._error import DBOSInitializationError
from dbos._schemas.rendering import qualify
from dbos._sysdb.retry import Backoff

__all__ = ["SQLiteMigrationTarget", "delete_database"]

LOCK_WAIT_S = 60.0  # a migration takes milliseconds; twenty processes on a slow disk take seconds

LIST_COLUMNS = """
-- Empty for a table that does not exist.
SELECT name
FROM pragma_table_info(:table, 'main')
ORDER BY cid
"""

# Somebody else writes, checkpoints or switches the file to WAL; the statement had no effect and may simply be repeated.
_BUSY_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_REFUSED_CODES = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH})


class SQLiteMigrationTarget:
    """A migration target over an SQLite connection with ``isolation_level=None``.

    The connection's own ``timeout`` may be anything: a busy database is waited for here, for ``lock_wait_s`` seconds
    at most, because SQLite's handler gives up at once in some states (a switch to WAL by another process is one).
    """

    dialect = "sqlite"

    def __init__(
        self, connection: sqlite3.Connection, *, clock: Clock | None = None, lock_wait_s: float = LOCK_WAIT_S
    ) -> None:
        if connection.isolation_level is not None:
            raise ValueError("Open the connection with isolation_level=None: transactions are explicit here.")
        self._connection = connection
        self._clock = SystemClock() if clock is None else clock
        self._lock_wait_s = lock_wait_s

    @property
    def database(self) -> str:
        """The path of the file."""
        row = self._execute("SELECT file FROM pragma_database_list WHERE name = 'main'", {})
        return str(row[0][0] or ":memory:")

    def execute(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Execute one statement and return its rows."""
        return self._execute(qualify(sql, None), parameters or {})

    def columns(self, table: str) -> list[str]:
        """The columns of a table in order."""
        return [name for (name,) in self._execute(LIST_COLUMNS, {"table": table})]

    def create_schema(self) -> None:
        """SQLite has none."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the file's write lock from the start: ``BEGIN IMMEDIATE`` admits one process."""
        self._execute("BEGIN IMMEDIATE", {})
        try:
            yield
            self._execute("COMMIT", {})
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself rolls back after some errors
                self._connection.execute("ROLLBACK")
            raise

    def now_ms(self) -> int:
        """Milliseconds since 1970, by the clock given."""
        return self._clock.now_ms()

    def _execute(self, sql: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        give_up_at = time.monotonic() + self._lock_wait_s
        backoff = Backoff(initial_s=0.005, maximum_s=0.1)
        while True:
            cursor = self._connection.cursor()
            cursor.row_factory = None  # the owner of the connection may have set another
            try:
                return cursor.execute(sql, parameters).fetchall()
            except sqlite3.OperationalError as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
                if code in _REFUSED_CODES:
                    raise DBOSInitializationError(
                        f"The SQLite database may not be written ({error}). Check the rights on file and folder."
                    ) from error
                if code not in _BUSY_CODES:
                    raise
                if time.monotonic() >= give_up_at:
                    raise DBOSInitializationError(
                        f"The SQLite database stayed locked by another process for {self._lock_wait_s:g} s. "
                        "Look for a program that holds a transaction open on the file, then start again."
                    ) from error
            finally:
                cursor.close()
            time.sleep(backoff.next_delay_s())


def delete_database(path: str | Path) -> None:
    """Delete an SQLite database with its journals; nobody may have it open.

    The file goes first: SQLite discards a journal that it finds without its database, never the other way round.
    """
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
