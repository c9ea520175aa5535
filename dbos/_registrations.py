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

from dbos._error import DBOSException, DBOSWorkflowFunctionNotFoundError
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
    "needs_receiver",
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
    """What is known about a decorated function.

    ``is_operation`` tells workflows, steps and transactions from functions that only require roles.
    """

    class_info: DBOSClassInfo | None = None
    func_type: DBOSFuncType = DBOSFuncType.Unknown
    required_roles: list[str] | None = None
    max_recovery_attempts: int | None = DEFAULT_MAX_RECOVERY_ATTEMPTS
    serialization_type: WorkflowSerializationFormat | None = None
    validate_args: ValidateArgs | None = None
    first_parameter: str | None = None
    is_operation: bool = False


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
    """The notes on a function, shared by all its wrappers.

    Raises:
        DBOSException: it is not callable, or takes no notes (a built-in or bound method).
    """
    if not callable(func):
        raise DBOSException(f"A DBOS decorator was applied to {func!r}, which is not a function.")
    info = get_func_info(func)
    if info is None:
        info = DBOSFuncInfo(first_parameter=_first_parameter(func))
    try:
        func.dbos_func_decorator_info = info  # type: ignore[attr-defined]  # functions carry arbitrary attributes
    except AttributeError as error:
        raise DBOSException(
            f"{func!r} cannot be decorated, because it is built in or bound to an object. "
            "Decorate a function of your own that calls it, or call it with DBOS.run_step."
        ) from error
    return info


def get_class_info(cls: type) -> DBOSClassInfo | None:
    """The registration of a class or of the nearest base that has one."""
    info = getattr(cls, "dbos_class_decorator_info", None)
    return info if isinstance(info, DBOSClassInfo) else None


def get_or_create_class_info(cls: type, class_name: str | None = None) -> DBOSClassInfo:
    """Note a class as registered, and what kind of method each of its decorated functions is.

    A base's registration is not inherited by a class that is decorated itself; its default roles are, so that a
    subclass never requires less by accident. Decorating one class twice (with ``dbos_class`` and
    ``default_required_roles``) keeps the name given first.

    Raises:
        DBOSException: it is not a class.
    """
    if not isinstance(cls, type):
        raise DBOSException(f"A DBOS class decorator was applied to {cls!r}, which is not a class.")
    info = cls.__dict__.get("dbos_class_decorator_info")
    if not isinstance(info, DBOSClassInfo):
        base = get_class_info(cls)
        info = DBOSClassInfo(class_name if class_name is not None else cls.__qualname__)
        info.def_required_roles = base.def_required_roles if base is not None else None
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


def get_class_info_for_receiver(
    func: Callable[..., Any], args: Sequence[Any]
) -> tuple[DBOSClassInfo | None, str | None]:
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
        first = info.first_parameter if info is not None else None
        if first == "cls" and isinstance(receiver, type) and get_class_info(receiver) is None:
            raise Exception("Function target appears to be a class, but is not properly registered")
        if first == "self":
            raise Exception("Function target appears to be a class instance, but is not properly registered")
        return None, None
    if func_type is DBOSFuncType.Class:
        class_info = get_class_info(receiver) if isinstance(receiver, type) else None
        if class_info is None:
            raise Exception("Function target appears to be a class, but is not properly registered")
        if "dbos_class_decorator_info" not in receiver.__dict__:
            raise Exception(
                "Function target appears to be a class, but is not properly registered: "
                f"recovery would find its base {class_info.registered_name} instead of {receiver.__qualname__}. "
                "Decorate it with @DBOS.dbos_class() as well."
            )
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


def needs_receiver(info: DBOSFuncInfo) -> bool:
    """Whether a function is called on a class or an instance, as far as can be told before its class is registered."""
    if info.func_type is DBOSFuncType.Unknown:
        return info.first_parameter in ("cls", "self")
    return info.func_type in (DBOSFuncType.Class, DBOSFuncType.Instance)


def required_roles_of(info: DBOSFuncInfo, args: Sequence[Any]) -> list[str]:
    """The roles that a call with ``args`` needs one of: the function's own, else its class' default; empty for none."""
    if info.required_roles is not None:
        return info.required_roles
    owner = info.class_info
    if owner is None:
        return []
    if args and info.func_type is DBOSFuncType.Instance:
        owner = get_class_info(type(args[0])) or owner  # an inherited method: the receiver's class decides
    elif args and info.func_type is DBOSFuncType.Class and isinstance(args[0], type):
        owner = get_class_info(args[0]) or owner
    return owner.def_required_roles or []


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
