"""The threads that run workflows in the background, and how many of them may run at once.

A thread that waits durably (for a child, for a sleep) does not count, so parents that wait for children never starve
them. A start beyond the cap waits here, in order; it is durable already, so a crash loses nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

__all__ = ["Workers"]

UNLIMITED_THREADS = 1_000_000  # the cap is ours: the pool only lends threads, and reuses idle ones


class Workers:
    """Runs functions in threads, at most ``maximum`` of them awake at a time."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._pool = ThreadPoolExecutor(UNLIMITED_THREADS, thread_name_prefix="dbos-executor")
        self._lock = threading.Lock()
        self._awake = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_worker = threading.local()
        self._is_closed = False
        self.on_free: Callable[[], None] = lambda: None

    @property
    def free(self) -> int:
        """How many more functions could begin at once."""
        return max(0, self._maximum - self._awake - len(self._waiting))

    def submit(self, func: Callable[[], None]) -> None:
        """Run ``func`` in a thread, as soon as there is room; it must not raise."""
        with self._lock:
            if self._is_closed:
                return  # what it would have run is durable, and recovered elsewhere
            if self._awake >= self._maximum:
                self._waiting.append(func)
                return
            self._awake += 1
            self._pool.submit(self._work, func)

    def _work(self, func: Callable[[], None]) -> None:
        self._is_worker.value = True
        try:
            func()
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            if self._waiting and self._awake <= self._maximum and not self._is_closed:
                self._pool.submit(self._work, self._waiting.popleft())
                return
            was_full = self._awake >= self._maximum
            self._awake -= 1
        if was_full:
            self.on_free()

    @contextmanager
    def stepping_aside(self) -> Iterator[None]:
        """Let another function have this thread's place while it waits. It does not wait for a place afterwards."""
        if not getattr(self._is_worker, "value", False):
            yield
            return
        self._leave()
        try:
            yield
        finally:
            with self._lock:
                self._awake += 1

    def close(self) -> None:
        """Begin nothing more; what is running goes on."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
