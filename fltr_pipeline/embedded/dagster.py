"""Dagster's three processes: code location, webserver, daemon; their home folder, their health, their dead runs.

Belongs here: running Dagster on this machine. Does not: what it runs (`fltr_pipeline.definitions`).
"""

import json
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fltr_pipeline.embedded import rpc
from fltr_pipeline.embedded.processes import HOST, SERVICE_VARIABLE, ServiceSpec
from fltr_pipeline.errors import StackError

if TYPE_CHECKING:
    from dagster import DagsterInstance

CODE, WEBSERVER, DAEMON = "code-location", "webserver", "daemon"
DEFINITIONS = "fltr_pipeline.definitions"
LOCATION = "fltr_pipeline"
"""Never changes: the state of sensors and schedules is kept under it, while ports come and go."""

LIST_REPOSITORIES = "/api.DagsterApi/ListRepositories"
HEARTBEAT_SECONDS = 120.0
"""Dagster writes one each 30 s, and itself calls a daemon healthy for half an hour after the last one."""

LOCATIONS = """
{ workspaceOrError { ... on Workspace { locationEntries {
    name loadStatus locationOrLoadError { __typename ... on PythonError { message } } } } } }
"""
HEARTBEATS = "{ instance { daemonHealth { allDaemonStatuses { required lastHeartbeatTime } } } }"


def home_folder(home: Path) -> Path:
    """`DAGSTER_HOME`."""
    return home / "dagster"


def write_home(home: Path, code_port: int) -> Path:
    """Writes `dagster.yaml` and `workspace.yaml`; returns the latter."""
    folder = home_folder(home)
    folder.mkdir(exist_ok=True)
    (folder / "dagster.yaml").write_bytes(files(__package__).joinpath("dagster.yaml").read_bytes())
    server = {"host": HOST, "port": code_port, "location_name": LOCATION}
    workspace = folder / "workspace.yaml"
    workspace.write_text(json.dumps({"load_from": [{"grpc_server": server}]}, indent=2))  # JSON is YAML
    return workspace


def code_spec(home: Path, environment: Mapping[str, str], port: int, module: str) -> ServiceSpec:
    """The code location; the workers of runs are its children."""
    command = ("api", "grpc", "-h", HOST, "-p", str(port), "-m", module, "--location-name", LOCATION)
    return ServiceSpec(
        name=CODE,
        command=(sys.executable, "-m", "dagster", *command),
        environment={**environment, SERVICE_VARIABLE: CODE},
        cwd=home_folder(home),
        address=f"{HOST}:{port}",
        ready=lambda _: rpc.answers(port, LIST_REPOSITORIES),
    )


def webserver_spec(home: Path, environment: Mapping[str, str], port: int, workspace: Path) -> ServiceSpec:
    """The UI; ready when it has loaded the code location."""
    return ServiceSpec(
        name=WEBSERVER,
        command=(sys.executable, "-m", "dagster_webserver", "-h", HOST, "-p", str(port), "-w", str(workspace)),
        environment={**environment, SERVICE_VARIABLE: WEBSERVER},
        cwd=home_folder(home),
        address=f"http://{HOST}:{port}",
        ready=lambda _: rpc.get(port, "/server_info") and _location_loaded(port),
    )


def daemon_spec(home: Path, environment: Mapping[str, str], ui_port: int, workspace: Path) -> ServiceSpec:
    """The daemon; ready when each of its required parts has sent a heartbeat in this life."""
    return ServiceSpec(
        name=DAEMON,
        command=(sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace)),
        environment={**environment, SERVICE_VARIABLE: DAEMON},
        cwd=home_folder(home),
        address="-",
        ready=lambda created: _heartbeats_since(ui_port, created),
    )


def open_instance(home: Path, database_url: str) -> "DagsterInstance":
    """The instance of the stack, whatever `DAGSTER_HOME` this process has. Creates Dagster's tables when absent."""
    from dagster import DagsterInstance  # noqa: PLC0415 - takes seconds
    from dagster._core.instance.ref import InstanceRef  # noqa: PLC0415

    storage: Any = {"storage": {"postgres": {"postgres_url": database_url}}}
    return DagsterInstance.from_ref(InstanceRef.from_dir(str(home_folder(home)), overrides=storage))


def fail_dead_runs(instance: "DagsterInstance") -> list[str]:
    """Fails the runs that a code location took with it, so that they hold no slot; queued runs stay queued.

    To be called when no code location runs: then none of these can be alive. Returns their ids.
    """
    from dagster import DagsterRunStatus, RunsFilter  # noqa: PLC0415 - takes seconds

    in_flight = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
    dead = instance.get_runs(RunsFilter(statuses=in_flight))
    for run in dead:
        instance.report_run_failed(
            run, "The code location that ran this has ended. What it left undone is taken up by the next run."
        )
    return [run.run_id for run in dead]


def _location_loaded(port: int) -> bool:
    """Whether the definitions are loaded.

    Raises:
        StackError: they can't be.
    """
    data = rpc.graphql(port, LOCATIONS)
    for entry in (data or {}).get("workspaceOrError", {}).get("locationEntries", []):
        result = entry["locationOrLoadError"] or {}
        if result.get("__typename") == "PythonError" and "DagsterUserCodeUnreachableError" not in result["message"]:
            raise StackError(f"the definitions don't load: {result['message'].strip()}")
        if entry["name"] == LOCATION and entry["loadStatus"] == "LOADED" and "message" not in result:
            return True
    return False


def _heartbeats_since(ui_port: int, moment: float) -> bool:
    data = rpc.graphql(ui_port, HEARTBEATS)
    statuses = (data or {}).get("instance", {}).get("daemonHealth", {}).get("allDaemonStatuses", [])
    required = [status["lastHeartbeatTime"] or 0.0 for status in statuses if status["required"]]
    return bool(required) and min(required) >= moment
