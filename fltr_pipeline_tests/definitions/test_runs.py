"""Real Dagster runs, in this process, on real stores."""

import dagster as dg

from fltr_pipeline.definitions import build_defs
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.world import World

ASSETS = ["datasets", "documents", "processing_jobs", "document_embeddings"]


def run(
    instance: dg.DagsterInstance, job: str, dataset: Dataset, mode: str = "stale", selection: list[str] | None = None
) -> dg.ExecuteInProcessResult:
    instance.add_dynamic_partitions(str(DATASET_PARTITIONS.name), [dataset.id])
    config = {"ops": {"documents": {"config": {"mode": mode}}}} if selection is None or "documents" in selection else {}
    return (
        build_defs()
        .resolve_job_def(job)
        .execute_in_process(
            instance=instance,
            partition_key=dataset.id,
            run_config=config,
            raise_on_error=False,
            asset_selection=None if selection is None else [dg.AssetKey(name) for name in selection],
        )
    )


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    (event,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items()}


def test_one_run_takes_a_dataset_from_upload_to_search(world: World, instance: dg.DagsterInstance) -> None:
    payer = world.user(credits=10)
    dataset = world.dataset(payer)
    world.upload(
        dataset, {"a.txt": b"Alpha and omega.", "b.md": b"# Title\n\nBeta.", "c.pdf": b"%PDF-1.4 nothing", "d.txt": b""}
    )

    result = run(instance, "ingest", dataset)

    assert result.success
    extracted, planned, embedded = (metadata(result, name) for name in ASSETS[1:])
    assert (extracted["documents_done"], extracted["documents_failed"], extracted["pages"]) == (2, 2, 2)
    assert (planned["documents_done"], planned["chunks"]) == (2, 2)
    assert (embedded["documents_done"], embedded["chunks_embedded"], embedded["documents_remaining"]) == (2, 2, 0)
    assert (extracted["credits_reserved"], extracted["credits_charged"], extracted["credits_returned"]) == (4, 2, 2)
    assert (embedded["credits_reserved"], embedded["credits_charged"], embedded["credits_returned"]) == (2, 2, 0)
    assert {c.check_name: c.passed for c in result.get_asset_check_evaluations()} == {
        "fltr_matches_specification": True,
        "fltr_auth_matches_specification": True,
        "manifest_matches_milvus": True,
    }
    assert world.statuses(dataset) == {"a.txt": "ready", "b.md": "ready", "c.pdf": "failed", "d.txt": "failed"}
