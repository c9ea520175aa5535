"""The page that tells which test shows what: whatever it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "concepts" / "faults.md"
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
CASE = re.compile(r'^\| <a id="(\w+)"></a>(\w+) \|', re.MULTILINE)


@cache
def functions(path: str) -> set[str]:
    """The functions of a file that pytest would collect as tests; none if there is no such file."""
    if not (ROOT / path).is_file():
        return set()
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_the_page_names_exists() -> None:
    named = NAMED_TEST.findall(PAGE.read_text())

    missing = [
        f"{path}::{name}" for path, name in named if name not in functions(path) and (name or not functions(path))
    ]

    assert len(named) > 40
    assert missing == []


def test_every_case_has_one_anchor_and_names_a_test() -> None:
    text = PAGE.read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| (<a|[A-Z]\d)", line)]

    anchors = CASE.findall(text)

    assert len(anchors) == len(rows)
    assert all(anchor == shown for anchor, shown in anchors)
    assert len({anchor for anchor, _ in anchors}) == len(anchors)
    assert [row for row in rows if not NAMED_TEST.search(row)] == []
