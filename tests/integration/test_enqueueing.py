"""Enqueueing: every kind of function, one by one and in bulk, with all options, in and out of workflows."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dbos import (
    DBOS,
    DBOSConfiguredInstance,
    DBOSContextSetAuth,
    DBOSException,
    EnqueueOptions,
    Queue,
    SetEnqueueOptions,
    SetWorkflowID,
    SetWorkflowTimeout,
    WorkflowSerializationFormat,
)
from dbos._error import (
    DBOSAwaitedWorkflowCancelledError,
    DBOSConflictingWorkflowError,
    DBOSWorkflowFunctionNotFoundError,
    MaxRecoveryAttemptsExceededError,
)
from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import StatusRow
from dbos._sysdb.stores.workflow_status import WorkflowStatusStore
from dbos.testing import VirtualTime
from tests.integration.histories import PATIENCE_S, change, engine, execute_again, recorded, row, steps

Enqueue = Callable[..., Any]


@pytest.fixture(params=[False, True], ids=["blocking", "async"])
def enqueue(request: pytest.FixtureRequest) -> Enqueue:
    """``enqueue(queue, func, *args)``: in either form, returns the workflow's id."""

    def in_a_thread(queue: Queue, func: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        return queue.enqueue(func, *args, **kwargs).workflow_id

    def on_a_loop(queue: Queue, func: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        async def run() -> str:
            return (await queue.enqueue_async(func, *args, **kwargs)).workflow_id

        return asyncio.run(run())

    return on_a_loop if request.param else in_a_thread


@pytest.fixture
def still(dbos: type[DBOS]) -> type[DBOS]:
    """DBOS whose queues nobody works off."""
    dbos.listen_queues([])
    return dbos


# -- what can be enqueued ----------------------------------------------------------------------------------------------


def test_every_kind_of_function_can_be_enqueued(dbos: type[DBOS], enqueue: Enqueue) -> None:
    @dbos.dbos_class()
    class Shop(DBOSConfiguredInstance):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.name = name

        @staticmethod
        @dbos.workflow()
        def static(number: int) -> str:
            return f"static {number}"

        @classmethod
        @dbos.workflow()
        def of_class(cls, number: int) -> str:
            return f"{cls.__name__} {number}"

        @dbos.workflow()
        def of_instance(self, number: int) -> str:
            return f"{self.name} {number}"

        @dbos.workflow()
        async def coroutine_of_instance(self, number: int) -> str:
            return f"async {self.name} {number}"

        @dbos.step()
        def step_of_instance(self, number: int) -> str:
            return f"step {self.name} {number}"

    @dbos.workflow()
    def workflow(number: int) -> str:
        return f"workflow {number}"

    @dbos.workflow()
    async def coroutine(number: int) -> str:
        return f"coroutine {number}"

    @dbos.step()
    def step(number: int) -> str:
        return f"step {number}"

    @dbos.step()
    async def step_async(number: int) -> str:
        return f"async step {number}"

    @dbos.transaction()
    def transaction(number: int) -> str:
        return f"transaction {number}"

    shop, queue = Shop("north"), Queue("mail")
    dbos.launch()
    functions: list[Callable[..., Any]] = [workflow, coroutine, step, step_async, transaction]
    functions += [Shop.static, Shop.of_class, shop.of_instance, shop.coroutine_of_instance, shop.step_of_instance]

    ids = [enqueue(queue, function, number) for number, function in enumerate(functions)]

    assert [dbos.get_result(workflow_id) for workflow_id in ids] == [
        "workflow 0",
        "coroutine 1",
        "step 2",
        "async step 3",
        "transaction 4",
        "static 5",
        "Shop 6",
        "north 7",
        "async north 8",
        "step north 9",
    ]


def test_what_is_not_decorated_or_called_from_a_step_is_refused(dbos: type[DBOS], enqueue: Enqueue) -> None:
    queue = Queue("mail")

    @dbos.workflow()
    def workflow() -> None: ...

    @dbos.step()
    def step() -> None:
        with pytest.raises(AssertionError, match="from within a step"):
            enqueue(queue, workflow)
        with pytest.raises(AssertionError, match="from within a step"):
            dbos.enqueue_workflow_with_options({"workflow_name": "x", "queue_name": "mail"})

    @dbos.workflow()
    def parent() -> None:
        step()

    dbos.launch()
    parent()

    with pytest.raises(DBOSWorkflowFunctionNotFoundError):
        enqueue(queue, print)
    assert dbos.list_workflows(queue_name="mail") == []


# -- the row -----------------------------------------------------------------------------------------------------------


def test_an_enqueued_workflow_waits_as_a_row(still: type[DBOS], enqueue: Enqueue) -> None:
    queue = Queue("mail", priority_enabled=True)

    @still.workflow(name="workflow")
    def workflow(number: int, *, text: str) -> None: ...

    still.launch()
    with SetWorkflowID("w"), DBOSContextSetAuth("alice", ["clerk"]), SetEnqueueOptions(priority=7):
        enqueue(queue, workflow, 1, text="a")

    stored = row("w")
    assert (stored.status, stored.queue_name, stored.priority, stored.recovery_attempts) == ("ENQUEUED", "mail", 7, 0)
    assert (stored.application_version, stored.executor_id, stored.owner_instance) == ("test", "local", None)
    assert (stored.authenticated_user, stored.authenticated_roles) == ("alice", '["clerk"]')
    assert (stored.started_at_epoch_ms, stored.deduplication_id, stored.queue_partition_key) == (None, None, None)
    [status] = still.list_queued_workflows()
    assert repr(status.input) == "{'args': (1,), 'kwargs': {'text': 'a'}}"


def test_an_option_set_around_an_enqueue_is_written_and_one_set_further_out_is_not(still: type[DBOS]) -> None:
    plain, split = Queue("plain", priority_enabled=True), Queue("split", partition_queue=True)

    @still.workflow()
    def workflow() -> None: ...

    still.launch()
    with SetEnqueueOptions(deduplication_id="d", priority=2, app_version="v2"):
        outer = row(plain.enqueue(workflow).workflow_id)
        with SetEnqueueOptions(queue_partition_key="p", delay_seconds=1000):
            inner = row(split.enqueue(workflow).workflow_id)
        with pytest.raises(Exception, match="deduplicated"):
            plain.enqueue(workflow)

    assert (outer.deduplication_id, outer.priority, outer.application_version) == ("d", 2, "v2")
    assert (outer.queue_partition_key, outer.delay_until_epoch_ms, outer.status) == (None, None, "ENQUEUED")
    assert (inner.deduplication_id, inner.priority, inner.application_version) == (None, 0, "test")
    assert (inner.queue_partition_key, inner.status) == ("p", "DELAYED")


def test_the_same_id_is_enqueued_once_and_stays_in_its_queue(
    still: type[DBOS], enqueue: Enqueue, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = Queue("first"), Queue("second")

    @still.workflow()
    def workflow(number: int) -> None: ...

    @still.workflow()
    def other(number: int) -> None: ...

    still.launch()
    for queue in (first, first, second):
        with SetWorkflowID("w"):
            assert enqueue(queue, workflow, 1) == "w"

    assert [status.queue_name for status in still.list_workflows()] == ["first"]
    assert "already exists in queue first and stays there" in capfd.readouterr().err
    with SetWorkflowID("w"), pytest.raises(DBOSConflictingWorkflowError, match="different function name"):
        enqueue(first, other, 1)


def test_a_workflow_that_was_enqueued_finds_nothing_of_the_options(dbos: type[DBOS]) -> None:
    queue = Queue("mail", priority_enabled=True)

    @dbos.workflow()
    def child() -> None: ...

    @dbos.workflow()
    def workflow() -> tuple[str, str]:
        return queue.enqueue(child).workflow_id, dbos.start_workflow(child).workflow_id

    dbos.launch()

    with SetEnqueueOptions(priority=5, deduplication_id="d"):
        ids = queue.enqueue(workflow).get_result()

    assert [(row(each).priority, row(each).deduplication_id) for each in ids] == [(0, None)] * 2


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queue_settings", "options", "message"),
    [
        (
            {},
            {"priority": 1},
            "Priority is not enabled for queue q. Setting priority will not have any effect. Declare it with "
            "priority_enabled=True.",
        ),
        ({"partition_queue": True}, {}, "cannot be enqueued on partitioned queue q without a partition key"),
        (
            {},
            {"queue_partition_key": "k"},
            "only use a partition key on a partition-enabled queue. Key k was used with non-partitioned queue q",
        ),
        (
            {"partition_queue": True},
            {"queue_partition_key": "k", "deduplication_id": "d"},
            "Deduplication is not supported for partitioned queues",
        ),
    ],
    ids=["priority", "no key", "key", "key and deduplication"],
)
def test_options_that_a_queue_does_not_know_are_refused(
    still: type[DBOS], enqueue: Enqueue, queue_settings: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    queue = Queue("q", **queue_settings)

    @still.workflow(name="workflow")
    def workflow() -> None: ...

    still.launch()
    by_name: EnqueueOptions = {"workflow_name": "workflow", "queue_name": "q", **options}  # type: ignore[typeddict-item]

    with SetEnqueueOptions(**options):
        with pytest.raises(Exception, match=message):
            enqueue(queue, workflow)
        with pytest.raises(Exception, match=message):
            still.enqueue_workflow("q", workflow)
    with pytest.raises(Exception, match=message):
        still.enqueue_workflow_with_options(by_name)
    assert still.list_workflows() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": 0}, "Invalid priority 0. Priority must be between 1~2147483647."),
        ({"priority": -1}, "Invalid priority -1"),
        ({"priority": 2**31}, "Invalid priority 2147483648"),
        ({"priority": 1.5}, "Invalid priority 1.5"),
        ({"priority": True}, "Invalid priority True"),
        ({"delay_seconds": -0.1}, "Invalid delay_seconds"),
        ({"delay_seconds": float("nan")}, "Invalid delay_seconds"),
        ({"delay_seconds": float("inf")}, "Invalid delay_seconds"),
        ({"delay_seconds": 1e300}, "Invalid delay_seconds"),
        ({"delay_seconds": "1"}, "Invalid delay_seconds"),
        ({"deduplication_id": ""}, "Invalid deduplication_id"),
        ({"deduplication_id": "a\0"}, "Invalid deduplication_id"),
        ({"deduplication_id": "x" * 8192}, "Invalid deduplication_id"),
        ({"queue_partition_key": ""}, "Invalid queue_partition_key"),
        ({"queue_partition_key": "\ud800"}, "Invalid queue_partition_key"),
        ({"queue_partition_key": "é" * 1025}, "Invalid queue_partition_key"),
        ({"queue_partition_key": 5}, "Invalid queue_partition_key"),
        ({"app_version": ""}, "Invalid app_version"),
        ({"duplication_policy": "ignore", "deduplication_id": "d"}, "Invalid duplication_policy"),
        ({"duplication_policy": "return-existing"}, "requires a deduplication_id"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_options_that_mean_nothing_are_refused_when_they_are_set(options: dict[str, Any], message: str) -> None:
    """C24"""
    with pytest.raises(Exception, match=message):
        SetEnqueueOptions(**options)


@pytest.mark.parametrize("key", ["k" * 2048, "ключ 🔑", " ", "'; --", "a\nb", '"{}\\'], ids=lambda key: ascii(key)[:20])
def test_keys_and_priorities_at_their_limits_are_stored(dbos: type[DBOS], key: str) -> None:
    """C24"""
    split, plain = Queue("s" * 512, 1, partition_queue=True), Queue("p" * 512, priority_enabled=True)

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()

    with SetEnqueueOptions(queue_partition_key=key):
        one = split.enqueue(workflow)
    with SetEnqueueOptions(deduplication_id=key, priority=2**31 - 1):
        other = plain.enqueue(workflow)

    assert [handle.get_result() for handle in (one, other)] == ["done", "done"]
    assert (row(one.workflow_id).queue_partition_key, row(other.workflow_id).priority) == (key, 2**31 - 1)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"deduplication_id": "d"}, "deduplication_id"),
        ({"priority": 1}, "priority"),
        ({"queue_partition_key": "k"}, "queue_partition_key"),
        ({"delay_seconds": 0}, "delay_seconds"),
        (
            {"duplication_policy": "return-existing", "deduplication_id": "d"},
            "duplication_policy of .* requires a queue",
        ),
    ],
    ids=str,
)
def test_what_is_started_refuses_options_that_are_for_queues_and_what_is_called_ignores_them(
    dbos: type[DBOS], options: dict[str, Any], name: str
) -> None:
    @dbos.workflow()
    def workflow() -> int:
        return 1

    dbos.launch()

    with SetEnqueueOptions(**options):
        with pytest.raises(DBOSException, match=f"not being enqueued.*{name}"):
            dbos.start_workflow(workflow)
        with pytest.raises(DBOSException, match=f"not being enqueued.*{name}"):
            asyncio.run(dbos.start_workflow_async(workflow))
        assert dbos.list_workflows() == []
        assert workflow() == 1

    [called] = dbos.list_workflows()
    assert (called.deduplication_id, called.priority, called.queue_name) == (None, 0, None)


def test_the_version_of_what_is_started_can_be_chosen(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> int:
        return 1

    dbos.launch()

    with SetEnqueueOptions(app_version="v2"):
        handle = dbos.start_workflow(workflow)
        called = workflow()

    assert (handle.get_result(), called) == (1, 1)
    assert [status.app_version for status in dbos.list_workflows()] == ["v2", "test"]


# -- within workflows --------------------------------------------------------------------------------------------------


def test_an_enqueue_is_an_operation_and_its_child_the_same_on_replay(dbos: type[DBOS]) -> None:
    queue, calls = Queue("mail"), []

    @dbos.workflow(name="child")
    def child(number: int) -> int:
        calls.append(number)
        return number

    @dbos.step(name="step")
    def step() -> None: ...

    @dbos.workflow()
    def parent() -> list[Any]:
        step()
        first = queue.enqueue(child, 1)
        with SetWorkflowID("chosen"):
            second = dbos.enqueue_workflow("mail", child, 2)
        third = dbos.enqueue_workflow_with_options({"workflow_name": "child", "queue_name": "mail"}, 3)
        return [(handle.workflow_id, handle.get_result()) for handle in (first, second, third)]

    dbos.launch()
    with SetWorkflowID("p"):
        result = parent()

    assert result == [("p-2", 1), ("chosen", 2), ("p-4", 3)]
    assert recorded("p")[:4] == [(1, "step"), (2, "child"), (3, "child"), (4, "child")]
    assert [step.child_workflow_id for step in steps("p")[1:4]] == ["p-2", "chosen", "p-4"]
    assert row("p-2").parent_workflow_id == "p"
    for to_step in (None, 5, 4, 2):  # A26: also where the children are there, and their records are not
        assert execute_again("p", to_step=to_step).get_result() == result
    assert sorted(calls) == [1, 2, 3]
    assert len(dbos.list_workflows()) == 4


async def test_coroutines_that_enqueue_side_by_side_take_their_ids_in_order(dbos: type[DBOS]) -> None:
    queue = Queue("mail")

    @dbos.workflow()
    async def child(number: int) -> int:
        return number

    @dbos.workflow()
    async def parent() -> list[int]:
        handles = await asyncio.gather(*(queue.enqueue_async(child, number) for number in range(20)))
        assert [handle.workflow_id for handle in handles] == [f"p-{number}" for number in range(1, 21)]
        return [await handle.get_result() for handle in handles]

    dbos.launch()

    with SetWorkflowID("p"):
        assert await parent() == list(range(20))


def test_a_parent_that_was_cancelled_enqueues_nothing(dbos: type[DBOS]) -> None:
    queue, inside, go_on = Queue("mail"), threading.Event(), threading.Event()

    @dbos.workflow()
    def child() -> None: ...

    @dbos.workflow()
    def parent() -> None:
        inside.set()
        go_on.wait(PATIENCE_S)
        queue.enqueue(child)

    dbos.launch()
    handle = dbos.start_workflow(parent)
    inside.wait(PATIENCE_S)
    run = engine().runs.get(handle.workflow_id)
    assert run is not None
    # Somebody else has cancelled it, and nobody here has noticed.
    db = engine().db
    db.change(db.workflows.cancel, [handle.workflow_id], db.now_ms())
    go_on.set()

    assert run.finished.wait(PATIENCE_S)
    assert [status.status for status in dbos.list_workflows()] == ["CANCELLED"]
    assert steps(handle.workflow_id) == []


# -- in bulk -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_many_are_enqueued_in_order_in_one_transaction(dbos: type[DBOS], is_async: bool) -> None:
    queue, begun = Queue("mail", 1), []

    @dbos.workflow()
    def workflow(number: int) -> int:
        begun.append(number)
        return number

    dbos.launch()
    arguments = [(number,) for number in range(50)]

    with SetWorkflowID("first"):
        if is_async:
            ids = [handle.workflow_id for handle in asyncio.run(queue.enqueue_many_async(workflow, arguments))]
        else:
            ids = [handle.workflow_id for handle in queue.enqueue_many(workflow, arguments)]

    assert [dbos.get_result(workflow_id) for workflow_id in ids] == list(range(50))
    assert begun == list(range(50))
    assert ids[0] == "first"
    assert queue.enqueue_many(workflow, []) == []


def test_many_are_children_of_their_own_in_a_workflow(dbos: type[DBOS]) -> None:
    queue, begun = Queue("mail", 1), []

    @dbos.workflow()
    def child(number: int) -> int:
        begun.append(number)
        return number

    @dbos.workflow()
    def parent() -> list[int]:
        handles = queue.enqueue_many(child, ((number,) for number in range(12)))
        assert [handle.workflow_id for handle in handles] == [f"p-{number}" for number in range(1, 13)]
        return [handle.get_result() for handle in handles]

    dbos.launch()
    with SetWorkflowID("p"):
        result = parent()

    assert result == begun == list(range(12))
    assert [each.child_workflow_id for each in steps("p")[:12]] == [f"p-{number}" for number in range(1, 13)]
    assert execute_again("p", to_step=13).get_result() == result
    assert execute_again("p", to_step=5).get_result() == result
    assert len(begun) == 12


@pytest.mark.parametrize("arguments", [[1, 2], ["x"], "x", [(1,), b"x"]], ids=repr)
def test_of_many_each_has_a_tuple_of_arguments(still: type[DBOS], arguments: Any) -> None:
    queue = Queue("mail")

    @still.workflow()
    def workflow(value: Any) -> None: ...

    still.launch()

    with pytest.raises(TypeError, match=r"a tuple of arguments for each call, for example \[\(1,\), \(2,\)\]"):
        queue.enqueue_many(workflow, arguments)
    with pytest.raises(TypeError, match="a tuple of arguments for each call"):
        asyncio.run(queue.enqueue_many_async(workflow, arguments))

    assert still.list_workflows() == []


def test_of_many_all_are_enqueued_or_none(still: type[DBOS]) -> None:
    queue = Queue("mail")

    @still.workflow()
    def workflow(value: Any) -> None: ...

    still.launch()

    with SetEnqueueOptions(deduplication_id="d"):
        with pytest.raises(DBOSException, match="2 workflows cannot be enqueued with one deduplication_id"):
            queue.enqueue_many(workflow, [(1,), (2,)])
        with pytest.raises(TypeError):
            queue.enqueue_many(workflow, [(threading.Lock(),)])
    with pytest.raises(TypeError):
        queue.enqueue_many(workflow, [(1,), (threading.Lock(),)])

    assert still.list_workflows() == []


@pytest.mark.parametrize("is_given_up", [False, True], ids=["another function's", "given up"])
def test_an_id_that_is_taken_keeps_out_all_that_are_enqueued_with_it(still: type[DBOS], is_given_up: bool) -> None:
    queue = Queue("mail")

    @still.workflow()
    def workflow(value: int) -> None: ...

    @still.workflow()
    def other(value: int) -> None: ...

    still.launch()
    with SetWorkflowID("taken"):
        queue.enqueue(workflow if is_given_up else other, 0)
    if is_given_up:
        change("UPDATE dbos.workflow_status SET status = 'MAX_RECOVERY_ATTEMPTS_EXCEEDED'")

    expected = MaxRecoveryAttemptsExceededError if is_given_up else DBOSConflictingWorkflowError
    with pytest.raises(expected), SetWorkflowID("taken"):
        queue.enqueue_many(workflow, [(1,), (2,), (3,)])

    assert [status.workflow_id for status in still.list_workflows()] == ["taken"]


def test_in_a_workflow_an_id_that_is_taken_keeps_out_all_that_are_enqueued_with_it(dbos: type[DBOS]) -> None:
    queue = Queue("mail")

    @dbos.workflow()
    def child(value: int) -> None: ...

    @dbos.workflow()
    def parent() -> None:
        queue.enqueue_many(child, [(1,), (2,), (3,)])

    dbos.launch()
    with SetWorkflowID("p-2"):
        dbos.start_workflow(child, 0).get_result()
    change("UPDATE dbos.workflow_status SET name = 'other'")

    with pytest.raises(DBOSConflictingWorkflowError), SetWorkflowID("p"):
        parent()

    assert [status.workflow_id for status in dbos.list_workflows()] == ["p-2", "p"]


def test_ids_of_many_that_exist_are_read_at_once(dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was once read by itself."""
    queue = Queue("mail")
    asked: list[int] = []

    @dbos.workflow()
    def child(value: int) -> int:
        return value

    @dbos.workflow()
    def parent() -> list[int]:
        handles = queue.enqueue_many(child, [(1,), (2,), (3,)])
        return [handle.get_result() for handle in handles]

    dbos.launch()
    for number in (1, 2, 3):
        with SetWorkflowID(f"p-{number}"):
            queue.enqueue(child, 10 * number).get_result()
    rows_of = WorkflowStatusStore.get_all

    def get_all(connection: Connection, ids: Sequence[str]) -> dict[str, StatusRow]:
        asked.append(len(ids))
        return rows_of(connection, ids)

    monkeypatch.setattr(WorkflowStatusStore, "get_all", staticmethod(get_all))

    with SetWorkflowID("p"):
        results = parent()

    assert (results, asked) == ([10, 20, 30], [3])


def test_many_with_an_id_that_exists_get_that_workflow_and_the_others(
    still: type[DBOS], capfd: pytest.CaptureFixture[str]
) -> None:
    queue, elsewhere = Queue("mail"), Queue("elsewhere")

    @still.workflow()
    def workflow(value: int) -> None: ...

    still.launch()
    with SetWorkflowID("mine"):
        elsewhere.enqueue(workflow, 1)

    with SetWorkflowID("mine"):
        ids = [handle.workflow_id for handle in queue.enqueue_many(workflow, [(1,), (2,)])]

    assert ids[0] == "mine"
    assert [status.queue_name for status in still.list_workflows(workflow_ids=ids)] == ["elsewhere", "mail"]
    assert capfd.readouterr().err.count("already exists in queue elsewhere and stays there") == 1


# -- by name -----------------------------------------------------------------------------------------------------------


def test_a_workflow_is_enqueued_by_name_with_all_options(still: type[DBOS]) -> None:
    still.launch()
    options: EnqueueOptions = {
        "workflow_name": "elsewhere",
        "queue_name": "mail",
        "workflow_id": "w",
        "app_version": "v9",
        "workflow_timeout": 1.5,
        "delay_seconds": 1000,
        "deduplication_id": "d",
        "priority": 4,
        "authenticated_user": "bob",
        "authenticated_roles": ["boss"],
        "serialization_type": WorkflowSerializationFormat.PORTABLE,
        "class_name": "Shop",
        "instance_name": "north",
    }

    handle = still.enqueue_workflow_with_options(options, 1, text="a")
    plain = asyncio.run(still.enqueue_workflow_with_options_async({"workflow_name": "elsewhere", "queue_name": "mail"}))

    stored = row(handle.workflow_id)
    assert (stored.workflow_uuid, stored.name, stored.class_name, stored.config_name) == (
        "w",
        "elsewhere",
        "Shop",
        "north",
    )
    assert (stored.status, stored.deduplication_id, stored.priority) == ("DELAYED", "d", 4)
    assert (stored.application_version, stored.workflow_timeout_ms, stored.workflow_deadline_epoch_ms) == (
        "v9",
        1500,
        None,
    )
    assert (stored.authenticated_user, stored.authenticated_roles) == ("bob", '["boss"]')
    assert stored.serialization == "portable_json"
    assert row(plain.workflow_id).application_version is None


def test_a_method_is_found_by_the_names_of_its_class_and_instance(dbos: type[DBOS]) -> None:
    Queue("mail")

    @dbos.dbos_class("Shop")
    class Shop(DBOSConfiguredInstance):
        @dbos.workflow(name="of_instance")
        def of_instance(self, number: int) -> str:
            return f"{self.config_name} {number}"

        @classmethod
        @dbos.workflow(name="of_class")
        def of_class(cls, number: int) -> str:
            return f"{cls.__name__} {number}"

    Shop("north")
    dbos.launch()

    one = dbos.enqueue_workflow_with_options(
        {"workflow_name": "of_instance", "queue_name": "mail", "class_name": "Shop", "instance_name": "north"}, 1
    )
    other = dbos.enqueue_workflow_with_options(
        {"workflow_name": "of_class", "queue_name": "mail", "class_name": "Shop"}, 2
    )

    assert (one.get_result(), other.get_result()) == ("north 1", "Shop 2")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"queue_name": "mail"}, KeyError, "requires workflow_name and queue_name: workflow_name must be given"),
        ({"workflow_name": "w"}, KeyError, "requires workflow_name and queue_name: queue_name must be given"),
        ({"workflow_name": None, "queue_name": None}, KeyError, "EnqueueOptions .* must be given"),
        ({"workflow_name": "w", "queue_name": "mail", "prioriti": 1}, DBOSException, "'prioriti' .* mean 'priority'?"),
        ({"workflow": "w", "queue_name": "mail"}, DBOSException, "'workflow' of EnqueueOptions"),
        ({"workflow_name": "w", "queue_name": "mail", "Q": 1}, DBOSException, "'Q' .* See dbos.EnqueueOptions"),
        ({"workflow_name": "w", "queue_name": " "}, DBOSException, "Invalid queue name ' ': it is blank"),
        ({"workflow_name": "w", "queue_name": "mail", "priority": 0}, DBOSException, "Invalid priority 0"),
        ({"workflow_name": "w", "queue_name": ""}, DBOSException, "Invalid queue name"),
        ({"workflow_name": "w", "queue_name": "mail", "workflow_id": " "}, DBOSException, "Invalid workflow ID"),
        (
            {"workflow_name": "w", "queue_name": "mail", "duplication_policy": "return-existing"},
            DBOSException,
            "requires a deduplication_id",
        ),
    ],
    ids=str,
)
def test_options_by_name_are_checked(
    still: type[DBOS], options: EnqueueOptions, kind: type[Exception], message: str
) -> None:
    still.launch()

    with pytest.raises(kind, match=message):
        still.enqueue_workflow_with_options(options)

    assert still.list_workflows() == []


# -- delays ------------------------------------------------------------------------------------------------------------


def test_a_delay_counts_from_when_it_was_said(still: type[DBOS]) -> None:
    queue = Queue("mail")

    @still.workflow()
    def workflow() -> None: ...

    still.launch()
    before = engine().db.now_ms()
    options = SetEnqueueOptions(delay_seconds=100)
    after = engine().db.now_ms()
    time.sleep(0.03)
    with options:
        handles = [queue.enqueue(workflow), queue.enqueue(workflow)]

    for handle in handles:
        until_ms = handle.get_status().delay_until_epoch_ms
        assert until_ms is not None
        assert before + 100_000 - 2 <= until_ms <= after + 100_000 + 2  # two clocks, each rounded


def test_a_delayed_workflow_runs_when_its_delay_is_over(dbos: type[DBOS]) -> None:
    queue = Queue("mail")

    @dbos.workflow()
    def workflow() -> int:
        return engine().db.now_ms()

    dbos.launch()
    with SetEnqueueOptions(delay_seconds=0.2):
        handle = queue.enqueue(workflow)
    until_ms = handle.get_status().delay_until_epoch_ms

    assert until_ms is not None
    assert handle.get_result() >= until_ms


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_a_delay_can_be_changed_while_it_lasts(dbos: type[DBOS], is_async: bool) -> None:
    queue = Queue("mail")

    @dbos.workflow()
    def workflow() -> str:
        return "done"

    def set_delay(workflow_id: str, **delay: Any) -> None:
        if is_async:
            asyncio.run(dbos.set_workflow_delay_async(workflow_id, **delay))
        else:
            dbos.set_workflow_delay(workflow_id, **delay)

    dbos.launch()
    with SetEnqueueOptions(delay_seconds=1000):
        sooner, at_once, later = (queue.enqueue(workflow) for _ in range(3))

    set_delay(sooner.workflow_id, delay_until_epoch_ms=1)
    set_delay(at_once.workflow_id, delay_seconds=0)
    set_delay(later.workflow_id, delay_seconds=2000)

    assert [sooner.get_result(), at_once.get_result()] == ["done", "done"]
    until_ms = row(later.workflow_id).delay_until_epoch_ms
    assert until_ms is not None
    assert until_ms > engine().db.now_ms() + 1_900_000
    set_delay(sooner.workflow_id, delay_seconds=1000)  # it is not delayed any more
    assert sooner.get_status().status == "SUCCESS"
    set_delay("missing", delay_seconds=1)


@pytest.mark.parametrize(
    "delay",
    [
        {},
        {"delay_seconds": 1, "delay_until_epoch_ms": 1},
        {"delay_seconds": -1},
        {"delay_seconds": float("nan")},
        {"delay_until_epoch_ms": -1},
        {"delay_until_epoch_ms": 1.5},
        {"delay_until_epoch_ms": 2**70},
    ],
    ids=str,
)
def test_a_delay_is_one_time(dbos: type[DBOS], delay: dict[str, Any]) -> None:
    dbos.launch()

    with pytest.raises(DBOSException, match="delay"):
        dbos.set_workflow_delay("w", **delay)


def test_looking_at_queues_and_changing_delays_are_recorded(dbos: type[DBOS]) -> None:
    queue = Queue("mail")

    @dbos.workflow(name="child")
    def child() -> None: ...

    @dbos.workflow()
    def parent() -> list[str]:
        with SetEnqueueOptions(delay_seconds=1000):
            queue.enqueue(child)
        found = [status.status for status in dbos.list_queued_workflows(name="child")]
        dbos.set_workflow_delay("p-1", delay_seconds=0)
        return found

    dbos.launch()
    with SetWorkflowID("p"):
        parent()
    dbos.get_result("p-1")

    assert recorded("p") == [(1, "child"), (2, "DBOS.listQueuedWorkflows"), (3, "DBOS.setWorkflowDelay")]
    assert execute_again("p", to_step=4).get_result() == ["DELAYED"]


# -- listing -----------------------------------------------------------------------------------------------------------


def test_what_is_in_queues_is_listed(dbos: type[DBOS]) -> None:
    queue, inside, go_on = Queue("mail"), threading.Event(), threading.Event()

    @dbos.workflow()
    def quick() -> None: ...

    @dbos.workflow()
    def held() -> None:
        inside.set()
        go_on.wait(PATIENCE_S)

    dbos.launch()
    queue.enqueue(quick).get_result()
    running = queue.enqueue(held)
    inside.wait(PATIENCE_S)
    with SetEnqueueOptions(delay_seconds=1000):
        delayed = queue.enqueue(quick)
    waiting = dbos.enqueue_workflow("elsewhere", quick)
    quick()

    found = [status.workflow_id for status in dbos.list_queued_workflows()]
    elsewhere = [status.workflow_id for status in dbos.list_queued_workflows(queue_name="elsewhere", load_input=False)]
    finished = asyncio.run(dbos.list_queued_workflows_async(status="SUCCESS", sort_desc=True, limit=5))
    go_on.set()

    assert set(found) == {running.workflow_id, delayed.workflow_id, waiting.workflow_id}
    assert elsewhere == [waiting.workflow_id]
    assert [status.queue_name for status in finished] == ["mail"]
    running.get_result()


# -- timeouts ----------------------------------------------------------------------------------------------------------


def test_the_time_of_an_enqueued_workflow_begins_when_it_begins(dbos: type[DBOS]) -> None:
    queue = Queue("mail")

    @dbos.workflow()
    def endless() -> None:
        dbos.sleep(1000)

    dbos.launch()
    with SetWorkflowTimeout(0.1):
        waiting = dbos.enqueue_workflow("elsewhere", endless)
        running = queue.enqueue(endless)

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        running.get_result()
    stored = row(running.workflow_id)
    assert (stored.workflow_timeout_ms, stored.queue_name) == (100, None)
    assert stored.workflow_deadline_epoch_ms is not None
    assert (row(waiting.workflow_id).status, row(waiting.workflow_id).workflow_deadline_epoch_ms) == ("ENQUEUED", None)


def test_the_deadline_of_a_parent_is_that_of_what_it_enqueues(dbos: type[DBOS], dbos_virtual_time: VirtualTime) -> None:
    @dbos.workflow()
    def child() -> None: ...

    @dbos.workflow()
    def parent() -> list[str]:
        inherits = dbos.enqueue_workflow("elsewhere", child).workflow_id
        with SetWorkflowTimeout(None):
            free = dbos.enqueue_workflow("elsewhere", child).workflow_id
        return [inherits, free]

    dbos.launch()
    with SetWorkflowTimeout(1.0), SetWorkflowID("p"):
        inherits, free = parent()

    assert row(inherits).workflow_deadline_epoch_ms == row("p").workflow_deadline_epoch_ms
    assert row(free).workflow_deadline_epoch_ms is None
    dbos_virtual_time.advance(1)
    assert row(inherits).status == "CANCELLED"
    assert row(free).status == "ENQUEUED"
