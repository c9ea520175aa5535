"""Enqueueing: what is checked before a workflow enters a queue, and changing when a delayed one is ready."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, NotRequired, TypedDict

from dbos._context import (
    AssignedId,
    Context,
    Delay,
    EnqueueChoices,
    SetWorkflowID,
    SetWorkflowTimeout,
    checked_workflow_id,
    current_context,
)
from dbos._engine import enqueue as engine_enqueue
from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow
from dbos._engine.start import QueueOptions, Target, target_of
from dbos._error import DBOSException
from dbos._operations.admission import check_partition, checked_place, known_config
from dbos._operations.auditing import action_of, audited
from dbos._operations.recording import recorded
from dbos._operations.workflows import find_function
from dbos._queue_config import QueueConfig, checked_key
from dbos._serialization import WorkflowSerializationFormat
from dbos._serialization.attributes import dump_attributes
from dbos._sysdb.operations import call
from dbos._sysdb.stores.delays import DelaysStore
from dbos._types import DuplicationPolicy

__all__ = [
    "Arguments",
    "EnqueueOptions",
    "NamedRequest",
    "enqueue",
    "enqueue_from_outside",
    "enqueue_with_options",
    "named_request",
    "set_workflow_delay",
]

MAX_CLASS_NAME_BYTES = 255  # what the column holds

Arguments = tuple[Sequence[Any], dict[str, Any]]  # of one call, by position and by name
FindConfig = Callable[[Engine], Flow[QueueConfig | None]]


class EnqueueOptions(TypedDict):
    """What to enqueue by name, and how; the names are those that functions, classes and instances are registered by.

    Args:
        workflow_name: The registered name of the workflow; required.
        queue_name: The queue, which need not exist yet; required.
        workflow_id: The workflow's ID; by default a generated one.
        app_version: The application version that may run it; by default the latest.
        workflow_timeout: How long it may run from its start, in seconds.
        delay_seconds: Do not run it before so many seconds have passed.
        deduplication_id: While it waits or runs, no other can be enqueued with this ID in the queue.
        duplication_policy: If ``deduplication_id`` is held, ``"reject"`` it (the default) or ``"return-existing"``.
        priority: From 1, which is first, to 2147483647; what has none runs before all that have one.
        max_recovery_attempts: Accepted for compatibility; the registered workflow has the limit.
        queue_partition_key: The partition of the queue.
        authenticated_user: The user it acts for; by default the one that enqueues it.
        authenticated_roles: The roles of that user.
        serialization_type: The format of its arguments.
        class_name: The registered name of its class, for class and instance methods.
        instance_name: The ``config_name`` of its configured instance, for instance methods.
        attributes: What to attach to it, see :meth:`DBOS.update_workflow_attributes`.
        application_name: The application that is to run it, of several on one database; by default the one that
            enqueues it.
    """

    workflow_name: str
    queue_name: str
    workflow_id: NotRequired[str]
    app_version: NotRequired[str]
    workflow_timeout: NotRequired[float]
    delay_seconds: NotRequired[float]
    deduplication_id: NotRequired[str]
    duplication_policy: NotRequired[DuplicationPolicy]
    priority: NotRequired[int]
    max_recovery_attempts: NotRequired[int]
    queue_partition_key: NotRequired[str]
    authenticated_user: NotRequired[str]
    authenticated_roles: NotRequired[list[str]]
    serialization_type: NotRequired[WorkflowSerializationFormat]
    class_name: NotRequired[str]
    instance_name: NotRequired[str]
    application_name: NotRequired[str | None]
    attributes: NotRequired[dict[str, Any] | None]


# -- enqueueing --------------------------------------------------------------------------------------------------------


def enqueue(
    engine: Engine,
    queue_name: str,
    find_config: FindConfig | None,
    func: Callable[..., Any],
    calls: Sequence[Arguments],
) -> Flow[list[str]]:
    """Enqueue calls of a workflow, step or transaction in one transaction, in this order; returns the workflows' ids.

    ``find_config`` finds what the queue allows; None for a queue that need not exist.

    Raises:
        DBOSWorkflowFunctionNotFoundError: ``func`` is not decorated.
        Exception: the queue does not allow the options that are set.
        DBOSQueueDeduplicatedError: another workflow holds the de-duplication id.
        DBOSConflictingWorkflowError: the workflow id belongs to another function, class or instance.
    """
    context = _enqueueing_context()
    function, receiver = find_function(engine, func)
    choices = context.choices
    queue = QueueOptions(queue_name=queue_name, application_version=choices.app_version or engine.application_version)

    def targets() -> list[Target]:
        return [target_of(function, (*receiver, *args), kwargs) for args, kwargs in calls]

    if find_config is None:
        find_config = partial(known_config, queue_name=queue_name)
    return (yield from _enqueue(engine, function.name, len(calls), targets, queue, choices, context, find_config))


def enqueue_with_options(
    engine: Engine, options: EnqueueOptions, args: Sequence[Any], kwargs: dict[str, Any]
) -> Flow[str]:
    """Enqueue a workflow by its name; returns its id.

    Raises:
        KeyError: ``workflow_name`` or ``queue_name`` is missing.
        DBOSException: an option is unknown, or not what it can be.
        Exception: the queue does not allow the options that are set.
        DBOSQueueDeduplicatedError: another workflow holds the de-duplication id.
        DBOSConflictingWorkflowError: the workflow id belongs to another function, class or instance.
    """
    request = named_request(options, args, kwargs, _enqueueing_context())
    find_config = partial(known_config, queue_name=request.queue.queue_name)
    return (yield from _enqueue_named(engine, request, find_config))


def enqueue_from_outside(engine: Engine, /, options: EnqueueOptions, *args: Any, **kwargs: Any) -> Flow[str]:
    """Enqueue a workflow by its name. It is durable when this returns, and is begun by a process that has its code.

    Neither the workflow nor the queue need exist yet: it waits for both.

    Args:
        options: What to enqueue, and how.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        A handle to await it with. If its ID exists, that is a handle of the existing one.

    Raises:
        KeyError: ``workflow_name`` or ``queue_name`` is missing.
        DBOSException: an option is unknown, or not what it can be.
        DBOSQueueDeduplicatedError: another workflow holds the deduplication ID.
        DBOSConflictingWorkflowError: the workflow ID belongs to another function, class or instance.
    """
    # What the queue allows is the application's affair.
    return (yield from _enqueue_named(engine, named_request(options, args, kwargs, Context()), None))


def _enqueue_named(engine: Engine, request: NamedRequest, find_config: FindConfig | None) -> Flow[str]:
    target, queue, choices, context = request
    ids = yield from _enqueue(engine, target.name, 1, lambda: [target], queue, choices, context, find_config)
    return ids[0]


class NamedRequest(NamedTuple):
    """What :class:`EnqueueOptions` and arguments ask for, checked."""

    target: Target
    queue: QueueOptions
    choices: EnqueueChoices
    context: Context

    def placed(self, engine: Engine) -> QueueOptions:
        """Where it is enqueued and how, from now on."""
        return _placed(engine, self.queue, self.choices)


def named_request(
    options: EnqueueOptions, args: Sequence[Any], kwargs: dict[str, Any], context: Context
) -> NamedRequest:
    """What to enqueue by name, on behalf of ``context``.

    Raises:
        KeyError: ``workflow_name`` or ``queue_name`` is missing.
        DBOSException: an option is unknown, or not what it can be.
    """
    _check_keys(options)
    class_name, config_name = options.get("class_name"), options.get("instance_name")
    target = Target(
        name=checked_key("workflow_name", options["workflow_name"]),
        class_name=None if class_name is None else checked_key("class_name", class_name, MAX_CLASS_NAME_BYTES),
        config_name=None if config_name is None else checked_key("instance_name", config_name, MAX_CLASS_NAME_BYTES),
        args=tuple(args),
        kwargs=kwargs,
        format=options.get("serialization_type"),
        max_recovery_attempts=options.get("max_recovery_attempts"),
    )
    choices = _choices_of(options)
    application = options.get("application_name")
    queue = QueueOptions(
        queue_name=options["queue_name"],
        application_version=choices.app_version,
        application_name=None if application is None else checked_key("application_name", application),
    )
    return NamedRequest(target, queue, choices, _context_of(options, context))


def _enqueueing_context() -> Context:
    context = current_context() or Context()
    assert context.step_id is None, "A workflow cannot be enqueued from within a step: enqueue it from the workflow"
    return context


def _check_keys(options: EnqueueOptions) -> None:
    known = EnqueueOptions.__annotations__
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            advice = f"Did you mean {near[0]!r}?" if near else "See dbos.EnqueueOptions for the options there are."
            raise DBOSException(f"Unknown option {key!r} of EnqueueOptions. {advice}")
    missing = [name for name in ("workflow_name", "queue_name") if options.get(name) is None]
    if missing:
        raise KeyError(f"EnqueueOptions requires workflow_name and queue_name: {' and '.join(missing)} must be given")


def _context_of(options: EnqueueOptions, context: Context) -> Context:
    changes: dict[str, Any] = {}
    workflow_id, timeout_s = options.get("workflow_id"), options.get("workflow_timeout")
    if workflow_id is not None:
        changes["assigned_id"] = AssignedId(SetWorkflowID(workflow_id).wfid)
    if timeout_s is not None:
        changes["timeout_ms"] = SetWorkflowTimeout(timeout_s).timeout_ms
    if options.get("authenticated_user") is not None:
        changes |= {"authenticated_user": options["authenticated_user"], "authenticated_roles": None}
        changes["assumed_role"] = None
    if options.get("authenticated_roles") is not None:
        changes["authenticated_roles"] = list(options["authenticated_roles"]) or None
    if options.get("attributes") is not None:
        changes["attributes"] = dump_attributes(options["attributes"])
    return replace(context, **changes)


def _choices_of(options: EnqueueOptions) -> EnqueueChoices:
    delay_s = options.get("delay_seconds")
    try:
        return EnqueueChoices(
            deduplication_id=options.get("deduplication_id"),
            priority=options.get("priority"),
            app_version=options.get("app_version"),
            queue_partition_key=options.get("queue_partition_key"),
            delay=None if delay_s is None else Delay(delay_s),
            duplication_policy=options.get("duplication_policy"),
        )
    except DBOSException:
        raise
    except Exception as error:  # by a context manager, a priority is refused with a plain exception
        raise DBOSException(str(error)) from error


def _enqueue(
    engine: Engine,
    name: str,
    count: int,
    make_targets: Callable[[], list[Target]],
    queue: QueueOptions,
    choices: EnqueueChoices,
    context: Context,
    find_config: FindConfig | None,
) -> Flow[list[str]]:
    """Both forms; ``find_config`` finds what the queue allows, None if it allows everything."""
    queue = _placed(engine, queue, choices)
    if count > 1 and choices.deduplication_id is not None:
        raise DBOSException(
            f"{count} workflows cannot be enqueued with one deduplication_id: the first would keep out the others."
        )
    function_ids: list[int] = []
    if context.run is not None:
        function_ids = [context.run.next_function_id() for _ in range(count)]
        context.run.check_interrupted()
    ids = dict(enumerate(engine_enqueue.replay(engine, context, name, function_ids)))
    missing = [number for number in range(count) if ids.get(number) is None]
    if missing:
        config = None if find_config is None else (yield from find_config(engine))
        if config is not None:
            _check_allowed(config, choices)
        targets = make_targets()
        enqueued = yield from engine_enqueue.enqueue(
            engine,
            [targets[number] for number in missing],
            queue,
            context,
            [function_ids[number] for number in missing] if function_ids else [],
            choices.duplication_policy or "reject",
        )
        ids |= dict(zip(missing, enqueued, strict=True))
    return [workflow_id for number in range(count) if (workflow_id := ids[number]) is not None]


def _placed(engine: Engine, queue: QueueOptions, choices: EnqueueChoices) -> QueueOptions:
    queue_name, partition_key = checked_place(queue.queue_name, choices.queue_partition_key)
    return queue._replace(
        queue_name=queue_name,
        deduplication_id=choices.deduplication_id,
        priority=choices.priority or 0,
        partition_key=partition_key,
        delay_until_ms=None if choices.delay is None else choices.delay.until_ms(engine.db.now_ms()),
    )


def _check_allowed(config: QueueConfig, choices: EnqueueChoices) -> None:
    """Refuse options that have no effect in a queue, or would leave the workflow in it for ever.

    Raises:
        Exception: the queue does not allow them.
    """
    name, key = config.name, choices.queue_partition_key
    if choices.priority is not None and not config.has_priorities:
        raise Exception(
            f"Priority is not enabled for queue {name}. Setting priority will not have any effect. "
            "Declare it with priority_enabled=True."
        )
    check_partition(config, key)
    if key is not None and choices.deduplication_id is not None:
        raise Exception(
            f"Deduplication is not supported for partitioned queues: queue {name} is partitioned, and the workflow has "
            f"the deduplication ID {choices.deduplication_id}"
        )


# -- delays ------------------------------------------------------------------------------------------------------------


def set_workflow_delay(
    engine: Engine,
    workflow_id: str,
    *,
    delay_seconds: float | None = None,
    delay_until_epoch_ms: int | None = None,
) -> Flow[None]:
    """Change when a delayed workflow becomes ready to run; one that is not delayed (any more) is left alone.

    Args:
        workflow_id: The workflow's id.
        delay_seconds: So many seconds from now.
        delay_until_epoch_ms: At this time, in milliseconds since the epoch.

    Raises:
        DBOSException: not exactly one of the two is given, it is no time, or no workflow can have this id.
    """
    workflow_id = checked_workflow_id(workflow_id)
    if (delay_seconds is None) == (delay_until_epoch_ms is None):
        raise DBOSException("set_workflow_delay takes either delay_seconds or delay_until_epoch_ms.")
    delay = None if delay_seconds is None else Delay(delay_seconds)
    if delay_until_epoch_ms is not None and not _is_time(delay_until_epoch_ms):
        raise DBOSException(
            f"Invalid delay_until_epoch_ms {delay_until_epoch_ms!r}: it is a whole number of milliseconds, not less "
            "than 0."
        )

    def change() -> Flow[None]:
        now_ms = engine.db.now_ms()
        until_ms = delay_until_epoch_ms if delay is None else delay.until_ms(now_ms)
        action = action_of(engine, "set_delay", delay_until_epoch_ms=until_ms)
        set_delay = audited(engine, action, DelaysStore.set, workflow_id=workflow_id)
        results = yield Commit((call(set_delay, workflow_id, until_ms, now_ms),))
        queue_name: str | None = results[0]
        if queue_name is not None:
            engine.enqueued(queue_name, is_delayed=True)

    yield from recorded(engine, "DBOS.setWorkflowDelay", change())


def _is_time(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
