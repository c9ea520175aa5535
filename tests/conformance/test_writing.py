"""Starts, steps and outcomes: who may write what, and that writing twice is the same as writing once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dbos._error import DBOSException, ExecutorFencedError
from dbos._sys_db import SystemDatabase
from dbos._sysdb import committer
from dbos._sysdb.operations import OutcomeRecorded, Started, StepRecorded
from dbos._sysdb.rows import StepRow
from tests.conformance.values import (
    NOW_MS,
    begin,
    child,
    enqueue,
    executor,
    outcome,
    record,
    row,
    start,
    status,
    step,
    steps,
    update,
)

OpenDatabase = Callable[..., SystemDatabase]

AWKWARD_TEXTS = [
    "",
    "NULL",
    "null",
    "{}",
    '{"a","b"}',
    "a,b",
    'say "hello"',
    "back\\slash \\n \\\\",
    "line\nbreak\ttab\r",
    " blanks ",
    "élan 東京 🚀",
    "'; DROP TABLE x; --",
    "$1 %s :name ? ::text",
]


def fields(operation: Any) -> dict[str, Any]:
    written: dict[str, Any] = operation._asdict()
    written.pop("parent_step", None)
    return written


# -- starting ---------------------------------------------------------------------------------------------------------


def test_a_start_creates_the_row_with_everything_it_names(db: SystemDatabase) -> None:
    operation = start(
        class_name="Shop",
        config_name="north",
        authenticated_user="alice",
        assumed_role="admin",
        authenticated_roles='["admin"]',
        workflow_timeout_ms=1000,
        workflow_deadline_epoch_ms=NOW_MS + 1000,
        inputs='[["a"], {}]',
        priority=-3,
        delay_until_epoch_ms=NOW_MS + 5,
    )

    assert begin(db, operation) == Started(created=True, existing=None)

    written = row(db)._asdict()
    assert {name: written[name] for name in fields(operation)} == fields(operation)
    assert written["updated_at"] == NOW_MS
    assert written["owner_xid"] == "token"
    assert written["was_forked_from"] in (False, 0)


def test_a_start_with_a_taken_id_is_shown_the_row_that_has_it(db: SystemDatabase) -> None:
    begin(db, start(inputs='["first"]'))

    started = begin(db, start(inputs='["second"]', run_token="other"))

    assert not started.created
    assert started.existing == row(db)
    assert row(db).inputs == '["first"]'


def test_a_start_that_is_executed_twice_recognises_its_own_row(db: SystemDatabase) -> None:
    begin(db, start())

    assert begin(db, start()) == Started(created=True, existing=None)


def test_a_start_that_is_executed_again_after_its_row_went_on_recognises_it_still(db: SystemDatabase) -> None:
    begin(db, start())
    db.commit(outcome())

    assert begin(db, start()).created


async def test_of_starts_with_one_id_in_one_batch_one_creates_the_row(db: SystemDatabase) -> None:
    results = await asyncio.gather(*(db.submit(start(run_token=f"token {number}")) for number in range(20)))

    started: list[Started] = [result[0] for result in results]
    winners = [each for each in started if each.created]
    assert len(winners) == 1
    assert all(each.existing == row(db) for each in started if not each.created)


def test_an_id_that_is_blank_is_refused_and_costs_the_neighbours_nothing(db: SystemDatabase) -> None:
    with pytest.raises(Exception, match=r"(?i)check"):
        begin(db, start("  "))

    assert begin(db, start("w")).created


def test_a_held_deduplication_id_is_answered_with_its_holder(db: SystemDatabase) -> None:
    """On SQLite this was once a TypeError."""
    begin(db, enqueue("first", deduplication_id="invoice"))

    started = begin(db, enqueue("second", deduplication_id="invoice"))

    assert started == Started(created=False, existing=None, holder=row(db, "first"))
    assert db.read(db.workflows.get, "second") is None
    assert begin(db, enqueue("third", queue_name="other", deduplication_id="invoice")).created


async def test_a_held_deduplication_id_fails_nobody_else_in_the_batch(db: SystemDatabase) -> None:
    begin(db, enqueue("first", deduplication_id="invoice"))

    results = await asyncio.gather(
        *(db.submit(enqueue(f"w{number}", deduplication_id="invoice" if number == 3 else None)) for number in range(6))
    )

    assert [result[0].created for result in results] == [True, True, True, False, True, True]
    assert results[3][0].holder.workflow_uuid == "first"


def test_a_child_and_its_parents_record_are_written_together(db: SystemDatabase) -> None:
    begin(db, start("parent"))

    started = begin(db, child("child", "parent", 7, run_token="child token"))

    assert started.created
    assert row(db, "child").parent_workflow_id == "parent"
    assert [(each.function_id, each.child_workflow_id) for each in steps(db, "parent")] == [(7, "child")]
    assert begin(db, child("child", "parent", 7, run_token="child token")).created
    assert len(steps(db, "parent")) == 1


@pytest.mark.parametrize("reason", ["cancelled", "other token", "finished", "missing"])
def test_a_parent_that_does_not_run_starts_no_child(db: SystemDatabase, reason: str) -> None:
    if reason != "missing":
        begin(db, start("parent"))
    if reason == "cancelled":
        db.change(db.workflows.cancel, ["parent"], NOW_MS)
    if reason == "finished":
        db.commit(outcome("parent"))
    token = "stale" if reason == "other token" else "token"

    started = begin(db, child("child", "parent", 1, parent_token=token, run_token="child token"))

    assert started == Started(created=False, existing=None)
    assert db.read(db.workflows.get, "child") is None
    assert steps(db, "parent") == []


def test_a_child_whose_id_is_taken_leaves_the_parents_record_to_the_caller(db: SystemDatabase) -> None:
    begin(db, start("parent"))
    begin(db, start("child", run_token="other"))

    started = begin(db, child("child", "parent", 1, run_token="child token"))

    assert started.existing == row(db, "child")
    assert steps(db, "parent") == []


# -- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
def test_texts_are_stored_as_they_are(db: SystemDatabase, text: str) -> None:
    begin(db, start(inputs=text))

    db.commit(step(1 * "w", 1, output=text, error=None), step("w", 2, output=None, error=text, function_name=text))
    db.commit(outcome(output=text))

    first, second = steps(db)
    assert (first.output, first.error) == (text, None)
    assert (second.output, second.error, second.function_name) == (None, text, text)
    assert (row(db).inputs, row(db).output) == (text, text)


@pytest.mark.parametrize("workflow_id", [text for text in AWKWARD_TEXTS if text])
def test_ids_are_matched_as_they_are(db: SystemDatabase, workflow_id: str) -> None:
    begin(db, start(workflow_id))

    record(db, step(workflow_id))

    assert db.read(db.operations.history, [workflow_id, "other"])[workflow_id].keys() == {1}
    assert db.read(db.workflows.settled, [workflow_id]) == []


def test_numbers_beyond_32_bits_are_stored_as_they_are(db: SystemDatabase) -> None:
    begin(db, start(created_at=2**53))

    record(db, step(started_at_epoch_ms=2**40, completed_at_epoch_ms=None))

    assert row(db).created_at == 2**53
    assert (steps(db)[0].started_at_epoch_ms, steps(db)[0].completed_at_epoch_ms) == (2**40, None)


def test_a_step_is_recorded_under_a_valid_token(db: SystemDatabase) -> None:
    begin(db, start())

    assert record(db, step()) == StepRecorded("PENDING", None)

    assert steps(db) == [StepRow(*step()[:9])]


def test_the_first_record_wins_and_is_returned(db: SystemDatabase) -> None:
    begin(db, start())
    record(db, step(output='"first"'))

    recorded = record(db, step(output='"second"'))

    assert recorded == StepRecorded("PENDING", StepRow(*step(output='"first"')[:9]))
    assert [each.output for each in steps(db)] == ['"first"']


def test_a_step_that_is_executed_twice_recognises_its_own_record(db: SystemDatabase) -> None:
    """An answer to COMMIT that was lost must not look like somebody else's record."""
    begin(db, start())
    record(db, step())

    assert record(db, step()) == StepRecorded("PENDING", None)


async def test_of_two_records_of_one_step_in_one_batch_one_is_written(db: SystemDatabase) -> None:
    begin(db, start())

    results = await asyncio.gather(db.submit(step(output='"a"')), db.submit(step(output='"b"')))

    written = steps(db)[0]
    answers = [result[0] for result in results]
    assert [answer.existing for answer in answers].count(None) == 1
    assert [answer.existing for answer in answers if answer.existing is not None] == [written]


@pytest.mark.parametrize("reason", ["other token", "finished", "resumed", "missing", "dead-lettered"])
def test_a_run_without_a_valid_token_records_nothing(db: SystemDatabase, reason: str) -> None:
    if reason != "missing":
        begin(db, start())
    if reason == "finished":
        db.commit(outcome())
    if reason == "resumed":
        db.change(db.workflows.cancel, ["w"], NOW_MS)
        db.change(db.workflows.resume, ["w"], "mail", NOW_MS)
    if reason == "dead-lettered":
        db.change(db.workflows.dead_letter, "w", "token", NOW_MS)
    token = "stale" if reason == "other token" else "token"

    assert record(db, step(run_token=token)) == StepRecorded(None, None)

    assert steps(db) == []


def test_a_record_that_exists_is_not_shown_to_a_run_without_a_valid_token(db: SystemDatabase) -> None:
    begin(db, start())
    record(db, step(output='"first"'))

    assert record(db, step(output='"second"', run_token="stale")) == StepRecorded(None, None)


def test_a_step_that_was_running_when_its_workflow_was_cancelled_is_recorded(db: SystemDatabase) -> None:
    begin(db, start())
    db.change(db.workflows.cancel, ["w"], NOW_MS)

    assert record(db, step()) == StepRecorded("CANCELLED", None)

    assert len(steps(db)) == 1
    assert record(db, step(output='"other"')) == StepRecorded("CANCELLED", steps(db)[0])


async def test_in_a_mixed_batch_each_gets_its_own_answer(db: SystemDatabase) -> None:
    for name in ("pending", "cancelled", "recorded", "finished"):
        begin(db, start(name))
    record(db, step("recorded", output='"first"'))
    db.change(db.workflows.cancel, ["cancelled"], NOW_MS)
    db.commit(outcome("finished"))
    names = ["pending", "cancelled", "recorded", "finished", "missing"]

    results = await asyncio.gather(*(db.submit(step(name)) for name in names), db.submit(step("pending", 2)))

    first = StepRow(*step("recorded", output='"first"')[:9])
    assert [result[0] for result in results] == [
        StepRecorded("PENDING", None),
        StepRecorded("CANCELLED", None),
        StepRecorded("PENDING", first),
        StepRecorded(None, None),
        StepRecorded(None, None),
        StepRecorded("PENDING", None),
    ]


def test_a_step_that_cannot_be_stored_fails_alone(db: SystemDatabase) -> None:
    begin(db, start())

    async def both() -> list[Any]:
        poisonous = db.submit(step("w", 1, output="\ud800"))
        return list(await asyncio.gather(poisonous, db.submit(step("w", 2)), return_exceptions=True))

    failed, recorded = asyncio.run(both())

    assert isinstance(failed, UnicodeEncodeError)
    assert recorded == [StepRecorded("PENDING", None)]


async def test_of_a_large_mixed_batch_the_poisonous_fail_alone_and_who_left_is_served(
    db: SystemDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "MAX_UNIT_CHARACTERS", 2_000_000)
    for number in range(20):
        begin(db, start(f"w{number}"))
    with pytest.raises(DBOSException, match="too large"):
        db.submit(step("w0", 2, output="x" * 3_000_000))
    with pytest.raises(DBOSException, match="too large"):
        db.commit(step("w0", 2, output="x" * 3_000_000))

    futures = {
        **{f"step {number}": db.submit(step(f"w{number}")) for number in range(20)},
        **{f"outcome {number}": db.submit(outcome(f"w{number}")) for number in range(0, 20, 2)},
        "poisonous step": db.submit(step("w1", 2, output="\ud800")),
        **{f"start {number}": db.submit(start(f"v{number}", run_token=f"v{number}")) for number in range(20)},
        "poisonous start": db.submit(start("v99", inputs="\ud800")),
        "blank start": db.submit(start("  ", run_token="blank")),
        "large": db.submit(step("w1", 3, output="x" * 1_500_000)),
    }
    for number in range(0, 20, 5):
        futures[f"start {number}"].cancel()
    results = dict(zip(futures, await asyncio.gather(*futures.values(), return_exceptions=True), strict=True))

    failed = {name for name, result in results.items() if isinstance(result, BaseException)}
    cancelled = {f"start {number}" for number in range(0, 20, 5)}
    assert failed == {"poisonous step", "poisonous start", "blank start"} | cancelled
    assert db.read(db.workflows.get, "v99") is None
    assert [row(db, f"v{number}").workflow_uuid for number in range(20)] == [f"v{number}" for number in range(20)]
    assert [status(db, f"w{number}") for number in range(20)] == ["SUCCESS", "PENDING"] * 10
    assert [each.function_id for each in steps(db, "w1")] == [1, 3]


# -- outcomes ---------------------------------------------------------------------------------------------------------


def test_an_outcome_finishes_a_run(db: SystemDatabase) -> None:
    begin(db, start(deduplication_id="invoice", queue_name="mail"))

    answer = db.commit(outcome(status="ERROR", output=None, error='"no"'))[0]

    assert answer == OutcomeRecorded(is_applied=True)
    finished = row(db)
    assert (finished.status, finished.output, finished.error) == ("ERROR", None, '"no"')
    assert (finished.completed_at, finished.updated_at) == (NOW_MS + 10, NOW_MS + 10)
    assert (finished.owner_instance, finished.deduplication_id) == (None, None)
    assert finished.outcome_serialization == "json"


def test_an_outcome_that_is_executed_twice_is_applied(db: SystemDatabase) -> None:
    begin(db, start())
    db.commit(outcome())

    assert db.commit(outcome())[0].is_applied


@pytest.mark.parametrize("reason", ["other token", "cancelled", "missing", "finished by another run"])
def test_an_outcome_of_a_run_that_lost_its_workflow_changes_nothing(db: SystemDatabase, reason: str) -> None:
    if reason != "missing":
        begin(db, start(run_token="other" if reason == "finished by another run" else "token"))
    if reason == "cancelled":
        db.change(db.workflows.cancel, ["w"], NOW_MS)
    if reason == "finished by another run":
        db.commit(outcome(run_token="other", output='"theirs"'))
    before = db.read(db.workflows.get, "w")
    token = "stale" if reason == "other token" else "token"

    assert not db.commit(outcome(run_token=token))[0].is_applied

    assert db.read(db.workflows.get, "w") == before


# -- the fence --------------------------------------------------------------------------------------------------------


def test_an_instance_that_was_declared_dead_writes_nothing(db: SystemDatabase, open_database: OpenDatabase) -> None:
    begin(db, start())
    before = row(db)
    other = open_database("theirs")
    other.change(other.executors.remove, ["ours"])

    for operation in (step(), outcome(), start("new"), child("child", "w", 1, run_token="child token")):
        with pytest.raises(ExecutorFencedError):
            db.commit(operation)

    assert steps(other) == []
    assert row(other) == before
    assert other.read(other.workflows.get, "new") is None
    assert other.read(other.workflows.get, "child") is None


def test_a_dead_instance_enqueues_no_child_without_its_record(db: SystemDatabase, open_database: OpenDatabase) -> None:
    """Without an owner of its own the child was once written, and its parent's record was not."""
    begin(db, start("parent"))
    other = open_database("theirs")
    other.change(other.executors.remove, ["ours"])

    with pytest.raises(ExecutorFencedError):
        begin(
            db,
            child("child", "parent", 1, status="ENQUEUED", queue_name="mail", owner_instance=None, run_token="child"),
        )

    assert other.read(other.workflows.get, "child") is None
    assert steps(other, "parent") == []


async def test_of_a_dead_instances_batch_what_needs_no_fence_is_written(
    db: SystemDatabase, open_database: OpenDatabase
) -> None:
    for number in range(5):
        db.commit(start(f"w{number}"))
    other = open_database("theirs")
    other.change(other.executors.remove, ["ours"])

    results = await asyncio.gather(
        *(db.submit(step(f"w{number}")) for number in range(5)),
        *(db.submit(enqueue(f"q{number}")) for number in range(5)),
        db.submit(enqueue("w0")),
        return_exceptions=True,
    )

    assert all(isinstance(result, ExecutorFencedError) for result in results[:5])
    assert all(result[0].created for result in results[5:10] if not isinstance(result, BaseException))
    assert not isinstance(results[10], BaseException)
    assert results[10][0].existing == row(other, "w0")
    assert all(steps(other, f"w{number}") == [] for number in range(5))
    assert all(status(other, f"q{number}") == "ENQUEUED" for number in range(5))


def test_an_operation_made_before_a_new_registration_is_refused_after_it(db: SystemDatabase) -> None:
    db.change(db.executors.remove, ["ours"])
    db.change(db.executors.register, executor("ours again"))
    db.fence("ours again")

    with pytest.raises(ExecutorFencedError):
        begin(db, start(owner_instance="ours"))

    assert begin(db, start(owner_instance="ours again")).created


def test_a_step_is_never_reported_recorded_while_the_instance_changes(db: SystemDatabase) -> None:
    """A batch that was refused under the old instance once asked about the new one, and answered "recorded"."""
    begin(db, start())
    stop = threading.Event()

    def change_instances() -> None:
        while not stop.is_set():
            db.fence("gone")
            db.fence("ours")

    changing = threading.Thread(target=change_instances)
    changing.start()
    reported = set()
    for number in range(300):
        try:
            if record(db, step(function_id=number)).status == "PENDING":
                reported.add(number)
        except ExecutorFencedError:
            continue
    stop.set()
    changing.join()

    assert reported <= {each.function_id for each in steps(db)}


def test_who_is_no_executor_is_not_fenced(open_database: OpenDatabase) -> None:
    client = open_database()

    assert begin(client, enqueue("q")).created
    assert begin(client, start("w", owner_instance=None)).created
    assert record(client, step("w")) == StepRecorded("PENDING", None)
    assert client.commit(outcome("w"))[0].is_applied


# -- two processes ----------------------------------------------------------------------------------------------------


def test_processes_that_start_the_same_ids_create_each_once(db: SystemDatabase, open_database: OpenDatabase) -> None:
    other = open_database("theirs")
    started: dict[str, list[Started]] = {"ours": [], "theirs": []}

    def start_all(database: SystemDatabase, name: str) -> None:
        for number in range(60):
            operation = start(f"w{number}", run_token=f"{name} {number}", owner_instance=name)
            started[name].append(begin(database, operation))

    threads = [threading.Thread(target=start_all, args=given) for given in ((db, "ours"), (other, "theirs"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for number, (ours, theirs) in enumerate(zip(started["ours"], started["theirs"], strict=True)):
        assert ours.created != theirs.created
        winner = "ours" if ours.created else "theirs"
        assert row(db, f"w{number}").owner_instance == winner


def test_processes_that_record_the_same_steps_agree_on_the_first(
    db: SystemDatabase, open_database: OpenDatabase
) -> None:
    """Both hold the run's token, which is how a run would look that was forked by a fault."""
    other = open_database("theirs")
    begin(db, start())
    seen: dict[str, dict[int, str | None]] = {"ours": {}, "theirs": {}}

    def record_all(database: SystemDatabase, name: str) -> None:
        for number in range(60):
            existing = record(database, step(function_id=number, output=name)).existing
            seen[name][number] = name if existing is None else existing.output

    threads = [threading.Thread(target=record_all, args=given) for given in ((db, "ours"), (other, "theirs"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    recorded = {each.function_id: each.output for each in steps(db)}
    assert seen["ours"] == seen["theirs"] == recorded


def test_a_cancelled_and_resumed_run_writes_nothing_into_the_new_one(db: SystemDatabase) -> None:
    begin(db, start())
    db.change(db.workflows.cancel, ["w"], NOW_MS)
    db.change(db.workflows.resume, ["w"], "mail", NOW_MS)
    update(db, "w", status="PENDING", run_token="new", owner_instance="ours")

    assert record(db, step(output='"old"')) == StepRecorded(None, None)
    assert not db.commit(outcome(output='"old"'))[0].is_applied

    assert record(db, step(output='"new"', run_token="new")) == StepRecorded("PENDING", None)
    assert db.commit(outcome(run_token="new"))[0].is_applied
