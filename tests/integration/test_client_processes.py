"""A client in one process and an application in another, which is told of everything and looks for nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dbos import DBOSClient, EnqueueOptions
from dbos._services import notifier

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
ADD: EnqueueOptions = {"workflow_name": "add", "queue_name": "work"}


@pytest.fixture
def client(dbos_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DBOSClient]:
    """A client whose handles are woken by nothing but what they are told."""
    monkeypatch.setattr(notifier, "INTERVAL_S", 3600.0)
    command = [sys.executable, "-m", "tests.integration.client_worker", dbos_database_url]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        with DBOSClient(system_database_url=dbos_database_url) as client:
            assert worker.stdout.readline() == "ready\n"
            yield client
            worker.stdin.close()
            assert worker.wait(PATIENCE_S) == 0


async def test_an_idle_application_begins_at_once_and_the_client_hears_of_the_end(
    client: DBOSClient, dbos_database_url: str
) -> None:
    engine = sa.create_engine(dbos_database_url.replace("postgresql://", "postgresql+psycopg://"))

    first = client.enqueue(ADD, 1, b=1)
    second = await client.enqueue_async(ADD, 2)
    with engine.begin() as connection:
        third = client.enqueue_in_transaction(connection, ADD, 3)
    fourth = client.enqueue({**ADD, "delay_seconds": 0.05}, 4)

    script = (
        "import dbos, sys; client = dbos.DBOSClient(system_database_url=sys.argv[1]); "
        "client.enqueue({'workflow_name': 'add', 'queue_name': 'work', 'workflow_id': 'script'}, 6)"
    )
    subprocess.run([sys.executable, "-c", script, dbos_database_url], check=True, timeout=PATIENCE_S)
    late = client.enqueue({**ADD, "delay_seconds": 3600}, 5)

    assert (first.get_result(), await second.get_result()) == (2, 3)
    assert (third.get_result(), fourth.get_result()) == (4, 5)
    assert client.retrieve_workflow("script").get_result() == 7  # though it did not say goodbye
    client.cancel_workflow(late.workflow_id)
    assert client.resume_workflow(late.workflow_id, queue_name="work").get_result() == 6
    executor = client.list_executors()[0]
    assert (executor["is_current"], executor["application_version"]) == (False, "test")
    engine.dispose()
