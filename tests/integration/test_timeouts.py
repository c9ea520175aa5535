"""Timeouts: a workflow is cancelled when its deadline passes; children inherit the deadline unless they are freed."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dbos import DBOS, Queue, SetEnqueueOptions, SetWorkflowID, SetWorkflowTimeout
from dbos._error import DBOSAwaitedWorkflowCancelledError
from dbos.testing import VirtualTime
from tests.integration.histories import PATIENCE_S, engine, eventually, execute_again, row


def test_a_workflow_that_exceeds_its_timeout_is_cancelled(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(3600)

    dbos.launch()

    with pytest.raises(DBOSAwaitedWorkflowCancelledError), SetWorkflowID("wf"), SetWorkflowTimeout(0.05):
        workflow()

    stored = row("wf")
    assert stored.status == "CANCELLED"
    assert stored.workflow_timeout_ms == 50
    assert stored.workflow_deadline_epoch_ms == stored.created_at + 50
    assert stored.completed_at is not None
    assert stored.completed_at >= stored.workflow_deadline_epoch_ms


async def test_an_async_workflow_that_exceeds_its_timeout_is_cancelled(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> None:
        await dbos.sleep_async(3600)

    dbos.launch()

    with SetWorkflowTimeout(0.05):
        handle = await dbos.start_workflow_async(workflow)

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        await handle.get_result()


def test_a_workflow_that_ends_in_time_is_left_alone(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> str:
        return "in time"

    dbos.launch()

    with SetWorkflowID("wf"), SetWorkflowTimeout(0.2):
        assert workflow() == "in time"

    deadline_ms = row("wf").workflow_deadline_epoch_ms
    assert deadline_ms is not None
    eventually(lambda: engine().db.now_ms() > deadline_ms + 50)
    assert row("wf").status == "SUCCESS"


def test_children_share_the_deadline_of_their_parent(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def child() -> None:
        dbos.sleep(3600)

    @dbos.workflow()
    def started() -> None:
        dbos.sleep(3600)

    @dbos.workflow()
    def workflow() -> None:
        dbos.start_workflow(started)
        child()

    dbos.launch()

    with pytest.raises(DBOSAwaitedWorkflowCancelledError), SetWorkflowID("wf"), SetWorkflowTimeout(0.1):
        workflow()

    deadline_ms = row("wf").workflow_deadline_epoch_ms
    eventually(lambda: {row("wf-1").status, row("wf-2").status} == {"CANCELLED"})
    for stored in (row("wf-1"), row("wf-2")):
        assert stored.workflow_deadline_epoch_ms == deadline_ms
        assert stored.workflow_timeout_ms is None


def test_a_child_may_have_a_timeout_of_its_own_or_none(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def child() -> None: ...

    @dbos.workflow()
    def workflow() -> None:
        with SetWorkflowTimeout(100):
            child()
            with SetWorkflowTimeout(None):
                child()
            child()
        child()
        with SetWorkflowTimeout(0):
            child()

    dbos.launch()

    with SetWorkflowID("wf"), SetWorkflowTimeout(1000):
        workflow()

    parent_deadline = row("wf").workflow_deadline_epoch_ms
    children = [row(f"wf-{number}") for number in (1, 3, 5, 7, 9)]
    assert [child.workflow_timeout_ms for child in children] == [100_000, None, 100_000, None, None]
    assert [child.workflow_deadline_epoch_ms for child in children] == [
        children[0].created_at + 100_000,
        None,
        children[2].created_at + 100_000,
        parent_deadline,
        None,
    ]


def test_a_timeout_applies_to_every_workflow_of_the_block_and_to_none_after(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> Any:
        return dbos.workflow_id

    dbos.launch()

    with SetWorkflowTimeout(50.0015):
        within = [workflow(), dbos.start_workflow(workflow).workflow_id]
    after = workflow()

    assert [row(each).workflow_timeout_ms for each in within] == [50_001, 50_001]
    assert row(after).workflow_timeout_ms is None
    assert row(after).workflow_deadline_epoch_ms is None


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_a_timeout_is_not_negative(timeout: float) -> None:
    with pytest.raises(Exception, match="Timeouts must be positive"):
        SetWorkflowTimeout(timeout)


def test_recovery_does_not_grant_a_fresh_timeout(dbos: type[DBOS]) -> None:
    has_begun, is_recovered = threading.Event(), False

    @dbos.workflow()
    def workflow() -> None:
        has_begun.set()
        if is_recovered:
            dbos.sleep(3600)

    dbos.launch()
    with SetWorkflowID("wf"), SetWorkflowTimeout(0.5):
        workflow()
    before = row("wf").workflow_deadline_epoch_ms
    is_recovered = True

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        execute_again("wf").get_result()

    assert has_begun.wait(PATIENCE_S)
    assert row("wf").workflow_deadline_epoch_ms == before


def test_resuming_lifts_the_deadline_and_counts_the_timeout_anew(dbos: type[DBOS]) -> None:
    is_resumed = False

    @dbos.workflow()
    def workflow() -> str:
        if not is_resumed:
            dbos.sleep(3600)
        return "done"

    dbos.launch()
    with pytest.raises(DBOSAwaitedWorkflowCancelledError), SetWorkflowID("wf"), SetWorkflowTimeout(0.05):
        workflow()
    first_deadline = row("wf").workflow_deadline_epoch_ms
    is_resumed = True
    engine().db.change(lambda connection: connection.run("DELETE FROM dbos.operation_outputs"))
    engine().db.change(lambda connection: connection.run("UPDATE dbos.workflow_status SET workflow_timeout_ms = 60000"))

    assert dbos.resume_workflow("wf").get_result() == "done"

    deadline = row("wf").workflow_deadline_epoch_ms
    assert deadline is not None
    assert first_deadline is not None
    assert deadline >= first_deadline + 59_000


def test_many_timeouts_take_no_thread_each(dbos_virtual_time: VirtualTime, dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> None:
        await dbos.sleep_async(7200)

    dbos.launch()
    before = threading.active_count()

    with SetWorkflowTimeout(3600):
        for _ in range(200):
            dbos.start_workflow(workflow)
    between = threading.active_count()
    dbos_virtual_time.advance(3600)

    assert between <= before + 10
    assert len(dbos.list_workflows(status="CANCELLED")) == 200
    assert engine().runs.all() == []


def test_deadlines_pass_to_the_millisecond(dbos_virtual_time: VirtualTime, dbos: type[DBOS]) -> None:
    timeouts_ms = (1, 999, 1000, 1001, 59_999)
    queue, waiting = Queue("q"), Queue("waiting")
    claimed_ms: dict[str | None, int | None] = {}

    @dbos.workflow()
    async def workflow() -> None:
        claimed_ms[dbos.workflow_id] = row(dbos.workflow_id or "").started_at_epoch_ms
        await dbos.sleep_async(3600)

    @dbos.workflow()
    async def parent(timeout_ms: int) -> None:
        with SetEnqueueOptions(delay_seconds=3600), SetWorkflowID(f"waiting-{timeout_ms}"):
            await waiting.enqueue_async(workflow)  # it has its parent's deadline, and misses it

    dbos.launch()
    for timeout_ms in timeouts_ms:
        with SetWorkflowTimeout(timeout_ms / 1000), SetWorkflowID(f"claimed-{timeout_ms}"):
            queue.enqueue(workflow)
        with SetWorkflowTimeout(timeout_ms / 1000), SetWorkflowID(f"parent-{timeout_ms}"):
            dbos.start_workflow(parent, timeout_ms).get_result()
    dbos_virtual_time.advance(61)

    for timeout_ms in timeouts_ms:
        claimed, missed = row(f"claimed-{timeout_ms}"), row(f"waiting-{timeout_ms}")
        assert (claimed.status, missed.status) == ("CANCELLED", "CANCELLED")
        assert claimed.completed_at == claimed.workflow_deadline_epoch_ms
        assert claimed.completed_at == (claimed_ms[claimed.workflow_uuid] or 0) + timeout_ms
        assert missed.completed_at is not None
        late_ms = missed.completed_at - row(f"parent-{timeout_ms}").created_at - timeout_ms
        assert 0 <= late_ms < 100  # the dispatcher spaces its rounds by a few milliseconds
