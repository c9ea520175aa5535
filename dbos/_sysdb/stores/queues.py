"""Queues that are registered at run time: their settings, which every process reads again when they change."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from dbos._ids import new_instance_id
from dbos._queue_config import QueueConfig, QueueSettings, RateLimit
from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import QueueRow, columns
from dbos._sysdb.stores.application_versions import ApplicationVersionsStore

__all__ = ["OnConflict", "QueuesStore", "config_of", "settings_of"]

logger = logging.getLogger("dbos.queues")

OnConflict = Literal["update_if_latest_version", "always_update", "never_update"]

# What registering again overwrites. A pause is not among it: it outlasts the launches of those who register.
_DECLARED = QueueRow._fields[1 : QueueRow._fields.index("is_paused")]

GET = f"SELECT {columns(QueueRow)} FROM dbos.queues WHERE name = :name"

LIST = f"SELECT {columns(QueueRow)} FROM dbos.queues ORDER BY name"

INSERT = f"""
-- Register a queue; a name that is taken keeps its row.
INSERT INTO dbos.queues (queue_id, {", ".join(QueueRow._fields)})
VALUES (:queue_id, {", ".join(":" + name for name in QueueRow._fields)})
ON CONFLICT (name) DO NOTHING
"""

LOCK = f"""
-- Read a queue and keep others from changing it before this transaction ends.
UPDATE dbos.queues SET name = name WHERE name = :name
RETURNING {columns(QueueRow)}
"""

UPDATE = f"""
-- Each change has a time of its own, by which dispatchers notice it.
UPDATE dbos.queues
SET {", ".join(f"{name} = :{name}" for name in (*_DECLARED, "is_paused"))},
    updated_at = CASE WHEN updated_at >= :updated_at THEN updated_at + 1 ELSE :updated_at END
WHERE name = :name
"""

DELETE = "DELETE FROM dbos.queues WHERE name = :name"

WAITING = """
-- Each status has an index.
SELECT (SELECT count(*) FROM dbos.workflow_status WHERE status = 'ENQUEUED' AND queue_name = :name)
     + (SELECT count(*) FROM dbos.workflow_status WHERE status = 'DELAYED' AND queue_name = :name)
"""


def settings_of(row: QueueRow) -> QueueSettings:
    """The settings in a row.

    Raises:
        ValueError: somebody has written there what no queue can obey.
    """
    settings = QueueSettings(
        name=row.name,
        concurrency=row.concurrency,
        worker_concurrency=row.worker_concurrency,
        limiter=_rate_limit(row.rate_limit_max, row.rate_limit_period_sec),
        partition_concurrency=row.partition_concurrency,
        partition_worker_concurrency=row.partition_worker_concurrency,
        partition_limiter=_rate_limit(row.partition_rate_limit_max, row.partition_rate_limit_period_sec),
        priority_enabled=True,  # as always in these queues, whatever a release that knows a choice has written
        partition_queue=bool(row.partition_queue),
        polling_interval_sec=row.polling_interval_sec,
        is_paused=bool(row.is_paused),
    )
    settings.check(wide_name="global_concurrency")
    return settings


def config_of(row: QueueRow) -> QueueConfig:
    """The settings in a row as the dispatcher obeys them.

    Raises:
        ValueError: somebody has written there what no queue can obey.
    """
    return replace(settings_of(row).obeyed(), revision=row.updated_at)


def _rate_limit(limit: int | None, period_s: float | None) -> RateLimit | None:
    return None if limit is None and period_s is None else RateLimit.of({"limit": limit, "period": period_s})


def _row_of(settings: QueueSettings, application_name: str | None, now_ms: int) -> QueueRow:
    limiter, partition_limiter = settings.limiter, settings.partition_limiter
    return QueueRow(
        name=settings.name,
        concurrency=settings.concurrency,
        worker_concurrency=settings.worker_concurrency,
        rate_limit_max=None if limiter is None else limiter.limit,
        rate_limit_period_sec=None if limiter is None else limiter.period_s,
        partition_concurrency=settings.partition_concurrency,
        partition_worker_concurrency=settings.partition_worker_concurrency,
        partition_rate_limit_max=None if partition_limiter is None else partition_limiter.limit,
        partition_rate_limit_period_sec=None if partition_limiter is None else partition_limiter.period_s,
        priority_enabled=True,
        partition_queue=settings.partition_queue,
        polling_interval_sec=settings.polling_interval_sec,
        is_paused=settings.is_paused,
        application_name=application_name,
        created_at=now_ms,
        updated_at=now_ms,
    )


class QueuesStore:
    """The ``queues`` table."""

    @staticmethod
    def get(connection: Connection, name: str) -> QueueRow | None:
        """The row of a queue, or None."""
        row = connection.one(GET, name=name)
        return None if row is None else QueueRow(*row)

    @staticmethod
    def list(connection: Connection) -> list[QueueRow]:
        """All queues, by name."""
        return [QueueRow(*row) for row in connection.all(LIST)]

    @staticmethod
    def configs(connection: Connection) -> dict[str, QueueConfig]:
        """What the dispatcher obeys, by name of the queue; a row that cannot be read does not hide the others."""
        configs = {}
        for row in QueuesStore.list(connection):
            try:
                configs[row.name] = config_of(row)
            except Exception as error:
                logger.error("Queue %s is left alone, because its settings cannot be obeyed: %s", row.name, error)
        return configs

    @staticmethod
    def register(
        connection: Connection,
        settings: QueueSettings,
        on_conflict: OnConflict,
        application_name: str | None,
        application_version: str,
        now_ms: int,
    ) -> QueueRow:
        """Create a queue, or change the one of this name if ``on_conflict`` says so; returns what is there then.

        A queue of another application is never changed.
        """
        row = _row_of(settings, application_name, now_ms)
        is_new = connection.run(INSERT, queue_id=new_instance_id(), **row._asdict()) > 0
        existing = QueueRow(*connection.all(LOCK, name=settings.name)[0])
        if is_new or on_conflict == "never_update" or existing.application_name not in (None, application_name):
            return existing
        if on_conflict == "update_if_latest_version":
            latest = ApplicationVersionsStore.list(connection)
            if latest and latest[0].version_name != application_version:
                return existing
        _update(connection, row._replace(is_paused=existing.is_paused))
        return row

    @staticmethod
    def change(
        connection: Connection, name: str, changes: Mapping[str, Any], now_ms: int
    ) -> LookupError | ValueError | None:
        """Change some of a queue's settings; returns what is wrong, if anything: no such queue, or what it cannot obey.

        An error is returned and not raised, because others' work is in the same transaction.
        """
        locked = connection.all(LOCK, name=name)
        if not locked:
            return LookupError(name)
        row = QueueRow(*locked[0])
        try:
            settings = settings_of(row).changed(**changes)
        except ValueError as error:
            return error
        _update(connection, _row_of(settings, row.application_name, now_ms))
        return None

    @staticmethod
    def delete(connection: Connection, name: str) -> None:
        """Delete a queue, if there is one. What waits in it stays there."""
        connection.run(DELETE, name=name)

    @staticmethod
    def waiting(connection: Connection, name: str) -> int:
        """How much waits in a queue, whether there is one or not."""
        row = connection.one(WAITING, name=name)
        return 0 if row is None else int(row[0])


def _update(connection: Connection, row: QueueRow) -> None:
    values = row._asdict()
    del values["application_name"], values["created_at"]
    connection.run(UPDATE, **values)
