"""Which rows to list, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Position", "WorkflowFilter"]


class Position(NamedTuple):
    """The place of a row in a list, after which the next page begins."""

    created_at: int
    workflow_uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowFilter:
    """Which workflows to list; None or an empty sequence places no condition. Times are inclusive, in milliseconds.

    Rows come by the time of their creation, and those of one millisecond by their ids: an order without ties, in which
    ``after`` is a place, whatever is added or deleted meanwhile. With ``sort_desc`` all of it is the other way round.
    """

    workflow_ids: Sequence[str] = ()
    workflow_id_prefixes: Sequence[str] = ()
    statuses: Sequence[str] = ()
    names: Sequence[str] = ()
    app_versions: Sequence[str] = ()
    application_names: Sequence[str] = ()
    forked_from: Sequence[str] = ()
    parent_workflow_ids: Sequence[str] = ()
    users: Sequence[str] = ()
    queue_names: Sequence[str] = ()
    executor_ids: Sequence[str] = ()
    schedule_names: Sequence[str] = ()
    created_from_ms: int | None = None
    created_to_ms: int | None = None
    completed_from_ms: int | None = None
    completed_to_ms: int | None = None
    dequeued_from_ms: int | None = None
    dequeued_to_ms: int | None = None
    queues_only: bool = False
    was_forked_from: bool | None = None
    has_parent: bool | None = None
    attributes: str | None = None  # a JSON object: what the workflow's own must contain
    after: Position | None = None
    limit: int | None = None
    offset: int | None = None
    sort_desc: bool = False
