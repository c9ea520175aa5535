"""Messages, events and streams in the database: repeated writes have one effect, and only a rightful run's have any."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dbos._sys_db import SystemDatabase
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import RecordStep, StepRecorded, call
from dbos._sysdb.rows import EventRow, MessageRow
from dbos._sysdb.stores.events import SetEvent
from dbos._sysdb.stores.messages import Delivery, Mailing, Message, Sent
from dbos._sysdb.stores.runs import Owner
from dbos._sysdb.stores.streams import Append
from tests.conformance.conftest import OpenDatabase
from tests.conformance.values import NOW_MS, begin, start, step

TOPIC = "topic"
TABLES = ("notifications", "workflow_events", "workflow_events_history", "streams", "operation_outputs")


def counts(db: SystemDatabase) -> dict[str, int]:
    """How many rows each table has."""

    def read(connection: Connection) -> dict[str, int]:
        return {table: connection.all(f"SELECT count(*) FROM dbos.{table}")[0][0] for table in TABLES}

    return db.read(read)


def message(number: int = 1, **values: Any) -> Message:
    defaults: dict[str, Any] = {
        "message_uuid": f"m{number}",
        "destination_uuid": "w",
        "topic": TOPIC,
        "message": str(number),
        "created_at_epoch_ms": NOW_MS,
        "serialization": "json",
        "idempotency_key": None,
    }
    return Message(MessageRow(**{**defaults, **values}))


def receive(db: SystemDatabase, record: RecordStep, *, is_last: bool = False) -> StepRecorded | None:
    [received] = db.commit(call(db.messages.receive, Delivery(TOPIC, record, is_last)))
    return received  # type: ignore[no-any-return]  # what the verb returns


def effects(db: SystemDatabase, **values: Any) -> dict[str, Callable[[], Any]]:
    """One of each, as an operation of the run; each can be executed again."""
    record = step(**values)
    mailing = Mailing([message()], record._replace(function_id=1), None)
    event = SetEvent(EventRow("w", "key", "1", "json"), 2, record._replace(function_id=2), None)
    append = Append(
        "w", "key", "1", "json", function_id=3, step=record._replace(function_id=3), owner=None, token="write"
    )
    return {
        "send": lambda: db.commit(call(db.messages.send, mailing))[0].recorded,
        "set": lambda: db.commit(call(db.events.set, event))[0],
        "append": lambda: db.commit(call(db.streams.append, append))[0][0],
    }


def effects_of_a_step(db: SystemDatabase, owner: Owner | None) -> dict[str, Callable[[], Any]]:
    """The same from a step, or a message from outside; each can be executed again."""
    mailing = Mailing([message()], None, owner)
    event = SetEvent(EventRow("w", "key", "1", "json"), 2, None, owner)
    append = Append("w", "key", "1", "json", function_id=3, step=None, owner=owner, token="write")
    return {
        "send": lambda: db.commit(call(db.messages.send, mailing))[0].recorded,
        "set": lambda: db.commit(call(db.events.set, event))[0],
        "append": lambda: db.commit(call(db.streams.append, append))[0][0],
    }


def test_an_effect_that_is_executed_twice_comes_about_once(db: SystemDatabase) -> None:
    """The answer to the first COMMIT may have been lost."""
    begin(db, start())

    for effect in effects(db).values():
        assert effect() == StepRecorded("PENDING", None)
        once = counts(db)
        again = effect()
        assert again.existing is not None
        assert counts(db) == once

    assert set(counts(db).values()) == {1, 3}


def test_an_effect_of_a_step_that_is_executed_twice_comes_about_once(db: SystemDatabase) -> None:
    begin(db, start())

    for effect in effects_of_a_step(db, Owner("w", "token")).values():
        assert [effect(), effect()] == [StepRecorded("PENDING", None)] * 2

    assert counts(db) == {**dict.fromkeys(TABLES, 1), "operation_outputs": 0}


@pytest.mark.parametrize("reason", ["other token", "finished", "owner gone", "missing"])
@pytest.mark.parametrize("where", ["body", "step"])
def test_a_run_that_does_not_own_its_workflow_has_no_effect(db: SystemDatabase, reason: str, where: str) -> None:
    begin(db, start())
    change = {
        "other token": "UPDATE dbos.workflow_status SET run_token = 'another'",
        "finished": "UPDATE dbos.workflow_status SET status = 'SUCCESS'",
        "owner gone": "DELETE FROM dbos.executor_instances",
        "missing": "UPDATE dbos.workflow_status SET workflow_uuid = 'moved'",
    }[reason]
    db.change(lambda connection: connection.run(change))
    made = effects(db) if where == "body" else effects_of_a_step(db, Owner("w", "token"))
    if reason == "missing":
        del made["send"]  # nobody is there to send it to

    for effect in made.values():
        assert effect() == StepRecorded(None, None)

    assert set(counts(db).values()) == {0}


def test_a_cancelled_run_has_no_effect_but_that_of_a_step_that_is_running(db: SystemDatabase) -> None:
    begin(db, start())
    db.change(db.workflows.cancel, ["w"], NOW_MS)

    for effect in effects(db).values():
        assert effect() == StepRecorded("CANCELLED", None)
    assert set(counts(db).values()) == {0}
    for effect in effects_of_a_step(db, Owner("w", "token")).values():
        assert effect() == StepRecorded("PENDING", None)
    assert counts(db)["workflow_events"] == 1


def test_messages_sent_in_one_millisecond_are_received_in_the_order_of_sending(db: SystemDatabase) -> None:
    begin(db, start())
    for first in range(0, 40, 20):
        rows = [message(number) for number in range(first, first + 20)]
        assert db.commit(call(db.messages.send, Mailing(rows)))[0] == Sent(
            (), [("w", TOPIC)], StepRecorded("PENDING", None)
        )

    received = [receive(db, step(function_id=number)) for number in range(1, 41)]

    assert [each.existing.output for each in received if each is not None and each.existing is not None] == [
        str(number) for number in range(40)
    ]


def test_a_receive_that_is_executed_twice_returns_the_same_message_and_leaves_the_next(db: SystemDatabase) -> None:
    begin(db, start())
    db.commit(call(db.messages.send, Mailing([message(1), message(2)])))

    first, again = receive(db, step()), receive(db, step())
    following = receive(db, step(function_id=2))
    last = receive(db, step(function_id=2))

    assert first == again
    assert first is not None
    assert first.existing is not None
    assert first.existing.output == "1"
    assert following == last
    assert following is not None
    assert following.existing is not None
    assert following.existing.output == "2"


def test_the_end_of_a_wait_is_recorded_once_and_nothing_before(db: SystemDatabase) -> None:
    begin(db, start())

    assert receive(db, step(output="null")) is None
    ended = receive(db, step(output="null"), is_last=True)
    db.commit(call(db.messages.send, Mailing([message()])))
    again = receive(db, step(output="null"), is_last=True)

    assert ended == again
    assert ended is not None
    assert ended.existing is not None
    assert ended.existing.output == "null"


def test_of_two_runs_that_receive_at_once_one_takes_the_message(open_database: OpenDatabase) -> None:
    """One of them was taken over, and does not know it: it takes nothing, and does not record that there was none."""
    old, new = open_database("old"), open_database("ours")
    for round_number in range(20):
        workflow_id = f"w{round_number}"
        begin(new, start(workflow_id))
        [sent] = new.commit(call(new.messages.send, Mailing([message(round_number, destination_uuid=workflow_id)])))
        assert not sent.missing
        rightful = step(workflow_uuid=workflow_id)
        with ThreadPoolExecutor(2) as pool:
            results = pool.map(
                lambda race: receive(race[0], race[1], is_last=True),
                [(old, rightful._replace(run_token="before")), (new, rightful)],
            )
            superseded, received = list(results)

        assert superseded == StepRecorded(None, None)
        assert received is not None
        assert received.existing is not None
        assert received.existing.output == str(round_number)


def test_values_appended_at_once_through_several_connections_have_dense_offsets(open_database: OpenDatabase) -> None:
    ours, other = open_database("ours"), open_database("ours2")
    begin(ours, start())

    def append(number: int) -> None:
        db = ours if number % 2 else other
        request = Append(
            "w", "key", "1", "json", function_id=0, step=None, owner=Owner("w", "token"), token=str(number)
        )
        assert db.commit(call(db.streams.append, request))[0][1] is not None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(100)))

    _, rows = ours.read(ours.streams.read, "w", "key", 0, 1000)
    assert [row.offset for row in rows] == list(range(100))


def test_many_mailboxes_events_and_places_are_looked_for_at_once(db: SystemDatabase) -> None:
    begin(db, start())
    for effect in effects(db).values():
        effect()
    nobody = [("nobody", f"{number}::'\"") for number in range(2000)]

    assert db.read(db.messages.waiting, [*nobody, ("w", TOPIC), ("w", "other")]) == [("w", TOPIC)]
    assert db.read(db.events.existing, [*nobody, ("w", "key"), ("w", "other")]) == [("w", "key")]
    assert db.read(db.streams.existing, [("w", "key", "0"), ("w", "key", "1")]) == [("w", "key", "0")]
