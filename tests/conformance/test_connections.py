"""Opening and closing a system database; what it leaves behind, and what it does when it cannot be opened."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dbos._clock import SystemClock
from dbos._dbos_config import Settings
from dbos._error import DBOSDatabaseUnavailableError
from dbos._sys_db import SystemDatabase
from dbos._sysdb.connection import Connection
from dbos._sysdb.dialects import open_dialect
from tests.conformance.values import begin, record, start, step
from tests.unit.memory_writer import eventually

OpenDatabase = Callable[..., SystemDatabase]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")


def threads_of_ours() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("dbos-")}


@needs_proc
def test_no_thread_and_no_descriptor_is_left_after_closing(settings: Settings) -> None:
    before, threads_before = descriptors(), threads_of_ours()

    async def read(db: SystemDatabase) -> None:
        await asyncio.gather(*(db.read_async(db.versions.list) for _ in range(20)))
        await db.submit(start("async", owner_instance=None))

    for _ in range(3):
        db = SystemDatabase(settings, SystemClock(), "tag")
        db.listen(lambda topic: None)
        db.publish("queue:mail")
        begin(db, start(owner_instance=None))
        asyncio.run(read(db))
        with db.exclusive("a transaction"):
            pass
        db.close()
        db.close()

    assert threads_of_ours() == threads_before
    assert descriptors() == before


@needs_proc
@pytest.mark.parametrize("failing", ["open_reader", "open_writer", "second writer", "thread"])
def test_what_was_opened_is_closed_if_the_rest_cannot_be(
    settings: Settings, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    SystemDatabase(settings, SystemClock(), "tag").close()
    before, threads_before = descriptors(), threads_of_ours()
    dialect = open_dialect(settings, "tag")
    if failing == "second writer" and not dialect.has_second_writer():
        pytest.skip("it has one writer")
    if failing == "open_reader" and not dialect.has_own_clock:
        pytest.skip("nothing is read while it is opened")
    opened = 0
    open_writer = dialect.open_writer

    def fail(*_: object, **__: object) -> object:
        raise RuntimeError("cannot be opened")

    def fail_second(**given: int | None) -> object:
        nonlocal opened
        opened += 1
        return open_writer(**given) if opened == 1 else fail()

    if failing == "second writer":
        monkeypatch.setattr(dialect, "open_writer", fail_second)
    elif failing == "thread":
        monkeypatch.setattr(threading.Thread, "start", fail)
    else:
        monkeypatch.setattr(dialect, failing, fail)

    with pytest.raises(RuntimeError, match="cannot be opened"):
        SystemDatabase(settings, SystemClock(), "tag", dialect=dialect)
    monkeypatch.undo()

    assert threads_of_ours() == threads_before
    assert descriptors() == before


def test_a_closed_database_refuses_reads_and_writes(db: SystemDatabase) -> None:
    async def read() -> None:
        await db.read_async(db.versions.list)

    db.close()

    with pytest.raises(DBOSDatabaseUnavailableError):
        db.commit(start())
    with pytest.raises(DBOSDatabaseUnavailableError):
        db.read(db.versions.list)
    with pytest.raises(DBOSDatabaseUnavailableError):
        asyncio.run(read())


def test_a_read_that_fails_by_itself_is_not_repeated(db: SystemDatabase) -> None:
    attempts: list[int] = []

    def verb(connection: Connection) -> None:
        attempts.append(1)
        connection.all("SELECT nonsense FROM nowhere")

    with pytest.raises(Exception, match="nowhere"):
        db.read(verb)

    assert len(attempts) == 1


def test_many_threads_read_at_once(db: SystemDatabase) -> None:
    begin(db, start())
    found: list[object] = []

    def read() -> None:
        found.extend(db.read(db.workflows.get, "w") for _ in range(10))

    threads = [threading.Thread(target=read) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 300
    assert None not in found


def test_a_reader_cannot_write(settings: Settings, open_database: OpenDatabase) -> None:
    db = open_database()

    def verb(connection: Connection) -> None:
        connection.run("DELETE FROM dbos.workflow_status")

    if settings.is_sqlite:
        with pytest.raises(Exception, match="readonly"):
            db.read(verb)


def test_a_commit_of_another_process_is_heard(db: SystemDatabase, open_database: OpenDatabase) -> None:
    other = open_database("theirs")
    heard: list[str | None] = []
    db.listen(heard.append)
    eventually(lambda: heard != [] or settings_are_sqlite(db), "the first look")
    heard.clear()

    begin(other, start("w", owner_instance="theirs"))
    other.listen(lambda topic: None)
    other.publish("queue:mail")

    eventually(lambda: heard != [], "the wake-up")
    assert heard[0] in (None, "queue:mail")


def settings_are_sqlite(db: SystemDatabase) -> bool:
    return db.dialect.name == "sqlite"


def test_ones_own_commits_are_not_heard(db: SystemDatabase) -> None:
    heard: list[str | None] = []
    db.listen(heard.append)
    if not settings_are_sqlite(db):
        eventually(lambda: heard == [None])
    heard.clear()

    for number in range(5):
        begin(db, start(f"w{number}"))
        db.publish(f"workflow:{number}")
        time.sleep(0.02)  # a listener that heard them would do so by now

    assert heard == []


def test_a_wakeup_that_raises_does_not_end_the_listener(db: SystemDatabase, open_database: OpenDatabase) -> None:
    other = open_database("theirs")
    other.listen(lambda topic: None)
    heard: list[str | None] = []

    def broken(topic: str | None) -> None:
        heard.append(topic)
        raise RuntimeError("no")

    db.listen(broken)
    for number in range(3):
        count = len(heard)
        begin(other, start(f"w{number}", owner_instance="theirs"))
        other.publish("queue:mail")
        eventually(lambda count=count: len(heard) > count, "another wake-up")  # type: ignore[misc]  # binds it now


def test_a_transaction_that_raises_leaves_nothing_and_the_writer_usable(db: SystemDatabase) -> None:
    begin(db, start())

    def verb(connection: Connection) -> None:
        connection.run("UPDATE dbos.workflow_status SET name = 'changed'")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        db.change(verb)

    row = db.read(db.workflows.get, "w")
    assert row is not None
    assert row.name == "order"
    assert record(db, step()).status == "PENDING"
