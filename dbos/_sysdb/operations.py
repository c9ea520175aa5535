"""What can be written to the system database, as values.

An operation says *what* is to become true; the committer decides in which transaction, a dialect in which statement.
Every operation may be executed twice with the same effect as once, because a connection can be lost after COMMIT was
sent: rows carry the tokens by which an operation recognises its own earlier execution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dbos._sysdb.rows import StatusRow, StepRow

__all__ = [
    "APPLIED",
    "CREATED",
    "RECORDED",
    "START_COLUMNS",
    "Call",
    "Operation",
    "OutcomeRecorded",
    "RecordOutcome",
    "RecordStep",
    "StartWorkflow",
    "Started",
    "StepRecorded",
    "call",
]


class RecordStep(NamedTuple):
    """Record one operation of a run; answered with :class:`StepRecorded`.

    Written only under a valid ``run_token`` while the workflow is PENDING or CANCELLED: a step that was running when
    the cancellation came is still recorded, so that a resumed workflow does not run it again.
    """

    workflow_uuid: str
    function_id: int
    function_name: str
    output: str | None
    error: str | None
    child_workflow_id: str | None
    started_at_epoch_ms: int | None
    completed_at_epoch_ms: int | None
    serialization: str | None
    run_token: str

    @property
    def size(self) -> int:
        """Characters of payload, which bound a batch."""
        return len(self.output or "") + len(self.error or "")

    @property
    def row(self) -> StepRow:
        """The row that it writes."""
        return StepRow(*self[:-1])


class StartWorkflow(NamedTuple):
    """Create a workflow's row, unless its id is taken; answered with :class:`Started`.

    ``run_token`` is both the token of the first run and the mark by which a repeated execution recognises its own row.
    A child is created only while its parent is PENDING under ``parent_step.run_token``; ``parent_step``, the parent's
    record of the start, is written in the same transaction if the child is created, and not otherwise.
    """

    workflow_uuid: str
    status: str
    name: str
    class_name: str | None
    config_name: str | None
    authenticated_user: str | None
    assumed_role: str | None
    authenticated_roles: str | None
    executor_id: str | None
    created_at: int
    application_version: str | None
    application_id: str | None
    recovery_attempts: int
    queue_name: str | None
    workflow_timeout_ms: int | None
    workflow_deadline_epoch_ms: int | None
    inputs: str
    deduplication_id: str | None
    priority: int
    queue_partition_key: str | None
    parent_workflow_id: str | None
    serialization: str
    delay_until_epoch_ms: int | None
    run_token: str
    owner_instance: str | None
    application_name: str | None
    attributes: str | None
    parent_step: RecordStep | None

    @property
    def size(self) -> int:
        """Characters of payload, which bound a batch."""
        return len(self.inputs)


class RecordOutcome(NamedTuple):
    """Finish a run; answered with :class:`OutcomeRecorded`. Applied only to a PENDING row under ``run_token``."""

    workflow_uuid: str
    run_token: str
    status: str
    output: str | None
    error: str | None
    outcome_serialization: str | None
    completed_at: int

    @property
    def size(self) -> int:
        """Characters of payload, which bound a batch."""
        return len(self.output or "") + len(self.error or "")


class Call(NamedTuple):
    """Run a store's verb within the batch's transaction; answered with what the verb returns.

    For everything that is not hot: the verb is written once, in portable SQL, and must be repeatable. One that is
    ``apart`` touches what no run owns, and takes its time: it is committed where it keeps no run waiting. One that
    is ``single`` executes one statement, which is a transaction by itself if nothing else is in the batch.
    """

    verb: Callable[..., Any]
    arguments: tuple[Any, ...]
    is_apart: bool = False
    is_single: bool = False

    @property
    def size(self) -> int:
        """Characters of payload, which bound a batch: the texts among the arguments, and what tells its size."""
        return sum(
            len(argument) if type(argument) is str else getattr(argument, "size", 0) for argument in self.arguments
        )


START_COLUMNS = StartWorkflow._fields[:-1]  # the fields that are columns of the row

Operation = StartWorkflow | RecordStep | RecordOutcome | Call


class Started(NamedTuple):
    """``existing`` is None if the row was created; otherwise it is the row that holds the id.

    If another workflow holds the de-duplication id in the queue, that one is the ``holder``. All are empty (``created``
    False, ``existing`` and ``holder`` None) if the parent was cancelled or no longer owns its run.
    """

    created: bool
    existing: StatusRow | None
    holder: StatusRow | None = None


CREATED = Started(created=True, existing=None)


class StepRecorded(NamedTuple):
    """``status`` is the workflow's status, or None if the run's token is no longer valid (nothing was written).

    ``existing`` is the record that was there first; the rightful owner adopts it.
    """

    status: str | None
    existing: StepRow | None


RECORDED = StepRecorded("PENDING", None)


class OutcomeRecorded(NamedTuple):
    """Whether the outcome was applied."""

    is_applied: bool


APPLIED = OutcomeRecorded(is_applied=True)


def call(verb: Callable[..., Any], *arguments: Any) -> Call:
    """Shorthand for :class:`Call`; the connection is passed to ``verb`` first."""
    return Call(verb, arguments)
