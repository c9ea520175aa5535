"""Judges whether the limits of queues held (I7): how much ran at once, how much began when, and in which order.

What counts is what had a valid run token at that moment: an executor that is paused or dead counts until its work is
taken from it, and no longer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.chaos.history import FINAL, Body, Change, Claim, History, Submission
from tests.chaos.rules import TOLERANCE_US, QueueRule, Rules, Violation

__all__ = [
    "check_bodies_at_once",
    "check_concurrency",
    "check_deduplication",
    "check_delays",
    "check_order",
    "check_rates",
    "check_that_bodies_were_claimed",
    "fullest",
]

DELAY_TOLERANCE_US = 100_000  # what a process knows of the database's time, it learns over a busy connection
COMMIT_US = 1_000_000  # so long after its statement a change is visible to everybody, if nobody was told when
REAL_RATE_TOLERANCE_US = 150_000  # a claim is stamped when it begins, and may have to wait for its turn


def check_that_bodies_were_claimed(history: History, rules: Rules) -> Iterator[Violation]:
    """A process executes a workflow at most as often as it had it."""
    counted: Counter[tuple[str, int]] = Counter()
    for body in sorted(history.bodies, key=lambda body: body.began_us):
        counted[body.workflow_id, body.pid] += 1
        had = sum(
            history.instances.get(claim.owner or "") == body.pid and claim.began.at_us <= body.began_us + TOLERANCE_US
            for claim in history.claims_of.get(body.workflow_id, [])
        )
        if counted[body.workflow_id, body.pid] > had:
            times = counted[body.workflow_id, body.pid]
            yield Violation(
                "I7", body.workflow_id, f"process {body.pid} had it {had} times and executes it {times} times"
            )


def check_concurrency(history: History, rules: Rules) -> Iterator[Violation]:
    """By the database: how many rows are PENDING at once. A claim under way is ordered after those it has counted."""
    for rule, key, count, workflow_id in _running(history, rules):
        if rule.concurrency is not None and count > rule.concurrency:
            yield Violation("I7", workflow_id, f"is number {count} at once in {key}: {rule.concurrency}")


def fullest(history: History, rules: Rules) -> dict[str, int]:
    """The most that each queue, or any partition of it, had running at once."""
    most: dict[str, int] = dict.fromkeys(rules.queues, 0)
    for rule, _, count, _ in _running(history, rules):
        most[rule.name] = max(most[rule.name], count)
    return most


def _running(history: History, rules: Rules) -> Iterator[tuple[QueueRule, tuple[str, str | None], int, str]]:
    """At each claim, how many run in its queue or partition."""
    counts: Counter[tuple[str, str | None]] = Counter()
    events = sorted(
        [(claim.began.sequence, 1, claim) for claim in history.claims]
        + [(claim.ended.sequence, -1, claim) for claim in history.claims if claim.ended is not None],
        key=lambda event: event[:2],
    )
    for _, step, claim in events:
        rule = rules.queues.get(claim.queue or "")
        if rule is None:
            continue
        key = (rule.name, claim.partition if rule.is_partitioned else None)
        counts[key] += step
        if step > 0:
            yield rule, key, counts[key], claim.workflow_id


def check_bodies_at_once(history: History, rules: Rules) -> Iterator[Violation]:
    """By the logs: how many bodies run at once whose token is valid; in all processes, and in each."""
    anywhere: dict[tuple[Any, ...], list[tuple[int, int, str]]] = defaultdict(list)
    limits: dict[tuple[Any, ...], int] = {}
    for body in history.bodies:
        claim = _claim_of(history, body)
        rule = rules.queues.get("" if claim is None else claim.queue or "")
        if claim is None or rule is None:
            continue
        until_us = min(
            body.ended_us if body.ended_us is not None else body.began_us if claim.ended is None else claim.ended.at_us,
            claim.ended.at_us if claim.ended is not None else body.ended_us or body.began_us,
        )
        span = (body.began_us + TOLERANCE_US, until_us - TOLERANCE_US, body.workflow_id)
        partition = claim.partition if rule.is_partitioned else None
        for limit, key in (
            (rule.concurrency, (rule.name, partition)),
            (rule.worker_concurrency, (rule.name, partition, body.pid)),
        ):
            if limit is not None and span[0] < span[1]:
                limits[key] = limit
                anywhere[key].append(span)
    for key, spans in anywhere.items():
        for count, workflow_id in _overlaps(spans):
            if count > limits[key]:
                yield Violation("I7", workflow_id, f"is body number {count} at once in {key}: {limits[key]}")


def _claim_of(history: History, body: Body) -> Claim | None:
    """The last claim that its process had when it began."""
    found = None
    for claim in history.claims_of.get(body.workflow_id, []):
        if claim.began.at_us <= body.began_us + TOLERANCE_US and history.instances.get(claim.owner or "") == body.pid:
            found = claim
    return found


def _overlaps(spans: Iterable[tuple[int, int, str]]) -> Iterator[tuple[int, str]]:
    events = sorted(event for began, ended, name in spans for event in ((began, 1, name), (ended, -1, name)))
    count = 0
    for _, step, workflow_id in events:
        count += step
        if step > 0:
            yield count, workflow_id


def check_rates(history: History, rules: Rules) -> Iterator[Violation]:
    """Starts within any period: by their stamps, exactly; and by when they were really made, nearly."""
    starts: dict[tuple[str, str | None], list[Claim]] = defaultdict(list)
    for claim in history.claims:
        rule = rules.queues.get(claim.queue or "")
        if rule is not None and rule.limit is not None:
            starts[rule.name, claim.partition if rule.is_partitioned else None].append(claim)
    for key, claims in starts.items():
        rule = rules.queues[key[0]]
        assert rule.limit is not None
        period_us = round(rule.period_s * 1e6)
        stamped = [((claim.began.started_ms or 0) * 1000, claim.workflow_id) for claim in claims]
        made = [(claim.began.at_us, claim.workflow_id) for claim in claims]
        for what, times, tolerance_us in (("stamped", stamped, 0), ("made", made, REAL_RATE_TOLERANCE_US)):
            times.sort()
            for (first_us, _), (over_us, workflow_id) in zip(times, times[rule.limit :], strict=False):
                apart_us = over_us - first_us
                if apart_us < period_us - tolerance_us:
                    text = f"{rule.limit + 1} starts {what} within {apart_us / 1000:.0f} ms in {key}"
                    yield Violation("I7", workflow_id, text)


def check_order(history: History, rules: Rules) -> Iterator[Violation]:
    """Where one runs at a time: nothing begins before what was visibly waiting, and comes first."""
    waiting: dict[str, dict[str, Change]] = {rule.name: {} for rule in rules.queues.values() if rule.is_in_order}
    previous: dict[str, Change] = {}
    for change in sorted(history.changes):
        before = previous.get(change.workflow_id)
        previous[change.workflow_id] = change
        if before is not None and before.queue in waiting:
            waiting[before.queue].pop(change.workflow_id, None)
        if change.queue not in waiting:
            continue
        if change.status == "ENQUEUED":
            waiting[change.queue][change.workflow_id] = change
        elif change.status == "PENDING" and (before is None or before.status != "PENDING"):
            for other in waiting[change.queue].values():
                if _is_passed_over(history, rules, other, change):
                    yield Violation("I7", change.workflow_id, f"began before {other.workflow_id} in {change.queue}")


def _is_passed_over(history: History, rules: Rules, other: Change, claimed: Change) -> bool:
    theirs, ours = history.submissions.get(other.workflow_id), history.submissions.get(claimed.workflow_id)
    if theirs is None or ours is None or rules.ends.get(theirs.kind) == "ENQUEUED":
        return False
    is_first = theirs.acked_us is not None and theirs.acked_us < ours.called_us
    if other.priority > claimed.priority or (other.priority == claimed.priority and not is_first):
        return False
    changes = history.changes_of[other.workflow_id]
    is_new = other is changes[0]
    visible_us = theirs.acked_us if is_new and theirs.acked_us is not None else other.at_us + COMMIT_US
    if visible_us >= claimed.statement_us:
        return False
    following = next((each for each in changes if each.sequence > claimed.sequence), None)
    # A row that somebody is changing is passed over rather than waited for.
    is_locked = following is not None and following.status != "PENDING" and following.at_us < claimed.at_us + COMMIT_US
    return not is_locked


def check_deduplication(history: History, rules: Rules) -> Iterator[Violation]:
    """Of each de-duplication id there is one holder at a time, and nobody is rejected without one."""
    holders: dict[tuple[str, str], str] = {}
    spans: dict[tuple[str, str], list[tuple[int, int | None, str]]] = defaultdict(list)
    held: dict[str, tuple[str, str]] = {}
    for change in sorted(history.changes):
        key = None
        if change.dedup is not None and change.queue is not None and change.status not in FINAL:
            key = (change.queue, change.dedup)
        former = held.pop(change.workflow_id, None)
        if former is not None and former != key:
            del holders[former]
            began_us, _, workflow_id = spans[former].pop()
            spans[former].append((began_us, change.at_us, workflow_id))
        if key is None:
            continue
        if former != key:
            if key in holders:
                yield Violation("I7", change.workflow_id, f"holds {key} together with {holders[key]}")
                continue
            spans[key].append((change.at_us, None, change.workflow_id))
        held[change.workflow_id], holders[key] = key, change.workflow_id
    for submission in history.submissions.values():
        if submission.rejected_us is not None and not _was_held(spans, submission):
            yield Violation("I7", submission.workflow_id, f"was rejected though nobody held {submission.dedup}")


def _was_held(spans: Mapping[tuple[str, str], list[tuple[int, int | None, str]]], rejected: Submission) -> bool:
    assert rejected.rejected_us is not None
    return any(
        began_us <= rejected.rejected_us + TOLERANCE_US
        and (ended_us is None or ended_us + COMMIT_US >= rejected.called_us)
        and workflow_id != rejected.workflow_id
        for began_us, ended_us, workflow_id in spans.get((rejected.queue or "", rejected.dedup or ""), [])
    )


def check_delays(history: History, rules: Rules) -> Iterator[Violation]:
    for workflow_id, submission in history.submissions.items():
        claims = history.claims_of.get(workflow_id, [])
        was_resumed = any(each.verb == "resume" and each.workflow_id == workflow_id for each in history.commands)
        due_us = submission.called_us + round(submission.delay_s * 1e6) - DELAY_TOLERANCE_US
        if submission.delay_s and claims and not was_resumed and claims[0].began.at_us < due_us:
            early_ms = (due_us - claims[0].began.at_us) / 1000
            yield Violation("I7", workflow_id, f"began {early_ms:.0f} ms before its delay was over")
