"""Values in rows: what is stored comes back exactly, and what cannot be stored is an error once, not for ever."""

from __future__ import annotations

import ast
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, Serializer, SetWorkflowID
from dbos._error import DBOSException
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


def test_an_exception_keeps_its_type_and_attributes(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        raise Picky(7, reason="because")

    dbos.launch()
    with pytest.raises(Picky), SetWorkflowID("wf"):
        workflow()

    with pytest.raises(Exception, match="7: because"):
        dbos.retrieve_workflow("wf").get_result()


def test_an_exception_that_cannot_be_serialized_is_raised_and_recorded_by_its_text(dbos: type[DBOS]) -> None:
    class Local(Exception):
        lock = None

    @dbos.step()
    def step() -> None:
        error = Local("what happened")
        error.lock = threading.Lock()  # type: ignore[assignment]
        raise error

    @dbos.workflow()
    def workflow() -> None:
        step()

    dbos.launch()
    with pytest.raises(Local, match="what happened"), SetWorkflowID("wf"):
        workflow()

    assert row("wf").status == "ERROR"
    assert recorded("wf") == [(1, step.__qualname__)]
    with pytest.raises(Exception, match="what happened"):
        dbos.retrieve_workflow("wf").get_result()
    with pytest.raises(Exception, match="what happened"):
        execute_again("wf").get_result()


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


def test_a_step_whose_record_the_database_refuses_fails_the_same_way_every_time(unstorable: type[DBOS]) -> None:
    calls: list[int] = []

    @unstorable.step(name="step")
    def step() -> str:
        calls.append(1)
        return "unstorable"

    @unstorable.workflow()
    def workflow() -> str:
        try:
            return step()
        except DBOSException as error:
            return str(error)

    with SetWorkflowID("wf"):
        first = workflow()

    assert "The result of step step could not be stored" in first
    assert execute_again("wf").get_result() == first
    assert len(calls) == 1


def test_an_outcome_that_the_database_refuses_is_an_error_once(unstorable: type[DBOS]) -> None:
    calls: list[int] = []

    @unstorable.workflow()
    def workflow() -> str:
        calls.append(1)
        return "unstorable"

    with pytest.raises(DBOSException, match="outcome of workflow wf could not be stored"), SetWorkflowID("wf"):
        workflow()

    assert row("wf").status == "ERROR"
    with pytest.raises(DBOSException, match="could not be stored"):
        unstorable.retrieve_workflow("wf").get_result()
    assert len(calls) == 1


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
