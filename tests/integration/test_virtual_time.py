"""Virtual time: on the real engine, what is waited for is there at once, and is recorded as if it had taken long."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dbos import (
    DBOS,
    DBOSClient,
    DBOSConfig,
    EnqueueOptions,
    Queue,
    SetEnqueueOptions,
    SetWorkflowID,
    SetWorkflowTimeout,
)
from dbos._error import DBOSAwaitedWorkflowCancelledError, DBOSMaxStepRetriesExceeded, DBOSStreamTimeoutError
from dbos.testing import VirtualTime, virtual_time
from tests.integration.histories import engine, row, steps

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def clock(dbos_virtual_time: VirtualTime) -> VirtualTime:
    return dbos_virtual_time


def at(milliseconds: int | None) -> timedelta:
    """How long after the start."""
    assert milliseconds is not None
    return datetime.fromtimestamp(milliseconds / 1000, UTC) - START


# -- waits -------------------------------------------------------------------------------------------------------------


def test_an_hours_sleep_is_recorded_and_takes_no_time(clock: VirtualTime, dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> datetime:
        dbos.sleep(3600)
        return clock.now()

    dbos.launch()

    with SetWorkflowID("direct"):
        woke_at = workflow()
    dbos.start_workflow(workflow).get_result()

    assert woke_at == START + HOUR
    assert clock.now() == START + 2 * HOUR
    assert json.loads(steps("direct")[0].output or "") == (START + HOUR).timestamp()
    assert (at(row("direct").created_at), at(row("direct").completed_at)) == (timedelta(0), HOUR)


async def test_coroutines_that_sleep_wake_up_in_the_order_of_time(clock: VirtualTime, dbos: type[DBOS]) -> None:
    woken: list[tuple[int, datetime]] = []

    @dbos.workflow()
    async def sleeper(hours: int) -> None:
        await dbos.sleep_async(3600 * hours)
        woken.append((hours, clock.now()))

    @dbos.workflow()
    async def workflow() -> None:
        await asyncio.gather(sleeper(3), sleeper(1), dbos.sleep_async(7200))
        woken.append((0, clock.now()))

    dbos.launch()

    handle = await dbos.start_workflow_async(sleeper, 48)
    await workflow()
    await handle.get_result()

    assert woken == [(1, START + HOUR), (3, START + 3 * HOUR), (0, START + 3 * HOUR), (48, START + 2 * DAY)]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_workflow_is_cancelled_when_its_day_is_over(clock: VirtualTime, dbos: type[DBOS], is_async: bool) -> None:
    @dbos.workflow()
    def blocking() -> None:
        dbos.sleep(7 * 86400)

    @dbos.workflow()
    async def awaiting() -> None:
        await dbos.sleep_async(7 * 86400)

    dbos.launch()

    with SetWorkflowTimeout(86400):
        handle = dbos.start_workflow(awaiting if is_async else blocking)
    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        handle.get_result()

    assert clock.now() - START == DAY
    assert handle.get_status().status == "CANCELLED"


def test_pauses_between_attempts_grow_in_virtual_time(clock: VirtualTime, dbos: type[DBOS]) -> None:
    attempts: list[timedelta] = []

    @dbos.step(retries_allowed=True, interval_seconds=60, backoff_rate=3, max_attempts=4)
    def failing() -> None:
        attempts.append(clock.now() - START)
        raise ValueError("not yet")

    @dbos.workflow()
    def workflow() -> None:
        failing()

    dbos.launch()

    with pytest.raises(DBOSMaxStepRetriesExceeded):
        workflow()

    assert attempts == [timedelta(minutes=minutes) for minutes in (0, 1, 4, 13)]


@pytest.mark.dbos_databases("sqlite")
async def test_attempts_of_a_coroutine_are_spaced_in_virtual_time(clock: VirtualTime, dbos: type[DBOS]) -> None:
    attempts: list[timedelta] = []

    @dbos.step(retries_allowed=True, interval_seconds=3600, max_attempts=3)
    async def failing_once() -> str:
        attempts.append(clock.now() - START)
        if len(attempts) == 1:
            raise ValueError("not yet")
        return "done"

    @dbos.workflow()
    async def workflow() -> str:
        return await failing_once()

    dbos.launch()

    assert await workflow() == "done"
    assert attempts == [timedelta(0), HOUR]


@pytest.mark.dbos_databases("sqlite")
async def test_a_wait_for_the_first_of_several_times_out_in_virtual_time(clock: VirtualTime, dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def sleeper(seconds: float) -> float:
        await dbos.sleep_async(seconds)
        return seconds

    @dbos.workflow()
    async def workflow() -> tuple[int, int]:
        handles = [await dbos.start_workflow_async(sleeper, seconds) for seconds in (60, 7200)]
        results = [asyncio.ensure_future(handle.get_result()) for handle in handles]
        done, pending = await dbos.asyncio_wait(results, timeout=3600)
        await asyncio.gather(*pending)
        return len(done), len(pending)

    dbos.launch()

    assert await workflow() == (1, 1)
    assert clock.now() - START == 2 * HOUR


def test_whoever_waits_for_what_never_comes_is_told_in_virtual_time(clock: VirtualTime, dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def writer() -> None:
        dbos.sleep(86400)
        dbos.write_stream("values", 1)

    @dbos.workflow()
    def workflow() -> list[Any]:
        with SetWorkflowID("writer"):
            dbos.start_workflow(writer)
        found: list[Any] = [dbos.recv("nothing", timeout_seconds=60)]
        found.append(dbos.get_event("writer", "nothing", timeout_seconds=3600))
        with pytest.raises(DBOSStreamTimeoutError):
            next(dbos.read_stream("writer", "values", timeout_seconds=3600))
        return [*found, next(dbos.read_stream("writer", "values"))]

    dbos.launch()

    assert workflow() == [None, None, 1]
    assert clock.now() - START == DAY
    assert dbos.get_event("writer", "nothing", timeout_seconds=60) is None
    assert timedelta(seconds=59) < clock.now() - START - DAY <= timedelta(seconds=60)


async def test_a_message_ends_a_wait_when_it_comes(clock: VirtualTime, dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> tuple[str, timedelta]:
        message = await dbos.recv_async("topic", timeout_seconds=86400)
        await dbos.set_event_async("told", message)
        return message, clock.now() - START

    @dbos.workflow()
    async def sender() -> Any:
        await dbos.sleep_async(3600)
        await dbos.send_async("receiver", "hello", "topic")
        return await dbos.get_event_async("receiver", "told", timeout_seconds=86400)

    dbos.launch()

    with SetWorkflowID("receiver"):
        handle = await dbos.start_workflow_async(workflow)

    assert await sender() == "hello"
    assert await handle.get_result() == ("hello", HOUR)


# -- queues and schedules ----------------------------------------------------------------------------------------------


def test_what_is_delayed_begins_when_its_delay_is_over(clock: VirtualTime, dbos: type[DBOS]) -> None:
    queue = Queue("q")

    @dbos.workflow()
    def workflow() -> timedelta:
        return clock.now() - START

    dbos.launch()

    with SetEnqueueOptions(delay_seconds=5 * 86400):
        late = queue.enqueue(workflow)
    at_once = queue.enqueue(workflow)

    assert timedelta(0) <= late.get_result() - 5 * DAY + timedelta(seconds=1) < timedelta(seconds=2)
    assert at_once.get_result() < timedelta(seconds=1)


def test_a_rate_limit_lets_so_many_begin_in_each_virtual_period(clock: VirtualTime, dbos: type[DBOS]) -> None:
    queue = Queue("q", limiter={"limit": 2, "period": 3600})
    begun: list[timedelta] = []

    @dbos.workflow()
    def workflow() -> None:
        begun.append(clock.now() - START)

    dbos.launch()

    for handle in [queue.enqueue(workflow) for _ in range(6)]:
        handle.get_result()

    assert [each // HOUR for each in sorted(begun)] == [0, 0, 1, 1, 2, 2]


def test_a_schedule_fires_a_hundred_times_in_four_virtual_days(clock: VirtualTime, dbos: type[DBOS]) -> None:
    ticks: list[datetime] = []

    @dbos.workflow()
    def hourly(scheduled_at: datetime, context: Any) -> None:
        ticks.append(scheduled_at)

    dbos.launch()
    dbos.create_schedule(schedule_name="hourly", workflow_fn=hourly, schedule="0 * * * *")

    clock.advance(100 * HOUR)

    assert ticks == [START + number * HOUR for number in range(1, 101)]
    assert clock.now() == START + 100 * HOUR


@pytest.mark.dbos_databases("sqlite")
def test_what_is_scheduled_in_the_code_fires_too(clock: VirtualTime, dbos: type[DBOS]) -> None:
    ticks: list[datetime] = []

    @dbos.scheduled("0 0 * * *")
    @dbos.workflow()
    def daily(scheduled_at: datetime, actual: datetime) -> None:
        ticks.append(scheduled_at)

    dbos.launch()

    clock.advance(7 * DAY)

    assert ticks == [START + number * DAY for number in range(1, 8)]


# -- what holds the clock ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_step_that_works_holds_the_clock(clock: VirtualTime, dbos: type[DBOS], is_async: bool) -> None:
    seen: list[timedelta] = []

    @dbos.step()
    def work() -> None:
        time.sleep(0.05)
        seen.append(clock.now() - START)

    @dbos.step()
    async def work_async() -> None:
        await asyncio.sleep(0.05)
        seen.append(clock.now() - START)

    @dbos.workflow()
    def sleeper() -> None:
        dbos.sleep(3600)

    @dbos.workflow()
    def workflow() -> None:
        work()

    @dbos.workflow()
    async def workflow_async() -> None:
        await asyncio.gather(dbos.sleep_async(86400), work_async())

    dbos.launch()

    handles = [dbos.start_workflow(workflow_async if is_async else workflow), dbos.start_workflow(sleeper)]
    for handle in handles:
        handle.get_result()

    assert seen == [timedelta(0)]
    assert clock.now() - START == (DAY if is_async else HOUR)


@pytest.mark.dbos_databases("sqlite")
def test_threads_of_a_workflow_that_work_hold_the_clock_while_another_sleeps(
    clock: VirtualTime, dbos: type[DBOS]
) -> None:
    seen: list[timedelta] = []

    @dbos.step()
    def work() -> None:
        time.sleep(0.01)
        seen.append(clock.now() - START)

    @dbos.workflow()
    def workflow() -> None:
        def work_often() -> None:
            for _ in range(5):
                work()
            dbos.sleep(7200)

        thread = threading.Thread(target=copy_context().run, args=(work_often,))
        thread.start()
        dbos.sleep(3600)
        thread.join()

    dbos.launch()

    dbos.start_workflow(workflow).get_result()

    assert seen == [timedelta(0)] * 5
    assert clock.now() - START == 2 * HOUR


def test_what_a_step_waits_for_may_come_from_a_workflow_that_is_not_begun_yet(
    clock: VirtualTime, dbos: type[DBOS]
) -> None:
    queue = Queue("q")
    begun, gate = threading.Event(), threading.Event()

    @dbos.step()
    def wait() -> bool:
        begun.set()
        return gate.wait(20)

    @dbos.workflow()
    def first() -> bool:
        return wait()

    @dbos.workflow()
    def second() -> None:
        gate.set()

    dbos.launch()

    handles: list[Any] = [queue.enqueue(first)]
    assert begun.wait(20)
    handles.append(queue.enqueue(second))

    assert [handle.get_result() for handle in handles] == [True, None]
    assert clock.now() - START < timedelta(seconds=1)


@pytest.mark.dbos_databases("sqlite")
def test_the_test_itself_holds_the_clock(clock: VirtualTime, dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(3600)

    dbos.launch()

    handle = dbos.start_workflow(workflow)
    time.sleep(0.05)

    assert handle.get_status().status == "PENDING"
    assert clock.now() == START
    handle.get_result()
    assert clock.now() == START + HOUR


def test_a_lease_outlives_every_jump(clock: VirtualTime, dbos: type[DBOS], caplog: pytest.LogCaptureFixture) -> None:
    alerts: list[str] = []

    @dbos.alert_handler
    def note(name: str, message: str, metadata: dict[str, str]) -> None:
        alerts.append(name)

    @dbos.step()
    def work() -> str:
        return engine().instance_id

    @dbos.workflow()
    def workflow() -> set[str]:
        seen = set()
        for _ in range(5):
            dbos.sleep(86400)
            seen.add(work())
        return seen

    dbos.launch()

    assert len(workflow()) == 1
    assert "declared dead" not in caplog.text
    assert alerts == []


# -- moving it by hand -------------------------------------------------------------------------------------------------


@pytest.mark.dbos_databases("sqlite")
def test_time_that_is_advanced_brings_all_that_falls_due_on_the_way(clock: VirtualTime, dbos: type[DBOS]) -> None:
    log: list[tuple[str, timedelta]] = []

    @dbos.workflow()
    def workflow(name: str, *hours: int) -> None:
        for each in hours:
            dbos.sleep(3600 * each)
            log.append((name, clock.now() - START))

    dbos.launch()
    dbos.start_workflow(workflow, "a", 1, 3)
    last = dbos.start_workflow(workflow, "b", 2, 24)

    clock.advance(4 * HOUR)

    assert log == [("a", HOUR), ("b", 2 * HOUR), ("a", 4 * HOUR)]
    assert last.get_status().status == "PENDING"


@pytest.mark.dbos_databases("sqlite")
async def test_time_is_advanced_on_a_loop_by_awaiting(clock: VirtualTime, dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> None:
        await dbos.sleep_async(60)

    dbos.launch()
    handle = await dbos.start_workflow_async(workflow)

    with pytest.raises(RuntimeError, match="await advance_async"):
        clock.advance(60)
    await clock.advance_async(60)

    assert (await handle.get_status()).status == "SUCCESS"
    assert clock.now() == START + timedelta(minutes=1)


def test_without_jumps_only_advancing_moves_the_clock(dbos_config: DBOSConfig) -> None:
    start = datetime(2030, 5, 17, 12, tzinfo=UTC)
    is_there = threading.Event()
    with virtual_time(start, autojump=False) as clock:
        DBOS(config=dbos_config)
        queue = Queue("q")

        @DBOS.workflow()
        def workflow() -> None:
            is_there.set()
            DBOS.sleep(3600)

        DBOS.launch()
        handles = [queue.enqueue(workflow) for _ in range(2)]
        waiting = threading.Thread(target=handles[0].get_result)
        waiting.start()
        began = is_there.wait(30)
        clock.advance(1800)
        halfway = handles[0].get_status().status
        clock.advance(1800 + 1)
        waiting.join(30)
        DBOS.destroy()

    assert began
    assert halfway == "PENDING"
    assert not waiting.is_alive()
    assert timedelta(seconds=3601) <= clock.now() - start < timedelta(seconds=3602)


@pytest.mark.parametrize("seconds", [-1, timedelta(days=-1), float("inf"), float("nan")])
def test_time_advances_by_a_number_of_seconds(seconds: Any) -> None:
    with virtual_time() as clock, pytest.raises(ValueError, match="advanced by"):
        clock.advance(seconds)


def test_a_time_to_start_at_needs_a_zone() -> None:
    with pytest.raises(ValueError, match="time zone"), virtual_time(datetime(2026, 1, 1)):
        pass


# -- clients and endings -----------------------------------------------------------------------------------------------


def test_a_client_waits_in_virtual_time(clock: VirtualTime, dbos: type[DBOS], dbos_database_url: str) -> None:
    Queue("q")

    @dbos.workflow()
    def workflow() -> str:
        dbos.sleep(86400)
        return "done"

    dbos.launch()
    with DBOSClient(system_database_url=dbos_database_url) as client:
        options: EnqueueOptions = {"workflow_name": workflow.__qualname__, "queue_name": "q", "delay_seconds": 86400}
        result = client.enqueue(options).get_result()

    assert result == "done"
    assert timedelta(0) <= clock.now() - START - 2 * DAY < timedelta(minutes=1)


def test_destroying_lets_workflows_end_within_virtual_time(clock: VirtualTime, dbos: type[DBOS]) -> None:
    ended: list[datetime] = []

    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(3600)
        ended.append(clock.now())

    dbos.launch()
    dbos.start_workflow(workflow)

    dbos.destroy(workflow_completion_timeout_sec=7200)

    assert ended == [START + HOUR]


@pytest.mark.dbos_databases("sqlite")
def test_what_waits_is_given_up_when_dbos_is_destroyed(clock: VirtualTime, dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(3600)

    @dbos.workflow()
    async def workflow_async() -> None:
        await dbos.sleep_async(3600)

    dbos.launch()
    handles = [dbos.start_workflow(each) for each in (workflow, workflow_async)]

    dbos.destroy()

    assert len(handles) == 2
    assert clock.now() == START
