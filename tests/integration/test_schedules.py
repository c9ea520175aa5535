"""Schedules at work: the runs of their ticks, triggers and backfills, and schedules as steps of a workflow."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from dbos import DBOS, DBOSException, Queue, ScheduleDecision, SetWorkflowID, WorkflowHandle
from dbos._operations import schedule_runs
from dbos._sysdb.rows import ScheduleRow
from dbos.testing import VirtualTime
from tests.integration.histories import (
    change,
    engine,
    eventually,
    execute_again,
    recorded,
    row,
)

NEVER = "0 0 1 1 *"  # no test runs that long
EVERY_SECOND = "* * * * * *"

Function = Callable[[datetime, Any], Any]

TOKYO, NEW_YORK = ZoneInfo("Asia/Tokyo"), ZoneInfo("America/New_York")


def echo() -> Function:
    """A workflow that returns its arguments."""

    @DBOS.workflow(name="echo")
    def workflow(scheduled_time: datetime, context: Any) -> Any:
        return scheduled_time, context

    return workflow


def created(workflow: Function, name: str = "nightly", schedule: str = NEVER, **others: Any) -> None:
    DBOS.create_schedule(schedule_name=name, workflow_fn=workflow, schedule=schedule, **others)


def ids(handles: list[WorkflowHandle[Any]]) -> list[str]:
    return [handle.workflow_id for handle in handles]


def stored(name: str = "nightly") -> ScheduleRow:
    """The schedule's row, which must exist."""
    db = engine().db
    found = db.read(db.schedules.get, name)
    assert found is not None
    return found


def fired(name: str = "nightly") -> list[ScheduleDecision]:
    """What the ticks of a schedule have started, the first of them first."""
    return [each for each in reversed(DBOS.schedule_history(name)) if each["decision"] == "fired"]


# -- ticks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
def test_a_tick_starts_a_run_with_its_time_and_the_context(
    dbos: type[DBOS], dbos_virtual_time: VirtualTime, zone: str | None
) -> None:
    workflow = echo()
    Queue("mail")
    dbos.launch()
    later = "2" + str(dbos.application_version)
    db = engine().db
    db.change(db.versions.register, later, later, db.now_ms() + 1000)

    created(workflow, "a b/c", EVERY_SECOND, context={"a": 1}, cron_timezone=zone, queue_name="mail", max_runs=2)
    dbos_virtual_time.advance(3)

    first, second = fired("a b/c")
    tick, shown = first["scheduled_time"], dbos.get_schedule("a b/c")
    assert second["scheduled_time"] == tick + timedelta(seconds=1)
    assert tick.isoformat().endswith("+00:00" if zone is None else "+09:00")
    assert tick.microsecond == 0
    assert first["workflow_id"] == f"sched-a b/c-{tick.isoformat()}"
    assert shown is not None
    assert shown["last_fired_at"] == second["scheduled_time"].isoformat()
    assert (shown["runs"], shown["next_fire_at"]) == (2, None)

    [waiting, _] = dbos.list_workflows(schedule_name="a b/c")  # for processes of the latest version
    assert dbos.list_queued_workflows(schedule_name=["a b/c", "other"], limit=1) == [waiting]
    assert dbos.list_queued_workflows(schedule_name="other") == []
    assert (waiting.workflow_id, waiting.schedule_name) == (first["workflow_id"], "a b/c")
    assert (waiting.status, waiting.queue_name, waiting.app_version) == ("ENQUEUED", "mail", None)
    assert (waiting.name, waiting.class_name, waiting.config_name) == ("echo", None, None)
    assert (waiting.priority, waiting.parent_workflow_id, waiting.executor_id) == (0, None, None)
    assert (waiting.authenticated_user, waiting.authenticated_roles, waiting.assumed_role) == (None, None, None)
    assert (waiting.workflow_timeout_ms, waiting.deduplication_id, waiting.recovery_attempts) == (None, None, 0)
    arguments: Any = waiting.input
    assert arguments == {"args": (tick, {"a": 1}), "kwargs": {}}

    dbos.set_latest_application_version(dbos.application_version)
    run = dbos.retrieve_workflow(waiting.workflow_id)
    scheduled_time, context = run.get_result()
    assert (scheduled_time, context) == (tick, {"a": 1})
    assert scheduled_time.utcoffset() == (timedelta(0) if zone is None else timedelta(hours=9))
    assert run.get_status().app_version == "test"


def test_runs_begin_while_their_schedule_goes_on(dbos: type[DBOS], dbos_virtual_time: VirtualTime) -> None:
    """In the function itself everything is as the row says."""
    seen: list[tuple[str | None, datetime, Any]] = []

    @dbos.workflow()
    def workflow(scheduled_time: datetime, context: Any) -> None:
        seen.append((DBOS.workflow_id, scheduled_time, context))
        raise ValueError("and the next tick comes all the same")

    dbos.launch()
    created(workflow, schedule=EVERY_SECOND)
    dbos_virtual_time.advance(2)
    dbos.delete_schedule("nightly")

    for id, scheduled_time, context in seen:
        assert id == f"sched-nightly-{scheduled_time.isoformat()}"
        assert scheduled_time.tzinfo is not None
        assert context is None
    assert len({id for id, _, _ in seen}) == len(seen) == 2
    assert dbos.get_schedule("nightly") is None
    assert {each.schedule_name for each in dbos.list_workflows(name=workflow.__qualname__)} == {"nightly"}


def test_the_second_schedule_of_a_name_does_not_run_a_tick_again(dbos: type[DBOS]) -> None:
    runs: list[datetime] = []

    @dbos.workflow()
    def workflow(scheduled_time: datetime, context: Any) -> Any:
        runs.append(scheduled_time)
        return context

    dbos.launch()
    start, end = datetime(2026, 1, 1), datetime(2026, 1, 4)
    created(workflow, schedule="0 0 * * *", context="first")
    first = dbos.backfill_schedule("nightly", start, end)
    results = [handle.get_result() for handle in first]
    dbos.delete_schedule("nightly")
    created(workflow, schedule="0 0 * * *", context="second")

    second = dbos.backfill_schedule("nightly", start, end)

    assert ids(second) == ids(first)
    assert [handle.get_result() for handle in second] == results == ["first", "first"]
    assert len(runs) == 2


# -- contexts ----------------------------------------------------------------------------------------------------------

CONTEXTS: list[Any] = [
    None,
    True,
    0,
    -1.5e300,
    2**80,
    "",
    "ü\0\ud800 '\"\\",
    [],
    {},
    {"a": [1, None, {"b": "c"}], "": {}},
    {1: "number", None: "nothing", False: "lie"},  # keys become text
    (1, (2, 3)),  # tuples become lists
    ["x" * 100_000],
]


def test_a_context_is_what_json_makes_of_it(dbos: type[DBOS]) -> None:
    workflow = echo()
    dbos.launch()

    for number, context in enumerate(CONTEXTS):
        created(workflow, f"schedule-{number}", context=context)
    handles = [dbos.trigger_schedule(f"schedule-{number}") for number in range(len(CONTEXTS))]

    expected = [json.loads(json.dumps(context)) for context in CONTEXTS]
    assert [handle.get_result()[1] for handle in handles] == expected
    listed = {schedule["schedule_name"]: schedule["context"] for schedule in dbos.list_schedules()}
    assert [listed[f"schedule-{number}"] for number in range(len(CONTEXTS))] == expected


def test_a_context_that_is_changed_later_is_stored_as_it_was(dbos: type[DBOS]) -> None:
    workflow = echo()
    dbos.launch()
    context: Any = {"a": [1]}
    created(workflow, context=context)

    context["a"].append(2)
    shown = dbos.get_schedule("nightly")
    assert shown is not None
    shown["context"]["a"].append(3)

    assert dbos.trigger_schedule("nightly").get_result()[1] == {"a": [1]}


# -- triggers ----------------------------------------------------------------------------------------------------------


def test_a_trigger_starts_a_run_now(dbos: type[DBOS]) -> None:
    workflow = echo()
    dbos.launch()
    created(workflow, context="context", cron_timezone="Asia/Tokyo")
    before = datetime.now(UTC)

    handle = dbos.trigger_schedule("nightly")

    scheduled_time, context = handle.get_result()
    after, status = datetime.now(UTC), handle.get_status()
    assert context == "context"
    assert scheduled_time.tzinfo is UTC
    assert before - timedelta(milliseconds=1) <= scheduled_time <= after + timedelta(milliseconds=1)
    assert isinstance(handle, WorkflowHandle)
    assert handle.workflow_id == f"sched-nightly-trigger-{scheduled_time.isoformat(timespec='microseconds')}"
    assert re.fullmatch(r"sched-nightly-trigger-\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", handle.workflow_id)
    assert (status.queue_name, status.schedule_name) == ("_dbos_internal_queue", "nightly")
    assert (status.app_version, status.priority, status.parent_workflow_id) == ("test", 0, None)
    [decision] = dbos.schedule_history("nightly")
    assert decision == {
        "schedule_name": "nightly",
        "scheduled_time": decision["scheduled_time"],
        "last_scheduled_time": decision["scheduled_time"],
        "ticks": 1,
        "decision": "triggered",
        "reason": None,
        "decided_at": decision["decided_at"],
        "lateness": (decision["decided_at"] - decision["scheduled_time"]).total_seconds(),
        "workflow_id": handle.workflow_id,
    }
    assert decision.keys() == ScheduleDecision.__annotations__.keys()
    assert decision["scheduled_time"] == scheduled_time.replace(microsecond=scheduled_time.microsecond // 1000 * 1000)


def test_a_paused_schedule_is_triggered_and_backfilled(dbos: type[DBOS]) -> None:
    workflow = echo()
    dbos.launch()
    created(workflow, schedule="0 0 * * *")
    dbos.pause_schedule("nightly")
    before = dbos.get_schedule("nightly")

    triggered = dbos.trigger_schedule("nightly")
    backfilled = dbos.backfill_schedule("nightly", datetime(2026, 1, 1), datetime(2026, 1, 3))

    assert triggered.get_result()[1] is None
    assert [handle.get_result()[0] for handle in backfilled] == [datetime(2026, 1, 2, tzinfo=UTC)]
    assert dbos.get_schedule("nightly") == before  # neither is a tick that was fired


def test_every_trigger_starts_another_run(dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those made in one millisecond, some had one id, and one run."""
    workflow = echo()
    dbos.launch()
    created(workflow)
    now_ms = engine().db.now_ms()
    monkeypatch.setattr(engine().db, "now_ms", lambda: now_ms)
    handles: list[WorkflowHandle[Any]] = []

    def trigger() -> None:
        for _ in range(25):
            handles.append(dbos.trigger_schedule("nightly"))  # noqa: PERF401  # side by side, in several threads

    threads = [threading.Thread(target=trigger) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(ids(handles))) == 100
    assert len(dbos.list_workflows(schedule_name="nightly", load_input=False, load_output=False)) == 100


# -- backfills ---------------------------------------------------------------------------------------------------------


def test_a_backfill_starts_the_ticks_between_two_times(dbos: type[DBOS]) -> None:
    workflow = echo()
    dbos.launch()
    created(workflow, schedule="0 9 * * *", cron_timezone="America/New_York", context=[1])
    start, end = datetime(2026, 1, 1, 9, tzinfo=NEW_YORK), datetime(2026, 1, 4, 9, tzinfo=NEW_YORK)

    handles = dbos.backfill_schedule("nightly", start, end)  # both ends are ticks, and excluded

    assert ids(handles) == ["sched-nightly-2026-01-02T09:00:00-05:00", "sched-nightly-2026-01-03T09:00:00-05:00"]
    results = [handle.get_result() for handle in handles]
    assert results == [(datetime(2026, 1, day, 14, tzinfo=UTC), [1]) for day in (2, 3)]
    assert [each[0].utcoffset() for each in results] == [timedelta(hours=-5)] * 2
    assert {(each.queue_name, each.schedule_name) for each in dbos.list_workflows()} == {
        ("_dbos_internal_queue", "nightly")
    }
    again = dbos.backfill_schedule("nightly", start - timedelta(seconds=1), end + timedelta(microseconds=1))
    assert ids(again) == [
        "sched-nightly-2026-01-01T09:00:00-05:00",
        *ids(handles),
        "sched-nightly-2026-01-04T09:00:00-05:00",
    ]
    assert len(dbos.list_workflows()) == 4
    history = dbos.schedule_history("nightly")
    assert sorted(str(each["workflow_id"]) for each in history) == ids(again)
    assert {each["decision"] for each in history} == {"backfilled"}
    assert {each["scheduled_time"].utcoffset() for each in history} == {timedelta(hours=-5)}


def forms(name: str, start: datetime, end: datetime) -> Iterator[list[WorkflowHandle[Any]]]:
    yield DBOS.backfill_schedule(name, start, end)
    yield DBOS.backfill_schedule(name, start=start, end=end)
    yield DBOS.backfill_schedule(schedule_name=name, start_time=start, end_time=end)
    yield DBOS.backfill_schedule(name, start, end_time=end)


@pytest.fixture
def far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose own time zone is another one."""
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_from_utc")
def test_the_times_of_a_backfill_are_given_in_several_forms(dbos: type[DBOS]) -> None:
    workflow = echo()
    dbos.launch()
    created(workflow, schedule="0 * * * *", cron_timezone="Asia/Tokyo")
    offset = timezone(timedelta(hours=5, minutes=30))
    aware = datetime(2026, 1, 1, 5, 0, tzinfo=offset), datetime(2026, 1, 1, 7, 0, tzinfo=offset)
    naive = datetime(2025, 12, 31, 23, 30), datetime(2026, 1, 1, 1, 30)  # the same in UTC, wherever this machine is

    handles = [*forms("nightly", *aware), *forms("nightly", *naive)]

    expected = ["sched-nightly-2026-01-01T09:00:00+09:00", "sched-nightly-2026-01-01T10:00:00+09:00"]
    assert [ids(each) for each in handles] == [expected] * 8
    assert len(dbos.list_workflows()) == 2


def test_a_backfill_that_makes_no_sense_starts_nothing(dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_runs, "MAX_BACKFILL", 100)
    workflow = echo()
    dbos.launch()
    created(workflow, schedule="0 * * * *")
    created(workflow, "once", "0 0 0 1 1 * 2000")
    start, end = datetime(2026, 1, 1), datetime(2026, 1, 2)

    assert dbos.backfill_schedule("nightly", end, start) == []
    assert dbos.backfill_schedule("nightly", start, start) == []
    incomplete: list[Callable[[], object]] = [
        lambda: dbos.backfill_schedule("nightly"),
        lambda: dbos.backfill_schedule("nightly", start),
        lambda: dbos.backfill_schedule("nightly", end_time=end),
    ]
    for call in incomplete:
        with pytest.raises(DBOSException, match="needs both times"):
            call()
    with pytest.raises(DBOSException, match="must be a datetime"):
        dbos.backfill_schedule("nightly", "2026-01-01", end)  # type: ignore[call-overload]  # which is the point
    assert len(dbos.backfill_schedule("nightly", start, datetime(2026, 1, 5, 4, 1), dry_run=True)) == 100
    for beyond in (datetime(2026, 1, 5, 5, 1), datetime.max):
        with pytest.raises(DBOSException, match="more than 100 ticks"):
            dbos.backfill_schedule("nightly", start, beyond)
    [only] = dbos.backfill_schedule("once", datetime.min, datetime.max, dry_run=True)
    assert only == datetime(2000, 1, 1, tzinfo=UTC)
    with pytest.raises(DBOSException, match="overlap must be one of"):
        dbos.backfill_schedule("nightly", start, end, overlap="sometimes")  # type: ignore[call-overload]
    with pytest.raises(DBOSException, match="overlap must be one of"):
        dbos.trigger_schedule("nightly", overlap="sometimes")  # type: ignore[arg-type]
    assert dbos.list_workflows() == []


def test_a_dry_run_tells_the_ticks_and_starts_none(dbos: type[DBOS]) -> None:
    workflow = echo()
    dbos.launch()
    created(workflow, schedule="30 1 * * *", cron_timezone="America/New_York")
    start, end = datetime(2026, 10, 31), datetime(2026, 11, 3)  # 1 November has two half past ones

    ticks = dbos.backfill_schedule("nightly", start, end, dry_run=True)

    assert [tick.isoformat() for tick in ticks] == [
        "2026-10-31T01:30:00-04:00",
        "2026-11-01T01:30:00-04:00",
        "2026-11-02T01:30:00-05:00",
    ]
    assert dbos.list_workflows() == []
    assert dbos.schedule_history("nightly") == []


def test_a_backfill_does_not_start_what_ticks_have_started(dbos: type[DBOS], dbos_virtual_time: VirtualTime) -> None:
    workflow = echo()
    dbos.launch()
    start = dbos_virtual_time.now() - timedelta(seconds=5)
    created(workflow, schedule=EVERY_SECOND, max_runs=2)
    dbos_virtual_time.advance(2)
    end = fired()[1]["scheduled_time"] + timedelta(seconds=1)

    handles = dbos.backfill_schedule("nightly", start, end)

    decisions = {each["workflow_id"]: each["decision"] for each in dbos.schedule_history("nightly")}
    assert [decisions[id] for id in ids(handles)][-2:] == ["fired", "fired"]
    assert set(ids(handles)) == set(decisions) == {each.workflow_id for each in dbos.list_workflows()}
    assert len(handles) == len(dbos.schedule_history("nightly")) == len(dbos.list_workflows())


def test_many_ticks_are_backfilled_in_their_order(dbos: type[DBOS]) -> None:
    workflow = echo()
    dbos.launch()
    created(workflow, schedule="* * * * *")
    start, end = datetime(2026, 1, 1), datetime(2026, 1, 1, 4, 10)

    handles = dbos.backfill_schedule("nightly", start, end)

    expected = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute) for minute in range(1, 250)]
    assert ids(handles) == [f"sched-nightly-{tick.isoformat()}" for tick in expected]
    listed = dbos.list_workflows(load_input=False, load_output=False)
    assert {each.workflow_id for each in listed} == set(ids(handles))


# -- within a workflow -------------------------------------------------------------------------------------------------


def test_what_is_done_to_schedules_in_a_workflow_is_done_once(dbos: type[DBOS]) -> None:
    target = echo()
    runs: list[int] = []

    @dbos.workflow()
    def workflow() -> Any:
        runs.append(1)
        results: list[Any] = [
            DBOS.create_schedule(schedule_name="nightly", workflow_fn=target, schedule=NEVER, context=1),
            DBOS.get_schedule("nightly"),
            DBOS.list_schedules(),
            DBOS.pause_schedule("nightly", reason="holidays"),
            DBOS.get_schedule("nightly"),
            DBOS.resume_schedule("nightly"),
            DBOS.update_schedule("nightly", note="new", cron_timezone="Asia/Tokyo"),
            DBOS.schedule_history("nightly"),
            DBOS.preview_schedule("nightly", 2),
            DBOS.delete_schedule("nightly"),
            DBOS.get_schedule("nightly"),
        ]
        return results

    dbos.launch()

    with SetWorkflowID("id"):
        results = workflow()

    names = [
        "createSchedule",
        "getSchedule",
        "listSchedules",
        "pauseSchedule",
        "getSchedule",
        "resumeSchedule",
        "updateSchedule",
        "scheduleHistory",
        "previewSchedule",
        "deleteSchedule",
        "getSchedule",
    ]
    assert recorded("id") == [(number, f"DBOS.{name}") for number, name in enumerate(names, start=1)]
    assert [step["output"] for step in dbos.list_workflow_steps("id")] == results
    assert [results[number] for number in (0, 3, 5, 6, 9, 10)] == [None] * 6
    assert results[2] == [results[1]]
    assert (results[4]["status"], results[4]["pause_reason"]) == ("PAUSED", "holidays")
    assert [tick.hour for tick in results[8]["times"]] == [0, 0]

    assert execute_again("id").get_result() == results
    assert len(runs) == 2
    assert dbos.list_schedules() == []


async def test_coroutines_do_things_to_schedules_once(dbos: type[DBOS]) -> None:
    target = echo()

    @dbos.workflow()
    async def workflow() -> Any:
        await DBOS.create_schedule_async(schedule_name="nightly", workflow_fn=target, schedule=NEVER)
        await DBOS.pause_schedule_async("nightly")
        return await DBOS.get_schedule_async("nightly")

    dbos.launch()

    with SetWorkflowID("id"):
        result = await workflow()
    await dbos.delete_schedule_async("nightly")

    assert result["status"] == "PAUSED"
    names = ["createSchedule", "pauseSchedule", "getSchedule"]
    assert recorded("id") == [(number, f"DBOS.{name}") for number, name in enumerate(names, start=1)]
    handle = await asyncio.to_thread(execute_again, "id")
    assert await asyncio.to_thread(handle.get_result) == result
    assert await dbos.list_schedules_async() == []


def test_a_schedule_that_was_created_just_before_a_crash_is_found_to_be_ones_own(dbos: type[DBOS]) -> None:
    """The recovered workflow failed, because a schedule of this name already existed."""
    target = echo()

    @dbos.workflow()
    def workflow() -> str:
        DBOS.create_schedule(schedule_name="nightly", workflow_fn=target, schedule=NEVER)
        return "done"

    dbos.launch()
    with SetWorkflowID("first"):
        workflow()
    before = dbos.list_schedules()

    assert execute_again("first", to_step=0).get_result() == "done"
    assert dbos.list_schedules() == before
    with SetWorkflowID("second"), pytest.raises(DBOSException, match="already exists"):
        workflow()


def test_what_fails_is_not_recorded(dbos: type[DBOS]) -> None:
    target = echo()

    @dbos.workflow()
    def workflow() -> list[str]:
        messages = []
        for schedule in ("wrong", NEVER, NEVER):
            try:
                DBOS.create_schedule(schedule_name="nightly", workflow_fn=target, schedule=schedule)
            except DBOSException as error:
                messages.append(error.message)
        try:
            DBOS.update_schedule("missing", context=1)
        except DBOSException as error:
            messages.append(error.message)
        return messages

    dbos.launch()

    with SetWorkflowID("id"):
        messages = workflow()

    assert recorded("id") == [(2, "DBOS.createSchedule")]
    assert messages[0].startswith("Invalid cron schedule: 'wrong'")
    assert messages[1:] == ["Schedule 'nightly' already exists", "Schedule 'missing' does not exist"]


def test_what_a_replay_would_do_again_is_refused_in_a_workflow(dbos: type[DBOS]) -> None:
    target = echo()

    @dbos.workflow()
    def workflow() -> list[str]:
        messages = []
        for call in (
            lambda: DBOS.apply_schedules([{"schedule_name": "x", "workflow_fn": target, "schedule": NEVER}]),
            lambda: DBOS.trigger_schedule("nightly"),
            lambda: DBOS.backfill_schedule("nightly", datetime(2026, 1, 1), datetime(2027, 1, 2)),
            lambda: DBOS.backfill_schedule("nightly", datetime(2026, 1, 1), datetime(2027, 1, 2), dry_run=True),
        ):
            try:
                call()
            except DBOSException as error:
                messages.append(error.message)
        return messages

    dbos.launch()
    created(target)

    with SetWorkflowID("id"):
        messages = workflow()

    assert messages == [
        f"DBOS.{name} cannot be called from within a workflow"
        for name in ("apply_schedules", "trigger_schedule", "backfill_schedule", "backfill_schedule")
    ]
    assert recorded("id") == []
    assert [each["schedule_name"] for each in dbos.list_schedules()] == ["nightly"]
    assert dbos.list_workflows(schedule_name="nightly") == []


def test_in_a_step_everything_is_done_directly(dbos: type[DBOS]) -> None:
    target = echo()

    @dbos.step()
    def step() -> list[str]:
        DBOS.create_schedule(schedule_name="nightly", workflow_fn=target, schedule="0 0 * * *")
        DBOS.apply_schedules([{"schedule_name": "other", "workflow_fn": target, "schedule": NEVER}])
        triggered = DBOS.trigger_schedule("other")
        backfilled = DBOS.backfill_schedule("nightly", datetime(2026, 1, 1), datetime(2026, 1, 3))
        DBOS.delete_schedule("nightly")
        return ids([triggered, *backfilled])

    @dbos.workflow()
    def workflow() -> list[str]:
        return step()

    dbos.launch()

    with SetWorkflowID("id"):
        started = workflow()

    assert recorded("id") == [(1, step.__qualname__)]
    assert started[1] == "sched-nightly-2026-01-02T00:00:00+00:00"
    for id in started:
        assert dbos.retrieve_workflow(id).get_result()[1] is None
        assert row(id).parent_workflow_id is None
    assert [each["schedule_name"] for each in dbos.list_schedules()] == ["other"]


def test_in_a_transaction_everything_is_refused(dbos: type[DBOS]) -> None:
    target = echo()

    @dbos.transaction()
    def transaction() -> int:
        count = 0
        for call in (
            lambda: DBOS.create_schedule(schedule_name="nightly", workflow_fn=target, schedule=NEVER),
            lambda: DBOS.apply_schedules([]),
            lambda: DBOS.trigger_schedule("nightly"),
            lambda: DBOS.backfill_schedule("nightly", datetime(2026, 1, 1), datetime(2026, 1, 3)),
            lambda: DBOS.update_schedule("nightly"),
            lambda: DBOS.pause_schedule("nightly"),
            lambda: DBOS.delete_schedule("nightly"),
            lambda: DBOS.list_schedules(),
        ):
            with pytest.raises(Exception, match="inside a transaction"):
                call()
            count += 1
        return count

    dbos.launch()

    assert transaction() == 8
    assert dbos.list_schedules() == []


# -- forms -------------------------------------------------------------------------------------------------------------


async def test_runs_out_of_turn_have_awaitable_forms(dbos: type[DBOS]) -> None:
    workflow = echo()
    dbos.launch()
    await dbos.create_schedule_async(schedule_name="nightly", workflow_fn=workflow, schedule="0 0 * * *", context=1)
    start, end = datetime(2026, 1, 1), datetime(2026, 1, 3)

    triggered = await dbos.trigger_schedule_async("nightly", overlap="allow")
    ticks = await dbos.backfill_schedule_async("nightly", start, end, dry_run=True)
    backfilled = await dbos.backfill_schedule_async(schedule_name="nightly", start_time=start, end_time=end)
    preview = await dbos.preview_schedule_async("nightly", n=1)
    history = await dbos.schedule_history_async("nightly", limit=1)

    assert (await triggered.get_result())[1] == 1
    assert ticks == [datetime(2026, 1, 2, tzinfo=UTC)]
    assert [(await handle.get_result())[0] for handle in backfilled] == ticks
    assert [tick > datetime.now(UTC) for tick in preview["times"]] == [True]
    assert [each["decision"] for each in history] == ["backfilled"]
    with pytest.raises(DBOSException, match="Schedule 'missing' does not exist"):
        await dbos.trigger_schedule_async("missing")
    with pytest.raises(RuntimeError, match="while an event loop is running"):
        dbos.trigger_schedule("nightly")


# -- previews ----------------------------------------------------------------------------------------------------------


def test_a_preview_tells_when_a_schedule_fires_next(dbos: type[DBOS]) -> None:
    workflow = echo()
    dbos.launch()
    start_at, end_at = datetime(2100, 3, 1, tzinfo=UTC), datetime(2100, 3, 3, tzinfo=UTC)
    created(workflow, "daily", "0 9 * * *", cron_timezone="Asia/Tokyo", start_at=start_at, jitter=30)
    created(workflow, "limited", "0 9 * * *", start_at=start_at, end_at=end_at)
    created(workflow, "counted", "0 9 * * *", start_at=start_at, max_runs=1)
    dbos.pause_schedule("daily")

    previews = {name: dbos.preview_schedule(name, 3) for name in ("daily", "limited", "counted")}

    assert [tick.isoformat() for tick in previews["daily"]["times"]] == [
        "2100-03-01T09:00:00+09:00",  # the very start
        "2100-03-02T09:00:00+09:00",
        "2100-03-03T09:00:00+09:00",
    ]
    assert [tick.day for tick in previews["limited"]["times"]] == [1, 2]
    assert [tick.day for tick in previews["counted"]["times"]] == [1]
    assert {preview["description"] for preview in previews.values()} == {previews["daily"]["description"]}
    dbos.resume_schedule("daily")
    assert stored("daily").next_tick_ms == previews["daily"]["times"][0].timestamp() * 1000  # what will fire


def test_a_preview_tells_what_an_expression_means(dbos: type[DBOS]) -> None:
    dbos.launch()

    paris = dbos.preview_schedule("0 9 * * 1-5", 10, "Europe/Paris")
    utc = dbos.preview_schedule("@daily")
    over = dbos.preview_schedule("0 0 0 1 1 * 2000")

    assert len(paris["times"]) == 10
    assert {(tick.hour, str(tick.tzinfo)) for tick in paris["times"]} == {(9, "Europe/Paris")}
    assert {tick.weekday() for tick in paris["times"]} == {0, 1, 2, 3, 4}
    assert "09:00" in paris["description"]
    assert len(utc["times"]) == 5
    assert utc["times"] == sorted(utc["times"])
    assert utc["times"][0] > datetime.now(UTC) - timedelta(minutes=1)
    assert {tick.isoformat()[10:] for tick in utc["times"]} == {"T00:00:00+00:00"}
    assert over["times"] == []
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: dbos.preview_schedule("missing"), "Invalid cron schedule: 'missing'"),
        (lambda: dbos.preview_schedule("@daily", timezone="Mars/Olympus"), "Invalid timezone: 'Mars/Olympus'"),
        (lambda: dbos.preview_schedule("@daily", timezone=""), "Invalid timezone: ''"),
        (lambda: dbos.preview_schedule("@daily", 0), "n must be a whole number"),
    ]
    for call, message in refused:
        with pytest.raises(DBOSException, match=message):
            call()


def test_a_history_is_limited(dbos: type[DBOS]) -> None:
    workflow = echo()
    dbos.launch()
    created(workflow, schedule="0 0 * * *")
    handles = dbos.backfill_schedule("nightly", datetime(2026, 1, 1), datetime(2026, 1, 5))
    dbos.delete_schedule("nightly")

    newest = dbos.schedule_history("nightly", limit=2)

    assert [each["workflow_id"] for each in newest] == ids(handles)[:0:-1]
    assert len(dbos.schedule_history("nightly")) == 3
    for limit in (0, -1, 1.5, True, None):
        with pytest.raises(DBOSException, match="limit must be a whole number"):
            dbos.schedule_history("nightly", limit=limit)  # type: ignore[arg-type]  # which is the point


# -- what somebody has written into the table --------------------------------------------------------------------------


def test_what_no_schedule_can_be_is_shown_and_keeps_nobody_else_from_firing(dbos: type[DBOS]) -> None:
    """An unreadable context kept all schedules from being listed, and from firing."""
    workflow = echo()
    dbos.launch()
    broken = {
        "context": "not JSON",
        "schedule": "not a cron",
        "cron_timezone": "Mars/Olympus",
        "overlap": "sometimes",
        "catchup": "some",
    }
    for column, value in broken.items():
        created(workflow, column, start_at=datetime(2100, 1, 1))
        change(
            f"UPDATE dbos.workflow_schedules SET {column} = :value, planned_from = NULL WHERE schedule_name = :name",
            value=value,
            name=column,
        )
    created(workflow, "sound", EVERY_SECOND, max_runs=1)

    eventually(lambda: fired("sound"))

    shown: dict[str, Any] = {each["schedule_name"]: each for each in dbos.list_schedules()}
    assert {name: shown[name][name] for name in broken} == broken
    for name in ("context", "overlap"):
        with pytest.raises(DBOSException, match=f"Schedule '{name}' cannot be triggered"):
            dbos.trigger_schedule(name)
    for name in ("schedule", "cron_timezone"):
        with pytest.raises(DBOSException, match=f"Schedule '{name}' cannot be backfilled"):
            dbos.backfill_schedule(name, datetime(2026, 1, 1), datetime(2027, 1, 2))
    for name in ("schedule", "cron_timezone"):
        assert dbos.trigger_schedule(name).get_result()[1] is None  # for which neither is needed
    for name in broken:
        sound: dict[str, Any] = {"context": 1, "schedule": NEVER, "cron_timezone": "UTC"}
        dbos.update_schedule(name, **sound, overlap="allow", catchup="none")
        assert dbos.trigger_schedule(name).get_result()[1] == 1
    assert {each["error"] for each in dbos.list_schedules()} == {None}
