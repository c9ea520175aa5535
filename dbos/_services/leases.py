"""Being alive, and being seen to be: the lease of this executor instance, and the runs it holds under it.

What others have left behind is the business of :mod:`dbos._services.recovery`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dbos._engine.engine import Engine
from dbos._engine.run import Run
from dbos._error import DatabaseGoneError
from dbos._ids import new_instance_id
from dbos._services.process import own_identity
from dbos._services.service import Service
from dbos._sysdb.rows import ExecutorRow
from dbos._sysdb.wakeups import Signal

__all__ = ["Leases"]

logger = logging.getLogger("dbos.leases")

RENEWALS_PER_LEASE = 3
GUARD_SHARE = 2 / 3  # after so much of a lease without renewal, no new step begins


class Leases(Service):
    """Renews this instance's lease, and keeps what runs here and what it owns in step."""

    name = "leases"

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._lease_s = engine.settings.lease_s
        self._beats = 0
        self._unaccounted: dict[str, str] = {}
        self._alive_since = float("inf")

    def work_once(self) -> float | None:
        """Renew, then look after our own runs."""
        try:
            self.renew_once()
        except DatabaseGoneError as error:
            self._engine.fail(error)
            return None
        self.reconcile_once()
        return self._lease_s / RENEWALS_PER_LEASE

    # -- our own lease -----------------------------------------------------------------------------------------------

    @property
    def alive_since(self) -> float | None:
        """Since when, in monotonic time, our heartbeats have got through without a gap; None if they do not."""
        return self._alive_since if self._engine.clock.monotonic() < self._engine.lease_guard else None

    def register(self) -> None:
        """Announce this instance; its writes are fenced by its row, and refused until it has one."""
        engine = self._engine
        process = own_identity()
        now_ms = engine.db.now_ms()
        row = ExecutorRow(
            instance_id=engine.instance_id,
            executor_id=engine.executor_id,
            application_version=engine.application_version,
            application_id=engine.application_id,
            hostname=process.hostname,
            boot_id=process.boot_id,
            pid_namespace=process.pid_namespace,
            pid=process.pid,
            process_started_at=process.started_at,
            heartbeat=0,
            lease_ms=int(self._lease_s * 1000),
            started_at=now_ms,
            heartbeat_at=now_ms,
        )
        began = engine.clock.monotonic()
        engine.db.fence(engine.instance_id)
        engine.db.change(engine.db.executors.register, row)
        self._alive_since = engine.clock.monotonic()
        self._extend(began)

    def renew_once(self) -> None:
        """Send a sign of life; an instance that was declared dead parks its runs and starts anew."""
        engine = self._engine
        began = engine.clock.monotonic()
        if engine.db.change(engine.db.executors.heartbeat, engine.instance_id, engine.db.now_ms()):
            if self.alive_since is None:  # there was a gap: an outage, or we were paused
                self._alive_since = engine.clock.monotonic()
            self._extend(began)
            self._beats += 1
            if self._beats % RENEWALS_PER_LEASE == 0:  # clocks drift slowly
                engine.db.synchronize_clock()
            return
        # The new identity first: whatever starts from now on waits for its row, and is not among the lost.
        engine.instance_id = new_instance_id()
        runs = engine.runs.all()
        logger.warning(
            "This executor was declared dead (it was paused, or cut off from the database for longer than its lease "
            "of %s s). Its %s running workflows were taken over; it registers anew.",
            self._lease_s,
            len(runs),
        )
        for run in runs:
            run.lose()
        self.register()

    def _extend(self, began: float) -> None:
        # Counted from before the write, because the lease is counted from its commit.
        self._engine.lease_guard = began + self._lease_s * GUARD_SHARE
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
        between claim and start, or its run was interrupted; it goes back to its queue if it is still so a round later.
        """
        engine = self._engine
        for run in engine.runs.all():
            if run.loop is not None and run.loop.is_closed():
                engine.runs.remove(run)  # nobody will ever go on with it
        runs: dict[str, Run] = {run.workflow_id: run for run in engine.runs.all()}
        owned = engine.db.read(engine.db.workflows.running, engine.instance_id)
        for workflow_id, run in runs.items():
            if owned.get(workflow_id) != run.run_token and not run.finished.is_set:
                self._stop(run)
        missing = self._unaccounted_of(owned)
        lost = [workflow_id for workflow_id, token in missing.items() if self._unaccounted.get(workflow_id) == token]
        self._unaccounted = missing
        self.release(lost)

    def release(self, workflow_ids: Sequence[str] | None = None) -> list[str]:
        """Enqueue what we own and do not run, or those of it that are named; returns the ids."""
        engine = self._engine
        if workflow_ids is not None and not workflow_ids:
            return []
        idle = self._unaccounted_of(engine.db.read(engine.db.workflows.running, engine.instance_id))
        if workflow_ids is not None:
            idle = {workflow_id: idle[workflow_id] for workflow_id in workflow_ids if workflow_id in idle}
        if not idle:
            return []
        released = engine.db.change(engine.db.workflows.reclaim_own, engine.instance_id, idle, engine.db.now_ms())
        if released:
            logger.warning(
                "%s workflows belong to this executor and do not run; they are enqueued again", len(released)
            )
            engine.dispatch()
        return released

    def _unaccounted_of(self, owned: dict[str, str]) -> dict[str, str]:
        is_accounted = self._engine.runs.is_accounted
        return {workflow_id: token for workflow_id, token in owned.items() if not is_accounted(workflow_id, token)}

    def _stop(self, run: Run) -> None:
        row = self._engine.db.read(self._engine.db.workflows.get, run.workflow_id)
        if row is not None and row.run_token == run.run_token:
            if row.status == "CANCELLED":
                run.cancel()
            return  # it has just ended, or just begun
        run.lose()
