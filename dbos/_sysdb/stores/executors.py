"""Executor instances: who is alive, and what to do about who is not."""

from __future__ import annotations

from collections.abc import Sequence

from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import ExecutorRow, columns

__all__ = ["ExecutorsStore"]

REGISTER = f"""
INSERT INTO dbos.executor_instances ({", ".join(ExecutorRow._fields)})
VALUES ({", ".join(":" + name for name in ExecutorRow._fields)})
ON CONFLICT (instance_id) DO NOTHING
"""

HEARTBEAT = """
-- A sign of life; touches no row if the instance was declared dead.
UPDATE dbos.executor_instances SET heartbeat = heartbeat + 1, heartbeat_at = :now_ms WHERE instance_id = :instance
"""

LIST = f"SELECT {columns(ExecutorRow)} FROM dbos.executor_instances ORDER BY started_at, instance_id"

REMOVE = "DELETE FROM dbos.executor_instances WHERE instance_id IN :ids"

REMOVE_SILENT = "DELETE FROM dbos.executor_instances WHERE instance_id = :instance AND heartbeat = :heartbeat"


class ExecutorsStore:
    """The ``executor_instances`` table."""

    @staticmethod
    def register(connection: Connection, executor: ExecutorRow) -> None:
        """Announce an instance."""
        connection.run(REGISTER, **executor._asdict())

    @staticmethod
    def heartbeat(connection: Connection, instance: str, now_ms: int) -> bool:
        """Renew an instance's lease; returns False if it was declared dead."""
        return connection.run(HEARTBEAT, instance=instance, now_ms=now_ms) > 0

    @staticmethod
    def list(connection: Connection) -> list[ExecutorRow]:
        """All instances, oldest first."""
        return [ExecutorRow(*row) for row in connection.all(LIST)]

    @staticmethod
    def remove_silent(connection: Connection, executor: ExecutorRow) -> None:
        """Declare an instance dead, unless it has given a sign of life since ``executor`` was read."""
        connection.run(REMOVE_SILENT, instance=executor.instance_id, heartbeat=executor.heartbeat)

    @staticmethod
    def remove(connection: Connection, instances: Sequence[str]) -> None:
        """Declare instances dead (or gone): their writes are refused from now on, and their work may be taken."""
        connection.run(REMOVE, ids=sorted(instances))
