"""What the shop does with queues: those of its settings, work that shows how much of it runs at once, and a crowd."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from dbos import DBOS, Queue, SetEnqueueOptions, SetWorkflowID
from tests.acceptance.apps.instants import SETTINGS, instant

__all__ = ["FUNCTIONS", "commands"]

QUEUES = {each["name"]: Queue(**each) for each in SETTINGS["queues"]}
WORK_S = 0.005  # long enough for another one to begin meanwhile, if it may


@DBOS.workflow()
def errand() -> str:
    instant("errand:begin")
    time.sleep(WORK_S)
    instant("errand:end")
    return "done"


@DBOS.workflow()
def meeting(n: int) -> str:
    instant("meeting:begin")
    time.sleep(WORK_S)
    return f"met {n}"


@DBOS.workflow()
async def meeting_async(n: int) -> str:
    instant("meeting:begin")
    await asyncio.sleep(WORK_S)
    return f"met {n}"


FUNCTIONS: dict[str, Callable[..., Any]] = {"errand": errand}


def commands(functions: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The commands; what is enqueued is one of ``functions``."""

    def enqueue(
        queue: str, function: str, ids: list[str], args: list[Any], partitions: dict[str, str] | None = None
    ) -> None:
        for workflow_id in ids:
            key = None if partitions is None else partitions[workflow_id]
            with SetWorkflowID(workflow_id), SetEnqueueOptions(queue_partition_key=key):
                QUEUES[queue].enqueue(functions[function], *args)

    return {"enqueue": enqueue, "meet": meet}


def meet(queue: str, times: int) -> list[str]:
    """Ask for the same two workflows in every way there is, many times at once; returns what came of it."""
    answers: list[str] = []

    def ask(way: Callable[[], Any]) -> None:
        try:
            answers.append(way())
        except BaseException as error:
            answers.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=ask, args=(way,)) for way in (*_ways(queue), _in_a_loop(queue)) * times]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _ways(queue: str) -> list[Callable[[], Any]]:
    def call() -> str:
        with SetWorkflowID("meeting"):
            return meeting(1)

    def start() -> str:
        with SetWorkflowID("meeting"):
            return DBOS.start_workflow(meeting, 1).get_result()

    def enqueue() -> str:
        with SetWorkflowID("meeting"):
            return QUEUES[queue].enqueue(meeting, 1).get_result()

    return [call, start, enqueue]


def _in_a_loop(queue: str) -> Callable[[], str]:
    async def call() -> str:
        with SetWorkflowID("meeting-async"):
            return await meeting_async(1)

    async def start() -> str:
        with SetWorkflowID("meeting-async"):
            return await (await DBOS.start_workflow_async(meeting_async, 1)).get_result()

    async def enqueue() -> str:
        with SetWorkflowID("meeting-async"):
            return await (await QUEUES[queue].enqueue_async(meeting_async, 1)).get_result()

    async def all_of_them() -> str:
        answers = await asyncio.gather(call(), start(), enqueue())
        return ", ".join(sorted(set(answers)))

    return lambda: asyncio.run(all_of_them())
