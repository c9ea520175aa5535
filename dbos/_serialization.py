"""How values become text in the database, and come back.

Every stored value names its format, so an application can change its serializer and still read old rows:

=====================  ================================================================================================
``json``               written wherever a value survives it *exactly*: ``None``, ``bool``, ``int``, finite ``float``,
                       ``str``, lists, dicts with string keys, no container in two places. Readable in SQL.
``py_pickle``          base64 of a pickle, for every other value.
``portable_json``      for programs in other languages; dates, tuples and sets are converted, not restored.
*the configured name*  whatever the application's own :class:`Serializer` makes.
=====================  ================================================================================================

A subclass of ``str``, a tuple or a list that appears twice would come back different from ``json``, and a replayed
workflow would then see another value than the first run did. Hence the walk over each value before it is written.

Loading a pickle runs code that the database's contents choose. With ``allowed_serializers`` an application refuses
that: see :class:`Serialization`. Engine and client share one :class:`Serialization`; the console and the CLI use
:func:`load_for_display`, which never unpickles.
"""

from __future__ import annotations

import base64
import binascii
import builtins
import difflib
import json
import logging
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any

from dbos import _error
from dbos._error import (
    DBOSDeserializationError,
    DBOSException,
    DBOSInitializationError,
    DBOSSerializationNotAllowedError,
)

__all__ = [
    "JSON",
    "PICKLE",
    "PORTABLE_JSON",
    "DBOSPortableJSONSerializer",
    "PickleSerializer",
    "PortableWorkflowError",
    "Serialization",
    "Serializer",
    "WorkflowSerializationFormat",
    "load_for_display",
]

logger = logging.getLogger("dbos.serialization")

JSON = "json"
PICKLE = "py_pickle"
PORTABLE_JSON = "portable_json"

MAX_JSON_DEPTH = (
    100  # the decoder recurses, perhaps far down a user's stack; deeper values go to pickle, which does not
)
MAX_PLAIN_INT = 10**600  # below the 640 digits that every setting of sys.set_int_max_str_digits can convert
MIN_PLAIN_INT = -MAX_PLAIN_INT
MAX_CAUSES = 5  # links of a chain of causes kept as a note
MAX_CAUSE_CHARS = 1000
PICKLE_PROTOCOL = 5  # known to every Python since 3.8

ErrorFields = dict[str, Any]


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


# Looking up a member of an Enum costs more than the comparison on Python 3.11.
_DEFAULT = WorkflowSerializationFormat.DEFAULT
_NATIVE = WorkflowSerializationFormat.NATIVE
_PORTABLE = WorkflowSerializationFormat.PORTABLE


@dataclass(eq=False)  # an exception must stay hashable
class PortableWorkflowError(Exception):
    """An error as another program or another language recorded it: what it said, not its class.

    Attributes:
        message: The text of the error.
        name: The name of its class, where it was raised.
        code: A number or text that identifies it, if it had one.
        data: Further JSON data, if it had any.
    """

    message: str
    name: str
    code: int | str | None = None
    data: Any = None

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.name, self.code, self.data), self.__dict__


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
            raise TypeError(f"A value of type {_type_name(data)} is nested too deeply to be stored.") from error
        except Exception as error:  # pickling calls methods of the value, which may raise anything
            raise TypeError(
                f"A value of type {_type_name(data)} cannot be stored: it cannot be pickled. "
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
            raise DBOSDeserializationError(PICKLE, _reason(error)) from error

    def name(self) -> str:
        """Return ``py_pickle``."""
        return PICKLE


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
            return _encode(_to_portable(data))
        except RecursionError as error:
            raise TypeError(f"A value of type {_type_name(data)} is nested too deeply to be stored.") from error
        except (ValueError, OverflowError) as error:
            raise TypeError(f"A value of type {_type_name(data)} is not portable JSON serializable: {error}") from error

    def deserialize(self, serialized_data: str) -> Any:
        """Return the JSON value.

        Raises:
            DBOSDeserializationError: The text is not JSON.
        """
        try:
            return json.loads(serialized_data)
        except (ValueError, RecursionError) as error:
            raise DBOSDeserializationError(PORTABLE_JSON, _reason(error)) from error

    def name(self) -> str:
        """Return ``portable_json``."""
        return PORTABLE_JSON


_pickle = PickleSerializer()
_portable_json = DBOSPortableJSONSerializer()


class Serialization:
    """The formats one application writes and reads: its own serializer, if any, and what it allows.

    Every ``dump_…`` returns the text and the name of its format, which are stored side by side; every ``load_…`` takes
    them. With ``allowed``, writing or reading any other format raises :class:`DBOSSerializationNotAllowedError`.
    ``portable_json`` is always allowed: it is mere data, and the library's own bookkeeping uses it.
    """

    __slots__ = ("_decoders", "_writes_json", "allowed", "serializer")

    def __init__(self, serializer: Serializer | None = None, allowed: Sequence[str] | None = None) -> None:
        """Take the configuration keys ``serializer`` and ``allowed_serializers``.

        Raises:
            DBOSInitializationError: The serializer takes a reserved name, or ``allowed`` is empty, names an unknown
                format or leaves out the serializer's own.
        """
        decoders: dict[str | None, Callable[[str], Any]] = {
            JSON: _load_json,
            PICKLE: _pickle.deserialize,
            PORTABLE_JSON: _portable_json.deserialize,
        }
        # Rows without a name come from before formats were named.
        decoders[None] = _pickle.deserialize
        if serializer is not None:
            name = serializer.name()
            if name in decoders and not isinstance(serializer, PickleSerializer | DBOSPortableJSONSerializer):
                raise DBOSInitializationError(
                    f"The configured serializer calls itself {name!r}, a name this library uses for its own format. "
                    "Return another one from its name() method."
                )
            decoders[name] = decoders[None] = _decoder(serializer)
        if allowed is not None:
            _check_allowed(allowed, serializer, known=[name for name in decoders if name is not None])
            unnamed = serializer.name() if serializer is not None else PICKLE
            readable = {*allowed, PORTABLE_JSON}
            decoders = {
                name: decode for name, decode in decoders.items() if (unnamed if name is None else name) in readable
            }
        self.serializer = serializer
        self.allowed = None if allowed is None else frozenset(allowed) | {PORTABLE_JSON}
        self._decoders = decoders
        self._writes_json = serializer is None and JSON in decoders

    def __repr__(self) -> str:
        return f"{type(self).__name__}(serializer={self.serializer!r}, allowed={self.allowed!r})"

    # -- values -------------------------------------------------------------------------------------------------------

    def dump_value(self, value: Any, format: WorkflowSerializationFormat | None = _DEFAULT) -> tuple[str, str]:
        """Return the text of a result, event, message or stream value, and the name of its format.

        Raises:
            TypeError: The value cannot be stored in this format.
            DBOSSerializationNotAllowedError: The format it needs is not allowed.
        """
        if self._writes_json and format is _DEFAULT:
            text = _dump_json(value)
            if text is not None:
                return text, JSON
        return self._dump(value, _resolved(format))

    def load_value(self, text: str | None, name: str | None) -> Any:
        """Return the value that was stored as ``text`` in the format ``name``; ``None`` for an SQL NULL.

        Raises:
            TypeError: This application knows no format of that name.
            DBOSSerializationNotAllowedError: The format is not allowed.
            DBOSDeserializationError: The text cannot be decoded.
        """
        if text is None:
            return None
        decode = self._decoders.get(name)
        if decode is None:
            raise self._unreadable(name)
        return decode(text)

    # -- arguments ----------------------------------------------------------------------------------------------------

    def dump_inputs(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], format: WorkflowSerializationFormat | None = _DEFAULT
    ) -> tuple[str, str]:
        """Return the text of a workflow's arguments, and the name of its format.

        Raises:
            TypeError: An argument cannot be stored in this format.
            DBOSSerializationNotAllowedError: The format they need is not allowed.
        """
        format = _resolved(format)
        if self._is_portable(format):
            return _portable_json.serialize(_portable_inputs(args, kwargs)), PORTABLE_JSON
        if self._writes_json and format is _DEFAULT:
            if not args and not kwargs:
                return '{"args":[],"kwargs":{}}', JSON
            text = _dump_json({"args": [*args], "kwargs": {**kwargs}})
            if text is not None:
                return text, JSON
        if self._must_borrow_portable(format) and _survives_json(plain := _portable_inputs(args, kwargs)):
            return _encode(plain), PORTABLE_JSON
        return self._dump({"args": tuple(args), "kwargs": {**kwargs}}, format)

    def load_inputs(self, text: str | None, name: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the named arguments that were stored as ``text``.

        Raises:
            TypeError: This application knows no format of that name.
            DBOSSerializationNotAllowedError: The format is not allowed.
            DBOSDeserializationError: The text cannot be decoded, or does not hold arguments.
        """
        inputs = self.load_value(text, name)
        args_key, kwargs_key = ("positionalArgs", "namedArgs") if name == PORTABLE_JSON else ("args", "kwargs")
        if inputs is None:
            inputs = {}
        if isinstance(inputs, Mapping):
            # Programs in other languages may leave out either part, or write null.
            args = [] if (given := inputs.get(args_key)) is None else given
            kwargs = {} if (given := inputs.get(kwargs_key)) is None else given
            if isinstance(args, list | tuple) and isinstance(kwargs, dict) and all(type(key) is str for key in kwargs):
                return tuple(args), kwargs
        raise DBOSDeserializationError(str(name), f"it does not hold arguments under {args_key!r} and {kwargs_key!r}")

    # -- errors -------------------------------------------------------------------------------------------------------

    def dump_error(
        self, error: BaseException, format: WorkflowSerializationFormat | None = _DEFAULT
    ) -> tuple[str, str]:
        """Return the text of an exception, and the name of its format; this never raises.

        What does not come back as the same class with the same text is recorded as a portable error instead. The
        texts of the causes (``raise … from …``) are kept as a note.
        """
        format = _resolved(format)
        if not self._is_portable(format):
            for dump in self._error_dumpers(format):
                try:
                    dumped = dump(error)
                except Exception:  # attributes, __str__ and __reduce__ of a user's class may raise anything
                    continue
                if dumped is not None:
                    return dumped
        return _dump_portable_error(error), PORTABLE_JSON

    def load_error(self, text: str, name: str | None) -> Exception:
        """Return the exception that was stored as ``text``; a portable one as :class:`PortableWorkflowError`.

        Raises:
            TypeError: This application knows no format of that name.
            DBOSSerializationNotAllowedError: The format is not allowed.
            DBOSDeserializationError: The text cannot be decoded, or does not hold an exception.
        """
        loaded = self.load_value(text, name)
        if name == PORTABLE_JSON and isinstance(loaded, dict):
            return _portable_error_from(loaded)
        if name == JSON and isinstance(loaded, dict):
            return _error_from(loaded)
        if isinstance(loaded, Exception):
            return loaded
        raise DBOSDeserializationError(str(name), "it does not hold an exception")

    # -- listings: one bad row must not hide the others ---------------------------------------------------------------

    def try_load_value(self, text: str | None, name: str | None) -> Any:
        """Return the value, or the stored text where it cannot be decoded."""
        return self._try(self.load_value, text, name)

    def try_load_inputs(self, text: str | None, name: str | None) -> tuple[tuple[Any, ...], dict[str, Any]] | str:
        """Return the arguments, or the stored text where they cannot be decoded."""
        loaded: tuple[tuple[Any, ...], dict[str, Any]] | str = self._try(self.load_inputs, text, name)
        return loaded

    def try_load_error(self, text: str, name: str | None) -> Exception | str:
        """Return the exception, or the stored text where it cannot be decoded."""
        loaded: Exception | str = self._try(self.load_error, text, name)
        return loaded

    # -- choosing a format --------------------------------------------------------------------------------------------

    def format_for(self, name: str | None) -> WorkflowSerializationFormat:
        """Return the format in which a workflow goes on whose row names the format ``name``."""
        if name == PORTABLE_JSON:
            return _PORTABLE
        if name == PICKLE and self.serializer is not None:
            return _NATIVE
        return _DEFAULT

    def _dump(self, value: Any, format: WorkflowSerializationFormat) -> tuple[str, str]:
        if self._is_portable(format):
            return _portable_json.serialize(value), PORTABLE_JSON
        if format is _DEFAULT and self.serializer is not None:
            name = self.serializer.name()
            return _checked_text(self.serializer.serialize(value), name), name
        if format is _DEFAULT and self._writes_json and (text := _dump_json(value)) is not None:
            return text, JSON  # only where None was given for DEFAULT; otherwise it has been tried
        if self._must_borrow_portable(format) and _survives_json(value):
            return _encode(value), PORTABLE_JSON
        if PICKLE not in self._decoders:
            raise DBOSSerializationNotAllowedError(
                PICKLE,
                f"A value of type {_type_name(value)} was not stored: "
                + ("native format was asked for, which is pickle." if format is _NATIVE else "it needs pickle."),
            )
        return _pickle.serialize(value), PICKLE

    def _is_portable(self, format: WorkflowSerializationFormat) -> bool:
        return format is _PORTABLE or (format is _DEFAULT and isinstance(self.serializer, DBOSPortableJSONSerializer))

    def _must_borrow_portable(self, format: WorkflowSerializationFormat) -> bool:
        """Whether default values that survive JSON can only be stored as portable JSON, because nothing else is."""
        return (
            format is _DEFAULT
            and self.serializer is None
            and JSON not in self._decoders
            and PICKLE not in self._decoders
        )

    def _error_dumpers(
        self, format: WorkflowSerializationFormat
    ) -> list[Callable[[BaseException], tuple[str, str] | None]]:
        """The ways to record an exception that brings back its class, best first."""
        serializer = _pickle if format is _NATIVE else self.serializer
        if serializer is not None and serializer.name() in self._decoders:
            return [lambda error: _dump_error_with(serializer, error)]
        dumpers: list[Callable[[BaseException], tuple[str, str] | None]] = []
        if JSON in self._decoders:
            dumpers.append(_dump_json_error)
        if PICKLE in self._decoders:
            dumpers.append(lambda error: _dump_error_with(_pickle, error))
        if JSON in self._decoders:
            dumpers.append(lambda error: _dump_json_error(error, is_lossy=True))
        return dumpers

    def _unreadable(self, name: str | None) -> Exception:
        own = self.serializer.name() if self.serializer is not None else PICKLE
        if name is None or name in (JSON, PICKLE, own):
            return DBOSSerializationNotAllowedError(own if name is None else name, "A stored value was not read.")
        return TypeError(f"Serialization {name} is not available")

    @staticmethod
    def _try(load: Callable[[Any, str | None], Any], text: str | None, name: str | None) -> Any:
        try:
            return load(text, name)
        except Exception as error:  # one bad row must not stop a listing
            logger.warning(
                "a stored value could not be decoded; its text is shown instead",
                extra={"serialization": name, "reason": type(error).__name__},
            )
            return text


def load_for_display(text: str | None, name: str | None) -> Any:
    """Return a stored value for a screen: decoded if it is JSON, otherwise a marker with format and size.

    Runs no code that the database chooses, and never raises.
    """
    if text is None:
        return None
    if name in (JSON, PORTABLE_JSON):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return f"<damaged {name}, {len(text)} characters>"
    return f"<{name or 'unnamed format'}, {len(text)} characters>"


# -- json -------------------------------------------------------------------------------------------------------------

_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))
_ASCII_ENCODER = json.JSONEncoder(ensure_ascii=True, check_circular=False, allow_nan=False, separators=(",", ":"))


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _survives_json(value: Any) -> bool:
    """Whether ``value`` comes back from JSON equal in every value, type and identity of containers."""
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


def _dump_json(value: Any) -> str | None:
    """Return ``value`` as JSON, or ``None`` if it would not survive it exactly."""
    kind = type(value)
    if kind is not str:
        if value is None:
            return "null"
        if kind is bool:
            return "true" if value else "false"
        if not _survives(value, set(), MAX_JSON_DEPTH):
            return None
        if kind is int or kind is float:
            return repr(value)
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


def _encode(value: Any) -> str:
    """Return a JSON value as text that every database can store."""
    text = _ENCODER.encode(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return _ASCII_ENCODER.encode(value)
    return text


def _load_json(text: str) -> Any:
    try:
        value, end = _DECODER.raw_decode(text)
        if end == len(text):
            return value
    except (ValueError, RecursionError):
        pass
    try:
        # Slower, and only for text we did not write: it allows white space, and names what is wrong.
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise DBOSDeserializationError(JSON, _reason(error)) from error


# -- portable json ----------------------------------------------------------------------------------------------------


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
    raise TypeError(f"Object of type {_type_name(value)} is not portable JSON serializable")


def _portable_key(key: Any) -> str:
    if isinstance(key, str):
        return key
    raise TypeError(f"A mapping with keys of type {_type_name(key)} is not portable JSON serializable")


def _portable_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {"namedArgs": {**kwargs}, "positionalArgs": [*args]}


def _dump_portable_error(error: BaseException) -> str:
    """Return an exception as a portable error; this never raises."""
    if type(error) is PortableWorkflowError:
        name, code, data = error.name, error.code, error.data
    else:
        name = type(error).__name__
        code = _first_attribute(error, ("code", "error_code", "errno", "status", "status_code"), _is_code)
        data = _first_attribute(error, ("data", "details", "payload", "extra", "meta", "metadata"), _is_data)
    fields: dict[str, Any] = {"name": name, "message": _text_of(error), "code": code}
    if data is not None:
        try:
            return _portable_json.serialize({**fields, "data": data})
        except Exception as refused:  # data of a user's error may be anything; its name and message matter more
            logger.debug("the data of an error was left out", extra={"reason": type(refused).__name__})
    try:
        return _portable_json.serialize(fields)
    except Exception:  # a subclass of str or int with methods of its own, or fields of the wrong type
        return _encode({"name": type(error).__name__, "message": "An error that could not be recorded", "code": None})


def _portable_error_from(fields: dict[str, Any]) -> PortableWorkflowError:
    message, name, code = fields.get("message"), fields.get("name"), fields.get("code")
    return PortableWorkflowError(
        message if isinstance(message, str) else _encode(message),
        name if isinstance(name, str) else "Error",
        code if _is_code(code) else None,
        fields.get("data"),
    )


def _first_attribute(error: BaseException, names: Sequence[str], accepts: Callable[[Any], bool]) -> Any:
    for name in names:
        try:
            value = getattr(error, name)
        except Exception:  # it has none, or a property of a user's class that may raise anything
            continue
        if accepts(value):
            return value
    return None


def _is_code(value: Any) -> bool:
    return value is None or isinstance(value, int | str)


def _is_data(value: Any) -> bool:
    return not callable(value)


# -- errors that come back as their own class -------------------------------------------------------------------------

# Exceptions that are nothing but their class and arguments, and ours: making one runs no code but ours.
_PLAIN_ERRORS = """
    ArithmeticError AssertionError AttributeError BrokenPipeError BufferError ConnectionAbortedError ConnectionError
    ConnectionRefusedError ConnectionResetError EOFError Exception FileExistsError FileNotFoundError
    FloatingPointError IndexError IsADirectoryError KeyError LookupError MemoryError NameError NotADirectoryError
    NotImplementedError OSError OverflowError PermissionError RecursionError ReferenceError RuntimeError
    TimeoutError TypeError ValueError ZeroDivisionError
"""
_ERROR_TYPES: dict[str, type[Exception]] = {name: getattr(builtins, name) for name in _PLAIN_ERRORS.split()}
_ERROR_TYPES.update(
    (name, kind)
    for name in _error.__all__
    if isinstance(kind := getattr(_error, name), type) and issubclass(kind, DBOSException)
)
_ERROR_TYPES[PortableWorkflowError.__name__] = PortableWorkflowError


def _dump_error_with(serializer: Serializer, error: BaseException) -> tuple[str, str] | None:
    """Return ``error`` as ``serializer`` stores it, or ``None`` if it does not come back the same."""
    name = serializer.name()
    text = _checked_text(serializer.serialize(error), name)
    copy = serializer.deserialize(text)
    if type(copy) is not type(error) or str(copy) != str(error):
        return None
    cause = _cause_note(error)
    if cause is not None:
        # On the copy: the user's own exception is not ours to change.
        copy.add_note(cause)
        text = _checked_text(serializer.serialize(copy), name)
    return text, name


def _dump_json_error(error: BaseException, *, is_lossy: bool = False) -> tuple[str, str] | None:
    """Return ``error`` as JSON, or ``None`` if it does not come back the same.

    If ``is_lossy``, the errors inside a :class:`DBOSMaxStepRetriesExceeded` may come back as portable ones.
    """
    fields = _error_fields(error, is_lossy=is_lossy)
    if fields is None:
        return None
    text = _dump_json(fields)
    if text is None:
        return None
    copy = _error_from(fields)
    if type(copy) is not type(error) or str(copy) != str(error):
        return None
    return text, JSON


def _error_fields(error: BaseException, *, is_lossy: bool) -> ErrorFields | None:
    """Return what makes up ``error``, or ``None`` if its class is not one of the plain ones."""
    kind = type(error)
    if _ERROR_TYPES.get(kind.__name__) is not kind:
        return None
    # What the constructor of a built-in class takes is not always in its args: OSError keeps the file name apart.
    args = error.__reduce__()[1] if kind.__module__ == "builtins" else error.args
    fields: ErrorFields = {"error": kind.__name__, "message": str(error), "args": [*args]}
    attributes = {name: value for name, value in vars(error).items() if name != "__notes__"}
    if isinstance(error, _error.DBOSMaxStepRetriesExceeded):
        errors = [_inner_error_fields(inner, is_lossy=is_lossy) for inner in attributes.pop("errors")]
        if None in errors:
            return None
        fields["errors"] = errors
    if isinstance(inputs := attributes.get("inputs"), tuple):
        attributes["inputs"] = [*inputs]
    if attributes:
        fields["attributes"] = attributes
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
    if (cause := _cause_note(error)) is not None:
        notes.append(cause)
    if notes:
        fields["notes"] = notes
    return fields


def _inner_error_fields(error: BaseException, *, is_lossy: bool) -> ErrorFields | None:
    fields = _error_fields(error, is_lossy=is_lossy)
    if is_lossy and (fields is None or not _survives_json(fields)):
        return _error_fields(_portable_error_from(json.loads(_dump_portable_error(error))), is_lossy=False)
    return fields


def _error_from(fields: ErrorFields) -> Exception:
    """Return the exception that :func:`_error_fields` described; a portable one if the class is not known here.

    Raises:
        DBOSDeserializationError: The fields do not describe an exception.
    """
    name, message, args = fields.get("error"), fields.get("message"), fields.get("args")
    if not isinstance(name, str) or not isinstance(message, str) or not isinstance(args, list):
        raise DBOSDeserializationError(JSON, "it does not hold an exception")
    kind = _ERROR_TYPES.get(name)
    if kind is None:
        return PortableWorkflowError(message, name)
    try:
        # Not our constructors: they take what the message is made of, not the message.
        error = kind(*args) if kind.__module__ == "builtins" else kind.__new__(kind, *args)
        attributes = fields.get("attributes", {})
        if isinstance(attributes.get("inputs"), list):
            attributes = {**attributes, "inputs": tuple(attributes["inputs"])}
        if "errors" in fields:
            attributes = {**attributes, "errors": [_error_from(inner) for inner in fields["errors"]]}
        vars(error).update((key, value) for key, value in attributes.items() if not key.startswith("_"))
        for note in fields.get("notes", ()):
            error.add_note(note)
        str(error)
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as damaged:
        raise DBOSDeserializationError(JSON, "it does not hold an exception") from damaged
    return error


def _cause_note(error: BaseException) -> str | None:
    """Return the chain of causes as text, since neither pickle nor JSON keeps it."""
    causes: list[str] = []
    cause = error.__cause__
    while cause is not None and len(causes) < MAX_CAUSES:
        causes.append(f"Caused by {type(cause).__name__}: {_text_of(cause)[:MAX_CAUSE_CHARS]}")
        cause = cause.__cause__
    return "\n".join(causes) if causes else None


# -- small things -----------------------------------------------------------------------------------------------------


def _resolved(format: WorkflowSerializationFormat | None) -> WorkflowSerializationFormat:
    """Return the format that was asked for; plain text such as ``"portable"`` will do.

    Raises:
        ValueError: There is no such format.
    """
    return _DEFAULT if format is None else WorkflowSerializationFormat(format)


def _text_of(error: BaseException) -> str:
    """Return ``str(error)``, or words that say why there is none."""
    try:
        # str() may return an instance of a subclass, whose methods are the user's; this makes a plain copy.
        return str.__str__(str(error))
    except Exception as failure:  # __str__ of a user's class may raise anything
        return f"An error of type {type(error).__name__}, whose text cannot be shown ({type(failure).__name__})"


def _reason(error: Exception) -> str:
    """Return why decoding failed, without words that could hold the value itself."""
    if isinstance(
        error, AttributeError | ImportError | binascii.Error | EOFError | pickle.UnpicklingError | ValueError
    ):
        return f"{type(error).__name__}: {_text_of(error)}"
    return type(error).__name__


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _checked_text(text: Any, name: str) -> str:
    """Return what a serializer made, if a database can store it.

    Raises:
        TypeError: It is not text, or contains NUL or a lone surrogate.
    """
    if not isinstance(text, str):
        raise TypeError(f"The serializer {name!r} returned {_type_name(text)} instead of str.")
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


def _decoder(serializer: Serializer) -> Callable[[str], Any]:
    """Return a function that loads what ``serializer`` stored, and translates its errors."""
    name = serializer.name()

    def decode(text: str) -> Any:
        try:
            return serializer.deserialize(text)
        except DBOSDeserializationError:
            raise
        except Exception as error:  # a user's serializer may raise anything
            raise DBOSDeserializationError(name, _reason(error)) from error

    return decode


def _check_allowed(allowed: Sequence[str], serializer: Serializer | None, known: list[str]) -> None:
    if not allowed:
        raise DBOSInitializationError(
            f"'allowed_serializers' is empty: name at least one of {', '.join(sorted(known))}, or leave the key out."
        )
    for name in allowed:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}."
            raise DBOSInitializationError(f"'allowed_serializers' names an unknown format {name!r}: {advice}")
    if serializer is not None and serializer.name() not in {*allowed, PORTABLE_JSON}:
        raise DBOSInitializationError(
            f"'allowed_serializers' does not list {serializer.name()!r}, the configured serializer. Add it."
        )
