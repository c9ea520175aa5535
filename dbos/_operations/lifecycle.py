"""Launching and shutting down: the order in which the parts come up and go down."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future

import dbos._telemetry as telemetry
from dbos._clock import Clock
from dbos._database_urls import mask_url
from dbos._dbos_config import Settings
from dbos._engine.engine import Engine
from dbos._engine.run import Run
from dbos._error import DBOSDatabaseUnavailableError, DBOSException, DBOSInitializationError
from dbos._ids import new_instance_id
from dbos._registry import Registry
from dbos._scheduler import Scheduler
from dbos._services.alerts import Alerts
from dbos._services.deadlines import Deadlines
from dbos._services.dispatcher import Dispatcher
from dbos._services.leases import Leases
from dbos._services.notifier import Notifier
from dbos._services.recovery import EXECUTOR, Recovery
from dbos._services.retention import Retention
from dbos._services.service import Service
from dbos._sys_db import SystemDatabase
from dbos._sysdb.dialects import prepare_application_database
from dbos._sysdb.operations import call
from dbos._sysdb.wakeups import DATA, QUEUE, SCHEDULE, WORKFLOW, Signal
from dbos._version import VERSION

__all__ = ["Runtime"]

logger = logging.getLogger("dbos")

SHUTDOWN_GRACE_S = 2.0  # for steps that are running to be recorded; what they belong to is interrupted at once
ALERT_PATIENCE_S = 2.0  # for the alert handler, to be told of what has happened last
DATABASE_PATIENCE_S = 5.0  # an application that ends does not wait longer for a database that is away
LEAVING_PATIENCE_S = 10.0  # and, by when that is closed, for what still waits for its answer


class Runtime:
    """A launched engine with its services.

    Up: database, lease, services, recovery. Down: no new work, the running work stopped or awaited, lease, database.
    """

    def __init__(self, settings: Settings, registry: Registry[Engine], clock: Clock) -> None:
        self.engine = Engine(settings, registry, clock)
        self.alerts = Alerts(self.engine)
        self._dispatcher = Dispatcher(self.engine)
        self._notifier = Notifier(self.engine)
        self._deadlines = Deadlines(self.engine)
        self._retention = Retention(self.engine) if self.engine.settings.retention is not None else None
        self._scheduler = Scheduler(self.engine)
        self._leases = Leases(self.engine)
        self.recovery = Recovery(self.engine, self._leases)
        self.is_down = Signal()
        _runtimes.add(self)

    def launch(self) -> None:
        """Bring everything up; if that fails, nothing stays up."""
        engine, settings = self.engine, self.engine.settings
        telemetry.configure_logging(settings.log_level, settings.console_log_level)
        logger.info("Initializing DBOS (v%s)", VERSION)
        engine.application_version = settings.application_version or engine.registry.application_version(
            VERSION, engine.settings.name
        )
        logger.info("Executor ID: %s", engine.executor_id)
        logger.info("Application version: %s", engine.application_version)
        logger.info("Initializing DBOS system database with URL: %s", mask_url(settings.system_database_url))
        engine.loops.adopt_running()
        engine.open(SystemDatabase(settings, engine.clock, engine.instance_id, may_migrate=settings.run_migrations))
        try:
            self._prepare_application_database()
            for datasource in list(engine.registry.datasources.values()):
                datasource.prepare()
            self._register_version()
            self._dispatcher.learn_queues()
            self._leases.register()
            self._connect_services()
            if not self.recovery.take_over_once():
                logger.info("No workflows to recover from application version %s", engine.application_version)
            self.recovery.report_stranded()
            self._report_queues()
            for service in (*self._services(), self.alerts):
                service.start()
        except BaseException:
            self._disconnect()
            raise
        engine.registry.is_launched = True
        logger.info("DBOS launched!")

    def _prepare_application_database(self) -> None:
        """Now, and not at the first transaction: it may have to wait for the database, and settings may be wrong."""
        settings = self.engine.settings
        url = settings.application_database_url
        if url is None or settings.has_one_database:
            return
        try:
            prepare_application_database(settings, url)
        except DBOSException:
            raise
        except Exception as error:  # whatever driver and file system say about a database that cannot be opened
            raise DBOSInitializationError(
                f"The application database {mask_url(url)} cannot be used ({type(error).__name__}: {error}). "
                "Check application_database_url, and that the database is reachable and may be written."
            ) from error

    def _connect_services(self) -> None:
        engine = self.engine
        engine.tell_handler = self.alerts.tell
        engine.dispatch = self._dispatcher.dispatch_soon
        engine.watch_deadline = self._deadlines.watch
        engine.check_lease = self._leases.wake
        engine.check_schedules = self._scheduler.check
        engine.workers.on_free = self._dispatcher.wake
        engine.runs.on_removed = self._on_removed
        engine.registry.on_registration = self._on_registration
        engine.db.listen(self._on_wakeup)

    def _services(self) -> Sequence[Service]:
        retention = () if self._retention is None else (self._retention,)
        return (
            *retention,
            self._scheduler,
            self._dispatcher,
            self._notifier,
            self._deadlines,
            self.recovery,
            self._leases,
        )

    def _on_removed(self, run: Run) -> None:
        self._dispatcher.note_ended(run)
        self._scheduler.note_ended(run)

    def _on_wakeup(self, topic: str | None) -> None:
        if topic is None or topic.startswith(QUEUE):
            self._dispatcher.tell(topic)
        if topic is None or topic == EXECUTOR:
            self.recovery.wake()
        if topic is None or topic in (SCHEDULE, WORKFLOW):
            self._scheduler.tell(topic)
        if topic in (None, WORKFLOW, DATA):
            self._notifier.tell(topic)

    def _on_registration(self) -> None:
        if self.engine.unknown_targets:
            self._dispatcher.retry_unknown_targets()
        self._dispatcher.refresh()
        self._scheduler.check()

    def _register_version(self) -> None:
        engine = self.engine
        version = engine.application_version
        if not engine.registry.workflows and not engine.settings.application_version:
            return  # a process that only enqueues by name has no code that others' work could be meant for
        name, now_ms = engine.application_name, engine.db.now_ms()
        engine.db.change(engine.db.versions.register, new_instance_id(), version, now_ms, name)
        latest = engine.db.read(engine.db.versions.list, name)[0]
        if latest.version_name != version:
            logger.warning(
                "The application version %s is not the latest, which is %s. "
                "Use DBOS.set_latest_application_version to change that.",
                version,
                latest.version_name,
            )

    def _report_queues(self) -> None:
        engine = self.engine
        known = {**(engine.registered_queues or {}), **engine.registry.queues}
        listened = [
            config for name, config in known.items() if engine.listened_queues is None or name in engine.listened_queues
        ]
        logger.info("Listening to %s queues:", len(listened))
        for name in engine.listened_queues or ():
            if name not in known:
                logger.info("Queue %s is not declared or registered yet; it will be listened to when it is.", name)
        for config in listened:
            details = config.details()
            logger.info("Queue: %s%s", config.name, f" ({', '.join(details)})" if details else "")

    def shut_down(self, workflow_completion_timeout_s: float) -> None:
        """Take everything down, giving running workflows so many seconds to end."""
        try:
            self._shut_down(workflow_completion_timeout_s)
        finally:
            self.is_down.set()

    def _shut_down(self, workflow_completion_timeout_s: float) -> None:
        engine = self.engine
        engine.registry.is_launched = False
        engine.registry.on_registration = lambda: None
        if not engine.is_open:
            return  # this process is a fork: everything is its parent's
        self._dispatcher.stop(SHUTDOWN_GRACE_S)  # and for good below, should the database be away
        if workflow_completion_timeout_s > 0:
            engine.clock.wait(engine.runs.when_idle(), workflow_completion_timeout_s)
        runs = engine.runs.all()  # as they are before those that wait for a thread get one, and end
        for run in runs:
            run.lose()
        engine.runs.when_idle().wait(SHUTDOWN_GRACE_S)
        engine.workers.close()
        engine.loops.close()
        self._disconnect(runs)
        logger.info("DBOS successfully shut down")

    def _disconnect(self, lost: Sequence[Run] = ()) -> None:
        engine = self.engine
        patience = threading.Timer(DATABASE_PATIENCE_S, engine.db.close)
        patience.daemon = True
        patience.start()
        # In another thread, for a server that neither answers nor hangs up: what waits for that cannot be woken.
        leaving: Future[None] = Future()
        thread = threading.Thread(target=self._leave, args=(lost, leaving), name="dbos-leaving", daemon=True)
        thread.start()
        try:
            leaving.result(LEAVING_PATIENCE_S)
        except (DBOSDatabaseUnavailableError, TimeoutError):
            logger.warning(
                "The database cannot be reached: others take over from this executor when its lease runs out."
            )
        finally:
            if leaving.done():
                thread.join()
            patience.cancel()
            patience.join()
            self.alerts.stop(ALERT_PATIENCE_S)
            engine.close()

    def _leave(self, lost: Sequence[Run], left: Future[None]) -> None:
        try:
            for service in self._services():
                service.stop()
            self._give_back(lost)
            self._leases.leave()
            self.engine.db.publish(EXECUTOR)
        except BaseException as error:
            left.set_exception(error)
        else:
            left.set_result(None)

    def _give_back(self, lost: Sequence[Run]) -> None:
        """What was claimed and has not begun was no attempt."""
        db, now_ms = self.engine.db, self.engine.db.now_ms()
        tokens = {(run.workflow_id, run.run_token) for run in (*lost, *self.engine.runs.all()) if not run.has_begun}
        if tokens:
            db.commit(*(call(db.workflows.give_back, *each, now_ms) for each in sorted(tokens)))
            db.publish(QUEUE)


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _abandon_in_child() -> None:
    for runtime in _runtimes:
        if runtime.engine.is_open:
            runtime.engine.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_in_child)
