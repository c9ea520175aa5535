"""Starting a workflow: its row is durable before anybody learns the id."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dbos._context import Context, Unset
from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Pause, Read
from dbos._engine.records import commit_step
from dbos._engine.run import Run
from dbos._error import (
    DBOSConflictingWorkflowError,
    ExecutorFencedError,
    MaxRecoveryAttemptsExceededError,
)
from dbos._ids import new_token, new_workflow_id
from dbos._registrations import get_class_info_for_receiver
from dbos._registry import WorkflowFunction
from dbos._serialization import WorkflowSerializationFormat
from dbos._sysdb.operations import RecordStep, Started, StartWorkflow
from dbos._sysdb.rows import StatusRow, StepRow

__all__ = [
    "QueueOptions",
    "Target",
    "begin",
    "check_owned",
    "check_same",
    "describe",
    "parent_of",
    "replayed_start",
    "take_assigned_id",
    "target_of",
]

logger = logging.getLogger("dbos.workflow")

REGISTRATION_S = 1.0  # how long to wait for this process' registration before asking again


class QueueOptions(NamedTuple):
    """Where and how to enqueue a workflow instead of starting it at once."""

    queue_name: str
    deduplication_id: str | None = None
    priority: int = 0
    partition_key: str | None = None
    delay_until_ms: int | None = None
    application_version: str | None = None
    application_name: str | None = None  # of which it is; by default of this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a workflow executes, by the names in its row, and the arguments, without the instance or class."""

    name: str
    class_name: str | None
    config_name: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    format: WorkflowSerializationFormat | None
    max_recovery_attempts: int | None


def target_of(function: WorkflowFunction, args: Sequence[Any], kwargs: dict[str, Any]) -> Target:
    """The target of a call of a registered function.

    Raises:
        Exception: it is a method whose class was not registered, or whose instance has no name.
    """
    class_info, config_name = get_class_info_for_receiver(function.func, args)
    return Target(
        name=function.name,
        class_name=None if class_info is None else class_info.registered_name,
        config_name=config_name,
        args=tuple(args if class_info is None else args[1:]),
        kwargs=kwargs,
        format=function.info.serialization_type,
        max_recovery_attempts=function.info.max_recovery_attempts,
    )


def begin(
    engine: Engine,
    function: WorkflowFunction,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    context: Context,
    function_id: int | None = None,
    application_version: str | None = None,
) -> Flow[Run | str]:
    """Make a workflow's row durable; returns its run if it is to be executed here, else the id of the one that exists.

    ``function_id`` is the id of the start among the parent's operations, None outside of a workflow.

    Raises:
        DBOSConflictingWorkflowError: the id belongs to another function, class or instance.
        MaxRecoveryAttemptsExceededError: the workflow exists and was given up.
    """
    parent = parent_of(context)
    if parent is not None and function_id is not None:
        recorded = parent.recorded(function_id, function.name)
        if recorded is not None:
            take_assigned_id(context)  # it was this start's, and must not fall to the next one
            return replayed_start(engine, recorded)
    target = target_of(function, args, kwargs)
    start = describe(engine, target, context, function_id)
    if application_version is not None:
        start = start._replace(application_version=application_version)
    with engine.runs.expecting(start.run_token) as cancelled:
        while True:
            started, owner_instance = yield from _commit_start(engine, start)
            if started.created:
                run = Run(
                    workflow_id=start.workflow_uuid,
                    run_token=start.run_token,
                    start_token=start.run_token,
                    function=function,
                    args=tuple(args),
                    kwargs=kwargs,
                    context=_inner_context(context),
                    format=engine.serialization.format_for(start.serialization),
                    deadline_ms=start.workflow_deadline_epoch_ms,
                    history=None,
                )
                engine.enter(run, owner_instance)
                if run.workflow_id in cancelled:  # before there was a run to be told
                    run.cancel()
                return run
            if started.existing is not None:
                break
            # The id was taken, and whoever had it was deleted before it could be looked at; unless the parent is lost.
            if parent is not None:
                yield from check_owned(engine, parent)
    check_same(start, started.existing, target)
    _warn_of_other_version(engine, started.existing)
    if parent is not None and start.parent_step is not None:
        existing = yield from commit_step(parent, start.parent_step)
        if existing is not None:
            return replayed_start(engine, existing)
    return start.workflow_uuid


def _commit_start(engine: Engine, start: StartWorkflow) -> Flow[tuple[Started, str | None]]:
    """Create the row; a process that was declared dead registers anew and tries again, unless a dead run starts it."""
    while True:
        renewed = engine.lease_renewed
        try:
            results = yield Commit((start,))
        except ExecutorFencedError:
            if start.parent_step is not None or start.owner_instance is None:
                raise
            engine.check_lease()
            if start.owner_instance == engine.instance_id:
                yield Pause(renewed, REGISTRATION_S)
            start = start._replace(owner_instance=engine.instance_id)
        except Exception:
            raise
        except BaseException:
            # The caller was interrupted, but the commit was not: only the dispatcher is left to begin it.
            engine.give_back(start.workflow_uuid, start.run_token)
            raise
        else:
            started: Started = results[0]
            return started, start.owner_instance


def replayed_start(engine: Engine, recorded: StepRow) -> str:
    """The id of the workflow that an earlier execution started.

    Raises:
        Exception: what it recorded instead.
    """
    if recorded.error is not None:
        raise engine.serialization.load_error(recorded.error, recorded.serialization)
    assert recorded.child_workflow_id is not None
    return recorded.child_workflow_id


def describe(
    engine: Engine,
    target: Target,
    context: Context,
    function_id: int | None,
    queue: QueueOptions | None = None,
    *,
    takes_assigned_id: bool = True,
) -> StartWorkflow:
    """The row to be written, with the id that the user has assigned, if one is left, or else one of ours."""
    parent = parent_of(context)
    inputs, serialization = engine.serialization.dump_inputs(
        target.args, target.kwargs, target.format, name=target.name
    )
    now_ms = engine.db.now_ms()
    workflow_id = take_assigned_id(context) if takes_assigned_id else None
    if workflow_id is None:
        workflow_id = new_workflow_id(now_ms) if parent is None else f"{parent.workflow_id}-{function_id}"
    timeout_ms: int | None = None
    deadline_ms: int | None = None
    if isinstance(context.timeout_ms, Unset):
        deadline_ms = parent.deadline_ms if parent is not None else None
    elif context.timeout_ms is not None:
        timeout_ms = context.timeout_ms
        deadline_ms = now_ms + timeout_ms if queue is None else None
    status = "PENDING" if queue is None else "ENQUEUED" if queue.delay_until_ms is None else "DELAYED"
    roles = context.authenticated_roles
    return StartWorkflow(
        workflow_uuid=workflow_id,
        status=status,
        name=target.name,
        class_name=target.class_name,
        config_name=target.config_name,
        authenticated_user=context.authenticated_user,
        assumed_role=context.assumed_role,
        authenticated_roles=json.dumps(roles) if roles is not None else None,
        executor_id=None if engine.is_client else engine.executor_id,
        created_at=now_ms,
        application_version=queue.application_version if queue is not None else engine.application_version,
        application_id=None if engine.is_client else engine.application_id,
        recovery_attempts=1 if queue is None else 0,
        queue_name=None if queue is None else queue.queue_name,
        workflow_timeout_ms=timeout_ms,
        workflow_deadline_epoch_ms=deadline_ms,
        inputs=inputs,
        deduplication_id=None if queue is None else queue.deduplication_id,
        priority=0 if queue is None else queue.priority,
        queue_partition_key=None if queue is None else queue.partition_key,
        parent_workflow_id=None if parent is None else parent.workflow_id,
        serialization=serialization,
        delay_until_epoch_ms=None if queue is None else queue.delay_until_ms,
        run_token=new_token(),
        owner_instance=engine.instance_id if queue is None else None,
        application_name=(queue.application_name if queue is not None else None) or engine.application_name,
        attributes=context.attributes,
        parent_step=None
        if parent is None or function_id is None
        else RecordStep(
            workflow_uuid=parent.workflow_id,
            function_id=function_id,
            function_name=target.name,
            output=None,
            error=None,
            child_workflow_id=workflow_id,
            started_at_epoch_ms=None,
            completed_at_epoch_ms=None,
            serialization=None,
            run_token=parent.run_token,
        ),
    )


def take_assigned_id(context: Context) -> str | None:
    return context.assigned_id.take() if context.assigned_id is not None else None


def parent_of(context: Context) -> Run | None:
    assert context.step_id is None, "A workflow cannot be called from within a step: call it from the workflow"
    return context.run


def _inner_context(context: Context) -> Context:
    """The context of a workflow's body: acting for the same user, with nothing else asked for."""
    return Context(
        authenticated_user=context.authenticated_user,
        authenticated_roles=context.authenticated_roles,
        assumed_role=context.assumed_role,
    )


def _warn_of_other_version(engine: Engine, existing: StatusRow) -> None:
    version = existing.application_version
    if existing.status in ("PENDING", "ENQUEUED") and version not in (None, engine.application_version):
        logger.warning(
            "Workflow %s exists already, is unfinished, and belongs to application version %s; this process runs %s "
            "and waits until a process of that version finishes it. To finish it here, set application_version to %s "
            "in the configuration.",
            existing.workflow_uuid,
            version,
            engine.application_version,
            version,
        )


def check_same(start: StartWorkflow, existing: StatusRow, target: Target) -> None:
    """Refuse an id that belongs to something else.

    Raises:
        DBOSConflictingWorkflowError: to another function, class or instance.
        MaxRecoveryAttemptsExceededError: the workflow was given up.
    """

    def differs(what: str, stored: str | None, supplied: str | None) -> DBOSConflictingWorkflowError:
        return DBOSConflictingWorkflowError(
            start.workflow_uuid,
            f"Workflow already exists with a different {what}: {stored}, but the provided {what} is: {supplied}",
        )

    if existing.name != start.name:
        raise differs("function name", existing.name, start.name)
    if existing.class_name and start.class_name and existing.class_name != start.class_name:
        raise differs("class name", existing.class_name, start.class_name)
    if existing.config_name != start.config_name:
        raise differs("config name", existing.config_name, start.config_name)
    if existing.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
        raise MaxRecoveryAttemptsExceededError(start.workflow_uuid, target.max_recovery_attempts or 0)


def check_owned(engine: Engine, run: Run) -> Flow[None]:
    """A write of ``run`` had no effect: stop it if it was cancelled, or if somebody else owns the workflow now.

    Returns if the run still owns its workflow: then the write may be repeated.
    """
    row: StatusRow | None = yield Read(engine.db.workflows.get, (run.workflow_id,))
    if row is not None and row.run_token == run.run_token:
        if row.status == "PENDING":
            return
        if row.status == "CANCELLED":
            run.cancel()
    if not run.is_cancelled:
        run.lose()
    run.check_interrupted()
