"""The engine's parts in one place: the open database, the registry, the runs, the threads and loops they run in.

Flows get an :class:`Engine` and yield effects; services get it and do their rounds. It decides nothing itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from dbos._clock import Clock
from dbos._dbos_config import Settings
from dbos._engine.loops import DESTROYED, Loops
from dbos._engine.run import Run, Runs
from dbos._error import DBOSDatabaseUnavailableError, DBOSException
from dbos._ids import new_instance_id
from dbos._queue_config import QueueConfig
from dbos._registry import Registry
from dbos._serialization import Serialization
from dbos._sys_db import SystemDatabase
from dbos._sysdb.operations import Call
from dbos._sysdb.retry import Backoff
from dbos._sysdb.wakeups import DATA, QUEUE, SCHEDULE, WORKFLOW, Key, Signal, workflow_key
from dbos._telemetry import ALERTS
from dbos._threads import Workers

if TYPE_CHECKING:
    from dbos._app_db import ApplicationDatabase

__all__ = ["Engine", "queue_topic"]

D = TypeVar("D")

logger = logging.getLogger("dbos.engine")
alert_logger = logging.getLogger("dbos.alerts")

GIVE_BACK_ATTEMPTS = 8  # at a start that is on its way: for some seconds; what comes later still is reconciled


def queue_topic(queue_name: str, *, is_delayed: bool) -> str:
    """What other processes are told of that something was enqueued."""
    return QUEUE if is_delayed else f"{QUEUE}:{queue_name}"


class Engine:
    """Everything that executing workflows takes; opened by ``DBOS.launch`` and closed by ``DBOS.destroy``."""

    def __init__(
        self, settings: Settings, registry: Registry[Engine], clock: Clock, *, is_client: bool = False
    ) -> None:
        self.settings = settings
        self.is_client = is_client  # and runs nothing
        self.registry = registry
        self.clock = clock
        self.serialization: Serialization = settings.serialization
        self.executor_id = settings.executor_id
        self.application_version = settings.application_version
        self.application_name = settings.name or None
        self.application_id = settings.application_id
        self.instance_id = new_instance_id()
        self.runs = Runs()
        self.workers = Workers(settings.max_executor_threads, "dbos-executor")
        self.loops = Loops()
        self.lease_guard = float("inf")  # monotonic time from which no new step body may start
        self.lease_renewed = Signal()
        self.unknown_targets: set[str] = set()
        self.watch_deadline: Callable[[Run], None] = lambda run: None
        self.is_draining = False  # whether it takes no more from queues, having been asked to
        self.queue_changes = 0  # made by this process
        self.registered_queues: Mapping[str, QueueConfig] | None = None  # as of a second ago; None until it is known
        self.listened_queues: frozenset[str] | None = None  # None for all
        self.served_queues: frozenset[str] = frozenset()  # that this process takes work from
        self.dispatch: Callable[[str | None], None] = lambda queue_name: None  # None for all
        self.check_lease: Callable[[], None] = lambda: None
        self.check_schedules: Callable[[], None] = lambda: None
        self.tell_handler: Callable[[str, str, dict[str, str]], None] = lambda name, message, metadata: None
        self._db: SystemDatabase | None = None
        self._is_closed = False
        self._failure: DBOSDatabaseUnavailableError | None = None
        self._is_fork = False
        self._abandoned: tuple[object, ...] = ()
        self._databases: dict[object, Any] = {}  # of the user's transactions
        self._databases_lock = threading.Lock()

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
        # Here, because it brings SQLAlchemy's object-relational half, which only transactions need.
        from dbos._app_db import ApplicationDatabase

        return self.database(ApplicationDatabase, lambda: ApplicationDatabase(self.settings, self.db))

    def database(self, key: object, connect: Callable[[], D]) -> D:
        """A database of the user's transactions, opened at its first use and closed with this engine."""
        with self._databases_lock:
            if key not in self._databases:
                self._databases[key] = connect()
            database: D = self._databases[key]
            return database

    @property
    def is_open(self) -> bool:
        """Whether the system database is open."""
        return self._db is not None

    def open(self, db: SystemDatabase) -> None:
        """Begin to work on a database."""
        self._db = db
        self._is_closed = False
        self.clock.attend(self)

    def abandon(self) -> None:
        """Never touch the connections again, not even to close them: this process is a fork, they are its parent's."""
        self._is_fork = True
        self._abandoned = (self._db, self._databases)  # their finalizers would close them
        self._db, self._databases = None, {}
        self._databases_lock = threading.Lock()  # another thread of the parent may hold the old one

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
        self.alert("database_lost", str(error), {"error": type(error).__name__})
        self._failure = error
        self.db.wakeups.fire(self.db.wakeups.keys())

    def close(self) -> None:
        """Disconnect; whoever still waits for a workflow's outcome is told so."""
        while self._databases:
            self._databases.popitem()[1].close()
        if self._db is not None:
            self._is_closed = True
            db, self._db = self._db, None
            db.close()
            db.wakeups.fire(db.wakeups.keys())
            # A workflow that was started meanwhile may have begun another loop; from here on nothing can be started.
            self.loops.close(for_good=True)

    def enter(self, run: Run, owner_instance: str | None) -> None:
        """Enter a run of a workflow that became ``owner_instance``'s, which this executor may not be any more."""
        # What others would decode from the row need not be the very object, if the format is not exact.
        self.runs.add(run, is_shown=self.serialization.is_exact(run.format))
        if owner_instance != self.instance_id:  # looked at last: who registers anew stops what is entered
            run.lose()

    def alert(self, name: str, message: str, metadata: Mapping[str, object]) -> None:
        """Log what somebody should look at, and tell the application's alert handler; neither waits nor raises.

        ``name`` is one of :data:`dbos._telemetry.ALERTS`.
        """
        alert_logger.log(ALERTS[name], message)
        about = {
            **metadata,
            "application_name": self.settings.name,
            "application_version": self.application_version,
            "executor_id": self.executor_id,
        }
        self.tell_handler(name, message, {key: str(value) for key, value in about.items() if value is not None})

    def finished(self, workflow_id: str) -> None:
        """A workflow has reached an outcome, durably: wake whoever waits for it, here and elsewhere."""
        self.db.wakeups.fire([workflow_key(workflow_id)])
        self.db.publish(WORKFLOW)

    def written(self, *keys: Key) -> None:
        """Messages, events or values of streams were written, durably: wake whoever waits, here and elsewhere."""
        self.db.wakeups.fire(keys)
        self.db.publish(DATA)

    def enqueued(self, queue_name: str, *, is_delayed: bool = False) -> None:
        """Something can be claimed from a queue, durably, or will be when its delay is over: tell all dispatchers."""
        self.dispatch(None if is_delayed else queue_name)
        self.db.publish(queue_topic(queue_name, is_delayed=is_delayed))

    def queues_changed(self) -> None:
        """The settings of a queue in the database changed, durably: tell all dispatchers."""
        self.queue_changes += 1
        self.registered_queues = None
        self.dispatch(None)
        self.db.publish(QUEUE)

    def schedules_changed(self) -> None:
        """Schedules were created, changed or deleted, durably: tell all schedulers."""
        self.check_schedules()
        self.db.publish(SCHEDULE)

    def given_back(self) -> None:
        """What was claimed is in its queue again, durably: tell all dispatchers."""
        self.dispatch(None)
        self.db.publish(QUEUE)

    def give_back(self, workflow_id: str, run_token: str) -> None:
        """Have a dispatcher begin a workflow that is made durable but will not be executed by whoever asked for it."""

        def give_back() -> None:
            try:
                self._give_back(workflow_id, run_token)
            except Exception as error:  # in a thread of ours; what is not given back here is reconciled later
                logger.info("workflow %s was not begun: %s", workflow_id, error)

        try:
            self.workers.submit(give_back)
        except RuntimeError as error:  # no thread can be had for it: likewise
            logger.info("workflow %s was not begun: %s", workflow_id, error)

    def _give_back(self, workflow_id: str, run_token: str) -> None:
        # Where most starts are committed, so behind it. A start that is large, or that waits for somebody's lock, is
        # committed elsewhere and may come later.
        db, backoff = self.db, Backoff(initial_s=0.02, maximum_s=1.0)
        for _ in range(GIVE_BACK_ATTEMPTS):
            if db.commit(Call(db.workflows.give_back, (workflow_id, run_token, db.now_ms()), is_apart=True))[0]:
                self.given_back()
                return
            row = db.read(db.workflows.get, workflow_id)
            if row is not None and (row.run_token != run_token or row.status != "PENDING"):
                return
            with self.workers.stepping_aside():
                Signal().wait(backoff.next_delay_s())
            db = self.db
