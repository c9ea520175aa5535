"""The code in the documentation runs.

The Python blocks of a page are one program, in the order in which they stand. A block behind a comment that says
``<!-- not run: why -->`` only has to be valid Python.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What the pages say that they print.
PRINTED = {
    "listing": """\
order-2 charged 2
order-1 charged 1
order-0 charged 0
1 charge charged 1
0
checkout SUCCESS 3
step_count charge 3
workflow_count checkout 3
""",
    "retention": """\
2 deleted, 4 kept
['invoice-1'] invoice 1
""",
    "sharing-a-database": """\
Hello, Ada
['shop', 'bank']
1
{'workflow_status': 1, 'queues': 0, 'workflow_schedules': 0, 'application_versions': 1, 'executor_instances': 0}
""",
}
BLOCK = re.compile(r"^(?P<skip><!-- not run: .+ -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[bool, str]]:
    """The page's Python blocks, and whether each is to be run."""
    return [(found["skip"] is None, found["code"]) for found in BLOCK.finditer(page.read_text())]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    for _, code in blocks(page):
        compile(code, str(page), "exec")
    program = tmp_path / "page.py"
    program.write_text("\n".join(code for is_run, code in blocks(page) if is_run))

    ended = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout == PRINTED.get(page.stem, ended.stdout)
