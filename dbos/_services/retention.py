"""Retention: deletes finished workflows that are past their time, a little at a time, one process at a time.

A pass walks the workflows in the order in which they were created, and can be left after each batch: the lease of the
task, its position, and what is deleted are one transaction, so whoever goes on does it where the last one was, and who
has lost the lease deletes nothing more. A batch is as large as it may be without keeping others waiting for long, and
the next one comes after as much time as it took.
"""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dbos._engine.engine import Engine
from dbos._engine.flow import Commit, Flow, Pause, Read, drive
from dbos._error import DBOSDatabaseUnavailableError
from dbos._ids import new_instance_id, new_token
from dbos._retention_policy import RetentionPolicy, Rule
from dbos._services.service import Service
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import Call
from dbos._sysdb.stores.management_actions import Action
from dbos._sysdb.stores.retention import FINISHED, Candidate, Entry, Hold, Task
from dbos._sysdb.wakeups import Signal
from dbos._types import RetentionReport

if TYPE_CHECKING:
    from dbos._app_db import ApplicationDatabase

__all__ = ["ACTION", "Retention", "RetentionPass", "forget_records"]

logger = logging.getLogger("dbos.retention")

TASK = "retention"
ACTION = "run_retention"
HOLD_MS = 60_000  # how long a process that died in the middle keeps the others from going on
KEEP_MS = HOLD_MS // 4  # how often a pass that finds nothing to delete says that it is alive
PAGE_SIZE = 1000  # workflows that are looked at in one read
MESSAGES_PAGE_SIZE = 10_000  # each read may have to pass over all that a mailbox has received
RECORDS_AGE_MS = 24 * 3600 * 1000  # from which on records are looked at if no rule has an age
FIRST_BATCH = 100  # how many are deleted together before it is known how long that takes
BATCH_S = 0.02  # how long a batch should keep others waiting
AT_ONCE_MS = 2**62  # no pass was completed later than this: the task is due
BEGINNING = (-1, "")
RECORDS_BEGINNING = (-1, "", -1)
WORKFLOWS, RECORDS = "workflows", "records"  # the stages that may be long

_Kind = Literal["messages", "schedule_decisions", "management_actions"]


class _Left(Exception):
    """The pass ends before it is complete: it was told to, or another process has its lease."""


class Cutoffs(NamedTuple):
    """Before which time a workflow must have ended to be deleted, by its name; -1 for never."""

    general: int
    by_name: Mapping[str, int]

    def of(self, name: str | None) -> int:
        return self.general if name is None else self.by_name.get(name, self.general)

    @property
    def latest(self) -> int:
        return max(self.general, *self.by_name.values(), -1)


class RetentionPass:
    """One pass over all that a policy deletes: :meth:`take` the task, and :meth:`run` if that succeeded."""

    def __init__(self, engine: Engine, policy: RetentionPolicy, action: Action, stop: Signal | None = None) -> None:
        """``action`` is noted if something was deleted, with what was."""
        self._engine = engine
        self._store = engine.db.retention
        self._policy = policy
        self._action = action
        self._stop = stop or Signal()
        # Processes that share a database have the workflows of their own application in their care.
        self._application = engine.application_name
        self._task = f"{TASK}:{self._application}" if self._application else TASK
        self.holder = f"{engine.instance_id}/{new_token()}"
        self._position: tuple[str, Sequence[Any]] = (WORKFLOWS, BEGINNING)
        self._batch = min(FIRST_BATCH, policy.batch_size)
        self._kept_ms = 0
        self._took_s = 0.0
        self.report: RetentionReport = {
            "workflows": 0,
            "messages": 0,
            "transaction_outputs": 0,
            "schedule_decisions": 0,
            "management_actions": 0,
            "is_complete": False,
            "held_by": None,
        }

    # -- the lease -----------------------------------------------------------------------------------------------------

    def take(self, due_before_ms: int = AT_ONCE_MS) -> Flow[Task]:
        """Take the task, unless another process has it or completed it after a time; :attr:`holder` tells from it."""
        now_ms = self._engine.db.now_ms()
        arguments = (self._task, self.holder, now_ms, now_ms + HOLD_MS, due_before_ms)
        results = yield Commit((Call(self._store.take, arguments, is_apart=True),))
        task: Task = results[0]
        if task.holder == self.holder:
            self._kept_ms = now_ms
            self._position = self._position_of(task.position)
        else:
            self.report["held_by"] = task.holder
        return task

    def _position_of(self, text: str | None) -> tuple[str, Sequence[Any]]:
        """Where another process has left a pass; one with other rules has passed over what is to be deleted now."""
        position = {} if text is None else json.loads(text)
        if position.get("policy") != self._policy.digest():
            return WORKFLOWS, BEGINNING
        return position["stage"], tuple(position["after"])

    def _hold(self) -> Hold:
        stage, after = self._position
        position = json.dumps({"policy": self._policy.digest(), "stage": stage, "after": after})
        self._kept_ms = self._engine.db.now_ms()
        return Hold(self._task, self.holder, self._kept_ms + HOLD_MS, position)

    def _keep(self) -> Flow[None]:
        """Between reads: extend the lease when it is time, and leave when told to."""
        if self._engine.db.now_ms() - self._kept_ms >= KEEP_MS:
            results = yield Commit((Call(self._store.keep, (self._hold(),), is_apart=True),))
            if not results[0]:
                raise _Left
        if self._stop.is_set:
            raise _Left

    # -- the pass ------------------------------------------------------------------------------------------------------

    def run(self) -> Flow[RetentionReport]:
        """Delete; returns what was, also if the pass was left in the middle."""
        db, policy = self._engine.db, self._policy
        try:
            now_ms = db.now_ms()
            yield from self._delete_workflows((yield from self._cutoffs(now_ms)), now_ms)
            yield from self._delete_records(now_ms)
            yield from self._delete_history(now_ms)
        except _Left:
            yield from self._finish(self._store.leave, self._hold())
            return self.report
        except (DBOSDatabaseUnavailableError, GeneratorExit):
            raise  # the lease runs out
        except BaseException:  # an interrupt, too: others need not wait for the lease to run out
            # Where it failed is not known exactly: the next pass begins where the last batch was committed.
            with suppress(Exception):  # which would hide what happened
                yield from self._finish(self._store.drop, self._task, self.holder)
            raise
        # What is done by hand with other rules does not count as what is due.
        ended_at = db.now_ms() if policy == self._engine.settings.retention else None
        yield from self._finish(self._store.end, self._task, self.holder, ended_at)
        self.report["is_complete"] = True
        return self.report

    def _finish(self, verb: Callable[..., Any], *arguments: Any) -> Flow[None]:
        """Give the task up, and note what was deleted."""
        operations = [Call(verb, arguments, is_apart=True)]
        deleted = {
            kind: count for kind, count in self.report.items() if kind not in ("is_complete", "held_by") and count
        }
        if deleted:
            action = self._action._replace(details={**self._action.details, **deleted})
            operations.append(Call(self._engine.db.actions.note, (action,), is_apart=True))
        yield Commit(tuple(operations))

    def _delete(self, verb: Callable[..., Any], *arguments: Any) -> Flow[Any]:
        """Delete a batch; give way to others when what was deleted is accounted for."""
        clock = self._engine.clock
        began = clock.monotonic()
        results = yield Commit((Call(verb, (self._hold(), *arguments), is_apart=True),))
        took_s = clock.monotonic() - began
        if took_s > BATCH_S:
            self._batch = max(1, self._batch // 2)
        else:
            self._batch = min(self._policy.batch_size, self._batch * 2)
        self._took_s = took_s
        if results[0] is None:
            raise _Left
        return results[0]

    def _give_way(self) -> Flow[None]:
        """For as long as the last batch took, or for good."""
        if (yield Pause(self._stop, self._took_s)):
            raise _Left

    # -- workflows -----------------------------------------------------------------------------------------------------

    def _cutoffs(self, now_ms: int) -> Flow[Cutoffs]:
        policy = self._policy
        rules: dict[str | None, Rule | None] = {None: policy.general}
        rules.update(policy.by_name)
        newest: dict[str | None, list[int]] = {name: [] for name, rule in rules.items() if rule and rule.max_count}
        if newest:
            yield from self._find_newest(newest)
        cutoffs = {name: _cutoff(rule, newest.get(name, []), now_ms) for name, rule in rules.items()}
        general = cutoffs.pop(None)
        return Cutoffs(general, {name: cutoff for name, cutoff in cutoffs.items() if name is not None})

    def _find_newest(self, newest: Mapping[str | None, list[int]]) -> Flow[None]:
        """Fill a heap for each rule with the ends of as many workflows as it keeps."""
        after: tuple[int, str] = BEGINNING
        while True:
            page: list[Candidate] = yield Read(self._store.page, (after, PAGE_SIZE))
            for each in self._own(page):
                heap = newest.get(each.name if each.name in self._policy.by_name else None)
                rule = self._policy.rule_of(each.name)
                if heap is None or rule is None or each.status not in FINISHED:
                    continue
                assert rule.max_count is not None
                if len(heap) < rule.max_count:
                    heapq.heappush(heap, each.ended_at)
                else:
                    heapq.heappushpop(heap, each.ended_at)
            if len(page) < PAGE_SIZE:
                return
            after = page[-1].created_at, page[-1].workflow_uuid
            yield from self._keep()

    def _own(self, page: Sequence[Candidate]) -> Iterator[Candidate]:
        if self._application is None:
            return iter(page)
        return (each for each in page if each.application_name in (None, self._application))

    def _delete_workflows(self, cutoffs: Cutoffs, now_ms: int) -> Flow[None]:
        latest = cutoffs.latest
        while self._position[0] == WORKFLOWS:
            created_at, workflow_id = self._position[1]
            page: list[Candidate] = yield Read(self._store.page, ((created_at, workflow_id), PAGE_SIZE))
            own = [each for each in self._own(page) if each.created_at < latest]
            doomed = [each for each in own if each.status in FINISHED and each.ended_at < cutoffs.of(each.name)]
            while doomed:
                batch, doomed = doomed[: self._batch], doomed[self._batch :]
                yield from self._delete_batch(batch)
            yield from self._delete_messages([each for each in own if each.status not in FINISHED], now_ms)
            if len(page) < PAGE_SIZE or page[-1].created_at >= latest:
                self._position = RECORDS, RECORDS_BEGINNING
            else:
                self._position = WORKFLOWS, (page[-1].created_at, page[-1].workflow_uuid)
            yield from self._keep()

    def _delete_batch(self, batch: Sequence[Candidate]) -> Flow[None]:
        self._position = WORKFLOWS, (batch[-1].created_at, batch[-1].workflow_uuid)
        ended = {each.workflow_uuid: each.ended_at for each in batch}
        deleted: list[str] = yield from self._delete(self._store.delete, ended)
        self.report["workflows"] += len(deleted)
        self.report["transaction_outputs"] += yield from forget_records(self._engine, deleted)
        yield from self._give_way()

    def _delete_messages(self, unfinished: Sequence[Candidate], now_ms: int) -> Flow[None]:
        """Of workflows that run for long, what they have received long ago."""
        by_age: dict[int, list[str]] = {}
        for each in unfinished:
            rule = self._policy.rule_of(each.name)
            if rule is not None and rule.max_age_ms is not None:
                by_age.setdefault(rule.max_age_ms, []).append(each.workflow_uuid)
        for age_ms, ids in by_age.items():
            arguments = (ids, now_ms - age_ms, MESSAGES_PAGE_SIZE)
            page_length = MESSAGES_PAGE_SIZE
            while page_length == MESSAGES_PAGE_SIZE:
                page: list[str] = yield Read(self._store.messages, arguments)
                yield from self._delete_all("messages", self._store.delete_messages, page)
                page_length = len(page)

    # -- beside workflows ----------------------------------------------------------------------------------------------

    def _delete_records(self, now_ms: int) -> Flow[None]:
        """What was recorded of workflows that are not there: of those that were deleted when this failed, or died."""
        records, rules = _records(self._engine), self._policy.rules
        if records is None or not rules:
            return
        age_ms = max((rule.max_age_ms for rule in rules if rule.max_age_ms is not None), default=RECORDS_AGE_MS)
        before_ms, page_length = now_ms - age_ms, PAGE_SIZE
        while page_length == PAGE_SIZE:
            created_at, workflow_id, function_id = self._position[1]
            arguments = (records.old_records, before_ms, (created_at, workflow_id, function_id), PAGE_SIZE)
            page: list[tuple[int, str, int]] = yield Read(_in_thread, arguments)
            ids = {workflow_id for _, workflow_id, _ in page}
            existing: list[str] = yield Read(self._engine.db.workflows.existing, (sorted(ids),))
            orphaned = sorted(ids.difference(existing))
            self.report["transaction_outputs"] += yield from forget_records(self._engine, orphaned)
            page_length = len(page)
            if page:
                self._position = RECORDS, page[-1]
            yield from self._keep()

    def _delete_history(self, now_ms: int) -> Flow[None]:
        age_ms = self._policy.history_max_age_ms
        if age_ms is None:
            return
        before_ms, store = now_ms - age_ms, self._store
        yield from self._delete_entries("schedule_decisions", store.decisions, store.delete_decisions, before_ms)
        yield from self._delete_entries("management_actions", store.actions, store.delete_actions, before_ms)

    def _delete_entries(
        self, kind: _Kind, look: Callable[..., list[Entry]], delete: Callable[..., Any], before_ms: int
    ) -> Flow[None]:
        """The entries of a history from before a time: as far as they are that old, and not those behind."""
        after = -1
        while True:
            page: list[Entry] = yield Read(look, (after, PAGE_SIZE))
            yield from self._delete_all(kind, delete, [each.id for each in page if each.at < before_ms])
            if len(page) < PAGE_SIZE or page[-1].at >= before_ms:
                return
            after = page[-1].id
            yield from self._keep()

    def _delete_all(self, kind: _Kind, verb: Callable[..., Any], ids: Sequence[Any]) -> Flow[None]:
        while ids:
            batch, ids = ids[: self._batch], ids[self._batch :]
            count: int = yield from self._delete(verb, batch)
            self.report[kind] += count
            yield from self._give_way()


def _cutoff(rule: Rule | None, newest: Sequence[int], now_ms: int) -> int:
    if rule is None:
        return -1
    by_age = -1 if rule.max_age_ms is None else now_ms - rule.max_age_ms
    if rule.max_count is None:
        return by_age
    if rule.max_count == 0:
        return now_ms + 1
    return max(by_age, newest[0]) if len(newest) == rule.max_count else by_age


def forget_records(engine: Engine, workflow_ids: Sequence[str]) -> Flow[int]:
    """Delete what a database of the application's own has recorded of workflows that are gone; returns how much."""
    records = _records(engine)
    if records is None or not workflow_ids:
        return 0
    deleted: int = yield Read(_in_thread, (records.delete_records, workflow_ids))
    return deleted


def _records(engine: Engine) -> ApplicationDatabase | None:
    """Where transactions are recorded, if that is another database; a client has no business there."""
    settings = engine.settings
    is_apart = settings.application_database_url is not None and not settings.has_one_database
    return engine.application_database if is_apart and not engine.is_client else None


def _in_thread(connection: Connection, verb: Callable[..., Any], *arguments: Any) -> Any:
    """Work on the application's database: where reads are done, because it would hold up an event loop."""
    return verb(*arguments)


class Retention(Service):
    """Passes in the background, as the configuration says."""

    name = "retention"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.clock)
        self._engine = engine
        self._leave = Signal()

    def start(self) -> None:
        self._leave = Signal()
        super().start()

    def stop(self, patience_s: float | None = None) -> None:
        self._leave.set()
        super().stop(patience_s)

    def work_once(self) -> float | None:
        """Make a pass if one is due and no other process makes it."""
        engine, policy = self._engine, self._engine.settings.retention
        if policy is None:
            return None
        interval_ms, now_ms = int(policy.interval_s * 1000), engine.db.now_ms()
        action = Action(ACTION, now_ms, None, engine.executor_id, new_instance_id(), {})
        retention = RetentionPass(engine, policy, action, self._leave)
        task = drive(engine, retention.take(now_ms - interval_ms))
        if task.holder == retention.holder:
            report = drive(engine, retention.run())
            logger.info("retention has deleted %s workflows", report["workflows"], extra=dict(report))
            return policy.interval_s
        if task.holder is not None:
            return min(policy.interval_s, HOLD_MS / 1000)
        return max(0.0, ((task.last_run_at or 0) + interval_ms - now_ms) / 1000)
