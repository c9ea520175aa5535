"""Which process an executor instance is, and whether it still exists: facts of the operating system, read from /proc.

Where there is no /proc, another process cannot be told to be gone; its lease decides then.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from dbos._sysdb.rows import ExecutorRow

__all__ = ["ProcessIdentity", "is_gone", "own_identity"]

_PROC = Path("/proc")
UNKNOWN = ""  # never equal to anything, not even to itself: see is_gone


class ProcessIdentity:
    """The host, boot, pid namespace, pid and start time that single out a process."""

    def __init__(self) -> None:
        self.hostname = socket.gethostname()
        self.pid = os.getpid()
        self.boot_id = _read(_PROC / "sys/kernel/random/boot_id")
        self.pid_namespace = _link(_PROC / "self/ns/pid")
        self.started_at = _start_time(self.pid) or UNKNOWN


def own_identity() -> ProcessIdentity:
    """The identity of this process."""
    return ProcessIdentity()


def is_gone(executor: ExecutorRow, own: ProcessIdentity) -> bool:
    """Whether an instance's process surely does not exist any more: same boot, same pid namespace, no such process."""
    if UNKNOWN in (executor.boot_id, executor.pid_namespace, executor.process_started_at):
        return False
    if (executor.boot_id, executor.pid_namespace) != (own.boot_id, own.pid_namespace):
        return False
    started_at = _start_time(executor.pid)
    if started_at is None:
        return not _may_exist(executor.pid)
    return started_at != executor.process_started_at


def _may_exist(pid: int) -> bool:
    """Whether there may be a process that /proc does not show us: it can be mounted to hide those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return False  # ours, so it would have been shown: it is a zombie


def _start_time(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot; None if there is none to be seen, or only its zombie."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The second field is the command in parentheses, which may itself hold any character.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in ("Z", "X") else fields[19]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return UNKNOWN


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return UNKNOWN
