"""Waiting between attempts, the same way everywhere: exponential, bounded, with jitter."""

from __future__ import annotations

from dbos._ids import jitter

__all__ = ["Backoff"]


class Backoff:
    """Delays of ``initial_s``, doubling up to ``maximum_s``, each scaled by a random factor of 0.5 to 1.5.

    The jitter keeps processes that failed together from returning together.
    """

    def __init__(self, *, initial_s: float, maximum_s: float) -> None:
        self._initial_s = initial_s
        self._maximum_s = maximum_s
        self._next_s = initial_s

    def next_delay_s(self) -> float:
        """The next delay in seconds."""
        delay = self._next_s
        self._next_s = min(delay * 2, self._maximum_s)
        return delay * jitter()

    def reset(self) -> None:
        """Start again from ``initial_s``."""
        self._next_s = self._initial_s
