"""Forks: a workflow begun anew from one of its steps, with what was recorded before."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dbos import DBOS, DBOSException, Queue, SetWorkflowAttributes, SetWorkflowID
from dbos._error import DBOSAwaitedWorkflowCancelledError, DBOSNonExistentWorkflowError, DBOSWorkflowIDInUseError
from dbos._sysdb.stores.forks import Fork, Forked, ForksStore
from tests.integration.histories import PATIENCE_S, change, engine, eventually, execute_again, recorded, row


def run(workflow_id: str, func: Any, *args: Any) -> Any:
    with SetWorkflowID(workflow_id):
        return func(*args)


def rows(sql: str) -> list[tuple[Any, ...]]:
    return engine().db.read(lambda connection: connection.all(sql))


class Counted:
    """A workflow of three steps, which fails in the third until it is mended."""

    def __init__(self, dbos: type[DBOS]) -> None:
        self.calls: list[tuple[str | None, int]] = []
        self.is_broken = False

        @dbos.step()
        def step(number: int) -> int:
            self.calls.append((dbos.workflow_id, number))
            if number == 3 and self.is_broken:
                raise ValueError("broken")
            return number

        @dbos.workflow(name="counted")
        def workflow(start: int) -> int:
            return start + step(1) + step(2) + step(3)

        self.workflow = workflow

    def of(self, workflow_id: str) -> list[int]:
        return [number for called_by, number in self.calls if called_by == workflow_id]


@pytest.mark.parametrize(("start_step", "executed"), [(0, [1, 2, 3]), (1, [1, 2, 3]), (2, [2, 3]), (4, []), (9, [])])
def test_a_fork_takes_over_what_was_recorded_before_its_first_step(
    dbos: type[DBOS], start_step: int, executed: list[int]
) -> None:
    counted = Counted(dbos)
    dbos.launch()
    assert run("source", counted.workflow, 10) == 16
    before = rows("SELECT * FROM dbos.operation_outputs WHERE workflow_uuid = 'source' ORDER BY function_id")

    handle: Any = dbos.fork_workflow("source", start_step)

    assert handle.get_result() == 16
    assert counted.of(handle.workflow_id) == executed
    found: Any = dbos.get_workflow_status(handle.workflow_id)
    assert found.input == {"args": (10,), "kwargs": {}}
    assert (found.name, found.forked_from, found.was_forked_from) == ("counted", "source", False)
    assert (found.queue_name, found.recovery_attempts) == ("_dbos_internal_queue", 1)
    assert dbos.get_workflow_status("source").was_forked_from  # type: ignore[union-attr]  # it exists
    assert [each.workflow_id for each in dbos.list_workflows(forked_from="source")] == [handle.workflow_id]
    copied = [step[1:] for step in before[: max(0, start_step - 1)]]
    after = rows("SELECT * FROM dbos.operation_outputs WHERE workflow_uuid <> 'source' ORDER BY function_id")
    assert [step[1:] for step in after][: len(copied)] == copied
    assert before == rows("SELECT * FROM dbos.operation_outputs WHERE workflow_uuid = 'source' ORDER BY function_id")


def test_a_failed_workflow_is_forked_when_it_is_mended(dbos: type[DBOS]) -> None:
    counted = Counted(dbos)
    counted.is_broken = True
    dbos.launch()
    with pytest.raises(ValueError, match="broken"):
        run("source", counted.workflow, 0)
    counted.is_broken = False

    fork: Any = dbos.fork_workflow("source", 3)

    assert fork.get_result() == 6
    assert counted.of(fork.workflow_id) == [3]
    assert row("source").status == "ERROR"


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["running", "cancelled"])
def test_a_workflow_that_is_not_finished_can_be_forked(dbos: type[DBOS], is_cancelled: bool) -> None:
    gate, calls = threading.Event(), []

    @dbos.step()
    def step(number: int) -> int:
        calls.append((dbos.workflow_id, number))
        if number == 2 and dbos.workflow_id == "source":
            gate.wait(PATIENCE_S)
        return number

    @dbos.workflow()
    def workflow() -> int:
        return step(1) + step(2)

    dbos.launch()
    with SetWorkflowID("source"):
        source = dbos.start_workflow(workflow)
    eventually(lambda: ("source", 2) in calls)
    if is_cancelled:
        dbos.cancel_workflow("source")

    fork = dbos.fork_workflow("source", 5)

    assert fork.get_result() == 3
    assert [number for called_by, number in calls if called_by == fork.workflow_id] == [2]
    gate.set()
    if is_cancelled:
        assert row("source").status == "CANCELLED"
    else:
        assert source.get_result() == 3


def test_what_is_given_to_a_fork_is_its_own_and_what_limits_the_source_is_not(dbos: type[DBOS]) -> None:
    counted = Counted(dbos)
    dbos.launch()
    run("source", counted.workflow, 0)
    change(
        "UPDATE dbos.workflow_status SET priority = 7, workflow_timeout_ms = 1000, workflow_deadline_epoch_ms = 1, "
        "authenticated_user = 'ada', authenticated_roles = '[\"admin\"]', assumed_role = 'admin' "
        "WHERE workflow_uuid = 'source'"
    )

    with SetWorkflowID("fork"):
        fork = dbos.fork_workflow(
            "source", 2, queue_name="nobody listens", queue_partition_key="p", application_version="another"
        )

    found: Any = dbos.get_workflow_status(fork.workflow_id)
    assert fork.workflow_id == "fork"
    assert (found.status, found.queue_name, found.queue_partition_key) == ("ENQUEUED", "nobody listens", "p")
    assert (found.app_version, found.priority, found.recovery_attempts) == ("another", 0, 0)
    assert (found.workflow_timeout_ms, found.workflow_deadline_epoch_ms, found.output) == (None, None, None)
    assert (found.authenticated_user, found.authenticated_roles, found.assumed_role) == ("ada", ["admin"], "admin")
    stored = row("fork")
    assert (stored.run_token, stored.owner_instance, stored.application_version) == (None, None, "another")


def test_a_fork_has_a_time_limit_if_it_is_given_one_and_attributes_of_its_own_or_its_sources(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(0 if dbos.workflow_id == "source" else 3600)

    dbos.launch()
    with SetWorkflowAttributes({"of": "source"}):
        run("source", workflow)

    limited = dbos.fork_workflow("source", 1, timeout_seconds=0.05)
    with SetWorkflowAttributes({"of": "fork"}):
        other = dbos.fork_workflow("source", 1, queue_name="nobody listens")

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        limited.get_result()
    assert row(limited.workflow_id).workflow_timeout_ms == 50
    assert [row(each).attributes for each in (limited.workflow_id, other.workflow_id)] == [
        '{"of": "source"}',
        '{"of": "fork"}',
    ]


def test_a_fork_that_could_never_run_is_refused(dbos: type[DBOS]) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"queue_name": "declared"}, "partitioned queue declared without a partition key"),
        ({"queue_name": "registered"}, "partitioned queue registered without a partition key"),
        ({"queue_name": "plain", "queue_partition_key": "k"}, "Key k was used with non-partitioned queue plain"),
        ({"queue_partition_key": "k"}, "Key k was used with non-partitioned queue _dbos_internal_queue"),
        ({"queue_name": ""}, "Invalid queue name ''"),
        ({"queue_name": "q" * 3000}, "Invalid queue name"),
        ({"queue_name": "declared", "queue_partition_key": "a\0b"}, "Invalid queue_partition_key"),
        ({"queue_name": "unknown", "queue_partition_key": "k" * 3000}, "Invalid queue_partition_key"),
        ({"start_step": "2"}, "Invalid start_step '2'"),
        ({"start_step": True}, "Invalid start_step True"),
        ({"start_step": -1}, "Invalid start_step -1"),
        ({"start_step": 2**70}, "Invalid start_step"),
    ]
    counted = Counted(dbos)
    Queue("declared", partition_queue=True)
    Queue("plain")
    dbos.launch()
    dbos.register_queue("registered", partition_concurrency=1)
    run("source", counted.workflow, 0)

    for choices, message in refused:
        with pytest.raises(Exception, match=message) as caught:
            dbos.fork_workflow("source", **{"start_step": 1, **choices})
        assert isinstance(caught.value, DBOSException) == message.startswith("Invalid")

    assert [each.workflow_id for each in dbos.list_workflows()] == ["source"]


def test_a_fork_runs_in_its_partition(dbos: type[DBOS]) -> None:
    counted = Counted(dbos)
    Queue("declared", 1, partition_queue=True)
    dbos.launch()
    run("source", counted.workflow, 0)

    fork: Any = dbos.fork_workflow("source", 3, queue_name="declared", queue_partition_key="k")

    assert fork.get_result() == 6


def test_a_fork_of_no_version_waits_for_the_latest(dbos: type[DBOS]) -> None:
    counted = Counted(dbos)
    dbos.launch()
    run("source", counted.workflow, 0)
    change("INSERT INTO dbos.application_versions (version_id, version_name, version_timestamp) VALUES ('n', 'new', 9)")
    dbos.set_latest_application_version("new")

    fork: Any = dbos.fork_workflow("source", 1)
    version = row(fork.workflow_id).application_version
    later: Any = dbos.fork_workflow("source", 1, application_version="test").get_result()
    before = row(fork.workflow_id).status
    dbos.set_latest_application_version("test")
    engine().dispatch(None)

    assert (version, later) == (None, 6)
    assert before == "ENQUEUED"
    assert fork.get_result() == 6


def test_a_workflow_that_does_not_exist_cannot_be_forked(dbos: type[DBOS]) -> None:
    dbos.launch()

    with pytest.raises(DBOSNonExistentWorkflowError, match="nothing"):
        dbos.fork_workflow("nothing", 1)

    assert dbos.list_workflows() == []


def test_a_fork_that_is_made_twice_under_one_id_is_made_once(dbos: type[DBOS]) -> None:
    """The answer to COMMIT was lost, say, or whoever asked for it asks again."""
    counted = Counted(dbos)
    dbos.launch()
    run("source", counted.workflow, 0)
    request = Fork("source", "fork", "token", 3, "nobody listens", None, None, {}, 1)

    made = [engine().db.change(ForksStore.fork, request) for _ in range(2)]
    with SetWorkflowID("fork"):
        again = dbos.fork_workflow("source", 1)

    assert made == [Forked(row("fork"), is_new=True), Forked(row("fork"), is_new=False)]
    assert again.workflow_id == "fork"
    assert [step for step, _ in recorded("fork")] == [1, 2]


def test_a_fork_never_takes_the_id_of_another_workflow(dbos: type[DBOS]) -> None:
    counted = Counted(dbos)
    dbos.launch()
    run("source", counted.workflow, 0)
    run("other", counted.workflow, 0)
    before = row("other")

    with SetWorkflowID("other"), pytest.raises(DBOSWorkflowIDInUseError):
        dbos.fork_workflow("source", 2)

    assert row("other") == before
    assert not row("source").was_forked_from


async def test_a_fork_is_made_by_coroutines_too(dbos: type[DBOS]) -> None:
    counted = Counted(dbos)
    dbos.launch()
    with SetWorkflowID("source"):
        await (await dbos.start_workflow_async(counted.workflow, 0)).get_result()

    fork = await dbos.fork_workflow_async("source", 2)

    assert await fork.get_result() == 6
    assert counted.of(fork.workflow_id) == [2, 3]
    with pytest.raises(RuntimeError, match="fork_workflow_async"):
        dbos.fork_workflow("source", 2)


# -- within workflows --------------------------------------------------------------------------------------------------


def test_a_workflow_that_forks_records_it_and_makes_no_second_fork_when_it_runs_again(dbos: type[DBOS]) -> None:
    """Neither when the fork was recorded, nor when its process died just before."""
    counted = Counted(dbos)

    @dbos.workflow()
    def forks() -> list[str]:
        first = dbos.fork_workflow("source", 2).workflow_id
        with SetWorkflowID("assigned"):
            second = dbos.fork_workflow("source", 3).workflow_id
            third = run("third", counted.workflow, 0)
        return [first, second, str(third)]

    dbos.launch()
    run("source", counted.workflow, 0)
    result = run("w", forks)
    replayed = execute_again("w").get_result()
    repeated = execute_again("w", to_step=1).get_result()

    assert result == replayed == repeated == ["w-1", "assigned", "6"]
    assert recorded("w")[:4] == [
        (1, "DBOS.forkWorkflow"),
        (2, "DBOS.getStatus"),
        (3, "DBOS.forkWorkflow"),
        (4, "DBOS.getStatus"),
    ]
    assert sorted(each.workflow_id for each in dbos.list_workflows(forked_from="source")) == ["assigned", "w-1"]


def test_a_step_does_not_fork(dbos: type[DBOS]) -> None:
    counted = Counted(dbos)

    @dbos.step()
    def step() -> None:
        with pytest.raises(AssertionError, match="cannot be forked from within a step: fork it from the workflow"):
            dbos.fork_workflow("source", 2)

    @dbos.workflow()
    def forks() -> None:
        step()

    dbos.launch()
    run("source", counted.workflow, 0)

    forks()

    assert dbos.list_workflows(forked_from="source") == []


@pytest.mark.parametrize("is_direct", [False, True], ids=["handle", "call"])
def test_a_fork_of_a_parent_keeps_its_children_or_asks_those_that_replace_them(
    dbos: type[DBOS], is_direct: bool
) -> None:
    begun: list[str | None] = []

    @dbos.workflow()
    def child(name: str) -> str:
        begun.append(dbos.workflow_id)
        return f"{name} of {dbos.workflow_id}"

    @dbos.step()
    def step() -> None: ...

    @dbos.workflow()
    def parent() -> list[str]:
        if is_direct:
            results = [child("a"), child("b")]
        else:
            handles = [dbos.start_workflow(child, name) for name in "ab"]
            results = [handle.get_result() for handle in handles]
        step()
        return results

    dbos.launch()
    original = run("p", parent)
    children = ["p-1", "p-3"] if is_direct else ["p-1", "p-2"]
    with SetWorkflowID("b2"):
        replacement = dbos.fork_workflow(children[1], 1)
    replacement.get_result()

    kept = dbos.fork_workflow("p", 5).get_result()
    replaced = dbos.fork_workflow("p", 5, replacement_children={children[1]: "b2", children[0]: "p-1"}).get_result()
    swapped = dbos.fork_workflow("p", 5, replacement_children=dict(zip(children, children[::-1], strict=True)))

    assert kept == original == [f"a of {children[0]}", f"b of {children[1]}"]
    assert replaced == [f"a of {children[0]}", "b of b2"]
    assert swapped.get_result() == original[::-1]
    assert begun == [*children, "b2"]


# -- events and streams ------------------------------------------------------------------------------------------------


def test_events_and_streams_are_those_of_the_steps_that_are_copied(dbos: type[DBOS]) -> None:
    """Step 2 of the source wrote, and was never recorded: the fork runs it, and it writes again."""
    counted = Counted(dbos)
    dbos.launch()
    run("source", counted.workflow, 0)
    change("DELETE FROM dbos.operation_outputs WHERE workflow_uuid = 'source' AND function_id = 2")
    for function_id, key, value in [(1, "a", "1"), (1, "b", "1"), (2, "a", "2"), (3, "a", "3"), (4, "b", "4")]:
        change(
            "INSERT INTO dbos.workflow_events_history (workflow_uuid, function_id, key, value, serialization) "
            "VALUES ('source', :function_id, :key, :value, 'json')",
            function_id=function_id,
            key=key,
            value=value,
        )
    for offset, function_id in enumerate([2, 1, 3, 2, 1, 4]):
        change(
            'INSERT INTO dbos.streams (workflow_uuid, key, value, "offset", function_id, serialization) '
            "VALUES ('source', 's', :value, :position, :function_id, 'json')",
            value=str(offset),
            position=offset,
            function_id=function_id,
        )

    with SetWorkflowID("fork"):
        dbos.fork_workflow("source", 4, queue_name="nobody listens")
    with SetWorkflowID("nothing"):
        dbos.fork_workflow("source", 1, queue_name="nobody listens")

    of_fork = "WHERE workflow_uuid = 'fork' ORDER BY 1, 2"
    assert rows(f"SELECT key, value, serialization FROM dbos.workflow_events {of_fork}") == [
        ("a", "3", "json"),
        ("b", "1", "json"),
    ]
    assert rows(f"SELECT function_id, key, value FROM dbos.workflow_events_history {of_fork}") == [
        (1, "a", "1"),
        (1, "b", "1"),
        (3, "a", "3"),
    ]
    assert rows(f'SELECT "offset", value, function_id FROM dbos.streams {of_fork}') == [
        (0, "1", 1),
        (1, "2", 3),
        (2, "4", 1),
    ]
    for table in ("workflow_events", "workflow_events_history", "streams", "operation_outputs"):
        assert rows(f"SELECT * FROM dbos.{table} WHERE workflow_uuid = 'nothing'") == []
