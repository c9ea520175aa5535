"""Exceptions as text: back as their own class where that is safe, as :class:`PortableWorkflowError` elsewhere.

Each way to record an exception makes a copy from what it wrote, and declines if class or text differ. Loading ``json``
makes only built-in exceptions and ours: no code that the database's contents choose.
"""

from __future__ import annotations

import builtins
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dbos import _error
from dbos._error import DBOSDeserializationError, DBOSException

from .exact_json import dump_json, encode
from .formats import JSON, PickleSerializer, Serializer, checked_text
from .portable_json import DBOSPortableJSONSerializer
from .wording import text_of

__all__ = [
    "PortableWorkflowError",
    "dump_cut_error",
    "dump_error_with",
    "dump_json_error",
    "dump_portable_error",
    "error_from",
    "error_from_parts",
    "portable_error_from",
]

logger = logging.getLogger("dbos.serialization")

MAX_CAUSES = 5  # links of a chain of causes kept as a note
MAX_CAUSE_CHARS = 1000
MAX_CUT_CHARS = 10_000  # of the message of an error that is too large to be recorded

ErrorFields = dict[str, Any]


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


# -- as portable json --------------------------------------------------------------------------------------------------

_portable_json = DBOSPortableJSONSerializer()


def dump_portable_error(error: BaseException) -> str:
    """Return an exception as a portable error; this never raises."""
    if type(error) is PortableWorkflowError:
        name, code, data = error.name, error.code, error.data
    else:
        name = type(error).__name__
        code = _first_attribute(error, ("code", "error_code", "errno", "status", "status_code"), _is_code)
        data = _first_attribute(error, ("data", "details", "payload", "extra", "meta", "metadata"), _is_data)
    fields: dict[str, Any] = {"name": name, "message": text_of(error), "code": code}
    if data is not None:
        try:
            return _portable_json.serialize({**fields, "data": data})
        except Exception as refused:  # data of a user's error may be anything; its name and message matter more
            logger.debug("the data of an error was left out", extra={"reason": type(refused).__name__})
    try:
        return _portable_json.serialize(fields)
    except Exception:  # a subclass of str or int with methods of its own, or fields of the wrong type
        return encode({"name": type(error).__name__, "message": "An error that could not be recorded", "code": None})


def dump_cut_error(error: BaseException) -> str:
    """Return the name of an exception and the beginning of its message as a portable error; this never raises."""
    fields = json.loads(dump_portable_error(error))
    name, message = str(fields["name"]), str(fields["message"])
    left = len(message) - MAX_CUT_CHARS
    cut = message if left <= 0 else f"{message[:MAX_CUT_CHARS]} … ({left:,} characters more were not recorded)"
    return encode({"name": name[:MAX_CAUSE_CHARS], "message": cut, "code": None})


def portable_error_from(fields: dict[str, Any]) -> PortableWorkflowError:
    """Return the portable error that ``fields`` describe, whatever a program in another language left out."""
    message, name, code = fields.get("message"), fields.get("name"), fields.get("code")
    return PortableWorkflowError(
        message if isinstance(message, str) else encode(message),
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


# -- as their own class ------------------------------------------------------------------------------------------------

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


class _Parts:
    """An exception that is pickled as its class, arguments and attributes, and made from them without its constructor.

    Pickle calls the constructor with what ``args`` hold, which fails or makes something else where a class takes other
    arguments than it passes on to ``Exception``.
    """

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return error_from_parts, (type(self._error), self._error.args, vars(self._error))


def error_from_parts(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    """Return the exception that was recorded by its parts. Stored rows name this function."""
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(attributes)
    return error


def dump_error_with(serializer: Serializer, error: BaseException) -> tuple[str, str] | None:
    """Return ``error`` as ``serializer`` stores it, or ``None`` if it does not come back the same."""
    if not isinstance(serializer, PickleSerializer):
        return _dump_copied(serializer, error, lambda error: error)
    try:
        found = _dump_copied(serializer, error, lambda error: error)
    except Exception:  # whatever its constructor makes of the wrong arguments
        found = None
    return found or _dump_copied(serializer, error, _Parts)


def _dump_copied(
    serializer: Serializer, error: BaseException, form: Callable[[BaseException], object]
) -> tuple[str, str] | None:
    name = serializer.name()
    text = checked_text(serializer.serialize(form(error)), name)
    copy = serializer.deserialize(text)
    if type(copy) is not type(error) or str(copy) != str(error) or vars(copy).keys() != vars(error).keys():
        return None
    cause = _cause_note(error)
    if cause is not None:
        # On the copy: the user's own exception is not ours to change.
        copy.add_note(cause)
        text = checked_text(serializer.serialize(form(copy)), name)
    return text, name


def dump_json_error(error: BaseException, *, is_lossy: bool = False) -> tuple[str, str] | None:
    """Return ``error`` as JSON, or ``None`` if it does not come back the same.

    If ``is_lossy``, the errors inside a :class:`DBOSMaxStepRetriesExceeded` may come back as portable ones.
    """
    fields = _error_fields(error, is_lossy=is_lossy)
    if fields is None:
        return None
    text = dump_json(fields)
    if text is None:
        return None
    copy = error_from(fields)
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
    if is_lossy and (fields is None or dump_json(fields) is None):
        return _error_fields(portable_error_from(json.loads(dump_portable_error(error))), is_lossy=False)
    return fields


def error_from(fields: ErrorFields) -> Exception:
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
            attributes = {**attributes, "errors": [error_from(inner) for inner in fields["errors"]]}
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
        causes.append(f"Caused by {type(cause).__name__}: {text_of(cause)[:MAX_CAUSE_CHARS]}")
        cause = cause.__cause__
    return "\n".join(causes) if causes else None
