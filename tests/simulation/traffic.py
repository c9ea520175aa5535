"""Messages, events and streams: what the database holds of them, and the judge of that.

Each value says where it comes from: ``workflow/function id`` if a body wrote it, with ``#number`` if a step did that
was going to return the number, and ``outside/number`` if a user did. So the judge can tell from the records alone which
values there must be, how often, and in which order: what a body writes is there exactly if its record is (I6), and what
a workflow has received is what is marked as received, each once, in the order of sending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dbos._serialization import Serialization
from dbos._sysdb.connection import Connection
from dbos._sysdb.dialects.base import Dialect
from dbos._sysdb.stores.messages import NO_TOPIC
from tests.simulation.application import EVENT, STREAM
from tests.simulation.programs import (
    END_OF_STREAM,
    CloseStream,
    Foreseen,
    GetEvent,
    ReadStream,
    Receive,
    Record,
    Send,
    SetEvent,
    Step,
    WriteStream,
)
from tests.simulation.stage import Effect

__all__ = ["Letter", "State", "Traffic", "TrafficJudge", "read_traffic"]

UNFINISHED = ("PENDING", "ENQUEUED", "DELAYED")

ALL_MESSAGES = """
SELECT message_uuid, destination_uuid, topic, message, serialization, consumed, idempotency_key
FROM dbos.notifications ORDER BY {order}
"""
ALL_EVENTS = "SELECT workflow_uuid, key, value, serialization FROM dbos.workflow_events"
ALL_SET = "SELECT workflow_uuid, key, value, serialization, function_id FROM dbos.workflow_events_history"
ALL_STREAMS = """
SELECT workflow_uuid, key, value, serialization, function_id, "offset" FROM dbos.streams
ORDER BY workflow_uuid, key, "offset"
"""


class Letter(NamedTuple):
    """A message."""

    id: str
    destination: str
    topic: str
    value: str
    is_consumed: bool
    key: str | None


class Written(NamedTuple):
    """A value of a stream, and the operation that wrote it."""

    value: str
    function_id: int


@dataclass
class Traffic:
    """What the tables hold; events and streams by workflow, for there is one key of each."""

    letters: list[Letter] = field(default_factory=list)
    events: dict[str, str] = field(default_factory=dict)
    history: dict[str, dict[int, str]] = field(default_factory=dict)
    streams: dict[str, list[Written]] = field(default_factory=dict)

    @property
    def workflows(self) -> set[str]:
        """Whatever something is kept of."""
        return {letter.destination for letter in self.letters} | {*self.events, *self.history, *self.streams}

    def waiting(self, workflow_id: str, topic: str | None) -> list[Letter]:
        """What a workflow has still to receive."""
        of_topic = (letter for letter in self.letters if letter.topic == (topic or NO_TOPIC))
        return [letter for letter in of_topic if letter.destination == workflow_id and not letter.is_consumed]


def read_traffic(reader: Connection, dialect: Dialect, serialization: Serialization) -> Traffic:
    """What is committed now."""
    load, traffic = serialization.load_value, Traffic()
    for id, destination, topic, text, name, is_consumed, key in reader.all(
        ALL_MESSAGES.format(order=dialect.message_order)
    ):
        traffic.letters.append(Letter(id, destination, topic, load(text, name), bool(is_consumed), key))
    for workflow_id, key, text, name in reader.all(ALL_EVENTS):
        assert key == EVENT
        traffic.events[workflow_id] = load(text, name)
    for workflow_id, _, text, name, function_id in reader.all(ALL_SET):
        traffic.history.setdefault(workflow_id, {})[function_id] = load(text, name)
    for workflow_id, key, text, name, function_id, offset in reader.all(ALL_STREAMS):
        assert key == STREAM
        values = traffic.streams.setdefault(workflow_id, [])
        assert offset == len(values), f"the stream of {workflow_id} has {offset} after {len(values)} values"
        values.append(Written(load(text, name), function_id))
    return traffic


class State(NamedTuple):
    """What traffic is judged by: the workflows at a moment, and what their records tell."""

    statuses: Mapping[str, str]
    forked_from: Mapping[str, str]
    records: Mapping[str, Mapping[int, Record]]
    foreseen: Mapping[str, Foreseen]
    traffic: Traffic


class TrafficJudge:
    """Compares what was written with what was recorded."""

    def __init__(self, done: set[int]) -> None:
        self._done = done  # the numbers of the steps that have written something
        self._effects: dict[int, Effect] = {}
        self._seen_at: dict[str, int] = {}  # in which look a message was seen first
        self._look = 0
        self._disowned: set[str] = set()  # messages whose senders were deleted
        self._deleted: set[str] = set()  # workflows that were, at some time
        self._cleared: list[Letter] = []  # what was received long ago, and is kept here only

    def forget(self, workflow_id: str, traffic: Traffic) -> None:
        """A workflow was deleted; its id may be given to another."""
        self._deleted.add(workflow_id)
        self._cleared = [letter for letter in self._cleared if letter.destination != workflow_id]
        self._disowned.update(letter.id for letter in traffic.letters if _author(letter.value)[0] == workflow_id)

    def look(
        self,
        before: State,
        after: State,
        origins: Mapping[str, Mapping[int, str]],
        effects: Sequence[Effect],
        now_ms: int,
        *,
        may_forget: bool,
    ) -> None:
        """Look at everything; ``may_forget`` if what was received long ago may have been deleted."""
        self._look += 1
        self._effects.update((effect.number, effect) for effect in effects)
        if may_forget:
            there = {letter.id for letter in after.traffic.letters}
            self._cleared = [each for each in before.traffic.letters if each.is_consumed and each.id not in there]
        after.traffic.letters[:0] = self._cleared
        for letter in after.traffic.letters:
            self._seen_at.setdefault(letter.id, self._look)
        orphans = after.traffic.workflows - after.statuses.keys()
        assert not orphans, f"something is left of {orphans}, which do not exist"
        self._judge_letters(before, after)
        self._judge_sent(after, origins)
        for workflow_id in after.statuses:
            copied = origins.get(workflow_id, {})
            self._judge_received(workflow_id, after, copied)
            self._judge_events(workflow_id, after, copied)
            self._judge_stream(workflow_id, before, after, copied)
            for function_id in after.records[workflow_id].keys() - before.records.get(workflow_id, {}).keys():
                if function_id not in copied:
                    self._judge_heard(workflow_id, function_id, before, after, now_ms)

    # -- messages ----------------------------------------------------------------------------------------------------

    def _judge_letters(self, before: State, after: State) -> None:
        letters = {letter.id: letter for letter in after.traffic.letters}
        for old in before.traffic.letters:
            if old.destination not in after.statuses:
                continue
            new = letters.get(old.id)
            assert new is not None, f"I1: the message {old} is lost"
            is_same = new._replace(is_consumed=old.is_consumed) == old and new.is_consumed >= old.is_consumed
            assert is_same, f"I3: the message {old} became {new}"

    def _judge_sent(self, after: State, origins: Mapping[str, Mapping[int, str]]) -> None:
        """Bodies have sent what they have recorded, and steps what they have done, each once to each destination."""
        sent: dict[str, list[Letter]] = {}
        for letter in after.traffic.letters:
            if letter.id in self._disowned:
                continue
            sent.setdefault(letter.value, []).append(letter)
            author, function_id, number = _author(letter.value)
            if author == "outside" or author not in after.statuses:
                continue
            if number is not None:
                self._check_number(letter.value)
            else:
                is_recorded = function_id in after.records[author] and function_id not in origins.get(author, {})
                assert is_recorded, f"I6: {letter} was sent, and that is not recorded"
        for value, letters in sent.items():
            destinations = [letter.destination for letter in letters]
            assert len(set(destinations)) == len(destinations), f"I6: {value} was sent more than once to {destinations}"
        for workflow_id, foreseen in after.foreseen.items():
            for function_id, (operation, _) in foreseen.places.items():
                if not isinstance(operation, Send | Step) or function_id in origins.get(workflow_id, {}):
                    continue
                value, to, key = f"{workflow_id}/{function_id}", "a", None
                if isinstance(operation, Send):
                    to, key = operation.to or workflow_id, operation.key
                else:
                    number = _number_of(after.records[workflow_id][function_id])
                    value += f"#{number}"
                    if operation.does != "send" or number not in self._done:
                        continue
                if to in self._deleted:
                    continue
                letters = sent.get(value, [])
                is_there = to in [letter.destination for letter in letters] or (
                    key is not None
                    and any((letter.destination, letter.key) == (to, key) for letter in after.traffic.letters)
                )
                assert is_there, f"I6: {value} was sent to {to}, says its record, and is not there"
                may_have = {to, *self._forks_of(to, after)} if getattr(operation, "to_forks", False) else {to}
                assert {letter.destination for letter in letters} <= may_have, f"{letters} went astray"

    def _forks_of(self, workflow_id: str, state: State) -> set[str]:
        forks: set[str] = set()
        while more := {fork for fork, source in state.forked_from.items() if source in {workflow_id, *forks}} - forks:
            forks |= more
        return forks

    def _judge_received(self, workflow_id: str, after: State, copied: Mapping[int, str]) -> None:
        by_topic: dict[str, list[str]] = {}
        for function_id, (operation, _) in sorted(after.foreseen[workflow_id].places.items()):
            if isinstance(operation, Receive) and function_id not in copied:
                value = after.records[workflow_id][function_id].value
                if value is not None:
                    by_topic.setdefault(operation.topic or NO_TOPIC, []).append(value)
        own = [letter for letter in after.traffic.letters if letter.destination == workflow_id]
        for topic in {letter.topic for letter in own} | by_topic.keys():
            of_topic = [letter for letter in own if letter.topic == topic]
            consumed = [letter for letter in of_topic if letter.is_consumed]
            received = by_topic.get(topic, [])
            assert sorted(received) == sorted(letter.value for letter in consumed), (
                f"I6: {workflow_id} has received {received}, and {consumed} are marked as received"
            )
            seen_at = {letter.value: self._seen_at[letter.id] for letter in of_topic}
            order = [seen_at[value] for value in received]
            assert order == sorted(order), f"I7: {workflow_id} has received {received} out of order"
            left = [seen_at[letter.value] for letter in of_topic if not letter.is_consumed]
            assert not order or not left or order[-1] <= min(left), f"I7: {workflow_id} has passed over {of_topic}"

    # -- events ------------------------------------------------------------------------------------------------------

    def _judge_events(self, workflow_id: str, after: State, copied: Mapping[int, str]) -> None:
        history = after.traffic.history.get(workflow_id, {})
        latest = history[max(history)] if history else None
        event = after.traffic.events.get(workflow_id)
        assert event == latest, f"the event of {workflow_id} is {event}, and was last set to {latest}"
        foreseen = after.foreseen[workflow_id]
        for function_id, value in history.items():
            if function_id in copied:
                continue
            author, written_by, number = _author(value)
            assert (author, written_by) == (workflow_id, function_id), f"{workflow_id}/{function_id} has set {value}"
            if number is not None:
                self._check_number(value)
            else:
                assert function_id in foreseen.places, f"I6: {value} was set, and that is not recorded"
        for function_id, (operation, _) in foreseen.places.items():
            if function_id in copied or not isinstance(operation, SetEvent | Step):
                continue
            expected = f"{workflow_id}/{function_id}"
            if isinstance(operation, Step):
                number = _number_of(after.records[workflow_id][function_id])
                expected += f"#{number}"
                if operation.does != "event" or number not in self._done:
                    continue
            assert history.get(function_id) == expected, f"I6: {expected} was set, says its record, and is not there"

    # -- streams -----------------------------------------------------------------------------------------------------

    def _judge_stream(self, workflow_id: str, before: State, after: State, copied: Mapping[int, str]) -> None:
        written = after.traffic.streams.get(workflow_id, [])
        if workflow_id in before.statuses:
            old = before.traffic.streams.get(workflow_id, [])
            assert written[: len(old)] == old, f"I3: the stream of {workflow_id} was {old}, and is {written}"
        places = after.foreseen[workflow_id].places
        numbers = [each.function_id for each in written]
        assert numbers == sorted(numbers), f"the stream of {workflow_id} is out of order: {written}"
        for value, function_id in written:
            if function_id in copied:
                continue
            if value != END_OF_STREAM:
                assert _author(value)[:2] == (workflow_id, function_id), f"{workflow_id}/{function_id} wrote {value}"
            if value != END_OF_STREAM and _author(value)[2] is not None:
                self._check_number(value)
                assert [each.value for each in written].count(value) == 1, f"{value} was written more than once"
            else:
                assert function_id in places, f"I6: {workflow_id}/{function_id} wrote, and that is not recorded"
        for function_id, (operation, _) in places.items():
            if function_id in copied:
                continue
            values = [each.value for each in written if each.function_id == function_id]
            if isinstance(operation, WriteStream):
                assert values == [f"{workflow_id}/{function_id}"], f"I6: {workflow_id}/{function_id} wrote {values}"
            elif isinstance(operation, CloseStream):
                assert values == [END_OF_STREAM], f"I6: {workflow_id}/{function_id} wrote {values}"
            elif isinstance(operation, Step) and operation.does == "stream":
                number = _number_of(after.records[workflow_id][function_id])
                is_there = f"{workflow_id}/{function_id}#{number}" in values
                assert is_there or number not in self._done, f"I6: {workflow_id}/{function_id} wrote {values}"

    # -- what was heard of others --------------------------------------------------------------------------------------

    def _judge_heard(self, workflow_id: str, function_id: int, before: State, after: State, now_ms: int) -> None:
        place = after.foreseen[workflow_id].places.get(function_id)
        if place is None:
            return
        records = after.records[workflow_id]
        record, operation, where = records[function_id], place.operation, f"{workflow_id}/{function_id}"
        if isinstance(operation, Receive | GetEvent) and record.value is None:
            wait = records.get(function_id + 1)
            is_over = wait is None or float(wait.value) * 1000 <= now_ms
            assert is_over, f"{where} has given up before its time"
        if isinstance(operation, Receive) and record.value is None:
            late = after.traffic.waiting(workflow_id, operation.topic)
            passed_over = [letter for letter in late if self._seen_at[letter.id] < self._look]
            assert not passed_over, f"{where} has received nothing, and {passed_over} were there"
        elif isinstance(operation, GetEvent):
            self.judge_event(operation.of, record.value, before, after, where)
        elif isinstance(operation, ReadStream) and record.error is None and self._is_whole(operation.of, after):
            self._judge_value(operation.of, place.position, record.value, before, after, where)

    def judge_event(self, workflow_id: str, value: str | None, before: State, after: State, where: str) -> None:
        """Somebody was told the value of an event, since the look before."""
        old, new = before.traffic.events.get(workflow_id), after.traffic.events.get(workflow_id)
        if old == new or workflow_id in after.statuses:
            history = after.traffic.history.get(workflow_id, {}).values()
            may_be = {old} if old == new else {old, new, *history}
            is_of_step = value is not None and _author(value)[2] in self._done and old != new
            assert value in may_be or is_of_step, f"{where} got {value} for an event that was one of {may_be}"

    def judge_stream_read(
        self, workflow_id: str, values: Sequence[Any], has_timed_out: bool, before: State, after: State, where: str
    ) -> None:
        """Somebody has read a stream to its end, or until a value did not come."""
        if not self._is_whole(workflow_id, after):
            return
        for index, value in enumerate([*values, *([] if has_timed_out else [END_OF_STREAM])]):
            self._judge_value(workflow_id, index, value, before, after, where)

    def _is_whole(self, workflow_id: str, after: State) -> bool:
        return workflow_id in after.statuses and workflow_id not in self._deleted

    def _judge_value(self, workflow_id: str, index: int, value: str, before: State, after: State, where: str) -> None:
        written = [each.value for each in after.traffic.streams.get(workflow_id, [])]
        if index < len(written):
            is_right = written[index] == value
        else:
            statuses = (before.statuses.get(workflow_id), after.statuses.get(workflow_id))
            is_right = value == END_OF_STREAM and any(status not in UNFINISHED for status in statuses)
        if not is_right and value == END_OF_STREAM:  # it had ended, was resumed, and has written on
            is_right = len(before.traffic.streams.get(workflow_id, [])) <= index and (
                before.statuses.get(workflow_id) not in UNFINISHED
            )
        assert is_right, f"{where} has read {value} as value {index} of {written}"

    def _check_number(self, value: str) -> None:
        author, function_id, number = _author(value)
        effect = self._effects[number or 0]
        assert (effect.workflow_id, effect.function_id) == (author, function_id), f"{value} is nobody's"


def _author(value: str) -> tuple[str, int, int | None]:
    """The workflow that wrote a value, its operation, and its number if that was a step."""
    author, _, rest = value.rpartition("/")
    function_id, _, number = rest.partition("#")
    return author, int(function_id), int(number) if number else None


def _number_of(record: Record) -> int:
    """The number of the execution that a step has recorded."""
    return int(record.value if record.error is None else record.error.split("(")[1].rstrip(")"))
