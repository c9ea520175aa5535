"""Flows decide, drivers act: here flows are stepped by hand, without a database, a thread or an event loop."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dbos._clock import SystemClock, VirtualClock
from dbos._context import Context, current_context, install, restore
from dbos._dbos_config import process_config
from dbos._engine.engine import Engine
from dbos._engine.execution import execute
from dbos._engine.flow import Commit, Flow, Invoke, Pause, Raised, Read, Returned, conclude, drive
from dbos._engine.run import Run, Runs
from dbos._engine.step import StepFunction, StepPolicy, run_step
from dbos._engine.timing import sleep
from dbos._error import (
    DBOSException,
    DBOSMaxStepRetriesExceeded,
    DBOSUnexpectedStepError,
    DBOSWorkflowCancelledError,
    DBOSWorkflowConflictIDError,
)
from dbos._registrations import DBOSFuncInfo
from dbos._registry import Registry, WorkflowFunction
from dbos._sysdb.operations import OutcomeRecorded, RecordOutcome, RecordStep, StepRecorded
from dbos._sysdb.rows import StepRow
from dbos._sysdb.wakeups import Signal, Wakeups

RECORDED = [StepRecorded("PENDING", None)]


@pytest.fixture
def engine() -> Engine:
    """An engine that knows the time, and has nothing to do anything with."""
    clock = VirtualClock()
    engine = Engine(process_config({"name": "app"}, {}), Registry(), clock)
    database = SimpleNamespace(
        now_ms=clock.now_ms, wakeups=Wakeups(), publish=lambda topic: None, workflows=SimpleNamespace(get="get")
    )
    engine.open(cast(Any, database))
    return engine


def make_run(engine: Engine, history: dict[int, StepRow] | None = None, *, deadline_ms: int | None = None) -> Run:
    run = Run(
        workflow_id="wf",
        run_token="token",
        start_token="token",
        function=WorkflowFunction("workflow", "workflow", print, DBOSFuncInfo(), is_async=False),
        args=(1,),
        kwargs={},
        context=Context(),
        format=None,
        deadline_ms=deadline_ms,
        history=history,
    )
    engine.runs.add(run)
    return run


def make_step(**policy: Any) -> StepFunction:
    return StepFunction("step", print, StepPolicy(**policy))


def row(function_id: int, name: str, output: str | None = None) -> StepRow:
    return StepRow("wf", function_id, name, output, None, None, 1, 2, "json")


def end(flow: Flow[Any], answer: Any) -> Any:
    """Send the last answer and return what the flow returns."""
    with pytest.raises(StopIteration) as stop:
        flow.send(answer)
    return stop.value.value


# -- steps -------------------------------------------------------------------------------------------------------------


def test_a_step_is_called_and_then_recorded(engine: Engine) -> None:
    run = make_run(engine)
    flow = run_step(engine, run, run.context, make_step(), ("argument",), {"sep": ""})

    call = next(flow)
    assert isinstance(call, Invoke)
    assert (call.func, call.args, call.kwargs) == (print, ("argument",), {"sep": ""})
    assert (call.context.run, call.context.step_id) == (run, 1)

    commit = flow.send(Returned([42]))
    assert isinstance(commit, Commit)
    [record] = commit.operations
    assert isinstance(record, RecordStep)
    assert record[:6] == ("wf", 1, "step", "[42]", None, None)
    assert record.run_token == "token"

    assert end(flow, RECORDED) == [42]


def test_a_recorded_step_yields_no_effect(engine: Engine) -> None:
    run = make_run(engine, {1: row(1, "step", '"recorded"')})

    assert end(run_step(engine, run, run.context, make_step(), (), {}), None) == "recorded"
    assert run.last_function_id == 1


def test_another_recorded_name_is_an_error(engine: Engine) -> None:
    run = make_run(engine, {1: row(1, "other", "1")})

    with pytest.raises(DBOSUnexpectedStepError):
        next(run_step(engine, run, run.context, make_step(), (), {}))


def test_a_record_that_was_there_first_is_adopted(engine: Engine) -> None:
    run = make_run(engine)
    flow = run_step(engine, run, run.context, make_step(), (), {})
    next(flow)
    flow.send(Returned("mine"))

    assert end(flow, [StepRecorded("PENDING", row(1, "step", '"theirs"'))]) == "theirs"


def test_a_step_whose_run_lost_its_workflow_is_stopped(engine: Engine) -> None:
    run = make_run(engine)
    flow = run_step(engine, run, run.context, make_step(), (), {})
    next(flow)
    flow.send(Returned(1))

    with pytest.raises(DBOSWorkflowConflictIDError):
        flow.send([StepRecorded(None, None)])
    with pytest.raises(DBOSWorkflowConflictIDError):
        next(run_step(engine, run, run.context, make_step(), (), {}))


def test_a_step_that_was_running_when_the_cancellation_came_is_the_last_one(engine: Engine) -> None:
    run = make_run(engine)
    flow = run_step(engine, run, run.context, make_step(), (), {})
    next(flow)
    flow.send(Returned(1))

    assert end(flow, [StepRecorded("CANCELLED", None)]) == 1
    with pytest.raises(DBOSWorkflowCancelledError):
        next(run_step(engine, run, run.context, make_step(), (), {}))


def test_attempts_are_separated_by_growing_pauses(engine: Engine) -> None:
    run = make_run(engine)
    policy = {"retries_allowed": True, "max_attempts": 3, "interval_s": 2.0, "backoff_rate": 3.0}
    flow = run_step(engine, run, run.context, make_step(**policy), (), {})
    errors = [ValueError(number) for number in range(3)]

    next(flow)
    first = flow.send(Raised(errors[0]))
    flow.send(None)
    second = flow.send(Raised(errors[1]))
    flow.send(None)
    commit = flow.send(Raised(errors[2]))

    assert [pause.timeout_s for pause in (first, second) if isinstance(pause, Pause)] == [2.0, 6.0]
    assert isinstance(commit, Commit)  # and no pause after the last attempt
    ended = end(flow, RECORDED)
    assert isinstance(ended, Raised)
    assert isinstance(ended.error, DBOSMaxStepRetriesExceeded)
    assert ended.error.errors == errors


def test_a_signal_that_stops_the_workflow_is_never_retried_nor_recorded(engine: Engine) -> None:
    run = make_run(engine)
    flow = run_step(engine, run, run.context, make_step(retries_allowed=True), (), {})
    next(flow)
    signal = DBOSWorkflowCancelledError("stop")

    assert end(flow, Raised(signal)) == Raised(signal)


def refusing(engine: Engine, *, value: bool) -> None:
    dialect = SimpleNamespace(refuses_value=lambda error: value)
    engine.open(cast(Any, SimpleNamespace(dialect=dialect)))


def test_a_step_whose_record_fails_for_another_reason_stops_its_run(engine: Engine) -> None:
    refusing(engine, value=False)
    run = make_run(engine)
    flow = run_step(engine, run, run.context, make_step(), (), {})
    next(flow)
    flow.send(Returned("result"))

    with pytest.raises(DBOSWorkflowConflictIDError):
        flow.throw(RuntimeError("the statement was cancelled"))

    assert run.is_interrupted


def test_a_refused_record_is_replaced_by_an_error(engine: Engine) -> None:
    refusing(engine, value=True)
    run = make_run(engine)
    flow = run_step(engine, run, run.context, make_step(), (), {})
    next(flow)
    flow.send(Returned("too large"))

    commit = flow.throw(ValueError("too large"))

    assert isinstance(commit, Commit)
    [record] = commit.operations
    assert isinstance(record, RecordStep)
    assert record.output is None
    assert record.error is not None
    ended = end(flow, RECORDED)
    assert isinstance(ended, Raised)
    assert isinstance(ended.error, DBOSException)


@pytest.mark.parametrize(("attempt", "pause_s"), [(0, 1.0), (1, 2.0), (11, 2048.0), (12, 3600.0), (100_000, 3600.0)])
def test_pauses_are_capped_at_an_hour(attempt: int, pause_s: float) -> None:
    assert StepPolicy().pause_s(attempt) == pause_s


def test_no_step_begins_while_the_lease_is_in_doubt(engine: Engine) -> None:
    run = make_run(engine)
    engine.lease_guard = engine.clock.monotonic()
    flow = run_step(engine, run, run.context, make_step(), (), {})

    pause = next(flow)
    assert isinstance(pause, Pause)
    engine.lease_guard += 1
    renewed, engine.lease_renewed = engine.lease_renewed, Signal()
    renewed.set()

    assert pause.signal.is_set
    assert isinstance(flow.send(True), Invoke)


# -- workflows ---------------------------------------------------------------------------------------------------------


def test_a_workflow_is_called_and_its_outcome_recorded(engine: Engine) -> None:
    run = make_run(engine)
    context = run.context
    flow = execute(engine, run)

    call = next(flow)
    assert isinstance(call, Invoke)
    assert (call.context, call.args) == (context, (1,))
    commit = flow.send(Returned("result"))
    assert isinstance(commit, Commit)
    [record] = commit.operations
    assert isinstance(record, RecordOutcome)
    assert (record.status, record.output, record.run_token) == ("SUCCESS", '"result"', "token")
    end(flow, [OutcomeRecorded(is_applied=True)])

    assert run.outcome == Returned("result")
    assert run.finished.is_set
    assert engine.runs.get("wf") is None


def test_an_outcome_that_is_not_accepted_is_none(engine: Engine) -> None:
    run = make_run(engine)
    flow = execute(engine, run)
    next(flow)
    flow.send(Returned("result"))

    end(flow, [OutcomeRecorded(is_applied=False)])

    assert run.outcome is None
    assert run.finished.is_set


@pytest.mark.parametrize("signal", [DBOSWorkflowCancelledError("cancelled"), DBOSWorkflowConflictIDError("wf")])
def test_a_stopped_workflow_records_nothing(engine: Engine, signal: BaseException) -> None:
    run = make_run(engine)
    flow = execute(engine, run)
    next(flow)

    end(flow, Raised(signal))

    assert run.outcome is None


def test_an_interrupted_workflow_leaves_nothing_behind(engine: Engine) -> None:
    run = make_run(engine)
    flow = execute(engine, run)
    next(flow)

    with pytest.raises(KeyboardInterrupt):
        flow.throw(KeyboardInterrupt())

    assert engine.runs.get("wf") is None
    assert run.finished.is_set


def test_waiting_ends_when_the_run_is_cancelled(engine: Engine) -> None:
    run = make_run(engine)
    flow = in_context(run.context, lambda: sleep(engine, 5))
    assert isinstance(flow.send(None), Commit)
    pause = flow.send(RECORDED)
    assert isinstance(pause, Pause)
    assert pause.timeout_s == pytest.approx(5)

    run.cancel()

    assert pause.signal.is_set
    with pytest.raises(DBOSWorkflowCancelledError):
        flow.send(True)


def in_context(context: Context, make: Callable[[], Flow[Any]]) -> Flow[Any]:
    """A flow that finds ``context`` current when it begins."""

    def flow() -> Flow[Any]:
        inner = make()
        token = install(context)
        try:
            effect = next(inner)
        finally:
            restore(token)
        while True:
            try:
                effect = inner.send((yield effect))
            except StopIteration as stop:
                return stop.value

    return flow()


# -- drivers -----------------------------------------------------------------------------------------------------------


class Answers:
    """An engine whose database answers at once."""

    def __init__(self) -> None:
        self.db = self
        self.clock = SystemClock()

    def commit(self, *operations: Any) -> list[Any]:
        return [f"committed {operation}" for operation in operations]

    def read(self, verb: Callable[..., Any], *arguments: Any) -> Any:
        return verb(*arguments)


def test_a_driver_answers_every_effect_and_returns_the_result() -> None:
    def flow() -> Flow[list[Any]]:
        committed = yield Commit(("a", "b"))  # type: ignore[arg-type]
        read = yield Read(len, ("abc",))
        called = yield Invoke(Context(), max, (1, 2), {})
        raised = yield Invoke(Context(), int, ("x",), {})
        return [committed, read, called, type(raised.error)]

    assert drive(cast(Any, Answers()), flow()) == [["committed a", "committed b"], 3, Returned(2), ValueError]


def test_what_goes_wrong_with_an_effect_is_thrown_into_the_flow() -> None:
    def flow() -> Flow[str]:
        try:
            yield Read(int, ("x",))
        except ValueError:
            return "caught"
        return "not caught"

    assert drive(cast(Any, Answers()), flow()) == "caught"


@pytest.mark.parametrize("error", [StopIteration("x"), ValueError("x"), DBOSWorkflowCancelledError("x")])
def test_an_error_that_a_flow_ends_with_is_raised_as_it_is(error: BaseException) -> None:
    def flow() -> Flow[Any]:
        def fail() -> None:
            raise error

        return conclude((yield Invoke(Context(), fail, (), {})))

    with pytest.raises(type(error)) as caught:
        drive(cast(Any, Answers()), flow())

    assert caught.value is error


def test_the_context_is_current_during_the_call_only() -> None:
    context = Context()
    seen = []

    def flow() -> Flow[None]:
        seen.append(current_context())
        yield Invoke(context, lambda: seen.append(current_context()), (), {})
        seen.append(current_context())

    drive(cast(Any, Answers()), flow())

    assert seen == [None, context, None]


def test_a_group_of_signals_and_errors_is_a_signal_and_one_with_an_interrupt_is_not() -> None:
    stop = DBOSWorkflowCancelledError("stop")

    def call(group: BaseException) -> Flow[Any]:
        def fail() -> None:
            raise group

        return conclude((yield Invoke(Context(), fail, (), {})))

    with pytest.raises(DBOSWorkflowCancelledError):
        drive(cast(Any, Answers()), call(BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [stop])])))
    with pytest.raises(BaseExceptionGroup):
        drive(cast(Any, Answers()), call(BaseExceptionGroup("", [KeyboardInterrupt(), stop])))


def test_a_newer_run_takes_the_place_of_an_older_and_is_not_removed_with_it(engine: Engine) -> None:
    runs = Runs()
    older, newer = make_run(engine), make_run(engine)
    runs.add(older)
    runs.add(newer)

    runs.remove(older)

    assert runs.get("wf") is newer
    assert older.finished.is_set
    assert not newer.finished.is_set
