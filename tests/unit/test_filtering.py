"""What lists of workflows can be asked for, and what is said of the rest."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from dbos._operations.filtering import ListOptions, WorkflowFilters, filter_of


@pytest.mark.parametrize(
    ("filters", "error", "message"),
    [
        ({"limit": -1}, ValueError, "limit is a whole number from 0"),
        ({"limit": 2**63}, ValueError, "limit is a whole number from 0"),
        ({"limit": True}, TypeError, "limit is a whole number"),
        ({"limit": 1.5}, TypeError, "limit is a whole number"),
        ({"offset": -1}, ValueError, "offset is a whole number from 0"),
        ({"offset": "1"}, TypeError, "offset is a whole number"),
        ({"status": "PENDNG"}, ValueError, "There is no status 'PENDNG'. There are CANCELLED, DELAYED"),
        ({"status": ["ERROR", "error"]}, ValueError, "There is no status 'error'"),
        ({"status": 1}, TypeError, "status is a string or a list of strings"),
        ({"name": ["a", None]}, TypeError, "name is a string or a list of strings"),
        ({"user": "a\0"}, ValueError, "user is valid Unicode"),
        ({"workflow_ids": ["\ud800"]}, ValueError, "workflow_ids is valid Unicode"),
        ({"has_parent": "yes"}, TypeError, "has_parent is True or False"),
        ({"completed_after": "2026-13-01"}, ValueError, "completed_after is a time in ISO 8601"),
        ({"start_time": datetime(2026, 1, 1, tzinfo=UTC)}, TypeError, "start_time is a time in ISO 8601, as text"),
        ({"attributes": ["a"]}, TypeError, "attributes is a dictionary"),
        ({"attributes": {1: "a"}}, TypeError, "attributes is a dictionary"),
        ({"attributes": {"a": {1, 2}}}, ValueError, "JSON"),
        ({"attributes": {"a": float("nan")}}, ValueError, "JSON"),
        ({"attributes": {"a": "\0"}}, ValueError, "NUL"),
        ({"stauts": "ERROR"}, TypeError, "There is no filter 'stauts'. There are app_version"),
    ],
)
def test_what_no_filter_can_be_is_refused(filters: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        filter_of(ListOptions, filters)


def test_a_filter_of_what_is_counted_has_no_pages() -> None:
    with pytest.raises(TypeError, match="There is no filter 'limit'"):
        filter_of(WorkflowFilters, {"limit": 1})
