"""How long finished workflows are kept: the policy as users write it, checked once, and as retention obeys it."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypedDict

__all__ = ["FOREVER", "RetentionConfig", "RetentionPolicy", "RetentionRule", "Rule"]

INTERVAL_S = 3600.0
BATCH_SIZE = 1000  # workflows in one transaction, at most: how many it really is follows from how long they take
MAX_BATCH_SIZE = 10_000
MAX_AGE_S = 1000 * 366 * 24 * 3600.0  # who wants to keep for longer says "forever"
MAX_COUNT = 1_000_000  # the times of so many completions are held in memory, for each rule: some 40 MB
FOREVER = "forever"


class RetentionRule(TypedDict, total=False):
    """Which finished workflows are kept; what is in excess of either limit is deleted."""

    max_age: timedelta | float
    """How long after its end a workflow is kept: a ``timedelta``, or seconds."""
    max_count: int
    """How many workflows are kept, the last to end: 1,000,000 at most, which take some 40 MB of memory during a run."""


class RetentionConfig(RetentionRule, total=False):
    """How long finished workflows are kept; without ``max_age`` and ``max_count``, only those in ``workflows`` go.

    Example:
        ```python
        retention: RetentionConfig = {
            "max_age": timedelta(days=30),
            "workflows": {
                "heartbeat": {"max_age": timedelta(hours=1)},
                "checkout": {"max_age": timedelta(days=365), "max_count": 1_000_000},
                "audit": "forever",
            },
        }
        ```
    """

    workflows: Mapping[str, RetentionRule | Literal["forever"]]
    """For workflows of these names, this instead: another rule, or ``"forever"``."""
    history_max_age: timedelta | float
    """How long the decisions of schedules and the management actions are kept. They are everybody's: in a database that
    applications share, those of all of them go. Default: for ever."""
    interval_s: float
    """Seconds between runs in the background, whichever process makes them. Default: 3600."""
    batch_size: int
    """How many workflows are deleted in one transaction at most. Default: 1000."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Which finished workflows are kept; a limit that is None is none."""

    max_age_ms: int | None = None
    max_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """What retention does; a rule that is None keeps for ever."""

    general: Rule | None
    by_name: Mapping[str, Rule | None]
    history_max_age_ms: int | None = None
    interval_s: float = INTERVAL_S
    batch_size: int = BATCH_SIZE

    @classmethod
    def of(cls, config: object) -> RetentionPolicy:
        """The policy that users write as a :class:`RetentionConfig`.

        Raises:
            ValueError: it has keys that are unknown or values that cannot be used, or keeps everything.
        """
        given = _given(config, RetentionConfig, "it")
        names = given.get("workflows", {})
        if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names):
            raise ValueError("'workflows' must be a dictionary with the names of workflows for keys")
        policy = cls(
            general=_rule({key: given[key] for key in RetentionRule.__annotations__ if key in given}, "it"),
            by_name={name: _named_rule(name, rule) for name, rule in names.items()},
            history_max_age_ms=_age_ms(given, "history_max_age"),
            interval_s=_interval_s(given),
            batch_size=_whole(given, "batch_size", 1, MAX_BATCH_SIZE) or BATCH_SIZE,
        )
        if not policy.rules and policy.history_max_age_ms is None:
            raise ValueError("it would delete nothing: give 'max_age', 'max_count', 'workflows' or 'history_max_age'")
        return policy

    @property
    def rules(self) -> list[Rule]:
        """All rules by which workflows are deleted."""
        return [rule for rule in (self.general, *self.by_name.values()) if rule is not None]

    def rule_of(self, name: str | None) -> Rule | None:
        """The rule for workflows of a name."""
        return self.general if name is None else self.by_name.get(name, self.general)

    def digest(self) -> str:
        """What tells it from other policies, however these are written."""
        rules = (self.general, sorted(self.by_name.items(), key=lambda item: item[0]))
        return hashlib.sha256(repr(rules).encode()).hexdigest()[:16]


def _given(config: object, kind: Any, what: str) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise ValueError(f"{what} must be a dictionary, not {type(config).__name__}")
    known = [*kind.__annotations__]
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, known))}"
            raise ValueError(f"{what} has an unknown key {key!r}: {advice}")
    return {key: value for key, value in config.items() if value is not None}


def _named_rule(name: str, rule: object) -> Rule | None:
    if rule == FOREVER:
        return None
    what = f"the rule for workflow {name!r}"
    if not isinstance(rule, Mapping):
        raise ValueError(f"{what} must be a dictionary or 'forever', not {rule!r}")
    found = _rule(_given(rule, RetentionRule, what), what)
    if found is None:
        raise ValueError(f"{what} has no limit: give 'max_age' or 'max_count', or 'forever' in its place")
    return found


def _rule(given: Mapping[str, Any], what: str) -> Rule | None:
    try:
        rule = Rule(_age_ms(given, "max_age"), _whole(given, "max_count", 0, MAX_COUNT))
    except ValueError as error:
        raise ValueError(str(error) if what == "it" else f"{error} in {what}") from None
    return None if rule == Rule() else rule


def _age_ms(given: Mapping[str, Any], key: str) -> int | None:
    value = given.get(key)
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_AGE_S:
        raise ValueError(f"{key!r} must be a timedelta or a number of seconds that is not negative, not {value!r}")
    return math.ceil(seconds * 1000)


def _interval_s(given: Mapping[str, Any]) -> float:
    value = given.get("interval_s", INTERVAL_S)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"'interval_s' must be a positive number of seconds, not {value!r}")
    return float(value)


def _whole(given: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    value = given.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{key!r} must be a whole number from {least} to {most}, not {value!r}")
    return value
