"""Events: named values that a workflow shows, for those who ask and wait for them."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from dbos import DBOS, SetWorkflowID, WorkflowSerializationFormat
from dbos._error import DBOSException
from tests.integration.crashes import Crash, recover
from tests.integration.histories import change, engine, eventually, execute_again, recorded, steps


def await_asker(workflow_id: str, key: str) -> None:
    """Wait until somebody waits for an event."""
    eventually(lambda: ("event", workflow_id, key) in list(engine().db.wakeups.keys()))


def test_an_event_has_its_latest_value(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.set_event("progress", 1)
        dbos.set_event("progress", 2)
        dbos.set_event("nothing", None)

    dbos.launch()
    with SetWorkflowID("wf"):
        workflow()

    assert dbos.get_event("wf", "progress") == 2
    assert dbos.get_event("wf", "other", timeout_seconds=0) is None
    assert dbos.get_event("nobody", "progress", timeout_seconds=0) is None
    assert dbos.get_all_events("wf") == {"progress": 2, "nothing": None}
    assert dbos.get_all_events("nobody") == {}
    assert [(step.function_name, step.output) for step in steps("wf")] == [("DBOS.setEvent", None)] * 3


async def test_everybody_who_waits_is_told_whatever_loop_or_thread_they_wait_in(dbos: type[DBOS]) -> None:
    may_set = threading.Event()

    @dbos.workflow()
    def workflow() -> None:
        assert may_set.wait(20)
        dbos.set_event("key", "value")

    @dbos.workflow()
    async def asker() -> Any:
        return await asyncio.gather(*(dbos.get_event_async("wf", "key") for _ in range(2)))

    dbos.launch()
    with SetWorkflowID("wf"):
        dbos.start_workflow(workflow)
    in_thread = asyncio.get_running_loop().run_in_executor(None, dbos.get_event, "wf", "key")
    with SetWorkflowID("asker"):
        in_workflow = await dbos.start_workflow_async(asker)
    here = asyncio.ensure_future(dbos.get_event_async("wf", "key"))
    while len(engine().db.wakeups._waiting.get(("event", "wf", "key"), ())) < 4:
        await asyncio.sleep(0.005)
    may_set.set()

    assert [await in_thread, await here] == ["value", "value"]
    assert await in_workflow.get_result() == ["value", "value"]
    assert recorded("asker") == [(1, "DBOS.getEvent"), (2, "DBOS.sleep"), (3, "DBOS.getEvent"), (4, "DBOS.sleep")]


async def test_a_wait_that_is_given_up_leaves_nothing_behind(dbos: type[DBOS]) -> None:
    dbos.launch()
    task = asyncio.ensure_future(dbos.get_event_async("wf", "key"))
    while not list(engine().db.wakeups.keys()):
        await asyncio.sleep(0.005)

    task.cancel()
    await asyncio.wait([task])

    assert list(engine().db.wakeups.keys()) == []


def test_a_wait_that_was_over_is_over_on_replay_whatever_was_set_since(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def asker() -> Any:
        return dbos.get_event("other", "key", timeout_seconds=0.01)

    @dbos.workflow()
    def setter() -> None:
        dbos.set_event("key", "late")

    dbos.launch()
    with SetWorkflowID("asker"):
        assert asker() is None
    with SetWorkflowID("other"):
        setter()

    assert execute_again("asker").get_result() is None


def test_a_restart_waits_only_what_is_left(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def asker() -> Any:
        return dbos.get_event("other", "key", timeout_seconds=0.01)

    dbos.launch()
    with SetWorkflowID("wf"):
        asker()
    deadline_s = engine().db.now_ms() / 1000 + 0.3
    change("UPDATE dbos.operation_outputs SET output = :at WHERE function_id = 2", at=json.dumps(deadline_s))
    change("DELETE FROM dbos.operation_outputs WHERE function_id = 1")

    assert execute_again("wf").get_result() is None

    assert engine().db.now_ms() / 1000 >= deadline_s


def test_what_a_step_sets_last_is_what_it_set_and_forks_see_their_own_past(dbos: type[DBOS]) -> None:
    attempts = []

    @dbos.step(retries_allowed=True, interval_seconds=0)
    def step() -> None:
        attempts.append(dbos.step_id)
        dbos.set_event("key", f"attempt {len(attempts)}")
        if len(attempts) == 1:
            raise ValueError

    @dbos.workflow()
    def workflow() -> Any:
        dbos.set_event("key", "first")
        step()
        dbos.set_event("key", "last")
        dbos.set_event("other", "other")
        return dbos.workflow_id

    dbos.launch()
    with SetWorkflowID("wf"):
        workflow()
    handles = []
    for start_step in (1, 2, 3, 4, 5):
        with SetWorkflowID(f"fork-{start_step}"):
            handles.append(dbos.fork_workflow("wf", start_step, queue_name="nobody listens"))

    forks = [dbos.get_all_events(handle.workflow_id) for handle in handles]
    assert forks == [
        {},
        {"key": "first"},
        {"key": "attempt 2"},
        {"key": "last"},
        {"key": "last", "other": "other"},
    ]
    assert [name for _, name in recorded("wf")].count("DBOS.setEvent") == 3


async def test_events_that_are_set_side_by_side_are_all_set(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> None:
        await asyncio.gather(*(dbos.set_event_async(f"key {number % 7}", number) for number in range(50)))

    dbos.launch()
    with SetWorkflowID("wf"):
        await workflow()

    events = await dbos.get_all_events_async("wf")
    assert sorted(events) == [f"key {number}" for number in range(7)]
    assert [number for number, _ in recorded("wf")] == list(range(1, 51))
    assert (await asyncio.to_thread(execute_again, "wf")).workflow_id == "wf"
    assert await dbos.get_result_async("wf") is None


def test_an_event_is_set_once_however_often_the_workflow_is_executed(dbos: type[DBOS]) -> None:
    crashes = [True]

    @dbos.workflow()
    def workflow() -> None:
        dbos.set_event("key", "first execution" if crashes else "second execution")
        if crashes:
            crashes.clear()
            raise Crash

    dbos.launch()
    with SetWorkflowID("wf"), pytest.raises(Crash):
        workflow()

    recover(dbos).get_result()
    assert dbos.get_event("wf", "key") == "first execution"


def test_a_run_that_lost_its_workflow_sets_nothing(dbos: type[DBOS]) -> None:
    may_set, ended = threading.Event(), threading.Event()

    @dbos.step()
    def step() -> None:
        assert may_set.wait(20)
        try:
            dbos.set_event("key", "from a step")
        finally:
            ended.set()

    @dbos.workflow()
    def workflow() -> None:
        step()

    dbos.launch()
    with SetWorkflowID("wf"):
        dbos.start_workflow(workflow)
    eventually(lambda: engine().runs.get("wf") is not None and engine().runs.all()[0].has_begun)
    change("UPDATE dbos.workflow_status SET run_token = 'another', owner_instance = NULL, status = 'SUCCESS'")
    may_set.set()

    assert ended.wait(20)
    eventually(lambda: engine().runs.get("wf") is None)
    assert dbos.get_all_events("wf") == {}


def test_setting_needs_a_workflow_and_a_key_that_can_be_stored(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow(key: Any, value: Any) -> None:
        dbos.set_event(key, value)

    dbos.launch()

    with pytest.raises(DBOSException, match=r"set_event\(\) must be called from within a workflow or step"):
        dbos.set_event("key", 1)
    for key in ("", "a\0b", "\ud800", 1, "k" * 3000):
        with pytest.raises(DBOSException, match="Invalid key"):
            workflow(key, 1)
    with pytest.raises(TypeError):
        workflow("key", threading.Lock())


def test_the_format_is_the_workflows(dbos: type[DBOS]) -> None:
    @dbos.workflow(serialization_type=WorkflowSerializationFormat.PORTABLE)
    def workflow() -> None:
        dbos.set_event("key", (1, 2))

    dbos.launch()
    with SetWorkflowID("wf"):
        dbos.start_workflow(workflow).get_result()

    assert dbos.get_event("wf", "key") == [1, 2]
