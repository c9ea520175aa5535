-- The system database, as of its first version.
--
-- How these files are written: tables carry the schema placeholder as their prefix, index names carry none; comments are
-- dropped before execution; every statement may be repeated.
--
-- How these tables are kept fast with millions of rows: few indexes, a mutable column in one of them only under a
-- predicate that finished rows do not meet, free space in each page for updates in place, no foreign keys (deletion is
-- explicit), and vacuum that comes after a hundredth of the rows instead of a fifth.

-- One row per workflow execution.
CREATE TABLE IF NOT EXISTS dbos.workflow_status (
    workflow_uuid text NOT NULL PRIMARY KEY CHECK (btrim(workflow_uuid) <> ''),
    status text,
    name text,
    authenticated_user text,
    assumed_role text,
    authenticated_roles text,
    request text,
    output text,
    error text,
    executor_id text,
    created_at bigint NOT NULL DEFAULT (extract(epoch FROM now()) * 1000)::bigint,
    updated_at bigint NOT NULL DEFAULT (extract(epoch FROM now()) * 1000)::bigint,
    application_version text,
    application_id text,
    class_name varchar(255) DEFAULT NULL,
    config_name varchar(255) DEFAULT NULL,
    recovery_attempts bigint DEFAULT 0,
    queue_name text,
    workflow_timeout_ms bigint,
    workflow_deadline_epoch_ms bigint,
    inputs text,
    started_at_epoch_ms bigint,
    deduplication_id text,
    priority integer NOT NULL DEFAULT 0,
    queue_partition_key text,
    forked_from text,
    owner_xid text DEFAULT NULL,
    parent_workflow_id text DEFAULT NULL,
    serialization text DEFAULT NULL,           -- format of the inputs
    delay_until_epoch_ms bigint DEFAULT NULL,
    was_forked_from boolean NOT NULL DEFAULT FALSE,
    run_token text,                            -- fresh at every start, claim, take-over and resume; fences writes
    owner_instance text,                       -- the executor instance that runs it; NULL when nobody does
    completed_at bigint,
    outcome_serialization text                 -- format of output or error
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
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

-- One row per step that has a recorded result.
CREATE TABLE IF NOT EXISTS dbos.operation_outputs (
    workflow_uuid text NOT NULL,
    function_id integer NOT NULL,
    function_name text NOT NULL DEFAULT '',
    output text,
    error text,
    child_workflow_id text,
    started_at_epoch_ms bigint,
    completed_at_epoch_ms bigint,
    serialization text DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, function_id)
) WITH (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

-- The mailboxes; a message that was received stays, marked as consumed.
CREATE TABLE IF NOT EXISTS dbos.notifications (
    message_uuid text NOT NULL DEFAULT gen_random_uuid()::text PRIMARY KEY,
    destination_uuid text NOT NULL,
    topic text,
    message text NOT NULL,
    created_at_epoch_ms bigint NOT NULL DEFAULT (extract(epoch FROM now()) * 1000)::bigint,
    serialization text DEFAULT NULL,
    consumed boolean NOT NULL DEFAULT FALSE
) WITH (
    fillfactor = 90,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

CREATE INDEX IF NOT EXISTS idx_workflow_topic
    ON dbos.notifications (destination_uuid, topic);

-- The latest value of each event.
CREATE TABLE IF NOT EXISTS dbos.workflow_events (
    workflow_uuid text NOT NULL,
    key text NOT NULL,
    value text NOT NULL,
    serialization text DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, key)
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

-- Every value an event ever had, by the step that set it, so that a fork starts with the values of its own past.
CREATE TABLE IF NOT EXISTS dbos.workflow_events_history (
    workflow_uuid text NOT NULL,
    function_id integer NOT NULL,
    key text NOT NULL,
    value text NOT NULL,
    serialization text DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, function_id, key)
) WITH (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

-- Append-only streams; offsets are dense from 0 for each key.
CREATE TABLE IF NOT EXISTS dbos.streams (
    workflow_uuid text NOT NULL,
    key text NOT NULL,
    value text NOT NULL,
    "offset" integer NOT NULL,
    function_id integer NOT NULL DEFAULT 0,
    serialization text DEFAULT NULL,
    PRIMARY KEY (workflow_uuid, key, "offset")
) WITH (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

CREATE TABLE IF NOT EXISTS dbos.workflow_schedules (
    schedule_id text NOT NULL PRIMARY KEY,
    schedule_name text NOT NULL UNIQUE,
    workflow_name text NOT NULL,
    workflow_class_name text,
    schedule text NOT NULL,
    status text NOT NULL DEFAULT 'ACTIVE',
    context text NOT NULL,
    last_fired_at text DEFAULT NULL,           -- ISO 8601
    automatic_backfill boolean NOT NULL DEFAULT FALSE,
    cron_timezone text DEFAULT NULL,
    queue_name text DEFAULT NULL
);

CREATE TABLE IF NOT EXISTS dbos.application_versions (
    version_id text NOT NULL PRIMARY KEY,
    version_name text NOT NULL UNIQUE,
    version_timestamp bigint NOT NULL DEFAULT (extract(epoch FROM now()) * 1000)::bigint,
    created_at bigint NOT NULL DEFAULT (extract(epoch FROM now()) * 1000)::bigint
);

-- One row per launch; who has no row here may write nothing. Heartbeats update in place, so pages keep room for them.
CREATE TABLE IF NOT EXISTS dbos.executor_instances (
    instance_id text NOT NULL PRIMARY KEY,
    executor_id text NOT NULL,
    application_version text NOT NULL,
    application_id text,
    hostname text NOT NULL,
    boot_id text NOT NULL,
    pid_namespace text NOT NULL,
    pid bigint NOT NULL,
    process_started_at text NOT NULL,
    heartbeat bigint NOT NULL DEFAULT 0,       -- a counter, so that it is compared without anybody's clock
    lease_ms bigint NOT NULL,
    started_at bigint NOT NULL,
    heartbeat_at bigint NOT NULL
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_scale_factor = 0.01
);
