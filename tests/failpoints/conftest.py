"""Databases, and an application launched on them whose calls are failpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dbos import DBOS, DBOSConfig
from dbos._sysdb import retry
from tests.failpoints.failpoints import Failpoints, install
from tests.failpoints.playing import Leftovers, Theatre
from tests.failpoints.scenarios import Application
from tests.failpoints.stage import Rival, Stage

OpenTheatre = Callable[..., "Theatre"]


@pytest.fixture
def open_theatre(
    config: DBOSConfig, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OpenTheatre]:
    """Launches an application; when the test ends, it is destroyed, and must leave nothing behind."""
    with ExitStack() as stack:

        def open(*, is_apart: bool = False, sees_statements: bool = False) -> Theatre:
            if is_apart:
                config["application_database_url"] = apart(config, tmp_path, request)
            monkeypatch.setattr(retry, "jitter", lambda: 0.02)
            return stack.enter_context(theatre(config, tmp_path, monkeypatch, sees_statements))

        yield open


def apart(config: DBOSConfig, directory: Path, request: pytest.FixtureRequest) -> str:
    """An application database that is not the system database."""
    if str(config["system_database_url"]).startswith("sqlite"):
        return f"sqlite:///{directory / 'application.sqlite'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@contextmanager
def theatre(config: DBOSConfig, directory: Path, patch: pytest.MonkeyPatch, sees_statements: bool) -> Iterator[Theatre]:
    DBOS.destroy(destroy_registry=True)
    leftovers = Leftovers()
    failpoints = Failpoints()
    install(patch, failpoints, sees_statements=sees_statements)
    stage = Stage(config, directory)
    try:
        DBOS(config=config)
        application = Application(stage)
        DBOS.launch()
        stage.open()
        rival = Rival(config)
        try:
            played = Theatre(stage, application, failpoints, rival)
            yield played
            played.assert_at_rest()
        finally:
            rival.close()
            DBOS.destroy(destroy_registry=True)
        played.assert_unchanged()
        assert stage.instances() == []
    finally:
        stage.close()
    leftovers.assert_none()
