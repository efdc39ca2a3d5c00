"""The stack as a whole: `up`, `down`, `state`.

Belongs here: the order of things and how they find one another. Does not: how one service works or is kept alive.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from fltr_pipeline.embedded import dagster, milvus, postgres, processes, state
from fltr_pipeline.embedded.processes import HOME_VARIABLE, HOST
from fltr_pipeline.embedded.state import Service, StackState
from fltr_pipeline.embedded.supervisor import Progress, Supervisor, silent
from fltr_pipeline.errors import ConfigurationError
from fltr_pipeline.settings import Endpoints, Settings
from fltr_pipeline.stores.database import engine_for, transaction
from fltr_pipeline.stores.fltr.leases import expire_runs
from fltr_pipeline.stores.schema import init_databases

UI_PORT = 3000
CODE_VARIABLE = "FLTR_STACK_CODE_LOCATION"
"""Read by nobody: it makes webserver and daemon start anew when the code location moves to another port."""
STOP_ORDER = (dagster.DAEMON, dagster.WEBSERVER, dagster.CODE, milvus.NAME, postgres.NAME)
"""Who uses comes before who is used."""


class Stack:
    """The embedded stack under one home folder. Several processes may use it at once."""

    def __init__(self, home: Path, *, definitions: str = dagster.DEFINITIONS) -> None:
        self.home = home.expanduser().resolve()
        self._definitions = definitions
        self._cluster = postgres.Cluster(self.home)
        self._supervisor = Supervisor(self.home, self._cluster)

    def state(self) -> StackState | None:
        """What was started and not stopped; single processes may have died since (`broken`)."""
        return state.read(self.home)

    def broken(self) -> list[Service]:
        """The services whose process has died."""
        self._supervisor.reap()
        record = self.state()
        return [service for service in record.services if not service.alive()] if record else []

    def up(self, port: int | None = None, on_progress: Progress = silent) -> StackState:
        """Starts what does not run, replaces what is unwell or has other settings, keeps the rest.

        Args:
            port: Of the UI; by default the one it has, else 3000, else any that is free.
            on_progress: Told what happens to which service.

        Raises:
            StackError: a service does not start; what this call started is ended again.
            ConfigurationError: `port` is taken by another program.
        """
        with state.locked(self.home):
            return self._up(port, on_progress)

    def repair(self, on_progress: Progress = silent) -> None:
        """Starts again what has died, if anything; a stack that another command stopped stays so.

        Raises:
            StackError: a service does not start.
        """
        if self.broken():
            with state.locked(self.home):
                if self.broken():
                    self._up(None, on_progress)

    def down(self, on_progress: Progress = silent) -> None:
        """Ends everything that runs under this home, recorded or not; nothing is left when it returns.

        Raises:
            StackError: a process can't be ended.
        """
        if not self.home.exists():
            return
        self._supervisor.progress = on_progress
        with state.locked(self.home):
            for name in STOP_ORDER:
                self._supervisor.stop(name)
            self._cluster.clean_up()
            state.remove(self.home)

    def _up(self, port: int | None, on_progress: Progress) -> StackState:
        supervisor = self._supervisor
        supervisor.progress, supervisor.started = on_progress, []
        try:
            return self._start(port)
        except BaseException:
            for name in STOP_ORDER:
                if name in supervisor.started:
                    supervisor.stop(name)
            record = self.state()
            if record is not None and not any(service.alive() for service in record.services):
                state.remove(self.home)
            raise

    def _start(self, port: int | None) -> StackState:
        supervisor, before = self._supervisor, self.state()
        milvus_port, code_port = _port_of(before, milvus.NAME), _port_of(before, dagster.CODE)
        ui_port = self._ui_port(before, port)
        self._cluster.prepare()
        record = StackState(
            home=self.home,
            ui=f"http://{HOST}:{ui_port}",
            endpoints=self._endpoints(milvus_port),
            services=before.services if before else (),
        )
        environment = self._environment(record.endpoints)
        workspace = dagster.write_home(self.home, code_port)

        database = self._cluster.spec()
        record = supervisor.launch(database, record)
        supervisor.wait(database)
        self._init_databases()

        vectors = milvus.spec(self.home, milvus_port)
        code = dagster.code_spec(self.home, environment, code_port, self._definitions)
        record = supervisor.launch(vectors, record)
        record = supervisor.launch(code, record)
        if dagster.CODE in supervisor.started:
            self._fail_dead_runs()
        supervisor.wait(vectors, code)

        environment = {**environment, CODE_VARIABLE: code.address}
        webserver = dagster.webserver_spec(self.home, environment, ui_port, workspace)
        daemon = dagster.daemon_spec(self.home, environment, ui_port, workspace)
        record = supervisor.launch(webserver, record)
        record = supervisor.launch(daemon, record)
        supervisor.wait(webserver, daemon)
        return record

    def _ui_port(self, before: StackState | None, wanted: int | None) -> int:
        service = before.service(dagster.WEBSERVER) if before else None
        ours = service.port if service is not None and service.alive() else None
        if wanted is None:
            return ours or processes.free_port(*([service.port] if service and service.port else []), UI_PORT)
        if wanted != ours and processes.free_port(wanted) != wanted:
            raise ConfigurationError(f"port {wanted} is taken by another program: choose another with --port")
        return wanted

    def _endpoints(self, milvus_port: int) -> Endpoints:
        blobs = self.home / "blobs"
        blobs.mkdir(exist_ok=True)
        return Endpoints(
            database_url=SecretStr(self._cluster.url("psycopg", "fltr")),
            auth_database_url=SecretStr(self._cluster.url("psycopg", "fltr_auth", postgres.PIPELINE_ROLE)),
            dagster_database_url=SecretStr(self._cluster.url("psycopg2", "dagster")),
            milvus_uri=f"http://{HOST}:{milvus_port}",
            blob_url=str(blobs),
        )

    def _environment(self, endpoints: Endpoints) -> Mapping[str, str]:
        """Of Dagster's processes and all that they start: there the stack looks like a production configuration."""
        urls = {
            f"FLTR_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in endpoints
        }
        given = {name: value for name, value in os.environ.items() if name.startswith("FLTR_")}
        return {
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore::DeprecationWarning",
            "FLTR_MAX_CONCURRENT_RUNS": str(Settings.model_fields["max_concurrent_runs"].default),
            **processes.plain_environment(),
            **given,
            **urls,
            HOME_VARIABLE: str(self.home),
            "DAGSTER_HOME": str(dagster.home_folder(self.home)),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def _init_databases(self) -> None:
        self._cluster.create_databases()
        init_databases(self._cluster.url("psycopg", "fltr"), self._cluster.url("psycopg", "fltr_auth"))

    def _fail_dead_runs(self) -> None:
        """Fail what a code location took with it, and free the documents that it held.

        Also creates Dagster's tables, before three processes would do so at once.
        """
        with dagster.open_instance(self.home, self._cluster.url("psycopg2", "dagster")) as instance:
            if dead := dagster.fail_dead_runs(instance):
                self._supervisor.progress(dagster.CODE, f"failed {len(dead)} runs that had ended with it")
                with transaction(engine_for(SecretStr(self._cluster.url("psycopg", "fltr")))) as tx:
                    expire_runs(tx, dead)


def _port_of(before: StackState | None, name: str) -> int:
    """The port that the service has or had, so that others still find it; a free one if it is new or that is taken."""
    service = before.service(name) if before else None
    if service is None or service.port is None:
        return processes.free_port()
    return service.port if service.alive() else processes.port_again(service.port)
