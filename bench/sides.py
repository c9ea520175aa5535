"""Who is measured: our library, its peer, and the same work by hand; each is an interpreter and a script.

The peer is the newest release of the package ``dbos`` on PyPI when its virtual environment was made; delete
``bench/.peer-venv`` to get a newer one. It is used through its public interface only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
PEER_VENV = PACKAGE / ".peer-venv"
PEER = "dbos"
TIMEOUT_S = 300.0  # a run takes seconds
SCALE_TIMEOUT_S = 3600.0  # unless there is very much of it
REPORT_VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try: found[name] = version(name)
    except PackageNotFoundError: pass
print(json.dumps(found))
"""
TIME_IMPORT = "import time; began = time.perf_counter(); import dbos; print(time.perf_counter() - began)"


class WorkerError(Exception):
    """A worker process failed; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Side:
    """One competitor."""

    name: str
    python: Path
    command: tuple[str, ...]
    distribution: str
    is_of_package: bool = False  # whether its script imports this package
    timeout_s: float = TIMEOUT_S

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job in a fresh process; returns its figures."""
        figures: dict[str, Any] = json.loads(self._output(*self.command, json.dumps(job)))
        return figures

    def import_s(self) -> float:
        """How long ``import dbos`` takes in a fresh process, in seconds."""
        return float(self._output("-P", "-c", TIME_IMPORT))

    def versions(self) -> dict[str, str]:
        """The versions of what matters, by the name of the distribution."""
        names = (self.distribution, "psycopg", "psycopg-binary", "SQLAlchemy")
        versions: dict[str, str] = json.loads(self._output("-P", "-c", REPORT_VERSIONS, *names))
        return versions

    def _output(self, *arguments: str) -> str:
        """The last line that the interpreter prints."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("DBOS", "PYTHON"))}
        if self.is_of_package:
            environment["PYTHONPATH"] = str(PACKAGE.parent)
        try:
            done = subprocess.run(
                [self.python, *arguments],
                capture_output=True,
                text=True,
                cwd=tempfile.gettempdir(),  # not where `import dbos` would find our sources
                env=environment,
                timeout=self.timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise WorkerError(f"{self.name} took more than {self.timeout_s:.0f} s") from error
        lines = done.stdout.strip().splitlines()
        if done.returncode != 0 or not lines:
            raise WorkerError(f"{self.name} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return lines[-1]


def ours() -> Side:
    return Side("ours", Path(sys.executable), ("-P", str(PACKAGE / "workloads.py")), "opendbos")


def floor() -> Side:
    return Side("floor", Path(sys.executable), ("-m", "bench.floor"), "opendbos", is_of_package=True)


def scale() -> Side:
    """Our library, doing what there is very much of."""
    command = ("-m", "bench.scale")
    return Side("ours", Path(sys.executable), command, "opendbos", is_of_package=True, timeout_s=SCALE_TIMEOUT_S)


def peer() -> Side | None:
    """The peer, installed at its first use; None, with a message, if it cannot be."""
    python = PEER_VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
    side = Side("peer", python, ("-P", str(PACKAGE / "workloads.py")), PEER)
    if not (PEER_VENV / "installed").exists():
        print(f"bench: installing {PEER} into {PEER_VENV.relative_to(PACKAGE.parent)} …", file=sys.stderr)
        venv.create(PEER_VENV, clear=True, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PEER]
        if subprocess.run(install).returncode != 0:
            print("bench: it could not be installed; measuring without it", file=sys.stderr)
            return None
        (PEER_VENV / "installed").touch()
    return side
