"""What a datasource was given: which database it is, and how connections to it are made.

Nothing is connected here, and SQLAlchemy is not imported before a datasource is declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dbos._database_urls import checked_url, engine_kwargs_for, is_same_database, is_sqlite, mask_url, sqlite_path
from dbos._dbos_config import Settings
from dbos._error import DBOSException, DBOSInitializationError
from dbos._schemas.rendering import quote_identifier
from dbos._sysdb.dialects import prepare_records

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["Source"]

DRIVERS = {"pysqlite", "aiosqlite", "psycopg", "psycopg_async"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The database of a datasource; ``given`` is the user's own engine, if that is what was given."""

    name: str
    url: str
    given: Any
    schema: str
    engine_kwargs: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        name: str,
        given: str | sa.Engine | AsyncEngine,
        schema: str,
        engine_kwargs: Mapping[str, Any] | None,
        *,
        is_async: bool,
    ) -> Source:
        """Check what a user has written.

        Raises:
            DBOSInitializationError: it cannot be used.
        """
        if not isinstance(name, str) or not name.strip():
            raise DBOSInitializationError(f"A datasource needs a name, which is a string, not {name!r}.")
        quote_identifier(schema)
        what = f"The database of datasource {name!r}"
        if isinstance(given, str):
            return cls(
                name=name,
                url=checked_url(given, what),
                given=None,
                schema=schema,
                engine_kwargs={**(engine_kwargs or {})},
            )
        if not hasattr(given, "dialect") or hasattr(given, "sync_engine") != is_async:
            needed = "AsyncEngine of SQLAlchemy" if is_async else "Engine of SQLAlchemy, not an asynchronous one"
            raise DBOSInitializationError(f"{what} is a URL or an {needed}, not {type(given).__name__}.")
        if engine_kwargs:
            raise DBOSInitializationError(f"{what} was given as an engine, which engine_kwargs cannot change any more.")
        if given.dialect.driver not in DRIVERS:
            raise DBOSInitializationError(
                f"{what} is reached by {given.dialect.name}+{given.dialect.driver}. Use SQLite, or PostgreSQL with "
                "psycopg 3 (postgresql+psycopg)."
            )
        url = given.url.render_as_string(hide_password=False)
        if is_sqlite(url):
            sqlite_path(url)
        return cls(name=name, url=url, given=given, schema=schema, engine_kwargs={})

    def check_asyncio(self) -> None:
        """Look for what SQLAlchemy needs to be awaited.

        Raises:
            DBOSInitializationError: it is not installed.
        """
        missing = [name for name in ("greenlet", *["aiosqlite"] * self.is_sqlite) if find_spec(name) is None]
        if missing:
            raise DBOSInitializationError(
                f"An asynchronous datasource needs {' and '.join(missing)}: pip install 'opendbos[asyncio]'"
            )

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of SQLite."""
        return is_sqlite(self.url)

    def is_system_database(self, settings: Settings | None) -> bool:
        """Whether workflows are recorded in the same database.

        Raises:
            DBOSInitializationError: they are, and the connections are not made as those to such a file have to be.
        """
        if settings is None or not is_same_database(self.url, settings.system_database_url):
            return False
        if self.is_sqlite and self.given is not None:
            raise DBOSInitializationError(
                f"Datasource {self.name!r} has an engine for the very SQLite file that workflows are recorded in. Give "
                "it the URL instead: connections to that file need settings of their own."
            )
        return True

    def kwargs(self, settings: Settings | None) -> dict[str, Any]:
        """The arguments of ``create_engine``: the defaults, overridden by the user's."""
        if settings is None:
            return engine_kwargs_for(self.url, self.engine_kwargs)
        return engine_kwargs_for(self.url, self.engine_kwargs, connect_timeout_s=settings.connect_timeout_s)

    def prepare(self, engine: sa.Engine | None = None, *, may_migrate: bool) -> None:
        """Create or verify the table of records, by a synchronous engine if there is one, or else by the URL."""
        if engine is None:
            import sqlalchemy as sa

            url = sa.make_url(self.url).set(drivername="sqlite" if self.is_sqlite else "postgresql+psycopg")
            engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            raw = connection.connection.driver_connection
            prepare_records(raw, self.schema, is_sqlite=self.is_sqlite, may_migrate=may_migrate)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say of which datasource a database cannot be used, and where that is.

        Raises:
            DBOSInitializationError: the block raised something else.
        """
        try:
            yield
        except DBOSException:
            raise
        except Exception as error:  # whatever driver and file system say about a database that cannot be opened
            raise DBOSInitializationError(
                f"The database {mask_url(self.url)} of datasource {self.name!r} cannot be used "
                f"({type(error).__name__}: {error}). Check its URL, and that it is reachable and may be written."
            ) from error
