"""The tables of the system database, for queries with SQLAlchemy Core: ours and users' own.

The SQL files in ``migrations/`` create them; a test compares the two column by column. Statements of fixed shape are
written as SQL in the stores; this description serves the ones that are put together at run time.
"""

from __future__ import annotations

import sqlalchemy as sa

from .table import SystemTable, schema_translate_map

__all__ = ["SystemSchema", "schema_translate_map"]


class SystemSchema:
    """The system database's tables; on PostgreSQL in the schema ``dbos``, see :class:`SystemTable` for another one.

    Times are milliseconds since 1970.

    Example:
        ```python
        workflows = SystemSchema.workflow_status
        with engine.connect() as connection:
            failed = connection.execute(sa.select(workflows.c.workflow_uuid).where(workflows.c.status == "ERROR")).all()
        ```
    """

    metadata_obj = sa.MetaData()

    workflow_status = SystemTable(
        "workflow_status",
        metadata_obj,
        sa.Column("workflow_uuid", sa.Text, primary_key=True),
        sa.Column("status", sa.Text),
        sa.Column("name", sa.Text),
        sa.Column("authenticated_user", sa.Text),
        sa.Column("assumed_role", sa.Text),
        sa.Column("authenticated_roles", sa.Text),
        sa.Column("request", sa.Text),
        sa.Column("output", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("executor_id", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("application_version", sa.Text),
        sa.Column("application_id", sa.Text),
        sa.Column("class_name", sa.String(255)),
        sa.Column("config_name", sa.String(255)),
        sa.Column("recovery_attempts", sa.BigInteger),
        sa.Column("queue_name", sa.Text),
        sa.Column("workflow_timeout_ms", sa.BigInteger),
        sa.Column("workflow_deadline_epoch_ms", sa.BigInteger),
        sa.Column("inputs", sa.Text),
        sa.Column("started_at_epoch_ms", sa.BigInteger),
        sa.Column("deduplication_id", sa.Text),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("queue_partition_key", sa.Text),
        sa.Column("forked_from", sa.Text),
        sa.Column("owner_xid", sa.Text),
        sa.Column("parent_workflow_id", sa.Text),
        sa.Column("serialization", sa.Text),
        sa.Column("delay_until_epoch_ms", sa.BigInteger),
        sa.Column("was_forked_from", sa.Boolean, nullable=False),
        sa.Column("run_token", sa.Text),
        sa.Column("owner_instance", sa.Text),
        sa.Column("completed_at", sa.BigInteger),
        sa.Column("outcome_serialization", sa.Text),
        sa.Column("was_unversioned", sa.Boolean),
        sa.Column("schedule_name", sa.Text),
        sa.Column("application_name", sa.Text),
        sa.Column("attributes", sa.Text),
        sa.Column("is_debounced", sa.Boolean),
        sa.Column("debounce_deadline_epoch_ms", sa.BigInteger),
    )

    operation_outputs = SystemTable(
        "operation_outputs",
        metadata_obj,
        sa.Column("workflow_uuid", sa.Text, primary_key=True),
        sa.Column("function_id", sa.Integer, primary_key=True),
        sa.Column("function_name", sa.Text, nullable=False),
        sa.Column("output", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("child_workflow_id", sa.Text),
        sa.Column("started_at_epoch_ms", sa.BigInteger),
        sa.Column("completed_at_epoch_ms", sa.BigInteger),
        sa.Column("serialization", sa.Text),
    )

    notifications = SystemTable(
        "notifications",
        metadata_obj,
        sa.Column("message_uuid", sa.Text, primary_key=True),
        sa.Column("destination_uuid", sa.Text, nullable=False),
        sa.Column("topic", sa.Text),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("created_at_epoch_ms", sa.BigInteger, nullable=False),
        sa.Column("serialization", sa.Text),
        sa.Column("consumed", sa.Boolean, nullable=False),
        sa.Column("idempotency_key", sa.Text),
    )

    workflow_events = SystemTable(
        "workflow_events",
        metadata_obj,
        sa.Column("workflow_uuid", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("serialization", sa.Text),
    )

    workflow_events_history = SystemTable(
        "workflow_events_history",
        metadata_obj,
        sa.Column("workflow_uuid", sa.Text, primary_key=True),
        sa.Column("function_id", sa.Integer, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("serialization", sa.Text),
    )

    streams = SystemTable(
        "streams",
        metadata_obj,
        sa.Column("workflow_uuid", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("offset", sa.Integer, primary_key=True),
        sa.Column("function_id", sa.Integer, nullable=False),
        sa.Column("serialization", sa.Text),
        sa.Column("write_token", sa.Text),
    )

    workflow_schedules = SystemTable(
        "workflow_schedules",
        metadata_obj,
        sa.Column("schedule_id", sa.Text, primary_key=True),
        sa.Column("schedule_name", sa.Text, nullable=False, unique=True),
        sa.Column("workflow_name", sa.Text, nullable=False),
        sa.Column("workflow_class_name", sa.Text),
        sa.Column("schedule", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("context", sa.Text, nullable=False),
        sa.Column("last_fired_at", sa.Text),
        sa.Column("automatic_backfill", sa.Boolean, nullable=False),
        sa.Column("cron_timezone", sa.Text),
        sa.Column("queue_name", sa.Text),
        sa.Column("application_name", sa.Text),
        sa.Column("overlap", sa.Text, nullable=False),
        sa.Column("catchup", sa.Text, nullable=False),
        sa.Column("catchup_window_ms", sa.BigInteger),
        sa.Column("jitter_ms", sa.BigInteger, nullable=False),
        sa.Column("start_at_ms", sa.BigInteger),
        sa.Column("end_at_ms", sa.BigInteger),
        sa.Column("max_runs", sa.Integer),
        sa.Column("pause_on_failure", sa.Integer),
        sa.Column("note", sa.Text),
        sa.Column("pause_reason", sa.Text),
        sa.Column("runs", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger),
        sa.Column("updated_at", sa.BigInteger),
        sa.Column("resumed_at", sa.BigInteger),
        sa.Column("next_tick_ms", sa.BigInteger),
        sa.Column("next_fire_ms", sa.BigInteger),
        sa.Column("planned_at", sa.BigInteger),
        sa.Column("planned_from", sa.Text),
        sa.Column("error", sa.Text),
    )

    schedule_history = SystemTable(
        "schedule_history",
        metadata_obj,
        sa.Column("history_id", sa.BigInteger, primary_key=True),
        sa.Column("schedule_id", sa.Text, nullable=False),
        sa.Column("schedule_name", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("scheduled_at", sa.BigInteger, nullable=False),
        sa.Column("last_scheduled_at", sa.BigInteger, nullable=False),
        sa.Column("ticks", sa.Integer, nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("workflow_id", sa.Text),
        sa.Column("decided_at", sa.BigInteger, nullable=False),
    )

    application_versions = SystemTable(
        "application_versions",
        metadata_obj,
        sa.Column("version_id", sa.Text, primary_key=True),
        sa.Column("version_name", sa.Text, nullable=False),
        sa.Column("version_timestamp", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("application_name", sa.Text),
    )

    executor_instances = SystemTable(
        "executor_instances",
        metadata_obj,
        sa.Column("instance_id", sa.Text, primary_key=True),
        sa.Column("executor_id", sa.Text, nullable=False),
        sa.Column("application_version", sa.Text, nullable=False),
        sa.Column("application_id", sa.Text),
        sa.Column("hostname", sa.Text, nullable=False),
        sa.Column("boot_id", sa.Text, nullable=False),
        sa.Column("pid_namespace", sa.Text, nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("process_started_at", sa.Text, nullable=False),
        sa.Column("heartbeat", sa.BigInteger, nullable=False),
        sa.Column("lease_ms", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("heartbeat_at", sa.BigInteger, nullable=False),
        sa.Column("draining_since", sa.BigInteger),
        sa.Column("queues", sa.Text),
        sa.Column("application_name", sa.Text),
    )

    queues = SystemTable(
        "queues",
        metadata_obj,
        sa.Column("queue_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("concurrency", sa.Integer),
        sa.Column("worker_concurrency", sa.Integer),
        sa.Column("rate_limit_max", sa.Integer),
        sa.Column("rate_limit_period_sec", sa.Double),
        sa.Column("priority_enabled", sa.Boolean, nullable=False),
        sa.Column("partition_queue", sa.Boolean, nullable=False),
        sa.Column("polling_interval_sec", sa.Double, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("application_name", sa.Text),
        sa.Column("partition_concurrency", sa.Integer),
        sa.Column("partition_worker_concurrency", sa.Integer),
        sa.Column("partition_rate_limit_max", sa.Integer),
        sa.Column("partition_rate_limit_period_sec", sa.Double),
        sa.Column("is_paused", sa.Boolean, nullable=False),
    )

    queue_starts = SystemTable(
        "queue_starts",
        metadata_obj,
        sa.Column("queue_name", sa.Text, primary_key=True),
        sa.Column("partition_key", sa.Text, primary_key=True),
        sa.Column("started_at_epoch_ms", sa.BigInteger, primary_key=True),
        sa.Column("run_token", sa.Text, primary_key=True),
        sa.Column("started", sa.Integer, nullable=False),
    )

    drain_requests = SystemTable(
        "drain_requests",
        metadata_obj,
        sa.Column("instance_id", sa.Text, primary_key=True),
        sa.Column("draining_since", sa.BigInteger, nullable=False),
    )

    management_actions = SystemTable(
        "management_actions",
        metadata_obj,
        sa.Column("action_id", sa.BigInteger, primary_key=True),
        sa.Column("occurred_at", sa.BigInteger, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("workflow_id", sa.Text),
        sa.Column("subject", sa.Text),
        sa.Column("actor", sa.Text),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("details", sa.Text),
        sa.Column("request_id", sa.Text, nullable=False),
    )

    maintenance_tasks = SystemTable(
        "maintenance_tasks",
        metadata_obj,
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text),
        sa.Column("held_until", sa.BigInteger),
        sa.Column("position", sa.Text),
        sa.Column("last_run_at", sa.BigInteger),
    )
