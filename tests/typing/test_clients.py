"""What a type checker sees of a client: its operations have parameters and results, though they are made from others.

``make check`` runs mypy and basedpyright over this file, and here the same code runs.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from datetime import datetime
from typing import Any, assert_type

import pytest
from sqlalchemy import create_engine

from dbos import (
    DBOS,
    DBOSClient,
    EnqueueOptions,
    Queue,
    SendMessage,
    WorkflowHandle,
    WorkflowHandleAsync,
    WorkflowSchedule,
    WorkflowStatus,
)

pytestmark = [pytest.mark.usefixtures("dbos"), pytest.mark.dbos_databases("sqlite")]

OPTIONS: EnqueueOptions = {"workflow_name": "unknown", "queue_name": "nowhere"}


def test_operations_of_a_client_know_what_they_take_and_return(dbos_database_url: str) -> None:
    DBOS.launch()

    with DBOSClient(system_database_url=dbos_database_url, lazy=True) as client:
        assert_type(client, DBOSClient)
        handle = client.enqueue(OPTIONS, 1, name="a")
        assert_type(handle, WorkflowHandle[Any])
        assert_type(client.retrieve_workflow(handle.workflow_id), WorkflowHandle[Any])
        assert_type(client.resume_workflows([handle.workflow_id], queue_name="nowhere"), list[WorkflowHandle[Any]])
        assert_type(client.list_workflows(status="ENQUEUED", limit=1), list[WorkflowStatus])
        assert_type(client.register_queue("mail", worker_concurrency=1), Queue)
        assert_type(client.retrieve_queue("mail"), Queue | None)
        assert_type(client.list_schedules(), list[WorkflowSchedule])
        assert_type(client.send_bulk([SendMessage(handle.workflow_id, 1)]), None)
        assert_type(client.get_all_events(handle.workflow_id), dict[str, Any])
        client.cancel_workflow(handle.workflow_id)
        assert_type(client.wait_first([handle]), WorkflowHandle[Any])
        for value in client.read_stream(handle.workflow_id, "missing"):
            assert_type(value, Any)
        engine = create_engine(dbos_database_url)
        with engine.begin() as connection:
            assert_type(client.enqueue_in_transaction(connection, OPTIONS, 1), WorkflowHandle[Any])
            assert_type(client.send_in_transaction(connection, handle.workflow_id, 1, "topic"), None)
        engine.dispose()
        with pytest.raises(TypeError):
            client.list_workflows(colour="red")  # type: ignore[call-arg]
        with pytest.raises(KeyError):
            client.enqueue({"workflow_name": "unknown"})  # type: ignore[typeddict-item]


async def test_what_a_client_awaits_is_known(dbos_database_url: str) -> None:
    DBOS.launch()

    async with DBOSClient(system_database_url=dbos_database_url) as client:
        handle = await client.enqueue_async(OPTIONS)
        assert_type(handle, WorkflowHandleAsync[Any])
        assert_type(await client.list_workflows_async(), list[WorkflowStatus])
        await client.create_schedule_async(schedule_name="daily", workflow_name="unknown", schedule="@daily")
        start, end = datetime(2026, 1, 1), datetime(2026, 1, 2)
        assert_type(client.backfill_schedule("daily", start, end, dry_run=True), list[datetime])
        await client.cancel_workflow_async(handle.workflow_id)
        assert_type(await client.wait_first_async([handle]), WorkflowHandleAsync[Any])
