"""The database of a datasource for threads, opened for one launch, or for calls without one."""

from __future__ import annotations

import threading
from typing import Any

from dbos._app_db import BlockingDatabase, Work, create_engine
from dbos._engine.engine import Engine

from .source import Source

__all__ = ["DatasourceDatabase"]


class DatasourceDatabase(BlockingDatabase):
    """Its table of records is created before it is first needed."""

    def __init__(self, source: Source, engine: Engine | None, owner: object) -> None:
        settings = None if engine is None else engine.settings
        is_system_database = source.is_system_database(settings)
        synchronous = settings.sqlite_synchronous if settings is not None and is_system_database else None
        super().__init__(
            source.given or create_engine(source.url, source.kwargs(settings), synchronous=synchronous),
            schema=settings.system_schema if settings is not None and is_system_database else source.schema,
            db=engine.db if engine is not None and is_system_database else None,
            is_ours=source.given is None,
        )
        self.owner = owner
        self._source = source
        self._may_migrate = settings is None or settings.run_migrations
        self._is_prepared = is_system_database
        self._preparing = threading.Lock()

    def prepare(self) -> None:
        """Create or verify the table of records, once."""
        with self._preparing:
            if not self._is_prepared:
                self._source.prepare(self.engine, may_migrate=self._may_migrate)
                self._is_prepared = True

    def carry_out(self, work: Work) -> Any:
        """Do the work in one transaction; returns what it comes to."""
        if work.is_recorded and not self._is_prepared:
            self.prepare()
        return super().carry_out(work)
