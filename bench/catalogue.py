"""What is measured, in which unit, and what we want to reach.

Targets are ratios to the peer measured in the same run, except for what an idle process may cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bench.workloads import CONCURRENT, STEPS

DATABASES = ("sqlite", "postgresql")


@dataclass(frozen=True, slots=True)
class Target:
    """What we want: at least (or at most) ``bound``; ``floor`` is how many times slower than by hand we may be."""

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
    """Work whose speed is measured, by hand as well."""

    name: str
    title: str
    unit: str
    units_each: int  # how many of them one workflow is
    minimum: int  # workflows in a run, however slow they are
    targets: dict[str, Target]
    floor_within: float
    steps_each: int = field(default=STEPS)


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
        minimum=2 * CONCURRENT,
        targets={"sqlite": Target(40, aim=80), "postgresql": Target(40, aim=80)},
        floor_within=3,
    ),
)

IMPORT = "import"
IMPORT_TARGET = Target(0.5, "at most")
IDLE = "idle"
IDLE_CPU_TARGET = Target(0.5, "at most", of="absolute")
IDLE_QUERIES_TARGET = Target(3, "at most", of="absolute")

NAMES = (*(throughput.name for throughput in THROUGHPUTS), IMPORT, IDLE)
