"""Several applications on one database: whose work is whose, and giving an application another name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSException, EnqueueOptions, Queue
from tests.integration.histories import change, engine, row
from tests.integration.test_recovery import relaunch

NAMED: EnqueueOptions = {"workflow_name": "tell", "queue_name": "mail"}


@pytest.fixture
def telling(dbos: type[DBOS]) -> type[DBOS]:
    """An application with a workflow that tells the name of the application that runs it."""
    Queue("mail")

    @dbos.workflow(name="tell")
    def tell() -> str | None:
        return engine().application_name

    return dbos


@contextmanager
def client(config: DBOSConfig, application_name: str | None = None) -> Iterator[DBOSClient]:
    url = config["system_database_url"]
    with DBOSClient(system_database_url=url, application_name=application_name) as client:
        yield client


def test_what_is_enqueued_for_an_application_is_run_by_no_other(telling: type[DBOS], config: DBOSConfig) -> None:
    telling.launch()
    with client(config, "other-app") as others:
        theirs = others.enqueue(NAMED)
        ours = others.enqueue({**NAMED, "application_name": "test-app"})
        chosen = others.enqueue({**NAMED, "application_name": None})
    forked = DBOS.fork_workflow(theirs.workflow_id, 1)
    with client(config) as nobody:
        anybodys = nobody.enqueue(NAMED).workflow_id
    results = [DBOS.retrieve_workflow(each).get_result() for each in (ours.workflow_id, anybodys)]
    left = {row(each.workflow_id).status for each in (theirs, chosen, forked)}

    relaunch({**config, "name": "other-app"})

    assert results == ["test-app", "test-app"]
    assert left == {"ENQUEUED"}
    later = {DBOS.retrieve_workflow(each.workflow_id).get_result() for each in (theirs, chosen, forked)}
    assert later == {"other-app"}
    assert {each["application_name"] for each in DBOS.list_executors()} == {"other-app"}
    assert {each.application_name for each in DBOS.list_workflows()} == {"test-app", "other-app", None}
    assert len(DBOS.list_workflows(application_name=["test-app"])) == 1


def test_an_application_can_enqueue_for_another_and_its_children_are_its_own(
    telling: type[DBOS], config: DBOSConfig
) -> None:
    @telling.workflow()
    def parent() -> tuple[str, str]:
        here = DBOS.enqueue_workflow_with_options(NAMED)
        there = DBOS.enqueue_workflow_with_options({**NAMED, "application_name": "other-app"})
        return here.workflow_id, there.workflow_id

    telling.launch()

    here, there = parent()

    assert DBOS.retrieve_workflow(here).get_result() == "test-app"
    assert (row(there).application_name, row(there).status) == ("other-app", "ENQUEUED")
    with pytest.raises(DBOSException, match="Invalid application_name"):
        DBOS.enqueue_workflow_with_options({**NAMED, "application_name": ""})


def test_versions_are_an_applications_own(telling: type[DBOS], config: DBOSConfig) -> None:
    telling.launch()
    relaunch({**config, "name": "other-app", "application_version": "second"})
    relaunch({**config, "name": "other-app"})

    assert [each["version_name"] for each in DBOS.list_application_versions()] == ["test", "second"]
    DBOS.set_latest_application_version("second")
    assert DBOS.get_latest_application_version()["version_name"] == "second"
    assert DBOS.get_latest_application_version(application_name="test-app")["version_name"] == "test"
    with client(config) as nobody, client(config, "test-app") as named:
        assert len(nobody.list_application_versions()) == 3
        assert named.get_latest_application_version()["application_name"] == "test-app"
        named.set_latest_application_version("test", application_name="other-app")
    assert [each["version_name"] for each in DBOS.list_application_versions()] == ["test", "second"]
    with pytest.raises(DBOSException, match="No application versions found"):
        DBOS.get_latest_application_version(application_name="unknown")


def test_a_schedule_is_fired_by_its_application_alone(telling: type[DBOS], config: DBOSConfig) -> None:
    telling.launch()
    with client(config, "other-app") as others:
        others.create_schedule(schedule_name="theirs", workflow_name="tell", schedule="0 0 1 1 *")
    change("UPDATE dbos.workflow_schedules SET next_fire_ms = :past, next_tick_ms = :past", past=engine().db.now_ms())
    db, now_ms = engine().db, engine().db.now_ms() + 1

    assert db.read(db.schedules.agenda, "test-app").next_fire_ms is None
    assert db.read(db.schedules.agenda, "other-app").next_fire_ms is not None
    assert db.change(db.schedules.due, now_ms, 10, "test-app") == []
    assert len(db.change(db.schedules.due, now_ms, 10, "other-app")) == 1
    with client(config) as nobody:
        triggered = nobody.trigger_schedule("theirs")
    assert row(triggered.workflow_id).application_name == "other-app"


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "awaiting"])
def test_an_application_is_renamed_with_all_that_it_has(
    telling: type[DBOS], config: DBOSConfig, is_async: bool
) -> None:
    telling.launch()
    done = [DBOS.enqueue_workflow_with_options(NAMED) for _ in range(5)]
    assert {handle.get_result() for handle in done} == {"test-app"}
    DBOS.register_queue("registered")
    with client(config) as nobody:
        unclaimed = nobody.enqueue({**NAMED, "queue_name": "registered", "app_version": "none"}).workflow_id
        with pytest.raises(DBOSException, match="is running in 1 processes"):
            nobody.rename_application("test-app", "new-app")
    DBOS.destroy()

    with client(config, "test-app") as admin:
        admin.enqueue(NAMED)
        renamed = (
            asyncio.run(admin.rename_application_async("test-app", "new-app", batch_size=2))
            if is_async
            else admin.rename_application("test-app", "new-app", batch_size=2)
        )
        again = admin.rename_application("test-app", "new-app", adopt_unclaimed_rows=True)

    assert renamed == {
        "workflow_status": 6,
        "queues": 1,
        "workflow_schedules": 0,
        "application_versions": 1,
        "executor_instances": 0,
    }
    assert (again["workflow_status"], sum(again.values())) == (1, 1)
    relaunch({**config, "name": "new-app"})
    [waiting] = DBOS.list_workflows(status=["ENQUEUED", "PENDING", "SUCCESS"], sort_desc=True, limit=1)
    assert DBOS.retrieve_workflow(waiting.workflow_id).get_result() == "new-app"
    assert row(unclaimed).application_name == "new-app"
    assert DBOS.list_queues(application_name="new-app") != []


def test_a_name_that_cannot_be_is_refused(telling: type[DBOS], config: DBOSConfig) -> None:
    telling.launch()

    with client(config) as nobody:
        for old, new in (("old-app", "No Name"), ("", "new-app"), ("a\0b", "new-app"), ("old-app", "xy")):
            with pytest.raises(DBOSException, match="cannot be renamed"):
                nobody.rename_application(old, new)
        with pytest.raises(DBOSException, match="has that name already"):
            nobody.rename_application("old-app", "old-app")
        with pytest.raises(ValueError, match="batch_size"):
            nobody.rename_application("test-app", "new-app", batch_size=0)
