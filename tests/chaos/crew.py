"""Several workers that begin together, and what they say."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

__all__ = ["Crew"]

ROOT = Path(__file__).parents[2]


class Crew:
    """``done`` counts the workflows of each thread of each worker, ``first_ended`` is ``done`` when one had ended."""

    def __init__(self, directory: Path, settings: list[dict[str, Any]]) -> None:
        self.done: Counter[tuple[int, int]] = Counter()
        self.first_ended: Counter[tuple[int, int]] | None = None
        self.errors: list[str] = []
        self._lock = threading.Lock()
        self._messages = [directory / f"messages-{number}" for number in range(len(settings))]
        self._workers: list[subprocess.Popen[str]] = []
        for each, messages in zip(settings, self._messages, strict=True):
            with messages.open("wb") as stderr:
                self._workers.append(
                    subprocess.Popen(
                        [sys.executable, "-W", "error", "-m", "tests.chaos.worker", json.dumps(each)],
                        cwd=ROOT,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=stderr,
                        text=True,
                    )
                )
        self._readers = [
            threading.Thread(target=self._read, args=(number,), daemon=True) for number in range(len(settings))
        ]

    def __enter__(self) -> Crew:
        for number, worker in enumerate(self._workers):
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n", self.messages(number)
        for worker, reader in zip(self._workers, self._readers, strict=True):
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                pipe.close()

    def messages(self, worker: int) -> str:
        """What a worker has logged."""
        return self._messages[worker].read_text()

    def join(self, patience_s: float) -> None:
        """Wait until all have ended by themselves."""
        deadline = time.monotonic() + patience_s
        for number, reader in enumerate(self._readers):
            reader.join(max(0.0, deadline - time.monotonic()))
            assert not reader.is_alive(), f"worker {number} did not end:\n{self.messages(number)[-5000:]}"
            assert self._workers[number].wait(60) == 0, self.messages(number)

    @property
    def has_ended(self) -> bool:
        """Whether nobody works any more."""
        return not any(reader.is_alive() for reader in self._readers)

    def _read(self, number: int) -> None:
        stdout = self._workers[number].stdout
        assert stdout is not None
        for line in stdout:
            with self._lock:
                if line.startswith("["):
                    self.errors += json.loads(line)
                    self.first_ended = self.first_ended or self.done.copy()
                else:
                    self.done[number, int(line)] += 1
