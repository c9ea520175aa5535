"""Migrating a PostgreSQL schema; creating and dropping the database around it."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import tuple_row

from dbos._clock import Clock, SystemClock
from dbos._error import DBOSInitializationError
from dbos._schemas.rendering import DEFAULT_SCHEMA, qualify, quote_identifier

__all__ = ["PostgresMigrationTarget", "create_database_if_missing", "drop_database", "grant"]

logger = logging.getLogger("dbos.migration")

LOCK_WAIT_S = 60.0  # a migration takes a second; twenty processes that start at once wait for the first only
MAINTENANCE_DATABASE = "postgres"
CONNECT_TIMEOUT_S = 10

SCHEMA_EXISTS = """
-- Asked first, because CREATE SCHEMA IF NOT EXISTS needs its right even where nothing is to be created.
SELECT 1
FROM pg_catalog.pg_namespace
WHERE nspname = :schema
"""

LIST_COLUMNS = """
-- Empty for a table that does not exist. From the catalog, which needs no right on the schema.
SELECT attribute.attname
FROM pg_catalog.pg_attribute AS attribute
JOIN pg_catalog.pg_class AS class ON class.oid = attribute.attrelid
JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
WHERE namespace.nspname = :schema
  AND class.relname = :table
  AND attribute.attnum > 0
  AND NOT attribute.attisdropped
ORDER BY attribute.attnum
"""

TAKE_LOCK = "SELECT pg_catalog.pg_advisory_xact_lock(:key)"
SET_LOCK_TIMEOUT = "SELECT pg_catalog.set_config('lock_timeout', :value, true)"  # until the transaction ends

FIND_LOCK_HOLDER = """
-- Who holds an advisory lock; a 64-bit key is shown in two halves.
SELECT activity.pid, activity.application_name
FROM pg_catalog.pg_locks AS lock
JOIN pg_catalog.pg_stat_activity AS activity ON activity.pid = lock.pid
WHERE lock.locktype = 'advisory'
  AND lock.granted
  AND lock.objsubid = 1
  AND (lock.classid::bigint << 32) | lock.objid::bigint = :key
"""

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")


class PostgresMigrationTarget:
    """A migration target over a psycopg connection with ``autocommit=True``, for one schema.

    The lock belongs to the transaction, not to the session: a session's lock would outlive its process inside a
    connection pooler, and the next release would wait for nobody.
    """

    dialect = "postgres"

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        *,
        schema: str = DEFAULT_SCHEMA,
        clock: Clock | None = None,
        lock_wait_s: float = LOCK_WAIT_S,
    ) -> None:
        if not connection.autocommit:
            raise ValueError("Open the connection with autocommit=True: transactions are explicit here.")
        self._quoted_schema = quote_identifier(schema)
        self._connection = connection
        self._schema = schema
        self._clock = SystemClock() if clock is None else clock
        self._lock_wait_s = lock_wait_s

    @property
    def database(self) -> str:
        """The database's name and the schema's."""
        return f"{self._connection.info.dbname} (schema {self._quoted_schema})"

    def execute(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Execute one statement and return its rows, if it has any."""
        numbers: dict[str, int] = {}
        # Parameters first: what follows a colon in the schema's name is not one. ``$1`` instead of psycopg's own
        # ``%(name)s`` for the same reason: the name may hold a percent sign.
        template = _PARAMETER.sub(lambda match: f"${numbers.setdefault(match[1], len(numbers) + 1)}", sql)
        return self._run(qualify(template, self._schema), [(parameters or {})[name] for name in numbers])

    def columns(self, table: str) -> list[str]:
        """The columns of a table in order."""
        return [name for (name,) in self.execute(LIST_COLUMNS, {"schema": self._schema, "table": table})]

    def create_schema(self) -> None:
        """Create the schema unless it exists."""
        if self.execute(SCHEMA_EXISTS, {"schema": self._schema}):
            return
        try:
            self._run(f"CREATE SCHEMA IF NOT EXISTS {self._quoted_schema}")
        except (errors.UniqueViolation, errors.DuplicateSchema):
            # Two who create it at once both find it missing; the second meets the catalog's unique index.
            logger.debug("another process created schema %s", self._quoted_schema)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold an advisory lock of our own for this schema, which ends with the transaction."""
        with self._connection.transaction():
            self._take_lock()
            try:
                yield
            except errors.LockNotAvailable as error:  # the bound of our lock holds for tables that are altered, too
                raise DBOSInitializationError(
                    f"A table of database {self.database} stayed locked by others for {self._lock_wait_s:g} s. "
                    "Look in pg_stat_activity for one that holds a transaction open and end it, then start again."
                ) from error

    def now_ms(self) -> int:
        """Milliseconds since 1970, by the clock given."""
        return self._clock.now_ms()

    def _run(self, text: str, values: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        try:
            with psycopg.RawCursor(self._connection, row_factory=tuple_row) as cursor:
                cursor.execute(text, values or None)
                return cursor.fetchall() if cursor.description else []
        except errors.InsufficientPrivilege as error:
            raise DBOSInitializationError(
                f"A right is missing in database {self.database}: {error}. Run `dbos migrate` with a role that has it; "
                "with run_migrations=False a launch only checks the tables."
            ) from error

    def _take_lock(self) -> None:
        key = _lock_key(self._schema)
        try:
            with self._connection.transaction():  # a savepoint: the holder is asked for below
                self.execute(SET_LOCK_TIMEOUT, {"value": f"{max(1, round(self._lock_wait_s * 1000))}ms"})
                self.execute(TAKE_LOCK, {"key": key})
        except errors.LockNotAvailable as error:
            holders = self.execute(FIND_LOCK_HOLDER, {"key": key})
            held_by = ", ".join(f"backend {pid} ({name or 'no application name'})" for pid, name in holders)
            raise DBOSInitializationError(
                f"Another process has been migrating database {self.database} for {self._lock_wait_s:g} s: "
                f"{held_by or 'it has just ended'}. Wait for it or end it with pg_terminate_backend, then start again."
            ) from error


def create_database_if_missing(conninfo: str) -> bool:
    """Create the database that ``conninfo`` names, unless a connection to it succeeds; returns whether it was created.

    Works through the server's database ``postgres``. Failure is a warning only: the connection that is opened next
    says better what is wrong.
    """
    name = _database_name(conninfo)
    try:
        _connect(conninfo, name).close()
        return False
    except psycopg.OperationalError:
        logger.debug("database %s cannot be reached yet", name)
    try:
        with _connect(conninfo, MAINTENANCE_DATABASE) as connection:
            if connection.execute("SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s", [name]).fetchone():
                return False
            connection.execute(f"CREATE DATABASE {quote_identifier(name)}")
    except (errors.DuplicateDatabase, errors.UniqueViolation):
        return False  # another process was faster
    except psycopg.Error as error:
        logger.warning("database %s could not be created: %s", name, error)
        return False
    logger.info("created database %s", name)
    return True


def grant(conninfo: str, schema: str, role: str) -> None:
    """Let a role that owns nothing work in a schema, also with what later migrations create there."""
    name, grantee = quote_identifier(schema), quote_identifier(role)
    rights = (("ALL", "TABLES"), ("ALL", "SEQUENCES"), ("EXECUTE", "FUNCTIONS"))
    with psycopg.connect(conninfo, autocommit=True) as connection, connection.transaction():
        connection.execute(f"GRANT USAGE ON SCHEMA {name} TO {grantee}")
        for right, objects in rights:
            connection.execute(f"GRANT {right} ON ALL {objects} IN SCHEMA {name} TO {grantee}")
            connection.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA {name} GRANT {right} ON {objects} TO {grantee}")


def drop_database(conninfo: str) -> None:
    """Drop the database that ``conninfo`` names, ending its sessions; no database is fine too."""
    name = quote_identifier(_database_name(conninfo))
    with _connect(conninfo, MAINTENANCE_DATABASE) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _database_name(conninfo: str) -> str:
    return str(conninfo_to_dict(conninfo).get("dbname") or "")


def _connect(conninfo: str, database: str) -> psycopg.Connection[tuple[Any, ...]]:
    timeout = conninfo_to_dict(conninfo).get("connect_timeout", CONNECT_TIMEOUT_S)
    return psycopg.connect(conninfo, autocommit=True, dbname=database, connect_timeout=timeout)


def _lock_key(schema: str) -> int:
    """The same 64 bits for a schema's name in every process and release; advisory locks are per database."""
    digest = hashlib.sha256(b"opendbos migration of schema " + schema.encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
