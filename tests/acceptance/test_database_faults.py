"""The database refuses, fills up, goes away, comes back: nobody's work becomes an error, and nothing is lost.

What runs at the time waits, whatever the fault is, and goes on by itself when it is over. Only where the disk says that
it may have lost what it had taken does a process acknowledge nothing more.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbos.testing._postgres_server import Cluster
from tests.acceptance.harness import Application, Stage, stages, until

RESULT = ["first 1", "second 1"]
LINE = {"name": "line"}
PROMPTLY_S = 20  # the longest pause between two attempts is 7.5 s, and the machine may be busy

# What a server says in the middle of a statement, to everybody who writes to a table of ours.
REFUSING = """
CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'refused for a test' USING ERRCODE = '{state}'; END $$;
DO $$ DECLARE each regclass; BEGIN
    FOR each IN SELECT oid FROM pg_class WHERE relnamespace = 'dbos'::regnamespace AND relkind = 'r' LOOP
        EXECUTE format('CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON %s '
                       'FOR EACH STATEMENT EXECUTE FUNCTION refuse()', each);
    END LOOP;
END $$;
"""
REFUSING_NOTHING = """
CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
"""
TERMINATE_OTHERS = """
SELECT count(pg_terminate_backend(pid))
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND datname = current_database() AND pid <> ALL(%s)
"""


@contextmanager
def refusal(stage: Stage, state: str) -> Iterator[None]:
    """All writes fail with an SQLSTATE."""
    while True:
        with suppress(psycopg.errors.DeadlockDetected):  # with a batch that has locked our tables in another order
            stage.execute(REFUSING.format(state=state))
            break
    yield
    stage.execute(REFUSING_NOTHING)  # and the triggers stay: to drop them takes locks again


@contextmanager
def read_only(stage: Stage) -> Iterator[None]:
    """What a client sees when its server was demoted to a standby: it reconnects, can read, and cannot write."""
    with psycopg.connect(stage.url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        connection.execute(TERMINATE_OTHERS, [[connection.info.backend_pid]])
        yield
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())


@contextmanager
def no_connections(stage: Stage) -> Iterator[None]:
    """Others have taken every connection that the server allows, ours included."""
    hoard: list[psycopg.Connection[Any]] = []
    try:
        while True:
            with suppress(psycopg.OperationalError):
                while True:
                    hoard.append(psycopg.connect(stage.url, autocommit=True))
            mine = [connection.info.backend_pid for connection in hoard]
            if hoard[0].execute(TERMINATE_OTHERS, [mine]).fetchone() == (0,):
                break
        yield
    finally:
        for connection in hoard:
            connection.close()


@contextmanager
def outage(server: Cluster) -> Iterator[None]:
    """The server is not there."""
    server.stop("immediate")
    yield
    server.start()


@contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    (directory / "full").touch()
    yield
    (directory / "full").unlink()


@contextmanager
def full_file(application: Application, stage: Stage) -> Iterator[None]:
    """The operating system does not let the log grow: writes to it fail halfway."""
    unlimited = resource.RLIM_INFINITY
    log_bytes = Path(f"{stage.path}-wal").stat().st_size
    resource.prlimit(application.pid, resource.RLIMIT_FSIZE, (log_bytes + 1000, unlimited))
    yield
    resource.prlimit(application.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))


@pytest.fixture
def private_stage(tmp_path: Path, private_postgres: Cluster) -> Iterator[Stage]:
    with psycopg.connect(private_postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET max_connections = 24")
    private_postgres.stop()
    private_postgres.start()
    yield from stages(tmp_path, private_postgres.url("postgres"))


@pytest.fixture
def postgres_stage(tmp_path: Path, postgres_url: str) -> Iterator[Stage]:
    yield from stages(tmp_path, postgres_url)


def works_on_after(stage: Stage, application: Application, fault: Callable[[], AbstractContextManager[None]]) -> None:
    """Have a fault meet steps, a transaction, a start and an enqueue; assert that it costs nothing of any of them."""
    application.start("plain", "before", 1)
    assert application.result("before") == RESULT
    application.start("gated", "threaded", str(stage.gate))
    application.start("gated_async", "awaited", str(stage.gate))
    application.start("entry", "entry", 1)
    application.reached("entry:begin")
    until(lambda: stage.count("gated:begin") == 2, "the steps to begin")

    with fault():
        stage.release.touch()  # the transaction
        stage.gate.touch()  # the steps
        until(lambda: stage.count("gated:end") == 2, "the steps to end")
        application.tell("start", function="plain", id="new", args=[1], kwargs={}, options={})
        application.tell("enqueue", queue="line", function="errand", ids=["queued"], args=[])
        until(lambda: application.messages.count("again: ") + application.messages.count("repeated: ") > 2, "a fault")
        assert stage.count("workflow:begin", "new") == 0  # it was not acknowledged, so it has not begun

    until(lambda: stage.count("errand:end", "queued") == 1, "work to go on", patience_s=PROMPTLY_S)
    assert [application.answer(), application.answer()] == [None, None]
    passed = f"passed in {application.pid}"
    names = ("before", "new", "threaded", "awaited", "entry", "queued")
    results = [application.result(name) for name in names]
    assert results == [RESULT, RESULT, passed, passed, "entered 1", "done"]
    assert stage.rows("SELECT DISTINCT status, recovery_attempts FROM dbos.workflow_status") == [("SUCCESS", 1)]
    assert stage.count("gated:begin") == 2
    assert {times for (name, _), times in stage.begun().items() if name != "entry"} == {1}
    assert stage.application_rows("SELECT workflow_id, n FROM ledger") == [("entry", 1)]
    assert stage.rows("SELECT count(*) FROM dbos.operation_outputs WHERE error IS NOT NULL") == [(0,)]


@pytest.mark.postgres
@pytest.mark.parametrize("state", ["40001", "40P01", "53100"], ids=["not serializable", "deadlock", "disk full"])
def test_work_whose_writes_the_server_refuses_for_a_while_goes_on(postgres_stage: Stage, state: str) -> None:
    application = postgres_stage.launch(queues=[LINE], hold=["entry:begin"])

    works_on_after(postgres_stage, application, lambda: refusal(postgres_stage, state))


@pytest.mark.postgres
def test_work_that_meets_a_server_that_may_only_be_read_goes_on(postgres_stage: Stage) -> None:
    application = postgres_stage.launch(queues=[LINE], hold=["entry:begin"])

    works_on_after(postgres_stage, application, lambda: read_only(postgres_stage))


@pytest.mark.postgres
def test_work_for_which_there_is_no_connection_waits_for_one(private_stage: Stage) -> None:
    application = private_stage.launch(queues=[LINE], hold=["entry:begin"])

    works_on_after(private_stage, application, lambda: no_connections(private_stage))


@pytest.mark.postgres
def test_work_goes_on_within_seconds_of_the_servers_return(private_stage: Stage, private_postgres: Cluster) -> None:
    application = private_stage.launch(queues=[LINE], hold=["entry:begin"])

    works_on_after(private_stage, application, lambda: outage(private_postgres))


@pytest.mark.parametrize("kind", ["no space", "file limit"])
def test_work_that_meets_a_full_disk_goes_on_when_there_is_space(
    sqlite_stage: Stage, tmp_path: Path, kind: str
) -> None:
    application = sqlite_stage.launch(queues=[LINE], hold=["entry:begin"], failing_disk=tmp_path)

    works_on_after(
        sqlite_stage,
        application,
        lambda: full_disk(tmp_path) if kind == "no space" else full_file(application, sqlite_stage),
    )

    assert sqlite_stage.rows("PRAGMA integrity_check") == [("ok",)]
    application.kill()
    following = sqlite_stage.launch(queues=[LINE])
    assert [following.result(name) for name in ("before", "new", "entry")] == [RESULT, RESULT, "entered 1"]


@pytest.mark.parametrize("what", ["log", "database"])
def test_nothing_is_acknowledged_after_the_disk_has_lost_what_it_had_taken(
    sqlite_stage: Stage, tmp_path: Path, what: str
) -> None:
    """A flush that failed succeeds the next time, whatever it has lost: only a restart reads what is there."""
    every_batch = 0 if what == "database" else None
    application = sqlite_stage.launch(failing_disk=tmp_path, checkpoint_bytes=every_batch)
    application.start("plain", "before", 1)
    assert application.result("before") == RESULT
    application.start("gated", "w", str(sqlite_stage.gate))
    until(lambda: sqlite_stage.count("gated:begin") == 1, "the step to begin")

    (tmp_path / "unsynced").write_text(what)
    sqlite_stage.gate.touch()
    until(lambda: not (tmp_path / "unsynced").exists(), "the flush that fails")
    until(lambda: sqlite_stage.count("gated:end") == 1, "the step to end")
    acknowledged = sqlite_stage.records()
    application.tell("start", function="plain", id="new", args=[1], kwargs={}, options={})

    assert application.ended() == 1
    assert "DatabaseGoneError" in application.messages
    assert "Restart the application" in application.messages
    assert sqlite_stage.status("new") == ""
    assert sqlite_stage.records() == acknowledged
    following = sqlite_stage.launch()
    assert following.result("before") == RESULT
    assert following.result("w").startswith("passed in ")


@pytest.mark.postgres
def test_a_process_ends_within_a_bound_while_the_server_is_away(
    private_stage: Stage, private_postgres: Cluster
) -> None:
    destroying = private_stage.launch(queues=[LINE])
    terminated = private_stage.launch(queues=[LINE], handles_sigterm=False)
    for number, application in enumerate((destroying, terminated)):
        application.start("gated", f"w-{number}", str(private_stage.gate))
    until(lambda: private_stage.count("gated:begin") == 2, "the steps to begin")

    with outage(private_postgres):
        private_stage.gate.touch()
        for application in (destroying, terminated):  # until each service is in the middle of asking
            until(lambda each=application: each.messages.count("read will be repeated") > 5, "the outage")  # type: ignore[misc]  # binds it now
        destroying.end_input()
        terminated.send_signal(signal.SIGTERM)
        codes = [application.ended(patience_s=45) for application in (destroying, terminated)]

    assert codes == [0, -signal.SIGTERM]
    following = private_stage.launch()
    assert [following.result(f"w-{number}") for number in range(2)] == [f"passed in {following.pid}"] * 2


@pytest.mark.postgres
def test_a_server_that_restarts_in_the_middle_of_a_recovery_costs_none_of_what_is_recovered(
    private_stage: Stage, private_postgres: Cluster
) -> None:
    ids = [f"w-{number}" for number in range(250)]
    crashing = private_stage.launch(queues=[LINE], watches_commits=False)
    crashing.ask("enqueue", queue="line", function="gated_async", ids=ids, args=[str(private_stage.gate)])
    until(lambda: private_stage.count("gated:begin") == 250, "all to begin")
    crashing.kill()

    recovering = private_stage.launch(queues=[LINE])
    until(lambda: private_stage.count("claim:committed") > 0, "some to be claimed")
    with outage(private_postgres):
        private_stage.gate.touch()
    until(lambda: private_stage.count("gated:end") == 250, "every one to be recovered", patience_s=PROMPTLY_S)

    assert [recovering.result(each) for each in ids] == [f"passed in {recovering.pid}"] * 250
    assert set(private_stage.begun().values()) == {2}
    assert private_stage.rows("SELECT DISTINCT recovery_attempts FROM dbos.workflow_status") == [(2,)]
