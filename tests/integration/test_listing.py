"""Listing workflows with every filter, and what they have recorded."""

from __future__ import annotations

import base64
import inspect
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from dbos import DBOS, DBOSContextSetAuth, SetWorkflowID
from dbos._operations import listing
from tests.integration.histories import change, recorded, row

START_MS = 1_700_000_000_123


def attributes(number: int) -> dict[str, Any]:
    return {
        "number": number,
        "is_odd": number % 2 == 1,
        "tags": ["all", f"t{number}"],
        "of": {"a": number, "b": [{"c": 1, "d": 2}]},
        "none": None,
        'quote"é💾\\u0000': "",
    }


@pytest.fixture
def listed(dbos: type[DBOS]) -> type[DBOS]:
    """Five workflows ``a%1`` to ``a%5``, a second apart, that differ in everything one can filter by."""

    @dbos.workflow(name="even")
    def even(number: int) -> int:
        return number

    @dbos.workflow(name="odd")
    def odd(number: int) -> int:
        raise ValueError(number)

    dbos.launch()
    for number in range(1, 6):
        with SetWorkflowID(f"a%{number}"), DBOSContextSetAuth(f"user{number}", ["role"]):
            if number % 2:
                with pytest.raises(ValueError, match=str(number)):
                    odd(number)
            else:
                even(number)
        change(
            """
            UPDATE dbos.workflow_status
            SET created_at = :at, application_version = :version, executor_id = :executor, forked_from = :forked,
                parent_workflow_id = :parent, queue_name = :queue, completed_at = :ended,
                started_at_epoch_ms = :begun, application_name = :application, attributes = :attributes
            WHERE workflow_uuid = :id
            """,
            at=START_MS + number * 1000,
            ended=START_MS + number * 1000 + 100,
            begun=START_MS + number * 1000 + 50,
            version=f"v{number}",
            executor=f"executor{number}",
            forked=f"original{number}",
            parent=f"parent{number}" if number < 5 else None,
            application="other-app" if number == 2 else "test-app",
            attributes=json.dumps(attributes(number)) if number < 5 else None,
            queue=f"queue{number}" if number > 3 else None,
            id=f"a%{number}",
        )
    return dbos


def numbers(dbos: type[DBOS], **filters: Any) -> str:
    return "".join(status.workflow_id.removeprefix("a%") for status in dbos.list_workflows(**filters))


FILTERED: list[tuple[dict[str, Any], str]] = [
    ({}, "12345"),
    ({"workflow_ids": ["a%4", "a%2", "missing"]}, "24"),
    ({"workflow_ids": []}, "12345"),
    ({"status": "ERROR"}, "135"),
    ({"status": ["ERROR", "SUCCESS"]}, "12345"),
    ({"status": []}, "12345"),
    ({"name": "even"}, "24"),
    ({"name": ["even", "odd"]}, "12345"),
    ({"app_version": "v3"}, "3"),
    ({"app_version": ["v3", "v4"]}, "34"),
    ({"forked_from": "original2"}, "2"),
    ({"forked_from": ["original2", "original5"]}, "25"),
    ({"parent_workflow_id": "parent1"}, "1"),
    ({"parent_workflow_id": ["parent1", "parent2"]}, "12"),
    ({"user": "user5"}, "5"),
    ({"user": ["user5", "user1"]}, "15"),
    ({"queue_name": "queue4"}, "4"),
    ({"queue_name": ["queue4", "queue5"]}, "45"),
    ({"executor_id": "executor3"}, "3"),
    ({"executor_id": ["executor3", "executor4"]}, "34"),
    ({"workflow_id_prefix": "a%"}, "12345"),
    ({"workflow_id_prefix": "%"}, ""),
    ({"workflow_id_prefix": "a_"}, ""),
    ({"workflow_id_prefix": ["a%1", "a%2"]}, "12"),
    ({"limit": 2}, "12"),
    ({"limit": 0}, "12345"),
    ({"offset": 3}, "45"),
    ({"offset": 0}, "12345"),
    ({"limit": 2, "offset": 1}, "23"),
    ({"sort_desc": True}, "54321"),
    ({"sort_desc": True, "limit": 2, "offset": 1}, "43"),
    ({"queues_only": True}, ""),
    ({"queues_only": True, "status": "SUCCESS"}, "4"),
    ({"was_forked_from": False}, "12345"),
    ({"was_forked_from": True}, ""),
    ({"has_parent": True}, "1234"),
    ({"has_parent": False}, "5"),
    ({"application_name": "other-app"}, "2"),
    ({"application_name": ["other-app", "test-app"]}, "12345"),
    ({"attributes": {}}, "12345"),
    ({"attributes": {"number": 2}}, "2"),
    ({"attributes": {"number": 2.0}}, "2"),
    ({"attributes": {"number": "2"}}, ""),
    ({"attributes": {"is_odd": True}}, "13"),
    ({"attributes": {"is_odd": 1}}, ""),
    ({"attributes": {"is_odd": True, "number": 3}}, "3"),
    ({"attributes": {"is_odd": True, "number": 2}}, ""),
    ({"attributes": {"tags": ["t2", "all", "all"]}}, "2"),
    ({"attributes": {"tags": []}}, "1234"),
    ({"attributes": {"tags": {}}}, ""),
    ({"attributes": {"of": {"b": [{"d": 2}], "a": 4}}}, "4"),
    ({"attributes": {"none": None}}, "1234"),
    ({"attributes": {"missing": None}}, ""),
    ({"attributes": {'quote"é💾\\u0000': ""}}, "1234"),
    ({"status": "ERROR", "name": "odd", "user": ["user1", "user2", "user5"], "sort_desc": True}, "51"),
]


def test_workflows_are_filtered(listed: type[DBOS]) -> None:
    found = [(filters, numbers(listed, **filters)) for filters, _ in FILTERED]

    assert found == FILTERED


def at(number: int, *, plus_ms: int = 0) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=START_MS + number * 1000 + plus_ms)


def test_times_are_inclusive_to_the_millisecond_in_any_zone(listed: type[DBOS]) -> None:
    there = timezone(timedelta(hours=-7))

    assert numbers(listed, start_time=at(2).isoformat(), end_time=at(4).isoformat()) == "234"
    assert numbers(listed, start_time=at(2, plus_ms=1).isoformat(), end_time=at(4, plus_ms=-1).isoformat()) == "3"
    assert numbers(listed, start_time=at(5).astimezone(there).isoformat()) == "5"
    assert numbers(listed, end_time=at(1).isoformat().replace("+00:00", "Z")) == "1"
    assert numbers(listed, end_time=at(1).astimezone().replace(tzinfo=None).isoformat()) == "1"
    with pytest.raises(ValueError, match="yesterday"):
        listed.list_workflows(start_time="yesterday")


@pytest.mark.parametrize(("prefix", "plus_ms"), [("completed", 100), ("dequeued", 50)])
def test_ends_and_beginnings_are_filtered_inclusively(listed: type[DBOS], prefix: str, plus_ms: int) -> None:
    def between(first: int, last: int, *, inset_ms: int = 0) -> str:
        return numbers(
            listed,
            **{
                f"{prefix}_after": at(first, plus_ms=plus_ms + inset_ms).isoformat(),
                f"{prefix}_before": at(last, plus_ms=plus_ms - inset_ms).isoformat(),
            },
        )

    assert between(2, 4) == "234"
    assert between(2, 4, inset_ms=1) == "3"
    change("UPDATE dbos.workflow_status SET completed_at = NULL, started_at_epoch_ms = NULL WHERE name = 'even'")
    assert between(1, 5) == "135"


def test_the_largest_limit_and_offset_are_no_error(listed: type[DBOS]) -> None:
    assert numbers(listed, limit=2**63 - 1) == "12345"
    assert numbers(listed, offset=2**63 - 1) == ""


@pytest.mark.parametrize("filters", [{}, {"sort_desc": True}, {"limit": 5}, {"offset": 1, "limit": 3}, {"offset": 6}])
def test_a_long_list_is_read_in_short_queries_that_nobody_notices(
    listed: type[DBOS], monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any]
) -> None:
    change("UPDATE dbos.workflow_status SET created_at = 1 WHERE name = 'odd'")
    at_once = numbers(listed, **filters)

    monkeypatch.setattr(listing, "PAGE_ROWS", 2)

    assert numbers(listed, **filters) == at_once


def test_workflows_in_queues_have_the_same_filters(listed: type[DBOS]) -> None:
    assert [each.workflow_id for each in listed.list_queued_workflows(status=["ERROR"], has_parent=False)] == ["a%5"]
    assert listed.list_queued_workflows(queues_only=False) == []
    assert "attributes" in inspect.signature(listed.list_queued_workflows).parameters
    assert "limit" in inspect.signature(listed.list_workflows_async).parameters


def test_workflows_of_the_same_millisecond_are_paged_without_overlap(listed: type[DBOS]) -> None:
    change("UPDATE dbos.workflow_status SET created_at = 1")

    pages = [numbers(listed, limit=2, offset=offset) for offset in (0, 2, 4)]

    assert pages == ["12", "34", "5"]


def test_a_status_has_everything_that_is_known_of_a_workflow(listed: type[DBOS]) -> None:
    status = listed.get_workflow_status("a%4")

    assert status is not None
    stored = row("a%4")
    assert (status.workflow_id, status.status, status.name) == ("a%4", "SUCCESS", "even")
    assert repr(status.input) == "{'args': (4,), 'kwargs': {}}"
    assert (status.output, status.error) == (4, None)
    assert (status.authenticated_user, status.authenticated_roles) == ("user4", ["role"])
    assert (status.app_version, status.executor_id, status.app_id) == ("v4", "executor4", stored.application_id)
    assert (status.created_at, status.completed_at) == (START_MS + 4000, stored.completed_at)
    assert (status.queue_name, status.forked_from, status.parent_workflow_id) == ("queue4", "original4", "parent4")
    assert (status.priority, status.recovery_attempts, status.was_forked_from) == (0, 1, False)
    assert (status.application_name, status.attributes) == ("test-app", attributes(4))
    assert listed.get_workflow_status("missing") is None


def test_inputs_and_outcomes_are_left_out_on_request(listed: type[DBOS]) -> None:
    without_input = listed.list_workflows(load_input=False)
    without_output = listed.list_workflows(load_output=False)

    assert all(status.input is None for status in without_input)
    assert [status.output for status in without_input] == [None, 2, None, 4, None]
    assert [str(status.error) for status in without_input] == ["1", "None", "3", "None", "5"]
    assert {(status.output, status.error) for status in without_output} == {(None, None)}


GONE = base64.b64encode(b"cno_such_module\nGone\n.").decode()  # the pickle of something that cannot be imported


def test_a_row_that_cannot_be_decoded_is_shown_as_text_and_the_others_as_they_are(listed: type[DBOS]) -> None:
    change("UPDATE dbos.workflow_status SET inputs = 'bad', output = 'worse' WHERE workflow_uuid = 'a%2'")
    change("UPDATE dbos.workflow_status SET error = 'worst' WHERE workflow_uuid = 'a%3'")
    change(
        "UPDATE dbos.workflow_status SET inputs = :gone, output = :gone, serialization = 'py_pickle', "
        "outcome_serialization = 'nobody knows', authenticated_roles = '3', attributes = '[1]' "
        "WHERE workflow_uuid = 'a%4'",
        gone=GONE,
    )

    first, second, third, fourth, _ = listed.list_workflows()

    assert (second.input, second.output, third.error) == ("bad", "worse", "worst")
    assert (fourth.input, fourth.output) == (GONE, GONE)
    assert (fourth.authenticated_roles, fourth.attributes) == (["3"], None)
    assert (str(first.error), str(first.input), first.attributes) == (
        "1",
        "{'args': (1,), 'kwargs': {}}",
        attributes(1),
    )
    assert listed.count_workflows() == 5
    assert listed.get_workflow_aggregates(group_by_name=True) == [
        {"group": {"name": "odd"}, "count": 3},
        {"group": {"name": "even"}, "count": 2},
    ]


async def test_listing_has_an_awaitable_form(listed: type[DBOS]) -> None:
    assert [status.workflow_id for status in await listed.list_workflows_async(name="even")] == ["a%2", "a%4"]
    status = await listed.get_workflow_status_async("a%2")
    assert status is not None
    assert status.output == 2
    with pytest.raises(RuntimeError, match="list_workflows_async"):
        listed.list_workflows()


def test_steps_are_listed_with_their_outcomes(dbos: type[DBOS]) -> None:
    @dbos.step(name="good")
    def good() -> dict[str, int]:
        return {"a": 1}

    @dbos.step(name="bad")
    def bad() -> None:
        raise LookupError("no")

    @dbos.workflow(name="child")
    def child() -> int:
        return 3

    @dbos.workflow()
    def workflow() -> None:
        good()
        with pytest.raises(LookupError):
            bad()
        child()
        dbos.sleep(0.001)

    dbos.launch()
    with SetWorkflowID("wf"):
        workflow()

    infos = dbos.list_workflow_steps("wf")

    assert [(info["function_id"], info["function_name"]) for info in infos] == [
        (1, "good"),
        (2, "bad"),
        (3, "child"),
        (4, "DBOS.getResult"),
        (5, "DBOS.sleep"),
    ]
    assert [info["output"] for info in infos[:4]] == [{"a": 1}, None, None, 3]
    assert repr(infos[1]["error"]) == "LookupError('no')"
    assert [info["child_workflow_id"] for info in infos] == [None, None, "wf-3", "wf-3", None]
    assert isinstance(infos[4]["output"], float)
    assert all(info["started_at_epoch_ms"] is not None for info in infos if info["function_name"] != "child")
    assert dbos.list_workflow_steps("missing") == []


@pytest.fixture
def stepping(dbos: type[DBOS]) -> type[DBOS]:
    """A workflow ``wf`` of five steps, each of which returns its number."""

    @dbos.step()
    def step(number: int) -> int:
        return number

    @dbos.workflow()
    def workflow() -> list[int]:
        return [step(number) for number in range(1, 6)]

    dbos.launch()
    with SetWorkflowID("wf"):
        workflow()
    return dbos


def test_a_step_that_cannot_be_decoded_is_shown_as_text(stepping: type[DBOS]) -> None:
    change("UPDATE dbos.operation_outputs SET output = 'bad' WHERE function_id = 1")
    change(
        "UPDATE dbos.operation_outputs SET output = NULL, error = :gone, serialization = 'py_pickle' "
        "WHERE function_id = 2",
        gone=GONE,
    )

    infos = stepping.list_workflow_steps("wf")

    assert [info["output"] for info in infos] == ["bad", None, 3, 4, 5]
    assert [str(info["error"]) for info in infos] == ["None", GONE, "None", "None", "None"]


@pytest.mark.parametrize("page_rows", [2, 1000])
async def test_steps_are_listed_in_pages_and_without_their_outputs(
    stepping: type[DBOS], monkeypatch: pytest.MonkeyPatch, page_rows: int
) -> None:
    monkeypatch.setattr(listing, "PAGE_ROWS", page_rows)

    async def listed_steps(**options: Any) -> list[tuple[int, Any]]:
        infos = await stepping.list_workflow_steps_async("wf", **options)
        return [(info["function_id"], info["output"]) for info in infos]

    assert await listed_steps(limit=2, offset=1) == [(2, 2), (3, 3)]
    assert await listed_steps(offset=3) == [(4, 4), (5, 5)]
    assert await listed_steps(limit=0) == await listed_steps(limit=99) == [(number, number) for number in range(1, 6)]
    assert await listed_steps(load_output=False) == [(number, None) for number in range(1, 6)]
    assert await listed_steps(offset=9) == []
    with pytest.raises(ValueError, match="limit is a whole number from 0"):
        await listed_steps(limit=-1)


def test_in_a_workflow_looking_is_recorded_and_in_a_step_it_is_not(dbos: type[DBOS]) -> None:
    @dbos.step(name="step")
    def step() -> int:
        assert dbos.get_workflow_status("wf") is not None
        return len(dbos.list_workflows()) + len(dbos.list_workflow_steps("wf"))

    @dbos.workflow()
    def workflow() -> int:
        dbos.get_workflow_status("wf")
        dbos.list_workflows()
        dbos.list_workflow_steps("wf")
        handle = dbos.retrieve_workflow("wf")
        handle.get_status()
        dbos.retrieve_workflow("wf", existing_workflow=False)
        return step()

    dbos.launch()

    with SetWorkflowID("wf"):
        assert workflow() == 6

    assert recorded("wf") == [
        (1, "DBOS.getStatus"),
        (2, "DBOS.listWorkflows"),
        (3, "DBOS.listWorkflowSteps"),
        (4, "DBOS.getStatus"),
        (5, "DBOS.getStatus"),
        (6, "step"),
    ]
