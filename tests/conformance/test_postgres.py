"""What only PostgreSQL does: connections that are lost, locked rows, notifications, plans, odd schema names."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from dbos import DBOSConfig
from dbos._clock import SystemClock
from dbos._dbos_config import Settings, process_config
from dbos._sys_db import SECOND_WRITER_LOCK_TIMEOUT_MS, SystemDatabase
from dbos._sysdb.connection import Connection
from dbos._sysdb.dialects.postgres import statements as postgres
from dbos._sysdb.dialects.postgres.connection import array_literal
from dbos._sysdb.dialects.postgres.writer import LOCK_TIMEOUT_MS, PostgresWriter
from dbos._sysdb.filters import WorkflowFilter
from dbos._sysdb.operations import Call, StepRecorded, call
from dbos._sysdb.stores import queue_claims, queues, workflow_status
from dbos._sysdb.stores.operation_outputs import HISTORY
from dbos._sysdb.stores.workflow_status import WorkflowStatusStore
from dbos.testing._postgres_server import Cluster, PostgresServer
from tests.conformance.proxy import Proxy
from tests.conformance.values import begin, child, enqueue, executor, outcome, record, row, start, status, step, steps
from tests.unit.memory_writer import eventually

pytestmark = pytest.mark.postgres

OpenDatabase = Callable[..., SystemDatabase]


@pytest.fixture
def config(dbos_postgres_url: str) -> DBOSConfig:
    return {"name": "test-app", "system_database_url": dbos_postgres_url}


@pytest.fixture
def psql(dbos_postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody's own session on the same database."""
    with psycopg.connect(dbos_postgres_url, autocommit=True) as connection:
        yield connection


def listening_sessions(psql: psycopg.Connection[Any]) -> set[int]:
    """The sessions of this database that listen; one that has just been closed may linger among them."""
    found = psql.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'LISTEN%'"
    ).fetchall()
    return {pid for (pid,) in found}


def terminate_all(psql: psycopg.Connection[Any]) -> int:
    """End every session of ours: writers, readers, the listener."""
    ended = psql.execute(
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ).fetchone()
    assert ended is not None
    count: int = ended[0]
    return count


# -- connections that are lost ----------------------------------------------------------------------------------------


def test_writers_and_readers_connect_again(db: SystemDatabase, psql: psycopg.Connection[Any]) -> None:
    begin(db, start())
    for _ in range(3):
        assert terminate_all(psql) >= 2

        assert row(db).status == "PENDING"
        assert record(db, step()) == StepRecorded("PENDING", None)
        large = step("w", 2, output="x" * 2_000_000)
        assert record(db, large) == StepRecorded("PENDING", None)


async def test_units_of_coroutines_survive_a_lost_connection(db: SystemDatabase, psql: psycopg.Connection[Any]) -> None:
    begin(db, start())

    for number in range(5):
        futures = [db.submit(step("w", number * 100 + each)) for each in range(50)]
        terminate_all(psql)
        results = await asyncio.gather(*futures)
        assert [result[0] for result in results] == [StepRecorded("PENDING", None)] * 50

    assert len(steps(db)) == 250


def test_a_listener_connects_again_and_says_that_anything_may_have_happened(
    db: SystemDatabase, open_database: OpenDatabase, psql: psycopg.Connection[Any]
) -> None:
    other = open_database("theirs")
    other.listen(lambda topic: None)
    heard: list[str | None] = []
    db.listen(heard.append)
    eventually(lambda: heard == [None])

    terminate_all(psql)
    eventually(lambda: heard == [None, None], "listening again")
    other.publish("queue:mail")

    eventually(lambda: heard == [None, None, "queue:mail"], "the notification")


def test_a_read_does_not_try_every_connection_that_was_lost(db: SystemDatabase, psql: psycopg.Connection[Any]) -> None:
    """Eight stale connections once cost eight attempts, and their pauses add up to ten seconds."""
    ready = threading.Barrier(8)
    threads = [threading.Thread(target=db.read, args=(lambda connection: ready.wait(10),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    terminate_all(psql)
    attempts: list[int] = []

    def verb(connection: Connection) -> object:
        attempts.append(1)
        return connection.one("SELECT 1")

    assert db.read(verb) == (1,)
    assert len(attempts) == 2


@pytest.mark.parametrize(
    "operation",
    [
        start("new", run_token="new token"),
        step(),
        outcome(),
        child("child", "w", 1, run_token="child token"),
        call(WorkflowStatusStore.cancel, ["w"], 1),
    ],
    ids=["start", "step", "outcome", "child", "call"],
)
def test_an_answer_to_commit_that_was_lost_changes_nothing(
    settings: Settings, db: SystemDatabase, operation: Any
) -> None:
    begin(db, start())
    if "host" not in parse_qs(urlsplit(settings.system_database_url).query):
        pytest.skip("the proxy speaks to a socket in the file system")
    with Proxy.before(settings.system_database_url) as proxy:
        cut = SystemDatabase(replace(settings, system_database_url=proxy.url), SystemClock(), "tag")
        cut.fence("ours")
        # What is written alone is a transaction by itself; its values come with its execution.
        proxy.cut_answer_to(b"COMMIT" if isinstance(operation, Call) else operation.run_token.encode())

        answer = cut.commit(operation)[0]
        again = cut.commit(operation)[0]

        assert proxy.cuts == 1
        cut.close()
    expected: dict[str, object] = {
        "StartWorkflow": (True, None, None),
        "RecordStep": StepRecorded("PENDING", None),
        "RecordOutcome": (True,),
    }
    if not isinstance(operation, Call):
        assert answer == again == expected[type(operation).__name__]
    else:
        assert status(db, "w") == "CANCELLED"


async def test_an_answer_to_the_commit_of_a_whole_batch_that_was_lost_changes_nothing(
    settings: Settings, db: SystemDatabase
) -> None:
    if "host" not in parse_qs(urlsplit(settings.system_database_url).query):
        pytest.skip("the proxy speaks to a socket in the file system")
    for number in range(15):
        begin(db, start(f"w{number}"))
    with Proxy.before(settings.system_database_url) as proxy:
        cut = SystemDatabase(replace(settings, system_database_url=proxy.url), SystemClock(), "tag")
        cut.fence("ours")
        proxy.cut_answer_to(b'"w8","w9"')

        results = await asyncio.gather(
            *(cut.submit(step(f"w{number}")) for number in range(10)),
            *(cut.submit(outcome(f"w{number}")) for number in range(10, 15)),
            *(cut.submit(start(f"v{number}", run_token=f"token of v{number}")) for number in range(5)),
        )

        assert proxy.cuts == 1
        await asyncio.to_thread(cut.close)
    answers = [result[0] for result in results]
    assert answers[:10] == [StepRecorded("PENDING", None)] * 10
    assert all(answer.is_applied for answer in answers[10:15])
    assert all(answer.created for answer in answers[15:])
    assert [len(steps(db, f"w{number}")) for number in range(10)] == [1] * 10
    assert [status(db, f"w{number}") for number in range(10, 15)] == ["SUCCESS"] * 5


def test_a_server_that_restarts_is_waited_for(private_postgres: Cluster) -> None:
    url = private_postgres.url("restarted")
    db = SystemDatabase(process_config({"name": "test-app", "system_database_url": url}, {}), SystemClock(), "tag")
    begin(db, start(owner_instance=None))
    private_postgres.stop("immediate")
    answers: list[StepRecorded] = []
    committing = threading.Thread(target=lambda: answers.append(record(db, step())))
    committing.start()

    private_postgres.start()
    committing.join(30)

    assert answers == [StepRecorded("PENDING", None)]
    private_postgres.stop()
    db.close()  # ends although the server is away


def test_a_server_that_was_demoted_is_left_for_another_connection(db: SystemDatabase) -> None:
    """Its sessions look healthy and refuse to write; only a new connection finds the new primary."""
    begin(db, start())

    def pin_read_only(connection: Connection) -> None:
        connection.run("SET default_transaction_read_only = on")

    db.change(pin_read_only)

    assert record(db, step()) == StepRecorded("PENDING", None)


# -- locked rows ------------------------------------------------------------------------------------------------------


def test_a_unit_that_needs_a_locked_row_waits_elsewhere_and_the_others_go_on(
    db: SystemDatabase, psql: psycopg.Connection[Any]
) -> None:
    begin(db, start("locked"))
    begin(db, start("free"))
    answers: list[bool] = []
    with psql.transaction():
        psql.execute("SELECT 1 FROM dbos.workflow_status WHERE workflow_uuid = 'locked' FOR UPDATE")
        waiting = threading.Thread(target=lambda: answers.append(db.commit(outcome("locked"))[0].is_applied))
        waiting.start()

        for number in range(20):
            assert record(db, step("free", number)) == StepRecorded("PENDING", None)
        assert db.commit(outcome("free"))[0].is_applied
        assert record(db, step("locked", 1, output="x" * 2_000_000)) == StepRecorded("PENDING", None)
        assert answers == []

    waiting.join(10)
    assert answers == [True]
    assert status(db, "locked") == "SUCCESS"


async def test_a_deduplication_id_in_somebodys_open_transaction_is_waited_for(
    db: SystemDatabase, psql: psycopg.Connection[Any]
) -> None:
    psql.execute("BEGIN")
    psql.execute(
        "INSERT INTO dbos.workflow_status (workflow_uuid, status, queue_name, deduplication_id) "
        "VALUES ('theirs', 'ENQUEUED', 'mail', 'invoice')"
    )
    waiting = db.submit(enqueue("ours", deduplication_id="invoice"))

    results = await asyncio.gather(*(db.submit(enqueue(f"w{number}")) for number in range(5)))

    assert all(result[0].created for result in results)
    assert not waiting.done()
    psql.execute("ROLLBACK")
    assert (await waiting)[0].created


def test_closing_does_not_wait_for_somebodys_lock(db: SystemDatabase, psql: psycopg.Connection[Any]) -> None:
    begin(db, start())
    failures: list[BaseException] = []

    def finish() -> None:
        try:
            db.commit(outcome())
        except psycopg.Error as error:
            failures.append(error)

    with psql.transaction():
        psql.execute("SELECT 1 FROM dbos.workflow_status FOR UPDATE")
        waiting = threading.Thread(target=finish)
        waiting.start()
        eventually(
            lambda: psql.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() == (1,), "waiting"
        )
        db.close()
        waiting.join(10)

    assert len(failures) == 1


# -- poison -----------------------------------------------------------------------------------------------------------


async def test_a_row_that_fits_no_index_fails_alone(db: SystemDatabase) -> None:
    """Taken for a lost connection, it once had the whole batch repeated for ever."""
    too_long = os.urandom(8000).hex()

    poisonous, good = db.submit(enqueue(too_long)), db.submit(enqueue("good"))

    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        await poisonous
    assert (await good)[0].created


async def test_text_with_a_zero_byte_fails_alone(db: SystemDatabase) -> None:
    begin(db, start())

    poisonous, good = db.submit(step("w", 1, output="a\0b")), db.submit(step("w", 2))

    with pytest.raises(psycopg.DataError):
        await poisonous
    assert await good == [StepRecorded("PENDING", None)]


def test_a_statement_timeout_is_an_error_and_not_repeated(db: SystemDatabase) -> None:
    attempts: list[int] = []

    def slow(connection: Connection) -> None:
        attempts.append(1)
        connection.run("SET LOCAL statement_timeout = 1")
        connection.all("SELECT pg_sleep(10)")

    with pytest.raises(psycopg.errors.QueryCanceled):
        db.change(slow)

    assert len(attempts) == 1
    assert begin(db, start()).created


def test_a_time_limit_of_the_whole_database_stops_reads_once_and_commits_never(
    settings: Settings, psql: psycopg.Connection[Any]
) -> None:
    psql.execute(f'ALTER DATABASE "{psql.info.dbname}" SET statement_timeout = 100')
    db = SystemDatabase(settings, SystemClock(), "tag")
    attempts: list[int] = []

    def slow_read(connection: Connection) -> None:
        attempts.append(1)
        connection.all("SELECT pg_sleep(60)")

    def slow_write(connection: Connection) -> object:
        return connection.all("SELECT pg_sleep(0.3)")

    with pytest.raises(psycopg.errors.QueryCanceled):
        db.read(slow_read)
    assert len(attempts) == 1
    assert db.change(slow_write) == [("",)]
    begin(db, start(owner_instance=None))
    with psql.transaction():
        psql.execute("SELECT 1 FROM dbos.workflow_status FOR UPDATE")
        waiting = threading.Thread(target=db.commit, args=(outcome(),))
        waiting.start()
        psql.execute("SET LOCAL statement_timeout = 0")
        psql.execute("SELECT pg_sleep(0.3)")
    waiting.join(10)
    assert status(db) == "SUCCESS"
    db.close()


# -- arrays, schemas, settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [],
        [None],
        ["", "NULL", "null", None],
        ["{}", "{a,b}", '"', '\\"', "\\", "a,b", " x ", "\n\t\r\v", "'", "$1"],
        ["東京", "🚀", "e\u0301", "\x01\x7f\u200b"],
    ],
)
def test_an_array_literal_means_its_values(psql: psycopg.Connection[Any], values: list[str | None]) -> None:
    found = psql.execute("SELECT %s::text[]", [array_literal(values)]).fetchone()

    assert found == (values,)


@pytest.mark.parametrize(
    "schema", ['a"b', "a%b", "a;drop", "we:ird", "東京", "UPPER case", "$1", "x IN :ids", "dbos.dbos"]
)
def test_a_schema_may_have_any_name(postgres_url: str, schema: str) -> None:
    config: DBOSConfig = {"name": "test-app", "system_database_url": postgres_url, "dbos_system_schema": schema}
    db = SystemDatabase(process_config(config, {}), SystemClock(), "tag")
    try:
        db.change(db.executors.register, executor())
        db.fence("ours")
        begin(db, start())
        record(db, step())
        db.commit(outcome())

        assert status(db) == "SUCCESS"
        assert len(steps(db)) == 1
        found = db.read(db.listing.workflows, WorkflowFilter(workflow_ids=["w"], workflow_id_prefixes=["w"], limit=5))
        assert [each.workflow_uuid for each in found] == ["w"]
        assert db.change(db.workflows.cancel, ["w"], 1) == []
    finally:
        db.close()


def test_two_schemas_of_one_database_do_not_meet(postgres_url: str) -> None:
    def open_schema(schema: str) -> SystemDatabase:
        config: DBOSConfig = {"name": "test-app", "system_database_url": postgres_url, "dbos_system_schema": schema}
        return SystemDatabase(process_config(config, {}), SystemClock(), schema)

    one, other = open_schema("one"), open_schema("other")
    heard: list[str | None] = []
    other.listen(heard.append)
    one.listen(lambda topic: None)
    eventually(lambda: heard == [None])

    begin(one, start(owner_instance=None))
    one.publish("queue:mail")
    one.close()  # what was published is sent before

    assert other.read(other.workflows.get, "w") is None
    other.close()
    assert heard == [None]


def test_prepared_statements_can_be_switched_off(settings: Settings) -> None:
    unprepared = replace(settings, db_engine_kwargs={"connect_args": {"prepare_threshold": None}})
    db = SystemDatabase(unprepared, SystemClock(), "tag")

    def prepared(connection: Connection) -> object:
        return connection.all("SELECT statement FROM pg_prepared_statements")

    for number in range(10):
        begin(db, start(f"w{number}", owner_instance=None))

    assert db.change(prepared) == []
    assert db.read(prepared) == []
    db.close()


# -- notifications ----------------------------------------------------------------------------------------------------


def test_topics_are_sent_once_however_often_they_are_published(db: SystemDatabase, open_database: OpenDatabase) -> None:
    other = open_database("theirs")
    heard: list[str | None] = []
    db.listen(heard.append)
    eventually(lambda: heard == [None])

    for _ in range(1000):
        other.publish("nobody listens yet")
    other.listen(lambda topic: None)
    for _ in range(1000):
        other.publish("queue:mail")
        other.publish("workflow")
    other.publish("last")

    eventually(lambda: "last" in heard, "the last one")
    assert {"queue:mail", "workflow"} <= set(heard)
    assert len(heard) < 500


def test_a_topic_that_is_too_long_for_a_notification_wakes_all_the_same(
    db: SystemDatabase, open_database: OpenDatabase
) -> None:
    other = open_database("theirs")
    heard: list[str | None] = []
    db.listen(heard.append)
    other.listen(lambda topic: None)
    eventually(lambda: heard == [None])

    other.publish("queue:" + "é" * 20_000)

    eventually(lambda: len(heard) == 2)
    assert str(heard[1]).startswith("queue:é")


def test_without_listen_and_notify_nothing_is_listened_to_and_nothing_sent(
    settings: Settings, db: SystemDatabase, psql: psycopg.Connection[Any]
) -> None:
    silent = SystemDatabase(replace(settings, use_listen_notify=False), SystemClock(), "silent")
    threads = threading.active_count()
    listening_before = listening_sessions(psql)
    heard: list[str | None] = []

    silent.listen(heard.append)
    silent.publish("queue:mail")

    assert threading.active_count() == threads
    assert listening_sessions(psql) <= listening_before
    silent.close()
    assert heard == []


# -- the end of a batch -----------------------------------------------------------------------------------------------


FAIL_AT_COMMIT = """
CREATE SEQUENCE dbos.commits;
CREATE FUNCTION dbos.fail_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('dbos.commits') = 1 THEN {what}; END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER fail_once AFTER INSERT ON dbos.operation_outputs
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dbos.fail_once();
"""


@pytest.mark.parametrize(
    "what",
    ["RAISE EXCEPTION 'at commit' USING ERRCODE = '40001'", "PERFORM pg_terminate_backend(pg_backend_pid())"],
    ids=["serialization failure", "connection lost"],
)
def test_a_batch_that_fails_when_it_is_committed_is_repeated(
    db: SystemDatabase, psql: psycopg.Connection[Any], what: str
) -> None:
    """The answer to COMMIT comes at the end of the pipeline, after those of the statements."""
    begin(db, start())
    psql.execute(FAIL_AT_COMMIT.format(what=what).encode())

    results = db.commit(step(), start("another"))

    assert results == [StepRecorded("PENDING", None), (True, None, None)]
    assert db.commit(step("w", 2), start("third")) == results


def test_an_interrupt_in_a_batch_with_a_call_costs_those_after_it_nothing(
    db: SystemDatabase, psql: psycopg.Connection[Any], dbos_postgres_url: str
) -> None:
    begin(db, start())
    with psycopg.connect(dbos_postgres_url) as holding:
        holding.execute("LOCK TABLE dbos.application_versions IN ACCESS EXCLUSIVE MODE")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        main = threading.main_thread().ident
        assert main is not None

        def interrupt() -> None:
            eventually(lambda: psql.execute(waiting.encode()).fetchone() != (0,))
            signal.pthread_kill(main, signal.SIGINT)
            holding.rollback()

        interrupting = threading.Thread(target=interrupt)
        interrupting.start()

        with pytest.raises(KeyboardInterrupt):
            db.commit(step(), call(lambda connection: connection.all("SELECT * FROM dbos.application_versions")))
        interrupting.join()

    assert record(db, step("w", 2)) == StepRecorded("PENDING", None)
    assert len(steps(db, "w")) == 2


def test_text_is_utf8_whatever_the_client_is_told(
    db: SystemDatabase, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "latin1")
    begin(db, start())
    other = SystemDatabase(settings, SystemClock(), "tag")

    recorded = [other.commit(step("w", 1, output='"é €"'))[0], other.commit(step("w", 1, output='"é €"'))[0]]

    other.close()
    assert recorded == [StepRecorded("PENDING", None)] * 2
    assert steps(db, "w")[0].output == '"é €"'


# -- plans ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(postgres_server: PostgresServer, dbos_postgres_template: str) -> Iterator[SystemDatabase]:
    """A database with 50 000 finished workflows."""
    url = postgres_server.create_database(dbos_postgres_template)
    db = SystemDatabase(process_config({"name": "test-app", "system_database_url": url}, {}), SystemClock(), "tag")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO dbos.workflow_status (workflow_uuid, status, name, run_token, inputs) "
            "SELECT 'w' || n, 'SUCCESS', 'order', 'token', '[]' FROM generate_series(1, 50000) n"
        )
        connection.execute(
            "INSERT INTO dbos.operation_outputs (workflow_uuid, function_id, function_name) "
            "SELECT 'w' || n, 1, 'pay' FROM generate_series(1, 50000) n"
        )
        connection.execute("ANALYZE")
    yield db
    db.close()
    postgres_server.drop_database(url)


def arrays(fields: tuple[str, ...], operations: list[Any]) -> dict[str, Any]:
    columns = zip(*operations, strict=True)
    arrays = {name: list(column) for name, column in zip(fields, columns, strict=True)}
    return {"instance": "ours", "enqueue_sequence": "0", **arrays}


STARTS = [(*start(f"new {number}")[:-1], None, None) for number in range(64)]
STEPS = [step(f"w{number}", 2) for number in range(1, 65)]
OUTCOMES = [outcome(f"w{number}") for number in range(1, 65)]
IDS = [f"w{number}" for number in range(1, 65)]


Statements = dict[str, tuple[str, dict[str, Any]]]

WRITES: Statements = {
    "start": (
        postgres.INSERT_WORKFLOWS,
        arrays((*start()._fields[:-1], "parent_run_token", "parent_function_id"), STARTS),
    ),
    "plain start": (postgres.INSERT_PLAIN_WORKFLOWS, arrays(start()._fields[:-1], [row[:-2] for row in STARTS])),
    "plain step": (postgres.INSERT_PLAIN_STEPS, arrays(step()._fields, STEPS)),
    "step": (postgres.INSERT_STEPS, arrays(step()._fields, STEPS)),
    "outcome": (postgres.UPDATE_OUTCOMES, arrays(outcome()._fields, OUTCOMES)),
    "start alone": (postgres.INSERT_WORKFLOW_ALONE, {"instance": "ours", **start("new")._asdict()}),
    "step alone": (postgres.INSERT_STEP_ALONE, {"instance": "ours", **step("w1", 2)._asdict()}),
    "outcome alone": (postgres.UPDATE_OUTCOME_ALONE, {"instance": "ours", **outcome("w1")._asdict()}),
}
READS: Statements = {
    "existing": (postgres.SELECT_WORKFLOWS, {"ids": IDS}),
    "runs": (postgres.SELECT_RUNS, {"ids": IDS, "tokens": ["token"]}),
    "recorded": (postgres.SELECT_STEPS, {"ids": IDS, "function_ids": [1] * 64}),
    "holders": (postgres.SELECT_HOLDERS, {"queue_names": ["mail"], "deduplication_ids": ["invoice"]}),
    "history": (HISTORY, {"ids": IDS, "after_id": "", "after_function": -1, "page_rows": 2000}),
    "get": (workflow_status.GET, {"ids": IDS}),
    "unsettled": (workflow_status.UNSETTLED, {"ids": IDS}),
    "running": (workflow_status.RUNNING, {"instance": "ours"}),
    "orphans": (workflow_status.HAS_ORPHANS, {"application_version": "v1", "application_name": "shop"}),
    "places": (workflow_status.PLACES, {"ids": IDS}),
    "cancel": (workflow_status.CANCEL, {"ids": IDS, "now_ms": 1}),
}


CLAIMS = {
    "claim": "_claim",
    "claim from a partition": "_claim_partition",
    "claim what has no partition": "_claim_keyless",
    "claimed": "_claimed",
    "promote": "_promote",
    "cancel what waits": "_cancel_waiting",
}
QUEUE_STATEMENTS = {
    "look": queue_claims.LOOK,
    "partitions": queue_claims.PARTITIONS.replace("{until}", queue_claims.UNTIL),
    "stranded": queue_claims.STRANDED,
    "waiting in a queue": queues.WAITING,
    "running of a queue": queue_claims.RUNNING,
    "starts": queue_claims.STARTS,
    "forget starts": queue_claims.FORGET_STARTS,
}
CLAIM_VALUES = {
    "name": "mail",
    "served": ["mail"],
    "queue_name": "mail",
    "partition_key": "key",
    "after": "",
    "until": "z",
    "revision": 1,
    "application_name": "shop",
    "application_version": "v1",
    "instance": "ours",
    "executor_id": "local",
    "run_token": "token",
    "unknown_targets": [],
    "now_ms": 1,
    "since_ms": 1,
    "count": 100,
}


@pytest.mark.parametrize("name", [*CLAIMS, *QUEUE_STATEMENTS])
def test_what_queues_ask_goes_by_an_index(filled: SystemDatabase, name: str) -> None:
    statement = QUEUE_STATEMENTS.get(name) or getattr(filled.claims, CLAIMS[name])

    plan = plan_of(filled.change, statement, CLAIM_VALUES)

    assert "Hash Join" not in plan
    for table in ("workflow_status", "queue_starts"):
        assert f"Seq Scan on {table}" not in plan, plan


def plan_of(ask: Callable[..., list[str]], statement: str, parameters: dict[str, Any]) -> str:
    def explain(connection: Connection) -> list[str]:
        return [line for (line,) in connection.all("EXPLAIN " + statement, **parameters)]

    return "\n".join(ask(explain))


@pytest.mark.parametrize("name", [*WRITES, *READS])
def test_hot_statements_go_by_an_index(filled: SystemDatabase, name: str) -> None:
    ask = filled.change if name in WRITES else filled.read  # they differ in what they let the planner do
    plan = plan_of(ask, *{**WRITES, **READS}[name])

    assert "Hash Join" not in plan
    assert "Merge Join" not in plan
    for table in ("workflow_status", "operation_outputs"):
        assert f"Seq Scan on {table}" not in plan, plan


@pytest.mark.parametrize("is_filled", [False, True], ids=["no statistics", "statistics"])
@pytest.mark.parametrize("name", WRITES)
def test_a_batch_looks_at_its_own_rows_only(
    db: SystemDatabase, filled: SystemDatabase, name: str, is_filled: bool
) -> None:
    plan = plan_of((filled if is_filled else db).change, *WRITES[name])

    scanned = re.findall(r"Scan (?:using (\w+) )?on workflow_status\b", plan)
    assert set(scanned) <= {"workflow_status_pkey"}, plan


def test_the_connection_that_blocked_units_are_moved_to_is_closed_last(
    db: SystemDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was once closed first, and a unit lost between the two."""
    closed: list[int] = []
    close = PostgresWriter.close

    def note(writer: PostgresWriter) -> None:
        closed.append(writer._lock_timeout_ms)
        close(writer)

    monkeypatch.setattr(PostgresWriter, "close", note)

    db.close()

    assert closed == [LOCK_TIMEOUT_MS, LOCK_TIMEOUT_MS, SECOND_WRITER_LOCK_TIMEOUT_MS]
