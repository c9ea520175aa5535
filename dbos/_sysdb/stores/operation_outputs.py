"""Recorded operations of workflows."""

from __future__ import annotations

from collections.abc import Sequence

from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import StepRow, columns

__all__ = ["OperationOutputsStore"]

HISTORY_PAGE_ROWS = 2000  # bounds what a driver holds in memory at once

HISTORY = f"""
-- A page of recorded operations, in order.
SELECT {columns(StepRow)} FROM dbos.operation_outputs
WHERE workflow_uuid IN :ids AND (workflow_uuid, function_id) > (:after_id, :after_function)
ORDER BY workflow_uuid, function_id
LIMIT :page_rows
"""


class OperationOutputsStore:
    """The ``operation_outputs`` table."""

    @staticmethod
    def history(connection: Connection, workflow_ids: Sequence[str]) -> dict[str, dict[int, StepRow]]:
        """Everything the workflows have recorded, by workflow and function id."""
        histories: dict[str, dict[int, StepRow]] = {workflow_id: {} for workflow_id in workflow_ids}
        after: tuple[str, int] = ("", -1)
        while True:
            page = connection.all(
                HISTORY,
                ids=list(workflow_ids),
                after_id=after[0],
                after_function=after[1],
                page_rows=HISTORY_PAGE_ROWS,
            )
            for row in map(StepRow._make, page):
                histories[row.workflow_uuid][row.function_id] = row
            if len(page) < HISTORY_PAGE_ROWS:
                return histories
            after = page[-1][:2]

    @staticmethod
    def steps(connection: Connection, workflow_id: str) -> list[StepRow]:
        """A workflow's recorded operations, in order."""
        return list(OperationOutputsStore.history(connection, [workflow_id])[workflow_id].values())
