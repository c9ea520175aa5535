"""A user's own SQLAlchemy transaction on the system database, in which stores write what is to commit with it.

The user owns it: nothing here begins, commits or rolls back. On SQLite it holds the one write lock there is, so its
thread or task must not wait for anything else to be written before it ends: :func:`check_free` refuses that.
"""

from __future__ import annotations

import asyncio
import re
import threading
import weakref
from collections.abc import Hashable
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from dbos._error import DBOSException

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["UserConnection", "check_free", "hold"]

MAX_RENDERED = 100  # several times the statements that are executed so

_NAME = re.compile(r"(?<![:\w]):([a-z_][a-z0-9_]*)")
_LIST = re.compile(r"\bIN\s+:([a-z_][a-z0-9_]*)")


class UserConnection:
    """A connection of SQLAlchemy behind the :class:`~dbos._sysdb.connection.Connection` protocol."""

    def __init__(self, connection: sa.Connection, table_prefix: str) -> None:
        self.connection = connection
        self._table_prefix = table_prefix

    def all(self, sql: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._execute(sql, parameters)]

    def one(self, sql: str, /, **parameters: Any) -> tuple[Any, ...] | None:
        return next(iter(self.all(sql, **parameters)), None)

    def run(self, sql: str, /, **parameters: Any) -> int:
        return int(self._execute(sql, parameters).rowcount)

    def _execute(self, sql: str, parameters: dict[str, Any]) -> sa.CursorResult[Any]:
        return self.connection.execute(_rendered(sql, self._table_prefix), parameters)


@lru_cache(MAX_RENDERED)
def _rendered(sql: str, table_prefix: str) -> sa.TextClause:
    import sqlalchemy as sa  # slow to import, and loaded by whoever has a connection of it

    lists = _LIST.findall(sql)
    # text() takes the first colon of a cast for a part of the name before it, hence the space.
    text = _NAME.sub(r":\1 ", sql).replace("dbos.", table_prefix.replace(":", r"\:"))
    return sa.text(text).bindparams(*(sa.bindparam(name, expanding=True) for name in lists))


# -- who holds the write lock of a file --------------------------------------------------------------------------------


class _Held(NamedTuple):
    database: str
    owner: Hashable
    connection: weakref.ref[sa.Connection]


_held: ContextVar[_Held | None] = ContextVar("dbos_held", default=None)


def hold(database: str, connection: sa.Connection) -> None:
    """Remember that the caller's transaction keeps everybody else from writing to ``database``."""
    _held.set(_Held(database, _caller(), weakref.ref(connection)))


def check_free(database: str) -> None:
    """Refuse to wait for a transaction that the caller has open.

    Raises:
        DBOSException: this would wait for ever.
    """
    held = _held.get()
    if held is None or held.database != database or held.owner != _caller():
        return
    connection = held.connection()
    if connection is None or connection.closed or not _is_in_transaction(connection):
        _held.set(None)
        return
    raise DBOSException(
        "This would wait for ever: your own transaction on the SQLite system database is still open, and keeps all "
        "others from writing. Commit it first, or use enqueue_in_transaction or send_in_transaction in it."
    )


def _is_in_transaction(connection: sa.Connection) -> bool:
    # The driver knows better: where statements commit by themselves, SQLAlchemy takes none for the end.
    is_open = getattr(connection.connection.dbapi_connection, "in_transaction", None)
    return connection.in_transaction() if is_open is None else bool(is_open)


def _caller() -> Hashable:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident() if task is None else task
