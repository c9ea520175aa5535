"""A connection to an SQLite file: its settings, its statements, its write lock."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dbos._error import DBOSDatabaseUnavailableError
from dbos._ids import jitter
from dbos._sysdb.statements import Renderer

__all__ = [
    "BUSY_PATIENCE_S",
    "SQLiteConnection",
    "begin_immediate",
    "configure",
    "create_private_file",
    "enter_wal_mode",
    "patiently",
]

BUSY_PATIENCE_S = 60.0  # another process that writes longer than this without rest is stuck


class SQLiteConnection:
    """A sqlite3 connection behind the :class:`~dbos._sysdb.connection.Connection` protocol."""

    def __init__(self, raw: sqlite3.Connection, renderer: Renderer) -> None:
        self.raw = raw
        self._renderer = renderer

    def _execute(self, sql: str, parameters: dict[str, Any]) -> sqlite3.Cursor:
        rendered = self._renderer.render(sql)
        values = rendered.bind(parameters)
        for position, value in enumerate(values):
            if isinstance(value, list | tuple):
                values[position] = json.dumps(value)
        return self.raw.execute(rendered.sql, values)

    def all(self, sql: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        return self._execute(sql, parameters).fetchall()

    def one(self, sql: str, /, **parameters: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._execute(sql, parameters).fetchone()
        return row

    def run(self, sql: str, /, **parameters: Any) -> int:
        return self._execute(sql, parameters).rowcount

    def close(self) -> None:
        self.raw.close()


def configure(raw: sqlite3.Connection, synchronous: str = "FULL") -> None:
    """Apply the settings that every connection to a system database needs, ours and a user's session alike."""
    raw.execute(f"PRAGMA synchronous = {synchronous}")
    raw.execute("PRAGMA wal_autocheckpoint = 0")
    raw.execute("PRAGMA cache_size = -16384")
    raw.execute("PRAGMA temp_store = MEMORY")


def create_private_file(path: str) -> None:
    """Create the database file readable by its owner only; ``-wal`` and ``-shm`` take their mode from it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def enter_wal_mode(raw: sqlite3.Connection) -> None:
    """Switch the file to WAL, which is kept in the file; several processes may try at once."""
    deadline = time.monotonic() + BUSY_PATIENCE_S
    while True:
        try:
            if raw.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
                return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise DBOSDatabaseUnavailableError(
                "The SQLite database could not be switched to WAL mode. "
                "Put it on a local disk: WAL needs shared memory."
            )
        time.sleep(0.01 * jitter())


def begin_immediate(raw: sqlite3.Connection, patience_s: float = BUSY_PATIENCE_S) -> None:
    """Take the write lock, waiting for other processes."""
    patiently(lambda: raw.execute("BEGIN IMMEDIATE"), patience_s)


def patiently(write: Callable[[], sqlite3.Cursor], patience_s: float) -> sqlite3.Cursor:
    """Execute what takes the write lock; wait for other processes in short steps with jitter: fair, and quick."""
    delay_s = 0.0005
    deadline: float | None = None
    while True:
        try:
            return write()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            now = time.monotonic()
            if deadline is None:
                deadline = now + patience_s
            elif now > deadline:
                raise
        time.sleep(delay_s * jitter())
        delay_s = min(delay_s * 2, 0.01)
