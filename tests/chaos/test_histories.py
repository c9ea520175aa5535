"""Ten thousand workflows in queues of every kind, while processes and the server come and go: the history is sound.

``DBOS_CHAOS_SEED`` repeats the faults of a run, and ``DBOS_CHAOS_WORKFLOWS`` makes it shorter.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dbos.testing._postgres_server import Cluster
from tests.chaos.campaign import Campaign, Settings

WORKFLOWS = int(os.environ.get("DBOS_CHAOS_WORKFLOWS", "10000"))
PER_SECOND = 60
PATIENCE_S = 60.0  # for what is left when the last workflow was submitted
SLOWNESS = 2  # of a busy machine, and while a paused process holds the lock of a file


def run(directory: Path, url: str, note: Callable[[str, object], None], cluster: Cluster | None = None) -> None:
    seed = int(os.environ.get("DBOS_CHAOS_SEED", time.time_ns() % 1_000_000))
    print(f"\nDBOS_CHAOS_SEED={seed}")
    duration_s = WORKFLOWS / PER_SECOND
    settings = Settings(
        seed=seed,
        workflows=WORKFLOWS,
        duration_s=duration_s,
        bound_s=SLOWNESS * duration_s + PATIENCE_S,
        counts_threads=True,
    )

    outcome = Campaign(directory, url, settings, cluster).run()

    print(outcome.figures)
    note("figures", outcome.figures)
    assert outcome.violations == [], outcome.report()
    assert len(outcome.history.submissions) == WORKFLOWS


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_long_history_of_processes_on_one_file_is_sound(
    tmp_path: Path, sqlite_url: str, record_property: Callable[[str, object], None]
) -> None:
    run(tmp_path, sqlite_url, record_property)


@pytest.mark.chaos
@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_a_long_history_of_processes_on_one_server_is_sound(
    tmp_path: Path, private_postgres: Cluster, record_property: Callable[[str, object], None]
) -> None:
    run(tmp_path, private_postgres.url("postgres"), record_property, private_postgres)
