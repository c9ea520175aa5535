"""Long runs under faults, and short versions of them.

The short ones belong to the ordinary suite. Those marked ``chaos`` take minutes; they are run by ``make chaos``, or
``pytest -m chaos``, and deselected otherwise.
"""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "chaos: takes minutes; run with -m chaos")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "chaos" in str(config.option.markexpr):
        return
    long_runs = [item for item in items if item.get_closest_marker("chaos") is not None]
    config.hook.pytest_deselected(items=long_runs)
    items[:] = [item for item in items if item not in long_runs]
