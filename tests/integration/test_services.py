"""Background services: their common contract, and one round of each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, SetWorkflowID
from dbos._clock import VirtualClock
from dbos._context import Context, SetWorkflowTimeout, current_context
from dbos._core import decorate_workflow
from dbos._dbos_config import process_config
from dbos._engine.engine import Engine
from dbos._engine.flow import drive
from dbos._engine.run import Run
from dbos._engine.start import begin
from dbos._error import DBOSDatabaseUnavailableError, ExecutorFencedError
from dbos._process import process as _process
from dbos._registry import Registry
from dbos._services import deadlines
from dbos._services.deadlines import Deadlines
from dbos._services.dispatcher import REGISTRATION_GRACE_S, Dispatcher
from dbos._services.leases import Leases
from dbos._services.notifier import Notifier
from dbos._services.recovery import Recovery
from dbos._services.service import Service
from dbos._sys_db import SystemDatabase
from dbos._sysdb.wakeups import Signal, workflow_key
from dbos.testing._postgres_server import Cluster
from tests.acceptance.harness import until

WAIT_S = 30.0

# -- the contract ------------------------------------------------------------------------------------------------------


class Rounds(Service):
    """Counts its rounds; what it is told to raise, it raises once."""

    name = "rounds"

    def __init__(self, delay_s: float | None = None) -> None:
        super().__init__()
        self.count = threading.Semaphore(0)
        self.errors: list[BaseException] = []
        self._delay_s = delay_s

    def work_once(self) -> float | None:
        self.count.release()
        if self.errors:
            raise self.errors.pop()
        return self._delay_s


@pytest.fixture
def service() -> Iterator[Rounds]:
    service = Rounds()
    yield service
    service.stop()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "dbos-rounds"]


def test_a_service_works_when_it_starts_and_when_it_is_woken(service: Rounds) -> None:
    service.start()
    started = service.count.acquire(timeout=WAIT_S)
    service.wake()

    assert started
    assert service.count.acquire(timeout=WAIT_S)


def test_a_service_works_again_when_its_time_has_come() -> None:
    service = Rounds(delay_s=0.001)

    service.start()

    assert all(service.count.acquire(timeout=WAIT_S) for _ in range(3))
    service.stop()


def test_stop_returns_when_the_loop_has_ended_and_may_be_repeated(service: Rounds) -> None:
    service.start()

    service.stop()
    service.stop()

    assert threads() == []


def test_stop_without_start_does_nothing_and_start_works_afterwards(service: Rounds) -> None:
    service.stop()
    service.start()

    assert service.count.acquire(timeout=WAIT_S)
    assert threads() == ["dbos-rounds"]


@pytest.mark.parametrize("error", [ValueError("a bad row"), ExecutorFencedError("instance")], ids=["error", "fenced"])
def test_a_round_that_fails_is_repeated(service: Rounds, error: BaseException) -> None:
    service.errors.append(error)

    service.start()

    assert service.count.acquire(timeout=WAIT_S)
    assert service.count.acquire(timeout=WAIT_S)


def test_a_round_that_is_due_later_than_a_thread_can_wait_does_not_end_the_service() -> None:
    service = Rounds(delay_s=1e15)
    service.start()
    first = service.count.acquire(timeout=WAIT_S)

    service.wake()

    assert first
    assert service.count.acquire(timeout=WAIT_S)
    service.stop()


# -- single rounds -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def engine(config: DBOSConfig, clock: VirtualClock) -> Iterator[Engine]:
    """An open and registered engine without threads of its own."""
    settings = process_config({**config, "max_executor_threads": 2})
    registry: Registry[Engine] = Registry()
    decorate_workflow(
        registry, lambda: "done", name="work", max_recovery_attempts=100, serialization_type=None, validate_args=None
    )
    engine = Engine(settings, registry, clock)
    engine.open(SystemDatabase(settings, clock, engine.instance_id))
    Leases(engine).register()
    yield engine
    engine.workers.close()
    engine.close()


def start(engine: Engine, workflow_id: str, timeout_s: float | None = None) -> Run:
    """Make a workflow's row; it is not executed."""
    with SetWorkflowID(workflow_id), SetWorkflowTimeout(timeout_s):
        context = current_context() or Context()
        run = drive(engine, begin(engine, engine.registry.workflows["work"], (), {}, context))
    assert isinstance(run, Run)
    return run


def status(engine: Engine, workflow_id: str) -> str:
    row = engine.db.read(engine.db.workflows.get, workflow_id)
    assert row is not None
    return row.status


def enqueue(engine: Engine, *workflow_ids: str) -> None:
    for workflow_id in workflow_ids:
        run = start(engine, workflow_id)
        engine.runs.remove(run)
        engine.db.change(engine.db.workflows.give_back, workflow_id, run.run_token, 0)


def test_the_dispatcher_begins_what_waits_in_the_internal_queue(engine: Engine) -> None:
    enqueue(engine, "one", "two")

    begun = Dispatcher(engine).dispatch_once()

    assert begun == 2
    until(lambda: {status(engine, "one"), status(engine, "two")} == {"SUCCESS"}, "both to end")
    assert Dispatcher(engine).dispatch_once() == 0


def test_the_dispatcher_takes_no_more_than_there_is_room_for(engine: Engine) -> None:
    gate = threading.Event()

    def wait() -> None:
        gate.wait(WAIT_S)

    for _ in range(2):
        engine.workers.submit(wait)
    enqueue(engine, "one")

    while_full = Dispatcher(engine).dispatch_once()
    gate.set()

    assert while_full == 0
    assert status(engine, "one") == "ENQUEUED"
    until(lambda: Dispatcher(engine).dispatch_once() == 1, "a free thread")


def test_what_nobody_here_knows_is_tried_again_a_moment_after_a_registration(
    engine: Engine, clock: VirtualClock
) -> None:
    """A moment, because a configured instance registers itself before its constructor has come to its end."""
    enqueue(engine, "one")
    known = engine.registry.workflows.pop("work")
    dispatcher = Dispatcher(engine)
    unknown = dispatcher.dispatch_once()
    engine.registry.workflows["work"] = known

    dispatcher.retry_unknown_targets()
    at_once = dispatcher.dispatch_once()
    clock.advance(REGISTRATION_GRACE_S)
    later = dispatcher.dispatch_once()

    assert (unknown, at_once, later) == (0, 0, 1)


def test_deadlines_cancel_what_is_overdue_and_tell_when_the_next_is_due(config: DBOSConfig, engine: Engine) -> None:
    early, late = start(engine, "early", 10), start(engine, "late", 20)
    service = Deadlines(engine)
    service.watch(late)
    service.watch(early)
    assert early.deadline_ms is not None

    before = service.cancel_overdue_once()
    engine.clock.advance(10.001)  # type: ignore[attr-defined]  # a virtual clock
    after = service.cancel_overdue_once()

    assert (before, after) == (early.deadline_ms, late.deadline_ms)
    assert early.is_interrupted
    assert not late.is_interrupted
    assert (status(engine, "early"), status(engine, "late")) == ("CANCELLED", "PENDING")


def test_a_run_that_ended_before_its_deadline_is_not_cancelled(engine: Engine) -> None:
    run = start(engine, "one", 10)
    service = Deadlines(engine)
    service.watch(run)
    engine.runs.remove(run)

    engine.clock.advance(11)  # type: ignore[attr-defined]
    service.cancel_overdue_once()

    assert not run.is_interrupted
    assert service.work_once() is None


def test_deadlines_let_go_of_runs_that_have_ended(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "MIN_CLEANING", 8)
    service = Deadlines(engine)
    first = start(engine, "first", 1)  # the first to be due, so nothing behind it is ever at the front
    service.watch(first)

    for number in range(100):
        run = start(engine, f"run-{number}", 3600)
        service.watch(run)
        engine.runs.remove(run)

    assert len(service._heap) <= 16


def test_the_notifier_wakes_who_waits_for_a_workflow_that_ended_elsewhere(engine: Engine) -> None:
    start(engine, "running")
    start(engine, "ended")
    engine.db.change(engine.db.workflows.cancel, ["ended"], 0)
    running, ended, deleted = Signal(), Signal(), Signal()
    waiting = engine.db.wakeups.waiting

    with (
        waiting(workflow_key("running"), running),
        waiting(workflow_key("ended"), ended),
        waiting(workflow_key("deleted"), deleted),
    ):
        Notifier(engine).check_once()

    assert (running.is_set, ended.is_set, deleted.is_set) == (False, True, True)


# -- up and down -------------------------------------------------------------------------------------------------------


def own_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("dbos-")}


def test_a_launch_that_fails_leaves_nothing_behind_and_can_be_repeated(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    @dbos.workflow()
    def work() -> str:
        return "done"

    def fail(self: Recovery) -> None:
        raise RuntimeError("nothing can be reported today")

    with monkeypatch.context() as patch:
        patch.setattr(Recovery, "report_stranded", fail)
        with pytest.raises(RuntimeError, match="today"):
            dbos.launch()
    left = own_threads()
    dbos.launch()

    assert left == set()
    assert dbos.start_workflow(work).get_result() == "done"
    assert len(_instances()) == 1


def test_destroy_leaves_no_thread_and_no_executor(dbos: type[DBOS], config: DBOSConfig) -> None:
    @dbos.workflow()
    async def work() -> str:
        return "done"

    for _ in range(3):
        dbos.launch()
        assert dbos.start_workflow(work).get_result() == "done"
        dbos.destroy()
        until(lambda: not own_threads(), "the threads to end")
        DBOS(config=config)

    dbos.launch()
    assert len(_instances()) == 1


@pytest.mark.postgres
def test_destroy_returns_although_the_database_is_away(private_postgres: Cluster) -> None:
    url = private_postgres.url("postgres")
    DBOS.destroy(destroy_registry=True)
    DBOS(config={"name": "app", "system_database_url": url, "lease_s": 1, "log_level": "CRITICAL"})
    DBOS.launch()
    private_postgres.stop("immediate")

    ending = threading.Thread(target=DBOS.destroy, daemon=True)
    ending.start()
    ending.join(60)

    assert not ending.is_alive()
    private_postgres.start()


def _instances() -> list[Any]:
    assert _process.runtime is not None
    db = _process.runtime.engine.db
    return db.read(db.executors.list)


def test_whoever_waits_is_told_that_the_database_file_was_deleted(sqlite_url: str, tmp_path: Path) -> None:
    DBOS.destroy(destroy_registry=True)
    DBOS(config={"name": "test-app", "system_database_url": sqlite_url, "lease_s": 0.3})
    begun, go_on = threading.Event(), threading.Event()

    @DBOS.step()
    def step() -> None:
        begun.set()
        go_on.wait()

    @DBOS.workflow()
    def workflow() -> None:
        step()

    DBOS.launch()
    try:
        handle = DBOS.start_workflow(workflow)
        begun.wait()
        for file in tmp_path.glob("dbos.sqlite*"):
            file.unlink()
        go_on.set()

        with pytest.raises(DBOSDatabaseUnavailableError, match="replaced or deleted"):
            handle.get_result()
    finally:
        DBOS.destroy(destroy_registry=True)
