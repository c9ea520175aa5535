"""Workflows: reading them, and the changes of status that are not hot.

(Starting, and recording outcomes, are the dialects': their statements are shaped by batching.) Every verb takes the
connection of the transaction it runs in, so the committer can carry it along with others' work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import CREATED, START_COLUMNS, Started, StartWorkflow
from dbos._sysdb.rows import MUST_READ, Peeked, StatusRow, columns
from dbos._sysdb.stores.application_versions import OF_APPLICATION, latest_of

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect

__all__ = ["INTERNAL_QUEUE", "STOPPED", "TIMEOUT", "WorkflowStatusStore", "target_key"]

INTERNAL_QUEUE = "_dbos_internal_queue"

# What stops before its end leaves its queue. The run token stays, so that a step that is running is recorded.
STOPPED = """queue_name = NULL, deduplication_id = NULL, started_at_epoch_ms = NULL,
    owner_instance = NULL, updated_at = :now_ms, completed_at = :now_ms"""

# One that somebody has written by hand may be anything; added to a time, it must not leave the range of the column.
TIMEOUT = "CASE WHEN workflow_timeout_ms > 100000000000000 THEN 100000000000000 ELSE workflow_timeout_ms END"

PAYLOADS = ("inputs", "output", "error")
MAX_SMALL = 16 * 1024  # bytes or characters of them in a row that is read with hundreds of others

# What does not run any more is in its queue again, or in ours if it was in none.
WAITS_AGAIN = """status = 'ENQUEUED', queue_name = COALESCE(queue_name, :internal_queue), started_at_epoch_ms = NULL,
    owner_instance = NULL, run_token = NULL, updated_at = :now_ms"""

GET = f"SELECT {columns(StatusRow)} FROM dbos.workflow_status WHERE workflow_uuid IN :ids"

EXISTING = "SELECT workflow_uuid FROM dbos.workflow_status WHERE workflow_uuid IN :ids"

UNSETTLED = """
-- Those of the ids that have no outcome yet.
SELECT workflow_uuid FROM dbos.workflow_status
WHERE workflow_uuid IN :ids AND status IN ('PENDING', 'ENQUEUED', 'DELAYED')
"""

_PEEKED = ", ".join(f"CASE WHEN is_whole THEN {name} END" if name in PAYLOADS else name for name in StatusRow._fields)
PEEK = f"""
-- Which of the ids have an outcome, and their rows, if they are small enough to be read many at a time.
SELECT is_settled, is_whole, {_PEEKED}
FROM (
  SELECT *, status NOT IN ('PENDING', 'ENQUEUED', 'DELAYED') AS is_settled,
    status NOT IN ('PENDING', 'ENQUEUED', 'DELAYED')
      AND {" + ".join(f"COALESCE({{text_size}}({name}), 0)" for name in PAYLOADS)} <= {MAX_SMALL} AS is_whole
  FROM dbos.workflow_status WHERE workflow_uuid IN :ids) found
"""

HAS_ORPHANS = f"""
-- Whether there is PENDING work that no executor instance owns.
SELECT 1 FROM dbos.workflow_status
WHERE status = 'PENDING' AND application_version = :application_version AND {OF_APPLICATION}
  AND (owner_instance IS NULL OR owner_instance NOT IN (SELECT instance_id FROM dbos.executor_instances))
LIMIT 1
"""

CHILDREN = """
-- What workflows have started themselves; not what they were handed because it was there.
SELECT workflow_uuid FROM dbos.workflow_status WHERE parent_workflow_id IN :ids
"""

FINISHED = """
-- Those of the ids that have an outcome, in the order in which they got it.
SELECT workflow_uuid FROM dbos.workflow_status
WHERE workflow_uuid IN :ids AND status NOT IN ('PENDING', 'ENQUEUED', 'DELAYED')
ORDER BY completed_at, workflow_uuid
"""

SET_ATTRIBUTES = """
UPDATE dbos.workflow_status SET attributes = :attributes
WHERE workflow_uuid = :workflow_id AND COALESCE(attributes, '') <> COALESCE(:attributes, '')
RETURNING workflow_uuid
"""

RUNNING = """
-- What an executor instance owns, by its own account.
SELECT workflow_uuid, run_token FROM dbos.workflow_status WHERE owner_instance = :instance AND status = 'PENDING'
"""

PLACES = """
-- The queues in which workflows hold a place, because they run.
SELECT DISTINCT queue_name FROM dbos.workflow_status
WHERE workflow_uuid IN :ids AND status = 'PENDING' AND queue_name IS NOT NULL
"""

CANCEL = f"""
-- Cancel what is not finished; cancelling twice changes nothing.
UPDATE dbos.workflow_status
SET status = 'CANCELLED', {STOPPED}
WHERE workflow_uuid IN :ids AND status NOT IN ('SUCCESS', 'ERROR', 'CANCELLED')
RETURNING workflow_uuid
"""

CANCEL_OVERDUE = f"""
-- Cancel runs whose deadline has passed. A row that somebody has locked is left for another time.
WITH overdue AS MATERIALIZED (
  SELECT workflow_uuid AS overdue_id FROM dbos.workflow_status w
  WHERE workflow_uuid IN :ids AND status IN ('PENDING', 'ENQUEUED', 'DELAYED')
    AND workflow_deadline_epoch_ms <= :now_ms
  {{skip_locked}})
UPDATE dbos.workflow_status
SET status = 'CANCELLED', {STOPPED}
FROM overdue
WHERE workflow_uuid = overdue_id
RETURNING workflow_uuid
"""

KEYLESS = """
-- Those of the ids that are not finished and have no partition key.
SELECT workflow_uuid FROM dbos.workflow_status
WHERE workflow_uuid IN :ids AND queue_partition_key IS NULL AND status NOT IN ('SUCCESS', 'ERROR')
"""

RESUME = """
-- Put unfinished workflows back into a queue, as if new: no attempts used, no deadline, no run. What a live instance is
-- running needs no resuming.
UPDATE dbos.workflow_status
SET status = 'ENQUEUED', queue_name = :queue_name,
    queue_partition_key = COALESCE(:partition_key, queue_partition_key),
    recovery_attempts = 0, workflow_deadline_epoch_ms = NULL, deduplication_id = NULL, started_at_epoch_ms = NULL,
    completed_at = NULL, owner_instance = NULL, run_token = NULL, updated_at = :now_ms
WHERE workflow_uuid IN :ids AND status NOT IN ('SUCCESS', 'ERROR')
  AND NOT (status = 'PENDING' AND owner_instance IS NOT NULL
           AND owner_instance IN (SELECT instance_id FROM dbos.executor_instances))
RETURNING workflow_uuid
"""

RECLAIM = f"""
-- Put PENDING work that no live executor instance owns back into its queue, for any instance of this version to claim.
-- A row that somebody has locked is left for the next round. The token is compared when the row is locked: whoever took
-- it since we looked may be an instance that our snapshot does not show.
WITH lost AS MATERIALIZED (
  SELECT workflow_uuid AS lost_id, run_token AS lost_token FROM dbos.workflow_status
  WHERE status = 'PENDING' AND application_version = :application_version AND {OF_APPLICATION}
    AND (owner_instance IS NULL OR owner_instance NOT IN (SELECT instance_id FROM dbos.executor_instances))),
free AS MATERIALIZED (
  SELECT w.workflow_uuid AS free_id FROM lost JOIN dbos.workflow_status w ON w.workflow_uuid = lost_id
  WHERE w.status = 'PENDING' AND COALESCE(w.run_token, '') = COALESCE(lost_token, '')
  {{skip_locked}})
UPDATE dbos.workflow_status
SET {WAITS_AGAIN}
FROM free
WHERE workflow_uuid = free_id
RETURNING workflow_uuid
"""

RECLAIM_OWN = f"""
-- Put PENDING work of this very instance that is not running in it back into its queue. A row that somebody has locked
-- is left for the next round: this is what a process does between two signs of life.
WITH free AS MATERIALIZED (
  SELECT workflow_uuid AS free_id FROM dbos.workflow_status w
  WHERE status = 'PENDING' AND owner_instance = :instance AND workflow_uuid IN :ids AND run_token IN :tokens
  {{skip_locked}})
UPDATE dbos.workflow_status
SET {WAITS_AGAIN}
FROM free
WHERE workflow_uuid = free_id
RETURNING workflow_uuid
"""

GIVE_BACK = f"""
-- Undo a claim whose workflow was not begun. A first claim sets the deadline, unless there was one, and any claim the
-- version of what was of none.
UPDATE dbos.workflow_status
SET {WAITS_AGAIN}, recovery_attempts = recovery_attempts - 1,
    application_version = CASE WHEN was_unversioned THEN NULL ELSE application_version END,
    workflow_deadline_epoch_ms = CASE
      WHEN recovery_attempts = 1 AND workflow_deadline_epoch_ms = started_at_epoch_ms + {TIMEOUT} THEN NULL
      ELSE workflow_deadline_epoch_ms END
WHERE workflow_uuid = :workflow_id AND run_token = :run_token AND status = 'PENDING'
RETURNING queue_name, COALESCE(queue_partition_key, '')
"""

GIVE_BACK_START = """
-- A start that did not come about counts against no rate.
UPDATE dbos.queue_starts SET started = started - 1
WHERE queue_name = :queue_name AND partition_key = :partition_key AND run_token = :run_token
"""

CLAIM_BY_ID = f"""
-- Take over one workflow that nobody alive is running. What this very claim has taken already, in an execution whose
-- answer was lost, is not another attempt.
UPDATE dbos.workflow_status
SET status = 'PENDING', owner_instance = :instance, executor_id = :executor_id, run_token = :run_token,
    application_version = :application_version,
    was_unversioned = CASE WHEN run_token = :run_token THEN was_unversioned ELSE application_version IS NULL END,
    updated_at = :now_ms,
    recovery_attempts = recovery_attempts + CASE WHEN run_token = :run_token THEN 0 ELSE 1 END,
    workflow_deadline_epoch_ms = COALESCE(workflow_deadline_epoch_ms, :now_ms + {TIMEOUT})
WHERE workflow_uuid = :workflow_id AND status IN ('PENDING', 'ENQUEUED')
  AND COALESCE(run_token, '') IN (:seen_token, :run_token)
  AND (owner_instance IS NULL OR owner_instance = :instance
       OR owner_instance NOT IN (SELECT instance_id FROM dbos.executor_instances))
RETURNING {columns(StatusRow)}
"""

DEAD_LETTER = f"""
-- Give up on a workflow that was attempted too often.
UPDATE dbos.workflow_status
SET status = 'MAX_RECOVERY_ATTEMPTS_EXCEEDED', {STOPPED}
WHERE workflow_uuid = :workflow_id AND run_token = :run_token AND status = 'PENDING'
"""

_UNFINISHED_OF = f"""SELECT application_name, application_version FROM dbos.workflow_status
    WHERE status = '{{status}}' AND (CAST(:application_name AS TEXT) IS NULL OR {OF_APPLICATION})"""

# Of work that is nobody's in particular and of no version, the latest of any application takes care.
_ITS_LATEST = latest_of("COALESCE(w.application_name, e.application_name)")
_RUNS = f"""e.application_version = COALESCE(w.application_version, {_ITS_LATEST})
    AND COALESCE(w.application_name, e.application_name, '') = COALESCE(e.application_name, '')"""

STRANDED_VERSIONS = f"""
-- Unfinished work by the application version that is to run it, for versions that no live executor instance runs. Each
-- status has an index; and what is decided for each application and version is not decided for each of its workflows.
SELECT runner, sum(number) FROM (
  SELECT COALESCE(application_version,
      {latest_of("COALESCE(w.application_name, :application_name)")}) AS runner, number
  FROM (
    SELECT application_name, application_version, count(*) AS number FROM (
      {" UNION ALL ".join(_UNFINISHED_OF.replace("{status}", status) for status in ("PENDING", "ENQUEUED", "DELAYED"))}
    ) unfinished GROUP BY application_name, application_version) w
  WHERE NOT EXISTS (SELECT 1 FROM dbos.executor_instances e WHERE {_RUNS})) stranded
WHERE runner IS NOT NULL
GROUP BY runner
ORDER BY runner
"""


START = f"""
-- Create a workflow's row; an id that is taken keeps its row.
INSERT INTO dbos.workflow_status ({", ".join(START_COLUMNS)}, updated_at, owner_xid)
VALUES ({", ".join(":" + name for name in START_COLUMNS)}, :created_at, :run_token)
ON CONFLICT DO NOTHING
"""

HOLDER = f"""
-- Who holds a de-duplication id of a queue.
SELECT {columns(StatusRow)} FROM dbos.workflow_status
WHERE queue_name = :queue_name AND deduplication_id = :deduplication_id
"""


def target_key(name: str, class_name: str | None, config_name: str | None) -> str:
    """What a workflow needs registered in order to run, in one string; the claim compares it."""
    return f"{name}/{class_name or ''}/{config_name or ''}"


class WorkflowStatusStore:
    """The ``workflow_status`` table."""

    def __init__(self, dialect: Dialect) -> None:
        self._reclaim, self._reclaim_own, self._cancel_overdue = (
            sql.replace("{skip_locked}", dialect.skip_locked) for sql in (RECLAIM, RECLAIM_OWN, CANCEL_OVERDUE)
        )
        self._peek = PEEK.replace("{text_size}", dialect.text_size)

    @staticmethod
    def get(connection: Connection, workflow_id: str) -> StatusRow | None:
        """The row of a workflow, or None."""
        row = connection.one(GET, ids=[workflow_id])
        return None if row is None else StatusRow(*row)

    @staticmethod
    def get_all(connection: Connection, workflow_ids: Sequence[str]) -> dict[str, StatusRow]:
        """The rows of those of the workflows that exist, by id."""
        rows = [StatusRow(*row) for row in connection.all(GET, ids=list(workflow_ids))]
        return {row.workflow_uuid: row for row in rows}

    @staticmethod
    def existing(connection: Connection, workflow_ids: Sequence[str]) -> list[str]:
        """Those of the workflows that exist."""
        return [row[0] for row in connection.all(EXISTING, ids=list(workflow_ids))]

    @staticmethod
    def settled(connection: Connection, workflow_ids: Sequence[str]) -> list[str]:
        """Those of the workflows that have an outcome, or do not exist."""
        unsettled = {row[0] for row in connection.all(UNSETTLED, ids=list(workflow_ids))}
        return [workflow_id for workflow_id in workflow_ids if workflow_id not in unsettled]

    def peek(self, connection: Connection, workflow_ids: Sequence[str]) -> dict[str, Peeked]:
        """Which of the workflows have an outcome, or do not exist; with their rows, where these are small."""
        peeked = dict.fromkeys(workflow_ids, Peeked(is_settled=True))
        for is_settled, is_whole, *values in connection.all(self._peek, ids=list(workflow_ids)):
            row = StatusRow(*values)
            if is_whole:
                peeked[row.workflow_uuid] = Peeked(is_settled=True, row=row)
            else:
                peeked[row.workflow_uuid] = MUST_READ if is_settled else Peeked(is_settled=False)
        return peeked

    @staticmethod
    def children(connection: Connection, workflow_ids: Sequence[str]) -> list[str]:
        """What the workflows have started."""
        return [row[0] for row in connection.all(CHILDREN, ids=list(workflow_ids))]

    @staticmethod
    def finished(connection: Connection, workflow_ids: Sequence[str]) -> list[str]:
        """Those of the workflows that have an outcome, the first to get one first."""
        return [row[0] for row in connection.all(FINISHED, ids=list(workflow_ids))]

    @staticmethod
    def set_attributes(connection: Connection, workflow_id: str, attributes: str | None) -> list[str]:
        """Set a workflow's attributes, a JSON object; returns its id if they were others before."""
        return [row[0] for row in connection.all(SET_ATTRIBUTES, workflow_id=workflow_id, attributes=attributes)]

    @staticmethod
    def has_orphans(connection: Connection, application_version: str, application_name: str | None = None) -> bool:
        """Whether there is PENDING work of an application's version that no executor instance owns."""
        found = connection.one(HAS_ORPHANS, application_version=application_version, application_name=application_name)
        return found is not None

    @staticmethod
    def running(connection: Connection, instance: str) -> dict[str, str]:
        """The run token of each workflow that ``instance`` owns."""
        return dict(connection.all(RUNNING, instance=instance))

    @staticmethod
    def start(connection: Connection, start: StartWorkflow) -> Started:
        """Create a workflow's row that nobody is the parent of, in a transaction of the user's."""
        if connection.run(START, **start._asdict()):
            return CREATED
        existing = connection.one(GET, ids=[start.workflow_uuid])
        if existing is not None:
            return Started(created=False, existing=StatusRow(*existing))
        holder = connection.one(HOLDER, queue_name=start.queue_name, deduplication_id=start.deduplication_id)
        return Started(created=False, existing=None, holder=None if holder is None else StatusRow(*holder))

    @staticmethod
    def claim_by_id(
        connection: Connection,
        *,
        workflow_id: str,
        instance: str,
        executor_id: str,
        application_version: str,
        run_token: str,
        seen_token: str,
        now_ms: int,
    ) -> StatusRow | None:
        """Claim one workflow, unless it is finished or a live executor instance other than ``instance`` owns it.

        ``seen_token`` is the run token that the row was seen with, empty for none: of several who saw it one claims it.
        """
        row = connection.one(
            CLAIM_BY_ID,
            workflow_id=workflow_id,
            instance=instance,
            executor_id=executor_id,
            application_version=application_version,
            run_token=run_token,
            seen_token=seen_token,
            now_ms=now_ms,
        )
        return None if row is None else StatusRow(*row)

    @staticmethod
    def give_back(connection: Connection, workflow_id: str, run_token: str, now_ms: int) -> bool:
        """Undo a claim, if the workflow is still as it was claimed: it may have been undone before.

        Returns whether there was something to undo.
        """
        row = connection.one(
            GIVE_BACK, workflow_id=workflow_id, run_token=run_token, internal_queue=INTERNAL_QUEUE, now_ms=now_ms
        )
        if row is None:
            return False
        queue_name, partition_key = row
        connection.run(GIVE_BACK_START, queue_name=queue_name, partition_key=partition_key, run_token=run_token)
        return True

    @staticmethod
    def places(connection: Connection, workflow_ids: Sequence[str]) -> list[str]:
        """The queues in which workflows run: those in which something may begin when they are cancelled."""
        return [row[0] for row in connection.all(PLACES, ids=sorted(workflow_ids))]

    @staticmethod
    def cancel(connection: Connection, workflow_ids: Sequence[str], now_ms: int) -> list[str]:
        """Cancel the workflows that are not finished; returns their ids."""
        return [row[0] for row in connection.all(CANCEL, ids=sorted(workflow_ids), now_ms=now_ms)]

    def cancel_overdue(self, connection: Connection, workflow_ids: Sequence[str], now_ms: int) -> list[str]:
        """Cancel those of the workflows whose deadline has passed and that nobody has locked; returns their ids."""
        return [row[0] for row in connection.all(self._cancel_overdue, ids=sorted(workflow_ids), now_ms=now_ms)]

    @staticmethod
    def keyless(connection: Connection, workflow_ids: Sequence[str]) -> list[str]:
        """Those of the workflows that are not finished and have no partition key."""
        return [row[0] for row in connection.all(KEYLESS, ids=list(workflow_ids))]

    @staticmethod
    def resume(
        connection: Connection,
        workflow_ids: Sequence[str],
        queue_name: str,
        now_ms: int,
        partition_key: str | None = None,
    ) -> list[str]:
        """Enqueue unfinished workflows anew, under the partition key they have if none is given; returns their ids."""
        rows = connection.all(
            RESUME, ids=sorted(workflow_ids), queue_name=queue_name, partition_key=partition_key, now_ms=now_ms
        )
        return [row[0] for row in rows]

    def reclaim(
        self, connection: Connection, application_version: str, now_ms: int, application_name: str | None = None
    ) -> list[str]:
        """Enqueue what no live executor instance owns and nobody has locked, of a version; returns the ids."""
        rows = connection.all(
            self._reclaim,
            application_version=application_version,
            application_name=application_name,
            internal_queue=INTERNAL_QUEUE,
            now_ms=now_ms,
        )
        return [row[0] for row in rows]

    def reclaim_own(self, connection: Connection, instance: str, lost: Mapping[str, str], now_ms: int) -> list[str]:
        """Enqueue workflows that ``instance`` owns but does not run, given with their run tokens; returns the ids."""
        rows = connection.all(
            self._reclaim_own,
            instance=instance,
            ids=sorted(lost),
            tokens=sorted(set(lost.values())),
            internal_queue=INTERNAL_QUEUE,
            now_ms=now_ms,
        )
        return [row[0] for row in rows]

    @staticmethod
    def dead_letter(connection: Connection, workflow_id: str, run_token: str, now_ms: int) -> bool:
        """Give up on a run; returns whether it still held its token."""
        return connection.run(DEAD_LETTER, workflow_id=workflow_id, run_token=run_token, now_ms=now_ms) > 0

    @staticmethod
    def stranded_versions(connection: Connection, application_name: str | None = None) -> dict[str, int]:
        """How much unfinished work each version of an application has that nobody runs; None for every application.

        What is of no version counts with the latest, which alone runs it.
        """
        found = connection.all(STRANDED_VERSIONS, application_name=application_name)
        return {version: int(number) for version, number in found}
