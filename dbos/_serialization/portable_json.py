"""The format ``portable_json``: JSON that programs in other languages read and write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from math import isfinite
from typing import Any

from dbos._error import DBOSDeserializationError

from .exact_json import encode
from .formats import PORTABLE_JSON, Serializer
from .wording import reason, type_name

__all__ = [
    "DBOSPortableJSONSerializer",
    "portable_inputs",
]


class DBOSPortableJSONSerializer(Serializer):
    """JSON that other languages understand; configure it to store every value this way.

    Tuples and sets become arrays, datetimes UTC text with milliseconds, dates ISO text, decimals fixed-point text;
    they come back as what they became.
    """

    def serialize(self, data: Any) -> str:
        """Return ``data`` as compact JSON.

        Raises:
            TypeError: A part of it has no portable form, or it is nested too deeply.
        """
        try:
            return encode(_to_portable(data))
        except RecursionError as error:
            raise TypeError(f"A value of type {type_name(data)} is nested too deeply to be stored.") from error
        except (ValueError, OverflowError) as error:
            raise TypeError(f"A value of type {type_name(data)} is not portable JSON serializable: {error}") from error

    def deserialize(self, serialized_data: str) -> Any:
        """Return the JSON value.

        Raises:
            DBOSDeserializationError: The text is not JSON.
        """
        try:
            return json.loads(serialized_data)
        except (ValueError, RecursionError) as error:
            raise DBOSDeserializationError(PORTABLE_JSON, reason(error)) from error

    def name(self) -> str:
        """Return ``portable_json``."""
        return PORTABLE_JSON


def portable_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a workflow's arguments in the shape that programs in other languages share."""
    return {"namedArgs": {**kwargs}, "positionalArgs": [*args]}


def _to_portable(value: Any) -> Any:
    """Return ``value`` made of what JSON knows.

    Raises:
        TypeError: A part of it has no portable form.
    """
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if isfinite(value):
            return value
        raise TypeError("Object of type float is not portable JSON serializable: JSON has no infinity or NaN")
    if isinstance(value, list | tuple | set | frozenset):
        return [_to_portable(item) for item in value]
    if isinstance(value, Mapping):
        return {_portable_key(key): _to_portable(item) for key, item in value.items()}
    if isinstance(value, datetime):
        moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    raise TypeError(f"Object of type {type_name(value)} is not portable JSON serializable")


def _portable_key(key: Any) -> str:
    if isinstance(key, str):
        return key
    raise TypeError(f"A mapping with keys of type {type_name(key)} is not portable JSON serializable")
