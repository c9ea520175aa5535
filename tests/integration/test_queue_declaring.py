"""Declaring queues in the code, and saying which of them a process listens to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, DBOSException, Queue
from dbos._process import process
from tests.integration.histories import eventually, row


@pytest.fixture
def nothing_declared() -> Iterator[None]:
    DBOS.destroy(destroy_registry=True)
    yield
    DBOS.destroy(destroy_registry=True)


@pytest.mark.usefixtures("nothing_declared")
def test_a_queue_shows_what_it_was_declared_with() -> None:
    queue = Queue(
        "mail",
        10,
        {"limit": 50, "period": 30},
        worker_concurrency=5,
        priority_enabled=True,
        polling_interval_sec=0.5,
    )
    plain = Queue("plain")

    assert (queue.name, queue.concurrency, queue.global_concurrency, queue.worker_concurrency) == ("mail", 10, 10, 5)
    assert (queue.limiter, queue.priority_enabled, queue.polling_interval_sec) == (
        {"limit": 50, "period": 30},
        True,
        0.5,
    )
    assert (queue.partition_queue, queue.partition_concurrency, queue.partition_limiter) == (False, None, None)
    assert (queue.partition_worker_concurrency, queue.is_paused, queue.database_backed) == (None, False, False)
    assert (plain.concurrency, plain.limiter, plain.worker_concurrency, plain.polling_interval_sec) == (None,) * 3 + (
        1.0,
    )


@pytest.mark.usefixtures("nothing_declared")
async def test_what_a_declared_queue_shows_can_be_awaited_as_well() -> None:
    queue = Queue("mail", 3, partition_queue=True)

    assert (await queue.get_concurrency_async(), await queue.get_global_concurrency_async()) == (3, None)
    assert await queue.get_partition_queue_async() is True


@pytest.mark.usefixtures("nothing_declared")
def test_a_name_is_declared_once() -> None:
    Queue("mail")

    with pytest.raises(Exception, match="Queue mail has already been declared"):
        Queue("mail")


@pytest.mark.usefixtures("nothing_declared")
def test_the_queue_of_the_library_is_not_declared() -> None:
    with pytest.raises(DBOSException, match="Queue _dbos_internal_queue belongs to the library"):
        Queue("_dbos_internal_queue")


@pytest.mark.usefixtures("nothing_declared")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"polling_interval_sec": 0}, "polling_interval_sec must be positive"),
        ({"polling_interval_sec": float("nan")}, "polling_interval_sec must be positive"),
        (
            {"concurrency": 1, "worker_concurrency": 2},
            "worker_concurrency must be less than or equal to concurrency",
        ),
        ({"concurrency": 0}, "concurrency must be an integer that is at least 1"),
        ({"concurrency": True}, "concurrency must be an integer that is at least 1"),
        ({"concurrency": 2**31}, "concurrency must be an integer that is at least 1"),
        ({"worker_concurrency": -1}, "worker_concurrency must be an integer that is at least 1"),
        ({"limiter": {"limit": 1}}, "must specify both 'limit' and 'period'"),
        ({"limiter": {"period": 1.0}}, "must specify both 'limit' and 'period'"),
        ({"limiter": {"limit": 1, "period": 1.0, "burst": 5}}, "limiter has an unknown key 'burst'"),
        ({"limiter": {"limit": 1, "perod": 1.0}}, "limiter has an unknown key 'perod'"),
        ({"limiter": {"limit": 0, "period": 1.0}}, "limit must be an integer that is at least 1"),
        ({"limiter": {"limit": 1, "period": 0}}, "period must be a positive number"),
        ({"limiter": {"limit": 1, "period": float("inf")}}, "period must be a positive number"),
    ],
    ids=str,
)
def test_limits_that_no_queue_can_obey_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Queue("mail", **settings)

    assert process.registry.queues == {}


@pytest.mark.usefixtures("nothing_declared")
@pytest.mark.parametrize("name", ["", " ", "\t\n", "a\0b", "\ud800", "q" * 513, "é" * 257, 5, None], ids=ascii)
def test_names_that_cannot_be_stored_are_refused(name: Any) -> None:
    with pytest.raises(DBOSException, match="Invalid queue name"):
        Queue(name)


def test_a_declared_queue_cannot_be_changed(dbos: type[DBOS]) -> None:
    queue = Queue("mail")
    dbos.launch()
    changes: list[Callable[[], None]] = [
        lambda: queue.set_concurrency(1),
        lambda: queue.set_limiter({"limit": 1, "period": 1.0}),
        queue.pause,
        queue.resume,
    ]

    for change in changes:
        with pytest.raises(DBOSException, match="only supported for queues registered via"):
            change()


@pytest.mark.usefixtures("nothing_declared")
def test_nothing_is_assigned_to_a_setting_of_a_declared_queue() -> None:
    queue = Queue("mail", 3)

    for name in ("concurrency", "limiter", "is_paused"):
        with pytest.raises(AttributeError, match=f"Queue mail is declared in the code: {name} is fixed there"):
            setattr(queue, name, None)

    assert queue.concurrency == 3


def test_a_queue_can_be_declared_before_the_dbos_object_and_after_the_launch(config: DBOSConfig) -> None:
    DBOS.destroy(destroy_registry=True)
    early = Queue("early")
    DBOS(config=config)

    @DBOS.workflow()
    def workflow(number: int) -> int:
        return number

    try:
        with pytest.raises(DBOSException, match="System database accessed before DBOS was launched"):
            early.enqueue(workflow, 1)
        DBOS.launch()
        late = Queue("late")
        results = [queue.enqueue(workflow, number).get_result() for number, queue in enumerate([early, late])]
    finally:
        DBOS.destroy(destroy_registry=True)

    assert results == [0, 1]
    with pytest.raises(DBOSException, match="No DBOS was created yet"):
        early.enqueue(workflow, 1)


def test_work_that_waits_in_a_queue_begins_when_somebody_declares_it(dbos: type[DBOS]) -> None:
    """C16: until then it is there to be seen."""

    @dbos.workflow(name="workflow")
    def workflow() -> str:
        return "done"

    dbos.launch()
    handle = dbos.enqueue_workflow("later", workflow)
    [waiting] = dbos.list_queued_workflows(queue_name="later")

    Queue("later")

    assert (waiting.workflow_id, waiting.status) == (handle.workflow_id, "ENQUEUED")
    assert handle.get_result() == "done"


@pytest.mark.parametrize("by_name", [False, True], ids=["queue", "name"])
def test_only_queues_that_are_listened_to_are_worked_off(dbos: type[DBOS], by_name: bool) -> None:
    """C16: the library's own queue always is."""
    heard, unheard = Queue("heard"), Queue("unheard")

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.listen_queues(["heard" if by_name else heard])
    dbos.launch()
    waiting = unheard.enqueue(workflow)

    assert heard.enqueue(workflow).get_result() == "done"
    assert waiting.get_status().status == "ENQUEUED"
    assert dbos.resume_workflow(waiting.workflow_id).get_result() == "done"
    assert row(waiting.workflow_id).queue_name == "_dbos_internal_queue"


def test_queues_are_listened_to_once_and_before_the_launch(dbos: type[DBOS]) -> None:
    dbos.listen_queues([])

    with pytest.raises(DBOSException, match="listen_queues called more than once"):
        dbos.listen_queues([])
    dbos.launch()
    with pytest.raises(DBOSException, match="listen_queues called after DBOS is launched"):
        dbos.listen_queues([])
    dbos.destroy()
    with pytest.raises(DBOSException, match="No DBOS was created yet"):
        dbos.listen_queues([])


def test_the_launch_tells_the_queues_that_are_listened_to(config: DBOSConfig, caplog: pytest.LogCaptureFixture) -> None:
    DBOS.destroy(destroy_registry=True)
    config["log_level"] = "INFO"
    DBOS(config=config)
    Queue("plain")
    Queue("mail", 4, {"limit": 5, "period": 1.5}, worker_concurrency=2, priority_enabled=True)
    Queue("split", 1, partition_queue=True)
    Queue("unheard")
    DBOS.listen_queues(["plain", "mail", "split"])
    logger = logging.getLogger("dbos")
    logger.addHandler(caplog.handler)

    try:
        DBOS.launch()
    finally:
        logger.removeHandler(caplog.handler)
        DBOS.destroy(destroy_registry=True)

    messages = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    start = messages.index("Listening to 3 queues:")
    assert messages[start + 1 : start + 4] == [
        "Queue: plain",
        "Queue: mail (concurrency=4, worker_concurrency=2, limit=5/1.5s, priority)",
        "Queue: split (partition_concurrency=1, partitioned)",
    ]


def test_a_registry_that_is_forgotten_forgets_its_queues(dbos: type[DBOS]) -> None:
    Queue("mail")

    dbos.destroy(destroy_registry=True)

    Queue("mail")
    assert set(process.registry.queues) == {"mail"}


def test_an_unknown_queue_is_one_that_nobody_listens_to(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None: ...

    dbos.launch()
    dbos.enqueue_workflow("nowhere", workflow)
    known = Queue("known").enqueue(workflow)

    known.get_result()

    eventually(lambda: [status.queue_name for status in dbos.list_queued_workflows()] == ["nowhere"])
