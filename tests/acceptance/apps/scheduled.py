"""What the shop does by the clock: a workflow for schedules of any kind, and a function with a schedule in the code."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from dbos import DBOS
from tests.acceptance.apps.instants import SETTINGS, instant

__all__ = ["COMMANDS"]


@DBOS.workflow()
def chime(scheduled_time: datetime, context: Any) -> None:
    instant("chime:begin")


@DBOS.workflow()
def cuckoo(scheduled_time: datetime, actual_time: datetime) -> None:
    instant("cuckoo:begin")


if SETTINGS["cuckoo"] is not None:
    DBOS.scheduled(SETTINGS["cuckoo"])(cuckoo)


def create(name: str, schedule: str, options: dict[str, Any]) -> None:
    DBOS.create_schedule(schedule_name=name, workflow_fn=chime, schedule=schedule, **options)


COMMANDS: dict[str, Callable[..., Any]] = {
    "create_schedule": create,
    "update_schedule": lambda name, changes: DBOS.update_schedule(name, **changes),
    "pause_schedule": lambda name: DBOS.pause_schedule(name),
}
