"""Values in rows: what is stored comes back exactly, and what cannot be stored is an error once, not for ever."""

from __future__ import annotations

import ast
import math
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy

from dbos import DBOS, DBOSConfig, PortableWorkflowError, Serializer, SetWorkflowID
from dbos._error import DBOSDatabaseUnavailableError, DBOSDeserializationError, DBOSException
from dbos._sysdb import committer
from tests.integration.histories import change, engine, execute_again, recorded, row, steps


@dataclass
class Point:
    x: int
    y: int


class Picky(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code, self.reason = code, reason


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def cyclic() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    return value


VALUES: dict[str, Any] = {
    "nothing": None,
    "NUL": "a\0b",
    "lone surrogate": "a\ud800b",
    "emoji": "🦊",
    "quotes": "\"'\\{}[]%s:name$1?",
    "infinity": math.inf,
    "large integer": 10**700,
    "bytes": b"\0\xff",
    "tuple": (1, (2, 3)),
    "set": {1, 2},
    "time": datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    "object": Point(1, 2),
    "keys": {1: "a", None: "b", (1, 2): "c"},
    "ten megabytes": "x" * 10_000_000,
    "deep": nested(150),
    "empty": ["", [], {}],
    "marker": "__DBOS_STREAM_CLOSED__",
}


@pytest.fixture
def echo(dbos: type[DBOS]) -> Callable[[Any], Any]:
    """A workflow that passes its input through a step, as ``wf``."""

    @dbos.step()
    def step(value: Any) -> Any:
        return value

    @dbos.workflow()
    def workflow(value: Any) -> Any:
        return step(value)

    def call(value: Any) -> Any:
        with SetWorkflowID("wf"):
            return workflow(value)

    dbos.launch()
    return call


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_value_survives_as_input_as_result_and_as_step(
    dbos: type[DBOS], echo: Callable[[Any], Any], value: Any
) -> None:
    echo(value)

    results = [dbos.retrieve_workflow("wf").get_result(), execute_again("wf").get_result()]

    for result in results:
        assert result == value
        assert type(result) is type(value)
    [info] = dbos.list_workflow_steps("wf")
    assert info["output"] == value
    status = dbos.get_workflow_status("wf")
    assert status is not None
    assert status.input == {"args": (value,), "kwargs": {}}


def test_not_a_number_survives(dbos: type[DBOS], echo: Callable[[Any], Any]) -> None:
    echo(math.nan)

    assert math.isnan(dbos.retrieve_workflow("wf").get_result())


def test_a_value_that_contains_itself_survives(dbos: type[DBOS], echo: Callable[[Any], Any]) -> None:
    echo(cyclic())

    result = dbos.retrieve_workflow("wf").get_result()

    assert result[1] is result


def test_what_is_readable_is_stored_as_json(dbos: type[DBOS], echo: Callable[[Any], Any]) -> None:
    echo({"a": [1, 2.5, None, True, "é"]})

    assert row("wf").output == '{"a":[1,2.5,null,true,"é"]}'
    assert row("wf").serialization == "json"
    assert steps("wf")[0].output == '{"a":[1,2.5,null,true,"é"]}'


@pytest.mark.parametrize("value", [threading.Lock(), lambda: None], ids=["lock", "lambda"])
def test_arguments_that_cannot_be_serialized_are_refused_before_anything_is_stored(
    dbos: type[DBOS], echo: Callable[[Any], Any], value: Any
) -> None:
    with pytest.raises(Exception, match=r"pickle|lambda"):
        echo(value)

    assert dbos.list_workflows() == []


def test_deep_nesting_is_refused_clearly(dbos: type[DBOS], echo: Callable[[Any], Any]) -> None:
    with pytest.raises(Exception, match=r"recursion|nest|deep"):
        echo(nested(200_000))

    assert dbos.list_workflows() == []


@pytest.mark.parametrize("value", [threading.Lock(), nested(200_000)], ids=["lock", "deep"])
def test_a_result_that_cannot_be_serialized_is_an_error_once(dbos: type[DBOS], value: Any) -> None:
    calls: list[str] = []

    @dbos.step()
    def step() -> Any:
        calls.append("step")
        return value

    @dbos.workflow(name="bad step")
    def bad_step() -> None:
        step()

    @dbos.workflow(name="bad result")
    def bad_result() -> Any:
        calls.append("workflow")
        return value

    dbos.launch()

    for workflow in (bad_step, bad_result):
        with pytest.raises((TypeError, RecursionError, DBOSException)) as first, SetWorkflowID(workflow.__qualname__):
            workflow()

        assert row(workflow.__qualname__).status == "ERROR"
        with pytest.raises(type(first.value)):
            dbos.retrieve_workflow(workflow.__qualname__).get_result()
    with pytest.raises(type(first.value)):
        execute_again(bad_step.__qualname__).get_result()
    assert calls == ["step", "workflow"]


class Unreadable:
    """It can be pickled, and the pickle cannot be loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return refuse, ("cannot be made again",)


def refuse(message: str) -> None:
    raise LookupError(message)


def test_a_result_that_cannot_be_read_back_is_an_error_for_its_reader_only(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow(value: int) -> Any:
        return Unreadable() if value == 0 else value

    dbos.launch()
    for value in range(2):
        with SetWorkflowID(f"wf{value}"):
            workflow(value)

    with pytest.raises(DBOSDeserializationError, match="LookupError"):
        dbos.retrieve_workflow("wf0").get_result()

    unreadable, readable = dbos.list_workflows()
    assert (unreadable.status, readable.status) == ("SUCCESS", "SUCCESS")
    assert (type(unreadable.output), readable.output) == (str, 1)  # its text is shown


def test_a_step_that_cannot_be_read_back_ends_its_workflow_when_it_is_replayed(dbos: type[DBOS]) -> None:
    calls: list[int] = []

    @dbos.step(name="step")
    def step() -> Any:
        calls.append(1)
        return Unreadable()

    @dbos.workflow()
    def workflow() -> str:
        step()
        return "done"

    dbos.launch()
    with SetWorkflowID("wf"):
        assert workflow() == "done"

    with pytest.raises(DBOSDeserializationError, match="LookupError"):
        execute_again("wf").get_result()

    assert row("wf").status == "ERROR"
    assert len(calls) == 1
    assert [info["function_name"] for info in dbos.list_workflow_steps("wf")] == ["step"]


# -- exceptions --------------------------------------------------------------------------------------------------------


class Reduced(Exception):
    """It says itself how it is made again."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code, self.reason = code, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return make_reduced, (self.code, self.reason)


def make_reduced(code: int, reason: str) -> Reduced:
    return Reduced(code, reason=reason)


class Unspeakable(Exception):
    """Nothing about it works."""

    def __str__(self) -> str:
        raise LookupError("broken")

    def __reduce__(self) -> tuple[Any, ...]:
        raise LookupError("broken too")


def with_lock() -> Exception:
    error = ValueError("what happened")
    error.lock = threading.Lock()  # type: ignore[attr-defined]  # an attribute that cannot be pickled
    return error


def caused_by_itself() -> Exception:
    error = ValueError("round and round")
    error.__cause__ = error
    return error


def holding_itself() -> Exception:
    error = ValueError("inside")
    error.args = ("inside", error)
    return error


ERRORS: dict[str, tuple[Callable[[], Exception], type[Exception], str]] = {
    "plain": (lambda: KeyError("gone", 7), KeyError, r"\('gone', 7\)"),
    "arguments that must be named": (lambda: Picky(7, reason="because"), Picky, "7: because"),
    "a __reduce__ of its own": (lambda: Reduced(7, reason="because"), Reduced, "7: because"),
    "an attribute that cannot be pickled": (with_lock, PortableWorkflowError, "what happened"),
    "no text and no pickle": (Unspeakable, PortableWorkflowError, "Unspeakable"),
    "NUL": (lambda: ValueError("a\0b"), ValueError, "a\0b"),
    "lone surrogate": (lambda: ValueError("a\ud800b"), ValueError, "a\ud800b"),
    "not a number": (lambda: ValueError(math.nan), ValueError, "nan"),
    "deep": (lambda: ValueError("deep", nested(200_000)), PortableWorkflowError, "ValueError"),
    "caused by itself": (caused_by_itself, ValueError, "round and round"),
    "holding itself": (holding_itself, PortableWorkflowError, "inside"),
    "two megabytes": (lambda: ValueError("x" * 2_000_000), ValueError, "xxx"),
}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", ERRORS)
def test_any_exception_is_raised_as_it_is_and_recorded_once(dbos: type[DBOS], kind: str, is_async: bool) -> None:
    make, recorded_as, text = ERRORS[kind]
    calls: list[int] = []
    error = make()

    @dbos.step(name="fail")
    def fail() -> None:
        calls.append(1)
        raise error

    @dbos.step(name="fail")
    async def fail_async() -> None:
        calls.append(1)
        raise error

    @dbos.workflow()
    def workflow() -> None:
        fail()

    @dbos.workflow()
    async def workflow_async() -> None:
        await fail_async()

    dbos.launch()
    with SetWorkflowID("wf"):
        first = dbos.start_workflow(workflow_async if is_async else workflow)

    with pytest.raises(Exception) as raised:  # noqa: PT011  # the very object, compared below
        first.get_result()
    assert raised.value is error
    assert (row("wf").status, recorded("wf")) == ("ERROR", [(1, "fail")])
    for again in (dbos.retrieve_workflow("wf"), execute_again("wf"), dbos.retrieve_workflow("wf")):
        with pytest.raises(recorded_as, match=text) as replayed:
            again.get_result()
        assert type(replayed.value) is recorded_as
    assert (row("wf").status, len(calls)) == ("ERROR", 1)
    [info] = dbos.list_workflow_steps("wf")
    assert type(info["error"]) is recorded_as
    if isinstance(info["error"], Reduced):
        assert (info["error"].code, info["error"].reason) == (7, "because")


# -- values that the database refuses ----------------------------------------------------------------------------------


REFUSE = {
    "sqlite": """
        CREATE TRIGGER {table}_refuse BEFORE {event} ON {table} WHEN NEW.output = '"unstorable"'
        BEGIN SELECT RAISE(ABORT, 'too large'); END
        """,
    "postgresql": "ALTER TABLE dbos.{table} ADD CHECK (output <> '\"unstorable\"')",
}


@pytest.fixture
def unstorable(dbos: type[DBOS]) -> type[DBOS]:
    """DBOS, launched on a database that refuses the result ``"unstorable"``."""
    dbos.launch()
    for table, event in (("operation_outputs", "INSERT"), ("workflow_status", "UPDATE")):
        change(REFUSE[engine().db.dialect.name].format(table=table, event=event))
    return dbos


@pytest.mark.parametrize("is_async", [False, True])
def test_a_step_whose_record_the_database_refuses_fails_the_same_way_every_time(
    unstorable: type[DBOS], is_async: bool
) -> None:
    calls: list[int] = []

    @unstorable.step(name="step")
    def step() -> str:
        calls.append(1)
        return "unstorable"

    @unstorable.step(name="step")
    async def step_async() -> str:
        calls.append(1)
        return "unstorable"

    @unstorable.workflow()
    def workflow() -> str:
        try:
            return step()
        except DBOSException as error:
            return str(error)

    @unstorable.workflow()
    async def workflow_async() -> str:
        try:
            return await step_async()
        except DBOSException as error:
            return str(error)

    with SetWorkflowID("wf"):
        first: Any = unstorable.start_workflow(workflow_async if is_async else workflow).get_result()

    assert "The result of step step could not be stored" in first
    assert execute_again("wf").get_result() == first
    assert len(calls) == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_an_outcome_that_the_database_refuses_is_an_error_once(unstorable: type[DBOS], is_async: bool) -> None:
    calls: list[int] = []

    @unstorable.workflow()
    def workflow() -> str:
        calls.append(1)
        return "unstorable"

    @unstorable.workflow()
    async def workflow_async() -> str:
        calls.append(1)
        return "unstorable"

    with SetWorkflowID("wf"):
        handle = unstorable.start_workflow(workflow_async if is_async else workflow)

    with pytest.raises(DBOSException, match="outcome of workflow wf could not be stored"):
        handle.get_result()
    assert row("wf").status == "ERROR"
    with pytest.raises(DBOSException, match="could not be stored"):
        unstorable.retrieve_workflow("wf").get_result()
    assert len(calls) == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_value_that_is_too_large_is_an_error_once(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    monkeypatch.setattr(committer, "MAX_UNIT_CHARACTERS", 2_000_000)
    calls: list[str] = []
    large = "x" * 3_000_000

    def produce(what: str) -> str:
        calls.append(what)
        return large

    async def produce_async(what: str) -> str:
        return produce(what)

    @dbos.workflow()
    def workflow(argument: str) -> str:
        with pytest.raises(DBOSException, match="could not be stored"):
            dbos.run_step({"name": "step"}, produce, "step")
        with pytest.raises(DBOSException, match="too large"):
            workflow(large)
        return produce("workflow")

    @dbos.workflow()
    async def workflow_async(argument: str) -> str:
        with pytest.raises(DBOSException, match="could not be stored"):
            await dbos.run_step_async({"name": "step"}, produce_async, "step")
        with pytest.raises(DBOSException, match="too large"):
            await workflow_async(large)
        return await produce_async("workflow")

    dbos.launch()
    chosen: Any = workflow_async if is_async else workflow
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(chosen, "small")

    for again in (handle, dbos.retrieve_workflow("wf")):
        with pytest.raises(DBOSException, match="outcome of workflow wf could not be stored"):
            again.get_result()
    with pytest.raises(DBOSException, match="too large"):
        dbos.start_workflow(chosen, large)

    assert calls == ["step", "workflow"]
    assert (recorded("wf"), row("wf").status) == ([(1, "step")], "ERROR")
    assert [status.workflow_id for status in dbos.list_workflows()] == ["wf"]
    with pytest.raises(DBOSException, match="could not be stored"):
        execute_again("wf").get_result()
    assert calls == ["step", "workflow", "workflow"]


def test_one_record_that_the_database_refuses_fails_alone(unstorable: type[DBOS]) -> None:
    @unstorable.step()
    def step(value: str) -> str:
        return value

    @unstorable.workflow()
    def workflow(number: int) -> str:
        return step("unstorable" if number == 7 else "fine")

    handles = [unstorable.start_workflow(workflow, number) for number in range(20)]

    outcomes = []
    for handle in handles:
        try:
            outcomes.append(handle.get_result())
        except DBOSException:
            outcomes.append("error")

    assert outcomes == ["error" if number == 7 else "fine" for number in range(20)]


class Representation(Serializer):
    def serialize(self, data: Any) -> str:
        return repr(data)

    def deserialize(self, serialized_data: str) -> Any:
        return ast.literal_eval(serialized_data)

    def name(self) -> str:
        return "representation"


def test_a_row_names_the_format_it_is_in(config: DBOSConfig) -> None:
    config["serializer"] = Representation()
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)

    @DBOS.workflow()
    def workflow(value: int) -> int:
        return value

    DBOS.launch()
    try:
        with SetWorkflowID("wf"):
            workflow(3)

        assert (row("wf").output, row("wf").serialization) == ("3", "representation")
        assert DBOS.retrieve_workflow("wf").get_result() == 3
    finally:
        DBOS.destroy(destroy_registry=True)


def test_a_schedule_runs_where_only_json_is_allowed(config: DBOSConfig) -> None:
    config["allowed_serializers"] = ["json"]
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)
    seen: list[Any] = []

    @DBOS.workflow()
    def workflow(scheduled_time: datetime, context: Any) -> datetime:
        seen.append((scheduled_time, context))
        return scheduled_time

    DBOS.launch()
    try:
        start = datetime(2026, 10, 25, 0, 15, tzinfo=UTC)  # before the hour that is repeated in Berlin
        DBOS.create_schedule(
            schedule_name="s", workflow_fn=workflow, schedule="0 * * * *", cron_timezone="Europe/Berlin", context=[1]
        )
        handles = DBOS.backfill_schedule("s", start, start + timedelta(hours=1))
        results = [handle.get_result() for handle in handles]

        assert [result.isoformat() for result in results] == ["2026-10-25T02:00:00+01:00"]
        assert seen == [(results[0], [1])]
        assert str(results[0].tzinfo) == "Europe/Berlin"
        assert row(handles[0].workflow_id).serialization == "json"
    finally:
        DBOS.destroy(destroy_registry=True)


# What looks like a failure of the system database.
RETRYABLE: dict[str, Exception] = {
    "sqlite": sqlite3.OperationalError("database is locked"),
    "postgres": psycopg.errors.SerializationFailure("could not serialize access"),
    "connection": psycopg.OperationalError("server closed the connection unexpectedly"),
    "sqlalchemy": sqlalchemy.exc.OperationalError("SELECT 1", {}, sqlite3.OperationalError("database is locked")),
    "ours": DBOSDatabaseUnavailableError("another one's"),
}


@pytest.mark.parametrize("error", RETRYABLE.values(), ids=RETRYABLE)
@pytest.mark.parametrize("is_async", [False, True])
def test_the_error_of_a_child_is_raised_and_not_retried_whatever_it_looks_like(
    dbos: type[DBOS], error: Exception, is_async: bool
) -> None:
    calls: list[str] = []

    @dbos.workflow()
    def child() -> None:
        calls.append("child")
        raise error

    @dbos.workflow()
    def parent() -> str:
        handle = dbos.start_workflow(child)
        with pytest.raises(type(error)) as caught:
            handle.get_result()
        return str(caught.value)

    @dbos.workflow()
    async def parent_async() -> str:
        handle = await dbos.start_workflow_async(child)
        with pytest.raises(type(error)) as caught:
            await handle.get_result()
        return str(caught.value)

    dbos.launch()
    chosen: Any = parent_async if is_async else parent
    with SetWorkflowID("wf"):
        first = dbos.start_workflow(chosen).get_result()

    again = execute_again("wf").get_result()

    assert first == again == str(error)
    assert calls == ["child"]
    assert [(step.function_name, step.error is not None) for step in steps("wf")][-1] == ("DBOS.getResult", True)
