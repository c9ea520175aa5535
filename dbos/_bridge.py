"""One body, two forms: a flow declared as a blocking function and as a coroutine function.

The two differ by their driver only. The blocking form refuses to block a running event loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, drive, drive_async

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

    def __init__(self, find_engine: Callable[[], Engine]) -> None:
        self._find_engine = find_engine

    def blocking(self, operation: Callable[Concatenate[Engine, P], Flow[R]], *, guarded: bool = True) -> Callable[P, R]:
        """The blocking form; unless ``guarded`` is False, it raises RuntimeError while an event loop is running."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if guarded:
                refuse_running_loop(operation.__name__)
            engine = self._find_engine()
            return drive(engine, operation(engine, *args, **kwargs))

        return _described(call, operation, operation.__name__)

    def awaiting(self, operation: Callable[Concatenate[Engine, P], Flow[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """The coroutine form."""

        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            engine = self._find_engine()
            return await drive_async(engine, operation(engine, *args, **kwargs))

        return _described(call, operation, f"{operation.__name__}_async")


F = TypeVar("F", bound=Callable[..., Any])


def _described(call: F, operation: Callable[..., Any], name: str) -> F:
    functools.update_wrapper(call, operation)
    del call.__wrapped__  # type: ignore[attr-defined]  # its signature has the engine first
    signature = inspect.signature(operation)
    parameters = list(signature.parameters.values())[1:]
    returns = str(signature.return_annotation).removeprefix("Flow[").removesuffix("]")
    call.__signature__ = signature.replace(parameters=parameters, return_annotation=returns)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": returns}
    call.__name__ = name
    call.__qualname__ = f"DBOS.{name}"
    return call
