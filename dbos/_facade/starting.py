"""Starting and enqueueing workflows, and calling functions as steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, overload

from dbos._bridge import refuse_running_loop
from dbos._core import execute_in_background, run_as_step, run_as_step_async
from dbos._engine.flow import drive, drive_async
from dbos._engine.run import Run
from dbos._handles import WorkflowHandle, WorkflowHandleAsync
from dbos._operations import queues, workflows
from dbos._operations.handles import EngineHandle, EngineHandleAsync
from dbos._operations.queues import EnqueueOptions
from dbos._process import find_engine
from dbos._types import StepOptions

__all__ = ["Starting"]

P = ParamSpec("P")
R = TypeVar("R")


class Starting:
    """What takes a function and its arguments, and knows their types."""

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
        engine = find_engine()
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
        engine = find_engine()
        begun = await drive_async(engine, workflows.start(engine, func, args, kwargs))
        if isinstance(begun, Run):
            execute_in_background(engine, begun, loop=asyncio.get_running_loop())
            return EngineHandleAsync(engine, begun.workflow_id, begun)
        return EngineHandleAsync(engine, begun)

    @overload
    @classmethod
    def enqueue_workflow(
        cls, queue_name: str, func: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandle[R]: ...

    @overload
    @classmethod
    def enqueue_workflow(
        cls, queue_name: str, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandle[R]: ...

    @classmethod
    def enqueue_workflow(
        cls, queue_name: str, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandle[Any]:
        """Enqueue a workflow in a queue that need not be known here; see :meth:`Queue.enqueue`."""
        engine = find_engine()
        ids = drive(engine, queues.enqueue(engine, queue_name, None, func, [(args, kwargs)]))
        return EngineHandle(engine, ids[0])

    @overload
    @classmethod
    async def enqueue_workflow_async(
        cls, queue_name: str, func: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandleAsync[R]: ...

    @overload
    @classmethod
    async def enqueue_workflow_async(
        cls, queue_name: str, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandleAsync[R]: ...

    @classmethod
    async def enqueue_workflow_async(
        cls, queue_name: str, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandleAsync[Any]:
        """Enqueue a workflow in a queue that need not be known here; see :meth:`Queue.enqueue`."""
        engine = find_engine()
        ids = await drive_async(engine, queues.enqueue(engine, queue_name, None, func, [(args, kwargs)]))
        return EngineHandleAsync(engine, ids[0])

    @classmethod
    def enqueue_workflow_with_options(cls, options: EnqueueOptions, *args: Any, **kwargs: Any) -> WorkflowHandle[Any]:
        """Enqueue a workflow by its name; it need not be registered in this process.

        Args:
            options: What to enqueue, and how; those of :class:`SetEnqueueOptions` are not looked at.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            A handle to await it with.

        Raises:
            KeyError: ``workflow_name`` or ``queue_name`` is missing.
            DBOSException: an option is unknown, or not what it can be.
            DBOSQueueDeduplicatedError: another workflow holds the deduplication id.
            DBOSConflictingWorkflowError: the workflow id belongs to another function, class or instance.
        """
        engine = find_engine()
        return EngineHandle(engine, drive(engine, queues.enqueue_with_options(engine, options, args, kwargs)))

    @classmethod
    async def enqueue_workflow_with_options_async(
        cls, options: EnqueueOptions, *args: Any, **kwargs: Any
    ) -> WorkflowHandleAsync[Any]:
        """Enqueue a workflow by its name; see :meth:`enqueue_workflow_with_options`."""
        engine = find_engine()
        flow = queues.enqueue_with_options(engine, options, args, kwargs)
        return EngineHandleAsync(engine, await drive_async(engine, flow))

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
        return run_as_step(find_engine(), dbos_step_options, func, args, kwargs)

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
        return await run_as_step_async(find_engine(), dbos_step_options, func, args, kwargs)
