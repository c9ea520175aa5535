"""What a type checker sees of the public surface: ``make check`` runs mypy and basedpyright over this file.

The assertions on types are checked there, and so is that the calls marked as wrong are wrong: mypy reports an ignore
that it does not need, and so does basedpyright. Here the same code runs.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, assert_type

import pytest
from sqlalchemy.orm import Session

from dbos import (
    DBOS,
    DBOSConfiguredInstance,
    SetWorkflowID,
    WorkflowHandle,
    WorkflowHandleAsync,
    WorkflowStatus,
)

T = TypeVar("T")

pytestmark = pytest.mark.usefixtures("dbos")


def test_functions_keep_their_types() -> None:
    @DBOS.workflow()
    def workflow(order: int, *, currency: str = "EUR") -> str:
        return f"{step(order)} {transaction(currency)}"

    @DBOS.required_roles([])
    @DBOS.step(name="step", retries_allowed=True)
    def step(order: int) -> float:
        return order / 2

    @DBOS.transaction("READ COMMITTED")
    @DBOS.required_roles([])
    def transaction(currency: str) -> list[str]:
        assert_type(DBOS.sql_session, Session)
        return [currency]

    DBOS.launch()

    assert_type(workflow(1, currency="USD"), str)
    assert_type(step(1), float)
    assert_type(transaction("USD"), list[str])
    assert_type(workflow.__name__, str)
    accepts: Callable[[int], str] = workflow
    assert accepts(3) == "1.5 ['EUR']"


def test_what_functions_do_not_accept_is_an_error() -> None:
    @DBOS.workflow()
    def workflow(order: int, *, currency: str = "EUR") -> str:
        return f"{order} {currency}"

    def never() -> None:
        workflow("one")  # type: ignore[arg-type]
        workflow(1, "USD")  # type: ignore[call-arg]
        workflow(1, curency="USD")  # type: ignore[call-arg]
        DBOS.start_workflow(workflow, "one")  # type: ignore[call-overload]
        DBOS.start_workflow(workflow)  # type: ignore[call-overload]
        DBOS.workflow(nmae="workflow")  # type: ignore[call-arg]
        DBOS.transaction("CHAOS")  # type: ignore[arg-type]
        DBOS.cancel_workflow(1)  # type: ignore[arg-type]
        DBOS.list_workflows(limit="one")  # type: ignore[arg-type]

    assert callable(never)


def test_generic_functions_stay_generic() -> None:
    @DBOS.step()
    def first(values: list[T]) -> T:
        return values[0]

    assert_type(first([1]), int)
    assert_type(first(["one"]), str)


async def test_coroutine_functions_keep_their_types() -> None:
    @DBOS.workflow()
    async def workflow(order: int) -> str:
        return str(await step(order))

    @DBOS.step()
    async def step(order: int) -> float:
        return order / 2

    DBOS.launch()

    accepts: Callable[[int], Coroutine[Any, Any, str]] = workflow
    assert_type(await accepts(1), str)
    assert_type(await workflow(1), str)
    assert_type(await step(1), float)


def test_methods_keep_their_types() -> None:
    @DBOS.dbos_class()
    class Shop(DBOSConfiguredInstance):
        def __init__(self, name: str, discount: float) -> None:
            super().__init__(config_name=name)
            self.discount = discount

        @staticmethod
        @DBOS.workflow()
        def static(order: int) -> str:
            return str(order)

        @classmethod
        @DBOS.workflow()
        def of_class(cls, order: int) -> list[int]:
            return [order]

        @DBOS.workflow()
        def of_instance(self, order: int) -> float:
            return self.step(order) * self.discount

        @DBOS.step()
        def step(self, order: int) -> int:
            return order

        @DBOS.workflow()
        @staticmethod
        def upside(order: int) -> str:
            return str(order)

    @DBOS.default_required_roles([])
    class Plain: ...

    shop = Shop("north", 0.5)
    DBOS.launch()

    assert_type(shop, Shop)
    assert_type(Plain(), Plain)
    assert_type(shop.discount, float)
    assert_type(Shop.static(1), str)
    assert_type(shop.static(1), str)
    assert_type(Shop.of_class(1), list[int])
    assert_type(shop.of_class(1), list[int])
    assert_type(shop.of_instance(1), float)
    assert_type(Shop.of_instance(shop, 1), float)
    assert_type(shop.step(1), int)
    assert_type(Shop.upside(1), str)
    assert_type(shop.upside(1), str)
    assert_type(DBOS.start_workflow(Shop.static, 1), WorkflowHandle[str])
    assert_type(DBOS.start_workflow(Shop.of_class, 1), WorkflowHandle[list[int]])
    assert_type(DBOS.start_workflow(shop.of_instance, 1), WorkflowHandle[float])
    assert_type(DBOS.start_workflow(shop.step, 1).get_result(), int)


def test_handles_know_the_result() -> None:
    @DBOS.workflow()
    def workflow(order: int) -> str:
        return str(order)

    @DBOS.workflow()
    async def coroutine(order: int) -> float:
        return order / 2

    DBOS.launch()

    handle = DBOS.start_workflow(workflow, 1)
    assert_type(handle, WorkflowHandle[str])
    assert_type(handle.get_result(), str)
    assert_type(handle.get_status(), WorkflowStatus)
    assert_type(handle.workflow_id, str)
    assert_type(DBOS.start_workflow(coroutine, 1), WorkflowHandle[float])
    assert_type(DBOS.start_workflow(coroutine, order=1).get_result(), float)
    assert_type(DBOS.retrieve_workflow(handle.workflow_id), WorkflowHandle[Any])
    assert_type(DBOS.resume_workflows([]), list[WorkflowHandle[Any]])


async def test_async_handles_know_the_result() -> None:
    @DBOS.workflow()
    def workflow(order: int) -> str:
        return str(order)

    @DBOS.workflow()
    async def coroutine(order: int) -> float:
        return order / 2

    DBOS.launch()

    handle = await DBOS.start_workflow_async(coroutine, 1)
    assert_type(handle, WorkflowHandleAsync[float])
    assert_type(await handle.get_result(), float)
    assert_type(await handle.get_status(), WorkflowStatus)
    assert_type(await DBOS.start_workflow_async(workflow, 1), WorkflowHandleAsync[str])
    assert_type(await DBOS.get_workflow_status_async(handle.workflow_id), WorkflowStatus | None)


def test_any_function_as_a_step_keeps_its_type() -> None:
    def half(order: int) -> float:
        return order / 2

    async def half_async(order: int) -> float:
        return order / 2

    DBOS.launch()

    assert_type(DBOS.run_step(None, half, 1), float)
    assert_type(DBOS.run_step({"name": "half", "max_attempts": 2}, half, order=1), float)
    assert_type(DBOS.run_step(None, half_async, 1), float)
    assert_type(DBOS.run_step(None, lambda: "one"), str)


async def test_any_function_as_an_async_step_keeps_its_type() -> None:
    def half(order: int) -> float:
        return order / 2

    async def half_async(order: int) -> float:
        return order / 2

    assert_type(await DBOS.run_step_async(None, half, 1), float)
    assert_type(await DBOS.run_step_async(None, half_async, 1), float)


def test_properties_have_types() -> None:
    DBOS.launch()

    assert_type(DBOS.workflow_id, str | None)
    assert_type(DBOS.step_id, int | None)
    assert_type(DBOS.application_version, str)
    assert_type(DBOS.executor_id, str)
    with SetWorkflowID("chosen") as block:
        assert_type(block, SetWorkflowID)
        assert_type(DBOS.authenticated_roles, list[str] | None)
        assert_type(DBOS.assumed_role, str | None)
