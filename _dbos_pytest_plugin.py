"""The pytest plugin: databases of a test's own, a DBOS object on them, and virtual time.

It lies outside of the package because pytest loads it in every run, of whatever: this way, nothing of the library is
imported, nor missed by a measurement of coverage, before a test uses one of the fixtures.

===========================  ==================================================================================
``dbos``                     ``DBOS``, constructed on a fresh database: decorate, then ``dbos.launch()``
``dbos_config``              its configuration; override it to change that
``dbos_database_url``        the fresh database, migrated, on each of the databases that were asked for
``dbos_virtual_time``        time that jumps over whatever is waited for, and can be moved
``dbos_sqlite_url``          a migrated SQLite file
``dbos_postgres_url``        a migrated PostgreSQL database
``dbos_postgres_server``     the server of the run, for making more databases
===========================  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dbos import DBOS, DBOSConfig
    from dbos.testing import VirtualTime
    from dbos.testing._postgres_server import PostgresServer, Run

DATABASES = ("sqlite", "postgres")

AT_END = pytest.StashKey[ExitStack]()
RUN = pytest.StashKey["Run"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "databases to run tests of DBOS on: sqlite, postgres"
    parser.getgroup("dbos").addoption("--dbos-databases", metavar="NAMES", help=f"{help}; separated by commas")
    parser.addini("dbos_databases", help, type="args", default=["sqlite"])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "dbos_databases(*names): databases to run a test of DBOS on, whatever is configured"
    )
    config.stash[AT_END] = ExitStack()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[AT_END].close()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist where the processes of the run meet, to share one PostgreSQL server."""
    if "postgres" in databases(node.config):
        node.workerinput["dbos_run_directory"] = str(run_of(node.config).directory)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "dbos_database" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("dbos_databases")
        metafunc.parametrize("dbos_database", checked(marker.args) if marker else databases(metafunc.config))


def databases(config: pytest.Config) -> Sequence[str]:
    """The databases to run tests on, by the command line or the configuration file."""
    option = config.getoption("--dbos-databases")
    return checked(config.getini("dbos_databases") if option is None else option.split(","))


def checked(names: Sequence[str]) -> Sequence[str]:
    """The names of databases, all of which there are."""
    unknown = [name or "''" for name in names if name not in DATABASES]
    if unknown or not names:
        raise pytest.UsageError(
            f"dbos_databases: {', '.join(unknown) or 'none given'}; there are {', '.join(DATABASES)}"
        )
    return names


def run_of(config: pytest.Config) -> Run:
    """The directory in which this run's PostgreSQL servers live, if one is needed."""
    if RUN not in config.stash:
        from dbos.testing._postgres_server import Run

        directory = getattr(config, "workerinput", {}).get("dbos_run_directory")
        run = Run(Path(directory)) if directory else config.stash[AT_END].enter_context(Run.begin())
        config.stash[RUN] = run
    return config.stash[RUN]


# -- databases ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def dbos_postgres_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """The PostgreSQL server of the run: ``DBOS_TEST_POSTGRES_URL``, or one of our own."""
    from dbos.testing._postgres_server import PostgresServer

    with PostgresServer(run_of(pytestconfig).start_server()) as server:
        yield server


@pytest.fixture(scope="session")
def dbos_postgres_template(pytestconfig: pytest.Config, dbos_postgres_server: PostgresServer) -> str:
    """The name of a migrated database to copy; nobody may connect to it."""
    from dbos.testing._fresh import migrate

    return run_of(pytestconfig).template(dbos_postgres_server, migrate)


@pytest.fixture(scope="session")
def dbos_sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database to copy; nobody may connect to it."""
    from dbos.testing._fresh import migrate

    path = tmp_path_factory.mktemp("dbos") / "template.sqlite"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def dbos_postgres_url(dbos_postgres_server: PostgresServer, dbos_postgres_template: str) -> Iterator[str]:
    """A PostgreSQL database of the test's own, migrated."""
    url = dbos_postgres_server.create_database(dbos_postgres_template)
    yield url
    dbos_postgres_server.drop_database(url)


@pytest.fixture
def dbos_sqlite_url(tmp_path: Path, dbos_sqlite_template: Path) -> str:
    """A SQLite database of the test's own, migrated."""
    from dbos.testing._fresh import copy_sqlite

    return copy_sqlite(dbos_sqlite_template, tmp_path / "dbos.sqlite")


@pytest.fixture
def dbos_database(pytestconfig: pytest.Config) -> str:
    """Which database the test is for; tests that name the fixtures they use are run for each, see above."""
    return databases(pytestconfig)[0]


@pytest.fixture
def dbos_database_url(request: pytest.FixtureRequest, dbos_database: str) -> str:
    """A database of the test's own, migrated, on each of the databases that were asked for."""
    url: str = request.getfixturevalue(f"dbos_{dbos_database}_url")
    return url


# -- DBOS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dbos_virtual_time() -> Iterator[VirtualTime]:
    """Time that jumps over whatever is waited for; see :func:`dbos.testing.virtual_time`."""
    from dbos.testing import virtual_time

    with virtual_time() as time:
        yield time


@pytest.fixture
def dbos_config(dbos_database_url: str) -> DBOSConfig:
    """The configuration of ``dbos``."""
    return {
        "name": "test-app",
        "system_database_url": dbos_database_url,
        "application_database_url": dbos_database_url,
        "application_version": "test",
        "log_level": "WARNING",
    }


@pytest.fixture
def dbos(request: pytest.FixtureRequest, dbos_config: DBOSConfig) -> Iterator[type[DBOS]]:
    """``DBOS``, constructed on a fresh database and not launched. Nothing of it is left after the test."""
    from dbos.testing._fresh import fresh_dbos

    if "dbos_virtual_time" in request.fixturenames:
        request.getfixturevalue("dbos_virtual_time")  # whatever the order in which the test names them
    with fresh_dbos(dbos_config) as dbos:
        yield dbos
