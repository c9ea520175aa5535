"""A psycopg connection behind the shape that the stores take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import psycopg

from dbos._error import DBOSQueryTimeoutError
from dbos._sysdb.statements import Renderer

from .pipeline import Answer, Pipeline

__all__ = ["PREPARE_THRESHOLD", "PipelinedConnection", "PostgresConnection", "PostgresReader", "array_literal"]

MAX_TIMEOUT_MS = 2**31 - 1  # that the server knows
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


class PostgresReader(PostgresConnection):
    """The same, for reading."""

    @contextmanager
    def limited(self, timeout_s: float) -> Iterator[None]:
        # In a transaction, so that a pooler in between gives the next one of its server connections back as it was.
        timeout_ms = min(max(1, round(timeout_s * 1000)), MAX_TIMEOUT_MS)
        self.raw.execute(f"BEGIN READ ONLY; SET LOCAL statement_timeout = {timeout_ms}", prepare=False)
        try:
            yield
        except psycopg.errors.QueryCanceled as error:
            raise DBOSQueryTimeoutError(timeout_s) from error
        self.raw.execute("COMMIT", prepare=False)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        self.raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", prepare=False)
        yield  # after an error nobody uses the connection again
        self.raw.execute("COMMIT", prepare=False)


class PipelinedConnection:
    """The same protocol over a :class:`Pipeline`, for the calls of a writer.

    psycopg's own prepared statements would take the pipeline's with them when a transaction is rolled back, and a
    claim that is planned anew each time costs as much again as one that is not.
    """

    def __init__(self, pipeline: Pipeline, renderer: Renderer) -> None:
        self._pipeline = pipeline
        self._renderer = renderer

    def _execute(self, sql: str, parameters: dict[str, Any]) -> Answer:
        rendered = self._renderer.render(sql)
        return self._pipeline.execute([(rendered.sql, [_as_text(value) for value in rendered.bind(parameters)])])[0]

    def all(self, sql: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        answer = self._execute(sql, parameters)
        readers = [_READERS.get(number) for number in answer.types]
        return [
            tuple(
                value if read is None or value is None else read(value)
                for read, value in zip(readers, row, strict=True)
            )
            for row in answer.rows
        ]

    def one(self, sql: str, /, **parameters: Any) -> tuple[Any, ...] | None:
        return next(iter(self.all(sql, **parameters)), None)

    def run(self, sql: str, /, **parameters: Any) -> int:
        return self._execute(sql, parameters).touched


# By the numbers of PostgreSQL's types; what is not listed stays text.
_READERS: dict[int, Callable[[str], Any]] = {
    16: lambda text: text == "t",  # bool
    20: int,  # int8
    21: int,  # int2
    23: int,  # int4
    26: int,  # oid
    701: float,  # float8
    1700: Decimal,  # numeric
}


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return array_literal(value) if isinstance(value, list | tuple) else str(value)


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
