"""Which application a row is of, and giving it to another: several may share a database."""

from __future__ import annotations

from collections.abc import Sequence

from dbos._sysdb.connection import Connection

__all__ = ["ApplicationsStore"]

IS_RUN = """
-- How many executor instances of an application have given a sign of life within their lease.
SELECT count(*) FROM dbos.executor_instances
WHERE application_name = :name AND heartbeat_at + lease_ms > :now_ms
"""

PAGE = """
-- Workflows of an application, along the primary key: whatever is renamed, each row is passed once.
SELECT workflow_uuid FROM dbos.workflow_status
WHERE workflow_uuid > :after AND {is_renamed}
ORDER BY workflow_uuid LIMIT :count
"""

RENAME_WORKFLOWS = """
UPDATE dbos.workflow_status SET application_name = :new WHERE workflow_uuid IN :ids AND {is_renamed}
"""

FORGET_DOUBLE_VERSIONS = """
-- A version that the application of the new name has as well stays as that one knows it.
DELETE FROM dbos.application_versions
WHERE {is_renamed} AND version_name IN (
  SELECT v.version_name FROM dbos.application_versions v WHERE v.application_name = :new)
"""

FORGET_UNCLAIMED_VERSIONS = """
-- Likewise, if the application of the old name has it.
DELETE FROM dbos.application_versions
WHERE application_name IS NULL AND version_name IN (
  SELECT v.version_name FROM dbos.application_versions v WHERE v.application_name = :old)
"""

IS_OF_OLD = "application_name = :old"
IS_OF_OLD_OR_NOBODYS = "(application_name = :old OR application_name IS NULL)"

TABLES = ("queues", "workflow_schedules", "application_versions", "executor_instances")  # beside the workflows


class ApplicationsStore:
    """The ``application_name`` columns."""

    @staticmethod
    def running(connection: Connection, name: str, now_ms: int) -> int:
        """How many executor instances of an application are alive, for all that is known."""
        row = connection.one(IS_RUN, name=name, now_ms=now_ms)
        assert row is not None
        return int(row[0])

    @staticmethod
    def counts(connection: Connection, old: str, *, has_nobodys: bool) -> dict[str, int]:
        """How many rows an application has in each of the small tables."""
        return {
            table: connection.all(f"SELECT count(*) FROM dbos.{table} WHERE {_condition(has_nobodys)}", old=old)[0][0]
            for table in TABLES
        }

    @staticmethod
    def rename_rest(connection: Connection, old: str, new: str, *, has_nobodys: bool) -> None:
        """Give all but the workflows another name."""
        is_renamed = _condition(has_nobodys)
        if has_nobodys:
            connection.run(FORGET_UNCLAIMED_VERSIONS, old=old)
        connection.run(FORGET_DOUBLE_VERSIONS.replace("{is_renamed}", is_renamed), old=old, new=new)
        for table in TABLES:
            connection.run(f"UPDATE dbos.{table} SET application_name = :new WHERE {is_renamed}", old=old, new=new)

    @staticmethod
    def page(connection: Connection, old: str, after: str, count: int, *, has_nobodys: bool) -> list[str]:
        """The ids of an application's workflows behind one of them, in order."""
        sql = PAGE.replace("{is_renamed}", _condition(has_nobodys))
        return [row[0] for row in connection.all(sql, old=old, after=after, count=count)]

    @staticmethod
    def rename_workflows(
        connection: Connection, workflow_ids: Sequence[str], old: str, new: str, *, has_nobodys: bool
    ) -> None:
        """Give those of the workflows that have it still another name."""
        sql = RENAME_WORKFLOWS.replace("{is_renamed}", _condition(has_nobodys))
        connection.run(sql, ids=list(workflow_ids), old=old, new=new)


def _condition(has_nobodys: bool) -> str:
    return IS_OF_OLD_OR_NOBODYS if has_nobodys else IS_OF_OLD
