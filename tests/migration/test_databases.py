"""Creating and dropping what the tables live in."""

from __future__ import annotations

import logging
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from dbos._error import DBOSInitializationError
from dbos._migration import migrate
from dbos._sysdb.dialects.postgres.migration import create_database_if_missing, drop_database
from dbos._sysdb.dialects.sqlite.migration import SQLiteMigrationTarget, delete_database

if TYPE_CHECKING:
    from .conftest import PostgresScene, SQLiteScene


@pytest.mark.postgres
def test_a_missing_database_is_created_by_one_of_many(postgres_scene: PostgresScene) -> None:
    conninfo = make_conninfo(postgres_scene.conninfo, dbname=f'opendbos "test" 100% {os.getpid()}')
    try:
        with ThreadPoolExecutor(8) as pool:
            created = list(pool.map(create_database_if_missing, [conninfo] * 8))

        assert created.count(True) == 1
        psycopg.connect(conninfo).close()
        assert not create_database_if_missing(conninfo)
    finally:
        drop_database(conninfo)


@pytest.mark.postgres
def test_dropping_a_database_ends_its_sessions(postgres_scene: PostgresScene) -> None:
    conninfo = make_conninfo(postgres_scene.conninfo, dbname=f"opendbos_dropped_{os.getpid()}")
    create_database_if_missing(conninfo)
    with psycopg.connect(conninfo) as connection:
        drop_database(conninfo)
        drop_database(conninfo)

        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_database_that_cannot_be_created_is_a_warning_without_the_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="dbos.migration"):
        created = create_database_if_missing("postgresql://me:secret@127.0.0.1:1/missing?connect_timeout=1")

    assert not created
    assert "database missing could not be created" in caplog.text
    assert "secret" not in caplog.text


def test_deleting_an_sqlite_database_takes_its_journals_along(sqlite_scene: SQLiteScene) -> None:
    sqlite_scene.execute("PRAGMA journal_mode = WAL")
    migrate(sqlite_scene.target())
    assert Path(f"{sqlite_scene.path}-wal").exists()

    delete_database(sqlite_scene.path)
    delete_database(sqlite_scene.path)

    assert sqlite_scene.snapshot() == []


def test_a_file_that_may_not_be_written_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "read-only.sqlite"
    sqlite3.connect(path).close()
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    try:
        with pytest.raises(DBOSInitializationError, match="rights"):
            migrate(SQLiteMigrationTarget(connection))
    finally:
        connection.close()


def test_a_connection_that_opens_transactions_by_itself_is_refused(sqlite_scene: SQLiteScene) -> None:
    connection = sqlite3.connect(sqlite_scene.path)
    try:
        with pytest.raises(ValueError, match="isolation_level"):
            SQLiteMigrationTarget(connection)
    finally:
        connection.close()
