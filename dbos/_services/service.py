"""What every background service is: a round of work, repeated when woken or when its time has come.

Stop without start is a no-op, stop twice too, and stop returns when the loop has ended. A round that fails is logged
and repeated: no error ends a service.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from dbos._clock import Clock, current_clock
from dbos._error import DBOSBaseException
from dbos._sysdb.retry import Backoff
from dbos._sysdb.wakeups import Signal

__all__ = ["Service"]

logger = logging.getLogger("dbos.services")


class Service(ABC):
    """A loop in a thread of its own around :meth:`work_once`."""

    name: str

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or current_clock()
        self._woken = Signal()  # another for each round
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def work_once(self) -> float | None:
        """Do one round; returns in how many seconds the next one is due, None for only when woken.

        What is no more than a safety net is a :class:`~dbos._clock.Look`.
        """

    def start(self) -> None:
        """Start the loop; also after :meth:`stop`."""
        self._stopping.clear()
        acting = self._clock.acting(apart=True)  # from now on, and not only when the thread has begun
        self._thread = threading.Thread(target=self._loop, args=(acting,), name=f"dbos-{self.name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have the next round begin now."""
        self._woken.set()

    def stop(self, patience_s: float | None = None) -> None:
        """End the loop, and return when it has ended, or after ``patience_s`` seconds.

        A round that waits for the database ends when that is back, or closed.
        """
        self._stopping.set()
        self._woken.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(patience_s)

    def _loop(self, acting: AbstractContextManager[object]) -> None:
        backoff = Backoff(initial_s=0.1, maximum_s=5.0)
        with acting:
            while True:
                # Before the round: what happens during it brings on another. And before the look at whether it is the
                # last: what ends it wakes the signal that it finds.
                self._woken = woken = Signal()
                if self._stopping.is_set():
                    return
                try:
                    delay_s = self.work_once()
                    backoff.reset()
                except (Exception, DBOSBaseException):  # protects the service's loop
                    if self._stopping.is_set():
                        return
                    logger.exception("the %s failed a round and will repeat it", self.name)
                    delay_s = backoff.next_delay_s()
                self._clock.rest(woken, delay_s)
