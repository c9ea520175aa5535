"""Retrying: a fork that begins where its source has failed, or at another step that is easier told than counted."""

from __future__ import annotations

from collections.abc import Sequence

from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Read
from dbos._engine.outcome import GET_RESULT
from dbos._error import DBOSException, DBOSNonExistentWorkflowError
from dbos._operations.forking import Beginning, ForkOptions, begin_forking, checked_step, make_forks
from dbos._operations.interventions import checked_ids
from dbos._operations.recording import recorded_by_id
from dbos._sysdb.rows import StatusRow
from dbos._sysdb.stores.forks import Origin

__all__ = ["retry_workflow", "retry_workflows"]

RETRY = "DBOS.retryWorkflow"


def retry_workflow(
    engine: Engine,
    workflow_id: str,
    *,
    from_last_failure: bool = False,
    from_last_step: bool = False,
    from_step: int | None = None,
    from_step_name: str | None = None,
    application_version: str | None = None,
    queue_name: str | None = None,
    queue_partition_key: str | None = None,
    replacement_children: dict[str, str] | None = None,
    timeout_seconds: float | None = None,
) -> Flow[str]:
    """Begin a workflow that has failed anew, under a new id, from the step that failed: see :meth:`fork_workflow`.

    What the steps before returned is taken over, and nothing of it runs again. If what failed was a child that it had
    started, that child alone is started anew; give ``replacement_children`` to have another one take its place. If no
    step failed, but the workflow itself, all its steps are taken over.

    Args:
        workflow_id: The id of the workflow.
        from_last_failure: Begin at the last step that failed, which is the default.
        from_last_step: Begin at the last step that was recorded.
        from_step: Begin at the step with this function id.
        from_step_name: Begin at the last step of this name.
        application_version: The version that is to run it, by default the latest.
        queue_name: The queue to enqueue it in, by default one of the library that runs it at once.
        queue_partition_key: Its partition of that queue.
        replacement_children: Ids of workflows to take the place of children, by the ids of those.
        timeout_seconds: How long it may take from its start, in seconds; more than 0.

    Returns:
        A handle of the new workflow.

    Raises:
        ValueError: it is to begin at more than one place.
        DBOSNonExistentWorkflowError: there is no such workflow.
        DBOSWorkflowIDInUseError: the id that was assigned to it belongs to another workflow.
        DBOSException: the workflow has not failed, or has no such step, or an option is not what it can be.
        Exception: the queue is partitioned and no key is given, or it is not partitioned and one is.

    Example:
        ```python
        DBOS.retry_workflow("order-7").get_result()
        DBOS.retry_workflow("order-8", from_step_name="charge_card")
        ```
    """
    retried = yield from retry_workflows(
        engine,
        [workflow_id],
        from_last_failure=from_last_failure,
        from_last_step=from_last_step,
        from_step=from_step,
        from_step_name=from_step_name,
        application_version=application_version,
        queue_name=queue_name,
        queue_partition_key=queue_partition_key,
        replacement_children=replacement_children,
        timeout_seconds=timeout_seconds,
    )
    return retried[0]


def retry_workflows(
    engine: Engine,
    workflow_ids: Sequence[str],
    *,
    from_last_failure: bool = False,
    from_last_step: bool = False,
    from_step: int | None = None,
    from_step_name: str | None = None,
    application_version: str | None = None,
    queue_name: str | None = None,
    queue_partition_key: str | None = None,
    replacement_children: dict[str, str] | None = None,
    timeout_seconds: float | None = None,
) -> Flow[list[str]]:
    """Retry several workflows in one transaction, all or none; see :meth:`retry_workflow`."""
    modes = (from_last_failure or None, from_last_step or None, from_step, from_step_name)
    if sum(mode is not None for mode in modes) > 1:
        raise ValueError("At most one of from_last_failure, from_last_step, from_step and from_step_name can be given.")
    if from_step is not None:
        checked_step("from_step", from_step)
    options = ForkOptions(
        application_version=application_version,
        queue_name=queue_name,
        queue_partition_key=queue_partition_key,
        replacement_children=replacement_children,
        timeout_seconds=timeout_seconds,
    )
    ids = checked_ids("retry_workflows", workflow_ids)
    assigned_id = begin_forking(RETRY)

    def begin(row: StatusRow, steps: Sequence[Origin]) -> Beginning:
        if from_step is not None:
            return Beginning(row.workflow_uuid, from_step)
        if from_step_name is not None:
            return _at_name(row, steps, from_step_name)
        if from_last_step:
            return _at_last_step(row, steps)
        return _at_last_failure(row, steps, options)

    def retry(function_id: int | None) -> Flow[list[str]]:
        rows: dict[str, StatusRow] = yield Read(engine.db.workflows.get_all, (ids,))
        steps: dict[str, list[Origin]] = yield Read(engine.db.forks.origins, (ids,))
        missing = [workflow_id for workflow_id in ids if workflow_id not in rows]
        if missing:
            raise DBOSNonExistentWorkflowError("fork source", missing[0])
        beginnings = [begin(rows[workflow_id], steps.get(workflow_id, [])) for workflow_id in ids]
        return (yield from make_forks(engine, "retry", beginnings, options, assigned_id, function_id))

    return (yield from recorded_by_id(engine, RETRY, retry))


def _at_name(row: StatusRow, steps: Sequence[Origin], name: str) -> Beginning:
    for step in reversed(steps):
        if step.function_name == name:
            return Beginning(row.workflow_uuid, step.function_id)
    raise DBOSException(f"Workflow {row.workflow_uuid} has no step named '{name}'")


def _at_last_step(row: StatusRow, steps: Sequence[Origin]) -> Beginning:
    if not steps:
        raise DBOSException(f"Workflow {row.workflow_uuid} has no steps")
    return Beginning(row.workflow_uuid, steps[-1].function_id)


def _at_last_failure(row: StatusRow, steps: Sequence[Origin], options: ForkOptions) -> Beginning:
    workflow_id, failed = row.workflow_uuid, next((step for step in reversed(steps) if step.has_failed), None)
    if row.status in ("SUCCESS", "PENDING", "ENQUEUED", "DELAYED"):
        raise DBOSException(
            f"Workflow {workflow_id} has not failed: its status is {row.status}. Say from which step to begin, or fork "
            "it with DBOS.fork_workflow()."
        )
    if failed is None:
        return Beginning(workflow_id, steps[-1].function_id + 1 if steps else 1)
    child = failed.child_workflow_id
    if failed.function_name != GET_RESULT or child is None or child in (options.replacement_children or {}):
        return Beginning(workflow_id, failed.function_id)
    return Beginning(workflow_id, failed.function_id, [child])
