"""Numbers instead of rows: how many workflows there are, of which kind, and what was done in a period."""

from __future__ import annotations

import math
from typing import Unpack, cast

from dbos._engine.engine import Engine
from dbos._engine.flow import Flow
from dbos._operations.filtering import WorkflowFilters, epoch_ms, filter_of, shows
from dbos._operations.listing import observed
from dbos._operations.recording import recorded
from dbos._types import Metric, WorkflowAggregate

__all__ = ["count_workflows", "get_metrics", "get_workflow_aggregates"]


@shows(WorkflowFilters)
def count_workflows(
    engine: Engine, *, timeout_seconds: float | None = None, **filters: Unpack[WorkflowFilters]
) -> Flow[int]:
    """How many workflows match all the given filters; see :meth:`list_workflows`.

    Args:
        timeout_seconds: How long that may take; by default ``query_timeout_sec`` of the configuration.

    Raises:
        TypeError: there is no such filter, or a value is of another type.
        ValueError: a time is not ISO 8601, or there is no such status.
        DBOSQueryTimeoutError: it took too long.

    Example:
        ```python
        waiting = DBOS.count_workflows(status=["ENQUEUED", "DELAYED"], queue_name="mail")
        ```
    """
    filter = filter_of(WorkflowFilters, filters)
    timeout_seconds = _checked_timeout(timeout_seconds)

    def read() -> Flow[int]:
        [(_, count)] = yield from observed(
            engine, engine.db.listing.groups, filter, (), timeout_seconds=timeout_seconds
        )
        return count

    return (yield from recorded(engine, "DBOS.countWorkflows", read()))


@shows(WorkflowFilters)
def get_workflow_aggregates(
    engine: Engine,
    *,
    group_by_status: bool = False,
    group_by_name: bool = False,
    group_by_queue_name: bool = False,
    group_by_executor_id: bool = False,
    group_by_application_version: bool = False,
    group_by_application_name: bool = False,
    group_by_schedule_name: bool = False,
    timeout_seconds: float | None = None,
    **filters: Unpack[WorkflowFilters],
) -> Flow[list[WorkflowAggregate]]:
    """How many workflows of each kind match all the given filters; see :meth:`list_workflows`.

    No payloads are read.

    Args:
        group_by_status: Tell statuses apart.
        group_by_name: Tell workflow functions apart, by their registered names.
        group_by_queue_name: Tell queues apart; what is in none is a group of its own.
        group_by_executor_id: Tell the executors apart that ran them last.
        group_by_application_version: Tell application versions apart.
        group_by_application_name: Tell applications apart.
        group_by_schedule_name: Tell schedules apart.
        timeout_seconds: How long that may take; by default ``query_timeout_sec`` of the configuration.

    Returns:
        A row for each combination of values that occurs, the most frequent first.

    Raises:
        ValueError: nothing is to be told apart, a time is not ISO 8601, or there is no such status.
        TypeError: there is no such filter, or a value is of another type.
        DBOSQueryTimeoutError: it took too long.

    Example:
        ```python
        for row in DBOS.get_workflow_aggregates(group_by_name=True, group_by_status=True):
            print(row["group"]["name"], row["group"]["status"], row["count"])
        ```
    """
    choices = {
        "status": group_by_status,
        "name": group_by_name,
        "queue_name": group_by_queue_name,
        "executor_id": group_by_executor_id,
        "application_version": group_by_application_version,
        "application_name": group_by_application_name,
        "schedule_name": group_by_schedule_name,
    }
    names = [name for name, is_chosen in choices.items() if is_chosen]
    if not names:
        raise ValueError(
            f"Say what to group by: at least one of {', '.join('group_by_' + name for name in choices)} must be True."
        )
    filter = filter_of(WorkflowFilters, filters)
    timeout_seconds = _checked_timeout(timeout_seconds)

    def read() -> Flow[list[WorkflowAggregate]]:
        rows = yield from observed(engine, engine.db.listing.groups, filter, names, timeout_seconds=timeout_seconds)
        rows.sort(key=lambda row: (-row[1], [value or "" for value in row[0]]))
        return [{"group": dict(zip(names, values, strict=True)), "count": count} for values, count in rows]

    return (yield from recorded(engine, "DBOS.getWorkflowAggregates", read()))


def get_metrics(
    engine: Engine, start_time: str, end_time: str, *, timeout_seconds: float | None = None
) -> Flow[list[Metric]]:
    """How many workflows were created and how many steps completed in a period, by their names.

    Args:
        start_time: When the period begins: ISO 8601, local time unless it has an offset.
        end_time: When it ends, likewise. The end is not in it, so that periods in a row count nothing twice.
        timeout_seconds: How long that may take; by default ``query_timeout_sec`` of the configuration.

    Returns:
        A row for each name that occurs, sorted by type and name.

    Raises:
        TypeError: a time is no text.
        ValueError: it is not ISO 8601.
        DBOSQueryTimeoutError: it took too long.
    """
    from_ms, to_ms = epoch_ms("start_time", start_time), epoch_ms("end_time", end_time)
    timeout_seconds = _checked_timeout(timeout_seconds)

    def read() -> Flow[list[Metric]]:
        rows = yield from observed(engine, engine.db.listing.metrics, from_ms, to_ms, timeout_seconds=timeout_seconds)
        return [cast(Metric, row._asdict()) for row in sorted(rows)]

    return (yield from recorded(engine, "DBOS.getMetrics", read()))


def _checked_timeout(timeout_seconds: float | None) -> float | None:
    if timeout_seconds is None:
        return None
    is_number = isinstance(timeout_seconds, int | float) and not isinstance(timeout_seconds, bool)
    if not is_number or not math.isfinite(timeout_seconds) or timeout_seconds < 0:
        raise ValueError(f"timeout_seconds is a number of seconds, 0 for no limit, and not {timeout_seconds!r}.")
    return timeout_seconds
