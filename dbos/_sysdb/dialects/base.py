"""What the two databases do differently, as one protocol of whole verbs.

Everything above asks for a verb and gets it done; nothing above asks which database it talks to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from dbos._sysdb.committer import Writer
from dbos._sysdb.connection import Connection, Failure

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["Dialect", "FencedWriter", "Listener", "Reader"]


class Reader(Connection, Protocol):
    """A connection that only reads; each statement sees what is committed when it begins."""

    def close(self) -> None:
        """Close the connection."""
        ...


class FencedWriter(Writer, Protocol):
    """A writer whose fenced operations are refused once ``instance_id`` has lost its row."""

    instance_id: str | None


class Listener(Protocol):
    """Hears of commits that other processes made."""

    def start(self) -> None:
        """Begin to listen. Nothing is missed: once it listens, it says that anything may have happened before."""
        ...

    def publish(self, topic: str) -> None:
        """Tell other processes, soon and after the commit, that something happened under ``topic``."""
        ...

    def stop(self) -> None:
        """Stop listening."""
        ...


class Dialect(Protocol):
    """One database engine, bound to one database."""

    name: str
    #: A SQL expression: the time, in milliseconds since the epoch, by the clock that all processes share.
    now_ms: str
    #: Whether that clock is the database server's rather than this machine's.
    has_own_clock: bool
    #: A clause that lets a claim pass over rows which another claim has locked.
    skip_locked: str

    def prepare(self, *, may_migrate: bool) -> None:
        """Create the database and bring its schema up to date, or only verify it.

        Raises:
            DBOSSchemaVersionError: the schema is newer than this code, or older and ``may_migrate`` is False.
            DBOSForeignDatabaseError: the database belongs to another library.
        """
        ...

    def drop(self) -> None:
        """Delete the system database."""
        ...

    def open_writer(self, *, lock_timeout_ms: int | None = None) -> FencedWriter:
        """Open a connection for a committer."""
        ...

    def has_second_writer(self) -> bool:
        """Whether a second connection can commit while the first one waits."""
        ...

    def open_reader(self) -> Reader:
        """Open a connection for reading."""
        ...

    def listener(self, on_wakeup: Callable[[str | None], None], poll_writer: Callable[[], None]) -> Listener:
        """A listener that calls ``on_wakeup`` with a topic, or with None when anything may have happened."""
        ...

    def classify(self, error: BaseException) -> Failure:
        """What a driver's error means."""
        ...

    def refuses_value(self, error: BaseException) -> bool:
        """Whether a write that was refused failed for the very value it carries, and always will."""
        ...

    def sqlalchemy_dialect(self) -> sa.Dialect:
        """For compiling the few dynamic statements."""
        ...
