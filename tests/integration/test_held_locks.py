"""A write that has to wait, for somebody's lock or for its own size, or that is refused, costs nobody else anything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from dbos import DBOS, DBOSConfig, SetWorkflowID, SetWorkflowTimeout
from dbos._process import process
from dbos._sysdb.connection import Connection
from tests.integration.histories import PATIENCE_S, change, engine, eventually, row, steps

MIB = 1024 * 1024

# SQLite locks no rows: whoever writes has the whole file.
on_postgres = pytest.mark.dbos_databases("postgres")


def define_others(dbos: type[DBOS]) -> Callable[[], None]:
    """Everything that a process may want to commit; returns a function that does all of it and waits for it."""

    @dbos.step(name="other_step")
    def step(number: int) -> int:
        return number

    @dbos.step(name="other_step_async")
    async def step_async(number: int) -> int:
        return number

    @dbos.workflow(name="other_child")
    def child(number: int) -> int:
        return step(number)

    @dbos.workflow(name="other")
    def other() -> list[int]:
        return [step(1), child(2), dbos.start_workflow(child, 3).get_result()]

    @dbos.workflow(name="other_async")
    async def other_async() -> list[int]:
        return [await step_async(1), await step_async(2), await step_async(3)]

    def go_on() -> None:
        handles: list[Any] = [dbos.start_workflow(each) for each in (other, other_async) for _ in range(5)]
        results: list[Any] = []
        waiting = threading.Thread(target=lambda: results.extend(handle.get_result() for handle in handles))
        waiting.start()
        waiting.join(PATIENCE_S)
        assert results == [[1, 2, 3]] * 10

    return go_on


@contextmanager
def held(config: DBOSConfig, lock: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody's own session on PostgreSQL, which holds a lock until the block ends."""
    url = config["system_database_url"]
    assert url is not None
    with psycopg.connect(url) as psql:
        psql.execute(lock.encode())
        yield psql
        psql.rollback()


@on_postgres
@pytest.mark.parametrize(
    ("is_async", "size"), [(False, 1), (True, 1), (False, 10 * MIB)], ids=["thread", "coroutine", "ten megabytes"]
)
def test_a_workflow_whose_row_somebody_has_locked_waits_alone(
    dbos: type[DBOS], config: DBOSConfig, is_async: bool, size: int
) -> None:
    go_on, may_end = define_others(dbos), threading.Event()

    @dbos.step(name="step")
    def step() -> str:
        assert may_end.wait(PATIENCE_S)
        return "x" * size

    @dbos.workflow(name="work")
    def work() -> str:
        return step()

    @dbos.workflow(name="work_async")
    async def work_async() -> str:
        return await dbos.run_step_async({"name": "step"}, step)

    dbos.launch()
    with SetWorkflowID("locked"):
        handle: Any = dbos.start_workflow(work_async if is_async else work)
    with held(config, "SELECT 1 FROM dbos.workflow_status WHERE workflow_uuid = 'locked' FOR UPDATE"):
        may_end.set()
        eventually(lambda: len(steps("locked")) == 1)  # a step needs no lock on the row; the outcome does
        go_on()
        assert row("locked").status == "PENDING"

    assert handle.get_result() == "x" * size


@on_postgres
def test_a_step_whose_place_somebody_has_taken_and_not_committed_waits_alone(
    dbos: type[DBOS], config: DBOSConfig
) -> None:
    go_on, may_end = define_others(dbos), threading.Event()

    @dbos.step(name="step")
    def step() -> str:
        assert may_end.wait(PATIENCE_S)
        return "ours"

    @dbos.workflow(name="work")
    def work() -> str:
        return step()

    dbos.launch()
    with SetWorkflowID("w"):
        handle = dbos.start_workflow(work)
    taken = "INSERT INTO dbos.operation_outputs (workflow_uuid, function_id, function_name) VALUES ('w', 1, 'step')"
    with held(config, taken):
        may_end.set()
        go_on()
        assert row("w").status == "PENDING"

    assert handle.get_result() == "ours"


@on_postgres
def test_what_is_overdue_and_locked_keeps_no_other_deadline_waiting(dbos: type[DBOS], config: DBOSConfig) -> None:
    @dbos.workflow(name="work")
    def work() -> None:
        dbos.sleep(3600)

    dbos.launch()
    with SetWorkflowID("locked"), SetWorkflowTimeout(0.3):
        dbos.start_workflow(work)
    with held(config, "SELECT 1 FROM dbos.workflow_status WHERE workflow_uuid = 'locked' FOR UPDATE"):
        eventually(lambda: engine().db.now_ms() > (row("locked").workflow_deadline_epoch_ms or 0))
        with SetWorkflowID("other"), SetWorkflowTimeout(0.01):
            dbos.start_workflow(work)
        eventually(lambda: row("other").status == "CANCELLED")
        assert row("locked").status == "PENDING"

    eventually(lambda: row("locked").status == "CANCELLED")


@on_postgres
def test_what_is_to_be_enqueued_again_and_locked_keeps_no_lease_from_being_renewed(
    dbos: type[DBOS], config: DBOSConfig
) -> None:
    @dbos.workflow(name="work")
    def work() -> str:
        return "done"

    dbos.launch()
    with SetWorkflowID("locked"):
        dbos.start_workflow(work).get_result()
    assert process.runtime is not None
    leases = process.runtime._leases
    change(
        "UPDATE dbos.workflow_status SET status = 'PENDING', output = NULL, completed_at = NULL, "
        "owner_instance = :instance WHERE workflow_uuid = 'locked'",
        instance=engine().instance_id,
    )
    with held(config, "SELECT 1 FROM dbos.workflow_status WHERE workflow_uuid = 'locked' FOR UPDATE"):
        rounds = threading.Thread(target=lambda: [leases.work_once() for _ in range(3)], daemon=True)
        rounds.start()
        rounds.join(PATIENCE_S)
        assert not rounds.is_alive()
        assert row("locked").status == "PENDING"

    leases.work_once()

    assert dbos.retrieve_workflow("locked").get_result() == "done"


@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "coroutine"])
def test_ten_megabytes_are_recorded_as_they_are_while_others_go_on(dbos: type[DBOS], is_async: bool) -> None:
    go_on, large = define_others(dbos), "ä\n" + "x" * (10 * MIB)

    @dbos.step(name="step")
    def step() -> str:
        return large

    @dbos.workflow(name="work")
    def work() -> int:
        return len(step())

    @dbos.workflow(name="work_async")
    async def work_async() -> int:
        return len(await dbos.run_step_async({"name": "step"}, step))

    dbos.launch()
    with SetWorkflowID("large"):
        handle: Any = dbos.start_workflow(work_async if is_async else work)
    go_on()

    assert handle.get_result() == len(large)
    [recorded] = steps("large")
    assert engine().serialization.load_value(recorded.output, recorded.serialization) == large


def test_a_write_that_is_refused_costs_those_after_it_nothing(dbos: type[DBOS]) -> None:
    """After a rollback the driver once threw away the statements that others had prepared on the connection."""
    go_on = define_others(dbos)
    dbos.launch()
    go_on()

    def refuse(connection: Connection) -> None:
        connection.run("UPDATE dbos.workflow_status SET priority = priority")
        raise LookupError

    for _ in range(10):
        with pytest.raises(LookupError):
            engine().db.change(refuse)

    go_on()
