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
    IMPORT,
    IMPORT_TARGET,
    OBSERVATIONS,
    SCALE,
    SCALE_OF,
    SCALE_TARGET,
    STATEMENTS,
    THROUGHPUTS,
    Observation,
    Target,
    Throughput,
)
from bench.databases import Engine
from bench.sides import Side, WorkerError

WARM_UP_SHARE = 0.1  # of a run's count, done before the clock starts
LEAST_WARM_UP = 20  # workflows, unless a run has fewer


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    repeats: int
    run_s: float  # how long a run of a throughput takes
    idle_s: float
    imports: int
    finished: int  # workflows in the table that is large
    share: float = 1.0  # of the counts in the catalogue
    is_rough: bool = False  # whether a run finds its count itself, and is as short as that leaves it


FULL = Plan(repeats=3, run_s=1.2, idle_s=10.0, imports=11, finished=1_000_000)
QUICK = Plan(repeats=1, run_s=0.1, idle_s=2.0, imports=3, finished=20_000, share=0.05, is_rough=True)

_THROUGHPUTS = {throughput.name: throughput for throughput in THROUGHPUTS}


@dataclass(slots=True)
class Row:
    """The figures of all sides for one quantity, in the order in which they were taken."""

    benchmark: str
    title: str
    unit: str
    database: str | None
    target: Target | None
    floor_within: float | None = None
    figures: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)  # of the worker process, for one unit

    def median(self, side: str) -> float | None:
        figures = self.figures.get(side)
        return statistics.median(figures) if figures else None

    @property
    def label(self) -> str:
        """What it is called where there is little room."""
        return self.benchmark if self.benchmark in _THROUGHPUTS else self.title

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
    plan: Plan,
    benchmarks: Sequence[str],
    engines: Sequence[Engine],
    libraries: Sequence[Side],
    floor: Side,
    scale: Side,
) -> Iterator[list[Row]]:
    """Measure; yields the rows of one benchmark after another."""
    for throughput in THROUGHPUTS:
        if throughput.name in benchmarks:
            for engine in engines:
                sides = libraries if throughput.floor_within is None else [*libraries, floor]
                yield [measure_throughput(plan, throughput, engine, sides)]
    if IMPORT in benchmarks:
        yield [measure_import(plan, libraries)]
    for observation in OBSERVATIONS:
        if observation.name in benchmarks:
            for engine in engines:
                if engine.name in observation.databases:
                    yield observe(plan, observation, engine, [scale] if observation.is_ours else libraries)
    if SCALE in benchmarks:
        for engine in engines:
            yield measure_scale(plan, engine, libraries[0])


def measure_throughput(plan: Plan, throughput: Throughput, engine: Engine, sides: Sequence[Side]) -> Row:
    row = Row(
        throughput.name,
        throughput.title,
        throughput.unit,
        engine.name,
        throughput.targets.get(engine.name),
        throughput.floor_within,
    )
    job = _job(plan, throughput)
    counts: dict[Side, int | None] = dict.fromkeys(sides)
    for turn in range(0 if plan.is_rough else -1, plan.repeats):  # the first turn finds each side's count
        for side in sides:
            if side not in counts:
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
    throughput: Throughput,
    engine: Engine,
    side: Side,
    job: dict[str, Any],
    count: int | None,
    before: tuple[int, int] = (0, 0),
) -> tuple[float, float]:
    """Units a second, and microseconds of processor time a unit; ``before`` is what the database has already."""
    if count is not None:
        job = job | {"count": count, "warm_up": max(min(job["minimum"], LEAST_WARM_UP), round(count * WARM_UP_SHARE))}
    figures = side.run(job | {"is_measured": True})
    done = figures["done"]
    expected = (before[0] + done, before[1] + done * throughput.steps_each)
    found = engine.rows(job["url"], throughput.status)
    if found != expected:
        raise WorkerError(f"{side.name} left {found} finished workflows and steps instead of {expected}")
    units = figures["count"] * throughput.units_each
    return units / figures["seconds"], figures["cpu_seconds"] / units * 1e6


def measure_import(plan: Plan, libraries: Sequence[Side]) -> Row:
    row = Row(IMPORT, "import dbos", "ms", None, IMPORT_TARGET)
    for turn in range(-1, plan.imports):  # the first writes bytecode and fills the file cache
        for side in libraries:
            say(f"import: {side.name}")
            milliseconds = side.import_s() * 1000
            if turn >= 0:
                row.figures.setdefault(side.name, []).append(milliseconds)
    return row


def observe(plan: Plan, observation: Observation, engine: Engine, libraries: Sequence[Side]) -> list[Row]:
    """What the workers tell of one observation; fewer turns than for a throughput, because each takes longer."""
    name = observation.name
    rows = {
        quantity.figure: Row(
            name,
            quantity.title,
            quantity.unit,
            engine.name,
            quantity.targets.get(engine.name),
        )
        for quantity in observation.quantities
    }
    job = {"workload": observation.workload, "seconds": plan.idle_s, "queues": observation.queues}
    for turn in range(max(1, plan.repeats // 2)):
        for side in libraries:
            say(f"{name} on {engine.name}: {side.name}, run {turn + 1}")
            count = max(1, round(observation.counts[side.name] * plan.share))
            with engine.fresh() as url:
                if STATEMENTS in rows:
                    engine.count_statements(url)
                try:
                    figures = side.run(job | {"url": url, "count": count})
                except WorkerError as error:
                    say(f"{name} on {engine.name} FAILED: {error}", is_news=True)
                    continue
                if STATEMENTS in rows:
                    statements = engine.statements(url, figures["from_s"], figures["until_s"])
                    if statements is not None:
                        figures[STATEMENTS] = statements / figures["seconds"]
            for figure, row in rows.items():
                if figure in figures:
                    row.figures.setdefault(side.name, []).append(figures[figure])
    return [row for row in rows.values() if row.figures]


def measure_scale(plan: Plan, engine: Engine, side: Side) -> list[Row]:
    """The speed of a queue beside many finished workflows, and in a database of its own, turn by turn."""
    drain = _THROUGHPUTS[SCALE_OF]
    much = f"{plan.finished:,} finished".replace(",", " ")
    empty, full, share = (
        Row(SCALE, f"{drain.name}: {title}", unit, engine.name, target)
        for title, unit, target in (
            ("empty table", drain.unit, None),
            (much, drain.unit, None),
            (f"{much} / empty", "×", SCALE_TARGET),
        )
    )
    job = _job(plan, drain)
    with engine.fresh() as url_empty, engine.fresh() as url_full:
        try:
            counts = [side.run(job | {"url": url})["count"] for url in (url_empty, url_full)]
            say(f"{SCALE} on {engine.name}: filling", is_news=True)
            engine.fill(url_full, plan.finished)
            for turn in range(plan.repeats):
                for row, url in ((empty, url_empty), (full, url_full)):
                    say(f"{row.title} on {engine.name}, run {turn + 1}")
                    before = engine.rows(url, drain.status)
                    rate, cpu_us = _one_run(drain, engine, side, job | {"url": url}, counts[0], before)
                    row.figures.setdefault(side.name, []).append(rate)
                    row.cpu_us.setdefault(side.name, []).append(cpu_us)
                share.figures.setdefault(side.name, []).append(
                    full.figures[side.name][-1] / empty.figures[side.name][-1]
                )
        except WorkerError as error:
            say(f"{SCALE} on {engine.name} FAILED: {error}", is_news=True)
    return [row for row in (empty, full, share) if row.figures]


def _job(plan: Plan, throughput: Throughput) -> dict[str, Any]:
    minimum = max(1, round(throughput.minimum * plan.share))
    return {"workload": throughput.name, "seconds": plan.run_s, "minimum": minimum}


def say(text: str, *, is_news: bool = False) -> None:
    """Tell how far we are, on a terminal; news go to logs as well."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="\n" if is_news else "", file=sys.stderr, flush=True)
    elif is_news:
        print(text, file=sys.stderr, flush=True)
