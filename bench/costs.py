"""What one operation costs, counted rather than timed: ``python -m bench.costs``.

==================  ================================================================================================
``round trips``     times this process spoke to the server and waited for what it said (from libpq's own trace)
``commits``         transactions that wrote: each is a flush to the disk, shared by all who are in it
``thread hops``     times a thread was woken, or an event loop from another thread, in order to go on
``WAL bytes``       what the server adds to its log; the first change of a page after a checkpoint adds the page as well
``peak bytes``      memory held at the operation's highest point, over what was held before and without the driver's
==================  ================================================================================================

Crowds are a hundred coroutines, or a hundred workflows in threads; their figures are for one unit of the crowd.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

CROWD = 100
STEPS = 10
REPEATS = 20

MESSAGE = re.compile(r"^\d{4}-[^\t]*\t([FB])\t", re.MULTILINE)  # of libpq's trace: to the server or from it

Counts = dict[str, float]


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(count_all(sys.argv[1])), flush=True)
        return
    from bench.__main__ import DEFAULT_DIRECTORY
    from bench.databases import Postgres, SQLite

    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="costs-", dir=DEFAULT_DIRECTORY)))
        directory.chmod(0o711)  # PostgreSQL may run as somebody else
        print("| operation | database | round trips | commits | thread hops | WAL bytes | peak bytes |")
        print("|-----------|----------|------------:|--------:|------------:|----------:|-----------:|")
        for engine in (SQLite(directory), stack.enter_context(Postgres(directory))):
            with engine.fresh() as url:
                done = subprocess.run(
                    [sys.executable, "-m", "bench.costs", url],
                    stdout=subprocess.PIPE,
                    check=True,
                    env={**os.environ, "TRACES": str(directory)},
                )
            for operation, counts in json.loads(done.stdout.splitlines()[-1]).items():
                trips, log = "–", "–"
                if engine.name == "postgresql":
                    trips, log = f"{counts['round trips']:.2f}", f"{counts['WAL bytes']:,.0f}"
                print(
                    f"| {operation} | {engine.name} | {trips} | {counts['commits']:.2f} "
                    f"| {counts['thread hops']:.2f} | {log} | {counts['peak bytes']:,.0f} |"
                )


class Meter:
    """Counts what the process does, from now on."""

    def __init__(self, url: str) -> None:
        import psycopg

        self._log = None if url.startswith("sqlite") else psycopg.connect(url, autocommit=True)
        self._commits = 0
        self._hops = 0
        self._traces: list[Path] = []
        self._directory = Path(tempfile.mkdtemp(prefix="trace-", dir=os.environ.get("TRACES")))
        self._watch()

    def _watch(self) -> None:
        import psycopg

        from dbos._app_db import ApplicationDatabase
        from dbos._sysdb.dialects.postgres import PostgresWriter
        from dbos._sysdb.dialects.sqlite import SQLiteWriter
        from dbos._sysdb.unit import ThreadUnit

        def counted(name: str, func: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                setattr(self, name, getattr(self, name) + 1)
                return func(*args, **kwargs)

            return call

        for owner, method, name in (
            (SQLiteWriter, "write", "_commits"),
            (PostgresWriter, "write", "_commits"),
            (ApplicationDatabase, "transaction", "_commits"),
            (ThreadUnit, "wait", "_hops"),
            (asyncio.BaseEventLoop, "call_soon_threadsafe", "_hops"),
            (threading.Thread, "start", "_hops"),
        ):
            setattr(owner, method, counted(name, getattr(owner, method)))
        connect = psycopg.connect

        def traced(*args: Any, **kwargs: Any) -> Any:
            connection = connect(*args, **kwargs)
            trace = self._directory / str(len(self._traces))
            self._traces.append(trace)
            connection.pgconn.trace(os.open(trace, os.O_CREAT | os.O_WRONLY))
            return connection

        psycopg.connect = traced

    def _log_bytes(self) -> int:
        if self._log is None:
            return 0
        found = self._log.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
        return 0 if found is None else int(found[0])

    def read(self) -> Counts:
        trips = 0
        for trace in self._traces:
            before = "B"
            for direction in MESSAGE.findall(trace.read_text(errors="replace")):
                trips += before == "F" and direction == "B"
                before = direction
        return {
            "round trips": trips,
            "commits": self._commits,
            "thread hops": self._hops,
            "WAL bytes": self._log_bytes(),
        }


def count_all(url: str) -> dict[str, Counts]:
    """The costs of each operation on a fresh database."""
    meter = Meter(url)
    from sqlalchemy import text

    from dbos import DBOS

    DBOS(
        config={
            "name": "costs",
            "system_database_url": url,
            "application_database_url": url,
            "application_version": "costs",
            "log_level": "ERROR",
            "max_executor_threads": CROWD,
        }
    )

    @DBOS.step()
    def step(value: int) -> int:
        return value

    @DBOS.step()
    async def step_async(value: int) -> int:
        return value

    @DBOS.transaction()
    def transaction(value: int) -> int:
        DBOS.sql_session.execute(text("SELECT 1"))
        return value

    @DBOS.workflow()
    def empty(value: int) -> int:
        return value

    @DBOS.workflow()
    async def empty_async(value: int) -> int:
        return value

    @DBOS.workflow()
    def repeat(func: str, count: int) -> None:
        for number in range(count):
            functions[func](number)

    @DBOS.workflow()
    async def repeat_async(count: int) -> None:
        for number in range(count):
            await step_async(number)

    @DBOS.workflow()
    def sleeping(count: int) -> None:
        for _ in range(count):
            DBOS.sleep(0.000_001)

    functions: dict[str, Callable[[int], int]] = {"step": step, "transaction": transaction, "child": empty}
    found: dict[str, Counts] = {}

    @contextmanager
    def counting(operation: str, units: int, less: str | None = None) -> Iterator[None]:
        """Count what the block does, for each of ``units``, without what ``less`` costs once."""
        before = meter.read()
        tracemalloc.start()
        yield
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        after = meter.read()
        once = found[less] if less else {}
        counts = {name: (after[name] - before[name] - once.get(name, 0)) / units for name in after}
        found[operation] = counts | {"peak bytes": peak / units}

    DBOS.launch()
    empty(0), repeat("step", 2), repeat("transaction", 2), asyncio.run(repeat_async(2)), sleeping(1)
    with counting("empty workflow", REPEATS):
        for number in range(REPEATS):
            empty(number)
    for name in ("step", "transaction", "child"):
        with counting({"child": "child, called"}.get(name, name), REPEATS, less="empty workflow"):
            repeat(name, REPEATS)
    with counting("sleep", REPEATS, less="empty workflow"):
        sleeping(REPEATS)
    with counting("step of a coroutine, alone", REPEATS, less="empty workflow"):
        asyncio.run(repeat_async(REPEATS))

    async def crowd() -> None:
        await asyncio.gather(*(repeat_async(STEPS) for _ in range(CROWD)))

    with counting("start, step or outcome in a crowd of coroutines", CROWD * (STEPS + 2)):
        asyncio.run(crowd())
    with counting("start, step or outcome in a crowd of threads", CROWD * (STEPS + 2)):
        for handle in [DBOS.start_workflow(repeat, "step", STEPS) for _ in range(CROWD)]:
            handle.get_result()
    queue = DBOS.register_queue("costs")

    async def pass_through() -> None:
        handles = await asyncio.gather(*(queue.enqueue_async(empty_async, number) for number in range(CROWD)))
        await asyncio.gather(*(handle.get_result() for handle in handles))

    asyncio.run(pass_through())
    with counting("workflow through a queue, in a crowd of coroutines", CROWD):
        asyncio.run(pass_through())
    DBOS.destroy()
    return found


if __name__ == "__main__":
    main()
