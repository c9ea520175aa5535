"""The floor: the same rows and the same durable commits, written by hand on the bare driver (a worker process).

There is no library here: no replay, no fencing, no context, no threads; one loop with the statements it needs, each
prepared. It shows what the database costs, so that the rest of a figure is ours.

========================  ========================================================================================
``sequential-workflows``  two commits a workflow: its row, its outcome
``sequential-steps``      twelve commits a workflow: its row, ten steps, its outcome
``threaded-steps``        one commit a workflow: ``start_workflow`` must be durable before it returns, so the next
                          start waits for it; every commit carries one new workflow, a step of each of the ten
                          before it, and the outcome of the eleventh before it
``async-steps``           twelve commits for a hundred workflows, which go in step
``queue-drain``           four commits for a hundred workflows: enqueued, claimed, their step, their outcome
``enqueue``               one commit a workflow
========================  ========================================================================================

The batches are the best that can be: nobody is ever late.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import psycopg

from bench.workloads import CONCURRENT, STEPS, Figures, Job, configure, measure
from dbos import DBOS

INPUTS = '{"args":[1],"kwargs":{}}'
INSTANCE = str(uuid.uuid4())

Started = tuple[str, str]  # workflow id, run token
Step = tuple[str, int]  # workflow id, function id


def new_workflow() -> Started:
    return str(uuid.uuid4()), os.urandom(16).hex()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Hand(Protocol):
    """A connection and its statements, each for any number of rows; every call is one durable commit."""

    def commit(self, started: Sequence[Started], steps: Sequence[Step], ended: Sequence[Started]) -> None: ...

    def enqueue(self, workflows: Sequence[Started]) -> None: ...

    def claim(self, limit: int) -> list[Started]: ...


START_COLUMNS = (
    "workflow_uuid, run_token, owner_xid, created_at, updated_at, status, name, executor_id, application_version, "
    "recovery_attempts, inputs, serialization, priority, owner_instance"
)
QUEUE_COLUMNS = (
    "workflow_uuid, run_token, owner_xid, created_at, updated_at, status, name, executor_id, application_version, "
    "recovery_attempts, inputs, serialization, priority, queue_name"
)
STEP_COLUMNS = (
    "workflow_uuid, function_id, function_name, output, started_at_epoch_ms, completed_at_epoch_ms, serialization"
)


class SQLiteHand:
    INSERT_WORKFLOW = f"INSERT INTO workflow_status ({START_COLUMNS}) VALUES ({', '.join('?' * 14)})"
    ENQUEUE_WORKFLOW = f"INSERT INTO workflow_status ({QUEUE_COLUMNS}) VALUES ({', '.join('?' * 14)})"
    CLAIM = """
        UPDATE workflow_status
        SET status = 'PENDING', run_token = ?, owner_instance = ?, started_at_epoch_ms = ?, updated_at = ?,
            recovery_attempts = recovery_attempts + 1
        WHERE rowid IN (SELECT rowid FROM workflow_status WHERE status = 'ENQUEUED' AND queue_name = 'bench'
                        ORDER BY priority, rowid LIMIT ?)
        RETURNING workflow_uuid, name, inputs
    """
    INSERT_STEP = f"INSERT INTO operation_outputs ({STEP_COLUMNS}) VALUES (?, ?, 'step', ?, ?, ?, 'json')"
    UPDATE_OUTCOME = """
        UPDATE workflow_status
        SET status = 'SUCCESS', output = ?, outcome_serialization = 'json', completed_at = ?, updated_at = ?,
            owner_instance = NULL
        WHERE workflow_uuid = ? AND run_token = ?
    """

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")

    def commit(self, started: Sequence[Started], steps: Sequence[Step], ended: Sequence[Started]) -> None:
        execute = self._connection.execute
        now = now_ms()
        execute("BEGIN IMMEDIATE")
        for workflow_id, token in started:
            status = ("PENDING", "with_steps", "local", "bench", 1, INPUTS, "json", 0, INSTANCE)
            execute(self.INSERT_WORKFLOW, (workflow_id, token, token, now, now, *status))
        for workflow_id, number in steps:
            execute(self.INSERT_STEP, (workflow_id, number, "1", now, now))
        for workflow_id, token in ended:
            execute(self.UPDATE_OUTCOME, ("1", now, now, workflow_id, token))
        execute("COMMIT")

    def enqueue(self, workflows: Sequence[Started]) -> None:
        execute = self._connection.execute
        now = now_ms()
        execute("BEGIN IMMEDIATE")
        for workflow_id, token in workflows:
            status = ("ENQUEUED", "with_step", "local", "bench", 0, INPUTS, "json", 0, "bench")
            execute(self.ENQUEUE_WORKFLOW, (workflow_id, token, token, now, now, *status))
        execute("COMMIT")

    def claim(self, limit: int) -> list[Started]:
        now, token = now_ms(), os.urandom(16).hex()
        claimed = self._connection.execute(self.CLAIM, (token, INSTANCE, now, now, limit)).fetchall()
        return [(workflow_id, token) for workflow_id, _, _ in claimed]


class PostgresHand:
    INSERT_WORKFLOWS = f"""
        INSERT INTO dbos.workflow_status ({START_COLUMNS})
        SELECT id, token, token, $3, $3, 'PENDING', 'with_steps', 'local', 'bench', 1, $4, 'json', 0, $5
        FROM unnest($1::text[], $2::text[]) AS i (id, token)
    """
    ENQUEUE_WORKFLOWS = f"""
        INSERT INTO dbos.workflow_status ({QUEUE_COLUMNS})
        SELECT id, token, token, $3, $3, 'ENQUEUED', 'with_step', 'local', 'bench', 0, $4, 'json', 0, 'bench'
        FROM unnest($1::text[], $2::text[]) AS i (id, token)
    """
    CLAIM = """
        WITH claimed AS MATERIALIZED (
            SELECT workflow_uuid AS id FROM dbos.workflow_status WHERE status = 'ENQUEUED' AND queue_name = 'bench'
            ORDER BY priority, enqueue_sequence LIMIT $4 FOR UPDATE SKIP LOCKED)
        UPDATE dbos.workflow_status
        SET status = 'PENDING', run_token = $1, owner_instance = $2, started_at_epoch_ms = $3, updated_at = $3,
            recovery_attempts = recovery_attempts + 1
        FROM claimed
        WHERE workflow_uuid = id
        RETURNING workflow_uuid, name, inputs
    """
    INSERT_STEPS = f"""
        INSERT INTO dbos.operation_outputs ({STEP_COLUMNS})
        SELECT id, number, 'step', '1', $3, $3, 'json' FROM unnest($1::text[], $2::int[]) AS i (id, number)
    """
    UPDATE_OUTCOMES = """
        UPDATE dbos.workflow_status w
        SET status = 'SUCCESS', output = '1', outcome_serialization = 'json', completed_at = $3, updated_at = $3,
            owner_instance = NULL
        FROM unnest($1::text[], $2::text[]) AS i (id, token)
        WHERE w.workflow_uuid = i.id AND w.run_token = i.token
    """

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True, cursor_factory=psycopg.RawCursor, prepare_threshold=0)
        self._connection.execute("SET enable_hashjoin = off")
        self._connection.execute("SET enable_mergejoin = off")
        self._connection.execute("SET plan_cache_mode = force_generic_plan")

    def commit(self, started: Sequence[Started], steps: Sequence[Step], ended: Sequence[Started]) -> None:
        now = now_ms()
        statements: list[tuple[str, Sequence[Any]]] = []
        if started:
            statements.append((self.INSERT_WORKFLOWS, (*_arrays(started), now, INPUTS, INSTANCE)))
        if steps:
            statements.append((self.INSERT_STEPS, (*_arrays(steps), now)))
        if ended:
            statements.append((self.UPDATE_OUTCOMES, (*_arrays(ended), now)))
        if len(statements) == 1:
            self._connection.execute(*statements[0])
            return
        with self._connection.pipeline():  # one round trip, one transaction
            for statement in statements:
                self._connection.execute(*statement)

    def enqueue(self, workflows: Sequence[Started]) -> None:
        self._connection.execute(self.ENQUEUE_WORKFLOWS, (*_arrays(workflows), now_ms(), INPUTS))

    def claim(self, limit: int) -> list[Started]:
        token = os.urandom(16).hex()
        claimed = self._connection.execute(self.CLAIM, (token, INSTANCE, now_ms(), limit)).fetchall()
        return [(workflow_id, token) for workflow_id, _, _ in claimed]


def _arrays(rows: Sequence[tuple[Any, ...]]) -> list[str]:
    return ["{" + ",".join(map(str, column)) + "}" for column in zip(*rows, strict=True)]


def sequential_workflows(hand: Hand, count: int) -> None:
    for _ in range(count):
        workflow = new_workflow()
        hand.commit([workflow], (), ())
        hand.commit((), (), [workflow])


def sequential_steps(hand: Hand, count: int) -> None:
    for _ in range(count):
        workflow = new_workflow()
        hand.commit([workflow], (), ())
        for number in range(1, STEPS + 1):
            hand.commit((), [(workflow[0], number)], ())
        hand.commit((), (), [workflow])


def threaded_steps(hand: Hand, count: int) -> None:
    workflows = [new_workflow() for _ in range(count)]
    for turn in range(count + STEPS + 1):
        steps = [(workflows[turn - number][0], number) for number in range(1, STEPS + 1) if 0 <= turn - number < count]
        ended = turn - STEPS - 1
        hand.commit(workflows[turn : turn + 1], steps, workflows[ended : ended + 1] if ended >= 0 else ())


def async_steps(hand: Hand, count: int) -> None:
    for begin in range(0, count, CONCURRENT):
        workflows = [new_workflow() for _ in range(min(CONCURRENT, count - begin))]
        hand.commit(workflows, (), ())
        for number in range(1, STEPS + 1):
            hand.commit((), [(workflow_id, number) for workflow_id, _ in workflows], ())
        hand.commit((), (), workflows)


def queue_drain(hand: Hand, count: int) -> None:
    for begin in range(0, count, CONCURRENT):
        hand.enqueue([new_workflow() for _ in range(min(CONCURRENT, count - begin))])
        claimed = hand.claim(CONCURRENT)
        hand.commit((), [(workflow_id, 1) for workflow_id, _ in claimed], ())
        hand.commit((), (), claimed)


def enqueue(hand: Hand, count: int) -> None:
    for _ in range(count):
        hand.enqueue([new_workflow()])


WORKLOADS = {
    "sequential-workflows": sequential_workflows,
    "sequential-steps": sequential_steps,
    "threaded-steps": threaded_steps,
    "async-steps": async_steps,
    "queue-drain": queue_drain,
    "enqueue": enqueue,
}


def main() -> None:
    job: Job = json.loads(sys.argv[1])
    url: str = job["url"]
    configure(url)
    DBOS.launch()  # makes the tables
    DBOS.destroy()
    hand: Hand = SQLiteHand(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else PostgresHand(url)
    work = WORKLOADS[job["workload"]]
    figures: Figures = measure(lambda count: work(hand, count), job)
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
