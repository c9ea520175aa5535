"""SQLite after a power failure: whatever prefix of its log reached the disk, nothing acknowledged is lost."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.acceptance.harness import Stage, until

COPIES = 12


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
