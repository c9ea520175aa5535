"""Queues that several real processes work off: nothing twice, no limit exceeded at any instant, nobody kept waiting."""

from __future__ import annotations

import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbos._sysdb.dialects.postgres import PostgresDialect
from tests.acceptance.harness import Effect, Stage, stages, until
from tests.conformance.proxy import Proxy

LINE: dict[str, Any] = {"name": "line"}
ONE_AT_A_TIME: dict[str, Any] = {"name": "one-at-a-time", "concurrency": 1}


def unfinished(stage: Stage) -> int:
    return int(stage.rows("SELECT count(*) FROM dbos.workflow_status WHERE status <> 'SUCCESS'")[0][0])


def peak(effects: Iterable[Effect], key: Callable[[Effect], object] = lambda _: None) -> dict[object, int]:
    """How many errands were under way at once, at most, of each key.

    The log's lines are in the order in which they happened, whichever process wrote them; an errand is under way from a
    little before its first line until a little after its second.
    """
    now: Counter[object] = Counter()
    most: Counter[object] = Counter()
    for effect in effects:
        now[key(effect)] += {"errand:begin": 1, "errand:end": -1}.get(effect.instant, 0)
        most[key(effect)] = max(most[key(effect)], now[key(effect)])
    return dict(most)


def test_two_processes_work_a_thousand_workflows_off_and_none_twice(stage: Stage) -> None:
    crew = [stage.launch(queues=[LINE], watches_commits=False) for _ in range(2)]
    ids = [[f"{number}-{each}" for each in range(500)] for number in range(2)]

    for application, own in zip(crew, ids, strict=True):
        application.tell("enqueue", queue="line", function="errand", ids=own, args=[])
    for application in crew:
        assert application.answer() is None
    until(lambda: unfinished(stage) == 0, "all to be done")

    begun = [effect for effect in stage.effects() if effect.instant == "errand:begin"]
    assert sorted(effect.workflow_id for effect in begun) == sorted(ids[0] + ids[1])
    assert {effect.process for effect in begun} == {application.pid for application in crew}
    assert stage.rows("SELECT count(*), max(recovery_attempts) FROM dbos.workflow_status") == [(1000, 1)]


def test_no_limit_is_exceeded_at_any_instant_by_several_processes(stage: Stage) -> None:
    queues: list[dict[str, Any]] = [
        {"name": "single", "concurrency": 1},
        {"name": "wide", "concurrency": 4},
        {"name": "narrow", "concurrency": 5, "worker_concurrency": 2},
        {"name": "split", "concurrency": 2, "worker_concurrency": 1, "partition_queue": True},
        {"name": "rated", "limiter": {"limit": 10, "period": 0.6}},
        {"name": "rated-and-narrow", "concurrency": 2, "limiter": {"limit": 10, "period": 0.6}},
    ]
    crew = [stage.launch(queues=queues, watches_commits=False) for _ in range(3)]
    names = [queue["name"] for queue in queues]

    for number, application in enumerate(crew):
        for name in names:
            ids = [f"{name}/{each % 3}/{number}-{each}" for each in range(10)]
            partitions = {each: each.split("/")[1] for each in ids} if name == "split" else None
            application.tell("enqueue", queue=name, function="errand", ids=ids, args=[], partitions=partitions)
    for application in crew:
        for _ in names:
            assert application.answer() is None
    until(lambda: unfinished(stage) == 0, "all to be done", patience_s=30)

    effects = stage.effects()
    of = {name: [effect for effect in effects if effect.workflow_id.startswith(f"{name}/")] for name in names}
    assert all(Counter(effect.workflow_id for effect in of[name]).most_common(1)[0][1] == 2 for name in names)
    assert len({effect.process for effect in effects}) > 1  # who is quick may have any queue for itself
    assert peak(of["single"])[None] == 1
    assert peak(of["wide"])[None] <= 4
    assert peak(of["narrow"])[None] <= 5
    assert max(peak(of["narrow"], lambda effect: effect.process).values()) <= 2
    assert max(peak(of["split"], lambda effect: effect.workflow_id.split("/")[1]).values()) <= 2
    each_here = peak(of["split"], lambda effect: (effect.process, effect.workflow_id.split("/")[1]))
    assert max(each_here.values()) <= 1
    assert peak(of["rated-and-narrow"])[None] <= 2
    for name in ("rated", "rated-and-narrow"):
        rows = stage.rows(
            f"SELECT started_at_epoch_ms FROM dbos.workflow_status WHERE queue_name = '{name}' ORDER BY 1"
        )
        starts = [int(row[0]) for row in rows]
        assert len(starts) == 30
        assert all(later - earlier >= 600 for earlier, later in zip(starts, starts[10:], strict=False))


@contextmanager
def nobody_may_claim(stage: Stage, queue: str) -> Iterator[None]:
    """Hold what a claim takes first, as another process does that hangs in the middle of one."""
    if stage.is_sqlite:
        with closing(sqlite3.connect(stage.path, timeout=60, isolation_level=None)) as file:
            file.execute("BEGIN IMMEDIATE")
            yield
            file.execute("ROLLBACK")
        return
    lock = str(PostgresDialect.lock_queue).replace(":queue_name", f"'{queue}'")
    with psycopg.connect(stage.url) as holder:
        until(lambda: holder.execute(lock.encode()).fetchone() == (True,), "the lock")  # the application claims, too
        yield


def test_work_begins_soon_after_a_queue_that_was_locked_is_free_again(stage: Stage) -> None:
    application = stage.launch(queues=[ONE_AT_A_TIME, LINE], watches_commits=False)

    with nobody_may_claim(stage, "one-at-a-time"):
        application.tell("enqueue", queue="one-at-a-time", function="errand", ids=["w"], args=[])
        application.tell("enqueue", queue="line", function="errand", ids=["other"], args=[])
        if not stage.is_sqlite:  # there, a lock is of one queue, and others go on
            until(lambda: stage.count("errand:end", "other") == 1, "the other queue")
        assert stage.count("errand:begin", "w") == 0

    until(lambda: stage.count("errand:end") == 2, "the claim", patience_s=15)
    assert stage.count("errand:begin", "w") == 1


def test_a_process_that_dies_between_a_claim_and_its_work_leaves_all_of_it_to_others(stage: Stage) -> None:
    ids = [f"e-{each}" for each in range(20)]
    stage.launch(queues=[LINE], listens_to=[]).ask("enqueue", queue="line", function="errand", ids=ids, args=[])
    dying = stage.launch(queues=[LINE], hold=["claim:committed"], wait=False)
    dying.reached("claim:committed")
    claimed = stage.rows("SELECT count(*) FROM dbos.workflow_status WHERE status = 'PENDING'")

    dying.kill()
    following = stage.launch(queues=[LINE])

    assert claimed == [(20,)]
    assert [following.result(each) for each in ids] == ["done"] * 20
    assert stage.count("errand:begin") == 20
    assert stage.rows("SELECT DISTINCT recovery_attempts FROM dbos.workflow_status") == [(2,)]


@pytest.mark.postgres
def test_a_claim_whose_answer_is_lost_is_begun_by_the_same_process(tmp_path: Path, postgres_url: str) -> None:
    """The server has committed it, and the connection is gone: the rows are this process', which does not know it."""
    if "host=" not in postgres_url:
        pytest.skip("the proxy speaks to a socket in the file system")
    queues = [LINE, ONE_AT_A_TIME]
    with contextmanager(stages)(tmp_path, postgres_url) as stage, Proxy.before(postgres_url) as proxy:
        enqueuing = stage.launch(queues=queues, listens_to=[], lease_s=600)
        for number, queue in enumerate(queues):
            ids = [f"{queue['name']}-{each}" for each in range(5)]
            enqueuing.ask("enqueue", queue=queue["name"], function="errand", ids=ids, args=[])
            proxy.cut_answer_to(b"COMMIT", after=queue["name"].encode())

            claiming = stage.launch(queues=queues, lease_s=600, system_database_url=proxy.url)
            results = [claiming.result(each) for each in ids]

            assert results == ["done"] * 5
            assert proxy.cuts == number + 1
            assert "will be repeated" in claiming.messages
            assert "do not run" not in claiming.messages  # found at once, and not by a later heartbeat
            begun = [each.workflow_id for each in stage.effects() if each.instant == "errand:begin"]
            assert [begun.count(each) for each in ids] == [1] * 5
            assert {stage.column("recovery_attempts", each) for each in ids} == {1}
            claiming.kill()


def test_a_hundred_calls_of_one_id_in_every_way_and_two_processes_run_it_once(stage: Stage) -> None:
    crew = [stage.launch(queues=[LINE], watches_commits=False) for _ in range(2)]

    for application in crew:
        application.tell("meet", queue="line", times=15)
    answers = [answer for application in crew for answer in application.answer()]

    assert answers == ["met 1"] * 120  # a quarter of them asked three times each
    assert stage.count("meeting:begin", "meeting") == 1
    assert stage.count("meeting:begin", "meeting-async") == 1
    assert stage.rows("SELECT DISTINCT status FROM dbos.workflow_status") == [("SUCCESS",)]


def test_a_paused_process_loses_its_place_in_the_queue_and_nothing_of_it_is_accepted(stage: Stage) -> None:
    zombie = stage.launch(queues=[ONE_AT_A_TIME], lease_s=1)
    before = zombie.ask("instance")
    zombie.ask("enqueue", queue="one-at-a-time", function="gated", ids=["w", "v"], args=[str(stage.gate)])
    until(lambda: stage.count("gated:begin", "w") == 1, "the step to begin")
    live = stage.launch(queues=[ONE_AT_A_TIME], lease_s=1)

    zombie.send_signal(signal.SIGSTOP)
    until(lambda: stage.count("gated:begin", "w") == 2, "the step to begin once more")
    zombie.send_signal(signal.SIGCONT)
    until(lambda: zombie.ask("instance") != before, "the registration as a new instance")
    began_beside = stage.count("gated:begin", "v")
    stage.gate.touch()

    assert began_beside == 0  # one runs, whoever else thinks that it runs it
    for application in (live, zombie):
        assert application.result("w") == f"passed in {live.pid}"
    assert live.result("v") == zombie.result("v")
    assert "declared dead" in zombie.messages
    assert stage.count("gated:begin") == 3
    assert stage.column("recovery_attempts", "w") == 2
    effects = [each for each in stage.effects() if each.instant in ("claim:committed", "pass_gate:committed")]
    accepted = [each for each in effects if each.process == live.pid or each.workflow_id == "v"]
    assert [(each.workflow_id, each.instant) for each in accepted] == [
        ("w", "claim:committed"),
        ("w", "pass_gate:committed"),
        ("v", "claim:committed"),
        ("v", "pass_gate:committed"),
    ]
    # What it held is free again: both go on taking work from the queue.
    more = [f"more-{each}" for each in range(10)]
    live.ask("enqueue", queue="one-at-a-time", function="errand", ids=more, args=[])
    assert [live.result(each) for each in more] == ["done"] * 10
    of_more = [each for each in stage.effects() if each.workflow_id in more]
    assert peak(of_more) == {None: 1}
    assert all(
        earlier.workflow_id == later.workflow_id
        for earlier, later in pairwise(each for each in of_more if each.instant.startswith("errand"))
        if earlier.instant == "errand:begin"
    )
