"""What the alert handler is told, and that nothing depends on what it does."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, Queue
from dbos._error import DBOSDatabaseUnavailableError, DBOSException
from dbos._operations import lifecycle
from dbos._operations.lifecycle import Runtime
from dbos._process import process
from dbos._scheduler import Scheduler
from dbos._telemetry import ALERTS
from dbos.testing._postgres_server import Cluster
from tests.integration.crashes import Crash
from tests.integration.histories import change, engine, eventually

Alert = tuple[str, str, dict[str, str]]

MAKE_DUE = """
UPDATE dbos.workflow_schedules SET next_tick_ms = :tick, next_fire_ms = :tick WHERE schedule_name = :name
"""

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "alerts.md"


def runtime() -> Runtime:
    assert process.runtime is not None
    return process.runtime


@pytest.fixture
def told(dbos: type[DBOS]) -> list[Alert]:
    """What a handler was told, as it comes."""
    alerts: list[Alert] = []

    @dbos.alert_handler
    def handler(name: str, message: str, metadata: dict[str, str]) -> None:
        alerts.append((name, message, metadata))

    return alerts


def give_up(dbos: type[DBOS]) -> None:
    """Declare a workflow, launch, and have it given up."""

    @dbos.workflow(name="doomed", max_recovery_attempts=0)
    def doomed() -> None:
        raise Crash

    dbos.launch()
    with pytest.raises(Crash):
        doomed()
    dbos._recover_pending_workflows()
    eventually(lambda: [status.status for status in dbos.list_workflows()] == ["MAX_RECOVERY_ATTEMPTS_EXCEEDED"])


def test_the_handler_is_told_what_was_given_up(dbos: type[DBOS], told: list[Alert]) -> None:
    give_up(dbos)

    eventually(lambda: told)

    [(name, message, metadata)] = told
    [status] = dbos.list_workflows()
    assert name == "workflow_given_up"
    assert f"Workflow {status.workflow_id} was given up after" in message
    assert metadata["workflow_id"] == status.workflow_id
    assert metadata["workflow_name"] == "doomed"
    assert metadata["application_name"] == "test-app"
    assert all(isinstance(value, str) for value in metadata.values())


def test_the_handler_is_told_what_waits_for_nobody(dbos: type[DBOS], told: list[Alert]) -> None:
    queue = Queue("unserved")
    dbos.listen_queues([])

    @dbos.workflow()
    def workflow() -> None: ...

    dbos.launch()
    queue.enqueue(workflow)
    handle = queue.enqueue(workflow)
    change(
        "UPDATE dbos.workflow_status SET application_version = 'old' WHERE workflow_uuid = :id", id=handle.workflow_id
    )

    runtime().recovery.report_stranded()

    eventually(lambda: {name for name, _, _ in told} == {"queue_stranded", "version_stranded"})
    about = {name: metadata for name, _, metadata in told}
    assert about["queue_stranded"]["queue_name"] == "unserved"
    assert (about["version_stranded"]["stranded_version"], about["version_stranded"]["workflows"]) == ("old", "1")


def test_the_handler_is_told_what_becomes_of_schedules(dbos: type[DBOS], told: list[Alert]) -> None:
    @dbos.workflow(name="work")
    def work(scheduled_time: datetime, context: Any) -> None:
        raise ValueError("no")

    dbos.launch()
    runtime()._scheduler.stop()  # the rounds are the test's
    scheduler = Scheduler(engine())
    for name in ("failing", "broken"):
        DBOS.create_schedule(schedule_name=name, workflow_fn=work, schedule="* * * * *", pause_on_failure=1)

    def fire(name: str, minutes_ago: int) -> None:
        tick_ms = (engine().db.now_ms() // 60_000 - minutes_ago) * 60_000
        change(MAKE_DUE, tick=tick_ms, name=name)
        scheduler._look()
        scheduler.fire_once()

    fire("failing", 600)
    eventually(lambda: [each.status for each in dbos.list_workflows(schedule_name="failing")] == ["ERROR"])
    fire("failing", 0)
    change("UPDATE dbos.workflow_schedules SET pause_on_failure = -1 WHERE schedule_name = 'broken'")
    fire("broken", 0)
    fire("broken", 0)  # for the same reason, which is not told again

    eventually(lambda: len(told) == 3)
    assert [(name, metadata["schedule_name"]) for name, _, metadata in told] == [
        ("schedule_ticks_missed", "failing"),
        ("schedule_paused", "failing"),
        ("schedule_broken", "broken"),
    ]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1)], ids=["error", "exit"])
def test_a_handler_that_raises_is_logged_and_called_again(
    dbos: type[DBOS], caplog: pytest.LogCaptureFixture, error: BaseException, is_async: bool
) -> None:
    calls: list[str] = []

    def handler(name: str, message: str, metadata: dict[str, str]) -> None:
        calls.append(message)
        raise error

    async def handler_async(name: str, message: str, metadata: dict[str, str]) -> None:
        handler(name, message, metadata)

    dbos.alert_handler(handler_async if is_async else handler)

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    logging.getLogger("dbos").addHandler(caplog.handler)
    try:
        for number in ("first", "second"):
            engine().alert("queue_stranded", number, {"queue_name": "mail"})
        eventually(lambda: caplog.text.count("The alert handler failed upon queue_stranded") == 2)
    finally:
        logging.getLogger("dbos").removeHandler(caplog.handler)

    assert calls == ["first", "second"]
    assert workflow() == "done"


def test_a_handler_that_does_not_return_holds_up_nothing(dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "ALERT_PATIENCE_S", 0.1)
    begun, release = threading.Event(), threading.Event()

    @dbos.alert_handler
    def handler(name: str, message: str, metadata: dict[str, str]) -> None:
        begun.set()
        release.wait()

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    for _ in range(3000):
        engine().alert("queue_stranded", "again and again", {})
    assert begun.wait(20)

    result = workflow()
    dbos.destroy()
    release.set()

    assert result == "done"


def test_what_was_alerted_last_is_told_before_destroy_returns(dbos: type[DBOS], told: list[Alert]) -> None:
    dbos.launch()

    for number in range(100):
        engine().alert("queue_stranded", str(number), {})
    dbos.destroy()

    assert [message for _, message, _ in told] == [str(number) for number in range(100)]


def test_a_database_that_is_away_is_told_once_and_again_when_it_goes_again(dbos: type[DBOS], told: list[Alert]) -> None:
    dbos.launch()
    alerts = runtime().alerts
    guard = engine().lease_guard

    for lease_guard in (0.0, 0.0, guard, 0.0):
        engine().lease_guard = lease_guard
        alerts.work_once()

    eventually(lambda: len(told) >= 2)
    assert {name for name, _, _ in told} == {"database_unreachable"}
    assert "begins no step" in told[0][1]


@pytest.mark.postgres
def test_a_server_that_is_stopped_is_told(private_postgres: Cluster) -> None:
    told = threading.Event()
    DBOS.destroy(destroy_registry=True)
    DBOS(config={"name": "test-app", "system_database_url": private_postgres.url("postgres"), "lease_s": 1.5})
    DBOS.alert_handler(lambda name, message, metadata: told.set() if name == "database_unreachable" else None)
    DBOS.launch()

    private_postgres.stop("immediate")
    is_told = told.wait(60)
    private_postgres.start()
    DBOS.destroy(destroy_registry=True)

    assert is_told


def test_a_database_that_is_lost_is_told(dbos: type[DBOS], told: list[Alert]) -> None:
    dbos.launch()

    engine().fail(DBOSDatabaseUnavailableError("The file is gone."))

    eventually(lambda: told)
    assert told[0][0] == "database_lost"
    assert "The file is gone." in told[0][1]


def test_an_alert_handler_is_refused_too_early_too_late_and_twice(config: DBOSConfig) -> None:
    def handler(name: str, message: str, metadata: dict[str, str]) -> None: ...

    DBOS.destroy(destroy_registry=True)
    try:
        with pytest.raises(DBOSException, match="No DBOS was created yet"):
            DBOS.alert_handler(handler)
        DBOS(config=config)
        with pytest.raises(DBOSException, match="is no alert handler"):
            DBOS.alert_handler("handler")  # type: ignore[type-var]  # that is the point
        assert DBOS.alert_handler(handler) is handler
        with pytest.raises(DBOSException, match="An alert_handler is already defined"):
            DBOS.alert_handler(handler)
        DBOS.launch()
        with pytest.raises(DBOSException, match="alert_handler must be defined before DBOS is launched"):
            DBOS.alert_handler(handler)
    finally:
        DBOS.destroy(destroy_registry=True)


class BrokenHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("the log is full")


class BrokenFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("the log is full")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("part", [BrokenHandler, BrokenFilter])
async def test_a_log_that_raises_costs_no_workflow_anything(
    dbos: type[DBOS], capsys: pytest.CaptureFixture[str], part: type[Any], is_async: bool
) -> None:
    calls: list[int] = []

    @dbos.step(retries_allowed=True, interval_seconds=0.0)
    def step() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("which is logged")
        return 7

    @dbos.workflow()
    def workflow() -> int:
        DBOS.logger.error("of the user's own")
        return step()

    @dbos.workflow()
    async def workflow_async() -> int:
        DBOS.logger.error("of the user's own")
        return step()

    dbos.launch()
    broken = part()
    logger = logging.getLogger("dbos")
    add: Callable[[Any], None] = logger.addHandler if part is BrokenHandler else logger.addFilter
    remove: Callable[[Any], None] = logger.removeHandler if part is BrokenHandler else logger.removeFilter
    add(broken)
    try:
        result = await workflow_async() if is_async else await asyncio.to_thread(workflow)
    finally:
        remove(broken)

    assert result == 7
    assert [status.status for status in await dbos.list_workflows_async()] == ["SUCCESS"]
    assert "the log is full" in capsys.readouterr().err


def test_the_documentation_lists_every_alert() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)

    assert listed == sorted(ALERTS)
