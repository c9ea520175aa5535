"""Deciding about schedules, durably, and what follows from it: queues have work, runs were cancelled."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dbos._engine.engine import Engine
from dbos._engine.execution import note_cancelled
from dbos._engine.flow import Commit, Flow
from dbos._sysdb.operations import Call
from dbos._sysdb.rows import ScheduleRow
from dbos._sysdb.stores.management_actions import Action
from dbos._sysdb.stores.schedules import Choose, Decide, Settled
from dbos._types import Overlap

__all__ = ["Encoder", "settle"]


class _Behind(Exception):
    """Something was decided of which the text is not known yet."""


class Encoder:
    """Makes text of the arguments of runs, in the format that their workflow asks for, if it is registered here.

    A serializer of the application's may take its time, and no row stays locked meanwhile: within a transaction it is
    not called. What is asked for there is noted, the transaction is rolled back, and repeated when the text is known.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_ours = engine.serialization.serializer is None
        self._known: dict[tuple[str, str, str], tuple[str, str] | Exception] = {}
        self._wanted: dict[tuple[str, str, str], tuple[str, datetime, Any]] = {}

    def __call__(self, row: ScheduleRow, tick: datetime, context: Any) -> tuple[str, str]:
        """The text of a time and a context, and the name of its format; anything at all if it is not known yet."""
        if self._is_ours:
            return self._encode(row.workflow_name, tick, context)
        key = (row.workflow_name, repr(tick), row.context)
        known = self._known.get(key)
        if known is None:
            self._wanted[key] = (row.workflow_name, tick, context)
            return "", ""
        if isinstance(known, Exception):
            raise known
        return known

    def check(self) -> None:
        """Refuse to commit what was decided with texts that are not known yet."""
        if self._wanted:
            raise _Behind

    def catch_up(self) -> None:
        """Make the texts that were asked for; outside of transactions."""
        for key, arguments in self._wanted.items():
            try:
                self._known[key] = self._encode(*arguments)
            except Exception as error:  # of this one; it is raised where the text is asked for
                self._known[key] = error
        self._wanted = {}

    def _encode(self, workflow_name: str, tick: datetime, context: Any) -> tuple[str, str]:
        function = self._engine.registry.workflows.get(workflow_name)
        format = function.info.serialization_type if function is not None else None
        return self._engine.serialization.dump_inputs((tick, context), {}, format, name=workflow_name)


def settle(
    engine: Engine,
    choose: Choose,
    decide: Decide,
    now_ms: int,
    *,
    encode: Encoder | None = None,
    overlap: Overlap | None = None,
    action: Action | None = None,
) -> Flow[Settled]:
    """Decide about the schedules that ``choose`` locks; see :meth:`SchedulesStore.settle`.

    ``encode`` is what ``decide`` makes texts with; ``action`` is what somebody does, if it is not the schedule itself.
    """

    def verb(connection: Any) -> Settled:
        settled = engine.db.schedules.settle(connection, choose, decide, now_ms, overlap=overlap)
        if encode is not None:
            encode.check()
        for each in settled.decisions:
            if action is not None and each.workflow_id is not None:
                engine.db.actions.note(connection, action, workflow_ids=[each.workflow_id], subject=each.schedule_name)
        return settled

    while True:
        try:
            results = yield Commit((Call(verb, (), is_apart=True),))
            break
        except _Behind:
            assert encode is not None
            encode.catch_up()
    settled: Settled = results[0]
    for row in settled.broken:
        engine.alert(
            "schedule_broken",
            f"Schedule {row.schedule_name} cannot fire: {row.error}",
            {"schedule_name": row.schedule_name, "error": row.error},
        )
    for decision in settled.decisions:
        if decision.decision == "paused":
            engine.alert(
                "schedule_paused",
                f"Schedule {decision.schedule_name} was paused, because {decision.reason}. Resume it with "
                "DBOS.resume_schedule once the cause is mended.",
                {"schedule_name": decision.schedule_name, "reason": decision.reason},
            )
    for queue_name in sorted({run.queue_name for run in settled.runs}):
        engine.enqueued(queue_name)
    yield from note_cancelled(engine, settled.cancelled)
    return settled
