from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from dbos._error import DBOSInitializationError
from dbos._migration import create_application_tables, migrate, verify_application_tables
from dbos._schemas.application_database import ApplicationSchema

if TYPE_CHECKING:
    from .conftest import Scene

COLUMNS = ApplicationSchema.transaction_outputs.columns.keys()


def test_the_table_is_created_once(scene: Scene) -> None:
    with pytest.raises(DBOSInitializationError, match="dbos migrate"):
        verify_application_tables(scene.target())

    create_application_tables(scene.target())
    before = scene.snapshot()
    scene.hold_lock()
    create_application_tables(scene.target(lock_wait_s=0.1))
    verify_application_tables(scene.target())

    assert scene.snapshot() == before
    assert scene.target().columns("transaction_outputs") == COLUMNS


def test_an_older_table_gets_the_columns_it_lacks_and_keeps_its_rows(scene: Scene) -> None:
    if scene.schema is not None:
        scene.execute("CREATE SCHEMA dbos")
    scene.execute(
        "CREATE TABLE dbos.transaction_outputs (workflow_uuid TEXT NOT NULL, function_id INTEGER NOT NULL, output TEXT,"
        " error TEXT, txn_id TEXT, txn_snapshot TEXT NOT NULL, executor_id TEXT, created_at BIGINT NOT NULL DEFAULT 1,"
        " PRIMARY KEY (workflow_uuid, function_id))"
    )
    scene.execute("INSERT INTO dbos.transaction_outputs (workflow_uuid, function_id, txn_snapshot) VALUES ('a', 1, '')")
    with pytest.raises(DBOSInitializationError, match="dbos migrate"):
        verify_application_tables(scene.target())

    create_application_tables(scene.target())

    verify_application_tables(scene.target())
    assert sorted(scene.target().columns("transaction_outputs")) == sorted(COLUMNS)
    assert scene.execute("SELECT function_name, start_token, serialization FROM dbos.transaction_outputs") == [
        ("", None, None)
    ]


def test_a_table_of_another_make_is_refused_unchanged(scene: Scene) -> None:
    if scene.schema is not None:
        scene.execute("CREATE SCHEMA dbos")
    scene.execute("CREATE TABLE dbos.transaction_outputs (amount INTEGER)")
    before = scene.snapshot()

    with pytest.raises(DBOSInitializationError, match="another make"):
        create_application_tables(scene.target())

    assert scene.snapshot() == before


def test_many_create_it_at_once_beside_the_system_tables(scene: Scene) -> None:
    targets = [scene.target() for _ in range(20)]
    jobs = [create_application_tables if number % 2 else migrate for number in range(20)]

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda job, target: job(target), jobs, targets))

    verify_application_tables(scene.target())
