"""Arguments checked against a workflow's annotations by pydantic, before it runs what the database says.

Rows come from other programs and other languages, too: what they hold need not be what the function expects. pydantic
is optional (``pip install "opendbos[validation]"``) and imported when it is used.
"""

from __future__ import annotations

import importlib
import inspect
import threading
import typing
from collections.abc import Callable, Iterator
from inspect import Parameter
from typing import Any

from dbos._error import DBOSException
from dbos._registrations import DBOSFuncInfo, ValidateArgs, get_func_info, needs_receiver

__all__ = ["make_pydantic_args_validator", "pydantic_args_validator", "validator_for"]

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)

Check = Callable[[Any], Any]


def pydantic_args_validator(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Check and convert a workflow's arguments by its annotations: give it as ``validate_args``.

    What is read from the database becomes what the annotations say, as pydantic converts it: text a ``datetime``, an
    object of JSON a model. If arguments do not fit, the workflow does not run, and ends as ERROR with a ``ValueError``
    that lists them. Parameters without an annotation take anything.

    Example:
        ```python
        @DBOS.workflow(serialization_type=WorkflowSerializationFormat.PORTABLE, validate_args=pydantic_args_validator)
        def ship(order: Order, by: datetime) -> None: ...
        ```
    """
    raise TypeError(
        "pydantic_args_validator is not called: pass it to @DBOS.workflow(validate_args=...), which makes a validator "
        "of the decorated function. Elsewhere, make_pydantic_args_validator(function) returns one."
    )


def make_pydantic_args_validator(func: Callable[..., Any]) -> ValidateArgs:
    """Return a validator for ``func``: it takes ``(args, kwargs)``, and returns them checked and converted.

    For a method, ``self`` or ``cls`` is not among the arguments. The annotations are looked up at the first call, so
    they may name what is defined later in the module.

    Args:
        func: The function whose annotations count, decorated or not.

    Raises:
        DBOSException: pydantic is not installed, or ``func`` has no signature.

    Example:
        ```python
        validate = make_pydantic_args_validator(ship)
        args, kwargs = validate(({"sku": "a", "count": "3"},), {})
        ```
    """
    _import_pydantic()
    func = getattr(func, "__func__", func)  # what is bound already is not bound when its workflow is found
    try:
        inspect.signature(func)
    except (TypeError, ValueError) as error:
        raise DBOSException(f"The arguments of {func!r} cannot be validated, because it has no signature.") from error
    return _Validator(func)


def validator_for(validate_args: ValidateArgs | None, func: Callable[..., Any]) -> ValidateArgs | None:
    """Return what validates the arguments of ``func``, given what its decorator was given."""
    return make_pydantic_args_validator(func) if validate_args is pydantic_args_validator else validate_args


class _Validator:
    """The checks of one function's parameters; made at the first call."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self._func = func
        self._lock = threading.Lock()
        self._signature: _Signature | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        with self._lock:
            if self._signature is None:
                self._signature = _Signature(self._func)
        return self._signature.validate(args, kwargs)


class _Signature:
    def __init__(self, func: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(func).parameters.values())
        if parameters and needs_receiver(get_func_info(func) or DBOSFuncInfo(first_parameter=parameters[0].name)):
            del parameters[0]
        checks = _checks(func, parameters)
        self._positional = [each for each in parameters if each.kind in POSITIONAL]
        self._named = {each.name: each for each in parameters if each.kind in NAMED}
        self._more = next((each for each in parameters if each.kind is Parameter.VAR_POSITIONAL), None)
        self._others = next((each for each in parameters if each.kind is Parameter.VAR_KEYWORD), None)
        self._checks = checks

    def validate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        problems: list[str] = []
        checked_args: list[Any] = []
        for position, value in enumerate(args):
            parameter = self._positional[position] if position < len(self._positional) else self._more
            if parameter is None:
                problems.append(f"Too many arguments: {len(args)} positional ones, and it takes {position}")
                break
            where = f"Argument '{parameter.name}' (position {position})"
            checked_args.append(self._checked(parameter, value, where, problems))
        given = {each.name for each in self._positional[: len(args)]}
        checked_kwargs: dict[str, Any] = {}
        for name, value in kwargs.items():
            named = self._named.get(name, self._others)
            if named is None:
                problems.append(f"Unexpected argument: '{name}'")
            elif name in given and name in self._named:
                problems.append(f"Argument '{name}': it is given by position as well")
            else:
                checked_kwargs[name] = self._checked(named, value, f"Argument '{name}'", problems)
        problems.extend(f"Missing required argument: '{name}'" for name in self._missing(given, kwargs))
        if problems:
            raise ValueError(
                "\n".join(["Argument validation failed for workflow:", *(f"  {each}" for each in problems)])
            )
        return tuple(checked_args), checked_kwargs

    def _checked(self, parameter: Parameter, value: Any, where: str, problems: list[str]) -> Any:
        check = self._checks.get(parameter.name)
        if check is None:
            return value
        from pydantic import ValidationError

        try:
            return check(value)
        except ValidationError as error:
            for detail in error.errors(include_url=False, include_context=False, include_input=False):
                # Never the input itself, which may be secret and goes to the log.
                path = ".".join(str(part) for part in detail["loc"][1:])
                problems.append(f"{where}: {path}: {detail['msg']}" if path else f"{where}: {detail['msg']}")
            return None

    def _missing(self, given: set[str], kwargs: dict[str, Any]) -> Iterator[str]:
        for each in [*self._positional, *(named for named in self._named.values() if named not in self._positional)]:
            is_given = each.name in given or (each.name in kwargs and each.kind in NAMED)
            if not is_given and each.default is Parameter.empty:
                yield each.name


def _checks(func: Callable[..., Any], parameters: list[Parameter]) -> dict[str, Check]:
    from pydantic import ConfigDict, create_model

    try:
        hints = typing.get_type_hints(inspect.unwrap(func), include_extras=True)
    except NameError as error:
        raise TypeError(
            f"The arguments of {func.__qualname__} cannot be validated: {error}. Define what its annotations name at "
            "the top of its module."
        ) from error
    # A model of one field each, because annotations may be classes that pydantic knows nothing of.
    config = ConfigDict(arbitrary_types_allowed=True)

    def check_of(annotation: Any) -> Check:
        model = create_model("Argument", __config__=config, value=(annotation, ...))

        def check(value: Any) -> Any:
            return model.model_validate({"value": value}).value  # type: ignore[attr-defined]  # the field made above

        return check

    return {each.name: check_of(hints[each.name]) for each in parameters if each.name in hints}


def _import_pydantic() -> None:
    try:
        importlib.import_module("pydantic")
    except ImportError as error:
        raise DBOSException(
            "pydantic dependency not found. Please install pydantic via your package manager, for example with "
            "pip install 'opendbos[validation]'."
        ) from error
