"""Starting a schedule's workflow out of turn: now, or for times that are over."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import count, islice
from typing import Any, Literal, Protocol, overload

from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Read
from dbos._engine.schedules import Encoder, settle
from dbos._engine.ticks import backfill, epoch_ms, moment, ticks_between, trigger
from dbos._error import DBOSException
from dbos._handles import WorkflowHandle, WorkflowHandleAsync
from dbos._ids import new_instance_id
from dbos._operations.auditing import action_of
from dbos._operations.recording import refuse_in_workflow
from dbos._operations.schedule_definitions import aware, check_overlap
from dbos._queue_config import checked_key
from dbos._sysdb.rows import ScheduleRow
from dbos._sysdb.stores.schedules import Decided, Situation
from dbos._types import Overlap

__all__ = ["Backfill", "BackfillAsync", "backfill_schedule", "missing_schedule", "trigger_schedule"]

MAX_BACKFILL = 100_000  # ticks of one call
BACKFILL_AT_ONCE = 100

_numbers = count(int(new_instance_id()[:8], 16))


def missing_schedule(name: str) -> DBOSException:
    """What is raised where a schedule must exist."""
    return DBOSException(f"Schedule '{name}' does not exist")


class Backfill(Protocol):
    """The blocking form of :func:`backfill_schedule`."""

    @overload
    def __call__(
        self,
        schedule_name: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        overlap: Overlap | None = None,
        dry_run: Literal[False] = False,
    ) -> list[WorkflowHandle[Any]]: ...
    @overload
    def __call__(
        self,
        schedule_name: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        overlap: Overlap | None = None,
        dry_run: Literal[True],
    ) -> list[datetime]: ...


class BackfillAsync(Protocol):
    """The coroutine form of :func:`backfill_schedule`."""

    @overload
    async def __call__(
        self,
        schedule_name: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        overlap: Overlap | None = None,
        dry_run: Literal[False] = False,
    ) -> list[WorkflowHandleAsync[Any]]: ...
    @overload
    async def __call__(
        self,
        schedule_name: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        overlap: Overlap | None = None,
        dry_run: Literal[True],
    ) -> list[datetime]: ...


def trigger_schedule(engine: Engine, schedule_name: str, *, overlap: Overlap | None = None) -> Flow[str]:
    """Start a run of a schedule now, also while it is paused.

    Args:
        schedule_name: The schedule's name.
        overlap: What to do if an earlier run has not ended, instead of what the schedule says.

    Returns:
        A handle for the workflow, which waits for the earlier run if ``overlap`` says so.

    Raises:
        DBOSException: There is no such schedule, an earlier run has not ended and this one is skipped, or this is
            called from a workflow.
    """
    refuse_in_workflow("DBOS.trigger_schedule")
    check_overlap(overlap)
    schedule_name = checked_key("schedule_name", schedule_name)
    now_ms = engine.db.now_ms()
    now = moment(now_ms) + timedelta(microseconds=_microseconds())
    workflow_id = f"sched-{schedule_name}-trigger-{now.isoformat(timespec='microseconds')}"
    encode, failures = Encoder(engine), list[Exception]()

    def decide(row: ScheduleRow, situation: Situation) -> Decided:
        try:
            return trigger(row, overlap, now, workflow_id, situation, now_ms, encode)
        except Exception as error:  # which is ours to tell, and none of the schedule's
            failures.append(error)
            return Decided(row)

    choose = partial(engine.db.schedules.named, names=[schedule_name])
    action = action_of(engine, "trigger_schedule")
    settled = yield from settle(engine, choose, decide, now_ms, encode=encode, overlap=overlap, action=action)
    if not settled.rows:
        raise missing_schedule(schedule_name)
    if failures and not settled.decisions:
        raise DBOSException(f"Schedule '{schedule_name}' cannot be triggered: {failures[-1]}") from failures[-1]
    [decision] = settled.decisions
    if decision.workflow_id is None:
        raise DBOSException(
            f"Schedule '{schedule_name}' was not triggered, because an earlier run of it has not ended. "
            "Pass overlap='allow' to start one all the same."
        )
    if decision.decision == "buffered":
        engine.schedules_changed()
    return workflow_id


def _microseconds() -> int:
    """What tells two triggers of one millisecond apart: in a process always, and among several in general."""
    return next(_numbers) % 1000


def backfill_schedule(
    engine: Engine,
    schedule_name: str,
    start: datetime | None = None,
    end: datetime | None = None,
    *,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    overlap: Overlap | None = None,
    dry_run: bool = False,
) -> Flow[list[Any]]:
    """Start the ticks of a schedule between two times, both excluded; those that have run already are left alone.

    Args:
        schedule_name: The schedule's name.
        start: The earlier time; in UTC unless it has an offset.
        end: The later time, likewise.
        start_time: Another name of ``start``.
        end_time: Another name of ``end``.
        overlap: What to do while an earlier run has not ended, instead of what the schedule says.
        dry_run: Start nothing, only tell the ticks.

    Returns:
        Handles for the workflows of all these ticks, also of those that had run; ticks that are skipped have none. In a
        dry run, the ticks.

    Raises:
        DBOSException: There is no such schedule, there are more than 100 000 ticks, or this is called from a workflow.
    """
    refuse_in_workflow("DBOS.backfill_schedule")
    check_overlap(overlap)
    schedule_name = checked_key("schedule_name", schedule_name)
    row, ticks = yield from _backfill_ticks(engine, schedule_name, start or start_time, end or end_time)
    if dry_run:
        return ticks
    action, encode, ids, failures = (
        action_of(engine, "backfill_schedule"),
        Encoder(engine),
        list[str](),
        list[Exception](),
    )
    choose = partial(engine.db.schedules.named, names=[schedule_name])
    for begin in range(0, len(ticks), BACKFILL_AT_ONCE):
        some, now_ms = ticks[begin : begin + BACKFILL_AT_ONCE], engine.db.now_ms()
        known: dict[int, str] = yield Read(engine.db.schedules.run_ids, (row.schedule_id, list(map(epoch_ms, some))))
        new = [tick for tick in some if epoch_ms(tick) not in known]

        def decide(
            row: ScheduleRow, situation: Situation, new: Sequence[datetime] = new, now_ms: int = now_ms
        ) -> Decided:
            try:
                return backfill(row, overlap, new, situation, now_ms, encode)
            except Exception as error:
                failures.append(error)
                return Decided(row)

        settled = yield from settle(engine, choose, decide, now_ms, encode=encode, overlap=overlap, action=action)
        if not settled.rows:
            raise missing_schedule(schedule_name)
        if failures and not settled.decisions:
            raise DBOSException(f"Schedule '{schedule_name}' cannot be backfilled: {failures[-1]}") from failures[-1]
        known |= {each.scheduled_at: each.workflow_id for each in settled.decisions if each.workflow_id is not None}
        ids += [known[epoch_ms(tick)] for tick in some if epoch_ms(tick) in known]
    if ticks:
        engine.schedules_changed()
    return ids


def _backfill_ticks(
    engine: Engine, name: str, start: datetime | None, end: datetime | None
) -> Flow[tuple[ScheduleRow, list[datetime]]]:
    if start is None or end is None:
        raise DBOSException("backfill_schedule needs both times: start (or start_time) and end (or end_time).")
    # Ticks are whole seconds: what is left of a millisecond decides only whether the one at the end is before it.
    start, end = aware("start", start), aware("end", end)
    after_ms, before_ms = epoch_ms(start), epoch_ms(end) + (end.microsecond % 1000 > 0)
    row: ScheduleRow | None = yield Read(engine.db.schedules.get, (name,))
    if row is None:
        raise missing_schedule(name)
    try:
        ticks = list(islice(ticks_between(row, after_ms, before_ms), MAX_BACKFILL + 1))
    except ValueError as error:
        raise DBOSException(f"Schedule '{name}' cannot be backfilled: {error}") from error
    if len(ticks) > MAX_BACKFILL:
        raise DBOSException(
            f"There are more than {MAX_BACKFILL} ticks of schedule '{name}' between {start} and {end}. Backfill it in "
            "shorter pieces."
        )
    return row, ticks
