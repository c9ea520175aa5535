"""What a type checker sees of the public surface: ``make check`` runs mypy and basedpyright over this file.

The assertions on types are checked there, and so is that the calls marked as wrong are wrong: mypy reports an ignore
that it does not need, and so does basedpyright. Here the same code runs.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar, assert_type

import pytest
from sqlalchemy.orm import Session

from dbos import (
    DBOS,
    DBOSConfiguredInstance,
    DBOSException,
    Debouncer,
    EnqueueOptions,
    ManagementAction,
    Queue,
    QueueRateLimit,
    RetentionConfig,
    RetentionReport,
    ScheduleDecision,
    ScheduleInput,
    SchedulePreview,
    SetEnqueueOptions,
    SetWorkflowID,
    WorkflowAggregate,
    WorkflowHandle,
    WorkflowHandleAsync,
    WorkflowSchedule,
    WorkflowStatus,
    make_pydantic_args_validator,
    pydantic_args_validator,
)

T = TypeVar("T")

pytestmark = pytest.mark.usefixtures("dbos")


def test_functions_keep_their_types() -> None:
    @DBOS.workflow()
    def workflow(order: int, *, currency: str = "EUR") -> str:
        return f"{step(order)} {transaction(currency)}"

    @DBOS.required_roles([])
    @DBOS.step(name="step", retries_allowed=True)
    def step(order: int) -> float:
        return order / 2

    @DBOS.transaction("READ COMMITTED")
    @DBOS.required_roles([])
    def transaction(currency: str) -> list[str]:
        assert_type(DBOS.sql_session, Session)
        return [currency]

    DBOS.launch()

    assert_type(workflow(1, currency="USD"), str)
    assert_type(step(1), float)
    assert_type(transaction("USD"), list[str])
    assert_type(workflow.__name__, str)
    accepts: Callable[[int], str] = workflow
    assert accepts(3) == "1.5 ['EUR']"


def test_what_functions_do_not_accept_is_an_error() -> None:
    @DBOS.workflow()
    def workflow(order: int, *, currency: str = "EUR") -> str:
        return f"{order} {currency}"

    def never() -> None:
        workflow("one")  # type: ignore[arg-type]
        workflow(1, "USD")  # type: ignore[call-arg]
        workflow(1, curency="USD")  # type: ignore[call-arg]
        DBOS.start_workflow(workflow, "one")  # type: ignore[call-overload]
        DBOS.start_workflow(workflow)  # type: ignore[call-overload]
        DBOS.workflow(nmae="workflow")  # type: ignore[call-arg]
        DBOS.transaction("CHAOS")  # type: ignore[arg-type]
        DBOS.cancel_workflow(1)  # type: ignore[arg-type]
        DBOS.run_retention({"max_agee": 1})  # type: ignore[arg-type]
        DBOS.export_workflow("one", True)  # type: ignore[call-arg]
        DBOS.list_workflows(limit="one")  # type: ignore[arg-type]
        DBOS.list_workflows(stauts="ERROR")  # type: ignore[call-arg]
        DBOS.count_workflows(limit=1)  # type: ignore[call-arg]

    assert callable(never)


def test_generic_functions_stay_generic() -> None:
    @DBOS.step()
    def first(values: list[T]) -> T:
        return values[0]

    assert_type(first([1]), int)
    assert_type(first(["one"]), str)


async def test_coroutine_functions_keep_their_types() -> None:
    @DBOS.workflow()
    async def workflow(order: int) -> str:
        return str(await step(order))

    @DBOS.step()
    async def step(order: int) -> float:
        return order / 2

    DBOS.launch()

    accepts: Callable[[int], Coroutine[Any, Any, str]] = workflow
    assert_type(await accepts(1), str)
    assert_type(await workflow(1), str)
    assert_type(await step(1), float)


def test_methods_keep_their_types() -> None:
    @DBOS.dbos_class()
    class Shop(DBOSConfiguredInstance):
        def __init__(self, name: str, discount: float) -> None:
            super().__init__(config_name=name)
            self.discount = discount

        @staticmethod
        @DBOS.workflow()
        def static(order: int) -> str:
            return str(order)

        @classmethod
        @DBOS.workflow()
        def of_class(cls, order: int) -> list[int]:
            return [order]

        @DBOS.workflow()
        def of_instance(self, order: int) -> float:
            return self.step(order) * self.discount

        @DBOS.step()
        def step(self, order: int) -> int:
            return order

        @DBOS.workflow()
        @staticmethod
        def upside(order: int) -> str:
            return str(order)

    @DBOS.default_required_roles([])
    class Plain: ...

    shop = Shop("north", 0.5)
    DBOS.launch()

    assert_type(shop, Shop)
    assert_type(Plain(), Plain)
    assert_type(shop.discount, float)
    assert_type(Shop.static(1), str)
    assert_type(shop.static(1), str)
    assert_type(Shop.of_class(1), list[int])
    assert_type(shop.of_class(1), list[int])
    assert_type(shop.of_instance(1), float)
    assert_type(Shop.of_instance(shop, 1), float)
    assert_type(shop.step(1), int)
    assert_type(Shop.upside(1), str)
    assert_type(shop.upside(1), str)
    assert_type(DBOS.start_workflow(Shop.static, 1), WorkflowHandle[str])
    assert_type(DBOS.start_workflow(Shop.of_class, 1), WorkflowHandle[list[int]])
    assert_type(DBOS.start_workflow(shop.of_instance, 1), WorkflowHandle[float])
    assert_type(DBOS.start_workflow(shop.step, 1).get_result(), int)


def test_handles_know_the_result() -> None:
    @DBOS.workflow()
    def workflow(order: int) -> str:
        return str(order)

    @DBOS.workflow()
    async def coroutine(order: int) -> float:
        return order / 2

    DBOS.launch()

    handle = DBOS.start_workflow(workflow, 1)
    assert_type(handle, WorkflowHandle[str])
    assert_type(handle.get_result(), str)
    assert_type(handle.get_status(), WorkflowStatus)
    assert_type(handle.workflow_id, str)
    assert_type(DBOS.start_workflow(coroutine, 1), WorkflowHandle[float])
    assert_type(DBOS.start_workflow(coroutine, order=1).get_result(), float)
    assert_type(DBOS.retrieve_workflow(handle.workflow_id), WorkflowHandle[Any])
    assert_type(DBOS.resume_workflows([]), list[WorkflowHandle[Any]])
    assert_type(DBOS.wait_first([handle]), WorkflowHandle[str])
    assert_type(DBOS.retry_workflows([]), list[WorkflowHandle[Any]])
    assert_type(DBOS.list_management_actions(), list[ManagementAction])


async def test_async_handles_know_the_result() -> None:
    @DBOS.workflow()
    def workflow(order: int) -> str:
        return str(order)

    @DBOS.workflow()
    async def coroutine(order: int) -> float:
        return order / 2

    DBOS.launch()

    handle = await DBOS.start_workflow_async(coroutine, 1)
    assert_type(handle, WorkflowHandleAsync[float])
    assert_type(await handle.get_result(), float)
    assert_type(await handle.get_status(), WorkflowStatus)
    assert_type(await DBOS.start_workflow_async(workflow, 1), WorkflowHandleAsync[str])
    assert_type(await DBOS.get_workflow_status_async(handle.workflow_id), WorkflowStatus | None)


def test_any_function_as_a_step_keeps_its_type() -> None:
    def half(order: int) -> float:
        return order / 2

    async def half_async(order: int) -> float:
        return order / 2

    DBOS.launch()

    assert_type(DBOS.run_step(None, half, 1), float)
    assert_type(DBOS.run_step({"name": "half", "max_attempts": 2}, half, order=1), float)
    assert_type(DBOS.run_step(None, half_async, 1), float)
    assert_type(DBOS.run_step(None, lambda: "one"), str)


async def test_any_function_as_an_async_step_keeps_its_type() -> None:
    def half(order: int) -> float:
        return order / 2

    async def half_async(order: int) -> float:
        return order / 2

    assert_type(await DBOS.run_step_async(None, half, 1), float)
    assert_type(await DBOS.run_step_async(None, half_async, 1), float)


def test_properties_have_types() -> None:
    DBOS.launch()

    assert_type(DBOS.workflow_id, str | None)
    assert_type(DBOS.step_id, int | None)
    assert_type(DBOS.application_version, str)
    assert_type(DBOS.executor_id, str)
    with SetWorkflowID("chosen") as block:
        assert_type(block, SetWorkflowID)
        assert_type(DBOS.authenticated_roles, list[str] | None)
        assert_type(DBOS.assumed_role, str | None)


def test_queues_know_the_results_of_what_they_are_given() -> None:
    queue = Queue("mail", 1, {"limit": 5, "period": 1.0}, worker_concurrency=1)

    @DBOS.workflow(name="workflow")
    def workflow(order: int) -> str:
        return str(order)

    @DBOS.workflow()
    async def coroutine(order: int) -> float:
        return order / 2

    def never() -> None:
        queue.enqueue(workflow, "one")  # type: ignore[call-overload]
        queue.enqueue(workflow)  # type: ignore[call-overload]
        Queue("other", None, None, 1)  # type: ignore[call-arg]
        Queue("other", limiter={"limit": 1})  # type: ignore[arg-type]
        SetEnqueueOptions(duplication_policy="ignore")  # type: ignore[arg-type]
        DBOS.enqueue_workflow_with_options({"queue_name": "mail"})  # type: ignore[typeddict-item]
        DBOS.register_queue("mail", on_conflict="update")  # type: ignore[arg-type]
        DBOS.list_queued_workflows(limit="one")  # type: ignore[arg-type]
        DBOS.list_queued_workflows(colour="red")  # type: ignore[call-arg]

    DBOS.launch()
    options: EnqueueOptions = {"workflow_name": "workflow", "queue_name": "mail", "priority": 1}

    assert callable(never)
    assert_type(queue.enqueue(workflow, 1), WorkflowHandle[str])
    assert_type(queue.enqueue(coroutine, order=1).get_result(), float)
    assert_type(queue.enqueue_many(workflow, [(1,)]), list[WorkflowHandle[str]])
    assert_type(queue.enqueue_many(coroutine, [(1,)]), list[WorkflowHandle[float]])
    assert_type(DBOS.enqueue_workflow("mail", workflow, 1), WorkflowHandle[str])
    assert_type(DBOS.enqueue_workflow("mail", coroutine, 1), WorkflowHandle[float])
    options.pop("priority")
    assert_type(DBOS.enqueue_workflow_with_options(options, 1), WorkflowHandle[Any])
    assert_type(DBOS.list_queued_workflows(queue_name=["mail"]), list[WorkflowStatus])


async def test_queues_know_what_is_awaited() -> None:
    queue = Queue("mail")

    @DBOS.workflow()
    def workflow(order: int) -> str:
        return str(order)

    @DBOS.workflow()
    async def coroutine(order: int) -> float:
        return order / 2

    DBOS.launch()

    assert_type(await queue.enqueue_async(workflow, 1), WorkflowHandleAsync[str])
    assert_type(await queue.enqueue_async(coroutine, 1), WorkflowHandleAsync[float])
    assert_type(await queue.enqueue_many_async(coroutine, [(1,)]), list[WorkflowHandleAsync[float]])
    assert_type(await DBOS.enqueue_workflow_async("mail", workflow, 1), WorkflowHandleAsync[str])
    registered = await DBOS.register_queue_async("registered", global_concurrency=2)
    assert_type(registered, Queue)
    assert_type(await DBOS.retrieve_queue_async("registered"), Queue | None)
    assert_type(await registered.get_limiter_async(), QueueRateLimit | None)
    assert_type(await registered.set_worker_concurrency_async(1), None)


def test_settings_of_queues_have_types() -> None:
    DBOS.launch()
    queue = DBOS.register_queue("mail", limiter={"limit": 5, "period": 1.0})

    def never() -> None:
        queue.set_concurrency("one")  # type: ignore[arg-type]
        queue.set_limiter({"limit": 1})  # type: ignore[arg-type]

    assert callable(never)
    assert_type(queue, Queue)
    assert_type(queue.name, str)
    assert_type(queue.concurrency, int | None)
    assert_type(queue.limiter, QueueRateLimit | None)
    assert_type(queue.partition_queue, bool)
    assert_type(queue.polling_interval_sec, float)
    queue.set_global_concurrency(3)
    queue.set_limiter(None)
    queue.pause()
    assert_type(DBOS.list_queues(), list[Queue])


async def test_debouncers_know_the_workflow() -> None:
    queue = Queue("mail")

    @DBOS.workflow()
    def workflow(order: int, *, currency: str = "EUR") -> str:
        return f"{order} {currency}"

    @DBOS.workflow()
    async def coroutine(order: int) -> float:
        return order / 2

    debouncer = Debouncer.create(workflow, debounce_timeout_sec=60, queue=queue)

    def never() -> None:
        debouncer.debounce("key", 5.0, "one")  # type: ignore[arg-type]
        debouncer.debounce("key", 5.0)  # type: ignore[call-arg]
        debouncer.debounce("key", "five", 1)  # type: ignore[arg-type]
        Debouncer.create(coroutine, queue=5)  # type: ignore[call-overload]
        Debouncer.create_async(workflow)  # type: ignore[arg-type]

    DBOS.launch()

    assert callable(never)
    assert_type(debouncer.debounce("key", 5.0, 1, currency="USD"), WorkflowHandle[str])
    assert_type(await debouncer.debounce_async("key", 0, 1), WorkflowHandleAsync[str])
    assert_type(Debouncer.create(coroutine, queue="mail").debounce("key", 5, 1), WorkflowHandle[float])
    handle = await Debouncer.create_async(coroutine).debounce_async("key", 0, 1)
    assert_type(await handle.get_result(), float)
    assert_type(Debouncer(debouncer_name(workflow)).debounce("key", 5, 1, currency="USD"), WorkflowHandle[Any])


def debouncer_name(workflow: Callable[..., Any]) -> str:
    return str(getattr(workflow, "dbos_function_name", ""))


def test_scheduled_functions_keep_their_types() -> None:
    @DBOS.scheduled("0 0 1 1 *")
    @DBOS.workflow()
    def workflow(scheduled_time: datetime, actual_time: datetime) -> str:
        return f"{actual_time - scheduled_time}"

    @DBOS.scheduled("0 0 1 1 *")
    @DBOS.workflow()
    async def coroutine(scheduled_time: datetime, actual_time: datetime) -> float:
        return (actual_time - scheduled_time).total_seconds()

    @DBOS.dbos_class()
    class Jobs:
        @staticmethod
        @DBOS.scheduled("0 0 1 1 *")
        @DBOS.workflow()
        def static(scheduled_time: datetime, actual_time: datetime) -> str:
            return f"{actual_time - scheduled_time}"

    def never() -> None:
        DBOS.scheduled(5)  # type: ignore[arg-type]
        workflow("now", "then")  # type: ignore[arg-type]

    DBOS.launch()
    now = datetime.now(UTC)

    assert callable(never)
    assert_type(workflow(now, now), str)
    assert_type(Jobs.static(now, now), str)
    accepts: Callable[[datetime, datetime], Coroutine[Any, Any, float]] = coroutine
    assert callable(accepts)


def test_schedules_have_types() -> None:
    @DBOS.workflow()
    def workflow(scheduled_time: datetime, context: dict[str, int]) -> int:
        return context["id"]

    @DBOS.workflow()
    async def coroutine(scheduled_time: datetime, context: Any) -> None: ...

    def never() -> None:
        DBOS.create_schedule("nightly", workflow, "@daily")  # type: ignore[call-arg]
        DBOS.create_schedule(schedule_name="nightly", schedule="@daily")  # type: ignore[call-arg]
        DBOS.create_schedule(schedule_name="nightly", workflow_fn=workflow, schedule="@daily", overlap="no")  # type: ignore[arg-type]
        DBOS.create_schedule(schedule_name="nightly", workflow_fn=workflow, schedule="@daily", cron_timzone="")  # type: ignore[call-arg]
        DBOS.update_schedule("nightly", jitter="one")  # type: ignore[arg-type]
        DBOS.trigger_schedule("nightly", overlap="no")  # type: ignore[arg-type]
        DBOS.backfill_schedule("nightly", "2026-01-01", "2026-01-02")  # type: ignore[call-overload]
        DBOS.apply_schedules([{"schedule_name": "nightly", "cron": "@daily"}])  # type: ignore[typeddict-unknown-key]
        DBOS.get_schedule(5)  # type: ignore[arg-type]

    DBOS.launch()
    entry: ScheduleInput = {"schedule_name": "nightly", "workflow_fn": coroutine, "schedule": "0 0 1 1 *"}
    entry["catchup_window"] = timedelta(hours=1)
    start, end = datetime(2026, 1, 1), datetime(2026, 1, 2)

    assert callable(never)
    DBOS.create_schedule(
        schedule_name="weekly", workflow_fn=workflow, schedule="@weekly", context={"id": 7}, jitter=timedelta(seconds=5)
    )
    DBOS.apply_schedules([entry, ScheduleInput(schedule_name="daily", workflow_fn=workflow, schedule="@daily")])
    DBOS.update_schedule("nightly", context=None, max_runs=3, note=None)
    schedule = DBOS.get_schedule("weekly")
    assert_type(schedule, WorkflowSchedule | None)
    assert schedule is not None
    assert_type(schedule["status"], str)
    assert_type(schedule["workflow_class_name"], str | None)
    assert_type(schedule["overlap"], Literal["allow", "skip", "buffer_one", "buffer_all", "cancel_other"])
    assert_type(DBOS.list_schedules(status="ACTIVE", schedule_name_prefix=["a", "b"]), list[WorkflowSchedule])
    assert_type(DBOS.trigger_schedule("weekly", overlap="skip"), WorkflowHandle[Any])
    assert_type(DBOS.backfill_schedule("daily", start, end), list[WorkflowHandle[Any]])
    assert_type(DBOS.backfill_schedule("daily", start, end, dry_run=False), list[WorkflowHandle[Any]])
    assert_type(DBOS.backfill_schedule("daily", start_time=start, end_time=end, dry_run=True), list[datetime])
    assert_type(DBOS.schedule_history("daily"), list[ScheduleDecision])
    assert_type(DBOS.preview_schedule("@daily", 3, "Europe/Paris"), SchedulePreview)
    assert_type(DBOS.list_workflows(schedule_name="daily"), list[WorkflowStatus])
    assert_type(DBOS.count_workflows(schedule_name="daily"), int)
    assert_type(DBOS.get_workflow_aggregates(group_by_name=True, status="ERROR"), list[WorkflowAggregate])


async def test_retention_and_archives_have_types() -> None:
    @DBOS.workflow()
    def workflow() -> int:
        return 1

    DBOS.launch()
    with SetWorkflowID("kept"):
        workflow()
    retention: RetentionConfig = {
        "max_age": timedelta(days=1),
        "workflows": {"mail": {"max_count": 10}, "audit": "forever"},
    }

    exported = await DBOS.export_workflow_async("kept", export_children=True)
    assert_type(exported, dict[str, Any])
    assert_type(await DBOS.run_retention_async(retention), RetentionReport)
    assert_type((await DBOS.run_retention_async({"max_count": 0}))["workflows"], int)
    assert_type(await DBOS.import_workflow_async(exported), list[str])


async def test_schedules_know_what_is_awaited() -> None:
    @DBOS.workflow()
    async def workflow(scheduled_time: datetime, context: Any) -> None: ...

    DBOS.launch()
    start, end = datetime(2026, 1, 1), datetime(2026, 1, 2)

    await DBOS.create_schedule_async(schedule_name="nightly", workflow_fn=workflow, schedule="0 12 * * *")
    await DBOS.apply_schedules_async([{"schedule_name": "nightly", "workflow_fn": workflow, "schedule": "0 13 * * *"}])
    await DBOS.pause_schedule_async("nightly", reason="holidays")
    await DBOS.resume_schedule_async("nightly")
    assert_type(await DBOS.get_schedule_async("nightly"), WorkflowSchedule | None)
    assert_type(await DBOS.list_schedules_async(), list[WorkflowSchedule])
    assert_type(await DBOS.trigger_schedule_async("nightly"), WorkflowHandleAsync[Any])
    assert_type(await DBOS.backfill_schedule_async("nightly", start, end), list[WorkflowHandleAsync[Any]])
    assert_type(await DBOS.backfill_schedule_async("nightly", start, end, dry_run=True), list[datetime])
    assert_type(await DBOS.schedule_history_async("nightly", limit=1), list[ScheduleDecision])
    assert_type(await DBOS.preview_schedule_async("nightly"), SchedulePreview)
    await DBOS.delete_schedule_async("nightly")


def test_validators_and_the_alert_handler_are_functions_of_the_right_kind() -> None:
    @DBOS.workflow(validate_args=pydantic_args_validator)
    def workflow(order: int) -> str:
        return str(order)

    @DBOS.alert_handler
    def handler(name: str, message: str, metadata: dict[str, str]) -> None: ...

    async def handler_async(name: str, message: str, metadata: dict[str, str]) -> None: ...

    def unfit(name: str) -> None: ...

    validate = make_pydantic_args_validator(workflow)
    DBOS.launch()

    assert_type(workflow(1), str)
    assert_type(validate((1,), {}), tuple[tuple[Any, ...], dict[str, Any]])
    assert_type(handler("name", "message", {}), None)
    with pytest.raises(DBOSException):
        DBOS.alert_handler(handler_async)
    with pytest.raises(DBOSException):
        DBOS.alert_handler(unfit)  # type: ignore[type-var]
