"""Each reference workflow in a process that dies at one of its calls to the databases, and another that recovers it.

The default is death after each call that commits something, and for one workflow after each call from launch to the
end; ``DBOS_FAILPOINTS=all`` (make failpoints) plays death before and after every call of every workflow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failpoints.conftest import OpenTheatre
from tests.failpoints.playing import EXHAUSTIVE, calls, changes
from tests.failpoints.scenarios import SCENARIOS
from tests.failpoints.zygote import Zygote


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote.start(tmp_path_factory.mktemp("zygote") / "messages") as zygote:
        yield zygote


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_process_that_dies_at_any_call_is_recovered(
    name: str, zygote: Zygote, tmp_path: Path, open_theatre: OpenTheatre, subtests: pytest.Subtests
) -> None:
    theatre = open_theatre(is_apart=SCENARIOS[name].is_apart)
    theatre.play_elsewhere(SCENARIOS[name], name, zygote)
    labels = calls(json.loads((tmp_path / "trace").read_text()))

    for label in labels:
        if not (EXHAUSTIVE or name == "sync" or changes(label)):
            continue
        for after in (False, True) if EXHAUSTIVE else (True,):
            with subtests.test(f"{'after' if after else 'before'}: {label}"):
                theatre.play_elsewhere(SCENARIOS[name], name, zygote, label=label, after=after)
