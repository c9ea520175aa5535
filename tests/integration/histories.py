"""What a workflow has recorded, as rows; and having it executed again from them, as after a crash."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dbos import DBOS, WorkflowHandle
from dbos._engine.engine import Engine
from dbos._process import process as _process
from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import StatusRow, StepRow

PATIENCE_S = 20.0  # what anything awaited here takes at most, on a busy machine

FORGET_OUTCOME = """
UPDATE dbos.workflow_status
SET status = 'PENDING', owner_instance = NULL, output = NULL, error = NULL, completed_at = NULL
WHERE workflow_uuid = :id
"""
FORGET_STEPS = "DELETE FROM dbos.operation_outputs WHERE workflow_uuid = :id AND function_id >= :first"


def engine() -> Engine:
    assert _process.instance is not None
    return _process.instance._runtime.engine


def row(workflow_id: str) -> StatusRow:
    """The workflow's row, which must exist."""
    db = engine().db
    found = db.read(db.workflows.get, workflow_id)
    assert found is not None
    return found


def steps(workflow_id: str) -> list[StepRow]:
    """The rows of its operations, as they are stored."""
    db = engine().db
    return db.read(db.operations.steps, workflow_id)


def recorded(workflow_id: str) -> list[tuple[int, str]]:
    """The ids and names of its operations."""
    return [(step.function_id, step.function_name) for step in steps(workflow_id)]


def change(sql: str, **parameters: Any) -> None:
    """Execute a statement on the system database; its tables are prefixed with ``dbos.``."""

    def run(connection: Connection) -> int:
        return connection.run(sql, **parameters)

    engine().db.change(run)


def rewind(workflow_id: str, *, to_step: int | None = None) -> None:
    """Make the workflow look as if its process had died: before its end, or even before it recorded ``to_step``."""
    if to_step is not None:
        change(FORGET_STEPS, id=workflow_id, first=to_step)
    change(FORGET_OUTCOME, id=workflow_id)


def execute_again(workflow_id: str, *, to_step: int | None = None) -> WorkflowHandle[Any]:
    """Rewind the workflow and recover it."""
    rewind(workflow_id, to_step=to_step)
    DBOS._recover_pending_workflows()  # what it returns lacks what the service was faster to recover
    return DBOS.retrieve_workflow(workflow_id)


def eventually(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.005)
