"""The handles that users get: for threads and for coroutines, over the same flows."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

from dbos._engine.engine import Engine
from dbos._engine.flow import drive, drive_async
from dbos._engine.run import Run
from dbos._operations.workflows import handle_result, handle_status
from dbos._types import WorkflowStatus

__all__ = ["EngineHandle", "EngineHandleAsync"]

R = TypeVar("R")


class _Handle:
    def __init__(self, engine: Engine, workflow_id: str, run: Run | None = None) -> None:
        self.workflow_id = workflow_id
        self._engine = engine
        self._run = run

    def get_workflow_id(self) -> str:
        """The workflow's id."""
        return self.workflow_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.workflow_id}>"


class EngineHandle(_Handle, Generic[R]):
    """A :class:`~dbos.WorkflowHandle`; with ``run``, of a workflow that this process executes."""

    def get_result(self, *, polling_interval_sec: float = 1.0) -> R:
        """Wait until the workflow ends; return what it returned or raise what it raised."""
        self._refuse_own_loop()
        result: Any = drive(self._engine, handle_result(self._engine, self.workflow_id, self._run))
        return result  # type: ignore[no-any-return]  # the workflow's return type

    def get_status(self) -> WorkflowStatus:
        """The workflow's status now."""
        return drive(self._engine, handle_status(self._engine, self.workflow_id))

    def _refuse_own_loop(self) -> None:
        """Blocking the very event loop that the workflow runs on would never end."""
        run = self._run or self._engine.runs.get(self.workflow_id)
        if run is None or run.loop is None or run.finished.is_set:
            return
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return
        if run.loop is running:
            raise RuntimeError(
                f"get_result() would block the event loop that workflow {self.workflow_id} runs on. "
                "Start it with start_workflow_async(), and await the handle's get_result()."
            )


class EngineHandleAsync(_Handle, Generic[R]):
    """A :class:`~dbos.WorkflowHandleAsync`; with ``run``, of a workflow that this process executes."""

    async def get_result(self, *, polling_interval_sec: float = 1.0) -> R:
        """Wait until the workflow ends; return what it returned or raise what it raised."""
        result: Any = await drive_async(self._engine, handle_result(self._engine, self.workflow_id, self._run))
        return result  # type: ignore[no-any-return]  # the workflow's return type

    async def get_status(self) -> WorkflowStatus:
        """The workflow's status now."""
        return await drive_async(self._engine, handle_status(self._engine, self.workflow_id))
