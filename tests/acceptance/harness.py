"""Real processes that run a real application, to be killed, interrupted and paused at named instants.

An :class:`Application` is one process of ``tests/acceptance/apps``; what it did outlives it in the effect log, one line
for each instant (see ``apps/instants.py``). A :class:`Stage` has a database, an effect log and any number of processes.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psycopg

__all__ = ["Application", "Effect", "Record", "Stage", "until"]

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0  # a test that waits longer has failed; none waits longer than it must
POLL_S = 0.005


def until(check: Callable[[], T], what: str) -> T:
    """Ask again and again until the answer is true, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE_S} s in vain for {what}")
        time.sleep(POLL_S)
    return answer


class Effect(NamedTuple):
    """One line of the effect log."""

    process: int
    workflow_id: str
    instant: str


class Record(NamedTuple):
    """One recorded operation, as it is in the database."""

    workflow_id: str
    function_id: int
    name: str
    output: str | None
    error: str | None


class Application:
    """A process that runs the application."""

    def __init__(self, stage: Stage, settings: dict[str, Any], messages: Path) -> None:
        self._stage = stage
        self._messages = messages
        with messages.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.acceptance.apps.shop", json.dumps(settings)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "PYTHONWARNINGS": "error"},
            )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def messages(self) -> str:
        """What it has logged."""
        return self._messages.read_text()

    # -- talking to it -------------------------------------------------------------------------------------------------

    def tell(self, command: str, **arguments: Any) -> None:
        """Give it something to do; the answer is left for :meth:`answer`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Its next answer."""
        line = self._answers.get(timeout=PATIENCE_S)
        if line is None:
            raise AssertionError(f"the application has ended:\n{self.messages}")
        return json.loads(line)

    def ask(self, command: str, **arguments: Any) -> Any:
        """Give it something to do and return its answer."""
        self.tell(command, **arguments)
        return self.answer()

    def launched(self) -> Application:
        """Wait until it is launched."""
        assert self.answer() == "launched"
        return self

    def start(
        self, function: str, workflow_id: str, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Have it start a workflow in the background; it is durable when this returns."""
        self.ask("start", function=function, id=workflow_id, args=args, kwargs=kwargs, options=options or {})

    def result(self, workflow_id: str) -> Any:
        """What a workflow returned."""
        answer = self.ask("result", id=workflow_id)
        assert "value" in answer, answer
        return answer["value"]

    def failure(self, workflow_id: str) -> tuple[str, str]:
        """The type and the text of what a workflow raised."""
        answer = self.ask("result", id=workflow_id)
        assert "error" in answer, answer
        return answer["error"], answer["message"]

    # -- what can happen to it -----------------------------------------------------------------------------------------

    def reached(self, instant: str) -> Effect:
        """Wait until it holds at an instant."""

        def holds() -> Effect | None:
            if self._process.poll() is not None:
                raise AssertionError(f"the application has ended before {instant}:\n{self.messages}")
            for effect in self._stage.effects():
                if effect.process == self.pid and effect.instant == f"holding:{instant}":
                    return effect
            return None

        held = until(holds, instant)
        assert held is not None
        return held

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._end()

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ended(self) -> int:
        """Wait until it has ended by itself; returns its exit code."""
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self.kill()
        return self._process.returncode

    def close(self) -> int:
        """End its input, upon which it destroys DBOS and exits; returns its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.ended()

    def _end(self) -> None:
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass


class Stage:
    """A database, an effect log, and the processes that come and go."""

    def __init__(self, directory: Path, url: str) -> None:
        self.url = url
        self.log = directory / "effects"
        self._directory = directory
        self._applications: list[Application] = []
        self.log.touch()
        self.execute("CREATE TABLE ledger (workflow_id TEXT, n INTEGER)")

    def launch(
        self, *, hold: Sequence[str] = (), without: Sequence[str] = (), wait: bool = True, **config: Any
    ) -> Application:
        """Start a process and wait until DBOS is launched in it."""
        settings = {
            "log": str(self.log),
            "hold": hold,
            "without": without,
            "config": {
                "name": "shop",
                "system_database_url": self.url,
                "application_database_url": self.url,
                "application_version": "one",
                **config,
            },
        }
        application = Application(self, settings, self._directory / f"messages-{len(self._applications)}")
        self._applications.append(application)
        return application.launched() if wait else application

    def close(self) -> None:
        """Kill whatever still runs."""
        for application in self._applications:
            application.kill()

    # -- what happened ---------------------------------------------------------------------------------------------

    def effects(self) -> list[Effect]:
        """The effect log; a line that is being written is left out."""
        lines = self.log.read_text().split("\n")[:-1]
        return [Effect(int(pid), workflow_id, instant) for pid, workflow_id, instant in (line.split(" ") for line in lines)]

    def count(self, instant: str, workflow_id: str | None = None) -> int:
        """How often an instant came."""
        return sum(
            effect.instant == instant and workflow_id in (None, effect.workflow_id) for effect in self.effects()
        )

    def begun(self) -> Counter[tuple[str, str]]:
        """How often each step of each workflow began."""
        return Counter(
            (effect.workflow_id, effect.instant.removesuffix(":begin"))
            for effect in self.effects()
            if effect.instant.endswith(":begin")
        )

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the database; ``dbos.`` before a system table becomes what it takes."""
        with self._connection() as connection:
            return connection.execute(self._rendered(sql)).fetchall()

    def execute(self, sql: str) -> None:
        """Change the database behind everybody's back."""
        with self._connection() as connection:
            connection.execute(self._rendered(sql))

    def records(self) -> set[Record]:
        """Everything that is recorded."""
        columns = "workflow_uuid, function_id, function_name, output, error"
        return {Record(*row) for row in self.rows(f"SELECT {columns} FROM dbos.operation_outputs")}

    def status(self, workflow_id: str) -> str:
        """The status of a workflow; "" if there is none."""
        rows = self.rows(f"SELECT status FROM dbos.workflow_status WHERE workflow_uuid = '{workflow_id}'")
        return str(rows[0][0]) if rows else ""

    def column(self, name: str, workflow_id: str) -> Any:
        """A column of a workflow's row."""
        return self.rows(f"SELECT {name} FROM dbos.workflow_status WHERE workflow_uuid = '{workflow_id}'")[0][0]

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    @property
    def path(self) -> Path:
        """The file of an SQLite database."""
        return Path(self.url.removeprefix("sqlite:///"))

    def _rendered(self, sql: str) -> str:
        return sql.replace("dbos.", "") if self.is_sqlite else sql

    def _connection(self) -> Any:
        if self.is_sqlite:
            return _sqlite(self.path)
        return psycopg.connect(self.url, autocommit=True)


class _sqlite:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> sqlite3.Connection:
        self._connection = sqlite3.connect(self._path, timeout=PATIENCE_S, isolation_level=None)
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def stages(directory: Path, url: str) -> Iterator[Stage]:
    """A stage for a fixture."""
    stage = Stage(directory, url)
    try:
        yield stage
    finally:
        stage.close()
