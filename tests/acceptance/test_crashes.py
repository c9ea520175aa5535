"""kill -9 at every instant of a workflow's life: whatever was acknowledged is there, and is not done again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dbos.testing._postgres_server import PostgresServer
from tests.acceptance.harness import Record, Stage, stages, until

pytestmark = pytest.mark.slow

LIVES = {
    "plain": [
        "start:committed",
        "first:begin",
        "first:end",
        "first:committed",
        "claim:committed",
        "second:committing",
        "outcome:committed",
    ],
    "coroutine": [
        "start:committed",
        "first_async:committed",
        "second_async:end",
        "outcome:committing",
        "outcome:committed",
    ],
    "ledger": ["transaction:committing", "transaction:committed", "second:begin"],
}
RESULTS = {
    "plain": ["first 1", "second 1"],
    "coroutine": ["first 1", "second 1", "first 2"],
    "ledger": ["first 1", "entered 1", "second 1"],
}

OTHERS: dict[str, Any] = {  # what runs beside the workflow whose instants are held
    "static": "first 1",
    "of_class": ["Archive", "first 1", "second 1"],
    "north.ship": ["north", "packed 1 in the north", "second 1"],
    "south.ship": ["south", "packed 1 in the south", "second 1"],
    "south.ship_async": ["south", "first 1", "second 1"],
    "parent": [[f"first {n}", f"second {n}"] for n in (1, 2, 3, 4)],
    "coroutine_parent": [[f"first {n}", f"second {n}", f"first {n + 1}"] for n in (1, 2, 3, 4)],
}


def check_nothing_was_repeated(stage: Stage, recorded: set[Record], begun: dict[tuple[str, int], int]) -> None:
    """Assert that what was recorded at a crash is the same now, and that its bodies did not begin again."""
    records = stage.records()
    assert recorded <= records
    now = stage.begun()
    for record in recorded:
        key = (record.workflow_id, record.function_id)
        assert now[key] == begun.get(key, 0), f"{record} ran again"


def check_ledger(stage: Stage, records: set[Record]) -> None:
    """Assert that the effect of each transaction and its record are both there, or neither."""
    entered = [row[0] for row in stage.application_rows("SELECT workflow_id FROM ledger ORDER BY workflow_id")]
    if stage.application_url == stage.url:
        known = sorted(record.workflow_id for record in records if record.name == "enter")
    else:
        known = [row[0] for row in stage.application_rows("SELECT workflow_uuid FROM dbos.transaction_outputs")]
    assert entered == known


@pytest.fixture(params=["same database", "databases apart"])
def transactions_stage(
    request: pytest.FixtureRequest, tmp_path: Path, database_url: str, postgres_server: PostgresServer
) -> Iterator[Stage]:
    if request.param == "same database":
        yield from stages(tmp_path, database_url)
    elif database_url.startswith("sqlite"):
        yield from stages(tmp_path, database_url, f"sqlite:///{tmp_path / 'application.sqlite'}")
    else:
        other = postgres_server.create_database()
        yield from stages(tmp_path, database_url, other)
        postgres_server.drop_database(other)


def live_through(stage: Stage, kind: str) -> None:
    """Run a workflow in one process after the other, each killed at the next instant; then to its end."""
    recorded: set[Record] = set()
    begun: dict[tuple[str, int], int] = {}
    for number, instant in enumerate(LIVES[kind]):
        application = stage.launch(hold=[f"held/{instant}"])
        if number == 0:
            application.tell("start", function=kind, id="held", args=[1], kwargs={}, options={})
        application.reached(instant)
        application.kill()
        check_nothing_was_repeated(stage, recorded, begun)
        check_ledger(stage, stage.records())
        recorded, begun = stage.records(), stage.begun()
    is_finished, executions = stage.status("held") == "SUCCESS", stage.count("workflow:begin")

    survivor = stage.launch()

    assert survivor.result("held") == RESULTS[kind]
    assert survivor.close() == 0
    if is_finished:
        assert stage.count("workflow:begin") == executions
    check_nothing_was_repeated(stage, recorded, begun)
    check_ledger(stage, stage.records())
    assert stage.status("held") == "SUCCESS"


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_a_workflow_survives_a_kill_at_every_instant_of_its_life(stage: Stage, kind: str) -> None:
    live_through(stage, kind)


def test_a_transaction_and_its_record_survive_a_kill_together_or_not_at_all(transactions_stage: Stage) -> None:
    live_through(transactions_stage, "ledger")

    assert transactions_stage.application_rows("SELECT n FROM ledger") == [(1,)]


def test_a_kill_while_a_step_runs_repeats_that_step_and_no_other(stage: Stage) -> None:
    crashing = stage.launch(hold=["second:end"])
    crashing.start("plain", "w", 1)
    crashing.reached("second:end")
    crashing.kill()

    survivor = stage.launch()

    assert survivor.result("w") == RESULTS["plain"]
    assert stage.begun() == {("w", 1): 1, ("w", 2): 2}


def test_whatever_is_in_flight_survives_five_kills_in_a_row(stage: Stage) -> None:
    """Static, class and instance methods of two instances, threads and coroutines, parents with their children."""
    recorded: set[Record] = set()
    begun: dict[tuple[str, int], int] = {}
    for crash in range(5):
        application = stage.launch(max_executor_threads=4)
        if crash == 0:
            for kind in OTHERS:
                application.start(kind, kind, 1)
        application.has_done(20)
        application.kill()
        check_nothing_was_repeated(stage, recorded, begun)
        recorded, begun = stage.records(), stage.begun()

    survivor = stage.launch(max_executor_threads=4)
    results = {kind: survivor.result(kind) for kind in OTHERS}

    assert results == OTHERS
    check_nothing_was_repeated(stage, recorded, begun)
    unfinished = stage.rows("SELECT workflow_uuid, status FROM dbos.workflow_status WHERE status <> 'SUCCESS'")
    assert unfinished == []


@pytest.mark.parametrize("kind", ["parent", "coroutine_parent"])
def test_parents_that_wait_for_children_recover_with_two_threads(stage: Stage, kind: str) -> None:
    parents = [f"parent-{number}" for number in range(6)]
    crashing = stage.launch(max_executor_threads=2, hold=["parent-5/start:committing"])
    for parent in parents:
        crashing.tell("start", function=kind, id=parent, args=[1], kwargs={}, options={})
    crashing.reached("start:committing")
    crashing.kill()

    survivor = stage.launch(max_executor_threads=2)
    results = [survivor.result(parent) for parent in parents[:5]]

    assert results == [OTHERS[kind]] * 5


def test_a_kill_in_the_middle_of_recovery_again_and_again_costs_no_work_and_no_workflow(stage: Stage) -> None:
    """Five processes in a row die after they have taken over, or claimed, what the first one left."""
    kinds = {"plain": "first", "coroutine": "first_async", "ledger": "first"}
    crashing = stage.launch(hold=[f"{kind}/{step}:begin" for kind, step in kinds.items()])
    for kind in kinds:
        crashing.start(kind, kind, 1)
    until(lambda: sum(each.instant.startswith("holding:") for each in stage.effects()) == 3, "all to hold")
    crashing.kill()
    begun = stage.begun()

    for crash in range(5):
        instant = "claim:committed" if crash % 2 else "take-over:committed"
        recovering = stage.launch(hold=[instant], wait=False)
        recovering.reached(instant)
        recovering.kill()
        assert stage.begun() == begun
    survivor = stage.launch()

    assert {kind: survivor.result(kind) for kind in kinds} == {kind: RESULTS[kind] for kind in kinds}
    assert stage.rows("SELECT DISTINCT status FROM dbos.workflow_status") == [("SUCCESS",)]
    attempts = stage.rows("SELECT max(recovery_attempts) FROM dbos.workflow_status")[0][0]
    assert attempts == 4  # the start, two claims that died, and the last
    check_ledger(stage, stage.records())
