"""Operations of the library that have an effect of their own in the database: a message, an event, a value of a stream.

In a workflow's body the effect and its record are one transaction, so that it comes about exactly once. In a step the
effect is the step's, which may be repeated; in both cases only a run that still owns its workflow has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dbos._context import current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Pause, Read, conclude
from dbos._engine.records import replayed
from dbos._engine.run import Run
from dbos._engine.timing import SLEEP, deadline_of, deadline_step
from dbos._error import DBOSDatabaseUnavailableError, DBOSException, DBOSWorkflowConflictIDError
from dbos._operations.recording import refuse_in_transaction
from dbos._serialization import WorkflowSerializationFormat
from dbos._sysdb.operations import Call, Operation, RecordStep, StepRecorded
from dbos._sysdb.stores.runs import Owner
from dbos._sysdb.wakeups import Key, Signal

__all__ = ["Effect", "commit_fenced", "wait_recorded"]

_DEFAULT = WorkflowSerializationFormat.DEFAULT


class Effect:
    """One call of such an operation: who makes it, and what is to be recorded with it.

    ``function_id`` is that of the operation in a workflow's body, and that of the step in a step. ``is_done`` says that
    an earlier execution has recorded it, and there is nothing left to do.
    """

    __slots__ = ("_engine", "_run", "function_id", "is_done", "owner", "step")

    def __init__(self, engine: Engine, name: str) -> None:
        refuse_in_transaction(name)
        context = current_context()
        self._engine = engine
        self._run = run = context.run if context is not None else None
        self.function_id = 0
        self.is_done = False
        self.owner: Owner | None = None
        self.step: RecordStep | None = None
        if run is None or context is None:
            return
        if context.step_id is not None:
            self.function_id = context.step_id
            self.owner = Owner(run.workflow_id, run.run_token)
            return
        self.function_id = run.next_function_id()
        run.check_interrupted()
        self.is_done = run.recorded(self.function_id, name) is not None
        now_ms = engine.clock.now_ms()
        self.step = RecordStep(
            run.workflow_id, self.function_id, name, None, None, None, now_ms, now_ms, None, run.run_token
        )

    def require_run(self, operation: str) -> Run:
        """The run that makes the call.

        Raises:
            DBOSException: there is none.
        """
        if self._run is None:
            raise DBOSException(f"{operation}() must be called from within a workflow or step")
        return self._run

    def format(self, given: WorkflowSerializationFormat | None) -> WorkflowSerializationFormat | None:
        """The format of what is written: the one that is asked for, else the workflow's."""
        return self._run.format if given in (None, _DEFAULT) and self._run is not None else given

    def commit(self, call: Call) -> Flow[Any]:
        """Have the effect; returns what the verb does."""
        return (yield from commit_fenced(self._run, call))

    def settle(self, recorded: StepRecorded) -> None:
        """Make what the database says about the run known to it.

        Raises:
            DBOSWorkflowConflictIDError: another execution owns the workflow now.
            DBOSWorkflowCancelledError: the workflow was cancelled.
        """
        if self._run is not None:
            settle(self._run, recorded)


def commit_fenced(run: Run | None, *operations: Operation) -> Flow[Any]:
    """Commit operations of a run together; returns their results, or that of a single one."""
    try:
        results = yield Commit(operations)
    except DBOSDatabaseUnavailableError as error:
        if run is None:
            raise
        # This process is closing its database: the run stops here, and whoever recovers it repeats the operation.
        run.lose()
        raise DBOSWorkflowConflictIDError(run.workflow_id) from error
    return results[0] if len(operations) == 1 else results


def wait_recorded(
    engine: Engine,
    name: str,
    run: Run,
    key: Key,
    timeout_s: float,
    look: Read,
    take: Callable[[RecordStep, bool], Call],
) -> Flow[Any]:
    """Wait for something in a workflow's body; its value is recorded, and so is when the wait ends.

    ``look`` tells whether it is there. ``take`` makes the operation that records it: given the record of having got
    None, and whether it is to be made because the time is over. It is answered with None if nothing is recorded,
    otherwise with what counts from now on, in ``existing``.
    """
    function_id = run.next_function_id(2)  # the second is that of the time to wait until
    run.check_interrupted()
    recorded = run.recorded(function_id, name)
    if recorded is not None:
        return conclude(replayed(engine, recorded))
    text, serialization = engine.serialization.dump_value(None)
    started_ms = engine.clock.now_ms()

    def attempt(*, is_last: bool) -> Call:
        now_ms = engine.clock.now_ms()
        nothing = RecordStep(
            run.workflow_id, function_id, name, text, None, None, started_ms, now_ms, serialization, run.run_token
        )
        return take(nothing, is_last)

    deadline_s, taken = yield from _begin_wait(engine, run, function_id + 1, timeout_s, attempt(is_last=timeout_s <= 0))
    while taken is None:
        signal = Signal()
        with engine.db.wakeups.waiting(key, signal), run.interruptible(signal):
            remaining_s = deadline_s - engine.db.now_ms() / 1000
            if remaining_s > 0 and not (yield look):
                run.check_interrupted()
                yield Pause(signal, min(remaining_s, engine.clock.longest_pause_s))
                continue
        run.check_interrupted()
        taken = yield from commit_fenced(run, attempt(is_last=remaining_s <= 0))
    settle(run, taken)
    assert taken.existing is not None
    return conclude(replayed(engine, taken.existing))


def _begin_wait(
    engine: Engine, run: Run, function_id: int, timeout_s: float, first: Call
) -> Flow[tuple[float, StepRecorded | None]]:
    """The first attempt; the end of the wait is recorded in the same transaction, unless an earlier execution did."""
    recorded = run.recorded(function_id, SLEEP)
    if recorded is not None:
        return deadline_of(recorded), (yield from commit_fenced(run, first))
    deadline_s, step = deadline_step(engine, run, function_id, timeout_s)
    waits, taken = yield from commit_fenced(run, step, first)
    settle(run, waits)
    return deadline_s if waits.existing is None else deadline_of(waits.existing), taken


def settle(run: Run, recorded: StepRecorded) -> None:
    """Stop a run whose operation was refused, because it was cancelled or somebody else owns its workflow."""
    if recorded.existing is None and recorded.status != "PENDING":
        if recorded.status == "CANCELLED":
            run.cancel()
        else:
            run.lose()
        run.check_interrupted()
