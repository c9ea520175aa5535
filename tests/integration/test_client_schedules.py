"""DBOSClient: schedules, without the application's code."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSException

PATIENCE_S = 30.0
RARELY = "0 0 1 1 *"


@pytest.fixture
def client(dbos: type[DBOS], config: DBOSConfig) -> Iterator[DBOSClient]:
    dbos.launch()  # which creates the tables
    client = DBOSClient(system_database_url=config["system_database_url"])
    yield client
    client.destroy()


def test_a_schedule_of_a_client_is_fired_by_the_application_at_once(dbos: type[DBOS], client: DBOSClient) -> None:
    fired, seen = threading.Event(), list[Any]()

    @dbos.workflow(name="report")
    def report(scheduled_time: datetime, context: Any) -> None:
        seen.append(context)
        fired.set()

    client.create_schedule(
        schedule_name="s", workflow_name="report", schedule="* * * * * *", context={"from": "client"}
    )

    assert fired.wait(PATIENCE_S)
    assert seen[0] == {"from": "client"}


def test_a_client_triggers_and_backfills_and_waits_for_the_results(dbos: type[DBOS], client: DBOSClient) -> None:
    @dbos.workflow(name="report")
    def report(scheduled_time: datetime, context: Any) -> str:
        return scheduled_time.isoformat()

    client.create_schedule(schedule_name="s", workflow_name="report", schedule="0 0 * * *")

    triggered = client.trigger_schedule("s")
    filled = client.backfill_schedule("s", datetime(2026, 1, 1), datetime(2026, 1, 3, 1))
    planned = client.backfill_schedule("s", datetime(2026, 1, 1), datetime(2026, 1, 3), dry_run=True)

    assert triggered.workflow_id.startswith("sched-s-trigger-")
    assert datetime.fromisoformat(triggered.get_result()).tzinfo == UTC
    assert [handle.get_result() for handle in filled] == ["2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00+00:00"]
    assert planned == [datetime(2026, 1, 2, tzinfo=UTC)]
    decisions = {each["decision"] for each in client.schedule_history("s")}
    assert decisions == {"triggered", "backfilled"}


def test_a_client_names_what_need_not_exist_yet(client: DBOSClient) -> None:
    client.create_schedule(
        schedule_name="s",
        workflow_name="unknown",
        workflow_class_name="Nobody",
        queue_name="nowhere",
        schedule=RARELY,
        overlap="skip",
    )

    schedule = client.get_schedule("s")

    assert schedule is not None
    assert schedule["workflow_name"] == "unknown"
    assert schedule["workflow_class_name"] == "Nobody"
    assert schedule["queue_name"] == "nowhere"
    assert schedule["overlap"] == "skip"
    assert schedule["application_name"] is None


def test_a_client_changes_pauses_resumes_and_deletes(client: DBOSClient) -> None:
    client.create_schedule(schedule_name="s", workflow_name="report", schedule=RARELY)

    client.update_schedule("s", workflow_name="other", note="changed", cron_timezone="Asia/Tokyo")
    client.pause_schedule("s", reason="holidays")
    paused = client.get_schedule("s")
    client.resume_schedule("s")
    resumed = client.get_schedule("s")
    client.delete_schedule("s")

    assert paused is not None
    assert resumed is not None
    assert (paused["workflow_name"], paused["note"], paused["pause_reason"]) == ("other", "changed", "holidays")
    assert (paused["status"], resumed["status"]) == ("PAUSED", "ACTIVE")
    assert resumed["next_fire_at"] is not None
    assert resumed["next_fire_at"].endswith("+09:00")
    assert client.list_schedules() == []


def test_a_client_applies_all_schedules_or_none(client: DBOSClient) -> None:
    good: Any = {"schedule_name": "good", "workflow_name": "report", "schedule": RARELY}
    bad: Any = {"schedule_name": "bad", "workflow_name": "report", "schedule": "every day"}
    client.create_schedule(schedule_name="old", workflow_name="report", schedule=RARELY)

    with pytest.raises(DBOSException, match="Invalid cron schedule: 'every day'"):
        client.apply_schedules([good, bad])
    before = [schedule["schedule_name"] for schedule in client.list_schedules()]
    client.apply_schedules([good], prune=True)

    assert before == ["old"]
    assert [schedule["schedule_name"] for schedule in client.list_schedules()] == ["good"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": "* * *"}, r"Invalid cron schedule: '\* \* \*'"),
        ({"cron_timezone": "Mars/Olympus"}, "Invalid timezone: 'Mars/Olympus'"),
        ({"context": {1, 2}}, "must be JSON-serializable"),
        ({"workflow_name": ""}, "Invalid workflow_name ''"),
    ],
)
def test_what_a_client_asks_for_is_checked_before_anything_is_stored(
    client: DBOSClient, wrong: dict[str, Any], message: str
) -> None:
    given: Any = {"schedule_name": "s", "workflow_name": "report", "schedule": RARELY, **wrong}

    with pytest.raises(DBOSException, match=message):
        client.create_schedule(**given)

    assert client.list_schedules() == []


def test_a_call_of_a_client_is_no_step_of_the_workflow_that_makes_it(dbos: type[DBOS], client: DBOSClient) -> None:
    @dbos.workflow()
    def manage() -> str:
        client.create_schedule(schedule_name="s", workflow_name="report", schedule=RARELY)
        return client.trigger_schedule("s").workflow_id

    handle = dbos.start_workflow(manage)

    assert handle.get_result().startswith("sched-s-trigger-")
    assert dbos.list_workflow_steps(handle.workflow_id) == []


async def test_every_operation_can_be_awaited(dbos: type[DBOS], client: DBOSClient) -> None:
    @dbos.workflow(name="report")
    async def report(scheduled_time: datetime, context: Any) -> str:
        return "done"

    await client.create_schedule_async(schedule_name="s", workflow_name="report", schedule="0 0 * * *")
    await client.update_schedule_async("s", note="n")
    await client.pause_schedule_async("s")
    triggered = await client.trigger_schedule_async("s")
    filled = await client.backfill_schedule_async("s", datetime(2026, 1, 1), datetime(2026, 1, 2, 1))
    await client.resume_schedule_async("s")
    preview = await client.preview_schedule_async("s", 2)
    history = await client.schedule_history_async("s")
    listed = await client.list_schedules_async(status="ACTIVE")
    await client.apply_schedules_async([], prune=True)

    assert [await handle.get_result() for handle in [triggered, *filled]] == ["done", "done"]
    assert len(preview["times"]) == 2
    assert len(history) == 2
    assert [schedule["note"] for schedule in listed] == ["n"]
    assert await client.get_schedule_async("s") is None
