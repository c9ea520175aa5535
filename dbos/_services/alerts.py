"""Telling the application's alert handler what has happened, from a thread of its own.

Whatever the handler does, be it slow, blocked or raising, nothing of the engine waits for it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from dbos._clock import Look
from dbos._engine.engine import Engine
from dbos._services.service import Service

__all__ = ["AlertHandler", "Alerts"]

logger = logging.getLogger("dbos.alerts")

MAX_WAITING = 1000  # alerts that a slow handler has still to hear; what comes then is logged and dropped
WATCH_S = 1.0  # between looks whether the database is back

AlertHandler = Callable[[str, str, dict[str, str]], Any]
"""Called with the name of what has happened, a message for people, and what it is about."""


class _Alert(NamedTuple):
    name: str
    message: str
    metadata: dict[str, str]


class Alerts(Service):
    """Calls the handler for each alert, in order; without a handler it does nothing.

    It also watches whether this executor's lease is renewed, because whatever else would notice that the database is
    away waits for it.
    """

    name = "alerts"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.clock)
        self._engine = engine
        self._waiting: deque[_Alert] = deque()
        self._delivered = threading.Condition()
        self._is_reachable = True
        self.handler: AlertHandler | None = None

    def tell(self, name: str, message: str, metadata: dict[str, str]) -> None:
        """Have the handler called soon."""
        if self.handler is None:
            return
        if len(self._waiting) >= MAX_WAITING:
            logger.warning("The alert handler is too slow, and was not told of this: %s", name)
            return
        self._waiting.append(_Alert(name, message, metadata))
        self.wake()

    def start(self) -> None:
        """Start the loop, if there is a handler."""
        if self.handler is not None:
            super().start()

    def stop(self, patience_s: float | None = None) -> None:
        """Have the handler told of what waits, and end the loop; return after ``patience_s`` seconds at the latest."""
        if self._thread is not None and self._thread is not threading.current_thread():
            with self._delivered:
                if not self._delivered.wait_for(lambda: not self._waiting, patience_s):
                    patience_s = 0.0
        super().stop(patience_s)

    def work_once(self) -> float | None:
        """Tell the handler what there is to tell."""
        look = self._watch_lease()
        while self._waiting:
            self._call(self._waiting[0])
            with self._delivered:
                self._waiting.popleft()
                self._delivered.notify_all()
        return look

    def _watch_lease(self) -> Look:
        engine = self._engine
        left_s = engine.lease_guard - engine.clock.monotonic()
        if left_s > 0:
            self._is_reachable = True
            return Look(left_s)
        if self._is_reachable:
            self._is_reachable = False
            lease_s = engine.settings.lease_s
            engine.alert(
                "database_unreachable",
                f"This executor has not reached the database for most of its lease of {lease_s} s. It begins no step "
                "until it does; if it takes longer than the lease, others take its workflows over.",
                {"lease_s": lease_s},
            )
        return Look(WATCH_S)

    def _call(self, alert: _Alert) -> None:
        assert self.handler is not None
        try:
            answer = self.handler(alert.name, alert.message, dict(alert.metadata))
            if inspect.isawaitable(answer):
                asyncio.run(_awaited(answer))
        except BaseException as error:  # the user's code, in a thread of ours: not even sys.exit() may end it
            logger.error("The alert handler failed upon %s", alert.name, exc_info=error)


async def _awaited(answer: Awaitable[Any]) -> None:
    await answer
