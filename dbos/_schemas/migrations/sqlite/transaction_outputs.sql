-- The records of transactions, written together with a user's own data. Part of the application's database, which has
-- no migration table: what is missing is created.
CREATE TABLE IF NOT EXISTS dbos.transaction_outputs (
    workflow_uuid TEXT NOT NULL,
    function_id INTEGER NOT NULL,
    output TEXT,
    error TEXT,
    txn_id TEXT,
    txn_snapshot TEXT NOT NULL DEFAULT '',
    executor_id TEXT,
    function_name TEXT NOT NULL DEFAULT '',
    created_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
    start_token TEXT,                          -- the workflow's first start, so that a re-used id meets no old result
    serialization TEXT,
    PRIMARY KEY (workflow_uuid, function_id)
);

CREATE INDEX IF NOT EXISTS transaction_outputs_created_at_index
    ON dbos.transaction_outputs (created_at);
