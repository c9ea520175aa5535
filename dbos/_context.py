"""Where the running code stands: which workflow, which step, on whose behalf, and what was asked for the next start.

One immutable-by-habit :class:`Context` hangs on a context variable. Context managers put a changed copy in its place
and restore the old one, so tasks that run side by side never see each other's changes; the workflow's own state (its
counter of function ids) is in the :class:`Run` that the copies share. This module knows no singleton.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from dbos._error import DBOSException, DBOSNotAuthorizedError
from dbos._types import StepStatus

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from dbos._engine.run import Run

__all__ = [
    "UNSET",
    "Context",
    "DBOSContextEnsure",
    "DBOSContextSetAuth",
    "SetWorkflowID",
    "SetWorkflowTimeout",
    "Unset",
    "current_context",
    "install",
    "restore",
]

logger = logging.getLogger("dbos.context")


class Unset:
    """The type of :data:`UNSET`: an option that was not given, where None means something."""


UNSET: Final = Unset()


class AssignedId:
    """A workflow id chosen by the user for the first workflow that starts."""

    __slots__ = ("_workflow_id", "is_taken")

    def __init__(self, workflow_id: str) -> None:
        self._workflow_id = workflow_id
        self.is_taken = False

    def take(self) -> str | None:
        """The id, once; None afterwards, with a warning."""
        if self.is_taken:
            logger.warning(
                "Multiple workflows started in the same SetWorkflowID block. Only the first gets the assigned ID %s; "
                "this one gets a generated ID.",
                self._workflow_id,
            )
            return None
        self.is_taken = True
        return self._workflow_id


@dataclass(slots=True, eq=False)
class Context:
    """The state that calls are made in."""

    run: Run | None = None
    step_id: int | None = None
    attempt: int | None = None
    max_attempts: int | None = None
    session: Session | None = None
    is_in_transaction: bool = False
    assigned_id: AssignedId | None = None
    timeout_ms: int | Unset | None = field(default=UNSET)
    authenticated_user: str | None = None
    authenticated_roles: list[str] | None = None
    assumed_role: str | None = None

    @property
    def is_in_workflow_body(self) -> bool:
        """Whether an operation made here is recorded: within a workflow, not within one of its steps."""
        return self.run is not None and self.step_id is None

    @property
    def step_status(self) -> StepStatus | None:
        """Where the step stands that this is the context of."""
        return None if self.step_id is None else StepStatus(self.step_id, self.attempt, self.max_attempts)

    def with_role(self, required: list[str], function_name: str) -> Context:
        """The context of a call that requires a role: the first of them that the user has is assumed in it.

        Raises:
            DBOSNotAuthorizedError: the user is unknown, or has none of them.
        """
        if not required:
            return self
        if self.authenticated_roles is None:
            raise DBOSNotAuthorizedError(
                f"Function {function_name} requires a role, but was called in a context without "
                "authentication information"
            )
        for role in required:
            if role in self.authenticated_roles:
                return replace(self, assumed_role=role)
        raise DBOSNotAuthorizedError(
            f"Function {function_name} has required roles, but user is not authenticated for any of them"
        )


_context: ContextVar[Context | None] = ContextVar("dbos_context", default=None)

current_context = _context.get


def install(context: Context) -> Token[Context | None]:
    """Make ``context`` the current one; :func:`restore` undoes it."""
    return _context.set(context)


restore = _context.reset


class _Scope(ABC):
    """A block with a changed copy of the context, or with a new one if there was none."""

    def __init__(self) -> None:
        self._tokens: list[Token[Context | None]] = []

    @abstractmethod
    def _change(self, context: Context) -> Context:
        """The context within the block."""

    def __enter__(self) -> Self:
        self._tokens.append(install(self._change(current_context() or Context())))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        restore(self._tokens.pop())


class SetWorkflowID(_Scope):
    """Give the first workflow that is started in the block the id ``wfid``; later ones get generated ids.

    A workflow id is an idempotency key: starting a workflow under an id that exists returns that workflow.

    Args:
        wfid: The id; unique in the system database.

    Raises:
        DBOSException: ``wfid`` is empty or blank.

    Example:
        ```python
        with SetWorkflowID(f"order-{order_id}"):
            checkout(order_id)
        ```
    """

    def __init__(self, wfid: str) -> None:
        super().__init__()
        if not isinstance(wfid, str) or not wfid.strip() or "\0" in wfid:
            raise DBOSException(
                f"Invalid workflow ID {wfid!r}: a workflow ID is a string that is not blank and has no NUL character."
            )
        self.wfid = str.__str__(wfid)  # of an enumeration's member, its value

    def _change(self, context: Context) -> Context:
        return replace(context, assigned_id=AssignedId(self.wfid))


class SetWorkflowTimeout(_Scope):
    """Limit how long each workflow that is started in the block may take, from its start to its end.

    A workflow that exceeds it is cancelled. Children inherit the deadline; ``SetWorkflowTimeout(None)`` inside a
    workflow frees the children started in the block from it.

    Args:
        workflow_timeout_sec: The limit in seconds; None or 0 for none.

    Raises:
        Exception: the limit is negative, or not a finite number.
    """

    def __init__(self, workflow_timeout_sec: float | None) -> None:
        super().__init__()
        if workflow_timeout_sec is not None and not 0 <= workflow_timeout_sec < math.inf:
            raise Exception(f"Invalid workflow timeout {workflow_timeout_sec}. Timeouts must be positive.")
        self._timeout_ms = None if workflow_timeout_sec is None else int(workflow_timeout_sec * 1000) or None

    def _change(self, context: Context) -> Context:
        return replace(context, timeout_ms=self._timeout_ms)


class DBOSContextEnsure:
    """Make sure that there is a context, and yield it: for setting the authenticated user by hand."""

    def __init__(self) -> None:
        self._tokens: list[Token[Context | None] | None] = []

    def __enter__(self) -> Context:
        context = current_context()
        if context is None:
            context = Context()
            self._tokens.append(install(context))
        else:
            self._tokens.append(None)
        return context

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        token = self._tokens.pop()
        if token is not None:
            restore(token)


class DBOSContextSetAuth(_Scope):
    """Act on behalf of a user within the block; workflows started in it inherit user and roles.

    Args:
        user: The user's name.
        roles: The roles that the user has.
    """

    def __init__(self, user: str | None, roles: list[str] | None) -> None:
        super().__init__()
        self._user, self._roles = user, roles

    def _change(self, context: Context) -> Context:
        return replace(context, authenticated_user=self._user, authenticated_roles=self._roles)

    def __enter__(self) -> Any:
        super().__enter__()
        return current_context()
