"""Bringing databases up to date apart from launching: by whoever may create tables, for those who may only use them."""

from __future__ import annotations

from dbos._database_urls import is_sqlite
from dbos._dbos_config import DBOSConfig, process_config
from dbos._sysdb.dialects import grant_application_tables, open_dialect, prepare_application_database

__all__ = ["run_dbos_database_migrations"]


def run_dbos_database_migrations(
    system_database_url: str,
    *,
    app_database_url: str | None = None,
    schema: str = "dbos",
    application_role: str | None = None,
) -> None:
    """Create or bring up to date the tables that an application needs, as its launch would; twice is fine.

    For deployments in which the application itself may not create tables; it then has ``run_migrations`` set to False.

    Args:
        system_database_url: The system database, created if it is missing.
        app_database_url: The database of the application's transactions, if it is another one.
        schema: The schema of the tables, on PostgreSQL.
        application_role: A role of the PostgreSQL server that is allowed to use the tables.

    Raises:
        DBOSInitializationError: a URL or the role cannot be used.
        DBOSSchemaVersionError: the database was made by a newer release.
        DBOSForeignDatabaseError: the database belongs to another library.

    Example:
        ```python
        run_dbos_database_migrations("postgresql://owner@localhost/shop", application_role="shop")
        ```
    """
    config: DBOSConfig = {
        "name": "migrations",
        "system_database_url": system_database_url,
        "dbos_system_schema": schema,
    }
    if app_database_url is not None:
        config["application_database_url"] = app_database_url
    settings = process_config(config, {})
    dialect = open_dialect(settings, process_tag="migrations")
    dialect.prepare(may_migrate=True)
    if application_role is not None:
        dialect.grant(application_role)
    if app_database_url is None or settings.has_one_database:
        return
    prepare_application_database(settings, app_database_url)
    if application_role is not None and not is_sqlite(app_database_url):
        grant_application_tables(settings, app_database_url, application_role)
