"""Recovery within one process: what is found in the database, and what becomes of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from dbos import DBOS, DBOSConfig, DBOSConfiguredInstance, SetWorkflowID
from dbos._engine import claims
from dbos._engine.claims import resolve
from dbos._engine.engine import Engine
from dbos._error import (
    DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded,
    DBOSRecoveryError,
    DBOSWorkflowFunctionNotFoundError,
    MaxRecoveryAttemptsExceededError,
)
from dbos._operations import lifecycle
from dbos._operations.handles import EngineHandle
from dbos._process import process as _process
from dbos._sysdb.rows import StatusRow
from tests.acceptance.harness import until

WAIT_S = 60.0


def engine() -> Engine:
    assert _process.runtime is not None
    return _process.runtime.engine


def change(sql: str, **parameters: Any) -> None:
    """Change the system database behind everybody's back."""
    engine().db.change(lambda connection: connection.run(sql, **parameters))


def crash(workflow_id: str, **columns: str) -> None:
    """Make a finished workflow look as if its process had died in it."""
    change(
        "UPDATE dbos.workflow_status SET status = 'PENDING', output = NULL, error = NULL, completed_at = NULL, "
        "owner_instance = 'dead', run_token = 'dead', recovery_attempts = 1 WHERE workflow_uuid = :id",
        id=workflow_id,
    )
    for column, value in columns.items():
        change(f"UPDATE dbos.workflow_status SET {column} = {value} WHERE workflow_uuid = :id", id=workflow_id)


def relaunch(config: DBOSConfig) -> None:
    DBOS.destroy()
    DBOS(config=config)
    DBOS.launch()


def status(workflow_id: str) -> str:
    row = engine().db.read(engine().db.workflows.get, workflow_id)
    assert row is not None
    return row.status


def run(workflow_id: str, func: Callable[..., Any], *args: Any) -> Any:
    with SetWorkflowID(workflow_id):
        return func(*args)


def recover(*workflow_ids: str) -> list[Any]:
    """Recover what was crashed and wait for it."""
    DBOS._recover_pending_workflows()
    return [DBOS.retrieve_workflow(workflow_id).get_result() for workflow_id in workflow_ids]


# -- what is recovered -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["threads", "coroutines"])
def test_thousands_are_recovered_in_bulk_and_launch_does_not_wait_for_them(
    dbos: type[DBOS], config: DBOSConfig, is_async: bool
) -> None:
    gate, count = threading.Event(), 2000
    gate.set()

    if is_async:

        @dbos.workflow(name="work")
        async def work() -> str:
            while not gate.is_set():
                await asyncio.sleep(0.01)
            return "done"

        dbos.launch()
        with SetWorkflowID("0"):
            dbos.start_workflow(work).get_result()
    else:

        @dbos.workflow(name="work")
        def work_in_thread() -> str:
            gate.wait(WAIT_S)
            return "done"

        dbos.launch()
        run("0", work_in_thread)
    names = "name, inputs, serialization, created_at, updated_at, priority"
    change(  # of a version that this process does not recover
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count) "
        f"INSERT INTO dbos.workflow_status (workflow_uuid, status, recovery_attempts, application_version, {names}) "
        f"SELECT 'w-' || n, 'PENDING', 1, 'crashed', {names} FROM dbos.workflow_status, numbers",
        count=count,
    )
    gate.clear()

    relaunch({**config, "max_executor_threads": 8, "application_version": "crashed"})
    unfinished_at_launch = len(dbos.list_workflows(status=["PENDING", "ENQUEUED"], load_input=False))
    gate.set()

    assert unfinished_at_launch == count
    until(lambda: len(dbos.list_workflows(status="SUCCESS", load_input=False)) == count + 1, "all of them")
    recovered = dbos.list_workflows(workflow_id_prefix="w-", load_input=False)
    assert {each.recovery_attempts for each in recovered} == {2}


def test_a_recorded_step_is_replayed_and_an_unrecorded_one_runs(dbos: type[DBOS]) -> None:
    calls: list[str] = []

    @dbos.step()
    def step(name: str) -> str:
        calls.append(name)
        return name.upper()

    @dbos.workflow()
    def workflow() -> str:
        return step("a") + step("b")

    dbos.launch()
    run("w", workflow)
    crash("w")
    change("DELETE FROM dbos.operation_outputs WHERE workflow_uuid = 'w' AND function_id = 2")

    assert recover("w") == ["AB"]
    assert calls == ["a", "b", "b"]


def test_what_runs_here_is_not_recovered(dbos: type[DBOS]) -> None:
    gate, calls = threading.Event(), []

    @dbos.workflow()
    def workflow() -> str:
        calls.append(1)
        gate.wait(WAIT_S)
        return "done"

    dbos.launch()
    handle = dbos.start_workflow(workflow)
    until(lambda: calls, "the workflow to begin")

    recovered = dbos._recover_pending_workflows()
    gate.set()

    assert recovered == []
    assert handle.get_result() == "done"
    assert calls == [1]


@pytest.mark.parametrize("interrupt", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_workflow_that_was_interrupted_stays_pending_and_is_recovered(
    dbos: type[DBOS], interrupt: type[BaseException]
) -> None:
    interrupts = [interrupt()]

    @dbos.workflow()
    def workflow() -> str:
        if interrupts:
            raise interrupts.pop()
        return "done"

    dbos.launch()
    with pytest.raises(interrupt):
        run("w", workflow)
    left = status("w")

    assert left == "PENDING"
    assert recover("w") == ["done"]


def test_a_step_that_ends_after_destroy_does_not_look_failed_to_the_workflow(
    dbos: type[DBOS], config: DBOSConfig
) -> None:
    gate, ended, errors = threading.Event(), threading.Event(), []

    @dbos.step()
    def step() -> str:
        gate.wait(WAIT_S)
        return "done"

    @dbos.workflow()
    def workflow() -> str:
        try:
            return step()
        except Exception as error:
            errors.append(error)
            raise
        finally:
            ended.set()

    dbos.launch()
    with SetWorkflowID("w"):
        dbos.start_workflow(workflow)
    dbos.destroy()

    gate.set()

    assert ended.wait(WAIT_S)
    assert errors == []
    ended.clear()
    DBOS(config=config)
    dbos.launch()
    assert dbos.retrieve_workflow("w").get_result() == "done"


@pytest.mark.parametrize("moment", ["while it is destroyed", "afterwards"])
@pytest.mark.parametrize("operation", ["sleep", "step", "child", "status"])
def test_an_operation_does_not_look_failed_to_a_workflow_that_outlives_destroy(
    dbos: type[DBOS], config: DBOSConfig, monkeypatch: pytest.MonkeyPatch, operation: str, moment: str
) -> None:
    """The workflow once caught "No DBOS was created yet", and ended as ERROR with it."""
    begun, destroyed, ended = threading.Event(), threading.Event(), threading.Event()
    errors: list[Exception] = []

    @dbos.step()
    def step() -> str:
        return "done"

    @dbos.workflow()
    def child() -> str:
        return "done"

    operations: dict[str, Callable[[], Any]] = {
        "sleep": lambda: dbos.sleep(0.001),
        "step": step,
        "child": child,
        "status": lambda: dbos.get_workflow_status("w"),
    }

    @dbos.workflow()
    def workflow() -> str:
        begun.set()
        try:
            if not is_relaunched:
                until(destroyed.is_set if moment == "afterwards" else is_interrupted, "destroy()")
            operations[operation]()
        except Exception as error:
            errors.append(error)
            raise
        finally:
            ended.set()
        return "done"

    def is_interrupted() -> bool:
        run = runs.get("w")
        return run is not None and run.is_interrupted

    is_relaunched = False
    if moment == "afterwards":
        monkeypatch.setattr(lifecycle, "SHUTDOWN_GRACE_S", 0.01)
    dbos.launch()
    runs = engine().runs
    with SetWorkflowID("w"):
        dbos.start_workflow(workflow)
    assert begun.wait(WAIT_S)
    dbos.destroy()
    destroyed.set()

    assert ended.wait(WAIT_S)
    assert errors == []
    is_relaunched = True
    DBOS(config=config)
    dbos.launch()
    assert dbos.retrieve_workflow("w").get_result() == "done"


@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "coroutine"])
def test_a_workflow_that_destroy_waits_for_can_use_everything_meanwhile(
    dbos: type[DBOS], config: DBOSConfig, is_async: bool
) -> None:
    begun = threading.Event()

    def is_ending() -> bool:
        return _process.runtime is None

    @dbos.workflow()
    def child() -> str:
        return "done"

    @dbos.workflow(name="work")
    def work() -> Any:
        begun.set()
        until(is_ending, "destroy()")
        dbos.sleep(0.001)
        return dbos.start_workflow(child).get_result()

    @dbos.workflow(name="work_async")
    async def work_async() -> Any:
        begun.set()
        await asyncio.to_thread(until, is_ending, "destroy()")
        await dbos.sleep_async(0.001)
        waiting = asyncio.ensure_future(dbos.sleep_async(0.001))
        await dbos.asyncio_wait([waiting])
        return await (await dbos.start_workflow_async(child)).get_result()

    dbos.launch()
    with SetWorkflowID("w"):
        dbos.start_workflow(work_async if is_async else work)
    assert begun.wait(WAIT_S)

    dbos.destroy(workflow_completion_timeout_sec=WAIT_S)

    DBOS(config=config)
    dbos.launch()
    assert status("w") == "SUCCESS"
    assert [step["function_id"] for step in dbos.list_workflow_steps("w")] == list(range(1, 6 if is_async else 4))


# -- what cannot be recovered ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"inputs": "'}'"},
        {"inputs": "NULL"},
        {"serialization": "'of another world'"},
        {"authenticated_roles": "'}'"},
        {"inputs": "'gASV'", "serialization": "'py_pickle'"},
    ],
    ids=["broken", "missing", "unknown format", "broken roles", "truncated pickle"],
)
def test_what_cannot_be_decoded_ends_with_an_error_and_others_go_on(dbos: type[DBOS], columns: dict[str, str]) -> None:
    calls: list[str] = []

    @dbos.workflow()
    def workflow(name: str) -> str:
        calls.append(name)
        return name

    dbos.launch()
    for name in ("before", "broken", "after"):
        run(name, workflow, name)
        crash(name, **(columns if name == "broken" else {}))

    assert recover("before", "after") == ["before", "after"]
    with pytest.raises(Exception, match=r"."):
        recover("broken")
    assert status("broken") == "ERROR"
    assert recover() == []
    assert calls.count("broken") == 1


def test_inputs_that_are_refused_end_with_the_error(dbos: type[DBOS]) -> None:
    refused: list[bool] = []

    def validate(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        refused.append(True)
        raise ValueError("not these")

    @dbos.workflow(validate_args=validate)
    def workflow(n: int) -> int:
        return n

    dbos.launch()
    run("w", workflow, 1)
    crash("w")

    with pytest.raises(ValueError, match="not these"):
        recover("w")
    assert refused == [True]


def test_a_workflow_is_given_up_after_its_last_attempt(dbos: type[DBOS]) -> None:
    begun = []

    @dbos.workflow(max_recovery_attempts=2)
    def workflow() -> None:
        begun.append(1)
        raise SystemExit

    dbos.launch()
    with pytest.raises(SystemExit):
        run("w", workflow)
    for attempt in (2, 3):
        DBOS._recover_pending_workflows()
        until(lambda attempt=attempt: len(begun) == attempt and not engine().runs.all(), "the attempt to end")  # type: ignore[misc]
    DBOS._recover_pending_workflows()

    with pytest.raises(DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded):
        dbos.retrieve_workflow("w").get_result()
    assert status("w") == "MAX_RECOVERY_ATTEMPTS_EXCEEDED"
    with pytest.raises(MaxRecoveryAttemptsExceededError):
        run("w", workflow)
    assert len(begun) == 3


@pytest.mark.parametrize("is_async", [False, True], ids=["threads", "coroutines"])
def test_starting_a_workflow_again_is_no_attempt_to_recover_it(dbos: type[DBOS], is_async: bool) -> None:
    """Neither while it runs, nor while it waits to be recovered, nor when it has ended."""
    gate, begun = threading.Event(), []

    @dbos.workflow(name="work", max_recovery_attempts=1)
    def work() -> str:
        begun.append(1)
        gate.wait(WAIT_S)
        return "done"

    @dbos.workflow(name="work_async", max_recovery_attempts=1)
    async def work_async() -> str:
        begun.append(1)
        await asyncio.to_thread(gate.wait, WAIT_S)
        return "done"

    def start() -> None:
        with SetWorkflowID("w"):
            dbos.start_workflow(work_async if is_async else work)

    def attempts() -> int:
        found = dbos.get_workflow_status("w")
        assert found is not None
        return found.recovery_attempts or 0

    dbos.launch()
    for _ in range(5):
        start()
    until(lambda: begun, "the workflow to begin")
    while_running = attempts()
    gate.set()
    assert dbos.get_result("w") == "done"
    crash("w", application_version="'another'")  # so that it is not recovered yet
    for _ in range(5):
        start()
    while_pending = attempts()
    change("UPDATE dbos.workflow_status SET application_version = 'test'")
    assert recover("w") == ["done"]
    for _ in range(5):
        start()

    assert (while_running, while_pending, attempts()) == (1, 1, 2)
    assert len(begun) == 2


def test_a_workflow_without_a_limit_is_never_given_up(dbos: type[DBOS]) -> None:
    @dbos.workflow(max_recovery_attempts=None)
    def workflow() -> str:
        return "done"

    dbos.launch()
    run("w", workflow)
    crash("w", recovery_attempts="1000")

    assert recover("w") == ["done"]


def test_a_row_with_a_blank_id_is_not_run_under_another_one(dbos: type[DBOS], config: DBOSConfig) -> None:
    """No path of ours writes such a row. If one is there all the same, each recovery must find it, and nothing new."""
    calls: list[str | None] = []

    @dbos.step()
    def step() -> str:
        return "done"

    @dbos.workflow()
    def workflow() -> str:
        calls.append(dbos.workflow_id)
        return step()

    dbos.launch()
    run("w", workflow)
    crash("w")
    if engine().db.dialect.name == "sqlite":
        engine().db.change(lambda connection: connection.all("PRAGMA ignore_check_constraints = ON"))
    else:
        url = config["system_database_url"]
        assert url is not None
        with psycopg.connect(url) as psql:
            psql.execute("ALTER TABLE dbos.workflow_status DROP CONSTRAINT workflow_status_workflow_uuid_check")
    names = "status, name, inputs, serialization, created_at, updated_at, priority, application_version, "
    names += "recovery_attempts, owner_instance, run_token"
    for blank in ("", "  "):
        change(
            f"INSERT INTO dbos.workflow_status (workflow_uuid, {names}) "
            f"SELECT '{blank}', {names} FROM dbos.workflow_status WHERE workflow_uuid = 'w'"
        )

    DBOS._recover_pending_workflows()
    results: list[object] = [EngineHandle(engine(), workflow_id).get_result() for workflow_id in ("w", "", "  ")]

    assert results == ["done"] * 3
    assert recover() == []

    assert calls[0] == "w"
    assert sorted(calls[1:], key=str) == ["", "  ", "w"]
    assert {each.workflow_id for each in dbos.list_workflows()} == {"", "  ", "w"}


# -- targets -----------------------------------------------------------------------------------------------------------


def test_a_workflow_whose_function_is_missing_waits_and_is_named_in_the_log(
    dbos: type[DBOS], caplog: pytest.LogCaptureFixture
) -> None:
    def define() -> Callable[[], str]:
        @dbos.workflow(name="later")
        def later() -> str:
            return "done"

        return later

    @dbos.workflow()
    def other() -> str:
        return "other"

    dbos.launch()
    run("w", define())
    run("o", other)
    crash("w")
    crash("o")
    del _process.registry.workflows["later"]
    logging.getLogger("dbos").addHandler(caplog.handler)

    assert recover("o") == ["other"]
    until(lambda: "later is not a registered workflow function" in caplog.text, "the log to name it")
    until(lambda: status("w") == "ENQUEUED", "the workflow to wait")
    logging.getLogger("dbos").removeHandler(caplog.handler)
    define()

    assert dbos.retrieve_workflow("w").get_result() == "done"


def test_a_class_method_waits_for_its_class_although_its_function_is_there(dbos: type[DBOS]) -> None:
    """A method is registered while its class is still being defined."""

    @dbos.dbos_class("Shop")
    class Shop:
        @classmethod
        @dbos.workflow(name="Shop.open")
        def open(cls) -> str:
            return cls.__name__

    dbos.launch()
    run("w", Shop.open)
    crash("w")
    cls = _process.registry.classes.pop("Shop")
    info = _process.registry.workflows["Shop.open"].info
    kind, info.func_type = info.func_type, type(info.func_type).Unknown
    DBOS._recover_pending_workflows()
    until(lambda: engine().unknown_targets, "the class to be missed")
    until(lambda: status("w") == "ENQUEUED", "the workflow to wait")

    info.func_type = kind
    _process.registry.register_class(cls, "Shop")

    assert dbos.retrieve_workflow("w").get_result() == "Shop"


def test_methods_of_all_kinds_are_recovered_on_what_they_were_called_on(dbos: type[DBOS]) -> None:
    @dbos.dbos_class()
    class Shop(DBOSConfiguredInstance):
        def __init__(self, place: str) -> None:
            super().__init__(config_name=place)
            self.place = place

        @dbos.workflow()
        def here(self) -> str:
            return self.place

        @classmethod
        @dbos.workflow()
        def of_class(cls) -> str:
            return cls.__name__

        @staticmethod
        @dbos.workflow()
        def static(n: int) -> int:
            return n

    north, south = Shop("north"), Shop("south")
    dbos.launch()
    workflows: dict[str, tuple[Callable[..., Any], tuple[Any, ...], Any]] = {
        "north": (north.here, (), "north"),
        "south": (south.here, (), "south"),
        "class": (Shop.of_class, (), "Shop"),
        "static": (Shop.static, (7,), 7),
    }
    for workflow_id, (func, args, _) in workflows.items():
        run(workflow_id, func, *args)
        crash(workflow_id)

    assert recover(*workflows) == [expected for _, _, expected in workflows.values()]


def test_executing_by_id_names_what_is_missing(dbos: type[DBOS]) -> None:
    @dbos.workflow(name="gone")
    def gone() -> None:
        pass

    dbos.launch()
    run("w", gone)
    crash("w")
    del _process.registry.workflows["gone"]

    with pytest.raises(DBOSWorkflowFunctionNotFoundError, match="gone is not a registered workflow function"):
        dbos._execute_workflow_id("w")
    with pytest.raises(DBOSRecoveryError):
        dbos._execute_workflow_id("unknown")


def test_one_row_that_cannot_be_begun_does_not_strand_the_others_of_its_claim(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    @dbos.workflow()
    def workflow(n: int) -> int:
        return n

    dbos.launch()
    for n in range(5):
        run(str(n), workflow, n)
    for n in range(5):
        crash(str(n))
    failures = [RuntimeError("unforeseen")]

    def fail_once(engine: Engine, row: StatusRow) -> Any:
        if failures:
            raise failures.pop()
        return resolve(engine, row)

    monkeypatch.setattr(claims, "resolve", fail_once)
    DBOS._recover_pending_workflows()
    until(lambda: sum(status(str(n)) == "SUCCESS" for n in range(5)) >= 4, "the others to end")
    DBOS._recover_pending_workflows()

    until(lambda: all(status(str(n)) == "SUCCESS" for n in range(5)), "the one that failed to be tried again")
