"""The examples of the founding document, each body verbatim.

Around them stand the imports, ``DBOS(config=…)`` (the fixture) and ``DBOS.launch()``; here and there an assertion says
what the document says in prose. The decorators name the class ``DBOS`` itself, as users write it. A class whose
registered name is told is ``global``, because in the document it stands in a module.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from dbos import DBOS, DBOSConfiguredInstance, DBOSException, Queue, ScheduleInput, SetWorkflowID
from tests.integration.histories import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("dbos")

DataSyncWorkflows: Any
MyScheduledClass: Any
PaymentWorkflows: Any


def test_payment_workflows() -> None:
    @DBOS.dbos_class()
    class PaymentWorkflows:
        @staticmethod
        @DBOS.workflow()
        def process_payment(scheduled_at: datetime, ctx: Any) -> str:
            # Payment processing logic
            return "completed"

    DBOS.launch()

    now = datetime(2026, 2, 18, 12, 30)
    with SetWorkflowID("payment"):
        assert PaymentWorkflows.process_payment(now, {"env": "production"}) == "completed"
    status = DBOS.get_workflow_status("payment")
    assert status is not None
    assert status.status == "SUCCESS"
    assert status.class_name is None
    expected: Any = {"args": (now, {"env": "production"}), "kwargs": {}}
    assert status.input == expected


def test_url_fetcher() -> None:
    @DBOS.dbos_class()
    class URLFetcher(DBOSConfiguredInstance):
        def __init__(self, url: str):
            self.url = url
            super().__init__(config_name=url)

        @DBOS.workflow()
        def fetch_workflow(self) -> str:
            return self.fetch_url()

        @DBOS.step()
        def fetch_url(self) -> str:
            # Fetching logic
            return f"Content from {self.url}"

    fetcher = URLFetcher("https://example.com")
    DBOS.launch()

    with SetWorkflowID("fetch"):
        assert fetcher.fetch_workflow() == "Content from https://example.com"
    status = DBOS.get_workflow_status("fetch")
    assert status is not None
    assert status.class_name == URLFetcher.__qualname__
    assert status.config_name == "https://example.com"
    assert [step["output"] for step in DBOS.list_workflow_steps("fetch")] == ["Content from https://example.com"]


def test_data_workflows(capsys: pytest.CaptureFixture[str]) -> None:
    @DBOS.dbos_class()
    class DataWorkflows:
        workflow_count = 0
        transaction_count = 0

        @staticmethod
        @DBOS.workflow()
        def process_data(input_data: str) -> str:
            DataWorkflows.workflow_count += 1

            # Call transaction and step methods
            db_result = DataWorkflows.save_to_db(input_data)
            processed = DataWorkflows.transform_data(input_data)

            return f"{db_result}-{processed}"

        @staticmethod
        @DBOS.transaction()
        def save_to_db(data: str) -> str:
            DataWorkflows.transaction_count += 1
            rows = DBOS.sql_session.execute(sa.text("SELECT 1")).fetchall()
            return f"{data}-{rows[0][0]}"

        @staticmethod
        @DBOS.step()
        def transform_data(data: str) -> str:
            return data.upper()

    DBOS.launch()

    # Execute the workflow
    result = DataWorkflows.process_data("test")
    print(result)  # Output: "test-1-TEST"

    assert capsys.readouterr().out == "test-1-TEST\n"
    assert (DataWorkflows.workflow_count, DataWorkflows.transaction_count) == (1, 1)


def test_api_client() -> None:
    @DBOS.dbos_class()
    class APIClient(DBOSConfiguredInstance):
        def __init__(self, api_key: str, base_url: str):
            self.api_key = api_key
            self.base_url = base_url
            super().__init__(config_name=f"api-{base_url}")

        @DBOS.workflow()
        def fetch_data(self, endpoint: str) -> dict:  # type: ignore[type-arg]  # verbatim
            url = f"{self.base_url}/{endpoint}"
            return self.make_request(url)

        @DBOS.step()
        def make_request(self, url: str) -> dict:  # type: ignore[type-arg]  # verbatim
            # Simulated API request with authentication
            return {"url": url, "auth": self.api_key}

    # Create configured instances before DBOS.launch()
    prod_api = APIClient("prod-key", "https://api.prod.com")
    dev_api = APIClient("dev-key", "https://api.dev.com")

    DBOS.launch()

    # Use the workflow
    result = prod_api.fetch_data("users")

    assert result == {"url": "https://api.prod.com/users", "auth": "prod-key"}
    assert dev_api.fetch_data("users") == {"url": "https://api.dev.com/users", "auth": "dev-key"}
    assert {status.config_name for status in DBOS.list_workflows()} == {
        "api-https://api.prod.com",
        "api-https://api.dev.com",
    }


def test_a_static_method_is_called_without_its_class() -> None:
    """The document's signature of a scheduled workflow, as a static method that ``execute_workflow_by_id`` starts."""

    @DBOS.dbos_class()
    class MyScheduledClass:
        @staticmethod
        @DBOS.workflow()
        def scheduled_wf(scheduled_at: datetime, ctx: Any) -> None:
            print(f"Executing at {scheduled_at} with context: {ctx}")

    DBOS.launch()

    handle = DBOS.start_workflow(MyScheduledClass.scheduled_wf, datetime(2026, 1, 1), {"environment": "production"})

    assert handle.get_result() is None
    assert handle.get_status().name == MyScheduledClass.scheduled_wf.__qualname__


# -- schedules ---------------------------------------------------------------------------------------------------------


def declare_data_sync_workflows() -> None:
    global DataSyncWorkflows

    @DBOS.dbos_class()
    class DataSyncWorkflows:
        @staticmethod
        @DBOS.workflow()
        def sync_data(scheduled_time: datetime, context: Any) -> None:
            env = context.get("env", "production")
            # Sync logic here
            synced.append((scheduled_time, env))


synced: list[tuple[datetime, str]] = []


def create_data_sync_schedule() -> None:
    # Create schedule with timezone and automatic backfill
    DBOS.create_schedule(
        schedule_name="data-sync-schedule",
        workflow_fn=DataSyncWorkflows.sync_data,
        schedule="0 9 * * 1-5",  # 9 AM weekdays
        context={"env": "production", "priority": "high"},
        cron_timezone="America/New_York",
        automatic_backfill=True,
    )


def test_data_sync_workflows() -> None:
    declare_data_sync_workflows()
    DBOS.launch()

    create_data_sync_schedule()

    sched = DBOS.get_schedule("data-sync-schedule")
    assert sched is not None
    assert sched["workflow_name"] == "DataSyncWorkflows.sync_data"
    assert sched["workflow_class_name"] == "DataSyncWorkflows"
    assert (sched["schedule"], sched["cron_timezone"]) == ("0 9 * * 1-5", "America/New_York")
    assert sched["context"] == {"env": "production", "priority": "high"}
    assert sched["automatic_backfill"] is True
    assert (sched["status"], sched["queue_name"], sched["last_fired_at"]) == ("ACTIVE", None, None)
    preview = DBOS.preview_schedule("data-sync-schedule", 10)
    assert {(time.hour, time.weekday() < 5) for time in preview["times"]} == {(9, True)}


def test_the_life_of_a_schedule() -> None:
    synced.clear()
    declare_data_sync_workflows()
    Queue("high-priority-queue")

    @DBOS.dbos_class()
    class DataWorkflows:
        @staticmethod
        @DBOS.workflow()
        def method_a(scheduled_time: datetime, context: Any) -> Any:
            return context

    DBOS.launch()
    create_data_sync_schedule()

    # List all schedules
    schedules = DBOS.list_schedules()

    # Retrieve specific schedule
    sched = DBOS.get_schedule("data-sync-schedule")

    # Pause execution (retains configuration)
    DBOS.pause_schedule("data-sync-schedule")

    assert sched is not None
    assert schedules == [sched]
    paused = DBOS.get_schedule("data-sync-schedule")
    assert paused == {**sched, "status": "PAUSED", "next_fire_at": None}

    # Resume a paused schedule
    DBOS.resume_schedule("data-sync-schedule")

    assert DBOS.get_schedule("data-sync-schedule") == sched

    # Trigger immediate execution
    DBOS.trigger_schedule("data-sync-schedule")

    eventually(lambda: len(synced) == 1)

    # Delete permanently
    DBOS.delete_schedule("data-sync-schedule")

    assert DBOS.get_schedule("data-sync-schedule") is None
    create_data_sync_schedule()

    # Backfill missed executions
    DBOS.backfill_schedule(
        schedule_name="data-sync-schedule",
        start_time=datetime(2026, 1, 1),
        end_time=datetime(2026, 1, 31),
    )

    eventually(lambda: len(synced) == 23)
    [triggered, *_] = synced
    backfilled = sorted(time.isoformat() for time, _ in synced if time < datetime(2026, 2, 1, tzinfo=UTC))
    assert (len(backfilled), backfilled[0], backfilled[-1]) == (
        22,
        "2026-01-01T09:00:00-05:00",
        "2026-01-30T09:00:00-05:00",
    )
    assert triggered[0] > datetime(2026, 2, 1, tzinfo=UTC)
    assert {env for _, env in synced} == {"production"}

    # Atomic update of multiple schedules
    DBOS.apply_schedules(
        [
            ScheduleInput(
                schedule_name="schedule-1",
                workflow_fn=DataWorkflows.method_a,
                schedule="0 * * * *",
                context={"id": 1},
                automatic_backfill=True,
                cron_timezone="America/Los_Angeles",
                queue_name="high-priority-queue",
            ),
        ]
    )

    applied = DBOS.get_schedule("schedule-1")
    assert applied is not None
    assert (applied["automatic_backfill"], applied["queue_name"]) == (True, "high-priority-queue")
    assert applied["cron_timezone"] == "America/Los_Angeles"
    handle = DBOS.trigger_schedule("schedule-1")
    assert handle.get_result() == {"id": 1}
    assert handle.get_status().queue_name == "high-priority-queue"
    assert DBOS.get_schedule("data-sync-schedule") is not None


def test_my_scheduled_class(capsys: pytest.CaptureFixture[str]) -> None:
    global MyScheduledClass

    @DBOS.dbos_class()
    class MyScheduledClass:
        @staticmethod
        @DBOS.workflow()
        def scheduled_wf(scheduled_at: datetime, ctx: Any) -> None:
            print(f"Executing at {scheduled_at} with context: {ctx}")

    DBOS.launch()

    # Create the schedule
    DBOS.create_schedule(
        schedule_name="static-class-schedule",
        workflow_fn=MyScheduledClass.scheduled_wf,
        schedule="* * * * * *",  # Every second
        context={"environment": "production"},
    )

    # Verify schedule creation
    sched = DBOS.get_schedule("static-class-schedule")
    assert sched["workflow_class_name"] == "MyScheduledClass"  # type: ignore[index]  # verbatim
    assert sched["context"] == {"environment": "production"}  # type: ignore[index]  # verbatim

    eventually(lambda: DBOS.list_workflows(status="SUCCESS"))
    run = DBOS.list_workflows(status="SUCCESS")[0]
    assert run.class_name == "MyScheduledClass"
    tick = str(run.workflow_id).removeprefix("sched-static-class-schedule-")
    expected = f"Executing at {datetime.fromisoformat(tick)} with context: {{'environment': 'production'}}\n"
    assert expected in capsys.readouterr().out


def test_payment_workflows_are_scheduled() -> None:
    global PaymentWorkflows

    @DBOS.dbos_class()
    class PaymentWorkflows:
        @staticmethod
        @DBOS.workflow()
        def process_payment(scheduled_at: datetime, ctx: Any) -> str:
            # Payment processing logic
            return "completed"

    DBOS.launch()

    DBOS.create_schedule(schedule_name="payments", workflow_fn=PaymentWorkflows.process_payment, schedule="0 0 1 1 *")

    sched = DBOS.get_schedule("payments")
    assert sched is not None
    assert sched["workflow_class_name"] == "PaymentWorkflows"
    assert DBOS.trigger_schedule("payments").get_result() == "completed"


def test_the_signature_of_a_scheduled_workflow() -> None:
    @DBOS.dbos_class()
    class Workflows:
        @staticmethod
        @DBOS.workflow()
        def scheduled_workflow(scheduled_time: datetime, context: Any) -> None:
            """Process scheduled task with provided context."""
            pass

    DBOS.launch()

    DBOS.create_schedule(schedule_name="task", workflow_fn=Workflows.scheduled_workflow, schedule="0 0 1 1 *")

    assert DBOS.trigger_schedule("task").get_result() is None


def test_invalid_scheduled() -> None:
    @DBOS.dbos_class()
    class InvalidScheduled(DBOSConfiguredInstance):
        def __init__(self):  # type: ignore[no-untyped-def]  # verbatim
            super().__init__("invalid-config")

        @DBOS.workflow()
        def instance_workflow(self, scheduled_at: datetime, ctx: Any) -> None:
            pass

    inst = InvalidScheduled()  # type: ignore[no-untyped-call]  # verbatim
    DBOS.launch()

    # This raises DBOSException
    with pytest.raises(DBOSException, match="Configured instance methods cannot be used"):
        DBOS.create_schedule(
            schedule_name="invalid-schedule",
            workflow_fn=inst.instance_workflow,
            schedule="* * * * *",
        )

    with pytest.raises(DBOSException, match="Configured instance methods cannot be used"):
        DBOS.apply_schedules(
            [ScheduleInput(schedule_name="invalid-schedule", workflow_fn=inst.instance_workflow, schedule="* * * * *")]
        )
    assert DBOS.list_schedules() == []


def test_both_approaches_to_scheduling_are_asynchronous_too() -> None:
    """The document says so in prose: sync and async, by decorator and by name."""
    declared, dynamic = threading.Event(), threading.Event()

    @DBOS.scheduled("* * * * * *")
    @DBOS.workflow()
    async def by_decorator(scheduled_time: datetime, actual_time: datetime) -> None:
        declared.set()

    @DBOS.workflow()
    async def by_name(scheduled_time: datetime, context: Any) -> None:
        dynamic.set()

    DBOS.launch()
    DBOS.create_schedule(schedule_name="by-name", workflow_fn=by_name, schedule="* * * * * *")

    assert declared.wait(PATIENCE_S)
    assert dynamic.wait(PATIENCE_S)
