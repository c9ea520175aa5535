"""Attributes of workflows: a JSON object in a column that both databases can look into."""

from __future__ import annotations

import json
from typing import Any

from dbos._error import DBOSException

__all__ = ["MAX_ATTRIBUTES_BYTES", "dump_attributes"]

MAX_ATTRIBUTES_BYTES = 64 * 1024  # whoever lists workflows reads them, and an index has all that is in them


def dump_attributes(attributes: object) -> str | None:
    """Attributes as they are stored; None for none.

    Raises:
        DBOSException: they are no dictionary that JSON can express in both databases, or too large.
    """
    if attributes is None:
        return None
    try:
        if not isinstance(attributes, dict):
            raise TypeError(f"it is of type {type(attributes).__name__}")
        _check(attributes)
        text = json.dumps(attributes, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DBOSException(
            f"Invalid attributes: {error}. Attributes are a dictionary that JSON can express: with keys that are "
            "strings, finite numbers, and text without NUL characters."
        ) from error
    size = len(text.encode())
    if size > MAX_ATTRIBUTES_BYTES:
        raise DBOSException(
            f"Invalid attributes: they take {size:,} bytes as JSON, and at most {MAX_ATTRIBUTES_BYTES:,} are stored. "
            "They are there to find workflows by: pass what these are to work with as an argument."
        )
    return text


def _check(value: Any) -> None:
    """Refuse what JSON would change, or a database would not take."""
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is not a string")
            _check(key)
            _check(each)
    elif isinstance(value, list | tuple):
        for each in value:
            _check(each)
    elif isinstance(value, str) and b"\0" in value.encode():
        raise ValueError(f"{value!r} has a NUL character")
