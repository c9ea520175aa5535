"""Names to functions, classes and instances: what recovery and queues find work by.

Decorators fill it at import time, before anything is launched; it outlives launches, so that decorated functions work
with the next one. It also says which engine runs them, if one does: functions find their engine here and nowhere else.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from dbos._error import DBOSConflictingRegistrationError, DBOSException
from dbos._queue_config import QueueConfig
from dbos._registrations import DBOSFuncInfo, get_class_info, get_func_info

__all__ = ["TEMPORARY_PREFIX", "Datasource", "Registry", "ScheduledFunction", "WorkflowFunction"]

logger = logging.getLogger("dbos.registry")

EngineT = TypeVar("EngineT")

Kind = Literal["workflow", "step", "transaction"]

TEMPORARY_PREFIX = "<temp>."  # names the workflow around a step or transaction that is started by itself


@dataclass(frozen=True, slots=True, eq=False)
class WorkflowFunction:
    """A function that can be started by name.

    For a step or transaction it is the workflow made around it, which calls ``wrapper`` once.
    """

    name: str
    kind: Kind
    func: Callable[..., Any]
    info: DBOSFuncInfo
    is_async: bool


class ScheduledFunction(NamedTuple):
    """A function that ``DBOS.scheduled`` was applied to, which need not be a workflow yet."""

    cron: str
    func: Callable[..., Any]


class Datasource(Protocol):
    """A database of the user's, which a launch prepares for transactions."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def prepare(self) -> None:
        """Create or verify what records transactions."""
        ...


class Registry(Generic[EngineT]):
    """Registered names, and the engine that serves them."""

    def __init__(self) -> None:
        self.engine: EngineT | None = None
        self.workflows: dict[str, WorkflowFunction] = {}
        self.classes: dict[str, type] = {}
        self.instances: dict[str, Any] = {}
        self.queues: dict[str, QueueConfig] = {}
        self.scheduled: list[ScheduledFunction] = []
        self.datasources: dict[str, Datasource] = {}
        self.is_launched = False
        self.on_registration: Callable[[], None] = lambda: None

    def clear(self) -> None:
        """Forget all functions, classes, instances, queues and datasources."""
        self.workflows.clear()
        self.classes.clear()
        self.instances.clear()
        self.queues.clear()
        self.scheduled.clear()
        self.datasources.clear()

    def engine_for(self, name: str) -> EngineT:
        """The engine to run ``name`` with.

        Raises:
            DBOSException: there is no DBOS object yet.
        """
        if self.engine is None:
            raise DBOSException(
                f"Function {name} invoked before DBOS initialized: make DBOS(config=...) and call DBOS.launch() first"
            )
        return self.engine

    def register_workflow(self, function: WorkflowFunction) -> None:
        """Make a function startable by name; the later of two equal ones wins, with a warning.

        Raises:
            DBOSConflictingRegistrationError: the name belongs to a function of another kind.
        """
        known = self.workflows.get(function.name)
        if known is not None:
            shown = function.name.removeprefix(TEMPORARY_PREFIX)
            if known.kind != function.kind:
                raise DBOSConflictingRegistrationError(shown)
            logger.warning(
                "Duplicate registration of function '%s'. Each workflow needs a name of its own: "
                "rename one, or give it a name= of its own in the decorator.",
                shown,
            )
        self.workflows[function.name] = function
        self.on_registration()

    def register_scheduled(self, cron: str, func: Callable[..., Any]) -> None:
        """Have a function started by a cron expression that was checked."""
        self.scheduled.append(ScheduledFunction(cron, func))
        self.on_registration()

    def register_datasource(self, datasource: Datasource) -> None:
        """Have a datasource prepared by the next launch; the later of two of one name wins, with a warning."""
        if self.datasources.get(datasource.name, datasource) is not datasource:
            logger.warning("Duplicate datasource '%s'. Each needs a name of its own.", datasource.name)
        self.datasources[datasource.name] = datasource

    def find_wrapped(self, func: Callable[..., Any]) -> WorkflowFunction | None:
        """The registered function that was made of ``func``, above or below whatever else it is decorated with."""
        info = get_func_info(func)
        return next((each for each in self.workflows.values() if each.info is info), None)

    def register_class(self, cls: type, name: str) -> None:
        """Make a class findable by name.

        Raises:
            Exception: another class has that name.
        """
        known = self.classes.get(name)
        if known is not None and known is not cls:
            raise Exception(f"Duplicate type registration for class '{name}'")
        self.classes[name] = cls
        self.on_registration()

    def register_instance(self, instance: Any) -> None:
        """Make a configured instance findable by its class' registered name and its ``config_name``.

        Raises:
            Exception: another instance has that class and name, or it has no ``config_name``.
        """
        if getattr(instance, "config_name", None) is None:
            raise Exception(f"Instance {instance!r} cannot be registered, because it does not have `config_name` set")
        class_info = get_class_info(type(instance))
        class_name = class_info.registered_name if class_info is not None else type(instance).__qualname__
        key = f"{class_name}/{instance.config_name}"
        known = self.instances.get(key)
        if known is not None and known is not instance:
            raise Exception(
                f"Duplicate instance registration for class '{class_name}' instance '{instance.config_name}'"
            )
        if self.is_launched:
            logger.warning(
                "Configured instance %s was created after DBOS.launch(): workflows of it that were recovered at launch "
                "could not find it. Create configured instances before DBOS.launch().",
                key,
            )
        self.instances[key] = instance
        self.on_registration()

    def application_version(self, library_version: str, application_name: str) -> str:
        """A hash of the source of every registered function: the same code gives the same version, in any order.

        Applications that share a database, and functions, have versions of their own all the same.
        """
        functions = [function.func for function in self.workflows.values()]
        try:
            sources = sorted(inspect.getsource(inspect.unwrap(func)) for func in functions)
        except (OSError, TypeError):
            logger.warning(
                "The source of a workflow is not available, so the application version is DEFAULT_VERSION. "
                "Set application_version in the configuration to tell versions apart."
            )
            return "DEFAULT_VERSION"
        digest = hashlib.md5(usedforsecurity=False)
        for source in [*sources, library_version, application_name]:
            digest.update(source.encode())
        return digest.hexdigest()
