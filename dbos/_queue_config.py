"""What a queue allows: its settings as users declare them, checked once, and as the dispatcher obeys them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dbos._error import DBOSException

__all__ = ["Limits", "QueueConfig", "QueueSettings", "RateLimit", "checked_key", "checked_queue_name"]

# Keys are indexed together with the name of their queue; PostgreSQL indexes 2704 bytes of a row at most.
MAX_NAME_BYTES = 512
MAX_KEY_BYTES = 2048
MAX_COUNT = 2**31 - 1  # what the columns hold


def checked_key(name: str, key: object, max_bytes: int = MAX_KEY_BYTES) -> str:
    """``key``, if it can be stored and indexed in both databases; ``name`` says what it is.

    Raises:
        DBOSException: it cannot.
    """
    try:
        is_valid = isinstance(key, str) and "\0" not in key and 0 < len(key.encode()) <= max_bytes
    except UnicodeEncodeError:  # half of a surrogate pair
        is_valid = False
    if not is_valid:
        shown = repr(key)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise DBOSException(
            f"Invalid {name} {shown}: it is a string of valid Unicode that is not empty, has no NUL character, and "
            f"takes {max_bytes} bytes at most."
        )
    return str.__str__(key)  # of an enumeration's member, its value


def checked_queue_name(name: object) -> str:
    """``name``, if a queue can have it.

    Raises:
        DBOSException: it cannot.
    """
    checked = checked_key("queue name", name, MAX_NAME_BYTES)
    if not checked.strip():
        raise DBOSException(f"Invalid queue name {checked!r}: it is blank.")
    return checked


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``limit`` starts within any ``period_s`` seconds."""

    limit: int
    period_s: float

    @classmethod
    def of(cls, limiter: Mapping[str, Any] | None, name: str = "limiter") -> RateLimit | None:
        """The limit that users write as ``{"limit": 5, "period": 1.0}``.

        Raises:
            ValueError: it is incomplete, has other keys, or is not a limit.
        """
        if limiter is None:
            return None
        unknown = [key for key in limiter if key not in ("limit", "period")] if isinstance(limiter, Mapping) else []
        if unknown:
            raise ValueError(f"{name} has an unknown key {unknown[0]!r}: it has 'limit' and 'period', and no others")
        if not isinstance(limiter, Mapping) or limiter.get("limit") is None or limiter.get("period") is None:
            raise ValueError(f"{name} must specify both 'limit' and 'period', not {limiter!r}")
        limit, period_s = limiter["limit"], limiter["period"]
        _check_count(f"{name}'s limit", limit)
        if not _is_number(period_s) or not 0 < period_s < math.inf:
            raise ValueError(f"{name}'s period must be a positive number of seconds, not {period_s!r}")
        return cls(limit, float(period_s))

    def __str__(self) -> str:
        return f"{self.limit}/{self.period_s:g}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a queue, or of each of its partitions; None for none.

    ``concurrency`` counts what runs anywhere, ``worker_concurrency`` what runs in this process.
    """

    concurrency: int | None = None
    worker_concurrency: int | None = None
    rate: RateLimit | None = None

    @property
    def are_shared(self) -> bool:
        """Whether they can only be kept by all processes together."""
        return self.concurrency is not None or self.rate is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """A queue's settings, as the dispatcher obeys them.

    ``queue`` limits the queue as a whole, ``partition`` each partition key for itself. A queue is partitioned if it
    says so or limits its partitions; then work without a partition key cannot be enqueued in it, and what waits there
    without one is a partition of its own.
    """

    name: str
    queue: Limits = Limits()
    partition: Limits = Limits()
    is_partitioned: bool = False
    has_priorities: bool = False
    is_paused: bool = False
    polling_interval_s: float = 1.0
    revision: int | None = None  # of settings in the database; a claim by others than the latest claims nothing

    def details(self) -> list[str]:
        """What sets it apart from a queue without limits, for people to read."""
        shown = [*_shown("", self.queue), *_shown("partition_", self.partition)]
        flags = {"priority": self.has_priorities, "partitioned": self.is_partitioned, "paused": self.is_paused}
        return [*shown, *(name for name, is_set in flags.items() if is_set)]

    @property
    def has_rate_limit(self) -> bool:
        """Whether starts are counted."""
        return self.queue.rate is not None or self.partition.rate is not None

    @property
    def counts_runs_here(self) -> bool:
        """Whether a limit counts what runs in this process."""
        return self.queue.worker_concurrency is not None or self.partition.worker_concurrency is not None

    @property
    def counts_runs_anywhere(self) -> bool:
        """Whether a limit counts what runs in all processes."""
        return self.queue.concurrency is not None or self.partition.concurrency is not None

    @property
    def has_limits(self) -> bool:
        """Whether there is anything that can hold work back."""
        return self.queue != Limits() or self.partition != Limits()

    @property
    def is_claimed_at_once(self) -> bool:
        """Whether a claim is one statement."""
        return not self.needs_lock and not self.is_partitioned

    @property
    def needs_lock(self) -> bool:
        """Whether a claim must count before it claims, while no other process does."""
        return self.queue.are_shared or self.partition.are_shared


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """A queue's settings, as users declare and read them.

    The first three limit the queue as a whole; with ``partition_queue`` they limit each of its partitions instead.
    """

    name: str
    concurrency: int | None = None
    worker_concurrency: int | None = None
    limiter: RateLimit | None = None
    partition_concurrency: int | None = None
    partition_worker_concurrency: int | None = None
    partition_limiter: RateLimit | None = None
    priority_enabled: bool = False
    partition_queue: bool = False
    polling_interval_sec: float = 1.0
    is_paused: bool = False

    @property
    def has_partition_limits(self) -> bool:
        """Whether partitions have limits of their own, which makes the queue partitioned."""
        limits = (self.partition_concurrency, self.partition_worker_concurrency, self.partition_limiter)
        return any(limit is not None for limit in limits)

    def check(self, *, wide_name: str = "concurrency") -> None:
        """Refuse what no queue can obey; ``wide_name`` is what the caller calls ``concurrency``.

        Raises:
            DBOSException: no queue can have the name.
            ValueError: a limit is not one, or narrower ones exceed the wider.
        """
        checked_queue_name(self.name)
        limits = {
            wide_name: self.concurrency,
            "worker_concurrency": self.worker_concurrency,
            "partition_concurrency": self.partition_concurrency,
            "partition_worker_concurrency": self.partition_worker_concurrency,
        }
        for name, limit in limits.items():
            if limit is not None:
                _check_count(name, limit)
        for wide, narrow in (
            (wide_name, "worker_concurrency"),
            (wide_name, "partition_concurrency"),
            ("worker_concurrency", "partition_worker_concurrency"),
            ("partition_concurrency", "partition_worker_concurrency"),
        ):
            one, other = limits[wide], limits[narrow]
            if one is not None and other is not None and one < other:
                raise ValueError(f"{wide} must be greater than or equal to {narrow}, but {one} is less than {other}")
        if not _is_number(self.polling_interval_sec) or not 0 < self.polling_interval_sec < math.inf:
            raise ValueError(f"polling_interval_sec must be positive, not {self.polling_interval_sec!r}")

    def obeyed(self) -> QueueConfig:
        """The settings as the dispatcher obeys them."""
        whole = Limits(concurrency=self.concurrency, worker_concurrency=self.worker_concurrency, rate=self.limiter)
        partition = Limits(
            concurrency=self.partition_concurrency,
            worker_concurrency=self.partition_worker_concurrency,
            rate=self.partition_limiter,
        )
        if self.partition_queue:
            whole, partition = Limits(), partition if self.has_partition_limits else whole
        return QueueConfig(
            name=self.name,
            queue=whole,
            partition=partition,
            is_partitioned=self.partition_queue or self.has_partition_limits,
            has_priorities=self.priority_enabled,
            is_paused=self.is_paused,
            polling_interval_s=self.polling_interval_sec,
        )

    def partitioned(self) -> QueueSettings:
        """The settings with the limits of the whole queue made those of each partition.

        Raises:
            ValueError: partitions have limits already.
        """
        if self.has_partition_limits:
            raise ValueError("partition_queue and limits of partitions: specify only one of them.")
        return replace(
            self,
            concurrency=None,
            worker_concurrency=None,
            limiter=None,
            partition_concurrency=self.concurrency,
            partition_worker_concurrency=self.worker_concurrency,
            partition_limiter=self.limiter,
            partition_queue=True,
        )

    def unpartitioned(self) -> QueueSettings:
        """The settings with the limits of each partition made those of the whole queue: :meth:`partitioned`, undone."""
        return replace(
            self,
            concurrency=self.partition_concurrency,
            worker_concurrency=self.partition_worker_concurrency,
            limiter=self.partition_limiter,
            partition_concurrency=None,
            partition_worker_concurrency=None,
            partition_limiter=None,
            partition_queue=False,
        )

    def changed(self, **changes: Any) -> QueueSettings:
        """The settings with some of them changed, checked.

        Raises:
            ValueError: no queue can obey that.
        """
        if self.partition_queue:
            for name in ("concurrency", "worker_concurrency", "limiter"):
                if changes.get(name) is not None:
                    raise ValueError(
                        f"{name} cannot be combined with partition_queue: set partition_{name}, which limits each "
                        "partition."
                    )
        settings = replace(self, **changes)
        if settings.partition_queue and not self.partition_queue:
            settings = settings.partitioned()
        elif self.partition_queue and not settings.partition_queue:
            settings = settings.unpartitioned()
        settings.check(wide_name="global_concurrency")
        return settings


def _shown(prefix: str, limits: Limits) -> list[str]:
    counts = {"concurrency": limits.concurrency, "worker_concurrency": limits.worker_concurrency}
    shown = [f"{prefix}{name}={count}" for name, count in counts.items() if count is not None]
    if limits.rate is not None:
        shown.append(f"{prefix}limit={limits.rate}")
    return shown


def _check_count(name: str, count: object) -> None:
    if type(count) is not int or not 1 <= count <= MAX_COUNT:
        raise ValueError(f"{name} must be an integer that is at least 1, not {count!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
