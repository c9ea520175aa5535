"""However many workflows a process has run, it holds no more than before: objects, entries, threads, descriptors.

``DBOS_SOAK_WORKFLOWS`` sets how many are run; a million take an hour or two, with ``--timeout 0``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from types import CoroutineType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import pytest

from dbos import DBOS, Debouncer, Queue, SetWorkflowTimeout, WorkflowHandleAsync, _ids, _threads
from dbos._error import DBOSAwaitedWorkflowCancelledError
from dbos._services import deadlines
from dbos.testing import VirtualTime
from tests.integration.histories import eventually

WORKFLOWS = int(os.environ.get("DBOS_SOAK_WORKFLOWS", "700"))
PER_ROUND = 7  # how many one round starts, with its children
AT_ONCE = 20  # so many rounds run side by side

CONTAINERS = (dict, list, set, deque, WeakKeyDictionary, WeakSet, WeakValueDictionary)
DESCRIPTORS = Path("/proc/self/fd")


def attributes(value: object) -> Iterator[tuple[str, Any]]:
    """What an object has, be it in slots or not."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield name, getattr(value, name)


def is_ours(value: object) -> bool:
    """Whether it is a module of the library, or an object of one of its types."""
    name = value.__name__ if type(value) is ModuleType else type(value).__module__
    return str(name).partition(".")[0] == "dbos"


def holdings() -> Counter[str]:
    """How many objects of ours and coroutines there are, what is in our containers; threads and descriptors."""
    gc.collect()
    _ids._pieces.clear()  # a store that is refilled, at times nearly full and at times nearly empty
    found: Counter[str] = Counter()
    for each in gc.get_objects():
        kind = type(each)
        if is_ours(each) or isinstance(each, (asyncio.Future, CoroutineType)):
            found[kind.__qualname__] += 1
            name = kind.__qualname__ if kind is not ModuleType else each.__name__
            for attribute, value in attributes(each):
                if isinstance(value, CONTAINERS):
                    found[f"{name}.{attribute}"] += len(value)
    found["threads"] = threading.active_count()
    found["descriptors"] = len(list(DESCRIPTORS.iterdir())) if DESCRIPTORS.exists() else 0
    return found


async def test_however_many_workflows_have_run_a_process_holds_no_more_than_before(
    dbos_virtual_time: VirtualTime, dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_threads, "IDLE_S", 0.05)
    monkeypatch.setattr(deadlines, "MIN_CLEANING", 8)
    queue = Queue("q", concurrency=10)

    @dbos.step()
    async def step(number: int) -> int:
        return number

    @dbos.step()
    async def fail() -> None:
        raise ValueError("it failed")

    @dbos.workflow()
    async def talk(number: int) -> Any:
        """Messages that come and that do not, events, streams, a child, time."""
        own_id = dbos.workflow_id
        assert own_id is not None
        await dbos.send_async(own_id, number, topic="news")
        heard = await dbos.recv_async("news")
        nothing = await dbos.recv_async("never", timeout_seconds=60)
        await dbos.set_event_async("event", heard)
        await dbos.write_stream_async("stream", await dbos.get_event_async(own_id, "event"))
        await dbos.close_stream_async("stream")
        values = [value async for value in dbos.read_stream_async(own_id, "stream")]
        await dbos.sleep_async(10)
        child = await dbos.start_workflow_async(work, values[0])
        return [await step(number), await child.get_result(), nothing]

    @dbos.workflow()
    def work(number: int) -> int:
        return number

    @dbos.workflow()
    async def overdue() -> None:
        await dbos.sleep_async(7200)

    @dbos.workflow()
    async def failing() -> None:
        await fail()

    debouncer = Debouncer.create(work)

    async def play(number: int) -> None:
        handles: list[WorkflowHandleAsync[Any]] = []
        with SetWorkflowTimeout(3600):
            handles.append(await dbos.start_workflow_async(talk, number))
            handles.append(await dbos.start_workflow_async(overdue))
        handles.append(await dbos.start_workflow_async(failing))
        handles.append(await queue.enqueue_async(work, number))
        handles.append(await debouncer.debounce_async(f"key-{number}", 5.0, number))
        event = await dbos.get_event_async(handles[0].workflow_id, "event", timeout_seconds=600)
        outcomes = await asyncio.gather(
            asyncio.to_thread(work, number), *(each.get_result() for each in handles), return_exceptions=True
        )
        results = [type(each) if isinstance(each, Exception) else each for each in outcomes]
        heard = [number, number, None]
        assert event == number
        assert results == [number, heard, DBOSAwaitedWorkflowCancelledError, ValueError, number, number]

    async def play_all(numbers: range) -> None:
        for begin in numbers[::AT_ONCE]:
            await asyncio.gather(*map(play, range(begin, min(begin + AT_ONCE, numbers.stop))))
        await dbos_virtual_time.advance_async(7200)  # whatever has a deadline is past it

    dbos.launch()
    await play_all(range(2 * AT_ONCE))
    before = holdings()
    rounds = max(WORKFLOWS // PER_ROUND, 4 * AT_ONCE)

    await play_all(range(2 * AT_ONCE, 2 * AT_ONCE + rounds))

    def grown() -> dict[str, int]:
        """What there is more of than another connection, or another thread, accounts for."""
        return {name: count for name, count in (holdings() - before).items() if count > rounds // 5}

    try:
        await asyncio.to_thread(eventually, lambda: not grown())
    finally:
        assert grown() == {}
