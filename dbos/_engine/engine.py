"""The engine's parts in one place: the open database, the registry, the runs, the threads and loops they run in.

Flows get an :class:`Engine` and yield effects; services get it and do their rounds. It decides nothing itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from dbos._clock import Clock
from dbos._dbos_config import Settings
from dbos._engine.loops import DESTROYED, Loops
from dbos._engine.run import Run, Runs
from dbos._error import DBOSDatabaseUnavailableError, DBOSException
from dbos._ids import new_instance_id
from dbos._registry import Registry
from dbos._serialization import Serialization
from dbos._sys_db import SystemDatabase
from dbos._sysdb.wakeups import WORKFLOW, Signal
from dbos._threads import Workers

if TYPE_CHECKING:
    from dbos._app_db import ApplicationDatabase

__all__ = ["Engine", "workflow_key"]

logger = logging.getLogger("dbos.engine")


def workflow_key(workflow_id: str) -> str:
    """What a waiter for a workflow's outcome waits under."""
    return f"{WORKFLOW}:{workflow_id}"


class Engine:
    """Everything that executing workflows takes; opened by ``DBOS.launch`` and closed by ``DBOS.destroy``."""

    def __init__(self, settings: Settings, registry: Registry[Engine], clock: Clock) -> None:
        self.settings = settings
        self.registry = registry
        self.clock = clock
        self.serialization: Serialization = settings.serialization
        self.executor_id = settings.executor_id
        self.application_version = settings.application_version
        self.application_id = settings.application_id
        self.instance_id = new_instance_id()
        self.runs = Runs()
        self.workers = Workers(settings.max_executor_threads, "dbos-executor")
        self.loops = Loops()
        self.lease_guard = float("inf")  # monotonic time from which no new step body may start
        self.lease_renewed = Signal()
        self.unknown_targets: set[str] = set()
        self.watch_deadline: Callable[[Run], None] = lambda run: None
        self.dispatch: Callable[[], None] = lambda: None
        self.check_lease: Callable[[], None] = lambda: None
        self._db: SystemDatabase | None = None
        self._is_closed = False
        self._failure: DBOSDatabaseUnavailableError | None = None
        self._is_fork = False
        self._abandoned: tuple[object, ...] = ()
        self._application_database: ApplicationDatabase | None = None
        self._application_lock = threading.Lock()

    @property
    def db(self) -> SystemDatabase:
        """The open system database.

        Raises:
            DBOSException: it was not opened yet, or by the process that this one was forked from.
            DBOSDatabaseUnavailableError: it was closed.
        """
        if self._db is None:
            self.check_open()
            if self._is_fork:
                raise DBOSException(
                    "DBOS was launched in the process that this one was forked from, and its connections cannot be "
                    "shared. Call DBOS.destroy(), then construct and launch DBOS in this process."
                )
            raise DBOSException("System database accessed before DBOS was launched: call DBOS.launch() first")
        return self._db

    @property
    def application_database(self) -> ApplicationDatabase:
        """The database of the user's transactions, opened at its first use.

        Raises:
            AssertionError: none is configured.
        """
        with self._application_lock:
            if self._application_database is None:
                # Here, because it brings SQLAlchemy's object-relational half, which only transactions need.
                from dbos._app_db import ApplicationDatabase

                self._application_database = ApplicationDatabase(self.settings, self.db)
            return self._application_database

    @property
    def is_open(self) -> bool:
        """Whether the system database is open."""
        return self._db is not None

    def open(self, db: SystemDatabase) -> None:
        """Begin to work on a database."""
        self._db = db
        self._is_closed = False

    def abandon(self) -> None:
        """Never touch the connections again, not even to close them: this process is a fork, they are its parent's."""
        self._is_fork = True
        self._abandoned = (self._db, self._application_database)  # their finalizers would close them
        self._db, self._application_database = None, None
        self._application_lock = threading.Lock()  # another thread of the parent may hold the old one

    def check_open(self) -> None:
        """Refuse to go on after :meth:`close` or :meth:`fail`.

        Raises:
            DBOSDatabaseUnavailableError: one of them was called.
        """
        if self._failure is not None:
            raise type(self._failure)(self._failure.message)
        if self._is_closed:
            raise DBOSDatabaseUnavailableError(DESTROYED)

    def fail(self, error: DBOSDatabaseUnavailableError) -> None:
        """The database will not come back: tell whoever waits for it."""
        logger.critical("%s", error)
        self._failure = error
        self.db.wakeups.fire(self.db.wakeups.keys())

    def close(self) -> None:
        """Disconnect; whoever still waits for a workflow's outcome is told so."""
        if self._application_database is not None:
            self._application_database.close()
            self._application_database = None
        if self._db is not None:
            self._is_closed = True
            db, self._db = self._db, None
            db.close()
            db.wakeups.fire(db.wakeups.keys())
            # A workflow that was started meanwhile may have begun another loop; from here on nothing can be started.
            self.loops.close(for_good=True)

    def enter(self, run: Run, owner_instance: str | None) -> None:
        """Enter a run of a workflow that became ``owner_instance``'s, which this executor may not be any more."""
        self.runs.add(run)
        if owner_instance != self.instance_id:  # looked at last: who registers anew stops what is entered
            run.lose()

    def finished(self, workflow_id: str) -> None:
        """A workflow has reached an outcome, durably: wake whoever waits for it, here and elsewhere."""
        self.db.wakeups.fire([workflow_key(workflow_id)])
        self.db.publish(WORKFLOW)

    def give_back(self, workflow_id: str, run_token: str) -> None:
        """Have the dispatcher begin a workflow that was made durable but will not be executed by whoever did so."""

        def give_back() -> None:
            try:
                self.db.change(self.db.workflows.give_back, workflow_id, run_token, self.db.now_ms())
                self.dispatch()
            except Exception as error:  # in a thread of ours; what is not given back here is reconciled later
                logger.info("workflow %s was not begun: %s", workflow_id, error)

        self.workers.submit(give_back)
