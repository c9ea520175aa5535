"""What becomes of ticks, decided without a database: a row goes in, a verdict comes out, and time is a number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from dbos._cron import Cron
from dbos._engine import ticks
from dbos._engine.ticks import decide, epoch_ms, look_after, moment, plan, replan
from dbos._sysdb.rows import DecisionRow, ScheduleRow
from dbos._sysdb.stores.schedules import Decided, Situation

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
SECONDLY, MINUTELY, HOURLY = "* * * * * *", "* * * * *", "0 * * * *"
IDLE = Situation()


def at(seconds: float = 0) -> int:
    """So many seconds after noon, in milliseconds."""
    return epoch_ms(NOON + timedelta(seconds=seconds))


def schedule(cron: str = MINUTELY, *, since: float = -0.001, planned_at: float = 0, **columns: Any) -> ScheduleRow:
    """A schedule whose next tick is the first later than ``since``, which by default is noon if it can be."""
    row = ScheduleRow(
        schedule_id="id",
        schedule_name="report",
        workflow_name="report",
        workflow_class_name=None,
        schedule=cron,
        status="ACTIVE",
        context='{"to": "all"}',
        last_fired_at=None,
        automatic_backfill=False,
        cron_timezone=None,
        queue_name=None,
        application_name=None,
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
        created_at=0,
        updated_at=0,
        resumed_at=None,
        next_tick_ms=None,
        next_fire_ms=None,
        planned_at=None,
        planned_from=None,
        error=None,
    )
    return plan(row._replace(**columns), at(since), at(planned_at))


def encode(row: ScheduleRow, tick: datetime, context: Any) -> tuple[str, str]:
    return json.dumps([tick.isoformat(), context]), "plain"


def verdicts(decided: Decided) -> list[str]:
    return [decision.decision for decision in decided.decisions]


def started(decided: Decided) -> list[float]:
    """The ticks that were started, in seconds after noon."""
    chosen = [each for each in decided.decisions if each.decision == "fired"]
    return [(each.scheduled_at - at()) / 1000 for each in chosen]


def missed(decided: Decided) -> list[tuple[float, float, int, str | None]]:
    """First, last, number and reason of the ticks that were missed together."""
    return [
        ((each.scheduled_at - at()) / 1000, (each.last_scheduled_at - at()) / 1000, each.ticks, each.reason)
        for each in decided.decisions
        if each.decision == "missed"
    ]


# -- what a tick starts ------------------------------------------------------------------------------------------------


def test_a_tick_starts_a_run_that_is_told_the_time_in_the_zone_of_the_schedule_and_the_context() -> None:
    row = schedule("0 7 * * *", cron_timezone="America/New_York", queue_name="reports", workflow_class_name="Office")

    decided = decide(row, IDLE, at(1), encode)

    [run] = decided.runs
    assert run.workflow_uuid == "sched-report-2026-01-05T07:00:00-05:00"
    assert json.loads(run.inputs) == ["2026-01-05T07:00:00-05:00", {"to": "all"}]
    assert (run.name, run.class_name, run.queue_name, run.schedule_name) == ("report", "Office", "reports", "report")
    assert run.application_version is None
    assert decided.row.last_fired_at == "2026-01-05T07:00:00-05:00"
    assert decided.row.runs == 1
    assert decided.row.next_tick_ms == at(24 * 3600)
    [decision] = decided.decisions
    assert (decision.scheduled_at, decision.decided_at, decision.workflow_id) == (at(), at(1), run.workflow_uuid)


@pytest.mark.parametrize("changes", [{"status": "PAUSED"}, {"next_tick_ms": None, "next_fire_ms": None}, {}])
def test_what_is_not_due_any_more_is_left_alone(changes: dict[str, Any]) -> None:
    """It was due when somebody looked; another process was faster, or it was paused meanwhile."""
    row = schedule(since=0 if not changes else -0.001)._replace(**changes)

    decided = decide(row, IDLE, at(1), encode)

    assert decided == Decided(row)


# -- overlap -----------------------------------------------------------------------------------------------------------

BUSY = Situation(running=["before"])
BUSY_AND_WAITED_FOR = Situation(running=["before"], buffered=1)
WAITED_FOR = Situation(buffered=1)


@pytest.mark.parametrize(
    ("overlap", "situation", "expected"),
    [
        ("allow", IDLE, ["fired"]),
        ("allow", IDLE, ["fired", "fired", "fired"]),
        ("allow", BUSY_AND_WAITED_FOR, ["fired", "fired", "fired"]),
        ("skip", IDLE, ["fired"]),
        ("skip", IDLE, ["fired", "skipped", "skipped"]),
        ("skip", BUSY, ["skipped"]),
        ("skip", BUSY, ["skipped", "skipped", "skipped"]),
        ("skip", WAITED_FOR, ["skipped"]),
        ("buffer_one", IDLE, ["fired"]),
        ("buffer_one", IDLE, ["fired", "buffered", "skipped"]),
        ("buffer_one", BUSY, ["buffered"]),
        ("buffer_one", BUSY, ["buffered", "skipped", "skipped"]),
        ("buffer_one", BUSY_AND_WAITED_FOR, ["skipped"]),
        ("buffer_one", WAITED_FOR, ["skipped"]),
        ("buffer_all", IDLE, ["fired"]),
        ("buffer_all", IDLE, ["fired", "buffered", "buffered"]),
        ("buffer_all", BUSY, ["buffered", "buffered"]),
        ("buffer_all", BUSY_AND_WAITED_FOR, ["buffered"]),
        ("buffer_all", WAITED_FOR, ["buffered"]),
        ("cancel_other", IDLE, ["fired"]),
        ("cancel_other", BUSY, ["fired"]),
        ("cancel_other", BUSY, ["skipped", "skipped", "fired"]),
    ],
)
def test_ticks_overlap_as_the_schedule_says(overlap: str, situation: Situation, expected: list[str]) -> None:
    row = schedule(SECONDLY, overlap=overlap)

    decided = decide(row, situation, at(len(expected) - 1), encode)

    assert verdicts(decided) == expected
    assert len(decided.runs) == expected.count("fired")
    assert [each.reason for each in decided.decisions] == [None if each == "fired" else "overlap" for each in expected]
    assert [each.workflow_id is None for each in decided.decisions] == [each == "skipped" for each in expected]
    assert list(decided.cancelled) == list(situation.running if overlap == "cancel_other" else ())
    assert decided.row.next_tick_ms == at(len(expected))


def test_what_was_skipped_is_not_the_last_that_fired_and_counts_as_no_run() -> None:
    row = schedule(SECONDLY, overlap="skip", last_fired_at="2026-01-05T11:00:00+00:00", runs=7)

    decided = decide(row, BUSY, at(1), encode)

    assert (decided.row.last_fired_at, decided.row.runs) == ("2026-01-05T11:00:00+00:00", 7)


def test_an_override_of_the_overlap_counts_for_one_trigger_and_one_backfill() -> None:
    row = schedule(overlap="skip")
    times = [moment(at(second)) for second in (0, 60)]

    triggered = ticks.trigger(row, "allow", moment(at(3)), "by-hand", BUSY, at(3), encode)
    skipped = ticks.trigger(row, None, moment(at(3)), "by-hand", BUSY, at(3), encode)
    backfilled = ticks.backfill(row, "buffer_all", times, IDLE, at(3), encode)

    assert [run.workflow_uuid for run in triggered.runs] == ["by-hand"]
    assert verdicts(triggered) == ["triggered"]
    assert verdicts(skipped) == ["skipped"]
    assert verdicts(backfilled) == ["backfilled", "buffered"]
    assert triggered.row == skipped.row == backfilled.row == row


# -- what was missed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("catchup", ["none", "latest", "all"])
@pytest.mark.parametrize("window_s", [None, 0, 3600])
def test_after_a_hiccup_everything_is_started(catchup: str, window_s: int | None) -> None:
    window_ms = None if window_s is None else window_s * 1000
    row = schedule(SECONDLY, catchup=catchup, catchup_window_ms=window_ms)

    decided = decide(row, IDLE, at(60), encode)

    assert started(decided) == list(range(61))
    assert missed(decided) == []
    assert decided.row.next_tick_ms == at(61)


LATE_S = 5430  # half past one, and a bit
DAY_S = 86_400
YEAR_S = 365 * DAY_S


@pytest.mark.parametrize(
    ("cron", "catchup", "window_s", "late_s", "runs", "lost"),
    [
        (SECONDLY, "none", None, 60.001, [60], [(0, 59, 60, "window")]),
        (MINUTELY, "none", None, LATE_S, [5400], [(0, 5340, 90, "window")]),
        (HOURLY, "none", None, LATE_S, [], [(0, 3600, 2, "window")]),
        (HOURLY, "none", 3600, LATE_S, [3600], [(0, 0, 1, "window")]),
        (HOURLY, "none", None, 61, [], [(0, 0, 1, "window")]),
        (MINUTELY, "latest", None, LATE_S, [5400], [(0, 5340, 90, "coalesced")]),
        (HOURLY, "latest", None, LATE_S, [3600], [(0, 0, 1, "coalesced")]),
        (HOURLY, "latest", 3600, LATE_S, [3600], [(0, 0, 1, "coalesced")]),
        (HOURLY, "latest", 1200, LATE_S, [], [(0, 3600, 2, "window")]),
        (HOURLY, "latest", None, 61, [0], []),
        (HOURLY, "all", None, LATE_S, [0, 3600], []),
        (HOURLY, "all", 3600, LATE_S, [3600], [(0, 0, 1, "window")]),
        (HOURLY, "all", 1200, LATE_S, [], [(0, 3600, 2, "window")]),
        ("0 12 29 2 *", "latest", None, 9 * YEAR_S, [2246 * DAY_S], [(785 * DAY_S, 785 * DAY_S, 1, "coalesced")]),
        ("0 12 1,5 1 *", "latest", None, 9 * YEAR_S, [3283 * DAY_S], [(0, 2922 * DAY_S, 17, "coalesced")]),
    ],
)
def test_after_a_stall_what_the_schedule_asks_for_is_started_and_the_rest_is_one_row(
    cron: str, catchup: str, window_s: int | None, late_s: float, runs: list[int], lost: list[Any]
) -> None:
    window_ms = None if window_s is None else window_s * 1000
    row = schedule(cron, catchup=catchup, catchup_window_ms=window_ms)

    decided = decide(row, IDLE, at(late_s), encode)

    assert started(decided) == runs
    assert missed(decided) == lost
    assert decided.row.next_tick_ms is not None
    assert decided.row.next_tick_ms > at(late_s)
    assert set(verdicts(decided)) <= {"fired", "missed"}


@pytest.mark.parametrize("columns", [{"catchup": "all"}, {"catchup": "none", "automatic_backfill": True}])
def test_many_that_were_missed_are_started_a_bounded_number_at_a_time_and_each_once(columns: dict[str, Any]) -> None:
    row, runs, most = schedule(**columns), list[float](), 0

    while row.next_fire_ms is not None and row.next_fire_ms <= at(150 * 60):
        decided = decide(row, IDLE, at(150 * 60), encode)
        runs, most, row = runs + started(decided), max(most, len(decided.decisions)), decided.row

    assert runs == [60 * number for number in range(151)]
    assert most == ticks.MAX_TICKS
    assert row.runs == 151


@pytest.mark.parametrize(("catchup", "runs"), [("none", 1), ("latest", 1), ("all", ticks.MAX_TICKS)])
def test_millions_of_missed_ticks_cost_no_more_than_thousands(
    catchup: str, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = 0

    class Counted:
        zone = UTC

        def after(self, time: datetime) -> Iterator[datetime]:
            nonlocal looked_at
            for tick in Cron(SECONDLY).after(time):
                looked_at += 1
                yield tick

    row = schedule(SECONDLY, catchup=catchup)
    monkeypatch.setattr(ticks, "cron_of", lambda row: Counted())
    decided = decide(row, IDLE, at(5_000_000), encode)

    assert len(started(decided)) == runs
    assert looked_at < 2_000
    assert [each[2:] for each in missed(decided)] == (
        [] if catchup == "all" else [(1000, f"{'coalesced' if catchup == 'latest' else 'window'}, and more than 1000")]
    )


def test_what_was_missed_between_two_ends_is_not_told_about_what_was_never_due() -> None:
    row = schedule(HOURLY, since=0, end_at_ms=at(7200), catchup="latest")

    decided = decide(row, IDLE, at(10 * 3600), encode)

    assert started(decided) == [7200]
    assert missed(decided) == [(3600, 3600, 1, "coalesced")]
    assert decided.row.next_tick_ms is None


# -- jitter ------------------------------------------------------------------------------------------------------------


def test_jitter_puts_off_by_as_much_whoever_computes_it_and_never_by_more_than_allowed() -> None:
    rows = [schedule(since=60 * number, jitter_ms=30_000) for number in range(100)]
    others = [schedule(since=60 * number, jitter_ms=30_000, schedule_name="other") for number in range(100)]

    delays = [row.next_fire_ms - row.next_tick_ms for row in rows if row.next_fire_ms and row.next_tick_ms]

    assert rows == [schedule(since=60 * number, jitter_ms=30_000) for number in range(100)]
    assert len(set(delays)) > 90
    assert 0 <= min(delays) < 3_000
    assert 27_000 < max(delays) <= 30_000
    assert [row.next_fire_ms for row in rows] != [row.next_fire_ms for row in others]


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("jitter_s", [0.5, 10, 900])
def test_with_any_jitter_each_tick_is_started_once_in_order_and_none_early_or_missed(
    name: str, jitter_s: float
) -> None:
    """Ticks wait behind one that is put off for long; when it starts, they are not late but in their order."""
    row = schedule(SECONDLY, schedule_name=name, jitter_ms=int(jitter_s * 1000))
    decisions: list[DecisionRow] = []

    while len(decisions) < 1000:
        assert row.next_fire_ms is not None
        now_ms = max([row.next_fire_ms, *(each.decided_at for each in decisions[-1:])])
        decided = decide(row, IDLE, now_ms, encode)
        row, decisions = decided.row, [*decisions, *decided.decisions]

    assert {each.decision for each in decisions} == {"fired"}
    assert [each.scheduled_at for each in decisions] == [at(number) for number in range(len(decisions))]
    assert all(each.decided_at >= each.scheduled_at for each in decisions)


# -- from when to when -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"start_at_ms": at(3600)}, 3600),
        ({"start_at_ms": at(3601)}, 7200),
        ({"start_at_ms": at(-3600)}, 0),
        ({"end_at_ms": at()}, 0),
        ({"end_at_ms": at(-0.001)}, None),
        ({"start_at_ms": at(7200), "end_at_ms": at(3600)}, None),
        ({"max_runs": 3, "runs": 2}, 0),
        ({"max_runs": 3, "runs": 3}, None),
        ({"schedule": "0 0 12 5 1 * 2025"}, None),
    ],
)
def test_the_first_tick_is_within_the_limits_of_the_schedule(columns: dict[str, Any], expected: int | None) -> None:
    row = schedule(**{"cron": columns.pop("schedule", HOURLY)}, **columns)

    assert row.next_tick_ms == (None if expected is None else at(expected))
    assert row.next_fire_ms == row.next_tick_ms


@pytest.mark.parametrize("catchup", ["none", "all"])
def test_no_more_is_started_than_the_schedule_may(catchup: str) -> None:
    row = schedule(SECONDLY, catchup=catchup, max_runs=5, runs=3)

    decided = decide(row, IDLE, at(30), encode)

    assert started(decided) == [0, 1]
    assert decided.row.runs == 5
    assert decided.row.next_fire_ms is None


def test_a_run_that_was_skipped_is_made_up_for_within_max_runs() -> None:
    row = schedule(SECONDLY, overlap="skip", max_runs=2)

    busy = decide(row, BUSY, at(1), encode)
    free = decide(busy.row, IDLE, at(2), encode)
    last = decide(free.row, IDLE, at(3), encode)

    assert [verdicts(each) for each in (busy, free, last)] == [["skipped", "skipped"], ["fired"], ["fired"]]
    assert last.row.next_tick_ms is None


# -- planned anew ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"schedule": "30 * * * *"}, 1800),
        ({"cron_timezone": "Asia/Kathmandu"}, 900),
        ({"cron_timezone": "America/New_York", "schedule": "0 8 * * *"}, 3600),
    ],
)
def test_what_was_edited_by_hand_fires_at_its_new_times_from_now_on(columns: dict[str, Any], expected: int) -> None:
    row = schedule(HOURLY)._replace(**columns)

    decided = decide(row, IDLE, at(1), encode)

    assert verdicts(decided) == []  # the old expression's tick is not one of the new
    assert decided.row.next_tick_ms == at(expected)
    assert replan(decided.row, at(1)) == decided.row


@pytest.mark.parametrize("text", ["2026-01-05T09:30:00+00:00", "2026-01-05T10:30:00+01:00", "2026-01-05 09:30:00"])
def test_a_last_tick_that_was_set_back_is_where_a_backfill_begins(text: str) -> None:
    row = schedule(HOURLY, since=0, last_fired_at="2026-01-05T12:00:00+00:00", automatic_backfill=True)

    replanned = replan(row._replace(last_fired_at=text), at(60))
    decided = decide(replanned, IDLE, at(60), encode)

    assert started(decided) == [-7200, -3600, 0]
    assert decided.row.next_tick_ms == at(3600)


def test_a_last_tick_that_was_set_back_is_no_backfill_unless_that_is_asked_for() -> None:
    row = schedule(HOURLY, since=0, last_fired_at="2026-01-05T12:00:00+00:00")

    replanned = replan(row._replace(last_fired_at="2026-01-05T06:00:00+00:00"), at(600))
    decided = decide(replanned, IDLE, at(600), encode)

    assert started(decided) == []
    assert missed(decided) == [(-5 * 3600, 0, 6, "window")]


def test_a_last_tick_in_the_future_holds_nothing_up() -> None:
    row = schedule(HOURLY)._replace(last_fired_at="2036-01-05T12:00:00+00:00")

    assert replan(row, at(60)).next_tick_ms == at(3600)


def test_what_a_clock_has_planned_that_was_ahead_is_planned_from_the_right_time() -> None:
    row = schedule(since=3600, planned_at=3600, last_fired_at="2026-01-05T13:00:00+00:00")

    replanned = replan(row, at(1))

    assert replanned.next_tick_ms == at(60)
    assert replanned.planned_at == at(1)


# -- what cannot be obeyed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"schedule": "every now and then"},
        {"cron_timezone": "Mars/Olympus"},
        {"last_fired_at": "yesterday"},
    ],
)
def test_a_schedule_that_cannot_be_planned_says_so(columns: dict[str, Any]) -> None:
    row = schedule()._replace(**columns)

    with pytest.raises(ValueError, match=r"\w"):
        replan(row, at(1))
    with pytest.raises(ValueError, match=r"\w"):
        decide(row, IDLE, at(1), encode)


@pytest.mark.parametrize("columns", [{"context": "{"}, {"overlap": "sometimes"}, {"catchup": "tomorrow"}])
def test_a_tick_of_a_schedule_that_cannot_be_obeyed_says_so(columns: dict[str, Any]) -> None:
    row = schedule(**columns)

    with pytest.raises(ValueError, match=r"\w"):
        decide(row, IDLE, at(1), encode)
    with pytest.raises(ValueError, match=r"\w"):  # else it would look healthy until its next tick
        replan(row, at(1))


# -- when a run has ended ----------------------------------------------------------------------------------------------


def waiting(kind: str, tick_s: float, workflow_id: str) -> DecisionRow:
    tick_ms = at(tick_s)
    return DecisionRow("id", "report", kind, tick_ms, tick_ms, 1, "buffered", "overlap", workflow_id, tick_ms)


@pytest.mark.parametrize(
    ("kind", "decision"), [("tick", "fired"), ("backfill", "backfilled"), ("trigger", "triggered")]
)
def test_a_tick_that_has_waited_starts_as_it_would_have(kind: str, decision: str) -> None:
    row = schedule(cron_timezone="Asia/Tokyo", overlap="buffer_all")
    oldest = waiting(kind, -60, "waited")

    decided = look_after(row, Situation(buffered=2, oldest=oldest), at(1), encode)

    [run] = decided.runs
    tick = moment(at(-60)).astimezone(ZoneInfo("Asia/Tokyo"))
    assert run.workflow_uuid == "waited"
    assert json.loads(run.inputs) == [tick.isoformat(), {"to": "all"}]
    assert decided.released == oldest._replace(decision=decision, decided_at=at(1))
    assert decided.row == row


@pytest.mark.parametrize(
    ("status", "situation"),
    [
        ("PAUSED", Situation(buffered=1, oldest=waiting("tick", 0, "waited"))),
        ("PAUSED", Situation(is_failing=True)),
        ("ACTIVE", Situation(running=["before"], buffered=1)),
        ("ACTIVE", IDLE),
    ],
)
def test_otherwise_nothing_starts(status: str, situation: Situation) -> None:
    row = schedule(status=status)

    assert look_after(row, situation, at(1), encode) == Decided(row)


@pytest.mark.parametrize("situation", [Situation(is_failing=True), Situation(running=["before"], is_failing=True)])
def test_a_schedule_that_has_failed_too_often_is_paused_before_anything_starts(situation: Situation) -> None:
    row = schedule(SECONDLY, pause_on_failure=3)

    verdict: Sequence[Decided] = [step(row, situation, at(2), encode) for step in (decide, look_after)]

    for decided in verdict:
        assert verdicts(decided) == ["paused"]
        assert decided.runs == ()
        assert (decided.row.status, decided.row.pause_reason) == ("PAUSED", "3 runs in a row have failed")
        assert decided.row.next_tick_ms == at()  # what becomes of it is decided when the schedule is resumed
