"""A writer that keeps what it is given in memory, and fails or waits where a test says so."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dbos._sysdb.connection import Failure
from dbos._sysdb.operations import Call, Operation, call

PATIENCE_S = 10.0  # a bound for what never takes long, on a machine that is busy


class Lost(Exception):
    """The connection was lost."""


class Busy(Exception):
    """A deadlock, or the like."""


class Blocked(Exception):
    """Somebody holds the row."""


class Poison(Exception):
    """This can never be written."""


FAILURES: dict[type[BaseException], Failure] = {
    Lost: Failure.CONNECTION_LOST,
    Busy: Failure.CONTENTION,
    Blocked: Failure.BLOCKED,
}


def operation(name: str) -> Call:
    """An operation that is answered with ``done <name>``."""
    return call(len, name)


def eventually(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Wait for another thread's doing."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at, f"{what} did not come about"
        time.sleep(0.001)


class MemoryWriter:
    """``written`` counts how often each operation was committed, ``batches`` lists the transactions that succeeded."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.leaders: list[str] = []
        self.written: Counter[str] = Counter()
        self.before: Callable[[list[str]], None] = lambda names: None
        self.after: Callable[[list[str]], None] = lambda names: None
        self.on_idle: Callable[[], None] = lambda: None
        self.on_reset: Callable[[], None] = lambda: None
        self.idles = 0
        self.resets = 0
        self.overlaps = 0
        self.is_closed = False
        self._in_use = threading.Lock()

    @contextmanager
    def _used(self) -> Iterator[None]:
        if not self._in_use.acquire(blocking=False):
            self.overlaps += 1
            raise AssertionError("two leaders at once")
        try:
            yield
        finally:
            self._in_use.release()

    def write(self, operations: Sequence[Operation]) -> list[Any]:
        with self._used():
            names = [each.arguments[0] for each in operations if isinstance(each, Call)]
            self.before(names)
            self.batches.append(names)
            self.leaders.append(threading.current_thread().name)
            self.written.update(names)
            self.after(names)
            return [f"done {name}" for name in names]

    def reset(self) -> None:
        with self._used():
            self.resets += 1
            self.on_reset()

    def classify(self, error: BaseException) -> Failure:
        return FAILURES.get(type(error), Failure.REFUSED)

    def idle(self) -> None:
        with self._used():
            self.idles += 1
            self.on_idle()

    def close(self) -> None:
        self.is_closed = True


class Gate:
    """Holds a thread at a place until the test lets it pass."""

    def __init__(self) -> None:
        self.is_reached = threading.Event()
        self._is_open = threading.Event()

    def pass_through(self, *_: object) -> None:
        self.is_reached.set()
        assert self._is_open.wait(PATIENCE_S)

    def await_arrival(self) -> None:
        assert self.is_reached.wait(PATIENCE_S)

    def open(self) -> None:
        self._is_open.set()
