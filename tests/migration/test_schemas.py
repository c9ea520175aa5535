from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from dbos._error import DBOSInitializationError
from dbos._migration import create_application_tables, load_migrations, migrate, verify
from dbos._schemas.application_database import ApplicationSchema
from dbos._schemas.rendering import qualify, quote_identifier, split_statements
from dbos._schemas.system_database import SystemSchema, schema_translate_map

if TYPE_CHECKING:
    from .conftest import PostgresScene, Scene

# PostgreSQL's alone, and nobody's but the stores': on SQLite the rowid is the order of enqueueing, and of messages.
INTERNAL_COLUMNS = {
    ("postgres", "workflow_status", "enqueue_sequence"),
    ("postgres", "notifications", "message_sequence"),
}
ODD_NAMES = ['a"b', "a%b", "a%sb", "a;drop", "a b", ":version", "Größe☃", "a\nb", "a--b", "a'b", "dbos.x", "A" * 63]


@pytest.mark.postgres
@pytest.mark.parametrize("schema", ODD_NAMES)
def test_a_schema_may_have_any_name(postgres_scene: PostgresScene, at_end: ExitStack, schema: str) -> None:
    scene = type(postgres_scene)(postgres_scene.conninfo, at_end, schema)

    migrate(scene.target())
    verify(scene.target())
    create_application_tables(scene.target())

    assert migrate(scene.target()) == 0
    recorded = scene.execute("SELECT version FROM dbos.opendbos_migrations ORDER BY version")
    assert recorded == [(migration.version,) for migration in load_migrations("postgres")]
    engine = scene.engine().execution_options(schema_translate_map=schema_translate_map(schema))
    with engine.connect() as connection:
        assert connection.execute(sa.select(SystemSchema.workflow_status)).all() == []


@pytest.mark.postgres
def test_two_schemas_in_a_database_know_nothing_of_each_other(postgres_scene: PostgresScene, at_end: ExitStack) -> None:
    other = type(postgres_scene)(postgres_scene.conninfo, at_end, "other")

    postgres_scene.hold_lock()
    migrate(other.target(lock_wait_s=1))

    assert postgres_scene.catalog() == {}


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 64, "ü" * 32, "\ud800"])
def test_a_name_that_postgresql_would_cut_or_refuse_is_refused_first(name: str) -> None:
    with pytest.raises(DBOSInitializationError):
        quote_identifier(name)


def test_a_prefix_becomes_the_quoted_schema_or_nothing() -> None:
    sql = "INSERT INTO dbos.streams SELECT * FROM dbos.streams WHERE my_dbos.x = 1"

    assert qualify(sql, 'a"b\\1') == sql.replace(" dbos.", ' "a""b\\1".')
    assert qualify(sql, None) == sql.replace(" dbos.", " ")


def test_a_script_is_split_at_semicolons_that_end_a_statement() -> None:
    script = """
    -- A comment; it isn't a statement.
    SELECT ';', 'it''s -- text', ";" FROM a; -- a remark; too
    CREATE FUNCTION f() AS $body$ BEGIN; -- kept
    END; $body$;
    """

    assert split_statements(script) == (
        "SELECT ';', 'it''s -- text', \";\" FROM a",
        "CREATE FUNCTION f() AS $body$ BEGIN; -- kept\n    END; $body$",
    )


def test_the_tables_are_as_the_description_for_sqlalchemy_says(scene: Scene) -> None:
    migrate(scene.target())
    create_application_tables(scene.target())

    inspector = sa.inspect(scene.engine())
    for table in [*SystemSchema.metadata_obj.sorted_tables, ApplicationSchema.transaction_outputs]:
        columns = [
            column
            for column in inspector.get_columns(table.name, schema=scene.schema)
            if (scene.dialect, table.name, column["name"]) not in INTERNAL_COLUMNS
        ]
        primary_key = inspector.get_pk_constraint(table.name, schema=scene.schema)["constrained_columns"]
        assert [column["name"] for column in columns] == table.columns.keys()
        assert primary_key == table.primary_key.columns.keys()
        for column in columns:
            described = table.columns[column["name"]]
            found = column["type"]
            assert found.python_type is described.type.python_type, described
            if scene.dialect == "postgres":
                assert isinstance(found, sa.BigInteger) == isinstance(described.type, sa.BigInteger), described
            if described.name != "txn_snapshot":  # as the two databases always differed
                assert column["nullable"] == described.nullable, described


def test_a_plain_engine_can_query_the_tables(scene: Scene) -> None:
    migrate(scene.target())
    scene.execute("INSERT INTO dbos.workflow_status (workflow_uuid, status) VALUES ('a', 'SUCCESS')")
    scene.execute("INSERT INTO dbos.operation_outputs (workflow_uuid, function_id) VALUES ('a', 1)")
    workflows, steps = SystemSchema.workflow_status, SystemSchema.operation_outputs
    children = workflows.alias("children")

    with scene.engine().begin() as connection:
        row = connection.execute(
            sa.select(workflows.c.workflow_uuid, workflows.c.was_forked_from, steps.c.function_id)
            .join(steps, steps.c.workflow_uuid == workflows.c.workflow_uuid)
            .where(~sa.exists().where(children.c.parent_workflow_id == workflows.c.workflow_uuid))
            .where(workflows.c.workflow_uuid.in_(sa.select(steps.c.workflow_uuid)))
        ).one()
        updated = connection.execute(sa.update(workflows).values(status="ERROR"))
        deleted = connection.execute(sa.delete(workflows).where(workflows.c.status == "ERROR"))

    assert row == ("a", False, 1)
    assert (updated.rowcount, deleted.rowcount) == (1, 1)


def test_default_timestamps_are_milliseconds_of_now(scene: Scene) -> None:
    migrate(scene.target())

    before = time.time() * 1000
    stamps = []
    for number in range(5):
        scene.execute(f"INSERT INTO dbos.workflow_status (workflow_uuid) VALUES ('{number}')")
        time.sleep(0.001)
    for created_at, updated_at in scene.execute("SELECT created_at, updated_at FROM dbos.workflow_status"):
        assert created_at == updated_at
        stamps.append(created_at)

    assert all(before - 1 <= stamp <= time.time() * 1000 + 1 for stamp in stamps)
    assert any(stamp % 1000 for stamp in stamps)


@pytest.mark.parametrize("workflow_id", ["", "  "])
def test_a_blank_workflow_id_is_refused_by_the_table(scene: Scene, workflow_id: str) -> None:
    migrate(scene.target())

    with pytest.raises(Exception, match=r"(?i)check"):
        scene.execute(f"INSERT INTO dbos.workflow_status (workflow_uuid) VALUES ('{workflow_id}')")


def test_a_deduplication_id_is_held_once_per_queue(scene: Scene) -> None:
    migrate(scene.target())
    insert = "INSERT INTO dbos.workflow_status (workflow_uuid, queue_name, deduplication_id) VALUES "
    scene.execute(f"{insert} ('a', 'q', 'd'), ('b', 'other', 'd'), ('c', 'q', NULL), ('d', 'q', NULL)")

    with pytest.raises(Exception, match=r"(?i)unique"):
        scene.execute(f"{insert} ('e', 'q', 'd')")
