"""The work that is measured: one script for both libraries, run by the interpreter that has the one or the other.

It uses only what both offer, and nothing of this package, because the peer's interpreter must not find our ``dbos``.
Its argument is a job as JSON, whose ``workload`` is one of :data:`JOBS`; its last line of output is the result as JSON.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from dbos import DBOS, SetWorkflowID

STEPS = 10  # in each workflow that has any
CONCURRENT = 100  # workflows at a time on the event loop
SETTLE_S = 3.0  # what a launch does once is over by then
IDLE_S = 0.05  # a queue without work for that long is idle
QUEUE = "bench"
COMMAND = (sys.executable, "-P", __file__)
RECOVERY_PATIENCE_S = 240.0
SCHEDULE_PATIENCE_S = 180.0

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


@DBOS.workflow()
def with_step(value: int) -> int:
    return step(value)


@DBOS.workflow()
async def with_step_async(value: int) -> int:
    return await step_async(value)


@DBOS.workflow()
def stamped() -> int:
    return time.monotonic_ns()  # counts from the same moment in all processes of a machine


class Begun:
    """Which workflows have run their first line in this process."""

    def __init__(self) -> None:
        self.is_interrupted = False  # they get no further here
        self._expected = 0
        self._numbers: set[int] = set()
        self.all = threading.Event()

    def expect(self, count: int, *, is_interrupted: bool) -> None:
        self._expected, self.is_interrupted = count, is_interrupted

    def note(self, number: int) -> None:
        self._numbers.add(number)
        if len(self._numbers) == self._expected:
            self.all.set()


begun = Begun()


@DBOS.step()
async def blocking_step(value: int) -> int:
    if begun.is_interrupted:
        await asyncio.Event().wait()
    return value + 1


@DBOS.workflow()
async def interrupted(number: int) -> int:
    begun.note(number)
    return await blocking_step(number)


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
    async def run(number: int) -> None:
        check(await with_steps_async(number), number + STEPS)

    await crowd(count, run)


async def queue_drain(count: int) -> None:
    queue = await DBOS.register_queue_async(QUEUE)
    handles = {}

    async def enqueue(number: int) -> None:
        handles[number] = await queue.enqueue_async(with_step_async, number)

    await crowd(count, enqueue)
    results = await asyncio.gather(*(handle.get_result() for handle in handles.values()))
    for number, result in zip(handles, results, strict=True):
        check(result, number + 1)


def queue_drain_threads(count: int) -> None:
    queue = DBOS.register_queue(QUEUE)
    handles = [queue.enqueue(with_step, number) for number in range(count)]
    for number, handle in enumerate(handles):
        check(handle.get_result(), number + 1)


def enqueue(count: int) -> None:
    queue = DBOS.register_queue(QUEUE)
    for number in range(count):
        queue.enqueue(with_step, number)


async def crowd(count: int, act: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Do something ``count`` times, a hundred at a time."""

    async def take(numbers: Iterator[int]) -> None:
        for number in numbers:
            await act(number)

    numbers = iter(range(count))
    await asyncio.gather(*(take(numbers) for _ in range(CONCURRENT)))


def check(result: int, expected: int) -> None:
    if result != expected:
        raise RuntimeError(f"a workflow returned {result} instead of {expected}")


def measure(work: Callable[[int], object], job: Job) -> Figures:
    """Do the work ``job["count"]`` times after a warm-up, and tell how long that took.

    Without a count, find the one that takes about ``job["seconds"]``: the work is done in growing numbers until that
    takes a quarter of it. Nothing else is done then unless ``job["is_measured"]``. ``done`` is all that was.
    """
    count: int | None = job.get("count")
    if count is None:
        count = job["minimum"]
        done = count
        while (elapsed := time_of(work, count)[0]) < job["seconds"] / 4:
            count *= 2
            done += count
        count = max(job["minimum"], round(count * job["seconds"] / elapsed))
    else:
        done = job["warm_up"]
        work(done)
    if not job.get("is_measured"):
        return {"count": count}
    elapsed, cpu = time_of(work, count)
    return {"seconds": elapsed, "cpu_seconds": cpu, "count": count, "done": done + count}


def time_of(work: Callable[[int], object], count: int) -> tuple[float, float]:
    began, cpu_began = time.perf_counter(), time.process_time()
    work(count)
    return time.perf_counter() - began, time.process_time() - cpu_began


def throughput(job: Job) -> Figures:
    """What :func:`measure` says of one of :data:`SEQUENTIAL` or :data:`CONCURRENTLY`."""
    name = job["workload"]
    if name == "enqueue":
        DBOS.listen_queues([])
    DBOS.launch()
    if name in SEQUENTIAL:
        return measure(SEQUENTIAL[name], job)
    with asyncio.Runner() as runner:
        return measure(lambda count: runner.run(CONCURRENTLY[name](count)), job)


def idle(job: Job) -> Figures:
    """Do nothing for a while, with ``job["queues"]`` queues; tell what that cost this process."""
    DBOS.launch()
    for number in range(job["queues"]):
        DBOS.register_queue(f"{QUEUE}-{number}")
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


def latency(job: Job) -> Figures:
    """From before the call that enqueues to the workflow's first line, in a process that runs what it enqueues."""
    DBOS.launch()
    return latencies(job["count"])


def latency_apart(job: Job) -> Figures:
    """The same, but another process runs it."""
    DBOS.listen_queues([])
    DBOS.launch()
    with other_process({"workload": "serve", "url": job["url"]}):
        return latencies(job["count"])


def latencies(count: int) -> Figures:
    queue = DBOS.register_queue(QUEUE)
    time.sleep(SETTLE_S)
    times_ms, round_s = [], 0.0
    for _ in range(count):
        began = time.monotonic_ns()
        result = queue.enqueue(stamped).get_result()
        times_ms.append((result - began) / 1e6)
        round_s = (time.monotonic_ns() - began) / 1e9
        # Not in step with anybody who looks at fixed intervals.
        time.sleep(IDLE_S + random.uniform(0, round_s))
    times_ms.sort()
    return {
        "p50_ms": times_ms[math.ceil(count * 0.5) - 1],
        "p99_ms": times_ms[math.ceil(count * 0.99) - 1],
    }


def serve(job: Job) -> Figures:
    """Run what others enqueue, until killed."""
    DBOS.launch()
    DBOS.register_queue(QUEUE)
    wait_to_be_killed()
    return {}


def recovery(job: Job) -> Figures:
    """Launch after a process was killed with ``job["count"]`` workflows under way, until all of them run again."""
    count = job["count"]
    with other_process({"workload": "interrupt", "url": job["url"], "count": count}):
        pass
    begun.expect(count, is_interrupted=False)
    began = time.perf_counter()
    DBOS.launch()
    if not begun.all.wait(RECOVERY_PATIENCE_S):
        raise RuntimeError("not all workflows were recovered")
    elapsed = time.perf_counter() - began

    async def end(number: int) -> None:
        handle = await DBOS.retrieve_workflow_async(f"interrupted-{number}")
        check(await handle.get_result(), number + 1)

    asyncio.run(crowd(count, end))
    return {"per_second": count / elapsed, "seconds": elapsed}


def interrupt(job: Job) -> Figures:
    """Start workflows that get as far as into their first step, and be killed."""
    begun.expect(job["count"], is_interrupted=True)
    DBOS.launch()

    async def start(number: int) -> None:
        with SetWorkflowID(f"interrupted-{number}"):
            await DBOS.start_workflow_async(interrupted, number)

    async def start_all() -> None:
        await crowd(job["count"], start)
        while not begun.all.is_set():
            await asyncio.sleep(0.01)
        wait_to_be_killed()

    asyncio.run(start_all())
    return {}


class Ticked:
    """Which schedules have fired at a tick, and how late their runs began."""

    def __init__(self) -> None:
        self.late_ms: dict[tuple[int, int], float] = {}

    def wait(self, count: int, since_s: float) -> list[float]:
        """How late the first runs of all schedules since a time were, when all are there."""
        deadline = time.monotonic() + SCHEDULE_PATIENCE_S
        while time.monotonic() < deadline:
            late_ms = [late for (_, tick_s), late in self.late_ms.copy().items() if since_s <= tick_s < since_s + 60]
            if len(late_ms) >= count:
                return sorted(late_ms)
            time.sleep(0.2)
        raise RuntimeError(f"only {len(late_ms)} of {count} schedules fired")


ticked = Ticked()


@DBOS.workflow()
async def tick(scheduled_time: datetime, number: int) -> None:
    ticked.late_ms[number, round(scheduled_time.timestamp())] = (time.time() - scheduled_time.timestamp()) * 1e3


def schedules(job: Job) -> Figures:
    """So many schedules, each once a minute: spread over it, then all at one instant; how late their ticks are.

    A tick is there when its workflow is in the database, and a run when it has begun.
    """
    count = job["count"]
    DBOS.launch()
    time.sleep(SETTLE_S)
    before = memory_mb()
    figures: Figures = {}
    for shape, second in (("spread", lambda number: number % 60), ("instant", lambda number: 0)):
        inputs: list[Any] = [
            {
                "schedule_name": f"schedule-{number}",
                "workflow_fn": tick,
                "schedule": f"{second(number)} * * * * *",
                "context": number,
            }
            for number in range(count)
        ]
        DBOS.apply_schedules(inputs)
        since_s = math.ceil((time.time() + SETTLE_S) / 60) * 60.0
        time.sleep(since_s - time.time())
        run_ms = ticked.wait(count, since_s)
        since = datetime.fromtimestamp(since_s, UTC).isoformat()
        tick_ms = []
        for status in DBOS.list_workflows(name="tick", start_time=since, load_output=False):
            tick_s = datetime.fromisoformat(status.workflow_id[-len(since) :]).timestamp()
            if since_s <= tick_s < since_s + 60 and status.created_at is not None:
                tick_ms.append(status.created_at - tick_s * 1e3)
        for kind, late_ms in (("tick", sorted(tick_ms)), ("run", run_ms)):
            check(len(late_ms), count)
            figures[f"{shape}_{kind}_p50_ms"] = late_ms[math.ceil(count * 0.5) - 1]
            figures[f"{shape}_{kind}_p99_ms"] = late_ms[math.ceil(count * 0.99) - 1]
    figures["memory_mb"] = memory_mb() - before
    figures["threads"] = threading.active_count()
    return figures


def memory_mb() -> float:
    """What this process has in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def other_process(job: Job, command: Sequence[str] = COMMAND) -> Iterator[None]:
    """Another process of a worker script, from when it is ready until it is killed at the end of the block."""
    with subprocess.Popen(
        [*command, json.dumps(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the other process ended early")
            yield
        finally:
            process.kill()


def wait_to_be_killed() -> None:
    print("ready", flush=True)
    sys.stdin.read()  # or until whoever started this process has ended


SEQUENTIAL: dict[str, Callable[[int], object]] = {
    "sequential-workflows": sequential_workflows,
    "sequential-steps": sequential_steps,
    "threaded-steps": threaded_steps,
    "queue-drain-threads": queue_drain_threads,
    "enqueue": enqueue,
}
CONCURRENTLY: dict[str, Callable[[int], Coroutine[Any, Any, None]]] = {
    "async-steps": async_steps,
    "queue-drain": queue_drain,
}
JOBS: dict[str, Callable[[Job], Figures]] = {
    **dict.fromkeys((*SEQUENTIAL, *CONCURRENTLY), throughput),
    "idle": idle,
    "queue-latency": latency,
    "queue-latency-apart": latency_apart,
    "serve": serve,
    "recovery": recovery,
    "interrupt": interrupt,
    "schedules": schedules,
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
    figures = JOBS[job["workload"]](job)
    DBOS.destroy()
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
