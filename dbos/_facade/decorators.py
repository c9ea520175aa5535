"""The decorators."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar, get_args

from dbos._core import (
    decorate_step,
    decorate_transaction,
    decorate_workflow,
    require_roles,
    through_binding,
)
from dbos._engine.step import StepPolicy
from dbos._error import DBOSException
from dbos._process import process
from dbos._registrations import ValidateArgs, get_or_create_class_info
from dbos._scheduler_decorator import decorate_scheduled
from dbos._serialization import WorkflowSerializationFormat
from dbos._types import IsolationLevel

__all__ = ["Decorators"]

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


class Decorators:
    """What makes workflows, steps and transactions of functions."""

    @classmethod
    def workflow(
        cls,
        *,
        name: str | None = None,
        max_recovery_attempts: int | None = 100,
        serialization_type: WorkflowSerializationFormat | None = None,
        validate_args: ValidateArgs | None = None,
    ) -> Callable[[F], F]:
        """Make a function a workflow: its progress is recorded, and after a crash it goes on where it stopped.

        The function must be deterministic apart from its steps. It may be a coroutine function, a static method, a
        class method or a method of a :class:`DBOSConfiguredInstance`; ``@staticmethod`` and ``@classmethod`` go on top.

        Args:
            name: What it is registered under; by default its qualified name.
            max_recovery_attempts: How often it may be recovered before it is given up; None for no limit.
            serialization_type: The format of its inputs and outcome.
            validate_args: Called with ``(args, kwargs)`` read from the database; returns those to use, or raises, which
                ends the workflow. ``pydantic_args_validator`` goes by the annotations.

        Raises:
            DBOSConflictingRegistrationError: the name belongs to a function of another kind.
        """

        def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
            return decorate_workflow(
                process.registry,
                func,
                name=name,
                max_recovery_attempts=max_recovery_attempts,
                serialization_type=serialization_type,
                validate_args=validate_args,
            )

        return through_binding(decorate)

    @classmethod
    def step(
        cls,
        *,
        name: str | None = None,
        retries_allowed: bool = False,
        interval_seconds: float = 1.0,
        max_attempts: int = 3,
        backoff_rate: float = 2.0,
        should_retry: Callable[[Exception], bool | Awaitable[bool]] | None = None,
        preemptible: bool = False,
        timeout_seconds: float | None = None,
    ) -> Callable[[F], F]:
        """Make a function a step: within a workflow its result is recorded, and it is not run again once it was.

        Outside of a workflow, or within another step, it is a plain function.

        Args:
            name: What it is recorded under; by default its qualified name.
            retries_allowed: Whether to run it again if it raises.
            interval_seconds: The pause before the second attempt, in seconds.
            max_attempts: How many attempts in all.
            backoff_rate: By what each pause is longer than the one before.
            should_retry: Called with the exception; False has it raised at once. May be a coroutine function for a
                coroutine step.
            preemptible: Whether cancelling the workflow cancels the step, which is not recorded then. For coroutine
                functions only.
            timeout_seconds: How long each attempt may take; one that takes longer is cancelled and fails with
                DBOSStepTimeoutError. For coroutine functions only.

        Raises:
            DBOSException: a synchronous step was given what only a coroutine function can have, or a timeout is not
                positive and finite.
        """
        policy = StepPolicy(
            retries_allowed=retries_allowed,
            interval_s=interval_seconds,
            max_attempts=max_attempts,
            backoff_rate=backoff_rate,
            should_retry=should_retry,
            preemptible=preemptible,
            timeout_s=timeout_seconds,
        )

        def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
            return decorate_step(process.registry, func, name=name, policy=policy)

        return through_binding(decorate)

    @classmethod
    def transaction(
        cls, isolation_level: IsolationLevel = "SERIALIZABLE", *, name: str | None = None
    ) -> Callable[[F], F]:
        """Make a function a transaction: a step whose writes to the application database commit with its record.

        Within it, :attr:`sql_session` is an SQLAlchemy session; it commits when the function returns and rolls back
        when it raises. Called outside of a workflow, it is one by itself.

        Args:
            isolation_level: On PostgreSQL; SQLite is always serializable.
            name: What it is recorded under; by default its qualified name.

        Raises:
            DBOSException: the function is a coroutine function, or there is no such isolation level.
        """
        if isolation_level not in get_args(IsolationLevel):
            raise DBOSException(
                f"Unknown isolation level {isolation_level!r}. There are: {', '.join(get_args(IsolationLevel))}. "
                "A transaction without one is decorated with @DBOS.transaction(), with parentheses."
            )

        def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
            return decorate_transaction(process.registry, func, name=name, isolation_level=isolation_level)

        return through_binding(decorate)

    @classmethod
    def scheduled(cls, cron: str) -> Callable[[F], F]:
        """Start a workflow, step or transaction at the times that a cron expression says, in UTC, while a process runs.

        Each tick starts one workflow, ``sched-<name>-<tick>``, however many processes have this code; what is missed
        is not made up for. Put it above the other decorator. For schedules that can be changed without a deployment,
        and can do more, see :meth:`create_schedule`.

        Args:
            cron: The cron expression, of five fields, of six with seconds first, or of seven with the year last.

        Raises:
            ValueError: The expression cannot be evaluated.
            DBOSException: It is a method of configured instances.

        Example:
            ```python
            @DBOS.scheduled("0 * * * *")
            @DBOS.workflow()
            def every_hour(scheduled_time: datetime, actual_time: datetime) -> None: ...
            ```
        """
        if callable(cron):
            raise ValueError(f'Invalid crontab {cron!r}: write @DBOS.scheduled("0 * * * *"), with a cron expression')

        def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
            return decorate_scheduled(process.registry, func, cron)

        return through_binding(decorate)

    @classmethod
    def dbos_class(cls, class_name: str | None = None) -> Callable[[C], C]:
        """Register a class that has workflows, steps or transactions among its methods.

        Args:
            class_name: What it is registered under; by default its qualified name.

        Raises:
            Exception: another class has that name.
            DBOSException: the name is not a string, or it decorates something else than a class.
        """
        if class_name is not None and not isinstance(class_name, str):
            raise DBOSException(f"{class_name!r} is not a class name. Write @DBOS.dbos_class(), with parentheses.")

        def decorate(target: C) -> C:
            info = get_or_create_class_info(target, class_name)
            process.registry.register_class(target, info.registered_name)
            return target

        return decorate

    @classmethod
    def default_required_roles(cls, roles: list[str]) -> Callable[[C], C]:
        """Require one of the roles for every decorated function of a class that names none itself; registers the class.

        Args:
            roles: The roles, one of which the caller must have.

        Raises:
            Exception: another class has that name.
            DBOSException: the roles are not a list, or it decorates something else than a class.
        """
        checked = _checked_roles(roles, "default_required_roles")

        def decorate(target: C) -> C:
            info = get_or_create_class_info(target)
            info.def_required_roles = checked
            process.registry.register_class(target, info.registered_name)
            return target

        return decorate

    @classmethod
    def required_roles(cls, roles: list[str]) -> Callable[[F], F]:
        """Require one of the roles for a workflow, step or transaction; above or below its decorator.

        Args:
            roles: The roles, one of which the caller must have; an empty list lifts the class' default.

        Raises:
            DBOSException: the roles are not a list.
        """
        checked = _checked_roles(roles, "required_roles")

        def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
            return require_roles(func, checked)

        return through_binding(decorate)


def _checked_roles(roles: object, decorator: str) -> list[str]:
    # A single string is a sequence of strings as well: nobody would ever have the role "a".
    if isinstance(roles, str) or not isinstance(roles, Iterable):
        raise DBOSException(f'{roles!r} is not a list of roles. Write @DBOS.{decorator}(["{roles}"]), for example.')
    return list(roles)
