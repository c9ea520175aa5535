"""Takes work from all queues as soon as it is there, and as their limits and this process allow."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dbos._clock import Look
from dbos._core import dispatch_queue
from dbos._engine.engine import Engine
from dbos._engine.execution import note_cancelled
from dbos._engine.flow import drive
from dbos._engine.run import Run
from dbos._error import DBOSBaseException
from dbos._ids import jitter
from dbos._queue_config import QueueConfig
from dbos._services.service import Service
from dbos._sysdb.retry import Backoff
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE
from dbos._sysdb.wakeups import QUEUE

__all__ = ["Dispatcher"]

logger = logging.getLogger("dbos.queue")

MAX_CLAIM = 100  # what a crash between claim and start leaves to be recovered, and what one statement returns
MAX_AWAKE_COROUTINES = 10_000  # of those that do not wait durably; more are not claimed from queues
SAFETY_NET_S = 1.0  # work that was enqueued without a wake-up is found this late
MIN_LOOK_S = 0.05  # a queue may ask to be looked at more often than that, and is not
SPACING_S = 0.005  # between claims from one queue, or looks: what comes in quick succession is claimed together
IDLE_SHARE = 10  # and so many times as long as the last look took, or the last claim, if it found nothing
REGISTRATION_GRACE_S = 0.2  # an instance registers itself at the beginning of its constructor; let that come to its end
MAX_PROMOTE = 1000  # delays that are over, and deadlines that were missed, in one transaction

_NEVER = float("inf")
_INTERNAL = QueueConfig(name=INTERNAL_QUEUE, has_priorities=True)


@dataclass(slots=True)
class _Queue:
    """What is known of a queue: when to claim from it next, in monotonic time."""

    config: QueueConfig
    due: float = _NEVER
    not_before: float = 0.0
    awaits_room: bool = False  # whether a limit may hold something back
    is_async: bool = False  # whether what was claimed last were coroutines only
    after_partition: str = ""
    backoff: Backoff = field(default_factory=lambda: Backoff(initial_s=0.1, maximum_s=5.0))


def _rest_s(took_s: float) -> float:
    """How long to let the database alone after it was asked for so long."""
    return min(max(SPACING_S, IDLE_SHARE * took_s), SAFETY_NET_S)


class Dispatcher(Service):
    """Dispatches every queue that this process listens to, and the internal one.

    A queue is due when it is said to have work: by an enqueue, by a run of it that ended, or by a look at all queues
    together, which comes once a second and whenever somebody else committed.
    """

    name = "dispatcher"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.clock)
        self._engine = engine
        self._queues: dict[str, _Queue] = {}
        self._turns: deque[str] = deque()
        self._registered: Mapping[str, QueueConfig] = {}  # in the database
        self._doubled: set[str] = set()  # that were reported to be declared as well
        self._settings: int | None = None  # of when that was read
        self._must_refresh = True
        self._look_at = 0.0
        self._catch_up_at = _NEVER  # when something that waits is known to become due
        self._look_not_before = 0.0
        self._must_look = True
        self._retry_at = _NEVER
        self._announced: tuple[str, frozenset[str]] | None = None  # by which instance, that it serves what
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._awake = 0  # coroutines that do not wait durably, or more than there are

    # -- being told ----------------------------------------------------------------------------------------------------

    def dispatch_soon(self, queue_name: str | None) -> None:
        """Something may be claimed from a queue, or from any."""
        if queue_name is None:
            self._must_look = True
        else:
            queue = self._queues.get(queue_name)
            if queue is None:
                return  # it is not listened to; or it is new, and the round that gets to know it claims from it
            if queue.due <= self._engine.clock.monotonic():
                return  # a claim is coming anyway, and sees what was committed before now
            with self._lock:
                self._told.add(queue_name)
        self.wake()

    def tell(self, topic: str | None) -> None:
        """Another process has committed something about queues."""
        name = None if topic is None else topic.removeprefix(QUEUE).removeprefix(":")
        self.dispatch_soon(name or None)

    def refresh(self) -> None:
        """A queue may have been declared."""
        self._must_refresh = True
        self.wake()

    def retry_unknown_targets(self) -> None:
        """Something was registered: soon, try again what this process did not know."""
        self._retry_at = self._engine.clock.monotonic() + REGISTRATION_GRACE_S
        self.wake()

    def note_ended(self, run: Run) -> None:
        """A run has ended, and with it what it counted against limits."""
        queue = None if run.queue_name is None else self._queues.get(run.queue_name)
        if queue is not None:
            if queue.awaits_room:
                self.dispatch_soon(run.queue_name)
            if queue.config.counts_runs_anywhere:
                self._tell_others(queue)
        if self._has_all_coroutines:
            self.wake()

    def _tell_others(self, queue: _Queue) -> None:
        """There is room in a queue for which other processes may wait."""
        if self._engine.is_open:
            self._engine.db.publish(f"{QUEUE}:{queue.config.name}")

    # -- queues --------------------------------------------------------------------------------------------------------

    def learn_queues(self) -> None:
        """Get to know the queues before this executor is registered as one that serves them."""
        engine = self._engine
        self._registered = engine.registered_queues = engine.db.read(engine.db.queues.configs)
        self._refresh(engine.clock.monotonic())
        self._announced = (engine.instance_id, engine.served_queues)

    # -- rounds --------------------------------------------------------------------------------------------------------

    def work_once(self) -> float | None:
        """Dispatch what is due, and come back when more is, or when it is time to look."""
        self.dispatch_once()
        now = self._engine.clock.monotonic()
        times = [self._look_not_before if self._must_look else self._catch_up_at, self._retry_at]
        if not self._engine.is_draining:
            times += [max(queue.due, queue.not_before) for queue in self._queues.values() if self._room(queue) > 0]
        return Look(max(0.0, self._look_at - now), max(0.0, min(times) - now))

    def dispatch_once(self) -> int:
        """Claim and begin what is due and there is room for; returns how much that was."""
        engine = self._engine
        now = engine.clock.monotonic()
        if now >= self._retry_at:
            self._retry_at = _NEVER
            self._must_look = True
            engine.unknown_targets.clear()
        if now >= (self._look_not_before if self._must_look else min(self._look_at, self._catch_up_at)):
            self._look(now)
        if self._must_refresh:
            self._refresh(now)
        if self._announced != (engine.instance_id, engine.served_queues):
            self._try(self._announce)
        with self._lock:
            told, self._told = self._told, set()
        for name in told & self._queues.keys():
            self._queues[name].due = min(self._queues[name].due, now)
        if engine.is_draining:
            return 0
        self._count_coroutines()
        begun = 0
        for _ in range(len(self._turns)):
            if self._stopping.is_set():
                break
            name = self._turns[0]
            self._turns.rotate(-1)
            queue = self._queues[name]
            if queue.config.is_paused:
                queue.due = _NEVER  # until that changes
            if max(queue.due, queue.not_before) > now:
                continue
            room = self._room(queue)
            if room > 0:  # otherwise its turn comes when a thread is free, which wakes this service
                number = self._dispatch(queue, room)
                self._awake += number
                begun += number
        if begun > 0 and self._has_all_coroutines:
            self._count_coroutines()  # some of those that began may be no coroutines, or wait already
        return begun

    def _room(self, queue: _Queue) -> int:
        """How much may be claimed at once: coroutines need no thread, and what recovers is never held back by them."""
        engine = self._engine
        if queue.config.name != INTERNAL_QUEUE and self._has_all_coroutines:
            return 0
        return MAX_CLAIM if queue.is_async else min(engine.workers.free, MAX_CLAIM)

    @property
    def _has_all_coroutines(self) -> bool:
        return self._awake >= MAX_AWAKE_COROUTINES

    def _count_coroutines(self) -> None:
        """Once a round and not for each queue: it looks at every run, while none can begin or end."""
        runs = self._engine.runs
        self._awake = len(runs)
        if self._has_all_coroutines:
            self._awake = runs.count_awake_coroutines()

    def _refresh(self, now: float) -> None:
        """Learn of queues that were declared, registered, changed or deleted."""
        engine = self._engine
        self._must_refresh = False  # before it looks at what is declared: that may change meanwhile
        declared = engine.registry.queues.copy()
        for name in (self._registered.keys() & declared.keys()) - self._doubled:
            logger.warning(
                "Queue %s is registered in the database and declared here: here, the declaration counts.", name
            )
            self._doubled.add(name)
        configs = {**self._registered, **declared}
        if engine.listened_queues is not None:
            configs = {name: config for name, config in configs.items() if name in engine.listened_queues}
        configs[INTERNAL_QUEUE] = _INTERNAL
        for name in self._queues.keys() - configs.keys():
            del self._queues[name]
        for name, config in configs.items():
            queue = self._queues.get(name)
            if queue is None:
                self._queues[name] = _Queue(config, due=now)
            elif queue.config != config:
                queue.config, queue.due = config, now
        if self._queues.keys() != set(self._turns):
            self._turns = deque(self._queues)
        if self._queues.keys() != engine.served_queues:
            engine.served_queues = frozenset(self._queues)

    def _look(self, now: float) -> None:
        """See which queues have work, and do what has become due for what waits in any queue."""
        engine = self._engine
        self._must_look = False  # before the look: what is told during it brings on another
        interval_s = min((queue.config.polling_interval_s for queue in self._queues.values()), default=SAFETY_NET_S)
        self._look_at = now + max(MIN_LOOK_S, min(SAFETY_NET_S, interval_s))
        self._catch_up_at = _NEVER
        before = engine.clock.monotonic()
        waiting = engine.db.read(engine.db.claims.look)
        after = engine.clock.monotonic()
        self._look_not_before = after + _rest_s(after - before)
        with self._lock:
            self._told |= waiting.queue_names
        if waiting.settings != self._settings or engine.registered_queues is None:
            changes = engine.queue_changes
            self._registered = engine.db.read(engine.db.queues.configs)
            if changes == engine.queue_changes:  # otherwise this may be older than what this process has just changed
                engine.registered_queues = self._registered
            self._settings = waiting.settings
            self._must_refresh = True
        now_ms = engine.db.now_ms()
        for time_ms, catch_up in (
            (waiting.next_delay_ms, self._promote),
            (waiting.next_deadline_ms, self._cancel_waiting),
        ):
            if time_ms is not None:
                if time_ms <= now_ms:
                    self._try(catch_up, now_ms)
                self._catch_up_at = min(self._catch_up_at, now + max(MIN_LOOK_S, (time_ms - now_ms) / 1000))

    def _announce(self) -> None:
        """Tell in our row which queues we serve."""
        engine = self._engine
        announced = (engine.instance_id, engine.served_queues)
        engine.db.change(engine.db.executors.serve, *announced)
        self._announced = announced

    def _try(self, catch_up: Callable[..., None], *arguments: Any) -> None:
        try:
            catch_up(*arguments)
        except (Exception, DBOSBaseException):  # it is repeated, and must not keep what can be claimed from beginning
            if not self._stopping.is_set():
                logger.exception("What waits in queues could not be looked after; it will be repeated")

    def _promote(self, now_ms: int) -> None:
        db = self._engine.db
        promoted = db.change(db.claims.promote, now_ms, MAX_PROMOTE)
        with self._lock:
            self._told.update(promoted)
        for name in promoted:
            db.publish(f"{QUEUE}:{name}")

    def _cancel_waiting(self, now_ms: int) -> None:
        engine = self._engine
        cancelled = engine.db.change(engine.db.claims.cancel_waiting, now_ms, MAX_PROMOTE)
        drive(engine, note_cancelled(engine, cancelled))

    def _dispatch(self, queue: _Queue, room: int) -> int:
        """Claim from one queue; whatever goes wrong with it is its own affair."""
        engine = self._engine
        before = engine.clock.monotonic()
        # Whoever ends during the claim makes it due again.
        queue.due, queue.awaits_room = _NEVER, queue.config.has_limits
        try:
            begun = dispatch_queue(engine, queue.config, room, queue.after_partition)
        except (Exception, DBOSBaseException):
            if self._stopping.is_set():
                return 0
            logger.exception("Claiming from queue %s failed and will be repeated", queue.config.name)
            queue.not_before = queue.due = engine.clock.monotonic() + queue.backoff.next_delay_s()
            return 0
        queue.backoff.reset()
        now = engine.clock.monotonic()
        claimed, number = begun.claimed, len(begun.runs)
        queue.after_partition = begun.after_partition
        queue.awaits_room = claimed.is_limited
        if number > 0:
            queue.is_async = all(run.function.is_async for run in begun.runs)
        queue.not_before = now
        if len(claimed.rows) > number:  # the places of what could not begin are free again
            queue.due = now
            self._tell_others(queue)
        elif claimed.has_more or claimed.is_busy:
            queue.due = now
        elif claimed.retry_at_ms is not None:
            queue.due = min(queue.due, now + max(0.0, (claimed.retry_at_ms - engine.db.now_ms()) / 1000))
        if claimed.is_busy:
            queue.not_before += SPACING_S * jitter()
        elif not claimed.is_limited and not claimed.rows:
            queue.not_before += _rest_s(now - before)
        elif not (claimed.is_limited and claimed.rows):
            queue.not_before += SPACING_S
        return number
