"""Snapshots of the database: the workflows, what they have recorded, and what they have exchanged."""

from __future__ import annotations

from dataclasses import dataclass, field

from dbos._serialization import Serialization
from dbos._sysdb.dialects.base import Dialect
from dbos._sysdb.rows import StatusRow, StepRow, columns
from dbos._sysdb.stores.executors import ExecutorsStore
from tests.simulation.programs import Foreseen, Outcome, Record
from tests.simulation.traffic import State, Traffic, read_traffic

__all__ = ["DONE", "GIVEN_UP", "UNFINISHED", "Observer", "Snapshot"]

DONE = ("SUCCESS", "ERROR")
UNFINISHED = ("PENDING", "ENQUEUED", "DELAYED")
GIVEN_UP = ("CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")

ALL_WORKFLOWS = f"SELECT {columns(StatusRow)} FROM dbos.workflow_status"
ALL_STEPS = f"SELECT {columns(StepRow)} FROM dbos.operation_outputs"


@dataclass
class Snapshot:
    """The database at a moment in which nothing moves."""

    rows: dict[str, StatusRow] = field(default_factory=dict)
    stored: dict[str, dict[int, StepRow]] = field(default_factory=dict)
    records: dict[str, dict[int, Record]] = field(default_factory=dict)
    instances: set[str] = field(default_factory=set)
    foreseen: dict[str, Foreseen] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def state(self) -> State:
        """What traffic is judged by."""
        statuses = {workflow_id: row.status for workflow_id, row in self.rows.items()}
        forked_from = {workflow_id: row.forked_from for workflow_id, row in self.rows.items() if row.forked_from}
        return State(statuses, forked_from, self.records, self.foreseen, self.traffic)

    def family(self, workflow_id: str) -> set[str]:
        """A workflow and all that it has started, and that these have started."""
        family = {workflow_id}
        while more := {id for id, row in self.rows.items() if row.parent_workflow_id in family} - family:
            family |= more
        return family

    def status(self, workflow_id: str) -> str | None:
        """The status of a workflow, None if there is no such workflow."""
        row = self.rows.get(workflow_id)
        return None if row is None else row.status


class Observer:
    """Reads the database over a connection of its own."""

    def __init__(self, dialect: Dialect, serialization: Serialization) -> None:
        self._reader, self._dialect = dialect.open_reader(), dialect
        self._serialization = serialization
        self._decoded: dict[tuple[str, int], tuple[StepRow, Record]] = {}

    def look(self) -> Snapshot:
        """What is committed now."""
        rows = {row.workflow_uuid: row for row in map(StatusRow._make, self._reader.all(ALL_WORKFLOWS))}
        stored: dict[str, dict[int, StepRow]] = {workflow_id: {} for workflow_id in rows}
        for step in map(StepRow._make, self._reader.all(ALL_STEPS)):
            assert step.workflow_uuid in rows, f"{step} is left of a workflow that does not exist"
            stored[step.workflow_uuid][step.function_id] = step
        records = {id: {number: self._decode(row) for number, row in history.items()} for id, history in stored.items()}
        instances = {row.instance_id for row in ExecutorsStore.list(self._reader)}
        traffic = read_traffic(self._reader, self._dialect, self._serialization)
        return Snapshot(rows, stored, records, instances, traffic=traffic)

    def outcome(self, row: StatusRow) -> Outcome:
        """The outcome that a finished workflow's row holds."""
        format_name = row.outcome_serialization or row.serialization
        if row.status == "SUCCESS":
            return Outcome(row.status, self._serialization.load_value(row.output, format_name), None)
        return Outcome(row.status, None, repr(self._serialization.load_error(row.error or "", format_name)))

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()

    def _decode(self, row: StepRow) -> Record:
        known = self._decoded.get(row[:2])
        if known is not None and known[0] == row:
            return known[1]
        load = self._serialization
        value = None if row.output is None else load.load_value(row.output, row.serialization)
        error = None if row.error is None else repr(load.load_error(row.error, row.serialization))
        record = Record(row.function_name, value, error, row.child_workflow_id)
        self._decoded[row[:2]] = row, record
        return record
