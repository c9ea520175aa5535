"""Workflows: reading them, and the changes of status that are not hot.

(Starting, and recording outcomes, are the dialects': their statements are shaped by batching.) Every verb takes the
connection of the transaction it runs in, so the committer can carry it along with others' work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from dbos._sysdb.connection import Connection
from dbos._sysdb.filters import WorkflowFilter
from dbos._sysdb.rows import StatusRow, columns

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["INTERNAL_QUEUE", "WorkflowStatusStore", "target_key"]

INTERNAL_QUEUE = "_dbos_internal_queue"

GET = f"SELECT {columns(StatusRow)} FROM dbos.workflow_status WHERE workflow_uuid IN :ids"

EXISTING = "SELECT workflow_uuid FROM dbos.workflow_status WHERE workflow_uuid IN :ids"

UNSETTLED = """
-- Those of the ids that have no outcome yet.
SELECT workflow_uuid FROM dbos.workflow_status
WHERE workflow_uuid IN :ids AND status IN ('PENDING', 'ENQUEUED', 'DELAYED')
"""

HAS_READY = """
-- Whether there may be something to claim: a look before the leap into a writing transaction.
SELECT 1 FROM dbos.workflow_status
WHERE queue_name = :queue_name AND queue_name IS NOT NULL AND started_at_epoch_ms IS NULL AND status = 'ENQUEUED'
LIMIT 1
"""

HAS_ORPHANS = """
-- Whether there is PENDING work that no executor instance owns.
SELECT 1 FROM dbos.workflow_status
WHERE status = 'PENDING' AND application_version = :application_version
  AND (owner_instance IS NULL OR owner_instance NOT IN (SELECT instance_id FROM dbos.executor_instances))
LIMIT 1
"""

RUNNING = """
-- What an executor instance owns, by its own account.
SELECT workflow_uuid, run_token FROM dbos.workflow_status WHERE owner_instance = :instance AND status = 'PENDING'
"""

CANCEL = """
-- Cancel what is not finished; cancelling twice changes nothing. The run token stays, so that a step that is running is
-- recorded.
UPDATE dbos.workflow_status
SET status = 'CANCELLED', queue_name = NULL, deduplication_id = NULL, started_at_epoch_ms = NULL,
    owner_instance = NULL, updated_at = :now_ms, completed_at = :now_ms
WHERE workflow_uuid IN :ids AND status NOT IN ('SUCCESS', 'ERROR', 'CANCELLED')
RETURNING workflow_uuid
"""

CANCEL_OVERDUE = """
-- Cancel a run whose deadline has passed.
UPDATE dbos.workflow_status
SET status = 'CANCELLED', queue_name = NULL, deduplication_id = NULL, started_at_epoch_ms = NULL,
    owner_instance = NULL, updated_at = :now_ms, completed_at = :now_ms
WHERE workflow_uuid IN :ids AND status IN ('PENDING', 'ENQUEUED', 'DELAYED') AND workflow_deadline_epoch_ms <= :now_ms
RETURNING workflow_uuid
"""

RESUME = """
-- Put unfinished workflows back into a queue, as if new: no attempts used, no deadline, no run. What a live instance is
-- running needs no resuming.
UPDATE dbos.workflow_status
SET status = 'ENQUEUED', queue_name = :queue_name, recovery_attempts = 0, workflow_deadline_epoch_ms = NULL,
    deduplication_id = NULL, started_at_epoch_ms = NULL, completed_at = NULL, owner_instance = NULL, run_token = NULL,
    updated_at = :now_ms
WHERE workflow_uuid IN :ids AND status NOT IN ('SUCCESS', 'ERROR')
  AND NOT (status = 'PENDING' AND owner_instance IS NOT NULL
           AND owner_instance IN (SELECT instance_id FROM dbos.executor_instances))
RETURNING workflow_uuid
"""

RECLAIM = """
-- Put PENDING work that no live executor instance owns back into its queue, for any instance of this version to claim.
-- A row that somebody has locked is left for the next round. The token is compared when the row is locked: whoever took
-- it since we looked may be an instance that our snapshot does not show.
WITH lost AS MATERIALIZED (
  SELECT workflow_uuid AS lost_id, run_token AS lost_token FROM dbos.workflow_status
  WHERE status = 'PENDING' AND application_version = :application_version
    AND (owner_instance IS NULL OR owner_instance NOT IN (SELECT instance_id FROM dbos.executor_instances))),
free AS MATERIALIZED (
  SELECT w.workflow_uuid AS free_id FROM lost JOIN dbos.workflow_status w ON w.workflow_uuid = lost_id
  WHERE w.status = 'PENDING' AND COALESCE(w.run_token, '') = COALESCE(lost_token, '')
  {skip_locked})
UPDATE dbos.workflow_status
SET status = 'ENQUEUED', queue_name = COALESCE(queue_name, :internal_queue), started_at_epoch_ms = NULL,
    owner_instance = NULL, run_token = NULL, updated_at = :now_ms
FROM free
WHERE workflow_uuid = free_id
RETURNING workflow_uuid
"""

RECLAIM_OWN = """
-- Put PENDING work of this very instance that is not running in it back into its queue.
UPDATE dbos.workflow_status
SET status = 'ENQUEUED', queue_name = COALESCE(queue_name, :internal_queue), started_at_epoch_ms = NULL,
    owner_instance = NULL, run_token = NULL, updated_at = :now_ms
WHERE status = 'PENDING' AND owner_instance = :instance AND workflow_uuid IN :ids AND run_token IN :tokens
RETURNING workflow_uuid
"""

GIVE_BACK = """
-- Undo a claim whose workflow was not begun.
UPDATE dbos.workflow_status
SET status = 'ENQUEUED', queue_name = COALESCE(queue_name, :internal_queue), started_at_epoch_ms = NULL,
    owner_instance = NULL, run_token = NULL, recovery_attempts = recovery_attempts - 1, updated_at = :now_ms
WHERE workflow_uuid = :workflow_id AND run_token = :run_token AND status = 'PENDING'
"""

CLAIM_BY_ID = f"""
-- Take over one workflow that nobody alive is running.
UPDATE dbos.workflow_status
SET status = 'PENDING', owner_instance = :instance, executor_id = :executor_id, run_token = :run_token,
    application_version = :application_version, updated_at = :now_ms, recovery_attempts = recovery_attempts + 1,
    workflow_deadline_epoch_ms = COALESCE(workflow_deadline_epoch_ms, :now_ms + workflow_timeout_ms)
WHERE workflow_uuid = :workflow_id AND status IN ('PENDING', 'ENQUEUED') AND COALESCE(run_token, '') = :seen_token
  AND (owner_instance IS NULL OR owner_instance = :instance
       OR owner_instance NOT IN (SELECT instance_id FROM dbos.executor_instances))
RETURNING {columns(StatusRow)}
"""

DEAD_LETTER = """
-- Give up on a workflow that was attempted too often.
UPDATE dbos.workflow_status
SET status = 'MAX_RECOVERY_ATTEMPTS_EXCEEDED', queue_name = NULL, deduplication_id = NULL, started_at_epoch_ms = NULL,
    owner_instance = NULL, updated_at = :now_ms, completed_at = :now_ms
WHERE workflow_uuid = :workflow_id AND run_token = :run_token AND status = 'PENDING'
"""

STRANDED_VERSIONS = """
-- Unfinished work by application version, for versions that no live executor instance runs.
SELECT application_version, count(*) FROM dbos.workflow_status
WHERE application_version IS NOT NULL
  AND (status = 'PENDING' OR (queue_name IS NOT NULL AND started_at_epoch_ms IS NULL))
  AND application_version NOT IN (SELECT application_version FROM dbos.executor_instances)
GROUP BY application_version
ORDER BY application_version
"""

CLAIM = f"""
-- Claim the oldest waiting workflows of a queue, if this instance still holds its lease. One token serves the whole
-- claim: it is only ever compared within one workflow.
WITH claimed AS MATERIALIZED (
  SELECT workflow_uuid AS claimed_id FROM dbos.workflow_status w
  WHERE queue_name = :queue_name AND queue_name IS NOT NULL AND started_at_epoch_ms IS NULL AND status = 'ENQUEUED'
    AND (application_version = :application_version OR application_version IS NULL)
    AND EXISTS (SELECT 1 FROM dbos.executor_instances WHERE instance_id = :instance)
    AND NOT (name || '/' || COALESCE(class_name, '') || '/' || COALESCE(config_name, '') IN :unknown_targets)
  ORDER BY priority, created_at
  LIMIT :count
  {{skip_locked}})
UPDATE dbos.workflow_status
SET status = 'PENDING', owner_instance = :instance, executor_id = :executor_id, run_token = :run_token,
    application_version = :application_version, started_at_epoch_ms = :now_ms, updated_at = :now_ms,
    recovery_attempts = recovery_attempts + 1,
    workflow_deadline_epoch_ms = COALESCE(workflow_deadline_epoch_ms, :now_ms + workflow_timeout_ms)
FROM claimed
WHERE workflow_uuid = claimed_id
RETURNING {columns(StatusRow)}
"""


def target_key(name: str, class_name: str | None, config_name: str | None) -> str:
    """What a workflow needs registered in order to run, in one string; the claim compares it."""
    return f"{name}/{class_name or ''}/{config_name or ''}"


class WorkflowStatusStore:
    """The ``workflow_status`` table."""

    def __init__(self, *, skip_locked: str, sqlalchemy_dialect: Callable[[], sa.Dialect]) -> None:
        self._claim = CLAIM.replace("{skip_locked}", skip_locked)
        self._reclaim = RECLAIM.replace("{skip_locked}", skip_locked)
        self._sqlalchemy_dialect = sqlalchemy_dialect

    @staticmethod
    def get(connection: Connection, workflow_id: str) -> StatusRow | None:
        """The row of a workflow, or None."""
        row = connection.one(GET, ids=[workflow_id])
        return None if row is None else StatusRow(*row)

    @staticmethod
    def existing(connection: Connection, workflow_ids: Sequence[str]) -> list[str]:
        """Those of the workflows that exist."""
        return [row[0] for row in connection.all(EXISTING, ids=list(workflow_ids))]

    @staticmethod
    def settled(connection: Connection, workflow_ids: Sequence[str]) -> list[str]:
        """Those of the workflows that have an outcome, or do not exist."""
        unsettled = {row[0] for row in connection.all(UNSETTLED, ids=list(workflow_ids))}
        return [workflow_id for workflow_id in workflow_ids if workflow_id not in unsettled]

    @staticmethod
    def has_ready(connection: Connection, queue_name: str) -> bool:
        """Whether anything waits in a queue."""
        return connection.one(HAS_READY, queue_name=queue_name) is not None

    @staticmethod
    def has_orphans(connection: Connection, application_version: str) -> bool:
        """Whether there is PENDING work of a version that no executor instance owns."""
        return connection.one(HAS_ORPHANS, application_version=application_version) is not None

    @staticmethod
    def running(connection: Connection, instance: str) -> dict[str, str]:
        """The run token of each workflow that ``instance`` owns."""
        return dict(connection.all(RUNNING, instance=instance))

    def claim(
        self,
        connection: Connection,
        *,
        queue_name: str,
        count: int,
        instance: str,
        executor_id: str,
        application_version: str,
        run_token: str,
        unknown_targets: Sequence[str],
        now_ms: int,
    ) -> list[StatusRow]:
        """Atomically claim up to ``count`` waiting workflows, oldest first within a priority.

        Workflows of ``unknown_targets`` (see :func:`target_key`) are left for others, or for later.
        A repeated execution finds its earlier claim by ``run_token`` through :meth:`running`, not here.
        """
        rows = connection.all(
            self._claim,
            queue_name=queue_name,
            count=count,
            instance=instance,
            executor_id=executor_id,
            application_version=application_version,
            run_token=run_token,
            unknown_targets=list(unknown_targets),
            now_ms=now_ms,
        )
        return sorted((StatusRow(*row) for row in rows), key=lambda row: (row.priority, row.created_at))

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
    def give_back(connection: Connection, workflow_id: str, run_token: str, now_ms: int) -> None:
        """Undo a claim."""
        connection.run(
            GIVE_BACK, workflow_id=workflow_id, run_token=run_token, internal_queue=INTERNAL_QUEUE, now_ms=now_ms
        )

    @staticmethod
    def cancel(connection: Connection, workflow_ids: Sequence[str], now_ms: int) -> list[str]:
        """Cancel the workflows that are not finished; returns their ids."""
        return [row[0] for row in connection.all(CANCEL, ids=sorted(workflow_ids), now_ms=now_ms)]

    @staticmethod
    def cancel_overdue(connection: Connection, workflow_ids: Sequence[str], now_ms: int) -> list[str]:
        """Cancel those of the workflows whose deadline has passed; returns their ids."""
        return [row[0] for row in connection.all(CANCEL_OVERDUE, ids=sorted(workflow_ids), now_ms=now_ms)]

    @staticmethod
    def resume(connection: Connection, workflow_ids: Sequence[str], queue_name: str, now_ms: int) -> list[str]:
        """Enqueue unfinished workflows anew; returns their ids."""
        rows = connection.all(RESUME, ids=sorted(workflow_ids), queue_name=queue_name, now_ms=now_ms)
        return [row[0] for row in rows]

    def reclaim(self, connection: Connection, application_version: str, now_ms: int) -> list[str]:
        """Enqueue what no live executor instance owns and nobody has locked; returns the ids."""
        rows = connection.all(
            self._reclaim, application_version=application_version, internal_queue=INTERNAL_QUEUE, now_ms=now_ms
        )
        return [row[0] for row in rows]

    @staticmethod
    def reclaim_own(connection: Connection, instance: str, lost: Mapping[str, str], now_ms: int) -> list[str]:
        """Enqueue workflows that ``instance`` owns but does not run, given with their run tokens; returns the ids."""
        rows = connection.all(
            RECLAIM_OWN,
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
    def stranded_versions(connection: Connection) -> dict[str, int]:
        """How much unfinished work each application version has that nobody runs."""
        return dict(connection.all(STRANDED_VERSIONS))

    def list(self, connection: Connection, filter: WorkflowFilter) -> list[StatusRow]:
        """The workflows that match, by time of creation."""
        # Imported when it is first needed: SQLAlchemy takes longer to import than all of the rest.
        from dbos._sysdb.stores.workflow_query import compile_filter

        sql, parameters = compile_filter(filter, self._sqlalchemy_dialect())
        return [StatusRow(*row) for row in connection.all(sql, **parameters)]
