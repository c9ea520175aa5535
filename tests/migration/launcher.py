"""Real processes that migrate a database, run by the tests: ``launcher.py URL SCHEMA COUNT [crash] [wal] [freeze]``.

Forks COUNT processes that start at the same instant and prints their exit codes: how many migrations each applied.
With ``crash``, process n has a database of its own (URL or SCHEMA followed by ``_n``) and dies by SIGKILL at the n-th
boundary between statements; with ``wal`` every second process switches the file to WAL first, as the library does.
With ``freeze`` there is one process, which stops itself (SIGSTOP) at boundary COUNT.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import psycopg

from dbos._migration import MigrationTarget, migrate
from dbos._sysdb.dialects.postgres.migration import PostgresMigrationTarget
from dbos._sysdb.dialects.sqlite.migration import SQLiteMigrationTarget

FAILED = 100  # an exit code that is no number of migrations
NEVER = -1

crash_at = freeze_at = NEVER
boundaries_passed = 0


def boundary() -> None:
    global boundaries_passed
    if boundaries_passed == crash_at:
        os.kill(os.getpid(), signal.SIGKILL)
    if boundaries_passed == freeze_at:
        os.kill(os.getpid(), signal.SIGSTOP)
    boundaries_passed += 1


class CrashingSQLiteTarget(SQLiteMigrationTarget):
    def execute(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        boundary()
        return super().execute(sql, parameters)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with super().transaction():
            yield
            boundary()
        boundary()


class CrashingPostgresTarget(PostgresMigrationTarget):
    def execute(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        boundary()
        return super().execute(sql, parameters)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with super().transaction():
            yield
            boundary()
        boundary()


def switch_to_wal(connection: sqlite3.Connection) -> None:
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            time.sleep(0.005)


def run(url: str, schema: str, *, wal: bool) -> int:
    target: MigrationTarget
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=0)
        if wal:
            switch_to_wal(connection)
        target = CrashingSQLiteTarget(connection)
    else:
        target = CrashingPostgresTarget(psycopg.connect(url, autocommit=True), schema=schema)
    return migrate(target)


def run_child(url: str, schema: str, number: int, start: int, options: list[str]) -> NoReturn:
    global crash_at
    code = FAILED
    try:
        if "crash" in options:
            crash_at = number
            url, schema = (f"{url}_{number}", schema) if url.startswith("sqlite") else (url, f"{schema}_{number}")
        os.read(start, 1)  # returns for all at once, when the parent closes the other end
        code = run(url, schema, wal="wal" in options and number % 2 == 0)
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def main(url: str, schema: str, count: str, *options: str) -> None:
    global freeze_at
    if "freeze" in options:
        freeze_at = int(count)
        print(run(url, schema, wal=False))
        return
    start, release = os.pipe()
    children = []
    for number in range(int(count)):
        child = os.fork()
        if child == 0:
            os.close(release)
            run_child(url, schema, number, start, list(options))
        children.append(child)
    os.close(release)
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == "__main__":
    main(*sys.argv[1:])
