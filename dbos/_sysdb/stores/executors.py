"""Executor instances: who is alive, and what to do about who is not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import ExecutorRow, columns
from dbos._sysdb.stores.application_versions import LATEST, OF_APPLICATION

__all__ = ["ExecutorsStore", "queues_as_text", "queues_of_text"]

KEEP_DRAIN_REQUESTS_MS = 7 * 24 * 3600 * 1000  # of instances that were declared dead, should they wake up after all

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

RUNNING = """
-- How much every instance runs.
SELECT owner_instance, count(*) FROM dbos.workflow_status
WHERE status = 'PENDING' AND owner_instance IS NOT NULL
GROUP BY owner_instance
"""

DRAIN = """
-- Ask an instance to take no more from queues; asked twice, since the first time.
UPDATE dbos.executor_instances SET draining_since = COALESCE(draining_since, :now_ms) WHERE instance_id = :instance
"""

SERVE = "UPDATE dbos.executor_instances SET queues = :queues WHERE instance_id = :instance"

SERVED = "SELECT queues FROM dbos.executor_instances WHERE draining_since IS NULL"

UNDRAIN = "UPDATE dbos.executor_instances SET draining_since = NULL WHERE instance_id = :instance"

REMOVE = "DELETE FROM dbos.executor_instances WHERE instance_id IN :ids"

REMOVE_SILENT = """
DELETE FROM dbos.executor_instances WHERE instance_id = :instance AND heartbeat = :heartbeat
RETURNING draining_since
"""

KEEP_DRAIN_REQUEST = """
-- Whoever asked an instance to drain meant the process, which may only have been silent, and will come back.
INSERT INTO dbos.drain_requests (instance_id, draining_since) VALUES (:instance, :draining_since)
ON CONFLICT (instance_id) DO NOTHING
"""

FIND_DRAIN_REQUEST = "SELECT draining_since FROM dbos.drain_requests WHERE instance_id = :instance"

FORGET_DRAIN_REQUESTS = "DELETE FROM dbos.drain_requests WHERE draining_since < :since_ms"

IS_RUN = f"""
SELECT 1 FROM dbos.executor_instances WHERE application_version = :version AND {OF_APPLICATION} LIMIT 1
"""

_IS_OF_VERSION = f"{OF_APPLICATION} AND COALESCE(application_version, {LATEST}) = :version"

ADOPT = f"""
-- Give what is unfinished of one version to another; with the latest, also what is of none. Each status has an index.
UPDATE dbos.workflow_status SET application_version = :adopter, updated_at = :now_ms
WHERE workflow_uuid IN (
  SELECT workflow_uuid FROM dbos.workflow_status WHERE status = 'PENDING' AND {_IS_OF_VERSION}
  UNION ALL
  SELECT workflow_uuid FROM dbos.workflow_status WHERE status = 'ENQUEUED' AND {_IS_OF_VERSION}
  UNION ALL
  SELECT workflow_uuid FROM dbos.workflow_status WHERE status = 'DELAYED' AND {_IS_OF_VERSION})
  AND {_IS_OF_VERSION} AND status IN ('PENDING', 'ENQUEUED', 'DELAYED')
RETURNING queue_name
"""


def queues_as_text(names: Iterable[str]) -> str:
    """Names of queues as they are stored."""
    return json.dumps(sorted(names))


def queues_of_text(text: str) -> list[str]:
    """Names of queues that were stored."""
    names: list[str] = json.loads(text)
    return names


class ExecutorsStore:
    """The ``executor_instances`` and ``drain_requests`` tables."""

    @staticmethod
    def register(connection: Connection, executor: ExecutorRow, former: str | None = None) -> bool:
        """Announce an instance; returns whether it is to drain.

        ``former`` is the instance that the same process was before it was declared dead.
        """
        if former is not None:
            request = connection.one(FIND_DRAIN_REQUEST, instance=former)
            if request is not None:
                executor = executor._replace(draining_since=request[0])
        connection.run(REGISTER, **executor._asdict())
        connection.run(FORGET_DRAIN_REQUESTS, since_ms=executor.started_at - KEEP_DRAIN_REQUESTS_MS)
        return executor.draining_since is not None

    @staticmethod
    def heartbeat(connection: Connection, instance: str, now_ms: int) -> bool:
        """Renew an instance's lease; returns False if it was declared dead."""
        return connection.run(HEARTBEAT, instance=instance, now_ms=now_ms) > 0

    @staticmethod
    def list(connection: Connection) -> list[ExecutorRow]:
        """All instances, oldest first."""
        return [ExecutorRow(*row) for row in connection.all(LIST)]

    @staticmethod
    def running(connection: Connection) -> dict[str, int]:
        """How many workflows each instance runs, if it runs any."""
        return dict(connection.all(RUNNING))

    @staticmethod
    def serve(connection: Connection, instance: str, queues: Iterable[str]) -> None:
        """Note the queues that an instance takes work from."""
        connection.run(SERVE, instance=instance, queues=queues_as_text(queues))

    @staticmethod
    def served_queues(connection: Connection) -> set[str] | None:
        """The queues from which an instance takes work that is not to drain; None if it is not known of one of them."""
        served = [row[0] for row in connection.all(SERVED)]
        return None if None in served else set[str]().union(*map(queues_of_text, served))

    @staticmethod
    def drain(connection: Connection, instance: str, now_ms: int) -> bool:
        """Ask an instance to take no more from queues; returns False if there is none."""
        return connection.run(DRAIN, instance=instance, now_ms=now_ms) > 0

    @staticmethod
    def undrain(connection: Connection, instance: str) -> bool:
        """Take that back; returns False if there is no such instance."""
        return connection.run(UNDRAIN, instance=instance) > 0

    @staticmethod
    def remove_silent(connection: Connection, executor: ExecutorRow) -> None:
        """Declare an instance dead, unless it has given a sign of life since ``executor`` was read.

        Should it come back, it drains if it was asked to.
        """
        instance = executor.instance_id
        for (draining_since,) in connection.all(REMOVE_SILENT, instance=instance, heartbeat=executor.heartbeat):
            if draining_since is not None:
                connection.run(KEEP_DRAIN_REQUEST, instance=instance, draining_since=draining_since)

    @staticmethod
    def remove(connection: Connection, instances: Sequence[str]) -> None:
        """Declare instances dead (or gone): their writes are refused from now on, and their work may be taken."""
        connection.run(REMOVE, ids=sorted(instances))

    @staticmethod
    def is_run(connection: Connection, version: str, application_name: str | None = None) -> bool:
        """Whether an instance of an application's version is alive, for all that is known."""
        return connection.one(IS_RUN, version=version, application_name=application_name) is not None

    @staticmethod
    def adopt(
        connection: Connection, version: str, adopter: str, now_ms: int, application_name: str | None = None
    ) -> Sequence[str | None]:
        """Give the unfinished work of one version to another of the application; returns the queue of each workflow.

        What is of no version is the latest's.

        Ask :meth:`is_run` about ``version`` afterwards, in the same transaction, and roll back if so: an instance that
        registered before then may be running some of it, one that comes later finds the rows locked and then changed.
        """
        found = connection.all(
            ADOPT, version=version, adopter=adopter, now_ms=now_ms, application_name=application_name
        )
        return [row[0] for row in found]
