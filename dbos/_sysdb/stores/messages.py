"""Messages from anywhere to workflows: kept when received, and received once, in the order of sending."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import RECORDED, RecordStep, StepRecorded
from dbos._sysdb.rows import MessageRow
from dbos._sysdb.stores.runs import Owner, RunsStore

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect

__all__ = ["NO_TOPIC", "Delivery", "Mailing", "Message", "MessagesStore", "Sent"]

NO_TOPIC = "__null__topic__"  # a topic of its own, not any topic

EXISTING = """
-- They are kept until the messages are there: one to a workflow that was deleted would reach the next of that id.
SELECT workflow_uuid FROM dbos.workflow_status WHERE workflow_uuid IN :ids ORDER BY workflow_uuid {hold}
"""

FORKS = """
-- What was forked from workflows, and from those forks.
WITH RECURSIVE forks (workflow_uuid, origin) AS (
  SELECT w.workflow_uuid, w.forked_from FROM dbos.workflow_status w WHERE w.forked_from IN :ids
  UNION
  SELECT w.workflow_uuid, f.origin FROM dbos.workflow_status w JOIN forks f ON w.forked_from = f.workflow_uuid)
SELECT workflow_uuid, origin FROM forks ORDER BY workflow_uuid
"""

INSERT = f"""
-- Send messages; one that was sent, under its id or its key, stays as it is.
INSERT INTO dbos.notifications ({", ".join(MessageRow._fields)})
SELECT {", ".join(MessageRow._fields)} FROM {{rows}} WHERE TRUE
ON CONFLICT DO NOTHING
"""

NEXT = """
-- The message that is to be received next.
SELECT message_uuid, message, serialization FROM dbos.notifications
WHERE destination_uuid = :workflow_id AND topic = :topic AND consumed = FALSE
ORDER BY {order} LIMIT 1
"""

CONSUME = "UPDATE dbos.notifications SET consumed = TRUE WHERE message_uuid = :id"

WAITING = """
-- Of the mailboxes, those that hold something.
SELECT r.destination, r.topic FROM {rows}
WHERE EXISTS (
  SELECT 1 FROM dbos.notifications n
  WHERE n.destination_uuid = r.destination AND n.topic = r.topic AND n.consumed = FALSE)
"""


class Message(NamedTuple):
    """A message to a workflow; its id is made by the sender, so that it can be sent twice and arrive once."""

    row: MessageRow
    to_forks: bool = False


class Mailing(NamedTuple):
    """Messages that are sent together, all or none.

    ``step`` is the record of the operation that sends them, if a workflow's body does; ``owner`` is the run of a step
    that does; neither is given outside of workflows.
    """

    messages: Sequence[Message]
    step: RecordStep | None = None
    owner: Owner | None = None

    @property
    def size(self) -> int:
        """Characters of payload, which bound a batch."""
        return sum(len(message.row.message) for message in self.messages)


class Sent(NamedTuple):
    """What became of messages: the destinations that do not exist, in which case none was sent, or the mailboxes.

    ``recorded`` says whether the sender might act, and what it had recorded before.
    """

    missing: Sequence[str]
    mailboxes: Sequence[tuple[str, str]]
    recorded: StepRecorded


class Delivery(NamedTuple):
    """A request for the next message of a topic, to be recorded under ``step``, the record of having received none.

    Nothing is recorded if there is none, unless the time for it is over: ``is_last``.
    """

    topic: str
    step: RecordStep
    is_last: bool


class MessagesStore:
    """The ``notifications`` table."""

    def __init__(self, dialect: Dialect, runs: RunsStore) -> None:
        self._runs = runs
        types: dict[str, Any] = dict.fromkeys(MessageRow._fields, "text") | {"created_at_epoch_ms": "bigint"}
        self._insert = INSERT.replace("{rows}", dialect.rows(**types))
        self._existing = EXISTING.replace("{hold}", dialect.hold)
        self._next = NEXT.replace("{order}", dialect.message_order)
        self._waiting = WAITING.replace("{rows}", dialect.rows(destination="text", topic="text"))

    def send(self, connection: Connection, mailing: Mailing) -> Sent:
        """Send messages, unless one of the destinations does not exist."""
        messages, step, owner = mailing
        destinations = sorted({message.row.destination_uuid for message in messages})
        existing = {row[0] for row in connection.all(self._existing, ids=destinations)}
        missing = [destination for destination in destinations if destination not in existing]
        if missing:
            # They may have been there when this was sent, and the answer been lost.
            recorded = None if step is None else self._runs.find(connection, step)
            return Sent(missing, (), RECORDED) if recorded is None else Sent((), (), recorded)
        recorded = self._runs.may_act(connection, step, owner)
        if recorded is not RECORDED:
            return Sent((), (), recorded)
        rows = self._addressed(connection, messages)
        connection.run(self._insert, rows=json.dumps([row._asdict() for row in rows]))
        mailboxes = sorted({(row.destination_uuid, row.topic) for row in rows})
        return Sent((), mailboxes, recorded)

    @staticmethod
    def _addressed(connection: Connection, messages: Sequence[Message]) -> list[MessageRow]:
        """A row for each destination, forks included."""
        rows = [message.row for message in messages]
        sources = sorted({message.row.destination_uuid for message in messages if message.to_forks})
        if sources:
            forks: dict[str, list[str]] = {}
            for workflow_id, origin in connection.all(FORKS, ids=sources):
                forks.setdefault(origin, []).append(workflow_id)
            for row, to_forks in messages:
                if to_forks:
                    rows += [
                        row._replace(message_uuid=f"{row.message_uuid}-{fork}", destination_uuid=fork)
                        for fork in forks.get(row.destination_uuid, ())
                    ]
        return rows

    def receive(self, connection: Connection, delivery: Delivery) -> StepRecorded | None:
        """Take the next message, and record it; None if there is none yet.

        What is recorded counts, whoever did it: it is in ``existing``, also if it was written just now.
        """
        step = delivery.step
        found = connection.one(self._next, workflow_id=step.workflow_uuid, topic=delivery.topic)
        if found is not None:
            step = step._replace(output=found[1], serialization=found[2])
        elif not delivery.is_last:
            # It may have been taken by this very request, and the answer lost with the connection.
            return self._runs.find(connection, step)
        recorded = self._runs.record(connection, step)
        if recorded is not RECORDED:
            return recorded
        if found is not None:
            connection.run(CONSUME, id=found[0])
        return recorded._replace(existing=step.row)

    def waiting(self, connection: Connection, mailboxes: Sequence[tuple[Any, ...]]) -> list[tuple[str, ...]]:
        """Of mailboxes, each a workflow and a topic, those that hold a message."""
        rows = json.dumps([{"destination": destination, "topic": topic} for destination, topic in mailboxes])
        return connection.all(self._waiting, rows=rows)
