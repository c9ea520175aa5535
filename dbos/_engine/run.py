"""One execution of a workflow in this process, and the table of all of them."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

from dbos._context import Context
from dbos._engine.flow import Outcome
from dbos._error import DBOSUnexpectedStepError, DBOSWorkflowCancelledError, DBOSWorkflowConflictIDError
from dbos._registry import WorkflowFunction
from dbos._serialization import WorkflowSerializationFormat
from dbos._sysdb.rows import StepRow
from dbos._sysdb.wakeups import Key, Signal

__all__ = ["LatestRun", "Run", "Runs"]


class Run:
    """The live state of one execution.

    ``history`` holds what earlier executions recorded, or None for a run that this process has just created: then
    nothing needs to be looked up. The counter of function ids is shared by all tasks and contexts of the run.
    ``operations`` are those that its code is in the middle of; a set, to which threads can add side by side. ``loop``
    is the event loop that the run is executed on, if it was begun in the background of one. ``outcome`` is what the run
    ended with, for whoever waits in this process; it stays None if the run parked. ``queue_name`` and ``partition_key``
    say where it was claimed from, and so whose limits it counts against.
    """

    __slots__ = (
        "_interrupts",
        "_is_cancelled",
        "_is_lost",
        "_numbering",
        "_sources",
        "args",
        "context",
        "deadline_ms",
        "finished",
        "format",
        "function",
        "has_begun",
        "history",
        "kwargs",
        "last_function_id",
        "loop",
        "operations",
        "outcome",
        "partition_key",
        "queue_name",
        "run_token",
        "schedule_name",
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
        queue_name: str | None = None,
        partition_key: str | None = None,
        schedule_name: str | None = None,
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
        self.queue_name = queue_name
        self.partition_key = partition_key
        self.schedule_name = schedule_name
        self.has_begun = False
        self.last_function_id = 0
        self.operations: set[object] = set()
        self._numbering = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.finished = Signal()
        self.outcome: Outcome | None = None
        self._is_cancelled = False
        self._is_lost = False
        self._interrupts: set[Signal] = set()
        self._sources: set[Key] = set()
        context.run = self

    # -- function ids and replay --------------------------------------------------------------------------------------

    def next_function_id(self, count: int = 1) -> int:
        """Take the next id; called before the first await of an operation, so that the source order decides.

        Of several that belong together, the first is returned.
        """
        with self._numbering:  # threads of one workflow (asyncio.to_thread) take ids side by side
            first = self.last_function_id + 1
            self.last_function_id += count
            return first

    def take_marker(self, function_name: str, *, may_be_new: bool) -> int | None:
        """Take the next id if an earlier execution recorded ``function_name`` under it; otherwise leave it untaken.

        Where it ``may_be_new``, the id is also taken if no earlier execution came this far.
        """
        with self._numbering:
            history, function_id = self.history or {}, self.last_function_id + 1
            row = history.get(function_id)
            if row is None:
                # What comes later may be recorded all the same: this operation failed, or was waiting when it ended.
                is_taken = may_be_new and function_id > max(history, default=0)
            else:
                is_taken = row.function_name == function_name
            self.last_function_id += is_taken
        return function_id if is_taken else None

    def unreached(self) -> StepRow | None:
        """The first operation that an earlier execution recorded and this one has not come to, if there is one."""
        beyond = [function_id for function_id in self.history or () if function_id > self.last_function_id]
        return self.history[min(beyond)] if self.history and beyond else None

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

    @contextmanager
    def alone(self, key: Key, conflict: Callable[[], BaseException]) -> Iterator[None]:
        """Refuse a second operation of the run that would take from the same source at the same time.

        Raises:
            BaseException: what ``conflict`` makes.
        """
        with self._numbering:
            if key in self._sources:
                raise conflict()
            self._sources.add(key)
        try:
            yield
        finally:
            self._sources.discard(key)

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

    @property
    def is_waiting(self) -> bool:
        """Whether something in it waits durably, be it for another workflow or for a time."""
        return bool(self._interrupts)

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


class LatestRun:
    """The latest run of a workflow in this process that somebody keeps a handle for."""

    __slots__ = ("__weakref__", "run")

    def __init__(self, run: Run | None = None) -> None:
        self.run = run


class Runs:
    """The executions in this process, by workflow id; a newer one of the same workflow takes the place of an older."""

    def __init__(self) -> None:
        self.on_removed: Callable[[Run], None] = lambda run: None
        self._runs: dict[str, Run] = {}
        self._expected: dict[str, set[str]] = {}  # by token, the workflows cancelled while nothing of it is here yet
        self._overtaken: set[str] = set()  # starts whose workflow was claimed anew before they had their answer
        self._latest: WeakValueDictionary[str, LatestRun] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._idle: list[Signal] = []  # to set when nothing is executed any more

    @contextmanager
    def expecting(self, run_token: str) -> Iterator[set[str]]:
        """Announce runs under a token, from before their rows are written until they are entered.

        So that a row which this process owns, and whose run is not here yet, is not taken for one that was lost. The
        set fills with what is cancelled meanwhile: to be looked at when a run has been entered.
        """
        cancelled: set[str] = set()
        self._expected[run_token] = cancelled
        try:
            yield cancelled
        finally:
            del self._expected[run_token]
            self._overtaken.discard(run_token)

    def is_accounted(self, workflow_id: str, run_token: str) -> bool:
        """Whether a row that this process owns has its run here, or will have in a moment."""
        # In this order: a run is entered before it ceases to be expected.
        return run_token in self._expected or workflow_id in self._runs

    def latest(self, workflow_id: str) -> LatestRun:
        """What remembers the runs of a workflow, now and from now on, for as long as somebody keeps it."""
        with self._lock:
            latest = self._latest.get(workflow_id)
            if latest is None:
                latest = self._latest[workflow_id] = LatestRun()
            return latest

    def add(self, run: Run, *, is_shown: bool = False) -> None:
        """Enter a run before anything of it is executed; an older one of the same workflow is told to stop.

        ``is_shown`` to whoever asked for the workflow's latest run.
        """
        with self._lock:
            if run.start_token != run.run_token and run.start_token in self._expected:
                self._overtaken.add(run.start_token)
            stopped = run if run.run_token in self._overtaken else self._runs.get(run.workflow_id)
            if stopped is not run:
                self._runs[run.workflow_id] = run
                latest = self._latest.get(run.workflow_id) if is_shown else None
                if latest is not None:
                    latest.run = run
        if stopped is not None:
            stopped.lose()

    def remove(self, run: Run) -> None:
        """A run has ended, one way or another; whoever waits for it is woken."""
        with self._lock:
            if self._runs.get(run.workflow_id) is run:
                del self._runs[run.workflow_id]
            idle: list[Signal] = []
            if not self._runs:
                idle, self._idle = self._idle, idle
        for signal in idle:
            signal.set()
        run.finished.set()
        self.on_removed(run)

    def get(self, workflow_id: str) -> Run | None:
        """The run of a workflow, if it is executed here."""
        return self._runs.get(workflow_id)

    def get_cancelled(self, workflow_id: str) -> Run | None:
        """The run of a workflow that was cancelled, if it is executed here; one that is expected will learn of it."""
        # In this order, and the other way round where a run is entered: one of the two finds what the other has left.
        for cancelled in list(self._expected.values()):
            cancelled.add(workflow_id)
        return self._runs.get(workflow_id)

    def all(self) -> list[Run]:
        """Every run."""
        with self._lock:
            return list(self._runs.values())

    def of_queue(self, queue_name: str) -> dict[str | None, int]:
        """How many runs were claimed from a queue, by partition key; a run counts until its code has ended."""
        with self._lock:
            return dict(Counter(run.partition_key for run in self._runs.values() if run.queue_name == queue_name))

    def count_awake_coroutines(self) -> int:
        """How many runs are coroutines that do not wait durably."""
        with self._lock:
            return sum(run.function.is_async and not run.is_waiting for run in self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)

    def when_idle(self) -> Signal:
        """What is set as soon as nothing is executed here."""
        signal = Signal()
        with self._lock:
            if self._runs:
                self._idle.append(signal)
                return signal
        signal.set()
        return signal
