"""The PostgreSQL dialect: a system database in one schema."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrDumperUnknown

from dbos._error import DBOSDatabaseUnavailableError
from dbos._migration import create_application_tables, migrate, verify, verify_application_tables
from dbos._schemas.rendering import quote_identifier
from dbos._sysdb.connection import Connection, Failure
from dbos._sysdb.statements import Renderer
from dbos._sysdb.user_connection import UserConnection

from .connection import PREPARE_THRESHOLD, PostgresReader
from .listener import PostgresListener, SilentListener
from .migration import PostgresMigrationTarget, create_database_if_missing, drop_database, grant
from .writer import LOCK_TIMEOUT_MS, PostgresWriter

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["PostgresDialect", "grant_application_tables", "prepare_application_database"]

IDENTITY = """
-- Which table of which database of which server, as long as that runs.
SELECT current_database()::text, to_regclass(:table_name)::oid::bigint,
       (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint
"""

# A peer that vanished without a word (a pulled cable, a failed-over host) is noticed after so long.
KEEPALIVES = {
    "keepalives_idle": "10",  # seconds
    "keepalives_interval": "5",  # seconds
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",  # milliseconds
}

# SQLSTATEs and their classes (https://www.postgresql.org/docs/current/errcodes-appendix.html). What is not listed here
# is refused: repeating it would only fail again.
_LOST_CLASSES = {"08", "53", "58"}  # connection; resources: disk, memory, connections; input and output
_LOST_STATES = {
    "25006",  # read-only transaction: the server was demoted to a standby
    "25P03",  # idle_in_transaction_session_timeout
    "25P04",  # transaction_timeout
    "40003",  # whether it was committed is unknown
    "57P01",  # admin shutdown
    "57P02",  # crash shutdown
    "57P03",  # starting up or shutting down
    "57P05",  # idle_session_timeout
}
_CONTENTION_STATES = {"40001", "40P01"}  # serialization failure, deadlock
# Connection, transaction state, resources, object state, operator, system, internal: not the value's fault.
_OPERATIONAL_CLASSES = {"08", "25", "53", "55", "57", "58", "XX"}
_BLOCKED_STATES = {"55P03"}  # lock_timeout, NOWAIT


class PostgresDialect:
    """A system database in one schema of a PostgreSQL database."""

    name = "postgresql"
    now_ms = "(extract(epoch from clock_timestamp()) * 1000)::bigint"
    has_own_clock = True
    text_size = "octet_length"
    skip_locked = "FOR UPDATE OF w SKIP LOCKED"
    hold = "FOR KEY SHARE"
    # As the index has it.
    contains_attributes = "attributes IS NOT NULL AND CAST(attributes AS jsonb) @> CAST(:attributes AS jsonb)"
    enqueue_order = "enqueue_sequence"
    message_order = "message_sequence"
    # The number of a table of ours tells the schemas of one database apart.
    lock_queue: str | None = (
        "SELECT pg_try_advisory_xact_lock("
        "hashtextextended(:queue_name, (SELECT m.tableoid::bigint FROM dbos.opendbos_migrations m LIMIT 1)))"
    )

    def __init__(
        self,
        conninfo: Mapping[str, str],
        schema: str,
        process_tag: str,
        *,
        may_listen: bool = True,
        prepare_threshold: int | None = PREPARE_THRESHOLD,
    ) -> None:
        self.renderer = Renderer("numbered", quote_identifier(schema) + ".")
        self.process_tag = process_tag
        self.channel = "dbos_" + hashlib.sha256(schema.encode()).hexdigest()[:16]
        self._conninfo = make_conninfo(**{**KEEPALIVES, **conninfo, "client_encoding": "UTF8"})
        self._schema = schema
        self._may_listen = may_listen
        self._prepare_threshold = prepare_threshold

    def rows(self, **types: str) -> str:
        columns = ", ".join(f"{name} {type}" for name, type in types.items())
        return f"json_to_recordset(CAST(:rows AS json)) AS r({columns})"

    def connect(self) -> psycopg.Connection[Any]:
        """Open an autocommit connection whose cursors take ``$1`` placeholders."""
        connection: psycopg.Connection[Any] = psycopg.connect(
            self._conninfo, autocommit=True, cursor_factory=psycopg.RawCursor, prepare_threshold=self._prepare_threshold
        )
        # One integer type: otherwise the size of a value would choose the type, and with it another prepared plan.
        connection.adapters.register_dumper(int, Int8BinaryDumper)
        # Text without a type, so that an array literal can be whatever array the statement says.
        connection.adapters.register_dumper(str, StrDumperUnknown)
        return connection

    def prepare(self, *, may_migrate: bool) -> None:
        if may_migrate:
            create_database_if_missing(self._conninfo)
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            target = PostgresMigrationTarget(connection, schema=self._schema)
            if may_migrate:
                migrate(target)
            else:
                verify(target)

    def grant(self, role: str) -> None:
        grant(self._conninfo, self._schema, role)

    def drop(self) -> None:
        drop_database(self._conninfo)

    def open_writer(self, *, lock_timeout_ms: int | None = None) -> PostgresWriter:
        return PostgresWriter(self, LOCK_TIMEOUT_MS if lock_timeout_ms is None else lock_timeout_ms)

    def has_second_writer(self) -> bool:
        return True

    def open_reader(self) -> PostgresReader:
        return PostgresReader(self.connect(), self.renderer)

    def listener(
        self, on_wakeup: Callable[[str | None], None], poll_writer: Callable[[], None]
    ) -> PostgresListener | SilentListener:
        if not self._may_listen:
            return SilentListener()
        return PostgresListener(self.connect, self.channel, self.process_tag, on_wakeup)

    def adopt(self, connection: sa.Connection) -> UserConnection:
        return UserConnection(connection, self.renderer.text("dbos."))

    def identity(self, connection: Connection) -> object:
        return connection.one(IDENTITY, table_name=self.renderer.text("dbos.workflow_status"))

    def announce(self, connection: UserConnection, topic: str) -> None:
        from sqlalchemy import TwoPhaseTransaction  # loaded by whoever has a connection of it

        # What was prepared cannot notify: the safety nets find it.
        if self._may_listen and not isinstance(connection.connection.get_transaction(), TwoPhaseTransaction):
            # Without a process' tag, so that this one hears it as well.
            connection.one("SELECT pg_notify(:channel, :payload)", channel=self.channel, payload=f":{topic}")

    def check_free(self) -> None:
        """Others can write meanwhile."""

    def classify(self, error: BaseException) -> Failure:
        if not isinstance(error, psycopg.Error):
            return Failure.REFUSED
        state = error.sqlstate
        if state is None:  # libpq's own, not the server's
            is_connection = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
            return Failure.CONNECTION_LOST if is_connection else Failure.REFUSED
        if state in _BLOCKED_STATES:
            return Failure.BLOCKED
        if state in _CONTENTION_STATES:
            return Failure.CONTENTION
        if state in _LOST_STATES or state[:2] in _LOST_CLASSES:
            return Failure.CONNECTION_LOST
        return Failure.REFUSED

    def refuses_value(self, error: BaseException) -> bool:
        if not isinstance(error, psycopg.Error):
            # Before it was sent: the value could not be encoded, unless there is nobody to send it to.
            return not isinstance(error, DBOSDatabaseUnavailableError)
        return error.sqlstate is None or error.sqlstate[:2] not in _OPERATIONAL_CLASSES

    def sqlalchemy_dialect(self) -> sa.Dialect:
        from sqlalchemy.dialects import postgresql  # slow to import, and rarely needed

        return postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


def grant_application_tables(conninfo: Mapping[str, str], schema: str, role: str) -> None:
    """Let a role write the table of transaction records."""
    grant(make_conninfo(**conninfo), schema, role)


def prepare_application_database(conninfo: Mapping[str, str], schema: str, *, may_migrate: bool) -> None:
    """Create or verify the table of transaction records in an application's own database."""
    text = make_conninfo(**conninfo)
    if may_migrate:
        create_database_if_missing(text)
    with psycopg.connect(text, autocommit=True) as connection:
        target = PostgresMigrationTarget(connection, schema=schema)
        (create_application_tables if may_migrate else verify_application_tables)(target)
