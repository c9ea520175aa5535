"""Durable sleep: the time to wake up at is recorded."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from dbos import DBOS, DBOSContextEnsure, SetWorkflowID
from dbos._error import DBOSException
from tests.integration.histories import change, engine, execute_again, recorded, row, steps


def test_the_time_to_wake_up_at_is_recorded_in_portable_json(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(0.05)

    dbos.launch()

    with SetWorkflowID("wf"):
        workflow()

    [step] = steps("wf")
    assert (step.function_id, step.function_name, step.serialization) == (1, "DBOS.sleep", "portable_json")
    wake_at_ms = json.loads(step.output or "") * 1000
    completed_at = row("wf").completed_at
    assert completed_at is not None
    assert row("wf").created_at + 50 <= wake_at_ms <= completed_at + 1


async def test_coroutines_sleep_durably_side_by_side(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> None:
        await asyncio.gather(*(dbos.sleep_async(0.001 * number) for number in range(4)))

    dbos.launch()

    with SetWorkflowID("wf"):
        await workflow()

    assert recorded("wf") == [(number, "DBOS.sleep") for number in (1, 2, 3)]


@pytest.mark.parametrize("seconds", [0, -1, -0.5])
def test_sleeping_no_time_records_nothing_and_is_allowed_anywhere(dbos: type[DBOS], seconds: float) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(seconds)

    dbos.launch()
    dbos.sleep(seconds)

    with SetWorkflowID("wf"):
        workflow()

    assert recorded("wf") == []


def test_a_restart_sleeps_only_what_is_left(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> str:
        dbos.sleep(0.001)
        return "awake"

    dbos.launch()
    with SetWorkflowID("wf"):
        workflow()
    now_s = engine().db.now_ms() / 1000
    change("UPDATE dbos.operation_outputs SET output = :at", at=json.dumps(now_s + 0.3))

    assert execute_again("wf").get_result() == "awake"

    assert engine().db.now_ms() / 1000 >= now_s + 0.3
    assert json.loads(steps("wf")[0].output or "") == now_s + 0.3


def test_sleeping_needs_a_workflow(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> None:
        dbos.sleep(1)

    @dbos.workflow()
    def workflow() -> None:
        with pytest.raises(AssertionError, match=r"sleep\(\) must be called from within a workflow"):
            step()

    dbos.launch()

    with pytest.raises(DBOSException, match=r"sleep\(\) must be called from within a workflow"):
        dbos.sleep(1)
    with DBOSContextEnsure(), pytest.raises(AssertionError, match=r"sleep\(\) must be called from within a workflow"):
        dbos.sleep(1)
    workflow()


async def test_sleeping_does_not_block_a_running_loop(dbos: type[DBOS]) -> None:
    dbos.launch()

    with pytest.raises(RuntimeError, match=r"sleep\(\) was called while an event loop is running.*sleep_async"):
        dbos.sleep(1)


def test_a_sleep_is_logged(dbos: type[DBOS], caplog: pytest.LogCaptureFixture) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(0.001)

    dbos.launch()

    with caplog.at_level(logging.DEBUG, logger="dbos"):
        workflow()

    assert "Running sleep" in caplog.text
