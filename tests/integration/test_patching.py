"""Patches: how a workflow's code is changed while executions of the old code are unfinished, and what is refused."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextvars import copy_context
from typing import Any

import pytest

from dbos import DBOS, DBOSConfig, DBOSException, SetWorkflowID
from dbos._error import DBOSPatchNondeterminismError, DBOSUnexpectedStepError
from tests.integration.histories import change, execute_again, recorded, row, steps


@pytest.fixture
def patched(config: DBOSConfig) -> Iterator[type[DBOS]]:
    """DBOS as in ``dbos``, with patching enabled."""
    del config["application_version"]
    config["enable_patching"] = True
    DBOS.destroy(destroy_registry=True)
    DBOS(config=config)
    yield DBOS
    DBOS.destroy(destroy_registry=True)


class Code:
    """A workflow whose code changes: ``version`` is what is deployed, ``calls`` are the steps whose bodies have run."""

    def __init__(self, dbos: type[DBOS]) -> None:
        self.version: Callable[[], object] = lambda: None
        self.calls: list[str] = []
        self._dbos = dbos

        @dbos.workflow(name="workflow")
        def workflow() -> object:
            return self.version()

        self.workflow = workflow

    def step(self, name: str) -> str:
        def body() -> str:
            self.calls.append(name)
            return name

        return self._dbos.run_step({"name": name}, body)

    def run(self, version: Callable[[], object], workflow_id: str = "wf") -> Any:
        self.version = version
        with SetWorkflowID(workflow_id):
            return self.workflow()

    def deploy(self, version: Callable[[], object], *, to_step: int | None = None, workflow_id: str = "wf") -> Any:
        """Execute the workflow again, with other code, as if its process had died before it recorded ``to_step``."""
        self.version = version
        self.calls.clear()
        return execute_again(workflow_id, to_step=to_step).get_result()


@pytest.fixture
def code(patched: type[DBOS]) -> Code:
    code = Code(patched)
    patched.launch()
    return code


def test_the_version_of_patched_code_stays_the_same(code: Code) -> None:
    code.run(lambda: None)

    assert DBOS.application_version == row("wf").application_version == "PATCHING_ENABLED"


def test_new_workflows_take_the_new_way_and_keep_to_it(code: Code) -> None:
    def version() -> tuple[bool, str, bool]:
        return DBOS.patch("first"), code.step("a"), DBOS.patch("second")

    assert code.run(version) == (True, "a", True)

    history = steps("wf")
    assert recorded("wf") == [(1, "DBOS.patch-first"), (2, "a"), (3, "DBOS.patch-second")]
    assert (history[0].output, history[0].error) == (None, None)
    for lost in (1, 2, 3, 4):
        assert code.deploy(version, to_step=lost) == (True, "a", True)
        assert code.calls == (["a"] if lost < 3 else [])
    assert [each[:4] for each in steps("wf")] == [each[:4] for each in history]


def test_workflows_that_the_old_code_took_further_keep_to_the_old_way(code: Code) -> None:
    def old() -> list[str]:
        return [code.step("a"), code.step("b")]

    def new() -> list[str]:
        return [code.step("a"), code.step("instead") if DBOS.patch("no-b") else code.step("b")]

    code.run(old)

    assert code.deploy(new) == ["a", "b"]
    assert recorded("wf") == [(1, "a"), (2, "b")]
    assert code.deploy(new, to_step=2) == ["a", "instead"]  # this one had not come so far
    assert recorded("wf") == [(1, "a"), (2, "DBOS.patch-no-b"), (3, "instead")]
    assert code.deploy(new) == ["a", "instead"]


def test_an_operation_that_left_no_record_still_shows_that_the_old_code_went_on(code: Code) -> None:
    def old() -> list[str]:
        return [code.step("a"), code.step("b")]

    def new() -> list[str]:
        return [code.step("instead"), code.step("b")] if DBOS.patch("no-a") else old()

    code.run(old)
    change("DELETE FROM dbos.operation_outputs WHERE function_id = 1")  # as if a and b had run side by side

    assert code.deploy(new) == ["a", "b"]
    assert recorded("wf") == [(1, "a"), (2, "b")]


def test_a_deprecated_patch_passes_markers_and_leaves_none(code: Code) -> None:
    def new() -> str:
        assert DBOS.patch("change")
        return code.step("a")

    def deprecated() -> str:
        assert DBOS.deprecate_patch("change") is True
        return code.step("a")

    code.run(new)
    code.run(deprecated, "later")

    assert code.deploy(deprecated) == "a"
    assert recorded("wf") == [(1, "DBOS.patch-change"), (2, "a")]
    assert recorded("later") == [(1, "a")]
    assert code.deploy(lambda: code.step("a"), workflow_id="later") == "a"  # the call can be deleted in the end


def test_a_fork_goes_on_with_the_way_that_was_copied(code: Code) -> None:
    def old() -> list[str]:
        return [code.step("a"), code.step("b")]

    def new() -> tuple[bool, list[str]]:
        return DBOS.patch("change"), [code.step("a"), code.step("b")]

    code.run(old)
    code.version = new

    forked, begun_anew = DBOS.fork_workflow("wf", 2), DBOS.fork_workflow("wf", 1)

    assert forked.get_result() == (False, ["a", "b"])
    assert begun_anew.get_result() == (True, ["a", "b"])
    assert recorded(forked.workflow_id) == [(1, "a"), (2, "b")]


async def test_coroutines_are_patched_alike(patched: type[DBOS]) -> None:
    is_new = False

    @patched.step(name="a")
    async def step() -> str:
        return "a"

    @patched.workflow()
    async def workflow() -> list[bool]:
        answers = [await patched.patch_async("change")] if is_new else []
        await asyncio.gather(step(), step())
        return [*answers, await patched.deprecate_patch_async("old")] if is_new else answers

    patched.launch()
    with SetWorkflowID("old"):
        await workflow()
    is_new = True
    with SetWorkflowID("new"):
        assert await workflow() == [True, True]

    def again(workflow_id: str) -> object:
        return execute_again(workflow_id).get_result()

    assert await asyncio.to_thread(again, "old") == [False, True]
    assert await asyncio.to_thread(again, "new") == [True, True]
    assert recorded("new") == [(1, "DBOS.patch-change"), (2, "a"), (3, "a")]


Concurrent = Callable[[type[DBOS], Callable[[], Coroutine[Any, Any, str]]], Coroutine[Any, Any, object]]

CONCURRENT: dict[str, Concurrent] = {
    "patch first": lambda dbos, step: asyncio.gather(dbos.patch_async("change"), step()),  # type: ignore[dict-item, return-value]
    "patch last": lambda dbos, step: asyncio.gather(step(), dbos.patch_async("change")),  # type: ignore[dict-item, return-value]
    "two patches": lambda dbos, step: asyncio.gather(dbos.patch_async("change"), dbos.patch_async("other")),  # type: ignore[dict-item, return-value]
    "deprecated": lambda dbos, step: asyncio.gather(step(), dbos.deprecate_patch_async("change")),  # type: ignore[dict-item, return-value]
    "sleep": lambda dbos, step: asyncio.gather(dbos.sleep_async(5), dbos.patch_async("change")),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("case", CONCURRENT)
async def test_a_patch_beside_another_operation_is_refused(patched: type[DBOS], case: str) -> None:
    @patched.step()
    async def step() -> str:
        await asyncio.sleep(0.01)
        return "done"

    @patched.workflow()
    async def workflow() -> object:
        return await CONCURRENT[case](patched, step)

    patched.launch()
    with SetWorkflowID("wf"), pytest.raises(DBOSPatchNondeterminismError, match="concurrently") as raised:
        await workflow()

    assert raised.value.dbos_error_code == 15
    assert raised.value.inputs[:2] == ("wf", "change")
    assert "DBOS.patch-change" not in dict(recorded("wf")).values()


def test_a_patch_beside_a_step_in_another_thread_is_refused(code: Code) -> None:
    is_begun, may_end = threading.Event(), threading.Event()

    def slow() -> None:
        is_begun.set()
        may_end.wait(10)

    def version() -> None:
        context = copy_context()
        beside = threading.Thread(target=lambda: context.run(DBOS.run_step, None, slow))
        beside.start()
        is_begun.wait(10)
        try:
            DBOS.patch("change")
        finally:
            may_end.set()
            beside.join()

    with pytest.raises(DBOSPatchNondeterminismError, match="concurrently"):
        code.run(version)


async def test_children_in_the_background_are_no_company(patched: type[DBOS]) -> None:
    may_end = asyncio.Event()

    @patched.workflow()
    async def child() -> None:
        await may_end.wait()

    @patched.workflow()
    async def workflow() -> bool:
        handle = await patched.start_workflow_async(child)
        await asyncio.sleep(0)
        is_new = await patched.patch_async("change")
        may_end.set()
        await handle.get_result()
        return is_new

    patched.launch()

    assert await workflow()


@pytest.mark.parametrize("name", ["patch", "deprecate_patch"])
def test_patches_belong_in_workflows(code: Code, name: str) -> None:
    operation = getattr(DBOS, name)

    def in_a_step() -> None:
        DBOS.run_step(None, operation, "change")

    with pytest.raises(DBOSException, match=f"DBOS.{name} must be called from a workflow"):
        operation("change")
    with pytest.raises(DBOSException, match=f"DBOS.{name} must be called from a workflow"):
        code.run(in_a_step)
    with pytest.raises(DBOSException, match="a patch needs a name"):
        code.run(lambda: operation(" "), "nameless")


@pytest.mark.parametrize("name", ["patch", "deprecate_patch"])
def test_patching_must_be_enabled(dbos: type[DBOS], name: str) -> None:
    code = Code(dbos)
    dbos.launch()

    with pytest.raises(DBOSException, match="enable_patching must be True in DBOS configuration"):
        code.run(lambda: getattr(dbos, name)("change"))


@pytest.mark.parametrize(
    ("new", "error"),
    [
        (["b", "a", "c"], ("wf", 1, "b", "a")),
        (["a", "b2", "c"], ("wf", 2, "b2", "b")),
        (["b", "c"], ("wf", 1, "b", "a")),
        (["a", "a2", "b", "c"], ("wf", 2, "a2", "b")),
    ],
    ids=["another order", "another name", "one less", "one more"],
)
def test_changed_code_without_a_patch_is_told_what_it_did_before(
    code: Code, new: list[str], error: tuple[str, int, str, str]
) -> None:
    code.run(lambda: [code.step(name) for name in ("a", "b", "c")])

    with pytest.raises(DBOSUnexpectedStepError) as raised:
        code.deploy(lambda: [code.step(name) for name in new])

    assert raised.value.inputs == error
    assert code.calls == []
    assert row("wf").status == "ERROR"


def test_code_that_ends_before_what_is_recorded_is_reported(code: Code, caplog: pytest.LogCaptureFixture) -> None:
    code.run(lambda: [code.step(name) for name in ("a", "b", "c")])
    logging.getLogger("dbos").addHandler(caplog.handler)

    result = code.deploy(lambda: code.step("a"))
    logging.getLogger("dbos").removeHandler(caplog.handler)

    assert result == "a"
    assert "Workflow wf ends after 1 operations, but step 2, b, was recorded by an earlier execution" in caplog.text
