"""The safety net under all waits: one query for all waiters of a kind, now and then and whenever others committed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from dbos._clock import Look
from dbos._engine.engine import Engine
from dbos._services.service import Service
from dbos._sysdb.connection import Connection
from dbos._sysdb.wakeups import DATA, EVENTS, MESSAGES, OUTCOMES, STREAMS, WORKFLOW, Key

__all__ = ["Notifier"]

INTERVAL_S = 1.0  # how late a waiter learns what no wake-up told
MAX_KEYS = 5000  # asked for in one query

# Of what to look at when it is told of.
KINDS: dict[str | None, tuple[str, ...]] = {WORKFLOW: (OUTCOMES, STREAMS), DATA: (MESSAGES, EVENTS, STREAMS)}

# Of the keys that are waited for, without their kind, those for which the waiting is over.
Find = Callable[[Connection, Sequence[tuple[Any, ...]]], Sequence[tuple[str, ...]]]


class Notifier(Service):
    """Wakes those who wait for what has happened elsewhere."""

    name = "notifier"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.clock)
        self._engine = engine
        self._told: set[str | None] = set()  # topics, since the last round
        self._next_look_s = 0.0  # at everything; monotonic

    def tell(self, topic: str | None) -> None:
        """Others have committed something under a topic; None when anything may have happened."""
        self._told.add(topic)
        self.wake()

    def work_once(self) -> float | None:
        """Check what was told of, and now and then everything; come back soon."""
        told, self._told = self._told, set()
        now_s = self._engine.clock.monotonic()
        if None in told or now_s >= self._next_look_s:
            self._next_look_s = now_s + INTERVAL_S
            self.check_once()
        else:
            self.check_once([kind for topic in told for kind in KINDS.get(topic, ())])
        return Look(self._next_look_s - now_s)

    def check_once(self, kinds: Collection[str] | None = None) -> None:
        """Wake whoever waits for a workflow that has ended, or for a message, event or value that is there.

        ``kinds`` are those to be looked at; all if it is None.
        """
        db = self._engine.db
        waiting: dict[str, list[Key]] = {}
        for kind, *key in list(db.wakeups.keys()):
            waiting.setdefault(kind, []).append(tuple(key))
        finds: dict[str, Find] = {
            OUTCOMES: self._settled,
            MESSAGES: db.messages.waiting,
            EVENTS: db.events.existing,
            STREAMS: db.streams.existing,
        }
        for kind, find in finds.items():
            keys = waiting.get(kind, []) if kinds is None or kind in kinds else []
            for begin in range(0, len(keys), MAX_KEYS):
                found = db.read(find, keys[begin : begin + MAX_KEYS])
                db.wakeups.fire((kind, *key) for key in found)

    def _settled(self, connection: Connection, keys: Sequence[tuple[Any, ...]]) -> list[tuple[str, ...]]:
        settled = self._engine.db.workflows.settled(connection, [workflow_id for (workflow_id,) in keys])
        return [(workflow_id,) for workflow_id in settled]
