"""The system database's schema: plan, lock, apply, verify.

A launch calls :func:`migrate`, or :func:`verify` where it may not change tables. What the numbered files in
``_schemas/migrations`` have done to a database is recorded in the table ``opendbos_migrations`` of the same schema.

The decisions worth knowing:

- A migration and its record are one transaction, in which one process is at a time. The record is written first, so
  those who waited find it and step aside; a crash at any instant leaves all of a migration or nothing.
- A database that is up to date costs one read and no lock, so a frozen process that holds the lock stops nobody else.
- A recorded checksum that differs from ours is a warning. The migration cannot run again, and refusing to start would
  stop an application because somebody ran a development build; comments and blanks do not count.
- A migration refuses to run if a table that it or a later one creates is already there: ``IF NOT EXISTS`` would take
  over a table that belongs to somebody else.

No database driver is imported here. A :class:`MigrationTarget` is what the dialects implement over a raw connection.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Protocol

from dbos._error import DBOSForeignDatabaseError, DBOSInitializationError, DBOSSchemaVersionError
from dbos._schemas.rendering import split_statements

__all__ = [
    "Migration",
    "MigrationTarget",
    "create_application_tables",
    "load_migrations",
    "migrate",
    "verify",
    "verify_application_tables",
]

logger = logging.getLogger("dbos.migration")

BOOKKEEPING_TABLE = "opendbos_migrations"
FOREIGN_TABLE = "dbos_migrations"  # the bookkeeping of the other library that uses our table names

CREATE_BOOKKEEPING = """
-- Which migrations this schema has seen; present if and only if the schema is ours.
CREATE TABLE IF NOT EXISTS dbos.opendbos_migrations (
    version integer NOT NULL PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at bigint NOT NULL
)
"""

RECORD_MIGRATION = """
-- Claim a migration; no row comes back if another process has applied it meanwhile.
INSERT INTO dbos.opendbos_migrations (version, name, checksum, applied_at)
VALUES (:version, :name, :checksum, :now_ms)
ON CONFLICT (version) DO NOTHING
RETURNING version
"""

LIST_MIGRATIONS = """
-- All that was ever applied; a handful of rows.
SELECT version, checksum
FROM dbos.opendbos_migrations
"""

# Columns that came after the first form of the table, with the types both databases know them by.
TRANSACTION_OUTPUTS_ADDED_COLUMNS = {
    "function_name": "text NOT NULL DEFAULT ''",
    "start_token": "text",
    "serialization": "text",
}

_CREATED_TABLE = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?dbos\.(\w+)")
_MIGRATION_FILE = re.compile(r"(\d{4})_(\w+)\.sql")


class MigrationTarget(Protocol):
    """A schema of one database, reached over a connection that nobody else uses meanwhile.

    Statements are written as everywhere: ``dbos.`` before a table, ``:name`` for a parameter.
    """

    @property
    def dialect(self) -> str:
        """The folder of the SQL files that are written for it."""
        ...

    @property
    def database(self) -> str:
        """What to call it in a message to an operator; holds no password."""
        ...

    def execute(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Execute one statement and return its rows, if it has any."""
        ...

    def columns(self, table: str) -> list[str]:
        """The columns of a table or view in order; empty if there is none of that name."""
        ...

    def create_schema(self) -> None:
        """Create the schema unless it exists, however many processes do so at once."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """Commit what is executed inside as a whole, or nothing of it if the block raises.

        One process at a time is inside, for the schema; the others wait within a bound.

        Raises:
            DBOSInitializationError: Another process was inside all the time.
        """
        ...

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        ...


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered SQL file."""

    version: int
    name: str
    statements: tuple[str, ...]

    @property
    def checksum(self) -> str:
        """A hash of the statements in which comments and white space do not count."""
        text = ";".join(" ".join(statement.split()) for statement in self.statements)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def created_tables(self) -> list[str]:
        """The tables that must not exist before it runs."""
        return [match[1] for statement in self.statements if (match := _CREATED_TABLE.match(statement))]


@cache
def load_migrations(dialect: str) -> tuple[Migration, ...]:
    """The migrations this release brings along for ``dialect``, in order."""
    migrations = [
        Migration(int(match[1]), match[2], split_statements(file.read_text(encoding="utf-8")))
        for file in resources.files("dbos._schemas").joinpath("migrations", dialect).iterdir()
        if (match := _MIGRATION_FILE.fullmatch(file.name))
    ]
    return tuple(sorted(migrations, key=lambda migration: migration.version))


def migrate(target: MigrationTarget, migrations: Sequence[Migration] | None = None) -> int:
    """Bring the system database up to date; returns how many migrations were applied here.

    Any number of processes may call it at once on any state of the database, and again after a crash at any instant.
    ``migrations`` stands in for the ones of this release.

    Raises:
        DBOSSchemaVersionError: The schema is newer than this release; it is left unchanged.
        DBOSForeignDatabaseError: The schema, or a table with a name of ours, is somebody else's; it is left unchanged.
        DBOSInitializationError: Another process was migrating all the time, or a right is missing.
    """
    known = load_migrations(target.dialect) if migrations is None else migrations
    pending = _pending(target, known)
    return sum(_apply(target, pending[number:]) for number in range(len(pending)))


def verify(target: MigrationTarget, migrations: Sequence[Migration] | None = None) -> None:
    """Check without writing that the system database is one this release can use.

    Raises:
        DBOSSchemaVersionError: The schema is newer than this release, or a migration is missing.
        DBOSForeignDatabaseError: The schema belongs to another library.
    """
    known = load_migrations(target.dialect) if migrations is None else migrations
    pending = _pending(target, known)
    if pending:
        # The version up to which nothing is missing: what a later one recorded alone is of no use.
        raise DBOSSchemaVersionError(target.database, found=pending[0].version - 1, supported=known[-1].version)


def create_application_tables(target: MigrationTarget) -> None:
    """Create the table of transaction records in an application's database, or add the columns it lacks.

    Nothing is locked or written where it is complete.
    """
    if _missing_application_columns(target) == []:
        return
    target.create_schema()
    with target.transaction():
        for statement in _application_statements(target.dialect):
            target.execute(statement)
        for column in _missing_application_columns(target) or []:
            declaration = f"{column} {TRANSACTION_OUTPUTS_ADDED_COLUMNS[column]}"
            target.execute(f"ALTER TABLE dbos.transaction_outputs ADD COLUMN {declaration}")


def verify_application_tables(target: MigrationTarget) -> None:
    """Check without writing that transactions can be recorded in an application's database.

    Raises:
        DBOSInitializationError: The table or one of its columns is missing.
    """
    if _missing_application_columns(target) != []:
        raise DBOSInitializationError(
            f"The application database {target.database} has no complete table transaction_outputs. "
            "Run `dbos migrate` with a role that may create tables, then start again."
        )


def _pending(target: MigrationTarget, known: Sequence[Migration]) -> list[Migration]:
    recorded = _recorded_checksums(target)
    newest = max(recorded, default=0)
    if newest > known[-1].version:
        raise DBOSSchemaVersionError(target.database, found=newest, supported=known[-1].version)
    for migration in known:
        if recorded.get(migration.version, migration.checksum) != migration.checksum:
            logger.warning(
                "migration %s of %s was applied from another text than this release has",
                migration.version,
                target.database,
                extra={"migration": migration.name},
            )
    return [migration for migration in known if migration.version not in recorded]


def _recorded_checksums(target: MigrationTarget) -> dict[int, str]:
    if target.columns(BOOKKEEPING_TABLE):
        return {int(version): str(checksum) for version, checksum in target.execute(LIST_MIGRATIONS)}
    if target.columns(FOREIGN_TABLE):
        raise DBOSForeignDatabaseError(target.database, f"it has a table {FOREIGN_TABLE}")
    return {}


def _apply(target: MigrationTarget, pending: Sequence[Migration]) -> bool:
    """Apply the first of ``pending`` together with its record; False if another process did meanwhile.

    None of it is applied if a later one would be refused: a database that is not ours to use stays as it was.
    """
    migration = pending[0]
    target.create_schema()
    with target.transaction():
        target.execute(CREATE_BOOKKEEPING)
        is_ours = target.execute(
            RECORD_MIGRATION,
            {
                "version": migration.version,
                "name": migration.name,
                "checksum": migration.checksum,
                "now_ms": target.now_ms(),
            },
        )
        if not is_ours:
            return False
        for table in (table for each in pending for table in each.created_tables):
            if target.columns(table):
                raise DBOSForeignDatabaseError(target.database, f"it already has a table {table}")
        for statement in migration.statements:
            target.execute(statement)
    logger.info("applied migration %s (%s) to %s", migration.version, migration.name, target.database)
    return True


def _missing_application_columns(target: MigrationTarget) -> list[str] | None:
    """The columns to add to the table of transaction records; None if there is no such table."""
    present = target.columns("transaction_outputs")
    if not present:
        return None
    if not {"workflow_uuid", "function_id", "output", "error", "created_at"}.issubset(present):
        raise DBOSInitializationError(
            f"The application database {target.database} has a table transaction_outputs of another make. "
            "Rename that table or choose another database or schema; it was left unchanged."
        )
    return [column for column in TRANSACTION_OUTPUTS_ADDED_COLUMNS if column not in present]


def _application_statements(dialect: str) -> tuple[str, ...]:
    file = resources.files("dbos._schemas").joinpath("migrations", dialect, "transaction_outputs.sql")
    return split_statements(file.read_text(encoding="utf-8"))
