"""Who runs when. The sides take turns (ours, peer, floor, ours, peer, floor …), so that a slow minute of the machine
hits all of them; each run is a fresh process on a fresh database, and is checked: the rows must be there.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.catalogue import (
    IDLE,
    IDLE_CPU_TARGET,
    IDLE_QUERIES_TARGET,
    IMPORT,
    IMPORT_TARGET,
    THROUGHPUTS,
    Target,
    Throughput,
)
from bench.databases import Engine
from bench.sides import Side, WorkerError

WARM_UP_SHARE = 0.1  # of a run's count, done before the clock starts


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    repeats: int
    run_s: float  # how long a run of a throughput takes
    idle_s: float
    imports: int


FULL = Plan(repeats=9, run_s=1.5, idle_s=20.0, imports=11)
QUICK = Plan(repeats=2, run_s=1.0, idle_s=5.0, imports=5)


@dataclass(slots=True)
class Row:
    """The figures of all sides for one quantity, in the order in which they were taken."""

    benchmark: str
    title: str
    unit: str
    database: str | None
    target: Target | None
    floor_within: float | None = None
    higher_is_better: bool = True
    figures: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)  # of the worker process, for one unit

    def median(self, side: str) -> float | None:
        figures = self.figures.get(side)
        return statistics.median(figures) if figures else None

    @property
    def ratio(self) -> float | None:
        """Ours to the peer's."""
        return self._ratio("ours", "peer")

    @property
    def floor_ratio(self) -> float | None:
        """How many times slower ours is than the same by hand."""
        return self._ratio("floor", "ours")

    def _ratio(self, above: str, below: str) -> float | None:
        """The median of the turns' ratios: what a turn compares was measured within seconds."""
        ratios = [a / b for a, b in zip(self.figures.get(above, ()), self.figures.get(below, ()), strict=False) if b]
        return statistics.median(ratios) if ratios else None

    @property
    def is_target_met(self) -> bool | None:
        if self.target is None:
            return None
        value = self.ratio if self.target.of == "peer" else self.median("ours")
        return None if value is None else self.target.is_met(value)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "target": None if self.target is None else str(self.target),
            "medians": {side: self.median(side) for side in self.figures},
            "ratio": self.ratio,
            "floor_ratio": self.floor_ratio,
        }


def run(
    plan: Plan, benchmarks: Sequence[str], engines: Sequence[Engine], libraries: Sequence[Side], floor: Side
) -> Iterator[list[Row]]:
    """Measure; yields the rows of one benchmark after another."""
    for throughput in THROUGHPUTS:
        if throughput.name in benchmarks:
            for engine in engines:
                yield [measure_throughput(plan, throughput, engine, [*libraries, floor])]
    if IMPORT in benchmarks:
        yield [measure_import(plan, libraries)]
    if IDLE in benchmarks:
        for engine in engines:
            yield measure_idle(plan, engine, libraries)


def measure_throughput(plan: Plan, throughput: Throughput, engine: Engine, sides: Sequence[Side]) -> Row:
    row = Row(
        throughput.name,
        throughput.title,
        throughput.unit,
        engine.name,
        throughput.targets.get(engine.name),
        throughput.floor_within,
    )
    job = {"workload": throughput.name, "seconds": plan.run_s, "minimum": throughput.minimum}
    counts: dict[Side, int] = {}
    for turn in range(-1, plan.repeats):  # the first turn finds each side's count
        for side in sides:
            if turn >= 0 and side not in counts:
                continue
            say(f"{throughput.name} on {engine.name}: {side.name}, {f'run {turn + 1}' if turn >= 0 else 'warm-up'}")
            with engine.fresh() as url:
                try:
                    if turn < 0:
                        counts[side] = side.run(job | {"url": url})["count"]
                        continue
                    rate, cpu_us = _one_run(throughput, engine, side, job | {"url": url}, counts[side])
                    row.figures.setdefault(side.name, []).append(rate)
                    row.cpu_us.setdefault(side.name, []).append(cpu_us)
                except WorkerError as error:
                    counts.pop(side, None)
                    row.figures.pop(side.name, None)
                    row.cpu_us.pop(side.name, None)
                    say(f"{throughput.name} on {engine.name} FAILED: {error}", is_news=True)
    return row


def _one_run(
    throughput: Throughput, engine: Engine, side: Side, job: dict[str, Any], count: int
) -> tuple[float, float]:
    """Units a second, and microseconds of processor time a unit."""
    warm_up = max(throughput.minimum, round(count * WARM_UP_SHARE))
    figures = side.run(job | {"count": count, "warm_up": warm_up})
    done = count + warm_up
    expected = (done, done * throughput.steps_each)
    found = engine.rows(job["url"])
    if found != expected:
        raise WorkerError(f"{side.name} left {found} finished workflows and steps instead of {expected}")
    units = count * throughput.units_each
    return units / figures["seconds"], figures["cpu_seconds"] / units * 1e6


def measure_import(plan: Plan, libraries: Sequence[Side]) -> Row:
    row = Row(IMPORT, "import dbos", "ms", None, IMPORT_TARGET, higher_is_better=False)
    for turn in range(-1, plan.imports):  # the first writes bytecode and fills the file cache
        for side in libraries:
            say(f"import: {side.name}")
            milliseconds = side.import_s() * 1000
            if turn >= 0:
                row.figures.setdefault(side.name, []).append(milliseconds)
    return row


def measure_idle(plan: Plan, engine: Engine, libraries: Sequence[Side]) -> list[Row]:
    cpu = Row(IDLE, "an idle process: CPU", "% of a core", engine.name, IDLE_CPU_TARGET, higher_is_better=False)
    threads = Row(IDLE, "an idle process: threads", "threads", engine.name, None, higher_is_better=False)
    queries = Row(
        IDLE, "an idle process: statements", "per second", engine.name, IDLE_QUERIES_TARGET, higher_is_better=False
    )
    for _ in range(max(1, plan.repeats // 2)):
        for side in libraries:
            say(f"idle on {engine.name}: {side.name}")
            with engine.fresh() as url:
                engine.count_statements(url)
                try:
                    figures = side.run({"workload": "idle", "url": url, "seconds": plan.idle_s})
                except WorkerError as error:
                    say(f"idle on {engine.name} FAILED: {error}", is_news=True)
                    continue
                statements = engine.statements(url, figures["from_s"], figures["until_s"])
            cpu.figures.setdefault(side.name, []).append(figures["cpu_percent"])
            threads.figures.setdefault(side.name, []).append(figures["threads"])
            if statements is not None:
                queries.figures.setdefault(side.name, []).append(statements / figures["seconds"])
    return [row for row in (cpu, threads, queries) if row.figures]


def say(text: str, *, is_news: bool = False) -> None:
    """Tell how far we are, on a terminal; news go to logs as well."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="\n" if is_news else "", file=sys.stderr, flush=True)
    elif is_news:
        print(text, file=sys.stderr, flush=True)
