"""Live progress: a picture that renews itself in a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table

from .database import Tally

__all__ = ["Progress"]

PLAIN_INTERVAL_S = 5.0  # between two lines where there is no terminal


class Progress:
    """Shows how far the censuses have come, towards the given ``goals``, and tells what happens as it happens."""

    def __init__(self, console: Console, goals: Mapping[str, Tally]) -> None:
        self._console = console
        self._goals = goals
        self._began_at = self._printed_at = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def elapsed_s(self) -> float:
        """The time since the beginning, in seconds."""
        return time.monotonic() - self._began_at

    def tell(self, event: str, style: str = "") -> None:
        """Print an event, for good."""
        self._console.print(f"{self.elapsed_s:7.1f} s  {event}", style=style, highlight=False)

    def show(self, tallies: Mapping[str, Tally], steps: int, pid: int) -> None:
        """Show the present state."""
        if self._live is not None:
            self._live.update(self._picture(tallies, steps, pid), refresh=True)
        elif time.monotonic() - self._printed_at >= PLAIN_INTERVAL_S:
            self._printed_at = time.monotonic()
            files = sum(tally.files for tally in tallies.values())
            goal = sum(tally.files for tally in self._goals.values())
            self.tell(f"process {pid}: {files:,} of {goal:,} files, {steps:,} steps on record")

    def _picture(self, tallies: Mapping[str, Tally], steps: int, pid: int) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        for justify in ("left", "left", "right", "right"):
            table.add_column(justify=justify)
        for name, goal in self._goals.items():
            tally = tallies.get(name, Tally())
            table.add_row(
                name,
                ProgressBar(total=goal.files, completed=tally.files, width=36),
                f"{tally.files:,} of {goal.files:,} files",
                f"{tally.packages} of {goal.packages} packages",
            )
        table.add_row("", f"process {pid}", f"{steps:,} steps on record", f"{self.elapsed_s:.1f} s")
        return Padding(table, (1, 0, 0, 2))
