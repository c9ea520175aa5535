"""Schedules in the code: functions that ``DBOS.scheduled`` starts."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from dbos import DBOS, DBOSConfig, DBOSConfiguredInstance, DBOSException, WorkflowStatus
from dbos._error import DBOSWorkflowFunctionNotFoundError
from dbos._sysdb.connection import Connection
from dbos._sysdb.stores.schedules import RunRow
from dbos.testing import VirtualTime
from tests.integration.histories import engine

EVERY_SECOND = "* * * * * *"

Function = Callable[[datetime, datetime], Any]


class Calls:
    """The calls of a function."""

    def __init__(self) -> None:
        self.times: list[tuple[datetime, datetime]] = []
        self.ids: list[str | None] = []

    def note(self, scheduled_time: datetime, actual_time: datetime) -> None:
        self.times.append((scheduled_time, actual_time))
        self.ids.append(DBOS.workflow_id)


@pytest.fixture
def clock(dbos_virtual_time: VirtualTime) -> VirtualTime:
    return dbos_virtual_time


def runs_of(name: str) -> list[WorkflowStatus]:
    return DBOS.list_workflows(workflow_id_prefix=f"sched-{name}-")


def test_functions_of_every_kind_are_started(dbos: type[DBOS], clock: VirtualTime, subtests: pytest.Subtests) -> None:
    calls = {kind: Calls() for kind in ("function", "coroutine", "named", "upside", "step", "step_async")}
    calls |= {kind: Calls() for kind in ("transaction", "static", "static_upside", "of_class")}

    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow()
    def function(scheduled_time: datetime, actual_time: datetime) -> None:
        calls["function"].note(scheduled_time, actual_time)

    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow()
    async def coroutine(scheduled_time: datetime, actual_time: datetime) -> None:
        calls["coroutine"].note(scheduled_time, actual_time)

    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow(name="renamed")
    def named(scheduled_time: datetime, actual_time: datetime) -> None:
        calls["named"].note(scheduled_time, actual_time)

    @dbos.workflow()
    @dbos.scheduled(EVERY_SECOND)
    def upside(scheduled_time: datetime, actual_time: datetime) -> None:
        calls["upside"].note(scheduled_time, actual_time)

    @dbos.scheduled(EVERY_SECOND)
    @dbos.step()
    def step(scheduled_time: datetime, actual_time: datetime) -> None:
        calls["step"].note(scheduled_time, actual_time)

    @dbos.scheduled(EVERY_SECOND)
    @dbos.step()
    async def step_async(scheduled_time: datetime, actual_time: datetime) -> None:
        calls["step_async"].note(scheduled_time, actual_time)

    @dbos.scheduled(EVERY_SECOND)
    @dbos.transaction()
    def transaction(scheduled_time: datetime, actual_time: datetime) -> None:
        DBOS.sql_session.execute(sa.text("SELECT 1"))
        calls["transaction"].note(scheduled_time, actual_time)

    @dbos.dbos_class("Custom")
    class Jobs:
        @staticmethod
        @dbos.scheduled(EVERY_SECOND)
        @dbos.workflow()
        def static(scheduled_time: datetime, actual_time: datetime) -> None:
            calls["static"].note(scheduled_time, actual_time)

        @dbos.scheduled(EVERY_SECOND)
        @dbos.workflow()
        @staticmethod
        def static_upside(scheduled_time: datetime, actual_time: datetime) -> None:
            calls["static_upside"].note(scheduled_time, actual_time)

        @classmethod
        @dbos.scheduled(EVERY_SECOND)
        @dbos.workflow()
        def of_class(cls, scheduled_time: datetime, actual_time: datetime) -> None:
            assert cls.__name__ == "Jobs"
            calls["of_class"].note(scheduled_time, actual_time)

    functions: dict[str, Any] = {
        "function": function,
        "coroutine": coroutine,
        "named": named,
        "upside": upside,
        "step": step,
        "step_async": step_async,
        "transaction": transaction,
        "static": Jobs.static,
        "static_upside": Jobs.static_upside,
        "of_class": Jobs.of_class,
    }
    dbos.launch()
    clock.advance(1)

    for kind, each in functions.items():
        with subtests.test(kind):
            name = "renamed" if kind == "named" else each.__qualname__
            [(tick, actual)], [id] = calls[kind].times, calls[kind].ids
            assert tick == clock.now()
            assert (tick.utcoffset(), actual.utcoffset()) == (timedelta(0), timedelta(0))
            assert timedelta(0) <= actual - tick < timedelta(seconds=1)
            assert id == f"sched-{name}-{tick.isoformat()}"
            run = runs_of(name)[0]
            assert run.name == (f"<temp>.{name}" if kind in ("step", "step_async", "transaction") else name)
            assert run.class_name == ("Custom" if kind == "of_class" else None)
            assert (run.workflow_id, run.queue_name) == (id, "_dbos_internal_queue")
            assert (run.app_version, run.priority, run.parent_workflow_id) == ("test", 0, None)
            assert run.schedule_name is None
            arguments: Any = run.input
            assert arguments == {"args": (tick, actual), "kwargs": {}}


def test_a_failing_run_does_not_stop_later_ticks(dbos: type[DBOS], clock: VirtualTime) -> None:
    calls = Calls()

    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow()
    def workflow(scheduled_time: datetime, actual_time: datetime) -> None:
        calls.note(scheduled_time, actual_time)
        raise ValueError("failed")

    dbos.launch()
    clock.advance(2)

    (first, _), (second, _) = calls.times
    assert second - first == timedelta(seconds=1)
    assert len(set(calls.ids)) == 2
    assert [run.status for run in runs_of(workflow.__qualname__)] == ["ERROR", "ERROR"]


def test_a_tick_that_could_not_be_stored_is_tried_again(
    dbos: type[DBOS], clock: VirtualTime, config: DBOSConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database had no room for a moment, and the tick was lost."""
    is_sqlite = str(config["system_database_url"]).startswith("sqlite")
    full = sqlite3.OperationalError("database or disk is full") if is_sqlite else psycopg.errors.DiskFull("no room")
    calls = Calls()

    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow()
    def workflow(scheduled_time: datetime, actual_time: datetime) -> None:
        calls.note(scheduled_time, actual_time)

    dbos.launch()
    store = engine().db.schedules
    start, failed = store.start, list[str]()

    def start_later(connection: Connection, runs: Sequence[RunRow]) -> None:
        if not failed:
            failed.extend(run.workflow_uuid for run in runs)
            raise full
        start(connection, runs)

    monkeypatch.setattr(store, "start", start_later)
    clock.advance(2)

    assert len(failed) == 1
    assert {*failed, *calls.ids} == {run.workflow_id for run in runs_of(workflow.__qualname__)}
    assert len(calls.ids) == 2


def test_a_function_is_decorated_before_and_after_the_launch(dbos: type[DBOS], clock: VirtualTime) -> None:
    before, after, upside = Calls(), Calls(), Calls()

    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow()
    def early(scheduled_time: datetime, actual_time: datetime) -> None:
        before.note(scheduled_time, actual_time)

    dbos.launch()

    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow()
    def late(scheduled_time: datetime, actual_time: datetime) -> None:
        after.note(scheduled_time, actual_time)

    @dbos.workflow()
    @dbos.scheduled(EVERY_SECOND)
    def late_and_upside(scheduled_time: datetime, actual_time: datetime) -> None:
        upside.note(scheduled_time, actual_time)

    clock.advance(1)

    assert [len(each.times) for each in (before, after, upside)] == [1, 1, 1]


def test_a_decorated_function_is_called_as_ever(dbos: type[DBOS]) -> None:
    @dbos.scheduled("0 0 1 1 *")
    @dbos.workflow()
    def workflow(scheduled_time: datetime, actual_time: datetime) -> str:
        return f"{scheduled_time:%d} {actual_time:%d}"

    dbos.launch()

    assert workflow(datetime(2026, 1, 1), datetime(2026, 1, 2)) == "01 02"
    assert dbos.start_workflow(workflow, datetime(2026, 1, 3), datetime(2026, 1, 4)).get_result() == "03 04"
    assert dbos.list_schedules() == []  # it is in the code only
    assert runs_of(workflow.__qualname__) == []


def test_a_function_may_have_several_schedules_and_share_a_tick_with_others(
    dbos: type[DBOS], clock: VirtualTime
) -> None:
    """Of those due at one time, comparing functions failed."""
    one, other = Calls(), Calls()

    @dbos.scheduled(EVERY_SECOND)
    @dbos.scheduled("*/1 * * * * *")
    @dbos.workflow()
    def first(scheduled_time: datetime, actual_time: datetime) -> None:
        one.note(scheduled_time, actual_time)

    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow()
    def second(scheduled_time: datetime, actual_time: datetime) -> None:
        other.note(scheduled_time, actual_time)

    dbos.launch()
    clock.advance(2)

    assert len(set(one.ids)) == len(one.ids) == 2  # a tick of both its schedules starts one run
    assert len(other.ids) == 2


def test_schedules_go_on_after_a_new_launch_and_are_forgotten_with_the_registry(
    dbos: type[DBOS], clock: VirtualTime, config: Any
) -> None:
    calls: list[Calls] = [Calls()]

    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow(name="workflow")
    def workflow(scheduled_time: datetime, actual_time: datetime) -> None:
        calls[-1].note(scheduled_time, actual_time)

    dbos.launch()
    clock.advance(1)
    dbos.destroy()
    calls.append(Calls())

    DBOS(config=config)
    dbos.launch()
    clock.advance(1)
    dbos.destroy(destroy_registry=True)
    calls.append(Calls())

    DBOS(config=config)
    canary = Calls()

    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow()
    def other(scheduled_time: datetime, actual_time: datetime) -> None:
        canary.note(scheduled_time, actual_time)

    dbos.launch()
    clock.advance(1)

    assert [len(each.times) for each in (*calls, canary)] == [1, 1, 0, 1]


def test_a_bad_expression_is_refused_at_once(dbos: type[DBOS]) -> None:
    @dbos.workflow(name="nightly")
    def workflow(scheduled_time: datetime, actual_time: datetime) -> None: ...

    def undecorated(scheduled_time: datetime, actual_time: datetime) -> None: ...

    bad: list[Any] = ["not a cron", "61 * * * *", "0 0 31 2 *", "", None]
    for cron in bad:
        message = re.escape(f'Invalid crontab "{cron}" for scheduled function nightly: ') + "."
        with pytest.raises(ValueError, match=message):
            dbos.scheduled(cron)(workflow)
        with pytest.raises(DBOSWorkflowFunctionNotFoundError, match="undecorated is not a registered workflow"):
            dbos.scheduled(cron)(undecorated)

    assert engine().registry.scheduled == []


def test_methods_of_instances_are_refused(dbos: type[DBOS]) -> None:
    with pytest.raises(DBOSException, match="Configured instance methods cannot be used as scheduled workflows"):

        @dbos.dbos_class()
        class Jobs(DBOSConfiguredInstance):
            @dbos.scheduled(EVERY_SECOND)
            @dbos.workflow()
            def method(self, scheduled_time: datetime, actual_time: datetime) -> None: ...

    with pytest.raises(DBOSException, match="DBOS decorator was applied to 5"):
        dbos.scheduled(EVERY_SECOND)(5)  # type: ignore[type-var]  # which is the point


def test_a_function_that_is_nothing_else_keeps_no_other_from_being_started(
    dbos: type[DBOS], clock: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever was declared after it never ran, and nobody was told."""
    calls = Calls()

    @dbos.scheduled(EVERY_SECOND)
    def forgotten(scheduled_time: datetime, actual_time: datetime) -> None: ...

    @dbos.scheduled(EVERY_SECOND)
    @dbos.workflow()
    def workflow(scheduled_time: datetime, actual_time: datetime) -> None:
        calls.note(scheduled_time, actual_time)

    logger = logging.getLogger("dbos")
    logger.addHandler(caplog.handler)  # it does not propagate once it was configured
    try:
        dbos.launch()
        clock.advance(1)
    finally:
        logger.removeHandler(caplog.handler)

    assert len(calls.times) == 1
    assert runs_of(forgotten.__qualname__) == []
    told = [record.getMessage() for record in caplog.records if "forgotten" in record.getMessage()]
    assert len(told) == 1
    assert "is scheduled, and never started" in told[0]
