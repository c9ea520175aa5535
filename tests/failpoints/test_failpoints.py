"""Each reference workflow, with each kind of fault at each of its calls to the databases."""

from __future__ import annotations

import pytest

from tests.failpoints.conftest import OpenTheatre
from tests.failpoints.faults import FAULTS, RIVALS
from tests.failpoints.scenarios import SCENARIOS

RUNS = [(name, False) for name in SCENARIOS] + [(name, True) for name, each in SCENARIOS.items() if each.may_crash]
IDS = [f"{name}-crashed" if crashes else name for name, crashes in RUNS]


@pytest.mark.parametrize(("name", "crashes"), RUNS, ids=IDS)
def test_a_fault_at_any_call_costs_nothing_that_was_acknowledged(
    name: str, crashes: bool, open_theatre: OpenTheatre, subtests: pytest.Subtests
) -> None:
    scenario = SCENARIOS[name]
    theatre = open_theatre(is_apart=scenario.is_apart)
    labels = theatre.count(scenario, crashes=crashes)

    for label in labels:
        for fault, make_fault in FAULTS.items():
            with subtests.test(f"{fault}: {label}"):
                theatre.play(scenario, crashes=crashes, label=label, make_fault=make_fault)


@pytest.mark.parametrize(("name", "crashes"), RUNS, ids=IDS)
def test_whoever_comes_first_at_any_call_there_is_one_history(
    name: str, crashes: bool, open_theatre: OpenTheatre, subtests: pytest.Subtests
) -> None:
    scenario = SCENARIOS[name]
    theatre = open_theatre(is_apart=scenario.is_apart)
    labels = theatre.count(scenario, crashes=crashes)

    for label in labels:
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
    return rival != "resumed" or name != "timeout"  # resumed, it would have no deadline
