"""The evidence of a run, and what follows from it.

Three sources that know nothing of each other: the log that the step bodies wrote, the library's records, and the rows
that a plain loop computes from the same files.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from .source import Row
from .witness import Effect, Step

__all__ = ["Claim", "Evidence", "Life"]


@dataclass(frozen=True, slots=True)
class Life:
    """One process, from its start to its end, and what was on record then."""

    pid: int
    began_s: float
    ended_s: float
    exit_code: int
    recorded: frozenset[Step]

    @property
    def was_killed(self) -> bool:
        """Whether a SIGKILL ended it."""
        return self.exit_code == -signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence, and whether the evidence bears it out."""

    text: str
    holds: bool


@dataclass(frozen=True)
class Evidence:
    """Everything that was observed; ``expected`` are the rows of the plain loop."""

    kills: int
    lives: Sequence[Life]
    effects: Sequence[Effect]
    rows: Sequence[Row]
    expected: Sequence[Row]

    @cached_property
    def runs(self) -> Counter[Step]:
        """How often the body of each step ran."""
        return Counter(effect.step for effect in self.effects)

    @cached_property
    def repeated(self) -> set[Step]:
        """The steps whose body ran more than once."""
        return {step for step, count in self.runs.items() if count > 1}

    @property
    def recorded(self) -> frozenset[Step]:
        """The steps on record at the end."""
        return self.lives[-1].recorded

    def steps_of(self, life: Life) -> set[Step]:
        """The steps whose body ran in a process."""
        return {effect.step for effect in self.effects if effect.pid == life.pid}

    def in_flight(self, life: Life) -> set[Step]:
        """The steps whose body had begun in a process, and that were not on record when it ended."""
        return self.steps_of(life) - life.recorded

    def redone(self) -> set[Step]:
        """The steps whose body ran in a process although an earlier one had recorded them: there must be none."""
        return {
            step for earlier, later in combinations(self.lives, 2) for step in earlier.recorded & self.steps_of(later)
        }

    def claims(self) -> list[Claim]:
        """What has been proven, or not."""
        killed = [life for life in self.lives if life.was_killed]
        interrupted: set[Step] = set().union(*(self.in_flight(life) for life in killed))
        once = len(self.runs) - len(self.repeated)
        surplus = len(self.rows) - len(set(self.rows))
        missing = len(set(self.expected) - set(self.rows))
        return [
            Claim(
                f"{len(killed)} of {len(self.lives)} processes were killed with SIGKILL, the last one finished",
                len(killed) == self.kills == len(self.lives) - 1 and self.lives[-1].exit_code == 0,
            ),
            Claim(
                f"{len(self.recorded):,} steps are on record, and the log has seen each of them run",
                self.recorded == self.runs.keys(),
            ),
            Claim(
                f"{once:,} of them ran once; {len(self.repeated)} ran again, each of them in flight at a kill",
                self.repeated <= interrupted,
            ),
            Claim(f"{len(self.redone())} steps ran again after they had been recorded", not self.redone()),
            Claim(
                f"{len(self.rows):,} rows in the user's table, {surplus or 'none'} twice, {missing or 'none'} missing",
                surplus == 0 and missing == 0,
            ),
            Claim(
                "every row is what a plain loop without the library computes",
                Counter(self.rows) == Counter(self.expected),
            ),
        ]

    @property
    def holds(self) -> bool:
        """Whether all claims hold."""
        return all(claim.holds for claim in self.claims())
