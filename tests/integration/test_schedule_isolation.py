"""What one schedule must not do to the others, and what others must not do to one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dbos import DBOS, DBOSException
from dbos._engine.engine import Engine
from dbos._engine.flow import drive
from dbos._engine.schedules import Encoder
from dbos._engine.ticks import trigger
from dbos._operations.schedules import create_client_schedule
from dbos._process import process
from dbos._scheduler import Scheduler
from dbos._serialization import PickleSerializer, Serialization
from dbos._sysdb.stores.schedules import SchedulesStore

MINUTE_MS = 60_000
EVERY_MINUTE = "* * * * *"


def engine() -> Engine:
    found = process.registry.engine
    assert found is not None
    return found


def change(sql: str, **parameters: Any) -> None:
    engine().db.change(lambda connection: connection.run(sql, **parameters))


def decisions(name: str) -> list[tuple[str, str | None]]:
    return [(each["decision"], each["reason"]) for each in reversed(DBOS.schedule_history(name))]


@pytest.fixture
def scheduler(dbos: type[DBOS]) -> Scheduler:
    """The schedules fire when a test says so, and not by themselves."""

    @dbos.workflow(name="work")
    def work(scheduled_time: datetime, context: Any) -> None: ...

    dbos.launch()
    runtime = process.runtime
    assert runtime is not None
    runtime._scheduler.stop()
    return Scheduler(engine())


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the library logs, which does not propagate once it was configured."""
    logger = logging.getLogger("dbos")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def create(name: str, **options: Any) -> None:
    create = create_client_schedule(
        engine(), schedule_name=name, workflow_name="work", schedule=EVERY_MINUTE, **options
    )
    drive(engine(), create)


def make_due(name: str, minutes: int = 0) -> None:
    """Its next tick is the one of the current minute, or of so many minutes ago."""
    tick_ms = (engine().db.now_ms() // MINUTE_MS - minutes) * MINUTE_MS
    change(
        "UPDATE dbos.workflow_schedules SET next_tick_ms = :tick, next_fire_ms = :tick WHERE schedule_name = :name",
        tick=tick_ms,
        name=name,
    )


def fire(scheduler: Scheduler) -> None:
    scheduler._look()
    scheduler.fire_once()


@pytest.mark.parametrize("column", ["pause_on_failure", "max_runs"])
def test_a_count_that_is_none_stops_no_other_schedule(scheduler: Scheduler, column: str) -> None:
    create("bad")
    create("good")
    change(f"UPDATE dbos.workflow_schedules SET {column} = -1 WHERE schedule_name = 'bad'")
    make_due("bad")
    make_due("good")

    fire(scheduler)

    bad = DBOS.get_schedule("bad")
    assert decisions("good") == [("fired", None)]
    assert decisions("bad") == []
    assert bad is not None
    assert "must be a whole number" in str(bad["error"])


def test_what_has_much_to_make_up_for_does_not_keep_waiting_what_is_on_time(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbos._scheduler.AT_ONCE", 10)
    for number in range(20):
        create(f"late-{number}", catchup="all")
        make_due(f"late-{number}", minutes=600)
    create("punctual")
    make_due("punctual")

    fire(scheduler)

    assert decisions("punctual") == [("fired", None)]
    assert any(decisions(f"late-{number}") for number in range(20))


def test_a_decision_that_takes_long_leaves_the_others_for_the_next_transaction(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbos._sysdb.stores.schedules.MAX_SPENT_S", 0)
    for name in ("first", "second"):
        create(name)
        make_due(name)

    fire(scheduler)
    after_one = [len(decisions(name)) for name in ("first", "second")]
    fire(scheduler)
    after_two = [len(decisions(name)) for name in ("first", "second")]

    assert sorted(after_one) == [0, 1]
    assert after_two == [1, 1]


def test_a_row_that_is_due_since_nobody_knows_when_is_planned(scheduler: Scheduler) -> None:
    create("s")
    change("UPDATE dbos.workflow_schedules SET next_tick_ms = NULL, next_fire_ms = 1")

    fire(scheduler)

    schedule = DBOS.get_schedule("s")
    assert schedule is not None
    assert schedule["next_fire_at"] is not None
    assert datetime.fromisoformat(schedule["next_fire_at"]) > datetime.now(UTC) - timedelta(minutes=1)


def test_what_a_broken_schedule_has_missed_is_decided_when_it_is_mended(scheduler: Scheduler) -> None:
    create("s", catchup="all")
    change("UPDATE dbos.workflow_schedules SET context = '{' WHERE schedule_name = 's'")
    make_due("s", minutes=3)
    fire(scheduler)
    while_broken = decisions("s")

    change("UPDATE dbos.workflow_schedules SET context = 'null' WHERE schedule_name = 's'")
    scheduler.plan_once()
    fire(scheduler)

    assert while_broken == []
    assert decisions("s")[:4] == [("fired", None)] * 4


def test_a_trigger_that_fails_leaves_the_schedule_alone(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    create("s")
    before = DBOS.get_schedule("s")

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise TypeError("the service is away")

    monkeypatch.setattr(type(engine().serialization), "dump_inputs", refuse)
    with pytest.raises(DBOSException, match="cannot be triggered: the service is away"):
        DBOS.trigger_schedule("s")
    with pytest.raises(DBOSException, match="cannot be backfilled: the service is away"):
        DBOS.backfill_schedule("s", datetime(2026, 1, 1), datetime(2026, 1, 1, 0, 2))

    assert DBOS.get_schedule("s") == before
    assert decisions("s") == []


def test_the_runs_of_a_version_that_is_gone_stand_in_nobodys_way(scheduler: Scheduler) -> None:
    create("s", overlap="skip")
    make_due("s", minutes=1)
    fire(scheduler)
    change(
        "UPDATE dbos.workflow_status SET status = 'PENDING', application_version = 'gone', owner_instance = NULL "
        "WHERE schedule_name = 's'"
    )
    make_due("s")

    fire(scheduler)

    assert decisions("s")[-1] == ("fired", None)


def test_pruning_leaves_the_schedules_of_nobody_and_of_others(scheduler: Scheduler) -> None:
    create("ours")
    create("nobodys")
    change("UPDATE dbos.workflow_schedules SET application_name = NULL WHERE schedule_name = 'nobodys'")

    DBOS.apply_schedules([], prune=True)

    assert [schedule["schedule_name"] for schedule in DBOS.list_schedules()] == ["nobodys"]


def test_a_skipping_trigger_whose_answer_was_lost_is_no_earlier_run(scheduler: Scheduler) -> None:
    create("s", overlap="skip")
    now_ms, store = engine().db.now_ms(), engine().db.schedules
    now = datetime.fromtimestamp(now_ms / 1000, UTC)

    def settle(connection: Any) -> Any:
        return store.settle(
            connection,
            lambda found: store.named(found, ["s"]),
            lambda row, situation: trigger(row, None, now, "sched-s-trigger-x", situation, now_ms, Encoder(engine())),
            now_ms,
        )

    answers = [engine().db.change(settle).decisions[0].decision for _ in range(2)]

    assert answers == ["triggered", "triggered"]
    assert decisions("s") == [("triggered", None)]


def test_users_are_told_once_of_a_workflow_that_this_process_does_not_have(
    scheduler: Scheduler, logged: pytest.LogCaptureFixture
) -> None:
    create("s")
    change("UPDATE dbos.workflow_schedules SET workflow_name = 'misspelt'")
    for minutes in (1, 0):
        make_due("s", minutes)
        fire(scheduler)

    told = [record for record in logged.records if "starts workflow misspelt" in record.getMessage()]

    assert len({id(record) for record in told}) == 1


def test_a_run_of_a_schedule_that_fails_is_logged(
    dbos: type[DBOS], scheduler: Scheduler, logged: pytest.LogCaptureFixture
) -> None:
    @dbos.workflow(name="failing")
    def failing(scheduled_time: datetime, context: Any) -> None:
        raise ValueError("no such luck")

    dbos.create_schedule(schedule_name="s", workflow_fn=failing, schedule=EVERY_MINUTE)

    handle = dbos.trigger_schedule("s")
    with pytest.raises(ValueError, match="no such luck"):
        handle.get_result()
    engine().runs.when_idle().wait(30)  # the log comes after the outcome

    assert any(handle.workflow_id in record.getMessage() for record in logged.records if record.levelname == "ERROR")


def test_a_decorator_without_its_parentheses_is_refused(dbos: type[DBOS]) -> None:
    def work(scheduled_time: datetime, actual_time: datetime) -> None: ...

    with pytest.raises(ValueError, match="with a cron expression"):
        dbos.scheduled(work)  # type: ignore[arg-type]


class Slow(PickleSerializer):
    """A serializer that notes whether it is called in a transaction that locks schedules."""

    def __init__(self) -> None:
        self.locking: int | None = None
        """Which thread holds locks of schedules: that of another may end a run at the same time."""

        self.calls: list[bool] = []

    def serialize(self, data: Any) -> str:
        self.calls.append(self.locking == threading.get_ident())
        if isinstance(data, dict) and "refused" in str(data.get("args")):
            raise ValueError("not this one")
        return super().serialize(data)

    def name(self) -> str:
        return "slow"


def test_no_schedule_is_locked_while_a_serializer_of_the_application_is_called(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    serializer = Slow()
    settle = SchedulesStore.settle

    def settle_noted(*arguments: Any, **named: Any) -> Any:
        serializer.locking = threading.get_ident()
        try:
            return settle(*arguments, **named)
        finally:
            serializer.locking = None

    monkeypatch.setattr(SchedulesStore, "settle", settle_noted)
    monkeypatch.setattr(engine(), "serialization", Serialization(serializer))
    for name, context in (("good", "plain"), ("bad", "refused")):
        create(name, context=context)
        make_due(name)

    fire(scheduler)
    triggered = DBOS.trigger_schedule("good").get_status()
    with pytest.raises(DBOSException, match="not this one"):
        DBOS.trigger_schedule("bad")

    bad = DBOS.get_schedule("bad")
    assert bad is not None
    assert "not this one" in str(bad["error"])
    assert [decision for decision, _ in decisions("good")] == ["fired", "triggered"]
    assert isinstance(triggered.input, dict)
    assert triggered.input["args"][1] == "plain"
    assert serializer.calls
    assert not any(serializer.calls)
