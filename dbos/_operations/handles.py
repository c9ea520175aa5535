"""The handles that users get: for threads and for coroutines, over the same flows."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

from dbos._context import outside_of_workflows
from dbos._engine.engine import Engine
from dbos._engine.flow import drive, drive_async
from dbos._engine.outcome import UNFINISHED
from dbos._engine.run import LatestRun, Run
from dbos._operations.workflows import handle_result, handle_status
from dbos._types import WorkflowStatus

__all__ = ["EngineHandle", "EngineHandleAsync"]

R = TypeVar("R")


class _Handle:
    __slots__ = ("__weakref__", "_engine", "_latest", "workflow_id")  # there may be very many

    def __init__(self, engine: Engine, workflow_id: str, run: Run | None = None) -> None:
        self.workflow_id = workflow_id
        self._engine = engine
        self._latest = engine.runs.latest(workflow_id) if run is None else LatestRun(run)

    def _scope(self) -> AbstractContextManager[None]:
        return outside_of_workflows() if self._engine.is_client else nullcontext()

    def get_workflow_id(self) -> str:
        """The workflow's id."""
        return self.workflow_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.workflow_id}>"


class EngineHandle(_Handle, Generic[R]):
    """A :class:`~dbos.WorkflowHandle`; with ``run``, of a workflow that this process executes."""

    __slots__ = ()

    def get_result(self, *, polling_interval_sec: float = 1.0) -> R:
        """Wait until the workflow ends; return what it returned or raise what it raised."""
        self._refuse_own_loop()
        with self._scope():
            result: Any = drive(self._engine, handle_result(self._engine, self.workflow_id, self._latest))
        return result  # type: ignore[no-any-return]  # the workflow's return type

    def get_status(self) -> WorkflowStatus:
        """The workflow's status now."""
        with self._scope():
            return drive(self._engine, handle_status(self._engine, self.workflow_id))

    def _refuse_own_loop(self) -> None:
        """Blocking the very event loop that the workflow runs on, or will run on, would never end."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return
        run = self._latest.run or self._engine.runs.get(self.workflow_id)
        loop = self._future_loop() if run is None else None if run.finished.is_set else run.loop
        if loop is running:
            raise RuntimeError(
                f"get_result() would block the event loop that workflow {self.workflow_id} runs on. "
                "Start it with start_workflow_async(), or enqueue it with enqueue_async(), and await the handle's "
                "get_result()."
            )

    def _future_loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that the workflow will run on if this process takes it from its queue."""
        engine = self._engine
        if engine.loops.main is None:
            return None
        row = engine.db.read(engine.db.workflows.get, self.workflow_id)
        function = engine.registry.workflows.get(row.name) if row is not None else None
        is_coroutine = function is not None and function.is_async
        return engine.loops.main if is_coroutine and row is not None and row.status in UNFINISHED else None


class EngineHandleAsync(_Handle, Generic[R]):
    """A :class:`~dbos.WorkflowHandleAsync`; with ``run``, of a workflow that this process executes."""

    __slots__ = ()

    async def get_result(self, *, polling_interval_sec: float = 1.0) -> R:
        """Wait until the workflow ends; return what it returned or raise what it raised."""
        with self._scope():
            flow = handle_result(self._engine, self.workflow_id, self._latest)
            result: Any = await drive_async(self._engine, flow)
        return result  # type: ignore[no-any-return]  # the workflow's return type

    async def get_status(self) -> WorkflowStatus:
        """The workflow's status now."""
        with self._scope():
            return await drive_async(self._engine, handle_status(self._engine, self.workflow_id))
