"""Noticing what other processes commit to the file."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from .writer import FOREIGN_COMMIT_POLL_S, SQLiteWriter

__all__ = ["SQLiteListener"]

logger = logging.getLogger("dbos.sqlite")


class SQLiteListener:
    """Notices other processes' commits: the writer looks at ``data_version`` between batches, every 20 ms."""

    def __init__(self, writer: SQLiteWriter, on_wakeup: Callable[[str | None], None], poll: Callable[[], None]) -> None:
        self._writer = writer
        self._on_wakeup = on_wakeup
        self._poll = poll
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="dbos-listener", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        heard = 0
        seen: object = None
        while not self._stopping.wait(FOREIGN_COMMIT_POLL_S):
            # Whoever commits writes to the log, so most looks need not touch the connection.
            log = self._writer.log_stamp()
            if log == seen:
                continue
            seen = log
            self._poll()
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
