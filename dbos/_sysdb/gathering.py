"""Questions that coroutines ask the database, gathered: those that come during one read are asked in the next."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

from dbos._error import DBOSDatabaseUnavailableError
from dbos._sysdb.connection import Connection
from dbos._sysdb.readers import Readers

__all__ = ["GatheredReads"]

A = TypeVar("A")

MAX_KEYS = 500  # in one read


class _Asker(Generic[A]):
    """Who waits for one key's answer."""

    __slots__ = ("answer", "error", "future", "key", "loop")

    def __init__(self, key: str) -> None:
        self.key = key
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[A] = self.loop.create_future()
        self.answer: A | None = None
        self.error: Exception | None = None


class GatheredReads(Generic[A]):
    """Asks a verb for any number of keys, of each of which it says something; alone, a key is asked for at once.

    A hundred coroutines that await as many workflows come as a few reads, instead of each as a thread of its own.
    """

    def __init__(self, readers: Readers, verb: Callable[[Connection, Sequence[str]], Mapping[str, A]]) -> None:
        self._readers = readers
        self._verb = verb
        self._lock = threading.Lock()
        self._askers: list[_Asker[A]] = []
        self._is_reading = False

    def ask(self, key: str) -> asyncio.Future[A]:
        """What the verb says of a key; returns a future of the running loop."""
        asker: _Asker[A] = _Asker(key)
        must_read = False
        try:
            with self._lock:
                self._askers.append(asker)
                must_read = not self._is_reading
                self._is_reading = True
            if must_read:
                self._readers.submit(self._read_all)
        except BaseException as error:
            asker.future.cancel()  # it is told by what is raised
            if must_read:
                self._give_up(error)
            raise
        return asker.future

    def _read_all(self) -> None:
        try:
            while askers := self._take():
                self._read(askers)
                _answer(askers)
        except BaseException as error:  # the thread ends, and nobody would read for those who came meanwhile
            self._give_up(error)

    def _take(self) -> list[_Asker[A]]:
        with self._lock:
            askers, self._askers = self._askers[:MAX_KEYS], self._askers[MAX_KEYS:]
            self._is_reading = bool(askers)
        return askers

    def _read(self, askers: Sequence[_Asker[A]]) -> None:
        """Fill in what each is to be answered."""
        refusal: Exception | None = None
        try:
            found = self._readers.read(self._verb, [asker.key for asker in askers])
            for asker in askers:
                asker.answer = found[asker.key]
        except Exception as error:
            refusal = error
        if isinstance(refusal, DBOSDatabaseUnavailableError):
            for asker in askers:  # an error of its own for each: who raises one adds a traceback to it
                asker.error = DBOSDatabaseUnavailableError(refusal.message)
        elif refusal is not None and len(askers) == 1:
            askers[0].error = refusal
        elif refusal is not None:
            for asker in askers:  # a key that the database refuses must not fail the others
                self._read([asker])

    def _give_up(self, error: BaseException) -> None:
        with self._lock:
            askers, self._askers, self._is_reading = self._askers, [], False
        for asker in askers:
            asker.error = RuntimeError(f"Workflows could not be looked at: {type(error).__name__}: {error}")
        _answer(askers)


def _answer(askers: Sequence[_Asker[A]]) -> None:
    loops: dict[asyncio.AbstractEventLoop, list[_Asker[A]]] = {}
    for asker in askers:
        loops.setdefault(asker.loop, []).append(asker)
    for loop, waiting in loops.items():
        try:
            loop.call_soon_threadsafe(partial(_resolve, waiting))
        except RuntimeError:
            continue  # that loop was closed: nobody awaits these any more


def _resolve(askers: Sequence[_Asker[A]]) -> None:
    for asker in askers:
        if asker.future.done():
            continue
        if asker.error is not None:
            asker.future.set_exception(asker.error)
        else:
            asker.future.set_result(asker.answer)  # type: ignore[arg-type]  # it was filled in
