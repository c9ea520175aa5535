"""The formats a value can be stored in, and what makes one: :class:`Serializer`.

A row names its format beside each value, so these names never change their meaning.
"""

from __future__ import annotations

import base64
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Any

from dbos._error import DBOSDeserializationError

from .wording import reason, type_name

__all__ = [
    "JSON",
    "PICKLE",
    "PORTABLE_JSON",
    "PickleSerializer",
    "Serializer",
    "WorkflowSerializationFormat",
    "checked_text",
    "decoder_of",
]

JSON = "json"
PICKLE = "py_pickle"
PORTABLE_JSON = "portable_json"

PICKLE_PROTOCOL = 5  # known to every Python since 3.8


class Serializer(ABC):
    """Turns values into text and back; subclass it to store values in a format of your own.

    Pass an instance as ``serializer`` in :class:`DBOSConfig`, and the same to every :class:`DBOSClient`. Both methods
    are called from several threads at once.
    """

    @abstractmethod
    def serialize(self, data: Any) -> str:
        """Return ``data`` as text; it may contain neither NUL characters nor lone surrogates."""

    @abstractmethod
    def deserialize(self, serialized_data: str) -> Any:
        """Return the value that :meth:`serialize` made this text from."""

    def name(self) -> str:
        """Return the name stored with each value; change it together with the format."""
        return "custom_serializer"


class WorkflowSerializationFormat(str, Enum):  # noqa: UP042 - a StrEnum would change str() of the members
    """Which format a workflow, message, event or stream is stored in."""

    PORTABLE = "portable"
    """JSON that programs in other languages can read and write."""
    NATIVE = "native"
    """Pickle, whatever serializer is configured."""
    DEFAULT = "None"
    """The configured serializer; without one, JSON where a value survives it exactly, pickle otherwise."""


class PickleSerializer(Serializer):
    """Pickle as base64 text; configure it to store every value this way."""

    def serialize(self, data: Any) -> str:
        """Return ``data`` pickled.

        Raises:
            TypeError: It cannot be pickled, or is nested too deeply.
        """
        try:
            return base64.b64encode(pickle.dumps(data, protocol=PICKLE_PROTOCOL)).decode("ascii")
        except MemoryError:
            raise
        except RecursionError as error:
            raise TypeError(f"A value of type {type_name(data)} is nested too deeply to be stored.") from error
        except Exception as error:  # pickling calls methods of the value, which may raise anything
            raise TypeError(
                f"A value of type {type_name(data)} cannot be stored: it cannot be pickled. "
                "Return or pass plain data instead of objects that hold locks, connections or local functions."
            ) from error

    def deserialize(self, serialized_data: str) -> Any:
        """Return the pickled value. This can run any code that whoever wrote the text has chosen.

        Raises:
            DBOSDeserializationError: The text is damaged, or something it names cannot be imported.
        """
        try:
            return pickle.loads(base64.b64decode(serialized_data))
        except Exception as error:  # unpickling calls constructors, which may raise anything
            raise DBOSDeserializationError(PICKLE, reason(error)) from error

    def name(self) -> str:
        """Return ``py_pickle``."""
        return PICKLE


def checked_text(text: Any, name: str) -> str:
    """Return what a serializer made, if a database can store it.

    Raises:
        TypeError: It is not text, or contains NUL or a lone surrogate.
    """
    if not isinstance(text, str):
        raise TypeError(f"The serializer {name!r} returned {type_name(text)} instead of str.")
    if "\0" in text:
        raise TypeError(f"The serializer {name!r} returned text with a NUL character, which databases cannot store.")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TypeError(
                f"The serializer {name!r} returned text with a lone surrogate, which databases cannot store."
            ) from error
    return text


def decoder_of(serializer: Serializer) -> Callable[[str], Any]:
    """Return a function that loads what ``serializer`` stored, and translates its errors."""
    name = serializer.name()

    def decode(text: str) -> Any:
        try:
            return serializer.deserialize(text)
        except DBOSDeserializationError:
            raise
        except Exception as error:  # a user's serializer may raise anything
            raise DBOSDeserializationError(name, reason(error)) from error

    return decode
