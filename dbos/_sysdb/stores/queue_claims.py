"""Queues at work: what waits, and claiming it within the limits that hold across processes.

A limit that all processes keep together is counted and claimed against under a lock of the queue, which is taken by a
statement of its own: a lock taken inside a statement comes after its snapshot (docs/decisions/0011). What has no such
limit is claimed in one statement, which passes over the rows that another claim has locked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from dbos._queue_config import Limits, QueueConfig, RateLimit
from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import StatusRow, columns
from dbos._sysdb.stores.application_versions import LATEST, OF_APPLICATION
from dbos._sysdb.stores.executors import ExecutorsStore
from dbos._sysdb.stores.workflow_status import STOPPED, TIMEOUT

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect

__all__ = ["ClaimRequest", "Claimed", "QueueClaimsStore", "Waiting"]

LEAST_KEYS = 32  # of partitions that are asked for at once: some may have no room
MOST_KEYS = 1000

READY = """
WITH RECURSIVE ready (queue_name) AS (
  SELECT min(queue_name) FROM dbos.workflow_status WHERE status = 'ENQUEUED' AND queue_name > ''
  UNION ALL
  SELECT (SELECT min(w.queue_name) FROM dbos.workflow_status w
          WHERE w.status = 'ENQUEUED' AND w.queue_name > ready.queue_name)
  FROM ready WHERE ready.queue_name IS NOT NULL)
"""

LOOK = f"""
-- What waits, in a few steps along the indexes whatever its number: the queues that have something to claim, when the
-- next delay is over, and when the next deadline passes; and a number that changes with the settings of queues.
{READY}
SELECT 'queue', queue_name, NULL FROM ready WHERE queue_name IS NOT NULL
UNION ALL
SELECT 'delay', NULL, min(delay_until_epoch_ms) FROM dbos.workflow_status WHERE status = 'DELAYED'
UNION ALL
SELECT 'deadline', NULL, min(workflow_deadline_epoch_ms) FROM dbos.workflow_status
WHERE status IN ('ENQUEUED', 'DELAYED') AND workflow_deadline_epoch_ms IS NOT NULL
UNION ALL
SELECT 'settings', NULL, CAST(count(*) + COALESCE(sum(updated_at), 0) AS BIGINT) FROM dbos.queues
"""

STRANDED = f"""
-- How much waits in queues that nobody serves. What others wait for is not counted.
{READY}
SELECT queue_name, (
  SELECT count(*) FROM dbos.workflow_status w WHERE w.status = 'ENQUEUED' AND w.queue_name = ready.queue_name)
FROM ready WHERE queue_name IS NOT NULL AND NOT (queue_name IN :served)
UNION ALL
SELECT queue_name, count(*) FROM dbos.workflow_status
WHERE status = 'DELAYED' AND NOT (queue_name IN :served)
GROUP BY queue_name
"""

PROMOTE = """
-- Enqueue what was delayed until now. What somebody has locked is left for the next round. What was debounced gives up
-- its key: from here on, calls begin another group.
WITH due AS MATERIALIZED (
  SELECT workflow_uuid AS due_id FROM dbos.workflow_status w
  WHERE status = 'DELAYED' AND delay_until_epoch_ms <= :now_ms
  ORDER BY delay_until_epoch_ms
  LIMIT :count
  {skip_locked})
UPDATE dbos.workflow_status
SET status = 'ENQUEUED', updated_at = :now_ms,
    deduplication_id = CASE WHEN is_debounced THEN NULL ELSE deduplication_id END
FROM due
WHERE workflow_uuid = due_id
RETURNING queue_name
"""

CANCEL_WAITING = f"""
-- Cancel what has missed its deadline while it waited.
WITH overdue AS MATERIALIZED (
  SELECT workflow_uuid AS overdue_id FROM dbos.workflow_status w
  WHERE status IN ('ENQUEUED', 'DELAYED') AND workflow_deadline_epoch_ms IS NOT NULL
    AND workflow_deadline_epoch_ms <= :now_ms
  ORDER BY workflow_deadline_epoch_ms
  LIMIT :count
  {{skip_locked}})
UPDATE dbos.workflow_status
SET status = 'CANCELLED', {STOPPED}
FROM overdue
WHERE workflow_uuid = overdue_id
RETURNING workflow_uuid
"""

# What an executor of a version can begin of its application, and of what is nobody's. What is of no version runs with
# the latest.
ELIGIBLE = f"""
    {OF_APPLICATION}
    AND (
      application_version = :application_version
      OR (application_version IS NULL AND :application_version = {LATEST}))
    AND NOT (name || '/' || COALESCE(class_name, '') || '/' || COALESCE(config_name, '') IN :unknown_targets)
"""

CLAIM = f"""
-- Claim what waits in a queue, first in first out within a priority, if this instance still holds its lease and is not
-- to be drained, and its settings of the queue are still those in force. One token serves the whole claim: it is only
-- ever compared within one workflow.
WITH claimed AS MATERIALIZED (
  SELECT workflow_uuid AS claimed_id FROM dbos.workflow_status w
  WHERE queue_name = :queue_name AND status = 'ENQUEUED'{{partition}}
    AND {ELIGIBLE}
    AND EXISTS (
      SELECT 1 FROM dbos.executor_instances WHERE instance_id = :instance AND draining_since IS NULL)
    AND (CAST(:revision AS BIGINT) IS NULL
         OR EXISTS (SELECT 1 FROM dbos.queues q WHERE q.name = :queue_name AND q.updated_at = :revision))
  ORDER BY priority, {{sequence}}
  LIMIT :count
  {{skip_locked}})
UPDATE dbos.workflow_status
SET status = 'PENDING', owner_instance = :instance, executor_id = :executor_id, run_token = :run_token,
    application_version = :application_version, was_unversioned = (application_version IS NULL),
    started_at_epoch_ms = :now_ms, updated_at = :now_ms,
    recovery_attempts = recovery_attempts + 1,
    workflow_deadline_epoch_ms = COALESCE(workflow_deadline_epoch_ms, :now_ms + {TIMEOUT})
FROM claimed
WHERE workflow_uuid = claimed_id
RETURNING {{sequence}}, {columns(StatusRow)}
"""

OF_PARTITION = " AND queue_partition_key = :partition_key"

OF_NO_PARTITION = " AND queue_partition_key IS NULL"

CLAIMED = f"""
-- What an earlier execution of a claim has claimed, whose answer was lost.
SELECT {{sequence}}, {columns(StatusRow)} FROM dbos.workflow_status
WHERE owner_instance = :instance AND status = 'PENDING' AND run_token = :run_token
"""

PARTITIONS = f"""
-- The partitions in which something waits, in order, in about as many steps along the index as there are; and last,
-- whether something waits that is in none.
WITH RECURSIVE waiting (partition_key) AS (
  SELECT min(queue_partition_key) FROM dbos.workflow_status
  WHERE queue_name = :queue_name AND status = 'ENQUEUED' AND queue_partition_key > :after{{until}}
    AND {ELIGIBLE}
  UNION ALL
  SELECT (SELECT min(queue_partition_key) FROM dbos.workflow_status
          WHERE queue_name = :queue_name AND status = 'ENQUEUED'
            AND queue_partition_key > waiting.partition_key{{until}}
            AND {ELIGIBLE})
  FROM waiting WHERE waiting.partition_key IS NOT NULL)
SELECT partition_key FROM (
  SELECT partition_key FROM waiting WHERE partition_key IS NOT NULL LIMIT :count) keys
UNION ALL
SELECT NULL WHERE EXISTS (
  SELECT 1 FROM dbos.workflow_status
  WHERE queue_name = :queue_name AND status = 'ENQUEUED' AND queue_partition_key IS NULL
    AND {ELIGIBLE})
"""

UNTIL = " AND queue_partition_key <= :until"  # as the database sorts, which need not be as Python does

RUNNING = """
-- How much of a queue runs, anywhere. What belonged to the dead holds its place until somebody recovers it; it holds
-- none if there is nobody of its version who could.
SELECT queue_partition_key, count(*) FROM dbos.workflow_status r
WHERE queue_name = :queue_name AND status = 'PENDING'
  AND EXISTS (
    SELECT 1 FROM dbos.executor_instances e
    WHERE e.instance_id = r.owner_instance OR (
      e.application_version = r.application_version
      AND COALESCE(r.application_name, e.application_name, '') = COALESCE(e.application_name, '')))
GROUP BY queue_partition_key
"""

STARTS = """
-- How much of a queue was started since a time, and when the first and the last of it was.
SELECT partition_key, sum(started), min(started_at_epoch_ms), max(started_at_epoch_ms) FROM dbos.queue_starts
WHERE queue_name = :queue_name AND started_at_epoch_ms > :since_ms AND started > 0
GROUP BY partition_key
"""

ADD_STARTS = """
INSERT INTO dbos.queue_starts (queue_name, partition_key, started_at_epoch_ms, run_token, started)
VALUES (:queue_name, :partition_key, :now_ms, :run_token, :started)
"""

HOLD_STARTS = """
-- The clock has gone back: what seems to be started later was started by now.
UPDATE dbos.queue_starts SET started_at_epoch_ms = :now_ms
WHERE queue_name = :queue_name AND started_at_epoch_ms > :now_ms
"""

FORGET_STARTS = """
DELETE FROM dbos.queue_starts WHERE queue_name = :queue_name AND started_at_epoch_ms <= :since_ms
"""


class Waiting(NamedTuple):
    """What waits: the queues in which something can be claimed, and the next times at which something is to be done.

    ``settings`` is another number whenever the queues that are registered in the database have changed.
    """

    queue_names: frozenset[str]
    next_delay_ms: int | None
    next_deadline_ms: int | None
    settings: int


class Claimed(NamedTuple):
    """The rows that were claimed, in the order in which they are to begin.

    ``has_more`` says that there may be more that could have been claimed, had more been asked for; ``is_limited``, that
    a limit may hold something back; ``retry_at_ms``, when a rate limit lets the next one start; ``is_busy``, that
    another process was claiming from the queue, so that nothing was tried.
    """

    rows: list[StatusRow]
    has_more: bool = False
    is_limited: bool = False
    retry_at_ms: int | None = None
    is_busy: bool = False


@dataclass(slots=True, kw_only=True)
class ClaimRequest:
    """Who claims how much from which queue.

    ``running`` is what this process runs of the queue by partition key. ``now_ms`` is asked when the claim is made: it
    may have had to wait for that. ``after_partition`` is the partition key that was served last, empty for none and for
    what has no key. A request is good for one claim, which may be executed more than once.
    """

    queue: QueueConfig
    count: int
    instance: str
    executor_id: str
    application_version: str
    run_token: str
    unknown_targets: Sequence[str]
    running: Mapping[str | None, int]
    now_ms: Callable[[], int]
    application_name: str | None = None
    after_partition: str = ""
    was_executed: bool = field(default=False, init=False)


def _room(limits: Limits, running: int, running_here: int, started: int, count: int) -> int:
    """How much of ``count`` the limits of a queue, or of one partition of it, let start now."""
    if limits.concurrency is not None:
        count = min(count, limits.concurrency - running)
    if limits.worker_concurrency is not None:
        count = min(count, limits.worker_concurrency - running_here)
    if limits.rate is not None:
        count = min(count, limits.rate.limit - started)
    return max(0, count)


class _Starts:
    """What was started within a rate limit's period, by partition key."""

    def __init__(self, connection: Connection, queue_name: str, rate: RateLimit | None, now_ms: int) -> None:
        self._period_ms = 0 if rate is None else rate.period_s * 1000
        self._rows: dict[str, tuple[int, int]] = {}
        if rate is not None:
            since_ms = int(now_ms - self._period_ms)
            found = connection.all(STARTS, queue_name=queue_name, since_ms=since_ms)
            if any(last_ms > now_ms for _, _, _, last_ms in found):
                connection.run(HOLD_STARTS, queue_name=queue_name, now_ms=now_ms)
            self._rows = {key: (int(started), min(first_ms, now_ms)) for key, started, first_ms, _ in found}

    def of(self, partition_key: str) -> int:
        return self._rows.get(partition_key, (0, 0))[0]

    def total(self) -> int:
        return sum(started for started, _ in self._rows.values())

    def next_ms(self, now_ms: int) -> int:
        """When the first of them leaves the period, or what starts now."""
        first_ms = min((first_ms for _, first_ms in self._rows.values()), default=now_ms)
        return int(first_ms + self._period_ms) + 1


class QueueClaimsStore:
    """What dispatchers do with ``workflow_status``, and the ``queue_starts`` table."""

    def __init__(self, dialect: Dialect) -> None:
        def fitted(sql: str) -> str:
            return sql.replace("{skip_locked}", dialect.skip_locked).replace("{sequence}", dialect.enqueue_order)

        self._promote = fitted(PROMOTE)
        self._cancel_waiting = fitted(CANCEL_WAITING)
        self._claim = fitted(CLAIM.replace("{partition}", ""))
        self._claim_partition = fitted(CLAIM.replace("{partition}", OF_PARTITION))
        self._claim_keyless = fitted(CLAIM.replace("{partition}", OF_NO_PARTITION))
        self._claimed = fitted(CLAIMED)
        self._lock = dialect.lock_queue
        self._now = f"SELECT {dialect.now_ms}" if dialect.has_own_clock else None

    @staticmethod
    def look(connection: Connection) -> Waiting:
        """What waits, in any queue."""
        rows = connection.all(LOOK)
        numbers = {kind: number for kind, _, number in rows if kind != "queue"}
        names = frozenset(name for kind, name, _ in rows if kind == "queue")
        return Waiting(names, numbers["delay"], numbers["deadline"], numbers["settings"])

    @staticmethod
    def stranded(connection: Connection) -> dict[str, int]:
        """How much waits, enqueued or delayed, in each queue that no executor instance serves, as far as is known."""
        served = ExecutorsStore.served_queues(connection)
        if served is None:
            return {}
        counts = Counter[str]()
        for name, count in connection.all(STRANDED, served=sorted(served)):
            counts[name] += count
        return dict(sorted(counts.items()))

    def promote(self, connection: Connection, now_ms: int, count: int) -> list[str]:
        """Enqueue up to ``count`` workflows whose delay is over; returns the names of their queues."""
        return sorted({row[0] for row in connection.all(self._promote, now_ms=now_ms, count=count)})

    def cancel_waiting(self, connection: Connection, now_ms: int, count: int) -> list[str]:
        """Cancel up to ``count`` workflows whose deadline passed before they began; returns their ids."""
        return [row[0] for row in connection.all(self._cancel_waiting, now_ms=now_ms, count=count)]

    def claim(self, connection: Connection, request: ClaimRequest) -> Claimed:
        """Claim as much as is asked for, waits, and is allowed."""
        if request.was_executed:
            # It may have been committed, and the answer lost with the connection.
            rows = connection.all(self._claimed, instance=request.instance, run_token=request.run_token)
            if rows:
                return Claimed(_in_order(rows), has_more=True)
        request.was_executed = True
        queue = request.queue
        if queue.needs_lock and self._lock is not None:
            row = connection.one(self._lock, queue_name=queue.name)
            if row != (True,):
                return Claimed([], is_busy=True)
        return _Claim(self, connection, request).made()

    def take(self, connection: Connection, request: ClaimRequest, now_ms: int, count: int) -> list[tuple[Any, ...]]:
        """Claim up to ``count`` rows of a queue, without a look at limits."""
        return self._take(connection, self._claim, request, now_ms, count)

    def take_of(
        self, connection: Connection, request: ClaimRequest, now_ms: int, count: int, partition_key: str | None
    ) -> list[tuple[Any, ...]]:
        """The same of one partition of it; None for what has no partition key."""
        if partition_key is None:
            return self._take(connection, self._claim_keyless, request, now_ms, count)
        return self._take(connection, self._claim_partition, request, now_ms, count, partition_key=partition_key)

    @staticmethod
    def _take(
        connection: Connection, statement: str, request: ClaimRequest, now_ms: int, count: int, **partition: str
    ) -> list[tuple[Any, ...]]:
        return connection.all(
            statement,
            queue_name=request.queue.name,
            application_name=request.application_name,
            application_version=request.application_version,
            instance=request.instance,
            executor_id=request.executor_id,
            run_token=request.run_token,
            unknown_targets=list(request.unknown_targets),
            revision=request.queue.revision,
            now_ms=now_ms,
            count=count,
            **partition,
        )

    @staticmethod
    def partitions(
        connection: Connection, request: ClaimRequest, after: str, until: str | None, count: int
    ) -> list[str | None]:
        """Partition keys of work that could be begun, behind ``after`` and up to ``until``, ``count`` at most.

        Last comes None, if there is such work without a partition key.
        """
        found = connection.all(
            PARTITIONS.replace("{until}", "" if until is None else UNTIL),
            queue_name=request.queue.name,
            application_name=request.application_name,
            application_version=request.application_version,
            unknown_targets=list(request.unknown_targets),
            after=after,
            until=until,
            count=count,
        )
        return [row[0] for row in found]

    def now_ms(self, connection: Connection, request: ClaimRequest) -> int:
        """The time by the clock that rates are measured with, which is one for all processes."""
        if self._now is None or not request.queue.has_rate_limit:
            return request.now_ms()
        row = connection.one(self._now)
        assert row is not None
        return int(row[0])


class _Claim:
    """One claim under way: what the limits leave, and what was taken."""

    def __init__(self, store: QueueClaimsStore, connection: Connection, request: ClaimRequest) -> None:
        self._store, self._connection, self._request = store, connection, request
        queue = request.queue
        self._now_ms = store.now_ms(connection, request)
        self._starts = _Starts(connection, queue.name, queue.queue.rate, self._now_ms)
        self._partition_starts = _Starts(connection, queue.name, queue.partition.rate, self._now_ms)
        self._running: dict[str | None, int] = {}
        if queue.queue.concurrency is not None or queue.partition.concurrency is not None:
            self._running = dict(connection.all(RUNNING, queue_name=queue.name))
        self._rows: list[tuple[Any, ...]] = []
        self._has_more = False
        self._is_limited = False

    def made(self) -> Claimed:
        request, limits = self._request, self._request.queue.queue
        running, here = sum(self._running.values()), sum(request.running.values())
        room = _room(limits, running, here, self._starts.total(), request.count)
        if request.queue.is_partitioned:
            left = self._take_from_partitions(room)
        elif room == 0:
            left = 0
        else:
            left = room - self._keep(self._store.take(self._connection, request, self._now_ms, room))
        if left == 0:
            if room < request.count:
                self._is_limited = True
            else:
                self._has_more = True
        self._note_starts()
        return Claimed(_in_order(self._rows), self._has_more, self._is_limited, self._retry_at_ms())

    def _keep(self, taken: list[tuple[Any, ...]]) -> int:
        self._rows += taken
        return len(taken)

    def _take_from_partitions(self, count: int) -> int:
        """Give each partition in which something waits its share, so that a busy one does not starve the others.

        Returns how much of ``count`` is left.
        """
        for keys in self._pages(count) if count > 0 else ():
            for position, key in enumerate(keys):
                count -= self._take_from(key, max(1, count // (len(keys) - position)))
                if count == 0:
                    return 0
        return count

    def _take_from(self, key: str | None, share: int) -> int:
        request = self._request
        running, here = self._running.get(key, 0), request.running.get(key, 0)
        room = _room(request.queue.partition, running, here, self._partition_starts.of(key or ""), share)
        taken = 0
        if room > 0:
            taken = self._keep(self._store.take_of(self._connection, request, self._now_ms, room, key))
        request.after_partition = key or ""
        if taken == room:
            if room < share:
                self._is_limited = True
            else:
                self._has_more = True
        return taken

    def _pages(self, count: int) -> Iterator[list[str | None]]:
        """The partitions, from behind the one that was served last and around, for ``count`` workflows.

        What has no partition key comes behind the last key.
        """
        start = self._request.after_partition
        rounds: list[tuple[str, str | None]] = [(start, None)]
        if start:
            rounds.append(("", start))
        size = max(count, LEAST_KEYS)
        for after, until in rounds:
            last, is_last_page = after, False
            while not is_last_page:
                found = self._store.partitions(self._connection, self._request, last, until, size)
                keys = [key for key in found if key is not None]
                is_last_page = len(keys) < size
                page: list[str | None] = [*keys, None] if is_last_page and until is None and None in found else [*keys]
                if page:
                    yield page
                last = keys[-1] if keys else last
                size = min(2 * size, MOST_KEYS)

    def _retry_at_ms(self) -> int | None:
        if not self._is_limited:
            return None
        rates = (
            (self._starts, self._request.queue.queue.rate),
            (self._partition_starts, self._request.queue.partition.rate),
        )
        times = [starts.next_ms(self._now_ms) for starts, rate in rates if rate is not None]
        return min(times, default=None)

    def _note_starts(self) -> None:
        """Remember what was started, as long as a rate limit asks."""
        queue = self._request.queue
        if not queue.has_rate_limit or not self._rows:
            return
        started: dict[str, int] = {}
        for row in _in_order(self._rows):
            key = row.queue_partition_key or ""
            started[key] = started.get(key, 0) + 1
        for key, number in sorted(started.items()):
            self._connection.run(
                ADD_STARTS,
                queue_name=queue.name,
                partition_key=key,
                now_ms=self._now_ms,
                run_token=self._request.run_token,
                started=number,
            )
        longest_ms = max(rate.period_s for rate in (queue.queue.rate, queue.partition.rate) if rate is not None) * 1000
        self._connection.run(FORGET_STARTS, queue_name=queue.name, since_ms=int(self._now_ms - longest_ms))


def _in_order(rows: Sequence[tuple[Any, ...]]) -> list[StatusRow]:
    """Claimed rows by priority and then by the order of enqueueing, which is their first column."""
    found = sorted(((StatusRow(*row[1:]), row[0]) for row in rows), key=lambda each: (each[0].priority, each[1]))
    return [row for row, _ in found]
