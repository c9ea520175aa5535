"""Debounced workflows: delayed ones that further calls put off and give other arguments, until they begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import RECORDED, RecordStep, StartWorkflow, StepRecorded
from dbos._sysdb.rows import columns
from dbos._sysdb.stores.runs import Owner, RunsStore

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect

__all__ = ["TOKEN_PREFIX", "DebouncedCall", "DebouncesStore", "Joined", "Outcome"]

# By which calls know a workflow that another one of the same transaction has created and not yet joined.
TOKEN_PREFIX = "debounced "


class _Row(NamedTuple):
    """What decides whether a call can join a workflow."""

    workflow_uuid: str
    status: str
    name: str
    class_name: str | None
    config_name: str | None
    application_name: str | None
    queue_name: str | None
    deduplication_id: str | None
    delay_until_epoch_ms: int | None
    owner_xid: str | None
    is_debounced: bool | None
    debounce_deadline_epoch_ms: int | None


LOCK = f"""
-- Who holds a key, and some workflows by their ids.
SELECT {columns(_Row)} FROM dbos.workflow_status w
WHERE workflow_uuid IN :ids OR (queue_name = :queue_name AND deduplication_id = :deduplication_id)
ORDER BY workflow_uuid {{lock}}
"""

PUSH = """
-- The token tells by whom it was pushed last. While it waits, nobody else looks at it.
UPDATE dbos.workflow_status
SET inputs = :inputs, serialization = :serialization, application_version = :application_version,
    delay_until_epoch_ms = :until_ms, is_debounced = TRUE, debounce_deadline_epoch_ms = :deadline_ms,
    owner_xid = :token, updated_at = :now_ms
WHERE workflow_uuid = :workflow_id
"""

DELETE = "DELETE FROM dbos.workflow_status WHERE workflow_uuid = :workflow_id AND owner_xid = :token"


@dataclass(slots=True, kw_only=True)
class DebouncedCall:
    """One call of a debouncer.

    ``start`` is the workflow that it begins if it is the first of its group, and whose inputs count if it is the last;
    it holds the key as its de-duplication id, and its token begins with :data:`TOKEN_PREFIX`. ``until_ms`` and
    ``deadline_ms`` say, from the time of the commit, how long this call puts the workflow off, and how long its group
    may. ``record`` makes the record of a workflow's operation from the id that it returns; ``owner`` is the run of a
    step that it is called in.

    It is good for one call, which may be executed more than once.
    """

    start: StartWorkflow
    now_ms: Callable[[], int]
    until_ms: Callable[[int], int]
    deadline_ms: Callable[[int], int | None]
    record: Callable[[str], RecordStep] | None = None
    owner: Owner | None = None
    joined_id: str | None = field(default=None, init=False)

    @property
    def size(self) -> int:
        """Characters of payload, which bound a batch."""
        return self.start.size


class Outcome(Enum):
    """What became of a call."""

    JOINED = "its arguments are those that count now"
    EXISTS = "the id that it was to have belongs to a workflow that does not wait for it"
    REFUSED = "the key is held by something else"


class Joined(NamedTuple):
    """The workflow that a call has met.

    If it was to be recorded, it has joined only if ``recorded`` says that this was done. ``is_sooner`` says that the
    workflow may begin before the time that was known until now.
    """

    outcome: Outcome
    workflow_id: str
    is_sooner: bool = False
    recorded: StepRecorded = RECORDED


class DebouncesStore:
    """The debounced ones in the ``workflow_status`` table."""

    def __init__(self, dialect: Dialect, runs: RunsStore) -> None:
        self._runs = runs
        self._lock = LOCK.replace("{lock}", dialect.skip_locked.removesuffix("SKIP LOCKED"))

    def join(self, connection: Connection, call: DebouncedCall) -> Joined | None:
        """Join the workflow that holds the key, be it one that was created just now for this call; None if none does.

        It is put off, within the bound of its group, and gets the inputs of the call.
        """
        start = call.start
        key = (start.queue_name, start.deduplication_id)
        rows = self._find(connection, call)
        earlier = rows.get(call.joined_id or start.workflow_uuid)
        if earlier is not None and earlier.owner_xid == start.run_token and earlier.is_debounced:
            return Joined(Outcome.JOINED, earlier.workflow_uuid, is_sooner=True)  # whose answer was lost
        own = rows.get(start.workflow_uuid)
        if own is not None and (own.queue_name, own.deduplication_id) != key:
            return Joined(Outcome.EXISTS, own.workflow_uuid)
        holder = next((row for row in rows.values() if (row.queue_name, row.deduplication_id) == key), None)
        if holder is None:
            return None
        if not _can_join(start, holder):
            return Joined(Outcome.REFUSED, holder.workflow_uuid)
        recorded = self._runs.may_act(connection, call.record and call.record(holder.workflow_uuid), call.owner)
        is_sooner = False
        # What it has just created is found by its id, should the operation be repeated by another execution.
        is_own = holder.owner_xid == start.run_token
        if recorded is RECORDED or (is_own and recorded.existing is not None):
            is_sooner = self._push(connection, call, holder)
        elif is_own:  # of a run that may not act any more
            connection.run(DELETE, workflow_id=holder.workflow_uuid, token=start.run_token)
        return Joined(Outcome.JOINED, holder.workflow_uuid, is_sooner, recorded)

    def _find(self, connection: Connection, call: DebouncedCall) -> dict[str, _Row]:
        start = call.start
        ids = {start.workflow_uuid, call.joined_id or start.workflow_uuid}
        found = connection.all(
            self._lock, ids=sorted(ids), queue_name=start.queue_name, deduplication_id=start.deduplication_id
        )
        return {row.workflow_uuid: row for row in map(_Row._make, found)}

    @staticmethod
    def _push(connection: Connection, call: DebouncedCall, group: _Row) -> bool:
        """Put a workflow off; returns whether it may begin before it was to begin until now."""
        is_new = not group.is_debounced
        now_ms = call.now_ms()
        deadline_ms = call.deadline_ms(now_ms) if is_new else group.debounce_deadline_epoch_ms
        until_ms = call.until_ms(now_ms)
        if deadline_ms is not None:
            until_ms = min(until_ms, deadline_ms)
        connection.run(
            PUSH,
            workflow_id=group.workflow_uuid,
            inputs=call.start.inputs,
            serialization=call.start.serialization,
            application_version=call.start.application_version,
            until_ms=until_ms,
            deadline_ms=deadline_ms,
            token=call.start.run_token,
            now_ms=now_ms,
        )
        call.joined_id = group.workflow_uuid
        return is_new or group.delay_until_epoch_ms is None or until_ms < group.delay_until_epoch_ms


def _can_join(start: StartWorkflow, holder: _Row) -> bool:
    """Whether a call is for the workflow that holds its key, and this still waits for calls."""
    is_same = (holder.name, holder.class_name, holder.config_name) == (start.name, start.class_name, start.config_name)
    applications = {holder.application_name, start.application_name} - {None}  # None is nobody's in particular
    waits = holder.status == "DELAYED" and (holder.owner_xid or "").startswith(TOKEN_PREFIX)
    return waits and is_same and len(applications) < 2
