"""Judges a history: what must always hold, and where it did not.

Each check is a pure function from a :class:`History` to the violations it finds; those of limits are in
:mod:`tests.chaos.limits`.
"""

from __future__ import annotations

import json
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from tests.chaos.history import FINAL, History
from tests.chaos.limits import (
    check_bodies_at_once,
    check_concurrency,
    check_deduplication,
    check_delays,
    check_order,
    check_rates,
    check_that_bodies_were_claimed,
)
from tests.chaos.rules import TOLERANCE_US, Rules, Violation

__all__ = ["check"]


def check(history: History, rules: Rules) -> list[Violation]:
    """All violations, by invariant."""
    checks: list[Callable[[History, Rules], Iterator[Violation]]] = [
        check_that_nothing_is_lost,
        check_that_nothing_is_left,
        check_results,
        check_records,
        check_that_recorded_steps_rest,
        check_that_final_is_final,
        check_transactions,
        check_that_bodies_were_claimed,
        check_concurrency,
        check_bodies_at_once,
        check_rates,
        check_order,
        check_deduplication,
        check_delays,
        check_that_nobody_was_bothered,
    ]
    return [violation for each in checks for violation in each(history, rules)]


# -- I1, I2, I9: everything is there, has ended, and as it should ------------------------------------------------------


def check_that_nothing_is_lost(history: History, rules: Rules) -> Iterator[Violation]:
    for workflow_id, submission in history.submissions.items():
        is_there = workflow_id in history.rows
        if submission.acked_us is not None and not is_there:
            yield Violation("I1", workflow_id, "was acknowledged and is gone")
        if submission.rejected_us is not None and submission.acked_us is None and is_there:
            yield Violation("I1", workflow_id, "was rejected and is there")
    for workflow_id, row in history.rows.items():
        if workflow_id not in history.submissions and row.parent_id not in history.rows:
            yield Violation("I1", workflow_id, "was started by nobody")


def check_that_nothing_is_left(history: History, rules: Rules) -> Iterator[Violation]:
    for workflow_id, row in history.rows.items():
        if row.status not in FINAL and row.status not in _natural_ends(history, rules, workflow_id):
            yield Violation("I2", workflow_id, f"is {row.status} at the end")


def check_results(history: History, rules: Rules) -> Iterator[Violation]:
    """Every workflow ended as its kind does, or as a cancel asked; its output is what its records say."""
    outputs = _expected_outputs(history, rules)
    for workflow_id, row in history.rows.items():
        if row.status not in FINAL:
            continue
        allowed = _natural_ends(history, rules, workflow_id) | _cancelled_ends(history, workflow_id)
        if row.status not in allowed:
            yield Violation("I1", workflow_id, f"ended as {row.status}, not as {sorted(allowed)}: {row.error}")
        elif row.status == "SUCCESS":
            output = json.loads(row.output or "null")
            if output != outputs(workflow_id):
                yield Violation("I1", workflow_id, f"returned {output}, not {outputs(workflow_id)}")


def _natural_ends(history: History, rules: Rules, workflow_id: str) -> set[str]:
    submission = history.submissions.get(workflow_id)
    kind = submission.kind if submission is not None else history.rows[workflow_id].name
    return {rules.ends.get(kind, "SUCCESS")}


def _cancelled_ends(history: History, workflow_id: str) -> set[str]:
    commands = sorted((each for each in history.commands if each.workflow_id == workflow_id), key=lambda c: c.called_us)
    ends: set[str] = set()
    for command in commands:
        if command.verb == "cancel":
            ends = {"CANCELLED"}
        elif command.done_us is not None:
            ends = set()
    return ends


def _expected_outputs(history: History, rules: Rules) -> Callable[[str], Any]:
    attempts: dict[str, list[list[Any]]] = defaultdict(list)
    children: dict[str, list[str]] = defaultdict(list)
    for record in sorted(history.records, key=lambda record: (record.workflow_id, record.function_id)):
        if record.name in rules.steps:
            attempts[record.workflow_id].append([record.function_id, record.attempt])
        elif record.child_id is not None and record.child_id not in children[record.workflow_id]:
            children[record.workflow_id].append(record.child_id)

    def expected(workflow_id: str) -> Any:
        row = history.rows.get(workflow_id)
        if row is None:
            return None
        top = workflow_id
        while top not in history.submissions and (parent := history.rows[top].parent_id) in history.rows:
            top = str(parent)
        number = history.submissions[top].number if top in history.submissions else None
        if row.name in rules.parents:
            return [number, [expected(child) for child in children[workflow_id]]]
        return [number, attempts[workflow_id]]

    return expected


# -- I3, I4, I6: what is recorded stays, and is not done again ---------------------------------------------------------


def check_records(history: History, rules: Rules) -> Iterator[Violation]:
    """What a workflow got from a step is what is recorded, and it was executed to its end."""
    for text in history.rewritten:
        yield Violation("I3", text.split(" ")[0], f"a record was changed: {text}")
    recorded = {(each.workflow_id, each.function_id): each for each in history.records if each.name in rules.steps}
    executed = {each.attempt: each for each in history.executions if each.has_ended}
    for seen in history.seen:
        record = recorded.get((seen.workflow_id, seen.function_id))
        found = None if record is None else record.attempt
        if found != seen.attempt:
            where = f"function {seen.function_id}"
            yield Violation("I3", seen.workflow_id, f"{where}: process {seen.pid} got {seen.attempt}, kept is {found}")
    for (workflow_id, function_id), record in recorded.items():
        execution = executed.get(record.attempt or "")
        if execution is None or (execution.workflow_id, execution.function_id) != (workflow_id, function_id):
            yield Violation(
                "I3", workflow_id, f"function {function_id}: {record.attempt} was never executed to its end"
            )


def check_that_recorded_steps_rest(history: History, rules: Rules) -> Iterator[Violation]:
    """No body begins after its workflow got the step's result, unless its process stood still since it was called."""
    acknowledged: dict[tuple[str, int], int] = {}
    for seen in history.seen:
        key = (seen.workflow_id, seen.function_id)
        acknowledged[key] = min(seen.at_ns, acknowledged.get(key, seen.at_ns))
    for execution in history.executions:
        since = acknowledged.get((execution.workflow_id, execution.function_id))
        if since is None or execution.began_ns <= since:
            continue
        if execution.began_ns - execution.called_ns <= rules.stall_ns:
            late_ms = (execution.began_ns - since) / 1e6
            text = f"function {execution.function_id}: {execution.attempt} began {late_ms:.1f} ms after it was recorded"
            yield Violation("I4", execution.workflow_id, text)


def check_transactions(history: History, rules: Rules) -> Iterator[Violation]:
    recorded = Counter(
        (each.workflow_id, each.function_id, str(each.attempt))
        for each in history.records
        if each.name in rules.transactions
    )
    entered = Counter(history.ledger)
    for workflow_id, function_id, attempt in entered - recorded:
        yield Violation("I6", workflow_id, f"function {function_id}: {attempt} had its effect and is not recorded")
    for workflow_id, function_id, attempt in recorded - entered:
        yield Violation("I6", workflow_id, f"function {function_id}: {attempt} is recorded and had no effect")


# -- I5: what has ended stays so ---------------------------------------------------------------------------------------


def check_that_final_is_final(history: History, rules: Rules) -> Iterator[Violation]:
    resumes: dict[str, list[int]] = defaultdict(list)
    for command in history.commands:
        if command.verb == "resume":
            insort(resumes[command.workflow_id], command.called_us)
    for workflow_id, changes in history.changes_of.items():
        for before, after in pairwise(changes):
            if before.status not in FINAL or (before.status, before.outcome) == (after.status, after.outcome):
                continue
            may_resume = any(each <= after.at_us + TOLERANCE_US for each in resumes[workflow_id])
            if before.status in ("SUCCESS", "ERROR") or after.status != "ENQUEUED" or not may_resume:
                yield Violation("I5", workflow_id, f"went from {before.status} to {after.status}")


# -- and the application ----------------------------------------------------------------------------------------------


def check_that_nobody_was_bothered(history: History, rules: Rules) -> Iterator[Violation]:
    """No failure of the database came through to the application."""
    for text in history.errors:
        yield Violation("H1", "", text)
