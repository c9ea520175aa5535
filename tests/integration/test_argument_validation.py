"""Validators see what the database holds, and a workflow gets what they return."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from dbos import (
    DBOS,
    DBOSConfiguredInstance,
    PortableWorkflowError,
    Queue,
    SetWorkflowID,
    WorkflowSerializationFormat,
    pydantic_args_validator,
)
from tests.integration.histories import change, execute_again, row

PORTABLE = WorkflowSerializationFormat.PORTABLE


class Order(BaseModel):
    sku: str
    count: int


WRITE_INPUTS = "UPDATE dbos.workflow_status SET inputs = :inputs WHERE workflow_uuid = :id"

INPUTS = '{"namedArgs":{"by":"2026-01-02T03:04:05Z"},"positionalArgs":[{"sku":"a","count":"3"}]}'
EXPECTED = "Order(sku='a', count=3) 2026-01-02T03:04:05+00:00"


def declared(dbos: type[DBOS], form: str) -> Callable[..., Any]:
    """A workflow of one of the forms there are; it returns what it was called with, as text."""
    decorate = dbos.workflow(serialization_type=PORTABLE, validate_args=pydantic_args_validator)

    def text(order: Order, by: datetime) -> str:
        return f"{order!r} {by.isoformat()}"

    @dbos.dbos_class()
    class Shop(DBOSConfiguredInstance):
        @decorate
        def of_instance(self, order: Order, by: datetime) -> str:
            return text(order, by)

        @classmethod
        @decorate
        def of_class(cls, order: Order, by: datetime) -> str:
            return text(order, by)

        @staticmethod
        @decorate
        def static(order: Order, by: datetime) -> str:
            return text(order, by)

    @decorate
    def function(order: Order, by: datetime) -> str:
        return text(order, by)

    @decorate
    async def coroutine(order: Order, by: datetime) -> str:
        return text(order, by)

    forms: dict[str, Callable[..., Any]] = {
        "function": function,
        "coroutine": coroutine,
        "instance": Shop("main").of_instance,
        "class": Shop.of_class,
        "static": Shop.static,
    }
    return forms[form]


@pytest.mark.parametrize("form", ["function", "coroutine", "instance", "class", "static"])
def test_what_another_program_has_written_becomes_what_the_annotations_say(dbos: type[DBOS], form: str) -> None:
    queue = Queue("mail")
    dbos.listen_queues([])  # so that there is time to be the other program
    workflow = declared(dbos, form)
    dbos.launch()
    with SetWorkflowID("wf"):
        queue.enqueue(workflow, {}, by=datetime(2026, 1, 1, tzinfo=UTC))

    change(WRITE_INPUTS, id="wf", inputs=INPUTS)
    handle = dbos.resume_workflow("wf")

    assert handle.get_result() == EXPECTED
    assert execute_again("wf").get_result() == EXPECTED
    assert row("wf").inputs == INPUTS


def test_arguments_that_do_not_fit_end_the_workflow_and_do_not_run_it(dbos: type[DBOS]) -> None:
    queue, calls = Queue("mail"), list[int]()

    @dbos.workflow(serialization_type=PORTABLE, validate_args=pydantic_args_validator)
    def workflow(order: Order, count: int) -> None:
        calls.append(count)

    dbos.launch()
    untyped: Any = workflow
    handle = queue.enqueue(untyped, {"sku": "geheim"}, "many")

    with pytest.raises(PortableWorkflowError, match="Argument validation failed for workflow:") as caught:
        handle.get_result()

    assert caught.value.name == "ValueError"
    assert [line.strip().partition(": ")[0] for line in str(caught.value).splitlines()[1:]] == [
        "Argument 'order' (position 0)",
        "Argument 'count' (position 1)",
    ]
    assert "geheim" not in str(caught.value)
    assert (handle.get_status().status, calls) == ("ERROR", [])


def test_a_direct_call_and_a_start_are_not_validated(dbos: type[DBOS]) -> None:
    @dbos.workflow(validate_args=pydantic_args_validator)
    def workflow(count: int) -> Any:
        return count

    dbos.launch()
    untyped: Any = workflow

    assert untyped("many") == "many"
    assert dbos.start_workflow(untyped, "many").get_result() == "many"


def test_a_validator_that_returns_something_else_ends_the_workflow_with_an_error_that_says_so(
    dbos: type[DBOS],
) -> None:
    queue = Queue("mail")

    @dbos.workflow(validate_args=lambda args, kwargs: args)
    def workflow(count: int) -> None: ...

    dbos.launch()

    with pytest.raises(TypeError, match=r"validator of workflow .*workflow returned tuple instead of \(args, kwargs\)"):
        queue.enqueue(workflow, 1).get_result()
