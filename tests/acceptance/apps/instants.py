"""Named instants in the life of an application: written to a log that survives it, and held if the test says so.

A line is ``<process> <workflow> <function id> <instant>``, with 0 for what is not in a step. Instants of the
application's own code are written where they happen; those of the library (``…:committing``, ``…:committed``) are seen
by a hook around the writer, so a process can be killed between a COMMIT and its answer. Each line is on disk before its
instant is over. What is held goes on when the file named ``release`` exists.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy.orm import Session

from dbos import DBOS
from dbos._app_db import ApplicationDatabase
from dbos._sysdb.dialects.postgres import PostgresWriter
from dbos._sysdb.dialects.sqlite import SQLiteWriter, checkpoints
from dbos._sysdb.operations import Operation, RecordOutcome, RecordStep, StartWorkflow
from dbos._sysdb.stores.schedules import Settled
from dbos._types import IsolationLevel

__all__ = ["SETTINGS", "body", "instant", "watch_checkpoints", "watch_commits"]

SETTINGS: dict[str, Any] = json.loads(sys.argv[1])

_log = os.open(SETTINGS["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
_hold = set(SETTINGS["hold"])


def instant(name: str, workflow_id: str | None = None) -> None:
    """Write that this instant has come; stay in it, if it is one to hold, until it is released."""
    workflow_id = workflow_id or DBOS.workflow_id or "-"
    prefix = f"{os.getpid()} {workflow_id} {DBOS.step_id or 0}"
    _write(f"{prefix} {name}")
    if not _hold.isdisjoint({name, f"{workflow_id}/{name}"}):
        _write(f"{prefix} holding:{name}")
        while not os.path.exists(SETTINGS["release"]):
            time.sleep(0.002)


@contextmanager
def body(name: str) -> Iterator[None]:
    """The body of a step."""
    instant(f"{name}:begin")
    yield
    instant(f"{name}:end")


def _write(line: str) -> None:
    os.write(_log, f"{line}\n".encode())  # one write: lines of several processes do not mix
    os.fsync(_log)


def watch_commits() -> None:
    """Make the commits of workflow starts, steps, transactions, outcomes, claims, take-overs and ticks instants."""
    for writer in (SQLiteWriter, PostgresWriter):
        writer.write = _watched(writer.write)  # type: ignore[assignment, method-assign]  # a hook, whose type differs between the two writers
    hooked: Any = ApplicationDatabase
    hooked.transaction = _watched_transaction(ApplicationDatabase.transaction)


def watch_checkpoints(checkpoint_bytes: int) -> None:
    """Have SQLite's log copied into the database without rest, and make that an instant."""
    hooked: Any = checkpoints
    hooked.CHECKPOINT_BYTES, hooked.CHECKPOINT_LOOK_BATCHES = checkpoint_bytes, 1
    done = checkpoints.CheckpointPlan.done

    def watched(self: checkpoints.CheckpointPlan, log_bytes: int, frames: int) -> None:
        done(self, log_bytes, frames)
        instant("checkpoint", "-")

    hooked.CheckpointPlan.done = watched


def _watched(write: Callable[[Any, Sequence[Operation]], list[Any]]) -> Callable[[Any, Sequence[Operation]], list[Any]]:
    def watched(self: Any, operations: Sequence[Operation]) -> list[Any]:
        for operation in operations:
            if isinstance(operation, RecordStep | RecordOutcome | StartWorkflow):
                instant(f"{_name(operation)}:committing", operation.workflow_uuid)
        results = write(self, operations)
        for operation, result in zip(operations, results, strict=True):
            if isinstance(operation, RecordStep | RecordOutcome | StartWorkflow):
                instant(f"{_name(operation)}:committed", operation.workflow_uuid)
            elif isinstance(result, Settled):
                for run in result.runs:
                    instant("tick:committed", run.workflow_uuid)
            elif getattr(operation.verb, "__name__", "") == "claim":
                for row in result.rows:
                    instant("claim:committed", row.workflow_uuid)
            elif getattr(operation.verb, "__name__", "") == "take_over":
                for workflow_id in result:
                    instant("take-over:committed", workflow_id)
        return results

    return watched


def _name(operation: RecordStep | RecordOutcome | StartWorkflow) -> str:
    if isinstance(operation, RecordStep):
        return operation.function_name
    return "start" if isinstance(operation, StartWorkflow) else "outcome"


def _watched_transaction(
    transaction: Callable[[Any, IsolationLevel], AbstractContextManager[Session]],
) -> Callable[[Any, IsolationLevel], AbstractContextManager[Session]]:
    @contextmanager
    def watched(self: Any, isolation_level: IsolationLevel) -> Iterator[Session]:
        with transaction(self, isolation_level) as session:
            yield session
            instant("transaction:committing")
        instant("transaction:committed")

    return watched
