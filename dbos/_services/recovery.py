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
from typing import NamedTuple

from dbos._clock import Look
from dbos._engine.engine import Engine
from dbos._services.leases import RENEWALS_PER_LEASE, Leases
from dbos._services.process import is_gone, own_identity
from dbos._services.service import Service
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import Call
from dbos._sysdb.rows import ExecutorRow
from dbos._sysdb.wakeups import QUEUE

__all__ = ["EXECUTOR", "Recovery"]

logger = logging.getLogger("dbos.recovery")

EXECUTOR = "executor"  # the topic under which an instance tells that it leaves
INTERVAL_S = 1.0  # how late the death of a process on this host is noticed
SPACING_S = 0.1  # on SQLite every foreign commit wakes us; this bounds how much we look
TOLD_SPACING_S = 1.0  # and this how often all that is PENDING is read because somebody may have left


class _Seen(NamedTuple):
    heartbeat: int
    since: float  # monotonic time at which it was first seen
    application_version: str


class Recovery(Service):
    """Watches the executor instances: takes over from those that are dead, and does what ours was asked to do."""

    name = "recovery"

    def __init__(self, engine: Engine, leases: Leases) -> None:
        super().__init__(engine.clock)
        self._engine = engine
        self._leases = leases
        self._process = own_identity()
        self._seen: dict[str, _Seen] = {}
        self._next_round = float("-inf")
        self._next_look = float("-inf")
        self._has_one_left = False
        self._has_version_left = False
        self._has_queue_left = False  # perhaps: one has left that may have served it alone
        self._stranded: dict[str, int] = {}  # versions that were reported last,
        self._stranded_queues: dict[str, int] = {}  # and queues
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
            return Look(self._next_round - now)
        self._next_round = now + SPACING_S
        self.take_over_once()
        return Look(min(INTERVAL_S, self._engine.settings.lease_s / RENEWALS_PER_LEASE))

    def take_over_once(self) -> list[str]:
        """Take over what dead instances of our application version have left; returns the ids of the workflows."""
        with self._lock:
            taken = self._take_over()
            if self._has_version_left:
                self._report_stranded_versions()
            if self._has_queue_left:
                self._report_stranded_queues()
            return taken

    def report_stranded(self) -> None:
        """Log how much waits for versions that nobody runs, and in queues that nobody serves, unless it was logged."""
        with self._lock:
            self._report_stranded_versions()
            self._report_stranded_queues()

    def _report_stranded_queues(self) -> None:
        engine = self._engine
        found = engine.db.read(engine.db.claims.stranded)
        self._has_queue_left = False
        for name, count in found.items():
            if self._stranded_queues.get(name) != count:
                engine.alert(
                    "queue_stranded",
                    f"{count} workflows wait in queue {name}, from which no process takes work now. Launch one that "
                    "declares and listens to it, or register it.",
                    {"queue_name": name, "workflows": count},
                )
        self._stranded_queues = found

    def _report_stranded_versions(self) -> None:
        engine = self._engine
        found = engine.db.read(engine.db.workflows.stranded_versions, engine.application_name)
        self._has_version_left = False
        for version, count in found.items():
            if self._stranded.get(version) != count:
                engine.alert(
                    "version_stranded",
                    f"{count} unfinished workflows belong to application version {version}, which no process runs now. "
                    f"Launch that version to finish them, or have them finished by version "
                    f"{engine.application_version}: DBOS.adopt_application_version({version!r}).",
                    {"stranded_version": version, "workflows": count},
                )
        self._stranded = found

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
            return engine.db.workflows.reclaim(connection, version, now_ms, engine.application_name)

        # Apart, because so much at once would keep signs of life waiting.
        taken: list[str] = engine.db.commit(Call(take_over, (), is_apart=True))[0]
        if taken:
            logger.info("Recovering %s workflows from application version %s", len(taken), version)
            engine.dispatch(None)
            engine.db.publish(QUEUE)
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
            found = engine.db.read(engine.db.workflows.has_orphans, engine.application_version, engine.application_name)
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
        now, alive_since = self._engine.clock.monotonic(), self._leases.alive_since
        may_judge = now >= self._leases.judges_from
        seen, self._seen = self._seen, {}
        gone, silent = [], []
        for executor in self._others():
            version = executor.application_version
            known = seen.get(executor.instance_id)
            if known is None or known.heartbeat != executor.heartbeat:
                known = _Seen(executor.heartbeat, now, version)
            self._seen[executor.instance_id] = known
            if is_gone(executor, self._process):
                gone.append(executor)
            # Only time in which our own heartbeats got through counts against others.
            elif (
                may_judge
                and alive_since is not None
                and now - max(known.since, alive_since) >= executor.lease_ms / 1000
            ):
                silent.append(executor)
        left = [known for instance, known in seen.items() if instance not in self._seen]
        self._has_one_left = bool(left)
        self._has_queue_left |= self._has_one_left
        alive = {self._engine.application_version, *(known.application_version for known in self._seen.values())}
        self._has_version_left |= not alive.issuperset(known.application_version for known in left)
        return gone, silent

    def _others(self) -> list[ExecutorRow]:
        engine, others = self._engine, []
        for executor in engine.db.read(engine.db.executors.list):
            if executor.instance_id == engine.instance_id:
                self._heed(is_draining=executor.draining_since is not None)
            else:
                others.append(executor)
        return others

    def _heed(self, *, is_draining: bool) -> None:
        """Take no more from queues, or take from them again, as our own row says."""
        engine = self._engine
        if engine.is_draining == is_draining:
            return
        engine.is_draining = is_draining
        if is_draining:
            logger.info("This executor was asked to drain: it goes on with what it runs, and takes nothing new.")
        else:
            logger.info("This executor takes work from queues again.")
            engine.dispatch(None)
