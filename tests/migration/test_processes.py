"""Real processes: many at once, and one that is killed at every instant that matters."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from dbos._error import DBOSInitializationError
from dbos._migration import Migration, load_migrations, migrate, verify

if TYPE_CHECKING:
    from .conftest import Scene, SQLiteScene

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the launcher forks")

PROCESSES = 20
BOUNDARIES = 115  # more than all migrations pass; checked
INSIDE = 9  # a boundary within the first migration's transaction; checked


def test_twenty_processes_at_once_on_an_empty_database_all_start(scene: Scene) -> None:
    assert_each_migration_was_applied_once(scene, scene.launch(PROCESSES))


def test_a_switch_to_wal_by_some_of_them_disturbs_none(sqlite_scene: SQLiteScene) -> None:
    assert_each_migration_was_applied_once(sqlite_scene, sqlite_scene.launch(PROCESSES, "wal"))


def assert_each_migration_was_applied_once(scene: Scene, applied: list[int]) -> None:
    everything = len(load_migrations(scene.dialect))
    assert len(applied) == PROCESSES
    assert min(applied) >= 0, "a process was killed"
    assert sum(applied) == everything  # not necessarily by one process
    verify(scene.target())
    assert scene.execute("SELECT count(*) FROM dbos.opendbos_migrations") == [(everything,)]


def test_migrations_killed_at_any_boundary_leave_nothing_or_all_of_each_and_are_completed(
    scene: Scene, at_end: ExitStack
) -> None:
    known = load_migrations(scene.dialect)
    everything = len(known)
    stages = [{}, *(stage(scene, BOUNDARIES + number, known[:number]) for number in range(1, everything + 1))]

    codes = scene.launch(BOUNDARIES, "crash")

    killed = codes.index(everything)
    assert codes == [-signal.SIGKILL] * killed + [everything] * (BOUNDARIES - killed)
    reached = []
    for boundary in range(killed):
        reached.append(stages.index(definitions(scene, boundary)))
        migrate(scene.sibling(boundary).target())
        assert definitions(scene, boundary) == stages[-1]
        verify(scene.sibling(boundary).target())
        at_end.pop_all().close()
    assert reached == sorted(reached)
    assert set(reached) == set(range(everything + 1))


def stage(scene: Scene, number: int, migrations: Sequence[Migration]) -> dict[str, str]:
    """What a database holds after only some of the migrations."""
    migrate(scene.sibling(number).target(), migrations)
    return definitions(scene, number)


def definitions(scene: Scene, number: int) -> dict[str, str]:
    """What a database of a killed process holds, in the words of the others."""
    catalog = scene.sibling(number).catalog()
    return {name: text.replace(f" {scene.schema}_{number}.", " dbos.") for name, text in catalog.items()}


@pytest.mark.parametrize("ending", [signal.SIGCONT, signal.SIGKILL])
def test_a_process_that_is_frozen_in_a_migration_holds_up_others_within_a_bound_and_spoils_nothing(
    scene: Scene, ending: signal.Signals
) -> None:
    everything = len(load_migrations(scene.dialect))
    frozen = scene.freeze(INSIDE)

    with pytest.raises(DBOSInitializationError, match=r"(?i)another process"):
        migrate(scene.target(lock_wait_s=0.3))
    assert scene.catalog() == {}

    frozen.send_signal(ending)
    applied, _ = frozen.communicate(timeout=60)
    assert applied == (f"{everything}\n" if ending == signal.SIGCONT else "")
    assert migrate(scene.target()) == (0 if ending == signal.SIGCONT else everything)
    verify(scene.target())
    assert scene.execute("SELECT count(*) FROM dbos.opendbos_migrations") == [(everything,)]
