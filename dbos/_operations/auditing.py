"""The account of management: what is noted with an action, and listing it.

All of it is noted, whoever acts. A workflow that cancels another one has a record of its own, but whoever asks what
became of the other one would not look there; so its ID is among the details.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

from dbos._context import checked_workflow_id, current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Read
from dbos._ids import new_instance_id
from dbos._operations.filtering import checked_count, epoch_ms
from dbos._operations.recording import recorded
from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import ActionRow
from dbos._sysdb.stores.management_actions import Action, ActionFilter
from dbos._types import ManagementAction

__all__ = ["action_of", "audited", "audited_rows", "list_management_actions"]

CREATE = {"queue": "register", "schedule": "create"}

# What ticks come to, and what follows from other columns.
NOBODYS_DOING = {
    "error",
    "last_fired_at",
    "next_fire_ms",
    "next_tick_ms",
    "planned_at",
    "planned_from",
    "resumed_at",
    "runs",
    "updated_at",
}

P = ParamSpec("P")
R = TypeVar("R")


def action_of(engine: Engine, name: str, **details: Any) -> Action:
    """An action that is about to be taken, by whoever asks for it here and now; to be noted once it had an effect."""
    context = current_context()
    run = None if context is None else context.run
    return Action(
        action=name,
        occurred_at=engine.db.now_ms(),
        actor=None if context is None else context.authenticated_user,
        source=(engine.application_name or "client") if engine.is_client else engine.executor_id,
        request_id=new_instance_id(),
        details={**details, "by_workflow": None if run is None else run.workflow_id},
    )


def audited(
    engine: Engine,
    action: Action,
    verb: Callable[Concatenate[Connection, P], R],
    *,
    workflow_id: str | None = None,
    subject: str | None = None,
) -> Callable[Concatenate[Connection, P], R]:
    """A store's verb that also notes what it did, in its transaction.

    A verb that returns a list did it to the workflows with those ids. Otherwise it did it to ``workflow_id`` or
    ``subject``, unless what it returns is an error, or counts as false.
    """

    def act(connection: Connection, /, *args: P.args, **kwargs: P.kwargs) -> R:
        result = verb(connection, *args, **kwargs)
        if result and not isinstance(result, Exception):
            workflow_ids = result if isinstance(result, list) else [workflow_id]
            engine.db.actions.note(connection, action, workflow_ids=workflow_ids, subject=subject)
        return result

    return act


def audited_rows(
    engine: Engine,
    kind: Literal["queue", "schedule"],
    rows: Callable[[Connection], Mapping[str, NamedTuple]],
    verb: Callable[Concatenate[Connection, P], R],
    *,
    changed: str,
) -> Callable[Concatenate[Connection, P], R]:
    """A store's verb that also notes which of some rows, by name, it has created, deleted, or ``changed``."""
    action = action_of(engine, "")

    def act(connection: Connection, /, *args: P.args, **kwargs: P.kwargs) -> R:
        before = rows(connection)
        result = verb(connection, *args, **kwargs)
        after = rows(connection)
        for name in sorted({*before, *after}):
            old, new = before.get(name), after.get(name)
            if old is None or new is None:
                done = f"{CREATE[kind] if old is None else 'delete'}_{kind}"
                engine.db.actions.note(connection, action._replace(action=done), subject=name)
                continue
            is_now = new._asdict()
            columns = [column for column, was in old._asdict().items() if was != is_now[column]]
            columns = [column for column in columns if column not in NOBODYS_DOING]
            if columns:
                engine.db.actions.note(connection, action._replace(action=changed), subject=name, changed=columns)
        return result

    return act


def list_management_actions(
    engine: Engine,
    *,
    workflow_id: str | None = None,
    subject: str | None = None,
    action: str | list[str] | None = None,
    actor: str | None = None,
    start_time: str | None = None,
    end_time: str | None = None,
    limit: int | None = 100,
) -> Flow[list[ManagementAction]]:
    """What was done to workflows, queues, schedules, versions and executors, by whom and when: the newest first.

    Args:
        workflow_id: To this workflow.
        subject: To the queue, schedule, version or executor of this name.
        action: One kind of action, such as ``"cancel"``, or several.
        actor: By this authenticated user.
        start_time: At or after this time: ISO 8601, local time unless it has an offset.
        end_time: At or before this time, likewise.
        limit: At most so many; 0 or None for all.

    Raises:
        ValueError: a time is not ISO 8601, or ``limit`` is no number of rows.
        DBOSException: no workflow can have this id.

    Example:
        ```python
        for each in DBOS.list_management_actions(workflow_id="order-7"):
            print(each["occurred_at"], each["action"], each["actor"], each["source"])
        ```
    """
    filter = ActionFilter(
        workflow_id=None if workflow_id is None else checked_workflow_id(workflow_id),
        subject=subject,
        action=[action] if isinstance(action, str) else action,
        actor=actor,
        start_ms=None if start_time is None else epoch_ms("start_time", start_time),
        end_ms=None if end_time is None else epoch_ms("end_time", end_time),
        limit=checked_count("limit", limit),
    )

    def read() -> Flow[list[ManagementAction]]:
        rows: list[ActionRow] = yield Read(engine.db.actions.list, (filter,))
        return [_shown(row) for row in rows]

    return (yield from recorded(engine, "DBOS.listManagementActions", read()))


def _shown(row: ActionRow) -> ManagementAction:
    return {
        "action": row.action,
        "workflow_id": row.workflow_id,
        "subject": row.subject,
        "actor": row.actor,
        "source": row.source,
        "details": {} if row.details is None else json.loads(row.details),
        "occurred_at": row.occurred_at,
    }
