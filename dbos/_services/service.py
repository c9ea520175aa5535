"""What every background service is: a round of work, repeated when woken or when its time has come.

Stop without start is a no-op, stop twice too, and stop returns when the loop has ended. A round that fails is logged
and repeated: no error ends a service.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod

from dbos._error import DBOSBaseException
from dbos._sysdb.retry import Backoff

__all__ = ["Service"]

logger = logging.getLogger("dbos.services")

MAX_WAIT_S = 3600.0  # a deadline may be further away than a thread can be told to wait


class Service(ABC):
    """A loop in a thread of its own around :meth:`work_once`."""

    name: str

    def __init__(self) -> None:
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def work_once(self) -> float | None:
        """Do one round; returns in how many seconds the next one is due, None for only when woken."""

    def start(self) -> None:
        """Start the loop; also after :meth:`stop`."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._loop, name=f"dbos-{self.name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have the next round begin now."""
        self._woken.set()

    def stop(self) -> None:
        """End the loop, and return when it has ended."""
        self._stopping.set()
        self._woken.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _loop(self) -> None:
        backoff = Backoff(initial_s=0.1, maximum_s=5.0)
        while not self._stopping.is_set():
            # Cleared before the round: what happens during it brings on another.
            self._woken.clear()
            try:
                delay_s = self.work_once()
                backoff.reset()
            except (Exception, DBOSBaseException):  # protects the service's loop
                if self._stopping.is_set():
                    return
                logger.exception("the %s failed a round and will repeat it", self.name)
                delay_s = backoff.next_delay_s()
            if not self._stopping.is_set():
                self._woken.wait(MAX_WAIT_S if delay_s is None else min(delay_s, MAX_WAIT_S))
