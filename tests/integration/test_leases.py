"""Who is alive, and what happens to the work of who is not: several executors in one process, on virtual time."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dbos import DBOSConfig
from dbos._clock import VirtualClock
from dbos._context import Context
from dbos._core import decorate_workflow
from dbos._dbos_config import process_config
from dbos._engine.engine import Engine
from dbos._engine.flow import drive
from dbos._engine.run import Run
from dbos._engine.start import begin
from dbos._engine.step import wait_for_lease
from dbos._error import ExecutorFencedError
from dbos._registry import Registry
from dbos._services.leases import Leases
from dbos._services.process import is_gone, own_identity
from dbos._services.recovery import Recovery
from dbos._sys_db import SystemDatabase
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import RecordOutcome, RecordStep
from dbos._sysdb.rows import ExecutorRow, StatusRow
from tests.acceptance.harness import until
from tests.integration.histories import PATIENCE_S

LEASE_S = 30.0


class Executor:
    """An executor without threads: its rounds are called by the test."""

    def __init__(self, config: DBOSConfig, clock: VirtualClock) -> None:
        settings = process_config({**config, "lease_s": LEASE_S})
        self.registry: Registry[Engine] = Registry()

        def work() -> str:
            return "done"

        decorate_workflow(
            self.registry, work, name="work", max_recovery_attempts=100, serialization_type=None, validate_args=None
        )
        self.engine = Engine(settings, self.registry, clock)
        self.engine.open(SystemDatabase(settings, clock, self.engine.instance_id))
        self.leases = Leases(self.engine)
        self.recovery = Recovery(self.engine, self.leases)
        self.leases.register()

    def begin(self) -> Run:
        """Start a workflow, and leave it at that."""
        run = drive(self.engine, begin(self.engine, self.registry.workflows["work"], (), {}, Context()))
        assert isinstance(run, Run)
        return run

    def row(self, run: Run) -> StatusRow:
        row: StatusRow | None = self.engine.db.read(self.engine.db.workflows.get, run.workflow_id)
        assert row is not None
        return row

    def instances(self) -> list[str]:
        return [row.instance_id for row in self.engine.db.read(self.engine.db.executors.list)]

    def record(self, run: Run) -> Any:
        step = RecordStep(run.workflow_id, 1, "step", "1", None, None, 0, 0, "json", run.run_token)
        return self.engine.db.commit(step)[0]


Build = Callable[..., Executor]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def executor(config: DBOSConfig, clock: VirtualClock) -> Iterator[Build]:
    executors: list[Executor] = []

    def build(version: str = "test") -> Executor:
        executors.append(Executor({**config, "application_version": version}, clock))
        return executors[-1]

    yield build
    for each in executors:
        each.engine.close()


def live(clock: VirtualClock, seconds: float, *executors: Executor) -> list[str]:
    """Let time pass while some executors renew their leases and look after the others; returns what was taken over."""
    taken: list[str] = []
    for _ in range(int(seconds / 10)):
        clock.advance(10)
        for each in executors:
            each.leases.renew_once()
            taken += each.recovery.take_over_once()
    return taken


# -- who is dead -------------------------------------------------------------------------------------------------------


def test_an_executor_that_is_silent_for_its_whole_lease_is_dead(executor: Build, clock: VirtualClock) -> None:
    silent, watching = executor(), executor()
    run = silent.begin()
    watching.recovery.take_over_once()

    early = live(clock, LEASE_S - 10, watching)
    late = live(clock, 10, watching)

    assert early == []
    assert late == [run.workflow_id]
    assert watching.row(run).status == "ENQUEUED"
    assert watching.row(run).run_token is None
    assert watching.instances() == [watching.engine.instance_id]


def test_executors_that_renew_their_leases_leave_each_other_alone(executor: Build, clock: VirtualClock) -> None:
    one, other = executor(), executor()
    run = one.begin()

    taken = live(clock, 10 * LEASE_S, one, other)

    assert taken == []
    assert other.row(run).owner_instance == one.engine.instance_id


def test_an_outage_in_which_nobody_was_heard_kills_nobody(executor: Build, clock: VirtualClock) -> None:
    one, other = executor(), executor()
    one.begin()
    live(clock, LEASE_S, one, other)

    clock.advance(600)
    first_back = [*other.recovery.take_over_once(), *live(clock, LEASE_S - 10, other)]
    both_back = live(clock, 10 * LEASE_S, one, other)

    assert first_back == []
    assert both_back == []


def test_who_does_not_come_back_after_an_outage_is_dead_a_lease_later(executor: Build, clock: VirtualClock) -> None:
    one, other = executor(), executor()
    run = one.begin()
    live(clock, LEASE_S, one, other)
    clock.advance(600)

    taken = live(clock, LEASE_S + 10, other)

    assert taken == [run.workflow_id]


def test_an_executor_that_was_paused_itself_gives_others_a_whole_lease(executor: Build, clock: VirtualClock) -> None:
    one, paused = executor(), executor()
    one.begin()
    paused.recovery.take_over_once()
    clock.advance(LEASE_S)

    before_renewal = paused.recovery.take_over_once()
    paused.leases.renew_once()
    after_renewal = paused.recovery.take_over_once()

    assert before_renewal == after_renewal == []


def test_a_sign_of_life_after_the_verdict_saves_an_executor(executor: Build) -> None:
    suspect, judge = executor(), executor()
    rows = judge.engine.db.read(judge.engine.db.executors.list)
    verdict = next(row for row in rows if row.instance_id == suspect.engine.instance_id)

    suspect.leases.renew_once()
    judge.engine.db.change(judge.engine.db.executors.remove_silent, verdict)

    assert suspect.engine.instance_id in judge.instances()


def test_who_leaves_hands_over_at_once(executor: Build) -> None:
    leaving, staying = executor(), executor()
    run = leaving.begin()

    leaving.leases.leave()

    assert staying.recovery.take_over_once() == [run.workflow_id]


def test_who_is_told_that_somebody_may_have_left_looks_for_work_without_an_owner_once_a_second(
    executor: Build, clock: VirtualClock
) -> None:
    staying = executor()
    staying.recovery.take_over_once()
    unseen = executor()
    run = unseen.begin()
    unseen.leases.leave()

    staying.recovery.wake()
    too_soon = staying.recovery.take_over_once()
    clock.advance(1)
    in_time = staying.recovery.take_over_once()

    assert too_soon == []
    assert in_time == [run.workflow_id]


def test_a_look_for_work_without_an_owner_that_fails_is_repeated(
    executor: Build, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise OSError("away")

    staying = executor()
    staying.recovery.take_over_once()
    unseen = executor()
    run = unseen.begin()
    unseen.leases.leave()
    clock.advance(1)
    staying.recovery.wake()

    with monkeypatch.context() as patch:
        patch.setattr(staying.engine.db.workflows, "has_orphans", fail)
        with pytest.raises(OSError, match="away"):
            staying.recovery.take_over_once()

    assert staying.recovery.take_over_once() == [run.workflow_id]


@pytest.mark.dbos_databases("postgres")
def test_taking_over_keeps_no_sign_of_life_waiting(executor: Build) -> None:
    """Bulk recovery was committed where heartbeats are: whoever took over much looked dead meanwhile."""
    taker, leaver = executor(), executor()
    run = leaver.begin()
    leaver.leases.leave()
    taken, has_come, may_end = list[str](), threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        has_come.set()
        assert may_end.wait(PATIENCE_S)

    busy = threading.Thread(target=taker.engine.db.change, args=(hold,))
    taking = threading.Thread(target=lambda: taken.extend(taker.recovery.take_over_once()))
    busy.start()
    assert has_come.wait(PATIENCE_S)
    taking.start()
    taking.join(PATIENCE_S)
    taken_meanwhile = list(taken)
    may_end.set()
    busy.join(PATIENCE_S)
    taking.join(PATIENCE_S)

    assert taken_meanwhile == [run.workflow_id]


def test_work_of_another_version_is_left_to_that_version(executor: Build) -> None:
    old, new = executor("old"), executor("new")
    run = old.begin()
    old.leases.leave()

    taken = new.recovery.take_over_once()
    stranded = new.engine.db.read(new.engine.db.workflows.stranded_versions)

    assert taken == []
    assert stranded == {"old": 1}
    assert executor("old").recovery.take_over_once() == [run.workflow_id]


def process(**changes: Any) -> ExecutorRow:
    own = own_identity()
    row = ExecutorRow(
        "instance",
        "local",
        "v",
        None,
        own.hostname,
        own.boot_id,
        own.pid_namespace,
        own.pid,
        own.started_at,
        0,
        1,
        0,
        0,
    )
    return row._replace(**changes)


@pytest.mark.skipif(sys.platform != "linux", reason="processes of others are known from /proc")
def test_a_process_is_gone_if_this_system_does_not_have_it() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()

    assert is_gone(process(pid=ended.pid), own_identity())
    assert is_gone(process(process_started_at="1"), own_identity())


@pytest.mark.skipif(sys.platform != "linux", reason="processes of others are known from /proc")
def test_a_zombie_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{child.pid}/stat")
    try:
        text = stat.read_text()
        row = process(pid=child.pid, process_started_at=text[text.rindex(")") + 2 :].split()[19])
        was_gone_alive = is_gone(row, own_identity())

        child.kill()
        until(lambda: ") Z" in stat.read_text(), "the process to have ended")

        assert not was_gone_alive
        assert is_gone(row, own_identity())
    finally:
        child.communicate()


@pytest.mark.parametrize(
    "elsewhere",
    [{"boot_id": "another"}, {"pid_namespace": "another"}, {"boot_id": ""}, {"pid_namespace": ""}],
    ids=["another boot", "another container", "no boot id", "no namespace"],
)
def test_a_process_that_this_system_cannot_see_is_not_gone(elsewhere: dict[str, str]) -> None:
    """A container with the same host name and pid 1 is another process."""
    row = process(pid=1, process_started_at="1", **elsewhere)

    assert not is_gone(row, own_identity())


def test_a_process_of_which_the_start_is_unknown_is_not_gone() -> None:
    assert not is_gone(process(pid=2**22 + 1, process_started_at=""), own_identity())


# -- the fence ---------------------------------------------------------------------------------------------------------


def test_nothing_of_an_executor_that_was_declared_dead_is_written(executor: Build) -> None:
    zombie, other = executor(), executor()
    run = zombie.begin()
    zombie.leases.leave()
    outcome = RecordOutcome(run.workflow_id, run.run_token, "SUCCESS", "1", None, "json", 0)

    with pytest.raises(ExecutorFencedError):
        zombie.record(run)
    with pytest.raises(ExecutorFencedError):
        zombie.engine.db.commit(outcome)

    assert other.row(run).status == "PENDING"
    assert other.engine.db.read(other.engine.db.operations.steps, run.workflow_id) == []


def test_an_executor_that_was_declared_dead_parks_its_runs_and_starts_anew(executor: Build) -> None:
    zombie, other = executor(), executor()
    before, run = zombie.engine.instance_id, zombie.begin()
    zombie.leases.leave()
    other.recovery.take_over_once()

    zombie.leases.renew_once()

    assert run.is_interrupted
    assert zombie.engine.instance_id != before
    assert zombie.engine.instance_id in other.instances()
    assert zombie.record(run).status is None
    assert zombie.record(zombie.begin()).status == "PENDING"


def test_a_start_that_was_under_way_while_its_executor_registered_anew_is_not_orphaned(executor: Build) -> None:
    """Otherwise its row would belong to a dead instance, and be taken over while it runs."""
    zombie = executor()
    zombie.leases.leave()
    zombie.engine.check_lease = zombie.leases.renew_once

    run = zombie.begin()

    assert zombie.row(run).owner_instance == zombie.engine.instance_id
    assert zombie.recovery.take_over_once() == []


def test_a_start_under_an_identity_that_is_gone_is_refused(executor: Build) -> None:
    zombie = executor()
    before = zombie.engine.instance_id
    zombie.leases.leave()
    zombie.leases.renew_once()
    after, zombie.engine.instance_id = zombie.engine.instance_id, before

    def stop() -> None:
        zombie.engine.instance_id = after

    zombie.engine.check_lease = stop
    run = zombie.begin()

    assert zombie.row(run).owner_instance == after


def test_a_step_waits_while_its_executor_cannot_show_that_it_is_alive(executor: Build, clock: VirtualClock) -> None:
    cut_off = executor()
    run = cut_off.begin()

    clock.advance(LEASE_S * 2 / 3)
    flow = wait_for_lease(cut_off.engine, run)
    pause = next(flow)
    is_held = not pause.signal.is_set  # type: ignore[union-attr]  # it yields nothing but pauses
    cut_off.leases.renew_once()

    assert is_held
    assert pause.signal.is_set  # type: ignore[union-attr]
    with pytest.raises(StopIteration):
        flow.send(True)


def test_a_step_begins_at_once_under_a_fresh_lease(executor: Build, clock: VirtualClock) -> None:
    running = executor()
    run = running.begin()
    clock.advance(LEASE_S * 2 / 3 - 1)

    with pytest.raises(StopIteration):
        next(wait_for_lease(running.engine, run))


# -- our own runs ------------------------------------------------------------------------------------------------------


def test_a_workflow_that_was_claimed_and_never_begun_is_enqueued_again_at_the_second_look(executor: Build) -> None:
    """The answer to a claim was lost, say."""
    own = executor()
    run = own.begin()
    own.engine.runs.remove(run)

    own.leases.reconcile_once()
    after_first = own.row(run).status
    own.leases.reconcile_once()

    assert after_first == "PENDING"
    assert own.row(run).status == "ENQUEUED"


def test_a_workflow_that_is_just_being_begun_is_not_taken_for_lost(executor: Build) -> None:
    """Its histories take long to read, or its event loop is busy, for many rounds."""
    own = executor()
    run = own.begin()
    own.engine.runs.remove(run)

    with own.engine.runs.expecting(run.run_token):
        for _ in range(5):
            own.leases.reconcile_once()
        released = own.recovery.recover_now([own.engine.executor_id])

    assert released == []
    assert own.row(run).status == "PENDING"


def test_what_runs_is_left_alone(executor: Build) -> None:
    own = executor()
    run = own.begin()

    for _ in range(5):
        own.leases.reconcile_once()
    released = own.recovery.recover_now([own.engine.executor_id])

    assert released == []
    assert not run.is_interrupted
    assert own.row(run).owner_instance == own.engine.instance_id


def test_a_run_that_was_cancelled_elsewhere_is_cancelled_here(executor: Build) -> None:
    own, other = executor(), executor()
    run = own.begin()
    other.engine.db.change(other.engine.db.workflows.cancel, [run.workflow_id], 0)

    own.leases.reconcile_once()

    with pytest.raises(BaseException, match="is cancelled"):
        run.check_interrupted()


def test_a_run_that_was_resumed_elsewhere_is_lost_here(executor: Build) -> None:
    own, other = executor(), executor()
    run = own.begin()
    other.engine.db.change(other.engine.db.workflows.cancel, [run.workflow_id], 0)
    other.engine.db.change(other.engine.db.workflows.resume, [run.workflow_id], "queue", 0)

    own.leases.reconcile_once()

    with pytest.raises(BaseException, match="Conflicting workflow ID"):
        run.check_interrupted()


def test_recovery_on_demand_enqueues_what_does_not_run_if_it_is_ours(executor: Build) -> None:
    own = executor()
    run = own.begin()
    own.engine.runs.remove(run)

    of_others = own.recovery.recover_now(["somebody else"])
    of_ours = own.recovery.recover_now([own.engine.executor_id])

    assert of_others == []
    assert of_ours == [run.workflow_id]
