"""What users do: start and enqueue workflows, await them, and exchange messages, events and streams with them."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from dbos import SetWorkflowID
from dbos._engine.flow import drive
from dbos._error import (
    DBOSConflictingWorkflowError,
    DBOSNonExistentWorkflowError,
    DBOSQueueDeduplicatedError,
    MaxRecoveryAttemptsExceededError,
)
from dbos._operations import debouncing, events, messages, workflows
from dbos._operations.handles import EngineHandle
from tests.simulation.application import EVENT, Kind
from tests.simulation.model import Happening
from tests.simulation.play import IDS, NUMBERS, Play, pick
from tests.simulation.programs import Program, Receive, Ticket, programs, tickets
from tests.simulation.snapshots import UNFINISHED
from tests.simulation.stage import Call

__all__ = ["Users"]

PATIENCE_S = 50.0  # for each value of a stream
LONGEST_S = 60.0  # that calls put a workflow off
SLACK_MS = 3000
DEBOUNCED = "work-key"  # the de-duplication id by which it is found

TIMEOUTS = st.sampled_from([None, None, 15, 45])  # seconds
KINDS: st.SearchStrategy[Kind] = st.sampled_from(["work", "work_async", "fragile_work"])


class Users(Play):
    """Rules."""

    @initialize(kind=KINDS, program=programs())
    def begin(self, kind: Kind, program: Program) -> None:
        self.launch_another()
        self.launch_another()
        self.start(0, "a", kind, program, None, False)

    @rule(
        which=NUMBERS,
        workflow_id=st.sampled_from(IDS),
        kind=KINDS,
        program=programs(),
        timeout_s=TIMEOUTS,
        in_place=st.booleans(),
    )
    def start(
        self,
        which: int,
        workflow_id: str,
        kind: Kind,
        program: Program,
        timeout_s: float | None,
        in_place: bool,
    ) -> None:
        executor = pick(self.acting(), which)
        if executor is None or self.is_haunted(workflow_id):
            return
        in_place = in_place and kind != "work_async"
        existing = self.judge.seen.rows.get(workflow_id)
        if existing is None:
            self.judge.expect(workflow_id, kind, program)
        start = executor.application.run if in_place else executor.application.start
        awaits_outcome = in_place and (existing is None or existing.name == kind)

        with self.move():
            call = self.ask(
                executor,
                lambda: start(kind, program, workflow_id, timeout_s),
                Call(executor, workflow_id, "outcome" if awaits_outcome else None),
            )

        if existing is not None and existing.name != kind:
            assert isinstance(call.error, DBOSConflictingWorkflowError)
        elif existing is not None and existing.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
            assert isinstance(call.error, MaxRecoveryAttemptsExceededError)
        elif not in_place:
            assert isinstance(call.value, EngineHandle)

    @rule(
        which=NUMBERS,
        workflow_id=st.sampled_from(IDS),
        kind=KINDS,
        program=programs(),
        timeout_s=TIMEOUTS,
        ticket=tickets(),
    )
    def enqueue(
        self, which: int, workflow_id: str, kind: Kind, program: Program, timeout_s: float | None, ticket: Ticket
    ) -> None:
        executor = pick(self.acting(), which)
        if executor is None or self.is_haunted(workflow_id):
            return
        existing = self.judge.seen.rows.get(workflow_id)
        holder = self.judge.holder(ticket)
        if existing is None and holder is None:
            self.judge.expect(workflow_id, kind, program)

        with self.move():
            enqueue = executor.application.enqueue
            call = self.ask(executor, lambda: enqueue(kind, program, workflow_id, timeout_s, ticket))

        if existing is not None and existing.name != kind:
            assert isinstance(call.error, DBOSConflictingWorkflowError)
        elif existing is not None and existing.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
            assert isinstance(call.error, MaxRecoveryAttemptsExceededError)
        elif existing is None and holder is not None and not ticket.is_shared:
            assert isinstance(call.error, DBOSQueueDeduplicatedError)
        else:
            is_new = existing is not None or holder is None
            assert call.value.workflow_id == (workflow_id if is_new else holder), call.error

    @rule(which=NUMBERS, workflow_id=st.sampled_from(IDS), program=programs(), period_s=st.sampled_from([5, 50]))
    def debounce(self, which: int, workflow_id: str, program: Program, period_s: int) -> None:
        """Give the workflow that waits for calls this program, and put it off; or begin one."""
        executor = pick(self.acting(), which)
        if executor is None or self.is_haunted(workflow_id):
            return
        before, now_ms = self.judge.seen, self.time.now_ms()
        waiting = next((row for row in before.rows.values() if row.deduplication_id == DEBOUNCED), None)
        taken = before.rows.get(workflow_id)
        joins = taken is None or taken is waiting
        group_id = waiting.workflow_uuid if waiting is not None else workflow_id
        if joins:
            self.judge.expect(group_id, "work", program)

        def call_workflow() -> str:
            debounced = debouncing.Debouncing(workflow_name="work", queue_name="free", timeout_s=LONGEST_S)
            with SetWorkflowID(workflow_id):
                flow = debouncing.debounce(executor.engine, debounced, "key", period_s, (program,), {})
                return drive(executor.engine, flow)

        with self.move(Happening(debounced=group_id if joins else None)):
            call = self.ask(executor, call_workflow)

        if joins:
            assert call.value == group_id, call.error
            row = self.judge.seen.rows[group_id]
            last_ms = (now_ms if waiting is None else waiting.created_at) + int(LONGEST_S * 1000)
            # Delays are counted in real time from the call to its commit, which takes a little.
            early_ms = min(now_ms + period_s * 1000, last_ms) - (row.delay_until_epoch_ms or 0)
            assert 0 <= early_ms < SLACK_MS, f"{group_id} was put off until {row.delay_until_epoch_ms}"
        elif taken is not None and taken.name != "work":
            assert isinstance(call.error, DBOSConflictingWorkflowError)
        elif taken is not None and taken.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
            assert isinstance(call.error, MaxRecoveryAttemptsExceededError)
        else:
            assert call.value == workflow_id, call.error

    @rule(which=NUMBERS, whose=NUMBERS)
    def await_result(self, which: int, whose: int) -> None:
        """Of a workflow that does not exist, too: it may be started some day."""
        executor, workflow_id = pick(self.acting(), which), self.somebody(UNFINISHED, whose)
        if executor is None:
            return
        with self.move():
            self.ask(
                executor,
                lambda: drive(executor.engine, workflows.get_result(executor.engine, workflow_id)),
                Call(executor, workflow_id, "outcome"),
            )

    @rule(
        which=NUMBERS,
        whose=NUMBERS,
        topic=st.sampled_from([None, None, "t"]),
        key=st.sampled_from([None, None, "k"]),
        to_forks=st.booleans(),
    )
    def send(self, which: int, whose: int, topic: str | None, key: str | None, to_forks: bool) -> None:
        """To a workflow that waits for a message, as a rule."""
        before = self.judge.seen
        at = {each: foreseen.next_place.operation for each, foreseen in sorted(before.foreseen.items())}
        waiting = [each for each, operation in at.items() if isinstance(operation, Receive)]
        executor, workflow_id = pick(self.acting(), which), self.somebody(UNFINISHED, whose)
        if executor is None:
            return
        if waiting and whose % 4:
            workflow_id = waiting[whose % len(waiting)]
        value = f"outside/{next(self.stage.numbers)}"
        is_known = any(each.destination == workflow_id and each.key == key for each in before.traffic.letters if key)

        with self.move():
            flow = messages.send(
                executor.engine, workflow_id, value, topic, idempotency_key=key, send_to_forks=to_forks
            )
            call = self.ask(executor, lambda: drive(executor.engine, flow))

        if workflow_id not in before.rows:
            assert isinstance(call.error, DBOSNonExistentWorkflowError)
        else:
            assert call.error is None
        sent_to = [each.destination for each in self.judge.seen.traffic.letters if each.value == value]
        assert sent_to.count(workflow_id) == (workflow_id in before.rows and not is_known), f"sent to {sent_to}"
        assert to_forks or set(sent_to) <= {workflow_id}

    @rule(which=NUMBERS, whose=NUMBERS, timeout_s=st.sampled_from([0, 15, 50]))
    def get_event(self, which: int, whose: int, timeout_s: int) -> None:
        """Of a workflow that does not exist, too."""
        executor, workflow_id = pick(self.acting(), which), self.somebody(UNFINISHED, whose)
        if executor is None:
            return
        with self.move():
            until_ms = executor.clock.now_ms() + timeout_s * 1000
            self.ask(
                executor,
                lambda: drive(executor.engine, events.get_event(executor.engine, workflow_id, EVENT, timeout_s)),
                Call(executor, workflow_id, "event", until_ms),
            )

    @rule(which=NUMBERS, whose=NUMBERS)
    def read_stream(self, which: int, whose: int) -> None:
        executor, workflow_id = pick(self.acting(), which), self.somebody(UNFINISHED, whose)
        if executor is None:
            return
        call = Call(executor, workflow_id, "stream")
        with self.move():
            self.ask(
                executor,
                lambda: drive(executor.engine, executor.application.read_stream(workflow_id, PATIENCE_S, call.values)),
                call,
            )
