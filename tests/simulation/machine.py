"""The state machine: executors on one database, and what users, operators and fate do to them.

Each rule is a move: something happens, everything comes to rest, and the judge compares what is with what may be.
Nothing depends on real time, so a play that fails is replayed, and shrunk, move by move. What several runs do between
two rests is left to their threads; so that no choice of Hypothesis depends on that, a rule has no preconditions, and
does nothing where there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from hypothesis import currently_in_test_context, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from dbos import DBOSConfig
from dbos._clock import VirtualClock
from dbos._dbos_config import process_config
from dbos._engine.flow import drive
from dbos._error import (
    DBOSConflictingWorkflowError,
    DBOSNonExistentWorkflowError,
    MaxRecoveryAttemptsExceededError,
)
from dbos._operations import workflows
from dbos._operations.handles import EngineHandle
from dbos._sysdb.dialects import open_dialect
from tests.simulation.application import Kind
from tests.simulation.executors import LEASE_S, Executor
from tests.simulation.model import GIVEN_UP, UNFINISHED, Happening, Judge, Observer
from tests.simulation.programs import Program, programs
from tests.simulation.stage import Call, Place, Stage

__all__ = ["CONFIG", "Simulation"]

CONFIG: DBOSConfig = {
    "name": "simulation",
    "application_version": "simulated",
    "log_level": "CRITICAL",
    "sqlite_synchronous": "NORMAL",
}
PIECE_S = LEASE_S / 3  # how often a lease is renewed
MAX_EXECUTORS = 3
MAX_ROUNDS = 100  # of services, until nothing moves any more

T = TypeVar("T")

IDS = "abcdef"
NUMBERS = st.integers(0, 23)  # which of several, counted round
TIMEOUTS = st.sampled_from([None, None, 15, 45])  # seconds
KINDS: st.SearchStrategy[Kind] = st.sampled_from(["work", "work_async", "fragile_work"])


class Simulation(RuleBasedStateMachine):
    """Executors on one database, and what users, operators and fate do to them."""

    def __init__(self, url: str) -> None:
        super().__init__()
        config: DBOSConfig = {**CONFIG, "system_database_url": url}
        settings = process_config(config)
        self.time = VirtualClock()
        self.stage = Stage(config)
        self.executors: list[Executor] = []
        self.observer = Observer(open_dialect(settings, process_tag="observer"), settings.serialization)
        self.judge = Judge(self.stage, self.observer)
        self.is_sound = True

    # -- who is there ------------------------------------------------------------------------------------------------

    def there(self, *states: str) -> list[Executor]:
        return [executor for executor in self.executors if executor.state in states]

    def acting(self) -> list[Executor]:
        return self.there("live", "stale")

    def busy(self) -> list[Executor]:
        """Those who act, and execute something."""
        return [executor for executor in self.acting() if executor.engine.runs.all()]

    def unfinished(self) -> list[str]:
        return [row.workflow_uuid for row in self.judge.seen.rows.values() if row.status in UNFINISHED]

    def places(self) -> list[Place]:
        return [place for place in self.stage.places() if place.executor.state != "frozen"]

    @contextmanager
    def move(self, happening: Happening | None = None) -> Iterator[Happening]:
        """A move; after it everything comes to rest, and is judged."""
        happening = happening or Happening()
        self.is_sound = False
        yield happening
        self.settle()
        self.judge.look(self.executors, happening, self.time.now_ms())
        self.is_sound = True

    def settle(self) -> None:
        for _ in range(MAX_ROUNDS):
            self.stage.activity.wait_until_still()
            before = self.progress()
            for executor in self.there("live"):
                executor.look_about()
            self.stage.activity.wait_until_still()
            if self.progress() == before:
                return
        raise AssertionError("I8: it never comes to rest")

    def progress(self) -> tuple[object, ...]:
        """What changes as long as anything happens but that somebody looks again whether it has."""
        stage, there = self.stage, self.there("live", "stale", "frozen")
        runs = [len(executor.engine.runs.all()) for executor in there]
        calls = [sum(not call.is_over for call in executor.calls) for executor in there]
        return stage.commits, len(stage.effects), len(stage.places()), runs, calls

    def ask(self, executor: Executor, func: Callable[[], Any], workflow_id: str = "", **options: Any) -> Call:
        call = executor.call(func, workflow_id, **options)
        self.stage.activity.wait_until_still()
        return call

    # -- users -------------------------------------------------------------------------------------------------------

    @initialize(kind=KINDS, program=programs())
    def begin(self, kind: Kind, program: Program) -> None:
        self.launch()
        self.launch()
        self.start(0, "a", kind, program, None, False)

    @rule(
        which=NUMBERS,
        workflow_id=st.sampled_from(IDS),
        kind=KINDS,
        program=programs(),
        timeout_s=TIMEOUTS,
        in_place=st.booleans(),
    )
    def start(
        self,
        which: int,
        workflow_id: str,
        kind: Kind,
        program: Program,
        timeout_s: float | None,
        in_place: bool,
    ) -> None:
        executor = _pick(self.acting(), which)
        if executor is None:
            return
        in_place = in_place and kind != "work_async"
        existing = self.judge.seen.rows.get(workflow_id)
        if existing is None:
            self.judge.expect(workflow_id, kind, program)
        start = executor.application.run if in_place else executor.application.start
        awaits_outcome = in_place and (existing is None or existing.name == kind)

        with self.move():
            call = self.ask(
                executor,
                lambda: start(kind, program, workflow_id, timeout_s),
                workflow_id,
                awaits_outcome=awaits_outcome,
            )

        if existing is not None and existing.name != kind:
            assert isinstance(call.error, DBOSConflictingWorkflowError)
        elif existing is not None and existing.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
            assert isinstance(call.error, MaxRecoveryAttemptsExceededError)
        elif not in_place:
            assert isinstance(call.value, EngineHandle)

    @rule(which=NUMBERS, whose=NUMBERS)
    def await_result(self, which: int, whose: int) -> None:
        """Of a workflow that does not exist, too: it may be started some day."""
        executor, workflow_id = _pick(self.acting(), which), self.somebody(UNFINISHED, whose)
        if executor is None:
            return
        with self.move():
            self.ask(
                executor,
                lambda: drive(executor.engine, workflows.get_result(executor.engine, workflow_id)),
                workflow_id,
                awaits_outcome=True,
            )

    @rule(which=NUMBERS, whose=NUMBERS)
    def cancel(self, which: int, whose: int) -> None:
        executor, workflow_id = _pick(self.acting(), which), self.somebody(UNFINISHED, whose)
        if executor is None:
            return
        self.leave_behind(executor, workflow_id)
        with self.move(Happening(cancelled=workflow_id)):
            call = self.ask(
                executor, lambda: drive(executor.engine, workflows.cancel_workflow(executor.engine, workflow_id))
            )
        assert call.error is None

    @rule(which=NUMBERS, whose=NUMBERS)
    def resume(self, which: int, whose: int) -> None:
        executor, workflow_id = _pick(self.acting(), which), self.somebody(GIVEN_UP, whose)
        if executor is None:
            return
        self.leave_behind(executor, workflow_id)
        status = self.judge.seen.status(workflow_id)
        with self.move(Happening(resumed=workflow_id if status in GIVEN_UP else None)):
            call = self.ask(
                executor,
                lambda: drive(executor.engine, workflows.resume_workflows(executor.engine, [workflow_id], None)),
            )
        assert isinstance(call.error, DBOSNonExistentWorkflowError if status is None else type(None))

    def somebody(self, statuses: Sequence[str], whose: int) -> str:
        """A workflow with one of the statuses, as a rule; or another, or one that may not exist yet."""
        rows = self.judge.seen.rows
        meant = [workflow_id for workflow_id in sorted(rows) if rows[workflow_id].status in statuses]
        some = [*meant, *meant, *sorted(rows), IDS[-1]]
        return some[whose % len(some)]

    def leave_behind(self, knowing: Executor, workflow_id: str) -> None:
        """What one executor does to a workflow that another runs is heard there with the next heartbeat."""
        for executor in self.executors:
            if executor is not knowing and executor.state != "gone":
                executor.behind.add(workflow_id)

    @rule(which=NUMBERS)
    def let_go(self, which: int) -> None:
        place = _pick(self.places(), which)
        if place is None:
            return
        tell(f"{place} goes on")
        happening = Happening(must_record=[place] if self.will_record(place) else [])
        with self.move(happening):
            self.stage.let_go(place)

    def will_record(self, place: Place) -> bool:
        """Whether what is let go is to be recorded: by the owner, whose instance is not declared dead."""
        seen = self.judge.seen
        row = seen.rows[place.workflow_id]
        if place.where not in ("body", "before") or place.executor.instance_id not in seen.instances:
            return False
        if row.run_token != place.run_token:
            return False
        return row.status == "PENDING" or (row.status == "CANCELLED" and place.where == "body")

    # -- time --------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([2, 6, 35, 65]), is_jump=st.booleans())
    def advance(self, seconds: float, is_jump: bool) -> None:
        """Time goes by, and leases are renewed; or all stood still meanwhile: the host slept, the database was away."""
        while seconds > 0 and self.unfinished():
            piece_s = seconds if is_jump else min(seconds, PIECE_S)
            self.pass_time(piece_s)
            seconds -= piece_s

    def pass_time(self, seconds: float) -> None:
        with self.move():
            self.time.advance(seconds)
            for executor in self.there("live", "stale", "frozen"):
                executor.clock.advance(seconds)
            for executor in self.acting():
                executor.clock.ring()
            self.stage.activity.wait_until_still()
            for executor in self.acting():
                self.catch_up_with(executor)

    def catch_up_with(self, executor: Executor) -> None:
        executor.state = "live"
        executor.renew()
        executor.look_about()  # before others have renewed theirs

    # -- fate --------------------------------------------------------------------------------------------------------

    @rule()
    def launch(self) -> None:
        if len(self.there("live", "stale", "frozen")) == MAX_EXECUTORS:
            return
        with self.move():
            self.executors.append(Executor(self.stage, len(self.executors) + 1, self.time.now_s()))

    @rule(which=NUMBERS)
    def pause(self, which: int) -> None:
        """An executor is paused for longer than its lease; it goes on, and has not noticed yet."""
        executor = _pick(self.busy(), which)
        if executor is None:
            return
        tell(f"{executor} is paused")
        with self.move():
            executor.freeze()
        self.advance(LEASE_S + PIECE_S, is_jump=False)
        with self.move():
            executor.thaw()

    @rule(which=NUMBERS)
    def kill(self, which: int) -> None:
        """An executor is killed, which others on its host see at once."""
        executor = _pick(self.busy(), which)
        if executor is not None:
            self.crash(executor, is_seen=True)

    @rule(which=NUMBERS, fate=st.sampled_from(["freezes", "freezes", "freezes", "is cut off", "leaves"]))
    def befall(self, which: int, fate: str) -> None:
        """An executor freezes, thaws if it is frozen, or notices that it was; or it ends, unseen or in order."""
        executor = _pick(self.there("live", "stale", "frozen"), which)
        if executor is None or not self.unfinished():
            return
        # Shutting down would wait for what is held.
        may_leave = executor.state == "live" and all(place.executor is not executor for place in self.stage.places())
        tell(f"{executor}, which is {executor.state}, {fate}")
        if fate == "is cut off" or (fate == "leaves" and not may_leave):
            self.crash(executor, is_seen=False)
            return
        with self.move():
            if fate == "leaves":
                executor.leave()
            elif executor.state == "live":
                executor.freeze()
            elif executor.state == "frozen":
                executor.thaw()
            else:
                self.catch_up_with(executor)

    def crash(self, executor: Executor, *, is_seen: bool) -> None:
        tell(f"{executor} crashes")
        with self.move():
            executor.crash(is_seen=is_seen)
        if len(self.there("live", "stale", "frozen")) < 2:
            self.launch()

    # -- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if self.is_sound:
                self.come_to_an_end()
        finally:
            for executor in self.there("live", "stale", "frozen"):
                executor.crash(is_seen=False)
            self.observer.close()

    def come_to_an_end(self) -> None:
        """Everything is let go: whatever is not cancelled or given up ends, and everybody who waits is told."""
        for executor in self.there("frozen"):
            with self.move():
                executor.thaw()
        if not self.acting():
            self.launch()
        for _ in range(MAX_ROUNDS):
            self.pass_time(PIECE_S)
            while self.places():
                self.let_go(0)
            if not self.unfinished():
                break
        else:
            raise AssertionError(f"I2: {self.unfinished()} never end")
        self.pass_time(PIECE_S)
        for executor in self.acting():
            assert executor.engine.runs.all() == []
            waiting = {call.workflow_id for call in executor.calls}
            assert not waiting & self.judge.seen.rows.keys()
            assert len(executor.engine.db.wakeups.keys()) == len(waiting)


def tell(what: str) -> None:
    """Have it printed with a play that failed."""
    if currently_in_test_context():
        note(what)


def _pick(options: Sequence[T], number: int) -> T | None:
    return options[number % len(options)] if options else None
