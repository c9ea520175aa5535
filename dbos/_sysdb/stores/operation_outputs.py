"""Recorded operations of workflows."""

from __future__ import annotations

from collections.abc import Sequence

from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import StepRow, columns

__all__ = ["OperationOutputsStore"]

HISTORY_PAGE_ROWS = 2000  # bounds what a driver holds in memory at once
ALL = 2**63 - 1  # rows

HISTORY = f"""
-- A page of recorded operations, in order.
SELECT {columns(StepRow)} FROM dbos.operation_outputs
WHERE workflow_uuid IN :ids AND (workflow_uuid, function_id) > (:after_id, :after_function)
ORDER BY workflow_uuid, function_id
LIMIT :page_rows
"""

_STEPS = """
-- A page of what one workflow has recorded, in order.
SELECT {columns} FROM dbos.operation_outputs
WHERE workflow_uuid = :workflow_id AND function_id > :after
ORDER BY function_id
LIMIT :count OFFSET :offset
"""

STEPS = _STEPS.replace("{columns}", columns(StepRow))

STEPS_WITHOUT_OUTPUT = _STEPS.replace(
    "{columns}",
    ", ".join(f"NULL AS {name}" if name in ("output", "error") else name for name in StepRow._fields),
)

STARTED = """
-- Whether a workflow has recorded another one: as a child that it has started, or was given because it was there.
SELECT 1 FROM dbos.operation_outputs WHERE workflow_uuid = :workflow_id AND child_workflow_id = :child_id LIMIT 1
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
    def steps(
        connection: Connection,
        workflow_id: str,
        *,
        after: int = -1,
        count: int = ALL,
        offset: int = 0,
        has_output: bool = True,
    ) -> list[StepRow]:
        """A workflow's recorded operations behind the function id ``after``, in order.

        Outputs and errors that are not asked for are not read, and None.
        """
        sql = STEPS if has_output else STEPS_WITHOUT_OUTPUT
        found = connection.all(sql, workflow_id=workflow_id, after=after, count=count, offset=offset)
        return [StepRow(*row) for row in found]

    @staticmethod
    def has_started(connection: Connection, workflow_id: str, child_id: str) -> bool:
        """Whether a workflow has recorded that it started another one, which has been there then."""
        return connection.one(STARTED, workflow_id=workflow_id, child_id=child_id) is not None
