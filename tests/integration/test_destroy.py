"""Shutting down: whatever runs or waits comes to an end, and nothing is left behind."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from dbos import DBOS, DBOSConfig, SetWorkflowID, SetWorkflowTimeout, _threads
from dbos._engine import loops
from dbos._error import DBOSDatabaseUnavailableError, DBOSException
from dbos._operations import lifecycle
from dbos._sysdb.committer import Committer
from dbos._sysdb.dialects.postgres import listener
from tests.conformance.proxy import Proxy
from tests.integration.histories import PATIENCE_S, engine, eventually, recorded, row


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("dbos")}


@pytest.mark.parametrize("is_async", [False, True])
def test_a_workflow_that_waits_is_stopped_and_recovered_by_the_next_launch(
    dbos: type[DBOS], config: DBOSConfig, is_async: bool
) -> None:
    has_begun = threading.Event()

    @dbos.workflow()
    def workflow() -> str:
        has_begun.set()
        if not is_relaunched:
            dbos.sleep(3600)
        return "done"

    @dbos.workflow()
    async def workflow_async() -> str:
        has_begun.set()
        if not is_relaunched:
            await dbos.sleep_async(3600)
        return "done"

    is_relaunched = False
    dbos.launch()
    with SetWorkflowID("wf"):
        dbos.start_workflow(workflow_async if is_async else workflow)
    assert has_begun.wait(PATIENCE_S)

    dbos.destroy()

    assert threads() == set()
    is_relaunched = True
    DBOS(config=config)
    dbos.launch()
    engine().db.change(lambda connection: connection.run("DELETE FROM dbos.operation_outputs"))
    assert dbos.get_result("wf") == "done"


def test_a_running_step_is_recorded_before_the_database_is_closed(dbos: type[DBOS], config: DBOSConfig) -> None:
    has_begun, calls = threading.Event(), []

    @dbos.step()
    def step() -> int:
        calls.append(1)
        has_begun.set()
        eventually(lambda: all(run.is_interrupted for run in runs.all()))
        return 42

    @dbos.workflow()
    def workflow() -> int:
        return step()

    dbos.launch()
    runs = engine().runs
    with SetWorkflowID("wf"):
        dbos.start_workflow(workflow)
    assert has_begun.wait(PATIENCE_S)

    dbos.destroy()

    DBOS(config=config)
    dbos.launch()
    assert dbos.get_result("wf") == 42
    assert len(calls) == 1


def test_who_waits_for_a_result_is_told(dbos: type[DBOS]) -> None:
    errors: list[BaseException] = []

    def wait(call: Any) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    @dbos.workflow()
    def workflow() -> None:
        has_begun.set()
        dbos.sleep(3600)

    has_begun = threading.Event()
    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)
    assert has_begun.wait(PATIENCE_S)
    calls = [handle.get_result, dbos.retrieve_workflow("wf").get_result, lambda: dbos.get_result("never"), workflow]
    waiting = [threading.Thread(target=wait, args=(call,)) for call in calls]
    for thread in waiting:
        thread.start()
    eventually(lambda: len(engine().runs.all()) == 2)

    dbos.destroy()

    for thread in waiting:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert [type(error) for error in errors] == [DBOSDatabaseUnavailableError] * 4


async def test_coroutines_that_wait_are_told(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> None:
        await dbos.sleep_async(3600)

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = await dbos.start_workflow_async(workflow)
    waiting = [asyncio.ensure_future(each) for each in (handle.get_result(), dbos.get_result_async("never"))]
    await asyncio.sleep(0.05)

    await asyncio.to_thread(dbos.destroy)

    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), PATIENCE_S)
    assert [type(result) for result in results] == [DBOSDatabaseUnavailableError] * 2


async def test_destroying_on_the_loop_that_runs_the_workflows(dbos: type[DBOS], config: DBOSConfig) -> None:
    @dbos.workflow()
    async def workflow(number: int) -> None:
        await (dbos.sleep_async(3600) if number else asyncio.sleep(3600))

    dbos.launch()
    for number in range(2):
        with SetWorkflowID(f"wf{number}"):
            await dbos.start_workflow_async(workflow, number)
    await asyncio.sleep(0.05)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}

    dbos.destroy()

    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
    assert threads() == set()
    DBOS(config=config)
    dbos.launch()
    assert {(await dbos.get_workflow_status_async(each)).status for each in ("wf0", "wf1")} <= {"PENDING", "ENQUEUED"}  # type: ignore[union-attr]


def test_destroy_can_wait_for_what_is_running(dbos: type[DBOS], config: DBOSConfig) -> None:
    has_begun = threading.Event()

    @dbos.step()
    def step() -> None: ...

    @dbos.workflow()
    def workflow() -> str:
        has_begun.set()
        for _ in range(50):
            step()
        return "done"

    dbos.launch()
    with SetWorkflowID("wf"):
        dbos.start_workflow(workflow)
    assert has_begun.wait(PATIENCE_S)

    dbos.destroy(workflow_completion_timeout_sec=PATIENCE_S)

    DBOS(config=config)
    dbos.launch()
    assert row("wf").status == "SUCCESS"


def test_launching_and_destroying_again_and_again_leaves_no_thread(dbos: type[DBOS], config: DBOSConfig) -> None:
    @dbos.step()
    async def step() -> int:
        return 1

    @dbos.workflow()
    async def workflow() -> int:
        return await step()

    dbos.destroy()
    before = threading.active_count()
    for _ in range(30):
        DBOS(config=config)
        dbos.launch()
        assert dbos.start_workflow(workflow).get_result() == 1
        dbos.destroy()

    assert threads() == set()
    assert threading.active_count() <= before


async def test_launching_and_destroying_within_a_running_loop_leaves_no_thread(
    dbos: type[DBOS], config: DBOSConfig
) -> None:
    @dbos.step()
    async def step() -> int:
        return 1

    @dbos.workflow()
    async def workflow() -> int:
        return await step()

    dbos.destroy()
    for _ in range(30):
        DBOS(config=config)
        dbos.launch()
        assert await workflow() == 1
        assert await (await dbos.start_workflow_async(workflow)).get_result() == 1
        dbos.destroy()

    assert threads() == set()


def test_what_is_called_after_destroy_says_so(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None: ...

    dbos.launch()
    handle = dbos.start_workflow(workflow)
    handle.get_result()
    dbos.destroy()
    dbos.destroy()

    with pytest.raises(DBOSException, match="invoked before DBOS initialized"):
        workflow()
    with pytest.raises(DBOSException, match="No DBOS was created yet"):
        dbos.list_workflows()
    with pytest.raises(DBOSDatabaseUnavailableError, match="destroyed"):
        handle.get_status()


def test_destroying_under_load_closes_the_database_last(
    dbos: type[DBOS], config: DBOSConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Threads that read, write and start meanwhile are told, and nobody finds a connection closed under them."""
    refused: list[BaseException] = []
    counted: dict[str, int] = {}

    @dbos.step()
    def step(value: int) -> int:
        return value

    @dbos.transaction()
    def transaction() -> int:
        found: int = dbos.sql_session.execute(sa.text("SELECT 1")).scalar_one()
        return found

    @dbos.workflow()
    def workflow() -> int:
        return sum(step(number) for number in range(5)) + transaction()

    @dbos.step()
    async def step_async(value: int) -> int:
        return value

    @dbos.workflow()
    async def workflow_async() -> int:
        return sum(await asyncio.gather(*(step_async(number) for number in range(5))))

    work: dict[str, Callable[[], Any]] = {
        "call": workflow,
        "start": lambda: dbos.start_workflow(workflow).get_result(),
        "start async": lambda: dbos.start_workflow(workflow_async).get_result(),
        "list": lambda: dbos.list_workflows(limit=5),
        "call from a loop": lambda: asyncio.run(workflow_async()),
    }

    def repeat(name: str) -> None:
        try:
            while True:
                work[name]()
                counted[name] = counted.get(name, 0) + 1
        except BaseException as error:
            refused.append(error)

    dbos.launch()
    users = [threading.Thread(target=repeat, args=(name,)) for name in [*work] * 3]
    for user in users:
        user.start()
    eventually(lambda: len(counted) == len(work))

    with caplog.at_level(logging.INFO, logger="dbos"):
        dbos.destroy()

    for user in users:
        user.join(PATIENCE_S)
        assert not user.is_alive()
    eventually(lambda: threads() == set())
    assert {type(error) for error in refused} <= {DBOSDatabaseUnavailableError, DBOSException}
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []
    DBOS(config=config)
    dbos.launch()
    eventually(lambda: not dbos.list_workflows(status=["PENDING", "ENQUEUED"]))
    assert {status.output for status in dbos.list_workflows(status="SUCCESS")} == {10, 11}
    assert dbos.list_workflows(status="ERROR") == []


@pytest.mark.parametrize("from_loop", [False, True], ids=["from a thread", "from the loop"])
async def test_destroying_while_timeouts_are_running(dbos: type[DBOS], config: DBOSConfig, from_loop: bool) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(3600)

    @dbos.workflow()
    async def workflow_async() -> None:
        await dbos.sleep_async(3600)

    dbos.launch()
    for number in range(10):
        # Some end in the very moment in which everything is taken down.
        with SetWorkflowID(f"wf{number}"), SetWorkflowTimeout(600 if number % 2 else 0.05):
            await dbos.start_workflow_async(workflow if number % 4 < 2 else workflow_async)
    deadlines = [row(f"wf{number}").workflow_deadline_epoch_ms for number in range(10)]
    waiting = asyncio.ensure_future(dbos.get_result_async("wf1"))
    await asyncio.sleep(0.04)

    if from_loop:
        dbos.destroy()
    else:
        await asyncio.wait_for(asyncio.to_thread(dbos.destroy), PATIENCE_S)

    with pytest.raises(DBOSDatabaseUnavailableError):
        await asyncio.wait_for(waiting, PATIENCE_S)
    await asyncio.to_thread(eventually, lambda: threads() == set())
    DBOS(config=config)
    dbos.launch()
    assert [row(f"wf{number}").workflow_deadline_epoch_ms for number in range(10)] == deadlines
    await asyncio.to_thread(eventually, lambda: all(row(f"wf{each}").status == "CANCELLED" for each in range(0, 10, 2)))
    assert {row(f"wf{number}").status for number in range(1, 10, 2)} <= {"PENDING", "ENQUEUED"}


@pytest.mark.parametrize("blocks_loop", [False, True], ids=["a thread", "our loop"])
def test_a_workflow_that_blocks_does_not_hold_up_destroy(
    dbos: type[DBOS], config: DBOSConfig, monkeypatch: pytest.MonkeyPatch, blocks_loop: bool
) -> None:
    monkeypatch.setattr(lifecycle, "SHUTDOWN_GRACE_S", 0.05)
    monkeypatch.setattr(loops, "STUCK_LOOP_S", 0.05)
    has_begun, may_end, calls = threading.Event(), threading.Event(), []

    def block() -> None:
        calls.append(1)
        has_begun.set()
        assert may_end.wait(PATIENCE_S)

    @dbos.step()
    def step() -> int:
        return len(calls)

    @dbos.workflow()
    def workflow() -> int:
        block()
        return step()

    @dbos.workflow()
    async def workflow_async() -> int:
        block()
        return await dbos.run_step_async(None, step)

    dbos.launch()
    with SetWorkflowID("wf"):
        dbos.start_workflow(workflow_async if blocks_loop else workflow)
    assert has_begun.wait(PATIENCE_S)

    ending = threading.Thread(target=dbos.destroy)
    ending.start()
    ending.join(PATIENCE_S / 2)

    assert not ending.is_alive()
    assert not may_end.is_set()
    may_end.set()
    eventually(lambda: threads() == set())
    DBOS(config=config)
    dbos.launch()
    assert dbos.get_result("wf") == 2


@pytest.mark.dbos_databases("postgres")
@pytest.mark.parametrize("frozen", [b"LISTEN", b""], ids=["the listener", "everything"])
def test_a_server_that_does_not_answer_does_not_hold_up_destroy(
    dbos: type[DBOS], config: DBOSConfig, monkeypatch: pytest.MonkeyPatch, frozen: bytes
) -> None:
    url = config["system_database_url"]
    assert url is not None
    if not urlsplit(url).query:
        pytest.skip("the proxy speaks to a socket in the file system")
    monkeypatch.setattr(lifecycle, "DATABASE_PATIENCE_S", 0.2)
    monkeypatch.setattr(lifecycle, "LEAVING_PATIENCE_S", 0.5)
    monkeypatch.setattr(listener, "STOP_PATIENCE_S", 0.2)
    monkeypatch.setattr(_threads, "JOIN_S", 0.2)
    monkeypatch.setattr(Committer.close, "__defaults__", (0.2,))

    @dbos.workflow()
    def workflow() -> str:
        if not is_relaunched:
            dbos.sleep(3600)
        return "done"

    is_relaunched = False
    dbos.destroy()
    with Proxy.before(url) as proxy:
        DBOS(config={**config, "system_database_url": proxy.url, "lease_s": 1})
        proxy.freezes_what_sends(frozen)
        dbos.launch()
        with SetWorkflowID("wf"):
            dbos.start_workflow(workflow)
        eventually(lambda: len(recorded("wf")) == 1)
        proxy.freeze()
        engine().db.publish("nobody hears of it")

        ending = threading.Thread(target=dbos.destroy)
        ending.start()
        ending.join(PATIENCE_S)

        assert not ending.is_alive()
    eventually(lambda: threads() == set())
    is_relaunched = True
    DBOS(config=config)
    dbos.launch()
    engine().db.change(lambda connection: connection.run("DELETE FROM dbos.operation_outputs"))
    assert dbos.get_result("wf") == "done"
