"""Which formats an application writes and reads: :class:`Serialization`, and what screens show of a stored value."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dbos._error import (
    DBOSDeserializationError,
    DBOSInitializationError,
    DBOSPayloadTooLargeError,
    DBOSSerializationNotAllowedError,
)

from .errors import (
    dump_cut_error,
    dump_error_with,
    dump_json_error,
    dump_portable_error,
    error_from,
    portable_error_from,
)
from .exact_json import dump_args, dump_json, encode, load_json, survives_json
from .formats import (
    JSON,
    PICKLE,
    PORTABLE_JSON,
    PickleSerializer,
    Serializer,
    WorkflowSerializationFormat,
    checked_text,
    decoder_of,
)
from .limits import SizeLimits
from .portable_json import DBOSPortableJSONSerializer, portable_inputs
from .wording import type_name

__all__ = [
    "Serialization",
    "load_for_display",
]

logger = logging.getLogger("dbos.serialization")

# Looking up a member of an Enum costs more than the comparison on Python 3.11.
_DEFAULT = WorkflowSerializationFormat.DEFAULT
_NATIVE = WorkflowSerializationFormat.NATIVE
_PORTABLE = WorkflowSerializationFormat.PORTABLE

_pickle = PickleSerializer()
_portable_json = DBOSPortableJSONSerializer()


class Serialization:
    """The formats one application writes and reads: its own serializer, if any, and what it allows.

    Every ``dump_…`` returns the text and the name of its format, which are stored side by side; every ``load_…`` takes
    them. With ``allowed``, writing or reading any other format raises :class:`DBOSSerializationNotAllowedError`.
    ``portable_json`` is always allowed: it is mere data, and the library's own bookkeeping uses it.

    ``what`` and ``name`` say what a value is, for the error if it is larger than ``limits`` allow.
    """

    __slots__ = ("_decoders", "_free_characters", "_writes_json", "allowed", "limits", "serializer")

    def __init__(
        self,
        serializer: Serializer | None = None,
        allowed: Sequence[str] | None = None,
        limits: SizeLimits | None = None,
    ) -> None:
        """Take the configuration keys ``serializer``, ``allowed_serializers``, and the limits of sizes.

        Raises:
            DBOSInitializationError: The serializer takes a reserved name, or ``allowed`` is empty, names an unknown
                format or leaves out the serializer's own.
        """
        decoders: dict[str | None, Callable[[str], Any]] = {
            JSON: load_json,
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
            decoders[name] = decoders[None] = decoder_of(serializer)
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
        self.limits = limits or SizeLimits()
        self._free_characters = self.limits.free_characters  # looked at for every value

    def __repr__(self) -> str:
        return f"{type(self).__name__}(serializer={self.serializer!r}, allowed={self.allowed!r})"

    # -- values -------------------------------------------------------------------------------------------------------

    def dump_value(
        self,
        value: Any,
        format: WorkflowSerializationFormat | None = _DEFAULT,
        *,
        what: str = "value",
        name: str | None = None,
    ) -> tuple[str, str]:
        """Return the text of a result, event, message or stream value, and the name of its format.

        Raises:
            TypeError: The value cannot be stored in this format.
            DBOSSerializationNotAllowedError: The format it needs is not allowed.
            DBOSPayloadTooLargeError: Its text is larger than the configuration allows.
        """
        text = dump_json(value) if self._writes_json and format is _DEFAULT else None
        if text is None:
            text, format_name = self._dump(value, _resolved(format))
        else:
            format_name = JSON
        if len(text) > self._free_characters:
            self.limits.check(text, what, name)
        return text, format_name

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
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        format: WorkflowSerializationFormat | None = _DEFAULT,
        *,
        name: str | None = None,
    ) -> tuple[str, str]:
        """Return the text of the arguments of the workflow ``name``, and the name of its format.

        Raises:
            TypeError: An argument cannot be stored in this format.
            DBOSSerializationNotAllowedError: The format they need is not allowed.
            DBOSPayloadTooLargeError: Their text is larger than the configuration allows.
        """
        text, format_name = self._dump_inputs(args, kwargs, _resolved(format))
        if len(text) > self._free_characters:
            self.limits.check(text, "input of workflow", name)
        return text, format_name

    def _dump_inputs(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], format: WorkflowSerializationFormat
    ) -> tuple[str, str]:
        if self._is_portable(format):
            return _portable_json.serialize(portable_inputs(args, kwargs)), PORTABLE_JSON
        if self._writes_json and format is _DEFAULT:
            if not args and not kwargs:
                return '{"args":[],"kwargs":{}}', JSON
            if not kwargs and (text := dump_args(args)) is not None:
                return f'{{"args":{text},"kwargs":{{}}}}', JSON
            text = dump_json({"args": [*args], "kwargs": {**kwargs}})
            if text is not None:
                return text, JSON
        if self._must_borrow_portable(format) and survives_json(plain := portable_inputs(args, kwargs)):
            return encode(plain), PORTABLE_JSON
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

        What does not come back as the same class with the same text is recorded as a portable error instead; what is
        too large, as one with the beginning of its message. The texts of the causes (``raise … from …``) are kept as a
        note.
        """
        format = _resolved(format)
        if not self._is_portable(format):
            for dump in self._error_dumpers(format):
                try:
                    dumped = dump(error)
                    if dumped is None:
                        continue
                    self._check_error(dumped[0], error)
                except Exception:  # attributes, __str__ and __reduce__ of a user's class may raise anything
                    continue
                return dumped
        text = dump_portable_error(error)
        try:
            self._check_error(text, error)
        except DBOSPayloadTooLargeError as refused:
            logger.error(
                "Only the beginning of an error's message is recorded, and none of its data: %s", refused.message
            )
            text = dump_cut_error(error)
        return text, PORTABLE_JSON

    def _check_error(self, text: str, error: BaseException) -> None:
        if len(text) > self._free_characters:
            self.limits.check(text, "error", type_name(error))

    def load_error(self, text: str, name: str | None) -> Exception:
        """Return the exception that was stored as ``text``; a portable one as :class:`PortableWorkflowError`.

        Raises:
            TypeError: This application knows no format of that name.
            DBOSSerializationNotAllowedError: The format is not allowed.
            DBOSDeserializationError: The text cannot be decoded, or does not hold an exception.
        """
        loaded = self.load_value(text, name)
        if name == PORTABLE_JSON and isinstance(loaded, dict):
            return portable_error_from(loaded)
        if name == JSON and isinstance(loaded, dict):
            return error_from(loaded)
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

    def is_exact(self, format: WorkflowSerializationFormat | None) -> bool:
        """Whether whatever is stored in a format is equal to what comes back."""
        return self.serializer is None and (format is None or format is _DEFAULT or _resolved(format) is not _PORTABLE)

    def _dump(self, value: Any, format: WorkflowSerializationFormat) -> tuple[str, str]:
        if self._is_portable(format):
            return _portable_json.serialize(value), PORTABLE_JSON
        if format is _DEFAULT and self.serializer is not None:
            name = self.serializer.name()
            return checked_text(self.serializer.serialize(value), name), name
        if format is _DEFAULT and self._writes_json and (text := dump_json(value)) is not None:
            return text, JSON  # only where None was given for DEFAULT; otherwise it has been tried
        if self._must_borrow_portable(format) and survives_json(value):
            return encode(value), PORTABLE_JSON
        if PICKLE not in self._decoders:
            raise DBOSSerializationNotAllowedError(
                PICKLE,
                f"A value of type {type_name(value)} was not stored: "
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
            return [lambda error: dump_error_with(serializer, error)]
        dumpers: list[Callable[[BaseException], tuple[str, str] | None]] = []
        if JSON in self._decoders:
            dumpers.append(dump_json_error)
        if PICKLE in self._decoders:
            dumpers.append(lambda error: dump_error_with(_pickle, error))
        if JSON in self._decoders:
            dumpers.append(lambda error: dump_json_error(error, is_lossy=True))
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


def _resolved(format: WorkflowSerializationFormat | None) -> WorkflowSerializationFormat:
    """Return the format that was asked for; plain text such as ``"portable"`` will do.

    Raises:
        ValueError: There is no such format.
    """
    return _DEFAULT if format is None else WorkflowSerializationFormat(format)


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
