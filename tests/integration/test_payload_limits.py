"""What is too large is refused: to the caller before anything is written, otherwise as an error, once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from dbos import DBOS, DBOSConfig, PortableWorkflowError, Queue, SetWorkflowID
from dbos._error import DBOSException, DBOSInitializationError, DBOSPayloadTooLargeError
from tests.integration.histories import execute_again, recorded, row, steps

LIMIT = 64 * 1024
LARGE = "x" * (LIMIT + 1)
FITTING = "x" * (LIMIT - 100)


@pytest.fixture
def limited(config: DBOSConfig) -> Iterator[type[DBOS]]:
    """DBOS with the smallest limit there can be; not launched."""
    config["max_payload_bytes"] = LIMIT
    config["warn_payload_bytes"] = LIMIT
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)
    yield DBOS
    DBOS.destroy(destroy_registry=True)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_large_input_is_refused_before_anything_is_written(limited: type[DBOS], is_async: bool) -> None:
    queue = Queue("mail")

    @limited.workflow(name="take")
    def take(value: str) -> str:
        return value

    @limited.workflow(name="take_async")
    async def take_async(value: str) -> str:
        return value

    @limited.workflow(name="parent")
    async def parent() -> str:
        ways: list[Callable[[], Any]] = [
            lambda: take_async(LARGE),
            lambda: limited.start_workflow_async(take_async, LARGE),
            lambda: queue.enqueue_async(take_async, LARGE),
        ]
        for way in ways:
            with pytest.raises(DBOSPayloadTooLargeError):
                await way()
        return await take_async("small")

    limited.launch()

    with pytest.raises(DBOSPayloadTooLargeError, match=r"input of workflow 'take.*65,536.*'max_payload_bytes'"):
        await (take_async(LARGE) if is_async else limited.start_workflow_async(take_async, LARGE))
    with pytest.raises(DBOSPayloadTooLargeError):
        take(LARGE)
    with SetWorkflowID("wf"):
        assert await parent() == "small"

    assert {status.name for status in await limited.list_workflows_async()} == {"parent", "take_async"}


@pytest.mark.parametrize("is_async", [False, True])
def test_a_large_result_of_a_step_is_an_error_once(limited: type[DBOS], is_async: bool) -> None:
    calls: list[str] = []

    @limited.step(name="load")
    def load(size: int) -> str:
        calls.append("load")
        return "x" * size

    @limited.step(name="load_async")
    async def load_async(size: int) -> str:
        return load(size)

    @limited.workflow()
    def workflow() -> str:
        try:
            return load(LIMIT)
        except DBOSPayloadTooLargeError as error:
            return f"{error.what}, {error.limit}, {len(load(1))}"

    @limited.workflow()
    async def workflow_async() -> str:
        try:
            return await load_async(LIMIT)
        except DBOSPayloadTooLargeError as error:
            return f"{error.what}, {error.limit}, {len(await load_async(1))}"

    limited.launch()
    chosen: Any = workflow_async if is_async else workflow
    with SetWorkflowID("wf"):
        first = limited.start_workflow(chosen).get_result()

    again = execute_again("wf").get_result()

    name = "load_async" if is_async else "load"
    assert first == again == f"result of step '{name}', {LIMIT}, 1"
    assert calls == ["load", "load"]
    assert recorded("wf") == [(1, name), (2, name)]


def test_a_large_result_of_a_transaction_is_an_error_and_nothing_of_it_is_kept(limited: type[DBOS]) -> None:
    @limited.transaction(name="keep")
    def keep(value: str) -> str:
        limited.sql_session.execute(text("CREATE TABLE IF NOT EXISTS kept (value text)"))
        limited.sql_session.execute(text("INSERT INTO kept VALUES ('one')"))
        return value * LIMIT

    @limited.transaction(name="count")
    def count() -> int:
        limited.sql_session.execute(text("CREATE TABLE IF NOT EXISTS kept (value text)"))
        return int(limited.sql_session.execute(text("SELECT count(*) FROM kept")).scalar_one())

    @limited.workflow()
    def workflow() -> int:
        with pytest.raises(DBOSPayloadTooLargeError, match="result of step 'keep'"):
            keep("x")
        return count()

    limited.launch()
    with SetWorkflowID("wf"):
        first = workflow()

    assert (first, execute_again("wf").get_result()) == (0, 0)
    assert [(step.function_name, step.error is not None) for step in steps("wf")] == [("keep", True), ("count", False)]


def test_a_large_message_event_or_stream_value_is_raised_to_whoever_writes_it(limited: type[DBOS]) -> None:
    @limited.workflow()
    def workflow() -> list[Any]:
        own = limited.workflow_id
        assert own is not None
        writes: list[Callable[[], None]] = [
            lambda: limited.send(own, LARGE, "topic"),
            lambda: limited.set_event("key", LARGE),
            lambda: limited.write_stream("key", LARGE),
        ]
        for write in writes:
            with pytest.raises(DBOSPayloadTooLargeError, match=f"and at most {LIMIT:,} are stored"):
                write()
        limited.send(own, "small", "topic")
        return [limited.recv("topic", timeout_seconds=0), limited.get_event(own, "key", timeout_seconds=0)]

    limited.launch()
    with SetWorkflowID("wf"):
        first = workflow()

    with pytest.raises(DBOSPayloadTooLargeError):
        limited.send("wf", LARGE)
    assert first == execute_again("wf").get_result() == ["small", None]
    assert list(limited.read_stream("wf", "key")) == []


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_large_result_of_a_workflow_is_an_error_once(limited: type[DBOS], is_async: bool) -> None:
    calls: list[int] = []

    @limited.workflow(name="produce")
    def produce() -> str:
        calls.append(1)
        return LARGE

    @limited.workflow(name="produce")
    async def produce_async() -> str:
        return produce.__wrapped__()  # type: ignore[attr-defined, no-any-return]  # the function itself

    @limited.workflow()
    async def parent() -> str:
        with pytest.raises(DBOSPayloadTooLargeError, match="result of workflow 'produce'"):
            await produce_async()
        return "caught"

    limited.launch()
    with SetWorkflowID("wf"):
        handle = await limited.start_workflow_async(produce_async if is_async else produce)

    for _ in range(2):
        with pytest.raises(DBOSPayloadTooLargeError, match="result of workflow 'produce'"):
            await handle.get_result()
    assert (row("wf").status, len(calls)) == ("ERROR", 1)
    assert limited._recover_pending_workflows() == []
    assert await parent() == "caught"


def test_a_large_error_is_recorded_by_the_beginning_of_its_message(limited: type[DBOS]) -> None:
    @limited.step()
    def step() -> None:
        raise ValueError(LARGE)

    @limited.workflow()
    def workflow() -> None:
        with pytest.raises((ValueError, PortableWorkflowError), match="xxx"):
            step()
        raise ValueError(LARGE)

    limited.launch()
    with SetWorkflowID("wf"), pytest.raises(ValueError, match="xxx"):
        workflow()

    status = limited.get_workflow_status("wf")

    assert status is not None
    assert isinstance(status.error, PortableWorkflowError)
    assert status.error.name == "ValueError"
    assert str(status.error).endswith("characters more were not recorded)")
    assert all(len(stored or "") < LIMIT for stored in (row("wf").error, steps("wf")[0].error))


def test_what_is_as_large_as_the_limit_is_stored(limited: type[DBOS], caplog: pytest.LogCaptureFixture) -> None:
    @limited.workflow()
    def workflow(value: str) -> str:
        return value

    limited.launch()
    logging.getLogger("dbos").addHandler(caplog.handler)
    try:
        with SetWorkflowID("wf"):
            workflow(FITTING)
    finally:
        logging.getLogger("dbos").removeHandler(caplog.handler)

    assert limited.retrieve_workflow("wf").get_result() == FITTING
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("key", "value"), [("max_payload_bytes", 1000), ("max_payload_bytes", 2**30), ("warn_payload_bytes", 0)]
)
def test_a_limit_that_makes_no_sense_is_refused(config: DBOSConfig, key: Any, value: int) -> None:
    DBOS.destroy(destroy_registry=True)
    config[key] = value  # type: ignore[literal-required]  # one of the two

    with pytest.raises(DBOSInitializationError, match=f"{key}.*must be"):
        DBOS(config=config)


def test_the_error_is_one_of_ours() -> None:
    assert issubclass(DBOSPayloadTooLargeError, DBOSException)
