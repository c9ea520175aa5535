"""The application database: where ``@DBOS.transaction`` functions work, and where their records commit with them.

If it is the system database, the record of a transaction is the step's own row, written in the user's transaction:
one commit in all. Otherwise the record is a row of ``transaction_outputs`` in the application database, carrying the
identity of the workflow's first start, and the step's row follows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dbos._database_urls import is_sqlite
from dbos._dbos_config import Settings
from dbos._schemas.rendering import quote_identifier
from dbos._sys_db import SystemDatabase
from dbos._sysdb.dialects.sqlite import begin_immediate, configure
from dbos._sysdb.operations import RecordStep
from dbos._sysdb.rows import StepRow
from dbos._types import IsolationLevel

__all__ = ["ApplicationDatabase"]

RETRYABLE_SQLSTATES = {"40001", "40P01", "25006", "53100", "53300", "57P01", "57P02", "57P03"}
CONNECTION_EXCEPTION = "08"
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
SELECT output, error, serialization FROM dbos.transaction_outputs
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


class _UserSession(Session):
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


class ApplicationDatabase:
    """An SQLAlchemy engine for the user's transactions, and the statements that record them."""

    def __init__(self, settings: Settings, db: SystemDatabase) -> None:
        url = settings.application_database_url
        assert url is not None, (
            "A transaction needs an application database. Set application_database_url in the DBOS configuration."
        )
        self._db = db
        self._executor_id = settings.executor_id
        self._is_sqlite = is_sqlite(url)
        self.is_system_database = settings.has_one_database
        self._turn = threading.Lock()
        self.engine = sa.create_engine(_driver_url(url), **settings.application_engine_kwargs)
        # For text(): it doubles percent signs by itself, and takes what follows a plain colon for a parameter.
        self._prefix = "" if self._is_sqlite else quote_identifier(settings.system_schema).replace(":", r"\:") + "."
        self._is_closed = False
        sa.event.listen(self.engine, "checkin", self._checked_in)
        if self._is_sqlite:
            self._prepare_sqlite(settings)

    def _checked_in(self, connection: Any, record: sa.pool.ConnectionPoolEntry) -> None:
        if self._is_closed and connection is not None:
            record.invalidate()  # nobody else would close it: the engine has forgotten the pool it goes back to

    def _prepare_sqlite(self, settings: Settings) -> None:
        @sa.event.listens_for(self.engine, "connect")
        def connect(connection: Any, record: Any) -> None:
            connection.isolation_level = None  # transactions are begun below, not guessed by the driver
            connection.execute("PRAGMA busy_timeout = 60000")
            if self.is_system_database:
                configure(connection, settings.sqlite_synchronous)

        @sa.event.listens_for(self.engine, "begin")
        def begin(connection: sa.Connection) -> None:
            try:
                begin_immediate(connection.connection.driver_connection)  # type: ignore[arg-type]  # a sqlite3.Connection
            except Exception as error:  # SQLAlchemy wraps what its own statements raise, not what a listener does
                raise sa.exc.OperationalError("BEGIN IMMEDIATE", None, error) from error

    def turn(self, purpose: str) -> AbstractContextManager[Any]:
        """Wait for the right to write: SQLite has one writer, and fairness among threads is better kept here."""
        if self.is_system_database and self._is_sqlite:
            return self._db.exclusive(purpose)
        if self._is_sqlite:
            return self._turn
        return _no_turn()

    @contextmanager
    def transaction(self, isolation_level: IsolationLevel) -> Iterator[Session]:
        """A session in a transaction that commits when the block ends, and rolls back when it raises."""
        with _UserSession(self.engine) as session, session.begin():
            if not self._is_sqlite:
                session.connection(execution_options={"isolation_level": isolation_level})
            yield session

    def record_step(self, session: Session, step: RecordStep, instance_id: str) -> bool:
        """Record the step in the user's transaction on the system database, under the fence; False if refused."""
        sql = RECORD_STEP.replace("dbos.", self._prefix)
        for place, lock in POSTGRES_LOCKS.items():
            sql = sql.replace(place, "" if self._is_sqlite else lock)
        result = session.execute(sa.text(sql), {**step._asdict(), "instance": instance_id})
        return bool(result.rowcount)  # type: ignore[attr-defined]  # a CursorResult, since this is an INSERT

    def find_record(self, session: Session, workflow_id: str, function_id: int, start_token: str) -> StepRow | None:
        """The record of a transaction that committed in an earlier execution."""
        found = session.execute(
            sa.text(FIND_RECORD.replace("dbos.", self._prefix)),
            {"workflow_uuid": workflow_id, "function_id": function_id, "start_token": start_token},
        ).one_or_none()
        if found is None:
            return None
        return StepRow(workflow_id, function_id, "", found.output, found.error, None, None, None, found.serialization)

    def write_record(self, session: Session, step: RecordStep, start_token: str) -> bool:
        """Record the transaction in the user's transaction; False if another execution did so first."""
        result = session.execute(
            sa.text(WRITE_RECORD.replace("dbos.", self._prefix)),
            {
                "workflow_uuid": step.workflow_uuid,
                "function_id": step.function_id,
                "output": step.output,
                "executor_id": self._executor_id,
                "function_name": step.function_name,
                "created_at": step.completed_at_epoch_ms,
                "start_token": start_token,
                "serialization": step.serialization,
            },
        )
        return bool(result.rowcount)  # type: ignore[attr-defined]  # a CursorResult, since this is an INSERT

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
        sqlstate = getattr(error.orig, "sqlstate", None)
        if sqlstate is None:
            return isinstance(error, sa.exc.OperationalError)  # the server could not be reached at all
        return sqlstate in RETRYABLE_SQLSTATES or sqlstate.startswith(CONNECTION_EXCEPTION)

    def close(self) -> None:
        """Close the pool."""
        self._is_closed = True
        self.engine.dispose()


@contextmanager
def _no_turn() -> Iterator[None]:
    yield


def _driver_url(url: str) -> sa.URL:
    parsed = sa.make_url(url)
    return parsed if parsed.get_backend_name() == "sqlite" else parsed.set(drivername="postgresql+psycopg")
