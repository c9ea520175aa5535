"""How workflows end, for those who wait: in this process from the run itself, otherwise from the row."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from dbos._engine.engine import Engine, workflow_key
from dbos._engine.flow import Flow, Outcome, Pause, Raised, Read, Returned
from dbos._engine.records import as_exception, commit_step, replayed
from dbos._engine.run import Run
from dbos._error import (
    DBOSAwaitedWorkflowCancelledError,
    DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded,
    DBOSNonExistentWorkflowError,
)
from dbos._sysdb.operations import RecordStep
from dbos._sysdb.rows import StatusRow
from dbos._sysdb.wakeups import Signal

__all__ = ["GET_RESULT", "await_outcome", "decode_outcome", "record_result", "reveal"]

GET_RESULT = "DBOS.getResult"


def await_outcome(
    engine: Engine,
    workflow_id: str,
    waiter: Run | None = None,
    *,
    local: Run | None = None,
    must_exist: bool = False,
) -> Flow[Outcome]:
    """Wait until a workflow has an outcome, however long that takes; ``waiter`` is the run that waits, if one does.

    ``local`` is a run of the workflow in this process. A workflow that does not exist is waited for, unless
    ``must_exist``: then its row was there, and has been deleted.

    Raises:
        DBOSDatabaseUnavailableError: DBOS was destroyed meanwhile.
    """
    while True:
        signal = Signal()
        local = local or engine.runs.get(workflow_id)
        if local is not None and local.is_interrupted and not local.finished.is_set:
            local = None  # it was stopped, and may be long in noticing; the row knows what became of the workflow
        with engine.db.wakeups.waiting(workflow_key(workflow_id), signal), ExitStack() as stack:
            engine.check_open()  # after the signal is in place: closing sets it
            if waiter is not None:
                waiter.check_interrupted()
                stack.enter_context(waiter.interruptible(signal))
            if local is not None:
                local.finished.call(signal.set)
                stack.callback(local.finished.forget, signal.set)
            else:
                row: StatusRow | None = yield Read(engine.db.workflows.get, (workflow_id,))
                if row is None and must_exist:
                    return Raised(DBOSNonExistentWorkflowError("target", workflow_id))
                if row is not None and row.status not in ("PENDING", "ENQUEUED", "DELAYED"):
                    return decode_outcome(engine, row)
            yield Pause(signal, None)
        if local is not None and local.finished.is_set:
            if local.outcome is not None:
                return local.outcome
            local, must_exist = None, True


def decode_outcome(engine: Engine, row: StatusRow) -> Outcome:
    """The outcome that a finished workflow's row holds."""
    format_name = row.outcome_serialization or row.serialization
    if row.status == "SUCCESS":
        return Returned(engine.serialization.load_value(row.output, format_name))
    if row.status == "CANCELLED":
        return Raised(DBOSAwaitedWorkflowCancelledError(row.workflow_uuid))
    if row.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
        return Raised(DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded(row.workflow_uuid))
    if row.error is None:
        return Raised(Exception("Output and error are both None"))
    return Raised(engine.serialization.load_error(row.error, format_name))


def reveal(outcome: Outcome) -> Any:
    """Return the value or raise the error."""
    if isinstance(outcome, Raised):
        raise outcome.error
    return outcome.value


def record_result(engine: Engine, parent: Run, function_id: int, child_id: str, outcome: Outcome) -> Flow[Outcome]:
    """Record in ``parent`` how a workflow ended; returns what counts from now on."""
    if isinstance(outcome, Returned):
        output, name = engine.serialization.dump_value(outcome.value)
        error = None
    else:
        output = None
        error, name = engine.serialization.dump_error(as_exception(outcome.error))
    now_ms = engine.db.now_ms()
    step = RecordStep(
        parent.workflow_id, function_id, GET_RESULT, output, error, child_id, now_ms, now_ms, name, parent.run_token
    )
    existing = yield from commit_step(parent, step)
    return outcome if existing is None else replayed(engine, existing)
