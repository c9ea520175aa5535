"""Streams: values appended by a workflow, and read by others as they come."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from dbos import DBOS, SetWorkflowID, WorkflowSerializationFormat
from dbos._error import (
    DBOSException,
    DBOSNonExistentWorkflowError,
    DBOSStreamNondeterminismError,
    DBOSStreamTimeoutError,
)
from tests.integration.crashes import Crash, recover
from tests.integration.histories import change, engine, eventually, execute_again, recorded, steps

ODD_VALUES: list[Any] = [None, [], {}, "__DBOS_STREAM_CLOSED__", '"__DBOS_STREAM_CLOSED__"', 0, "", [None]]


@pytest.mark.parametrize("format", list(WorkflowSerializationFormat))
def test_a_stream_is_read_from_its_first_value_to_where_it_was_closed(
    dbos: type[DBOS], format: WorkflowSerializationFormat
) -> None:
    @dbos.workflow()
    def workflow() -> None:
        for value in ODD_VALUES:
            dbos.write_stream("key", value, serialization_type=format)
        dbos.close_stream("key")
        dbos.close_stream("key")
        dbos.write_stream("key", "unread")
        dbos.write_stream("other", "not closed")

    dbos.launch()
    with SetWorkflowID("wf"):
        workflow()

    assert list(dbos.read_stream("wf", "key")) == ODD_VALUES
    assert list(dbos.read_stream("wf", "key", offset=6)) == ODD_VALUES[6:]
    assert list(dbos.read_stream("wf", "other")) == ["not closed"]
    assert list(dbos.read_stream("wf", "empty")) == []
    assert dbos.read_stream_offset("wf", "key", 4) == ODD_VALUES[4]
    with pytest.raises(DBOSException, match="has no value at offset 8"):
        dbos.read_stream_offset("wf", "key", 8)


async def test_values_are_read_as_they_come(dbos: type[DBOS]) -> None:
    turns = [threading.Event() for _ in range(3)]

    @dbos.workflow()
    def workflow() -> None:
        for number, turn in enumerate(turns):
            assert turn.wait(20)
            dbos.write_stream("key", number)

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)
    values = dbos.read_stream_async("wf", "key")
    read = []
    for turn in turns:
        turn.set()
        read.append(await anext(values))

    assert read == [0, 1, 2]
    with pytest.raises(StopAsyncIteration):
        await anext(values)
    assert handle.get_status().status in ("PENDING", "SUCCESS")
    assert [value async for value in dbos.read_stream_async("wf", "key", offset=1)] == [1, 2]


@pytest.mark.parametrize("end", ["cancelled", "deleted", "failed"])
def test_a_reader_gets_all_values_and_stops_when_the_workflow_has_ended(dbos: type[DBOS], end: str) -> None:
    may_end = threading.Event()

    @dbos.workflow()
    def workflow() -> None:
        for number in range(250):
            dbos.write_stream("key", number)
        assert may_end.wait(20)
        if end == "failed":
            raise ValueError
        dbos.recv()

    dbos.launch()
    with SetWorkflowID("wf"):
        dbos.start_workflow(workflow)
    values = dbos.read_stream("wf", "key")
    read = [next(values) for _ in range(250)]
    assert read == list(range(250))
    may_end.set()
    if end == "cancelled":
        dbos.cancel_workflow("wf")
    if end == "deleted":
        dbos.delete_workflow("wf")
        with pytest.raises(DBOSNonExistentWorkflowError):
            next(values)
    else:
        assert list(values) == []


def test_the_last_values_of_a_workflow_that_crashes_come_once(dbos: type[DBOS]) -> None:
    crashes = [True]

    @dbos.workflow()
    def workflow() -> None:
        for number in range(3):
            dbos.write_stream("key", number)
        if crashes:
            crashes.clear()
            raise Crash
        dbos.write_stream("key", 3)

    dbos.launch()
    with SetWorkflowID("wf"), pytest.raises(Crash):
        workflow()
    values = dbos.read_stream("wf", "key")
    before = [next(values) for _ in range(3)]
    recover(dbos).get_result()

    assert before + list(values) == [0, 1, 2, 3]


async def test_values_that_are_written_side_by_side_have_dense_offsets(dbos: type[DBOS]) -> None:
    @dbos.step()
    async def step(number: int) -> None:
        await dbos.write_stream_async("key", f"step {number}")

    @dbos.workflow()
    async def workflow() -> None:
        bodies = (dbos.write_stream_async("key", f"body {number}") for number in range(20))
        await asyncio.gather(*bodies, *(step(number) for number in range(20)))
        await dbos.close_stream_async("key")

    dbos.launch()
    with SetWorkflowID("wf"):
        await workflow()

    values = [value async for value in dbos.read_stream_async("wf", "key")]
    assert sorted(values) == sorted(f"{who} {number}" for who in ("body", "step") for number in range(20))
    await asyncio.to_thread(execute_again, "wf")
    assert await dbos.get_result_async("wf") is None
    assert len([value async for value in dbos.read_stream_async("wf", "key")]) == 40


def test_a_step_that_is_repeated_writes_again(dbos: type[DBOS]) -> None:
    attempts: list[int] = []

    @dbos.step(retries_allowed=True, interval_seconds=0)
    def step() -> None:
        dbos.write_stream("key", len(attempts))
        attempts.append(1)
        if len(attempts) < 3:
            raise ValueError
        dbos.close_stream("key")

    @dbos.workflow()
    def workflow() -> None:
        step()

    dbos.launch()
    with SetWorkflowID("wf"):
        workflow()

    assert list(dbos.read_stream("wf", "key")) == [0, 1, 2]
    assert recorded("wf") == [(1, step.__qualname__)]


def test_a_workflow_reads_again_what_it_has_read_and_then_goes_on(dbos: type[DBOS]) -> None:
    crashes = [True]

    @dbos.workflow()
    def writer() -> None:
        for number in range(4):
            dbos.write_stream("key", number)

    @dbos.workflow()
    def reader() -> list[Any]:
        values: list[Any] = []
        for value in dbos.read_stream("writer", "key"):
            values.append(value)
            if len(values) == 2 and crashes:
                crashes.clear()
                raise Crash
        return [*values, dbos.read_stream_offset("writer", "key", 3)]

    dbos.launch()
    with SetWorkflowID("writer"):
        writer()
    with SetWorkflowID("reader"), pytest.raises(Crash):
        reader()
    change("UPDATE dbos.streams SET value = '10' WHERE value = '1'")

    assert recover(dbos).get_result() == [0, 1, 2, 3, 3]

    assert [name for _, name in recorded("reader")] == ["DBOS.readStream"] * 5 + ["DBOS.readStreamOffset"]
    assert execute_again("reader").get_result() == [0, 1, 2, 3, 3]


async def test_reads_of_one_stream_side_by_side_are_refused_in_a_workflow(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def workflow() -> None:
        await asyncio.gather(*(dbos.read_stream_offset_async("wf", "key", 0) for _ in range(2)))

    dbos.launch()

    with SetWorkflowID("wf"), pytest.raises(DBOSStreamNondeterminismError, match="stream key in workflow wf"):
        await workflow()


def test_a_value_that_does_not_come_in_time_is_an_error_that_replays(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> str:
        try:
            dbos.read_stream_offset("wf", "key", 0, timeout_seconds=0.01)
        except DBOSStreamTimeoutError as error:
            dbos.write_stream("key", "late")
            return str(error)
        return "read"

    dbos.launch()
    with SetWorkflowID("wf"):
        told = workflow()

    assert told == "DBOS Error 16: No value arrived on stream key of workflow wf within 0.01 seconds"
    assert execute_again("wf").get_result() == told


def test_bad_arguments_are_refused_when_the_first_value_is_asked_for(dbos: type[DBOS]) -> None:
    dbos.launch()
    bad: list[dict[str, Any]] = [
        {"offset": -1},
        {"offset": 1.5},
        {"polling_interval_sec": 0.0001},
        {"timeout_seconds": -1},
        {"timeout_seconds": float("nan")},
    ]

    for arguments in bad:
        values = dbos.read_stream("wf", "key", **arguments)
        with pytest.raises(ValueError, match="Invalid"):
            next(values)
    with pytest.raises(DBOSNonExistentWorkflowError, match="target workflow ID: nobody"):
        list(dbos.read_stream("nobody", "key"))
    with pytest.raises(DBOSException, match=r"write_stream\(\) must be called from within a workflow"):
        dbos.write_stream("key", 1)
    with pytest.raises(DBOSException, match=r"close_stream\(\) must be called from within a workflow"):
        dbos.close_stream("key")


async def test_a_blocking_reader_does_not_block_a_loop(dbos: type[DBOS]) -> None:
    dbos.launch()
    values = dbos.read_stream("wf", "key")

    with pytest.raises(RuntimeError, match="read_stream_async"):
        next(values)


def test_a_fork_begins_with_the_values_of_its_own_past(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def workflow() -> None:
        for number in range(3):
            dbos.write_stream("key", number)
        dbos.close_stream("key")

    dbos.launch()
    with SetWorkflowID("wf"):
        workflow()
    fork = dbos.fork_workflow("wf", 3, queue_name="nobody listens")
    dbos.cancel_workflow(fork.workflow_id)

    assert list(dbos.read_stream(fork.workflow_id, "key")) == [0, 1]


def test_nothing_is_left_of_a_reader_that_stops_early(dbos: type[DBOS]) -> None:
    may_end = threading.Event()

    @dbos.workflow()
    def workflow() -> None:
        dbos.write_stream("key", 1)
        assert may_end.wait(20)

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)
    for value in dbos.read_stream("wf", "key"):
        assert value == 1
        break
    with pytest.raises(DBOSStreamTimeoutError):
        list(dbos.read_stream("wf", "key", timeout_seconds=0.01))

    eventually(lambda: list(engine().db.wakeups.keys()) == [])
    may_end.set()
    handle.get_result()


def test_whoever_waits_for_what_is_behind_the_end_is_told_when_the_stream_is_closed(dbos: type[DBOS]) -> None:
    may_close, may_end = threading.Event(), threading.Event()
    told: list[object] = []

    @dbos.workflow()
    def workflow() -> None:
        dbos.write_stream("key", 0)
        assert may_close.wait(20)
        dbos.close_stream("key")
        dbos.write_stream("key", "unread")
        assert may_end.wait(20)

    def read() -> None:
        try:
            dbos.read_stream_offset("wf", "key", 5)
        except DBOSException as error:
            told.append(error)

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)
    reader = threading.Thread(target=read)
    reader.start()
    eventually(lambda: ("stream", "wf", "key", "5") in list(engine().db.wakeups.keys()))
    may_close.set()
    reader.join(20)

    assert "has no value at offset 5" in str(told[0])
    eventually(lambda: len(steps("wf")) == 3)
    assert list(dbos.read_stream("wf", "key", offset=2)) == []
    may_end.set()
    handle.get_result()
