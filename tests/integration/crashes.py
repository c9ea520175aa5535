"""Ending an execution the way a killed process does, and recovering it in the same one."""

from __future__ import annotations

from typing import Any

from dbos import DBOS, WorkflowHandle


class Crash(BaseException):
    """Raised by a workflow's body: nothing is recorded, and the workflow stays PENDING."""


def recover(dbos: type[DBOS]) -> WorkflowHandle[Any]:
    """Recover the one workflow that has crashed."""
    [handle] = dbos._recover_pending_workflows()
    return handle
