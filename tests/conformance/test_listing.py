"""What can be listed and in which order; versions and executor instances."""

from __future__ import annotations

from typing import Any

import pytest

from dbos._sys_db import SystemDatabase
from dbos._sysdb.filters import WorkflowFilter
from dbos._sysdb.rows import VersionRow
from tests.conformance.values import NOW_MS, begin, enqueue, executor, outcome, start, update


def listed(db: SystemDatabase, **conditions: Any) -> list[str]:
    return [each.workflow_uuid for each in db.read(db.workflows.list, WorkflowFilter(**conditions))]


@pytest.fixture
def many(db: SystemDatabase) -> SystemDatabase:
    """Workflows ``a`` to ``f``, created in this order, each different."""
    begin(db, start("a", created_at=10, authenticated_user="alice"))
    begin(db, start("b", created_at=20, name="refund", executor_id="remote"))
    begin(db, start("c", created_at=30, application_version="v2", parent_workflow_id="a"))
    begin(db, enqueue("d", created_at=40))
    begin(db, enqueue("e", "other", created_at=50, status="DELAYED"))
    begin(db, start("f", created_at=60, queue_name="mail"))
    db.commit(outcome("f"))
    update(db, "b", forked_from="a")
    update(db, "a", was_forked_from=True)
    return db


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, "abcdef"),
        ({"workflow_ids": ["f", "a", "x"]}, "af"),
        ({"workflow_id_prefixes": ["a", "e"]}, "ae"),
        ({"statuses": ["PENDING"]}, "abc"),
        ({"statuses": ["SUCCESS", "DELAYED"]}, "ef"),
        ({"names": ["refund"]}, "b"),
        ({"app_versions": ["v2"]}, "c"),
        ({"forked_from": ["a"]}, "b"),
        ({"parent_workflow_ids": ["a", "b"]}, "c"),
        ({"users": ["alice", "bob"]}, "a"),
        ({"queue_names": ["mail"]}, "df"),
        ({"executor_ids": ["remote"]}, "b"),
        ({"created_from_ms": 40}, "def"),
        ({"created_to_ms": 40}, "abcd"),
        ({"created_from_ms": 20, "created_to_ms": 30}, "bc"),
        ({"was_forked_from": True}, "a"),
        ({"was_forked_from": False}, "bcdef"),
        ({"queues_only": True}, "de"),
        ({"queues_only": True, "statuses": ["SUCCESS"]}, "f"),
        ({"queues_only": True, "queue_names": ["other"]}, "e"),
        ({"statuses": ["PENDING"], "names": ["refund"], "created_to_ms": 20}, "b"),
        ({"sort_desc": True}, "fedcba"),
        ({"limit": 2}, "ab"),
        ({"limit": 2, "offset": 3}, "de"),
        ({"offset": 4}, "ef"),
        ({"offset": 1, "sort_desc": True, "limit": 2}, "ed"),
        ({"offset": 99}, ""),
    ],
    ids=str,
)
def test_filters_pick_and_order(many: SystemDatabase, conditions: dict[str, Any], expected: str) -> None:
    assert listed(many, **conditions) == list(expected)


@pytest.mark.parametrize("name", ["100%", "under_score", "back\\slash", "slash/", "[set]*?", "quote'\"", ":name $1"])
def test_a_prefix_is_taken_literally(db: SystemDatabase, name: str) -> None:
    begin(db, start(name + "-1"))
    begin(db, start("100 percent"))
    begin(db, start("underXscore-1"))

    assert listed(db, workflow_id_prefixes=[name]) == [name + "-1"]


def test_a_prefix_heeds_the_case(db: SystemDatabase) -> None:
    begin(db, start("Order-1"))
    begin(db, start("order-2"))

    assert listed(db, workflow_id_prefixes=["order-"]) == ["order-2"]


def test_workflows_of_one_millisecond_are_paged_without_gaps(db: SystemDatabase) -> None:
    for number in range(25):
        begin(db, start(f"w{number:02}"))

    pages = [listed(db, limit=10, offset=offset) for offset in (0, 10, 20)]

    assert [each for page in pages for each in page] == [f"w{number:02}" for number in range(25)]


def test_very_many_ids_are_asked_for_at_once(db: SystemDatabase) -> None:
    """Placeholders are limited to 65 535 by one database and to 32 766 by the other."""
    begin(db, start("w7"))

    assert listed(db, workflow_ids=[f"w{number}" for number in range(70_000)]) == ["w7"]


# -- versions ---------------------------------------------------------------------------------------------------------


def test_versions_are_listed_the_latest_first_and_keep_their_place(db: SystemDatabase) -> None:
    db.change(db.versions.register, "id 1", "v1", NOW_MS)
    db.change(db.versions.register, "id 2", "v2", NOW_MS + 5)
    db.change(db.versions.register, "id 3", "v1", NOW_MS + 9)

    assert db.read(db.versions.list) == [
        VersionRow("id 2", "v2", NOW_MS + 5, NOW_MS + 5),
        VersionRow("id 1", "v1", NOW_MS, NOW_MS),
    ]


@pytest.mark.parametrize("now_ms", [NOW_MS - 1000, NOW_MS + 5, NOW_MS + 1000])
def test_a_version_is_made_the_latest_whatever_the_clock_says(db: SystemDatabase, now_ms: int) -> None:
    db.change(db.versions.register, "id 1", "v1", NOW_MS)
    db.change(db.versions.register, "id 2", "v2", NOW_MS + 5)

    db.change(db.versions.set_latest, "v1", now_ms)
    db.change(db.versions.set_latest, "unknown", now_ms)

    assert [version.version_name for version in db.read(db.versions.list)] == ["v1", "v2"]


# -- executor instances -----------------------------------------------------------------------------------------------


def test_an_instance_is_registered_once(db: SystemDatabase) -> None:
    db.change(db.executors.register, executor("ours", hostname="another"))

    assert db.read(db.executors.list) == [executor("ours")]


def test_a_heartbeat_counts_up_until_the_instance_is_declared_dead(db: SystemDatabase) -> None:
    assert db.change(db.executors.heartbeat, "ours", NOW_MS + 5)
    assert db.read(db.executors.list) == [executor("ours", heartbeat=1, heartbeat_at=NOW_MS + 5)]

    db.change(db.executors.remove, ["ours", "missing"])

    assert not db.change(db.executors.heartbeat, "ours", NOW_MS + 6)
    assert db.read(db.executors.list) == []


def test_an_instance_that_has_spoken_since_is_not_declared_dead(db: SystemDatabase) -> None:
    db.change(db.executors.register, executor("theirs"))
    db.change(db.executors.heartbeat, "theirs", NOW_MS)

    db.change(db.executors.remove_silent, executor("theirs"))
    assert len(db.read(db.executors.list)) == 2
    db.change(db.executors.remove_silent, executor("theirs", heartbeat=1))

    assert db.read(db.executors.list) == [executor("ours")]
