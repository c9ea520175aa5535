"""Changing a workflow's code while executions of the old code are unfinished.

A patch is a place in the code that is either passed for the first time, and leaves a marker among the recorded
operations, or passed again. An execution whose history goes on there without the marker was begun by the old code: it
keeps to it. So the answer depends on what the next operation was, and operations that run side by side with the patch
would change it: that is refused, as far as it can be seen.
"""

from __future__ import annotations

from dbos._context import current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Pause
from dbos._engine.records import commit_step
from dbos._engine.run import Run
from dbos._error import DBOSException, DBOSPatchNondeterminismError, DBOSUnexpectedStepError
from dbos._sysdb.operations import RecordStep
from dbos._sysdb.wakeups import Signal

__all__ = ["deprecate_patch", "patch"]

MARKER = "DBOS.patch-"


def patch(engine: Engine, name: str) -> Flow[bool]:
    """Tell whether the workflow takes the new way here: yes, unless it has passed this place with the old code.

    Needs ``enable_patching`` in the configuration. Call it by itself, not side by side with other operations.

    Args:
        name: The name of the change, unlike that of any other in this workflow.

    Returns:
        True for workflows that reach this place for the first time, and whenever they are executed again; False for
        those that an earlier version of the code has taken further.

    Raises:
        DBOSException: patching is not enabled, the name is none, or it is not called from a workflow's body.
        DBOSPatchNondeterminismError: other operations of the workflow are made at the same time.

    Example:
        ```python
        @DBOS.workflow()
        def checkout(order: int) -> None:
            if DBOS.patch("check-fraud"):
                check_fraud(order)
            charge(order)
        ```
    """
    run = yield from _alone(engine, name, "DBOS.patch")
    marker = MARKER + name
    function_id = run.take_marker(marker, may_be_new=True)
    if function_id is None:
        return False
    if run.recorded(function_id, marker) is not None:
        return True
    now_ms = engine.db.now_ms()
    existing = yield from commit_step(
        run,
        RecordStep(run.workflow_id, function_id, marker, None, None, None, now_ms, now_ms, None, run.run_token),
    )
    if existing is not None and existing.function_name != marker:
        raise DBOSUnexpectedStepError(run.workflow_id, function_id, marker, existing.function_name)
    _refuse_company(run, name, function_id)
    return True


def deprecate_patch(engine: Engine, name: str) -> Flow[bool]:
    """Take the place of :meth:`patch` when no workflow of the code before it is left: the old way can be deleted.

    It leaves no marker, and passes those that were left. When no workflow with a marker is left either, delete the
    call. Needs ``enable_patching`` in the configuration.

    Args:
        name: The name of the change.

    Returns:
        Always True.

    Raises:
        DBOSException: patching is not enabled, the name is none, or it is not called from a workflow's body.
        DBOSPatchNondeterminismError: other operations of the workflow are made at the same time.
    """
    run = yield from _alone(engine, name, "DBOS.deprecate_patch")
    run.take_marker(MARKER + name, may_be_new=False)
    return True


def _alone(engine: Engine, name: str, caller: str) -> Flow[Run]:
    """The run of the caller, which is a workflow's body and does nothing else at this moment."""
    if not engine.settings.enable_patching:
        raise DBOSException(f"enable_patching must be True in DBOS configuration, or {caller} cannot be used")
    context = current_context()
    if context is None or not context.is_in_workflow_body or context.run is None:
        raise DBOSException(f"{caller} must be called from a workflow: from its body, not from a step or elsewhere")
    if not isinstance(name, str) or not name.strip():
        raise DBOSException(f"{caller} was given {name!r}: a patch needs a name, which is a string")
    run = context.run
    run.check_interrupted()
    last_function_id = run.last_function_id
    turn = Signal()
    turn.set()
    yield Pause(turn, None)  # other tasks of the loop that are about to begin an operation begin it now
    _refuse_company(run, name, last_function_id)
    return run


def _refuse_company(run: Run, name: str, last_function_id: int) -> None:
    if len(run.operations) > 1 or run.last_function_id != last_function_id:
        raise DBOSPatchNondeterminismError(
            run.workflow_id,
            name,
            "it was called concurrently with other operations of the workflow. Await it before the others are begun, "
            "and keep its answer for them; or make the parts that run side by side child workflows.",
        )
