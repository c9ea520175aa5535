"""Playing a scenario, with a fault at one of its calls, and what must hold afterwards."""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dbos import DBOS, SetWorkflowID
from tests.failpoints.failpoints import Failpoints, Fault
from tests.failpoints.faults import Claimed, RecordedFirst, Scene, _RivalFault, _Superseding, pass_time, runtime
from tests.failpoints.scenarios import PLAIN, SCENARIOS, Application, Scenario
from tests.failpoints.stage import Crash, Rival, Snapshot, Stage, engine
from tests.failpoints.zygote import Kill, Zygote

__all__ = ["EXHAUSTIVE", "Leftovers", "Theatre", "calls", "changes"]

EXHAUSTIVE = os.environ.get("DBOS_FAILPOINTS") == "all"  # every call of every workflow; a few minutes
PATIENCE_S = 30.0  # the bound within which every wait must end
TICK_S = 0.02
UNHURRIED_TICKS = 3  # so many ticks a run goes on by itself, before time is made to pass
FINAL = ("SUCCESS", "ERROR")
STEPS = ("one", "two", "one_async", "two_async", "pack", "say")
WRITES = ("start", "claim", "record", "outcome", "cancel", "resume", "send", "receive", "set", "append")


def calls(trace: list[str]) -> list[str]:
    """The labels of a run that are worth a fault: each call about its workflow up to the second time, others once."""
    labels = dict.fromkeys(trace)
    return [label for label in labels if "#" not in label or ("(W" in label and label.endswith("#2"))]


def changes(label: str) -> bool:
    """Whether a call about the workflow commits something."""
    return "(W" in label and (label.startswith(WRITES) or "COMMIT" in label)


def must_come(label: str) -> bool:
    """Whether a call is made in every run; services call when they like.

    Who waits looks only for what is not executed here yet; a claim may be under way when its workflow is enqueued, and
    may find several.
    """
    if "(W" not in label or "#" in label or label.startswith(("settled", "get(", "claim(")):
        return False
    return not label.startswith("history(W-")


class Theatre:
    """A launched application, and scenarios played in it one after the other."""

    def __init__(self, stage: Stage, application: Application, failpoints: Failpoints, rival: Rival | None) -> None:
        self.stage = stage
        self.application = application
        self.failpoints = failpoints
        self._rival = rival
        self._played = 0
        self._finals: dict[str, Any] = {}

    def count(self, scenario: Scenario, *, crashes: bool) -> list[str]:
        """The calls that a scenario makes; played twice, because the first time connections are opened."""
        self.play(scenario, crashes=crashes)
        return calls(self.play(scenario, crashes=crashes))

    def play(
        self,
        scenario: Scenario,
        *,
        crashes: bool = False,
        label: str | None = None,
        make_fault: Callable[[Scene], Fault] | None = None,
    ) -> list[str]:
        """Play a scenario with a fault at a call, and check it; returns the labels of its calls."""
        subject = self._next_subject()
        snapshots: list[Snapshot] = []
        scene = Scene(self.failpoints, self._rival, subject, self.application.plain)
        scene.on_fault = lambda: snapshots.append(self.stage.snapshot(subject))
        fault = None if make_fault is None else make_fault(scene)
        if crashes:
            self.stage.crashing.add(subject)
        self.failpoints.begin(subject, label, fault)

        within_bounds(lambda: scenario.play(self.application, subject))
        scene.end(PATIENCE_S)
        trace, has_fired = self.failpoints.trace(), self.failpoints.has_fired
        self._conclude(scenario, subject, fault, snapshots)
        self._assert_fenced(subject, fault, label, snapshots[-1])
        if not isinstance(fault, _RivalFault):
            for row in snapshots[-1].workflows.values():
                expected = 2 if crashes and row.workflow_id == subject else 1
                assert row.attempts == expected, f"it had to be begun anew: {row}"
        if label is not None and must_come(label) and scenario.result is not None:
            assert has_fired, f"the call was not made; there were {trace}"
        if has_fired:
            self._assert_neighbour(scene.neighbour_id)
        return trace

    def play_elsewhere(
        self, scenario: Scenario, name: str, zygote: Zygote, *, label: str | None = None, after: bool = False
    ) -> None:
        """Play a scenario in another process, which dies at a call; then recover it here, and check it."""
        subject = self._next_subject()
        with taking_nothing():
            has_died = zygote.run(
                config=self.stage.config,
                directory=str(self.stage.directory),
                name=name,
                subject=subject,
                label=label,
                after=after,
            )
        assert has_died or label is None or not must_come(label) or name in ("cancel", "timeout")
        snapshots = [self.stage.snapshot(subject)]
        if subject not in snapshots[0].workflows:
            assert not self.stage.acknowledged(subject)
            return
        DBOS._recover_pending_workflows()
        within_bounds(lambda: self.application.result(subject, DBOS.retrieve_workflow(subject).get_result))
        self._conclude(scenario, subject, Kill(after=after), snapshots)
        for workflow_id, row in snapshots[-1].workflows.items():
            known = snapshots[0].workflows.get(workflow_id)
            assert row.attempts <= 1 + (0 if known is None else known.attempts), f"it was begun more than once: {row}"

    def relaunch(self, label: str | None = None, make_fault: Callable[[Scene], Fault] | None = None) -> list[str]:
        """Leave a workflow behind and launch again, with a fault at a call; check what becomes of the workflow."""
        subject = self._next_subject()
        scenario = SCENARIOS["sync"]
        snapshots: list[Snapshot] = []
        scene = Scene(self.failpoints, None, subject, None)
        scene.on_fault = lambda: snapshots.append(self.stage.snapshot(subject))
        fault = None if make_fault is None else make_fault(scene)
        self.stage.crashing.add(subject)
        with SetWorkflowID(subject), pytest.raises(Crash):
            self.application.plain()
        snapshots.append(self.stage.snapshot(subject))
        self.failpoints.begin(subject, label, fault)

        def destroy_and_launch() -> None:
            DBOS.destroy()
            DBOS(config=self.stage.config)
            DBOS.launch()
            self.application.result(subject, DBOS.retrieve_workflow(subject).get_result)

        within_bounds(destroy_and_launch)
        trace = self.failpoints.trace()
        self._conclude(scenario, subject, fault, snapshots)
        return trace

    def _next_subject(self) -> str:
        self._played += 1
        return f"subject.{self._played}"

    def _conclude(self, scenario: Scenario, subject: str, fault: Fault | None, snapshots: list[Snapshot]) -> None:
        """Wait for the end, resume what a rival has cancelled, and check everything."""
        wait_until(lambda: self._is_over(subject), "the workflows have outcomes")
        snapshots.append(self.stage.snapshot(subject))
        if scenario.result is not None and snapshots[-1].workflows[subject].status == "CANCELLED":
            self.stage.crashing.discard(subject)
            within_bounds(lambda: self.application.result(subject, DBOS.resume_workflow(subject).get_result))
            wait_until(lambda: self._is_over(subject), "the resumed workflow has an outcome")
            snapshots.append(self.stage.snapshot(subject))
        self._assert_invariants(scenario, subject, fault, snapshots)

    def _is_over(self, subject: str) -> bool:
        runs = [run for run in engine().runs.all() if run.workflow_id.startswith(subject)]
        return self.stage.is_finished(subject) and not runs

    def _assert_invariants(
        self, scenario: Scenario, subject: str, fault: Fault | None, snapshots: list[Snapshot]
    ) -> None:
        end, stage = snapshots[-1], self.stage
        row = end.workflows[subject]
        load = engine().serialization.load_value
        told = stage.acknowledged(subject)
        outputs = [
            load(record.output, record.serialization)
            for (workflow_id, _), record in sorted(end.records.items())
            if workflow_id == subject and record.output is not None and record.name != "DBOS.sleep"
        ]

        # I1: what was acknowledged is there
        assert told, "the caller was told nothing"
        if scenario.result is not None:
            value = DBOS.retrieve_workflow(subject).get_result()
            assert row.status == "SUCCESS", row
            assert value == outputs
            assert isinstance(fault, RecordedFirst) or value == scenario.result
            assert all(said == value for _, what, said in told if what == "result"), told
        else:
            assert row.status == "CANCELLED", row
            assert all(what != "result" for _, what, _ in told), told

        # I2: nothing is left to run, and nobody owns what has ended
        assert all(row.owner_instance is None for row in end.workflows.values()), end.workflows

        # I3, I5: what was recorded stays; an outcome stays, and a cancellation until it is resumed
        for earlier in snapshots[:-1]:
            assert earlier.records.items() <= end.records.items()
            for workflow_id, before in earlier.workflows.items():
                assert before.status not in FINAL or end.workflows[workflow_id] == before

        # I4: no body began when its record was there; without crash or rival, none began twice. The body of a
        # transaction may: it is rolled back when it meets the record, and repeated when the database says so.
        effects = stage.effects(subject)
        entered = {
            key for key, record in end.records.items() if record.name.endswith("enter") and record.output is not None
        }
        again = {(who, function_id) for who, function_id, what, _ in effects if what == "again"}
        assert again <= entered, effects
        assert not again or isinstance(fault, _RivalFault), effects
        if not isinstance(fault, _RivalFault | Kill):
            repeated = {key for key, count in stage.bodies(subject).items() if count > 1}
            assert repeated <= entered, effects
        expected = {
            key for key, record in end.records.items() if record.child_id is None and "DBOS." not in record.name
        }
        assert isinstance(fault, RecordedFirst) or expected <= stage.bodies(subject).keys()

        # I6: a transaction's effect and its record, both and once
        assert isinstance(fault, RecordedFirst) or stage.ledger(subject) == Counter(dict.fromkeys(entered, 1))
        if stage.is_apart and entered:
            assert stage.transactions(subject) == stage.ledger(subject)

        self._finals.update(end.workflows)

    def _assert_fenced(self, subject: str, fault: Fault | None, label: str | None, end: Snapshot) -> None:
        # The fence: what was on its way when the run was superseded is refused, and done again in the next one
        if not isinstance(fault, _Superseding) or not self.failpoints.has_fired:
            return
        match = re.fullmatch(r"record\(W:(\d+)\)", label or "")
        record = None if match is None else end.records.get((subject, int(match[1])))
        if record is not None and record.name.rpartition(".")[2] in STEPS:
            assert self.stage.bodies(subject)[record[:2]] > 1, "a superseded run has recorded its step"
        if isinstance(fault, Claimed) and label == "outcome(W)":
            assert end.workflows[subject].attempts > 1, "a superseded run has finished the workflow"

    def _assert_neighbour(self, neighbour_id: str) -> None:
        # I9: what has nothing to do with it went on
        wait_until(
            lambda: neighbour_id in self.stage.snapshot(neighbour_id).workflows and self._is_over(neighbour_id),
            "the neighbour has an outcome",
        )
        assert DBOS.retrieve_workflow(neighbour_id).get_result() == PLAIN

    def assert_at_rest(self) -> None:
        """I2, I10: nothing waits and no map has an entry when everything has ended."""
        up = engine()
        wait_until(lambda: not (up.runs.all() or up.db.wakeups.keys() or up.runs._expected), "the maps are empty")
        assert self.stage.unfinished() == []

    def assert_unchanged(self) -> None:
        """I5: every outcome is what it was when it was first seen."""
        for workflow_id, row in self._finals.items():
            assert self.stage.snapshot(workflow_id).workflows[workflow_id] == row


@contextmanager
def taking_nothing() -> Iterator[None]:
    """Leave what is enqueued to another process."""
    dispatcher = runtime()._dispatcher
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher, "work_once", lambda: None)
        yield
    dispatcher.dispatch_soon(None)


def within_bounds(act: Callable[[], object]) -> None:
    """I8: do something in a thread, which must come to its end while time passes."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="caller", daemon=True)
    thread.start()
    wait_until(lambda: not thread.is_alive(), "the caller has its answer", lambda: thread.join(TICK_S))
    if raised:
        raise raised[0]


def wait_until(condition: Callable[[], bool], what: str, tick: Callable[[], object] | None = None) -> None:
    """Wait, while time passes for the services."""
    deadline = time.monotonic() + PATIENCE_S
    ticks = 0
    while not condition():
        if time.monotonic() > deadline:
            faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
            raise AssertionError(f"waited {PATIENCE_S} s in vain until {what}")
        ticks += 1
        if ticks > UNHURRIED_TICKS:
            pass_time()
        if tick is not None:
            tick()
        else:
            time.sleep(TICK_S / 10)


class Leftovers:
    """I10: the threads and descriptors that there are now, to be compared with those later."""

    def __init__(self) -> None:
        self._threads = self._dbos_threads()
        self._descriptors = self._count()

    @staticmethod
    def _dbos_threads() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("dbos")}

    @staticmethod
    def _count() -> int:
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    def assert_none(self) -> None:
        """Nothing has been added."""
        deadline = time.monotonic() + PATIENCE_S
        while (threads := self._dbos_threads()) != self._threads or self._count() > self._descriptors:
            assert time.monotonic() < deadline, f"left behind: {threads - self._threads}, {self._count()} descriptors"
            time.sleep(TICK_S)
