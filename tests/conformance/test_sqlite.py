"""What only SQLite does: the file and its log, other processes on it, our own checkpoints."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from dbos import DBOSConfig
from dbos._clock import SystemClock
from dbos._dbos_config import Settings
from dbos._error import DBOSDatabaseUnavailableError
from dbos._sys_db import SystemDatabase
from dbos._sysdb.connection import Connection
from dbos._sysdb.dialects import sqlite
from dbos._sysdb.dialects.sqlite import checkpoints
from dbos._sysdb.dialects.sqlite import writer as writer_module
from dbos._sysdb.dialects.sqlite.inotify import FileWatch
from dbos._sysdb.dialects.sqlite.listener import SQLiteListener
from dbos._sysdb.operations import StepRecorded
from tests.conformance.values import begin, outcome, record, row, start, status, step
from tests.unit.memory_writer import eventually

OpenDatabase = Callable[..., SystemDatabase]

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""

WRITE = """
import sys
from dbos._clock import SystemClock
from dbos._dbos_config import process_config
from dbos._sys_db import SystemDatabase
from dbos._sysdb.dialects.sqlite import checkpoints
from tests.conformance.values import start

checkpoints.CHECKPOINT_BYTES = int(sys.argv[3])
settings = process_config({"name": "test-app", "system_database_url": sys.argv[1]}, {})
db = SystemDatabase(settings, SystemClock(), "writer")
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    assert db.commit(start(f"theirs {number}", inputs="x" * 3000, owner_instance=None))[0].created
db.close()
"""


OPEN_WITHOUT_RIGHTS = """
import os, sys
from dbos._clock import SystemClock
from dbos._dbos_config import process_config
from dbos._sys_db import SystemDatabase

def open_database(path):
    settings = process_config({"name": "test-app", "system_database_url": f"sqlite:///{path}"}, {})
    SystemDatabase(settings, SystemClock(), "tag").close()

path, kind = sys.argv[1:]
folder = os.path.dirname(path)
open_database(path)  # it exists, and everything is imported
os.chmod(folder, 0o555 if kind == "a folder" else 0o777)
os.chmod(path, 0o444 if kind == "a file" else 0o666)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for each in (path, folder + "/another.sqlite"):
    try:
        open_database(each)
    except Exception as error:
        print(type(error).__name__, str(error).replace("\\n", " "))
    else:
        print("opened")
"""


@pytest.fixture
def config(sqlite_url: str) -> DBOSConfig:
    return {"name": "test-app", "system_database_url": sqlite_url}


@pytest.fixture
def path(settings: Settings) -> Path:
    return Path(str(settings.sqlite_path))


@contextmanager
def process(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process that says when it is ready, and goes on when it is told to."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().strip() in ("held", "ready")
        yield running
        running.communicate()
    assert running.returncode == 0


def go_on(running: subprocess.Popen[str]) -> None:
    assert running.stdin is not None
    running.stdin.write("\n")
    running.stdin.flush()


# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_and_its_companions_are_readable_by_their_owner_only(db: SystemDatabase, path: Path) -> None:
    begin(db, start())

    for each in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600


def test_commits_are_durable_when_they_are_answered(settings: Settings, db: SystemDatabase) -> None:
    def pragmas(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "wal_autocheckpoint")
        return [connection.one(f"PRAGMA {name}") for name in names]

    assert db.read(pragmas) == [("wal",), (2,), (0,)]
    writing: object = db._writers[0]
    assert isinstance(writing, sqlite.SQLiteWriter)
    assert pragmas(writing._connection) == [("wal",), (2,), (0,)]


def test_less_durability_is_had_for_the_asking(settings: Settings) -> None:
    db = SystemDatabase(replace(settings, sqlite_synchronous="NORMAL"), SystemClock(), "tag")

    def pragma(connection: Connection) -> object:
        return connection.one("PRAGMA synchronous")

    assert db.read(pragma) == (1,)
    db.close()


def test_the_log_is_gone_after_the_last_has_closed(db: SystemDatabase, path: Path) -> None:
    begin(db, start())
    db.close()

    assert not Path(f"{path}-wal").exists()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT workflow_uuid FROM workflow_status").fetchall() == [("w",)]


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="gives up the rights of root")
@pytest.mark.parametrize("kind", ["a folder", "a file", "nothing"])
def test_what_may_not_be_written_is_a_clear_error_at_launch(kind: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder, "dbos.sqlite")
        result = subprocess.run(
            [sys.executable, "-c", OPEN_WITHOUT_RIGHTS, str(path), kind],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        os.chmod(folder, 0o700)

    if kind == "nothing":
        assert result.stdout.splitlines() == ["opened", "opened"]
        return
    again, another = result.stdout.splitlines()
    assert again.startswith("DBOSInitializationError")
    assert "rights" in again or "may be written" in again
    assert another.startswith("opened" if kind == "a file" else "DBOSInitializationError")


@pytest.mark.parametrize("what", ["replaced", "deleted"])
def test_nothing_is_acknowledged_once_the_file_is_not_the_one_that_is_open(
    db: SystemDatabase, path: Path, tmp_path: Path, settings: Settings, what: str
) -> None:
    """What SQLite goes on writing to is a file without a name, which is gone when the process ends."""
    begin(db, start())
    if what == "replaced":
        other = replace(settings, system_database_url=f"sqlite:///{tmp_path / 'other.sqlite'}")
        SystemDatabase(other, SystemClock(), "other").close()
        os.replace(tmp_path / "other.sqlite", path)
    else:
        path.unlink()

    with pytest.raises(DBOSDatabaseUnavailableError, match="replaced or deleted"):
        record(db, step())
    with pytest.raises(DBOSDatabaseUnavailableError, match="replaced or deleted"):
        begin(db, start("another"))


# -- other processes --------------------------------------------------------------------------------------------------


def test_another_process_transaction_is_waited_for(
    db: SystemDatabase, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for longer than one attempt lasts; nobody ever sees "database is locked"."""
    monkeypatch.setattr(writer_module, "WRITE_PATIENCE_S", 0.01)
    begin(db, start())
    answers: list[StepRecorded] = []
    numbers = count()
    with process(HOLD, path) as holding:
        committing = [
            threading.Thread(target=lambda: answers.append(record(db, step("w", next(numbers))))) for _ in range(10)
        ]
        for thread in committing:
            thread.start()
        assert row(db).status == "PENDING"  # reads go on
        committing[0].join(0.1)
        assert answers == []
        go_on(holding)
        for thread in committing:
            thread.join(20)

    assert answers == [StepRecorded("PENDING", None)] * 10


def test_closing_while_another_process_holds_the_file_ends(
    db: SystemDatabase, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "WRITE_PATIENCE_S", 0.01)
    errors: list[BaseException] = []

    def commit() -> None:
        try:
            begin(db, start())
        except Exception as error:
            errors.append(error)

    with process(HOLD, path) as holding:
        committing = threading.Thread(target=commit)
        committing.start()
        eventually(lambda: bool(db._committer._batch), "the attempt")
        db.close()
        committing.join(10)
        go_on(holding)

    assert len(errors) == 1


@pytest.mark.parametrize("is_told", [True, False], ids=["told of writes", "looking for them"])
def test_the_commit_of_another_process_wakes(
    db: SystemDatabase, path: Path, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    if not is_told:

        def refuse(path: str) -> FileWatch:
            raise OSError(errno.EMFILE, "as many watches as a user may have")

        monkeypatch.setattr("dbos._sysdb.dialects.sqlite.listener.FileWatch", refuse)
    heard: list[str | None] = []
    db.listen(heard.append)
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        connection.execute("INSERT INTO workflow_status (workflow_uuid, status) VALUES ('theirs', 'ENQUEUED')")
        assert heard == []
        connection.commit()

        eventually(lambda: heard == [None], "the wake-up")


def test_a_foreign_commit_is_looked_for_until_nobody_of_ours_leads_any_more(db: SystemDatabase, path: Path) -> None:
    """As long as somebody leads, asking for a look comes to nothing."""
    looks, heard = count(1), threading.Event()

    def poll() -> None:
        if next(looks) > 50:
            db._committer.poll()

    writer = db._committer._writer
    assert isinstance(writer, writer_module.SQLiteWriter)
    listener = SQLiteListener(writer, lambda topic: heard.set(), poll)
    listener.start()
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        connection.execute("INSERT INTO workflow_status (workflow_uuid, status) VALUES ('theirs', 'ENQUEUED')")
        connection.commit()

    assert heard.wait(30)
    listener.stop()
    assert next(looks) > 50


def test_the_log_of_a_file_that_is_opened_through_a_link_is_looked_at(
    db: SystemDatabase, path: Path, settings: Settings, open_database: OpenDatabase, tmp_path: Path
) -> None:
    link = tmp_path / "link.sqlite"
    link.symlink_to(path)
    linked = open_database("theirs", replace(settings, system_database_url=f"sqlite:///{link}"))
    heard: list[str | None] = []
    linked.listen(heard.append)

    begin(db, start())

    eventually(lambda: heard == [None], "the wake-up")


def test_the_commit_of_another_process_is_noticed_while_we_commit_without_rest(db: SystemDatabase, path: Path) -> None:
    heard: list[str | None] = []
    db.listen(heard.append)
    begin(db, start())
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        connection.execute("INSERT INTO workflow_status (workflow_uuid, status) VALUES ('theirs', 'ENQUEUED')")
        connection.commit()

    for number in range(10**6):
        record(db, step("w", number))
        if heard:
            break

    assert heard == [None]


def test_what_a_transaction_has_read_nobody_changes_before_it_writes(db: SystemDatabase, path: Path) -> None:
    """Begun at its first write, as Python's driver would, it could fail there, or overwrite what it has not seen."""
    begin(db, start())
    refused: list[str] = []

    def rename(connection: Connection) -> None:
        found = connection.one("SELECT name FROM dbos.workflow_status WHERE workflow_uuid = 'w'")
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            try:
                other.execute("UPDATE workflow_status SET name = 'theirs'")
            except sqlite3.OperationalError as error:
                refused.append(error.sqlite_errorname)
        assert found is not None
        connection.run("UPDATE dbos.workflow_status SET name = :name", name=f"{found[0]} and more")

    db.change(rename)

    assert refused == ["SQLITE_BUSY"]
    assert row(db).name == "order and more"


# -- checkpoints ------------------------------------------------------------------------------------------------------


def log_bytes(path: Path) -> int:
    return os.stat(f"{path}-wal").st_size


def test_the_log_is_copied_into_the_database_and_used_again(
    db: SystemDatabase, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", 256 * 1024)

    for number in range(600):
        begin(db, start(f"w{number}", inputs="x" * 3000))

    assert os.stat(path).st_size > 600 * 3000 // 2
    assert log_bytes(path) < 600 * 3000


def test_a_log_that_a_reader_needs_is_kept_and_copied_later(
    db: SystemDatabase, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", 64 * 1024)
    begin(db, start("first"))
    with closing(sqlite3.connect(path, isolation_level=None)) as reading:
        reading.execute("BEGIN")
        assert reading.execute("SELECT count(*) FROM workflow_status").fetchone() == (1,)
        for number in range(200):
            begin(db, start(f"w{number}", inputs="x" * 3000))
        assert reading.execute("SELECT count(*) FROM workflow_status").fetchone() == (1,)
        grown = log_bytes(path)
        reading.execute("COMMIT")

    for number in range(200, 1000):
        begin(db, start(f"w{number}", inputs="x" * 3000))

    assert log_bytes(path) < 3 * grown
    db.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM workflow_status").fetchone() == (1001,)


@pytest.mark.parametrize("only_they_checkpoint", [False, True])
def test_processes_that_write_and_checkpoint_without_rest_lose_nothing(
    db: SystemDatabase, path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, only_they_checkpoint: bool
) -> None:
    checkpoint_bytes = 32 * 1024
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", checkpoint_bytes)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_LOOK_BATCHES", 2)
    if only_they_checkpoint:
        # Nobody checkpoints here, and the log grows; the other process does it for both.
        monkeypatch.setattr(checkpoints.CheckpointPlan, "is_due", lambda self, log_bytes: False)
    starts = 300
    with process(WRITE, sqlite_url, starts, checkpoint_bytes) as writing:
        go_on(writing)
        for number in range(starts):
            assert begin(db, start(f"ours {number}", inputs="x" * 3000)).created
    db.commit(outcome("ours 0"))
    db.close()

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = {workflow_id for (workflow_id,) in connection.execute("SELECT workflow_uuid FROM workflow_status")}
    assert found == {f"{who} {number}" for who in ("ours", "theirs") for number in range(starts)}


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_waited_for(db: SystemDatabase) -> None:
    begin(db, start())

    def limit_pages(connection: Connection) -> None:
        connection.all("PRAGMA max_page_count = 1")  # as many as there are

    def lift_limit() -> None:
        raw = db._writers[0]._raw  # type: ignore[attr-defined]  # it is a SQLiteWriter
        raw.execute("PRAGMA max_page_count = 1000000")

    db.change(limit_pages)
    answers: list[StepRecorded] = []
    committing = threading.Thread(target=lambda: answers.append(record(db, step(output="x" * 100_000))))
    committing.start()
    eventually(lambda: bool(db._committer._batch), "the attempt")
    lift_limit()
    committing.join(10)

    assert answers == [StepRecorded("PENDING", None)]
    assert status(db) == "PENDING"


def test_an_interrupted_transaction_is_rolled_back_by_a_reset(db: SystemDatabase) -> None:
    begin(db, start())
    writer = db._writers[0]
    assert isinstance(writer, sqlite.SQLiteWriter)
    writer._raw.execute("BEGIN IMMEDIATE")
    writer._raw.execute("UPDATE workflow_status SET name = 'changed'")

    db._committer._is_suspect = True

    assert record(db, step()) == StepRecorded("PENDING", None)
    assert row(db).name == "order"


def test_a_connection_that_is_gone_is_opened_again(db: SystemDatabase) -> None:
    begin(db, start())
    writer = db._writers[0]
    assert isinstance(writer, sqlite.SQLiteWriter)
    writer._raw.close()

    writer.reset()

    assert record(db, step()) == StepRecorded("PENDING", None)
