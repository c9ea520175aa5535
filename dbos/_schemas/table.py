"""Tables that a plain engine can query on either database."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from .rendering import DEFAULT_SCHEMA

__all__ = ["SystemTable", "schema_translate_map"]


class SystemTable(sa.Table):
    """A table without a schema on SQLite and in the schema ``dbos`` on PostgreSQL.

    ``select(SystemSchema.workflow_status)`` therefore runs on a plain engine of both. A table with ``schema="dbos"``
    would fail on SQLite, one without would be looked up in PostgreSQL's ``search_path``; so the prefix is added where
    PostgreSQL renders the table as a source of rows. For another schema, give the engine or the connection the
    execution option ``schema_translate_map=schema_translate_map("other")``. (An INSERT renders its table
    by other means, and takes the map for ``dbos`` as well.)
    """

    inherit_cache = True


def schema_translate_map(schema: str | None) -> dict[str | None, str | None]:
    """SQLAlchemy's execution option for system tables in ``schema``; None for a database without schemas."""
    return {} if schema is None else {None: schema}


@compiles(SystemTable, "postgresql")
def _render_in_default_schema(table: SystemTable, compiler: SQLCompiler, **options: Any) -> str:
    text: str = compiler.visit_table(table, **options)  # type: ignore[no-untyped-call]  # SQLAlchemy leaves visitors untyped
    is_source = options.get("asfrom") and options.get("use_schema", True)
    if not is_source or compiler.preparer.schema_for_object(table) is not None:
        return text
    return f"{compiler.preparer.quote_schema(DEFAULT_SCHEMA)}.{text}"
