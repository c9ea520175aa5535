"""The one connection that writes to an SQLite file.

A batch is a transaction with one statement for each kind of operation and thirty-two of them: every statement gives up
Python's interpreter lock and has to win it back, which costs more than the statement itself when other threads are
busy. An operation that is alone in its batch is a transaction by itself, fence included. Both write what is as it
should be, and count: should anything be missing, the operations are executed one by one, which tells why.

``wal_autocheckpoint`` is off. SQLite before 3.51.3 can lose commits when one connection checkpoints while another
writes, so a checkpoint is made by the writer between batches while a second connection of ours holds the write lock:
that lock is shared by every process on the file, so nobody writes meanwhile (docs/decisions/0003).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from dbos._error import DatabaseGoneError, ExecutorFencedError
from dbos._sysdb.batch import Groups, in_groups
from dbos._sysdb.connection import Failure
from dbos._sysdb.operations import (
    APPLIED,
    CREATED,
    RECORDED,
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

from .checkpoints import CheckpointPlan
from .connection import SQLiteConnection, begin_immediate, patiently
from .statements import (
    INSERT_STEP,
    INSERT_STEP_ALONE,
    INSERT_WORKFLOW_ALONE,
    SELECT_FENCE,
    SELECT_HOLDER,
    SELECT_RUN_STATUS,
    SELECT_STEP,
    SELECT_WORKFLOW,
    UPDATE_OUTCOME_ALONE,
    insert_steps,
    insert_workflows,
    update_outcomes,
)

if TYPE_CHECKING:
    from .dialect import SQLiteDialect

__all__ = ["FOREIGN_COMMIT_POLL_S", "SQLiteWriter"]

T = TypeVar("T")

logger = logging.getLogger("dbos.sqlite")

WRITE_PATIENCE_S = 5.0  # so long a batch waits for another process before the committer says so, and tries again
FOREIGN_COMMIT_POLL_S = 0.02  # how soon another process' commit is noticed
_UNSYNCED = {sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC}
CHUNK = 32  # operations in one statement; each number of them is a statement of its own, prepared and kept


class SQLiteWriter:
    """The one connection that writes, and the upkeep that belongs to it."""

    def __init__(self, dialect: SQLiteDialect) -> None:
        self.instance_id: str | None = None
        self.foreign_commits = 0  # how often another process was seen to have committed
        self.version_checked_at = 0.0  # monotonic time of the last look
        self.log_path = os.path.realpath(dialect.path) + "-wal"  # SQLite puts it beside the file, not beside a link
        self._dialect = dialect
        self._verbs: dict[type, Callable[[Any], list[Any]]] = {
            StartWorkflow: self._start_workflows,
            RecordStep: self._record_steps,
            RecordOutcome: self._record_outcomes,
            Call: self._call,
        }
        self._open()
        self._instance: str | None = None
        self._is_fence_held = False
        self._checkpoints = CheckpointPlan()
        self._next_version_check = 0.0
        self._is_unsynced = False

    def _open(self) -> None:
        raw = self._dialect.connect()
        try:
            raw.execute("PRAGMA busy_timeout = 0")
            self._data_version: int = raw.execute("PRAGMA data_version").fetchone()[0]
        except BaseException:
            raw.close()
            raise
        self._raw = raw
        status = os.stat(self._dialect.path)
        self._file = (status.st_dev, status.st_ino)
        self._connection = SQLiteConnection(raw, self._dialect.renderer)
        self._cursor = raw.cursor()

    def write(self, operations: Sequence[Operation]) -> list[Any]:
        if not self._is_unsynced:
            try:
                return self._write(operations)
            except sqlite3.OperationalError as error:
                self._note_unsynced(error)
                if not self._is_unsynced:
                    raise
        raise DatabaseGoneError(
            f"The SQLite database {self._dialect.path} could not be flushed to the disk, which may have lost a part of "
            "it and would not say so a second time; nothing more is written to it. Restart the application."
        )

    def _note_unsynced(self, error: sqlite3.OperationalError) -> None:
        """Remember a flush that failed: the next one succeeds, whether what this one lost is there or not."""
        self._is_unsynced |= getattr(error, "sqlite_errorcode", 0) in _UNSYNCED

    def _write(self, operations: Sequence[Operation]) -> list[Any]:
        # The same for the whole batch: should this process register anew meanwhile, its old runs stay refused.
        self._instance = self.instance_id
        if len(operations) == 1:
            result = self._write_alone(operations[0])
            if result is not None:
                self._committed()
                return [result]
        begin_immediate(self._raw, WRITE_PATIENCE_S)
        self._is_fence_held = False
        try:
            results = in_groups(operations, self._execute)
            self._raw.execute("COMMIT")
        except BaseException:
            if self._raw.in_transaction:
                self._raw.execute("ROLLBACK")
            raise
        self._committed()
        return results

    def _committed(self) -> None:
        """Before anything is acknowledged: is the file that was written the one that others will open?"""
        self._checkpoints.batches += 1
        try:
            status = os.stat(self._dialect.path)
        except OSError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != self._file:
            raise DatabaseGoneError(
                f"The SQLite database {self._dialect.path} was replaced or deleted while it was open; nothing that is "
                "written to it now would be found again. Restart the application."
            )

    def _write_alone(self, operation: Operation) -> Any:
        """Write an operation in one statement; None if it takes more than that."""
        execute, instance = self._cursor.execute, self._instance
        if type(operation) is RecordStep:
            sql, values, result = INSERT_STEP_ALONE, (*operation, instance), RECORDED
        elif type(operation) is RecordOutcome:
            sql, values, result = UPDATE_OUTCOME_ALONE, (*operation, instance), APPLIED  # type: ignore[assignment]
        elif type(operation) is StartWorkflow and operation.parent_step is None and self._is_ours(operation):
            sql, values, result = INSERT_WORKFLOW_ALONE, (*_start_values(operation), instance), CREATED  # type: ignore[assignment]
        else:
            return None
        return result if patiently(lambda: execute(sql, values), WRITE_PATIENCE_S).rowcount else None

    def _execute(self, groups: Groups) -> list[list[Any]]:
        return [self._verbs[kind](operations) for kind, operations in groups]

    def _call(self, calls: Sequence[Call]) -> list[Any]:
        return [call.verb(self._connection, *call.arguments) for call in calls]

    # -- steps ------------------------------------------------------------------------------------------------------

    def _record_steps(self, steps: Sequence[RecordStep]) -> list[StepRecorded]:
        self._hold_fence()
        results: list[StepRecorded] = []
        for chunk in _chunks(steps):
            values = list(chain.from_iterable(chunk))
            if self._cursor.execute(insert_steps(len(chunk)), values).rowcount == len(chunk):
                results += [RECORDED] * len(chunk)
            else:
                results += map(self._record_step, chunk)
        return results

    def _record_step(self, step: RecordStep) -> StepRecorded:
        execute = self._cursor.execute
        run = execute(SELECT_RUN_STATUS, (step.workflow_uuid, step.run_token)).fetchone()
        if run is None or run[0] not in ("PENDING", "CANCELLED"):
            return StepRecorded(None, None)
        if execute(INSERT_STEP, step[:-1]).rowcount:
            return StepRecorded(run[0], None)
        existing = StepRow(*execute(SELECT_STEP, (step.workflow_uuid, step.function_id)).fetchone())
        # What equals the record that was to be written is that record, or was as good as it.
        return StepRecorded(run[0], None if existing == step[:-1] else existing)

    # -- outcomes ---------------------------------------------------------------------------------------------------

    def _record_outcomes(self, outcomes: Sequence[RecordOutcome]) -> list[OutcomeRecorded]:
        self._hold_fence()
        results: list[OutcomeRecorded] = []
        for chunk in _chunks(outcomes):
            values = list(chain.from_iterable(chunk))
            if self._cursor.execute(update_outcomes(len(chunk)), values).rowcount == len(chunk):
                results += [APPLIED] * len(chunk)
            else:
                results += map(self._outcome_of, chunk)
        return results

    def _outcome_of(self, outcome: RecordOutcome) -> OutcomeRecorded:
        """Whether an outcome was applied, just now or by an earlier execution whose answer was lost."""
        run = self._cursor.execute(SELECT_RUN_STATUS, (outcome.workflow_uuid, outcome.run_token)).fetchone()
        return OutcomeRecorded(is_applied=run is not None and run[0] in ("SUCCESS", "ERROR"))

    # -- starts -----------------------------------------------------------------------------------------------------

    def _start_workflows(self, starts: Sequence[StartWorkflow]) -> list[Started]:
        results: list[Started] = []
        for chunk in _chunks(starts):
            for start in chunk:
                if not self._is_ours(start):
                    assert start.owner_instance is not None
                    raise ExecutorFencedError(start.owner_instance)  # made before this process registered anew
            if any(start.owner_instance is not None or start.parent_step is not None for start in chunk):
                self._hold_fence()
            if all(start.parent_step is None for start in chunk):
                values = list(chain.from_iterable(map(_start_values, chunk)))
                if self._cursor.execute(insert_workflows(len(chunk)), values).rowcount == len(chunk):
                    results += [CREATED] * len(chunk)
                    continue
            results += map(self._start_workflow, chunk)
        return results

    def _start_workflow(self, start: StartWorkflow) -> Started:
        execute = self._cursor.execute
        step = start.parent_step
        if step is not None:
            parent = execute(SELECT_RUN_STATUS, (step.workflow_uuid, step.run_token)).fetchone()
            if parent is None or parent[0] != "PENDING":
                return Started(created=False, existing=None)
        if execute(insert_workflows(1), _start_values(start)).rowcount:
            if step is not None:
                execute(INSERT_STEP, step[:-1])
            return CREATED
        existing = execute(SELECT_WORKFLOW, (start.workflow_uuid,)).fetchone()
        if existing is None:
            holder = execute(SELECT_HOLDER, (start.queue_name, start.deduplication_id)).fetchone()
            return Started(created=False, existing=None, holder=StatusRow(*holder))
        row = StatusRow(*existing)
        if row.owner_xid == start.run_token:
            return CREATED  # just now, or by an earlier execution whose answer was lost
        return Started(created=False, existing=row)

    # -- the fence --------------------------------------------------------------------------------------------------

    def _is_ours(self, start: StartWorkflow) -> bool:
        return self._instance is None or start.owner_instance in (None, self._instance)

    def _hold_fence(self) -> None:
        """Within BEGIN IMMEDIATE nobody can take this instance's row away before the batch is committed."""
        if self._is_fence_held or self._instance is None:
            return
        if not self._cursor.execute(SELECT_FENCE, (self._instance,)).fetchone():
            raise ExecutorFencedError(self._instance)
        self._is_fence_held = True

    # -- upkeep -----------------------------------------------------------------------------------------------------

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
            self.version_checked_at = now
            version = self._raw.execute("PRAGMA data_version").fetchone()[0]
            if version != self._data_version:
                self._data_version = version
                self.foreign_commits += 1

    def hurry(self) -> None:
        """Have the next :meth:`idle` look for other processes' commits, however short a time ago it did."""
        self._next_version_check = 0.0

    def log_stamp(self) -> object:
        """Something that changes when anybody writes to the write-ahead log."""
        try:
            status = os.stat(self.log_path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def _checkpoint_if_due(self) -> None:
        try:
            log_bytes = os.stat(self.log_path).st_size
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
            self._note_unsynced(error)
            logger.debug("checkpoint put off: %s", error)  # another process is writing; there will be another batch
        else:
            self._checkpoints.done(log_bytes, frames)

    def close(self) -> None:
        self._raw.close()


def _start_values(start: StartWorkflow) -> tuple[Any, ...]:
    return (*start[:-1], start.created_at, start.run_token)


def _chunks(operations: Sequence[T]) -> Iterator[Sequence[T]]:
    for begin in range(0, len(operations), CHUNK):
        yield operations[begin : begin + CHUNK]
