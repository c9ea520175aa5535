"""What operators do to workflows: cancel, resume, fork, retry and delete them, and clean up after them."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from dbos import SetWorkflowID
from dbos._engine.flow import Flow, drive
from dbos._error import DBOSException, DBOSNonExistentWorkflowError, DBOSWorkflowIDInUseError
from dbos._operations import attributes, deletion, forking, interventions, retention, retrying
from dbos._serialization.attributes import dump_attributes
from tests.simulation.executors import Executor
from tests.simulation.model import Happening
from tests.simulation.play import FORKS, NUMBERS, Play, pick
from tests.simulation.snapshots import DONE, GIVEN_UP, UNFINISHED
from tests.simulation.stage import Call

__all__ = ["Operators"]

MAX_AGE_S = 30.0


class Operators(Play):
    """Rules."""

    @rule(which=NUMBERS, whose=NUMBERS, with_children=st.booleans())
    def cancel(self, which: int, whose: int, with_children: bool = False) -> None:
        executor, workflow_id = pick(self.acting(), which), self.somebody(UNFINISHED, whose)
        if executor is None:
            return
        family = self.judge.seen.family(workflow_id) if with_children else {workflow_id}
        for each in family:
            self.leave_behind(executor, each)
        with self.move(Happening(cancelled=workflow_id, cancelled_with=family)):
            flow = interventions.cancel_workflow(executor.engine, workflow_id, cancel_children=with_children)
            call = self.ask(executor, lambda: drive(executor.engine, flow))
        assert call.error is None

    @rule(which=NUMBERS, whose=NUMBERS)
    def resume(self, which: int, whose: int) -> None:
        executor, workflow_id = pick(self.acting(), which), self.somebody(GIVEN_UP, whose)
        if executor is None:
            return
        self.leave_behind(executor, workflow_id)
        status = self.judge.seen.status(workflow_id)
        with self.move(Happening(resumed=workflow_id if status not in DONE else None)):
            call = self.ask(
                executor,
                lambda: drive(executor.engine, interventions.resume_workflows(executor.engine, [workflow_id])),
            )
        assert isinstance(call.error, DBOSNonExistentWorkflowError if status is None else type(None))

    # -- forks ---------------------------------------------------------------------------------------------------------

    @rule(which=NUMBERS, whose=NUMBERS, start_step=NUMBERS, fork_id=st.sampled_from(FORKS))
    def fork(self, which: int, whose: int, start_step: int, fork_id: str) -> None:
        """From a step that was recorded, or was not yet."""
        executor, source = pick(self.acting(), which), self.somebody(DONE, whose)
        if executor is None or self.is_haunted(fork_id):
            return
        start_step = 1 + start_step % (2 + max(self.judge.seen.records.get(source, {}), default=0))
        if source in self.judge.seen.rows and fork_id not in self.judge.seen.rows:
            self.judge.expect_fork(fork_id, source, start_step)
        with self.move():
            call = self.assigning(executor, fork_id, forking.fork_workflow(executor.engine, source, start_step))
        self.check_fork(call, source, fork_id)

    @rule(which=NUMBERS, whose=NUMBERS, fork_id=st.sampled_from(FORKS))
    def retry(self, which: int, whose: int, fork_id: str) -> None:
        """From the step that failed last, with a child that failed begun anew; or after all, if none did."""
        executor, source = pick(self.acting(), which), self.somebody(("ERROR", *GIVEN_UP), whose)
        if executor is None or self.is_haunted(fork_id):
            return
        seen, may_be_retried = self.judge.seen, self.judge.seen.status(source) in ("ERROR", *GIVEN_UP)
        if may_be_retried and fork_id not in seen.rows:
            records = seen.records[source]
            failed = max((number for number, record in records.items() if record.error is not None), default=None)
            if failed is None:
                self.judge.expect_fork(fork_id, source, max(records, default=0) + 1)
            else:
                self.judge.expect_fork(fork_id, source, failed, records[failed].child_id)
        with self.move():
            call = self.assigning(executor, fork_id, retrying.retry_workflow(executor.engine, source))
        if source in seen.rows and not may_be_retried:
            assert isinstance(call.error, DBOSException)
        else:
            self.check_fork(call, source, fork_id)

    def assigning(self, executor: Executor, workflow_id: str, flow: Flow[str]) -> Call:
        def run() -> str:
            with SetWorkflowID(workflow_id):
                return drive(executor.engine, flow)

        return self.ask(executor, run)

    def check_fork(self, call: Call, source: str, fork_id: str) -> None:
        if source not in self.judge.seen.rows:
            assert isinstance(call.error, DBOSNonExistentWorkflowError)
        elif self.judge.seen.rows[fork_id].forked_from != source:
            assert isinstance(call.error, DBOSWorkflowIDInUseError)
        else:
            assert call.value == fork_id, call.error

    # -- what is kept --------------------------------------------------------------------------------------------------

    @rule(which=NUMBERS, whose=NUMBERS, with_children=st.sampled_from([False, True, True]))
    def delete(self, which: int, whose: int, with_children: bool) -> None:
        executor, workflow_id = pick(self.acting(), which), self.somebody(DONE, whose)
        if executor is None:
            return
        family = self.judge.seen.family(workflow_id) if with_children else {workflow_id}
        for each in family:
            self.leave_behind(executor, each)
        with self.move(Happening(deleted=family)):
            flow = deletion.delete_workflow(executor.engine, workflow_id, delete_children=with_children)
            call = self.ask(executor, lambda: drive(executor.engine, flow))
        assert call.error is None

    @rule(which=NUMBERS, whose=NUMBERS, value=st.none() | st.integers(0, 2))
    def set_attributes(self, which: int, whose: int, value: int | None) -> None:
        executor, workflow_id = pick(self.acting(), which), self.somebody(UNFINISHED, whose)
        if executor is None:
            return
        given = None if value is None else {"value": value}
        is_there = workflow_id in self.judge.seen.rows
        if is_there:
            self.judge.attributes[workflow_id] = dump_attributes(given)
        with self.move():
            flow = attributes.update_workflow_attributes(executor.engine, workflow_id, given)
            call = self.ask(executor, lambda: drive(executor.engine, flow))
        assert isinstance(call.error, type(None) if is_there else DBOSNonExistentWorkflowError)

    @rule(which=NUMBERS)
    def run_retention(self, which: int) -> None:
        executor = pick(self.acting(), which)
        if executor is None:
            return
        with self.move(Happening(is_retained=True)) as happening:
            flow = retention.run_retention(executor.engine, {"max_age": MAX_AGE_S})
            call = self.ask(executor, lambda: drive(executor.engine, flow))
            happening.deleted = self.judge.seen.rows.keys() - self.observer.look().rows.keys()
            before_ms = self.time.now_ms() - int(MAX_AGE_S * 1000)
            for workflow_id in happening.deleted:
                self.judge.check_superfluous(workflow_id, before_ms)
                self.leave_behind(executor, workflow_id)
        assert call.error is None
        assert call.value["is_complete"]
