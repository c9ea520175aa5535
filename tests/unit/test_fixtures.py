from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from dbos.testing._postgres_guard import sweep
from dbos.testing._postgres_server import MAX_SOCKET_PATH_BYTES, Cluster, PostgresServer, Run, external_url

needs_own_server = pytest.mark.skipif(
    external_url() is not None, reason="DBOS_TEST_POSTGRES_URL replaces our own server"
)


def create_table(url: str) -> None:
    """Fails if an earlier test left its table behind."""
    statement = "CREATE TABLE mine (value integer)"
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(urlsplit(url).path[1:])) as database:
            database.execute(statement)
    else:
        with psycopg.connect(url) as connection:
            connection.execute(statement)


@pytest.mark.parametrize("attempt", [1, 2])
def test_every_test_has_an_empty_database(database_url: str, attempt: int) -> None:
    create_table(database_url)


async def test_a_coroutine_test_has_one_too(database_url: str) -> None:
    create_table(database_url)


@pytest.mark.postgres
def test_the_server_is_a_recent_postgresql(postgres_server: PostgresServer, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        row = connection.execute("SELECT current_setting('server_version_num')::int").fetchone()

    assert row == (postgres_server.version,)
    assert postgres_server.version >= 150000


@pytest.mark.postgres
def test_databases_do_not_see_each_other(postgres_server: PostgresServer, postgres_url: str) -> None:
    other_url = postgres_server.create_database()

    create_table(postgres_url)
    create_table(other_url)

    assert postgres_url != other_url


@pytest.mark.postgres
def test_a_dropped_database_is_gone_although_somebody_is_connected(postgres_server: PostgresServer) -> None:
    url = postgres_server.create_database()

    with psycopg.connect(url, autocommit=True) as connection:
        postgres_server.drop_database(url)

        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


@pytest.mark.postgres
def test_a_database_is_copied_from_its_template(postgres_server: PostgresServer) -> None:
    template_url = postgres_server.create_database()
    create_table(template_url)

    copy_url = postgres_server.create_database(urlsplit(template_url).path[1:])

    with psycopg.connect(copy_url) as connection:
        assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.mark.postgres
def test_a_template_is_prepared_once_in_a_run(postgres_server: PostgresServer, run: Run) -> None:
    prepared: list[str] = []

    names = [run.template(postgres_server, prepared.append) for _ in range(3)]

    assert len(set(names)) == 1
    assert prepared == [postgres_server.url(names[0])]
    postgres_server.drop_database(prepared[0])


@pytest.mark.postgres
def test_the_dbos_postgres_template_can_be_copied(postgres_server: PostgresServer, dbos_postgres_template: str) -> None:
    create_table(postgres_server.create_database(dbos_postgres_template))


@needs_own_server
@pytest.mark.postgres
def test_a_private_server_recovers_from_a_crash(private_postgres: Cluster) -> None:
    url = private_postgres.url("postgres")
    create_table(url)

    private_postgres.stop("immediate")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    private_postgres.start()

    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)


@pytest.fixture
def long_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("d" * MAX_SOCKET_PATH_BYTES)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setattr("dbos.testing._postgres_server.MEMORY", tmp_path / "absent")


@needs_own_server
@pytest.mark.postgres
@pytest.mark.usefixtures("long_temporary_directory")
def test_a_server_starts_although_the_temporary_directory_has_a_long_name() -> None:
    with Run.begin() as run:
        with psycopg.connect(run.start_server()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        directory = run.directory

    assert not directory.exists()


def test_sweeping_an_absent_directory_is_harmless(tmp_path: Path) -> None:
    sweep(tmp_path / "absent")
