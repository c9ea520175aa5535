"""What decorators make of functions: names, kinds, registration, and where a call leaves its traces."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, SetWorkflowID, WorkflowSerializationFormat
from dbos._core import decorate_workflow
from dbos._error import DBOSConflictingRegistrationError, DBOSException
from dbos._process import process as _process
from dbos._registrations import get_dbos_func_name, get_func_info
from dbos._registry import Registry
from tests.integration.crashes import Crash, recover

DECORATORS: dict[str, Any] = {"workflow": DBOS.workflow, "step": DBOS.step, "transaction": DBOS.transaction}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the library logs; its logger does not propagate once it was configured."""
    logger = logging.getLogger("dbos")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def step_names(workflow_id: str) -> list[str]:
    return [step["function_name"] for step in DBOS.list_workflow_steps(workflow_id)]


# -- what the wrapper looks like ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECORATORS)
def test_a_decorated_function_looks_like_the_function(dbos: type[DBOS], kind: str) -> None:
    def charge(order: int, /, *, currency: str = "EUR") -> str:
        """Charge an order."""
        return f"{order} {currency}"

    decorated = DECORATORS[kind]()(charge)

    wrapped: Any = decorated
    assert wrapped.__wrapped__ is charge
    assert wrapped.__orig_func is charge
    assert decorated.__name__ == "charge"
    assert decorated.__qualname__ == charge.__qualname__
    assert decorated.__doc__ == "Charge an order."
    assert inspect.signature(decorated) == inspect.signature(charge)
    assert not inspect.iscoroutinefunction(decorated)
    assert get_dbos_func_name(decorated) == wrapped.dbos_function_name == charge.__qualname__
    assert get_func_info(decorated) is get_func_info(charge)


@pytest.mark.parametrize("kind", ["workflow", "step"])
def test_a_decorated_coroutine_function_is_one(dbos: type[DBOS], kind: str) -> None:
    async def charge() -> None: ...

    decorated = DECORATORS[kind]()(charge)

    assert inspect.iscoroutinefunction(decorated)


def test_the_decorator_notes_its_options_on_the_function(dbos: type[DBOS]) -> None:
    def validate(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    @dbos.workflow(
        max_recovery_attempts=None,
        serialization_type=WorkflowSerializationFormat.PORTABLE,
        validate_args=validate,
    )
    def workflow() -> None: ...

    info = get_func_info(workflow)

    assert info is not None
    assert info.max_recovery_attempts is None
    assert info.serialization_type is WorkflowSerializationFormat.PORTABLE
    assert info.validate_args is validate


def test_a_function_that_was_never_decorated_has_no_notes() -> None:
    assert get_func_info(step_names) is None


# -- where a call leaves its traces ------------------------------------------------------------------------------------


def test_each_kind_is_recorded_under_its_qualified_name(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> None: ...

    @dbos.transaction()
    def transaction() -> None: ...

    @dbos.workflow()
    def child() -> None: ...

    @dbos.workflow()
    def workflow() -> None:
        step()
        transaction()
        child()

    dbos.launch()

    with SetWorkflowID("parent"):
        workflow()

    prefix = "test_each_kind_is_recorded_under_its_qualified_name.<locals>."
    status = dbos.get_workflow_status("parent")
    assert status is not None
    assert status.name == prefix + "workflow"
    assert status.class_name is None
    assert status.config_name is None
    assert step_names("parent") == [prefix + "step", prefix + "transaction", prefix + "child", "DBOS.getResult"]


def test_each_kind_is_recorded_under_the_name_it_was_given(dbos: type[DBOS]) -> None:
    @dbos.step(name="the step")
    def step() -> None: ...

    @dbos.transaction(name="the transaction")
    def transaction() -> None: ...

    @dbos.workflow(name="the workflow")
    def workflow() -> None:
        step()
        transaction()

    dbos.launch()

    with SetWorkflowID("named"):
        workflow()

    status = dbos.get_workflow_status("named")
    assert status is not None
    assert status.name == "the workflow"
    assert step_names("named") == ["the step", "the transaction"]


def test_a_step_that_is_started_by_itself_runs_in_a_temporary_workflow(dbos: type[DBOS]) -> None:
    @dbos.step(name="double")
    def double(value: int) -> int:
        return value * 2

    dbos.launch()

    handle = dbos.start_workflow(double, 21)

    assert handle.get_result() == 42
    assert handle.get_status().name == "<temp>.double"
    assert step_names(handle.workflow_id) == ["double"]


def test_a_transaction_that_is_started_by_itself_runs_in_a_temporary_workflow(dbos: type[DBOS]) -> None:
    @dbos.transaction("READ COMMITTED", name="double")
    def double(value: int) -> int:
        return value * 2

    dbos.launch()

    handle = dbos.start_workflow(double, 21)

    assert handle.get_result() == 42
    assert handle.get_status().name == "<temp>.double"
    assert step_names(handle.workflow_id) == ["double"]


def test_a_coroutine_step_that_is_started_by_itself_runs_in_a_temporary_workflow(dbos: type[DBOS]) -> None:
    @dbos.step(name="double")
    async def double(value: int) -> int:
        return value * 2

    dbos.launch()

    handle = dbos.start_workflow(double, 21)

    assert handle.get_result() == 42
    assert step_names(handle.workflow_id) == ["double"]


def test_a_transaction_outside_of_a_workflow_is_recorded_and_runs_once(dbos: type[DBOS]) -> None:
    calls = []

    @dbos.transaction(name="save")
    def save(value: int) -> int:
        calls.append(value)
        return value

    dbos.launch()

    with SetWorkflowID("once"):
        first = save(1)
    with SetWorkflowID("once"):
        second = save(2)

    assert (first, second, calls) == (1, 1, [1])
    status = dbos.get_workflow_status("once")
    assert status is not None
    assert status.name == "<temp>.save"


def test_a_step_outside_of_a_workflow_is_a_plain_function(dbos: type[DBOS]) -> None:
    @dbos.step(retries_allowed=True, max_attempts=3)
    def step() -> str:
        raise ValueError("once")

    dbos.launch()

    with pytest.raises(ValueError, match="once"):
        step()
    assert dbos.list_workflows() == []


def test_a_step_is_a_plain_function_before_there_is_a_dbos_object() -> None:
    DBOS.destroy(destroy_registry=True)

    @DBOS.step()
    def double(value: int) -> int:
        return value * 2

    assert double(21) == 42


def test_a_step_within_a_step_and_within_a_transaction_is_a_plain_function(dbos: type[DBOS]) -> None:
    @dbos.step()
    def inner() -> int:
        return 1

    @dbos.step(name="outer step")
    def outer_step() -> int:
        return inner()

    @dbos.transaction(name="outer transaction")
    def outer_transaction() -> int:
        return inner()

    @dbos.workflow()
    def workflow() -> int:
        return outer_step() + outer_transaction()

    dbos.launch()

    with SetWorkflowID("nested"):
        result = workflow()

    assert result == 2
    assert step_names("nested") == ["outer step", "outer transaction"]


async def test_coroutine_workflows_and_steps_run_on_the_calling_loop(dbos: type[DBOS]) -> None:
    loops = []

    @dbos.step(name="double")
    async def double(value: int) -> int:
        loops.append(asyncio.get_running_loop())
        return value * 2

    @dbos.workflow()
    async def workflow(value: int) -> int:
        loops.append(asyncio.get_running_loop())
        return await double(value)

    dbos.launch()

    with SetWorkflowID("async"):
        result = await workflow(21)

    assert result == 42
    assert set(loops) == {asyncio.get_running_loop()}
    assert [step["function_name"] for step in await dbos.list_workflow_steps_async("async")] == ["double"]


def test_functions_decorated_after_launch_work(dbos: type[DBOS]) -> None:
    dbos.launch()

    @dbos.step()
    def double(value: int) -> int:
        return value * 2

    @dbos.workflow()
    def workflow(value: int) -> int:
        return double(value)

    assert workflow(21) == 42
    assert dbos.start_workflow(workflow, 4).get_result() == 8


def test_decorated_functions_work_again_after_the_next_launch(dbos: type[DBOS], config: DBOSConfig) -> None:
    @dbos.workflow()
    def workflow(value: int) -> int:
        return value * 2

    dbos.launch()
    dbos.destroy()
    dbos(config=config)
    dbos.launch()

    assert workflow(21) == 42


# -- names that meet ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECORATORS)
def test_of_two_functions_with_one_name_the_later_wins_with_a_warning(
    dbos: type[DBOS], kind: str, log: pytest.LogCaptureFixture
) -> None:
    def register(result: str) -> Any:
        def function() -> str:
            return result

        return DECORATORS[kind](name="twice")(function)

    first = register("first")
    second = register("second")
    dbos.launch()

    results = [dbos.start_workflow(function).get_result() for function in (first, second)]

    assert results == ["second", "second"]
    assert "Duplicate registration of function 'twice'" in log.text


def test_a_step_and_a_transaction_cannot_share_a_name(dbos: type[DBOS]) -> None:
    @dbos.step(name="shared")
    def step() -> None: ...

    def transaction() -> None: ...

    with pytest.raises(DBOSConflictingRegistrationError, match="shared"):
        dbos.transaction(name="shared")(transaction)


def test_one_function_cannot_be_step_and_transaction(dbos: type[DBOS]) -> None:
    @dbos.transaction()
    def function() -> None: ...

    with pytest.raises(DBOSConflictingRegistrationError):
        dbos.step()(function)


def test_a_workflow_and_a_step_can_share_a_name(dbos: type[DBOS], log: pytest.LogCaptureFixture) -> None:
    @dbos.step(name="shared")
    def step() -> str:
        return "step"

    @dbos.workflow(name="shared")
    def workflow() -> str:
        return f"workflow with {step()}"

    dbos.launch()

    assert workflow() == "workflow with step"
    assert dbos.start_workflow(step).get_result() == "step"
    assert dbos.start_workflow(workflow).get_result() == "workflow with step"
    assert "Duplicate" not in log.text


# -- validate_args and serialization_type ------------------------------------------------------------------------------


def test_arguments_are_validated_when_they_come_from_the_database(dbos: type[DBOS]) -> None:
    seen = []

    def validate(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (*args, "validated"), kwargs

    @dbos.workflow(validate_args=validate)
    def workflow(*args: str) -> None:
        seen.append(args)
        if len(seen) == 1:
            raise Crash

    dbos.launch()

    with pytest.raises(Crash):
        workflow("value")
    recover(dbos).get_result()

    assert seen == [("value",), ("value", "validated")]


def test_a_workflow_whose_arguments_are_refused_is_an_error(dbos: type[DBOS]) -> None:
    calls: list[None] = []

    def refuse(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        raise ValueError("refused")

    @dbos.workflow(validate_args=refuse)
    def workflow() -> None:
        calls.append(None)
        raise Crash

    dbos.launch()

    with pytest.raises(Crash):
        workflow()
    handle = recover(dbos)

    with pytest.raises(ValueError, match="refused"):
        handle.get_result()
    assert handle.get_status().status == "ERROR"
    assert len(calls) == 1


def test_a_workflow_keeps_its_inputs_and_outcome_in_its_own_format(dbos: type[DBOS]) -> None:
    @dbos.workflow(serialization_type=WorkflowSerializationFormat.PORTABLE)
    def workflow(*values: int) -> list[int]:
        return list(values)

    dbos.launch()

    with SetWorkflowID("portable"):
        workflow(1, 2)

    db = _process.registry.engine_for("test").db
    row = db.read(db.workflows.get, "portable")
    assert row is not None
    assert row.inputs is not None
    assert row.serialization == "portable_json"
    assert json.loads(row.inputs) == {"positionalArgs": [1, 2], "namedArgs": {}}
    assert row.output == "[1,2]"


# -- the application version -------------------------------------------------------------------------------------------


def registry_of(*functions: Callable[..., Any]) -> Registry[Any]:
    """A registry of its own, with these functions as workflows, in this order."""
    registry: Registry[Any] = Registry()
    for function in functions:
        decorate_workflow(
            registry, function, name=None, max_recovery_attempts=1, serialization_type=None, validate_args=None
        )
    return registry


def first_workflow() -> int:
    return 1


def second_workflow() -> int:
    return 2


def test_the_application_version_does_not_depend_on_the_order_of_registration() -> None:
    one = registry_of(first_workflow, second_workflow).application_version("1.0", "app")
    other = registry_of(second_workflow, first_workflow).application_version("1.0", "app")

    assert one == other
    assert len(one) == 32


def test_the_application_version_changes_with_code_library_and_application() -> None:
    versions = {
        registry_of(first_workflow).application_version("1.0", "app"),
        registry_of(second_workflow).application_version("1.0", "app"),
        registry_of(first_workflow, second_workflow).application_version("1.0", "app"),
        registry_of(first_workflow).application_version("1.1", "app"),
        registry_of(first_workflow).application_version("1.0", "other"),
    }

    assert len(versions) == 5


def test_code_without_source_has_the_default_version(log: pytest.LogCaptureFixture) -> None:
    namespace: dict[str, Any] = {}
    exec("def workflow(): pass", namespace)

    version = registry_of(namespace["workflow"]).application_version("1.0", "app")

    assert version == "DEFAULT_VERSION"
    assert "Set application_version" in log.text


def test_launch_computes_the_application_version_unless_it_is_given(dbos: type[DBOS], config: DBOSConfig) -> None:
    dbos.destroy()
    unversioned: Any = {**config, "application_version": ""}
    dbos(config=unversioned)

    @dbos.workflow()
    def workflow() -> None: ...

    before = dbos.application_version
    dbos.launch()
    computed = dbos.application_version
    dbos.destroy()
    dbos(config=config)
    dbos.launch()

    assert before == ""
    assert len(computed) == 32
    assert dbos.application_version == "test"


# -- what cannot be decorated ------------------------------------------------------------------------------------------


def test_a_transaction_cannot_be_a_coroutine_function(dbos: type[DBOS]) -> None:
    async def save() -> None: ...

    with pytest.raises(DBOSException, match="is a coroutine function"):
        dbos.transaction()(save)


def test_a_transaction_needs_an_isolation_level_that_exists(dbos: type[DBOS]) -> None:
    unknown: Any = "CHAOS"

    with pytest.raises(DBOSException, match="Unknown isolation level 'CHAOS'"):
        dbos.transaction(unknown)


@pytest.mark.parametrize("kind", DECORATORS)
@pytest.mark.parametrize("target", [42, property(lambda self: 1), len, "text".upper])
def test_what_is_no_function_of_the_users_cannot_be_decorated(dbos: type[DBOS], kind: str, target: Any) -> None:
    with pytest.raises(DBOSException, match=r"not a function|cannot be decorated"):
        DECORATORS[kind]()(target)
    assert _process.registry.workflows == {}


def test_decorators_without_parentheses_are_refused_at_once(dbos: type[DBOS]) -> None:
    def function() -> None: ...

    bare: Any
    for bare in (DBOS.workflow, DBOS.step):
        with pytest.raises(TypeError):
            bare(function)
    for bare in (DBOS.transaction, DBOS.dbos_class, DBOS.required_roles, DBOS.default_required_roles):
        with pytest.raises(DBOSException):
            bare(function)


def test_a_function_of_two_kinds_is_what_its_outermost_decorator_says(dbos: type[DBOS]) -> None:
    @dbos.step(name="both")
    @dbos.workflow(name="both")
    def function() -> str:
        return "done"

    @dbos.workflow()
    def caller() -> str:
        return function()

    dbos.launch()

    assert function() == "done"
    with pytest.raises(AssertionError):
        caller()
