"""`FLTR_HOME/stack.json`: what runs, and where. Written whole or not at all.

Belongs here: the record and its lock. Does not: deciding what should run.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from fltr_pipeline.settings import STACK_FILE, Endpoints

LOCK_FILE = "stack.lock"


class Service(BaseModel):
    """A process that was started; `created` (seconds since the epoch) tells it from a later one of the same pid."""

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int
    created: float
    address: str
    log: Path
    digest: str
    """Of the command and settings that it was started with."""

    @property
    def port(self) -> int | None:
        """Of its address, if that has one."""
        _, _, port = self.address.rpartition(":")
        return int(port) if port.isdecimal() else None

    def alive(self) -> bool:
        """Whether this very process still runs; a process that got the pid later is another one."""
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class StackState(BaseModel):
    """What `up` started. `endpoints` is what `settings.Endpoints` reads."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    home: Path
    ui: str
    endpoints: Endpoints
    services: tuple[Service, ...] = ()

    def service(self, name: str) -> Service | None:
        """The service of that name, if it was started."""
        return next((service for service in self.services if service.name == name), None)

    def with_service(self, service: Service) -> Self:
        """The same with one service added or replaced."""
        others = (other for other in self.services if other.name != service.name)
        return self.model_copy(update={"services": (*others, service)})


def read(home: Path) -> StackState | None:
    """The record, or None when there is none that can be understood (the processes are found without it)."""
    try:
        return StackState.model_validate_json((home / STACK_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write(state: StackState) -> None:
    """Replaces the record at once; a reader sees the old one or the new one. Only its owner may read it."""
    record = state.model_dump(mode="json")
    record["endpoints"] = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in state.endpoints
    }
    descriptor, name = tempfile.mkstemp(dir=state.home, prefix=f".{STACK_FILE}.")  # mode 0600
    with os.fdopen(descriptor, "w") as file:
        json.dump(record, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(state.home / STACK_FILE)


def remove(home: Path) -> None:
    """Forgets the stack, and what a killed `write` left."""
    (home / STACK_FILE).unlink(missing_ok=True)
    for leftover in home.glob(f".{STACK_FILE}.*"):
        leftover.unlink(missing_ok=True)


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """One `up` or `down` at a time; the kernel frees the lock when its holder dies."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK_FILE).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
