"""The work that is measured: one script for both libraries, run by the interpreter that has the one or the other.

It uses only what both offer, and nothing of this package, because the peer's interpreter must not find our ``dbos``.
Its argument is a job as JSON (see :func:`measure`); its last line of output is the result as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from dbos import DBOS

STEPS = 10  # in each workflow that has any
CONCURRENT = 100  # workflows at a time on the event loop
SETTLE_S = 3.0  # what a launch does once is over by then

Job = dict[str, Any]
Figures = dict[str, float]


@DBOS.step()
def step(value: int) -> int:
    return value + 1


@DBOS.workflow()
def without_steps(value: int) -> int:
    return value


@DBOS.workflow()
def with_steps(value: int) -> int:
    for _ in range(STEPS):
        value = step(value)
    return value


@DBOS.step()
async def step_async(value: int) -> int:
    return value + 1


@DBOS.workflow()
async def with_steps_async(value: int) -> int:
    for _ in range(STEPS):
        value = await step_async(value)
    return value


def sequential_workflows(count: int) -> None:
    for number in range(count):
        check(without_steps(number), number)


def sequential_steps(count: int) -> None:
    for number in range(count):
        check(with_steps(number), number + STEPS)


def threaded_steps(count: int) -> None:
    handles = [DBOS.start_workflow(with_steps, number) for number in range(count)]
    for number, handle in enumerate(handles):
        check(handle.get_result(), number + STEPS)


async def async_steps(count: int) -> None:
    numbers = iter(range(count))

    async def take(numbers: Iterator[int]) -> None:
        for number in numbers:
            check(await with_steps_async(number), number + STEPS)

    await asyncio.gather(*(take(numbers) for _ in range(CONCURRENT)))


def check(result: int, expected: int) -> None:
    if result != expected:
        raise RuntimeError(f"a workflow returned {result} instead of {expected}")


def measure(work: Callable[[int], object], job: Job) -> Figures:
    """Do the work ``job["count"]`` times after a warm-up, and tell how long that took.

    Without a count, find the one that takes about ``job["seconds"]``: the work is done in growing numbers until that
    takes a quarter of it.
    """
    count: int | None = job.get("count")
    if count is None:
        count = job["minimum"]
        while (elapsed := time_of(work, count)[0]) < job["seconds"] / 4:
            count = count * 2
        return {"count": max(job["minimum"], round(count * job["seconds"] / elapsed))}
    warm_up: int = job["warm_up"]
    work(warm_up)
    elapsed, cpu = time_of(work, count)
    return {"seconds": elapsed, "cpu_seconds": cpu, "count": count}


def time_of(work: Callable[[int], object], count: int) -> tuple[float, float]:
    began, cpu_began = time.perf_counter(), time.process_time()
    work(count)
    return time.perf_counter() - began, time.process_time() - cpu_began


def idle(job: Job) -> Figures:
    """Do nothing for a while; tell what that cost this process."""
    time.sleep(SETTLE_S)
    from_s, began, cpu_began = time.time(), time.perf_counter(), time.process_time()
    time.sleep(job["seconds"])
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return {
        "seconds": elapsed,
        "cpu_percent": cpu / elapsed * 100,
        "threads": threading.active_count(),
        "from_s": from_s,
        "until_s": time.time(),
    }


SEQUENTIAL: dict[str, Callable[[int], object]] = {
    "sequential-workflows": sequential_workflows,
    "sequential-steps": sequential_steps,
    "threaded-steps": threaded_steps,
}


def configure(url: str) -> None:
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "application_version": "bench",
            "log_level": "WARNING",
        }
    )


def main() -> None:
    job: Job = json.loads(sys.argv[1])
    configure(job["url"])
    DBOS.launch()
    if job["workload"] == "idle":
        figures = idle(job)
    elif job["workload"] == "async-steps":
        with asyncio.Runner() as runner:
            figures = measure(lambda count: runner.run(async_steps(count)), job)
    else:
        figures = measure(SEQUENTIAL[job["workload"]], job)
    DBOS.destroy()
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
