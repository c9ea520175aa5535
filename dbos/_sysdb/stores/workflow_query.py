"""The queries behind lists of workflows and their numbers: the few statements that are put together at run time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from dbos._schemas.system_database import SystemSchema
from dbos._sysdb.filters import WorkflowFilter
from dbos._sysdb.rows import StatusRow

__all__ = ["INPUT_COLUMNS", "OUTPUT_COLUMNS", "compiled", "select_groups", "select_page"]

INPUT_COLUMNS = frozenset({"inputs"})
OUTPUT_COLUMNS = frozenset({"output", "error"})

_COLUMNS = SystemSchema.workflow_status.c


def compiled(query: sa.Select[Any], dialect: sa.Dialect) -> tuple[str, dict[str, Any]]:
    """A query in our own notation (see :mod:`dbos._sysdb.statements`), and its parameters."""
    text = query.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    return str(text), dict(text.params)


def select_page(filter: WorkflowFilter, contains: str, left_out: frozenset[str] = frozenset()) -> sa.Select[Any]:
    """The rows that match; the columns that are ``left_out`` are not read, and NULL.

    ``contains`` is the dialect's condition that the attributes contain ``:attributes``.
    """
    columns = (sa.null().label(name) if name in left_out else _COLUMNS[name] for name in StatusRow._fields)
    query = sa.select(*columns).where(*_conditions(filter, contains))
    order = (_COLUMNS.created_at, _COLUMNS.workflow_uuid)
    if filter.after is not None:
        place, after = sa.tuple_(*order), sa.tuple_(*filter.after)
        query = query.where(place < after if filter.sort_desc else place > after)
    query = query.order_by(*(column.desc() if filter.sort_desc else column.asc() for column in order))
    return query.limit(filter.limit or None).offset(filter.offset or None)  # 0 has always meant no limit


def select_groups(filter: WorkflowFilter, contains: str, names: Sequence[str]) -> sa.Select[Any]:
    """How many rows match for each combination of values of the columns, which come first; of none, how many in all."""
    columns = [_COLUMNS[name] for name in names]
    query = sa.select(*columns, sa.func.count()).select_from(SystemSchema.workflow_status)
    return query.where(*_conditions(filter, contains)).group_by(*columns)


def _conditions(filter: WorkflowFilter, contains: str) -> Iterator[sa.ColumnElement[bool]]:
    c = _COLUMNS
    for column, values in (
        (c.workflow_uuid, filter.workflow_ids),
        (c.status, filter.statuses),
        (c.name, filter.names),
        (c.application_version, filter.app_versions),
        (c.application_name, filter.application_names),
        (c.forked_from, filter.forked_from),
        (c.parent_workflow_id, filter.parent_workflow_ids),
        (c.authenticated_user, filter.users),
        (c.queue_name, filter.queue_names),
        (c.executor_id, filter.executor_ids),
        (c.schedule_name, filter.schedule_names),
    ):
        if values:
            # As one parameter, however many there are: placeholders are limited, and each number of them would be a
            # statement of its own.
            name = f"{column.name}_list"
            yield _written(f"{column.name} IN :{name}", **{name: list(values)})
    if filter.workflow_id_prefixes:
        # LIKE disregards the case on SQLite.
        prefixes = filter.workflow_id_prefixes
        yield sa.or_(*(sa.func.substr(c.workflow_uuid, 1, len(each)) == each for each in prefixes))
    for column, from_ms, to_ms in (
        (c.created_at, filter.created_from_ms, filter.created_to_ms),
        (c.completed_at, filter.completed_from_ms, filter.completed_to_ms),
        (c.started_at_epoch_ms, filter.dequeued_from_ms, filter.dequeued_to_ms),
    ):
        if from_ms is not None:
            yield column >= from_ms
        if to_ms is not None:
            yield column <= to_ms
    if filter.was_forked_from is not None:
        yield c.was_forked_from == filter.was_forked_from
    if filter.has_parent is not None:
        yield c.parent_workflow_id.is_not(None) if filter.has_parent else c.parent_workflow_id.is_(None)
    if filter.attributes is not None:
        yield _written(contains, attributes=filter.attributes)
    if filter.queues_only:
        yield c.queue_name.is_not(None)
        if not filter.statuses:
            yield c.status.in_(["DELAYED", "ENQUEUED", "PENDING"])


def _written(sql: str, **parameters: Any) -> sa.ColumnElement[bool]:
    """A condition that is written in SQL."""
    condition: Any = sa.text(sql).bindparams(**parameters)
    return condition  # type: ignore[no-any-return]  # as good as one for ``where``
