"""Counting workflows, by what they have in common; and what was begun and done in a period."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dbos import DBOS, DBOSClient, DBOSConfig, SetWorkflowID
from dbos._error import DBOSQueryTimeoutError
from tests.integration.histories import change, recorded

START_MS = 1_700_000_000_000

# Many more workflows, without running them.
FILL = """
INSERT INTO dbos.workflow_status (workflow_uuid, status, name, created_at, updated_at)
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
SELECT 'many' || i, 'SUCCESS', 'many', i, i FROM n
"""


def at(plus_ms: int) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=START_MS + plus_ms)).isoformat()


@pytest.fixture
def counted(dbos: type[DBOS]) -> type[DBOS]:
    """Workflows ``0`` to ``4``, a second apart, with a step each; two of them fail."""

    @dbos.step(name="step")
    def step() -> None:
        return None

    @dbos.workflow(name="even")
    def even() -> None:
        step()

    @dbos.workflow(name="odd")
    def odd() -> None:
        step()
        raise ValueError

    dbos.launch()
    for number in range(5):
        with SetWorkflowID(str(number)):
            if number % 2:
                with pytest.raises(ValueError):  # noqa: PT011  # its own
                    odd()
            else:
                even()
        times = {"at": START_MS + number * 1000, "id": str(number)}
        change("UPDATE dbos.workflow_status SET created_at = :at WHERE workflow_uuid = :id", **times)
        change("UPDATE dbos.operation_outputs SET completed_at_epoch_ms = :at WHERE workflow_uuid = :id", **times)
    change("UPDATE dbos.workflow_status SET queue_name = 'mail', executor_id = 'remote' WHERE workflow_uuid = '4'")
    return dbos


@pytest.fixture(params=["application", "client"])
def anyone(request: pytest.FixtureRequest, counted: type[DBOS], config: DBOSConfig) -> Iterator[Any]:
    """Whoever may ask."""
    if request.param == "application":
        yield counted
        return
    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        yield client


def test_workflows_are_counted_by_what_they_have_in_common(anyone: Any) -> None:
    assert anyone.get_workflow_aggregates(group_by_status=True) == [
        {"group": {"status": "SUCCESS"}, "count": 3},
        {"group": {"status": "ERROR"}, "count": 2},
    ]
    assert anyone.get_workflow_aggregates(
        group_by_name=True, group_by_queue_name=True, group_by_executor_id=True, start_time=at(2000)
    ) == [
        {"group": {"name": "even", "queue_name": None, "executor_id": "local"}, "count": 1},
        {"group": {"name": "even", "queue_name": "mail", "executor_id": "remote"}, "count": 1},
        {"group": {"name": "odd", "queue_name": None, "executor_id": "local"}, "count": 1},
    ]
    assert anyone.get_workflow_aggregates(
        group_by_application_version=True, group_by_application_name=True, group_by_schedule_name=True
    ) == [
        {
            "group": {"application_version": "test", "application_name": "test-app", "schedule_name": None},
            "count": 5,
        }
    ]
    assert anyone.get_workflow_aggregates(group_by_name=True, status="CANCELLED") == []


def test_workflows_are_counted_with_the_filters_of_a_list(anyone: Any) -> None:
    assert anyone.count_workflows() == 5
    assert anyone.count_workflows(status="ERROR", end_time=at(1000)) == 1
    assert anyone.count_workflows(workflow_id_prefix=["1", "2"], has_parent=False) == 2
    assert anyone.count_workflows(name="unknown") == 0


def test_a_period_has_its_beginning_and_not_its_end(anyone: Any) -> None:
    first, second = anyone.get_metrics(at(0), at(3000)), anyone.get_metrics(at(3000), at(9000))

    assert first == [
        {"metric_type": "step_count", "metric_name": "step", "value": 3},
        {"metric_type": "workflow_count", "metric_name": "even", "value": 2},
        {"metric_type": "workflow_count", "metric_name": "odd", "value": 1},
    ]
    assert [row["value"] for row in second] == [2, 1, 1]
    assert anyone.get_metrics(at(9000), at(0)) == []


def test_what_cannot_be_counted_is_refused(counted: type[DBOS]) -> None:
    with pytest.raises(ValueError, match="at least one of group_by_status, group_by_name"):
        counted.get_workflow_aggregates()
    with pytest.raises(TypeError, match="There is no filter 'limit'"):
        counted.get_workflow_aggregates(group_by_name=True, limit=1)  # type: ignore[call-arg]  # that is tested
    with pytest.raises(ValueError, match="start_time is a time in ISO 8601"):
        counted.get_metrics("yesterday", at(0))
    for timeout_seconds in (-1, float("nan"), True):
        with pytest.raises(ValueError, match="timeout_seconds is a number of seconds"):
            counted.count_workflows(timeout_seconds=timeout_seconds)


async def test_counting_has_awaitable_forms_and_is_a_step_of_a_workflow(counted: type[DBOS]) -> None:
    @counted.workflow()
    async def workflow() -> tuple[int, int, int]:
        return (
            await counted.count_workflows_async(name="odd"),
            len(await counted.get_workflow_aggregates_async(group_by_name=True, name=["odd", "even"])),
            len(await counted.get_metrics_async(at(0), at(9000))),
        )

    with SetWorkflowID("counting"):
        assert await workflow() == (2, 2, 3)

    assert [name for _, name in recorded("counting")] == [
        "DBOS.countWorkflows",
        "DBOS.getWorkflowAggregates",
        "DBOS.getMetrics",
    ]


def test_a_count_of_very_many_is_stopped_at_its_limit(counted: type[DBOS]) -> None:
    """A query that goes on for long keeps the database from clearing up what queues leave behind."""
    change(FILL)

    with pytest.raises(DBOSQueryTimeoutError, match="exceeding its 1e-06s statement timeout"):
        counted.count_workflows(name="many", timeout_seconds=1e-6)
    with pytest.raises(DBOSQueryTimeoutError):
        counted.get_workflow_aggregates(group_by_name=True, timeout_seconds=1e-6)
    with pytest.raises(DBOSQueryTimeoutError):
        counted.get_metrics(at(-START_MS), at(0), timeout_seconds=1e-6)

    assert counted.count_workflows(timeout_seconds=0) == counted.count_workflows() == 50_005


def test_the_limit_of_lists_is_configured(dbos: type[DBOS], config: DBOSConfig) -> None:
    dbos.destroy()
    DBOS(config={**config, "query_timeout_sec": 1e-6})
    DBOS.launch()
    change(FILL)

    with pytest.raises(DBOSQueryTimeoutError):
        DBOS.list_workflows(name="unknown")

    assert DBOS.get_workflow_status("many1") is not None
