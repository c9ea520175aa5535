"""What the writer says to SQLite: the plain cases first, which count what they wrote, then what tells more.

Parameters are positional, in the order of the operations' fields; an executor's instance comes last. None for it stands
for somebody who is no executor, and is not fenced.
"""

from __future__ import annotations

import functools

from dbos._sysdb.operations import START_COLUMNS, RecordOutcome
from dbos._sysdb.rows import StatusRow, StepRow, columns

__all__ = [
    "INSERT_STEP",
    "INSERT_STEP_ALONE",
    "INSERT_WORKFLOW_ALONE",
    "SELECT_FENCE",
    "SELECT_HOLDER",
    "SELECT_RUN_STATUS",
    "SELECT_STEP",
    "SELECT_WORKFLOW",
    "UPDATE_OUTCOME_ALONE",
    "insert_steps",
    "insert_workflows",
    "update_outcomes",
]

_STEP_WIDTH = len(StepRow._fields)  # the run token comes after them
_START_WIDTH = len(START_COLUMNS) + 2
_TOKEN = f"?{_STEP_WIDTH + 1}"
_OWNER = f"?{START_COLUMNS.index('owner_instance') + 1}"
_STEP_COLUMNS = ", ".join(StepRow._fields)
_START_COLUMNS = f"{', '.join(START_COLUMNS)}, updated_at, owner_xid"
_IS_PENDING = (
    "SELECT 1 FROM workflow_status w WHERE w.workflow_uuid = {id} AND w.run_token = {token} AND w.status = 'PENDING'"
)
_IS_ALIVE = "({instance} IS NULL OR EXISTS (SELECT 1 FROM executor_instances WHERE instance_id = {instance}))"


def _marks(count: int) -> str:
    return ", ".join(f"?{number}" for number in range(1, count + 1))


def _rows(count: int, width: int) -> str:
    row = f"({', '.join('?' * width)})"
    return ", ".join([row] * count)


INSERT_STEP_ALONE = f"""
-- Record an operation of a pending run, as a transaction of its own.
INSERT INTO operation_outputs ({_STEP_COLUMNS})
SELECT {_marks(_STEP_WIDTH)}
WHERE EXISTS ({_IS_PENDING.format(id="?1", token=_TOKEN)})
  AND {_IS_ALIVE.format(instance=f"?{_STEP_WIDTH + 2}")}
ON CONFLICT DO NOTHING
"""
UPDATE_OUTCOME_ALONE = f"""
-- Finish a pending run, as a transaction of its own.
UPDATE workflow_status
SET status = ?3, output = ?4, error = ?5, outcome_serialization = ?6, completed_at = ?7, updated_at = ?7,
    owner_instance = NULL, deduplication_id = NULL
WHERE workflow_uuid = ?1 AND run_token = ?2 AND status = 'PENDING'
  AND {_IS_ALIVE.format(instance=f"?{len(RecordOutcome._fields) + 1}")}
"""
INSERT_WORKFLOW_ALONE = f"""
-- Create a workflow's row, as a transaction of its own.
INSERT INTO workflow_status ({_START_COLUMNS})
SELECT {_marks(_START_WIDTH)}
WHERE {_OWNER} IS NULL OR {_IS_ALIVE.format(instance=f"?{_START_WIDTH + 1}")}
ON CONFLICT DO NOTHING
"""


@functools.cache
def insert_steps(count: int) -> str:
    """Record operations of pending runs."""
    return f"""
INSERT INTO operation_outputs ({_STEP_COLUMNS})
SELECT {", ".join(f"column{number}" for number in range(1, _STEP_WIDTH + 1))}
FROM (VALUES {_rows(count, _STEP_WIDTH + 1)})
WHERE EXISTS ({_IS_PENDING.format(id="column1", token=f"column{_STEP_WIDTH + 1}")})
ON CONFLICT DO NOTHING
"""


@functools.cache
def update_outcomes(count: int) -> str:
    """Finish pending runs."""
    return f"""
UPDATE workflow_status
SET status = i.column3, output = i.column4, error = i.column5, outcome_serialization = i.column6,
    completed_at = i.column7, updated_at = i.column7, owner_instance = NULL, deduplication_id = NULL
FROM (VALUES {_rows(count, len(RecordOutcome._fields))}) AS i
WHERE workflow_uuid = i.column1 AND run_token = i.column2 AND workflow_status.status = 'PENDING'
"""


@functools.cache
def insert_workflows(count: int) -> str:
    """Create workflows' rows."""
    return f"INSERT INTO workflow_status ({_START_COLUMNS}) VALUES {_rows(count, _START_WIDTH)} ON CONFLICT DO NOTHING"


SELECT_WORKFLOW = f"SELECT {columns(StatusRow)} FROM workflow_status WHERE workflow_uuid = ?"
SELECT_HOLDER = f"""
-- Who holds a de-duplication id of a queue.
SELECT {columns(StatusRow)} FROM workflow_status WHERE queue_name = ? AND deduplication_id = ?
"""
SELECT_RUN_STATUS = "SELECT status FROM workflow_status WHERE workflow_uuid = ? AND run_token = ?"
INSERT_STEP = f"""
-- Record an operation; the first record wins.
INSERT INTO operation_outputs ({_STEP_COLUMNS})
VALUES ({", ".join("?" * _STEP_WIDTH)})
ON CONFLICT DO NOTHING
"""
SELECT_STEP = f"SELECT {columns(StepRow)} FROM operation_outputs WHERE workflow_uuid = ? AND function_id = ?"
SELECT_FENCE = "SELECT 1 FROM executor_instances WHERE instance_id = ?"
