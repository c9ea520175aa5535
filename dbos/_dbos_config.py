"""From what a user writes (:class:`DBOSConfig`) to what the library runs on (:class:`Settings`).

:func:`process_config` is called once, when the ``DBOS`` object is made. It reads the dictionary and the environment,
touches neither files nor databases, and refuses whatever it does not understand: a misspelled key would otherwise be a
setting that silently does nothing. Everything below receives :class:`Settings` and never looks at the environment.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from dbos._database_urls import (
    APPLICATION_NAME,
    POOL_SIZE,
    checked_url,
    connect_timeout_s_for,
    engine_kwargs_for,
    is_same_database,
    is_sqlite,
    libpq_conninfo,
    resolve_database_urls,
    sqlite_path,
)
from dbos._error import DBOSInitializationError
from dbos._retention_policy import RetentionConfig, RetentionPolicy
from dbos._serialization import MAX_PAYLOAD_BYTES, WARN_PAYLOAD_BYTES, Serialization, Serializer, SizeLimits

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = [
    "DBOSConfig",
    "Settings",
    "is_application_name",
    "process_config",
]

logger = logging.getLogger("dbos.config")

DEFAULT_SCHEMA = "dbos"
LEASE_S = 15.0  # how long a dead executor's work waits; three heartbeats may be lost
QUERY_TIMEOUT_S = 30.0  # of whoever only looks: for that long the database cannot clear up what was deleted meanwhile
MAX_EXECUTOR_THREADS = 64  # workflows running at once in threads; more are durable and wait
MAX_IDENTIFIER_BYTES = 63  # PostgreSQL cuts longer names, so that two schemas could become one
MIN_POLLING_INTERVAL_S = 0.001
MIN_PAYLOAD_BYTES = 64 * 1024  # what the library records of its own, and errors cut short, always fit
LARGEST_PAYLOAD_BYTES = 120 * 1024 * 1024  # with the rest of its row, what the committer takes
PATCHING_VERSION = "PATCHING_ENABLED"

SqliteSynchronous = Literal["FULL", "NORMAL"]
OtelAttributeFormat = Literal["legacy", "semconv"]


class DBOSConfig(TypedDict, total=False):
    """The configuration of an application; only ``name`` must be given, and ``None`` means the default."""

    name: str
    """The application's name: 3 to 30 lower-case letters, digits, ``-`` and ``_``."""
    system_database_url: str | None
    """Where workflows are recorded: a SQLite or PostgreSQL URL. Default: ``sqlite:///<name>.sqlite``, or next to the
    application database."""
    application_database_url: str | None
    """Where ``@DBOS.transaction`` functions run. Default: the system database if that is SQLite, otherwise none."""
    database_url: str | None
    """The former name of ``application_database_url``; if present it takes its place."""
    system_database_engine: Engine | None
    """An engine whose URL says where workflows are recorded, if ``system_database_url`` is not given."""
    dbos_system_schema: str | None
    """The PostgreSQL schema of the system tables. Default: ``dbos``. SQLite has no schemas."""
    sys_db_pool_size: int | None
    """How many connections to the system database may be open. Default: 20."""
    sys_db_polling_concurrency: int | None
    """How many of them may be used for polling; accepted for compatibility."""
    db_engine_kwargs: dict[str, Any] | None
    """Arguments for ``sqlalchemy.create_engine``, merged over the defaults."""
    sqlite_synchronous: SqliteSynchronous | None
    """``FULL`` (default) survives a power cut; ``NORMAL`` is faster but may lose the last commits in one."""
    use_listen_notify: bool | None
    """Whether PostgreSQL wakes waiting processes (default), instead of being polled. Turn off behind PgBouncer."""
    run_migrations: bool | None
    """Whether launching brings the schema up to date (default), or only checks it."""
    application_version: str | None
    """The version of the code. Default: ``DBOS__APPVERSION``, or computed from the workflows' source."""
    executor_id: str | None
    """The name of this process. Default: ``DBOS__VMID``, or ``local``."""
    enable_patching: bool | None
    """Whether ``DBOS.patch`` may be used; the version then stays the same as the code changes. Default: ``False``."""
    serializer: Serializer | None
    """How values are stored. Default: JSON where a value survives it exactly, pickle otherwise."""
    allowed_serializers: list[str] | None
    """The only formats that may be read or written, such as ``["json"]``. Default: all."""
    max_payload_bytes: int | None
    """How large an input, a result, a message, an event or a stream value may be as text, in bytes; what is larger is
    refused. 65536 to 125829120. Default: 67108864 (64 MiB)."""
    warn_payload_bytes: int | None
    """From which size on a warning is logged, once for each workflow, step, topic or key. Default: 1048576 (1 MiB)."""
    max_executor_threads: int | None
    """How many workflows may run in threads at once; more wait in order. Default: 64."""
    lease_s: float | None
    """After how many seconds without a sign of life another process takes over this one's work. Default: 15."""
    graceful_shutdown_timeout_sec: float | None
    """How many seconds running workflows have to end after SIGTERM, if the application does not handle that signal; the
    others go on in another process. Default: 0."""
    query_timeout_sec: float | None
    """How many seconds a query may take by which workflows and steps are listed or counted; 0 for as long as it takes.
    Default: 30."""
    notification_listener_polling_interval_sec: float | None
    """Seconds between polls for messages and events where nothing wakes the waiters. Default: 1.0."""
    notification_coalesce_sec: float | None
    """Seconds over which wake-ups for other processes are gathered. Default: 0.01."""
    scheduler_polling_interval_sec: float | None
    """Seconds between looks for changed schedules. Default: 30.0."""
    kafka_queue_polling_interval_sec: float | None
    """Seconds between looks for messages taken from Kafka. Default: 1.0."""
    retention: RetentionConfig | None
    """How long finished workflows are kept, such as ``{"max_age": timedelta(days=30)}``. Default: for ever."""
    run_admin_server: bool | None
    """Whether to serve the administrative HTTP interface. Default: ``False``."""
    admin_port: int | None
    """The port of that interface. Default: 3001."""
    log_level: str | None
    """The level of the logger ``dbos``. Default: ``INFO``."""
    console_log_level: str | None
    """The level of its console handler. Default: ``log_level``."""
    otlp_log_level: str | None
    """The level of its OTLP handler. Default: ``log_level``."""
    enable_otlp: bool | None
    """Whether traces and logs are exported by OpenTelemetry. Default: ``False``."""
    otlp_traces_endpoints: list[str] | None
    """Where traces are sent."""
    otlp_logs_endpoints: list[str] | None
    """Where logs are sent."""
    otlp_attributes: dict[str, str] | None
    """What is added to every span and log record."""
    otel_attribute_format: OtelAttributeFormat | None
    """How span attributes are named: ``legacy`` (default) or ``semconv``."""
    conductor_key: str | None
    """Of a hosted service; accepted and ignored."""
    conductor_url: str | None
    """Of a hosted service; accepted and ignored."""
    conductor_executor_metadata: dict[str, Any] | None
    """Of a hosted service; accepted and ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The validated configuration; a value that every part of the library may hold."""

    name: str
    """The application's name."""
    system_database_url: str = field(repr=False)
    """The system database; PostgreSQL URLs name the driver ``postgresql+psycopg``."""
    application_database_url: str | None = field(repr=False)
    """The application database, or ``None`` if there is none."""
    system_database_engine: Engine | None = field(repr=False)
    """The user's own engine for the system database, if one was given."""
    system_schema: str
    """The schema of the system tables; without meaning on SQLite."""
    sys_db_pool_size: int
    """How many connections to the system database may be open."""
    db_engine_kwargs: Mapping[str, Any] = field(repr=False)
    """What the user gave for ``create_engine``; see :func:`engine_kwargs_for`."""
    connection_name: str = APPLICATION_NAME
    """What PostgreSQL lists its connections to the system database as, unless the URL says otherwise."""
    connect_timeout_s: int
    """How long connecting to PostgreSQL may take."""
    sqlite_synchronous: SqliteSynchronous
    """The ``PRAGMA synchronous`` of a SQLite system database."""
    use_listen_notify: bool
    """Whether PostgreSQL wakes waiting processes."""
    run_migrations: bool
    """Whether launching brings the schema up to date."""
    application_version: str
    """The version of the code; empty if it is to be computed at launch."""
    executor_id: str
    """The name of this process."""
    application_id: str
    """The ``application_id`` of workflow rows, from ``DBOS__APPID``; often empty."""
    enable_patching: bool
    """Whether ``DBOS.patch`` may be used."""
    serialization: Serialization
    """The formats that are written and read."""
    max_executor_threads: int
    """How many workflows may run in threads at once."""
    lease_s: float
    """How long an executor without a sign of life keeps its work, in seconds."""
    query_timeout_s: float
    """How long a query of a list or of numbers may take, in seconds; 0 for no limit."""
    graceful_shutdown_timeout_s: float
    """How long running workflows have to end after SIGTERM, in seconds."""
    notification_polling_interval_s: float
    """Seconds between polls for messages and events."""
    notification_coalesce_s: float
    """Seconds over which wake-ups for other processes are gathered."""
    scheduler_polling_interval_s: float
    """Seconds between looks for changed schedules."""
    kafka_polling_interval_s: float
    """Seconds between looks for messages taken from Kafka."""
    retention: RetentionPolicy | None
    """How long finished workflows are kept; ``None`` for ever."""
    run_admin_server: bool
    """Whether to serve the administrative HTTP interface."""
    admin_port: int
    """The port of that interface."""
    log_level: str
    """The level of the logger ``dbos``."""
    console_log_level: str
    """The level of its console handler."""
    otlp_log_level: str
    """The level of its OTLP handler."""
    enable_otlp: bool
    """Whether traces and logs are exported."""
    otlp_traces_endpoints: tuple[str, ...]
    """Where traces are sent."""
    otlp_logs_endpoints: tuple[str, ...]
    """Where logs are sent."""
    otlp_attributes: Mapping[str, str]
    """What is added to every span and log record."""
    otel_attribute_format: OtelAttributeFormat
    """How span attributes are named."""

    @property
    def is_application_version_pinned(self) -> bool:
        """Whether the version was given, so that it does not follow the source of the workflows."""
        return bool(self.application_version)

    @property
    def is_sqlite(self) -> bool:
        """Whether the system database is SQLite."""
        return is_sqlite(self.system_database_url)

    @property
    def sqlite_path(self) -> Path:
        """The absolute path of a SQLite system database."""
        return sqlite_path(self.system_database_url)

    @property
    def conninfo(self) -> dict[str, str]:
        """The libpq parameters of a PostgreSQL system database, for ``psycopg.connect(**settings.conninfo)``."""
        connect_args = self.db_engine_kwargs.get("connect_args", {})
        return libpq_conninfo(
            self.system_database_url,
            connect_timeout_s=self.connect_timeout_s,
            application_name=self.connection_name,
            connect_args=connect_args,
        )

    @property
    def has_one_database(self) -> bool:
        """Whether the application's transactions work in the system database."""
        url = self.application_database_url
        return url is None or is_same_database(url, self.system_database_url)

    @property
    def application_engine_kwargs(self) -> dict[str, Any]:
        """The arguments of ``create_engine`` for the application database."""
        url = self.application_database_url or self.system_database_url
        return engine_kwargs_for(url, self.db_engine_kwargs, connect_timeout_s=self.connect_timeout_s)

    @property
    def system_engine_kwargs(self) -> dict[str, Any]:
        """The arguments of ``create_engine`` for the system database."""
        kwargs = engine_kwargs_for(
            self.system_database_url, self.db_engine_kwargs, connect_timeout_s=self.connect_timeout_s
        )
        if "pool_size" in kwargs:
            kwargs["pool_size"] = self.sys_db_pool_size
        return kwargs


def process_config(config: DBOSConfig, environ: Mapping[str, str] | None = None) -> Settings:
    """Validate ``config``, fill in the defaults and what ``environ`` (``os.environ`` unless given) adds.

    Raises:
        DBOSInitializationError: A key is unknown or missing, or a value cannot be used.
    """
    environ = os.environ if environ is None else environ
    given = _given(config)
    name = _application_name(given)
    application_url = given.get("application_database_url")
    if "database_url" in config:
        # The older key wins by its presence, even if it says None.
        application_url = given.get("database_url")
    urls = resolve_database_urls(
        system_url=given.get("system_database_url") or _engine_url(given),
        application_url=application_url,
        name=name,
    )
    db_engine_kwargs = {**given.get("db_engine_kwargs", {})}
    log_level = _log_level(given, "log_level", "INFO")
    return Settings(
        name=name,
        system_database_url=urls.system,
        application_database_url=urls.application,
        system_database_engine=given.get("system_database_engine"),
        system_schema=_schema(given),
        sys_db_pool_size=_at_least(given, "sys_db_pool_size", POOL_SIZE, minimum=1),
        db_engine_kwargs=db_engine_kwargs,
        connect_timeout_s=connect_timeout_s_for(urls, db_engine_kwargs),
        sqlite_synchronous=_one_of(given, "sqlite_synchronous", "FULL", get_args(SqliteSynchronous)),
        use_listen_notify=given.get("use_listen_notify", True),
        run_migrations=given.get("run_migrations", True),
        application_version=_application_version(given, environ),
        executor_id=_executor_id(given, environ),
        application_id=environ.get("DBOS__APPID", ""),
        enable_patching=given.get("enable_patching", False),
        serialization=Serialization(given.get("serializer"), given.get("allowed_serializers"), _size_limits(given)),
        max_executor_threads=_at_least(given, "max_executor_threads", MAX_EXECUTOR_THREADS, minimum=1),
        lease_s=_interval_s(given, "lease_s", LEASE_S),
        query_timeout_s=_duration_s(given, "query_timeout_sec", QUERY_TIMEOUT_S),
        graceful_shutdown_timeout_s=_duration_s(given, "graceful_shutdown_timeout_sec", 0.0),
        notification_polling_interval_s=_interval_s(given, "notification_listener_polling_interval_sec", 1.0),
        notification_coalesce_s=_interval_s(given, "notification_coalesce_sec", 0.01),
        scheduler_polling_interval_s=_interval_s(given, "scheduler_polling_interval_sec", 30.0),
        kafka_polling_interval_s=_interval_s(given, "kafka_queue_polling_interval_sec", 1.0),
        retention=_retention(given),
        run_admin_server=given.get("run_admin_server", False),
        admin_port=_at_least(given, "admin_port", 3001, minimum=0, maximum=65535),
        log_level=log_level,
        console_log_level=_log_level(given, "console_log_level", log_level),
        otlp_log_level=_log_level(given, "otlp_log_level", log_level),
        enable_otlp=given.get("enable_otlp", False),
        otlp_traces_endpoints=tuple(given.get("otlp_traces_endpoints", ())),
        otlp_logs_endpoints=tuple(given.get("otlp_logs_endpoints", ())),
        otlp_attributes={**given.get("otlp_attributes", {})},
        otel_attribute_format=_one_of(given, "otel_attribute_format", "legacy", get_args(OtelAttributeFormat)),
    )


def _engine_url(given: Mapping[str, Any]) -> str | None:
    engine = given.get("system_database_engine")
    if engine is None:
        return None
    return checked_url(engine.url.render_as_string(hide_password=False), "system_database_engine")


def _size_limits(given: Mapping[str, Any]) -> SizeLimits:
    return SizeLimits(
        _at_least(
            given,
            "max_payload_bytes",
            MAX_PAYLOAD_BYTES,
            minimum=MIN_PAYLOAD_BYTES,
            maximum=LARGEST_PAYLOAD_BYTES,
        ),
        _at_least(given, "warn_payload_bytes", WARN_PAYLOAD_BYTES, minimum=1),
    )


def _retention(given: Mapping[str, Any]) -> RetentionPolicy | None:
    retention = given.get("retention")
    try:
        return None if retention is None else RetentionPolicy.of(retention)
    except ValueError as error:
        raise DBOSInitializationError(f"Configuration key 'retention' cannot be used: {error}.") from None


# -- names and versions -----------------------------------------------------------------------------------------------


def is_application_name(name: object) -> bool:
    """Whether an application can have this name."""
    return isinstance(name, str) and re.fullmatch(r"[a-z0-9_-]{3,30}", name) is not None


def _application_name(given: Mapping[str, Any]) -> str:
    name = given.get("name")
    if not name:
        raise DBOSInitializationError("Configuration must specify an application name")
    if not is_application_name(name):
        raise DBOSInitializationError(
            f"Invalid app name {name!r}. It must be 3 to 30 characters long and contain only lower-case letters, "
            "digits, dashes and underscores."
        )
    return str(name)


def _schema(given: Mapping[str, Any]) -> str:
    schema = str(given.get("dbos_system_schema", DEFAULT_SCHEMA))
    if not schema or "\0" in schema or len(schema.encode("utf-8", "replace")) > MAX_IDENTIFIER_BYTES:
        raise DBOSInitializationError(
            f"'dbos_system_schema' must be 1 to {MAX_IDENTIFIER_BYTES} bytes long and contain no NUL character."
        )
    return schema


def _application_version(given: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    from_environment = environ.get("DBOS__APPVERSION", "")
    if _is_cloud(environ):
        return from_environment
    patching = PATCHING_VERSION if given.get("enable_patching") else ""
    return given.get("application_version") or patching or from_environment


def _executor_id(given: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    from_environment = environ.get("DBOS__VMID") or "local"
    if _is_cloud(environ):
        return from_environment
    return given.get("executor_id") or from_environment


def _is_cloud(environ: Mapping[str, str]) -> bool:
    """Whether a hosting service starts this process, and so decides on its version and name."""
    return environ.get("DBOS__CLOUD") == "true"


# -- keys and types ---------------------------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _is_text_mapping(value: Any) -> bool:
    return _is_mapping(value) and all(isinstance(item, str) for item in value.values())


def _is_serializer(value: Any) -> bool:
    return isinstance(value, Serializer)


def _is_engine(value: Any) -> bool:
    return hasattr(value, "connect") and hasattr(value, "url")


_TEXT = (_is_text, "a string")
_WHOLE = (_is_whole, "a whole number")
_NUMBER = (_is_number, "a number")
_FLAG = (_is_flag, "True or False")
_MAPPING = (_is_mapping, "a dictionary with string keys")
_TEXT_LIST = (_is_text_list, "a list of strings")

_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": _TEXT,
    "system_database_url": _TEXT,
    "application_database_url": _TEXT,
    "database_url": _TEXT,
    "system_database_engine": (_is_engine, "a sqlalchemy.Engine"),
    "dbos_system_schema": _TEXT,
    "sys_db_pool_size": _WHOLE,
    "sys_db_polling_concurrency": _WHOLE,
    "db_engine_kwargs": _MAPPING,
    "sqlite_synchronous": _TEXT,
    "use_listen_notify": _FLAG,
    "run_migrations": _FLAG,
    "application_version": _TEXT,
    "executor_id": _TEXT,
    "enable_patching": _FLAG,
    "serializer": (_is_serializer, "an instance of a subclass of dbos.Serializer"),
    "allowed_serializers": _TEXT_LIST,
    "max_payload_bytes": _WHOLE,
    "warn_payload_bytes": _WHOLE,
    "max_executor_threads": _WHOLE,
    "lease_s": _NUMBER,
    "graceful_shutdown_timeout_sec": _NUMBER,
    "query_timeout_sec": _NUMBER,
    "notification_listener_polling_interval_sec": _NUMBER,
    "notification_coalesce_sec": _NUMBER,
    "scheduler_polling_interval_sec": _NUMBER,
    "kafka_queue_polling_interval_sec": _NUMBER,
    "retention": _MAPPING,
    "run_admin_server": _FLAG,
    "admin_port": _WHOLE,
    "log_level": _TEXT,
    "console_log_level": _TEXT,
    "otlp_log_level": _TEXT,
    "enable_otlp": _FLAG,
    "otlp_traces_endpoints": _TEXT_LIST,
    "otlp_logs_endpoints": _TEXT_LIST,
    "otlp_attributes": (_is_text_mapping, "a dictionary of strings"),
    "otel_attribute_format": _TEXT,
    "conductor_key": _TEXT,
    "conductor_url": _TEXT,
    "conductor_executor_metadata": _MAPPING,
}


def _given(config: DBOSConfig) -> dict[str, Any]:
    """Return what is set in ``config``, every key known and every value of its type."""
    if not isinstance(config, Mapping):
        raise DBOSInitializationError(f"The configuration must be a dictionary, not {type(config).__name__}.")
    for key, value in config.items():
        if key not in _TYPES:
            near = difflib.get_close_matches(str(key), _TYPES, n=1)
            advice = f"Did you mean {near[0]!r}?" if near else "See dbos.DBOSConfig for the keys there are."
            raise DBOSInitializationError(f"Unknown configuration key {key!r}. {advice}")
        is_valid, description = _TYPES[key]
        if value is not None and not is_valid(value):
            # The value itself may be a secret; its type is enough to find the mistake.
            raise DBOSInitializationError(
                f"Configuration key {key!r} must be {description}, not {type(value).__name__}."
            )
    given = {key: value for key, value in config.items() if value is not None}
    ignored = sorted(key for key in given if key.startswith("conductor_"))
    if ignored:
        logger.warning("configuration keys of a hosted service are ignored: %s", ", ".join(ignored))
    return given


def _at_least(given: Mapping[str, Any], key: str, default: int, *, minimum: int, maximum: int | None = None) -> int:
    value: int = given.get(key, default)
    if value < minimum or (maximum is not None and value > maximum):
        bounds = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise DBOSInitializationError(f"Configuration key {key!r} must be {bounds}, not {value}.")
    return value


def _interval_s(given: Mapping[str, Any], key: str, default_s: float) -> float:
    value_s = float(given.get(key, default_s))
    if not math.isfinite(value_s) or value_s < MIN_POLLING_INTERVAL_S:
        raise DBOSInitializationError(
            f"Configuration key {key!r} must be at least {MIN_POLLING_INTERVAL_S} seconds, not {value_s}."
        )
    return value_s


def _duration_s(given: Mapping[str, Any], key: str, default_s: float) -> float:
    value_s = float(given.get(key, default_s))
    if not math.isfinite(value_s) or value_s < 0:
        raise DBOSInitializationError(f"Configuration key {key!r} must be 0 or more seconds, not {value_s}.")
    return value_s


def _one_of(given: Mapping[str, Any], key: str, default: Any, choices: tuple[str, ...]) -> Any:
    value = given.get(key, default)
    if value not in choices:
        raise DBOSInitializationError(f"Configuration key {key!r} must be one of {', '.join(choices)}, not {value!r}.")
    return value


def _log_level(given: Mapping[str, Any], key: str, default: str) -> str:
    level = str(given.get(key, default)).upper()
    if level not in logging.getLevelNamesMapping():
        raise DBOSInitializationError(
            f"Configuration key {key!r} must be a level of the logging module such as 'INFO', not {level!r}."
        )
    return level
