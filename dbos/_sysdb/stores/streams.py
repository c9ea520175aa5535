"""Streams: values that a workflow appends to, and that others read from any offset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dbos._serialization import PORTABLE_JSON
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import RECORDED, RecordStep, StepRecorded
from dbos._sysdb.rows import StreamRow
from dbos._sysdb.stores.runs import Owner, RunsStore

if TYPE_CHECKING:
    from dbos._sysdb.dialects.base import Dialect

__all__ = ["CLOSED", "Append", "StreamsStore"]

CLOSED = '"__DBOS_STREAM_CLOSED__"'  # what ends a stream, as a portable value

APPEND = """
-- One offset after another, also if several append at once: whoever finds the offset taken tries the next.
INSERT INTO dbos.streams (workflow_uuid, key, value, "offset", function_id, serialization, write_token)
SELECT CAST(:workflow_uuid AS text), CAST(:key AS text), CAST(:value AS text), COALESCE(max(s."offset") + 1, 0),
  CAST(:function_id AS integer), CAST(:serialization AS text), CAST(:write_token AS text)
FROM dbos.streams s WHERE s.workflow_uuid = :workflow_uuid AND s.key = :key
ON CONFLICT DO NOTHING
RETURNING "offset"
"""

APPENDED = """
SELECT "offset" FROM dbos.streams WHERE workflow_uuid = :workflow_uuid AND key = :key AND write_token = :write_token
"""

STATUS = "SELECT status FROM dbos.workflow_status WHERE workflow_uuid = :workflow_id"

READ = """
SELECT "offset", value, serialization FROM dbos.streams
WHERE workflow_uuid = :workflow_id AND key = :key AND "offset" >= :offset
ORDER BY "offset" LIMIT :count
"""

IS_CLOSED = """
-- Whether a stream was closed before an offset.
SELECT 1 FROM dbos.streams
WHERE workflow_uuid = :workflow_id AND key = :key AND "offset" < :offset AND value = :closed AND serialization = :format
LIMIT 1
"""

EXISTING = """
-- Of places in streams, those that hold a value, or never will.
SELECT r.workflow_id, r.stream, r.place FROM {rows}
WHERE EXISTS (
    SELECT 1 FROM dbos.streams s
    WHERE s.workflow_uuid = r.workflow_id AND s.key = r.stream AND s."offset" = r.place)
  OR :closed = (
    SELECT s.value FROM dbos.streams s WHERE s.workflow_uuid = r.workflow_id AND s.key = r.stream
    ORDER BY s."offset" DESC LIMIT 1)
"""


class Append:
    """A value to be appended by the operation ``function_id``: with its record, or from a step of the run ``owner``.

    It remembers whether it was executed before, and perhaps committed, with the answer lost.
    """

    __slots__ = (
        "function_id",
        "key",
        "owner",
        "serialization",
        "step",
        "token",
        "value",
        "was_executed",
        "workflow_id",
    )

    def __init__(
        self,
        workflow_id: str,
        key: str,
        value: str,
        serialization: str,
        *,
        function_id: int,
        step: RecordStep | None,
        owner: Owner | None,
        token: str,
    ) -> None:
        self.workflow_id, self.key, self.value, self.serialization = workflow_id, key, value, serialization
        self.function_id, self.step, self.owner, self.token = function_id, step, owner, token
        self.was_executed = False

    @property
    def size(self) -> int:
        """Characters of payload, which bound a batch."""
        return len(self.value)


class StreamsStore:
    """The ``streams`` table."""

    def __init__(self, dialect: Dialect, runs: RunsStore) -> None:
        self._runs = runs
        self._existing = EXISTING.replace("{rows}", dialect.rows(workflow_id="text", stream="text", place="bigint"))

    def append(self, connection: Connection, request: Append) -> tuple[StepRecorded, int | None]:
        """Append a value, if the run may act; returns the offset, if it was appended just now."""
        recorded = self._runs.may_act(connection, request.step, request.owner)
        if recorded is not RECORDED:
            return recorded, None
        place = {"workflow_uuid": request.workflow_id, "key": request.key, "write_token": request.token}
        if request.was_executed:
            row = connection.one(APPENDED, **place)
            if row is not None:
                return recorded, int(row[0])
        request.was_executed = True
        while True:
            row = connection.one(
                APPEND,
                **place,
                value=request.value,
                function_id=request.function_id,
                serialization=request.serialization,
            )
            if row is not None:
                return recorded, int(row[0])

    @staticmethod
    def read(
        connection: Connection, workflow_id: str, key: str, offset: int, count: int
    ) -> tuple[str | None, list[StreamRow]]:
        """Up to ``count`` values from an offset on, and the workflow's status, or None if there is none.

        The status is older than the values: what a workflow that had ended has written is complete.
        """
        status = connection.one(STATUS, workflow_id=workflow_id)
        rows = connection.all(READ, workflow_id=workflow_id, key=key, offset=offset, count=count)
        return None if status is None else status[0], [StreamRow(*row) for row in rows]

    @staticmethod
    def is_closed(connection: Connection, workflow_id: str, key: str, offset: int) -> bool:
        """Whether a stream was closed before an offset."""
        row = connection.one(
            IS_CLOSED, workflow_id=workflow_id, key=key, offset=offset, closed=CLOSED, format=PORTABLE_JSON
        )
        return row is not None

    def existing(self, connection: Connection, places: Sequence[tuple[Any, ...]]) -> list[tuple[str, ...]]:
        """Of places, each a workflow, a key and an offset, those that hold a value, or are behind the end."""
        rows = json.dumps(
            [{"workflow_id": workflow_id, "stream": key, "place": int(offset)} for workflow_id, key, offset in places]
        )
        return [
            (workflow_id, key, str(offset))
            for workflow_id, key, offset in connection.all(self._existing, rows=rows, closed=CLOSED)
        ]
