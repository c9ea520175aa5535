"""Application versions that were ever launched; the latest is the one with the greatest timestamp."""

from __future__ import annotations

from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import VersionRow, columns

__all__ = ["ApplicationVersionsStore"]

REGISTER = """
-- Note a version at its first launch; it becomes the latest.
INSERT INTO dbos.application_versions (version_id, version_name, version_timestamp, created_at)
VALUES (:version_id, :version_name, :now_ms, :now_ms)
ON CONFLICT (version_name) DO NOTHING
"""

LIST = f"""
SELECT {columns(VersionRow)} FROM dbos.application_versions
ORDER BY version_timestamp DESC, created_at DESC
"""

SET_LATEST = """
-- Later than every other, also when the clock stands still or went back.
UPDATE dbos.application_versions
SET version_timestamp = (
  SELECT CASE WHEN max(version_timestamp) >= :now_ms THEN max(version_timestamp) + 1 ELSE :now_ms END
  FROM dbos.application_versions)
WHERE version_name = :version_name
"""


class ApplicationVersionsStore:
    """The ``application_versions`` table."""

    @staticmethod
    def register(connection: Connection, version_id: str, version_name: str, now_ms: int) -> None:
        """Note that a version was launched; a version that is known keeps its place."""
        connection.run(REGISTER, version_id=version_id, version_name=version_name, now_ms=now_ms)

    @staticmethod
    def list(connection: Connection) -> list[VersionRow]:
        """All versions, the latest first."""
        return [VersionRow(*row) for row in connection.all(LIST)]

    @staticmethod
    def set_latest(connection: Connection, version_name: str, now_ms: int) -> None:
        """Make a version the latest; an unknown name changes nothing."""
        connection.run(SET_LATEST, version_name=version_name, now_ms=now_ms)
