-- Schedules: what they do about runs that overlap and ticks that were missed, when they are due, and what was decided.

-- The schedule that a workflow was started by.
ALTER TABLE dbos.workflow_status ADD COLUMN schedule_name TEXT;

CREATE INDEX IF NOT EXISTS idx_workflow_status_schedule
    ON dbos.workflow_status (schedule_name, created_at)
    WHERE schedule_name IS NOT NULL;

-- The runs that a tick may overlap.
CREATE INDEX IF NOT EXISTS idx_workflow_status_schedule_unfinished
    ON dbos.workflow_status (schedule_name)
    WHERE schedule_name IS NOT NULL AND status IN ('PENDING', 'ENQUEUED', 'DELAYED');

-- A limit that is NULL is none; durations and times are in milliseconds.
ALTER TABLE dbos.workflow_schedules ADD COLUMN application_name TEXT;
ALTER TABLE dbos.workflow_schedules ADD COLUMN overlap TEXT NOT NULL DEFAULT 'allow';
ALTER TABLE dbos.workflow_schedules ADD COLUMN catchup TEXT NOT NULL DEFAULT 'none';
ALTER TABLE dbos.workflow_schedules ADD COLUMN catchup_window_ms INTEGER;
ALTER TABLE dbos.workflow_schedules ADD COLUMN jitter_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dbos.workflow_schedules ADD COLUMN start_at_ms INTEGER;
ALTER TABLE dbos.workflow_schedules ADD COLUMN end_at_ms INTEGER;
ALTER TABLE dbos.workflow_schedules ADD COLUMN max_runs INTEGER;
ALTER TABLE dbos.workflow_schedules ADD COLUMN pause_on_failure INTEGER;
ALTER TABLE dbos.workflow_schedules ADD COLUMN note TEXT;
ALTER TABLE dbos.workflow_schedules ADD COLUMN pause_reason TEXT;
ALTER TABLE dbos.workflow_schedules ADD COLUMN runs INTEGER NOT NULL DEFAULT 0; -- ticks that it has started
ALTER TABLE dbos.workflow_schedules ADD COLUMN created_at INTEGER;
ALTER TABLE dbos.workflow_schedules ADD COLUMN updated_at INTEGER;
ALTER TABLE dbos.workflow_schedules ADD COLUMN resumed_at INTEGER; -- failures from before do not count any more
ALTER TABLE dbos.workflow_schedules ADD COLUMN next_tick_ms INTEGER; -- the first tick that is not decided
ALTER TABLE dbos.workflow_schedules ADD COLUMN next_fire_ms INTEGER; -- and when it is due; NULL for never
ALTER TABLE dbos.workflow_schedules ADD COLUMN planned_at INTEGER; -- when that was computed,
ALTER TABLE dbos.workflow_schedules ADD COLUMN planned_from TEXT; -- from which expression, zone and last tick,
ALTER TABLE dbos.workflow_schedules ADD COLUMN error TEXT; -- and why it could not be

CREATE INDEX IF NOT EXISTS idx_workflow_schedules_due
    ON dbos.workflow_schedules (next_fire_ms)
    WHERE status = 'ACTIVE';

-- What became of each tick. Ticks that were missed in a row have one row, from the first to the last of them.
CREATE TABLE IF NOT EXISTS dbos.schedule_history (
    history_id INTEGER NOT NULL PRIMARY KEY,
    schedule_id TEXT NOT NULL,
    schedule_name TEXT NOT NULL,
    kind TEXT NOT NULL,                        -- tick, backfill, trigger
    scheduled_at INTEGER NOT NULL,
    last_scheduled_at INTEGER NOT NULL,
    ticks INTEGER NOT NULL DEFAULT 1,
    decision TEXT NOT NULL,                    -- fired, backfilled, triggered, buffered, skipped, missed, paused
    reason TEXT,
    workflow_id TEXT,
    decided_at INTEGER NOT NULL
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
