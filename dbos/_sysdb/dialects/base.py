"""What the two databases do differently, as one protocol of whole verbs.

Everything above asks for a verb and gets it done; nothing above asks which database it talks to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from dbos._sysdb.committer import Writer
from dbos._sysdb.connection import Connection, Failure
from dbos._sysdb.user_connection import UserConnection

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["Dialect", "FencedWriter", "Listener", "Reader"]


class Reader(Connection, Protocol):
    """A connection that only reads; each statement sees what is committed when it begins."""

    def limited(self, timeout_s: float) -> AbstractContextManager[None]:
        """Stop each statement of the block that takes longer; the connection may be of no use after that.

        Raises:
            DBOSQueryTimeoutError: one was stopped.
        """
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """Let all statements of the block see what was committed when the first of them began."""
        ...

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
    #: A function of SQL: how large a text is, in bytes or characters, told without reading more of it than must be.
    text_size: str
    #: A clause that keeps a row from being deleted before the end of the transaction, and lets others change it.
    hold: str
    #: A column of ``notifications`` that is in the order of sending.
    message_order: str
    #: A condition on ``workflow_status``: its attributes contain all that is in ``:attributes``, a JSON object.
    contains_attributes: str
    #: A column of ``workflow_status`` that is in the order of enqueueing.
    enqueue_order: str
    #: A statement that locks the queue ``:queue_name`` until the end of the transaction, and tells whether it could: it
    #: waits for nobody. None where a transaction that writes is the only one anyway.
    lock_queue: str | None

    def rows(self, **types: str) -> str:
        """An item for ``FROM``: the rows of the parameter ``:rows``, a JSON array of objects, named ``r``.

        ``types`` are ``text`` or ``bigint``, by column.
        """
        ...

    def prepare(self, *, may_migrate: bool) -> None:
        """Create the database and bring its schema up to date, or only verify it.

        Raises:
            DBOSSchemaVersionError: the schema is newer than this code, or older and ``may_migrate`` is False.
            DBOSForeignDatabaseError: the database belongs to another library.
        """
        ...

    def grant(self, role: str) -> None:
        """Let a role of the database server that owns nothing work with the tables, now and after later migrations.

        Raises:
            DBOSInitializationError: this database has no roles.
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

    def adopt(self, connection: sa.Connection) -> UserConnection:
        """A connection of the user's to this database, ready to be written with."""
        ...

    def identity(self, connection: Connection) -> object:
        """What tells the database that a connection leads to from all others, while it is open."""
        ...

    def announce(self, connection: UserConnection, topic: str) -> None:
        """Have the commit of a user's transaction tell all processes that something happened under ``topic``."""
        ...

    def check_free(self) -> None:
        """Refuse to wait for a transaction that the caller has open, where only one can write at a time.

        Raises:
            DBOSException: it would wait for ever.
        """
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
