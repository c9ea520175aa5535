"""Each reference workflow, with each kind of fault at each of its calls to the databases.

A workflow is played once without a fault to learn its calls, then once for each call and kind. The default is every
workflow as it runs or as it is recovered; ``DBOS_FAILPOINTS=all`` (make failpoints) plays all of them both ways.
"""

from __future__ import annotations

import pytest

from tests.failpoints.conftest import OpenTheatre
from tests.failpoints.faults import FAULTS, RIVALS
from tests.failpoints.playing import EXHAUSTIVE, calls, changes
from tests.failpoints.scenarios import SCENARIOS

AS_THEY_RUN = ("sync", "transaction", "child", "gather", "cancel", "timeout", "limited", "queued-child", "messaging")
RECOVERED = ("async", "class", "instance", "transaction-apart", "queued", "partitioned")
EVERY_RUN = [(name, False) for name in SCENARIOS] + [
    (name, True) for name, scenario in SCENARIOS.items() if scenario.may_crash
]
RUNS = EVERY_RUN if EXHAUSTIVE else [(name, False) for name in AS_THEY_RUN] + [(name, True) for name in RECOVERED]

# To a rival, methods are functions, and one queue is much like another.
CONTESTED_RUNS = [run for run in RUNS if EXHAUSTIVE or run[0] not in ("class", "instance", "queued", "partitioned")]


def each(runs: list[tuple[str, bool]]) -> pytest.MarkDecorator:
    ids = [f"{name}-crashed" if crashes else name for name, crashes in runs]
    return pytest.mark.parametrize(("name", "crashes"), runs, ids=ids)


def test_every_reference_workflow_is_played_by_default() -> None:
    assert {*AS_THEY_RUN, *RECOVERED} == SCENARIOS.keys()


@each(RUNS)
def test_a_fault_at_any_call_costs_nothing_that_was_acknowledged(
    name: str, crashes: bool, open_theatre: OpenTheatre, subtests: pytest.Subtests
) -> None:
    scenario = SCENARIOS[name]
    theatre = open_theatre(is_apart=scenario.is_apart)

    for label in theatre.count(scenario, crashes=crashes):
        for fault, make_fault in FAULTS.items():
            with subtests.test(f"{fault}: {label}"):
                theatre.play(scenario, crashes=crashes, label=label, make_fault=make_fault)


@each(CONTESTED_RUNS)
def test_whoever_comes_first_at_any_call_there_is_one_history(
    name: str, crashes: bool, open_theatre: OpenTheatre, subtests: pytest.Subtests
) -> None:
    scenario = SCENARIOS[name]
    theatre = open_theatre(is_apart=scenario.is_apart)

    for label in theatre.count(scenario, crashes=crashes):
        for rival, make_fault in RIVALS.items():
            if not is_apt(rival, label, name):
                continue
            with subtests.test(f"{rival}: {label}"):
                theatre.play(scenario, crashes=crashes, label=label, make_fault=make_fault)


def is_apt(rival: str, label: str, name: str) -> bool:
    """Whether a rival can do what it does at this call."""
    if rival == "recorded first":
        return label.startswith("record(")
    if rival == "started first":
        return label.startswith("start(")
    if rival == "claimed":
        return changes(label) and name != "timeout"
    return rival != "resumed" or name != "timeout"  # resumed, it would have no deadline


@pytest.mark.parametrize("name", ["sync", "child", "limited"])
def test_a_batch_that_fails_at_any_statement_is_committed_as_a_whole(
    name: str, open_theatre: OpenTheatre, subtests: pytest.Subtests
) -> None:
    scenario = SCENARIOS[name]
    theatre = open_theatre(sees_statements=True)
    again = theatre.count(scenario, crashes=True)  # who shares a transaction with whom is not always the same
    labels = [label for label in theatre.count(scenario, crashes=True) if " " in label and label in again]
    labels = [label for label in labels if not label.endswith("executor_instances")]  # heartbeats come when they like
    assert labels

    for label in labels:
        for fault in ("lost before", "contended"):
            with subtests.test(f"{fault}: {label}"):
                theatre.play(scenario, crashes=True, label=label, make_fault=FAULTS[fault])


def test_a_fault_at_any_call_of_destroying_and_launching_strands_nothing(
    open_theatre: OpenTheatre, subtests: pytest.Subtests
) -> None:
    theatre = open_theatre()
    labels = calls(theatre.relaunch())
    assert {"remove", "register", "claim"} <= set(labels)

    for label in labels:
        for fault in ("lost before", "lost after"):
            with subtests.test(f"{fault}: {label}"):
                theatre.relaunch(label, FAULTS[fault])
