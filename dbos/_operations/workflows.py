"""Starting, awaiting, inspecting, cancelling and resuming workflows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from dbos._context import Context, current_context
from dbos._engine.engine import Engine
from dbos._engine.execution import note_cancelled
from dbos._engine.flow import Commit, Flow, Read, conclude
from dbos._engine.outcome import GET_RESULT, await_outcome, record_result
from dbos._engine.records import replayed
from dbos._engine.run import Run
from dbos._engine.start import begin
from dbos._error import DBOSNonExistentWorkflowError, DBOSWorkflowFunctionNotFoundError
from dbos._operations.recording import recorded, refuse_in_transaction
from dbos._registrations import get_dbos_func_name
from dbos._registry import TEMPORARY_PREFIX, WorkflowFunction
from dbos._sysdb.filters import WorkflowFilter
from dbos._sysdb.operations import call
from dbos._sysdb.rows import StatusRow, StepRow
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE
from dbos._sysdb.wakeups import QUEUE
from dbos._types import StepInfo, WorkflowStatus

__all__ = [
    "cancel_workflow",
    "cancel_workflows",
    "get_result",
    "get_workflow_status",
    "handle_result",
    "handle_status",
    "list_workflow_steps",
    "list_workflows",
    "resume_workflows",
    "start",
]

GET_STATUS = "DBOS.getStatus"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

OneOrMany = str | Sequence[str] | None


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
    function_id: int | None = None
    if context.run is not None:
        function_id = context.run.next_function_id()
        context.run.check_interrupted()
    return (yield from begin(engine, function, (*receiver, *args), kwargs, context, function_id))


# -- awaiting and inspecting -------------------------------------------------------------------------------------------


def handle_result(engine: Engine, workflow_id: str, local: Run | None) -> Flow[Any]:
    """Wait for a workflow's outcome; within a workflow, record it, be it a result or an error.

    ``local`` is its run in this process, if it was started here: its result is the very object that was returned.
    """
    refuse_in_transaction(GET_RESULT)
    context = current_context()
    if context is None or not context.is_in_workflow_body or context.run is None:
        return conclude((yield from await_outcome(engine, workflow_id, local=local)))
    run = context.run
    function_id = run.next_function_id()
    run.check_interrupted()
    row = run.recorded(function_id, GET_RESULT)
    if row is not None:
        return conclude(replayed(engine, row))
    outcome = yield from await_outcome(engine, workflow_id, run, local=local)
    return conclude((yield from record_result(engine, run, function_id, workflow_id, outcome)))


def get_result(engine: Engine, workflow_id: str) -> Flow[Any]:
    """Wait until a workflow ends and return its result.

    Args:
        workflow_id: The workflow's id. One that does not exist is waited for.

    Raises:
        Exception: what the workflow raised.
        DBOSAwaitedWorkflowCancelledError: it was cancelled.
        DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded: it was given up after too many attempts.
    """
    context = current_context()
    waiter = context.run if context is not None and context.is_in_workflow_body else None

    def wait() -> Flow[Any]:
        return conclude((yield from await_outcome(engine, workflow_id, waiter)))

    return (yield from recorded(engine, GET_RESULT, wait()))


def get_workflow_status(engine: Engine, workflow_id: str) -> Flow[WorkflowStatus | None]:
    """The status of a workflow.

    Args:
        workflow_id: The workflow's id.

    Returns:
        The status with decoded input and outcome, or None if there is no such workflow.
    """

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


def list_workflows(
    engine: Engine,
    *,
    workflow_ids: list[str] | None = None,
    status: str | list[str] | None = None,
    start_time: str | None = None,
    end_time: str | None = None,
    name: str | list[str] | None = None,
    app_version: str | list[str] | None = None,
    forked_from: str | list[str] | None = None,
    parent_workflow_id: str | list[str] | None = None,
    user: str | list[str] | None = None,
    queue_name: str | list[str] | None = None,
    executor_id: str | list[str] | None = None,
    workflow_id_prefix: str | list[str] | None = None,
    limit: int | None = None,
    offset: int | None = None,
    sort_desc: bool = False,
    load_input: bool = True,
    load_output: bool = True,
    queues_only: bool = False,
    was_forked_from: bool | None = None,
) -> Flow[list[WorkflowStatus]]:
    """Workflows that match all the given filters, oldest first.

    A filter that takes a list matches any of its items; an empty list, like None, does not filter.

    Args:
        workflow_ids: Ids.
        status: Statuses, such as ``"PENDING"``.
        start_time: Created at or after this time: ISO 8601, local time unless it has an offset.
        end_time: Created at or before this time, likewise.
        name: Registered names of workflow functions.
        app_version: Application versions.
        forked_from: Ids of workflows that these were forked from.
        parent_workflow_id: Ids of parents.
        user: Authenticated users.
        queue_name: Queues.
        executor_id: Executors that ran them last.
        workflow_id_prefix: Literal prefixes of ids.
        limit: At most so many; 0, like None, for all.
        offset: Leave out so many first.
        sort_desc: Newest first.
        load_input: Decode inputs; otherwise ``input`` is None.
        load_output: Decode outputs and errors; otherwise both are None.
        queues_only: Only those in a queue; without ``status``, only those that wait or run.
        was_forked_from: Whether something was forked from them.

    Raises:
        ValueError: a time is not ISO 8601.
    """
    filter = WorkflowFilter(
        workflow_ids=_many(workflow_ids),
        workflow_id_prefixes=_many(workflow_id_prefix),
        statuses=_many(status),
        names=_many(name),
        app_versions=_many(app_version),
        forked_from=_many(forked_from),
        parent_workflow_ids=_many(parent_workflow_id),
        users=_many(user),
        queue_names=_many(queue_name),
        executor_ids=_many(executor_id),
        created_from_ms=_epoch_ms(start_time),
        created_to_ms=_epoch_ms(end_time),
        queues_only=queues_only,
        was_forked_from=was_forked_from,
        limit=limit,
        offset=offset,
        sort_desc=sort_desc,
    )

    def read() -> Flow[list[WorkflowStatus]]:
        rows: list[StatusRow] = yield Read(engine.db.workflows.list, (filter,))
        return [to_status(engine, row, load_input=load_input, load_output=load_output) for row in rows]

    return (yield from recorded(engine, "DBOS.listWorkflows", read()))


def list_workflow_steps(engine: Engine, workflow_id: str) -> Flow[list[StepInfo]]:
    """What a workflow has recorded, in order of function id; empty for an unknown workflow.

    Args:
        workflow_id: The workflow's id.
    """

    def read() -> Flow[list[StepInfo]]:
        rows: list[StepRow] = yield Read(engine.db.operations.steps, (workflow_id,))
        return [to_step_info(engine, row) for row in rows]

    return (yield from recorded(engine, "DBOS.listWorkflowSteps", read()))


def retrieve(engine: Engine, workflow_id: str, existing_workflow: bool) -> Flow[str]:
    """Check that a workflow exists, unless that is not asked for."""
    if existing_workflow:
        yield from handle_status(engine, workflow_id)
    return workflow_id


# -- changing ----------------------------------------------------------------------------------------------------------


def cancel_workflows(engine: Engine, workflow_ids: Sequence[str]) -> Flow[None]:
    """Cancel workflows that are not finished; they stop at their next operation, and their waits end at once.

    Args:
        workflow_ids: The workflows' ids; unknown and finished ones are left alone.
    """

    def cancel() -> Flow[None]:
        results = yield Commit((call(engine.db.workflows.cancel, list(workflow_ids), engine.db.now_ms()),))
        yield from note_cancelled(engine, results[0])

    yield from recorded(engine, "DBOS.cancelWorkflow", cancel())


def cancel_workflow(engine: Engine, workflow_id: str) -> Flow[None]:
    """Cancel a workflow that is not finished; it stops at its next operation, and its waits end at once.

    Args:
        workflow_id: The workflow's id; an unknown or finished one is left alone.
    """
    yield from cancel_workflows(engine, [workflow_id])


def resume_workflows(engine: Engine, workflow_ids: Sequence[str], queue_name: str | None) -> Flow[None]:
    """Enqueue unfinished workflows, to go on from their last recorded operation; finished ones are left alone.

    Raises:
        DBOSNonExistentWorkflowError: one of them does not exist; none is resumed.
    """
    queue = queue_name if queue_name is not None else INTERNAL_QUEUE

    def resume() -> Flow[None]:
        known: list[str] = yield Read(engine.db.workflows.existing, (list(workflow_ids),))
        for workflow_id in workflow_ids:
            if workflow_id not in known:
                raise DBOSNonExistentWorkflowError("target", workflow_id)
        yield Commit((call(engine.db.workflows.resume, list(workflow_ids), queue, engine.db.now_ms()),))
        engine.dispatch()
        engine.db.publish(f"{QUEUE}:{queue}")

    yield from recorded(engine, "DBOS.resumeWorkflow", resume())


# -- decoding ----------------------------------------------------------------------------------------------------------


def to_status(engine: Engine, row: StatusRow, *, load_input: bool = True, load_output: bool = True) -> WorkflowStatus:
    """A row as users see it; what cannot be decoded is shown as the raw text."""
    serialization = engine.serialization
    outcome_format = row.outcome_serialization or row.serialization
    status = WorkflowStatus(
        workflow_id=row.workflow_uuid,
        status=row.status,
        name=row.name,
        class_name=row.class_name,
        config_name=row.config_name,
        authenticated_user=row.authenticated_user,
        assumed_role=row.assumed_role,
        authenticated_roles=_roles(row.authenticated_roles),
        created_at=row.created_at,
        updated_at=row.updated_at,
        completed_at=row.completed_at,
        queue_name=row.queue_name,
        executor_id=row.executor_id,
        app_version=row.application_version,
        app_id=row.application_id,
        workflow_timeout_ms=row.workflow_timeout_ms,
        workflow_deadline_epoch_ms=row.workflow_deadline_epoch_ms,
        deduplication_id=row.deduplication_id,
        priority=row.priority,
        queue_partition_key=row.queue_partition_key,
        forked_from=row.forked_from,
        was_forked_from=bool(row.was_forked_from),
        parent_workflow_id=row.parent_workflow_id,
        dequeued_at=row.started_at_epoch_ms,
        delay_until_epoch_ms=row.delay_until_epoch_ms,
        recovery_attempts=row.recovery_attempts,
    )
    if load_input and row.inputs is not None:
        inputs = serialization.try_load_inputs(row.inputs, row.serialization)
        status.input = inputs if isinstance(inputs, str) else {"args": inputs[0], "kwargs": inputs[1]}
    if load_output and row.output is not None:
        status.output = serialization.try_load_value(row.output, outcome_format)
    if load_output and row.error is not None:
        status.error = serialization.try_load_error(row.error, outcome_format)
    return status


def to_step_info(engine: Engine, row: StepRow) -> StepInfo:
    """A record as users see it; what cannot be decoded is shown as the raw text."""
    serialization = engine.serialization
    return {
        "function_id": row.function_id,
        "function_name": row.function_name,
        "output": None if row.output is None else serialization.try_load_value(row.output, row.serialization),
        "error": None if row.error is None else serialization.try_load_error(row.error, row.serialization),  # type: ignore[typeddict-item]
        "child_workflow_id": row.child_workflow_id,
        "started_at_epoch_ms": row.started_at_epoch_ms,
        "completed_at_epoch_ms": row.completed_at_epoch_ms,
    }


def _roles(text: str | None) -> list[str] | None:
    if not text:
        return None
    try:
        roles: list[str] = json.loads(text)
    except ValueError:
        return [text]  # one unreadable row must not hide the others
    return roles


def _many(value: OneOrMany) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _epoch_ms(text: str | None) -> int | None:
    if text is None:
        return None
    time = datetime.fromisoformat(text).astimezone(UTC)  # without an offset it is local time
    return (time - EPOCH) // timedelta(milliseconds=1)  # exact, which seconds in a float are not
