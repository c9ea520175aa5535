"""Operations and rows with sensible values, of which a test names those it is about."""

from __future__ import annotations

from typing import Any

from dbos._queue_config import QueueConfig
from dbos._sys_db import SystemDatabase
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import RecordOutcome, RecordStep, Started, StartWorkflow, StepRecorded
from dbos._sysdb.rows import ExecutorRow, StatusRow, StepRow
from dbos._sysdb.stores.queue_claims import ClaimRequest

NOW_MS = 1_767_225_600_000


def executor(instance: str = "ours", **values: Any) -> ExecutorRow:
    defaults: dict[str, Any] = {
        "instance_id": instance,
        "executor_id": "local",
        "application_version": "v1",
        "application_id": "",
        "hostname": "host",
        "boot_id": "boot",
        "pid_namespace": "namespace",
        "pid": 1,
        "process_started_at": "1",
        "heartbeat": 0,
        "lease_ms": 15_000,
        "started_at": NOW_MS,
        "heartbeat_at": NOW_MS,
    }
    return ExecutorRow(**{**defaults, **values})


def start(workflow_id: str = "w", **values: Any) -> StartWorkflow:
    """The start of a workflow that instance "ours" runs under token "token"."""
    defaults: dict[str, Any] = {
        "workflow_uuid": workflow_id,
        "status": "PENDING",
        "name": "order",
        "class_name": None,
        "config_name": None,
        "authenticated_user": None,
        "assumed_role": None,
        "authenticated_roles": None,
        "executor_id": "local",
        "created_at": NOW_MS,
        "application_version": "v1",
        "application_id": "",
        "recovery_attempts": 1,
        "queue_name": None,
        "workflow_timeout_ms": None,
        "workflow_deadline_epoch_ms": None,
        "inputs": "[]",
        "deduplication_id": None,
        "priority": 0,
        "queue_partition_key": None,
        "parent_workflow_id": None,
        "serialization": "json",
        "delay_until_epoch_ms": None,
        "run_token": "token",
        "owner_instance": "ours",
        "application_name": None,
        "attributes": None,
        "parent_step": None,
    }
    return StartWorkflow(**{**defaults, **values})


def enqueue(workflow_id: str = "w", queue_name: str = "mail", **values: Any) -> StartWorkflow:
    """The start of a workflow that waits in a queue."""
    defaults: dict[str, Any] = {
        "status": "ENQUEUED",
        "queue_name": queue_name,
        "owner_instance": None,
        "recovery_attempts": 0,
        "run_token": f"start of {workflow_id}",
    }
    return start(workflow_id, **{**defaults, **values})


def claim_request(queue_name: str = "mail", queue: QueueConfig | None = None, **values: Any) -> ClaimRequest:
    """A claim by instance "ours", of a queue that allows everything unless it is given."""
    defaults: dict[str, Any] = {
        "queue": queue or QueueConfig(name=queue_name),
        "count": 10,
        "instance": "ours",
        "executor_id": "local",
        "application_version": "v1",
        "run_token": "claimed",
        "unknown_targets": [],
        "running": {},
        "now_ms": NOW_MS,
    }
    given = {**defaults, **values}
    now_ms: int = given.pop("now_ms")
    return ClaimRequest(now_ms=lambda: now_ms, **given)


def child(
    workflow_id: str, parent_id: str, function_id: int, *, parent_token: str = "token", **values: Any
) -> StartWorkflow:
    """The start of a child together with its parent's record of it."""
    record = step(parent_id, function_id, child_workflow_id=workflow_id, output=None, run_token=parent_token)
    return start(workflow_id, parent_workflow_id=parent_id, parent_step=record, **values)


def step(workflow_id: str = "w", function_id: int = 1, **values: Any) -> RecordStep:
    defaults: dict[str, Any] = {
        "workflow_uuid": workflow_id,
        "function_id": function_id,
        "function_name": "pay",
        "output": '"paid"',
        "error": None,
        "child_workflow_id": None,
        "started_at_epoch_ms": NOW_MS,
        "completed_at_epoch_ms": NOW_MS + 5,
        "serialization": "json",
        "run_token": "token",
    }
    return RecordStep(**{**defaults, **values})


def outcome(workflow_id: str = "w", **values: Any) -> RecordOutcome:
    defaults: dict[str, Any] = {
        "workflow_uuid": workflow_id,
        "run_token": "token",
        "status": "SUCCESS",
        "output": '"done"',
        "error": None,
        "outcome_serialization": "json",
        "completed_at": NOW_MS + 10,
    }
    return RecordOutcome(**{**defaults, **values})


def row(db: SystemDatabase, workflow_id: str = "w") -> StatusRow:
    """The row of a workflow that exists."""
    found = db.read(db.workflows.get, workflow_id)
    assert found is not None
    return found


def status(db: SystemDatabase, workflow_id: str = "w") -> str:
    return row(db, workflow_id).status


def steps(db: SystemDatabase, workflow_id: str = "w") -> list[StepRow]:
    return db.read(db.operations.steps, workflow_id)


def begin(db: SystemDatabase, operation: StartWorkflow) -> Started:
    started: Started = db.commit(operation)[0]
    return started


def record(db: SystemDatabase, operation: RecordStep) -> StepRecorded:
    recorded: StepRecorded = db.commit(operation)[0]
    return recorded


def update(db: SystemDatabase, workflow_id: str, **values: Any) -> None:
    """Change a row past all rules, for a situation that takes long to come about otherwise."""

    def verb(connection: Connection) -> None:
        assignments = ", ".join(f"{name} = :{name}" for name in values)
        connection.run(
            f"UPDATE dbos.workflow_status SET {assignments} WHERE workflow_uuid = :id", id=workflow_id, **values
        )

    db.change(verb)
