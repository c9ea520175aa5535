"""Waiting for something to happen in the database without asking it again and again.

A waiter registers a :class:`Signal` under a topic *before* it looks; whoever commits a change fires the topic after the
commit. In one process that is direct; other processes are heard through the dialect's listener. What is missed all the
same (a lost notification) is found by a service that checks all waiters together, once a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

__all__ = [
    "DATA",
    "EVENTS",
    "MESSAGES",
    "OUTCOMES",
    "QUEUE",
    "SCHEDULE",
    "STREAMS",
    "WORKFLOW",
    "Key",
    "Signal",
    "Wakeups",
    "event_key",
    "message_key",
    "stream_key",
    "workflow_key",
]

# Topics, of which other processes are told.
WORKFLOW = "workflow"  # workflows have reached an outcome
DATA = "data"  # a message, an event or a value of a stream was written
SCHEDULE = "schedule"  # schedules were created, changed or deleted
QUEUE = "queue"  # something can be claimed, or may be soon; followed by the queue's name, if it is one

# What one waits for in this process: the kind of thing, and what identifies it.
Key = tuple[str, ...]
OUTCOMES, MESSAGES, EVENTS, STREAMS = "outcome", "message", "event", "stream"


def workflow_key(workflow_id: str) -> Key:
    """What a waiter for a workflow's outcome waits under."""
    return (OUTCOMES, workflow_id)


def message_key(destination_id: str, topic: str) -> Key:
    """What a waiter for a message waits under."""
    return (MESSAGES, destination_id, topic)


def event_key(workflow_id: str, key: str) -> Key:
    """What a waiter for the first value of an event waits under."""
    return (EVENTS, workflow_id, key)


def stream_key(workflow_id: str, key: str, offset: int) -> Key:
    """What a waiter for the value at an offset of a stream waits under."""
    return (STREAMS, workflow_id, key, str(offset))


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


class _Waiting:
    """What :meth:`Wakeups.waiting` returns; a generator would be three objects more for each who waits."""

    __slots__ = ("_key", "_signal", "_wakeups")

    def __init__(self, wakeups: Wakeups, key: Key, signal: Signal) -> None:
        self._wakeups, self._key, self._signal = wakeups, key, signal

    def __enter__(self) -> None:
        self._wakeups.add(self._key, self._signal)

    def __exit__(self, *_: object) -> None:
        self._wakeups.remove(self._key, self._signal)


class Wakeups:
    """Who waits for what in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Key, set[Signal]] = {}

    def waiting(self, key: Key, signal: Signal) -> AbstractContextManager[object]:
        """Have ``signal`` set when ``key`` fires, for the duration of the block."""
        return _Waiting(self, key, signal)

    def add(self, key: Key, signal: Signal) -> None:
        """Have ``signal`` set when ``key`` fires, until it is removed."""
        with self._lock:
            self._waiting.setdefault(key, set()).add(signal)

    def remove(self, key: Key, signal: Signal) -> None:
        """What was added is not waited for any more."""
        with self._lock:
            signals = self._waiting.get(key)
            if signals is not None:
                signals.discard(signal)
                if not signals:
                    del self._waiting[key]

    def fire(self, keys: Iterable[Key]) -> None:
        """Set the signals that wait under these keys."""
        with self._lock:
            signals = [signal for key in keys for signal in self._waiting.get(key, ())]
        for signal in signals:
            signal.set()

    def keys(self) -> list[Key]:
        """What is being waited for."""
        with self._lock:
            return list(self._waiting)
