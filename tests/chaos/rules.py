"""What a campaign promises, and what it is called when a promise is broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["TOLERANCE_US", "QueueRule", "Rules", "Violation"]

TOLERANCE_US = 5_000  # between a process' clock and the database's, which may count in milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRule:
    """What a queue promises."""

    name: str
    concurrency: int | None = None
    worker_concurrency: int | None = None
    limit: int | None = None
    period_s: float = 0.0
    is_partitioned: bool = False
    has_priorities: bool = False

    @property
    def is_in_order(self) -> bool:
        """Whether its work begins in the order of enqueueing."""
        return self.concurrency == 1 and not self.is_partitioned


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the workload promises: its queues, how each kind of workflow ends, and which steps it calls.

    ``stall_ns`` is how long a step may hang between its call and its body before its process may have been declared
    dead in between, which nobody can know better than the database that refuses its result.
    """

    queues: Mapping[str, QueueRule]
    ends: Mapping[str, str]
    parents: frozenset[str]
    steps: frozenset[str]
    transactions: frozenset[str]
    stall_ns: int


class Violation(NamedTuple):
    """Something that must not be."""

    invariant: str
    workflow_id: str
    text: str
