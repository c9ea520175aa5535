"""Rows of the system database as values.

A row class names the columns it wants; its ``SELECT`` list is made from those names, so a field and its column cannot
drift apart and nothing reads a row by position.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ExecutorRow", "StatusRow", "StepRow", "VersionRow", "columns"]


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


class VersionRow(NamedTuple):
    """One application version that was ever launched."""

    version_id: str
    version_name: str
    version_timestamp: int
    created_at: int
