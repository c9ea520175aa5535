"""Launching and shutting down: the order in which the parts come up and go down."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Sequence

import dbos._telemetry as telemetry
from dbos._clock import Clock
from dbos._database_urls import mask_url
from dbos._dbos_config import Settings
from dbos._engine.engine import Engine
from dbos._error import DBOSDatabaseUnavailableError, DBOSException, DBOSInitializationError
from dbos._ids import new_instance_id
from dbos._registry import Registry
from dbos._services.deadlines import Deadlines
from dbos._services.dispatcher import Dispatcher
from dbos._services.leases import Leases
from dbos._services.notifier import Notifier
from dbos._services.recovery import EXECUTOR, Recovery
from dbos._services.service import Service
from dbos._sys_db import SystemDatabase
from dbos._sysdb.dialects import prepare_application_database
from dbos._sysdb.wakeups import QUEUE
from dbos._version import VERSION

__all__ = ["Runtime"]

logger = logging.getLogger("dbos")

SHUTDOWN_GRACE_S = 2.0  # for steps that are running to be recorded; what they belong to is interrupted at once
DATABASE_PATIENCE_S = 5.0  # an application that ends does not wait longer for a database that is away


class Runtime:
    """A launched engine with its services.

    Up: database, lease, services, recovery. Down: no new work, the running work stopped or awaited, lease, database.
    """

    def __init__(self, settings: Settings, registry: Registry[Engine], clock: Clock) -> None:
        self.engine = Engine(settings, registry, clock)
        self._dispatcher = Dispatcher(self.engine)
        self._notifier = Notifier(self.engine)
        self._deadlines = Deadlines(self.engine)
        self._leases = Leases(self.engine)
        self.recovery = Recovery(self.engine, self._leases)
        _runtimes.add(self)

    def launch(self) -> None:
        """Bring everything up; if that fails, nothing stays up."""
        engine, settings = self.engine, self.engine.settings
        telemetry.configure_logging(settings.log_level, settings.console_log_level)
        logger.info("Initializing DBOS (v%s)", VERSION)
        engine.application_version = settings.application_version or engine.registry.application_version(VERSION)
        logger.info("Executor ID: %s", engine.executor_id)
        logger.info("Application version: %s", engine.application_version)
        logger.info("Initializing DBOS system database with URL: %s", mask_url(settings.system_database_url))
        engine.loops.adopt_running()
        engine.open(SystemDatabase(settings, engine.clock, engine.instance_id, may_migrate=settings.run_migrations))
        try:
            self._prepare_application_database()
            self._register_version()
            self._leases.register()
            self._connect_services()
            if not self.recovery.take_over_once():
                logger.info("No workflows to recover from application version %s", engine.application_version)
            self._report_stranded()
            for service in self._services():
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
        engine.dispatch = self._dispatcher.wake
        engine.watch_deadline = self._deadlines.watch
        engine.check_lease = self._leases.wake
        engine.workers.on_free = self._dispatcher.wake
        engine.registry.on_registration = self._on_registration
        engine.db.listen(self._on_wakeup)

    def _services(self) -> Sequence[Service]:
        return (self._dispatcher, self._notifier, self._deadlines, self.recovery, self._leases)

    def _on_wakeup(self, topic: str | None) -> None:
        if topic is None or topic.startswith(QUEUE):
            self._dispatcher.wake()
        if topic is None or topic == EXECUTOR:
            self.recovery.wake()
        if topic is None or not topic.startswith((QUEUE, EXECUTOR)):
            self._notifier.wake()

    def _on_registration(self) -> None:
        if self.engine.unknown_targets:
            self._dispatcher.retry_unknown_targets()

    def _register_version(self) -> None:
        engine = self.engine
        version = engine.application_version
        engine.db.change(engine.db.versions.register, new_instance_id(), version, engine.db.now_ms())
        latest = engine.db.read(engine.db.versions.list)[0]
        if latest.version_name != version:
            logger.warning(
                "The application version %s is not the latest, which is %s. "
                "Use DBOS.set_latest_application_version to change that.",
                version,
                latest.version_name,
            )

    def _report_stranded(self) -> None:
        engine = self.engine
        for version, count in engine.db.read(engine.db.workflows.stranded_versions).items():
            logger.warning(
                "%s unfinished workflows belong to application version %s, which no process runs now. Launch that "
                "version to finish them, or set application_version to it in the configuration to adopt them.",
                count,
                version,
            )

    def shut_down(self, workflow_completion_timeout_s: float) -> None:
        """Take everything down, giving running workflows so many seconds to end."""
        engine = self.engine
        engine.registry.is_launched = False
        engine.registry.on_registration = lambda: None
        if not engine.is_open:
            return  # this process is a fork: everything is its parent's
        self._dispatcher.stop()
        if workflow_completion_timeout_s > 0:
            engine.runs.wait_until_idle(workflow_completion_timeout_s)
        for run in engine.runs.all():
            run.lose()
        engine.runs.wait_until_idle(SHUTDOWN_GRACE_S)
        engine.workers.close()
        engine.loops.close()
        self._disconnect()
        logger.info("DBOS successfully shut down")

    def _disconnect(self) -> None:
        engine = self.engine
        patience = threading.Timer(DATABASE_PATIENCE_S, engine.db.close)
        patience.daemon = True
        patience.start()
        try:
            for service in self._services():
                service.stop()
            self._leases.leave()
            engine.db.publish(EXECUTOR)
        except DBOSDatabaseUnavailableError:
            logger.warning(
                "The database cannot be reached: others take over from this executor when its lease runs out."
            )
        finally:
            patience.cancel()
            patience.join()
            engine.close()


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _abandon_in_child() -> None:
    for runtime in _runtimes:
        if runtime.engine.is_open:
            runtime.engine.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_in_child)
