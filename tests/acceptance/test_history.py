"""Processes work through queues while they are killed, paused and cut off: a checker proves what always holds.

The long form is ``make chaos``; see :mod:`tests.chaos.checker` for what is proved, and how.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dbos.testing._postgres_server import Cluster
from tests.chaos.campaign import Campaign, Settings

WORKFLOWS = 300
BOUND_S = 90.0  # it takes ten seconds


def run(directory: Path, url: str, faults: tuple[str, ...], cluster: Cluster | None = None) -> None:
    settings = Settings(
        seed=1,
        workflows=WORKFLOWS,
        duration_s=4.0,
        bound_s=BOUND_S,
        workers=2,
        between_faults_s=(0.2, 0.6),
        faults=faults,
    )

    outcome = Campaign(directory, url, settings, cluster).run()

    assert outcome.violations == [], outcome.report()
    assert len(outcome.history.submissions) == WORKFLOWS


def test_a_history_of_processes_on_one_file_is_sound(tmp_path: Path, sqlite_url: str) -> None:
    run(tmp_path, sqlite_url, ("pause", "cancel", "kill", "terminate"))


@pytest.mark.postgres
def test_a_history_of_processes_on_one_server_is_sound(tmp_path: Path, private_postgres: Cluster) -> None:
    url = private_postgres.url("postgres")

    run(tmp_path, url, ("pause", "cancel", "kill", "crash", "disconnect"), private_postgres)
