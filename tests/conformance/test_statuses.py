"""Claiming, giving back, cancelling, resuming, reclaiming, giving up: every change of status that is not hot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from dbos._queue_config import Limits, QueueConfig, RateLimit
from dbos._sys_db import SystemDatabase
from dbos._sysdb.rows import StatusRow
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE, target_key
from tests.conformance.values import (
    NOW_MS,
    begin,
    child,
    claim_request,
    enqueue,
    outcome,
    row,
    start,
    status,
    step,
    update,
)

OpenDatabase = Callable[..., SystemDatabase]

LATER_MS = NOW_MS + 60_000
UNFINISHED = ("PENDING", "ENQUEUED", "DELAYED")
FINISHED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")


def claim(db: SystemDatabase, count: int = 10, **values: Any) -> list[StatusRow]:
    return db.change(db.claims.claim, claim_request(count=count, now_ms=LATER_MS, **values)).rows


def claim_by_id(db: SystemDatabase, workflow_id: str = "w", **values: Any) -> StatusRow | None:
    arguments: dict[str, Any] = {
        "workflow_id": workflow_id,
        "instance": "ours",
        "executor_id": "local",
        "application_version": "v1",
        "run_token": "claimed",
        "seen_token": row(db, workflow_id).run_token or "",
        "now_ms": LATER_MS,
    }
    return db.change(partial(db.workflows.claim_by_id, **{**arguments, **values}))


def ids(rows: Sequence[StatusRow]) -> list[str]:
    return [each.workflow_uuid for each in rows]


def with_status(db: SystemDatabase, workflow_id: str, status: str) -> None:
    begin(db, start(workflow_id, run_token=f"start of {workflow_id}"))
    update(db, workflow_id, status=status)


# -- claiming ---------------------------------------------------------------------------------------------------------


def test_a_claim_makes_a_waiting_workflow_ours(db: SystemDatabase) -> None:
    db.change(db.versions.register, "1", "v1", 1)
    begin(db, enqueue(workflow_timeout_ms=500, inputs='["x"]', application_version=None))

    [claimed] = claim(db)

    assert claimed == row(db)
    assert (claimed.status, claimed.owner_instance, claimed.run_token) == ("PENDING", "ours", "claimed")
    assert (claimed.started_at_epoch_ms, claimed.updated_at) == (LATER_MS, LATER_MS)
    assert claimed.workflow_deadline_epoch_ms == LATER_MS + 500
    assert (claimed.recovery_attempts, claimed.application_version) == (1, "v1")
    assert (claimed.inputs, claimed.queue_name) == ('["x"]', "mail")
    assert claimed.owner_xid == "start of w"


def test_claims_come_by_priority_and_then_in_order_of_enqueueing_and_no_more_than_asked_for(
    db: SystemDatabase,
) -> None:
    for name, priority, created_at in (("c", 1, 4), ("a", 0, 3), ("d", 1, 2), ("b", 0, 1)):  # the clock went back
        begin(db, enqueue(name, priority=priority, created_at=created_at))

    assert ids(claim(db, 3)) == ["a", "b", "c"]
    assert ids(claim(db, 3)) == ["d"]
    assert claim(db, 3) == []


def test_a_claim_keeps_a_deadline_that_is_set(db: SystemDatabase) -> None:
    begin(db, enqueue(workflow_timeout_ms=500, workflow_deadline_epoch_ms=7))

    assert claim(db)[0].workflow_deadline_epoch_ms == 7


@pytest.mark.parametrize(
    "values",
    [
        {"queue_name": "other"},
        {"application_version": None},
        {"status": "DELAYED", "delay_until_epoch_ms": LATER_MS},
        {"application_version": "v2"},
        {"name": "unknown"},
        {"name": "unknown", "class_name": "Shop", "config_name": "north"},
    ],
)
def test_what_is_not_for_us_is_left(db: SystemDatabase, values: dict[str, Any]) -> None:
    db.change(db.versions.register, "1", "v1", 1)
    db.change(db.versions.register, "2", "v2", 2)
    begin(db, enqueue(**values))
    unknown = [target_key("unknown", None, None), target_key("unknown", "Shop", "north")]

    assert claim(db, unknown_targets=unknown) == []


def test_only_the_exact_target_is_unknown(db: SystemDatabase) -> None:
    begin(db, enqueue("a", name="unknown", class_name="Shop"))

    assert ids(claim(db, unknown_targets=[target_key("unknown", None, None)])) == ["a"]


def test_an_instance_without_a_row_claims_nothing(db: SystemDatabase) -> None:
    begin(db, enqueue())

    assert claim(db, instance="dead") == []
    assert status(db) == "ENQUEUED"


def test_processes_that_claim_at_once_share_the_work(db: SystemDatabase, open_database: OpenDatabase) -> None:
    other = open_database("theirs")
    for number in range(100):
        begin(db, enqueue(f"w{number}"))
    claimed: dict[str, list[str]] = {"ours": [], "theirs": []}

    def claim_all(database: SystemDatabase, name: str) -> None:
        idle = 0
        while idle < 3:  # what another process is just claiming is passed over
            rows = claim(database, 7, instance=name, run_token=f"claimed by {name}")
            claimed[name] += ids(rows)
            idle = 0 if rows else idle + 1

    threads = [threading.Thread(target=claim_all, args=given) for given in ((db, "ours"), (other, "theirs"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(claimed["ours"] + claimed["theirs"]) == sorted(f"w{number}" for number in range(100))
    for name, mine in claimed.items():
        assert db.read(db.workflows.running, name) == dict.fromkeys(mine, f"claimed by {name}")


def test_a_claim_that_is_given_back_was_no_attempt(db: SystemDatabase) -> None:
    begin(db, enqueue())
    before = row(db)
    claim(db)

    was_undone = db.change(db.workflows.give_back, "w", "claimed", LATER_MS)
    was_undone_again = db.change(db.workflows.give_back, "w", "claimed", LATER_MS)

    given_back = row(db)
    assert (was_undone, was_undone_again) == (True, False)
    assert (given_back.status, given_back.queue_name, given_back.recovery_attempts) == ("ENQUEUED", "mail", 0)
    assert (given_back.run_token, given_back.owner_instance, given_back.started_at_epoch_ms) == (None, None, None)
    assert given_back.owner_xid == before.owner_xid
    assert ids(claim(db)) == ["w"]


def test_giving_back_needs_the_token(db: SystemDatabase) -> None:
    begin(db, enqueue())
    claim(db)

    db.change(db.workflows.give_back, "w", "stale", LATER_MS)

    assert status(db) == "PENDING"


@pytest.mark.parametrize(
    ("values", "deadline_ms"),
    [({}, None), ({"recovery_attempts": 1}, LATER_MS + 500), ({"workflow_deadline_epoch_ms": 7}, 7)],
    ids=["the first claim", "a later claim", "a deadline that was set before"],
)
def test_a_claim_that_is_given_back_takes_back_the_deadline_that_it_has_set(
    db: SystemDatabase, values: dict[str, Any], deadline_ms: int | None
) -> None:
    """A timeout runs from when a workflow is dequeued to be begun: what never began has used nothing of it."""
    begin(db, enqueue(workflow_timeout_ms=500, **values))
    [claimed] = claim(db)

    db.change(db.workflows.give_back, "w", "claimed", LATER_MS)

    assert claimed.workflow_deadline_epoch_ms == (deadline_ms or LATER_MS + 500)
    assert row(db).workflow_deadline_epoch_ms == deadline_ms


def test_a_start_that_is_given_back_keeps_the_deadline_that_it_began_with(db: SystemDatabase) -> None:
    begin(db, start(workflow_timeout_ms=500, workflow_deadline_epoch_ms=NOW_MS + 500))

    db.change(db.workflows.give_back, "w", "token", LATER_MS)

    assert (row(db).status, row(db).workflow_deadline_epoch_ms) == ("ENQUEUED", NOW_MS + 500)


@pytest.mark.parametrize("by_id", [False, True], ids=["from its queue", "by its id"])
def test_what_was_of_no_version_is_of_no_version_again_when_it_is_given_back(db: SystemDatabase, by_id: bool) -> None:
    """Otherwise it would wait for the version that has just left."""
    db.change(db.versions.register, "1", "v1", 1)
    begin(db, enqueue(application_version=None))
    claimed = claim_by_id(db) if by_id else claim(db)[0]
    assert claimed is not None

    db.change(db.workflows.give_back, "w", "claimed", LATER_MS)

    assert (claimed.application_version, row(db).application_version) == ("v1", None)


@pytest.mark.parametrize("by_id", [False, True], ids=["from its queue", "by its id"])
def test_what_has_run_before_keeps_its_version_when_it_is_given_back(db: SystemDatabase, by_id: bool) -> None:
    """What was of no version at first has perhaps recorded something since, for its version to replay."""
    db.change(db.versions.register, "1", "v1", 1)
    begin(db, enqueue(application_version=None))
    [first] = claim(db, run_token="first")
    update(db, "w", owner_instance="gone")
    db.change(db.workflows.reclaim, "v1", LATER_MS)
    second = claim_by_id(db) if by_id else claim(db)[0]
    assert second is not None

    db.change(db.workflows.give_back, "w", "claimed", LATER_MS)

    assert first.application_version == second.application_version == row(db).application_version == "v1"


@pytest.mark.parametrize("key", [None, "x"], ids=["of the queue", "of a partition"])
def test_a_claim_that_is_given_back_counts_against_no_rate(db: SystemDatabase, key: str | None) -> None:
    limits = Limits(rate=RateLimit(3, 60.0))
    queue = QueueConfig(name="mail", queue=limits, partition=limits if key else Limits(), is_partitioned=bool(key))
    for name in "abcd":
        begin(db, enqueue(name, queue_partition_key=key))
    first = ids(claim(db, 2, queue=queue, run_token="first"))
    second = ids(claim(db, 2, queue=queue, run_token="second"))

    db.change(db.workflows.give_back, "a", "first", LATER_MS)
    db.change(db.workflows.give_back, "a", "first", LATER_MS)  # its answer was lost
    db.change(db.workflows.give_back, "b", "stale", LATER_MS)
    third = ids(claim(db, queue=queue, run_token="third"))

    assert (first, second, third) == (["a", "b"], ["c"], ["a"])


# -- one by its id ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", [None, "ours", "dead"])
def test_a_workflow_that_nobody_alive_runs_is_claimed_by_its_id(db: SystemDatabase, owner: str | None) -> None:
    begin(db, start(workflow_timeout_ms=500))
    update(db, "w", owner_instance=owner)

    claimed = claim_by_id(db)

    assert claimed == row(db)
    assert claimed is not None
    assert (claimed.run_token, claimed.owner_instance, claimed.recovery_attempts) == ("claimed", "ours", 2)
    assert claimed.workflow_deadline_epoch_ms == LATER_MS + 500


def test_a_workflow_that_somebody_alive_runs_is_not(db: SystemDatabase, open_database: OpenDatabase) -> None:
    open_database("theirs")
    begin(db, start())
    update(db, "w", owner_instance="theirs")

    assert claim_by_id(db) is None
    assert row(db).owner_instance == "theirs"


@pytest.mark.parametrize("finished", [*FINISHED, "DELAYED"])
def test_what_does_not_run_is_not_claimed_by_its_id(db: SystemDatabase, finished: str) -> None:
    with_status(db, "w", finished)

    assert claim_by_id(db) is None
    assert status(db) == finished


def test_a_claim_by_id_whose_answer_was_lost_has_claimed_and_was_one_attempt(db: SystemDatabase) -> None:
    """Executed again, it found its own token and not the one it had seen, and claimed nothing."""
    db.change(db.versions.register, "1", "v1", 1)
    begin(db, enqueue(application_version=None, workflow_timeout_ms=500))
    seen_token = row(db).run_token or ""

    first = claim_by_id(db, seen_token=seen_token)
    again = claim_by_id(db, seen_token=seen_token)
    db.change(db.workflows.give_back, "w", "claimed", LATER_MS)

    assert again == first
    assert again is not None
    assert again.recovery_attempts == 1
    assert (row(db).recovery_attempts, row(db).application_version) == (0, None)


# -- cancelling and resuming ------------------------------------------------------------------------------------------


def test_cancelling_touches_what_is_not_finished(db: SystemDatabase) -> None:
    for each in (*UNFINISHED, *FINISHED):
        with_status(db, each, each)
        update(db, each, queue_name="mail", started_at_epoch_ms=1)

    cancelled = db.change(db.workflows.cancel, [*UNFINISHED, *FINISHED, "missing"], LATER_MS)

    assert sorted(cancelled) == sorted([*UNFINISHED, "MAX_RECOVERY_ATTEMPTS_EXCEEDED"])
    for each in cancelled:
        found = row(db, each)
        assert (found.status, found.completed_at, found.updated_at) == ("CANCELLED", LATER_MS, LATER_MS)
        assert (found.queue_name, found.deduplication_id, found.started_at_epoch_ms) == (None, None, None)
        assert found.owner_instance is None
        assert found.run_token == f"start of {each}"
    assert status(db, "SUCCESS") == "SUCCESS"
    assert row(db, "ERROR").updated_at == NOW_MS


def test_cancelling_twice_changes_nothing(db: SystemDatabase) -> None:
    begin(db, start())
    db.change(db.workflows.cancel, ["w"], NOW_MS)
    before = row(db)

    assert db.change(db.workflows.cancel, ["w"], LATER_MS) == []
    assert row(db) == before


def test_cancelling_frees_the_deduplication_id(db: SystemDatabase) -> None:
    begin(db, enqueue("first", deduplication_id="invoice"))

    db.change(db.workflows.cancel, ["first"], NOW_MS)

    assert begin(db, enqueue("second", deduplication_id="invoice")).created


def test_only_what_is_overdue_is_cancelled_for_its_deadline(db: SystemDatabase) -> None:
    begin(db, start("due", workflow_deadline_epoch_ms=LATER_MS))
    begin(db, start("early", workflow_deadline_epoch_ms=LATER_MS + 1))
    begin(db, start("none"))
    begin(db, start("finished", workflow_deadline_epoch_ms=1))
    db.commit(outcome("finished"))

    assert db.change(db.workflows.cancel_overdue, ["due", "early", "none", "finished"], LATER_MS) == ["due"]
    assert [status(db, each) for each in ("due", "early", "none", "finished")] == [
        "CANCELLED",
        "PENDING",
        "PENDING",
        "SUCCESS",
    ]


def test_resuming_puts_what_has_no_result_into_a_queue_as_if_new(db: SystemDatabase) -> None:
    for each in (*UNFINISHED, *FINISHED):
        with_status(db, each, each)
        update(db, each, recovery_attempts=9, workflow_deadline_epoch_ms=1, completed_at=1, started_at_epoch_ms=1)
        update(db, each, owner_instance=None)

    resumed = db.change(db.workflows.resume, [*UNFINISHED, *FINISHED, "missing"], "mail", LATER_MS)

    assert sorted(resumed) == sorted({*UNFINISHED, *FINISHED} - {"SUCCESS", "ERROR"})
    for each in resumed:
        found = row(db, each)
        assert (found.status, found.queue_name, found.recovery_attempts) == ("ENQUEUED", "mail", 0)
        assert (found.workflow_deadline_epoch_ms, found.completed_at, found.started_at_epoch_ms) == (None, None, None)
        assert (found.run_token, found.owner_instance) == (None, None)
    assert status(db, "SUCCESS") == "SUCCESS"
    assert sorted(ids(claim(db))) == sorted(resumed)


def test_what_a_live_instance_runs_needs_no_resuming(db: SystemDatabase) -> None:
    begin(db, start("w"))

    resumed = db.change(db.workflows.resume, ["w"], "mail", LATER_MS)

    assert resumed == []
    assert (row(db).status, row(db).owner_instance) == ("PENDING", "ours")


def test_of_two_who_saw_the_same_row_one_claims_it(db: SystemDatabase) -> None:
    begin(db, start("w"))
    seen_token = row(db).run_token or ""

    first = claim_by_id(db, run_token="first", seen_token=seen_token)
    second = claim_by_id(db, run_token="second", seen_token=seen_token)

    assert first is not None
    assert second is None
    assert row(db).run_token == "first"


# -- what the dead leave ----------------------------------------------------------------------------------------------


def test_what_dead_instances_ran_is_put_back_into_its_queue(db: SystemDatabase, open_database: OpenDatabase) -> None:
    open_database("theirs")
    for name, owner in (("mine", "ours"), ("alive", "theirs"), ("dead", "gone"), ("nobody", None)):
        begin(db, start(name))
        update(db, name, owner_instance=owner, recovery_attempts=3)
    begin(db, enqueue("queued"))
    update(db, "queued", status="PENDING", owner_instance="gone", started_at_epoch_ms=1)
    begin(db, start("other version", application_version="v2"))
    update(db, "other version", owner_instance="gone")
    begin(db, start("finished"))
    db.commit(outcome("finished"))
    assert db.read(db.workflows.has_orphans, "v1")

    reclaimed = db.change(db.workflows.reclaim, "v1", LATER_MS)

    assert sorted(reclaimed) == ["dead", "nobody", "queued"]
    assert {name: row(db, name).queue_name for name in reclaimed} == {
        "dead": INTERNAL_QUEUE,
        "nobody": INTERNAL_QUEUE,
        "queued": "mail",
    }
    for name in ("dead", "nobody", "queued"):
        found = row(db, name)
        assert (found.status, found.run_token, found.owner_instance) == ("ENQUEUED", None, None)
        assert found.started_at_epoch_ms is None
    assert row(db, "dead").recovery_attempts == 3
    assert [status(db, name) for name in ("mine", "alive", "other version", "finished")] == [
        "PENDING",
        "PENDING",
        "PENDING",
        "SUCCESS",
    ]
    assert not db.read(db.workflows.has_orphans, "v1")
    assert db.read(db.workflows.has_orphans, "v2")
    assert db.change(db.workflows.reclaim, "v1", LATER_MS) == []


@pytest.mark.parametrize("key", [None, "x"], ids=["of the queue", "of its partition"])
def test_what_belonged_to_the_dead_holds_no_place(
    db: SystemDatabase, open_database: OpenDatabase, key: str | None
) -> None:
    """What a version has left that is gone for good is PENDING for ever, and so was the queue behind it."""
    limits = Limits(concurrency=1)
    queue = QueueConfig(
        name="mail",
        queue=Limits() if key else limits,
        partition=limits if key else Limits(),
        is_partitioned=key is not None,
    )
    theirs = open_database("theirs")
    begin(db, enqueue("a", application_version="v2", queue_partition_key=key))
    begin(db, enqueue("b", queue_partition_key=key))
    claim(theirs, queue=queue, instance="theirs", application_version="v2", run_token="first")

    while_alive = claim(db, queue=queue, run_token="second")
    db.change(db.executors.remove, ["theirs"])
    after = claim(db, queue=queue, run_token="third")

    assert (ids(while_alive), ids(after)) == ([], ["b"])
    assert status(db, "a") == "PENDING"


def test_the_places_of_workflows_are_the_queues_in_which_they_run(db: SystemDatabase) -> None:
    begin(db, start("of no queue"))
    for name, queue_name in (("a", "mail"), ("b", "mail"), ("waits", "other")):
        begin(db, enqueue(name, queue_name))
    claim(db)

    assert db.read(db.workflows.places, ["of no queue", "a", "b", "waits", "missing"]) == ["mail"]
    assert db.read(db.workflows.places, []) == []


def test_what_we_own_and_do_not_run_is_put_back_if_it_is_still_the_same_run(db: SystemDatabase) -> None:
    begin(db, start("lost", run_token="lost token"))
    begin(db, start("claimed anew", run_token="new token"))
    begin(db, start("running"))

    reclaimed = db.change(
        db.workflows.reclaim_own, "ours", {"lost": "lost token", "claimed anew": "old token"}, LATER_MS
    )

    assert reclaimed == ["lost"]
    assert db.read(db.workflows.running, "ours") == {"claimed anew": "new token", "running": "token"}


def test_what_was_attempted_too_often_is_given_up(db: SystemDatabase) -> None:
    begin(db, start(queue_name="mail", deduplication_id="invoice"))

    assert not db.change(db.workflows.dead_letter, "w", "stale", LATER_MS)
    assert db.change(db.workflows.dead_letter, "w", "token", LATER_MS)
    assert not db.change(db.workflows.dead_letter, "w", "token", LATER_MS)

    found = row(db)
    assert (found.status, found.completed_at) == ("MAX_RECOVERY_ATTEMPTS_EXCEEDED", LATER_MS)
    assert (found.queue_name, found.deduplication_id, found.owner_instance) == (None, None, None)


def test_work_of_versions_that_nobody_runs_is_counted(db: SystemDatabase) -> None:
    begin(db, start("ours"))
    begin(db, start("pending", application_version="v0"))
    begin(db, enqueue("queued", application_version="v0"))
    begin(db, enqueue("delayed", application_version="v9", status="DELAYED"))
    begin(db, enqueue("any version", application_version=None))
    begin(db, start("finished", application_version="v8"))
    db.commit(outcome("finished"))

    assert db.read(db.workflows.stranded_versions) == {"v0": 2, "v9": 1}


def test_work_of_no_version_is_counted_with_the_latest_version(db: SystemDatabase, open_database: OpenDatabase) -> None:
    """Only the latest runs it: it was not counted anywhere when the latest had been rolled back."""
    begin(db, enqueue("queued", application_version=None))
    begin(db, enqueue("delayed", application_version=None, status="DELAYED"))
    begin(db, enqueue("named", application_version="v2"))
    before_any = db.read(db.workflows.stranded_versions)
    db.change(db.versions.register, "1", "v1", 1)
    while_latest_runs = db.read(db.workflows.stranded_versions)
    db.change(db.versions.register, "2", "v2", 2)

    stranded = db.read(db.workflows.stranded_versions)

    assert before_any == while_latest_runs == {"v2": 1}
    assert stranded == {"v2": 3}


def test_adopting_the_latest_version_takes_what_is_of_no_version_too(db: SystemDatabase) -> None:
    for number, version in enumerate(("v1", "v2", "v3")):
        db.change(db.versions.register, version, version, number)
    for name, given in (("any", None), ("old", "v2"), ("latest", "v3")):
        begin(db, enqueue(name, application_version=given))
    begin(db, start("running"))

    of_old = db.change(db.executors.adopt, "v2", "v1", LATER_MS)
    version_between = row(db, "any").application_version
    of_latest = db.change(db.executors.adopt, "v3", "v1", LATER_MS)

    assert (of_old, version_between, of_latest) == (["mail"], None, ["mail", "mail"])
    assert {row(db, name).application_version for name in ("any", "old", "latest", "running")} == {"v1"}
    assert row(db, "running").updated_at == NOW_MS


def test_what_has_an_outcome_or_does_not_exist_is_settled(db: SystemDatabase) -> None:
    everything = [*UNFINISHED, *FINISHED]
    for each in everything:
        with_status(db, each, each)

    assert db.read(db.workflows.settled, [*everything, "missing"]) == [*FINISHED, "missing"]
    assert db.read(db.workflows.settled, []) == []


# -- histories --------------------------------------------------------------------------------------------------------


def test_a_history_is_read_in_pages_across_workflows(db: SystemDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbos._sysdb.stores.operation_outputs.HISTORY_PAGE_ROWS", 7)
    counts = {"a": 7, "b": 0, "c": 15, "é": 1, "Z": 6}
    for name, count in counts.items():
        begin(db, start(name))
        for number in range(count):
            db.commit(step(name, number, output=f"{name} {number}"))
    begin(db, start("other"))
    db.commit(step("other", 1))

    histories = db.read(db.operations.history, list(counts))

    assert {name: list(history) for name, history in histories.items()} == {
        name: list(range(count)) for name, count in counts.items()
    }
    assert histories["c"][14].output == "c 14"


def test_the_history_of_a_child_start_names_the_child(db: SystemDatabase) -> None:
    begin(db, start("parent"))
    begin(db, child("child", "parent", 3, run_token="child token"))

    [recorded] = db.read(db.operations.steps, "parent")

    assert (recorded.function_id, recorded.child_workflow_id, recorded.output) == (3, "child", None)
