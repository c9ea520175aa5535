"""What the simulated workflows do, as data; and what they must have done, told from their records alone.

A :class:`Program` is the argument of a workflow, so it is what recovery finds in the database. An executor interprets
it with the library (``executors.py``); :func:`foresee` interprets it without.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from hypothesis import strategies as st

__all__ = [
    "OUTCOME_ID",
    "Child",
    "Hold",
    "Outcome",
    "Program",
    "ProgramFailed",
    "Record",
    "Sleep",
    "Step",
    "StepFailed",
    "Unforeseen",
    "foresee",
    "programs",
    "with_children",
]

Hold = Literal["body", "before", "after", "twice"]
"""Where an execution is held until it is let go: in the step's body, before the commit, or after it and before its
answer. ``twice``: it is not held, but the commit's answer is lost, so that it is made again."""

OUTCOME_ID = 0  # stands for a workflow's outcome where operations have their function id


class StepFailed(Exception):
    """A step was told to fail."""


class ProgramFailed(Exception):
    """A workflow was told to fail."""


@dataclass(frozen=True)
class Step:
    """Call a step, which returns a number that no other call returns, or fails with it."""

    hold: Hold | None = None
    fails: bool = False
    is_caught: bool = False


@dataclass(frozen=True)
class Sleep:
    """Sleep durably."""

    seconds: int


@dataclass(frozen=True)
class Child:
    """Run a child in place; or start it, and await it after everything else."""

    program: Program
    in_place: bool
    hold: Hold | None = None


@dataclass(frozen=True)
class Program:
    """Operations one after the other; then a failure, or the list of what they returned."""

    operations: tuple[Step | Sleep | Child, ...] = ()
    fails: bool = False
    hold: Hold | None = None


class Record(NamedTuple):
    """A recorded operation, decoded; an error is its ``repr``, because errors do not compare."""

    name: str
    value: Any
    error: str | None
    child_id: str | None


class Outcome(NamedTuple):
    """What a workflow ends with, likewise."""

    status: str
    value: Any
    error: str | None


class Unforeseen(AssertionError):
    """The records are none that the program could have made."""


def foresee(
    program: Program, workflow_id: str, child_name: str, records: Mapping[int, Record]
) -> tuple[Outcome | None, int]:
    """The outcome that these records lead to, None if there are too few of them; and how many it takes to get there.

    Raises:
        Unforeseen: a record bears another name, or another child, than the program gives it.
    """
    reading = _interpret(program, workflow_id, child_name)
    function_id = 0
    expected = next(reading)
    while not isinstance(expected, Outcome):
        function_id += 1
        record = records.get(function_id)
        if record is None:
            return None, function_id - 1
        if (record.name, record.child_id) != expected:
            raise Unforeseen(f"{workflow_id}/{function_id} should be {expected} and is {record}")
        expected = reading.send(record)
    return expected, function_id


Expected = tuple[str, str | None] | Outcome


def _interpret(program: Program, workflow_id: str, child_name: str) -> Generator[Expected, Record, None]:
    """Yields the name and the child that each record must bear, is sent the record, and yields the outcome last."""
    values: list[Any] = []
    started: list[str] = []
    number = 0
    for operation in program.operations:
        number += 1
        if isinstance(operation, Sleep):
            yield ("DBOS.sleep", None)
        elif isinstance(operation, Step):
            record = yield ("step", None)
            if record.error is None:
                values.append(record.value)
            elif operation.is_caught:
                values.append("caught")
            else:
                yield Outcome("ERROR", None, record.error)
        else:
            child_id = f"{workflow_id}-{number}"
            yield (child_name, child_id)
            if not operation.in_place:
                started.append(child_id)
                continue
            number += 1
            record = yield ("DBOS.getResult", child_id)
            if record.error is not None:
                yield Outcome("ERROR", None, record.error)
            values.append(record.value)
    for child_id in started:
        record = yield ("DBOS.getResult", child_id)
        if record.error is not None:
            yield Outcome("ERROR", None, record.error)
        values.append(record.value)
    if program.fails:
        yield Outcome("ERROR", None, repr(ProgramFailed(workflow_id)))
    yield Outcome("SUCCESS", values, None)


def with_children(program: Program, workflow_id: str) -> Iterator[tuple[str, Program]]:
    """The workflow and all the children that it may start, with their ids."""
    yield workflow_id, program
    function_id = 0
    for operation in program.operations:
        function_id += 1
        if isinstance(operation, Child):
            yield from with_children(operation.program, f"{workflow_id}-{function_id}")
            function_id += operation.in_place


HOLDS = st.sampled_from([None, "body", "body", "body", "before", "after", "twice"])
HOLDS_OF_COMMITS = st.sampled_from([None, None, "before", "after", "twice"])
STEPS = st.builds(Step, hold=HOLDS, fails=st.sampled_from([False, False, False, True]), is_caught=st.booleans())
SLEEPS = st.builds(Sleep, seconds=st.sampled_from([5, 50]))


def _programs(operations: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[Program]:
    return st.builds(
        Program,
        operations=st.lists(operations, min_size=1, max_size=most).map(tuple),
        fails=st.sampled_from([False, False, False, True]),
        hold=HOLDS_OF_COMMITS,
    )


CHILDREN = st.builds(Child, program=_programs(STEPS | SLEEPS, 2), in_place=st.booleans(), hold=HOLDS_OF_COMMITS)


def programs() -> st.SearchStrategy[Program]:
    """Programs of a few operations; children have no children."""
    return _programs(st.one_of(STEPS, STEPS, SLEEPS, CHILDREN), 4)
