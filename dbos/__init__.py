"""Durable workflows in plain Python, checkpointed in SQLite or PostgreSQL.

The layers, top to bottom; imports point down only:

    _dbos, _bridge        the facade: decorators, lifecycle, a table of operations in two forms
    _operations           what users can ask for, each once, as a flow
    _services             background loops: dispatcher, leases, deadlines, notifier
    _core, _engine        what runs workflows and steps: flows that decide, drivers that act
    _app_db               the user's transactions
    _sys_db, _sysdb       the system database: operations, committer, stores, dialects
    _registry, _registrations, _context, _handles
    _migration, _schemas  tables and how they come to be
    _error, _serialization, _dbos_config, _clock, _ids, _types, _telemetry
"""

import dbos._error as error
from dbos._context import DBOSContextEnsure, DBOSContextSetAuth, SetWorkflowID, SetWorkflowTimeout
from dbos._dbos import DBOS, DBOSConfiguredInstance
from dbos._dbos_config import DBOSConfig
from dbos._error import DBOSException
from dbos._handles import WorkflowHandle, WorkflowHandleAsync
from dbos._serialization import (
    DBOSPortableJSONSerializer,
    PortableWorkflowError,
    Serializer,
    WorkflowSerializationFormat,
)
from dbos._types import StepInfo, StepOptions, VersionInfo, WorkflowStatus, WorkflowStatusString

__all__ = [
    "DBOS",
    "DBOSConfig",
    "DBOSConfiguredInstance",
    "DBOSContextEnsure",
    "DBOSContextSetAuth",
    "DBOSException",
    "DBOSPortableJSONSerializer",
    "PortableWorkflowError",
    "Serializer",
    "SetWorkflowID",
    "SetWorkflowTimeout",
    "StepInfo",
    "StepOptions",
    "VersionInfo",
    "WorkflowHandle",
    "WorkflowHandleAsync",
    "WorkflowSerializationFormat",
    "WorkflowStatus",
    "WorkflowStatusString",
    "error",
]
