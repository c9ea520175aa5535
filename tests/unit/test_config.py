from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool

from dbos._database_urls import engine_kwargs_for, libpq_conninfo, mask_url, resolve_database_urls, sqlite_path
from dbos._dbos_config import _TYPES, DBOSConfig, Settings, process_config
from dbos._error import DBOSInitializationError
from dbos._serialization import Serializer

SERVER = "postgresql+psycopg://user:secret@host:5432"


def settings(environ: dict[str, str] | None = None, /, **config: Any) -> Settings:
    return process_config(cast("DBOSConfig", {"name": "my-app", **config}), environ or {})


@pytest.fixture
def dbos_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """Captured records of the logger ``dbos``, whether or not it propagates to the root."""
    logger = logging.getLogger("dbos")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)  # an application that another test launched may have left it higher
    yield caplog
    logger.setLevel(level)
    logger.removeHandler(caplog.handler)


# -- names and defaults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"name": None}, {"name": ""}])
def test_a_configuration_without_a_name_is_refused(config: Any) -> None:
    with pytest.raises(DBOSInitializationError, match="Configuration must specify an application name"):
        process_config(config, {})


@pytest.mark.parametrize("name", ["ab", "a" * 31, "My-App", "my app", "app\n", "größe"])
def test_a_name_of_the_wrong_form_is_refused(name: str) -> None:
    with pytest.raises(DBOSInitializationError, match="Invalid app name"):
        settings(name=name)


def test_a_name_alone_gives_a_working_configuration() -> None:
    made = settings()

    assert made.system_database_url == made.application_database_url == "sqlite:///my_app.sqlite"
    assert made.sqlite_path == Path.cwd() / "my_app.sqlite"
    assert made.is_sqlite
    assert made.system_schema == "dbos"
    assert made.sqlite_synchronous == "FULL"
    assert made.max_executor_threads == 64
    assert made.lease_s == 15
    assert made.executor_id == "local"
    assert made.application_version == ""
    assert not made.is_application_version_pinned
    assert not made.run_admin_server
    assert made.use_listen_notify


def test_none_means_the_default_for_every_key_but_the_name() -> None:
    assert repr(settings(**dict.fromkeys(set(_TYPES) - {"name"}))) == repr(settings())


def test_the_types_that_are_checked_cover_the_documented_keys() -> None:
    assert set(_TYPES) == set(DBOSConfig.__annotations__)


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(DBOSInitializationError, match="Did you mean 'system_database_url'"):
        settings(system_databse_url="sqlite:///x.sqlite")


def test_a_key_like_no_other_is_refused() -> None:
    with pytest.raises(DBOSInitializationError, match="Unknown configuration key 'zzz'"):
        settings(zzz=1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 7),
        ("system_database_url", 7),
        ("sys_db_pool_size", "20"),
        ("sys_db_pool_size", True),
        ("use_listen_notify", "yes"),
        ("lease_s", "15"),
        ("allowed_serializers", "json"),
        ("otlp_traces_endpoints", ["http://x", 7]),
        ("otlp_attributes", {"a": 1}),
        ("db_engine_kwargs", []),
        ("serializer", object()),
        ("system_database_engine", "sqlite://"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_without_showing_it(key: str, value: Any) -> None:
    with pytest.raises(DBOSInitializationError, match=f"'{key}' must be .*, not {type(value).__name__}"):
        settings(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sys_db_pool_size", 0),
        ("max_executor_threads", 0),
        ("admin_port", 65536),
        ("lease_s", 0),
        ("lease_s", float("nan")),
        ("notification_listener_polling_interval_sec", 0.0009),
        ("scheduler_polling_interval_sec", float("inf")),
        ("sqlite_synchronous", "OFF"),
        ("otel_attribute_format", "new"),
        ("log_level", "LOUD"),
        ("dbos_system_schema", ""),
        ("dbos_system_schema", "a\0b"),
        ("dbos_system_schema", "ä" * 32),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_the_name_of_its_key(key: str, value: Any) -> None:
    with pytest.raises(DBOSInitializationError, match=key):
        settings(**{key: value})


def test_a_configuration_that_is_no_dictionary_is_refused() -> None:
    with pytest.raises(DBOSInitializationError, match="must be a dictionary, not str"):
        process_config(cast("DBOSConfig", "my-app"), {})


def test_keys_of_the_hosted_service_are_ignored_with_one_warning(dbos_log: pytest.LogCaptureFixture) -> None:
    made = settings(conductor_key="geheim", conductor_url="wss://example.com")

    assert repr(made) == repr(settings())
    warning = dbos_log.records[0]
    assert len(dbos_log.records) == 1
    assert "conductor_key, conductor_url" in warning.getMessage()
    assert "geheim" not in warning.getMessage()


def test_log_levels_follow_the_general_one() -> None:
    made = settings(log_level="debug", otlp_log_level="ERROR")

    assert (made.log_level, made.console_log_level, made.otlp_log_level) == ("DEBUG", "DEBUG", "ERROR")


# -- version and executor ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "environ", "version"),
    [
        ({}, {}, ""),
        ({}, {"DBOS__APPVERSION": "env"}, "env"),
        ({"enable_patching": True}, {"DBOS__APPVERSION": "env"}, "PATCHING_ENABLED"),
        ({"enable_patching": True, "application_version": "v1"}, {"DBOS__APPVERSION": "env"}, "v1"),
        ({"application_version": "v1"}, {"DBOS__APPVERSION": "env", "DBOS__CLOUD": "true"}, "env"),
        ({"application_version": "v1"}, {"DBOS__CLOUD": "false"}, "v1"),
    ],
)
def test_the_version_comes_from_the_configuration_before_the_environment(
    config: dict[str, Any], environ: dict[str, str], version: str
) -> None:
    made = settings(environ, **config)

    assert made.application_version == version
    assert made.is_application_version_pinned == bool(version)


@pytest.mark.parametrize(
    ("config", "environ", "executor"),
    [
        ({}, {}, "local"),
        ({}, {"DBOS__VMID": ""}, "local"),
        ({}, {"DBOS__VMID": "vm-1"}, "vm-1"),
        ({"executor_id": "pod-1"}, {"DBOS__VMID": "vm-1"}, "pod-1"),
        ({"executor_id": "pod-1"}, {"DBOS__VMID": "vm-1", "DBOS__CLOUD": "true"}, "vm-1"),
    ],
)
def test_the_executor_is_named_by_the_configuration_before_the_environment(
    config: dict[str, Any], environ: dict[str, str], executor: str
) -> None:
    assert settings(environ, **config).executor_id == executor


def test_the_application_id_comes_from_the_environment() -> None:
    assert settings({"DBOS__APPID": "shop"}).application_id == "shop"


def test_the_environment_does_not_choose_the_databases() -> None:
    environ = {"DBOS_DATABASE_URL": f"{SERVER}/env", "DBOS_SYSTEM_DATABASE_URL": f"{SERVER}/env"}

    assert settings(environ).system_database_url == "sqlite:///my_app.sqlite"


# -- database URLs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("application", "system", "expected_application", "expected_system"),
    [
        (None, f"{SERVER}/sys", None, f"{SERVER}/sys"),
        (f"{SERVER}/app", None, f"{SERVER}/app", f"{SERVER}/app_dbos_sys"),
        ("sqlite:///app.sqlite", None, "sqlite:///app.sqlite", "sqlite:///app.sqlite"),
        (None, "sqlite:///sys.sqlite", "sqlite:///sys.sqlite", "sqlite:///sys.sqlite"),
        (f"{SERVER}/app", f"{SERVER}/sys", f"{SERVER}/app", f"{SERVER}/sys"),
        ("sqlite:///app.sqlite", f"{SERVER}/sys", "sqlite:///app.sqlite", f"{SERVER}/sys"),
        (f"{SERVER}/app", "sqlite:///sys.sqlite", f"{SERVER}/app", "sqlite:///sys.sqlite"),
        (None, None, "sqlite:///my_app.sqlite", "sqlite:///my_app.sqlite"),
    ],
)
def test_a_database_that_is_not_given_follows_from_the_other(
    application: str | None, system: str | None, expected_application: str | None, expected_system: str
) -> None:
    made = settings(application_database_url=application, system_database_url=system)

    assert made.application_database_url == expected_application
    assert made.system_database_url == expected_system


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+asyncpg"])
def test_every_spelling_of_postgresql_uses_the_same_driver(scheme: str) -> None:
    made = settings(system_database_url=f"{scheme}://user:secret@host:5432/sys")

    assert made.system_database_url == f"{SERVER}/sys"


@pytest.mark.parametrize(("old", "expected"), [("sqlite:///old.sqlite", "sqlite:///old.sqlite"), (None, None)])
def test_the_former_key_of_the_application_database_wins_by_its_presence(old: str | None, expected: str | None) -> None:
    made = settings(
        database_url=old,
        application_database_url="sqlite:///new.sqlite",
        system_database_url=f"{SERVER}/sys",
    )

    assert made.application_database_url == expected


@pytest.mark.parametrize(
    ("name", "file"), [("shop-app", "shop_app"), ("9lives", "_9lives"), ("snake_case", "snake_case")]
)
def test_the_default_file_is_named_after_the_application(name: str, file: str) -> None:
    assert settings(name=name).system_database_url == f"sqlite:///{file}.sqlite"


def test_the_password_of_a_derived_url_stays_escaped() -> None:
    made = settings(application_database_url="postgresql://user:p%40ss%2Fword@host/app")

    assert made.system_database_url == "postgresql+psycopg://user:p%40ss%2Fword@host/app_dbos_sys"


@pytest.mark.parametrize("url", ["postgresql://user:secret@host", "postgresql://user:secret@host/"])
def test_a_postgresql_url_without_a_database_is_refused(url: str) -> None:
    with pytest.raises(DBOSInitializationError, match="Database name must be specified in the connection URL"):
        settings(system_database_url=url)


@pytest.mark.parametrize(
    "url",
    ["secret", "postgresql://user:secret@host:port/db", "mysql://user:secret@host/db", "postgresql://u:secr@et@h/d"],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(DBOSInitializationError, match="system_database_url") as caught:
        settings(system_database_url=url)

    assert "secr" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_a_sqlite_database_without_a_plain_file_is_refused_with_advice(url: str) -> None:
    with pytest.raises(DBOSInitializationError, match="sqlite:///"):
        settings(system_database_url=url)


def test_a_sqlite_url_with_a_broken_form_is_refused() -> None:
    with pytest.raises(DBOSInitializationError, match="not a SQLite URL"):
        settings(system_database_url="sqlite:app.db")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////var/lib/app.sqlite", "/var/lib/app.sqlite"),
        ("sqlite+pysqlite:////a b/app.sqlite", "/a b/app.sqlite"),
        ("sqlite:////app.sqlite?timeout=5", "/app.sqlite"),
    ],
)
def test_a_sqlite_url_names_a_path(url: str, path: str) -> None:
    assert sqlite_path(url) == Path(path)


def test_an_engine_says_where_the_system_database_is(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/own.sqlite")

    made = settings(system_database_engine=engine)

    assert made.sqlite_path == tmp_path / "own.sqlite"
    assert made.system_database_engine is engine


def test_without_a_name_and_urls_there_is_no_database() -> None:
    with pytest.raises(DBOSInitializationError, match="No database was named"):
        resolve_database_urls(system_url=None, application_url=None)


# -- connections ------------------------------------------------------------------------------------------------------


def test_libpq_receives_every_part_of_a_url() -> None:
    made = settings(system_database_url="postgresql://us%40er:p%40ss@host:5433/sys?sslmode=require&options=-c%20a%3Db")

    assert made.conninfo == {
        "application_name": "dbos_transact",
        "connect_timeout": "10",
        "host": "host",
        "port": "5433",
        "user": "us@er",
        "password": "p@ss",
        "dbname": "sys",
        "sslmode": "require",
        "options": "-c a=b",
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("host=/var/run/postgresql", {"host": "/var/run/postgresql"}),
        ("host=a:1&host=b:2", {"host": "a,b", "port": "1,2"}),
        ("host=a:1&host=b", {"host": "a,b", "port": "1,"}),
        ("host=[::1]:5&host=::1", {"host": "::1,::1", "port": "5,"}),
    ],
)
def test_libpq_receives_sockets_and_several_hosts(query: str, expected: dict[str, str]) -> None:
    conninfo = libpq_conninfo(f"postgresql:///sys?{query}")

    assert {key: value for key, value in conninfo.items() if key in ("host", "port")} == expected


@pytest.mark.parametrize(
    ("config", "timeout"),
    [
        ({"system_database_url": f"{SERVER}/sys"}, 10),
        ({"system_database_url": f"{SERVER}/sys?connect_timeout=3"}, 3),
        ({"application_database_url": f"{SERVER}/app?connect_timeout=4"}, 4),
        (
            {
                "system_database_url": f"{SERVER}/sys?connect_timeout=3",
                "application_database_url": f"{SERVER}/app?connect_timeout=4",
            },
            3,
        ),
        (
            {
                "system_database_url": f"{SERVER}/sys?connect_timeout=3",
                "db_engine_kwargs": {"connect_args": {"connect_timeout": 7}},
            },
            7,
        ),
    ],
)
def test_the_connect_timeout_comes_from_the_engine_then_the_system_url_then_the_application_url(
    config: dict[str, Any], timeout: int
) -> None:
    made = settings(**config)

    assert made.connect_timeout_s == timeout
    assert made.conninfo["connect_timeout"] == str(timeout)
    assert made.system_engine_kwargs["connect_args"]["connect_timeout"] == timeout


@pytest.mark.parametrize("query", ["connect_timeout=1&connect_timeout=2", "connect_timeout=soon"])
def test_a_connect_timeout_that_is_no_single_number_is_refused(query: str) -> None:
    with pytest.raises(DBOSInitializationError, match="connect_timeout"):
        settings(system_database_url=f"{SERVER}/sys?{query}")


def test_connect_arguments_of_the_engine_reach_direct_connections() -> None:
    connect_args = {"sslmode": "verify-full", "application_name": "shop", "prepare_threshold": 0, "autocommit": True}

    conninfo = settings(system_database_url=f"{SERVER}/sys", db_engine_kwargs={"connect_args": connect_args}).conninfo

    assert conninfo["sslmode"] == "verify-full"
    assert conninfo["application_name"] == "shop"
    assert "prepare_threshold" not in conninfo
    assert "autocommit" not in conninfo


def test_engine_arguments_are_merged_over_the_defaults() -> None:
    kwargs = engine_kwargs_for(f"{SERVER}/app", {"pool_size": 3, "echo": True, "connect_args": {"sslmode": "require"}})

    assert kwargs["pool_size"] == 3
    assert kwargs["echo"] is True
    assert kwargs["pool_pre_ping"] is True
    assert kwargs["hide_parameters"] is True
    assert kwargs["connect_args"] == {
        "application_name": "dbos_transact",
        "connect_timeout": 10,
        "sslmode": "require",
    }


def test_engine_arguments_of_postgresql_do_not_reach_sqlite() -> None:
    given = {"connect_args": {"application_name": "shop", "connect_timeout": 5, "timeout": 30}}

    kwargs = engine_kwargs_for("sqlite:///app.sqlite", given)

    assert kwargs["connect_args"] == {"timeout": 30}


def test_an_engine_without_a_pool_is_given_no_pool_settings() -> None:
    made = settings(db_engine_kwargs={"poolclass": NullPool})

    sqlalchemy.create_engine(made.system_database_url, **made.system_engine_kwargs).dispose()

    assert "pool_size" not in made.system_engine_kwargs
    assert "pool_timeout" not in made.application_engine_kwargs


def test_the_size_of_the_system_pool_overrides_the_engine_arguments() -> None:
    made = settings(sys_db_pool_size=5, db_engine_kwargs={"pool_size": 3})

    assert made.system_engine_kwargs["pool_size"] == 5
    assert made.application_engine_kwargs["pool_size"] == 3


def test_settings_do_not_change_with_the_dictionary_they_came_from() -> None:
    given = {"pool_size": 3}
    made = settings(db_engine_kwargs=given)

    given["pool_size"] = 4

    assert made.application_engine_kwargs["pool_size"] == 3


# -- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:geheim@host/db",
        "postgresql://user:ge%40geheim@host/db",
        "postgresql://user:x@geheim@host/db",
        "postgresql://host/db?password=geheim",
        "postgresql://host/db?sslkey=geheim&sslpassword=geheim&passfile=geheim",
        "postgresql://host/db?PASSWORD=geheim",
        "postgresql://host/db?password=a&password=geheim",
        "postgresql://user:geheim@host:port/db",
        "geheim",
    ],
)
def test_a_masked_url_hides_passwords_wherever_they_stand(url: str) -> None:
    assert "geheim" not in mask_url(url)


def test_a_masked_url_keeps_what_helps_to_find_the_database() -> None:
    masked = mask_url("postgresql://user:geheim@host:5432/db?sslmode=require&sslkey=geheim")

    assert masked == "postgresql://user:***@host:5432/db?sslkey=***&sslmode=require"
    assert mask_url("sqlite:////var/app.sqlite") == "sqlite:////var/app.sqlite"


def test_printed_settings_show_no_secrets() -> None:
    made = settings(
        system_database_url="postgresql://user:geheim@host/db",
        db_engine_kwargs={"connect_args": {"password": "geheim"}},
    )

    assert "geheim" not in repr(made)


# -- serializers ------------------------------------------------------------------------------------------------------


class Reversing(Serializer):
    def serialize(self, data: Any) -> str:
        return str(data)[::-1]

    def deserialize(self, serialized_data: str) -> Any:
        return serialized_data[::-1]

    def name(self) -> str:
        return "reversing"


def test_the_serializer_and_the_allowed_formats_become_one_value() -> None:
    made = settings(serializer=Reversing(), allowed_serializers=["reversing"])

    assert made.serialization.dump_value("abc") == ("cba", "reversing")
    assert made.serialization.allowed == frozenset({"reversing", "portable_json"})


@pytest.mark.parametrize(
    ("config", "phrase"),
    [
        ({"allowed_serializers": []}, "is empty"),
        ({"allowed_serializers": ["jsn"]}, "did you mean 'json'"),
        ({"allowed_serializers": ["json"], "serializer": Reversing()}, "does not list 'reversing'"),
    ],
)
def test_allowed_formats_that_make_no_sense_are_refused(config: dict[str, Any], phrase: str) -> None:
    with pytest.raises(DBOSInitializationError, match=phrase):
        settings(**config)
