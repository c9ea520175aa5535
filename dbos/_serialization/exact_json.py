"""The format ``json``: written only where a value survives it exactly.

A value is walked before it is written. What JSON has no words for is tagged (see :mod:`.tagged_json`); what would come
back changed even so, :func:`dump_json` declines, and pickle takes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring
from math import isfinite
from typing import Any

from dbos._error import DBOSDeserializationError

from .formats import JSON
from .tagged_json import MAX_JSON_DEPTH, MAX_PLAIN_INT, MIN_PLAIN_INT, TAG_PREFIX, Inexact, tagged, untag
from .wording import reason

__all__ = [
    "dump_args",
    "dump_json",
    "encode",
    "load_json",
    "survives_json",
]

_LOOKS_TAGGED = f'{{"{TAG_PREFIX}'  # what a tag begins with, and a dict of the user's that looks like one
_MAYBE_TAGGED = f'"{TAG_PREFIX}'  # no text without it holds a tag

_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))
_ASCII_ENCODER = json.JSONEncoder(ensure_ascii=True, check_circular=False, allow_nan=False, separators=(",", ":"))


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_TAG_DECODER = json.JSONDecoder(object_hook=untag, parse_constant=_refuse_constant)


def survives_json(value: Any) -> bool:
    """Whether ``value`` comes back from mere JSON, without tags, equal in every value, type and identity."""
    return _survives(value, set(), MAX_JSON_DEPTH)


def _survives(value: Any, seen: set[int], depth: int) -> bool:
    # On the path of every step: no calls for the commonest leaves, no generators, no isinstance.
    kind = type(value)
    if kind is dict or kind is list:
        if depth == 0 or id(value) in seen:
            return False
        seen.add(id(value))
        if kind is dict:
            for key in value:
                if type(key) is not str:
                    return False
            value = value.values()
        for item in value:
            kind = type(item)
            if kind is str or (kind is int and MIN_PLAIN_INT < item < MAX_PLAIN_INT):
                continue
            if not _survives(item, seen, depth - 1):
                return False
        return True
    if kind is float:
        return isfinite(value)
    if kind is int:
        return bool(MIN_PLAIN_INT < value < MAX_PLAIN_INT)
    return kind is str or value is None or kind is bool


def dump_json(value: Any) -> str | None:
    """Return ``value`` as JSON, or ``None`` if it would not survive it exactly."""
    text = _dump_plain(value)
    if text is not None:
        return text
    if type(value) is not str and not _survives(value, set(), MAX_JSON_DEPTH):
        return _dump_tagged(value)
    text = _dump_exact(value)
    if text is not None and _LOOKS_TAGGED in text:
        return _dump_tagged(value)
    return text


def _dump_tagged(value: Any) -> str | None:
    try:
        return _dump_exact(tagged(value))
    except (Inexact, RecursionError):
        return None


def _dump_exact(value: Any) -> str | None:
    """Return a value that JSON knows as text, or ``None`` if its strings would not survive it."""
    text = _ENCODER.encode(value)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # A lone surrogate. Two of them side by side would come back as one character, so see what does come back.
        text = _ASCII_ENCODER.encode(value)
        if _DECODER.decode(text) != value:
            return None
    return text


def dump_args(args: Sequence[Any]) -> str | None:
    """Return positional arguments as a JSON array if each of them is a plain value, otherwise ``None``.

    Arguments mostly are, and setting up the encoder takes longer than writing a few of them.
    """
    texts = []
    for value in args:
        text = _dump_plain(value)
        if text is None:
            return None
        texts.append(text)
    return f"[{','.join(texts)}]"


def _dump_plain(value: Any) -> str | None:
    """Return a number, a truth value, None or an ASCII string as JSON, and ``None`` for anything else."""
    kind = type(value)
    if kind is str:
        return encode_basestring(value) if value.isascii() else None
    if kind is int:
        return repr(value) if MIN_PLAIN_INT < value < MAX_PLAIN_INT else None
    if kind is float:
        return repr(value) if isfinite(value) else None
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    return None


def encode(value: Any) -> str:
    """Return a JSON value as text that every database can store."""
    text = _ENCODER.encode(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return _ASCII_ENCODER.encode(value)
    return text


def load_json(text: str) -> Any:
    """Return the value that :func:`dump_json` made this text from.

    Raises:
        DBOSDeserializationError: The text is not JSON.
    """
    decoder = _TAG_DECODER if _MAYBE_TAGGED in text else _DECODER
    try:
        value, end = decoder.raw_decode(text)
        if end == len(text):
            return value
    except (ValueError, RecursionError):
        pass
    try:
        # Slower, and only for text we did not write: it allows white space, and names what is wrong.
        return decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise DBOSDeserializationError(JSON, reason(error)) from error
