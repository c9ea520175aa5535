"""What workflows that succeed leave behind in memory: nothing that only the garbage collector would find."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from dbos import DBOS

CALLS = 20


@pytest.fixture
def garbage() -> Iterator[Callable[[], Counter[str]]]:
    """Collects, and tells which objects of ours it took a collector to find since the test began."""

    def collect() -> Counter[str]:
        gc.collect()
        return Counter(type(found).__name__ for found in gc.garbage if type(found).__module__.startswith("dbos"))

    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield collect
    gc.set_debug(0)
    gc.garbage.clear()


def work(way: str) -> Callable[[], None]:
    """Workflows of two steps: called, started in the background, or as coroutines side by side."""

    @DBOS.step()
    def add(number: int) -> int:
        return number + 1

    @DBOS.workflow()
    def count(number: int) -> int:
        return add(add(number))

    @DBOS.step()
    async def add_async(number: int) -> int:
        return number + 1

    @DBOS.workflow()
    async def count_async(number: int) -> int:
        return await add_async(await add_async(number))

    async def gather() -> list[int]:
        return await asyncio.gather(*map(count_async, range(CALLS)))

    def call() -> None:
        assert [count(number) for number in range(CALLS)] == list(range(2, CALLS + 2))

    def start() -> None:
        handles = [DBOS.start_workflow(count, number) for number in range(CALLS)]
        assert [handle.get_result() for handle in handles] == list(range(2, CALLS + 2))

    return {"called": call, "started": start, "awaited": lambda: asyncio.run(gather()).clear()}[way]


@pytest.mark.parametrize("way", ["called", "started", "awaited"])
def test_workflows_that_succeed_leave_nothing_to_the_garbage_collector(
    dbos: type[DBOS], request: pytest.FixtureRequest, way: str
) -> None:
    do = work(way)
    dbos.launch()
    do()
    collect: Callable[[], Counter[str]] = request.getfixturevalue("garbage")

    do()

    assert not collect()
