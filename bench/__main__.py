"""The command line: ``make bench``, or ``make bench ARGS="--quick --only import --database sqlite"``."""

from __future__ import annotations

import argparse
import signal
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from bench import sides
from bench.catalogue import DATABASES, GROUPS, IMPORT, SLOW
from bench.databases import Engine, Postgres, SQLite
from bench.machine import describe, sync_ms
from bench.report import conditions, table, write
from bench.runner import FULL, QUICK, Row, run, say

RESULTS = Path(__file__).parent / "results"
DEFAULT_DIRECTORY = Path("/var/tmp")  # on a disk, where /tmp is often in memory


def main() -> None:
    options = parse()
    # A stopped benchmark stops its server as well.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        rows, facts, is_whole = measure(options)
    except sides.WorkerError as error:
        raise SystemExit(f"bench: {error}") from error
    say("")
    print(table(rows))
    print(f"\n{conditions(facts)}\n")
    for path in write(RESULTS, options.group if is_whole else "partial", rows, facts):
        print(f"wrote {path.relative_to(RESULTS.parent.parent)}")


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any], bool]:
    """Measure what the options say: the rows, what they were taken on, and whether they are everything there is."""
    plan = QUICK if options.quick else FULL
    if options.repeats:
        plan = replace(plan, repeats=options.repeats)
    ours, peer = sides.ours(), None if options.no_peer else sides.peer()
    libraries = [ours] if peer is None else [ours, peer]
    is_whole = not (options.quick or options.only or options.database or options.no_peer or peer is None)
    names = options.only or [
        name for name, group in GROUPS.items() if group == options.group and not (options.quick and name in SLOW)
    ]
    rows: list[Row] = []
    parent = options.directory or (DEFAULT_DIRECTORY if DEFAULT_DIRECTORY.is_dir() else None)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=parent)))
        directory.chmod(0o711)  # PostgreSQL may run as somebody else
        engines = open_engines(stack, directory, options)
        facts: dict[str, Any] = {
            "machine": describe(directory),
            "sides": {side.name: side.versions() for side in libraries},
            "databases": {engine.name: settings_of(engine, libraries) for engine in engines},
            "plan": {"repeats": plan.repeats, "seconds per run": plan.run_s},
        }
        if facts["machine"]["file_system"] in ("tmpfs", "ramfs"):
            say(f"bench: {directory} is in memory, so nothing here is durable; choose --directory", is_news=True)
        try:
            for measured in run(plan, names, engines, libraries, sides.floor(), sides.scale()):
                rows += measured
        except KeyboardInterrupt:
            say("bench: interrupted; what was measured so far:", is_news=True)
            is_whole = False
        facts["machine"]["fdatasync_ms_after"] = sync_ms(directory)  # a disk that got slower meanwhile shows here
    return rows, facts, is_whole


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure this library, its peer and the floor."
    )
    parser.add_argument("--quick", action="store_true", help="short runs, few repeats: to see that it works")
    parser.add_argument("--group", choices=("usual", "scale", "soak"), default="usual", help="what is measured")
    parser.add_argument("--only", action="append", choices=GROUPS, metavar="NAME", help=f"of: {', '.join(GROUPS)}")
    parser.add_argument("--database", choices=DATABASES, help="one database instead of both")
    parser.add_argument("--repeats", type=int, metavar="N", help="measured runs of each side")
    parser.add_argument("--no-peer", action="store_true", help="without the other library")
    parser.add_argument("--directory", type=Path, help="where the databases lie; it should be on a local disk")
    return parser.parse_args()


def open_engines(stack: ExitStack, directory: Path, options: argparse.Namespace) -> list[Engine]:
    if options.only == [IMPORT]:
        return []
    engines: list[Engine] = []
    if options.database != "postgresql":
        engines.append(SQLite(directory))
    if options.database != "sqlite":
        engines.append(stack.enter_context(Postgres(directory)))
    return engines


def settings_of(engine: Engine, libraries: list[sides.Side]) -> dict[str, dict[str, str]]:
    """What each library leaves a database's settings at."""
    found = {}
    for side in libraries:
        with engine.fresh() as url:
            side.run({"workload": "sequential-workflows", "url": url, "count": 1, "warm_up": 1})
            found[side.name] = engine.settings(url)
    return found


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
