"""What may be, and what must be: snapshots of the database, and the judge who compares each with the one before.

The judge knows what was asked for (which workflow does what, what was cancelled, resumed, awaited) and what befell the
executors; from that and from the recorded operations it tells what the database and the executors may show. The
invariants it names are those of the design: nothing acknowledged is lost (I1), nothing runnable is stranded (I2), a
record never changes (I3) and its body never runs again (I4), a final status changes only by resume (I5), every wait
ends (I8), nobody stands in another's way (I9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dbos._engine.run import Run
from dbos._error import (
    DBOSAwaitedWorkflowCancelledError,
    DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded,
    DBOSDatabaseUnavailableError,
    MaxRecoveryAttemptsExceededError,
)
from dbos._serialization import Serialization
from dbos._sysdb.dialects.base import Dialect
from dbos._sysdb.rows import StatusRow, StepRow, columns
from dbos._sysdb.stores.executors import ExecutorsStore
from dbos._sysdb.stores.operation_outputs import OperationOutputsStore
from tests.simulation.application import ATTEMPTS, Kind
from tests.simulation.executors import Executor
from tests.simulation.programs import OUTCOME_ID, Outcome, Program, Record, foresee, with_children
from tests.simulation.stage import Call, Effect, Place, Stage

__all__ = ["Happening", "Judge", "Observer", "Snapshot"]

DONE = ("SUCCESS", "ERROR")
UNFINISHED = ("PENDING", "ENQUEUED")
GIVEN_UP = ("CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")

ALL_WORKFLOWS = f"SELECT {columns(StatusRow)} FROM dbos.workflow_status"
NEVER_CHANGES = ("name", "inputs", "created_at", "owner_xid", "parent_workflow_id", "workflow_timeout_ms")


@dataclass
class Snapshot:
    """The database at a moment in which nothing moves."""

    rows: dict[str, StatusRow] = field(default_factory=dict)
    stored: dict[str, dict[int, StepRow]] = field(default_factory=dict)
    records: dict[str, dict[int, Record]] = field(default_factory=dict)
    instances: set[str] = field(default_factory=set)

    def status(self, workflow_id: str) -> str | None:
        """The status of a workflow, None if there is no such workflow."""
        row = self.rows.get(workflow_id)
        return None if row is None else row.status


class Observer:
    """Reads the database over a connection of its own."""

    def __init__(self, dialect: Dialect, serialization: Serialization) -> None:
        self._reader = dialect.open_reader()
        self._serialization = serialization
        self._decoded: dict[tuple[str, int], tuple[StepRow, Record]] = {}

    def look(self) -> Snapshot:
        """What is committed now."""
        rows = {row.workflow_uuid: row for row in map(StatusRow._make, self._reader.all(ALL_WORKFLOWS))}
        stored = OperationOutputsStore.history(self._reader, list(rows)) if rows else {}
        records = {id: {number: self._decode(row) for number, row in history.items()} for id, history in stored.items()}
        instances = {row.instance_id for row in ExecutorsStore.list(self._reader)}
        return Snapshot(rows, stored, records, instances)

    def outcome(self, row: StatusRow) -> Outcome:
        """The outcome that a finished workflow's row holds."""
        format_name = row.outcome_serialization or row.serialization
        if row.status == "SUCCESS":
            return Outcome(row.status, self._serialization.load_value(row.output, format_name), None)
        return Outcome(row.status, None, repr(self._serialization.load_error(row.error or "", format_name)))

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()

    def _decode(self, row: StepRow) -> Record:
        known = self._decoded.get(row[:2])
        if known is not None and known[0] == row:
            return known[1]
        load = self._serialization
        value = None if row.output is None else load.load_value(row.output, row.serialization)
        error = None if row.error is None else repr(load.load_error(row.error, row.serialization))
        record = Record(row.function_name, value, error, row.child_workflow_id)
        self._decoded[row[:2]] = row, record
        return record


@dataclass
class Happening:
    """What was asked for since the last look, and what it may therefore change."""

    cancelled: str | None = None
    resumed: str | None = None
    must_record: Sequence[Place] = ()


class Judge:
    """Compares what is with what may be."""

    def __init__(self, stage: Stage, observer: Observer) -> None:
        self.programs: dict[str, tuple[Kind, Program]] = {}
        self.seen = Snapshot()
        self._stage = stage
        self._observer = observer
        self._effects_seen = 0

    def expect(self, workflow_id: str, kind: Kind, program: Program) -> None:
        """A workflow is about to be started, for the first time."""
        child_kind: Kind = "work_async" if kind == "work_async" else "work"
        for each_id, each in with_children(program, workflow_id):
            self.programs[each_id] = (kind if each_id == workflow_id else child_kind), each

    def look(self, executors: Sequence[Executor], happening: Happening, now_ms: int) -> None:
        """Look at everything, and compare it with the look before."""
        before, after = self.seen, self._observer.look()
        effects = self._stage.effects[self._effects_seen :]
        self._effects_seen += len(effects)
        self.seen = after
        self._judge_records(before, after, effects)
        self._judge_effects(before, effects)
        for workflow_id in before.rows.keys() | after.rows.keys():
            self._judge_workflow(workflow_id, before, after, executors, happening, now_ms)
        for place in happening.must_record:
            if place.function_id == OUTCOME_ID:
                assert after.status(place.workflow_id) in DONE, f"I1: {place} was let go, and not recorded"
            else:
                is_recorded = place.function_id in after.records[place.workflow_id]
                assert is_recorded, f"I1: {place} was let go, and not recorded"
        for executor in executors:
            for call in list(executor.calls):
                self._judge_call(call, after)
            if executor.state == "live":
                self._judge_executor(executor, after)

    # -- records and effects -----------------------------------------------------------------------------------------

    def _judge_records(self, before: Snapshot, after: Snapshot, effects: Sequence[Effect]) -> None:
        by_number = {effect.number: effect for effect in self._stage.effects}
        for workflow_id, history in before.stored.items():
            for function_id, row in history.items():
                is_same = after.stored[workflow_id].get(function_id) == row
                assert is_same, f"I3: the record {workflow_id}/{function_id} has changed"
        for workflow_id, records in after.records.items():
            known = before.records.get(workflow_id, {})
            for function_id in records.keys() - known.keys():
                record = records[function_id]
                if record.name != "step":
                    continue
                number = int(record.value if record.error is None else record.error.split("(")[1].rstrip(")"))
                effect = by_number[number]
                where = f"{workflow_id}/{function_id}"
                assert (effect.workflow_id, effect.function_id) == (workflow_id, function_id), f"I3: {where} is foreign"
                tokens = {each.rows[workflow_id].run_token for each in (before, after) if workflow_id in each.rows}
                assert effect.run_token in tokens, f"I3: {where} was recorded by a run that was not the owner"

    def _judge_effects(self, before: Snapshot, effects: Sequence[Effect]) -> None:
        for effect in effects:
            workflow_id, executor = effect.workflow_id, effect.executor
            where = f"{workflow_id}/{effect.function_id} in {executor}"
            assert effect.is_under_lease, f"I4: the step {where} began without a lease"
            if effect.is_behind:
                continue  # it had no way to know yet
            is_recorded = effect.function_id in before.records.get(workflow_id, {})
            assert not is_recorded, f"I4: the recorded step {where} ran again"
            status = before.status(workflow_id)
            assert status not in DONE, f"I4: the step {where} ran in a workflow that is {status}"

        runs = [(effect.workflow_id, effect.function_id, effect.run_token) for effect in self._stage.effects]
        assert len(set(runs)) == len(runs), "I4: a run executed a step twice"

    # -- workflows ---------------------------------------------------------------------------------------------------

    def _judge_workflow(
        self,
        workflow_id: str,
        before: Snapshot,
        after: Snapshot,
        executors: Sequence[Executor],
        happening: Happening,
        now_ms: int,
    ) -> None:
        assert workflow_id in after.rows, f"I1: workflow {workflow_id} is lost"
        row = after.rows[workflow_id]
        kind, program = self.programs[workflow_id]
        assert row.name == kind
        child_name = "work_async" if kind == "work_async" else "work"
        foreseen, used = foresee(program, workflow_id, child_name, after.records[workflow_id])
        numbers = sorted(after.records[workflow_id])
        assert numbers == list(range(1, used + 1)), f"I3: {workflow_id} recorded {numbers}, not 1 to {used}"
        if row.status in DONE:
            assert self._observer.outcome(row) == foreseen, f"I1: {workflow_id} did not end as its records say"
        if workflow_id in before.rows:
            self._judge_change(before.rows[workflow_id], row, before, executors, happening, now_ms)
        assert (row.recovery_attempts > ATTEMPTS[kind] + 1) == (row.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED") or (
            row.status == "CANCELLED"
        ), f"{workflow_id} is {row.status} after {row.recovery_attempts} attempts"
        if happening.cancelled == workflow_id and before.status(workflow_id) not in DONE:
            assert row.status == "CANCELLED", f"{workflow_id} was cancelled, and is {row.status}"
        if row.status == "CANCELLED" and workflow_id not in before.rows:
            assert _is_overdue(row, now_ms), f"{workflow_id} was cancelled by nobody"
        if row.status in UNFINISHED:
            self._judge_progress(row, after, executors, now_ms)

    def _judge_change(
        self,
        old: StatusRow,
        new: StatusRow,
        before: Snapshot,
        executors: Sequence[Executor],
        happening: Happening,
        now_ms: int,
    ) -> None:
        workflow_id = new.workflow_uuid
        is_resumed = happening.resumed == workflow_id
        for name in NEVER_CHANGES:
            assert getattr(new, name) == getattr(old, name), f"I1: {workflow_id} has another {name}"
        if old.status in DONE:
            assert new == old, f"I5: {workflow_id} has changed after its end: {old} became {new}"
        if old.status in GIVEN_UP and not is_resumed:
            was_dead_lettered = old.status != "CANCELLED" and happening.cancelled == workflow_id
            assert new == old or was_dead_lettered, f"I5: {workflow_id} has changed: {old} became {new}"
        if old.status in GIVEN_UP and is_resumed:
            assert new.status not in GIVEN_UP, f"{workflow_id} was resumed, and is {new.status}"
        if old.status not in GIVEN_UP and new.status == "CANCELLED" and happening.cancelled != workflow_id:
            assert _is_overdue(old, now_ms) or _is_overdue(new, now_ms), f"{workflow_id} was cancelled by nobody"
        is_same_deadline = old.workflow_deadline_epoch_ms == new.workflow_deadline_epoch_ms
        is_first_deadline = old.workflow_deadline_epoch_ms is None and old.status == "ENQUEUED"
        assert is_same_deadline or is_resumed or is_first_deadline, f"{workflow_id} has another deadline"
        if old.status == "PENDING" and new.run_token != old.run_token:
            owners = [executor for executor in executors if executor.instance_id == old.owner_instance]
            assert not any(owner.state == "live" for owner in owners), f"I2: {workflow_id} was taken from a live owner"

    def _judge_progress(self, row: StatusRow, after: Snapshot, executors: Sequence[Executor], now_ms: int) -> None:
        """Nothing runnable is stranded: it is held, it sleeps, it waits for a child, or there is nobody to run it."""
        workflow_id = row.workflow_uuid
        live = [executor for executor in executors if executor.state == "live"]
        if row.status == "ENQUEUED":
            assert not live, f"I2: {workflow_id} is ENQUEUED, and {live[0]} does not run it"
            return
        owner = next((executor for executor in live if executor.instance_id == row.owner_instance), None)
        if owner is None:
            is_known = row.owner_instance in after.instances
            assert is_known or not live, f"I2: {workflow_id} belongs to nobody, and {live} do not take it"
            return
        if self._is_being_begun(owner, workflow_id):
            return
        run = owner.engine.runs.get(workflow_id)
        assert run is not None, f"I2: {owner} owns {workflow_id} and does not run it"
        assert run.run_token == row.run_token, f"I2: {owner} runs {workflow_id} under a token that is not valid"
        assert not _is_overdue(row, now_ms), f"I8: {workflow_id} goes on after its deadline"
        if self._is_held(owner, workflow_id):
            return
        records = after.records[workflow_id]
        last = records.get(len(records))
        assert last is not None, f"I2: {workflow_id} stands still at its beginning"
        if last.name == "DBOS.sleep":
            assert float(last.value) * 1000 > now_ms, f"I8: {workflow_id} sleeps on after its time"
            return
        got = {record.child_id for record in records.values() if record.name == "DBOS.getResult"}
        awaited = {record.child_id for record in records.values() if record.child_id is not None} - got
        is_awaiting = any(after.status(child) in UNFINISHED or child in owner.behind for child in awaited)
        assert is_awaiting, f"I2: {workflow_id} stands still after {records}"

    # -- executors ---------------------------------------------------------------------------------------------------

    def _is_held(self, executor: Executor, workflow_id: str) -> bool:
        """Whether a workflow is held in an executor, or a child that may be run in its thread is held or goes on."""
        prefix = workflow_id + "-"
        places = [place.workflow_id for place in self._stage.places() if place.executor is executor]
        runs = [run.workflow_id for run in executor.engine.runs.all()]
        return workflow_id in places or any(each.startswith(prefix) for each in (*places, *runs))

    def _is_being_begun(self, executor: Executor, workflow_id: str) -> bool:
        """Whether a workflow's parent is held after it has created its row, and before it has heard of that."""
        return any(
            place.executor is executor
            and place.where == "after"
            and workflow_id == f"{place.workflow_id}-{place.function_id}"
            for place in self._stage.places()
        )

    def _judge_executor(self, executor: Executor, after: Snapshot) -> None:
        assert executor.instance_id in after.instances, f"I2: {executor} is alive and was declared dead"
        for run in executor.engine.runs.all():
            self._judge_run(executor, run, after)

    def _judge_run(self, executor: Executor, run: Run, after: Snapshot) -> None:
        row = after.rows[run.workflow_id]
        is_owner = row.status == "PENDING" and row.run_token == run.run_token
        if is_owner or run.workflow_id in executor.behind or self._is_held(executor, run.workflow_id):
            return
        raise AssertionError(f"I8: a run of {run.workflow_id}, which is {row.status}, goes on in {executor}")

    def _judge_call(self, call: Call, after: Snapshot) -> None:
        status = after.status(call.workflow_id)
        if call.is_over:
            call.executor.calls.remove(call)
            if call.awaits_outcome:
                self._judge_answer(call, after)
            return
        assert call.executor.state != "gone", "I8: a call outlived its executor"
        if call.executor.state != "live":
            return
        if call.workflow_id in call.executor.behind or self._is_held(call.executor, call.workflow_id):
            return
        assert call.awaits_outcome, "I8: a call does not end"
        is_awaiting = status is None or status in UNFINISHED
        assert is_awaiting, f"I8: {call.workflow_id} is {status}, and who waits for it in {call.executor} is not told"

    def _judge_answer(self, call: Call, after: Snapshot) -> None:
        if isinstance(call.error, DBOSDatabaseUnavailableError):
            assert call.executor.state == "gone"
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
            error = None if call.error is None else repr(call.error)
            assert (call.value, error) == (outcome.value, outcome.error), told


def _is_overdue(row: StatusRow, now_ms: int) -> bool:
    return row.workflow_deadline_epoch_ms is not None and row.workflow_deadline_epoch_ms <= now_ms
