"""Calling a workflow: start it, execute it in place, and return what it ends with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dbos._context import Context, current_context
from dbos._engine.engine import Engine
from dbos._engine.execution import execute
from dbos._engine.flow import Flow, Outcome, conclude
from dbos._engine.outcome import GET_RESULT, await_outcome, record_result
from dbos._engine.records import replayed
from dbos._engine.run import Run
from dbos._engine.start import begin, parent_of, take_assigned_id
from dbos._registry import WorkflowFunction

__all__ = ["call_workflow"]


def call_workflow(engine: Engine, function: WorkflowFunction, args: Sequence[Any], kwargs: dict[str, Any]) -> Flow[Any]:
    """Run a workflow in place and return its result; within a workflow, run it as a child."""
    context = current_context() or Context()
    parent = parent_of(context)
    if parent is None:
        begun = yield from begin(engine, function, args, kwargs, context)
        return conclude((yield from _run_or_await(engine, begun)))
    start_id, result_id = parent.next_function_id(), parent.next_function_id()
    parent.check_interrupted()
    recorded = parent.recorded(result_id, GET_RESULT)
    if recorded is not None:
        parent.recorded(start_id, function.name)
        take_assigned_id(context)
        return conclude(replayed(engine, recorded))
    begun = yield from begin(engine, function, args, kwargs, context, start_id)
    outcome = yield from _run_or_await(engine, begun, parent)
    child_id = begun.workflow_id if isinstance(begun, Run) else begun
    return conclude((yield from record_result(engine, parent, result_id, child_id, outcome)))


def _run_or_await(engine: Engine, begun: Run | str, waiter: Run | None = None) -> Flow[Outcome]:
    if isinstance(begun, Run):
        yield from execute(engine, begun)
        if begun.outcome is not None:
            return begun.outcome
        begun = begun.workflow_id
    return (yield from await_outcome(engine, begun, waiter, must_exist=True))
