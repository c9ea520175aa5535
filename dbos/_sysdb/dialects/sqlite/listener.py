"""Noticing what other processes commit to the file."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from dbos._sysdb.wakeups import Signal

from .writer import FOREIGN_COMMIT_POLL_S, SQLiteWriter

__all__ = ["SQLiteListener"]

IDLE_AFTER_S = 1.0  # without a commit of anybody, for so long, there is less hurry
IDLE_POLL_S = 0.04  # every look wakes a thread, and half of what an idle process costs is this

logger = logging.getLogger("dbos.sqlite")


class SQLiteListener:
    """Notices other processes' commits: looks at the log every 20 or 40 ms, and at ``data_version`` if it grew.

    The writer itself looks there between batches as well.
    """

    def __init__(self, writer: SQLiteWriter, on_wakeup: Callable[[str | None], None], poll: Callable[[], None]) -> None:
        self._writer = writer
        self._on_wakeup = on_wakeup
        self._poll = poll
        self._stopping = Signal()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="dbos-listener", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        heard = 0
        seen: object = None
        idle_from = 0.0
        while not self._stopping.wait(IDLE_POLL_S if time.monotonic() > idle_from else FOREIGN_COMMIT_POLL_S):
            # Whoever commits writes to the log, so most looks need not touch the connection.
            looked_at = time.monotonic()
            log = self._writer.log_stamp()
            if log == seen:
                continue
            seen, idle_from = log, time.monotonic() + IDLE_AFTER_S
            self._poll()
            if self._writer.version_checked_at < looked_at:
                seen = None  # somebody leads, and may have looked before that commit: come again
            if self._writer.foreign_commits != heard:
                heard = self._writer.foreign_commits
                try:
                    self._on_wakeup(None)
                except Exception:  # protects the listener's loop
                    logger.exception("a wake-up failed")

    def publish(self, topic: str) -> None:
        """The commit itself is what others notice."""

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
