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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psycopg

__all__ = ["Application", "Effect", "Record", "Stage", "until"]

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PATIENCE_S = 100.0  # a test that waits longer has failed; none waits longer than it must
POLL_S = 0.005


def until(check: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
    """Ask again and again until the answer is true, and return it."""
    deadline = time.monotonic() + patience_s
    while not (answer := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s} s in vain for {what}")
        time.sleep(POLL_S)
    return answer


class Effect(NamedTuple):
    """One line of the effect log."""

    process: int
    workflow_id: str
    function_id: int
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

    def has_done(self, count: int) -> None:
        """Wait until it has come to so many instants, or has nothing more to do."""

        def is_done() -> bool:
            done = sum(effect.process == self.pid for effect in self._stage.effects())
            return done >= count or not self._stage.rows("SELECT 1 FROM dbos.workflow_status WHERE status <> 'SUCCESS'")

        until(is_done, f"{count} instants")

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._end()

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ended(self, patience_s: float = PATIENCE_S) -> int:
        """Wait until it has ended by itself; returns its exit code."""
        try:
            self._process.wait(patience_s)
        finally:
            self.kill()
        return self._process.returncode

    def end_input(self) -> None:
        """End its input, upon which its main thread destroys DBOS and ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close(self) -> int:
        """End its input, upon which it destroys DBOS and exits; returns its exit code."""
        self.end_input()
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

    def __init__(self, directory: Path, url: str, application_url: str) -> None:
        self.url = url
        self.application_url = application_url
        self.log = directory / "effects"
        self._directory = directory
        self._applications: list[Application] = []
        self.log.touch()
        self.gate = directory / "gate"  # created by a test that lets a step pass
        self.release = directory / "release"  # created by a test that lets go on what is held
        _execute(application_url, "CREATE TABLE ledger (workflow_id TEXT, n INTEGER)")

    def launch(
        self,
        *,
        hold: Sequence[str] = (),
        without: Sequence[str] = (),
        wait: bool = True,
        checkpoint_bytes: int | None = None,
        handles_sigterm: bool = True,
        watches_commits: bool = True,
        queues: Sequence[Mapping[str, Any]] = (),
        listens_to: Sequence[str] | None = None,
        cuckoo: str | None = None,
        failing_disk: Path | None = None,
        **config: Any,
    ) -> Application:
        """Start a process and wait until DBOS is launched in it."""
        settings = {
            "log": str(self.log),
            "hold": hold,
            "release": str(self.release),
            "without": without,
            "checkpoint_bytes": checkpoint_bytes,
            "handles_sigterm": handles_sigterm,
            "watches_commits": watches_commits,
            "queues": queues,
            "listens_to": listens_to,
            "cuckoo": cuckoo,
            "failing_disk": None if failing_disk is None else str(failing_disk),
            "config": {
                "name": "shop",
                "system_database_url": self.url,
                "application_database_url": self.application_url,
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
        effects = []
        for line in self.log.read_text().split("\n")[:-1]:
            process, workflow_id, function_id, instant = line.split(" ")
            effects.append(Effect(int(process), workflow_id, int(function_id), instant))
        return effects

    def count(self, instant: str, workflow_id: str | None = None) -> int:
        """How often an instant came."""
        return sum(effect.instant == instant and workflow_id in (None, effect.workflow_id) for effect in self.effects())

    def begun(self) -> Counter[tuple[str, int]]:
        """How often the body of each step began, by workflow and function id."""
        return Counter(
            (effect.workflow_id, effect.function_id)
            for effect in self.effects()
            if effect.function_id and effect.instant.endswith(":begin") and not effect.instant.startswith("holding:")
        )

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the database; ``dbos.`` before a system table becomes what it takes."""
        return _execute(self.url, sql)

    def execute(self, sql: str) -> None:
        """Change the database behind everybody's back."""
        _execute(self.url, sql)

    def application_rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the application database."""
        return _execute(self.application_url, sql)

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
        return _path(self.url)


def _execute(url: str, sql: str) -> list[tuple[Any, ...]]:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(_path(url), timeout=PATIENCE_S, isolation_level=None)) as connection:
            return connection.execute(sql.replace("dbos.", "")).fetchall()
    with psycopg.connect(url, autocommit=True) as postgres:
        cursor = postgres.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def _path(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def stages(directory: Path, url: str, application_url: str | None = None) -> Iterator[Stage]:
    """A stage for a fixture; without ``application_url`` the system database is the application database too."""
    stage = Stage(directory, url, application_url or url)
    try:
        yield stage
    finally:
        stage.close()
