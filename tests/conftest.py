"""Databases for tests: SQLite files, and PostgreSQL databases on one real server per run.

======================  =======================================================================================
``database_url``        an empty database, once for each engine
``sqlite_url``          an empty SQLite file (not created yet)
``postgres_url``        an empty PostgreSQL database: some 10 ms to create, 6 ms to drop
``postgres_server``     the run's server: ``url(database)``, ``create_database(template)``, ``drop_database(url)``
``config``              a configuration with a fresh, migrated database, once for each engine
``dbos``                ``DBOS`` constructed with it; decorate, then ``dbos.launch()``
``private_postgres``    a server to stop and crash at will, about a second
======================  =======================================================================================

All are plain fixtures: coroutine tests use them as they are. ``DBOS_TEST_POSTGRES_URL`` names a server to use instead
of starting one; its user must be allowed to create databases. What users have as well, ``dbos`` among it, comes from
the library's own plugin, ``_dbos_pytest_plugin.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from _dbos_pytest_plugin import run_of
from dbos import DBOSConfig
from dbos._process import process
from dbos.testing._postgres_server import Cluster, PostgresServer

private_numbers = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if parameters.get("dbos_database") == "postgres":
            item.add_marker(pytest.mark.postgres)


@pytest.fixture(autouse=True)
def empty_registry() -> None:
    """What other tests have decorated is not there."""
    process.registry.clear()


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """What a launch has set is not left to the next test."""
    logger = logging.getLogger("dbos")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture(scope="session")
def postgres_server(dbos_postgres_server: PostgresServer) -> PostgresServer:
    return dbos_postgres_server


@pytest.fixture
def private_postgres(pytestconfig: pytest.Config) -> Iterator[Cluster]:
    run = run_of(pytestconfig)
    worker = getattr(pytestconfig, "workerinput", {}).get("workerid", "main")
    cluster = Cluster(run, f"{worker}-{next(private_numbers)}")
    with run.exclusive():
        cluster.create()
    cluster.start()
    yield cluster
    cluster.remove()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'dbos.sqlite'}"


@pytest.fixture
def database_url(request: pytest.FixtureRequest, dbos_database: str) -> str:
    url: str = request.getfixturevalue(f"{dbos_database}_url")
    return url


@pytest.fixture
def config(dbos_database_url: str) -> DBOSConfig:
    """A configuration with a system database of the test's own, which is also the application database."""
    return {
        "name": "test-app",
        "system_database_url": dbos_database_url,
        "application_database_url": dbos_database_url,
        "application_version": "test",
        "log_level": "WARNING",
    }


@pytest.fixture
def dbos_config(config: DBOSConfig) -> DBOSConfig:
    return config
