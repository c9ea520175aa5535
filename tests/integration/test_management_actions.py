"""The account of management: what was done, to what, by whom and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSContextSetAuth, ManagementAction, Queue, SetWorkflowID
from dbos._operations.auditing import action_of, audited
from dbos._sysdb.connection import Connection
from tests.integration.histories import engine

NOWHERE: Any = {"workflow_name": "workflow", "queue_name": "nowhere"}


def brief(actions: list[ManagementAction]) -> list[tuple[str, str | None]]:
    """What was done to what, the oldest first."""
    return [(each["action"], each["workflow_id"] or each["subject"]) for each in reversed(actions)]


def enqueue(dbos: type[DBOS], *workflow_ids: str, **options: Any) -> None:
    for workflow_id in workflow_ids:
        given: Any = {**NOWHERE, **options, "workflow_id": workflow_id}
        dbos.enqueue_workflow_with_options(given)


def test_what_is_done_to_workflows_is_noted_once_it_has_an_effect(dbos: type[DBOS]) -> None:
    dbos.launch()
    enqueue(dbos, "a", "b")
    enqueue(dbos, "later", delay_seconds=1000)
    before_ms = engine().db.now_ms()

    for _ in range(2):
        dbos.cancel_workflows(["a", "b", "unknown"])
    dbos.resume_workflow("a", queue_name="elsewhere")
    with SetWorkflowID("fork"):
        dbos.fork_workflow("b", 1, queue_name="elsewhere")
    dbos.set_workflow_delay("later", delay_until_epoch_ms=2**50)
    dbos.set_workflow_delay("a", delay_seconds=1)  # which is not delayed
    for _ in range(2):
        dbos.update_workflow_attributes("a", {"x": 1})
        dbos.delete_workflow("b")

    actions = dbos.list_management_actions()
    assert brief(actions) == [
        ("cancel", "a"),
        ("cancel", "b"),
        ("resume", "a"),
        ("fork", "b"),
        ("set_delay", "later"),
        ("update_attributes", "a"),
        ("delete", "b"),
    ]
    assert [each["details"] for each in reversed(actions)] == [
        {},
        {},
        {"queue_name": "elsewhere"},
        {"fork": "fork", "start_step": 1},
        {"delay_until_epoch_ms": 2**50},
        {},
        {},
    ]
    assert {(each["actor"], each["source"]) for each in actions} == {(None, engine().executor_id)}
    assert all(before_ms <= each["occurred_at"] <= engine().db.now_ms() for each in actions)


def test_who_did_it_is_noted_wherever_it_is_done(dbos: type[DBOS], config: DBOSConfig) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.cancel_workflow("c")

    dbos.launch()
    enqueue(dbos, "a", "b", "c", "d")
    url = config["system_database_url"]

    with DBOSContextSetAuth("alice", ["admin"]):
        dbos.cancel_workflow("a")
        with DBOSClient(system_database_url=url, application_name="shop") as client:
            client.cancel_workflow("b")
        with SetWorkflowID("wf"):
            workflow()
    with DBOSClient(system_database_url=url) as client:
        client.cancel_workflow("d")
        noted = client.list_management_actions()

    executor = engine().executor_id
    assert [(each["workflow_id"], each["actor"], each["source"], each["details"]) for each in reversed(noted)] == [
        ("a", "alice", executor, {}),
        ("b", "alice", "shop", {}),
        ("c", "alice", executor, {"by_workflow": "wf"}),
        ("d", None, "client", {}),
    ]


def test_what_is_done_to_queues_and_schedules_is_noted(dbos: type[DBOS]) -> None:
    @dbos.workflow(name="tick")
    def tick(scheduled: datetime, context: Any) -> None: ...

    dbos.launch()
    given: Any = {"workflow_fn": tick, "schedule": "0 0 1 1 *"}
    yearly: Any = {"schedule_name": "yearly", **given}

    for _ in range(2):  # as each launch of an application does
        queue = dbos.register_queue("mail", concurrency=1)
        dbos.apply_schedules([yearly])
    queue.set_concurrency(2)
    queue.pause()
    queue.resume()
    dbos.create_schedule(schedule_name="other", **given)
    dbos.update_schedule("other", max_runs=5)
    for _ in range(2):
        dbos.pause_schedule("other", reason="holidays")
        dbos.resume_schedule("unknown")
    dbos.resume_schedule("other")
    triggered = dbos.trigger_schedule("other").workflow_id
    now = datetime.now(UTC)
    [filled] = dbos.backfill_schedule("other", now - timedelta(days=366), now)
    for _ in range(2):
        dbos.delete_schedule("other")
        dbos.delete_queue("mail")
    dbos.apply_schedules([], prune=True)

    actions = dbos.list_management_actions()
    assert brief(actions) == [
        ("register_queue", "mail"),
        ("create_schedule", "yearly"),
        ("change_queue", "mail"),
        ("pause_queue", "mail"),
        ("resume_queue", "mail"),
        ("create_schedule", "other"),
        ("update_schedule", "other"),
        ("pause_schedule", "other"),
        ("resume_schedule", "other"),
        ("trigger_schedule", triggered),
        ("backfill_schedule", filled.workflow_id),
        ("delete_schedule", "other"),
        ("delete_queue", "mail"),
        ("delete_schedule", "yearly"),
    ]
    assert [each["details"] for each in reversed(actions)][2:7] == [
        {"changed": ["concurrency"]},
        {"changed": ["is_paused"]},
        {"changed": ["is_paused"]},
        {},
        {"changed": ["max_runs"]},
    ]
    assert brief(dbos.list_management_actions(subject="other", action=["trigger_schedule"])) == [
        ("trigger_schedule", triggered)
    ]


def test_what_is_done_to_versions_and_executors_is_noted(dbos: type[DBOS]) -> None:
    dbos.launch()
    enqueue(dbos, "old", app_version="0")
    instance = engine().instance_id

    dbos.set_latest_application_version("unknown")
    dbos.set_latest_application_version("test")
    dbos.drain_executor(instance)
    dbos.undrain_executor(instance)
    adopted = dbos.adopt_application_version("0")

    actions = dbos.list_management_actions()
    assert adopted == 1
    assert brief(actions) == [
        ("set_latest_version", "test"),
        ("drain_executor", instance),
        ("undrain_executor", instance),
        ("adopt_version", "0"),
    ]
    assert actions[0]["details"] == {"by_version": "test", "workflows": 1}


async def test_they_are_found_by_what_they_are_about_the_newest_first(dbos: type[DBOS]) -> None:
    dbos.launch()
    enqueue(dbos, *(f"w{number}" for number in range(5)))
    with DBOSContextSetAuth("alice", []):
        await dbos.cancel_workflows_async(["w0", "w1"])
    for number in range(5):
        await dbos.resume_workflow_async(f"w{number}", queue_name="nowhere")
    middle = (await dbos.list_management_actions_async(workflow_id="w2"))[0]["occurred_at"]
    time = datetime.fromtimestamp(middle / 1000, UTC).isoformat()

    async def found(**given: Any) -> list[str | None]:
        return [each["workflow_id"] for each in await dbos.list_management_actions_async(**given)]

    assert await found(limit=3) == ["w4", "w3", "w2"]
    assert len(await found(limit=0)) == len(await found(limit=None)) == 7
    assert await found(action=["cancel", "fork"]) == ["w1", "w0"]
    assert await found(action="resume", workflow_id="w1") == ["w1"]
    assert await found(actor="alice", workflow_id="w0") == ["w0"]
    assert "w4" in await found(start_time=time)
    assert "w0" in await found(end_time=time, action="cancel")
    assert await found(end_time="2000-01-01T00:00:00Z") == []
    with pytest.raises(ValueError, match="start_time"):
        await dbos.list_management_actions_async(start_time="yesterday")


def test_an_action_whose_answer_was_lost_is_noted_once_and_one_that_is_rolled_back_never(dbos: type[DBOS]) -> None:
    dbos.launch()
    db = engine().db

    def touch(connection: Connection) -> bool:
        return True

    def fail(connection: Connection) -> bool:
        noted(connection)
        raise ZeroDivisionError

    noted = audited(engine(), action_of(engine(), "touch"), touch, subject="thing")
    for _ in range(2):
        db.change(noted)
    noted = audited(engine(), action_of(engine(), "touch"), touch, subject="other thing")
    with pytest.raises(ZeroDivisionError):
        db.change(fail)

    assert brief(dbos.list_management_actions()) == [("touch", "thing")]


def test_in_a_workflow_the_list_is_recorded(dbos: type[DBOS]) -> None:
    queue = Queue("queue")

    @dbos.workflow()
    def workflow() -> int:
        before = len(dbos.list_management_actions())
        dbos.update_workflow_attributes("wf", {"a": 1})
        return before

    dbos.launch()
    with SetWorkflowID("wf"):
        assert queue.enqueue(workflow).get_result() == 0

    assert [step["function_name"] for step in dbos.list_workflow_steps("wf")] == [
        "DBOS.listManagementActions",
        "DBOS.updateWorkflowAttributes",
    ]
