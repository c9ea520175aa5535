"""The query behind a list of workflows: the one statement that is put together at run time."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from dbos._schemas.system_database import SystemSchema
from dbos._sysdb.filters import WorkflowFilter
from dbos._sysdb.rows import StatusRow

__all__ = ["compile_filter"]


def compile_filter(filter: WorkflowFilter, dialect: sa.Dialect) -> tuple[str, dict[str, Any]]:
    """The statement for a filter in our own notation (see :mod:`dbos._sysdb.statements`), and its parameters."""
    compiled = _select(filter).compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    return str(compiled), dict(compiled.params)


def _select(filter: WorkflowFilter) -> sa.Select[tuple[object, ...]]:
    c = SystemSchema.workflow_status.c
    query = sa.select(*(c[name] for name in StatusRow._fields))
    for column, values in (
        (c.workflow_uuid, filter.workflow_ids),
        (c.status, filter.statuses),
        (c.name, filter.names),
        (c.application_version, filter.app_versions),
        (c.forked_from, filter.forked_from),
        (c.parent_workflow_id, filter.parent_workflow_ids),
        (c.authenticated_user, filter.users),
        (c.queue_name, filter.queue_names),
        (c.executor_id, filter.executor_ids),
    ):
        if values:
            # As one parameter, however many there are: placeholders are limited, and each number of them would be a
            # statement of its own.
            name = f"{column.name}_list"
            query = query.where(sa.text(f"{column.name} IN :{name}").bindparams(**{name: list(values)}))
    if filter.workflow_id_prefixes:
        # LIKE disregards the case on SQLite.
        prefixes = filter.workflow_id_prefixes
        query = query.where(sa.or_(*(sa.func.substr(c.workflow_uuid, 1, len(each)) == each for each in prefixes)))
    if filter.created_from_ms is not None:
        query = query.where(c.created_at >= filter.created_from_ms)
    if filter.created_to_ms is not None:
        query = query.where(c.created_at <= filter.created_to_ms)
    if filter.was_forked_from is not None:
        query = query.where(c.was_forked_from == filter.was_forked_from)
    if filter.queues_only:
        query = query.where(c.queue_name.is_not(None))
        if not filter.statuses:
            query = query.where(c.status.in_(["DELAYED", "ENQUEUED", "PENDING"]))
    # The id breaks ties, so that pages neither overlap nor skip.
    order = (c.created_at, c.workflow_uuid)
    query = query.order_by(*(column.desc() if filter.sort_desc else column.asc() for column in order))
    return query.limit(filter.limit or None).offset(filter.offset or None)  # 0 has always meant no limit
