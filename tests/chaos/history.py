"""What happened in a run under faults: what each process logged, and what the database went through.

There are two sources. Each process appends to a log of its own, durably, what it does and what it is told
(:mod:`tests.chaos.member` writes it). And triggers in the database note every change of a workflow's status, token or
owner in one sequence (:mod:`tests.chaos.audit`), so it is known whose token was valid when. Everything here is a value:
histories can be written by hand, and :mod:`tests.chaos.checker` judges them without a database.

Times named ``_us`` are microseconds since 1970, for what is compared with the database; ``_ns`` are nanoseconds of the
host's monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

__all__ = [
    "FINAL",
    "Body",
    "Change",
    "Claim",
    "Command",
    "Execution",
    "History",
    "Record",
    "Row",
    "Seen",
    "Submission",
    "read_logs",
]

FINAL = frozenset({"SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A workflow that the driver enqueued or, without a queue, started; ``acked_us`` is when it was told that it is."""

    workflow_id: str
    kind: str
    number: int = 0
    queue: str | None = None
    priority: int = 0
    partition: str | None = None
    dedup: str | None = None
    delay_s: float = 0.0
    called_us: int = 0
    acked_us: int | None = None
    rejected_us: int | None = None


class Command(NamedTuple):
    """A cancel or a resume; ``done_us`` is None if it is not known to have happened."""

    verb: str
    workflow_id: str
    called_us: int
    done_us: int | None


class Body(NamedTuple):
    """One execution of a workflow's function; ``ended_us`` is None if its process did not live to see the end."""

    workflow_id: str
    pid: int
    began_us: int
    ended_us: int | None


class Execution(NamedTuple):
    """One execution of a step's body. ``called_ns`` is when the workflow called the step."""

    workflow_id: str
    function_id: int
    attempt: str
    pid: int
    called_ns: int
    began_ns: int
    has_ended: bool = True


class Seen(NamedTuple):
    """A workflow's function got the result of a step, so that was recorded."""

    workflow_id: str
    function_id: int
    attempt: str
    pid: int
    at_ns: int


class Change(NamedTuple):
    """A workflow's row after a change; ``statement_us`` is when the statement that made it had begun, or before."""

    sequence: int
    at_us: int
    statement_us: int
    workflow_id: str
    status: str
    run_token: str | None = None
    owner: str | None = None
    queue: str | None = None
    partition: str | None = None
    priority: int = 0
    dedup: str | None = None
    started_ms: int | None = None
    outcome: str | None = None


class Claim(NamedTuple):
    """The time during which one run token of a workflow was valid."""

    workflow_id: str
    owner: str | None
    began: Change
    ended: Change | None

    @property
    def queue(self) -> str | None:
        return self.began.queue

    @property
    def partition(self) -> str | None:
        return self.began.partition


class Row(NamedTuple):
    """A workflow at the end."""

    workflow_id: str
    name: str
    status: str
    output: str | None
    error: str | None
    parent_id: str | None = None


class Record(NamedTuple):
    """A recorded operation at the end."""

    workflow_id: str
    function_id: int
    name: str
    output: str | None
    error: str | None = None
    child_id: str | None = None

    @property
    def attempt(self) -> str | None:
        """The attempt whose result this is."""
        value = json.loads(self.output) if self.output is not None else None
        return str(value[1]) if isinstance(value, list) else None


@dataclass(kw_only=True)
class History:
    """A run from beginning to end; ``instances`` says which process each executor instance belonged to."""

    submissions: dict[str, Submission] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    instances: dict[str, int] = field(default_factory=dict)
    rewritten: list[str] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    ledger: list[tuple[str, int, str]] = field(default_factory=list)

    @cached_property
    def changes_of(self) -> dict[str, list[Change]]:
        """The changes of each workflow, in order."""
        found: dict[str, list[Change]] = defaultdict(list)
        for change in sorted(self.changes):
            found[change.workflow_id].append(change)
        return found

    @cached_property
    def claims(self) -> list[Claim]:
        """The validity of every run token, in the order in which they became valid."""
        claims = []
        for workflow_id, changes in self.changes_of.items():
            began: Change | None = None
            for change in changes:
                if began is not None and (change.status != "PENDING" or change.run_token != began.run_token):
                    claims.append(Claim(workflow_id, began.owner, began, change))
                    began = None
                if began is None and change.status == "PENDING":
                    began = change
            if began is not None:
                claims.append(Claim(workflow_id, began.owner, began, None))
        return sorted(claims, key=lambda claim: claim.began.sequence)

    @cached_property
    def claims_of(self) -> dict[str, list[Claim]]:
        """The claims of each workflow, in order."""
        found: dict[str, list[Claim]] = defaultdict(list)
        for claim in self.claims:
            found[claim.workflow_id].append(claim)
        return found

    def excerpt(self, workflow_id: str) -> str:
        """Everything that is known of one workflow, to be read."""
        events: list[Any] = [self.submissions.get(workflow_id), self.rows.get(workflow_id)]
        events += self.changes_of.get(workflow_id, [])
        for source in (self.commands, self.bodies, self.executions, self.seen, self.records):
            events += [event for event in source if event.workflow_id == workflow_id]
        return "\n".join(f"  {event}" for event in events if event is not None)


class _Log:
    """Gathers the lines of all processes."""

    def __init__(self) -> None:
        self.history = History()
        self._bodies: dict[str, Body] = {}
        self._executions: dict[str, Execution] = {}
        self._commands: dict[str, Command] = {}

    def add(self, line: Sequence[Any]) -> None:
        kind, at_ns, at_us, pid, *fields = line
        getattr(self, f"_add_{kind}")(at_ns, at_us, pid, *fields)

    def done(self) -> History:
        self.history.bodies += self._bodies.values()
        self.history.executions += self._executions.values()
        self.history.commands += self._commands.values()
        return self.history

    def _add_call(self, at_ns: int, at_us: int, pid: int, workflow_id: str, options: dict[str, Any]) -> None:
        known = self.history.submissions.get(workflow_id)
        if known is None or known.called_us > at_us:
            submission = Submission(workflow_id=workflow_id, called_us=at_us, **options)
            self.history.submissions[workflow_id] = submission

    def _add_ack(self, at_ns: int, at_us: int, pid: int, workflow_id: str) -> None:
        submissions = self.history.submissions
        submissions[workflow_id] = replace(submissions[workflow_id], acked_us=at_us)

    def _add_reject(self, at_ns: int, at_us: int, pid: int, workflow_id: str) -> None:
        submissions = self.history.submissions
        submissions[workflow_id] = replace(submissions[workflow_id], rejected_us=at_us)

    def _add_command(self, at_ns: int, at_us: int, pid: int, number: str, verb: str, workflow_id: str) -> None:
        self._commands[number] = Command(verb, workflow_id, at_us, None)

    def _add_done(self, at_ns: int, at_us: int, pid: int, number: str) -> None:
        self._commands[number] = self._commands[number]._replace(done_us=at_us)

    def _add_body(self, at_ns: int, at_us: int, pid: int, number: str, workflow_id: str) -> None:
        self._bodies[number] = Body(workflow_id, pid, at_us, None)

    def _add_body_end(self, at_ns: int, at_us: int, pid: int, number: str) -> None:
        self._bodies[number] = self._bodies[number]._replace(ended_us=at_us)

    def _add_step(
        self, at_ns: int, at_us: int, pid: int, attempt: str, workflow_id: str, function_id: int, called_ns: int
    ) -> None:
        self._executions[attempt] = Execution(workflow_id, function_id, attempt, pid, called_ns, at_ns, False)

    def _add_step_end(self, at_ns: int, at_us: int, pid: int, attempt: str) -> None:
        self._executions[attempt] = self._executions[attempt]._replace(has_ended=True)

    def _add_seen(self, at_ns: int, at_us: int, pid: int, workflow_id: str, function_id: int, attempt: str) -> None:
        self.history.seen.append(Seen(workflow_id, function_id, attempt, pid, at_ns))

    def _add_error(self, at_ns: int, at_us: int, pid: int, text: str) -> None:
        self.history.errors.append(text)


def read_logs(texts: Iterable[str]) -> History:
    """The history as the processes logged it. A line whose writer was killed meanwhile is left out."""
    log = _Log()
    for text in texts:
        for line in text.split("\n")[:-1]:
            log.add(json.loads(line))
    return log.done()
