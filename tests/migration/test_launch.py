"""Launching an application on a database that is older or newer, that may not be changed, or that another one uses."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy as sa

from dbos import DBOS, DBOSConfig, SetWorkflowID
from dbos._error import DBOSForeignDatabaseError, DBOSSchemaVersionError
from dbos._migration import load_migrations, migrate, verify
from dbos._types import WorkflowStatusString
from tests.integration.crashes import Crash
from tests.integration.histories import change, eventually, recorded, row

if TYPE_CHECKING:
    from .conftest import Scene

ODD_SCHEMA = 'a"b%s;ü :id $1 \\:c::d'

FAR_FUTURE_MS = 32_503_680_000_000  # the year 3000

# Rows as the first release wrote them.
EXECUTOR_OF_VERSION_1 = f"""
INSERT INTO dbos.executor_instances (
    instance_id, executor_id, application_version, hostname, boot_id, pid_namespace, pid, process_started_at, heartbeat,
    lease_ms, started_at, heartbeat_at)
VALUES ('alive', 'other', 'test', 'elsewhere', 'b', 'n', 1, 's', 7, {FAR_FUTURE_MS}, 1, 1)
"""
WORKFLOW_OF_VERSION_1 = """
INSERT INTO dbos.workflow_status (
    workflow_uuid, status, name, inputs, serialization, executor_id, application_version, recovery_attempts)
VALUES ('{0}', '{0}', 'work', '{{"args":[3],"kwargs":{{}}}}', 'json', 'other', 'test', 1)
"""
WHAT_ELSE_A_STATUS_SETS = {
    "SUCCESS": "output = '9', outcome_serialization = 'json', completed_at = 5",
    "PENDING": "owner_instance = 'alive', run_token = 't'",
    "ENQUEUED": "queue_name = '_dbos_internal_queue'",
    "DELAYED": f"queue_name = '_dbos_internal_queue', delay_until_epoch_ms = {FAR_FUTURE_MS}",
}


@contextmanager
def launched(config: DBOSConfig) -> Iterator[type[DBOS]]:
    DBOS.destroy()
    DBOS(config=config)
    try:
        DBOS.launch()
        yield DBOS
    finally:
        DBOS.destroy()


@pytest.fixture
def registry() -> Iterator[None]:
    """What a test decorates is gone when it ends."""
    DBOS.destroy(destroy_registry=True)
    yield
    DBOS.destroy(destroy_registry=True)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("run_migrations", [True, False])
@pytest.mark.parametrize("condition", ["newer", "foreign"])
def test_a_launch_on_a_database_that_is_not_ours_to_use_leaves_it_and_the_process_as_they_were(
    config: DBOSConfig, condition: str, run_migrations: bool
) -> None:
    with launched(config):
        if condition == "newer":
            change(
                "INSERT INTO dbos.opendbos_migrations (version, name, checksum, applied_at) "
                "VALUES (999, 'of a later release', 'x', 1)"
            )
        else:
            change("CREATE TABLE dbos.dbos_migrations (version INTEGER)")
            change("DROP TABLE dbos.opendbos_migrations")
    config["run_migrations"] = run_migrations
    expected = DBOSSchemaVersionError if condition == "newer" else DBOSForeignDatabaseError
    before = threading.active_count()

    for _ in range(2):
        with pytest.raises(expected, match=r"left unchanged"), launched(config):
            pass

    assert threading.active_count() == before


@pytest.mark.usefixtures("registry")
def test_a_database_of_the_first_release_is_upgraded_with_what_lives_in_it_and_its_work_goes_on(scene: Scene) -> None:
    known = load_migrations(scene.dialect)
    migrate(scene.target(), known[:1])
    scene.execute(EXECUTOR_OF_VERSION_1)
    statuses = {status.value: status.value for status in WorkflowStatusString}
    for status in statuses:
        scene.execute(WORKFLOW_OF_VERSION_1.format(status))
    for status, columns in WHAT_ELSE_A_STATUS_SETS.items():
        scene.execute(f"UPDATE dbos.workflow_status SET {columns} WHERE status = '{status}'")
    tables = ("workflow_status", "executor_instances")
    before = [scene.execute(f"SELECT * FROM dbos.{table} ORDER BY 1") for table in tables]

    @DBOS.workflow(name="work")
    def work(number: int) -> int:
        return number * number

    assert migrate(scene.target()) == len(known) - 1
    verify(scene.target())
    after = [scene.execute(f"SELECT * FROM dbos.{table} ORDER BY 1") for table in tables]
    for old, new in zip(before, after, strict=True):
        assert [row[: len(old[0])] for row in new] == old  # what was added comes last
    url = scene.engine().url.render_as_string(hide_password=False)
    with launched({"name": "app", "system_database_url": url, "application_version": "test"}):
        eventually(lambda: row("ENQUEUED").status == "SUCCESS")
        assert DBOS.get_result("ENQUEUED") == 9
        assert DBOS.get_result("SUCCESS") == 9
        assert {each.workflow_id: each.status for each in DBOS.list_workflows()} == {**statuses, "ENQUEUED": "SUCCESS"}


@pytest.mark.usefixtures("registry")
def test_where_migrations_are_not_to_be_run_an_empty_database_is_refused_and_stays_empty(
    tmp_path: Path, sqlite_url: str
) -> None:
    config: DBOSConfig = {"name": "app", "system_database_url": sqlite_url, "run_migrations": False}

    with pytest.raises(DBOSSchemaVersionError, match="dbos migrate"), launched(config):
        pass

    engine = sa.create_engine(sqlite_url)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


@pytest.mark.postgres
@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("run_migrations", [True, False])
def test_a_role_that_may_only_work_with_the_tables_runs_an_application(
    dbos_postgres_url: str, run_migrations: bool
) -> None:
    """Whoever may change the schema has migrated; the application itself needs no such right."""
    role = f"opendbos_worker_{os.getpid()}"
    with psycopg.connect(dbos_postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role}".encode())
        try:
            for grant in (
                "USAGE ON SCHEMA dbos",
                "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA dbos",
                "USAGE ON ALL SEQUENCES IN SCHEMA dbos",
            ):
                connection.execute(f"GRANT {grant} TO {role}".encode())
            separator = "&" if "?" in dbos_postgres_url else "?"
            url = f"{dbos_postgres_url}{separator}options={quote(f'-c role={role}')}"
            config: DBOSConfig = {
                "name": "app",
                "system_database_url": url,
                "application_database_url": url,
                "application_version": "test",
                "run_migrations": run_migrations,
            }

            @DBOS.transaction()
            def who() -> str:
                name: str = DBOS.sql_session.execute(sa.text("SELECT current_user")).scalar_one()
                return name

            @DBOS.workflow()
            def workflow() -> str:
                return who()

            with launched(config):
                assert DBOS.start_workflow(workflow).get_result() == role
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    change("CREATE TABLE dbos.another (id integer)")
        finally:
            connection.execute(f"DROP OWNED BY {role}".encode())
            connection.execute(f"DROP ROLE {role}".encode())


@pytest.mark.postgres
@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("databases", ["one", "two"])
def test_two_applications_in_schemas_of_one_database_know_nothing_of_each_other(
    request: pytest.FixtureRequest, postgres_url: str, databases: str
) -> None:
    """Their workflows have the same ids, and one of them is unfinished when the other is launched."""
    application_url = postgres_url if databases == "one" else request.getfixturevalue("dbos_postgres_url")
    one: DBOSConfig = {
        "name": "one",
        "system_database_url": postgres_url,
        "application_database_url": application_url,
        "application_version": "test",
        "dbos_system_schema": ODD_SCHEMA,
    }
    other: DBOSConfig = {**one, "name": "other", "dbos_system_schema": "other"}
    must_crash = True
    calls: list[str] = []

    @DBOS.transaction(name="transaction")
    def transaction(who: str) -> str:
        calls.append(who)
        return who

    @DBOS.workflow()
    def workflow(who: str) -> str:
        result = transaction(who)
        if must_crash:
            raise Crash
        return result

    with launched(one), pytest.raises(Crash), SetWorkflowID("wf"):
        workflow("one")
    must_crash = False
    with launched(other):
        assert DBOS.list_workflows() == []
        assert DBOS._recover_pending_workflows() == []
        with SetWorkflowID("wf"):
            assert workflow("other") == "other"
        DBOS.cancel_workflow("wf")
        assert [status.workflow_id for status in DBOS.list_workflows(workflow_id_prefix="w")] == ["wf"]
    with launched(one):
        assert DBOS.get_result("wf") == "one"
        assert row("wf").recovery_attempts == 2
        assert recorded("wf") == [(1, "transaction")]
        assert len(DBOS.list_workflows(status="SUCCESS", sort_desc=True)) == 1

    assert calls == ["one", "other"]
