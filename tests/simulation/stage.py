"""What all executors of a play share: the places where executions are held, and the log of what steps did."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from dbos import DBOSConfig
from dbos._sysdb.wakeups import Signal
from tests.simulation.programs import Hold
from tests.simulation.stillness import Activity

if TYPE_CHECKING:
    from tests.simulation.executors import Executor

__all__ = ["Asks", "Call", "Effect", "Place", "Stage"]

Asks = Literal["outcome", "event", "stream"]


@dataclass(frozen=True)
class Effect:
    """A step's body was entered, and is going to return ``number``, or fail with it."""

    workflow_id: str
    function_id: int
    run_token: str
    executor: Executor
    number: int
    is_under_lease: bool
    is_behind: bool


@dataclass(eq=False)
class Place:
    """Where an execution is held."""

    executor: Executor
    workflow_id: str
    function_id: int
    where: Hold
    run_token: str
    is_wait: bool = False  # which is recorded only when it is over
    signal: Signal = field(default_factory=Signal)

    def __str__(self) -> str:
        return f"{self.executor}: {self.workflow_id}/{self.function_id} {self.where}"

    def wait(self) -> None:
        """Block until let go."""
        self.signal.wait(None)

    async def wait_async(self) -> None:
        """Wait until let go, on an event loop."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def finish() -> None:
            if not future.done():
                future.set_result(None)

        def wake() -> None:
            loop.call_soon_threadsafe(finish)

        self.signal.call(wake)
        await future


@dataclass(eq=False)
class Call:
    """A caller's thread, and what its call came to; ``asks`` is what it waits for, and ``until_ms`` for how long.

    ``values`` are those of a stream that it has read.
    """

    executor: Executor
    workflow_id: str
    asks: Asks | None
    until_ms: int | None = None
    values: list[Any] = field(default_factory=list)
    is_over: bool = False
    value: Any = None
    error: BaseException | None = None


class Stage:
    """What all executors of a play share."""

    def __init__(self, config: DBOSConfig) -> None:
        self.config = config
        self.activity = Activity()
        self.commits = 0
        self.effects: list[Effect] = []
        self.numbers = count(1)
        self.done: set[int] = set()  # the numbers of the steps whose operation of the library was answered
        self.offences: list[str] = []  # against the limits and the order of queues, at any time
        self._places: list[Place] = []
        self._lock = threading.Lock()

    def enter(self, place: Place) -> Place:
        """Something arrives at a place, and is about to wait there."""
        with self._lock:
            self._places.append(place)
        return place

    def let_go(self, place: Place) -> None:
        """Let it go on."""
        with self._lock:
            self._places.remove(place)
        place.signal.set()

    def places(self) -> list[Place]:
        """Where something is held, in the same order in every execution of an example."""
        with self._lock:
            places = list(self._places)
        # Of several runs of a workflow in one executor the older comes first: the sort is stable.
        return sorted(places, key=lambda place: (place.executor.number, place.workflow_id, place.function_id))

    def is_held(self, executor: Executor, workflow_id: str) -> bool:
        """Whether a workflow is held in an executor, or a child that may be run in its thread is held or goes on."""
        prefix = workflow_id + "-"
        places = [place.workflow_id for place in self.places() if place.executor is executor]
        runs = [run.workflow_id for run in executor.engine.runs.all()]
        return workflow_id in places or any(each.startswith(prefix) for each in (*places, *runs))
