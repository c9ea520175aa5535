"""The system database: every durable fact, behind a committer for writes and a pool of connections for reads.

The stores know the statements, the dialect knows the database, the committer knows when; this class only composes them.
Threads call :meth:`SystemDatabase.commit` and :meth:`SystemDatabase.read`; coroutines await the twins of the two.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from typing import TYPE_CHECKING, Any, TypeVar

from dbos._clock import Clock
from dbos._database_urls import mask_url
from dbos._dbos_config import Settings
from dbos._error import DBOSDatabaseUnavailableError, DBOSException, DBOSInitializationError
from dbos._sysdb.committer import Committer
from dbos._sysdb.connection import Connection
from dbos._sysdb.dialects import open_dialect
from dbos._sysdb.dialects.base import Dialect, FencedWriter, Listener
from dbos._sysdb.gathering import GatheredReads
from dbos._sysdb.operations import Call, Operation, StartWorkflow, call
from dbos._sysdb.readers import MAX_OBSERVERS, Readers, within
from dbos._sysdb.rows import Peeked
from dbos._sysdb.stores.application_versions import ApplicationVersionsStore
from dbos._sysdb.stores.archives import ArchivesStore
from dbos._sysdb.stores.debounces import DebouncesStore
from dbos._sysdb.stores.deletions import DeletionsStore
from dbos._sysdb.stores.events import EventsStore
from dbos._sysdb.stores.executors import ExecutorsStore
from dbos._sysdb.stores.forks import ForksStore
from dbos._sysdb.stores.listing import ListingStore
from dbos._sysdb.stores.management_actions import ManagementActionsStore
from dbos._sysdb.stores.messages import MessagesStore
from dbos._sysdb.stores.operation_outputs import OperationOutputsStore
from dbos._sysdb.stores.queue_claims import QueueClaimsStore
from dbos._sysdb.stores.queues import QueuesStore
from dbos._sysdb.stores.retention import RetentionStore
from dbos._sysdb.stores.runs import RunsStore
from dbos._sysdb.stores.schedules import SchedulesStore
from dbos._sysdb.stores.streams import StreamsStore
from dbos._sysdb.stores.workflow_status import WorkflowStatusStore
from dbos._sysdb.wakeups import Wakeups

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["SystemDatabase", "reset_system_database"]

R = TypeVar("R")

logger = logging.getLogger("dbos.system_database")

OTHER_CONNECTIONS = 4  # beside those that read: three that write and one that listens
SECOND_WRITER_LOCK_TIMEOUT_MS = 1_000  # its units wait for somebody's lock on purpose, but not in each other's way


class SystemDatabase:
    """An open system database.

    Opening connects and brings the schema up to date; :meth:`close` commits what is queued and disconnects.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        process_tag: str,
        *,
        may_migrate: bool = True,
        reconnects: bool = True,
        dialect: Dialect | None = None,
    ) -> None:
        """Unless it ``reconnects``, whoever is in the middle of something when a connection is lost is told so."""
        self.clock = clock
        self._reconnects = reconnects
        self._pool_size = settings.sys_db_pool_size
        self._url = settings.system_database_url
        self.dialect = dialect or open_dialect(settings, process_tag)
        if clock.jumps:
            self.dialect.has_own_clock = False  # the server's is not asked for the time: nobody's is but this one
        self.wakeups = Wakeups()
        self.workflows = WorkflowStatusStore(self.dialect)
        self.listing = ListingStore(self.dialect)
        self.claims = QueueClaimsStore(self.dialect)
        self.operations = OperationOutputsStore()
        self.runs = RunsStore(self.dialect)
        self.messages = MessagesStore(self.dialect, self.runs)
        self.events = EventsStore(self.dialect, self.runs)
        self.streams = StreamsStore(self.dialect, self.runs)
        self.queues = QueuesStore()
        self.debounces = DebouncesStore(self.dialect, self.runs)
        self.executors = ExecutorsStore()
        self.forks = ForksStore()
        self.deletions = DeletionsStore(self.dialect)
        self.actions = ManagementActionsStore(self.dialect)
        self.archives = ArchivesStore(self.dialect)
        self.retention = RetentionStore(self.dialect)
        self.schedules = SchedulesStore(self.dialect)
        self.versions = ApplicationVersionsStore()
        self._writers: list[FencedWriter] = []
        self._listener: Listener | None = None
        self.known_engines: weakref.WeakSet[sa.Engine] = weakref.WeakSet()  # of users, to this very database
        self._clock_offset_ms = 0
        with ExitStack() as opened:
            self._open(opened, may_migrate)
            self._opened = opened.pop_all()

    def _open(self, opened: ExitStack, may_migrate: bool) -> None:
        try:
            self.dialect.prepare(may_migrate=may_migrate)
        except DBOSException:
            raise
        except Exception as error:  # whatever driver and file system say about a database that cannot be opened
            raise DBOSInitializationError(
                f"The system database {self.name} cannot be used ({type(error).__name__}: {error}). "
                "Check system_database_url, and that the database is reachable and may be written."
            ) from error
        limit = max(1, self._pool_size - OTHER_CONNECTIONS)
        observers = min(MAX_OBSERVERS, limit // 3)
        self._readers = self._observers = Readers(self.dialect, reconnects=self._reconnects, limit=limit - observers)
        opened.callback(self._readers.close)
        self._peeks = GatheredReads(self._readers, self.workflows.peek)
        if observers > 0:
            self._observers = Readers(self.dialect, reconnects=self._reconnects, limit=observers)
            opened.callback(self._observers.close)
        overflow: Committer | None = None
        if self.dialect.has_second_writer():
            overflow = self._start_committer(opened, "second-writer", None, SECOND_WRITER_LOCK_TIMEOUT_MS)
        self._committer = self._start_committer(opened, "writer", overflow, None)
        self._starter = self._committer
        if overflow is not None:
            self._starter = self._start_committer(opened, "start-writer", overflow, None)
        self.synchronize_clock()

    def _start_committer(
        self, opened: ExitStack, name: str, overflow: Committer | None, lock_timeout_ms: int | None
    ) -> Committer:
        writer = self.dialect.open_writer(lock_timeout_ms=lock_timeout_ms)
        self._writers.append(writer)
        committer = Committer(name, writer, self.clock, overflow=overflow, reconnects=self._reconnects)
        opened.callback(committer.close)
        committer.start()
        return committer

    @property
    def name(self) -> str:
        """Its URL, for people: without what is secret."""
        return mask_url(self._url)

    # -- identity and time -------------------------------------------------------------------------------------------

    def fence(self, instance_id: str | None) -> None:
        """From now on, refuse fenced writes unless ``instance_id`` has its row."""
        for writer in self._writers:
            writer.instance_id = instance_id

    def synchronize_clock(self) -> None:
        """Measure how far this machine's clock is from the one that all processes share."""
        if not self.dialect.has_own_clock:
            return

        def measure(connection: Connection) -> int:
            before = self.clock.now_ms()
            row = connection.one(f"SELECT {self.dialect.now_ms}")
            assert row is not None
            return int(row[0]) - (before + self.clock.now_ms()) // 2

        self._clock_offset_ms = self.read(measure)

    def now_ms(self) -> int:
        """The time by the shared clock, in milliseconds since the epoch: for deadlines and whatever others compare."""
        return self.clock.now_ms() + self._clock_offset_ms

    # -- writing -----------------------------------------------------------------------------------------------------

    def commit(self, *operations: Operation) -> Sequence[Any]:
        """Commit operations together, blocking until they are durable; returns their results."""
        self.dialect.check_free()
        return self._committer_of(operations).commit(*operations)

    def submit(self, *operations: Operation) -> asyncio.Future[Sequence[Any]]:
        """Commit operations together; returns a future of the running loop."""
        self.dialect.check_free()
        return self._committer_of(operations).submit(*operations)

    def _committer_of(self, operations: Sequence[Operation]) -> Committer:
        """New rows are nobody's yet, and need not wait for the others' batch (docs/decisions/0010); nor need claims."""
        first = operations[0]
        is_apart = type(first) is StartWorkflow or (type(first) is Call and first.is_apart)
        return self._starter if is_apart else self._committer

    def change(self, verb: Callable[..., R], *arguments: Any) -> R:
        """Run a store's verb in a committed transaction, blocking."""
        result: R = self._committer.commit(call(verb, *arguments))[0]
        return result

    def exclusive(self, purpose: str) -> AbstractContextManager[None]:
        """Keep this process' commits waiting while a user's transaction writes to the same SQLite file."""
        self.dialect.check_free()
        return self._committer.exclusive(purpose)

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, verb: Callable[..., R], *arguments: Any) -> R:
        """Run a store's verb on a read connection, blocking."""
        return self._readers_for(verb).read(verb, *arguments)

    def check(self) -> None:
        """Connect, and ask for something; once.

        Raises:
            DBOSDatabaseUnavailableError: the database cannot be reached.
        """
        try:
            with closing(self.dialect.open_reader()) as reader:
                reader.one("SELECT 1")
        except DBOSException:
            raise
        except Exception as error:  # whatever driver and file system say about a database that is away
            raise DBOSDatabaseUnavailableError(
                f"The system database {self.name} cannot be reached ({type(error).__name__}: {error})."
            ) from error

    def read_async(self, verb: Callable[..., R], *arguments: Any) -> asyncio.Future[R]:
        """Run a store's verb on a read connection; returns a future of the running loop."""
        return self._readers_for(verb).read_async(verb, *arguments)

    def peek_async(self, workflow_id: str) -> asyncio.Future[Peeked]:
        """Whether a workflow has an outcome, or does not exist; returns a future of the running loop."""
        return self._peeks.ask(workflow_id)

    def _readers_for(self, verb: Callable[..., Any]) -> Readers:
        return self._observers if verb is within else self._readers

    # -- hearing of others -------------------------------------------------------------------------------------------

    def listen(self, on_wakeup: Callable[[str | None], None]) -> None:
        """Hear of commits in other processes: ``on_wakeup`` gets a topic, or None when anything may have happened."""
        listener = self.dialect.listener(on_wakeup, self._committer.poll)
        listener.start()
        self._opened.callback(listener.stop)
        self._listener = listener

    def publish(self, topic: str) -> None:
        """Tell other processes that something was committed under ``topic``."""
        if self._listener is not None:
            self._listener.publish(topic)

    def close(self) -> None:
        """Stop listening, commit what is queued, disconnect. Closing twice is fine."""
        self._opened.close()


def reset_system_database(settings: Settings, *, truncate: bool = False) -> None:
    """Delete the configured system database, or with ``truncate`` all that is in it; nobody may be using it."""
    dialect = open_dialect(settings, process_tag="reset")
    if not truncate:
        dialect.drop()
        return
    from dbos._schemas.system_database import SystemSchema  # slow to import, and rarely needed

    def empty(connection: Connection) -> None:
        for table in SystemSchema.metadata_obj.tables:
            connection.run(f"DELETE FROM dbos.{table}")

    writer = dialect.open_writer()
    try:
        writer.write([call(empty)])
    finally:
        writer.close()
