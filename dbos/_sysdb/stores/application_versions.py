"""Application versions that were ever launched; an application's latest is the one with the greatest timestamp.

Several applications may share a database, each with versions of its own. A version that is nobody's in particular, from
before there were applications here, counts with all of them, until an application of that version is launched.
"""

from __future__ import annotations

from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import VersionRow, columns

__all__ = ["LATEST", "OF_APPLICATION", "ApplicationVersionsStore", "latest_of"]

# What an application may look after: what is its own, and what is nobody's in particular.
OF_APPLICATION = "(application_name IS NULL OR application_name = :application_name)"

CLAIM = """
-- A version of this name that is nobody's in particular is the application's that is launched in it.
UPDATE dbos.application_versions SET application_name = :application_name
WHERE version_name = :version_name AND application_name IS NULL AND NOT EXISTS (
  SELECT 1 FROM dbos.application_versions v
  WHERE v.version_name = :version_name AND v.application_name = :application_name)
"""

REGISTER = """
-- Note a version at its first launch; it becomes the latest.
INSERT INTO dbos.application_versions (version_id, version_name, version_timestamp, created_at, application_name)
VALUES (:version_id, :version_name, :now_ms, :now_ms, :application_name)
ON CONFLICT DO NOTHING
"""


def latest_of(application: str) -> str:
    """The name of an application's latest version, to be asked for within another statement."""
    return f"""(
  SELECT v.version_name FROM dbos.application_versions v
  WHERE v.application_name IS NULL OR v.application_name = {application}
  ORDER BY v.version_timestamp DESC, v.created_at DESC LIMIT 1)"""


# Work of no version is for this one, of the application that looks for work.
LATEST = latest_of(":application_name")

_IS_ASKED_FOR = f"(CAST(:application_name AS TEXT) IS NULL OR {OF_APPLICATION})"

LIST = f"""
-- The versions that count for an application, or all.
SELECT {columns(VersionRow)} FROM dbos.application_versions
WHERE {_IS_ASKED_FOR}
ORDER BY version_timestamp DESC, created_at DESC
"""

SET_LATEST = f"""
-- Later than every other, also when the clock stands still or went back.
UPDATE dbos.application_versions
SET version_timestamp = (
  SELECT CASE WHEN max(version_timestamp) >= :now_ms THEN max(version_timestamp) + 1 ELSE :now_ms END
  FROM dbos.application_versions)
WHERE version_name = :version_name AND {_IS_ASKED_FOR}
"""


class ApplicationVersionsStore:
    """The ``application_versions`` table."""

    @staticmethod
    def register(
        connection: Connection, version_id: str, version_name: str, now_ms: int, application_name: str | None = None
    ) -> None:
        """Note that a version was launched; a version that is known keeps its place."""
        if application_name is not None:
            connection.run(CLAIM, version_name=version_name, application_name=application_name)
        connection.run(
            REGISTER,
            version_id=version_id,
            version_name=version_name,
            now_ms=now_ms,
            application_name=application_name,
        )

    @staticmethod
    def list(connection: Connection, application_name: str | None = None) -> list[VersionRow]:
        """The versions that count for an application, the latest first; None for all there are."""
        return [VersionRow(*row) for row in connection.all(LIST, application_name=application_name)]

    @staticmethod
    def set_latest(connection: Connection, version_name: str, now_ms: int, application_name: str | None = None) -> bool:
        """Make a version the latest of an application, or of each that has one of this name.

        An unknown name changes nothing; returns whether it is known.
        """
        given = {"version_name": version_name, "now_ms": now_ms, "application_name": application_name}
        return connection.run(SET_LATEST, **given) > 0
