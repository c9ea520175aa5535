"""Run the census, kill its process with SIGKILL in the middle, start it again, and prove that nothing shows.

This process is the director: it starts workers, watches them from outside, and kills them. The work is in
:mod:`.pipeline`.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from . import source
from .control import compute_rows
from .database import Database, Tally
from .pipeline import CENSUSES
from .progress import Progress
from .proof import Evidence, Life
from .report import print_report
from .witness import LOG_VARIABLE, read_log

PROJECT = Path(__file__).resolve().parents[2]

FILES_PER_CENSUS = 500  # some 20 seconds of work for two cores
KILLS = 2
PLAIN_WIDTH = 100  # columns where there is no terminal
POLL_S = 0.005  # how soon a kill follows upon the step that triggers it
REFRESH_S = 0.1
STALL_S = 60.0  # a worker that does nothing for so long is given up


def main() -> int:
    """Run the demonstration; returns 0 if the proof holds."""
    options = parse_arguments()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # never fail for want of a character
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    director = Director(console, prepare(options.directory), options.database_url, options.limit or None)
    try:
        evidence = director.run(options.kills, options.kill_after)
    except WorkerFailed as failure:
        console.print(f"{failure}; its log is {director.worker_log}")
        return 1
    except KeyboardInterrupt:
        return 130  # as shells report it
    print_report(console, evidence)
    return 0 if evidence.holds else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.library_census", description=__doc__)
    add = parser.add_argument
    add("--limit", type=int, default=FILES_PER_CENSUS, metavar="N",
        help="files of each of the two censuses, 0 for all (default: %(default)s)")  # fmt: skip
    add("--kills", type=int, default=KILLS, metavar="K", help="how often to kill (default: %(default)s)")
    add("--kill-after", type=int, metavar="N",
        help="kill a process when it has run so many steps (default: the work is divided evenly)")  # fmt: skip
    add("--database-url", metavar="URL",
        help="a PostgreSQL database to use instead of a SQLite file; the schema library_census and the table "
             "library_census_modules in it are replaced")  # fmt: skip
    add("--directory", type=Path, default=PROJECT / ".demo", metavar="PATH",
        help="where files go; those of the last run are replaced (default: .demo)")  # fmt: skip
    options = parser.parse_args()
    if min(options.limit, options.kills, options.kill_after or 0) < 0:
        parser.error("numbers must not be negative")
    if options.database_url and not options.database_url.startswith("postgres"):
        parser.error("--database-url takes a PostgreSQL URL; without it, the database is a SQLite file in --directory")
    return options


def prepare(directory: Path) -> Path:
    """Make the directory, or remove what the last run left in it and nothing else."""
    if not directory.exists():
        directory.mkdir(parents=True)
        (directory / ".gitignore").write_text("*\n")
    for pattern in ("census.sqlite*", "effects.log", "worker.log"):
        for file in directory.glob(pattern):
            file.unlink()
    return directory.resolve()


class WorkerFailed(Exception):
    """A worker came to another end than success or our own kill."""


class Director:
    """Starts workers, watches them, and kills them."""

    def __init__(self, console: Console, directory: Path, database_url: str | None, limit: int | None) -> None:
        self._console = console
        self._database = Database(database_url or directory / "census.sqlite")
        self._limit = limit
        self._effects_log = directory / "effects.log"
        self.worker_log = directory / "worker.log"
        packages = {census.config_name: census.packages(limit) for census in CENSUSES}
        self._goals = {name: Tally(sum(map(len, found.values())), len(found)) for name, found in packages.items()}

    def run(self, kills: int, kill_after: int | None) -> Evidence:
        """Let workers do the census until one finishes, killing so many before."""
        files = sum(goal.files for goal in self._goals.values())
        share = kill_after or max(1, 2 * files // (kills + 1))  # two steps for each file
        self._console.print(
            f"\n  A census of the standard library of Python {platform.python_version()}: {files:,} files"
        )
        self._console.print(f"  {source.ROOT}\n", style="dim")
        self._database.forget_last_run()
        # Ctrl-C is for this process alone, which takes the others down with it.
        with get_context("spawn").Pool(1, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as control:
            expected = control.apply_async(compute_rows, (self._limit,))
            lives: list[Life] = []
            with Progress(self._console, self._goals) as progress:
                while len(lives) <= kills:
                    lives.append(self._live(progress, share if len(lives) < kills else None))
                    if not lives[-1].was_killed:
                        break  # it was faster than we, or it was the last
            evidence = Evidence(kills, lives, read_log(self._effects_log), self._database.rows(), expected.get())
        self._database.close()
        return evidence

    def _live(self, progress: Progress, kill_after: int | None) -> Life:
        """One worker's life; it is killed when it has run ``kill_after`` steps, or left to finish."""
        began_s, steps_before = progress.elapsed_s, self._count_effects()
        with self._worker() as process:
            progress.tell(f"process {process.pid} starts")
            self._watch(process, progress, None if kill_after is None else steps_before + kill_after)
            code = process.wait()
        if code not in (0, -signal.SIGKILL):
            raise WorkerFailed(f"Process {process.pid} ended with exit code {code}")
        life = Life(process.pid, began_s, progress.elapsed_s, code, self._database.recorded_steps())
        if life.was_killed:
            unfinished = self._database.count_unfinished()
            progress.tell(
                f"[red]kill -9 {life.pid}[/]  {len(life.recorded):,} steps on record, {unfinished} workflows unfinished"
            )
        else:
            progress.tell(f"process {life.pid} ends")
        return life

    def _watch(self, process: subprocess.Popen[bytes], progress: Progress, kill_at: int | None) -> None:
        shown_at = moved_at = time.monotonic()
        effects = self._count_effects()
        while process.poll() is None:
            time.sleep(POLL_S)
            now, before, effects = time.monotonic(), effects, self._count_effects()
            moved_at = now if effects > before else moved_at
            if now - moved_at > STALL_S:
                raise WorkerFailed(f"Process {process.pid} did nothing for {STALL_S:.0f} seconds")
            if kill_at is not None and effects >= kill_at:
                process.kill()
                return
            if now - shown_at >= REFRESH_S and effects > 0:  # by then, the library has created its tables
                shown_at = now
                progress.show(self._database.tallies(), self._database.count_steps(), process.pid)

    @contextmanager
    def _worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """A process that runs the pipeline, as a user would; it never outlives this block."""
        command = [sys.executable, "-m", "examples.library_census.pipeline", self._database.url]
        limit = [] if self._limit is None else [str(self._limit)]
        environment = os.environ | {LOG_VARIABLE: str(self._effects_log)}
        with self.worker_log.open("ab") as log:
            process = subprocess.Popen(command + limit, cwd=PROJECT, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _count_effects(self) -> int:
        try:
            return self._effects_log.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0


if __name__ == "__main__":
    sys.exit(main())
