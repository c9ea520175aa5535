"""Time as a value that is passed in: the only module that reads the machine's clocks.

Wall time (``now_ms``, ``now_s``) is for what is stored or compared across processes; ``monotonic`` is for how long
something took here, and never steps back. Whoever waits until a time has come waits by the clock as well, so that a
clock can let an hour pass in a millisecond: a :class:`VirtualClock` is moved by hand, and real waits stay real; the one
of :mod:`dbos.testing` jumps over the time in which nothing happens, for which it is told who acts.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dbos._engine.engine import Engine

__all__ = ["Clock", "Look", "SystemClock", "VirtualClock", "Waitable", "current_clock", "install_clock"]

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

MAX_REST_S = 3600.0  # a timer stands still while a computer is suspended, what it waits for does not
MAX_PAUSE_S = 60.0  # likewise, where somebody waits for an answer

_NOTHING = nullcontext()


class Waitable(Protocol):
    """What a clock waits for, besides the time: a :class:`~dbos._sysdb.wakeups.Signal`."""

    @property
    def is_set(self) -> bool:
        """Whether it was set."""
        ...

    def wait(self, timeout_s: float | None) -> bool:
        """Block until it is set or ``timeout_s`` have passed."""
        ...

    def call(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once it is set."""
        ...

    def forget(self, callback: Callable[[], None]) -> None:
        """Withdraw a callback."""
        ...


class Look(float):
    """So many seconds until a service looks again, although nothing is known to be due before ``due_s``.

    Such looks are safety nets. A clock that jumps does not take each of them for a reason to stop.
    """

    due_s: float | None

    def __new__(cls, look_s: float, due_s: float | None = None) -> Look:
        """Look after ``look_s`` seconds, or after ``due_s``, if that is sooner; None for nothing that is due."""
        look = super().__new__(cls, look_s if due_s is None else min(look_s, due_s))
        look.due_s = due_s
        return look


class Clock(Protocol):
    """What the library asks of a clock."""

    @property
    def jumps(self) -> bool:
        """Whether it leaps over the time in which nobody acts.

        Then it must know of all who act, and it is the only clock there is: databases are not asked for theirs.
        """
        ...

    @property
    def longest_pause_s(self) -> float:
        """For how long at most to pause at once, before looking at the wall time again."""
        ...

    def now_ms(self) -> int:
        """Return the wall time in whole milliseconds since the epoch."""
        ...

    def now_s(self) -> float:
        """Return the wall time in seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some fixed instant; it never goes back."""
        ...

    def wait(self, signal: Waitable, timeout_s: float | None) -> bool:
        """Block until ``signal`` is set or ``timeout_s`` have passed; returns whether it was set."""
        ...

    async def wait_async(self, signal: Waitable, timeout_s: float | None) -> bool:
        """The same for a coroutine; others of its loop have a turn, whatever happens."""
        ...

    def rest(self, signal: Waitable, delay_s: float | None) -> None:
        """Block a service until ``signal`` is set or it is time for its next round; None for never."""
        ...

    def acting(self, *, apart: bool = False) -> AbstractContextManager[object]:
        """A block in which somebody acts who is not to be jumped over; it counts from now on, and until it is left.

        Whoever enters it waits meanwhile for what is in it, unless that is ``apart``: in the background.
        """
        ...

    def attend(self, engine: Engine) -> None:
        """Learn of an engine that has just been opened."""
        ...


class _RealWaits:
    """Waiting as it is outside of tests."""

    jumps = False
    longest_pause_s = MAX_PAUSE_S

    def wait(self, signal: Waitable, timeout_s: float | None) -> bool:
        """Block until ``signal`` is set or ``timeout_s`` have passed; returns whether it was set."""
        return signal.wait(timeout_s)

    async def wait_async(self, signal: Waitable, timeout_s: float | None) -> bool:
        """The same for a coroutine."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def finish() -> None:
            if not future.done():
                future.set_result(None)

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(finish)
            except RuntimeError:
                return  # the loop was closed: nobody waits on it any more

        signal.call(wake)
        try:
            if timeout_s is None:
                await future
            else:
                async with asyncio.timeout(timeout_s):
                    await future
        except TimeoutError:
            return signal.is_set
        finally:
            signal.forget(wake)
        return True

    def rest(self, signal: Waitable, delay_s: float | None) -> None:
        """Block until ``signal`` is set or ``delay_s`` have passed."""
        signal.wait(MAX_REST_S if delay_s is None else min(delay_s, MAX_REST_S))

    def acting(self, *, apart: bool = False) -> AbstractContextManager[object]:
        """Nothing: real time passes whoever acts."""
        return _NOTHING

    def attend(self, engine: Engine) -> None:
        """Nothing, likewise."""


class SystemClock(_RealWaits):
    """The clocks of this machine."""

    monotonic = staticmethod(time.monotonic)

    def now_ms(self) -> int:
        """Return the wall time in whole milliseconds since the epoch."""
        return time.time_ns() // NS_PER_MS

    def now_s(self) -> float:
        """Return the wall time in seconds since the epoch."""
        return time.time()


class VirtualClock(_RealWaits):
    """A clock for tests: it stands still until told to move. Safe to share between threads."""

    def __init__(self, start_s: float = 1_767_225_600.0) -> None:
        """Start at ``start_s`` seconds since the epoch; by default 2026-01-01T00:00:00Z."""
        self._lock = threading.Lock()
        # Whole nanoseconds: repeated float additions would drift.
        self._wall_ns = round(start_s * NS_PER_S)
        self._monotonic_ns = 0

    def now_ms(self) -> int:
        """Return the virtual wall time in whole milliseconds since the epoch."""
        return self._wall_ns // NS_PER_MS

    def now_s(self) -> float:
        """Return the virtual wall time in seconds since the epoch."""
        return self._wall_ns / NS_PER_S

    def monotonic(self) -> float:
        """Return the virtual seconds this clock was advanced by."""
        return self._monotonic_ns / NS_PER_S

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, on the wall clock and the monotonic one.

        Raises:
            ValueError: ``seconds`` is negative; to turn the wall clock back use :meth:`step_wall`.
        """
        if seconds < 0:
            raise ValueError("Time does not run backwards; use step_wall() to turn the wall clock back.")
        elapsed_ns = round(seconds * NS_PER_S)
        with self._lock:
            self._wall_ns += elapsed_ns
            self._monotonic_ns += elapsed_ns

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward (or back, if negative) while no time passes, as NTP or an operator does."""
        with self._lock:
            self._wall_ns += round(seconds * NS_PER_S)


_current: list[Clock] = [SystemClock()]


def current_clock() -> Clock:
    """The clock that whatever is made from now on goes by."""
    return _current[-1]


def install_clock(clock: Clock) -> Callable[[], None]:
    """Have what is made from now on go by ``clock``; returns what puts the one before back."""
    _current.append(clock)
    return lambda: _current.remove(clock)
