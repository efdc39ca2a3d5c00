"""Processes of the stack: spawned into their own session, found again by their environment, ended for certain.

Belongs here: what is the same for every service. Does not: what a service is or when it is ready.
"""

import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from fltr_pipeline.errors import StackError

HOST = "127.0.0.1"
HOME_VARIABLE = "FLTR_HOME"
SERVICE_VARIABLE = "FLTR_STACK_SERVICE"
"""Names the service in the environment of all its processes; run workers inherit it and so are found too."""

SIGINT_SECONDS = 20.0
SIGTERM_SECONDS = 5.0
SIGKILL_SECONDS = 10.0
PROBE_INTERVAL_SECONDS = 0.1
PORT_RELEASE_SECONDS = 3.0
LOG_TAIL_LINES = 8


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """How to run one service."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: Path
    address: str
    """What a person calls it by: a URL, `host:port` or a socket's folder."""
    ready: Callable[[float], bool]
    """Whether it serves now. The argument is when its process was created, in seconds since the epoch."""
    user: str | None = None
    """The system user that runs it, when not ours."""
    start_seconds: float = 180.0

    @property
    def digest(self) -> str:
        """Changes with what would make a running process differ from a new one: its arguments and `FLTR_*` settings.

        The program's own path is left out: the same interpreter goes by several names.
        """
        settings = sorted((name, value) for name, value in self.environment.items() if name.startswith("FLTR_"))
        return hashlib.sha256(repr((self.command[1:], settings)).encode()).hexdigest()[:16]


def free_port(*preferred: int) -> int:
    """The first of `preferred` on which nothing listens, else any free port of the loopback interface."""
    for port in (*preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StackError(f"no free port on {HOST}: end some programs and try again")


def port_again(port: int) -> int:
    """The port of a process that has ended, or any other if that isn't let go of in time.

    A killed process with many threads looks ended a moment before its sockets are closed.
    """
    deadline = time.monotonic() + PORT_RELEASE_SECONDS
    while (free := free_port(port)) != port and time.monotonic() < deadline:
        time.sleep(PROBE_INTERVAL_SECONDS)
    return free


def spawn(spec: ServiceSpec, log: Path) -> subprocess.Popen[bytes]:
    """Starts the service in a session and process group of its own; its last log is kept as `NAME.log.1`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    with log.open("wb") as output:
        try:
            return subprocess.Popen(  # noqa: S603 - the commands are ours
                spec.command,
                env=dict(spec.environment),
                cwd=spec.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=spec.user,
            )
        except OSError as error:
            raise StackError(f"{spec.name} can't be started: {error}") from error


def wait_until_ready(spec: ServiceSpec, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when the service serves.

    Raises:
        StackError: it ended, or did not get ready within its `start_seconds`.
    """
    created = psutil.Process(process.pid).create_time()
    deadline = time.monotonic() + spec.start_seconds
    while not spec.ready(created):
        if process.poll() is not None:
            raise StackError(f"{spec.name} ended with code {process.returncode} while starting\n{tail(log)}")
        if time.monotonic() > deadline:
            raise StackError(f"{spec.name} was not ready after {spec.start_seconds:.0f} s\n{tail(log)}")
        time.sleep(PROBE_INTERVAL_SECONDS)


def tail(log: Path) -> str:
    """The last lines of a log and where to read the rest."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except FileNotFoundError:
        lines = []
    return "\n".join([*(f"  {line}" for line in lines), f"see {log}"])


def find(home: Path, service: str | None = None) -> list[psutil.Process]:
    """All living processes of the stack under `home`, of one service or of all, run workers included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            environment = process.environ()
        except (psutil.Error, OSError):
            continue
        name = environment.get(SERVICE_VARIABLE)
        if name is not None and environment.get(HOME_VARIABLE) == str(home) and service in {None, name}:
            found.append(process)
    return found


def end(find_members: Callable[[], Sequence[psutil.Process]], *, politely: bool = True) -> None:
    """Ends all that `find_members` names: SIGINT, then SIGTERM, then SIGKILL; returns when nothing is left.

    Raises:
        StackError: something survived SIGKILL.
    """
    polite = ((signal.SIGINT, SIGINT_SECONDS), (signal.SIGTERM, SIGTERM_SECONDS)) if politely else ()
    for number, seconds in (*polite, (signal.SIGKILL, SIGKILL_SECONDS), (signal.SIGKILL, SIGKILL_SECONDS)):
        members = find_members()
        if not members:
            return
        for process in members:
            _send(process, number)
        wait_gone(members, seconds)
    if left := find_members():
        raise StackError(
            f"processes {', '.join(str(process.pid) for process in left)} can't be ended: end them by hand"
        )


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)  # psutil compares the create time first: a reused pid is never signalled
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied as error:
        raise StackError(f"process {process.pid} belongs to another user: end it as that user") from error


def wait_gone(members: Sequence[psutil.Process], seconds: float) -> None:
    """A child that its parent has not reaped counts as gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(_runs(process) for process in members):
            return
        time.sleep(PROBE_INTERVAL_SECONDS / 2)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def plain_environment() -> dict[str, str]:
    """Ours, without settings of this package, and with the loopback interface kept away from any proxy."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLTR_")}
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = ",".join(filter(None, (environment.get(name), "127.0.0.1,localhost")))
    return environment
