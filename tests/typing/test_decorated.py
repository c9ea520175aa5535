"""What a type checker sees of decorated functions and methods, wherever they are handed to.

Checked as :mod:`tests.typing.test_types` is: here the code runs.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar, assert_type

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from dbos import (
    DBOS,
    AsyncSQLAlchemyDatasource,
    DBOSConfiguredInstance,
    Queue,
    SQLAlchemyDatasource,
    StepOptions,
    WorkflowHandle,
    WorkflowHandleAsync,
)

P = ParamSpec("P")
R = TypeVar("R")

pytestmark = pytest.mark.usefixtures("dbos")


async def test_methods_keep_their_types_wherever_they_are_handed_to() -> None:
    @DBOS.dbos_class()
    class Shop(DBOSConfiguredInstance):
        @DBOS.workflow()
        def sell(self, order: int, *, currency: str = "EUR") -> str:
            return f"{self.price(order)} {currency}"

        @DBOS.workflow()
        async def sell_later(self, order: int) -> float:
            return await self.price_later(order)

        @DBOS.step(retries_allowed=True)
        def price(self, order: int) -> float:
            return order / 2

        @DBOS.step(timeout_seconds=5.0)
        async def price_later(self, order: int) -> float:
            return order / 2

        @classmethod
        @DBOS.required_roles([])
        @DBOS.workflow()
        async def of_class(cls, order: int) -> list[int]:
            return [order]

        @staticmethod
        @DBOS.workflow(max_recovery_attempts=None)
        async def static(order: int) -> str:
            return str(order)

        @staticmethod
        @DBOS.transaction("READ COMMITTED")
        def stored(order: int) -> int:
            return order

    shop, queue = Shop("north"), Queue("orders")
    misspelt: StepOptions = {"name": "price"}

    async def never() -> None:
        shop.sell("one")  # type: ignore[arg-type]
        shop.sell(1, "USD")  # type: ignore[call-arg]
        await Shop.static()  # type: ignore[call-arg]
        await Shop.of_class("one")  # type: ignore[arg-type]
        shop.price(1, 2)  # type: ignore[call-arg]
        DBOS.start_workflow(shop.sell)  # type: ignore[call-overload]
        DBOS.start_workflow(Shop.of_class, "one")  # type: ignore[call-overload]
        DBOS.start_workflow(Shop.stored, "one")  # type: ignore[call-overload]
        await DBOS.start_workflow_async(shop.sell_later)  # type: ignore[call-overload]
        queue.enqueue(shop.sell_later, 1, 2)  # type: ignore[call-overload]
        await queue.enqueue_async(Shop.static, 1.5)  # type: ignore[call-overload]
        DBOS.enqueue_workflow("orders", shop.sell_later, "one")  # type: ignore[call-overload]
        await DBOS.enqueue_workflow_async("orders", Shop.static)  # type: ignore[call-overload]
        DBOS.run_step(None, shop.price, "one")  # type: ignore[call-overload]
        await DBOS.run_step_async(None, shop.price_later)  # type: ignore[call-overload]
        DBOS.run_step({"nme": "price"}, shop.price, 1)  # type: ignore[call-overload]
        DBOS.step(max_attempts="three")  # type: ignore[arg-type]
        DBOS.required_roles("admin")  # type: ignore[arg-type]
        DBOS.dbos_class()(shop.sell)  # type: ignore[type-var]
        misspelt["max_atempts"] = 2  # type: ignore[typeddict-unknown-key]

    DBOS.launch()

    assert callable(never)
    assert_type(shop.sell(1, currency="USD"), str)
    assert_type(await shop.sell_later(1), float)
    assert_type(await Shop.of_class(1), list[int])
    assert_type(await Shop.static(1), str)
    assert_type(DBOS.start_workflow(shop.sell, 1, currency="USD"), WorkflowHandle[str])
    assert_type(DBOS.start_workflow(shop.sell_later, 1), WorkflowHandle[float])
    assert_type(DBOS.start_workflow(Shop.of_class, order=1), WorkflowHandle[list[int]])
    assert_type(DBOS.start_workflow(shop.price, 1).get_result(), float)
    assert_type(DBOS.start_workflow(Shop.stored, 1), WorkflowHandle[int])
    assert_type(queue.enqueue(shop.sell_later, 1), WorkflowHandle[float])
    assert_type(queue.enqueue(Shop.static, 1), WorkflowHandle[str])
    assert_type(DBOS.enqueue_workflow("orders", shop.sell, 1, currency="USD"), WorkflowHandle[str])
    assert_type(await DBOS.start_workflow_async(shop.sell_later, 1), WorkflowHandleAsync[float])
    assert_type(await (await DBOS.start_workflow_async(shop.sell, 1)).get_result(), str)
    assert_type(await queue.enqueue_async(Shop.of_class, 1), WorkflowHandleAsync[list[int]])
    assert_type(await DBOS.enqueue_workflow_async("orders", Shop.static, 1), WorkflowHandleAsync[str])
    assert_type(await DBOS.run_step_async(None, shop.price_later, 1), float)
    assert_type(await DBOS.run_step_async(None, shop.price, 1), float)


def test_decorators_of_users_compose_with_ours() -> None:
    def shouted(func: Callable[P, str]) -> Callable[P, str]:
        def call(*args: P.args, **kwargs: P.kwargs) -> str:
            return func(*args, **kwargs).upper()

        return call

    @DBOS.workflow(name="workflow")
    @shouted
    def workflow(order: int) -> str:
        return step(order)

    @shouted
    @DBOS.step(name="step")
    def step(order: int) -> str:
        return f"order {order}"

    DBOS.launch()

    assert_type(workflow(1), str)
    assert DBOS.start_workflow(workflow, 1).get_result() == "ORDER 1"


def test_transactions_of_datasources_keep_their_types(tmp_path: Path) -> None:
    orders = SQLAlchemyDatasource("orders", f"sqlite:///{tmp_path / 'orders.sqlite'}")

    @orders.transaction("SERIALIZABLE")
    def add(order: int) -> str:
        assert_type(orders.session, Session)
        return str(order)

    def never() -> None:
        add("one")  # type: ignore[arg-type]
        orders.transaction("CHAOS")  # type: ignore[arg-type]
        orders.run_transaction(None, add, "one")  # type: ignore[arg-type]
        orders.run_transaction({"nme": "add"}, add, 1)  # type: ignore[arg-type]

    assert callable(never)
    assert_type(add(1), str)
    assert_type(orders.run_transaction({"name": "add"}, lambda: 1.5), float)


async def test_transactions_of_async_datasources_keep_their_types(tmp_path: Path) -> None:
    orders = AsyncSQLAlchemyDatasource("orders", f"sqlite:///{tmp_path / 'orders.sqlite'}")

    @orders.transaction()
    async def add(order: int) -> str:
        assert_type(orders.session, AsyncSession)
        return str(order)

    async def half(order: int) -> float:
        return order / 2

    def function() -> None: ...

    async def never() -> None:
        await add("one")  # type: ignore[arg-type]
        orders.transaction()(function)  # type: ignore[type-var]
        await orders.run_transaction(None, function)  # type: ignore[arg-type]

    assert callable(never)
    assert_type(await add(1), str)
    assert_type(await orders.run_transaction({"name": "half"}, half, order=1), float)


def test_patches_have_types() -> None:
    def never() -> None:
        assert_type(DBOS.patch("change"), bool)
        assert_type(DBOS.deprecate_patch("change"), bool)
        DBOS.patch(1)  # type: ignore[arg-type]

    async def never_async() -> None:
        assert_type(await DBOS.patch_async("change"), bool)
        assert_type(await DBOS.deprecate_patch_async("change"), bool)
        await DBOS.patch_async()  # type: ignore[call-arg]

    assert callable(never)
    assert callable(never_async)
