"""The queue: as many workers as are set, and one slot more for a sweep."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import dagster as dg
import pytest
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.workspace.context import BaseWorkspaceRequestContext

from fltr_pipeline.defs.coordinator import WorkerCoordinator


@pytest.fixture
def queueing(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    coordinator = {
        "module": "fltr_pipeline.defs.coordinator",
        "class": "WorkerCoordinator",
        "config": {"max_concurrent_runs": 2},
    }
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides={"run_coordinator": coordinator}) as instance:
        yield instance


def submit(instance: dg.DagsterInstance, job: str) -> dict[str, str]:
    location = GrpcServerCodeLocationOrigin(host="localhost", port=1, location_name="fltr_pipeline")
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), job)
    run = instance.add_run(dg.DagsterRun(job_name=job, remote_job_origin=origin))
    nowhere = cast("BaseWorkspaceRequestContext", None)
    queued = instance.run_coordinator.submit_run(SubmitRunContext(run, nowhere))
    assert queued.status == dg.DagsterRunStatus.QUEUED
    return dict(queued.tags)


def test_workers_have_their_slots_and_a_sweep_one_of_its_own(queueing: dg.DagsterInstance) -> None:
    assert isinstance(queueing.run_coordinator, WorkerCoordinator)
    config = queueing.run_coordinator.get_run_queue_config()
    assert config.max_concurrent_runs == 3
    assert config.tag_concurrency_limits == [{"key": "fltr/worker", "limit": 2}]
    assert [submit(queueing, job).get("fltr/worker") for job in ("ingest", "__ASSET_JOB", "reconcile")] == [
        "yes", "yes", None,
    ]  # fmt: skip
