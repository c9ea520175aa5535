"""Where the running code stands: which workflow, which step, on whose behalf, and what was asked for the next start.

One immutable-by-habit :class:`Context` hangs on a context variable. Context managers put a changed copy in its place
and restore the old one, so tasks that run side by side never see each other's changes; the workflow's own state (its
counter of function ids) is in the :class:`Run` that the copies share. This module knows no singleton.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, get_args

from dbos._clock import Clock, current_clock
from dbos._error import DBOSException, DBOSNotAuthorizedError
from dbos._queue_config import checked_key
from dbos._serialization.attributes import dump_attributes
from dbos._types import DuplicationPolicy, StepStatus

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from dbos._app_db import TransactionDatabase
    from dbos._engine.run import Run

__all__ = [
    "UNSET",
    "AssignedId",
    "Context",
    "DBOSContextEnsure",
    "DBOSContextSetAuth",
    "Delay",
    "EnqueueChoices",
    "SetEnqueueOptions",
    "SetWorkflowAttributes",
    "SetWorkflowID",
    "SetWorkflowTimeout",
    "Unset",
    "checked_workflow_id",
    "current_context",
    "install",
    "restore",
]

logger = logging.getLogger("dbos.context")

MAX_PRIORITY = 2**31 - 1  # what the column holds
MAX_DELAY_S = 1e11  # three thousand years; in milliseconds it still fits the column


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


class Delay:
    """So many seconds from now on, by this machine's uninterrupted clock.

    Raises:
        DBOSException: that is no length of time.
    """

    __slots__ = ("_clock", "_until_s")

    def __init__(self, delay_s: float, name: str = "delay_seconds", clock: Clock | None = None) -> None:
        is_number = isinstance(delay_s, int | float) and not isinstance(delay_s, bool)
        if not is_number or not 0 <= delay_s <= MAX_DELAY_S:
            raise DBOSException(f"Invalid {name} {delay_s!r}: a delay is a finite number of seconds, not less than 0.")
        self._clock = clock or current_clock()
        self._until_s = self._clock.monotonic() + delay_s

    def until_ms(self, now_ms: int) -> int:
        """When it is over, by a clock that shows ``now_ms`` now."""
        return now_ms + math.ceil((self._until_s - self._clock.monotonic()) * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueueChoices:
    """How to enqueue what is enqueued next; checked when it is made.

    Raises:
        Exception: the priority is out of range.
        DBOSException: another option is not what it can be.
    """

    deduplication_id: str | None = None
    priority: int | None = None
    app_version: str | None = None
    queue_partition_key: str | None = None
    delay: Delay | None = None
    duplication_policy: DuplicationPolicy | None = None

    def __post_init__(self) -> None:
        priority = self.priority
        if priority is not None and (type(priority) is not int or not 1 <= priority <= MAX_PRIORITY):
            raise Exception(f"Invalid priority {priority}. Priority must be between 1~{MAX_PRIORITY}.")
        for name in ("deduplication_id", "queue_partition_key", "app_version"):
            key = getattr(self, name)
            if key is not None:
                checked_key(name, key)
        policy = self.duplication_policy
        if policy is not None and policy not in get_args(DuplicationPolicy):
            known = " or ".join(map(repr, get_args(DuplicationPolicy)))
            raise DBOSException(f"Invalid duplication_policy {policy!r}: it is {known}.")
        if policy == "return-existing" and self.deduplication_id is None:
            raise DBOSException("duplication_policy 'return-existing' requires a deduplication_id.")

    def only_for_queues(self) -> list[str]:
        """The names of the options that are set and mean nothing outside of a queue."""
        given = {
            "deduplication_id": self.deduplication_id,
            "priority": self.priority,
            "queue_partition_key": self.queue_partition_key,
            "delay_seconds": self.delay,
            "duplication_policy": self.duplication_policy,
        }
        return [name for name, value in given.items() if value is not None]


NO_CHOICES: Final = EnqueueChoices()


@dataclass(slots=True, eq=False)
class Context:
    """The state that calls are made in."""

    run: Run | None = None
    step_id: int | None = None
    attempt: int | None = None
    max_attempts: int | None = None
    session: Session | AsyncSession | None = None
    database: TransactionDatabase | None = None  # that the session is of
    is_in_transaction: bool = False
    assigned_id: AssignedId | None = None
    timeout_ms: int | Unset | None = field(default=UNSET)
    choices: EnqueueChoices = NO_CHOICES
    attributes: str | None = None  # of what is started here, as a JSON object
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


@contextmanager
def outside_of_workflows() -> Iterator[None]:
    """A block that knows of no workflow around it, but who acts; an id that was assigned can still be taken."""
    outer = current_context() or Context()
    token = install(
        Context(
            assigned_id=outer.assigned_id,
            authenticated_user=outer.authenticated_user,
            authenticated_roles=outer.authenticated_roles,
        )
    )
    try:
        yield
    finally:
        restore(token)


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


def checked_workflow_id(workflow_id: object) -> str:
    """``workflow_id``, if a workflow can have it in both databases.

    Raises:
        DBOSException: it cannot.
    """
    try:
        is_valid = isinstance(workflow_id, str) and workflow_id.strip() != "" and b"\0" not in workflow_id.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        is_valid = False
    if not is_valid:
        raise DBOSException(
            f"Invalid workflow ID {workflow_id!r}: a workflow ID is a string of valid Unicode that is not blank and "
            "has no NUL character."
        )
    return str.__str__(workflow_id)  # of an enumeration's member, its value


class SetWorkflowID(_Scope):
    """Give the first workflow that is started in the block the id ``wfid``; later ones get generated ids.

    A workflow id is an idempotency key: starting a workflow under an id that exists returns that workflow.

    Args:
        wfid: The id; unique in the system database.

    Raises:
        DBOSException: ``wfid`` is blank, or cannot be stored.

    Example:
        ```python
        with SetWorkflowID(f"order-{order_id}"):
            checkout(order_id)
        ```
    """

    def __init__(self, wfid: str) -> None:
        super().__init__()
        self.wfid = checked_workflow_id(wfid)

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
        is_number = isinstance(workflow_timeout_sec, int | float) and not isinstance(workflow_timeout_sec, bool)
        if workflow_timeout_sec is not None and not (is_number and 0 <= workflow_timeout_sec <= MAX_DELAY_S):
            raise Exception(f"Invalid workflow timeout {workflow_timeout_sec}. Timeouts must be positive.")
        # 1.001 * 1000 is less than 1001.
        self.timeout_ms = None if workflow_timeout_sec is None else int(round(workflow_timeout_sec * 1000, 3)) or None

    def _change(self, context: Context) -> Context:
        return replace(context, timeout_ms=self.timeout_ms)


class SetEnqueueOptions(_Scope):
    """Say how workflows that are enqueued in the block are enqueued; options that are not given are unset in it.

    They apply to enqueueing alone: a call is not changed by them, starting a workflow that is not enqueued refuses
    them, and neither the enqueued workflow nor what it enqueues inherits them.

    Args:
        deduplication_id: While a workflow that was enqueued with it waits or runs, another with the same id is refused
            in the same queue.
        priority: From 1, which is first, to 2147483647; what has none runs before all that have one.
        app_version: The application version that may run it; by default that of this process. Also for workflows that
            are started.
        queue_partition_key: The partition of the queue.
        delay_seconds: Do not run it before so many seconds have passed since this object was made.
        duplication_policy: Whether a ``deduplication_id`` that is held raises an error (``"reject"``, the default) or
            gives the handle of the workflow that holds it (``"return-existing"``).

    Raises:
        Exception: the priority is out of range.
        DBOSException: another option is not what it can be.

    Example:
        ```python
        with SetEnqueueOptions(deduplication_id=f"order-{order_id}", priority=10):
            queue.enqueue(checkout, order_id)
        ```
    """

    def __init__(
        self,
        *,
        deduplication_id: str | None = None,
        priority: int | None = None,
        app_version: str | None = None,
        queue_partition_key: str | None = None,
        delay_seconds: float | None = None,
        duplication_policy: DuplicationPolicy | None = None,
    ) -> None:
        super().__init__()
        self._choices = EnqueueChoices(
            deduplication_id=deduplication_id,
            priority=priority,
            app_version=app_version,
            queue_partition_key=queue_partition_key,
            delay=None if delay_seconds is None else Delay(delay_seconds),
            duplication_policy=duplication_policy,
        )

    def _change(self, context: Context) -> Context:
        return replace(context, choices=self._choices)


class SetWorkflowAttributes(_Scope):
    """Attach attributes to each workflow that is started or enqueued in the block; their children do not inherit them.

    They are listed with it, :meth:`DBOS.list_workflows` finds it by them, and
    :meth:`DBOS.update_workflow_attributes` changes them.

    Args:
        attributes: A dictionary that JSON can express; None for none.

    Raises:
        DBOSException: JSON cannot express it.

    Example:
        ```python
        with SetWorkflowAttributes({"customer": "Ada", "region": "eu"}):
            checkout(order_id)
        ```
    """

    def __init__(self, attributes: dict[str, Any] | None) -> None:
        super().__init__()
        self._attributes = dump_attributes(attributes)

    def _change(self, context: Context) -> Context:
        return replace(context, attributes=self._attributes)


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
