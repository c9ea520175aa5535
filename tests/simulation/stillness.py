"""Knowing that nothing moves: what lets threads and event loops be tested move by move.

Whatever acts (a worker's thread, a caller's thread, a callback of an event loop, a commit that a coroutine awaits) is
counted by an :class:`Activity` until it waits or has ended. Whoever ends a wait counts the waiting one as acting before
it is woken, so there is no moment in between in which all seems still and is not. Waits take virtual time: a timeout is
an alarm of the :class:`SimulatedClock`, and rings when the clock is moved.
"""

from __future__ import annotations

import asyncio
import faulthandler
import math
import selectors
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVarTuple

from dbos._clock import VirtualClock
from dbos._sysdb.wakeups import Signal

__all__ = ["Activity", "SimulatedClock", "SimulatedLoop", "acting_for", "simulated_wait"]

Ts = TypeVarTuple("Ts")

PATIENCE_S = 60.0  # real time; nothing here waits for anything but a database

_acting = threading.local()
_wait = Signal.wait


class Activity:
    """Counts what acts."""

    def __init__(self) -> None:
        self._acting = 0
        self._condition = threading.Condition()

    def begin(self) -> None:
        """Something begins to act, or is about to."""
        with self._condition:
            self._acting += 1

    def end(self) -> None:
        """Something has ended, or waits."""
        with self._condition:
            self._acting -= 1
            if self._acting == 0:
                self._condition.notify_all()

    def wait_until_still(self) -> None:
        """Block until nothing acts."""
        with self._condition:
            is_still = self._condition.wait_for(lambda: self._acting == 0, PATIENCE_S)
        if not is_still:
            faulthandler.dump_traceback()
            raise AssertionError(f"{self._acting} threads or tasks neither ended nor waited")


class SimulatedClock(VirtualClock):
    """The time of one executor, with alarms; a frozen executor's ring when it is thawed."""

    def __init__(self, start_s: float) -> None:
        super().__init__(start_s)
        self.is_frozen = False
        self.on_ring: Callable[[], None] = lambda: None
        self._alarms: list[tuple[float, Callable[[], None]]] = []
        self._alarms_lock = threading.Lock()

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Call back when the monotonic time has come."""
        with self._alarms_lock:
            self._alarms.append((when, callback))

    def ring(self, *, for_all: bool = False) -> None:
        """Call back whose time has come; or ``for_all``, because the end has."""
        if self.is_frozen:
            return
        now = math.inf if for_all else self.monotonic()
        with self._alarms_lock:
            due = [alarm for alarm in self._alarms if alarm[0] <= now]
            self._alarms = [alarm for alarm in self._alarms if alarm[0] > now]
        for _, callback in due:
            callback()
        self.on_ring()


class acting_for:  # noqa: N801 - it is used as a function
    """Within the block, this thread acts for an executor: its waits are counted, and take the executor's time."""

    def __init__(self, activity: Activity, clock: SimulatedClock) -> None:
        self._acts_for = (activity, clock)

    def __enter__(self) -> None:
        _acting.now = self._acts_for

    def __exit__(self, *_: object) -> None:
        del _acting.now


def simulated_wait(signal: Signal, timeout_s: float | None) -> bool:
    """Stands in for :meth:`Signal.wait`."""
    acts_for: tuple[Activity, SimulatedClock] | None = getattr(_acting, "now", None)
    if acts_for is None or signal.is_set or (timeout_s is not None and timeout_s <= 0):
        return _wait(signal, timeout_s)
    activity, clock = acts_for
    gate, once = threading.Event(), threading.Lock()

    def end() -> None:
        if once.acquire(blocking=False):
            activity.begin()
            gate.set()

    signal.call(end)
    if timeout_s is not None:
        clock.call_at(clock.monotonic() + timeout_s, end)
    activity.end()
    gate.wait()
    signal.forget(end)
    return signal.is_set


class _Selector(selectors.DefaultSelector):
    def __init__(self, on_idle: Callable[[], None]) -> None:
        super().__init__()
        self._on_idle = on_idle

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        self._on_idle()
        return super().select(None)  # the clock wakes the loop, real time does not


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop in a thread of its own, on virtual time; it acts from each call into it until it is idle again."""

    def __init__(self, activity: Activity, clock: SimulatedClock) -> None:
        super().__init__(_Selector(self._let_go))
        self._activity = activity
        self._simulated_clock = clock
        self._held = 0
        clock.on_ring = self.poke
        self._loop_thread = threading.Thread(target=self.run_forever, daemon=True, name="simulated-loop")
        self._loop_thread.start()

    def time(self) -> float:
        return self._simulated_clock.monotonic()

    def call_soon_threadsafe(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        def call() -> None:
            self._held += 1
            callback(*args)

        self._activity.begin()
        try:
            return super().call_soon_threadsafe(call, context=context)
        except BaseException:
            self._activity.end()
            raise

    def watch(self, future: asyncio.Future[Any]) -> None:
        """Count what a coroutine of this loop awaits as acting, until it is done."""
        self._activity.begin()
        future.add_done_callback(lambda _: self._activity.end())

    def poke(self) -> None:
        """Have timers whose time has come called."""
        self.call_soon_threadsafe(lambda: None)

    def end(self) -> None:
        """Cancel what still runs, stop, and close."""

        def cancel() -> None:
            for task in asyncio.all_tasks(self):
                task.cancel()

        self.call_soon_threadsafe(cancel)
        self._activity.wait_until_still()
        self._simulated_clock.on_ring = lambda: None
        self.call_soon_threadsafe(self.stop)
        self._loop_thread.join(PATIENCE_S)
        self._let_go()
        self.close()

    def _let_go(self) -> None:
        held, self._held = self._held, 0
        for _ in range(held):
            self._activity.end()
