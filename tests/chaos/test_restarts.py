"""PostgreSQL crashes again and again while workflows run: all of them complete, and nothing is done twice."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbos import DBOS, DBOSConfig
from dbos.testing._postgres_server import Cluster
from tests.chaos.crew import Crew
from tests.chaos.workload import CREATE_LEDGER, Workload, bodies, expected, ids
from tests.integration.histories import eventually

pytestmark = pytest.mark.postgres


def crash(cluster: Cluster) -> None:
    """As if the power of the server had failed: nothing is closed in an orderly way, and the start recovers."""
    cluster.stop("immediate")
    cluster.start()


@pytest.fixture
def url(private_postgres: Cluster) -> str:
    url = private_postgres.url("postgres")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(CREATE_LEDGER.encode())
    return url


def configuration(url: str, executor_id: str = "local") -> DBOSConfig:
    return {
        "name": "chaos",
        "system_database_url": url,
        "application_database_url": url,
        "application_version": "one",
        "executor_id": executor_id,
        "log_level": "ERROR",
    }


def check_exactly_once(url: str, effects: Path, numbers: dict[str, int]) -> int:
    """Assert that everything completed and nothing happened twice; returns how many workflows were taken over."""
    all_ids = sorted(each for workflow_id, number in numbers.items() for each in ids(workflow_id, number))
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT workflow_uuid, status, output, recovery_attempts FROM dbos.workflow_status")
        found: dict[str, tuple[Any, ...]] = {row[0]: row[1:] for row in rows}
        ledger = connection.execute("SELECT workflow_id FROM ledger").fetchall()
        records = connection.execute(
            "SELECT workflow_uuid, function_id FROM dbos.operation_outputs WHERE function_name LIKE 'step%'"
        ).fetchall()
    assert sorted(found) == all_ids
    assert {row[0] for row in found.values()} == {"SUCCESS"}
    assert all(json.loads(found[workflow_id][1]) == expected(number) for workflow_id, number in numbers.items())
    parents = {workflow_id for workflow_id, number in numbers.items() if number % 3}  # their children have entered
    assert sorted(row[0] for row in ledger) == sorted(set(all_ids) - parents)
    ran = bodies(effects)
    assert set(records) <= ran.keys()
    # The process has lived on, so a result that could not be stored at once was stored later. Only who was taken over,
    # because the server was away for longer than a lease, may have begun a step a second time.
    repeated = {workflow_id for (workflow_id, _), times in ran.items() if times > 1}
    taken_over = {workflow_id for workflow_id, row in found.items() if row[2] > 1}
    assert repeated <= taken_over
    return len(taken_over)


def test_a_server_that_crashes_in_the_middle_costs_no_workflow_and_repeats_none(
    private_postgres: Cluster, url: str, tmp_path: Path
) -> None:
    count, clients = 150, 15
    DBOS.destroy(destroy_registry=True)
    DBOS(config=configuration(url))
    workload = Workload(tmp_path / "effects")
    results: dict[int, Any] = {}

    def work(first: int) -> None:
        for number in range(first, count, clients):
            try:
                results[number] = workload.perform(f"w-{number}", number)
            except BaseException as error:
                results[number] = error

    DBOS.launch()
    try:
        threads = [threading.Thread(target=work, args=(first,)) for first in range(clients)]
        for thread in threads:
            thread.start()
        for share in (10, 80):
            eventually(lambda share=share: len(results) >= share)  # type: ignore[misc]  # binds it now
            crash(private_postgres)
        for thread in threads:
            thread.join(60)
    finally:
        DBOS.destroy(destroy_registry=True)

    assert results == {number: expected(number) for number in range(count)}
    check_exactly_once(url, tmp_path / "effects", {f"w-{number}": number for number in range(count)})


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_ten_thousand_workflows_survive_a_crash_of_the_server_every_few_seconds(
    private_postgres: Cluster, url: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    processes, threads, per_thread, duration_s = 2, 25, 200, 300.0
    steps_in_a_row = 3  # what a workflow of any kind waits for, more or less
    chance = random.Random(1)
    settings = [
        {
            "config": configuration(url, f"e{number}"),
            "effects": str(tmp_path / "effects"),
            "threads": threads,
            "per_thread": per_thread,
            "pause_s": duration_s / per_thread / steps_in_a_row,
        }
        for number in range(processes)
    ]
    crashes = 0
    began = time.monotonic()

    with Crew(tmp_path, settings) as crew:
        while not crew.has_ended:
            crash_at = time.monotonic() + chance.uniform(5, 40)
            while time.monotonic() < crash_at and not crew.has_ended:
                time.sleep(0.1)
            if not crew.has_ended:
                crash(private_postgres)
                crashes += 1
        crew.join(900)

    numbers = {
        f"e{process}-{thread}-{number}": number
        for process in range(processes)
        for thread in range(threads)
        for number in range(per_thread)
    }
    assert crew.errors == []
    taken_over = check_exactly_once(url, tmp_path / "effects", numbers)
    figures = {
        "workflows": len(numbers),
        "crashes": crashes,
        "taken over": taken_over,
        "seconds": round(time.monotonic() - began),
    }
    print(figures)
    record_property("figures", figures)
    assert crashes >= 5
