"""Schedules in the code: what ``DBOS.scheduled`` notes down, and firing it while this process runs."""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import takewhile
from typing import Any, NamedTuple

from dbos._cron import Cron, parse
from dbos._engine.engine import Engine
from dbos._engine.ticks import GRACE_MS, epoch_ms, moment
from dbos._error import DBOSException
from dbos._ids import new_token
from dbos._registrations import DBOSFuncType, get_dbos_func_name, get_or_create_func_info, needs_receiver
from dbos._registry import TEMPORARY_PREFIX, Registry, WorkflowFunction
from dbos._sysdb.operations import Call
from dbos._sysdb.stores.schedules import RunRow
from dbos._sysdb.stores.workflow_status import INTERNAL_QUEUE

__all__ = ["DeclaredSchedules", "decorate_scheduled"]

logger = logging.getLogger("dbos.scheduler")


def decorate_scheduled(registry: Registry[Engine], func: Callable[..., Any], cron: str) -> Callable[..., Any]:
    """Have a function started at the times that a cron expression says, in UTC; it may be decorated further.

    Raises:
        ValueError: the expression cannot be evaluated.
        DBOSException: it is a method of configured instances.
    """
    try:
        parse(cron, None)
    except ValueError as error:
        name = get_dbos_func_name(func)
        raise ValueError(f'Invalid crontab "{cron}" for scheduled function {name}: {error}') from error
    info = get_or_create_func_info(func)
    if info.func_type is DBOSFuncType.Instance or info.first_parameter == "self":
        raise DBOSException("Configured instance methods cannot be used as scheduled workflows")
    registry.register_scheduled(cron, func)
    return func


class _Declared(NamedTuple):
    """A function with a schedule in the code, and the tick that it is due at; of those due together, in any order."""

    tick_ms: int
    number: int
    function: WorkflowFunction
    cron: Cron


class DeclaredSchedules:
    """What the code has scheduled: a heap of next ticks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._heap: list[_Declared] = []
        self._learned: set[int] = set()  # which of the registered ones are, or were, in it
        self._has_learned = False  # at least once: what was declared before the launch

    @property
    def next_tick_ms(self) -> int | None:
        """When the next tick is due, None for never."""
        return self._heap[0].tick_ms if self._heap else None

    def begin_anew(self) -> None:
        """The clock has gone back: what was computed from it is too late."""
        self._heap.clear()
        self._learned.clear()

    def fire_once(self) -> int:
        """Start what is due; returns how many runs that was."""
        engine = self._engine
        now_ms = engine.db.now_ms()
        self._learn(now_ms)
        before, runs = list(self._heap), list[RunRow]()
        while self._heap and self._heap[0].tick_ms <= now_ms:
            declared = self._heap[0]
            for tick in _recent(declared, now_ms):
                try:
                    runs.append(self._run(declared.function, tick, now_ms))
                except Exception as error:  # no allowed format for its arguments, say; the others go on
                    _log_refusal(declared.function.name, error)
            following = next(declared.cron.after(moment(now_ms)), None)
            if following is None:
                heapq.heappop(self._heap)
            else:
                heapq.heapreplace(self._heap, declared._replace(tick_ms=epoch_ms(following)))
        if runs:
            try:
                self._start(runs)
            except BaseException:
                self._heap = before  # the round is repeated, and so are these ticks
                raise
            engine.enqueued(INTERNAL_QUEUE)
        return len(runs)

    def _start(self, runs: Sequence[RunRow]) -> None:
        """Start runs together; if the database refuses one of them, each alone."""
        db = self._engine.db
        try:
            db.commit(Call(db.schedules.start, (runs,), is_apart=True))
        except Exception as error:
            if not db.dialect.refuses_value(error):
                raise
            if len(runs) == 1:
                _log_refusal(runs[0].name, error)
                return
            for run in runs:
                self._start([run])

    def _learn(self, now_ms: int) -> None:
        scheduled = self._engine.registry.scheduled
        if len(self._learned) == len(scheduled):
            self._has_learned = True
            return
        for number in sorted(set(range(len(scheduled))) - self._learned):
            function = self._engine.registry.find_wrapped(scheduled[number].func)
            if function is None or _lacks_class(function):
                # It is decorated further after this, and then we are told; or never, and its users are.
                if not self._has_learned:
                    logger.warning(
                        "%s is scheduled, and never started, because %s.",
                        getattr(scheduled[number].func, "__qualname__", scheduled[number].func),
                        "it is no workflow, step or transaction: put @DBOS.workflow() below @DBOS.scheduled(...)"
                        if function is None
                        else "its class is not registered: decorate that with @DBOS.dbos_class()",
                    )
                continue
            self._learned.add(number)
            cron = parse(scheduled[number].cron, None)
            tick = next(cron.after(moment(now_ms)), None)
            if tick is not None:
                heapq.heappush(self._heap, _Declared(epoch_ms(tick), number, function, cron))
        self._has_learned = True

    def _run(self, function: WorkflowFunction, tick: datetime, now_ms: int) -> RunRow:
        engine, info = self._engine, function.info
        inputs, serialization = engine.serialization.dump_inputs(
            (tick, moment(now_ms)), {}, info.serialization_type, name=function.name
        )
        is_of_class = info.func_type is DBOSFuncType.Class and info.class_info is not None
        return RunRow(
            workflow_uuid=f"sched-{function.name.removeprefix(TEMPORARY_PREFIX)}-{tick.isoformat()}",
            name=function.name,
            class_name=info.class_info.registered_name if is_of_class and info.class_info is not None else None,
            queue_name=INTERNAL_QUEUE,
            inputs=inputs,
            serialization=serialization,
            application_version=engine.application_version,
            application_name=engine.application_name,
            schedule_name=None,
            owner_xid=new_token(),
            created_at=now_ms,
        )


def _lacks_class(function: WorkflowFunction) -> bool:
    return needs_receiver(function.info) and function.info.class_info is None


def _recent(declared: _Declared, now_ms: int) -> Iterator[datetime]:
    """The ticks that are due; after a time in which nobody was there, the last one if it is hardly late."""
    is_late = now_ms - declared.tick_ms > GRACE_MS
    first_ms = now_ms - GRACE_MS if is_late else declared.tick_ms
    due = takewhile(lambda tick: epoch_ms(tick) <= now_ms, declared.cron.after(moment(first_ms - 1)))
    return iter(deque(due, maxlen=1)) if is_late else due


def _log_refusal(name: str, error: Exception) -> None:
    logger.error("%s, which is scheduled in the code, cannot be started: %s", name, error)
