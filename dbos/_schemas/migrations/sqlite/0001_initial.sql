-- The system database, as of its first version.
--
-- How these files are written: tables carry the schema placeholder as their prefix, which SQLite drops; comments are
-- dropped before execution; every statement may be repeated, except that SQLite adds no column IF NOT EXISTS.
--
-- Milliseconds since 1970 come from julianday(), which counts in whole milliseconds inside; unixepoch('subsec') would
-- need SQLite 3.42. Booleans are 0 and 1. There are no foreign keys: deletion is explicit.

-- One row per workflow execution.
CREATE TABLE IF NOT EXISTS dbos.workflow_status (
    workflow_uuid TEXT NOT NULL PRIMARY KEY CHECK (trim(workflow_uuid) <> ''),
    status TEXT,
    name TEXT,
    authenticated_user TEXT,
    assumed_role TEXT,
    authenticated_roles TEXT,
    request TEXT,
    output TEXT,
    error TEXT,
    executor_id TEXT,
    created_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    updated_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    application_version TEXT,
    application_id TEXT,
    class_name TEXT DEFAULT NULL,
    config_name TEXT DEFAULT NULL,
    recovery_attempts INTEGER DEFAULT 0,
    queue_name TEXT,
    workflow_timeout_ms INTEGER,
    workflow_deadline_epoch_ms INTEGER,
    inputs TEXT,
    started_at_epoch_ms INTEGER,
    deduplication_id TEXT,
    priority INTEGER NOT NULL DEFAULT 0,
    queue_partition_key TEXT,
    forked_from TEXT,
    owner_xid TEXT DEFAULT NULL,
    parent_workflow_id TEXT DEFAULT NULL,
    serialization TEXT DEFAULT NULL,           -- format of the inputs
    delay_until_epoch_ms INTEGER DEFAULT NULL,
    was_forked_from BOOLEAN NOT NULL DEFAULT FALSE,
    run_token TEXT,                            -- fresh at every start, claim, take-over and resume; fences writes
    owner_instance TEXT,                       -- the executor instance that runs it; NULL when nobody does
    completed_at INTEGER,
    outcome_serialization TEXT                 -- format of output or error
);

CREATE INDEX IF NOT EXISTS workflow_status_created_at_index
    ON dbos.workflow_status (created_at);

-- What waits in a queue, in the order in which it is claimed.
CREATE INDEX IF NOT EXISTS idx_workflow_status_ready
    ON dbos.workflow_status (queue_name, priority, created_at)
    WHERE queue_name IS NOT NULL AND started_at_epoch_ms IS NULL;

-- What an executor instance runs: all that a take-over has to find.
CREATE INDEX IF NOT EXISTS idx_workflow_status_pending
    ON dbos.workflow_status (owner_instance)
    WHERE status = 'PENDING';

CREATE UNIQUE INDEX IF NOT EXISTS uq_workflow_status_queue_name_dedup_id
    ON dbos.workflow_status (queue_name, deduplication_id)
    WHERE deduplication_id IS NOT NULL;

CREATE INDEX IF NOT EXISTS idx_workflow_status_forked_from
    ON dbos.workflow_status (forked_from)
    WHERE forked_from IS NOT NULL;

CREATE INDEX IF NOT EXISTS idx_workflow_status_parent_workflow_id
    ON dbos.workflow_status (parent_workflow_id)
    WHERE parent_workflow_id IS NOT NULL;

CREATE INDEX IF NOT EXISTS idx_workflow_status_delayed
    ON dbos.workflow_status (delay_until_epoch_ms)
    WHERE status = 'DELAYED';

-- One row per step that has a recorded result. Without a rowid a step costs one B-tree insertion instead of two.
CREATE TABLE IF NOT EXISTS dbos.operation_outputs (
    workflow_uuid TEXT NOT NULL,
    function_id INTEGER NOT NULL,
    function_name TEXT NOT NULL DEFAULT '',
    output TEXT,
    error TEXT,
    child_workflow_id TEXT,
    started_at_epoch_ms INTEGER,
    completed_at_epoch_ms INTEGER,
    serialization TEXT DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, function_id)
) WITHOUT ROWID;

-- The mailboxes; a message that was received stays, marked as consumed.
CREATE TABLE IF NOT EXISTS dbos.notifications (
    message_uuid TEXT NOT NULL DEFAULT (hex(randomblob(16))) PRIMARY KEY,
    destination_uuid TEXT NOT NULL,
    topic TEXT,
    message TEXT NOT NULL,
    created_at_epoch_ms INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    serialization TEXT DEFAULT NULL,
    consumed BOOLEAN NOT NULL DEFAULT FALSE
);

CREATE INDEX IF NOT EXISTS idx_workflow_topic
    ON dbos.notifications (destination_uuid, topic);

-- The latest value of each event.
CREATE TABLE IF NOT EXISTS dbos.workflow_events (
    workflow_uuid TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    serialization TEXT DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, key)
);

-- Every value an event ever had, by the step that set it, so that a fork starts with the values of its own past.
CREATE TABLE IF NOT EXISTS dbos.workflow_events_history (
    workflow_uuid TEXT NOT NULL,
    function_id INTEGER NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    serialization TEXT DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, function_id, key)
);

-- Append-only streams; offsets are dense from 0 for each key.
CREATE TABLE IF NOT EXISTS dbos.streams (
    workflow_uuid TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    function_id INTEGER NOT NULL DEFAULT 0,
    serialization TEXT DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, key, "offset")
);

CREATE TABLE IF NOT EXISTS dbos.workflow_schedules (
    schedule_id TEXT NOT NULL PRIMARY KEY,
    schedule_name TEXT NOT NULL UNIQUE,
    workflow_name TEXT NOT NULL,
    workflow_class_name TEXT,
    schedule TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'ACTIVE',
    context TEXT NOT NULL,
    last_fired_at TEXT DEFAULT NULL,           -- ISO 8601
    automatic_backfill BOOLEAN NOT NULL DEFAULT FALSE,
    cron_timezone TEXT DEFAULT NULL,
    queue_name TEXT DEFAULT NULL
);

CREATE TABLE IF NOT EXISTS dbos.application_versions (
    version_id TEXT NOT NULL PRIMARY KEY,
    version_name TEXT NOT NULL UNIQUE,
    version_timestamp INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    created_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER))
);

-- One row per launch; who has no row here may write nothing.
CREATE TABLE IF NOT EXISTS dbos.executor_instances (
    instance_id TEXT NOT NULL PRIMARY KEY,
    executor_id TEXT NOT NULL,
    application_version TEXT NOT NULL,
    application_id TEXT,
    hostname TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    pid_namespace TEXT NOT NULL,
    pid INTEGER NOT NULL,
    process_started_at TEXT NOT NULL,
    heartbeat INTEGER NOT NULL DEFAULT 0,      -- a counter, so that it is compared without anybody's clock
    lease_ms INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    heartbeat_at INTEGER NOT NULL
);
