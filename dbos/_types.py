"""Names for the things that cross module borders: ids, statuses, and the records users receive.

Plain data without behaviour; every layer may import it. The attribute and key names are those users know.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NewType, TypedDict

__all__ = [
    "ACTIVE_STATUSES",
    "IsolationLevel",
    "StepId",
    "StepInfo",
    "StepOptions",
    "StepStatus",
    "VersionInfo",
    "WorkflowId",
    "WorkflowInputs",
    "WorkflowStatus",
    "WorkflowStatusString",
]

WorkflowId = NewType("WorkflowId", str)
StepId = NewType("StepId", int)

IsolationLevel = Literal["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED"]


class WorkflowStatusString(Enum):
    """The states of a workflow, as the ``status`` column spells them."""

    PENDING = "PENDING"
    SUCCESS = "SUCCESS"
    ERROR = "ERROR"
    MAX_RECOVERY_ATTEMPTS_EXCEEDED = "MAX_RECOVERY_ATTEMPTS_EXCEEDED"
    CANCELLED = "CANCELLED"
    ENQUEUED = "ENQUEUED"
    DELAYED = "DELAYED"


ACTIVE_STATUSES = frozenset(
    {
        WorkflowStatusString.PENDING.value,
        WorkflowStatusString.ENQUEUED.value,
        WorkflowStatusString.DELAYED.value,
    }
)  # a workflow in any other state has an outcome, and changes only by resume


class WorkflowInputs(TypedDict):
    """The arguments a workflow was called with, without ``self`` or ``cls``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class WorkflowStatus:
    """What the database knows of one workflow. Times are epoch milliseconds."""

    workflow_id: str
    """The workflow's ID."""
    status: str
    """One of the :class:`WorkflowStatusString` values."""
    name: str
    """The name the function was registered under."""
    class_name: str | None = None
    """The registered name of its class; ``None`` for functions and static methods."""
    config_name: str | None = None
    """The ``config_name`` of its configured instance, if it has one."""
    authenticated_user: str | None = None
    """The user that started it, if one was authenticated."""
    assumed_role: str | None = None
    """The role under which it runs, if a role was required."""
    authenticated_roles: list[str] | None = None
    """All roles of that user."""
    input: WorkflowInputs | str | None = None
    """The arguments; ``None`` if not loaded, the stored text if they could not be decoded."""
    output: Any = None
    """The result, if it succeeded and results were loaded; the stored text if it could not be decoded."""
    error: Exception | str | None = None
    """What it raised, if it failed and results were loaded; the stored text if it could not be decoded."""
    created_at: int | None = None
    """When it was started or enqueued."""
    updated_at: int | None = None
    """When its status last changed."""
    completed_at: int | None = None
    """When it reached its outcome."""
    queue_name: str | None = None
    """The queue it is or was in."""
    executor_id: str | None = None
    """The executor that last began to run it."""
    app_version: str | None = None
    """The application version it belongs to."""
    app_id: str | None = None
    """The application ID, from ``DBOS__APPID``."""
    workflow_timeout_ms: int | None = None
    """How long it may run from its start."""
    workflow_deadline_epoch_ms: int | None = None
    """When it will be cancelled if it has not finished."""
    deduplication_id: str | None = None
    """The de-duplication ID it holds in its queue."""
    priority: int | None = None
    """Its priority in the queue; lower runs first."""
    queue_partition_key: str | None = None
    """Its partition of the queue."""
    forked_from: str | None = None
    """The workflow this one is a fork of."""
    was_forked_from: bool = False
    """Whether any workflow is a fork of this one."""
    parent_workflow_id: str | None = None
    """The workflow that started this one."""
    dequeued_at: int | None = None
    """When it was last taken from its queue."""
    delay_until_epoch_ms: int | None = None
    """When a delayed workflow becomes ready to run."""
    recovery_attempts: int | None = None
    """How many executions were begun: 0 while enqueued, 1 after the first start."""


class StepInfo(TypedDict):
    """One recorded operation of a workflow. Times are epoch milliseconds."""

    function_id: int
    function_name: str
    output: Any
    error: Exception | None
    child_workflow_id: str | None
    started_at_epoch_ms: int | None
    completed_at_epoch_ms: int | None


class VersionInfo(TypedDict):
    """One version of the application. Times are epoch milliseconds."""

    version_id: str
    version_name: str
    version_timestamp: int
    created_at: int


class StepOptions(TypedDict, total=False):
    """How ``DBOS.run_step`` runs a function; the defaults are those of ``@DBOS.step``."""

    name: str | None
    """The recorded name; by default the function's ``__qualname__``."""
    retries_allowed: bool
    """Whether a failed attempt is repeated. Default: ``False``."""
    interval_seconds: float
    """The wait before the second attempt. Default: 1.0."""
    max_attempts: int
    """How often the function is tried in all. Default: 3."""
    backoff_rate: float
    """The factor by which the wait grows after each attempt. Default: 2.0."""
    should_retry: Callable[[Exception], bool | Awaitable[bool]] | None
    """Decides for each error whether to try again. Default: always."""
    preemptible: bool
    """Whether cancelling the workflow interrupts the step; async steps only. Default: ``False``."""
    timeout_seconds: float | None
    """The time each attempt may take; async steps only. Default: no limit."""


@dataclass
class StepStatus:
    """Where a running step stands (``DBOS.step_status``)."""

    step_id: int
    """The step's number in its workflow."""
    current_attempt: int | None
    """The attempt, counted from 0; ``None`` if retries are off."""
    max_attempts: int | None
    """How many attempts there may be; ``None`` if retries are off."""
