"""Listing workflows and their steps, and how a row looks to users."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, Unpack

from dbos._context import checked_workflow_id
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Read
from dbos._operations.filtering import ListOptions, checked_count, filter_of, shows
from dbos._operations.recording import recorded
from dbos._sysdb.filters import Position, WorkflowFilter
from dbos._sysdb.readers import within
from dbos._sysdb.rows import StatusRow, StepRow
from dbos._types import StepInfo, WorkflowStatus

__all__ = [
    "list_queued_workflows",
    "list_workflow_steps",
    "list_workflows",
    "observed",
    "to_status",
    "to_step_info",
]

R = TypeVar("R")

PAGE_ROWS = 1000  # in one query: long ones keep the database from clearing up, and all of their rows are in memory


def observed(engine: Engine, verb: Callable[..., R], *arguments: Any, timeout_seconds: float | None = None) -> Flow[R]:
    """Read what is only looked at, within the configured time unless another one is given; 0 is without end."""
    timeout_s = engine.settings.query_timeout_s if timeout_seconds is None else timeout_seconds
    result: R = yield Read(within, (timeout_s, verb, *arguments))
    return result


# -- workflows ---------------------------------------------------------------------------------------------------------


@shows(ListOptions)
def list_workflows(engine: Engine, **options: Unpack[ListOptions]) -> Flow[list[WorkflowStatus]]:
    """Workflows that match all the given filters, oldest first.

    A filter that takes a list matches any of its items; an empty list, like None, does not filter. Times are in ISO
    8601, local time unless they have an offset, and inclusive.

    Rows are read in short queries of 1000, each of which may take ``query_timeout_sec`` of the configuration: a long
    list keeps nobody from working, and may show some workflows as they were a moment earlier than others. All that is
    returned is in memory, so give a ``limit`` where there may be many, and leave payloads out that are not needed: they
    are not even read then.

    Args:
        workflow_ids: Ids.
        workflow_id_prefix: Literal prefixes of ids.
        status: Statuses, such as ``"PENDING"``.
        name: Registered names of workflow functions.
        app_version: Application versions.
        application_name: Names of the applications that they are of.
        user: Authenticated users.
        queue_name: Queues.
        executor_id: Executors that ran them last.
        forked_from: Ids of workflows that these were forked from.
        parent_workflow_id: Ids of parents.
        has_parent: Whether a workflow has started them.
        attributes: What their attributes contain: all of these keys, with these values; of an object or a list in
            them, what they contain in turn.
        start_time: Created then or after.
        end_time: Created then or before.
        completed_after: Ended then or after.
        completed_before: Ended then or before.
        dequeued_after: Last taken from a queue then or after.
        dequeued_before: Last taken from a queue then or before.
        schedule_name: Schedules that started them.
        queues_only: Only those in a queue; without ``status``, only those that wait or run.
        was_forked_from: Whether something was forked from them.
        limit: At most so many; 0, like None, for all.
        offset: Leave out so many first.
        sort_desc: Newest first.
        load_input: Read and decode inputs; otherwise ``input`` is None.
        load_output: Read and decode outputs and errors; otherwise both are None.

    Returns:
        The workflows, by the time of their creation and then by their ids. What cannot be decoded is shown as it is
        stored.

    Raises:
        TypeError: there is no such filter, or a value is of another type.
        ValueError: a time is not ISO 8601, there is no such status, or ``limit`` or ``offset`` is below 0.
        DBOSQueryTimeoutError: one of the queries took too long.

    Example:
        ```python
        failed = DBOS.list_workflows(status="ERROR", completed_after="2026-01-31T09:30:00Z", load_input=False)
        ```
    """
    return (yield from _list(engine, "DBOS.listWorkflows", filter_of(ListOptions, options), options))


@shows(ListOptions)
def list_queued_workflows(engine: Engine, **options: Unpack[ListOptions]) -> Flow[list[WorkflowStatus]]:
    """Workflows in queues that match all the given filters, oldest first; see :meth:`list_workflows`.

    Without ``status``, those that wait or run. ``queues_only`` is implied.

    Raises:
        TypeError: there is no such filter, or a value is of another type.
        ValueError: a time is not ISO 8601, there is no such status, or ``limit`` or ``offset`` is below 0.
        DBOSQueryTimeoutError: one of the queries took too long.
    """
    filter = filter_of(ListOptions, {**options, "queues_only": True})
    return (yield from _list(engine, "DBOS.listQueuedWorkflows", filter, options))


def _list(engine: Engine, operation: str, filter: WorkflowFilter, options: ListOptions) -> Flow[list[WorkflowStatus]]:
    has_input, has_output = options.get("load_input", True), options.get("load_output", True)
    read = partial(engine.db.listing.workflows, has_input=has_input, has_output=has_output)

    def pages() -> Flow[list[WorkflowStatus]]:
        statuses: list[WorkflowStatus] = []
        page = filter
        while True:
            left = PAGE_ROWS if filter.limit is None else min(PAGE_ROWS, filter.limit - len(statuses))
            rows: list[StatusRow] = yield from observed(engine, read, replace(page, limit=left))
            statuses += [to_status(engine, row) for row in rows]
            if len(rows) < left or len(statuses) == filter.limit:
                return statuses
            page = replace(filter, offset=None, after=Position(rows[-1].created_at, rows[-1].workflow_uuid))

    return (yield from recorded(engine, operation, pages()))


# -- steps -------------------------------------------------------------------------------------------------------------


def list_workflow_steps(
    engine: Engine,
    workflow_id: str,
    *,
    load_output: bool = True,
    limit: int | None = None,
    offset: int | None = None,
) -> Flow[list[StepInfo]]:
    """What a workflow has recorded, in order of function id; empty for an unknown workflow.

    Args:
        workflow_id: The workflow's id.
        load_output: Read and decode outputs and errors; otherwise both are None.
        limit: At most so many; 0, like None, for all.
        offset: Leave out so many first.

    Returns:
        The steps. What cannot be decoded is shown as it is stored.

    Raises:
        DBOSException: no workflow can have this id.
        TypeError: ``limit`` or ``offset`` is no number.
        ValueError: one of them is below 0.
        DBOSQueryTimeoutError: one of the queries took too long.
    """
    workflow_id = checked_workflow_id(workflow_id)
    limit, offset = checked_count("limit", limit), checked_count("offset", offset) or 0

    def pages() -> Flow[list[StepInfo]]:
        steps: list[StepInfo] = []
        skipped, after = offset, -1
        while True:
            left = PAGE_ROWS if limit is None else min(PAGE_ROWS, limit - len(steps))
            read = partial(engine.db.operations.steps, after=after, count=left, offset=skipped, has_output=load_output)
            rows: list[StepRow] = yield from observed(engine, read, workflow_id)
            steps += [to_step_info(engine, row) for row in rows]
            if len(rows) < left or len(steps) == limit:
                return steps
            skipped, after = 0, rows[-1].function_id

    return (yield from recorded(engine, "DBOS.listWorkflowSteps", pages()))


# -- decoding ----------------------------------------------------------------------------------------------------------


def to_status(engine: Engine, row: StatusRow) -> WorkflowStatus:
    """A row as users see it; what cannot be decoded is shown as the raw text."""
    serialization = engine.serialization
    outcome_format = row.outcome_serialization or row.serialization
    status = WorkflowStatus(
        workflow_id=row.workflow_uuid,
        status=row.status,
        name=row.name,
        class_name=row.class_name,
        config_name=row.config_name,
        authenticated_user=row.authenticated_user,
        assumed_role=row.assumed_role,
        authenticated_roles=_roles(row.authenticated_roles),
        created_at=row.created_at,
        updated_at=row.updated_at,
        completed_at=row.completed_at,
        queue_name=row.queue_name,
        executor_id=row.executor_id,
        app_version=row.application_version,
        app_id=row.application_id,
        workflow_timeout_ms=row.workflow_timeout_ms,
        workflow_deadline_epoch_ms=row.workflow_deadline_epoch_ms,
        deduplication_id=row.deduplication_id,
        priority=row.priority,
        queue_partition_key=row.queue_partition_key,
        forked_from=row.forked_from,
        was_forked_from=bool(row.was_forked_from),
        parent_workflow_id=row.parent_workflow_id,
        dequeued_at=row.started_at_epoch_ms,
        delay_until_epoch_ms=row.delay_until_epoch_ms,
        recovery_attempts=row.recovery_attempts,
        schedule_name=row.schedule_name,
        application_name=row.application_name,
        attributes=_attributes(row.attributes),
    )
    if row.inputs is not None:
        inputs = serialization.try_load_inputs(row.inputs, row.serialization)
        status.input = inputs if isinstance(inputs, str) else {"args": inputs[0], "kwargs": inputs[1]}
    if row.output is not None:
        status.output = serialization.try_load_value(row.output, outcome_format)
    if row.error is not None:
        status.error = serialization.try_load_error(row.error, outcome_format)
    return status


def to_step_info(engine: Engine, row: StepRow) -> StepInfo:
    """A record as users see it; what cannot be decoded is shown as the raw text."""
    serialization = engine.serialization
    return {
        "function_id": row.function_id,
        "function_name": row.function_name,
        "output": None if row.output is None else serialization.try_load_value(row.output, row.serialization),
        "error": None if row.error is None else serialization.try_load_error(row.error, row.serialization),  # type: ignore[typeddict-item]
        "child_workflow_id": row.child_workflow_id,
        "started_at_epoch_ms": row.started_at_epoch_ms,
        "completed_at_epoch_ms": row.completed_at_epoch_ms,
    }


def _roles(text: str | None) -> list[str] | None:
    if not text:
        return None
    try:
        roles = json.loads(text)
    except (ValueError, RecursionError):
        return [text]  # one unreadable row must not hide the others
    return roles if isinstance(roles, list) else [text]


def _attributes(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        attributes = json.loads(text)
    except (ValueError, RecursionError):
        return None  # likewise
    return attributes if isinstance(attributes, dict) else None
