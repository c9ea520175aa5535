"""Who acts, so that a clock knows when nobody does: what the jumps of virtual time rest on.

An :class:`Act` is somebody who may do something at any moment: the test itself, a service, a workflow's run in the
background, and within a run its body and each of its steps. While an act waits, or another has begun within it, it does
nothing itself; so what counts is the acts with nothing in them. Besides these there are calls to the database that are
under way, and waits that are over but whose waiter has not gone on yet. Whoever begins an act or ends a wait counts it
*before* a thread is started or woken, so there is no moment in between in which all seems still.

Two things cannot be counted, and are waited for before a jump. A callback of an event loop that is about to run: the
loop is asked for its word that it has nothing left to run. And a thread of the user's own that works for a run beside
another that waits, and is between a step and the record of it: it gets a moment of real time, ``GRACE_S``.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar, Token
from functools import wraps
from typing import Any

from dbos._engine.engine import Engine

__all__ = ["Act", "Activity"]

GRACE_S = 0.0002
LOOP_CHECK_S = 0.05  # how soon it is noticed that a loop which was asked has stopped
LOOP_TURNS = 8  # how many turns of a loop that does not tell what it has left to run are taken for all

_current: ContextVar[Act | None] = ContextVar("dbos_testing_act", default=None)


class Act:
    """Somebody who acts; entered by whoever does, and over when that is left."""

    __slots__ = ("_activity", "_parent", "_token", "inner", "is_over", "looked_at", "rests")

    def __init__(self, activity: Activity, parent: Act | None) -> None:
        self._activity = activity
        self._parent = parent
        self._token: Token[Act | None] | None = None
        self.inner = 0  # its waits, and the acts within it
        self.is_over = False
        self.rests = False  # whether it is a service
        self.looked_at = -1  # of a service: after which news it has looked around last

    def __enter__(self) -> Act:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            try:
                _current.reset(self._token)
            except ValueError:
                pass  # a coroutine that is thrown away is left in the context of whoever does that
        with self._activity.lock:
            self._activity.end(self, self._parent)


class Activity:
    """Counts who acts. What changes a count holds :attr:`lock`, and has whoever waits for stillness look again."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.version = 0
        self.news = 0  # how often something has happened that services may want to look at
        self._busy = 0  # acts with nothing in them
        self._pending = 0  # calls under way, and waits that are over
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self.outside = self.begin(None)  # the test, or whoever else is in no act

    # -- acts ----------------------------------------------------------------------------------------------------------

    def current(self) -> Act:
        """The act that the caller is in."""
        act = _current.get()
        return self.outside if act is None or act._activity is not self else act

    def begin(self, parent: Act | None) -> Act:
        """Somebody is about to act, within another act or beside them."""
        act = Act(self, parent)
        with self.lock:
            self._busy += 1
            self.news += 1
            if parent is not None:
                self.enter(parent)
            self._note()
        return act

    def end(self, act: Act, parent: Act | None) -> None:
        """An act is over. What it has begun and not awaited may go on."""
        if act.inner == 0:
            self._busy -= 1
        act.is_over = True
        if parent is not None:
            self.leave(parent)
        self._note()

    def enter(self, act: Act) -> None:
        """Something begins in an act, which waits for it."""
        act.inner += 1
        if act.inner == 1 and not act.is_over:
            self._busy -= 1
        self._note()

    def leave(self, act: Act) -> None:
        """Something in an act has ended."""
        act.inner -= 1
        if act.inner == 0 and not act.is_over:
            self._busy += 1
        self._note()

    def add_pending(self, count: int) -> None:
        """So many calls have begun, or waits are over; or less, if they have ended, or gone on."""
        self._pending += count
        self._note()

    def _note(self) -> None:
        self.version += 1
        if self.is_quiet:
            self.changed.notify_all()

    # -- engines and loops ---------------------------------------------------------------------------------------------

    def attend(self, engine: Engine) -> None:
        """Count an engine's calls to its database."""
        self._engines.add(engine)
        db = engine.db
        for name in ("commit", "change", "read"):
            setattr(db, name, self._counted(getattr(db, name)))
        for name in ("submit", "read_async", "peek_async"):
            setattr(db, name, self._counted_async(getattr(db, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._begin_call()
            try:
                return call(*args, **kwargs)
            finally:
                self._end_call()

        return counted

    def _counted_async(self, call: Callable[..., asyncio.Future[Any]]) -> Callable[..., asyncio.Future[Any]]:
        @wraps(call)
        def counted(*args: Any, **kwargs: Any) -> asyncio.Future[Any]:
            self.note_loop(asyncio.get_running_loop())
            self._begin_call()
            try:
                future = call(*args, **kwargs)
            except BaseException:
                self._end_call()
                raise
            # Its first callback: the coroutine that awaits it is on its way when the call is over.
            future.add_done_callback(lambda _: self._end_call())
            return future

        return counted

    def _begin_call(self) -> None:
        with self.lock:
            if not self.current().rests:
                self.news += 1
            self.add_pending(1)

    def _end_call(self) -> None:
        with self.lock:
            self.add_pending(-1)

    def note_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Something that is counted runs on a loop."""
        with self.lock:
            self._loops.add(loop)

    # -- stillness -----------------------------------------------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Whether nobody who is counted acts. Others may still be about to; see :meth:`settle`."""
        return self._busy == 0 and self._pending == 0

    def settle(self) -> None:
        """Let those come to an end who are not counted. Called without the lock."""
        with self.lock:
            loops = set(self._loops).union(*(engine.loops.in_use() for engine in self._engines))
        for loop in loops:
            _settle(loop)
        time.sleep(GRACE_S)


def _settle(loop: asyncio.AbstractEventLoop) -> None:
    """Return when a loop has run all that it was about to."""
    if not loop.is_running():
        return  # nothing on it can act
    settled = threading.Event()
    left = LOOP_TURNS

    def look() -> None:
        nonlocal left
        left -= 1
        ready = getattr(loop, "_ready", None)  # asyncio's own loops have it
        if ready or (ready is None and left > 0):
            loop.call_soon(look)  # behind what it is about to run, and what that brings on
        else:
            settled.set()

    try:
        loop.call_soon_threadsafe(look)
    except RuntimeError:
        return  # it was closed
    while not settled.wait(LOOP_CHECK_S):
        if not loop.is_running():
            return
