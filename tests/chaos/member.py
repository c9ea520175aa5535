"""One process of a campaign: ``python -m tests.chaos.member SETTINGS``, using nothing but the public interface.

A worker takes work from all queues. The driver submits the plan, one workflow after the other in each of its threads,
and takes work from none (but does what it started itself, and what was recovered or resumed). Each keeps a log of its
own: a line is one write, and durable before whatever it announces is done. It says ``ready``, then answers commands,
one JSON line each; at the end of its input it destroys DBOS and exits.
"""

from __future__ import annotations

import asyncio
import faulthandler
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import sqlalchemy as sa

from dbos import DBOS, Queue, SetEnqueueOptions, SetWorkflowID, SetWorkflowTimeout, error
from tests.chaos.plan import QUEUES, Task, plan

settings: dict[str, Any] = json.loads(sys.argv[1])

RETRY_S = 0.2
BURST = 100  # so many workflows are submitted at once, so that queues fill and their limits are felt


class Log:
    """An append-only log; see :func:`tests.chaos.history.read_logs`."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._numbers = itertools.count()
        self._pid = os.getpid()

    def number(self) -> str:
        """A name that no other process uses."""
        return f"{self._pid}-{time.monotonic_ns()}-{next(self._numbers)}"

    def note(self, kind: str, *fields: Any) -> None:
        """Add a line, durably."""
        line = json.dumps([kind, time.monotonic_ns(), time.time_ns() // 1000, self._pid, *fields])
        os.write(self._file, f"{line}\n".encode())
        os.fsync(self._file)


log = Log(settings["log"])


def explode() -> None:
    raise ValueError("this cannot be decoded")


class Undecodable:
    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return explode, ()


# -- the workload ------------------------------------------------------------------------------------------------------


@contextmanager
def body() -> Iterator[None]:
    number = log.number()
    log.note("body", number, DBOS.workflow_id)
    try:
        yield
    finally:
        log.note("body_end", number)


@contextmanager
def attempt(called_ns: int) -> Iterator[list[Any]]:
    number = log.number()
    log.note("step", number, DBOS.workflow_id, DBOS.step_id, called_ns)
    yield [DBOS.step_id, number]
    log.note("step_end", number)


def seen(result: list[Any]) -> list[Any]:
    log.note("seen", DBOS.workflow_id, *result)
    return result


def pause_s(number: int) -> float:
    """How long a step takes: mostly some hundredths of a second, and sometimes half a second."""
    return 0.5 if number % 31 == 0 else number % 7 * 0.01


@DBOS.step(name="step")
def step(number: int, called_ns: int) -> list[Any]:
    with attempt(called_ns) as result:
        time.sleep(pause_s(number))
    return result


@DBOS.step(name="step_async")
async def step_async(number: int, called_ns: int) -> list[Any]:
    with attempt(called_ns) as result:
        await asyncio.sleep(pause_s(number))
    return result


@DBOS.transaction(name="enter")
def enter(number: int, called_ns: int) -> list[Any]:
    with attempt(called_ns) as result:
        values = {"id": DBOS.workflow_id, "function": result[0], "attempt": result[1]}
        DBOS.sql_session.execute(sa.text("INSERT INTO ledger VALUES (:id, :function, :attempt)"), values)
    return result


@DBOS.workflow(name="brief")
def brief(number: int) -> list[Any]:
    with body():
        return [number, [seen(step(number, time.monotonic_ns()))]]


@DBOS.workflow(name="order")
def order(number: int) -> list[Any]:
    with body():
        return [
            number,
            [
                seen(step(number, time.monotonic_ns())),
                seen(enter(number, time.monotonic_ns())),
                seen(step(number, time.monotonic_ns())),
            ],
        ]


@DBOS.workflow(name="gathering")
async def gathering(number: int) -> list[Any]:
    with body():
        results = await asyncio.gather(*(step_async(number, time.monotonic_ns()) for _ in range(2)))
        await DBOS.sleep_async(0.01)
        results.append(await step_async(number, time.monotonic_ns()))
        return [number, [seen(result) for result in results]]


@DBOS.workflow(name="family")
def family(number: int) -> list[Any]:
    with body():
        handles = [DBOS.start_workflow(order, number), free.enqueue(brief, number)]
        return [number, [handle.get_result() for handle in handles]]


@DBOS.workflow(name="raises")
def raises(number: int) -> None:
    with body():
        seen(step(number, time.monotonic_ns()))
        raise ValueError(f"number {number}")


@DBOS.workflow(name="overdue")
def overdue(number: int) -> None:
    with body():
        DBOS.sleep(60)


def declare() -> dict[str, Queue]:
    return {
        rule.name: Queue(
            rule.name,
            concurrency=rule.concurrency,
            worker_concurrency=rule.worker_concurrency,
            limiter=None if rule.limit is None else {"limit": rule.limit, "period": rule.period_s},
            priority_enabled=rule.has_priorities,
            partition_queue=rule.is_partitioned,
        )
        for rule in QUEUES.values()
    }


workflows: dict[str, Callable[..., Any]] = {
    "brief": brief,
    "order": order,
    "gathering": gathering,
    "family": family,
    "raises": raises,
    "overdue": overdue,
    "undecodable": brief,
}


# -- submitting it -----------------------------------------------------------------------------------------------------


def submit(task: Task) -> None:
    """Submit a workflow, again and again until the answer is known."""
    options = {name: value for name, value in task._asdict().items() if name not in ("workflow_id", "timeout_s")}
    argument = Undecodable() if task.kind == "undecodable" else task.number
    log.note("call", task.workflow_id, options)
    while True:
        try:
            with ExitStack() as stack:
                stack.enter_context(SetWorkflowID(task.workflow_id))
                if task.timeout_s is not None:
                    stack.enter_context(SetWorkflowTimeout(task.timeout_s))
                if task.queue is None:
                    DBOS.start_workflow(workflows[task.kind], argument)
                else:
                    enqueue_options = SetEnqueueOptions(
                        priority=task.priority or None,
                        queue_partition_key=task.partition,
                        deduplication_id=task.dedup,
                        delay_seconds=task.delay_s or None,
                    )
                    stack.enter_context(enqueue_options)
                    queues[task.queue].enqueue(workflows[task.kind], argument)
            log.note("ack", task.workflow_id)
            return
        except error.DBOSQueueDeduplicatedError:
            log.note("reject", task.workflow_id)
            return
        except BaseException as failure:
            log.note("error", f"submitting {task.workflow_id}: {type(failure).__name__}: {failure}")
            time.sleep(RETRY_S)


def drive() -> list[threading.Thread]:
    """Begin to submit the plan, less what was submitted already; returns the threads that do."""
    done = set(settings["done"])
    tasks = [task for task in plan(settings["seed"], settings["count"]) if task.workflow_id not in done]
    began, interval_s = time.monotonic(), settings["interval_s"]
    turns = iter(enumerate(tasks))
    taking = threading.Lock()

    def work() -> None:
        while True:
            with taking:
                turn = next(turns, None)
            if turn is None:
                return
            due_s = turn[0] // BURST * BURST * interval_s
            time.sleep(max(0.0, began + due_s - time.monotonic()))
            submit(turn[1])

    threads = [threading.Thread(target=work) for _ in range(settings["threads"])]
    for thread in threads:
        thread.start()
    return threads


# -- commands ----------------------------------------------------------------------------------------------------------


def answer(command: str, workflow_ids: list[str]) -> Any:
    if command == "census":
        return {"threads": threading.active_count(), "descriptors": len(os.listdir("/proc/self/fd"))}
    if command == "is_done":
        return not any(thread.is_alive() for thread in threads)
    for workflow_id in workflow_ids:
        number = log.number()
        log.note("command", number, command, workflow_id)
        if command == "cancel":
            DBOS.cancel_workflow(workflow_id)
        else:
            DBOS.resume_workflow(workflow_id)
        log.note("done", number)
    return len(workflow_ids)


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


DBOS(config=settings["config"])
queues = declare()
free = queues["free"]
is_driver = settings["role"] == "driver"
if is_driver:

    @DBOS.workflow(name="missing")
    def missing(number: int) -> None:
        """Known to nobody who takes work from queues."""

    workflows["missing"] = missing
    DBOS.listen_queues([])
if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)
    DBOS.launch()
    threads = drive() if is_driver else []
    say("ready")
    for line in sys.stdin:
        try:
            say({"value": answer(*json.loads(line))})
        except BaseException as failure:
            log.note("error", f"{line.strip()}: {type(failure).__name__}: {failure}")
            say({"error": str(failure)})
    DBOS.destroy()
