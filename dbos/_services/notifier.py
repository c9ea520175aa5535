"""The safety net under all waits: one query for all waiters together, now and then and whenever others committed."""

from __future__ import annotations

from dbos._engine.engine import Engine
from dbos._services.service import Service
from dbos._sysdb.wakeups import WORKFLOW

__all__ = ["Notifier"]

INTERVAL_S = 1.0  # how late a waiter learns what no wake-up told
MAX_IDS = 5000  # asked for in one query


class Notifier(Service):
    """Wakes those who wait for workflows that have ended elsewhere."""

    name = "notifier"

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def work_once(self) -> float | None:
        """Check, and come back soon."""
        self.check_once()
        return INTERVAL_S

    def check_once(self) -> None:
        """Wake whoever waits for a workflow that has an outcome."""
        db = self._engine.db
        prefix = WORKFLOW + ":"
        ids = [key.removeprefix(prefix) for key in list(db.wakeups.keys()) if key.startswith(prefix)]
        for begin in range(0, len(ids), MAX_IDS):
            finished = db.read(db.workflows.settled, ids[begin : begin + MAX_IDS])
            db.wakeups.fire(prefix + workflow_id for workflow_id in finished)
