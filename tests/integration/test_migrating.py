"""Migrations apart from launching: made by an owner, used by a role that may create nothing."""

from __future__ import annotations

import uuid
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from dbos import DBOS, DBOSConfig, run_dbos_database_migrations
from dbos._error import DBOSInitializationError, DBOSSchemaVersionError
from dbos.testing._postgres_server import PostgresServer


def run(config: DBOSConfig) -> str:
    DBOS.destroy(destroy_registry=True)
    DBOS(config={**config, "run_migrations": False, "log_level": "ERROR"})

    @DBOS.transaction()
    def enter() -> int:
        return int(DBOS.sql_session.execute(sa.text("SELECT 1")).scalar_one())

    @DBOS.workflow()
    def workflow() -> str:
        DBOS.set_event("key", enter())
        DBOS.send(DBOS.workflow_id or "", "message")
        return f"{DBOS.recv()} {DBOS.get_event(DBOS.workflow_id or '', 'key')}"

    try:
        DBOS.launch()
        result = workflow()
        DBOS.delete_workflows([status.workflow_id for status in DBOS.list_workflows()])
        return result
    finally:
        DBOS.destroy(destroy_registry=True)


@pytest.mark.postgres
@pytest.mark.parametrize("schema", ["dbos", 'a "schema"'])
def test_a_role_that_owns_nothing_works_after_migrations(postgres_server: PostgresServer, schema: str) -> None:
    role = f"user_{uuid.uuid4().hex}"  # roles belong to the server, and its other databases to other tests
    system, application = postgres_server.create_database(), postgres_server.create_database()
    with psycopg.connect(system, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")

    try:
        for _ in range(2):
            run_dbos_database_migrations(system, app_database_url=application, schema=schema, application_role=role)
        user = str(sa.make_url(system).username)
        urls = [
            url.replace(f"//{user}@", f"//{role}@").replace(f"//{user}:", f"//{role}:") for url in (system, application)
        ]

        assert urls[0] != system
        assert (
            run(
                {
                    "name": "granted",
                    "system_database_url": urls[0],
                    "application_database_url": urls[1],
                    "dbos_system_schema": schema,
                }
            )
            == "message 1"
        )
    finally:
        postgres_server.drop_database(system)
        postgres_server.drop_database(application)
        with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP ROLE {role}".encode())


def test_an_application_that_may_not_migrate_works_on_files_that_were_migrated(tmp_path: Path) -> None:
    config: DBOSConfig = {
        "name": "migrated",
        "system_database_url": f"sqlite:///{tmp_path / 'system.sqlite'}",
        "application_database_url": f"sqlite:///{tmp_path / 'application.sqlite'}",
    }
    system, application = str(config["system_database_url"]), config["application_database_url"]
    with pytest.raises((DBOSSchemaVersionError, DBOSInitializationError)):
        run(config)

    run_dbos_database_migrations(system, app_database_url=application)

    assert run(config) == "message 1"


def test_a_file_knows_no_roles(tmp_path: Path) -> None:
    with pytest.raises(DBOSInitializationError, match="SQLite has no roles, so 'somebody'"):
        run_dbos_database_migrations(f"sqlite:///{tmp_path / 'system.sqlite'}", application_role="somebody")
