"""The application that every executor runs: workflows that interpret programs, as a user would write them.

Decorated functions find their engine through their registry, so each executor has functions of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from dbos import SetEnqueueOptions, SetWorkflowID, SetWorkflowTimeout
from dbos._context import current_context
from dbos._core import decorate_step, decorate_workflow, execute_in_background
from dbos._engine import timing
from dbos._engine.engine import Engine
from dbos._engine.flow import Flow, drive, drive_async
from dbos._engine.run import Run
from dbos._engine.step import StepPolicy
from dbos._error import DBOSNonExistentWorkflowError, DBOSStreamTimeoutError
from dbos._operations import events, messages, queues, streams, workflows
from dbos._operations.handles import EngineHandle, EngineHandleAsync
from dbos._queue_config import QueueConfig, QueueSettings
from dbos._registry import Registry
from tests.simulation.programs import (
    OUTCOME_ID,
    TIMED_OUT,
    Child,
    CloseStream,
    GetEvent,
    Hold,
    Operation,
    Program,
    ProgramFailed,
    QueueName,
    ReadStream,
    Receive,
    Send,
    SetEvent,
    Sleep,
    Step,
    StepFailed,
    Ticket,
    WriteStream,
)

if TYPE_CHECKING:
    from tests.simulation.executors import Executor

__all__ = ["ATTEMPTS", "EVENT", "QUEUES", "STREAM", "Application", "Kind"]

Kind = Literal["work", "work_async", "fragile_work"]

EVENT, STREAM = "event", "stream"  # the keys of both
VALUED = (Receive, GetEvent, ReadStream)  # operations whose value is part of the outcome

ATTEMPTS: dict[Kind, int] = {"work": 100, "work_async": 100, "fragile_work": 1}  # max_recovery_attempts

_SETTINGS: dict[QueueName, QueueSettings] = {
    "free": QueueSettings(name="free"),
    "one": QueueSettings(name="one", concurrency=1),
    "split": QueueSettings(name="split", concurrency=1, partition_queue=True).partitioned(),
    "here": QueueSettings(name="here", worker_concurrency=1),
}
QUEUES: dict[str, QueueConfig] = {name: settings.obeyed() for name, settings in _SETTINGS.items()}


class Application:
    """The functions of one executor, and what its users call."""

    def __init__(self, executor: Executor) -> None:
        self.engine = executor.engine
        self._executor = executor
        self._register_functions()

    def start(self, kind: Kind, program: Program, workflow_id: str, timeout_s: float | None) -> EngineHandle[Any]:
        """Start a workflow in the background, as ``DBOS.start_workflow`` does."""
        with SetWorkflowID(workflow_id), SetWorkflowTimeout(timeout_s):
            return self._start(kind, program)

    def run(self, kind: Kind, program: Program, workflow_id: str, timeout_s: float | None) -> Any:
        """Call a workflow in place."""
        with SetWorkflowID(workflow_id), SetWorkflowTimeout(timeout_s):
            return self.functions[kind](program)

    def enqueue(
        self, kind: Kind, program: Program, workflow_id: str, timeout_s: float | None, ticket: Ticket
    ) -> EngineHandle[Any]:
        """Enqueue a workflow, as ``Queue.enqueue`` does."""
        options = SetEnqueueOptions(
            deduplication_id=ticket.deduplication_id,
            duplication_policy="return-existing" if ticket.deduplication_id and ticket.is_shared else None,
            queue_partition_key=ticket.partition_key,
            delay_seconds=ticket.delay_s,
        )
        with SetWorkflowID(workflow_id), SetWorkflowTimeout(timeout_s), options:
            return EngineHandle(self.engine, drive(self.engine, self._enqueued(kind, program, ticket.queue))[0])

    def _enqueued(self, kind: Kind, program: Program, queue: QueueName) -> Flow[list[str]]:
        return queues.enqueue(self.engine, queue, None, self.functions[kind], [((program,), {})])

    def _register_functions(self) -> None:
        def step(operation: Step) -> int:
            number = self._executor.enter_body()
            deed = self._deed(operation, number)
            if deed is not None:
                drive(self.engine, deed)
            place = self._executor.hold_body(operation.hold)
            if place is not None:
                place.wait()
            return _end_body(operation, number)

        async def step_async(operation: Step) -> int:
            number = self._executor.enter_body()
            deed = self._deed(operation, number)
            if deed is not None:
                await drive_async(self.engine, deed)
            place = self._executor.hold_body(operation.hold)
            if place is not None:
                await place.wait_async()
            return _end_body(operation, number)

        wrapped_step = self._step(step)
        wrapped_step_async = self._step(step_async)

        def body(program: Program) -> list[Any]:
            return self._interpret(program, wrapped_step)

        async def body_async(program: Program) -> list[Any]:
            return await self._interpret_async(program, wrapped_step_async)

        def fragile_body(program: Program) -> list[Any]:
            return self._interpret(program, wrapped_step)

        self.functions: dict[Kind, Callable[..., Any]] = {
            "work": self._workflow("work", body),
            "work_async": self._workflow("work_async", body_async),
            "fragile_work": self._workflow("fragile_work", fragile_body),
        }

    def _workflow(self, name: Kind, func: Callable[..., Any]) -> Callable[..., Any]:
        return decorate_workflow(
            self.engine.registry,
            func,
            name=name,
            max_recovery_attempts=ATTEMPTS[name],
            serialization_type=None,
            validate_args=None,
        )

    def _step(self, func: Callable[..., Any]) -> Callable[..., Any]:
        registry: Registry[Engine] = Registry()  # both bear the same name, and neither is started by itself
        registry.engine = self.engine
        return decorate_step(registry, func, name="step", policy=StepPolicy())

    def _begin_operation(self, hold: Hold | None) -> None:
        run = _current_run()
        self._executor.hold(run.workflow_id, run.last_function_id + 1, hold)

    # -- messages, events and streams --------------------------------------------------------------------------------

    def _deed(self, operation: Step, number: int) -> Flow[None] | None:
        """What a step does; that it was done is noted."""
        if operation.does is None:
            return None
        engine, run = self.engine, _current_run()
        context = current_context()
        assert context is not None
        value = f"{run.workflow_id}/{context.step_id}#{number}"
        deeds = {
            "send": lambda: messages.send(engine, "a", value),
            "event": lambda: events.set_event(engine, EVENT, value),
            "stream": lambda: streams.write_stream(engine, STREAM, value),
        }

        def do() -> Flow[None]:
            try:
                yield from deeds[operation.does or ""]()
            except DBOSNonExistentWorkflowError:
                return
            self._executor.stage.done.add(number)

        return do()

    def _flow(self, operation: Operation) -> Flow[Any]:
        """An operation of a body that is one of the library's."""
        engine, run = self.engine, _current_run()
        value = f"{run.workflow_id}/{run.last_function_id + 1}"
        match operation:
            case Send(to, topic, key, to_forks):
                to = to or run.workflow_id
                return messages.send(engine, to, value, topic, idempotency_key=key, send_to_forks=to_forks)
            case Receive(topic, timeout_s):
                return messages.recv(engine, topic, timeout_s)
            case SetEvent():
                return events.set_event(engine, EVENT, value)
            case GetEvent(of, timeout_s):
                return events.get_event(engine, of, EVENT, timeout_s)
            case WriteStream():
                return streams.write_stream(engine, STREAM, value)
            case CloseStream():
                return streams.close_stream(engine, STREAM)
            case ReadStream(of, timeout_s):
                return self.read_stream(of, timeout_s, [])
        raise AssertionError(operation)

    def read_stream(self, of: str, timeout_s: float, values: list[Any]) -> Flow[list[Any]]:
        """Read a stream to its end, into a list."""
        reader = streams.read_stream(self.engine, of, STREAM, timeout_seconds=timeout_s)
        try:
            while (item := (yield from reader.next())) is not None:
                values.append(item.value)
        except DBOSStreamTimeoutError:
            values.append(TIMED_OUT)
        return values

    # -- programs ----------------------------------------------------------------------------------------------------

    def _interpret(self, program: Program, step: Callable[..., Any]) -> list[Any]:
        engine, values = self.engine, list[Any]()
        started: list[EngineHandle[Any]] = []
        for operation in program.operations:
            if isinstance(operation, Sleep):
                drive(engine, timing.sleep(engine, operation.seconds))
            elif isinstance(operation, Step):
                self._begin_operation(operation.hold)
                try:
                    values.append(step(operation))
                except StepFailed:
                    if not operation.is_caught:
                        raise
                    values.append("caught")
            elif not isinstance(operation, Child):
                self._begin_operation(getattr(operation, "hold", None))
                value = drive(engine, self._flow(operation))
                if isinstance(operation, VALUED):
                    values.append(value)
            else:
                self._begin_operation(operation.hold)
                if operation.in_place:
                    values.append(self.functions["work"](operation.program))
                elif operation.is_queued:
                    [child] = drive(engine, self._enqueued("work", operation.program, "free"))
                    started.append(EngineHandle(engine, child))
                else:
                    started.append(self._start("work", operation.program))
        values += [handle.get_result() for handle in started]
        return self._end_program(program, values)

    def _start(self, kind: Kind, program: Program) -> EngineHandle[Any]:
        begun = drive(self.engine, workflows.start(self.engine, self.functions[kind], (program,), {}))
        if isinstance(begun, Run):
            execute_in_background(self.engine, begun)
            return EngineHandle(self.engine, begun.workflow_id, begun)
        return EngineHandle(self.engine, begun)

    async def _interpret_async(self, program: Program, step: Callable[..., Any]) -> list[Any]:
        engine, values = self.engine, list[Any]()
        started: list[EngineHandleAsync[Any]] = []
        for operation in program.operations:
            if isinstance(operation, Sleep):
                await drive_async(engine, timing.sleep(engine, operation.seconds))
            elif isinstance(operation, Step):
                self._begin_operation(operation.hold)
                try:
                    values.append(await step(operation))
                except StepFailed:
                    if not operation.is_caught:
                        raise
                    values.append("caught")
            elif not isinstance(operation, Child):
                self._begin_operation(getattr(operation, "hold", None))
                value = await drive_async(engine, self._flow(operation))
                if isinstance(operation, VALUED):
                    values.append(value)
            else:
                self._begin_operation(operation.hold)
                if operation.in_place:
                    values.append(await self.functions["work_async"](operation.program))
                elif operation.is_queued:
                    [child] = await drive_async(engine, self._enqueued("work_async", operation.program, "free"))
                    started.append(EngineHandleAsync(engine, child))
                else:
                    started.append(await self._start_async(operation.program))
        values += [await handle.get_result() for handle in started]
        return self._end_program(program, values)

    async def _start_async(self, program: Program) -> EngineHandleAsync[Any]:
        function = self.functions["work_async"]
        begun = await drive_async(self.engine, workflows.start(self.engine, function, (program,), {}))
        if isinstance(begun, Run):
            execute_in_background(self.engine, begun, loop=asyncio.get_running_loop())
            return EngineHandleAsync(self.engine, begun.workflow_id, begun)
        return EngineHandleAsync(self.engine, begun)

    def _end_program(self, program: Program, values: list[Any]) -> list[Any]:
        run = _current_run()
        self._executor.hold(run.workflow_id, OUTCOME_ID, program.hold)
        if program.fails:
            raise ProgramFailed(run.workflow_id)
        return values


def _current_run() -> Run:
    context = current_context()
    assert context is not None
    assert context.run is not None
    return context.run


def _end_body(operation: Step, number: int) -> int:
    if operation.fails:
        raise StepFailed(number)
    return number
