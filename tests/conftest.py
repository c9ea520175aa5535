"""Databases for tests: SQLite files, and PostgreSQL databases on one real server per run.

======================  =======================================================================================
``database_url``        an empty database, once for each engine
``sqlite_url``          an empty SQLite file (not created yet)
``postgres_url``        an empty PostgreSQL database: some 10 ms to create, 6 ms to drop
``postgres_server``     the run's server: ``url(database)``, ``create_database(template)``, ``drop_database(url)``
``migrated_template``   the name of a PostgreSQL database that :func:`prepare_template` filled once in the run
``config``              a configuration with a fresh, migrated database, once for each engine
``dbos``                ``DBOS`` constructed with it; decorate, then ``dbos.launch()``
``private_postgres``    a server to stop and crash at will, about a second
======================  =======================================================================================

All are plain fixtures: coroutine tests use them as they are. ``DBOS_TEST_POSTGRES_URL`` names a server to use instead
of starting one; its user must be allowed to create databases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig
from dbos._dbos_config import process_config
from dbos._sysdb.dialects import open_dialect
from tests.postgres_server import Cluster, PostgresServer, Run

RUN = pytest.StashKey[Run]()
AT_END = pytest.StashKey[ExitStack]()

private_numbers = count(1)


def prepare_template(url: str) -> None:
    """Fill the database that ``migrated_template`` hands out; called once in the run, with nobody else connected.

    It must leave no connection open, or the copies fail.
    """
    settings = process_config({"name": "template", "system_database_url": url}, {})
    open_dialect(settings, process_tag="template").prepare(may_migrate=True)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[AT_END] = ExitStack()
    if directory := getattr(config, "workerinput", {}).get("run_directory"):
        config.stash[RUN] = Run(Path(directory))
    else:
        config.stash[RUN] = config.stash[AT_END].enter_context(Run.begin())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker where the run's processes meet."""
    node.workerinput["run_directory"] = str(node.config.stash[RUN].directory)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[AT_END].close()


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    with PostgresServer(pytestconfig.stash[RUN].start_server()) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(pytestconfig: pytest.Config, postgres_server: PostgresServer) -> str:
    return pytestconfig.stash[RUN].template(postgres_server, prepare_template)


@pytest.fixture
def private_postgres(pytestconfig: pytest.Config) -> Iterator[Cluster]:
    run = pytestconfig.stash[RUN]
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
def migrated_postgres_url(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    url = postgres_server.create_database(migrated_template)
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def config(request: pytest.FixtureRequest) -> DBOSConfig:
    """A configuration with a system database of the test's own, which is also the application database."""
    name = "migrated_postgres_url" if request.param == "postgres" else "sqlite_url"
    url: str = request.getfixturevalue(name)
    return {
        "name": "test-app",
        "system_database_url": url,
        "application_database_url": url,
        "application_version": "test",
        "log_level": "WARNING",
    }


@pytest.fixture
def dbos(config: DBOSConfig) -> Iterator[type[DBOS]]:
    """DBOS, constructed and not launched: decorate, then ``dbos.launch()``. Nothing of it is left after the test."""
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)
    yield DBOS
    DBOS.destroy(destroy_registry=True)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
