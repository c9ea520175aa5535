"""What a run is played on: two databases, the effect log, and what other processes could do meanwhile.

The effect log is a file outside of every database. The body of a step writes a line when it begins, and says there
whether its record was in the database already: a recorded step's body must never run again.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from dbos import DBOSConfig
from dbos._dbos_config import process_config
from dbos._engine.engine import Engine
from dbos._process import process as _process
from dbos._sysdb.connection import Connection, Failure
from dbos._sysdb.dialects import open_dialect
from dbos._sysdb.operations import Operation, RecordStep, StartWorkflow, call
from dbos._sysdb.stores.executors import ExecutorsStore
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE, WorkflowStatusStore

__all__ = ["Crash", "Record", "Rival", "Snapshot", "Stage", "Workflow", "engine", "holding"]

TERMINAL = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
LEDGER = "CREATE TABLE IF NOT EXISTS ledger (workflow_id TEXT, function_id INTEGER)"


def engine() -> Engine:
    """The engine of this process, which is launched."""
    assert _process.runtime is not None
    return _process.runtime.engine


class Crash(BaseException):
    """Raised by a workflow's body: nothing is recorded, and the workflow stays PENDING, as after ``kill -9``."""


class Workflow(NamedTuple):
    """A workflow's row."""

    workflow_id: str
    status: str
    output: str | None
    error: str | None
    completed_at: int | None
    owner_instance: str | None
    attempts: int


class Record(NamedTuple):
    """A recorded operation."""

    workflow_id: str
    function_id: int
    name: str
    output: str | None
    error: str | None
    child_id: str | None
    started_at: int | None
    completed_at: int | None
    serialization: str | None


class Snapshot(NamedTuple):
    """The rows of some workflows at one time, by their keys."""

    workflows: dict[str, Workflow]
    records: dict[tuple[str, int], Record]


class Witness:
    """A connection of the test's own; any thread may ask."""

    def __init__(self, url: str) -> None:
        self._lock = threading.Lock()
        self._is_sqlite = url.startswith("sqlite")
        self._raw: Any
        if self._is_sqlite:
            path = url.removeprefix("sqlite:///")
            self._raw = sqlite3.connect(path, timeout=20, isolation_level=None, check_same_thread=False)
        else:
            self._raw = psycopg.connect(url, autocommit=True)

    def ask(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Execute a statement with ``?`` for values; ``dbos.`` before a system table becomes what it takes."""
        sql = sql.replace("dbos.", "") if self._is_sqlite else sql.replace("%", "%%").replace("?", "%s")
        with self._lock:
            cursor = self._raw.execute(sql, values)
            rows: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
        return rows

    def close(self) -> None:
        self._raw.close()


class Stage:
    """Databases and the effect log, for runs one after the other."""

    def __init__(self, config: DBOSConfig, directory: Path) -> None:
        self.config = config
        system, application = config["system_database_url"], config["application_database_url"]
        assert system is not None
        assert application is not None
        self.is_apart = system != application
        self.directory = directory
        self._system_url, self._application_url = system, application
        self._log = os.open(directory / "effects", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._read = 0
        self._effects: list[list[str]] = []
        self.crashing: set[str] = set()  # workflows that crash when they come to the middle
        self.held: dict[str, Hold] = {}
        self._is_open = False

    def open(self) -> None:
        """Connect; the system database must have its tables by now."""
        self._system, self._application = Witness(self._system_url), Witness(self._application_url)
        self._application.ask(LEDGER)
        self._is_open = True

    def close(self) -> None:
        """Disconnect."""
        os.close(self._log)
        if self._is_open:
            self._system.close()
            self._application.close()

    # -- what the workflows do -----------------------------------------------------------------------------------------

    def begin_body(self, workflow_id: str | None, function_id: int | None) -> None:
        """The body of a step begins."""
        recorded = self._system.ask(
            "SELECT 1 FROM dbos.operation_outputs WHERE workflow_uuid = ? AND function_id = ?", workflow_id, function_id
        )
        self._write(workflow_id, function_id, "again" if recorded else "begin")

    def halfway(self, workflow_id: str | None) -> None:
        """A workflow is in its middle."""
        if workflow_id in self.crashing:
            self.crashing.discard(workflow_id)
            raise Crash

    def acknowledge(self, workflow_id: str, what: str, value: Any = None) -> None:
        """The caller was told something."""
        self._write(workflow_id, 0, what, json.dumps(value).replace(" ", ""))

    def _write(self, *words: object) -> None:
        os.write(self._log, (" ".join(map(str, words)) + "\n").encode())  # one write: lines do not mix

    # -- what can be seen of it ----------------------------------------------------------------------------------------

    def effects(self, subject: str) -> list[tuple[str, int, str, Any]]:
        """The lines of the log about a workflow and its children: id, function id, what, and the value told."""
        size = os.fstat(self._log).st_size
        text = os.pread(self._log, size - self._read, self._read).decode()
        self._read = size
        self._effects += [line.split(" ") for line in text.split("\n")[:-1]]
        return [
            (words[0], int(words[1]), words[2], json.loads(words[3]) if len(words) > 3 else None)
            for words in self._effects
            if words[0] == subject or words[0].startswith(f"{subject}-")
        ]

    def bodies(self, subject: str) -> Counter[tuple[str, int]]:
        """How often each step's body began."""
        return Counter((who, function_id) for who, function_id, _, _ in self.effects(subject) if function_id)

    def acknowledged(self, subject: str) -> list[tuple[str, str, Any]]:
        """What callers were told: workflow id, what, value."""
        return [(who, what, value) for who, function_id, what, value in self.effects(subject) if not function_id]

    def snapshot(self, subject: str) -> Snapshot:
        """The rows of a workflow and its children."""
        range_ = (subject, f"{subject}-", f"{subject}.")  # "." follows "-"
        where = "(workflow_uuid = ? OR (workflow_uuid > ? AND workflow_uuid < ?))"
        workflows = self._system.ask(
            "SELECT workflow_uuid, status, output, error, completed_at, owner_instance, recovery_attempts "
            "FROM dbos.workflow_status "
            f"WHERE {where.replace('workflow_uuid', self._bytewise)}",
            *range_,
        )
        records = self._system.ask(
            "SELECT workflow_uuid, function_id, function_name, output, error, child_workflow_id, started_at_epoch_ms, "
            f"completed_at_epoch_ms, serialization FROM dbos.operation_outputs WHERE "
            f"{where.replace('workflow_uuid', self._bytewise)}",
            *range_,
        )
        return Snapshot({row[0]: Workflow(*row) for row in workflows}, {row[:2]: Record(*row) for row in records})

    @property
    def _bytewise(self) -> str:
        return "workflow_uuid" if self._system_url.startswith("sqlite") else 'workflow_uuid COLLATE "C"'

    def unfinished(self) -> list[tuple[Any, ...]]:
        """Every workflow without an outcome."""
        return self._system.ask(
            "SELECT workflow_uuid, status, owner_instance, queue_name FROM dbos.workflow_status "
            "WHERE status IN ('PENDING', 'ENQUEUED', 'DELAYED')"
        )

    def is_finished(self, subject: str) -> bool:
        """Whether a workflow and its children, if they exist, have outcomes."""
        return all(row.status in TERMINAL for row in self.snapshot(subject).workflows.values())

    def instances(self) -> list[str]:
        """The executor instances that are registered."""
        return [row[0] for row in self._system.ask("SELECT instance_id FROM dbos.executor_instances")]

    def ledger(self, subject: str) -> Counter[tuple[str, int]]:
        """What transactions of a workflow have left in the application's table."""
        rows = self._application.ask("SELECT workflow_id, function_id FROM ledger WHERE workflow_id = ?", subject)
        return Counter((row[0], row[1]) for row in rows)

    def transactions(self, subject: str) -> Counter[tuple[str, int]]:
        """The records of transactions in an application database that is not the system database."""
        rows = self._application.ask(
            "SELECT workflow_uuid, function_id FROM dbos.transaction_outputs WHERE workflow_uuid = ?", subject
        )
        return Counter((row[0], row[1]) for row in rows)


class Hold:
    """A step that waits within its body until it is let go."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self.may_pass = threading.Event()


class Rival:
    """Another process on the same system database, as far as the database can tell."""

    def __init__(self, config: DBOSConfig) -> None:
        self._dialect = open_dialect(process_config(config, {}), "rival")
        self._writer = self._dialect.open_writer()
        self._version = config["application_version"]
        self._store = WorkflowStatusStore(self._dialect)

    def close(self) -> None:
        self._writer.close()

    def _commit(self, *operations: Operation) -> None:
        while True:
            try:
                self._writer.write(operations)
                return
            except Exception as error:  # somebody holds a lock: that is what a rival is for
                if self._writer.classify(error) not in (Failure.BLOCKED, Failure.CONTENTION):
                    raise

    def cancel(self, workflow_id: str, now_ms: int) -> None:
        """Cancel a workflow."""
        self._commit(call(self._store.cancel, [workflow_id], now_ms))

    def resume(self, workflow_id: str, now_ms: int) -> None:
        """Cancel a workflow and resume it."""
        self._commit(
            call(self._store.cancel, [workflow_id], now_ms),
            call(self._store.resume, [workflow_id], INTERNAL_QUEUE, now_ms),
        )

    def claim(self, workflow_id: str, token: str, now_ms: int) -> None:
        """Cancel a workflow, resume it, claim it, and die."""
        assert self._version is not None
        claim = partial(
            self._store.claim_by_id,
            workflow_id=workflow_id,
            instance="dead",
            executor_id="rival",
            application_version=self._version,
            run_token=token,
            seen_token="",
            now_ms=now_ms,
        )
        self._commit(
            call(self._store.cancel, [workflow_id], now_ms),
            call(self._store.resume, [workflow_id], INTERNAL_QUEUE, now_ms),
            call(claim),
        )

    def take_over(self, instance_id: str, now_ms: int) -> None:
        """Declare an executor instance dead, and enqueue what it was running."""
        assert self._version is not None
        version = self._version

        def take_over(connection: Connection) -> list[str]:
            ExecutorsStore.remove(connection, [instance_id])
            return self._store.reclaim(connection, version, now_ms)

        self._commit(call(take_over))

    def record(self, step: RecordStep, output: str | None) -> None:
        """Record a step before its run does."""
        self._commit(step._replace(output=output, error=None, completed_at_epoch_ms=1))

    def start(self, start: StartWorkflow, token: str) -> None:
        """Start a workflow, and die; or enqueue it."""
        owner = None if start.queue_name is not None else "dead"
        self._commit(start._replace(run_token=token, owner_instance=owner, parent_step=None))


@contextmanager
def holding(stage: Stage, workflow_id: str) -> Iterator[Hold]:
    """Have a workflow wait in its first step."""
    hold = stage.held[workflow_id] = Hold()
    try:
        yield hold
    finally:
        hold.may_pass.set()
        del stage.held[workflow_id]
