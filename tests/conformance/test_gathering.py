"""Peeks of coroutines at workflows: gathered into few reads, each answered, and failing alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from dbos._error import DBOSDatabaseUnavailableError
from dbos._sys_db import SystemDatabase
from dbos._sysdb.connection import Connection
from dbos._sysdb.gathering import GatheredReads
from dbos._sysdb.rows import MUST_READ, Peeked
from dbos._sysdb.stores.workflow_status import MAX_SMALL
from tests.conformance.values import begin, outcome, row, start, update


async def test_a_peek_tells_what_has_ended_what_has_not_and_what_is_to_be_read(db: SystemDatabase) -> None:
    for workflow_id in ("running", "small", "large"):
        begin(db, start(workflow_id))
    db.commit(outcome("small"))
    db.commit(outcome("large"))
    update(db, "large", output="x" * (MAX_SMALL + 1))

    peeked = await asyncio.gather(*map(db.peek_async, ("running", "small", "large", "unknown")))

    assert peeked == [
        Peeked(is_settled=False),
        Peeked(is_settled=True, row=row(db, "small")),
        MUST_READ,
        Peeked(is_settled=True),
    ]


class Slow:
    """A verb that waits in its first read, and refuses one key."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.may_end = threading.Event()
        self.reads: list[list[str]] = []

    def __call__(self, connection: Connection, keys: Sequence[str]) -> dict[str, int]:
        self.reads.append(list(keys))
        self.began.set()
        self.may_end.wait(30)
        if "refused" in keys:
            raise ValueError("no such key")
        return {key: len(key) for key in keys}


async def gathered(db: SystemDatabase, *keys: str) -> tuple[Slow, list[Any]]:
    """Ask for the key ``first``, and for the others while that is being read."""
    verb = Slow()
    reads = GatheredReads(db._readers, verb)
    first = reads.ask("first")
    await asyncio.to_thread(verb.began.wait, 30)
    others = [reads.ask(key) for key in keys]
    verb.may_end.set()
    return verb, await asyncio.gather(first, *others, return_exceptions=True)


async def test_what_is_asked_during_a_read_is_asked_together_in_the_next(db: SystemDatabase) -> None:
    verb, answers = await gathered(db, "a", "bb", "ccc", "a")

    assert answers == [5, 1, 2, 3, 1]
    assert verb.reads == [["first"], ["a", "bb", "ccc", "a"]]


async def test_a_key_that_is_refused_fails_alone(db: SystemDatabase) -> None:
    _, answers = await gathered(db, "a", "refused", "bb")

    assert [answers[0], answers[1], answers[3]] == [5, 1, 2]
    assert isinstance(answers[2], ValueError)


async def test_an_asker_that_gives_up_does_not_disturb_the_others(db: SystemDatabase) -> None:
    verb = Slow()
    reads = GatheredReads(db._readers, verb)
    first, second = reads.ask("first"), reads.ask("second")
    first.cancel()
    verb.may_end.set()

    assert await second == 6


async def test_if_no_thread_can_be_had_askers_are_told_so_and_others_are_answered_later(
    db: SystemDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = GatheredReads(db._readers, lambda connection, keys: dict.fromkeys(keys, 1))
    with monkeypatch.context() as patched:
        patched.setattr(db._readers, "submit", lambda func: (_ for _ in ()).throw(RuntimeError("no thread")))

        with pytest.raises(RuntimeError, match="no thread"):
            reads.ask("a")

    assert await reads.ask("b") == 1


async def test_a_closed_database_answers_with_an_error(db: SystemDatabase) -> None:
    db.close()

    with pytest.raises(DBOSDatabaseUnavailableError):
        await db.peek_async("w")


async def test_an_outage_fails_each_asker_with_an_error_of_its_own(db: SystemDatabase) -> None:
    def refuse(connection: Connection, keys: Sequence[str]) -> dict[str, int]:
        reads.append(keys)
        raise DBOSDatabaseUnavailableError("away")

    reads: list[Sequence[str]] = []
    asked = GatheredReads(db._readers, refuse)

    answers = await asyncio.gather(*map(asked.ask, "abc"), return_exceptions=True)

    assert all(isinstance(answer, DBOSDatabaseUnavailableError) for answer in answers)
    assert len({id(answer) for answer in answers}) == 3
    assert len(reads) <= 2
