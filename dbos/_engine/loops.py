"""The event loops that background coroutines run on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple

from dbos._error import DBOSDatabaseUnavailableError

__all__ = ["DESTROYED", "Loops", "Spawned"]

STUCK_LOOP_S = 5.0  # how long closing waits for a workflow that blocks our loop; its thread is left behind then
DESTROYED = "DBOS was destroyed. Unfinished workflows stay in the database, and are recovered by the next launch."


class Spawned(NamedTuple):
    """A coroutine, and what its task is handed to when it has ended, also if it was cancelled before it began."""

    coroutine: Coroutine[Any, Any, None]
    on_end: Callable[[object], None]


class Loops:
    """The event loops that background coroutines run on: the application's, or one of our own in a thread."""

    def __init__(self) -> None:
        self._main: asyncio.AbstractEventLoop | None = None
        self._own: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def adopt_running(self) -> None:
        """Use the loop that is running now, if there is one, while it runs."""
        self._is_closed = False
        try:
            self._main = asyncio.get_running_loop()
        except RuntimeError:
            self._main = None

    @property
    def main(self) -> asyncio.AbstractEventLoop | None:
        """The application's loop, if it had one when it launched."""
        return self._main

    def in_use(self) -> list[asyncio.AbstractEventLoop]:
        """The loops that something of ours may be about to run on."""
        return [loop for loop in (self._main, self._own) if loop is not None]

    def background(self) -> asyncio.AbstractEventLoop:
        """The application's loop if it is running, else our own, started at its first use.

        Asked for in the application's loop itself, by a synchronous call: our own, because such a caller may go on to
        block until the workflow has ended.
        """
        main = self._main
        if main is not None and main.is_running() and main is not _running_loop():
            return main
        return self.own()

    def own(self) -> asyncio.AbstractEventLoop:
        """Our own loop; blocking on what runs there cannot deadlock the application's.

        Raises:
            DBOSDatabaseUnavailableError: the loops were closed for good.
        """
        with self._lock:
            if self._is_closed:
                raise DBOSDatabaseUnavailableError(DESTROYED)
            if self._own is None:
                self._own = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=(self._own,), name="dbos-loop", daemon=True)
                self._thread.start()
            return self._own

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def spawn(self, spawned: Sequence[Spawned], loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
        """Run coroutines on ``loop``, which is woken once, and keep hold of them: it would let them be collected.

        Returns the loop that they run on: our own, if ``loop`` was just closed.
        """

        def create(loop: asyncio.AbstractEventLoop) -> None:
            for coroutine, on_end in spawned:
                task = loop.create_task(coroutine)
                self._tasks.add(task)
                task.add_done_callback(partial(self._ended, on_end))

        if _running_loop() is loop:
            create(loop)
            return loop
        try:
            loop.call_soon_threadsafe(create, loop)
            return loop
        except RuntimeError:  # the application's loop was closed in this very moment
            try:
                own = self.own()
            except DBOSDatabaseUnavailableError:
                for coroutine, _ in spawned:
                    coroutine.close()
                raise
            own.call_soon_threadsafe(create, own)
            return own

    def _ended(self, on_end: Callable[[object], None], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        on_end(task)

    def close(self, *, for_good: bool = False) -> None:
        """Cancel what we began on the application's loop, and what runs on our own, and stop that.

        Unless ``for_good``, our own is started anew when it is needed again.
        """
        with self._lock:
            self._is_closed = self._is_closed or for_good
            own, self._own = self._own, None
        current = asyncio.current_task() if _running_loop() is not None else None
        for task in list(self._tasks):
            loop = task.get_loop()
            if loop is not own and task is not current:
                try:
                    loop.call_soon_threadsafe(task.cancel)
                except RuntimeError:
                    continue  # that loop was closed, and the task with it
        if own is not None and self._thread is not None:
            own.call_soon_threadsafe(own.stop)
            if self._thread is not threading.current_thread():
                self._thread.join(STUCK_LOOP_S)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
