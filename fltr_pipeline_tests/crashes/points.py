"""Points: before and after each statement and COMMIT that a process sends to its databases, by name.

Belongs here: listening to an engine, and what happens at the point. Does not: starting the process (victim).
"""

import os
import re
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from sqlalchemy import Engine, event

_VERB = re.compile(r"\b(INSERT|UPDATE|DELETE|SELECT)\b")
_TABLE = re.compile(r"\b(?:INTO|UPDATE|FROM|JOIN)\s+((?!json\w+\s*\()[a-z_]+(?:\.[a-z_]+)?)\b")


class Moment(StrEnum):
    """Where, around a step, the process is hit."""

    BEFORE = "before"
    AFTER = "after"
    SENT = "sent"
    """A COMMIT is on its way, and the process dies without waiting for the answer."""
    LOST = "lost"
    """A COMMIT is on its way, and the connection is cut before the answer: the process lives and may try again."""


@dataclass(frozen=True, slots=True)
class Step:
    """A statement or COMMIT, counted from 1 through both databases."""

    number: int
    database: str
    name: str
    """`INSERT credit_transactions`, `SELECT pipeline.charges`, `COMMIT`."""

    def __str__(self) -> str:
        return f"{self.database} / {self.number} {self.name}"

    @classmethod
    def parse(cls, line: str) -> "Step":
        """What `str` made."""
        database, _, rest = line.partition(" / ")
        number, _, name = rest.partition(" ")
        return cls(int(number), database, name)

    @property
    def moments(self) -> tuple[Moment, ...]:
        """All four for a COMMIT."""
        return tuple(Moment) if self.name == "COMMIT" else (Moment.BEFORE, Moment.AFTER)


@dataclass(frozen=True, slots=True)
class Point:
    """One moment of one step."""

    step: Step
    moment: Moment

    def __str__(self) -> str:
        return f"{self.step} / {self.moment}"


def statement_name(sql: str) -> str:
    """Verb and first table: enough to find the statement in the code."""
    verb, table = _VERB.search(sql), _TABLE.search(sql)
    return f"{verb[1] if verb else sql.split(maxsplit=1)[0]} {table[1] if table else ''}".strip()


class Probe:
    """Counts the steps of this process and, at `point`, ends it there (or cuts its connection)."""

    def __init__(self, point: Point | None) -> None:
        self.steps: list[Step] = []
        self.hit = False
        self._point = point

    def watch(self, engine: Engine, database: str) -> None:
        """Listen to every statement and COMMIT of the engine from now on."""

        def before(*arguments: Any) -> None:
            self._begin(database, statement_name(arguments[2]))

        def after(*_: Any) -> None:
            self._reach(Moment.AFTER)

        event.listen(engine, "before_cursor_execute", before)
        event.listen(engine, "after_cursor_execute", after)
        engine.dialect.do_commit = partial(self._commit, database, engine.dialect.do_commit)  # type: ignore[method-assign]

    def _begin(self, database: str, name: str) -> None:
        self.steps.append(Step(len(self.steps) + 1, database, name))
        self._reach(Moment.BEFORE)

    def _reach(self, moment: Moment) -> None:
        if self._is(moment):
            os.kill(os.getpid(), signal.SIGKILL)

    def _is(self, moment: Moment) -> bool:
        here = self._point == Point(self.steps[-1], moment)
        self.hit |= here
        return here

    def _commit(self, database: str, commit: Callable[[Any], None], connection: Any) -> None:
        self._begin(database, "COMMIT")
        server = connection.driver_connection.pgconn
        if self._is(Moment.SENT):
            server.send_query(b"COMMIT")
            server.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if self._is(Moment.LOST):
            with socket.socket(fileno=os.dup(server.socket)) as answers:
                answers.shutdown(socket.SHUT_RD)
        commit(connection)
        self._reach(Moment.AFTER)
