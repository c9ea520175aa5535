"""The reference workflows, and what their caller does with them.

Each workflow returns a list of what its steps, transactions and children returned, in their order, so its result can be
told from its records.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dbos import DBOS, DBOSConfiguredInstance, Queue, SendMessage, SetEnqueueOptions, SetWorkflowID, SetWorkflowTimeout
from dbos._error import DBOSAwaitedWorkflowCancelledError
from tests.failpoints.stage import Crash, Stage, engine, holding

__all__ = ["SCENARIOS", "Application", "Scenario"]

DEADLINE_S = 0.03
POLL_S = 0.002


class Application:
    """The functions of an application; making one registers them."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.unlimited = unlimited = Queue("unlimited")
        self.limited = Queue("limited", concurrency=1, limiter={"limit": 1000, "period": 1.0})
        self.partitioned = Queue("partitioned", concurrency=1, partition_queue=True)

        def body() -> None:
            stage.begin_body(DBOS.workflow_id, DBOS.step_id)

        def halfway() -> None:
            stage.halfway(DBOS.workflow_id)

        @DBOS.step()
        def one() -> str:
            body()
            hold = stage.held.get(DBOS.workflow_id or "")
            if hold is not None:
                hold.is_reached.set()
                assert hold.may_pass.wait(60)
            return "one"

        @DBOS.step()
        def two() -> str:
            body()
            return "two"

        @DBOS.step()
        async def one_async() -> str:
            body()
            return "one"

        @DBOS.step()
        async def two_async() -> str:
            body()
            await asyncio.sleep(0)
            return "two"

        @DBOS.transaction()
        def enter() -> str:
            body()
            values = {"workflow": DBOS.workflow_id, "function": DBOS.step_id}
            DBOS.sql_session.execute(
                sa.text("INSERT INTO ledger (workflow_id, function_id) VALUES (:workflow, :function)"), values
            )
            return "entered"

        @DBOS.workflow()
        def plain() -> list[Any]:
            results = [one()]
            halfway()
            return [*results, two()]

        @DBOS.workflow()
        async def coroutine() -> list[Any]:
            results = [await one_async()]
            halfway()
            return [*results, await two_async()]

        @DBOS.workflow()
        async def gather() -> list[Any]:
            results = await asyncio.gather(one_async(), two_async(), one_async())
            halfway()
            return [*results, await two_async()]

        @DBOS.workflow()
        def transaction() -> list[Any]:
            results = [enter()]
            halfway()
            return [*results, enter(), two()]

        @DBOS.workflow()
        def leaf() -> list[Any]:
            return [one()]

        @DBOS.workflow()
        def parent() -> list[Any]:
            handle = DBOS.start_workflow(leaf)
            results = [handle.get_result()]
            halfway()
            return [*results, leaf()]

        @DBOS.workflow()
        def single() -> list[Any]:
            results = [one()]
            halfway()
            return results

        @DBOS.workflow()
        def enqueuing() -> list[Any]:
            workflow_id = DBOS.workflow_id
            with SetWorkflowID(f"{workflow_id}-own"):
                first = unlimited.enqueue(leaf)
            with SetEnqueueOptions(deduplication_id=workflow_id, duplication_policy="return-existing"):
                second = unlimited.enqueue(leaf)
            halfway()
            return [first.get_result(), second.get_result()]

        @DBOS.workflow()
        def messaging() -> list[Any]:
            workflow_id = DBOS.workflow_id
            assert workflow_id is not None
            DBOS.send(workflow_id, "first")
            DBOS.send_bulk([SendMessage(workflow_id, "second"), SendMessage(workflow_id, "third", "topic")])
            DBOS.set_event("event", "set")
            DBOS.write_stream("stream", "value")
            halfway()
            received = [DBOS.recv(), DBOS.recv("topic"), DBOS.recv(), DBOS.recv(timeout_seconds=0)]
            DBOS.close_stream("stream")
            event = DBOS.get_event(workflow_id, "event")
            values = [next(DBOS.read_stream(workflow_id, "stream")), DBOS.read_stream_offset(workflow_id, "stream", 0)]
            return [*received, event, *values, DBOS.get_all_events(workflow_id)]

        @DBOS.workflow()
        def overdue() -> list[Any]:
            results = [one()]
            DBOS.sleep(3600)
            return [*results, two()]

        @DBOS.dbos_class()
        class Shop:
            @classmethod
            @DBOS.workflow()
            def sell(cls) -> list[Any]:
                results = [cls.pack()]
                halfway()
                return [*results, two()]

            @staticmethod
            @DBOS.step()
            def pack() -> str:
                body()
                return "one"

        @DBOS.dbos_class()
        class Counter(DBOSConfiguredInstance):
            @DBOS.workflow()
            def count(self) -> list[Any]:
                results = [self.say()]
                halfway()
                return [*results, two()]

            @DBOS.step()
            def say(self) -> str:
                body()
                return self.config_name

        self.plain, self.coroutine, self.gather, self.transaction = plain, coroutine, gather, transaction
        self.single, self.enqueuing, self.messaging = single, enqueuing, messaging
        self.parent, self.overdue, self.sell, self.count = parent, overdue, Shop.sell, Counter("one").count

    # -- what callers do ---------------------------------------------------------------------------------------------

    def run(self, workflow: Callable[[], Any], workflow_id: str) -> None:
        """Call a workflow, and recover it if it crashes."""
        try:
            with SetWorkflowID(workflow_id):
                self.result(workflow_id, workflow)
        except Crash:
            self.recover(workflow_id)

    def run_async(self, workflow: Callable[[], Coroutine[Any, Any, Any]], workflow_id: str) -> None:
        """Call a workflow on an event loop, and recover it if it crashes."""

        async def call() -> Any:
            with SetWorkflowID(workflow_id):
                return await workflow()

        try:
            self.result(workflow_id, lambda: asyncio.run(call()))
        except Crash:
            self.recover(workflow_id)

    def enqueue(self, queue: Queue, workflow_id: str, partition_key: str | None = None) -> None:
        """Enqueue a workflow, and recover it if it crashes."""
        crashes = workflow_id in self.stage.crashing
        with SetWorkflowID(workflow_id), SetEnqueueOptions(queue_partition_key=partition_key):
            handle = queue.enqueue(self.single)
        self.stage.acknowledge(workflow_id, "started")
        while crashes and self._may_crash(workflow_id) and not self.stage.is_finished(workflow_id):
            time.sleep(POLL_S)
        if crashes:
            DBOS._recover_pending_workflows()
        self.result(workflow_id, handle.get_result)

    def _may_crash(self, workflow_id: str) -> bool:
        return workflow_id in self.stage.crashing or engine().runs.get(workflow_id) is not None

    def recover(self, workflow_id: str) -> None:
        """Recover what has crashed."""
        DBOS._recover_pending_workflows()
        self.result(workflow_id, DBOS.retrieve_workflow(workflow_id).get_result)

    def result(self, workflow_id: str, get: Callable[[], Any]) -> None:
        """Be told a result."""
        try:
            value = get()
        except DBOSAwaitedWorkflowCancelledError:
            self.stage.acknowledge(workflow_id, "cancelled")
        else:
            self.stage.acknowledge(workflow_id, "result", value)

    def cancel(self, workflow_id: str) -> None:
        """Start a workflow, cancel it while its first step runs, and resume it."""
        with holding(self.stage, workflow_id) as hold:
            with SetWorkflowID(workflow_id):
                handle = DBOS.start_workflow(self.plain)
            self.stage.acknowledge(workflow_id, "started")
            while not hold.is_reached.wait(POLL_S) and not self.stage.is_finished(workflow_id):
                continue
            DBOS.cancel_workflow(workflow_id)
            hold.may_pass.set()
            self.result(workflow_id, handle.get_result)
            while engine().runs.get(workflow_id) is not None:
                time.sleep(POLL_S)  # resumed before the step is recorded, the workflow would run it again
            self.result(workflow_id, DBOS.resume_workflow(workflow_id).get_result)

    def time_out(self, workflow_id: str) -> None:
        """Start a workflow that does not end in the time that it is given."""
        with SetWorkflowID(workflow_id), SetWorkflowTimeout(DEADLINE_S):
            handle = DBOS.start_workflow(self.overdue)
        self.stage.acknowledge(workflow_id, "started")
        self.result(workflow_id, handle.get_result)


@dataclass(frozen=True)
class Scenario:
    """A reference workflow with its caller; ``result`` is None for one that is cancelled in the end."""

    play: Callable[[Application, str], None]
    result: list[Any] | None
    is_apart: bool = False  # whether the application has a database of its own
    may_crash: bool = True


PLAIN = ["one", "two"]
MESSAGING = ["first", "third", "second", None, "set", "value", "value", {"event": "set"}]

SCENARIOS: dict[str, Scenario] = {
    "sync": Scenario(lambda app, id: app.run(app.plain, id), PLAIN),
    "async": Scenario(lambda app, id: app.run_async(app.coroutine, id), PLAIN),
    "class": Scenario(lambda app, id: app.run(app.sell, id), PLAIN),
    "instance": Scenario(lambda app, id: app.run(app.count, id), PLAIN),
    "transaction": Scenario(lambda app, id: app.run(app.transaction, id), ["entered", "entered", "two"]),
    "transaction-apart": Scenario(
        lambda app, id: app.run(app.transaction, id), ["entered", "entered", "two"], is_apart=True
    ),
    "child": Scenario(lambda app, id: app.run(app.parent, id), [["one"], ["one"]]),
    "gather": Scenario(lambda app, id: app.run_async(app.gather, id), ["one", "two", "one", "two"]),
    "cancel": Scenario(lambda app, id: app.cancel(id), PLAIN, may_crash=False),
    "timeout": Scenario(lambda app, id: app.time_out(id), None, may_crash=False),
    "queued": Scenario(lambda app, id: app.enqueue(app.unlimited, id), ["one"]),
    "limited": Scenario(lambda app, id: app.enqueue(app.limited, id), ["one"]),
    "partitioned": Scenario(lambda app, id: app.enqueue(app.partitioned, id, "a key"), ["one"]),
    "messaging": Scenario(lambda app, id: app.run(app.messaging, id), MESSAGING),
    "queued-child": Scenario(lambda app, id: app.run(app.enqueuing, id), [["one"], ["one"]]),
}
