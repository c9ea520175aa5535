"""When a cron expression fires: pure arithmetic, without a clock and without a database.

Schedules, their preview and the decorator all ask this module, so what is shown is what will fire. An expression
(:mod:`dbos._cron_grammar`) matches *wall times*, what a clock on the wall shows; ``cronsim`` finds the dates. This
module maps them to instants.

Daylight saving follows Debian's rule, carried through for all lengths of transitions and for seconds:

- A job at *fixed times* (neither hour nor minute is a wildcard) fires for each wall time once, at the first instant at
  which the clock shows that time or a later one. So a time in a gap fires right after it, several of them together
  once, and a repeated time fires the first time.
- A job with a *wildcard* (``*``, ``*/n``, or every value listed) in hour or minute fires at each instant whose wall
  time matches, twice in a repeated hour. If only the minute is a wildcard, a gap that swallows matching times is made
  up for as above: ``*/15 2 * * *`` does not skip the day (Debian would).
- A calendar day that a zone left out altogether (Apia, 30 December 2011) is not made up for.

cronsim's own treatment of zones is not used: it depends on where an iteration begins, has no rule for seconds, and
fires twice at one instant for two times in a gap. :meth:`Cron.after` computes each fire time from the one before
alone, so an iteration gives the same times wherever it began.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from dbos._cron_grammar import CronError, Fields, read

__all__ = ["Cron", "CronError", "TimezoneError", "parse"]

SECOND_STEP = timedelta(seconds=1)
CACHED_EXPRESSIONS = 4_096  # a kilobyte each, and most share their dates

# Any leap day falls on any weekday within 28 years of here, so what finds no date within cronsim's 50 years has none.
ANY_TIME = datetime(2000, 1, 1)

# What tells a machine's own setting, or counts leap seconds: not the same times everywhere.
NOT_IANA = re.compile(r"localtime$|posixrules$|right/|posix/")


class TimezoneError(ValueError):
    """A time zone that is not in the IANA database."""

    def __init__(self, timezone: object) -> None:
        self.timezone = timezone
        super().__init__(f"Invalid timezone: '{timezone}'")


# ── what users call ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Cron:
    """A cron expression in a time zone: an IANA name, or None for UTC.

    Whether an expression still has a future is not its business: one whose years are over is valid, and :meth:`after`
    ends.

    Raises:
        CronError: The expression is malformed, or matches no date at all.
        TimezoneError: There is no such zone.
    """

    expression: str
    timezone: str | None = None
    zone: tzinfo = field(init=False, repr=False, compare=False)
    # A process may hold thousands of these, so what only the description needs is read again for it.
    _is_any_hour: bool = field(init=False, repr=False, compare=False)
    _is_wildcard: bool = field(init=False, repr=False, compare=False)
    _walls: _Walls = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fields = read(self.expression)
        object.__setattr__(self, "zone", _zone(self.timezone))
        object.__setattr__(self, "_is_any_hour", fields.hour.is_wildcard)
        object.__setattr__(self, "_is_wildcard", fields.hour.is_wildcard or fields.minute.is_wildcard)
        object.__setattr__(self, "_walls", _walls(fields))

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Iterate over the fire times strictly after an aware moment, ascending, aware in the schedule's zone.

        They have no microseconds, and ``fold`` set in the second of two equal hours, so ``isoformat()`` tells any two
        apart. The iteration ends after the last year of the expression, or of :class:`datetime`.
        """
        if moment.utcoffset() is None:
            raise ValueError(f"Fire times are asked for after an aware moment, not {moment!r}.")
        return self._after(moment)

    def description(self) -> str:
        """Say in English when this fires, in local time of its zone."""
        return read(self.expression).description()

    def _after(self, moment: datetime) -> Iterator[datetime]:
        walls = self._walls.copy()
        # By way of UTC, because a moment in the very zone could be a time in a gap, which astimezone would keep.
        fire: datetime | None
        try:
            fire = moment.astimezone(UTC).astimezone(self.zone)
            while (fire := self._next(fire, walls)) is not None:
                yield fire
        except OverflowError:  # the end of datetime's years
            return

    def _next(self, local: datetime, walls: _Walls) -> datetime | None:
        """Return the first fire time after ``local``, whatever was before it."""
        wall = local.replace(tzinfo=None, microsecond=0, fold=0)
        first, second = self._offsets(wall)
        if first > second:
            return self._next_from_fold(wall, first, second, local.fold, walls)
        return self._first_showing(wall, walls)

    def _first_showing(self, wall: datetime, walls: _Walls) -> datetime | None:
        """Return the first instant that shows a matching time later than ``wall``, or makes up for one in a gap."""
        found = walls.after(wall)
        while found is not None:
            before, after = self._offsets(found)
            if before >= after:
                return found.replace(tzinfo=self.zone)
            end = self._transition(found - after, found - before)
            starts, ends = end + before, end + after
            midnight = datetime.combine(found, time())
            next_midnight = midnight + timedelta(days=1)
            if self._is_any_hour:
                found = walls.after(ends - SECOND_STEP)
            elif starts <= midnight and next_midnight <= ends:
                found = walls.after(next_midnight - SECOND_STEP)  # a day that never was
            else:
                return self._at(end)
        return None

    def _next_from_fold(
        self, wall: datetime, first: timedelta, second: timedelta, fold: int, walls: _Walls
    ) -> datetime | None:
        """Return the first fire time after a wall time that is shown twice."""
        width = first - second
        instant = wall - (second if fold else first)
        transition = self._transition(*((instant - width, instant) if fold else (instant, instant + width)))
        starts, ends = transition + second, transition + first
        if not fold:
            found = walls.after(wall)
            if found is not None and found < ends:
                return found.replace(tzinfo=self.zone)
            wall = starts - SECOND_STEP
        if self._is_wildcard:
            found = walls.after(wall)
            if found is not None and found < ends:
                return found.replace(tzinfo=self.zone, fold=1)
        return self._first_showing(ends - SECOND_STEP, walls)

    def _offsets(self, wall: datetime) -> tuple[timedelta, timedelta]:
        """Return the offsets of a wall time's two readings: equal, or descending in a fold, ascending in a gap."""
        # Zones of the database and UTC have an offset at all times; only a tzinfo of another making may answer None.
        first = self.zone.utcoffset(wall)
        second = self.zone.utcoffset(wall.replace(fold=1))
        return first or timedelta(), second or timedelta()

    def _transition(self, before: datetime, at_or_after: datetime) -> datetime:
        """Return the instant, in UTC, between these two at which the zone's offset changes."""
        old = self._at(before).utcoffset()
        while at_or_after - before > SECOND_STEP:
            middle = (before + (at_or_after - before) / 2).replace(microsecond=0)
            if self._at(middle).utcoffset() == old:
                before = middle
            else:
                at_or_after = middle
        return at_or_after

    def _at(self, instant: datetime) -> datetime:
        return instant.replace(tzinfo=UTC).astimezone(self.zone)


def parse(expression: str, timezone: str | None = None) -> Cron:
    """Return the :class:`Cron` of an expression; the same one again for the same arguments.

    Raises:
        CronError: The expression is malformed, or matches no date at all.
        TimezoneError: There is no such zone.
    """
    if not isinstance(expression, str):
        raise CronError(f"A cron expression is a string, not {type(expression).__name__}.")
    if not isinstance(timezone, str | None):
        raise TimezoneError(timezone)
    return _parse(expression, timezone)


@lru_cache(CACHED_EXPRESSIONS)
def _parse(expression: str, timezone: str | None) -> Cron:
    return Cron(expression, timezone)


def _zone(timezone: str | None) -> tzinfo:
    if timezone is None:
        return UTC
    if not isinstance(timezone, str) or NOT_IANA.match(timezone):
        raise TimezoneError(timezone)
    try:
        return ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:  # not there; not a key; a folder of the database
        raise TimezoneError(timezone) from error


# ── wall times ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Walls:
    """The matching wall times, without a zone; finding one moves it, so every iteration has a copy of its own.

    Dates are cronsim's. Times of the day are looked up here, where cronsim would walk hour by hour.
    """

    def __init__(self, dates: CronSim, fields: Fields) -> None:
        self._dates = dates
        self._seconds = tuple(sorted(fields.second.values))
        self._minutes = tuple(sorted(fields.minute.values))
        self._hours = tuple(sorted(fields.hour.values))
        self._years = fields.years

    def copy(self) -> _Walls:
        walls = copy(self)
        walls._dates = copy(self._dates)
        return walls

    def first(self) -> datetime | None:
        """Return some match, or None if there is none in any year."""
        return self.copy().after(ANY_TIME if self._years is None else datetime(self._years[0] - 1, 12, 31))

    def after(self, wall: datetime) -> datetime | None:
        """Return the first match later than ``wall``."""
        if wall.month in self._dates.months and self._dates.match_day(wall) and self._is_in_years(wall.year):
            later = self._later_that_day(wall)
            if later is not None:
                return later
        found = self._date_after(wall.replace(hour=23, minute=59, second=59))
        while found is not None and not self._is_in_years(found.year):
            year = next((year for year in self._years or () if year > found.year), None)
            found = None if year is None else self._date_after(datetime(year - 1, 12, 31, 23, 59, 59))
        return found and found.replace(hour=self._hours[0], minute=self._minutes[0], second=self._seconds[0])

    def _later_that_day(self, wall: datetime) -> datetime | None:
        if wall.hour in self._hours:
            if wall.minute in self._minutes:
                second = _next_above(wall.second, self._seconds)
                if second is not None:
                    return wall.replace(second=second)
            minute = _next_above(wall.minute, self._minutes)
            if minute is not None:
                return wall.replace(minute=minute, second=self._seconds[0])
        hour = _next_above(wall.hour, self._hours)
        return None if hour is None else wall.replace(hour=hour, minute=self._minutes[0], second=self._seconds[0])

    def _date_after(self, end_of_day: datetime) -> datetime | None:
        self._dates.dt = end_of_day
        return next(self._dates, None)

    def _is_in_years(self, year: int) -> bool:
        return self._years is None or year in self._years


def _next_above(value: int, ascending: tuple[int, ...]) -> int | None:
    index = bisect_right(ascending, value)
    return ascending[index] if index < len(ascending) else None


def _walls(fields: Fields) -> _Walls:
    """Return the wall times that an expression matches, of which there is at least one."""
    try:
        walls = _Walls(_dates(fields.dates_in_cronsims_words), fields)
        if walls.first() is not None:
            return walls
    except CronSimError:  # the one mistake that only cronsim sees: a day that none of the months has
        pass
    raise CronError(f"The expression never matches: {fields.why_never()}.")


@lru_cache(CACHED_EXPRESSIONS)
def _dates(in_cronsims_words: str) -> CronSim:
    """Return what finds the dates of three fields: never moved itself, only its copies."""
    return CronSim(f"0 0 {in_cronsims_words}", ANY_TIME)
