-- Schedules: what they do about runs that overlap and ticks that were missed, when they are due, and what was decided.

-- The schedule that a workflow was started by.
ALTER TABLE dbos.workflow_status
    ADD COLUMN IF NOT EXISTS schedule_name text;

CREATE INDEX IF NOT EXISTS idx_workflow_status_schedule
    ON dbos.workflow_status (schedule_name, created_at)
    WHERE schedule_name IS NOT NULL;

-- The runs that a tick may overlap.
CREATE INDEX IF NOT EXISTS idx_workflow_status_schedule_unfinished
    ON dbos.workflow_status (schedule_name)
    WHERE schedule_name IS NOT NULL AND status IN ('PENDING', 'ENQUEUED', 'DELAYED');

-- A limit that is NULL is none; durations and times are in milliseconds.
ALTER TABLE dbos.workflow_schedules
    ADD COLUMN IF NOT EXISTS application_name text,
    ADD COLUMN IF NOT EXISTS overlap text NOT NULL DEFAULT 'allow',
    ADD COLUMN IF NOT EXISTS catchup text NOT NULL DEFAULT 'none',
    ADD COLUMN IF NOT EXISTS catchup_window_ms bigint,
    ADD COLUMN IF NOT EXISTS jitter_ms bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS start_at_ms bigint,
    ADD COLUMN IF NOT EXISTS end_at_ms bigint,
    ADD COLUMN IF NOT EXISTS max_runs integer,
    ADD COLUMN IF NOT EXISTS pause_on_failure integer,
    ADD COLUMN IF NOT EXISTS note text,
    ADD COLUMN IF NOT EXISTS pause_reason text,
    ADD COLUMN IF NOT EXISTS runs integer NOT NULL DEFAULT 0,          -- ticks that it has started
    ADD COLUMN IF NOT EXISTS created_at bigint,
    ADD COLUMN IF NOT EXISTS updated_at bigint,
    ADD COLUMN IF NOT EXISTS resumed_at bigint,                        -- failures from before do not count any more
    ADD COLUMN IF NOT EXISTS next_tick_ms bigint,                      -- the first tick that is not decided
    ADD COLUMN IF NOT EXISTS next_fire_ms bigint,                      -- and when it is due; NULL for never
    ADD COLUMN IF NOT EXISTS planned_at bigint,                        -- when that was computed,
    ADD COLUMN IF NOT EXISTS planned_from text,                        -- from which expression, zone and last tick,
    ADD COLUMN IF NOT EXISTS error text;                               -- and why it could not be

CREATE INDEX IF NOT EXISTS idx_workflow_schedules_due
    ON dbos.workflow_schedules (next_fire_ms)
    WHERE status = 'ACTIVE';

-- What became of each tick. Ticks that were missed in a row have one row, from the first to the last of them.
CREATE TABLE IF NOT EXISTS dbos.schedule_history (
    history_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    schedule_id text NOT NULL,
    schedule_name text NOT NULL,
    kind text NOT NULL,                        -- tick, backfill, trigger
    scheduled_at bigint NOT NULL,
    last_scheduled_at bigint NOT NULL,
    ticks integer NOT NULL DEFAULT 1,
    decision text NOT NULL,                    -- fired, backfilled, triggered, buffered, skipped, missed, paused
    reason text,
    workflow_id text,
    decided_at bigint NOT NULL
);

-- Each tick runs once, whoever comes to start it, and whatever the workflow's id would be.
CREATE UNIQUE INDEX IF NOT EXISTS uq_schedule_history_tick
    ON dbos.schedule_history (schedule_id, scheduled_at)
    WHERE kind <> 'trigger' AND workflow_id IS NOT NULL;

CREATE UNIQUE INDEX IF NOT EXISTS uq_schedule_history_trigger
    ON dbos.schedule_history (workflow_id)
    WHERE kind = 'trigger' AND workflow_id IS NOT NULL;

CREATE INDEX IF NOT EXISTS idx_schedule_history_name
    ON dbos.schedule_history (schedule_name, history_id);

CREATE INDEX IF NOT EXISTS idx_schedule_history_buffered
    ON dbos.schedule_history (schedule_id, history_id)
    WHERE decision = 'buffered';
