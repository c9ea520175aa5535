"""What a store needs of a connection, and how a database's failures are classed.

A dialect wraps its driver's connection into this shape; nothing else of a driver is visible above the dialects.
"""

from __future__ import annotations

import enum
from typing import Any, Protocol

__all__ = ["Connection", "Failure"]


class Connection(Protocol):
    """A connection with named parameters; see :mod:`dbos._sysdb.statements` for how statements are written."""

    def all(self, sql: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        """Execute a statement and fetch its rows."""
        ...

    def one(self, sql: str, /, **parameters: Any) -> tuple[Any, ...] | None:
        """Execute a statement and fetch its first row, or None."""
        ...

    def run(self, sql: str, /, **parameters: Any) -> int:
        """Execute a statement; returns how many rows it touched."""
        ...


class Failure(enum.Enum):
    """What a driver's error means for the one who waits: the single list of what is retryable."""

    CONNECTION_LOST = "reconnect and execute again; it may or may not have been committed"
    CONTENTION = "execute again at once: deadlock, serialization failure, busy database"
    BLOCKED = "a row it needs is locked by somebody's open transaction"
    REFUSED = "the statement itself cannot succeed"
