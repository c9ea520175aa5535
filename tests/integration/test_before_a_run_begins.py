"""Between the commit that makes a workflow this process' and its run: it is cancelled, or nothing comes of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, Queue, SetWorkflowID, SetWorkflowTimeout
from dbos._context import Context, current_context
from dbos._core import execute_in_background
from dbos._engine.claims import claim_by_id, claim_from_queue
from dbos._engine.flow import Commit, Flow, drive
from dbos._engine.run import Run
from dbos._engine.start import begin
from dbos._error import DBOSAwaitedWorkflowCancelledError
from tests.integration.histories import engine, eventually, row
from tests.integration.test_held_locks import held, on_postgres

Act = Callable[[], object]


def define(dbos: type[DBOS], calls: list[str]) -> Callable[[], str]:
    """A workflow, and a queue that this process does not listen to."""

    @dbos.step()
    def step() -> str:
        calls.append("step")
        return "done"

    @dbos.workflow(name="work")
    def workflow() -> str:
        calls.append("body")
        return step()

    Queue("q")
    dbos.listen_queues([])
    dbos.launch()
    return workflow


def flow_of(how: str, workflow: Callable[[], str]) -> Flow[Any]:
    """What makes a run of the workflow "wf"."""
    registry = engine().registry
    if how == "start":
        return begin(engine(), registry.workflows["work"], (), {}, current_context() or Context())
    DBOS.enqueue_workflow("q", workflow)
    return claim_from_queue(engine(), registry.queues["q"], 1) if how == "claim" else claim_by_id(engine(), "wf")


def drive_with(flow: Flow[Any], *, before: Act = lambda: None, after: Act = lambda: None) -> Run:
    """Run a flow, and do something before or after its first commit; returns the run that it makes."""

    def watched() -> Flow[Any]:
        has_committed, answer = False, None
        while True:
            try:
                effect = flow.send(answer)
            except StopIteration as end:
                return end.value
            if isinstance(effect, Commit) and not has_committed:
                has_committed = True
                before()
                answer = yield effect
                after()
            else:
                answer = yield effect

    result = drive(engine(), watched())
    run = result if isinstance(result, Run) else result.runs[0]
    assert isinstance(run, Run)
    return run


@pytest.mark.parametrize("how", ["start", "claim", "claim by id"])
def test_nothing_of_what_was_cancelled_before_there_was_a_run_is_executed(dbos: type[DBOS], how: str) -> None:
    """The body and its first step were: there was no run yet to be told, and later nobody told it."""
    calls: list[str] = []
    workflow = define(dbos, calls)

    with SetWorkflowID("wf"):
        run = drive_with(flow_of(how, workflow), after=lambda: dbos.cancel_workflow("wf"))
    execute_in_background(engine(), run)

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        dbos.retrieve_workflow("wf").get_result()
    eventually(lambda: not engine().runs.all())
    assert calls == []
    eventually(lambda: not engine().runs._expected)  # a claim of the dispatcher may be under way


def test_what_is_resumed_before_it_is_claimed_runs_although_it_was_cancelled(dbos: type[DBOS]) -> None:
    calls: list[str] = []
    workflow = define(dbos, calls)

    def cancel_and_resume() -> None:
        dbos.cancel_workflow("wf")
        dbos.resume_workflow("wf", queue_name="q")

    with SetWorkflowID("wf"):
        run = drive_with(flow_of("claim", workflow), before=cancel_and_resume)
    execute_in_background(engine(), run)

    assert dbos.retrieve_workflow("wf").get_result() == "done"


@pytest.mark.parametrize("how", ["claim", "claim by id"])
def test_what_was_claimed_and_cannot_be_read_is_in_its_queue_again_and_others_are_told(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    workflow, topics = define(dbos, []), list[str]()
    with SetWorkflowID("wf"):
        flow = flow_of(how, workflow)

    def fail(*_: object) -> None:
        raise LookupError

    monkeypatch.setattr(engine().db.operations, "history", fail)
    monkeypatch.setattr(engine().db, "publish", topics.append)
    with pytest.raises(LookupError):
        drive(engine(), flow)

    assert (row("wf").status, row("wf").queue_name, row("wf").recovery_attempts) == ("ENQUEUED", "q", 0)
    assert "queue" in topics
    assert not engine().runs.all()


def test_a_start_that_is_committed_after_it_was_given_back_is_given_back_all_the_same(
    dbos: type[DBOS], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is large, or that waits for a lock, and whose caller was cancelled meanwhile."""
    workflow, attempts = define(dbos, []), list[str]()
    give_back = engine().db.workflows.give_back

    def note(connection: Any, workflow_id: str, *arguments: Any) -> bool:
        attempts.append(workflow_id)
        return give_back(connection, workflow_id, *arguments)

    monkeypatch.setattr(engine().db.workflows, "give_back", note)
    with SetWorkflowID("wf"):
        flow = flow_of("start", workflow)
        effect = next(flow)
    assert isinstance(effect, Commit)
    [start] = effect.operations

    flow.close()
    eventually(lambda: attempts)
    engine().db.commit(start)

    assert dbos.retrieve_workflow("wf").get_result() == "done"
    assert row("wf").recovery_attempts == 1  # what is reconciled instead counts as attempted


@on_postgres
def test_what_is_overdue_when_it_is_claimed_waits_for_whoever_has_locked_it_and_keeps_nobody_waiting(
    dbos: type[DBOS], config: DBOSConfig
) -> None:
    calls: list[str] = []
    workflow = define(dbos, calls)
    lock = held(config, "SELECT 1 FROM dbos.workflow_status WHERE workflow_uuid = 'wf' FOR UPDATE")

    with ExitStack() as stack:
        with SetWorkflowID("wf"), SetWorkflowTimeout(0.001):
            run = drive_with(flow_of("claim", workflow), after=lambda: stack.enter_context(lock))
        execute_in_background(engine(), run)
        eventually(lambda: run.is_waiting)
        while_locked = row("wf").status

    eventually(lambda: row("wf").status == "CANCELLED")
    eventually(lambda: not engine().runs.all())
    assert (while_locked, calls) == ("PENDING", [])
