"""Fires schedules: one loop for all of them, whether they are in the database or in the code.

What is due is asked for along an index, so ten thousand schedules cost this process no more than one. Every process
comes for every tick; the lock of the schedule's row, and the key of the tick, let one of them have it. The one that had
the last comes first to the next, and the others a little later, so that they usually find nothing to be done.
"""

from __future__ import annotations

import logging
import threading
from functools import partial

from dbos._clock import Look
from dbos._engine.engine import Engine
from dbos._engine.flow import drive
from dbos._engine.run import Run
from dbos._engine.schedules import Encoder, settle
from dbos._engine.ticks import decide, look_after, replan
from dbos._ids import jitter
from dbos._scheduler_decorator import DeclaredSchedules
from dbos._services.service import Service
from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import ScheduleRow
from dbos._sysdb.stores.schedules import CLOCK_TOLERANCE_MS, Agenda, Choose, Decide, Decided, Settled, Situation
from dbos._sysdb.wakeups import WORKFLOW
from dbos._types import Overlap

__all__ = ["Scheduler"]

logger = logging.getLogger("dbos.scheduler")

AT_ONCE = 500  # schedules in one transaction
CLOCK_CHECK_S = 1.0  # the longest wait for a tick: a clock may jump, and no wait counts the time of a suspended machine
JUMP_MS = 1000  # between what the clock says has passed and what has
SAFETY_NET_S = 1.0  # a run that ended elsewhere, and that a tick has waited for, is noticed this late
SPACING_S = 0.05  # between two looks at the database that others' commits bring on
YIELD_S = 0.02  # about, to whoever had the last tick


class Scheduler(Service):
    """Starts a workflow for every tick of every schedule, as the schedule says."""

    name = "scheduler"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.clock)
        self._engine = engine
        self._agenda = Agenda(None, has_buffered=False)
        self._must_look = True
        self._look_at = 0.0  # monotonic time, as the others
        self._plan_at = 0.0
        self._release_at = 0.0
        self._seen, self._seen_ms = 0.0, 0  # when the last round was
        self._comes_first = True
        self._ended: set[str] = set()
        self._doubts: set[tuple[str | None, str]] = set()  # schedules and workflows that users were told of
        self._lock = threading.Lock()
        self._declared = DeclaredSchedules(engine)

    # -- being told ----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Schedules were created, changed or deleted, here or elsewhere; or declared in the code."""
        self._must_look = True
        self.wake()

    def tell(self, topic: str | None) -> None:
        """Another process has committed something, which may be about schedules or the end of a run."""
        if topic == WORKFLOW and not self._agenda.has_buffered:
            return
        if self._agenda.has_buffered:
            self._release_at = min(self._release_at, self._engine.clock.monotonic() + SPACING_S)
        self.check()

    def note_ended(self, run: Run) -> None:
        """A run has ended; if a schedule has started it, another tick may have waited for that."""
        if run.schedule_name is not None:
            with self._lock:
                self._ended.add(run.schedule_name)
            self.wake()

    # -- rounds --------------------------------------------------------------------------------------------------------

    def work_once(self) -> float | None:
        """Start what is due, and come back when more is."""
        engine = self._engine
        now, now_ms = engine.clock.monotonic(), self._now_ms()
        has_gone_back = now_ms < self._seen_ms - CLOCK_TOLERANCE_MS
        if now >= self._plan_at or has_gone_back:
            self._plan_at = now + engine.settings.scheduler_polling_interval_s
            self.plan_once()
        if has_gone_back:
            self._declared.begin_anew()
        self._seen, self._seen_ms = now, now_ms
        self._look_after_ended()
        if self._agenda.has_buffered and now >= self._release_at:
            self._release_at = now + SAFETY_NET_S
            name = engine.application_name
            self._look_after(partial(engine.db.schedules.releasable, count=AT_ONCE, application_name=name))
        if not engine.settings.use_listen_notify and now >= self._look_at + SAFETY_NET_S:
            self._must_look = True  # nobody tells what others have changed
        if self._must_look and now >= self._look_at:
            self._look_at = now + SPACING_S
            self._look()
        self.fire_once()
        self._declared.fire_once()
        return self._delay_s()

    def _now_ms(self) -> int:
        """The shared time; measured anew if this machine's clock has jumped, or has stood still with the machine."""
        engine = self._engine
        now_ms = engine.db.now_ms()
        passed_ms = (engine.clock.monotonic() - self._seen) * 1000
        if self._seen_ms and abs(now_ms - self._seen_ms - passed_ms) > JUMP_MS:
            engine.db.synchronize_clock()
            now_ms = engine.db.now_ms()
        return now_ms

    def _delay_s(self) -> Look:
        now, now_ms = self._engine.clock.monotonic(), self._engine.db.now_ms()
        looks, due = [self._plan_at - now], list[float]()
        if not self._engine.settings.use_listen_notify:
            looks.append(SAFETY_NET_S)
        if self._must_look:
            due.append(self._look_at - now)
        if self._agenda.has_buffered:
            looks.append(self._release_at - now)
        ticks = [each for each in (self._agenda.next_fire_ms, self._declared.next_tick_ms) if each is not None]
        if ticks:
            looks.append(CLOCK_CHECK_S)
            due.append((min(ticks) - now_ms) / 1000)
        return Look(max(0.0, min(looks)), max(0.0, min(due)) if due else None)

    def _look(self) -> None:
        self._must_look = False  # before the look: what is told during it brings on another
        try:
            self._agenda = self._engine.db.read(self._engine.db.schedules.agenda, self._engine.application_name)
        except BaseException:
            self._must_look = True
            raise

    # -- schedules in the database -------------------------------------------------------------------------------------

    def plan_once(self) -> None:
        """Compute the next ticks of what was written by hand, could not be planned, or was planned by a wrong clock."""
        db = self._engine.db

        # The time of the transaction, which may have waited: what others have planned meanwhile is not from the future.
        def choose(connection: Connection) -> list[ScheduleRow]:
            return db.schedules.unplanned(connection, db.now_ms(), self._engine.application_name)

        def plan(row: ScheduleRow, situation: Situation) -> Decided:
            return Decided(replan(row, db.now_ms()))

        # What cannot be planned is looked at again the next time, and must not keep this one from coming to its end.
        self._settle(choose, plan, db.now_ms())
        self._must_look = True

    def fire_once(self) -> int:
        """Decide about ticks that are due; returns how many decisions that took. There may be more."""
        if self._is_due() and not self._comes_first:
            self._stopping.wait(YIELD_S * jitter())
            self._look()
        if self._stopping.is_set() or not self._is_due():
            return 0
        settled = self._fire()
        self._tell_users(settled)
        self._comes_first = bool(settled.decisions)
        self._look()
        if not settled.rows:  # somebody else is about it
            self._must_look, self._look_at = True, self._engine.clock.monotonic() + SPACING_S
            self._agenda = self._agenda._replace(next_fire_ms=None)
        return len(settled.decisions)

    def _tell_users(self, settled: Settled) -> None:
        for decision in settled.decisions:
            if decision.decision == "missed":
                self._engine.alert(
                    "schedule_ticks_missed",
                    f"{decision.ticks} ticks of schedule {decision.schedule_name} were missed",
                    {"schedule_name": decision.schedule_name, "ticks": decision.ticks},
                )
        for run in settled.runs:
            doubt = (run.schedule_name, run.name)
            if run.name not in self._engine.registry.workflows and doubt not in self._doubts:
                self._doubts.add(doubt)
                logger.warning(
                    "Schedule %s starts workflow %s, which is not registered in this process; its runs wait for a "
                    "process of the latest version that has it.",
                    *doubt,
                )

    def _is_due(self) -> bool:
        next_ms = self._agenda.next_fire_ms
        return next_ms is not None and next_ms <= self._engine.db.now_ms()

    def _fire(self) -> Settled:
        engine = self._engine
        now_ms, encode = engine.db.now_ms(), Encoder(engine)

        def fire(row: ScheduleRow, situation: Situation) -> Decided:
            return decide(row, situation, now_ms, encode)

        name = engine.application_name
        choose = partial(engine.db.schedules.due, now_ms=now_ms, count=AT_ONCE, application_name=name)
        return self._settle(choose, fire, now_ms, encode=encode)

    def _settle(
        self,
        choose: Choose,
        decide: Decide,
        now_ms: int,
        *,
        encode: Encoder | None = None,
        overlap: Overlap | None = None,
    ) -> Settled:
        """Decide about several schedules together; if the database refuses what one of them wants, about each alone."""
        engine = self._engine
        chosen: list[str] = []

        def choose_noted(connection: Connection) -> list[ScheduleRow]:
            rows = choose(connection)
            chosen[:] = [row.schedule_name for row in rows]
            return rows

        try:
            return drive(engine, settle(engine, choose_noted, decide, now_ms, encode=encode, overlap=overlap))
        except Exception as error:
            if not engine.db.dialect.refuses_value(error):
                raise
        alone = [self._settle_alone(name, decide, now_ms, encode, overlap) for name in list(chosen)]
        return Settled(
            rows=[row for settled in alone for row in settled.rows],
            decisions=[decision for settled in alone for decision in settled.decisions],
        )

    def _settle_alone(
        self, name: str, decide: Decide, now_ms: int, encode: Encoder | None, overlap: Overlap | None
    ) -> Settled:
        engine = self._engine
        choose = partial(engine.db.schedules.named, names=[name])
        try:
            return drive(engine, settle(engine, choose, decide, now_ms, encode=encode, overlap=overlap))
        except Exception as error:
            if not engine.db.dialect.refuses_value(error):
                raise
            refusal = error

        def refuse(row: ScheduleRow, situation: Situation) -> Decided:
            raise refusal

        return drive(engine, settle(engine, choose, refuse, now_ms))

    # -- runs that have ended ------------------------------------------------------------------------------------------

    def _look_after_ended(self) -> None:
        if not self._ended:
            return
        with self._lock:
            ended, self._ended = self._ended, set()
        db = self._engine.db
        careful = db.read(db.schedules.careful, sorted(ended))
        if careful:
            self._look_after(partial(db.schedules.named, names=careful))

    def _look_after(self, choose: Choose) -> None:
        engine = self._engine
        now_ms, encode = engine.db.now_ms(), Encoder(engine)

        def decide(row: ScheduleRow, situation: Situation) -> Decided:
            return look_after(row, situation, now_ms, encode)

        # Only whether there are unfinished runs is of interest.
        self._settle(choose, decide, now_ms, encode=encode, overlap="skip")
        self._must_look = True
