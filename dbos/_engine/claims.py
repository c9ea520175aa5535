"""Executing workflows that are found in the database: resolving what they need, and beginning them in this process."""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import Any

from dbos._context import Context
from dbos._engine.engine import Engine
from dbos._engine.execution import note_cancelled
from dbos._engine.flow import Commit, Flow, Read
from dbos._engine.run import Run
from dbos._error import DBOSBaseException, DBOSRecoveryError, DBOSWorkflowFunctionNotFoundError
from dbos._ids import new_token
from dbos._registrations import needs_receiver
from dbos._registry import WorkflowFunction
from dbos._sysdb.operations import RecordOutcome, call
from dbos._sysdb.rows import StatusRow, StepRow
from dbos._sysdb.stores.workflow_status import target_key

__all__ = ["claim_by_id", "claim_from_queue", "resolve"]

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


def claim_from_queue(engine: Engine, queue_name: str, count: int) -> Flow[list[Run]]:
    """Claim up to ``count`` waiting workflows of a queue; returns the runs to be executed.

    What this process does not know is left in the queue; what cannot run is finished with an error. Neither stops the
    others.
    """
    run_token = new_token()
    claim = partial(
        engine.db.workflows.claim,
        queue_name=queue_name,
        count=count,
        instance=engine.instance_id,
        executor_id=engine.executor_id,
        application_version=engine.application_version,
        run_token=run_token,
        unknown_targets=sorted(engine.unknown_targets.copy()),
        now_ms=engine.db.now_ms(),
    )
    runs = []
    with engine.runs.expecting(run_token):
        results = yield Commit((call(claim),))
        rows: list[StatusRow] = results[0]
        if not rows:
            return []
        histories = yield Read(engine.db.operations.history, ([row.workflow_uuid for row in rows],))
        for row in rows:
            try:
                run = yield from _open(engine, row, histories[row.workflow_uuid])
            except (Exception, DBOSBaseException):  # one row must not strand the others; it will be enqueued again
                logger.exception("Workflow %s was claimed and could not be begun", row.workflow_uuid)
                continue
            if run is not None:
                runs.append(run)
    return runs


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
    with engine.runs.expecting(run_token):
        results = yield Commit((call(claim),))
        row = results[0]
        if row is None:
            return None
        histories = yield Read(engine.db.operations.history, ([workflow_id],))
        return (yield from _open(engine, row, histories[workflow_id]))


def _open(engine: Engine, row: StatusRow, history: dict[int, StepRow]) -> Flow[Run | None]:
    """Make a run of a claimed row."""
    assert row.run_token is not None
    try:
        function, receiver = resolve(engine, row)
    except DBOSWorkflowFunctionNotFoundError as error:
        target = target_key(row.name, row.class_name, row.config_name)
        engine.unknown_targets.add(target)
        try:
            resolve(engine, row)
        except DBOSWorkflowFunctionNotFoundError:
            logger.error("%s. It waits in queue %s until that is registered here or elsewhere.", error, row.queue_name)
        else:
            engine.unknown_targets.discard(target)  # it was registered before anybody knew that it was missing
        give_back = call(engine.db.workflows.give_back, row.workflow_uuid, row.run_token, engine.db.now_ms())
        yield Commit((give_back,))
        return None
    if row.workflow_deadline_epoch_ms is not None and row.workflow_deadline_epoch_ms <= engine.db.now_ms():
        # Nothing of it may begin that its deadline would stop.
        cancel = call(engine.db.workflows.cancel_overdue, [row.workflow_uuid], engine.db.now_ms())
        yield from note_cancelled(engine, (yield Commit((cancel,)))[0])
        return None
    limit = function.info.max_recovery_attempts
    if limit is not None and row.recovery_attempts > limit + 1:
        logger.error(
            "Workflow %s was given up after %s attempts: it is MAX_RECOVERY_ATTEMPTS_EXCEEDED. "
            "Resume it with DBOS.resume_workflow once the cause is mended.",
            row.workflow_uuid,
            row.recovery_attempts - 1,
        )
        dead_letter = call(engine.db.workflows.dead_letter, row.workflow_uuid, row.run_token, engine.db.now_ms())
        yield Commit((dead_letter,))
        engine.finished(row.workflow_uuid)
        return None
    try:
        args, kwargs = engine.serialization.load_inputs(row.inputs, row.serialization)
        if function.info.validate_args is not None:
            args, kwargs = function.info.validate_args(args, kwargs)
        format = engine.serialization.format_for(row.serialization)
        roles = json.loads(row.authenticated_roles) if row.authenticated_roles else None
    except Exception as error:
        logger.error("Workflow %s cannot be started from its recorded inputs: %s", row.workflow_uuid, error)
        text, name = engine.serialization.dump_error(error)
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
    )
    engine.enter(run, row.owner_instance)
    return run
