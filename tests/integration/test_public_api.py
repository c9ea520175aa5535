"""The public surface as a whole: what is exported, documented, and offered in two forms."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

import dbos
from dbos import DBOS, DBOSClient, WorkflowHandle, WorkflowHandleAsync
from dbos._process import find_engine


def is_submodule(name: str, value: object) -> bool:
    """Whether ``value`` is there only because somebody imported ``dbos.<name>``."""
    return isinstance(value, ModuleType) and value.__name__ == f"dbos.{name}"


def test_everything_public_is_exported_in_order() -> None:
    public = [name for name, value in vars(dbos).items() if not name.startswith("_") and not is_submodule(name, value)]

    assert sorted(public) == sorted(dbos.__all__)  # its order, which is not that of ASCII, is checked by ruff


def test_names_that_users_know_are_there() -> None:
    expected = {
        "DBOS",
        "DBOSConfig",
        "DBOSConfiguredInstance",
        "DBOSContextEnsure",
        "DBOSContextSetAuth",
        "DBOSException",
        "EnqueueOptions",
        "PortableWorkflowError",
        "Queue",
        "Serializer",
        "SetEnqueueOptions",
        "SetWorkflowID",
        "SetWorkflowTimeout",
        "StepInfo",
        "StepOptions",
        "VersionInfo",
        "WorkflowHandle",
        "WorkflowHandleAsync",
        "WorkflowSerializationFormat",
        "WorkflowStatus",
        "WorkflowStatusString",
        "error",
    }

    assert expected <= set(dbos.__all__)
    assert dbos.error.DBOSException is dbos.DBOSException


ALIASES = {"Catchup", "DuplicationPolicy", "Overlap"}  # of Literal types, which cannot have documentation


@pytest.mark.parametrize("name", [name for name in dbos.__all__ if name not in ALIASES])
def test_every_export_is_documented(name: str) -> None:
    doc = getattr(dbos, name).__doc__

    assert doc
    assert not doc.startswith(f"{name}(")  # what dataclasses and enums make up themselves
    assert doc != "dict() -> new empty dictionary"


def declared_by(exported: type) -> dict[str, Any]:
    """What a class and those of its bases that are ours declare."""
    bases = [base for base in reversed(exported.__mro__) if base.__module__.startswith("dbos.")]
    return {name: attribute for base in bases for name, attribute in vars(base).items()}


@pytest.mark.parametrize("exported", [value for value in vars(dbos).values() if isinstance(value, type)])
def test_every_public_method_and_property_is_documented(exported: type) -> None:
    missing = []
    for name, attribute in declared_by(exported).items():
        is_described = callable(attribute) or hasattr(attribute, "__get__")
        if not name.startswith("_") and is_described and not inspect.getdoc(attribute):
            missing.append(name)

    assert missing == []


def test_every_operation_documents_its_parameters() -> None:
    missing = []
    for name, declared in declared_by(DBOS).items():
        if name.startswith("_") or name.endswith("_async") or not isinstance(declared, (classmethod, staticmethod)):
            continue
        attribute = getattr(DBOS, name)
        doc = inspect.getdoc(attribute) or ""
        parameters = [] if "; see :meth:" in doc else inspect.signature(attribute).parameters
        missing += [f"{name}.{parameter}" for parameter in parameters if f"{parameter}:" not in doc]

    assert missing == []


def async_names(exported: type = DBOS) -> list[str]:
    return [name for name in declared_by(exported) if name.endswith("_async")]


def is_awaited(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


@pytest.mark.parametrize("name", async_names())
def test_every_coroutine_form_has_a_blocking_form_with_the_same_parameters(name: str) -> None:
    blocking, awaiting = getattr(DBOS, name.removesuffix("_async")), getattr(DBOS, name)

    one, other = inspect.signature(blocking), inspect.signature(awaiting)

    assert list(one.parameters.values()) == list(other.parameters.values())
    assert is_awaited(awaiting)
    assert not is_awaited(blocking)
    assert blocking.__name__ + "_async" == awaiting.__name__ == name


def test_every_coroutine_form_of_the_client_has_a_blocking_form_with_the_same_parameters(dbos: type[DBOS]) -> None:
    dbos.launch()
    client = DBOSClient(system_database_url=find_engine().settings.system_database_url)
    pairs = [(getattr(client, name.removesuffix("_async")), getattr(client, name)) for name in async_names(DBOSClient)]
    client.destroy()

    different = [
        awaiting.__name__
        for blocking, awaiting in pairs
        if inspect.signature(blocking).parameters != inspect.signature(awaiting).parameters
        or not is_awaited(awaiting)
        or is_awaited(blocking)
    ]

    assert len(pairs) > 10
    assert different == []


def test_operations_show_their_own_signatures() -> None:
    signature = inspect.signature(DBOS.get_workflow_status)

    assert str(signature) == "(workflow_id: 'str') -> 'WorkflowStatus | None'"
    assert DBOS.get_workflow_status.__annotations__ == {"workflow_id": "str", "return": "WorkflowStatus | None"}


def test_both_lists_of_workflows_take_the_same_filters() -> None:
    signature = inspect.signature(DBOS.list_queued_workflows)

    assert signature == inspect.signature(DBOS.list_workflows)
    assert {"workflow_ids", "schedule_name", "load_output", "was_forked_from"} <= set(signature.parameters)
    with pytest.raises(TypeError, match="colour"):
        inspect.signature(DBOS.list_queued_workflows).bind(colour="red")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "workflow",
            {"name": None, "max_recovery_attempts": 100, "serialization_type": None, "validate_args": None},
        ),
        ("transaction", {"isolation_level": "SERIALIZABLE", "name": None}),
        ("dbos_class", {"class_name": None}),
        ("destroy", {"destroy_registry": False, "workflow_completion_timeout_sec": 0}),
        ("retrieve_workflow", {"existing_workflow": True}),
        ("resume_workflow", {"queue_name": None}),
        ("get_result", {}),
    ],
)
def test_defaults_are_those_that_users_know(name: str, expected: dict[str, Any]) -> None:
    parameters = inspect.signature(getattr(DBOS, name)).parameters.values()

    defaults = {
        parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty
    }

    assert expected.items() <= defaults.items()


def test_a_step_is_not_retried_by_default() -> None:
    parameters = inspect.signature(DBOS.step).parameters

    known = ("name", "retries_allowed", "interval_seconds", "max_attempts", "backoff_rate", "should_retry")
    assert [parameters[name].default for name in known] == [None, False, 1.0, 3, 2.0, None]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())


def test_handles_have_the_forms_they_promise(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> int:
        return 42

    dbos.launch()

    handle = dbos.start_workflow(workflow)
    handle_async = asyncio.run(dbos.retrieve_workflow_async(handle.workflow_id))
    result, result_async = handle.get_result(polling_interval_sec=0.1), asyncio.run(handle_async.get_result())
    status, status_async = handle.get_status(), asyncio.run(handle_async.get_status())

    assert isinstance(handle, WorkflowHandle)
    assert isinstance(handle_async, WorkflowHandleAsync)
    assert handle.get_workflow_id() == handle_async.get_workflow_id() == handle.workflow_id
    assert result == result_async == 42
    assert status.status == status_async.status == "SUCCESS"
    assert inspect.iscoroutinefunction(handle_async.get_result)
    assert inspect.iscoroutinefunction(handle_async.get_status)


def test_importing_the_package_leaves_optional_and_heavy_parts_alone() -> None:
    unwanted = ["sqlalchemy.orm", "click", "rich", "starlette", "jinja2", "uvicorn", "opentelemetry"]
    script = f"import dbos, sys; print([name for name in {unwanted!r} if name in sys.modules])"

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
