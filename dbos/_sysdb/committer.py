"""Group commit for the system database.

Callers hand over a :class:`~dbos._sysdb.unit.Unit`; whoever finds nobody committing leads, and carries everyone who
arrived meanwhile in one transaction. A unit is answered only after COMMIT, so an answer *is* the durability guarantee.
A leader commits exactly one batch and hands over to the next waiting thread, or to the writer thread when a coroutine
is next. There is no timer: alone, a caller commits at once; in a crowd, batches grow with the time a commit takes.

The state is ``_leader`` (nobody, a waiting thread's unit, or a thread of ours), ``_queue`` (units not yet taken) and
``_batch`` (units taken and not yet woken). Only the leader touches the connection.

Interrupts. Ctrl-C raises KeyboardInterrupt in the main thread, between any two steps of this code; so does whatever a
debugger or a test runner injects. CPython looks for it when a function is entered, after a call and at the end of a
loop's round, and nowhere else. On this rests the rule that an interrupted thread does one thing only, which nothing can
come before: it appends its unit to ``_interrupted``. The writer thread does all the rest (:meth:`Committer._relieve`):
it takes the leadership, rolls back, executes the batch again (operations are repeatable, so nobody else notices), and
wakes whom the interrupted thread had still to wake. Mending things in the interrupted thread itself was tried first; a
second Ctrl-C a few microseconds after the first one then left everybody waiting for a leader that was gone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from dbos._clock import Clock
from dbos._error import DBOSBaseException, DBOSDatabaseUnavailableError, DBOSException
from dbos._sysdb.connection import Failure
from dbos._sysdb.operations import Operation
from dbos._sysdb.retry import Backoff
from dbos._sysdb.unit import FutureUnit, ThreadUnit, Unit, wake

__all__ = ["Committer", "Writer"]

logger = logging.getLogger("dbos.committer")

MAX_BATCH_UNITS = 512  # bounds the latency that one caller can add to another
MAX_BATCH_CHARACTERS = 4 * 1024 * 1024  # a batch is held in memory twice, here and in the driver
LARGE_UNIT_CHARACTERS = 1024 * 1024  # commits apart, so that neighbours do not wait for its transfer
MAX_UNIT_CHARACTERS = 128 * 1024 * 1024  # below a gigabyte however it is escaped, which is where databases give up
LET_COME_S = 0.002  # how long a leader waits for others in all
LET_NEXT_COME_S = 0.0003  # and for the next of them: some ten times what a thread takes to come back
SAFETY_NET_S = 1.0  # how long the work of a thread can lie that was interrupted before it could call for help
LONG_HOLD_S = 5.0  # a user's transaction that keeps everybody else waiting this long is worth a warning
CLOSE_PATIENCE_S = 10.0  # how long close() waits for a database, or a user's transaction, that does not come back
CLOSING_ATTEMPTS = 3  # how often a batch is tried again, while closing, that meets somebody else's transaction
PAUSE_PIECE_S = 0.05  # how late a leader that waits for the database notices that the committer is closed
RECONNECT_S = 1.0  # a small part of a lease: who comes back later than others after an outage looks dead to them
CLOSED = "The system database connection was closed before this was committed."
LOST = (
    "The connection to the system database was lost. Whether this was committed is not known: do it again, under an ID "
    "or key of its own."
)
BLOCKED_PAUSE_S = 0.02  # between attempts at a locked row, in case the database refuses without waiting


class Writer(Protocol):
    """The connection that a committer drives; implemented by the dialects."""

    def write(self, operations: Sequence[Operation]) -> Sequence[Any]:
        """Make the operations durable; returns their results after COMMIT.

        One transaction if all is as it should be, and a second one for what turns out not to be (a cancelled run, an id
        that is taken): each operation is whole, and carries whatever must be written with it.
        """
        ...

    def reset(self) -> None:
        """Make the connection usable after a failure or an interrupt: no transaction open, the database reachable."""
        ...

    def classify(self, error: BaseException) -> Failure:
        """What a failure of :meth:`write` or :meth:`reset` means."""
        ...

    def idle(self) -> None:
        """Called by a leader between batches, for upkeep that needs the connection. Calls nobody back."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class _OurThread:
    """Stands for a thread of ours where a leader is named."""


_WRITER = _OurThread()
_POLLER = _OurThread()


class Committer:
    """Commits units in batches over one connection.

    ``overflow`` is a committer over a second connection, for units that are large or would wait for somebody's lock.
    There, a unit that is still blocked goes to the end of the queue, so that it does not hold up the others.
    Unless ``reconnects``, units are failed when the connection is lost, instead of waiting until it is back.
    """

    def __init__(
        self,
        name: str,
        writer: Writer,
        clock: Clock,
        *,
        overflow: Committer | None = None,
        reconnects: bool = True,
    ) -> None:
        self._name = name
        self._writer = writer
        self._clock = clock
        self._overflow = overflow
        self._reconnects = reconnects
        self._mutex = threading.Lock()
        self._writer_turn = threading.Condition(self._mutex)
        self._queue: deque[Unit] = deque()
        self._batch: list[Unit] = []
        self._leader: Unit | _OurThread | None = None
        self._interrupted: deque[ThreadUnit] = deque()
        self._is_suspect = False
        self._crowd = threading.Lock()  # held; released when as many have queued up as the leader awaits
        self._crowd.acquire()
        self._awaited = 0
        self._expected = 0  # units of the last batch and those that waited for it: so many there may be soon
        self._is_closing = False  # not an Event: an interrupt within its wait() can leave its lock held
        self._thread: threading.Thread | None = None

    # -- callers ----------------------------------------------------------------------------------------------------

    def commit(self, *operations: Operation) -> Sequence[Any]:
        """Commit the operations together, blocking; returns their results once they are durable.

        An interrupt that meets the thread while it leads is held until its batch is settled; a second one is not.

        Raises:
            DBOSDatabaseUnavailableError: the committer was closed before they were committed.
        """
        unit = ThreadUnit(operations)
        if unit.size > LARGE_UNIT_CHARACTERS:
            _check_size(unit)
            if self._overflow is not None:
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
            self._interrupted.append(unit)
            self._hold(unit)
            raise
        unit.carried = ()  # the batch holds its leader: a cycle, which would be left to the garbage collector
        if unit.error is not None:
            raise unit.error
        return unit.results

    def submit(self, *operations: Operation) -> asyncio.Future[Sequence[Any]]:
        """Commit the operations together; returns a future of the running loop, resolved once they are durable."""
        unit = FutureUnit(operations, asyncio.get_running_loop())
        committer = self
        if unit.size > LARGE_UNIT_CHARACTERS:
            _check_size(unit)
            committer = self._overflow or self
        committer._enqueue(unit)
        return unit.future

    @contextmanager
    def exclusive(self, purpose: str) -> Iterator[None]:
        """Hold everybody else's commits while the body runs, first come first served with their units.

        For a transaction of the user on the same SQLite file, where two writers cannot be: taking turns here is fair,
        and spares both the database's busy handler. ``purpose`` is named in the log if it takes long.

        Raises:
            DBOSDatabaseUnavailableError: the committer was closed before the turn came.
        """
        unit = ThreadUnit((), is_exclusive=True)
        try:
            leads = self._join(unit)
            while not leads:
                unit.wait()
                if unit.error is not None:
                    raise unit.error
                leads = self._leads(unit)
            began = self._clock.monotonic()
            yield
            held_s = self._clock.monotonic() - began
            if held_s > LONG_HOLD_S:
                _log(logging.WARNING, "%s kept all other commits waiting for %.1f s", purpose, held_s)
        finally:
            try:
                self._withdraw(unit)
            except BaseException:
                self._interrupted.append(unit)
                raise

    def start(self) -> None:
        """Start the writer thread."""
        thread = threading.Thread(target=self._run_writer_thread, name=f"dbos-{self._name}", daemon=True)
        thread.start()
        self._thread = thread

    def close(self, patience_s: float = CLOSE_PATIENCE_S) -> None:
        """Commit what is queued, then stop the writer thread and close the connection. Closing twice is fine.

        The second connection is to be closed afterwards, because blocked units are moved there.

        Units that cannot be committed because the database is away, or does not answer for ``patience_s`` seconds, are
        failed with DBOSDatabaseUnavailableError.
        """
        with self._mutex:
            self._is_closing = True
            self._writer_turn.notify_all()
        if self._thread is None:
            self._writer.close()
        elif self._thread is not threading.current_thread():
            self._thread.join(patience_s)
            if self._thread.is_alive():
                self._give_up()

    def poll(self) -> None:
        """Give the connection a moment of upkeep if nobody is using it."""
        with self._mutex:
            if self._leader is not None or self._is_closing:
                return
            if self._is_suspect or self._queue:
                self._writer_turn.notify()
                self._leader = _WRITER
                return
            self._leader = _POLLER
        self._keep_up()
        self._hand_over(_POLLER)

    # -- leadership -------------------------------------------------------------------------------------------------

    def _join(self, unit: ThreadUnit) -> bool:
        """Queue a unit; returns True if its thread is to lead now. An exclusive unit stays queued during its turn."""
        with self._mutex:
            if self._is_closing:
                raise _unavailable()
            self._queue.append(unit)
            if self._leader is None:
                self._leader = unit
                return True
            self._arrived()
            return False

    def _leads(self, unit: ThreadUnit) -> bool:
        with self._mutex:
            return self._leader is unit

    def _enqueue(self, unit: Unit) -> None:
        with self._mutex:
            if self._is_closing:
                raise _unavailable()
            self._queue.append(unit)
            if self._leader is None:
                self._writer_turn.notify()
                self._leader = _WRITER
            else:
                self._arrived()

    def _lead(self, leader: Unit | _OurThread) -> None:
        """Commit one batch, pass leadership on, wake whoever was carried."""
        self._let_others_come()
        with self._mutex:
            batch = self._batch
            if isinstance(leader, ThreadUnit):
                leader.carried = batch
            self._fill(batch)
        if self._is_suspect:
            self._reset()
        if batch:
            self._execute(batch)
        self._keep_up()
        self._expected = len(batch) + len(self._queue)
        self._hand_over(leader)
        if batch != [leader]:  # whoever commits alone is awake
            wake(batch)

    def _let_others_come(self) -> None:
        """Give those whom the last batch woke the time to queue up again, as long as they do (docs/decisions/0007)."""
        if len(self._queue) >= self._expected:
            return
        self._crowd.acquire(blocking=False)  # a call that came too late the last time
        deadline = time.monotonic() + LET_COME_S
        arrived = len(self._queue)
        self._awaited = self._expected
        while not self._crowd.acquire(timeout=LET_NEXT_COME_S):
            if len(self._queue) == arrived or time.monotonic() > deadline:
                break
            arrived = len(self._queue)
        self._awaited = 0

    def _arrived(self) -> None:
        """Somebody has queued up while there is a leader: tell it if all are there. Called under the mutex."""
        if 0 < self._awaited <= len(self._queue):
            self._awaited = 0
            self._crowd.release()

    def _fill(self, batch: list[Unit]) -> None:
        size = 0
        while self._queue and len(batch) < MAX_BATCH_UNITS:
            unit = self._queue[0]
            if unit.is_exclusive or (batch and size + unit.size > MAX_BATCH_CHARACTERS):
                break
            batch.append(unit)
            self._queue.popleft()
            size += unit.size

    def _keep_up(self) -> None:
        try:
            self._writer.idle()
        except Exception as error:  # upkeep: the batch is committed, and nobody asked for this
            self._is_suspect = True
            _log(logging.WARNING, "upkeep of the database failed: %s", _brief(error))

    def _hand_over(self, leader: Unit | _OurThread) -> None:
        # The next leader is woken before it is named: it cannot look before the mutex is free, and an interrupt in
        # between leaves the old leader named, whom the writer thread relieves.
        with self._mutex:
            if self._leader is not leader:
                return
            self._batch = []
            head = self._queue[0] if self._queue else None
            if head is None:
                if self._is_closing:
                    self._writer_turn.notify()
                self._leader = None
            elif head.can_lead:
                head.wake()  # type: ignore[attr-defined]  # only a ThreadUnit can
                self._leader = head
            else:
                self._writer_turn.notify()
                self._leader = _WRITER

    def _withdraw(self, unit: ThreadUnit) -> None:
        """End an exclusive turn, whether it was reached or not."""
        with self._mutex:
            if unit in self._queue:
                self._queue.remove(unit)
        self._hand_over(unit)

    def _hold(self, unit: ThreadUnit) -> None:
        """Hold an interrupt until the interrupted leader's batch is settled. A second interrupt ends this wait."""
        with self._mutex:
            was_leading = self._leader is unit
            if self._is_closing:
                self._relieve()  # the writer thread may have ended
            self._writer_turn.notify()
        while was_leading and not unit.is_settled:
            unit.wait()

    def _relieve(self) -> None:
        """Take over from interrupted threads: what they led, and whom they had still to wake. Repeatable."""
        while self._interrupted:
            unit = self._interrupted.popleft()
            unit.can_lead = False
            if unit.is_exclusive and unit in self._queue:
                self._queue.remove(unit)
            if self._leader is unit:
                # The interrupt may have come between taking a unit and removing it from the queue.
                unfinished = [each for each in self._batch if not each.is_settled and each not in self._queue]
                self._queue.extendleft(reversed(unfinished))
                self._batch = []
                self._is_suspect = True
                self._leader = _WRITER
            wake([each for each in unit.carried if each.is_settled])

    # -- execution --------------------------------------------------------------------------------------------------

    def _execute(self, units: Sequence[Unit]) -> None:
        """Settle the units: together if possible, otherwise in halves so that a poisonous one fails alone."""
        backoff = Backoff(initial_s=0.02, maximum_s=5.0)
        attempts_left = CLOSING_ATTEMPTS
        while True:
            try:
                results = self._writer.write([operation for unit in units for operation in unit.operations])
            except (Exception, DBOSBaseException) as error:
                failure = self._writer.classify(error)
                if failure is Failure.CONNECTION_LOST and not self._reconnects:
                    self._is_suspect = True
                    _fail(units, error, LOST)
                    return
                if failure is Failure.CONNECTION_LOST or failure is Failure.CONTENTION:
                    if self._is_closing:
                        attempts_left -= 1
                        if failure is Failure.CONNECTION_LOST or attempts_left == 0:
                            _fail(units, error)
                            return
                    _log(logging.WARNING, "commit of %d units will be repeated: %s", len(units), _brief(error))
                    self._pause(backoff.next_delay_s())
                    if failure is Failure.CONNECTION_LOST:
                        self._reset()
                    continue
                if len(units) > 1:
                    self._execute_halves(units)
                elif failure is Failure.BLOCKED and not self._is_closing:
                    self._postpone(units[0])
                else:
                    units[0].settle(error=error)
                return
            position = 0
            for unit in units:
                count = len(unit.operations)
                unit.settle(results[position : position + count])
                position += count
            return

    def _execute_halves(self, units: Sequence[Unit]) -> None:
        middle = len(units) // 2
        for half in (units[:middle], units[middle:]):
            self._execute(half)
            # Nobody waits for the other half, which may have to wait for somebody's lock several times.
            wake([unit for unit in half if unit.is_settled])

    def _postpone(self, unit: Unit) -> None:
        """Let a unit that waits for a lock wait elsewhere: on the second connection, or at the end of the queue.

        It is in both places for a moment, and so executed twice if that is when an interrupt comes.
        """
        if self._overflow is None:
            self._pause(BLOCKED_PAUSE_S)
            with self._mutex:
                self._queue.append(unit)
                self._batch = [each for each in self._batch if each is not unit]
            return
        _log(logging.INFO, "a unit waits for a locked row and was moved to the second connection")
        if isinstance(unit, ThreadUnit):
            unit.can_lead = False  # its thread goes on waiting here and cannot lead there
        try:
            self._overflow._enqueue(unit)
        except DBOSDatabaseUnavailableError as error:
            unit.settle(error=error)
            return
        with self._mutex:
            self._batch = [each for each in self._batch if each is not unit]

    def _reset(self) -> None:
        """Make the connection usable again, waiting as long as it takes or until the committer is closed."""
        backoff = Backoff(initial_s=0.05, maximum_s=RECONNECT_S)
        while True:
            try:
                self._writer.reset()
            except Exception as error:
                if self._is_closing or not self._reconnects:
                    return
                _log(logging.WARNING, "database unreachable, trying again: %s", _brief(error))
                self._pause(backoff.next_delay_s())
            else:
                self._is_suspect = False
                return

    def _pause(self, delay_s: float) -> None:
        """Sleep, in short pieces so that closing need not wait."""
        while not self._is_closing and delay_s > 0:
            time.sleep(min(delay_s, PAUSE_PIECE_S))
            delay_s -= PAUSE_PIECE_S

    # -- the writer thread ------------------------------------------------------------------------------------------

    def _run_writer_thread(self) -> None:
        is_open = True
        while is_open:
            try:
                is_open = self._take_turn()
                if is_open:
                    self._lead(_WRITER)
            except BaseException as error:  # this thread must not die: everybody would wait for it for ever
                self._give_up_batch(error)
        self._writer.close()

    def _take_turn(self) -> bool:
        """Wait until the writer thread is to lead; returns False once closed and done."""
        with self._mutex:
            while True:
                if self._interrupted:
                    self._relieve()
                if self._leader is _WRITER:
                    return True
                if self._leader is None and self._queue:
                    self._leader = _WRITER
                    return True
                if self._leader is None and self._is_closing:
                    return False
                self._writer_turn.wait(SAFETY_NET_S)

    def _give_up_batch(self, error: BaseException) -> None:
        with self._mutex:
            batch = self._batch if self._leader is _WRITER else []
        _fail(batch, error)
        self._is_suspect = True
        self._hand_over(_WRITER)
        wake(batch)
        _log(logging.ERROR, "the writer thread failed to commit a batch", exc_info=error)

    def _give_up(self) -> None:
        """Answer everybody who waits for a leader that does not come back."""
        with self._mutex:
            turn = self._leader if isinstance(self._leader, ThreadUnit) and self._leader.is_exclusive else None
            units = [unit for unit in (*self._batch, *self._queue) if unit is not turn]
            if turn is None and self._leader in self._queue:  # it was just named, and will find itself answered
                self._leader = _WRITER
            self._queue.clear()
        _fail(units)
        wake(units)
        _log(logging.ERROR, "the database did not answer while closing; %d units were not committed", len(units))


def _check_size(unit: Unit) -> None:
    if unit.size > MAX_UNIT_CHARACTERS:
        raise DBOSException(
            f"A value of {unit.size} characters is too large to be recorded; the limit is {MAX_UNIT_CHARACTERS}. "
            "Store it elsewhere, and return where it is."
        )


def _fail(units: Sequence[Unit], cause: BaseException | None = None, message: str = CLOSED) -> None:
    for unit in units:
        unit.settle(error=_unavailable(cause, message))


def _unavailable(cause: BaseException | None = None, message: str = CLOSED) -> DBOSDatabaseUnavailableError:
    """A new error for each unit: threads that raise the same one would share its traceback."""
    error = DBOSDatabaseUnavailableError(message)
    error.__cause__ = cause
    return error


def _log(level: int, message: str, *arguments: Any, exc_info: BaseException | None = None) -> None:
    try:
        logger.log(level, message, *arguments, exc_info=exc_info)
    except Exception:  # a broken log handler must not cost anybody's commit
        return


def _brief(error: BaseException) -> str:
    """The first line of a driver's message: later ones may quote statements and values."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
