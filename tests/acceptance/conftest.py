"""Stages for acceptance tests, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import Stage, stages


@pytest.fixture
def stage(tmp_path: Path, database_url: str) -> Iterator[Stage]:
    yield from stages(tmp_path, database_url)


@pytest.fixture
def sqlite_stage(tmp_path: Path, sqlite_url: str) -> Iterator[Stage]:
    yield from stages(tmp_path, sqlite_url)
