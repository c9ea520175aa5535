"""Transactions: steps whose effect on a database of the user and whose record commit together, or neither.

The flow here decides; what happens within a transaction is :class:`_Attempt`, which a database carries out in one go: a
:class:`~dbos._app_db.BlockingDatabase` in the calling thread, that of an asynchronous datasource on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from dbos._context import Context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Invoke, Outcome, Pause, Raised, Read, Returned, conclude
from dbos._engine.records import commit_step, replayed
from dbos._engine.run import Run
from dbos._engine.step import encode_step, wait_for_lease
from dbos._error import DBOSUnexpectedStepError, DBOSWorkflowConflictIDError
from dbos._registrations import DBOSFuncInfo, required_roles_of
from dbos._sysdb.operations import RecordStep
from dbos._sysdb.rows import StatusRow, StepRow
from dbos._sysdb.wakeups import Signal
from dbos._types import IsolationLevel

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from dbos._app_db import TransactionDatabase, Work

__all__ = ["TransactionFunction", "run_transaction", "warn_in_loop"]

logger = logging.getLogger("dbos.transaction")

FIRST_RETRY_S = 0.001
RETRY_GROWTH = 1.5
MAX_RETRY_S = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class TransactionFunction:
    """A function as a transaction: the name it is recorded under, its isolation level, and where it works."""

    name: str
    func: Callable[..., Any]
    isolation_level: IsolationLevel | None
    info: DBOSFuncInfo
    find_database: Callable[[Engine], TransactionDatabase]


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
) -> Flow[Any]:
    """Run a transaction of ``run``, or return what it recorded when it ran before."""
    function_id = run.next_function_id()
    run.check_interrupted()
    recorded = run.recorded(function_id, transaction.name)
    if recorded is not None:
        logger.debug("Replaying transaction, id: %s, name: %s", function_id, transaction.name)
        return conclude(replayed(engine, recorded))
    logger.debug("Running transaction, id: %s, name: %s", function_id, transaction.name)
    context = context.with_role(required_roles_of(transaction.info, args), transaction.name)
    attempt = _Attempt(engine, run, context, transaction, function_id, args, kwargs)
    delay_s = FIRST_RETRY_S
    while True:
        yield from wait_for_lease(engine, run)
        outcome = yield from attempt.run()
        if outcome is not None:
            return conclude(outcome)
        level = logging.WARNING if delay_s == MAX_RETRY_S else logging.DEBUG
        logger.log(level, "transaction %s will be repeated: %s", transaction.name, attempt.failure)
        signal = Signal()
        with run.interruptible(signal):
            yield Pause(signal, delay_s)
        run.check_interrupted()
        delay_s = min(delay_s * RETRY_GROWTH, MAX_RETRY_S)


class _Attempt:
    """One transaction of one run; :meth:`run` may be called again after a failure that is worth it."""

    is_recorded = True

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
        self._database = transaction.find_database(engine)
        self._context = Context(
            run=run,
            step_id=function_id,
            is_in_transaction=True,
            database=self._database,
            authenticated_user=context.authenticated_user,
            authenticated_roles=context.authenticated_roles,
            assumed_role=context.assumed_role,
        )
        self._started_ms = 0
        self.failure: str | None = None  # why it is to be run again
        self.purpose = f"Transaction {transaction.name}"
        self.isolation_level = transaction.isolation_level

    # -- within the transaction ----------------------------------------------------------------------------------------

    def enter(self, session: Session) -> None:
        """Look for the record of an earlier execution."""
        if not self._database.is_system_database:
            self._adopt(session)

    def call(self, session: Any) -> Any:
        """Call the user's function."""
        self._context.session = session
        return self._transaction.func(*self._args, **self._kwargs)

    def leave(self, session: Session, value: Any) -> tuple[Returned, RecordStep]:
        """Write the record."""
        output, serialization = self._engine.serialization.dump_value(
            value, what="result of step", name=self._transaction.name
        )
        session.flush()
        step = self._step(output, serialization)
        database, engine = self._database, self._engine
        if database.is_system_database:
            if not database.record_step(session, step, engine.instance_id):
                raise _Refused
        elif not database.write_record(session, step, self._start_token, engine.executor_id):
            self._adopt(session)
            raise _Refused  # what was there is gone: somebody deletes records
        return Returned(value), step

    def _adopt(self, session: Session) -> None:
        run = self._run
        record = self._database.find_record(session, run.workflow_id, self._function_id, self._start_token)
        if record is None:
            return
        if record.function_name != self._transaction.name:
            raise DBOSUnexpectedStepError(
                run.workflow_id, self._function_id, self._transaction.name, record.function_name
            )
        raise _Adopted(record)

    @property
    def _start_token(self) -> str:
        return self._run.start_token or self._run.workflow_id

    # -- around it -----------------------------------------------------------------------------------------------------

    def run(self) -> Flow[Outcome | None]:
        """Run the user's function and commit, or record its error after the roll-back; None if it is to be repeated."""
        engine, run, database = self._engine, self._run, self._database
        self._started_ms = engine.clock.now_ms()
        if self.failure is not None and database.is_system_database:
            # The answer to an earlier COMMIT may have been lost, or the workflow been taken over meanwhile.
            existing = yield from self._find_recorded()
            if existing is not None:
                return existing
        result = yield from self._do(database.carry_out)
        if isinstance(result, Raised):
            if isinstance(result.error, DBOSUnexpectedStepError) or not isinstance(result.error, Exception):
                return result  # the code has changed, or the run was stopped inside of the transaction
            if isinstance(result.error, _Refused) and database.is_system_database:
                existing = yield from self._find_recorded()
                if existing is None:
                    self._park()
                return existing
            if not database.is_system_database and not self._is_conclusive(result.error):
                # Another execution, which nothing fences in there, may have committed what this one has stumbled over.
                found = yield from self._do(database.look_up)
                if isinstance(found, Raised) and self._is_conclusive(found.error):
                    result = found
            if isinstance(result.error, _Refused) or database.is_retryable(result.error):
                self.failure = type(result.error).__name__
                return None
        outcome: Outcome
        if isinstance(result, Returned):
            outcome, step = result.value
            if database.is_system_database:
                return outcome  # its record was committed with it
        elif isinstance(result.error, _Adopted):
            record = result.error.record
            outcome, step = replayed(engine, record), self._step(record.output, record.serialization)
        else:
            _explain(result.error)
            step, outcome = encode_step(
                engine, run, self._function_id, self._transaction.name, result, self._started_ms
            )
        recorded = yield from commit_step(run, step)
        return outcome if recorded is None else replayed(engine, recorded)

    def _is_conclusive(self, error: BaseException) -> bool:
        return isinstance(error, (_Adopted, _Refused)) or self._database.is_retryable(error)

    def _do(self, action: Callable[[Work], Any]) -> Flow[Outcome]:
        try:
            outcome: Outcome = yield Invoke(self._context, action, (self,), {})
        finally:
            self._context.session = None
        return outcome

    def _step(self, output: str | None, serialization: str | None) -> RecordStep:
        return RecordStep(
            self._run.workflow_id,
            self._function_id,
            self._transaction.name,
            output,
            None,
            None,
            self._started_ms,
            self._engine.clock.now_ms(),
            serialization,
            self._run.run_token,
        )

    def _find_recorded(self) -> Flow[Outcome | None]:
        """What is recorded already, if anything; nothing of another run's goes into one that lost its workflow."""
        engine, run = self._engine, self._run
        row: StatusRow | None = yield Read(engine.db.workflows.get, (run.workflow_id,))
        histories: dict[str, dict[int, StepRow]] = yield Read(engine.db.operations.history, ([run.workflow_id],))
        if row is None or row.run_token != run.run_token or row.owner_instance not in (None, engine.instance_id):
            self._park()
        recorded = histories[run.workflow_id].get(self._function_id)
        return None if recorded is None else replayed(engine, recorded)

    def _park(self) -> NoReturn:
        self._run.lose()
        raise DBOSWorkflowConflictIDError(self._run.workflow_id)


def _explain(error: BaseException) -> None:
    from sqlalchemy.exc import InvalidRequestError  # slow to import, and loaded with the first transaction

    if isinstance(error, InvalidRequestError):
        logger.error("A transaction commits when its function returns; it may not call commit() or rollback().")


def warn_in_loop(name: str) -> None:
    """Warn of a transaction that is about to block a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    logger.warning(
        "Transaction %s is called while an event loop is running, and blocks it. Call it with asyncio.to_thread.", name
    )
