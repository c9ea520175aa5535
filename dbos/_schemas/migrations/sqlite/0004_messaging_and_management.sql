-- Messages in order and once, streams that are written once, attributes, debouncing, applications that share a database,
-- an account of who changed what, and tasks that one process at a time sees to.
--
-- The order of messages is that of the rowid, by which the entries of an index that are otherwise equal are sorted.

ALTER TABLE dbos.workflow_status ADD COLUMN application_name TEXT;
ALTER TABLE dbos.workflow_status ADD COLUMN attributes TEXT; -- a JSON object
ALTER TABLE dbos.workflow_status ADD COLUMN is_debounced BOOLEAN; -- waits for more calls, which replace its inputs
ALTER TABLE dbos.workflow_status ADD COLUMN debounce_deadline_epoch_ms INTEGER; -- and no longer than until then

-- A message that was sent again under the same key is the same message.
ALTER TABLE dbos.notifications ADD COLUMN idempotency_key TEXT;

CREATE UNIQUE INDEX IF NOT EXISTS uq_notifications_idempotency_key
    ON dbos.notifications (destination_uuid, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- What is still to be received: the messages that were are many in the end.
CREATE INDEX IF NOT EXISTS idx_notifications_unconsumed
    ON dbos.notifications (destination_uuid, topic)
    WHERE consumed = FALSE;

-- Who has started a workflow, or asked for its result: what may go on must find it there. Few operations are such.
CREATE INDEX IF NOT EXISTS idx_operation_outputs_child_workflow_id
    ON dbos.operation_outputs (child_workflow_id)
    WHERE child_workflow_id IS NOT NULL;

-- By which a write that is repeated, because its answer was lost, finds itself.
ALTER TABLE dbos.streams ADD COLUMN write_token TEXT;

-- The application that a version is of; NULL for those that are nobody's in particular. Each has its own "1.0", which the
-- table as it was does not allow.
CREATE TABLE IF NOT EXISTS dbos.application_versions_by_application (
    version_id TEXT NOT NULL PRIMARY KEY,
    version_name TEXT NOT NULL,
    version_timestamp INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    created_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    application_name TEXT
);
INSERT OR IGNORE INTO dbos.application_versions_by_application (version_id, version_name, version_timestamp, created_at)
SELECT version_id, version_name, version_timestamp, created_at FROM dbos.application_versions;
DROP TABLE IF EXISTS dbos.application_versions;
ALTER TABLE dbos.application_versions_by_application RENAME TO application_versions;

CREATE UNIQUE INDEX IF NOT EXISTS uq_application_versions_name
    ON dbos.application_versions (COALESCE(application_name, ''), version_name);

ALTER TABLE dbos.executor_instances ADD COLUMN application_name TEXT;

-- What was done to workflows, queues, schedules, versions and executors, and by whom.
CREATE TABLE IF NOT EXISTS dbos.management_actions (
    action_id INTEGER NOT NULL PRIMARY KEY,
    occurred_at INTEGER NOT NULL,
    action TEXT NOT NULL,                      -- cancel, resume, fork, delete …
    workflow_id TEXT,
    subject TEXT,                              -- a queue, schedule or version, if it was done to one
    actor TEXT,                                -- the authenticated user
    source TEXT NOT NULL,                      -- the executor, or the program that did it
    details TEXT,                              -- a JSON object
    request_id TEXT NOT NULL                   -- of the call, which may have done it to several
);

CREATE INDEX IF NOT EXISTS idx_management_actions_workflow_id
    ON dbos.management_actions (workflow_id, action_id)
    WHERE workflow_id IS NOT NULL;

-- A call that is repeated, because its answer was lost, has done it once.
CREATE UNIQUE INDEX IF NOT EXISTS uq_management_actions_request_id
    ON dbos.management_actions (request_id, action, COALESCE(workflow_id, ''), COALESCE(subject, ''));

-- Tasks for one process at a time, such as retention: who sees to it until when, and how far it has come.
CREATE TABLE IF NOT EXISTS dbos.maintenance_tasks (
    task TEXT NOT NULL PRIMARY KEY,
    holder TEXT,
    held_until INTEGER,
    position TEXT,
    last_run_at INTEGER
);
