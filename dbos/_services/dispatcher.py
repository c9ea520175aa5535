"""Takes work from queues as soon as it is there and a thread is free."""

from __future__ import annotations

from dbos._core import dispatch_queue
from dbos._engine.engine import Engine
from dbos._services.service import Service
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE

__all__ = ["Dispatcher"]

MAX_CLAIM = 100  # what a crash between claim and start leaves to be recovered, and what one statement returns
SAFETY_NET_S = 1.0  # work that was enqueued without a wake-up is found this late
REGISTRATION_GRACE_S = 0.2  # an instance registers itself at the beginning of its constructor; let that come to its end


class Dispatcher(Service):
    """Dispatches the internal queue, which resumed and recovered workflows wait in."""

    name = "dispatcher"

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._retry_at = float("inf")

    def work_once(self) -> float | None:
        """Dispatch, and come back at once while there is more."""
        begun = self.dispatch_once()
        if begun:
            return 0.0
        return max(0.0, min(SAFETY_NET_S, self._retry_at - self._engine.clock.monotonic()))

    def dispatch_once(self) -> int:
        """Claim and begin as much as there is room for; returns how much that was."""
        if self._engine.clock.monotonic() >= self._retry_at:
            self._retry_at = float("inf")
            self._engine.unknown_targets.clear()
        count = min(self._engine.workers.free, MAX_CLAIM)
        if count == 0:
            return 0  # a worker that becomes free wakes this service
        if not self._engine.db.read(self._engine.db.workflows.has_ready, INTERNAL_QUEUE):
            return 0
        return dispatch_queue(self._engine, INTERNAL_QUEUE, count)

    def retry_unknown_targets(self) -> None:
        """Something was registered: soon, try again what this process did not know."""
        self._retry_at = self._engine.clock.monotonic() + REGISTRATION_GRACE_S
        self.wake()
