"""Workflows under everything that can befall them, in orders that Hypothesis chooses; see the package's other modules.

``DBOS_TEST_SIMULATION_EXAMPLES=2000`` plays so many plays on each database, other ones each time (``make simulate``);
otherwise it is always the same few.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, currently_in_test_context, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

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
from dbos._sysdb.wakeups import Signal
from tests.postgres_server import MEMORY, PostgresServer
from tests.simulation.executors import LEASE_S, Call, Executor, Kind, Place, Stage
from tests.simulation.model import GIVEN_UP, UNFINISHED, Happening, Judge, Observer
from tests.simulation.programs import Child, Hold, Program, Sleep, Step, programs
from tests.simulation.stillness import simulated_wait

CONFIG: DBOSConfig = {
    "name": "simulation",
    "application_version": "simulated",
    "log_level": "CRITICAL",
    "sqlite_synchronous": "NORMAL",
}

EXAMPLES = int(os.environ.get("DBOS_TEST_SIMULATION_EXAMPLES", "0"))
FEW_EXAMPLES = 40
STEPS = 30
PIECE_S = LEASE_S / 3  # how often a lease is renewed
MAX_ROUNDS = 100  # of services, until nothing moves any more

T = TypeVar("T")

IDS = "abcdef"
NUMBERS = st.integers(0, 23)
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

    @precondition(lambda self: self.acting())
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
        in_place = in_place and kind != "work_async"
        existing = self.judge.seen.rows.get(workflow_id)
        if existing is None:
            self.judge.expect(workflow_id, kind, program)
        start = executor.run if in_place else executor.start
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

    @precondition(lambda self: self.acting() and self.judge.seen.rows)
    @rule(which=NUMBERS, whose=NUMBERS)
    def await_result(self, which: int, whose: int) -> None:
        """Of a workflow that does not exist, too: it may be started some day."""
        executor, workflow_id = _pick(self.acting(), which), self.somebody(UNFINISHED, whose)
        with self.move():
            self.ask(
                executor,
                lambda: drive(executor.engine, workflows.get_result(executor.engine, workflow_id)),
                workflow_id,
                awaits_outcome=True,
            )

    @precondition(lambda self: self.acting())
    @rule(which=NUMBERS, whose=NUMBERS)
    def cancel(self, which: int, whose: int) -> None:
        executor, workflow_id = _pick(self.acting(), which), self.somebody(UNFINISHED, whose)
        self.leave_behind(executor, workflow_id)
        with self.move(Happening(cancelled=workflow_id)):
            call = self.ask(
                executor, lambda: drive(executor.engine, workflows.cancel_workflow(executor.engine, workflow_id))
            )
        assert call.error is None

    @precondition(lambda self: self.acting())
    @rule(which=NUMBERS, whose=NUMBERS)
    def resume(self, which: int, whose: int) -> None:
        executor, workflow_id = _pick(self.acting(), which), self.somebody(GIVEN_UP, whose)
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
        return _pick([*meant, *meant, *sorted(rows), IDS[-1]], whose)

    def leave_behind(self, knowing: Executor, workflow_id: str) -> None:
        """What one executor does to a workflow that another runs is heard there with the next heartbeat."""
        for executor in self.executors:
            if executor is not knowing and executor.state != "gone":
                executor.behind.add(workflow_id)

    @precondition(lambda self: self.places())
    @rule(which=NUMBERS)
    def let_go(self, which: int) -> None:
        place = _pick(self.places(), which)
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

    @precondition(lambda self: self.unfinished())
    @rule(seconds=st.sampled_from([2, 6, 35, 65]), is_jump=st.booleans())
    def advance(self, seconds: float, is_jump: bool) -> None:
        """Time goes by, and leases are renewed; or all stood still meanwhile: the host slept, the database was away."""
        while seconds > 0:
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

    @precondition(lambda self: len(self.there("live", "stale", "frozen")) < 2)
    @rule()
    def launch(self) -> None:
        with self.move():
            self.executors.append(Executor(self.stage, len(self.executors) + 1, self.time.now_s()))

    @precondition(lambda self: self.busy())
    @rule(which=NUMBERS)
    def pause(self, which: int) -> None:
        """An executor is paused for longer than its lease; it goes on, and has not noticed yet."""
        executor = _pick(self.busy(), which)
        tell(f"{executor} is paused")
        with self.move():
            executor.freeze()
        self.advance(LEASE_S + PIECE_S, is_jump=False)
        with self.move():
            executor.thaw()

    @precondition(lambda self: self.busy())
    @rule(which=NUMBERS)
    def kill(self, which: int) -> None:
        """An executor is killed, which others on its host see at once."""
        self.crash(_pick(self.busy(), which), is_seen=True)

    @precondition(lambda self: self.unfinished() and self.there("live", "stale", "frozen"))
    @rule(which=NUMBERS, fate=st.sampled_from(["freezes", "freezes", "freezes", "is cut off", "leaves"]))
    def befall(self, which: int, fate: str) -> None:
        """An executor freezes, thaws if it is frozen, or notices that it was; or it ends, unseen or in order."""
        executor = _pick(self.there("live", "stale", "frozen"), which)
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


def _pick(options: Sequence[T], number: int) -> T:
    return options[number % len(options)]


# -- databases ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def simulated_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Signal, "wait", simulated_wait)


class Databases(NamedTuple):
    """Where a simulation's databases come from."""

    make: Callable[[], str]
    drop: Callable[[str], None]


@pytest.fixture
def sqlite_databases(simulated_waits: None) -> Iterator[Databases]:
    """In memory where there is such a place: these files are made and deleted by the hundred."""
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        template, numbers = Path(directory, "template.sqlite"), count(1)
        settings = process_config({**CONFIG, "system_database_url": f"sqlite:///{template}"})
        open_dialect(settings, process_tag="template").prepare(may_migrate=True)

        def make() -> str:
            path = Path(directory, f"{next(numbers)}.sqlite")
            shutil.copy(template, path)
            return f"sqlite:///{path}"

        def drop(url: str) -> None:
            Path(url.removeprefix("sqlite:///")).unlink()

        yield Databases(make, drop)


@pytest.fixture
def postgres_databases(simulated_waits: None, postgres_server: PostgresServer, migrated_template: str) -> Databases:
    return Databases(lambda: postgres_server.create_database(migrated_template), postgres_server.drop_database)


# -- plays that Hypothesis makes up ------------------------------------------------------------------------------------


def play(databases: Databases, number: int) -> None:
    """Play examples, each on a database of its own; ``number`` chooses the few that are always the same."""

    class OnItsOwnDatabase(Simulation):
        def __init__(self) -> None:
            self.url = databases.make()
            super().__init__(self.url)

        def teardown(self) -> None:
            try:
                super().teardown()
            finally:
                databases.drop(self.url)

    run_state_machine_as_test(
        OnItsOwnDatabase if EXAMPLES else seed(number)(OnItsOwnDatabase),
        settings=settings(
            max_examples=EXAMPLES or FEW_EXAMPLES,
            stateful_step_count=STEPS,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )


@pytest.mark.timeout(0 if EXAMPLES else 600)
def test_nothing_is_lost_stranded_or_repeated_on_sqlite(sqlite_databases: Databases) -> None:
    play(sqlite_databases, 1)


@pytest.mark.postgres
@pytest.mark.timeout(0 if EXAMPLES else 600)
def test_nothing_is_lost_stranded_or_repeated_on_postgres(postgres_databases: Databases) -> None:
    play(postgres_databases, 2)


# -- plays that are always played: they have found something, or are rarely made up ------------------------------------


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def simulation(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    """Two executors, to be led by hand; at the end everything is let go."""
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    url = databases.make()
    simulation = Simulation(url)
    yield simulation
    try:
        simulation.teardown()
    finally:
        databases.drop(url)


def test_a_run_whose_workflow_was_resumed_elsewhere_and_came_back_does_not_go_on(simulation: Simulation) -> None:
    """It slept on, unknown to the table of runs, then executed a step that its successor had recorded."""
    simulation.begin("work", Program((Sleep(50), Step())))

    simulation.cancel(which=1, whose=0)
    simulation.resume(which=0, whose=0)
    simulation.advance(65, is_jump=False)

    assert simulation.judge.seen.status("a") == "SUCCESS"


@pytest.mark.parametrize("hold", [None, "body"])
def test_a_start_that_hears_late_of_its_commit_leaves_a_later_run_alone(simulation: Simulation, hold: Hold) -> None:
    """It took the later run's place and stopped it; or, that being finished, executed everything again."""
    child = Child(Program((Step(hold),)), in_place=False, hold="after")
    simulation.begin("work", Program((child,)))

    simulation.cancel(which=0, whose=1)
    simulation.resume(which=0, whose=1)
    simulation.let_go(0)

    assert simulation.judge.seen.status("a-1") == ("PENDING" if hold else "SUCCESS")


def test_a_start_that_hears_of_its_commit_after_its_executor_was_declared_dead_executes_nothing(
    simulation: Simulation,
) -> None:
    """The process was paused between commit and answer; it registered anew, and executed what others had finished."""
    child = Child(Program((Step(),)), in_place=False, hold="after")
    simulation.begin("work", Program((child,)))

    simulation.pause(0)
    simulation.advance(2, is_jump=False)
    simulation.let_go(0)

    assert [effect.executor.number for effect in simulation.stage.effects] == [2]


def test_a_run_that_was_resumed_meanwhile_does_not_write_its_outcome(simulation: Simulation) -> None:
    simulation.begin("work", Program((Step(),), hold="before"))

    simulation.cancel(which=0, whose=0)
    simulation.resume(which=0, whose=0)
    simulation.let_go(0)

    assert simulation.judge.seen.status("a") == "PENDING"


def test_a_run_that_was_cancelled_meanwhile_starts_no_child(simulation: Simulation) -> None:
    child = Child(Program((Step(),)), in_place=False, hold="before")
    simulation.begin("work", Program((child,)))

    simulation.cancel(which=0, whose=0)
    simulation.let_go(0)

    assert simulation.judge.seen.status("a-1") is None


def test_whoever_called_an_executor_that_was_declared_dead_gets_the_result_of_another(simulation: Simulation) -> None:
    simulation.launch()
    simulation.launch()
    simulation.start(0, "a", "work", Program((Step(),), hold="before"), None, True)
    [call] = simulation.executors[0].calls

    simulation.pause(0)
    simulation.let_go(0)
    was_over = call.is_over
    simulation.let_go(0)

    assert not was_over
    assert call.value == [1]


def test_a_sleep_ends_when_it_was_to_end_whoever_sleeps_it(simulation: Simulation) -> None:
    simulation.begin("work", Program((Sleep(50),)))

    simulation.advance(35, is_jump=False)
    simulation.kill(0)
    simulation.advance(6, is_jump=False)
    before = simulation.judge.seen.status("a")
    simulation.advance(35, is_jump=False)

    assert before == "PENDING"
    assert simulation.judge.seen.status("a") == "SUCCESS"
