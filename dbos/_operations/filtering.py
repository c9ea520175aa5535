"""The filters that lists and numbers of workflows share: declared once, checked, and made a query's values."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, TypeVar

from dbos._sysdb.filters import WorkflowFilter
from dbos._types import WorkflowStatusString

__all__ = ["ListOptions", "WorkflowFilters", "checked_count", "epoch_ms", "filter_of", "shows"]

F = TypeVar("F", bound=Callable[..., Any])

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # as JSON escapes it, and not what merely looks like that
_MOST = 2**63 - 1  # what a database counts up to
_STATUSES = frozenset(status.value for status in WorkflowStatusString)


class WorkflowFilters(TypedDict, total=False):
    """Which workflows."""

    workflow_ids: list[str] | None
    workflow_id_prefix: str | list[str] | None
    status: str | list[str] | None
    name: str | list[str] | None
    app_version: str | list[str] | None
    application_name: str | list[str] | None
    user: str | list[str] | None
    queue_name: str | list[str] | None
    executor_id: str | list[str] | None
    forked_from: str | list[str] | None
    parent_workflow_id: str | list[str] | None
    has_parent: bool | None
    attributes: dict[str, Any] | None
    start_time: str | None
    end_time: str | None
    completed_after: str | None
    completed_before: str | None
    dequeued_after: str | None
    dequeued_before: str | None
    schedule_name: str | list[str] | None
    queues_only: bool
    was_forked_from: bool | None


class ListOptions(WorkflowFilters, total=False):
    """Which workflows, how many of them, and how much of each."""

    limit: int | None
    offset: int | None
    sort_desc: bool
    load_input: bool
    load_output: bool


_DEFAULTS = {"queues_only": False, "sort_desc": False, "load_input": True, "load_output": True}  # of others, None


def shows(options: type) -> Callable[[F], F]:
    """Have a function with ``**options: Unpack[...]`` show them one by one, and refuse others."""

    def decorate(func: F) -> F:
        signature = inspect.signature(func)
        named = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        keywords = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_DEFAULTS.get(name),
                annotation=getattr(annotation, "__forward_arg__", annotation),
            )
            for name, annotation in options.__annotations__.items()
        ]
        func.__signature__ = signature.replace(parameters=[*named, *keywords])  # type: ignore[attr-defined]  # functions may have one
        return func

    return decorate


def filter_of(options: type, given: Mapping[str, Any]) -> WorkflowFilter:
    """What the keywords ask for, of those that ``options`` declares.

    Raises:
        TypeError: there is no such keyword, or a value is of another type.
        ValueError: nothing can match a value, or it is no time and no number of rows.
    """
    for name in given:
        if name not in options.__annotations__:
            raise TypeError(f"There is no filter {name!r}. There are {', '.join(sorted(options.__annotations__))}.")
    asked = {**_DEFAULTS, **given}

    def texts(name: str) -> list[str]:
        return _texts(name, asked.get(name))

    def time(name: str) -> int | None:
        text = asked.get(name)
        return None if text is None else epoch_ms(name, text)

    def flag(name: str) -> Any:
        value = asked.get(name)
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{name} is True or False, not {value!r}.")
        return value

    return WorkflowFilter(
        workflow_ids=texts("workflow_ids"),
        workflow_id_prefixes=texts("workflow_id_prefix"),
        statuses=_statuses(asked.get("status")),
        names=texts("name"),
        app_versions=texts("app_version"),
        application_names=texts("application_name"),
        forked_from=texts("forked_from"),
        parent_workflow_ids=texts("parent_workflow_id"),
        users=texts("user"),
        queue_names=texts("queue_name"),
        executor_ids=texts("executor_id"),
        schedule_names=texts("schedule_name"),
        created_from_ms=time("start_time"),
        created_to_ms=time("end_time"),
        completed_from_ms=time("completed_after"),
        completed_to_ms=time("completed_before"),
        dequeued_from_ms=time("dequeued_after"),
        dequeued_to_ms=time("dequeued_before"),
        queues_only=bool(flag("queues_only")),
        was_forked_from=flag("was_forked_from"),
        has_parent=flag("has_parent"),
        attributes=_attributes(asked.get("attributes")),
        limit=checked_count("limit", asked.get("limit")),
        offset=checked_count("offset", asked.get("offset")),
        sort_desc=bool(flag("sort_desc")),
    )


def epoch_ms(name: str, text: object) -> int:
    """A time in ISO 8601, local time unless it has an offset, in milliseconds since 1970.

    Raises:
        TypeError: it is no text.
        ValueError: it is no time.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} is a time in ISO 8601, as text, not {text!r}.")
    try:
        time = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name} is a time in ISO 8601, such as 2026-01-31T09:30:00+01:00, not {text!r}.") from error
    return (time - _EPOCH) // timedelta(milliseconds=1)  # exact, which seconds in a float are not


def checked_count(name: str, value: object) -> int | None:
    """A number of rows; None for all of them, as 0 always was.

    Raises:
        TypeError: it is no number.
        ValueError: no database can count so far, or below 0.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is a whole number, not {value!r}.")
    if not 0 <= value <= _MOST:
        raise ValueError(f"{name} is a whole number from 0 to {_MOST}, not {value}.")
    return value or None


def _texts(name: str, value: object) -> list[str]:
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} is a string or a list of strings, not {value!r}.")
    for text in texts:
        try:
            is_valid = b"\0" not in text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            is_valid = False
        if not is_valid:
            raise ValueError(f"{name} is valid Unicode without a NUL character, and not {text!r}.")
    return [str.__str__(text) for text in texts]  # of an enumeration's member, its value


def _statuses(value: object) -> list[str]:
    statuses = _texts("status", value)
    for status in statuses:
        if status not in _STATUSES:
            raise ValueError(f"There is no status {status!r}. There are {', '.join(sorted(_STATUSES))}.")
    return statuses


def _attributes(value: object) -> str | None:
    if value is None or value == {}:
        return None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"attributes is a dictionary whose keys are strings, not {value!r}.")
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"attributes is a dictionary that JSON can express: {error}") from error
    if _NUL.search(text):
        raise ValueError("attributes cannot contain a NUL character.")
    return text
