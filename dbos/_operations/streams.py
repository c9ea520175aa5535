"""Streams: a workflow appends values, and others read them, from the first on or from any offset, as they come."""

from __future__ import annotations

import logging
import math
from collections import deque
from contextlib import ExitStack
from typing import Any, NamedTuple

from dbos._context import checked_workflow_id, current_context
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, Pause, Read
from dbos._engine.outcome import UNFINISHED
from dbos._engine.records import commit_step
from dbos._engine.run import Run
from dbos._error import (
    DBOSException,
    DBOSNonExistentWorkflowError,
    DBOSStreamNondeterminismError,
    DBOSStreamTimeoutError,
)
from dbos._ids import new_token
from dbos._operations.effects import Effect
from dbos._operations.recording import refuse_in_transaction
from dbos._queue_config import checked_key
from dbos._serialization import PORTABLE_JSON, WorkflowSerializationFormat
from dbos._sysdb.operations import RecordStep, call
from dbos._sysdb.rows import StepRow, StreamRow
from dbos._sysdb.stores.streams import CLOSED, Append
from dbos._sysdb.wakeups import STREAMS, Signal, stream_key, workflow_key

__all__ = ["StreamReader", "client_read_stream", "close_stream", "read_stream", "read_stream_offset", "write_stream"]

logger = logging.getLogger("dbos.streams")

WRITE_STREAM = "DBOS.writeStream"
CLOSE_STREAM = "DBOS.closeStream"
READ_STREAM = "DBOS.readStream"
READ_STREAM_OFFSET = "DBOS.readStreamOffset"
PAGE_VALUES = 100  # read at once
MIN_INTERVAL_S = 0.001
MAX_OFFSET = 2**31 - 1  # what the column holds

# A value that happens to be what ends a stream is written in other words, which mean the same.
_NOT_CLOSED = CLOSED.replace("_", "\\u005f", 1)


# -- writing -----------------------------------------------------------------------------------------------------------


def write_stream(
    engine: Engine,
    key: str,
    value: Any,
    *,
    serialization_type: WorkflowSerializationFormat | None = WorkflowSerializationFormat.DEFAULT,
) -> Flow[None]:
    """Append a value to a stream of this workflow; others read it with :meth:`read_stream`.

    From the workflow's body each value is appended exactly once. A step that is repeated appends its values again.

    Args:
        key: The stream's name.
        value: The value.
        serialization_type: The format; by default that of the workflow.

    Raises:
        DBOSException: not called from within a workflow, or the key cannot be stored.
        TypeError: the value cannot be serialized.
    """
    effect = Effect(engine, WRITE_STREAM)
    effect.require_run("write_stream")
    text, serialization = "", ""
    if not effect.is_done:
        text, serialization = engine.serialization.dump_value(
            value, effect.format(serialization_type), what="stream value", name=key
        )
        if text == CLOSED and serialization == PORTABLE_JSON:
            text = _NOT_CLOSED
    yield from _append(engine, effect, "write_stream", key, text, serialization)


def close_stream(engine: Engine, key: str) -> Flow[None]:
    """End a stream of this workflow: its readers stop there. The end of the workflow ends its streams as well.

    Args:
        key: The stream's name.

    Raises:
        DBOSException: not called from within a workflow, or the key cannot be stored.
    """
    effect = Effect(engine, CLOSE_STREAM)
    yield from _append(engine, effect, "close_stream", key, CLOSED, PORTABLE_JSON)


def _append(engine: Engine, effect: Effect, operation: str, key: str, text: str, serialization: str) -> Flow[None]:
    workflow_id = effect.require_run(operation).workflow_id
    key = checked_key("key", key)
    if effect.is_done:
        return
    logger.debug("Running %s, key: %s", operation, key)
    request = Append(
        workflow_id,
        key,
        text,
        serialization,
        function_id=effect.function_id,
        step=effect.step,
        owner=effect.owner,
        token=new_token(),
    )
    recorded, offset = yield from effect.commit(call(engine.db.streams.append, request))
    effect.settle(recorded)
    if offset is not None:
        keys = [stream_key(workflow_id, key, offset)]
        if text == CLOSED:  # also those who wait for what is behind the end
            keys = [each for each in engine.db.wakeups.keys() if each[:3] == keys[0][:3]]  # noqa: SIM118  # not a dict
        engine.written(*keys)


# -- reading -----------------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """A value of a stream."""

    value: Any


def read_stream(
    engine: Engine,
    workflow_id: str,
    key: str,
    *,
    offset: int = 0,
    polling_interval_sec: float | None = None,
    timeout_seconds: float | None = None,
) -> StreamReader:
    """The values of a workflow's stream, in order, each as soon as it is there.

    It ends where the stream was closed, or when the workflow has ended and all values were read. Within a workflow each
    value is recorded, and so is the end, so that replay reads the same.

    Args:
        workflow_id: The workflow's id.
        key: The stream's name.
        offset: Begin with the value at this offset, from 0.
        polling_interval_sec: Accepted for compatibility: values are told of, and looked for once a second besides.
        timeout_seconds: How long to wait for each value, in seconds; None for as long as it takes.

    Raises:
        DBOSNonExistentWorkflowError: there is no such workflow.
        DBOSStreamTimeoutError: a value did not come in time.
        DBOSStreamNondeterminismError: this workflow is reading the stream already, side by side.
        ValueError: an argument is not what it can be.
    """
    return StreamReader(
        engine, READ_STREAM, workflow_id, key, offset, polling_interval_sec, timeout_seconds, must_exist=True
    )


def client_read_stream(
    engine: Engine,
    workflow_id: str,
    key: str,
    *,
    offset: int = 0,
    polling_interval_sec: float | None = None,
    timeout_seconds: float | None = None,
) -> StreamReader:
    """The values of a workflow's stream, in order, each as soon as it is there; see :meth:`DBOS.read_stream`.

    The stream of a workflow that does not exist has no values.
    """
    return StreamReader(
        engine, READ_STREAM, workflow_id, key, offset, polling_interval_sec, timeout_seconds, must_exist=False
    )


client_read_stream.__name__ = read_stream.__name__


def read_stream_offset(
    engine: Engine,
    workflow_id: str,
    key: str,
    offset: int,
    *,
    polling_interval_sec: float | None = None,
    timeout_seconds: float | None = None,
) -> Flow[Any]:
    """The value at an offset of a workflow's stream, waiting until it is there; within a workflow it is recorded.

    Args:
        workflow_id: The workflow's id.
        key: The stream's name.
        offset: The offset of the value, from 0.
        polling_interval_sec: Accepted for compatibility: values are told of, and looked for once a second besides.
        timeout_seconds: How long to wait, in seconds; None for as long as it takes.

    Raises:
        DBOSNonExistentWorkflowError: there is no such workflow.
        DBOSStreamTimeoutError: the value did not come in time.
        DBOSStreamNondeterminismError: this workflow is reading the stream already, side by side.
        DBOSException: the stream has ended before that offset.
        ValueError: an argument is not what it can be.
    """
    reader = StreamReader(
        engine, READ_STREAM_OFFSET, workflow_id, key, offset, polling_interval_sec, timeout_seconds, must_exist=True
    )
    item = yield from reader.next()
    if item is None:
        raise DBOSException(f"Stream {key} of workflow {workflow_id} has ended, and has no value at offset {offset}.")
    return item.value


class StreamReader:
    """A place in a stream, and what comes next."""

    def __init__(
        self,
        engine: Engine,
        operation: str,
        workflow_id: str,
        key: str,
        offset: int,
        interval_s: float | None,
        timeout_s: float | None,
        must_exist: bool,
    ) -> None:
        if type(offset) is not int or not 0 <= offset <= MAX_OFFSET:
            raise ValueError(f"Invalid offset {offset!r}: it is a whole number from 0 on.")
        if interval_s is not None and not MIN_INTERVAL_S <= interval_s < math.inf:
            raise ValueError(f"Invalid polling_interval_sec {interval_s!r}: it is at least {MIN_INTERVAL_S} seconds.")
        if timeout_s is not None and not 0 <= timeout_s < math.inf:
            raise ValueError(f"Invalid timeout_seconds {timeout_s!r}: it is a number of seconds, not less than 0.")
        self._engine, self._operation = engine, operation
        self._workflow_id, self._key = checked_workflow_id(workflow_id), checked_key("key", key)
        self._offset, self._timeout_s, self._must_exist = offset, timeout_s, must_exist
        self._begin = offset
        self._values: deque[StreamRow] = deque()  # read and not delivered yet

    def next(self) -> Flow[Item | None]:
        """Deliver the next value; None at the end."""
        refuse_in_transaction(self._operation)
        context = current_context()
        run = context.run if context is not None and context.is_in_workflow_body else None
        if run is None:
            row = yield from self._find(None)
            return self._delivered(row)
        source = (STREAMS, self._workflow_id, self._key)
        with run.alone(source, lambda: DBOSStreamNondeterminismError(self._workflow_id, self._key)):
            return (yield from self._next_recorded(run))

    def _delivered(self, row: StreamRow | None) -> Item | None:
        if row is None:
            return None
        self._offset += 1
        return Item(self._engine.serialization.load_value(row.value, row.serialization))

    def _next_recorded(self, run: Run) -> Flow[Item | None]:
        engine = self._engine
        function_id = run.next_function_id()
        run.check_interrupted()
        recorded = run.recorded(function_id, self._operation)
        if recorded is not None:
            return self._replayed(recorded)
        started_ms = engine.clock.now_ms()
        error: str | None = None
        try:
            row = yield from self._find(run)
        except DBOSStreamTimeoutError as timeout:
            text, (error, serialization) = None, engine.serialization.dump_error(timeout)
        else:
            text, serialization = (CLOSED, PORTABLE_JSON) if row is None else (row.value, row.serialization or "")
        step = RecordStep(
            run.workflow_id,
            function_id,
            self._operation,
            text,
            error,
            None,
            started_ms,
            engine.clock.now_ms(),
            serialization or None,
            run.run_token,
        )
        existing = yield from commit_step(run, step)
        return self._replayed(step.row if existing is None else existing)

    def _replayed(self, recorded: StepRow) -> Item | None:
        if recorded.error is not None:
            raise self._engine.serialization.load_error(recorded.error, recorded.serialization)
        if recorded.output == CLOSED and recorded.serialization == PORTABLE_JSON:
            return None
        while self._values and self._values[0].offset <= self._offset:
            self._values.popleft()
        return self._delivered(StreamRow(self._offset, recorded.output or "", recorded.serialization))

    def _look_for_end(self) -> Read:
        return Read(self._engine.db.streams.is_closed, (self._workflow_id, self._key, self._offset))

    def _find(self, run: Run | None) -> Flow[StreamRow | None]:
        """The row at the offset, when it is there; None at the end of the stream."""
        engine = self._engine
        deadline_s = None if self._timeout_s is None else engine.clock.monotonic() + self._timeout_s
        while True:
            if not self._values:
                signal = Signal()
                with ExitStack() as waits:
                    wakeups = engine.db.wakeups
                    waits.enter_context(wakeups.waiting(stream_key(self._workflow_id, self._key, self._offset), signal))
                    waits.enter_context(wakeups.waiting(workflow_key(self._workflow_id), signal))
                    if run is not None:
                        waits.enter_context(run.interruptible(signal))
                    engine.check_open()  # after the signal is in place: closing sets it
                    status, rows = yield Read(
                        engine.db.streams.read, (self._workflow_id, self._key, self._offset, PAGE_VALUES)
                    )
                    # Whoever has read a value has met no end before it; only in front of the first may there be one.
                    if 0 < self._offset == self._begin and (yield self._look_for_end()):
                        return None
                    self._values.extend(rows)
                    if not rows and status not in UNFINISHED:
                        if status is None and self._must_exist:
                            raise DBOSNonExistentWorkflowError("target", self._workflow_id)
                        return None
                    if not rows:
                        remaining_s = None if deadline_s is None else deadline_s - engine.clock.monotonic()
                        if remaining_s is not None and remaining_s <= 0:
                            assert self._timeout_s is not None
                            raise DBOSStreamTimeoutError(self._workflow_id, self._key, self._timeout_s)
                        yield Pause(signal, remaining_s)
                if run is not None:
                    run.check_interrupted()
                continue
            if self._values[0].value == CLOSED and self._values[0].serialization == PORTABLE_JSON:
                return None
            return self._values.popleft()
