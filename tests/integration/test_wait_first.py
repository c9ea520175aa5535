"""Waiting for the first of several workflows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dbos import DBOS, DBOSClient, DBOSConfig, Queue, SetWorkflowID, WorkflowHandle
from dbos._error import DBOSAwaitedWorkflowCancelledError, DBOSNonExistentWorkflowError
from tests.integration.histories import PATIENCE_S, engine, eventually, execute_again, recorded, steps


class Racers:
    """Workflows that end when they are told to."""

    def __init__(self, dbos: type[DBOS]) -> None:
        self._dbos = dbos
        self._flags = {name: threading.Event() for name in "abc"}
        Queue("racers")

        @dbos.workflow(name="race")
        def race(name: str) -> str:
            assert self._flags[name].wait(PATIENCE_S)
            if name == "c":
                raise ValueError(name)
            return name

        self.workflow = race

    def start(self, names: str) -> list[WorkflowHandle[str]]:
        handles = []
        for name in names:
            with SetWorkflowID(name):
                handles.append(self._dbos.start_workflow(self.workflow, name))
        return handles

    def end(self, names: str = "abc") -> None:
        for name in names:
            self._flags[name].set()


@pytest.fixture
def racers(dbos: type[DBOS]) -> Iterator[Racers]:
    racers = Racers(dbos)
    yield racers
    racers.end()


def test_the_handle_of_the_first_is_returned_however_it_ended(dbos: type[DBOS], racers: Racers) -> None:
    dbos.launch()
    a, b, c = racers.start("abc")
    handles = [a, b, c, dbos.retrieve_workflow("never", existing_workflow=False)]

    with ThreadPoolExecutor() as threads:
        wait = threads.submit(dbos.wait_first, handles)
        eventually(lambda: len(engine().db.wakeups.keys()) == 4)
        racers.end("c")
        first = wait.result(PATIENCE_S)
    dbos.cancel_workflow("b")
    racers.end("a")
    a.get_result()

    assert first is c
    assert dbos.wait_first([a, b]) is b  # which was the earlier
    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        b.get_result()


async def test_coroutines_and_clients_wait_too(dbos: type[DBOS], config: DBOSConfig, racers: Racers) -> None:
    dbos.launch()
    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        for name in "ab":
            await client.enqueue_async({"workflow_name": "race", "queue_name": "racers", "workflow_id": name}, name)
        theirs = [await client.retrieve_workflow_async(name) for name in "ab"]
        ours = [await dbos.retrieve_workflow_async(name) for name in "ab"]

        racers.end("b")

        assert await client.wait_first_async(theirs) is theirs[1]
        assert await dbos.wait_first_async(ours, polling_interval_sec=0.5) is ours[1]
        assert await ours[1].get_result() == "b"
        assert client.wait_first([client.retrieve_workflow("b")]).get_result() == "b"


def test_in_a_workflow_the_first_is_recorded(dbos: type[DBOS], racers: Racers) -> None:
    @dbos.workflow()
    def workflow() -> str:
        handles: list[WorkflowHandle[Any]] = racers.start("ab")
        return dbos.wait_first(handles).workflow_id

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)
    racers.end("b")
    first = handle.get_result()
    racers.end("a")
    dbos.get_result("a")

    assert first == "b"
    assert execute_again("wf", to_step=4).get_result() == "b"
    assert recorded("wf")[2] == (3, "DBOS.waitFirst")
    assert steps("wf")[2].output == '"b"'


def test_a_workflow_that_is_cancelled_waits_no_longer(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        dbos.wait_first([dbos.retrieve_workflow("never", existing_workflow=False)])

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)
    eventually(lambda: engine().db.wakeups.keys())

    dbos.cancel_workflow("wf")

    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        handle.get_result()
    eventually(lambda: engine().runs.get("wf") is None)


def test_what_nobody_can_wait_for_is_refused(dbos: type[DBOS]) -> None:
    dbos.launch()
    handle = dbos.retrieve_workflow("wf", existing_workflow=False)

    with pytest.raises(ValueError, match="handles must not be empty"):
        dbos.wait_first([])
    with pytest.raises(ValueError, match="handles must not contain duplicate workflow IDs"):
        dbos.wait_first([handle, dbos.retrieve_workflow("wf", existing_workflow=False)])
    with pytest.raises(DBOSNonExistentWorkflowError):
        handle.get_status()
