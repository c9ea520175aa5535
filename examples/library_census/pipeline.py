"""A census of Python's standard library as a durable pipeline.

    take_stock                      one workflow for everything, asynchronous
      Census.run                    one for each census: "runtime", and "tests and tools" with measures of its own
        Census.survey_package       one for each package, side by side
          Census.measure            a step for each file: read it, hash it, parse it, measure it
          Census.store              a transaction for each file: its row, and the record that it was written

Kill the process at any moment and start it again: it goes on where it stopped. Nothing below is there for the sake of
that except the decorators, and :mod:`.witness`, which writes down what ran so that you need not take our word for it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Callable

import sqlalchemy as sa

from dbos import DBOS, DBOSConfiguredInstance, SetWorkflowID

from . import source, witness

__all__ = ["CENSUSES", "MODULES", "NAME", "Census", "take_stock"]

NAME = "library_census"

# Without a unique key, on purpose: only the library keeps a row from being written twice.
MODULES = sa.Table(
    f"{NAME}_modules",
    sa.MetaData(),
    sa.Column("census", sa.Text, nullable=False),
    sa.Column("package", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("lines", sa.Integer, nullable=False),
    sa.Column("functions", sa.Integer),
    sa.Column("classes", sa.Integer),
    sa.Column("nesting", sa.Integer),
    sa.Column("assertions", sa.Integer),
)


@DBOS.dbos_class()
class Census(DBOSConfiguredInstance):
    """Counts one part of the library: the files it ``includes``, by measures of its own."""

    def __init__(self, name: str, *, includes: Callable[[str], bool], measures: dict[str, source.Measure]) -> None:
        super().__init__(config_name=name)
        self.includes = includes
        self.measures = measures

    @DBOS.workflow()
    def run(self, limit: int | None) -> int:
        packages = self.find_packages(limit)
        handles = [DBOS.start_workflow(self.survey_package, package, paths) for package, paths in packages.items()]
        return sum(handle.get_result() for handle in handles)

    @DBOS.workflow()
    def survey_package(self, package: str, paths: list[str]) -> int:
        for path in paths:
            facts = self.measure(path)
            self.store(package, path, facts)
        return len(paths)

    @DBOS.step()
    def find_packages(self, limit: int | None) -> dict[str, list[str]]:
        witness.note(f"find packages of {self.config_name}")
        return self.packages(limit)

    @DBOS.step()
    def measure(self, path: str) -> source.Facts:
        witness.note(f"measure {path}")
        return source.measure_file(path, self.measures)

    @DBOS.transaction()
    def store(self, package: str, path: str, facts: source.Facts) -> None:
        witness.note(f"store {path}")
        row = {"census": self.config_name, "package": package, "path": path, **facts}
        DBOS.sql_session.execute(sa.insert(MODULES).values(row))

    def packages(self, limit: int | None = None) -> dict[str, list[str]]:
        """The files of each package; ``limit`` takes so many of them, from all over the library."""
        paths = [path for path in source.iter_paths() if self.includes(path)]
        if limit is not None and limit < len(paths):
            paths = [paths[number * len(paths) // limit] for number in range(limit)]
        packages: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            packages[source.package_of(path)].append(path)
        return dict(packages)


# Instances are found by name when a workflow is recovered, so they exist before the launch.
RUNTIME = Census(
    "runtime",
    includes=lambda path: not source.is_tooling(path),
    measures={
        "functions": source.count_functions,
        "classes": source.count_classes,
        "nesting": source.deepest_nesting,
    },
)
TOOLING = Census(
    "tests and tools",
    includes=source.is_tooling,
    measures={
        "functions": source.count_functions,
        "assertions": source.count_assertions,
    },
)
CENSUSES = (RUNTIME, TOOLING)


@DBOS.transaction()
def create_table() -> None:
    witness.note("create the table")
    MODULES.create(DBOS.sql_session.connection(), checkfirst=True)


@DBOS.workflow()
async def take_stock(limit: int | None) -> dict[str, int]:
    await asyncio.to_thread(create_table)  # a transaction is synchronous, and would block the event loop
    handles = [await DBOS.start_workflow_async(census.run, limit) for census in CENSUSES]
    counts = await asyncio.gather(*(handle.get_result() for handle in handles))
    return {census.config_name: count for census, count in zip(CENSUSES, counts, strict=True)}


def main(database_url: str, limit: int | None) -> None:
    DBOS(
        config={
            "name": NAME,
            "system_database_url": database_url,
            "application_database_url": database_url,
            "dbos_system_schema": NAME,  # on PostgreSQL, so that this never meets another application's workflows
            "max_executor_threads": 4,
        }
    )
    DBOS.launch()
    # By its id, the second process finds the workflow that the first one began, and that recovery goes on with.
    with SetWorkflowID(NAME):
        handle = DBOS.start_workflow(take_stock, limit)
    print(handle.get_result())
    DBOS.destroy()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
