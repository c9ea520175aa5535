"""``SQLAlchemyDatasource`` and ``AsyncSQLAlchemyDatasource``: what users declare.

A call looks at the context it is made in, as that of a step does: in a workflow's body it is a recorded transaction of
the run, outside of workflows it is a transaction and nothing more.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, cast, get_args

from dbos._context import Context, current_context
from dbos._core import through_binding
from dbos._engine.engine import Engine
from dbos._engine.flow import drive, drive_async
from dbos._engine.transaction import TransactionFunction, run_transaction, warn_in_loop
from dbos._error import DBOSException
from dbos._process import find_engine, process
from dbos._registrations import get_or_create_func_info
from dbos._types import IsolationLevel, TransactionOptions

from .source import Source
from .unrecorded import Unrecorded

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["AsyncSQLAlchemyDatasource", "SQLAlchemyDatasource"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
CoroutineFunction = TypeVar("CoroutineFunction", bound=Callable[..., Coroutine[Any, Any, Any]])


class _Datasource(ABC):
    """What both kinds share: a database, opened anew for each launch, and functions that work in it."""

    _is_async: ClassVar[bool]

    def __init__(self, source: Source) -> None:
        self._source = source
        self._alone: Any = None  # the database of calls without a launch
        self._parents: Any = None  # that of the process that this one is a fork of: its finalizer would close it
        self._process = os.getpid()
        self._lock = threading.Lock()
        process.registry.register_datasource(self)

    @property
    def name(self) -> str:
        """The name that it was given."""
        return self._source.name

    def prepare(self) -> None:
        """Create the table that records transactions, unless it is there; :meth:`DBOS.launch` does so by itself.

        With ``run_migrations`` turned off in the configuration, it is only looked for.

        Raises:
            DBOSInitializationError: the database cannot be used, or the table is missing and may not be created.
        """
        with self._source.explained():
            self._database(process.registry.engine).prepare()

    @staticmethod
    def create_tables(url: str, *, schema: str = "dbos") -> None:
        """Create the table that records transactions, unless it is there: for whoever launches without that right.

        Args:
            url: The database, with a role that may create tables.
            schema: The PostgreSQL schema of the table.

        Raises:
            DBOSInitializationError: the database cannot be used, or has a table of that name and of another make.
        """
        source = Source.of("create_tables", url, schema, None, is_async=False)
        with source.explained():
            source.prepare(may_migrate=True)

    def close(self) -> None:
        """Close the connections of calls that were made without a launch; :meth:`DBOS.destroy` closes the others."""
        with self._lock:
            alone, self._alone = self._alone, None
        if alone is not None:
            alone.close()

    def _database(self, engine: Engine | None) -> Any:
        if engine is not None and engine.is_open:
            return engine.database(self, lambda: self._open(engine))
        with self._lock:
            if os.getpid() != self._process:  # connections cannot be shared with the process that this is a fork of
                self._process, self._parents, self._alone = os.getpid(), self._alone, None
            if self._alone is None:
                self._alone = self._open(None)
            return self._alone

    @abstractmethod
    def _open(self, engine: Engine | None) -> Any: ...

    def _session(self) -> Any:
        context = current_context()
        is_here = context is not None and context.database is not None and context.database.owner is self
        session = context.session if context is not None and is_here else None
        assert session is not None, f"The session of datasource {self.name!r} is only available in its transactions"
        return session

    def _function(
        self, func: Callable[..., Any], isolation_level: IsolationLevel | None, name: str | None
    ) -> TransactionFunction:
        registered_name = name or getattr(func, "__qualname__", None) or type(func).__qualname__
        _check_isolation_level(isolation_level)
        if inspect.iscoroutinefunction(func) != self._is_async:
            is_, needs, other = (
                ("a plain function", "coroutine functions", "SQLAlchemyDatasource")
                if self._is_async
                else ("a coroutine function", "plain functions", "AsyncSQLAlchemyDatasource")
            )
            raise DBOSException(
                f"Function {registered_name} is {is_}, but {type(self).__name__} takes {needs}. Use {other} for it."
            )
        info = get_or_create_func_info(func)
        info.is_operation = True
        return TransactionFunction(registered_name, func, isolation_level, info, self._database)

    @abstractmethod
    def _wrap(self, func: Callable[..., Any], isolation_level: IsolationLevel | None, name: str | None) -> Any: ...

    @staticmethod
    def _caller() -> Context:
        context = current_context() or Context()
        is_free = context.step_id is None and not context.is_in_transaction
        assert is_free, "Transactions must be called from within workflows, not from steps or other transactions"
        return context


class SQLAlchemyDatasource(_Datasource):
    """A database of yours, in which functions are transactions that workflows run exactly once.

    In a workflow, the effect of such a function and the record of it are committed together: after a crash at any
    moment either both are there, or neither is, and then the function is called again. The record is a row of the
    table ``transaction_outputs``, which :meth:`DBOS.launch` creates in the database.

    Args:
        name: What it is called in messages; no other has the same.
        url: A SQLite or PostgreSQL URL, or an engine of SQLAlchemy, which stays yours to close. With a URL, PostgreSQL
            is reached by psycopg 3.
        schema: The PostgreSQL schema of the table of records.
        engine_kwargs: With a URL, arguments for ``sqlalchemy.create_engine``, merged over the defaults.

    Raises:
        DBOSInitializationError: the database is none that can be used.

    Example:
        ```python
        import sqlalchemy as sa

        from dbos import DBOS, SQLAlchemyDatasource

        orders = SQLAlchemyDatasource("orders", "sqlite:///orders.sqlite")

        @orders.transaction()
        def add_order(item: str) -> None:
            orders.session.execute(sa.text("INSERT INTO orders (item) VALUES (:item)"), {"item": item})

        @DBOS.workflow()
        def order(item: str) -> None:
            add_order(item)
        ```
    """

    _is_async = False

    def __init__(
        self,
        name: str,
        url: str | sa.Engine,
        *,
        schema: str = "dbos",
        engine_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(Source.of(name, url, schema, engine_kwargs, is_async=False))

    @property
    def session(self) -> Session:
        """The session of the transaction that the calling code belongs to.

        Raises:
            AssertionError: it belongs to none of this datasource.
        """
        return cast("Session", self._session())

    def transaction(
        self, isolation_level: IsolationLevel | None = None, *, name: str | None = None
    ) -> Callable[[F], F]:
        """Make a function a transaction of this database.

        Within it, :attr:`session` is an SQLAlchemy session; it commits when the function returns and rolls back when it
        raises. In a workflow it is a step, whose record commits with it; it is called again if it could not be
        serialized, or the database went away. Outside of workflows it is a plain transaction.

        Args:
            isolation_level: On PostgreSQL; by default that of the engine. SQLite is always serializable.
            name: What it is recorded under; by default its qualified name.

        Raises:
            DBOSException: the function is a coroutine function, or there is no such isolation level.
        """
        _check_isolation_level(isolation_level)
        return through_binding(lambda func: self._wrap(func, isolation_level, name))

    def run_transaction(
        self, options: TransactionOptions | None, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call any function as a transaction of this database; see :meth:`transaction`.

        Args:
            options: A name and an isolation level, or None for the defaults.
            func: The function.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Raises:
            DBOSException: the function is a coroutine function, or there is no such isolation level.
        """
        options = options or {}
        return self._call(self._function(func, options.get("isolation_level"), options.get("name")), args, kwargs)  # type: ignore[no-any-return]  # what func returns

    def _wrap(self, func: Callable[..., Any], isolation_level: IsolationLevel | None, name: str | None) -> Any:
        transaction = self._function(func, isolation_level, name)

        @functools.wraps(func)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(transaction, args, kwargs)

        return call

    def _call(self, transaction: TransactionFunction, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        context = self._caller()
        if context.run is not None:
            warn_in_loop(transaction.name)
            engine = find_engine()
            return drive(engine, run_transaction(engine, context.run, context, transaction, args, kwargs))
        database = self._database(process.registry.engine)
        return database.carry_out(Unrecorded(transaction, database, context, args, kwargs))

    def _open(self, engine: Engine | None) -> Any:
        from .blocking import DatasourceDatabase  # SQLAlchemy's object-relational half, which only transactions need

        return DatasourceDatabase(self._source, engine, self)


class AsyncSQLAlchemyDatasource(_Datasource):
    """A database of yours, in which coroutine functions are transactions; see :class:`SQLAlchemyDatasource`.

    Args:
        name: What it is called in messages; no other has the same.
        url: A SQLite or PostgreSQL URL, or an asynchronous engine of SQLAlchemy, which stays yours to close, and is
            used on whichever event loop a workflow runs. With a URL, each loop has connections of its own; PostgreSQL
            is reached by psycopg 3, SQLite by aiosqlite.
        schema: The PostgreSQL schema of the table of records.
        engine_kwargs: With a URL, arguments for ``sqlalchemy.create_engine``, merged over the defaults.

    Raises:
        DBOSInitializationError: the database is none that can be used, or what SQLAlchemy needs for it is not
            installed: ``pip install opendbos[asyncio]``.

    Example:
        ```python
        import sqlalchemy as sa

        from dbos import DBOS, AsyncSQLAlchemyDatasource

        orders = AsyncSQLAlchemyDatasource("orders", "postgresql://localhost/orders")

        @orders.transaction()
        async def add_order(item: str) -> None:
            await orders.session.execute(sa.text("INSERT INTO orders (item) VALUES (:item)"), {"item": item})

        @DBOS.workflow()
        async def order(item: str) -> None:
            await add_order(item)
        ```
    """

    _is_async = True

    def __init__(
        self,
        name: str,
        url: str | AsyncEngine,
        *,
        schema: str = "dbos",
        engine_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        source = Source.of(name, url, schema, engine_kwargs, is_async=True)
        source.check_asyncio()
        super().__init__(source)

    @property
    def session(self) -> AsyncSession:
        """The session of the transaction that the calling code belongs to.

        Raises:
            AssertionError: it belongs to none of this datasource.
        """
        return cast("AsyncSession", self._session())

    def transaction(
        self, isolation_level: IsolationLevel | None = None, *, name: str | None = None
    ) -> Callable[[CoroutineFunction], CoroutineFunction]:
        """Make a coroutine function a transaction of this database; see :meth:`SQLAlchemyDatasource.transaction`.

        Args:
            isolation_level: On PostgreSQL; by default that of the engine. SQLite is always serializable.
            name: What it is recorded under; by default its qualified name.

        Raises:
            DBOSException: the function is none that is awaited, or there is no such isolation level.
        """
        _check_isolation_level(isolation_level)
        return through_binding(lambda func: self._wrap(func, isolation_level, name))

    async def run_transaction(
        self,
        options: TransactionOptions | None,
        func: Callable[P, Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Call any coroutine function as a transaction of this database; see :meth:`transaction`.

        Args:
            options: A name and an isolation level, or None for the defaults.
            func: The function.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Raises:
            DBOSException: the function is none that is awaited, or there is no such isolation level.
        """
        options = options or {}
        transaction = self._function(func, options.get("isolation_level"), options.get("name"))
        return await self._call(transaction, args, kwargs)  # type: ignore[no-any-return]  # what func returns

    def _wrap(self, func: Callable[..., Any], isolation_level: IsolationLevel | None, name: str | None) -> Any:
        transaction = self._function(func, isolation_level, name)

        @functools.wraps(func)
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._call(transaction, args, kwargs)

        return call

    async def _call(self, transaction: TransactionFunction, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        context = self._caller()
        if context.run is not None:
            engine = find_engine()
            return await drive_async(engine, run_transaction(engine, context.run, context, transaction, args, kwargs))
        database = self._database(process.registry.engine)
        return await database.carry_out(Unrecorded(transaction, database, context, args, kwargs))

    def _open(self, engine: Engine | None) -> Any:
        from .awaiting import AwaitingDatabase  # likewise

        return AwaitingDatabase(self._source, engine, self)


def _check_isolation_level(isolation_level: object) -> None:
    if isolation_level is not None and isolation_level not in get_args(IsolationLevel):
        raise DBOSException(
            f"Unknown isolation level {isolation_level!r}. There are: {', '.join(get_args(IsolationLevel))}. "
            "A transaction without one is decorated with transaction(), with parentheses."
        )
