"""Deleting workflows: their rows, and all that the other tables hold of them.

There are no foreign keys that would do it. Who asks decides what may go: a user whatever has the id, retention what it
has locked and looked at in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dbos._sysdb.connection import Connection

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect

__all__ = ["DeletionsStore"]

DELETE = "DELETE FROM dbos.workflow_status WHERE workflow_uuid IN :ids RETURNING workflow_uuid"

# Every table that holds something of a workflow, and its column for the workflow's id. What schedules decided and what
# was done by hand is not the workflow's own, and stays.
PARTS = {
    "operation_outputs": "workflow_uuid",
    "notifications": "destination_uuid",
    "workflow_events": "workflow_uuid",
    "workflow_events_history": "workflow_uuid",
    "streams": "workflow_uuid",
}

DELETE_REMAINS = [
    f"""
-- What is there of workflows that are not. The name of the table makes its column unmistakable.
DELETE FROM dbos.{table} WHERE {column} IN :ids
  AND NOT EXISTS (SELECT 1 FROM dbos.workflow_status w WHERE w.workflow_uuid = {table}.{column})
"""
    for table, column in PARTS.items()
]

EXECUTORS = "SELECT instance_id FROM dbos.executor_instances ORDER BY instance_id"

AWAIT_WRITER = """
-- An executor holds its row while it writes. One that is gone by now writes nothing.
SELECT 1 FROM dbos.executor_instances w WHERE instance_id = :instance {lock}
"""


class DeletionsStore:
    """What several tables hold of a workflow, deleted."""

    def __init__(self, dialect: Dialect) -> None:
        self._await_writer = AWAIT_WRITER.replace("{lock}", dialect.skip_locked.removesuffix("SKIP LOCKED"))

    @staticmethod
    def delete(connection: Connection, workflow_ids: Sequence[str]) -> list[str]:
        """Delete workflows, whatever their status, and everything of them; returns the ids of those that there were."""
        ids = sorted(set(workflow_ids))
        deleted = [row[0] for row in connection.all(DELETE, ids=ids)]
        DeletionsStore.delete_remains(connection, ids)
        return deleted

    @staticmethod
    def delete_remains(connection: Connection, workflow_ids: Sequence[str]) -> int:
        """Delete what there is of workflows that do not exist; returns how many rows there were.

        A run that was recording while it was deleted leaves something behind, which the transaction that deletes cannot
        see. So this is to be called once more when that has committed and :meth:`await_writer` has returned for each of
        the :meth:`executors`: from then on, nobody can record anything of them.
        """
        ids = sorted(set(workflow_ids))
        return sum(connection.run(sql, ids=ids) for sql in DELETE_REMAINS)

    @staticmethod
    def executors(connection: Connection) -> list[str]:
        """The instances that may be writing."""
        return [row[0] for row in connection.all(EXECUTORS)]

    def await_writer(self, connection: Connection, instance: str) -> None:
        """Wait until an executor has committed what it is writing now.

        To be committed by itself: until that has happened, the executor can neither write nor renew its lease.
        """
        connection.one(self._await_writer, instance=instance)
