"""Debouncing: of the calls with one key that come while a workflow waits, the last one counts, and it runs once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dbos import (
    DBOS,
    DBOSClient,
    DBOSConfig,
    DBOSConfiguredInstance,
    DBOSContextSetAuth,
    DBOSException,
    Debouncer,
    DebouncerClient,
    EnqueueOptions,
    Queue,
    SetEnqueueOptions,
    SetWorkflowID,
    SetWorkflowTimeout,
)
from dbos._error import (
    DBOSAwaitedWorkflowCancelledError,
    DBOSConflictingWorkflowError,
    DBOSQueueDeduplicatedError,
    DBOSWorkflowCancelledError,
    DBOSWorkflowFunctionNotFoundError,
)
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import Call
from dbos._sysdb.stores.debounces import Joined
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE
from dbos.testing import VirtualTime
from tests.integration.crashes import Crash
from tests.integration.histories import PATIENCE_S, change, engine, eventually, execute_again, recorded, row, steps

ROOT = Path(__file__).parents[2]
OPERATION = "DBOS.debounce_delayed_workflow"
LONG_S = 3600.0
FOREVER_MS = 2**52

Debounce = Callable[..., str]


@pytest.fixture(params=[False, True], ids=["blocking", "async"])
def debounce(request: pytest.FixtureRequest) -> Debounce:
    """``debounce(debouncer, key, period, *args)``: in either form, returns the workflow's id."""

    def in_a_thread(debouncer: Any, *args: Any, **kwargs: Any) -> str:
        workflow_id: str = debouncer.debounce(*args, **kwargs).workflow_id
        return workflow_id

    def on_a_loop(debouncer: Any, *args: Any, **kwargs: Any) -> str:
        async def run() -> str:
            workflow_id: str = (await debouncer.debounce_async(*args, **kwargs)).workflow_id
            return workflow_id

        return asyncio.run(run())

    return on_a_loop if request.param else in_a_thread


@pytest.fixture
def client(dbos: type[DBOS], config: DBOSConfig) -> Iterator[DBOSClient]:
    dbos.launch()  # which creates the tables
    client = DBOSClient(system_database_url=config["system_database_url"])
    yield client
    client.destroy()


def debounced(workflow_id: str) -> tuple[bool, int | None]:
    """Whether a workflow is debounced, and until when it can be put off."""

    def read(connection: Connection) -> tuple[Any, ...] | None:
        return connection.one(
            "SELECT is_debounced, debounce_deadline_epoch_ms FROM dbos.workflow_status WHERE workflow_uuid = :id",
            id=workflow_id,
        )

    found = engine().db.read(read)
    assert found is not None
    return bool(found[0]), found[1]


def promote() -> None:
    """Let all delays be over."""
    engine().db.change(engine().db.claims.promote, FOREVER_MS, 100)


Join = Callable[[], Any]


@contextmanager
def answers_of_joining(answer: Callable[[Join, Joined], Any]) -> Iterator[None]:
    """The first call that is committed gets another answer, from what commits it once more and the one it had."""
    db, asked = engine().db, list[Any]()
    commit = db.commit

    def commit_and_ask(*operations: Any) -> Any:
        results = commit(*operations)
        is_joining = isinstance(operations[-1], Call) and operations[-1].verb == db.debounces.join
        if not is_joining or results[-1] is None or asked:
            return results
        asked.append(operations)
        return [*results[:-1], answer(lambda: commit(*operations)[-1], results[-1])]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db, "commit", commit_and_ask)
        yield


def inputs(workflow_id: str) -> Any:
    [status] = DBOS.list_workflows(workflow_ids=[workflow_id])
    return status.input


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_coroutine", [False, True], ids=["function", "coroutine function"])
def test_the_calls_of_a_key_are_one_workflow_with_the_last_arguments(
    dbos: type[DBOS], debounce: Debounce, is_coroutine: bool
) -> None:
    ran = list[Any]()

    @dbos.workflow()
    def function(number: int, *, by: str = "nobody") -> str:
        ran.append((number, by))
        return f"{number} {by}"

    @dbos.workflow()
    async def coroutine(number: int, *, by: str = "nobody") -> str:
        ran.append((number, by))
        return await asyncio.sleep(0, f"{number} {by}")

    debouncer = Debouncer.create_async(coroutine) if is_coroutine else Debouncer.create(function)
    dbos.launch()

    ids = [debounce(debouncer, "key", LONG_S, number) for number in range(3)]
    other = debounce(debouncer, "other", LONG_S, 7)
    waiting = row(ids[0])
    ids.append(debounce(debouncer, "key", 0.01, 3, by="alice"))

    assert len(set(ids)) == 1
    assert dbos.get_result(ids[0]) == "3 alice"
    assert (waiting.status, waiting.queue_name) == ("DELAYED", INTERNAL_QUEUE)
    assert waiting.deduplication_id == f"{debouncer._debouncing.workflow_name}-key"
    assert other != ids[0]
    assert row(other).status == "DELAYED"
    later = debounce(debouncer, "key", 0, 4)
    assert later != ids[0]
    assert dbos.get_result(later) == "4 nobody"
    assert inputs(other) == {"args": (7,), "kwargs": {}}
    assert ran == [(3, "alice"), (4, "nobody")]


def test_each_call_sets_the_wait_to_its_own_period(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None: ...

    debouncer = Debouncer.create(workflow)
    dbos.launch()
    for period_s in (1000.0, 10.5, 500.0):
        before_ms = engine().db.now_ms()

        workflow_id = debouncer.debounce("key", period_s).workflow_id

        until_ms = row(workflow_id).delay_until_epoch_ms
        assert until_ms is not None
        assert before_ms + period_s * 1000 <= until_ms <= engine().db.now_ms() + period_s * 1000 + 1


def test_a_group_is_put_off_no_longer_than_its_first_call_allows(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow(number: int) -> int:
        return number

    dbos.launch()
    limited = Debouncer.create(workflow, debounce_timeout_sec=100)
    unlimited = Debouncer.create(workflow, debounce_timeout_sec=0)
    before_ms = engine().db.now_ms()

    first = limited.debounce("key", LONG_S, 1).workflow_id
    deadline_ms = debounced(first)[1]
    unlimited.debounce("key", LONG_S, 2)
    capped_ms = row(first).delay_until_epoch_ms
    limited.debounce("key", 5, 3)
    other = unlimited.debounce("other", LONG_S, 1).workflow_id

    assert deadline_ms is not None
    assert before_ms + 100_000 <= deadline_ms <= engine().db.now_ms() + 100_001
    assert capped_ms == deadline_ms == debounced(first)[1]
    assert (row(first).delay_until_epoch_ms or 0) < deadline_ms
    assert debounced(other) == (True, None)


def test_a_group_that_is_called_all_the_time_runs_when_its_time_is_up(
    dbos_virtual_time: VirtualTime, dbos: type[DBOS]
) -> None:
    @dbos.workflow()
    def workflow(number: int) -> int:
        return number

    debouncer = Debouncer.create(workflow, debounce_timeout_sec=20)
    dbos.launch()
    ids = list[str]()
    for number in range(7):
        ids.append(debouncer.debounce("key", 5, number).workflow_id)
        dbos_virtual_time.advance(timedelta(seconds=4))

    assert ids == [ids[0]] * 5 + [ids[5]] * 2
    assert ids[5] != ids[0]
    assert [dbos.get_result(each) for each in (ids[0], ids[5])] == [4, 6]


def test_a_key_is_free_when_its_workflow_waits_no_more(dbos: type[DBOS]) -> None:
    """C11, C14: whether it has begun or not."""

    @dbos.workflow()
    def workflow(number: int) -> int:
        return number

    debouncer = Debouncer.create(workflow, queue="nobody's")
    ends: dict[str, Callable[[str], object]] = {
        "ENQUEUED": lambda workflow_id: promote(),
        "CANCELLED": dbos.cancel_workflow,
        "ENQUEUED at once": lambda workflow_id: dbos.set_workflow_delay(workflow_id, delay_seconds=0),
        "ENQUEUED again": lambda workflow_id: dbos.resume_workflow(workflow_id, queue_name="nobody's"),
    }
    dbos.launch()
    for status, end in ends.items():
        first = debouncer.debounce("key", LONG_S, 1).workflow_id
        end(first)
        eventually(lambda: row(first).status == status.split()[0])  # noqa: B023 - it is called in the loop

        second = debouncer.debounce("key", LONG_S, 2).workflow_id

        assert second != first
        assert row(first).deduplication_id is None
        assert (inputs(first)["args"], inputs(second)["args"]) == ((1,), (2,))
        assert debouncer.debounce("key", LONG_S, 3).workflow_id == second
        dbos.cancel_workflow(second)


def test_what_is_delayed_but_not_debounced_keeps_its_id_until_it_has_ended(dbos: type[DBOS]) -> None:
    """C11"""

    @dbos.workflow()
    def workflow() -> None: ...

    dbos.launch()
    with SetEnqueueOptions(deduplication_id="d", delay_seconds=LONG_S):
        handle = dbos.enqueue_workflow("nobody's", workflow)

    promote()

    assert (row(handle.workflow_id).status, row(handle.workflow_id).deduplication_id) == ("ENQUEUED", "d")


# -- what is set -------------------------------------------------------------------------------------------------------


def test_what_is_set_around_the_first_call_counts(dbos: type[DBOS], debounce: Debounce) -> None:
    @dbos.workflow()
    def workflow(number: int) -> int:
        return number

    queue = Queue("mail")
    debouncer = Debouncer.create(workflow, queue=queue)
    dbos.launch()
    with (
        SetWorkflowID("first"),
        SetWorkflowTimeout(7),
        SetEnqueueOptions(app_version="v7"),
        DBOSContextSetAuth("alice", ["reader"]),
    ):
        assert debounce(debouncer, "key", LONG_S, 1) == "first"
    with SetWorkflowID("second"), SetWorkflowTimeout(8), SetEnqueueOptions(app_version="v8"):
        assert debounce(debouncer, "key", LONG_S, 2) == "first"

    found = row("first")
    assert (found.queue_name, found.workflow_timeout_ms, found.application_version) == ("mail", 7000, "v8")
    assert (found.authenticated_user, found.workflow_deadline_epoch_ms) == ("alice", None)
    assert inputs("first")["args"] == (2,)
    assert len(dbos.list_workflows()) == 1


def test_an_id_that_exists_is_that_workflow(dbos: type[DBOS]) -> None:
    ran = list[int]()

    @dbos.workflow()
    def workflow(number: int) -> int:
        ran.append(number)
        return number

    @dbos.workflow()
    def other(number: int) -> int:
        return number

    dbos.launch()
    with SetWorkflowID("w"):
        dbos.start_workflow(workflow, 1).get_result()

    with SetWorkflowID("w"):
        again = Debouncer.create(workflow).debounce("key", 0, 2).workflow_id
    with SetWorkflowID("w"), pytest.raises(DBOSConflictingWorkflowError):
        Debouncer.create(other).debounce("key", 0, 2)

    assert (again, ran) == ("w", [1])


def test_options_that_debouncing_sets_itself_are_refused(dbos: type[DBOS], client: DBOSClient) -> None:
    @dbos.workflow(name="workflow")
    def workflow() -> None: ...

    refused: list[dict[str, Any]] = [
        {"deduplication_id": "d"},
        {"priority": 1},
        {"queue_partition_key": "p"},
        {"delay_seconds": 1},
        {"duplication_policy": "return-existing", "deduplication_id": "d"},
    ]
    for options in refused:
        message = f"cannot have .*{next(iter(options))}"
        with SetEnqueueOptions(**options), pytest.raises(DBOSException, match=message):
            Debouncer.create(workflow).debounce("key", 1)
        described: Any = {"workflow_name": "workflow", "queue_name": "mail", **options}
        with pytest.raises(DBOSException, match=message):
            DebouncerClient(client, described)

    with SetEnqueueOptions(duplication_policy="reject"):
        Debouncer.create(workflow).debounce("key", LONG_S)
    assert len(dbos.list_workflows()) == 1


def test_what_cannot_be_debounced_is_refused(dbos: type[DBOS]) -> None:
    @dbos.dbos_class()
    class Shop(DBOSConfiguredInstance):
        @staticmethod
        @dbos.workflow()
        def static(number: int) -> int:
            return number

        @classmethod
        @dbos.workflow()
        def of_class(cls, number: int) -> int:
            return number

        @dbos.workflow()
        def of_instance(self, number: int) -> int:
            return number

    @dbos.step()
    def step() -> None: ...

    @dbos.workflow()
    def workflow() -> None: ...

    @dbos.transaction()
    def transaction() -> None:
        Debouncer.create(workflow).debounce("key", 1)

    shop = Shop("north")
    Queue("partitioned", partition_queue=True)
    dbos.launch()

    for method in (Shop.of_class, shop.of_instance, Shop.of_instance):
        with pytest.raises(TypeError, match="is a method of a class or an instance"):
            Debouncer.create(method)
    with pytest.raises(TypeError, match="is a method of a class or an instance"):
        Debouncer(Shop.of_class.dbos_function_name).debounce("key", 1)  # type: ignore[attr-defined]  # ours
    for function in (step, len, lambda: None):
        with pytest.raises(DBOSWorkflowFunctionNotFoundError, match="is not a registered workflow function"):
            Debouncer.create(function)
    with pytest.raises(DBOSWorkflowFunctionNotFoundError, match="unknown is not a registered workflow function"):
        Debouncer("unknown").debounce("key", 1)
    with pytest.raises(Exception, match="without a partition key"):
        Debouncer.create(workflow, queue="partitioned").debounce("key", 1)
    with pytest.raises(Exception, match="inside a transaction"):
        transaction()
    assert [each.status for each in dbos.list_workflows()] == ["ERROR"]  # the transaction
    assert dbos.get_result(Debouncer.create(Shop.static).debounce("key", 0, 7).workflow_id) == 7


def test_keys_periods_and_timeouts_that_are_none_are_refused(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None: ...

    debouncer, wrong = Debouncer.create(workflow), list[Any]([-1, float("nan"), float("inf"), "1", True])
    dbos.launch()

    for period_s in (*wrong, None):
        with pytest.raises(DBOSException, match="Invalid debounce_period_sec"):
            debouncer.debounce("key", period_s)
    for timeout_s in wrong:
        with pytest.raises(DBOSException, match="Invalid debounce_timeout_sec"):
            Debouncer.create(workflow, debounce_timeout_sec=timeout_s)
    for key in list[Any](["", "nul\0", 5, None, "long" * 1000]):
        with pytest.raises(DBOSException, match="Invalid debounce_key"):
            debouncer.debounce(key, 1)
    with pytest.raises(DBOSException, match="Invalid workflow_name"):
        Debouncer("")
    with pytest.raises(DBOSException, match="queue"):
        Debouncer.create(workflow, queue=" ")
    assert dbos.list_workflows() == []


def test_a_key_that_something_else_holds_is_not_taken_from_it(dbos: type[DBOS], debounce: Debounce) -> None:
    @dbos.workflow(name="a")
    def workflow() -> str:
        return "done"

    @dbos.workflow(name="a-b")
    def other() -> None: ...

    dbos.launch()
    with SetEnqueueOptions(deduplication_id="a-plain", delay_seconds=LONG_S):
        plain = dbos.enqueue_workflow("mail", workflow).workflow_id
    with SetEnqueueOptions(deduplication_id="a-waiting"):
        waiting = dbos.enqueue_workflow("mail", workflow).workflow_id
    same_id = debounce(Debouncer.create(other, queue="mail"), "c", LONG_S)
    before = {each: row(each) for each in (plain, waiting, same_id)}

    for key in ("plain", "waiting", "b-c"):
        with SetWorkflowID(f"call {key}"), pytest.raises(DBOSQueueDeduplicatedError) as refused:
            debounce(Debouncer.create(workflow, queue="mail"), key, 1)
        error = refused.value
        assert (error.workflow_id, error.queue_name, error.deduplication_id) == (f"call {key}", "mail", f"a-{key}")

    assert {each: row(each) for each in before} == before
    assert debounce(Debouncer.create(workflow), "plain", LONG_S) not in before  # in another queue it is another key


def test_another_applications_workflow_need_not_be_known(dbos: type[DBOS]) -> None:
    @dbos.workflow(name="report")
    def report() -> None: ...

    dbos.launch()
    theirs = Debouncer("report", queue="theirs", application_name="billing").debounce("key", LONG_S, 1, x=2)
    with pytest.raises(DBOSQueueDeduplicatedError):
        Debouncer.create(report, queue="theirs").debounce("key", LONG_S)
    ours = Debouncer.create(report, queue="ours", application_name="test-app").debounce("key", LONG_S)

    found = row(theirs.workflow_id)
    assert (found.application_name, found.application_version) == ("billing", None)
    assert inputs(theirs.workflow_id) == {"args": (1,), "kwargs": {"x": 2}}
    assert (row(ours.workflow_id).application_name, row(ours.workflow_id).application_version) == ("test-app", "test")


# -- in workflows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
def test_in_a_workflow_it_is_one_operation_that_is_not_repeated(dbos: type[DBOS], is_async: bool) -> None:
    """F10: and no child, neither for deadlines nor otherwise."""

    @dbos.workflow()
    def target(number: int) -> int:
        return number

    debouncer = Debouncer.create(target)

    @dbos.workflow()
    def parent() -> list[str]:
        return [debouncer.debounce("key", LONG_S, number).workflow_id for number in (1, 2)]

    @dbos.workflow()
    async def parent_async() -> list[str]:
        return [(await debouncer.debounce_async("key", LONG_S, number)).workflow_id for number in (1, 2)]

    dbos.launch()
    with SetWorkflowID("p"), SetWorkflowTimeout(1000):
        ids = asyncio.run(parent_async()) if is_async else parent()
    debouncer.debounce("key", LONG_S, 3)
    before = row(ids[0])

    assert set(ids) == {"p-1"}
    assert recorded("p") == [(1, OPERATION), (2, OPERATION)]
    assert [step["output"] for step in dbos.list_workflow_steps("p")] == ids
    assert [step.child_workflow_id for step in steps("p")] == [None, None]
    assert (before.workflow_deadline_epoch_ms, before.workflow_timeout_ms, before.parent_workflow_id) == (None,) * 3
    assert execute_again("p").get_result() == ids
    assert row(ids[0]) == before


@pytest.mark.parametrize("is_over", [False, True], ids=["while it waits", "when it runs"])
@pytest.mark.parametrize("joins", [False, True], ids=["first", "later"])
def test_a_call_that_is_repeated_before_it_was_recorded_makes_no_second_workflow(
    dbos: type[DBOS], is_over: bool, joins: bool
) -> None:
    """Effect and record are one transaction: neither is there without the other."""
    ran = list[int]()

    @dbos.workflow()
    def target(number: int) -> None:
        ran.append(number)

    debouncer = Debouncer.create(target)

    @dbos.workflow()
    def parent() -> str:
        return debouncer.debounce("key", LONG_S, 2).workflow_id

    dbos.launch()
    first = debouncer.debounce("key", LONG_S, 1).workflow_id if joins else "p-1"

    def die(join: Join, joined: Joined) -> Any:
        raise Crash

    with answers_of_joining(die), SetWorkflowID("p"), pytest.raises(Crash):
        parent()
    if is_over:
        promote()
        engine().dispatch(None)
        dbos.retrieve_workflow(first).get_result()

    assert execute_again("p").get_result() == first
    assert recorded("p") == [(1, OPERATION)]
    assert ran == ([2] if is_over else [])
    assert len(dbos.list_workflows()) == 2


def test_a_refusal_is_recorded_and_replayed(dbos: type[DBOS]) -> None:
    """C11, C13: also when the key has long been free."""

    @dbos.workflow(name="target")
    def target() -> None: ...

    @dbos.workflow()
    def parent() -> list[Any]:
        try:
            return [Debouncer.create(target).debounce("key", LONG_S).workflow_id]
        except DBOSQueueDeduplicatedError as error:
            return [error.workflow_id, error.queue_name, error.deduplication_id]

    dbos.launch()
    with SetEnqueueOptions(deduplication_id="target-key", delay_seconds=LONG_S):
        holder = dbos.enqueue_workflow(INTERNAL_QUEUE, target)
    with SetWorkflowID("p"):
        result = parent()
    dbos.cancel_workflow(holder.workflow_id)

    assert result == ["p-1", INTERNAL_QUEUE, "target-key"]
    assert recorded("p") == [(1, OPERATION)]
    assert execute_again("p").get_result() == result
    assert len(dbos.list_workflows()) == 2


@pytest.mark.parametrize("joins", [False, True], ids=["first", "later"])
def test_a_run_that_was_cancelled_or_taken_over_puts_nothing_off(dbos: type[DBOS], joins: bool) -> None:
    inside, go = threading.Event(), threading.Event()

    @dbos.workflow()
    def target(number: int) -> None: ...

    debouncer = Debouncer.create(target)

    @dbos.workflow()
    def parent() -> str:
        inside.set()
        assert go.wait(PATIENCE_S)
        return debouncer.debounce("key", LONG_S, 2).workflow_id

    dbos.launch()
    if joins:
        first = debouncer.debounce("key", LONG_S, 1).workflow_id
    with SetWorkflowID("p"):
        handle = dbos.start_workflow(parent)
    assert inside.wait(PATIENCE_S)
    change("UPDATE dbos.workflow_status SET status = 'CANCELLED' WHERE workflow_uuid = 'p'")
    go.set()

    with pytest.raises((DBOSException, DBOSWorkflowCancelledError), match="cancelled"):
        handle.get_result()
    assert recorded("p") == []
    if joins:
        assert inputs(first)["args"] == (1,)


def test_a_step_debounces_as_whoever_is_outside(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def target(number: int) -> None: ...

    debouncer = Debouncer.create(target)

    @dbos.step()
    def step() -> str:
        return debouncer.debounce("key", LONG_S, 1).workflow_id

    @dbos.workflow()
    def parent() -> list[str]:
        return [step(), step()]

    dbos.launch()
    with SetWorkflowID("p"):
        ids = parent()

    assert ids[0] == ids[1] != "p-1"
    assert row(ids[0]).parent_workflow_id is None
    assert [name for _, name in recorded("p")] == [step.dbos_function_name] * 2  # type: ignore[attr-defined]  # ours


# -- many callers ------------------------------------------------------------------------------------------------------


def together(count: int, call: Callable[[int], Any]) -> list[Any]:
    """What the calls return that are made at the same time."""
    barrier, results, errors = threading.Barrier(count), list[Any](), list[BaseException]()

    def run(number: int) -> None:
        try:
            barrier.wait(PATIENCE_S)
            results.append(call(number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert errors == []
    return results


def callers(client: DBOSClient) -> Sequence[Debouncer[..., Any] | DebouncerClient]:
    """Two, each with connections of its own, as processes have them."""
    options: EnqueueOptions = {"workflow_name": "workflow", "queue_name": "mail"}
    return Debouncer("workflow", queue="mail"), DebouncerClient(client, options)


def test_many_who_call_at_once_are_one_group(dbos: type[DBOS], client: DBOSClient) -> None:
    @dbos.workflow(name="workflow")
    def workflow(number: int) -> int:
        return number

    debouncers = callers(client)

    ids = together(16, lambda number: debouncers[number % 2].debounce("key", LONG_S, number).workflow_id)
    last = debouncers[0].debounce("key", 0, 99)
    Queue("mail")

    assert set(ids) == {last.workflow_id}
    assert last.get_result() == 99
    assert len(dbos.list_workflows()) == 1


CALLER = """
import sys
from dbos import DBOSClient, DebouncerClient

client = DBOSClient(system_database_url=sys.argv[1])
debouncer = DebouncerClient(client, {"workflow_name": "workflow", "queue_name": "mail"})
print("ready", flush=True)
sys.stdin.readline()
for number in range(30):
    print(debouncer.debounce(f"key {number % 3}", 3600, number).workflow_id)
client.destroy()
"""


def test_processes_that_call_at_once_are_of_one_group_for_each_key(dbos: type[DBOS], config: DBOSConfig) -> None:
    dbos.launch()
    command = [sys.executable, "-c", CALLER, str(config["system_database_url"])]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        assert [process.stdout and process.stdout.readline() for process in processes] == ["ready\n"] * 2

        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        ids = [process.communicate()[0].split() for process in processes]

    assert [len(each) for each in ids] == [30, 30]
    assert ids[0] == ids[1] == ids[0][:3] * 10
    assert [inputs(each)["args"] for each in ids[0][:3]] == [(27,), (28,), (29,)]
    assert len(dbos.list_workflows()) == 3


def test_calls_that_meet_the_beginning_are_of_one_group_or_the_next_and_none_is_lost(
    dbos: type[DBOS], client: DBOSClient
) -> None:
    ran = Counter[str]()
    seen = list[tuple[int, int]]()

    @dbos.workflow(name="workflow")
    def workflow(caller: int, number: int) -> None:
        assert DBOS.workflow_id is not None
        ran[DBOS.workflow_id] += 1
        seen.append((caller, number))

    Queue("mail")
    debouncers = callers(client)

    def call(caller: int) -> list[str]:
        return [
            debouncers[caller % 2].debounce(f"key {number % 2}", 0.001, caller, number).workflow_id
            for number in range(15)
        ]

    ids = {each for some in together(4, call) for each in some}
    for each in ids:
        dbos.retrieve_workflow(each).get_result()

    assert {each.workflow_id for each in dbos.list_workflows()} == ids
    assert ran == Counter(ids)
    assert len(set(seen)) == len(seen)  # what ran once is in no other group


@pytest.mark.parametrize("joins", [False, True], ids=["first", "later"])
def test_a_call_whose_answer_was_lost_is_made_once(dbos: type[DBOS], joins: bool) -> None:
    """The commit is repeated; that must not begin a second group of what has run."""

    @dbos.workflow()
    def workflow(number: int) -> int:
        return number

    debouncer = Debouncer.create(workflow, queue="nobody's")
    dbos.launch()
    for key in ("nothing", "another call", "its beginning", "another call and its beginning"):
        first = debouncer.debounce(key, LONG_S, 1).workflow_id if joins else None

        def lose(join: Join, joined: Joined, key: str = key) -> Any:
            if "another call" in key:
                debouncer.debounce(key, LONG_S, 3)
            if "its beginning" in key:
                promote()
            return join()

        with answers_of_joining(lose):
            workflow_id = debouncer.debounce(key, LONG_S, 2).workflow_id

        arguments = {each.workflow_id: inputs(each.workflow_id)["args"] for each in dbos.list_workflows()}
        if joins and key == "another call and its beginning":
            # Its arguments were replaced before they counted; they are those of a group that begins after this one.
            assert arguments == {first: (3,), workflow_id: (2,)}
        else:
            assert first in (None, workflow_id)
            assert arguments == {workflow_id: (3,) if "and" in key else (2,)}
        dbos.cancel_workflows(list(arguments))
        change("DELETE FROM dbos.workflow_status")


# -- the client --------------------------------------------------------------------------------------------------------


def test_a_client_and_the_application_call_the_same_groups(
    dbos: type[DBOS], client: DBOSClient, debounce: Debounce
) -> None:
    @dbos.workflow(name="workflow")
    def workflow(number: int, *, by: str) -> str:
        return f"{number} {by}"

    Queue("mail")
    options: EnqueueOptions = {
        "workflow_name": "workflow",
        "queue_name": "elsewhere",
        "workflow_id": "chosen",
        "workflow_timeout": 7,
        "app_version": "test",
        "authenticated_user": "alice",
    }
    theirs = DebouncerClient(client, options, debounce_timeout_sec=1000, queue=Queue("other"))
    mine = Debouncer.create(workflow, queue="other")

    with SetWorkflowID("not taken"):
        first = debounce(theirs, "key", LONG_S, 1, by="client")
    second = debounce(mine, "key", LONG_S, 2, by="application")
    found, (is_debounced, deadline_ms) = row(first), debounced(first)
    third = debounce(theirs, "key", 0, 3, by="client")

    assert [first, second, third] == ["chosen"] * 3
    assert dbos.get_result("chosen") == "3 client"
    assert (found.queue_name, found.workflow_timeout_ms, found.authenticated_user) == ("other", 7000, "alice")
    assert is_debounced
    assert deadline_ms is not None
    assert debounce(theirs, "key", 0, 4, by="client") == "chosen"  # it is this workflow, and not another one
    others: EnqueueOptions = {"workflow_name": "workflow", "queue_name": "elsewhere"}
    plain = debounce(DebouncerClient(client, others), "key", LONG_S, 5, by="client")
    assert row(plain).queue_name == "elsewhere"


def test_the_methods_of_a_client_are_no_operations_of_a_workflow(dbos: type[DBOS], client: DBOSClient) -> None:
    debouncer = DebouncerClient(client, {"workflow_name": "unknown", "queue_name": "mail"})

    @dbos.workflow()
    def parent() -> str:
        return debouncer.debounce("key", LONG_S).workflow_id

    with SetWorkflowID("p"):
        workflow_id = parent()

    assert recorded("p") == []
    assert row(workflow_id).status == "DELAYED"


def test_options_of_a_client_are_checked_when_the_debouncer_is_made(client: DBOSClient) -> None:
    wrong: list[tuple[Any, type[Exception], str]] = [
        ({"workflow_name": "w"}, KeyError, "queue_name"),
        ({"queue_name": "q"}, KeyError, "workflow_name"),
        ({"workflow_name": "w", "queue_name": "q", "deduplication": "d"}, DBOSException, "Unknown option"),
        ({"workflow_name": "w", "queue_name": ""}, DBOSException, "queue"),
    ]
    for options, error, message in wrong:
        with pytest.raises(error, match=message):
            DebouncerClient(client, options)


def test_a_later_call_brings_the_version_that_its_arguments_are_for(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def target(number: int) -> None: ...

    debouncer = Debouncer.create(target)
    dbos.launch()
    with SetEnqueueOptions(app_version="old"):
        first = debouncer.debounce("key", LONG_S, 1)
    with SetEnqueueOptions(app_version="new"):
        second = debouncer.debounce("key", LONG_S, 2)

    assert first.workflow_id == second.workflow_id
    assert row(first.workflow_id).application_version == "new"


def test_a_cancelled_workflow_debounces_nothing(dbos: type[DBOS]) -> None:
    @dbos.workflow(name="target")
    def target(number: int) -> None: ...

    debouncer = Debouncer.create(target)

    @dbos.workflow()
    def parent() -> None:
        change("UPDATE dbos.workflow_status SET status = 'CANCELLED', owner_instance = NULL WHERE workflow_uuid = 'p'")
        debouncer.debounce("key", 0, 1)

    dbos.launch()
    with SetWorkflowID("p"), pytest.raises(DBOSAwaitedWorkflowCancelledError):
        parent()

    assert dbos.list_workflows(name="target") == []
