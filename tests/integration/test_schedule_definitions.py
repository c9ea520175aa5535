"""Schedules as they are created, shown, changed, paused, deleted and applied; and what no schedule can be."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

import dbos as package
from dbos import DBOS, DBOSConfiguredInstance, DBOSException, Queue, ScheduleInput, WorkflowSchedule
from dbos._error import DBOSWorkflowFunctionNotFoundError
from dbos._sysdb.rows import ScheduleRow
from tests.integration.histories import change, engine

NEVER = "0 0 1 1 *"  # no test runs that long

Function = Callable[[datetime, Any], Any]


def stored(name: str = "nightly") -> ScheduleRow:
    """The schedule's row, which must exist."""
    db = engine().db
    found = db.read(db.schedules.get, name)
    assert found is not None
    return found


def shown(name: str = "nightly") -> WorkflowSchedule:
    found = DBOS.get_schedule(name)
    assert found is not None
    return found


def names() -> list[str]:
    return [schedule["schedule_name"] for schedule in DBOS.list_schedules()]


def named(name: str) -> Function:
    """A workflow that returns its arguments."""

    @DBOS.workflow(name=name)
    def workflow(scheduled_time: datetime, context: Any) -> Any:
        return scheduled_time, context

    return workflow


def entry(name: str, workflow: Function, **others: Any) -> ScheduleInput:
    return cast("ScheduleInput", {"schedule_name": name, "workflow_fn": workflow, "schedule": NEVER, **others})


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_the_types_of_schedules_are_in_the_package() -> None:
    exported = {"ClientScheduleInput", "ScheduleDecision", "ScheduleInput", "SchedulePreview", "WorkflowSchedule"}

    assert exported <= set(package.__all__)
    assert ScheduleInput(schedule_name="nightly", schedule=NEVER) == {"schedule_name": "nightly", "schedule": NEVER}


def test_a_schedule_is_shown_with_all_that_was_given(dbos: type[DBOS]) -> None:
    report = named("report")
    Queue("mail")
    dbos.launch()

    result = dbos.create_schedule(
        schedule_name="nightly",
        workflow_fn=report,
        schedule=" 30  3 * JAN Mon-FRI ",
        context={"kind": "short"},
        cron_timezone="Asia/Tokyo",
        queue_name="mail",
        overlap="buffer_one",
        catchup="latest",
        catchup_window=timedelta(hours=1),
        jitter=1.5,
        start_at=datetime(2100, 1, 1),
        end_at=datetime(2101, 1, 1, 9, tzinfo=UTC),
        max_runs=3,
        pause_on_failure=2,
        note="for the board",
    )

    assert result is None
    schedule = shown()
    assert uuid.UUID(schedule["schedule_id"]).version == 4
    assert str(schedule["next_fire_at"]).startswith("2100-01-04T03:30:0")  # a Monday, and up to 1.5 seconds later
    assert schedule == {
        "schedule_id": schedule["schedule_id"],
        "schedule_name": "nightly",
        "workflow_name": "report",
        "workflow_class_name": None,
        "schedule": " 30  3 * JAN Mon-FRI ",
        "status": "ACTIVE",
        "context": {"kind": "short"},
        "last_fired_at": None,
        "automatic_backfill": False,
        "cron_timezone": "Asia/Tokyo",
        "queue_name": "mail",
        "application_name": "test-app",
        "overlap": "buffer_one",
        "catchup": "latest",
        "catchup_window": 3600.0,
        "jitter": 1.5,
        "start_at": "2100-01-01T09:00:00+09:00",
        "end_at": "2101-01-01T18:00:00+09:00",
        "max_runs": 3,
        "pause_on_failure": 2,
        "note": "for the board",
        "pause_reason": None,
        "runs": 0,
        "next_fire_at": schedule["next_fire_at"],
        "error": None,
    }


def test_a_schedule_has_the_defaults_that_users_know(dbos: type[DBOS]) -> None:
    report = named("report")
    dbos.launch()

    dbos.create_schedule(schedule_name="nightly", workflow_fn=report, schedule=NEVER)

    schedule = shown()
    year = datetime.now(UTC).year + 1
    assert schedule == {
        "schedule_id": schedule["schedule_id"],
        "schedule_name": "nightly",
        "workflow_name": "report",
        "workflow_class_name": None,
        "schedule": NEVER,
        "status": "ACTIVE",
        "context": None,
        "last_fired_at": None,
        "automatic_backfill": False,
        "cron_timezone": None,
        "queue_name": None,
        "application_name": "test-app",
        "overlap": "allow",
        "catchup": "none",
        "catchup_window": None,
        "jitter": 0.0,
        "start_at": None,
        "end_at": None,
        "max_runs": None,
        "pause_on_failure": None,
        "note": None,
        "pause_reason": None,
        "runs": 0,
        "next_fire_at": f"{year}-01-01T00:00:00+00:00",
        "error": None,
    }
    assert schedule.keys() == WorkflowSchedule.__annotations__.keys()
    assert schedule["automatic_backfill"] is False  # SQLite knows numbers only
    assert dbos.list_schedules() == [schedule]
    assert dbos.get_schedule("other") is None


def test_automatic_backfill_and_catching_up_on_all_are_the_same(dbos: type[DBOS]) -> None:
    report = named("report")
    dbos.launch()

    dbos.create_schedule(schedule_name="a", workflow_fn=report, schedule=NEVER, automatic_backfill=True)
    dbos.create_schedule(schedule_name="b", workflow_fn=report, schedule=NEVER, catchup="all")
    dbos.create_schedule(
        schedule_name="c", workflow_fn=report, schedule=NEVER, catchup="none", automatic_backfill=False
    )

    assert [(each["catchup"], each["automatic_backfill"]) for each in dbos.list_schedules()] == [
        ("all", True),
        ("all", True),
        ("none", False),
    ]


def test_schedules_are_listed_by_what_they_are(dbos: type[DBOS], subtests: pytest.Subtests) -> None:
    report, other = named("report"), named("other")
    dbos.launch()
    dbos.apply_schedules([entry(f"{letter}-1", other if letter in "b_" else report) for letter in "abx_y%"])
    dbos.pause_schedule("b-1")

    filters: list[tuple[dict[str, Any], str]] = [
        ({}, "abx_y%"),
        ({"status": "PAUSED"}, "b"),
        ({"status": ["ACTIVE", "PAUSED"]}, "abx_y%"),
        ({"status": "active"}, ""),
        ({"status": []}, "abx_y%"),
        ({"workflow_name": "other"}, "b_"),
        ({"workflow_name": ["report", "other"]}, "abx_y%"),
        ({"schedule_name_prefix": "x"}, "x"),
        ({"schedule_name_prefix": "X"}, ""),
        ({"schedule_name_prefix": "%"}, "%"),
        ({"schedule_name_prefix": ["_", "a"]}, "a_"),
        ({"schedule_name_prefix": []}, "abx_y%"),
        ({"status": "ACTIVE", "workflow_name": "other", "schedule_name_prefix": "_"}, "_"),
    ]
    for given, expected in filters:
        with subtests.test(str(given)):
            listed = dbos.list_schedules(**given)

            assert sorted(schedule["schedule_name"][0] for schedule in listed) == sorted(expected)


def test_schedules_are_listed_in_the_order_of_their_creation(dbos: type[DBOS]) -> None:
    report = named("report")
    dbos.launch()
    for number, name in enumerate(["c", "a", "b"]):
        dbos.create_schedule(schedule_name=name, workflow_fn=report, schedule=NEVER)
        change("UPDATE dbos.workflow_schedules SET created_at = :at WHERE schedule_name = :name", at=number, name=name)

    assert names() == ["c", "a", "b"]


# -- what can be scheduled ---------------------------------------------------------------------------------------------


def workflows_of_every_kind() -> dict[str, tuple[Function, str, str | None]]:
    """Workflows that can be scheduled, with the names of them and of their classes."""

    @DBOS.workflow()
    async def coroutine(scheduled_time: datetime, context: Any) -> Any:
        return scheduled_time, context

    class Base:
        @staticmethod
        @DBOS.workflow()
        def of_nothing(scheduled_time: datetime, context: Any) -> Any:
            return scheduled_time, context

        @classmethod
        @DBOS.workflow()
        def of_class(cls, scheduled_time: datetime, context: Any) -> Any:
            return scheduled_time, [cls.__name__, *context]

        @classmethod
        @DBOS.workflow()
        async def of_class_async(cls, scheduled_time: datetime, context: Any) -> Any:
            return scheduled_time, [cls.__name__, *context]

    @DBOS.dbos_class()
    class Jobs(Base):
        @DBOS.workflow()
        @staticmethod
        def upside(scheduled_time: datetime, context: Any) -> Any:
            return scheduled_time, context

    @DBOS.dbos_class("Custom")
    class Named:
        @staticmethod
        @DBOS.workflow()
        def of_nothing(scheduled_time: datetime, context: Any) -> Any:
            return scheduled_time, context

        @classmethod
        @DBOS.workflow(name="of_class")
        def of_class(cls, scheduled_time: datetime, context: Any) -> Any:
            return scheduled_time, [cls.__name__, *context]

    @DBOS.dbos_class()
    class SubJobs(Jobs): ...

    jobs = Jobs.__qualname__
    return {
        "function": (named("renamed"), "renamed", None),
        "coroutine function": (coroutine, coroutine.__qualname__, None),
        "static method": (Jobs.of_nothing, Base.of_nothing.__qualname__, jobs),
        "static method of an instance": (Jobs().of_nothing, Base.of_nothing.__qualname__, jobs),
        "static method of a named class": (Named.of_nothing, Named.of_nothing.__qualname__, "Custom"),
        "static method, upside": (Jobs.upside, Jobs.upside.__qualname__, jobs),
        "class method": (Jobs.of_class, Base.of_class.__qualname__, jobs),
        "class method of a named class": (Named.of_class, "of_class", "Custom"),
        "inherited class method": (SubJobs.of_class, Base.of_class.__qualname__, SubJobs.__qualname__),
        "coroutine class method": (Jobs.of_class_async, Base.of_class_async.__qualname__, jobs),
    }


def test_workflows_of_every_kind_are_scheduled_under_their_registered_names(
    dbos: type[DBOS], subtests: pytest.Subtests
) -> None:
    workflows = workflows_of_every_kind()
    dbos.launch()

    for kind, (workflow, _, _) in workflows.items():
        dbos.create_schedule(schedule_name=kind, workflow_fn=workflow, schedule=NEVER, context=[1])
    handles = {kind: dbos.trigger_schedule(kind) for kind in workflows}

    for kind, (_, name, class_name) in workflows.items():
        with subtests.test(kind):
            schedule, (scheduled_time, context) = shown(kind), handles[kind].get_result()
            assert (schedule["workflow_name"], schedule["workflow_class_name"]) == (name, class_name)
            assert handles[kind].workflow_id == f"sched-{kind}-trigger-{scheduled_time.isoformat('T', 'microseconds')}"
            status = handles[kind].get_status()
            assert (status.name, status.class_name) == (name, class_name)
            receivers = {"class method of a named class": ["Named"], "inherited class method": ["SubJobs"]}
            receiver = receivers.get(kind, ["Jobs"]) if "class method" in kind else []
            assert context == [*receiver, 1]


def test_a_static_method_runs_whatever_class_its_schedule_names(dbos: type[DBOS]) -> None:
    """Releases before this one stored none."""
    workflow, _, _ = workflows_of_every_kind()["static method of a named class"]
    dbos.launch()
    dbos.create_schedule(schedule_name="nightly", workflow_fn=workflow, schedule=NEVER, context="a")
    handles = {}

    for class_name in (None, "Custom", "a class of another process"):
        change("UPDATE dbos.workflow_schedules SET workflow_class_name = :name", name=class_name)
        handles[class_name] = dbos.trigger_schedule("nightly")

    for class_name, handle in handles.items():
        assert handle.get_result()[1] == "a"
        assert handle.get_status().class_name == class_name


def refused_functions() -> dict[str, tuple[Any, str]]:
    """What cannot be scheduled, and what is said about it."""
    not_registered = "is not registered"
    instances = "Configured instance methods cannot be used as scheduled workflows"

    def plain(scheduled_time: datetime, context: Any) -> None: ...

    @DBOS.step()
    def step(scheduled_time: datetime, context: Any) -> None: ...

    @DBOS.transaction()
    def transaction(scheduled_time: datetime, context: Any) -> None: ...

    @DBOS.dbos_class()
    class Configured(DBOSConfiguredInstance):
        def __init__(self) -> None:
            super().__init__("configured")

        @DBOS.workflow()
        def method(self, scheduled_time: datetime, context: Any) -> None: ...

        @DBOS.workflow()
        def without_self(this, scheduled_time: datetime, context: Any) -> None: ...  # noqa: N805

    class Undecorated:
        @DBOS.workflow()
        def method(self, scheduled_time: datetime, context: Any) -> None: ...

        @classmethod
        @DBOS.workflow()
        def of_class(cls, scheduled_time: datetime, context: Any) -> None: ...

    @DBOS.dbos_class()
    class Base:
        @classmethod
        @DBOS.workflow()
        def of_class(cls, scheduled_time: datetime, context: Any) -> None: ...

    class Derived(Base): ...

    instance = Configured()
    return {
        "plain": (plain, "plain' is not registered|plain is not a registered workflow function"),
        "lambda": (lambda scheduled_time, context: None, "<lambda>"),
        "builtin": (print, "print"),
        "nothing": (None, "None"),
        "name": ("report", "not a registered workflow function"),
        "step": (step, f"Workflow function '.*step' {not_registered}"),
        "transaction": (transaction, f"Workflow function '.*transaction' {not_registered}"),
        "instance method": (instance.method, instances),
        "function of an instance method": (Configured.method, instances),
        "instance method without a self": (instance.without_self, instances),
        "method of a class that is not registered": (Undecorated().method, instances),
        "class method of a class that is not registered": (Undecorated.of_class, "a class that is not registered"),
        "class method of a subclass that is not registered": (Derived.of_class, "a class that is not registered"),
    }


def test_what_cannot_be_scheduled_is_refused_and_nothing_is_stored(dbos: type[DBOS], subtests: pytest.Subtests) -> None:
    report, refused = named("report"), refused_functions()
    dbos.launch()
    dbos.create_schedule(schedule_name="nightly", workflow_fn=report, schedule=NEVER)
    before = shown()

    for label, (function, message) in refused.items():
        with subtests.test(label):
            with pytest.raises(DBOSException, match=message):
                dbos.create_schedule(schedule_name="refused", workflow_fn=function, schedule=NEVER)
            with pytest.raises(DBOSException, match=message):
                dbos.apply_schedules([entry("nightly", report, note="changed"), entry("refused", function)])
            with pytest.raises(DBOSException, match=message):
                dbos.update_schedule("nightly", workflow_fn=function, note="changed")
            assert dbos.list_schedules() == [before]


def test_a_function_that_was_never_decorated_is_not_found(dbos: type[DBOS]) -> None:
    def plain(scheduled_time: datetime, context: Any) -> None: ...

    dbos.launch()

    with pytest.raises(DBOSWorkflowFunctionNotFoundError, match="plain is not a registered workflow function"):
        dbos.create_schedule(schedule_name="nightly", workflow_fn=plain, schedule=NEVER)


# -- what a schedule can be --------------------------------------------------------------------------------------------

circular: list[Any] = []
circular.append(circular)
deep: list[Any] = functools.reduce(lambda inner, _: [inner], range(100_000), [])

REFUSED: list[tuple[str, Any, str]] = [
    ("schedule", "not a cron", "Invalid cron schedule: 'not a cron'"),
    ("schedule", "", "Invalid cron schedule: ''"),
    ("schedule", "* * *", "Invalid cron schedule"),
    ("schedule", "61 * * * *", "Invalid cron schedule: '61 .*minute"),
    ("schedule", "0 0 31 2 *", "Invalid cron schedule: .*never matches"),
    ("schedule", "*/0 * * * *", "Invalid cron schedule"),
    ("schedule", "@reboot", "Invalid cron schedule"),
    ("schedule", None, "Invalid cron schedule: 'None'"),
    ("schedule", 5, "Invalid cron schedule: '5'"),
    ("queue_name", "undeclared", "Queue 'undeclared' is not declared.*create the queue before using it in a schedule"),
    ("queue_name", "shards", "Queue 'shards' is partitioned"),
    ("queue_name", "", "Invalid queue_name"),
    ("queue_name", 5, "Invalid queue_name 5"),
    ("cron_timezone", "Mars/Olympus", "Invalid timezone: 'Mars/Olympus'"),
    ("cron_timezone", "", "Invalid timezone: ''"),
    ("cron_timezone", "../etc/passwd", "Invalid timezone"),
    ("cron_timezone", "a\0b", "Invalid timezone"),
    ("cron_timezone", 5, "Invalid timezone: '5'"),
    ("context", float("nan"), "must be JSON-serializable"),
    ("context", {"inner": [float("inf")]}, "must be JSON-serializable"),
    ("context", {1, 2}, "must be JSON-serializable.*set"),
    ("context", datetime(2026, 1, 1), "must be JSON-serializable"),
    ("context", b"bytes", "must be JSON-serializable"),
    ("context", {(1, 2): 3}, "must be JSON-serializable"),
    ("context", circular, "must be JSON-serializable"),
    ("context", deep, "must be JSON-serializable"),
    ("overlap", "sometimes", "overlap must be one of"),
    ("overlap", None, "overlap must be one of"),
    ("catchup", "some", "catchup must be one of"),
    ("catchup", ["all"], "catchup must be one of"),
    ("catchup_window", -1, "catchup_window must be a time"),
    ("jitter", -0.5, "jitter must be a time"),
    ("jitter", timedelta(seconds=-1), "jitter must be a time"),
    ("jitter", float("nan"), "jitter must be a time"),
    ("jitter", float("inf"), "jitter must be a time"),
    ("jitter", "1", "jitter must be a time"),
    ("jitter", True, "jitter must be a time"),
    ("jitter", None, "jitter must be a time"),
    ("start_at", "2026-01-01", "start_at must be a datetime"),
    ("end_at", 5, "end_at must be a datetime"),
    ("max_runs", 0, "max_runs must be a whole number"),
    ("max_runs", 1.5, "max_runs must be a whole number"),
    ("max_runs", 2**40, "max_runs must be a whole number"),
    ("pause_on_failure", 0, "pause_on_failure must be a whole number"),
    ("pause_on_failure", True, "pause_on_failure must be a whole number"),
    ("note", 5, "Invalid note"),
    ("note", "a\0b", "Invalid note"),
    ("note", "\ud800", "Invalid note"),
]


def test_values_that_no_schedule_can_have_are_refused_and_nothing_is_stored(
    dbos: type[DBOS], subtests: pytest.Subtests
) -> None:
    report = named("report")
    Queue("shards", partition_queue=True)
    dbos.launch()
    dbos.create_schedule(schedule_name="nightly", workflow_fn=report, schedule=NEVER)
    before, row = shown(), stored()

    for parameter, value, message in REFUSED:
        given: Any = {parameter: value}
        label = f"{parameter}: {type(value).__name__} {'' if parameter == 'context' else ascii(value)}"
        with subtests.test(label):
            with pytest.raises(DBOSException, match=message):
                dbos.create_schedule(**{"schedule_name": "refused", "workflow_fn": report, "schedule": NEVER, **given})
            with pytest.raises(DBOSException, match=message):
                dbos.apply_schedules([entry("nightly", report, max_runs=9), entry("refused", report, **given)])
            with pytest.raises(DBOSException, match=message):
                dbos.update_schedule("nightly", **given)
            assert dbos.list_schedules() == [before]
            assert stored() == row


def test_giving_two_ways_to_catch_up_is_refused(dbos: type[DBOS]) -> None:
    report = named("report")
    dbos.launch()

    for catchup in ("all", "latest", "none"):
        given: Any = {"catchup": catchup, "automatic_backfill": True}
        with pytest.raises(DBOSException, match="automatic_backfill=True or catchup, not both"):
            dbos.create_schedule(schedule_name="nightly", workflow_fn=report, schedule=NEVER, **given)
        with pytest.raises(DBOSException, match="automatic_backfill=True or catchup, not both"):
            dbos.apply_schedules([entry("nightly", report, **given)])

    assert dbos.list_schedules() == []


def test_names_that_no_schedule_can_have_are_refused(dbos: type[DBOS], subtests: pytest.Subtests) -> None:
    report = named("report")
    dbos.launch()
    start, end = datetime(2026, 1, 1), datetime(2026, 1, 2)
    impossible: list[Any] = [None, "", "a\0b", "\ud800", 5, "n" * 10_000]
    operations: list[Callable[[Any], object]] = [
        lambda name: dbos.create_schedule(schedule_name=name, workflow_fn=report, schedule=NEVER),
        lambda name: dbos.apply_schedules([entry("nightly", report), entry(name, report)]),
        lambda name: dbos.update_schedule(name, context=1),
        dbos.get_schedule,
        dbos.pause_schedule,
        dbos.resume_schedule,
        dbos.delete_schedule,
        dbos.schedule_history,
        dbos.trigger_schedule,
        lambda name: dbos.backfill_schedule(name, start, end),
    ]

    for name in impossible:
        with subtests.test(ascii(name)[:20]):
            for operation in operations:
                with pytest.raises(DBOSException, match="Invalid schedule_name"):
                    operation(name)
            with pytest.raises(DBOSException, match="Invalid schedule name or cron expression"):
                dbos.preview_schedule(name)
            assert dbos.list_schedules() == []


def test_of_several_mistakes_the_first_is_told(dbos: type[DBOS]) -> None:
    report, mistakes = named("report"), refused_functions()
    dbos.launch()
    dbos.create_schedule(schedule_name="nightly", workflow_fn=report, schedule=NEVER)
    given: dict[str, Any] = {
        "schedule_name": "nightly",
        "workflow_fn": mistakes["step"][0],
        "schedule": "wrong",
        "queue_name": "wrong",
        "cron_timezone": "wrong",
    }
    instance_method = mistakes["instance method"][0]

    def created(**corrected: Any) -> str:
        given.update(corrected)
        with pytest.raises(DBOSException) as caught:
            DBOS.create_schedule(**given)
        return caught.value.message

    assert created().startswith("Invalid cron schedule: 'wrong'")
    assert created(schedule=NEVER).startswith("Queue 'wrong' is not declared")
    assert "is not registered" in created(queue_name=None)
    assert created(workflow_fn=instance_method) == "Configured instance methods cannot be used as scheduled workflows"
    assert created(workflow_fn=report).startswith("Invalid timezone: 'wrong'")
    assert created(cron_timezone=None) == "Schedule 'nightly' already exists"


def test_of_several_mistakes_in_an_entry_the_first_is_told(dbos: type[DBOS]) -> None:
    report, mistakes = named("report"), refused_functions()
    dbos.launch()
    given: dict[str, Any] = {"queue_name": "wrong", "cron_timezone": "wrong"}
    instance_method = mistakes["instance method"][0]

    def applied(**corrected: Any) -> str:
        given.update(corrected)
        with pytest.raises(DBOSException) as caught:
            DBOS.apply_schedules([entry("nightly", report), cast("Any", given)])
        return caught.value.message

    assert applied() == "Schedule entry 1 is missing required field 'schedule_name'"
    assert applied(schedule_name="second") == "Schedule entry 1 is missing required field 'workflow_fn'"
    assert applied(workflow_fn=mistakes["step"][0]) == "Schedule entry 1 is missing required field 'schedule'"
    assert applied(schedule="wrong").startswith("Invalid cron schedule: 'wrong'")
    assert "is not registered" in applied(schedule=NEVER)
    assert applied(workflow_fn=instance_method) == "Configured instance methods cannot be used as scheduled workflows"
    assert applied(workflow_fn=report).startswith("Queue 'wrong' is not declared")
    assert applied(queue_name=None).startswith("Invalid timezone: 'wrong'")
    assert applied(cron_timezone=None, cron_timzone="UTC") == "Schedule entry 1 has an unknown field 'cron_timzone'"
    assert dbos.list_schedules() == []


def test_a_name_is_given_once(dbos: type[DBOS]) -> None:
    report = named("report")
    dbos.launch()
    dbos.create_schedule(schedule_name="nightly", workflow_fn=report, schedule=NEVER, context=1)
    before = shown()

    with pytest.raises(DBOSException, match="Schedule 'nightly' already exists"):
        dbos.create_schedule(schedule_name="nightly", workflow_fn=report, schedule="0 1 * * *", context=2)
    with pytest.raises(TypeError, match="positional"):
        dbos.create_schedule("other", report, NEVER)  # type: ignore[call-arg]  # which type checkers refuse too

    assert dbos.list_schedules() == [before]


def test_registered_queues_and_those_of_the_code_are_queues_for_schedules(dbos: type[DBOS]) -> None:
    report = named("report")
    Queue("declared")
    dbos.launch()
    dbos.register_queue("registered")
    dbos.register_queue("shards", partition_concurrency=1)

    dbos.create_schedule(schedule_name="a", workflow_fn=report, schedule=NEVER, queue_name="declared")
    dbos.create_schedule(schedule_name="b", workflow_fn=report, schedule=NEVER, queue_name="registered")
    dbos.create_schedule(schedule_name="c", workflow_fn=report, schedule=NEVER, queue_name="_dbos_internal_queue")
    with pytest.raises(DBOSException, match="Queue 'shards' is partitioned"):
        dbos.create_schedule(schedule_name="d", workflow_fn=report, schedule=NEVER, queue_name="shards")

    queues = {name: dbos.trigger_schedule(name).get_status().queue_name for name in names()}
    assert queues == {"a": "declared", "b": "registered", "c": "_dbos_internal_queue"}


def test_a_queue_is_known_as_soon_as_it_is_registered(dbos: type[DBOS]) -> None:
    """What is remembered of all queues may be a second old."""
    report = named("report")
    dbos.launch()
    dbos.register_queue("mail")
    dbos.register_queue("shards", partition_concurrency=1)

    engine().registered_queues = {}
    dbos.create_schedule(schedule_name="nightly", workflow_fn=report, schedule=NEVER, queue_name="mail")
    engine().registered_queues = {}
    with pytest.raises(DBOSException, match="Queue 'shards' is partitioned"):
        dbos.update_schedule("nightly", queue_name="shards")

    assert shown()["queue_name"] == "mail"


def test_a_workflow_with_the_wrong_parameters_cannot_be_scheduled(dbos: type[DBOS]) -> None:
    @dbos.workflow()
    def one_argument(scheduled_time: datetime) -> None: ...

    dbos.launch()

    with pytest.raises(DBOSException, match="must take two arguments"):
        dbos.create_schedule(schedule_name="nightly", workflow_fn=one_argument, schedule=NEVER)

    assert dbos.list_schedules() == []


def test_a_schedule_may_last_as_long_as_there_are_years(dbos: type[DBOS]) -> None:
    report = named("report")
    dbos.launch()
    given: Any = {"start_at": datetime.min, "end_at": datetime.max}

    for number, zone in enumerate((None, "Asia/Tokyo", "America/New_York")):
        name = f"nightly-{number}"
        dbos.create_schedule(schedule_name=name, workflow_fn=report, schedule=NEVER, cron_timezone=zone, **given)

    assert [str(each["end_at"])[:4] for each in dbos.list_schedules()] == ["9999"] * 3
    assert [str(each["start_at"])[:4] for each in dbos.list_schedules()] == ["0001"] * 3


# -- pausing, resuming, deleting ---------------------------------------------------------------------------------------


def test_a_schedule_is_paused_and_resumed(dbos: type[DBOS]) -> None:
    report = named("report")
    dbos.launch()
    dbos.create_schedule(schedule_name="nightly", workflow_fn=report, schedule=NEVER)
    created = shown()

    dbos.pause_schedule("nightly")
    paused = shown()
    dbos.pause_schedule("nightly", reason="holidays")
    explained = shown()
    dbos.resume_schedule("nightly")
    resumed = shown()
    dbos.resume_schedule("nightly")

    for reason in (5, "a\0b", "\ud800"):
        with pytest.raises(DBOSException, match="Invalid reason"):
            dbos.pause_schedule("nightly", reason=reason)  # type: ignore[arg-type]  # which is the point
    assert paused == {**created, "status": "PAUSED", "next_fire_at": None}
    assert explained == {**paused, "pause_reason": "holidays"}
    assert resumed == created == shown()


def test_deleting_and_creating_again_makes_another_schedule(dbos: type[DBOS]) -> None:
    report = named("report")
    dbos.launch()
    dbos.create_schedule(schedule_name="nightly", workflow_fn=report, schedule=NEVER, context=1)
    change("UPDATE dbos.workflow_schedules SET last_fired_at = '2026-01-01T00:00:00+00:00', runs = 3")
    first = shown()

    dbos.delete_schedule("nightly")
    gone = dbos.get_schedule("nightly")
    dbos.create_schedule(schedule_name="nightly", workflow_fn=report, schedule=NEVER)

    second = shown()
    assert gone is None
    assert second["schedule_id"] != first["schedule_id"]
    assert (second["last_fired_at"], second["runs"], second["context"]) == (None, 0, None)
    assert names() == ["nightly"]


def test_what_does_not_exist_is_left_alone_or_told(dbos: type[DBOS]) -> None:
    dbos.launch()
    start, end = datetime(2026, 1, 1), datetime(2026, 1, 2)

    assert dbos.pause_schedule("missing") is None
    assert dbos.pause_schedule("missing", reason="holidays") is None
    assert dbos.resume_schedule("missing") is None
    assert dbos.delete_schedule("missing") is None
    for call in (
        lambda: dbos.update_schedule("missing", context=1),
        lambda: dbos.update_schedule("missing"),
        lambda: dbos.trigger_schedule("missing"),
        lambda: dbos.backfill_schedule("missing", start, end),
        lambda: dbos.backfill_schedule("missing", end, start),
        lambda: dbos.backfill_schedule("missing", start, end, dry_run=True),
    ):
        with pytest.raises(DBOSException, match="Schedule 'missing' does not exist"):
            call()
    assert dbos.schedule_history("missing") == []
    assert dbos.list_schedules() == []
    assert dbos.list_workflows() == []


# -- changing ----------------------------------------------------------------------------------------------------------

ORIGINAL: dict[str, Any] = {
    "schedule": NEVER,
    "context": {"kind": "short"},
    "cron_timezone": "Asia/Tokyo",
    "queue_name": "mail",
    "overlap": "skip",
    "catchup": "latest",
    "catchup_window": 60.0,
    "jitter": 2.0,
    "max_runs": 9,
    "pause_on_failure": 3,
    "note": "for the board",
}


def with_a_past(workflow: Function) -> WorkflowSchedule:
    """A paused schedule that has fired, as it is shown."""
    DBOS.create_schedule(schedule_name="nightly", workflow_fn=workflow, **ORIGINAL)
    DBOS.pause_schedule("nightly", reason="holidays")
    # As if that had been planned, and then nobody had been there for long.
    change(
        "UPDATE dbos.workflow_schedules SET last_fired_at = '2026-01-01T00:00:00+09:00', runs = 4, updated_at = 1, "
        "next_tick_ms = 2, next_fire_ms = 3, planned_from = schedule || '|Asia/Tokyo|2026-01-01T00:00:00+09:00'"
    )
    return shown()


CHANGES: list[tuple[dict[str, Any], bool]] = [
    ({"schedule": "0 12 * * *"}, True),
    ({"cron_timezone": "Europe/Paris"}, True),
    ({"cron_timezone": None}, True),
    ({"jitter": 0}, True),
    ({"start_at": datetime(2100, 1, 1, tzinfo=UTC)}, True),
    ({"end_at": datetime(2100, 1, 1, tzinfo=UTC)}, True),
    ({"context": [1, None, "ü"]}, False),
    ({"context": None}, False),
    ({"queue_name": None}, False),
    ({"overlap": "allow"}, False),
    ({"catchup": "all"}, False),
    ({"catchup": "none"}, False),
    ({"automatic_backfill": True}, False),
    ({"automatic_backfill": False}, False),
    ({"catchup_window": None}, False),
    ({"pause_on_failure": None}, False),
    ({"note": None}, False),
    ({"workflow_fn": "other"}, False),
    ({"note": "new", "context": 1, "schedule": "@daily"}, True),
]


def test_an_update_changes_what_is_given_and_nothing_else(dbos: type[DBOS], subtests: pytest.Subtests) -> None:
    report, other = named("report"), named("other")
    Queue("mail")
    dbos.launch()

    for changes, is_timed_anew in CHANGES:
        before = with_a_past(report)
        given = {**changes, "workflow_fn": other} if "workflow_fn" in changes else changes

        dbos.update_schedule("nightly", **given)

        after, row = shown(), stored()
        expected: dict[str, Any] = {**before, **changes}
        if "automatic_backfill" in changes:
            expected["catchup"] = "all" if changes["automatic_backfill"] else "none"
        expected["automatic_backfill"] = expected["catchup"] == "all"
        if expected.pop("workflow_fn", None):
            expected["workflow_name"] = "other"
        for name in {"start_at", "end_at"} & changes.keys():
            expected[name] = "2100-01-01T09:00:00+09:00"
        with subtests.test(str(changes)):
            assert after == expected
            assert row.updated_at is not None
            assert row.updated_at > 1
            assert row.next_tick_ms is not None
            assert (row.next_tick_ms > engine().db.now_ms()) is is_timed_anew  # what was missed is not made up for
        dbos.delete_schedule("nightly")


def test_updating_to_what_a_schedule_is_anyway_changes_nothing(dbos: type[DBOS]) -> None:
    report = named("report")
    Queue("mail")
    dbos.launch()
    with_a_past(report)
    before = stored()

    dbos.update_schedule("nightly")
    dbos.update_schedule("nightly", workflow_fn=report, **ORIGINAL)

    assert stored() == before


# -- applying ----------------------------------------------------------------------------------------------------------


def test_applied_schedules_are_created_together(dbos: type[DBOS]) -> None:
    report = named("report")
    Queue("mail")
    dbos.launch()

    result = dbos.apply_schedules(
        [
            ScheduleInput(schedule_name="plain", workflow_fn=report, schedule=NEVER),
            cast("ScheduleInput", {"schedule_name": "full", "workflow_fn": report, **ORIGINAL}),
        ]
    )

    assert result is None
    assert sorted(names()) == ["full", "plain"]
    assert shown("plain")["context"] is None
    full: Any = shown("full")
    assert {name: full[name] for name in ORIGINAL} == ORIGINAL


def test_applying_what_is_there_anyway_touches_nothing(dbos: type[DBOS]) -> None:
    report = named("report")
    Queue("mail")
    dbos.launch()
    with_a_past(report)
    before = stored()

    dbos.apply_schedules([entry("nightly", report, **ORIGINAL), entry("other", report)])
    dbos.apply_schedules([])

    assert stored() == before
    assert sorted(names()) == ["nightly", "other"]


def test_applying_another_definition_keeps_what_a_schedule_has_come_to(dbos: type[DBOS]) -> None:
    report = named("report")
    Queue("mail")
    dbos.launch()
    before = with_a_past(report)
    triggered = dbos.trigger_schedule("nightly")

    dbos.apply_schedules([entry("nightly", report, **{**ORIGINAL, "context": 1})])
    changed, row = shown(), stored()
    dbos.apply_schedules([entry("nightly", report, **{**ORIGINAL, "schedule": "0 1 * * *"})])
    changed_again, row_again = shown(), stored()

    assert changed == {**before, "context": 1}
    assert changed_again == {**before, "schedule": "0 1 * * *"}
    assert row.updated_at is not None
    assert row.updated_at > 1
    assert row.next_tick_ms == 2  # as it was planned
    assert row_again.next_tick_ms is not None
    assert row_again.next_tick_ms > engine().db.now_ms()  # what was missed is not made up for
    assert [each["workflow_id"] for each in dbos.schedule_history("nightly")] == [triggered.workflow_id]


def test_what_an_entry_does_not_give_has_its_default(dbos: type[DBOS]) -> None:
    """Not what the schedule had: an entry is the whole definition."""
    report = named("report")
    Queue("mail")
    dbos.launch()
    before = with_a_past(report)

    dbos.apply_schedules([entry("nightly", report)])
    dbos.create_schedule(schedule_name="fresh", workflow_fn=report, schedule=NEVER)

    fresh, after = shown("fresh"), shown()
    kept = ("schedule_id", "schedule_name", "status", "last_fired_at", "pause_reason", "runs", "next_fire_at")
    assert after == {**fresh, **{name: value for name, value in before.items() if name in kept}}


def test_of_two_entries_with_one_name_the_last_counts(dbos: type[DBOS]) -> None:
    report = named("report")
    dbos.launch()

    dbos.apply_schedules([entry("nightly", report, context=1), entry("nightly", report, context=2)])

    assert [each["context"] for each in dbos.list_schedules()] == [2]


def test_only_pruning_removes_what_is_not_listed(dbos: type[DBOS]) -> None:
    report = named("report")
    dbos.launch()
    dbos.apply_schedules([entry(name, report) for name in ("a", "b", "c", "theirs")])
    change("UPDATE dbos.workflow_schedules SET application_name = 'other' WHERE schedule_name = 'theirs'")
    kept = shown("a")

    dbos.apply_schedules([entry("a", report)])
    unpruned = sorted(names())
    with pytest.raises(DBOSException, match="Invalid cron schedule"):
        dbos.apply_schedules([entry("a", report), entry("d", report, schedule="wrong")], prune=True)
    refused = sorted(names())
    dbos.apply_schedules([entry("a", report), entry("d", report)], prune=True)
    pruned = sorted(names())
    unchanged = shown("a")
    dbos.apply_schedules([], prune=True)

    assert unpruned == refused == ["a", "b", "c", "theirs"]
    assert pruned == ["a", "d", "theirs"]
    assert unchanged == kept
    assert names() == ["theirs"]


# -- forms -------------------------------------------------------------------------------------------------------------


async def test_every_change_has_an_awaitable_form(dbos: type[DBOS]) -> None:
    report = named("report")
    dbos.launch()

    await dbos.create_schedule_async(schedule_name="nightly", workflow_fn=report, schedule=NEVER, context=1)
    created = await dbos.get_schedule_async("nightly")
    await dbos.update_schedule_async("nightly", context=2)
    await dbos.pause_schedule_async("nightly", reason="holidays")
    paused = await dbos.list_schedules_async(status="PAUSED", workflow_name="report", schedule_name_prefix="night")
    await dbos.resume_schedule_async("nightly")
    resumed = await dbos.get_schedule_async("nightly")
    await dbos.apply_schedules_async([entry("other", report)], prune=True)
    pruned = await dbos.list_schedules_async()
    await dbos.delete_schedule_async("other")

    assert created is not None
    assert paused == [{**created, "context": 2, "status": "PAUSED", "pause_reason": "holidays", "next_fire_at": None}]
    assert resumed == {**created, "context": 2}
    assert [each["schedule_name"] for each in pruned] == ["other"]
    assert await dbos.get_schedule_async("other") is None
    with pytest.raises(DBOSException, match="Schedule 'other' does not exist"):
        await dbos.update_schedule_async("other", context=1)


def test_schedules_are_there_after_a_restart(dbos: type[DBOS], config: Any) -> None:
    report = named("report")
    dbos.launch()
    dbos.create_schedule(schedule_name="nightly", workflow_fn=report, schedule=NEVER, context={"a": 1})
    dbos.pause_schedule("nightly")
    before = shown()

    dbos.destroy(destroy_registry=True)
    DBOS(config=config)
    dbos.launch()

    assert dbos.list_schedules() == [before]  # though its workflow is not registered any more
