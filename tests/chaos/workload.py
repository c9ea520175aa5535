"""What the runs under faults execute: threads, coroutines, transactions, parents and children.

Each body of a step leaves a line in the effect log, ``<workflow> <function id>``; each transaction leaves a row in
``ledger``. Every workflow returns what :func:`expected` says.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dbos import DBOS, SetWorkflowID

__all__ = ["CREATE_LEDGER", "Workload", "bodies", "expected", "ids"]

CREATE_LEDGER = "CREATE TABLE ledger (workflow_id TEXT, n INTEGER)"
KINDS = 3


def expected(number: int) -> Any:
    """What workflow ``number`` returns."""
    if number % KINDS == 0:
        return [number, number + 1, number + 2]
    if number % KINDS == 1:
        return [number, number, number, [number, number + 1, number + 2]]
    return [[number, number + 1, number + 2]] * 2


def ids(workflow_id: str, number: int) -> Iterator[str]:
    """The workflow and its children, of which each makes one row in the ledger."""
    yield workflow_id
    if number % KINDS == 1:
        yield f"{workflow_id}-4"
    elif number % KINDS == 2:
        yield f"{workflow_id}-1"
        yield f"{workflow_id}-2"


def bodies(effects: Path) -> Counter[tuple[str, int]]:
    """How often the body of each step ran."""
    lines = (line.rsplit(" ", 1) for line in effects.read_text().splitlines())
    return Counter((workflow_id, int(function_id)) for workflow_id, function_id in lines)


class Workload:
    """Registers the workflows; ``pause_s`` is how long a step takes."""

    def __init__(self, effects: Path, pause_s: float = 0.0) -> None:
        log = os.open(effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

        def note() -> None:
            os.write(log, f"{DBOS.workflow_id} {DBOS.step_id}\n".encode())  # one write: lines do not mix

        @DBOS.step(name="step")
        def step(number: int) -> int:
            note()
            time.sleep(pause_s)
            return number

        @DBOS.step(name="step_async")
        async def step_async(number: int) -> int:
            note()
            await asyncio.sleep(pause_s)
            return number

        @DBOS.transaction(name="enter")
        def enter(number: int) -> int:
            DBOS.sql_session.execute(
                sa.text("INSERT INTO ledger (workflow_id, n) VALUES (:id, :n)"), {"id": DBOS.workflow_id, "n": number}
            )
            return number

        @DBOS.workflow(name="order")
        def order(number: int) -> list[int]:
            return [step(number), enter(number + 1), step(number + 2)]

        @DBOS.workflow(name="gathering")
        async def gathering(number: int) -> list[Any]:
            results: list[Any] = list(await asyncio.gather(*(step_async(number) for _ in range(3))))
            handle = await DBOS.start_workflow_async(order, number)
            return [*results, await handle.get_result()]

        @DBOS.workflow(name="parent")
        def parent(number: int) -> list[Any]:
            handles = [DBOS.start_workflow(order, number) for _ in range(2)]
            return [handle.get_result() for handle in handles]

        self._workflows: list[Any] = [order, gathering, parent]

    def perform(self, workflow_id: str, number: int) -> Any:
        """Start workflow ``number`` and wait for its result."""
        with SetWorkflowID(workflow_id):
            handle = DBOS.start_workflow(self._workflows[number % KINDS], number)
        return handle.get_result()
