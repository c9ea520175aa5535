"""Delayed workflows: changing when they become ready to run."""

from __future__ import annotations

from dbos._sysdb.connection import Connection

__all__ = ["DelaysStore"]

SET_DELAY = """
-- Only while it is delayed: what is ready to run stays so.
UPDATE dbos.workflow_status
SET delay_until_epoch_ms = :until_ms, updated_at = :now_ms
WHERE workflow_uuid = :workflow_id AND status = 'DELAYED'
RETURNING queue_name
"""


class DelaysStore:
    """The delays in the ``workflow_status`` table."""

    @staticmethod
    def set(connection: Connection, workflow_id: str, until_ms: int, now_ms: int) -> str | None:
        """Have a delayed workflow be ready at a time; returns its queue, or None if it is not delayed (any more)."""
        row = connection.one(SET_DELAY, workflow_id=workflow_id, until_ms=until_ms, now_ms=now_ms)
        return None if row is None else str(row[0])
