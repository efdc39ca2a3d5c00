"""PostgreSQL engines, and the two ways in which rows travel as one parameter.

Belongs here: what both databases need. Does not: any table's name.

Ids may be text, varchar or uuid, as whoever created the tables chose. An id or an array of ids is therefore sent
without a type (`= ANY(:ids)` with an array literal takes the column's own type and its index), and read as `id::text`.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from pydantic import SecretStr
from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from fltr_pipeline.errors import ConfigurationError, FltrError, InvalidValue, SchemaDrift, StoreUnavailable

_READ_ONLY = "25006"
"""SQLSTATE of a write on a server that was demoted, or in a transaction that was begun to read only."""

_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
"""JSON's escape for NUL; not where its backslash is itself escaped, as in a file that is named `\\u0000`."""

_KEEPALIVES = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""Of libpq, seconds and milliseconds: who waits for a host that vanished learns so within a minute, not in hours.

The first three are for who waits for an answer, the last for who has sent what is not acknowledged.
"""


@functools.cache
def _engine(url: str, pre_ping: bool) -> Engine:
    scheme, _, rest = url.partition("://")
    if scheme not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise ConfigurationError("a database URL must start with postgresql://")  # it may hold a password: not repeated
    engine = create_engine(
        parsed(f"postgresql+psycopg://{rest}"),
        pool_size=4,
        max_overflow=4,
        pool_timeout=30,
        pool_pre_ping=pre_ping,
        hide_parameters=True,  # an error's message must not carry a customer's text
        # A pooler may give each transaction another server's session: there a prepared statement is not known.
        connect_args={
            "prepare_threshold": None,
            "fallback_application_name": "fltr_pipeline",
            "connect_timeout": 10,
            **_KEEPALIVES,
        },
    )
    event.listen(engine, "connect", _to_utc)
    event.listen(engine, "handle_error", _leave_a_demoted_server)
    return engine


def _to_utc(connection: psycopg.Connection[Any], _record: object) -> None:
    """Whatever the server's zone: `timestamp` columns of the web application hold UTC.

    Said in SQL, it is what PgBouncer restores in each session; the connection parameter `options` it may refuse.
    """
    connection.execute("SET TIME ZONE 'UTC'")
    connection.commit()


def _leave_a_demoted_server(context: ExceptionContext) -> None:
    """The pool's connections are all to the server that is read-only by now; new ones may lead to its successor."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


def parsed(url: str) -> URL:
    """The URL's parts, as SQLAlchemy reads them.

    Raises:
        ConfigurationError: it can't, or takes a part of a password with an `@` of its own for the host's name, which
            messages tell.
    """
    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):
        parts = None
    if parts is None or "@" in f"{parts.host}{parts.database}":
        raise ConfigurationError(
            "a database URL must be postgresql://user:password@host:port/database, "
            "with a special character of the password as its code, such as %40 for @"
        )
    return parts


def engine_for(url: SecretStr, *, pre_ping: bool = True) -> Engine:
    """The process's one engine for this URL; connects when first used.

    Args:
        url: Of the database.
        pre_ping: Ask a pooled connection whether it still stands before each transaction: a round trip that a
            caller who repeats a transaction that was cut off can do without.

    Raises:
        ConfigurationError: the URL is not PostgreSQL's, or not a URL.
    """
    return _engine(url.get_secret_value(), pre_ping)


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One READ COMMITTED transaction.

    Raises:
        StoreUnavailable: the server does not answer, went away, takes no writes, or can't work at present; or the pool
            is exhausted.
        SchemaDrift: a table, column, function or index is not there, or not for this role.
        InvalidValue: a value is larger than an index or a function takes.
        DBAPIError: a column, a constraint or a trigger refuses a row.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except PoolTimeout as error:
        raise _outage(error, engine.url.database) from error
    except DBAPIError as error:
        _withhold_details(error)
        if (meaning := _meaning(error, engine.url.database)) is None:
            raise
        raise meaning from error


def _meaning(error: DBAPIError, name: str | None) -> FltrError | None:
    """What every caller is told, by the class of the SQLSTATE; None: the rows that were sent may be the cause.

    A class that is not named here is the server's trouble, which every document would meet: it is better that one
    waits in vain, which is seen, than that healthy ones fail.
    """
    match (getattr(error.orig, "sqlstate", None) or "")[:2]:
        case "" if not (isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated):
            return None  # the driver itself refuses what it was given
        case "21" | "22" | "23" | "44":  # cardinality, data, constraint, check of a view
            return None
        case "P0" | "27" | "2F" | "38" | "39":  # a trigger refuses, or breaks
            return None
        case "54":  # a limit of the program, which another try would meet, too
            return InvalidValue(
                f"database {name} can't hold a value of that size ({reason(error)}): if an index of the application "
                "is in its way, make it one on md5(...) or left(...) of the column"
            )
        case "3F" | "42":  # no such schema; no such table, column, function or index, or not for this role
            return SchemaDrift(
                f"database {name} is not as specified ({reason(error)}): "
                "`fltr-pipeline db verify` lists the differences, `db init` creates what is absent"
            )
        case _:  # class 40 (deadlock, serialization) means that the server is well; the caller may simply run it again
            return _outage(error, name)


def _withhold_details(error: DBAPIError) -> None:
    """PostgreSQL's DETAIL quotes the row that it refuses, a customer's text with it: no message and no log has that."""
    for told in (error, error.orig):
        if told is not None and told.args:
            told.args = (_first_line(told.args[0]),)


def _outage(error: DBAPIError | PoolTimeout, name: str | None) -> StoreUnavailable:
    return StoreUnavailable(f"database {name} did not complete a transaction ({reason(error)})")


def reason(error: Exception) -> str:
    """The first line of what it says, of a database's error of what the driver says: neither SQL nor its parameters."""
    origin = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return _first_line(origin) or type(origin).__name__


def _first_line(message: object) -> str:
    return next(iter(str(message).strip().splitlines()), "")


def id_array(ids: Iterable[str]) -> str:
    """An array literal for `= ANY(:ids)`, of whatever type the column has."""
    return "{" + ",".join('"' + i.replace("\\", "\\\\").replace('"', '\\"') + '"' for i in ids) + "}"


def recordset(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as one JSON parameter for `json_to_recordset` or `json_populate_recordset`.

    NUL and lone surrogates, which PostgreSQL can't store, are left out: a parser's message may quote them.
    """
    document = _JSON.encode(list(rows))
    if r"\u0000" in document:  # the expression itself takes a hundred times as long
        document = _NUL.sub(r"\1", document)
    return document.encode("utf-8", "ignore").decode()
