"""What the writer says to PostgreSQL: the plain cases first, which count what they wrote, then what tells more.

A batch's rows travel as arrays, one for each field, so one prepared plan serves any number of them. A row that is alone
travels as it is, because two dozen arrays of one element cost more than all the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from dbos._sysdb.operations import START_COLUMNS, RecordOutcome, RecordStep
from dbos._sysdb.rows import StatusRow, StepRow, columns

__all__ = [
    "INSERT_PLAIN_STEPS",
    "INSERT_PLAIN_WORKFLOWS",
    "INSERT_STEPS",
    "INSERT_STEP_ALONE",
    "INSERT_WORKFLOWS",
    "INSERT_WORKFLOW_ALONE",
    "SELECT_FENCE",
    "SELECT_HOLDERS",
    "SELECT_RUNS",
    "SELECT_SEQUENCE",
    "SELECT_STEPS",
    "SELECT_WORKFLOWS",
    "START_FIELDS",
    "UPDATE_OUTCOMES",
    "UPDATE_OUTCOME_ALONE",
]


def _unnest(fields: Sequence[str], types: dict[str, str], *more: str) -> str:
    """``input``: the batch as a table, one array parameter per field."""
    arrays = ", ".join(f":{name}::{types.get(name, 'text')}[]" for name in fields)
    return f"SELECT {', '.join(('*', *more))} FROM unnest({arrays}) AS rows ({', '.join(fields)})"


def _row(fields: Sequence[str], types: dict[str, str]) -> str:
    """One row, a parameter per field."""
    return ", ".join(f":{name}::{types.get(name, 'text')}" for name in fields)


def _is_pending(table: str) -> str:
    """Spelled so that the index of what is pending does not offer itself.

    The planner would read that whole index, dead entries included, instead of the few rows that are asked for by their
    keys (docs/decisions/0002).
    """
    return f"{table}.status || '' = 'PENDING'"


# An executor's own row, held while it writes. Who is no executor (a client, a launch) has none and is not fenced.
_HELD = "SELECT 1 FROM dbos.executor_instances WHERE instance_id = :instance FOR KEY SHARE"
_IS_ALIVE = "(:instance::text IS NULL OR EXISTS (SELECT 1 FROM held))"
START_FIELDS = (*START_COLUMNS, "parent_run_token", "parent_function_id")
_START_TYPES = dict.fromkeys(
    (
        "created_at",
        "recovery_attempts",
        "workflow_timeout_ms",
        "workflow_deadline_epoch_ms",
        "priority",
        "delay_until_epoch_ms",
        "parent_function_id",
    ),
    "bigint",
)
_STEP_TYPES = dict.fromkeys(("function_id", "started_at_epoch_ms", "completed_at_epoch_ms"), "bigint")

# Numbered in the order of the batch, and inserted in the order of the ids.
_ENQUEUE_SEQUENCE = "nextval(:enqueue_sequence::oid::regclass) AS enqueue_sequence"
SELECT_SEQUENCE = "SELECT pg_get_serial_sequence(:table, 'enqueue_sequence')::regclass::oid"

INSERT_PLAIN_WORKFLOWS = f"""
-- Create workflow rows that nobody is the parent of.
INSERT INTO dbos.workflow_status ({", ".join(START_COLUMNS)}, enqueue_sequence, updated_at, owner_xid)
SELECT {", ".join("i." + name for name in START_COLUMNS)}, i.enqueue_sequence, i.created_at, i.run_token
FROM ({_unnest(START_COLUMNS, _START_TYPES, _ENQUEUE_SEQUENCE)}) i
WHERE i.owner_instance IS NULL OR :instance::text IS NULL OR EXISTS ({_HELD})
ORDER BY i.workflow_uuid
ON CONFLICT DO NOTHING
"""
INSERT_PLAIN_STEPS = f"""
-- Record operations of pending runs.
INSERT INTO dbos.operation_outputs ({", ".join(StepRow._fields)})
SELECT {", ".join("i." + name for name in StepRow._fields)}
FROM ({_unnest(RecordStep._fields, _STEP_TYPES)}) i
JOIN dbos.workflow_status w
  ON w.workflow_uuid = i.workflow_uuid AND w.run_token = i.run_token AND {_is_pending("w")}
WHERE :instance::text IS NULL OR EXISTS ({_HELD})
ORDER BY i.workflow_uuid, i.function_id
ON CONFLICT DO NOTHING
"""
INSERT_WORKFLOW_ALONE = f"""
-- Create one workflow row that nobody is the parent of.
INSERT INTO dbos.workflow_status ({", ".join(START_COLUMNS)}, updated_at, owner_xid)
SELECT {_row(START_COLUMNS, _START_TYPES)}, :created_at::bigint, :run_token
WHERE :owner_instance::text IS NULL OR :instance::text IS NULL OR EXISTS ({_HELD})
ON CONFLICT DO NOTHING
"""
INSERT_STEP_ALONE = f"""
-- Record one operation of a pending run.
INSERT INTO dbos.operation_outputs ({", ".join(StepRow._fields)})
SELECT {_row(StepRow._fields, _STEP_TYPES)}
FROM dbos.workflow_status w
WHERE w.workflow_uuid = :workflow_uuid AND w.run_token = :run_token AND {_is_pending("w")}
  AND (:instance::text IS NULL OR EXISTS ({_HELD}))
ON CONFLICT DO NOTHING
"""
UPDATE_OUTCOME_ALONE = f"""
-- Finish one pending run.
UPDATE dbos.workflow_status w
SET status = :status, output = :output, error = :error, outcome_serialization = :outcome_serialization,
    completed_at = :completed_at::bigint, updated_at = :completed_at::bigint, owner_instance = NULL,
    deduplication_id = NULL
WHERE w.workflow_uuid = :workflow_uuid AND w.run_token = :run_token AND {_is_pending("w")}
  AND (:instance::text IS NULL OR EXISTS ({_HELD}))
"""
INSERT_WORKFLOWS = f"""
-- Create workflow rows; an id that is taken keeps its row. A child needs a parent that owns its run, and is recorded by
-- it in the same breath. The parent's row is held: whoever cancels it and then looks for children finds them all.
WITH input AS ({_unnest(START_FIELDS, _START_TYPES, _ENQUEUE_SEQUENCE)}),
held AS ({_HELD}),
created AS (
  INSERT INTO dbos.workflow_status ({", ".join(START_COLUMNS)}, enqueue_sequence, updated_at, owner_xid)
  SELECT {", ".join("i." + name for name in START_COLUMNS)}, i.enqueue_sequence, i.created_at, i.run_token
  FROM input i
  WHERE ((i.owner_instance IS NULL AND i.parent_run_token IS NULL) OR {_IS_ALIVE})
    AND (i.parent_run_token IS NULL OR i.parent_run_token = (
      SELECT p.run_token FROM dbos.workflow_status p
      WHERE p.workflow_uuid = i.parent_workflow_id AND {_is_pending("p")} FOR SHARE))
  ORDER BY i.workflow_uuid
  ON CONFLICT DO NOTHING
  RETURNING run_token),
recorded AS (
  INSERT INTO dbos.operation_outputs (workflow_uuid, function_id, function_name, child_workflow_id)
  SELECT i.parent_workflow_id, i.parent_function_id, i.name, i.workflow_uuid
  FROM input i JOIN created ON created.run_token = i.run_token
  WHERE i.parent_run_token IS NOT NULL
  ORDER BY i.parent_workflow_id, i.parent_function_id
  ON CONFLICT DO NOTHING)
SELECT run_token FROM created
"""
SELECT_WORKFLOWS = f"SELECT {columns(StatusRow)} FROM dbos.workflow_status WHERE workflow_uuid IN :ids"
SELECT_HOLDERS = f"""
-- Who holds de-duplication ids of queues.
SELECT {columns(StatusRow, "w")}
FROM unnest(:queue_names::text[], :deduplication_ids::text[]) AS i (queue_name, deduplication_id)
JOIN dbos.workflow_status w ON w.queue_name = i.queue_name AND w.deduplication_id = i.deduplication_id
"""
INSERT_STEPS = f"""
-- Record operations of runs whose token is valid; the first record wins. Answers how many were owned and written.
WITH input AS ({_unnest(RecordStep._fields, _STEP_TYPES)}),
held AS ({_HELD}),
owned AS MATERIALIZED (
  SELECT i.*, w.status FROM input i
  JOIN dbos.workflow_status w ON w.workflow_uuid = i.workflow_uuid AND w.run_token = i.run_token
  WHERE w.status IN ('PENDING', 'CANCELLED') AND {_IS_ALIVE}),
written AS (
  INSERT INTO dbos.operation_outputs ({", ".join(StepRow._fields)})
  SELECT {", ".join(StepRow._fields)} FROM owned ORDER BY workflow_uuid, function_id
  ON CONFLICT DO NOTHING
  RETURNING 1)
SELECT (SELECT count(*) FROM written), (SELECT count(*) FROM owned WHERE status = 'PENDING')
"""
SELECT_RUNS = """
SELECT workflow_uuid, status FROM dbos.workflow_status
WHERE workflow_uuid IN :ids AND run_token IN :tokens
"""
SELECT_STEPS = f"""
SELECT {columns(StepRow, "o")}
FROM unnest(:ids::text[], :function_ids::bigint[]) AS i (id, function_id)
JOIN dbos.operation_outputs o ON o.workflow_uuid = i.id AND o.function_id = i.function_id
"""
UPDATE_OUTCOMES = f"""
-- Finish runs: only PENDING rows under the run's token.
UPDATE dbos.workflow_status w
SET status = i.status, output = i.output, error = i.error, outcome_serialization = i.outcome_serialization,
    completed_at = i.completed_at, updated_at = i.completed_at, owner_instance = NULL, deduplication_id = NULL
FROM ({_unnest(RecordOutcome._fields, {"completed_at": "bigint"})} ORDER BY workflow_uuid) i
WHERE w.workflow_uuid = i.workflow_uuid AND w.run_token = i.run_token AND {_is_pending("w")}
  AND (:instance::text IS NULL OR EXISTS ({_HELD}))
"""
SELECT_FENCE = "SELECT 1 FROM dbos.executor_instances WHERE instance_id = :instance"
