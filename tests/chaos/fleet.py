"""The processes of a campaign, from the outside."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["PATIENCE_S", "POLL_S", "SETTLING_S", "Member"]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0  # for one answer of one process, and for one that was asked to end
POLL_S = 0.05
# A process that is about to go on may be given a signal in any of its threads, and Python handles it in the main one,
# which may sleep for ever.
SETTLING_S = 0.3


class Member:
    """A process of the campaign."""

    def __init__(self, name: str, directory: Path, settings: dict[str, Any]) -> None:
        self.name = name
        self.is_paused = False
        self.base: dict[str, int] = {}
        self._messages = directory / f"{name}.messages"
        with self._messages.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.member", json.dumps(settings)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _answer(self) -> Any:
        try:
            line = self._answers.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise AssertionError(f"{self.name} does not answer:\n{self._stacks()}") from None
        if line is None:
            raise AssertionError(f"{self.name} has ended:\n{self._messages.read_text()[-5000:]}")
        return json.loads(line)

    def _stacks(self) -> str:
        """What its threads are doing."""
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(SETTLING_S)
        return self._messages.read_text()[-20_000:]

    def ready(self) -> Member:
        """Wait until it is launched."""
        assert self._answer() == "ready"
        self.base = self.ask("census")
        return self

    def ask(self, command: str, workflow_ids: Sequence[str] = ()) -> Any:
        """What it answers to a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, workflow_ids]) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        assert "value" in answer, answer
        return answer["value"]

    def pause(self) -> None:
        """SIGSTOP."""
        self.is_paused = True
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT; nothing if it has ended."""
        self.is_paused = False
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> int:
        """Let it end by itself; returns its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.ended()

    def ended(self) -> int:
        """Wait until it has ended; returns its exit code."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end:\n{self._stacks()}") from None
        finally:
            self.kill()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass
