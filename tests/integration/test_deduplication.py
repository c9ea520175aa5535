"""De-duplication: of several workflows with one id in one queue, the first holds it until it has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dbos import DBOS, Queue, SetEnqueueOptions, SetWorkflowID
from dbos._error import DBOSQueueDeduplicatedError
from dbos._sysdb.operations import Started, StartWorkflow
from tests.integration.histories import PATIENCE_S, engine, eventually, execute_again, recorded, row, steps


class Gate:
    """Workflows that run wait here until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def __call__(self) -> None:
        assert self._open.wait(PATIENCE_S)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture(params=[False, True], ids=["blocking", "async"])
def enqueue(request: pytest.FixtureRequest) -> Callable[..., str]:
    def in_a_thread(queue: Queue, func: Callable[..., Any], *args: Any) -> str:
        return queue.enqueue(func, *args).workflow_id

    def on_a_loop(queue: Queue, func: Callable[..., Any], *args: Any) -> str:
        async def run() -> str:
            return (await queue.enqueue_async(func, *args)).workflow_id

        return asyncio.run(run())

    return on_a_loop if request.param else in_a_thread


def test_while_an_id_is_held_another_workflow_is_refused(
    dbos: type[DBOS], enqueue: Callable[..., str], gate: Gate
) -> None:
    """C11"""
    queue, other = Queue("mail"), Queue("other")

    @dbos.workflow()
    def workflow(number: int) -> int:
        gate()
        return number

    dbos.launch()
    with SetEnqueueOptions(deduplication_id="d"):
        with SetWorkflowID("first"):
            enqueue(queue, workflow, 1)
        with SetWorkflowID("first"):
            assert enqueue(queue, workflow, 1) == "first"  # the same workflow is not its own duplicate
        with SetWorkflowID("second"), pytest.raises(DBOSQueueDeduplicatedError) as refused:
            enqueue(queue, workflow, 2)
        elsewhere = enqueue(other, workflow, 3)
    without = enqueue(queue, workflow, 4)

    error = refused.value
    assert (error.workflow_id, error.queue_name, error.deduplication_id) == ("second", "mail", "d")
    assert "Workflow second was deduplicated due to an existing workflow in queue mail with deduplication ID d." in str(
        error
    )
    gate.open()
    assert [dbos.get_result(each) for each in ("first", elsewhere, without)] == [1, 3, 4]
    with SetEnqueueOptions(deduplication_id="d"), SetWorkflowID("second"):
        assert dbos.get_result(enqueue(queue, workflow, 2)) == 2


@pytest.mark.parametrize("end", ["success", "error", "cancelled", "cancelled while it waits", "given up", "resumed"])
def test_an_id_is_free_again_when_its_workflow_has_ended(dbos: type[DBOS], end: str, gate: Gate) -> None:
    """C11"""
    Queue("mail")

    @dbos.workflow(max_recovery_attempts=1)
    def workflow() -> None:
        if end in ("cancelled", "given up"):
            gate()
        if end == "error":
            raise ValueError("no")

    dbos.launch()
    held = "elsewhere" if end in ("cancelled while it waits", "resumed") else "mail"
    with SetEnqueueOptions(deduplication_id="d"):
        handle = dbos.enqueue_workflow(held, workflow)
    if end.startswith("cancelled"):
        dbos.cancel_workflow(handle.workflow_id)
    elif end == "given up":
        eventually(lambda: row(handle.workflow_id).status == "PENDING")
        db, token = engine().db, row(handle.workflow_id).run_token
        assert db.change(db.workflows.dead_letter, handle.workflow_id, token, db.now_ms())
    elif end == "resumed":
        dbos.resume_workflow(handle.workflow_id).get_result()
    elif end == "error":
        with pytest.raises(ValueError, match="no"):
            handle.get_result()
    else:
        handle.get_result()

    with SetEnqueueOptions(deduplication_id="d"):
        again = dbos.enqueue_workflow(held, workflow)

    assert again.workflow_id != handle.workflow_id
    assert row(handle.workflow_id).deduplication_id is None


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_a_refusal_is_recorded_and_replayed(dbos: type[DBOS], is_async: bool, gate: Gate) -> None:
    """C13: also when the id has long been free."""
    queue = Queue("mail")

    @dbos.workflow(name="child")
    def child() -> None:
        gate()

    @dbos.workflow()
    def parent() -> list[str]:
        with SetEnqueueOptions(deduplication_id="d"):
            try:
                return [queue.enqueue(child).workflow_id]
            except DBOSQueueDeduplicatedError as error:
                return [str(error), error.workflow_id, error.queue_name, error.deduplication_id]

    @dbos.workflow()
    async def parent_async() -> list[str]:
        with SetEnqueueOptions(deduplication_id="d"):
            try:
                return [(await queue.enqueue_async(child)).workflow_id]
            except DBOSQueueDeduplicatedError as error:
                return [str(error), error.workflow_id, error.queue_name, error.deduplication_id]

    dbos.launch()
    with SetEnqueueOptions(deduplication_id="d"):
        holder = queue.enqueue(child)
    with SetWorkflowID("p"):
        result = asyncio.run(parent_async()) if is_async else parent()
    gate.open()
    holder.get_result()

    assert result[1:] == ["p-1", "mail", "d"]
    assert recorded("p") == [(1, "child")]
    [step] = steps("p")
    assert (step.child_workflow_id, step.output) == (None, None)
    assert execute_again("p", to_step=2).get_result() == result
    assert len(dbos.list_workflows()) == 2


# -- returning the existing one ----------------------------------------------------------------------------------------


def test_who_asks_for_the_existing_workflow_gets_its_handle(
    dbos: type[DBOS], enqueue: Callable[..., str], gate: Gate
) -> None:
    queue = Queue("mail")

    @dbos.workflow(name="workflow")
    def workflow(number: int) -> int:
        gate()
        return number

    dbos.launch()
    with SetEnqueueOptions(deduplication_id="d", duplication_policy="return-existing"):
        first, second = enqueue(queue, workflow, 1), enqueue(queue, workflow, 2)
    third = dbos.enqueue_workflow_with_options(
        {
            "workflow_name": "workflow",
            "queue_name": "mail",
            "deduplication_id": "d",
            "duplication_policy": "return-existing",
        },
        3,
    )
    gate.open()

    assert first == second == third.workflow_id
    assert dbos.get_result(first) == 1
    assert len(dbos.list_workflows()) == 1


def test_a_workflow_that_got_an_existing_one_gets_it_on_replay(dbos: type[DBOS], gate: Gate) -> None:
    """C12, A26: also where the operation was recorded and the holder has ended since."""
    queue = Queue("mail")

    @dbos.workflow(name="child")
    def child(number: int) -> int:
        gate()
        return number

    @dbos.workflow()
    def parent() -> list[Any]:
        with SetEnqueueOptions(deduplication_id="d", duplication_policy="return-existing"):
            handle = queue.enqueue(child, 2)
        return [handle.workflow_id, handle.get_result()]

    dbos.launch()
    with SetEnqueueOptions(deduplication_id="d"):
        holder = queue.enqueue(child, 1)
    with SetWorkflowID("p"):
        handle = dbos.start_workflow(parent)
    eventually(lambda: steps("p"))
    gate.open()

    assert handle.get_result() == [holder.workflow_id, 1]
    assert steps("p")[0].child_workflow_id == holder.workflow_id
    assert execute_again("p", to_step=2).get_result() == [holder.workflow_id, 1]
    assert len(dbos.list_workflows()) == 2


@pytest.mark.parametrize("policy", ["reject", "return-existing"])
@pytest.mark.parametrize("assigned", [None, "chosen"])
def test_a_child_whose_record_was_lost_is_found_again_and_is_not_its_own_duplicate(
    dbos: type[DBOS], policy: Any, assigned: str | None
) -> None:
    """A26: whether it still waits, with its id held, or has ended."""

    @dbos.workflow(name="child")
    def child() -> str:
        return "done"

    @dbos.workflow()
    def parent() -> str:
        with SetEnqueueOptions(deduplication_id="d", duplication_policy=policy):
            if assigned is not None:
                with SetWorkflowID(assigned):
                    return dbos.enqueue_workflow("mail", child).workflow_id
            return dbos.enqueue_workflow("mail", child).workflow_id

    dbos.launch()
    with SetWorkflowID("p"):
        result = parent()

    assert result == (assigned or "p-1")
    assert execute_again("p", to_step=1).get_result() == result
    assert steps("p")[0].child_workflow_id == result
    Queue("mail")
    assert dbos.get_result(result) == "done"
    assert execute_again("p", to_step=1).get_result() == result
    assert len(dbos.list_workflows()) == 2


def test_a_workflow_is_not_handed_itself(dbos: type[DBOS]) -> None:
    """A26: it would wait for itself."""
    queue = Queue("mail")

    @dbos.workflow()
    def workflow(depth: int) -> str:
        with SetEnqueueOptions(deduplication_id="d", duplication_policy="return-existing"):
            try:
                queue.enqueue(workflow, depth + 1)
            except DBOSQueueDeduplicatedError as error:
                return f"refused {error.workflow_id}"
        return "enqueued"

    dbos.launch()

    with SetEnqueueOptions(deduplication_id="d"), SetWorkflowID("w"):
        assert queue.enqueue(workflow, 0).get_result() == "refused w-1"


@pytest.mark.parametrize("policy", ["reject", "return-existing"])
@pytest.mark.parametrize("has_parent", [False, True], ids=["outside", "in a workflow"])
def test_a_holder_that_has_gone_before_it_was_looked_at_is_in_nobodys_way(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch, policy: Any, has_parent: bool
) -> None:
    """C12: the answer is then that nothing is there, and the insertion is repeated."""
    queue = Queue("mail")

    @dbos.workflow()
    def child() -> str:
        return "done"

    @dbos.workflow()
    def parent() -> str:
        with SetEnqueueOptions(deduplication_id="d", duplication_policy=policy):
            return queue.enqueue(child).get_result()

    dbos.launch()
    commit = engine().db.commit
    vanished: list[str] = []

    def commit_and_miss(*operations: Any) -> Any:
        first = operations[0]
        if isinstance(first, StartWorkflow) and first.deduplication_id is not None and len(vanished) < 3:
            vanished.append(first.workflow_uuid)
            return [Started(created=False, existing=None)]
        return commit(*operations)

    monkeypatch.setattr(engine().db, "commit", commit_and_miss)

    if has_parent:
        assert parent() == "done"
    else:
        with SetEnqueueOptions(deduplication_id="d", duplication_policy=policy):
            assert queue.enqueue(child).get_result() == "done"

    assert len(vanished) == 3
    assert len(set(vanished)) == 1


def test_an_id_that_is_fought_over_is_held_by_one_at_a_time(dbos: type[DBOS]) -> None:
    """C12: whoever asks gets a workflow that ran after it asked, or is refused; nobody is lost in between."""
    queue, running, most = Queue("mail"), 0, 0
    lock = threading.Lock()

    @dbos.workflow()
    def workflow() -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return "done"

    dbos.launch()
    results: list[str] = []

    def ask() -> None:
        for _ in range(10):
            with SetEnqueueOptions(deduplication_id="d", duplication_policy="return-existing"):
                results.append(queue.enqueue(workflow).get_result())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert results == ["done"] * 40
    assert most == 1
