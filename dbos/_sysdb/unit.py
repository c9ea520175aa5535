"""A unit of work on its way to the database: operations that commit together, and the one who waits for them.

A thread waits on a lock, a coroutine on a future of its loop; the committer settles both the same way.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from dbos._sysdb.operations import Operation

__all__ = ["FutureUnit", "ThreadUnit", "Unit", "wake"]


class Unit:
    """Operations that commit together and the state of their commit. Settled exactly once."""

    __slots__ = ("error", "is_settled", "operations", "results", "size")

    #: Whether a thread waits for it that can be asked to lead.
    can_lead = False
    #: Whether it is a turn without commits, see ``Committer.exclusive``.
    is_exclusive = False

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = operations
        self.size = 0
        for operation in operations:
            self.size += operation.size
        self.results: Sequence[Any] = ()
        self.error: BaseException | None = None
        self.is_settled = False

    def settle(self, results: Sequence[Any] = (), error: BaseException | None = None) -> None:
        """Keep the outcome; nobody is woken yet. A second outcome changes nothing: the first may be in use."""
        if self.is_settled:
            return
        self.results, self.error = results, error
        self.is_settled = True


class ThreadUnit(Unit):
    """A unit whose thread waits for it, and may be asked to lead the next batch."""

    __slots__ = ("_lock", "can_lead", "carried", "is_exclusive")

    def __init__(self, operations: Sequence[Operation], *, is_exclusive: bool = False) -> None:
        super().__init__(operations)
        self.is_exclusive = is_exclusive
        self.can_lead = True
        self.carried: Sequence[Unit] = ()  # the batch it led, for waking those of it who still wait if interrupted
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self) -> None:
        """Block until woken: settled, or promoted to lead."""
        self._lock.acquire()

    def wake(self) -> None:
        """Let the waiting thread go on; waking it twice is harmless."""
        try:
            self._lock.release()
        except RuntimeError:
            return  # it was awake already


class FutureUnit(Unit):
    """A unit that a coroutine awaits; it is led by the writer thread, so that no event loop blocks."""

    __slots__ = ("future", "loop")

    def __init__(self, operations: Sequence[Operation], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(operations)
        self.loop = loop
        self.future: asyncio.Future[Sequence[Any]] = loop.create_future()

    def resolve(self) -> None:
        """Answer the awaiting coroutine. Runs on its loop; it may have been cancelled meanwhile."""
        if self.future.done() or not self.is_settled:
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.results)


def wake(units: Sequence[Unit]) -> None:
    """Wake everybody who waits for these units: each thread, and each loop once for all its futures."""
    loops: dict[asyncio.AbstractEventLoop, list[FutureUnit]] = {}
    for unit in units:
        if isinstance(unit, ThreadUnit):
            unit.wake()
        elif isinstance(unit, FutureUnit):
            loops.setdefault(unit.loop, []).append(unit)
    for loop, futures in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, futures)
        except RuntimeError:
            continue  # that loop was closed: nobody awaits these futures any more


def _resolve(units: Sequence[FutureUnit]) -> None:
    for unit in units:
        unit.resolve()
