"""A log of what really ran, kept by the step bodies themselves and independent of the library's records.

Each body writes one line as it begins, and the line is on disk before the body goes on. A step that runs twice leaves
two lines, whatever any database says about it.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from dbos import DBOS

__all__ = ["LOG_VARIABLE", "Effect", "Step", "note", "read_log"]

LOG_VARIABLE = "LIBRARY_CENSUS_LOG"  # the log's path; without it, nothing is written

Step = tuple[str, int]  # workflow id and function id: a step's identity, in the library's tables too


@dataclass(frozen=True, slots=True)
class Effect:
    """One line: the body of a step began in a process."""

    pid: int
    step: Step
    what: str


def note(what: str) -> None:
    """Write down that the body of the current step begins."""
    if path := os.environ.get(LOG_VARIABLE):
        line = f"{os.getpid()}\t{DBOS.workflow_id}\t{DBOS.step_id}\t{what}\n"
        log = _open(path)
        os.write(log, line.encode())  # one call appends one whole line, whichever thread makes it
        os.fsync(log)


@functools.cache
def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def read_log(path: Path) -> list[Effect]:
    """All lines, in the order in which they were written."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [Effect(int(pid), (workflow_id, int(step_id)), what) for pid, workflow_id, step_id, what in lines]
