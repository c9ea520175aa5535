"""Enqueueing workflows: any number of them in one transaction, each one operation of the workflow that enqueues it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dbos._context import Context
from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Read
from dbos._engine.records import commit_step
from dbos._engine.run import Run
from dbos._engine.start import (
    QueueOptions,
    Target,
    check_owned,
    check_same,
    describe,
    parent_of,
    replayed_start,
    take_assigned_id,
)
from dbos._error import DBOSQueueDeduplicatedError
from dbos._sysdb.operations import Started, StartWorkflow
from dbos._sysdb.rows import StatusRow
from dbos._types import DuplicationPolicy

__all__ = ["enqueue", "replay", "settle"]

logger = logging.getLogger("dbos.workflow")


def replay(engine: Engine, context: Context, name: str, function_ids: Sequence[int]) -> list[str | None]:
    """The ids that an earlier execution recorded for these operations; None for each that is still to be done."""
    parent = parent_of(context)
    if parent is None or not function_ids:
        return []
    recorded = [parent.recorded(function_id, name) for function_id in function_ids]
    if recorded[0] is not None:
        take_assigned_id(context)  # it was this one's, and must not fall to the next one
    return [None if row is None else replayed_start(engine, row) for row in recorded]


def enqueue(
    engine: Engine,
    targets: Sequence[Target],
    queue: QueueOptions,
    context: Context,
    function_ids: Sequence[int],
    policy: DuplicationPolicy,
) -> Flow[list[str]]:
    """Make workflows durable in a queue, in this order and in one transaction; returns their ids.

    An id that exists already stays as it is; if it belongs to something else, none is enqueued, unless it was taken
    in this very moment: then the others are. ``function_ids`` are those of the parent's operations, empty outside of a
    workflow; what it has recorded must have been looked up by :func:`replay`.

    Raises:
        DBOSQueueDeduplicatedError: another workflow holds the de-duplication id; a parent has recorded that.
        DBOSConflictingWorkflowError: an id belongs to another function, class or instance.
        MaxRecoveryAttemptsExceededError: a workflow exists and was given up.
    """
    parent = parent_of(context)
    is_assigned = context.assigned_id is not None and not context.assigned_id.is_taken
    starts = [
        describe(
            engine,
            target,
            context,
            function_ids[number] if function_ids else None,
            queue,
            takes_assigned_id=number == 0,
        )
        for number, target in enumerate(targets)
    ]
    if len(starts) > 1:
        # Ours are random outside of a workflow, and belong to nobody.
        may_exist = len(starts) if parent is not None else int(is_assigned)
        yield from _check_ids(engine, starts[:may_exist], targets)
    ids: dict[int, str] = {}
    waiting = dict(enumerate(starts))
    while waiting:
        results: Sequence[Started] = yield Commit(tuple(waiting.values()))
        if any(result.created for result in results):
            engine.enqueued(queue.queue_name, is_delayed=queue.delay_until_ms is not None)
        answers = dict(zip(list(waiting), results, strict=True))
        for number, started in answers.items():
            workflow_id = yield from settle(engine, parent, waiting[number], started, targets[number], policy)
            if workflow_id is not None:
                ids[number] = workflow_id
                del waiting[number]
        if waiting and parent is not None:
            yield from check_owned(engine, parent)
    return [ids[number] for number in range(len(starts))]


def _check_ids(engine: Engine, starts: Sequence[StartWorkflow], targets: Sequence[Target]) -> Flow[None]:
    """Refuse ids that belong to something else, before anything is written: what is written together stays together."""
    if not starts:
        return
    ids = [start.workflow_uuid for start in starts]
    existing: dict[str, StatusRow] = yield Read(engine.db.workflows.get_all, (ids,))
    for start, target in zip(starts, targets, strict=False):
        if start.workflow_uuid in existing:
            check_same(start, existing[start.workflow_uuid], target)


def settle(
    engine: Engine,
    parent: Run | None,
    start: StartWorkflow,
    started: Started,
    target: Target,
    policy: DuplicationPolicy,
) -> Flow[str | None]:
    """What the attempt to create a row has come to: a workflow's id, or None if it has to be repeated.

    That is so if whoever was in the way has gone before anybody could look; or if the parent is lost.
    """
    if started.created:
        return start.workflow_uuid
    if started.existing is not None:
        check_same(start, started.existing, target)
        if started.existing.queue_name != start.queue_name:
            logger.warning(
                "Workflow %s already exists in queue %s and stays there; it was not moved to queue %s.",
                start.workflow_uuid,
                started.existing.queue_name,
                start.queue_name,
            )
        return (yield from _record(engine, parent, start, start.workflow_uuid))
    if started.holder is None:
        return None
    # A workflow that was handed itself would wait for itself.
    is_own = parent is not None and started.holder.workflow_uuid == parent.workflow_id
    if policy == "return-existing" and not is_own:
        return (yield from _record(engine, parent, start, started.holder.workflow_uuid))
    return (yield from _reject(engine, parent, start, started.holder))


def _record(engine: Engine, parent: Run | None, start: StartWorkflow, workflow_id: str) -> Flow[str]:
    """Record in the parent, if there is one, that it got an existing workflow; returns what counts from now on."""
    if parent is None or start.parent_step is None:
        return workflow_id
    existing = yield from commit_step(parent, start.parent_step._replace(child_workflow_id=workflow_id))
    return workflow_id if existing is None else replayed_start(engine, existing)


def _reject(engine: Engine, parent: Run | None, start: StartWorkflow, holder: StatusRow) -> Flow[str]:
    assert holder.queue_name is not None
    assert holder.deduplication_id is not None
    error = DBOSQueueDeduplicatedError(start.workflow_uuid, holder.queue_name, holder.deduplication_id)
    if parent is not None and start.parent_step is not None:
        text, name = engine.serialization.dump_error(error)
        step = start.parent_step._replace(child_workflow_id=None, error=text, serialization=name)
        existing = yield from commit_step(parent, step)
        if existing is not None:
            return replayed_start(engine, existing)
    raise error
