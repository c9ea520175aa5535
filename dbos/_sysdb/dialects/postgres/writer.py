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
from dbos._sysdb.rows import StatusRow, StepRow

from .connection import PipelinedConnection, array_literal
from .pipeline import Answer, Pipeline
from .statements import (
    INSERT_PLAIN_STEPS,
    INSERT_PLAIN_WORKFLOWS,
    INSERT_STEP_ALONE,
    INSERT_STEPS,
    INSERT_WORKFLOW_ALONE,
    INSERT_WORKFLOWS,
    SELECT_FENCE,
    SELECT_HOLDERS,
    SELECT_RUNS,
    SELECT_SEQUENCE,
    SELECT_STEPS,
    SELECT_WORKFLOWS,
    START_FIELDS,
    UPDATE_OUTCOME_ALONE,
    UPDATE_OUTCOMES,
)

if TYPE_CHECKING:
    from .dialect import PostgresDialect

__all__ = ["LOCK_TIMEOUT_MS", "PostgresWriter"]

LOCK_TIMEOUT_MS = 100  # the first writer's patience with somebody's row lock, before the unit goes to the second one

IDLE_IN_TRANSACTION_MS = 15_000

_IN_TRANSACTION = (psycopg.pq.TransactionStatus.INTRANS, psycopg.pq.TransactionStatus.INERROR)


class _Kind(NamedTuple):
    """How operations of one kind are written: the plain cases first, which only count what they wrote."""

    alone_statement: str
    plain_statement: str
    plain_fields: Sequence[str]
    plain_result: Any
    statement: str
    fields: Sequence[str]
    look: Callable[[PostgresWriter, Any, Answer], list[Any]]


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
            # A process that is frozen between two statements must not keep what it has locked.
            raw.execute(f"SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS}")
            raw.execute("SET enable_seqscan = off")
            raw.execute("SET jit = off")  # a scan that cannot be avoided counts as dear enough to be compiled
            raw.execute("SET enable_hashjoin = off")
            raw.execute("SET enable_mergejoin = off")
            raw.execute("SET plan_cache_mode = force_generic_plan")
            raw.execute("SET default_transaction_isolation = 'read committed'")  # a claim counts after it has locked
            pipeline = Pipeline(raw, may_prepare=raw.prepare_threshold is not None)
        except BaseException:
            raw.close()
            raise
        self._raw, self._pipeline = raw, pipeline
        # psycopg forgets its own prepared statements after a rollback, with DEALLOCATE ALL: ours would go with them.
        raw.prepare_threshold = None
        self._connection = PipelinedConnection(pipeline, self._dialect.renderer)
        # Known by its number, because the name of its schema would have to be quoted twice.
        table = self._dialect.renderer.text("dbos.workflow_status")
        sequence = self._connection.one(SELECT_SEQUENCE, table=table)
        self._enqueue_sequence = None if sequence is None else str(sequence[0])

    def write(self, operations: Sequence[Operation]) -> list[Any]:
        # The same for the whole batch: should this process register anew meanwhile, its old runs stay refused.
        self._instance = self.instance_id
        return in_groups(operations, self._execute)

    def _execute(self, groups: Groups) -> list[list[Any]]:
        if groups[-1][0] is not Call:
            return self._send(groups)
        calls: Sequence[Call] = groups[-1][1]
        if len(groups) == 1 and len(calls) == 1 and calls[0].is_single:
            return [[calls[0].verb(self._connection, *calls[0].arguments)]]
        self._raw.execute("BEGIN")
        try:
            results = self._send(groups[:-1])
            results.append([call.verb(self._connection, *call.arguments) for call in calls])
            self._raw.execute("COMMIT")
        except BaseException:
            if self._raw.info.transaction_status in _IN_TRANSACTION:
                self._raw.rollback()
            else:
                self._raw.close()  # it was interrupted before an answer came, and can do no more
            raise
        return results

    def _send(self, groups: Groups) -> list[list[Any]]:
        """Execute one statement for each group, in one round trip.

        The plain statements write what is as it should be, and count. Should anything be missing, all is sent again by
        those that handle every case and tell why; what was written already recognises itself.
        """
        if not groups:
            return []
        for kind, operations in groups:
            if kind is StartWorkflow:
                self._refuse_earlier_instances(operations)
        return self._send_plain(groups) or self._send_full(groups)

    def _send_plain(self, groups: Groups) -> list[list[Any]] | None:
        for kind, operations in groups:
            if kind is StartWorkflow and any(start.parent_step is not None for start in operations):
                return None
        if len(groups) == 1 and len(groups[0][1]) == 1:
            kind, operations = groups[0]
            statements = [self._statement_alone(_KINDS[kind].alone_statement, operations[0])]
        else:
            statements = [
                self._statement(_KINDS[kind].plain_statement, _KINDS[kind].plain_fields, operations)
                for kind, operations in groups
            ]
        answers = self._pipeline.execute(statements)
        if any(answer.touched < len(operations) for (_, operations), answer in zip(groups, answers, strict=True)):
            return None
        return [[_KINDS[kind].plain_result] * len(operations) for kind, operations in groups]

    def _send_full(self, groups: Groups) -> list[list[Any]]:
        answers = self._pipeline.execute(
            [
                self._statement(
                    _KINDS[kind].statement,
                    _KINDS[kind].fields,
                    [_start_row(start) for start in operations] if kind is StartWorkflow else operations,
                )
                for kind, operations in groups
            ]
        )
        return [
            _KINDS[kind].look(self, operations, answer)
            for (kind, operations), answer in zip(groups, answers, strict=True)
        ]

    def _statement(
        self, sql: str, fields: Sequence[str], rows: Sequence[tuple[Any, ...]]
    ) -> tuple[str, list[str | None]]:
        rendered = self._dialect.renderer.render(sql)
        columns = map(array_literal, zip(*rows, strict=True))
        values: dict[str, Any] = dict(zip(fields, columns, strict=False))  # a plain start's parent is left out
        values["instance"] = self._instance
        values["enqueue_sequence"] = self._enqueue_sequence
        return rendered.sql, rendered.bind(values)

    def _statement_alone(self, sql: str, operation: Any) -> tuple[str, list[str | None]]:
        rendered = self._dialect.renderer.render(sql)
        values: dict[str, Any] = operation._asdict()
        values["instance"] = self._instance
        bound = rendered.bind(values)
        return rendered.sql, [value if value is None or type(value) is str else str(value) for value in bound]

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
                results.append(StepRecorded(status[step.workflow_uuid], None if row == step[:-1] else row))
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


_KINDS: dict[type, _Kind] = {
    StartWorkflow: _Kind(
        INSERT_WORKFLOW_ALONE,
        INSERT_PLAIN_WORKFLOWS,
        START_COLUMNS,
        CREATED,
        INSERT_WORKFLOWS,
        START_FIELDS,
        PostgresWriter._started,
    ),
    RecordStep: _Kind(
        INSERT_STEP_ALONE,
        INSERT_PLAIN_STEPS,
        RecordStep._fields,
        RECORDED,
        INSERT_STEPS,
        RecordStep._fields,
        PostgresWriter._recorded,
    ),
    RecordOutcome: _Kind(
        UPDATE_OUTCOME_ALONE,
        UPDATE_OUTCOMES,
        RecordOutcome._fields,
        APPLIED,
        UPDATE_OUTCOMES,
        RecordOutcome._fields,
        PostgresWriter._finished,
    ),
}
