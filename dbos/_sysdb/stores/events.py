"""Events: named values that a workflow shows to others, with their history, so that forks begin with their own past."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import RECORDED, RecordStep, StepRecorded
from dbos._sysdb.rows import EventRow, columns
from dbos._sysdb.stores.runs import Owner, RunsStore

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect

__all__ = ["EventsStore", "GetEvent", "SetEvent"]

SET = """
INSERT INTO dbos.workflow_events (workflow_uuid, key, value, serialization)
VALUES (:workflow_uuid, :key, :value, :serialization)
ON CONFLICT (workflow_uuid, key) DO UPDATE SET value = excluded.value, serialization = excluded.serialization
"""

KEEP = """
-- What an operation has set last is what it set: a step may set an event several times, and be repeated.
INSERT INTO dbos.workflow_events_history (workflow_uuid, function_id, key, value, serialization)
VALUES (:workflow_uuid, :function_id, :key, :value, :serialization)
ON CONFLICT (workflow_uuid, function_id, key) DO UPDATE
SET value = excluded.value, serialization = excluded.serialization
"""

GET = f"""
SELECT {columns(EventRow)} FROM dbos.workflow_events WHERE workflow_uuid = :workflow_id AND key = :key
"""

GET_ALL = f"SELECT {columns(EventRow)} FROM dbos.workflow_events WHERE workflow_uuid = :workflow_id ORDER BY key"

EXISTING = """
-- Of the events, those that were set.
SELECT r.workflow_id, r.event FROM {rows}
WHERE EXISTS (SELECT 1 FROM dbos.workflow_events e WHERE e.workflow_uuid = r.workflow_id AND e.key = r.event)
"""


class SetEvent(NamedTuple):
    """An event to be set by the operation ``function_id``: with its record, or from a step of the run ``owner``."""

    event: EventRow
    function_id: int
    step: RecordStep | None
    owner: Owner | None

    @property
    def size(self) -> int:
        """Characters of payload, which bound a batch."""
        return len(self.event.value)


class GetEvent(NamedTuple):
    """A request for an event's value, to be recorded under ``step``, the record of there being none.

    Nothing is recorded if there is none, unless the time for it is over: ``is_last``.
    """

    workflow_id: str
    key: str
    step: RecordStep
    is_last: bool


class EventsStore:
    """The ``workflow_events`` and ``workflow_events_history`` tables."""

    def __init__(self, dialect: Dialect, runs: RunsStore) -> None:
        self._runs = runs
        self._existing = EXISTING.replace("{rows}", dialect.rows(workflow_id="text", event="text"))

    def set(self, connection: Connection, request: SetEvent) -> StepRecorded:
        """Set an event, if the run may act."""
        recorded = self._runs.may_act(connection, request.step, request.owner)
        if recorded is RECORDED:
            connection.run(SET, **request.event._asdict())
            connection.run(KEEP, **request.event._asdict(), function_id=request.function_id)
        return recorded

    @staticmethod
    def get(connection: Connection, workflow_id: str, key: str) -> EventRow | None:
        """The latest value of an event, or None if it was never set."""
        row = connection.one(GET, workflow_id=workflow_id, key=key)
        return None if row is None else EventRow(*row)

    def record(self, connection: Connection, request: GetEvent) -> StepRecorded | None:
        """Record the value of an event for a run that asks for it; None if there is none yet.

        What is recorded counts, whoever did it: it is in ``existing``, also if it was written just now.
        """
        step, event = request.step, self.get(connection, request.workflow_id, request.key)
        if event is not None:
            step = step._replace(output=event.value, serialization=event.serialization)
        elif not request.is_last:
            return None
        recorded = self._runs.record(connection, step)
        return recorded._replace(existing=step.row) if recorded is RECORDED else recorded

    @staticmethod
    def get_all(connection: Connection, workflow_id: str) -> list[EventRow]:
        """The latest values of a workflow's events, by key."""
        return [EventRow(*row) for row in connection.all(GET_ALL, workflow_id=workflow_id)]

    def existing(self, connection: Connection, events: Sequence[tuple[Any, ...]]) -> list[tuple[str, ...]]:
        """Of events, each a workflow and a key, those that were set."""
        rows = json.dumps([{"workflow_id": workflow_id, "event": key} for workflow_id, key in events])
        return connection.all(self._existing, rows=rows)
