"""Notifications between processes: LISTEN and NOTIFY over one connection, or neither where that is not wanted.

A notification says that something happened, and carries no data. It is sent after the commit it tells of, and nobody
relies on it: every waiter is also checked by the safety net.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from dbos._sysdb.retry import Backoff

__all__ = ["PostgresListener", "SilentListener"]

logger = logging.getLogger("dbos.postgres")

PUBLISH_EVERY_S = 0.010  # notifications are coalesced: NOTIFY takes a lock that all committing sessions share
MAX_TOPIC_CHARACTERS = 1000  # a payload holds 8000 bytes; a longer name is found by the safety net
STOP_PATIENCE_S = 10.0  # how long stop() waits for a server that does not answer

NOTIFY = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS rows (payload)"


class PostgresListener:
    """Hears notifications on one channel, and sends them coalesced, over one connection in one thread."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        channel: str,
        own_tag: str,
        on_wakeup: Callable[[str | None], None],
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._own_tag = own_tag  # stands before each topic we send, so that we do not hear ourselves
        self._on_wakeup = on_wakeup
        self._stopping = threading.Event()
        self._pending: set[str] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="dbos-listener", daemon=True)
        self._thread.start()

    def publish(self, topic: str) -> None:
        with self._lock:
            is_first = not self._pending
            self._pending.add(topic[:MAX_TOPIC_CHARACTERS])
        if is_first:
            self._wake()

    def stop(self) -> None:
        self._stopping.set()
        self._wake()
        if self._thread is not None:
            self._thread.join(STOP_PATIENCE_S)
            if self._thread.is_alive():
                return  # it waits for a server that does not answer
        self._close()

    def _close(self) -> None:
        self._waker.close()
        self._woken.close()

    def _wake(self) -> None:
        try:
            self._waker.send(b"!")
        except OSError:
            return  # the buffer is full of calls, or we were stopped

    def _run(self) -> None:
        try:
            self._listen()
        finally:
            self._close()  # here, because stop() may have gone

    def _listen(self) -> None:
        backoff = Backoff(initial_s=0.1, maximum_s=5.0)
        while not self._stopping.is_set():
            try:
                with self._connect() as connection:
                    connection.execute("SET synchronous_commit = off")  # NOTIFY is a commit, but needs no flush
                    connection.execute(f"LISTEN {self._channel}")
                    backoff.reset()
                    self._hear(None)  # whatever happened while nobody listened
                    self._serve(connection)
            except psycopg.Error as error:
                if self._stopping.is_set():
                    return
                # Nobody relies on a notification: every waiter is also checked by the safety net.
                logger.warning("listener lost its connection, reconnecting: %s", type(error).__name__)
                with selectors.DefaultSelector() as selector:
                    selector.register(self._woken, selectors.EVENT_READ)
                    self._sleep(selector, backoff.next_delay_s())

    def _serve(self, connection: psycopg.Connection[Any]) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(connection.fileno(), selectors.EVENT_READ)
            while self._pending or not self._stopping.is_set():
                if self._send(connection):
                    time.sleep(PUBLISH_EVERY_S)
                for notification in connection.notifies(timeout=0):
                    tag, _, topic = notification.payload.partition(":")
                    if tag != self._own_tag:
                        self._hear(topic)
                if not self._pending and not self._stopping.is_set():
                    selector.select()
                    self._drain()

    def _send(self, connection: psycopg.Connection[Any]) -> bool:
        with self._lock:
            topics, self._pending = self._pending, set()
        if not topics:
            return False
        try:
            connection.execute(NOTIFY, (self._channel, [f"{self._own_tag}:{topic}" for topic in topics]))
        except psycopg.Error:
            with self._lock:
                self._pending |= topics
            raise
        return True

    def _hear(self, topic: str | None) -> None:
        try:
            self._on_wakeup(topic)
        except Exception:  # protects the listener's loop
            logger.exception("a wake-up failed")

    def _sleep(self, selector: selectors.BaseSelector, delay_s: float) -> None:
        """Wait between attempts to connect; only stopping cuts it short."""
        until = time.monotonic() + delay_s
        while not self._stopping.is_set() and (left_s := until - time.monotonic()) > 0:
            selector.select(left_s)
            self._drain()

    def _drain(self) -> None:
        try:
            while self._woken.recv(4096):
                continue
        except BlockingIOError:
            return


class SilentListener:
    """In place of a listener where LISTEN and NOTIFY are not to be used; the safety net finds everything."""

    def start(self) -> None:
        """Nothing to listen to."""

    def publish(self, topic: str) -> None:
        """Nobody to tell."""

    def stop(self) -> None:
        """Nothing to stop."""
