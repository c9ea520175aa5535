"""Time as a value that is passed in: the only module that reads the machine's clocks.

Wall time (``now_ms``, ``now_s``) is for what is stored or compared across processes; ``monotonic`` is for how long
something took here, and never steps back. Tests pass a :class:`VirtualClock`, so a simulated day takes a millisecond.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock", "VirtualClock"]

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """What the library asks of a clock."""

    def now_ms(self) -> int:
        """Return the wall time in whole milliseconds since the epoch."""
        ...

    def now_s(self) -> float:
        """Return the wall time in seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some fixed instant; it never goes back."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def now_ms(self) -> int:
        """Return the wall time in whole milliseconds since the epoch."""
        return time.time_ns() // NS_PER_MS

    def now_s(self) -> float:
        """Return the wall time in seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds since some fixed instant; it never goes back."""
        return time.monotonic()


class VirtualClock:
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
