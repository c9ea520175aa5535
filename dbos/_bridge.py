"""One body, two forms: a flow declared as a blocking function and as a coroutine function.

The two differ by their driver only. The blocking form refuses to block a running event loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import nullcontext
from typing import Any, Concatenate, ParamSpec, TypeVar

from dbos._context import outside_of_workflows
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, drive, drive_async
from dbos._handles import WorkflowHandle, WorkflowHandleAsync
from dbos._operations.handles import EngineHandle, EngineHandleAsync
from dbos._operations.streams import StreamReader

__all__ = ["Bridge", "refuse_running_loop"]

P = ParamSpec("P")
R = TypeVar("R")


def refuse_running_loop(name: str) -> None:
    """Refuse to block a running event loop.

    Raises:
        RuntimeError: a loop is running in this thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{name}() was called while an event loop is running. Use await {name}_async(...) instead.")


class Bridge:
    """Makes the two forms of operations for the engine that ``find_engine`` returns when they are called."""

    def __init__(
        self,
        find_engine: Callable[[], Engine],
        *,
        is_outside: bool = False,
        prepare: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """Operations that are ``outside`` know of no workflow that they may be called in.

        ``prepare`` is awaited before the engine is asked for, if finding it may take long.
        """
        self._find_engine = find_engine
        self._prepare = prepare
        self._scope = outside_of_workflows if is_outside else nullcontext

    def blocking(self, operation: Callable[Concatenate[Engine, P], Flow[R]], *, guarded: bool = True) -> Callable[P, R]:
        """The blocking form; unless ``guarded`` is False, it raises RuntimeError while an event loop is running."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if guarded:
                refuse_running_loop(operation.__name__)
            engine = self._find_engine()
            with self._scope():
                return drive(engine, operation(engine, *args, **kwargs))

        return _described(call, operation, operation.__name__)

    def awaiting(self, operation: Callable[Concatenate[Engine, P], Flow[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """The coroutine form."""

        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._prepare is not None:
                await self._prepare()
            engine = self._find_engine()
            with self._scope():
                return await drive_async(engine, operation(engine, *args, **kwargs))

        return _described(call, operation, f"{operation.__name__}_async")

    # -- operations that return a workflow's id, of which users get a handle -------------------------------------------

    def blocking_handle(
        self, operation: Callable[Concatenate[Engine, P], Flow[str]], *, guarded: bool = True
    ) -> Callable[P, WorkflowHandle[Any]]:
        """The blocking form, for a handle."""
        blocking = self.blocking(operation, guarded=guarded)

        def call(*args: P.args, **kwargs: P.kwargs) -> WorkflowHandle[Any]:
            return EngineHandle(self._find_engine(), blocking(*args, **kwargs))

        return _described(call, operation, operation.__name__, "WorkflowHandle[Any]")

    def awaiting_handle(
        self, operation: Callable[Concatenate[Engine, P], Flow[str]]
    ) -> Callable[P, Coroutine[Any, Any, WorkflowHandleAsync[Any]]]:
        """The coroutine form, for a handle."""
        awaiting = self.awaiting(operation)

        async def call(*args: P.args, **kwargs: P.kwargs) -> WorkflowHandleAsync[Any]:
            return EngineHandleAsync(self._find_engine(), await awaiting(*args, **kwargs))

        return _described(call, operation, f"{operation.__name__}_async", "WorkflowHandleAsync[Any]")

    def blocking_handles(
        self, operation: Callable[Concatenate[Engine, P], Flow[list[str]]], *, guarded: bool = True
    ) -> Callable[P, list[WorkflowHandle[Any]]]:
        """The blocking form, for handles; what is no id, because the operation only told what it would do, stays."""
        blocking = self.blocking(operation, guarded=guarded)

        def call(*args: P.args, **kwargs: P.kwargs) -> list[WorkflowHandle[Any]]:
            engine, ids = self._find_engine(), blocking(*args, **kwargs)
            return [EngineHandle(engine, each) if isinstance(each, str) else each for each in ids]

        return _described(call, operation, operation.__name__, "list[WorkflowHandle[Any]]")

    def awaiting_handles(
        self, operation: Callable[Concatenate[Engine, P], Flow[list[str]]]
    ) -> Callable[P, Coroutine[Any, Any, list[WorkflowHandleAsync[Any]]]]:
        """The coroutine form, for handles."""
        awaiting = self.awaiting(operation)

        async def call(*args: P.args, **kwargs: P.kwargs) -> list[WorkflowHandleAsync[Any]]:
            ids = await awaiting(*args, **kwargs)
            engine = self._find_engine()
            return [EngineHandleAsync(engine, each) if isinstance(each, str) else each for each in ids]

        return _described(call, operation, f"{operation.__name__}_async", "list[WorkflowHandleAsync[Any]]")

    # -- operations that yield values one by one -----------------------------------------------------------------------

    def blocking_iterator(
        self, operation: Callable[Concatenate[Engine, P], StreamReader], *, guarded: bool = True
    ) -> Callable[P, Generator[Any, None, None]]:
        """The blocking form, for a generator; what it refuses, it refuses when the first value is asked for."""

        def call(*args: P.args, **kwargs: P.kwargs) -> Generator[Any, None, None]:
            if guarded:
                refuse_running_loop(operation.__name__)
            engine = self._find_engine()
            reader = operation(engine, *args, **kwargs)
            while True:
                with self._scope():
                    item = drive(engine, reader.next())
                if item is None:
                    return
                yield item.value

        return _described(call, operation, operation.__name__, "Generator[Any, None, None]")

    def awaiting_iterator(
        self, operation: Callable[Concatenate[Engine, P], StreamReader]
    ) -> Callable[P, AsyncGenerator[Any, None]]:
        """The coroutine form, for an asynchronous generator."""

        async def call(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Any, None]:
            if self._prepare is not None:
                await self._prepare()
            engine = self._find_engine()
            reader = operation(engine, *args, **kwargs)
            while True:
                with self._scope():
                    item = await drive_async(engine, reader.next())
                if item is None:
                    return
                yield item.value

        return _described(call, operation, f"{operation.__name__}_async", "AsyncGenerator[Any, None]")


F = TypeVar("F", bound=Callable[..., Any])


def _described(call: F, operation: Callable[..., Any], name: str, returns: str | None = None) -> F:
    functools.update_wrapper(call, operation)
    del call.__wrapped__  # type: ignore[attr-defined]  # its signature has the engine first
    signature = inspect.signature(operation)
    parameters = list(signature.parameters.values())[1:]
    returns = returns or str(signature.return_annotation).removeprefix("Flow[").removesuffix("]")
    call.__signature__ = signature.replace(parameters=parameters, return_annotation=returns)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": returns}
    call.__name__ = name
    call.__qualname__ = f"DBOS.{name}"
    return call
