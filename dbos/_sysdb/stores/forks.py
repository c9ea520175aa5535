"""Forks: a workflow begun anew with a part of what another one has recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dbos._sysdb.connection import Connection
from dbos._sysdb.rows import StatusRow, columns

__all__ = ["Fork", "Forked", "ForksStore", "Origin"]

SELECT = f"SELECT {columns(StatusRow)} FROM dbos.workflow_status WHERE workflow_uuid = :id"

_COPIED = (
    "name, class_name, config_name, application_id, application_name, authenticated_user, authenticated_roles, "
    "assumed_role, inputs, serialization"
)

INSERT = f"""
-- A workflow like the source, that nobody has begun.
INSERT INTO dbos.workflow_status
  ({_COPIED}, workflow_uuid, status, application_version, queue_name, queue_partition_key, forked_from, owner_xid,
   workflow_timeout_ms, attributes, created_at, updated_at, recovery_attempts)
SELECT {_COPIED}, :id, 'ENQUEUED', :application_version, :queue_name, :partition_key, :source, :token,
  :timeout_ms, COALESCE(:attributes, attributes), :now_ms, :now_ms, 0
FROM dbos.workflow_status WHERE workflow_uuid = :source
ON CONFLICT DO NOTHING
"""

HOLD_SOURCE = """
-- What is copied in several statements must not be deleted between two of them.
UPDATE dbos.workflow_status SET was_forked_from = was_forked_from WHERE workflow_uuid = :source
"""

MARK_SOURCE = """
UPDATE dbos.workflow_status SET was_forked_from = TRUE WHERE workflow_uuid = :source AND NOT was_forked_from
"""

COPY_STEPS = """
-- What the source has recorded before the first step that is to run. What it got from a child that is replaced is left
-- out, so that the fork asks the one in its place; and all about a child that is to be started anew.
INSERT INTO dbos.operation_outputs
  (workflow_uuid, function_id, function_name, output, error, child_workflow_id, started_at_epoch_ms,
   completed_at_epoch_ms, serialization)
SELECT :id, function_id, function_name, output, error, child_workflow_id, started_at_epoch_ms,
  completed_at_epoch_ms, serialization
FROM dbos.operation_outputs
WHERE workflow_uuid = :source AND function_id < :start_step
  AND NOT (function_name = 'DBOS.getResult' AND COALESCE(child_workflow_id, '') IN :replaced)
  AND NOT (COALESCE(child_workflow_id, '') IN :restarted)
"""

ORIGINS = """
-- What forks may begin at, without the values.
SELECT workflow_uuid, function_id, function_name, error IS NOT NULL, child_workflow_id FROM dbos.operation_outputs
WHERE workflow_uuid IN :ids ORDER BY workflow_uuid, function_id
"""

CHILDREN = """
SELECT function_id, child_workflow_id FROM dbos.operation_outputs
WHERE workflow_uuid = :id AND child_workflow_id IN :replaced
"""

REPLACE_CHILD = """
UPDATE dbos.operation_outputs SET child_workflow_id = :child WHERE workflow_uuid = :id AND function_id = :function_id
"""

# What an operation wrote is copied with its record: what has none runs in the fork, and writes again.
_IS_OF_COPIED = """workflow_uuid = :source AND function_id < :start_step
  AND function_id IN (SELECT function_id FROM dbos.operation_outputs WHERE workflow_uuid = :id)"""

COPY_EVENTS = f"""
INSERT INTO dbos.workflow_events_history (workflow_uuid, function_id, key, value, serialization)
SELECT :id, function_id, key, value, serialization FROM dbos.workflow_events_history WHERE {_IS_OF_COPIED}
"""

LATEST_EVENTS = """
INSERT INTO dbos.workflow_events (workflow_uuid, key, value, serialization)
SELECT h.workflow_uuid, h.key, h.value, h.serialization FROM dbos.workflow_events_history h
WHERE h.workflow_uuid = :id AND h.function_id = (
  SELECT max(l.function_id) FROM dbos.workflow_events_history l WHERE l.workflow_uuid = :id AND l.key = h.key)
"""

COPY_STREAMS = f"""
-- Without gaps, also where operations wrote side by side and not all of them are copied.
INSERT INTO dbos.streams (workflow_uuid, key, value, "offset", function_id, serialization)
SELECT :id, key, value, row_number() OVER (PARTITION BY key ORDER BY "offset") - 1, function_id, serialization
FROM dbos.streams WHERE {_IS_OF_COPIED}
"""


class Fork(NamedTuple):
    """A workflow to be made from ``source``, with what that has recorded below ``start_step``.

    ``token`` tells it from what else bears its id, before or after. A fork of the same source with the same id is the
    same fork, so that making one can be repeated.
    """

    source: str
    workflow_id: str
    token: str
    start_step: int
    queue_name: str
    partition_key: str | None
    application_version: str | None
    replacement_children: Mapping[str, str]
    now_ms: int
    timeout_ms: int | None = None
    attributes: str | None = None  # those of the source, if there are none
    restarted_children: Sequence[str] = ()


class Forked(NamedTuple):
    """The row that has the id, or None if there is no source; and whether it was made just now."""

    row: StatusRow | None
    is_new: bool


class Origin(NamedTuple):
    """What a fork may begin at: a recorded operation."""

    function_id: int
    function_name: str
    has_failed: bool
    child_workflow_id: str | None


class ForksStore:
    """What several tables hold of a workflow, copied."""

    @staticmethod
    def origins(connection: Connection, workflow_ids: Sequence[str]) -> dict[str, list[Origin]]:
        """What the workflows have recorded, in order, by their ids."""
        found: dict[str, list[Origin]] = {}
        for workflow_id, function_id, name, has_failed, child in connection.all(ORIGINS, ids=list(workflow_ids)):
            found.setdefault(workflow_id, []).append(Origin(function_id, name, bool(has_failed), child))
        return found

    @staticmethod
    def fork(connection: Connection, fork: Fork) -> Forked:
        """Make a fork, unless its id is taken."""
        source, workflow_id = fork.source, fork.workflow_id
        connection.run(HOLD_SOURCE, source=source)
        is_new = connection.run(
            INSERT,
            id=workflow_id,
            source=source,
            token=fork.token,
            queue_name=fork.queue_name,
            partition_key=fork.partition_key,
            application_version=fork.application_version,
            timeout_ms=fork.timeout_ms,
            attributes=fork.attributes,
            now_ms=fork.now_ms,
        )
        if is_new:
            connection.run(MARK_SOURCE, source=source)
            ForksStore._copy(connection, fork)
        elif connection.one(SELECT, id=source) is None:
            return Forked(None, is_new=False)
        row = connection.one(SELECT, id=workflow_id)
        return Forked(None if row is None else StatusRow(*row), is_new > 0)

    @staticmethod
    def _copy(connection: Connection, fork: Fork) -> None:
        if fork.start_step <= 1:
            return
        replaced = list(fork.replacement_children)
        ids = {"id": fork.workflow_id, "source": fork.source, "start_step": fork.start_step}
        connection.run(COPY_STEPS, **ids, replaced=replaced, restarted=list(fork.restarted_children))
        if replaced:
            for function_id, child in connection.all(CHILDREN, id=fork.workflow_id, replaced=replaced):
                replacement = fork.replacement_children[child]
                connection.run(REPLACE_CHILD, id=fork.workflow_id, function_id=function_id, child=replacement)
        connection.run(COPY_EVENTS, **ids)
        connection.run(LATEST_EVENTS, id=fork.workflow_id)
        connection.run(COPY_STREAMS, **ids)
