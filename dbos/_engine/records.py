"""What a run records of its operations, and what it finds recorded."""

from __future__ import annotations

from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Outcome, Raised, Returned
from dbos._engine.run import Run
from dbos._error import (
    DBOSDatabaseUnavailableError,
    DBOSWorkflowConflictIDError,
)
from dbos._sysdb.operations import RecordStep
from dbos._sysdb.rows import StepRow

__all__ = ["as_exception", "commit_step", "replayed"]


def commit_step(run: Run, step: RecordStep) -> Flow[StepRow | None]:
    """Record an operation of ``run``; returns the record that was there first, if there was one.

    Raises:
        DBOSWorkflowConflictIDError: the run does not own its workflow any more; nothing was recorded.
    """
    try:
        results = yield Commit((step,))
    except DBOSDatabaseUnavailableError as error:
        # This process is closing its database. That is no failure of the step, and must not look like one to the
        # user's code: the run stops here, and whoever recovers it repeats the step.
        run.lose()
        raise DBOSWorkflowConflictIDError(run.workflow_id) from error
    status, existing = results[0]
    if status is None:
        run.lose()
        raise DBOSWorkflowConflictIDError(run.workflow_id)
    if status == "CANCELLED":
        run.cancel()  # this operation is recorded; the next one raises
    row: StepRow | None = existing
    return row


def replayed(engine: Engine, recorded: StepRow) -> Outcome:
    """The outcome of an operation that an earlier execution recorded."""
    if recorded.error is not None:
        return Raised(engine.serialization.load_error(recorded.error, recorded.serialization))
    if recorded.output is None:
        return Returned(None)
    return Returned(engine.serialization.load_value(recorded.output, recorded.serialization))


def as_exception(error: BaseException) -> Exception:
    assert isinstance(error, Exception)  # drivers let no other kind end a workflow
    return error
