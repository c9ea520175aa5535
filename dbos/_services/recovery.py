"""Taking over what the dead have left, within one application version.

An instance is dead if it left, if its process is gone, or if its heartbeat counter did not change for a full lease of
*our* monotonic time while our own heartbeats got through without a gap: an outage of the database, in which nobody's
heartbeat gets through, kills nobody, and neither do we when we were paused ourselves. That it was declared dead is one
fact in the database, the deletion of its row, and it holds in the same transaction in which its work is enqueued again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from dbos._engine.engine import Engine
from dbos._services.leases import RENEWALS_PER_LEASE, Leases
from dbos._services.process import is_gone, own_identity
from dbos._services.service import Service
from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import ExecutorRow
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE
from dbos._sysdb.wakeups import QUEUE

__all__ = ["EXECUTOR", "Recovery"]

logger = logging.getLogger("dbos.recovery")

EXECUTOR = "executor"  # the topic under which an instance tells that it leaves
INTERVAL_S = 1.0  # how late the death of a process on this host is noticed
SPACING_S = 0.1  # on SQLite every foreign commit wakes us; this bounds how much we look
TOLD_SPACING_S = 1.0  # and this how often all that is PENDING is read because somebody may have left


class Recovery(Service):
    """Watches the other executor instances, and takes over from those that are dead."""

    name = "recovery"

    def __init__(self, engine: Engine, leases: Leases) -> None:
        super().__init__()
        self._engine = engine
        self._leases = leases
        self._process = own_identity()
        self._seen: dict[str, tuple[int, float]] = {}
        self._next_round = float("-inf")
        self._next_look = float("-inf")
        self._has_one_left = False
        self._is_told = False  # that an instance may have left, perhaps one that came after our last look
        self._looked_at = float("-inf")
        self._lock = threading.Lock()  # a round may be asked for while another is under way

    def wake(self) -> None:
        self._is_told = True
        super().wake()

    def work_once(self) -> float | None:
        """Take over, and come back soon: at once if an instance leaves."""
        now = self._engine.clock.monotonic()
        if now < self._next_round:
            return self._next_round - now
        self._next_round = now + SPACING_S
        self.take_over_once()
        return min(INTERVAL_S, self._engine.settings.lease_s / RENEWALS_PER_LEASE)

    def take_over_once(self) -> list[str]:
        """Take over what dead instances of our application version have left; returns the ids of the workflows."""
        with self._lock:
            return self._take_over()

    def _take_over(self) -> list[str]:
        engine = self._engine
        gone, silent = self._dead()
        version, now_ms = engine.application_version, engine.db.now_ms()
        if not gone and not silent and not self._finds_orphans():
            return []

        def take_over(connection: Connection) -> list[str]:
            engine.db.executors.remove(connection, [executor.instance_id for executor in gone])
            for executor in silent:
                engine.db.executors.remove_silent(connection, executor)
            return engine.db.workflows.reclaim(connection, version, now_ms)

        taken = engine.db.change(take_over)
        if taken:
            logger.info("Recovering %s workflows from application version %s", len(taken), version)
            engine.dispatch()
            engine.db.publish(f"{QUEUE}:{INTERNAL_QUEUE}")
        return taken

    def _finds_orphans(self) -> bool:
        """Look for work without an owner when one has left, or may have, and now and then.

        It takes reading all that is PENDING.
        """
        engine = self._engine
        now = engine.clock.monotonic()
        is_told = self._is_told and now >= self._looked_at + TOLD_SPACING_S
        if not self._has_one_left and not is_told and now < self._next_look:
            return False
        self._is_told = False  # before the look: what is told during it brings on another
        try:
            found = engine.db.read(engine.db.workflows.has_orphans, engine.application_version)
        except BaseException:
            self._is_told = True
            raise
        self._looked_at, self._next_look = now, now + engine.settings.lease_s / RENEWALS_PER_LEASE
        return found

    def recover_now(self, executor_ids: Sequence[str]) -> list[str]:
        """Recover at once what is not running: ours, if it is named, and whatever nobody alive owns."""
        with self._lock:
            self._next_look = float("-inf")
            recovered = self._take_over()
        if self._engine.executor_id in executor_ids:
            recovered += self._leases.release()
        return recovered

    def _dead(self) -> tuple[list[ExecutorRow], list[ExecutorRow]]:
        """The other instances whose process is gone, and those that have been silent for their whole lease."""
        engine = self._engine
        others = [row for row in engine.db.read(engine.db.executors.list) if row.instance_id != engine.instance_id]
        now, alive_since = engine.clock.monotonic(), self._leases.alive_since
        seen, self._seen = self._seen, {}
        gone, silent = [], []
        for executor in others:
            heartbeat, since = seen.get(executor.instance_id, (executor.heartbeat, now))
            if heartbeat != executor.heartbeat:
                since = now
            self._seen[executor.instance_id] = (executor.heartbeat, since)
            if is_gone(executor, self._process):
                gone.append(executor)
            # Only time in which our own heartbeats got through counts against others.
            elif alive_since is not None and now - max(since, alive_since) >= executor.lease_ms / 1000:
                silent.append(executor)
        self._has_one_left = not seen.keys() <= self._seen.keys()
        return gone, silent
