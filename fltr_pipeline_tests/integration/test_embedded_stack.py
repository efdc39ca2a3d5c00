"""The embedded stack, really started: kept, repaired, killed, stopped. One start is shared, in this order."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.utils import make_new_run_id

from fltr_pipeline.embedded import dagster, milvus, postgres, processes, rpc
from fltr_pipeline.embedded.stack import STOP_ORDER, Stack
from fltr_pipeline.embedded.state import StackState
from fltr_pipeline.errors import ConfigurationError, StackError
from fltr_pipeline.settings import STACK_FILE, Settings
from fltr_pipeline_tests.processes import traces

DEFINITIONS = "fltr_pipeline_tests.integration.embedded_definitions"
ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("l"), "r"), "x")


def pids(state: StackState) -> dict[str, int]:
    return {service.name: service.pid for service in state.services}


def kill(victims: list[psutil.Process]) -> None:
    for process in victims:
        with suppress(psutil.NoSuchProcess):  # a backend ends by itself when its server is gone
            process.kill()


@pytest.fixture(scope="module", autouse=True)
def taken_port() -> Iterator[int]:
    """The default port of the UI (not the usual one: that may be another test's), in other hands."""
    with socket.socket() as listener, pytest.MonkeyPatch.context() as patch:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        patch.setattr("fltr_pipeline.embedded.stack.UI_PORT", port)
        yield port


@pytest.fixture(scope="module")
def stack(short_tmp: Path) -> Iterator[Stack]:
    stack = Stack(short_tmp / "stack", definitions=DEFINITIONS)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


def test_up_starts_everything_and_records_where_it_is(
    stack: Stack, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = stack.state()
    assert state is not None
    assert set(pids(state)) == set(STOP_ORDER)
    assert state.ui != f"http://127.0.0.1:{taken_port}"
    assert (stack.home / STACK_FILE).stat().st_mode & 0o777 == 0o600
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FLTR_{name.upper()}", raising=False)
    assert Settings(home=stack.home).endpoints == state.endpoints
    with pytest.raises(ConfigurationError, match="taken"):
        stack.up(taken_port)


def test_the_auth_url_is_of_the_least_privilege_role(stack: Stack) -> None:
    state = stack.state()
    assert state is not None
    url = state.endpoints.auth_database_url.get_secret_value().replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        user, superuser = connection.execute("SELECT current_user, current_setting('is_superuser')").fetchone() or (
            "",
            "",
        )
    assert (user, superuser) == (postgres.PIPELINE_ROLE, "off")


def test_up_again_keeps_everything(stack: Stack) -> None:
    before = stack.state()
    assert before is not None
    events: list[tuple[str, str]] = []
    assert stack.up(on_progress=lambda *event: events.append(event)) == before
    assert {event for _, event in events} == {"runs"}


def test_up_replaces_killed_services_and_fails_the_runs_that_died(stack: Stack) -> None:
    before = stack.state()
    assert before is not None
    database_url = before.endpoints.dagster_database_url.get_secret_value()
    run = DagsterRun(job_name="nothing", run_id=make_new_run_id(), status=DagsterRunStatus.STARTED)
    with dagster.open_instance(stack.home, database_url) as instance:
        instance.add_run(run)
    for name in (dagster.CODE, milvus.NAME):
        kill(processes.find(stack.home, name)[:1])
    after = stack.up()
    changed = {name for name, pid in pids(after).items() if pid != pids(before)[name]}
    assert changed == {dagster.CODE, milvus.NAME}
    assert after.endpoints == before.endpoints, "the ports are kept, for others hold them"
    with dagster.open_instance(stack.home, database_url) as instance:
        assert instance.get_run_by_id(run.run_id).status is DagsterRunStatus.FAILURE  # type: ignore[union-attr]
    assert len(processes.find(stack.home, dagster.CODE)) == 1, "no orphan"


def test_up_works_after_everything_was_killed_and_the_record_was_torn(stack: Stack) -> None:
    before = stack.state()
    assert before is not None
    url = before.endpoints.database_url.get_secret_value().replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE SCHEMA survives")
    kill([*processes.find(stack.home), *stack._cluster.members()])
    record = stack.home / STACK_FILE
    record.write_bytes(record.read_bytes()[:100])
    assert stack.state() is None
    after = stack.up()
    assert set(pids(after)) == set(STOP_ORDER)
    assert not set(pids(after).values()) & set(pids(before).values())
    with psycopg.connect(url) as connection:
        connection.execute("DROP SCHEMA survives")


def test_broken_definitions_are_told_and_nothing_stays(short_tmp: Path) -> None:
    stack = Stack(short_tmp / "broken", definitions="no_such_module_anywhere")
    with pytest.raises(StackError, match="no_such_module_anywhere"):
        stack.up()
    assert stack.state() is None
    assert traces(stack.home) == []


def test_down_leaves_no_process_and_no_record(stack: Stack) -> None:
    assert traces(stack.home) != []
    stack.down()
    assert traces(stack.home) == []
    assert stack.state() is None
    stack.down()


def test_only_runs_in_flight_are_failed() -> None:
    with DagsterInstance.ephemeral() as instance:
        runs = {
            status: instance.add_run(
                DagsterRun(job_name="x", run_id=make_new_run_id(), status=status, remote_job_origin=ORIGIN)
            )
            for status in DagsterRunStatus
        }
        dead = {DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING}
        assert set(dagster.fail_dead_runs(instance)) == {runs[status].run_id for status in dead}
        assert instance.get_run_by_id(runs[DagsterRunStatus.QUEUED].run_id) == runs[DagsterRunStatus.QUEUED]
        assert dagster.fail_dead_runs(instance) == []


def test_other_settings_make_another_service_and_another_name_of_python_does_not(tmp_path: Path) -> None:
    spec = milvus.spec(tmp_path, 1234)
    assert replace(spec, environment={**spec.environment, "FLTR_BATCH_SIZE": "5"}).digest != spec.digest
    assert milvus.spec(tmp_path, 1235).digest != spec.digest
    assert replace(spec, command=("python3", *spec.command[1:])).digest == spec.digest
    assert replace(spec, environment={**spec.environment, "PWD": "/elsewhere"}).digest == spec.digest


def test_nobody_there_is_no_answer() -> None:
    port = processes.free_port()
    assert not rpc.answers(port, milvus.GET_VERSION)
    assert not rpc.get(port, "/")
    assert rpc.graphql(port, dagster.LOCATIONS) is None
