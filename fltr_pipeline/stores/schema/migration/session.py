"""Transactions of the migration: one that only looks, one that has the tables for itself; and who is in the way.

Belongs here: locks, their limits, PostgreSQL's refusals in our words. Does not: what is done under them (`change`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import IsolationLevel, sql

from fltr_pipeline.errors import ConfigurationError, DatabaseBusy, MigrationRefused, StoreUnavailable
from fltr_pipeline.stores.schema.connection import Connection, transaction

APPLICATION = "fltr-pipeline migrate-auth"
"""How `pg_stat_activity` names us."""

LOCK_WAIT_MS = 2_000
"""For `users`. Everybody who wants that table waits behind us, so not for long."""

NEXT_LOCK_WAIT_MS = 200
"""For the others, while we hold `users`: far below PostgreSQL's deadlock_timeout (1 s), so that of two who wait for
each other it is we who give up, never the application."""

IDLE_MS = 60_000
"""Should this process be suspended, the server takes everything back and gives the tables free after this time."""

_ADVISORY = "SELECT pg_try_advisory_lock(hashtextextended('fltr_pipeline.stores.schema.migration', 0))"

# Not every version has all of them.
_SET = """
SELECT set_config(name, value, %s) FROM unnest(%s::text[], %s::text[]) AS limits (name, value)
WHERE name IN (SELECT name FROM pg_settings)
"""

_OTHERS = """
SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relname IN ('teams', 'user_credits', '__drizzle_migrations')
  AND c.relkind IN ('r', 'p')
"""

_SESSIONS = """
SELECT l.pid, coalesce(a.usename::text, a.backend_type, 'a prepared transaction'),
       coalesce(a.application_name, p.gid, ''), coalesce(a.state, ''),
       string_agg(DISTINCT c.relname || ' ' || l.mode, ', '),
       coalesce(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared)), 0)::float AS seconds
FROM pg_locks l
JOIN pg_class c ON c.oid = l.relation
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN (pg_locks x JOIN pg_prepared_xacts p ON p.transaction = x.transactionid)
    ON l.pid IS NULL AND x.pid IS NULL AND x.virtualtransaction = l.virtualtransaction
WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.granted
  AND l.relation IN (to_regclass('public.users'), to_regclass('public.teams'), to_regclass('public.user_credits'),
                     to_regclass('public.__drizzle_migrations'))
  AND l.pid IS DISTINCT FROM pg_backend_pid()
GROUP BY l.pid, a.usename, a.backend_type, a.application_name, a.state, a.xact_start, p.gid, p.prepared
ORDER BY seconds DESC
"""


@dataclass(frozen=True, slots=True)
class Session:
    """A session that holds a lock on one of the tables."""

    pid: int | None
    """None of a prepared transaction."""
    role: str
    """Or what it is, where it has none."""
    application: str
    """Or a prepared transaction's identifier."""
    state: str
    locks: str
    seconds: float
    """How long its transaction has been open."""

    def __str__(self) -> str:
        words = ", ".join(word for word in (self.role, self.application, self.state) if word)
        return f"session {self.pid or '-'} ({words}; {self.locks}; for {self.seconds:.0f} s)"


Tell = Callable[[str], object]
"""Takes what there is to say while a run is under way."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often the tables are tried for, and the pause in between, in which the application goes on."""

    attempts: int = 5
    pause_seconds: float = 3.0


def sessions(connection: Connection) -> tuple[Session, ...]:
    """Who holds a lock on one of the tables at this moment, the longest first."""
    return tuple(Session(*row) for row in connection.execute(_SESSIONS))


@contextmanager
def looking(url: str) -> Iterator[Connection]:
    """One snapshot, read-only; waits for nobody for long and keeps nobody waiting but those who want a table alone.

    Raises:
        DatabaseBusy: somebody has one of the tables for themselves.
        ConfigurationError: not a PostgreSQL URL, or its role may not read the tables.
        StoreUnavailable: the server does not answer.
    """
    with transaction(url, isolation=IsolationLevel.REPEATABLE_READ, read_only=True) as connection:
        _limit(connection, LOCK_WAIT_MS)
        with _explained():
            try:
                yield connection
            except psycopg.errors.LockNotAvailable:
                connection.rollback()
                raise _busy(sessions(connection)) from None


@contextmanager
def only_run(url: str) -> Iterator[Connection]:
    """A connection, in no transaction yet, whose advisory lock keeps other runs away until it is closed.

    Raises:
        DatabaseBusy: another run is under way.
        MigrationRefused: the server is a standby.
        ConfigurationError: not a PostgreSQL URL.
        StoreUnavailable: the server does not answer or goes away.
    """
    with transaction(url) as connection:
        with _explained():
            alone = connection.execute(_ADVISORY).fetchone() == (True,)
            _set(connection, {"idle_session_timeout": "0"}, local=False)  # it waits for the dump
        if not alone:
            raise DatabaseBusy(
                "another migrate-auth is at work on this database, so nothing was done: wait for its end"
            )
        connection.commit()
        yield connection


@contextmanager
def exclusive(connection: Connection, patience: Patience, tell: Tell) -> Iterator[None]:
    """One transaction that has `users`, `teams`, `user_credits` and the journal for itself from its first look on.

    Raises:
        DatabaseBusy: others held on to them; nothing was changed.
        MigrationRefused: PostgreSQL refused a statement; nothing was changed.
        ConfigurationError: the role may not do this.
        StoreUnavailable: the server went away.
    """
    in_the_way: tuple[Session, ...] = ()
    for attempt in range(patience.attempts):
        if attempt:
            tell(f"in use, next attempt in {patience.pause_seconds:g} s: {_named(in_the_way)}")
            time.sleep(patience.pause_seconds)
        with _explained():
            if _locked(connection):
                with _outcome_in_doubt(connection):
                    yield
                    connection.commit()
                return
        connection.rollback()
        in_the_way = sessions(connection)
        connection.rollback()
    raise _busy(in_the_way)


def _locked(connection: Connection) -> bool:
    """Takes the tables before anything reads them: a reader that then asks for more deadlocks with the application."""
    _limit(connection, LOCK_WAIT_MS)
    try:
        connection.execute("LOCK TABLE public.users IN ACCESS EXCLUSIVE MODE")
        _limit(connection, NEXT_LOCK_WAIT_MS)
        for (name,) in connection.execute(_OTHERS).fetchall():
            lock = sql.SQL("LOCK TABLE public.{} IN ACCESS EXCLUSIVE MODE")
            connection.execute(lock.format(sql.Identifier(name)))
        # A deferred check that waits for COMMIT would keep its table from being altered after a row was written.
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        return False
    return True


def _limit(connection: Connection, lock_wait_ms: int) -> None:
    """`row_security` off: a policy that hides rows from us becomes an error, never a copy that lacks them."""
    limits = {
        "lock_timeout": f"{lock_wait_ms}ms",
        "idle_in_transaction_session_timeout": f"{IDLE_MS}ms",
        "statement_timeout": "0",
        "transaction_timeout": "0",
        "row_security": "off",
        "application_name": APPLICATION,
    }
    _set(connection, limits, local=True)


def _set(connection: Connection, settings: dict[str, str], *, local: bool) -> None:
    connection.execute(_SET, (local, list(settings), list(settings.values())))


def _busy(in_the_way: tuple[Session, ...]) -> DatabaseBusy:
    return DatabaseBusy(
        "other sessions hold on to users, teams, user_credits or the journal, so nothing was changed: try again, or "
        "end them first (pg_terminate_backend; ROLLBACK PREPARED of a prepared transaction). "
        f"In the way: {_named(in_the_way)}"
    )


def _named(in_the_way: tuple[Session, ...]) -> str:
    return "; ".join(map(str, in_the_way)) or "nobody any more"


@contextmanager
def _outcome_in_doubt(connection: Connection) -> Iterator[None]:
    """A connection that is lost around COMMIT doesn't tell whether it happened."""
    try:
        yield
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
        # Of users, teams, user_credits and the journal nobody else has a lock by now: it is a table beside them.
        raise DatabaseBusy(
            "another session holds on to a further table that a statement needs, so nothing was changed "
            f"({error.diag.message_primary}): look for it in pg_locks and try again, or end it (pg_terminate_backend)"
        ) from error
    except (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout) as error:
        if not connection.closed:  # a full disk, a cancelled statement: nothing is in doubt
            raise _refused(error) from error
        raise StoreUnavailable(
            f"the connection was lost or the server gave up ({str(error).strip()}): all of it happened or nothing, "
            "and `fltr-pipeline db migrate-auth --plan` tells which"
        ) from error


@contextmanager
def _explained() -> Iterator[None]:
    """What PostgreSQL refuses, in the words of the one who has to act."""
    try:
        yield
    except psycopg.OperationalError:
        raise
    except psycopg.errors.InsufficientPrivilege as error:
        said = ". ".join(filter(None, (error.diag.message_primary, error.diag.message_hint)))
        raise ConfigurationError(
            f"the role in the URL may not do this, nothing was changed ({said}): give the URL of the owner of users, "
            "teams, user_credits and the journal, or of an administrator or, where policies are why, of a role with "
            "BYPASSRLS"
        ) from error
    except psycopg.Error as error:
        raise _refused(error) from error


def _refused(error: psycopg.Error) -> MigrationRefused:
    said = " ".join(filter(None, (error.diag.message_primary, error.diag.message_detail))) or str(error)
    return MigrationRefused(f"PostgreSQL refused a statement, and everything was taken back: {said}")
