"""What can be listed and in which order; versions and executor instances."""

from __future__ import annotations

import asyncio
import re
import threading
from functools import partial
from typing import Any

import pytest

from dbos._error import DBOSQueryTimeoutError
from dbos._sys_db import SystemDatabase
from dbos._sysdb.connection import Connection
from dbos._sysdb.filters import Position, WorkflowFilter
from dbos._sysdb.readers import MAX_CONNECTIONS, MAX_OBSERVERS, within
from dbos._sysdb.rows import VersionRow
from dbos._sysdb.stores.workflow_query import INPUT_COLUMNS, OUTPUT_COLUMNS, compiled, select_page
from tests.conformance.values import NOW_MS, begin, enqueue, executor, outcome, start, update

PATIENCE_S = 20.0

DELETE = "DELETE FROM dbos.workflow_status WHERE workflow_uuid IN :ids"

OPEN_TRANSACTIONS = """
SELECT query FROM pg_stat_activity
WHERE datname = current_database() AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()
"""


def listed(db: SystemDatabase, **conditions: Any) -> list[str]:
    return [each.workflow_uuid for each in db.read(db.listing.workflows, WorkflowFilter(**conditions))]


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


@pytest.mark.parametrize("sort_desc", [False, True])
def test_pages_by_position_neither_repeat_nor_miss_a_row_whatever_comes_and_goes(
    db: SystemDatabase, sort_desc: bool
) -> None:
    """By offset they would: an earlier row that is deleted moves all others to the page before."""
    expected = [f"w{number:02}" for number in range(25)]
    for name in expected:
        begin(db, start(name, created_at=NOW_MS + int(name[1:]) // 10))
    pages: list[list[str]] = []
    after: Position | None = None

    while not pages or len(pages[-1]) == 4:
        rows = db.read(db.listing.workflows, WorkflowFilter(limit=4, after=after, sort_desc=sort_desc))
        pages.append([each.workflow_uuid for each in rows])
        after = Position(rows[-1].created_at, rows[-1].workflow_uuid)
        db.change(lambda connection, ids: connection.run(DELETE, ids=ids), pages[-1])
        begin(db, start(f"new{len(pages)}", created_at=NOW_MS + (10 if sort_desc else -10)))

    assert [each for page in pages for each in page] == sorted(expected, reverse=sort_desc)


def test_payloads_that_are_not_asked_for_are_not_read(db: SystemDatabase) -> None:
    begin(db, start())
    db.commit(outcome())

    [whole] = db.read(db.listing.workflows, WorkflowFilter())
    [bare] = db.read(partial(db.listing.workflows, has_input=False, has_output=False), WorkflowFilter())
    sql, _ = compiled(
        select_page(WorkflowFilter(), "", INPUT_COLUMNS | OUTPUT_COLUMNS), db.dialect.sqlalchemy_dialect()
    )

    assert (whole.inputs, whole.output) == ("[]", '"done"')
    assert bare == whole._replace(inputs=None, output=None)
    assert [f"NULL AS {name}" in sql for name in ("inputs", "output", "error")] == [True, True, True]


ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def test_a_query_that_only_looks_is_stopped_at_its_limit_and_leaves_nothing_open(db: SystemDatabase) -> None:
    def look(connection: Connection) -> list[tuple[Any, ...]]:
        return connection.all(ENDLESS)

    for _ in range(MAX_OBSERVERS + 1):  # the connection that it used is given back
        with pytest.raises(DBOSQueryTimeoutError, match=re.escape("exceeding its 0.05s statement timeout")):
            db.read(within, 0.05, look)

    assert db.read(within, 0.05, db.listing.workflows, WorkflowFilter()) == []
    assert db.read(within, 0, db.listing.workflows, WorkflowFilter()) == []
    if db.dialect.name == "postgresql":
        assert db.read(lambda connection: connection.all(OPEN_TRANSACTIONS)) == []


async def test_who_only_looks_keeps_no_workflow_waiting(db: SystemDatabase) -> None:
    is_seen = threading.Event()

    def look(connection: Connection) -> bool:
        return is_seen.wait(PATIENCE_S)

    looks = [db.read_async(within, 0, look) for _ in range(MAX_OBSERVERS + MAX_CONNECTIONS)]

    assert await db.read_async(db.workflows.get, "w") is None
    is_seen.set()
    assert all(await asyncio.gather(*looks))


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
