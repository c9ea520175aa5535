"""Every exception the library raises on purpose.

The tree, with the stable code of each class in parentheses::

    BaseException
    ├── DBOSBaseException                     what `except Exception` in user code must not swallow
    │   ├── DBOSWorkflowConflictIDError       (1)
    │   ├── DBOSWorkflowCancelledError        (10)
    │   └── ExecutorFencedError               (1002) internal
    └── Exception
        └── DBOSException
            ├── DBOSRecoveryError             (2)
            ├── DBOSInitializationError       (3)
            │   ├── DBOSSchemaVersionError
            │   └── DBOSForeignDatabaseError
            ├── DBOSWorkflowFunctionNotFoundError                (4)
            ├── DBOSNonExistentWorkflowError                     (5)
            ├── MaxRecoveryAttemptsExceededError                 (6)
            ├── DBOSMaxStepRetriesExceeded                       (7)
            ├── DBOSNotAuthorizedError                           (8)
            ├── DBOSConflictingWorkflowError                     (9)
            ├── DBOSUnexpectedStepError                          (11)
            ├── DBOSQueueDeduplicatedError                       (12)
            ├── DBOSAwaitedWorkflowCancelledError                (13)
            ├── DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded   (14)
            ├── DBOSPatchNondeterminismError                     (15)
            ├── DBOSStreamTimeoutError                           (16)
            ├── DBOSStreamNondeterminismError                    (17)
            ├── DBOSStepTimeoutError                             (18)
            ├── DBOSConflictingRegistrationError                 (25)
            ├── DBOSQueryTimeoutError                            (26)
            ├── DBOSWorkflowIDInUseError                         (27)
            ├── DBOSStepNondeterminismError                      (28)
            ├── DBOSDatabaseUnavailableError                     (1001)
            │   └── DatabaseGoneError
            ├── DBOSSerializationNotAllowedError                 (1003)
            ├── DBOSDeserializationError                         (1004)
            └── DBOSPayloadTooLargeError                         (1005)

Users reach this module as ``dbos.error``. An error is recorded in the database and raised again on replay, in another
process: so pickling restores the fields as they are and never calls a constructor. A subclass with its own signature
needs no ``__reduce__``.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar

__all__ = [
    "DBOSAwaitedWorkflowCancelledError",
    "DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded",
    "DBOSBaseException",
    "DBOSConflictingRegistrationError",
    "DBOSConflictingWorkflowError",
    "DBOSDatabaseUnavailableError",
    "DBOSDeserializationError",
    "DBOSErrorCode",
    "DBOSException",
    "DBOSForeignDatabaseError",
    "DBOSInitializationError",
    "DBOSMaxStepRetriesExceeded",
    "DBOSNonExistentWorkflowError",
    "DBOSNotAuthorizedError",
    "DBOSPatchNondeterminismError",
    "DBOSPayloadTooLargeError",
    "DBOSQueryTimeoutError",
    "DBOSQueueDeduplicatedError",
    "DBOSRecoveryError",
    "DBOSSchemaVersionError",
    "DBOSSerializationNotAllowedError",
    "DBOSStepNondeterminismError",
    "DBOSStepTimeoutError",
    "DBOSStreamNondeterminismError",
    "DBOSStreamTimeoutError",
    "DBOSUnexpectedStepError",
    "DBOSWorkflowCancelledError",
    "DBOSWorkflowConflictIDError",
    "DBOSWorkflowFunctionNotFoundError",
    "DBOSWorkflowIDInUseError",
    "DatabaseGoneError",
    "ExecutorFencedError",
    "MaxRecoveryAttemptsExceededError",
]


class DBOSErrorCode(Enum):
    """The stable number of each error; it appears in ``str(error)`` and as ``error.dbos_error_code``."""

    ConflictingIDError = 1
    RecoveryError = 2
    InitializationError = 3
    WorkflowFunctionNotFound = 4
    NonExistentWorkflowError = 5
    MaxRecoveryAttemptsExceeded = 6
    MaxStepRetriesExceeded = 7
    NotAuthorized = 8
    ConflictingWorkflowError = 9
    WorkflowCancelled = 10
    UnexpectedStep = 11
    QueueDeduplicated = 12
    AwaitedWorkflowCancelled = 13
    AwaitedWorkflowMaxRecoveryAttemptsExceeded = 14
    PatchNondeterminism = 15
    StreamTimeout = 16
    StreamNondeterminism = 17
    StepTimeout = 18
    ConflictingRegistrationError = 25
    QueryTimeout = 26
    WorkflowIDInUse = 27
    StepNondeterminism = 28
    # From 1001 on the codes are ours, well apart from numbers users already know.
    DatabaseUnavailable = 1001
    ExecutorFenced = 1002
    SerializationNotAllowed = 1003
    Deserialization = 1004
    PayloadTooLarge = 1005


def _restore(cls: type[_CodedError], args: tuple[Any, ...]) -> _CodedError:
    """Make an unpickled error without calling its constructor; pickle sets the fields afterwards."""
    return cls.__new__(cls, *args)


class _CodedError(BaseException):
    """What both roots share: a message, a stable code, and pickling that restores every field."""

    code: ClassVar[DBOSErrorCode | None] = None
    status_code: int | None = None

    def __init__(self, message: str, dbos_error_code: int | None = None) -> None:
        super().__init__(message)
        if dbos_error_code is None and self.code is not None:
            dbos_error_code = self.code.value
        self.message = message
        self.dbos_error_code = dbos_error_code

    def __str__(self) -> str:
        if self.dbos_error_code:
            return f"DBOS Error {self.dbos_error_code}: {self.message}"
        return f"DBOS Error: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args), self.__dict__


class DBOSException(_CodedError, Exception):
    """Base of the errors that user code may catch.

    Attributes:
        message: What happened, without the ``DBOS Error <code>: `` prefix of ``str()``.
        dbos_error_code: The stable number (see :class:`DBOSErrorCode`), or ``None``.
        status_code: The HTTP status a web integration answers with, or ``None`` for its default.
    """


class DBOSBaseException(_CodedError):
    """Base of the signals that stop a workflow; not an ``Exception``, lest user code catches them by accident.

    Attributes:
        message: What happened, without the ``DBOS Error <code>: `` prefix of ``str()``.
        dbos_error_code: The stable number (see :class:`DBOSErrorCode`), or ``None``.
        status_code: Always ``None``.
    """


# Signals: they stop a workflow from inside.


class DBOSWorkflowConflictIDError(DBOSBaseException):
    """Another execution has already recorded this operation, so this one must stop and await the other's result."""

    code = DBOSErrorCode.ConflictingIDError

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        super().__init__(f"Conflicting workflow ID {workflow_id}")


class DBOSWorkflowCancelledError(DBOSBaseException):
    """Raised inside a workflow at its next operation after it was cancelled, or its timeout passed."""

    code = DBOSErrorCode.WorkflowCancelled

    def __init__(self, msg: str) -> None:
        super().__init__(msg)


class ExecutorFencedError(DBOSBaseException):
    """This executor instance was declared dead and its work taken over; nothing more of its runs may be written."""

    code = DBOSErrorCode.ExecutorFenced

    def __init__(self, instance_id: str) -> None:
        self.instance_id = instance_id
        super().__init__(
            f"Executor instance {instance_id} was declared dead and its work taken over. "
            "Its runs are parked; the process registers as a new instance."
        )


# Starting up.


class DBOSInitializationError(DBOSException):
    """The configuration, a name or the database does not allow DBOS to start."""

    code = DBOSErrorCode.InitializationError

    def __init__(self, message: str) -> None:
        super().__init__(f"Error initializing DBOS Transact: {message}")


class DBOSSchemaVersionError(DBOSInitializationError):
    """The schema of the system database is not one that this version of the library can use."""

    def __init__(self, database: str, found: int, supported: int) -> None:
        self.database, self.found, self.supported = database, found, supported
        if found > supported:
            advice = (
                f"newer than version {supported}, the newest this release of opendbos knows. "
                "Upgrade opendbos in this process; the database was left unchanged."
            )
        else:
            advice = (
                f"older than version {supported}, which this release of opendbos needs. "
                "Run `dbos migrate` with a role that may change tables, then start again."
            )
        super().__init__(f"The system database {database} has schema version {found}, {advice}")


class DBOSForeignDatabaseError(DBOSInitializationError):
    """The system database belongs to another library that uses the same table names."""

    def __init__(self, database: str, found: str) -> None:
        self.database, self.found = database, found
        super().__init__(
            f"The system database {database} was not created by opendbos ({found}) and was left unchanged. "
            "Point system_database_url to another database or file, or, on PostgreSQL, choose another "
            "dbos_system_schema."
        )


class DBOSDatabaseUnavailableError(DBOSException):
    """The database could not be reached within the bound; it is not known to have refused the operation."""

    code = DBOSErrorCode.DatabaseUnavailable

    def __init__(self, message: str) -> None:
        super().__init__(message)


class DatabaseGoneError(DBOSDatabaseUnavailableError):
    """The database that is open is not the one that others find under its name any more, and never will be again."""


class DBOSConflictingRegistrationError(DBOSException):
    """One name was registered as two different kinds of function, such as a workflow and a step."""

    code = DBOSErrorCode.ConflictingRegistrationError

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"Operation (Name: {name}) is already registered with a conflicting function type")


# Starting and finding workflows.


class DBOSRecoveryError(DBOSException):
    """A workflow cannot be executed by its ID, for example because it has no row in the database."""

    code = DBOSErrorCode.RecoveryError

    def __init__(self, workflow_id: str, message: str | None = None) -> None:
        self.workflow_id = workflow_id
        super().__init__(f"Recovery error for workflow ID {workflow_id}{_detail(message)}")


class DBOSWorkflowFunctionNotFoundError(DBOSException):
    """The function, class or configured instance that a workflow needs is not registered in this process."""

    code = DBOSErrorCode.WorkflowFunctionNotFound

    def __init__(self, workflow_id: str, message: str | None = None) -> None:
        self.workflow_id = workflow_id
        super().__init__(f"Could not execute workflow {workflow_id}{_detail(message)}")


class DBOSNonExistentWorkflowError(DBOSException):
    """No workflow with this ID exists; ``destination`` says in which role it was looked up."""

    code = DBOSErrorCode.NonExistentWorkflowError

    def __init__(self, destination: str, destination_id: str) -> None:
        self.destination, self.destination_id = destination, destination_id
        super().__init__(f"Non-existent {destination} workflow ID: {destination_id}")


class DBOSConflictingWorkflowError(DBOSException):
    """This workflow ID already belongs to a workflow of another function, class or configured instance."""

    code = DBOSErrorCode.ConflictingWorkflowError

    def __init__(self, workflow_id: str, message: str | None = None) -> None:
        self.workflow_id = workflow_id
        super().__init__(f"Conflicting workflow invocation with the same ID ({workflow_id}){_detail(message)}")


class DBOSWorkflowIDInUseError(DBOSException):
    """A workflow with this ID exists, and the caller asked to reject that."""

    code = DBOSErrorCode.WorkflowIDInUse

    def __init__(self, workflow_id: str, workflow_status: str, workflow_name: str) -> None:
        self.workflow_id, self.workflow_status, self.workflow_name = workflow_id, workflow_status, workflow_name
        super().__init__(
            f"Workflow ID {workflow_id} is already in use by workflow {workflow_name} with status {workflow_status}."
        )


class DBOSQueueDeduplicatedError(DBOSException):
    """A workflow with this deduplication ID is already waiting or running in the queue."""

    code = DBOSErrorCode.QueueDeduplicated

    def __init__(self, workflow_id: str, queue_name: str, deduplication_id: str) -> None:
        self.workflow_id, self.queue_name, self.deduplication_id = workflow_id, queue_name, deduplication_id
        super().__init__(
            f"Workflow {workflow_id} was deduplicated due to an existing workflow in queue {queue_name} "
            f"with deduplication ID {deduplication_id}."
        )


class DBOSNotAuthorizedError(DBOSException):
    """The caller holds none of the roles that the function requires."""

    code = DBOSErrorCode.NotAuthorized
    status_code = 403  # HTTP Forbidden, for the web integrations

    def __init__(self, msg: str) -> None:
        self.msg = msg
        super().__init__(msg)


# How a workflow ended.


class MaxRecoveryAttemptsExceededError(DBOSException):
    """The workflow was started over more often than its limit allows, and is now set aside (dead-lettered)."""

    code = DBOSErrorCode.MaxRecoveryAttemptsExceeded

    def __init__(self, wf_id: str, max_retries: int | None) -> None:
        self.workflow_id, self.max_retries = wf_id, max_retries
        limit = "maximum number of" if max_retries is None else f"maximum of {max_retries}"
        super().__init__(
            f"Workflow {wf_id} has exceeded its {limit} execution or recovery attempts and was set aside. "
            "When the cause is removed, start it again with DBOS.resume_workflow or `dbos workflow resume`."
        )


class DBOSAwaitedWorkflowCancelledError(DBOSException):
    """The workflow whose result was awaited was cancelled."""

    code = DBOSErrorCode.AwaitedWorkflowCancelled

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        super().__init__(f"Awaited workflow {workflow_id} was cancelled")


class DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded(DBOSException):
    """The workflow whose result was awaited used up its recovery attempts."""

    code = DBOSErrorCode.AwaitedWorkflowMaxRecoveryAttemptsExceeded

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        super().__init__(f"Awaited workflow {workflow_id} exceeded its maximum recovery attempts")


# Steps and determinism.


class DBOSMaxStepRetriesExceeded(DBOSException):
    """A step failed in each of its attempts; ``errors`` holds what each of them raised, in order."""

    code = DBOSErrorCode.MaxStepRetriesExceeded

    def __init__(self, step_name: str, max_retries: int, errors: list[Exception]) -> None:
        self.step_name, self.max_retries, self.errors = step_name, max_retries, errors
        super().__init__(f"Step {step_name} has exceeded its maximum of {max_retries} retries")


class DBOSStepTimeoutError(DBOSException):
    """An attempt of an async step took longer than its ``timeout_seconds``."""

    code = DBOSErrorCode.StepTimeout

    def __init__(self, step_name: str, timeout_seconds: float) -> None:
        self.step_name, self.timeout_seconds = step_name, timeout_seconds
        super().__init__(f"Step {step_name} was cancelled after exceeding its timeout of {timeout_seconds} seconds")


class DBOSUnexpectedStepError(DBOSException):
    """On replay the workflow asked for another operation than the one it recorded at this place."""

    code = DBOSErrorCode.UnexpectedStep

    def __init__(self, workflow_id: str, step_id: int, expected_name: str, recorded_name: str) -> None:
        self.inputs = (workflow_id, step_id, expected_name, recorded_name)
        super().__init__(
            f"In workflow {workflow_id}, step {step_id}: function {recorded_name} was recorded when {expected_name} "
            "was expected. A workflow must be deterministic: given the same inputs and step results it must call the "
            "same operations in the same order. If parts that run side by side have several operations each, make "
            "each of them a child workflow. For a deliberate change of code use DBOS.patch."
        )


class DBOSStepNondeterminismError(DBOSException):
    """One execution recorded the same step twice, with different results."""

    code = DBOSErrorCode.StepNondeterminism

    def __init__(self, workflow_id: str, step_id: int) -> None:
        self.inputs = (workflow_id, step_id)
        super().__init__(
            f"Step {step_id} of workflow {workflow_id} was recorded twice by the same execution, with different "
            "results. Operations of a workflow must not race for a step; run concurrent parts as child workflows."
        )


class DBOSPatchNondeterminismError(DBOSException):
    """``DBOS.patch`` or ``DBOS.deprecate_patch`` cannot tell which path this workflow took before."""

    code = DBOSErrorCode.PatchNondeterminism

    def __init__(self, workflow_id: str, patch_name: str, details: str) -> None:
        self.inputs = (workflow_id, patch_name, details)
        super().__init__(f"Cannot deterministically apply patch {patch_name} in workflow {workflow_id}: {details}")


# Streams and queries.


class DBOSStreamTimeoutError(DBOSException):
    """No further value arrived on a stream in time."""

    code = DBOSErrorCode.StreamTimeout

    def __init__(self, workflow_id: str, key: str, timeout_seconds: float | None = None) -> None:
        self.workflow_id, self.key, self.timeout_seconds = workflow_id, key, timeout_seconds
        within = "" if timeout_seconds is None else f" within {timeout_seconds} seconds"
        super().__init__(f"No value arrived on stream {key} of workflow {workflow_id}{within}")


class DBOSStreamNondeterminismError(DBOSException):
    """Two reads of streams overlapped in one workflow, so their values could not be replayed in order."""

    code = DBOSErrorCode.StreamNondeterminism

    def __init__(self, workflow_id: str, key: str) -> None:
        self.workflow_id, self.key = workflow_id, key
        super().__init__(
            f"Cannot deterministically read stream {key} in workflow {workflow_id}: "
            "another read is in progress there. Finish one before the next, or read in child workflows."
        )


class DBOSQueryTimeoutError(DBOSException):
    """A query that only observes was stopped at its time limit, to keep the database free for work."""

    code = DBOSErrorCode.QueryTimeout

    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        super().__init__(
            f"The query was cancelled after exceeding its {timeout_seconds}s statement timeout. "
            "Narrow it with filters or a limit."
        )


# Stored values.


class DBOSSerializationNotAllowedError(DBOSException):
    """A value is, or would have to be, stored in a format that ``allowed_serializers`` does not list."""

    code = DBOSErrorCode.SerializationNotAllowed

    def __init__(self, serialization: str, detail: str) -> None:
        self.serialization = serialization
        super().__init__(
            f"{detail} The configuration key 'allowed_serializers' does not list {serialization!r}; "
            "add it only if you trust everyone who can write to the database."
        )


class DBOSDeserializationError(DBOSException):
    """A stored value cannot be decoded; its text is damaged, or a class it names is gone."""

    code = DBOSErrorCode.Deserialization

    def __init__(self, serialization: str, detail: str) -> None:
        self.serialization, self.detail = serialization, detail
        super().__init__(f"A stored value in format {serialization!r} cannot be decoded: {detail}")


class DBOSPayloadTooLargeError(DBOSException):
    """A value is too large to be stored: an input, a result, a message, an event or a stream value.

    Attributes:
        what: Which value, such as ``result of step 'load'``.
        size: How many bytes it takes as text.
        limit: How many it may take: ``max_payload_bytes`` of the configuration.
    """

    code = DBOSErrorCode.PayloadTooLarge

    def __init__(self, what: str, size: int, limit: int) -> None:
        self.what, self.size, self.limit = what, size, limit
        super().__init__(
            f"The {what} takes {size:,} bytes, and at most {limit:,} are stored. Keep large data elsewhere and pass a "
            "reference to it, or raise 'max_payload_bytes' in the configuration."
        )


def _detail(message: str | None) -> str:
    return f": {message}" if message else ""
