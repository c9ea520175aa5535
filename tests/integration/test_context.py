"""What a call is made in: the id and timeout asked for the next start, what a running function can ask about itself."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dbos import DBOS, DBOSContextEnsure, DBOSException, SetWorkflowID, SetWorkflowTimeout, WorkflowHandle
from dbos._context import current_context
from dbos._error import (
    DBOSAwaitedWorkflowCancelledError,
    DBOSConflictingWorkflowError,
    MaxRecoveryAttemptsExceededError,
)
from dbos._process import process as _process
from tests.integration.crashes import Crash, recover


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the library logs; its logger does not propagate once it was configured."""
    logger = logging.getLogger("dbos")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def set_row(workflow_id: str, assignment: str) -> None:
    """Change a workflow's row by hand."""
    db = _process.registry.engine_for("test").db

    def change(connection: Any) -> None:
        connection.run(f"UPDATE dbos.workflow_status SET {assignment} WHERE workflow_uuid = :id", id=workflow_id)

    db.change(change)


# -- SetWorkflowID -----------------------------------------------------------------------------------------------------


def test_only_the_first_workflow_of_the_block_gets_the_id(dbos: type[DBOS], log: pytest.LogCaptureFixture) -> None:
    @dbos.workflow()
    def workflow() -> str | None:
        return dbos.workflow_id

    dbos.launch()

    with SetWorkflowID("chosen") as block:
        first = workflow()
        quiet = log.text
        second = dbos.start_workflow(workflow).get_result()

    assert block.wfid == first == "chosen"
    assert second is not None
    assert len(second) == 36
    assert quiet == ""
    assert "Multiple workflows started in the same SetWorkflowID block" in log.text


@pytest.mark.parametrize("workflow_id", ["", "  ", "\t\n", "nul\0", None, 5])
def test_a_blank_workflow_id_is_refused(workflow_id: Any) -> None:
    with pytest.raises(DBOSException, match="Invalid workflow ID"):
        SetWorkflowID(workflow_id)


def test_ids_can_be_nested_and_used_again(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> str | None:
        return dbos.workflow_id

    dbos.launch()

    block = SetWorkflowID("outer")
    with block:
        with SetWorkflowID("inner"):
            inner = workflow()
        outer = workflow()
    with block:
        again = workflow()

    assert [inner, outer, again] == ["inner", "outer", "outer"]


def test_a_bare_step_does_not_take_the_id(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> None: ...

    @dbos.workflow()
    def workflow() -> str | None:
        return dbos.workflow_id

    dbos.launch()

    with SetWorkflowID("chosen"):
        step()
        result = workflow()

    assert result == "chosen"


def test_children_are_named_after_their_parent_unless_an_id_is_set(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> None: ...

    @dbos.workflow()
    def grandchild() -> str | None:
        return dbos.workflow_id

    @dbos.workflow()
    def child() -> list[str | None]:
        return [dbos.workflow_id, grandchild()]

    @dbos.workflow()
    def parent() -> Any:
        step()
        started: WorkflowHandle[list[str | None]] = dbos.start_workflow(child)
        with SetWorkflowID("chosen"):
            chosen = child()
        return [*started.get_result(), *chosen]

    dbos.launch()

    with SetWorkflowID("parent"):
        results = parent()

    assert results == ["parent-2", "parent-2-1", "chosen", "chosen-1"]
    assert [step["function_id"] for step in dbos.list_workflow_steps("parent")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("start", ["call", "start"])
def test_an_id_that_was_taken_before_a_crash_is_not_taken_again_after_it(dbos: type[DBOS], start: str) -> None:
    """The second start of a block got the first one's id on recovery, and so its result."""
    runs = []

    @dbos.workflow()
    def child(value: str) -> str:
        return value

    def begin(value: str) -> str:
        return child(value) if start == "call" else dbos.start_workflow(child, value).get_result()

    @dbos.workflow()
    def parent() -> list[str]:
        with SetWorkflowID("chosen"):
            first = begin("first")
            runs.append(1)
            if len(runs) == 1:
                raise Crash
            return [first, begin("second")]

    dbos.launch()

    with SetWorkflowID("parent"), pytest.raises(Crash):
        parent()

    assert recover(dbos).get_result() == ["first", "second"]


async def test_tasks_do_not_see_each_others_ids(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> str | None:
        return dbos.workflow_id

    dbos.launch()

    async def run(workflow_id: str) -> str | None:
        with SetWorkflowID(workflow_id):
            await asyncio.sleep(0)
            return await workflow()

    ids = await asyncio.gather(run("a"), run("b"), run("c"))

    assert list(ids) == ["a", "b", "c"]
    assert current_context() is None


# -- an id that exists -------------------------------------------------------------------------------------------------


def test_a_finished_workflow_is_not_run_again(dbos: type[DBOS]) -> None:
    calls = []

    @dbos.workflow()
    def workflow(value: int) -> int:
        calls.append(value)
        return value

    dbos.launch()

    with SetWorkflowID("once"):
        first = workflow(1)
    with SetWorkflowID("once"):
        second = workflow(2)
    with SetWorkflowID("once"):
        third = dbos.start_workflow(workflow, 3)

    assert (first, second, third.get_result(), calls) == (1, 1, 1, [1])
    assert third.get_status().recovery_attempts == 1


def test_a_failed_workflow_raises_what_it_raised_and_is_not_run_again(dbos: type[DBOS]) -> None:
    calls = []

    @dbos.workflow()
    def workflow(value: int) -> None:
        calls.append(value)
        raise ValueError(f"failed with {value}")

    dbos.launch()

    for attempt in (1, 2):
        with SetWorkflowID("once"), pytest.raises(ValueError, match="failed with 1"):
            workflow(attempt)
    with SetWorkflowID("once"):
        handle = dbos.start_workflow(workflow, 3)
    with pytest.raises(ValueError, match="failed with 1"):
        handle.get_result()
    assert calls == [1]


def test_a_running_workflow_is_awaited_instead_of_run_again(dbos: type[DBOS]) -> None:
    calls = []
    started, release = threading.Event(), threading.Event()

    @dbos.workflow()
    def workflow(value: int) -> int:
        calls.append(value)
        started.set()
        release.wait(30)
        return value

    dbos.launch()

    with SetWorkflowID("once"):
        first = dbos.start_workflow(workflow, 1)
    started.wait(30)
    with SetWorkflowID("once"):
        second = dbos.start_workflow(workflow, 2)
    release.set()

    assert (first.get_result(), second.get_result(), calls) == (1, 1, [1])


def test_a_cancelled_workflow_stays_cancelled(dbos: type[DBOS]) -> None:
    calls = []

    @dbos.workflow()
    def workflow() -> None:
        calls.append(1)
        raise Crash

    dbos.launch()
    with SetWorkflowID("once"), pytest.raises(Crash):
        workflow()
    dbos.cancel_workflow("once")

    with SetWorkflowID("once"), pytest.raises(DBOSAwaitedWorkflowCancelledError):
        workflow()
    with SetWorkflowID("once"):
        handle = dbos.start_workflow(workflow)
    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        handle.get_result()
    assert calls == [1]


def test_a_workflow_that_was_given_up_is_not_started_again(dbos: type[DBOS]) -> None:
    calls = []

    @dbos.workflow(max_recovery_attempts=1)
    def workflow() -> None:
        calls.append(1)
        raise Crash

    dbos.launch()
    with SetWorkflowID("once"), pytest.raises(Crash):
        workflow()
    set_row("once", "status = 'MAX_RECOVERY_ATTEMPTS_EXCEEDED'")

    with SetWorkflowID("once"), pytest.raises(MaxRecoveryAttemptsExceededError, match="maximum of 1"):
        workflow()
    with SetWorkflowID("once"), pytest.raises(MaxRecoveryAttemptsExceededError):
        dbos.start_workflow(workflow)
    assert calls == [1]


def test_an_id_belongs_to_one_function(dbos: type[DBOS]) -> None:
    @dbos.workflow(name="first")
    def first() -> None: ...

    @dbos.workflow(name="second")
    def second() -> None: ...

    dbos.launch()
    with SetWorkflowID("once"):
        first()

    with (
        SetWorkflowID("once"),
        pytest.raises(DBOSConflictingWorkflowError, match=r"different function name: first, .* is: second"),
    ):
        second()
    with SetWorkflowID("once"), pytest.raises(DBOSConflictingWorkflowError):
        dbos.start_workflow(second)


# -- SetWorkflowTimeout ------------------------------------------------------------------------------------------------


def timeout_of(workflow_id: str) -> tuple[int | None, bool]:
    """The timeout in a workflow's row, and whether it has a deadline."""
    status = DBOS.get_workflow_status(workflow_id)
    assert status is not None
    return status.workflow_timeout_ms, status.workflow_deadline_epoch_ms is not None


def deadline_of(workflow_id: str) -> int | None:
    status = DBOS.get_workflow_status(workflow_id)
    assert status is not None
    return status.workflow_deadline_epoch_ms


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("inf")])
def test_a_timeout_that_cannot_be_kept_is_refused(timeout: float) -> None:
    with pytest.raises(Exception, match=f"Invalid workflow timeout {timeout}. Timeouts must be positive."):
        SetWorkflowTimeout(timeout)


def test_every_workflow_of_the_block_has_the_timeout(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> str | None:
        return dbos.workflow_id

    dbos.launch()

    with SetWorkflowTimeout(60.5):
        first = workflow()
        second = dbos.start_workflow(workflow).get_result()
        with SetWorkflowTimeout(None):
            without = workflow()
        with SetWorkflowTimeout(0):
            zero = workflow()
        with SetWorkflowTimeout(30):
            nested = workflow()
        restored = workflow()
    outside = workflow()

    timeouts = [timeout_of(id) for id in (first, second, without, zero, nested, restored, outside) if id]
    assert timeouts == [
        (60500, True),
        (60500, True),
        (None, False),
        (None, False),
        (30000, True),
        (60500, True),
        (None, False),
    ]


def test_a_child_inherits_the_deadline_unless_it_is_freed_from_it(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def child() -> str | None:
        return dbos.workflow_id

    @dbos.workflow()
    def parent() -> None:
        child()
        dbos.start_workflow(child).get_result()
        with SetWorkflowTimeout(None):
            child()
        with SetWorkflowTimeout(0):
            child()
        with SetWorkflowTimeout(600):
            child()

    dbos.launch()

    with SetWorkflowTimeout(60), SetWorkflowID("parent"):
        parent()

    inherited = deadline_of("parent")
    assert inherited is not None
    assert timeout_of("parent") == (60000, True)
    assert [timeout_of(f"parent-{n}") for n in (1, 3, 5, 7, 9)] == [
        (None, True),
        (None, True),
        (None, False),
        (None, False),
        (600000, True),
    ]
    assert deadline_of("parent-1") == deadline_of("parent-3") == inherited


def test_a_workflow_that_exceeds_its_timeout_is_cancelled(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.sleep(600)

    dbos.launch()

    with SetWorkflowID("late"), SetWorkflowTimeout(0.05), pytest.raises(DBOSAwaitedWorkflowCancelledError):
        workflow()

    status = dbos.get_workflow_status("late")
    assert status is not None
    assert status.status == "CANCELLED"


def test_recovery_keeps_the_deadline(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        raise Crash

    dbos.launch()
    with SetWorkflowID("late"), SetWorkflowTimeout(600), pytest.raises(Crash):
        workflow()
    set_row("late", "workflow_deadline_epoch_ms = 1")

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        recover(dbos).get_result()
    assert timeout_of("late") == (600000, True)


# -- what a running function can ask -----------------------------------------------------------------------------------


def test_outside_of_a_context_there_is_nothing_to_ask(dbos: type[DBOS]) -> None:
    assert dbos.workflow_id is None
    assert dbos.step_id is None
    assert dbos.step_status is None
    assert dbos.executor_id == "local"
    assert dbos.application_version == "test"
    for ask in ("sql_session", "authenticated_user", "authenticated_roles", "assumed_role"):
        with pytest.raises(AssertionError):
            getattr(dbos, ask)
    with DBOSContextEnsure():
        assert (dbos.authenticated_user, dbos.authenticated_roles, dbos.assumed_role) == (None, None, None)
        with pytest.raises(AssertionError, match="only available within a transaction"):
            _ = dbos.sql_session


def test_functions_know_where_they_are(dbos: type[DBOS]) -> None:
    def where() -> Any:
        status = dbos.step_status
        attempt = None if status is None else (status.step_id, status.current_attempt, status.max_attempts)
        return dbos.workflow_id, dbos.step_id, attempt

    @dbos.step()
    def step() -> Any:
        return where()

    @dbos.step(retries_allowed=True, max_attempts=5)
    def retried() -> Any:
        return where()

    @dbos.transaction()
    def transaction() -> Any:
        assert dbos.sql_session is not None
        return where()

    @dbos.workflow()
    def workflow() -> Any:
        return [where(), step(), retried(), transaction(), where()]

    dbos.launch()

    with SetWorkflowID("here"):
        places = workflow()

    assert places == [
        ("here", None, None),
        ("here", 1, (1, None, None)),
        ("here", 2, (2, 0, 5)),
        ("here", 3, (3, None, None)),
        ("here", None, None),
    ]


def test_the_properties_also_work_on_the_object(dbos: type[DBOS], config: Any) -> None:
    instance = dbos(config=config)

    @dbos.workflow()
    def workflow() -> str | None:
        return instance.workflow_id

    dbos.launch()

    with SetWorkflowID("here"):
        assert workflow() == "here"
    assert instance.application_version == "test"
    assert instance.logger is dbos.logger is logging.getLogger("dbos")


def test_identity_without_a_dbos_object_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    DBOS.destroy(destroy_registry=True)
    monkeypatch.setenv("DBOS__APPVERSION", "v7")
    monkeypatch.setenv("DBOS__VMID", "machine")

    assert (DBOS.application_version, DBOS.executor_id) == ("v7", "machine")

    monkeypatch.delenv("DBOS__APPVERSION")
    monkeypatch.delenv("DBOS__VMID")

    assert (DBOS.application_version, DBOS.executor_id) == ("", "local")
