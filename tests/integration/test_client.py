"""DBOSClient: what a program does with workflows whose code it does not have."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import pydoc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSException, EnqueueOptions, Queue, SendMessage, SetWorkflowID
from dbos._error import (
    DBOSConflictingWorkflowError,
    DBOSDatabaseUnavailableError,
    DBOSInitializationError,
    DBOSNonExistentWorkflowError,
    DBOSQueueDeduplicatedError,
)

PATIENCE_S = 30.0
NOWHERE: EnqueueOptions = {"workflow_name": "unknown", "queue_name": "nowhere"}  # nobody takes work from it


@pytest.fixture
def client(dbos: type[DBOS], config: DBOSConfig) -> Iterator[DBOSClient]:
    """A client beside a launched application."""
    dbos.launch()
    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        yield client


@pytest.fixture
def migrated(dbos: type[DBOS], config: DBOSConfig) -> str:
    """The URL of a system database that nobody uses."""
    dbos.launch()
    dbos.destroy()
    return str(config["system_database_url"])


# -- enqueueing --------------------------------------------------------------------------------------------------------


def test_what_a_client_enqueues_is_run_and_awaited(dbos: type[DBOS], client: DBOSClient) -> None:
    Queue("mail")

    @dbos.workflow(name="describe")
    def describe(number: int, *, name: str, client: str) -> str:
        return f"{number} {name} {client}"

    by_name: EnqueueOptions = {"workflow_name": "describe", "queue_name": "mail"}
    handle = client.enqueue(by_name, 1, name="a", client="b")
    handle_async = asyncio.run(client.enqueue_async(by_name, 2, name="c", client="d"))

    assert handle.get_result() == "1 a b"
    assert asyncio.run(handle_async.get_result()) == "2 c d"
    assert asyncio.run(handle_async.get_status()).status == handle.get_status().status == "SUCCESS"


def test_methods_of_classes_and_instances_are_enqueued_by_their_names(dbos: type[DBOS], client: DBOSClient) -> None:
    Queue("mail")

    @dbos.dbos_class("Mailer")
    class Mailer:
        def __init__(self) -> None:
            self.config_name = "fast"
            dbos.register_instance(self)

        @classmethod
        @dbos.workflow(name="by_class")
        def by_class(cls, text: str) -> str:
            return f"{cls.__name__} {text}"

        @dbos.workflow(name="by_instance")
        def by_instance(self, text: str) -> str:
            return f"{self.config_name} {text}"

    Mailer()
    of_class: EnqueueOptions = {"workflow_name": "by_class", "queue_name": "mail", "class_name": "Mailer"}

    first = client.enqueue(of_class, "a")
    second = client.enqueue({**of_class, "workflow_name": "by_instance", "instance_name": "fast"}, "b")

    assert (first.get_result(), second.get_result()) == ("Mailer a", "fast b")


def test_the_options_of_an_enqueued_workflow_are_in_its_row(client: DBOSClient) -> None:
    options: EnqueueOptions = {
        **NOWHERE,
        "workflow_id": "full",
        "app_version": "v7",
        "workflow_timeout": 2.5,
        "deduplication_id": "d",
        "priority": 3,
        "max_recovery_attempts": 5,
        "authenticated_user": "alice",
        "authenticated_roles": ["admin"],
        "class_name": "C",
        "instance_name": "i",
    }

    full = client.enqueue(options, 1, a=2).get_status()
    bare = client.enqueue(NOWHERE).get_status()
    delayed = client.enqueue({**NOWHERE, "delay_seconds": 3600, "queue_partition_key": "k"}).get_status()

    assert full.workflow_id == "full"
    assert (full.name, full.queue_name, full.class_name, full.config_name) == ("unknown", "nowhere", "C", "i")
    assert (full.status, full.app_version, full.workflow_timeout_ms) == ("ENQUEUED", "v7", 2500)
    assert (full.deduplication_id, full.priority) == ("d", 3)
    assert (full.authenticated_user, full.authenticated_roles) == ("alice", ["admin"])
    assert full.input == {"args": (1,), "kwargs": {"a": 2}}
    assert (bare.app_version, bare.priority, bare.authenticated_user, bare.workflow_timeout_ms) == (None, 0, None, None)
    assert (bare.executor_id, bare.app_id, bare.parent_workflow_id) == (None, None, None)  # a client is no executor
    assert (delayed.status, delayed.queue_partition_key) == ("DELAYED", "k")


@pytest.mark.dbos_databases("sqlite")  # they do not come that far
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"workflow_name": "w"}, KeyError, "queue_name must be given"),
        ({"queue_name": "q"}, KeyError, "workflow_name must be given"),
        ({**NOWHERE, "workflow_id": ""}, DBOSException, "not blank"),
        ({**NOWHERE, "workflow_id": " \t\n"}, DBOSException, "not blank"),
        ({**NOWHERE, "workflow_id": "a\0b"}, DBOSException, "no NUL"),
        ({**NOWHERE, "workflow_ID": "a"}, DBOSException, "Did you mean 'workflow_id'"),
        ({**NOWHERE, "priority": 0}, DBOSException, "Invalid priority 0"),
        ({**NOWHERE, "duplication_policy": "return-existing"}, DBOSException, "requires a deduplication_id"),
        ({**NOWHERE, "deduplication_id": "d", "duplication_policy": "replace"}, DBOSException, "duplication_policy"),
        ({**NOWHERE, "class_name": "C" * 256}, DBOSException, "Invalid class_name"),
        ({**NOWHERE, "app_version": "\0"}, DBOSException, "Invalid app_version"),
        ({**NOWHERE, "queue_name": " "}, DBOSException, "queue"),
    ],
)
def test_options_that_cannot_be_are_refused(
    client: DBOSClient, options: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        client.enqueue(options)

    assert client.list_workflows() == []


def test_an_id_and_a_deduplication_id_belong_to_one_workflow(client: DBOSClient) -> None:
    held: EnqueueOptions = {**NOWHERE, "workflow_id": "first", "deduplication_id": "d"}
    client.enqueue(held, 1)

    again = client.enqueue({**NOWHERE, "workflow_id": "first"}, 2)
    holder = client.enqueue({**NOWHERE, "deduplication_id": "d", "duplication_policy": "return-existing"}, 3)
    with pytest.raises(DBOSQueueDeduplicatedError):
        client.enqueue({**NOWHERE, "deduplication_id": "d"})
    with pytest.raises(DBOSConflictingWorkflowError):
        client.enqueue({**NOWHERE, "workflow_name": "other", "workflow_id": "first"})

    assert again.workflow_id == holder.workflow_id == "first"
    (status,) = client.list_workflows()
    assert status.input is not None
    assert not isinstance(status.input, str)
    assert status.input["args"] == (1,)


def test_nothing_a_client_does_is_a_step_and_only_a_fork_takes_an_assigned_id(
    dbos: type[DBOS], client: DBOSClient
) -> None:
    @dbos.workflow()
    def manage() -> list[str]:
        with SetWorkflowID("assigned"):
            enqueued = client.enqueue(NOWHERE).workflow_id
            forked = client.fork_workflow(enqueued, 1, queue_name="nowhere").workflow_id
        client.cancel_workflow(enqueued)
        return [enqueued, forked, client.retrieve_workflow(enqueued).get_status().status]

    handle = dbos.start_workflow(manage)

    enqueued, forked, status = handle.get_result()
    assert (enqueued != "assigned", forked, status) == (True, "assigned", "CANCELLED")
    assert dbos.list_workflow_steps(handle.workflow_id) == []
    assert client.retrieve_workflow(enqueued).get_status().parent_workflow_id is None


# -- managing ----------------------------------------------------------------------------------------------------------


def test_a_client_manages_workflows(client: DBOSClient) -> None:
    first, second = client.enqueue(NOWHERE, 1).workflow_id, client.enqueue(NOWHERE, 2).workflow_id
    late = client.enqueue({**NOWHERE, "delay_seconds": 3600}).workflow_id

    client.cancel_workflows([first, second])
    cancelled = client.list_workflows(status="CANCELLED")
    resumed = client.resume_workflows([first, second], queue_name="elsewhere")
    fork = client.fork_workflow(first, 1, queue_name="elsewhere")
    client.set_workflow_delay(late, delay_until_epoch_ms=2**52)

    assert {status.workflow_id for status in cancelled} == {first, second}  # of one millisecond, perhaps
    assert [handle.get_status().queue_name for handle in resumed] == ["elsewhere", "elsewhere"]
    assert fork.get_status().forked_from == first
    assert client.get_workflow_status("missing") is None
    assert len(client.list_queued_workflows(queue_name="elsewhere")) == 3
    assert client.list_workflow_steps(first) == []
    with pytest.raises(DBOSNonExistentWorkflowError):
        client.retrieve_workflow("missing")
    status = client.get_workflow_status(late)
    assert status is not None
    assert status.delay_until_epoch_ms == 2**52


async def test_a_client_manages_workflows_from_an_event_loop(client: DBOSClient) -> None:
    handle = await client.enqueue_async(NOWHERE)

    await client.cancel_workflow_async(handle.workflow_id)
    resumed = await client.resume_workflow_async(handle.workflow_id, queue_name="elsewhere")
    blocking = client.enqueue(NOWHERE)  # which is not refused: it takes a moment only

    assert (await resumed.get_status()).status == "ENQUEUED"
    assert len(await client.list_workflows_async(queue_name=["elsewhere", "nowhere"])) == 2
    assert (await client.retrieve_workflow_async(blocking.workflow_id)).workflow_id == blocking.workflow_id


def test_a_client_knows_versions_and_executors(client: DBOSClient) -> None:
    client.set_latest_application_version("test")
    executor = client.list_executors()[0]
    client.drain_executor(executor["instance_id"])

    assert client.get_latest_application_version()["version_name"] == "test"
    assert [version["version_name"] for version in client.list_application_versions()] == ["test"]
    assert (executor["is_current"], client.list_executors()[0]["is_draining"]) == (False, True)
    assert (client.list_stranded_versions(), client.list_stranded_queues()) == ({}, {})


# -- messages, events, streams -----------------------------------------------------------------------------------------


def test_a_client_talks_with_a_workflow(dbos: type[DBOS], client: DBOSClient) -> None:
    @dbos.workflow()
    def converse() -> list[Any]:
        dbos.set_event("ready", True)
        heard = [dbos.recv(topic, timeout_seconds=PATIENCE_S) for topic in (None, "a", "b", "b")]
        for value in heard:
            dbos.write_stream("heard", value)
        return heard

    handle = dbos.start_workflow(converse)
    found = client.retrieve_workflow(handle.workflow_id)

    ready = client.get_event(found.workflow_id, "ready")
    client.send(found.workflow_id, "plain", None, "key")
    client.send(found.workflow_id, "again", None, "key")  # which is the same message
    asyncio.run(client.send_async(found.workflow_id, {"x": 1}, "a"))
    client.send_bulk([SendMessage(found.workflow_id, 1, "b"), SendMessage(found.workflow_id, 2, "b")])

    expected = ["plain", {"x": 1}, 1, 2]
    assert ready is True
    assert found.get_result() == expected
    assert client.wait_first([found]) is found
    assert list(client.read_stream(found.workflow_id, "heard")) == expected
    assert client.read_stream_offset(found.workflow_id, "heard", 1) == {"x": 1}
    assert client.get_all_events(found.workflow_id) == {"ready": True}
    assert list(client.read_stream("missing", "heard")) == []
    with pytest.raises(DBOSNonExistentWorkflowError, match="missing"):
        client.send("missing", 1)


async def test_a_client_talks_with_a_workflow_from_an_event_loop(dbos: type[DBOS], client: DBOSClient) -> None:
    @dbos.workflow()
    async def echo() -> Any:
        heard = await dbos.recv_async(timeout_seconds=PATIENCE_S)
        await dbos.write_stream_async("heard", heard)
        return heard

    handle = await client.retrieve_workflow_async((await dbos.start_workflow_async(echo)).workflow_id)

    await client.send_bulk_async([SendMessage(handle.workflow_id, "hello")])

    assert [value async for value in client.read_stream_async(handle.workflow_id, "heard")] == ["hello"]
    assert await (await client.wait_first_async([handle])).get_result() == "hello"
    assert await client.get_event_async(handle.workflow_id, "missing", timeout_seconds=0) is None


# -- queues ------------------------------------------------------------------------------------------------------------


def test_a_queue_of_a_client_works_without_an_application(migrated: str) -> None:
    with DBOSClient(system_database_url=migrated) as client:
        queue = client.register_queue("mail", global_concurrency=5)

        queue.set_global_concurrency(3)
        queue.pause()
        asyncio.run(queue.set_worker_concurrency_async(2))
        client.register_queue("mail", on_conflict="never_update")
        found = client.retrieve_queue("mail")

        assert found is not None
        assert (found.global_concurrency, found.worker_concurrency, found.is_paused) == (3, 2, True)
        assert asyncio.run(found.get_global_concurrency_async()) == 3
        assert [each.name for each in client.list_queues()] == ["mail"]
        client.delete_queue("mail")
        assert client.retrieve_queue("mail") is None
        with pytest.raises(DBOSException, match="not found in the database"):
            _ = queue.global_concurrency


async def test_a_queue_of_a_client_is_changed_from_an_event_loop(dbos: type[DBOS], client: DBOSClient) -> None:
    queue = await client.register_queue_async("mail", worker_concurrency=1)

    queue.set_worker_concurrency(2)  # which DBOS would refuse to block the loop for
    await queue.pause_async()

    own = await dbos.retrieve_queue_async("mail")
    assert own is not None
    assert (await own.get_worker_concurrency_async(), await own.get_is_paused_async()) == (2, True)


def test_what_a_client_cannot_do_with_a_queue_is_refused(
    dbos: type[DBOS], client: DBOSClient, config: DBOSConfig
) -> None:
    @dbos.workflow()
    def workflow() -> None: ...

    dbos.register_queue("of-app")
    queue = client.register_queue("mail", worker_concurrency=1)

    with pytest.raises(DBOSException, match="Cannot enqueue on queue mail from a client-bound Queue"):
        queue.enqueue(workflow)
    with pytest.raises(DBOSException, match="client has no application version"):
        client.register_queue("mail", on_conflict="update_if_latest_version")
    with pytest.raises(DBOSException, match=r"belongs to application test-app.*application_name"):
        client.register_queue("of-app", worker_concurrency=1)
    client.register_queue("of-app", worker_concurrency=7, application_name="test-app")
    with DBOSClient(system_database_url=config["system_database_url"], application_name="test-app") as same:
        same.register_queue("new")

    own = dbos.retrieve_queue("of-app")
    assert own is not None
    assert own.worker_concurrency == 7
    assert [each.name for each in client.list_queues(application_name="test-app")] == ["new", "of-app"]


# -- its life ----------------------------------------------------------------------------------------------------------


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("dbos")}


def test_a_client_without_a_database_is_refused() -> None:
    with pytest.raises(AssertionError, match="system_database_url"):
        DBOSClient()


def test_a_client_creates_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "empty.sqlite"

    with pytest.raises(DBOSInitializationError, match="Launch the application first"):
        DBOSClient(system_database_url=f"sqlite:///{path}")

    assert not path.exists()


def test_a_block_destroys_its_client(migrated: str) -> None:
    with DBOSClient(system_database_url=migrated) as client:
        handle = client.enqueue(NOWHERE)

    client.destroy()  # twice is fine
    assert threads() == set()
    with pytest.raises(DBOSDatabaseUnavailableError, match="destroyed"):
        client.list_workflows()
    with pytest.raises(DBOSDatabaseUnavailableError):
        handle.get_result()


async def test_a_lazy_client_connects_when_it_is_used(migrated: str, tmp_path: Path) -> None:
    never = DBOSClient(system_database_url=f"sqlite:///{tmp_path / 'missing.sqlite'}", lazy=True)
    one = DBOSClient(system_database_url=migrated, lazy=True)
    before = threads()

    with pytest.raises(DBOSInitializationError):
        await never.check_connection_async()
    never.destroy()
    assert await one.list_workflows_async() == []
    one.check_connection()
    one.destroy()
    async with DBOSClient(system_database_url=migrated, lazy=True) as other:
        assert len(threads()) > 0
        assert other.list_workflows() == []

    assert before == threads() == set()


@pytest.mark.parametrize("pool", [sa.pool.NullPool, sa.pool.StaticPool, sa.pool.QueuePool])
def test_an_engine_says_where_the_database_is_and_stays_its_owners(migrated: str, pool: type[sa.pool.Pool]) -> None:
    engine = sa.create_engine(migrated.replace("postgresql://", "postgresql+psycopg://"), poolclass=pool)

    with DBOSClient(system_database_engine=engine, system_database_url="sqlite:///ignored") as client:
        handle = client.enqueue(NOWHERE)
        assert handle.get_status().status == "ENQUEUED"

    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "in memory"),
        ("postgresql+psycopg://user:hunter2@localhost", "Database name must be specified"),
        ("postgresql+psycopg://user:hunter2@localhost:1/dbos", "cannot be used"),
        ("mysql://user:hunter2@localhost/dbos", "Use SQLite or PostgreSQL"),
        ("postgresql://user:hunter2@tail@localhost/dbos", "%40"),
        ("nonsense:hunter2", "cannot be parsed"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_without_its_secrets(
    url: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    with pytest.raises(DBOSInitializationError, match=message) as raised:
        DBOSClient(system_database_url=url)

    told = "".join(str(error) for error in (raised.value, raised.value.__cause__))
    assert "hunter2" not in told + caplog.text


@pytest.mark.postgres
def test_neither_a_client_nor_its_log_shows_a_password(
    dbos_postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = sa.make_url(dbos_postgres_url).set(password="hunter2").render_as_string(hide_password=False)

    with DBOSClient(system_database_url=url) as client:
        shown = repr(client)
        with pytest.raises(DBOSException) as raised:
            client.enqueue({**NOWHERE, "workflow_id": " "}, "secret-argument")

    assert shown.startswith("<DBOSClient postgresql+psycopg://")
    assert "hunter2" not in shown + str(raised.value) + caplog.text
    assert "secret-argument" not in caplog.text


@pytest.mark.postgres
def test_a_client_that_is_not_to_wait_for_its_database_says_that_it_is_away(dbos_postgres_url: str) -> None:
    kill = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
    """
    engine = sa.create_engine(dbos_postgres_url.replace("postgresql://", "postgresql+psycopg://"))

    with DBOSClient(system_database_url=dbos_postgres_url, retry_connection_errors=False) as client:
        client.list_workflows()
        with engine.begin() as connection:
            connection.execute(sa.text(kill))
        with pytest.raises(DBOSDatabaseUnavailableError, match="lost"):
            client.enqueue({**NOWHERE, "workflow_id": "a"})
        enqueued = client.enqueue({**NOWHERE, "workflow_id": "a"})
        with engine.begin() as connection:
            connection.execute(sa.text(kill))
        with pytest.raises(DBOSDatabaseUnavailableError, match="lost"):
            client.list_workflows()

        client.check_connection()
        assert [status.workflow_id for status in client.list_workflows()] == [enqueued.workflow_id]
    engine.dispose()


@pytest.mark.dbos_databases("postgres")
@pytest.mark.parametrize(("query", "name"), [("", "dbos_transact_client"), ("application_name=mine", "mine")])
def test_the_connections_of_a_client_are_few_and_have_its_name(dbos_database_url: str, query: str, name: str) -> None:
    url = sa.make_url(dbos_database_url).update_query_string(query).render_as_string(hide_password=False)
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = :name"
    engine = sa.create_engine(dbos_database_url.replace("postgresql://", "postgresql+psycopg://"))

    with DBOSClient(system_database_url=url, system_database_pool_size=5) as client:
        lists = [threading.Thread(target=client.list_workflows) for _ in range(10)]
        for thread in lists:
            thread.start()
        for thread in lists:
            thread.join()
        with engine.connect() as connection:
            connections = connection.scalar(sa.text(count), {"name": name})
    engine.dispose()

    assert connections is not None
    assert 3 < connections <= 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_client_goes_on_in_a_fork_and_in_its_parent(migrated: str) -> None:
    script = """
        import os, sys
        from dbos import DBOSClient

        client = DBOSClient(system_database_url=sys.argv[1])
        options = {"workflow_name": "unknown", "queue_name": "nowhere"}
        client.enqueue(options)
        child = os.fork()
        client.enqueue(options)
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print(len(client.list_workflows()), flush=True)
        client.destroy()
    """

    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), migrated],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split()[-1] == "3"


# -- what it shows -----------------------------------------------------------------------------------------------------


def public_names() -> list[str]:
    return [name for name in vars(DBOSClient) if not name.startswith("_")]


def test_every_operation_shows_its_own_signature_and_documentation() -> None:
    shown = pydoc.plain(pydoc.render_doc(DBOSClient))
    names = [name for name in public_names() if not name.startswith("backfill")]

    assert [name for name in names if f" {name}(self" not in shown] == []
    assert [name for name in public_names() if not inspect.getdoc(getattr(DBOSClient, name))] == []
    assert "enqueue(self, options: 'EnqueueOptions', *args: 'Any', **kwargs: 'Any') -> 'WorkflowHandle[Any]'" in shown


def test_every_operation_of_a_client_has_both_forms_and_its_own_name(client: DBOSClient) -> None:
    single = {"destroy", "enqueue_in_transaction", "send_in_transaction", "send_bulk_in_transaction"}

    names = {name.removesuffix("_async") for name in public_names()}

    assert {name for name in names if f"{name}_async" not in public_names()} == single
    assert client.enqueue.__qualname__ == "DBOSClient.enqueue"
    assert "Enqueue a workflow by its name" in pydoc.plain(pydoc.render_doc(client.enqueue))


def test_what_belongs_to_a_client_is_refused_without_one(client: DBOSClient) -> None:
    unbound: Any = DBOSClient.list_workflows

    assert unbound(client) == []
    with pytest.raises((AttributeError, TypeError)):
        unbound()
