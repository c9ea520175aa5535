-- Queues that are kept in the database, the order in which work waits, and limits that hold across processes.
--
-- The order of enqueueing is that of the rowid, by which the entries of an index that are otherwise equal are sorted.

-- What waits in a queue, in the order in which it is claimed. Nothing else is in it: neither what is delayed nor what
-- runs would have to be passed over.
DROP INDEX IF EXISTS dbos.idx_workflow_status_ready;

CREATE INDEX IF NOT EXISTS idx_workflow_status_enqueued
    ON dbos.workflow_status (queue_name, priority)
    WHERE status = 'ENQUEUED';

CREATE INDEX IF NOT EXISTS idx_workflow_status_enqueued_partition
    ON dbos.workflow_status (queue_name, queue_partition_key, priority)
    WHERE status = 'ENQUEUED' AND queue_partition_key IS NOT NULL;

-- What has no partition key, and may have got into a partitioned queue all the same.
CREATE INDEX IF NOT EXISTS idx_workflow_status_enqueued_keyless
    ON dbos.workflow_status (queue_name, priority)
    WHERE status = 'ENQUEUED' AND queue_partition_key IS NULL;

-- What a limit on concurrency counts.
CREATE INDEX IF NOT EXISTS idx_workflow_status_dequeued
    ON dbos.workflow_status (queue_name, queue_partition_key)
    WHERE status = 'PENDING' AND queue_name IS NOT NULL;

-- What waits and inherited a deadline, which it may miss while it waits.
CREATE INDEX IF NOT EXISTS idx_workflow_status_waiting_deadline
    ON dbos.workflow_status (workflow_deadline_epoch_ms)
    WHERE status IN ('ENQUEUED', 'DELAYED') AND workflow_deadline_epoch_ms IS NOT NULL;

-- Queues that were registered at run time. A limit that is NULL is none.
CREATE TABLE IF NOT EXISTS dbos.queues (
    queue_id TEXT NOT NULL DEFAULT (hex(randomblob(16))) PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    concurrency INTEGER,
    worker_concurrency INTEGER,
    rate_limit_max INTEGER,
    rate_limit_period_sec DOUBLE,
    priority_enabled BOOLEAN NOT NULL DEFAULT TRUE,
    partition_queue BOOLEAN NOT NULL DEFAULT FALSE,
    polling_interval_sec DOUBLE NOT NULL DEFAULT 1.0,
    created_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    updated_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    application_name TEXT DEFAULT NULL,
    partition_concurrency INTEGER,
    partition_worker_concurrency INTEGER,
    partition_rate_limit_max INTEGER,
    partition_rate_limit_period_sec DOUBLE,
    is_paused BOOLEAN NOT NULL DEFAULT FALSE   -- what waits in it stays there
);

-- Claims from queues that have a rate limit: what was started when. Rows older than the period are deleted by the next
-- claim, so there are as many as the limit at most, for each partition if it is limited.
CREATE TABLE IF NOT EXISTS dbos.queue_starts (
    queue_name TEXT NOT NULL,
    partition_key TEXT NOT NULL DEFAULT '',
    started_at_epoch_ms INTEGER NOT NULL,
    run_token TEXT NOT NULL,
    started INTEGER NOT NULL,
    PRIMARY KEY (queue_name, partition_key, started_at_epoch_ms, run_token)
) WITHOUT ROWID;

-- Since when an executor instance takes no new work, having been asked to drain.
ALTER TABLE dbos.executor_instances ADD COLUMN draining_since INTEGER;

-- The queues that it takes work from, as a JSON list.
ALTER TABLE dbos.executor_instances ADD COLUMN queues TEXT;

-- Whether the last claim found a workflow of no version and gave it its own, which giving it back takes away.
ALTER TABLE dbos.workflow_status ADD COLUMN was_unversioned BOOLEAN;

-- Instances that were asked to drain and then declared dead: a process that was only silent is still asked when it has
-- registered anew.
CREATE TABLE IF NOT EXISTS dbos.drain_requests (
    instance_id TEXT NOT NULL PRIMARY KEY,
    draining_since INTEGER NOT NULL
);
