"""What a schedule is: its parameters checked, and the rows that they make."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from dbos._cron import TimezoneError, parse
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Read
from dbos._engine.ticks import epoch_ms, plan
from dbos._error import DBOSException
from dbos._ids import new_instance_id
from dbos._operations.admission import known_config
from dbos._queue_config import checked_key
from dbos._registrations import DBOSFuncType, get_dbos_func_name, get_func_info, needs_receiver
from dbos._sysdb.rows import QueueRow, ScheduleRow
from dbos._sysdb.stores.queues import config_of
from dbos._types import Catchup, Overlap

__all__ = [
    "Target",
    "aware",
    "changed_row",
    "check_cron",
    "check_overlap",
    "check_queue",
    "check_timezone",
    "checked_columns",
    "checked_count",
    "checked_text",
    "new_row",
    "target_of",
]

MAX_TEXT_BYTES = 1_000_000  # of a note or a reason, which every listing of schedules has to carry

#: What decides when a schedule fires: if one of these changes, its next tick is the first from then on.
_TIMING = ("schedule", "cron_timezone", "start_at_ms", "end_at_ms", "jitter_ms")


# -- checking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """The workflow of a schedule, by the names it is registered by."""

    workflow_name: str
    workflow_class_name: str | None


def target_of(engine: Engine, func: Callable[..., Any]) -> Target:
    """The workflow that a schedule is to start.

    Raises:
        DBOSWorkflowFunctionNotFoundError: it was never decorated.
        DBOSException: it is none, or one that needs an instance.
    """
    name, info = get_dbos_func_name(func), get_func_info(func)
    is_workflow = getattr(func, "dbos_function_kind", "workflow") == "workflow"
    function = engine.registry.workflows.get(name) if is_workflow else None
    if info is None or function is None:
        kind = getattr(func, "dbos_function_kind", None)
        hint = (
            "Decorate it with @DBOS.workflow()."
            if is_workflow
            else f"It is a {kind}: schedule a workflow that calls it."
        )
        raise DBOSException(f"Workflow function '{name}' is not registered. {hint}")
    receiver = getattr(func, "__self__", None)
    is_of_class = info.func_type is DBOSFuncType.Class or isinstance(receiver, type)
    if info.func_type is DBOSFuncType.Instance or (needs_receiver(info) and not is_of_class):
        raise DBOSException("Configured instance methods cannot be used as scheduled workflows")
    # A subclass has a registration of its own, or the runs would be of its base.
    class_info = vars(receiver).get("dbos_class_decorator_info") if isinstance(receiver, type) else info.class_info
    if is_of_class and class_info is None:
        raise DBOSException(
            f"Workflow function '{name}' is a method of a class that is not registered. Decorate it with "
            "@DBOS.dbos_class()."
        )
    _check_signature(name, func)
    return Target(name, None if class_info is None else class_info.registered_name)


def _check_signature(name: str, func: Callable[..., Any]) -> None:
    try:
        inspect.signature(func).bind(None, None)
    except TypeError as error:
        raise DBOSException(
            f"Workflow function '{name}' cannot be scheduled: it must take two arguments, the time and the context "
            f"({error})"
        ) from error


def check_queue(engine: Engine, name: str | None) -> Flow[None]:
    """Refuse a queue that is not known, or could not run what a schedule starts.

    Raises:
        DBOSException: it is one of these.
    """
    if name is None:
        return
    config = yield from known_config(engine, checked_key("queue_name", name))
    if config is None:  # as of a moment ago: it may have been registered since
        row: QueueRow | None = yield Read(engine.db.queues.get, (name,))
        config = None if row is None else config_of(row)
    if config is None:
        raise DBOSException(f"Queue '{name}' is not declared. Please create the queue before using it in a schedule")
    if config.is_partitioned:
        raise DBOSException(
            f"Queue '{name}' is partitioned, and the runs of a schedule have no partition key. Use another queue."
        )


def check_cron(schedule: object) -> None:
    """Refuse what is no cron expression.

    Raises:
        DBOSException: it is none.
    """
    try:
        parse(schedule, None)  # type: ignore[arg-type]  # which it checks
    except ValueError as error:
        raise DBOSException(f"Invalid cron schedule: '{schedule}'. {error}") from error


def check_timezone(timezone: str | None) -> None:
    """Refuse what is no time zone.

    Raises:
        DBOSException: it is none.
    """
    try:
        parse("* * * * *", timezone)
    except TimezoneError as error:
        raise DBOSException(f"{error}. Use a name of the IANA time zone database, such as Europe/Paris.") from error


def checked_columns(given: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that the parameters of a schedule are stored in, of those that are given.

    Raises:
        DBOSException: one of them is not what it can be.
    """
    columns: dict[str, Any] = {}
    for name in ("schedule", "cron_timezone", "queue_name"):
        if name in given:
            columns[name] = given[name]
    if "note" in given:
        columns["note"] = checked_text("note", given["note"])
    if "context" in given:
        columns["context"] = _dumped(given["context"])
    if "overlap" in given:
        columns["overlap"] = _choice("overlap", given["overlap"], get_args(Overlap))
    if given.get("automatic_backfill") and given.get("catchup") is not None:
        raise DBOSException("Give automatic_backfill=True or catchup, not both: it is the same as catchup='all'.")
    if "automatic_backfill" in given or "catchup" in given:
        catchup = given.get("catchup") or ("all" if given.get("automatic_backfill") else "none")
        columns["catchup"] = _choice("catchup", catchup, get_args(Catchup))
        columns["automatic_backfill"] = catchup == "all"
    if "catchup_window" in given:
        window = given["catchup_window"]
        columns["catchup_window_ms"] = None if window is None else _milliseconds("catchup_window", window)
    if "jitter" in given:
        columns["jitter_ms"] = _milliseconds("jitter", given["jitter"])
    for name in ("start_at", "end_at"):
        if name in given:
            columns[f"{name}_ms"] = None if given[name] is None else epoch_ms(aware(name, given[name]))
    for name in ("max_runs", "pause_on_failure"):
        if name in given:
            columns[name] = None if given[name] is None else checked_count(name, given[name])
    return columns


def _dumped(context: object) -> str:
    try:
        return json.dumps(context, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DBOSException(
            f"The context of a schedule must be JSON-serializable, and this is not: {error}. Pass what identifies the "
            "object instead, and look it up in the workflow."
        ) from error


def _choice(name: str, value: object, choices: Sequence[str]) -> str:
    if value not in choices:
        raise DBOSException(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    return str(value)


def check_overlap(value: object) -> None:
    """Refuse what is no way to overlap; None is none in particular.

    Raises:
        DBOSException: it is none.
    """
    if value is not None:
        _choice("overlap", value, get_args(Overlap))


def _milliseconds(name: str, value: object) -> int:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e10:
        raise DBOSException(f"{name} must be a time in seconds or a timedelta, and not negative: {value!r} is none")
    return round(seconds * 1000)


def checked_count(name: str, value: object) -> int:
    """A number of things, of which there is one at least.

    Raises:
        DBOSException: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise DBOSException(f"{name} must be a whole number, and at least 1: {value!r} is none")
    return value


def checked_text(name: str, value: object) -> str | None:
    """Some text, or None.

    Raises:
        DBOSException: it is neither, or cannot be stored.
    """
    if value is None or value == "":
        return value
    return checked_key(name, value, MAX_TEXT_BYTES)


def aware(name: str, time: object) -> datetime:
    """A time; one without an offset is in UTC."""
    if not isinstance(time, datetime):
        raise DBOSException(f"{name} must be a datetime, not {time!r}")
    return time if time.utcoffset() is not None else time.replace(tzinfo=UTC)


# -- rows -------------------------------------------------------------------------------------------------------------


def new_row(
    engine: Engine, name: str, target: Target, given: Mapping[str, Any], schedule_id: str | None = None
) -> ScheduleRow:
    """A schedule that begins now; it has a new ID if none is given.

    Raises:
        DBOSException: a parameter is not what it can be.
    """
    now_ms = engine.db.now_ms()
    row = ScheduleRow(
        schedule_id=schedule_id or new_instance_id(),
        schedule_name=name,
        workflow_name=target.workflow_name,
        workflow_class_name=target.workflow_class_name,
        schedule=given["schedule"],
        status="ACTIVE",
        context="null",
        last_fired_at=None,
        automatic_backfill=False,
        cron_timezone=None,
        queue_name=None,
        application_name=engine.settings.name or None,
        overlap="allow",
        catchup="none",
        catchup_window_ms=None,
        jitter_ms=0,
        start_at_ms=None,
        end_at_ms=None,
        max_runs=None,
        pause_on_failure=None,
        note=None,
        pause_reason=None,
        runs=0,
        created_at=now_ms,
        updated_at=now_ms,
        resumed_at=None,
        next_tick_ms=None,
        next_fire_ms=None,
        planned_at=None,
        planned_from=None,
        error=None,
    )
    row = row._replace(**checked_columns(given))
    return plan(row, now_ms, now_ms)


def changed_row(row: ScheduleRow, columns: Mapping[str, Any], now_ms: int) -> ScheduleRow:
    """A schedule with another definition: it keeps its history and status, and what it has come to."""
    changed = row._replace(**columns)
    if changed == row:
        return row
    changed = changed._replace(updated_at=now_ms)
    is_timed_anew = any(getattr(row, name) != getattr(changed, name) for name in _TIMING)
    if is_timed_anew or row.error is not None or row.max_runs != changed.max_runs:
        after_ms = now_ms if is_timed_anew or row.next_tick_ms is None else row.next_tick_ms - 1
        changed = plan(changed, after_ms, now_ms)
    return changed
