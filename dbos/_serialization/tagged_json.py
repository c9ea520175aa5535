"""What JSON has no words for, in JSON: times, exact numbers, bytes, tuples and sets, each under a tag that names it.

A tag is an object with one key that begins with ``dbos:``, such as ``{"dbos:date":"2026-01-02"}``. A dict of the user's
that looks like one is written with a second colon (``dbos::date``), which is taken away again when it is read. Only
types whose every instance comes back exactly are tagged, and reading makes these types only: no code that the
database's contents choose.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Any, TypeVar
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

__all__ = [
    "MAX_JSON_DEPTH",
    "MAX_PLAIN_INT",
    "MIN_PLAIN_INT",
    "TAG_PREFIX",
    "Inexact",
    "tagged",
    "untag",
]

# The decoder recurses, perhaps far down a user's stack; deeper values go to pickle, which does not.
MAX_JSON_DEPTH = 100
MAX_PLAIN_INT = 10**600  # below the 640 digits that every setting of sys.set_int_max_str_digits can convert
MIN_PLAIN_INT = -MAX_PLAIN_INT

TAG_PREFIX = "dbos:"
ESCAPED_PREFIX = "dbos::"

M = TypeVar("M", datetime, time)

# A time, the name of its zone if it has one, and whether it is the second of two that a change of clocks repeats. Where
# there is a zone, the offset before it is for readers: rules change, and what a clock shows is what was stored.
_MOMENT = re.compile(r"([^\[\]]+)(?:\[([^\[\]=]+)\])?(\[fold=1\])?")


class Inexact(Exception):
    """A value would not come back as it is."""


def tagged(value: Any) -> Any:
    """Return a copy of ``value`` made of what JSON knows.

    Raises:
        Inexact: A part of it would not come back equal in value, type and identity of containers.
    """
    return _tagged(value, set(), MAX_JSON_DEPTH)


def _tagged(value: Any, seen: set[int], depth: int) -> Any:
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return value
    if kind is int:
        if MIN_PLAIN_INT < value < MAX_PLAIN_INT:
            return value
        raise Inexact
    if kind is float:
        if isfinite(value):
            return value
        raise Inexact
    leaf = _LEAVES.get(kind)
    if leaf is not None:
        name, encode = leaf
        return {name: encode(value)}
    collection = _COLLECTIONS.get(kind)
    if collection is None and kind is not list and kind is not dict:
        raise Inexact
    if kind is not tuple or value:  # there is but one empty tuple
        if depth <= 0 or id(value) in seen:
            raise Inexact
        seen.add(id(value))
    if kind is dict:
        return {_key(key, value): _tagged(item, seen, depth - 1) for key, item in value.items()}
    # A tag is a level of its own.
    items = [_tagged(item, seen, depth - 1 if collection is None else depth - 2) for item in value]
    return items if collection is None else {collection: items}


def _key(key: Any, owner: dict[Any, Any]) -> str:
    if type(key) is not str:
        raise Inexact
    if len(owner) == 1 and key.startswith(TAG_PREFIX):
        return ESCAPED_PREFIX + key[len(TAG_PREFIX) :]
    return key


def untag(found: dict[str, Any]) -> Any:
    """Return what an object of JSON stands for: itself, unless it is a tag.

    Raises:
        ValueError: It looks like a tag, and is none that this release knows.
    """
    if len(found) != 1:
        return found
    [(key, content)] = found.items()
    if not key.startswith(TAG_PREFIX):
        return found
    if key.startswith(ESCAPED_PREFIX):
        return {TAG_PREFIX + key[len(ESCAPED_PREFIX) :]: content}
    decode = _DECODERS.get(key)
    if decode is None:
        raise ValueError(f"it holds a value tagged {key!r}, which this release does not know")
    try:
        return decode(content)
    # What the constructors of the standard library raise for contents that somebody has changed.
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, OSError) as error:
        raise ValueError(f"it holds a damaged value tagged {key!r}") from error


# -- times -------------------------------------------------------------------------------------------------------------


def _moment_text(value: datetime | time) -> str:
    zone, suffix = value.tzinfo, "[fold=1]" if value.fold else ""
    if zone is None or _is_plain_offset(zone):
        return value.isoformat() + suffix
    if type(zone) is not ZoneInfo or not zone.key or not _is_known(zone):
        raise Inexact
    return f"{value.isoformat()}[{zone.key}]{suffix}"


def _is_plain_offset(zone: tzinfo) -> bool:
    """Whether an offset comes back from text, which none with a name of its own or with parts of a second does."""
    if type(zone) is not timezone:
        return False
    arguments = zone.__getinitargs__()  # type: ignore[attr-defined]  # by which it is pickled
    return len(arguments) == 1 and not arguments[0].microseconds


def _is_known(zone: ZoneInfo) -> bool:
    """Whether the zone is what its name stands for, and not made from a file or a second copy."""
    try:
        return ZoneInfo(zone.key) is zone
    except (KeyError, ValueError, OSError):
        return False


def _moment_from(kind: type[M]) -> Callable[[str], M]:
    def decode(text: str) -> M:
        match = _MOMENT.fullmatch(text)
        if match is None:
            raise ValueError(text)
        shown, zone, fold = match.groups()
        value = kind.fromisoformat(shown)
        if zone is not None:
            value = value.replace(tzinfo=ZoneInfo(zone))
        return value.replace(fold=1) if fold is not None else value

    return decode


def _timedelta_parts(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _timedelta_from(parts: list[int]) -> timedelta:
    days, seconds, microseconds = parts
    return timedelta(days, seconds, microseconds)


# -- the rest ----------------------------------------------------------------------------------------------------------


def _decimal_from(text: str) -> Decimal:
    if not isinstance(text, str):
        raise TypeError
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise ValueError(text) from error


def _uuid_text(value: UUID) -> str:
    if value.is_safe is not SafeUUID.unknown:
        raise Inexact
    return str(value)


def _bytes_text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _bytes_from(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _collected(kind: Callable[[list[Any]], Any]) -> Callable[[Any], Any]:
    def decode(items: Any) -> Any:
        if type(items) is not list:
            raise TypeError
        return kind(items)

    return decode


_LEAVES: dict[type, tuple[str, Callable[[Any], Any]]] = {
    datetime: ("dbos:datetime", _moment_text),
    date: ("dbos:date", date.isoformat),
    time: ("dbos:time", _moment_text),
    timedelta: ("dbos:timedelta", _timedelta_parts),  # days, seconds, microseconds
    Decimal: ("dbos:decimal", str),
    UUID: ("dbos:uuid", _uuid_text),
    bytes: ("dbos:bytes", _bytes_text),  # base64
}
_COLLECTIONS: dict[type, str] = {tuple: "dbos:tuple", set: "dbos:set", frozenset: "dbos:frozenset"}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "dbos:datetime": _moment_from(datetime),
    "dbos:date": date.fromisoformat,
    "dbos:time": _moment_from(time),
    "dbos:timedelta": _timedelta_from,
    "dbos:decimal": _decimal_from,
    "dbos:uuid": UUID,
    "dbos:bytes": _bytes_from,
    "dbos:tuple": _collected(tuple),
    "dbos:set": _collected(set),
    "dbos:frozenset": _collected(frozenset),
}
