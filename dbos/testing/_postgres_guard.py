"""Stops a test run's PostgreSQL servers when the run ends, however it ends.

The controlling pytest process holds the run directory's FIFO ``lifeline`` open. This guard, a process of its own, reads
from it and therefore wakes when that process is gone, even by SIGKILL. While it lives it holds a lock on ``guard``, so
that an orderly run can wait for it. Standard library only: it starts in some 20 ms.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time
from pathlib import Path

STOP_S = 5.0  # an immediate shutdown takes some 50 ms


def sweep(directory: Path) -> None:
    """Stop every server with data below ``directory``, then remove it all."""
    for pid_file in directory.glob("*/data/postmaster.pid"):
        stop(pid_file)
    shutil.rmtree(directory, ignore_errors=True)


def stop(pid_file: Path) -> None:
    # SIGQUIT is PostgreSQL's immediate shutdown: the data is thrown away anyway. The server removes its file last;
    # waiting for its process instead would also wait for init to reap it. A killed server's children notice and end.
    deadline = time.monotonic() + STOP_S
    try:
        pid = int(pid_file.read_text().split("\n", 1)[0])
        os.kill(pid, signal.SIGQUIT)
        while pid_file.exists():
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.005)
    except (FileNotFoundError, ProcessLookupError):
        pass


def main(directory: Path) -> None:
    guard = os.open(directory / "guard", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(guard, fcntl.LOCK_EX)
    if os.fork():  # the caller need not wait for us; the child keeps the lock
        os._exit(0)
    os.setsid()  # away from the terminal: an interrupt there is for pytest
    with open(directory / "lifeline", "rb") as lifeline:
        lifeline.read()
    sweep(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
