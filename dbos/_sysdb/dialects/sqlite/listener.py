"""Noticing what other processes commit to the file."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from dbos._sysdb.wakeups import Signal

from .inotify import FileWatch
from .writer import FOREIGN_COMMIT_POLL_S, SQLiteWriter

__all__ = ["SQLiteListener"]

HURRY_S = 0.2  # so long after a write to the log its commit is looked for; what takes longer the safety nets find
FIRST_LOOK_S = 0.002  # and so soon first; each look after it waits twice as long, up to FOREIGN_COMMIT_POLL_S
UNTOLD_POLL_S = 0.04  # how often the log is looked at where nobody tells of writes; every look wakes a thread

logger = logging.getLogger("dbos.sqlite")


class SQLiteListener:
    """Notices other processes' commits: is told when the log is written to, then looks at ``data_version``.

    A commit can be seen only some time after its pages were written, when they are on the disk; so a write is followed
    by looks for a while. The writer itself looks as well, between batches.
    """

    def __init__(self, writer: SQLiteWriter, on_wakeup: Callable[[str | None], None], poll: Callable[[], None]) -> None:
        self._writer = writer
        self._on_wakeup = on_wakeup
        self._poll = poll
        self._stopping = Signal()
        self._watch: FileWatch | None = None
        self._stamp: object = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._watch = self._watch_log()
        self._thread = threading.Thread(target=self._run, name="dbos-listener", daemon=True)
        self._thread.start()

    def _watch_log(self) -> FileWatch | None:
        try:
            return FileWatch(self._writer.log_path)
        except OSError as error:
            logger.debug("looking for other processes' commits every %g s: %s", UNTOLD_POLL_S, error)
            return None

    def _run(self) -> None:
        heard = 0
        delay_s = FIRST_LOOK_S
        hurry_until = 0.0
        while not self._stopping.is_set:
            is_hurried = time.monotonic() < hurry_until
            if is_hurried:
                self._stopping.wait(delay_s)
                delay_s = min(delay_s * 2, FOREIGN_COMMIT_POLL_S)
            else:
                self._wait_for_write()
                delay_s = FIRST_LOOK_S
            if self._is_written():
                hurry_until = time.monotonic() + HURRY_S
            elif not is_hurried:
                continue
            looked_at = time.monotonic()
            self._writer.hurry()
            self._poll()
            if self._writer.version_checked_at < looked_at:
                hurry_until = time.monotonic() + HURRY_S  # somebody leads, and it could not be looked at: come again
            if self._writer.foreign_commits != heard:
                heard = self._writer.foreign_commits
                try:
                    self._on_wakeup(None)
                except Exception:  # protects the listener's loop
                    logger.exception("a wake-up failed")

    def _wait_for_write(self) -> None:
        if self._watch is None:
            self._stopping.wait(UNTOLD_POLL_S)
        else:
            self._watch.wait()

    def _is_written(self) -> bool:
        if self._watch is not None:
            is_written = self._watch.is_written()
            if self._watch.is_ended and not self._stopping.is_set:
                # The last connection was closed, and the log with it.
                self._watch.close()
                self._watch = self._watch_log()
            return is_written
        stamp, self._stamp = self._stamp, self._writer.log_stamp()
        return stamp != self._stamp

    def publish(self, topic: str) -> None:
        """The commit itself is what others notice."""

    def stop(self) -> None:
        self._stopping.set()
        if self._watch is not None:
            self._watch.end()
        if self._thread is not None:
            self._thread.join()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
