"""Retrying: a failed workflow begun anew from where it failed."""

from __future__ import annotations

from typing import Any

import pytest

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSContextSetAuth, DBOSException, Queue, SetWorkflowID
from dbos._error import DBOSNonExistentWorkflowError, DBOSNotAuthorizedError
from tests.integration.histories import execute_again, recorded, row


def run(workflow_id: str, func: Any, *args: Any) -> Any:
    with SetWorkflowID(workflow_id):
        return func(*args)


class Shaky:
    """Steps that fail until they are mended, a child among them."""

    def __init__(self, dbos: type[DBOS]) -> None:
        self.calls: list[str] = []
        self.broken: set[str] = set()
        Queue("queue")

        @dbos.step(name="first")
        def first() -> str:
            return self.do("first")

        @dbos.step(name="second")
        def second() -> str:
            return self.do("second")

        @dbos.workflow(name="child")
        def child() -> str:
            return self.do("child")

        @dbos.step(name="clean_up")
        def clean_up() -> str:
            return self.do("clean_up")

        @dbos.workflow(name="shaky")
        def workflow() -> str:
            started = dbos.start_workflow(child)
            try:
                result = first() + second() + started.get_result()
            except ValueError:
                clean_up()
                raise
            return result + self.do("body")

        @dbos.workflow(name="empty")
        def empty() -> str:
            return self.do("body")

        self.workflow, self.empty = workflow, empty

    def do(self, name: str) -> str:
        self.calls.append(name)
        if name in self.broken:
            raise ValueError(name)
        return name[0]

    def fail(self, workflow_id: str, broken: str) -> None:
        self.broken = {broken}
        with pytest.raises(ValueError, match=broken):
            run(workflow_id, self.workflow)
        self.broken = set()
        self.calls.clear()


@pytest.mark.parametrize(
    ("broken", "executed"),
    [
        ("first", ["first", "second", "body"]),
        ("second", ["second", "body"]),
        ("child", ["child", "body"]),
        ("body", ["body"]),
    ],
)
def test_it_begins_where_it_failed_and_repeats_nothing_before(
    dbos: type[DBOS], broken: str, executed: list[str]
) -> None:
    shaky = Shaky(dbos)
    dbos.launch()
    shaky.fail("wf", broken)

    with SetWorkflowID("again"):
        handle = dbos.retry_workflow("wf")

    assert handle.get_result() == "fscb"
    assert handle.workflow_id == "again"
    assert shaky.calls == executed
    assert row("again").forked_from == "wf"
    assert row("wf").status == "ERROR"


@pytest.mark.parametrize(
    ("place", "executed"),
    [
        ({"from_last_failure": True}, ["second", "body"]),
        ({"from_last_step": True}, ["body"]),  # what failed is recorded as failed: it fails again
        ({"from_step": 2}, ["first", "second", "body"]),
        ({"from_step_name": "first"}, ["first", "second", "body"]),
    ],
    ids=str,
)
def test_it_begins_where_it_is_told_to(dbos: type[DBOS], place: dict[str, Any], executed: list[str]) -> None:
    shaky = Shaky(dbos)
    dbos.launch()
    shaky.fail("wf", "second")

    handle = dbos.retry_workflow("wf", **place)

    if "from_last_step" in place:
        with pytest.raises(ValueError, match="second"):
            handle.get_result()
        assert shaky.calls == ["clean_up"]
    else:
        assert handle.get_result() == "fscb"
        assert shaky.calls == executed


def test_several_are_retried_together_or_none(dbos: type[DBOS]) -> None:
    shaky = Shaky(dbos)
    dbos.launch()
    shaky.fail("a", "first")
    shaky.fail("b", "second")
    run("fine", shaky.workflow)
    before = len(dbos.list_workflows())

    with pytest.raises(DBOSNonExistentWorkflowError, match="unknown"):
        dbos.retry_workflows(["a", "unknown"])
    with pytest.raises(DBOSException, match="fine has not failed: its status is SUCCESS"):
        dbos.retry_workflows(["a", "fine"])
    unchanged = len(dbos.list_workflows())
    handles = dbos.retry_workflows(["a", "b"], timeout_seconds=0.5e3, queue_name="queue")

    assert unchanged == before
    assert [handle.get_result() for handle in handles] == ["fscb", "fscb"]
    assert [row(handle.workflow_id).forked_from for handle in handles] == ["a", "b"]
    assert {row(handle.workflow_id).workflow_timeout_ms for handle in handles} == {500_000}
    assert [
        (each["action"], each["workflow_id"], each["details"]["fork"]) for each in dbos.list_management_actions()
    ] == [("retry", "b", handles[1].workflow_id), ("retry", "a", handles[0].workflow_id)]


async def test_coroutines_and_clients_retry_too(dbos: type[DBOS], config: DBOSConfig) -> None:
    shaky = Shaky(dbos)
    dbos.launch()
    shaky.broken = {"body"}
    with SetWorkflowID("wf"), pytest.raises(ValueError, match="body"):
        await (await dbos.start_workflow_async(shaky.empty)).get_result()
    shaky.broken = set()

    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        handles = [await dbos.retry_workflow_async("wf"), await client.retry_workflow_async("wf")]
        handles += [*(await dbos.retry_workflows_async(["wf"])), *(await client.retry_workflows_async(["wf"]))]

        assert [await handle.get_result() for handle in handles] == ["b"] * 4


def test_in_a_workflow_retrying_is_a_step(dbos: type[DBOS]) -> None:
    shaky = Shaky(dbos)

    @dbos.workflow()
    def workflow() -> list[str]:
        return [handle.workflow_id for handle in dbos.retry_workflows(["a", "b"])]

    dbos.launch()
    shaky.fail("a", "first")
    shaky.fail("b", "second")
    ids = run("wf", workflow)
    [dbos.get_result(workflow_id) for workflow_id in ids]

    assert execute_again("wf").get_result() == ids
    assert recorded("wf") == [(1, "DBOS.retryWorkflow")]
    assert execute_again("wf", to_step=1).get_result() == ids  # the process died before it was recorded
    assert len(dbos.list_workflows(forked_from=["a", "b"])) == 2


def test_it_acts_for_the_user_of_its_source_and_whoever_retried_it_is_noted(dbos: type[DBOS]) -> None:
    is_broken = True

    @dbos.workflow()
    @dbos.required_roles(["admin"])
    def workflow() -> tuple[str | None, str | None]:
        if is_broken:
            raise ValueError("broken")
        return dbos.authenticated_user, dbos.assumed_role

    dbos.launch()
    with DBOSContextSetAuth("ada", ["admin"]), pytest.raises(ValueError, match="broken"):
        run("wf", workflow)
    with DBOSContextSetAuth("grace", ["operator"]), pytest.raises(DBOSNotAuthorizedError):
        run("refused", workflow)
    is_broken = False

    with DBOSContextSetAuth("grace", ["operator"]):
        retried, refused = dbos.retry_workflows(["wf", "refused"])

    assert retried.get_result() == ("ada", "admin")
    with pytest.raises(DBOSNotAuthorizedError):
        refused.get_result()
    assert {each["actor"] for each in dbos.list_management_actions(action="retry")} == {"grace"}


def test_what_cannot_be_retried_is_refused(dbos: type[DBOS]) -> None:
    shaky = Shaky(dbos)
    dbos.launch()
    shaky.fail("wf", "first")
    shaky.broken = {"body"}
    with pytest.raises(ValueError, match="body"):
        run("empty", shaky.empty)

    with pytest.raises(ValueError, match="At most one of from_last_failure"):
        dbos.retry_workflow("wf", from_last_step=True, from_step=0)
    with pytest.raises(DBOSException, match="Workflow wf has no step named 'third'"):
        dbos.retry_workflow("wf", from_step_name="third")
    with pytest.raises(DBOSException, match="Workflow empty has no steps"):
        dbos.retry_workflow("empty", from_last_step=True)
    with pytest.raises(DBOSException, match="Invalid from_step -1"):
        dbos.retry_workflow("wf", from_step=-1)
    for timeout_s in (0, -1, float("nan"), float("inf"), True):
        with pytest.raises(DBOSException, match="Invalid timeout_seconds"):
            dbos.fork_workflow("wf", 1, timeout_seconds=timeout_s)
