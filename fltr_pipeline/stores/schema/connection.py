"""One short-lived connection for schema work.

Belongs here: opening it and saying plainly why it failed. Does not: pools for the running pipeline (`stores.database`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import IsolationLevel, conninfo

from fltr_pipeline.errors import ConfigurationError, StoreUnavailable

Connection = psycopg.Connection[Any]

_SCHEMES = ("postgresql://", "postgres://", "postgresql+psycopg://", "postgresql+psycopg2://")


def libpq_url(url: str) -> str:
    """The URL without SQLAlchemy's driver name.

    Raises:
        ConfigurationError: it is not a PostgreSQL URL.
    """
    scheme, separator, rest = url.partition("://")
    if scheme + separator not in _SCHEMES:
        raise ConfigurationError("a database URL must start with postgresql:// or postgresql+psycopg://")
    return f"postgresql://{rest}"


def as_role(url: str, role: str) -> str:
    """The same database as another role, without a password: for servers that trust local connections."""
    parts = conninfo.conninfo_to_dict(libpq_url(url))
    host, port, name = (str(parts.get(key, "")) for key in ("host", "port", "dbname"))
    return f"postgresql://{role}@/{name}?host={quote(host, safe='')}" + (f"&port={port}" if port else "")


@contextmanager
def transaction(
    url: str, *, isolation: IsolationLevel = IsolationLevel.READ_COMMITTED, read_only: bool = False
) -> Iterator[Connection]:
    """One transaction on a connection of its own, in UTC; rolled back when the block raises.

    Raises:
        ConfigurationError: not a PostgreSQL URL.
        StoreUnavailable: the server does not answer, refuses the login or goes away.
    """
    try:
        with _connect(url) as connection:
            connection.execute("SET TIME ZONE 'UTC'")  # PgBouncer may refuse it as a parameter of the connection
            connection.commit()
            connection.isolation_level = isolation
            connection.read_only = read_only
            yield connection
    except psycopg.OperationalError as error:
        # The driver's message names host, database and role, of which `_connect` knows that they hold no password.
        raise StoreUnavailable(f"PostgreSQL does not answer: {error}") from error


def _connect(url: str) -> Connection:
    try:
        parts = conninfo.conninfo_to_dict(libpq_url(url))
    except psycopg.ProgrammingError:  # quotes the URL, and the password in it
        parts = None
    if parts is None or _holds_password(parts):
        raise ConfigurationError("a database URL can't be parsed; %-encode special characters in it")
    return psycopg.connect(libpq_url(url), connect_timeout=10, prepare_threshold=None)


def _holds_password(parts: Mapping[str, Any]) -> bool:
    """For libpq a password ends at its first `@` or `/`: what follows is host, port or database. A folder is none."""
    host = str(parts.get("host", ""))
    return "@" in f"{'' if host.startswith('/') else host}{parts.get('port')}{parts.get('dbname')}"
