"""Rows of the system database as values.

A row class names the columns it wants; its ``SELECT`` list is made from those names, so a field and its column cannot
drift apart and nothing reads a row by position.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "MUST_READ",
    "ActionRow",
    "DecisionRow",
    "EventRow",
    "ExecutorRow",
    "MessageRow",
    "MetricRow",
    "Peeked",
    "QueueRow",
    "ScheduleRow",
    "StatusRow",
    "StepRow",
    "StreamRow",
    "VersionRow",
    "columns",
]


def columns(row: type[NamedTuple] | type[tuple[object, ...]], alias: str = "") -> str:
    """The ``SELECT`` list of a row class, each column qualified with ``alias`` if one is given."""
    prefix = f"{alias}." if alias else ""
    return ", ".join(prefix + name for name in row._fields)  # type: ignore[union-attr]  # a NamedTuple class has them


class StatusRow(NamedTuple):
    """One workflow: what it is, where it stands, and its serialized input and outcome."""

    workflow_uuid: str
    status: str
    name: str
    class_name: str | None
    config_name: str | None
    authenticated_user: str | None
    assumed_role: str | None
    authenticated_roles: str | None
    output: str | None
    error: str | None
    executor_id: str | None
    created_at: int
    updated_at: int
    application_version: str | None
    application_id: str | None
    recovery_attempts: int
    queue_name: str | None
    workflow_timeout_ms: int | None
    workflow_deadline_epoch_ms: int | None
    inputs: str | None
    started_at_epoch_ms: int | None
    deduplication_id: str | None
    priority: int
    queue_partition_key: str | None
    forked_from: str | None
    owner_xid: str | None
    parent_workflow_id: str | None
    serialization: str | None
    delay_until_epoch_ms: int | None
    was_forked_from: bool
    run_token: str | None
    owner_instance: str | None
    completed_at: int | None
    outcome_serialization: str | None
    schedule_name: str | None = None
    application_name: str | None = None
    attributes: str | None = None  # a JSON object


class Peeked(NamedTuple):
    """What was found of a workflow: whether it has an outcome, or does not exist; and its row, if it has an outcome.

    A row that is large is left to be read by itself.
    """

    is_settled: bool
    row: StatusRow | None = None
    must_read: bool = False


MUST_READ = Peeked(is_settled=True, must_read=True)


class StepRow(NamedTuple):
    """One recorded operation of a workflow."""

    workflow_uuid: str
    function_id: int
    function_name: str
    output: str | None
    error: str | None
    child_workflow_id: str | None
    started_at_epoch_ms: int | None
    completed_at_epoch_ms: int | None
    serialization: str | None


class MessageRow(NamedTuple):
    """One message to a workflow."""

    message_uuid: str
    destination_uuid: str
    topic: str
    message: str
    created_at_epoch_ms: int
    serialization: str | None
    idempotency_key: str | None


class EventRow(NamedTuple):
    """The value of an event: the latest, or the one that an operation gave it."""

    workflow_uuid: str
    key: str
    value: str
    serialization: str | None


class StreamRow(NamedTuple):
    """One value of a stream."""

    offset: int
    value: str
    serialization: str | None


class ExecutorRow(NamedTuple):
    """One executor instance: a launch of the library in a process, and its sign of life."""

    instance_id: str
    executor_id: str
    application_version: str
    application_id: str | None
    hostname: str
    boot_id: str
    pid_namespace: str
    pid: int
    process_started_at: str
    heartbeat: int
    lease_ms: int
    started_at: int
    heartbeat_at: int
    draining_since: int | None = None
    queues: str | None = None  # that it takes work from: a JSON list, or None if that is not known
    application_name: str | None = None


class QueueRow(NamedTuple):
    """One queue that was registered at run time. A limit that is None is none."""

    name: str
    concurrency: int | None
    worker_concurrency: int | None
    rate_limit_max: int | None
    rate_limit_period_sec: float | None
    partition_concurrency: int | None
    partition_worker_concurrency: int | None
    partition_rate_limit_max: int | None
    partition_rate_limit_period_sec: float | None
    priority_enabled: bool
    partition_queue: bool
    polling_interval_sec: float
    is_paused: bool
    application_name: str | None
    created_at: int
    updated_at: int


class ScheduleRow(NamedTuple):
    """One schedule: what it starts when, how it deals with what gets in the way, and how far it has come.

    A limit that is None is none. ``next_tick_ms`` is the first tick that is not decided, which is due at
    ``next_fire_ms``; both were computed at ``planned_at`` from what ``planned_from`` repeats.
    """

    schedule_id: str
    schedule_name: str
    workflow_name: str
    workflow_class_name: str | None
    schedule: str
    status: str
    context: str
    last_fired_at: str | None
    automatic_backfill: bool
    cron_timezone: str | None
    queue_name: str | None
    application_name: str | None
    overlap: str
    catchup: str
    catchup_window_ms: int | None
    jitter_ms: int
    start_at_ms: int | None
    end_at_ms: int | None
    max_runs: int | None
    pause_on_failure: int | None
    note: str | None
    pause_reason: str | None
    runs: int
    created_at: int | None
    updated_at: int | None
    resumed_at: int | None
    next_tick_ms: int | None
    next_fire_ms: int | None
    planned_at: int | None
    planned_from: str | None
    error: str | None


class DecisionRow(NamedTuple):
    """What became of a tick of a schedule, or of several in a row that were missed together."""

    schedule_id: str
    schedule_name: str
    kind: str
    scheduled_at: int
    last_scheduled_at: int
    ticks: int
    decision: str
    reason: str | None
    workflow_id: str | None
    decided_at: int


class VersionRow(NamedTuple):
    """One application version that was ever launched."""

    version_id: str
    version_name: str
    version_timestamp: int
    created_at: int
    application_name: str | None = None


class MetricRow(NamedTuple):
    """How often something happened within a period."""

    metric_type: str
    metric_name: str
    value: int


class ActionRow(NamedTuple):
    """Something that was done to a workflow, queue, schedule, version or executor; ``details`` are a JSON object."""

    action_id: int
    occurred_at: int
    action: str
    workflow_id: str | None
    subject: str | None
    actor: str | None
    source: str
    details: str | None
