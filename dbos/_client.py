"""DBOSClient: operations on an application's system database, from a program that does not run its workflows."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, overload

from dbos import _queue
from dbos._bridge import Bridge
from dbos._clock import current_clock
from dbos._database_urls import mask_url
from dbos._dbos_config import DBOSConfig, Settings, process_config
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow
from dbos._error import DBOSDatabaseUnavailableError, DBOSInitializationError
from dbos._handles import WorkflowHandle, WorkflowHandleAsync
from dbos._operations import (
    applications,
    archives,
    attributes,
    auditing,
    deletion,
    events,
    executors,
    forking,
    in_transactions,
    interventions,
    listing,
    messages,
    queues,
    retention,
    retrying,
    schedule_runs,
    schedule_views,
    schedules,
    statistics,
    streams,
    versions,
    workflows,
)
from dbos._registry import Registry
from dbos._serialization import Serializer
from dbos._services.notifier import Notifier
from dbos._sys_db import SystemDatabase
from dbos._sysdb.wakeups import DATA, WORKFLOW

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["DBOSClient"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=Callable[..., Any])

CONNECTION_NAME = "dbos_transact_client"  # in pg_stat_activity
POOL_SIZE = 8  # connections: a client waits more than it reads


# -- a table of operations ---------------------------------------------------------------------------------------------


class _Operation(Generic[T]):
    """A method of the client: one form of an operation, made for each client at its first use."""

    def __init__(self, form: Callable[[Bridge], T], operation: Callable[..., Any] | None = None) -> None:
        self._form = form
        if operation is not None:
            self.__doc__ = operation.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.__name__ = name
        self.__qualname__ = f"{owner.__name__}.{name}"

    @overload
    def __get__(self, instance: None, owner: type) -> _Operation[T]: ...
    @overload
    def __get__(self, instance: DBOSClient, owner: type) -> T: ...
    def __get__(self, instance: DBOSClient | None, owner: type) -> T | _Operation[T]:
        if instance is None:
            return self
        method = self._made(instance._bridge)
        instance.__dict__[self.__name__] = method  # which is found there the next time
        return method

    def __call__(self, client: DBOSClient, /, *args: Any, **kwargs: Any) -> Any:
        return self.__get__(client, type(client))(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """What ``help`` shows of the class."""
        signature = inspect.signature(self._made(_NO_BRIDGE))
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return signature.replace(parameters=[own, *signature.parameters.values()])

    def _made(self, bridge: Bridge) -> T:
        method = self._form(bridge)
        method.__name__, method.__qualname__ = self.__name__, self.__qualname__
        return method


def _no_engine() -> Engine:
    raise DBOSDatabaseUnavailableError("This is a method of a DBOSClient: make one, and call it there.")


_NO_BRIDGE = Bridge(_no_engine)


def _blocking(operation: Callable[Concatenate[Engine, P], Flow[R]]) -> _Operation[Callable[P, R]]:
    return _Operation(lambda bridge: bridge.blocking(operation, guarded=False), operation)


def _awaiting(operation: Callable[Concatenate[Engine, P], Flow[R]]) -> _Operation[Callable[P, Coroutine[Any, Any, R]]]:
    return _Operation(lambda bridge: bridge.awaiting(operation), operation)


def _blocking_handle(
    operation: Callable[Concatenate[Engine, P], Flow[str]],
) -> _Operation[Callable[P, WorkflowHandle[Any]]]:
    return _Operation(lambda bridge: bridge.blocking_handle(operation, guarded=False), operation)


def _awaiting_handle(
    operation: Callable[Concatenate[Engine, P], Flow[str]],
) -> _Operation[Callable[P, Coroutine[Any, Any, WorkflowHandleAsync[Any]]]]:
    return _Operation(lambda bridge: bridge.awaiting_handle(operation), operation)


def _blocking_handles(
    operation: Callable[Concatenate[Engine, P], Flow[list[str]]],
) -> _Operation[Callable[P, list[WorkflowHandle[Any]]]]:
    return _Operation(lambda bridge: bridge.blocking_handles(operation, guarded=False), operation)


def _awaiting_handles(
    operation: Callable[Concatenate[Engine, P], Flow[list[str]]],
) -> _Operation[Callable[P, Coroutine[Any, Any, list[WorkflowHandleAsync[Any]]]]]:
    return _Operation(lambda bridge: bridge.awaiting_handles(operation), operation)


# -- the client --------------------------------------------------------------------------------------------------------


class DBOSClient:
    """What a program can do with workflows that other programs run: no decorators, no code of theirs, no launch.

    It uses a system database that an application has set up, and creates none. Its methods are never steps of a
    workflow, wherever they are called, and may be called on an event loop, which those without ``_async`` block.
    Threads and event loops share a client; after a fork, the child's connects anew.

    Args:
        database_url: The older name of ``application_database_url``.
        system_database_url: The system database; by default it is derived from the application's.
        system_database_engine: An engine of SQLAlchemy whose URL says where the system database is, instead of
            ``system_database_url``. The client connects by itself; the engine stays its owner's.
        application_database_url: The database of the application's transactions.
        dbos_system_schema: The schema of the system database, on PostgreSQL.
        serializer: What the application serializes with, if not the default.
        system_database_pool_size: How many connections to PostgreSQL it may open. Default: 8; it takes no less than 5.
        system_database_polling_concurrency: Accepted for compatibility: nothing is polled.
        use_listen_notify: Whether it tells PostgreSQL's other clients of what it does, and hears of what they do;
            otherwise both take a second. Turn off behind PgBouncer.
        application_name: The application on whose behalf it enqueues, and creates schedules and queues; by default
            nobody's.
        lazy: Connect when it is first used, instead of now.
        retry_connection_errors: Whether an operation waits for a database that cannot be reached until it is back, as
            it does by default; otherwise it raises DBOSDatabaseUnavailableError.

    Raises:
        AssertionError: No database is given.
        DBOSInitializationError: The database cannot be reached, or is no system database.

    Example:
        ```python
        with DBOSClient(system_database_url="postgresql://localhost/shop") as client:
            handle = client.enqueue({"workflow_name": "report", "queue_name": "reports"}, "2026-11")
            print(handle.get_result())
        ```
    """

    def __init__(
        self,
        database_url: str | None = None,
        *,
        system_database_url: str | None = None,
        system_database_engine: sa.Engine | None = None,
        application_database_url: str | None = None,
        dbos_system_schema: str | None = "dbos",
        serializer: Serializer | None = None,
        system_database_pool_size: int | None = None,
        system_database_polling_concurrency: int | None = None,
        use_listen_notify: bool = True,
        application_name: str | None = None,
        lazy: bool = False,
        retry_connection_errors: bool = True,
    ) -> None:
        application_url = database_url or application_database_url
        if not (system_database_url or application_url or system_database_engine):
            raise AssertionError("Give system_database_url, or the application's database.")
        config: DBOSConfig = {
            "name": application_name or "client",
            "system_database_url": None if system_database_engine is not None else system_database_url,
            "system_database_engine": system_database_engine,
            "application_database_url": None if system_database_engine is not None else application_url,
            "dbos_system_schema": dbos_system_schema,
            "serializer": serializer,
            "sys_db_pool_size": POOL_SIZE if system_database_pool_size is None else system_database_pool_size,
            "sys_db_polling_concurrency": system_database_polling_concurrency,
            "use_listen_notify": use_listen_notify,
            "run_migrations": False,
        }
        # Without the environment, which is that of an executor, if it is anybody's.
        settings = process_config(config, {})
        self._settings = replace(settings, name=application_name or "", connection_name=CONNECTION_NAME)
        self._reconnects = retry_connection_errors
        self._bridge = Bridge(self._open, is_outside=True, prepare=self._open_async)
        self._begin()
        _clients.add(self)
        if not lazy:
            self._open()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._connected: _Connected | None = None
        self._is_destroyed = False

    def _open(self) -> Engine:
        """The engine, connected at its first use."""
        with self._lock:
            if self._connected is None:
                if self._is_destroyed:
                    raise DBOSDatabaseUnavailableError("The client was destroyed. Make another DBOSClient.")
                self._connected = _Connected(self._settings, reconnects=self._reconnects)
            return self._connected.engine

    async def _open_async(self) -> None:
        if self._connected is None:
            await asyncio.to_thread(self._open)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {mask_url(self._settings.system_database_url)}>"

    # -- its life ------------------------------------------------------------------------------------------------------

    def check_connection(self) -> None:
        """Connect to the database and ask it for something, once, whatever ``retry_connection_errors`` says.

        Raises:
            DBOSDatabaseUnavailableError: It cannot be reached.
            DBOSInitializationError: So it is at the first use of a client that was made ``lazy``; or it is no system
                database.
        """
        self._open().db.check()

    async def check_connection_async(self) -> None:
        """Connect to the database and ask it for something; see :meth:`check_connection`."""
        await asyncio.to_thread(self.check_connection)

    def destroy(self) -> None:
        """Disconnect; whoever still waits for a workflow in this client is told so. Once is enough, twice is fine."""
        with self._lock:
            self._is_destroyed = True
            connected, self._connected = self._connected, None
        if connected is not None:
            connected.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.destroy()

    async def __aenter__(self) -> Self:
        await self._open_async()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await asyncio.to_thread(self.destroy)

    def _abandon(self) -> None:
        """This process is a fork: leave the connections to the parent, and connect anew when that is needed."""
        connected, was_destroyed = self._connected, self._is_destroyed
        if connected is not None:
            connected.engine.abandon()
            _abandoned.append(connected)  # its finalizers would close the parent's connections
        self._begin()  # with a lock of its own: another thread of the parent may hold the old one
        self._is_destroyed = was_destroyed

    # -- workflows -----------------------------------------------------------------------------------------------------

    enqueue = _blocking_handle(queues.enqueue_from_outside)
    enqueue_async = _awaiting_handle(queues.enqueue_from_outside)
    enqueue_in_transaction = _blocking_handle(in_transactions.enqueue_in_transaction)
    retrieve_workflow = _blocking_handle(workflows.retrieve_workflow)
    retrieve_workflow_async = _awaiting_handle(workflows.retrieve_workflow)
    get_workflow_status = _blocking(workflows.get_workflow_status)
    get_workflow_status_async = _awaiting(workflows.get_workflow_status)
    list_workflows = _blocking(listing.list_workflows)
    list_workflows_async = _awaiting(listing.list_workflows)
    list_queued_workflows = _blocking(listing.list_queued_workflows)
    list_queued_workflows_async = _awaiting(listing.list_queued_workflows)
    list_workflow_steps = _blocking(listing.list_workflow_steps)
    list_workflow_steps_async = _awaiting(listing.list_workflow_steps)
    cancel_workflow = _blocking(interventions.cancel_workflow)
    cancel_workflow_async = _awaiting(interventions.cancel_workflow)
    cancel_workflows = _blocking(interventions.cancel_workflows)
    cancel_workflows_async = _awaiting(interventions.cancel_workflows)
    delete_workflow = _blocking(deletion.delete_workflow)
    delete_workflow_async = _awaiting(deletion.delete_workflow)
    delete_workflows = _blocking(deletion.delete_workflows)
    delete_workflows_async = _awaiting(deletion.delete_workflows)
    wait_first = _blocking(workflows.wait_first)
    wait_first_async = _awaiting(workflows.wait_first)
    update_workflow_attributes = _blocking(attributes.update_workflow_attributes)
    update_workflow_attributes_async = _awaiting(attributes.update_workflow_attributes)
    list_management_actions = _blocking(auditing.list_management_actions)
    list_management_actions_async = _awaiting(auditing.list_management_actions)
    resume_workflow = _blocking_handle(interventions.resume_workflow)
    resume_workflow_async = _awaiting_handle(interventions.resume_workflow)
    resume_workflows = _blocking_handles(interventions.resume_workflows)
    resume_workflows_async = _awaiting_handles(interventions.resume_workflows)
    fork_workflow = _blocking_handle(forking.fork_workflow)
    fork_workflow_async = _awaiting_handle(forking.fork_workflow)
    retry_workflow = _blocking_handle(retrying.retry_workflow)
    retry_workflow_async = _awaiting_handle(retrying.retry_workflow)
    retry_workflows = _blocking_handles(retrying.retry_workflows)
    retry_workflows_async = _awaiting_handles(retrying.retry_workflows)
    set_workflow_delay = _blocking(queues.set_workflow_delay)
    set_workflow_delay_async = _awaiting(queues.set_workflow_delay)

    # -- messages, events, streams -------------------------------------------------------------------------------------

    send = _blocking(messages.client_send)
    send_async = _awaiting(messages.client_send)
    send_bulk = _blocking(messages.send_bulk)
    send_bulk_async = _awaiting(messages.send_bulk)
    send_in_transaction = _blocking(in_transactions.send_in_transaction)
    send_bulk_in_transaction = _blocking(in_transactions.send_bulk_in_transaction)
    get_event = _blocking(events.get_event)
    get_event_async = _awaiting(events.get_event)
    get_all_events = _blocking(events.get_all_events)
    get_all_events_async = _awaiting(events.get_all_events)
    read_stream = _Operation(
        lambda bridge: bridge.blocking_iterator(streams.client_read_stream, guarded=False), streams.client_read_stream
    )
    read_stream_async = _Operation(
        lambda bridge: bridge.awaiting_iterator(streams.client_read_stream), streams.client_read_stream
    )
    read_stream_offset = _blocking(streams.read_stream_offset)
    read_stream_offset_async = _awaiting(streams.read_stream_offset)

    # -- queues, executors, versions -----------------------------------------------------------------------------------

    register_queue = _blocking(_queue.register_queue)
    register_queue_async = _awaiting(_queue.register_queue)
    retrieve_queue = _blocking(_queue.retrieve_queue)
    retrieve_queue_async = _awaiting(_queue.retrieve_queue)
    list_queues = _blocking(_queue.list_queues)
    list_queues_async = _awaiting(_queue.list_queues)
    delete_queue = _blocking(_queue.delete_queue)
    delete_queue_async = _awaiting(_queue.delete_queue)
    list_executors = _blocking(executors.list_executors)
    list_executors_async = _awaiting(executors.list_executors)
    drain_executor = _blocking(executors.drain_executor)
    drain_executor_async = _awaiting(executors.drain_executor)
    undrain_executor = _blocking(executors.undrain_executor)
    undrain_executor_async = _awaiting(executors.undrain_executor)
    list_stranded_versions = _blocking(executors.list_stranded_versions)
    list_stranded_versions_async = _awaiting(executors.list_stranded_versions)
    list_stranded_queues = _blocking(executors.list_stranded_queues)
    list_stranded_queues_async = _awaiting(executors.list_stranded_queues)
    count_workflows = _blocking(statistics.count_workflows)
    count_workflows_async = _awaiting(statistics.count_workflows)
    get_workflow_aggregates = _blocking(statistics.get_workflow_aggregates)
    get_workflow_aggregates_async = _awaiting(statistics.get_workflow_aggregates)
    get_metrics = _blocking(statistics.get_metrics)
    get_metrics_async = _awaiting(statistics.get_metrics)
    rename_application = _blocking(applications.rename_application)
    rename_application_async = _awaiting(applications.rename_application)
    list_application_versions = _blocking(versions.list_application_versions)
    list_application_versions_async = _awaiting(versions.list_application_versions)
    get_latest_application_version = _blocking(versions.get_latest_application_version)
    get_latest_application_version_async = _awaiting(versions.get_latest_application_version)
    set_latest_application_version = _blocking(versions.set_latest_application_version)
    set_latest_application_version_async = _awaiting(versions.set_latest_application_version)

    # -- schedules -----------------------------------------------------------------------------------------------------

    create_schedule = _blocking(schedules.create_client_schedule)
    create_schedule_async = _awaiting(schedules.create_client_schedule)
    apply_schedules = _blocking(schedules.apply_client_schedules)
    apply_schedules_async = _awaiting(schedules.apply_client_schedules)
    update_schedule = _blocking(schedules.update_client_schedule)
    update_schedule_async = _awaiting(schedules.update_client_schedule)
    get_schedule = _blocking(schedule_views.get_schedule)
    get_schedule_async = _awaiting(schedule_views.get_schedule)
    list_schedules = _blocking(schedule_views.list_schedules)
    list_schedules_async = _awaiting(schedule_views.list_schedules)
    pause_schedule = _blocking(schedules.pause_schedule)
    pause_schedule_async = _awaiting(schedules.pause_schedule)
    resume_schedule = _blocking(schedules.resume_schedule)
    resume_schedule_async = _awaiting(schedules.resume_schedule)
    delete_schedule = _blocking(schedules.delete_schedule)
    delete_schedule_async = _awaiting(schedules.delete_schedule)
    preview_schedule = _blocking(schedule_views.preview_schedule)
    preview_schedule_async = _awaiting(schedule_views.preview_schedule)
    schedule_history = _blocking(schedule_views.schedule_history)
    schedule_history_async = _awaiting(schedule_views.schedule_history)
    export_workflow = _blocking(archives.export_workflow)
    export_workflow_async = _awaiting(archives.export_workflow)
    import_workflow = _blocking(archives.import_workflow)
    import_workflow_async = _awaiting(archives.import_workflow)
    run_retention = _blocking(retention.run_retention)
    run_retention_async = _awaiting(retention.run_retention)
    trigger_schedule = _blocking_handle(schedule_runs.trigger_schedule)
    trigger_schedule_async = _awaiting_handle(schedule_runs.trigger_schedule)

    @property
    def backfill_schedule(self) -> schedule_runs.Backfill:
        """Start the ticks of a schedule between two times; see :meth:`DBOS.backfill_schedule`."""
        return cast(
            schedule_runs.Backfill, self._bridge.blocking_handles(schedule_runs.backfill_schedule, guarded=False)
        )

    @property
    def backfill_schedule_async(self) -> schedule_runs.BackfillAsync:
        """Start the ticks of a schedule between two times; see :meth:`DBOS.backfill_schedule`."""
        return cast(schedule_runs.BackfillAsync, self._bridge.awaiting_handles(schedule_runs.backfill_schedule))


class _Connected:
    """An engine that runs nothing, and the service that wakes whoever waits in it."""

    def __init__(self, settings: Settings, *, reconnects: bool) -> None:
        if settings.is_sqlite and not settings.sqlite_path.exists():  # it would be created, with nothing in it
            raise DBOSInitializationError(
                f"There is no SQLite database {settings.sqlite_path}. Launch the application first, which creates it."
            )
        self.engine = engine = Engine(settings, Registry(), current_clock(), is_client=True)
        engine.open(
            SystemDatabase(settings, engine.clock, engine.instance_id, may_migrate=False, reconnects=reconnects)
        )
        self._notifier = Notifier(engine)
        engine.db.listen(self._on_wakeup)
        self._notifier.start()

    def _on_wakeup(self, topic: str | None) -> None:
        if topic in (None, WORKFLOW, DATA):
            self._notifier.tell(topic)

    def close(self) -> None:
        self._notifier.stop(patience_s=0)  # a round may wait for a database that is away, until that is closed
        self.engine.close()
        self._notifier.stop()


_clients: weakref.WeakSet[DBOSClient] = weakref.WeakSet()
_abandoned: list[_Connected] = []


def _abandon_in_child() -> None:
    for client in _clients:
        client._abandon()


def _destroy_at_exit() -> None:
    """What was done last is told to others by a thread, which would be gone."""
    for client in list(_clients):
        client.destroy()


atexit.register(_destroy_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_in_child)
