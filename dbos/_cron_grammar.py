"""How a cron expression is written: reads one, or says what is wrong with it and where.

Five fields (minute, hour, day of the month, month, day of the week), six (second in front) or seven (year at the end),
or an alias such as ``@daily``. Each is rewritten in the words of ``cronsim``, which :mod:`dbos._cron` asks for dates.
Where cronsim follows Debian and existing schedules mean something else, existing schedules win: a day of the month
*and* a day of the week are a union also when one begins with a star (``0 0 */2 * 1``: odd days and Mondays).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cronsim.explain import explain

__all__ = ["CronError", "Fields", "read"]

MAX_LENGTH = 1_000  # characters; listing every value of every field takes fewer

ALIASES = {
    "@HOURLY": "0 * * * *",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@WEEKLY": "0 0 * * 0",
    "@MONTHLY": "0 0 1 * *",
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
}


class CronError(ValueError):
    """A cron expression that cannot be evaluated; says what is wrong with it and where."""


class Problem(Exception):
    """What is wrong with a term; its field is named further up."""


@dataclass(frozen=True)
class Kind:
    """One of the seven fields: what it is called, and the values it takes."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()  # the first one means ``low``

    def every(self) -> frozenset[int]:
        return frozenset(range(self.low, self.high + 1))


MONTH_NAMES = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAY_NAMES = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")

SECOND = Kind("second", 0, 59)
MINUTE = Kind("minute", 0, 59)
HOUR = Kind("hour", 0, 23)
DAY = Kind("day-of-month", 1, 31)
MONTH = Kind("month", 1, 12, MONTH_NAMES)
WEEKDAY = Kind("day-of-week", 0, 7, DAY_NAMES)  # 0 and 7 are Sunday
YEAR = Kind("year", 1970, 2099)
KINDS = (SECOND, MINUTE, HOUR, DAY, MONTH, WEEKDAY, YEAR)


@dataclass(frozen=True)
class Term:
    """One entry of a field's list, rewritten for cronsim; ``values`` is empty for the last day and its like."""

    text: str
    values: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Field:
    """A field that was read."""

    kind: Kind
    original: str
    terms: tuple[Term, ...]

    @property
    def is_free(self) -> bool:
        """Whether it puts no condition on a date, so that only the other of the two day fields counts."""
        return self.original in ("*", "?")

    @property
    def values(self) -> frozenset[int]:
        return frozenset().union(*(term.values for term in self.terms))

    @property
    def is_complete(self) -> bool:
        """Whether every value is in it."""
        every = self.kind.every()
        return self.values >= (every - {7} if self.kind is WEEKDAY else every)

    @property
    def is_wildcard(self) -> bool:
        """Whether it names no particular times: ``*``, ``*/n`` with more than one value, every value."""
        return self.is_complete or (self.original.startswith("*") and len(self.values) > 1)

    @property
    def text(self) -> str:
        return "*" if self.is_complete else ",".join(term.text for term in self.terms)


@dataclass(frozen=True)
class Fields:
    """An expression that was read."""

    second: Field
    minute: Field
    hour: Field
    day: Field
    month: Field
    weekday: Field
    year: Field | None

    @property
    def dates_in_cronsims_words(self) -> str:
        day, weekday = self.day.text, self.weekday.text
        if "*" in (day, weekday) and not (self.day.is_free or self.weekday.is_free):
            day = weekday = "*"  # the union of every day with some days
        return f"{day} {self.month.text} {weekday}"

    @property
    def years(self) -> tuple[int, ...] | None:
        return None if self.year is None or self.year.is_complete else tuple(sorted(self.year.values))

    def why_never(self) -> str:
        """Say of an expression that matches no date what contradicts what."""
        parts = [field for field in (self.day, self.weekday, self.month, self.year) if field and not field.is_free]
        return "there is no date with " + ", ".join(f"{field.kind.name} {field.original!r}" for field in parts)

    def description(self) -> str:
        """Say in English when this fires."""
        sentence = explain(f"{self.second.text} {self.minute.text} {self.hour.text} {self.dates_in_cronsims_words}")
        # cronsim writes "21th", and counts the last day among numbered ones.
        sentence = re.sub(r"the -1th\b", "the last", sentence)
        sentence = re.sub(
            r"\b([2-5])([123])th\b", lambda m: m[1] + m[2] + {"1": "st", "2": "nd", "3": "rd"}[m[2]], sentence
        )
        if self.year is None or self.year.is_complete:
            return sentence
        return f"{sentence}, {_in_words([_year_in_words(term) for term in self.year.terms])}"


def _year_in_words(term: Term) -> str:
    years, slash, step = term.text.partition("/")
    first, dash, last = years.partition("-")
    if slash:
        return f"every {step} years from {first} through {last}"
    return f"from {first} through {last}" if dash else f"in {first}"


def _in_words(parts: list[str]) -> str:
    if len(parts) < 3:
        return " and ".join(parts)
    return ", ".join(parts[:-1]) + ", and " + parts[-1]


def read(expression: str) -> Fields:
    """Read an expression.

    Raises:
        CronError: It is malformed; says where and how.
    """
    if not isinstance(expression, str):
        raise CronError(f"A cron expression is a string, not {type(expression).__name__}.")
    if len(expression) > MAX_LENGTH:
        raise CronError(f"The expression has {len(expression)} characters; at most {MAX_LENGTH} are read.")
    texts = expression.upper().split()
    _refuse_other_forms(expression, texts)
    if len(texts) == 1 and texts[0] in ALIASES:
        texts = ALIASES[texts[0]].split()
    if len(texts) not in (5, 6, 7):
        raise CronError(
            f"The expression has {len(texts)} field{'' if len(texts) == 1 else 's'}. It needs 5 (minute hour "
            "day-of-month month day-of-week), 6 (with second in front) or 7 (with year at the end)."
        )
    originals = expression.split() if len(texts) == len(expression.split()) else texts
    if len(texts) == 5:
        texts, originals = ["0", *texts], ["0", *originals]
        hint = ""
    else:
        hint = f" (An expression of {len(texts)} fields begins with second.)"
    try:
        fields = [
            _read_field(kind, text, original) for kind, text, original in zip(KINDS, texts, originals, strict=False)
        ]
    except CronError as error:
        raise CronError(f"{error}{hint}") from None
    second, minute, hour, day, month, weekday, *year = fields
    return Fields(second, minute, hour, day, month, weekday, year[0] if year else None)


def _refuse_other_forms(expression: str, texts: list[str]) -> None:
    """Refuse by name what other schedulers know beyond fields."""
    if not texts:
        raise CronError("The expression is empty.")
    strange = next((c for c in expression if not c.isascii() or (not c.isprintable() and not c.isspace())), None)
    if strange is not None:
        raise CronError(f"The expression contains {strange!r}.")
    first = texts[0]
    if first == "@EVERY":
        raise CronError("'@every' counts from a start, which cron has not; every five minutes is '*/5 * * * *'.")
    if first == "@REBOOT":
        raise CronError("'@reboot' is no time. Start the workflow after DBOS.launch() instead.")
    if first.startswith("@") and (first not in ALIASES or len(texts) > 1):
        known = ", ".join(alias.lower() for alias in ALIASES)
        raise CronError(f"{expression.strip()!r} is not an alias; these are, each by itself: {known}.")
    if re.match(r"(CRON_)?TZ=", first):
        raise CronError(f"{expression.split()[0]!r}: a time zone is given beside the expression, as cron_timezone.")


def _read_field(kind: Kind, text: str, original: str) -> Field:
    def refuse(problem: str) -> CronError:
        return CronError(f"The {kind.name} field {original!r}: {problem}.")

    if text == "?":
        if kind is not DAY and kind is not WEEKDAY:
            raise refuse("'?' stands in day-of-month or day-of-week only")
        text = "*"
    try:
        return Field(kind, original, tuple(_read_term(kind, term) for term in text.split(",")))
    except Problem as problem:
        raise refuse(str(problem)) from None


def _read_term(kind: Kind, term: str) -> Term:
    if not term:
        raise Problem("a value is missing beside a comma")
    if term.startswith("-"):
        raise Problem(f"{term!r} is negative")
    if "?" in term:
        raise Problem("'?' stands alone")
    if re.match(r"[RH](?![A-Z])", term):
        raise Problem(f"{term!r} would be drawn anew in each process; write a value of your choice")
    special = _read_day(term) if kind is DAY else _read_weekday(term) if kind is WEEKDAY else None
    return special or _read_values(kind, term)


def _read_day(term: str) -> Term | None:
    """Read what only a day of the month can be: ``L`` and ``LW``."""
    if term in ("L", "LW"):
        return Term(term)
    if re.fullmatch(r"(L-)?[0-9]+W|WL", term):
        raise Problem(f"the nearest weekday, {term!r}, is not known here; 'LW', the last weekday of the month, is")
    if term.startswith(("L-", "L/")):
        raise Problem(f"{term!r} would count from the end; 'L' is the last day, and '28-L' the last ones")
    return None


def _read_weekday(term: str) -> Term | None:
    """Read what only a day of the week can be: the last one (``L5``, ``5L``, ``FRI#L``) and the nth (``FRI#2``)."""
    if term == "L":
        raise Problem("'L' needs a day, as in 'L5' for the last Friday; the month's last day is L in day-of-month")
    day, hash_, nth = term.partition("#")
    if hash_:
        if nth != "L" and nth not in ("1", "2", "3", "4", "5"):
            raise Problem(f"behind '#' stands 1 to 5, or L for the last, not {nth!r}")
    elif term.startswith("L"):
        day, nth = term[1:], "L"
    elif term.endswith("L"):
        day, nth = term[:-1], "L"
    else:
        return None
    if "-" in day or "/" in day or day == "*":
        raise Problem(f"{term!r} takes the nth or last of several days; write one with each, with commas between")
    value = _value(WEEKDAY, day) % 7
    return Term(f"{value}L" if nth == "L" else f"{value}#{nth}")


def _read_values(kind: Kind, term: str) -> Term:
    """Read a value, a range or a star, with or without a step."""
    span, slash, step_text = term.partition("/")
    step = _step(step_text) if slash else 1
    start_text, dash, end_text = span.partition("-")
    if span == "*":
        start, end = kind.low, kind.high
    elif dash:
        start, end = _range(kind, span, start_text, end_text)
    else:
        start = _value(kind, span)
        end = kind.high if slash else start
    values = range(start, end + 1, step)
    if len(values) == 1:
        text = str(start % 7 if kind is WEEKDAY else start)
    else:
        # A star with a step is a restriction: cronsim would take a day field that begins with a star for none.
        text = f"*/{step}" if span == "*" and kind not in (DAY, WEEKDAY) else f"{start}-{end}/{step}"
        text = text.removesuffix("/1")
    return Term(text, frozenset(value % 7 if kind is WEEKDAY else value for value in values))


def _range(kind: Kind, span: str, start_text: str, end_text: str) -> tuple[int, int]:
    if kind is DAY and end_text == "L":
        return _value(kind, start_text), kind.high
    start, end = _value(kind, start_text), _value(kind, end_text)
    if kind is WEEKDAY:
        if start == 7:
            start, end = 0, end % 7
        if end == 0 and start > 0:
            end = 7  # a week may end on Sunday
    if start > end:
        last, first = (kind.names[-1], kind.names[0]) if start_text in kind.names else (kind.high, kind.low)
        if kind is WEEKDAY and last == 7:
            last = 6
        head = f"{start_text}-{last}" if str(last) != start_text else start_text
        tail = f"{first}-{end_text}" if str(first) != end_text else end_text
        raise Problem(f"the range {span!r} runs backwards; write {f'{head},{tail}'!r}")
    return start, end


def _step(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        raise Problem(f"the step {text!r} is not a whole number")
    # Beyond any range all steps are alike, so the number's size (and the time to read it) is bounded.
    step = int(text[-4:]) if len(text.lstrip("0")) < 5 else 9_999
    if step == 0:
        raise Problem("a step of 0 goes nowhere; the smallest is 1")
    return step


def _value(kind: Kind, text: str) -> int:
    if text in kind.names:
        return kind.low + kind.names.index(text)
    names = f", or {kind.names[0]} to {kind.names[-1]}" if kind.names else ""
    if not re.fullmatch(r"[0-9]+", text):
        raise Problem(f"{text!r} is not a whole number from {kind.low} to {kind.high}{names}")
    value = int(text[-4:]) if len(text.lstrip("0")) < 5 else 9_999
    if not kind.low <= value <= kind.high:
        sunday = " (0 and 7 are Sunday)" if kind is WEEKDAY else ""
        raise Problem(f"{text} is not between {kind.low} and {kind.high}{sunday}{names}")
    return value
