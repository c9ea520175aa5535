"""The format of archives, and what may be imported.

What is imported may come from anybody: every table, column, type and size is checked before the database sees it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dbos._context import checked_workflow_id
from dbos._engine.engine import Engine
from dbos._error import DBOSException, DBOSPayloadTooLargeError, DBOSSerializationNotAllowedError
from dbos._sysdb.stores.archives import TABLES, Column
from dbos._types import WorkflowStatusString

__all__ = ["FORMAT", "VERSION", "checked_archive"]

FORMAT = "dbos-workflows"
VERSION = 1  # of the format; another one has other tables or columns
STATUSES = frozenset(status.value for status in WorkflowStatusString)
RANGES = {"integer": (0, 2**31 - 1), "bigint": (0, 2**53 - 1)}  # sums of two times fit the column, and JSON is exact
SERIALIZATIONS = ("serialization", "outcome_serialization")

Row = dict[str, Any]


def checked_archive(engine: Engine, exported: object) -> list[dict[str, list[Row]]]:
    """Copies of the rows of each workflow by table, of which every value can be stored.

    Raises:
        DBOSException: it is something else than an export, or not one of this version.
        DBOSPayloadTooLargeError: a value is larger than ``max_payload_bytes``.
        DBOSSerializationNotAllowedError: a value is in a format that is not in ``allowed_serializers``.
    """
    if not isinstance(exported, Mapping) or exported.get("format") != FORMAT:
        raise _invalid("it", f"is no export of workflows: give what export_workflow() returned, not {_kind(exported)}")
    if exported.get("version") != VERSION:
        raise _invalid("it", f"has the version {exported.get('version')!r}, and this library reads {VERSION}")
    workflows = exported.get("workflows")
    if not isinstance(workflows, list) or not workflows:
        raise _invalid("workflows", "must be a list that is not empty")
    checked = [_checked_workflow(engine, each, f"workflows[{place}]") for place, each in enumerate(workflows)]
    for name, table in TABLES.items():
        seen = set()
        for rows in checked:
            for row in rows[name]:
                key = tuple(row[column] for column in table.key)
                if key in seen:
                    raise _invalid("workflows", f"have several rows {key!r} for the table {name}")
                seen.add(key)
    return checked


def _checked_workflow(engine: Engine, workflow: object, path: str) -> dict[str, list[Row]]:
    if not isinstance(workflow, Mapping) or workflow.keys() != TABLES.keys():
        raise _invalid(path, f"must be a dictionary with the keys {', '.join(TABLES)}")
    rows: dict[str, list[Row]] = {}
    for name in TABLES:
        given = workflow[name]
        if name == "workflow_status":
            rows[name] = [_checked_row(engine, name, given, f"{path}.{name}")]
        elif isinstance(given, list):
            rows[name] = [_checked_row(engine, name, row, f"{path}.{name}[{place}]") for place, row in enumerate(given)]
        else:
            raise _invalid(f"{path}.{name}", f"must be a list, not {_kind(given)}")
    status = rows["workflow_status"][0]
    if status["status"] not in STATUSES:
        raise _invalid(f"{path}.workflow_status.status", f"must be one of {', '.join(sorted(STATUSES))}")
    workflow_id = checked_workflow_id(status["workflow_uuid"])
    for name, table in TABLES.items():
        if any(row[table.owner] != workflow_id for row in rows[name]):
            raise _invalid(f"{path}.{name}", f"must be rows of the workflow {workflow_id!r} only")
    return rows


def _checked_row(engine: Engine, name: str, row: object, path: str) -> Row:
    columns = TABLES[name].columns
    if not isinstance(row, Mapping):
        raise _invalid(path, f"must be a dictionary, not {_kind(row)}")
    for column in row:
        if column not in columns:
            raise _invalid(path, f"has an unknown column {column!r}")
    for column, kind in columns.items():
        if column not in row:
            raise _invalid(path, f"lacks the column {column!r}")
        _check_value(row[column], kind, f"{path}.{column}", engine.serialization.limits.max_bytes)
    allowed = engine.serialization.allowed
    for column in SERIALIZATIONS:
        format_name = row.get(column)
        if allowed is not None and format_name is not None and format_name not in allowed:
            raise DBOSSerializationNotAllowedError(format_name, f"Nothing was imported: see {path}.")
    return dict(row)


def _check_value(value: Any, kind: Column, path: str, max_payload_bytes: int) -> None:
    if value is None:
        if kind.is_required:
            raise _invalid(path, "must not be null")
    elif kind.type == "text":
        if type(value) is not str:
            raise _invalid(path, f"must be a string, not {_kind(value)}")
        if kind.max_length is not None and len(value) > kind.max_length:
            raise _invalid(path, f"must have {kind.max_length} characters at most")
        size = _size(value)
        if size is None or "\0" in value:
            raise _invalid(path, "must be valid Unicode without NUL characters")
        if kind.max_bytes is not None and size > kind.max_bytes:
            raise _invalid(path, f"must take {kind.max_bytes:,} bytes at most")
        if size > max_payload_bytes:
            raise DBOSPayloadTooLargeError(f"value {path}", size, max_payload_bytes)
        if kind.json == "object" and not isinstance(_json(value), dict):
            raise _invalid(path, "must be a JSON object")
        if kind.json == "strings" and not _is_strings(_json(value)):
            raise _invalid(path, "must be a JSON list of strings")
    elif kind.type == "boolean":
        if type(value) is not bool:
            raise _invalid(path, f"must be true or false, not {_kind(value)}")
    else:
        least, most = RANGES[kind.type]
        if type(value) is not int or not least <= value <= most:
            raise _invalid(path, f"must be a whole number from {least} to {most}")


def _size(text: str) -> int | None:
    """In bytes; None if it is not valid Unicode."""
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _invalid(path: str, what: str) -> DBOSException:
    return DBOSException(f"Nothing was imported: {path} {what}.")
