"""A signal in the very moment when a service is being started."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from fltr_pipeline.cli.stack import interruptible
from fltr_pipeline.embedded import dagster, postgres
from fltr_pipeline.embedded.processes import ServiceSpec
from fltr_pipeline.embedded.signals import uninterrupted
from fltr_pipeline.embedded.stack import Stack
from fltr_pipeline.embedded.state import StackState
from fltr_pipeline.settings import Endpoints

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")
NOWHERE = Endpoints(
    database_url=SecretStr(""), auth_database_url=SecretStr(""), dagster_database_url=SecretStr(""),
    milvus_uri="", blob_url="",
)  # fmt: skip


@pytest.mark.parametrize("name", [dagster.DAEMON, postgres.NAME])
def test_a_signal_between_fork_and_exec_leaves_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        """Whoever calls this has no object yet when the signal comes, but there is a process."""

        def _execute_child(self, *arguments: Any) -> None:
            super()._execute_child(*arguments)  # type: ignore[misc]
            forked.append(self)
            os.kill(os.getpid(), signal.SIGTERM)

    stack = Stack(tmp_path)
    environment: dict[str, str] = {}  # it can't be found by it, as before exec
    spec = ServiceSpec(name, SLEEP, environment, tmp_path, "-", lambda _: True)
    record = StackState(home=tmp_path, ui="-", endpoints=NOWHERE)
    monkeypatch.setattr(stack, "_start", lambda _: stack._supervisor.launch(spec, record))
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            stack.up()
        (child,) = forked
        assert child.poll() is not None
        assert stack.state() is None
    finally:
        for process in forked:
            process.kill()
            process.wait()


def test_what_came_is_handled_afterwards_and_what_was_ignored_stays_so() -> None:
    came: list[str] = []
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: came.append("handled")),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    }
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            came.append("done")
        assert came == ["done", "handled"]
        signal.raise_signal(signal.SIGTERM)
        assert came == ["done", "handled", "handled"]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_failure_inside_loses_no_signal_and_no_handler() -> None:
    def fail() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert signal.getsignal(signal.SIGINT) is before


def test_any_thread_may_use_it() -> None:
    def use() -> str:
        with uninterrupted():
            return "used"

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(use).result() == "used"
