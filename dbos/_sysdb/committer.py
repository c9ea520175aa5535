"""Group commit for the system database.

Callers hand over a :class:`~dbos._sysdb.unit.Unit`; whoever finds nobody committing leads, and carries everyone who
arrived meanwhile in one transaction. A unit is answered only after COMMIT, so an answer *is* the durability guarantee.
A leader commits exactly one batch and hands over to the next waiting thread, or to the writer thread when a coroutine
is next. There is no timer: alone, a caller commits at once; in a crowd, batches grow with the time a commit takes.

The state is ``_leader`` (nobody, a waiting thread's unit, or the writer thread), ``_queue`` (units not yet taken) and
``_batch`` (units taken and not yet woken). Only the leader touches the connection. A leader that is interrupted (Ctrl-C
reaches the main thread anywhere) leaves its batch to the writer thread, which rolls back and executes it again:
operations are repeatable, so nobody else notices.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from dbos._clock import Clock
from dbos._error import DBOSBaseException, DBOSDatabaseUnavailableError
from dbos._sysdb.connection import Failure
from dbos._sysdb.operations import Operation
from dbos._sysdb.retry import Backoff
from dbos._sysdb.unit import FutureUnit, ThreadUnit, Unit, wake

__all__ = ["Committer", "Writer"]

logger = logging.getLogger("dbos.committer")

MAX_BATCH_UNITS = 512  # bounds the latency that one caller can add to another
MAX_BATCH_CHARACTERS = 4 * 1024 * 1024  # a batch is held in memory twice, here and in the driver
LARGE_UNIT_CHARACTERS = 1024 * 1024  # commits apart, so that neighbours do not wait for its transfer
SAFETY_NET_S = 1.0  # how long a unit can wait whose thread was interrupted while queueing it
LONG_HOLD_S = 5.0  # a user's transaction that keeps everybody else waiting this long is worth a warning


class Writer(Protocol):
    """The connection that a committer drives; implemented by the dialects."""

    def write(self, operations: Sequence[Operation]) -> list[Any]:
        """Execute the operations in one transaction; returns their results after COMMIT."""
        ...

    def reset(self) -> None:
        """Forget a transaction that may be open, and reconnect if the connection is gone."""
        ...

    def classify(self, error: BaseException) -> Failure:
        """What a failure of :meth:`write` or :meth:`reset` means."""
        ...

    def idle(self) -> None:
        """Called by a leader between batches, for upkeep that needs the connection."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class _WriterThread:
    """Stands for the writer thread where a leader is named."""


_WRITER = _WriterThread()


class Committer:
    """Commits units in batches over one connection.

    ``overflow`` is a committer over a second connection, for units that are large or would wait for somebody's lock.
    """

    def __init__(self, name: str, writer: Writer, clock: Clock, *, overflow: Committer | None = None) -> None:
        self._name = name
        self._writer = writer
        self._clock = clock
        self._overflow = overflow
        self._mutex = threading.Lock()
        self._writer_turn = threading.Condition(self._mutex)
        self._queue: deque[Unit] = deque()
        self._batch: list[Unit] = []
        self._leader: Unit | _WriterThread | None = None
        self._is_suspect = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    # -- callers ----------------------------------------------------------------------------------------------------

    def commit(self, *operations: Operation) -> Sequence[Any]:
        """Commit the operations together, blocking; returns their results once they are durable.

        Raises:
            DBOSDatabaseUnavailableError: the committer was closed before they were committed.
        """
        unit = ThreadUnit(operations)
        if unit.size > LARGE_UNIT_CHARACTERS and self._overflow is not None:
            return self._overflow.commit(*operations)
        try:
            leads = self._join(unit)
            while not unit.is_settled:
                if leads:
                    self._lead(unit)
                else:
                    unit.wait()
                leads = not unit.is_settled and self._leads(unit)
        except BaseException:
            self._abandon(unit)
            raise
        if unit.error is not None:
            raise unit.error
        return unit.results

    def submit(self, *operations: Operation) -> asyncio.Future[Sequence[Any]]:
        """Commit the operations together; returns a future of the running loop, resolved once they are durable."""
        unit = FutureUnit(operations, asyncio.get_running_loop())
        if unit.size > LARGE_UNIT_CHARACTERS and self._overflow is not None:
            return self._overflow.submit(*operations)
        self._enqueue(unit)
        return unit.future

    @contextmanager
    def exclusive(self, purpose: str) -> Iterator[None]:
        """Hold everybody else's commits while the body runs, first come first served with their units.

        For a transaction of the user on the same SQLite file, where two writers cannot be: taking turns here is fair,
        and spares both the database's busy handler. ``purpose`` is named in the log if it takes long.
        """
        unit = ThreadUnit((), is_exclusive=True)
        try:
            leads = self._join(unit)
            while not leads:
                unit.wait()
                leads = self._leads(unit)
            began = self._clock.monotonic()
            yield
            held_s = self._clock.monotonic() - began
            if held_s > LONG_HOLD_S:
                logger.warning("%s kept all other commits waiting for %.1f s", purpose, held_s)
        finally:
            self._withdraw(unit)

    def start(self) -> None:
        """Start the writer thread."""
        self._thread = threading.Thread(target=self._run_writer_thread, name=f"dbos-{self._name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Commit what is queued, then stop the writer thread and close the connection.

        Units that cannot be committed because the database is away are failed with DBOSDatabaseUnavailableError.
        """
        if self._overflow is not None:
            self._overflow.close()
        with self._mutex:
            self._closing.set()
            self._writer_turn.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._writer.close()

    def poll(self) -> None:
        """Give the connection a moment of upkeep if nobody is using it."""
        with self._mutex:
            if self._leader is not None or self._closing.is_set():
                return
            self._writer_turn.notify()
            self._leader = _WRITER

    # -- leadership -------------------------------------------------------------------------------------------------

    def _join(self, unit: ThreadUnit) -> bool:
        """Queue a unit; returns True if its thread is to lead now."""
        with self._mutex:
            if self._closing.is_set():
                raise self._unavailable()
            leads = self._leader is None
            if not (leads and unit.is_exclusive):  # an exclusive unit is only queued while it waits for its turn
                self._queue.append(unit)
            if leads:
                self._leader = unit
            return leads

    def _leads(self, unit: ThreadUnit) -> bool:
        with self._mutex:
            return self._leader is unit

    def _enqueue(self, unit: Unit) -> None:
        with self._mutex:
            if self._closing.is_set():
                raise self._unavailable()
            self._queue.append(unit)
            if self._leader is None:
                self._writer_turn.notify()
                self._leader = _WRITER

    def _lead(self, leader: Unit | _WriterThread) -> None:
        """Commit one batch, pass leadership on, wake whoever was carried."""
        with self._mutex:
            batch = self._batch
            if isinstance(leader, ThreadUnit):
                leader.carried = batch
            self._fill(batch)
        if self._is_suspect:
            self._reset()
        if batch:
            self._execute(batch)
        self._writer.idle()
        self._hand_over(leader)
        wake(batch)

    def _fill(self, batch: list[Unit]) -> None:
        size = 0
        while self._queue and len(batch) < MAX_BATCH_UNITS:
            unit = self._queue[0]
            if isinstance(unit, ThreadUnit) and unit.is_exclusive:
                break
            if batch and size + unit.size > MAX_BATCH_CHARACTERS:
                break
            batch.append(unit)
            self._queue.popleft()
            size += unit.size

    def _hand_over(self, leader: Unit | _WriterThread) -> None:
        # The next leader is woken before it is named: it cannot look before the mutex is free, and an interrupt in
        # between leaves the old leader named, who then cleans up.
        with self._mutex:
            if self._leader is not leader:
                return
            self._batch = []
            head = self._queue[0] if self._queue else None
            if head is None:
                if self._closing.is_set():
                    self._writer_turn.notify()
                self._leader = None
            elif isinstance(head, ThreadUnit) and head.can_lead:
                head.wake()
                if head.is_exclusive:
                    self._queue.popleft()
                self._leader = head
            else:
                self._writer_turn.notify()
                self._leader = _WRITER

    def _abandon(self, unit: ThreadUnit) -> None:
        """A waiting or leading thread was interrupted: its batch and its leadership go to the writer thread."""
        with self._mutex:
            unit.can_lead = False
            was_leading = self._leader is unit
            if was_leading:
                # An interrupt may have come between taking a unit and removing it from the queue.
                unfinished = [each for each in self._batch if not each.is_settled and each not in self._queue]
                self._queue.extendleft(reversed(unfinished))
                self._batch = []
                self._is_suspect = True
                self._writer_turn.notify()
                self._leader = _WRITER
        wake([each for each in unit.carried if each.is_settled])
        while was_leading and not unit.is_settled:
            unit.wait()  # the interrupt is held until the batch is settled; a second one ends this wait

    def _withdraw(self, unit: ThreadUnit) -> None:
        """End an exclusive turn, whether it was reached or not."""
        with self._mutex:
            unit.can_lead = False
            if unit in self._queue:
                self._queue.remove(unit)
        self._hand_over(unit)

    # -- execution --------------------------------------------------------------------------------------------------

    def _execute(self, units: Sequence[Unit]) -> None:
        """Settle the units: together if possible, otherwise in halves so that a poisonous one fails alone."""
        backoff = Backoff(initial_s=0.02, maximum_s=5.0)
        while True:
            try:
                results = self._writer.write([operation for unit in units for operation in unit.operations])
            except (Exception, DBOSBaseException) as error:
                failure = self._writer.classify(error)
                if failure is Failure.CONNECTION_LOST or failure is Failure.CONTENTION:
                    if self._closing.is_set() and failure is Failure.CONNECTION_LOST:
                        self._fail(units, self._unavailable(error))
                        return
                    logger.warning("commit of %d units will be repeated: %s", len(units), _brief(error))
                    self._closing.wait(backoff.next_delay_s())
                    if failure is Failure.CONNECTION_LOST:
                        self._reset()
                elif len(units) > 1:
                    middle = len(units) // 2
                    self._execute(units[:middle])
                    self._execute(units[middle:])
                    return
                elif failure is Failure.BLOCKED and self._overflow is not None:
                    self._divert(units[0])
                    return
                elif failure is Failure.BLOCKED and not self._closing.is_set():
                    self._closing.wait(backoff.next_delay_s())
                else:
                    self._fail(units, error)
                    return
            else:
                position = 0
                for unit in units:
                    count = len(unit.operations)
                    unit.settle(results[position : position + count])
                    position += count
                return

    def _divert(self, unit: Unit) -> None:
        """Let a unit that waits for a lock wait on the second connection; it is answered from there."""
        assert self._overflow is not None
        with self._mutex:
            if unit in self._batch:
                self._batch.remove(unit)
            if isinstance(unit, ThreadUnit):
                unit.can_lead = False  # its thread goes on waiting here and cannot lead there
        logger.info("a unit waits for a locked row and was moved to the second connection")
        self._overflow._enqueue(unit)

    def _reset(self) -> None:
        """Make the connection usable again, waiting as long as it takes or until the committer is closed."""
        backoff = Backoff(initial_s=0.05, maximum_s=5.0)
        while True:
            try:
                self._writer.reset()
            except Exception as error:
                if self._closing.is_set():
                    return
                logger.warning("database unreachable, trying again: %s", _brief(error))
                self._closing.wait(backoff.next_delay_s())
            else:
                self._is_suspect = False
                return

    @staticmethod
    def _fail(units: Sequence[Unit], error: BaseException) -> None:
        for unit in units:
            unit.settle(error=error)

    def _unavailable(self, cause: BaseException | None = None) -> DBOSDatabaseUnavailableError:
        error = DBOSDatabaseUnavailableError("The system database connection was closed before this was committed.")
        error.__cause__ = cause
        return error

    # -- the writer thread ------------------------------------------------------------------------------------------

    def _run_writer_thread(self) -> None:
        while True:
            with self._mutex:
                while self._leader is not _WRITER:
                    if self._closing.is_set() and self._leader is None and not self._queue:
                        return
                    self._writer_turn.wait(SAFETY_NET_S)
                    if self._leader is None and self._queue:
                        self._leader = _WRITER
            try:
                self._lead(_WRITER)
            except BaseException as error:  # nobody may be left waiting for a thread that died
                logger.exception("the writer thread failed to commit a batch")
                with self._mutex:
                    batch, self._batch = self._batch, []
                self._fail([unit for unit in batch if not unit.is_settled], error)
                self._is_suspect = True
                self._hand_over(_WRITER)
                wake(batch)


def _brief(error: BaseException) -> str:
    """The first line of a driver's message: later ones may quote statements and values."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
