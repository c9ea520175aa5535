"""The picture: for each throughput, a bar for each side, on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from bench.runner import Row

WIDTH, LEFT, RIGHT, TOP = 860, 250, 110, 62
BAR, GAP = 15, 14
COLOURS = {"ours": "#2563a8", "peer": "#c0792a", "floor": "#9aa3ad"}
LABELS = {"ours": "this library", "peer": "peer", "floor": "by hand, bare driver"}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 }
.title { font-size: 15px; font-weight: 600 }
.small { font-size: 11px; fill: #666 }
.grid { stroke: #ddd }
@media (prefers-color-scheme: dark) {
  .back { fill: #1b1f24 } text { fill: #ddd } .small { fill: #aaa } .grid { stroke: #3a4048 }
}
"""


def as_svg(rows: Sequence[Row]) -> str:
    """The throughputs among the rows, as a drawing that needs nothing else."""
    rows = [row for row in rows if row.unit.endswith("/s")]
    shown = [value for row in rows for side in COLOURS if (value := row.median(side))]
    low = math.floor(math.log10(min(shown, default=1)))
    high = max(low + 1, math.ceil(math.log10(max(shown, default=10))))

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    bars, y = [], float(TOP)
    for row in rows:
        sides = [side for side in COLOURS if row.median(side)]
        middle = y + BAR * len(sides) / 2
        bars.append(_text(LEFT - 10, middle - 1, row.label, anchor="end"))
        bars.append(_text(LEFT - 10, middle + 13, f"{row.database}, {row.unit}", anchor="end", kind="small"))
        for side in sides:
            value = row.median(side) or 1
            bars.append(
                f'<rect x="{LEFT}" y="{y:g}" width="{x(value) - LEFT:.1f}" height="{BAR - 2}" '
                f'fill="{COLOURS[side]}"><title>{LABELS[side]}: {value:,.0f} {row.unit}</title></rect>'
            )
            note = f"{value:,.0f}".replace(",", " ")
            if side == "ours" and row.ratio:
                note += f"  ({row.ratio:.1f} × peer)"
            bars.append(_text(x(value) + 5, y + BAR - 4, note))
            y += BAR
        y += GAP
    grid = []
    for power in range(low, high + 1):
        grid.append(f'<line class="grid" x1="{x(10**power):.1f}" x2="{x(10**power):.1f}" y1="{TOP - 6}" y2="{y:g}"/>')
        grid.append(_text(x(10**power), y + 14, f"{10**power:,}".replace(",", " "), anchor="middle", kind="small"))
    legend, at = [], LEFT
    for side, label in LABELS.items():
        legend.append(f'<rect x="{at}" y="34" width="12" height="12" fill="{COLOURS[side]}"/>')
        legend.append(_text(at + 17, 44, label))
        at += 40 + 7 * len(label)
    height = y + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" role="img">',
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height:g}" fill="#fff"/>',
        _text(LEFT, 22, "Throughput with equal durability (logarithmic)", kind="title"),
        *legend,
        *grid,
        *bars,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
