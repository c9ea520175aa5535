"""The application that every executor runs: workflows that interpret programs, as a user would write them.

Decorated functions find their engine through their registry, so each executor has functions of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from dbos import SetWorkflowID, SetWorkflowTimeout
from dbos._context import current_context
from dbos._core import decorate_step, decorate_workflow, execute_in_background
from dbos._engine import timing
from dbos._engine.engine import Engine
from dbos._engine.flow import drive, drive_async
from dbos._engine.run import Run
from dbos._engine.step import StepPolicy
from dbos._operations import workflows
from dbos._operations.handles import EngineHandle, EngineHandleAsync
from dbos._registry import Registry
from tests.simulation.programs import OUTCOME_ID, Hold, Program, ProgramFailed, Sleep, Step, StepFailed

if TYPE_CHECKING:
    from tests.simulation.executors import Executor

__all__ = ["ATTEMPTS", "Application", "Kind"]

Kind = Literal["work", "work_async", "fragile_work"]

ATTEMPTS: dict[Kind, int] = {"work": 100, "work_async": 100, "fragile_work": 1}  # max_recovery_attempts


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

    def _register_functions(self) -> None:
        def step(operation: Step) -> int:
            number, place = self._executor.enter_body(operation.hold == "body")
            if place is not None:
                place.wait()
            return _end_body(operation, number)

        async def step_async(operation: Step) -> int:
            number, place = self._executor.enter_body(operation.hold == "body")
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
            else:
                self._begin_operation(operation.hold)
                if operation.in_place:
                    values.append(self.functions["work"](operation.program))
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
            else:
                self._begin_operation(operation.hold)
                if operation.in_place:
                    values.append(await self.functions["work_async"](operation.program))
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
