from __future__ import annotations

import base64
import enum
import json
import logging
import math
import pickle
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple, get_type_hints
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dbos._error import (
    DBOSDeserializationError,
    DBOSException,
    DBOSInitializationError,
    DBOSMaxStepRetriesExceeded,
    DBOSPayloadTooLargeError,
    DBOSQueueDeduplicatedError,
    DBOSSerializationNotAllowedError,
    DBOSUnexpectedStepError,
)
from dbos._serialization import (
    DBOSPortableJSONSerializer,
    PickleSerializer,
    PortableWorkflowError,
    Serialization,
    Serializer,
    SizeLimits,
    WorkflowSerializationFormat,
    load_for_display,
)

DEFAULT = WorkflowSerializationFormat.DEFAULT
NATIVE = WorkflowSerializationFormat.NATIVE
PORTABLE = WorkflowSerializationFormat.PORTABLE

untimed = settings(deadline=None)  # a busy machine is no failure

plain = Serialization()
json_only = Serialization(allowed=["json"])


def is_same(left: object, right: object) -> bool:
    """Whether two values are equal down to the type of each part, the order of keys and the sign of zero."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(is_same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(is_same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return left.hex() == right.hex()
    if isinstance(left, Decimal) and isinstance(right, Decimal):
        return left.as_tuple() == right.as_tuple()
    if isinstance(left, datetime | time) and isinstance(right, datetime | time):
        left_zone, right_zone = left.tzinfo, right.tzinfo
        is_same_zone = type(left_zone) is type(right_zone) and repr(left_zone) == repr(right_zone)
        return is_same_zone and left.replace(tzinfo=None) == right.replace(tzinfo=None) and left.fold == right.fold
    return left == right


any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates and NUL too
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(any_text, inner, max_size=5), max_leaves=25
)
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]).map(
    ZoneInfo
)
offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
any_zone = st.none() | st.just(UTC) | offsets | zones
tagged_leaves = (
    st.datetimes(timezones=any_zone, allow_imaginary=True)
    | st.datetimes(timezones=zones).map(lambda moment: moment.replace(fold=1))
    | st.dates()
    | st.times(timezones=any_zone)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.binary()
)
# Keys of the user's that look like ours.
odd_keys = any_text | st.sampled_from(["dbos:date", "dbos::date", "dbos:", "dbos::", "dbos:none", "$date"])
hashables = st.integers() | st.dates() | st.tuples(any_text, st.frozensets(st.decimals(allow_nan=False), max_size=2))
tagged_values = st.recursive(
    scalars | tagged_leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(hashables, max_size=3)
        | st.frozensets(hashables, max_size=3)
        | st.dictionaries(odd_keys, inner, max_size=3)
    ),
    max_leaves=15,
)
other_leaves = scalars | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False) | tagged_leaves
other_values = st.recursive(
    other_leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.integers() | any_text | st.none(), inner, max_size=4)
    ),
    max_leaves=15,
)


# -- json: only what survives it --------------------------------------------------------------------------------------


@untimed
@given(json_values)
@example("\ud83d")
@example({"\ud83d": ["\udc00", "ä\0"]})
@example(-0.0)
@example(10**599)
def test_a_json_value_survives_exactly_as_text_that_databases_accept(value: Any) -> None:
    text, name = plain.dump_value(value)

    assert name in {"json", "py_pickle"}
    assert is_same(plain.load_value(text, name), value)
    assert "\0" not in text
    text.encode()


@untimed
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    )
)
def test_ordinary_values_are_readable_json(value: Any) -> None:
    text, name = plain.dump_value(value)

    assert name == "json"
    assert is_same(json.loads(text), value)


@untimed
@given(tagged_values)
@example({"dbos:tuple": [1]})
@example({"dbos::tuple": (1,)})
@example([{"dbos:": {"dbos:date": "2026-01-02"}}, {"dbos:date": 1, "b": 2}])
@example(datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1))
@example(Decimal("-0E+5"))
def test_times_numbers_and_tuples_survive_exactly_without_pickle(value: Any) -> None:
    stored = plain.dump_value(value)
    loaded = plain.load_value(*stored)

    if stored[1] == "json":
        assert json_only.dump_value(value) == stored
    else:  # a whole number of a thousand digits, say
        with pytest.raises(DBOSSerializationNotAllowedError):
            json_only.dump_value(value)
    assert is_same(loaded, value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5), '{"dbos:datetime":"2026-01-02T03:04:05"}'),
        (datetime(2026, 1, 2, 3, 4, 5, 6, UTC), '{"dbos:datetime":"2026-01-02T03:04:05.000006+00:00"}'),
        (
            datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
            '{"dbos:datetime":"2026-10-25T02:30:00+01:00[Europe/Berlin][fold=1]"}',
        ),
        (date(2026, 1, 2), '{"dbos:date":"2026-01-02"}'),
        (time(3, 4), '{"dbos:time":"03:04:00"}'),
        (timedelta(days=1, seconds=2), '{"dbos:timedelta":[1,2,0]}'),
        (Decimal("1.50"), '{"dbos:decimal":"1.50"}'),
        (UUID(int=7), '{"dbos:uuid":"00000000-0000-0000-0000-000000000007"}'),
        (b"bytes", '{"dbos:bytes":"Ynl0ZXM="}'),
        ((1, ("ä",)), '{"dbos:tuple":[1,{"dbos:tuple":["ä"]}]}'),
        ({1}, '{"dbos:set":[1]}'),
        (frozenset(), '{"dbos:frozenset":[]}'),
        ({"at": date(2026, 1, 2), "by": "me"}, '{"at":{"dbos:date":"2026-01-02"},"by":"me"}'),
        ({"dbos:date": "2026-01-02"}, '{"dbos::date":"2026-01-02"}'),
        ({"$date": "2026-01-02"}, '{"$date":"2026-01-02"}'),
    ],
    ids=repr,
)
def test_a_tagged_value_is_readable_where_it_is_stored(value: Any, text: str) -> None:
    assert plain.dump_value(value) == (text, "json")
    assert is_same(plain.load_value(text, "json"), value)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ('{"dbos:colour":"red"}', "tagged 'dbos:colour', which this release does not know"),
        ('[{"dbos:date":"yesterday"}]', "damaged value tagged 'dbos:date'"),
        ('{"dbos:datetime":"2026-01-02T03:04:05[Mars/Olympus]"}', "damaged"),
        ('{"dbos:datetime":"2026-01-02T03:04:05[../../etc/passwd]"}', "damaged"),
        ('{"dbos:datetime":"2026-01-02T03:04:05[America]"}', "damaged"),
        ('{"dbos:datetime":"2026-01-02T03:04:05]"}', "damaged"),
        ('{"dbos:time":7}', "damaged"),
        ('{"dbos:timedelta":[999999999999999,0,0]}', "damaged"),
        ('{"dbos:timedelta":[1]}', "damaged"),
        ('{"dbos:decimal":"x"}', "damaged"),
        ('{"dbos:decimal":[0,[1],2]}', "damaged"),
        ('{"dbos:uuid":7}', "damaged"),
        ('{"dbos:bytes":"ä"}', "damaged"),
        ('{"dbos:tuple":"ab"}', "damaged"),
        ('{"dbos:set":[[1]]}', "damaged"),
    ],
)
def test_a_tag_that_cannot_be_read_is_a_typed_error(text: str, phrase: str) -> None:
    with pytest.raises(DBOSDeserializationError, match=phrase):
        plain.load_value(text, "json")


def test_what_is_shared_between_tuples_stays_shared() -> None:
    shared = (1, 2)
    tower: Any = ()
    for _ in range(60):  # a copy for each of the places would be 2**60 of them
        tower = (tower, tower)

    loaded = plain.load_value(*plain.dump_value([shared, shared]))

    assert loaded[0] is loaded[1]
    assert plain.load_value(*plain.dump_value(tower))[0] is not None


@untimed
@given(other_values)
def test_every_other_value_survives_exactly_as_a_pickle(value: Any) -> None:
    text, name = plain.dump_value(value)

    assert is_same(plain.load_value(text, name), value)
    text.encode()


class Colour(enum.IntEnum):
    RED = 1


class Point(NamedTuple):
    x: int
    y: int


class Text(str):
    pass


class Timestamp(datetime):
    pass


@pytest.mark.parametrize(
    "value",
    [
        {1: "a"},
        {None: "a"},
        {Text("a"): 1},
        Text("a"),
        Colour.RED,
        [Colour.RED],
        Point(1, 2),
        OrderedDict(a=1),
        math.inf,
        [-math.inf],
        10**600,
        {"a": -(10**700)},
        1 + 2j,
        bytearray(b"bytes"),
        (1, math.inf),
        (Point(1, 2),),
        frozenset({Text("a")}),
        Timestamp(2026, 1, 2),
        datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=1), "Mars")),
        datetime(2026, 1, 2, tzinfo=ZoneInfo.no_cache("Europe/Berlin")),
        UUID(int=7, is_safe=SafeUUID.safe),
        "\ud83d\ude00",
        ["\ud83d\ude00"],
    ],
    ids=repr,
)
def test_a_value_that_json_would_change_is_pickled(value: Any) -> None:
    text, name = plain.dump_value(value)

    loaded = plain.load_value(text, name)

    assert name == "py_pickle"
    assert type(loaded) is type(value)
    assert loaded == value


def test_nan_is_pickled() -> None:
    text, name = plain.dump_value([math.nan])

    assert name == "py_pickle"
    assert math.isnan(plain.load_value(text, name)[0])


def test_a_container_in_two_places_stays_one_container() -> None:
    shared = [1]

    text, name = plain.dump_value({"a": shared, "b": shared})

    loaded = plain.load_value(text, name)
    assert name == "py_pickle"
    assert loaded["a"] is loaded["b"]


def test_a_container_in_itself_stays_so() -> None:
    cycle: list[Any] = [1]
    cycle.append(cycle)

    loaded = plain.load_value(*plain.dump_value(cycle))

    assert loaded[1] is loaded


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(("depth", "name"), [(50, "json"), (150, "py_pickle")])
def test_deep_values_are_stored_in_a_format_whose_reader_does_not_recurse(depth: int, name: str) -> None:
    stored = plain.dump_value(nested(depth))

    assert stored[1] == name
    assert plain.load_value(*stored) == nested(depth)


@pytest.mark.parametrize("format", [DEFAULT, NATIVE, PORTABLE])
def test_values_beyond_the_recursion_limit_are_refused(format: WorkflowSerializationFormat) -> None:
    with pytest.raises(TypeError, match="value of type list is nested too deeply"):
        plain.dump_value(nested(100_000), format)


def test_a_value_that_cannot_be_stored_is_refused_by_its_type_alone() -> None:
    value = {"password": "geheim", "lock": threading.Lock()}

    with pytest.raises(TypeError, match="value of type dict cannot be stored") as caught:
        plain.dump_value(value)

    assert "geheim" not in str(caught.value)


def test_null_loads_as_none_without_a_format() -> None:
    assert plain.load_value(None, None) is None
    assert plain.load_value(None, "unknown") is None


def test_none_is_stored_as_a_value() -> None:
    assert plain.dump_value(None) == ("null", "json")


# -- arguments --------------------------------------------------------------------------------------------------------


@untimed
@given(st.lists(other_values | json_values, max_size=4), st.dictionaries(any_text, other_values, max_size=3))
def test_arguments_survive_exactly(args: list[Any], kwargs: dict[str, Any]) -> None:
    stored = plain.dump_inputs(tuple(args), kwargs)

    loaded_args, loaded_kwargs = plain.load_inputs(*stored)

    assert is_same(loaded_args, tuple(args))
    assert is_same(loaded_kwargs, kwargs)


def test_plain_arguments_are_readable_json() -> None:
    assert plain.dump_inputs((1, "a"), {"b": [True]}) == ('{"args":[1,"a"],"kwargs":{"b":[true]}}', "json")
    assert plain.dump_inputs((), {}) == ('{"args":[],"kwargs":{}}', "json")


def test_a_container_given_twice_stays_one_container() -> None:
    shared = [1]

    args, kwargs = plain.load_inputs(*plain.dump_inputs((shared,), {"again": shared}))

    assert args[0] is kwargs["again"]


@pytest.mark.parametrize("format", [NATIVE, PORTABLE])
def test_arguments_can_be_stored_in_a_format_of_choice(format: WorkflowSerializationFormat) -> None:
    text, name = plain.dump_inputs((1, [2]), {"b": None}, format)

    assert name == {NATIVE: "py_pickle", PORTABLE: "portable_json"}[format]
    assert plain.load_inputs(text, name) == ((1, [2]), {"b": None})


def test_portable_arguments_have_the_documented_layout() -> None:
    text, _ = plain.dump_inputs((1,), {"b": 2}, PORTABLE)

    assert json.loads(text) == {"positionalArgs": [1], "namedArgs": {"b": 2}}


@pytest.mark.parametrize(
    "text",
    ["{}", "null", '{"positionalArgs" : null, "namedArgs" : null}', '{"namedArgs": {}}', '{"positionalArgs": []}'],
)
def test_portable_arguments_may_be_left_out(text: str) -> None:
    assert plain.load_inputs(text, "portable_json") == ((), {})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("7", "json"),
        ("[]", "json"),
        ('{"args":7}', "json"),
        ('{"kwargs":[]}', "json"),
        ('"a"', "portable_json"),
        ('{"positionalArgs":"ab"}', "portable_json"),
        ('{"namedArgs":1}', "portable_json"),
    ],
)
def test_text_that_holds_no_arguments_is_a_typed_error(text: str, name: str) -> None:
    with pytest.raises(DBOSDeserializationError, match="does not hold arguments"):
        plain.load_inputs(text, name)


# -- hostile text -----------------------------------------------------------------------------------------------------

hostile_text = (
    st.text()
    | json_values.map(lambda value: json.dumps(value, default=str))
    | st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode())
    | other_values.map(lambda value: base64.b64encode(pickle.dumps(value)).decode()[:-7])
)


@untimed
@given(hostile_text, st.sampled_from(["json", "py_pickle", "portable_json", None]))
@example("[" * 100_000, "json")
@example("[" * 100_000, "portable_json")
@example("9" * 10_000, "json")
@example("NaN", "json")
@example("1 2", "json")
@example('{"error":"ValueError","message":"a","args":[],"attributes":{"__class__":1,"args":2}}', "json")
@example('{"error":"ValueError","message":"a","args":[],"attributes":7}', "json")
@example('{"error":"OSError","message":"a","args":[{}],"notes":[7]}', "json")
@example('{"error":"DBOSMaxStepRetriesExceeded","message":"a","args":[],"errors":[7]}', "json")
@example('{"error":"PortableWorkflowError","message":"a","args":[],"attributes":{"message":7}}', "json")
@example('{"name":7,"message":null,"code":[]}', "portable_json")
@example(base64.b64encode(b"cos\nnonexistent\n.").decode(), "py_pickle")
@example('{"dbos:tuple":' * 50_000, "json")
@example('{"error":{"dbos:tuple":[]},"message":"a","args":[]}', "json")
@example('{"args":{"dbos:tuple":[]},"kwargs":{}}', "json")
def test_hostile_text_gives_a_value_or_a_typed_error(text: str, name: str | None) -> None:
    for load in (plain.load_value, plain.load_inputs, plain.load_error):
        try:
            loaded = load(text, name)
        except DBOSDeserializationError:
            continue
        if load == plain.load_error:
            assert isinstance(loaded, Exception)
            assert isinstance(str(loaded), str)


@pytest.mark.parametrize("name", ["json", "py_pickle", "portable_json", "unknown"])
def test_a_listing_shows_the_text_of_what_it_cannot_decode(name: str, dbos_log: pytest.LogCaptureFixture) -> None:
    damaged = "geheim, damaged"

    assert plain.try_load_value(damaged, name) == damaged
    assert plain.try_load_inputs(damaged, name) == damaged
    assert plain.try_load_error(damaged, name) == damaged
    assert [record.levelname for record in dbos_log.records] == ["WARNING"] * 3
    assert "geheim" not in dbos_log.text


@pytest.fixture
def dbos_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """Captured records of the logger ``dbos``, whether or not it propagates to the root."""
    logger = logging.getLogger("dbos")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_a_pickle_of_something_that_is_gone_says_what() -> None:
    text = base64.b64encode(b"cdbos._nowhere\nGone\n.").decode()

    with pytest.raises(DBOSDeserializationError, match=r"No module named 'dbos\._nowhere'"):
        plain.load_value(text, "py_pickle")


def test_an_unknown_format_is_not_available() -> None:
    with pytest.raises(TypeError, match=r"^Serialization custom_json is not available$"):
        plain.load_value("{}", "custom_json")


@pytest.mark.parametrize("kind", [PortableWorkflowError, WorkflowSerializationFormat, PickleSerializer, Serialization])
def test_a_pickle_names_the_package_of_our_classes_and_not_a_file_in_it(kind: type) -> None:
    text, name = plain.dump_value(kind)

    assert pickle.dumps(kind, protocol=0).startswith(f"cdbos._serialization\n{kind.__name__}\n".encode())
    assert plain.load_value(text, name) is kind


def test_the_annotations_of_a_portable_error_can_be_resolved() -> None:
    hints = get_type_hints(PortableWorkflowError)

    assert hints == {"message": str, "name": str, "code": int | str | None, "data": Any}


def test_a_screen_shows_json_and_never_unpickles() -> None:
    bomb = base64.b64encode(pickle.dumps(Bomb())).decode()

    assert load_for_display('{"a":1}', "json") == {"a": 1}
    assert load_for_display("[1]", "portable_json") == [1]
    assert load_for_display(None, None) is None
    assert load_for_display(bomb, "py_pickle") == f"<py_pickle, {len(bomb)} characters>"
    assert load_for_display("{", "json") == "<damaged json, 1 characters>"
    assert load_for_display("x", None) == "<unnamed format, 1 characters>"


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (1,)


# -- portable json ----------------------------------------------------------------------------------------------------


@untimed
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    )
)
@example("\ud83d")
def test_portable_text_is_accepted_by_databases(value: Any) -> None:
    text, name = plain.dump_value(value, PORTABLE)

    assert name == "portable_json"
    assert "\0" not in text
    text.encode()
    json.loads(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": "ä"}, '{"b":1,"a":"ä"}'),
        (datetime(2026, 1, 2, 3, 4, 5, 678999), '"2026-01-02T03:04:05.678Z"'),
        (datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2))), '"2026-01-02T03:04:05.000Z"'),
        (date(2026, 1, 2), '"2026-01-02"'),
        (Decimal("1.50"), '"1.50"'),
        (Decimal("1E+3"), '"1000"'),
        ((1, (2,)), "[1,[2]]"),
        ({3}, "[3]"),
        (Colour.RED, "1"),
        (Text("a"), '"a"'),
        (OrderedDict(a=[None]), '{"a":[null]}'),
    ],
    ids=repr,
)
def test_portable_values_have_the_documented_layout(value: Any, text: str) -> None:
    assert plain.dump_value(value, PORTABLE) == (text, "portable_json")


@pytest.mark.parametrize(
    ("value", "phrase"),
    [
        (b"a", "Object of type bytes is not portable JSON serializable"),
        ([object()], "Object of type object is not portable JSON serializable"),
        (math.nan, "Object of type float is not portable"),
        ({1: 2}, "keys of type int"),
        (10**5000, "value of type int"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=1))), "value of type datetime"),
    ],
    ids=["bytes", "object", "nan", "key", "int", "datetime"],
)
def test_a_value_without_a_portable_form_is_refused(value: Any, phrase: str) -> None:
    with pytest.raises(TypeError, match=phrase):
        plain.dump_value(value, PORTABLE)


def test_portable_text_of_other_writers_may_contain_spaces() -> None:
    assert plain.load_value('{ "a" : [1, 2] }', "portable_json") == {"a": [1, 2]}
    assert plain.load_value(' {"a": 1}\n', "json") == {"a": 1}


# -- formats ----------------------------------------------------------------------------------------------------------


def test_the_members_of_the_format_keep_their_values() -> None:
    assert PORTABLE.value == "portable"
    assert NATIVE.value == "native"
    assert DEFAULT.value == "None"
    assert DEFAULT != None  # noqa: E711 - it is not None, and does not equal it either


def test_native_is_always_pickle() -> None:
    assert plain.dump_value(1, NATIVE)[1] == "py_pickle"
    assert plain.load_value(*plain.dump_value([1], NATIVE)) == [1]


def test_no_format_means_the_default() -> None:
    assert plain.dump_value([1], None) == ("[1]", "json")
    assert plain.dump_inputs((), {}, None)[1] == "json"
    assert plain.dump_error(ValueError("a"), None)[1] == "json"


def test_a_format_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="yaml"):
        plain.dump_value(1, "yaml")  # type: ignore[arg-type] # what an untyped caller might do


@pytest.mark.parametrize(
    ("serializer", "name", "format"),
    [
        (None, "portable_json", PORTABLE),
        (None, "py_pickle", DEFAULT),
        (None, "json", DEFAULT),
        (None, None, DEFAULT),
        ("reversing", "py_pickle", NATIVE),
        ("reversing", "reversing", DEFAULT),
    ],
)
def test_a_workflow_goes_on_in_the_format_of_its_row(
    serializer: str | None, name: str | None, format: WorkflowSerializationFormat
) -> None:
    assert Serialization(Reversing() if serializer else None).format_for(name) is format


class Reversing(Serializer):
    """JSON backwards: text that no other format can read."""

    def serialize(self, data: Any) -> str:
        return json.dumps(data)[::-1]

    def deserialize(self, serialized_data: str) -> Any:
        return json.loads(serialized_data[::-1])

    def name(self) -> str:
        return "reversing"


def test_a_custom_serializer_stores_what_has_no_other_format() -> None:
    custom = Serialization(Reversing())

    assert custom.dump_value({"a": 1}) == ('}1 :"a"{', "reversing")
    assert custom.load_value('}1 :"a"{', "reversing") == {"a": 1}
    assert custom.load_value('}1 :"a"{', None) == {"a": 1}
    assert custom.load_inputs(*custom.dump_inputs((1, 2), {"a": 3})) == ((1, 2), {"a": 3})
    assert custom.dump_value((1,), NATIVE)[1] == "py_pickle"
    assert custom.dump_value((1,), PORTABLE) == ("[1]", "portable_json")


def test_rows_of_the_other_formats_stay_readable_beside_a_custom_serializer() -> None:
    custom = Serialization(Reversing())

    for format in (DEFAULT, NATIVE, PORTABLE):
        assert custom.load_value(*plain.dump_value([1, "a"], format)) == [1, "a"]


def test_an_error_that_a_custom_serializer_cannot_bring_back_is_portable() -> None:
    custom = Serialization(Reversing())

    stored = custom.dump_error(ValueError("a"))

    assert stored[1] == "portable_json"
    assert str(custom.load_error(*stored)) == "a"


def test_an_unnamed_row_is_a_pickle_unless_a_serializer_is_configured() -> None:
    text, _ = plain.dump_value((1,), NATIVE)

    assert plain.load_value(text, None) == (1,)


def test_a_custom_serializer_that_fails_to_read_gives_a_typed_error() -> None:
    with pytest.raises(DBOSDeserializationError, match="reversing"):
        Serialization(Reversing()).load_value("geheim", "reversing")


@pytest.mark.parametrize(
    ("made", "phrase"), [(b"bytes", "returned bytes instead of str"), ("a\0", "NUL"), ("\ud800", "surrogate")]
)
def test_a_custom_serializer_cannot_make_text_that_databases_refuse(made: Any, phrase: str) -> None:
    class Odd(Reversing):
        def serialize(self, data: Any) -> Any:
            return made

    with pytest.raises(TypeError, match=phrase):
        Serialization(Odd()).dump_value(1)


@pytest.mark.parametrize("name", ["json", "py_pickle", "portable_json"])
def test_a_custom_serializer_cannot_take_the_name_of_another_format(name: str) -> None:
    class Impostor(Reversing):
        def name(self) -> str:
            return name

    with pytest.raises(DBOSInitializationError, match=f"calls itself '{name}'"):
        Serialization(Impostor())


def test_a_serializer_without_a_name_is_called_custom() -> None:
    class Unnamed(Serializer):
        def serialize(self, data: Any) -> str:
            return str(data)

        def deserialize(self, serialized_data: str) -> Any:
            return serialized_data

    assert Serialization(Unnamed()).dump_value(1) == ("1", "custom_serializer")


def test_the_portable_serializer_can_be_the_default_for_everything() -> None:
    portable = Serialization(DBOSPortableJSONSerializer())

    assert portable.dump_value((1,)) == ("[1]", "portable_json")
    assert json.loads(portable.dump_inputs((1,), {})[0]) == {"positionalArgs": [1], "namedArgs": {}}
    assert isinstance(portable.load_error(*portable.dump_error(ValueError("a"))), PortableWorkflowError)


def test_the_pickle_serializer_can_be_the_default_for_everything() -> None:
    pickling = Serialization(PickleSerializer())

    assert pickling.dump_value(1)[1] == pickling.dump_inputs((1,), {})[1] == "py_pickle"
    assert pickling.dump_error(ValueError("a"))[1] == "py_pickle"
    assert pickling.load_value(*pickling.dump_value(1)) == 1


# -- allowed formats --------------------------------------------------------------------------------------------------


def test_a_pickle_is_not_loaded_where_it_is_not_allowed() -> None:
    text = base64.b64encode(pickle.dumps(Bomb())).decode()

    for load in (json_only.load_value, json_only.load_inputs, json_only.load_error):
        for name in ("py_pickle", None):
            with pytest.raises(DBOSSerializationNotAllowedError, match=r"allowed_serializers.*'py_pickle'"):
                load(text, name)
    assert json_only.try_load_value(text, "py_pickle") == text


@pytest.mark.parametrize("format", [DEFAULT, NATIVE])
def test_a_value_that_needs_pickle_is_not_stored_where_it_is_not_allowed(format: WorkflowSerializationFormat) -> None:
    with pytest.raises(DBOSSerializationNotAllowedError, match=r"value of type complex.*'allowed_serializers'"):
        json_only.dump_value(1 + 2j, format)


def test_where_json_is_not_allowed_every_value_is_pickled() -> None:
    pickle_only = Serialization(allowed=["py_pickle"])

    assert pickle_only.dump_value(1)[1] == "py_pickle"
    assert pickle_only.dump_error(ValueError("a"))[1] == "py_pickle"
    with pytest.raises(DBOSSerializationNotAllowedError, match="'json'"):
        pickle_only.load_value("1", "json")


def test_where_only_portable_json_is_allowed_exact_values_use_it() -> None:
    portable_only = Serialization(allowed=["portable_json"])

    assert portable_only.dump_value([1]) == ("[1]", "portable_json")
    assert portable_only.load_inputs(*portable_only.dump_inputs((1,), {"a": 2})) == ((1,), {"a": 2})
    with pytest.raises(DBOSSerializationNotAllowedError):
        portable_only.dump_value((1,))
    assert portable_only.dump_error(ValueError("a"))[1] == "portable_json"


def test_portable_json_is_always_allowed() -> None:
    assert json_only.load_value(*json_only.dump_value((1,), PORTABLE)) == [1]


@pytest.mark.parametrize(
    ("serializer", "allowed", "phrase"),
    [
        (None, [], "is empty"),
        (None, ["pickle"], "did you mean 'py_pickle'"),
        (None, ["yaml"], "unknown format 'yaml'"),
        (Reversing(), ["json"], "does not list 'reversing'"),
    ],
)
def test_a_list_of_allowed_formats_that_makes_no_sense_is_refused(
    serializer: Serializer | None, allowed: list[str], phrase: str
) -> None:
    with pytest.raises(DBOSInitializationError, match=phrase):
        Serialization(serializer, allowed)


# -- sizes ------------------------------------------------------------------------------------------------------------


def limited(*, max_bytes: int = 1000, warn_bytes: int = 1000) -> Serialization:
    return Serialization(limits=SizeLimits(max_bytes, warn_bytes))


@pytest.mark.parametrize("format", [DEFAULT, NATIVE, PORTABLE])
def test_a_value_larger_than_the_limit_is_refused_by_name_size_and_limit(format: WorkflowSerializationFormat) -> None:
    serialization = limited()

    with pytest.raises(DBOSPayloadTooLargeError, match=r"result of step 'load'.*1,000.*'max_payload_bytes'") as caught:
        serialization.dump_value("x" * 1001, format, what="result of step", name="load")

    assert caught.value.what == "result of step 'load'"
    assert caught.value.size > 1000
    assert caught.value.limit == 1000


@pytest.mark.parametrize(("character", "size"), [("x", 1), ("ä", 2), ("€", 3), ("🦊", 4)])
def test_sizes_are_those_of_the_text_in_the_database(character: str, size: int) -> None:
    fitting = (1000 - len('""')) // size

    serialization = limited()

    assert serialization.dump_value(character * fitting)[1] == "json"
    with pytest.raises(DBOSPayloadTooLargeError):
        serialization.dump_value(character * (fitting + 1))


@pytest.mark.parametrize("kwargs", [{}, {"text": "x" * 1000}])
def test_arguments_are_limited_together(kwargs: dict[str, Any]) -> None:
    args = [] if kwargs else ["x" * 400, "y" * 400, "z" * 400]

    with pytest.raises(DBOSPayloadTooLargeError, match="input of workflow 'load'"):
        limited().dump_inputs(args, kwargs, name="load")


def test_large_values_are_warned_of_once_for_each_name(dbos_log: pytest.LogCaptureFixture) -> None:
    serialization = limited(max_bytes=1_000_000)

    for name in ("a", "a", "b"):
        serialization.dump_value("secret " * 200, what="message", name=name)

    warnings = [record.getMessage() for record in dbos_log.records]
    assert [warning.split(" takes")[0] for warning in warnings] == ["The message 'a'", "The message 'b'"]
    assert "secret" not in dbos_log.text


@pytest.mark.parametrize("format", [DEFAULT, PORTABLE])
@pytest.mark.parametrize("allowed", [None, ["json"]])
def test_an_error_that_is_too_large_is_recorded_by_the_beginning_of_its_message(
    format: WorkflowSerializationFormat, allowed: list[str] | None
) -> None:
    serialization = Serialization(allowed=allowed, limits=SizeLimits(50_000, 50_000))
    error = OrderError("x" * 100_000, 8)

    loaded = serialization.load_error(*serialization.dump_error(error, format))

    assert isinstance(loaded, PortableWorkflowError)
    assert loaded.name == "OrderError"
    assert str(loaded) == "x" * 10_000 + " … (90,000 characters more were not recorded)"


def test_an_error_with_too_large_data_keeps_its_message() -> None:
    error = WebError("teapot")
    vars(error)["details"] = {"page": "x" * 100_000}

    text, name = limited(max_bytes=50_000).dump_error(error, PORTABLE)

    assert name == "portable_json"
    assert json.loads(text) == {"name": "WebError", "message": "teapot", "code": None}


# -- errors -----------------------------------------------------------------------------------------------------------


class OrderError(Exception):
    """An ordinary error of an application."""

    def __init__(self, message: str, code: int = 7) -> None:
        super().__init__(message)
        self.code = code


class NeedsTwo(Exception):
    def __init__(self, order: int, reason: str) -> None:
        super().__init__(f"{order}: {reason}")


class HoldsLock(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class BrokenStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("broken")


class BrokenReduce(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("broken")


class BrokenAttributes(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("broken")

    @property
    def code(self) -> int:
        raise RuntimeError("broken")

    @property
    def data(self) -> object:
        return object()


class ComesBackDifferent(Exception):
    def __reduce__(self) -> Any:
        return ValueError, ("other",)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a", 1),
        KeyError("a"),
        KeyError(("a", date(2026, 1, 2))),
        FileNotFoundError(2, "No such file", "a.txt"),
        TimeoutError(),
        DBOSQueueDeduplicatedError("wf-1", "mail", "key"),
        DBOSUnexpectedStepError("wf-1", 3, "a", "b"),
        DBOSException("a"),
        PortableWorkflowError("a", "Error", 7, {"b": [1]}),
    ],
    ids=repr,
)
def test_an_error_of_a_plain_kind_is_readable_json_and_comes_back_the_same(error: Exception) -> None:
    stored = json_only.dump_error(error)

    loaded = json_only.load_error(*stored)

    assert stored[1] == "json"
    assert json.loads(stored[0])["message"] == str(error)
    assert type(loaded) is type(error)
    assert loaded.args == error.args
    assert str(loaded) == str(error)
    assert vars(loaded) == vars(error)


@pytest.mark.parametrize(
    "error",
    [
        NeedsTwo(7, "empty"),
        BrokenReduce("a"),
        BrokenAttributes("a"),
        ComesBackDifferent("a"),
        OrderError("a", 8),
        ValueError(1 + 2j),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
    ],
    ids=repr,
)
def test_any_other_error_that_comes_back_the_same_is_pickled(error: Exception) -> None:
    stored = plain.dump_error(error)

    loaded = plain.load_error(*stored)

    assert stored[1] == "py_pickle"
    assert type(loaded) is type(error)
    assert loaded.args == error.args
    assert vars(loaded) == vars(error)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (HoldsLock("a"), "a"),
        (BrokenStr("a"), "An error of type BrokenStr, whose text cannot be shown (RuntimeError)"),
        (type("Local", (Exception,), {})("a"), "a"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_that_does_not_come_back_is_recorded_by_name_and_message(error: Exception, message: str) -> None:
    stored = plain.dump_error(error)

    loaded = plain.load_error(*stored)

    assert stored[1] == "portable_json"
    assert isinstance(loaded, PortableWorkflowError)
    assert loaded.name == type(error).__name__
    assert str(loaded) == message


def test_an_error_is_recorded_by_name_and_message_where_pickle_is_not_allowed() -> None:
    loaded = json_only.load_error(*json_only.dump_error(OrderError("empty", 8)))

    assert isinstance(loaded, PortableWorkflowError)
    assert (loaded.name, loaded.message, loaded.code) == ("OrderError", "empty", 8)


@untimed
@given(any_text)
def test_the_message_of_an_error_may_be_any_text(message: str) -> None:
    for format in (DEFAULT, NATIVE, PORTABLE):
        text, name = plain.dump_error(OrderError(message), format)

        text.encode()
        assert "\0" not in text
        assert isinstance(plain.load_error(text, name), Exception)


def test_exhausted_retries_keep_their_class_when_an_inner_error_cannot_be_kept() -> None:
    for serialization in (plain, json_only):
        error = DBOSMaxStepRetriesExceeded("fetch", 2, [ValueError("a"), HoldsLock("b")])

        loaded = serialization.load_error(*serialization.dump_error(error))

        assert isinstance(loaded, DBOSMaxStepRetriesExceeded)
        assert str(loaded) == str(error)
        assert [type(inner) for inner in loaded.errors] == [ValueError, PortableWorkflowError]
        assert [str(inner) for inner in loaded.errors] == ["a", "b"]


def test_exhausted_retries_keep_inner_errors_of_the_application() -> None:
    error = DBOSMaxStepRetriesExceeded("fetch", 1, [OrderError("a", 9)])

    loaded = plain.load_error(*plain.dump_error(error))

    assert isinstance(loaded, DBOSMaxStepRetriesExceeded)
    assert isinstance(loaded.errors[0], OrderError)


def test_retries_that_hold_themselves_are_recorded_somehow() -> None:
    error = DBOSMaxStepRetriesExceeded("fetch", 1, [])
    error.errors.append(error)

    loaded = json_only.load_error(*json_only.dump_error(error))

    assert "Step fetch" in str(loaded)


@pytest.mark.parametrize("error", [ValueError("a"), OrderError("a")], ids=["json", "pickle"])
def test_notes_and_the_texts_of_causes_are_kept_without_touching_the_error(error: Exception) -> None:
    error.add_note("while paying")
    error.__cause__ = KeyError("inner")
    error.__cause__.__cause__ = BrokenStr()

    loaded = plain.load_error(*plain.dump_error(error))

    assert loaded.__notes__ == [
        "while paying",
        "Caused by KeyError: 'inner'\n"
        "Caused by BrokenStr: An error of type BrokenStr, whose text cannot be shown (RuntimeError)",
    ]
    assert error.__notes__ == ["while paying"]


def test_a_replayed_error_is_recorded_again_unchanged() -> None:
    error = ValueError("a")
    error.__cause__ = KeyError("inner")

    once = plain.dump_error(error)

    assert plain.dump_error(plain.load_error(*once)) == once


def test_a_portable_error_has_the_documented_layout() -> None:
    text, name = plain.dump_error(OrderError("größe", 7), PORTABLE)

    assert (text, name) == ('{"name":"OrderError","message":"größe","code":7}', "portable_json")


class WebError(Exception):
    status = "404"
    code: Any = 1.5
    details: ClassVar = {"at": date(2026, 1, 2)}

    def data(self) -> None: ...


def test_a_portable_error_carries_the_first_suitable_code_and_data() -> None:
    text, _ = plain.dump_error(WebError("gone"), PORTABLE)

    assert json.loads(text) == {"name": "WebError", "message": "gone", "code": "404", "data": {"at": "2026-01-02"}}


def test_a_portable_error_always_writes_a_code_and_leaves_out_data_it_cannot_write() -> None:
    error = ValueError("a")
    error.data = object()  # type: ignore[attr-defined] # as users do

    text, _ = plain.dump_error(error, PORTABLE)

    assert json.loads(text) == {"name": "ValueError", "message": "a", "code": None}


def test_a_portable_error_of_another_program_is_passed_on_unchanged() -> None:
    text = '{"name":"TypeError","message":"x is undefined","code":"E7","data":[1]}'

    loaded = plain.load_error(text, "portable_json")

    assert (str(loaded), vars(loaded)) == (
        "x is undefined",
        {"message": "x is undefined", "name": "TypeError", "code": "E7", "data": [1]},
    )
    assert plain.dump_error(loaded, PORTABLE)[0] == text


@pytest.mark.parametrize(
    ("text", "name"), [("7", "json"), ('"a"', "portable_json"), (plain.dump_value(1, NATIVE)[0], "py_pickle")]
)
def test_text_that_holds_no_error_is_a_typed_error(text: str, name: str) -> None:
    with pytest.raises(DBOSDeserializationError, match="does not hold an exception"):
        plain.load_error(text, name)


def test_an_error_of_a_later_release_comes_back_by_name_and_message() -> None:
    loaded = plain.load_error('{"error":"DBOSFutureError","message":"m","args":["m"]}', "json")

    assert isinstance(loaded, PortableWorkflowError)
    assert (loaded.name, loaded.message) == ("DBOSFutureError", "m")


def test_a_portable_error_survives_pickling_whichever_way_it_was_made() -> None:
    error = PortableWorkflowError("m", name="n", data={"a": 1})
    error.add_note("note")

    copy = pickle.loads(pickle.dumps(error))

    assert (str(copy), vars(copy)) == ("m", vars(error))
    assert {error: 1}[error] == 1
