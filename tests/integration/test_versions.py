"""Application versions: which are known, which is the latest, and whose work is whose."""

from __future__ import annotations

import logging

import pytest

from dbos import DBOS, DBOSConfig, SetWorkflowID
from tests.integration.test_recovery import crash, relaunch, status


def names() -> list[str]:
    return [version["version_name"] for version in DBOS.list_application_versions()]


def test_a_launch_makes_a_new_version_known_and_the_latest(dbos: type[DBOS], config: DBOSConfig) -> None:
    dbos.launch()
    relaunch({**config, "application_version": "second"})

    assert names() == ["second", "test"]
    assert dbos.get_latest_application_version()["version_name"] == "second"
    assert dbos.application_version == "second"


def test_a_version_that_is_launched_again_keeps_its_place(
    dbos: type[DBOS], config: DBOSConfig, caplog: pytest.LogCaptureFixture
) -> None:
    dbos.launch()
    relaunch({**config, "application_version": "second"})
    first = {version["version_name"]: version for version in dbos.list_application_versions()}
    logging.getLogger("dbos").addHandler(caplog.handler)

    relaunch(config)
    logging.getLogger("dbos").removeHandler(caplog.handler)

    assert {version["version_name"]: version for version in dbos.list_application_versions()} == first
    assert "The application version test is not the latest, which is second" in caplog.text


def test_any_known_version_can_be_made_the_latest(dbos: type[DBOS], config: DBOSConfig) -> None:
    dbos.launch()
    relaunch({**config, "application_version": "second"})

    dbos.set_latest_application_version("test")
    dbos.set_latest_application_version("unknown")

    assert names() == ["test", "second"]


async def test_versions_are_listed_and_set_from_coroutines(dbos: type[DBOS]) -> None:
    dbos.launch()

    await dbos.set_latest_application_version_async("test")

    assert [version["version_name"] for version in await dbos.list_application_versions_async()] == ["test"]
    assert (await dbos.get_latest_application_version_async())["version_name"] == "test"


def test_work_of_another_version_is_reported_and_taken_only_when_it_is_adopted(
    dbos: type[DBOS], config: DBOSConfig, caplog: pytest.LogCaptureFixture
) -> None:
    @dbos.workflow()
    def workflow() -> str:
        return "done"

    dbos.launch()
    with SetWorkflowID("w"):
        workflow()
    crash("w")
    logging.getLogger("dbos").addHandler(caplog.handler)

    relaunch({**config, "application_version": "second"})
    logging.getLogger("dbos").removeHandler(caplog.handler)
    dbos._recover_pending_workflows()
    left = status("w")
    relaunch(config)

    assert left == "PENDING"
    assert "1 unfinished workflows belong to application version test" in caplog.text
    assert dbos.retrieve_workflow("w").get_result() == "done"


def test_the_computed_version_follows_the_workflows_and_not_their_order(config: DBOSConfig) -> None:
    def version(*order: str, application: str = "test-app") -> str:
        DBOS.destroy(destroy_registry=True)
        DBOS(config={**config, "application_version": "", "name": application})

        def one() -> int:
            return 1

        def two() -> int:
            return 2

        functions = {"one": one, "two": two}
        for name in order:
            DBOS.workflow(name=name)(functions[name])
        DBOS.launch()
        computed = DBOS.application_version
        DBOS.destroy(destroy_registry=True)
        return computed

    both = version("one", "two")

    assert version("two", "one") == both
    assert version("one") != both
    assert version("one", "two", application="other-app") != both
