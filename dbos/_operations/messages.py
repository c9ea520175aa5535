"""Messages: sent to a workflow from anywhere, received by it in the order of sending, each exactly once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from dbos._context import checked_workflow_id, current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Read
from dbos._engine.timing import checked_seconds
from dbos._error import DBOSException, DBOSNonExistentWorkflowError
from dbos._ids import new_token
from dbos._operations.effects import Effect, wait_recorded
from dbos._operations.recording import refuse_in_transaction
from dbos._queue_config import checked_key
from dbos._serialization import WorkflowSerializationFormat
from dbos._sysdb.operations import Call, RecordStep, call
from dbos._sysdb.rows import MessageRow
from dbos._sysdb.stores.messages import NO_TOPIC, Delivery, Mailing, Message
from dbos._sysdb.wakeups import message_key
from dbos._types import SendMessage

__all__ = ["client_send", "make_messages", "recv", "send", "send_bulk"]

logger = logging.getLogger("dbos.messages")

SEND = "DBOS.send"
SEND_BULK = "DBOS.send_bulk"
RECV = "DBOS.recv"


# -- sending -----------------------------------------------------------------------------------------------------------


def send(
    engine: Engine,
    destination_id: str,
    message: Any,
    topic: str | None = None,
    *,
    idempotency_key: str | None = None,
    serialization_type: WorkflowSerializationFormat | None = WorkflowSerializationFormat.DEFAULT,
    send_to_forks: bool = False,
) -> Flow[None]:
    """Send a message to a workflow, which receives it with :meth:`recv`; from anywhere, also if it has ended.

    From a workflow's body it is sent exactly once. From a step or from outside it is sent once for each call, or once
    in all for each ``idempotency_key``.

    Args:
        destination_id: The id of the workflow.
        message: The message.
        topic: The topic it is received by; None is one of its own.
        idempotency_key: Of messages to one workflow with the same key only the first is sent, whatever their topics.
        serialization_type: The format; by default that of the workflow that sends it.
        send_to_forks: Send it to all workflows that were forked from this one as well, and to their forks.

    Raises:
        DBOSNonExistentWorkflowError: there is no such workflow.
        DBOSException: no workflow can have this id, or the topic or key cannot be stored.
        TypeError: the message cannot be serialized.
    """
    single = SendMessage(destination_id, message, topic, idempotency_key)
    yield from _send(engine, SEND, [single], serialization_type, send_to_forks)


def client_send(
    engine: Engine,
    destination_id: str,
    message: Any,
    topic: str | None = None,
    idempotency_key: str | None = None,
    *,
    serialization_type: WorkflowSerializationFormat | None = WorkflowSerializationFormat.DEFAULT,
    send_to_forks: bool = False,
) -> Flow[None]:
    """Send a message to a workflow, also if it has ended; see :meth:`DBOS.send`."""
    single = SendMessage(destination_id, message, topic, idempotency_key)
    yield from _send(engine, SEND, [single], serialization_type, send_to_forks)


client_send.__name__ = send.__name__


def send_bulk(
    engine: Engine,
    messages: Sequence[SendMessage],
    *,
    serialization_type: WorkflowSerializationFormat | None = WorkflowSerializationFormat.DEFAULT,
    send_to_forks: bool = False,
) -> Flow[None]:
    """Send messages in one transaction, in this order: all of them, or none; see :meth:`send`.

    Args:
        messages: The messages, each a :class:`SendMessage`.
        serialization_type: Their format; by default that of the workflow that sends them.
        send_to_forks: Send each to all workflows that were forked from its destination as well.

    Raises:
        DBOSNonExistentWorkflowError: one of the workflows does not exist.
        DBOSException: two messages to one workflow have the same key, or an id, topic or key cannot be stored.
        TypeError: a message cannot be serialized, or is no :class:`SendMessage`.
    """
    yield from _send(engine, SEND_BULK, messages, serialization_type, send_to_forks)


def _send(
    engine: Engine,
    name: str,
    messages: Sequence[SendMessage],
    format: WorkflowSerializationFormat | None,
    to_forks: bool,
) -> Flow[None]:
    effect = Effect(engine, name)
    if effect.is_done:
        return
    logger.debug("Running %s", name.removeprefix("DBOS."))
    rows = make_messages(engine, messages, effect.format(format), to_forks=to_forks)
    sent = yield from effect.commit(call(engine.db.messages.send, Mailing(rows, effect.step, effect.owner)))
    for destination in sent.missing:
        raise DBOSNonExistentWorkflowError("`send` destination", destination)
    effect.settle(sent.recorded)
    engine.written(*(message_key(*mailbox) for mailbox in sent.mailboxes))


def make_messages(
    engine: Engine,
    messages: Sequence[SendMessage],
    format: WorkflowSerializationFormat | None,
    *,
    to_forks: bool = False,
) -> list[Message]:
    """Messages as they are stored.

    Raises:
        DBOSException: two of them to one workflow have the same key, or an id, topic or key cannot be stored.
        TypeError: a message cannot be serialized.
    """
    seen: set[tuple[str, str]] = set()
    made = []
    for each in messages:
        if not isinstance(each, SendMessage):
            raise TypeError(f"send_bulk takes a list of SendMessage objects, and {each!r} is none.")
        destination, key = checked_workflow_id(each.destination_id), each.idempotency_key
        if key is not None:
            key = checked_key("idempotency_key", key)
            if (destination, key) in seen:
                raise DBOSException(
                    f"Two messages to workflow {destination} have the same idempotency_key {key!r}: only one of them "
                    "could be sent. Give each its own key."
                )
            seen.add((destination, key))
        text, serialization = engine.serialization.dump_value(each.message, format, what="message", name=each.topic)
        row = MessageRow(
            message_uuid=new_token(),
            destination_uuid=destination,
            topic=_stored_topic(each.topic),
            message=text,
            created_at_epoch_ms=engine.db.now_ms(),
            serialization=serialization,
            idempotency_key=key,
        )
        made.append(Message(row, to_forks))
    return made


def _stored_topic(topic: str | None) -> str:
    return NO_TOPIC if topic is None else "" if topic == "" else checked_key("topic", topic)


# -- receiving ---------------------------------------------------------------------------------------------------------


def recv(engine: Engine, topic: str | None = None, timeout_seconds: float = 60) -> Flow[Any]:
    """Receive the next message to this workflow, waiting for one if there is none.

    Messages of a topic are received in the order in which they were sent. How long is left to wait is recorded, so that
    a restart does not begin the wait anew.

    Args:
        topic: The topic; None is one of its own, and not any.
        timeout_seconds: How long to wait, in seconds; 0 for not at all.

    Returns:
        The message, or None if none came in time.

    Raises:
        DBOSException: not called from a workflow's body, the topic cannot be stored, it is no number of seconds, or
            this workflow waits for a message of the topic already, side by side.
    """
    refuse_in_transaction(RECV)
    context = current_context()
    if context is None or context.run is None or not context.is_in_workflow_body:
        raise DBOSException("recv() must be called from within a workflow")
    run, stored_topic = context.run, _stored_topic(topic)
    timeout_seconds = checked_seconds("timeout_seconds", timeout_seconds)
    logger.debug("Running recv, topic: %s", topic)
    messages = engine.db.messages

    def take(nothing: RecordStep, is_last: bool) -> Call:
        return call(messages.receive, Delivery(stored_topic, nothing, is_last))

    look = Read(messages.waiting, ([(run.workflow_id, stored_topic)],))
    key = message_key(run.workflow_id, stored_topic)
    with run.alone(key, lambda: DBOSException(f"recv() of topic {topic!r} is waiting already in this workflow.")):
        return (yield from wait_recorded(engine, RECV, run, key, timeout_seconds, look, take))
