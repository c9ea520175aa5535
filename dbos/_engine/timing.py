"""Durable time: sleeping, and waiting for the first of several coroutines."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Awaitable, Collection, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from dbos._context import current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Pause, drive_async
from dbos._engine.records import commit_step
from dbos._engine.run import Run
from dbos._error import DBOSException
from dbos._sysdb.operations import RecordStep
from dbos._sysdb.wakeups import Signal

__all__ = ["asyncio_wait", "sleep", "sleep_until_recorded"]

logger = logging.getLogger("dbos.timing")

Futures = tuple[set[asyncio.Future[Any]], set[asyncio.Future[Any]]]

SLEEP = "DBOS.sleep"
ASYNCIO_WAIT = "DBOS.asyncio_wait"
PORTABLE_JSON = "portable_json"  # wake-up times are written so whatever the application's serializer is
LONGEST_PAUSE_S = 60.0  # a timer stands still while a computer is suspended, the time to wake up at does not

# Where a future stood when it was first waited for. Sets, such as a wait returns, have another order in each process;
# by these places they have the same in every execution.
_places: WeakKeyDictionary[asyncio.Future[Any], tuple[int, int]] = WeakKeyDictionary()


def sleep(engine: Engine, seconds: float) -> Flow[None]:
    """Sleep within a workflow; the wake-up time is recorded, so that a restart does not begin the sleep anew.

    Args:
        seconds: How long, in seconds. Zero or less returns at once and records nothing.

    Raises:
        DBOSException: not called from within a workflow.
    """
    if seconds <= 0:
        return
    context = current_context()
    if context is None:
        raise DBOSException("sleep() must be called from within a workflow")
    assert context.is_in_workflow_body, "sleep() must be called from within a workflow"
    assert context.run is not None
    logger.debug("Running sleep, seconds: %s", seconds)
    run = context.run
    function_id = run.next_function_id()
    run.check_interrupted()
    wake_at_s = yield from sleep_until_recorded(engine, run, function_id, seconds)
    signal = Signal()
    with run.interruptible(signal):
        while (remaining_s := wake_at_s - engine.db.now_ms() / 1000) > 0 and not run.is_interrupted:
            yield Pause(signal, min(remaining_s, LONGEST_PAUSE_S))
    run.check_interrupted()


def sleep_until_recorded(engine: Engine, run: Run, function_id: int, seconds: float) -> Flow[float]:
    """Record when a wait ends, in seconds since the epoch; on replay, the time that was recorded first."""
    recorded = run.recorded(function_id, SLEEP)
    if recorded is None:
        now_ms = engine.db.now_ms()
        wake_at_s = now_ms / 1000 + seconds
        recorded = yield from commit_step(
            run,
            RecordStep(
                run.workflow_id,
                function_id,
                SLEEP,
                json.dumps(wake_at_s),
                None,
                None,
                now_ms,
                now_ms,
                PORTABLE_JSON,
                run.run_token,
            ),
        )
        if recorded is None:
            return wake_at_s
    return float(json.loads(recorded.output or "0"))


async def asyncio_wait(
    engine: Engine | None,
    fs: Iterable[Awaitable[Any]],
    *,
    timeout: float | None = None,
    return_when: str = asyncio.ALL_COMPLETED,
) -> Futures:
    """``asyncio.wait``, but within a workflow which awaitables were done is recorded, so that replay decides alike.

    Raises:
        TypeError: within a workflow, ``fs`` is unordered and no earlier wait has returned what is in it.
    """
    context = current_context()
    if context is None or not context.is_in_workflow_body or engine is None:
        futures = _futures(fs)
        done, pending = await asyncio.wait(futures, timeout=timeout, return_when=return_when)
        return done, pending
    assert context.run is not None
    run = context.run
    function_id = run.next_function_id()
    fs = fs if isinstance(fs, set | frozenset) else list(fs)
    try:
        run.check_interrupted()
        recorded = run.recorded(function_id, ASYNCIO_WAIT)
        fs = _in_order(fs)
    except BaseException:
        for awaitable in fs:
            if inspect.iscoroutine(awaitable):
                awaitable.close()  # nobody else will ever await it
        raise
    futures = _futures(fs)
    for index, future in enumerate(futures):
        _places.setdefault(future, (function_id, index))
    if recorded is None:
        started_ms = engine.clock.now_ms()
        done = await _wait(run, futures, timeout, return_when)
        indices = [index for index, future in enumerate(futures) if future in done]
        output, serialization = engine.serialization.dump_value(indices)
        step = RecordStep(
            run.workflow_id,
            function_id,
            ASYNCIO_WAIT,
            output,
            None,
            None,
            started_ms,
            engine.clock.now_ms(),
            serialization,
            run.run_token,
        )
        recorded = await drive_async(engine, commit_step(run, step))
    if recorded is not None:
        indices = engine.serialization.load_value(recorded.output, recorded.serialization)
        if indices:
            await _wait(run, [futures[index] for index in indices], None, asyncio.ALL_COMPLETED)
    chosen = {futures[index] for index in indices}
    return chosen, set(futures) - chosen


def _in_order(awaitables: Collection[Awaitable[Any]]) -> Sequence[Awaitable[Any]]:
    if isinstance(awaitables, list):
        return awaitables
    try:
        return sorted(awaitables, key=_places.__getitem__)  # type: ignore[arg-type]  # others are not found, or no keys
    except (KeyError, TypeError):
        raise TypeError(
            "DBOS.asyncio_wait() was given a set. Its order differs from one execution to the next: pass a list. "
            "Only the sets that an earlier wait returned may be passed on."
        ) from None


def _futures(awaitables: Iterable[Awaitable[Any]]) -> list[asyncio.Future[Any]]:
    return [asyncio.ensure_future(awaitable) for awaitable in awaitables]


async def _wait(
    run: Run, futures: Sequence[asyncio.Future[Any]], timeout_s: float | None, return_when: str
) -> set[asyncio.Future[Any]]:
    """``asyncio.wait`` that ends when the run is interrupted."""
    loop = asyncio.get_running_loop()
    waiting = asyncio.ensure_future(asyncio.wait(futures, timeout=timeout_s, return_when=return_when))

    def stop() -> None:
        try:
            loop.call_soon_threadsafe(waiting.cancel)
        except RuntimeError:
            return  # the loop was closed: nobody waits on it any more

    signal = Signal()
    signal.call(stop)
    with run.interruptible(signal):
        try:
            done, _ = await waiting
        except asyncio.CancelledError:
            run.check_interrupted()
            raise
        finally:
            signal.forget(stop)
            waiting.cancel()  # it has ended, unless this task itself was cancelled
    return done
