"""Retention: what may be deleted, found page by page, and deleted under a lease that one process has at a time.

There is deliberately no index on the time of completion. What has ended before a time was created before it: the pages
go along the index of ``created_at``, and who asks looks at the rest. A page is read where reads are; only what is to
be deleted is looked at again, and locked, by the transaction that deletes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dbos._sysdb.connection import Connection
from dbos._sysdb.stores.deletions import DeletionsStore

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect

__all__ = ["FINISHED", "Candidate", "Entry", "Hold", "RetentionStore", "Task"]

FINISHED = frozenset({"SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"})
MAX_GENERATIONS = 100  # of ancestors that are looked at; what has more is kept until the eldest are gone

_IS_FINISHED = f"status IN ({', '.join(repr(status) for status in sorted(FINISHED))})"
_ENDED_AT = "COALESCE(w.completed_at, w.updated_at)"

ADD_TASK = "INSERT INTO dbos.maintenance_tasks (task) VALUES (:task) ON CONFLICT DO NOTHING"

TAKE_TASK = """
-- Unless somebody else has it, or it was done since a time.
UPDATE dbos.maintenance_tasks SET holder = :holder, held_until = :until_ms
WHERE task = :task AND (holder IS NULL OR holder = :holder OR held_until <= :now_ms)
  AND (last_run_at IS NULL OR position IS NOT NULL OR last_run_at <= :due_before_ms)
"""

TASK = "SELECT holder, held_until, position, last_run_at FROM dbos.maintenance_tasks WHERE task = :task"

KEEP_TASK = """
UPDATE dbos.maintenance_tasks SET held_until = :until_ms, position = :position WHERE task = :task AND holder = :holder
"""

DROP_TASK = """
UPDATE dbos.maintenance_tasks SET holder = NULL, held_until = NULL WHERE task = :task AND holder = :holder
"""

END_TASK = """
UPDATE dbos.maintenance_tasks
SET holder = NULL, held_until = NULL, position = NULL, last_run_at = COALESCE(:ended_at, last_run_at)
WHERE task = :task AND holder = :holder
"""

PAGE = f"""
-- Workflows in the order in which they were created, from behind a place on. Who asks stops where it has enough: with
-- an upper bound, a planner that takes it for narrow would read up to it, and sort, for every page.
SELECT w.workflow_uuid, w.created_at, w.name, w.status, {_ENDED_AT}, w.application_name
FROM dbos.workflow_status w
WHERE w.created_at >= :created_at AND (w.created_at > :created_at OR w.workflow_uuid > :workflow_uuid)
ORDER BY w.created_at, w.workflow_uuid
LIMIT :limit
"""

LOCK = f"""
-- Those that are finished, and that nobody is forking, resuming or deleting at this moment.
SELECT w.workflow_uuid, {_ENDED_AT} FROM dbos.workflow_status w
WHERE w.workflow_uuid IN :ids AND w.{_IS_FINISHED}
ORDER BY w.workflow_uuid {{skip_locked}}
"""

PARENTS = """
SELECT workflow_uuid, parent_workflow_id FROM dbos.workflow_status
WHERE workflow_uuid IN :ids AND parent_workflow_id IS NOT NULL
"""

RECORDERS = """
-- Who has recorded a workflow: its parent, the parent's forks, and whoever was given it instead of one of its own.
SELECT child_workflow_id, workflow_uuid FROM dbos.operation_outputs WHERE child_workflow_id IN :ids
"""

MAY_GO_ON = """
-- Those that run, wait, or can be resumed.
SELECT workflow_uuid FROM dbos.workflow_status WHERE workflow_uuid IN :ids AND status NOT IN ('SUCCESS', 'ERROR')
"""

MESSAGES = """
-- Messages that were received: what was made of them is recorded. Those with a key stay as long as their workflow: the
-- same one, sent again, must not count as new.
SELECT message_uuid FROM dbos.notifications
WHERE destination_uuid IN :ids AND consumed = TRUE AND idempotency_key IS NULL AND created_at_epoch_ms < :before_ms
LIMIT :limit
"""

DECISIONS = """
-- About ticks, apart from those that wait for their turn: a decision on these is still to be taken.
SELECT history_id, decided_at FROM dbos.schedule_history
WHERE history_id > :after AND decision <> 'buffered'
ORDER BY history_id LIMIT :limit
"""

ACTIONS = """
SELECT action_id, occurred_at FROM dbos.management_actions
WHERE action_id > :after
ORDER BY action_id LIMIT :limit
"""

DELETE_MESSAGES = "DELETE FROM dbos.notifications WHERE message_uuid IN :ids"

DELETE_DECISIONS = "DELETE FROM dbos.schedule_history WHERE history_id IN :ids"

DELETE_ACTIONS = "DELETE FROM dbos.management_actions WHERE action_id IN :ids"


class Task(NamedTuple):
    """A task for one process at a time: who sees to it until when, how far it has come, when it was last completed."""

    holder: str | None
    held_until: int | None
    position: str | None
    last_run_at: int | None


class Hold(NamedTuple):
    """The lease of a task, to be extended until a time, and the position that has then been reached."""

    task: str
    holder: str
    until_ms: int
    position: str | None


class Candidate(NamedTuple):
    """A workflow, finished or not; ``ended_at`` is when it was, or when its row was last changed."""

    workflow_uuid: str
    created_at: int
    name: str | None
    status: str
    ended_at: int
    application_name: str | None


class Entry(NamedTuple):
    """A row of a history: later ones have greater ids, and hardly ever earlier times."""

    id: int
    at: int


class RetentionStore:
    """Deletion by the page, over the tables of workflows and those beside them."""

    def __init__(self, dialect: Dialect) -> None:
        self._lock = LOCK.replace("{skip_locked}", dialect.skip_locked)

    # -- the lease -----------------------------------------------------------------------------------------------------

    @staticmethod
    def take(connection: Connection, task: str, holder: str, now_ms: int, until_ms: int, due_before_ms: int) -> Task:
        """Take a task that nobody holds and that was not completed since ``due_before_ms``; returns how it stands then.

        A task that was left in the middle is always due.
        """
        connection.run(ADD_TASK, task=task)
        connection.run(
            TAKE_TASK, task=task, holder=holder, now_ms=now_ms, until_ms=until_ms, due_before_ms=due_before_ms
        )
        row = connection.one(TASK, task=task)
        return Task(None, None, None, None) if row is None else Task(*row)

    @staticmethod
    def keep(connection: Connection, hold: Hold) -> bool:
        """Extend a lease; returns False if somebody else has it by now."""
        return connection.run(KEEP_TASK, **hold._asdict()) > 0

    @staticmethod
    def drop(connection: Connection, task: str, holder: str) -> None:
        """Give a task up, for another to go on with where it was last kept."""
        connection.run(DROP_TASK, task=task, holder=holder)

    def leave(self, connection: Connection, hold: Hold) -> None:
        """Give a task up at a position, for another to go on with there."""
        if self.keep(connection, hold):
            self.drop(connection, hold.task, hold.holder)

    @staticmethod
    def end(connection: Connection, task: str, holder: str, ended_at: int | None) -> None:
        """Give a task up because it is complete; ``ended_at`` is None if that was not the one that is due regularly."""
        connection.run(END_TASK, task=task, holder=holder, ended_at=ended_at)

    # -- workflows -----------------------------------------------------------------------------------------------------

    @staticmethod
    def page(connection: Connection, after: tuple[int, str], limit: int) -> list[Candidate]:
        """Workflows in the order in which they were created; those behind ``after``, a time and an id."""
        created_at, workflow_id = after
        rows = connection.all(PAGE, created_at=created_at, workflow_uuid=workflow_id, limit=limit)
        return [Candidate(*row) for row in rows]

    def delete(self, connection: Connection, hold: Hold, ended: Mapping[str, int]) -> list[str] | None:
        """Delete workflows, given with their ends, that are still as they were seen; returns the ids of those.

        What a workflow that may go on may still ask for is kept. Returns None if the lease is lost.
        """
        if not self.keep(connection, hold):
            return None
        locked = connection.all(self._lock, ids=sorted(ended))
        ids = [workflow_id for workflow_id, ended_at in locked if ended_at == ended[workflow_id]]
        needed = self._needed(connection, ids)
        return DeletionsStore.delete(connection, [each for each in ids if each not in needed]) if ids else []

    @staticmethod
    def _needed(connection: Connection, ids: Sequence[str]) -> set[str]:
        """Those of finished workflows that have an ancestor which may go on, apart from each other."""
        below: dict[str, list[str]] = {}
        seen = set(ids)
        generation = list(ids)
        for _ in range(MAX_GENERATIONS):
            if not generation:
                break
            links = connection.all(PARENTS, ids=generation) + connection.all(RECORDERS, ids=generation)
            generation = []
            for child, ancestor in links:
                below.setdefault(ancestor, []).append(child)
                if ancestor not in seen:
                    seen.add(ancestor)
                    generation.append(ancestor)
        ancestors = sorted(seen.difference(ids))
        pending = [row[0] for row in connection.all(MAY_GO_ON, ids=ancestors)] if ancestors else []
        pending += generation  # nobody looked further
        needed: set[str] = set()
        while pending:
            for child in below.get(pending.pop(), ()):
                if child not in needed:
                    needed.add(child)
                    pending.append(child)
        return needed.intersection(ids)

    # -- what else grows -----------------------------------------------------------------------------------------------

    @staticmethod
    def messages(connection: Connection, workflow_ids: Sequence[str], before_ms: int, limit: int) -> list[str]:
        """Messages that workflows have received and that may go, sent before a time."""
        found = connection.all(MESSAGES, ids=sorted(workflow_ids), before_ms=before_ms, limit=limit)
        return [row[0] for row in found]

    @staticmethod
    def decisions(connection: Connection, after: int, limit: int) -> list[Entry]:
        """Decisions about ticks, in the order in which they were noted; those behind ``after``."""
        return [Entry(*row) for row in connection.all(DECISIONS, after=after, limit=limit)]

    @staticmethod
    def actions(connection: Connection, after: int, limit: int) -> list[Entry]:
        """Management actions, likewise."""
        return [Entry(*row) for row in connection.all(ACTIONS, after=after, limit=limit)]

    def delete_messages(self, connection: Connection, hold: Hold, ids: Sequence[str]) -> int | None:
        """Delete messages; returns how many there were, None if the lease is lost."""
        return connection.run(DELETE_MESSAGES, ids=ids) if self.keep(connection, hold) else None

    def delete_decisions(self, connection: Connection, hold: Hold, ids: Sequence[int]) -> int | None:
        """Delete decisions about ticks; returns how many there were, None if the lease is lost."""
        return connection.run(DELETE_DECISIONS, ids=ids) if self.keep(connection, hold) else None

    def delete_actions(self, connection: Connection, hold: Hold, ids: Sequence[int]) -> int | None:
        """Delete management actions; returns how many there were, None if the lease is lost."""
        return connection.run(DELETE_ACTIONS, ids=ids) if self.keep(connection, hold) else None
