"""Where the calling code stands: its workflow, its step, its user."""

# ruff: noqa: N805 - the first argument of a class property is the class

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from dbos._context import Context, current_context
from dbos._process import process
from dbos._types import StepStatus

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Surroundings"]

V = TypeVar("V")

logger = logging.getLogger("dbos")


class _ClassProperty(Generic[V]):
    """A read-only property of the class itself, so that ``DBOS.workflow_id`` works without an instance."""

    def __init__(self, getter: Callable[[Any], V]) -> None:
        self._getter = getter
        self.__doc__ = getter.__doc__

    def __get__(self, instance: object, owner: type) -> V:
        return self._getter(owner)


class Surroundings:
    """What is known of the caller."""

    logger: ClassVar[logging.Logger] = logger

    @_ClassProperty
    def application_version(cls) -> str:
        """The application version of this process; empty before the launch that computes it."""
        instance = process.instance
        if instance is None:
            return os.environ.get("DBOS__APPVERSION", "")
        return instance._runtime.engine.application_version

    @_ClassProperty
    def executor_id(cls) -> str:
        """The executor id of this process."""
        instance = process.instance
        if instance is None:
            return os.environ.get("DBOS__VMID") or "local"
        return instance._runtime.engine.executor_id

    @_ClassProperty
    def workflow_id(cls) -> str | None:
        """The id of the workflow that the calling code belongs to, or None."""
        context = current_context()
        return context.run.workflow_id if context is not None and context.run is not None else None

    @_ClassProperty
    def step_id(cls) -> int | None:
        """The function id of the step or transaction that the calling code belongs to, or None."""
        context = current_context()
        return context.step_id if context is not None else None

    @_ClassProperty
    def step_status(cls) -> StepStatus | None:
        """The step and attempt that the calling code belongs to, or None."""
        context = current_context()
        return context.step_status if context is not None else None

    @_ClassProperty
    def sql_session(cls) -> Session:
        """The SQLAlchemy session of the transaction that the calling code belongs to.

        Raises:
            AssertionError: it belongs to none.
        """
        context = current_context()
        session = context.session if context is not None else None
        assert session is not None, "DBOS.sql_session is only available within a transaction"
        assert context is not None
        assert context.database is not None  # it is where the session is
        assert context.database.owner is None, "This transaction is one of a datasource: use its attribute session"
        return cast("Session", session)

    @_ClassProperty
    def authenticated_user(cls) -> str | None:
        """The user that the calling code acts for."""
        return _existing_context().authenticated_user

    @_ClassProperty
    def authenticated_roles(cls) -> list[str] | None:
        """The roles of the user that the calling code acts for."""
        return _existing_context().authenticated_roles

    @_ClassProperty
    def assumed_role(cls) -> str | None:
        """The role by which the user was allowed to call the current function."""
        return _existing_context().assumed_role

    @classmethod
    def set_authentication(cls, authenticated_user: str | None, authenticated_roles: list[str] | None) -> None:
        """Set the user and roles of the current context.

        Args:
            authenticated_user: The user's name.
            authenticated_roles: The roles that the user has.

        Raises:
            AssertionError: there is no context; use :class:`DBOSContextSetAuth` or :class:`DBOSContextEnsure`.
        """
        context = _existing_context()
        context.authenticated_user = authenticated_user
        context.authenticated_roles = authenticated_roles


def _existing_context() -> Context:
    context = current_context()
    assert context is not None, "No DBOS context: call this from within a workflow, or in a DBOSContextEnsure block"
    return context
