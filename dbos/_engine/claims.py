"""Executing workflows that are found in the database: resolving what they need, and beginning them in this process."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from dbos._context import Context
from dbos._engine.engine import Engine
from dbos._engine.execution import note_cancelled, stop_if_cancelled
from dbos._engine.flow import Commit, Flow, Read
from dbos._engine.run import Run
from dbos._error import DBOSBaseException, DBOSRecoveryError, DBOSWorkflowFunctionNotFoundError
from dbos._ids import new_token
from dbos._queue_config import QueueConfig
from dbos._registrations import ValidateArgs, needs_receiver
from dbos._registry import WorkflowFunction
from dbos._sysdb.operations import Call, RecordOutcome, call
from dbos._sysdb.rows import StatusRow, StepRow
from dbos._sysdb.stores.queue_claims import Claimed, ClaimRequest
from dbos._sysdb.stores.workflow_status import target_key

__all__ = ["Begun", "claim_by_id", "claim_from_queue", "give_back", "resolve"]

logger = logging.getLogger("dbos.recovery")


def resolve(engine: Engine, row: StatusRow) -> tuple[WorkflowFunction, Any]:
    """The function that a row names, and the instance or class it is called on (None for neither).

    Raises:
        DBOSWorkflowFunctionNotFoundError: one of them is not registered in this process.
    """
    registry = engine.registry
    function = registry.workflows.get(row.name)
    if function is None:
        raise DBOSWorkflowFunctionNotFoundError(row.workflow_uuid, f"{row.name} is not a registered workflow function")
    if row.config_name is not None:
        key = f"{row.class_name}/{row.config_name}"
        if key not in registry.instances:
            raise DBOSWorkflowFunctionNotFoundError(
                row.workflow_uuid, f"configured class instance '{key}' is not registered"
            )
        return function, registry.instances[key]
    if row.class_name is not None and needs_receiver(function.info):
        if row.class_name not in registry.classes:
            raise DBOSWorkflowFunctionNotFoundError(row.workflow_uuid, f"class '{row.class_name}' is not registered")
        return function, registry.classes[row.class_name]
    return function, None


class Begun(NamedTuple):
    """The runs that came of a claim, which may be fewer than its rows, and the partition that was served last."""

    runs: list[Run]
    claimed: Claimed
    after_partition: str


def claim_from_queue(engine: Engine, queue: QueueConfig, count: int, after_partition: str = "") -> Flow[Begun]:
    """Claim up to ``count`` waiting workflows of a queue; returns the runs to be executed.

    What this process does not know is left in the queue; what cannot run is finished with an error. Neither stops the
    others. ``after_partition`` is the partition key that was served last.
    """
    run_token = new_token()
    request = ClaimRequest(
        queue=queue,
        count=count,
        instance=engine.instance_id,
        executor_id=engine.executor_id,
        application_version=engine.application_version,
        application_name=engine.application_name,
        run_token=run_token,
        unknown_targets=sorted(engine.unknown_targets.copy()),
        running=engine.runs.of_queue(queue.name) if queue.counts_runs_here else {},
        now_ms=engine.db.now_ms,
        after_partition=after_partition,
    )
    runs: list[Run] = []
    with engine.runs.expecting(run_token) as cancelled:
        results = yield Commit(
            (Call(engine.db.claims.claim, (request,), is_apart=True, is_single=queue.is_claimed_at_once),)
        )
        claimed: Claimed = results[0]
        if claimed.rows:
            try:
                histories = yield Read(engine.db.operations.history, ([row.workflow_uuid for row in claimed.rows],))
            except Exception:
                yield from give_back(engine, {row.workflow_uuid: run_token for row in claimed.rows})
                raise
            for row in claimed.rows:
                try:
                    run = yield from _open(engine, row, histories[row.workflow_uuid], cancelled)
                except (Exception, DBOSBaseException):  # one row must not strand the others
                    logger.exception("Workflow %s was claimed and could not be begun", row.workflow_uuid)
                    yield from give_back(engine, {row.workflow_uuid: run_token})
                    continue
                if run is not None:
                    runs.append(run)
    return Begun(runs, claimed, request.after_partition)


def give_back(engine: Engine, claimed: Mapping[str, str]) -> Flow[None]:
    """Undo claims whose workflows are not begun, given with their run tokens.

    What cannot be given back now is found by the next heartbeats.
    """
    if not claimed:
        return
    verb, now_ms = engine.db.workflows.give_back, engine.db.now_ms()
    try:
        yield Commit(tuple(call(verb, workflow_id, run_token, now_ms) for workflow_id, run_token in claimed.items()))
    except Exception as error:
        logger.info("%s workflows that were claimed could not be given back now: %s", len(claimed), error)
    else:
        engine.given_back()


def claim_by_id(engine: Engine, workflow_id: str) -> Flow[Run | None]:
    """Claim one workflow; returns the run to be executed, or None if it is finished or runs somewhere.

    Raises:
        DBOSRecoveryError: there is no such workflow.
        DBOSWorkflowFunctionNotFoundError: this process does not know its function, class or instance.
    """
    row: StatusRow | None = yield Read(engine.db.workflows.get, (workflow_id,))
    if row is None:
        raise DBOSRecoveryError(workflow_id, "Workflow status not found")
    resolve(engine, row)
    seen_token = row.run_token or ""
    if engine.runs.is_accounted(workflow_id, seen_token):
        return None
    run_token = new_token()
    claim = partial(
        engine.db.workflows.claim_by_id,
        workflow_id=workflow_id,
        instance=engine.instance_id,
        executor_id=engine.executor_id,
        application_version=engine.application_version,
        run_token=run_token,
        seen_token=seen_token,
        now_ms=engine.db.now_ms(),
    )
    with engine.runs.expecting(run_token) as cancelled:
        results = yield Commit((call(claim),))
        row = results[0]
        if row is None:
            return None
        try:
            histories = yield Read(engine.db.operations.history, ([workflow_id],))
            return (yield from _open(engine, row, histories[workflow_id], cancelled))
        except Exception:
            yield from give_back(engine, {workflow_id: run_token})
            raise


def _open(engine: Engine, row: StatusRow, history: dict[int, StepRow], cancelled: set[str]) -> Flow[Run | None]:
    """Make a run of a claimed row; ``cancelled`` are workflows that were, since before the claim."""
    assert row.run_token is not None
    try:
        function, receiver = resolve(engine, row)
    except DBOSWorkflowFunctionNotFoundError as error:
        target = target_key(row.name, row.class_name, row.config_name)
        engine.unknown_targets.add(target)
        try:
            resolve(engine, row)
        except DBOSWorkflowFunctionNotFoundError:
            engine.alert(
                "workflow_not_registered",
                f"{error}. It waits in queue {row.queue_name} until that is registered here or elsewhere.",
                _about(row),
            )
        else:
            engine.unknown_targets.discard(target)  # it was registered before anybody knew that it was missing
        give_back = call(engine.db.workflows.give_back, row.workflow_uuid, row.run_token, engine.db.now_ms())
        yield Commit((give_back,))
        return None
    if row.workflow_deadline_epoch_ms is not None and row.workflow_deadline_epoch_ms <= engine.db.now_ms():
        # Nothing of it may begin that its deadline would stop. If somebody has locked the row, its run waits for that.
        verb, ids = engine.db.workflows.cancel_overdue, [row.workflow_uuid]
        overdue: Sequence[str] = (yield Commit((call(verb, ids, engine.db.now_ms()),)))[0]
        if overdue:
            yield from note_cancelled(engine, overdue, [row.queue_name] if row.queue_name is not None else [])
            return None
    limit = function.info.max_recovery_attempts
    if limit is not None and row.recovery_attempts > limit + 1:
        dead_letter = call(engine.db.workflows.dead_letter, row.workflow_uuid, row.run_token, engine.db.now_ms())
        yield Commit((dead_letter,))
        attempts = row.recovery_attempts - 1
        engine.alert(
            "workflow_given_up",
            f"Workflow {row.workflow_uuid} was given up after {attempts} attempts: it is "
            "MAX_RECOVERY_ATTEMPTS_EXCEEDED. Resume it with DBOS.resume_workflow once the cause is mended.",
            {**_about(row), "attempts": attempts},
        )
        engine.finished(row.workflow_uuid)
        return None
    try:
        args, kwargs = engine.serialization.load_inputs(row.inputs, row.serialization)
        if function.info.validate_args is not None:
            args, kwargs = _validated(function, function.info.validate_args, args, kwargs)
        format = engine.serialization.format_for(row.serialization)
        roles = json.loads(row.authenticated_roles) if row.authenticated_roles else None
    except Exception as error:
        engine.alert(
            "workflow_refused",
            f"Workflow {row.workflow_uuid} cannot be started from its recorded inputs: {error}",
            {**_about(row), "error": type(error).__name__},
        )
        text, name = engine.serialization.dump_error(error, engine.serialization.format_for(row.serialization))
        outcome = RecordOutcome(row.workflow_uuid, row.run_token, "ERROR", None, text, name, engine.db.now_ms())
        yield Commit((outcome,))
        engine.finished(row.workflow_uuid)
        return None
    run = Run(
        workflow_id=row.workflow_uuid,
        run_token=row.run_token,
        start_token=row.owner_xid,
        function=function,
        args=args if receiver is None else (receiver, *args),
        kwargs=kwargs,
        context=Context(
            authenticated_user=row.authenticated_user,
            authenticated_roles=roles,
            assumed_role=row.assumed_role,
        ),
        format=format,
        deadline_ms=row.workflow_deadline_epoch_ms,
        history=history,
        queue_name=row.queue_name,
        partition_key=row.queue_partition_key,
        schedule_name=row.schedule_name,
    )
    engine.enter(run, row.owner_instance)
    if run.workflow_id in cancelled:  # before there was a run to be told
        try:
            yield from stop_if_cancelled(engine, run)
        except BaseException:
            engine.runs.remove(run)
            raise
    return run


def _about(row: StatusRow) -> dict[str, object]:
    return {"workflow_id": row.workflow_uuid, "workflow_name": row.name, "queue_name": row.queue_name}


def _validated(
    function: WorkflowFunction, validate: ValidateArgs, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments to be used in place of the recorded ones.

    Raises:
        Exception: whatever the validator raises.
        TypeError: it returns something else than arguments.
    """
    match validated := validate(args, kwargs):
        case (tuple() | list() as args, dict() as kwargs):
            return tuple(args), kwargs
    raise TypeError(
        f"The validator of workflow {function.name} returned {type(validated).__name__} instead of (args, kwargs)."
    )
