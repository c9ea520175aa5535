"""Cancelling and resuming workflows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dbos._context import checked_workflow_id
from dbos._engine.engine import Engine
from dbos._engine.execution import note_cancelled
from dbos._engine.flow import Commit, Flow, Read
from dbos._error import DBOSNonExistentWorkflowError
from dbos._operations.admission import check_partition, checked_place, known_config
from dbos._operations.auditing import action_of, audited
from dbos._operations.recording import recorded
from dbos._sysdb.operations import call

__all__ = [
    "batches",
    "cancel_workflow",
    "cancel_workflows",
    "checked_ids",
    "resume_workflow",
    "resume_workflows",
    "started_by",
]

MAX_BATCH = 500  # workflows in one transaction, which others wait for


def cancel_workflows(engine: Engine, workflow_ids: Sequence[str], *, cancel_children: bool = False) -> Flow[None]:
    """Cancel workflows that are not finished; they stop at their next operation, and their waits end at once.

    Args:
        workflow_ids: The workflows' ids; unknown and finished ones are left alone.
        cancel_children: Cancel also what they have started, and what that has started, and so on; finished workflows
            are left alone, and what they have started is cancelled all the same.

    Raises:
        DBOSException: no workflow can have one of the ids; none is cancelled then.
        TypeError: a single id is given, and not a list.
    """
    ids = checked_ids("cancel_workflows", workflow_ids)
    yield from recorded(engine, "DBOS.cancelWorkflow", _cancel(engine, ids, cancel_children))


def _cancel(engine: Engine, ids: Sequence[str], cancel_children: bool) -> Flow[None]:
    workflows, action = engine.db.workflows, action_of(engine, "cancel")
    cancel = audited(engine, action, workflows.cancel)
    known = set(ids)
    while ids:
        for batch in batches(ids):
            places, cancelled = yield Commit((call(workflows.places, batch), call(cancel, batch, engine.db.now_ms())))
            yield from note_cancelled(engine, cancelled, places)
        if not cancel_children:
            return
        # Only what is PENDING can start a child, so those that are here now are all that there will be.
        children = yield from started_by(engine, ids)
        ids = [child for child in children if child not in known]
        known.update(ids)


def started_by(engine: Engine, workflow_ids: Sequence[str]) -> Flow[list[str]]:
    """The ids of what workflows have started themselves, which are their children."""
    children: list[str] = yield Read(engine.db.workflows.children, (workflow_ids,))
    return children


def batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """The ids in pieces, each for a transaction of its own."""
    for begin in range(0, len(ids), MAX_BATCH):
        yield ids[begin : begin + MAX_BATCH]


def cancel_workflow(engine: Engine, workflow_id: str, *, cancel_children: bool = False) -> Flow[None]:
    """Cancel a workflow that is not finished; it stops at its next operation, and its waits end at once.

    Args:
        workflow_id: The workflow's id; an unknown or finished one is left alone.
        cancel_children: Cancel also what it has started, and what that has started, and so on.

    Raises:
        DBOSException: no workflow can have this id.
    """
    yield from cancel_workflows(engine, [workflow_id], cancel_children=cancel_children)


def resume_workflows(
    engine: Engine,
    workflow_ids: Sequence[str],
    *,
    queue_name: str | None = None,
    queue_partition_key: str | None = None,
) -> Flow[list[str]]:
    """Resume several workflows in one transaction; see :meth:`resume_workflow`."""
    ids = checked_ids("resume_workflows", workflow_ids)
    queue, key = checked_place(queue_name, queue_partition_key)

    def put_back() -> Flow[None]:
        known = set((yield Read(engine.db.workflows.existing, (ids,))))
        for workflow_id in ids:
            if workflow_id not in known:
                raise DBOSNonExistentWorkflowError("target", workflow_id)
        config = yield from known_config(engine, queue)
        if config is not None:
            # What has a key already keeps it, unless another one is given.
            keeps_keys = key is None and config.is_partitioned
            if not keeps_keys or (yield Read(engine.db.workflows.keyless, (ids,))):
                check_partition(config, key)
        action = action_of(engine, "resume", queue_name=queue_name)
        resume = audited(engine, action, engine.db.workflows.resume)
        yield Commit((call(resume, ids, queue, engine.db.now_ms(), key),))
        engine.enqueued(queue)

    yield from recorded(engine, "DBOS.resumeWorkflow", put_back())
    return ids


def resume_workflow(
    engine: Engine, workflow_id: str, *, queue_name: str | None = None, queue_partition_key: str | None = None
) -> Flow[str]:
    """Let an unfinished workflow (cancelled, given up, or stuck) go on from its last recorded operation.

    Args:
        workflow_id: The workflow's id; a finished one is left alone.
        queue_name: The queue to enqueue it in, by default one of the library that runs it at once. Its queue's
            limits do not hold there: pass ``queue_name`` to have it obey them.
        queue_partition_key: Its partition of that queue, by default the one that it was enqueued in before.

    Returns:
        A handle to await it with.

    Raises:
        DBOSNonExistentWorkflowError: there is no such workflow.
        DBOSException: the id, the queue's name or the key cannot be stored.
        Exception: the queue is partitioned and the workflow has no key, or it is not partitioned and a key is given.
    """
    yield from resume_workflows(engine, [workflow_id], queue_name=queue_name, queue_partition_key=queue_partition_key)
    return workflow_id


def checked_ids(operation: str, workflow_ids: Sequence[str]) -> list[str]:
    """The ids that an operation was given, each once.

    Raises:
        DBOSException: no workflow can have one of them.
        TypeError: a single id is given, and not a list.
    """
    if isinstance(workflow_ids, str):  # which is a sequence of strings as well
        raise TypeError(f"{operation} takes a list of ids: write [{workflow_ids!r}], for example.")
    return list(dict.fromkeys(checked_workflow_id(workflow_id) for workflow_id in workflow_ids))
