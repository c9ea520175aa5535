from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
import sqlalchemy as sa

from dbos._migration import MigrationTarget
from dbos._sysdb.dialects.postgres.migration import PostgresMigrationTarget
from dbos._sysdb.dialects.sqlite.migration import SQLiteMigrationTarget

LAUNCHER = Path(__file__).with_name("launcher.py")


class Scene(Protocol):
    """An empty database of either kind, and what the tests do to it besides migrating it."""

    @property
    def dialect(self) -> str: ...

    @property
    def schema(self) -> str | None: ...

    def target(self, lock_wait_s: float = 60) -> MigrationTarget:
        """Open a connection of its own."""
        ...

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement as somebody else would."""
        ...

    def snapshot(self) -> object:
        """All of the database that a refusal must leave unchanged."""
        ...

    def catalog(self) -> dict[str, str]:
        """The definitions of tables and indexes by name."""
        ...

    def hold_lock(self) -> None:
        """Keep the migration lock until the test ends."""
        ...

    def engine(self) -> sa.Engine:
        """A plain SQLAlchemy engine, as users make it."""
        ...

    def launch(self, count: int, *options: str) -> list[int]:
        """Migrate in real processes; returns their exit codes, see launcher.py."""
        ...

    def freeze(self, boundary: int) -> subprocess.Popen[str]:
        """Migrate in a real process that stops itself at a boundary; returns it when it has stopped."""
        ...

    def sibling(self, number: int) -> Scene:
        """The database of a launched process that has one of its own."""
        ...


def launch(url: str, schema: str, count: int, options: tuple[str, ...]) -> list[int]:
    launcher = subprocess.run(
        [sys.executable, str(LAUNCHER), url, schema, str(count), *options],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert launcher.stderr == ""
    return [int(code) for code in launcher.stdout.split()]


def freeze(url: str, schema: str, boundary: int, at_end: ExitStack) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(LAUNCHER), url, schema, str(boundary), "freeze"],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
    )
    at_end.enter_context(process)
    at_end.callback(process.kill)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"it ended before boundary {boundary}"
    return process


class SQLiteScene:
    dialect = "sqlite"
    schema = None

    def __init__(self, url: str, closing_at_end: ExitStack) -> None:
        self.url = url
        self.path = Path(url.removeprefix("sqlite:///"))
        self._at_end = closing_at_end

    def _connect(self) -> sqlite3.Connection:
        return self._at_end.enter_context(
            closing(sqlite3.connect(self.path, isolation_level=None, check_same_thread=False))
        )

    def target(self, lock_wait_s: float = 60) -> MigrationTarget:
        connection = self._connect()
        connection.execute("PRAGMA busy_timeout = 0")
        return SQLiteMigrationTarget(connection, lock_wait_s=lock_wait_s)

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        return self._connect().execute(sql.replace("dbos.", "")).fetchall()

    def snapshot(self) -> object:
        return sorted((file.name, file.read_bytes()) for file in self.path.parent.glob(f"{self.path.name}*"))

    def catalog(self) -> dict[str, str]:
        return dict(self.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))

    def hold_lock(self) -> None:
        self._connect().execute("BEGIN IMMEDIATE")

    def engine(self) -> sa.Engine:
        engine = sa.create_engine(self.url)
        self._at_end.callback(engine.dispose)
        return engine

    def launch(self, count: int, *options: str) -> list[int]:
        return launch(self.url, "", count, options)

    def freeze(self, boundary: int) -> subprocess.Popen[str]:
        return freeze(self.url, "", boundary, self._at_end)

    def sibling(self, number: int) -> Scene:
        return SQLiteScene(f"{self.url}_{number}", self._at_end)


class PostgresScene:
    dialect = "postgres"

    def __init__(self, url: str, closing_at_end: ExitStack, schema: str = "dbos") -> None:
        self.conninfo = url.replace("postgresql+psycopg://", "postgresql://")
        self.schema = schema
        self._at_end = closing_at_end

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        return self._at_end.enter_context(closing(psycopg.connect(self.conninfo, autocommit=True)))

    def target(self, lock_wait_s: float = 60) -> MigrationTarget:
        return PostgresMigrationTarget(self._connect(), schema=self.schema, lock_wait_s=lock_wait_s)

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        quoted = self.schema.replace('"', '""')
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            cursor = connection.execute(sql.replace("dbos.", f'"{quoted}".'))
            return cursor.fetchall() if cursor.description else []

    def snapshot(self) -> object:
        return self.execute(
            """
            SELECT namespace.nspname, class.relname, class.relkind, class.oid, attribute.attname, attribute.atttypid
            FROM pg_namespace AS namespace
            LEFT JOIN pg_class AS class ON class.relnamespace = namespace.oid
            LEFT JOIN pg_attribute AS attribute ON attribute.attrelid = class.oid
            WHERE namespace.nspname NOT LIKE 'pg@_%' ESCAPE '@' AND namespace.nspname <> 'information_schema'
            ORDER BY 1, 2, 5
            """
        )

    def catalog(self) -> dict[str, str]:
        with psycopg.connect(self.conninfo) as connection:
            rows = connection.execute(
                """
                SELECT
                    class.relname,
                    coalesce(
                        pg_get_indexdef(index.indexrelid),
                        concat(
                            class.reloptions,
                            (
                                SELECT string_agg(
                                    concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull,
                                              pg_get_expr(adbin, adrelid)), ', ' ORDER BY attnum)
                                FROM pg_attribute
                                LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
                                WHERE attrelid = class.oid AND attnum > 0
                            )
                        )
                    )
                FROM pg_class AS class
                LEFT JOIN pg_index AS index ON index.indexrelid = class.oid
                WHERE class.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s)
                """,
                [self.schema],
            ).fetchall()
        return dict(rows)

    def hold_lock(self) -> None:
        self._at_end.enter_context(PostgresMigrationTarget(self._connect(), schema=self.schema).transaction())

    def engine(self) -> sa.Engine:
        engine = sa.create_engine(self.conninfo.replace("postgresql://", "postgresql+psycopg://"))
        self._at_end.callback(engine.dispose)
        return engine

    def launch(self, count: int, *options: str) -> list[int]:
        return launch(self.conninfo, self.schema, count, options)

    def freeze(self, boundary: int) -> subprocess.Popen[str]:
        return freeze(self.conninfo, self.schema, boundary, self._at_end)

    def sibling(self, number: int) -> Scene:
        return PostgresScene(self.conninfo, self._at_end, f"{self.schema}_{number}")


@pytest.fixture
def at_end() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def sqlite_scene(sqlite_url: str, at_end: ExitStack) -> SQLiteScene:
    return SQLiteScene(sqlite_url, at_end)


@pytest.fixture
def postgres_scene(postgres_url: str, at_end: ExitStack) -> PostgresScene:
    return PostgresScene(postgres_url, at_end)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def scene(request: pytest.FixtureRequest) -> Scene:
    found: Scene = request.getfixturevalue(f"{request.param}_scene")
    return found
