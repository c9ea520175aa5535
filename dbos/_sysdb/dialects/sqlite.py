"""SQLite, used as it should be: WAL, one writer, explicit transactions, our own checkpoints.

``wal_autocheckpoint`` is off. SQLite before 3.51.3 can lose commits when one connection checkpoints while another
writes, so a checkpoint is made by the writer between batches while a second connection of ours holds the write lock:
that lock is shared by every process on the file, so nobody writes meanwhile (docs/decisions/0003).
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbos._error import DBOSDatabaseUnavailableError, ExecutorFencedError
from dbos._ids import jitter
from dbos._migration import create_application_tables, migrate, verify, verify_application_tables
from dbos._sysdb.connection import Failure
from dbos._sysdb.dialects.sqlite_migration import SQLiteMigrationTarget, delete_database
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
from dbos._sysdb.rows import StatusRow, StepRow, columns
from dbos._sysdb.statements import Renderer

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["SQLiteDialect"]

logger = logging.getLogger("dbos.sqlite")

BUSY_PATIENCE_S = 60.0  # another process that writes longer than this without rest is stuck
WRITE_PATIENCE_S = 5.0  # so long a batch waits for another process before the committer says so, and tries again
CHECKPOINT_BYTES = 4 * 1024 * 1024  # the size of the write-ahead log from which it is copied into the database
CHECKPOINT_LOOK_BATCHES = 64  # how often its size is looked at
MAX_CHECKPOINT_BATCHES = 4096  # between checkpoints of a log that hardly fills
PAGE_BYTES = 4096 + 24  # a page in the log, and its header
FOREIGN_COMMIT_POLL_S = 0.02  # how soon another process' commit is noticed

_RETRYABLE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_FULL}
_LOST = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}

INSERT_WORKFLOW = f"""
-- Create a workflow's row; an id that is taken keeps its row.
INSERT INTO workflow_status ({", ".join(START_COLUMNS)}, updated_at, owner_xid)
VALUES ({", ".join("?" * 27)})
ON CONFLICT DO NOTHING
"""
SELECT_WORKFLOW = f"SELECT {columns(StatusRow)} FROM workflow_status WHERE workflow_uuid = ?"
SELECT_HOLDER = f"""
-- Who holds a de-duplication id of a queue.
SELECT {columns(StatusRow)} FROM workflow_status WHERE queue_name = ? AND deduplication_id = ?
"""
SELECT_RUN_STATUS = "SELECT status FROM workflow_status WHERE workflow_uuid = ? AND run_token = ?"
INSERT_STEP = f"""
-- Record an operation; the first record wins.
INSERT INTO operation_outputs ({", ".join(StepRow._fields)})
VALUES ({", ".join("?" * 9)})
ON CONFLICT DO NOTHING
"""
SELECT_STEP = f"SELECT {columns(StepRow)} FROM operation_outputs WHERE workflow_uuid = ? AND function_id = ?"
UPDATE_OUTCOME = """
-- Finish a run: only a PENDING row under the run's token.
UPDATE workflow_status
SET status = ?, output = ?, error = ?, outcome_serialization = ?, completed_at = ?, updated_at = ?,
    owner_instance = NULL, deduplication_id = NULL
WHERE workflow_uuid = ? AND run_token = ? AND status = 'PENDING'
"""
SELECT_FENCE = "SELECT 1 FROM executor_instances WHERE instance_id = ?"

_RECORDED = StepRecorded("PENDING", None)
_APPLIED = OutcomeRecorded(is_applied=True)
_CREATED = Started(created=True, existing=None)


class SQLiteConnection:
    """A sqlite3 connection behind the :class:`~dbos._sysdb.connection.Connection` protocol."""

    def __init__(self, raw: sqlite3.Connection, renderer: Renderer) -> None:
        self.raw = raw
        self._renderer = renderer

    def _execute(self, sql: str, parameters: dict[str, Any]) -> sqlite3.Cursor:
        rendered = self._renderer.render(sql)
        values = rendered.bind(parameters)
        for position, value in enumerate(values):
            if isinstance(value, list | tuple):
                values[position] = json.dumps(value)
        return self.raw.execute(rendered.sql, values)

    def all(self, sql: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        return self._execute(sql, parameters).fetchall()

    def one(self, sql: str, /, **parameters: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._execute(sql, parameters).fetchone()
        return row

    def run(self, sql: str, /, **parameters: Any) -> int:
        return self._execute(sql, parameters).rowcount

    def close(self) -> None:
        self.raw.close()


class SQLiteWriter:
    """The one connection that writes, and the upkeep that belongs to it."""

    def __init__(self, dialect: SQLiteDialect) -> None:
        self.instance_id: str | None = None
        self.foreign_commits = 0  # how often another process was seen to have committed
        self._dialect = dialect
        self._open()
        self._instance: str | None = None
        self._is_fence_held = False
        self._checkpoints = CheckpointPlan()
        self._next_version_check = 0.0

    def _open(self) -> None:
        raw = self._dialect.connect()
        try:
            raw.execute("PRAGMA busy_timeout = 0")
            self._data_version: int = raw.execute("PRAGMA data_version").fetchone()[0]
        except BaseException:
            raw.close()
            raise
        self._raw = raw
        self._connection = SQLiteConnection(raw, self._dialect.renderer)
        self._cursor = raw.cursor()

    def write(self, operations: Sequence[Operation]) -> list[Any]:
        begin_immediate(self._raw, WRITE_PATIENCE_S)
        # The same for the whole batch: should this process register anew meanwhile, its old runs stay refused.
        self._instance = self.instance_id
        self._is_fence_held = False
        try:
            results = [self._execute(operation) for operation in operations]
            self._raw.execute("COMMIT")
        except BaseException:
            if self._raw.in_transaction:
                self._raw.execute("ROLLBACK")
            raise
        self._checkpoints.batches += 1
        return results

    def _execute(self, operation: Operation) -> Any:
        if isinstance(operation, RecordStep):
            return self._record_step(operation)
        if isinstance(operation, RecordOutcome):
            return self._record_outcome(operation)
        if isinstance(operation, StartWorkflow):
            return self._start_workflow(operation)
        return operation.verb(self._connection, *operation.arguments)

    def _record_step(self, step: RecordStep) -> StepRecorded:
        execute = self._cursor.execute
        self._hold_fence()
        run = execute(SELECT_RUN_STATUS, (step.workflow_uuid, step.run_token)).fetchone()
        if run is None or run[0] not in ("PENDING", "CANCELLED"):
            return StepRecorded(None, None)
        if execute(INSERT_STEP, step[:9]).rowcount:
            return _RECORDED if run[0] == "PENDING" else StepRecorded(run[0], None)
        existing = StepRow(*execute(SELECT_STEP, (step.workflow_uuid, step.function_id)).fetchone())
        # What equals the record that was to be written is that record, or was as good as it.
        return StepRecorded(run[0], None if existing == step[:9] else existing)

    def _record_outcome(self, outcome: RecordOutcome) -> OutcomeRecorded:
        execute = self._cursor.execute
        self._hold_fence()
        changed = execute(
            UPDATE_OUTCOME,
            (*outcome[2:7], outcome.completed_at, outcome.workflow_uuid, outcome.run_token),
        ).rowcount
        if changed:
            return _APPLIED
        run = execute(SELECT_RUN_STATUS, (outcome.workflow_uuid, outcome.run_token)).fetchone()
        return OutcomeRecorded(is_applied=run is not None and run[0] in ("SUCCESS", "ERROR"))

    def _start_workflow(self, start: StartWorkflow) -> Started:
        execute = self._cursor.execute
        step = start.parent_step
        if start.owner_instance is not None or step is not None:
            self._hold_fence()
        if start.owner_instance not in (None, self._instance) and self._instance is not None:
            raise ExecutorFencedError(start.owner_instance)  # made before this process registered anew
        if step is not None:
            parent = execute(SELECT_RUN_STATUS, (step.workflow_uuid, step.run_token)).fetchone()
            if parent is None or parent[0] != "PENDING":
                return Started(created=False, existing=None)
        if execute(INSERT_WORKFLOW, (*start[:-1], start.created_at, start.run_token)).rowcount:
            if step is not None:
                execute(INSERT_STEP, step[:9])
            return _CREATED
        existing = execute(SELECT_WORKFLOW, (start.workflow_uuid,)).fetchone()
        if existing is None:
            holder = execute(SELECT_HOLDER, (start.queue_name, start.deduplication_id)).fetchone()
            return Started(created=False, existing=None, holder=StatusRow(*holder))
        row = StatusRow(*existing)
        if row.owner_xid == start.run_token:
            return _CREATED  # by an earlier execution whose answer was lost
        return Started(created=False, existing=row)

    def _hold_fence(self) -> None:
        """Within BEGIN IMMEDIATE nobody can take this instance's row away before the batch is committed."""
        if self._is_fence_held or self._instance is None:
            return
        if not self._cursor.execute(SELECT_FENCE, (self._instance,)).fetchone():
            raise ExecutorFencedError(self._instance)
        self._is_fence_held = True

    def reset(self) -> None:
        try:
            if self._raw.in_transaction:
                self._raw.execute("ROLLBACK")
            self._raw.execute("SELECT 1")
        except sqlite3.Error:
            self._raw.close()
            self._open()
            self._data_version = -1  # whatever happened while nobody looked

    def classify(self, error: BaseException) -> Failure:
        return self._dialect.classify(error)

    def idle(self) -> None:
        if self._checkpoints.batches >= self._checkpoints.look_at:
            self._checkpoint_if_due()
        now = time.monotonic()
        if now >= self._next_version_check:
            self._next_version_check = now + FOREIGN_COMMIT_POLL_S
            version = self._raw.execute("PRAGMA data_version").fetchone()[0]
            if version != self._data_version:
                self._data_version = version
                self.foreign_commits += 1

    def log_stamp(self) -> object:
        """Something that changes when anybody writes to the write-ahead log."""
        try:
            status = os.stat(self._dialect.path + "-wal")
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def _checkpoint_if_due(self) -> None:
        try:
            log_bytes = os.stat(self._dialect.path + "-wal").st_size
        except FileNotFoundError:
            log_bytes = 0
        if not self._checkpoints.is_due(log_bytes):
            return
        try:
            guard = self._dialect.connect()
            try:
                guard.execute("PRAGMA busy_timeout = 0")
                guard.execute("BEGIN IMMEDIATE")
                _, frames, _ = self._raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                guard.execute("ROLLBACK")
            finally:
                guard.close()
        except sqlite3.OperationalError as error:
            logger.debug("checkpoint put off: %s", error)  # another process is writing; there will be another batch
        else:
            self._checkpoints.done(log_bytes, frames)

    def close(self) -> None:
        self._raw.close()


class CheckpointPlan:
    """When to copy the write-ahead log into the database: about every ``CHECKPOINT_BYTES`` of it.

    The file's size tells only until the first checkpoint: from then on SQLite overwrites it from its beginning, which
    is twice as fast as letting it grow, so it is never cut. How much of it is in use is known after a checkpoint only,
    and how many batches it took to fill it; from that the next one is planned. A file that grows all the same means
    that batches have become larger.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.look_at = CHECKPOINT_LOOK_BATCHES
        self._due_at = float("inf")
        self._last = 0
        self._log_bytes = 0

    def is_due(self, log_bytes: int) -> bool:
        """Whether to checkpoint now, given the size of the file; plans the next look at it."""
        self.look_at = self.batches + CHECKPOINT_LOOK_BATCHES
        return self.batches >= self._due_at or log_bytes >= self._log_bytes + CHECKPOINT_BYTES

    def done(self, log_bytes: int, frames: int) -> None:
        """A checkpoint was made, when ``frames`` pages of the log were in use."""
        filled = max(frames, 1) * PAGE_BYTES / CHECKPOINT_BYTES
        batches = (self.batches - self._last) / filled
        self._due_at = self.batches + min(max(batches, CHECKPOINT_LOOK_BATCHES), MAX_CHECKPOINT_BATCHES)
        self._last, self._log_bytes = self.batches, log_bytes


class SQLiteListener:
    """Notices other processes' commits: the writer looks at ``data_version`` between batches, every 20 ms."""

    def __init__(self, writer: SQLiteWriter, on_wakeup: Callable[[str | None], None], poll: Callable[[], None]) -> None:
        self._writer = writer
        self._on_wakeup = on_wakeup
        self._poll = poll
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="dbos-listener", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        heard = 0
        seen: object = None
        while not self._stopping.wait(FOREIGN_COMMIT_POLL_S):
            # Whoever commits writes to the log, so most looks need not touch the connection.
            log = self._writer.log_stamp()
            if log == seen:
                continue
            seen = log
            self._poll()
            if self._writer.foreign_commits != heard:
                heard = self._writer.foreign_commits
                try:
                    self._on_wakeup(None)
                except Exception:  # protects the listener's loop
                    logger.exception("a wake-up failed")

    def publish(self, topic: str) -> None:
        """The commit itself is what others notice."""

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()


class SQLiteDialect:
    """A system database in one SQLite file."""

    name = "sqlite"
    now_ms = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
    has_own_clock = False
    skip_locked = ""  # one writer at a time: there is nothing to pass over

    def __init__(self, path: str, *, synchronous: str = "FULL") -> None:
        self.path = path
        self.renderer = Renderer("qmark", "")
        self._synchronous = synchronous
        self._writer: SQLiteWriter | None = None

    def connect(self) -> sqlite3.Connection:
        """Open a connection with the settings that durability rests on."""
        raw = sqlite3.connect(
            self.path, timeout=BUSY_PATIENCE_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        configure(raw, self._synchronous)
        return raw

    def prepare(self, *, may_migrate: bool) -> None:
        create_private_file(self.path)
        raw = sqlite3.connect(self.path, timeout=BUSY_PATIENCE_S, isolation_level=None)
        try:
            raw.execute("PRAGMA wal_autocheckpoint = 0")  # others may be writing
            target = SQLiteMigrationTarget(raw)
            if may_migrate:
                migrate(target)
            else:
                verify(target)
            enter_wal_mode(raw)
        finally:
            raw.close()

    def drop(self) -> None:
        delete_database(self.path)

    def open_writer(self, *, lock_timeout_ms: int | None = None) -> SQLiteWriter:
        writer = SQLiteWriter(self)
        self._writer = writer
        return writer

    def has_second_writer(self) -> bool:
        return False

    def open_reader(self) -> SQLiteConnection:
        raw = self.connect()
        raw.execute("PRAGMA query_only = ON")
        return SQLiteConnection(raw, self.renderer)

    def listener(self, on_wakeup: Callable[[str | None], None], poll_writer: Callable[[], None]) -> SQLiteListener:
        assert self._writer is not None
        return SQLiteListener(self._writer, on_wakeup, poll_writer)

    def classify(self, error: BaseException) -> Failure:
        if not isinstance(error, sqlite3.Error):
            return Failure.REFUSED
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _RETRYABLE:
            return Failure.CONTENTION
        if code in _LOST:
            return Failure.CONNECTION_LOST
        return Failure.REFUSED

    def refuses_value(self, error: BaseException) -> bool:
        if not isinstance(error, sqlite3.Error):
            return True  # before it reached the database: the value could not be bound
        return not isinstance(error, sqlite3.OperationalError)

    def sqlalchemy_dialect(self) -> sa.Dialect:
        from sqlalchemy.dialects import sqlite  # slow to import, and rarely needed

        return sqlite.dialect(paramstyle="named")


def prepare_application_database(path: str, *, may_migrate: bool) -> None:
    """Create or verify the table of transaction records in an application's own file."""
    raw = sqlite3.connect(path, timeout=BUSY_PATIENCE_S, isolation_level=None)
    try:
        target = SQLiteMigrationTarget(raw)
        (create_application_tables if may_migrate else verify_application_tables)(target)
    finally:
        raw.close()


def configure(raw: sqlite3.Connection, synchronous: str = "FULL") -> None:
    """Apply the settings that every connection to a system database needs, ours and a user's session alike."""
    raw.execute(f"PRAGMA synchronous = {synchronous}")
    raw.execute("PRAGMA wal_autocheckpoint = 0")
    raw.execute("PRAGMA cache_size = -16384")
    raw.execute("PRAGMA temp_store = MEMORY")


def create_private_file(path: str) -> None:
    """Create the database file readable by its owner only; ``-wal`` and ``-shm`` take their mode from it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def enter_wal_mode(raw: sqlite3.Connection) -> None:
    """Switch the file to WAL, which is kept in the file; several processes may try at once."""
    deadline = time.monotonic() + BUSY_PATIENCE_S
    while True:
        try:
            if raw.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
                return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise DBOSDatabaseUnavailableError(
                "The SQLite database could not be switched to WAL mode. "
                "Put it on a local disk: WAL needs shared memory."
            )
        time.sleep(0.01 * jitter())


def begin_immediate(raw: sqlite3.Connection, patience_s: float = BUSY_PATIENCE_S) -> None:
    """Take the write lock, waiting for other processes in short steps with jitter, which is fair and quick."""
    delay_s = 0.0005
    deadline: float | None = None
    while True:
        try:
            raw.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            now = time.monotonic()
            if deadline is None:
                deadline = now + patience_s
            elif now > deadline:
                raise
        time.sleep(delay_s * jitter())
        delay_s = min(delay_s * 2, 0.01)
