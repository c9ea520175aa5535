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

__all__ = ["Deadlines"]

MIN_CLEANING = 1024  # so many entries are not worth looking through for runs that have ended


class Deadlines(Service):
    """Watches the deadlines of the runs in this process."""

    name = "deadlines"

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._heap: list[tuple[int, int, Run]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._clean_at = MIN_CLEANING

    def watch(self, run: Run) -> None:
        """Cancel ``run`` when its deadline passes, unless it has ended by then."""
        assert run.deadline_ms is not None
        with self._lock:
            if len(self._heap) >= self._clean_at:
                self._clean()
            heapq.heappush(self._heap, (run.deadline_ms, next(self._order), run))
            is_first = self._heap[0][2] is run
        if is_first:
            self.wake()

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
            next_ms = self._heap[0][0] if self._heap else None
        if overdue:
            db = self._engine.db
            ids = [run.workflow_id for run in overdue]
            try:
                cancelled = db.change(db.workflows.cancel_overdue, ids, now_ms)
                drive(self._engine, note_cancelled(self._engine, cancelled))
            except Exception:
                for run in overdue:
                    self.watch(run)  # it stays overdue: the next round tries again
                raise
        return next_ms
