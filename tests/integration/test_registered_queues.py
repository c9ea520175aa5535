"""Queues in the database: registered, read, changed, paused and deleted while they are used."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dbos import DBOS, DBOSException, Queue, SetEnqueueOptions
from dbos._process import process
from dbos._queue import _Setting
from dbos._services.dispatcher import Dispatcher
from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import QueueRow
from dbos._sysdb.stores.queues import QueuesStore
from tests.integration.histories import change, engine, eventually, row

SETTINGS: dict[str, Any] = {
    "worker_concurrency": 3,
    "global_concurrency": 6,
    "partition_concurrency": 2,
    "partition_worker_concurrency": 1,
    "partition_limiter": {"limit": 4, "period": 2.0},
    "limiter": {"limit": 40, "period": 1.5},
    "polling_interval_sec": 0.25,
}


def dispatcher_of() -> Dispatcher:
    assert process.runtime is not None
    return process.runtime._dispatcher


def stored(queue: Queue | None) -> dict[str, Any]:
    assert queue is not None
    return {name: getattr(queue, name) for name in SETTINGS}


def test_a_registered_queue_is_what_it_was_registered_as(dbos: type[DBOS]) -> None:
    dbos.launch()

    queue = dbos.register_queue("mail", **SETTINGS)
    dbos.register_queue("all")

    assert stored(queue) == stored(dbos.retrieve_queue("mail")) == SETTINGS
    assert (queue.concurrency, queue.priority_enabled, queue.partition_queue) == (6, True, False)
    assert (queue.database_backed, queue.database_backed_queue, queue.is_paused) == (True, True, False)
    assert [each.name for each in dbos.list_queues()] == ["all", "mail"]
    assert [each.name for each in dbos.list_queues(application_name="test-app")] == ["all", "mail"]
    assert dbos.list_queues(application_name="other") == []
    assert dbos.retrieve_queue("missing") is None


async def test_everything_about_registered_queues_has_an_awaitable_form(dbos: type[DBOS]) -> None:
    dbos.launch()

    queue = await dbos.register_queue_async("mail", **SETTINGS)
    found = await dbos.retrieve_queue_async("mail")
    assert found is not None
    awaited = {name: await getattr(found, f"get_{name}_async")() for name in SETTINGS}
    await queue.set_limiter_async(None)
    await queue.set_polling_interval_sec_async(2.0)
    await queue.pause_async()

    assert awaited == SETTINGS
    assert [each.name for each in await dbos.list_queues_async()] == ["mail"]
    assert (await queue.get_limiter_async(), await queue.get_polling_interval_sec_async()) == (None, 2.0)
    assert await queue.get_is_paused_async() is True
    await queue.resume_async()
    assert await queue.get_is_paused_async() is False
    for blocking in (queue.pause, queue.resume, dbos.list_queues, lambda: queue.set_concurrency(1)):
        with pytest.raises(RuntimeError, match="while an event loop is running"):
            blocking()
    await dbos.delete_queue_async("mail")
    assert await dbos.retrieve_queue_async("mail") is None


def test_every_setting_has_all_its_forms() -> None:
    settings = {name for name, value in vars(Queue).items() if isinstance(value, _Setting)}
    asynchronous = [name for name in vars(Queue) if name.endswith("_async")]

    assert {name for name in settings if hasattr(Queue, f"get_{name}_async")} == settings
    for name in settings - {"is_paused"}:
        assert callable(getattr(Queue, f"set_{name}"))
    for name in asynchronous:
        assert inspect.iscoroutinefunction(getattr(Queue, name))
        assert name.startswith("get_") or not inspect.iscoroutinefunction(getattr(Queue, name.removesuffix("_async")))


async def test_reading_a_setting_on_a_loop_warns_that_it_blocks(
    dbos: type[DBOS], caplog: pytest.LogCaptureFixture
) -> None:
    dbos.launch()
    queue = await dbos.register_queue_async("mail", global_concurrency=1)
    logger = logging.getLogger("dbos")
    logger.addHandler(caplog.handler)

    try:
        assert queue.global_concurrency == 1
    finally:
        logger.removeHandler(caplog.handler)

    assert "is read from the database while an event loop is running" in caplog.text


# -- registering again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_conflict", "is_latest", "concurrency"),
    [
        ("always_update", True, 2),
        ("always_update", False, 2),
        ("never_update", True, 1),
        ("never_update", False, 1),
        ("update_if_latest_version", True, 2),
        ("update_if_latest_version", False, 1),
        (None, True, 2),
        (None, False, 1),
    ],
)
def test_registering_again_overwrites_as_it_is_told(
    dbos: type[DBOS], on_conflict: Any, is_latest: bool, concurrency: int
) -> None:
    dbos.launch()
    queue = dbos.register_queue("mail", global_concurrency=1, limiter={"limit": 1, "period": 1.0})
    queue.pause()
    if not is_latest:
        db = engine().db
        db.change(db.versions.register, "later", "later", db.now_ms() + 1000)

    options = {} if on_conflict is None else {"on_conflict": on_conflict}
    again = dbos.register_queue("mail", global_concurrency=2, **options)

    assert (again.global_concurrency, queue.global_concurrency) == (concurrency, concurrency)
    assert (again.limiter is None) is (concurrency == 2)  # what is not given is overwritten too
    assert again.is_paused  # that is nothing which is declared


@pytest.mark.parametrize("on_conflict", ["update_if_latest_version", "never_update"])
def test_settings_that_are_not_taken_over_are_told(
    dbos: type[DBOS], caplog: pytest.LogCaptureFixture, on_conflict: Any
) -> None:
    dbos.launch()
    logger = logging.getLogger("dbos")
    logger.addHandler(caplog.handler)
    db = engine().db
    db.change(db.versions.register, "later", "later", db.now_ms() + 1000)

    def told(**settings: Any) -> list[str]:
        caplog.clear()
        dbos.register_queue("mail", **settings)
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    try:
        new = told(on_conflict=on_conflict, global_concurrency=1, limiter={"limit": 4, "period": 1.5}).copy()
        dbos.register_queue("mail", global_concurrency=1, on_conflict="always_update").pause()
        same = told(on_conflict=on_conflict, global_concurrency=1)
        other = told(on_conflict=on_conflict, global_concurrency=2, limiter={"limit": 4, "period": 1.5})
        overwritten = told(on_conflict="always_update", global_concurrency=2)
    finally:
        logger.removeHandler(caplog.handler)

    assert (new, same, overwritten) == ([], [], [])
    assert other == [
        "Queue mail was registered before and keeps its settings: concurrency is 1, not 2; limiter is None, not "
        '4/1.5s. Register it with on_conflict="always_update" to overwrite them.'
    ]


def test_a_queue_of_another_application_is_left_alone(dbos: type[DBOS]) -> None:
    dbos.launch()
    dbos.register_queue("mail", global_concurrency=1)
    change("UPDATE dbos.queues SET application_name = 'other'")

    for on_conflict in ("always_update", "never_update"):
        with pytest.raises(DBOSException, match="Queue mail belongs to application other"):
            dbos.register_queue("mail", global_concurrency=2, on_conflict=on_conflict)

    [queue] = dbos.list_queues()
    assert queue.global_concurrency == 1


def test_what_is_declared_in_the_code_counts_in_its_process(dbos: type[DBOS], caplog: pytest.LogCaptureFixture) -> None:
    Queue("mail", 1)
    dbos.launch()
    logger = logging.getLogger("dbos")
    logger.addHandler(caplog.handler)

    try:
        dbos.register_queue("mail", global_concurrency=5)
    finally:
        logger.removeHandler(caplog.handler)

    assert "that declaration counts" in caplog.text


# -- what no queue can obey --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concurrency": 1, "global_concurrency": 1}, "only one of them"),
        ({"partition_queue": True, "partition_concurrency": 1}, "only one of them"),
        ({"partition_queue": True, "global_concurrency": 1}, "cannot be combined with global_concurrency"),
        ({"global_concurrency": 1, "worker_concurrency": 2}, "global_concurrency must be greater than or equal to"),
        ({"global_concurrency": 1, "partition_concurrency": 2}, "greater than or equal"),
        ({"worker_concurrency": 1, "partition_worker_concurrency": 2}, "greater than or equal"),
        ({"partition_concurrency": 1, "partition_worker_concurrency": 2}, "greater than or equal"),
        ({"partition_concurrency": 0}, "at least 1"),
        ({"limiter": {"limit": 5}}, "limiter must specify both 'limit' and 'period'"),
        ({"partition_limiter": {"period": 5}}, "partition_limiter must specify both 'limit' and 'period'"),
        ({"polling_interval_sec": -1}, "polling_interval_sec must be positive"),
        ({"on_conflict": "update"}, "on_conflict must be one of"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(
    dbos: type[DBOS], settings: dict[str, Any], message: str
) -> None:
    dbos.launch()

    with pytest.raises(ValueError, match=message):
        dbos.register_queue("mail", **settings)

    assert dbos.list_queues() == []


@pytest.mark.parametrize("name", ["", " ", "a\0b", "_dbos_internal_queue"], ids=ascii)
def test_names_that_cannot_be_registered_are_refused(dbos: type[DBOS], name: str) -> None:
    dbos.launch()

    with pytest.raises(DBOSException, match="name"):
        dbos.register_queue(name)


def test_the_former_way_to_partition_limits_each_partition(dbos: type[DBOS]) -> None:
    dbos.launch()

    queue = dbos.register_queue("mail", partition_queue=True, concurrency=2, limiter={"limit": 3, "period": 1.0})

    assert (queue.partition_concurrency, queue.partition_limiter) == (2, {"limit": 3, "period": 1.0})
    assert (queue.global_concurrency, queue.limiter, queue.partition_queue) == (None, None, True)
    with pytest.raises(ValueError, match="cannot be combined with partition_queue"):
        queue.set_global_concurrency(1)
    queue.set_partition_concurrency(5)
    assert queue.partition_concurrency == 5


def test_the_former_way_to_partition_is_taken_back(dbos: type[DBOS]) -> None:
    """The queue stayed partitioned, and said that it was not."""

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    queue = dbos.register_queue(
        "mail", partition_queue=True, concurrency=2, worker_concurrency=1, limiter={"limit": 30, "period": 1.0}
    )
    queue.pause()
    with SetEnqueueOptions(queue_partition_key="k"):
        handles = [queue.enqueue(workflow)]

    queue.set_partition_queue(False)
    handles.append(queue.enqueue(workflow))
    queue.resume()

    assert [handle.get_result() for handle in handles] == ["done", "done"]
    assert (queue.partition_queue, queue.partition_concurrency, queue.partition_limiter) == (False, None, None)
    assert (queue.global_concurrency, queue.worker_concurrency, queue.limiter) == (2, 1, {"limit": 30, "period": 1.0})
    queue.set_partition_queue(True)
    assert (queue.partition_concurrency, queue.partition_worker_concurrency, queue.global_concurrency) == (2, 1, None)


def test_registered_queues_always_have_priorities_and_say_so(dbos: type[DBOS]) -> None:
    dbos.launch()

    queue = dbos.register_queue("mail", priority_enabled=False)
    at_first = queue.priority_enabled
    queue.set_priority_enabled(False)

    assert (at_first, queue.priority_enabled) == (True, True)


# -- changing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", 7),
        ("global_concurrency", 7),
        ("worker_concurrency", None),
        ("limiter", {"limit": 9, "period": 9.0}),
        ("limiter", None),
        ("partition_concurrency", 5),
        ("partition_worker_concurrency", None),
        ("partition_limiter", None),
        ("polling_interval_sec", 5.0),
    ],
    ids=str,
)
def test_a_setting_is_changed_and_the_others_stay(dbos: type[DBOS], name: str, value: Any) -> None:
    dbos.launch()
    queue = dbos.register_queue("mail", **SETTINGS)
    before = stored(queue)

    getattr(queue, f"set_{name}")(value)

    changed = "global_concurrency" if name == "concurrency" else name
    assert getattr(dbos.retrieve_queue("mail"), name) == value
    assert stored(queue) == ({**before, changed: value} if changed in before else before)


def test_nothing_is_assigned_to_a_setting(dbos: type[DBOS]) -> None:
    dbos.launch()
    queue = dbos.register_queue("mail", **SETTINGS)

    for name in SETTINGS:
        with pytest.raises(AttributeError, match=rf"Queue mail is registered: use set_{name}\(\) to change {name}"):
            setattr(queue, name, None)
    with pytest.raises(AttributeError, match=r"use pause\(\) or resume\(\)"):
        queue.is_paused = True  # type: ignore[assignment]  # which type checkers refuse too

    assert stored(queue) == SETTINGS
    assert not queue.is_paused


def test_a_change_that_contradicts_what_is_there_is_refused_and_hurts_nobody_else(dbos: type[DBOS]) -> None:
    dbos.launch()
    queue = dbos.register_queue("mail", **SETTINGS)

    with pytest.raises(ValueError, match="greater than or equal"):
        queue.set_worker_concurrency(7)
    with pytest.raises(ValueError, match="at least 1"):
        queue.set_global_concurrency(0)
    with pytest.raises(ValueError, match="both 'limit' and 'period'"):
        queue.set_limiter({"limit": 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only one of them"):
        queue.set_partition_queue(True)

    assert stored(queue) == SETTINGS


def test_changes_made_side_by_side_are_all_kept(dbos: type[DBOS]) -> None:
    dbos.launch()
    queue = dbos.register_queue("mail")
    changes: list[Callable[[], None]] = [
        lambda: queue.set_global_concurrency(9),
        lambda: queue.set_worker_concurrency(3),
        lambda: queue.set_limiter({"limit": 8, "period": 1.0}),
        lambda: queue.set_polling_interval_sec(0.5),
        queue.pause,
    ]

    threads = [threading.Thread(target=each) for each in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (queue.global_concurrency, queue.worker_concurrency, queue.polling_interval_sec) == (9, 3, 0.5)
    assert (queue.limiter, queue.is_paused) == ({"limit": 8, "period": 1.0}, True)


def pause(queue: Queue) -> None:
    """Pause the queue, and wait until this process' dispatcher heeds that: a claim may be under way."""
    queue.pause()
    assert process.runtime is not None
    dispatcher = process.runtime._dispatcher

    def is_heeded() -> bool:
        config = dispatcher._registered.get(queue.name)
        return config is not None and config.is_paused

    eventually(is_heeded)


# -- at work -----------------------------------------------------------------------------------------------------------


def test_a_registered_queue_is_worked_off_paused_and_resumed(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow(number: int) -> int:
        return number

    dbos.launch()
    queue = dbos.register_queue("mail")
    with SetEnqueueOptions(priority=3):  # in registered queues, priorities are always on
        assert queue.enqueue(workflow, 1).get_result() == 1

    pause(queue)
    waiting = queue.enqueue(workflow, 2)
    plain = dbos.register_queue("other").enqueue(workflow, 3)

    assert plain.get_result() == 3
    assert row(waiting.workflow_id).status == "ENQUEUED"
    queue.resume()
    assert waiting.get_result() == 2


def test_what_waits_in_a_deleted_queue_waits_until_it_is_registered_again(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow(number: int) -> int:
        return number

    dbos.launch()
    queue = dbos.register_queue("mail")
    pause(queue)
    waiting = queue.enqueue(workflow, 1)
    dbos.delete_queue("mail")
    dbos.delete_queue("mail")

    for use in (lambda: queue.concurrency, queue.resume, lambda: queue.enqueue(workflow, 2)):
        with pytest.raises(DBOSException, match="Queue mail not found in the database"):
            use()
    assert row(waiting.workflow_id).status == "ENQUEUED"
    dbos.register_queue("mail")
    assert waiting.get_result() == 1


def test_a_partitioned_queue_asks_for_a_partition(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    queue = dbos.register_queue("mail", partition_concurrency=1)

    with pytest.raises(Exception, match="cannot be enqueued on partitioned queue mail without a partition key"):
        queue.enqueue(workflow)
    with pytest.raises(Exception, match="cannot be enqueued on partitioned queue mail without a partition key"):
        asyncio.run(queue.enqueue_async(workflow))
    with pytest.raises(Exception, match="cannot be enqueued on partitioned queue mail without a partition key"):
        dbos.enqueue_workflow("mail", workflow)
    with SetEnqueueOptions(queue_partition_key="k"):
        assert queue.enqueue(workflow).get_result() == "done"


def test_what_waits_in_a_queue_that_becomes_partitioned_is_worked_off(dbos: type[DBOS]) -> None:
    """It had no partition key, and stayed there for ever."""

    @dbos.workflow()
    def workflow(number: int) -> int:
        return number

    dbos.launch()
    queue = dbos.register_queue("mail")
    queue.pause()
    handles = queue.enqueue_many(workflow, [(number,) for number in range(3)])
    queue.set_partition_concurrency(1)
    with SetEnqueueOptions(queue_partition_key="k"):
        handles.append(queue.enqueue(workflow, 3))
    queue.resume()

    assert [handle.get_result() for handle in handles] == [0, 1, 2, 3]


@pytest.mark.parametrize("sees_it_first", [False, True])
def test_an_enqueue_reads_no_settings_that_are_known(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch, sees_it_first: bool
) -> None:
    """Each once did, of an unknown queue, and of one whose change the dispatcher had seen before it was told."""
    asked: list[str] = []
    get = QueuesStore.get

    @dbos.workflow()
    def workflow() -> None: ...

    dbos.launch()
    service = dispatcher_of()
    service.stop()
    told = engine().queues_changed
    if sees_it_first:

        def look_first() -> None:
            service._look(0.0)
            told()

        monkeypatch.setattr(engine(), "queues_changed", look_first)
    queue = dbos.register_queue("mail")
    service._look(0.0)

    def note(connection: Connection, name: str) -> QueueRow | None:
        asked.append(name)
        return get(connection, name)

    monkeypatch.setattr(QueuesStore, "get", staticmethod(note))

    for _ in range(3):
        queue.enqueue(workflow)
        dbos.enqueue_workflow("mail", workflow)
        dbos.enqueue_workflow("unknown", workflow)

    assert asked == []


def test_a_queue_that_another_process_has_just_registered_can_be_used(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    dispatcher_of().stop()  # it has no chance to notice
    change("INSERT INTO dbos.queues (name) VALUES ('mail')")
    queue = dbos.retrieve_queue("mail")

    assert queue is not None
    handle = queue.enqueue(workflow)
    assert row(handle.workflow_id).queue_name == "mail"


def test_one_unreadable_queue_does_not_stop_the_others(dbos: type[DBOS], capfd: pytest.CaptureFixture[str]) -> None:
    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    for name in ("a", "b", "c"):
        dbos.register_queue(name)
    change("UPDATE dbos.queues SET rate_limit_max = 5 WHERE name = 'b'")

    configs = engine().db.read(engine().db.queues.configs)

    assert set(configs) == {"a", "c"}
    assert "Queue b is left alone" in capfd.readouterr().err
    assert dbos.enqueue_workflow("c", workflow).get_result() == "done"


def test_a_queue_that_another_process_registers_is_worked_off_here(dbos: type[DBOS]) -> None:
    """As a row in the table, since that is all that the other process leaves."""

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    handle = dbos.enqueue_workflow("theirs", workflow)
    assert row(handle.workflow_id).status == "ENQUEUED"

    change("INSERT INTO dbos.queues (name, application_name) VALUES ('theirs', 'other')")
    engine().queues_changed()

    eventually(lambda: row(handle.workflow_id).status == "SUCCESS")
