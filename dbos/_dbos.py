"""The facade: decorators, lifecycle, and a table of operations.

The one DBOS object of a process lives here and nowhere else. Operations are declared, not written out: each is a flow
of :mod:`dbos._operations`, in a blocking and in a coroutine form.
"""

# ruff: noqa: N805 - the first argument of a class property is the class

from __future__ import annotations

import asyncio
import atexit
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar, get_args, overload

from dbos._bridge import Bridge, refuse_running_loop
from dbos._clock import SystemClock
from dbos._context import Context, current_context
from dbos._core import (
    decorate_step,
    decorate_transaction,
    decorate_workflow,
    execute_in_background,
    execute_workflow_by_id,
    require_roles,
    run_as_step,
    run_as_step_async,
    through_binding,
)
from dbos._dbos_config import DBOSConfig, process_config
from dbos._engine import timing
from dbos._engine.engine import Engine
from dbos._engine.flow import drive, drive_async
from dbos._engine.run import Run
from dbos._engine.step import StepPolicy
from dbos._error import DBOSException
from dbos._handles import WorkflowHandle, WorkflowHandleAsync
from dbos._operations import versions, workflows
from dbos._operations.handles import EngineHandle, EngineHandleAsync
from dbos._operations.lifecycle import Runtime
from dbos._registrations import ValidateArgs, get_or_create_class_info
from dbos._registry import Registry
from dbos._serialization import WorkflowSerializationFormat
from dbos._sys_db import reset_system_database
from dbos._types import IsolationLevel, StepOptions, StepStatus

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["DBOS", "DBOSConfiguredInstance"]

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")
F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

logger = logging.getLogger("dbos")


class _Process:
    """What this process has: a registry that outlives launches, the settings of a DBOS object, a running engine."""

    def __init__(self) -> None:
        self.registry: Registry[Engine] = Registry()
        self.instance: DBOS | None = None
        self.runtime: Runtime | None = None


_process = _Process()


def _shut_down_at_exit() -> None:
    runtime = _process.runtime
    if runtime is None:
        return
    running = len(runtime.engine.runs.all())
    if running:
        logger.warning(
            "The process ends with %s workflow(s) running. They stay PENDING, and are recovered by the next launch.",
            running,
        )
    DBOS.destroy()


def _find_engine() -> Engine:
    # The registry's, which stays until destroy() has ended: workflows that run meanwhile go on, or are interrupted.
    engine = _process.registry.engine
    if engine is None:
        context = current_context()
        if context is not None and context.run is not None:
            context.run.check_interrupted()
        raise DBOSException("No DBOS was created yet: make one with DBOS(config=...), then call DBOS.launch()")
    return engine


_bridge = Bridge(_find_engine)
_blocking, _awaiting = _bridge.blocking, _bridge.awaiting


class _ClassProperty(Generic[V]):
    """A read-only property of the class itself, so that ``DBOS.workflow_id`` works without an instance."""

    def __init__(self, getter: Callable[[Any], V]) -> None:
        self._getter = getter
        self.__doc__ = getter.__doc__

    def __get__(self, instance: object, owner: type) -> V:
        return self._getter(owner)


class DBOS:
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
        if _process.instance is None:
            settings = process_config(config)
            instance = super().__new__(cls)
            instance._runtime = Runtime(settings, _process.registry, SystemClock())
            _process.registry.engine = instance._runtime.engine
            instance._config = config
            _process.instance = instance
        elif config != _process.instance._config:
            logger.warning(
                "There is a DBOS object already: another configuration has no effect. Call DBOS.destroy() first."
            )
        return _process.instance

    # -- lifecycle -----------------------------------------------------------------------------------------------------

    @classmethod
    def launch(cls) -> None:
        """Connect, bring the schema up to date, recover what a dead process left, and begin to work.

        Configured instances and functions must exist by now, so that recovery finds them. Without a DBOS object, or
        when it was launched already, nothing happens.

        When the process ends, it is shut down as by :meth:`destroy`: workflows that are still running in the background
        stay PENDING, and are recovered by the next launch. Wait for their handles, or destroy with a timeout, to have
        them end first.

        Raises:
            DBOSSchemaVersionError: the database was made by a newer release.
            DBOSForeignDatabaseError: the database belongs to another library.
            DBOSInitializationError: the database cannot be used.
        """
        instance = _process.instance
        if instance is None:
            return
        if _process.runtime is not None:
            logger.warning("DBOS was already launched")
            return
        try:
            instance._runtime.launch()
        except BaseException:
            logger.exception("DBOS failed to launch:")
            raise
        _process.runtime = instance._runtime
        atexit.register(_shut_down_at_exit)

    @classmethod
    def destroy(cls, *, destroy_registry: bool = False, workflow_completion_timeout_sec: float = 0) -> None:
        """Stop working and forget the DBOS object; decorated functions work again with the next one.

        Workflows that are still running stop at their next operation; they stay PENDING and are recovered by the next
        launch. Safe to call at any time, also twice.

        Args:
            destroy_registry: Forget the decorated functions, classes and instances as well.
            workflow_completion_timeout_sec: How many seconds to let running workflows end first.
        """
        instance, runtime = _process.instance, _process.runtime
        _process.instance, _process.runtime = None, None
        try:
            if runtime is not None:
                runtime.shut_down(workflow_completion_timeout_sec)
        finally:
            if instance is not None and _process.registry.engine is instance._runtime.engine:
                _process.registry.engine = None
            if destroy_registry:
                _process.registry.clear()

    @classmethod
    def reset_system_database(cls) -> None:
        """Delete the system database with everything in it; for tests. Call it before :meth:`launch`.

        Raises:
            AssertionError: DBOS is launched.
        """
        if _process.instance is None:
            logger.warning("reset_system_database has no effect because no DBOS object was created yet")
            return
        assert _process.runtime is None, "reset_system_database must be called before DBOS.launch()"
        reset_system_database(_process.instance._runtime.engine.settings)

    # -- decorators ----------------------------------------------------------------------------------------------------

    @classmethod
    def workflow(
        cls,
        *,
        name: str | None = None,
        max_recovery_attempts: int | None = 100,
        serialization_type: WorkflowSerializationFormat | None = None,
        validate_args: ValidateArgs | None = None,
    ) -> Callable[[F], F]:
        """Make a function a workflow: its progress is recorded, and after a crash it goes on where it stopped.

        The function must be deterministic apart from its steps. It may be a coroutine function, a static method, a
        class method or a method of a :class:`DBOSConfiguredInstance`; ``@staticmethod`` and ``@classmethod`` go on top.

        Args:
            name: What it is registered under; by default its qualified name.
            max_recovery_attempts: How often it may be recovered before it is given up; None for no limit.
            serialization_type: The format of its inputs and outcome.
            validate_args: Called with ``(args, kwargs)`` read from the database; returns those to use, or raises.

        Raises:
            DBOSConflictingRegistrationError: the name belongs to a function of another kind.
        """

        def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
            return decorate_workflow(
                _process.registry,
                func,
                name=name,
                max_recovery_attempts=max_recovery_attempts,
                serialization_type=serialization_type,
                validate_args=validate_args,
            )

        return through_binding(decorate)

    @classmethod
    def step(
        cls,
        *,
        name: str | None = None,
        retries_allowed: bool = False,
        interval_seconds: float = 1.0,
        max_attempts: int = 3,
        backoff_rate: float = 2.0,
        should_retry: Callable[[Exception], bool | Awaitable[bool]] | None = None,
        preemptible: bool = False,
        timeout_seconds: float | None = None,
    ) -> Callable[[F], F]:
        """Make a function a step: within a workflow its result is recorded, and it is not run again once it was.

        Outside of a workflow, or within another step, it is a plain function.

        Args:
            name: What it is recorded under; by default its qualified name.
            retries_allowed: Whether to run it again if it raises.
            interval_seconds: The pause before the second attempt, in seconds.
            max_attempts: How many attempts in all.
            backoff_rate: By what each pause is longer than the one before.
            should_retry: Called with the exception; False has it raised at once. May be a coroutine function for a
                coroutine step.
            preemptible: Whether cancelling the workflow cancels the step, which is not recorded then. For coroutine
                functions only.
            timeout_seconds: How long each attempt may take; one that takes longer is cancelled and fails with
                DBOSStepTimeoutError. For coroutine functions only.

        Raises:
            DBOSException: a synchronous step was given what only a coroutine function can have, or a timeout is not
                positive and finite.
        """
        policy = StepPolicy(
            retries_allowed=retries_allowed,
            interval_s=interval_seconds,
            max_attempts=max_attempts,
            backoff_rate=backoff_rate,
            should_retry=should_retry,
            preemptible=preemptible,
            timeout_s=timeout_seconds,
        )

        def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
            return decorate_step(_process.registry, func, name=name, policy=policy)

        return through_binding(decorate)

    @classmethod
    def transaction(
        cls, isolation_level: IsolationLevel = "SERIALIZABLE", *, name: str | None = None
    ) -> Callable[[F], F]:
        """Make a function a transaction: a step whose writes to the application database commit with its record.

        Within it, :attr:`sql_session` is an SQLAlchemy session; it commits when the function returns and rolls back
        when it raises. Called outside of a workflow, it is one by itself.

        Args:
            isolation_level: On PostgreSQL; SQLite is always serializable.
            name: What it is recorded under; by default its qualified name.

        Raises:
            DBOSException: the function is a coroutine function, or there is no such isolation level.
        """
        if isolation_level not in get_args(IsolationLevel):
            raise DBOSException(
                f"Unknown isolation level {isolation_level!r}. There are: {', '.join(get_args(IsolationLevel))}. "
                "A transaction without one is decorated with @DBOS.transaction(), with parentheses."
            )

        def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
            return decorate_transaction(_process.registry, func, name=name, isolation_level=isolation_level)

        return through_binding(decorate)

    @classmethod
    def dbos_class(cls, class_name: str | None = None) -> Callable[[C], C]:
        """Register a class that has workflows, steps or transactions among its methods.

        Args:
            class_name: What it is registered under; by default its qualified name.

        Raises:
            Exception: another class has that name.
            DBOSException: the name is not a string, or it decorates something else than a class.
        """
        if class_name is not None and not isinstance(class_name, str):
            raise DBOSException(f"{class_name!r} is not a class name. Write @DBOS.dbos_class(), with parentheses.")

        def decorate(target: C) -> C:
            info = get_or_create_class_info(target, class_name)
            _process.registry.register_class(target, info.registered_name)
            return target

        return decorate

    @classmethod
    def default_required_roles(cls, roles: list[str]) -> Callable[[C], C]:
        """Require one of the roles for every decorated function of a class that names none itself; registers the class.

        Args:
            roles: The roles, one of which the caller must have.

        Raises:
            Exception: another class has that name.
            DBOSException: the roles are not a list, or it decorates something else than a class.
        """
        checked = _checked_roles(roles, "default_required_roles")

        def decorate(target: C) -> C:
            info = get_or_create_class_info(target)
            info.def_required_roles = checked
            _process.registry.register_class(target, info.registered_name)
            return target

        return decorate

    @classmethod
    def required_roles(cls, roles: list[str]) -> Callable[[F], F]:
        """Require one of the roles for a workflow, step or transaction; above or below its decorator.

        Args:
            roles: The roles, one of which the caller must have; an empty list lifts the class' default.

        Raises:
            DBOSException: the roles are not a list.
        """
        checked = _checked_roles(roles, "required_roles")

        def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
            return require_roles(func, checked)

        return through_binding(decorate)

    @classmethod
    def register_instance(cls, inst: object) -> None:
        """Register a configured instance, by its class and its ``config_name``, so that recovery finds it.

        Args:
            inst: An object with a ``config_name``.

        Raises:
            Exception: another instance of the class has that name.
        """
        _process.registry.register_instance(inst)

    # -- starting workflows and steps ----------------------------------------------------------------------------------

    @overload
    @classmethod
    def start_workflow(
        cls, func: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandle[R]: ...

    @overload
    @classmethod
    def start_workflow(cls, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> WorkflowHandle[R]: ...

    @classmethod
    def start_workflow(cls, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> WorkflowHandle[Any]:
        """Start a workflow in the background. It is durable when this returns.

        Args:
            func: A workflow; a step or transaction is started as a workflow around it.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            A handle to await it with.

        Raises:
            DBOSWorkflowFunctionNotFoundError: ``func`` is not decorated.
            DBOSConflictingWorkflowError: the workflow id belongs to another function, class or instance.
        """
        engine = _find_engine()
        begun = drive(engine, workflows.start(engine, func, args, kwargs))
        if isinstance(begun, Run):
            execute_in_background(engine, begun)
            return EngineHandle(engine, begun.workflow_id, begun)
        return EngineHandle(engine, begun)

    @overload
    @classmethod
    async def start_workflow_async(
        cls, func: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandleAsync[R]: ...

    @overload
    @classmethod
    async def start_workflow_async(
        cls, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandleAsync[R]: ...

    @classmethod
    async def start_workflow_async(
        cls, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandleAsync[Any]:
        """Start a workflow in the background, on the running event loop if it is a coroutine function.

        Cancelling the caller does not cancel the workflow. See :meth:`start_workflow`.
        """
        engine = _find_engine()
        begun = await drive_async(engine, workflows.start(engine, func, args, kwargs))
        if isinstance(begun, Run):
            execute_in_background(engine, begun, loop=asyncio.get_running_loop())
            return EngineHandleAsync(engine, begun.workflow_id, begun)
        return EngineHandleAsync(engine, begun)

    @overload
    @classmethod
    def run_step(
        cls,
        dbos_step_options: StepOptions | None,
        func: Callable[P, Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...

    @overload
    @classmethod
    def run_step(
        cls, dbos_step_options: StepOptions | None, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    @classmethod
    def run_step(
        cls, dbos_step_options: StepOptions | None, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> Any:
        """Call any function as a step of the current workflow; outside of one, just call it.

        Args:
            dbos_step_options: A name and a retry policy, or None for the defaults.
            func: The function; a coroutine function is run to its end on a loop of the library.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Raises:
            RuntimeError: an event loop is running; use :meth:`run_step_async`.
        """
        refuse_running_loop("run_step")
        return run_as_step(_find_engine(), dbos_step_options, func, args, kwargs)

    @overload
    @classmethod
    async def run_step_async(
        cls,
        dbos_step_options: StepOptions | None,
        func: Callable[P, Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...

    @overload
    @classmethod
    async def run_step_async(
        cls, dbos_step_options: StepOptions | None, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    @classmethod
    async def run_step_async(
        cls, dbos_step_options: StepOptions | None, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> Any:
        """Call any function as a step of the current workflow; a synchronous one runs in a thread.

        Args:
            dbos_step_options: A name and a retry policy, or None for the defaults.
            func: The function.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Raises:
            RuntimeError: no event loop is running; use :meth:`run_step`.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            raise RuntimeError(
                "run_step_async() was called while an event loop is not running. Use run_step(...) instead."
            ) from error
        return await run_as_step_async(_find_engine(), dbos_step_options, func, args, kwargs)

    # -- operations, in both forms -------------------------------------------------------------------------------------

    get_workflow_status = staticmethod(_blocking(workflows.get_workflow_status))
    get_workflow_status_async = staticmethod(_awaiting(workflows.get_workflow_status))
    get_result = staticmethod(_blocking(workflows.get_result))
    get_result_async = staticmethod(_awaiting(workflows.get_result))
    list_workflows = staticmethod(_blocking(workflows.list_workflows))
    list_workflows_async = staticmethod(_awaiting(workflows.list_workflows))
    list_workflow_steps = staticmethod(_blocking(workflows.list_workflow_steps))
    list_workflow_steps_async = staticmethod(_awaiting(workflows.list_workflow_steps))
    cancel_workflow = staticmethod(_blocking(workflows.cancel_workflow))
    cancel_workflow_async = staticmethod(_awaiting(workflows.cancel_workflow))
    cancel_workflows = staticmethod(_blocking(workflows.cancel_workflows))
    cancel_workflows_async = staticmethod(_awaiting(workflows.cancel_workflows))
    list_application_versions = staticmethod(_blocking(versions.list_application_versions, guarded=False))
    list_application_versions_async = staticmethod(_awaiting(versions.list_application_versions))
    get_latest_application_version = staticmethod(_blocking(versions.get_latest_application_version, guarded=False))
    get_latest_application_version_async = staticmethod(_awaiting(versions.get_latest_application_version))
    set_latest_application_version = staticmethod(_blocking(versions.set_latest_application_version, guarded=False))
    set_latest_application_version_async = staticmethod(_awaiting(versions.set_latest_application_version))
    sleep = staticmethod(_blocking(timing.sleep))
    sleep_async = staticmethod(_awaiting(timing.sleep))

    @classmethod
    def retrieve_workflow(cls, workflow_id: str, existing_workflow: bool = True) -> WorkflowHandle[Any]:
        """A handle for a workflow, wherever it runs.

        Args:
            workflow_id: The workflow's id.
            existing_workflow: Check that it exists.

        Raises:
            DBOSNonExistentWorkflowError: there is no such workflow.
        """
        refuse_running_loop("retrieve_workflow")
        engine = _find_engine()
        drive(engine, workflows.retrieve(engine, workflow_id, existing_workflow))
        return EngineHandle(engine, workflow_id)

    @classmethod
    async def retrieve_workflow_async(
        cls, workflow_id: str, existing_workflow: bool = True
    ) -> WorkflowHandleAsync[Any]:
        """A handle for a workflow, wherever it runs; see :meth:`retrieve_workflow`."""
        engine = _find_engine()
        await drive_async(engine, workflows.retrieve(engine, workflow_id, existing_workflow))
        return EngineHandleAsync(engine, workflow_id)

    @classmethod
    def resume_workflow(cls, workflow_id: str, *, queue_name: str | None = None) -> WorkflowHandle[Any]:
        """Let an unfinished workflow (cancelled, given up, or stuck) go on from its last recorded operation.

        Args:
            workflow_id: The workflow's id; a finished one is left alone.
            queue_name: The queue to enqueue it in, by default one of the library that runs it at once.

        Returns:
            A handle to await it with.

        Raises:
            DBOSNonExistentWorkflowError: there is no such workflow.
        """
        return cls._resume([workflow_id], queue_name, "resume_workflow")[0]

    @classmethod
    def resume_workflows(
        cls, workflow_ids: Sequence[str], *, queue_name: str | None = None
    ) -> list[WorkflowHandle[Any]]:
        """Resume several workflows in one transaction; see :meth:`resume_workflow`."""
        return cls._resume(workflow_ids, queue_name, "resume_workflows")

    @classmethod
    def _resume(cls, workflow_ids: Sequence[str], queue_name: str | None, name: str) -> list[WorkflowHandle[Any]]:
        refuse_running_loop(name)
        engine = _find_engine()
        drive(engine, workflows.resume_workflows(engine, workflow_ids, queue_name))
        return [EngineHandle(engine, workflow_id) for workflow_id in workflow_ids]

    @classmethod
    async def resume_workflow_async(
        cls, workflow_id: str, *, queue_name: str | None = None
    ) -> WorkflowHandleAsync[Any]:
        """Resume a workflow; see :meth:`resume_workflow`."""
        return (await cls.resume_workflows_async([workflow_id], queue_name=queue_name))[0]

    @classmethod
    async def resume_workflows_async(
        cls, workflow_ids: Sequence[str], *, queue_name: str | None = None
    ) -> list[WorkflowHandleAsync[Any]]:
        """Resume several workflows in one transaction; see :meth:`resume_workflow`."""
        engine = _find_engine()
        await drive_async(engine, workflows.resume_workflows(engine, workflow_ids, queue_name))
        return [EngineHandleAsync(engine, workflow_id) for workflow_id in workflow_ids]

    @classmethod
    async def asyncio_wait(
        cls,
        fs: Iterable[Awaitable[Any]],
        *,
        timeout: float | None = None,
        return_when: str = asyncio.ALL_COMPLETED,
    ) -> tuple[set[asyncio.Future[Any]], set[asyncio.Future[Any]]]:
        """``asyncio.wait`` for workflows: which awaitables were done is recorded, so that replay takes the same way.

        Args:
            fs: Awaitables; coroutines become tasks. Of the sets, only those that an earlier wait returned.
            timeout: How long to wait, in seconds; None for as long as it takes.
            return_when: ``asyncio.FIRST_COMPLETED``, ``FIRST_EXCEPTION`` or ``ALL_COMPLETED``.

        Returns:
            The sets of awaitables that are done and that are pending.
        """
        engine = _process.registry.engine
        return await timing.asyncio_wait(engine, fs, timeout=timeout, return_when=return_when)

    @classmethod
    def _execute_workflow_id(cls, workflow_id: str) -> WorkflowHandle[Any]:
        """Execute a workflow that nobody runs; returns a handle for it whoever does."""
        engine = _find_engine()
        return EngineHandle(engine, workflow_id, execute_workflow_by_id(engine, workflow_id))

    @classmethod
    def _recover_pending_workflows(cls, executor_ids: Sequence[str] = ("local",)) -> list[WorkflowHandle[Any]]:
        """Recover workflows of this process that do not run in it, and those whose owner is unknown or dead."""
        runtime = _process.runtime
        if runtime is None:
            raise DBOSException("System database accessed before DBOS was launched")
        recovered = runtime.recovery.recover_now(executor_ids)
        return [EngineHandle(runtime.engine, workflow_id) for workflow_id in recovered]

    # -- context -------------------------------------------------------------------------------------------------------

    logger: ClassVar[logging.Logger] = logger

    @_ClassProperty
    def application_version(cls) -> str:
        """The application version of this process; empty before the launch that computes it."""
        instance = _process.instance
        if instance is None:
            return os.environ.get("DBOS__APPVERSION", "")
        return instance._runtime.engine.application_version

    @_ClassProperty
    def executor_id(cls) -> str:
        """The executor id of this process."""
        instance = _process.instance
        if instance is None:
            return os.environ.get("DBOS__VMID") or "local"
        return instance._runtime.engine.executor_id

    @_ClassProperty
    def workflow_id(cls) -> str | None:
        """The id of the workflow that the calling code belongs to, or None."""
        context = current_context()
        return context.run.workflow_id if context is not None and context.run is not None else None

    @_ClassProperty
    def step_id(cls) -> int | None:
        """The function id of the step or transaction that the calling code belongs to, or None."""
        context = current_context()
        return context.step_id if context is not None else None

    @_ClassProperty
    def step_status(cls) -> StepStatus | None:
        """The step and attempt that the calling code belongs to, or None."""
        context = current_context()
        return context.step_status if context is not None else None

    @_ClassProperty
    def sql_session(cls) -> Session:
        """The SQLAlchemy session of the transaction that the calling code belongs to.

        Raises:
            AssertionError: it belongs to none.
        """
        context = current_context()
        session = context.session if context is not None else None
        assert session is not None, "DBOS.sql_session is only available within a transaction"
        return session

    @_ClassProperty
    def authenticated_user(cls) -> str | None:
        """The user that the calling code acts for."""
        return _existing_context().authenticated_user

    @_ClassProperty
    def authenticated_roles(cls) -> list[str] | None:
        """The roles of the user that the calling code acts for."""
        return _existing_context().authenticated_roles

    @_ClassProperty
    def assumed_role(cls) -> str | None:
        """The role by which the user was allowed to call the current function."""
        return _existing_context().assumed_role

    @classmethod
    def set_authentication(cls, authenticated_user: str | None, authenticated_roles: list[str] | None) -> None:
        """Set the user and roles of the current context.

        Args:
            authenticated_user: The user's name.
            authenticated_roles: The roles that the user has.

        Raises:
            AssertionError: there is no context; use :class:`DBOSContextSetAuth` or :class:`DBOSContextEnsure`.
        """
        context = _existing_context()
        context.authenticated_user = authenticated_user
        context.authenticated_roles = authenticated_roles


def _checked_roles(roles: object, decorator: str) -> list[str]:
    # A single string is a sequence of strings as well: nobody would ever have the role "a".
    if isinstance(roles, str) or not isinstance(roles, Iterable):
        raise DBOSException(f'{roles!r} is not a list of roles. Write @DBOS.{decorator}(["{roles}"]), for example.')
    return list(roles)


def _existing_context() -> Context:
    context = current_context()
    assert context is not None, "No DBOS context: call this from within a workflow, or in a DBOSContextEnsure block"
    return context


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
