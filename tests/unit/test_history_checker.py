"""The checker of histories finds what must not be: each of these violates one thing, in a history that is sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.checker import check
from tests.chaos.history import (
    Body,
    Change,
    Command,
    Execution,
    History,
    Record,
    Row,
    Seen,
    Submission,
    read_logs,
)
from tests.chaos.limits import fullest
from tests.chaos.plan import plan
from tests.chaos.rules import QueueRule, Rules, Violation

S = 1_000_000  # microseconds
MS = 1_000_000  # nanoseconds

RULES = Rules(
    queues={
        rule.name: rule
        for rule in (
            QueueRule(name="free"),
            QueueRule(name="narrow", concurrency=1),
            QueueRule(name="wide", concurrency=2),
            QueueRule(name="each", worker_concurrency=1),
            QueueRule(name="rated", limit=1, period_s=1.0),
            QueueRule(name="split", concurrency=1, is_partitioned=True),
        )
    },
    ends={"raises": "ERROR", "missing": "ENQUEUED"},
    parents=frozenset({"family"}),
    steps=frozenset({"step", "enter"}),
    transactions=frozenset({"enter"}),
    stall_ns=300 * MS,
)


class Story:
    """Writes a history: workflows that are submitted, claimed by processes 1 and 2 (instances i1 and i2), and end."""

    def __init__(self) -> None:
        self.history = History(instances={"i1": 1, "i2": 2})
        self._sequence = 0

    def change(self, at: float, workflow_id: str, status: str, **values: Any) -> None:
        self._sequence += 1
        at_us = round(at * S)
        self.history.changes.append(Change(self._sequence, at_us, at_us, workflow_id, status, **values))

    def submit(self, at: float, workflow_id: str, queue: str | None = "free", **values: Any) -> None:
        submission = {name: value for name, value in values.items() if name in ("kind", "number", "delay_s")}
        shared = {name: value for name, value in values.items() if name in ("priority", "partition", "dedup")}
        self.history.submissions[workflow_id] = Submission(
            workflow_id=workflow_id,
            queue=queue,
            called_us=round(at * S),
            acked_us=round(at * S) + 1000,
            **{"kind": "brief", **submission},
            **shared,
        )
        self.change(at, workflow_id, "ENQUEUED", queue=queue, **shared)

    def claim(self, at: float, workflow_id: str, process: int = 1, queue: str | None = "free", **values: Any) -> None:
        token = f"t{self._sequence}"
        owner, started_ms = f"i{process}", round(at * 1000)
        self.change(
            at, workflow_id, "PENDING", queue=queue, run_token=token, owner=owner, started_ms=started_ms, **values
        )

    def execute(self, began: float, ended: float | None, workflow_id: str, process: int = 1) -> None:
        ended_us = None if ended is None else round(ended * S)
        self.history.bodies.append(Body(workflow_id, process, round(began * S), ended_us))

    def step(self, at: float, workflow_id: str, attempt: str, function_id: int = 1, process: int = 1) -> None:
        """A step is executed, recorded and seen within a millisecond."""
        at_ns = round(at * 1e9)
        execution = Execution(workflow_id, function_id, attempt, process, at_ns, at_ns + MS // 10)
        self.history.executions.append(execution)
        self.history.seen.append(Seen(workflow_id, function_id, attempt, process, at_ns + MS))
        self.history.records.append(Record(workflow_id, function_id, "step", json.dumps([function_id, attempt])))

    def end(self, at: float, workflow_id: str, output: Any, status: str = "SUCCESS") -> None:
        text = json.dumps(output)
        self.change(at, workflow_id, status, outcome=text)
        is_good = status == "SUCCESS"
        self.history.rows[workflow_id] = Row(
            workflow_id, "brief", status, text if is_good else None, None if is_good else text
        )

    def whole(self, at: float, workflow_id: str, queue: str = "free", process: int = 1, **values: Any) -> None:
        """A workflow from beginning to end, in a second."""
        shared = {name: value for name, value in values.items() if name in ("priority", "partition", "dedup")}
        self.submit(at, workflow_id, queue, **values)
        self.claim(at + 0.1, workflow_id, process, queue, **shared)
        self.execute(at + 0.2, at + 0.8, workflow_id, process)
        self.step(at + 0.3, workflow_id, f"a-{workflow_id}", process=process)
        self.end(at + 0.9, workflow_id, [0, [[1, f"a-{workflow_id}"]]])

    def transaction(self) -> None:
        self.history.executions.append(Execution("w", 2, "b-w", 1, 2, 3))
        self.history.records.append(Record("w", 2, "enter", json.dumps([2, "b-w"])))
        self.history.ledger.append(("w", 2, "b-w"))
        row = self.history.rows["w"]
        self.history.rows["w"] = row._replace(output=json.dumps([0, [[1, "a-w"], [2, "b-w"]]]))


def sound() -> Story:
    """One workflow ``w`` that has a step and a transaction."""
    story = Story()
    story.whole(0, "w")
    story.transaction()
    return story


def violations(story: Story) -> list[Violation]:
    return check(story.history, RULES)


def test_a_sound_history_has_no_violations() -> None:
    story = sound()
    story.whole(1, "v", "narrow")
    story.whole(2, "u", "narrow", process=2)

    assert violations(story) == []
    assert fullest(story.history, RULES)["narrow"] == 1


# -- what is lost, left or changed -------------------------------------------------------------------------------------


def lose_a_workflow(story: Story) -> None:
    del story.history.rows["w"]
    story.history.records.clear()
    story.history.ledger.clear()
    story.history.seen.clear()


def keep_what_was_rejected(story: Story) -> None:
    story.history.submissions["w"] = replace(story.history.submissions["w"], acked_us=None, rejected_us=1, dedup="d")
    story.change(-1.0, "v", "PENDING", queue="free", dedup="d")


def make_a_ghost(story: Story) -> None:
    story.history.rows["ghost"] = Row("ghost", "missing", "ENQUEUED", None, None)


def strand_a_workflow(story: Story) -> None:
    story.history.rows["w"] = story.history.rows["w"]._replace(status="PENDING")


def end_otherwise(story: Story) -> None:
    story.history.rows["w"] = story.history.rows["w"]._replace(status="ERROR", error="no")


def cancel_without_being_asked(story: Story) -> None:
    story.history.rows["w"] = story.history.rows["w"]._replace(status="CANCELLED")


def stay_cancelled_though_resumed(story: Story) -> None:
    story.history.commands += [Command("cancel", "w", 1, 2), Command("resume", "w", 3, 4)]
    story.history.rows["w"] = story.history.rows["w"]._replace(status="CANCELLED")


def return_something_else(story: Story) -> None:
    story.history.rows["w"] = story.history.rows["w"]._replace(output=json.dumps([0, [[1, "a-other"]]]))


def see_another_result(story: Story) -> None:
    story.history.seen.append(Seen("w", 1, "a-other", 2, S * 1000))


def lose_a_record(story: Story) -> None:
    story.history.records = [each for each in story.history.records if each.function_id != 1]
    story.history.rows["w"] = story.history.rows["w"]._replace(output=json.dumps([0, [[2, "b-w"]]]))


def change_a_record(story: Story) -> None:
    story.history.rewritten.append("w 1 was updated")


def record_what_never_ended(story: Story) -> None:
    story.history.executions = [each._replace(has_ended=False) for each in story.history.executions]


def execute_a_recorded_step(story: Story) -> None:
    story.history.executions.append(Execution("w", 1, "again", 2, round(0.5e9), round(0.5e9) + MS))


def have_an_effect_twice(story: Story) -> None:
    story.history.ledger.append(("w", 2, "b-w"))


def have_an_effect_without_record(story: Story) -> None:
    story.history.ledger.append(("w", 3, "c-w"))


def record_a_transaction_without_effect(story: Story) -> None:
    story.history.ledger.clear()


def change_the_outcome(story: Story) -> None:
    story.change(2, "w", "SUCCESS", outcome="other")


def rise_from_the_dead(story: Story) -> None:
    story.change(1, "v", "CANCELLED")
    story.change(2, "v", "ENQUEUED", queue="free")


def execute_without_a_claim(story: Story) -> None:
    story.execute(0.3, 0.4, "w", process=2)


def execute_twice(story: Story) -> None:
    story.execute(0.3, 0.4, "w")


def bother_the_application(story: Story) -> None:
    story.history.errors.append("OperationalError")


@pytest.mark.parametrize(
    ("spoil", "invariant", "text"),
    [
        (lose_a_workflow, "I1", "is gone"),
        (keep_what_was_rejected, "I1", "was rejected and is there"),
        (make_a_ghost, "I1", "started by nobody"),
        (strand_a_workflow, "I2", "is PENDING at the end"),
        (end_otherwise, "I1", "ended as ERROR"),
        (cancel_without_being_asked, "I1", "ended as CANCELLED"),
        (stay_cancelled_though_resumed, "I1", "ended as CANCELLED"),
        (return_something_else, "I1", "returned"),
        (see_another_result, "I3", "got a-other, kept is a-w"),
        (lose_a_record, "I3", "got a-w, kept is None"),
        (change_a_record, "I3", "was changed"),
        (record_what_never_ended, "I3", "never executed to its end"),
        (execute_a_recorded_step, "I4", "again began"),
        (have_an_effect_twice, "I6", "had its effect and is not recorded"),
        (have_an_effect_without_record, "I6", "had its effect and is not recorded"),
        (record_a_transaction_without_effect, "I6", "had no effect"),
        (change_the_outcome, "I5", "went from SUCCESS to SUCCESS"),
        (rise_from_the_dead, "I5", "went from CANCELLED to ENQUEUED"),
        (execute_without_a_claim, "I7", "had it 0 times"),
        (execute_twice, "I7", "had it 1 times and executes it 2 times"),
        (bother_the_application, "H1", "OperationalError"),
    ],
)
def test_each_fault_is_found(spoil: Callable[[Story], None], invariant: str, text: str) -> None:
    story = sound()

    spoil(story)

    found = violations(story)
    assert {violation.invariant for violation in found} == {invariant}
    assert text in found[0].text


def test_a_step_may_begin_after_its_record_if_its_process_stood_still_before_it() -> None:
    story = sound()
    called_ns = round(0.2e9)
    began_ns = called_ns + RULES.stall_ns + 200 * MS

    story.history.executions.append(Execution("w", 1, "zombie's", 2, called_ns, began_ns))

    assert violations(story) == []


def test_a_cancelled_workflow_may_begin_again_when_it_is_resumed() -> None:
    story = sound()
    story.change(1, "v", "CANCELLED")
    story.history.commands.append(Command("resume", "v", 1_500_000, None))

    story.change(2, "v", "ENQUEUED", queue="free")

    assert violations(story) == []


def test_a_parent_returns_what_its_children_do() -> None:
    story = sound()
    story.whole(0, "child")
    del story.history.submissions["child"]
    story.history.rows["child"] = story.history.rows["child"]._replace(parent_id="w")
    story.history.records = [each for each in story.history.records if each.workflow_id != "w"]
    story.history.records.append(Record("w", 1, "start", None, child_id="child"))
    story.history.seen, story.history.ledger = [], []

    for output, is_right in (([0, [[0, [[1, "a-child"]]]]], True), ([0, [None]], False)):
        story.history.rows["w"] = Row("w", "family", "SUCCESS", json.dumps(output), None)
        assert (violations(story) == []) is is_right


# -- limits ------------------------------------------------------------------------------------------------------------


def test_more_than_may_run_at_once_is_found_in_the_database_and_in_the_logs() -> None:
    story = Story()
    for number, workflow_id in enumerate("abc"):
        story.submit(number / 100, workflow_id, "wide")
    for process, workflow_id in ((1, "a"), (2, "b"), (2, "c")):
        story.claim(1, workflow_id, process, "wide")
        story.execute(1.1, 1.5, workflow_id, process)
    for workflow_id in "abc":
        story.end(2, workflow_id, [0, []])

    found = violations(story)

    assert [violation.invariant for violation in found] == ["I7", "I7"]
    assert "is number 3 at once" in found[0].text
    assert "is body number 3 at once" in found[1].text
    assert fullest(story.history, RULES)["wide"] == 3


def test_a_paused_executor_counts_until_its_work_is_taken_from_it() -> None:
    story = Story()
    story.submit(0, "w", "narrow")
    story.claim(1, "w", 1, "narrow")
    story.execute(1.1, 9, "w", 1)  # it wakes later, and ends without being heard
    story.change(3, "w", "ENQUEUED", queue="narrow")
    story.claim(4, "w", 2, "narrow")
    story.execute(4.1, 5, "w", 2)
    story.end(5.1, "w", [0, []])

    assert violations(story) == []


def test_a_body_counts_until_its_work_is_taken_from_it() -> None:
    story = Story()
    story.submit(0, "w", "narrow")
    story.submit(0.1, "v", "narrow")
    story.claim(1, "w", 1, "narrow")
    story.execute(1.1, None, "w", 1)  # it was killed
    story.claim(2, "v", 2, "narrow")
    story.execute(2.1, 2.5, "v", 2)
    story.end(2.6, "v", [0, []])
    story.change(3, "w", "ENQUEUED", queue="narrow")
    story.claim(4, "w", 2, "narrow")
    story.execute(4.1, 5, "w", 2)
    story.end(5.1, "w", [0, []])

    assert [violation.text[:24] for violation in violations(story)] == [
        "is number 2 at once in (",
        "is body number 2 at once",
    ]


@pytest.mark.parametrize(
    ("queue", "processes", "partitions", "is_right"),
    [
        ("each", (1, 1), (None, None), False),
        ("each", (1, 2), (None, None), True),
        ("split", (1, 2), ("p", "p"), False),
        ("split", (1, 2), ("p", "q"), True),
    ],
)
def test_limits_hold_for_each_process_and_each_partition(
    queue: str, processes: tuple[int, int], partitions: tuple[str | None, str | None], is_right: bool
) -> None:
    story = Story()

    for workflow_id, process, partition in zip("wv", processes, partitions, strict=True):
        story.submit(0, workflow_id, queue, partition=partition)
        story.claim(1, workflow_id, process, queue, partition=partition)
        story.execute(1.1, 2, workflow_id, process)
    for workflow_id in "wv":
        story.end(3, workflow_id, [0, []])

    assert (violations(story) == []) is is_right


@pytest.mark.parametrize(
    ("second", "stamp", "texts"),
    [
        (2.0, 2.0, []),
        (1.5, 1.5, ["2 starts stamped within 500 ms", "2 starts made within 500 ms"]),
        (1.5, 2.0, ["2 starts made within 500 ms"]),  # a clock that goes ahead hides nothing
    ],
)
def test_more_starts_than_a_period_allows_are_found(second: float, stamp: float, texts: list[str]) -> None:
    story = Story()
    for workflow_id in "wv":
        story.submit(0, workflow_id, "rated")
    story.claim(1, "w", queue="rated")
    story.end(1.1, "w", [0, []])
    story.change(second, "v", "PENDING", queue="rated", run_token="t", owner="i1", started_ms=round(stamp * 1000))
    story.end(3, "v", [0, []])

    assert [violation.text.split(" in (")[0] for violation in violations(story)] == texts


@pytest.mark.parametrize(
    ("first", "second", "is_right"),
    [
        ({}, {}, False),
        ({"priority": 1}, {"priority": 2}, False),
        ({"priority": 2}, {"priority": 1}, True),
        ({"kind": "missing"}, {}, True),  # nobody can run it
    ],
)
def test_what_comes_first_begins_first(first: dict[str, Any], second: dict[str, Any], is_right: bool) -> None:
    story = Story()
    story.submit(0, "w", "narrow", **first)
    story.submit(1, "v", "narrow", **second)

    story.claim(2, "v", queue="narrow", priority=second.get("priority", 0))
    story.end(3, "v", [0, []])
    if first.get("kind") == "missing":
        story.history.rows["w"] = Row("w", "missing", "ENQUEUED", None, None)
    else:
        story.claim(4, "w", queue="narrow", priority=first.get("priority", 0))
        story.end(5, "w", [0, []])

    found = violations(story)
    assert [violation.text for violation in found] == ([] if is_right else ["began before w in narrow"])


def test_what_was_being_cancelled_may_be_passed_over() -> None:
    story = Story()
    story.submit(0, "w", "narrow")
    story.submit(1, "v", "narrow")

    story.claim(2, "v", queue="narrow")
    story.history.commands.append(Command("cancel", "w", 1_900_000, 2_100_000))
    story.end(2.1, "w", "cancelled", "CANCELLED")
    story.end(3, "v", [0, []])

    assert violations(story) == []


def test_two_holders_of_a_deduplication_id_are_found() -> None:
    story = Story()

    for at, workflow_id in ((0, "w"), (0.1, "v")):
        story.submit(at, workflow_id, dedup="d")
    for workflow_id in "wv":
        story.end(1, workflow_id, [0, []], "SUCCESS")

    assert [violation.text for violation in violations(story)] == ["holds ('free', 'd') together with w"]


@pytest.mark.parametrize(("called", "is_right"), [(0.5, True), (5.0, False)])
def test_only_a_held_deduplication_id_is_rejected(called: float, is_right: bool) -> None:
    story = Story()
    story.whole(0, "w", dedup="d")

    story.history.submissions["v"] = Submission(
        workflow_id="v",
        kind="brief",
        queue="free",
        dedup="d",
        called_us=round(called * S),
        rejected_us=round(called * S),
    )

    assert (violations(story) == []) is is_right


@pytest.mark.parametrize(("delay_s", "is_right"), [(0.1, True), (0.5, False)])
def test_a_delay_that_was_cut_short_is_found(delay_s: float, is_right: bool) -> None:
    story = Story()

    story.whole(0, "w", delay_s=delay_s)

    assert (violations(story) == []) is is_right


# -- reading -----------------------------------------------------------------------------------------------------------


def test_logs_become_a_history_without_the_line_that_was_being_written() -> None:
    worker = """["body",1000,1,7,"n1","w"]
["step",2000,2,7,"a1","w",1,1500]
["step_end",3000,3,7,"a1"]
["seen",4000,4,7,"w",1,"a1"]
["step",5000,5,7,"a2","w",2,4500]
["body_e"""
    driver = """["call",100,1,8,"w",{"kind":"brief","number":3,"queue":"free"}]
["ack",200,2,8,"w"]
["command",300,3,8,"c1","cancel","w"]
["done",400,4,8,"c1"]
["command",500,5,8,"c2","resume","w"]
["error",600,6,8,"oh"]
"""

    history = read_logs([worker, driver])

    assert history.submissions == {
        "w": Submission(workflow_id="w", kind="brief", number=3, queue="free", called_us=1, acked_us=2)
    }
    assert history.bodies == [Body("w", 7, 1, None)]
    assert history.executions == [
        Execution("w", 1, "a1", 7, 1500, 2000, True),
        Execution("w", 2, "a2", 7, 4500, 5000, False),
    ]
    assert history.seen == [Seen("w", 1, "a1", 7, 4000)]
    assert history.commands == [Command("cancel", "w", 3, 4), Command("resume", "w", 5, None)]
    assert history.errors == ["oh"]


def test_a_seed_says_what_a_campaign_submits() -> None:
    assert plan(7, 500) == plan(7, 500) != plan(8, 500)
    assert {task.kind for task in plan(7, 500)} >= {"brief", "order", "gathering", "family", "missing", "undecodable"}
