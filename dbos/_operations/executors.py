"""Executors: which processes there are, what they run, and what nobody runs."""

from __future__ import annotations

from collections.abc import Sequence

from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Read
from dbos._error import DBOSException
from dbos._operations.auditing import action_of, audited
from dbos._operations.recording import refuse_in_transaction
from dbos._services.recovery import EXECUTOR
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import Call, call
from dbos._sysdb.rows import ExecutorRow
from dbos._sysdb.stores.executors import queues_of_text
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE
from dbos._sysdb.wakeups import QUEUE
from dbos._types import ExecutorInfo

__all__ = [
    "adopt_application_version",
    "drain_executor",
    "list_executors",
    "list_stranded_queues",
    "list_stranded_versions",
    "undrain_executor",
]


def list_executors(engine: Engine) -> Flow[list[ExecutorInfo]]:
    """The executors of this system database: processes that have launched DBOS on it, the oldest first.

    One that died is listed until another one has noticed.
    """
    rows: list[ExecutorRow] = yield Read(engine.db.executors.list, ())
    running: dict[str, int] = yield Read(engine.db.executors.running, ())
    return [
        {
            "instance_id": row.instance_id,
            "executor_id": row.executor_id,
            "application_version": row.application_version,
            "application_name": row.application_name,
            "hostname": row.hostname,
            "pid": row.pid,
            "started_at": row.started_at,
            "heartbeat_at": row.heartbeat_at,
            "lease_sec": row.lease_ms / 1000,
            "is_current": row.instance_id == engine.instance_id,
            "is_draining": row.draining_since is not None,
            "queues": _shown(row.queues),
            "running": running.get(row.instance_id, 0),
        }
        for row in rows
    ]


def _shown(queues: str | None) -> list[str] | None:
    return None if queues is None else [name for name in queues_of_text(queues) if name != INTERNAL_QUEUE]


def drain_executor(engine: Engine, instance_id: str) -> Flow[None]:
    """Have an executor take no more workflows from queues, before it is stopped; it goes on with those that it runs.

    Workflows that its own application starts or calls run in it all the same. What goes through a queue does not begin
    here, be it enqueued, forked or resumed: a workflow that waits for one needs another executor to run it, or waits
    until this one is no longer drained.

    Args:
        instance_id: The ``instance_id`` of one of :meth:`list_executors`, this process or another.

    Raises:
        DBOSException: there is no such executor.

    Example:
        ```python
        DBOS.drain_executor(DBOS.list_executors()[0]["instance_id"])
        ```
    """
    refuse_in_transaction("DBOS.drainExecutor")
    drain = audited(engine, action_of(engine, "drain_executor"), engine.db.executors.drain, subject=instance_id)
    results = yield Commit((call(drain, instance_id, engine.db.now_ms()),))
    _check_found(results[0], instance_id)
    if instance_id == engine.instance_id:
        engine.is_draining = True
    engine.db.publish(EXECUTOR)


def undrain_executor(engine: Engine, instance_id: str) -> Flow[None]:
    """Have an executor take workflows from queues again.

    Args:
        instance_id: The ``instance_id`` of one of :meth:`list_executors`.

    Raises:
        DBOSException: there is no such executor.
    """
    refuse_in_transaction("DBOS.undrainExecutor")
    undrain = audited(engine, action_of(engine, "undrain_executor"), engine.db.executors.undrain, subject=instance_id)
    results = yield Commit((call(undrain, instance_id),))
    _check_found(results[0], instance_id)
    if instance_id == engine.instance_id:
        engine.is_draining = False
        engine.dispatch(None)
    engine.db.publish(EXECUTOR)


def _check_found(is_found: bool, instance_id: str) -> None:
    if not is_found:
        raise DBOSException(
            f"No executor instance has the id {instance_id!r}. Take an instance_id of DBOS.list_executors(); an "
            "executor_id will not do, because several processes may have the same."
        )


def list_stranded_versions(engine: Engine) -> Flow[dict[str, int]]:
    """How many unfinished workflows each application version has that no executor runs.

    They wait until an executor of that version is launched, or :meth:`adopt_application_version` is called. What is of
    no version counts with the latest, which is to run it; :meth:`set_latest_application_version` helps it, too.
    """
    found: dict[str, int] = yield Read(engine.db.workflows.stranded_versions, (engine.application_name,))
    return found


def list_stranded_queues(engine: Engine) -> Flow[dict[str, int]]:
    """How many workflows wait, enqueued or delayed, in each queue from which no executor takes work.

    Such a queue was deleted, is declared or listened to by no process that runs, or never existed under that name. What
    waits in it begins when an executor serves it; :meth:`resume_workflow` with ``queue_name`` moves a workflow.

    Executors that are drained do not count. Nothing is reported while it is not known of one what it serves.
    """
    found: dict[str, int] = yield Read(engine.db.claims.stranded, ())
    return found


def adopt_application_version(engine: Engine, version: str) -> Flow[int]:
    """Have unfinished workflows of another application version finished by this process' version.

    Their code must be compatible: what they have recorded is replayed with the functions of this version. With the
    latest version, workflows of no version are adopted, too.

    Args:
        version: One of :meth:`list_stranded_versions`.

    Returns:
        How many workflows it was.

    Raises:
        DBOSException: an executor runs that version, so nothing of it is stranded.
    """
    refuse_in_transaction("DBOS.adoptApplicationVersion")
    own = engine.application_version
    if version == own:
        raise DBOSException(f"{version!r} is the application version of this process: its work is recovered anyway.")
    now_ms, action = engine.db.now_ms(), action_of(engine, "adopt_version", by_version=own)

    def adopt(connection: Connection) -> Sequence[str | None]:
        queues = engine.db.executors.adopt(connection, version, own, now_ms, engine.application_name)
        if engine.db.executors.is_run(connection, version, engine.application_name):
            raise DBOSException(
                f"An executor runs application version {version!r}, and its work with it: nothing is adopted. Stop "
                "that executor first (see DBOS.list_executors()); one that died is listed until its lease has run out."
            )
        engine.db.workflows.reclaim(connection, own, now_ms, engine.application_name)
        if queues:
            engine.db.actions.note(connection, action, subject=version, workflows=len(queues))
        return queues

    results = yield Commit((Call(adopt, (), is_apart=True),))
    adopted: Sequence[str | None] = results[0]
    if adopted:
        engine.dispatch(None)
        engine.db.publish(QUEUE)
    return len(adopted)
