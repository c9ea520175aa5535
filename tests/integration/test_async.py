"""Coroutines: where they run, what cancels them and what does not, and that nothing is left lying about."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from dbos import DBOS, DBOSClient, DBOSConfig, Queue, SetEnqueueOptions, SetWorkflowID
from dbos._error import DBOSAwaitedWorkflowCancelledError, DBOSUnexpectedStepError
from dbos._sysdb.stores.workflow_status import MAX_SMALL
from tests.integration.crashes import Crash
from tests.integration.histories import PATIENCE_S, engine, eventually, execute_again, recorded, row, steps


async def wait_for_runs_to_end() -> None:
    deadline = time.monotonic() + PATIENCE_S
    while engine().runs.all():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_a_called_workflow_runs_on_the_callers_loop_and_a_started_one_too(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> bool:
        return asyncio.get_running_loop() is here

    here = asyncio.get_running_loop()
    dbos.launch()

    assert await workflow()
    assert await (await dbos.start_workflow_async(workflow)).get_result()


def test_started_from_a_thread_it_runs_on_a_loop_of_the_library(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    dbos.launch()

    assert dbos.start_workflow(workflow).get_result() == "dbos-loop"


async def test_a_sync_start_on_a_running_loop_may_be_waited_for_there(dbos: type[DBOS]) -> None:
    @dbos.step()
    async def step() -> int:
        await asyncio.sleep(0)
        return 42

    @dbos.workflow()
    async def workflow() -> int:
        return await step()

    dbos.launch()

    assert dbos.start_workflow(workflow).get_result() == 42


async def test_blocking_the_loop_that_a_workflow_runs_on_is_refused(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> None:
        await may_end.wait()

    may_end = asyncio.Event()
    dbos.launch()
    with SetWorkflowID("wf"):
        handle = await dbos.start_workflow_async(workflow)
    retrieved = await asyncio.to_thread(dbos.retrieve_workflow, "wf")

    with pytest.raises(RuntimeError, match=r"get_result\(\) would block the event loop"):
        retrieved.get_result()

    may_end.set()
    await handle.get_result()


def test_blocking_the_librarys_own_loop_is_refused(dbos: type[DBOS]) -> None:
    """A coroutine workflow that was started by a thread runs there, and so do those that it starts."""

    @dbos.step()
    async def step() -> int:
        return 1

    @dbos.workflow()
    async def child() -> int:
        return await step()

    @dbos.workflow()
    async def workflow() -> int:
        refused = 0
        for start in (child, step):
            handle = dbos.start_workflow(start)
            with pytest.raises(RuntimeError, match=r"get_result\(\) would block the event loop"):
                handle.get_result()
            refused += 1
        for wait in (lambda: dbos.get_result("x"), lambda: dbos.run_step(None, step), lambda: dbos.sleep(3600)):
            with pytest.raises(RuntimeError, match="event loop is running"):
                wait()
            refused += 1
        return refused

    dbos.launch()

    assert dbos.start_workflow(workflow).get_result() == 5
    eventually(lambda: not engine().runs.all())
    assert {status.status for status in dbos.list_workflows()} == {"SUCCESS"}


async def test_sync_workflows_steps_and_transactions_may_be_called_where_a_loop_runs(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> int:
        return 1

    @dbos.transaction()
    def transaction() -> int:
        return 2

    @dbos.workflow()
    def child() -> list[int]:
        return [step(), transaction()]

    @dbos.workflow()
    async def workflow() -> list[Any]:
        return [step(), transaction(), child(), dbos.start_workflow(child).get_result()]

    dbos.launch()

    assert await workflow() == [1, 2, [1, 2], [1, 2]]
    assert await asyncio.to_thread(lambda: dbos.start_workflow(workflow).get_result()) == [1, 2, [1, 2], [1, 2]]


async def test_a_recovered_workflow_runs_on_the_loop_that_ran_at_launch(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> bool:
        if not is_resumed:
            await dbos.sleep_async(3600)
        return asyncio.get_running_loop() is here

    is_resumed = False
    here = asyncio.get_running_loop()
    dbos.launch()
    with SetWorkflowID("wf"):
        await dbos.start_workflow_async(workflow)
    await dbos.cancel_workflow_async("wf")
    await wait_for_runs_to_end()
    is_resumed = True
    await asyncio.to_thread(engine().db.change, lambda connection: connection.run("DELETE FROM dbos.operation_outputs"))

    assert await (await dbos.resume_workflow_async("wf")).get_result()


def test_a_workflow_of_a_loop_that_ended_is_taken_up_on_another(dbos: type[DBOS]) -> None:
    begun: list[str] = []

    @dbos.workflow()
    async def workflow() -> str:
        begun.append(threading.current_thread().name)
        if len(begun) == 1:
            await asyncio.sleep(3600)
        return begun[-1]

    async def main() -> None:
        with SetWorkflowID("wf"):
            await dbos.start_workflow_async(workflow)
        while not begun:
            await asyncio.sleep(0.001)

    dbos.launch()

    asyncio.run(main())

    assert row("wf").status == "PENDING"
    [handle] = dbos._recover_pending_workflows()
    assert handle.get_result() == "dbos-loop"


async def test_a_caller_that_is_cancelled_while_it_awaits_a_started_workflow_leaves_it_running(
    dbos: type[DBOS],
) -> None:
    may_end = asyncio.Event()

    @dbos.step()
    async def step() -> str:
        await may_end.wait()
        return "done"

    @dbos.workflow()
    async def workflow() -> str:
        return await step()

    dbos.launch()

    async def serve() -> Any:
        handle = await dbos.start_workflow_async(workflow)
        return await handle.get_result()

    with SetWorkflowID("wf"):
        request = asyncio.create_task(serve())
    await asyncio.sleep(0.05)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request

    may_end.set()

    assert await dbos.get_result_async("wf") == "done"
    assert recorded("wf") == [(1, step.__qualname__)]


async def test_a_caller_that_is_cancelled_at_any_moment_of_a_start_leaves_a_workflow_that_ends(
    dbos: type[DBOS],
) -> None:
    @dbos.workflow()
    async def workflow() -> str:
        return "done"

    dbos.launch()

    async def start(workflow_id: str) -> None:
        with SetWorkflowID(workflow_id):
            await dbos.start_workflow_async(workflow)

    for turns in range(12):
        request = asyncio.create_task(start(f"wf{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    for status in await dbos.list_workflows_async():
        assert await asyncio.wait_for(dbos.get_result_async(status.workflow_id), PATIENCE_S) == "done"
        assert row(status.workflow_id).recovery_attempts == 1


async def test_a_step_that_a_workflow_gives_up_on_is_not_recorded(dbos: type[DBOS]) -> None:
    @dbos.step(name="slow")
    async def slow() -> None:
        await asyncio.sleep(3600)

    @dbos.step(name="quick")
    async def quick() -> str:
        return "quick"

    @dbos.workflow()
    async def workflow() -> str:
        try:
            async with asyncio.timeout(0.01):
                await slow()
        except TimeoutError:
            return await quick()
        return "slow"

    dbos.launch()

    with SetWorkflowID("wf"):
        assert await workflow() == "quick"

    assert recorded("wf") == [(2, "quick")]


async def test_a_directly_called_workflow_that_is_cancelled_with_its_caller_stays_pending(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> None:
        await asyncio.sleep(3600)

    dbos.launch()

    with SetWorkflowID("wf"), pytest.raises(TimeoutError):
        await asyncio.wait_for(workflow(), 0.05)

    assert row("wf").status == "PENDING"
    assert engine().runs.get("wf") is None


def test_a_directly_called_workflow_that_was_cancelled_with_its_caller_is_taken_up_by_its_own_process(
    config: DBOSConfig,
) -> None:
    config["lease_s"] = 0.3
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)
    calls: list[int] = []

    @DBOS.step(name="step")
    async def step() -> int:
        calls.append(1)
        return len(calls)

    @DBOS.workflow()
    async def workflow() -> int:
        result = await step()
        if len(calls) == 1 and not may_end:
            await asyncio.sleep(3600)
        return result

    async def serve() -> None:
        with SetWorkflowID("wf"):
            await asyncio.wait_for(workflow(), 0.1)

    may_end = False
    DBOS.launch()
    try:
        with pytest.raises(TimeoutError):
            asyncio.run(serve())
        may_end = True

        assert DBOS.get_result("wf") == 1
        assert recorded("wf") == [(1, "step")]
        assert row("wf").recovery_attempts == 2
    finally:
        DBOS.destroy(destroy_registry=True)


async def test_a_cancellation_that_comes_out_of_a_step_is_never_recorded(dbos: type[DBOS]) -> None:
    """As if it had been given up: the step runs again, in this execution or in the next."""
    calls: list[int] = []

    @dbos.step(name="step")
    async def step() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise asyncio.CancelledError
        return "done"

    @dbos.workflow()
    async def workflow() -> str:
        return await step()

    dbos.launch()
    with SetWorkflowID("wf"), pytest.raises(asyncio.CancelledError):
        await workflow()
    assert (recorded("wf"), row("wf").status) == ([], "PENDING")

    for attempt in (2, 3):
        await asyncio.to_thread(dbos._recover_pending_workflows)
        async with asyncio.timeout(PATIENCE_S):
            while len(calls) < attempt:
                await asyncio.sleep(0.005)
        await wait_for_runs_to_end()

    assert (recorded("wf"), row("wf").status) == ([(1, "step")], "SUCCESS")


async def test_a_wait_that_is_cancelled_in_a_workflow_is_not_recorded_and_leaves_nothing_behind(
    dbos: type[DBOS],
) -> None:
    may_end = asyncio.Event()

    @dbos.workflow(name="child")
    async def child() -> str:
        await may_end.wait()
        return "done"

    @dbos.workflow()
    async def workflow() -> str:
        handle = await dbos.start_workflow_async(child)
        for wait in (handle.get_result(), dbos.get_result_async("wf-1")):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wait, 0.02)
        may_end.set()
        return await handle.get_result()

    dbos.launch()

    with SetWorkflowID("wf"):
        assert await workflow() == "done"

    assert recorded("wf") == [(1, "child"), (4, "DBOS.getResult")]
    assert list(engine().db.wakeups.keys()) == []


async def test_workflows_in_the_background_are_not_collected_while_they_wait(dbos: type[DBOS]) -> None:
    futures: list[asyncio.Future[int]] = []

    @dbos.workflow()
    async def workflow() -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        futures.append(future)
        return await future

    dbos.launch()
    ids = [(await dbos.start_workflow_async(workflow)).workflow_id for _ in range(10)]
    await asyncio.sleep(0.02)

    gc.collect()
    for number, future in enumerate(futures):
        future.set_result(number)

    assert sorted([await dbos.get_result_async(each) for each in ids]) == list(range(10))


async def test_a_failed_workflow_that_nobody_awaits_makes_no_noise(dbos: type[DBOS]) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    @dbos.step()
    async def step() -> None:
        raise LookupError("nobody cares")

    @dbos.workflow()
    async def workflow() -> None:
        await asyncio.gather(step(), step(), step())

    dbos.launch()
    with SetWorkflowID("wf"):
        await dbos.start_workflow_async(workflow)

    await wait_for_runs_to_end()
    gc.collect()
    await asyncio.sleep(0)

    assert row("wf").status == "ERROR"
    assert complaints == []


async def test_a_wait_that_is_refused_leaves_no_coroutine_unawaited(dbos: type[DBOS]) -> None:
    @dbos.step()
    async def step() -> None: ...

    @dbos.workflow()
    async def workflow() -> None:
        await dbos.cancel_workflow_async("wf")
        await dbos.asyncio_wait([step(), step()])

    dbos.launch()

    with SetWorkflowID("wf"), pytest.raises(DBOSAwaitedWorkflowCancelledError):
        await workflow()

    gc.collect()


async def test_context_variables_set_in_a_workflow_do_not_leak_and_those_of_the_caller_are_seen(
    dbos: type[DBOS],
) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")

    @dbos.step()
    async def step() -> tuple[str, str | None]:
        return variable.get(), dbos.workflow_id

    @dbos.workflow()
    async def workflow() -> tuple[str, str | None]:
        return await step()

    dbos.launch()
    variable.set("caller's")

    with SetWorkflowID("wf"):
        handle = await dbos.start_workflow_async(workflow)

    assert await handle.get_result() == ("caller's", "wf")
    assert dbos.workflow_id is None
    assert dbos.step_id is None


async def test_workflows_side_by_side_keep_their_contexts_apart(dbos: type[DBOS]) -> None:
    @dbos.step()
    async def step() -> tuple[str | None, int | None]:
        before = dbos.workflow_id, dbos.step_id
        await asyncio.sleep(0.001)
        assert (dbos.workflow_id, dbos.step_id) == before
        return before

    @dbos.workflow()
    async def workflow() -> list[Any]:
        results = list(await asyncio.gather(step(), step()))
        assert dbos.step_id is None
        return results

    dbos.launch()

    async def call(number: int) -> list[Any]:
        with SetWorkflowID(f"wf{number}"):
            return await workflow()

    results = await asyncio.gather(*(call(number) for number in range(20)))

    assert results == [[(f"wf{number}", 1), (f"wf{number}", 2)] for number in range(20)]


async def test_a_sync_workflow_can_be_started_and_awaited_from_a_coroutine(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def child(value: int) -> int:
        return value

    @dbos.workflow()
    async def workflow() -> list[int]:
        handles = [await dbos.start_workflow_async(child, value) for value in range(3)]
        return [await handle.get_result() for handle in handles]

    dbos.launch()

    with SetWorkflowID("wf"):
        assert await workflow() == [0, 1, 2]

    assert [each.child_workflow_id for each in steps("wf")] == ["wf-1", "wf-2", "wf-3", "wf-1", "wf-2", "wf-3"]


async def test_sync_forms_refuse_to_block_a_running_loop_before_they_take_a_function_id(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> None:
        for operation in (
            lambda: dbos.get_workflow_status("x"),
            lambda: dbos.get_result("x"),
            lambda: dbos.retrieve_workflow("x"),
            lambda: dbos.cancel_workflow("x"),
            lambda: dbos.resume_workflow("x"),
            lambda: dbos.list_workflows(),
            lambda: dbos.list_workflow_steps("x"),
            lambda: dbos.run_step(None, print),
        ):
            with pytest.raises(RuntimeError, match=r"was called while an event loop is running. Use await \w+_async"):
                operation()
        await dbos.get_workflow_status_async("x")

    dbos.launch()

    with SetWorkflowID("wf"):
        await workflow()

    assert recorded("wf") == [(1, "DBOS.getStatus")]


def test_more_waiting_coroutines_than_threads_all_end(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def child() -> int:
        await asyncio.sleep(0)
        return 1

    @dbos.workflow()
    async def parent() -> int:
        return await child()

    dbos.launch()
    handles = [dbos.start_workflow(parent) for _ in range(60)]

    assert sum(handle.get_result() for handle in handles) == 60
    eventually(lambda: not engine().runs.all())


# -- side by side, and crashed at any point ----------------------------------------------------------------------------


class Gates:
    """Lets the parts of a workflow pass one after the other, as a test chooses, or all of them crash."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.passed: list[str] = []
        self.is_crashing = False

    async def __call__(self, name: str) -> str:
        while name not in self.open:
            if self.is_crashing:
                raise Crash
            await asyncio.sleep(0.001)
        self.passed.append(name)
        return name.upper()


def recover_elsewhere(config: DBOSConfig, gates: Gates, executor_id: str) -> None:
    """End this executor, which records nothing more of what waits, and have another one take over."""
    DBOS.destroy()
    gates.open, gates.passed, gates.is_crashing = set(), [], False
    config["executor_id"] = executor_id
    DBOS(config=config)
    DBOS.launch()


def let(gates: Gates, name: str, workflow_id: str) -> None:
    """Let a part pass, and wait until it is recorded."""
    before = len(recorded(workflow_id))
    gates.open.add(name)
    eventually(lambda: len(recorded(workflow_id)) > before)


def gated_steps(dbos: type[DBOS], gates: Gates, names: list[str]) -> list[Callable[[], Any]]:
    def gated_step(name: str) -> Callable[[], Any]:
        @dbos.step(name=name)
        async def step() -> str:
            return await gates(name)

        return step

    return [gated_step(name) for name in names]


@pytest.mark.parametrize("seed", [1, 2])
def test_gathered_steps_survive_a_crash_at_any_point_and_are_paired_by_source_order(
    dbos: type[DBOS], config: DBOSConfig, seed: int
) -> None:
    gates, chance = Gates(), random.Random(seed)
    alpha, beta, gamma, delta = gated_steps(dbos, gates, ["alpha", "beta", "gamma", "delta"])

    @dbos.workflow(name="child")
    async def child() -> str:
        return await gates("child")

    @dbos.workflow()
    async def workflow() -> list[str]:
        results = await asyncio.gather(alpha(), child(), beta(), gamma(), delta())
        await gates("end")
        return list(results)

    names = ["alpha", "child", "beta", "gamma", "delta"]
    dbos.launch()
    for survivors in range(len(names) + 1):
        workflow_id = f"wf{survivors}"
        order = chance.sample(names, len(names))
        before, after = order[:survivors], chance.sample(order[survivors:], len(names) - survivors)
        gates.open.clear()
        with SetWorkflowID(workflow_id):
            dbos.start_workflow(workflow)
        eventually(lambda workflow_id=workflow_id: recorded(workflow_id))  # type: ignore[misc]  # binds it now
        for name in before:
            let(gates, name, workflow_id)

        gates.is_crashing = True
        eventually(lambda: not engine().runs.all())
        recover_elsewhere(config, gates, f"executor {survivors}")
        for name in after:
            let(gates, name, workflow_id)
        gates.open.add("end")

        assert dbos.get_result(workflow_id) == [name.upper() for name in names]
        assert gates.passed == [*after, "end"]  # what was recorded did not run again
        assert [name for _, name in recorded(workflow_id)] == [*names[:2], "DBOS.getResult", *names[2:]]
        assert row(workflow_id).executor_id == config["executor_id"]


def test_a_loop_over_first_completed_survives_a_crash_at_any_point(dbos: type[DBOS], config: DBOSConfig) -> None:
    """The set that a wait returns has another order in each process; it may be waited for again all the same."""
    gates = Gates()
    names = [f"step {number}" for number in range(6)]
    gated = gated_steps(dbos, gates, names)

    @dbos.step(name="use")
    async def use(value: str) -> str:
        return value

    @dbos.workflow()
    async def workflow() -> list[str]:
        pending: Any = [asyncio.ensure_future(step()) for step in gated]
        used = []
        while pending:
            done, pending = await dbos.asyncio_wait(pending, return_when=asyncio.FIRST_COMPLETED)
            used += [await use(value) for value in sorted(task.result() for task in done)]
        return used

    dbos.launch()
    order = random.Random(1).sample(names, len(names))
    for survivors in range(len(names)):
        workflow_id = f"wf{survivors}"
        gates.open.clear()
        with SetWorkflowID(workflow_id):
            dbos.start_workflow(workflow)
        for number, name in enumerate(order[:survivors], start=1):
            gates.open.add(name)  # a step, the wait for it, and its use
            eventually(lambda id=workflow_id, rows=3 * number: len(recorded(id)) == rows)  # type: ignore[misc]

        recover_elsewhere(config, gates, f"executor {survivors}")
        for number, name in enumerate(reversed(order[survivors:]), start=survivors + 1):
            gates.open.add(name)
            eventually(lambda id=workflow_id, rows=3 * number: len(recorded(id)) == rows)  # type: ignore[misc]

        expected = [*order[:survivors], *reversed(order[survivors:])]
        assert dbos.get_result(workflow_id) == [name.upper() for name in expected]
        assert gates.passed == expected[survivors:]


@pytest.mark.parametrize("kind", ["values", "keys", "generator"])
async def test_whatever_has_an_order_can_be_waited_for_durably(dbos: type[DBOS], kind: str) -> None:
    @dbos.step()
    async def step(number: int) -> int:
        return number

    @dbos.workflow()
    async def workflow() -> list[int]:
        tasks = {asyncio.ensure_future(step(number)): number for number in range(3)}
        given: dict[str, Iterable[asyncio.Task[int]]] = {
            "values": {number: task for task, number in tasks.items()}.values(),
            "keys": tasks.keys(),
            "generator": (task for task in tasks),
        }
        done, pending = await dbos.asyncio_wait(given[kind])
        assert not pending
        return sorted(task.result() for task in done)

    dbos.launch()

    assert await workflow() == [0, 1, 2]


async def test_an_unordered_collection_cannot_be_waited_for_durably(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> None:
        fresh: Any = {asyncio.ensure_future(asyncio.sleep(0)) for _ in range(2)}
        try:
            await dbos.asyncio_wait(fresh)
        finally:
            await asyncio.wait(fresh)

    dbos.launch()

    with SetWorkflowID("wf"), pytest.raises(TypeError, match=r"asyncio_wait\(\) .* a list"):
        await workflow()

    assert recorded("wf") == []


async def test_gathered_helpers_of_several_steps_are_told_to_become_child_workflows(dbos: type[DBOS]) -> None:
    turn = asyncio.Event()

    @dbos.workflow()
    async def workflow() -> None:
        async def helper(name: str, is_first: bool) -> None:
            await dbos.run_step_async({"name": f"{name} 1"}, asyncio.sleep, 0)
            if not is_first:
                await turn.wait()
            await dbos.run_step_async({"name": f"{name} 2"}, asyncio.sleep, 0)
            turn.set()

        await asyncio.gather(helper("a", False), helper("b", True))

    dbos.launch()
    with SetWorkflowID("wf"):
        await workflow()
    assert [name for _, name in recorded("wf")] == ["a 1", "b 1", "b 2", "a 2"]

    handle = await asyncio.to_thread(execute_again, "wf")

    with pytest.raises(DBOSUnexpectedStepError, match="child workflow"):
        await asyncio.to_thread(handle.get_result)


async def test_blocking_the_loop_for_a_coroutine_that_waits_in_a_queue_is_refused(dbos: type[DBOS]) -> None:
    """The dispatcher would begin it on the very loop that is blocked."""
    queue = Queue("queue")

    @dbos.workflow()
    async def coroutine() -> int:
        return 1

    @dbos.workflow()
    def function() -> int:
        return 2

    dbos.launch()
    with SetEnqueueOptions(delay_seconds=3600):
        delayed = queue.enqueue(coroutine)
    await_able = await queue.enqueue_async(coroutine)

    with pytest.raises(RuntimeError, match="would block the event loop"):
        delayed.get_result()
    assert queue.enqueue(function).get_result() == 2
    assert await await_able.get_result() == 1


async def test_many_are_awaited_at_once_whatever_has_become_of_each(dbos: type[DBOS], config: DBOSConfig) -> None:
    goes_on = asyncio.Event()

    @dbos.workflow(name="large")
    async def large(number: int) -> str:
        return str(number) * MAX_SMALL

    @dbos.workflow(name="small")
    async def small(number: int) -> int:
        return number

    @dbos.workflow(name="failing")
    async def failing(number: int) -> None:
        raise ValueError(f"no {number}")

    @dbos.workflow(name="late")
    async def late(number: int) -> int:
        await goes_on.wait()
        return number

    workflows: list[Callable[..., Any]] = [large, small, failing, late]
    dbos.launch()
    for index, workflow in enumerate(workflows):
        for number in range(10):
            with SetWorkflowID(f"{index}-{number}"):
                await dbos.start_workflow_async(workflow, number)
    while len(engine().runs.all()) > 10:
        await asyncio.sleep(0.005)

    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        handles = [
            await client.retrieve_workflow_async(f"{index}-{number}") for index in range(4) for number in range(10)
        ]
        waiting = [asyncio.ensure_future(handle.get_result()) for handle in handles]
        ended = await asyncio.gather(*waiting[:30], return_exceptions=True)
        goes_on.set()
        late_ones = await asyncio.gather(*waiting[30:])

    assert ended[:10] == [str(number) * MAX_SMALL for number in range(10)]
    assert ended[10:20] == list(range(10))
    assert [str(error) for error in ended[20:]] == [f"no {number}" for number in range(10)]
    assert late_ones == list(range(10))
