"""Deleting workflows, whatever their status, with everything that is kept of them."""

from __future__ import annotations

from collections.abc import Sequence

from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Read
from dbos._operations.auditing import action_of, audited
from dbos._operations.interventions import batches, checked_ids, started_by
from dbos._operations.recording import recorded
from dbos._services.retention import forget_records
from dbos._sysdb.operations import Call, call

__all__ = ["delete_workflow", "delete_workflows"]


def delete_workflows(engine: Engine, workflow_ids: Sequence[str], *, delete_children: bool = False) -> Flow[None]:
    """Delete workflows and all that is kept of them: steps, messages to them, events, streams, transactions.

    One that runs is stopped as if another process had taken it over: nothing more of it is recorded, and whoever waits
    for it gets a :class:`DBOSNonExistentWorkflowError`. What was done to it by hand stays in
    :meth:`list_management_actions`.

    Args:
        workflow_ids: The workflows' ids; unknown ones are left alone.
        delete_children: Delete also what they have started, and what that has started, and so on.

    Raises:
        DBOSException: no workflow can have one of the ids; none is deleted then.
        TypeError: a single id is given, and not a list.
    """
    ids = checked_ids("delete_workflows", workflow_ids)
    yield from recorded(engine, "DBOS.deleteWorkflow", _delete(engine, ids, delete_children))


def delete_workflow(engine: Engine, workflow_id: str, *, delete_children: bool = False) -> Flow[None]:
    """Delete a workflow and all that is kept of it: steps, messages to it, events, streams, transactions.

    One that runs is stopped as if another process had taken it over: nothing more of it is recorded, and whoever waits
    for it gets a :class:`DBOSNonExistentWorkflowError`. What was done to it by hand stays in
    :meth:`list_management_actions`.

    Args:
        workflow_id: The workflow's id; an unknown one is left alone.
        delete_children: Delete also what it has started, and what that has started, and so on.

    Raises:
        DBOSException: no workflow can have this id.
    """
    yield from delete_workflows(engine, [workflow_id], delete_children=delete_children)


def _delete(engine: Engine, ids: Sequence[str], delete_children: bool) -> Flow[None]:
    deletions, workflows = engine.db.deletions, engine.db.workflows
    delete = audited(engine, action_of(engine, "delete"), deletions.delete)
    known = set(ids)
    # Parents first: they start nothing more, and do not go on because a child has vanished.
    while ids:
        for batch in batches(ids):
            places, deleted = yield Commit((call(workflows.places, batch), call(delete, batch)))
            _note_deleted(engine, deleted, places)
            if deleted:
                yield from _sweep(engine, deleted)
            yield from forget_records(engine, batch)
        if not delete_children:
            return
        children = yield from started_by(engine, ids)
        ids = [child for child in children if child not in known]
        known.update(ids)


def _sweep(engine: Engine, workflow_ids: Sequence[str]) -> Flow[None]:
    """Delete what runs of workflows were recording while these were deleted."""
    deletions = engine.db.deletions
    # One after the other: who holds several while it waits for a slow one stops all of these.
    for instance in (yield Read(deletions.executors, ())):
        yield Commit((Call(deletions.await_writer, (instance,), is_apart=True),))
    yield Commit((Call(deletions.delete_remains, (workflow_ids,), is_apart=True),))


def _note_deleted(engine: Engine, workflow_ids: Sequence[str], places: Sequence[str]) -> None:
    """Workflows were deleted, durably: stop those that run here, and wake whoever waits for them or their places."""
    for workflow_id in workflow_ids:
        run = engine.runs.get(workflow_id)
        if run is not None:
            run.lose()
        engine.finished(workflow_id)
    if workflow_ids:
        for queue_name in places:
            engine.enqueued(queue_name)
