"""Attributes: attached when a workflow is started, changed later, and listed with it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSException, Queue, SetWorkflowAttributes, SetWorkflowID
from dbos._error import DBOSNonExistentWorkflowError
from dbos._serialization.attributes import MAX_ATTRIBUTES_BYTES
from tests.integration.histories import execute_again, recorded, row

ATTRIBUTES: dict[str, Any] = {"customer": "Größe ☃ \\u0000", "amounts": [1, 2.5, None], "nested": {"is_new": True}}


def attributes(workflow_id: str) -> dict[str, Any] | None:
    status = DBOS.get_workflow_status(workflow_id)
    assert status is not None
    return status.attributes


def test_what_is_started_in_the_block_has_them_and_its_children_do_not(dbos: type[DBOS]) -> None:
    queue = Queue("queue")

    @dbos.workflow()
    def child() -> None: ...

    @dbos.workflow()
    def parent() -> None:
        child()
        with SetWorkflowAttributes({"of": "child"}):
            child()

    dbos.launch()
    with SetWorkflowAttributes(ATTRIBUTES):
        with SetWorkflowID("called"):
            parent()
        with SetWorkflowID("enqueued"):
            queue.enqueue(parent).get_result()
        with SetWorkflowAttributes(None), SetWorkflowID("without"):
            parent()
        with SetWorkflowID("started"):
            dbos.start_workflow(parent).get_result()

    assert attributes("called") == attributes("enqueued") == attributes("started") == ATTRIBUTES
    assert attributes("without") is None
    assert attributes("called-1") is None
    assert attributes("called-3") == {"of": "child"}


def test_they_are_an_option_of_what_is_enqueued_by_name(dbos: type[DBOS], config: DBOSConfig) -> None:
    dbos.launch()
    options: Any = {"workflow_name": "workflow", "queue_name": "nowhere", "attributes": ATTRIBUTES}

    refused: Any = {**options, "attributes": {"a": {1}}}
    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        ours = dbos.enqueue_workflow_with_options(options)
        theirs = client.enqueue(options)
        with pytest.raises(DBOSException, match="Invalid attributes"):
            client.enqueue(refused)

    assert attributes(ours.workflow_id) == attributes(theirs.workflow_id) == ATTRIBUTES


async def test_they_are_replaced_as_a_whole_whatever_the_status(dbos: type[DBOS], config: DBOSConfig) -> None:
    @dbos.workflow()
    def workflow() -> None: ...

    dbos.launch()
    with SetWorkflowAttributes({"a": 1, "b": 2}), SetWorkflowID("wf"):
        await (await dbos.start_workflow_async(workflow)).get_result()
    before = row("wf")

    await dbos.update_workflow_attributes_async("wf", {"b": 3})
    replaced = row("wf")
    with DBOSClient(system_database_url=config["system_database_url"]) as client:
        client.update_workflow_attributes("wf", {"c": 4})
        theirs = row("wf")
        await client.update_workflow_attributes_async("wf", None)

    assert replaced == before._replace(attributes='{"b": 3}')
    assert theirs.attributes == '{"c": 4}'
    assert row("wf").attributes is None
    with pytest.raises(DBOSNonExistentWorkflowError, match="unknown"):
        await dbos.update_workflow_attributes_async("unknown", {})


def test_in_a_workflow_changing_them_is_a_step(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        assert dbos.workflow_id is not None
        dbos.update_workflow_attributes(dbos.workflow_id, {"stage": 1})

    dbos.launch()
    with SetWorkflowID("wf"):
        workflow()
    dbos.update_workflow_attributes("wf", {"stage": 2})

    execute_again("wf").get_result()

    assert recorded("wf") == [(1, "DBOS.updateWorkflowAttributes")]
    assert attributes("wf") == {"stage": 2}


CYCLE: dict[str, Any] = {}
CYCLE["cycle"] = CYCLE


@pytest.mark.parametrize(
    "given",
    [
        "text",
        [("a", 1)],
        {"a": object()},
        {"a": {1, 2}},
        {1: "a"},
        {"a": [{None: 1}]},
        {"a": math.nan},
        {"a": [math.inf]},
        {"a": "\0"},
        {"\0": 1},
        {"a": "\ud800"},
        CYCLE,
        {"a": "é" * (MAX_ATTRIBUTES_BYTES // 2)},
    ],
)
def test_what_json_or_a_database_cannot_express_is_refused(given: Any) -> None:
    with pytest.raises(DBOSException, match="Invalid attributes"):
        SetWorkflowAttributes(given)
    with pytest.raises(DBOSException, match="Invalid attributes"):
        list(_update(given))


def _update(given: Any) -> Any:
    from dbos._operations.attributes import update_workflow_attributes

    return update_workflow_attributes(None, "wf", given)  # type: ignore[arg-type]  # refused before it is used
