"""Statements over libpq itself, as many as are needed in one round trip.

psycopg's own cursors cost several times what a statement of ours takes in the server, and its pipeline mode more again
(docs/decisions/0006 has the figures). The writer knows its few statements and their types, so it needs none of
what a cursor does: it hands texts to libpq, waits for the socket, and takes texts back.
"""

from __future__ import annotations

import selectors
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

__all__ = ["Answer", "Pipeline"]


class Answer(NamedTuple):
    """What a statement answered: its rows, as text, and how many rows it touched or returned.

    ``types`` are the numbers of its columns' types.
    """

    rows: list[tuple[str | None, ...]]
    touched: int
    types: tuple[int, ...]


# Without a descriptor of its own, where there is one of that kind.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Pipeline:
    """Sends statements over a psycopg connection that waits for nothing, within a transaction of its or without."""

    def __init__(self, raw: psycopg.Connection[Any], *, may_prepare: bool) -> None:
        self._raw = raw
        self._pgconn = raw.pgconn
        self._may_prepare = may_prepare
        self._prepared: dict[str, bytes] = {}
        self._selector = _Selector()
        self._selector.register(self._pgconn.socket, selectors.EVENT_READ)

    def execute(self, statements: Sequence[tuple[str, Sequence[str | None]]]) -> list[Answer]:
        """Execute statements as one transaction; returns what each answered.

        Raises:
            psycopg.Error: one of them failed, and with it all, or the connection was lost.
        """
        encoded = [(self._prepare(sql), [_encode(value) for value in values]) for sql, values in statements]
        try:
            results = self._exchange(encoded)
        except BaseException:
            self._raw.close()  # between a statement and its answer: what comes next on it belongs to nobody
            raise
        for result in results:
            self._check(result)
        return [
            Answer(_rows(result), result.command_tuples or 0, tuple(map(result.ftype, range(result.nfields))))
            for result in results
        ]

    def _exchange(self, statements: Sequence[tuple[bytes, Sequence[bytes | None]]]) -> list[pq.abc.PGresult]:
        pgconn = self._pgconn
        if len(statements) == 1:
            self._send(*statements[0])
            self._flush()
            return list(self._results())
        pgconn.enter_pipeline_mode()
        for name, values in statements:
            self._send(name, values)
        pgconn.pipeline_sync()
        self._flush()
        results = [result for _ in statements for result in self._results()]
        while True:  # the transaction is committed at the end of the pipeline, and that can fail too
            self._wait()
            result = pgconn.get_result()
            if result is not None and result.status == pq.ExecStatus.PIPELINE_SYNC:
                break
            if result is not None:
                results.append(result)
        pgconn.exit_pipeline_mode()
        return results

    def _prepare(self, sql: str) -> bytes:
        if not self._may_prepare:
            return sql.encode()
        name = self._prepared.get(sql)
        if name is None:
            name = b"dbos_%d" % len(self._prepared)
            result = self._pgconn.prepare(name, sql.encode())
            self._check(result)
            self._prepared[sql] = name
        return name

    def _check(self, result: pq.abc.PGresult) -> None:
        if result.status in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            return
        if result.error_field(pq.DiagnosticField.SQLSTATE) is None:  # libpq's own words, for a connection that ended
            self._raw.close()
            raise psycopg.OperationalError(result.get_error_message())
        raise error_from_result(result)

    def _send(self, statement: bytes, values: Sequence[bytes | None]) -> None:
        if self._may_prepare:
            self._pgconn.send_query_prepared(statement, values)
        else:
            self._pgconn.send_query_params(statement, values)

    def _flush(self) -> None:
        """Hand everything to the socket. Answers are read meanwhile: a server that cannot send stops reading."""
        while self._pgconn.flush():
            self._selector.modify(self._pgconn.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            try:
                for _, events in self._selector.select():
                    if events & selectors.EVENT_READ:
                        self._pgconn.consume_input()
            finally:
                self._selector.modify(self._pgconn.socket, selectors.EVENT_READ)

    def _wait(self) -> None:
        while self._pgconn.is_busy():
            self._selector.select()
            self._pgconn.consume_input()

    def _results(self) -> Iterator[pq.abc.PGresult]:
        """What one statement answers."""
        while True:
            self._wait()
            result = self._pgconn.get_result()
            if result is None:
                return
            yield result

    def close(self) -> None:
        """Let go of the socket; the connection is the caller's to close."""
        self._selector.close()


def _encode(value: str | None) -> bytes | None:
    if value is None:
        return None
    data = value.encode()
    if b"\0" in data:  # libpq would stop there
        raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return data


def _rows(result: pq.abc.PGresult) -> list[tuple[str | None, ...]]:
    width = range(result.nfields)
    return [
        tuple(None if (value := result.get_value(row, column)) is None else value.decode() for column in width)
        for row in range(result.ntuples)
    ]
