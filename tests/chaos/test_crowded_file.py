"""One SQLite file, two processes, a hundred threads: nobody is told that it is locked, and nobody starves."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.crew import Crew
from tests.chaos.workload import CREATE_LEDGER, bodies, ids

PROCESSES = 2
THREADS = 50


def run(path: Path, patience_s: float, **limit: float) -> Crew:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(CREATE_LEDGER)
    url = f"sqlite:///{path}"
    settings: list[dict[str, Any]] = [
        {
            "config": {
                "name": "chaos",
                "system_database_url": url,
                "application_database_url": url,
                "application_version": "one",
                "executor_id": f"e{number}",
                "log_level": "ERROR",
            },
            "effects": str(path.parent / "effects"),
            "threads": THREADS,
            **limit,
        }
        for number in range(PROCESSES)
    ]
    with Crew(path.parent, settings) as crew:
        crew.join(patience_s)
        for number in range(PROCESSES):
            assert crew.messages(number) == ""
    return crew


def check_exactly_once(path: Path, done: Counter[tuple[int, int]]) -> None:
    numbers = {
        f"e{process}-{thread}-{number}": number for (process, thread), count in done.items() for number in range(count)
    }
    all_ids = {each for workflow_id, number in numbers.items() for each in ids(workflow_id, number)}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute("SELECT workflow_uuid, status FROM workflow_status").fetchall()
        ledger = connection.execute("SELECT workflow_id FROM ledger").fetchall()
    assert dict(rows) == dict.fromkeys(all_ids, "SUCCESS")
    parents = {workflow_id for workflow_id, number in numbers.items() if number % 3}  # their children have entered
    assert sorted(row[0] for row in ledger) == sorted(all_ids - parents)
    assert set(bodies(path.parent / "effects").values()) == {1}


def share_of_the_slower(done: Counter[tuple[int, int]]) -> float:
    by_process = Counter(dict.fromkeys(range(PROCESSES), 0))
    for (process, _), count in done.items():
        by_process[process] += count
    return min(by_process.values()) / by_process.total()


def test_two_processes_of_fifty_threads_share_a_file(tmp_path: Path) -> None:
    crew = run(tmp_path / "dbos.sqlite", 100, per_thread=3)

    assert crew.errors == []
    assert len(crew.done) == PROCESSES * THREADS
    check_exactly_once(tmp_path / "dbos.sqlite", crew.done)
    assert crew.first_ended is not None
    assert share_of_the_slower(crew.first_ended) > 0.1


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_two_processes_of_fifty_threads_share_a_file_for_a_minute(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    crew = run(tmp_path / "dbos.sqlite", 300, seconds=60)

    assert crew.errors == []
    check_exactly_once(tmp_path / "dbos.sqlite", crew.done)
    mean = crew.done.total() / (PROCESSES * THREADS)
    figures = {
        "workflows": crew.done.total(),
        "share of the slower process": round(share_of_the_slower(crew.done), 3),
        "slowest thread": min(crew.done.values()),
        "fastest thread": max(crew.done.values()),
    }
    print(figures)
    record_property("figures", figures)
    assert share_of_the_slower(crew.done) > 0.25
    assert len(crew.done) == PROCESSES * THREADS
    assert min(crew.done.values()) > mean / 4
