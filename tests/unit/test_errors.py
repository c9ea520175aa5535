from __future__ import annotations

import asyncio
import inspect
import pickle
from typing import Any

import pytest

from dbos import _error
from dbos._error import (
    DBOSBaseException,
    DBOSErrorCode,
    DBOSException,
    DBOSForeignDatabaseError,
    DBOSInitializationError,
    DBOSMaxStepRetriesExceeded,
    DBOSNotAuthorizedError,
    DBOSQueueDeduplicatedError,
    DBOSSchemaVersionError,
    DBOSStreamTimeoutError,
    DBOSUnexpectedStepError,
    DBOSWorkflowCancelledError,
    MaxRecoveryAttemptsExceededError,
)

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "DBOSAwaitedWorkflowCancelledError": ("wf-1",),
    "DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded": ("wf-1",),
    "DBOSBaseException": ("a message", 99),
    "DBOSConflictingRegistrationError": ("pay",),
    "DBOSConflictingWorkflowError": ("wf-1", "different function name"),
    "DBOSDatabaseUnavailableError": ("The database could not be reached.",),
    "DatabaseGoneError": ("The database was deleted.",),
    "DBOSDeserializationError": ("json", "it is damaged"),
    "DBOSException": ("a message", 99),
    "DBOSForeignDatabaseError": ("app.sqlite", "it has a table dbos_migrations"),
    "DBOSInitializationError": ("no name",),
    "DBOSMaxStepRetriesExceeded": ("fetch", 3, [ValueError("a"), KeyError("b")]),
    "DBOSNonExistentWorkflowError": ("target", "wf-1"),
    "DBOSNotAuthorizedError": ("Function pay requires a role",),
    "DBOSPatchNondeterminismError": ("wf-1", "p1", "it ran concurrently with other steps"),
    "DBOSPayloadTooLargeError": ("result of step 'load'", 70_000_000, 67_108_864),
    "DBOSQueryTimeoutError": (2.5,),
    "DBOSQueueDeduplicatedError": ("wf-1", "mail", "key"),
    "DBOSRecoveryError": ("wf-1", "its status was not found"),
    "DBOSSchemaVersionError": ("app.sqlite", 12, 9),
    "DBOSSerializationNotAllowedError": ("py_pickle", "A stored value was not read."),
    "DBOSStepNondeterminismError": ("wf-1", 3),
    "DBOSStepTimeoutError": ("fetch", 1.5),
    "DBOSStreamNondeterminismError": ("wf-1", "progress"),
    "DBOSStreamTimeoutError": ("wf-1", "progress", 2.0),
    "DBOSUnexpectedStepError": ("wf-1", 3, "expected", "recorded"),
    "DBOSWorkflowCancelledError": ("Workflow wf-1 is cancelled. Aborting function.",),
    "DBOSWorkflowConflictIDError": ("wf-1",),
    "DBOSWorkflowFunctionNotFoundError": ("<NONE>", "pay is not a registered workflow function"),
    "DBOSWorkflowIDInUseError": ("wf-1", "PENDING", "pay"),
    "ExecutorFencedError": ("instance-1",),
    "MaxRecoveryAttemptsExceededError": ("wf-1", 100),
}

ERROR_NAMES = sorted(name for name in _error.__all__ if name != "DBOSErrorCode")


def make(name: str) -> Any:
    return getattr(_error, name)(*ARGUMENTS[name])


def fields_of(error: BaseException) -> dict[str, Any]:
    """The attributes, with exceptions among them (which have no equality) as text."""
    return {key: repr(value) for key, value in vars(error).items()}


@pytest.mark.parametrize("name", ERROR_NAMES)
def test_every_error_survives_pickling_with_its_text_and_attributes(name: str) -> None:
    error = make(name)

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.args == error.args == (error.message,)
    assert fields_of(copy) == fields_of(error)
    assert copy.status_code == error.status_code


@pytest.mark.parametrize("name", ERROR_NAMES)
def test_every_error_says_its_code_as_a_number(name: str) -> None:
    error = make(name)

    assert type(error.dbos_error_code) is int
    assert str(error) == f"DBOS Error {error.dbos_error_code}: {error.message}"


@pytest.mark.parametrize("name", ERROR_NAMES)
def test_every_error_stands_in_the_tree_that_the_module_draws(name: str) -> None:
    assert name in (inspect.getdoc(_error) or "")


def test_an_error_without_a_code_says_only_its_message() -> None:
    error = DBOSException("No DBOS was created yet")

    assert str(error) == "DBOS Error: No DBOS was created yet"
    assert error.dbos_error_code is None
    assert error.status_code is None


def test_no_two_kinds_of_error_share_a_code() -> None:
    codes = [code.value for code in DBOSErrorCode]

    assert len(codes) == len(set(codes))
    assert DBOSErrorCode.QueueDeduplicated.value == 12
    assert DBOSErrorCode.ConflictingRegistrationError.value == 25


def test_user_code_that_catches_exception_does_not_stop_a_cancellation() -> None:
    error = DBOSWorkflowCancelledError("Workflow wf-1 is cancelled. Aborting function.")

    assert isinstance(error, DBOSBaseException)
    assert not isinstance(error, Exception)
    assert not isinstance(error, asyncio.CancelledError)


def test_a_subclass_with_its_own_signature_survives_pickling() -> None:
    error = UsersError(order=7, reason="empty")

    copy = pickle.loads(pickle.dumps(error))

    assert str(copy) == str(error) == "DBOS Error: Order 7: empty"
    assert copy.order == 7


class UsersError(DBOSException):
    def __init__(self, *, order: int, reason: str) -> None:
        self.order = order
        super().__init__(f"Order {order}: {reason}")


def test_notes_survive_pickling() -> None:
    error = DBOSNotAuthorizedError("no")
    error.add_note("while paying")

    copy = pickle.loads(pickle.dumps(error))

    assert copy.__notes__ == ["while paying"]


def test_a_missing_role_is_forbidden_to_web_clients() -> None:
    error = DBOSNotAuthorizedError("Function pay requires a role")

    assert error.status_code == 403
    assert error.msg == "Function pay requires a role"
    assert "DBOS Error 8" in str(error)


def test_exhausted_retries_keep_the_error_of_each_attempt() -> None:
    first, second = ValueError("a"), ValueError("b")

    error = DBOSMaxStepRetriesExceeded("fetch", 2, [first, second])

    assert error.errors == [first, second]
    assert str(error) == "DBOS Error 7: Step fetch has exceeded its maximum of 2 retries"


def test_a_deduplicated_workflow_is_named_with_queue_and_key() -> None:
    error = DBOSQueueDeduplicatedError("wf-1", "mail", "key")

    assert str(error) == (
        "DBOS Error 12: Workflow wf-1 was deduplicated due to an existing workflow in queue mail "
        "with deduplication ID key."
    )
    assert (error.workflow_id, error.queue_name, error.deduplication_id) == ("wf-1", "mail", "key")


def test_an_unexpected_step_names_both_functions() -> None:
    error = DBOSUnexpectedStepError("wf-1", 3, "expected", "recorded")

    assert error.inputs == ("wf-1", 3, "expected", "recorded")
    assert "step 3" in str(error)
    assert "function recorded was recorded when expected was expected" in str(error)
    assert "deterministic" in str(error)


@pytest.mark.parametrize(("limit", "phrase"), [(3, "its maximum of 3 "), (None, "its maximum number of ")])
def test_a_dead_lettered_workflow_says_its_limit(limit: int | None, phrase: str) -> None:
    error = MaxRecoveryAttemptsExceededError("wf-1", limit)

    assert "wf-1" in str(error)
    assert f"exceeded {phrase}execution or recovery attempts" in str(error)


def test_a_stream_timeout_says_how_long_it_waited_only_if_there_was_a_limit() -> None:
    bounded = DBOSStreamTimeoutError("wf-1", "progress", 2.0)
    unbounded = DBOSStreamTimeoutError("wf-1", "progress")

    assert str(bounded).endswith("No value arrived on stream progress of workflow wf-1 within 2.0 seconds")
    assert str(unbounded).endswith("No value arrived on stream progress of workflow wf-1")


@pytest.mark.parametrize(("found", "advice"), [(12, "Upgrade opendbos"), (7, "dbos migrate")])
def test_a_schema_of_another_version_says_what_to_do(found: int, advice: str) -> None:
    error = DBOSSchemaVersionError("app.sqlite", found, 9)

    assert isinstance(error, DBOSInitializationError)
    assert str(error).startswith("DBOS Error 3: Error initializing DBOS Transact: ")
    assert advice in str(error)


def test_a_database_of_the_other_library_says_it_was_left_unchanged() -> None:
    error = DBOSForeignDatabaseError("app.sqlite", "it has a table dbos_migrations")

    assert isinstance(error, DBOSInitializationError)
    assert "left unchanged" in str(error)
    assert "system_database_url" in str(error)
