"""What is measured, in which unit, and what we want to reach.

Targets are ratios to the peer measured in the same run, or absolute where that says more: what an idle process may
cost, how long a workflow may wait in an idle queue, how much of its speed a queue may lose in a large table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bench.scale import CROWD_STEPS, ROUND_TRIPS_MS, SOAK_PARTS, WORKERS
from bench.workloads import CONCURRENT, STEPS

DATABASES = ("sqlite", "postgresql")
Group = Literal["usual", "scale", "soak"]  # what `make bench`, `make bench-scale` and `make bench-soak` measure
QUEUED = 500  # workflows in a drain at least: who looks once a second does that a few times, not once


@dataclass(frozen=True, slots=True)
class Target:
    """What we want: at least (or at most) ``bound``, times the peer's figure or as it is."""

    bound: float
    kind: Literal["at least", "at most"] = "at least"
    of: Literal["peer", "absolute"] = "peer"
    aim: float | None = None

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.kind == "at least" else value <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.kind == "at least" else "≤"
        return f"{sign} {self.bound:g}{' ×' if self.of == 'peer' else ''}"


@dataclass(frozen=True, slots=True)
class Throughput:
    """Work whose speed is measured, by hand as well unless ``floor_within`` is None."""

    name: str
    title: str
    unit: str
    units_each: int  # how many of them one workflow is
    minimum: int  # workflows in a run, however slow they are
    targets: dict[str, Target]
    floor_within: float | None
    steps_each: int = field(default=STEPS)
    status: str = "SUCCESS"  # of its workflows after a run
    group: Group = "usual"


@dataclass(frozen=True, slots=True)
class Quantity:
    """One figure among those that a worker tells."""

    figure: str
    title: str
    unit: str
    targets: dict[str, Target] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observation:
    """Work whose worker tells the figures itself, of as much as ``counts`` says for each side; others have none."""

    name: str
    workload: str
    quantities: tuple[Quantity, ...]
    counts: dict[str, int]
    queues: int = 0
    databases: tuple[str, ...] = DATABASES
    is_slow: bool = False  # even if there is little of it
    is_ours: bool = False  # whether it is work of bench.scale, which the peer is not measured with
    group: Group = "usual"


def at_most(bound: float) -> Target:
    return Target(bound, "at most", of="absolute")


def on_both(target: Target) -> dict[str, Target]:
    return dict.fromkeys(DATABASES, target)


THROUGHPUTS = (
    Throughput(
        "sequential-workflows",
        "workflows without steps, one after another",
        "workflows/s",
        units_each=1,
        steps_each=0,
        minimum=10,
        targets={"sqlite": Target(4, aim=5), "postgresql": Target(2.5, aim=3)},
        floor_within=2,
    ),
    Throughput(
        "sequential-steps",
        f"workflows of {STEPS} steps, one after another",
        "steps/s",
        units_each=STEPS,
        minimum=5,
        targets={"sqlite": Target(8, aim=10), "postgresql": Target(5, aim=6)},
        floor_within=2,
    ),
    Throughput(
        "threaded-steps",
        f"workflows of {STEPS} steps, all started with start_workflow, then awaited",
        "steps/s",
        units_each=STEPS,
        minimum=CONCURRENT,
        targets={"sqlite": Target(30, aim=45), "postgresql": Target(20, aim=30)},
        floor_within=3,
    ),
    Throughput(
        "async-steps",
        f"workflows of {STEPS} async steps, {CONCURRENT} at a time",
        "steps/s",
        units_each=STEPS,
        minimum=CONCURRENT,
        targets={"sqlite": Target(40, aim=80), "postgresql": Target(40, aim=80)},
        floor_within=3,
    ),
    Throughput(
        "queue-drain",
        f"async workflows of one step through a queue, {CONCURRENT} enqueued at a time, until the last result",
        "workflows/s",
        units_each=1,
        steps_each=1,
        minimum=QUEUED,
        targets=on_both(Target(25)),
        floor_within=3,
    ),
    Throughput(
        "queue-drain-threads",
        "workflows of one step through a queue, enqueued one by one, until the last result",
        "workflows/s",
        units_each=1,
        steps_each=1,
        minimum=QUEUED,
        targets={},
        floor_within=None,
        group="scale",
    ),
    Throughput(
        "enqueue",
        "enqueue one by one, while nobody takes work from the queue",
        "workflows/s",
        units_each=1,
        steps_each=0,
        minimum=CONCURRENT,
        targets={"sqlite": Target(5), "postgresql": Target(3)},
        floor_within=2,
        status="ENQUEUED",
    ),
)

IMPORT = "import"
IMPORT_TARGET = Target(0.5, "at most")
STATEMENTS = "statements_per_second"  # counted by the database, not told by the worker


def latency(title: str, p50_ms: dict[str, Target], p99_ms: dict[str, Target]) -> tuple[Quantity, ...]:
    return Quantity("p50_ms", f"{title}: p50", "ms", p50_ms), Quantity("p99_ms", f"{title}: p99", "ms", p99_ms)


def idleness(title: str) -> tuple[Quantity, ...]:
    return (
        Quantity("cpu_percent", f"{title}: CPU", "% of a core", on_both(at_most(0.5))),
        Quantity("threads", f"{title}: threads", "threads"),
        Quantity(STATEMENTS, f"{title}: statements", "per second", on_both(at_most(3))),
    )


def lateness(key: str, title: str, p99_ms: dict[str, Target]) -> tuple[Quantity, ...]:
    return (
        Quantity(f"{key}_tick_p50_ms", f"schedules, {title}: tick, p50", "ms"),
        Quantity(f"{key}_tick_p99_ms", f"schedules, {title}: tick, p99", "ms", p99_ms),
        Quantity(f"{key}_run_p50_ms", f"schedules, {title}: run, p50", "ms"),
        Quantity(f"{key}_run_p99_ms", f"schedules, {title}: run, p99", "ms"),
    )


OBSERVATIONS = (
    Observation(
        "queue-latency",
        "queue-latency",
        latency("idle queue, same process", on_both(at_most(10)), on_both(at_most(50))),
        counts={"ours": 200, "peer": 8},
    ),
    Observation(
        "queue-latency-apart",
        "queue-latency-apart",
        latency(
            "idle queue, another process",
            {"sqlite": at_most(30), "postgresql": at_most(10)},
            {"sqlite": at_most(100), "postgresql": at_most(50)},
        ),
        counts={"ours": 200, "peer": 8},
        is_slow=True,
    ),
    Observation(
        "recovery",
        "recovery",
        (Quantity("per_second", "recovery after kill -9", "workflows/s", on_both(Target(20))),),
        counts={"ours": 10_000, "peer": 400},
        is_slow=True,
    ),
    Observation("idle", "idle", idleness("an idle process"), counts={"ours": 1, "peer": 1}, is_slow=True),
    Observation(
        "idle-queues", "idle", idleness("idle, 200 queues"), counts={"ours": 1, "peer": 1}, queues=200, is_slow=True
    ),
    Observation(
        "schedules",
        "schedules",
        (
            *lateness("spread", "spread over a minute", on_both(at_most(100))),
            *lateness("instant", "all at one instant", on_both(at_most(3000))),
            Quantity("memory_mb", "schedules: memory", "MB", on_both(at_most(100))),
            Quantity("threads", "schedules: threads", "threads"),
        ),
        counts={"ours": 10_000, "peer": 200},
        group="scale",
    ),
    Observation(
        "workers",
        "workers",
        tuple(
            quantity
            for kind, title in (("empty", "which do nothing"), ("waiting", "which wait 50 ms, 50 at a time"))
            for number in WORKERS
            for quantity in (
                Quantity(f"{kind}_{number}", f"{number} processes drain workflows {title}", "workflows/s"),
                Quantity(f"{kind}_{number}_busy", "the machine is busy with that", "% of its cores"),
            )
        ),
        counts={"ours": 5_000},
        databases=("postgresql",),
        is_ours=True,
        group="scale",
    ),
    Observation(
        "crowd",
        "crowd",
        (
            Quantity("per_second", f"1000 workflows of {CROWD_STEPS} steps at a time", "steps/s"),
            Quantity("memory_mb", "they need at most", "MB"),
            Quantity("late_p99_ms", "others wait for their event loop: p99", "ms"),
            Quantity("threads", "threads meanwhile", "threads"),
        ),
        counts={"ours": 1000},
        is_ours=True,
        group="scale",
    ),
    Observation(
        "payloads",
        "payloads",
        (
            Quantity("large_ms", "a workflow that has 10 MB three times", "ms"),
            Quantity("memory_mb", "it needs at most", "MB"),
            Quantity("small_alone_p50_ms", "a small workflow: p50", "ms"),
            Quantity("small_beside_p50_ms", "a small workflow beside large ones: p50", "ms"),
            Quantity("small_beside_p99_ms", "a small workflow beside large ones: p99", "ms"),
        ),
        counts={"ours": 20},
        is_ours=True,
        group="scale",
    ),
    Observation(
        "network",
        "network",
        tuple(
            Quantity(f"{figure}_{number}", f"{trip_ms:g} ms away: {title}", unit)
            for number, trip_ms in enumerate(ROUND_TRIPS_MS)
            for figure, title, unit in (
                ("trip", "a round trip", "ms"),
                ("step_ms", "a step", "ms"),
                ("workflow_ms", "a workflow without steps", "ms"),
                ("async_rate", "100 coroutine workflows at a time", "steps/s"),
                ("async_ours_us", "a step of them takes of our process", "µs"),
                ("async_server_us", "and of the server", "µs"),
                ("queue_rate", "100 workflows at a time through a queue", "workflows/s"),
                ("queue_ours_us", "a workflow of them takes of our process", "µs"),
                ("queue_server_us", "and of the server", "µs"),
            )
        ),
        counts={"ours": 300},
        databases=("postgresql",),
        is_ours=True,
        group="scale",
    ),
    Observation(
        "soak",
        "soak",
        tuple(
            Quantity(f"{figure}_{part}", f"{title} after {part * 100 // SOAK_PARTS} %", unit)
            for figure, title, unit in (
                ("rate", "throughput", "workflows/s"),
                ("memory", "memory", "MB"),
                ("threads", "threads", "threads"),
                ("descriptors", "descriptors", "descriptors"),
            )
            for part in range(1, SOAK_PARTS + 1)
        ),
        counts={"ours": 1_000_000},
        is_ours=True,
        group="soak",
    ),
)

SCALE = "drain-million"
SCALE_OF = "queue-drain"
SCALE_TARGET = Target(0.9, of="absolute")

GROUPS: dict[str, Group] = {
    **{throughput.name: throughput.group for throughput in THROUGHPUTS},
    IMPORT: "usual",
    **{seen.name: seen.group for seen in OBSERVATIONS},
    SCALE: "scale",
}
"""Every benchmark, and when it is measured without being asked for."""

SLOW = frozenset(seen.name for seen in OBSERVATIONS if seen.is_slow)
