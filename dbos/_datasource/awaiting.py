"""The database of a datasource for coroutines.

Connections belong to the event loop that made them, and workflows run on more than one: on the application's, and on
the library's own where a launch has none to recover them on. So each loop has a pool. Only what touches the session is
here; the statements are those of :class:`~dbos._app_db.TransactionDatabase`, and run in it by ``run_sync``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from dbos._app_db import TransactionDatabase, UserSession, Work
from dbos._engine.engine import Engine
from dbos._sysdb.dialects.sqlite import configure
from dbos._threads import Threads
from dbos._types import IsolationLevel

from .source import Source

__all__ = ["AwaitingDatabase"]


class AwaitingDatabase(TransactionDatabase):
    """A database that coroutines work in; an engine that is not ours is left as it is."""

    def __init__(self, source: Source, engine: Engine | None, owner: object) -> None:
        settings = None if engine is None else engine.settings
        is_system_database = source.is_system_database(settings)
        super().__init__(
            is_sqlite=source.is_sqlite,
            schema=settings.system_schema if settings is not None and is_system_database else source.schema,
            db=engine.db if engine is not None and is_system_database else None,
        )
        self.owner = owner
        self._source = source
        self._kwargs = source.kwargs(settings)
        self._synchronous = settings.sqlite_synchronous if settings is not None and is_system_database else None
        self._may_migrate = settings is None or settings.run_migrations
        self._is_prepared = is_system_database
        self._preparing = threading.Lock()
        self._threads = Threads("dbos-datasource")
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}
        self._pools_lock = threading.Lock()
        self._given: AsyncEngine | None = None
        if source.given is not None:
            self._given = source.given.execution_options()
            if self._is_sqlite:
                sa.event.listen(self._given.sync_engine, "begin", _begin_immediate)

    # -- connections ---------------------------------------------------------------------------------------------------

    def _pool(self) -> _Pool:
        """What belongs to the running loop; what belonged to loops that have ended is closed."""
        loop = asyncio.get_running_loop()
        with self._pools_lock:
            if loop not in self._pools:
                for ended in [each for each in self._pools if each.is_closed()]:
                    self._pools.pop(ended).close()
                self._pools[loop] = _Pool(self._given or self._create_engine(), is_ours=self._given is None)
            return self._pools[loop]

    def _create_engine(self) -> AsyncEngine:
        url, kwargs = sa.make_url(self._source.url), self._kwargs
        if not self._is_sqlite:
            return create_async_engine(url, **kwargs)
        # A file is opened in no time, and a thread that is kept for it would outlive its loop.
        kwargs = {key: value for key, value in kwargs.items() if not key.startswith(("pool_", "max_"))}
        engine = create_async_engine(
            url.set(drivername="sqlite+aiosqlite"), **{**kwargs, "poolclass": sa.pool.NullPool}
        )
        sa.event.listen(engine.sync_engine, "connect", self._set_up_sqlite)
        sa.event.listen(engine.sync_engine, "begin", _begin_immediate)
        return engine

    def _set_up_sqlite(self, connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions are begun by a listener, not guessed by the driver
        connection.execute("PRAGMA busy_timeout = 60000").close()
        if self._synchronous is not None:
            configure(connection, self._synchronous)

    def prepare(self) -> None:
        """Create or verify the table of records, once; blocks."""
        with self._preparing:
            if not self._is_prepared:
                self._source.prepare(may_migrate=self._may_migrate)
                self._is_prepared = True

    def close(self) -> None:
        """Close the connections that are ours; those that are in use when their transaction ends."""
        with self._pools_lock:
            while self._pools:
                self._pools.popitem()[1].close()
        self._threads.close()

    # -- transactions --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def transaction(self, isolation_level: IsolationLevel | None) -> AsyncIterator[AsyncSession]:
        """A session in a transaction that commits when the block ends, and rolls back when it raises."""
        async with (
            AsyncSession(self._pool().engine, sync_session_class=UserSession, expire_on_commit=False) as session,
            session.begin(),
        ):
            await session.run_sync(self.begin, isolation_level)
            yield session

    @asynccontextmanager
    async def _turn_awaited(self, purpose: str) -> AsyncIterator[None]:
        if not self._is_sqlite:
            yield
            return
        async with self._pool().gate:  # so that of all coroutines of a loop only one has a thread that waits
            turn = _Turn(self.turn(purpose))
            try:
                await self._threads.call(turn.enter)
                yield
            finally:
                turn.leave()

    async def carry_out(self, work: Work) -> Any:
        """Do the work in one transaction; returns what it comes to."""
        if work.is_recorded and not self._is_prepared:
            await self._threads.call(self.prepare)
        async with self._turn_awaited(work.purpose), self.transaction(work.isolation_level) as session:
            await session.run_sync(work.enter)
            return await session.run_sync(work.leave, await work.call(session))

    async def look_up(self, work: Work) -> None:
        """Only enter the work, in a transaction of its own."""
        async with self._turn_awaited(work.purpose), self.transaction(None) as session:
            await session.run_sync(work.enter)


class _Pool:
    """The connections of one event loop, closed without it: it may have ended, or be waiting for us."""

    def __init__(self, engine: AsyncEngine, *, is_ours: bool) -> None:
        self.engine = engine
        self.gate = asyncio.Lock()
        self._idle: set[Any] = set()
        self._is_closed = False
        if is_ours:
            sa.event.listen(engine.sync_engine, "checkin", self._checked_in)
            sa.event.listen(engine.sync_engine, "checkout", self._checked_out)

    def _checked_in(self, connection: Any, record: sa.pool.ConnectionPoolEntry) -> None:
        if connection is not None:
            self._idle.add(connection)
            if self._is_closed:
                self.close()

    def _checked_out(self, connection: Any, record: Any, proxy: Any) -> None:
        self._idle.discard(connection)

    def close(self) -> None:
        self._is_closed = True
        while self._idle:
            pgconn = getattr(self._idle.pop().driver_connection, "pgconn", None)
            if pgconn is not None:  # one of aiosqlite is in no pool, and closes itself
                pgconn.finish()


class _Turn:
    """A turn that a thread waits for and a coroutine takes; if that goes away meanwhile, the thread gives it back."""

    def __init__(self, turn: AbstractContextManager[Any]) -> None:
        self._turn = turn
        self._lock = threading.Lock()
        self._is_entered = False
        self._is_left = False

    def enter(self) -> None:
        self._turn.__enter__()
        with self._lock:
            self._is_entered = True
            if not self._is_left:
                return
        self._turn.__exit__(None, None, None)

    def leave(self) -> None:
        with self._lock:
            self._is_left = True
            if not self._is_entered:
                return
        self._turn.__exit__(None, None, None)


def _begin_immediate(connection: sa.Connection) -> None:
    raw: Any = connection.connection.driver_connection
    if not raw.in_transaction:  # the driver of somebody else's engine may begin transactions by itself
        connection.exec_driver_sql("BEGIN IMMEDIATE")
