"""A psycopg connection behind the shape that the stores take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from dbos._sysdb.statements import Renderer

__all__ = ["PREPARE_THRESHOLD", "PostgresConnection", "array_literal"]

PREPARE_THRESHOLD = 5  # psycopg's own default; statements of ours ask for it at once


class PostgresConnection:
    """A psycopg connection behind the :class:`~dbos._sysdb.connection.Connection` protocol."""

    def __init__(self, raw: psycopg.Connection[Any], renderer: Renderer) -> None:
        self.raw = raw
        self._renderer = renderer

    def _execute(self, sql: str, parameters: dict[str, Any]) -> psycopg.Cursor[Any]:
        rendered = self._renderer.render(sql)
        values = rendered.bind(parameters)
        for position, value in enumerate(values):
            if isinstance(value, list | tuple):
                values[position] = array_literal(value)
        try:
            return self.raw.execute(rendered.sql, values, prepare=True)
        except psycopg.OperationalError as error:
            if error.sqlstate is None and not self.raw.closed:
                # The driver's own, such as too many parameters: it must not pass for a connection that was lost.
                raise psycopg.ProgrammingError(str(error)) from error
            raise

    def all(self, sql: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        return self._execute(sql, parameters).fetchall()

    def one(self, sql: str, /, **parameters: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._execute(sql, parameters).fetchone()
        return row

    def run(self, sql: str, /, **parameters: Any) -> int:
        return self._execute(sql, parameters).rowcount

    def close(self) -> None:
        self.raw.close()


def array_literal(values: Sequence[Any]) -> str:
    """Values as an array literal: several times faster than the driver's element-wise conversion of lists."""
    items = []
    for value in values:
        if value is None:
            items.append("NULL")
        elif type(value) is int:
            items.append(str(value))
        else:
            if '"' in value or "\\" in value:
                value = value.replace("\\", "\\\\").replace('"', '\\"')
            items.append(f'"{value}"')
    return "{" + ",".join(items) + "}"
