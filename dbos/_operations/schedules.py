"""Schedules in the database: creating, changing, pausing and deleting them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from dbos._context import current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow
from dbos._engine.ticks import catchup_of, plan
from dbos._error import DBOSException
from dbos._ids import derived_id
from dbos._operations.auditing import audited_rows
from dbos._operations.recording import recorded, recorded_by_id, refuse_in_workflow
from dbos._operations.schedule_definitions import (
    Target,
    changed_row,
    check_cron,
    check_queue,
    check_timezone,
    checked_columns,
    checked_text,
    new_row,
    target_of,
)
from dbos._operations.schedule_runs import missing_schedule
from dbos._queue_config import checked_key
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import Call
from dbos._sysdb.rows import ScheduleRow
from dbos._types import (
    Catchup,
    ClientScheduleInput,
    Overlap,
    ScheduleInput,
)

P = ParamSpec("P")
R = TypeVar("R")

__all__ = [
    "apply_client_schedules",
    "apply_schedules",
    "create_client_schedule",
    "create_schedule",
    "delete_schedule",
    "pause_schedule",
    "resume_schedule",
    "update_client_schedule",
    "update_schedule",
]

logger = logging.getLogger("dbos.scheduler")

UNSET: Any = ...
"""Stands for a parameter that was not given: it is left as it is."""

Seconds = float | timedelta


# -- definitions -------------------------------------------------------------------------------------------------------


def _create(
    engine: Engine,
    name: object,
    find_target: Callable[[], Target],
    given: Mapping[str, Any],
    *,
    checks_queue: bool,
    schedule_id: str | None = None,
) -> Flow[None]:
    insert = engine.db.schedules.insert  # before the launch there is none, and nothing else matters
    check_cron(given["schedule"])
    if checks_queue:
        yield from check_queue(engine, given["queue_name"])
    target = find_target()
    check_timezone(given["cron_timezone"])
    row = new_row(engine, checked_key("schedule_name", name), target, given, schedule_id)
    if row.next_tick_ms is None:
        logger.warning(
            "Schedule %s will never fire: there is no tick of %r between now (or start_at) and end_at.",
            row.schedule_name,
            row.schedule,
        )
    create = _audited(engine, [row.schedule_name], insert)
    results = yield Commit((Call(create, (row,), is_apart=True),))
    if not results[0]:
        raise DBOSException(f"Schedule '{row.schedule_name}' already exists")
    engine.schedules_changed()


def create_schedule(
    engine: Engine,
    *,
    schedule_name: str,
    workflow_fn: Callable[..., Any],
    schedule: str,
    context: Any = None,
    automatic_backfill: bool = False,
    cron_timezone: str | None = None,
    queue_name: str | None = None,
    overlap: Overlap = "allow",
    catchup: Catchup | None = None,
    catchup_window: Seconds | None = None,
    jitter: Seconds = 0,
    start_at: datetime | None = None,
    end_at: datetime | None = None,
    max_runs: int | None = None,
    pause_on_failure: int | None = None,
    note: str | None = None,
) -> Flow[None]:
    """Start a workflow again and again, at the times that a cron expression says, until the schedule is deleted.

    The schedule is kept in the database: it goes on after a restart, and each tick starts one workflow however many
    processes there are. Its ID is ``sched-<schedule_name>-<tick>``.

    Args:
        schedule_name: The schedule's name, which no other has.
        workflow_fn: The workflow, which takes two arguments: the tick as an aware datetime, and the context. It is a
            function, or a static or class method.
        schedule: The cron expression, of five fields, of six with seconds first, or of seven with the year last.
        context: The second argument; whatever is JSON-serializable.
        automatic_backfill: Start all missed ticks later: the same as a ``catchup`` of ``"all"``.
        cron_timezone: The IANA time zone of the expression; by default UTC.
        queue_name: The queue of the runs; by default the library's own.
        overlap: What becomes of a tick while an earlier run of the schedule has not ended. ``"allow"``: it starts.
            ``"skip"``: it does not. ``"buffer_one"``: it waits for that end, if it is the only one that does;
            ``"buffer_all"``: it waits in line. ``"cancel_other"``: the earlier run is cancelled.
        catchup: Which ticks are started later if nobody was there. ``"none"``: the last one, if it is not too late;
            ``"latest"``: the last one; ``"all"``: all of them. What is at most a minute late is not missed.
        catchup_window: How late a missed tick may be started, in seconds; by default 60 for ``"none"``, and without
            limit for the others.
        jitter: Put each tick off by up to so many seconds; by how many follows from the name and the tick.
        start_at: No ticks before; in UTC unless it has an offset.
        end_at: No ticks after, likewise.
        max_runs: Start so many ticks, and no more.
        pause_on_failure: Pause the schedule when so many runs in a row have failed.
        note: Something to be shown with the schedule.

    Raises:
        DBOSException: The schedule exists already, or a parameter is not what it can be; nothing is stored then.

    Example:
        ```python
        @DBOS.workflow()
        def report(scheduled_time: datetime, context: Any) -> None: ...

        DBOS.create_schedule(
            schedule_name="weekday-report",
            workflow_fn=report,
            schedule="0 9 * * 1-5",
            cron_timezone="America/New_York",
        )
        ```
    """
    given = dict(locals())  # the parameters, by name
    find_target = partial(target_of, engine, workflow_fn)

    def create(function_id: int | None) -> Flow[None]:
        context, schedule_id = current_context(), None
        if function_id is not None and context is not None and context.run is not None:
            # If this is not recorded any more, the replay finds the schedule there, and knows it for its own.
            schedule_id = derived_id(f"{context.run.workflow_id}/{function_id}")
        return _create(engine, schedule_name, find_target, given, checks_queue=True, schedule_id=schedule_id)

    yield from recorded_by_id(engine, "DBOS.createSchedule", create)


def create_client_schedule(
    engine: Engine,
    *,
    schedule_name: str,
    workflow_name: str,
    schedule: str,
    context: Any = None,
    workflow_class_name: str | None = None,
    automatic_backfill: bool = False,
    cron_timezone: str | None = None,
    queue_name: str | None = None,
    overlap: Overlap = "allow",
    catchup: Catchup | None = None,
    catchup_window: Seconds | None = None,
    jitter: Seconds = 0,
    start_at: datetime | None = None,
    end_at: datetime | None = None,
    max_runs: int | None = None,
    pause_on_failure: int | None = None,
    note: str | None = None,
) -> Flow[None]:
    """Start a workflow again and again; see :meth:`DBOS.create_schedule`.

    Neither the workflow nor the queue need exist yet.

    Args:
        workflow_name: The registered name of the workflow.
        workflow_class_name: The registered name of its class, for class methods.

    Raises:
        DBOSException: The schedule exists already, or a parameter is not what it can be; nothing is stored then.
    """
    given = dict(locals())  # the parameters, by name

    def find_target() -> Target:
        return Target(checked_key("workflow_name", workflow_name), workflow_class_name)

    yield from _create(engine, schedule_name, find_target, given, checks_queue=False)


def update_schedule(
    engine: Engine,
    name: str,
    *,
    workflow_fn: Callable[..., Any] = UNSET,
    schedule: str = UNSET,
    context: Any = UNSET,
    automatic_backfill: bool = UNSET,
    cron_timezone: str | None = UNSET,
    queue_name: str | None = UNSET,
    overlap: Overlap = UNSET,
    catchup: Catchup | None = UNSET,
    catchup_window: Seconds | None = UNSET,
    jitter: Seconds = UNSET,
    start_at: datetime | None = UNSET,
    end_at: datetime | None = UNSET,
    max_runs: int | None = UNSET,
    pause_on_failure: int | None = UNSET,
    note: str | None = UNSET,
) -> Flow[None]:
    """Change a schedule; see :meth:`create_schedule` for what there is to be changed.

    What is not given stays as it is, and so do its status, its history and its last tick. A schedule that is to fire at
    other times does so from now on: nothing is made up for.

    Args:
        name: The schedule's name.

    Raises:
        DBOSException: There is no such schedule, or a parameter is not what it can be; nothing is changed then.
    """
    given = {key: value for key, value in locals().items() if value is not UNSET and key not in ("engine", "name")}

    def update() -> Flow[None]:
        if "schedule" in given:
            check_cron(schedule)
        if "queue_name" in given:
            yield from check_queue(engine, queue_name)
        columns = checked_columns(given)
        if "workflow_fn" in given:
            target = target_of(engine, workflow_fn)
            columns.update(workflow_name=target.workflow_name, workflow_class_name=target.workflow_class_name)
        if "cron_timezone" in given:
            check_timezone(cron_timezone)
        yield from _change(engine, name, lambda row, now_ms: changed_row(row, columns, now_ms), must_exist=True)

    yield from recorded(engine, "DBOS.updateSchedule", update())


def update_client_schedule(
    engine: Engine,
    name: str,
    *,
    workflow_name: str = UNSET,
    workflow_class_name: str | None = UNSET,
    schedule: str = UNSET,
    context: Any = UNSET,
    automatic_backfill: bool = UNSET,
    cron_timezone: str | None = UNSET,
    queue_name: str | None = UNSET,
    overlap: Overlap = UNSET,
    catchup: Catchup | None = UNSET,
    catchup_window: Seconds | None = UNSET,
    jitter: Seconds = UNSET,
    start_at: datetime | None = UNSET,
    end_at: datetime | None = UNSET,
    max_runs: int | None = UNSET,
    pause_on_failure: int | None = UNSET,
    note: str | None = UNSET,
) -> Flow[None]:
    """Change a schedule; see :meth:`DBOS.update_schedule`.

    Args:
        name: The schedule's name. For the others see :meth:`create_schedule`.

    Raises:
        DBOSException: There is no such schedule, or a parameter is not what it can be; nothing is changed then.
    """
    given = {key: value for key, value in locals().items() if value is not UNSET and key not in ("engine", "name")}
    if "schedule" in given:
        check_cron(schedule)
    columns = checked_columns(given)
    for key in ("workflow_name", "workflow_class_name"):
        if key in given:
            columns[key] = given[key]
    if "cron_timezone" in given:
        check_timezone(cron_timezone)
    yield from _change(engine, name, lambda row, now_ms: changed_row(row, columns, now_ms), must_exist=True)


def _change(
    engine: Engine,
    name: str,
    transform: Callable[[ScheduleRow, int], ScheduleRow],
    *,
    must_exist: bool,
    action: str = "update_schedule",
) -> Flow[None]:
    name, now_ms = checked_key("schedule_name", name), engine.db.now_ms()
    change = _audited(engine, [name], engine.db.schedules.change, action)
    results = yield Commit((Call(change, (name, lambda row: transform(row, now_ms)), is_apart=True),))
    found: ScheduleRow | Exception | None = results[0]
    if isinstance(found, ValueError):
        raise DBOSException(f"Schedule '{name}' cannot be changed like that: {found}") from found
    if isinstance(found, Exception):
        raise found
    if found is None and must_exist:
        raise missing_schedule(name)
    if found is None:
        logger.warning("There is no schedule '%s' to be paused or resumed", name)
    engine.schedules_changed()


def apply_schedules(engine: Engine, schedules: Sequence[ScheduleInput], *, prune: bool = False) -> Flow[None]:
    """Create schedules, or change those that exist, all together or none.

    Status, history and last tick of those that exist stay as they are; one that is not changed is not touched. If a
    name is given twice, the last one counts.

    Args:
        schedules: The schedules; see :class:`ScheduleInput`.
        prune: Delete all other schedules of this application.

    Raises:
        DBOSException: One of them is not what it can be, or this is called from a workflow; nothing is changed then.

    Example:
        ```python
        DBOS.apply_schedules(
            [{"schedule_name": "hourly", "workflow_fn": report, "schedule": "0 * * * *", "context": {"kind": "short"}}]
        )
        ```
    """
    refuse_in_workflow("DBOS.apply_schedules")
    rows = {}
    for number, given in _entries(schedules):
        with _told_of(number, given):
            _check_required(number, given, ("schedule_name", "workflow_fn", "schedule"), ScheduleInput)
            check_cron(given["schedule"])
            target = target_of(engine, given["workflow_fn"])
            yield from check_queue(engine, given.get("queue_name"))
            check_timezone(given.get("cron_timezone"))
            row = new_row(engine, checked_key("schedule_name", given["schedule_name"]), target, given)
            rows[row.schedule_name] = row
    yield from _apply(engine, rows, prune)


def apply_client_schedules(
    engine: Engine, schedules: Sequence[ClientScheduleInput], *, prune: bool = False
) -> Flow[None]:
    """Create schedules, or change those that exist, all together or none; see :meth:`DBOS.apply_schedules`.

    Args:
        schedules: The schedules; see :class:`ClientScheduleInput`.
        prune: Delete all other schedules of this application.

    Raises:
        DBOSException: One of them is not what it can be; nothing is changed then.
    """
    rows = {}
    for number, given in _entries(schedules):
        with _told_of(number, given):
            _check_required(number, given, ("schedule_name", "workflow_name", "schedule"), ClientScheduleInput)
            check_cron(given["schedule"])
            check_timezone(given.get("cron_timezone"))
            target = Target(checked_key("workflow_name", given["workflow_name"]), given.get("workflow_class_name"))
            row = new_row(engine, checked_key("schedule_name", given["schedule_name"]), target, given)
            rows[row.schedule_name] = row
    yield from _apply(engine, rows, prune)


def _entries(schedules: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if isinstance(schedules, Mapping | str):
        raise DBOSException("apply_schedules takes a list of schedules, and each of them is a dictionary.")
    return enumerate(schedules)


@contextmanager
def _told_of(number: int, given: Mapping[str, Any]) -> Iterator[None]:
    """Errors within the block say which of the schedules they are about."""
    try:
        yield
    except DBOSException as error:
        error.add_note(f"This is about schedule entry {number}, {given.get('schedule_name')!r}.")
        raise


def _check_required(number: int, given: Mapping[str, Any], required: Iterable[str], type: Any) -> None:
    unknown = sorted(given.keys() - type.__annotations__.keys())
    for field in required:
        if field not in given:
            others = f"; it has unknown ones: {', '.join(unknown)}" if unknown else ""
            raise DBOSException(f"Schedule entry {number} is missing required field '{field}'{others}")
    if unknown:
        raise DBOSException(f"Schedule entry {number} has an unknown field '{unknown[0]}'")


def _apply(engine: Engine, rows: Mapping[str, ScheduleRow], prune: bool) -> Flow[None]:
    now_ms, application = engine.db.now_ms(), engine.settings.name or None
    # What a schedule has come to is its own.
    state = {"schedule_id", "status", "last_fired_at", "pause_reason", "runs", "created_at", "updated_at", "resumed_at"}
    state |= {"application_name", "next_tick_ms", "next_fire_ms", "planned_at", "planned_from", "error"}

    def merge(existing: ScheduleRow, new: ScheduleRow) -> ScheduleRow:
        columns = {name: value for name, value in new._asdict().items() if name not in state}
        return changed_row(existing, columns, now_ms)

    def is_superfluous(row: ScheduleRow) -> bool:
        return row.schedule_name not in rows and row.application_name == application

    arguments = (rows, merge, is_superfluous if prune else None)
    apply = _audited(engine, None if prune else list(rows), engine.db.schedules.apply)
    yield Commit((Call(apply, arguments, is_apart=True),))
    engine.schedules_changed()


def _audited(
    engine: Engine,
    names: Sequence[str] | None,
    verb: Callable[Concatenate[Connection, P], R],
    changed: str = "update_schedule",
) -> Callable[Concatenate[Connection, P], R]:
    """A verb that also notes what it does to schedules of these names, or to any."""

    def rows(connection: Connection) -> dict[str, ScheduleRow]:
        found = engine.db.schedules.all(connection) if names is None else engine.db.schedules.named(connection, names)
        return {row.schedule_name: row for row in found}

    return audited_rows(engine, "schedule", rows, verb, changed=changed)


# -- status ------------------------------------------------------------------------------------------------------------


def pause_schedule(engine: Engine, name: str, *, reason: str | None = None) -> Flow[None]:
    """Have a schedule start nothing until it is resumed; runs that it has started go on.

    Args:
        name: The schedule's name; an unknown one changes nothing.
        reason: Why, to be shown with the schedule.

    Raises:
        DBOSException: The reason is no text.
    """
    checked_text("reason", reason)

    def pause(row: ScheduleRow, now_ms: int) -> ScheduleRow:
        return row._replace(status="PAUSED", pause_reason=reason, updated_at=now_ms)

    changed = _change(engine, name, pause, must_exist=False, action="pause_schedule")
    yield from recorded(engine, "DBOS.pauseSchedule", changed)


def resume_schedule(engine: Engine, name: str) -> Flow[None]:
    """Have a paused schedule go on. Ticks of the pause are made up for as its ``catchup`` says.

    Args:
        name: The schedule's name; an unknown one changes nothing.
    """

    def resume(row: ScheduleRow, now_ms: int) -> ScheduleRow:
        if row.status == "ACTIVE":
            return row
        row = row._replace(status="ACTIVE", pause_reason=None, updated_at=now_ms, resumed_at=now_ms)
        return plan(row, now_ms, now_ms) if catchup_of(row) == "none" else row

    changed = _change(engine, name, resume, must_exist=False, action="resume_schedule")
    yield from recorded(engine, "DBOS.resumeSchedule", changed)


def delete_schedule(engine: Engine, name: str) -> Flow[None]:
    """Delete a schedule. Runs that it has started go on, and what it has decided is remembered.

    Args:
        name: The schedule's name; an unknown one changes nothing.
    """
    name = checked_key("schedule_name", name)

    def delete() -> Flow[None]:
        remove = _audited(engine, [name], engine.db.schedules.delete)
        yield Commit((Call(remove, ([name],), is_apart=True),))
        engine.schedules_changed()

    yield from recorded(engine, "DBOS.deleteSchedule", delete())
