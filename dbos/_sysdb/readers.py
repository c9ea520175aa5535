"""Connections for reading: opened when needed, shared by all threads, never more than a handful."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

from dbos._error import DBOSDatabaseUnavailableError
from dbos._sysdb.connection import Failure
from dbos._sysdb.dialects.base import Dialect, Reader
from dbos._sysdb.retry import Backoff
from dbos._threads import Workers

__all__ = ["MAX_CONNECTIONS", "MAX_OBSERVERS", "Readers", "within"]

R = TypeVar("R")

logger = logging.getLogger("dbos.readers")

MAX_CONNECTIONS = 8  # reads are short; more would only queue up in the database instead of here
MAX_OBSERVERS = 4  # and these are not: see ``within``


def within(reader: Reader, timeout_s: float, verb: Callable[..., R], *arguments: Any) -> R:
    """A store's verb whose statements may take so long each, and as long as they like if that is 0.

    Such reads have connections of their own: what workflows wait for is not kept waiting by who looks at them.

    Raises:
        DBOSQueryTimeoutError: one of them took longer.
    """
    with reader.limited(timeout_s) if timeout_s > 0 else nullcontext():
        return verb(reader, *arguments)


class Readers:
    """A pool of read connections.

    A read that fails for want of a connection is repeated until the pool is closed; unless it ``reconnects``, it fails.
    """

    def __init__(self, dialect: Dialect, *, reconnects: bool = True, limit: int = MAX_CONNECTIONS) -> None:
        self._dialect = dialect
        self._reconnects = reconnects
        self._idle: list[Reader] = []
        self._slots = threading.BoundedSemaphore(min(limit, MAX_CONNECTIONS))
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._workers = Workers(MAX_CONNECTIONS, "dbos-reader")

    def read(self, verb: Callable[..., R], *arguments: Any) -> R:
        """Run a store's verb on a read connection, blocking.

        Raises:
            DBOSDatabaseUnavailableError: the pool was closed, or the connection was lost for good.
        """
        backoff = Backoff(initial_s=0.05, maximum_s=5.0)
        while True:
            if self._closing.is_set():
                raise _unavailable()
            try:
                with self._slots:
                    return self._attempt(verb, arguments)
            except Exception as error:
                failure = self._dialect.classify(error)
                if failure is Failure.REFUSED:
                    raise
                if failure is Failure.CONNECTION_LOST:
                    self._close_idle()  # they were lost with it, and each would cost an attempt
                    if not self._reconnects:
                        raise DBOSDatabaseUnavailableError("The connection to the system database was lost.") from error
                logger.warning("read will be repeated: %s", type(error).__name__)
            self._closing.wait(backoff.next_delay_s())

    def _attempt(self, verb: Callable[..., R], arguments: tuple[Any, ...]) -> R:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._dialect.open_reader()
        try:
            result = verb(connection, *arguments)
        except BaseException:
            connection.close()  # it may be in any state
            raise
        with self._lock:
            if not self._closing.is_set():
                self._idle.append(connection)
                return result
        connection.close()
        return result

    def read_async(self, verb: Callable[..., R], *arguments: Any) -> asyncio.Future[R]:
        """Run a store's verb on a read connection in a thread; returns a future of the running loop."""
        return self._workers.call(lambda: self.read(verb, *arguments))

    def submit(self, func: Callable[[], None]) -> None:
        """Run a function that reads, and must not raise, in one of the pool's threads.

        Raises:
            RuntimeError: the system refuses another thread; ``func`` is not run.
        """
        self._workers.submit(func)

    def close(self) -> None:
        """Close idle connections; a read that is running closes its own."""
        self._closing.set()
        self._close_idle()
        self._workers.close(join=True)

    def _close_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def _unavailable() -> DBOSDatabaseUnavailableError:
    return DBOSDatabaseUnavailableError("The system database connection is closed.")
