"""What was written in one format is replayed after a restart with another one configured, or fails by itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, Serializer, SetWorkflowID, WorkflowSerializationFormat
from dbos._error import DBOSSerializationNotAllowedError
from tests.integration.crashes import Crash
from tests.integration.histories import row, steps

NATIVE = WorkflowSerializationFormat.NATIVE
PORTABLE = WorkflowSerializationFormat.PORTABLE


class Named(Serializer):
    def __init__(self, name: str) -> None:
        self._name = name

    def serialize(self, data: Any) -> str:
        return f"{self._name}:{pickle.dumps(data).hex()}"

    def deserialize(self, serialized_data: str) -> Any:
        return pickle.loads(bytes.fromhex(serialized_data.removeprefix(f"{self._name}:")))

    def name(self) -> str:
        return self._name


class Bomb:
    """Its pickle says so when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exploded.append, ("boom",)


exploded: list[str] = []


@dataclass
class Application:
    """One application, restarted in this process with other configurations."""

    config: DBOSConfig
    calls: list[str] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)
    is_crashing: bool = True

    def launch(self, **changes: Any) -> None:
        DBOS.destroy()
        DBOS(config={**self.config, **changes})  # type: ignore[typeddict-item]  # the keys are those of a configuration
        DBOS.launch()

    def declare(self, format: WorkflowSerializationFormat | None, before: Any, after: Any) -> Callable[[Any], Any]:
        """A workflow of two steps and a child, whose process dies after the first step and the child."""

        def call(name: str, value: Any) -> Any:
            self.calls.append(name)
            return value

        @DBOS.workflow(name="child", serialization_type=format)
        def child(value: Any) -> Any:
            return call("child", value)

        @DBOS.workflow(name="parent", serialization_type=format)
        def parent(value: Any) -> Any:
            first = DBOS.run_step({"name": "first"}, call, "first", before)
            found = child(value)
            if self.is_crashing:
                raise Crash
            second = DBOS.run_step({"name": "second"}, call, "second", after)
            self.seen = [value, first, found, second]
            return self.seen

        return parent

    def run_and_crash(self, workflow: Callable[[Any], Any], workflow_id: str, value: Any) -> None:
        self.is_crashing = True
        with SetWorkflowID(workflow_id), pytest.raises(Crash):
            workflow(value)
        self.is_crashing = False


@pytest.fixture
def application(config: DBOSConfig) -> Iterator[Application]:
    DBOS.destroy(destroy_registry=True)
    exploded.clear()
    yield Application(config)
    DBOS.destroy(destroy_registry=True)


PLAIN = {"a": [1, None]}
TIMES = {"at": (datetime(2026, 1, 2, tzinfo=UTC), date(2026, 1, 2))}
KEYED = {1: "a"}  # which JSON cannot hold


@pytest.mark.parametrize(
    ("earlier", "later", "format", "value", "written"),
    [
        (None, "new", None, PLAIN, "json"),
        (None, "new", None, TIMES, "json"),
        (None, "new", None, KEYED, "py_pickle"),
        (None, "new", PORTABLE, PLAIN, "portable_json"),
        ("new", "new", None, KEYED, "new"),
        ("new", "new", NATIVE, KEYED, "py_pickle"),
        ("new", "new", PORTABLE, PLAIN, "portable_json"),
    ],
    ids=["json", "tagged", "pickle", "portable", "custom", "native beside custom", "portable beside custom"],
)
def test_a_workflow_goes_on_whatever_format_it_was_written_in(
    application: Application,
    earlier: str | None,
    later: str,
    format: WorkflowSerializationFormat | None,
    value: Any,
    written: str,
) -> None:
    workflow = application.declare(format, before=value, after=TIMES)
    application.launch(serializer=Named(earlier) if earlier is not None else None)
    application.run_and_crash(workflow, "wf", value)
    formats = [row("wf").serialization, row("wf-2").outcome_serialization]

    application.launch(serializer=Named(later))
    DBOS.retrieve_workflow("wf").get_result()

    assert formats == [written, written]
    assert application.calls == ["first", "child", "second"]
    assert application.seen == [value, value, value, TIMES]
    assert [(step.function_name, step.serialization) for step in steps("wf")][-1] == ("second", later)
    shown: Any = DBOS.get_workflow_status("wf")
    assert shown.input == {"args": (value,), "kwargs": {}}


def test_rows_of_a_serializer_that_is_gone_fail_by_themselves(application: Application) -> None:
    workflow = application.declare(None, before=KEYED, after=PLAIN)
    application.launch(serializer=Named("old"))
    application.run_and_crash(workflow, "custom", KEYED)

    application.launch(serializer=Named("new"))
    with SetWorkflowID("later"):
        later = workflow(PLAIN)

    with pytest.raises(TypeError, match="Serialization old is not available"):
        DBOS.retrieve_workflow("custom").get_result()
    assert later[0] == PLAIN
    listed: dict[str, Any] = {status.workflow_id: status.input for status in DBOS.list_workflows()}
    assert str(listed["custom"]).startswith("old:")
    assert listed["later"] == {"args": (PLAIN,), "kwargs": {}}
    assert str(DBOS.list_workflow_steps("custom")[0]["output"]).startswith("old:")


def test_what_has_ended_can_be_read_again_when_its_serializer_is_back(application: Application) -> None:
    @DBOS.workflow(name="keyed")
    def keyed() -> Any:
        return KEYED

    application.launch(serializer=Named("old"))
    with SetWorkflowID("wf"):
        keyed()

    application.launch(serializer=Named("new"))
    with pytest.raises(TypeError, match="Serialization old is not available"):
        DBOS.retrieve_workflow("wf").get_result()
    application.launch(serializer=Named("old"))

    assert DBOS.retrieve_workflow("wf").get_result() == KEYED


@pytest.mark.parametrize("part", ["input", "step"])
def test_where_pickle_is_not_allowed_any_more_none_is_loaded(application: Application, part: str) -> None:
    workflow = application.declare(None, before=Bomb() if part == "step" else PLAIN, after=PLAIN)
    application.launch()
    application.run_and_crash(workflow, "pickled", Bomb() if part == "input" else PLAIN)
    application.run_and_crash(application.declare(None, before=TIMES, after=TIMES), "plain", TIMES)
    exploded.clear()

    application.launch(allowed_serializers=["json"])
    plain = DBOS.retrieve_workflow("plain").get_result()

    with pytest.raises(DBOSSerializationNotAllowedError, match="'py_pickle'"):
        DBOS.retrieve_workflow("pickled").get_result()
    assert plain == [TIMES, TIMES, TIMES, TIMES]
    assert [status.status for status in DBOS.list_workflows(workflow_ids=["pickled"])] == ["ERROR"]
    assert isinstance(DBOS.list_workflow_steps("pickled")[0]["output"], str if part == "step" else dict)
    assert exploded == []
