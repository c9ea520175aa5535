"""Processes that die at a call: forked from one that has imported everything, which takes a hundredth of the time.

Run as ``python -m tests.failpoints.zygote``. Each line of its input describes a process, each line of its output says
how one ended. It has one thread, so forking it is safe.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.orm  # noqa: F401 - what transactions would import in each process anew

from dbos import DBOS, DBOSConfig
from tests.failpoints.failpoints import Call, Failpoints, Fault, install
from tests.failpoints.scenarios import SCENARIOS, Application
from tests.failpoints.stage import Stage

__all__ = ["KILLED", "Kill", "Zygote"]

KILLED = 9  # the exit status of a process that died where it should
PATIENCE_S = 60  # a process that lives longer hangs


class Kill(Fault):
    """The process is gone."""

    def __init__(self, *, after: bool) -> None:
        self._after = after

    def before(self, call: Call) -> None:
        if not self._after:
            os._exit(KILLED)

    def after(self, call: Call) -> None:
        os._exit(KILLED)


def live(config: DBOSConfig, directory: str, name: str, subject: str, label: str | None, after: bool) -> None:
    """Launch, play a scenario, destroy; the calls are written down for whoever wants to know where it could die."""
    failpoints = Failpoints()
    failpoints.begin(subject, label, Kill(after=after))
    install(pytest.MonkeyPatch(), failpoints)
    DBOS(config=config)
    stage = Stage(config, Path(directory))
    application = Application(stage)
    stage.open()
    DBOS.launch()
    SCENARIOS[name].play(application, subject)
    DBOS.destroy()
    Path(directory, "trace").write_text(json.dumps(failpoints.trace()))


def main() -> None:
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            signal.alarm(PATIENCE_S)
            try:
                live(**json.loads(line))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


class Zygote:
    """The process that others are forked from."""

    def __init__(self, messages: Path) -> None:
        self._messages = messages
        with messages.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.failpoints.zygote"],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "PYTHONWARNINGS": "error"},
            )

    @classmethod
    @contextmanager
    def start(cls, messages: Path) -> Iterator[Zygote]:
        """Have one for a while."""
        zygote = cls(messages)
        with zygote._process:
            yield zygote

    def run(self, **life: Any) -> bool:
        """Let a process live, see :func:`live`; returns whether it died at the call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(life) + "\n")
        self._process.stdin.flush()
        status = self._process.stdout.readline().strip()
        assert status in ("0", str(KILLED)), f"exit status {status}:\n{self._messages.read_text()}"
        return status == str(KILLED)


if __name__ == "__main__":
    main()
