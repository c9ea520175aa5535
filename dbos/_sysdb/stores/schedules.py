"""Schedules: their definitions, when they are due, and what became of their ticks.

Whoever decides about a schedule locks its row first, reads then what else it has to know, and writes what it has
decided in the same transaction: each in a statement of its own, because a lock taken inside a statement comes after
its snapshot. Schedules that are due together are decided together, and written in as many statements as one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from dbos._error import DBOSDatabaseUnavailableError
from dbos._ids import jitter
from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import DecisionRow, ScheduleRow, columns
from dbos._sysdb.stores.workflow_status import WorkflowStatusStore
from dbos._types import Overlap

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect

__all__ = [
    "CLOCK_TOLERANCE_MS",
    "GRACE_MS",
    "Agenda",
    "Choose",
    "Decide",
    "Decided",
    "RunRow",
    "SchedulesStore",
    "Settled",
    "Situation",
]


HISTORY_KEPT = 10_000  # decisions of one schedule
PRUNE_SHARE = 0.01  # how likely it is that a decision has older ones forgotten
GRACE_MS = 60_000  # a tick that is later than that was missed: nobody was there
BACKLOG_SHARE = 10  # one in so many of the schedules that are decided together may be late, whatever else is due
MAX_RUNS = 1000  # in one transaction, about
MAX_SPENT_S = 0.2  # on decisions in one transaction: others wait for it
MAX_RUNNING = 200  # unfinished runs of a schedule that are looked at, unless they are to be cancelled
CLOCK_TOLERANCE_MS = 10_000  # what was planned so far in the future was planned by a clock that has gone back since

# A run of a version that nobody runs any more is stranded until somebody adopts it, and stands in nobody's way.
_IS_UNFINISHED = """r.status IN ('PENDING', 'ENQUEUED', 'DELAYED') AND (
    r.application_version IS NULL OR EXISTS (
      SELECT 1 FROM dbos.executor_instances e
      WHERE e.application_version = r.application_version
        AND COALESCE(r.application_name, e.application_name, '') = COALESCE(e.application_name, '')))"""

# An application sees to its own schedules, and to those that are nobody's in particular: it knows the workflows.
_IS_OURS = (
    "(CAST(:application_name AS TEXT) IS NULL OR w.application_name IS NULL OR w.application_name = :application_name)"
)

SELECT = f"SELECT {columns(ScheduleRow, 'w')} FROM dbos.workflow_schedules w"

LIST = f"{SELECT} ORDER BY created_at, schedule_name"

GET = f"{SELECT} WHERE schedule_name IN :names"

LOCK = f"{SELECT} WHERE schedule_name IN :names ORDER BY schedule_name {{lock}}"

DUE = f"""
{SELECT} WHERE status = 'ACTIVE' AND next_fire_ms > :after_ms AND next_fire_ms <= :until_ms AND {_IS_OURS}
ORDER BY next_fire_ms LIMIT :count {{skip_locked}}
"""

UNPLANNED = f"""
-- What somebody has written into the table, what could not be planned, and what was planned by a clock that was ahead.
{SELECT}
WHERE status = 'ACTIVE' AND {_IS_OURS} AND (
  planned_from IS NULL OR error IS NOT NULL OR planned_at > :latest_ms
  OR planned_from <> schedule || '|' || COALESCE(cron_timezone, '') || '|' || COALESCE(last_fired_at, ''))
ORDER BY schedule_name {{skip_locked}}
"""

RELEASABLE = f"""
-- Schedules of which a tick waits for an earlier run to end, and none runs.
{SELECT}
WHERE status = 'ACTIVE' AND {_IS_OURS}
  AND schedule_id IN (SELECT schedule_id FROM dbos.schedule_history WHERE decision = 'buffered')
  AND NOT EXISTS (SELECT 1 FROM dbos.workflow_status r WHERE r.schedule_name = w.schedule_name AND {_IS_UNFINISHED})
ORDER BY schedule_name LIMIT :count {{skip_locked}}
"""

AGENDA = f"""
-- When the next schedule is due, and whether a tick waits for an earlier run to end.
SELECT (
    SELECT min(next_fire_ms) FROM dbos.workflow_schedules w
    WHERE status = 'ACTIVE' AND next_fire_ms < :no_number AND {_IS_OURS}),
  (SELECT count(*) FROM (
    SELECT 1 FROM dbos.schedule_history JOIN dbos.workflow_schedules w USING (schedule_id)
    WHERE decision = 'buffered' AND status = 'ACTIVE' AND {_IS_OURS} LIMIT 1) b)
"""

CAREFUL = """
-- Those of the schedules for which it matters how their runs end, and when.
SELECT schedule_name FROM dbos.workflow_schedules w
WHERE schedule_name IN :names AND status = 'ACTIVE' AND (
  pause_on_failure IS NOT NULL
  OR EXISTS (SELECT 1 FROM dbos.schedule_history h WHERE h.schedule_id = w.schedule_id AND h.decision = 'buffered'))
"""

RUNNING = f"""
-- What a schedule has started that has not ended.
SELECT workflow_uuid FROM dbos.workflow_status r
WHERE schedule_name = :name AND {_IS_UNFINISHED}
LIMIT :count
"""

BUFFERED = """
SELECT schedule_id, count(*) FROM dbos.schedule_history
WHERE schedule_id IN :ids AND decision = 'buffered' GROUP BY schedule_id
"""

OLDEST_BUFFERED = f"""
SELECT {columns(DecisionRow)} FROM dbos.schedule_history
WHERE schedule_id = :id AND decision = 'buffered' ORDER BY history_id LIMIT 1
"""

RECENT_OUTCOMES = """
-- How the last runs of a schedule ended that did so by themselves.
SELECT status FROM dbos.workflow_status
WHERE schedule_name = :name AND status IN ('SUCCESS', 'ERROR', 'MAX_RECOVERY_ATTEMPTS_EXCEEDED')
  AND created_at > :since_ms
ORDER BY created_at DESC, workflow_uuid DESC LIMIT :count
"""

INSERT = f"""
INSERT INTO dbos.workflow_schedules ({", ".join(ScheduleRow._fields)})
VALUES ({", ".join(":" + name for name in ScheduleRow._fields)})
ON CONFLICT (schedule_name) DO NOTHING
"""

PUT = f"""
UPDATE dbos.workflow_schedules SET {", ".join(f"{name} = :{name}" for name in ScheduleRow._fields[1:])}
WHERE schedule_id = :schedule_id
"""

_STATE = {
    "status": "text",
    "pause_reason": "text",
    "last_fired_at": "text",
    "runs": "bigint",
    "next_tick_ms": "bigint",
    "next_fire_ms": "bigint",
    "planned_at": "bigint",
    "planned_from": "text",
    "error": "text",
    "updated_at": "bigint",
}

SET_STATES = f"""
-- How far schedules have come.
UPDATE dbos.workflow_schedules SET {", ".join(f"{name} = r.{name}" for name in _STATE)}
FROM {{states}}
WHERE workflow_schedules.schedule_id = r.schedule_id
"""

NOTE_DECISIONS = f"""
-- A tick that has run, or waits to, is not noted a second time.
INSERT INTO dbos.schedule_history ({", ".join(DecisionRow._fields)})
SELECT {", ".join(DecisionRow._fields)} FROM {{decisions}} WHERE TRUE
ON CONFLICT DO NOTHING
RETURNING schedule_name, workflow_id
"""

RELEASE = """
UPDATE dbos.schedule_history SET decision = :decision, decided_at = :decided_at
WHERE schedule_id = :schedule_id AND workflow_id = :workflow_id AND decision = 'buffered'
"""

PRUNE = """
-- Forget the oldest decisions about a schedule.
DELETE FROM dbos.schedule_history
WHERE schedule_name = :name AND decision <> 'buffered' AND history_id <= (
  SELECT history_id FROM dbos.schedule_history WHERE schedule_name = :name
  ORDER BY history_id DESC LIMIT 1 OFFSET :kept)
"""


class RunRow(NamedTuple):
    """A workflow to be enqueued by a schedule; of no version, it is for the latest."""

    workflow_uuid: str
    name: str
    class_name: str | None
    queue_name: str
    inputs: str
    serialization: str
    application_version: str | None
    application_name: str | None
    schedule_name: str | None
    owner_xid: str
    created_at: int


START = f"""
-- Enqueue runs. An id that is taken has run before.
INSERT INTO dbos.workflow_status ({", ".join(RunRow._fields)}, status, updated_at, recovery_attempts)
SELECT {", ".join(RunRow._fields)}, 'ENQUEUED', created_at, 0 FROM {{runs}} WHERE TRUE
ON CONFLICT DO NOTHING
"""

DELETE = "DELETE FROM dbos.workflow_schedules WHERE schedule_name IN :names"

DELETE_BUFFERED = """
DELETE FROM dbos.schedule_history WHERE decision = 'buffered'
  AND schedule_id IN (SELECT schedule_id FROM dbos.workflow_schedules WHERE schedule_name IN :names)
"""

HISTORY = f"""
SELECT {columns(DecisionRow)} FROM dbos.schedule_history
WHERE schedule_name = :name ORDER BY history_id DESC LIMIT :count
"""

RUN_IDS = """
SELECT scheduled_at, workflow_id FROM dbos.schedule_history
WHERE schedule_id = :id AND scheduled_at IN :ticks AND kind <> 'trigger' AND workflow_id IS NOT NULL
"""


class Agenda(NamedTuple):
    """When the next schedule is due, None for never; and whether a tick waits for an earlier run to end."""

    next_fire_ms: int | None
    has_buffered: bool


class Situation(NamedTuple):
    """What a decision has to consider, besides the schedule.

    ``running`` are its unfinished runs; ``buffered`` ticks wait for them to end, of which ``oldest`` has waited longest
    (None while something runs). ``is_failing`` if as many runs in a row have failed as the schedule puts up with.
    """

    running: Sequence[str] = ()
    buffered: int = 0
    oldest: DecisionRow | None = None
    is_failing: bool = False


class Decided(NamedTuple):
    """What was decided about a schedule: how it is from now on, what became of its ticks, and what starts or ends.

    ``released`` is a tick that has waited, ``cancelled`` are unfinished runs.
    """

    row: ScheduleRow
    decisions: Sequence[DecisionRow] = ()
    runs: Sequence[RunRow] = ()
    released: DecisionRow | None = None
    cancelled: Sequence[str] = ()


class Settled(NamedTuple):
    """What was decided about several: the schedules as they are now, and all decisions and runs there are.

    ``cancelled`` are the runs that were unfinished and are not any more; ``broken`` are schedules that cannot be
    decided about, for a new reason.
    """

    rows: Sequence[ScheduleRow] = ()
    decisions: Sequence[DecisionRow] = ()
    runs: Sequence[RunRow] = ()
    cancelled: Sequence[str] = ()
    broken: Sequence[ScheduleRow] = ()


Choose = Callable[[Connection], list[ScheduleRow]]
Decide = Callable[[ScheduleRow, Situation], Decided]


class SchedulesStore:
    """The ``workflow_schedules`` and ``schedule_history`` tables."""

    def __init__(self, dialect: Dialect) -> None:
        lock = dialect.skip_locked.removesuffix("SKIP LOCKED")
        self._lock = LOCK.replace("{lock}", lock)
        self._due, self._unplanned, self._releasable = (
            sql.replace("{skip_locked}", dialect.skip_locked) for sql in (DUE, UNPLANNED, RELEASABLE)
        )
        self._set_states = SET_STATES.replace("{states}", dialect.rows(schedule_id="text", **_STATE))
        self._note_decisions = NOTE_DECISIONS.replace("{decisions}", dialect.rows(**_types_of(DecisionRow)))
        self._start = START.replace("{runs}", dialect.rows(**_types_of(RunRow)))

    # -- reading -------------------------------------------------------------------------------------------------------

    @staticmethod
    def get(connection: Connection, name: str) -> ScheduleRow | None:
        """The row of a schedule, or None."""
        row = connection.one(GET, names=[name])
        return None if row is None else ScheduleRow(*row)

    @staticmethod
    def all(connection: Connection) -> list[ScheduleRow]:
        """All schedules, in the order of their creation."""
        return [ScheduleRow(*row) for row in connection.all(LIST)]

    @staticmethod
    def agenda(connection: Connection, application_name: str | None = None) -> Agenda:
        """What there is to be done for an application, and when; None for all of them."""
        row = connection.one(AGENDA, no_number=2**63 - 1, application_name=application_name)
        assert row is not None
        return Agenda(row[0], row[1] > 0)

    @staticmethod
    def careful(connection: Connection, names: Sequence[str]) -> list[str]:
        """Those of the schedules for which it matters how their runs end, and when."""
        return [row[0] for row in connection.all(CAREFUL, names=list(names))]

    @staticmethod
    def history(connection: Connection, name: str, count: int) -> list[DecisionRow]:
        """The last decisions about a schedule, the newest first."""
        return [DecisionRow(*row) for row in connection.all(HISTORY, name=name, count=count)]

    @staticmethod
    def run_ids(connection: Connection, schedule_id: str, ticks: Sequence[int]) -> dict[int, str]:
        """The workflows that ticks have started, or will."""
        return dict(connection.all(RUN_IDS, id=schedule_id, ticks=list(ticks)))

    # -- choosing, with a lock -----------------------------------------------------------------------------------------

    def named(self, connection: Connection, names: Iterable[str]) -> list[ScheduleRow]:
        """Schedules by their names."""
        return [ScheduleRow(*row) for row in connection.all(self._lock, names=sorted(names))]

    def due(
        self, connection: Connection, now_ms: int, count: int, application_name: str | None = None
    ) -> list[ScheduleRow]:
        """Schedules whose next tick is due, but those that somebody else is deciding about."""
        name, since_ms = application_name, now_ms - GRACE_MS
        recent = connection.all(self._due, after_ms=since_ms, until_ms=now_ms, count=count, application_name=name)
        # What has a long time to make up for must not keep those waiting that are on time, nor wait for ever.
        count = max(count // BACKLOG_SHARE, count - len(recent))
        late = connection.all(self._due, after_ms=0, until_ms=since_ms, count=count, application_name=name)
        return [ScheduleRow(*row) for row in (*recent, *late)]

    def unplanned(self, connection: Connection, now_ms: int, application_name: str | None = None) -> list[ScheduleRow]:
        """Schedules whose next tick is to be computed."""
        latest_ms = now_ms + CLOCK_TOLERANCE_MS
        found = connection.all(self._unplanned, latest_ms=latest_ms, application_name=application_name)
        return [ScheduleRow(*row) for row in found]

    def releasable(self, connection: Connection, count: int, application_name: str | None = None) -> list[ScheduleRow]:
        """Schedules of which a tick waits for an earlier run to end, and none runs."""
        found = connection.all(self._releasable, count=count, application_name=application_name)
        return [ScheduleRow(*row) for row in found]

    # -- deciding ------------------------------------------------------------------------------------------------------

    def settle(
        self, connection: Connection, choose: Choose, decide: Decide, now_ms: int, *, overlap: Overlap | None = None
    ) -> Settled:
        """Decide about the schedules that ``choose`` locks, each by itself, and write all that was decided.

        A schedule that cannot be decided about keeps the error, and is left alone. ``overlap`` counts instead of what
        the schedules say.
        """
        rows = choose(connection)
        if not rows:
            return Settled()
        verdicts = self._verdicts(connection, rows, decide, overlap)
        rows = rows[: len(verdicts)]
        decisions = [each for verdict in verdicts for each in verdict.decisions]
        noted = self._note(connection, decisions)
        verdicts = [_counted(verdict, noted) for verdict in verdicts]
        runs = [run for verdict in verdicts for run in verdict.runs if run.workflow_uuid in noted]
        for verdict in verdicts:
            if verdict.released is not None:
                connection.run(RELEASE, **verdict.released._asdict())
                runs += verdict.runs
        self.start(connection, runs)
        changed = [verdict.row for row, verdict in zip(rows, verdicts, strict=True) if verdict.row != row]
        if changed:
            states = [{name: getattr(row, name) for name in ("schedule_id", *_STATE)} for row in changed]
            connection.run(self._set_states, rows=json.dumps(states))
        # A tick that has run already, because a clock has gone back, starts nothing, and so it ends nothing.
        starting = [verdict for verdict in verdicts if any(run.workflow_uuid in noted for run in verdict.runs)]
        cancelled = [each for verdict in starting for each in verdict.cancelled]
        if cancelled:
            cancelled = WorkflowStatusStore.cancel(connection, cancelled, now_ms)
        broken = [each.row for row, each in zip(rows, verdicts, strict=True) if each.row.error not in (None, row.error)]
        return Settled([verdict.row for verdict in verdicts], decisions, runs, cancelled, broken)

    def start(self, connection: Connection, runs: Sequence[RunRow]) -> None:
        """Enqueue runs, but those that have run before."""
        if runs:
            connection.run(self._start, rows=json.dumps([run._asdict() for run in runs]))

    def _verdicts(
        self, connection: Connection, rows: Sequence[ScheduleRow], decide: Decide, overlap: Overlap | None
    ) -> list[Decided]:
        """A decision about each of the first of the rows; others are left for later if this takes too long."""
        verdicts: list[Decided] = []
        began, number = monotonic(), 0
        for row in rows:
            verdicts.append(_decided(row, self._situation(connection, row, overlap or row.overlap), decide))
            number += len(verdicts[-1].runs)
            if number >= MAX_RUNS or monotonic() - began > MAX_SPENT_S:
                break
        return verdicts

    @staticmethod
    def _situation(connection: Connection, row: ScheduleRow, overlap: str) -> Situation:
        is_failing = _is_failing(connection, row)
        if overlap == "allow":
            return Situation(is_failing=is_failing)
        count = 2**31 if overlap == "cancel_other" else MAX_RUNNING
        running = [found[0] for found in connection.all(RUNNING, name=row.schedule_name, count=count)]
        buffered = dict(connection.all(BUFFERED, ids=[row.schedule_id])).get(row.schedule_id, 0)
        oldest = connection.one(OLDEST_BUFFERED, id=row.schedule_id) if buffered and not running else None
        return Situation(running, buffered, None if oldest is None else DecisionRow(*oldest), is_failing)

    def _note(self, connection: Connection, decisions: Sequence[DecisionRow]) -> set[str]:
        """Remember decisions; returns the ids of the runs that are noted for the first time."""
        if not decisions:
            return set()
        noted = connection.all(self._note_decisions, rows=json.dumps([each._asdict() for each in decisions]))
        for name in sorted({name for name, _ in noted if jitter() - 0.5 < PRUNE_SHARE}):
            connection.run(PRUNE, name=name, kept=HISTORY_KEPT)
        return {workflow_id for _, workflow_id in noted if workflow_id is not None}

    # -- definitions ---------------------------------------------------------------------------------------------------

    @staticmethod
    def insert(connection: Connection, row: ScheduleRow) -> bool:
        """Create a schedule; returns whether its name was free, or this very schedule has it."""
        connection.run(INSERT, **row._asdict())
        found = SchedulesStore.get(connection, row.schedule_name)
        return found is not None and found.schedule_id == row.schedule_id

    def change(
        self, connection: Connection, name: str, transform: Callable[[ScheduleRow], ScheduleRow]
    ) -> ScheduleRow | Exception | None:
        """Change a schedule while it is locked; returns it as it is then, or None if there is none of this name.

        An error of ``transform`` is returned and not raised, because others' work is in the same transaction.
        """
        for row in self.named(connection, [name]):
            try:
                changed = transform(row)
            except Exception as error:
                return error
            if changed != row:
                connection.run(PUT, **changed._asdict())
            return changed
        return None

    def apply(
        self,
        connection: Connection,
        new: Mapping[str, ScheduleRow],
        merge: Callable[[ScheduleRow, ScheduleRow], ScheduleRow],
        is_superfluous: Callable[[ScheduleRow], bool] | None,
    ) -> None:
        """Create schedules, or merge them with those that have their names; delete what is superfluous."""
        present = [] if is_superfluous is None else self.all(connection)
        superfluous = [row.schedule_name for row in present if is_superfluous is not None and is_superfluous(row)]
        existing = {row.schedule_name: row for row in self.named(connection, [*new, *superfluous])}
        for name in sorted(new.keys() - existing.keys()):
            self.insert(connection, new[name])  # another process may create it in this very moment: then it has the row
        for name in sorted(new.keys() & existing.keys()):
            merged = merge(existing[name], new[name])
            if merged != existing[name]:
                connection.run(PUT, **merged._asdict())
        self.delete(connection, superfluous)

    def delete(self, connection: Connection, names: Sequence[str]) -> None:
        """Delete schedules, and what waits for an earlier run of theirs to end. What was decided is remembered."""
        if names:
            self.named(connection, names)  # locked, so that nobody puts off one more tick meanwhile
            connection.run(DELETE_BUFFERED, names=list(names))
            connection.run(DELETE, names=list(names))


def _types_of(row: type[DecisionRow] | type[RunRow]) -> dict[str, str]:
    """The column types of a row class; all numbers are integers."""
    return {name: "bigint" if "int" in str(kind) else "text" for name, kind in row.__annotations__.items()}


def _decided(row: ScheduleRow, situation: Situation, decide: Decide) -> Decided:
    try:
        return decide(row, situation)
    except DBOSDatabaseUnavailableError:
        raise  # which says nothing about the schedule
    except Exception as error:  # whatever somebody has written there; the other schedules go on
        reason = f"{type(error).__name__}: {error}"
        # Its next tick is kept: when it can fire again, it goes on from there.
        return Decided(row._replace(next_fire_ms=None, error=reason))


def _counted(verdict: Decided, noted: set[str]) -> Decided:
    """A decision without the ticks that had run before, because a clock has gone back: they do not count again."""
    ticks = [each.workflow_id for each in verdict.decisions if each.kind == "tick" and each.workflow_id is not None]
    repeated = sum(workflow_id not in noted for workflow_id in ticks)
    if not repeated:
        return verdict
    row = verdict.row
    # With a run more to come, there may be a next tick where there was none.
    planned_from = row.planned_from if row.max_runs is None else None
    return verdict._replace(row=row._replace(runs=row.runs - repeated, planned_from=planned_from))


def _is_failing(connection: Connection, row: ScheduleRow) -> bool:
    count = row.pause_on_failure
    if not isinstance(count, int) or count < 1:  # somebody may have written anything there, which the decision refuses
        return False
    since_ms = row.resumed_at or 0
    outcomes = connection.all(RECENT_OUTCOMES, name=row.schedule_name, since_ms=since_ms, count=count)
    return len(outcomes) == count and all(status != "SUCCESS" for (status,) in outcomes)
