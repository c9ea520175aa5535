"""Cancels runs whose deadline has passed: one heap and one thread for all of them."""

from __future__ import annotations

import heapq
import itertools
import threading

from dbos._engine.engine import Engine
from dbos._engine.execution import note_cancelled
from dbos._engine.flow import drive
from dbos._engine.run import Run
from dbos._services.service import Service
from dbos._sysdb.operations import call

__all__ = ["Deadlines"]

MIN_CLEANING = 1024  # so many entries are not worth looking through for runs that have ended
LOCKED_PAUSE_MS = 1000  # between attempts at a row that somebody holds


class Deadlines(Service):
    """Watches the deadlines of the runs in this process."""

    name = "deadlines"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.clock)
        self._engine = engine
        self._heap: list[tuple[int, int, Run]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._clean_at = MIN_CLEANING

    def watch(self, run: Run) -> None:
        """Cancel ``run`` when its deadline passes, unless it has ended by then."""
        assert run.deadline_ms is not None
        if self._push(run, run.deadline_ms):
            self.wake()

    def _push(self, run: Run, at_ms: int) -> bool:
        """Have a run looked at when it is time; returns whether none is to be looked at before it."""
        with self._lock:
            if len(self._heap) >= self._clean_at:
                self._clean()
            heapq.heappush(self._heap, (at_ms, next(self._order), run))
            return self._heap[0][2] is run

    def _clean(self) -> None:
        # Runs end long before their deadlines, as a rule, and would be held until then.
        self._heap = [entry for entry in self._heap if not entry[2].finished.is_set]
        heapq.heapify(self._heap)
        self._clean_at = max(MIN_CLEANING, 2 * len(self._heap))

    def work_once(self) -> float | None:
        """Cancel what is overdue; the next round is due with the next deadline."""
        next_ms = self.cancel_overdue_once()
        return None if next_ms is None else max(0.0, (next_ms - self._engine.db.now_ms()) / 1000)

    def cancel_overdue_once(self) -> int | None:
        """Cancel the runs whose deadline has passed; returns the next deadline, in milliseconds since the epoch."""
        now_ms = self._engine.db.now_ms()
        overdue: list[Run] = []
        with self._lock:
            while self._heap and (self._heap[0][2].finished.is_set or self._heap[0][0] <= now_ms):
                run = heapq.heappop(self._heap)[2]
                if not run.finished.is_set:
                    overdue.append(run)
        try:
            self._cancel(overdue, now_ms)
        except Exception:
            for run in overdue:
                self.watch(run)  # it stays overdue: the next round tries again
            raise
        with self._lock:
            return self._heap[0][0] if self._heap else None

    def _cancel(self, overdue: list[Run], now_ms: int) -> None:
        if not overdue:
            return
        db, ids = self._engine.db, [run.workflow_id for run in overdue]
        places, cancelled = db.commit(call(db.workflows.places, ids), call(db.workflows.cancel_overdue, ids, now_ms))
        drive(self._engine, note_cancelled(self._engine, cancelled, places))
        for run in overdue:
            if run.workflow_id not in cancelled and not run.finished.is_set and not run.is_interrupted:
                self._push(run, now_ms + LOCKED_PAUSE_MS)  # somebody has locked its row, or its outcome is on its way
