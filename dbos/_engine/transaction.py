"""Transactions: steps whose effect on the application database and whose record commit together, or neither.

Synchronous only, so this is plain code rather than a flow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from dbos._context import Context, install, restore
from dbos._engine.engine import Engine
from dbos._engine.flow import Outcome, Raised, Returned, drive
from dbos._engine.outcome import reveal
from dbos._engine.records import commit_step, replayed
from dbos._engine.run import Run
from dbos._engine.step import encode_step, wait_for_lease
from dbos._error import DBOSBaseException, DBOSWorkflowConflictIDError
from dbos._registrations import DBOSFuncInfo, required_roles_of
from dbos._sysdb.operations import RecordStep
from dbos._sysdb.rows import StepRow
from dbos._sysdb.wakeups import Signal
from dbos._types import IsolationLevel

if TYPE_CHECKING:
    from dbos._app_db import ApplicationDatabase

__all__ = ["TransactionFunction", "run_transaction"]

logger = logging.getLogger("dbos.transaction")

FIRST_RETRY_S = 0.001
RETRY_GROWTH = 1.5
MAX_RETRY_S = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class TransactionFunction:
    """A function as a transaction: the name it is recorded under, and its isolation level."""

    name: str
    func: Callable[..., Any]
    isolation_level: IsolationLevel
    info: DBOSFuncInfo


class _Adopted(Exception):
    """Roll back: another execution has committed this transaction, and its record counts."""

    def __init__(self, record: StepRow) -> None:
        super().__init__()
        self.record = record


class _Refused(Exception):
    """Roll back: the record was not accepted."""


def run_transaction(
    engine: Engine,
    run: Run,
    context: Context,
    transaction: TransactionFunction,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Any:
    """Run a transaction of ``run``, or return what it recorded when it ran before."""
    _warn_in_loop(transaction.name)
    function_id = run.next_function_id()
    run.check_interrupted()
    recorded = run.recorded(function_id, transaction.name)
    if recorded is not None:
        logger.debug("Replaying transaction, id: %s, name: %s", function_id, transaction.name)
        return reveal(replayed(engine, recorded))
    logger.debug("Running transaction, id: %s, name: %s", function_id, transaction.name)
    context = context.with_role(required_roles_of(transaction.info, args), transaction.name)
    attempt = _Attempt(engine, run, context, transaction, function_id, args, kwargs)
    delay_s = FIRST_RETRY_S
    while True:
        drive(engine, wait_for_lease(engine, run))
        try:
            return attempt.run()
        except Exception as error:
            if not attempt.is_retryable(error):
                raise
            level = logging.WARNING if delay_s == MAX_RETRY_S else logging.DEBUG
            logger.log(level, "transaction %s will be repeated: %s", transaction.name, type(error).__name__)
        signal = Signal()
        with run.interruptible(signal):
            signal.wait(delay_s)
        run.check_interrupted()
        delay_s = min(delay_s * RETRY_GROWTH, MAX_RETRY_S)


class _Attempt:
    """One transaction of one run; :meth:`run` may be called again after a failure that is retryable."""

    def __init__(
        self,
        engine: Engine,
        run: Run,
        context: Context,
        transaction: TransactionFunction,
        function_id: int,
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> None:
        self._engine = engine
        self._run = run
        self._transaction = transaction
        self._function_id = function_id
        self._args, self._kwargs = args, kwargs
        self._context = Context(
            run=run,
            step_id=function_id,
            is_in_transaction=True,
            authenticated_user=context.authenticated_user,
            authenticated_roles=context.authenticated_roles,
            assumed_role=context.assumed_role,
        )
        self._database: ApplicationDatabase = engine.application_database
        self._has_failed = False

    def is_retryable(self, error: Exception) -> bool:
        """Whether to run it again."""
        self._has_failed = True
        return self._database.is_retryable(error)

    def run(self) -> Any:
        """Run the user's function and commit; an error of its own is recorded after the roll-back."""
        engine, run = self._engine, self._run
        started_ms = engine.clock.now_ms()
        if self._has_failed and self._database.is_system_database:
            # The answer to an earlier COMMIT may have been lost, or the workflow been taken over meanwhile.
            recorded = self._find_recorded()
            if recorded is not None:
                return reveal(recorded)
        try:
            with self._database.turn(f"Transaction {self._transaction.name}"):
                outcome, step = self._in_database(started_ms)
        except _Adopted as adopted:
            outcome = replayed(engine, adopted.record)
            step = self._step(adopted.record.output, adopted.record.serialization, started_ms)
        except _Refused:
            recorded = self._find_recorded()
            if recorded is None:
                self._park()
            return reveal(recorded)
        except DBOSBaseException:
            raise
        except Exception as error:
            if self._database.is_retryable(error):
                raise
            from sqlalchemy.exc import InvalidRequestError  # slow to import, and loaded with the first transaction

            if isinstance(error, InvalidRequestError):
                logger.error("A transaction commits when its function returns; it may not call commit() or rollback().")
            step, outcome = encode_step(
                engine, run, self._function_id, self._transaction.name, Raised(error), started_ms
            )
        if self._database.is_system_database and isinstance(outcome, Returned):
            return outcome.value  # its record was committed with it
        existing = drive(engine, commit_step(run, step))
        return reveal(outcome if existing is None else replayed(engine, existing))

    def _in_database(self, started_ms: int) -> tuple[Outcome, RecordStep]:
        database, run = self._database, self._run
        with database.transaction(self._transaction.isolation_level) as session:
            start_token = run.start_token or run.workflow_id
            if not database.is_system_database:
                record = database.find_record(session, run.workflow_id, self._function_id, start_token)
                if record is not None:
                    raise _Adopted(record)
            self._context.session = session
            token = install(self._context)
            try:
                value = self._transaction.func(*self._args, **self._kwargs)
            finally:
                restore(token)
                self._context.session = None
            output, serialization = self._engine.serialization.dump_value(value)
            session.flush()
            step = self._step(output, serialization, started_ms)
            if database.is_system_database:
                if not database.record_step(session, step, self._engine.instance_id):
                    raise _Refused
            elif not database.write_record(session, step, start_token):
                record = database.find_record(session, run.workflow_id, self._function_id, start_token)
                assert record is not None
                raise _Adopted(record)
        return Returned(value), step

    def _step(self, output: str | None, serialization: str | None, started_ms: int) -> RecordStep:
        return RecordStep(
            self._run.workflow_id,
            self._function_id,
            self._transaction.name,
            output,
            None,
            None,
            started_ms,
            self._engine.clock.now_ms(),
            serialization,
            self._run.run_token,
        )

    def _find_recorded(self) -> Outcome | None:
        """What is recorded already, if anything; nothing of another run's goes into one that lost its workflow."""
        engine, run = self._engine, self._run
        row = engine.db.read(engine.db.workflows.get, run.workflow_id)
        history = engine.db.read(engine.db.operations.history, [run.workflow_id])[run.workflow_id]
        if row is None or row.run_token != run.run_token or row.owner_instance not in (None, engine.instance_id):
            self._park()
        recorded = history.get(self._function_id)
        return None if recorded is None else replayed(engine, recorded)

    def _park(self) -> NoReturn:
        self._run.lose()
        raise DBOSWorkflowConflictIDError(self._run.workflow_id)


def _warn_in_loop(name: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    logger.warning(
        "Transaction %s is called while an event loop is running, and blocks it. Call it with asyncio.to_thread.", name
    )
