"""Durable time: sleeping, and waiting for the first of several coroutines."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
from collections.abc import Awaitable, Collection, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from dbos._context import current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Pause, drive_async
from dbos._engine.records import commit_step
from dbos._engine.run import Run
from dbos._error import DBOSException, DBOSUnexpectedStepError
from dbos._serialization import PORTABLE_JSON
from dbos._sysdb.operations import RecordStep
from dbos._sysdb.rows import StepRow
from dbos._sysdb.wakeups import Signal

__all__ = ["SLEEP", "asyncio_wait", "checked_seconds", "deadline_of", "deadline_step", "sleep", "sleep_until_recorded"]

logger = logging.getLogger("dbos.timing")

Futures = tuple[set[asyncio.Future[Any]], set[asyncio.Future[Any]]]

SLEEP = "DBOS.sleep"
ASYNCIO_WAIT = "DBOS.asyncio_wait"
LONGEST_WAIT_S = 1e11  # three thousand years

# Where a future stood when it was first waited for. Sets, such as a wait returns, have another order in each process;
# by these places they have the same in every execution.
_places: WeakKeyDictionary[asyncio.Future[Any], tuple[int, int]] = WeakKeyDictionary()


def sleep(engine: Engine, seconds: float) -> Flow[None]:
    """Sleep within a workflow; the wake-up time is recorded, so that a restart does not begin the sleep anew.

    Args:
        seconds: How long, in seconds. Zero or less returns at once and records nothing.

    Raises:
        DBOSException: not called from within a workflow, or it is no number of seconds.
    """
    seconds = checked_seconds("seconds", seconds)
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
            yield Pause(signal, min(remaining_s, engine.clock.longest_pause_s))
    run.check_interrupted()


def checked_seconds(name: str, seconds: object) -> float:
    """A length of time that a wait can have; one that is too long for a clock is as long as it can be.

    Raises:
        DBOSException: it is none.
    """
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or math.isnan(seconds):
        raise DBOSException(f"Invalid {name} {seconds!r}: it is a number of seconds.")
    return min(seconds, LONGEST_WAIT_S)


def deadline_step(engine: Engine, run: Run, function_id: int, seconds: float) -> tuple[float, RecordStep]:
    """When a wait that begins now ends, in seconds since the epoch, and the record of it."""
    now_ms = engine.db.now_ms()
    deadline_s = now_ms / 1000 + seconds
    text = json.dumps(deadline_s)  # portable, whatever the application's serializer is
    return deadline_s, RecordStep(
        run.workflow_id, function_id, SLEEP, text, None, None, now_ms, now_ms, PORTABLE_JSON, run.run_token
    )


def deadline_of(recorded: StepRow) -> float:
    """When a wait ends that was recorded."""
    return float(json.loads(recorded.output or "0"))


def sleep_until_recorded(engine: Engine, run: Run, function_id: int, seconds: float) -> Flow[float]:
    """Record when a wait ends, in seconds since the epoch; on replay, the time that was recorded first."""
    recorded = run.recorded(function_id, SLEEP)
    if recorded is None:
        wake_at_s, step = deadline_step(engine, run, function_id, seconds)
        recorded = yield from commit_step(run, step)
        if recorded is None:
            return wake_at_s
    return deadline_of(recorded)


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
        done = await _wait(engine, run, futures, timeout, return_when)
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
        if indices and indices[-1] >= len(futures):
            raise DBOSUnexpectedStepError(
                run.workflow_id,
                function_id,
                f"{ASYNCIO_WAIT} for {len(futures)} awaitables",
                f"{ASYNCIO_WAIT} for {indices[-1] + 1} or more",
            )
        if indices:
            await _wait(engine, run, [futures[index] for index in indices], None, asyncio.ALL_COMPLETED)
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
    engine: Engine, run: Run, futures: Sequence[asyncio.Future[Any]], timeout_s: float | None, return_when: str
) -> set[asyncio.Future[Any]]:
    """``asyncio.wait`` by the engine's clock, that ends when the run is interrupted."""
    waiting = asyncio.ensure_future(asyncio.wait(futures, return_when=return_when))
    signal = Signal()
    waiting.add_done_callback(lambda _: signal.set())
    try:
        with run.interruptible(signal):
            await engine.clock.wait_async(signal, timeout_s)
        run.check_interrupted()
        if waiting.done():
            done, _ = waiting.result()
            return done
        return {future for future in futures if future.done()}
    finally:
        waiting.cancel()  # it has ended, unless the time is over or this task itself was cancelled
