"""Called too early, too late, twice, or from the wrong place: a clear error, and nothing written."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, DBOSConfiguredInstance, DBOSException, SendMessage
from dbos._error import DBOSNonExistentWorkflowError, DBOSWorkflowFunctionNotFoundError
from dbos._process import process as _process


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the library logs; its logger does not propagate once it was configured."""
    logger = logging.getLogger("dbos")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def nothing() -> Iterator[type[DBOS]]:
    """DBOS without a DBOS object."""
    DBOS.destroy(destroy_registry=True)
    yield DBOS
    DBOS.destroy(destroy_registry=True)


def plain() -> None: ...


SOME_HANDLE: Any = SimpleNamespace(workflow_id="id")

BLOCKING: dict[str, Callable[[], object]] = {
    "run_step": lambda: DBOS.run_step(None, plain),
    "get_workflow_status": lambda: DBOS.get_workflow_status("id"),
    "get_result": lambda: DBOS.get_result("id"),
    "retrieve_workflow": lambda: DBOS.retrieve_workflow("id"),
    "sleep": lambda: DBOS.sleep(1),
    "cancel_workflow": lambda: DBOS.cancel_workflow("id"),
    "cancel_workflows": lambda: DBOS.cancel_workflows(["id"]),
    "delete_workflow": lambda: DBOS.delete_workflow("x"),
    "delete_workflows": lambda: DBOS.delete_workflows(["x"]),
    "list_management_actions": DBOS.list_management_actions,
    "retry_workflow": lambda: DBOS.retry_workflow("x"),
    "retry_workflows": lambda: DBOS.retry_workflows(["x"]),
    "update_workflow_attributes": lambda: DBOS.update_workflow_attributes("x", None),
    "wait_first": lambda: DBOS.wait_first([SOME_HANDLE]),
    "resume_workflow": lambda: DBOS.resume_workflow("id"),
    "resume_workflows": lambda: DBOS.resume_workflows(["id"]),
    "list_workflows": lambda: DBOS.list_workflows(),
    "list_workflow_steps": lambda: DBOS.list_workflow_steps("id"),
    "list_queued_workflows": lambda: DBOS.list_queued_workflows(),
    "set_workflow_delay": lambda: DBOS.set_workflow_delay("wf", delay_seconds=1),
    "register_queue": lambda: DBOS.register_queue("mail"),
    "retrieve_queue": lambda: DBOS.retrieve_queue("mail"),
    "list_queues": lambda: DBOS.list_queues(),
    "delete_queue": lambda: DBOS.delete_queue("mail"),
    "create_schedule": lambda: DBOS.create_schedule(schedule_name="nightly", workflow_fn=plain, schedule="@daily"),
    "update_schedule": lambda: DBOS.update_schedule("nightly"),
    "apply_schedules": lambda: DBOS.apply_schedules([]),
    "get_schedule": lambda: DBOS.get_schedule("nightly"),
    "list_schedules": lambda: DBOS.list_schedules(),
    "pause_schedule": lambda: DBOS.pause_schedule("nightly"),
    "resume_schedule": lambda: DBOS.resume_schedule("nightly"),
    "delete_schedule": lambda: DBOS.delete_schedule("nightly"),
    "trigger_schedule": lambda: DBOS.trigger_schedule("nightly"),
    "backfill_schedule": lambda: DBOS.backfill_schedule("nightly", datetime(2026, 1, 1), datetime(2026, 1, 2)),
    "preview_schedule": lambda: DBOS.preview_schedule("@daily"),
    "schedule_history": lambda: DBOS.schedule_history("nightly"),
    "fork_workflow": lambda: DBOS.fork_workflow("id", 1),
    "list_executors": lambda: DBOS.list_executors(),
    "drain_executor": lambda: DBOS.drain_executor("id"),
    "undrain_executor": lambda: DBOS.undrain_executor("id"),
    "list_stranded_versions": lambda: DBOS.list_stranded_versions(),
    "list_stranded_queues": lambda: DBOS.list_stranded_queues(),
    "adopt_application_version": lambda: DBOS.adopt_application_version("another"),
    "send": lambda: DBOS.send("id", "message"),
    "send_bulk": lambda: DBOS.send_bulk([SendMessage("id", "message")]),
    "recv": lambda: DBOS.recv(),
    "set_event": lambda: DBOS.set_event("key", "value"),
    "get_event": lambda: DBOS.get_event("id", "key"),
    "get_all_events": lambda: DBOS.get_all_events("id"),
    "write_stream": lambda: DBOS.write_stream("key", "value"),
    "close_stream": lambda: DBOS.close_stream("key"),
    "read_stream": lambda: next(DBOS.read_stream("id", "key")),
    "read_stream_offset": lambda: DBOS.read_stream_offset("id", "key", 0),
    "count_workflows": lambda: DBOS.count_workflows(),
    "get_workflow_aggregates": lambda: DBOS.get_workflow_aggregates(group_by_status=True),
    "get_metrics": lambda: DBOS.get_metrics("2026-01-01", "2026-01-02"),
    "export_workflow": lambda: DBOS.export_workflow("id"),
    "import_workflow": lambda: DBOS.import_workflow({}),
    "run_retention": lambda: DBOS.run_retention({"max_count": 1}),
    "patch": lambda: DBOS.patch("name"),
    "deprecate_patch": lambda: DBOS.deprecate_patch("name"),
}

UNGUARDED: dict[str, Callable[[], object]] = {
    "list_application_versions": lambda: DBOS.list_application_versions(),
    "get_latest_application_version": lambda: DBOS.get_latest_application_version(),
    "set_latest_application_version": lambda: DBOS.set_latest_application_version("test"),
}

USES_NO_DATABASE = {  # outside of a workflow
    "run_step",
    "sleep",
    "recv",
    "set_event",
    "write_stream",
    "close_stream",
    "import_workflow",
    "patch",
    "deprecate_patch",
}


# -- too early ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [*BLOCKING.values(), *UNGUARDED.values()], ids=[*BLOCKING, *UNGUARDED])
def test_an_operation_without_a_dbos_object_says_so(nothing: type[DBOS], call: Callable[[], object]) -> None:
    with pytest.raises(DBOSException, match="No DBOS was created yet"):
        call()


async def test_decorated_functions_without_a_dbos_object_say_so(nothing: type[DBOS]) -> None:
    @nothing.workflow(name="the workflow")
    def workflow() -> None: ...

    @nothing.workflow(name="the coroutine")
    async def coroutine() -> None: ...

    @nothing.transaction(name="the transaction")
    def transaction() -> None: ...

    with pytest.raises(DBOSException, match="Function the workflow invoked before DBOS initialized"):
        workflow()
    with pytest.raises(DBOSException, match="Function the coroutine invoked before DBOS initialized"):
        await coroutine()
    with pytest.raises(DBOSException, match="Function the transaction invoked before DBOS initialized"):
        transaction()
    with pytest.raises(DBOSException, match="No DBOS was created yet"):
        nothing.start_workflow(workflow)
    with pytest.raises(DBOSException, match="No DBOS was created yet"):
        await nothing.start_workflow_async(coroutine)
    with pytest.raises(DBOSException, match="No DBOS was created yet"):
        await nothing.run_step_async(None, plain)


@pytest.mark.parametrize("name", sorted({*BLOCKING, *UNGUARDED} - USES_NO_DATABASE))
def test_an_operation_before_launch_says_so(dbos: type[DBOS], name: str) -> None:
    with pytest.raises(DBOSException, match="System database accessed before DBOS was launched"):
        {**BLOCKING, **UNGUARDED}[name]()


async def test_decorated_functions_before_launch_say_so(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None: ...

    @dbos.workflow()
    async def coroutine() -> None: ...

    for call in (workflow, lambda: dbos.start_workflow(workflow)):
        with pytest.raises(DBOSException, match="before DBOS was launched"):
            call()
    with pytest.raises(DBOSException, match="before DBOS was launched"):
        await coroutine()
    with pytest.raises(DBOSException, match="before DBOS was launched"):
        await dbos.start_workflow_async(coroutine)


def test_recovery_before_launch_says_so(dbos: type[DBOS]) -> None:
    with pytest.raises(DBOSException, match="before DBOS was launched"):
        dbos._recover_pending_workflows()


def test_launch_without_a_dbos_object_does_nothing(nothing: type[DBOS]) -> None:
    nothing.launch()

    assert _process.runtime is None


# -- twice -------------------------------------------------------------------------------------------------------------


def test_there_is_one_dbos_object(dbos: type[DBOS], config: DBOSConfig) -> None:
    first = dbos(config=config)
    second = dbos(config={"name": "ignored"})

    assert first is second
    assert dbos.application_version == "test"


def test_after_destroy_there_is_a_new_dbos_object(dbos: type[DBOS], config: DBOSConfig) -> None:
    first = dbos(config=config)
    dbos.destroy()

    assert dbos(config=config) is not first


def test_launching_twice_warns(dbos: type[DBOS], log: pytest.LogCaptureFixture) -> None:
    dbos.launch()
    runtime = _process.runtime

    dbos.launch()

    assert _process.runtime is runtime
    assert "DBOS was already launched" in log.text


def test_destroying_twice_and_without_a_dbos_object_does_nothing(dbos: type[DBOS]) -> None:
    dbos.launch()

    for _ in range(3):
        dbos.destroy()

    assert _process.instance is None


def test_a_launch_that_failed_can_be_repeated(nothing: type[DBOS], tmp_path: Any) -> None:
    folder = tmp_path / "missing"
    nothing(config={"name": "test-app", "system_database_url": f"sqlite:///{folder / 'dbos.sqlite'}"})

    @nothing.workflow()
    def workflow() -> int:
        return 42

    folder.write_text("a file where the folder of the database should be")
    with pytest.raises((OSError, DBOSException)):
        nothing.launch()
    folder.unlink()
    folder.mkdir()
    nothing.launch()

    assert workflow() == 42


# -- destroy and the registry ------------------------------------------------------------------------------------------


def test_destroy_keeps_what_was_decorated_unless_told_otherwise(dbos: type[DBOS]) -> None:
    @dbos.dbos_class()
    class Shop(DBOSConfiguredInstance):
        @dbos.workflow()
        def work(self) -> None: ...

    Shop("north")
    registry = _process.registry

    dbos.destroy()
    kept = len(registry.workflows), len(registry.classes), len(registry.instances)
    dbos.destroy(destroy_registry=True)
    left = len(registry.workflows), len(registry.classes), len(registry.instances)

    assert kept == (1, 1, 1)
    assert left == (0, 0, 0)


def test_a_workflow_whose_registration_was_destroyed_cannot_be_started(dbos: type[DBOS], config: DBOSConfig) -> None:
    @dbos.workflow(name="forgotten")
    def workflow() -> None: ...

    dbos.destroy(destroy_registry=True)
    dbos(config=config)
    dbos.launch()

    with pytest.raises(DBOSWorkflowFunctionNotFoundError, match=r"<NONE>.* forgotten is not a registered"):
        dbos.start_workflow(workflow)


def test_instances_after_launch_are_registered_with_a_warning(dbos: type[DBOS], log: pytest.LogCaptureFixture) -> None:
    @dbos.dbos_class("Shop")
    class Shop(DBOSConfiguredInstance):
        @dbos.workflow()
        def work(self) -> str:
            return self.config_name

    Shop("early")
    dbos.launch()
    quiet = log.text
    late = Shop("late")

    assert late.work() == "late"
    assert "was created after DBOS.launch()" not in quiet
    assert "Configured instance Shop/late was created after DBOS.launch()" in log.text


# -- reset_system_database ---------------------------------------------------------------------------------------------


def test_resetting_the_system_database_empties_it(dbos: type[DBOS], config: DBOSConfig) -> None:
    @dbos.workflow()
    def workflow() -> None: ...

    dbos.launch()
    workflow()
    before = len(dbos.list_workflows())
    dbos.destroy()
    dbos(config=config)

    dbos.reset_system_database()

    dbos.launch()
    assert before == 1
    assert dbos.list_workflows() == []


@pytest.mark.parametrize("has_object", [True, False], ids=["of the object", "by its url"])
def test_a_system_database_can_be_emptied_and_keeps_its_tables(
    dbos: type[DBOS], config: DBOSConfig, has_object: bool
) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.set_event("key", "value")

    dbos.launch()
    workflow()
    dbos.destroy()
    if has_object:
        dbos(config=config)
        dbos.reset_system_database(truncate=True)
    else:
        dbos.reset_system_database(system_database_url=config["system_database_url"], truncate=True)

    dbos(config={**config, "run_migrations": False})
    dbos.destroy()
    dbos(config={**config, "run_migrations": False})
    dbos.launch()

    assert dbos.list_workflows() == []


def test_the_system_database_cannot_be_reset_after_launch(dbos: type[DBOS]) -> None:
    dbos.launch()

    with pytest.raises(AssertionError, match="must be called before"):
        dbos.reset_system_database()


def test_resetting_without_a_dbos_object_warns(nothing: type[DBOS], log: pytest.LogCaptureFixture) -> None:
    nothing.reset_system_database()

    assert "reset_system_database has no effect" in log.text


# -- from the wrong place ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKING)
async def test_what_would_block_a_running_loop_refuses_to(dbos: type[DBOS], name: str) -> None:
    dbos.launch()

    with pytest.raises(RuntimeError) as caught:
        BLOCKING[name]()
    assert str(caught.value) == (
        f"{name}() was called while an event loop is running. Use await {name}_async(...) instead."
    )


async def test_a_refused_operation_takes_no_function_id(dbos: type[DBOS]) -> None:
    @dbos.step(name="step")
    async def step() -> int | None:
        return dbos.step_id

    @dbos.workflow()
    async def workflow() -> int | None:
        with pytest.raises(RuntimeError):
            dbos.list_workflows()
        return await step()

    dbos.launch()

    assert await workflow() == 1


async def test_version_operations_starts_and_synchronous_calls_work_in_a_running_loop(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> int:
        return 20

    @dbos.workflow()
    def workflow() -> int:
        return step() + 1

    @dbos.workflow()
    async def coroutine() -> int:
        return workflow() + 1

    dbos.launch()

    for call in UNGUARDED.values():
        call()
    handle = await dbos.start_workflow_async(coroutine)
    assert workflow() == 21
    assert await handle.get_result() == 22
    assert dbos.start_workflow(workflow).workflow_id


def test_every_blocking_operation_is_in_the_table_above() -> None:
    twins = {name.removesuffix("_async") for name in dir(DBOS) if name.endswith("_async")}

    unguarded = {"start_workflow", "enqueue_workflow", "enqueue_workflow_with_options"}
    assert twins - unguarded == set(BLOCKING) | set(UNGUARDED)


async def test_run_step_async_may_be_made_where_no_loop_runs(dbos: type[DBOS]) -> None:
    coroutine = dbos.run_step_async(None, plain)

    assert inspect.iscoroutine(coroutine)
    assert await coroutine is None


def test_run_step_async_without_a_loop_says_so(dbos: type[DBOS]) -> None:
    coroutine = dbos.run_step_async(None, plain)

    with pytest.raises(RuntimeError, match=r"event loop is not running. Use run_step\(\.\.\.\) instead."):
        coroutine.send(None)


def test_nothing_can_be_started_within_a_step(dbos: type[DBOS]) -> None:
    attempts: list[Callable[[], object]] = []

    @dbos.workflow()
    def child() -> None: ...

    @dbos.transaction()
    def transaction() -> None: ...

    attempts += [child, transaction, lambda: dbos.start_workflow(child)]

    @dbos.step(name="step")
    def step(index: int) -> None:
        with pytest.raises(AssertionError):
            attempts[index]()

    @dbos.transaction(name="outer")
    def outer(index: int) -> None:
        with pytest.raises(AssertionError):
            attempts[index]()

    @dbos.workflow()
    def workflow() -> None:
        for index in range(len(attempts)):
            step(index)
            outer(index)

    dbos.launch()
    handle = dbos.start_workflow(workflow)
    handle.get_result()

    assert [status.workflow_id for status in dbos.list_workflows()] == [handle.workflow_id]
    assert len(dbos.list_workflow_steps(handle.workflow_id)) == 6


def test_operations_within_a_transaction_are_refused(dbos: type[DBOS]) -> None:
    @dbos.transaction()
    def transaction() -> None:
        with pytest.raises(Exception, match=r"Invalid call to `DBOS\.getStatus` inside a transaction"):
            dbos.get_workflow_status("id")

    dbos.launch()

    transaction()


def test_sleeping_belongs_into_a_workflow(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> None:
        with pytest.raises(AssertionError, match="must be called from within a workflow"):
            dbos.sleep(1)

    @dbos.workflow()
    def workflow() -> None:
        step()

    dbos.launch()

    workflow()
    dbos.sleep(0)
    with pytest.raises(DBOSException, match=r"sleep\(\) must be called from within a workflow"):
        dbos.sleep(1)


@pytest.mark.parametrize("target", [plain, len, lambda: None, 42, "name", None])
def test_what_was_never_decorated_cannot_be_started(dbos: type[DBOS], target: Any) -> None:
    dbos.launch()

    with pytest.raises(DBOSWorkflowFunctionNotFoundError, match=r"<NONE>.*is not a registered workflow function"):
        dbos.start_workflow(target)


def test_a_workflow_that_does_not_exist_cannot_be_retrieved(dbos: type[DBOS]) -> None:
    dbos.launch()

    with pytest.raises(DBOSNonExistentWorkflowError, match="target workflow ID: nowhere"):
        dbos.retrieve_workflow("nowhere")
    assert dbos.retrieve_workflow("nowhere", existing_workflow=False).workflow_id == "nowhere"
    assert dbos.get_workflow_status("nowhere") is None
