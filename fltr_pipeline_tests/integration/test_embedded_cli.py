"""`fltr-pipeline up` in the foreground, as a person runs it: a signal at any moment leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import psutil
import pytest

from fltr_pipeline.embedded import processes
from fltr_pipeline.embedded.postgres import MAX_SOCKET_PATH, SOCKET, Cluster
from fltr_pipeline_tests.integration.test_embedded_stack import DEFINITIONS
from fltr_pipeline_tests.processes import traces

PROGRAM = f"""
import sys
from functools import partial
from fltr_pipeline import cli
from fltr_pipeline.cli import stack
from fltr_pipeline.embedded import stack as embedded
embedded.UI_PORT = 0  # any that is free: the usual one may be another test's before the webserver listens on it
stack.Stack = partial(stack.Stack, definitions={DEFINITIONS!r})
sys.argv[0] = "fltr-pipeline"
cli.main()
"""
PATIENCE_SECONDS = 120.0


def start(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLTR_")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**environment, "FLTR_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As a shell starts a background job: SIGINT ignored, which children would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # noqa: PLW1509
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read_json(stream: IO[str] | None) -> dict[str, object]:
    assert stream is not None
    lines: list[str] = []
    while not lines or lines[-1] != "}\n":
        lines.append(stream.readline())
        assert lines[-1], f"it ended after: {''.join(lines)}"
    document = json.loads("".join(lines))
    assert isinstance(document, dict)
    return document


def test_foreground_up_repairs_and_stops_on_ctrl_c(short_tmp: Path) -> None:
    home = short_tmp / ("a long name, with spaces " * 6).strip()
    assert len(os.fsencode(home / "postgres" / SOCKET)) > MAX_SOCKET_PATH
    command = start(home, "up", "--json")
    try:
        started = read_json(command.stdout)
        assert str(started["ui"]).startswith("http://127.0.0.1:")
        assert [set(service) for service in started["services"]] == [{"name", "pid", "address", "log"}] * 5  # type: ignore[attr-defined]
        (milvus,) = processes.find(home, "milvus")
        milvus.kill()
        wait_for(lambda: milvus.pid not in {process.pid for process in processes.find(home, "milvus")})
        wait_for(lambda: len(processes.find(home, "milvus")) == 1)
        command.send_signal(signal.SIGINT)
        _, stderr = command.communicate(timeout=PATIENCE_SECONDS)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 0, stderr
    assert "milvus ended unexpectedly" in stderr
    assert "Traceback" not in stderr
    assert traces(home) == []
    assert not (home / "stack.json").exists()


@pytest.mark.parametrize("service", ["postgres", "daemon"])
def test_sigterm_while_starting_leaves_nothing(short_tmp: Path, service: str) -> None:
    home = short_tmp / f"early-{service}"
    members = Cluster(home).members if service == "postgres" else lambda: processes.find(home, service)
    command = start(home, "up", "--detach")
    wait_for(lambda: members() != [])
    command.send_signal(signal.SIGTERM)
    _, stderr = command.communicate(timeout=PATIENCE_SECONDS)
    assert command.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert traces(home) == []
    assert not (home / "stack.json").exists()


def test_two_at_once_end_with_one_stack(short_tmp: Path) -> None:
    home = short_tmp / "twice"
    commands = [start(home, "up", "--detach", "--json") for _ in range(2)]
    answers = [json.loads(command.communicate(timeout=PATIENCE_SECONDS)[0]) for command in commands]
    assert answers[0] == answers[1]
    command = start(home, "down", "--json")
    stopped = json.loads(command.communicate(timeout=PATIENCE_SECONDS)[0])["stopped"]
    assert stopped == ["daemon", "webserver", "code-location", "milvus", "postgres"]
    assert traces(home) == []


def test_production_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ("DATABASE_URL", "AUTH_DATABASE_URL", "DAGSTER_DATABASE_URL", "MILVUS_URI", "BLOB_URL")
    for name in urls:
        monkeypatch.setenv(f"FLTR_{name}", "postgresql://secret@nowhere/x")
    before = psutil.Process().children()
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, "up", "--json"], env=os.environ, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert json.loads(result.stderr)["error"]["type"] == "ConfigurationError"
    assert "secret" not in result.stderr
    assert psutil.Process().children() == before
