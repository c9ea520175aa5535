"""SQLite after a power failure, and under checkpoints without rest: nothing acknowledged is lost."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from dbos._clock import SystemClock
from dbos._dbos_config import process_config
from dbos._sys_db import SystemDatabase
from dbos._sysdb.dialects.sqlite import checkpoints
from tests.acceptance.harness import Stage, until
from tests.conformance.values import begin, record, start, status, step, steps

COPIES = 12
LOG_HEADER_BYTES = 32


def acknowledged(stage: Stage) -> set[tuple[str, int]]:
    """The steps whose record was acknowledged by now, by workflow and function id."""
    return {
        (effect.workflow_id, int(effect.instant.removeprefix("acked:")))
        for effect in stage.effects()
        if effect.instant.startswith("acked:")
    }


def acknowledge(stage: Stage, count: int) -> None:
    """Wait until so many steps are acknowledged."""
    until(lambda: len(acknowledged(stage)) > count, "steps to be acknowledged")


def recorded(database: Path) -> set[tuple[str, int]]:
    """The steps that a database holds once it is opened."""
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return set(connection.execute("SELECT workflow_uuid, function_id FROM operation_outputs"))


def test_every_acknowledged_step_is_in_every_copy_of_the_disk(sqlite_stage: Stage, tmp_path: Path) -> None:
    """A copy is the database and a prefix of its log, which ends anywhere behind what was acknowledged before."""
    stage, choice = sqlite_stage, random.Random(1)
    application = stage.launch()
    log = Path(f"{stage.path}-wal")
    for number in range(4):
        application.start("busy", f"busy-{number}", 400)

    for number in range(COPIES):
        acknowledge(stage, 100 * (number + 1))
        known, size = acknowledged(stage), log.stat().st_size
        copy = tmp_path / f"copy-{number}.sqlite"
        shutil.copy(stage.path, copy)
        content = log.read_bytes()
        Path(f"{copy}-wal").write_bytes(content[: choice.randint(size, len(content))])

        assert known <= recorded(copy)


def test_a_damaged_end_of_the_log_costs_what_was_not_acknowledged_only(sqlite_stage: Stage, tmp_path: Path) -> None:
    stage, choice = sqlite_stage, random.Random(2)
    application = stage.launch()
    application.start("busy", "busy", 50)
    acknowledge(stage, 20)
    log = Path(f"{stage.path}-wal")
    known, size = acknowledged(stage), log.stat().st_size
    application.kill()
    with log.open("r+b") as file:
        file.seek(size)
        file.truncate()
        file.write(choice.randbytes(5000))

    survivor = stage.launch()

    assert survivor.result("busy") == 50
    records = {(record.workflow_id, record.function_id) for record in stage.records()}
    assert known <= records
    begun = stage.begun()
    assert all(begun[key] == 1 for key in known)


def open_database(path: Path) -> SystemDatabase:
    settings = process_config({"name": "test-app", "system_database_url": f"sqlite:///{path}"}, {})
    return SystemDatabase(settings, SystemClock(), "tag")


def used_bytes(log: bytes) -> int:
    """How much of a log is valid: its frames carry the salt of its header, and what is behind them is of before."""
    salt, size = log[16:24], LOG_HEADER_BYTES
    while size < len(log) and log[size + 8 : size + 16] == salt:
        size += checkpoints.PAGE_BYTES
    return size


@pytest.mark.parametrize("checkpoint_bytes", [4 * 1024 * 1024, 64 * 1024], ids=["growing", "restarted"])
def test_the_engine_opens_every_prefix_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_bytes: int
) -> None:
    """Cut right behind what was acknowledged it has all of that; cut anywhere before, a history without gaps."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", checkpoint_bytes)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_LOOK_BATCHES", 1)
    choice, path, copy = random.Random(3), tmp_path / "dbos.sqlite", tmp_path / "copy" / "dbos.sqlite"
    log = Path(f"{path}-wal")
    db = open_database(path)
    begin(db, start(owner_instance=None))

    for number in range(1, 25):
        record(db, step(function_id=number))
        content = log.read_bytes()
        acknowledged_bytes = used_bytes(content)
        for size in (acknowledged_bytes, choice.randint(0, acknowledged_bytes - 1)):
            copy.parent.mkdir()
            shutil.copy(path, copy)
            Path(f"{copy}-wal").write_bytes(content[:size])
            with closing(open_database(copy)) as reopened:
                found = [each.function_id for each in steps(reopened)]
                if size == acknowledged_bytes:
                    assert found == list(range(1, number + 1))
                    assert status(reopened) == "PENDING"
                    assert record(reopened, step(function_id=number + 1)).status == "PENDING"
                assert found == list(range(1, len(found) + 1))
            shutil.rmtree(copy.parent)

    is_restarted = len(log.read_bytes()) > used_bytes(log.read_bytes())
    assert is_restarted == (checkpoint_bytes < 1024 * 1024)
    db.close()


@pytest.mark.slow
def test_processes_that_write_and_checkpoint_without_rest_lose_nothing_when_all_are_killed(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    applications = [stage.launch(checkpoint_bytes=32 * 1024) for _ in range(3)]
    for number, application in enumerate(applications):
        for each in range(2):
            application.start("busy", f"busy-{number}-{each}", 90)

    def has_each_made_checkpoints() -> bool:
        made = Counter(effect.process for effect in stage.effects() if effect.instant == "checkpoint")
        return all(made[application.pid] >= 3 for application in applications)

    until(has_each_made_checkpoints, "checkpoints of each process")
    acknowledge(stage, 200)
    for application in applications:
        application.send_signal(signal.SIGSTOP)  # so that all are killed at one moment
    known = acknowledged(stage)
    for application in applications:
        application.kill()

    assert known <= recorded(stage.path)
    survivor = stage.launch()
    for number in range(len(applications)):
        assert [survivor.result(f"busy-{number}-{each}") for each in range(2)] == [90, 90]
    begun = stage.begun()
    assert all(begun[key] == 1 for key in known)
