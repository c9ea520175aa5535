"""Waiting for something to happen in the database without asking it again and again.

A waiter registers a :class:`Signal` under a topic *before* it looks; whoever commits a change fires the topic after the
commit. In one process that is direct; other processes are heard through the dialect's listener. What is missed all the
same (a lost notification) is found by a service that checks all waiters together, once a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

__all__ = ["QUEUE", "WORKFLOW", "Signal", "Wakeups"]

WORKFLOW = "workflow"  # something about a workflow's outcome; one waits for a single id
QUEUE = "queue"  # something can be claimed


class Signal:
    """Set once, by anybody; waited for by a thread, or by a callback that a coroutine's future hangs on.

    Built on a bare lock: an interrupt of the main thread within ``threading.Event.wait`` can leave the event's own lock
    held, and then whoever sets it waits for ever.
    """

    __slots__ = ("_callbacks", "_gate", "_is_set", "_lock")

    def __init__(self) -> None:
        self._is_set = False
        self._gate = threading.Lock()  # held until set; then whoever passes leaves it open for the next
        self._gate.acquire()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def is_set(self) -> bool:
        """Whether it was set."""
        return self._is_set

    def set(self) -> None:
        """Wake whoever waits, now or later."""
        with self._lock:
            if not self._is_set:
                self._is_set = True
                self._gate.release()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def wait(self, timeout_s: float | None) -> bool:
        """Block until set or ``timeout_s`` have passed; returns whether it was set."""
        if self._is_set:
            return True
        timeout_s = -1 if timeout_s is None else min(max(timeout_s, 0), threading.TIMEOUT_MAX)
        if self._gate.acquire(timeout=timeout_s):
            self._gate.release()
        return self._is_set

    def call(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once set, at once if it is already; in the thread that sets it."""
        with self._lock:
            if not self._is_set:
                self._callbacks.append(callback)
                return
        callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Withdraw a callback."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)


class Wakeups:
    """Who waits for what in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, set[Signal]] = {}

    @contextmanager
    def waiting(self, key: str, signal: Signal) -> Iterator[None]:
        """Have ``signal`` set when ``key`` fires, for the duration of the block."""
        with self._lock:
            self._waiting.setdefault(key, set()).add(signal)
        try:
            yield
        finally:
            with self._lock:
                signals = self._waiting.get(key)
                if signals is not None:
                    signals.discard(signal)
                    if not signals:
                        del self._waiting[key]

    def fire(self, keys: Iterable[str]) -> None:
        """Set the signals that wait under these keys."""
        with self._lock:
            signals = [signal for key in keys for signal in self._waiting.get(key, ())]
        for signal in signals:
            signal.set()

    def keys(self) -> list[str]:
        """What is being waited for."""
        with self._lock:
            return list(self._waiting)
