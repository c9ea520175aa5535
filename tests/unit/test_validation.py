"""Arguments checked and converted by a function's annotations."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict  # which pydantic asks for before Python 3.12

from dbos import make_pydantic_args_validator, pydantic_args_validator
from dbos._error import DBOSException


class Line(BaseModel):
    sku: str
    count: Annotated[int, Field(gt=0)]


@dataclass
class Address:
    street: str
    since: date


class Colour(Enum):
    RED = "red"


class Paint(TypedDict):
    colour: Colour


class Unsigned:
    __signature__ = "none"

    def __call__(self) -> None: ...


class Opaque:
    """A class that pydantic knows nothing of."""


def ship(order: Later, to: Address, *, by: datetime | None = None, price: Decimal = Decimal(0)) -> None: ...


class Later(BaseModel):
    lines: list[Line]


def varied(first: int, /, *rest: date, mode: Literal["a", "b"] = "a", **others: float) -> None: ...


def unannotated(a, b: Any = None, opaque: Opaque | None = None) -> None:  # type: ignore[no-untyped-def]
    pass


def painted(paint: Paint, pairs: dict[str, tuple[int, ...]]) -> None: ...


opaque = Opaque()
LINE = {"sku": "a", "count": 1}
ORDER = {"lines": [LINE]}
MADE = Later(lines=[Line(sku="a", count=1)])
TO = {"street": "b", "since": "2026-01-02"}
HOME = Address("b", date(2026, 1, 2))


@pytest.mark.parametrize(
    ("func", "args", "kwargs", "expected"),
    [
        (ship, (ORDER, TO), {}, ((MADE, HOME), {})),
        (ship, (MADE, HOME), {"by": None}, ((MADE, HOME), {"by": None})),
        (
            ship,
            (),
            {"to": TO, "order": ORDER, "by": "2026-01-02T03:04:05Z", "price": "1.50"},
            (
                (),
                {"to": HOME, "order": MADE, "by": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "price": Decimal("1.50")},
            ),
        ),
        (varied, ("1",), {}, ((1,), {})),
        (
            varied,
            (1, "2026-01-02"),
            {"mode": "b", "weight": "2.5", "first": 3},
            ((1, date(2026, 1, 2)), {"mode": "b", "weight": 2.5, "first": 3.0}),
        ),
        (unannotated, ("1", [2], opaque), {}, (("1", [2], opaque), {})),
        (
            painted,
            ({"colour": "red"}, {"a": [1, "2"]}),
            {},
            (({"colour": Colour.RED}, {"a": (1, 2)}), {}),
        ),
    ],
)
def test_arguments_become_what_the_annotations_say(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any
) -> None:
    validate = make_pydantic_args_validator(func)

    assert validate(args, kwargs) == expected
    assert validate(*expected) == expected


@pytest.mark.parametrize(
    ("func", "args", "kwargs", "lines"),
    [
        (ship, (), {}, ["Missing required argument: 'order'", "Missing required argument: 'to'"]),
        (
            ship,
            ({"lines": [LINE, {"sku": "a", "count": 0}]},),
            {"to": {"street": "b"}, "by": "soon"},
            [
                "Argument 'order' (position 0): lines.1.count: Input should be greater than 0",
                "Argument 'to': since: Field required",
                "Argument 'by': Input should be a valid datetime",
            ],
        ),
        (ship, (ORDER, TO, "more"), {}, ["Too many arguments: 3 positional ones, and it takes 2"]),
        (ship, (ORDER, TO), {"to": TO}, ["Argument 'to': it is given by position as well"]),
        (ship, (ORDER, TO), {"cost": 1}, ["Unexpected argument: 'cost'"]),
        (varied, (), {"first": 1}, ["Missing required argument: 'first'"]),
        (
            varied,
            (1, "today"),
            {"mode": "c", "weight": "much"},
            [
                "Argument 'rest' (position 1): Input should be a valid date",
                "Argument 'mode': Input should be 'a' or 'b'",
                "Argument 'weight': Input should be a valid number",
            ],
        ),
        (
            unannotated,
            (1, 2, "no instance"),
            {},
            ["Argument 'opaque' (position 2): Input should be an instance of Opaque"],
        ),
    ],
)
def test_arguments_that_do_not_fit_are_listed(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], lines: list[str]
) -> None:
    with pytest.raises(ValueError, match="Argument validation failed for workflow:") as caught:
        make_pydantic_args_validator(func)(args, kwargs)

    told = str(caught.value).splitlines()[1:]
    assert len(told) == len(lines)
    for line, expected in zip(told, lines, strict=True):
        assert line.strip().startswith(expected)


def test_the_message_holds_no_value() -> None:
    with pytest.raises(ValueError, match="validation failed") as caught:
        make_pydantic_args_validator(ship)(("geheim", {"street": ["geheim"], "since": "geheim"}), {"by": "geheim"})

    assert "geheim" not in str(caught.value)


class Depot:
    def store(self, count: int) -> None: ...

    @classmethod
    def build(cls, count: int) -> None: ...

    @staticmethod
    def open(count: int) -> None: ...


@pytest.mark.parametrize(
    "func",
    [Depot.store, Depot.build, Depot.open, Depot().store],
    ids=["function", "class method", "static method", "bound"],
)
def test_the_receiver_of_a_method_is_no_argument(func: Callable[..., Any]) -> None:
    assert make_pydantic_args_validator(func)(("7",), {}) == ((7,), {})


def test_annotations_that_cannot_be_resolved_are_named() -> None:
    def lost(value: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(TypeError, match="lost cannot be validated: name 'Nowhere' is not defined"):
        make_pydantic_args_validator(lost)((1,), {})


def test_the_marker_is_no_validator_itself() -> None:
    with pytest.raises(TypeError, match=r"validate_args=.*make_pydantic_args_validator"):
        pydantic_args_validator((1,), {})


def test_without_pydantic_a_validator_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)

    with pytest.raises(DBOSException, match=r"pydantic dependency not found. Please install pydantic"):
        make_pydantic_args_validator(ship)


def test_something_without_a_signature_is_refused() -> None:
    with pytest.raises(DBOSException, match="has no signature"):
        make_pydantic_args_validator(Unsigned())
