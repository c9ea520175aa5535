"""Durable workflows in plain Python, checkpointed in SQLite or PostgreSQL.

The layers, top to bottom; imports point down only:

    testing               what users test with: virtual time, and systems of a test's own
    _dbos, _client        the facade: the life cycle of the one DBOS object; and operations without a runtime
    _facade               what users find on DBOS: decorators, starting, a table of operations in two forms
    _queue, _debouncer    queues as users declare and change them, and calls that are debounced
    _datasource           transactions in any number of databases of the user's
    _process, _bridge     what this process has; an operation's two forms
    _operations           what users can ask for, each once, as a flow
    _services             background loops: dispatcher, leases, deadlines, recovery, notifier, alerts; and SIGTERM
    _scheduler            the loop that fires schedules, and the decorator that declares one
    _core, _engine        what runs workflows and steps: flows that decide, drivers that act
    _app_db               databases of the user, and how transactions are recorded in them
    _sys_db, _sysdb       the system database: operations, committer, stores, dialects
    _validation           arguments checked by annotations
    _registry, _registrations, _context, _handles
    _migration, _schemas  tables and how they come to be
    _error, _serialization, _dbos_config, _retention_policy, _queue_config, _cron, _clock, _ids, _types, _telemetry
"""

import dbos._error as error
from dbos._client import DBOSClient
from dbos._context import (
    DBOSContextEnsure,
    DBOSContextSetAuth,
    SetEnqueueOptions,
    SetWorkflowAttributes,
    SetWorkflowID,
    SetWorkflowTimeout,
)
from dbos._datasource.datasource import AsyncSQLAlchemyDatasource, SQLAlchemyDatasource
from dbos._dbos import DBOS, DBOSConfiguredInstance
from dbos._dbos_config import DBOSConfig
from dbos._debouncer import Debouncer, DebouncerClient
from dbos._error import DBOSException
from dbos._handles import WorkflowHandle, WorkflowHandleAsync
from dbos._operations.migrating import run_dbos_database_migrations
from dbos._operations.queues import EnqueueOptions
from dbos._queue import Queue, QueueRateLimit
from dbos._retention_policy import RetentionConfig, RetentionRule
from dbos._serialization import (
    DBOSPortableJSONSerializer,
    PortableWorkflowError,
    Serializer,
    WorkflowSerializationFormat,
)
from dbos._types import (
    Catchup,
    ClientScheduleInput,
    DuplicationPolicy,
    ExecutorInfo,
    ManagementAction,
    Metric,
    Overlap,
    RetentionReport,
    ScheduleDecision,
    ScheduleInput,
    SchedulePreview,
    SendMessage,
    StepInfo,
    StepOptions,
    TransactionOptions,
    VersionInfo,
    WorkflowAggregate,
    WorkflowSchedule,
    WorkflowStatus,
    WorkflowStatusString,
)
from dbos._validation import make_pydantic_args_validator, pydantic_args_validator

__all__ = [
    "DBOS",
    "AsyncSQLAlchemyDatasource",
    "Catchup",
    "ClientScheduleInput",
    "DBOSClient",
    "DBOSConfig",
    "DBOSConfiguredInstance",
    "DBOSContextEnsure",
    "DBOSContextSetAuth",
    "DBOSException",
    "DBOSPortableJSONSerializer",
    "Debouncer",
    "DebouncerClient",
    "DuplicationPolicy",
    "EnqueueOptions",
    "ExecutorInfo",
    "ManagementAction",
    "Metric",
    "Overlap",
    "PortableWorkflowError",
    "Queue",
    "QueueRateLimit",
    "RetentionConfig",
    "RetentionReport",
    "RetentionRule",
    "SQLAlchemyDatasource",
    "ScheduleDecision",
    "ScheduleInput",
    "SchedulePreview",
    "SendMessage",
    "Serializer",
    "SetEnqueueOptions",
    "SetWorkflowAttributes",
    "SetWorkflowID",
    "SetWorkflowTimeout",
    "StepInfo",
    "StepOptions",
    "TransactionOptions",
    "VersionInfo",
    "WorkflowAggregate",
    "WorkflowHandle",
    "WorkflowHandleAsync",
    "WorkflowSchedule",
    "WorkflowSerializationFormat",
    "WorkflowStatus",
    "WorkflowStatusString",
    "error",
    "make_pydantic_args_validator",
    "pydantic_args_validator",
    "run_dbos_database_migrations",
]
