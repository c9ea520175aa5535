"""Attributes: what users attach to workflows, to find them by."""

from __future__ import annotations

from typing import Any

from dbos._context import checked_workflow_id
from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Read
from dbos._error import DBOSNonExistentWorkflowError
from dbos._operations.auditing import action_of, audited
from dbos._operations.recording import recorded
from dbos._serialization.attributes import dump_attributes
from dbos._sysdb.operations import call

__all__ = ["update_workflow_attributes"]


def update_workflow_attributes(engine: Engine, workflow_id: str, attributes: dict[str, Any] | None) -> Flow[None]:
    """Give a workflow other attributes, whatever its status, instead of all that it has.

    Attributes are listed with it, and :meth:`list_workflows` finds it by them.

    Args:
        workflow_id: The workflow's id.
        attributes: A dictionary that JSON can express; None for none.

    Raises:
        DBOSNonExistentWorkflowError: there is no such workflow.
        DBOSException: JSON cannot express ``attributes``, or no workflow can have this id.

    Example:
        ```python
        DBOS.update_workflow_attributes("order-7", {"customer": "Ada", "priority": 2})
        ```
    """
    workflow_id, text = checked_workflow_id(workflow_id), dump_attributes(attributes)

    def update() -> Flow[None]:
        change = audited(engine, action_of(engine, "update_attributes"), engine.db.workflows.set_attributes)
        results = yield Commit((call(change, workflow_id, text),))
        if not results[0] and not (yield Read(engine.db.workflows.existing, ([workflow_id],))):
            raise DBOSNonExistentWorkflowError("target", workflow_id)

    yield from recorded(engine, "DBOS.updateWorkflowAttributes", update())
