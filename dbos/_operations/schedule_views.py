"""Schedules as users see them: what there is, what became of the ticks, and when the next ones come."""

from __future__ import annotations

import json
from datetime import UTC
from itertools import islice

from dbos._cron import parse
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Read
from dbos._engine.ticks import epoch_ms, moment
from dbos._error import DBOSException
from dbos._operations.recording import recorded
from dbos._operations.schedule_definitions import check_cron, check_timezone, checked_count
from dbos._queue_config import checked_key
from dbos._sysdb.rows import DecisionRow, ScheduleRow
from dbos._types import ScheduleDecision, SchedulePreview, WorkflowSchedule

__all__ = ["get_schedule", "list_schedules", "preview_schedule", "schedule_history"]

MAX_HISTORY = 10_000


def get_schedule(engine: Engine, name: str) -> Flow[WorkflowSchedule | None]:
    """A schedule, or None if there is none of this name.

    Args:
        name: The schedule's name.
    """
    name = checked_key("schedule_name", name)

    def read() -> Flow[WorkflowSchedule | None]:
        row: ScheduleRow | None = yield Read(engine.db.schedules.get, (name,))
        return None if row is None else _shown(row)

    return (yield from recorded(engine, "DBOS.getSchedule", read()))


def list_schedules(
    engine: Engine,
    *,
    status: str | list[str] | None = None,
    workflow_name: str | list[str] | None = None,
    schedule_name_prefix: str | list[str] | None = None,
) -> Flow[list[WorkflowSchedule]]:
    """Schedules that match all the given filters, in the order of their creation.

    A filter that takes a list matches any of its items; an empty list, like None, does not filter.

    Args:
        status: ``"ACTIVE"`` or ``"PAUSED"``.
        workflow_name: Registered names of workflows.
        schedule_name_prefix: Literal prefixes of names.
    """
    statuses, names, prefixes = _many(status), _many(workflow_name), _many(schedule_name_prefix)

    def read() -> Flow[list[WorkflowSchedule]]:
        rows: list[ScheduleRow] = yield Read(engine.db.schedules.all, ())
        return [
            _shown(row)
            for row in rows
            if (not statuses or row.status in statuses)
            and (not names or row.workflow_name in names)
            and (not prefixes or row.schedule_name.startswith(prefixes))
        ]

    return (yield from recorded(engine, "DBOS.listSchedules", read()))


def _many(given: str | list[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def _extreme(time_ms: int) -> str | None:
    try:
        return moment(time_ms).isoformat()
    except OverflowError:  # somebody has written there what is no time
        return None


def _shown(row: ScheduleRow) -> WorkflowSchedule:
    """A row as users see it; a context that somebody has written there and that is no JSON is shown as the text."""
    try:
        context = json.loads(row.context)
    except ValueError:
        context = row.context
    try:
        zone = parse(row.schedule, row.cron_timezone).zone
    except ValueError:
        zone = UTC
    is_active = row.status == "ACTIVE"

    def shown(time_ms: int | None) -> str | None:
        if time_ms is None:
            return None
        try:
            return moment(time_ms).astimezone(zone).isoformat()
        except OverflowError:  # the end of datetime's years
            return _extreme(time_ms)

    return {
        "schedule_id": row.schedule_id,
        "schedule_name": row.schedule_name,
        "workflow_name": row.workflow_name,
        "workflow_class_name": row.workflow_class_name,
        "schedule": row.schedule,
        "status": row.status,
        "context": context,
        "last_fired_at": row.last_fired_at,
        "automatic_backfill": bool(row.automatic_backfill),
        "cron_timezone": row.cron_timezone,
        "queue_name": row.queue_name,
        "application_name": row.application_name,
        "overlap": row.overlap,  # type: ignore[typeddict-item]  # what is none of them is told by ``error``
        "catchup": "all" if row.automatic_backfill else row.catchup,  # type: ignore[typeddict-item]
        "catchup_window": None if row.catchup_window_ms is None else row.catchup_window_ms / 1000,
        "jitter": row.jitter_ms / 1000,
        "start_at": shown(row.start_at_ms),
        "end_at": shown(row.end_at_ms),
        "max_runs": row.max_runs,
        "pause_on_failure": row.pause_on_failure,
        "note": row.note,
        "pause_reason": row.pause_reason,
        "runs": row.runs,
        "next_fire_at": shown(row.next_fire_ms) if is_active else None,
        "error": row.error,
    }


def schedule_history(engine: Engine, name: str, *, limit: int = 100) -> Flow[list[ScheduleDecision]]:
    """What became of the ticks of a schedule, the newest decision first; also of one that was deleted.

    Args:
        name: The schedule's name.
        limit: At most so many; the last 10 000 decisions are kept.

    Raises:
        DBOSException: ``limit`` is not a whole number, or less than 1.
    """
    name, count = checked_key("schedule_name", name), min(checked_count("limit", limit), MAX_HISTORY)

    def read() -> Flow[list[ScheduleDecision]]:
        schedule: ScheduleRow | None = yield Read(engine.db.schedules.get, (name,))
        rows: list[DecisionRow] = yield Read(engine.db.schedules.history, (name, count))
        timezone = None if schedule is None else schedule.cron_timezone
        try:
            zone = parse("* * * * *", timezone).zone
        except ValueError:
            zone = UTC
        return [
            {
                "schedule_name": row.schedule_name,
                "scheduled_time": moment(row.scheduled_at).astimezone(zone),
                "last_scheduled_time": moment(row.last_scheduled_at).astimezone(zone),
                "ticks": row.ticks,
                "decision": row.decision,
                "reason": row.reason,
                "decided_at": moment(row.decided_at),
                "lateness": (row.decided_at - row.scheduled_at) / 1000,
                "workflow_id": row.workflow_id,
            }
            for row in rows
        ]

    return (yield from recorded(engine, "DBOS.scheduleHistory", read()))


def preview_schedule(
    engine: Engine, name_or_cron: str, n: int = 5, timezone: str | None = None
) -> Flow[SchedulePreview]:
    """When a schedule fires next, and what its expression says in English.

    Args:
        name_or_cron: The name of a schedule, or a cron expression.
        n: How many times, at most.
        timezone: The IANA time zone of an expression; by default UTC, or that of the schedule.

    Returns:
        The ticks, without jitter, from the code that fires them; fewer than ``n`` if there are no more.

    Raises:
        DBOSException: It is neither a schedule nor a cron expression, or there is no such time zone.

    Example:
        ```python
        DBOS.preview_schedule("0 9 * * 1-5", timezone="Europe/Paris")["description"]
        ```
    """
    name_or_cron, count = checked_key("schedule name or cron expression", name_or_cron), checked_count("n", n)

    def read() -> Flow[SchedulePreview]:
        row: ScheduleRow | None = yield Read(engine.db.schedules.get, (name_or_cron,))
        now_ms = engine.db.now_ms()
        start_ms, end_ms, left = now_ms, 2**62, count
        if row is not None:
            cron, zone = row.schedule, timezone or row.cron_timezone
            start_ms = max(now_ms, (row.start_at_ms or 0) - 1)
            end_ms = end_ms if row.end_at_ms is None else row.end_at_ms
            left = count if row.max_runs is None else min(count, max(0, row.max_runs - row.runs))
        else:
            cron, zone = name_or_cron, timezone
        try:
            check_cron(cron)
        except DBOSException as error:
            error.add_note("There is no schedule of that name, either.")
            raise
        check_timezone(zone)
        parsed = parse(cron, zone)
        times = [tick for tick in islice(parsed.after(moment(start_ms)), left) if epoch_ms(tick) <= end_ms]
        return {"times": times, "description": parsed.description()}

    return (yield from recorded(engine, "DBOS.previewSchedule", read()))
