"""Application versions: which code was launched, and which is the latest."""

from __future__ import annotations

from typing import cast

from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Read
from dbos._error import DBOSException
from dbos._operations.auditing import action_of, audited
from dbos._operations.recording import refuse_in_transaction
from dbos._sysdb.operations import call
from dbos._sysdb.rows import VersionRow
from dbos._types import VersionInfo

__all__ = ["get_latest_application_version", "list_application_versions", "set_latest_application_version"]


def list_application_versions(engine: Engine, *, application_name: str | None = None) -> Flow[list[VersionInfo]]:
    """The versions of an application that were ever launched on this system database, the latest first.

    Args:
        application_name: The application, by default this one; a client that has no name lists those of all.
    """
    rows: list[VersionRow] = yield Read(engine.db.versions.list, (application_name or engine.application_name,))
    return [cast(VersionInfo, row._asdict()) for row in rows]


def get_latest_application_version(engine: Engine, *, application_name: str | None = None) -> Flow[VersionInfo]:
    """An application's latest version, which runs what is enqueued for no version.

    Args:
        application_name: The application, by default this one.

    Raises:
        DBOSException: no version of it was ever launched.
    """
    versions = yield from list_application_versions(engine, application_name=application_name)
    if not versions:
        raise DBOSException("No application versions found: launch the application first.")
    return versions[0]


def set_latest_application_version(
    engine: Engine, version_name: str, *, application_name: str | None = None
) -> Flow[None]:
    """Make a version of an application its latest one; an unknown name changes nothing.

    Args:
        version_name: The version's name.
        application_name: The application, by default this one; of a client that has no name, each that has such a
            version.
    """
    refuse_in_transaction("DBOS.setLatestApplicationVersion")
    application = application_name or engine.application_name
    action = action_of(engine, "set_latest_version", application_name=application)
    set_latest = audited(engine, action, engine.db.versions.set_latest, subject=version_name)
    yield Commit((call(set_latest, version_name, engine.db.now_ms(), application),))
