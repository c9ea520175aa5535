"""Workflows under everything that can befall them: plays that Hypothesis makes up, and some that are always played.

``DBOS_TEST_SIMULATION_EXAMPLES=1000`` plays so many on each database, other ones each time; otherwise it is always the
same few. A play that fails is shrunk and printed; ``--hypothesis-seed`` repeats the whole run.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from dbos._dbos_config import process_config
from dbos._services import dispatcher, recovery
from dbos._sysdb.dialects import open_dialect
from dbos._sysdb.wakeups import Signal
from dbos.testing._postgres_server import MEMORY, PostgresServer
from tests.simulation.machine import CONFIG, Simulation
from tests.simulation.programs import (
    Child,
    GetEvent,
    Hold,
    Program,
    Receive,
    Send,
    SetEvent,
    Sleep,
    Step,
    WriteStream,
)
from tests.simulation.stillness import simulated_wait

EXAMPLES = int(os.environ.get("DBOS_TEST_SIMULATION_EXAMPLES", "0"))
STEPS = 40


# -- databases ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def simulated_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Signal, "wait", simulated_wait)
    for service, spacing in ((recovery, "TOLD_SPACING_S"), (dispatcher, "SPACING_S"), (dispatcher, "IDLE_SHARE")):
        monkeypatch.setattr(service, spacing, 0)  # time stands still while executors look about
    logger = logging.getLogger("dbos")  # every launch sets its level
    level = logger.level
    yield
    logger.setLevel(level)


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
def postgres_databases(
    simulated_waits: None, postgres_server: PostgresServer, dbos_postgres_template: str
) -> Databases:
    return Databases(lambda: postgres_server.create_database(dbos_postgres_template), postgres_server.drop_database)


# -- plays that Hypothesis makes up ------------------------------------------------------------------------------------


def play(databases: Databases, few: int) -> None:
    """Play plays, each on a database of its own: always the same ``few``, unless many are asked for."""

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
        OnItsOwnDatabase if EXAMPLES else seed(few)(OnItsOwnDatabase),
        settings=settings(
            max_examples=EXAMPLES or few,
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
    play(sqlite_databases, few=60)


@pytest.mark.postgres
@pytest.mark.timeout(0 if EXAMPLES else 600)
def test_nothing_is_lost_stranded_or_repeated_on_postgres(postgres_databases: Databases) -> None:
    play(postgres_databases, few=24)


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


def test_an_outage_in_which_nobody_renews_a_lease_kills_nobody(simulation: Simulation) -> None:
    simulation.begin("work", Program((Sleep(50), Step("body"))))
    instances = simulation.judge.seen.instances

    simulation.advance(65, is_jump=True)

    assert simulation.judge.seen.instances == instances


def test_what_an_executor_left_that_others_never_saw_is_taken_over_at_once(simulation: Simulation) -> None:
    """It came and went between two looks of the only other one, which then waited a third of a lease for its next."""
    simulation.begin("work", Program((Sleep(50),)))
    simulation.befall(1, "freezes")
    simulation.launch()
    simulation.start(1, "b", "work", Program((Sleep(5), Step("body"))), None, False)
    simulation.befall(0, "freezes")
    simulation.befall(1, "thaws")

    simulation.befall(2, "leaves")
    simulation.befall(1, "notices")

    [left] = simulation.executors[2:]
    assert left.state == "gone"
    assert simulation.judge.seen.rows["b"].owner_instance == simulation.executors[1].instance_id


def test_a_child_that_was_deleted_is_not_waited_for_by_an_execution_that_never_saw_it(simulation: Simulation) -> None:
    """It waited for ever: only who had seen the child's row knew that there had been one."""
    child = Child(Program((Sleep(50),)), in_place=False)
    simulation.begin("work", Program((child, Step("body"))))

    simulation.delete(which=1, whose=sorted(simulation.judge.seen.rows).index("a-1"), with_children=False)
    simulation.kill(0)
    simulation.let_go(0)

    assert simulation.judge.seen.status("a") == "ERROR"


def test_who_executed_a_workflow_that_was_deleted_at_its_end_gets_its_result(simulation: Simulation) -> None:
    simulation.begin("work", Program(()))
    simulation.start(0, "b", "work", Program((Step(),), hold="after"), None, True)
    [call] = simulation.executors[0].calls

    simulation.delete(which=1, whose=sorted(simulation.judge.seen.rows).index("b"), with_children=False)
    simulation.let_go(0)

    assert call.value == [1]


@pytest.mark.parametrize("hold", ["before", "after", "twice"])
def test_a_message_is_received_once_whatever_becomes_of_the_commit(simulation: Simulation, hold: Hold) -> None:
    simulation.begin("work", Program((Send(hold=hold), Receive(timeout_s=50, hold=hold), Receive(), Step("body"))))

    for _ in range(2 if hold != "twice" else 0):
        simulation.kill(0)
        simulation.let_go(0)
    simulation.kill(0)

    records = simulation.judge.seen.records["a"]
    assert [records[number].value for number in (2, 4)] == ["a/1", None]


def test_a_wait_for_a_message_ends_when_it_was_to_end_whoever_waits(simulation: Simulation) -> None:
    simulation.begin("work", Program((Receive(timeout_s=50),)))

    simulation.advance(35, is_jump=False)
    simulation.kill(0)
    simulation.advance(6, is_jump=False)
    before = simulation.judge.seen.status("a")
    simulation.advance(35, is_jump=False)

    assert before == "PENDING"
    assert simulation.judge.seen.status("a") == "SUCCESS"


def test_who_waits_in_another_process_is_told_of_messages_events_and_values(simulation: Simulation) -> None:
    simulation.begin("work", Program((Receive(timeout_s=50), SetEvent(), WriteStream(), Step("body"))))
    simulation.start(1, "b", "work_async", Program((GetEvent(timeout_s=50), Step("body"))), None, False)
    simulation.read_stream(which=1, whose=0)
    [reader] = simulation.executors[1].calls

    simulation.send(which=1, whose=0, topic=None, key=None, to_forks=False)

    assert simulation.judge.seen.records["b"][1].value == "a/3"
    assert reader.values == ["a/4"]


def test_a_stream_goes_on_where_it_was_when_its_writer_is_killed(simulation: Simulation) -> None:
    simulation.begin("work", Program((WriteStream(hold="after"), Step(does="stream", hold="body"), WriteStream())))
    simulation.launch()
    simulation.read_stream(which=2, whose=0)
    [reader] = simulation.executors[2].calls

    simulation.kill(0)
    simulation.kill(0)
    simulation.let_go(0)

    assert reader.is_over
    assert [value.partition("#")[0] for value in reader.values] == ["a/1", "a/2", "a/2", "a/3"]


def test_a_fork_has_the_events_and_values_of_what_it_does_not_repeat(simulation: Simulation) -> None:
    simulation.begin("work", Program((SetEvent(), WriteStream(), WriteStream(), SetEvent())))

    simulation.fork(which=0, whose=0, start_step=2, fork_id="x")

    traffic = simulation.judge.seen.traffic
    assert [value for value, _ in traffic.streams["x"]] == ["a/2", "x/3"]
    assert traffic.history["x"] == {1: "a/1", 4: "x/4"}


def test_what_is_deleted_while_another_process_runs_it_leaves_nothing(simulation: Simulation) -> None:
    child = Child(Program((WriteStream(), Step("body"))), in_place=True)
    simulation.begin("work", Program((SetEvent(), Send(), Step(does="stream"), child)))

    simulation.delete(which=1, whose=0, with_children=True)
    simulation.let_go(0)

    assert simulation.judge.seen.rows == {}
