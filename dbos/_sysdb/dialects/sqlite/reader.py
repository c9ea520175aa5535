"""A connection for reading an SQLite file: what it can do beyond the others'."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dbos._error import DBOSQueryTimeoutError
from dbos._sysdb.statements import Renderer

from .connection import SQLiteConnection

__all__ = ["SQLiteReader"]

CHECK_STEPS = 10_000  # of SQLite's machine, between two looks at the time: less than a millisecond


class SQLiteReader(SQLiteConnection):
    """A connection whose statements only read, and may be limited in time."""

    def __init__(self, raw: sqlite3.Connection, renderer: Renderer) -> None:
        super().__init__(raw, renderer)
        raw.execute("PRAGMA query_only = ON")
        raw.create_function("contains_json", 2, _contains_json, deterministic=True)

    @contextmanager
    def limited(self, timeout_s: float) -> Iterator[None]:
        deadline = time.monotonic() + timeout_s
        self.raw.set_progress_handler(lambda: time.monotonic() > deadline, CHECK_STEPS)
        try:
            yield
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_INTERRUPT:
                raise DBOSQueryTimeoutError(timeout_s) from error
            raise
        finally:
            self.raw.set_progress_handler(None, 0)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        self.raw.execute("BEGIN")
        yield  # after an error nobody uses the connection again
        self.raw.execute("COMMIT")


def _contains_json(text: str, wanted: str) -> bool:
    """Whether a JSON value contains another, as PostgreSQL's operator ``@>`` sees it; what is no JSON contains nothing.

    SQLite's own functions take 1 for true, and the order of an object's keys for a difference.
    """
    try:
        return _contains(json.loads(text), json.loads(wanted))
    except (TypeError, ValueError, RecursionError):
        return False  # one unreadable row must not hide the others


def _contains(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(key in value and _contains(value[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return isinstance(value, list) and all(any(_contains(each, item) for each in value) for item in wanted)
    if isinstance(wanted, bool) or isinstance(value, bool):
        return wanted is value
    return bool(value == wanted)
