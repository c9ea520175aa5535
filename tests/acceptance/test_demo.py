"""The demonstration, run for real with little work; its report is checked against the files it leaves behind."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from examples.library_census.proof import Evidence, Life
from examples.library_census.source import Row
from examples.library_census.witness import Effect, Step, read_log

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")


# -- the programs ------------------------------------------------------------------------------------------------------


def run_program(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a directory, with this tree's packages."""
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(directory), "PATH": ""}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=100)


def query(directory: Path, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(directory / "census.sqlite")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_the_demonstration_kills_twice_and_reports_what_its_files_bear_out(tmp_path: Path) -> None:
    options = ["--limit", "30", "--kills", "2", "--directory", str(tmp_path)]

    demonstration = run_program("-m", "examples.library_census", *options, directory=tmp_path)

    assert demonstration.returncode == 0, demonstration.stdout + demonstration.stderr
    assert demonstration.stdout.count("kill -9, ") == 2
    effects = read_log(tmp_path / "effects.log")
    runs = Counter(effect.step for effect in effects)
    recorded = query(
        tmp_path, "SELECT workflow_uuid, function_id FROM operation_outputs WHERE child_workflow_id IS NULL"
    )
    assert len({effect.pid for effect in effects}) == 3
    assert set(recorded) == set(runs)
    assert f"{len(recorded)} steps are on record" in demonstration.stdout
    assert f"{sum(count > 1 for count in runs.values())} ran again" in demonstration.stdout
    assert query(tmp_path, "SELECT count(*), count(DISTINCT path) FROM library_census_modules") == [(60, 60)]
    assert "60 rows in the user's table, none twice, none missing" in demonstration.stdout
    assert query(tmp_path, "SELECT DISTINCT status FROM workflow_status") == [("SUCCESS",)]


def test_a_demonstration_that_could_not_kill_proves_nothing(tmp_path: Path) -> None:
    options = ["--limit", "2", "--kills", "1", "--kill-after", "1000", "--directory", str(tmp_path)]

    demonstration = run_program("-m", "examples.library_census", *options, directory=tmp_path)

    assert demonstration.returncode == 1
    assert "NO  0 of 1 processes were killed" in demonstration.stdout


def test_the_smallest_example_greets(tmp_path: Path) -> None:
    example = run_program(str(ROOT / "examples" / "hello.py"), directory=tmp_path)

    assert (example.stdout, example.stderr) == ("Hello, world!\n", "")


# -- the proof ---------------------------------------------------------------------------------------------------------

FIRST, SECOND, THIRD = (("census", 1), ("census", 2), ("census", 3))
ROWS: list[Row] = [("runtime", "a.py"), ("runtime", "b.py")]


def evidence(
    *,
    ran_first: Sequence[Step] = (FIRST, SECOND),
    recorded_first: Sequence[Step] = (FIRST,),
    ran_last: Sequence[Step] = (SECOND, THIRD),
    recorded_last: Sequence[Step] = (FIRST, SECOND, THIRD),
    exit_codes: tuple[int, int] = (-9, 0),
    rows: Sequence[Row] = ROWS,
) -> Evidence:
    """A process is killed while it runs the second step; another one runs that again, and the third."""
    lives = [
        Life(1, 0.0, 1.0, exit_codes[0], frozenset(recorded_first)),
        Life(2, 1.0, 2.0, exit_codes[1], frozenset(recorded_last)),
    ]
    effects = [Effect(1, step, "") for step in ran_first] + [Effect(2, step, "") for step in ran_last]
    return Evidence(1, lives, effects, rows, ROWS)


def test_the_proof_holds_when_only_what_was_in_flight_ran_again() -> None:
    assert [claim.text for claim in evidence().claims() if not claim.holds] == []


@pytest.mark.parametrize(
    ("tampered", "refuted"),
    [
        (evidence(ran_last=(FIRST, SECOND, THIRD)), "1 steps ran again after they had been recorded"),
        (
            evidence(ran_last=(SECOND, THIRD, THIRD)),
            "1 of them ran once; 2 ran again, each of them in flight at a kill",
        ),
        (evidence(recorded_last=(FIRST, THIRD)), "2 steps are on record, and the log has seen each of them run"),
        (evidence(ran_last=(SECOND,)), "3 steps are on record, and the log has seen each of them run"),
        (evidence(rows=[*ROWS, ROWS[0]]), "3 rows in the user's table, 1 twice, none missing"),
        (evidence(rows=ROWS[:1]), "1 rows in the user's table, none twice, 1 missing"),
        (evidence(rows=[ROWS[0], ("runtime", "c.py")]), "every row is what a plain loop without the library computes"),
        (evidence(exit_codes=(-9, 1)), "1 of 2 processes were killed with SIGKILL, the last one finished"),
        (evidence(exit_codes=(0, 0)), "0 of 2 processes were killed with SIGKILL, the last one finished"),
    ],
)
def test_the_proof_fails_when_anything_ran_vanished_or_appeared_that_should_not(
    tampered: Evidence, refuted: str
) -> None:
    assert not tampered.holds
    assert refuted in [claim.text for claim in tampered.claims() if not claim.holds]
