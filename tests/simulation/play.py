"""What every play is made of: executors on one database, virtual time, and moves.

Nothing depends on real time, so a play that fails is replayed, and shrunk, move by move. What several runs do between
two rests is left to their threads; so that no choice of Hypothesis depends on that, a rule has no preconditions, and
does nothing where there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from hypothesis import currently_in_test_context, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from dbos import DBOSConfig
from dbos._clock import VirtualClock
from dbos._dbos_config import process_config
from dbos._sysdb.dialects import open_dialect
from tests.simulation.executors import LEASE_S, Executor
from tests.simulation.model import Happening, Judge
from tests.simulation.snapshots import UNFINISHED, Observer
from tests.simulation.stage import Call, Place, Stage

__all__ = ["CONFIG", "FORKS", "IDS", "NUMBERS", "PIECE_S", "Play", "pick", "tell"]

CONFIG: DBOSConfig = {
    "name": "simulation",
    "application_version": "simulated",
    "log_level": "CRITICAL",
    "sqlite_synchronous": "NORMAL",
}
PIECE_S = LEASE_S / 3  # how often a lease is renewed
MAX_EXECUTORS = 3
MAX_ROUNDS = 100  # of services, until nothing moves any more

T = TypeVar("T")

IDS, FORKS = "abcdef", "xyz"
NUMBERS = st.integers(0, 23)  # which of several, counted round


class Play(RuleBasedStateMachine):
    """Executors on one database, and what users, operators and fate do to them."""

    def __init__(self, url: str) -> None:
        super().__init__()
        config: DBOSConfig = {**CONFIG, "system_database_url": url}
        settings = process_config(config)
        self.time = VirtualClock()
        self.stage = Stage(config)
        self.executors: list[Executor] = []
        self.observer = Observer(open_dialect(settings, process_tag="observer"), settings.serialization)
        self.judge = Judge(self.stage, self.observer)
        self.is_sound = True

    # -- who is there ------------------------------------------------------------------------------------------------

    def there(self, *states: str) -> list[Executor]:
        return [executor for executor in self.executors if executor.state in states]

    def acting(self) -> list[Executor]:
        return self.there("live", "stale")

    def busy(self) -> list[Executor]:
        """Those who act, and execute something."""
        return [executor for executor in self.acting() if executor.engine.runs.all()]

    def unfinished(self) -> list[str]:
        return [row.workflow_uuid for row in self.judge.seen.rows.values() if row.status in UNFINISHED]

    def places(self) -> list[Place]:
        return [place for place in self.stage.places() if place.executor.state != "frozen"]

    @contextmanager
    def move(self, happening: Happening | None = None) -> Iterator[Happening]:
        """A move; after it everything comes to rest, and is judged."""
        happening = happening or Happening()
        self.is_sound = False
        yield happening
        self.settle()
        self.judge.look(self.executors, happening, self.time.now_ms())
        self.is_sound = True

    def settle(self) -> None:
        for _ in range(MAX_ROUNDS):
            self.stage.activity.wait_until_still()
            before = self.progress()
            for executor in self.there("live"):
                executor.look_about()
            self.stage.activity.wait_until_still()
            if self.progress() == before:
                return
        raise AssertionError("I8: it never comes to rest")

    def progress(self) -> tuple[object, ...]:
        """What changes as long as anything happens but that somebody looks again whether it has."""
        stage, there = self.stage, self.there("live", "stale", "frozen")
        runs = [len(executor.engine.runs.all()) for executor in there]
        calls = [sum(not call.is_over for call in executor.calls) for executor in there]
        return stage.commits, len(stage.effects), len(stage.places()), runs, calls

    def ask(self, executor: Executor, func: Callable[[], Any], call: Call | None = None) -> Call:
        call = executor.call(func, call)
        self.stage.activity.wait_until_still()
        return call

    def somebody(self, statuses: Sequence[str], whose: int) -> str:
        """A workflow with one of the statuses, as a rule; or another, or one that may not exist yet."""
        rows = self.judge.seen.rows
        meant = [workflow_id for workflow_id in sorted(rows) if rows[workflow_id].status in statuses]
        some = [*meant, *meant, *sorted(rows), IDS[-1]]
        return some[whose % len(some)]

    def leave_behind(self, knowing: Executor, workflow_id: str) -> None:
        """What one executor does to a workflow that another runs is heard there with the next heartbeat."""
        for executor in self.executors:
            if executor is not knowing and executor.state != "gone":
                executor.behind.add(workflow_id)

    def is_haunted(self, workflow_id: str) -> bool:
        """Whether an id is free, and children are left of whoever had it: they would be taken for its next owner's."""
        rows = self.judge.seen.rows
        return workflow_id not in rows and any(each.startswith(f"{workflow_id}-") for each in rows)

    # -- holding ------------------------------------------------------------------------------------------------------

    def go_on(self, place: Place) -> None:
        """Let something go on that is held."""
        tell(f"{place} goes on")
        happening = Happening(must_record=[place] if self.will_record(place) else [])
        with self.move(happening):
            self.stage.let_go(place)

    def will_record(self, place: Place) -> bool:
        """Whether what is let go is to be recorded: by the owner, whose instance is not declared dead."""
        seen = self.judge.seen
        row = seen.rows.get(place.workflow_id)
        if row is None or place.where not in ("body", "before") or place.executor.instance_id not in seen.instances:
            return False
        if row.run_token != place.run_token:
            return False
        return row.status == "PENDING" or (row.status == "CANCELLED" and place.where == "body")

    # -- time and executors -------------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        with self.move():
            self.time.advance(seconds)
            for executor in self.there("live", "stale", "frozen"):
                executor.clock.advance(seconds)
            for executor in self.acting():
                executor.clock.ring()
            self.stage.activity.wait_until_still()
            for executor in self.acting():
                self.catch_up_with(executor)

    def catch_up_with(self, executor: Executor) -> None:
        executor.state = "live"
        executor.renew()
        executor.look_about()  # before others have renewed theirs

    def launch_another(self) -> None:
        if len(self.there("live", "stale", "frozen")) == MAX_EXECUTORS:
            return
        with self.move():
            self.executors.append(Executor(self.stage, len(self.executors) + 1, self.time.now_s()))

    def crash(self, executor: Executor, *, is_seen: bool) -> None:
        tell(f"{executor} crashes")
        with self.move():
            executor.crash(is_seen=is_seen)
        if len(self.there("live", "stale", "frozen")) < 2:
            self.launch_another()

    # -- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if self.is_sound:
                self.come_to_an_end()
        finally:
            for executor in self.there("live", "stale", "frozen"):
                executor.crash(is_seen=False)
            self.observer.close()

    def come_to_an_end(self) -> None:
        """Everything is let go: whatever is not cancelled or given up ends, and everybody who waits is told."""
        for executor in self.there("frozen"):
            with self.move():
                executor.thaw()
        if not self.acting():
            self.launch_another()
        for _ in range(MAX_ROUNDS):
            self.pass_time(PIECE_S)
            while self.places():
                self.go_on(self.places()[0])
            if not self.unfinished():
                break
        else:
            raise AssertionError(f"I2: {self.unfinished()} never end")
        self.pass_time(PIECE_S)
        for _ in range(MAX_ROUNDS):
            if all(call.asks == "outcome" for executor in self.acting() for call in executor.calls):
                break
            self.pass_time(PIECE_S)
        for executor in self.acting():
            assert executor.engine.runs.all() == []
            waiting = {call.workflow_id for call in executor.calls}
            assert not waiting & self.judge.seen.rows.keys()
            assert len(executor.engine.db.wakeups.keys()) == len(waiting)


def tell(what: str) -> None:
    """Have it printed with a play that failed."""
    if currently_in_test_context():
        note(what)


def pick(options: Sequence[T], number: int) -> T | None:
    return options[number % len(options)] if options else None
