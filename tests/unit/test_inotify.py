from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbos._sysdb.dialects.sqlite.inotify import FileWatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux' own")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_text("one")
    return path


@pytest.fixture
def watch(path: Path) -> Iterator[FileWatch]:
    watch = FileWatch(str(path))
    yield watch
    watch.close()


def test_a_write_is_told_once(watch: FileWatch, path: Path) -> None:
    assert not watch.is_written()
    path.write_text("two")

    watch.wait()

    assert watch.is_written()
    assert not watch.is_written()
    assert not watch.is_ended


def test_more_writes_than_are_read_at_once_are_all_taken(watch: FileWatch, path: Path) -> None:
    with path.open("r+") as file:
        for _ in range(1000):
            file.truncate(0)
            file.write("two")
            file.flush()

    while watch.is_written():
        pass

    assert not watch.is_ended


def test_who_waits_goes_on_when_the_watch_is_ended(watch: FileWatch) -> None:
    waiting = threading.Thread(target=watch.wait)
    waiting.start()

    watch.end()

    waiting.join(10)
    assert not waiting.is_alive()
    assert watch.is_written()
    assert watch.is_ended


def test_a_removed_file_ends_its_watch(watch: FileWatch, path: Path) -> None:
    path.unlink()

    watch.wait()

    assert watch.is_written()
    assert watch.is_ended


def test_a_missing_file_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileWatch(str(tmp_path / "missing"))
