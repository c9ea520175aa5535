"""The hottest path, without a flow: a step that is called once and comes back as it should.

A flow costs some ten microseconds a step, a tenth of what a step takes in a crowd. So the plain case is written out,
for threads and for coroutines; everything else is the flow's (:func:`~dbos._engine.step.run_step`): a run with a
history, retries and limits, an interruption, a lease that runs out, an answer other than "recorded". A record whose
answer is not that is simply written again by the flow, which knows what each answer means: operations can be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dbos._context import Context, install, restore
from dbos._engine.engine import Engine
from dbos._engine.flow import Outcome, Raised, Returned, caught, drive, drive_async
from dbos._engine.outcome import reveal
from dbos._engine.run import Run
from dbos._engine.step import StepFunction, encode_step, record_step, run_step, step_context
from dbos._sysdb.operations import RECORDED

__all__ = ["call_step", "call_step_async"]


def call_step(
    engine: Engine, run: Run, context: Context, step: StepFunction, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """Run a step in this thread."""
    if not _is_plain(engine, run, step):
        return drive(engine, run_step(engine, run, context, step, args, kwargs))
    function_id = run.next_function_id()
    run.operations.add(function_id)
    try:
        inner = step_context(run, context, step, function_id, args)
        started_ms = engine.clock.now_ms()
        outcome: Outcome
        token = install(inner)
        try:
            outcome = Returned(step.func(*args, **kwargs))
        except BaseException as error:
            outcome = Raised(caught(error))
        finally:
            restore(token)
        if isinstance(outcome, Raised) and not isinstance(outcome.error, Exception):
            raise outcome.error
        record, outcome = encode_step(engine, run, function_id, step.name, outcome, started_ms)
        try:
            is_recorded = engine.db.commit(record)[0] == RECORDED
        except Exception:  # whatever it is, it comes again where the flow writes the record, which knows what it means
            is_recorded = False
        if not is_recorded:
            outcome = drive(engine, record_step(engine, run, record, outcome))
        return reveal(outcome)
    finally:
        run.operations.discard(function_id)


async def call_step_async(
    engine: Engine, run: Run, context: Context, step: StepFunction, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """Run a step that is a coroutine function on the running loop."""
    if not _is_plain(engine, run, step):
        return await drive_async(engine, run_step(engine, run, context, step, args, kwargs))
    function_id = run.next_function_id()
    run.operations.add(function_id)
    try:
        inner = step_context(run, context, step, function_id, args)
        started_ms = engine.clock.now_ms()
        outcome: Outcome
        token = install(inner)
        try:
            outcome = Returned(await step.func(*args, **kwargs))
        except BaseException as error:
            outcome = Raised(caught(error))
        finally:
            restore(token)
        if isinstance(outcome, Raised) and not isinstance(outcome.error, Exception):
            raise outcome.error
        record, outcome = encode_step(engine, run, function_id, step.name, outcome, started_ms)
        try:
            is_recorded = (await engine.db.submit(record))[0] == RECORDED
        except Exception:  # likewise
            is_recorded = False
        if not is_recorded:
            outcome = await drive_async(engine, record_step(engine, run, record, outcome))
        return reveal(outcome)
    finally:
        run.operations.discard(function_id)


def _is_plain(engine: Engine, run: Run, step: StepFunction) -> bool:
    return (
        step.policy.is_plain
        and not engine.clock.jumps  # over the time of what it does not know of
        and not run.history
        and engine.clock.monotonic() < engine.lease_guard
        and not run.is_interrupted  # last: who registers anew, having been declared dead, stops its runs before
    )
