"""Being alive, and being seen to be: the lease of this executor instance, and what the dead have left behind.

An instance is dead if it left, if its process is gone, or if its heartbeat counter did not change for a full lease of
*our* monotonic time while our own heartbeats succeeded: an outage of the database, in which nobody's heartbeat gets
through, kills nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dbos._engine.engine import Engine
from dbos._engine.run import Run
from dbos._ids import new_instance_id
from dbos._services.process import is_gone, own_identity
from dbos._services.service import Service
from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import ExecutorRow
from dbos._sysdb.wakeups import Signal

__all__ = ["Leases"]

logger = logging.getLogger("dbos.leases")

RENEWALS_PER_LEASE = 3
GUARD_SHARE = 2 / 3  # after so much of a lease without renewal, no new step begins


class Leases(Service):
    """Renews this instance's lease, and takes over from instances that are dead."""

    name = "leases"

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._lease_s = engine.settings.lease_s
        self._process = own_identity()
        self._seen: dict[str, tuple[int, float]] = {}
        self._unaccounted: set[str] = set()
        self._last_success = float("-inf")

    def work_once(self) -> float | None:
        """Renew, look after our own runs and after the dead."""
        self.renew_once()
        self.reconcile_once()
        self.take_over_once()
        return self._lease_s / RENEWALS_PER_LEASE

    # -- our own lease -----------------------------------------------------------------------------------------------

    def register(self) -> None:
        """Announce this instance; from now on its writes are fenced by its row."""
        engine = self._engine
        now_ms = engine.db.now_ms()
        row = ExecutorRow(
            instance_id=engine.instance_id,
            executor_id=engine.executor_id,
            application_version=engine.application_version,
            application_id=engine.application_id,
            hostname=self._process.hostname,
            boot_id=self._process.boot_id,
            pid_namespace=self._process.pid_namespace,
            pid=self._process.pid,
            process_started_at=self._process.started_at,
            heartbeat=0,
            lease_ms=int(self._lease_s * 1000),
            started_at=now_ms,
            heartbeat_at=now_ms,
        )
        began = engine.clock.monotonic()
        engine.db.fence(None)
        engine.db.change(engine.db.executors.register, row)
        engine.db.fence(engine.instance_id)
        self._extend(began)

    def renew_once(self) -> None:
        """Send a sign of life; an instance that was declared dead parks its runs and starts anew."""
        engine = self._engine
        began = engine.clock.monotonic()
        if engine.db.change(engine.db.executors.heartbeat, engine.instance_id, engine.db.now_ms()):
            self._extend(began)
            engine.db.synchronize_clock()
            return
        logger.warning(
            "This executor was declared dead (it was paused, or cut off from the database for longer than its lease "
            "of %s s). Its %s running workflows were taken over; it registers anew.",
            self._lease_s,
            len(engine.runs.all()),
        )
        for run in engine.runs.all():
            run.lose()
        engine.instance_id = new_instance_id()
        self.register()

    def _extend(self, began: float) -> None:
        # Counted from before the write, because the lease is counted from its commit.
        self._engine.lease_guard = began + self._lease_s * GUARD_SHARE
        self._last_success = began
        renewed, self._engine.lease_renewed = self._engine.lease_renewed, Signal()
        renewed.set()

    def leave(self) -> None:
        """Go cleanly: whatever is unfinished may be taken over at once."""
        engine = self._engine
        engine.db.change(engine.db.executors.remove, [engine.instance_id])

    # -- our own runs ------------------------------------------------------------------------------------------------

    def reconcile_once(self) -> None:
        """Compare what runs here with what the database says we own, and mend the difference.

        A run that we do not own any more was cancelled or taken over. A workflow that we own but do not run was lost
        between claim and start; it goes back to its queue if it is still so a round later.
        """
        engine = self._engine
        runs: dict[str, Run] = {run.workflow_id: run for run in engine.runs.all()}
        owned = engine.db.read(engine.db.workflows.running, engine.instance_id)
        for workflow_id, run in runs.items():
            if owned.get(workflow_id) != run.run_token and not run.finished.is_set:
                self._stop(run)
        missing = {workflow_id for workflow_id in owned if engine.runs.get(workflow_id) is None}
        lost = sorted(missing & self._unaccounted)
        self._unaccounted = missing
        if lost:
            logger.warning("%s workflows were claimed but never begun; they are enqueued again", len(lost))
            engine.db.change(engine.db.workflows.reclaim_own, engine.instance_id, lost, engine.db.now_ms())
            engine.dispatch()

    def _stop(self, run: Run) -> None:
        row = self._engine.db.read(self._engine.db.workflows.get, run.workflow_id)
        if row is not None and row.run_token == run.run_token:
            if row.status == "CANCELLED":
                run.cancel()
            return  # it has just ended, or just begun
        run.lose()

    # -- others ------------------------------------------------------------------------------------------------------

    def take_over_once(self) -> list[str]:
        """Take over what dead instances of our application version have left; returns the ids of the workflows."""
        engine = self._engine
        dead = [executor.instance_id for executor in self._others() if self._is_dead(executor)]
        version, now_ms = engine.application_version, engine.db.now_ms()

        def take_over(connection: Connection) -> list[str]:
            engine.db.executors.remove(connection, dead)
            return engine.db.workflows.reclaim(connection, version, now_ms)

        if not dead and not engine.db.read(engine.db.workflows.has_orphans, version):
            return []
        taken = engine.db.change(take_over)
        if taken:
            logger.info("Recovering %s workflows from application version %s", len(taken), version)
            engine.dispatch()
        return taken

    def recover_now(self, executor_ids: Sequence[str]) -> list[str]:
        """Recover at once what is not running: ours, if it is named, and whatever nobody alive owns."""
        engine = self._engine
        recovered = self.take_over_once()
        if engine.executor_id in executor_ids:
            owned = engine.db.read(engine.db.workflows.running, engine.instance_id)
            idle = [workflow_id for workflow_id in owned if engine.runs.get(workflow_id) is None]
            if idle:
                now_ms = engine.db.now_ms()
                recovered += engine.db.change(engine.db.workflows.reclaim_own, engine.instance_id, idle, now_ms)
                engine.dispatch()
        return recovered

    def _others(self) -> list[ExecutorRow]:
        db = self._engine.db
        return [row for row in db.read(db.executors.list) if row.instance_id != self._engine.instance_id]

    def _is_dead(self, executor: ExecutorRow) -> bool:
        if is_gone(executor, self._process):
            return True
        now = self._engine.clock.monotonic()
        heartbeat, since = self._seen.get(executor.instance_id, (-1, now))
        if heartbeat != executor.heartbeat:
            self._seen[executor.instance_id] = (executor.heartbeat, now)
            return False
        lease_s = executor.lease_ms / 1000
        # Only time in which our own heartbeats got through counts against others.
        return now - since >= lease_s and self._last_success - since >= lease_s * GUARD_SHARE
