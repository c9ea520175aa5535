"""What the figures were taken on: hardware, system, interpreter, and how long this disk takes to keep a promise."""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

SYNC_BYTES = 8192
SYNC_COUNT = 300


def describe(directory: Path) -> dict[str, Any]:
    """The facts, with nothing that names a person or a host."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
        if hasattr(os, "sysconf")
        else None,
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "file_system": file_system(directory),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "fdatasync_ms": sync_ms(directory),
    }


def sync_ms(directory: Path) -> dict[str, float]:
    """How long a write of 8 KiB takes to be on the disk, in milliseconds: what no commit can go below."""
    path = directory / "sync"
    synchronize = getattr(os, "fdatasync", os.fsync)
    times = []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for _ in range(SYNC_COUNT):
            os.pwrite(descriptor, os.urandom(SYNC_BYTES), 0)
            began = time.perf_counter()
            synchronize(descriptor)
            times.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(descriptor)
        path.unlink()
    times.sort()
    return {"median": round(statistics.median(times), 3), "p99": round(times[int(len(times) * 0.99)], 3)}


def file_system(directory: Path) -> str:
    """The kind of file system that ``directory`` is on; empty where that cannot be known."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    above = {str(parent) for parent in (directory.resolve(), *directory.resolve().parents)}
    found = [(len(point), kind) for point, kind in mounts if point in above]
    return max(found, default=(0, ""))[1]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
