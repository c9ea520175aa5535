"""Names for the things that cross module borders: ids, statuses, and the records users receive.

Plain data without behaviour; every layer may import it. The attribute and key names are those users know.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Literal, NewType, TypedDict

__all__ = [
    "ACTIVE_STATUSES",
    "Catchup",
    "ClientScheduleInput",
    "DuplicationPolicy",
    "ExecutorInfo",
    "IsolationLevel",
    "ManagementAction",
    "Metric",
    "Overlap",
    "RetentionReport",
    "ScheduleDecision",
    "ScheduleInput",
    "ScheduleOptions",
    "SchedulePreview",
    "SendMessage",
    "StepId",
    "StepInfo",
    "StepOptions",
    "StepStatus",
    "TransactionOptions",
    "VersionInfo",
    "WorkflowAggregate",
    "WorkflowId",
    "WorkflowInputs",
    "WorkflowSchedule",
    "WorkflowStatus",
    "WorkflowStatusString",
]

WorkflowId = NewType("WorkflowId", str)
StepId = NewType("StepId", int)

IsolationLevel = Literal["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED"]

DuplicationPolicy = Literal["reject", "return-existing"]
"""What an enqueue does if its de-duplication ID is held: raise an error, or return the workflow that holds it."""


Overlap = Literal["allow", "skip", "buffer_one", "buffer_all", "cancel_other"]
"""What becomes of a tick while an earlier run of its schedule has not ended: it is started all the same, or skipped; it
waits until that has ended, if it is the only one that waits, or behind all that do; or the earlier run is cancelled."""

Catchup = Literal["none", "latest", "all"]
"""Which of the ticks that nobody was there to start are started later: none but those that are hardly late, the latest,
or all of them."""


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
    schedule_name: str | None = None
    """The schedule that started it."""
    application_name: str | None = None
    """The name of the application that started or enqueued it."""
    attributes: dict[str, Any] | None = None
    """What its users have attached to it."""


@dataclass
class SendMessage:
    """A message to be sent together with others.

    Args:
        destination_id: The id of the workflow.
        message: The message.
        topic: The topic it is received by; None is one of its own.
        idempotency_key: Of messages to one workflow with the same key only the first is sent.
    """

    destination_id: str
    message: Any
    topic: str | None = None
    idempotency_key: str | None = None


class StepInfo(TypedDict):
    """One recorded operation of a workflow. Times are epoch milliseconds."""

    function_id: int
    function_name: str
    output: Any
    error: Exception | None
    child_workflow_id: str | None
    started_at_epoch_ms: int | None
    completed_at_epoch_ms: int | None


class WorkflowAggregate(TypedDict):
    """How many workflows there are that have some values in common."""

    group: dict[str, str | None]
    """The values, by the names of what they were grouped by."""
    count: int
    """How many workflows have them."""


class Metric(TypedDict):
    """How often something has happened in a period."""

    metric_type: Literal["workflow_count", "step_count"]
    """Workflows that were created, or steps that were completed."""
    metric_name: str
    """The registered name of the workflow, or the name of the step."""
    value: int
    """How many."""


class VersionInfo(TypedDict):
    """One version of the application. Times are epoch milliseconds."""

    version_id: str
    version_name: str
    version_timestamp: int
    created_at: int
    application_name: str | None


class ExecutorInfo(TypedDict):
    """A process that has launched DBOS, as its system database knows it. Times are epoch milliseconds."""

    instance_id: str
    """The ID of this launch; no two launches have the same."""
    executor_id: str
    """The name of the process, which several may share."""
    application_version: str
    """The version of the code that it runs."""
    application_name: str | None
    """The name of its application."""
    hostname: str
    """The host that it runs on."""
    pid: int
    """Its process ID on that host, or in its container."""
    started_at: int
    """When it was launched."""
    heartbeat_at: int
    """Its last sign of life."""
    lease_sec: float
    """After how many seconds without one others take over its work."""
    is_current: bool
    """Whether it is the process that asks."""
    is_draining: bool
    """Whether it was asked to take nothing more from queues."""
    queues: list[str] | None
    """The queues that it takes work from, beside the library's own; None if that is not known."""
    running: int
    """How many workflows it is running."""


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


class TransactionOptions(TypedDict, total=False):
    """How ``run_transaction`` of a datasource runs a function."""

    name: str | None
    """The recorded name; by default the function's ``__qualname__``."""
    isolation_level: IsolationLevel | None
    """On PostgreSQL; by default that of the engine."""


@dataclass
class StepStatus:
    """Where a running step stands (``DBOS.step_status``)."""

    step_id: int
    """The step's number in its workflow."""
    current_attempt: int | None
    """The attempt, counted from 0; ``None`` if retries are off."""
    max_attempts: int | None
    """How many attempts there may be; ``None`` if retries are off."""


class WorkflowSchedule(TypedDict):
    """A schedule: what it starts when, and how far it has come. Times are ISO 8601 with an offset."""

    schedule_id: str
    """A generated ID; a schedule that is deleted and created again gets another one."""
    schedule_name: str
    """Its name; no two schedules have the same."""
    workflow_name: str
    """The registered name of the workflow that it starts."""
    workflow_class_name: str | None
    """The registered name of that workflow's class, for static and class methods."""
    schedule: str
    """The cron expression."""
    status: str
    """``"ACTIVE"`` or ``"PAUSED"``."""
    context: Any
    """What the workflow gets as its second argument."""
    last_fired_at: str | None
    """The last tick that was started, in the schedule's time zone."""
    automatic_backfill: bool
    """Whether all missed ticks are started later: the same as a ``catchup`` of ``"all"``."""
    cron_timezone: str | None
    """The IANA time zone of the expression; None for UTC."""
    queue_name: str | None
    """The queue of its runs; None for the library's own."""
    application_name: str | None
    """The application that created it."""
    overlap: Overlap
    """What becomes of a tick while an earlier run has not ended."""
    catchup: Catchup
    """Which missed ticks are started later."""
    catchup_window: float | None
    """How late a missed tick may be started, in seconds; None for the default of ``catchup``."""
    jitter: float
    """By how many seconds each tick is put off at most."""
    start_at: str | None
    """There are no ticks before."""
    end_at: str | None
    """There are no ticks after."""
    max_runs: int | None
    """How many ticks it starts in all."""
    pause_on_failure: int | None
    """After how many failed runs in a row it is paused."""
    note: str | None
    """Whatever its users want to be said about it."""
    pause_reason: str | None
    """Why it is paused."""
    runs: int
    """How many ticks it has started."""
    next_fire_at: str | None
    """When the next tick is due; None if there is none, or the schedule is paused."""
    error: str | None
    """Why the next tick cannot be told, if somebody has written into the table what no schedule can obey."""


class ScheduleOptions(TypedDict, total=False):
    """What a schedule can do; the keys are parameters of ``DBOS.create_schedule``."""

    schedule: str
    context: Any
    automatic_backfill: bool
    cron_timezone: str | None
    queue_name: str | None
    overlap: Overlap
    catchup: Catchup | None
    catchup_window: float | timedelta | None
    jitter: float | timedelta
    start_at: datetime | None
    end_at: datetime | None
    max_runs: int | None
    pause_on_failure: int | None
    note: str | None


class ScheduleInput(ScheduleOptions, total=False):
    """A schedule for ``DBOS.apply_schedules``; the keys are the parameters of ``DBOS.create_schedule``.

    Required are ``schedule_name``, ``workflow_fn`` and ``schedule``.
    """

    schedule_name: str
    workflow_fn: Callable[..., Any]


class ClientScheduleInput(ScheduleOptions, total=False):
    """A schedule for ``DBOSClient.apply_schedules``; the keys are the parameters of ``DBOSClient.create_schedule``.

    Required are ``schedule_name``, ``workflow_name`` and ``schedule``.
    """

    schedule_name: str
    workflow_name: str
    workflow_class_name: str | None


class ScheduleDecision(TypedDict):
    """What became of a tick of a schedule, or of several in a row that were missed together."""

    schedule_name: str
    """The schedule."""
    scheduled_time: datetime
    """The tick, or the first of several; of a trigger, when it was made."""
    last_scheduled_time: datetime
    """The last of several ticks; otherwise the same."""
    ticks: int
    """How many they are."""
    decision: str
    """``"fired"``, ``"backfilled"`` or ``"triggered"``: started; ``"buffered"``: it waits for an earlier run to end;
    ``"skipped"`` or ``"missed"``; ``"paused"``: the schedule was."""
    reason: str | None
    """Why."""
    decided_at: datetime
    """When that was decided."""
    lateness: float
    """How long after the tick that was, in seconds."""
    workflow_id: str | None
    """The workflow that was started, or will be."""


class SchedulePreview(TypedDict):
    """What a cron expression means."""

    times: list[datetime]
    """The next times at which it fires, in its time zone."""
    description: str
    """The same in English."""


class RetentionReport(TypedDict):
    """What retention has deleted, in rows."""

    workflows: int
    """Finished workflows, each with all that was recorded of it."""
    messages: int
    """Messages that workflows which still run received long ago."""
    transaction_outputs: int
    """Records of transactions in the application database, if that is another than the system database."""
    schedule_decisions: int
    """Decisions about ticks of schedules."""
    management_actions: int
    """Entries of the account of who changed what."""
    is_complete: bool
    """Whether all was looked at. If not, the next run goes on where this one was left."""
    held_by: str | None
    """The executor instance that is at it, so that nothing was done here."""


class ManagementAction(TypedDict):
    """Something that was done to a workflow, queue, schedule, version or executor."""

    action: str
    """What: ``"cancel"``, ``"resume"``, ``"fork"``, ``"retry"``, ``"delete"``, ``"set_delay"``,
    ``"update_attributes"``; ``"register_queue"``, ``"change_queue"``, ``"pause_queue"``, ``"resume_queue"``,
    ``"delete_queue"``; ``"create_schedule"``, ``"update_schedule"``, ``"pause_schedule"``, ``"resume_schedule"``,
    ``"delete_schedule"``, ``"trigger_schedule"``, ``"backfill_schedule"``; ``"set_latest_version"``,
    ``"adopt_version"``; ``"drain_executor"``, ``"undrain_executor"``."""
    workflow_id: str | None
    """The workflow that it was done to."""
    subject: str | None
    """The name of the queue, schedule or version, or the instance ID of the executor."""
    actor: str | None
    """The authenticated user, if there was one."""
    source: str
    """The executor ID of the process that did it, or the application name of the client."""
    details: dict[str, Any]
    """More about it; ``by_workflow`` is the ID of the workflow that did it, if it was one."""
    occurred_at: int
    """When, in epoch milliseconds."""
