"""The account of management: who did what to workflows, queues, schedules, versions and executors, and when.

It is written in the transaction of the action itself, by whoever knows that the action had an effect: what is there
happened, and what happened is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import ActionRow, columns

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect

__all__ = ["Action", "ActionFilter", "ManagementActionsStore"]

_TYPES = dict.fromkeys(ActionRow._fields[1:], "text") | {"occurred_at": "bigint", "request_id": "text"}

NOTE = f"""
-- A call that is repeated, because its answer was lost, has done it once.
INSERT INTO dbos.management_actions ({", ".join(_TYPES)})
SELECT {", ".join(_TYPES)} FROM {{rows}} WHERE TRUE
ON CONFLICT DO NOTHING
"""

LIST = f"SELECT {columns(ActionRow)} FROM dbos.management_actions"

CONDITIONS = {
    "workflow_id": "workflow_id = :workflow_id",
    "subject": "subject = :subject",
    "action": "action IN :action",
    "actor": "actor = :actor",
    "start_ms": "occurred_at >= :start_ms",
    "end_ms": "occurred_at <= :end_ms",
}


class Action(NamedTuple):
    """What somebody does, in one call; what it is done to is said when it is done."""

    action: str
    occurred_at: int
    actor: str | None
    source: str
    request_id: str
    details: Mapping[str, Any]


class ActionFilter(NamedTuple):
    """Which actions to list: the newest ``limit`` that match all that is not None."""

    limit: int | None
    workflow_id: str | None = None
    subject: str | None = None
    action: list[str] | None = None
    actor: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None


class ManagementActionsStore:
    """The ``management_actions`` table."""

    def __init__(self, dialect: Dialect) -> None:
        self._note = NOTE.replace("{rows}", dialect.rows(**_TYPES))

    def note(
        self,
        connection: Connection,
        action: Action,
        *,
        workflow_ids: Sequence[str | None] = (None,),
        subject: str | None = None,
        **details: Any,
    ) -> None:
        """Note what was done just now, in this transaction, to each of the workflows, or to ``subject``."""
        known = {name: value for name, value in {**action.details, **details}.items() if value is not None}
        row = action._asdict() | {"subject": subject, "details": json.dumps(known) if known else None}
        rows = [row | {"workflow_id": workflow_id} for workflow_id in workflow_ids]
        if rows:
            connection.run(self._note, rows=json.dumps(rows))

    @staticmethod
    def list(connection: Connection, filter: ActionFilter) -> list[ActionRow]:
        """What was done, the newest first."""
        given = {name: value for name, value in filter._asdict().items() if value is not None}
        conditions = " AND ".join(sql for name, sql in CONDITIONS.items() if name in given)
        sql = f"{LIST}{' WHERE ' if conditions else ''}{conditions} ORDER BY action_id DESC"
        return [ActionRow(*row) for row in connection.all(sql + (" LIMIT :limit" if "limit" in given else ""), **given)]
