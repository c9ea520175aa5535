"""Operations of the library as steps of the workflow that calls them."""

from __future__ import annotations

from typing import TypeVar

from dbos._context import current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Raised, conclude
from dbos._engine.records import commit_step, replayed
from dbos._sysdb.operations import RecordStep

__all__ = ["recorded", "refuse_in_transaction"]

T = TypeVar("T")


def refuse_in_transaction(name: str) -> None:
    """Refuse an operation within a transaction: it could not be undone with it, and on SQLite would wait for it.

    Raises:
        Exception: the caller is within a transaction.
    """
    context = current_context()
    if context is not None and context.is_in_transaction:
        raise Exception(f"Invalid call to `{name}` inside a transaction")


def recorded(engine: Engine, name: str, operation: Flow[T]) -> Flow[T]:
    """Run an operation; within a workflow's body, record its result under ``name`` and replay it from then on.

    An operation that raises is not recorded, its function id is used up all the same.

    Raises:
        Exception: called within a transaction, where it could not be undone.
    """
    refuse_in_transaction(name)
    context = current_context()
    if context is None or not context.is_in_workflow_body or context.run is None:
        return (yield from operation)
    run = context.run
    function_id = run.next_function_id()
    run.check_interrupted()
    row = run.recorded(function_id, name)
    if row is not None:
        operation.close()
        result: T = conclude(replayed(engine, row))
        return result
    started_ms = engine.clock.now_ms()
    result = yield from operation
    if isinstance(result, Raised):
        return result
    output, serialization = engine.serialization.dump_value(result)
    step = RecordStep(
        run.workflow_id,
        function_id,
        name,
        output,
        None,
        None,
        started_ms,
        engine.clock.now_ms(),
        serialization,
        run.run_token,
    )
    existing = yield from commit_step(run, step)
    if existing is not None:
        result = conclude(replayed(engine, existing))
    return result
