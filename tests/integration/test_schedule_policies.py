"""Schedules at work: what overlaps, what was missed, what fails, what is broken, and clocks that jump.

Time stands still but for what a test says, and the scheduler does a round when the test calls for one.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, DBOSException, Queue, WorkflowSchedule, WorkflowSerializationFormat
from dbos._bridge import Bridge
from dbos._clock import SystemClock
from dbos._dbos_config import process_config
from dbos._engine.engine import Engine
from dbos._engine.flow import drive
from dbos._engine.schedules import settle
from dbos._engine.ticks import epoch_ms
from dbos._operations import schedules
from dbos._process import process
from dbos._scheduler import Scheduler
from dbos._sys_db import SystemDatabase
from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import DecisionRow, ScheduleRow
from dbos._sysdb.stores import schedules as store
from dbos._sysdb.stores.schedules import Decided, Situation
from dbos.testing._postgres_server import Cluster
from tests.integration.histories import PATIENCE_S, change, engine, eventually

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
SECONDLY, MINUTELY, HOURLY = "* * * * * *", "* * * * *", "0 * * * *"

Decisions = list[tuple[float, str]]


def after_noon(time: datetime) -> float:
    return (time - NOON).total_seconds()


def find(sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
    def run(connection: Connection) -> list[tuple[Any, ...]]:
        return connection.all(sql, **parameters)

    return engine().db.read(run)


class Stage:
    """A scheduler whose rounds the test calls, the time it goes by, and the workflow that its schedules start."""

    def __init__(self) -> None:
        self.workflow: Callable[[datetime, Any], str] = self.work
        self.seconds = 0.0  # after noon
        self.begun: list[float] = []
        self.mode = "done"
        self.inside = self.most = 0
        self._lock = threading.Lock()
        self._places = threading.Semaphore(0)

    def work(self, tick: datetime, context: Any) -> str:
        with self._lock:
            self.begun.append(after_noon(tick))
            self.inside, self.most, mode = self.inside + 1, max(self.most, self.inside + 1), self.mode
        if mode == "hold":
            assert self._places.acquire(timeout=PATIENCE_S)
        with self._lock:
            self.inside -= 1
        if mode == "fail":
            raise ValueError("it fails")
        return "done"

    def let_go(self, number: int = 1) -> None:
        self._places.release(number)

    # -- time ----------------------------------------------------------------------------------------------------------

    def now_ms(self) -> int:
        return epoch_ms(NOON + timedelta(seconds=self.seconds))

    @property
    def scheduler(self) -> Scheduler:
        assert process.runtime is not None
        return process.runtime._scheduler

    def round(self) -> None:
        """Look at once, whatever was looked at before, and do what there is to do."""
        self.scheduler.check()
        self.scheduler._look_at = self.scheduler._release_at = 0.0
        self.scheduler.work_once()

    def at(self, seconds: float) -> None:
        """Let time come to so many seconds after noon, and do a round."""
        self.seconds = seconds
        self.round()

    def eventually(self, condition: Callable[[], object]) -> None:
        """Do rounds until the condition holds."""

        def holds() -> object:
            self.round()
            return condition()

        eventually(holds)

    def settled(self) -> None:
        """Wait until nothing runs."""
        eventually(lambda: not find("SELECT 1 FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING')"))

    # -- schedules -----------------------------------------------------------------------------------------------------

    def create(self, name: str = "s", cron: str = MINUTELY, **options: Any) -> None:
        DBOS.create_schedule(schedule_name=name, workflow_fn=self.workflow, schedule=cron, **options)


@pytest.fixture
def stage(dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage()

    @dbos.workflow(name="work")
    def work(tick: datetime, context: Any) -> str:
        return stage.work(tick, context)

    monkeypatch.setattr(Scheduler, "start", lambda self: None)
    stage.workflow = work
    dbos.launch()
    monkeypatch.setattr(engine().db, "now_ms", stage.now_ms)
    stage.round()
    yield stage
    stage.let_go(1000)


@contextmanager
def other_process(config: DBOSConfig, stage: Stage) -> Iterator[Engine]:
    """Another executor on the same database, without threads of its own, that goes by the same time."""
    settings, clock = process_config(config), SystemClock()
    other = Engine(settings, process.registry, clock)
    db = SystemDatabase(settings, clock, other.instance_id)
    db.now_ms = stage.now_ms  # type: ignore[method-assign]  # time stands still
    other.open(db)
    yield other
    other.close()


def shown(name: str = "s") -> WorkflowSchedule:
    found = DBOS.get_schedule(name)
    assert found is not None
    return found


def told(name: str = "s") -> Decisions:
    """The decisions about a schedule, the oldest first."""
    history = reversed(DBOS.schedule_history(name, limit=10_000))
    return [(after_noon(each["scheduled_time"]), each["decision"]) for each in history]


def run_of(tick_s: float, name: str = "s") -> str:
    return f"sched-{name}-{(NOON + timedelta(seconds=tick_s)).isoformat()}"


def status(tick_s: float, name: str = "s") -> str:
    found = DBOS.get_workflow_status(run_of(tick_s, name))
    return "" if found is None else found.status


def ticks_run(name: str = "s") -> list[float]:
    """The ticks for which there is a workflow, in their order."""
    prefix = f"sched-{name}-"
    rows = find("SELECT workflow_uuid FROM dbos.workflow_status WHERE schedule_name = :name", name=name)
    return sorted(after_noon(datetime.fromisoformat(row[0].removeprefix(prefix))) for row in rows)


# -- overlap -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overlap", "at_first", "in_the_end"),
    [
        ("allow", ["fired", "fired", "fired"], ["fired", "fired", "fired"]),
        ("skip", ["fired", "skipped", "skipped"], ["fired", "skipped", "skipped"]),
        ("buffer_one", ["fired", "buffered", "skipped"], ["fired", "fired", "skipped"]),
        ("buffer_all", ["fired", "buffered", "buffered"], ["fired", "fired", "fired"]),
    ],
)
def test_runs_of_a_schedule_overlap_as_it_says(
    stage: Stage, overlap: str, at_first: list[str], in_the_end: list[str]
) -> None:
    stage.create(overlap=overlap)
    stage.mode = "hold"

    for number in (1, 2, 3):
        stage.at(60 * number)
        eventually(lambda: len(stage.begun) >= 1)
    while_held = told()
    stage.let_go(3)
    ran = [60.0 * (number + 1) for number, each in enumerate(in_the_end) if each == "fired"]
    stage.eventually(lambda: sorted(stage.begun) == ran)
    stage.settled()
    stage.mode = "done"
    stage.at(240)
    stage.settled()

    assert while_held == list(zip([60, 120, 180], at_first, strict=True))
    assert told() == [*zip([60, 120, 180], in_the_end, strict=True), (240, "fired")]
    assert ticks_run() == [*ran, 240]
    if overlap != "allow":
        assert stage.most == 1
        assert stage.begun == [*ran, 240]  # what waits does so in line
    assert shown()["runs"] == len(ran) + 1


def test_a_tick_cancels_the_run_before_if_that_is_asked_for(stage: Stage) -> None:
    stage.create(overlap="cancel_other")
    stage.mode = "hold"

    stage.at(60)
    eventually(lambda: stage.begun == [60])
    stage.at(120)
    eventually(lambda: stage.begun == [60, 120])
    first, second = status(60), status(120)
    stage.let_go(2)
    stage.settled()

    assert (first, second) == ("CANCELLED", "PENDING")
    assert status(120) == "SUCCESS"
    assert told() == [(60, "fired"), (120, "fired")]


def test_a_trigger_may_overlap_where_ticks_may_not(stage: Stage) -> None:
    stage.create(overlap="skip")
    stage.mode = "hold"
    stage.at(60)
    eventually(lambda: stage.begun == [60])

    with pytest.raises(DBOSException, match="an earlier run of it has not ended"):
        DBOS.trigger_schedule("s")
    beside = DBOS.trigger_schedule("s", overlap="allow")
    behind = DBOS.trigger_schedule("s", overlap="buffer_all")
    eventually(lambda: len(stage.begun) == 2)
    stage.let_go(3)
    stage.eventually(lambda: len(stage.begun) == 3)

    assert beside.get_result() == "done"
    assert behind.get_result() == "done"
    assert [decision for _, decision in told()] == ["fired", "skipped", "triggered", "triggered"]


def ended_elsewhere(stage: Stage) -> None:
    change("UPDATE dbos.workflow_status SET status = 'SUCCESS' WHERE workflow_uuid = :id", id=run_of(60))
    stage.scheduler.tell(None)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda stage: stage.let_go(), id="it ends"),
        pytest.param(lambda stage: DBOS.cancel_workflow(run_of(60)), id="it is cancelled"),
        pytest.param(ended_elsewhere, id="another process has ended it"),
    ],
)
def test_a_tick_that_waits_for_a_run_starts_however_that_ends(stage: Stage, end: Callable[[Stage], None]) -> None:
    stage.create(overlap="buffer_one", context="c")
    stage.mode = "hold"
    stage.at(60)
    eventually(lambda: stage.begun == [60])
    stage.at(125)
    before = DBOS.schedule_history("s")[0]

    stage.seconds = 150
    end(stage)
    stage.eventually(lambda: stage.begun == [60, 120])
    after = DBOS.schedule_history("s")[0]

    assert (before["decision"], before["reason"], before["lateness"]) == ("buffered", "overlap", 5)
    assert (after["decision"], after["lateness"], after["workflow_id"]) == ("fired", 30, run_of(120))
    assert before["workflow_id"] == after["workflow_id"]
    assert not stage.scheduler._agenda.has_buffered


def test_a_tick_that_waits_does_so_while_its_schedule_is_paused(stage: Stage) -> None:
    stage.create(overlap="buffer_all")
    stage.mode = "hold"
    stage.at(60)
    eventually(lambda: stage.begun == [60])
    stage.at(120)
    DBOS.pause_schedule("s")

    stage.let_go(2)
    stage.settled()
    stage.round()
    while_paused, is_waited_for = list(stage.begun), stage.scheduler._agenda.has_buffered
    DBOS.resume_schedule("s")
    stage.eventually(lambda: stage.begun == [60, 120])

    assert while_paused == [60]
    assert not is_waited_for  # or every process would ask every second, for as long as that lasts


def test_what_waits_is_deleted_with_its_schedule(stage: Stage) -> None:
    stage.create(overlap="buffer_all")
    stage.mode = "hold"
    stage.at(60)
    eventually(lambda: stage.begun == [60])
    stage.at(120)

    DBOS.delete_schedule("s")
    stage.create(overlap="buffer_all")
    stage.let_go()
    stage.settled()
    stage.round()
    stage.at(180)
    stage.let_go()
    stage.settled()

    assert stage.begun == [60, 180]
    assert told() == [(60, "fired"), (180, "fired")]


def test_a_tick_that_is_put_off_while_its_schedule_is_deleted_leaves_nothing_that_waits(stage: Stage) -> None:
    """Else every process would ask every second whether it may start."""
    stage.create(overlap="buffer_all")
    stage.mode = "hold"
    stage.at(60)
    eventually(lambda: stage.begun == [60])
    deciding, go_on = threading.Event(), threading.Event()
    tick_ms = epoch_ms(NOON + timedelta(seconds=120))
    decision = DecisionRow("", "s", "tick", tick_ms, tick_ms, 1, "buffered", "overlap", run_of(120), tick_ms)

    def decide(row: ScheduleRow, situation: Situation) -> Decided:
        deciding.set()
        assert go_on.wait(PATIENCE_S)
        return Decided(row, [decision._replace(schedule_id=row.schedule_id)])

    choose = partial(engine().db.schedules.named, names=["s"])
    tick = threading.Thread(target=lambda: drive(engine(), settle(engine(), choose, decide, tick_ms)))
    tick.start()
    assert deciding.wait(PATIENCE_S)
    deletion = threading.Thread(target=DBOS.delete_schedule, args=("s",))
    deletion.start()
    deletion.join(0.1)  # as far as it comes
    go_on.set()
    tick.join()
    deletion.join()

    assert find("SELECT count(*) FROM dbos.schedule_history WHERE decision = 'buffered'") == [(0,)]
    assert DBOS.list_schedules() == []


# -- failures ----------------------------------------------------------------------------------------------------------


def run_once(stage: Stage, tick_s: float, mode: str) -> None:
    """Have a tick start a run, and that run end as ``mode`` says."""
    stage.mode = "hold" if mode == "cancel" else mode
    stage.at(tick_s)
    eventually(lambda: tick_s in stage.begun)
    if mode == "cancel":
        DBOS.cancel_workflow(run_of(tick_s))
        stage.let_go()
    stage.settled()
    eventually(lambda: not engine().runs.all())
    stage.round()


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (["fail", "fail"], "PAUSED"),
        (["fail", "done", "fail"], "ACTIVE"),
        (["fail", "cancel", "fail"], "PAUSED"),
        (["cancel", "cancel", "fail"], "ACTIVE"),
    ],
)
def test_a_schedule_is_paused_when_as_many_runs_in_a_row_have_failed_as_it_says(
    stage: Stage, modes: list[str], expected: str
) -> None:
    stage.create(pause_on_failure=2)

    for number, mode in enumerate(modes, 1):
        run_once(stage, 60 * number, mode)

    assert shown()["status"] == expected
    if expected == "PAUSED":
        assert shown()["pause_reason"] == "2 runs in a row have failed"
        assert DBOS.schedule_history("s")[0]["decision"] == "paused"
        assert DBOS.schedule_history("s")[0]["reason"] == "2 runs in a row have failed"


def test_a_schedule_that_is_resumed_counts_failures_anew(stage: Stage) -> None:
    stage.create(pause_on_failure=2)
    for tick_s in (60, 120):
        run_once(stage, tick_s, "fail")
    stage.at(200)
    while_paused = list(stage.begun)

    DBOS.resume_schedule("s")
    after_resuming = shown()
    run_once(stage, 240, "fail")
    after_one = shown()["status"]
    run_once(stage, 300, "fail")

    assert while_paused == [60, 120]
    assert (after_resuming["status"], after_resuming["pause_reason"]) == ("ACTIVE", None)
    assert after_one == "ACTIVE"
    assert shown()["status"] == "PAUSED"
    assert [decision for _, decision in told()] == ["fired", "fired", "paused", "fired", "fired", "paused"]


# -- what is told ------------------------------------------------------------------------------------------------------


def test_each_decision_is_told_with_its_reason_its_lateness_and_its_workflow(stage: Stage) -> None:
    stage.create(cron=HOURLY)

    stage.at(3600.25)
    stage.at(3 * 3600 + 1800)
    triggered = DBOS.trigger_schedule("s").workflow_id
    [backfilled] = DBOS.backfill_schedule("s", start=NOON + timedelta(seconds=7000), end=NOON + timedelta(seconds=7300))

    history = [
        (each["decision"], after_noon(each["scheduled_time"]), each["ticks"], each["reason"], each["workflow_id"])
        for each in reversed(DBOS.schedule_history("s"))
    ]
    assert history == [
        ("fired", 3600, 1, None, run_of(3600)),
        ("missed", 7200, 2, "window", None),
        ("triggered", pytest.approx(12_600, abs=1), 1, None, triggered),
        ("backfilled", 7200, 1, None, run_of(7200)),
    ]
    assert [each["lateness"] for each in DBOS.schedule_history("s")][-2:] == [5400, 0.25]
    assert after_noon(DBOS.schedule_history("s")[2]["last_scheduled_time"]) == 10_800
    assert backfilled.workflow_id == run_of(7200)
    assert shown()["last_fired_at"] == "2026-01-05T13:00:00+00:00"  # of ticks only


def test_only_the_newest_decisions_are_kept_and_what_waits(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "HISTORY_KEPT", 10)
    monkeypatch.setattr(store, "PRUNE_SHARE", 1)
    stage.create(overlap="buffer_one")
    stage.create("other")
    stage.mode = "hold"

    for number in range(1, 41):
        stage.at(60 * number)

    kept = [tick_s for tick_s, _ in told()]
    assert 11 <= len(kept) <= 17
    assert kept[0] == 120  # it waits
    assert kept[1:] == [60.0 * number for number in range(42 - len(kept), 41)]


# -- changes while it runs ---------------------------------------------------------------------------------------------


def test_a_change_leaves_history_last_tick_and_status_as_they_are(stage: Stage) -> None:
    stage.create(cron=HOURLY)
    stage.at(3600)
    stage.settled()
    DBOS.pause_schedule("s", reason="inventory")
    before = shown()

    DBOS.update_schedule("s", schedule=MINUTELY, context="new", overlap="skip")
    updated = shown()
    DBOS.resume_schedule("s")
    stage.at(3660)

    kept = ("schedule_id", "status", "pause_reason", "last_fired_at", "runs")
    assert {name: updated[name] for name in kept} == {name: before[name] for name in kept}  # type: ignore[literal-required]
    assert (before["status"], before["pause_reason"]) == ("PAUSED", "inventory")
    assert told() == [(3600, "fired"), (3660, "fired")]


def test_schedules_are_applied_by_many_at_once_and_keep_what_they_have_come_to(
    stage: Stage, config: DBOSConfig
) -> None:
    """Threads of two processes apply one list in different orders, some with a context of their own."""
    stage.create("a")
    stage.create("b")
    stage.at(60)
    DBOS.pause_schedule("b", reason="inventory")
    before = {name: shown(name) for name in "ab"}
    errors: list[BaseException] = []

    def apply(executor: Engine, number: int) -> None:
        entries: list[Any] = [
            {
                "schedule_name": name,
                "workflow_fn": stage.workflow,
                "schedule": MINUTELY,
                "context": number if name == "a" else None,
            }
            for name in ("abcd" if number % 2 else "dcba")
        ]
        try:
            Bridge(lambda: executor).blocking(schedules.apply_schedules)(entries, prune=number % 4 == 0)
        except BaseException as error:
            errors.append(error)

    with other_process(config, stage) as other:
        executors = [engine(), other]
        threads = [threading.Thread(target=apply, args=(executors[number % 2], number)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    stage.at(120)

    assert errors == []
    assert sorted(each["schedule_name"] for each in DBOS.list_schedules()) == list("abcd")
    kept = ("schedule_id", "status", "pause_reason")
    for name in "ab":
        assert {key: shown(name)[key] for key in kept} == {key: before[name][key] for key in kept}  # type: ignore[literal-required]
    assert shown("a")["context"] in range(16)
    assert [told(name) for name in "abcd"] == [
        [(60, "fired"), (120, "fired")],
        [(60, "fired")],
        [(120, "fired")],
        [(120, "fired")],
    ]


@pytest.mark.parametrize("is_seen", [False, True], ids=["before it is looked at", "when it is about to fire"])
def test_a_tick_near_whose_time_a_schedule_is_paused_or_deleted_starts_nothing(stage: Stage, is_seen: bool) -> None:
    for name in ("paused", "deleted", "resumed"):
        stage.create(name)
    if is_seen:
        stage.at(59.9)

    DBOS.pause_schedule("paused")
    DBOS.delete_schedule("deleted")
    DBOS.pause_schedule("resumed")
    DBOS.resume_schedule("resumed")
    stage.seconds = 60
    stage.scheduler.fire_once() if is_seen else stage.round()
    stage.round()

    assert [told(name) for name in ("paused", "deleted", "resumed")] == [[], [], [(60, "fired")]]


def test_a_paused_schedule_can_be_triggered_and_stays_paused(stage: Stage) -> None:
    stage.create()
    DBOS.pause_schedule("s")
    stage.at(90)

    result = DBOS.trigger_schedule("s").get_result()

    assert result == "done"
    assert stage.begun == [pytest.approx(90, abs=1)]
    assert shown()["status"] == "PAUSED"


@pytest.mark.parametrize(
    ("catchup", "expected"),
    [
        ("none", [(60, "fired"), (360, "fired")]),
        ("latest", [(60, "fired"), (120, "missed"), (300, "fired"), (360, "fired")]),
        ("all", [(60.0 * number, "fired") for number in range(1, 7)]),
    ],
)
def test_ticks_of_a_pause_are_made_up_for_as_the_schedule_says(stage: Stage, catchup: str, expected: Decisions) -> None:
    stage.create(catchup=catchup)
    stage.at(60)
    DBOS.pause_schedule("s")
    stage.at(310)

    DBOS.resume_schedule("s")
    stage.round()
    stage.at(360)

    assert told() == expected


# -- what was missed ---------------------------------------------------------------------------------------------------


def test_a_laptop_that_has_slept_for_long_makes_up_for_one_tick_at_most(stage: Stage) -> None:
    stage.create("minutely")
    stage.create("hourly", cron=HOURLY)
    stage.at(60)

    stage.at(60 + 78 * 60)
    stage.at(60 + 79 * 60)

    assert told("minutely") == [(60, "fired"), (120, "missed"), (4740, "fired"), (4800, "fired")]
    assert told("hourly") == [(3600, "missed")]
    assert [each["ticks"] for each in DBOS.schedule_history("minutely")] == [1, 1, 77, 1]


def test_a_downtime_is_made_up_for_exactly_beside_what_is_due_meanwhile(stage: Stage, config: DBOSConfig) -> None:
    """Two processes come back at once, and time goes on."""
    stage.create(automatic_backfill=True)
    stage.at(60)
    stage.seconds = 130 * 60
    is_over = threading.Event()

    def rounds(scheduler: Scheduler) -> None:
        while not is_over.is_set():
            scheduler.check()
            scheduler.work_once()

    with other_process(config, stage) as other:
        threads = [threading.Thread(target=rounds, args=(each,)) for each in (stage.scheduler, Scheduler(other))]
        for thread in threads:
            thread.start()
        for number in range(131, 151):
            eventually(lambda: len(ticks_run()) >= number - 5)  # noqa: B023  # called at once
            stage.seconds = number * 60
        eventually(lambda: len(ticks_run()) >= 150)
        is_over.set()
        for thread in threads:
            thread.join()
    stage.round()

    assert ticks_run() == [60.0 * number for number in range(1, 151)]
    assert Counter(told()) == Counter((60.0 * number, "fired") for number in range(1, 151))
    assert shown()["runs"] == 150


def test_a_long_backlog_keeps_nothing_else_waiting(stage: Stage, dbos: type[DBOS]) -> None:
    """A function with a schedule in the code has no other chance once it is a minute late."""
    stage.at(299 * 60 + 30)
    begun = declare(dbos, MINUTELY)
    stage.create(catchup="all")
    stage.create("other", cron=HOURLY)
    stage.round()
    change(BREAK.format(column="last_fired_at"), value=NOON.isoformat(), name="s")
    stage.scheduler.plan_once()

    stage.at(300 * 60)

    assert told() == [(60.0 * number, "fired") for number in range(1, 101)]
    assert told("other") == [(300 * 60, "fired")]
    eventually(lambda: begun == [300 * 60])
    stage.eventually(lambda: len(told()) == 300)


def test_a_wake_up_is_not_an_occurrence(stage: Stage) -> None:
    stage.create("daily", cron="0 0 * * *")
    stage.create("restless")

    for hour in (1, 2, 3, 11, 12, 13, 23, 24, 35, 36):
        stage.at(3600 * hour + 1)
        DBOS.update_schedule("restless", context=hour)
        stage.scheduler.tell(None)
        stage.round()

    assert told("daily") == [(12 * 3600, "fired"), (36 * 3600, "fired")]


# -- clocks ------------------------------------------------------------------------------------------------------------


def declare(dbos: type[DBOS], cron: str, **options: Any) -> list[float]:
    """A function with a schedule in the code; returns where its ticks will be."""
    begun: list[float] = []

    @dbos.scheduled(cron)
    @dbos.workflow(**options)
    def declared(tick: datetime, actual: datetime) -> None:
        begun.append(after_noon(tick))

    return begun


def test_a_clock_that_jumps_forth_and_back_repeats_no_tick_and_stops_none(stage: Stage, dbos: type[DBOS]) -> None:
    begun = declare(dbos, MINUTELY)
    stage.create()
    stage.round()
    stage.at(60)

    stage.at(3660)
    stage.at(70)
    for tick_s in (120, 180, 3600, 3661, 3720):
        stage.at(tick_s)
        stage.at(tick_s)
    stage.settled()

    assert ticks_run() == [60, 120, 180, 3600, 3660, 3720]
    assert sorted(stage.begun) == ticks_run()
    assert sorted(begun) == ticks_run()


def test_who_plans_late_does_not_undo_what_another_has_planned_meanwhile(stage: Stage, config: DBOSConfig) -> None:
    """Its transaction has waited for longer than clocks may differ: what is later than its beginning has still been."""
    stage.create()
    stage.at(60)

    with other_process(config, stage) as other, pytest.MonkeyPatch.context() as patch:
        commit = other.db.commit

        def commit_late(*operations: Any) -> Any:
            stage.at(120)
            stage.at(180)
            return commit(*operations)

        patch.setattr(other.db, "commit", commit_late)
        Scheduler(other).plan_once()
    stage.round()

    assert told() == [(60, "fired"), (120, "fired"), (180, "fired")]
    assert shown()["runs"] == 3


def test_a_tick_that_a_clock_repeats_cancels_no_run(stage: Stage) -> None:
    """It starts nothing, because it has run: it must not end what it has started, either."""
    stage.create(overlap="cancel_other")
    stage.mode = "hold"
    stage.at(120)
    eventually(lambda: stage.begun == [120])

    stage.at(90)
    stage.at(120)

    assert status(120) == "PENDING"
    assert ticks_run() == [120]


# -- what is broken ----------------------------------------------------------------------------------------------------

BREAK = "UPDATE dbos.workflow_schedules SET {column} = :value WHERE schedule_name = :name"
BROKEN = {
    "context": "{",
    "overlap": "sometimes",
    "catchup": "tomorrow",
    "schedule": "every now and then",
    "cron_timezone": "Mars/Olympus",
    "last_fired_at": "yesterday",
    "workflow_name": "refused",
}


def refuse_runs_by_name(config: DBOSConfig) -> None:
    """Have the database refuse every workflow that is called ``refused``."""
    if str(config["system_database_url"]).startswith("sqlite"):
        change(
            "CREATE TRIGGER refuse BEFORE INSERT ON workflow_status WHEN NEW.name = 'refused' "
            "BEGIN SELECT RAISE(ABORT, 'refused for a test'); END"
        )
    else:
        change("ALTER TABLE dbos.workflow_status ADD CONSTRAINT refuse CHECK (name <> 'refused')")


def test_schedules_that_are_broken_stop_no_other(stage: Stage, config: DBOSConfig) -> None:
    healthy = [f"s{number}" for number in range(20)]
    for name in [*healthy, *BROKEN]:
        stage.create(name)
    refuse_runs_by_name(config)
    for name, value in BROKEN.items():
        change(BREAK.format(column=name), value=value, name=name)

    stage.at(60)
    stage.scheduler.plan_once()
    look_healthy = [name for name in BROKEN if not shown(name)["error"]]
    stage.at(120)

    assert look_healthy == ["workflow_name"]  # what the database refuses is known when it has done so
    assert [told(name) for name in healthy] == [[(60, "fired"), (120, "fired")]] * len(healthy)
    assert [told(name) for name in BROKEN] == [[]] * len(BROKEN)
    assert len(DBOS.list_schedules()) == len(healthy) + len(BROKEN)
    assert [name for name in BROKEN if not shown(name)["error"]] == []
    assert [name for name in healthy if shown(name)["error"]] == []


def test_a_schedule_that_is_repaired_by_hand_fires_again(stage: Stage, config: DBOSConfig) -> None:
    before = {}
    for name, value in BROKEN.items():
        stage.create(name)
        [[before[name]]] = find(f"SELECT {name} FROM dbos.workflow_schedules WHERE schedule_name = :name", name=name)
        change(BREAK.format(column=name), value=value, name=name)
    refuse_runs_by_name(config)
    stage.at(60)

    for name in BROKEN:
        change(BREAK.format(column=name), value=before[name], name=name)
    stage.seconds = 70
    stage.scheduler.plan_once()
    stage.at(120)

    assert [told(name) for name in BROKEN] == [[(60, "fired"), (120, "fired")]] * len(BROKEN)
    assert [shown(name)["error"] for name in BROKEN] == [None] * len(BROKEN)


def test_what_another_process_has_decided_meanwhile_is_not_decided_again(stage: Stage, config: DBOSConfig) -> None:
    """The database refuses one of many; when each is tried alone, another process has been faster with the others."""
    names = ["refused", *(f"s{number}" for number in range(5))]
    for name in names:
        stage.create(name)
    refuse_runs_by_name(config)
    change(BREAK.format(column="workflow_name"), value="refused", name="refused")

    with other_process(config, stage) as other, pytest.MonkeyPatch.context() as patch:
        faster = Scheduler(other)
        alone = stage.scheduler._settle_alone

        def settle_alone(*arguments: Any) -> Any:
            patch.setattr(stage.scheduler, "_settle_alone", alone)
            DBOS.pause_schedule("s4")
            faster.check()
            faster.work_once()
            return alone(*arguments)

        patch.setattr(stage.scheduler, "_settle_alone", settle_alone)
        stage.at(60)
        stage.at(120)

    assert [told(name) for name in names] == [[], *[[(60, "fired"), (120, "fired")]] * 4, []]
    assert [shown(name)["error"] is None for name in names] == [False, True, True, True, True, True]


def test_a_function_that_was_scheduled_and_is_no_workflow_stops_no_other(stage: Stage, dbos: type[DBOS]) -> None:
    @dbos.scheduled(MINUTELY)
    def forgotten(tick: datetime, actual: datetime) -> None: ...

    begun = declare(dbos, MINUTELY)
    stage.round()

    stage.at(60)
    stage.settled()

    assert begun == [60]


def test_a_function_whose_run_the_database_refuses_stops_no_other(
    stage: Stage, dbos: type[DBOS], config: DBOSConfig
) -> None:
    refuse_runs_by_name(config)
    begun = [declare(dbos, MINUTELY, name=name) for name in ("before", "refused", "after")]
    stage.round()

    stage.at(60)
    stage.at(120)
    stage.settled()

    assert [sorted(each) for each in begun] == [[60, 120], [], [60, 120]]


def test_a_function_whose_arguments_no_allowed_format_can_hold_stops_no_other(
    stage: Stage, dbos: type[DBOS], config: DBOSConfig
) -> None:
    engine().serialization = process_config({**config, "allowed_serializers": ["portable_json"]}).serialization
    declare(dbos, MINUTELY, name="refused")
    declare(dbos, MINUTELY, name="portable", serialization_type=WorkflowSerializationFormat.PORTABLE)
    stage.create()
    stage.round()

    stage.at(60)
    stage.at(120)

    started = find("SELECT name, count(*) FROM dbos.workflow_status GROUP BY name")
    assert started == [("portable", 2)]
    assert "allowed_serializers" in str(shown()["error"])


# -- what they start ---------------------------------------------------------------------------------------------------


def test_runs_wait_in_a_queue_that_does_not_exist_until_it_does(stage: Stage, config: DBOSConfig) -> None:
    Queue("deleted-later")
    stage.create(queue_name="deleted-later")
    stage.create("careful", queue_name="deleted-later", overlap="skip")
    change("UPDATE dbos.workflow_schedules SET queue_name = 'gone'")

    stage.at(60)
    stage.at(120)
    waiting = [status(60), status(120)]
    DBOS.register_queue("gone")
    eventually(lambda: len(stage.begun) == 3)

    assert waiting == ["ENQUEUED", "ENQUEUED"]
    assert sorted(stage.begun) == [60, 60, 120]
    assert told() == [(60, "fired"), (120, "fired")]
    assert told("careful") == [(60, "fired"), (120, "skipped")]  # what waits has not ended


def test_runs_are_for_the_latest_version_of_the_application(stage: Stage) -> None:
    stage.create()
    engine().db.change(engine().db.versions.register, "id", "newer", stage.now_ms() + 10**12)

    stage.at(60)
    DBOS.start_workflow(stage.workflow, NOON, None).get_result()  # this version's own
    waiting = status(60)
    DBOS.set_latest_application_version("test")
    engine().dispatch(None)
    eventually(lambda: status(60) == "SUCCESS")

    assert waiting == "ENQUEUED"


def test_static_and_class_methods_run_as_such(stage: Stage, dbos: type[DBOS]) -> None:
    begun: list[tuple[str, float]] = []

    @dbos.dbos_class("Office")
    class Office:
        @staticmethod
        @dbos.workflow()
        def static(tick: datetime, context: Any) -> None:
            begun.append((f"static {context}", after_noon(tick)))

        @classmethod
        @dbos.workflow()
        def of_class(cls, tick: datetime, context: Any) -> None:
            begun.append((f"{cls.__name__} {context}", after_noon(tick)))

    for name, function in (("static", Office.static), ("of-class", Office.of_class)):
        DBOS.create_schedule(schedule_name=name, workflow_fn=function, schedule=MINUTELY, context=name)

    stage.at(60)
    stage.settled()

    assert sorted(begun) == [("Office of-class", 60), ("static static", 60)]


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_what_is_not_due_costs_no_look_at_the_database_and_what_is_due_together_one_commit(
    stage: Stage, dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        stage.create(f"s{number}", cron=HOURLY)
    declare(dbos, HOURLY)
    stage.round()
    calls: list[str] = []

    def counted(name: str) -> None:
        original = getattr(engine().db, name)

        def call(*arguments: Any) -> Any:
            if threading.current_thread() is threading.main_thread():  # where the test calls the scheduler
                calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(engine().db, name, call)

    for name in ("read", "change", "commit"):
        counted(name)
    delays = []
    for second in range(1, 21):
        stage.seconds = second
        delays.append(stage.scheduler.work_once())
    while_idle = list(calls)
    calls.clear()
    stage.seconds = 3600
    stage.scheduler.work_once()

    assert while_idle == []
    assert all(delay is not None and 0.5 < delay <= 1 for delay in delays)
    assert all(len(told(f"s{number}")) == 1 for number in (0, 49))
    assert calls.count("commit") == 2  # of those in the database, and of those in the code


# -- the database is away ----------------------------------------------------------------------------------------------


@pytest.mark.postgres
def test_ticks_of_an_outage_of_the_database_fire_when_it_is_back(private_postgres: Cluster) -> None:
    url = private_postgres.url("postgres")
    DBOS.destroy(destroy_registry=True)
    DBOS(config={"name": "test-app", "system_database_url": url, "application_version": "test", "log_level": "ERROR"})
    try:

        @DBOS.workflow()
        def work(tick: datetime, context: Any) -> None: ...

        DBOS.launch()
        DBOS.create_schedule(schedule_name="s", workflow_fn=work, schedule=SECONDLY)
        eventually(lambda: DBOS.schedule_history("s"))

        private_postgres.stop("immediate")
        away = datetime.now(UTC)
        eventually(lambda: datetime.now(UTC) > away + timedelta(seconds=2.5))
        private_postgres.start()
        back = datetime.now(UTC)
        eventually(lambda: DBOS.schedule_history("s")[0]["scheduled_time"] > back + timedelta(seconds=1))

        history = DBOS.schedule_history("s")[::-1]
        first = history[0]["scheduled_time"]
        assert [each["scheduled_time"] for each in history] == [
            first + timedelta(seconds=number) for number in range(len(history))
        ]
        assert {each["decision"] for each in history} == {"fired"}
    finally:
        DBOS.destroy(destroy_registry=True)
