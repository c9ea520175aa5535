"""Events: named values that a workflow shows to whoever asks for them."""

from __future__ import annotations

import logging
from typing import Any

from dbos._context import checked_workflow_id, current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Pause, Read
from dbos._engine.timing import checked_seconds
from dbos._operations.effects import Effect, wait_recorded
from dbos._operations.recording import recorded, refuse_in_transaction
from dbos._queue_config import checked_key
from dbos._serialization import WorkflowSerializationFormat
from dbos._sysdb.operations import Call, RecordStep, call
from dbos._sysdb.rows import EventRow
from dbos._sysdb.stores.events import GetEvent, SetEvent
from dbos._sysdb.wakeups import Signal, event_key

__all__ = ["get_all_events", "get_event", "set_event"]

logger = logging.getLogger("dbos.events")

SET_EVENT = "DBOS.setEvent"
GET_EVENT = "DBOS.getEvent"
GET_EVENTS = "DBOS.get_events"


def set_event(
    engine: Engine,
    key: str,
    value: Any,
    *,
    serialization_type: WorkflowSerializationFormat | None = WorkflowSerializationFormat.DEFAULT,
) -> Flow[None]:
    """Set an event of this workflow: a named value that others get with :meth:`get_event`; it can be set again.

    A fork begins with the events as they were before its first step.

    Args:
        key: The event's name.
        value: Its value.
        serialization_type: The format; by default that of the workflow.

    Raises:
        DBOSException: not called from within a workflow, or the key cannot be stored.
        TypeError: the value cannot be serialized.
    """
    effect = Effect(engine, SET_EVENT)
    workflow_id = effect.require_run("set_event").workflow_id
    key = checked_key("key", key)
    if effect.is_done:
        return
    logger.debug("Running set_event, key: %s", key)
    text, serialization = engine.serialization.dump_value(
        value, effect.format(serialization_type), what="event", name=key
    )
    event = EventRow(workflow_id, key, text, serialization)
    recorded = yield from effect.commit(
        call(engine.db.events.set, SetEvent(event, effect.function_id, effect.step, effect.owner))
    )
    effect.settle(recorded)
    engine.written(event_key(workflow_id, key))


def get_event(engine: Engine, workflow_id: str, key: str, timeout_seconds: float = 60) -> Flow[Any]:
    """The latest value of a workflow's event, waiting for it to be set if it was not.

    Within a workflow the value is recorded, and so is how long is left to wait.

    Args:
        workflow_id: The workflow's id; it need not exist yet.
        key: The event's name.
        timeout_seconds: How long to wait, in seconds; 0 for not at all.

    Returns:
        The value, or None if the event was not set in time.

    Raises:
        DBOSException: no workflow can have this id, no event this key, or it is no number of seconds.
    """
    refuse_in_transaction(GET_EVENT)
    workflow_id, key = checked_workflow_id(workflow_id), checked_key("key", key)
    timeout_seconds = checked_seconds("timeout_seconds", timeout_seconds)
    context = current_context()
    run = context.run if context is not None and context.is_in_workflow_body else None
    logger.debug("Running get_event, workflow_id: %s, key: %s", workflow_id, key)
    if run is not None:
        events = engine.db.events

        def take(nothing: RecordStep, is_last: bool) -> Call:
            return call(events.record, GetEvent(workflow_id, key, nothing, is_last))

        look, wakes = Read(events.get, (workflow_id, key)), event_key(workflow_id, key)
        return (yield from wait_recorded(engine, GET_EVENT, run, wakes, timeout_seconds, look, take))
    deadline_s = engine.clock.monotonic() + timeout_seconds
    while True:
        signal = Signal()
        with engine.db.wakeups.waiting(event_key(workflow_id, key), signal):
            engine.check_open()  # after the signal is in place: closing sets it
            event: EventRow | None = yield Read(engine.db.events.get, (workflow_id, key))
            if event is not None:
                return engine.serialization.load_value(event.value, event.serialization)
            remaining_s = deadline_s - engine.clock.monotonic()
            if remaining_s <= 0:
                return None
            yield Pause(signal, remaining_s)


def get_all_events(engine: Engine, workflow_id: str) -> Flow[dict[str, Any]]:
    """The latest values of all events of a workflow, by key; empty for an unknown workflow.

    A value that cannot be decoded is shown as its text.

    Args:
        workflow_id: The workflow's id.

    Raises:
        DBOSException: no workflow can have this id.
    """
    workflow_id = checked_workflow_id(workflow_id)

    def read() -> Flow[dict[str, Any]]:
        events: list[EventRow] = yield Read(engine.db.events.get_all, (workflow_id,))
        return {event.key: engine.serialization.try_load_value(event.value, event.serialization) for event in events}

    return (yield from recorded(engine, GET_EVENTS, read()))
