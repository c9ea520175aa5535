"""Threads of ours: lent, reused while idle, and never in the way of the process' end.

The standard library's thread pool refuses work as soon as the main thread has ended, and keeps the process alive until
its threads have; a durable workflow needs neither. These are daemon threads: what they run is in the database, and goes
on elsewhere when the process ends.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["Threads", "Workers"]

R = TypeVar("R")

IDLE_S = 10.0  # how long a thread waits for more to do before it ends
JOIN_S = 5.0  # how long closing waits for a thread that is in the user's code or in the database


class Threads:
    """Runs each function at once: in a thread that is idle, or in a new one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._idle = 0  # threads that wait for a task which nobody has put yet
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._alive: set[threading.Thread] = set()
        self._is_closed = False

    def run(self, func: Callable[[], None]) -> None:
        """Run ``func``, which must not raise.

        Raises:
            RuntimeError: the system refuses another thread; ``func`` is not run.
        """
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._tasks.put(func)
                return
            name = f"{self._name}-{next(self._numbers)}"
            thread = threading.Thread(target=self._work, args=(func,), name=name, daemon=True)
            self._alive.add(thread)
        try:
            thread.start()
        except Exception:
            with self._lock:
                self._alive.discard(thread)
            raise

    def call(self, func: Callable[[], R]) -> asyncio.Future[R]:
        """Run ``func``; returns a future of the running loop for what it returns or raises."""
        return call_in(self.run, func)

    def _work(self, func: Callable[[], None]) -> None:
        task: Callable[[], None] | None = func
        del func
        while task is not None:
            task()
            task = None  # an idle thread holds on to nothing
            with self._lock:
                if self._is_closed:
                    break
                self._idle += 1
            task = self._next()
        with self._lock:
            self._alive.discard(threading.current_thread())

    def _next(self) -> Callable[[], None] | None:
        try:
            return self._tasks.get(timeout=IDLE_S)
        except queue.Empty:
            with self._lock:
                if self._idle:
                    self._idle -= 1
                    return None
        return self._tasks.get()  # one was put for this thread in this very moment

    def close(self, *, join: bool = False) -> None:
        """Let idle threads end now and busy ones when they have done; with ``join``, wait for that a while."""
        with self._lock:
            self._is_closed = True
            for _ in range(self._idle):
                self._tasks.put(None)
            self._idle = 0
            alive = list(self._alive)
        for thread in alive if join else ():
            if thread is not threading.current_thread():
                thread.join(JOIN_S)


class Workers:
    """Runs functions in threads, at most ``maximum`` of them awake at a time, in order.

    A thread that waits durably (for a child, for a sleep) does not count, so parents that wait for children never
    starve them. What is beyond the maximum waits here; it is durable already, so a crash loses nothing.
    """

    def __init__(self, maximum: int, name: str) -> None:
        self.threads = Threads(name)
        self.on_free: Callable[[], None] = lambda: None
        self._maximum = maximum
        self._lock = threading.Lock()
        self._awake = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_worker = threading.local()

    @property
    def free(self) -> int:
        """How many more functions could begin at once."""
        return max(0, self._maximum - self._awake - len(self._waiting))

    def submit(self, func: Callable[[], None]) -> None:
        """Run ``func``, which must not raise, as soon as there is room.

        Raises:
            RuntimeError: the system refuses another thread; ``func`` is not run.
        """
        with self._lock:
            if self._awake >= self._maximum:
                self._waiting.append(func)
                return
            self._awake += 1
        self._begin(func)

    def _begin(self, func: Callable[[], None]) -> None:
        """Run a function that counts already."""
        try:
            self.threads.run(lambda: self._work(func))
        except Exception:
            with self._lock:
                self._awake -= 1
            raise

    def call(self, func: Callable[[], R]) -> asyncio.Future[R]:
        """Run ``func`` as soon as there is room; returns a future of the running loop for its result."""
        return call_in(self.submit, func)

    def _work(self, func: Callable[[], None]) -> None:
        following: Callable[[], None] | None = func
        del func
        while following is not None:
            self._is_worker.value = True
            following()
            self._is_worker.value = False
            following = self._pass_on()

    def _pass_on(self) -> Callable[[], None] | None:
        """Give a place to the function that waits for one, which is returned, or give it up."""
        with self._lock:
            if self._waiting and self._awake <= self._maximum:
                return self._waiting.popleft()
            was_full = self._awake >= self._maximum
            self._awake -= 1
        if was_full:
            self.on_free()
        return None

    def _step_aside(self) -> None:
        following = self._pass_on()
        if following is None:
            return
        try:
            self._begin(following)
        except Exception:  # no thread can be had for it: it waits on, for one that comes free
            with self._lock:
                self._waiting.appendleft(following)

    @contextmanager
    def stepping_aside(self) -> Iterator[None]:
        """Let another function have this thread's place while it waits. It does not wait for a place afterwards."""
        if not getattr(self._is_worker, "value", False):
            yield
            return
        self._step_aside()
        try:
            yield
        finally:
            with self._lock:
                self._awake += 1

    def close(self, *, join: bool = False) -> None:
        """Let the threads end once nothing waits any more; see :meth:`Threads.close`."""
        self.threads.close(join=join)


def call_in(run: Callable[[Callable[[], None]], None], func: Callable[[], R]) -> asyncio.Future[R]:
    """Have ``run`` run ``func`` in a thread; returns a future of the running loop for what it returns or raises."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            setter(value)

    def work() -> None:
        try:
            setter, value = future.set_result, func()
        except BaseException as error:
            setter, value = future.set_exception, error  # type: ignore[assignment]  # settled the same way
        try:
            loop.call_soon_threadsafe(settle, setter, value)
        except RuntimeError:
            return  # the loop was closed: nobody awaits it any more

    run(work)
    return future
