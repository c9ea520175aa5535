-- The records of transactions, written together with a user's own data. Part of the application's database, which has
-- no migration table: what is missing is created.
CREATE TABLE IF NOT EXISTS dbos.transaction_outputs (
    workflow_uuid text NOT NULL,
    function_id integer NOT NULL,
    output text,
    error text,
    txn_id text,
    txn_snapshot text,
    executor_id text,
    function_name text NOT NULL DEFAULT '',
    created_at bigint NOT NULL DEFAULT (extract(epoch FROM now()) * 1000)::bigint,
    start_token text,                          -- the workflow's first start, so that a re-used id meets no old result
    serialization text,
    PRIMARY KEY (workflow_uuid, function_id)
);

CREATE INDEX IF NOT EXISTS transaction_outputs_created_at_index
    ON dbos.transaction_outputs (created_at);
