"""What the simulated workflows do, as data; and what they must have done, told from their records alone.

A :class:`Program` is the argument of a workflow, so it is what recovery finds in the database. An executor interprets
it with the library (``executors.py``); :func:`foresee` interprets it without.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from hypothesis import strategies as st

__all__ = [
    "END_OF_STREAM",
    "OUTCOME_ID",
    "TIMED_OUT",
    "Aim",
    "Child",
    "CloseStream",
    "Foreseen",
    "GetEvent",
    "Hold",
    "Outcome",
    "Program",
    "ProgramFailed",
    "ReadStream",
    "Receive",
    "Record",
    "Send",
    "SetEvent",
    "Sleep",
    "Step",
    "StepFailed",
    "Ticket",
    "Unforeseen",
    "WriteStream",
    "foresee",
    "programs",
    "tickets",
]

Hold = Literal["body", "before", "after", "twice"]
"""Where an execution is held until it is let go: in the step's body, before the commit, or after it and before its
answer. ``twice``: it is not held, but the commit's answer is lost, so that it is made again."""

QueueName = Literal["free", "one", "split", "here"]

Does = Literal["send", "event", "stream"]
"""What a step does beside counting: send to the workflow ``a``, set an event, or write to a stream."""

OUTCOME_ID = 0  # stands for a workflow's outcome where operations have their function id
END_OF_STREAM = "__DBOS_STREAM_CLOSED__"  # as it is recorded
TIMED_OUT = "timed out"  # stands for the value of a stream that did not come


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
    does: Does | None = None


@dataclass(frozen=True)
class Sleep:
    """Sleep durably."""

    seconds: int


@dataclass(frozen=True)
class Child:
    """Run a child in place; or start it, or enqueue it where nothing holds it back, and await it after all else."""

    program: Program
    in_place: bool
    hold: Hold | None = None
    is_queued: bool = False


@dataclass(frozen=True)
class Send:
    """Send a message that says where it comes from; to this workflow itself, if ``to`` is None."""

    to: str | None = None
    topic: str | None = None
    key: str | None = None
    to_forks: bool = False
    hold: Hold | None = None


@dataclass(frozen=True)
class Receive:
    """Receive a message."""

    topic: str | None = None
    timeout_s: int = 0
    hold: Hold | None = None


@dataclass(frozen=True)
class SetEvent:
    """Set the event to a value that says where it comes from."""

    hold: Hold | None = None


@dataclass(frozen=True)
class GetEvent:
    """Get the event of a workflow."""

    of: str = "a"
    timeout_s: int = 0
    hold: Hold | None = None


@dataclass(frozen=True)
class WriteStream:
    """Write a value to the stream that says where it comes from."""

    hold: Hold | None = None


@dataclass(frozen=True)
class CloseStream:
    """Close the stream."""

    hold: Hold | None = None


@dataclass(frozen=True)
class ReadStream:
    """Read the stream of a workflow to its end, waiting for each value for some time."""

    of: str = "a"
    timeout_s: int = 15


Operation = Step | Sleep | Child | Send | Receive | SetEvent | GetEvent | WriteStream | CloseStream | ReadStream


@dataclass(frozen=True)
class Program:
    """Operations one after the other; then a failure, or the list of what they returned."""

    operations: tuple[Operation, ...] = ()
    fails: bool = False
    hold: Hold | None = None


@dataclass(frozen=True)
class Ticket:
    """How to enqueue a workflow; ``is_shared`` if whoever holds the de-duplication id will do."""

    queue: QueueName
    partition_key: str | None = None
    deduplication_id: str | None = None
    is_shared: bool = False
    delay_s: int | None = None


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


class Aim(NamedTuple):
    """Where a record belongs: to which operation, None if that awaits a child; and to which of a stream's values."""

    operation: Operation | None
    position: int = 0


AT_CHILD = Aim(None)


@dataclass
class Foreseen:
    """What records tell of an execution.

    ``places`` has everything that was recorded, without the ends of waits, and ``next_id`` is what comes next, at
    ``next_place``; there is an ``outcome`` instead if nothing does. ``numbers`` has all that was to be recorded so far.
    """

    places: dict[int, Aim] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)
    children: dict[str, Program] = field(default_factory=dict)
    next_id: int = 1
    next_place: Aim = AT_CHILD
    outcome: Outcome | None = None


def foresee(
    program: Program, workflow_id: str, child_name: str, records: Mapping[int, Record], origins: Mapping[int, str]
) -> Foreseen:
    """What these records tell; ``origins`` are the workflows that a fork has some of them from.

    Raises:
        Unforeseen: a record bears another name, or another child, than the program gives it.
    """
    foreseen = Foreseen()
    reading = _interpret(program, workflow_id, child_name)
    expected = next(reading)
    while not isinstance(expected, Outcome):
        function_id, waits = foreseen.next_id, isinstance(expected.place.operation, Receive | GetEvent)
        record = records.get(function_id)
        if waits and function_id + 1 in records:
            foreseen.numbers.add(function_id + 1)
            _check(f"{workflow_id}/{function_id + 1}", records[function_id + 1], ("DBOS.sleep", None))
        if record is None:
            foreseen.next_place = expected.place
            return foreseen
        if waits and function_id not in origins and function_id + 1 not in records:
            raise Unforeseen(f"{workflow_id}/{function_id} waited for what is not recorded")
        child_id = expected.child_id
        if isinstance(expected.place.operation, Child):
            child_id = f"{origins.get(function_id, workflow_id)}-{function_id}"
            foreseen.children[child_id] = expected.place.operation.program
        _check(f"{workflow_id}/{function_id}", record, (expected.name, child_id))
        foreseen.places[function_id] = expected.place
        foreseen.numbers.add(function_id)
        foreseen.next_id += 1 + waits
        expected = reading.send(record)
    foreseen.outcome = expected
    return foreseen


def _check(where: str, record: Record, expected: tuple[str, str | None]) -> None:
    if (record.name, record.child_id) != expected:
        raise Unforeseen(f"{where} should be {expected} and is {record}")


class _Expected(NamedTuple):
    """The name that a record must bear, and the child, unless the record is that of its start."""

    name: str
    place: Aim
    child_id: str | None = None


_NAMES: dict[type[Operation], str] = {
    Sleep: "DBOS.sleep",
    Send: "DBOS.send",
    Receive: "DBOS.recv",
    SetEvent: "DBOS.setEvent",
    GetEvent: "DBOS.getEvent",
    WriteStream: "DBOS.writeStream",
    CloseStream: "DBOS.closeStream",
}


def _interpret(program: Program, workflow_id: str, child_name: str) -> Generator[_Expected | Outcome, Record, None]:
    """Yields what each record must be, is sent the record, and yields the outcome last."""
    values: list[Any] = []
    started: list[str | None] = []
    for operation in program.operations:
        if isinstance(operation, Step):
            record = yield _Expected("step", Aim(operation))
            if record.error is None:
                values.append(record.value)
            elif operation.is_caught:
                values.append("caught")
            else:
                yield Outcome("ERROR", None, record.error)
        elif isinstance(operation, Child):
            record = yield _Expected(child_name, Aim(operation))
            if not operation.in_place:
                started.append(record.child_id)
                continue
            record = yield _Expected("DBOS.getResult", AT_CHILD, record.child_id)
            if record.error is not None:
                yield Outcome("ERROR", None, record.error)
            values.append(record.value)
        elif isinstance(operation, ReadStream):
            read: list[Any] = []
            while record := (yield _Expected("DBOS.readStream", Aim(operation, len(read)))):
                if record.error is None and record.value == END_OF_STREAM:
                    break
                read.append(record.value if record.error is None else TIMED_OUT)
                if record.error is not None:
                    break
            values.append(read)
        else:
            record = yield _Expected(_NAMES[type(operation)], Aim(operation))
            if isinstance(operation, Receive | GetEvent):
                values.append(record.value)
    for child_id in started:
        record = yield _Expected("DBOS.getResult", AT_CHILD, child_id)
        if record.error is not None:
            yield Outcome("ERROR", None, record.error)
        values.append(record.value)
    if program.fails:
        yield Outcome("ERROR", None, repr(ProgramFailed(workflow_id)))
    yield Outcome("SUCCESS", values, None)


HOLDS = st.sampled_from([None, "body", "body", "body", "before", "after", "twice"])
HOLDS_OF_COMMITS = st.sampled_from([None, None, "before", "after", "twice"])
STEPS = st.builds(
    Step,
    hold=HOLDS,
    fails=st.sampled_from([False, False, False, True]),
    is_caught=st.booleans(),
    does=st.sampled_from([None, None, "send", "event", "stream"]),
)
SLEEPS = st.builds(Sleep, seconds=st.sampled_from([5, 50]))
TOPICS = st.sampled_from([None, None, "t"])
TIMEOUTS = st.sampled_from([0, 15, 50, 50])
OTHERS = st.sampled_from("aaab")
MESSAGES = st.builds(
    Send,
    to=st.none() | OTHERS,
    topic=TOPICS,
    key=st.sampled_from([None, None, None, "k"]),
    to_forks=st.booleans(),
    hold=HOLDS_OF_COMMITS,
) | st.builds(Receive, topic=TOPICS, timeout_s=TIMEOUTS, hold=HOLDS_OF_COMMITS)
EVENTS = st.builds(SetEvent, hold=HOLDS_OF_COMMITS) | st.builds(
    GetEvent, of=OTHERS, timeout_s=TIMEOUTS, hold=HOLDS_OF_COMMITS
)
STREAMS = st.one_of(
    st.builds(WriteStream, hold=HOLDS_OF_COMMITS),
    st.builds(CloseStream, hold=HOLDS_OF_COMMITS),
    st.builds(ReadStream, of=OTHERS),
)


def _programs(operations: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[Program]:
    return st.builds(
        Program,
        operations=st.lists(operations, min_size=1, max_size=most).map(tuple),
        fails=st.sampled_from([False, False, False, True]),
        hold=HOLDS_OF_COMMITS,
    )


CHILDREN = st.builds(
    Child,
    program=_programs(st.one_of(STEPS, SLEEPS, MESSAGES, EVENTS, STREAMS), 2),
    in_place=st.booleans(),
    hold=HOLDS_OF_COMMITS,
    is_queued=st.booleans(),
)


def programs() -> st.SearchStrategy[Program]:
    """Programs of a few operations; children have no children."""
    return _programs(st.one_of(STEPS, STEPS, SLEEPS, CHILDREN, MESSAGES, MESSAGES, EVENTS, STREAMS), 4)


def tickets() -> st.SearchStrategy[Ticket]:
    """Ways to enqueue; most of them where something may be in the way."""
    delays = st.sampled_from([None, None, None, 5, 50])
    queues: st.SearchStrategy[QueueName] = st.sampled_from(["free", "one", "one", "here"])
    plain = st.builds(
        Ticket,
        queue=queues,
        deduplication_id=st.sampled_from([None, None, "d"]),
        is_shared=st.booleans(),
        delay_s=delays,
    )
    split = st.builds(Ticket, queue=st.just("split"), partition_key=st.sampled_from("xy"), delay_s=delays)
    return st.one_of(plain, plain, split)
