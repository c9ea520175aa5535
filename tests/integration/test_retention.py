"""Retention: what is past its time goes, a little at a time; what runs, or may be asked for, stays."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSContextSetAuth, DBOSException, RetentionConfig, SetWorkflowID
from dbos._dbos_config import process_config
from dbos._engine.flow import Commit, Flow, Read, drive
from dbos._error import DBOSInitializationError
from dbos._ids import new_token
from dbos._retention_policy import RetentionPolicy
from dbos._services import retention as retention_service
from dbos._services.retention import ACTION, PAGE_SIZE, Retention, RetentionPass
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import Call
from dbos._sysdb.stores.deletions import PARTS
from dbos._sysdb.stores.forks import Fork
from dbos._sysdb.stores.management_actions import Action
from dbos._sysdb.wakeups import Signal
from dbos.testing import VirtualTime
from tests.integration.histories import change, engine, eventually

HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS
MINUTE_MS = 60 * 1000
DAILY: RetentionConfig = {"max_age": timedelta(days=1)}

INSERT = """
INSERT INTO dbos.workflow_status
  (workflow_uuid, name, status, created_at, updated_at, completed_at, parent_workflow_id, forked_from, application_name)
VALUES (:id, :name, :status, :created_at, :ended_at, :ended_at, :parent, :forked_from, :application)
"""

INSERT_MANY = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
INSERT INTO dbos.workflow_status (workflow_uuid, name, status, created_at, updated_at, completed_at)
SELECT CAST(:prefix AS text) || n, 'many', :status, at, at, at
FROM (SELECT n, CAST(:first_ms AS bigint) + n AS at FROM numbers) times
"""

INSERT_PARTS = [
    """INSERT INTO dbos.operation_outputs (workflow_uuid, function_id, function_name) VALUES (:id, 1, 'step')""",
    """INSERT INTO dbos.notifications (message_uuid, destination_uuid, message) VALUES (:id || '-message', :id, '1')""",
    """INSERT INTO dbos.workflow_events (workflow_uuid, key, value) VALUES (:id, 'key', '1')""",
    """INSERT INTO dbos.workflow_events_history (workflow_uuid, function_id, key, value) VALUES (:id, 1, 'key', '1')""",
    """INSERT INTO dbos.streams (workflow_uuid, key, value, "offset") VALUES (:id, 'key', '1', 0)""",
]


def insert(
    workflow_id: str,
    *,
    status: str = "SUCCESS",
    name: str = "workflow",
    created_ms_ago: int = 3 * DAY_MS,
    ended_ms_ago: int = 2 * DAY_MS,
    parent: str | None = None,
    forked_from: str | None = None,
    application: str | None = None,
) -> None:
    """A row of a workflow, with something in each of the other tables."""
    now_ms = engine().db.now_ms()
    change(
        INSERT,
        id=workflow_id,
        name=name,
        status=status,
        created_at=now_ms - created_ms_ago,
        ended_at=now_ms - ended_ms_ago,
        parent=parent,
        forked_from=forked_from,
        application=application,
    )
    for sql in INSERT_PARTS:
        change(sql, id=workflow_id)


def record_child(workflow_id: str, child: str) -> None:
    change(
        """
        INSERT INTO dbos.operation_outputs (workflow_uuid, function_id, function_name, child_workflow_id)
        SELECT CAST(:id AS text), max(function_id) + 1, 'child', CAST(:child AS text)
        FROM dbos.operation_outputs WHERE workflow_uuid = :id
        """,
        id=workflow_id,
        child=child,
    )


def select(sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
    return engine().db.read(lambda connection: connection.all(sql, **parameters))


def ids(table: str = "workflow_status", column: str = "workflow_uuid") -> list[str]:
    return [found[0] for found in select(f"SELECT DISTINCT {column} FROM dbos.{table} ORDER BY {column}")]


def task() -> tuple[Any, ...]:
    (found,) = select("SELECT holder, held_until, position, last_run_at FROM dbos.maintenance_tasks")
    return found


def retention_pass(retention: RetentionConfig, stop: Signal | None = None) -> RetentionPass:
    """One that has taken the task."""
    action = Action(ACTION, engine().db.now_ms(), None, "test", new_token(), {})
    made = RetentionPass(engine(), RetentionPolicy.of(retention), action, stop)
    assert drive(engine(), made.take()).holder == made.holder
    return made


def watched(flow: Flow[Any], watch: Callable[[Any], None]) -> Flow[Any]:
    """A flow whose effects are seen before they come about, and do not if ``watch`` raises."""
    try:
        effect = flow.send(None)
        while True:
            try:
                watch(effect)
                answer = yield effect
            except (Exception, KeyboardInterrupt) as error:
                effect = flow.throw(error)
            else:
                effect = flow.send(answer)
    except StopIteration as end:
        return end.value


def deletion(effect: Any) -> Call | None:
    """The deletion of a batch of workflows, if it is one."""
    operation = effect.operations[0] if isinstance(effect, Commit) else None
    if isinstance(operation, Call) and operation.verb == engine().db.retention.delete:
        return operation
    return None


# -- what goes and what stays ------------------------------------------------------------------------------------------


@pytest.fixture
def launched(dbos: type[DBOS]) -> type[DBOS]:
    dbos.launch()
    return dbos


def test_the_time_of_completion_counts(launched: type[DBOS]) -> None:
    for status in ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"):
        insert(f"old {status}", status=status)
    for status in ("PENDING", "ENQUEUED", "DELAYED", "of another library"):
        insert(f"stays {status}", status=status, ended_ms_ago=3 * DAY_MS)
    insert("stays: took two days", created_ms_ago=2 * DAY_MS, ended_ms_ago=MINUTE_MS)
    change("INSERT INTO dbos.management_actions (request_id, occurred_at, action, source) VALUES ('1', 1, '-', '-')")

    report = launched.run_retention(DAILY)

    assert report == {
        "workflows": 4,
        "messages": 0,
        "transaction_outputs": 0,
        "schedule_decisions": 0,
        "management_actions": 0,
        "is_complete": True,
        "held_by": None,
    }
    stays = [
        "stays DELAYED",
        "stays ENQUEUED",
        "stays PENDING",
        "stays of another library",
        "stays: took two days",
    ]
    assert sorted(ids()) == sorted(stays)
    for table, column in PARTS.items():
        assert sorted(ids(table, column)) == sorted(stays), table
    assert len(select("SELECT 1 FROM dbos.management_actions WHERE action = '-'")) == 1


def test_the_last_to_end_are_kept_by_number_and_names_have_rules_of_their_own(launched: type[DBOS]) -> None:
    for number, ended_ms_ago in enumerate((40, 10, 30, 20, 50), 1):  # minutes
        for name in ("general", "audit", "brief", "few"):
            insert(
                f"{name} {number}",
                name=name,
                created_ms_ago=DAY_MS - number * MINUTE_MS,
                ended_ms_ago=ended_ms_ago * MINUTE_MS,
            )

    report = launched.run_retention(
        {
            "max_count": 2,
            "workflows": {
                "audit": "forever",
                "brief": {"max_age": 25 * 60},
                "few": {"max_age": 9999.5, "max_count": 1},
            },
        }
    )

    assert ids() == [
        *(f"audit {number}" for number in range(1, 6)),
        "brief 2",
        "brief 4",
        "few 2",
        "general 2",
        "general 4",
    ]
    assert report["workflows"] == 3 + 3 + 4


def test_what_a_workflow_may_still_ask_for_is_kept(launched: type[DBOS]) -> None:
    insert("root", status="PENDING", created_ms_ago=9 * DAY_MS)
    insert("child", parent="root", created_ms_ago=8 * DAY_MS)
    insert("grandchild", parent="child", created_ms_ago=7 * DAY_MS)
    insert("source", created_ms_ago=8 * DAY_MS)
    insert("of source", parent="source", created_ms_ago=7 * DAY_MS)
    insert("fork", status="ENQUEUED", forked_from="source")
    insert("shared")
    insert("gave up", status="CANCELLED", ended_ms_ago=MINUTE_MS, created_ms_ago=8 * DAY_MS)
    insert("of gave up", parent="gave up")
    insert("failed", status="ERROR", ended_ms_ago=MINUTE_MS, created_ms_ago=8 * DAY_MS)
    insert("of failed", parent="failed")
    for parent, child in (("root", "child"), ("child", "grandchild"), ("fork", "of source"), ("root", "shared")):
        record_child(parent, child)

    launched.run_retention(DAILY)

    kept = ["child", "failed", "fork", "gave up", "grandchild", "of gave up", "of source", "root", "shared"]
    assert sorted(ids()) == kept

    old_ms = engine().db.now_ms() - 2 * DAY_MS
    change("UPDATE dbos.workflow_status SET status = 'CANCELLED', completed_at = :old_ms", old_ms=old_ms)
    launched.run_retention(DAILY)

    assert ids() == []


def test_received_messages_of_a_workflow_that_runs_for_long_go(launched: type[DBOS]) -> None:
    insert("actor", status="PENDING", created_ms_ago=9 * DAY_MS)
    insert("kept", status="PENDING", created_ms_ago=9 * DAY_MS, name="audit")
    change("DELETE FROM dbos.notifications")
    now_ms = engine().db.now_ms()
    for actor in ("actor", "kept"):
        for number, (days, consumed, key) in enumerate(
            (
                (2, True, None),
                (2, False, None),
                (0, True, None),
                (3, True, None),
                (4, True, None),
                (4, True, "payment"),  # which must not be new when it is sent again
            )
        ):
            change(
                """
                INSERT INTO dbos.notifications
                  (message_uuid, destination_uuid, message, created_at_epoch_ms, consumed, idempotency_key)
                VALUES (:id, :actor, '1', :sent_at, :consumed, :key)
                """,
                id=f"{actor} {number}",
                actor=actor,
                sent_at=now_ms - days * DAY_MS,
                consumed=consumed,
                key=key,
            )

    report = launched.run_retention({**DAILY, "workflows": {"audit": "forever"}, "batch_size": 2})

    assert report["messages"] == 3
    assert [each for each in ids("notifications", "message_uuid") if each.startswith("actor")] == [
        "actor 1",
        "actor 2",
        "actor 5",
    ]
    assert len(ids("notifications", "message_uuid")) == 3 + 6


def test_decisions_and_management_actions_go_when_asked_for(launched: type[DBOS]) -> None:
    now_ms = engine().db.now_ms()
    for number in range(5):
        at = now_ms - number * DAY_MS
        change(
            "INSERT INTO dbos.schedule_history (schedule_id, schedule_name, kind, scheduled_at, last_scheduled_at, "
            "decision, decided_at) VALUES ('1', 'hourly', 'tick', :at, :at, :decision, :at)",
            at=at,
            decision="buffered" if number == 4 else "fired",
        )
        change(
            "INSERT INTO dbos.management_actions (request_id, occurred_at, action, source) VALUES (:id, :at, '-', '-')",
            id=str(number),
            at=at,
        )

    report = launched.run_retention({"history_max_age": timedelta(days=1, hours=12), "batch_size": 2})

    assert (report["schedule_decisions"], report["management_actions"]) == (2, 3)
    assert len(select("SELECT 1 FROM dbos.schedule_history WHERE decision = 'fired'")) == 2
    assert len(select("SELECT 1 FROM dbos.schedule_history WHERE decision = 'buffered'")) == 1
    assert len(select("SELECT 1 FROM dbos.management_actions WHERE action = '-'")) == 2


def test_a_history_is_read_as_far_as_it_is_old(launched: type[DBOS], monkeypatch: pytest.MonkeyPatch) -> None:
    """A million of entries that are all to stay cost nothing; and what is noted late does not keep the others."""
    monkeypatch.setattr(retention_service, "PAGE_SIZE", 2)
    now_ms = engine().db.now_ms()
    for number, days in enumerate((3, 0, 0, 3, 3, 0, 0, 3, 0, 0)):
        change(
            "INSERT INTO dbos.management_actions (request_id, occurred_at, action, source) VALUES (:id, :at, '-', '-')",
            id=str(number),
            at=now_ms - days * DAY_MS,
        )
    looks: list[Any] = []

    def watch(effect: Any) -> None:
        if isinstance(effect, Read) and effect.verb == engine().db.retention.actions:
            looks.append(effect.arguments)

    report = drive(engine(), watched(retention_pass({"history_max_age": timedelta(days=1)}).run(), watch))

    assert report["management_actions"] == 1
    assert len(looks) == 1
    change("DELETE FROM dbos.management_actions WHERE request_id IN ('1', '2')")
    assert launched.run_retention({"history_max_age": timedelta(days=1)})["management_actions"] == 2
    kept = [row[0] for row in select("SELECT request_id FROM dbos.management_actions WHERE action = '-'")]
    assert sorted(kept) == ["5", "6", "7", "8", "9"]


def test_what_was_deleted_is_noted_once_for_a_pass(launched: type[DBOS]) -> None:
    for number in range(3):
        insert(f"old {number}")

    with DBOSContextSetAuth("grace", []):
        launched.run_retention({**DAILY, "batch_size": 1})
        launched.run_retention(DAILY)  # which finds nothing

    [noted] = launched.list_management_actions(action="run_retention")
    assert (noted["actor"], noted["workflow_id"], noted["details"]) == ("grace", None, {"workflows": 3})


def test_another_application_is_left_alone(launched: type[DBOS]) -> None:
    for application in (None, "test-app", "other"):
        insert(f"of {application}", application=application)

    report = launched.run_retention(DAILY)

    assert report["workflows"] == 2
    assert ids() == ["of other"]


@pytest.mark.parametrize("retention", [DAILY, {"workflows": {"workflow": {"max_count": 1}}}])
def test_records_of_transactions_go_with_their_workflows(
    config: DBOSConfig, tmp_path: Path, retention: RetentionConfig
) -> None:
    """And so do those that were left when a process died in between, whatever the rules are."""
    DBOS.destroy(destroy_registry=True)
    url = f"sqlite:///{tmp_path / 'application.sqlite'}"
    DBOS(config={**config, "application_database_url": url})

    @DBOS.transaction()
    def transact() -> int:
        return int(DBOS.sql_session.execute(sa.text("SELECT 1")).scalar_one())

    @DBOS.workflow(name="workflow")
    def workflow() -> int:
        return transact() + transact()

    try:
        DBOS.launch()
        for workflow_id in ("old", "unfinished", "recent", "gone"):
            with SetWorkflowID(workflow_id):
                assert workflow() == 2
        old_ms = engine().db.now_ms() - 2 * DAY_MS
        change(
            "UPDATE dbos.workflow_status SET created_at = :old_ms, completed_at = :old_ms, "
            "status = CASE workflow_uuid WHEN 'unfinished' THEN 'PENDING' ELSE 'SUCCESS' END, "
            "application_version = 'another' WHERE workflow_uuid <> 'recent'",
            old_ms=old_ms,
        )
        change("DELETE FROM dbos.workflow_status WHERE workflow_uuid = 'gone'")
        records = engine().application_database
        with records.engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE transaction_outputs SET created_at = :old WHERE workflow_uuid <> 'recent'"),
                {"old": old_ms},
            )

        report = DBOS.run_retention(retention)

        assert (report["workflows"], report["transaction_outputs"]) == (1, 4)
        with records.engine.begin() as connection:
            found = connection.execute(sa.text("SELECT workflow_uuid, count(*) FROM transaction_outputs GROUP BY 1"))
            assert {found_row[0]: found_row[1] for found_row in found} == {"unfinished": 2, "recent": 2}
    finally:
        DBOS.destroy(destroy_registry=True)


# -- a little at a time, one process at a time -------------------------------------------------------------------------


def test_many_rows_are_deleted_in_batches_and_another_goes_on_where_one_stopped(launched: type[DBOS]) -> None:
    count, active = 20_000, 66_000  # ids that are too many for one statement's parameters
    first_ms = engine().db.now_ms() - 30 * DAY_MS
    change(INSERT_MANY, prefix="active ", count=active, status="ENQUEUED", first_ms=first_ms)
    change(INSERT_MANY, prefix="old ", count=count, status="SUCCESS", first_ms=first_ms + active // 2)
    batches: list[int] = []
    stop = Signal()

    def stop_soon(effect: Any) -> None:
        batch = deletion(effect)
        if batch is not None:
            batches.append(len(batch.arguments[1]))
            if len(batches) == 5:
                stop.set()

    retention: RetentionConfig = {**DAILY, "batch_size": 1500}
    report = drive(engine(), watched(retention_pass(retention, stop).run(), stop_soon))

    assert not report["is_complete"]
    assert report["workflows"] == sum(batches)
    assert 0 < max(batches) <= 1500
    holder, held_until, position, last_run_at = task()
    assert (holder, held_until, last_run_at) == (None, None, None)

    pages: list[Any] = []
    reads = engine().db.retention.page

    def note_page(effect: Any) -> None:
        if isinstance(effect, Read) and effect.verb == reads:
            pages.append(effect.arguments[0])

    rest = drive(engine(), watched(retention_pass(retention).run(), note_page))

    assert list(pages[0]) == json.loads(position)["after"]
    assert len(pages) <= (count + active) / PAGE_SIZE  # what the first one had passed over is not read again
    assert rest["is_complete"]
    assert report["workflows"] + rest["workflows"] == count
    assert select("SELECT status, count(*) FROM dbos.workflow_status GROUP BY status") == [("ENQUEUED", active)]
    assert task()[:3] == (None, None, None)


def test_one_process_does_it_at_a_time_and_a_dead_one_is_replaced(launched: type[DBOS], config: DBOSConfig) -> None:
    for number in range(4):
        insert(f"old {number}", created_ms_ago=9 * DAY_MS - number)
    retention: RetentionConfig = {**DAILY, "batch_size": 1}
    dying = retention_pass(retention)
    flow = dying.run()
    effect = next(flow)  # and nobody goes on with it, after a batch
    while deletion(effect) is None:
        assert isinstance(effect, Read)
        effect = flow.send(engine().db.read(effect.verb, *effect.arguments))
    assert isinstance(effect, Commit)
    flow.send(engine().db.commit(*effect.operations))
    assert ids() == ["old 1", "old 2", "old 3"]

    with DBOSClient(system_database_url=config["system_database_url"], application_name="test-app") as other:
        refused = other.run_retention(retention)
        assert (refused["held_by"], refused["workflows"], refused["is_complete"]) == (dying.holder, 0, False)
        assert len(ids()) == 3

        change("UPDATE dbos.maintenance_tasks SET held_until = :now_ms", now_ms=engine().db.now_ms() - 1)
        assert json.loads(task()[2])["after"][1] == "old 0"
        insert("too late", created_ms_ago=10 * DAY_MS)  # behind the position: for the next pass
        taken = other.run_retention(retention)
        assert (taken["workflows"], taken["is_complete"]) == (3, True)

    assert ids() == ["too late"]
    report = drive(engine(), watched(flow, lambda effect: None))  # the first one was only paused: its turn is over
    assert (report["workflows"], report["is_complete"]) == (1, False)
    assert ids() == ["too late"]


@pytest.mark.parametrize("error", [OSError("the second batch"), KeyboardInterrupt("the second batch")])
def test_a_pass_that_fails_is_made_again_from_where_it_was(launched: type[DBOS], error: BaseException) -> None:
    for number in range(3):
        insert(f"old {number}", created_ms_ago=9 * DAY_MS - number)
    batches: list[Call] = []

    def fail_in_the_second(effect: Any) -> None:
        batch = deletion(effect)
        if batch is not None:
            batches.append(batch)
            if len(batches) == 2:
                raise error

    retention: RetentionConfig = {**DAILY, "batch_size": 1}
    failing = retention_pass(retention)
    with pytest.raises(type(error), match="the second batch"):
        drive(engine(), watched(failing.run(), fail_in_the_second))

    assert ids() == ["old 1", "old 2"]
    assert json.loads(task()[2])["after"][1] == "old 0"
    assert task()[0] is None  # nobody has to wait for the lease to run out
    [noted] = launched.list_management_actions(action="run_retention")
    assert noted["details"] == {"workflows": 1}
    assert launched.run_retention(retention)["workflows"] == 2


def test_a_workflow_that_changes_in_the_last_moment_is_left_alone(launched: type[DBOS]) -> None:
    for workflow_id in ("resumed", "revived", "old"):
        insert(workflow_id, status="CANCELLED")

    def interfere(effect: Any) -> None:
        batch = deletion(effect)
        if batch is not None:
            assert sorted(batch.arguments[1]) == ["old", "resumed", "revived"]
            change("UPDATE dbos.workflow_status SET status = 'ENQUEUED' WHERE workflow_uuid = 'resumed'")
            change(
                "UPDATE dbos.workflow_status SET status = 'SUCCESS', completed_at = :now_ms "
                "WHERE workflow_uuid = 'revived'",
                now_ms=engine().db.now_ms(),
            )

    drive(engine(), watched(retention_pass(DAILY).run(), interfere))

    assert ids() == ["resumed", "revived"]


@pytest.fixture
def psql(launched: type[DBOS], dbos_database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else's connection to the database of an application that is launched."""
    with psycopg.connect(dbos_database_url) as connection:
        yield connection


@pytest.mark.dbos_databases("postgres")
def test_a_workflow_that_somebody_holds_keeps_nobody_waiting(psql: psycopg.Connection[Any]) -> None:
    for workflow_id in ("held", "old"):
        insert(workflow_id)
    psql.execute("UPDATE dbos.workflow_status SET was_forked_from = TRUE WHERE workflow_uuid = 'held'")

    assert DBOS.run_retention(DAILY)["workflows"] == 1

    assert ids() == ["held"]
    psql.commit()
    assert DBOS.run_retention(DAILY)["workflows"] == 1


@pytest.mark.dbos_databases("postgres")
def test_a_fork_takes_over_all_of_its_source_or_is_not_made(psql: psycopg.Connection[Any]) -> None:
    """The source was deleted after its row had been copied, and before its steps were."""
    insert("source")
    change("UPDATE dbos.workflow_status SET was_forked_from = TRUE")
    store, has_begun = engine().db.forks, threading.Event()
    fork = Fork("source", "fork", "token", 2, "nowhere", None, None, {}, 1)

    class Slow:
        """A connection on which the deletion comes between two statements, if it can."""

        def __init__(self, connection: Connection) -> None:
            self.all, self.one, self._connection = connection.all, connection.one, connection

        def run(self, sql: str, /, **parameters: Any) -> int:
            touched = self._connection.run(sql, **parameters)
            has_begun.set()
            is_deleted.wait()
            return touched

    psql.execute("DELETE FROM dbos.workflow_status")
    psql.execute("DELETE FROM dbos.operation_outputs")
    is_deleted = threading.Event()
    forked: list[Any] = []
    forking = threading.Thread(
        target=lambda: forked.append(engine().db.change(lambda connection: store.fork(Slow(connection), fork)))
    )
    forking.start()
    is_waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
    eventually(lambda: has_begun.is_set() or psql.execute(is_waiting).fetchall())

    psql.commit()
    is_deleted.set()
    forking.join()

    assert (forked[0].row, ids()) == (None, [])


# -- its forms ---------------------------------------------------------------------------------------------------------


async def test_it_can_be_asked_for_by_coroutines_clients_and_workflows(dbos: type[DBOS], config: DBOSConfig) -> None:
    @dbos.workflow()
    async def clean_up() -> int:
        return (await dbos.run_retention_async(DAILY))["workflows"]

    dbos.launch()
    insert("one")
    assert (await dbos.run_retention_async(DAILY))["workflows"] == 1
    insert("two")
    with SetWorkflowID("cleaner"):
        assert await clean_up() == 1
    assert [step["function_name"] for step in await dbos.list_workflow_steps_async("cleaner")] == ["DBOS.runRetention"]
    insert("three")
    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        assert (await client.run_retention_async(DAILY))["workflows"] == 1
    with pytest.raises(DBOSException, match="There is no retention policy"):
        await dbos.run_retention_async()


def test_it_is_done_in_the_background(config: DBOSConfig, request: pytest.FixtureRequest) -> None:
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)
    DBOS.launch()
    insert("old")
    DBOS.destroy()
    assert DBOS.run_retention is not None

    DBOS(config={**config, "retention": {**DAILY, "interval_s": 1000}})
    request.addfinalizer(lambda: DBOS.destroy(destroy_registry=True))
    DBOS.launch()

    eventually(lambda: ids() == [] and task()[3] is not None)
    service = Retention(engine())
    insert("old")
    delay_s = service.work_once()
    assert delay_s is not None
    assert 900 < delay_s <= 1000  # another process was at it just now
    assert ids() == ["old"]
    change("UPDATE dbos.maintenance_tasks SET last_run_at = last_run_at - 1000000")
    assert service.work_once() == 1000
    assert ids() == []
    insert("old")
    assert DBOS.run_retention()["workflows"] == 1  # by the configuration, whether it is due or not


def test_days_go_by(dbos_virtual_time: VirtualTime, dbos: type[DBOS], config: DBOSConfig) -> None:
    kept: list[list[str]] = []
    dbos.destroy()
    dbos(config={**config, "retention": {**DAILY, "interval_s": 6 * 3600}})

    @dbos.workflow()
    def short(number: int) -> int:
        return number

    @dbos.workflow()
    def long() -> None:
        for day in range(4):
            with SetWorkflowID(f"child {day}"):
                short(day)
            with SetWorkflowID(f"other {day}"):
                dbos.start_workflow(short, day).get_result()
            change("UPDATE dbos.workflow_status SET parent_workflow_id = NULL WHERE workflow_uuid LIKE 'other%'")
            change("DELETE FROM dbos.operation_outputs WHERE child_workflow_id LIKE 'other%'")
            dbos.sleep(24 * 3600)
            kept.append(ids())

    dbos.launch()
    with SetWorkflowID("long"):
        long()

    everything = ["child 0", "child 1", "child 2", "child 3", "long"]
    assert kept[0] == ["child 0", "long", "other 0"]
    assert kept[3] == [*everything, "other 3"]
    dbos_virtual_time.advance(timedelta(days=2))
    eventually(lambda: ids() == [])


@pytest.mark.parametrize(
    ("retention", "message"),
    [
        ({}, "it would delete nothing"),
        ({"interval_s": 5}, "it would delete nothing"),
        ({"workflows": {"audit": "forever"}}, "it would delete nothing"),
        ({"max_agee": 5}, "unknown key 'max_agee': did you mean 'max_age'?"),
        (
            {"max_age": "1 day"},
            "'max_age' must be a timedelta or a number of seconds that is not negative, not '1 day'",
        ),
        ({"max_age": timedelta(days=-1)}, "'max_age' must be"),
        ({"max_age": True}, "'max_age' must be"),
        ({"max_age": float("nan")}, "'max_age' must be"),
        ({"max_count": -1}, "'max_count' must be a whole number from 0"),
        ({"max_count": 1_000_001}, "'max_count' must be a whole number from 0 to 1000000"),
        ({"max_count": 1.5}, "'max_count' must be a whole number"),
        ({"max_age": 1, "workflows": []}, "'workflows' must be a dictionary"),
        ({"workflows": {"mail": {}}}, "the rule for workflow 'mail' has no limit"),
        ({"workflows": {"mail": "for ever"}}, "the rule for workflow 'mail' must be a dictionary or 'forever'"),
        ({"workflows": {"mail": {"max_cuont": 5}}}, "the rule for workflow 'mail' has an unknown key 'max_cuont'"),
        ({"workflows": {"mail": {"max_age": -5}}}, "not -5 in the rule for workflow 'mail'"),
        ({"max_age": 1, "interval_s": 0}, "'interval_s' must be a positive number of seconds"),
        ({"max_age": 1, "batch_size": 0}, "'batch_size' must be a whole number from 1"),
        ({"history_max_age": "x"}, "'history_max_age' must be"),
    ],
)
def test_a_policy_that_cannot_be_understood_is_refused(retention: Any, message: str) -> None:
    with pytest.raises(DBOSInitializationError) as refused:
        process_config({"name": "test-app", "retention": retention}, {})

    assert "Configuration key 'retention' cannot be used: " in str(refused.value)
    assert message in str(refused.value)


def test_a_policy_that_is_given_by_hand_is_checked_too(launched: type[DBOS]) -> None:
    with pytest.raises(DBOSException, match="Invalid retention: it has an unknown key 'max_agee'"):
        launched.run_retention({"max_agee": 5})  # type: ignore[arg-type]  # what is refused
