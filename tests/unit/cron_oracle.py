"""When a cron expression should fire, found by watching a clock on the wall: slow, and plain enough to be believed.

Nothing here is shared with the library. A rule is made together with its text, so no grammar is read, and the walk
looks at every step of real time: what the clock shows, and the furthest it has ever shown.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from hypothesis import strategies as st

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)

# ── rules ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Part:
    """One field: its text and what that means."""

    text: str
    values: frozenset[int]
    is_wild: bool = False


@dataclass(frozen=True)
class Days:
    """The three fields of a date: their text and what they mean."""

    text: str
    holds: Callable[[date], bool]

    def __repr__(self) -> str:
        return f"Days({self.text!r})"


@dataclass(frozen=True)
class Rule:
    second: Part | None
    minute: Part
    hour: Part
    days: Days

    @property
    def text(self) -> str:
        fields = [self.minute.text, self.hour.text, self.days.text]
        return " ".join([self.second.text, *fields] if self.second else fields)

    def matches(self, wall: datetime) -> bool:
        seconds = self.second.values if self.second else (0,)
        return (
            wall.minute in self.minute.values
            and wall.hour in self.hour.values
            and wall.second in seconds
            and self.days.holds(wall.date())
        )


def parts(low: int, high: int, likely: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Part]:
    """Fields of a clock time. Steps, ranges and lists name particular times unless they come to every value."""
    value = st.integers(low, high) if likely is None else likely | st.integers(low, high)
    steps = st.sampled_from([1, 2, 3, 5, 6, 10, 15, 20, 30, 45, 100])
    spans = st.tuples(value, value).map(sorted)

    def part(text: str, values: range | frozenset[int]) -> Part:
        chosen = frozenset(values)
        is_complete = chosen == frozenset(range(low, high + 1))
        return Part(text, chosen, is_complete or (text.startswith("*") and len(chosen) > 1))

    return st.one_of(
        st.just(part("*", range(low, high + 1))),
        value.map(lambda one: part(str(one), range(one, one + 1))),
        value.map(lambda one: part(str(one), range(one, one + 1))),
        st.frozensets(value, min_size=1, max_size=3).map(lambda some: part(",".join(map(str, sorted(some))), some)),
        steps.map(lambda step: part(f"*/{step}", range(low, high + 1, step))),
        st.builds(lambda one, step: part(f"{one}/{step}", range(one, high + 1, step)), value, steps),
        spans.map(lambda ends: part(f"{ends[0]}-{ends[1]}", range(ends[0], ends[1] + 1))),
        st.builds(
            lambda ends, step: part(f"{ends[0]}-{ends[1]}/{step}", range(ends[0], ends[1] + 1, step)), spans, steps
        ),
    )


def is_last(day: date) -> bool:
    return day.day == calendar.monthrange(day.year, day.month)[1]


def is_last_weekday(day: date) -> bool:
    rest = [day + timedelta(days=later) for later in range(1, 4)]  # Sunday and Saturday may follow
    return day.isoweekday() <= 5 and all(other.month != day.month or other.isoweekday() > 5 for other in rest)


def cron_weekday(day: date) -> int:
    return day.isoweekday() % 7


DAYS_OF_MONTH: dict[str, Callable[[date], bool]] = {
    "1": lambda day: day.day == 1,
    "13,15": lambda day: day.day in (13, 15),
    "31": lambda day: day.day == 31,
    "20-L": lambda day: day.day >= 20,
    "L": is_last,
    "1,L": lambda day: day.day == 1 or is_last(day),
    "lw": is_last_weekday,
    "*/2": lambda day: day.day % 2 == 1,
    "5/10": lambda day: day.day in (5, 15, 25),
}

DAYS_OF_WEEK: dict[str, Callable[[date], bool]] = {
    "0": lambda day: cron_weekday(day) == 0,
    "7": lambda day: cron_weekday(day) == 0,
    "mon-Fri": lambda day: 1 <= cron_weekday(day) <= 5,
    "sat-sun": lambda day: cron_weekday(day) in (6, 0),
    "5-7": lambda day: cron_weekday(day) in (5, 6, 0),
    "*/2": lambda day: cron_weekday(day) in (0, 2, 4, 6),
    "sun#2": lambda day: cron_weekday(day) == 0 and 8 <= day.day <= 14,
    "0L": lambda day: cron_weekday(day) == 0 and (day + timedelta(days=7)).month != day.month,
    "lsun": lambda day: cron_weekday(day) == 0 and (day + timedelta(days=7)).month != day.month,
    "2#5,4": lambda day: (cron_weekday(day) == 2 and day.day > 28) or cron_weekday(day) == 4,
}

MONTHS = {"*": range(1, 13), "3,10": (3, 10), "mar-nov": range(3, 12), "*/2": (1, 3, 5, 7, 9, 11)}


def _days(day: str | None, month: str, weekday: str | None, free: str) -> Days:
    def holds(date: date) -> bool:
        restrictions = []
        if day is not None:
            restrictions.append(DAYS_OF_MONTH[day](date))
        if weekday is not None:
            restrictions.append(DAYS_OF_WEEK[weekday](date))
        return date.month in MONTHS[month] and (not restrictions or any(restrictions))

    return Days(f"{day or free} {month} {weekday or free}", holds)


def days(every_month: bool = False) -> st.SearchStrategy[Days]:
    return st.builds(
        _days,
        st.none() | st.sampled_from(sorted(DAYS_OF_MONTH)),
        st.just("*") if every_month else st.sampled_from(sorted(MONTHS)),
        st.none() | st.sampled_from(sorted(DAYS_OF_WEEK)),
        st.sampled_from(["*", "?"]),
    )


every_day = _days(None, "*", None, "*")

# Where transitions are.
_hours = parts(0, 23, st.sampled_from([0, 1, 2, 3, 4, 22, 23]))
_minutes = parts(0, 59, st.sampled_from([0, 15, 30, 59]))
_mostly_every_day = st.just(every_day) | days(every_month=True)

five_fields = st.builds(Rule, st.none(), _minutes, _hours, _mostly_every_day)
six_fields = st.builds(Rule, parts(0, 59), _minutes, _hours, st.just(every_day))
any_rule = st.builds(Rule, st.none() | parts(0, 59), parts(0, 59), parts(0, 23), days())

# ── the walk ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(64)
def clock(zone: str, start: datetime, end: datetime, step: timedelta) -> list[tuple[datetime, datetime]]:
    """Look at the clock on the wall at every step of real time; it shows whole steps."""
    there = ZoneInfo(zone)
    seen = []
    # The first instant at which it does: zones were off by odd seconds.
    instant = start
    while instant.astimezone(there).second % step.total_seconds():
        instant += SECOND
    while instant < end:
        seen.append((instant, instant.astimezone(there).replace(tzinfo=None)))
        instant += step
    return seen


def fires(rule: Rule, zone: str, start: datetime, end: datetime, step: timedelta) -> list[datetime]:
    """Return the instants, in UTC, at which the rule fires in a walk that begins before any transition of interest."""
    seen = clock(zone, start, end, step)
    dates = {wall.date() for _, wall in seen}
    is_wild = rule.hour.is_wild or rule.minute.is_wild
    furthest = previous = seen[0][1]
    fired = []

    def swallowed(above: datetime, below: datetime) -> Iterator[datetime]:
        wall = above + step
        while wall < below:
            if wall.date() in dates:  # or that day never was
                yield wall
            wall += step

    for instant, wall in seen[1:]:
        if is_wild:
            fire = rule.matches(wall)
            if not fire and not rule.hour.is_wild:
                fire = any(map(rule.matches, swallowed(previous, wall)))
        else:
            fire = wall > furthest and (rule.matches(wall) or any(map(rule.matches, swallowed(furthest, wall))))
        if fire:
            fired.append(instant)
        furthest, previous = max(furthest, wall), wall
    return fired


# ── transitions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Transition:
    zone: str
    instant: datetime
    shift: timedelta  # of the clock: forward is positive


def transitions(zone: str, years: range) -> Iterator[Transition]:
    """Yield when the zone's clock jumps, the latest first, as far as a look every month shows it."""
    there = ZoneInfo(zone)

    def offset(instant: datetime) -> timedelta:
        answer = instant.astimezone(there).utcoffset()
        assert answer is not None
        return answer

    looks = [datetime(year, month, 1, tzinfo=UTC) for year in years for month in range(1, 13)]
    known = [offset(look) for look in looks]
    for index in range(len(looks) - 1, 0, -1):
        if known[index - 1] == known[index]:
            continue
        before, after = looks[index - 1], looks[index]
        while after - before > SECOND:
            middle = before + (after - before) // (2 * SECOND) * SECOND
            if offset(middle) == known[index - 1]:
                before = middle
            else:
                after = middle
        yield Transition(zone, after, offset(after) - offset(before))


@lru_cache
def everywhere() -> list[Transition]:
    """Return the last jump forward and the last one back of every zone that has them, since 1970."""
    found = []
    for zone in sorted(available_timezones()):
        forward = back = None
        for each in transitions(zone, range(1990, 2028)):
            if each.shift > timedelta():
                forward = forward or each
            else:
                back = back or each
            if forward and back:
                break
        found += [each for each in (forward, back) if each]
    return found


def at(zone: str, instant: str, shift_minutes: float) -> Transition:
    return Transition(zone, datetime.fromisoformat(instant).replace(tzinfo=UTC), timedelta(minutes=shift_minutes))


# Half hours and two hours, jumps at midnight, whole days, three hours on the ice, seconds of mean time.
ODD = [
    at("Australia/Lord_Howe", "2026-04-04T15:00:00", -30),
    at("Australia/Lord_Howe", "2026-10-03T15:30:00", 30),
    at("Antarctica/Troll", "2026-03-29T01:00:00", 120),
    at("Antarctica/Troll", "2026-10-25T01:00:00", -120),
    at("Antarctica/Casey", "2010-03-04T15:00:00", -180),
    at("Antarctica/Casey", "2011-10-27T18:00:00", 180),
    at("Pacific/Chatham", "2026-04-04T14:00:00", -60),
    at("Pacific/Chatham", "2026-09-26T14:00:00", 60),
    at("Pacific/Apia", "2011-12-30T10:00:00", 24 * 60),
    at("Pacific/Kwajalein", "1993-08-21T12:00:00", 24 * 60),
    at("Pacific/Kiritimati", "1994-12-31T10:00:00", 24 * 60),
    at("Africa/Casablanca", "2024-03-10T02:00:00", -60),
    at("Africa/Casablanca", "2024-04-14T02:00:00", 60),
    at("Africa/El_Aaiun", "2024-03-10T02:00:00", -60),
    at("Europe/Dublin", "2026-03-29T01:00:00", 60),
    at("Europe/Dublin", "2026-10-25T01:00:00", -60),
    at("America/Havana", "2026-03-08T05:00:00", 60),
    at("America/Scoresbysund", "2026-03-29T01:00:00", 60),
    at("America/St_Johns", "2006-10-29T02:31:00", -60),
    at("Asia/Beirut", "2026-03-28T22:00:00", 60),
    at("Asia/Pyongyang", "2018-05-04T15:00:00", 30),
    at("America/Caracas", "2016-05-01T07:00:00", 30),
]
