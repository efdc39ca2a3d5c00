"""A process that runs the migration and is killed at a statement: forked off a server that has imported everything.

Belongs here: counting statements, dying at one, waiting until the server has noticed. Does not: what must hold then.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg

from fltr_pipeline.stores.schema import migration
from fltr_pipeline.stores.schema.migration import change, session

_DEADLINE = 60.0
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])

READS = ("SELECT", "WITH")
COMMIT = "COMMIT"


class Moment(StrEnum):
    """Where, around a statement, the process dies."""

    BEFORE = "before"
    SENT = "sent"
    """The server is at work on it, and the process doesn't wait for the answer."""
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Point:
    """The moment of the statement of that number, counted from 1 in the transaction that has the tables for itself."""

    number: int
    statement: str
    moment: Moment


Work = Callable[[str, Path], object]


def apply(url: str, folder: Path) -> None:
    migration.apply(url, folder, null_orphan_teams=True, tell=_silent)


def rollback(url: str, folder: Path) -> None:
    migration.rollback(url, folder, tell=_silent)


def points(work: Work, url: str, folder: Path) -> list[Point]:
    """Runs the work to its end, and returns all points of it: a statement that only reads has but one."""
    statements = _run(work, url, folder, None)
    assert statements is not None
    return [
        Point(number, statement, moment)
        for number, statement in enumerate(statements, 1)
        for moment in ([Moment.BEFORE] if statement.startswith(READS) else Moment)
    ]


def kill(work: Work, url: str, folder: Path, point: Point) -> None:
    """Runs the work until that point, and waits until the server has ended what the dead process left."""
    assert _run(work, url, folder, point) is None, f"{point} was not reached"
    deadline = time.monotonic() + _DEADLINE
    with psycopg.connect(url, autocommit=True) as connection:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        while connection.execute(others).fetchone() != (0,):
            assert time.monotonic() < deadline, "the server does not notice that its client is dead"
            time.sleep(0.01)


def _silent(_: str) -> None: ...


def _run(work: Work, url: str, folder: Path, point: Point | None) -> list[str] | None:
    """The statements, or None when the process was killed."""
    receiver, sender = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_main, args=(work, url, folder, point, sender))
    process.start()
    sender.close()
    try:
        assert receiver.poll(_DEADLINE), "the process does not come to an end"
        statements: list[str] = receiver.recv()
    except EOFError:
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"the process broke: exit code {process.exitcode}"
        return None
    else:
        return statements
    finally:
        process.kill()
        process.join()
        receiver.close()


def _no_dump(_: str, folder: Path, *, without: Sequence[str]) -> Path:
    """A pg_dump per point would take minutes."""
    return folder / "none.dump"


def _main(work: Work, url: str, folder: Path, point: Point | None, sender: Pipe) -> None:
    probe = _Probe(point)

    def watched(*arguments: Any) -> Any:
        probe.active = True
        return session.exclusive(*arguments)

    with (
        patch.object(change, "exclusive", watched),
        patch.object(change, "dump", _no_dump),
        patch.object(psycopg.Connection, "execute", probe.watch(psycopg.Connection.execute)),
        patch.object(psycopg.Connection, "commit", probe.watch(psycopg.Connection.commit)),
    ):
        work(url, folder)
    sender.send(probe.statements)


class _Probe:
    def __init__(self, point: Point | None) -> None:
        self.active = False
        self.statements: list[str] = []
        self._point = point

    def watch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def execute(connection: Any, *arguments: Any, **options: Any) -> Any:
            if not self.active:
                return original(connection, *arguments, **options)
            self.statements.append(_words(connection, *arguments))
            self._die(Moment.BEFORE)
            if self._is(Moment.SENT):
                connection.pgconn.send_query(self.statements[-1].encode())
                _kill()
            result = original(connection, *arguments, **options)
            self._die(Moment.AFTER)
            if self.statements[-1] == COMMIT:
                self.active = False
            return result

        return execute

    def _is(self, moment: Moment) -> bool:
        return self._point is not None and (self._point.number, self._point.moment) == (len(self.statements), moment)

    def _die(self, moment: Moment) -> None:
        if self._is(moment):
            _kill()


def _words(connection: Any, query: Any = COMMIT, *_: Any) -> str:
    if isinstance(query, bytes):
        return query.decode().strip()
    return str(query if isinstance(query, str) else query.as_string(connection)).strip()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
