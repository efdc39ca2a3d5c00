"""`dagster.yaml` and `workspace.yaml`, as Dagster itself reads them."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator

from fltr_pipeline.embedded import dagster

ROOT = Path(__file__).parents[2]


def test_dagster_loads_our_instance(
    new_database: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLTR_DAGSTER_DATABASE_URL", new_database().replace("postgresql:", "postgresql+psycopg2:", 1))
    monkeypatch.setenv("FLTR_MAX_CONCURRENT_RUNS", "7")
    dagster.write_home(tmp_path, 1234)
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(dagster.home_folder(tmp_path)))) as instance:
        assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
        assert instance.run_coordinator.get_run_queue_config().max_concurrent_runs == 7 + 1
        assert instance.run_monitoring_enabled
        assert instance.run_retries_enabled
        assert not instance.run_retries_retry_on_asset_or_op_failure
        assert not instance.telemetry_enabled
        assert instance.get_runs() == []


def test_the_package_carries_the_top_level_file() -> None:
    packaged = files("fltr_pipeline.embedded").joinpath("dagster.yaml")
    assert packaged.read_bytes() == (ROOT / "dagster.yaml").read_bytes()


def test_both_workspaces_name_the_same_location(tmp_path: Path) -> None:
    generated = yaml.safe_load(dagster.write_home(tmp_path, 1234).read_text())
    (server,) = (entry["grpc_server"] for entry in generated["load_from"])
    (module,) = (entry["python_module"] for entry in yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"])
    assert server == {"host": "127.0.0.1", "port": 1234, "location_name": dagster.LOCATION}
    assert module == {"module_name": dagster.DEFINITIONS, "location_name": dagster.LOCATION}
