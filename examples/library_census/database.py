"""What the demonstration itself asks of the database: plain SQL, beside the library and not through it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from dbos._schemas.system_database import SystemSchema, schema_translate_map

from .pipeline import MODULES, NAME, Census
from .source import Row
from .witness import Step

__all__ = ["Database", "Tally"]

workflows, operations = SystemSchema.workflow_status, SystemSchema.operation_outputs

# What has a body of its own: neither the start of a child workflow nor the wait for its result.
IS_STEP = operations.c.child_workflow_id.is_(None)

FILES = sa.select(MODULES.c.census, sa.func.count()).group_by(MODULES.c.census)
PACKAGES = (
    sa.select(workflows.c.config_name, sa.func.count())
    .where(workflows.c.name == Census.survey_package.__qualname__, workflows.c.status == "SUCCESS")
    .group_by(workflows.c.config_name)
)


@dataclass(frozen=True, slots=True)
class Tally:
    """How far one census has come."""

    files: int = 0
    packages: int = 0


class Database:
    """The database that the workers share: a SQLite file, which is only read here, or a PostgreSQL database."""

    def __init__(self, target: Path | str) -> None:
        self._is_sqlite = isinstance(target, Path)
        if isinstance(target, Path):
            self.url = f"sqlite:///{target}"
            query = {"mode": "ro", "uri": "true"}
            url = sa.URL.create("sqlite", database=f"file:{quote(target.as_posix())}", query=query)
        else:
            self.url = target
            url = sa.make_url(target).set(drivername="postgresql+psycopg")
        system_schema = schema_translate_map(None if self._is_sqlite else NAME)
        self._engine = sa.create_engine(url)
        self._system = self._engine.execution_options(schema_translate_map=system_schema)

    def forget_last_run(self) -> None:
        """Drop on PostgreSQL what an earlier demonstration left: its schema, and its one table."""
        if not self._is_sqlite:
            with self._engine.begin() as connection:
                connection.execute(sa.text(f"DROP SCHEMA IF EXISTS {NAME} CASCADE"))
                connection.execute(sa.text(f"DROP TABLE IF EXISTS {MODULES.name}"))

    # -- the library's tables ------------------------------------------------------------------------------------------

    def recorded_steps(self) -> frozenset[Step]:
        """Every step that is on record."""
        query = sa.select(operations.c.workflow_uuid, operations.c.function_id).where(IS_STEP)
        return frozenset((workflow_id, step_id) for workflow_id, step_id in self._read(self._system, query))

    def count_steps(self) -> int:
        """How many steps are on record."""
        return self._count(sa.select(sa.func.count()).select_from(operations).where(IS_STEP))

    def count_unfinished(self) -> int:
        """How many workflows have begun and not ended."""
        return self._count(sa.select(sa.func.count()).select_from(workflows).where(workflows.c.status == "PENDING"))

    # -- the user's table ----------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """The user's table."""
        return self._read_modules(sa.select(MODULES))

    def tallies(self) -> dict[str, Tally]:
        """How far each census has come, by name."""
        files, packages = dict(self._read_modules(FILES)), dict(self._read(self._system, PACKAGES))
        return {name: Tally(files.get(name, 0), packages.get(name, 0)) for name in files | packages}

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _read_modules(self, query: sa.Executable) -> list[Any]:
        """The pipeline creates the table in its first step; until then, it is as good as empty."""
        return self._read(self._engine, query) if sa.inspect(self._engine).has_table(MODULES.name) else []

    def _count(self, query: sa.Executable) -> int:
        return int(self._read(self._system, query)[0][0])

    def _read(self, engine: sa.Engine, query: sa.Executable) -> list[Any]:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(query)]
