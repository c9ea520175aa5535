"""Open system databases, as processes have them: each with an executor instance of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from dbos import DBOSConfig
from dbos._clock import SystemClock
from dbos._dbos_config import Settings, process_config
from dbos._sys_db import SystemDatabase
from tests.conformance.values import executor

OpenDatabase = Callable[..., SystemDatabase]


@pytest.fixture
def settings(config: DBOSConfig) -> Settings:
    return process_config(config, {})


@pytest.fixture
def open_database(settings: Settings) -> Iterator[OpenDatabase]:
    """Opens the test's database as the executor instance that is named; unnamed, as one that is not fenced."""
    with ExitStack() as opened:

        def open_as(instance: str | None = None, settings: Settings = settings) -> SystemDatabase:
            db = SystemDatabase(settings, SystemClock(), process_tag=instance or "nobody")
            opened.callback(db.close)
            if instance is not None:
                db.change(db.executors.register, executor(instance))
                db.fence(instance)
            return db

        yield open_as


@pytest.fixture
def db(open_database: OpenDatabase) -> SystemDatabase:
    return open_database("ours")
