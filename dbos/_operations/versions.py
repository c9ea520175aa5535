"""Application versions: which code was launched, and which is the latest."""

from __future__ import annotations

from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Read
from dbos._error import DBOSException
from dbos._operations.recording import refuse_in_transaction
from dbos._sysdb.operations import call
from dbos._sysdb.rows import VersionRow
from dbos._types import VersionInfo

__all__ = ["get_latest_application_version", "list_application_versions", "set_latest_application_version"]


def list_application_versions(engine: Engine) -> Flow[list[VersionInfo]]:
    """All application versions that were ever launched on this system database, the latest first."""
    rows: list[VersionRow] = yield Read(engine.db.versions.list, ())
    return [
        {
            "version_id": row.version_id,
            "version_name": row.version_name,
            "version_timestamp": row.version_timestamp,
            "created_at": row.created_at,
        }
        for row in rows
    ]


def get_latest_application_version(engine: Engine) -> Flow[VersionInfo]:
    """The latest application version.

    Raises:
        DBOSException: no version was ever launched.
    """
    versions = yield from list_application_versions(engine)
    if not versions:
        raise DBOSException("No application version is registered: launch an application first.")
    return versions[0]


def set_latest_application_version(engine: Engine, version_name: str) -> Flow[None]:
    """Make a version the latest one; an unknown name changes nothing.

    Args:
        version_name: The version's name.
    """
    refuse_in_transaction("DBOS.setLatestApplicationVersion")
    yield Commit((call(engine.db.versions.set_latest, version_name, engine.db.now_ms()),))
