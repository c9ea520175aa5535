"""PostgreSQL over psycopg 3: set-based statements, prepared once, one round trip for a batch of one kind.

A batch's rows travel as arrays (``unnest``), so one prepared plan serves any number of them. Each statement holds its
own executor's row ``FOR KEY SHARE`` while it writes: a take-over deletes that row, and so waits for the batch or
empties it. Joins are pinned to nested loops over the primary key, because a hash join over the table would halve the
throughput of small batches (docs/decisions/0002).
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import errors
from psycopg.conninfo import make_conninfo
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrDumperUnknown
from sqlalchemy.dialects import postgresql

from dbos._error import ExecutorFencedError
from dbos._migration import create_application_tables, migrate, verify, verify_application_tables
from dbos._schemas.rendering import quote_identifier
from dbos._sysdb.connection import Failure
from dbos._sysdb.dialects.postgres_migration import PostgresMigrationTarget, create_database_if_missing, drop_database
from dbos._sysdb.operations import (
    START_COLUMNS,
    Operation,
    OutcomeRecorded,
    RecordOutcome,
    RecordStep,
    Started,
    StartWorkflow,
    StepRecorded,
)
from dbos._sysdb.retry import Backoff
from dbos._sysdb.rows import StatusRow, StepRow, columns
from dbos._sysdb.statements import Renderer

__all__ = ["PostgresDialect"]

logger = logging.getLogger("dbos.postgres")

LOCK_TIMEOUT_MS = 250  # the first writer's patience with somebody's row lock, before the unit goes to the second one
PUBLISH_EVERY_S = 0.005  # notifications are coalesced: NOTIFY takes a lock that all committing sessions share


def _unnest(fields: Sequence[str], types: dict[str, str]) -> str:
    """``input``: the batch as a table, one array parameter per field."""
    arrays = ", ".join(f":{name}::{types.get(name, 'text')}[]" for name in fields)
    return f"SELECT * FROM unnest({arrays}) AS rows ({', '.join(fields)})"


_HELD = "SELECT instance_id FROM dbos.executor_instances WHERE instance_id = :instance FOR KEY SHARE"
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
WHERE (i.owner_instance IS NULL OR i.owner_instance IN (SELECT instance_id FROM held))
  AND (i.parent_run_token IS NULL OR EXISTS (
    SELECT 1 FROM dbos.workflow_status p
    WHERE p.workflow_uuid = i.parent_workflow_id AND p.run_token = i.parent_run_token AND p.status = 'PENDING'))
ORDER BY i.workflow_uuid
ON CONFLICT DO NOTHING
RETURNING run_token
"""
SELECT_WORKFLOWS = f"SELECT {columns(StatusRow)} FROM dbos.workflow_status WHERE workflow_uuid IN :ids"
INSERT_STEPS = f"""
-- Record operations of runs whose token is valid; the first record wins. Answers how many were owned and written.
WITH input AS ({_unnest(RecordStep._fields, _STEP_TYPES)}),
held AS ({_HELD}),
owned AS MATERIALIZED (
  SELECT i.*, w.status FROM input i
  JOIN dbos.workflow_status w ON w.workflow_uuid = i.workflow_uuid AND w.run_token = i.run_token
  WHERE w.status IN ('PENDING', 'CANCELLED') AND EXISTS (SELECT 1 FROM held)),
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
  AND EXISTS (SELECT 1 FROM held)
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
        values = [array_literal(value) if isinstance(value, list) else value for value in rendered.bind(parameters)]
        return self.raw.execute(rendered.sql, values, prepare=True)  # type: ignore[arg-type]  # not a literal string

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
        self._dialect = dialect
        self._lock_timeout_ms = lock_timeout_ms
        self._open()

    def _open(self) -> None:
        self._raw = self._dialect.connect()
        self._raw.execute(f"SET lock_timeout = {self._lock_timeout_ms}")
        self._raw.execute("SET enable_hashjoin = off")
        self._raw.execute("SET enable_mergejoin = off")
        self._raw.execute("SET plan_cache_mode = force_generic_plan")
        self._connection = PostgresConnection(self._raw, self._dialect.renderer)

    def write(self, operations: Sequence[Operation]) -> list[Any]:
        first = type(operations[0])
        if first is RecordStep and all(type(operation) is RecordStep for operation in operations):
            return self._record_steps(operations)  # type: ignore[arg-type]  # just checked; one statement commits itself
        self._raw.execute("BEGIN")
        try:
            results = self._execute(operations)
            self._raw.execute("COMMIT")
        except BaseException:
            if not self._raw.closed and self._raw.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                self._raw.rollback()
            raise
        return results

    def _execute(self, operations: Sequence[Operation]) -> list[Any]:
        results: list[Any] = [None] * len(operations)
        kinds: dict[type, list[int]] = {}
        for position, operation in enumerate(operations):
            kinds.setdefault(type(operation), []).append(position)
        for kind, many in ((StartWorkflow, self._start_workflows), (RecordStep, self._record_steps)):
            positions = kinds.pop(kind, [])
            if positions:
                _place(results, positions, many([operations[position] for position in positions]))  # type: ignore[arg-type]
        positions = kinds.pop(RecordOutcome, [])
        if positions:
            _place(results, positions, self._record_outcomes([operations[each] for each in positions]))  # type: ignore[misc]
        for positions in kinds.values():
            for position in positions:
                verb, arguments = operations[position]  # type: ignore[misc]  # only Call is left
                results[position] = verb(self._connection, *arguments)
        return results

    def _start_workflows(self, starts: Sequence[StartWorkflow]) -> list[Started]:
        rows = [(*start[:-1], start.parent_step and start.parent_step.run_token) for start in starts]
        tokens = {row[0] for row in self._send(INSERT_WORKFLOWS, _START_FIELDS, rows)}
        parent_steps = [start.parent_step for start in starts if start.parent_step and start.run_token in tokens]
        if parent_steps:
            self._send(INSERT_STEPS, RecordStep._fields, parent_steps)
        if len(tokens) == len(starts):
            return [_CREATED] * len(starts)
        self._check_fence()
        ids = [start.workflow_uuid for start in starts if start.run_token not in tokens]
        existing = {row[0]: StatusRow(*row) for row in self._connection.all(SELECT_WORKFLOWS, ids=ids)}
        results = []
        for start in starts:
            row = existing.get(start.workflow_uuid)
            # A row that bears this very token was made by an earlier execution whose answer was lost.
            created = start.run_token in tokens or (row is not None and row.owner_xid == start.run_token)
            if row is None and not created and start.owner_instance not in (None, self.instance_id):
                raise ExecutorFencedError(start.owner_instance)  # made before this process registered anew
            results.append(_CREATED if created else Started(created=False, existing=row))
        return results

    def _record_steps(self, steps: Sequence[RecordStep]) -> list[StepRecorded]:
        written, pending = self._send(INSERT_STEPS, RecordStep._fields, steps)[0]
        if written == pending == len(steps):
            return [_RECORDED] * len(steps)
        self._check_fence()
        ids = [step.workflow_uuid for step in steps]
        status = dict(self._connection.all(SELECT_RUNS, ids=ids, tokens=[step.run_token for step in steps]))
        rows = self._connection.all(SELECT_STEPS, ids=ids, function_ids=[step.function_id for step in steps])
        existing = {row[:2]: StepRow(*row) for row in rows}
        results = []
        for step in steps:
            row = existing.get(step[:2])
            if row is not None and row == step[:9]:
                row = None  # it is the very record that was to be written
            valid = status.get(step.workflow_uuid)
            results.append(StepRecorded(valid if valid in ("PENDING", "CANCELLED") else None, row))
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
        arrays["instance"] = self.instance_id
        cursor = self._raw.execute(rendered.sql, rendered.bind(arrays), prepare=True)  # type: ignore[arg-type]
        return cursor.fetchall()

    def _check_fence(self) -> None:
        if self.instance_id is not None and not self._connection.one(SELECT_FENCE, instance=self.instance_id):
            raise ExecutorFencedError(self.instance_id)

    def reset(self) -> None:
        if not self._raw.closed and not self._raw.broken:
            self._raw.rollback()
            return
        self._raw.close()
        self._open()

    def classify(self, error: BaseException) -> Failure:
        if self._raw.closed or self._raw.broken:
            return Failure.CONNECTION_LOST
        return self._dialect.classify(error)

    def idle(self) -> None:
        """PostgreSQL looks after itself."""

    def close(self) -> None:
        self._raw.close()


class PostgresListener:
    """Hears notifications on one channel, and sends them coalesced, both over one connection and thread."""

    def __init__(self, dialect: PostgresDialect, on_wakeup: Callable[[str | None], None]) -> None:
        self._dialect = dialect
        self._on_wakeup = on_wakeup
        self._channel = dialect.channel
        self._stopping = threading.Event()
        self._pending: set[str] = set()
        self._pending_lock = threading.Lock()
        self._has_pending = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for name, target in (("listener", self._listen), ("notifier", self._notify)):
            thread = threading.Thread(target=target, name=f"dbos-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _listen(self) -> None:
        backoff = Backoff(initial_s=0.1, maximum_s=5.0)
        while not self._stopping.is_set():
            try:
                with self._dialect.connect() as connection:
                    connection.execute(f"LISTEN {self._channel}")
                    backoff.reset()
                    self._on_wakeup(None)  # whatever happened while nobody listened
                    own = self._dialect.process_tag
                    while not self._stopping.is_set():
                        for notification in connection.notifies(timeout=0.5):
                            tag, _, topic = notification.payload.partition(":")
                            if tag != own:
                                self._on_wakeup(topic)
            except psycopg.Error as error:
                logger.warning("listener lost its connection, reconnecting: %s", type(error).__name__)
                self._stopping.wait(backoff.next_delay_s())

    def publish(self, topic: str) -> None:
        with self._pending_lock:
            self._pending.add(topic)
        self._has_pending.set()

    def _notify(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        while self._pending or not self._stopping.is_set():
            if not self._has_pending.wait(1.0):
                continue
            self._has_pending.clear()
            with self._pending_lock:
                topics, self._pending = self._pending, set()
            try:
                if connection is None or connection.closed:
                    connection = self._dialect.connect()
                for topic in topics:
                    payload = f"{self._dialect.process_tag}:{topic}"
                    connection.execute("SELECT pg_notify($1, $2)", (self._channel, payload))
            except psycopg.Error as error:
                # Nobody relies on a notification: every waiter is also checked by the safety net.
                logger.info("notification not sent: %s", type(error).__name__)
                if connection is not None:
                    connection.close()
                connection = None
            self._stopping.wait(PUBLISH_EVERY_S)
        if connection is not None:
            connection.close()

    def stop(self) -> None:
        self._stopping.set()
        self._has_pending.set()
        for thread in self._threads:
            thread.join()


class PostgresDialect:
    """A system database in one schema of a PostgreSQL database."""

    name = "postgresql"
    now_ms = "(extract(epoch from clock_timestamp()) * 1000)::bigint"
    has_own_clock = True
    skip_locked = "FOR UPDATE SKIP LOCKED"

    def __init__(self, conninfo: Mapping[str, str], schema: str, process_tag: str) -> None:
        self.renderer = Renderer("numbered", quote_identifier(schema) + ".")
        self.process_tag = process_tag
        self.channel = "dbos_" + hashlib.sha256(schema.encode()).hexdigest()[:16]
        self._conninfo = make_conninfo(**conninfo)
        self._schema = schema

    def connect(self) -> psycopg.Connection[Any]:
        """Open an autocommit connection whose cursors take ``$1`` placeholders."""
        connection: psycopg.Connection[Any] = psycopg.connect(
            self._conninfo, autocommit=True, cursor_factory=psycopg.RawCursor, prepare_threshold=5
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

    def listener(self, on_wakeup: Callable[[str | None], None], poll_writer: Callable[[], None]) -> PostgresListener:
        return PostgresListener(self, on_wakeup)

    def classify(self, error: BaseException) -> Failure:
        if isinstance(error, errors.LockNotAvailable):
            return Failure.BLOCKED
        if isinstance(error, errors.SerializationFailure | errors.DeadlockDetected):
            return Failure.CONTENTION
        if isinstance(error, errors.QueryCanceled):
            return Failure.REFUSED  # a statement_timeout: repeating it would only time out again
        if isinstance(error, errors.DiskFull | errors.ReadOnlySqlTransaction | errors.TooManyConnections):
            return Failure.CONNECTION_LOST
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return Failure.CONNECTION_LOST
        return Failure.REFUSED

    def sqlalchemy_dialect(self) -> sa.Dialect:
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


def _place(results: list[Any], positions: Sequence[int], values: Sequence[Any]) -> None:
    for position, value in zip(positions, values, strict=True):
        results[position] = value

