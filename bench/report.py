"""The table and the files of a run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.plot import as_svg
from bench.runner import Row

COLUMNS = (
    *("benchmark", "database", "unit", "ours", "spread", "peer", "spread", "ratio", "target"),
    *("by hand", "× hand", "CPU µs"),
)


def table(rows: Sequence[Row]) -> str:
    """The figures as a Markdown table whose columns also line up in a terminal.

    ``spread`` is how far the runs lie apart, (most - least) / median; ``× hand`` how many times slower we are than the
    same work by hand, beside what we allow ourselves; ``CPU µs`` what one unit costs our process, which a busy machine
    disturbs less than the rest.
    """
    cells = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    lines = [_line(line, widths) for line in cells]
    rule = (
        "|" + "|".join(f"{'-' * (width + 1)}{':' if column > 2 else '-'}" for column, width in enumerate(widths)) + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    mark = {True: " ✓", False: " ✗", None: ""}
    floor = row.floor_ratio
    within = row.floor_within
    return (
        row.label,
        row.database or "",
        row.unit,
        figure(row.median("ours")),
        _spread(row.figures.get("ours")),
        figure(row.median("peer")),
        _spread(row.figures.get("peer")),
        "" if row.ratio is None else f"{figure(row.ratio)} ×",
        "" if row.target is None else f"{row.target}{mark[row.is_target_met]}",
        figure(row.median("floor")),
        "" if floor is None or within is None else f"{floor:.2f} (≤ {within:g}){mark[floor <= within]}",
        figure(statistics.median(row.cpu_us["ours"]) if row.cpu_us.get("ours") else None),
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (
        cell.rjust(width) if column > 2 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join(aligned) + " |"


def figure(value: float | None) -> str:
    """Three significant digits, thousands apart."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(figures: Sequence[float] | None) -> str:
    if not figures or len(figures) < 2:
        return ""
    middle = sorted(figures)[len(figures) // 2]
    return f"{(max(figures) - min(figures)) / middle * 100:.0f} %" if middle else ""


def conditions(facts: dict[str, Any]) -> str:
    """What the figures were taken on, line by line."""
    return "\n".join(_facts(facts))


def _facts(facts: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            lines += [f"{indent}{name}:", *_facts(value, indent + "  ")]
        elif isinstance(value, dict):
            lines.append(f"{indent}{name}: " + ", ".join(f"{inner} {what}" for inner, what in value.items()))
        elif value is not None:
            lines.append(f"{indent}{name}: {value}")
    return lines


def write(directory: Path, name: str, rows: Sequence[Row], facts: dict[str, Any]) -> list[Path]:
    """Write ``<name>.json``, ``<name>.md`` and ``<name>.svg``."""
    directory.mkdir(exist_ok=True)
    texts = {
        "json": json.dumps(facts | {"rows": [row.as_json() for row in rows]}, indent=2) + "\n",
        "md": f"{table(rows)}\n\n```\n{conditions(facts)}\n```\n",
        "svg": as_svg(rows),
    }
    paths = []
    for suffix, text in texts.items():
        path = directory / f"{name}.{suffix}"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths
