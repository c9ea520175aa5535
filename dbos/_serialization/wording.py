"""What messages may say about values and exceptions that are not ours.

Their classes may raise anything when asked for text, and their text may hold what must not be logged.
"""

from __future__ import annotations

import binascii
import pickle
from typing import Any

__all__ = [
    "reason",
    "text_of",
    "type_name",
]


def text_of(error: BaseException) -> str:
    """Return ``str(error)``, or words that say why there is none."""
    try:
        # str() may return an instance of a subclass, whose methods are the user's; this makes a plain copy.
        return str.__str__(str(error))
    except Exception as failure:  # __str__ of a user's class may raise anything
        return f"An error of type {type(error).__name__}, whose text cannot be shown ({type(failure).__name__})"


def reason(error: Exception) -> str:
    """Return why decoding failed, without words that could hold the value itself."""
    if isinstance(
        error, AttributeError | ImportError | binascii.Error | EOFError | pickle.UnpicklingError | ValueError
    ):
        return f"{type(error).__name__}: {text_of(error)}"
    return type(error).__name__


def type_name(value: Any) -> str:
    """Return the name of the value's class as a person would write it."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
