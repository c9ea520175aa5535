"""Messages: sent from anywhere, received in order, each exactly once, and waits that outlast a restart."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dbos import DBOS, SendMessage, SetWorkflowID, WorkflowSerializationFormat
from dbos._error import DBOSException, DBOSNonExistentWorkflowError
from dbos._sysdb.connection import Connection
from tests.integration.crashes import Crash, recover
from tests.integration.histories import change, engine, eventually, execute_again, recorded, steps

NO_TOPIC = "__null__topic__"


def query(sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
    def read(connection: Connection) -> list[tuple[Any, ...]]:
        return connection.all(sql, **parameters)

    return engine().db.read(read)


def await_receiver(workflow_id: str, topic: str = NO_TOPIC) -> None:
    """Wait until a workflow waits for a message."""
    eventually(lambda: ("message", workflow_id, topic) in list(engine().db.wakeups.keys()))


def receiver(dbos: type[DBOS], topic: str | None = None, timeout_s: float = 60) -> Callable[[int], list[Any]]:
    @dbos.workflow(name="receiver")
    def receive(count: int) -> list[Any]:
        return [dbos.recv(topic, timeout_seconds=timeout_s) for _ in range(count)]

    return receive


def test_messages_are_received_in_the_order_of_sending_be_they_early_or_late(dbos: type[DBOS]) -> None:
    begin = threading.Event()

    @dbos.workflow()
    def receive() -> list[Any]:
        assert begin.wait(20)
        return [dbos.recv() for _ in range(30)]

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(receive)

    for number in range(10):
        dbos.send("wf", number)
    begin.set()
    await_receiver("wf")
    for number in range(10, 20):
        dbos.send("wf", number)
    dbos.send_bulk([SendMessage("wf", number) for number in range(20, 30)])

    assert handle.get_result() == list(range(30))
    assert query("SELECT count(*) FROM dbos.notifications WHERE consumed = TRUE") == [(30,)]
    names = [name for _, name in recorded("wf")]
    assert names == ["DBOS.recv", "DBOS.sleep"] * 30


async def test_coroutines_send_and_receive(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    async def receive() -> list[Any]:
        return [
            await dbos.recv_async("topic"),
            await dbos.recv_async("topic"),
            await dbos.recv_async(timeout_seconds=0),
        ]

    @dbos.workflow()
    async def send(destination: str) -> None:
        await dbos.send_async(destination, {"n": 1}, "topic")
        await dbos.send_bulk_async([SendMessage(destination, [2], "topic")])

    dbos.launch()
    with SetWorkflowID("receiver"):
        handle = await dbos.start_workflow_async(receive)
    with SetWorkflowID("sender"):
        await send("receiver")

    assert await handle.get_result() == [{"n": 1}, [2], None]
    assert [(step.function_name, step.output) for step in steps("sender")] == [
        ("DBOS.send", None),
        ("DBOS.send_bulk", None),
    ]


def test_topics_are_channels_of_their_own(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def receive() -> dict[str, Any]:
        topics: list[str | None] = ["null", "", None, "a::b", "None"]
        return {repr(topic): dbos.recv(topic, timeout_seconds=0) for topic in topics}

    dbos.launch()
    with SetWorkflowID("x"):
        dbos.start_workflow(receiver(dbos), 1)
    for destination, topic in (("x", None), ("x", ""), ("x", "null"), ("x", "a::b")):
        dbos.send(destination, f"to {topic!r}", topic)
    change("UPDATE dbos.notifications SET destination_uuid = 'y', consumed = FALSE")
    with SetWorkflowID("y"):
        received = receive()

    assert received == {"'null'": "to 'null'", "''": "to ''", "None": "to None", "'a::b'": "to 'a::b'", "'None'": None}


def test_ids_and_topics_that_look_alike_when_joined_do_not_meet(dbos: type[DBOS]) -> None:
    receive_c = receiver(dbos, "c")

    @dbos.workflow()
    def receive_other() -> Any:
        return dbos.recv("b::c")

    dbos.launch()
    with SetWorkflowID("a::b"):
        first = dbos.start_workflow(receive_c, 1)
    with SetWorkflowID("a"):
        second = dbos.start_workflow(receive_other)
    await_receiver("a::b", "c")
    await_receiver("a", "b::c")
    dbos.send("a", "second", "b::c")
    dbos.send("a::b", "first", "c")

    assert first.get_result() == ["first"]
    assert second.get_result() == "second"


def test_ids_topics_and_messages_may_be_long(dbos: type[DBOS]) -> None:
    workflow_id, topic, message = "w" * 9000, "t" * 2000, "m" * 100_000
    receive = receiver(dbos, topic)
    dbos.launch()
    with SetWorkflowID(workflow_id):
        handle = dbos.start_workflow(receive, 1)
    await_receiver(workflow_id, topic)

    dbos.send(workflow_id, message, topic)

    assert handle.get_result() == [message]


def test_a_key_names_one_message_of_a_destination(dbos: type[DBOS]) -> None:
    receive = receiver(dbos, timeout_s=0.2)
    dbos.launch()
    handles = []
    for workflow_id in ("one", "two"):
        with SetWorkflowID(workflow_id):
            handles.append(dbos.start_workflow(receive, 2))
    dbos.send("one", "first", idempotency_key="key")
    dbos.send("one", "again", "topic", idempotency_key="key")
    dbos.send_bulk([SendMessage("one", "again", idempotency_key="key"), SendMessage("two", "first", None, "key")])

    with pytest.raises(DBOSException, match="idempotency_key 'twice'"):
        dbos.send_bulk([SendMessage("one", 1, None, "twice"), SendMessage("one", 2, "topic", "twice")])

    assert [handle.get_result() for handle in handles] == [["first", None], ["first", None]]
    assert query("SELECT count(*) FROM dbos.notifications") == [(2,)]


def test_what_cannot_be_sent_is_refused_and_leaves_nothing_behind(dbos: type[DBOS]) -> None:
    receive = receiver(dbos, timeout_s=0)

    @dbos.workflow()
    def sender() -> str:
        try:
            dbos.send_bulk([SendMessage("done", 1), SendMessage("nobody", 2)])
        except DBOSNonExistentWorkflowError as error:
            return str(error)
        return "sent"

    dbos.launch()
    with SetWorkflowID("done"):
        receive(1)

    with pytest.raises(DBOSNonExistentWorkflowError, match="Non-existent `send` destination workflow ID: nobody"):
        dbos.send("nobody", 1)
    for destination, topic, key in ((" ", None, None), ("done", "a\0b", None), ("done", None, ""), ("done", 1, None)):
        with pytest.raises(DBOSException, match="Invalid"):
            dbos.send(destination, 1, topic, idempotency_key=key)  # type: ignore[arg-type]  # one is no topic
    with pytest.raises(TypeError):
        dbos.send("done", threading.Lock())
    with SetWorkflowID("sender"):
        assert "nobody" in sender()

    assert query("SELECT count(*) FROM dbos.notifications") == [(0,)]
    assert recorded("sender") == []
    dbos.send("done", "to one that has ended")
    assert query("SELECT count(*) FROM dbos.notifications") == [(1,)]


def test_receiving_needs_a_workflows_body(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> Any:
        return dbos.recv()

    @dbos.workflow()
    def workflow() -> Any:
        return step()

    dbos.launch()

    for call in (dbos.recv, workflow):
        with pytest.raises(DBOSException, match=r"recv\(\) must be called from within a workflow"):
            call()


def test_a_step_sends_unrecorded(dbos: type[DBOS]) -> None:
    @dbos.step()
    def step() -> None:
        dbos.send("wf", "from a step")

    @dbos.workflow()
    def workflow() -> Any:
        step()
        return dbos.recv()

    dbos.launch()

    with SetWorkflowID("wf"):
        assert workflow() == "from a step"

    assert [name for _, name in recorded("wf")] == [step.__qualname__, "DBOS.recv", "DBOS.sleep"]


def test_a_wait_that_was_over_is_over_on_replay_whatever_has_come_since(dbos: type[DBOS]) -> None:
    receive = receiver(dbos, timeout_s=0.01)
    dbos.launch()
    with SetWorkflowID("wf"):
        assert receive(1) == [None]
    dbos.send("wf", "late")

    assert execute_again("wf").get_result() == [None]

    assert query("SELECT consumed FROM dbos.notifications WHERE consumed = FALSE") != []


def test_a_restart_waits_only_what_is_left(dbos: type[DBOS]) -> None:
    receive = receiver(dbos, timeout_s=0.01)
    dbos.launch()
    with SetWorkflowID("wf"):
        receive(1)
    deadline_s = engine().db.now_ms() / 1000 + 0.3
    change("UPDATE dbos.operation_outputs SET output = :at WHERE function_id = 2", at=json.dumps(deadline_s))
    change("DELETE FROM dbos.operation_outputs WHERE function_id = 1")

    assert execute_again("wf").get_result() == [None]

    assert engine().db.now_ms() / 1000 >= deadline_s


def test_a_message_that_was_received_is_not_received_again_after_a_crash(dbos: type[DBOS]) -> None:
    crashes = [True]

    @dbos.workflow()
    def workflow() -> list[Any]:
        first = dbos.recv()
        if crashes:
            crashes.clear()
            raise Crash
        return [first, dbos.recv(timeout_seconds=0.01)]

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(workflow)
    dbos.send("wf", "only")
    eventually(lambda: engine().runs.get("wf") is None)

    assert recover(dbos).get_result() == ["only", None]
    assert handle.workflow_id == "wf"


async def test_a_wait_that_is_given_up_keeps_nobody_from_the_next(dbos: type[DBOS]) -> None:
    given_up = asyncio.Event()

    @dbos.workflow()
    async def workflow() -> list[Any]:
        results: list[Any] = []
        task = asyncio.ensure_future(dbos.recv_async("topic"))
        while ("message", "wf", "topic") not in list(engine().db.wakeups.keys()):
            await asyncio.sleep(0.005)
        try:
            await dbos.recv_async("topic")
        except DBOSException as error:
            results.append(str(error))
        task.cancel()
        await asyncio.wait([task])
        given_up.set()
        results.append(await dbos.recv_async("topic"))
        return results

    dbos.launch()
    with SetWorkflowID("wf"):
        handle = await dbos.start_workflow_async(workflow)
    await given_up.wait()
    await dbos.send_async("wf", "message", "topic")

    refused, message = await handle.get_result()
    assert "is waiting already" in refused
    assert message == "message"
    assert list(engine().db.wakeups.keys()) == []


def test_a_cancelled_workflow_stops_waiting_and_takes_nothing(dbos: type[DBOS]) -> None:
    receive = receiver(dbos)
    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(receive, 1)
    await_receiver("wf")

    dbos.cancel_workflow("wf")
    with pytest.raises(DBOSException, match="was cancelled"):
        handle.get_result()
    dbos.send("wf", "for later")

    assert dbos.resume_workflow("wf").get_result() == ["for later"]


def test_forks_are_sent_to_if_asked_for(dbos: type[DBOS]) -> None:
    receive = receiver(dbos, timeout_s=20)
    dbos.launch()
    handles = []
    with SetWorkflowID("origin"):
        handles.append(dbos.start_workflow(receive, 1))
    for source, fork in (("origin", "fork"), ("fork", "fork of fork")):
        with SetWorkflowID(fork):
            handles.append(dbos.fork_workflow(source, 1))

    dbos.send("origin", "all", send_to_forks=True)

    assert [handle.get_result() for handle in handles] == [["all"]] * 3


def test_the_format_is_the_workflows_unless_another_is_asked_for(dbos: type[DBOS]) -> None:
    @dbos.workflow(serialization_type=WorkflowSerializationFormat.PORTABLE)
    def portable() -> list[Any]:
        dbos.send("portable", (1, 2))
        dbos.send("portable", (1, 2), serialization_type=WorkflowSerializationFormat.NATIVE)
        return [dbos.recv(), dbos.recv(), dbos.recv(timeout_seconds=0)]

    dbos.launch()
    with SetWorkflowID("portable"):
        assert dbos.start_workflow(portable).get_result() == [[1, 2], (1, 2), None]

    formats = query("SELECT serialization FROM dbos.notifications ORDER BY serialization")
    assert formats == [("portable_json",), ("py_pickle",)]
    assert [step.serialization for step in steps("portable") if step.function_name == "DBOS.recv"] == [
        "portable_json",
        "py_pickle",
        "json",
    ]


def test_many_waiters_are_served_while_others_go_on(dbos: type[DBOS]) -> None:
    count = 300

    @dbos.workflow()
    async def receive() -> Any:
        return await dbos.recv_async()

    dbos.launch()
    handles = []
    for number in range(count):
        with SetWorkflowID(f"wf-{number}"):
            handles.append(dbos.start_workflow(receive))
    eventually(lambda: len(engine().db.wakeups.keys()) >= count)

    assert len(dbos.list_workflows(limit=5)) == 5
    dbos.send_bulk([SendMessage(f"wf-{number}", number) for number in range(count)])

    assert [handle.get_result() for handle in handles] == list(range(count))
    eventually(lambda: not engine().db.wakeups.keys())


def test_a_message_that_nobody_was_told_of_is_found(dbos: type[DBOS]) -> None:
    """Written by another program's SQL, or told of through a connection that was lost."""
    receive = receiver(dbos)
    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(receive, 1)
    await_receiver("wf")

    change(
        "INSERT INTO dbos.notifications (message_uuid, destination_uuid, topic, message, serialization) "
        "VALUES ('id', 'wf', :topic, '\"by hand\"', 'portable_json')",
        topic=NO_TOPIC,
    )

    assert handle.get_result() == ["by hand"]


def test_one_message_that_cannot_be_read_fails_its_receiver_alone(dbos: type[DBOS]) -> None:
    receive = receiver(dbos)
    dbos.launch()
    handles = []
    for workflow_id in ("bad", "good"):
        with SetWorkflowID(workflow_id):
            handles.append(dbos.start_workflow(receive, 1))
        await_receiver(workflow_id)
    change(
        "INSERT INTO dbos.notifications (message_uuid, destination_uuid, topic, message, serialization) "
        "VALUES ('id', 'bad', :topic, 'x', 'no such format')",
        topic=NO_TOPIC,
    )
    dbos.send("good", "well")

    with pytest.raises(TypeError, match="Serialization no such format is not available"):
        handles[0].get_result()
    assert handles[1].get_result() == ["well"]


@pytest.mark.parametrize("seconds", [float("nan"), "5", None, True])
def test_what_is_no_length_of_time_is_refused_and_takes_no_function_id(dbos: type[DBOS], seconds: Any) -> None:
    waits: list[Callable[[], Any]] = [
        lambda: dbos.recv(timeout_seconds=seconds),
        lambda: dbos.get_event("wf", "key", seconds),
        lambda: dbos.sleep(seconds),
    ]

    @dbos.workflow()
    def workflow() -> list[str]:
        refused = []
        for wait in waits:
            with pytest.raises(DBOSException) as caught:
                wait()
            refused.append(str(caught.value))
        return refused

    dbos.launch()

    with SetWorkflowID("wf"):
        assert all("it is a number of seconds" in each for each in workflow())

    assert recorded("wf") == []


def test_a_wait_may_be_for_ever(dbos: type[DBOS]) -> None:
    receive = receiver(dbos, timeout_s=float("inf"))
    dbos.launch()
    with SetWorkflowID("wf"):
        handle = dbos.start_workflow(receive, 1)
    await_receiver("wf")

    dbos.send("wf", "at last")

    assert handle.get_result() == ["at last"]
