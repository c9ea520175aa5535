"""Executors without threads of their own: each is a real runtime whose services' rounds the simulation calls.

They share one database and this process. What they execute is held at places that the simulation knows, and goes on
when it is let go: in steps' bodies, and on both sides of commits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import pytest

from dbos._context import current_context
from dbos._dbos_config import process_config
from dbos._engine.engine import Engine
from dbos._engine.run import Run
from dbos._error import DBOSDatabaseUnavailableError
from dbos._operations import lifecycle
from dbos._operations.lifecycle import Runtime
from dbos._registry import Registry
from dbos._services.service import Service
from dbos._sys_db import SystemDatabase
from dbos._sysdb.connection import Connection
from dbos._sysdb.operations import Call as DatabaseCall
from dbos._sysdb.operations import Operation, RecordOutcome, RecordStep, StartWorkflow
from dbos._sysdb.rows import Peeked
from dbos._sysdb.stores.events import GetEvent
from dbos._sysdb.stores.messages import Delivery
from dbos._sysdb.stores.queue_claims import Claimed, ClaimRequest
from dbos._threads import Workers
from tests.simulation.application import QUEUES, Application
from tests.simulation.programs import OUTCOME_ID, Hold, Outcome
from tests.simulation.stage import Call, Effect, Place, Stage
from tests.simulation.stillness import SimulatedClock, SimulatedLoop, acting_for

__all__ = ["LEASE_S", "Executor", "place_of"]

LEASE_S = 30.0

FORGET_PROCESS = """
-- To others on this host, the process of this instance is gone.
UPDATE dbos.executor_instances SET process_started_at = '1' WHERE instance_id = :instance
"""

IN_QUEUES = """
-- What waits or runs, in the order in which it was enqueued.
SELECT workflow_uuid, status, queue_name, queue_partition_key, owner_instance,
       owner_instance IN (SELECT instance_id FROM dbos.executor_instances)
FROM dbos.workflow_status
WHERE status IN ('ENQUEUED', 'PENDING') AND queue_name IS NOT NULL
ORDER BY {enqueue_order}
"""


class ObservedDatabase(SystemDatabase):
    """A system database on virtual time, whose commits can be held; commits that a coroutine awaits are counted."""

    def __init__(self, executor: Executor, *args: Any, **kwargs: Any) -> None:
        self._executor = executor
        super().__init__(*args, **kwargs)

    @property
    def _enqueue_order(self) -> str:
        return self.dialect.enqueue_order

    def synchronize_clock(self) -> None:
        pass

    def listen(self, on_wakeup: Callable[[str | None], None]) -> None:
        pass  # every round of a service is called anyway

    def change(self, verb: Callable[..., Any], *arguments: Any) -> Any:
        self._executor.stage.commits += 1
        return super().change(verb, *arguments)

    def commit(self, *operations: Operation) -> Sequence[Any]:
        holds = self._executor.holds_of(operations)
        if "before" in holds:
            holds["before"]().wait()
        if isinstance(operations[0], DatabaseCall) and isinstance(
            next(iter(operations[0].arguments), None), ClaimRequest
        ):
            return self._claim(operations)
        self._executor.stage.commits += 1
        results = super().commit(*operations)
        if "twice" in holds:
            results = super().commit(*operations)
        if "after" in holds:
            holds["after"]().wait()
            self._executor.check_existence()
        return results

    def _claim(self, operations: Sequence[Operation]) -> Sequence[Any]:
        """Claim, and see whether that was right; a claim that finds nothing is nothing that happens."""
        results = super().commit(*operations)
        claimed: Claimed = results[0]
        if claimed.rows:
            self._executor.stage.commits += 1
            rows = self.read(lambda connection: connection.all(IN_QUEUES.format(enqueue_order=self._enqueue_order)))
            self._executor.stage.offences += offences(rows, {row.workflow_uuid for row in claimed.rows})
        return results

    def submit(self, *operations: Operation) -> asyncio.Future[Sequence[Any]]:
        holds = self._executor.holds_of(operations)
        if holds:
            return asyncio.ensure_future(self._submit_held(operations, holds))
        self._executor.stage.commits += 1
        future = super().submit(*operations)
        self._executor.loop.watch(future)
        return future

    async def _submit_held(
        self, operations: Sequence[Operation], holds: dict[Hold, Callable[[], Place]]
    ) -> Sequence[Any]:
        if "before" in holds:
            await holds["before"]().wait_async()
        for _ in range(1 + ("twice" in holds)):
            self._executor.stage.commits += 1
            future = super().submit(*operations)
            self._executor.loop.watch(future)
            results = await future
        if "after" in holds:
            await holds["after"]().wait_async()
            self._executor.check_existence()
        return results

    def read_async(self, verb: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        future = super().read_async(verb, *arguments)
        self._executor.loop.watch(future)
        return future

    def peek_async(self, workflow_id: str) -> asyncio.Future[Peeked]:
        future = super().peek_async(workflow_id)
        self._executor.loop.watch(future)
        return future


def place_of(queue: str, partition_key: str | None, owner: str | None) -> tuple[str | None, ...] | None:
    """What only one workflow of a queue may have at a time; None if there is no such thing."""
    places = {"one": (queue,), "split": (queue, partition_key), "here": (queue, owner)}
    return places.get(queue)


def offences(rows: Sequence[tuple[str, str, str, str | None, str | None, bool]], claimed: set[str]) -> list[str]:
    """What is wrong with a claim, told from everything in queues in the order of enqueueing.

    What belongs to the dead is PENDING and holds no place.
    """
    found: list[str] = []
    taken: dict[tuple[str | None, ...], str] = {}
    passed_over: dict[tuple[str, str | None], str] = {}
    for workflow_id, status, queue, key, owner, is_alive in rows:
        if status == "PENDING":
            place = place_of(queue, key, owner) if is_alive else None
            if place in taken:
                found.append(f"I7: {taken[place]} and {workflow_id} run at once in {place}")
            if place is not None:
                taken[place] = workflow_id
        else:
            passed_over.setdefault((queue, key), workflow_id)
        if workflow_id in claimed and queue in QUEUES and (queue, key) in passed_over:
            found.append(f"I7: {workflow_id} was claimed before {passed_over[queue, key]}, which came first")
    return found


class ObservedWorkers(Workers):
    """Workers whose functions are counted while they act."""

    def __init__(self, executor: Executor, maximum: int) -> None:
        super().__init__(maximum, "simulated")
        self._executor = executor

    def submit(self, func: Callable[[], None]) -> None:
        self._executor.stage.activity.begin()
        super().submit(lambda: self._executor.act(func))


class Executor:
    """One executor: a registry, a runtime and an event loop, as a process would have them."""

    def __init__(self, stage: Stage, number: int, now_s: float) -> None:
        self.stage, self.number = stage, number
        self.state: Literal["live", "stale", "frozen", "gone"] = "live"
        self.behind: set[str] = set()  # workflows that others cancelled or resumed, which it has not heard of yet
        self.former: dict[str, list[Outcome]] = {}  # how workflows ended that were deleted before it had heard of it
        self.calls: list[Call] = []
        self._has_lost = False
        self._is_late = False
        self._holds: dict[tuple[str, int], Hold] = {}
        self.clock = SimulatedClock(now_s)
        self.loop = SimulatedLoop(stage.activity, self.clock)
        settings = process_config(
            {**stage.config, "executor_id": str(self), "lease_s": LEASE_S, "run_migrations": False}
        )
        self.registry: Registry[Engine] = Registry()
        self.registry.queues.update(QUEUES)
        self.runtime = Runtime(settings, self.registry, self.clock)
        self.engine = self.registry.engine = self.runtime.engine
        self.engine.workers = ObservedWorkers(self, settings.max_executor_threads)
        self.application = Application(self)
        self._launch()
        self.instance_id = self.engine.instance_id

    def __str__(self) -> str:
        return f"executor-{self.number}"

    def _launch(self) -> None:
        self._renewed_at = self.clock.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Service, "start", lambda service: None)
            patch.setattr(lifecycle, "SystemDatabase", partial(ObservedDatabase, self))
            self.runtime.launch()
        self.engine.check_lease = self._note_loss
        self.loop.call_soon_threadsafe(self.engine.loops.adopt_running)
        self.stage.activity.wait_until_still()

    def _note_loss(self) -> None:
        self.state = "live"  # the lease's service is woken, and with it the executor looks about
        self._has_lost = True

    # -- acting ------------------------------------------------------------------------------------------------------

    def act(self, func: Callable[[], None]) -> None:
        """Act in this thread, which was counted as acting already."""
        try:
            with acting_for(self.stage.activity, self.clock):
                func()
        finally:
            self.stage.activity.end()

    def call(self, func: Callable[[], Any], call: Call | None = None) -> Call:
        """Call something of the library in a thread, as a user's thread would."""
        call = call or Call(self, "", None)

        def run() -> None:
            try:
                call.value = func()
            except BaseException as error:
                call.error = error
            call.is_over = True

        self.calls.append(call)
        self.stage.activity.begin()
        threading.Thread(target=self.act, args=(run,), name="simulated-caller", daemon=True).start()
        return call

    def look_about(self) -> None:
        """Have every service but the lease's do a round, as they would soon by themselves."""
        runtime = self.runtime
        if self._has_lost:
            self._has_lost = False
            self.renew()
        runtime.recovery.wake()  # as an instance that leaves does
        runtime.recovery.take_over_once()
        runtime._deadlines.cancel_overdue_once()
        runtime._dispatcher.dispatch_soon(None)
        runtime._dispatcher.dispatch_once()
        runtime._notifier.check_once()

    def renew(self) -> None:
        """Have the lease's service do a round."""
        self._renewed_at = self.clock.monotonic()
        self.runtime._leases.renew_once()
        self.runtime._leases.reconcile_once()
        is_late, self._is_late = self._is_late, False
        known_as, self.instance_id = self.instance_id, self.engine.instance_id
        assert is_late or self.instance_id == known_as, f"I2: {self} was declared dead by nobody who outlived it"
        self.behind.clear()

    # -- what befalls it ---------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Nothing of it moves any more."""
        self.state, self.clock.is_frozen = "frozen", True

    def thaw(self) -> None:
        """Its threads go on; its services have still to notice how much time has passed."""
        self.state, self.clock.is_frozen = "stale", False
        self._is_late = True
        self.clock.ring()

    def crash(self, *, is_seen: bool) -> None:
        """It is gone and writes nothing more; others on this host see that at once, or only its lease tells."""
        if is_seen:

            def forget(connection: Connection) -> int:
                return connection.run(FORGET_PROCESS, instance=self.instance_id)

            self.engine.db.change(forget)
        self.state, self.clock.is_frozen = "gone", False
        engine = self.engine
        runs = engine.runs.all()
        engine.close()
        # What is left in memory comes to its end, which a process would not; without a database it can do nothing.
        for run in runs:
            run.lose()
        for place in self.stage.places():
            if place.executor is self:
                self.stage.let_go(place)
        self.clock.ring(for_all=True)
        self.stage.activity.wait_until_still()
        self._end()

    def check_existence(self) -> None:
        """Stop what is left of a crashed executor in memory.

        Raises:
            DBOSDatabaseUnavailableError: it has crashed.
        """
        if self.state == "gone":
            raise DBOSDatabaseUnavailableError("crashed")

    def leave(self) -> None:
        """It is shut down in order."""
        self.state = "gone"
        self.runtime.shut_down(0)
        self.stage.activity.wait_until_still()
        self._end()

    def _end(self) -> None:
        self.loop.end()
        self.engine.workers.close(join=True)

    # -- holding -----------------------------------------------------------------------------------------------------

    def hold(self, workflow_id: str, function_id: int, hold: Hold | None) -> None:
        """Have the commit of an operation held, whenever it is made."""
        if hold not in (None, "body"):
            self._holds[workflow_id, function_id] = hold

    def holds_of(self, operations: Sequence[Operation]) -> dict[Hold, Callable[[], Place]]:
        """Where a commit is to be held."""
        holds: dict[Hold, Callable[[], Place]] = {}
        for operation in operations:
            step = operation if isinstance(operation, RecordOutcome) else _step_of(operation)
            if step is None:
                continue
            function_id = step.function_id if isinstance(step, RecordStep) else OUTCOME_ID
            key = (step.workflow_uuid, function_id)
            where = self._holds.get(key)
            if where is not None:
                is_wait = isinstance(operation, DatabaseCall) and isinstance(
                    operation.arguments[0], Delivery | GetEvent
                )
                holds[where] = partial(self._enter, *key, where, step.run_token, is_wait)
        return holds

    def enter_body(self) -> int:
        """Log that a step's body is entered; returns the number that it is to return."""
        self.check_existence()
        run, step_id = _current_step()
        number = next(self.stage.numbers)
        is_under_lease = self.clock.monotonic() < self._renewed_at + LEASE_S
        is_behind = run.workflow_id in self.behind
        self.stage.effects.append(
            Effect(run.workflow_id, step_id, run.run_token, self, number, is_under_lease, is_behind)
        )
        return number

    def hold_body(self, hold: Hold | None) -> Place | None:
        """Where a step's body is held, if it is."""
        if hold != "body":
            return None
        run, step_id = _current_step()
        return self._enter(run.workflow_id, step_id, "body", run.run_token)

    def _enter(self, workflow_id: str, function_id: int, where: Hold, run_token: str, is_wait: bool = False) -> Place:
        return self.stage.enter(Place(self, workflow_id, function_id, where, run_token, is_wait))


def _step_of(operation: Operation) -> RecordStep | None:
    """The record that is written with an operation."""
    if isinstance(operation, DatabaseCall):
        return getattr(next(iter(operation.arguments), None), "step", None)
    if isinstance(operation, StartWorkflow):
        return operation.parent_step
    return operation if isinstance(operation, RecordStep) else None


def _current_step() -> tuple[Run, int]:
    context = current_context()
    assert context is not None
    assert context.run is not None
    assert context.step_id is not None
    return context.run, context.step_id
