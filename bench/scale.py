"""What happens when there is much of it: a worker process for our library alone, whose argument is a job as JSON.

=============  ========================================================================================================
``workers``    1, 2, 4 and 8 processes that drain one queue: workflows that do nothing, and workflows that wait
``crowd``      1000 coroutine workflows at a time, of 1000 steps each
``payloads``   inputs, results of steps and results of workflows of 10 MB, and small workflows beside them
``network``    the same work at growing distances from the server
``soak``       a million workflows in one process: what they leave behind in it
=============  ========================================================================================================
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg

from bench.network import delayed
from bench.workloads import (
    CONCURRENT,
    QUEUE,
    STEPS,
    Figures,
    Job,
    check,
    configure,
    memory_mb,
    other_process,
    step_async,
    time_of,
    wait_to_be_killed,
    with_step_async,
    with_steps,
    with_steps_async,
    without_steps,
)
from bench.workloads import crowd as go_through
from dbos import DBOS

COMMAND = (sys.executable, "-m", "bench.scale")
WORKERS = (1, 2, 4, 8)
WAIT_S = 0.05  # what a workflow that waits does in its step
PLACES = 50  # of them at a time in one process
CROWD_STEPS = 1000
PAYLOAD = 10_000_000  # characters
ROUND_TRIPS_MS = (0.0, 0.5, 5.0)
SOAK_PARTS = 10
SAMPLE_S = 0.01
PAUSED_S = 1.5  # within which every process has heard that a queue is paused
COUNT = "SELECT count(*) FROM dbos.workflow_status WHERE status = %s"
UNFINISHED = "SELECT EXISTS (SELECT FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING'))"


@DBOS.step()
async def waiting_step(value: int) -> int:
    await asyncio.sleep(WAIT_S)
    return value + 1


@DBOS.workflow()
async def with_waiting_step(value: int) -> int:
    return await waiting_step(value)


@DBOS.workflow()
async def with_many_steps(value: int) -> int:
    for _ in range(CROWD_STEPS):
        value = await step_async(value)
    return value


@DBOS.step()
def copy(payload: str) -> str:
    return payload


@DBOS.workflow()
def carry(payload: str) -> str:
    return copy(payload)


# -- several processes -------------------------------------------------------------------------------------------------


def workers(job: Job) -> Figures:
    """Workflows a second that so many processes take from one queue, and how busy the machine is with it."""
    figures: Figures = {}
    DBOS.listen_queues([])
    DBOS.launch()
    for kind, function, places in (("empty", with_step_async, None), ("waiting", with_waiting_step, PLACES)):
        queue = DBOS.register_queue(f"{QUEUE}-{kind}", worker_concurrency=places)
        for number in WORKERS:
            count = job["count"] if places is None else places * number * 40
            with ExitStack() as stack:
                for _ in range(number):
                    stack.enter_context(other_process({"workload": "serve", "url": job["url"]}, COMMAND))
                _take(queue, function, CONCURRENT * number, job["url"])  # a warm-up
                seconds, busy = _take(queue, function, count, job["url"])
            figures[f"{kind}_{number}"] = count / seconds
            figures[f"{kind}_{number}_busy"] = busy * 100
    return figures


def _take(queue: Any, function: Any, count: int, url: str) -> tuple[float, float]:
    """How long the processes take for so many workflows that are in the queue already, and the share of busy cores."""
    queue.pause()
    time.sleep(PAUSED_S)
    with psycopg.connect(url, autocommit=True) as connection:

        def counted(status: str) -> int:
            found = connection.execute(COUNT, (status,)).fetchone()
            return 0 if found is None else int(found[0])

        done = counted("SUCCESS")
        for begin in range(0, count, 1000):
            queue.enqueue_many(function, [(number,) for number in range(begin, min(begin + 1000, count))])
        check(counted("ENQUEUED"), count)
        before, began = _ticks(), time.perf_counter()
        queue.resume()
        while connection.execute(UNFINISHED).fetchone() == (True,):
            time.sleep(SAMPLE_S)
        seconds, after = time.perf_counter() - began, _ticks()
        check(counted("SUCCESS"), done + count)
    busy, idle = (now - then for now, then in zip(after, before, strict=True))
    return seconds, busy / (busy + idle)


def _ticks() -> tuple[int, int]:
    """What all cores together have worked and rested."""
    user, nice, system, idle, io, *others = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return user + nice + system + sum(others[:2]), idle + io


def serve(job: Job) -> Figures:
    """Run what is in the queues, until killed."""
    DBOS.launch()
    wait_to_be_killed()
    return {}


# -- many at a time ----------------------------------------------------------------------------------------------------


def crowd(job: Job) -> Figures:
    """Steps a second of many long workflows at a time; what they take, and how long others wait for the event loop."""
    count = job["count"]
    late_ms: list[float] = []
    threads: list[int] = []

    async def look() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(SAMPLE_S)
            late_ms.append((time.perf_counter() - began - SAMPLE_S) * 1000)
            threads.append(threading.active_count())

    async def run() -> float:
        await asyncio.gather(*(with_steps_async(0) for _ in range(CONCURRENT)))
        watch = asyncio.create_task(look())
        began = time.perf_counter()
        for result in await asyncio.gather(*(with_many_steps(0) for _ in range(count))):
            check(result, CROWD_STEPS)
        seconds = time.perf_counter() - began
        watch.cancel()
        return seconds

    DBOS.launch()
    most_mb = _peak_of_memory()
    seconds = asyncio.run(run())
    return {
        "per_second": count * CROWD_STEPS / seconds,
        "memory_mb": most_mb(),
        "late_p99_ms": _percentile(late_ms, 0.99),
        "threads": max(threads),
    }


def payloads(job: Job) -> Figures:
    """How long a workflow takes that is called with 10 MB and has them twice more, and small ones beside it."""
    DBOS.launch()
    payload = random.Random(1).randbytes(PAYLOAD // 2).hex()  # so that no database can compress it much
    without_steps(0), carry(payload)
    figures: Figures = {}
    for _ in range(50):
        without_steps(0)
    figures["small_alone_p50_ms"] = statistics.median(_times_ms(lambda: without_steps(0), 200))
    most_mb = _peak_of_memory()
    figures["large_ms"] = statistics.median(_times_ms(lambda: carry(payload), job["count"]))
    figures["memory_mb"] = most_mb()
    is_over = threading.Event()
    small_ms: list[float] = []

    def beside() -> None:
        while not is_over.is_set():
            small_ms.extend(_times_ms(lambda: without_steps(0), 1))

    thread = threading.Thread(target=beside)
    thread.start()
    for _ in range(job["count"]):
        carry(payload)
    is_over.set()
    thread.join()
    figures["small_beside_p50_ms"] = statistics.median(small_ms)
    figures["small_beside_p99_ms"] = _percentile(small_ms, 0.99)
    return figures


# -- far away ----------------------------------------------------------------------------------------------------------


def network(job: Job) -> Figures:
    """What operations take at growing distances, each in a process of its own."""
    figures: Figures = {}
    for number, round_trip_ms in enumerate(ROUND_TRIPS_MS):
        with delayed(job["url"], round_trip_ms / 2) as url:
            with psycopg.connect(url, autocommit=True) as connection:
                trips = _times_ms(lambda: connection.execute("SELECT 1"), 100)
            figures[f"trip_{number}"] = statistics.median(trips)
            distant_job = json.dumps({"workload": "distant", "url": url, "count": job["count"]})
            done = subprocess.run([*COMMAND, distant_job], stdout=subprocess.PIPE, check=True)
        told: Figures = json.loads(done.stdout.splitlines()[-1])
        figures |= {f"{name}_{number}": value for name, value in told.items()}
    return figures


def distant(job: Job) -> Figures:
    """Each of some operations, in milliseconds, and the throughput of crowds."""
    DBOS.launch()
    queue = DBOS.register_queue(QUEUE)
    count = job["count"]
    for _ in range(20):
        without_steps(0), with_steps(0)
    empty_ms = statistics.median(_times_ms(lambda: without_steps(0), count))
    steps_ms = statistics.median(_times_ms(lambda: with_steps(0), max(10, count // STEPS)))

    async def run(number: int) -> None:
        check(await with_steps_async(number), number + STEPS)

    async def pass_through(number: int) -> None:
        check(await (await queue.enqueue_async(with_step_async, number)).get_result(), number + 1)

    crowds: dict[str, tuple[Callable[[int], Coroutine[Any, Any, None]], int]] = {
        "async": (run, STEPS),
        "queue": (pass_through, 1),
    }
    figures = {"workflow_ms": empty_ms, "step_ms": (steps_ms - empty_ms) / STEPS}
    with asyncio.Runner() as runner:
        for name, (act, units) in crowds.items():
            runner.run(go_through(2 * CONCURRENT, act))
            servers = _server_s()
            work = go_through(10 * CONCURRENT, act)
            seconds, ours = time_of(lambda _, work=work: runner.run(work), 0)  # type: ignore[misc]
            done = 10 * CONCURRENT * units
            figures[f"{name}_rate"] = done / seconds
            figures[f"{name}_ours_us"] = ours / done * 1e6
            figures[f"{name}_server_us"] = (_server_s() - servers) / done * 1e6
    return figures


def _server_s() -> float:
    """The processor time that all processes of the server have used."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition(" (")[2].rpartition(") ")
        except OSError:
            continue  # it has ended
        if name == "postgres":
            ticks += sum(map(int, rest.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


# -- for a long time ---------------------------------------------------------------------------------------------------


def soak(job: Job) -> Figures:
    """Very many workflows through a queue: speed, memory, threads and descriptors after each tenth of them."""
    DBOS.launch()
    figures: Figures = {}

    async def part(count: int) -> None:
        queue = await DBOS.register_queue_async(QUEUE)

        async def pass_through(number: int) -> None:
            check(await (await queue.enqueue_async(with_step_async, number)).get_result(), number + 1)

        await go_through(count, pass_through)

    with asyncio.Runner() as runner:
        runner.run(part(10 * CONCURRENT))
        for number in range(1, SOAK_PARTS + 1):
            began = time.perf_counter()
            runner.run(part(job["count"] // SOAK_PARTS))
            figures[f"rate_{number}"] = job["count"] // SOAK_PARTS / (time.perf_counter() - began)
            figures[f"memory_{number}"] = memory_mb()
            figures[f"threads_{number}"] = threading.active_count()
            figures[f"descriptors_{number}"] = len(os.listdir("/proc/self/fd"))
    return figures


# -- helpers -----------------------------------------------------------------------------------------------------------


def _times_ms(act: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        act()
        times.append((time.perf_counter() - began) * 1000)
    return times


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[math.ceil(len(values) * share) - 1]


def _peak_of_memory() -> Callable[[], float]:
    """Tells the most memory that was held since, in MB, over what was held before."""
    before = memory_mb()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is as of now

    def most() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6 - before

    return most


JOBS: dict[str, Callable[[Job], Figures]] = {
    "workers": workers,
    "serve": serve,
    "crowd": crowd,
    "payloads": payloads,
    "network": network,
    "distant": distant,
    "soak": soak,
}


def main() -> None:
    job: Job = json.loads(sys.argv[1])
    if job["workload"] != "network":
        configure(job["url"])
    figures = JOBS[job["workload"]](job)
    if job["workload"] != "network":
        DBOS.destroy()
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
