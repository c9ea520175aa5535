"""Handles: a workflow's id with the means to await it."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

from dbos._types import WorkflowStatus

__all__ = ["WorkflowHandle", "WorkflowHandleAsync"]

R_co = TypeVar("R_co", covariant=True)


@runtime_checkable
class WorkflowHandle(Protocol[R_co]):
    """A workflow that was started, retrieved or enqueued."""

    workflow_id: str

    def get_workflow_id(self) -> str:
        """The workflow's id."""
        ...

    def get_result(self, *, polling_interval_sec: float = 1.0) -> R_co:
        """Wait until the workflow ends and return its result.

        Args:
            polling_interval_sec: Accepted for compatibility; waiters are woken, and one query a second checks for all
                of them together.

        Raises:
            Exception: what the workflow raised.
            DBOSAwaitedWorkflowCancelledError: it was cancelled.
            DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded: it was given up after too many attempts.
        """
        ...

    def get_status(self) -> WorkflowStatus:
        """The workflow's status now.

        Raises:
            DBOSNonExistentWorkflowError: there is no such workflow.
        """
        ...


@runtime_checkable
class WorkflowHandleAsync(Protocol[R_co]):
    """A workflow that was started, retrieved or enqueued, for use in coroutines."""

    workflow_id: str

    def get_workflow_id(self) -> str:
        """The workflow's id."""
        ...

    async def get_result(self, *, polling_interval_sec: float = 1.0) -> R_co:
        """Wait until the workflow ends and return its result; see :meth:`WorkflowHandle.get_result`."""
        ...

    async def get_status(self) -> WorkflowStatus:
        """The workflow's status now; see :meth:`WorkflowHandle.get_status`."""
        ...
