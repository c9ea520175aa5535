"""What a run may still write: its ownership, and its record of an operation that has an effect.

The hot way to record a step is the dialects'. Here is the way for an operation whose effect (a message, an event …)
must be there exactly if its record is: the verb that has the effect records it first, in the same transaction, and
has the effect only if the record was not there yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import RECORDED, RecordStep, StepRecorded
from dbos._sysdb.rows import StepRow, columns

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect

__all__ = ["Owner", "RunsStore"]

# Its executor's row is held, so that a take-over waits for this transaction; one that came before makes it false.
_IS_OWNED = """w.workflow_uuid = :workflow_uuid AND w.run_token = :run_token AND w.status = 'PENDING'
  AND EXISTS (SELECT 1 FROM dbos.executor_instances e WHERE e.instance_id = w.owner_instance {hold})"""

RECORD = f"""
-- Record an operation of a run that owns its workflow.
INSERT INTO dbos.operation_outputs ({", ".join(StepRow._fields)})
SELECT {{values}} FROM dbos.workflow_status w WHERE {_IS_OWNED}
ON CONFLICT DO NOTHING
"""

STATUS = f"""
-- The status of a workflow, for a run that still may write: a step that is running when the cancellation comes may end.
SELECT w.status FROM dbos.workflow_status w
WHERE {_IS_OWNED}
   OR w.workflow_uuid = :workflow_uuid AND w.run_token = :run_token AND w.status = 'CANCELLED'
"""

RECORDED_STEP = f"""
SELECT {columns(StepRow)} FROM dbos.operation_outputs
WHERE workflow_uuid = :workflow_uuid AND function_id = :function_id
"""

_TYPES = dict.fromkeys(("function_id", "started_at_epoch_ms", "completed_at_epoch_ms"), "bigint")


class Owner(NamedTuple):
    """A run, by what it proves itself with."""

    workflow_uuid: str
    run_token: str


class RunsStore:
    """Fenced writes to ``operation_outputs``, one at a time."""

    def __init__(self, dialect: Dialect) -> None:
        values = ", ".join(f"CAST(:{name} AS {_TYPES.get(name, 'text')})" for name in StepRow._fields)
        self._record = RECORD.replace("{values}", values).replace("{hold}", dialect.hold)
        self._status = STATUS.replace("{hold}", dialect.hold)

    def status(self, connection: Connection, owner: Owner) -> str | None:
        """``PENDING`` or ``CANCELLED`` if the run still owns its workflow until the end of the transaction, or None."""
        row = connection.one(self._status, **owner._asdict())
        return None if row is None else str(row[0])

    def may_act(self, connection: Connection, step: RecordStep | None, owner: Owner | None) -> StepRecorded:
        """Whether an operation may have its effect now, which is so if :data:`RECORDED` itself is returned.

        ``step`` is its record in a workflow's body, which is written; ``owner`` the run of a step that it is called in,
        which records nothing of it. Outside of workflows there is neither.
        """
        if step is not None:
            return self.record(connection, step)
        if owner is not None and self.status(connection, owner) is None:
            return StepRecorded(None, None)
        return RECORDED

    def record(self, connection: Connection, step: RecordStep) -> StepRecorded:
        """Record an operation; :data:`RECORDED` itself is returned if that was written just now, and by nobody before.

        Otherwise the operation must not have its effect: it had it already, or the run may not act any more.
        """
        if connection.run(self._record, **step._asdict()):
            return RECORDED
        found = self.find(connection, step)
        return found or StepRecorded(self.status(connection, Owner(step.workflow_uuid, step.run_token)), None)

    def find(self, connection: Connection, step: RecordStep) -> StepRecorded | None:
        """What is recorded in the place of an operation, for a run that may still write; None if nothing is."""
        row = connection.one(RECORDED_STEP, workflow_uuid=step.workflow_uuid, function_id=step.function_id)
        if row is None:
            return None
        status = self.status(connection, Owner(step.workflow_uuid, step.run_token))
        return StepRecorded(status, None if status is None else StepRow(*row))
