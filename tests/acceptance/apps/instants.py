"""Named instants in the life of an application: written to a log that survives it, and held if the test says so.

A line is ``<process> <workflow> <instant>``. Instants of the application's own code are written where they happen;
those of the library (``…:committing``, ``…:committed``) are seen by a hook around the writer, so a process can be
killed between a COMMIT and its answer. Each line is on disk before its instant is over.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from dbos import DBOS
from dbos._sysdb.dialects.postgres import PostgresWriter
from dbos._sysdb.dialects.sqlite import SQLiteWriter
from dbos._sysdb.operations import Operation, RecordOutcome, RecordStep, StartWorkflow

__all__ = ["SETTINGS", "body", "instant", "watch_commits"]

SETTINGS: dict[str, Any] = json.loads(sys.argv[1])

_log = os.open(SETTINGS["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
_hold = set(SETTINGS["hold"])


def instant(name: str, workflow_id: str | None = None) -> None:
    """Write that this instant has come; stay in it forever if it is one to hold."""
    workflow_id = workflow_id or DBOS.workflow_id or "-"
    _write(f"{os.getpid()} {workflow_id} {name}")
    if not _hold.isdisjoint({name, f"{workflow_id}/{name}"}):
        _write(f"{os.getpid()} {workflow_id} holding:{name}")
        threading.Event().wait()


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
    """Make the commits of workflow starts, steps, outcomes and claims instants."""
    for writer in (SQLiteWriter, PostgresWriter):
        writer.write = _watched(writer.write)  # type: ignore[method-assign]  # a hook for tests


def _watched(write: Callable[[Any, Sequence[Operation]], list[Any]]) -> Callable[[Any, Sequence[Operation]], list[Any]]:
    def watched(self: Any, operations: Sequence[Operation]) -> list[Any]:
        for workflow_id, name in map(_named, operations):
            if name is not None:
                instant(f"{name}:committing", workflow_id)
        results = write(self, operations)
        for workflow_id, name in map(_named, operations):
            if name is not None:
                instant(f"{name}:committed", workflow_id)
        return results

    return watched


def _named(operation: Operation) -> tuple[str, str | None]:
    if isinstance(operation, StartWorkflow):
        return operation.workflow_uuid, "start"
    if isinstance(operation, RecordStep):
        return operation.workflow_uuid, operation.function_name
    if isinstance(operation, RecordOutcome):
        return operation.workflow_uuid, "outcome"
    if isinstance(operation.verb, partial) and operation.verb.func.__name__ == "claim":
        return "-", "claim"
    return "-", None
