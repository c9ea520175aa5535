"""The connection that writes to PostgreSQL: a batch is one round trip.

A batch's rows travel as arrays (``unnest``), so one prepared plan serves any number of them. Each statement holds its
own executor's row ``FOR KEY SHARE`` while it writes: a take-over deletes that row, and so waits for the batch or
empties it. Joins are pinned to nested loops over the primary key, because a hash join over the table would halve the
throughput of small batches (docs/decisions/0002).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from dbos._error import ExecutorFencedError
from dbos._sysdb.batch import Groups, in_groups
from dbos._sysdb.connection import Failure
from dbos._sysdb.operations import (
    APPLIED,
    CREATED,
    RECORDED,
    START_COLUMNS,
    Call,
    Operation,
    OutcomeRecorded,
    RecordOutcome,
    RecordStep,
    Started,
    StartWorkflow,
    StepRecorded,
)
from dbos._sysdb.rows import StatusRow, StepRow, columns

from .connection import PostgresConnection, array_literal
from .pipeline import Answer, Pipeline

if TYPE_CHECKING:
    from .dialect import PostgresDialect

__all__ = ["LOCK_TIMEOUT_MS", "PostgresWriter"]

LOCK_TIMEOUT_MS = 100  # the first writer's patience with somebody's row lock, before the unit goes to the second one


def _unnest(fields: Sequence[str], types: dict[str, str]) -> str:
    """``input``: the batch as a table, one array parameter per field."""
    arrays = ", ".join(f":{name}::{types.get(name, 'text')}[]" for name in fields)
    return f"SELECT * FROM unnest({arrays}) AS rows ({', '.join(fields)})"


# An executor's own row, held while it writes. Who is no executor (a client, a launch) has none and is not fenced.
_HELD = "SELECT 1 FROM dbos.executor_instances WHERE instance_id = :instance FOR KEY SHARE"
_IS_ALIVE = "(:instance::text IS NULL OR EXISTS (SELECT 1 FROM held))"
_START_FIELDS = (*START_COLUMNS, "parent_run_token", "parent_function_id")
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

INSERT_PLAIN_WORKFLOWS = f"""
-- Create workflow rows that nobody is the parent of.
INSERT INTO dbos.workflow_status ({", ".join(START_COLUMNS)}, updated_at, owner_xid)
SELECT {", ".join("i." + name for name in START_COLUMNS)}, i.created_at, i.run_token
FROM ({_unnest(START_COLUMNS, _START_TYPES)}) i
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
  ON w.workflow_uuid = i.workflow_uuid AND w.run_token = i.run_token AND w.status = 'PENDING'
WHERE :instance::text IS NULL OR EXISTS ({_HELD})
ORDER BY i.workflow_uuid, i.function_id
ON CONFLICT DO NOTHING
"""
INSERT_WORKFLOWS = f"""
-- Create workflow rows; an id that is taken keeps its row. A child needs a parent that owns its run, and is recorded by
-- it in the same breath.
WITH input AS ({_unnest(_START_FIELDS, _START_TYPES)}),
held AS ({_HELD}),
created AS (
  INSERT INTO dbos.workflow_status ({", ".join(START_COLUMNS)}, updated_at, owner_xid)
  SELECT {", ".join("i." + name for name in START_COLUMNS)}, i.created_at, i.run_token
  FROM input i
  WHERE ((i.owner_instance IS NULL AND i.parent_run_token IS NULL) OR {_IS_ALIVE})
    AND (i.parent_run_token IS NULL OR EXISTS (
      SELECT 1 FROM dbos.workflow_status p
      WHERE p.workflow_uuid = i.parent_workflow_id AND p.run_token = i.parent_run_token AND p.status = 'PENDING'))
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
WHERE w.workflow_uuid = i.workflow_uuid AND w.run_token = i.run_token AND w.status = 'PENDING'
  AND (:instance::text IS NULL OR EXISTS ({_HELD}))
"""
SELECT_FENCE = "SELECT 1 FROM dbos.executor_instances WHERE instance_id = :instance"


_IN_TRANSACTION = (psycopg.pq.TransactionStatus.INTRANS, psycopg.pq.TransactionStatus.INERROR)


class _Kind(NamedTuple):
    """How operations of one kind are written: the plain case first, which only counts what it wrote."""

    plain_statement: str
    plain_fields: Sequence[str]
    plain_result: Any
    statement: str
    fields: Sequence[str]


_KINDS: dict[type, _Kind] = {
    StartWorkflow: _Kind(INSERT_PLAIN_WORKFLOWS, START_COLUMNS, CREATED, INSERT_WORKFLOWS, _START_FIELDS),
    RecordStep: _Kind(INSERT_PLAIN_STEPS, RecordStep._fields, RECORDED, INSERT_STEPS, RecordStep._fields),
    RecordOutcome: _Kind(UPDATE_OUTCOMES, RecordOutcome._fields, APPLIED, UPDATE_OUTCOMES, RecordOutcome._fields),
}


class PostgresWriter:
    """A connection for a committer."""

    def __init__(self, dialect: PostgresDialect, lock_timeout_ms: int) -> None:
        self.instance_id: str | None = None
        self._instance: str | None = None
        self._dialect = dialect
        self._lock_timeout_ms = lock_timeout_ms
        self._open()

    def _open(self) -> None:
        raw = self._dialect.connect()
        try:
            raw.execute(f"SET lock_timeout = {self._lock_timeout_ms}")
            raw.execute("SET statement_timeout = 0")  # a role's limit is meant for queries, not for commits
            raw.execute("SET enable_hashjoin = off")
            raw.execute("SET enable_mergejoin = off")
            raw.execute("SET plan_cache_mode = force_generic_plan")
            pipeline = Pipeline(raw, may_prepare=raw.prepare_threshold is not None)
        except BaseException:
            raw.close()
            raise
        self._raw, self._pipeline = raw, pipeline
        # psycopg forgets its own prepared statements after a rollback, with DEALLOCATE ALL: ours would go with them.
        raw.prepare_threshold = None
        self._connection = PostgresConnection(raw, self._dialect.renderer)

    def write(self, operations: Sequence[Operation]) -> list[Any]:
        # The same for the whole batch: should this process register anew meanwhile, its old runs stay refused.
        self._instance = self.instance_id
        return in_groups(operations, self._execute)

    def _execute(self, groups: Groups) -> list[list[Any]]:
        if groups[-1][0] is not Call:
            return self._send(groups)
        self._raw.execute("BEGIN")
        try:
            results = self._send(groups[:-1])
            results.append([verb(self._connection, *arguments) for verb, arguments in groups[-1][1]])
            self._raw.execute("COMMIT")
        except BaseException:
            if self._raw.info.transaction_status in _IN_TRANSACTION:
                self._raw.rollback()
            else:
                self._raw.close()  # it was interrupted before an answer came, and can do no more
            raise
        return results

    def _send(self, groups: Groups, *, is_plain: bool = True) -> list[list[Any]]:
        """Execute one statement for each group, in one round trip.

        The plain statements write what is as it should be, and count. Should anything be missing, all is sent again by
        those that handle every case and tell why; what was written already recognises itself.
        """
        if not groups:
            return []
        for kind, operations in groups:
            if kind is StartWorkflow:
                self._refuse_earlier_instances(operations)
                is_plain = is_plain and all(start.parent_step is None for start in operations)
        answers = self._pipeline.execute([self._statement(kind, rows, is_plain=is_plain) for kind, rows in groups])
        if not is_plain:
            look: dict[type, Callable[[Any, Answer], list[Any]]] = {
                StartWorkflow: self._started,
                RecordStep: self._recorded,
                RecordOutcome: self._finished,
            }
            return [look[kind](rows, answer) for (kind, rows), answer in zip(groups, answers, strict=True)]
        if any(answer.touched < len(rows) for (_, rows), answer in zip(groups, answers, strict=True)):
            return self._send(groups, is_plain=False)
        return [[_KINDS[kind].plain_result] * len(rows) for kind, rows in groups]

    def _statement(self, kind: type, operations: Sequence[Any], *, is_plain: bool) -> tuple[str, list[str | None]]:
        how = _KINDS[kind]
        sql, fields = (how.plain_statement, how.plain_fields) if is_plain else (how.statement, how.fields)
        rows = map(_start_row, operations) if kind is StartWorkflow else operations
        rendered = self._dialect.renderer.render(sql)
        values: dict[str, Any] = dict(zip(fields, map(array_literal, zip(*rows, strict=True)), strict=False))
        values["instance"] = self._instance
        return rendered.sql, rendered.bind(values)

    def _refuse_earlier_instances(self, starts: Sequence[StartWorkflow]) -> None:
        for start in starts:
            if self._instance is not None and start.owner_instance not in (None, self._instance):
                assert start.owner_instance is not None
                raise ExecutorFencedError(start.owner_instance)  # made before this process registered anew

    # -- what the statements answered ---------------------------------------------------------------------------------

    def _started(self, starts: Sequence[StartWorkflow], answer: Answer) -> list[Started]:
        tokens = {row[0] for row in answer.rows}
        if len(tokens) == len(starts):
            return [CREATED] * len(starts)
        refused = [start for start in starts if start.run_token not in tokens]
        if any(start.owner_instance is not None or start.parent_step is not None for start in refused):
            self._check_fence()
        ids = [start.workflow_uuid for start in refused]
        existing = {row[0]: StatusRow(*row) for row in self._connection.all(SELECT_WORKFLOWS, ids=ids)}
        holders = self._holders([start for start in refused if start.workflow_uuid not in existing])
        results = []
        for start in starts:
            row = existing.get(start.workflow_uuid)
            # A row that bears this very token was made by an earlier execution whose answer was lost.
            if start.run_token in tokens or (row is not None and row.owner_xid == start.run_token):
                results.append(CREATED)
            else:
                holder = holders.get((start.queue_name, start.deduplication_id))
                results.append(Started(created=False, existing=row, holder=holder if row is None else None))
        return results

    def _holders(self, starts: Sequence[StartWorkflow]) -> dict[tuple[str | None, str | None], StatusRow]:
        keys = {(start.queue_name, start.deduplication_id) for start in starts if start.deduplication_id is not None}
        if not keys:
            return {}
        queue_names, deduplication_ids = map(list, zip(*keys, strict=True))
        rows = self._connection.all(SELECT_HOLDERS, queue_names=queue_names, deduplication_ids=deduplication_ids)
        return {(row.queue_name, row.deduplication_id): row for row in map(StatusRow._make, rows)}

    def _recorded(self, steps: Sequence[RecordStep], answer: Answer) -> list[StepRecorded]:
        count = str(len(steps))
        if answer.rows[0] == (count, count):
            return [RECORDED] * len(steps)
        self._check_fence()
        ids = [step.workflow_uuid for step in steps]
        status = dict(self._connection.all(SELECT_RUNS, ids=ids, tokens=[step.run_token for step in steps]))
        found = self._connection.all(SELECT_STEPS, ids=ids, function_ids=[step.function_id for step in steps])
        recorded = {row[:2]: StepRow(*row) for row in found}
        results = []
        for step in steps:
            row = recorded.get(step[:2])
            is_owned = status.get(step.workflow_uuid) in ("PENDING", "CANCELLED")
            if row is None or not is_owned:
                results.append(StepRecorded(None, None))
            else:
                # What equals the record that was to be written is that record, or was as good as it.
                results.append(StepRecorded(status[step.workflow_uuid], None if row == step[:9] else row))
        return results

    def _finished(self, outcomes: Sequence[RecordOutcome], answer: Answer) -> list[OutcomeRecorded]:
        if answer.touched == len(outcomes):
            return [APPLIED] * len(outcomes)
        self._check_fence()
        ids = [outcome.workflow_uuid for outcome in outcomes]
        runs = self._connection.all(SELECT_RUNS, ids=ids, tokens=[outcome.run_token for outcome in outcomes])
        # A final status under this token was set just now, or by an earlier execution whose answer was lost.
        applied = {workflow_id for workflow_id, status in runs if status in ("SUCCESS", "ERROR")}
        return [OutcomeRecorded(is_applied=outcome.workflow_uuid in applied) for outcome in outcomes]

    def _check_fence(self) -> None:
        if self._instance is not None and not self._connection.one(SELECT_FENCE, instance=self._instance):
            raise ExecutorFencedError(self._instance)

    def reset(self) -> None:
        """Connect anew.

        An interrupt can leave a connection between a query and its answer; and a server that was demoted to a standby
        refuses writes on a connection that looks healthy.
        """
        self.close()
        self._open()

    def classify(self, error: BaseException) -> Failure:
        if self._raw.closed:
            return Failure.CONNECTION_LOST
        if getattr(error, "sqlstate", None) is None:
            return Failure.REFUSED  # the driver's own, such as too many parameters: the connection is well
        return self._dialect.classify(error)

    def idle(self) -> None:
        """PostgreSQL looks after itself."""

    def close(self) -> None:
        self._pipeline.close()
        self._raw.close()


def _start_row(start: StartWorkflow) -> tuple[Any, ...]:
    parent = start.parent_step
    return (*start[:-1], parent and parent.run_token, parent and parent.function_id)
