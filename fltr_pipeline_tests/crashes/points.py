"""Points: before, in the midst of and after each step of a process that a store could notice, by name.

Belongs here: listening to an engine, and what happens at the point. Does not: starting the process (victim), the stores
that are no database (writes).
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

_READ = re.compile(r"^\s*(SELECT|WITH|SHOW)\b")
_WRITE = re.compile(r"\b(INSERT INTO|(?<!FOR )(?<!DO )UPDATE|DELETE FROM|TRUNCATE)\s+([a-z_]+(?:\.[a-z_]+)?)")
_VERB = re.compile(r"\b(INSERT|UPDATE|DELETE|SELECT)\b")
_TABLE = re.compile(r"\b(?:INTO|UPDATE|FROM|JOIN)\s+((?!json\w+\s*\()[a-z_]+(?:\.[a-z_]+)?)\b")


class Moment(StrEnum):
    """Where, around a step, the process is hit."""

    BEFORE = "before"
    AFTER = "after"
    SENT = "sent"
    """A COMMIT is on its way, and the process dies without waiting for the answer."""
    LOST = "lost"
    """A COMMIT, or a call of Milvus, is on its way, and the connection is cut before the answer: the process lives and
    may try again."""
    HALF = "half"
    """Milvus took half of the rows."""


_COMMIT_MOMENTS = (Moment.BEFORE, Moment.AFTER, Moment.SENT, Moment.LOST)
_ROWS_MOMENTS = (Moment.BEFORE, Moment.HALF, Moment.AFTER, Moment.LOST)


@dataclass(frozen=True, slots=True)
class Step:
    """What a process sends to a store, counted from 1 through all stores."""

    number: int
    store: str
    """`fltr`, `fltr_auth`, `milvus`, `blobs`."""
    name: str
    """`INSERT credit_transactions`, `SELECT pipeline.charges`, `COMMIT`; `insert 3`: as many rows in one call."""

    def __str__(self) -> str:
        return f"{self.store} / {self.number} {self.name}"

    @classmethod
    def parse(cls, line: str) -> "Step":
        """What `str` made."""
        store, _, rest = line.partition(" / ")
        number, _, name = rest.partition(" ")
        return cls(int(number), store, name)

    @property
    def moments(self) -> tuple[Moment, ...]:
        """Those at which such a step can be hit."""
        if self.name == "COMMIT":
            return _COMMIT_MOMENTS
        _, _, rows = self.name.partition(" ")
        if self.store == "milvus" and rows:
            return _ROWS_MOMENTS if int(rows) > 1 else tuple(m for m in _ROWS_MOMENTS if m is not Moment.HALF)
        return (Moment.BEFORE, Moment.AFTER)


@dataclass(frozen=True, slots=True)
class Point:
    """One moment of one step."""

    step: Step
    moment: Moment

    def __str__(self) -> str:
        return f"{self.step} / {self.moment}"

    def is_at(self, step: Step, moment: Moment) -> bool:
        return (step, moment) == (self.step, self.moment)


@dataclass(frozen=True, slots=True)
class First:
    """That moment of the first step on a store whose name begins so: a point for scenes, where no list is needed."""

    store: str
    name: str
    moment: Moment

    def is_at(self, step: Step, moment: Moment) -> bool:
        return step.store == self.store and step.name.startswith(self.name) and moment is self.moment


def statement_name(sql: str) -> str:
    """Verb and first table: enough to find the statement in the code."""
    verb, table = _VERB.search(sql), _TABLE.search(sql)
    return f"{verb[1] if verb else sql.split(maxsplit=1)[0]} {table[1] if table else ''}".strip()


def write_name(sql: str) -> str | None:
    """Verb and table of a statement that changes something; of several parts, the last. None: it only reads."""
    writes = _WRITE.findall(sql)
    if writes:
        verb, table = writes[-1]
        return f"{verb.split()[0]} {table}"
    return None if _READ.match(sql) else statement_name(sql)


class Probe:
    """Counts the steps of this process and, at `point`, ends it there (or cuts its connection)."""

    def __init__(self, point: Point | First | None) -> None:
        self.steps: list[Step] = []
        self.hit = False
        self._point = point
        self._uncommitted: set[str] = set()
        """Databases with a step that is not committed."""

    def watch(self, engine: Engine, database: str, name_of: Callable[[str], str | None] = statement_name) -> None:
        """Listen to the engine from now on: to statements that `name_of` names, and each COMMIT that follows one."""

        def before(*arguments: Any) -> None:
            if (name := name_of(arguments[2])) is not None:
                self._uncommitted.add(database)
                self.begin(database, name)

        def after(*arguments: Any) -> None:
            if name_of(arguments[2]) is not None:
                self.reach(Moment.AFTER)

        event.listen(engine, "before_cursor_execute", before)
        event.listen(engine, "after_cursor_execute", after)
        engine.dialect.do_commit = partial(self._commit, database, engine.dialect.do_commit)  # type: ignore[method-assign]

    def begin(self, store: str, name: str) -> None:
        """A step begins."""
        self.steps.append(Step(len(self.steps) + 1, store, name))
        self.reach(Moment.BEFORE)

    def reach(self, moment: Moment) -> None:
        """That moment of the step has come: die, if it is the point."""
        if self.at(moment):
            os.kill(os.getpid(), signal.SIGKILL)

    def at(self, moment: Moment) -> bool:
        """Whether that moment of the step is the point."""
        here = self._point is not None and self._point.is_at(self.steps[-1], moment)
        self.hit |= here
        return here

    def _commit(self, database: str, commit: Callable[[Any], None], connection: Any) -> None:
        if database not in self._uncommitted:
            return commit(connection)
        self._uncommitted.remove(database)
        self.begin(database, "COMMIT")
        server = connection.driver_connection.pgconn
        if self.at(Moment.SENT):
            server.send_query(b"COMMIT")
            server.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.at(Moment.LOST):
            with socket.socket(fileno=os.dup(server.socket)) as answers:
                answers.shutdown(socket.SHUT_RD)
        commit(connection)
        return self.reach(Moment.AFTER)
