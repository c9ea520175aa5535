"""What becomes of a schedule's ticks: which are started, put off, skipped or missed, and which is next.

Pure decisions over a schedule's row. They are made while the row is locked, so that of all processes that come for a
tick one decides; what the cron expression says, and nothing else, is the next tick.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any, get_args

from dbos._cron import Cron, parse
from dbos._ids import new_token
from dbos._sysdb.rows import DecisionRow, ScheduleRow
from dbos._sysdb.stores.schedules import GRACE_MS, Decided, RunRow, Situation
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE
from dbos._types import Catchup, Overlap

__all__ = [
    "GRACE_MS",
    "Encode",
    "backfill",
    "catchup_of",
    "decide",
    "epoch_ms",
    "look_after",
    "moment",
    "plan",
    "replan",
    "ticks_between",
    "trigger",
]

MAX_TICKS = 100  # of one schedule at a time
MAX_LEFT = 2**31
MAX_COUNTED = 1000  # ticks that were missed together are counted so far

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Encode = Callable[[ScheduleRow, datetime, Any], tuple[str, str]]
"""The arguments of a run, as text, and the name of their format: of a schedule, a time, and the context."""


# -- time --------------------------------------------------------------------------------------------------------------


def moment(time_ms: int) -> datetime:
    """A time in UTC."""
    return _EPOCH + timedelta(milliseconds=time_ms)


def epoch_ms(tick: datetime) -> int:
    """A time in milliseconds since 1970."""
    return (tick - _EPOCH) // timedelta(milliseconds=1)


def cron_of(row: ScheduleRow) -> Cron:
    """The schedule's expression in its time zone.

    Raises:
        ValueError: one of them is none.
    """
    return parse(row.schedule, row.cron_timezone)


def catchup_of(row: ScheduleRow) -> Catchup:
    """Which missed ticks are started later.

    Raises:
        ValueError: somebody has written there what is none of the choices.
    """
    if row.automatic_backfill:
        return "all"
    checked: Catchup = _checked("catchup", row.catchup, get_args(Catchup))
    return checked


def _checked(name: str, value: str, choices: Sequence[Any]) -> Any:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, and must be one of {', '.join(choices)}")
    return value


def _fire_ms(row: ScheduleRow, tick_ms: int) -> int:
    """When a tick is due: with jitter, a bit after its time, by as much whoever computes it."""
    if row.jitter_ms <= 0:
        return tick_ms
    digest = hashlib.sha256(f"{row.schedule_name}/{tick_ms}".encode()).digest()
    return tick_ms + int.from_bytes(digest[:8]) % (row.jitter_ms + 1)


@lru_cache(maxsize=4096)
def _next(schedule: str, timezone: str | None, after_ms: int) -> datetime | None:
    """The first tick after a time. Schedules that are due together often have the same expression."""
    return next(parse(schedule, timezone).after(moment(after_ms)), None)


def run_id(row: ScheduleRow, tick: datetime) -> str:
    """The id of the workflow that a tick starts."""
    return f"sched-{row.schedule_name}-{tick.isoformat()}"


def ticks_between(row: ScheduleRow, after_ms: int, before_ms: int) -> Iterator[datetime]:
    """The ticks between two times, both of which are not among them."""
    for tick in cron_of(row).after(moment(after_ms)):
        if epoch_ms(tick) >= before_ms:
            return
        yield tick


# -- planning ----------------------------------------------------------------------------------------------------------


def plan(row: ScheduleRow, after_ms: int, now_ms: int) -> ScheduleRow:
    """The row with the first tick after a time as its next.

    Raises:
        ValueError: somebody has written there what no schedule can obey.
    """
    if row.start_at_ms is not None:
        after_ms = max(after_ms, row.start_at_ms - 1)
    tick_ms: int | None = None
    if row.max_runs is None or row.runs < row.max_runs:
        tick = _next(row.schedule, row.cron_timezone, after_ms)
        if tick is not None and (row.end_at_ms is None or epoch_ms(tick) <= row.end_at_ms):
            tick_ms = epoch_ms(tick)
    return row._replace(
        next_tick_ms=tick_ms,
        next_fire_ms=None if tick_ms is None else _fire_ms(row, tick_ms),
        planned_at=now_ms,
        planned_from=_planned_from(row),
        error=None,
    )


def _planned_from(row: ScheduleRow) -> str:
    """What a plan was made of. Users may write it into the table: then it is planned anew."""
    return f"{row.schedule}|{row.cron_timezone or ''}|{row.last_fired_at or ''}"


def _check(row: ScheduleRow) -> None:
    """Refuse what could be planned, and not be decided about when its tick has come."""
    _overlap(row, None)
    catchup_of(row)
    json.loads(row.context)
    _check_counts(row)


def _check_counts(row: ScheduleRow) -> None:
    for name, count in (("pause_on_failure", row.pause_on_failure), ("max_runs", row.max_runs)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{name} is {count!r}, and must be a whole number, and at least 1")


def _is_unplanned(row: ScheduleRow) -> bool:
    """Whether a row is not as its plan was made from."""
    return row.planned_from != _planned_from(row)


def replan(row: ScheduleRow, now_ms: int) -> ScheduleRow:
    """Plan what was written by hand, or was planned when the clock was ahead.

    A last tick that was set is where to go on from; otherwise the next tick is the first from now on.

    Raises:
        ValueError: somebody has written there what no schedule can obey.
    """
    _check(row)
    after_ms = now_ms
    if row.error is not None and row.next_tick_ms is not None:
        after_ms = min(now_ms, row.next_tick_ms - 1)  # what could not be decided about meanwhile was missed
    planned_last = None if row.planned_from is None else row.planned_from.rpartition("|")[2]
    if row.last_fired_at is not None and row.last_fired_at != planned_last:
        last = datetime.fromisoformat(row.last_fired_at)
        after_ms = min(now_ms, epoch_ms(last if last.tzinfo is not None else last.replace(tzinfo=UTC)))
    return plan(row, after_ms, now_ms)


# -- ticks -------------------------------------------------------------------------------------------------------------


def decide(row: ScheduleRow, situation: Situation, now_ms: int, encode: Encode) -> Decided:
    """What becomes of the ticks that are due.

    Usually that is one. After a time in which nobody was there it may be many, of which ``catchup`` says which are
    started; the others were missed. A schedule that is late by seconds only has missed nothing.

    Raises:
        ValueError: somebody has written there what no schedule can obey.
    """
    if row.status != "ACTIVE" or row.next_fire_ms is None or row.next_fire_ms > now_ms:
        return Decided(row)  # somebody else has decided about it since it was found to be due
    if row.next_tick_ms is None:  # somebody has written that it is due, and not since when
        return Decided(replan(row, now_ms))
    _check_counts(row)
    if situation.is_failing:
        return _paused(row, now_ms)
    if _is_unplanned(row):
        return Decided(replan(row, now_ms))
    overlap = _overlap(row, None)
    chosen, missed = _choose(row, now_ms)
    if not chosen and not missed:  # somebody has written another time there, or the schedule has ended
        return Decided(plan(row, now_ms, now_ms))
    last_ms = epoch_ms(chosen[-1]) if chosen else missed[-1].last_scheduled_at
    admitted = _admit(row, overlap, "tick", chosen, situation, now_ms, encode)
    started = [each for each in admitted.decisions if each.workflow_id is not None]
    if started:
        last_fired = moment(started[-1].scheduled_at).astimezone(cron_of(row).zone)
        row = row._replace(last_fired_at=last_fired.isoformat(), runs=row.runs + len(started))
    return admitted._replace(row=plan(row, last_ms, now_ms), decisions=[*missed, *admitted.decisions])


def _choose(row: ScheduleRow, now_ms: int) -> tuple[list[datetime], list[DecisionRow]]:
    """Which of the ticks that are due are to start, and the decision about those that were missed, if there are any."""
    assert row.next_tick_ms is not None
    assert row.next_fire_ms is not None
    catchup, window_ms = catchup_of(row), row.catchup_window_ms
    if row.next_fire_ms >= now_ms - GRACE_MS:
        return list(islice(_due(row, row.next_tick_ms, now_ms), MAX_TICKS)), []
    newest = _newest(row, now_ms)
    if newest is None:
        return [], []
    if catchup == "all":
        first_ms = row.next_tick_ms if window_ms is None else max(row.next_tick_ms, now_ms - window_ms)
        chosen = list(islice(_due(row, first_ms, now_ms), MAX_TICKS))
    else:
        window_ms = GRACE_MS if window_ms is None and catchup == "none" else window_ms
        is_lost = window_ms is not None and now_ms - _fire_ms(row, epoch_ms(newest)) > window_ms
        chosen = [] if is_lost else [newest]
    reason = "coalesced" if catchup == "latest" and chosen else "window"
    return chosen, _missed(row, chosen[0] if chosen else None, newest, now_ms, reason)


def _paused(row: ScheduleRow, now_ms: int) -> Decided:
    reason = f"{row.pause_on_failure} runs in a row have failed"
    tick_ms = now_ms if row.next_tick_ms is None else min(now_ms, row.next_tick_ms)
    decision = _decision(row, "tick", tick_ms, "paused", reason, None, now_ms)
    return Decided(row._replace(status="PAUSED", pause_reason=reason, updated_at=now_ms), [decision])


def _due(row: ScheduleRow, from_ms: int, now_ms: int) -> Iterator[datetime]:
    """The ticks from a time on that are due, in their order."""
    left, after_ms = (MAX_LEFT if row.max_runs is None else row.max_runs - row.runs), from_ms - 1
    for _ in range(left):
        tick = _next(row.schedule, row.cron_timezone, after_ms)
        if tick is None:
            return
        after_ms = epoch_ms(tick)
        if _fire_ms(row, after_ms) > now_ms or (row.end_at_ms is not None and after_ms > row.end_at_ms):
            return
        yield tick


def _newest(row: ScheduleRow, now_ms: int) -> datetime | None:
    """The last tick that is due, found by halving: those before it may be millions. None if none is due."""
    assert row.next_tick_ms is not None
    until_ms = now_ms if row.end_at_ms is None else min(now_ms, row.end_at_ms)
    low, high = row.next_tick_ms - 1, until_ms - row.jitter_ms  # what is earlier than that is due in any case
    while high - low > 1000:
        middle = (low + high) // 2
        tick = _next(row.schedule, row.cron_timezone, middle)
        if tick is not None and epoch_ms(tick) <= high:
            low = middle
        else:
            high = middle
    newest = deque(islice(_due(row._replace(max_runs=None), low + 1, now_ms), MAX_COUNTED), maxlen=1)
    return newest[0] if newest else None


def _missed(row: ScheduleRow, before: datetime | None, newest: datetime, now_ms: int, reason: str) -> list[DecisionRow]:
    """One decision about all ticks that are due before the first that is started, or up to the newest."""
    assert row.next_tick_ms is not None
    lost: list[datetime] = []
    for tick in _due(row._replace(max_runs=None), row.next_tick_ms, now_ms):
        if before is not None and tick >= before:
            break
        if len(lost) == MAX_COUNTED:
            reason += f", and more than {MAX_COUNTED}"
            break
        lost.append(tick)
    if not lost:
        return []
    last = newest if before is None else lost[-1]
    decision = _decision(row, "tick", epoch_ms(lost[0]), "missed", reason, None, now_ms)
    return [decision._replace(last_scheduled_at=epoch_ms(last), ticks=len(lost))]


# -- overlap -----------------------------------------------------------------------------------------------------------

_STARTED = {"tick": "fired", "backfill": "backfilled", "trigger": "triggered"}


def _decision(
    row: ScheduleRow, kind: str, tick_ms: int, decision: str, reason: str | None, workflow_id: str | None, now_ms: int
) -> DecisionRow:
    return DecisionRow(
        schedule_id=row.schedule_id,
        schedule_name=row.schedule_name,
        kind=kind,
        scheduled_at=tick_ms,
        last_scheduled_at=tick_ms,
        ticks=1,
        decision=decision,
        reason=reason,
        workflow_id=workflow_id,
        decided_at=now_ms,
    )


def _admit(
    row: ScheduleRow,
    overlap: Overlap,
    kind: str,
    ticks: Sequence[datetime],
    situation: Situation,
    now_ms: int,
    encode: Encode,
    workflow_id: str | None = None,
) -> Decided:
    """Start ticks, or not, as they overlap the runs that have not ended, and each other."""
    decisions: list[DecisionRow] = []
    runs: list[RunRow] = []
    # Its own runs are no earlier ones: what is committed may be executed again, if the answer was lost.
    ids = [workflow_id or run_id(row, tick) for tick in ticks]
    running = tuple(each for each in situation.running if each not in ids)
    is_free, buffered = not running and not situation.buffered, situation.buffered
    context = json.loads(row.context)
    for number, (tick, id) in enumerate(zip(ticks, ids, strict=True)):
        if overlap == "cancel_other":
            verdict = _STARTED[kind] if number == len(ticks) - 1 else "skipped"
        elif overlap == "allow" or is_free:
            verdict, is_free = _STARTED[kind], False
        elif overlap == "buffer_all" or (overlap == "buffer_one" and buffered == 0):
            verdict, buffered = "buffered", buffered + 1
        else:
            verdict = "skipped"
        reason = "overlap" if verdict in ("buffered", "skipped") else None
        if verdict == "skipped":
            decisions.append(_decision(row, kind, epoch_ms(tick), verdict, reason, None, now_ms))
            continue
        decisions.append(_decision(row, kind, epoch_ms(tick), verdict, reason, id, now_ms))
        if verdict != "buffered":
            runs.append(_run(row, id, encode(row, tick, context), now_ms))
    cancelled = running if overlap == "cancel_other" and ticks else ()
    return Decided(row, decisions, runs, cancelled=cancelled)


def _run(row: ScheduleRow, workflow_id: str, encoded: tuple[str, str], now_ms: int) -> RunRow:
    inputs, serialization = encoded
    return RunRow(
        workflow_uuid=workflow_id,
        name=row.workflow_name,
        class_name=row.workflow_class_name,
        queue_name=row.queue_name or INTERNAL_QUEUE,
        inputs=inputs,
        serialization=serialization,
        application_version=None,
        application_name=row.application_name,
        schedule_name=row.schedule_name,
        owner_xid=new_token(),
        created_at=now_ms,
    )


# -- on demand ---------------------------------------------------------------------------------------------------------


def trigger(
    row: ScheduleRow,
    overlap: Overlap | None,
    tick: datetime,
    workflow_id: str,
    situation: Situation,
    now_ms: int,
    encode: Encode,
) -> Decided:
    """Start a run at a time that is no tick."""
    return _admit(row, _overlap(row, overlap), "trigger", [tick], situation, now_ms, encode, workflow_id)


def backfill(
    row: ScheduleRow,
    overlap: Overlap | None,
    ticks: Sequence[datetime],
    situation: Situation,
    now_ms: int,
    encode: Encode,
) -> Decided:
    """Start ticks that may long be over; which of them have run already, their keys tell."""
    return _admit(row, _overlap(row, overlap), "backfill", ticks, situation, now_ms, encode)


def _overlap(row: ScheduleRow, override: Overlap | None) -> Overlap:
    checked: Overlap = _checked("overlap", row.overlap if override is None else override, get_args(Overlap))
    return checked


def look_after(row: ScheduleRow, situation: Situation, now_ms: int, encode: Encode) -> Decided:
    """What becomes of a schedule when a run of it has ended: it is paused, or a tick starts that has waited for that.

    Raises:
        ValueError: somebody has written there what no schedule can obey.
    """
    if row.status != "ACTIVE":
        return Decided(row)
    if situation.is_failing:
        return _paused(row, now_ms)
    waiting = situation.oldest
    if waiting is None or waiting.workflow_id is None:
        return Decided(row)
    tick = moment(waiting.scheduled_at).astimezone(cron_of(row).zone)
    run = _run(row, waiting.workflow_id, encode(row, tick, json.loads(row.context)), now_ms)
    return Decided(row, runs=[run], released=waiting._replace(decision=_STARTED[waiting.kind], decided_at=now_ms))
