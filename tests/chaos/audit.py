"""Triggers that note every change of a workflow in one sequence, and reading what a run has left in the database.

The sequence numbers of changes that one transaction could see come before its own, on both databases: a number is drawn
when the change is made, and what is seen was committed before. So counting along the sequence never counts more at once
than there was, where claims exclude each other.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import psycopg

from tests.chaos.history import Change, History, Record, Row

__all__ = ["install", "query", "read_database"]

WATCHED = ("status", "run_token", "owner_instance", "queue_name", "deduplication_id", "output", "error")

SQLITE_NOW = "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000"


def _columns(row: str) -> str:
    names = ("status", "run_token", "owner_instance", "queue_name", "queue_partition_key", "priority")
    columns = [f"{row}.{name}" for name in (*names, "deduplication_id", "started_at_epoch_ms")]
    return ", ".join([*columns, f"COALESCE({row}.output, {row}.error)"])


SQLITE = f"""
CREATE TABLE ledger (workflow_id TEXT, function_id INTEGER, attempt TEXT);
CREATE TABLE chaos_audit (
  sequence INTEGER PRIMARY KEY, at_us INTEGER, statement_us INTEGER, workflow_id TEXT, status TEXT, run_token TEXT,
  owner TEXT, queue TEXT, partition_key TEXT, priority INTEGER, dedup TEXT, started_ms INTEGER, outcome TEXT);
CREATE TABLE chaos_instances (instance TEXT, pid INTEGER);
CREATE TABLE chaos_rewritten (what TEXT);
CREATE TRIGGER chaos_insert AFTER INSERT ON workflow_status BEGIN
  INSERT INTO chaos_audit SELECT NULL, {SQLITE_NOW}, {SQLITE_NOW}, new.workflow_uuid, {_columns("new")};
END;
CREATE TRIGGER chaos_update AFTER UPDATE ON workflow_status
WHEN {" OR ".join(f"old.{name} IS NOT new.{name}" for name in WATCHED)} BEGIN
  INSERT INTO chaos_audit SELECT NULL, {SQLITE_NOW}, {SQLITE_NOW}, new.workflow_uuid, {_columns("new")};
END;
CREATE TRIGGER chaos_instance AFTER INSERT ON executor_instances BEGIN
  INSERT INTO chaos_instances VALUES (new.instance_id, new.pid);
END;
CREATE TRIGGER chaos_rewrite AFTER UPDATE ON operation_outputs BEGIN
  INSERT INTO chaos_rewritten VALUES (old.workflow_uuid || ' ' || old.function_id || ' was updated');
END;
CREATE TRIGGER chaos_delete AFTER DELETE ON operation_outputs BEGIN
  INSERT INTO chaos_rewritten VALUES (old.workflow_uuid || ' ' || old.function_id || ' was deleted');
END;
"""

POSTGRES = f"""
CREATE TABLE ledger (workflow_id text, function_id integer, attempt text);
CREATE TABLE public.chaos_audit (
  sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at_us bigint, statement_us bigint, workflow_id text,
  status text, run_token text, owner text, queue text, partition_key text, priority integer, dedup text,
  started_ms bigint, outcome text);
CREATE TABLE public.chaos_instances (instance text, pid integer);
CREATE TABLE public.chaos_rewritten (what text);
CREATE FUNCTION public.chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.chaos_audit (at_us, statement_us, workflow_id, status, run_token, owner, queue, partition_key,
    priority, dedup, started_ms, outcome)
  SELECT extract(epoch FROM clock_timestamp()) * 1e6, extract(epoch FROM statement_timestamp()) * 1e6,
    new.workflow_uuid, {_columns("new")};
  RETURN NULL;
END $$;
CREATE FUNCTION public.chaos_instance() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.chaos_instances VALUES (new.instance_id, new.pid);
  RETURN NULL;
END $$;
CREATE FUNCTION public.chaos_rewrite() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.chaos_rewritten VALUES (old.workflow_uuid || ' ' || old.function_id || ' ' || TG_OP);
  RETURN NULL;
END $$;
CREATE TRIGGER chaos_insert AFTER INSERT ON dbos.workflow_status FOR EACH ROW EXECUTE FUNCTION public.chaos_note();
CREATE TRIGGER chaos_update AFTER UPDATE ON dbos.workflow_status FOR EACH ROW
  WHEN ({" OR ".join(f"old.{name} IS DISTINCT FROM new.{name}" for name in WATCHED)})
  EXECUTE FUNCTION public.chaos_note();
CREATE TRIGGER chaos_instance AFTER INSERT ON dbos.executor_instances FOR EACH ROW
  EXECUTE FUNCTION public.chaos_instance();
CREATE TRIGGER chaos_rewrite AFTER UPDATE OR DELETE ON dbos.operation_outputs FOR EACH ROW
  EXECUTE FUNCTION public.chaos_rewrite();
"""


def install(url: str) -> None:
    """Add the triggers, and a table for the workload's transactions, to a migrated database."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(_path(url))) as connection:
            connection.executescript(SQLITE)
    else:
        with psycopg.connect(url, autocommit=True) as postgres:
            postgres.execute(POSTGRES.encode())


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Ask the database; ``dbos.`` before a system table becomes what it takes."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(_path(url), timeout=60, isolation_level=None)) as connection:
            return connection.execute(sql.replace("dbos.", "")).fetchall()
    with psycopg.connect(url, autocommit=True) as postgres:
        return postgres.execute(sql.encode()).fetchall()


def read_database(url: str, history: History) -> None:
    """Add to a history what the database went through, and how it is now."""
    columns = "sequence, at_us, statement_us, workflow_id, status, run_token, owner, queue, partition_key, priority"
    history.changes = [
        Change(*row) for row in query(url, f"SELECT {columns}, dedup, started_ms, outcome FROM chaos_audit")
    ]
    history.instances = dict(query(url, "SELECT instance, pid FROM chaos_instances"))
    history.rewritten = [row[0] for row in query(url, "SELECT what FROM chaos_rewritten")]
    columns = "workflow_uuid, name, status, output, error, parent_workflow_id"
    rows: Sequence[tuple[Any, ...]] = query(url, f"SELECT {columns} FROM dbos.workflow_status")
    history.rows = {row[0]: Row(*row) for row in rows}
    columns = "workflow_uuid, function_id, function_name, output, error, child_workflow_id"
    history.records = [Record(*row) for row in query(url, f"SELECT {columns} FROM dbos.operation_outputs")]
    history.ledger = [(row[0], row[1], row[2]) for row in query(url, "SELECT * FROM ledger")]


def _path(url: str) -> str:
    return url.removeprefix("sqlite:///")
