"""Flows decide what happens next; two drivers make it happen, one blocking, one awaiting.

A flow is a generator that yields effects and is sent their results, so every rule of the engine is written once. It
never calls the user's code or waits by itself. Two things the drivers take care of: what the user's code raises is
*sent* as a value and *returned* as one (a ``StopIteration`` passing through a generator would turn into something
else), and the context is installed around the user's call only (a ``ContextVar`` set inside a suspended generator would
leak to its caller).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from dbos._context import Context, current_context, install, restore
from dbos._error import DBOSBaseException
from dbos._sysdb.operations import Operation
from dbos._sysdb.rows import MUST_READ
from dbos._sysdb.wakeups import Signal

if TYPE_CHECKING:
    from dbos._engine.engine import Engine

__all__ = [
    "Commit",
    "Expired",
    "Flow",
    "Invoke",
    "Limit",
    "Outcome",
    "Pause",
    "Peek",
    "Raised",
    "Read",
    "Returned",
    "caught",
    "conclude",
    "drive",
    "drive_async",
]

T = TypeVar("T")


class Commit(NamedTuple):
    """Make operations durable, together; answered with the sequence of their results."""

    operations: tuple[Operation, ...]


class Limit(NamedTuple):
    """When to cancel a call of a coroutine function: after a time, or when a signal is set."""

    timeout_s: float | None
    stop: Signal | None


class Invoke(NamedTuple):
    """Call the user's code in a context; answered with :class:`Returned`, :class:`Raised`, or :class:`Expired`.

    Only coroutine functions can be limited; a thread that drives the flow has them run on the engine's own loop.
    """

    context: Context
    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    limit: Limit | None = None


class Read(NamedTuple):
    """Ask the database; answered with what the verb returns."""

    verb: Callable[..., Any]
    arguments: tuple[Any, ...]


class Peek(NamedTuple):
    """Ask whether a workflow has an outcome, or does not exist; answered with :class:`Peeked`.

    Coroutines ask for many of them together. A thread is told to read the row, without asking: it may as well do that.
    """

    workflow_id: str


class Pause(NamedTuple):
    """Wait until the signal is set or ``timeout_s`` have passed; answered with whether it was set.

    A thread that pauses gives its place among the executor threads to another.
    """

    signal: Signal
    timeout_s: float | None


Effect = Commit | Invoke | Read | Peek | Pause
Flow = Generator[Effect, Any, T]


class Returned(NamedTuple):
    """The user's code returned."""

    value: Any


class Raised(NamedTuple):
    """The user's code raised something that a workflow can end with.

    A flow that returns one has its driver raise the error.
    """

    error: BaseException


class Expired(NamedTuple):
    """The call reached its limit and was cancelled; ``error`` is what it raised on its way out."""

    error: Exception


Outcome = Returned | Raised


def conclude(outcome: Outcome) -> Any:
    """What a flow returns in order to end with an outcome: the value, or what makes the driver raise the error."""
    return outcome.value if isinstance(outcome, Returned) else outcome


def drive(engine: Engine, flow: Flow[T]) -> T:
    """Run a flow in this thread."""
    operations = _operations()
    if operations is not None:
        operations.add(flow)
    try:
        effect = flow.send(None)
        while True:
            try:
                answer: Any
                if isinstance(effect, Commit):
                    _refuse_in_transaction()
                    answer = engine.db.commit(*effect.operations)
                elif isinstance(effect, Invoke):
                    with engine.clock.acting():
                        answer = _call(engine, effect)
                elif isinstance(effect, Read):
                    answer = engine.db.read(effect.verb, *effect.arguments)
                elif isinstance(effect, Peek):
                    answer = MUST_READ
                else:
                    answer = _pause(engine, effect)
            except BaseException as error:  # ours, or an interrupt: the flow cleans up or makes something of it
                effect = flow.throw(error)
            else:
                effect = flow.send(answer)
    except StopIteration as end:
        result: T = end.value
    finally:
        if operations is not None:
            operations.discard(flow)
    if isinstance(result, Raised):
        raise result.error
    return result


async def drive_async(engine: Engine, flow: Flow[T]) -> T:
    """Run a flow on the running event loop."""
    operations = _operations()
    if operations is not None:
        operations.add(flow)
    try:
        effect = flow.send(None)
        while True:
            try:
                answer: Any
                if isinstance(effect, Commit):
                    _refuse_in_transaction()
                    answer = await engine.db.submit(*effect.operations)
                elif isinstance(effect, Invoke):
                    with engine.clock.acting():
                        answer = await _call_async(effect)
                elif isinstance(effect, Read):
                    answer = await engine.db.read_async(effect.verb, *effect.arguments)
                elif isinstance(effect, Peek):
                    answer = await engine.db.peek_async(effect.workflow_id)
                else:
                    answer = await engine.clock.wait_async(effect.signal, effect.timeout_s)
            except BaseException as error:  # ours, or a cancellation: the flow cleans up or makes something of it
                effect = flow.throw(error)
            else:
                effect = flow.send(answer)
    except StopIteration as end:
        result: T = end.value
    finally:
        if operations is not None:
            operations.discard(flow)
    if isinstance(result, Raised):
        raise result.error
    return result


def _operations() -> set[object] | None:
    """What the workflow that the caller belongs to is in the middle of; None for no workflow."""
    context = current_context()
    return None if context is None or context.run is None else context.run.operations


def _refuse_in_transaction() -> None:
    context = current_context()
    if context is not None and context.is_in_transaction:
        # On SQLite this would wait for the very transaction that it is called in.
        raise Exception("Invalid call to an operation of DBOS inside a transaction: it could not be undone with it")


def _call(engine: Engine, effect: Invoke) -> Returned | Raised | Expired:
    if effect.limit is not None:
        call = asyncio.run_coroutine_threadsafe(_call_async(effect), engine.loops.own())
        with engine.workers.stepping_aside():
            return call.result()
    token = install(effect.context)
    try:
        return Returned(effect.func(*effect.args, **effect.kwargs))
    except BaseException as error:
        return Raised(caught(error))
    finally:
        restore(token)


async def _call_async(effect: Invoke) -> Returned | Raised | Expired:
    token = install(effect.context)
    try:
        if effect.limit is not None:
            return await _call_limited(effect, effect.limit)
        value = effect.func(*effect.args, **effect.kwargs)
        if inspect.isawaitable(value):
            value = await value
        return Returned(value)
    except BaseException as error:
        return Raised(caught(error))
    finally:
        restore(token)


async def _call_limited(effect: Invoke, limit: Limit) -> Returned | Expired:
    loop = asyncio.get_running_loop()
    is_running = True

    def expire() -> None:
        if is_running:
            scope.reschedule(loop.time())

    def stop() -> None:
        try:
            loop.call_soon_threadsafe(expire)
        except RuntimeError:
            return  # the loop was closed, and the call with it

    scope = asyncio.timeout(limit.timeout_s)
    try:
        async with scope:
            if limit.stop is not None:
                limit.stop.call(stop)
            try:
                # A call that returns after all has its value kept: what it did, it did.
                return Returned(await effect.func(*effect.args, **effect.kwargs))
            finally:
                is_running = False
    except Exception as error:
        if scope.expired():
            return Expired(error)
        raise
    finally:
        if limit.stop is not None:
            limit.stop.forget(stop)


def caught(error: BaseException) -> BaseException:
    """What a call ends with; an interrupt of the process or of the task is raised on.

    A task group wraps the signals that stop a workflow, as it does every error; they are found in it.
    """
    if isinstance(error, (Exception, DBOSBaseException)):
        return error
    if isinstance(error, BaseExceptionGroup):
        signals, others = error.split(DBOSBaseException)
        if signals is not None and isinstance(others, Exception | None):
            leaf: BaseException = signals
            while isinstance(leaf, BaseExceptionGroup):
                leaf = leaf.exceptions[0]
            return leaf
    raise error


def _pause(engine: Engine, effect: Pause) -> bool:
    if effect.signal.is_set:
        return True
    with engine.workers.stepping_aside():
        return engine.clock.wait(effect.signal, effect.timeout_s)
