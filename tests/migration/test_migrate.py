from __future__ import annotations

import dataclasses
import logging
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest

from dbos._error import DBOSForeignDatabaseError, DBOSInitializationError, DBOSSchemaVersionError
from dbos._migration import Migration, load_migrations, migrate, verify
from dbos._schemas.system_database import SystemSchema

if TYPE_CHECKING:
    from .conftest import PostgresScene, Scene, SQLiteScene

NEWER = 999
POSTGRES_ONLY = {
    "workflow_status_enqueue_sequence_seq",
    "schedule_history_history_id_seq",
    "notifications_message_sequence_seq",
    "management_actions_action_id_seq",
    "idx_workflow_status_attributes",  # finds what is in JSON
}


def known(scene: Scene) -> tuple[Migration, ...]:
    return load_migrations(scene.dialect)


def with_second(scene: Scene, *statements: str) -> list[Migration]:
    return [*known(scene), Migration(known(scene)[-1].version + 1, "second", statements)]


def versions(scene: Scene) -> list[int]:
    return [version for (version,) in scene.execute("SELECT version FROM dbos.opendbos_migrations ORDER BY version")]


def test_an_empty_database_gets_every_table_and_index(scene: Scene) -> None:
    applied = migrate(scene.target())

    assert applied == len(known(scene))
    assert set(SystemSchema.metadata_obj.tables) < set(scene.catalog())
    assert versions(scene) == [migration.version for migration in known(scene)]


@pytest.mark.postgres
def test_both_databases_get_the_same_tables_and_indexes(
    sqlite_scene: SQLiteScene, postgres_scene: PostgresScene
) -> None:
    migrate(sqlite_scene.target())
    migrate(postgres_scene.target())

    made_by_constraints = {name for name in postgres_scene.catalog() if name.endswith(("_pkey", "_name_key"))}
    assert set(sqlite_scene.catalog()) == set(postgres_scene.catalog()) - made_by_constraints - POSTGRES_ONLY


def test_a_second_migration_changes_nothing(scene: Scene) -> None:
    migrate(scene.target())
    before = scene.snapshot()

    assert migrate(scene.target()) == 0
    assert scene.snapshot() == before


def test_an_up_to_date_database_needs_no_lock(scene: Scene) -> None:
    migrate(scene.target())
    scene.hold_lock()

    assert migrate(scene.target(lock_wait_s=0.1)) == 0


def test_a_lock_that_stays_taken_is_an_error_within_the_bound(scene: Scene) -> None:
    scene.hold_lock()

    with pytest.raises(DBOSInitializationError, match=r"Another process|another process"):
        migrate(scene.target(lock_wait_s=0.2))

    assert not set(SystemSchema.metadata_obj.tables) & set(scene.catalog())


@pytest.mark.postgres
def test_the_error_about_a_taken_lock_names_the_backend_and_leaves_the_session_as_it_was(
    postgres_scene: PostgresScene,
) -> None:
    postgres_scene.hold_lock()
    target = postgres_scene.target(lock_wait_s=0.1)
    target.execute("SET lock_timeout = '7s'")

    with pytest.raises(DBOSInitializationError, match=r"backend \d+ .*pg_terminate_backend"):
        migrate(target)

    assert target.execute("SHOW lock_timeout") == [("7s",)]
    assert target.execute("SELECT 1") == [(1,)]


@pytest.mark.postgres
def test_the_lock_is_given_back(postgres_scene: PostgresScene) -> None:
    migrate(postgres_scene.target())

    held = (
        "SELECT * FROM pg_locks WHERE locktype = 'advisory' "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    assert postgres_scene.execute(held) == []


@pytest.mark.postgres
def test_an_upgrade_and_a_batch_of_a_process_of_the_first_release_wait_for_each_other_without_a_deadlock(
    postgres_scene: PostgresScene,
) -> None:
    migrate(postgres_scene.target(), known(postgres_scene)[:1])

    with ThreadPoolExecutor(1) as pool, psycopg.connect(postgres_scene.conninfo) as batch:
        batch.execute("SELECT instance_id FROM dbos.executor_instances FOR KEY SHARE")
        upgrade = pool.submit(migrate, postgres_scene.target())
        await_blocked_by(batch)
        batch.execute("INSERT INTO dbos.workflow_status (workflow_uuid) VALUES ('w')")
        batch.commit()

        assert upgrade.result(timeout=60) == len(known(postgres_scene)) - 1

    assert postgres_scene.execute("SELECT workflow_uuid FROM dbos.workflow_status") == [("w",)]


@pytest.mark.postgres
def test_a_table_that_stays_in_use_is_an_error_within_the_bound_and_leaves_the_migration_to_the_next(
    postgres_scene: PostgresScene,
) -> None:
    migrate(postgres_scene.target(), known(postgres_scene)[:1])

    with psycopg.connect(postgres_scene.conninfo) as user:
        user.execute("SELECT * FROM dbos.workflow_status")
        with pytest.raises(DBOSInitializationError, match="stayed locked"):
            migrate(postgres_scene.target(lock_wait_s=0.2))

    assert versions(postgres_scene) == [1]
    assert migrate(postgres_scene.target()) == len(known(postgres_scene)) - 1


def await_blocked_by(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Return as soon as another session waits for a lock that this one holds."""
    for _ in range(2000):
        waiting = connection.execute(
            "SELECT pid FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
        ).fetchall()
        if waiting:
            return
        time.sleep(0.005)
    pytest.fail("nobody waited")


def test_a_later_release_applies_only_what_is_new(scene: Scene) -> None:
    migrate(scene.target())
    newer = with_second(scene, "CREATE TABLE IF NOT EXISTS dbos.second_table (id integer)")

    assert migrate(scene.target(), newer) == 1
    assert versions(scene)[-1] == newer[-1].version
    assert "second_table" in scene.catalog()


def test_versions_from_before_there_were_applications_are_kept_and_each_application_gets_its_own(scene: Scene) -> None:
    migrate(scene.target(), known(scene)[:3])
    insert = "INSERT INTO dbos.application_versions (version_id, version_name, version_timestamp, created_at"
    scene.execute(f"{insert}) VALUES ('a', '1.0', 5, 4)")

    migrate(scene.target())
    scene.execute(f"{insert}, application_name) VALUES ('b', '1.0', 6, 6, 'shop'), ('c', '1.0', 7, 7, 'bank')")

    assert scene.execute("SELECT * FROM dbos.application_versions ORDER BY version_id") == [
        ("a", "1.0", 5, 4, None),
        ("b", "1.0", 6, 6, "shop"),
        ("c", "1.0", 7, 7, "bank"),
    ]
    for name in ("'shop'", "NULL"):
        with pytest.raises(Exception, match=r"(?i)unique"):  # of the driver at hand
            scene.execute(f"{insert}, application_name) VALUES ('d', '1.0', 8, 8, {name})")


def test_a_failing_migration_leaves_nothing_of_itself_and_all_of_those_before(scene: Scene) -> None:
    failing = with_second(scene, "CREATE TABLE dbos.second_table (id integer)", "CREATE TABLE nonsense")

    with pytest.raises(Exception, match=r"syntax|incomplete"):
        migrate(scene.target(), failing)

    assert versions(scene) == [migration.version for migration in known(scene)]
    assert "second_table" not in scene.catalog()


def test_a_schema_newer_than_the_code_is_refused_unchanged(scene: Scene) -> None:
    migrate(scene.target())
    scene.execute(
        f"INSERT INTO dbos.opendbos_migrations (version, name, checksum, applied_at) VALUES ({NEWER}, 'x', 'x', 1)"
    )
    before = scene.snapshot()

    for refuse in (migrate, verify):
        with pytest.raises(DBOSSchemaVersionError, match="Upgrade opendbos") as caught:
            refuse(scene.target())
        assert (caught.value.found, caught.value.supported) == (NEWER, known(scene)[-1].version)

    assert scene.snapshot() == before


def test_a_database_of_the_other_library_is_refused_unchanged(scene: Scene) -> None:
    if scene.schema is not None:
        scene.execute("CREATE SCHEMA dbos")
    scene.execute("CREATE TABLE dbos.dbos_migrations (version INTEGER PRIMARY KEY)")
    scene.execute("CREATE TABLE dbos.workflow_status (workflow_uuid TEXT PRIMARY KEY)")
    before = scene.snapshot()

    for refuse in (migrate, verify):
        with pytest.raises(DBOSForeignDatabaseError, match="dbos_migrations"):
            refuse(scene.target())

    assert scene.snapshot() == before


@pytest.mark.parametrize("table", ["notifications", "queues"])  # of the first migration, and of a later one
def test_a_table_of_somebody_else_with_one_of_our_names_is_refused_unchanged(scene: Scene, table: str) -> None:
    if scene.schema is not None:
        scene.execute("CREATE SCHEMA dbos")
    scene.execute(f"CREATE TABLE dbos.{table} (mail TEXT)")
    before = scene.snapshot()

    with pytest.raises(DBOSForeignDatabaseError, match=f"a table {table}"):
        migrate(scene.target())

    assert scene.snapshot() == before


def test_verify_refuses_a_database_that_is_behind(scene: Scene) -> None:
    with pytest.raises(DBOSSchemaVersionError, match="dbos migrate") as caught:
        verify(scene.target())
    assert caught.value.found == 0

    migrate(scene.target())
    verify(scene.target())

    with pytest.raises(DBOSSchemaVersionError) as caught:
        verify(scene.target(), with_second(scene))
    assert caught.value.found == known(scene)[-1].version


def test_verify_writes_nothing(scene: Scene) -> None:
    before = scene.snapshot()

    with pytest.raises(DBOSSchemaVersionError):
        verify(scene.target())

    assert [entry for entry in _listed(scene.snapshot()) if entry not in _listed(before)] == []


def _listed(snapshot: object) -> list[object]:
    assert isinstance(snapshot, list)
    # Opening an SQLite connection creates the file, empty.
    return [entry for entry in snapshot if entry[1] != b""]


@pytest.mark.postgres
def test_a_role_without_rights_can_verify_and_is_told_what_it_lacks_to_migrate(postgres_scene: PostgresScene) -> None:
    target = postgres_scene.target()
    role = f"opendbos_reader_{os.getpid()}"  # roles belong to the server, which parallel runs share
    postgres_scene.execute(f"CREATE ROLE {role}")
    try:
        target.execute(f"SET ROLE {role}")
        with pytest.raises(DBOSInitializationError, match=r"right is missing.*dbos migrate"):
            migrate(target)
        target.execute("RESET ROLE")
        migrate(target)
        postgres_scene.execute(f"GRANT USAGE ON SCHEMA dbos TO {role}")
        postgres_scene.execute(f"GRANT SELECT ON dbos.opendbos_migrations TO {role}")
        target.execute(f"SET ROLE {role}")

        verify(target)
        assert migrate(target) == 0
    finally:
        postgres_scene.execute(f"DROP OWNED BY {role}")
        postgres_scene.execute(f"DROP ROLE {role}")


def test_another_text_under_a_known_version_is_a_warning(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    migrate(scene.target())
    scene.execute("UPDATE dbos.opendbos_migrations SET checksum = 'of a development build'")

    with caplog.at_level(logging.WARNING, logger="dbos.migration"):
        assert migrate(scene.target()) == 0
        verify(scene.target())

    assert "applied from another text" in caplog.text


def test_white_space_does_not_change_a_checksum() -> None:
    migration = Migration(1, "initial", ("CREATE TABLE a (\n    b text\n)", "SELECT 1"))

    assert (
        dataclasses.replace(migration, statements=("CREATE TABLE a ( b text )", "SELECT 1")).checksum
        == migration.checksum
    )
    assert (
        dataclasses.replace(migration, statements=("CREATE TABLE a ( b text )", "SELECT 2")).checksum
        != migration.checksum
    )


def test_every_statement_may_be_repeated_and_names_its_table_with_the_prefix(scene: Scene) -> None:
    for migration in known(scene):
        for statement in migration.statements:
            assert "dbos." in statement
            if scene.dialect == "sqlite" and re.match(r"ALTER TABLE dbos\.\w+ (ADD COLUMN|RENAME TO) \w", statement):
                continue  # SQLite has no IF NOT EXISTS for a column
            repeatable = ("DROP INDEX IF EXISTS ", "DROP TABLE IF EXISTS ", "CREATE OR REPLACE ", "INSERT OR IGNORE ")
            assert " IF NOT EXISTS " in statement or statement.startswith(repeatable)
