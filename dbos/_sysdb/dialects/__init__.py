"""The dialects, and the one place that chooses between them."""

from __future__ import annotations

from typing import Any

from dbos._database_urls import is_sqlite, libpq_conninfo, sqlite_path
from dbos._dbos_config import Settings
from dbos._migration import MigrationTarget, create_application_tables, verify_application_tables
from dbos._sysdb.dialects.base import Dialect

__all__ = ["grant_application_tables", "open_dialect", "prepare_application_database", "prepare_records"]


def open_dialect(settings: Settings, process_tag: str) -> Dialect:
    """The dialect for the configured system database; nothing is connected yet.

    ``process_tag`` marks this process' notifications, so that it does not hear its own.
    """
    if settings.is_sqlite:
        from dbos._sysdb.dialects.sqlite import SQLiteDialect

        return SQLiteDialect(str(settings.sqlite_path), synchronous=settings.sqlite_synchronous)
    from dbos._sysdb.dialects.postgres import PREPARE_THRESHOLD, PostgresDialect

    connect_args = settings.db_engine_kwargs.get("connect_args", {})
    return PostgresDialect(
        settings.conninfo,
        settings.system_schema,
        process_tag,
        may_listen=settings.use_listen_notify,
        prepare_threshold=connect_args.get("prepare_threshold", PREPARE_THRESHOLD),
    )


def prepare_application_database(settings: Settings, url: str) -> None:
    """Create the table of transaction records in an application database that is not the system database."""
    if is_sqlite(url):
        from dbos._sysdb.dialects import sqlite

        sqlite.prepare_application_database(str(sqlite_path(url)), may_migrate=settings.run_migrations)
    else:
        from dbos._sysdb.dialects import postgres

        conninfo = libpq_conninfo(url, connect_timeout_s=settings.connect_timeout_s)
        postgres.prepare_application_database(conninfo, settings.system_schema, may_migrate=settings.run_migrations)


def grant_application_tables(settings: Settings, url: str, role: str) -> None:
    """Let a role write transaction records in an application database on PostgreSQL."""
    from dbos._sysdb.dialects import postgres

    conninfo = libpq_conninfo(url, connect_timeout_s=settings.connect_timeout_s)
    postgres.grant_application_tables(conninfo, settings.system_schema, role)


def prepare_records(raw: Any, schema: str, *, is_sqlite: bool, may_migrate: bool) -> None:
    """Create or verify the table of transaction records over a driver's connection, which commits by itself."""
    target: MigrationTarget
    if is_sqlite:
        from dbos._sysdb.dialects.sqlite.migration import SQLiteMigrationTarget

        target = SQLiteMigrationTarget(raw)
    else:
        from dbos._sysdb.dialects.postgres.migration import PostgresMigrationTarget

        target = PostgresMigrationTarget(raw, schema=schema)
    (create_application_tables if may_migrate else verify_application_tables)(target)
