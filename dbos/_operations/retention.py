"""Retention, when users ask for it instead of having it in the background."""

from __future__ import annotations

from dbos._engine.engine import Engine
from dbos._engine.flow import Flow
from dbos._error import DBOSException
from dbos._operations.auditing import action_of
from dbos._operations.recording import recorded
from dbos._retention_policy import RetentionConfig, RetentionPolicy
from dbos._services.retention import ACTION, RetentionPass
from dbos._types import RetentionReport

__all__ = ["run_retention"]


def run_retention(engine: Engine, retention: RetentionConfig | None = None) -> Flow[RetentionReport]:
    """Delete finished workflows that are past their time, with all that is recorded of them.

    By the time since they ended, and by their number. What is unfinished stays, and so do the children of workflows
    that are unfinished, cancelled or dead-lettered: these may still ask for their results. It is done in many short
    transactions, so that other work goes on meanwhile; one process at a time does it. If something was deleted, that is
    noted in :meth:`list_management_actions`, with how much it was.

    Args:
        retention: What to keep for how long. Default: the key ``retention`` of the configuration.

    Returns:
        How many rows were deleted of each kind. ``held_by`` tells that another process is at it, and nothing was done
        here; ``is_complete`` is False then, and if this process lost its turn to another one.

    Raises:
        DBOSException: ``retention`` cannot be understood, or is given neither here nor in the configuration.

    Example:
        ```python
        report = DBOS.run_retention({"max_age": timedelta(days=30), "workflows": {"audit": "forever"}})
        print(report["workflows"])
        ```
    """
    return (yield from recorded(engine, "DBOS.runRetention", _run(engine, retention)))


def _run(engine: Engine, retention: RetentionConfig | None) -> Flow[RetentionReport]:
    retention_pass = RetentionPass(engine, _policy(engine, retention), action_of(engine, ACTION))
    task = yield from retention_pass.take()
    if task.holder != retention_pass.holder:
        return retention_pass.report
    return (yield from retention_pass.run())


def _policy(engine: Engine, retention: RetentionConfig | None) -> RetentionPolicy:
    if retention is not None:
        try:
            return RetentionPolicy.of(retention)
        except ValueError as error:
            raise DBOSException(f"Invalid retention: {error}") from None
    policy = engine.settings.retention
    if policy is None:
        raise DBOSException(
            "There is no retention policy. Give one, such as {'max_age': timedelta(days=30)}, or set the key "
            "'retention' in the configuration."
        )
    return policy
