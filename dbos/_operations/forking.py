"""Forking: beginning a workflow anew from one of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dbos._context import Context, checked_workflow_id, current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Read
from dbos._engine.start import take_assigned_id
from dbos._error import DBOSException, DBOSNonExistentWorkflowError, DBOSWorkflowIDInUseError
from dbos._ids import derived_id, new_token, new_workflow_id
from dbos._operations.admission import check_partition, checked_place, known_config
from dbos._operations.auditing import action_of
from dbos._operations.recording import recorded_by_id, refuse_in_transaction
from dbos._operations.workflows import get_workflow_status
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import call
from dbos._sysdb.stores.forks import Fork, Forked

__all__ = ["Beginning", "ForkOptions", "begin_forking", "checked_step", "fork_workflow", "make_forks"]

FORK = "DBOS.forkWorkflow"
MAX_STEP = 2**31 - 1  # what the column holds
MAX_TIMEOUT_S = 1e11  # three thousand years; in milliseconds it still fits the column


class Beginning(NamedTuple):
    """Where a fork begins: at a function id of its source, with some of its children started anew."""

    source: str
    start_step: int
    restarted_children: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkOptions:
    """How forks are made; checked when it is made.

    Raises:
        DBOSException: an option is not what it can be.
    """

    application_version: str | None = None
    queue_name: str | None = None
    queue_partition_key: str | None = None
    replacement_children: Mapping[str, str] | None = None
    timeout_seconds: float | None = None
    queue: str = field(init=False)
    partition_key: str | None = field(init=False)
    timeout_ms: int | None = field(init=False)

    def __post_init__(self) -> None:
        queue, key = checked_place(self.queue_name, self.queue_partition_key)
        timeout_s = self.timeout_seconds
        is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
        if timeout_s is not None and not (is_number and 0 < timeout_s <= MAX_TIMEOUT_S):
            raise DBOSException(f"Invalid timeout_seconds {timeout_s!r}: it is a number of seconds greater than 0.")
        object.__setattr__(self, "queue", queue)
        object.__setattr__(self, "partition_key", key)
        object.__setattr__(self, "timeout_ms", None if timeout_s is None else math.ceil(timeout_s * 1000))


def checked_step(name: str, value: object) -> int:
    """A function id, or 0, which stands for the beginning as well.

    Raises:
        DBOSException: it is none.
    """
    if type(value) is not int or not 0 <= value <= MAX_STEP:
        raise DBOSException(f"Invalid {name} {value!r}: it is the function id of an operation, from 1 on.")
    return value


def fork_workflow(
    engine: Engine,
    workflow_id: str,
    start_step: int,
    *,
    application_version: str | None = None,
    queue_name: str | None = None,
    queue_partition_key: str | None = None,
    replacement_children: dict[str, str] | None = None,
    timeout_seconds: float | None = None,
) -> Flow[str]:
    """Begin a workflow anew, under a new id, from one of its steps: what was recorded before is taken over.

    The source may be finished, failed, cancelled or still running; nothing of it changes. Of what it has recorded,
    operations with a lower function id than ``start_step`` are copied, with the events and streams that they wrote;
    timeout, priority and de-duplication id are not. The fork gets the id of an enclosing :class:`SetWorkflowID` and
    the attributes of an enclosing :class:`SetWorkflowAttributes`, by default those of the source; to fork the same
    workflow to the same id again returns the fork that is there.

    Args:
        workflow_id: The id of the workflow to fork.
        start_step: The function id of the first operation to execute; 1 for all, see :meth:`list_workflow_steps`.
        application_version: The version that is to run it, by default the latest.
        queue_name: The queue to enqueue it in, by default one of the library that runs it at once.
        queue_partition_key: Its partition of that queue.
        replacement_children: Ids of workflows to take the place of children, by the ids of those; what the source
            got from a child that is replaced is asked of the other one.
        timeout_seconds: How long the fork may take from its start, in seconds; more than 0.

    Returns:
        A handle of the fork.

    Raises:
        DBOSNonExistentWorkflowError: there is no such workflow.
        DBOSWorkflowIDInUseError: the id that was assigned to the fork belongs to another workflow.
        DBOSException: ``start_step`` is no function id, or an id, the queue's name, the key or the timeout cannot be
            stored.
        Exception: the queue is partitioned and no key is given, or it is not partitioned and one is.
        AssertionError: it is called from within a step.
    """
    options = ForkOptions(
        application_version=application_version,
        queue_name=queue_name,
        queue_partition_key=queue_partition_key,
        replacement_children=replacement_children,
        timeout_seconds=timeout_seconds,
    )
    beginning = Beginning(checked_workflow_id(workflow_id), checked_step("start_step", start_step))

    assigned_id = begin_forking(FORK)

    def fork(function_id: int | None) -> Flow[str]:
        forked = yield from make_forks(engine, "fork", [beginning], options, assigned_id, function_id)
        return forked[0]

    forked_id = yield from recorded_by_id(engine, FORK, fork)
    yield from get_workflow_status(engine, forked_id)  # which a handle that is retrieved records
    return forked_id


def begin_forking(operation: str) -> str | None:
    """Begin a call that forks; returns the id that is assigned to its first fork, if one is.

    Also if the forks were recorded earlier: it must not fall to the next one.

    Raises:
        AssertionError: it is called from within a step.
        Exception: it is called within a transaction.
    """
    refuse_in_transaction(operation)
    context = current_context() or Context()
    assert context.step_id is None, "A workflow cannot be forked from within a step: fork it from the workflow"
    return take_assigned_id(context)


def make_forks(
    engine: Engine,
    action_name: str,
    beginnings: Sequence[Beginning],
    options: ForkOptions,
    assigned_id: str | None,
    function_id: int | None,
) -> Flow[list[str]]:
    """Make forks in one transaction, all or none; returns their ids.

    Raises:
        DBOSNonExistentWorkflowError: there is no such source.
        DBOSWorkflowIDInUseError: the id that was assigned belongs to another workflow.
        Exception: the queue does not allow them.
    """
    config = yield from known_config(engine, options.queue)
    if config is not None:
        check_partition(config, options.partition_key)
    now_ms, action = engine.db.now_ms(), action_of(engine, action_name)
    context = current_context() or Context()
    ids = [_new_id(context, number, function_id, now_ms) for number in range(len(beginnings))]
    if assigned_id is not None and ids:
        ids[0] = assigned_id
    requests = [
        Fork(
            source=beginning.source,
            workflow_id=workflow_id,
            token=new_token(),
            start_step=beginning.start_step,
            queue_name=options.queue,
            partition_key=options.partition_key,
            application_version=options.application_version,
            timeout_ms=options.timeout_ms,
            attributes=context.attributes,
            replacement_children=options.replacement_children or {},
            restarted_children=beginning.restarted_children,
            now_ms=now_ms,
        )
        for beginning, workflow_id in zip(beginnings, ids, strict=True)
    ]

    def fork(connection: Connection) -> list[Forked]:
        made = []
        for request in requests:
            forked = engine.db.forks.fork(connection, request)
            made.append(forked)
            if forked.is_new:
                engine.db.actions.note(
                    connection,
                    action,
                    workflow_ids=[request.source],
                    fork=request.workflow_id,
                    start_step=request.start_step,
                )
        return made

    yield from _check_sources(engine, requests)
    made: list[Forked] = (yield Commit((call(fork),)))[0]
    engine.enqueued(options.queue)
    for (row, _), request in zip(made, requests, strict=True):
        if row is None:
            raise DBOSNonExistentWorkflowError("fork source", request.source)
        if row.forked_from != request.source:
            raise DBOSWorkflowIDInUseError(row.workflow_uuid, row.status, row.name)
    return ids


def _check_sources(engine: Engine, requests: Sequence[Fork]) -> Flow[None]:
    """Refuse what cannot be forked before anything is written: what is made together stays together."""
    if len(requests) < 2:
        return
    existing: list[str] = yield Read(engine.db.workflows.existing, ([request.source for request in requests],))
    known = set(existing)
    for request in requests:
        if request.source not in known:
            raise DBOSNonExistentWorkflowError("fork source", request.source)


def _new_id(context: Context, number: int, function_id: int | None, now_ms: int) -> str:
    if context.run is None or function_id is None:
        return new_workflow_id(now_ms)
    # The same each time, so that a process that dies before this is recorded leaves no second fork.
    own_id = f"{context.run.workflow_id}-{function_id}"
    return own_id if number == 0 else derived_id(f"{own_id}/{number}")  # what is appended to it, children have
