"""Two executions of one workflow: one of them counts, and the other stops without a trace.

They are set up as they come about: a run is taken over while it is inside of a step, its workflow is resumed or deleted
meanwhile, or two processes run under one token, which only a fault of ours could cause.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, SetWorkflowID
from dbos._clock import VirtualClock
from dbos._context import Context
from dbos._core import decorate_step, decorate_workflow
from dbos._dbos_config import process_config
from dbos._engine.engine import Engine
from dbos._engine.execution import execute
from dbos._engine.flow import drive, drive_async
from dbos._engine.run import Run
from dbos._engine.start import begin
from dbos._engine.step import StepPolicy
from dbos._error import DBOSNonExistentWorkflowError
from dbos._ids import new_token
from dbos._registry import Registry
from dbos._services.leases import Leases
from dbos._sys_db import SystemDatabase
from tests.integration.histories import PATIENCE_S, change, engine, eventually, row, steps


class Place:
    """Where an execution is held until the test lets it go on."""

    def __init__(self) -> None:
        self._is_reached, self._is_open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self._is_reached.set()
        assert self._is_open.wait(3 * PATIENCE_S)

    def reached(self) -> None:
        assert self._is_reached.wait(PATIENCE_S)

    def open(self) -> None:
        self._is_open.set()


class Body:
    """A step's body that tells the first execution from the second: each is held in it and returns its own text."""

    def __init__(self) -> None:
        self.calls = 0
        self.old, self.new = Place(), Place()

    def __call__(self) -> str:
        self.calls += 1
        if self.calls == 1:
            self.old()
            return "old"
        if self.calls == 2:
            self.new()
        return "new"


def define(dbos: type[DBOS], *, is_async: bool) -> tuple[Body, Callable[[], Any], Callable[[], Any]]:
    """A workflow of two steps, and a function that calls it directly under the id ``wf`` and waits for its result."""
    body = Body()

    @dbos.step(name="step")
    def step() -> str:
        return body()

    @dbos.step(name="step_async")
    async def step_async() -> str:
        return await asyncio.to_thread(body)

    @dbos.workflow(name="work")
    def work() -> list[str]:
        return [step(), step()]

    @dbos.workflow(name="work_async")
    async def work_async() -> list[str]:
        return [await step_async(), await step_async()]

    def call() -> Any:
        with SetWorkflowID("wf"):
            return asyncio.run(work_async()) if is_async else work()

    return body, work_async if is_async else work, call


class Caller:
    """A thread that calls something, and what became of that."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def ended(self) -> Caller:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self


def lose_to_another() -> None:
    """Have somebody else take over the workflow, while nobody here has noticed."""
    change(
        "UPDATE dbos.workflow_status SET status = 'ENQUEUED', owner_instance = NULL, run_token = NULL, "
        "queue_name = '_dbos_internal_queue', started_at_epoch_ms = NULL"
    )
    engine().dispatch(None)


@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "coroutine"])
def test_an_execution_that_lost_stops_at_its_step_and_its_caller_gets_the_winners_result(
    dbos: type[DBOS], is_async: bool
) -> None:
    body, _, call = define(dbos, is_async=is_async)
    dbos.launch()
    caller = Caller(call)
    body.old.reached()

    old_run = engine().runs.get("wf")
    assert old_run is not None
    lose_to_another()
    body.new.reached()
    body.old.open()
    assert old_run.finished.wait(PATIENCE_S)
    recorded = steps("wf")
    body.new.open()

    assert recorded == []
    assert caller.ended().error is None
    assert caller.result == ["new", "new"]
    assert body.calls == 3  # its second step did not begin


def test_who_waits_for_an_execution_that_lost_is_answered_by_the_one_that_won(dbos: type[DBOS]) -> None:
    """Its step may take for ever, and the process that is inside of it may not know yet that it lost."""
    body, workflow, _ = define(dbos, is_async=False)
    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)
    body.old.reached()
    waiting = [Caller(handle.get_result), Caller(lambda: dbos.get_result("wf"))]
    body.new.open()

    lose_to_another()

    try:
        assert [caller.ended().result for caller in waiting] == [["new", "new"]] * 2
    finally:
        body.old.open()


@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "coroutine"])
def test_the_caller_of_an_execution_whose_workflow_was_deleted_is_told_so(dbos: type[DBOS], is_async: bool) -> None:
    body, _, call = define(dbos, is_async=is_async)
    dbos.launch()
    caller = Caller(call)
    body.old.reached()

    change("DELETE FROM dbos.workflow_status")
    body.old.open()

    assert isinstance(caller.ended().error, DBOSNonExistentWorkflowError)
    assert steps("wf") == []
    assert dbos.list_workflows() == []
    assert body.calls == 1


@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "coroutine"])
@pytest.mark.parametrize("again", ["resumed", "deleted and started anew"])
def test_a_run_that_outlives_its_workflow_changes_nothing_in_the_one_that_follows(
    dbos: type[DBOS], is_async: bool, again: str
) -> None:
    body, workflow, _ = define(dbos, is_async=is_async)
    dbos.launch()
    with SetWorkflowID("wf"):
        first = dbos.start_workflow(workflow)
    body.old.reached()
    old_run = engine().runs.get("wf")
    assert old_run is not None

    if again == "resumed":
        dbos.cancel_workflow("wf")
        dbos.resume_workflow("wf")
    else:
        change("DELETE FROM dbos.workflow_status")
        with SetWorkflowID("wf"):
            dbos.start_workflow(workflow)
    body.new.reached()
    before = row("wf")
    body.old.open()
    assert old_run.finished.wait(PATIENCE_S)
    after, recorded = row("wf"), steps("wf")
    body.new.open()

    assert (after, recorded) == (before, [])
    assert dbos.retrieve_workflow("wf").get_result() == first.get_result() == ["new", "new"]
    assert body.calls == 3
    eventually(lambda: engine().runs.all() == [])


@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "coroutine"])
def test_a_step_that_was_running_when_its_workflow_was_cancelled_is_not_run_again(
    dbos: type[DBOS], is_async: bool
) -> None:
    body, workflow, _ = define(dbos, is_async=is_async)
    dbos.launch()
    with SetWorkflowID("wf"):
        dbos.start_workflow(workflow)
    body.old.reached()

    body.new.open()

    dbos.cancel_workflow("wf")
    body.old.open()
    eventually(lambda: engine().runs.all() == [])

    assert [each.output for each in steps("wf")] == ['"old"']
    assert body.calls == 1
    assert dbos.resume_workflow("wf").get_result() == ["old", "new"]
    assert body.calls == 2


# -- two owners of one run ---------------------------------------------------------------------------------------------


class Executor:
    """An executor without threads, on a clock that stands still."""

    def __init__(
        self, config: DBOSConfig, clock: VirtualClock, step: Callable[[], Any], after_step: Callable[[], Any]
    ) -> None:
        settings = process_config(config)
        self.registry: Registry[Engine] = Registry()
        policy = StepPolicy()
        decorated = decorate_step(self.registry, step, name="step", policy=policy)

        def work() -> Any:
            result = decorated()
            after_step()
            return result

        async def work_async() -> Any:
            result = await decorated()
            await asyncio.to_thread(after_step)
            return result

        is_async = asyncio.iscoroutinefunction(step)
        decorate_workflow(
            self.registry,
            work_async if is_async else work,
            name="work",
            max_recovery_attempts=None,
            serialization_type=None,
            validate_args=None,
        )
        self.engine = Engine(settings, self.registry, clock)
        self.registry.engine = self.engine
        self.engine.open(SystemDatabase(settings, clock, self.engine.instance_id))
        Leases(self.engine).register()

    def begin(self) -> Run:
        run = drive(self.engine, begin(self.engine, self.registry.workflows["work"], (), {}, Context()))
        assert isinstance(run, Run)
        return run

    def double(self, run: Run) -> Run:
        """The same run once more, under the same token."""
        double = Run(
            workflow_id=run.workflow_id,
            run_token=run.run_token,
            start_token=run.start_token,
            function=self.registry.workflows["work"],
            args=(),
            kwargs={},
            context=Context(),
            format=run.format,
            deadline_ms=None,
            history={},
        )
        self.engine.runs.add(double)
        return double

    def execute(self, run: Run) -> Any:
        if run.function.is_async:
            asyncio.run(drive_async(self.engine, execute(self.engine, run)))
        else:
            drive(self.engine, execute(self.engine, run))
        return run.outcome


@pytest.fixture
def executors() -> Iterator[Callable[..., Executor]]:
    with ExitStack() as opened:

        def build(*arguments: Any) -> Executor:
            executor = Executor(*arguments)
            opened.callback(executor.engine.close)
            return executor

        yield build


@pytest.mark.parametrize("is_async", [False, True], ids=["threads", "coroutines"])
def test_of_two_executions_that_end_a_step_in_the_same_millisecond_one_wins_and_the_other_adopts_its_result(
    config: DBOSConfig, executors: Callable[..., Executor], is_async: bool
) -> None:
    """Nothing tells their records apart but what they say: not the time, and not the token."""
    together = threading.Barrier(2, timeout=PATIENCE_S)

    def step() -> str:
        together.wait()
        return new_token()

    async def step_async() -> str:
        await asyncio.to_thread(together.wait)
        return new_token()

    clock = VirtualClock()
    one, other = (executors(config, clock, step_async if is_async else step, together.wait) for _ in range(2))
    for _ in range(10):
        run = one.begin()
        double = other.double(run)

        callers = [Caller(partial(one.execute, run)), Caller(partial(other.execute, double))]
        outcomes = [caller.ended().result for caller in callers]

        [recorded] = one.engine.db.read(one.engine.db.operations.steps, run.workflow_id)
        assert [caller.error for caller in callers] == [None, None]
        assert recorded.completed_at_epoch_ms == clock.now_ms()
        values = {one.engine.serialization.load_value(recorded.output, recorded.serialization)}
        assert {outcome.value for outcome in outcomes} == values
