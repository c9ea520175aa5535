"""What may be, and what must be: the judge who compares each snapshot of the database with the one before.

The judge knows what was asked for (which workflow does what, what was cancelled, resumed, awaited) and what befell the
executors; from that and from the recorded operations it tells what the database and the executors may show. The
invariants it names are those of the design: nothing acknowledged is lost (I1), nothing runnable is stranded (I2), a
record never changes (I3) and its body never runs again (I4), a final status changes only by resume (I5), limits and
order of queues hold (I7, which executors watch with every claim as well), every wait ends (I8), nobody stands in
another's way (I9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from dbos._engine.run import Run
from dbos._sysdb.rows import StatusRow
from tests.simulation.answers import AnswersJudge
from tests.simulation.application import ATTEMPTS, Kind
from tests.simulation.executors import Executor, place_of
from tests.simulation.programs import (
    OUTCOME_ID,
    Foreseen,
    GetEvent,
    Program,
    ReadStream,
    Receive,
    Send,
    Sleep,
    Ticket,
    foresee,
)
from tests.simulation.snapshots import DONE, GIVEN_UP, UNFINISHED, Observer, Snapshot
from tests.simulation.stage import Effect, Place, Stage
from tests.simulation.traffic import TrafficJudge

__all__ = ["Happening", "Judge"]

NEVER_CHANGES = (
    "inputs",  # these two but for what is debounced
    "owner_xid",
    "name",
    "created_at",
    "parent_workflow_id",
    "workflow_timeout_ms",
    "queue_partition_key",
)


@dataclass
class Happening:
    """What was asked for since the last look, and what it may therefore change."""

    cancelled: str | None = None
    cancelled_with: AbstractSet[str] = frozenset()  # itself, and maybe what it has started
    resumed: str | None = None
    deleted: AbstractSet[str] = frozenset()
    debounced: str | None = None
    is_retained: bool = False
    must_record: Sequence[Place] = ()


class Judge:
    """Compares what is with what may be."""

    def __init__(self, stage: Stage, observer: Observer) -> None:
        self.programs: dict[str, tuple[Kind, Program]] = {}
        self.origins: dict[str, Mapping[int, str]] = {}  # of forks, which workflows they have their first records from
        self.attributes: dict[str, str | None] = {}
        self.deleted: set[str] = set()  # what was deleted at some time
        self.seen = Snapshot()
        self.traffic = TrafficJudge(stage.done)
        self._stage = stage
        self._observer = observer
        self._answers = AnswersJudge(stage, observer, self.traffic)
        self._effects_seen = 0

    def expect(self, workflow_id: str, kind: Kind, program: Program) -> None:
        """A workflow is about to be started, for the first time."""
        self.programs[workflow_id] = kind, program

    def expect_fork(self, workflow_id: str, source: str, start_step: int, restarted: str | None = None) -> None:
        """A workflow is about to be forked, with everything below a step but what is about a child."""
        self.programs[workflow_id] = self.programs[source]
        self.attributes[workflow_id] = self.attributes.get(source)
        origins = self.origins.get(source, {})
        self.origins[workflow_id] = {
            function_id: origins.get(function_id, source)
            for function_id, record in self.seen.records[source].items()
            if function_id < start_step and (restarted is None or record.child_id != restarted)
        }

    def look(self, executors: Sequence[Executor], happening: Happening, now_ms: int) -> None:
        """Look at everything, and compare it with the look before."""
        before, after = self.seen, self._observer.look()
        effects = self._stage.effects[self._effects_seen :]
        self._effects_seen += len(effects)
        for workflow_id in sorted(happening.deleted & before.rows.keys()):
            self._note_end(before.rows[workflow_id], executors)
            self._forget(workflow_id, before, after)
        self._foresee(after)
        self.seen = after
        assert self._stage.offences == []
        self._judge_queues(after)
        self._judge_records(before, after, effects)
        self._judge_effects(before, effects)
        for workflow_id in after.rows.keys() - before.rows.keys():
            if after.rows[workflow_id].forked_from is not None:
                self._judge_fork(workflow_id, before, after)
        may_forget = happening.is_retained
        self.traffic.look(before.state, after.state, self.origins, effects, now_ms, may_forget=may_forget)
        for workflow_id in before.rows.keys() | after.rows.keys():
            self._judge_workflow(workflow_id, before, after, executors, happening, now_ms)
        for place in happening.must_record:
            self._judge_place(place, after)
        for executor in executors:
            for call in list(executor.calls):
                self._answers.look(call, before, after, self.deleted)
            if executor.state == "live":
                self._judge_executor(executor, after)

    def _judge_place(self, place: Place, after: Snapshot) -> None:
        if place.function_id == OUTCOME_ID:
            assert after.status(place.workflow_id) in DONE, f"I1: {place} was let go, and not recorded"
            return
        foreseen = after.foreseen[place.workflow_id]
        if foreseen.next_id == place.function_id and isinstance(foreseen.next_place.operation, Send):
            assert after.status(place.workflow_id) == "ERROR", f"I1: {place} was let go, and not recorded"
            return  # there was nobody to send to, which is judged with the outcome
        numbers = {place.function_id, place.function_id + 1} if place.is_wait else {place.function_id}
        assert numbers & after.records[place.workflow_id].keys(), f"I1: {place} was let go, and not recorded"

    # -- what is known of workflows ----------------------------------------------------------------------------------

    def _note_end(self, row: StatusRow, executors: Sequence[Executor]) -> None:
        """A workflow is to be deleted; who waits where it has still to be heard that it ended may be told how."""
        for executor in executors:
            if row.status in DONE and self._stage.is_held(executor, row.workflow_uuid):
                executor.former.setdefault(row.workflow_uuid, []).append(self._observer.outcome(row))

    def _forget(self, workflow_id: str, before: Snapshot, after: Snapshot) -> None:
        """A workflow is to be deleted; from now on its id is nobody's."""
        assert workflow_id not in after.rows, f"{workflow_id} was deleted, and is {after.status(workflow_id)}"
        self.deleted.add(workflow_id)
        self.traffic.forget(workflow_id, before.traffic)
        del self.programs[workflow_id], before.rows[workflow_id], before.records[workflow_id]
        del before.stored[workflow_id], before.foreseen[workflow_id]
        self.origins.pop(workflow_id, None)
        self.attributes.pop(workflow_id, None)
        before.traffic.letters = [each for each in before.traffic.letters if each.destination != workflow_id]
        for kept in (before.traffic.events, before.traffic.history, before.traffic.streams):
            kept.pop(workflow_id, None)

    def _foresee(self, after: Snapshot) -> None:
        """Tell what all workflows are doing, and find the programs of the children that have appeared."""
        unknown = list(after.rows)
        while unknown:
            known = [workflow_id for workflow_id in unknown if workflow_id in self.programs]
            assert known, f"nobody has started {unknown}"
            unknown = [workflow_id for workflow_id in unknown if workflow_id not in self.programs]
            for workflow_id in known:
                kind, program = self.programs[workflow_id]
                child_kind: Kind = "work_async" if kind == "work_async" else "work"
                origins = self.origins.get(workflow_id, {})
                foreseen = foresee(program, workflow_id, child_kind, after.records[workflow_id], origins)
                after.foreseen[workflow_id] = foreseen
                for child_id in foreseen.children.keys() & after.rows.keys():
                    child = foreseen.children[child_id]
                    self.programs.setdefault(child_id, (child_kind, child))

    def check_superfluous(self, workflow_id: str, before_ms: int) -> None:
        """A workflow was deleted because it ended before a time, so that nobody will ask for it any more."""
        row = self.seen.rows[workflow_id]
        is_old = row.status not in UNFINISHED and (row.completed_at or row.updated_at) < before_ms
        assert is_old, f"{workflow_id} was deleted, and was {row.status}"
        for other_id, records in self.seen.records.items():
            asks = any(record.child_id == workflow_id for record in records.values())
            is_needed = asks and self.seen.status(other_id) in UNFINISHED
            assert not is_needed, f"{workflow_id} was deleted, and {other_id} may ask for it"

    def _judge_fork(self, workflow_id: str, before: Snapshot, after: Snapshot) -> None:
        """It has begun with what its source had."""
        row, copied = after.rows[workflow_id], self.origins[workflow_id]
        source = row.forked_from
        assert source is not None
        records = {number: before.records[source][number] for number in copied}
        assert {number: after.records[workflow_id].get(number) for number in copied} == records
        old, new = before.traffic, after.traffic
        events = {number: value for number, value in old.history.get(source, {}).items() if number in copied}
        kept = {number: value for number, value in new.history.get(workflow_id, {}).items() if number in copied}
        assert kept == events, f"{workflow_id} was forked with the events {kept}, and not {events}"
        values = [each for each in old.streams.get(source, []) if each.function_id in copied]
        written = [each for each in new.streams.get(workflow_id, []) if each.function_id in copied]
        assert written == values, f"{workflow_id} was forked with the stream {written}, and not {values}"

    # -- queues ------------------------------------------------------------------------------------------------------

    def holder(self, ticket: Ticket) -> str | None:
        """Who holds the de-duplication id that something is to be enqueued with."""
        if ticket.deduplication_id is None:
            return None
        holders = _holders(self.seen)
        return next(iter(holders.get((ticket.queue, ticket.deduplication_id), ())), None)

    def _judge_queues(self, after: Snapshot) -> None:
        running: dict[tuple[str | None, ...], list[str]] = {}
        for row in after.rows.values():
            place = _place_of(row)
            if row.status == "PENDING" and row.owner_instance in after.instances and place is not None:
                running.setdefault(place, []).append(row.workflow_uuid)
            is_free = row.status in UNFINISHED or row.deduplication_id is None
            assert is_free, f"I7: {row.workflow_uuid} is {row.status} and holds {row.deduplication_id}"
        for place, ids in running.items():
            assert len(ids) == 1, f"I7: {ids} run at once in {place}"
        for key, ids in _holders(after).items():
            assert len(ids) == 1, f"I7: {ids} hold {key}"

    def _is_held_back(self, row: StatusRow, after: Snapshot, live: Sequence[Executor]) -> bool:
        """Whether a limit keeps what is enqueued waiting."""
        if row.queue_name == "here":
            return all(executor.engine.runs.of_queue("here") for executor in live)
        place = _place_of(row)
        running = (each for each in after.rows.values() if each.status == "PENDING")
        others = (each for each in running if each.owner_instance in after.instances)
        return place is not None and any(_place_of(each) == place for each in others)

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
                if record.name != "step" or function_id in self.origins.get(workflow_id, {}):
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
            is_copied = effect.function_id in self.origins.get(workflow_id, {})
            assert not is_copied, f"I4: the step {where} ran again in a fork that begins after it"
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
        row, foreseen = after.rows[workflow_id], after.foreseen[workflow_id]
        kind, _ = self.programs[workflow_id]
        assert row.name == kind
        numbers, expected = after.records[workflow_id].keys(), foreseen.numbers | set(self.origins.get(workflow_id, {}))
        assert numbers == expected, f"I3: {workflow_id} recorded {numbers}, not {expected}"
        assert row.attributes == self.attributes.get(workflow_id), f"{workflow_id} has the attributes {row.attributes}"
        if row.status in DONE and before.status(workflow_id) not in DONE:
            self._judge_outcome(row, foreseen, before, after)
        if workflow_id in before.rows:
            self._judge_change(before.rows[workflow_id], row, before, executors, happening, now_ms)
        assert (row.recovery_attempts > ATTEMPTS[kind] + 1) == (row.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED") or (
            row.status == "CANCELLED"
        ), f"{workflow_id} is {row.status} after {row.recovery_attempts} attempts"
        if workflow_id in happening.cancelled_with and before.status(workflow_id) not in DONE:
            # A child may end of what its parent's cancellation tells it, before it is cancelled itself.
            is_right = row.status == "CANCELLED" or (row.status in DONE and workflow_id != happening.cancelled)
            assert is_right, f"{workflow_id} was cancelled, and is {row.status}"
        if row.status == "CANCELLED" and workflow_id not in before.rows:
            assert _is_overdue(row, now_ms), f"{workflow_id} was cancelled by nobody"
        if row.status in UNFINISHED:
            self._judge_progress(row, after, executors, now_ms)

    def _judge_outcome(self, row: StatusRow, foreseen: Foreseen, before: Snapshot, after: Snapshot) -> None:
        outcome, operation = self._observer.outcome(row), foreseen.next_place.operation
        expected = foreseen.outcome
        if expected is None and isinstance(operation, Send | ReadStream):  # it may end there: to do so is not recorded
            other = operation.to or row.workflow_uuid if isinstance(operation, Send) else operation.of
            may_be_late = isinstance(operation, Send) and operation.hold == "after"  # to hear that there was nobody
            is_absent = may_be_late or other not in before.rows or other not in after.rows
            if is_absent and "NonExistentWorkflow" in (outcome.error or ""):
                return
        assert outcome == expected, f"I1: {row.workflow_uuid} ended with {outcome}, and its records say {expected}"

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
        is_called_again = happening.debounced == workflow_id and old.status == "DELAYED"
        for name in NEVER_CHANGES[2 * is_called_again :]:
            assert getattr(new, name) == getattr(old, name), f"I1: {workflow_id} has another {name}"
        if old.status in DONE:
            assert _lasting(new) == _lasting(old), f"I5: {workflow_id} has changed after its end: {old} became {new}"
        if old.status in GIVEN_UP and not is_resumed:
            was_dead_lettered = old.status != "CANCELLED" and workflow_id in happening.cancelled_with
            assert _lasting(new) == _lasting(old) or was_dead_lettered, (
                f"I5: {workflow_id} has changed: {old} became {new}"
            )
        if old.status in GIVEN_UP and is_resumed:
            assert new.status not in GIVEN_UP, f"{workflow_id} was resumed, and is {new.status}"
        if old.status not in GIVEN_UP and new.status == "CANCELLED" and workflow_id not in happening.cancelled_with:
            assert _is_overdue(old, now_ms) or _is_overdue(new, now_ms), f"{workflow_id} was cancelled by nobody"
        is_same_deadline = old.workflow_deadline_epoch_ms == new.workflow_deadline_epoch_ms
        is_first_deadline = old.workflow_deadline_epoch_ms is None and old.status in ("ENQUEUED", "DELAYED")
        assert is_same_deadline or is_resumed or is_first_deadline, (
            f"{workflow_id} has another deadline: {old} became {new}"
        )
        is_same_queue = old.queue_name in (None, new.queue_name)  # what was in none is recovered into ours
        assert is_same_queue or is_resumed or new.status in GIVEN_UP, f"{workflow_id} has left {old.queue_name}"
        if old.status == "DELAYED" and new.status not in ("DELAYED", "CANCELLED"):
            assert is_resumed or (old.delay_until_epoch_ms or 0) <= now_ms, f"{workflow_id} began before its time"
        if old.status == "PENDING" and new.run_token != old.run_token:
            owners = [executor for executor in executors if executor.instance_id == old.owner_instance]
            assert not any(owner.state == "live" for owner in owners), f"I2: {workflow_id} was taken from a live owner"

    def _judge_progress(self, row: StatusRow, after: Snapshot, executors: Sequence[Executor], now_ms: int) -> None:
        """Nothing runnable is stranded: it is held, it sleeps, it waits for a child, or there is nobody to run it."""
        workflow_id = row.workflow_uuid
        live = [executor for executor in executors if executor.state == "live"]
        if row.status != "PENDING" and live:
            is_early = row.status == "DELAYED" and (row.delay_until_epoch_ms or 0) > now_ms
            may_wait = is_early or (row.status == "ENQUEUED" and self._is_held_back(row, after, live))
            assert may_wait, f"I2: {workflow_id} is {row.status}, and {live[0]} does not run it"
            assert not _is_overdue(row, now_ms), f"I8: {workflow_id} waits on after its deadline"
        if row.status != "PENDING":
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
        if self._stage.is_held(owner, workflow_id):
            return
        what = self._why_it_stands(workflow_id, after, owner, now_ms)
        assert what, f"I2: {workflow_id} stands still after {after.records[workflow_id]}"

    def _why_it_stands(self, workflow_id: str, after: Snapshot, owner: Executor, now_ms: int) -> bool:
        """Whether there is a reason for a run to go no further."""
        foreseen, records = after.foreseen[workflow_id], after.records[workflow_id]
        last_id, next_id, operation = foreseen.next_id - 1, foreseen.next_id, foreseen.next_place.operation
        last = foreseen.places.get(last_id)
        if last is not None and isinstance(last.operation, Sleep) and float(records[last_id].value) * 1000 > now_ms:
            return True
        if isinstance(operation, Receive | GetEvent):
            if next_id + 1 not in records or float(records[next_id + 1].value) * 1000 <= now_ms:
                return False
            if isinstance(operation, Receive):
                return not after.traffic.waiting(workflow_id, operation.topic)
            return operation.of not in after.traffic.events
        if isinstance(operation, ReadStream):
            is_there = foreseen.next_place.position < len(after.traffic.streams.get(operation.of, ()))
            return not is_there and after.status(operation.of) in UNFINISHED
        if operation is not None or foreseen.outcome is not None:
            return False
        got = {record.child_id for record in records.values() if record.name == "DBOS.getResult"}
        awaited = {record.child_id for record in records.values() if record.child_id is not None} - got
        return any(
            after.status(child) in UNFINISHED or child in owner.behind or self._stage.is_held(owner, child)
            for child in awaited
        )

    # -- executors ---------------------------------------------------------------------------------------------------

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
        row = after.rows.get(run.workflow_id)
        is_owner = row is not None and row.status == "PENDING" and row.run_token == run.run_token
        if is_owner or run.workflow_id in executor.behind or self._stage.is_held(executor, run.workflow_id):
            return
        status = after.status(run.workflow_id)
        raise AssertionError(f"I8: a run of {run.workflow_id}, which is {status}, goes on in {executor}")


def _lasting(row: StatusRow) -> StatusRow:
    """Of a workflow that has ended, what nothing changes."""
    return row._replace(attributes=None, was_forked_from=False)


def _is_overdue(row: StatusRow, now_ms: int) -> bool:
    return row.workflow_deadline_epoch_ms is not None and row.workflow_deadline_epoch_ms <= now_ms


def _place_of(row: StatusRow) -> tuple[str | None, ...] | None:
    return place_of(row.queue_name or "", row.queue_partition_key, row.owner_instance)


def _holders(snapshot: Snapshot) -> dict[tuple[str | None, str], list[str]]:
    """Who holds each de-duplication id of a queue."""
    holders: dict[tuple[str | None, str], list[str]] = {}
    for row in snapshot.rows.values():
        if row.deduplication_id is not None:
            holders.setdefault((row.queue_name, row.deduplication_id), []).append(row.workflow_uuid)
    return holders
