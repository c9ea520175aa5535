"""Executing a run to its end, which is recorded under its token.

A run that finds it is no longer the owner (cancelled, taken over, deleted) parks: it writes nothing more, and whoever
waits gets the outcome of the execution that owns the row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Invoke, Outcome, Pause, Raised, Read, Returned
from dbos._engine.records import as_exception
from dbos._engine.run import Run
from dbos._error import (
    DBOSBaseException,
    DBOSDatabaseUnavailableError,
    DBOSException,
    DBOSUnexpectedStepError,
    ExecutorFencedError,
)
from dbos._registrations import required_roles_of
from dbos._registry import TEMPORARY_PREFIX
from dbos._sysdb.operations import RecordOutcome, call
from dbos._sysdb.rows import StatusRow
from dbos._sysdb.wakeups import Signal

__all__ = ["execute", "note_cancelled", "stop_if_cancelled"]

logger = logging.getLogger("dbos.workflow")

SCHEDULED = "sched-"  # the ids of what schedules start begin with it

LOCKED_PAUSE_S = 0.1  # between attempts at a row that somebody holds


def execute(engine: Engine, run: Run) -> Flow[None]:
    """Execute a run to its end; it has an outcome then, unless it parked."""
    try:
        if run.is_interrupted:
            return
        run.has_begun = True
        if (yield from _is_overdue(engine, run)):
            return
        outcome = yield from _attempt(run)
        if isinstance(outcome, Raised) and isinstance(outcome.error, DBOSBaseException):
            _note_loss(engine, run, outcome.error)
            return
        _warn_of_unreached(run, outcome)
        yield from _finish(engine, run, outcome)
    except ExecutorFencedError as error:
        _note_loss(engine, run, error)
    finally:
        engine.runs.remove(run)


def _is_overdue(engine: Engine, run: Run) -> Flow[bool]:
    """Whether the deadline of a run that is about to begin has passed already: then it is cancelled."""
    if run.deadline_ms is None:
        return False
    now_ms = engine.db.now_ms()
    if run.deadline_ms > now_ms:
        engine.watch_deadline(run)
        return False
    ids = [run.workflow_id]
    while True:
        workflows = engine.db.workflows
        places, cancelled = yield Commit((call(workflows.places, ids), call(workflows.cancel_overdue, ids, now_ms)))
        yield from note_cancelled(engine, cancelled, places)
        row: StatusRow | None = yield Read(workflows.get, (run.workflow_id,))
        if run.is_interrupted or row is None or row.status != "PENDING" or row.run_token != run.run_token:
            return True
        # Somebody has locked its row: it is cancelled when that is over, and does not begin before.
        signal = Signal()
        with run.interruptible(signal):
            yield Pause(signal, LOCKED_PAUSE_S)


def _warn_of_unreached(run: Run, outcome: Outcome) -> None:
    """Say that the workflow is about to end before what it recorded, unless its own tasks may still come to that."""
    unreached = run.unreached()
    is_known = isinstance(outcome, Raised) and isinstance(outcome.error, DBOSUnexpectedStepError)
    if unreached is not None and not run.operations and not is_known:
        logger.warning(
            "Workflow %s ends after %s operations, but step %s, %s, was recorded by an earlier execution. A workflow "
            "must be deterministic: has its code changed?",
            run.workflow_id,
            run.last_function_id,
            unreached.function_id,
            unreached.function_name,
        )


def _finish(engine: Engine, run: Run, outcome: Outcome) -> Flow[None]:
    record, outcome = _encode_outcome(engine, run, outcome)
    try:
        results = yield Commit((record,))
    except DBOSDatabaseUnavailableError:
        raise
    except Exception as error:
        if not engine.db.dialect.refuses_value(error):
            raise  # it stays PENDING, and is executed again from what is recorded
        # The database refuses this very record (too large, say). It would do so in every execution, so it is the
        # outcome, and not a reason to begin again.
        logger.error("the outcome of workflow %s cannot be stored: %s", run.workflow_id, error)
        refusal = DBOSException(
            f"The outcome of workflow {run.workflow_id} could not be stored: {type(error).__name__}."
        )
        record, outcome = _encode_outcome(engine, run, Raised(refusal))
        results = yield Commit((record,))
    if results[0].is_applied:
        run.outcome = outcome
        engine.finished(run.workflow_id)
        if isinstance(outcome, Raised) and run.workflow_id.startswith(SCHEDULED):
            # Nobody awaits it who would hear of that.
            logger.error("Scheduled workflow %s failed", run.workflow_id, exc_info=outcome.error)


def note_cancelled(engine: Engine, workflow_ids: Sequence[str], places: Sequence[str] = ()) -> Flow[None]:
    """Workflows were cancelled, durably: interrupt those that run here and wake whoever waits for them.

    ``places`` are the queues in which they held a place.
    """
    if workflow_ids:
        for queue_name in places:
            engine.enqueued(queue_name)
    for workflow_id in workflow_ids:
        run = engine.runs.get_cancelled(workflow_id)
        if run is not None:
            yield from stop_if_cancelled(engine, run)
        engine.finished(workflow_id)


def stop_if_cancelled(engine: Engine, run: Run) -> Flow[None]:
    """Interrupt a run whose workflow was cancelled; it may have been resumed meanwhile, and this be its next run."""
    row: StatusRow | None = yield Read(engine.db.workflows.get, (run.workflow_id,))
    if row is None or row.status == "CANCELLED" or row.run_token != run.run_token:
        run.cancel()


def _attempt(run: Run) -> Flow[Outcome]:
    function = run.function
    required = required_roles_of(function.info, run.args)
    context = run.context
    del run.context  # it knows its run; if the run knew it, both would be left to the garbage collector
    try:
        context = context.with_role(required, function.name.removeprefix(TEMPORARY_PREFIX))
    except Exception as error:
        return Raised(error)
    outcome: Outcome = yield Invoke(context, function.func, run.args, run.kwargs)
    return outcome


def _note_loss(engine: Engine, run: Run, error: BaseException) -> None:
    if isinstance(error, ExecutorFencedError):
        run.lose()
        engine.check_lease()
    why = "it was cancelled" if run.is_cancelled else "another execution has it, or DBOS is shutting down"
    logger.info("workflow %s stopped before its end: %s", run.workflow_id, why)


def _encode_outcome(engine: Engine, run: Run, outcome: Outcome) -> tuple[RecordOutcome, Outcome]:
    """The record of an outcome; a value that cannot be serialized makes it an error."""
    now_ms = engine.db.now_ms()
    if isinstance(outcome, Returned):
        try:
            text, name = engine.serialization.dump_value(
                outcome.value, run.format, what="result of workflow", name=run.function.name
            )
        except Exception as error:
            outcome = Raised(error)
        else:
            return RecordOutcome(run.workflow_id, run.run_token, "SUCCESS", text, None, name, now_ms), outcome
    text, name = engine.serialization.dump_error(as_exception(outcome.error), run.format)
    return RecordOutcome(run.workflow_id, run.run_token, "ERROR", None, text, name, now_ms), outcome
