"""Claiming within limits: of a queue and of its partitions, across processes, and after an answer was lost."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dbos._queue_config import Limits, QueueConfig, QueueSettings, RateLimit
from dbos._sys_db import SystemDatabase
from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import StatusRow
from dbos._sysdb.stores.queue_claims import Claimed
from tests.conformance.values import NOW_MS, begin, claim_request, enqueue, outcome, row, status

OpenDatabase = Callable[..., SystemDatabase]

tokens = (f"claim {number}" for number in itertools.count())


def claim(db: SystemDatabase, queue: QueueConfig, count: int = 10, **values: Any) -> Claimed:
    values.setdefault("run_token", next(tokens))
    return db.change(db.claims.claim, claim_request(queue=queue, count=count, **values))


def ids(rows: Sequence[StatusRow]) -> list[str]:
    return [each.workflow_uuid for each in rows]


def finish(db: SystemDatabase, workflow_id: str) -> None:
    token = row(db, workflow_id).run_token
    assert token is not None
    db.commit(outcome(workflow_id, run_token=token))


def mail(*, queue: Limits | None = None, partition: Limits | None = None, **values: Any) -> QueueConfig:
    is_partitioned = partition is not None or bool(values.pop("is_partitioned", False))
    return QueueConfig(
        name="mail", queue=queue or Limits(), partition=partition or Limits(), is_partitioned=is_partitioned, **values
    )


# -- limits of a queue -------------------------------------------------------------------------------------------------


def test_no_more_runs_anywhere_than_the_concurrency_allows(db: SystemDatabase, open_database: OpenDatabase) -> None:
    queue = mail(queue=Limits(concurrency=2))
    other = open_database("theirs")
    for name in "abcd":
        begin(db, enqueue(name))

    first = claim(db, queue, 1)
    theirs = claim(other, queue, instance="theirs")
    full = claim(db, queue)
    finish(db, "a")
    after = claim(db, queue)

    assert (ids(first.rows), first.has_more, first.is_limited) == (["a"], True, False)
    assert (ids(theirs.rows), theirs.has_more, theirs.is_limited) == (["b"], False, True)
    assert (ids(full.rows), full.is_limited) == ([], True)
    assert ids(after.rows) == ["c"]


def test_the_concurrency_counts_every_version(db: SystemDatabase) -> None:
    queue = mail(queue=Limits(concurrency=1))
    begin(db, enqueue("a"))
    begin(db, enqueue("b", application_version="v2"))
    claim(db, queue)

    assert ids(claim(db, queue, application_version="v2").rows) == []
    finish(db, "a")
    assert ids(claim(db, queue, application_version="v2").rows) == ["b"]


def test_what_no_version_here_can_run_counts_against_no_limit(db: SystemDatabase) -> None:
    queue = mail(queue=Limits(concurrency=1, rate=RateLimit(1, 60.0)))
    begin(db, enqueue("a", application_version="v2"))
    begin(db, enqueue("b"))

    assert ids(claim(db, queue).rows) == ["b"]


def test_a_process_runs_no_more_than_the_worker_concurrency_allows(db: SystemDatabase) -> None:
    queue = mail(queue=Limits(worker_concurrency=3))
    for name in "abcd":
        begin(db, enqueue(name))

    first = claim(db, queue, running={None: 1})
    full = claim(db, queue, running={None: 3})

    assert (ids(first.rows), first.has_more, first.is_limited) == (["a", "b"], False, True)
    assert (ids(full.rows), full.has_more, full.is_limited) == ([], False, True)


def test_no_more_start_in_a_period_than_the_rate_allows(db: SystemDatabase) -> None:
    queue = mail(queue=Limits(rate=RateLimit(2, 0.4)))
    for name in "abcde":
        begin(db, enqueue(name))

    first = claim(db, queue)
    for name in "ab":
        finish(db, name)  # what has ended was started all the same
    full = claim(db, queue, now_ms=NOW_MS + 399)
    starts_ms = {each.started_at_epoch_ms for each in first.rows}
    wait_until(db, first.retry_at_ms)
    after = claim(db, queue, now_ms=NOW_MS + 401)

    assert (ids(first.rows), first.is_limited) == (["a", "b"], True)
    assert starts_ms == {each.updated_at for each in first.rows}
    assert full.rows == [] or db.dialect.has_own_clock  # by its own clock, this machine's may have been slow
    assert first.retry_at_ms == first.rows[0].started_at_epoch_ms + 401  # type: ignore[operator]  # it was started
    assert ids(after.rows) == ["c", "d"]


def wait_until(db: SystemDatabase, time_ms: int | None) -> None:
    """Wait for a clock that is not ours to set; with this machine's, the test names the times itself."""
    assert time_ms is not None
    if db.dialect.has_own_clock:
        db.change(
            lambda connection: connection.all(
                f"SELECT pg_sleep((:time_ms::bigint - {db.dialect.now_ms}) / 1000.0)", time_ms=time_ms
            )
        )


def test_starts_are_forgotten_once_their_period_is_over(db: SystemDatabase) -> None:
    queue = mail(queue=Limits(rate=RateLimit(1, 0.001)))
    for number in range(5):
        begin(db, enqueue(str(number)))

    for number in range(5):
        now_ms = NOW_MS + 10 * number
        until_claimed(db, queue, now_ms)

    kept = db.read(lambda connection: connection.all("SELECT started FROM dbos.queue_starts"))
    assert len(kept) <= 2


def until_claimed(db: SystemDatabase, queue: QueueConfig, now_ms: int) -> None:
    while not claim(db, queue, now_ms=now_ms).rows:
        continue


def test_a_rate_and_a_concurrency_hold_together(db: SystemDatabase) -> None:
    queue = mail(queue=Limits(concurrency=2, worker_concurrency=1, rate=RateLimit(10, 60.0)))
    for name in "abc":
        begin(db, enqueue(name))

    first = claim(db, queue)
    second = claim(db, queue, running={None: 1})

    assert ids(first.rows) == ["a"]
    assert second.rows == []


def test_processes_that_claim_at_once_keep_a_limit_together(db: SystemDatabase, open_database: OpenDatabase) -> None:
    """A claim counts after the one before it has committed: SKIP LOCKED alone would let both see the same room."""
    queue = mail(queue=Limits(concurrency=3))
    databases = [(db, "ours"), (open_database("theirs"), "theirs")]
    for number in range(60):
        begin(db, enqueue(f"w{number}"))
    most = 0
    done: list[str] = []

    def work(database: SystemDatabase, instance: str) -> None:
        nonlocal most
        while len(done) < 60:
            rows = claim(database, queue, 2, instance=instance).rows
            most = max(most, len(database.read(running)))
            for each in rows:
                finish(database, each.workflow_uuid)
            done.extend(ids(rows))

    threads = [threading.Thread(target=work, args=given) for given in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(done) == sorted(f"w{number}" for number in range(60))
    assert 0 < most <= 3


def running(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.all("SELECT workflow_uuid FROM dbos.workflow_status WHERE status = 'PENDING'")


# -- partitions --------------------------------------------------------------------------------------------------------


def test_each_partition_has_its_own_limits(db: SystemDatabase) -> None:
    queue = mail(partition=Limits(concurrency=1))
    for name, key in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "z")):
        begin(db, enqueue(name, queue_partition_key=key))

    first = claim(db, queue)
    full = claim(db, queue)
    finish(db, "a")
    after = claim(db, queue)

    assert sorted(ids(first.rows)) == ["a", "c", "d"]
    assert (full.rows, full.is_limited) == ([], True)
    assert ids(after.rows) == ["b"]


def test_a_partition_limit_and_a_queue_limit_hold_together(db: SystemDatabase) -> None:
    queue = mail(queue=Limits(concurrency=3), partition=Limits(concurrency=2))
    for key in "xyz":
        for number in range(3):
            begin(db, enqueue(f"{key}{number}", queue_partition_key=key))

    claimed = claim(db, queue).rows

    assert len(claimed) == 3
    assert max(sum(each.queue_partition_key == key for each in claimed) for key in "xyz") <= 2


def test_the_rate_and_the_worker_limit_of_a_partition_hold(db: SystemDatabase) -> None:
    queue = mail(partition=Limits(worker_concurrency=2, rate=RateLimit(1, 60.0)))
    for name, key in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")):
        begin(db, enqueue(name, queue_partition_key=key))

    claimed = claim(db, queue, running={"y": 2})
    again = claim(db, queue)

    assert ids(claimed.rows) == ["a"]
    assert ids(again.rows) == ["c"]
    assert again.retry_at_ms is not None


def test_a_busy_partition_does_not_starve_the_others(db: SystemDatabase) -> None:
    queue = mail(is_partitioned=True)
    for number in range(50):
        begin(db, enqueue(f"busy{number}", queue_partition_key="busy"))
    for key in ("a", "z"):
        begin(db, enqueue(f"one of {key}", queue_partition_key=key))

    first = claim(db, queue, 10)

    assert {"one of a", "one of z"} <= set(ids(first.rows))
    assert len(first.rows) > 2
    assert first.has_more


def in_turn(db: SystemDatabase, queue: QueueConfig, number: int) -> list[str]:
    """The ids that so many claims of one workflow each get."""
    after, order = "", []
    for _ in range(number):
        request = claim_request(queue=queue, count=1, after_partition=after, run_token=next(tokens))
        order += ids(db.change(db.claims.claim, request).rows)
        after = request.after_partition
    return order


def test_partitions_take_turns_over_claims(db: SystemDatabase) -> None:
    queue = mail(is_partitioned=True)
    for key in "abc":
        for number in range(2):
            begin(db, enqueue(f"{key}{number}", queue_partition_key=key))

    assert in_turn(db, queue, 6) == ["a0", "b0", "c0", "a1", "b1", "c1"]


def test_many_partitions_are_all_come_to(db: SystemDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbos._sysdb.stores.queue_claims.LEAST_KEYS", 3)
    queue = mail(partition=Limits(concurrency=1))
    for number in range(10):
        begin(db, enqueue(f"w{number}", queue_partition_key=f"k{number}"))

    claimed = claim(db, queue, 10, after_partition="k4")
    rest = claim(db, queue, 10, after_partition="k9")

    assert sorted(ids(claimed.rows)) == [f"w{number}" for number in range(10)]
    assert (rest.rows, rest.has_more) == ([], False)


def test_what_has_no_partition_key_is_one_more_partition(db: SystemDatabase) -> None:
    """It once stayed for ever: in a queue that was partitioned when it was there, or that its enqueuer did not know."""
    queue = mail(partition=Limits(concurrency=1, rate=RateLimit(2, 60.0)))
    for name, key in (("a", None), ("b", None), ("c", "x"), ("d", "x"), ("e", None)):
        begin(db, enqueue(name, queue_partition_key=key))

    first = claim(db, queue)
    full = claim(db, queue)
    here = claim(db, mail(partition=Limits(worker_concurrency=1)), running={None: 1, "x": 1})
    for name in "ac":
        finish(db, name)
    after = claim(db, queue)
    for name in "bd":
        finish(db, name)
    spent = claim(db, queue)

    assert sorted(ids(first.rows)) == ["a", "c"]
    assert [(each.rows, each.is_limited) for each in (full, here, spent)] == [([], True)] * 3
    assert sorted(ids(after.rows)) == ["b", "d"]
    assert spent.retry_at_ms is not None
    assert status(db, "e") == "ENQUEUED"


def test_what_has_no_partition_key_takes_its_turn_among_the_partitions(db: SystemDatabase) -> None:
    queue = mail(is_partitioned=True)
    for number in range(2):
        for key in ("a", None, "b"):
            begin(db, enqueue(f"{key}{number}", queue_partition_key=key))

    assert in_turn(db, queue, 6) == ["a0", "b0", "None0", "a1", "b1", "None1"]


def test_what_has_no_partition_key_and_cannot_be_begun_here_holds_nobody_up(db: SystemDatabase) -> None:
    begin(db, enqueue("a", application_version="v2"))
    begin(db, enqueue("b", queue_partition_key="x"))

    assert ids(claim(db, mail(is_partitioned=True)).rows) == ["b"]


def test_within_a_partition_the_first_come_first(db: SystemDatabase) -> None:
    queue = mail(partition=Limits(concurrency=1))
    for number in range(12):
        begin(db, enqueue(f"w{number}", queue_partition_key="x", created_at=NOW_MS - number))  # the clock goes back
    order = []

    for _ in range(12):
        [each] = claim(db, queue).rows
        order.append(each.workflow_uuid)
        finish(db, each.workflow_uuid)

    assert order == [f"w{number}" for number in range(12)]


# -- lost answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(), Limits(concurrency=2, rate=RateLimit(2, 60.0))])
def test_a_claim_whose_answer_was_lost_finds_its_rows_again(db: SystemDatabase, limits: Limits) -> None:
    for name in "abc":
        begin(db, enqueue(name))
    request = claim_request(queue=mail(queue=limits), count=2)
    first = db.change(db.claims.claim, request)

    again = db.change(db.claims.claim, request)

    assert ids(again.rows) == ids(first.rows) == ["a", "b"]
    assert status(db, "c") == "ENQUEUED"


def test_a_claim_that_was_not_committed_is_made_the_second_time(db: SystemDatabase) -> None:
    begin(db, enqueue("a"))
    request = claim_request(queue=mail(queue=Limits(rate=RateLimit(1, 60.0))))

    def fail(connection: Connection) -> None:
        db.claims.claim(connection, request)
        raise ValueError("rolled back")

    with pytest.raises(ValueError, match="rolled back"):
        db.change(fail)

    assert ids(db.change(db.claims.claim, request).rows) == ["a"]


# -- what waits --------------------------------------------------------------------------------------------------------


def test_a_look_finds_the_queues_with_work_and_the_next_times(db: SystemDatabase) -> None:
    nothing = db.read(db.claims.look)
    begin(db, enqueue("a", "one"))
    begin(db, enqueue("b", "one"))
    begin(db, enqueue("c", "two", workflow_deadline_epoch_ms=NOW_MS + 7))
    begin(db, enqueue("d", "three", status="DELAYED", delay_until_epoch_ms=NOW_MS + 9))
    begin(db, enqueue("e", "three", status="DELAYED", delay_until_epoch_ms=NOW_MS + 8))

    found = db.read(db.claims.look)

    assert nothing == (frozenset(), None, None, 0)
    assert found == (frozenset({"one", "two"}), NOW_MS + 8, NOW_MS + 7, 0)


def test_a_delay_that_is_over_lets_work_begin_and_no_sooner(db: SystemDatabase) -> None:
    for name, delay_ms in (("a", 5), ("b", 6), ("c", 7)):
        begin(db, enqueue(name, status="DELAYED", delay_until_epoch_ms=NOW_MS + delay_ms))

    promoted = db.change(db.claims.promote, NOW_MS + 6, 10)

    assert promoted == ["mail"]
    assert [status(db, name) for name in "abc"] == ["ENQUEUED", "ENQUEUED", "DELAYED"]


def test_what_misses_its_deadline_while_it_waits_is_cancelled(db: SystemDatabase) -> None:
    begin(db, enqueue("a", workflow_deadline_epoch_ms=NOW_MS + 5, deduplication_id="d"))
    begin(db, enqueue("b", workflow_deadline_epoch_ms=NOW_MS + 6, status="DELAYED", delay_until_epoch_ms=NOW_MS))
    begin(db, enqueue("c", workflow_deadline_epoch_ms=NOW_MS + 7))
    begin(db, enqueue("d"))

    cancelled = db.change(db.claims.cancel_waiting, NOW_MS + 6, 10)

    assert sorted(cancelled) == ["a", "b"]
    assert [status(db, name) for name in "abcd"] == ["CANCELLED", "CANCELLED", "ENQUEUED", "ENQUEUED"]
    assert (row(db, "a").queue_name, row(db, "a").deduplication_id) == (None, None)


def test_every_change_of_a_registered_queue_shows_in_a_look(db: SystemDatabase) -> None:
    def settings() -> int:
        return db.read(db.claims.look).settings

    seen = [settings()]
    db.change(db.queues.register, QueueSettings(name="mail"), "always_update", "app", "v1", NOW_MS)
    seen.append(settings())
    for concurrency in (2, 3):
        db.change(db.queues.change, "mail", {"concurrency": concurrency}, NOW_MS)  # all within one millisecond
        seen.append(settings())
    db.change(db.queues.delete, "mail")
    seen.append(settings())

    assert len({*seen[:-1]}) == 4
    assert seen[-1] == seen[0]


# -- what stands in the way --------------------------------------------------------------------------------------------


def test_a_claim_does_not_wait_for_one_that_another_process_is_making(
    db: SystemDatabase, open_database: OpenDatabase
) -> None:
    """That process may be frozen in the middle of it, and this thread has other queues to serve."""
    if db.dialect.lock_queue is None:
        pytest.skip("on SQLite, whoever writes is alone")
    queue = mail(queue=Limits(concurrency=2))
    begin(db, enqueue("a"))
    other, busy = open_database("theirs"), []
    lock = db.dialect.lock_queue

    def hold(connection: Connection) -> None:
        assert connection.one(lock, queue_name="mail") == (True,)
        busy.append(claim(db, queue))

    other.change(hold)

    assert [(each.rows, each.is_busy) for each in busy] == [([], True)]
    assert ids(claim(db, queue).rows) == ["a"]


def test_a_clock_that_goes_back_closes_a_rate_for_no_longer_than_its_period(db: SystemDatabase) -> None:
    if db.dialect.has_own_clock:
        pytest.skip("its clock is not ours to set")
    queue = mail(queue=Limits(rate=RateLimit(1, 10.0)))
    for name in "ab":
        begin(db, enqueue(name))
    claim(db, queue, now_ms=NOW_MS + 3_600_000)

    full = claim(db, queue, now_ms=NOW_MS)
    after = claim(db, queue, now_ms=NOW_MS + 10_001)

    assert (full.rows, full.retry_at_ms) == ([], NOW_MS + 10_001)
    assert ids(after.rows) == ["b"]


def test_settings_that_are_no_longer_in_force_claim_nothing(db: SystemDatabase) -> None:
    db.change(db.queues.register, QueueSettings(name="mail"), "always_update", "app", "v1", NOW_MS)
    begin(db, enqueue("a"))
    [known] = db.read(db.queues.configs).values()
    db.change(db.queues.change, "mail", {"is_paused": True}, NOW_MS)

    stale = claim(db, known)

    assert known.revision == NOW_MS
    assert stale.rows == []
    assert ids(claim(db, db.read(db.queues.configs)["mail"]).rows) == ["a"]  # whether it is paused is not the claim's


def test_partitions_in_which_nothing_can_be_begun_here_cost_nothing(db: SystemDatabase) -> None:
    queue = mail(partition=Limits(concurrency=1))
    begin(db, enqueue("a", queue_partition_key="of another version", application_version="v2"))
    begin(db, enqueue("b", queue_partition_key="unknown", name="unknown"))
    begin(db, enqueue("c", queue_partition_key="k"))
    request = claim_request(queue=queue, unknown_targets=["unknown//"])

    assert db.read(lambda connection: db.claims.partitions(connection, request, "", None, 10)) == ["k"]


def test_a_timeout_beyond_all_time_stops_no_queue(db: SystemDatabase) -> None:
    """Written by hand, or by a program that takes the largest number for never."""
    begin(db, enqueue("w1"))
    begin(db, enqueue("w2"))
    longest = 2**63 - 1
    db.change(lambda connection: connection.run(f"UPDATE dbos.workflow_status SET workflow_timeout_ms = {longest}"))

    assert ids(claim(db, mail()).rows) == ["w1", "w2"]

    token = row(db, "w1").run_token
    assert db.change(db.workflows.give_back, "w1", token, NOW_MS)
    assert row(db, "w1").status == "ENQUEUED"
