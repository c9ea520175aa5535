"""Operations of the library as steps of the workflow that calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dbos._context import current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Raised, conclude
from dbos._engine.records import commit_step, replayed
from dbos._error import DBOSException
from dbos._sysdb.operations import RecordStep

__all__ = ["recorded", "recorded_by_id", "refuse_in_transaction", "refuse_in_workflow"]

T = TypeVar("T")


def refuse_in_transaction(name: str) -> None:
    """Refuse an operation within a transaction: it could not be undone with it, and on SQLite would wait for it.

    Raises:
        Exception: the caller is within a transaction.
    """
    context = current_context()
    if context is not None and context.is_in_transaction:
        raise Exception(f"Invalid call to `{name}` inside a transaction")


def refuse_in_workflow(name: str) -> None:
    """Refuse an operation in a workflow's body, which could not replay it, and within a transaction.

    Raises:
        DBOSException: the caller is a workflow.
        Exception: the caller is within a transaction.
    """
    context = current_context()
    if context is not None and context.is_in_workflow_body:
        raise DBOSException(f"{name} cannot be called from within a workflow")
    refuse_in_transaction(name)


def recorded(engine: Engine, name: str, operation: Flow[T]) -> Flow[T]:
    """Run an operation; within a workflow's body, record its result under ``name`` and replay it from then on.

    An operation that raises is not recorded, its function id is used up all the same.

    Raises:
        Exception: called within a transaction, where it could not be undone.
    """
    try:
        return (yield from recorded_by_id(engine, name, lambda function_id: operation))
    finally:
        operation.close()


def recorded_by_id(engine: Engine, name: str, operation: Callable[[int | None], Flow[T]]) -> Flow[T]:
    """Run an operation that makes use of its function id, which is None outside of a workflow's body.

    It may be run again under the same id, if the process dies before it is recorded. See :func:`recorded`.
    """
    refuse_in_transaction(name)
    context = current_context()
    if context is None or not context.is_in_workflow_body or context.run is None:
        return (yield from operation(None))
    run = context.run
    function_id = run.next_function_id()
    run.check_interrupted()
    row = run.recorded(function_id, name)
    if row is not None:
        result: T = conclude(replayed(engine, row))
        return result
    started_ms = engine.clock.now_ms()
    result = yield from operation(function_id)
    if isinstance(result, Raised):
        return result
    output, serialization = engine.serialization.dump_value(result, what="result of step", name=name)
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
