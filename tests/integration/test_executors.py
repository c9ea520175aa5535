"""Executors as their operators see them: who there is, draining one, and work of versions that nobody runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, Queue, SetEnqueueOptions, SetWorkflowID
from dbos._error import DBOSException
from dbos._operations.lifecycle import Runtime
from dbos._process import process
from dbos._sysdb.stores.executors import queues_as_text
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE
from tests.conformance.values import executor
from tests.integration.histories import PATIENCE_S, change, engine, eventually, row

FOREVER_MS = 10**9


def runtime() -> Runtime:
    assert process.runtime is not None
    return process.runtime


def join(instance: str, version: str = "test", **values: Any) -> None:
    """Another executor, of which nothing is heard but that it is there."""
    there = executor(instance, application_version=version, lease_ms=FOREVER_MS, **values)
    engine().db.change(engine().db.executors.register, there)
    runtime().recovery.take_over_once()


def leave(instance: str) -> None:
    engine().db.change(engine().db.executors.remove, [instance])
    runtime().recovery.take_over_once()


def own() -> str:
    return engine().instance_id


def put(workflow_id: str, status: str, version: str, owner: str | None = None, queue: str | None = None) -> None:
    """Have the finished workflow "done" look like another one that is not."""
    change(
        "INSERT INTO dbos.workflow_status (workflow_uuid, status, name, inputs, serialization, created_at, updated_at, "
        "application_version, owner_instance, run_token, queue_name, delay_until_epoch_ms, recovery_attempts, "
        "priority) SELECT :id, :status, name, inputs, serialization, created_at, updated_at, :version, :owner, "
        "CASE WHEN :status = 'PENDING' THEN 'token' END, :queue, CASE WHEN :status = 'DELAYED' THEN 1 END, 0, 0 "
        "FROM dbos.workflow_status WHERE workflow_uuid = 'done'",
        id=workflow_id,
        status=status,
        version=version,
        owner=owner,
        queue=queue,
    )


@pytest.fixture
def launched(dbos: type[DBOS]) -> type[DBOS]:
    """Launched, with one finished workflow, "done"."""

    @dbos.workflow(name="work")
    def work() -> str:
        return "done"

    dbos.launch()
    with SetWorkflowID("done"):
        work()
    return dbos


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("dbos")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


# -- who there is ------------------------------------------------------------------------------------------------------


def test_executors_are_listed_with_what_they_run(dbos: type[DBOS]) -> None:
    gate, begun = threading.Event(), []

    @dbos.workflow()
    def workflow() -> None:
        begun.append(1)
        gate.wait(PATIENCE_S)

    dbos.launch()
    handles = [dbos.start_workflow(workflow) for _ in range(3)]
    eventually(lambda: len(begun) == 3)
    join(
        "other",
        "old",
        executor_id="pod-2",
        hostname="far",
        pid=7,
        started_at=1,
        heartbeat_at=2,
        draining_since=3,
        queues=queues_as_text(["post", INTERNAL_QUEUE, "mail"]),
    )

    other, this = dbos.list_executors()

    assert other == {
        "instance_id": "other",
        "executor_id": "pod-2",
        "application_version": "old",
        "application_name": None,
        "hostname": "far",
        "pid": 7,
        "started_at": 1,
        "heartbeat_at": 2,
        "lease_sec": FOREVER_MS / 1000,
        "is_current": False,
        "is_draining": True,
        "queues": ["mail", "post"],
        "running": 0,
    }
    assert (this["instance_id"], this["is_current"], this["is_draining"], this["running"]) == (own(), True, False, 3)
    assert (this["executor_id"], this["application_version"], this["lease_sec"]) == ("local", "test", 15.0)
    gate.set()
    for handle in handles:
        handle.get_result()
    assert [each["running"] for each in dbos.list_executors()] == [0, 0]


# -- draining ----------------------------------------------------------------------------------------------------------


def test_a_drained_executor_goes_on_with_what_it_runs_and_takes_nothing_new(dbos: type[DBOS]) -> None:
    gate, begun = threading.Event(), []

    @dbos.step()
    def step() -> None: ...

    @dbos.workflow()
    def workflow() -> str:
        begun.append(dbos.workflow_id)
        gate.wait(PATIENCE_S)
        step()
        return "done"

    dbos.launch()
    with SetWorkflowID("running"):
        running = dbos.start_workflow(workflow)
    eventually(lambda: begun)

    dbos.drain_executor(own())
    waiting = dbos.fork_workflow("running", 1)
    claimed = runtime()._dispatcher.dispatch_once()
    gate.set()

    assert running.get_result() == "done"
    assert claimed == 0
    assert begun == ["running"]
    assert row(waiting.workflow_id).status == "ENQUEUED"
    assert [each["is_draining"] for each in dbos.list_executors()] == [True]
    runtime().recovery.take_over_once()  # it also knows by its row
    assert engine().is_draining
    dbos.undrain_executor(own())
    assert waiting.get_result() == "done"
    assert [each["is_draining"] for each in dbos.list_executors()] == [False]


def test_a_claim_is_refused_as_soon_as_its_executor_is_to_drain_even_before_it_knows(launched: type[DBOS]) -> None:
    change("UPDATE dbos.executor_instances SET draining_since = 1")
    waiting = launched.fork_workflow("done", 1)
    engine().is_draining = False

    claimed = runtime()._dispatcher.dispatch_once()

    assert claimed == 0
    assert row(waiting.workflow_id).status == "ENQUEUED"


def test_an_executor_that_others_drain_learns_it_and_is_still_drained_when_it_has_registered_anew(
    launched: type[DBOS],
) -> None:
    """It once took work again, unasked, after it had been paused for longer than its lease."""
    before = own()
    change("UPDATE dbos.executor_instances SET draining_since = 1")
    waiting = launched.fork_workflow("done", 1, queue_name=None)
    eventually(lambda: engine().is_draining)  # it looks once a second at the latest

    change("DELETE FROM dbos.executor_instances")
    engine().check_lease()
    eventually(launched.list_executors)
    [anew] = launched.list_executors()
    claimed = runtime()._dispatcher.dispatch_once()
    runtime().recovery.take_over_once()

    assert anew["instance_id"] == own() != before
    assert (anew["is_draining"], engine().is_draining) == (True, True)
    assert (claimed, row(waiting.workflow_id).status) == (0, "ENQUEUED")
    launched.undrain_executor(own())
    assert waiting.get_result() == "done"


def test_an_executor_that_is_drained_while_it_hangs_and_declared_dead_is_drained_when_it_wakes(
    launched: type[DBOS],
) -> None:
    """The request was in the row that the take-over deletes, and it took work again."""
    before, store = own(), engine().db.executors
    runtime().recovery.stop()  # it does not come to look at its row
    launched.drain_executor(before)
    engine().is_draining = False  # it was another process that asked
    [hanging] = engine().db.read(store.list)
    engine().db.change(store.remove_silent, hanging)
    waiting = launched.fork_workflow("done", 1)

    engine().check_lease()
    eventually(launched.list_executors)
    [anew] = launched.list_executors()
    claimed = runtime()._dispatcher.dispatch_once()

    assert anew["instance_id"] == own() != before
    assert (anew["is_draining"], engine().is_draining) == (True, True)
    assert (claimed, row(waiting.workflow_id).status) == (0, "ENQUEUED")
    launched.undrain_executor(own())
    assert waiting.get_result() == "done"


@pytest.mark.parametrize("instance", ["nobody", "local"])
def test_only_the_id_of_an_instance_names_an_executor_to_drain(launched: type[DBOS], instance: str) -> None:
    with pytest.raises(DBOSException, match=r"instance_id of DBOS\.list_executors"):
        launched.drain_executor(instance)
    with pytest.raises(DBOSException, match="several processes"):
        launched.undrain_executor(instance)

    assert not engine().is_draining


# -- versions that nobody runs -----------------------------------------------------------------------------------------


async def test_unfinished_work_of_a_version_that_nobody_runs_is_counted_and_adopted(dbos: type[DBOS]) -> None:
    @dbos.workflow(name="work")
    def work() -> str:
        return "done"

    dbos.launch()
    with SetWorkflowID("done"):
        await (await dbos.start_workflow_async(work)).get_result()
    put("pending", "PENDING", "old", owner="dead")
    put("enqueued", "ENQUEUED", "old", queue="_dbos_internal_queue")
    put("delayed", "DELAYED", "old", queue="_dbos_internal_queue")
    put("of another", "PENDING", "older", owner="dead")

    stranded = await dbos.list_stranded_versions_async()
    adopted = await dbos.adopt_application_version_async("old")

    assert stranded == {"old": 3, "older": 1}
    assert adopted == 3
    for workflow_id in ("pending", "enqueued", "delayed"):
        assert await dbos.get_result_async(workflow_id) == "done"
        assert row(workflow_id).application_version == "test"
    assert await dbos.list_stranded_versions_async() == {"older": 1}
    assert await dbos.adopt_application_version_async("old") == 0


def test_work_of_no_version_is_adopted_with_the_latest_version_after_a_rollback(launched: type[DBOS]) -> None:
    """Only the latest version runs it, and after a rollback nobody runs the latest."""
    later = engine().db.now_ms() + 1
    engine().db.change(engine().db.versions.register, "new", "new", later)
    fork = launched.fork_workflow("done", 1)

    stranded = launched.list_stranded_versions()
    adopted = launched.adopt_application_version("new")

    assert (stranded, adopted) == ({"new": 1}, 1)
    assert fork.get_result() == "done"
    assert row(fork.workflow_id).application_version == "test"
    assert launched.list_stranded_versions() == {}


def test_work_of_a_version_that_an_executor_runs_is_not_adopted(launched: type[DBOS]) -> None:
    join("other", "old")
    put("w", "PENDING", "old", owner="other")
    put("v", "ENQUEUED", "old", queue="_dbos_internal_queue")

    with pytest.raises(DBOSException, match="list_executors"):
        launched.adopt_application_version("old")
    with pytest.raises(DBOSException, match="this process"):
        launched.adopt_application_version("test")

    assert launched.list_stranded_versions() == {}
    assert [(row(each).status, row(each).application_version) for each in ("w", "v")] == [
        ("PENDING", "old"),
        ("ENQUEUED", "old"),
    ]
    assert row("w").owner_instance == "other"


def test_work_of_another_version_is_never_taken_over_unasked(launched: type[DBOS]) -> None:
    """An executor of an old version would replay what a newer one has recorded, and fail, and the other way round."""
    put("w", "PENDING", "newer", owner="dead")
    put("v", "ENQUEUED", "newer", queue="_dbos_internal_queue")

    recovered = DBOS._recover_pending_workflows(["local", "dead"])
    claimed = runtime()._dispatcher.dispatch_once()

    assert (recovered, claimed) == ([], 0)
    assert [row(each).status for each in ("w", "v")] == ["PENDING", "ENQUEUED"]


def test_when_the_last_executor_of_a_version_leaves_what_it_leaves_behind_is_logged_once(
    launched: type[DBOS], log: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        messages = [record.getMessage() for record in log.records if "unfinished workflows belong" in record.msg]
        return [message[: message.index(", which")] for message in messages]

    runtime().recovery.stop()  # the rounds are the test's
    join("one", "old")
    join("two", "old")
    join("three", "test")
    put("w", "PENDING", "old", owner="one")

    leave("one")
    while_another_runs_it = warnings()
    leave("three")
    leave("two")
    for _ in range(3):
        runtime().recovery.take_over_once()
    join("four", "other")
    leave("four")
    once = warnings()
    put("v", "PENDING", "old", owner="one")
    join("five", "other")
    leave("five")

    assert while_another_runs_it == []
    assert once == ["1 unfinished workflows belong to application version old"]
    assert warnings() == [*once, "2 unfinished workflows belong to application version old"]
    assert "DBOS.adopt_application_version('old')" in log.text


# -- queues that nobody serves -----------------------------------------------------------------------------------------


def test_an_executor_tells_which_queues_it_serves(dbos: type[DBOS]) -> None:
    def served() -> list[str] | None:
        [this] = dbos.list_executors()
        return this["queues"]

    Queue("declared")
    dbos.launch()
    at_launch = served()

    dbos.register_queue("registered")
    eventually(lambda: served() == ["declared", "registered"])
    Queue("late")
    eventually(lambda: served() == ["declared", "late", "registered"])
    dbos.delete_queue("registered")
    eventually(lambda: served() == ["declared", "late"])
    change("DELETE FROM dbos.executor_instances")
    engine().check_lease()
    eventually(dbos.list_executors)

    assert at_launch == ["declared"]
    assert served() == ["declared", "late"]


async def test_what_waits_in_a_queue_that_nobody_serves_is_counted(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None: ...

    Queue("heard")
    Queue("unheard")
    dbos.listen_queues(["heard"])
    dbos.launch()
    for name in ("unheard", "typo", "typo", "elsewhere"):
        await dbos.enqueue_workflow_async(name, workflow)
    with SetEnqueueOptions(delay_seconds=1000):
        await dbos.enqueue_workflow_async("typo", workflow)
        await dbos.enqueue_workflow_async("heard", workflow)
    join("other", queues=queues_as_text(["elsewhere"]))

    stranded = await dbos.list_stranded_queues_async()
    await dbos.drain_executor_async("other")
    while_the_other_drains = await dbos.list_stranded_queues_async()
    join("unknown")

    assert stranded == {"typo": 3, "unheard": 1}
    assert while_the_other_drains == {"elsewhere": 1, "typo": 3, "unheard": 1}
    assert await dbos.list_stranded_queues_async() == {}  # it may serve them all


def test_queues_that_nobody_serves_are_logged_once_at_launch_and_when_an_executor_leaves(
    dbos: type[DBOS], config: DBOSConfig, log: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        messages = [record.getMessage() for record in log.records if "workflows wait in queue" in record.msg]
        return [message[: message.index(", from")] for message in messages]

    @dbos.workflow()
    def workflow() -> None: ...

    dbos.launch()
    dbos.enqueue_workflow("typo", workflow)
    dbos.destroy()
    DBOS(config=config)
    dbos.launch()
    at_launch = warnings()
    runtime().recovery.stop()  # the rounds are the test's
    dbos.enqueue_workflow("elsewhere", workflow)
    join("other", queues=queues_as_text(["elsewhere"]))
    while_another_serves_it = warnings()
    leave("other")
    for _ in range(3):
        runtime().recovery.take_over_once()

    assert at_launch == while_another_serves_it == ["1 workflows wait in queue typo"]
    assert warnings() == [*at_launch, "1 workflows wait in queue elsewhere"]


def test_deleting_a_queue_tells_what_waits_in_it(launched: type[DBOS], log: pytest.LogCaptureFixture) -> None:
    for name in ("mail", "empty"):
        launched.register_queue(name).pause()
    launched.fork_workflow("done", 1, queue_name="mail")

    launched.delete_queue("mail")
    launched.delete_queue("empty")

    told = [record.getMessage() for record in log.records if "is deleted" in record.msg]
    assert len(told) == 1
    assert told[0].startswith("Queue mail is deleted, and 1 workflows wait in it")
    eventually(lambda: launched.list_stranded_queues() == {"mail": 1})
