"""Flows decide what happens next; two drivers make it happen, one blocking, one awaiting.

A flow is a generator that yields effects and is sent their results, so every rule of the engine is written once. It
never calls the user's code or waits by itself. Two things the drivers take care of: what the user's code raises is
*sent* as a value (a bare ``StopIteration`` thrown into a generator would turn into something else), and the context is
installed around the user's call only (a ``ContextVar`` set inside a suspended generator would leak to its caller).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from dbos._context import Context, install, restore
from dbos._error import DBOSBaseException
from dbos._sysdb.operations import Operation
from dbos._sysdb.wakeups import Signal

if TYPE_CHECKING:
    from dbos._engine.engine import Engine

__all__ = ["Commit", "Flow", "Invoke", "Pause", "Raised", "Read", "Returned", "drive", "drive_async"]

T = TypeVar("T")


class Commit(NamedTuple):
    """Make operations durable, together; answered with the sequence of their results."""

    operations: tuple[Operation, ...]


class Invoke(NamedTuple):
    """Call the user's code in a context; answered with :class:`Returned` or :class:`Raised`."""

    context: Context
    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]


class Read(NamedTuple):
    """Ask the database; answered with what the verb returns."""

    verb: Callable[..., Any]
    arguments: tuple[Any, ...]


class Pause(NamedTuple):
    """Wait until the signal is set or ``timeout_s`` have passed; answered with whether it was set.

    A thread that pauses gives its place among the executor threads to another.
    """

    signal: Signal
    timeout_s: float | None


Effect = Commit | Invoke | Read | Pause
Flow = Generator[Effect, Any, T]


class Returned(NamedTuple):
    """The user's code returned."""

    value: Any


class Raised(NamedTuple):
    """The user's code raised something that a workflow can end with."""

    error: BaseException


def drive(engine: Engine, flow: Flow[T]) -> T:
    """Run a flow in this thread."""
    try:
        effect = flow.send(None)
        while True:
            try:
                kind = type(effect)
                if kind is Commit:
                    answer = engine.db.commit(*effect.operations)  # type: ignore[union-attr]  # kind tells
                elif kind is Invoke:
                    answer = _call(effect)  # type: ignore[arg-type]
                elif kind is Read:
                    answer = engine.db.read(effect.verb, *effect.arguments)  # type: ignore[union-attr]
                else:
                    answer = _pause(engine, effect)  # type: ignore[arg-type]
            except BaseException as error:  # ours, or an interrupt: the flow cleans up or makes something of it
                effect = flow.throw(error)
            else:
                effect = flow.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def drive_async(engine: Engine, flow: Flow[T]) -> T:
    """Run a flow on the running event loop."""
    try:
        effect = flow.send(None)
        while True:
            try:
                kind = type(effect)
                if kind is Commit:
                    answer = await engine.db.submit(*effect.operations)  # type: ignore[union-attr]  # kind tells
                elif kind is Invoke:
                    answer = await _call_async(effect)  # type: ignore[arg-type]
                elif kind is Read:
                    answer = await engine.db.read_async(effect.verb, *effect.arguments)  # type: ignore[union-attr]
                else:
                    answer = await _pause_async(effect)  # type: ignore[arg-type]
            except BaseException as error:  # ours, or a cancellation: the flow cleans up or makes something of it
                effect = flow.throw(error)
            else:
                effect = flow.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def _call(effect: Invoke) -> Returned | Raised:
    token = install(effect.context)
    try:
        return Returned(effect.func(*effect.args, **effect.kwargs))
    except (Exception, DBOSBaseException) as error:
        return Raised(error)
    finally:
        restore(token)


async def _call_async(effect: Invoke) -> Returned | Raised:
    token = install(effect.context)
    try:
        value = effect.func(*effect.args, **effect.kwargs)
        if inspect.isawaitable(value):
            value = await value
        return Returned(value)
    except (Exception, DBOSBaseException) as error:
        return Raised(error)
    finally:
        restore(token)


def _pause(engine: Engine, effect: Pause) -> bool:
    if effect.signal.is_set:
        return True
    with engine.workers.stepping_aside():
        return effect.signal.wait(effect.timeout_s)


async def _pause_async(effect: Pause) -> bool:
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(lambda: future.done() or future.set_result(None))
        except RuntimeError:
            return  # the loop was closed: nobody waits on it any more

    effect.signal.call(wake)
    try:
        async with asyncio.timeout(effect.timeout_s):
            await future
    except TimeoutError:
        return effect.signal.is_set
    finally:
        effect.signal.forget(wake)
    return True
