"""The facade: the life cycle of the one DBOS object; decorators and operations come from :mod:`dbos._facade`."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from dbos._clock import current_clock
from dbos._core import (
    execute_workflow_by_id,
)
from dbos._dbos_config import DBOSConfig, process_config
from dbos._error import DBOSException
from dbos._facade.decorators import Decorators
from dbos._facade.operations import Operations
from dbos._facade.starting import Starting
from dbos._facade.surroundings import Surroundings
from dbos._handles import WorkflowHandle
from dbos._operations.handles import EngineHandle
from dbos._operations.lifecycle import Runtime
from dbos._process import (
    find_engine,
    process,
)
from dbos._queue import Queue
from dbos._services.alerts import AlertHandler
from dbos._services.termination import Termination
from dbos._sys_db import reset_system_database

if TYPE_CHECKING:
    pass

__all__ = ["DBOS", "DBOSConfiguredInstance"]

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")
F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)
A = TypeVar("A", bound=AlertHandler)

logger = logging.getLogger("dbos")


_termination = Termination()


def _shut_down_at_exit() -> None:
    runtime = process.runtime
    if runtime is not None:
        running = len(runtime.engine.runs.all())
        if running:
            logger.warning(
                "The process ends with %s workflow(s) running. They stay PENDING, and are recovered by the next "
                "launch.",
                running,
            )
        DBOS.destroy()
    _termination.wait_if_under_way()


def _shut_down_by_signal(runtime: Runtime) -> None:
    DBOS.destroy(workflow_completion_timeout_sec=runtime.engine.settings.graceful_shutdown_timeout_s)
    runtime.is_down.wait(None)  # somebody else may have been destroying it when the signal came


class DBOS(Decorators, Starting, Operations, Surroundings):
    """Durable workflows: decorate functions, make the one DBOS object of the process, launch it, call the functions.

    Args:
        config: The configuration; only ``name`` must be given. See :class:`DBOSConfig`.
        conductor_url: Accepted for compatibility; there is no control plane to connect to.
        conductor_key: Likewise.

    Raises:
        DBOSInitializationError: the configuration cannot be used.

    Nothing is connected before :meth:`launch`. While a DBOS object exists, constructing another returns it.

    Example:
        ```python
        from dbos import DBOS

        DBOS(config={"name": "shop", "system_database_url": "sqlite:///shop.sqlite"})

        @DBOS.step()
        def charge(order: int) -> str:
            return f"receipt {order}"

        @DBOS.workflow()
        def checkout(order: int) -> str:
            return charge(order)

        DBOS.launch()
        print(checkout(1))
        DBOS.destroy()
        ```
    """

    _runtime: Runtime
    _config: DBOSConfig

    def __new__(cls, *, config: DBOSConfig, conductor_url: str | None = None, conductor_key: str | None = None) -> DBOS:
        if process.instance is None:
            settings = process_config(config)
            instance = super().__new__(cls)
            instance._runtime = Runtime(settings, process.registry, current_clock())
            process.registry.engine = instance._runtime.engine
            instance._config = config
            process.instance = instance
        elif config != process.instance._config:
            logger.warning(
                "There is a DBOS object already: another configuration has no effect. Call DBOS.destroy() first."
            )
        return process.instance

    # -- lifecycle -----------------------------------------------------------------------------------------------------

    @classmethod
    def launch(cls) -> None:
        """Connect, bring the schema up to date, recover what a dead process left, and begin to work.

        Configured instances and functions must exist by now, so that recovery finds them. Without a DBOS object, or
        when it was launched already, nothing happens.

        When the process ends, it is shut down as by :meth:`destroy`: workflows that are still running in the background
        stay PENDING, and are recovered by the next launch. Wait for their handles, or destroy with a timeout, to have
        them end first. The same happens upon SIGTERM if this is called in the main thread and the application does not
        handle that signal; ``graceful_shutdown_timeout_sec`` in the configuration is the timeout then.

        Raises:
            DBOSSchemaVersionError: the database was made by a newer release.
            DBOSForeignDatabaseError: the database belongs to another library.
            DBOSInitializationError: the database cannot be used.
        """
        instance = process.instance
        if instance is None:
            return
        if process.runtime is not None:
            logger.warning("DBOS was already launched")
            return
        try:
            instance._runtime.launch()
        except BaseException:
            logger.exception("DBOS failed to launch:")
            raise
        process.runtime = instance._runtime
        atexit.register(_shut_down_at_exit)
        _termination.install(partial(_shut_down_by_signal, instance._runtime))

    @classmethod
    def listen_queues(cls, queues: Sequence[Queue | str]) -> None:
        """Take work from these queues only, and from the library's own; call it before :meth:`launch`.

        So the process still executes what is resumed, forked or recovered: that comes by the library's own queue.

        Args:
            queues: Queues, or their names.

        Raises:
            DBOSException: there is no DBOS object yet, it is launched, or this was called already.
        """
        if process.instance is None:
            raise DBOSException("No DBOS was created yet: make one with DBOS(config=...), then call listen_queues")
        if process.runtime is not None:
            raise DBOSException("listen_queues called after DBOS is launched: call it before DBOS.launch()")
        engine = process.instance._runtime.engine
        if engine.listened_queues is not None:
            raise DBOSException("listen_queues called more than once: name all queues in one call")
        if isinstance(queues, str):
            queues = [queues]  # one name is a sequence of strings as well
        engine.listened_queues = frozenset(queue if isinstance(queue, str) else queue.name for queue in queues)

    @classmethod
    def alert_handler(cls, func: A) -> A:
        """Have a function told of what somebody should look at: a database that is away, work that nobody does.

        It is called as ``func(name, message, metadata)``, one alert after the other, in a thread of its own: however
        long it takes, nothing waits for it, and what it raises is logged. It may be a coroutine function. The names are
        listed in the documentation; ``metadata`` is a dict of strings. Use it after ``DBOS(config=...)`` and before
        :meth:`launch`.

        Args:
            func: The handler, which is returned.

        Raises:
            DBOSException: there is no DBOS object yet, it is launched, or has a handler already.

        Example:
            ```python
            @DBOS.alert_handler
            def notify(name: str, message: str, metadata: dict[str, str]) -> None:
                requests.post(PAGER_URL, json={"alert": name, "text": message, **metadata})
            ```
        """
        if process.instance is None:
            raise DBOSException("No DBOS was created yet: make one with DBOS(config=...), then call alert_handler")
        if not callable(func):
            raise DBOSException(f"{func!r} is no alert handler: decorate a function with @DBOS.alert_handler")
        if process.runtime is not None:
            raise DBOSException("alert_handler must be defined before DBOS is launched")
        alerts = process.instance._runtime.alerts
        if alerts.handler is not None:
            raise DBOSException("An alert_handler is already defined")
        alerts.handler = func
        return func

    @classmethod
    def destroy(cls, *, destroy_registry: bool = False, workflow_completion_timeout_sec: float = 0) -> None:
        """Stop working and forget the DBOS object; decorated functions work again with the next one.

        Workflows that are still running stop at their next operation; they stay PENDING and are recovered by the next
        launch. Safe to call at any time, also twice.

        Args:
            destroy_registry: Forget the decorated functions, classes and instances as well.
            workflow_completion_timeout_sec: How many seconds to let running workflows end first.
        """
        instance, runtime = process.instance, process.runtime
        process.instance, process.runtime = None, None
        try:
            if runtime is not None:
                runtime.shut_down(workflow_completion_timeout_sec)
        finally:
            if instance is not None and process.registry.engine is instance._runtime.engine:
                process.registry.engine = None
            if destroy_registry:
                process.registry.clear()
            _termination.uninstall()

    @classmethod
    def reset_system_database(
        cls, *, system_database_url: str | None = None, schema: str | None = None, truncate: bool = False
    ) -> None:
        """Delete the system database with everything in it; for tests. Call it before :meth:`launch`.

        Args:
            system_database_url: The system database; by default that of the DBOS object.
            schema: The schema of its tables, on PostgreSQL; by default ``"dbos"``, if a URL is given.
            truncate: Keep the database and its tables, and delete what is in them.

        Raises:
            AssertionError: DBOS is launched.
            DBOSInitializationError: the URL or the schema cannot be used.
        """
        assert process.runtime is None, "reset_system_database must be called before DBOS.launch()"
        if system_database_url is not None:
            config: DBOSConfig = {"name": "reset", "system_database_url": system_database_url}
            if schema is not None:
                config["dbos_system_schema"] = schema
            reset_system_database(process_config(config, {}), truncate=truncate)
        elif process.instance is None:
            logger.warning("reset_system_database has no effect because no DBOS object was created yet")
        else:
            reset_system_database(process.instance._runtime.engine.settings, truncate=truncate)

    @classmethod
    def register_instance(cls, inst: object) -> None:
        """Register a configured instance, by its class and its ``config_name``, so that recovery finds it.

        Args:
            inst: An object with a ``config_name``.

        Raises:
            Exception: another instance of the class has that name.
        """
        process.registry.register_instance(inst)

    @classmethod
    def _execute_workflow_id(cls, workflow_id: str) -> WorkflowHandle[Any]:
        """Execute a workflow that nobody runs; returns a handle for it whoever does."""
        engine = find_engine()
        return EngineHandle(engine, workflow_id, execute_workflow_by_id(engine, workflow_id))

    @classmethod
    def _recover_pending_workflows(cls, executor_ids: Sequence[str] = ("local",)) -> list[WorkflowHandle[Any]]:
        """Recover workflows of this process that do not run in it, and those whose owner is unknown or dead."""
        runtime = process.runtime
        if runtime is None:
            raise DBOSException("System database accessed before DBOS was launched")
        recovered = runtime.recovery.recover_now(executor_ids)
        return [EngineHandle(runtime.engine, workflow_id) for workflow_id in recovered]


class DBOSConfiguredInstance:
    """A base for classes whose methods are workflows, steps or transactions.

    Recovery finds the instance by its class' registered name and its ``config_name``, so create instances before
    ``DBOS.launch()``, each with a name of its own.

    Args:
        config_name: The name of the instance, unique within its class.

    Raises:
        Exception: another instance of the class has that name.
    """

    def __init__(self, config_name: str) -> None:
        self.config_name = config_name
        DBOS.register_instance(self)
