"""The front door of the engine: what decorators make of functions, and how a workflow is executed by its id.

A decorated function looks at the context it is called in, and at the registry's engine, only when it is called; so it
can be decorated before anything else exists. ``@staticmethod`` and ``@classmethod`` belong above our decorators; below
them they work too, because the decorators reach through them.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

from dbos._context import Context, current_context, install, restore
from dbos._engine.claims import Begun, claim_by_id, claim_from_queue, give_back
from dbos._engine.direct import call_step, call_step_async
from dbos._engine.engine import Engine
from dbos._engine.execution import execute
from dbos._engine.flow import drive, drive_async
from dbos._engine.loops import Spawned
from dbos._engine.run import Run
from dbos._engine.step import StepFunction, StepPolicy
from dbos._engine.transaction import TransactionFunction, run_transaction, warn_in_loop
from dbos._engine.workflow import call_workflow
from dbos._error import DBOSException
from dbos._queue_config import QueueConfig
from dbos._registrations import ValidateArgs, get_or_create_func_info
from dbos._registry import TEMPORARY_PREFIX, Kind, Registry, WorkflowFunction
from dbos._serialization import WorkflowSerializationFormat
from dbos._types import IsolationLevel, StepOptions
from dbos._validation import validator_for

__all__ = [
    "decorate_step",
    "decorate_transaction",
    "decorate_workflow",
    "dispatch_queue",
    "execute_in_background",
    "execute_workflow_by_id",
    "require_roles",
    "run_as_step",
    "run_as_step_async",
    "step_policy",
    "through_binding",
]

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("dbos.core")


# -- decorators --------------------------------------------------------------------------------------------------------


def decorate_workflow(
    registry: Registry[Engine],
    func: Callable[..., Any],
    *,
    name: str | None,
    max_recovery_attempts: int | None,
    serialization_type: WorkflowSerializationFormat | None,
    validate_args: ValidateArgs | None,
) -> Callable[..., Any]:
    """Register a function as a workflow and wrap it."""
    registered_name = name or _qualname(func)
    info = get_or_create_func_info(func)
    info.max_recovery_attempts = max_recovery_attempts
    info.serialization_type = serialization_type
    info.validate_args = validator_for(validate_args, func)
    is_async = inspect.iscoroutinefunction(func)
    function = WorkflowFunction(registered_name, "workflow", func, info, is_async)
    wrapper: Callable[..., Any]
    if is_async:

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            engine = _engine_of(registry, registered_name)
            return await drive_async(engine, call_workflow(engine, function, args, kwargs))

        wrapper = call_async
    else:

        def call(*args: Any, **kwargs: Any) -> Any:
            engine = _engine_of(registry, registered_name)
            return drive(engine, call_workflow(engine, function, args, kwargs))

        wrapper = call
    registry.register_workflow(function)
    return _finish(func, wrapper, registered_name, "workflow")


def decorate_step(
    registry: Registry[Engine], func: Callable[..., Any], *, name: str | None, policy: StepPolicy
) -> Callable[..., Any]:
    """Register a function as a step, and as a workflow around it, and wrap it."""
    registered_name = name or _qualname(func)
    is_async = inspect.iscoroutinefunction(func)
    policy.check(registered_name, is_async=is_async)
    info = get_or_create_func_info(func)
    step = StepFunction(registered_name, func, policy, info)
    wrapper: Callable[..., Any]
    if is_async:

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            context = current_context()
            if context is None or context.run is None or context.step_id is not None:
                return await func(*args, **kwargs)
            engine = _engine_of(registry, registered_name)
            return await call_step_async(engine, context.run, context, step, args, kwargs)

        wrapper = call_async
    else:

        def call(*args: Any, **kwargs: Any) -> Any:
            context = current_context()
            if context is None or context.run is None or context.step_id is not None:
                return func(*args, **kwargs)
            engine = _engine_of(registry, registered_name)
            return call_step(engine, context.run, context, step, args, kwargs)

        wrapper = call
    wrapped = _finish(func, wrapper, registered_name, "step")
    registry.register_workflow(WorkflowFunction(TEMPORARY_PREFIX + registered_name, "step", wrapped, info, is_async))
    return wrapped


def decorate_transaction(
    registry: Registry[Engine], func: Callable[..., Any], *, name: str | None, isolation_level: IsolationLevel
) -> Callable[..., Any]:
    """Register a function as a transaction, and as a workflow around it, and wrap it.

    Raises:
        DBOSException: it is a coroutine function.
    """
    registered_name = name or _qualname(func)
    if inspect.iscoroutinefunction(func):
        raise DBOSException(
            f"Function {registered_name} is a coroutine function, but DBOS.transaction does not support coroutine "
            "functions. Make it a plain function, and call it with asyncio.to_thread from async workflows."
        )
    info = get_or_create_func_info(func)
    transaction = TransactionFunction(
        registered_name, func, isolation_level, info, lambda engine: engine.application_database
    )

    def call(*args: Any, **kwargs: Any) -> Any:
        engine = _engine_of(registry, registered_name)
        context = current_context()
        if context is None or context.run is None:
            return drive(engine, call_workflow(engine, around, args, kwargs))
        assert context.step_id is None, "Transactions must be called from within workflows"
        warn_in_loop(registered_name)
        return drive(engine, run_transaction(engine, context.run, context, transaction, args, kwargs))

    wrapped = _finish(func, call, registered_name, "transaction")
    around = WorkflowFunction(TEMPORARY_PREFIX + registered_name, "transaction", wrapped, info, is_async=False)
    registry.register_workflow(around)
    return wrapped


def _engine_of(registry: Registry[Engine], name: str) -> Engine:
    """The engine. A run that outlived ``DBOS.destroy`` is stopped: its call has not failed; others get an error."""
    if registry.engine is None:
        context = current_context()
        if context is not None and context.run is not None:
            context.run.check_interrupted()
    return registry.engine_for(name)


def _finish(func: Callable[..., Any], wrapper: Callable[..., Any], name: str, kind: Kind) -> Callable[..., Any]:
    functools.update_wrapper(wrapper, func)
    get_or_create_func_info(func).is_operation = True
    wrapper.dbos_function_name = name  # type: ignore[attr-defined]  # functions carry arbitrary attributes
    wrapper.dbos_function_kind = kind  # type: ignore[attr-defined]
    wrapper.__orig_func = func  # type: ignore[attr-defined]
    if kind != "workflow":
        wrapper.dbos_temp_workflow_type = kind  # type: ignore[attr-defined]
    return wrapper


def _qualname(func: Callable[..., Any]) -> str:
    inner = func.func if isinstance(func, functools.partial) else func
    return getattr(inner, "__qualname__", None) or type(inner).__qualname__


def require_roles(func: Callable[..., Any], roles: list[str]) -> Callable[..., Any]:
    """Have one of the roles required wherever ``func`` is called as a workflow, step or transaction.

    Until it is made one of those, by a decorator above, the wrapper that is returned asks for the role itself: a
    function that requires a role is never open to everybody because another decorator was forgotten.
    """
    info = get_or_create_func_info(func)
    info.required_roles = roles
    if info.is_operation:
        return func
    name = _qualname(func)
    wrapper: Callable[..., Any]
    if inspect.iscoroutinefunction(func):

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            if info.is_operation:
                return await func(*args, **kwargs)
            token = install((current_context() or Context()).with_role(roles, name))
            try:
                return await func(*args, **kwargs)
            finally:
                restore(token)

        wrapper = call_async
    else:

        def call(*args: Any, **kwargs: Any) -> Any:
            if info.is_operation:
                return func(*args, **kwargs)
            token = install((current_context() or Context()).with_role(roles, name))
            try:
                return func(*args, **kwargs)
            finally:
                restore(token)

        wrapper = call
    functools.update_wrapper(wrapper, func)
    return wrapper


def through_binding(decorate: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[F], F]:
    """The decorator that users get: it decorates the function within a static or class method object."""

    def apply(target: F) -> F:
        if isinstance(target, (staticmethod, classmethod)):
            return cast("F", type(target)(decorate(target.__func__)))
        return cast("F", decorate(target))

    return apply


# -- any function as a step --------------------------------------------------------------------------------------------


def step_policy(options: StepOptions) -> StepPolicy:
    """The policy that step options spell out."""
    return StepPolicy(
        retries_allowed=options.get("retries_allowed", False),
        interval_s=options.get("interval_seconds", 1.0),
        max_attempts=options.get("max_attempts", 3),
        backoff_rate=options.get("backoff_rate", 2.0),
        should_retry=options.get("should_retry"),
        preemptible=options.get("preemptible", False),
        timeout_s=options.get("timeout_seconds"),
    )


def run_as_step(
    engine: Engine, options: StepOptions | None, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """Call a function as a step of the current workflow; outside of one, just call it. A coroutine is waited for."""
    step = _step_of(options, func)
    is_async = inspect.iscoroutinefunction(func)
    step.policy.check(step.name, is_async=is_async)
    if is_async:
        step = _blocking_step(engine, step)
    context = current_context()
    if context is None or not context.is_in_workflow_body or context.run is None:
        return (_blocking_on_own_loop(engine, func) if is_async else func)(*args, **kwargs)
    return call_step(engine, context.run, context, step, args, kwargs)


async def run_as_step_async(
    engine: Engine, options: StepOptions | None, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """The same for coroutines; a synchronous function runs in a thread, so that it does not block the loop."""
    step = _step_of(options, func)
    is_async = inspect.iscoroutinefunction(func)
    # In a thread a function cannot be stopped; its predicate is awaited all the same.
    step.policy.check(step.name, is_async=is_async or not step.policy.is_limited)
    if not is_async:
        step = replace(step, func=_in_thread(engine, func))
    context = current_context()
    if context is None or not context.is_in_workflow_body or context.run is None:
        return await step.func(*args, **kwargs)
    return await call_step_async(engine, context.run, context, step, args, kwargs)


def _step_of(options: StepOptions | None, func: Callable[..., Any]) -> StepFunction:
    options = options or {}
    return StepFunction(options.get("name") or _qualname(func), func, step_policy(options))


def _blocking_on_own_loop(engine: Engine, func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(func(*args, **kwargs), engine.loops.own())
        with engine.workers.stepping_aside():  # the coroutine may wait for a workflow that needs this thread's place
            return future.result()

    return call


def _blocking_step(engine: Engine, step: StepFunction) -> StepFunction:
    """A coroutine function as a step of a thread; what has a limit is run on the loop by the driver itself."""
    policy = step.policy
    if policy.should_retry is not None and inspect.iscoroutinefunction(policy.should_retry):
        policy = replace(policy, should_retry=_blocking_on_own_loop(engine, policy.should_retry))
    if policy.is_limited:
        return replace(step, policy=policy)
    return replace(step, func=_blocking_on_own_loop(engine, step.func), policy=policy)


def _in_thread(engine: Engine, func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func, updated=())
    async def call(*args: Any, **kwargs: Any) -> Any:
        context = contextvars.copy_context()
        value = await engine.workers.threads.call(lambda: context.run(in_thread, args, kwargs))
        return await value if inspect.isawaitable(value) else value

    def in_thread(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return func(*args, **kwargs)
        except StopIteration as error:
            # A future cannot carry it: on Python 3.11 whoever awaits that would wait forever.
            raise RuntimeError(f"{_qualname(func)} raised StopIteration") from error

    return call


# -- execution in the background ---------------------------------------------------------------------------------------


def execute_in_background(engine: Engine, *runs: Run, loop: asyncio.AbstractEventLoop | None = None) -> None:
    """Execute runs in threads, and those that are coroutines on ``loop``, by default the application's or our own.

    Raises:
        Exception: no thread or loop could be had. What is not executed therefore is no run of this process any more.
    """
    coroutines = [run for run in runs if run.function.is_async]
    blocking = deque(run for run in runs if not run.function.is_async)
    try:
        if coroutines:
            spawned = [Spawned(_execute_async(engine, run), partial(_remove, engine, run)) for run in coroutines]
            used = engine.loops.spawn(spawned, loop or engine.loops.background())
            while coroutines:
                coroutines.pop().loop = used
        while blocking:
            acting = engine.clock.acting(apart=True)  # from now on, and not only when a thread has begun
            engine.workers.submit(partial(_execute, engine, blocking[0], acting))
            blocking.popleft()
    except Exception:
        for run in (*coroutines, *blocking):
            engine.runs.remove(run)
        raise


def _remove(engine: Engine, run: Run, task: object) -> None:
    engine.runs.remove(run)


def _execute(engine: Engine, run: Run, acting: AbstractContextManager[object]) -> None:
    try:
        with acting:
            drive(engine, execute(engine, run))
    except BaseException as error:  # a thread of ours has nobody to raise to; the workflow stays PENDING
        _log_stopped(run, error)


async def _execute_async(engine: Engine, run: Run) -> None:
    install(Context())  # the task has inherited the context of whoever began it, but is no operation of theirs
    try:
        with engine.clock.acting(apart=True):
            await drive_async(engine, execute(engine, run))
    except asyncio.CancelledError as error:
        _log_stopped(run, error)
        raise
    except BaseException as error:  # likewise
        _log_stopped(run, error)


def _log_stopped(run: Run, error: BaseException) -> None:
    logger.warning(
        "Workflow %s was interrupted by %s; it is PENDING and will be recovered.",
        run.workflow_id,
        type(error).__name__,
        exc_info=error if isinstance(error, Exception) else None,
    )


def execute_workflow_by_id(engine: Engine, workflow_id: str) -> Run | None:
    """Claim a workflow that nobody runs and execute it in the background.

    The function, and the class or instance that it is called on, are looked up by the names in the workflow's row:
    a static method is called without its class, class and instance methods get theirs first.

    Returns:
        Its run, or None if it is finished or already runs.

    Raises:
        DBOSRecoveryError: there is no such workflow.
        DBOSWorkflowFunctionNotFoundError: its function, class or instance is not registered in this process.
    """
    run = drive(engine, claim_by_id(engine, workflow_id))
    if run is not None:
        execute_in_background(engine, run)
    return run


def dispatch_queue(engine: Engine, queue: QueueConfig, count: int, after_partition: str) -> Begun:
    """Claim up to ``count`` waiting workflows of a queue and execute them."""
    begun = drive(engine, claim_from_queue(engine, queue, count, after_partition))
    try:
        execute_in_background(engine, *begun.runs)
    except Exception:
        left = [run for run in begun.runs if run.finished.is_set and not run.has_begun]
        drive(engine, give_back(engine, {run.workflow_id: run.run_token for run in left}))
        raise
    return begun
