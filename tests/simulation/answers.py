"""Those who wait for an answer in a thread of their own: for an outcome, an event, or the values of a stream."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from dbos._error import (
    DBOSAwaitedWorkflowCancelledError,
    DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded,
    DBOSDatabaseUnavailableError,
    DBOSNonExistentWorkflowError,
    MaxRecoveryAttemptsExceededError,
)
from tests.simulation.programs import TIMED_OUT
from tests.simulation.snapshots import DONE, UNFINISHED, Observer, Snapshot
from tests.simulation.stage import Call, Stage
from tests.simulation.traffic import TrafficJudge

__all__ = ["AnswersJudge"]


class AnswersJudge:
    """Compares what callers are told with what is."""

    def __init__(self, stage: Stage, observer: Observer, traffic: TrafficJudge) -> None:
        self._stage, self._observer, self._traffic = stage, observer, traffic

    def look(self, call: Call, before: Snapshot, after: Snapshot, deleted: AbstractSet[str]) -> None:
        """Look at a call that was not over; ``deleted`` are the workflows that were at some time."""
        status = after.status(call.workflow_id)
        if call.is_over:
            call.executor.calls.remove(call)
            self._judge_end(call, before, after, deleted)
            return
        assert call.executor.state != "gone", "I8: a call outlived its executor"
        if call.executor.state != "live":
            return
        if call.workflow_id in call.executor.behind or self._stage.is_held(call.executor, call.workflow_id):
            return
        assert call.asks is not None, "I8: a call does not end"
        if call.asks == "outcome":
            is_awaiting = status is None or status in UNFINISHED
        elif call.asks == "event":
            is_awaiting = call.workflow_id not in after.traffic.events
        else:
            is_there = len(call.values) < len(after.traffic.streams.get(call.workflow_id, ()))
            is_awaiting = not is_there and status in UNFINISHED
        assert is_awaiting, f"I8: {call.workflow_id} is {status}, and who waits for it in {call.executor} is not told"
        is_late = call.until_ms is not None and call.executor.clock.now_ms() >= call.until_ms
        assert not is_late, f"I8: a call waits for {call.workflow_id} beyond its time"

    def _judge_end(self, call: Call, before: Snapshot, after: Snapshot, deleted: AbstractSet[str]) -> None:
        if isinstance(call.error, DBOSDatabaseUnavailableError):
            assert call.executor.state == "gone"
        elif call.asks == "outcome":
            self._judge_answer(call, after, deleted)
        elif call.asks == "event":
            assert call.error is None
            self._traffic.judge_event(call.workflow_id, call.value, before.state, after.state, str(call.executor))
        elif call.asks == "stream" and call.error is None:
            has_timed_out = call.values[-1:] == [TIMED_OUT]
            values = call.values[: len(call.values) - has_timed_out]
            where = str(call.executor)
            self._traffic.judge_stream_read(call.workflow_id, values, has_timed_out, before.state, after.state, where)
        elif call.asks == "stream":
            assert isinstance(call.error, DBOSNonExistentWorkflowError), call.error
            assert call.workflow_id not in after.rows or call.workflow_id not in before.rows

    def _judge_answer(self, call: Call, after: Snapshot, deleted: AbstractSet[str]) -> None:
        if isinstance(call.error, DBOSNonExistentWorkflowError) and call.workflow_id in deleted:
            return
        answer = call.value, None if call.error is None else repr(call.error)
        if answer in [(outcome.value, outcome.error) for outcome in call.executor.former.get(call.workflow_id, ())]:
            return
        row = after.rows[call.workflow_id]
        told = f"I1: who waited for {call.workflow_id} was told {call.error or call.value!r}, and it is {row.status}"
        if row.status == "CANCELLED":
            assert isinstance(call.error, DBOSAwaitedWorkflowCancelledError), told
        elif row.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
            expected = (DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded, MaxRecoveryAttemptsExceededError)
            assert isinstance(call.error, expected), told
        else:
            assert row.status in DONE, told
            outcome = self._observer.outcome(row)
            assert answer == (outcome.value, outcome.error), told
