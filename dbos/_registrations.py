"""What decorators note down on the user's functions and classes.

The notes live on the objects themselves (``dbos_func_decorator_info``, ``dbos_class_decorator_info``), so a decorator
can be applied in any order and before anything else exists. The registry, which maps names to them, is apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dbos._error import DBOSWorkflowFunctionNotFoundError
from dbos._serialization import WorkflowSerializationFormat

__all__ = [
    "DBOSClassInfo",
    "DBOSFuncInfo",
    "DBOSFuncType",
    "ValidateArgs",
    "get_class_info",
    "get_class_info_for_receiver",
    "get_dbos_func_name",
    "get_func_info",
    "get_or_create_class_info",
    "get_or_create_func_info",
    "required_roles_of",
]

DEFAULT_MAX_RECOVERY_ATTEMPTS = 100

ValidateArgs = Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]


class DBOSFuncType(Enum):
    """How a decorated function is bound; found out when its class is registered."""

    Unknown = 0
    Bare = 1
    Static = 2
    Class = 3
    Instance = 4


@dataclass(slots=True, eq=False)
class DBOSClassInfo:
    """A registered class: the name it is found by, and the roles its functions require by default."""

    registered_name: str
    def_required_roles: list[str] | None = None


@dataclass(slots=True, eq=False)
class DBOSFuncInfo:
    """What is known about a decorated function."""

    class_info: DBOSClassInfo | None = None
    func_type: DBOSFuncType = DBOSFuncType.Unknown
    required_roles: list[str] | None = None
    max_recovery_attempts: int | None = DEFAULT_MAX_RECOVERY_ATTEMPTS
    serialization_type: WorkflowSerializationFormat | None = None
    validate_args: ValidateArgs | None = None


def get_func_info(func: Callable[..., Any]) -> DBOSFuncInfo | None:
    """The notes on a function, looked for through its wrappers and its binding; None if it was never decorated."""
    current: Any = func
    while current is not None:
        info = getattr(current, "dbos_func_decorator_info", None)
        if isinstance(info, DBOSFuncInfo):
            return info
        current = getattr(current, "__wrapped__", None) or getattr(current, "__func__", None)
    return None


def get_or_create_func_info(func: Callable[..., Any]) -> DBOSFuncInfo:
    """The notes on a function, shared by all its wrappers."""
    info = get_func_info(func)
    if info is None:
        info = DBOSFuncInfo()
    # A staticmethod or classmethod object takes attributes too, and passes its function's on.
    func.dbos_func_decorator_info = info  # type: ignore[attr-defined]  # functions carry arbitrary attributes
    return info


def get_class_info(cls: type) -> DBOSClassInfo | None:
    """The registration of a class or of the nearest base that has one."""
    info = getattr(cls, "dbos_class_decorator_info", None)
    return info if isinstance(info, DBOSClassInfo) else None


def get_or_create_class_info(cls: type, class_name: str | None = None) -> DBOSClassInfo:
    """Note a class as registered, and what kind of method each of its decorated functions is.

    A base's registration is not inherited by a class that is decorated itself. Decorating one class twice (with
    ``dbos_class`` and ``default_required_roles``) keeps the name given first.
    """
    info = cls.__dict__.get("dbos_class_decorator_info")
    if not isinstance(info, DBOSClassInfo):
        info = DBOSClassInfo(class_name if class_name is not None else cls.__qualname__)
        cls.dbos_class_decorator_info = info  # type: ignore[attr-defined]  # classes carry arbitrary attributes
    for owner in reversed(cls.__mro__[:-1]):
        for attribute in list(owner.__dict__.values()):
            if isinstance(attribute, staticmethod):
                _classify(attribute.__func__, DBOSFuncType.Static, info, is_own=owner is cls)
            elif isinstance(attribute, classmethod):
                _classify(attribute.__func__, DBOSFuncType.Class, info, is_own=owner is cls)
            elif inspect.isfunction(attribute):
                _classify(attribute, DBOSFuncType.Instance, info, is_own=owner is cls)
    return info


def _classify(func: Any, func_type: DBOSFuncType, class_info: DBOSClassInfo, *, is_own: bool) -> None:
    current = func
    while current is not None:
        info = current.__dict__.get("dbos_func_decorator_info") if hasattr(current, "__dict__") else None
        if isinstance(info, DBOSFuncInfo):
            info.func_type = func_type
            if is_own or info.class_info is None:
                info.class_info = class_info
        current = getattr(current, "__wrapped__", None)


def get_class_info_for_receiver(func: Callable[..., Any], args: Sequence[Any]) -> tuple[DBOSClassInfo | None, str | None]:
    """The class and instance that a call is for: ``(class info, config name)``, both None for a plain function.

    Raises:
        Exception: the function is a method whose class was not registered, or whose instance has no ``config_name``.
    """
    info = get_func_info(func)
    func_type = info.func_type if info is not None else DBOSFuncType.Unknown
    if not args or func_type in (DBOSFuncType.Static, DBOSFuncType.Bare):
        return None, None
    receiver = args[0]
    if func_type is DBOSFuncType.Unknown:
        first = _first_parameter(func)
        if first == "cls" and isinstance(receiver, type) and get_class_info(receiver) is None:
            raise Exception("Function target appears to be a class, but is not properly registered")
        if first == "self":
            raise Exception("Function target appears to be a class instance, but is not properly registered")
        return None, None
    if func_type is DBOSFuncType.Class:
        class_info = get_class_info(receiver) if isinstance(receiver, type) else None
        if class_info is None:
            raise Exception("Function target appears to be a class, but is not properly registered")
        return class_info, None
    class_info = get_class_info(type(receiver))
    if class_info is None:
        raise Exception("Function target appears to be a class instance, but is not properly registered")
    config_name = getattr(receiver, "config_name", None)
    if config_name is None:
        raise Exception("Function target appears to be a class instance, but does not have `config_name` set")
    return class_info, str(config_name)


def _first_parameter(func: Callable[..., Any]) -> str | None:
    try:
        return next(iter(inspect.signature(inspect.unwrap(func)).parameters), None)
    except (TypeError, ValueError):
        return None  # a callable without a signature has no parameter called self either


def required_roles_of(info: DBOSFuncInfo, class_info: DBOSClassInfo | None = None) -> list[str]:
    """The roles a call needs one of: the function's own, else its class' default; empty for none."""
    if info.required_roles is not None:
        return info.required_roles
    owner = class_info or info.class_info
    return (owner.def_required_roles if owner is not None else None) or []


def get_dbos_func_name(func: Callable[..., Any]) -> str:
    """The name that a decorated function is registered under.

    Raises:
        DBOSWorkflowFunctionNotFoundError: it was never decorated.
    """
    name = getattr(func, "dbos_function_name", None)
    if isinstance(name, str):
        return name
    label = getattr(func, "__qualname__", None) or repr(type(func))
    raise DBOSWorkflowFunctionNotFoundError("<NONE>", f"{label} is not a registered workflow function")
