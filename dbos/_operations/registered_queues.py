"""Queues in the database: registering them, reading them and changing them while they are used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any, Concatenate, ParamSpec, TypeVar, get_args

from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Read
from dbos._error import DBOSException
from dbos._operations.auditing import audited_rows
from dbos._queue_config import QueueConfig, QueueSettings
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import call
from dbos._sysdb.rows import QueueRow
from dbos._sysdb.stores.queues import OnConflict, config_of, settings_of
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE

__all__ = ["change", "config", "delete", "find", "find_config", "names", "read", "register"]

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("dbos.queues")


def register(
    engine: Engine, settings: QueueSettings, on_conflict: OnConflict | None, application_name: str | None
) -> Flow[None]:
    """Create a queue, or change the one of this name as ``on_conflict`` says.

    Raises:
        ValueError: ``on_conflict`` is none of its values.
        DBOSException: the name is the library's, or belongs to another application's queue; or a client, which runs no
            version, is to say which one is the latest.
    """
    if on_conflict is None:
        on_conflict = "always_update" if engine.is_client else "update_if_latest_version"
    if on_conflict not in get_args(OnConflict):
        raise ValueError(f"on_conflict must be one of {', '.join(get_args(OnConflict))}, not {on_conflict!r}")
    if engine.is_client and on_conflict == "update_if_latest_version":
        raise DBOSException(
            'A client has no application version: use on_conflict="always_update" or "never_update", not '
            '"update_if_latest_version".'
        )
    name, application = settings.name, application_name or engine.application_name
    if name == INTERNAL_QUEUE:
        raise DBOSException(f"Queue {name} belongs to the library. Choose another name.")
    if name in engine.registry.queues:
        logger.warning(
            "Queue %s is declared in this process as well, with Queue(...): here, that declaration counts.", name
        )
    version, now_ms = engine.application_version, engine.db.now_ms()
    register = _audited(engine, name, engine.db.queues.register)
    results = yield Commit((call(register, settings, on_conflict, application, version, now_ms),))
    row: QueueRow = results[0]
    if row.application_name not in (None, application):
        raise DBOSException(
            f"Queue {name} belongs to application {row.application_name}, and was not registered for "
            f"{application or 'nobody in particular'}. Choose another name, or give application_name."
        )
    with suppress(ValueError):  # what is there cannot be obeyed, which the dispatcher tells
        _warn_of_what_is_kept(settings_of(row), settings)
    engine.queues_changed()


def _warn_of_what_is_kept(kept: QueueSettings, asked: QueueSettings) -> None:
    names = (field.name for field in fields(QueueSettings) if field.name != "is_paused")
    pairs = ((name, getattr(kept, name), getattr(asked, name)) for name in names)
    different = [f"{name} is {mine}, not {theirs}" for name, mine, theirs in pairs if mine != theirs]
    if different:
        logger.warning(
            "Queue %s was registered before and keeps its settings: %s. Register it with "
            'on_conflict="always_update" to overwrite them.',
            kept.name,
            "; ".join(different),
        )


def find(engine: Engine, name: str) -> Flow[QueueSettings | None]:
    """A queue's settings, or None for no such queue."""
    row: QueueRow | None = yield Read(engine.db.queues.get, (name,))
    return None if row is None else settings_of(row)


def read(engine: Engine, name: str) -> Flow[QueueSettings]:
    """The settings of a queue that must exist.

    Raises:
        DBOSException: it was deleted.
    """
    settings = yield from find(engine, name)
    if settings is None:
        raise _missing(name)
    return settings


def config(engine: Engine, name: str) -> Flow[QueueConfig]:
    """What a queue that must exist allows.

    Raises:
        DBOSException: it was deleted.
    """
    known = None if engine.registered_queues is None else engine.registered_queues.get(name)
    if known is not None:
        return known
    return (yield from read(engine, name)).obeyed()


def find_config(engine: Engine, name: str) -> Flow[QueueConfig | None]:
    """What a queue allows, or None for no such queue; as of a moment ago, if another process has just changed it."""
    if engine.registered_queues is not None:
        return engine.registered_queues.get(name)
    row: QueueRow | None = yield Read(engine.db.queues.get, (name,))
    return None if row is None else config_of(row)


def names(engine: Engine, application_name: str | None) -> Flow[list[str]]:
    """The names of all queues, or of one application's."""
    rows: list[QueueRow] = yield Read(engine.db.queues.list, ())
    return [row.name for row in rows if application_name in (None, row.application_name)]


def change(engine: Engine, name: str, changes: Mapping[str, Any]) -> Flow[None]:
    """Change some settings of a queue; all processes that dispatch from it are told.

    Raises:
        DBOSException: it was deleted.
        ValueError: together with its other settings, no queue can obey that.
    """
    action = "change_queue"
    if "is_paused" in changes:
        action = "pause_queue" if changes["is_paused"] else "resume_queue"
    change = _audited(engine, name, engine.db.queues.change, action)
    results = yield Commit((call(change, name, changes, engine.db.now_ms()),))
    error: LookupError | ValueError | None = results[0]
    if isinstance(error, LookupError):
        raise _missing(name)
    if error is not None:
        raise error
    engine.queues_changed()


def delete(engine: Engine, name: str) -> Flow[None]:
    """Delete a queue. What waits in it stays there, until a queue of that name is registered again."""
    yield Commit((call(_audited(engine, name, engine.db.queues.delete), name),))
    engine.queues_changed()
    waiting: int = yield Read(engine.db.queues.waiting, (name,))
    if waiting and name not in engine.registry.queues:
        logger.warning(
            "Queue %s is deleted, and %s workflows wait in it: until a queue of that name is registered or declared, "
            "or they are cancelled or resumed in another queue.",
            name,
            waiting,
        )


def _audited(
    engine: Engine, name: str, verb: Callable[Concatenate[Connection, P], R], changed: str = "change_queue"
) -> Callable[Concatenate[Connection, P], R]:
    def rows(connection: Connection) -> dict[str, QueueRow]:
        row = engine.db.queues.get(connection, name)
        return {} if row is None else {name: row}

    return audited_rows(engine, "queue", rows, verb, changed=changed)


def _missing(name: str) -> DBOSException:
    return DBOSException(f"Queue {name} not found in the database: it was deleted, or never registered.")
