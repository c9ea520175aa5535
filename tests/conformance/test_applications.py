"""Applications that share a database: each with its own work, versions and executors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dbos._queue_config import Limits, QueueConfig
from dbos._sys_db import SystemDatabase
from dbos._sysdb.stores.applications import ApplicationsStore
from tests.conformance.values import (
    NOW_MS,
    begin,
    claim_request,
    enqueue,
    executor,
    row,
    start,
    status,
    update,
)

OpenDatabase = Callable[..., SystemDatabase]

SHOP, BANK = "shop", "bank"


@pytest.fixture
def shared(db: SystemDatabase) -> SystemDatabase:
    """A database of two applications: ``ours`` runs version v1 of the shop, and there is a v1 and a v2 of the bank."""
    db.change(db.executors.remove, ["ours"])
    db.change(db.executors.register, executor("ours", application_name=SHOP))
    db.change(db.versions.register, "shop 1", "v1", 1, SHOP)
    db.change(db.versions.register, "bank 1", "v1", 2, BANK)
    db.change(db.versions.register, "bank 2", "v2", 3, BANK)
    return db


def claimed(db: SystemDatabase, application: str | None, version: str = "v1", **values: Any) -> list[str]:
    request = claim_request(application_name=application, application_version=version, **values)
    return sorted(each.workflow_uuid for each in db.change(db.claims.claim, request).rows)


def names(db: SystemDatabase, application: str | None = None) -> list[tuple[str | None, str]]:
    return [(each.application_name, each.version_name) for each in db.read(db.versions.list, application)]


# -- claiming ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("application", "version", "expected"),
    [
        (SHOP, "v1", ["nobody's", "nobody's of v1", "shop", "shop of v1"]),
        (SHOP, "v0", []),
        (BANK, "v1", ["bank of v1", "nobody's of v1"]),
        (BANK, "v2", ["bank", "nobody's"]),
        (None, "v1", ["nobody's of v1"]),
    ],
)
def test_a_claim_takes_what_is_of_its_application_and_what_is_nobodys(
    shared: SystemDatabase, application: str | None, version: str, expected: list[str]
) -> None:
    for owner, name in ((SHOP, "shop"), (BANK, "bank"), (None, "nobody's")):
        begin(shared, enqueue(name, application_name=owner, application_version=None))
        begin(shared, enqueue(f"{name} of v1", application_name=owner, application_version="v1"))

    assert claimed(shared, application, version) == expected


def test_the_partitions_of_another_application_are_passed_over(shared: SystemDatabase) -> None:
    queue = QueueConfig(name="mail", partition=Limits(concurrency=1), is_partitioned=True)
    for name, owner in (("a", BANK), ("b", SHOP), ("c", BANK)):
        begin(shared, enqueue(name, application_name=owner, queue_partition_key=name))

    assert claimed(shared, SHOP, queue=queue) == ["b"]


def test_what_nobody_of_its_application_could_recover_holds_no_place_in_a_queue(shared: SystemDatabase) -> None:
    queue = QueueConfig(name="mail", queue=Limits(concurrency=1))
    begin(shared, start("of the dead", queue_name="mail", application_name=BANK, owner_instance="ours"))
    update(shared, "of the dead", owner_instance="dead")
    begin(shared, enqueue("waiting", application_name=SHOP))

    assert claimed(shared, SHOP, queue=queue) == ["waiting"]

    shared.change(shared.executors.register, executor("bank", application_name=BANK))
    update(shared, "waiting", status="ENQUEUED", owner_instance=None)
    assert claimed(shared, SHOP, queue=queue, run_token="again") == []


# -- taking over -------------------------------------------------------------------------------------------------------


def test_what_the_dead_have_left_is_taken_over_by_their_own_application(shared: SystemDatabase) -> None:
    for name, owner in (("of the shop", SHOP), ("of the bank", BANK), ("nobody's", None)):
        begin(shared, start(name, application_name=owner))
        update(shared, name, owner_instance="dead")

    taken = shared.change(shared.workflows.reclaim, "v1", NOW_MS, SHOP)

    assert sorted(taken) == ["nobody's", "of the shop"]
    assert status(shared, "of the bank") == "PENDING"
    assert not shared.read(shared.workflows.has_orphans, "v1", SHOP)
    assert shared.read(shared.workflows.has_orphans, "v1", BANK)


def test_what_nobody_runs_is_counted_by_application(shared: SystemDatabase) -> None:
    begin(shared, enqueue("shop runs it", application_name=SHOP))
    begin(shared, enqueue("of an old shop", application_name=SHOP, application_version="v0"))
    begin(shared, enqueue("bank of the same version", application_name=BANK))
    begin(shared, enqueue("bank of the latest", application_name=BANK, application_version=None))
    begin(shared, enqueue("shop's latest runs it", application_version=None))
    begin(shared, enqueue("nobody's of the bank's", application_version="v2"))

    assert shared.read(shared.workflows.stranded_versions, SHOP) == {"v0": 1, "v2": 1}
    assert shared.read(shared.workflows.stranded_versions, BANK) == {"v1": 1, "v2": 2}
    assert shared.read(shared.workflows.stranded_versions) == {"v0": 1, "v1": 1, "v2": 2}


def test_an_application_adopts_nothing_of_another(shared: SystemDatabase) -> None:
    shared.change(shared.executors.register, executor("bank", application_name=BANK, application_version="v2"))
    begin(shared, enqueue("of the bank", application_name=BANK, application_version="v2"))
    begin(shared, enqueue("of the shop", application_name=SHOP, application_version="v2"))

    shared.change(shared.executors.adopt, "v2", "v1", NOW_MS, SHOP)

    assert row(shared, "of the bank").application_version == "v2"
    assert row(shared, "of the shop").application_version == "v1"
    assert not shared.read(shared.executors.is_run, "v2", SHOP)
    assert shared.read(shared.executors.is_run, "v2", BANK)


# -- versions ----------------------------------------------------------------------------------------------------------


def test_each_application_has_versions_of_its_own(shared: SystemDatabase) -> None:
    assert names(shared, SHOP) == [(SHOP, "v1")]
    assert names(shared, BANK) == [(BANK, "v2"), (BANK, "v1")]

    shared.change(shared.versions.set_latest, "v1", 10, BANK)

    assert names(shared) == [(BANK, "v1"), (BANK, "v2"), (SHOP, "v1")]
    assert claimed(shared, BANK) == []  # there is nothing yet
    begin(shared, enqueue("w", application_name=BANK, application_version=None))
    assert claimed(shared, BANK, "v2") == []
    assert claimed(shared, BANK, "v1", run_token="again") == ["w"]


def test_a_version_of_nobody_is_the_applications_that_is_launched_in_it_and_keeps_its_place(db: SystemDatabase) -> None:
    for number, name in enumerate(("1.0", "2.0")):
        db.change(db.versions.register, name, name, number)

    db.change(db.versions.register, "new", "1.0", 10, SHOP)
    db.change(db.versions.register, "newer", "1.0", 11, SHOP)

    assert names(db, SHOP) == [(None, "2.0"), (SHOP, "1.0")]
    assert names(db, BANK) == [(None, "2.0")]
    db.change(db.versions.register, "of the bank", "1.0", 12, BANK)
    assert names(db, BANK) == [(BANK, "1.0"), (None, "2.0")]


# -- renaming ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_nobodys", [False, True])
def test_everything_is_renamed_however_often_it_is_repeated(shared: SystemDatabase, has_nobodys: bool) -> None:
    shared.change(shared.versions.register, "nobody's", "v1", 0)
    shared.change(shared.versions.register, "nobody's 0", "v0", 0)
    for number, owner in enumerate((SHOP, None, BANK, SHOP)):
        begin(shared, enqueue(f"w{number}", application_name=owner))

    for _ in range(2):
        ids = shared.read(lambda c: ApplicationsStore.page(c, SHOP, "", 10, has_nobodys=has_nobodys))
        shared.change(lambda c: ApplicationsStore.rename_rest(c, SHOP, BANK, has_nobodys=has_nobodys))
        shared.change(
            lambda c, ids: ApplicationsStore.rename_workflows(c, ids, SHOP, BANK, has_nobodys=has_nobodys), ids
        )

    nobodys = BANK if has_nobodys else None
    assert [row(shared, f"w{number}").application_name for number in range(4)] == [BANK, nobodys, BANK, BANK]
    expected = [(BANK, "v1"), (BANK, "v2"), (nobodys, "v0")] + ([] if has_nobodys else [(None, "v1")])
    assert sorted(names(shared), key=str) == sorted(expected, key=str)
    assert [each.application_name for each in shared.read(shared.executors.list)] == [BANK]
