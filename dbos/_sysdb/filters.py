"""Which rows to list, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["WorkflowFilter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowFilter:
    """Which workflows to list; None or an empty sequence places no condition. Times are inclusive, in milliseconds."""

    workflow_ids: Sequence[str] = ()
    workflow_id_prefixes: Sequence[str] = ()
    statuses: Sequence[str] = ()
    names: Sequence[str] = ()
    app_versions: Sequence[str] = ()
    forked_from: Sequence[str] = ()
    parent_workflow_ids: Sequence[str] = ()
    users: Sequence[str] = ()
    queue_names: Sequence[str] = ()
    executor_ids: Sequence[str] = ()
    created_from_ms: int | None = None
    created_to_ms: int | None = None
    queues_only: bool = False
    was_forked_from: bool | None = None
    limit: int | None = None
    offset: int | None = None
    sort_desc: bool = False
