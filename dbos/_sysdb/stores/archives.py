"""Archives: all that the tables hold of workflows, taken out as it is stored and put in again.

What is bound to a place is not in them: who runs a workflow, its place in a queue, the tokens of writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dbos._error import DBOSException
from dbos._queue_config import MAX_KEY_BYTES, MAX_NAME_BYTES
from dbos._serialization.attributes import MAX_ATTRIBUTES_BYTES
from dbos._sysdb.connection import Connection
from dbos._sysdb.stores.deletions import DeletionsStore

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect, Reader

__all__ = ["TABLES", "Archive", "ArchivesStore", "Column", "Table"]

Row = dict[str, Any]


class Column(NamedTuple):
    """What a column of both databases takes; ``type`` is PostgreSQL's name for it.

    Texts without a limit of their own may be as large as a payload.
    """

    type: str
    is_required: bool = False
    max_length: int | None = None  # in characters
    max_bytes: int | None = None
    json: Literal["object", "strings"] | None = None  # what the text holds


class Table(NamedTuple):
    """What is taken out of a table: its columns, the first of them for the workflow's id, and its key."""

    columns: Mapping[str, Column]
    key: tuple[str, ...]

    @property
    def owner(self) -> str:
        return next(iter(self.columns))


_NAME = Column("text", is_required=True)
_TEXT = Column("text")
_SHORT = Column("text", max_length=255)
_QUEUE = Column("text", max_bytes=MAX_NAME_BYTES)
_KEY = Column("text", max_bytes=MAX_KEY_BYTES)
_KEY_OF = Column("text", is_required=True, max_bytes=MAX_KEY_BYTES)
_NUMBER = Column("integer", is_required=True)
_COUNT = Column("bigint")
_TIME = Column("bigint", is_required=True)
_FLAG = Column("boolean", is_required=True)

TABLES: Mapping[str, Table] = {
    "workflow_status": Table(
        {
            "workflow_uuid": _NAME,
            "status": _NAME,
            "name": _NAME,
            "class_name": _SHORT,
            "config_name": _SHORT,
            "inputs": _TEXT,
            "output": _TEXT,
            "error": _TEXT,
            "serialization": _TEXT,
            "outcome_serialization": _TEXT,
            "created_at": _TIME,
            "updated_at": _TIME,
            "started_at_epoch_ms": _COUNT,
            "completed_at": _COUNT,
            "queue_name": _QUEUE,
            "queue_partition_key": _KEY,
            "priority": _NUMBER,
            "deduplication_id": _KEY,
            "delay_until_epoch_ms": _COUNT,
            "workflow_timeout_ms": _COUNT,
            "workflow_deadline_epoch_ms": _COUNT,
            "recovery_attempts": _COUNT,
            "authenticated_user": _TEXT,
            "assumed_role": _TEXT,
            "authenticated_roles": Column("text", json="strings"),
            "attributes": Column("text", max_bytes=MAX_ATTRIBUTES_BYTES, json="object"),
            "application_name": _TEXT,
            "application_id": _TEXT,
            "application_version": _TEXT,
            "executor_id": _TEXT,
            "parent_workflow_id": _TEXT,
            "forked_from": _TEXT,
            "was_forked_from": _FLAG,
            "schedule_name": _TEXT,
            "owner_xid": _TEXT,
        },
        ("workflow_uuid",),
    ),
    "operation_outputs": Table(
        {
            "workflow_uuid": _NAME,
            "function_id": _NUMBER,
            "function_name": _NAME,
            "output": _TEXT,
            "error": _TEXT,
            "child_workflow_id": _TEXT,
            "started_at_epoch_ms": _COUNT,
            "completed_at_epoch_ms": _COUNT,
            "serialization": _TEXT,
        },
        ("workflow_uuid", "function_id"),
    ),
    "workflow_events": Table(
        {"workflow_uuid": _NAME, "key": _KEY_OF, "value": _NAME, "serialization": _TEXT},
        ("workflow_uuid", "key"),
    ),
    "workflow_events_history": Table(
        {"workflow_uuid": _NAME, "function_id": _NUMBER, "key": _KEY_OF, "value": _NAME, "serialization": _TEXT},
        ("workflow_uuid", "function_id", "key"),
    ),
    "streams": Table(
        {
            "workflow_uuid": _NAME,
            "key": _KEY_OF,
            "offset": _NUMBER,
            "value": _NAME,
            "function_id": _NUMBER,
            "serialization": _TEXT,
        },
        ("workflow_uuid", "key", "offset"),
    ),
    "notifications": Table(
        {
            "destination_uuid": _NAME,
            "message_uuid": _NAME,
            "topic": _KEY,
            "message": _NAME,
            "created_at_epoch_ms": _TIME,
            "serialization": _TEXT,
            "consumed": _FLAG,
            "idempotency_key": _KEY,
        },
        ("message_uuid",),
    ),
}

FAMILY = """
-- A workflow, and those that it or one of its children has started or awaited.
WITH RECURSIVE family (workflow_id) AS (
  SELECT CAST(:workflow_id AS text)
  UNION
  SELECT o.child_workflow_id FROM family f JOIN dbos.operation_outputs o ON o.workflow_uuid = f.workflow_id
  WHERE o.child_workflow_id IS NOT NULL)
SELECT workflow_id FROM family
"""

TAKEN = "SELECT workflow_uuid, run_token FROM dbos.workflow_status WHERE workflow_uuid IN :ids"

SIGN = "UPDATE dbos.workflow_status SET run_token = :token WHERE workflow_uuid IN :ids"


class Archive(NamedTuple):
    """Workflows to be put in: for each table, its rows as a JSON array and how many they are.

    ``token`` is that of this attempt, by which its repetition recognises what it has written.
    """

    token: str
    workflow_ids: Sequence[str]
    tables: Mapping[str, tuple[str, int]]

    @property
    def size(self) -> int:
        """Characters of payload, which bound a batch."""
        return sum(len(rows) for rows, _ in self.tables.values())


class ArchivesStore:
    """The tables of workflows, row by row."""

    def __init__(self, dialect: Dialect) -> None:
        self._select = {name: _select(name, table, dialect) for name, table in TABLES.items()}
        self._insert = {name: _insert(name, table, dialect) for name, table in TABLES.items()}

    def read(self, reader: Reader, workflow_id: str, *, with_children: bool) -> list[dict[str, list[Row]]]:
        """The rows of a workflow by table, and those of its descendants; empty if there is no such workflow."""
        with reader.snapshot():
            ids = [workflow_id]
            if with_children:
                ids += sorted({row[0] for row in reader.all(FAMILY, workflow_id=workflow_id)} - {workflow_id})
            found: dict[str, dict[str, list[Row]]] = {each: {name: [] for name in TABLES} for each in ids}
            for name, table in TABLES.items():
                for values in reader.all(self._select[name], ids=ids):
                    row: Row = {
                        column: bool(value) if kind.type == "boolean" else value
                        for (column, kind), value in zip(table.columns.items(), values, strict=True)
                    }
                    found[row[table.owner]][name].append(row)
        existing = [found[each] for each in ids if found[each]["workflow_status"]]
        return existing if found[workflow_id]["workflow_status"] else []

    def write(self, connection: Connection, archive: Archive) -> list[str]:
        """Put workflows in, all or none; returns their ids.

        Raises:
            DBOSException: one of them, or one of their messages, is there already.
        """
        ids = sorted(archive.workflow_ids)
        taken = dict(connection.all(TAKEN, ids=ids))
        if len(taken) == len(ids) and set(taken.values()) == {archive.token}:
            return ids  # committed by an execution whose answer was lost
        if taken:
            raise DBOSException(
                f"Nothing was imported: there is a workflow with the ID {min(taken)!r} already. Delete it first, or "
                "leave it out."
            )
        DeletionsStore.delete_remains(connection, ids)
        for name, (rows, count) in archive.tables.items():
            if count and connection.run(self._insert[name], rows=rows) != count:
                raise DBOSException(
                    f"Nothing was imported: a row for the table {name} is there already, which belongs to another "
                    "workflow, or was written at the same time."
                )
        connection.run(SIGN, token=archive.token, ids=ids)
        return ids


def _select(name: str, table: Table, dialect: Dialect) -> str:
    order = dialect.message_order if name == "notifications" else ", ".join(f'"{column}"' for column in table.key)
    return f"""
SELECT {", ".join(f'"{column}"' for column in table.columns)} FROM dbos.{name}
WHERE {table.owner} IN :ids
ORDER BY {table.owner}, {order}
"""


def _insert(name: str, table: Table, dialect: Dialect) -> str:
    # Numbered, because the name of a column may be a word of SQL.
    places = {f"c{position}": column for position, column in enumerate(table.columns)}
    types: dict[str, Any] = {place: table.columns[column].type for place, column in places.items()}
    return f"""
INSERT INTO dbos.{name} ({", ".join(f'"{column}"' for column in table.columns)})
SELECT {", ".join(f"r.{place}" for place in places)} FROM {dialect.rows(**types)} WHERE TRUE
ON CONFLICT DO NOTHING
"""
