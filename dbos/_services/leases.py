"""Being alive, and being seen to be: the lease of this executor instance, and the runs it holds under it.

What others have left behind is the business of :mod:`dbos._services.recovery`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from dbos._clock import Look
from dbos._engine.engine import Engine
from dbos._engine.run import Run
from dbos._error import DatabaseGoneError
from dbos._ids import new_instance_id
from dbos._services.process import own_identity
from dbos._services.service import Service
from dbos._sysdb.operations import Call
from dbos._sysdb.rows import ExecutorRow
from dbos._sysdb.stores.executors import queues_as_text
from dbos._sysdb.wakeups import Signal

__all__ = ["Leases"]

logger = logging.getLogger("dbos.leases")

RENEWALS_PER_LEASE = 3
GUARD_SHARE = 2 / 3  # after so much of a lease without renewal, no new step begins
GAP_SHARE = 1 / 2  # and after so much, others may have been cut off for longer than we were: see Leases.judges_from
REUNION_S = 3.0  # how long others take, after an outage, until they have tried again to connect


class Leases(Service):
    """Renews this instance's lease, and keeps what runs here and what it owns in step."""

    name = "leases"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.clock)
        self._engine = engine
        self._lease_s = engine.settings.lease_s
        self._beats = 0
        self._unaccounted: dict[str, str] = {}
        self._alive_since = float("inf")
        self._guard = float("inf")  # monotonic time from which we cannot show that we are alive
        self._renewed_at = float("inf")
        self._last_instance: str | None = None  # the one that we are known to have been registered as
        self.judges_from = float("-inf")  # monotonic time before which nobody is declared dead for being silent

    def work_once(self) -> float | None:
        """Renew, then look after our own runs."""
        try:
            self.renew_once()
        except DatabaseGoneError as error:
            self._engine.fail(error)
            return None
        self.reconcile_once()
        return Look(self._lease_s / RENEWALS_PER_LEASE)

    # -- our own lease -----------------------------------------------------------------------------------------------

    @property
    def alive_since(self) -> float | None:
        """Since when, in monotonic time, our heartbeats have got through without a gap; None if they do not."""
        return self._alive_since if self._engine.clock.monotonic() < self._guard else None

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
            application_name=engine.application_name,
            hostname=process.hostname,
            boot_id=process.boot_id,
            pid_namespace=process.pid_namespace,
            pid=process.pid,
            process_started_at=process.started_at,
            heartbeat=0,
            lease_ms=int(self._lease_s * 1000),
            started_at=now_ms,
            heartbeat_at=now_ms,
            # Whoever asked this process to drain meant the process, not one row of it.
            draining_since=now_ms if engine.is_draining else None,
            queues=queues_as_text(engine.served_queues),
        )
        began = engine.clock.monotonic()
        engine.db.fence(engine.instance_id)
        engine.is_draining = engine.db.change(engine.db.executors.register, row, self._last_instance)
        self._last_instance = engine.instance_id
        self._alive_since = self._renewed_at = engine.clock.monotonic()
        self._extend(began)

    def renew_once(self) -> None:
        """Send a sign of life; an instance that was declared dead parks its runs and starts anew."""
        engine = self._engine
        began = engine.clock.monotonic()
        beat = Call(engine.db.executors.heartbeat, (engine.instance_id, engine.db.now_ms()), is_single=True)
        if engine.db.commit(beat)[0]:
            now = engine.clock.monotonic()
            if now - self._renewed_at > self._lease_s * GAP_SHARE:  # there was a gap: an outage, or we were paused
                self._alive_since, self.judges_from = now, now + REUNION_S
            self._renewed_at, self._last_instance = now, engine.instance_id
            self._extend(began)
            self._beats += 1
            if self._beats % RENEWALS_PER_LEASE == 0:  # clocks drift slowly
                engine.db.synchronize_clock()
            return
        # The new identity first: whatever starts from now on waits for its row, and is not among the lost.
        engine.instance_id = new_instance_id()
        runs = engine.runs.all()
        engine.alert(
            "executor_declared_dead",
            "This executor was declared dead (it was paused, or cut off from the database for longer than its lease "
            f"of {self._lease_s} s). Its {len(runs)} running workflows were taken over; it registers anew.",
            {"lease_s": self._lease_s, "workflows": len(runs)},
        )
        for run in runs:
            run.lose()
        self.register()
        engine.dispatch(None)  # without a row it could claim nothing

    def _extend(self, began: float) -> None:
        # Counted from before the write, because the lease is counted from its commit.
        self._guard = began + self._lease_s * GUARD_SHARE
        # A jump of the clock is no time in which somebody could have taken over.
        self._engine.lease_guard = math.inf if self._engine.clock.jumps else self._guard
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
            engine.given_back()
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
