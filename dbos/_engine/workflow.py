"""Starting, executing and awaiting workflows: the rules, as flows.

A start makes the row durable before anybody learns the id; an execution ends by recording its outcome under its run
token. A run that finds it is no longer the owner (cancelled, taken over, deleted) parks: it writes nothing more, and
whoever waits gets the outcome of the execution that owns the row.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from dbos._context import Context, Unset, current_context
from dbos._engine.engine import Engine, workflow_key
from dbos._engine.flow import Commit, Flow, Invoke, Outcome, Pause, Raised, Read, Returned, conclude
from dbos._engine.run import Run
from dbos._error import (
    DBOSAwaitedWorkflowCancelledError,
    DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded,
    DBOSBaseException,
    DBOSConflictingWorkflowError,
    DBOSDatabaseUnavailableError,
    DBOSException,
    DBOSNonExistentWorkflowError,
    DBOSWorkflowConflictIDError,
    ExecutorFencedError,
    MaxRecoveryAttemptsExceededError,
)
from dbos._ids import new_token, new_workflow_id
from dbos._registrations import get_class_info_for_receiver, required_roles_of
from dbos._registry import TEMPORARY_PREFIX, WorkflowFunction
from dbos._sysdb.operations import RecordOutcome, RecordStep, Started, StartWorkflow, call
from dbos._sysdb.rows import StatusRow, StepRow
from dbos._sysdb.wakeups import Signal

__all__ = [
    "GET_RESULT",
    "QueueOptions",
    "await_outcome",
    "begin",
    "call_workflow",
    "commit_step",
    "execute",
    "note_cancelled",
    "record_result",
    "replayed",
    "reveal",
]

logger = logging.getLogger("dbos.workflow")

GET_RESULT = "DBOS.getResult"
REGISTRATION_S = 1.0  # how long to wait for this process' registration before asking again


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions:
    """Where and how to enqueue a workflow instead of starting it at once."""

    queue_name: str
    deduplication_id: str | None = None
    priority: int = 0
    partition_key: str | None = None
    delay_until_ms: int | None = None
    application_version: str | None = None


# -- starting ----------------------------------------------------------------------------------------------------------


def call_workflow(engine: Engine, function: WorkflowFunction, args: Sequence[Any], kwargs: dict[str, Any]) -> Flow[Any]:
    """Run a workflow in place and return its result; within a workflow, run it as a child."""
    context = current_context() or Context()
    parent = _parent_of(context)
    if parent is None:
        begun = yield from begin(engine, function, args, kwargs, context)
        return conclude((yield from _run_or_await(engine, begun)))
    start_id, result_id = parent.next_function_id(), parent.next_function_id()
    parent.check_interrupted()
    recorded = parent.recorded(result_id, GET_RESULT)
    if recorded is not None:
        parent.recorded(start_id, function.name)
        _take_assigned_id(context)
        return conclude(replayed(engine, recorded))
    begun = yield from begin(engine, function, args, kwargs, context, start_id)
    outcome = yield from _run_or_await(engine, begun, parent)
    child_id = begun.workflow_id if isinstance(begun, Run) else begun
    return conclude((yield from record_result(engine, parent, result_id, child_id, outcome)))


def begin(
    engine: Engine,
    function: WorkflowFunction,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    context: Context,
    function_id: int | None = None,
    queue: QueueOptions | None = None,
) -> Flow[Run | str]:
    """Make a workflow's row durable; returns its run if it is to be executed here, else the id of the one that exists.

    ``function_id`` is the id of the start among the parent's operations, None outside of a workflow.

    Raises:
        DBOSConflictingWorkflowError: the id belongs to another function, class or instance.
        MaxRecoveryAttemptsExceededError: the workflow exists and was given up.
    """
    parent = _parent_of(context)
    if parent is not None and function_id is not None:
        recorded = parent.recorded(function_id, function.name)
        if recorded is not None:
            _take_assigned_id(context)  # it was this start's, and must not fall to the next one
            if recorded.error is not None:
                raise engine.serialization.load_error(recorded.error, recorded.serialization)
            assert recorded.child_workflow_id is not None
            return recorded.child_workflow_id
    start, passed = _describe(engine, function, args, kwargs, context, function_id, queue)
    with engine.runs.expecting(start.run_token):
        started = yield from _commit_start(engine, start)
        if started.created:
            if queue is not None:
                return start.workflow_uuid
            run = Run(
                workflow_id=start.workflow_uuid,
                run_token=start.run_token,
                start_token=start.run_token,
                function=function,
                args=passed,
                kwargs=kwargs,
                context=_inner_context(context),
                format=engine.serialization.format_for(start.serialization),
                deadline_ms=start.workflow_deadline_epoch_ms,
                history=None,
            )
            engine.runs.add(run)
            return run
    if started.existing is None:
        assert parent is not None
        yield from _find_out_why(engine, parent)
    else:
        _check_same(start, started.existing, function)
        _warn_of_other_version(engine, started.existing)
        if parent is not None and start.parent_step is not None:
            yield from commit_step(parent, start.parent_step)
    return start.workflow_uuid


def _commit_start(engine: Engine, start: StartWorkflow) -> Flow[Started]:
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
            if start.owner_instance is not None:
                # The caller was interrupted, but the commit was not: only the dispatcher is left to begin it.
                engine.give_back(start.workflow_uuid, start.run_token)
            raise
        else:
            started: Started = results[0]
            return started


def _describe(
    engine: Engine,
    function: WorkflowFunction,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    context: Context,
    function_id: int | None,
    queue: QueueOptions | None,
) -> tuple[StartWorkflow, tuple[Any, ...]]:
    """The row to be written, and the arguments to call the function with."""
    parent = _parent_of(context)
    class_info, config_name = get_class_info_for_receiver(function.func, args)
    stored_args = args if class_info is None else args[1:]
    inputs, serialization = engine.serialization.dump_inputs(
        tuple(stored_args), kwargs, function.info.serialization_type
    )
    now_ms = engine.db.now_ms()
    assigned = _take_assigned_id(context)
    if assigned is not None:
        workflow_id = assigned
    elif parent is not None:
        workflow_id = f"{parent.workflow_id}-{function_id}"
    else:
        workflow_id = new_workflow_id(now_ms)
    timeout_ms: int | None = None
    deadline_ms: int | None = None
    if isinstance(context.timeout_ms, Unset):
        deadline_ms = parent.deadline_ms if parent is not None else None
    elif context.timeout_ms is not None:
        timeout_ms = context.timeout_ms
        deadline_ms = now_ms + timeout_ms if queue is None else None
    status = "PENDING" if queue is None else "ENQUEUED" if queue.delay_until_ms is None else "DELAYED"
    roles = context.authenticated_roles
    start = StartWorkflow(
        workflow_uuid=workflow_id,
        status=status,
        name=function.name,
        class_name=class_info.registered_name if class_info is not None else None,
        config_name=config_name,
        authenticated_user=context.authenticated_user,
        assumed_role=context.assumed_role,
        authenticated_roles=json.dumps(roles) if roles is not None else None,
        executor_id=engine.executor_id,
        created_at=now_ms,
        application_version=queue.application_version if queue is not None else engine.application_version,
        application_id=engine.application_id,
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
        parent_step=None
        if parent is None or function_id is None
        else RecordStep(
            workflow_uuid=parent.workflow_id,
            function_id=function_id,
            function_name=function.name,
            output=None,
            error=None,
            child_workflow_id=workflow_id,
            started_at_epoch_ms=None,
            completed_at_epoch_ms=None,
            serialization=None,
            run_token=parent.run_token,
        ),
    )
    return start, tuple(args)


def _take_assigned_id(context: Context) -> str | None:
    return context.assigned_id.take() if context.assigned_id is not None else None


def _parent_of(context: Context) -> Run | None:
    assert context.step_id is None  # a workflow cannot be started from within a step
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


def _check_same(start: StartWorkflow, existing: StatusRow, function: WorkflowFunction) -> None:
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
    if start.queue_name is not None and existing.queue_name != start.queue_name:
        logger.warning(
            "Workflow %s already exists in queue %s and stays there; it was not moved to queue %s.",
            start.workflow_uuid,
            existing.queue_name,
            start.queue_name,
        )
    if existing.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
        raise MaxRecoveryAttemptsExceededError(start.workflow_uuid, function.info.max_recovery_attempts or 0)


def _find_out_why(engine: Engine, run: Run) -> Flow[None]:
    """A write of ``run`` was refused: it was cancelled, or somebody else owns the workflow now."""
    row: StatusRow | None = yield Read(engine.db.workflows.get, (run.workflow_id,))
    if row is not None and row.status == "CANCELLED" and row.run_token == run.run_token:
        run.cancel()
    else:
        run.lose()
    run.check_interrupted()


# -- executing ---------------------------------------------------------------------------------------------------------


def _run_or_await(engine: Engine, begun: Run | str, waiter: Run | None = None) -> Flow[Outcome]:
    if isinstance(begun, Run):
        yield from execute(engine, begun)
        if begun.outcome is not None:
            return begun.outcome
        begun = begun.workflow_id
    return (yield from await_outcome(engine, begun, waiter, must_exist=True))


def execute(engine: Engine, run: Run) -> Flow[None]:
    """Execute a run to its end; it has an outcome then, unless it parked."""
    try:
        if run.is_interrupted or (yield from _is_overdue(engine, run)):
            return
        outcome = yield from _attempt(run)
        if isinstance(outcome, Raised) and isinstance(outcome.error, DBOSBaseException):
            _note_loss(engine, run, outcome.error)
            return
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
    results = yield Commit((call(engine.db.workflows.cancel_overdue, [run.workflow_id], now_ms),))
    yield from note_cancelled(engine, results[0])
    return True


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


def note_cancelled(engine: Engine, workflow_ids: Sequence[str]) -> Flow[None]:
    """Workflows were cancelled, durably: interrupt those that run here and wake whoever waits for them."""
    for workflow_id in workflow_ids:
        run = engine.runs.get(workflow_id)
        if run is not None:
            # The workflow may have been resumed meanwhile, and this be its next run.
            row: StatusRow | None = yield Read(engine.db.workflows.get, (workflow_id,))
            if row is None or row.status == "CANCELLED" or row.run_token != run.run_token:
                run.cancel()
        engine.finished(workflow_id)


def _attempt(run: Run) -> Flow[Outcome]:
    function = run.function
    required = required_roles_of(function.info, run.args)
    try:
        run.context = run.context.with_role(required, function.name.removeprefix(TEMPORARY_PREFIX))
    except Exception as error:
        return Raised(error)
    outcome: Outcome = yield Invoke(run.context, function.func, run.args, run.kwargs)
    return outcome


def _note_loss(engine: Engine, run: Run, error: BaseException) -> None:
    if isinstance(error, ExecutorFencedError):
        run.lose()
        engine.check_lease()
    logger.info("workflow %s stopped before its end: %s", run.workflow_id, error)


def _encode_outcome(engine: Engine, run: Run, outcome: Outcome) -> tuple[RecordOutcome, Outcome]:
    """The record of an outcome; a value that cannot be serialized makes it an error."""
    now_ms = engine.db.now_ms()
    if isinstance(outcome, Returned):
        try:
            text, name = engine.serialization.dump_value(outcome.value, run.format)
        except Exception as error:
            outcome = Raised(error)
        else:
            return RecordOutcome(run.workflow_id, run.run_token, "SUCCESS", text, None, name, now_ms), outcome
    text, name = engine.serialization.dump_error(_as_exception(outcome.error), run.format)
    return RecordOutcome(run.workflow_id, run.run_token, "ERROR", None, text, name, now_ms), outcome


def _as_exception(error: BaseException) -> Exception:
    assert isinstance(error, Exception)  # drivers let no other kind end a workflow
    return error


# -- awaiting ----------------------------------------------------------------------------------------------------------


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


# -- what a workflow records about others ------------------------------------------------------------------------------


def record_result(engine: Engine, parent: Run, function_id: int, child_id: str, outcome: Outcome) -> Flow[Outcome]:
    """Record in ``parent`` how a workflow ended; returns what counts from now on."""
    if isinstance(outcome, Returned):
        output, name = engine.serialization.dump_value(outcome.value)
        error = None
    else:
        output = None
        error, name = engine.serialization.dump_error(_as_exception(outcome.error))
    now_ms = engine.db.now_ms()
    step = RecordStep(
        parent.workflow_id, function_id, GET_RESULT, output, error, child_id, now_ms, now_ms, name, parent.run_token
    )
    existing = yield from commit_step(parent, step)
    return outcome if existing is None else replayed(engine, existing)


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
