"""What people and dashboards look at: lists of workflows, and how many there are of which kind.

Nothing here is on the way of a workflow. Whoever asks limits the time of each statement (see
:func:`dbos._sysdb.readers.within`), because a long look at a table keeps the database from clearing it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dbos._sysdb.connection import Connection
from dbos._sysdb.filters import WorkflowFilter
from dbos._sysdb.rows import MetricRow, StatusRow

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect

__all__ = ["ListingStore"]

METRICS = """
-- How many workflows were created, and how many steps completed, in a period; its end is the next one's beginning.
SELECT 'workflow_count', name, count(*) FROM dbos.workflow_status
WHERE created_at >= :from_ms AND created_at < :to_ms
GROUP BY name
UNION ALL
SELECT 'step_count', function_name, count(*) FROM dbos.operation_outputs
WHERE completed_at_epoch_ms >= :from_ms AND completed_at_epoch_ms < :to_ms
GROUP BY function_name
"""


class ListingStore:
    """Queries over ``workflow_status`` and ``operation_outputs``."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def workflows(
        self, connection: Connection, filter: WorkflowFilter, *, has_input: bool = True, has_output: bool = True
    ) -> list[StatusRow]:
        """The workflows that match, in order; payloads that are not asked for are not read, and None."""
        # Imported when it is first needed: SQLAlchemy takes longer to import than all of the rest.
        from dbos._sysdb.stores.workflow_query import INPUT_COLUMNS, OUTPUT_COLUMNS, compiled, select_page

        left_out = (frozenset() if has_input else INPUT_COLUMNS) | (frozenset() if has_output else OUTPUT_COLUMNS)
        query = select_page(filter, self._dialect.contains_attributes, left_out)
        sql, parameters = compiled(query, self._dialect.sqlalchemy_dialect())
        return [StatusRow(*row) for row in connection.all(sql, **parameters)]

    def groups(
        self, connection: Connection, filter: WorkflowFilter, names: Sequence[str]
    ) -> list[tuple[tuple[Any, ...], int]]:
        """How many workflows match, by the values of the columns that are named: all together, if none is."""
        from dbos._sysdb.stores.workflow_query import compiled, select_groups

        query = select_groups(filter, self._dialect.contains_attributes, names)
        sql, parameters = compiled(query, self._dialect.sqlalchemy_dialect())
        return [(tuple(row[:-1]), row[-1]) for row in connection.all(sql, **parameters)]

    @staticmethod
    def metrics(connection: Connection, from_ms: int, to_ms: int) -> list[MetricRow]:
        """What was begun and done in a period that does not include its end, by name."""
        return [MetricRow(*row) for row in connection.all(METRICS, from_ms=from_ms, to_ms=to_ms)]
