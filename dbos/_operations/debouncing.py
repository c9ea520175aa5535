"""Debouncing: of calls that come in quick succession one workflow is made, which runs when they have ceased.

The workflow itself waits in its queue, delayed, and holds the key as its de-duplication id. Each call puts it off and
gives it its own arguments, in one transaction; with the end of the delay it gives up the key, and the next call begins
another group. A call that finds nobody commits the new workflow, and the joining of it, together: of several processes
that do so at once one creates it, and all join it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dbos._context import Context, Delay, EnqueueChoices, current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Read, conclude
from dbos._engine.records import commit_step, replayed
from dbos._engine.run import Run
from dbos._engine.start import QueueOptions, Target, check_same, describe, take_assigned_id, target_of
from dbos._error import DBOSException, DBOSQueueDeduplicatedError, DBOSWorkflowFunctionNotFoundError
from dbos._operations.admission import check_partition, checked_place, known_config
from dbos._operations.effects import Effect, commit_fenced
from dbos._operations.queues import EnqueueOptions, named_request
from dbos._queue_config import MAX_KEY_BYTES, checked_key
from dbos._registrations import needs_receiver
from dbos._sysdb.operations import Call, RecordStep, StartWorkflow
from dbos._sysdb.rows import StatusRow, StepRow
from dbos._sysdb.stores.debounces import TOKEN_PREFIX, DebouncedCall, Joined, Outcome

__all__ = ["Debouncing", "debounce", "debounce_from_outside", "debouncing_of", "refuse_method"]

OPERATION = "DBOS.debounce_delayed_workflow"

# Until when a new workflow is delayed before it is joined, in the same transaction, which may also be to begin whatever
# is due.
NEVER_MS = 2**53 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Debouncing:
    """What a debouncer was made for; checked when it is made.

    Raises:
        DBOSException: an argument is not what it can be.
    """

    workflow_name: str
    queue_name: str | None = None
    timeout_s: float | None = None
    application_name: str | None = None

    def __post_init__(self) -> None:
        checked_key("workflow_name", self.workflow_name)
        checked_place(self.queue_name, None)
        if self.timeout_s is not None:
            Delay(self.timeout_s, "debounce_timeout_sec")


class _Wait:
    """How long a call puts its workflow off, from now on, and how long the group that it begins may be put off."""

    def __init__(self, period_s: float, timeout_s: float | None) -> None:
        self._period = Delay(period_s, "debounce_period_sec")
        self._limit = Delay(timeout_s, "debounce_timeout_sec") if timeout_s else None

    def until_ms(self, now_ms: int) -> int:
        return self._period.until_ms(now_ms)

    def deadline_ms(self, now_ms: int) -> int | None:
        return None if self._limit is None else self._limit.until_ms(now_ms)


def debounce(
    engine: Engine, debouncing: Debouncing, key: str, period_s: float, args: Sequence[Any], kwargs: dict[str, Any]
) -> Flow[str]:
    """Call a workflow of this application when no more calls have come for ``period_s`` seconds; returns its id.

    Raises:
        DBOSException: key or period are not what they can be, or an option is set that debouncing has no use for.
        DBOSWorkflowFunctionNotFoundError: there is no such workflow in this process, whose application is meant.
        DBOSQueueDeduplicatedError: something else holds the key.
        DBOSConflictingWorkflowError: the assigned id belongs to another function, class or instance.
    """
    context = current_context() or Context()
    _refuse_options(context.choices)
    target = _target_of(engine, debouncing, args, kwargs)
    queue_name, _ = checked_place(debouncing.queue_name, None)
    queue = QueueOptions(
        queue_name=queue_name,
        deduplication_id=_key_of(target.name, key),
        application_version=context.choices.app_version
        or (engine.application_version if _is_own(engine, debouncing.application_name) else None),
        application_name=debouncing.application_name,
    )
    wait = _Wait(period_s, debouncing.timeout_s)
    effect = Effect(engine, OPERATION)
    if effect.is_done:
        take_assigned_id(context)  # it was this call's, and must not fall to the next workflow
        recorded = effect.require_run(OPERATION).recorded(effect.function_id, OPERATION)
        assert recorded is not None
        return _replayed(engine, recorded)
    config = yield from known_config(engine, queue_name)
    if config is not None:
        check_partition(config, None)
    is_assigned = context.assigned_id is not None and not context.assigned_id.is_taken
    start = _describe(engine, target, context, queue)
    if effect.step is not None and not is_assigned:
        start = start._replace(workflow_uuid=f"{effect.step.workflow_uuid}-{effect.function_id}")
    return (yield from _join(engine, start, target, wait, context.run, effect))


def debouncing_of(options: EnqueueOptions, queue_name: str | None, timeout_s: float | None) -> Debouncing:
    """What the debouncer of a client is made for, with the queue in ``options`` if no other is given.

    Raises:
        KeyError: ``workflow_name`` or ``queue_name`` is missing.
        DBOSException: an argument is not what it can be, or an option is one that debouncing has no use for.
    """
    request = named_request(options, (), {}, Context())
    _refuse_options(request.choices)
    return Debouncing(
        workflow_name=request.target.name, queue_name=queue_name or request.queue.queue_name, timeout_s=timeout_s
    )


def debounce_from_outside(
    engine: Engine,
    debouncing: Debouncing,
    options: EnqueueOptions,
    key: str,
    period_s: float,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Flow[str]:
    """The same for a workflow that is known by its name and ``options``, on behalf of a client; returns its id.

    Raises:
        DBOSException: key or period are not what they can be.
        DBOSQueueDeduplicatedError: something else holds the key.
        DBOSConflictingWorkflowError: the id belongs to another function, class or instance.
    """
    target, given, _, context = named_request(options, args, kwargs, Context())
    queue_name, _ = checked_place(debouncing.queue_name, None)
    queue = given._replace(queue_name=queue_name, deduplication_id=_key_of(target.name, key))
    wait = _Wait(period_s, debouncing.timeout_s)
    start = _describe(engine, target, context, queue)
    return (yield from _join(engine, start, target, wait, None, Effect(engine, OPERATION)))


def refuse_method(name: str) -> TypeError:
    """What is raised where a method is to be debounced that belongs to a class or an instance."""
    return TypeError(
        f"{name} is a method of a class or an instance, which a debouncer does not know. Debounce a function or a "
        "static method that calls it."
    )


def _refuse_options(choices: EnqueueChoices) -> None:
    meaningless = [
        name
        for name in choices.only_for_queues()
        if name != "duplication_policy" or choices.duplication_policy != "reject"
    ]
    if meaningless:
        raise DBOSException(
            f"A debounced workflow cannot have {', '.join(meaningless)}: it waits for the debounce period under a "
            "deduplication ID of its own."
        )


def _is_own(engine: Engine, application_name: str | None) -> bool:
    return application_name in (None, engine.application_name)


def _target_of(engine: Engine, debouncing: Debouncing, args: Sequence[Any], kwargs: dict[str, Any]) -> Target:
    name = debouncing.workflow_name
    function = engine.registry.workflows.get(name) if _is_own(engine, debouncing.application_name) else None
    if function is not None:
        if needs_receiver(function.info):
            raise refuse_method(name)
        return target_of(function, args, kwargs)
    if _is_own(engine, debouncing.application_name):
        raise DBOSWorkflowFunctionNotFoundError("<NONE>", f"{name} is not a registered workflow function")
    return Target(
        name=name,
        class_name=None,
        config_name=None,
        args=tuple(args),
        kwargs=kwargs,
        format=None,
        max_recovery_attempts=None,
    )


def _key_of(workflow_name: str, key: str) -> str:
    """The de-duplication id that stands for a key; those of different workflows are different, but for odd names."""
    prefix = f"{workflow_name}-"
    return prefix + checked_key("debounce_key", key, MAX_KEY_BYTES - len(prefix.encode()))


def _describe(engine: Engine, target: Target, context: Context, queue: QueueOptions) -> StartWorkflow:
    """The workflow that a call begins if it is the first. It is nobody's child: others may give it its arguments."""
    queue = queue._replace(delay_until_ms=NEVER_MS)
    start = describe(engine, target, replace(context, run=None, step_id=None), None, queue)
    return start._replace(run_token=TOKEN_PREFIX + start.run_token)


def _join(
    engine: Engine, start: StartWorkflow, target: Target, wait: _Wait, run: Run | None, effect: Effect
) -> Flow[str]:
    """Join the group of a key, or begin one."""

    def record(workflow_id: str) -> RecordStep:
        assert effect.step is not None
        output, serialization = engine.serialization.dump_value(workflow_id)
        return effect.step._replace(output=output, serialization=serialization)

    join = Call(
        engine.db.debounces.join,
        (
            DebouncedCall(
                start=start,
                now_ms=engine.db.now_ms,
                until_ms=wait.until_ms,
                deadline_ms=wait.deadline_ms,
                record=None if effect.step is None else record,
                owner=effect.owner,
            ),
        ),
        is_apart=True,
    )
    joined: Joined | None = yield from commit_fenced(run, join)
    while joined is None:  # nobody holds the key; or whoever did has just given it up
        _, joined = yield from commit_fenced(run, start, join)
    if joined.is_sooner:
        assert start.queue_name is not None
        engine.enqueued(start.queue_name, is_delayed=True)
    if joined.outcome is Outcome.REFUSED:
        return (yield from _refuse(engine, start, run, effect.step))
    if joined.outcome is Outcome.EXISTS:
        existing: StatusRow | None = yield Read(engine.db.workflows.get, (joined.workflow_id,))
        if existing is not None:
            check_same(start, existing, target)
        return (yield from _record(engine, run, effect.step and record(joined.workflow_id))) or joined.workflow_id
    if joined.recorded.existing is not None:  # by an earlier execution of this very operation
        return _replayed(engine, joined.recorded.existing)
    effect.settle(joined.recorded)
    return joined.workflow_id


def _refuse(engine: Engine, start: StartWorkflow, run: Run | None, step: RecordStep | None) -> Flow[str]:
    """Record in the workflow, if it is one that calls, that the key is taken: also when it is free it stays so."""
    assert start.queue_name is not None
    assert start.deduplication_id is not None
    error = DBOSQueueDeduplicatedError(start.workflow_uuid, start.queue_name, start.deduplication_id)
    if step is not None:
        text, name = engine.serialization.dump_error(error)
        step = step._replace(error=text, serialization=name)
    recorded = yield from _record(engine, run, step)
    if recorded is not None:
        return recorded
    raise error


def _record(engine: Engine, run: Run | None, step: RecordStep | None) -> Flow[str | None]:
    """Record an operation that has no effect; returns what an earlier execution made of it, if it did."""
    if run is None or step is None:
        return None
    existing = yield from commit_step(run, step)
    return None if existing is None else _replayed(engine, existing)


def _replayed(engine: Engine, row: StepRow) -> str:
    """What an earlier execution has recorded."""
    workflow_id: str = conclude(replayed(engine, row))  # or an error, for the driver to raise
    return workflow_id
