"""How workflows end, for those who wait: in this process from the run itself, otherwise from the row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Outcome, Pause, Peek, Raised, Read, Returned
from dbos._engine.records import as_exception, commit_step, replayed
from dbos._engine.run import LatestRun, Run
from dbos._error import (
    DBOSAwaitedWorkflowCancelledError,
    DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded,
    DBOSNonExistentWorkflowError,
)
from dbos._sysdb.operations import RecordStep
from dbos._sysdb.rows import Peeked, StatusRow
from dbos._sysdb.wakeups import Signal, workflow_key

__all__ = ["GET_RESULT", "UNFINISHED", "await_first", "await_outcome", "decode_outcome", "record_result", "reveal"]

_NOTHING: AbstractContextManager[None] = nullcontext()

GET_RESULT = "DBOS.getResult"
UNFINISHED = ("PENDING", "ENQUEUED", "DELAYED")


def await_outcome(
    engine: Engine,
    workflow_id: str,
    waiter: Run | None = None,
    *,
    latest: LatestRun | None = None,
    must_exist: bool = False,
) -> Flow[Outcome]:
    """Wait until a workflow has an outcome, however long that takes; ``waiter`` is the run that waits.

    ``latest`` knows the workflow's run in this process, if it has one. A workflow that does not exist is waited for,
    unless ``must_exist``, or it was seen while this waited, or the ``waiter`` has started it: then its row was there,
    and has been deleted.

    Raises:
        DBOSDatabaseUnavailableError: DBOS was destroyed meanwhile.
    """
    parked: Run | None = None
    while True:
        local = latest.run if latest is not None and latest.run is not parked else None
        if local is not None and local.outcome is not None and local.finished.is_set:
            engine.check_open()
            if waiter is not None:
                waiter.check_interrupted()
            return local.outcome
        signal = Signal()
        local = local or engine.runs.get(workflow_id)
        must_exist = must_exist or local is not None
        if local is not None and local.is_interrupted and not local.finished.is_set:
            local = None  # it was stopped, and may be long in noticing; the row knows what became of the workflow
        with (
            engine.db.wakeups.waiting(workflow_key(workflow_id), signal),
            _NOTHING if waiter is None else waiter.interruptible(signal),
            _NOTHING if local is None else _set_at_end(signal, local),
        ):
            engine.check_open()  # after the signal is in place: closing sets it
            if waiter is not None:
                waiter.check_interrupted()
            if local is None:
                peeked: Peeked = yield Peek(workflow_id)
                must_exist = must_exist or not peeked.is_settled
                if peeked.is_settled:
                    row = peeked.row
                    if peeked.must_read:
                        row = yield Read(engine.db.workflows.get, (workflow_id,))
                    if row is None and not must_exist and waiter is not None:
                        # It may have been deleted before this execution, or this operation, began to wait for it.
                        must_exist = yield Read(engine.db.operations.has_started, (waiter.workflow_id, workflow_id))
                    if row is None and must_exist:
                        return Raised(DBOSNonExistentWorkflowError("target", workflow_id))
                    if row is not None and row.status not in UNFINISHED:
                        return decode_outcome(engine, row)
                    must_exist = row is not None
            yield Pause(signal, None)
        if local is not None and local.finished.is_set:
            if local.outcome is not None:
                return local.outcome
            parked = local


@contextmanager
def _set_at_end(signal: Signal, run: Run) -> Iterator[None]:
    run.finished.call(signal.set)
    try:
        yield
    finally:
        run.finished.forget(signal.set)


def await_first(engine: Engine, workflow_ids: Sequence[str], waiter: Run | None) -> Flow[str]:
    """Wait until one of the workflows has an outcome; returns the id of the one that got it first.

    Raises:
        DBOSDatabaseUnavailableError: DBOS was destroyed meanwhile.
    """
    while True:
        signal = Signal()
        with ExitStack() as stack:
            for workflow_id in workflow_ids:
                stack.enter_context(engine.db.wakeups.waiting(workflow_key(workflow_id), signal))
            engine.check_open()  # after the signal is in place: closing sets it
            if waiter is not None:
                waiter.check_interrupted()
                stack.enter_context(waiter.interruptible(signal))
            finished: list[str] = yield Read(engine.db.workflows.finished, (workflow_ids,))
            if finished:
                return finished[0]
            yield Pause(signal, None)


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
        output, name = engine.serialization.dump_value(outcome.value, what="result of step", name=GET_RESULT)
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
