"""Workflows, steps and transactions as methods: what a call needs, what its row says, and how recovery finds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from dbos import DBOS, DBOSConfiguredInstance, DBOSException, SetWorkflowID
from dbos._error import DBOSConflictingWorkflowError
from dbos._process import process as _process
from dbos._registrations import DBOSFuncType, get_func_info, get_or_create_class_info
from tests.integration.crashes import Crash, recover
from tests.integration.histories import engine, eventually


def names(dbos: type[DBOS], workflow_id: str) -> tuple[str | None, str | None]:
    """The class and config names in a workflow's row."""
    status = dbos.get_workflow_status(workflow_id)
    assert status is not None
    return status.class_name, status.config_name


# -- the three kinds of methods ----------------------------------------------------------------------------------------


def test_the_three_kinds_of_methods_are_told_apart(dbos: type[DBOS]) -> None:
    @dbos.dbos_class()
    class Shop(DBOSConfiguredInstance):
        @staticmethod
        @dbos.workflow()
        def static() -> None: ...

        @classmethod
        @dbos.step()
        def of_class(cls) -> None: ...

        @dbos.transaction()
        def of_instance(self) -> None: ...

    @dbos.workflow()
    def function() -> None: ...

    infos = {get_func_info(method) for method in (Shop.static, Shop.of_class, Shop.of_instance)}
    types = [get_func_info(method).func_type for method in (Shop.static, Shop.of_class, Shop.of_instance, function)]  # type: ignore[union-attr]  # all are decorated

    assert types == [DBOSFuncType.Static, DBOSFuncType.Class, DBOSFuncType.Instance, DBOSFuncType.Unknown]
    assert {info.class_info.registered_name for info in infos if info and info.class_info} == {Shop.__qualname__}
    assert [(kind.name, kind.value) for kind in DBOSFuncType] == [
        ("Unknown", 0),
        ("Bare", 1),
        ("Static", 2),
        ("Class", 3),
        ("Instance", 4),
    ]


def test_registering_a_class_returns_it_and_notes_its_name(dbos: type[DBOS]) -> None:
    class Shop: ...

    decorated = dbos.dbos_class(class_name="The Shop")(Shop)

    assert decorated is Shop
    assert get_or_create_class_info(Shop).registered_name == "The Shop"
    assert Shop.dbos_class_decorator_info is get_or_create_class_info(Shop)  # type: ignore[attr-defined]  # set by the decorator


def make_shop(dbos: type[DBOS]) -> Any:
    """A class with a workflow of each kind, each with a step of its own kind."""

    @dbos.dbos_class("Shop")
    class Shop(DBOSConfiguredInstance):
        label = "class"

        def __init__(self, name: str) -> None:
            super().__init__(config_name=name)
            self.label = f"instance {name}"

        @staticmethod
        @dbos.workflow(name="static")
        def static(value: str) -> str:
            return f"static {Shop.static_step(value)}"

        @staticmethod
        @dbos.step(name="static step")
        def static_step(value: str) -> str:
            return value

        @classmethod
        @dbos.workflow(name="of_class")
        def of_class(cls, value: str) -> str:
            return f"{cls.label} {cls.class_step(value)}"

        @classmethod
        @dbos.step(name="class step")
        def class_step(cls, value: str) -> str:
            return value

        @dbos.workflow(name="of_instance")
        def of_instance(self, value: str) -> str:
            return f"{self.label} {self.instance_step(value)}"

        @dbos.step(name="instance step")
        def instance_step(self, value: str) -> str:
            return value

    return Shop


@pytest.mark.parametrize("start", ["call", "start"])
def test_the_row_names_class_and_instance_where_recovery_needs_them(dbos: type[DBOS], start: str) -> None:
    shop_class = make_shop(dbos)
    shop = shop_class("north")
    dbos.launch()

    def run(workflow_id: str, method: Callable[..., Any]) -> Any:
        with SetWorkflowID(workflow_id):
            return method("x") if start == "call" else dbos.start_workflow(method, "x").get_result()

    results = [
        run("static", shop_class.static),
        run("static of an instance", shop.static),
        run("class", shop_class.of_class),
        run("class of an instance", shop.of_class),
        run("instance", shop.of_instance),
    ]

    assert results == ["static x", "static x", "class x", "class x", "instance north x"]
    assert names(dbos, "static") == (None, None)
    assert names(dbos, "static of an instance") == (None, None)
    assert names(dbos, "class") == ("Shop", None)
    assert names(dbos, "class of an instance") == ("Shop", None)
    assert names(dbos, "instance") == ("Shop", "north")
    inputs = [status.input for status in dbos.list_workflows()]
    assert inputs == [{"args": ("x",), "kwargs": {}}] * 5


def test_steps_of_methods_started_by_themselves_name_class_and_instance(dbos: type[DBOS]) -> None:
    shop_class = make_shop(dbos)
    shop = shop_class("north")
    dbos.launch()

    handles = [
        dbos.start_workflow(method, "x")
        for method in (shop_class.static_step, shop_class.class_step, shop.instance_step)
    ]

    assert [handle.get_result() for handle in handles] == ["x", "x", "x"]
    assert [names(dbos, handle.workflow_id) for handle in handles] == [
        (None, None),
        ("Shop", None),
        ("Shop", "north"),
    ]


async def test_coroutine_methods_of_each_kind_run(dbos: type[DBOS]) -> None:
    @dbos.dbos_class()
    class Shop(DBOSConfiguredInstance):
        @staticmethod
        @dbos.workflow()
        async def static(value: int) -> int:
            return await Shop.static_step(value)

        @staticmethod
        @dbos.step()
        async def static_step(value: int) -> int:
            return value + 1

        @classmethod
        @dbos.workflow()
        async def of_class(cls, value: int) -> int:
            return await cls.static_step(value) + 10

        @dbos.workflow()
        async def of_instance(self, value: int) -> int:
            return await self.static_step(value) + 100

    shop = Shop("north")
    dbos.launch()

    called = [await Shop.static(0), await Shop.of_class(0), await shop.of_instance(0)]
    handles = [await dbos.start_workflow_async(method, 0) for method in (Shop.static, Shop.of_class, shop.of_instance)]
    started = [await handle.get_result() for handle in handles]

    assert called == started == [1, 11, 101]


# -- recovery ----------------------------------------------------------------------------------------------------------


def make_crashing(dbos: type[DBOS]) -> tuple[Any, Any]:
    runs: list[str] = []

    def run(label: str) -> str:
        runs.append(label)
        if len(runs) == 1:
            raise Crash
        return label

    @dbos.dbos_class("Crashing")
    class Crashing(DBOSConfiguredInstance):
        label = "the class"

        def __init__(self, name: str) -> None:
            self.label = f"the instance {name}"
            super().__init__(config_name=name)

        @staticmethod
        @dbos.workflow()
        def static(value: int) -> str:
            return run(f"static {value}")

        @classmethod
        @dbos.workflow()
        def of_class(cls, value: int) -> str:
            return run(f"{cls.label} {value}")

        @dbos.workflow()
        def of_instance(self, value: int) -> str:
            return run(f"{self.label} {value}")

        @dbos.step()
        def step_of_instance(self, value: int) -> str:
            return run(f"{self.label} {value}")

    return Crashing, [Crashing("south"), Crashing("north")][1]


@pytest.mark.parametrize(
    ("form", "expected"),
    [("static", "static 7"), ("of_class", "the class 7"), ("of_instance", "the instance north 7")],
)
def test_recovery_calls_the_method_on_the_class_or_instance_it_was_called_on(
    dbos: type[DBOS], form: str, expected: str
) -> None:
    _, instance = make_crashing(dbos)
    dbos.launch()

    with pytest.raises(Crash):
        getattr(instance, form)(7)
    result = recover(dbos).get_result()

    assert result == expected


def test_recovery_calls_a_transaction_on_the_instance_it_was_called_on(dbos: type[DBOS]) -> None:
    runs = []

    @dbos.dbos_class()
    class Store(DBOSConfiguredInstance):
        @dbos.transaction()
        def save(self, value: int) -> str:
            runs.append(value)
            if len(runs) == 1:
                raise Crash
            return f"{self.config_name} {value}"

    store = Store("north")
    dbos.launch()

    with pytest.raises(Crash):
        store.save(7)
    result = recover(dbos).get_result()

    assert result == "north 7"


def test_a_workflow_of_an_instance_that_is_missing_waits_until_it_is_registered(dbos: type[DBOS]) -> None:
    crashing, instance = make_crashing(dbos)
    dbos.launch()
    with pytest.raises(Crash):
        instance.of_instance(7)
    del _process.registry.instances["Crashing/north"]

    handle = recover(dbos)
    eventually(lambda: engine().unknown_targets)
    crashing("north")

    assert handle.get_result() == "the instance north 7"


def test_a_workflow_of_a_class_that_is_missing_waits_until_it_is_registered(dbos: type[DBOS]) -> None:
    crashing, _ = make_crashing(dbos)
    dbos.launch()
    with pytest.raises(Crash):
        crashing.of_class(7)
    del _process.registry.classes["Crashing"]

    handle = recover(dbos)
    eventually(lambda: engine().unknown_targets)
    dbos.dbos_class()(crashing)

    assert handle.get_result() == "the class 7"


@pytest.mark.parametrize("class_name", ["Crashing", "Elsewhere"])
def test_a_static_method_is_recovered_whatever_class_its_row_names(dbos: type[DBOS], class_name: str) -> None:
    crashing, _ = make_crashing(dbos)
    dbos.launch()
    with pytest.raises(Crash):
        crashing.static(7)

    def name_class(connection: Any) -> None:
        connection.run("UPDATE dbos.workflow_status SET class_name = :class_name", class_name=class_name)

    _process.registry.engine_for("test").db.change(name_class)

    assert recover(dbos).get_result() == "static 7"


def test_a_class_method_waits_for_its_class_decorator(dbos: type[DBOS]) -> None:
    """A worker may claim it in the moment between the decorators of the method and of the class."""
    crashing, _ = make_crashing(dbos)
    dbos.launch()
    with pytest.raises(Crash):
        crashing.of_class(7)
    info = get_func_info(crashing.of_class)
    assert info is not None
    info.func_type = DBOSFuncType.Unknown
    del _process.registry.classes["Crashing"]

    handle = recover(dbos)
    eventually(lambda: engine().unknown_targets)
    dbos.dbos_class()(crashing)

    assert handle.get_result() == "the class 7"


# -- what a call needs -------------------------------------------------------------------------------------------------


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(Exception, match="Function target appears to be") as caught:
        call()
    assert type(caught.value) is Exception
    return str(caught.value)


def test_methods_of_a_class_that_is_not_registered_are_refused(dbos: type[DBOS]) -> None:
    class Shop(DBOSConfiguredInstance):
        @staticmethod
        @dbos.workflow()
        def static() -> str:
            return "static needs no class"

        @classmethod
        @dbos.workflow()
        def of_class(cls) -> None: ...

        @dbos.workflow()
        def of_instance(self) -> None: ...

        @dbos.step()
        def step_of_instance(self) -> str:
            return "a step needs no class"

    shop = Shop("north")

    @dbos.workflow()
    def workflow() -> str:
        return shop.step_of_instance()

    dbos.launch()

    of_class = "Function target appears to be a class, but is not properly registered"
    of_instance = "Function target appears to be a class instance, but is not properly registered"
    assert refusal(Shop.of_class) == of_class
    assert refusal(lambda: dbos.start_workflow(Shop.of_class)) == of_class
    assert refusal(shop.of_instance) == of_instance
    assert refusal(lambda: dbos.start_workflow(shop.of_instance)) == of_instance
    assert refusal(lambda: dbos.start_workflow(shop.step_of_instance)) == of_instance
    assert dbos.list_workflows() == []
    assert Shop.static() == "static needs no class"
    assert workflow() == "a step needs no class"


def test_a_method_of_an_instance_without_config_name_is_refused(dbos: type[DBOS]) -> None:
    @dbos.dbos_class()
    class Shop:
        @dbos.workflow()
        def of_instance(self) -> None: ...

        @dbos.transaction()
        def save(self) -> str:
            return "saved"

        @dbos.step()
        def step(self) -> str:
            return "stepped"

    shop = Shop()

    @dbos.workflow()
    def workflow() -> list[str]:
        return [shop.step(), shop.save()]

    dbos.launch()

    expected = "Function target appears to be a class instance, but does not have `config_name` set"
    assert refusal(shop.of_instance) == expected
    assert refusal(lambda: dbos.start_workflow(shop.of_instance)) == expected
    assert refusal(shop.save) == expected
    assert dbos.list_workflows() == []
    assert workflow() == ["stepped", "saved"]


def test_any_object_with_a_config_name_can_be_registered(dbos: type[DBOS]) -> None:
    @dbos.dbos_class("Plain")
    class Plain:
        config_name = "north"

        @dbos.workflow()
        def of_instance(self) -> str:
            return self.config_name

    plain = Plain()
    dbos.register_instance(plain)
    dbos.register_instance(plain)
    dbos.launch()

    assert plain.of_instance() == "north"
    assert _process.registry.instances == {"Plain/north": plain}


def test_an_object_without_a_config_name_cannot_be_registered(dbos: type[DBOS]) -> None:
    with pytest.raises(Exception, match="does not have `config_name` set"):
        dbos.register_instance(object())


def test_two_instances_of_a_class_cannot_share_a_name(dbos: type[DBOS]) -> None:
    shop_class = make_shop(dbos)
    shop_class("north")

    with pytest.raises(Exception, match="Duplicate") as caught:
        shop_class("north")
    assert str(caught.value) == "Duplicate instance registration for class 'Shop' instance 'north'"


def test_two_classes_cannot_share_a_name(dbos: type[DBOS]) -> None:
    make_shop(dbos)

    with pytest.raises(Exception, match="Duplicate") as caught:
        make_shop(dbos)
    assert str(caught.value) == "Duplicate type registration for class 'Shop'"


def test_class_name_tells_classes_of_the_same_name_apart(dbos: type[DBOS]) -> None:
    def make(class_name: str) -> Any:
        @dbos.dbos_class(class_name=class_name)
        class Shop(DBOSConfiguredInstance):
            @dbos.workflow(name=f"{class_name}.where")
            def where(self) -> str:
                return class_name

        return Shop

    first, second = make("First")("north"), make("Second")("north")
    dbos.launch()

    assert (first.where(), second.where()) == ("First", "Second")
    assert set(_process.registry.instances) == {"First/north", "Second/north"}


def test_one_workflow_id_cannot_serve_two_instances_or_classes(dbos: type[DBOS]) -> None:
    class Base:
        @classmethod
        @dbos.workflow(name="of_class")
        def of_class(cls) -> str:
            return cls.__name__

    first: Any = dbos.dbos_class("First")(type("First", (Base,), {}))
    second: Any = dbos.dbos_class("Second")(type("Second", (Base,), {}))
    shop_class = make_shop(dbos)
    north, south = shop_class("north"), shop_class("south")
    dbos.launch()

    with SetWorkflowID("instance"):
        north.of_instance("x")
    with SetWorkflowID("class"):
        first.of_class()

    with SetWorkflowID("instance"), pytest.raises(DBOSConflictingWorkflowError, match="different config name"):
        south.of_instance("x")
    with SetWorkflowID("class"), pytest.raises(DBOSConflictingWorkflowError, match="different class name"):
        second.of_class()


# -- inheritance -------------------------------------------------------------------------------------------------------


def test_an_undecorated_subclass_shares_the_registration_of_its_base(dbos: type[DBOS]) -> None:
    runs = []

    @dbos.dbos_class("Base")
    class Base(DBOSConfiguredInstance):
        @dbos.workflow()
        def of_instance(self) -> str:
            runs.append(1)
            if len(runs) == 1:
                raise Crash
            return self.where()

        def where(self) -> str:
            return "base"

    class Child(Base):
        def where(self) -> str:
            return "child"

    child = Child("north")
    dbos.launch()

    with SetWorkflowID("child"), pytest.raises(Crash):
        child.of_instance()

    assert names(dbos, "child") == ("Base", "north")
    assert recover(dbos).get_result() == "child"


def test_a_class_method_of_an_undecorated_subclass_is_refused(dbos: type[DBOS]) -> None:
    """Recovery would have called it on the base class, silently."""

    @dbos.dbos_class("Base")
    class Base:
        @classmethod
        @dbos.workflow()
        def of_class(cls) -> str:
            return cls.__name__

    class Child(Base): ...

    dbos.launch()

    assert Base.of_class() == "Base"
    assert "is not properly registered: recovery would find its base Base" in refusal(Child.of_class)


@pytest.mark.parametrize("base_is_decorated", [True, False])
def test_decorated_subclasses_inherit_workflows_under_names_of_their_own(
    dbos: type[DBOS], base_is_decorated: bool
) -> None:
    runs = []

    class Base(DBOSConfiguredInstance):
        @dbos.workflow()
        def of_instance(self) -> str:
            runs.append(1)
            if len(runs) == 1:
                raise Crash
            return f"{type(self).__name__} {self.config_name}"

        @classmethod
        @dbos.workflow()
        def of_class(cls) -> str:
            return cls.__name__

        @staticmethod
        @dbos.workflow()
        def static() -> str:
            return "static"

    if base_is_decorated:
        dbos.dbos_class("Base")(Base)

    @dbos.dbos_class("First")
    class First(Base): ...

    @dbos.dbos_class("Second")
    class Second(Base): ...

    First("north")
    second = Second("north")
    dbos.launch()

    with SetWorkflowID("second"), pytest.raises(Crash):
        second.of_instance()

    assert names(dbos, "second") == ("Second", "north")
    assert recover(dbos).get_result() == "Second north"
    assert (First.of_class(), Second.of_class(), Second.static()) == ("First", "Second", "static")


def test_an_overridden_workflow_can_call_its_base_as_a_child(dbos: type[DBOS]) -> None:
    @dbos.dbos_class("Base")
    class Base(DBOSConfiguredInstance):
        @dbos.workflow(name="base work")
        def work(self) -> str:
            return "base"

    @dbos.dbos_class("Child")
    class Child(Base):
        @dbos.workflow(name="child work")
        def work(self) -> str:
            return f"child of {super().work()}"

    child = Child("north")
    dbos.launch()

    with SetWorkflowID("child"):
        result = child.work()

    assert result == "child of base"
    assert [step["function_name"] for step in dbos.list_workflow_steps("child")] == ["base work", "DBOS.getResult"]


# -- decorators in the other order -------------------------------------------------------------------------------------


def test_our_decorators_also_work_above_staticmethod_and_classmethod(dbos: type[DBOS]) -> None:
    @dbos.dbos_class("Upside")
    class Upside:
        @dbos.required_roles([])
        @dbos.workflow(name="static")
        @staticmethod
        def static(value: int) -> int:
            return Upside.step(value) + Upside.of_class_step(value)

        @dbos.workflow(name="of_class")
        @dbos.required_roles([])
        @classmethod
        def of_class(cls, value: int) -> str:
            return f"{cls.__name__} {Upside.save(value)}"

        @dbos.step(name="step")
        @staticmethod
        def step(value: int) -> int:
            return value

        @dbos.step(name="of_class_step")
        @classmethod
        def of_class_step(cls, value: int) -> int:
            return value * 10

        @dbos.transaction(name="save")
        @staticmethod
        def save(value: int) -> int:
            return value

    dbos.launch()

    with SetWorkflowID("static"):
        assert Upside.static(1) == 11
    with SetWorkflowID("class"):
        assert Upside.of_class(2) == "Upside 2"
    assert dbos.start_workflow(Upside.of_class, 3).get_result() == "Upside 3"
    assert Upside().static(1) == 11
    assert names(dbos, "static") == (None, None)
    assert names(dbos, "class") == ("Upside", None)
    assert [step["function_name"] for step in dbos.list_workflow_steps("static")] == ["step", "of_class_step"]
    info = get_func_info(Upside.of_class)
    assert info is not None
    assert info.func_type is DBOSFuncType.Class


async def test_our_decorators_also_work_above_coroutine_static_methods(dbos: type[DBOS]) -> None:
    @dbos.dbos_class()
    class Upside:
        @dbos.workflow()
        @staticmethod
        async def static(value: int) -> int:
            return value + 1

    dbos.launch()

    assert inspect.iscoroutinefunction(Upside.static)
    assert await Upside.static(1) == 2


def test_a_class_decorator_on_a_function_is_refused(dbos: type[DBOS]) -> None:
    target: Any = make_shop

    with pytest.raises(DBOSException, match="which is not a class"):
        dbos.dbos_class()(target)
    with pytest.raises(DBOSException, match="which is not a class"):
        dbos.default_required_roles(["user"])(target)
