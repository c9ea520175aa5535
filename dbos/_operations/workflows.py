"""Starting, awaiting and looking up workflows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dbos._context import Context, checked_workflow_id, current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Raised, Read, conclude
from dbos._engine.outcome import GET_RESULT, await_first, await_outcome, record_result
from dbos._engine.records import replayed
from dbos._engine.run import LatestRun, Run
from dbos._engine.start import begin
from dbos._error import DBOSException, DBOSNonExistentWorkflowError, DBOSWorkflowFunctionNotFoundError
from dbos._handles import WorkflowHandle, WorkflowHandleAsync
from dbos._operations.listing import to_status
from dbos._operations.recording import recorded, refuse_in_transaction
from dbos._registrations import get_dbos_func_name
from dbos._registry import TEMPORARY_PREFIX, WorkflowFunction
from dbos._sysdb.rows import StatusRow
from dbos._types import WorkflowStatus

__all__ = [
    "find_function",
    "get_result",
    "get_workflow_status",
    "handle_result",
    "handle_status",
    "retrieve_workflow",
    "start",
    "wait_first",
]

GET_STATUS = "DBOS.getStatus"
WAIT_FIRST = "DBOS.waitFirst"

H = TypeVar("H", bound=WorkflowHandle[Any] | WorkflowHandleAsync[Any])


# -- starting ----------------------------------------------------------------------------------------------------------


def find_function(engine: Engine, func: Callable[..., Any]) -> tuple[WorkflowFunction, tuple[Any, ...]]:
    """What ``start_workflow`` was given, as a registered function and the receiver that a bound method brings along.

    Raises:
        DBOSWorkflowFunctionNotFoundError: it was never decorated.
    """
    name = get_dbos_func_name(func)
    workflows = engine.registry.workflows
    kind = getattr(func, "dbos_function_kind", "workflow")
    function = workflows.get(name if kind == "workflow" else TEMPORARY_PREFIX + name)
    if function is None:
        raise DBOSWorkflowFunctionNotFoundError("<NONE>", f"{name} is not a registered workflow function")
    receiver = getattr(func, "__self__", None)
    return function, () if receiver is None else (receiver,)


def start(engine: Engine, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Flow[Run | str]:
    """Make a workflow durable; returns the run to be executed in the background, or the id of the one that exists."""
    function, receiver = find_function(engine, func)
    context = current_context() or Context()
    assert context.step_id is None, "A workflow cannot be started from within a step: start it from the workflow"
    choices = context.choices
    meaningless = choices.only_for_queues()
    if meaningless:
        raise DBOSException(
            f"Workflow {function.name} is not being enqueued: {', '.join(meaningless)} of SetEnqueueOptions requires a "
            "queue. Enqueue it, or start it outside of that block."
        )
    function_id: int | None = None
    if context.run is not None:
        function_id = context.run.next_function_id()
        context.run.check_interrupted()
    return (yield from begin(engine, function, (*receiver, *args), kwargs, context, function_id, choices.app_version))


# -- awaiting and inspecting -------------------------------------------------------------------------------------------


def handle_result(engine: Engine, workflow_id: str, latest: LatestRun | None) -> Flow[Any]:
    """Wait for a workflow's outcome; within a workflow, record it, be it a result or an error.

    ``latest`` is its run in this process, if it has one: then the result is the very object that was returned.
    """
    refuse_in_transaction(GET_RESULT)
    context = current_context()
    if context is None or not context.is_in_workflow_body or context.run is None:
        return conclude((yield from await_outcome(engine, workflow_id, latest=latest)))
    run = context.run
    function_id = run.next_function_id()
    run.check_interrupted()
    row = run.recorded(function_id, GET_RESULT)
    if row is not None:
        return conclude(replayed(engine, row))
    outcome = yield from await_outcome(engine, workflow_id, run, latest=latest)
    return conclude((yield from record_result(engine, run, function_id, workflow_id, outcome)))


def get_result(engine: Engine, workflow_id: str) -> Flow[Any]:
    """Wait until a workflow ends and return its result.

    Within a workflow the outcome is recorded, be it a result or an error.

    Args:
        workflow_id: The workflow's id. One that does not exist is waited for.

    Raises:
        Exception: what the workflow raised.
        DBOSAwaitedWorkflowCancelledError: it was cancelled.
        DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded: it was given up after too many attempts.
        DBOSNonExistentWorkflowError: it was deleted while this waited for it.
        DBOSException: no workflow can have this id.
    """
    return (yield from handle_result(engine, checked_workflow_id(workflow_id), None))


def wait_first(engine: Engine, handles: Sequence[H], *, polling_interval_sec: float = 1.0) -> Flow[H]:
    """Wait until one of several workflows has ended, however it did, and return its handle.

    If several have ended already, it is the one that did so first.

    Args:
        handles: Handles of the workflows; one that does not exist never ends.
        polling_interval_sec: Accepted for compatibility; waiters are woken, and one query a second checks for all of
            them together.

    Returns:
        The very handle that was given.

    Raises:
        ValueError: there are no handles, or two of the same workflow.
        TypeError: something else than a handle is among them.

    Example:
        ```python
        first = DBOS.wait_first([DBOS.start_workflow(ask, mirror) for mirror in mirrors])
        print(first.get_result())
        ```
    """
    by_id = {_id_of(handle): handle for handle in handles}
    if not by_id:
        raise ValueError("handles must not be empty")
    if len(by_id) < len(handles):
        raise ValueError("handles must not contain duplicate workflow IDs")
    context = current_context()
    waiter = context.run if context is not None and context.is_in_workflow_body else None
    first = yield from recorded(engine, WAIT_FIRST, await_first(engine, list(by_id), waiter))
    return first if isinstance(first, Raised) else by_id[first]


def _id_of(handle: object) -> str:
    workflow_id = getattr(handle, "workflow_id", None)
    if not isinstance(workflow_id, str):
        raise TypeError(f"wait_first takes a list of workflow handles, and {handle!r} is none: see retrieve_workflow.")
    return workflow_id


def get_workflow_status(engine: Engine, workflow_id: str) -> Flow[WorkflowStatus | None]:
    """The status of a workflow.

    Args:
        workflow_id: The workflow's id.

    Returns:
        The status with decoded input and outcome, or None if there is no such workflow.

    Raises:
        DBOSException: no workflow can have this id.
    """
    workflow_id = checked_workflow_id(workflow_id)

    def read() -> Flow[WorkflowStatus | None]:
        row: StatusRow | None = yield Read(engine.db.workflows.get, (workflow_id,))
        return None if row is None else to_status(engine, row)

    return (yield from recorded(engine, GET_STATUS, read()))


def handle_status(engine: Engine, workflow_id: str) -> Flow[WorkflowStatus]:
    """The status of a workflow that must exist."""
    status = yield from get_workflow_status(engine, workflow_id)
    if status is None:
        raise DBOSNonExistentWorkflowError("target", workflow_id)
    return status


def retrieve_workflow(engine: Engine, workflow_id: str, existing_workflow: bool = True) -> Flow[str]:
    """A handle for a workflow, wherever it runs.

    Args:
        workflow_id: The workflow's id.
        existing_workflow: Check that it exists.

    Raises:
        DBOSNonExistentWorkflowError: there is no such workflow.
        DBOSException: no workflow can have this id.
    """
    workflow_id = checked_workflow_id(workflow_id)
    if existing_workflow:
        yield from handle_status(engine, workflow_id)
    return workflow_id
