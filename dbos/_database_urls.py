"""Database URLs: what a user may write, and what SQLAlchemy, libpq, SQLite and a log each make of it.

URLs travel as text, in the one spelling :func:`checked_url` gives them, so that nothing here holds an engine open.
SQLAlchemy is imported where a URL is parsed, not at the top: it takes longer to import than all of this library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbos._error import DBOSInitializationError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

__all__ = [
    "APPLICATION_NAME",
    "POOL_SIZE",
    "DatabaseURLs",
    "checked_url",
    "connect_timeout_s_for",
    "engine_kwargs_for",
    "is_same_database",
    "is_sqlite",
    "libpq_conninfo",
    "mask_url",
    "resolve_database_urls",
    "sqlite_path",
]

APPLICATION_NAME = "dbos_transact"  # how our connections are listed in pg_stat_activity
CONNECT_TIMEOUT_S = 10  # an unreachable server must not hold a launch for the minutes that TCP would
DRIVER_ARGUMENTS = ("prepare_threshold",)  # what psycopg takes beside the parameters of libpq
HIDDEN = "***"
HIDDEN_URL = "<a database URL that cannot be parsed>"
POOL_KEYS = ("pool_timeout", "max_overflow", "pool_size", "pool_pre_ping")
POOL_SIZE = 20
SECRET_PARAMETER = re.compile("pass|secret|token|key", re.IGNORECASE)  # password, sslpassword, passfile, sslkey …
SYSTEM_DATABASE_SUFFIX = "_dbos_sys"


@dataclass(frozen=True, slots=True)
class DatabaseURLs:
    """The two databases of an application, as SQLAlchemy URLs with passwords."""

    system: str
    application: str | None


def resolve_database_urls(
    *, system_url: str | None, application_url: str | None, name: str | None = None
) -> DatabaseURLs:
    """Return both database URLs, from whichever of them is given.

    The system database of a PostgreSQL application is another database on its server, ``<database>_dbos_sys``. With
    neither URL it is the SQLite file ``<name>.sqlite`` in the working directory. A SQLite system database is also the
    application database unless one is given.

    Raises:
        DBOSInitializationError: A URL cannot be used, or neither URL nor ``name`` is given.
    """
    application = None if not application_url else checked_url(application_url, "application_database_url")
    if system_url:
        system = checked_url(system_url, "system_database_url")
    elif application is not None:
        system = application if is_sqlite(application) else _with_database_suffix(application, SYSTEM_DATABASE_SUFFIX)
    elif name is not None:
        system = f"sqlite:///{_database_name(name)}.sqlite"
    else:
        raise DBOSInitializationError("No database was named. Give system_database_url or application_database_url.")
    if application is None and is_sqlite(system):
        application = system
    return DatabaseURLs(system, application)


def checked_url(url: str, key: str) -> str:
    """Return ``url`` in the form the library uses throughout.

    PostgreSQL URLs come back with the driver ``postgresql+psycopg``; ``key`` is what messages call the URL.

    Raises:
        DBOSInitializationError: It cannot be parsed, names no database, or another kind of database.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if is_sqlite(url):
        sqlite_path(url)
        return url
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without its cause: that one quotes the URL, password and all.
        raise DBOSInitializationError(
            f"{key!r} cannot be parsed. It should look like postgresql://user:password@host:5432/database, "
            "with special characters in the password written as %-escapes."
        ) from None
    if parsed.get_backend_name() not in ("postgresql", "postgres", "cockroachdb"):
        raise DBOSInitializationError(
            f"{key!r} names a {parsed.get_backend_name()!r} database. Use SQLite or PostgreSQL."
        )
    if parsed.host is not None and "@" in parsed.host:
        raise DBOSInitializationError(f"{key!r} contains an @ within the password or host. Write it as %40.")
    if not parsed.database:
        raise DBOSInitializationError(f"Database name must be specified in the connection URL ({key!r}).")
    return _rendered(parsed.set(drivername="postgresql+psycopg"))


def is_sqlite(url: str) -> bool:
    """Whether ``url`` names a SQLite database."""
    return url.startswith("sqlite")


def sqlite_path(url: str) -> Path:
    """Return the absolute path of the file that a SQLite URL names.

    Raises:
        DBOSInitializationError: It names none: the database would be in memory, or is given as a ``file:`` URI.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        database = make_url(url).database
    except ArgumentError:
        raise DBOSInitializationError(f"{url!r} is not a SQLite URL such as sqlite:///app.sqlite") from None
    if not database or database == ":memory:":
        raise DBOSInitializationError(
            "A SQLite database in memory belongs to a single connection and cannot be shared by the library's threads. "
            "Use a file, for tests one in a temporary directory: sqlite:////tmp/test.sqlite"
        )
    if database.startswith("file:"):
        raise DBOSInitializationError("SQLite file: URIs are not supported. Name a plain path: sqlite:///app.sqlite")
    return Path(database).absolute()


def is_same_database(one: str, other: str) -> bool:
    """Whether two URLs lead to the same database, whoever logs in."""
    if is_sqlite(one) != is_sqlite(other):
        return False
    if is_sqlite(one):
        return sqlite_path(one).resolve() == sqlite_path(other).resolve()
    first, second = libpq_conninfo(one), libpq_conninfo(other)
    return all(first.get(key) == second.get(key) for key in ("host", "port", "dbname"))


def libpq_conninfo(
    url: str,
    *,
    connect_timeout_s: int = CONNECT_TIMEOUT_S,
    application_name: str = APPLICATION_NAME,
    connect_args: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the libpq parameters that a SQLAlchemy URL stands for, for ``psycopg.connect(**conninfo)``.

    Parameters in the URL win over those of this function, and ``connect_args`` (of ``create_engine``) over both; of
    these only text and whole numbers are taken, the others being meant for the driver.
    """
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    conninfo = {"application_name": application_name, "connect_timeout": str(connect_timeout_s)}
    for key, part in (
        ("host", parsed.host),
        ("port", parsed.port),
        ("user", parsed.username),
        ("password", parsed.password),
        ("dbname", parsed.database),
    ):
        if part:
            conninfo[key] = str(part)
    for key, value in parsed.query.items():
        if key == "host":
            conninfo.update(_hosts((value,) if isinstance(value, str) else value))
        else:
            conninfo[key] = value if isinstance(value, str) else value[-1]
    conninfo.update((key, str(value)) for key, value in (connect_args or {}).items() if type(value) in (str, int))
    for key in DRIVER_ARGUMENTS:
        conninfo.pop(key, None)
    return conninfo


def engine_kwargs_for(
    url: str, given: Mapping[str, Any], *, connect_timeout_s: int = CONNECT_TIMEOUT_S
) -> dict[str, Any]:
    """Return the arguments of ``create_engine`` for ``url``: the defaults, overridden by ``given``."""
    connect_args: dict[str, Any] = {}
    if not is_sqlite(url):
        connect_args = {"application_name": APPLICATION_NAME, "connect_timeout": connect_timeout_s}
    connect_args.update(given.get("connect_args") or {})
    if is_sqlite(url):
        # One dictionary serves both databases, and SQLite knows neither.
        connect_args.pop("application_name", None)
        connect_args.pop("connect_timeout", None)
    kwargs: dict[str, Any] = {
        "pool_timeout": 30,
        "max_overflow": 0,
        "pool_size": POOL_SIZE,
        "pool_pre_ping": True,
        "hide_parameters": True,  # errors that are logged must not show what users stored
        **given,
        "connect_args": connect_args,
    }
    if getattr(kwargs.get("poolclass"), "__name__", None) == "NullPool":
        for key in POOL_KEYS:
            kwargs.pop(key, None)
    return kwargs


def connect_timeout_s_for(urls: DatabaseURLs, db_engine_kwargs: Mapping[str, Any]) -> int:
    """Return the connect timeout that is set for engines, in the system URL or in the application URL, in this order.

    Raises:
        DBOSInitializationError: It is given twice, or is no whole number.
    """
    from sqlalchemy.engine import make_url

    candidates = [(db_engine_kwargs.get("connect_args") or {}).get("connect_timeout")]
    candidates += [
        make_url(url).query.get("connect_timeout")
        for url in (urls.system, urls.application)
        if url is not None and not is_sqlite(url)
    ]
    for candidate in candidates:
        if candidate is None:
            continue
        if isinstance(candidate, tuple):
            raise DBOSInitializationError("'connect_timeout' is given more than once in a database URL.")
        if not str(candidate).isdigit():
            raise DBOSInitializationError(f"'connect_timeout' must be a whole number of seconds, not {candidate!r}.")
        return int(candidate)
    return CONNECT_TIMEOUT_S


def mask_url(url: str | URL) -> str:
    """Return ``url`` for people and logs: passwords and keys are hidden, also those among its parameters."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return HIDDEN_URL
    if parsed.host is not None and "@" in parsed.host:
        # An unescaped @ in the password: the rest of it was taken for the host.
        return f"{parsed.drivername}://{HIDDEN}"
    hidden: dict[str, str | tuple[str, ...]] = {
        key: HIDDEN if SECRET_PARAMETER.search(key) else value for key, value in parsed.query.items()
    }
    masked = parsed.set(query=hidden).render_as_string(hide_password=True)
    return masked.replace("%2A%2A%2A", HIDDEN)


def _database_name(name: str) -> str:
    """Return the name of the default SQLite file of an application, without its suffix."""
    database = name.replace("-", "_").replace(" ", "_").lower()
    return f"_{database}" if database[0].isdigit() else database


def _with_database_suffix(url: str, suffix: str) -> str:
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    return _rendered(parsed.set(database=f"{parsed.database}{suffix}"))


def _rendered(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _hosts(values: tuple[str, ...]) -> dict[str, str]:
    """Return the parameters for the ``host=`` parts of a URL: sockets, or several servers as ``host:port``."""
    hosts: list[str] = []
    ports: list[str] = []
    for value in values:
        host, _, port = value.rpartition(":")
        # An address like ::1 has a port only if it is in brackets.
        has_port = port.isdigit() and (":" not in host or host.endswith("]"))
        hosts.append((host if has_port else value).strip("[]"))
        ports.append(port if has_port else "")
    conninfo = {"host": ",".join(hosts)}
    if any(ports):
        conninfo["port"] = ",".join(ports)
    return conninfo
