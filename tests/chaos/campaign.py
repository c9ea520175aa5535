"""A campaign: processes that work through a plan while faults come at random, and the history of it.

The faults are those of a :class:`Nemesis`; which come, when, and to whom, follows from the seed (what they meet does
not: processes are as fast as they are).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dbos._dbos_config import process_config
from dbos._sysdb.dialects import open_dialect
from dbos.testing._postgres_server import Cluster
from tests.chaos.audit import install, query, read_database
from tests.chaos.checker import check
from tests.chaos.fleet import PATIENCE_S, POLL_S, Member
from tests.chaos.history import History, read_logs
from tests.chaos.limits import fullest
from tests.chaos.nemesis import Nemesis
from tests.chaos.plan import CANCELLABLE, plan, rules
from tests.chaos.rules import Violation

__all__ = ["Campaign", "Outcome", "Settings"]

LAST = 60  # of so many workflows that were submitted last, some are cancelled
SPARE = {"threads": 6, "descriptors": 25}  # pools and loops that are opened when they are first needed
SHOWN_VIOLATIONS = 8

UNFINISHED = """
SELECT workflow_uuid FROM dbos.workflow_status
WHERE status IN ('PENDING', 'ENQUEUED', 'DELAYED') AND name <> 'missing'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much of what. ``faults`` come in this order, or, without, at random until everything is submitted."""

    seed: int
    workflows: int
    duration_s: float
    bound_s: float
    workers: int = 3
    lease_s: float = 1.0
    between_faults_s: tuple[float, float] = (0.3, 1.5)
    faults: Sequence[str] = ()
    counts_threads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a campaign."""

    history: History
    violations: list[Violation]
    figures: dict[str, object]
    faults: list[str]

    def report(self) -> str:
        """The violations with what is known of their workflows, to be read."""
        lines = [f"{len(self.violations)} violations; {self.figures}", *self.faults]
        for violation in self.violations[:SHOWN_VIOLATIONS]:
            lines += [str(violation), self.history.excerpt(violation.workflow_id)]
        return "\n".join(lines)


class Campaign:
    """One run. ``cluster`` is the server of ``url``, if that is PostgreSQL."""

    def __init__(self, directory: Path, url: str, settings: Settings, cluster: Cluster | None = None) -> None:
        self.url = url
        self.settings = settings
        self.cluster = cluster
        self.chance = random.Random(settings.seed)
        self.workers: list[Member] = []
        self.driver: Member | None = None
        self.leaving: list[Member] = []
        self.faults: list[str] = []
        self._directory = directory
        self._began = time.monotonic()
        self.give_up_at = self._began + settings.bound_s
        self._launched = 0
        self._more: list[dict[str, int]] = []  # than at its launch, of each survivor
        self._kinds = {task.workflow_id: task.kind for task in plan(settings.seed, settings.workflows)}

    def run(self) -> Outcome:
        """Work through the plan under faults, wait for the end, and judge."""
        prepare(self.url)
        nemesis = Nemesis(self)
        try:
            self.workers = [self.launch("worker") for _ in range(self.settings.workers)]
            for worker in self.workers:
                worker.ready()
            self.driver = self.launch("driver").ready()
            nemesis.work()
            worked_s = time.monotonic() - self._began
            self._await_the_end()
            ended_s = time.monotonic() - self._began
            left_behind = list(self._left_behind())
            exits = [member.close() for member in (*self.workers, self.driver)]
        finally:
            for member in (*self.workers, *self.leaving, *([] if self.driver is None else [self.driver])):
                member.kill()
        history = self.history()
        read_database(self.url, history)
        violations = check(history, rules(self.settings.lease_s)) + left_behind
        violations += [Violation("I10", "", f"a process ended with {code}") for code in exits if code]
        figures = {
            "seed": self.settings.seed,
            "workflows": len(history.rows),
            "executions of steps": len(history.executions),
            "of them again": len(history.executions)
            - len({(e.workflow_id, e.function_id) for e in history.executions}),
            "claims": len(history.claims),
            "at once": fullest(history, rules(self.settings.lease_s)),
            "processes": self._launched,
            "instances": len(history.instances),
            "faults": len(self.faults),
            "survivors have more": self._more,
            "seconds": round(worked_s, 1),
            "and until the end": round(ended_s - worked_s, 1),
        }
        return Outcome(history=history, violations=violations, figures=figures, faults=self.faults)

    # -- processes -----------------------------------------------------------------------------------------------------

    def launch(self, role: str) -> Member:
        """Start a process."""
        settings = self.settings
        name = f"{role}-{self._launched}"
        self._launched += 1
        submitted = self.submitted("ack", "reject") if role == "driver" else []
        left = settings.duration_s - (time.monotonic() - self._began if self.driver is not None else 0.0)
        member = {
            "role": role,
            "log": str(self._directory / f"{name}.log"),
            "seed": settings.seed,
            "count": settings.workflows,
            "threads": 4,
            "done": submitted,
            "interval_s": max(0.0, left) / max(1, settings.workflows - len(submitted)),
            "config": {
                "name": "chaos",
                "system_database_url": self.url,
                "application_database_url": self.url,
                "application_version": "one",
                "executor_id": name,
                "lease_s": settings.lease_s,
                "log_level": "WARNING",
            },
        }
        return Member(name, self._directory, member)

    def history(self) -> History:
        """What the processes have logged until now."""
        return read_logs(path.read_text() for path in sorted(self._directory.glob("*.log")))

    def submitted(self, *answers: str) -> list[str]:
        """What the driver got one of these answers to, in that order."""
        lines = (
            line
            for path in sorted(self._directory.glob("driver-*.log"))
            for line in path.read_text().split("\n")[:-1]
            if line.startswith(tuple(f'["{answer}"' for answer in answers))
        )
        return [json.loads(line)[4] for line in lines]

    def cancellable(self) -> list[str]:
        """Some of what was submitted last."""
        last = [each for each in self.submitted("ack")[-LAST:] if self._kinds[each] in CANCELLABLE]
        return self.chance.sample(last, min(5, len(last)))

    # -- the end -------------------------------------------------------------------------------------------------------

    def _await_the_end(self) -> None:
        assert self.driver is not None
        while not self.driver.ask("is_done") or query(self.url, UNFINISHED):
            if time.monotonic() > self.give_up_at:
                left = query(self.url, UNFINISHED)
                history = self.history()
                read_database(self.url, history)
                excerpts = "\n".join(history.excerpt(row[0]) for row in left[:SHOWN_VIOLATIONS])
                faults = "\n".join(self.faults)
                raise AssertionError(
                    f"seed {self.settings.seed}: not at an end after {self.settings.bound_s} s; "
                    f"{len(left)} workflows are left:\n{excerpts}\n{faults}"
                )
            time.sleep(POLL_S)

    def _left_behind(self) -> list[Violation]:
        """I10: what the survivors have more of than when they were launched."""
        if not self.settings.counts_threads:
            return []
        deadline = time.monotonic() + PATIENCE_S / 2
        violations = []
        for worker in self.workers:
            more = self._more_than_before(worker)
            while any(more[name] > SPARE[name] for name in more) and time.monotonic() < deadline:
                time.sleep(POLL_S)
                more = self._more_than_before(worker)
            self._more.append(more)
            if any(more[name] > SPARE[name] for name in more):
                violations.append(Violation("I10", "", f"{worker.name} has more than at its launch: {more}"))
        return violations

    @staticmethod
    def _more_than_before(worker: Member) -> dict[str, int]:
        return {name: count - worker.base[name] for name, count in worker.ask("census").items()}


def prepare(url: str) -> None:
    """Migrate the database, and add the triggers."""
    settings = process_config({"name": "chaos", "system_database_url": url}, {})
    open_dialect(settings, process_tag="chaos").prepare(may_migrate=True)
    install(url)
