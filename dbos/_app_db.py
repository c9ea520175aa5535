"""Databases of the user: where transactions work, and where their records commit with them.

If it is the system database, the record of a transaction is the step's own row, written in the user's transaction:
one commit in all. Otherwise the record is a row of ``transaction_outputs`` in the user's database, carrying the
identity of the workflow's first start, and the step's row follows.

The application database, where ``@DBOS.transaction`` functions work, is one of them; datasources are the others.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dbos._dbos_config import Settings
from dbos._schemas.rendering import quote_identifier
from dbos._sys_db import SystemDatabase
from dbos._sysdb.dialects.sqlite import begin_immediate, configure
from dbos._sysdb.operations import RecordStep
from dbos._sysdb.rows import StepRow
from dbos._types import IsolationLevel

__all__ = ["ApplicationDatabase", "BlockingDatabase", "TransactionDatabase", "UserSession", "Work", "create_engine"]

READ_ONLY_TRANSACTION = "25006"
RETRYABLE_SQLSTATES = {READ_ONLY_TRANSACTION, "40001", "40P01", "53100", "53300", "57P01", "57P02", "57P03"}
CONNECTION_EXCEPTION = "08"
MAX_IDS = 500  # in one statement; each number of them is a statement of its own
SQLITE_RETRYABLE_CODES = {5, 6, 10, 13, 14, 15}  # BUSY, LOCKED, IOERR, FULL, CANTOPEN, PROTOCOL

RECORD_STEP = f"""
INSERT INTO dbos.operation_outputs ({", ".join(StepRow._fields)})
SELECT {", ".join(":" + name for name in StepRow._fields)}
FROM dbos.workflow_status w
WHERE w.workflow_uuid = :workflow_uuid AND w.run_token = :run_token AND w.status IN ('PENDING', 'CANCELLED')
  AND EXISTS (SELECT 1 FROM dbos.executor_instances e WHERE e.instance_id = :instance {{lock_instance}})
{{lock_workflow}}
ON CONFLICT DO NOTHING
"""

# A snapshot may be older than a take-over, a resume or the deletion of the workflow. Each of them changes a locked row:
# it waits for this transaction, or came before and makes it fail as not serializable. (Heartbeats change the instance's
# row too, but no key of it.)
POSTGRES_LOCKS = {"{lock_instance}": "FOR KEY SHARE", "{lock_workflow}": "FOR SHARE OF w"}

FIND_RECORD = """
SELECT function_name, output, error, serialization FROM dbos.transaction_outputs
WHERE workflow_uuid = :workflow_uuid AND function_id = :function_id AND start_token = :start_token
"""

WRITE_RECORD = """
-- The first record of a workflow's life wins; one of an earlier workflow with the same id is replaced.
INSERT INTO dbos.transaction_outputs
  (workflow_uuid, function_id, output, error, txn_id, txn_snapshot, executor_id, function_name, created_at,
   start_token, serialization)
VALUES (:workflow_uuid, :function_id, :output, NULL, '', '', :executor_id, :function_name, :created_at,
        :start_token, :serialization)
ON CONFLICT (workflow_uuid, function_id) DO UPDATE
SET output = excluded.output, error = NULL, function_name = excluded.function_name, created_at = excluded.created_at,
    start_token = excluded.start_token, serialization = excluded.serialization
WHERE transaction_outputs.start_token <> excluded.start_token OR transaction_outputs.start_token IS NULL
"""

DELETE_RECORDS = "DELETE FROM dbos.transaction_outputs WHERE workflow_uuid IN :ids"

OLD_RECORDS = """
-- Whose records are older than a time, a page of them after a place in the order of time.
SELECT created_at, workflow_uuid, function_id FROM dbos.transaction_outputs
WHERE created_at < :before_ms AND created_at >= :created_at
  AND (created_at, workflow_uuid, function_id) > (:created_at, :workflow_uuid, :function_id)
ORDER BY created_at, workflow_uuid, function_id
LIMIT :limit
"""


class UserSession(Session):
    """What a transaction's function works with: it may do everything but end the transaction.

    A function that committed by itself would have its effect without its record.
    """

    def commit(self) -> None:
        self._refuse("commit")

    def rollback(self) -> None:
        self._refuse("rollback")

    @staticmethod
    def _refuse(name: str) -> None:
        raise sa.exc.InvalidRequestError(
            f"{name}() may not be called in a DBOS transaction: it commits when its function returns, "
            "and rolls back when it raises. Use begin_nested() for a savepoint."
        )


class Work(Protocol):
    """What is done in one transaction: the user's function, between looking for its record and writing it."""

    @property
    def purpose(self) -> str:
        """What to call it in the log."""
        ...

    @property
    def is_recorded(self) -> bool:
        """Whether there has to be a table of records."""
        ...

    @property
    def isolation_level(self) -> IsolationLevel | None:
        """The isolation level that it asks for, if it does."""
        ...

    def enter(self, session: Session) -> None:
        """Before the function; raises if it is not to be called."""
        ...

    def call(self, session: Any) -> Any:
        """Call the function with this session, which may be one of a coroutine."""
        ...

    def leave(self, session: Session, value: Any) -> Any:
        """After the function, which has returned ``value``; raises if it is to be undone."""
        ...


class TransactionDatabase(ABC):
    """A database that transactions of the user work in, and the statements that record them."""

    owner: object = None  #: The datasource that it is of; None for the application database.

    def __init__(self, *, is_sqlite: bool, schema: str, db: SystemDatabase | None) -> None:
        """``db`` is the system database, if this is the same."""
        self._is_sqlite = is_sqlite
        self._db = db
        # For text(): it doubles percent signs by itself, and takes what follows a plain colon for a parameter.
        self._prefix = "" if is_sqlite else quote_identifier(schema).replace(":", r"\:") + "."
        self._turn: AbstractContextManager[Any] = threading.Lock() if is_sqlite else nullcontext()

    @property
    def is_system_database(self) -> bool:
        """Whether the record of a transaction is its step's own row."""
        return self._db is not None

    @abstractmethod
    def carry_out(self, work: Work) -> Any:
        """Do the work in one transaction; returns what it comes to, or a coroutine that does it."""

    @abstractmethod
    def look_up(self, work: Work) -> Any:
        """Only enter the work, in a transaction of its own; returns nothing, or a coroutine that does it."""

    def turn(self, purpose: str) -> AbstractContextManager[Any]:
        """Wait for the right to write: SQLite has one writer, and fairness among threads is better kept here."""
        if self._db is not None and self._is_sqlite:
            return self._db.exclusive(purpose)
        return self._turn

    def begin(self, session: Session, isolation_level: IsolationLevel | None) -> None:
        """Begin the transaction with an isolation level; SQLite is always serializable.

        Raises:
            InvalidRequestError: the engine commits each statement by itself.
        """
        if self._is_sqlite:
            return
        options = {} if isolation_level is None else {"isolation_level": isolation_level}
        if session.connection(execution_options=options).connection.driver_connection.autocommit:  # type: ignore[union-attr]
            raise sa.exc.InvalidRequestError(
                "The engine is set to AUTOCOMMIT, so a transaction's effect and its record could not be committed "
                "together. Give an engine without, or an isolation level to the transaction."
            )

    def record_step(self, session: Session, step: RecordStep, instance_id: str) -> bool:
        """Record the step in the user's transaction on the system database, under the fence; False if refused."""
        sql = RECORD_STEP
        for place, lock in POSTGRES_LOCKS.items():
            sql = sql.replace(place, "" if self._is_sqlite else lock)
        result = session.execute(self._statement(sql), {**step._asdict(), "instance": instance_id})
        return bool(result.rowcount)  # type: ignore[attr-defined]  # a CursorResult, since this is an INSERT

    def find_record(self, session: Session, workflow_id: str, function_id: int, start_token: str) -> StepRow | None:
        """The record of a transaction that committed in an earlier execution."""
        found = session.execute(
            self._statement(FIND_RECORD),
            {"workflow_uuid": workflow_id, "function_id": function_id, "start_token": start_token},
        ).one_or_none()
        if found is None:
            return None
        return StepRow(
            workflow_id,
            function_id,
            found.function_name,
            found.output,
            found.error,
            None,
            None,
            None,
            found.serialization,
        )

    def write_record(self, session: Session, step: RecordStep, start_token: str, executor_id: str) -> bool:
        """Record the transaction in the user's transaction; False if another execution did so first."""
        result = session.execute(
            self._statement(WRITE_RECORD),
            {
                "workflow_uuid": step.workflow_uuid,
                "function_id": step.function_id,
                "output": step.output,
                "executor_id": executor_id,
                "function_name": step.function_name,
                "created_at": step.completed_at_epoch_ms,
                "start_token": start_token,
                "serialization": step.serialization,
            },
        )
        return bool(result.rowcount)  # type: ignore[attr-defined]  # a CursorResult, since this is an INSERT

    def _statement(self, sql: str) -> sa.TextClause:
        return sa.text(sql.replace("dbos.", self._prefix))

    @staticmethod
    def is_retryable(error: BaseException) -> bool:
        """Whether a transaction that failed so may succeed when it is run again."""
        if isinstance(error, sa.exc.TimeoutError):
            return True  # all connections of the pool are in use
        if not isinstance(error, sa.exc.DBAPIError):
            return False  # the user's own, even if another database raised it
        code = getattr(error.orig, "sqlite_errorcode", None)
        if code is not None:
            return code & 0xFF in SQLITE_RETRYABLE_CODES
        if error.connection_invalidated:
            return True
        sqlstate = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
        if sqlstate is None:
            return isinstance(error, sa.exc.OperationalError)  # the server could not be reached at all
        return sqlstate in RETRYABLE_SQLSTATES or sqlstate.startswith(CONNECTION_EXCEPTION)


class BlockingDatabase(TransactionDatabase):
    """A database that threads work in; an engine that is not ours is left as it is."""

    def __init__(self, engine: sa.Engine, *, schema: str, db: SystemDatabase | None, is_ours: bool = True) -> None:
        super().__init__(is_sqlite=engine.dialect.name == "sqlite", schema=schema, db=db)
        # Of somebody else's engine, a copy with the same pool: what listens to it does not listen to the original.
        self.engine = engine if is_ours else engine.execution_options()
        self._is_ours = is_ours
        self._is_closed = False
        sa.event.listen(engine, "handle_error", _replace_read_only)
        if is_ours:
            sa.event.listen(engine, "checkin", self._checked_in)
        if self._is_sqlite:
            sa.event.listen(self.engine, "begin", _begin_immediate)

    def _checked_in(self, connection: Any, record: sa.pool.ConnectionPoolEntry) -> None:
        if self._is_closed and connection is not None:
            record.invalidate()  # nobody else would close it: the engine has forgotten the pool it goes back to

    @contextmanager
    def transaction(self, isolation_level: IsolationLevel | None) -> Iterator[Session]:
        """A session in a transaction that commits when the block ends, and rolls back when it raises."""
        with UserSession(self.engine, expire_on_commit=False) as session, session.begin():
            self.begin(session, isolation_level)
            if self._db is not None:
                self._db.dialect.adopt(session.connection())  # a client in the function must not wait for it
            yield session

    def carry_out(self, work: Work) -> Any:
        """Do the work in one transaction; returns what it comes to."""
        with self.turn(work.purpose), self.transaction(work.isolation_level) as session:
            work.enter(session)
            return work.leave(session, work.call(session))

    def look_up(self, work: Work) -> None:
        """Only enter the work, in a transaction of its own."""
        with self.turn(work.purpose), self.transaction(None) as session:
            work.enter(session)

    # -- records that nobody will look for -----------------------------------------------------------------------------

    def delete_records(self, workflow_ids: Sequence[str]) -> int:
        """Forget the transactions of workflows; returns how many there were."""
        statement = self._statement(DELETE_RECORDS).bindparams(sa.bindparam("ids", expanding=True))
        deleted = 0
        for first in range(0, len(workflow_ids), MAX_IDS):
            with self.turn("Deleting records of transactions"), self.engine.begin() as connection:
                deleted += connection.execute(statement, {"ids": list(workflow_ids[first : first + MAX_IDS])}).rowcount
        return deleted

    def old_records(self, before_ms: int, after: tuple[int, str, int], limit: int) -> list[tuple[int, str, int]]:
        """When, and of which workflow and operation, transactions were recorded, from the oldest on, after a place."""
        created_at, workflow_id, function_id = after
        parameters = {
            "before_ms": before_ms,
            "created_at": created_at,
            "workflow_uuid": workflow_id,
            "function_id": function_id,
            "limit": limit,
        }
        with self.turn("Looking for old records of transactions"), self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(self._statement(OLD_RECORDS), parameters)]

    def close(self) -> None:
        """Close the pool, if it is ours; connections that are in use are closed when they come back to it."""
        if self._is_ours:
            self._is_closed = True
            self.engine.dispose()


class ApplicationDatabase(BlockingDatabase):
    """The database of the configuration, for ``@DBOS.transaction``."""

    def __init__(self, settings: Settings, db: SystemDatabase) -> None:
        url = settings.application_database_url
        assert url is not None, (
            "A transaction needs an application database. Set application_database_url in the DBOS configuration."
        )
        engine = create_engine(
            url,
            settings.application_engine_kwargs,
            synchronous=settings.sqlite_synchronous if settings.has_one_database else None,
        )
        super().__init__(engine, schema=settings.system_schema, db=db if settings.has_one_database else None)


def create_engine(url: str, kwargs: dict[str, Any], *, synchronous: str | None) -> sa.Engine:
    """An engine for the transactions of threads; ``synchronous`` is given for a SQLite system database."""
    parsed = sa.make_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    engine = sa.create_engine(parsed.set(drivername="sqlite" if is_sqlite else "postgresql+psycopg"), **kwargs)
    if is_sqlite:

        @sa.event.listens_for(engine, "connect")
        def connect(connection: Any, record: Any) -> None:
            connection.isolation_level = None  # transactions are begun by listeners, not guessed by the driver
            connection.execute("PRAGMA busy_timeout = 60000")
            if synchronous is not None:
                configure(connection, synchronous)

    return engine


def _begin_immediate(connection: sa.Connection) -> None:
    raw: Any = connection.connection.driver_connection
    if raw.in_transaction:
        return  # the driver of somebody else's engine begins transactions by itself
    try:
        begin_immediate(raw)
    except Exception as error:  # SQLAlchemy wraps what its own statements raise, not what a listener does
        raise sa.exc.OperationalError("BEGIN IMMEDIATE", None, error) from error


def _replace_read_only(context: sa.engine.ExceptionContext) -> None:
    """Whoever connected while the server was a standby is refused for ever, also after it was promoted."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY_TRANSACTION:
        context.is_disconnect = True
