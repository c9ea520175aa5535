"""PostgreSQL over psycopg 3: set-based statements, prepared once, one round trip for a batch of one kind.

A batch's rows travel as arrays (``unnest``), so one prepared plan serves any number of them. Each statement holds its
own executor's row ``FOR KEY SHARE`` while it writes: a take-over deletes that row, and so waits for the batch or
empties it. Joins are pinned to nested loops over the primary key, because a hash join over the table would halve the
throughput of small batches (docs/decisions/0002).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrDumperUnknown

from dbos._error import ExecutorFencedError
from dbos._migration import create_application_tables, migrate, verify, verify_application_tables
from dbos._schemas.rendering import quote_identifier
from dbos._sysdb.connection import Failure
from dbos._sysdb.dialects.postgres_listener import PostgresListener, SilentListener
from dbos._sysdb.dialects.postgres_migration import PostgresMigrationTarget, create_database_if_missing, drop_database
from dbos._sysdb.operations import (
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
from dbos._sysdb.statements import Renderer

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["PostgresDialect"]

LOCK_TIMEOUT_MS = 100  # the first writer's patience with somebody's row lock, before the unit goes to the second one
PREPARE_THRESHOLD = 5  # psycopg's own default; statements of ours ask for it at once

# A peer that vanished without a word (a pulled cable, a failed-over host) is noticed after so long.
KEEPALIVES = {
    "keepalives_idle": "10",  # seconds
    "keepalives_interval": "5",  # seconds
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",  # milliseconds
}

# SQLSTATEs and their classes (https://www.postgresql.org/docs/current/errcodes-appendix.html). What is not listed here
# is refused: repeating it would only fail again.
_LOST_CLASSES = {"08", "53", "58"}  # connection; resources: disk, memory, connections; input and output
_LOST_STATES = {
    "25006",  # read-only transaction: the server was demoted to a standby
    "25P03",  # idle_in_transaction_session_timeout
    "25P04",  # transaction_timeout
    "40003",  # whether it was committed is unknown
    "57P01",  # admin shutdown
    "57P02",  # crash shutdown
    "57P03",  # starting up or shutting down
    "57P05",  # idle_session_timeout
}
_CONTENTION_STATES = {"40001", "40P01"}  # serialization failure, deadlock
# Connection, transaction state, resources, object state, operator, system, internal: not the value's fault.
_OPERATIONAL_CLASSES = {"08", "25", "53", "55", "57", "58", "XX"}
_BLOCKED_STATES = {"55P03"}  # lock_timeout, NOWAIT


def _unnest(fields: Sequence[str], types: dict[str, str]) -> str:
    """``input``: the batch as a table, one array parameter per field."""
    arrays = ", ".join(f":{name}::{types.get(name, 'text')}[]" for name in fields)
    return f"SELECT * FROM unnest({arrays}) AS rows ({', '.join(fields)})"


# An executor's own row, held while it writes. Who is no executor (a client, a launch) has none and is not fenced.
_HELD = "SELECT 1 FROM dbos.executor_instances WHERE instance_id = :instance FOR KEY SHARE"
_IS_ALIVE = "(:instance::text IS NULL OR EXISTS (SELECT 1 FROM held))"
_START_FIELDS = (*START_COLUMNS, "parent_run_token")
_START_TYPES = dict.fromkeys(
    (
        "created_at",
        "recovery_attempts",
        "workflow_timeout_ms",
        "workflow_deadline_epoch_ms",
        "priority",
        "delay_until_epoch_ms",
    ),
    "bigint",
)
_STEP_TYPES = dict.fromkeys(("function_id", "started_at_epoch_ms", "completed_at_epoch_ms"), "bigint")

INSERT_WORKFLOWS = f"""
-- Create workflow rows; an id that is taken keeps its row, a child needs a parent that owns its run.
WITH input AS ({_unnest(_START_FIELDS, _START_TYPES)}),
held AS ({_HELD})
INSERT INTO dbos.workflow_status ({", ".join(START_COLUMNS)}, updated_at, owner_xid)
SELECT {", ".join("i." + name for name in START_COLUMNS)}, i.created_at, i.run_token
FROM input i
WHERE ((i.owner_instance IS NULL AND i.parent_run_token IS NULL) OR {_IS_ALIVE})
  AND (i.parent_run_token IS NULL OR EXISTS (
    SELECT 1 FROM dbos.workflow_status p
    WHERE p.workflow_uuid = i.parent_workflow_id AND p.run_token = i.parent_run_token AND p.status = 'PENDING'))
ORDER BY i.workflow_uuid
ON CONFLICT DO NOTHING
RETURNING run_token
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
WITH input AS ({_unnest(RecordOutcome._fields, {"completed_at": "bigint"})}),
held AS ({_HELD})
UPDATE dbos.workflow_status w
SET status = i.status, output = i.output, error = i.error, outcome_serialization = i.outcome_serialization,
    completed_at = i.completed_at, updated_at = i.completed_at, owner_instance = NULL, deduplication_id = NULL
FROM (SELECT * FROM input ORDER BY workflow_uuid) i
WHERE w.workflow_uuid = i.workflow_uuid AND w.run_token = i.run_token AND w.status = 'PENDING'
  AND {_IS_ALIVE}
RETURNING w.workflow_uuid
"""
SELECT_FENCE = "SELECT 1 FROM dbos.executor_instances WHERE instance_id = :instance"

_RECORDED = StepRecorded("PENDING", None)
_APPLIED = OutcomeRecorded(is_applied=True)
_CREATED = Started(created=True, existing=None)


class PostgresConnection:
    """A psycopg connection behind the :class:`~dbos._sysdb.connection.Connection` protocol."""

    def __init__(self, raw: psycopg.Connection[Any], renderer: Renderer) -> None:
        self.raw = raw
        self._renderer = renderer

    def _execute(self, sql: str, parameters: dict[str, Any]) -> psycopg.Cursor[Any]:
        rendered = self._renderer.render(sql)
        values = rendered.bind(parameters)
        for position, value in enumerate(values):
            if isinstance(value, list | tuple):
                values[position] = array_literal(value)
        try:
            return self.raw.execute(rendered.sql, values, prepare=True)
        except psycopg.OperationalError as error:
            if error.sqlstate is None and not self.raw.closed:
                # The driver's own, such as too many parameters: it must not pass for a connection that was lost.
                raise psycopg.ProgrammingError(str(error)) from error
            raise

    def all(self, sql: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        return self._execute(sql, parameters).fetchall()

    def one(self, sql: str, /, **parameters: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._execute(sql, parameters).fetchone()
        return row

    def run(self, sql: str, /, **parameters: Any) -> int:
        return self._execute(sql, parameters).rowcount

    def close(self) -> None:
        self.raw.close()


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
        except BaseException:
            raw.close()
            raise
        self._raw = raw
        self._connection = PostgresConnection(raw, self._dialect.renderer)

    def write(self, operations: Sequence[Operation]) -> list[Any]:
        # The same for the whole batch: should this process register anew meanwhile, its old runs stay refused.
        self._instance = self.instance_id
        alone = self._in_one_statement(operations)
        if alone is not None:
            return alone(operations)
        self._raw.execute("BEGIN")
        try:
            results = self._execute(operations)
            self._raw.execute("COMMIT")
        except BaseException:
            if not self._raw.closed and self._raw.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                self._raw.rollback()
            raise
        return results

    def _in_one_statement(self, operations: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]] | None:
        """The method that writes these operations in a single statement, which is a transaction by itself."""
        kind = type(operations[0])
        for operation in operations:
            if type(operation) is not kind:
                return None
        if kind is RecordStep:
            return self._record_steps
        if kind is RecordOutcome:
            return self._record_outcomes
        if kind is StartWorkflow and all(start.parent_step is None for start in operations):
            return self._start_workflows
        return None

    def _execute(self, operations: Sequence[Operation]) -> list[Any]:
        results: list[Any] = [None] * len(operations)
        kinds: dict[type, list[int]] = {}
        for position, operation in enumerate(operations):
            kinds.setdefault(type(operation), []).append(position)
        verbs: tuple[tuple[type, Callable[[Sequence[Any]], list[Any]]], ...] = (
            (StartWorkflow, self._start_workflows),
            (RecordStep, self._record_steps),
            (RecordOutcome, self._record_outcomes),
            (Call, self._call),
        )
        for kind, verb in verbs:
            positions = kinds.get(kind, ())
            if positions:
                answers = verb([operations[position] for position in positions])
                for position, answer in zip(positions, answers, strict=True):
                    results[position] = answer
        return results

    def _call(self, calls: Sequence[Call]) -> list[Any]:
        return [verb(self._connection, *arguments) for verb, arguments in calls]

    def _start_workflows(self, starts: Sequence[StartWorkflow]) -> list[Started]:
        for start in starts:
            if self._instance is not None and start.owner_instance not in (None, self._instance):
                assert start.owner_instance is not None
                raise ExecutorFencedError(start.owner_instance)  # made before this process registered anew
        rows = [(*start[:-1], start.parent_step and start.parent_step.run_token) for start in starts]
        tokens = {row[0] for row in self._send(INSERT_WORKFLOWS, _START_FIELDS, rows)}
        parent_steps = [start.parent_step for start in starts if start.parent_step and start.run_token in tokens]
        if parent_steps:
            self._send(INSERT_STEPS, RecordStep._fields, parent_steps)
        if len(tokens) == len(starts):
            return [_CREATED] * len(starts)
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
                results.append(_CREATED)
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

    def _record_steps(self, steps: Sequence[RecordStep]) -> list[StepRecorded]:
        written, pending = self._send(INSERT_STEPS, RecordStep._fields, steps)[0]
        if written == pending == len(steps):
            return [_RECORDED] * len(steps)
        self._check_fence()
        ids = [step.workflow_uuid for step in steps]
        status = dict(self._connection.all(SELECT_RUNS, ids=ids, tokens=[step.run_token for step in steps]))
        rows = self._connection.all(SELECT_STEPS, ids=ids, function_ids=[step.function_id for step in steps])
        recorded = {row[:2]: StepRow(*row) for row in rows}
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

    def _record_outcomes(self, outcomes: Sequence[RecordOutcome]) -> list[OutcomeRecorded]:
        applied = {row[0] for row in self._send(UPDATE_OUTCOMES, RecordOutcome._fields, outcomes)}
        if len(applied) == len(outcomes):
            return [_APPLIED] * len(outcomes)
        self._check_fence()
        ids = [outcome.workflow_uuid for outcome in outcomes]
        rows = self._connection.all(SELECT_RUNS, ids=ids, tokens=[outcome.run_token for outcome in outcomes])
        # A final status under this token was set by an earlier execution whose answer was lost.
        applied |= {workflow_id for workflow_id, status in rows if status in ("SUCCESS", "ERROR")}
        return [OutcomeRecorded(is_applied=outcome.workflow_uuid in applied) for outcome in outcomes]

    def _send(self, sql: str, fields: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        rendered = self._dialect.renderer.render(sql)
        arrays: dict[str, Any] = dict(zip(fields, map(array_literal, zip(*rows, strict=True)), strict=True))
        arrays["instance"] = self._instance
        cursor = self._raw.execute(rendered.sql, rendered.bind(arrays), prepare=True)
        return cursor.fetchall()

    def _check_fence(self) -> None:
        if self._instance is not None and not self._connection.one(SELECT_FENCE, instance=self._instance):
            raise ExecutorFencedError(self._instance)

    def reset(self) -> None:
        """Connect anew.

        An interrupt can leave a connection between a query and its answer; and a server that was demoted to a standby
        refuses writes on a connection that looks healthy.
        """
        self._raw.close()
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
        self._raw.close()


class PostgresDialect:
    """A system database in one schema of a PostgreSQL database."""

    name = "postgresql"
    now_ms = "(extract(epoch from clock_timestamp()) * 1000)::bigint"
    has_own_clock = True
    skip_locked = "FOR UPDATE OF w SKIP LOCKED"

    def __init__(
        self,
        conninfo: Mapping[str, str],
        schema: str,
        process_tag: str,
        *,
        may_listen: bool = True,
        prepare_threshold: int | None = PREPARE_THRESHOLD,
    ) -> None:
        self.renderer = Renderer("numbered", quote_identifier(schema) + ".")
        self.process_tag = process_tag
        self.channel = "dbos_" + hashlib.sha256(schema.encode()).hexdigest()[:16]
        self._conninfo = make_conninfo(**{**KEEPALIVES, **conninfo})
        self._schema = schema
        self._may_listen = may_listen
        self._prepare_threshold = prepare_threshold

    def connect(self) -> psycopg.Connection[Any]:
        """Open an autocommit connection whose cursors take ``$1`` placeholders."""
        connection: psycopg.Connection[Any] = psycopg.connect(
            self._conninfo, autocommit=True, cursor_factory=psycopg.RawCursor, prepare_threshold=self._prepare_threshold
        )
        # One integer type: otherwise the size of a value would choose the type, and with it another prepared plan.
        connection.adapters.register_dumper(int, Int8BinaryDumper)
        # Text without a type, so that an array literal can be whatever array the statement says.
        connection.adapters.register_dumper(str, StrDumperUnknown)
        return connection

    def prepare(self, *, may_migrate: bool) -> None:
        if may_migrate:
            create_database_if_missing(self._conninfo)
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            target = PostgresMigrationTarget(connection, schema=self._schema)
            if may_migrate:
                migrate(target)
            else:
                verify(target)

    def drop(self) -> None:
        drop_database(self._conninfo)

    def open_writer(self, *, lock_timeout_ms: int | None = None) -> PostgresWriter:
        return PostgresWriter(self, LOCK_TIMEOUT_MS if lock_timeout_ms is None else lock_timeout_ms)

    def has_second_writer(self) -> bool:
        return True

    def open_reader(self) -> PostgresConnection:
        return PostgresConnection(self.connect(), self.renderer)

    def listener(
        self, on_wakeup: Callable[[str | None], None], poll_writer: Callable[[], None]
    ) -> PostgresListener | SilentListener:
        if not self._may_listen:
            return SilentListener()
        return PostgresListener(self.connect, self.channel, self.process_tag, on_wakeup)

    def classify(self, error: BaseException) -> Failure:
        if not isinstance(error, psycopg.Error):
            return Failure.REFUSED
        state = error.sqlstate
        if state is None:  # libpq's own, not the server's
            is_connection = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
            return Failure.CONNECTION_LOST if is_connection else Failure.REFUSED
        if state in _BLOCKED_STATES:
            return Failure.BLOCKED
        if state in _CONTENTION_STATES:
            return Failure.CONTENTION
        if state in _LOST_STATES or state[:2] in _LOST_CLASSES:
            return Failure.CONNECTION_LOST
        return Failure.REFUSED

    def refuses_value(self, error: BaseException) -> bool:
        if not isinstance(error, psycopg.Error):
            return True  # before it was sent: the value could not be encoded
        return error.sqlstate is None or error.sqlstate[:2] not in _OPERATIONAL_CLASSES

    def sqlalchemy_dialect(self) -> sa.Dialect:
        from sqlalchemy.dialects import postgresql  # slow to import, and rarely needed

        return postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


def prepare_application_database(conninfo: Mapping[str, str], schema: str, *, may_migrate: bool) -> None:
    """Create or verify the table of transaction records in an application's own database."""
    text = make_conninfo(**conninfo)
    if may_migrate:
        create_database_if_missing(text)
    with psycopg.connect(text, autocommit=True) as connection:
        target = PostgresMigrationTarget(connection, schema=schema)
        (create_application_tables if may_migrate else verify_application_tables)(target)


def array_literal(values: Sequence[Any]) -> str:
    """Values as an array literal: several times faster than the driver's element-wise conversion of lists."""
    items = []
    for value in values:
        if value is None:
            items.append("NULL")
        elif type(value) is int:
            items.append(str(value))
        else:
            if '"' in value or "\\" in value:
                value = value.replace("\\", "\\\\").replace('"', '\\"')
            items.append(f'"{value}"')
    return "{" + ",".join(items) + "}"
