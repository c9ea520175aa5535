"""Durable time: sleeping, and waiting for the first of several coroutines."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Sequence
from typing import Any

from dbos._context import current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Pause, drive_async
from dbos._engine.run import Run
from dbos._engine.workflow import commit_step
from dbos._error import DBOSException
from dbos._sysdb.operations import RecordStep
from dbos._sysdb.wakeups import Signal

__all__ = ["asyncio_wait", "sleep", "sleep_until_recorded"]

logger = logging.getLogger("dbos.timing")

SLEEP = "DBOS.sleep"
ASYNCIO_WAIT = "DBOS.asyncio_wait"
PORTABLE_JSON = "portable_json"  # wake-up times are written so whatever the application's serializer is


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
        remaining_s = wake_at_s - engine.db.now_ms() / 1000
        if remaining_s > 0:
            yield Pause(signal, remaining_s)
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
    fs: Sequence[Awaitable[Any]],
    *,
    timeout: float | None = None,
    return_when: str = asyncio.ALL_COMPLETED,
) -> tuple[set[asyncio.Future[Any]], set[asyncio.Future[Any]]]:
    """``asyncio.wait``, but within a workflow which awaitables were done is recorded, so that replay decides alike."""
    context = current_context()
    if context is None or not context.is_in_workflow_body or engine is None:
        return await asyncio.wait([asyncio.ensure_future(f) for f in fs], timeout=timeout, return_when=return_when)
    assert context.run is not None
    run = context.run
    function_id = run.next_function_id()
    run.check_interrupted()
    futures = [asyncio.ensure_future(f) for f in fs]
    recorded = run.recorded(function_id, ASYNCIO_WAIT)
    if recorded is None:
        started_ms = engine.clock.now_ms()
        done, _ = await asyncio.wait(futures, timeout=timeout, return_when=return_when)
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
            await asyncio.wait([futures[index] for index in indices])
    chosen = {futures[index] for index in indices}
    return chosen, set(futures) - chosen
