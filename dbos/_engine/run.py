"""One execution of a workflow in this process, and the table of all of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dbos._context import Context
from dbos._engine.flow import Outcome
from dbos._error import DBOSUnexpectedStepError, DBOSWorkflowCancelledError, DBOSWorkflowConflictIDError
from dbos._registry import WorkflowFunction
from dbos._serialization import WorkflowSerializationFormat
from dbos._sysdb.rows import StepRow
from dbos._sysdb.wakeups import Signal

__all__ = ["Run", "Runs"]


class Run:
    """The live state of one execution.

    ``history`` holds what earlier executions recorded, or None for a run that this process has just created: then
    nothing needs to be looked up. The counter of function ids is shared by all tasks and contexts of the run. ``loop``
    is the event loop that the run is executed on, if it was begun in the background of one. ``outcome`` is what the run
    ended with, for whoever waits in this process; it stays None if the run parked.
    """

    __slots__ = (
        "_interrupts",
        "_is_cancelled",
        "_is_lost",
        "_numbering",
        "args",
        "context",
        "deadline_ms",
        "finished",
        "format",
        "function",
        "history",
        "kwargs",
        "last_function_id",
        "loop",
        "outcome",
        "run_token",
        "start_token",
        "workflow_id",
    )

    def __init__(
        self,
        *,
        workflow_id: str,
        run_token: str,
        start_token: str | None,
        function: WorkflowFunction,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Context,
        format: WorkflowSerializationFormat | None,
        deadline_ms: int | None,
        history: dict[int, StepRow] | None,
    ) -> None:
        self.workflow_id = workflow_id
        self.run_token = run_token
        self.start_token = start_token
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.context = context
        self.format = format
        self.deadline_ms = deadline_ms
        self.history = history
        self.last_function_id = 0
        self._numbering = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.finished = Signal()
        self.outcome: Outcome | None = None
        self._is_cancelled = False
        self._is_lost = False
        self._interrupts: set[Signal] = set()
        context.run = self

    # -- function ids and replay --------------------------------------------------------------------------------------

    def next_function_id(self) -> int:
        """Take the next id; called before the first await of an operation, so that the source order decides."""
        with self._numbering:  # threads of one workflow (asyncio.to_thread) take ids side by side
            self.last_function_id += 1
            return self.last_function_id

    def recorded(self, function_id: int, function_name: str) -> StepRow | None:
        """What an earlier execution recorded under this id.

        Raises:
            DBOSUnexpectedStepError: something else was recorded there, so the workflow is not deterministic.
        """
        if self.history is None:
            return None
        row = self.history.get(function_id)
        if row is not None and row.function_name != function_name:
            raise DBOSUnexpectedStepError(self.workflow_id, function_id, function_name, row.function_name)
        return row

    # -- interruption -------------------------------------------------------------------------------------------------

    @property
    def is_interrupted(self) -> bool:
        """Whether the run must stop before its next operation."""
        return self._is_cancelled or self._is_lost

    def check_interrupted(self) -> None:
        """Stop a run that was cancelled or taken over.

        Raises:
            DBOSWorkflowCancelledError: the workflow was cancelled.
            DBOSWorkflowConflictIDError: another execution owns it now.
        """
        if self._is_cancelled:
            raise DBOSWorkflowCancelledError(f"Workflow {self.workflow_id} is cancelled. Aborting function.")
        if self._is_lost:
            raise DBOSWorkflowConflictIDError(self.workflow_id)

    @property
    def is_cancelled(self) -> bool:
        """Whether the workflow was cancelled."""
        return self._is_cancelled

    def cancel(self) -> None:
        """The workflow was cancelled: its waits end, its next operation raises."""
        self._is_cancelled = True
        self._interrupt()

    def lose(self) -> None:
        """The run's token is no longer valid: it must not act any more."""
        self._is_lost = True
        self._interrupt()

    def _interrupt(self) -> None:
        for signal in list(self._interrupts):
            signal.set()

    @contextmanager
    def interruptible(self, signal: Signal) -> Iterator[None]:
        """Have ``signal`` set also when the run is interrupted, for the duration of the block."""
        self._interrupts.add(signal)
        if self.is_interrupted:
            signal.set()
        try:
            yield
        finally:
            self._interrupts.discard(signal)


class Runs:
    """The executions in this process, by workflow id; a newer one of the same workflow takes the place of an older."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._expected: set[str] = set()
        self._overtaken: set[str] = set()  # starts whose workflow was claimed anew before they had their answer
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    @contextmanager
    def expecting(self, run_token: str) -> Iterator[None]:
        """Announce runs under a token, from before their rows are written until they are entered.

        So that a row which this process owns, and whose run is not here yet, is not taken for one that was lost.
        """
        self._expected.add(run_token)
        try:
            yield
        finally:
            self._expected.discard(run_token)
            self._overtaken.discard(run_token)

    def is_accounted(self, workflow_id: str, run_token: str) -> bool:
        """Whether a row that this process owns has its run here, or will have in a moment."""
        # In this order: a run is entered before it ceases to be expected.
        return run_token in self._expected or workflow_id in self._runs

    def add(self, run: Run) -> None:
        """Enter a run before anything of it is executed; an older one of the same workflow is told to stop."""
        with self._lock:
            if run.start_token != run.run_token and run.start_token in self._expected:
                self._overtaken.add(run.start_token)
            stopped = run if run.run_token in self._overtaken else self._runs.get(run.workflow_id)
            if stopped is not run:
                self._runs[run.workflow_id] = run
        if stopped is not None:
            stopped.lose()

    def remove(self, run: Run) -> None:
        """A run has ended, one way or another; whoever waits for it is woken."""
        with self._lock:
            if self._runs.get(run.workflow_id) is run:
                del self._runs[run.workflow_id]
            if not self._runs:
                self._idle.notify_all()
        run.finished.set()

    def get(self, workflow_id: str) -> Run | None:
        """The run of a workflow, if it is executed here."""
        return self._runs.get(workflow_id)

    def all(self) -> list[Run]:
        """Every run."""
        with self._lock:
            return list(self._runs.values())

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Block until nothing is executed here; returns False if ``timeout_s`` passed first."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._runs, timeout_s)
