"""What a campaign asks for: its queues, its workflows in the order of their submission, and what they promise."""

from __future__ import annotations

import random
from typing import NamedTuple

from tests.chaos.rules import QueueRule, Rules

__all__ = ["CANCELLABLE", "QUEUES", "Task", "plan", "rules"]

QUEUES = {
    rule.name: rule
    for rule in (
        QueueRule(name="free"),
        QueueRule(name="narrow", concurrency=4),
        QueueRule(name="each", worker_concurrency=3),
        QueueRule(name="both", concurrency=5, worker_concurrency=2),
        QueueRule(name="rated", limit=4, period_s=0.5),
        QueueRule(name="split", concurrency=2, is_partitioned=True),
        QueueRule(name="line", concurrency=1, has_priorities=True),
        QueueRule(name="once", concurrency=8),
    )
}

KINDS = {"brief": 4, "order": 4, "gathering": 4, "family": 2, "raises": 1}
# How much of the work goes where; None is started by the driver itself.
PLACES: dict[str | None, int] = {
    None: 4,
    "free": 5,
    "narrow": 2,
    "each": 2,
    "both": 2,
    "rated": 2,
    "split": 3,
    "line": 1,
    "once": 1,
}
CANCELLABLE = frozenset({"brief", "order", "gathering"})


class Task(NamedTuple):
    """One workflow to be submitted."""

    workflow_id: str
    kind: str
    number: int
    queue: str | None
    priority: int = 0
    partition: str | None = None
    dedup: str | None = None
    delay_s: float = 0.0
    timeout_s: float | None = None


def plan(seed: int, count: int) -> list[Task]:
    """The workflows of a campaign; the same for the same seed."""
    chance = random.Random(seed)
    return [_task(chance, number) for number in range(count)]


def _task(chance: random.Random, number: int) -> Task:
    workflow_id = f"w{number:05}"
    trouble = chance.random()
    if trouble < 0.01:
        return Task(workflow_id, "missing", number, chance.choice(["free", "narrow", "line"]))
    if trouble < 0.02:
        return Task(workflow_id, "undecodable", number, chance.choice(["free", "narrow", "line"]))
    if trouble < 0.03:
        return Task(workflow_id, "overdue", number, chance.choice([None, "free"]), timeout_s=0.2)
    [queue] = chance.choices(list(PLACES), list(PLACES.values()))
    [kind] = chance.choices(list(KINDS), list(KINDS.values()))
    if queue in ("line", "once", "rated"):
        kind = "brief"
    return Task(
        workflow_id,
        kind,
        number,
        queue,
        priority=chance.choice([0, 1, 2]) if queue == "line" else 0,
        partition=f"p{min(chance.randrange(5), chance.randrange(5))}" if queue == "split" else None,
        dedup=f"d{chance.randrange(6)}" if queue == "once" else None,
        delay_s=round(chance.uniform(0.05, 1.0), 3) if queue == "free" and chance.random() < 0.2 else 0.0,
    )


def rules(lease_s: float) -> Rules:
    """What the checker holds a campaign to."""
    return Rules(
        queues=QUEUES,
        ends={"raises": "ERROR", "undecodable": "ERROR", "overdue": "CANCELLED", "missing": "ENQUEUED"},
        parents=frozenset({"family"}),
        steps=frozenset({"step", "step_async", "enter"}),
        transactions=frozenset({"enter"}),
        stall_ns=round(lease_s / 3 * 1e9),
    )
