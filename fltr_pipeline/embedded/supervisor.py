"""Keeps or replaces single services and records what it did.

Belongs here: the life of one service. Does not: which services there are, and their order (`stack`).
"""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from fltr_pipeline.embedded import postgres, processes, state
from fltr_pipeline.embedded.processes import ServiceSpec
from fltr_pipeline.embedded.signals import uninterrupted
from fltr_pipeline.embedded.state import Service, StackState

HEALTH_SECONDS = 15.0
"""A running service that doesn't answer for this long is replaced."""
RECENT_SECONDS = 120.0
"""A sign of life this old still counts for a running service; Dagster's daemon gives one each 30 s."""

Progress = Callable[[str, str], None]
"""Told a service's name and what happens to it."""


def silent(_service: str, _event: str) -> None:
    """Tells nobody."""


class Supervisor:
    """The services of one home folder, seen from this process."""

    def __init__(self, home: Path, cluster: postgres.Cluster) -> None:
        self.progress: Progress = silent
        self.started: list[str] = []
        """The services that the current `up` had to start, in that order."""
        self._home = home
        self._cluster = cluster
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, spec: ServiceSpec, record: StackState) -> StackState:
        """Keeps the service if it runs as specified and answers, else starts it anew; returns the new record."""
        service = record.service(spec.name)
        if service is not None and self._keeps(spec, service):
            self.progress(spec.name, "runs")
            return record
        self.stop(spec.name)
        self.progress(spec.name, "starting")
        log = self._home / "logs" / f"{spec.name}.log"
        with uninterrupted():  # else a process could run that `stop` doesn't know of
            self.started.append(spec.name)
            child = self._children[spec.name] = processes.spawn(spec, log)
        record = record.with_service(
            Service(
                name=spec.name,
                pid=child.pid,
                created=psutil.Process(child.pid).create_time(),
                address=spec.address,
                log=log,
                digest=spec.digest,
            )
        )
        state.write(record)
        return record

    def wait(self, *specs: ServiceSpec) -> None:
        """Returns when those of `specs` that this `up` started are ready.

        Raises:
            StackError: one of them doesn't get ready.
        """
        for spec in specs:
            if spec.name in self.started:
                processes.wait_until_ready(spec, self._children[spec.name], self._home / "logs" / f"{spec.name}.log")
                self.progress(spec.name, "ready")

    def stop(self, name: str) -> None:
        """Ends the service with all that it started, whether or not it was recorded."""
        if self._members(name):
            self.progress(name, "stopping")
        if name == postgres.NAME:
            self._cluster.stop()
        processes.end(lambda: self._members(name))
        self.reap()

    def reap(self) -> None:
        """Lets the kernel forget our children that have ended."""
        self._children = {name: child for name, child in self._children.items() if child.poll() is None}

    def _members(self, name: str) -> list[psutil.Process]:
        """The service's processes. What we have just spawned may not yet show by what others know it."""
        found = self._cluster.members() if name == postgres.NAME else processes.find(self._home, name)
        child = self._children.get(name)
        if child is None or child.poll() is not None or child.pid in {process.pid for process in found}:
            return found
        return [*found, psutil.Process(child.pid)]

    def _keeps(self, spec: ServiceSpec, service: Service) -> bool:
        if service.digest != spec.digest or not service.alive():
            return False
        since = max(service.created, time.time() - RECENT_SECONDS)
        deadline = time.monotonic() + HEALTH_SECONDS
        while not spec.ready(since):
            if time.monotonic() > deadline:
                return False
            time.sleep(processes.PROBE_INTERVAL_SECONDS)
        return True
