"""The smallest application there is: decorate, launch, call."""

from __future__ import annotations

from dbos import DBOS


def test_a_workflow_with_a_step_returns_its_result(dbos: type[DBOS]) -> None:
    @dbos.step()
    def double(value: int) -> int:
        return value * 2

    @dbos.workflow()
    def workflow(value: int) -> int:
        return double(value) + 1

    dbos.launch()

    assert workflow(20) == 41
