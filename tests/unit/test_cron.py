"""Cron expressions: what is read, what is refused and why, and when they fire around transitions of the clock."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from dbos._cron import Cron, CronError, TimezoneError, parse
from tests.unit import cron_oracle as oracle
from tests.unit.cron_oracle import MINUTE, SECOND, Rule, Transition

HOUR = timedelta(hours=1)
BASE = datetime(2026, 11, 23, 8, 15, 30, tzinfo=UTC)  # a Monday

thorough = settings(deadline=None, derandomize=True, max_examples=150)


def next_times(expression: str, count: int, *, after: datetime = BASE, zone: str | None = None) -> list[datetime]:
    return list(islice(parse(expression, zone).after(after), count))


def shown(times: list[datetime]) -> list[str]:
    """Write times as short as can be told apart here: month, day, time and offset."""
    return [time.isoformat()[5:] for time in times]


# ── what is read ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        # fields
        ("* * * * *", "11-23 08:16:00, 11-23 08:17:00"),
        ("30 9 * * *", "11-23 09:30:00, 11-24 09:30:00"),
        ("  30\t9 \n * * *  ", "11-23 09:30:00, 11-24 09:30:00"),
        ("5,50,10 8 * * *", "11-23 08:50:00, 11-24 08:05:00"),
        ("08 09 * * *", "11-23 09:08:00, 11-24 09:08:00"),
        ("10-12 9 * * *", "11-23 09:10:00, 11-23 09:11:00, 11-23 09:12:00, 11-24 09:10:00"),
        ("*/20 * * * *", "11-23 08:20:00, 11-23 08:40:00, 11-23 09:00:00"),
        ("10-40/15 * * * *", "11-23 08:25:00, 11-23 08:40:00, 11-23 09:10:00"),
        ("5/15 * * * *", "11-23 08:20:00, 11-23 08:35:00, 11-23 08:50:00, 11-23 09:05:00"),
        ("59/1 * * * *", "11-23 08:59:00, 11-23 09:59:00"),
        ("*/61 * * * *", "11-23 09:00:00, 11-23 10:00:00"),
        ("*/100 */100 * * *", "11-24 00:00:00, 11-25 00:00:00"),
        ("0 0 */99999999999999999999 * *", "12-01 00:00:00, 01-01 00:00:00"),
        # seconds in front, a year at the end
        ("* * * * * *", "11-23 08:15:31, 11-23 08:15:32"),
        ("*/20 * * * * *", "11-23 08:15:40, 11-23 08:16:00, 11-23 08:16:20"),
        ("15,30 0 9 * * *", "11-23 09:00:15, 11-23 09:00:30, 11-24 09:00:15"),
        ("0 0 12 ? * MON-FRI", "11-23 12:00:00, 11-24 12:00:00"),
        ("0 0 12 1 1 ? 2029,2031", "2029-01-01 12:00:00, 2031-01-01 12:00:00, the end"),
        ("0 0 12 1 1 ? 2097/2", "2097-01-01 12:00:00, 2099-01-01 12:00:00, the end"),
        ("0 0 0 29 2 * 2090-2099", "2092-02-29 00:00:00, 2096-02-29 00:00:00, the end"),
        ("0 0 0 1 1 * 1970-2026", "the end"),
        ("59 59 23 31 12 * *", "12-31 23:59:59, 2027-12-31 23:59:59"),
        # aliases
        ("@hourly", "11-23 09:00:00, 11-23 10:00:00"),
        (" @Daily ", "11-24 00:00:00, 11-25 00:00:00"),
        ("@midnight", "11-24 00:00:00, 11-25 00:00:00"),
        ("@weekly", "11-29 00:00:00, 12-06 00:00:00"),
        ("@MONTHLY", "12-01 00:00:00, 01-01 00:00:00"),
        ("@yearly", "2027-01-01 00:00:00, 2028-01-01 00:00:00"),
        ("@annually", "2027-01-01 00:00:00, 2028-01-01 00:00:00"),
        # names
        ("0 0 1 jan *", "2027-01-01 00:00:00, 2028-01-01 00:00:00"),
        ("0 0 1 Jan-mAR,12 *", "12-01 00:00:00, 01-01 00:00:00, 02-01 00:00:00, 03-01 00:00:00, 12-01 00:00:00"),
        ("0 0 * * FRI", "11-27 00:00:00, 12-04 00:00:00"),
        ("0 0 * * mon-fri/2", "11-25 00:00:00, 11-27 00:00:00, 11-30 00:00:00"),
        # Sunday is 0 and 7, at the end of a range too
        ("0 0 * * 0", "11-29 00:00:00, 12-06 00:00:00"),
        ("0 0 * * 7", "11-29 00:00:00, 12-06 00:00:00"),
        ("0 0 0 * * 7", "11-29 00:00:00, 12-06 00:00:00"),
        ("0 0 * * sat-sun", "11-28 00:00:00, 11-29 00:00:00, 12-05 00:00:00"),
        ("0 0 * * 5-7", "11-27 00:00:00, 11-28 00:00:00, 11-29 00:00:00, 12-04 00:00:00"),
        ("0 0 * * 6-0", "11-28 00:00:00, 11-29 00:00:00, 12-05 00:00:00"),
        ("0 0 * * 7-2", "11-24 00:00:00, 11-29 00:00:00, 11-30 00:00:00, 12-01 00:00:00, 12-06 00:00:00"),
        ("0 0 * * 7-7", "11-29 00:00:00, 12-06 00:00:00"),
        ("0 0 * * sun-sun", "11-29 00:00:00, 12-06 00:00:00"),
        ("0 0 * * 0-7", "11-24 00:00:00, 11-25 00:00:00"),
        ("0 0 * * 5/2", "11-27 00:00:00, 11-29 00:00:00, 12-04 00:00:00"),
        # the question mark
        ("0 0 ? * 1", "11-30 00:00:00, 12-07 00:00:00"),
        ("0 0 1 * ?", "12-01 00:00:00, 01-01 00:00:00"),
        ("0 0 ? * ?", "11-24 00:00:00, 11-25 00:00:00"),
        # the last day, the last weekday
        ("0 0 L * *", "11-30 00:00:00, 12-31 00:00:00, 01-31 00:00:00, 02-28 00:00:00"),
        ("0 0 1,15,l * *", "11-30 00:00:00, 12-01 00:00:00, 12-15 00:00:00, 12-31 00:00:00"),
        ("0 0 28-L * *", "11-28 00:00:00, 11-29 00:00:00, 11-30 00:00:00, 12-28 00:00:00"),
        ("0 0 27-L/2 * *", "11-27 00:00:00, 11-29 00:00:00, 12-27 00:00:00, 12-29 00:00:00, 12-31 00:00:00"),
        ("0 0 LW 1,5 *", "2027-01-29 00:00:00, 2027-05-31 00:00:00"),
        # the last and the nth day of the week
        ("0 0 * * L5", "11-27 00:00:00, 12-25 00:00:00"),
        ("0 0 * * Lfri", "11-27 00:00:00, 12-25 00:00:00"),
        ("0 0 * * 5L", "11-27 00:00:00, 12-25 00:00:00"),
        ("0 0 * * fril", "11-27 00:00:00, 12-25 00:00:00"),
        ("0 0 * * fri#L", "11-27 00:00:00, 12-25 00:00:00"),
        ("0 0 * * L7,L6", "11-28 00:00:00, 11-29 00:00:00, 12-26 00:00:00, 12-27 00:00:00"),
        ("0 0 * * fri#2", "12-11 00:00:00, 01-08 00:00:00"),
        ("0 0 * * 5#2", "12-11 00:00:00, 01-08 00:00:00"),
        ("0 0 * * 7#1", "12-06 00:00:00, 01-03 00:00:00"),
        ("0 0 * * mon#5", "11-30 00:00:00, 2027-03-29 00:00:00"),
        ("0 0 * * 2,fri#2", "11-24 00:00:00, 12-01 00:00:00, 12-08 00:00:00, 12-11 00:00:00"),
        # a day of the month and one of the week: either
        ("0 0 13 * 5", "11-27 00:00:00, 12-04 00:00:00, 12-11 00:00:00, 12-13 00:00:00"),
        ("0 0 */2 * 1", "11-25 00:00:00, 11-27 00:00:00, 11-29 00:00:00, 11-30 00:00:00, 12-01 00:00:00"),
        ("0 0 13 * */3", "11-25 00:00:00, 11-28 00:00:00, 11-29 00:00:00, 12-02 00:00:00"),
        ("0 0 1-31 * 1", "11-24 00:00:00, 11-25 00:00:00"),
        ("0 0 15 * 0-6", "11-24 00:00:00, 11-25 00:00:00"),
        ("0 0 */1 * 1", "11-24 00:00:00, 11-25 00:00:00"),
        ("0 0 1-31 * *", "11-24 00:00:00, 11-25 00:00:00"),
        ("0 0 L * fri#1", "11-30 00:00:00, 12-04 00:00:00, 12-31 00:00:00"),
        # far ahead
        ("0 0 29 2 *", "2028-02-29 00:00:00, 2032-02-29 00:00:00"),
        ("0 0 29 2 ?", "2028-02-29 00:00:00, 2032-02-29 00:00:00"),
        ("0 0 * 2 tue#5", "2028-02-29 00:00:00, 2056-02-29 00:00:00"),
        ("0 0 31 2,4,5 *", "2027-05-31 00:00:00, 2028-05-31 00:00:00"),
    ],
)
def test_expressions_mean_what_users_of_cron_expect(expression: str, expected: str) -> None:
    wanted = expected.split(", ")
    cron = parse(expression)

    times = list(islice(cron.after(BASE), len(wanted)))

    found = [time.replace(tzinfo=None).isoformat(" ") for time in times]
    if wanted[-1] == "the end":
        found.append("the end")
    assert [time[-len(want) :] for time, want in zip(found, wanted, strict=True)] == wanted
    assert all(time.tzinfo is UTC for time in times)


def test_leap_days_of_each_weekday_are_found() -> None:
    for weekday in range(7):
        found = next_times(f"0 0 * 2 {weekday}#5", 3)

        assert [(time.month, time.day, time.isoweekday() % 7) for time in found] == [(2, 29, weekday)] * 3


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("", "The expression is empty."),
        (" \t\n", "The expression is empty."),
        ("* * * *", "has 4 fields. It needs 5 (minute hour day-of-month month day-of-week), 6 (with second in front)"),
        ("daily", "has 1 field. It needs 5"),
        ("0 0 0 1 1 * 2027 *", "has 8 fields"),
        ("60 * * * *", "The minute field '60': 60 is not between 0 and 59."),
        ("* 24 * * *", "The hour field '24': 24 is not between 0 and 23."),
        ("0 0 0 * *", "The day-of-month field '0': 0 is not between 1 and 31."),
        ("0 0 32 * *", "The day-of-month field '32': 32 is not between 1 and 31."),
        (
            "0 0 0 0 * *",
            "The day-of-month field '0': 0 is not between 1 and 31. (An expression of 6 fields begins with",
        ),
        ("0 0 1 0 *", "The month field '0': 0 is not between 1 and 12, or JAN to DEC."),
        ("0 0 1 13 *", "The month field '13': 13 is not"),
        ("0 0 * * 8", "The day-of-week field '8': 8 is not between 0 and 7 (0 and 7 are Sunday), or SUN to SAT."),
        (
            "60 0 0 * * *",
            "The second field '60': 60 is not between 0 and 59. (An expression of 6 fields begins with sec",
        ),
        ("0 9 * * ? 2027", "The month field '?': '?' stands in day-of-month or day-of-week only. (An expression of 6"),
        ("0 0 0 1 1 * 1969", "The year field '1969': 1969 is not between 1970 and 2099."),
        ("0 0 0 1 1 * 2100", "The year field '2100': 2100 is not between 1970 and 2099."),
        ("99999999999999999999999 * * * *", "is not between 0 and 59"),
        ("*/0 * * * *", "The minute field '*/0': a step of 0 goes nowhere"),
        ("*/000 * * * *", "a step of 0 goes nowhere"),
        ("*/ * * * *", "The minute field '*/': the step '' is not a whole number"),
        ("*/-5 * * * *", "the step '-5' is not a whole number"),
        ("*/5/5 * * * *", "the step '5/5' is not a whole number"),
        ("*/1.5 * * * *", "the step '1.5' is not a whole number"),
        ("/5 * * * *", "'' is not a whole number from 0 to 59"),
        ("-1 * * * *", "The minute field '-1': '-1' is negative."),
        ("1- * * * *", "'' is not a whole number"),
        ("1-2-3 * * * *", "'2-3' is not a whole number"),
        ("*-5 * * * *", "'*' is not a whole number"),
        ("1.5 * * * *", "The minute field '1.5': '1.5' is not a whole number from 0 to 59."),
        ("+5 * * * *", "'+5' is not a whole number"),
        ("** * * * *", "'**' is not a whole number"),
        ("a * * * *", "The minute field 'a': 'A' is not a whole number from 0 to 59."),
        ("0 0 * foo *", "The month field 'foo': 'FOO' is not a whole number from 1 to 12, or JAN to DEC."),
        ("0 0 * january *", "The month field 'january': 'JANUARY' is not"),
        ("0 0 * * mo", "The day-of-week field 'mo': 'MO' is not a whole number from 0 to 7, or SUN to SAT."),
        ("0 0 mon * *", "The day-of-month field 'mon': 'MON' is not a whole number from 1 to 31."),
        ("1,2, * * * *", "The minute field '1,2,': a value is missing beside a comma."),
        (",1 * * * *", "a value is missing beside a comma"),
        ("1,,2 * * * *", "a value is missing beside a comma"),
        ("* 22-2 * * *", "The hour field '22-2': the range '22-2' runs backwards; write '22-23,0-2'."),
        ("* 23-0 * * *", "write '23,0'."),
        ("0 0 * nov-feb *", "write 'NOV-DEC,JAN-FEB'."),
        ("0 0 * * fri-mon", "write 'FRI-SAT,SUN-MON'."),
        ("0 0 * * 5-1", "write '5-6,0-1'."),
        ("0 0 * * sat-1", "write 'SAT,SUN-1'."),
        ("50-10 * * * *", "write '50-59,0-10'."),
        ("? * * * *", "The minute field '?': '?' stands in day-of-month or day-of-week only."),
        ("0 0 ?/2 * *", "'?' stands alone"),
        ("0 0 1,? * *", "'?' stands alone"),
        ("0 0 15W * *", "the nearest weekday, '15W', is not known here; 'LW', the last weekday of the month, is"),
        ("0 0 L-3 * *", "'L-3' would count from the end; 'L' is the last day, and '28-L' the last ones"),
        ("0 0 L/2 * *", "'L/2' would count from the end"),
        ("0 0 * * L", "'L' needs a day, as in 'L5' for the last Friday; the month's last day is L in day-of-month"),
        ("0 0 * L *", "The month field 'L'"),
        ("L * * * *", "The minute field 'L'"),
        ("0 0 * * L9", "9 is not between 0 and 7"),
        ("0 0 * * 1-5L", "'1-5L' takes the nth or last of several days"),
        ("0 0 * * mon-fri#2", "'MON-FRI#2' takes the nth or last of several days"),
        ("0 0 * * fri#0", "behind '#' stands 1 to 5, or L for the last, not '0'"),
        ("0 0 * * fri#6", "behind '#' stands 1 to 5, or L for the last, not '6'"),
        ("0 0 * * fri#", "behind '#' stands 1 to 5, or L for the last, not ''"),
        ("0 0 * * #2", "'' is not a whole number from 0 to 7"),
        ("0 0 1#2 * *", "The day-of-month field '1#2'"),
        ("R * * * *", "'R' would be drawn anew in each process"),
        ("R(0-5) * * * *", "would be drawn anew in each process"),
        ("0 R/2 * * *", "The hour field 'R/2': 'R/2' would be drawn anew in each process"),
        ("H H * * *", "'H' would be drawn anew in each process"),
        ("H(0-29)/10 * * * *", "would be drawn anew in each process"),
        ("@reboot", "'@reboot' is no time. Start the workflow after DBOS.launch() instead."),
        ("@every 5m", "'@every' counts from a start, which cron has not; every five minutes is '*/5 * * * *'."),
        ("@every", "'@every' counts from a start"),
        (
            "@fortnightly",
            "'@fortnightly' is not an alias; these are, each by itself: @hourly, @daily, @midnight, @weekly",
        ),
        ("@daily *", "'@daily *' is not an alias"),
        (
            "TZ=Europe/Berlin 0 9 * * *",
            "'TZ=Europe/Berlin': a time zone is given beside the expression, as cron_timezone",
        ),
        ("CRON_TZ=UTC 0 9 * * *", "a time zone is given beside the expression"),
        ("0 0 ² * *", "The expression contains '²'."),
        ("0 0\0 * * *", "The expression contains '\\x00'."),
        ("0 0 * * ſun", "The expression contains 'ſ'."),
        ("1," * 600 + "1 * * * *", "has 1209 characters; at most 1000 are read"),
        ("0 0 31 2 *", "The expression never matches: there is no date with day-of-month '31', month '2'."),
        ("0 0 30-31 feb ?", "never matches: there is no date with day-of-month '30-31', month 'feb'."),
        ("0 0 31 4,6,9,11 *", "The expression never matches"),
        ("0 0 0 29 2 * 2027", "there is no date with day-of-month '29', month '2', year '2027'."),
        ("0 0 0 29 2 * 2025-2027", "The expression never matches"),
        ("0 0 0 ? 2 mon#5 2027-2043", "never matches: there is no date with day-of-week 'mon#5', month '2', year"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_reason(expression: str, problem: str) -> None:
    with pytest.raises(CronError) as refusal:
        parse(expression)

    assert problem in str(refusal.value)
    assert str(refusal.value).endswith((".", ".)"))


@pytest.mark.parametrize("expression", [None, 5, b"* * * * *", ["* * * * *"]])
def test_what_is_not_a_string_is_refused(expression: Any) -> None:
    for read in (parse, Cron):
        with pytest.raises(CronError, match=r"A cron expression is a string, not (NoneType|int|bytes|list)"):
            read(expression)


@pytest.mark.parametrize(
    "timezone",
    ["", "Mars/Olympus", "America", "../UTC", "/etc/localtime", "localtime", "US/ Eastern", "UTC\0", 5, ["UTC"]],
)
def test_an_unknown_zone_is_refused(timezone: Any) -> None:
    for read in (parse, Cron):
        with pytest.raises(TimezoneError) as refusal:
            read("* * * * *", timezone)

        assert str(refusal.value) == f"Invalid timezone: '{timezone}'"


@thorough
@given(st.text(st.sampled_from("0123456789*/-,?LW#@ \tabcFRISUNJHTZ=.²\0")) | st.text())
def test_any_text_is_read_or_refused(expression: str) -> None:
    try:
        cron = parse(expression)
    except CronError:
        return

    assert all(time > BASE for time in islice(cron.after(BASE), 2))
    assert cron.description()


def test_one_expression_in_one_zone_is_read_once() -> None:
    assert parse("5 4 * * *", "Asia/Tokyo") is parse("5 4 * * *", "Asia/Tokyo")
    assert parse("5 4 * * *", "Asia/Tokyo") != parse("5 4 * * *")
    assert Cron("5 4 * * *", "Asia/Tokyo") == parse("5 4 * * *", "Asia/Tokyo")
    assert len({Cron("5 4 * * *"), Cron("5 4 * * *"), Cron("5 4 * * *", "UTC")}) == 2


def test_a_cron_keeps_what_it_was_made_of() -> None:
    cron = parse(" 5  4 * * Mon", "Asia/Tokyo")

    assert (cron.expression, cron.timezone, cron.zone) == (" 5  4 * * Mon", "Asia/Tokyo", ZoneInfo("Asia/Tokyo"))
    assert parse("5 4 * * *").zone is UTC


# ── iterating ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_fire_times_lie_strictly_after_the_moment_and_have_no_microseconds() -> None:
    on_time = datetime(2026, 11, 23, 9, 0, 0, tzinfo=UTC)
    instant_before = on_time - timedelta(microseconds=1)

    assert shown(next_times("0 9 * * *", 1, after=on_time)) == ["11-24T09:00:00+00:00"]
    assert shown(next_times("0 9 * * *", 1, after=instant_before)) == ["11-23T09:00:00+00:00"]
    assert shown(next_times("* * * * * *", 2, after=instant_before)) == ["11-23T09:00:00+00:00", "11-23T09:00:01+00:00"]


def test_the_moment_may_be_in_any_zone_but_must_be_in_one() -> None:
    tokyo = BASE.astimezone(ZoneInfo("Asia/Tokyo"))

    assert next_times("0 * * * *", 3, after=tokyo) == next_times("0 * * * *", 3)
    with pytest.raises(ValueError, match="an aware moment"):
        parse("0 * * * *").after(datetime(2026, 1, 1))


def test_times_that_a_gap_in_the_own_zone_swallows_are_moments_too() -> None:
    new_york = ZoneInfo("America/New_York")
    swallowed = datetime(2026, 3, 8, 2, 30, tzinfo=new_york)  # the instant of 03:30

    assert shown(next_times("*/15 * * * *", 1, after=swallowed, zone="America/New_York")) == ["03-08T03:45:00-04:00"]


def test_iterations_of_one_cron_do_not_disturb_each_other() -> None:
    cron = parse("0 * * * *")
    one, other = cron.after(BASE), cron.after(BASE + timedelta(days=40))

    pairs = list(islice(zip(one, other, strict=True), 48))

    assert [early for early, _ in pairs] == next_times("0 * * * *", 48)
    assert [late for _, late in pairs] == next_times("0 * * * *", 48, after=BASE + timedelta(days=40))


def test_an_iteration_ends_with_the_calendar() -> None:
    end = datetime(9999, 12, 31, 22, 30, tzinfo=UTC)

    assert len(list(parse("0 * * * *").after(end))) == 1
    assert list(parse("0 * * * *", "Asia/Tokyo").after(end)) == []


# ── daylight saving ───────────────────────────────────────────────────────────────────────────────────────────────────

NEW_YORK, LONDON, SYDNEY = "America/New_York", "Europe/London", "Australia/Sydney"

# A zone and a day of it; an expression, and when it fires from that day's first second on.
TRANSITIONS = [
    # New York, forward from 02:00 to 03:00 on 8 March
    (NEW_YORK, "2026-03-07", "30 2 * * *", "07T02:30-05 08T03:00-04 09T02:30-04 10T02:30-04"),
    (NEW_YORK, "2026-03-07", "0 2 * * *", "07T02:00-05 08T03:00-04 09T02:00-04 10T02:00-04"),
    (NEW_YORK, "2026-03-07", "30 1 * * *", "07T01:30-05 08T01:30-05 09T01:30-04 10T01:30-04"),
    (NEW_YORK, "2026-03-07", "0 3 * * *", "07T03:00-05 08T03:00-04 09T03:00-04 10T03:00-04"),
    (NEW_YORK, "2026-03-07", "0 0 * * *", "07T00:00-05 08T00:00-05 09T00:00-04 10T00:00-04"),
    (NEW_YORK, "2026-03-07", "0,30 2 * * *", "07T02:00-05 07T02:30-05 08T03:00-04 09T02:00-04 09T02:30-04"),
    (NEW_YORK, "2026-03-07", "0 2,3 * * *", "07T02:00-05 07T03:00-05 08T03:00-04 09T02:00-04 09T03:00-04"),
    (NEW_YORK, "2026-03-07", "*/30 2 * * *", "07T02:00-05 07T02:30-05 08T03:00-04 09T02:00-04 09T02:30-04"),
    (NEW_YORK, "2026-03-07", "0-59 2 8 3 *", "08T03:00-04 2027-03-08T02:00-05"),
    (NEW_YORK, "2026-03-08", "0 * * * *", "08T00:00-05 08T01:00-05 08T03:00-04 08T04:00-04"),
    (NEW_YORK, "2026-03-08", "15 0-23 * * *", "08T00:15-05 08T01:15-05 08T03:15-04 08T04:15-04"),
    (NEW_YORK, "2026-03-08", "*/30 * * * *", "08T00:00-05 08T00:30-05 08T01:00-05 08T01:30-05 08T03:00-04 08T03:30-04"),
    (NEW_YORK, "2026-03-08", "0 */2 * * *", "08T00:00-05 08T04:00-04 08T06:00-04"),
    (NEW_YORK, "2026-03-08", "0 */24 * * *", "08T00:00-05 09T00:00-04"),
    (NEW_YORK, "2026-03-07", "30 2 * * 0", "08T03:00-04 15T02:30-04"),
    (NEW_YORK, "2026-03-07", "30 2 * * 1", "09T02:30-04 16T02:30-04"),
    (NEW_YORK, "2026-03-07", "20 30 2 * * *", "07T02:30:20-05 08T03:00-04 09T02:30:20-04"),
    (NEW_YORK, "2026-03-07", "*/30 30 2 * * *", "07T02:30-05 07T02:30:30-05 08T03:00-04 09T02:30-04 09T02:30:30-04"),
    (NEW_YORK, "2026-03-08", "15 30 * * * *", "08T00:30:15-05 08T01:30:15-05 08T03:30:15-04"),
    # New York, back from 02:00 to 01:00 on 1 November
    (NEW_YORK, "2026-10-31", "30 1 * * *", "31T01:30-04 01T01:30-04 02T01:30-05 03T01:30-05"),
    (NEW_YORK, "2026-10-31", "0 1 * * *", "31T01:00-04 01T01:00-04 02T01:00-05 03T01:00-05"),
    (NEW_YORK, "2026-10-31", "0 2 * * *", "31T02:00-04 01T02:00-05 02T02:00-05 03T02:00-05"),
    (NEW_YORK, "2026-10-31", "30 2 * * *", "31T02:30-04 01T02:30-05 02T02:30-05 03T02:30-05"),
    (NEW_YORK, "2026-10-31", "0 0 * * *", "31T00:00-04 01T00:00-04 02T00:00-05 03T00:00-05"),
    (NEW_YORK, "2026-11-01", "0 * * * *", "01T00:00-04 01T01:00-04 01T01:00-05 01T02:00-05 01T03:00-05"),
    (NEW_YORK, "2026-11-01", "15 0-23 * * *", "01T00:15-04 01T01:15-04 01T01:15-05 01T02:15-05"),
    (NEW_YORK, "2026-11-01", "*/30 * * * *", "01T00:00-04 01T00:30-04 01T01:00-04 01T01:30-04 01T01:00-05 01T01:30-05"),
    (NEW_YORK, "2026-10-31", "*/30 1 * * 0", "01T01:00-04 01T01:30-04 01T01:00-05 01T01:30-05 08T01:00-05 08T01:30-05"),
    (NEW_YORK, "2026-11-01", "0,30 1 * * *", "01T01:00-04 01T01:30-04 02T01:00-05 02T01:30-05"),
    (NEW_YORK, "2026-11-01", "0 0-4 * * *", "01T00:00-04 01T01:00-04 01T02:00-05 01T03:00-05 01T04:00-05 02T00:00-05"),
    (NEW_YORK, "2026-11-01", "0 */2 * * *", "01T00:00-04 01T02:00-05 01T04:00-05"),
    (NEW_YORK, "2026-10-31", "20 30 1 * * *", "31T01:30:20-04 01T01:30:20-04 02T01:30:20-05"),
    (NEW_YORK, "2026-11-01", "*/30 30 1 * * *", "01T01:30-04 01T01:30:30-04 02T01:30-05 02T01:30:30-05"),
    (NEW_YORK, "2026-11-01", "15 30 * * * *", "01T00:30:15-04 01T01:30:15-04 01T01:30:15-05 01T02:30:15-05"),
    (NEW_YORK, "2026-11-01", "30,59 59 * * * *", "01T00:59:30-04 01T00:59:59-04 01T01:59:30-04 01T01:59:59-04"
     " 01T01:59:30-05 01T01:59:59-05 01T02:59:30-05"),
    (NEW_YORK, "2026-11-01", "*/30 1 * 11 sun#1", "01T01:00-04 01T01:30-04 01T01:00-05 01T01:30-05"
     " 2027-11-07T01:00-04"),
    # London, forward from 01:00 to 02:00 on 29 March; back from 02:00 to 01:00 on 25 October
    (LONDON, "2026-03-28", "30 1 * * *", "28T01:30+00 29T02:00+01 30T01:30+01 31T01:30+01"),
    (LONDON, "2026-03-28", "0 2 * * *", "28T02:00+00 29T02:00+01 30T02:00+01 31T02:00+01"),
    (LONDON, "2026-03-29", "0 * * * *", "29T00:00+00 29T02:00+01 29T03:00+01"),
    (LONDON, "2026-03-29", "*/30 * * * *", "29T00:00+00 29T00:30+00 29T02:00+01 29T02:30+01"),
    (LONDON, "2026-10-24", "30 1 * * *", "24T01:30+01 25T01:30+01 26T01:30+00 27T01:30+00"),
    (LONDON, "2026-10-24", "0 2 * * *", "24T02:00+01 25T02:00+00 26T02:00+00 27T02:00+00"),
    (LONDON, "2026-10-25", "0 * * * *", "25T00:00+01 25T01:00+01 25T01:00+00 25T02:00+00"),
    (LONDON, "2026-10-25", "*/30 * * * *", "25T00:00+01 25T00:30+01 25T01:00+01 25T01:30+01 25T01:00+00 25T01:30+00"),
    # Sydney, back from 03:00 to 02:00 on 5 April; forward from 02:00 to 03:00 on 4 October
    (SYDNEY, "2026-04-04", "0 2 * * *", "04T02:00+11 05T02:00+11 06T02:00+10 07T02:00+10"),
    (SYDNEY, "2026-04-04", "30 1 * * *", "04T01:30+11 05T01:30+11 06T01:30+10 07T01:30+10"),
    (SYDNEY, "2026-04-04", "0 3 * * *", "04T03:00+11 05T03:00+10 06T03:00+10 07T03:00+10"),
    (SYDNEY, "2026-04-05", "0 * * * *", "05T00:00+11 05T01:00+11 05T02:00+11 05T02:00+10 05T03:00+10"),
    (SYDNEY, "2026-04-05", "*/30 2 * * *", "05T02:00+11 05T02:30+11 05T02:00+10 05T02:30+10 06T02:00+10"),
    (SYDNEY, "2026-10-03", "0 2 * * *", "03T02:00+10 04T03:00+11 05T02:00+11 06T02:00+11"),
    (SYDNEY, "2026-10-03", "30 1 * * *", "03T01:30+10 04T01:30+10 05T01:30+11 06T01:30+11"),
    (SYDNEY, "2026-10-04", "0 * * * *", "04T00:00+10 04T01:00+10 04T03:00+11 04T04:00+11"),
    (SYDNEY, "2026-10-04", "*/30 * * * *", "04T00:00+10 04T00:30+10 04T01:00+10 04T01:30+10 04T03:00+11"),
    # Half an hour, two hours, midnight, a whole day, seconds
    ("Australia/Lord_Howe", "2026-10-03", "15 2 * * *", "03T02:15+10:30 04T02:30+11 05T02:15+11"),
    ("Australia/Lord_Howe", "2026-04-05", "*/15 * 5 4 *", "05T00:00+11 05T00:15+11 05T00:30+11 05T00:45+11 05T01:00+11"
     " 05T01:15+11 05T01:30+11 05T01:45+11 05T01:30+10:30 05T01:45+10:30 05T02:00+10:30"),
    ("Antarctica/Troll", "2026-03-28", "30 1 * * *", "28T01:30+00 29T03:00+02 30T01:30+02"),
    ("Antarctica/Troll", "2026-10-25", "0 * * * *", "25T00:00+02 25T01:00+02 25T02:00+02 25T01:00+00 25T02:00+00"),
    ("America/Havana", "2026-03-07", "0 0 * * *", "07T00:00-05 08T01:00-04 09T00:00-04"),
    ("America/Scoresbysund", "2026-03-28", "45 23 * * 6", "29T00:00-01 04T23:45-01"),
    ("Pacific/Apia", "2011-12-29", "0 9 * * *", "29T09:00-10 31T09:00+14 01T09:00+14"),
    ("Pacific/Apia", "2011-12-29", "0 0 * * *", "29T00:00-10 31T00:00+14 01T00:00+14"),
    ("Pacific/Apia", "2011-12-29", "0 */12 * * *", "29T00:00-10 29T12:00-10 31T00:00+14 31T12:00+14"),
    ("Africa/Monrovia", "1972-01-06", "20 0 * * *", "06T00:20-00:44:30 07T00:44:30+00 08T00:20+00"),
]  # fmt: skip


@pytest.mark.parametrize(("zone", "day", "expression", "expected"), TRANSITIONS)
def test_jobs_fire_as_they_should_around_transitions(zone: str, day: str, expression: str, expected: str) -> None:
    wanted = expected.split()
    eve = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)) - SECOND

    times = next_times(expression, len(wanted), after=eve, zone=zone)

    assert [_short(time) for time in times] == wanted


def _short(time: datetime) -> str:
    label = f"{time:%dT%H:%M:%S}".removesuffix(":00") if time.year < 2027 else f"{time:%Y-%m-%dT%H:%M}"
    offset = time.isoformat()[19:]
    return label + (offset.removesuffix(":00") if offset.count(":") == 1 else offset)


def test_the_two_instants_of_a_repeated_hour_have_texts_of_their_own() -> None:
    midnight = datetime(2026, 11, 1, 4, 0, 0, tzinfo=UTC)

    times = next_times("*/30 * * * *", 8, after=midnight, zone=NEW_YORK)

    assert shown(times[1:5]) == [
        "11-01T01:00:00-04:00",
        "11-01T01:30:00-04:00",
        "11-01T01:00:00-05:00",
        "11-01T01:30:00-05:00",
    ]
    assert [time.fold for time in times[1:5]] == [0, 0, 1, 1]
    assert [datetime.fromisoformat(time.isoformat()).astimezone(UTC) for time in times] == [
        midnight + count * 30 * MINUTE for count in range(1, 9)
    ]


def test_an_hourly_job_runs_every_real_hour_and_a_daily_one_every_local_day_of_the_year() -> None:
    for zone in (NEW_YORK, LONDON, SYDNEY):
        start = datetime(2026, 1, 1, tzinfo=ZoneInfo(zone)) - SECOND

        hourly = next_times("0 * * * *", 24 * 365, after=start, zone=zone)
        assert {late.astimezone(UTC) - early.astimezone(UTC) for early, late in pairwise(hourly)} == {HOUR}

        for expression in ("0 0 * * *", "30 1 * * *", "0 2 * * *", "30 2 * * *", "59 23 * * *"):
            daily = next_times(expression, 365, after=start, zone=zone)
            assert len({time.date() for time in daily}) == 365, expression
            assert daily[-1].year == 2026


# ── properties ────────────────────────────────────────────────────────────────────────────────────────────────────────


def in_cronsims_words(rule: Rule) -> str:
    text = rule.text.upper().replace("20-L", "20-31").replace("LSUN", "0L").replace("SAT-SUN", "6-7").replace("?", "*")
    return re.sub(r"\b(\d+)-\1/\d+", r"\1", text)  # it reads 5-5/10 as 5-59/10


places = st.sampled_from(oracle.ODD) | st.deferred(lambda: st.sampled_from(oracle.everywhere()))


def fired(rule: Rule, zone: str | None, start: datetime, end: datetime) -> list[datetime]:
    """Return the fire times between two moments, checked for what must always hold."""
    times = []
    for time in parse(rule.text, zone).after(start):
        if time.astimezone(UTC) >= end:
            break
        times.append(time)
    instants = [time.astimezone(UTC) for time in times]
    assert instants == sorted(set(instants))
    assert len({time.isoformat() for time in times}) == len(times)
    assert all(time.tzinfo is parse(rule.text, zone).zone and not time.microsecond for time in times)
    # What a time is called is what the clock shows at that instant.
    assert all(
        instant.astimezone(time.tzinfo).isoformat() == time.isoformat()
        for instant, time in zip(instants, times, strict=True)
    )
    return instants


@settings(thorough, max_examples=100)
@given(places, oracle.five_fields, st.integers(-30 * 60 * 60, 30 * 60 * 60))
def test_minutes_around_transitions_are_those_of_a_watched_clock(place: Transition, rule: Rule, offset_s: int) -> None:
    start, end = place.instant - timedelta(hours=36), place.instant + timedelta(hours=36)
    base = place.instant + offset_s * SECOND

    expected = oracle.fires(rule, place.zone, start, end, MINUTE)

    assert fired(rule, place.zone, base, end) == [instant for instant in expected if instant > base], rule.text


ON_THE_SECOND = [
    *(each for each in oracle.ODD if each.zone in ("Australia/Lord_Howe", "Europe/Dublin", "Pacific/Chatham")),
    oracle.at("Africa/Monrovia", "1972-01-07T00:44:30", 44.5),
    oracle.at("Europe/Amsterdam", "1937-05-22T01:40:28", 60),
    oracle.at("Europe/Amsterdam", "1936-10-04T01:40:28", -60),
    oracle.at("America/New_York", "1883-11-18T17:00:00", -3 - 58 / 60),
]


@settings(thorough, max_examples=40)
@given(st.sampled_from(ON_THE_SECOND), oracle.six_fields, st.integers(-80 * 60, 80 * 60))
def test_seconds_around_transitions_are_those_of_a_watched_clock(place: Transition, rule: Rule, offset_s: int) -> None:
    start, end = place.instant - 80 * MINUTE, place.instant + 80 * MINUTE
    base = place.instant + offset_s * SECOND

    expected = oracle.fires(rule, place.zone, start, end, SECOND)

    assert fired(rule, place.zone, base, end) == [instant for instant in expected if instant > base], rule.text


def test_every_zone_fires_as_a_watched_clock_does() -> None:
    part, always = oracle.Part, frozenset(range(24))
    half_hourly = Rule(None, part("*/30", frozenset({0, 30}), True), part("*", always, True), oracle.every_day)
    at_night = Rule(None, part("30", frozenset({30})), part("0-3", frozenset(range(4))), oracle.every_day)

    for place in oracle.everywhere():
        start, end = place.instant - 2 * HOUR, place.instant + 2 * HOUR
        for rule in (half_hourly, at_night):
            assert fired(rule, place.zone, start, end) == oracle.fires(rule, place.zone, start, end, MINUTE), place


@thorough
@given(places, oracle.five_fields | oracle.six_fields, st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_an_iteration_does_not_depend_on_where_it_began(
    place: Transition, rule: Rule, offset_s: int, earlier_ms: int
) -> None:
    base = place.instant + offset_s / 10_000 * HOUR
    cron = parse(rule.text, place.zone)

    from_base = list(islice(cron.after(base), 6))

    earlier = (time for time in cron.after(base - timedelta(milliseconds=earlier_ms)) if time.astimezone(UTC) > base)
    assert list(islice(earlier, 6)) == from_base


@thorough
@given(oracle.any_rule, st.datetimes(datetime(1980, 1, 1), datetime(2080, 1, 1)))
def test_dates_and_times_are_those_of_cronsim(rule: Rule, moment: datetime) -> None:
    day, _, weekday = rule.days.text.split()
    if day.startswith("*/") or weekday.startswith("*/"):
        return  # Debian asks for both; existing schedules mean either

    expected = list(islice(CronSim(in_cronsims_words(rule), moment), 5))

    found = next_times(rule.text, 5, after=moment.replace(tzinfo=UTC))

    assert [time.replace(tzinfo=None) for time in found] == expected, rule.text


@thorough
@given(oracle.any_rule, st.datetimes(datetime(1980, 1, 1), datetime(2080, 1, 1)))
def test_dates_and_times_match_their_expression_and_none_is_left_out(rule: Rule, moment: datetime) -> None:
    base = moment.replace(tzinfo=UTC)

    found = next_times(rule.text, 3, after=base)

    assert all(rule.matches(time) for time in found), rule.text
    if found[0] - base > timedelta(days=1):
        skipped = (base + timedelta(days=count) for count in range(1, (found[0] - base).days))
        assert not any(rule.days.holds(day.date()) for day in skipped), rule.text
    else:
        step = SECOND if rule.second else MINUTE
        instant = base.replace(second=0 if step is MINUTE else base.second, microsecond=0) + step
        while instant < found[0] and instant < base + 2_000 * step:
            assert not rule.matches(instant), rule.text
            instant += step


whole_hours = st.sampled_from([NEW_YORK, LONDON, SYDNEY]).flatmap(
    lambda zone: st.sampled_from(list(oracle.transitions(zone, range(2025, 2028))))
)


@settings(thorough, max_examples=60)
@given(whole_hours, oracle.five_fields)
def test_transitions_of_whole_hours_are_those_of_cronsim(place: Transition, rule: Rule) -> None:
    if "*/" in rule.days.text:
        return  # Debian asks for both; existing schedules mean either
    if rule.minute.is_wild and not rule.hour.is_wild:
        return  # in a gap Debian skips the day
    if any(part.is_wild != part.text.startswith("*") for part in (rule.minute, rule.hour)):
        return  # "0-59" and "*/100": Debian looks at the star, not at the values
    start, end = place.instant - timedelta(hours=30), place.instant + timedelta(hours=30)

    # At one instant cronsim may fire more than once, for all that a gap swallowed.
    expected = []
    for time in CronSim(in_cronsims_words(rule), start.astimezone(ZoneInfo(place.zone))):
        if time.astimezone(UTC) >= end:
            break
        if time.astimezone(UTC) not in expected:
            expected.append(time.astimezone(UTC))

    assert fired(rule, place.zone, start, end) == expected, rule.text


# ── descriptions ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("expression", "description"),
    [
        ("* * * * *", "Every minute"),
        ("*/5 9-17 * * mon-fri", "Every fifth minute from 09:00 through 17:59 on Monday through Friday"),
        ("@hourly", "At the start of every hour"),
        ("@daily", "At 00:00 every day"),
        ("30 9 * * *", "At 09:30 every day"),
        ("0 0 28-L * *", "At 00:00 on every day of month from 28 through 31"),
        ("0 0 1,15,L * *", "At 00:00 on the first, the 15th, and the last day of month"),
        ("0 0 L * *", "At 00:00 on the last day of every month"),
        ("0 0 LW 3 *", "At 00:00 on the last weekday of March"),
        ("0 0 21,22,23,11 * *", "At 00:00 on the 21st, the 22nd, the 23rd, and the 11th day of month"),
        ("0 0 31 * *", "At 00:00 on the 31st day of every month"),
        ("*/21 * * * *", "Every 21st minute of every hour"),
        ("0 0 * * Lfri", "At 00:00 on the last Friday of the month"),
        ("0 0 * * 5#2", "At 00:00 on the second Friday of the month"),
        ("0 0 */2 * 1", "At 00:00 on every second day of month and on Monday"),
        ("0 0 1-31 * 1", "At 00:00 every day"),
        ("0 0 * * sat-sun", "At 00:00 on Saturday and Sunday"),
        ("* * * * * *", "Every second"),
        ("*/10 * * * * *", "Every 10th second of every minute"),
        ("15 30 9 * * ?", "At 09:30:15 every day"),
        ("0 0 12 1 1 ? 2027", "At 12:00 on January 1, in 2027"),
        ("0 0 12 1 1 ? 2027,2030", "At 12:00 on January 1, in 2027 and in 2030"),
        ("0 0 12 1 1 ? 2027-2030", "At 12:00 on January 1, from 2027 through 2030"),
        ("0 0 12 1 1 ? 2027-2031/2", "At 12:00 on January 1, every 2 years from 2027 through 2031"),
        ("0 0 12 1 1 ? *", "At 12:00 on January 1"),
    ],
)
def test_an_expression_is_described_in_english(expression: str, description: str) -> None:
    assert parse(expression).description() == description
