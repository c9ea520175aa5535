"""Who may call what: required roles, the assumed role, and how authentication travels with a workflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dbos import DBOS, DBOSConfiguredInstance, DBOSContextEnsure, DBOSContextSetAuth, DBOSException, SetWorkflowID
from dbos._error import DBOSNotAuthorizedError
from tests.integration.crashes import Crash, recover


def seen() -> tuple[str | None, list[str] | None, str | None]:
    """For whom the calling code acts."""
    return DBOS.authenticated_user, DBOS.authenticated_roles, DBOS.assumed_role


UNKNOWN_USER = "Function {} requires a role, but was called in a context without authentication information"
WRONG_ROLE = "Function {} has required roles, but user is not authenticated for any of them"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(DBOSNotAuthorizedError, match="DBOS Error 8: ") as caught:
        call()
    assert str(caught.value) == f"DBOS Error 8: {caught.value.message}"
    assert caught.value.status_code == 403
    return caught.value.message


# -- required_roles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["above", "below"])
@pytest.mark.parametrize("kind", ["workflow", "transaction"])
def test_a_role_is_required_above_and_below_the_decorator(dbos: type[DBOS], kind: str, order: str) -> None:
    decorators: dict[str, Any] = {"workflow": dbos.workflow, "transaction": dbos.transaction}
    operation = decorators[kind](name="guarded")
    require = dbos.required_roles(["admin", "operator"])

    def function() -> tuple[str | None, list[str] | None, str | None]:
        return seen()

    guarded = require(operation(function)) if order == "above" else operation(require(function))
    dbos.launch()

    assert refusal(guarded) == UNKNOWN_USER.format("guarded")
    with DBOSContextSetAuth("ann", ["guest"]):
        assert refusal(guarded) == WRONG_ROLE.format("guarded")
    with DBOSContextSetAuth("ann", []):
        assert refusal(guarded) == WRONG_ROLE.format("guarded")
    with DBOSContextSetAuth("ann", ["guest", "operator", "admin"]):
        assert guarded() == ("ann", ["guest", "operator", "admin"], "admin")
    with DBOSContextSetAuth("ann", ["operator"]):
        assert guarded() == ("ann", ["operator"], "operator")


@pytest.mark.parametrize("order", ["above", "below"])
def test_a_role_is_required_for_a_step_within_a_workflow(dbos: type[DBOS], order: str) -> None:
    def function() -> str | None:
        return dbos.assumed_role

    require = dbos.required_roles(["admin"])
    step: Any = dbos.step(name="guarded")
    guarded = require(step(function)) if order == "above" else step(require(function))

    @dbos.workflow()
    def workflow() -> list[str | None]:
        return [dbos.assumed_role, guarded(), dbos.assumed_role]

    dbos.launch()

    assert refusal(workflow) == UNKNOWN_USER.format("guarded")
    with DBOSContextSetAuth("ann", ["guest"]):
        assert refusal(workflow) == WRONG_ROLE.format("guarded")
    with DBOSContextSetAuth("ann", ["admin"]):
        assert workflow() == [None, "admin", None]


async def test_a_role_is_required_for_coroutines_in_either_order(dbos: type[DBOS]) -> None:
    @dbos.required_roles(["admin"])
    @dbos.step()
    async def above() -> str | None:
        return dbos.assumed_role

    @dbos.step()
    @dbos.required_roles(["operator"])
    async def below() -> str | None:
        return dbos.assumed_role

    @dbos.workflow()
    @dbos.required_roles(["admin"])
    async def workflow() -> list[str | None]:
        return [await above(), await below(), dbos.assumed_role]

    dbos.launch()

    with pytest.raises(DBOSNotAuthorizedError, match="requires a role"):
        await workflow()
    with DBOSContextSetAuth("ann", ["admin"]), pytest.raises(DBOSNotAuthorizedError, match="below"):
        await workflow()
    with DBOSContextSetAuth("ann", ["admin", "operator"]):
        assert await workflow() == ["admin", "operator", "admin"]


def test_the_assumed_role_of_a_transaction_ends_with_it(dbos: type[DBOS]) -> None:
    @dbos.transaction()
    @dbos.required_roles(["admin"])
    def save() -> str | None:
        return dbos.assumed_role

    @dbos.workflow()
    def workflow() -> list[str | None]:
        return [save(), dbos.assumed_role]

    dbos.launch()

    with DBOSContextSetAuth("ann", ["admin"]):
        assert workflow() == ["admin", None]


def test_a_step_called_outside_of_a_workflow_asks_for_no_role(dbos: type[DBOS]) -> None:
    @dbos.required_roles(["admin"])
    @dbos.step()
    def above() -> str:
        return "done"

    @dbos.step()
    @dbos.required_roles(["admin"])
    def below() -> str:
        return "done"

    dbos.launch()

    assert (above(), below()) == ("done", "done")


def test_a_step_started_by_itself_asks_for_its_role_under_its_own_name(dbos: type[DBOS]) -> None:
    @dbos.required_roles(["admin"])
    @dbos.step(name="guarded")
    def guarded() -> str | None:
        return dbos.assumed_role

    dbos.launch()

    refused = dbos.start_workflow(guarded)
    with DBOSContextSetAuth("ann", ["admin"]):
        allowed = dbos.start_workflow(guarded)

    assert refusal(refused.get_result) == UNKNOWN_USER.format("guarded")
    assert allowed.get_result() == "admin"


async def test_a_function_that_is_no_operation_asks_for_its_role_itself(dbos: type[DBOS]) -> None:
    """It was open to everybody when the decorator that makes it a workflow was forgotten."""

    @dbos.required_roles(["admin"])
    def function() -> str | None:
        return dbos.assumed_role

    @dbos.required_roles(["admin"])
    async def coroutine_function() -> str | None:
        return dbos.assumed_role

    assert refusal(function) == UNKNOWN_USER.format(function.__qualname__)
    with pytest.raises(DBOSNotAuthorizedError):
        await coroutine_function()
    with DBOSContextSetAuth("ann", ["admin"]):
        assert function() == "admin"
        assert await coroutine_function() == "admin"
        assert dbos.assumed_role is None


def test_roles_are_a_list(dbos: type[DBOS]) -> None:
    roles: Any = "admin"

    with pytest.raises(DBOSException, match=r'Write @DBOS.required_roles\(\["admin"\]\)'):
        dbos.required_roles(roles)
    with pytest.raises(DBOSException, match=r'Write @DBOS.default_required_roles\(\["admin"\]\)'):
        dbos.default_required_roles(roles)


# -- default_required_roles --------------------------------------------------------------------------------------------


def make_guarded(dbos: type[DBOS], decorate: Callable[[type], type]) -> Any:
    class Guarded(DBOSConfiguredInstance):
        @staticmethod
        @dbos.workflow()
        def static() -> str | None:
            return dbos.assumed_role

        @classmethod
        @dbos.workflow()
        def of_class(cls) -> str | None:
            return dbos.assumed_role

        @dbos.workflow()
        def of_instance(self) -> str | None:
            return dbos.assumed_role

        @dbos.workflow()
        def with_step(self) -> str | None:
            return self.step()

        @dbos.step()
        def step(self) -> str | None:
            return dbos.assumed_role

        @dbos.workflow()
        @dbos.required_roles([])
        def is_open(self) -> str | None:
            return dbos.assumed_role

        @dbos.required_roles(["other"])
        @dbos.workflow()
        def needs_other(self) -> str | None:
            return dbos.assumed_role

    return decorate(Guarded)


@pytest.mark.parametrize("order", ["alone", "above dbos_class", "below dbos_class"])
def test_default_roles_apply_to_functions_without_roles_of_their_own(dbos: type[DBOS], order: str) -> None:
    def decorate(cls: type) -> type:
        if order == "below dbos_class":
            return dbos.dbos_class()(dbos.default_required_roles(["user"])(cls))
        if order == "above dbos_class":
            return dbos.default_required_roles(["user"])(dbos.dbos_class()(cls))
        return dbos.default_required_roles(["user"])(cls)

    guarded = make_guarded(dbos, decorate)("north")
    dbos.launch()

    for method in (guarded.static, guarded.of_class, guarded.of_instance, guarded.with_step):
        assert "requires a role" in refusal(method)
        with DBOSContextSetAuth("ann", ["user"]):
            assert method() == "user"
    assert guarded.is_open() is None
    with DBOSContextSetAuth("ann", ["user"]):
        assert "has required roles" in refusal(guarded.needs_other)
    with DBOSContextSetAuth("ann", ["other"]):
        assert guarded.needs_other() == "other"


def test_the_inner_of_two_class_decorators_names_the_class(dbos: type[DBOS]) -> None:
    @dbos.default_required_roles([])
    @dbos.dbos_class("Named")
    class First(DBOSConfiguredInstance):
        @dbos.workflow()
        def work(self) -> None: ...

    @dbos.dbos_class("Ignored")
    @dbos.default_required_roles([])
    class Second(DBOSConfiguredInstance):
        @dbos.workflow()
        def work(self) -> None: ...

    first, second = First("north"), Second("north")
    dbos.launch()
    handles = [dbos.start_workflow(instance.work) for instance in (first, second)]
    for handle in handles:
        handle.get_result()

    assert [handle.get_status().class_name for handle in handles] == ["Named", Second.__qualname__]


def test_an_inherited_method_requires_the_roles_of_the_class_it_is_called_on(dbos: type[DBOS]) -> None:
    class Base(DBOSConfiguredInstance):
        @dbos.workflow()
        def work(self) -> str | None:
            return self.step()

        @dbos.step()
        def step(self) -> str | None:
            return dbos.assumed_role

    @dbos.default_required_roles(["first"])
    class First(Base): ...

    @dbos.default_required_roles(["second"])
    class Second(Base): ...

    first, second = First("north"), Second("north")
    dbos.launch()

    with DBOSContextSetAuth("ann", ["first"]):
        assert first.work() == "first"
        assert "has required roles" in refusal(second.work)
    with DBOSContextSetAuth("ann", ["second"]):
        assert second.work() == "second"
        assert "has required roles" in refusal(first.work)


def test_a_decorated_subclass_keeps_the_default_roles_of_its_base(dbos: type[DBOS]) -> None:
    @dbos.default_required_roles(["user"])
    class Base(DBOSConfiguredInstance):
        @dbos.workflow()
        def work(self) -> str | None:
            return dbos.assumed_role

    @dbos.dbos_class()
    class Child(Base): ...

    child = Child("north")
    dbos.launch()

    assert "requires a role" in refusal(child.work)


# -- authentication travels --------------------------------------------------------------------------------------------


def test_children_act_for_the_user_of_their_parent(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> tuple[str | None, list[str] | None, str | None]:
        return seen()

    @dbos.workflow()
    def child() -> Any:
        return [seen(), step()]

    @dbos.workflow()
    @dbos.required_roles(["admin"])
    def parent() -> Any:
        return [*child(), *dbos.start_workflow(child).get_result()]

    dbos.launch()

    with DBOSContextSetAuth("ann", ["admin"]), SetWorkflowID("parent"):
        results = parent()

    assert results == [("ann", ["admin"], "admin")] * 4
    for workflow_id in ("parent-1", "parent-3"):
        status = dbos.get_workflow_status(workflow_id)
        assert status is not None
        assert (status.authenticated_user, status.authenticated_roles) == ("ann", ["admin"])
        assert status.assumed_role == "admin"


def test_a_refused_workflow_in_the_background_ends_as_an_error(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    @dbos.required_roles(["admin"])
    def workflow() -> None: ...

    dbos.launch()

    with DBOSContextSetAuth("ann", ["guest"]):
        handle = dbos.start_workflow(workflow)

    assert refusal(handle.get_result) == WRONG_ROLE.format(workflow.__qualname__)
    status = handle.get_status()
    assert status.status == "ERROR"
    assert isinstance(status.error, DBOSNotAuthorizedError)
    assert (status.authenticated_user, status.authenticated_roles, status.assumed_role) == ("ann", ["guest"], None)


@pytest.mark.parametrize("roles", [["guest", "admin"], ["guest"], [], None])
def test_recovery_restores_the_user_and_the_roles(dbos: type[DBOS], roles: list[str] | None) -> None:
    runs = []

    @dbos.workflow()
    def workflow() -> Any:
        runs.append(seen())
        if len(runs) == 1:
            raise Crash
        return None

    dbos.launch()

    with DBOSContextSetAuth("ann", roles), pytest.raises(Crash):
        workflow()
    recover(dbos).get_result()

    assert runs == [("ann", roles, None)] * 2


def test_roles_are_checked_again_on_recovery(dbos: type[DBOS]) -> None:
    runs = []

    @dbos.workflow()
    @dbos.required_roles(["admin"])
    def workflow() -> str | None:
        runs.append(1)
        if len(runs) == 1:
            raise Crash
        return dbos.assumed_role

    dbos.launch()

    with DBOSContextSetAuth("ann", ["admin"]), pytest.raises(Crash):
        workflow()

    assert recover(dbos).get_result() == "admin"


# -- the context -------------------------------------------------------------------------------------------------------


def test_set_auth_yields_its_context_and_restores_the_outer_one(dbos: type[DBOS]) -> None:
    with DBOSContextSetAuth("ann", ["admin"]) as outer:
        assert (outer.authenticated_user, outer.authenticated_roles) == ("ann", ["admin"])
        inner = DBOSContextSetAuth("bob", None)
        with inner, inner:
            assert seen() == ("bob", None, None)
        assert seen() == ("ann", ["admin"], None)

    with pytest.raises(AssertionError):
        _ = dbos.authenticated_user


def test_set_auth_ends_with_an_error_too(dbos: type[DBOS]) -> None:
    def fail() -> None:
        with DBOSContextSetAuth("ann", ["admin"]):
            raise ValueError("left")

    with pytest.raises(ValueError, match="left"):
        fail()
    with pytest.raises(AssertionError):
        _ = dbos.authenticated_user


def test_ensure_yields_a_context_whose_user_can_be_set(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> Any:
        return seen()

    dbos.launch()

    with DBOSContextEnsure() as context:
        context.authenticated_user = "ann"
        context.authenticated_roles = ["admin"]
        with DBOSContextEnsure() as inner:
            assert inner is context
        result = workflow()

    assert result == ("ann", ["admin"], None)
    with pytest.raises(AssertionError):
        _ = dbos.authenticated_user


def test_set_authentication_changes_the_current_context(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def child() -> Any:
        return seen()

    @dbos.workflow()
    def workflow() -> Any:
        dbos.set_authentication("bob", ["operator"])
        return [seen(), child()]

    dbos.launch()

    with DBOSContextEnsure():
        dbos.set_authentication("ann", ["admin"])
        assert seen() == ("ann", ["admin"], None)
        assert workflow() == [("bob", ["operator"], None)] * 2
        assert seen() == ("ann", ["admin"], None)
    with pytest.raises(AssertionError):
        dbos.set_authentication("ann", None)
