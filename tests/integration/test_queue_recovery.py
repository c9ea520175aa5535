"""What was taken from a queue and not finished goes back to that queue, and is taken again: once, and within limits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dbos import (
    DBOS,
    DBOSConfig,
    DBOSConfiguredInstance,
    Queue,
    SetEnqueueOptions,
    SetWorkflowID,
    SetWorkflowTimeout,
)
from dbos._core import dispatch_queue
from dbos._engine.claims import Begun
from dbos._error import DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded, DBOSQueueDeduplicatedError
from dbos._operations import lifecycle
from dbos._process import process
from dbos._services import dispatcher
from tests.integration.histories import PATIENCE_S, change, engine, eventually, execute_again, rewind, row


def status(workflow_id: str) -> str:
    return row(workflow_id).status


@contextmanager
def nothing_is_claimed() -> Iterator[None]:
    """Let work pile up, to be claimed at once afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher.Dispatcher, "_dispatch", lambda *_: 0)
        yield
    assert process.runtime is not None
    process.runtime._dispatcher.dispatch_soon(None)


class Gate:
    """Lets the test decide when those who have come in go on."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.inside = 0
        self.most = 0
        self._lock = threading.Lock()
        self._places = threading.Semaphore(0)

    def pass_through(self, name: str) -> str:
        with self._lock:
            self.entered.append(name)
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self._places.acquire(timeout=PATIENCE_S)
        with self._lock:
            self.inside -= 1
        return name

    def open(self, number: int = 1000) -> None:
        self._places.release(number)


# -- what a claim finds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{}, {"concurrency": 100}], ids=["unlimited", "limited"])
def test_what_cannot_begin_is_left_or_ends_and_the_rest_of_its_claim_runs(
    dbos: type[DBOS], limits: dict[str, Any]
) -> None:
    queue = Queue("q", **limits)

    @dbos.workflow()
    def good(number: int) -> int:
        return number

    @dbos.workflow()
    def unregistered() -> None:
        return None

    @dbos.dbos_class()
    class Shop(DBOSConfiguredInstance):
        @dbos.workflow()
        def sell(self) -> str:
            return self.config_name

    shop = Shop("shop")
    dbos.launch()
    with nothing_is_claimed():
        handles = [queue.enqueue(good, number) for number in range(3)]
        unknown, nowhere, broken = queue.enqueue(unregistered), queue.enqueue(shop.sell), queue.enqueue(good, 7)
        handles += [queue.enqueue(good, number) for number in range(3, 6)]
        del engine().registry.workflows[row(unknown.workflow_id).name]
        [instance] = [key for key in engine().registry.instances if key.endswith("/shop")]
        del engine().registry.instances[instance]
        change("UPDATE dbos.workflow_status SET inputs = 'none' WHERE workflow_uuid = :id", id=broken.workflow_id)

    assert [handle.get_result() for handle in handles] == list(range(6))
    eventually(lambda: status(broken.workflow_id) == "ERROR")
    for left in (unknown, nowhere):
        eventually(lambda left=left: status(left.workflow_id) == "ENQUEUED")  # type: ignore[misc]
        assert (row(left.workflow_id).queue_name, row(left.workflow_id).recovery_attempts) == ("q", 0)


@pytest.mark.parametrize("is_partitioned", [False, True], ids=["queue", "partitions"])
def test_what_is_claimed_and_has_not_begun_counts_against_the_limit_of_its_process(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch, is_partitioned: bool
) -> None:
    queue = Queue("q", worker_concurrency=3, partition_queue=is_partitioned)
    gate = Gate()
    claimed: list[int] = []

    def dispatch(*arguments: Any) -> Begun:
        begun = dispatch_queue(*arguments)
        if begun.runs:
            running = engine().db.read(
                lambda connection: connection.one(
                    "SELECT count(*) FROM dbos.workflow_status WHERE status = 'PENDING' AND queue_name = 'q'"
                )
            )
            assert running is not None
            claimed.append(running[0])
        return begun

    @dbos.workflow()
    async def workflow(number: int) -> int:
        with gate._lock:
            gate.inside += 1
            gate.most = max(gate.most, gate.inside)
        await DBOS.sleep_async(0.001)
        with gate._lock:
            gate.inside -= 1
        return number

    dbos.launch()
    monkeypatch.setattr(dispatcher, "dispatch_queue", dispatch)
    with SetEnqueueOptions(queue_partition_key="k" if is_partitioned else None):
        handles = [queue.enqueue(workflow, number) for number in range(20)]

    assert [handle.get_result() for handle in handles] == list(range(20))
    assert 0 < max(claimed) <= 3
    assert 0 < gate.most <= 3


# -- recovery ----------------------------------------------------------------------------------------------------------


def test_a_pass_of_recovery_that_saw_what_another_has_dealt_with_changes_nothing(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=1)
    gate = Gate()

    @dbos.workflow()
    def workflow() -> str:
        return gate.pass_through("w")

    dbos.launch()
    gate.open(1)
    with SetWorkflowID("w"):
        queue.enqueue(workflow).get_result()
    rewind("w")
    change(
        "UPDATE dbos.workflow_status SET owner_instance = :own, run_token = 'lost' WHERE workflow_uuid = 'w'",
        own=engine().instance_id,
    )
    db, view = engine().db, {"w": "lost"}
    db.change(db.workflows.reclaim_own, engine().instance_id, view, db.now_ms())
    engine().dispatch(None)
    eventually(lambda: len(gate.entered) == 2)
    running = row("w")
    second = db.change(db.workflows.reclaim_own, engine().instance_id, view, db.now_ms())
    unchanged = row("w")
    gate.open()

    assert dbos.retrieve_workflow("w").get_result() == "w"
    assert (second, unchanged) == ([], running)
    assert gate.entered == ["w", "w"]


def test_asking_again_to_recover_what_runs_already_recovers_nothing(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=1)
    gate = Gate()

    @dbos.workflow()
    def workflow() -> str:
        return gate.pass_through("w")

    dbos.launch()
    with SetWorkflowID("w"):
        handle = queue.enqueue(workflow)
    eventually(lambda: gate.entered)
    running = row("w")
    recovered = [DBOS._recover_pending_workflows(["dead", running.executor_id or ""]) for _ in range(3)]
    unchanged = row("w")
    gate.open()

    assert recovered == [[], [], []]
    assert unchanged == running
    assert handle.get_result() == "w"
    assert gate.entered == ["w"]


def test_a_workflow_between_two_steps_is_recovered_into_its_queue_and_is_not_in_its_own_way(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=1)
    calls: list[str] = []

    @dbos.step()
    def step(name: str) -> str:
        calls.append(name)
        return name

    @dbos.workflow()
    def workflow(name: str) -> str:
        return step(f"{name}1") + step(f"{name}2")

    dbos.launch()
    with SetWorkflowID("a"):
        queue.enqueue(workflow, "a").get_result()
    with nothing_is_claimed():
        rewind("a", to_step=2)
        behind = queue.enqueue(workflow, "b")
        DBOS._recover_pending_workflows()  # until then it holds no place

    assert dbos.retrieve_workflow("a").get_result() == "a1a2"
    assert behind.get_result() == "b1b2"
    assert calls == ["a1", "a2", "a2", "b1", "b2"]
    assert (row("a").queue_name, row("a").recovery_attempts) == ("q", 2)


def test_what_is_recovered_keeps_its_partition_and_counts_in_it(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=1, partition_queue=True)
    gate = Gate()

    @dbos.workflow()
    def workflow(name: str) -> str:
        return gate.pass_through(name)

    dbos.launch()
    gate.open(1)
    with SetEnqueueOptions(queue_partition_key="k"):
        with SetWorkflowID("a"):
            queue.enqueue(workflow, "a").get_result()
        recovered = execute_again("a")
        eventually(lambda: gate.entered == ["a", "a"])
        behind = queue.enqueue(workflow, "b")
    with SetEnqueueOptions(queue_partition_key="another"):
        beside = queue.enqueue(workflow, "c")
    eventually(lambda: gate.entered == ["a", "a", "c"])
    running, waiting = row("a"), status(behind.workflow_id)
    gate.open()

    assert (running.queue_name, running.queue_partition_key, waiting) == ("q", "k", "ENQUEUED")
    assert [handle.get_result() for handle in (recovered, behind, beside)] == ["a", "b", "c"]
    assert gate.most == 2


def test_what_is_given_up_leaves_its_place_and_its_deduplication_id(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=1)
    attempts: list[int] = []

    @dbos.workflow(max_recovery_attempts=1)
    def poison() -> None:
        attempts.append(1)
        raise SystemExit

    @dbos.workflow()
    def harmless() -> str:
        return "done"

    dbos.launch()
    with SetEnqueueOptions(deduplication_id="d"):
        given_up = queue.enqueue(poison)
        with pytest.raises(DBOSQueueDeduplicatedError):
            queue.enqueue(harmless)
    waiting = queue.enqueue(harmless)
    for attempt in (1, 2):
        eventually(lambda attempt=attempt: len(attempts) == attempt and not engine().runs.all())  # type: ignore[misc]
        DBOS._recover_pending_workflows()

    with pytest.raises(DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded):
        given_up.get_result()
    assert waiting.get_result() == "done"
    with SetEnqueueOptions(deduplication_id="d"):
        assert queue.enqueue(harmless).get_result() == "done"
    assert len(attempts) == 2
    assert (row(given_up.workflow_id).queue_name, row(given_up.workflow_id).deduplication_id) == (None, None)


def test_an_executor_that_registers_anew_claims_what_waits_for_it_at_once(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited until the dispatcher looked by itself, once a second."""
    monkeypatch.setattr(dispatcher, "SAFETY_NET_S", 1000.0)
    queue = Queue("q", polling_interval_sec=1000)
    claimed: list[int] = []

    def dispatch(*arguments: Any) -> Begun:
        begun = dispatch_queue(*arguments)
        claimed.append(len(begun.runs))
        return begun

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    assert queue.enqueue(workflow).get_result() == "done"
    assert process.runtime is not None
    db, leases = engine().db, process.runtime._leases
    monkeypatch.setattr(dispatcher, "dispatch_queue", dispatch)
    db.change(db.executors.remove, [engine().instance_id])
    handle = queue.enqueue(workflow)
    eventually(lambda: claimed)
    assert set(claimed) == {0}
    leases.renew_once()

    assert handle.get_result() == "done"


# -- two runs of one workflow in one process ---------------------------------------------------------------------------


def test_a_workflow_that_is_resumed_as_soon_as_it_is_cancelled_runs_again_here(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=1)
    begun: list[str] = []

    @dbos.workflow()
    def workflow(name: str) -> str:
        begun.append(name)
        if begun.count(name) == 1:
            DBOS.sleep(1000)
        return name

    dbos.launch()
    for name in "abcdefghij":
        with SetWorkflowID(name):
            queue.enqueue(workflow, name)
        eventually(lambda name=name: name in begun)  # type: ignore[misc]
        dbos.cancel_workflow(name)
        assert dbos.resume_workflow(name, queue_name="q").get_result() == name

    assert sorted(begun) == sorted("abcdefghij" * 2)
    eventually(lambda: engine().runs.of_queue("q") == {})


def test_a_second_run_beside_a_first_that_does_not_end_takes_no_place_for_ever(
    dbos: type[DBOS], config: DBOSConfig
) -> None:
    DBOS.destroy()
    DBOS(config={**config, "max_executor_threads": 2})
    queue = Queue("q", worker_concurrency=2)
    stuck, calls = threading.Event(), []

    @dbos.step()
    def step() -> str:
        calls.append(1)
        if len(calls) == 1:
            assert stuck.wait(PATIENCE_S)
        return "done"

    @dbos.workflow()
    def workflow() -> str:
        return step()

    @dbos.workflow()
    def other(number: int) -> int:
        return number

    dbos.launch()
    with SetWorkflowID("w"):
        queue.enqueue(workflow)
    eventually(lambda: calls)
    again = [dbos._execute_workflow_id("w") for _ in range(3)]
    free_beside_one, calls_of_one = engine().workers.free, len(calls)
    dbos.cancel_workflow("w")
    result = dbos.resume_workflow("w", queue_name="q").get_result()
    others = [handle.get_result() for handle in [queue.enqueue(other, number) for number in range(5)]]
    stuck.set()

    assert (free_beside_one, calls_of_one) == (1, 1)
    assert (result, others) == ("done", list(range(5)))
    assert [handle.get_result() for handle in again] == ["done"] * 3
    eventually(lambda: engine().workers.free == 2)
    assert len(calls) == 2


# -- to another queue, and out of the process --------------------------------------------------------------------------


def test_a_fork_of_what_waits_in_a_partition_runs_at_once_and_the_original_in_its_turn(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=1, partition_queue=True)
    gate = Gate()

    @dbos.workflow()
    def workflow(name: str) -> str:
        return gate.pass_through(name)

    dbos.launch()
    with SetEnqueueOptions(queue_partition_key="k"):
        first = queue.enqueue(workflow, "first")
        second = queue.enqueue(workflow, "second")
    eventually(lambda: gate.entered == ["first"])
    fork = dbos.fork_workflow(second.workflow_id, 1)
    eventually(lambda: gate.entered == ["first", "second"])
    waiting = status(second.workflow_id)
    gate.open()

    assert waiting == "ENQUEUED"
    assert [handle.get_result() for handle in (first, fork, second)] == ["first", "second", "second"]
    assert gate.entered == ["first", "second", "second"]


def test_what_was_claimed_and_not_begun_when_its_process_left_is_in_its_queue_for_the_next(
    dbos: type[DBOS], config: DBOSConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue("q", concurrency=2)
    calls: list[str] = []
    submitted: list[Callable[[], None]] = []

    @dbos.workflow()
    def workflow(name: str) -> str:
        calls.append(name)
        return name

    dbos.launch()
    monkeypatch.setattr(lifecycle, "SHUTDOWN_GRACE_S", 0.05)
    monkeypatch.setattr(engine().workers, "submit", submitted.append)
    for name in "abc":
        with SetWorkflowID(name):
            queue.enqueue(workflow, name)
    eventually(lambda: engine().runs.of_queue("q") == {None: 2})
    DBOS.destroy()

    DBOS(config=config)
    DBOS.launch()
    results = [DBOS.retrieve_workflow(name).get_result() for name in "abc"]

    assert results == ["a", "b", "c"]
    assert sorted(calls) == ["a", "b", "c"]
    assert [row(name).queue_name for name in "abc"] == ["q", "q", "q"]
    assert [row(name).recovery_attempts for name in "abc"] == [1, 1, 1]


def test_what_waits_for_a_thread_when_its_process_leaves_was_not_attempted(
    dbos: type[DBOS], config: DBOSConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It got the thread of whoever was stopped, ended at once, and was not there to be given back any more."""
    DBOS.destroy()
    DBOS(config={**config, "max_executor_threads": 1})
    has_begun = threading.Event()

    @dbos.step()
    def step() -> None:
        has_begun.set()
        eventually(lambda: is_relaunched or all(run.is_interrupted for run in runs.all()))

    @dbos.workflow()
    def workflow() -> None:
        step()

    is_relaunched = False
    dbos.launch()
    runs, topics = engine().runs, list[str]()
    monkeypatch.setattr(engine().db, "publish", topics.append)
    for name in "abc":
        with SetWorkflowID(name):
            dbos.start_workflow(workflow)
    assert has_begun.wait(PATIENCE_S)
    DBOS.destroy()

    is_relaunched = True
    DBOS(config=config)
    DBOS.launch()
    for name in "abc":
        DBOS.retrieve_workflow(name).get_result()

    assert [row(name).recovery_attempts for name in "abc"] == [1, 1, 1]
    assert "queue" in topics


# -- places that become free -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancelled", "overdue", "released"])
def test_others_are_told_of_a_place_that_becomes_free(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """They may wait for it; and a body that ignores that it was stopped does not end for a long time."""
    queue, gate = Queue("q", concurrency=1), Gate()

    @dbos.workflow()
    def workflow(name: str) -> str:
        return gate.pass_through(name)

    dbos.launch()
    with SetWorkflowID("w"), SetWorkflowTimeout(0.3 if how == "overdue" else None):
        queue.enqueue(workflow, "w")
    eventually(lambda: gate.entered)
    topics: list[str] = []
    monkeypatch.setattr(engine().db, "publish", topics.append)

    if how == "released":
        run = engine().runs.get("w")
        assert run is not None
        engine().runs.remove(run)
        topics.clear()  # that a run has ended is told as well
        assert DBOS._recover_pending_workflows()
    elif how == "cancelled":
        dbos.cancel_workflow("w")
    else:
        eventually(lambda: status("w") == "CANCELLED")
    told = list(topics)
    eventually(lambda: topics)

    assert how == "overdue" or told
    assert ("queue" if how == "released" else "queue:q") in topics
    gate.open()
