"""Queues as users hold them: declared in the code, or registered in the database and changed while they are used.

Both are a :class:`Queue`. A declared one keeps its settings in the process' registry; a registered one asks the
database for them each time, because any process may have changed them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Generic, Never, ParamSpec, Self, TypedDict, TypeVar, overload

from dbos._bridge import refuse_running_loop
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, drive, drive_async
from dbos._error import DBOSException
from dbos._handles import WorkflowHandle, WorkflowHandleAsync
from dbos._operations import queues, registered_queues
from dbos._operations.handles import EngineHandle, EngineHandleAsync
from dbos._process import find_engine, process
from dbos._queue_config import QueueConfig, QueueSettings, RateLimit
from dbos._sysdb.stores.queues import OnConflict
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE

__all__ = ["Queue", "QueueRateLimit", "delete_queue", "list_queues", "register_queue", "retrieve_queue"]

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")

logger = logging.getLogger("dbos.queues")


class QueueRateLimit(TypedDict):
    """At most ``limit`` workflows are started within any ``period`` seconds."""

    limit: int
    period: float


# -- settings, in four forms: a property, its awaitable form, a setter, its awaitable form -----------------------------


class _Setting(Generic[V]):
    """A property of a queue; of a registered one it is read from the database."""

    def __init__(self, of: Callable[[QueueSettings], V], doc: str) -> None:
        self._of = of
        self.__doc__ = doc

    def __set_name__(self, owner: type[Queue], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, queue: None, owner: type[Queue]) -> Self: ...

    @overload
    def __get__(self, queue: Queue, owner: type[Queue]) -> V: ...

    def __get__(self, queue: Queue | None, owner: type[Queue]) -> Self | V:
        return self if queue is None else self._of(queue._read())

    def __set__(self, queue: Queue, value: Never) -> None:
        # Assigning cannot tell that it writes to the database, and cannot be awaited.
        if not queue.database_backed:
            raise AttributeError(f"Queue {queue.name} is declared in the code: {self._name} is fixed there.")
        change = "pause() or resume()" if self._name == "is_paused" else f"set_{self._name}()"
        raise AttributeError(f"Queue {queue.name} is registered: use {change} to change {self._name}.")


def _readable(
    of: Callable[[QueueSettings], V], doc: str
) -> tuple[_Setting[V], Callable[[Queue], Coroutine[Any, Any, V]]]:
    async def get_async(queue: Queue) -> V:
        return of(await queue._read_async())

    get_async.__doc__ = doc
    return _Setting(of, doc), get_async


def _changeable(
    name: str,
    of: Callable[[QueueSettings], V],
    doc: str,
    *,
    column: str | None = None,
    stored: Callable[[V], Any] = lambda value: value,
) -> tuple[
    _Setting[V],
    Callable[[Queue], Coroutine[Any, Any, V]],
    Callable[[Queue, V], None],
    Callable[[Queue, V], Coroutine[Any, Any, None]],
]:
    """``column`` is the field of :class:`QueueSettings` that is changed, if it has another name."""

    def set_it(queue: Queue, value: V) -> None:
        queue._change(f"set_{name}", {column or name: stored(value)})

    async def set_async(queue: Queue, value: V) -> None:
        await queue._change_async({column or name: stored(value)})

    set_it.__doc__ = set_async.__doc__ = f"""Change {doc[0].lower()}{doc[1:]}

        Raises:
            DBOSException: the queue was declared with ``Queue(...)``, or deleted.
            ValueError: together with its other settings, no queue can obey that.
        """
    return (*_readable(of, doc), set_it, set_async)


def _shown(rate: RateLimit | None) -> QueueRateLimit | None:
    return None if rate is None else {"limit": rate.limit, "period": rate.period_s}


class Queue:
    """A queue, declared under a name that is unique in the process. It can be declared at any time.

    Every process that is to take work from it declares it, with the same limits. What needs to change while it is used
    is registered instead, with :meth:`DBOS.register_queue`.

    Args:
        name: The queue's name.
        concurrency: At most so many of its workflows run at once, in all processes together.
        limiter: ``{"limit": 50, "period": 30.0}``: at most so many start within any so many seconds, likewise.
        worker_concurrency: At most so many run at once in one process.
        priority_enabled: Whether workflows may have a priority; without one, the first in is the first out.
        partition_queue: Whether the limits are those of each partition; every workflow has a partition key then.
        polling_interval_sec: How often to look for work that came without a wake-up; other work begins when it comes.
            All queues are looked at together, as often as the shortest interval says: from every 0.05 s to every
            second.

    Raises:
        Exception: a queue of this name has already been declared.
        DBOSException: no queue can have the name, or it belongs to the library.
        ValueError: no queue can obey these limits.

    Example:
        ```python
        queue = Queue("mail", concurrency=10, limiter={"limit": 50, "period": 30.0})

        handle = queue.enqueue(send_mail, "alice@example.com")
        handle.get_result()
        ```
    """

    name: str
    """Its name."""

    def __init__(
        self,
        name: str,
        concurrency: int | None = None,
        limiter: QueueRateLimit | None = None,
        *,
        worker_concurrency: int | None = None,
        priority_enabled: bool = False,
        partition_queue: bool = False,
        polling_interval_sec: float = 1.0,
    ) -> None:
        settings = QueueSettings(
            name=name,
            concurrency=concurrency,
            worker_concurrency=worker_concurrency,
            limiter=RateLimit.of(limiter),
            priority_enabled=bool(priority_enabled),
            partition_queue=bool(partition_queue),
            polling_interval_sec=polling_interval_sec,
        )
        if concurrency is not None and worker_concurrency is not None and worker_concurrency > concurrency:
            raise ValueError("worker_concurrency must be less than or equal to concurrency")
        settings.check()
        registry = process.registry
        if name == INTERNAL_QUEUE:
            raise DBOSException(f"Queue {name} belongs to the library. Choose another name.")
        if name in registry.queues:
            raise Exception(f"Queue {name} has already been declared")
        self.name = name
        self._settings: QueueSettings | None = settings
        self._engine: Engine | None = None
        self._obeyed = registry.queues[name] = settings.obeyed()
        registry.on_registration()

    @classmethod
    def _registered(cls, engine: Engine, name: str) -> Self:
        """A queue in the database: in that of a client it stays, in this process' own through its launches."""
        queue = cls.__new__(cls)
        queue.name = name
        queue._settings = None
        queue._engine = None if engine is process.registry.engine else engine
        return queue

    def _find_engine(self) -> Engine:
        return find_engine() if self._engine is None else self._engine

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def database_backed(self) -> bool:
        """Whether its settings are in the database, where they can be changed."""
        return self._settings is None

    @property
    def database_backed_queue(self) -> bool:
        """The same as :attr:`database_backed`."""
        return self.database_backed

    # -- settings ------------------------------------------------------------------------------------------------------

    def _read(self) -> QueueSettings:
        if self._settings is not None:
            return self._settings
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            logger.warning(
                "A setting of queue %s is read from the database while an event loop is running, which it blocks. "
                "Await one of the queue's get_..._async() methods instead.",
                self.name,
            )
        engine = self._find_engine()
        return drive(engine, registered_queues.read(engine, self.name))

    async def _read_async(self) -> QueueSettings:
        if self._settings is not None:
            return self._settings
        engine = self._find_engine()
        return await drive_async(engine, registered_queues.read(engine, self.name))

    def _change(self, method: str, changes: Mapping[str, Any]) -> None:
        if self._engine is None:  # a client may block whatever it likes
            refuse_running_loop(method)
        engine = self._changing_engine()
        drive(engine, registered_queues.change(engine, self.name, changes))

    async def _change_async(self, changes: Mapping[str, Any]) -> None:
        engine = self._changing_engine()
        await drive_async(engine, registered_queues.change(engine, self.name, changes))

    def _changing_engine(self) -> Engine:
        if self._settings is not None:
            raise DBOSException(
                f"Queue {self.name} is declared in the code, and dynamic configuration is only supported for queues "
                "registered via DBOS.register_queue."
            )
        return self._find_engine()

    concurrency, get_concurrency_async, set_concurrency, set_concurrency_async = _changeable(
        "concurrency",
        lambda settings: settings.concurrency,
        "How many may run at once in all processes together; None for any number.",
    )
    global_concurrency, get_global_concurrency_async, set_global_concurrency, set_global_concurrency_async = (
        _changeable(
            "global_concurrency",
            lambda settings: None if settings.partition_queue else settings.concurrency,
            "How many may run at once in all processes and partitions together; None for any number.",
            column="concurrency",
        )
    )
    worker_concurrency, get_worker_concurrency_async, set_worker_concurrency, set_worker_concurrency_async = (
        _changeable(
            "worker_concurrency",
            lambda settings: settings.worker_concurrency,
            "How many may run at once in one process; None for any number.",
        )
    )
    limiter, get_limiter_async, set_limiter, set_limiter_async = _changeable(
        "limiter",
        lambda settings: _shown(settings.limiter),
        "How many may start within how many seconds; None for no limit.",
        stored=RateLimit.of,
    )
    (
        partition_concurrency,
        get_partition_concurrency_async,
        set_partition_concurrency,
        set_partition_concurrency_async,
    ) = _changeable(
        "partition_concurrency",
        lambda settings: settings.partition_concurrency,
        "How many of one partition may run at once, in all processes.",
    )
    (
        partition_worker_concurrency,
        get_partition_worker_concurrency_async,
        set_partition_worker_concurrency,
        set_partition_worker_concurrency_async,
    ) = _changeable(
        "partition_worker_concurrency",
        lambda settings: settings.partition_worker_concurrency,
        "How many of one partition may run at once in one process.",
    )
    partition_limiter, get_partition_limiter_async, set_partition_limiter, set_partition_limiter_async = _changeable(
        "partition_limiter",
        lambda settings: _shown(settings.partition_limiter),
        "How many of one partition may start within how many seconds.",
        stored=lambda limiter: RateLimit.of(limiter, "partition_limiter"),
    )
    priority_enabled, get_priority_enabled_async, set_priority_enabled, set_priority_enabled_async = _changeable(
        "priority_enabled",
        lambda settings: settings.priority_enabled,
        "Whether workflows may have a priority. In a registered queue they always may, whatever is set.",
    )
    partition_queue, get_partition_queue_async, set_partition_queue, set_partition_queue_async = _changeable(
        "partition_queue",
        lambda settings: settings.partition_queue,
        "Whether its limits are those of each partition. When that changes, they stay as many.",
        stored=bool,
    )
    polling_interval_sec, get_polling_interval_sec_async, set_polling_interval_sec, set_polling_interval_sec_async = (
        _changeable(
            "polling_interval_sec",
            lambda settings: settings.polling_interval_sec,
            "How often, in seconds, it is looked for work that came without a wake-up.",
        )
    )
    is_paused, get_is_paused_async = _readable(
        lambda settings: settings.is_paused, "Whether it is paused: what waits in it stays there."
    )

    def pause(self) -> None:
        """Let nothing more of it begin, in any process, until it is resumed. What runs goes on.

        Raises:
            DBOSException: the queue was declared with ``Queue(...)``, or deleted.
        """
        self._change("pause", {"is_paused": True})

    async def pause_async(self) -> None:
        """Let nothing more of it begin; see :meth:`pause`."""
        await self._change_async({"is_paused": True})

    def resume(self) -> None:
        """Let what waits in it begin again.

        Raises:
            DBOSException: the queue was declared with ``Queue(...)``, or deleted.
        """
        self._change("resume", {"is_paused": False})

    async def resume_async(self) -> None:
        """Let what waits in it begin again; see :meth:`resume`."""
        await self._change_async({"is_paused": False})

    # -- enqueueing ----------------------------------------------------------------------------------------------------

    @overload
    def enqueue(
        self, func: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandle[R]: ...

    @overload
    def enqueue(self, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> WorkflowHandle[R]: ...

    def enqueue(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> WorkflowHandle[Any]:
        """Enqueue a workflow. It is durable when this returns.

        Args:
            func: A workflow; a step or transaction is enqueued as a workflow around it.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            A handle to await it with.

        Raises:
            DBOSWorkflowFunctionNotFoundError: ``func`` is not decorated.
            Exception: the queue does not allow the options that are set with :class:`SetEnqueueOptions`.
            DBOSQueueDeduplicatedError: another workflow holds the deduplication id.
            DBOSConflictingWorkflowError: the workflow id belongs to another function, class or instance.
        """
        engine = self._find_engine()
        ids = drive(engine, self._enqueue(engine, func, [(args, kwargs)]))
        return EngineHandle(engine, ids[0])

    @overload
    async def enqueue_async(
        self, func: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandleAsync[R]: ...

    @overload
    async def enqueue_async(
        self, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandleAsync[R]: ...

    async def enqueue_async(
        self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandleAsync[Any]:
        """Enqueue a workflow; see :meth:`enqueue`."""
        engine = self._find_engine()
        ids = await drive_async(engine, self._enqueue(engine, func, [(args, kwargs)]))
        return EngineHandleAsync(engine, ids[0])

    @overload
    def enqueue_many(
        self, func: Callable[..., Coroutine[Any, Any, R]], arguments: Iterable[tuple[Any, ...]]
    ) -> list[WorkflowHandle[R]]: ...

    @overload
    def enqueue_many(self, func: Callable[..., R], arguments: Iterable[tuple[Any, ...]]) -> list[WorkflowHandle[R]]: ...

    def enqueue_many(self, func: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[WorkflowHandle[Any]]:
        """Enqueue a workflow once for each tuple of arguments, all in one transaction and in this order.

        Options that are set apply to each; an assigned workflow id to the first. Within a workflow, each is an
        operation of its own.

        Args:
            func: A workflow, step or transaction.
            arguments: The positional arguments of each.

        Returns:
            Their handles, in the same order.

        Raises:
            TypeError: ``arguments`` has something else than tuples.
            DBOSException: a deduplication id is set, and there is more than one.
            Exception: as :meth:`enqueue`; none is enqueued then. Only if another process gives the assigned id to
                something else in this very moment, the others are.
        """
        engine = self._find_engine()
        ids = drive(engine, self._enqueue(engine, func, _calls(arguments)))
        return [EngineHandle(engine, workflow_id) for workflow_id in ids]

    @overload
    async def enqueue_many_async(
        self, func: Callable[..., Coroutine[Any, Any, R]], arguments: Iterable[tuple[Any, ...]]
    ) -> list[WorkflowHandleAsync[R]]: ...

    @overload
    async def enqueue_many_async(
        self, func: Callable[..., R], arguments: Iterable[tuple[Any, ...]]
    ) -> list[WorkflowHandleAsync[R]]: ...

    async def enqueue_many_async(
        self, func: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]
    ) -> list[WorkflowHandleAsync[Any]]:
        """Enqueue a workflow once for each tuple of arguments; see :meth:`enqueue_many`."""
        engine = self._find_engine()
        ids = await drive_async(engine, self._enqueue(engine, func, _calls(arguments)))
        return [EngineHandleAsync(engine, workflow_id) for workflow_id in ids]

    def _enqueue(self, engine: Engine, func: Callable[..., Any], calls: list[queues.Arguments]) -> Flow[list[str]]:
        if self._engine is not None:
            raise DBOSException(
                f"Cannot enqueue on queue {self.name} from a client-bound Queue: a client knows no functions. Use "
                "DBOSClient.enqueue, with the name of the workflow."
            )
        return queues.enqueue(engine, self.name, self._config, func, calls)

    def _config(self, engine: Engine) -> Flow[QueueConfig]:
        if self._settings is not None:
            return self._obeyed
        return (yield from registered_queues.config(engine, self.name))


def _calls(arguments: Iterable[Any]) -> list[queues.Arguments]:
    calls: list[queues.Arguments] = []
    for args in arguments:
        if not isinstance(args, Sequence) or isinstance(args, str | bytes):  # a string would be taken apart
            raise TypeError(
                "enqueue_many takes a tuple of arguments for each call, for example [(1,), (2,)], not "
                f"{type(args).__name__}."
            )
        calls.append((args, {}))
    return calls


# -- registered queues -------------------------------------------------------------------------------------------------


def register_queue(
    engine: Engine,
    name: str,
    *,
    worker_concurrency: int | None = None,
    global_concurrency: int | None = None,
    partition_concurrency: int | None = None,
    partition_worker_concurrency: int | None = None,
    partition_limiter: QueueRateLimit | None = None,
    limiter: QueueRateLimit | None = None,
    polling_interval_sec: float = 1.0,
    on_conflict: OnConflict | None = None,
    application_name: str | None = None,
    concurrency: int | None = None,
    priority_enabled: bool | None = None,
    partition_queue: bool | None = None,
) -> Flow[Queue]:
    """Keep a queue in the database: every process takes work from it, and its settings can be changed while it is used.

    A limit of partitions makes it a partitioned queue; the other limits are those of the queue as a whole.

    Args:
        name: The queue's name.
        worker_concurrency: At most so many of its workflows run at once in one process.
        global_concurrency: At most so many run at once, in all processes together.
        partition_concurrency: At most so many of one partition run at once, in all processes together.
        partition_worker_concurrency: At most so many of one partition run at once in one process.
        partition_limiter: How many of one partition may start within what time.
        limiter: ``{"limit": 50, "period": 30.0}``: at most so many start within any so many seconds.
        polling_interval_sec: How often to look for work that came without a wake-up; other work begins when it comes.
            All queues are looked at together, as often as the shortest interval says: from every 0.05 s to every
            second.
        on_conflict: What to do if it is registered already: overwrite its settings if this process runs the latest
            application version (``"update_if_latest_version"``, the default), always (``"always_update"``, the default
            of a client, which has no version), or never (``"never_update"``). A pause stays.
        application_name: The application that it belongs to, by default this one; a client need not have one.
        concurrency: Deprecated: ``global_concurrency``.
        priority_enabled: Deprecated: in registered queues, priorities are always on.
        partition_queue: Deprecated: makes every limit one of partitions.

    Returns:
        The queue.

    Raises:
        ValueError: no queue can obey these settings.
        DBOSException: the name cannot be used, or belongs to another application's queue.
    """
    if concurrency is not None and global_concurrency is not None:
        raise ValueError("concurrency is the former name of global_concurrency: specify only one of them.")
    settings = QueueSettings(
        name=name,
        concurrency=concurrency if global_concurrency is None else global_concurrency,
        worker_concurrency=worker_concurrency,
        limiter=RateLimit.of(limiter),
        partition_concurrency=partition_concurrency,
        partition_worker_concurrency=partition_worker_concurrency,
        partition_limiter=RateLimit.of(partition_limiter, "partition_limiter"),
        priority_enabled=True,
        polling_interval_sec=polling_interval_sec,
    )
    if partition_queue:
        if global_concurrency is not None:
            raise ValueError(
                "partition_queue cannot be combined with global_concurrency: use partition_concurrency alone."
            )
        settings = settings.partitioned()
    settings.check(wide_name="concurrency" if global_concurrency is None else "global_concurrency")
    yield from registered_queues.register(engine, settings, on_conflict, application_name)
    return Queue._registered(engine, name)


def retrieve_queue(engine: Engine, name: str) -> Flow[Queue | None]:
    """A queue that was registered, or None.

    Args:
        name: The queue's name.
    """
    settings = yield from registered_queues.find(engine, name)
    return None if settings is None else Queue._registered(engine, name)


def list_queues(engine: Engine, *, application_name: str | None = None) -> Flow[list[Queue]]:
    """The queues that were registered, by name.

    Args:
        application_name: Only those that this application has registered.
    """
    names = yield from registered_queues.names(engine, application_name)
    return [Queue._registered(engine, name) for name in names]


def delete_queue(engine: Engine, name: str) -> Flow[None]:
    """Delete a queue that was registered; an unknown one is none.

    What runs goes on; what waits in it waits until a queue of this name is registered again.

    Args:
        name: The queue's name.
    """
    yield from registered_queues.delete(engine, name)
