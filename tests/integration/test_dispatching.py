"""Work leaves its queue as soon as it may and not before, and nothing that is wrong with one piece stops another."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, Queue, SetEnqueueOptions, SetWorkflowID, SetWorkflowTimeout
from dbos._core import dispatch_queue
from dbos._engine.claims import Begun
from dbos._engine.run import Run
from dbos._error import DBOSAwaitedWorkflowCancelledError
from dbos._services import dispatcher
from dbos._sysdb.connection import Connection
from dbos.testing import VirtualTime
from tests.integration.histories import PATIENCE_S, change, engine, eventually, row


class Crowd:
    """Counts who is inside at once; whoever comes in stays until the test lets them go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places = threading.Semaphore(0)
        self.inside: list[str] = []
        self.order: list[str] = []
        self.most = 0

    @contextmanager
    def member(self, name: str) -> Iterator[None]:
        with self._lock:
            self.inside.append(name)
            self.order.append(name)
            self.most = max(self.most, len(self.inside))
        try:
            yield
        finally:
            with self._lock:
                self.inside.remove(name)

    def stay(self, name: str) -> None:
        with self.member(name):
            assert self._places.acquire(timeout=PATIENCE_S)

    def let_go(self, number: int = 1) -> None:
        self._places.release(number)


def settle(queue: Queue) -> None:
    """Have the dispatcher decide once more about a queue: when this has run, what could begin has begun."""
    looks = threading.Event()
    service = dispatcher_of()
    original = service._dispatch

    def dispatch(claimed: Any, room: int) -> int:
        begun = original(claimed, room)
        if claimed.config.name == queue.name:
            looks.set()
        return begun

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "_dispatch", dispatch)
        service._queues[queue.name].due = 0.0
        service.wake()
        assert looks.wait(PATIENCE_S)


def dispatcher_of() -> dispatcher.Dispatcher:
    from dbos._process import process

    assert process.runtime is not None
    return process.runtime._dispatcher


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["concurrency", "worker_concurrency"])
def test_a_queue_runs_no_more_at_once_than_its_limit_and_goes_on_at_once(dbos: type[DBOS], limit: str) -> None:
    queue = Queue("q", **{limit: 2})  # type: ignore[arg-type]  # one of two integers
    crowd = Crowd()

    @dbos.workflow()
    def workflow(name: str) -> str:
        crowd.stay(name)
        return name

    dbos.launch()
    handles = [queue.enqueue(workflow, name) for name in "abcde"]
    eventually(lambda: len(crowd.inside) == 2)
    settle(queue)
    while_full = list(crowd.inside)
    crowd.let_go(5)
    results = [handle.get_result() for handle in handles]

    assert while_full == ["a", "b"]
    assert results == list("abcde")
    assert crowd.most == 2
    assert crowd.order[2:] == ["c", "d", "e"]


def test_coroutines_keep_a_limit_too(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=3)
    crowd = Crowd()

    @dbos.workflow()
    async def workflow(name: str) -> None:
        with crowd.member(name):
            for _ in range(5):
                await asyncio.sleep(0)

    dbos.launch()
    handles = [queue.enqueue(workflow, str(number)) for number in range(30)]
    for handle in handles:
        handle.get_result()

    assert 0 < crowd.most <= 3


def test_a_rate_limit_spreads_the_starts(dbos: type[DBOS], dbos_virtual_time: VirtualTime) -> None:
    queue = Queue("q", limiter={"limit": 4, "period": 60})

    @dbos.workflow()
    def workflow() -> int:
        return row(DBOS.workflow_id or "").started_at_epoch_ms or 0

    dbos.launch()
    starts_ms = sorted(handle.get_result() for handle in [queue.enqueue(workflow) for _ in range(10)])

    for first, fifth in zip(starts_ms, starts_ms[4:], strict=False):
        assert 60_000 <= fifth - first < 61_000


def test_a_waiting_backlog_of_a_rate_limited_queue_is_not_locked(dbos: type[DBOS]) -> None:
    queue = Queue("q", limiter={"limit": 1, "period": 1000})

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    handles = queue.enqueue_many(workflow, [() for _ in range(200)])
    assert handles[0].get_result() == "done"

    dbos.cancel_workflows([handle.workflow_id for handle in handles[1:]])

    assert {row(handle.workflow_id).status for handle in handles[1:]} == {"CANCELLED"}


def test_the_clock_of_this_machine_does_not_move_a_rate_window(
    dbos: type[DBOS], config: DBOSConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL: five minutes ahead, a process would otherwise find every window empty."""
    if not engine().settings.system_database_url.startswith("postgres"):
        pytest.skip("on SQLite all processes have one clock")
    queue = Queue("q", limiter={"limit": 1, "period": 60})

    @dbos.workflow()
    def workflow() -> None:
        return None

    dbos.launch()
    queue.enqueue(workflow).get_result()
    now_ms = engine().clock.now_ms
    monkeypatch.setattr(engine().clock, "now_ms", lambda: now_ms() + 300_000)

    second = queue.enqueue(workflow)
    eventually(lambda: queue.name in dispatcher_of()._queues)
    settle(queue)

    assert second.get_status().status == "ENQUEUED"


def test_a_busy_partition_leaves_the_others_alone(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=1, partition_queue=True)
    crowd = Crowd()

    @dbos.workflow()
    def workflow(name: str) -> str:
        crowd.stay(name)
        return name

    dbos.launch()
    for name, key in (("a", "busy"), ("b", "busy"), ("c", "idle")):
        with SetEnqueueOptions(queue_partition_key=key):
            queue.enqueue(workflow, name)
    eventually(lambda: len(crowd.inside) == 2)
    settle(queue)
    inside = sorted(crowd.inside)
    crowd.let_go(3)

    assert inside == ["a", "c"]
    eventually(lambda: crowd.order[2:] == ["b"])


# -- order -------------------------------------------------------------------------------------------------------------


def test_work_begins_in_order_of_priority_and_then_of_enqueueing(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue("q", concurrency=1, priority_enabled=True)
    order: list[str] = []

    @dbos.workflow()
    def workflow(name: str) -> None:
        order.append(name)

    monkeypatch.setattr(engine().clock, "now_ms", iter(range(2_000_000_000_000, 0, -1)).__next__)  # time runs backwards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher.Dispatcher, "_dispatch", lambda *_: 0)
        dbos.launch()
        for name, priority in (("c1", 2), ("b1", 1), ("c2", 2), ("b2", 1), ("b3", 1)):
            with SetEnqueueOptions(priority=priority):
                queue.enqueue(workflow, name)
        queue.enqueue(workflow, "a1")
        queue.enqueue_many(workflow, [(f"a{number}",) for number in range(2, 13)])
    dispatcher_of().dispatch_soon(None)

    eventually(lambda: len(order) == 17)
    assert order == [f"a{number}" for number in range(1, 13)] + ["b1", "b2", "b3", "c1", "c2"]


# -- delays and deadlines ----------------------------------------------------------------------------------------------


def test_a_delayed_workflow_runs_when_its_delay_is_over(dbos: type[DBOS]) -> None:
    queue = Queue("q")

    @dbos.workflow()
    def workflow() -> float:
        return time.time() * 1000

    dbos.launch()
    with SetEnqueueOptions(delay_seconds=0.3):
        handle = queue.enqueue(workflow)
    before = handle.get_status()
    began_ms = handle.get_result()

    assert before.status == "DELAYED"
    assert before.delay_until_epoch_ms is not None
    assert began_ms >= before.delay_until_epoch_ms - 1  # of two clocks on PostgreSQL


def test_a_delay_is_over_to_the_moment_and_not_at_the_next_look(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue("q")

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    monkeypatch.setattr(dispatcher, "SAFETY_NET_S", 1000.0)  # nothing is left to the safety net
    engine().registry.queues["q"] = replace(engine().registry.queues["q"], polling_interval_s=1000.0)
    dbos.launch()
    with SetEnqueueOptions(delay_seconds=0.1):
        first = queue.enqueue(workflow)
    with SetEnqueueOptions(delay_seconds=1000):
        second = queue.enqueue(workflow)
    dbos.set_workflow_delay(second.workflow_id, delay_seconds=0.1)

    assert (first.get_result(), second.get_result()) == ("done", "done")


def test_a_delayed_workflow_that_is_cancelled_never_runs_and_one_that_is_resumed_runs_at_once(
    dbos: type[DBOS],
) -> None:
    queue = Queue("q")
    calls: list[str] = []

    @dbos.workflow()
    def workflow(name: str) -> str:
        calls.append(name)
        return name

    dbos.launch()
    with SetEnqueueOptions(delay_seconds=1000):
        cancelled, resumed, hastened = [queue.enqueue(workflow, name) for name in ("a", "b", "c")]
    dbos.cancel_workflow(cancelled.workflow_id)
    dbos.resume_workflow(resumed.workflow_id)
    dbos.set_workflow_delay(hastened.workflow_id, delay_seconds=0)

    assert (resumed.get_result(), hastened.get_result()) == ("b", "c")
    assert sorted(calls) == ["b", "c"]
    assert cancelled.get_status().status == "CANCELLED"


def test_a_delay_that_ends_while_nobody_runs_is_made_up_for(dbos: type[DBOS], config: DBOSConfig) -> None:
    queue = Queue("q")

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    with SetEnqueueOptions(delay_seconds=1000), SetWorkflowID("late"):
        queue.enqueue(workflow)
    change("UPDATE dbos.workflow_status SET delay_until_epoch_ms = 1")  # it passes during an outage
    DBOS.destroy()

    DBOS(config=config)
    DBOS.launch()

    assert DBOS.retrieve_workflow("late").get_result() == "done"


def test_a_timeout_begins_when_the_workflow_leaves_its_queue(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=1)
    gate = threading.Event()

    @dbos.workflow()
    def first() -> None:
        assert gate.wait(PATIENCE_S)

    @dbos.workflow()
    def second() -> str:
        return "in time"

    dbos.launch()
    queue.enqueue(first)
    with SetWorkflowTimeout(5):
        handle = queue.enqueue(second)
    waiting = row(handle.workflow_id)
    gate.set()
    result = handle.get_result()
    began = row(handle.workflow_id)

    assert result == "in time"
    assert (waiting.workflow_timeout_ms, waiting.workflow_deadline_epoch_ms) == (5000, None)
    assert began.started_at_epoch_ms is not None
    assert began.workflow_deadline_epoch_ms == began.started_at_epoch_ms + 5000


def test_a_child_misses_its_parents_deadline_while_it_waits(dbos: type[DBOS], dbos_virtual_time: VirtualTime) -> None:
    queue = Queue("blocked", concurrency=1)
    calls: list[str] = []

    @dbos.workflow()
    def block() -> None:
        dbos.sleep(3600)

    @dbos.workflow()
    def child() -> None:
        calls.append("child")

    @dbos.workflow()
    def parent() -> str:
        return queue.enqueue(child).workflow_id

    dbos.launch()
    queue.enqueue(block)
    with SetWorkflowTimeout(60):
        child_id = dbos.start_workflow(parent).get_result()

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        dbos.retrieve_workflow(child_id).get_result()

    assert (row(child_id).queue_name, calls) == (None, [])


# -- what is wrong with one --------------------------------------------------------------------------------------------


def test_what_cannot_be_begun_stops_no_other_of_its_claim(dbos: type[DBOS]) -> None:
    queue = Queue("q")

    @dbos.workflow()
    def good(number: int) -> int:
        return number

    @dbos.workflow()
    def missing() -> None:
        return None

    dbos.launch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher.Dispatcher, "_dispatch", lambda *_: 0)
        handles = [queue.enqueue(good, number) for number in range(3)]
        unknown = queue.enqueue(missing)
        broken = queue.enqueue(good, 7)
        handles += [queue.enqueue(good, number) for number in range(3, 6)]
        del engine().registry.workflows[unknown.get_status().name]
        change("UPDATE dbos.workflow_status SET inputs = 'no JSON' WHERE workflow_uuid = :id", id=broken.workflow_id)
    dispatcher_of().dispatch_soon(None)

    assert [handle.get_result() for handle in handles] == list(range(6))
    with pytest.raises(Exception, match=r".+"):
        broken.get_result()
    assert (broken.get_status().status, unknown.get_status().status) == ("ERROR", "ENQUEUED")


def test_a_queue_that_cannot_be_claimed_from_stops_no_other_and_recovers(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Queue("bad"), Queue("good")
    claim = dispatch_queue
    fails = threading.Event()
    fails.set()
    monkeypatch.setattr(
        dispatcher,
        "dispatch_queue",
        lambda engine, config, *more: (
            1 / 0 if config.name == "bad" and fails.is_set() else claim(engine, config, *more)
        ),
    )

    @dbos.workflow()
    def workflow(name: str) -> str:
        return name

    dbos.launch()
    first = bad.enqueue(workflow, "bad")
    results = [good.enqueue(workflow, str(number)).get_result() for number in range(3)]
    fails.clear()

    assert results == ["0", "1", "2"]
    assert first.get_result() == "bad"


def test_what_ends_when_it_is_claimed_frees_its_place_at_once(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue("q", concurrency=1)

    @dbos.workflow()
    def workflow(name: str) -> str:
        return name

    dbos.launch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher.Dispatcher, "_dispatch", lambda *_: 0)
        queue.enqueue_many(workflow, [("broken",) for _ in range(20)])
        change("UPDATE dbos.workflow_status SET inputs = 'no JSON'")
        good = queue.enqueue(workflow, "good")
    monkeypatch.setattr(dispatcher, "SAFETY_NET_S", 1000.0)  # nothing is left to the safety net
    dispatcher_of().dispatch_soon(None)

    assert good.get_result() == "good"


def test_a_resumed_workflow_leaves_its_partitioned_queue_and_runs_once(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=1, partition_queue=True)
    crowd = Crowd()

    @dbos.workflow()
    def workflow(name: str) -> str:
        crowd.stay(name)
        return name

    dbos.launch()
    with SetEnqueueOptions(queue_partition_key="k"):
        blocking, blocked = queue.enqueue(workflow, "a"), queue.enqueue(workflow, "b")
    eventually(lambda: crowd.inside == ["a"])
    dbos.resume_workflow(blocked.workflow_id)
    eventually(lambda: sorted(crowd.inside) == ["a", "b"])
    crowd.let_go(2)

    assert (blocking.get_result(), blocked.get_result()) == ("a", "b")
    assert crowd.order == ["a", "b"]


def test_cancelling_what_runs_frees_its_place(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=1)

    @dbos.workflow()
    def sleeper() -> None:
        DBOS.sleep(1000)

    @dbos.workflow()
    def quick() -> str:
        return "done"

    dbos.launch()
    first = queue.enqueue(sleeper)
    eventually(lambda: first.get_status().status == "PENDING")
    second = queue.enqueue(quick)

    dbos.cancel_workflow(first.workflow_id)

    assert second.get_result() == "done"


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_a_large_backlog_is_claimed_in_bounded_pieces_by_a_bounded_number_of_threads(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue("q")
    claims: list[int] = []

    def dispatch(*arguments: Any) -> Begun:
        begun = dispatch_queue(*arguments)
        claims.append(len(begun.runs))
        return begun

    monkeypatch.setattr(dispatcher, "dispatch_queue", dispatch)

    @dbos.workflow()
    def workflow(number: int) -> int:
        return number

    dbos.launch()
    handles = queue.enqueue_many(workflow, [(number,) for number in range(3000)])

    assert [handle.get_result() for handle in handles] == list(range(3000))
    assert max(claims) <= dispatcher.MAX_CLAIM
    assert sum(claims) == 3000
    executors = [thread for thread in threading.enumerate() if thread.name.startswith("dbos-executor")]
    assert len(executors) <= engine().settings.max_executor_threads


def test_a_parent_that_waits_for_its_children_leaves_them_room(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "MAX_AWAKE_COROUTINES", 3)
    queue = Queue("q")

    @dbos.workflow()
    async def child(number: int) -> int:
        await asyncio.sleep(0)
        return number

    @dbos.workflow()
    async def parent(number: int) -> int:
        handle = await queue.enqueue_async(child, number)
        return await handle.get_result()

    dbos.launch()
    handles = [queue.enqueue(parent, number) for number in range(20)]

    assert [handle.get_result() for handle in handles] == list(range(20))


def test_the_coroutines_that_are_awake_are_counted_once_a_round(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They once were for each queue, and twice: every run was looked at, while none could begin or end."""
    monkeypatch.setattr(dispatcher, "MAX_AWAKE_COROUTINES", 1)
    for number in range(20):
        Queue(f"q{number}")
    crowd = Crowd()

    @dbos.workflow()
    def workflow() -> None:
        crowd.stay("a thread")

    dbos.launch()
    dispatcher_of().stop()
    handle = dbos.start_workflow(workflow)
    counts: list[int] = []
    count = engine().runs.count_awake_coroutines

    def count_and_note() -> int:
        counts.append(count())
        return counts[-1]

    monkeypatch.setattr(engine().runs, "count_awake_coroutines", count_and_note)
    for queue in dispatcher_of()._queues.values():
        queue.due = 0.0

    dispatcher_of().work_once()
    crowd.let_go()
    handle.get_result()

    assert counts == [0]


def test_what_is_told_all_the_time_is_looked_at_now_and_then(dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each delayed enqueue, wherever it was made, was a look in every process."""
    dbos.launch()
    service = dispatcher_of()
    service.stop()
    for queue in service._queues.values():
        queue.due = float("inf")
    monkeypatch.setattr(dispatcher, "SPACING_S", 1.0)
    looks: list[float] = []
    look = service._look

    def note(now: float) -> None:
        looks.append(now)
        look(now)

    monkeypatch.setattr(service, "_look", note)

    delay: float | None = None
    for _ in range(3):
        service._look_not_before = 0.0
        for _ in range(10):
            service.dispatch_soon(None)
            delay = service.work_once()

    assert len(looks) == 3
    assert delay is not None
    assert 0 < delay <= 1


def test_a_queue_of_coroutines_that_was_empty_for_a_while_needs_no_free_thread(dbos: type[DBOS]) -> None:
    queue = Queue("q")
    crowd = Crowd()

    @dbos.workflow()
    def blocking() -> None:
        crowd.stay("a thread")

    @dbos.workflow()
    async def coroutine() -> str:
        return "done"

    dbos.launch()
    queue.enqueue(coroutine).get_result()
    settle(queue)  # nothing is there
    handles = [dbos.start_workflow(blocking) for _ in range(engine().workers.free)]

    try:
        assert queue.enqueue(coroutine).get_result() == "done"
    finally:
        crowd.let_go(len(handles))
    for handle in handles:
        handle.get_result()


def test_hundreds_of_idle_queues_cost_one_look_at_them_all(
    dbos: type[DBOS], dbos_virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    queues = [Queue(f"q{number}") for number in range(200)]
    asked: list[str] = []

    def note(verb: Any, *arguments: Any) -> Any:
        if threading.current_thread().name == "dbos-dispatcher":
            asked.append(getattr(verb, "__name__", ""))
        return read(verb, *arguments)

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    queues[77].enqueue(workflow).get_result()
    read = engine().db.read
    monkeypatch.setattr(engine().db, "read", note)
    dbos_virtual_time.advance(3)

    assert len(asked) >= 2
    assert set(asked) == {"look"}


def test_a_coroutine_that_waits_for_nothing_the_collector_knows_is_not_collected(dbos: type[DBOS]) -> None:
    queue = Queue("q")
    futures: list[asyncio.Future[str]] = []

    @dbos.workflow()
    async def workflow() -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        futures.append(future)
        return await future

    dbos.launch()
    handle = queue.enqueue(workflow)
    eventually(lambda: futures)
    gc.collect()
    future = futures.pop()
    future.get_loop().call_soon_threadsafe(future.set_result, "kept")

    assert handle.get_result() == "kept"


def test_a_coroutine_that_fails_leaves_no_complaint_about_it(
    dbos: type[DBOS], caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue("q")

    @dbos.workflow()
    async def workflow() -> None:
        raise ValueError("no")

    dbos.launch()
    with pytest.raises(ValueError, match="no"):
        queue.enqueue(workflow).get_result()
    gc.collect()

    assert "never retrieved" not in caplog.text


# -- who listens -------------------------------------------------------------------------------------------------------


def test_a_queue_that_nobody_listens_to_keeps_its_work_in_sight_until_somebody_does(
    dbos: type[DBOS], config: DBOSConfig
) -> None:
    heard, unheard = Queue("heard"), Queue("unheard")

    @dbos.workflow()
    def workflow(name: str) -> str:
        return name

    dbos.listen_queues([heard])
    dbos.launch()
    waiting = unheard.enqueue(workflow, "later")
    assert heard.enqueue(workflow, "now").get_result() == "now"
    seen = [status.workflow_id for status in dbos.list_queued_workflows(queue_name="unheard")]
    resumed = unheard.enqueue(workflow, "by the internal queue")
    dbos.resume_workflow(resumed.workflow_id)
    assert resumed.get_result() == "by the internal queue"
    before = waiting.get_status().status
    DBOS.destroy()

    DBOS(config=config)
    DBOS.launch()

    assert seen == [waiting.workflow_id]
    assert before == "ENQUEUED"
    assert DBOS.retrieve_workflow(waiting.workflow_id).get_result() == "later"


def test_work_of_another_version_waits_and_takes_no_place(dbos: type[DBOS]) -> None:
    queue = Queue("q", concurrency=1)

    @dbos.workflow()
    def workflow(name: str) -> str:
        return name

    dbos.launch()
    with SetEnqueueOptions(app_version="another"):
        other = queue.enqueue(workflow, "other")
    own = queue.enqueue(workflow, "own")

    assert own.get_result() == "own"
    assert other.get_status().status == "ENQUEUED"


def test_what_is_of_no_version_runs_with_the_latest_only(dbos: type[DBOS]) -> None:
    queue = Queue("q")

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    db = engine().db
    db.change(db.versions.register, "newer", "newer", db.now_ms() + 1000)
    with SetWorkflowID("unversioned"):
        dbos.enqueue_workflow_with_options({"workflow_name": workflow.__qualname__, "queue_name": "q"})
    eventually(lambda: queue.name in dispatcher_of()._queues)
    settle(queue)
    before = row("unversioned").status
    dbos.set_latest_application_version("test")
    dispatcher_of().dispatch_soon(None)

    assert before == "ENQUEUED"
    assert dbos.retrieve_workflow("unversioned").get_result() == "done"


# -- registered queues -------------------------------------------------------------------------------------------------


def test_a_registered_queue_is_served_changed_paused_deleted_and_registered_again(dbos: type[DBOS]) -> None:
    crowd = Crowd()

    @dbos.workflow()
    def workflow(name: str) -> str:
        crowd.stay(name)
        return name

    dbos.launch()
    queue = dbos.register_queue("r", global_concurrency=1)
    handles = [dbos.enqueue_workflow("r", workflow, name) for name in "abcd"]
    eventually(lambda: crowd.inside == ["a"])
    queue.set_global_concurrency(2)
    eventually(lambda: crowd.inside == ["a", "b"])
    queue.pause()
    crowd.let_go(2)
    assert [handle.get_result() for handle in handles[:2]] == ["a", "b"]
    while_paused = handles[2].get_status().status
    dbos.delete_queue("r")
    crowd.let_go(2)
    eventually(lambda: "r" not in dispatcher_of()._queues)
    without_queue = handles[2].get_status().status
    dbos.register_queue("r")

    assert [handle.get_result() for handle in handles[2:]] == ["c", "d"]
    assert (while_paused, without_queue) == ("ENQUEUED", "ENQUEUED")


def test_settings_that_were_changed_by_hand_are_noticed(dbos: type[DBOS], dbos_virtual_time: VirtualTime) -> None:
    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    queue = dbos.register_queue("r")
    queue.pause()
    dbos_virtual_time.advance(1)
    assert dispatcher_of()._queues["r"].config.is_paused
    handle = dbos.enqueue_workflow("r", workflow)

    change("UPDATE dbos.queues SET is_paused = FALSE, updated_at = updated_at + 1")

    assert handle.get_result() == "done"


# -- lost answers ------------------------------------------------------------------------------------------------------


def test_a_claim_that_is_committed_and_not_opened_is_given_back_at_once(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue("q")
    failures = [OSError("no histories today")]

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    history = engine().db.operations.history

    def read(connection: Connection, ids: Any) -> Any:
        if failures:
            raise failures.pop()
        return history(connection, ids)

    monkeypatch.setattr(engine().db.operations, "history", read)
    handle = queue.enqueue(workflow)

    assert handle.get_result() == "done"
    assert row(handle.workflow_id).recovery_attempts == 1


def test_runs_know_the_queue_they_came_from(dbos: type[DBOS]) -> None:
    queue = Queue("q", partition_queue=True)
    gate, seen = threading.Event(), []

    @dbos.workflow()
    def workflow() -> None:
        assert gate.wait(PATIENCE_S)

    dbos.launch()
    with SetEnqueueOptions(queue_partition_key="k"):
        handle = queue.enqueue(workflow)
    eventually(lambda: engine().runs.get(handle.workflow_id))
    run = engine().runs.get(handle.workflow_id)
    assert isinstance(run, Run)
    seen.append((run.queue_name, run.partition_key, engine().runs.of_queue("q")))
    gate.set()
    handle.get_result()

    assert seen == [("q", "k", {"k": 1})]
