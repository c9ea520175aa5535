"""The final report: what was counted, by which processes, and what that proves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .pipeline import CENSUSES, MODULES
from .proof import Evidence, Life
from .source import Row
from .witness import Step

__all__ = ["print_report"]

COLUMNS = {column.name: number for number, column in enumerate(MODULES.c)}

Figure = Callable[[Sequence[Row]], int]


def print_report(console: Console, evidence: Evidence) -> None:
    """Print the report."""
    for part in (_figures(evidence.rows), _processes(evidence), _claims(evidence), _verdict(evidence)):
        console.print(Padding(part, (1, 0, 0, 2), expand=False))
    console.print()


# -- the census --------------------------------------------------------------------------------------------------------


def _figures(rows: Sequence[Row]) -> RenderableType:
    """The census itself; a figure that a census does not measure stays blank."""
    parts = [[row for row in rows if row[COLUMNS["census"]] == census.config_name] for census in CENSUSES]
    figures: dict[str, Figure] = {
        "packages": lambda part: len({row[COLUMNS["package"]] for row in part}),
        "files": len,
        "lines": _total("lines"),
        "functions": _total("functions"),
        "classes": _total("classes"),
        "deepest nesting": _total("nesting", max),
        "assertions": _total("assertions"),
    }
    table = _table("")
    for title in (*(census.config_name for census in CENSUSES), "in all"):
        table.add_column(title, justify="right", min_width=10)
    for name, figure in figures.items():
        table.add_row(name, *(f"{figure(part):,}" if figure(part) else "" for part in (*parts, rows)))
    return table


def _total(column: str, fold: Callable[[list[int]], int] = sum) -> Figure:
    return lambda rows: fold([row[COLUMNS[column]] or 0 for row in rows] or [0])


# -- the processes -----------------------------------------------------------------------------------------------------


def _processes(evidence: Evidence) -> RenderableType:
    """One line for each process."""
    table = _table("process")
    for title in ("from", "to", "steps run", "of them again"):
        table.add_column(title, justify="right")
    table.add_column("end")
    seen: set[Step] = set()
    for life in evidence.lives:
        steps = evidence.steps_of(life)
        again = len(steps & seen)
        seen |= steps
        table.add_row(
            str(life.pid),
            f"{life.began_s:.1f} s",
            f"{life.ended_s:.1f} s",
            f"{len(steps):,}",
            str(again) if again else "",
            _end_of(life, len(evidence.in_flight(life))),
        )
    return table


def _end_of(life: Life, in_flight: int) -> Text:
    if life.was_killed:
        return Text(f"kill -9, {in_flight} in flight", "red")
    return Text("finished", "green")


# -- the proof ---------------------------------------------------------------------------------------------------------


def _claims(evidence: Evidence) -> RenderableType:
    """The proof, line by line."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for claim in evidence.claims():
        table.add_row(Text("ok", "green") if claim.holds else Text("NO", "bold red"), claim.text)
    return table


def _verdict(evidence: Evidence) -> RenderableType:
    """What it means, in plain words."""
    if not evidence.holds:
        return Text("The proof does not hold.", "bold red")
    times = {0: "never", 1: "once", 2: "twice"}.get(evidence.kills, f"{evidence.kills} times")
    return Text(
        f"Killed {times}, finished after {evidence.lives[-1].ended_s:.1f} seconds: no finished step was repeated,\n"
        "and the result is what an undisturbed run computes.",
        "bold",
    )


def _table(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first)
    return table
