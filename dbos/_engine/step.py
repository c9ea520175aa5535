"""Steps: run once, recorded durably, replayed from the record ever after."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from dbos._context import Context
from dbos._engine.engine import Engine
from dbos._engine.flow import Expired, Flow, Invoke, Limit, Outcome, Pause, Raised, Returned, conclude
from dbos._engine.records import commit_step, replayed
from dbos._engine.run import Run
from dbos._error import DBOSException, DBOSMaxStepRetriesExceeded, DBOSStepTimeoutError, DBOSWorkflowConflictIDError
from dbos._registrations import DBOSFuncInfo, required_roles_of
from dbos._sysdb.operations import RecordStep
from dbos._sysdb.wakeups import Signal

__all__ = [
    "StepFunction",
    "StepPolicy",
    "encode_step",
    "record_step",
    "run_step",
    "step_context",
    "wait_for_lease",
]

logger = logging.getLogger("dbos.step")

MAX_RETRY_INTERVAL_S = 3600.0

ShouldRetry = Callable[[Exception], bool | Awaitable[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPolicy:
    """What to do when a step raises, and when to stop it.

    Attempt ``i`` (from 0) is followed by a pause of ``interval_s * backoff_rate ** i`` seconds, at most an hour. Each
    attempt may take ``timeout_s`` seconds; a preemptible step is stopped when its workflow is cancelled.
    """

    retries_allowed: bool = False
    interval_s: float = 1.0
    max_attempts: int = 3
    backoff_rate: float = 2.0
    should_retry: ShouldRetry | None = None
    preemptible: bool = False
    timeout_s: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is one attempt, and nothing stops it."""
        return not self.retries_allowed and not self.is_limited

    @property
    def is_limited(self) -> bool:
        """Whether an attempt may have to be stopped."""
        return self.preemptible or self.timeout_s is not None

    def check(self, name: str, *, is_async: bool) -> None:
        """Refuse what could never work.

        Raises:
            DBOSException: a synchronous step has an asynchronous predicate, or should be stopped, which only a
                coroutine can be; or the time that it may take is none.
        """
        for option, is_given in (("preemptible", self.preemptible), ("timeout_seconds", self.timeout_s is not None)):
            if is_given and not is_async:
                raise DBOSException(f"Step {name} is sync, but {option} is only supported for async steps.")
        if self.timeout_s is not None and not 0 < self.timeout_s < math.inf:
            raise DBOSException(
                f"Step {name} has timeout_seconds={self.timeout_s}, but it must be positive and finite."
            )
        if self.should_retry is not None and not is_async and inspect.iscoroutinefunction(self.should_retry):
            raise DBOSException(
                f"Step {name} is sync but should_retry is async. Give a sync step a sync should_retry function."
            )

    def pause_s(self, attempt: int) -> float:
        """How long to wait after attempt number ``attempt``, counted from 0."""
        try:
            return min(self.interval_s * self.backoff_rate**attempt, MAX_RETRY_INTERVAL_S)
        except OverflowError:
            return MAX_RETRY_INTERVAL_S


@dataclass(frozen=True, slots=True, eq=False)
class StepFunction:
    """A function as a step: the name it is recorded under, and its policy."""

    name: str
    func: Callable[..., Any]
    policy: StepPolicy
    info: DBOSFuncInfo | None = None


def run_step(
    engine: Engine, run: Run, context: Context, step: StepFunction, args: Sequence[Any], kwargs: dict[str, Any]
) -> Flow[Any]:
    """Run a step of ``run``, or return what it recorded when it ran before."""
    function_id = run.next_function_id()
    run.check_interrupted()
    recorded = run.recorded(function_id, step.name)
    if recorded is not None:
        logger.debug("Replaying step, id: %s, name: %s", function_id, step.name)
        return conclude(replayed(engine, recorded))
    logger.debug("Running step, id: %s, name: %s", function_id, step.name)
    context = step_context(run, context, step, function_id, args)
    started_ms = engine.clock.now_ms()
    outcome = yield from _attempts(engine, run, context, step, args, kwargs)
    if isinstance(outcome, Raised) and not isinstance(outcome.error, Exception):
        return outcome  # the run was stopped inside of the step: there is nothing to record
    record, outcome = encode_step(engine, run, function_id, step.name, outcome, started_ms)
    return conclude((yield from record_step(engine, run, record, outcome)))


def step_context(run: Run, context: Context, step: StepFunction, function_id: int, args: Sequence[Any]) -> Context:
    """The context of a step's body.

    Raises:
        DBOSNotAuthorizedError: the user may not call it.
    """
    required = required_roles_of(step.info, args) if step.info is not None else None
    if required:
        context = context.with_role(required, step.name)
    return Context(
        run=run,
        step_id=function_id,
        authenticated_user=context.authenticated_user,
        authenticated_roles=context.authenticated_roles,
        assumed_role=context.assumed_role,
    )


def record_step(engine: Engine, run: Run, record: RecordStep, outcome: Outcome) -> Flow[Outcome]:
    """Record how a step ended; returns what counts from now on."""
    try:
        existing = yield from commit_step(run, record)
    except Exception as error:
        if not engine.db.dialect.refuses_value(error):
            # Whatever this is, it is no failure of the step and must not look like one to the user's code.
            logger.error("the result of step %s of %s was not stored: %s", record.function_id, run.workflow_id, error)
            run.lose()
            raise DBOSWorkflowConflictIDError(run.workflow_id) from error
        # The database refuses this very record (too large, say). The step has run: what replays must be the same
        # error every time, never another attempt, so it is recorded in the result's place.
        name, function_id, started_ms = record.function_name, record.function_id, record.started_at_epoch_ms
        logger.error("the result of step %s of workflow %s cannot be stored: %s", function_id, run.workflow_id, error)
        outcome = Raised(DBOSException(f"The result of step {name} could not be stored: {type(error).__name__}."))
        record, outcome = encode_step(engine, run, function_id, name, outcome, started_ms)
        existing = yield from commit_step(run, record)
    return outcome if existing is None else replayed(engine, existing)


def _attempts(
    engine: Engine, run: Run, context: Context, step: StepFunction, args: Sequence[Any], kwargs: dict[str, Any]
) -> Flow[Outcome]:
    policy = step.policy
    attempts = policy.max_attempts if policy.retries_allowed else 1
    assert attempts > 0  # max_attempts must be positive
    errors: list[Exception] = []
    for attempt in range(attempts):
        yield from wait_for_lease(engine, run)
        inner = replace(context, attempt=attempt, max_attempts=attempts) if policy.retries_allowed else context
        outcome = yield from _attempt(run, inner, step, args, kwargs)
        if isinstance(outcome, Returned) or not policy.retries_allowed or not isinstance(outcome.error, Exception):
            return outcome
        verdict = yield from _may_retry(policy, inner, outcome.error)
        if isinstance(verdict, Raised):
            return verdict
        if not verdict.value:
            return outcome
        errors.append(outcome.error)
        logger.warning(
            "Step being automatically retried (attempt %s of %s): %s raised %s",
            attempt + 1,
            attempts,
            step.name,
            type(outcome.error).__name__,
        )
        if attempt + 1 < attempts:
            signal = Signal()
            with run.interruptible(signal):
                yield Pause(signal, policy.pause_s(attempt))
            run.check_interrupted()
    return Raised(DBOSMaxStepRetriesExceeded(step.name, attempts, errors))


def _attempt(
    run: Run, context: Context, step: StepFunction, args: Sequence[Any], kwargs: dict[str, Any]
) -> Flow[Outcome]:
    policy = step.policy
    outcome: Outcome | Expired
    if not policy.is_limited:
        outcome = yield Invoke(context, step.func, args, kwargs)
        return outcome  # type: ignore[return-value]  # what has no limit does not expire
    stop = Signal()
    with ExitStack() as stack:
        if policy.preemptible:
            stack.enter_context(run.interruptible(stop))
        outcome = yield Invoke(context, step.func, args, kwargs, Limit(policy.timeout_s, stop))
    if not isinstance(outcome, Expired):
        return outcome
    if policy.preemptible:
        run.check_interrupted()
    assert policy.timeout_s is not None
    timeout = DBOSStepTimeoutError(step.name, policy.timeout_s)
    timeout.__cause__ = outcome.error
    return Raised(timeout)


def _may_retry(policy: StepPolicy, context: Context, error: Exception) -> Flow[Outcome]:
    if policy.should_retry is None:
        return Returned(True)
    answer: Outcome = yield Invoke(context, policy.should_retry, (error,), {})
    return answer


def wait_for_lease(engine: Engine, run: Run) -> Flow[None]:
    """Hold back while this process cannot show that it is alive: another may be about to take over its work."""
    while True:
        signal = engine.lease_renewed  # before the guard is looked at, or a renewal in between would be missed
        if engine.clock.monotonic() < engine.lease_guard:
            run.check_interrupted()  # last: who registers anew, having been declared dead, stops its runs before
            return
        waiter = Signal()
        signal.call(waiter.set)
        with run.interruptible(waiter):
            yield Pause(waiter, None)
        signal.forget(waiter.set)
        run.check_interrupted()


def encode_step(
    engine: Engine, run: Run, function_id: int, name: str, outcome: Outcome, started_ms: int | None
) -> tuple[RecordStep, Outcome]:
    """The record of an outcome; a value that cannot be serialized makes it an error, which replays as the same."""
    output: str | None = None
    error: str | None = None
    if isinstance(outcome, Returned):
        try:
            output, serialization = engine.serialization.dump_value(outcome.value, what="result of step", name=name)
        except Exception as failure:
            outcome = Raised(failure)
    if isinstance(outcome, Raised):
        assert isinstance(outcome.error, Exception)
        error, serialization = engine.serialization.dump_error(outcome.error)
    record = RecordStep(
        run.workflow_id,
        function_id,
        name,
        output,
        error,
        None,
        started_ms,
        engine.clock.now_ms(),
        serialization,
        run.run_token,
    )
    return record, outcome
