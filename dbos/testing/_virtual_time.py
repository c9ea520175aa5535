"""Virtual time: when nobody acts, the clock jumps to the next instant at which somebody has something to do.

The engine, the services and the databases are the real ones; only their waits end by this clock. A wait is a
:class:`_Waiter`, ended by its signal or by a thread of ours (:meth:`VirtualTime._run`), which moves the clock when
:class:`~dbos.testing._activity.Activity` says that all is quiet. trio's autojump clock is the model. What differs: trio
sees all tasks of its loop, while here threads, loops and databases go on side by side, so whoever may act is counted.

Where it jumps to. Deadlines of runs, and what services know to be due, come in order of time. The safety nets of the
services (:class:`~dbos._clock.Look`), which look around every second, would make a day 86 400 jumps long. As long as
nothing happens, though, a second look finds what the first has found; so each service looks once after any news, and
then only when the clock comes past its time anyway. If nothing is due any more, it may be that somebody acts who is not
counted, in another process say: then the nets go on at their real pace.

While somebody acts, the time stands still, but services must not: a step may wait, really, for what another workflow
does, and that must be begun. So the few milliseconds by which services space their rounds pass in real time as well.
They are added to the monotonic time alone, which services pace themselves with; whatever is recorded shows none of it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta

from dbos._bridge import refuse_running_loop
from dbos._clock import Look, SystemClock, Waitable, current_clock, install_clock
from dbos._engine.engine import Engine
from dbos._sysdb.wakeups import Signal
from dbos.testing._activity import Act, Activity

__all__ = ["VirtualTime", "virtual_time"]

START = datetime(2026, 1, 1, tzinfo=UTC)
IDLE_S = 1.0  # how often, in real time, services look around when nothing is due
PACE_S = 0.25  # services space their rounds by less
PATIENCE_S = 0.02  # how long, in real time, the spacing takes at least; as a rule all is quiet sooner


class VirtualTime:
    """The time that everything made within :func:`virtual_time` goes by. It may be read and moved from any thread."""

    jumps = True
    longest_pause_s = math.inf

    def __init__(self, start: datetime, *, autojump: bool) -> None:
        self.autojump = autojump
        # Whole milliseconds, as databases keep them: what is due at one then comes neither before it nor after it.
        self._start_ms = round(start.timestamp() * 1000)
        self._elapsed_ms = 0
        self._paced_ms = 0  # by so much services were let go on while somebody acted
        self._activity = Activity()
        self._deadlines: list[tuple[int, int, _Waiter]] = []  # a heap
        self._passing: list[tuple[int, int, _Waiter]] = []  # another: until when somebody lets time pass
        self._looking: set[_Waiter] = set()  # services that rest until it is time to look again
        self._pacing: set[_Waiter] = set()  # and those that only space their rounds
        self._numbers = itertools.count()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="dbos-virtual-time", daemon=True)

    # -- reading the time ----------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The virtual time, in UTC."""
        return datetime.fromtimestamp(self.now_s(), UTC)

    def now_ms(self) -> int:
        """The virtual time in whole milliseconds since the epoch."""
        return self._start_ms + self._elapsed_ms

    def now_s(self) -> float:
        """The virtual time in seconds since the epoch."""
        return self.now_ms() / 1000

    def monotonic(self) -> float:
        """How many virtual seconds have passed, and some milliseconds more at times."""
        return (self._elapsed_ms + self._paced_ms) / 1000

    # -- letting it pass -----------------------------------------------------------------------------------------------

    def advance(self, seconds: float | timedelta) -> None:
        """Let so much time pass, with everything that falls due on the way; returns when that has been done.

        Args:
            seconds: How long, in seconds or as a timedelta.

        Raises:
            ValueError: it is negative.
            RuntimeError: an event loop is running in this thread; await :meth:`advance_async` instead.

        Example:
            ```python
            time.advance(timedelta(days=7))
            assert len(DBOS.list_workflows(name="weekly_report")) == 1
            ```
        """
        refuse_running_loop("advance")
        waiter, gate = self._waiter(None), Signal()
        waiter.wake = gate.set
        self._let_pass(waiter, seconds)
        try:
            gate.wait(None)
        finally:
            self._end(waiter)

    async def advance_async(self, seconds: float | timedelta) -> None:
        """The same on an event loop, whose other tasks go on meanwhile."""
        waiter = self._waiter(None)
        future = self._on_loop(waiter)
        self._let_pass(waiter, seconds)
        try:
            await future
        finally:
            self._end(waiter)

    def _let_pass(self, waiter: _Waiter, duration: float | timedelta) -> None:
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
        if not 0 <= seconds < math.inf:
            raise ValueError(f"Time cannot be advanced by {duration!r}: give a number of seconds that is not negative.")
        with self._activity.lock:
            heapq.heappush(self._passing, (self._elapsed_ms + _ms(seconds), next(self._numbers), waiter))
            self._begin(waiter)

    # -- what a clock does for the library -----------------------------------------------------------------------------

    def wait(self, signal: Waitable, timeout_s: float | None) -> bool:
        """Block until ``signal`` is set or ``timeout_s`` have passed; returns whether it was set."""
        if signal.is_set or (timeout_s is not None and timeout_s <= 0):
            return signal.is_set
        self._block(self._waiter(signal), timeout_s)
        return signal.is_set

    async def wait_async(self, signal: Waitable, timeout_s: float | None) -> bool:
        """The same for a coroutine."""
        if timeout_s is not None and timeout_s <= 0:
            await asyncio.sleep(0)  # whoever does not wait lets others have a turn all the same
            return signal.is_set
        waiter = self._waiter(signal)
        future = self._on_loop(waiter)
        try:
            signal.call(waiter.finish)
            self._begin(waiter, timeout_s)
            await future
        finally:
            self._end(waiter)
        return signal.is_set

    def rest(self, signal: Waitable, delay_s: float | None) -> None:
        """Block a service until ``signal`` is set or it is time for its next round."""
        waiter = self._waiter(signal)
        waiter.is_of_service = waiter.act.rests = True
        due_s = delay_s
        if isinstance(delay_s, Look):
            due_s = delay_s.due_s
            if delay_s < math.inf:
                waiter.look_ms = self._elapsed_ms + _ms(delay_s)
        if due_s is not None and due_s <= 0:
            return
        if due_s is not None and due_s <= PACE_S:
            waiter.pace_ms = self._elapsed_ms + self._paced_ms + _ms(due_s)
            waiter.pace_at_s = _real_s() + max(due_s, PATIENCE_S)
        self._block(waiter, due_s)

    def acting(self, *, apart: bool = False) -> AbstractContextManager[object]:
        """A block in which somebody acts, and over whose time the clock does not jump."""
        return self._activity.begin(None if apart else self._activity.current())

    def attend(self, engine: Engine) -> None:
        """Learn of an engine that has just been opened."""
        self._activity.attend(engine)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _waiter(self, signal: Waitable | None) -> _Waiter:
        return _Waiter(self._activity, self._activity.current(), signal)

    def _block(self, waiter: _Waiter, timeout_s: float | None) -> None:
        assert waiter.signal is not None
        gate = Signal()
        waiter.wake = gate.set
        try:
            waiter.signal.call(waiter.finish)  # first, or the clock might jump although it is set
            self._begin(waiter, timeout_s)
            gate.wait(None)
        finally:
            self._end(waiter)

    def _on_loop(self, waiter: _Waiter) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not future.done():
                future.set_result(None)

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(finish)
            except RuntimeError:  # the loop was closed: nobody waits on it any more
                waiter.give_up()

        waiter.wake = wake
        self._activity.note_loop(loop)
        return future

    def _begin(self, waiter: _Waiter, timeout_s: float | None = None) -> None:
        with self._activity.lock:
            waiter.has_begun = True
            if timeout_s is not None and timeout_s < math.inf:
                due_ms = self._elapsed_ms + _ms(timeout_s)
                heapq.heappush(self._deadlines, (due_ms, next(self._numbers), waiter))
            if waiter.look_ms is not None:
                self._looking.add(waiter)
            if waiter.pace_ms is not None:
                self._pacing.add(waiter)
                self._activity.changed.notify_all()
            self._activity.enter(waiter.act)

    def _end(self, waiter: _Waiter) -> None:
        """The waiter goes on: from now on it acts again."""
        if waiter.signal is not None:
            waiter.signal.forget(waiter.finish)
        with self._activity.lock:
            waiter.give_up()
            self._looking.discard(waiter)
            self._pacing.discard(waiter)
            if not waiter.is_of_service:
                self._activity.news += 1
            if waiter.has_begun:
                self._activity.leave(waiter.act)

    # -- jumping -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to jump."""
        self._thread.start()

    def stop(self) -> None:
        """Stand still from now on."""
        with self._activity.lock:
            self._is_stopping = True
            self._activity.changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._activity.lock:
                self._await_turn()
                finished = self._keep_pace()
                version = self._activity.version
            if self._is_stopping:
                return
            if not finished:
                self._activity.settle()
                with self._activity.lock:
                    if version == self._activity.version:
                        finished = self._jump()
            for waiter in finished:
                waiter.wake()

    def _await_turn(self) -> None:
        """Wait until nobody acts and there is something to jump to, or a service has kept its pace in real time.

        Called under the lock.
        """
        activity = self._activity
        while not self._is_stopping:
            pace_s = min((waiter.pace_at_s - _real_s() for waiter in self._pacing), default=None)
            if pace_s is not None and pace_s <= 0:
                return
            if not activity.is_quiet:
                activity.changed.wait(pace_s)
            elif self._target_ms() is not None:
                return
            elif pace_s is not None:
                activity.changed.wait(pace_s)
            elif not activity.changed.wait(IDLE_S):
                activity.news += 1

    def _keep_pace(self) -> list[_Waiter]:
        """Let services go on that have spaced their rounds in real time; returns them. Called under the lock."""
        finished = [waiter for waiter in self._pacing if waiter.pace_at_s <= _real_s() and waiter.claim()]
        for waiter in finished:
            self._pacing.discard(waiter)
            assert waiter.pace_ms is not None
            self._paced_ms = max(self._paced_ms, waiter.pace_ms - self._elapsed_ms)
        return finished

    def _target_ms(self) -> int | None:
        """Where to jump to, None for nowhere."""
        deadlines, passing = _live(self._deadlines), _live(self._passing)
        times = [heap[0][0] for heap in (deadlines, passing) if heap]
        times += [
            waiter.look_ms
            for waiter in self._looking
            if waiter.look_ms is not None and waiter.act.looked_at != self._activity.news
        ]
        target_ms = min(times, default=None)
        # By hand, somebody must let time pass. What does is among the targets, so none is later.
        return target_ms if self.autojump or passing else None

    def _jump(self) -> list[_Waiter]:
        """Move the clock; returns those whose waits are over. Called under the lock."""
        target_ms = self._target_ms()
        if target_ms is None:
            return []
        activity = self._activity
        self._elapsed_ms = max(self._elapsed_ms, target_ms)
        finished = self._take_due(self._deadlines)
        activity.news += sum(waiter.is_of_service for waiter in finished)
        for waiter in list(self._looking):
            if waiter.look_ms is not None and waiter.look_ms <= self._elapsed_ms:
                waiter.act.looked_at = activity.news
                if waiter.claim():
                    finished.append(waiter)
        # Whoever lets time pass goes on when all that falls due has been done.
        return finished or self._take_due(self._passing)

    def _take_due(self, heap: list[tuple[int, int, _Waiter]]) -> list[_Waiter]:
        due = list[_Waiter]()
        while _live(heap) and heap[0][0] <= self._elapsed_ms:
            waiter = heapq.heappop(heap)[2]
            waiter.claim()
            due.append(waiter)
        return due


class _Waiter:
    """Somebody who waits, for a signal or a time; :attr:`wake` has them go on."""

    __slots__ = (
        "_activity",
        "act",
        "has_begun",
        "is_finished",
        "is_of_service",
        "is_over",
        "look_ms",
        "pace_at_s",
        "pace_ms",
        "signal",
        "wake",
    )

    def __init__(self, activity: Activity, act: Act, signal: Waitable | None) -> None:
        self._activity = activity
        self.act = act
        self.signal = signal
        self.wake: Callable[[], None] = lambda: None
        self.look_ms: int | None = None  # of a service that rests: when it looks again
        self.pace_ms: int | None = None  # of one that spaces its rounds: until when, in monotonic time
        self.pace_at_s = math.inf  # and in real time
        self.is_of_service = False
        self.has_begun = False
        self.is_finished = False  # what was waited for is there
        self.is_over = False  # and the waiter goes on

    def claim(self) -> bool:
        """What was waited for is there: from now on the waiter is about to act. Called under the lock."""
        if self.is_finished or self.is_over:
            return False
        self.is_finished = True
        self._activity.add_pending(1)
        return True

    def finish(self) -> None:
        """The signal was set."""
        with self._activity.lock:
            is_first = self.claim()
        if is_first:
            self.wake()

    def give_up(self) -> None:
        """Nobody waits any more."""
        with self._activity.lock:
            if self.is_finished and not self.is_over:
                self._activity.add_pending(-1)
            self.is_over = True


def _live(heap: list[tuple[int, int, _Waiter]]) -> list[tuple[int, int, _Waiter]]:
    """A heap, without those at its top whose waits are over."""
    while heap and (heap[0][2].is_finished or heap[0][2].is_over):
        heapq.heappop(heap)
    return heap


_real_s = SystemClock().monotonic


def _ms(seconds: float) -> int:
    """Whole milliseconds, but not more for the last bit of a fraction; and one at least, or time would stand still."""
    return max(int(seconds > 0), math.ceil(round(seconds * 1000, 6)))


@contextmanager
def virtual_time(start: datetime = START, *, autojump: bool = True) -> Iterator[VirtualTime]:
    """Have all that is made within the block go by a clock that jumps over the time in which nothing happens.

    That is ``DBOS(config=...)`` and ``DBOSClient(...)``; destroy them within the block as well. Sleeps, timeouts,
    retries, delays, limits and schedules then take no real time, and what is recorded tells of virtual time. Steps that
    are running hold the clock, and so does the test, unless it waits in DBOS: for a result, say.

    Args:
        start: The time to begin at; by default the beginning of 2026.
        autojump: Whether to jump whenever nobody acts; otherwise only :meth:`VirtualTime.advance` moves the clock.

    Raises:
        ValueError: ``start`` has no time zone.
        RuntimeError: it is virtual time already.

    Example:
        ```python
        with virtual_time() as time:
            DBOS(config=config)
            DBOS.launch()
            remind_tomorrow()
            assert time.now() == datetime(2026, 1, 2, tzinfo=UTC)
            DBOS.destroy()
        ```
    """
    if start.tzinfo is None:
        raise ValueError(f"The time to start at, {start}, needs a time zone: datetime(2026, 1, 1, tzinfo=UTC), say.")
    if isinstance(current_clock(), VirtualTime):
        raise RuntimeError("It is virtual time already: move its clock instead of making another one.")
    time = VirtualTime(start, autojump=autojump)
    time.start()
    uninstall = install_clock(time)
    try:
        yield time
    finally:
        uninstall()
        time.stop()
