"""The job `reconcile` and its probe, on a real instance and real databases."""

import hashlib
from collections.abc import Collection, Iterator
from typing import Any

import dagster as dg
import pytest

from fltr_pipeline.definitions import build_defs
from fltr_pipeline.defs import op
from fltr_pipeline.defs.reconcile import overdue_work
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import Stage
from fltr_pipeline.pipeline import reconcile as pipeline_reconcile
from fltr_pipeline.pipeline import sweeper
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.sweeper import Report
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, leases
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.world import World


def tick(instance: dg.DagsterInstance) -> dg.RunRequest | dg.SkipReason:
    result = overdue_work(
        dg.build_sensor_context(instance=instance), fltr=FltrResource(), credits=CreditsResource(),
        milvus=MilvusResource(), embedder=EmbedderResource(), blobs=BlobsResource(),
    )  # fmt: skip
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result


def rows(value: dg.MetadataValue) -> list[dict[str, object]]:
    """Of a table in a run's metadata."""
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


def test_the_probe_launches_a_run_when_a_lease_ran_out_and_the_run_leaves_nothing(
    world: World, instance: dg.DagsterInstance
) -> None:
    payer = world.user(credits=20)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": b"Some text."})
    assert isinstance(tick(instance), dg.SkipReason)
    with transaction(world.services.fltr) as tx:
        claims.claim(tx, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id="dead", limit=9, lease_seconds=600)
    assert isinstance(tick(instance), dg.SkipReason)
    with transaction(world.services.fltr) as tx:
        leases.expire_runs(tx, ["dead"])
    assert isinstance(tick(instance), dg.RunRequest)

    at_it = instance.add_run(dg.DagsterRun(job_name="reconcile", status=dg.DagsterRunStatus.STARTED))
    assert isinstance(tick(instance), dg.SkipReason)
    instance.report_run_failed(at_it)
    pausing = tick(instance)
    assert isinstance(pausing, dg.SkipReason)
    assert "the next run is launched at" in str(pausing.skip_message)
    instance.delete_run(at_it.run_id)

    result = build_defs().resolve_job_def("reconcile").execute_in_process(instance=instance)
    assert result.success
    (output,) = [e for e in result.all_events if e.event_type == dg.DagsterEventType.STEP_OUTPUT]
    assert output.step_output_data.metadata["documents"].value == 1
    assert isinstance(tick(instance), dg.SkipReason)
    assert world.rows("SELECT status FROM processing_jobs") == [("failed",)]
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}


def test_drift_is_shown_by_the_check_and_then_repaired_by_the_job(world: World, instance: dg.DagsterInstance) -> None:
    dataset = world.dataset(world.user(credits=20))
    ids = world.upload(dataset, {"a.txt": b"Some text.", "b.txt": b"Other text."})
    world.process(dataset)
    world.sweep_all()  # what other tests left in Milvus
    ((lost,),) = world.rows("SELECT key FROM pipeline.chunks WHERE document_id = %s", ids["a.txt"])
    world.services.vectors.delete([lost])
    world.change("DELETE FROM documents WHERE id = %s", ids["b.txt"])

    def check() -> dg.AssetCheckEvaluation:
        job = build_defs().resolve_job_def("verify")
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        (found,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "manifest_matches_milvus"]
        return found

    drifted = check()
    assert not drifted.passed
    figures = {name: drifted.metadata[name].value for name in ("missing", "orphans", "lost", "deleted_documents")}
    assert figures == {"missing": 1, "orphans": 0, "lost": 0, "deleted_documents": 1}
    (row,) = rows(drifted.metadata["datasets"])
    assert (row["dataset"], row["missing keys"]) == (dataset.id, lost)

    result = build_defs().resolve_job_def("reconcile").execute_in_process(instance=instance)
    (output,) = [e for e in result.all_events if e.event_type == dg.DagsterEventType.STEP_OUTPUT]
    metadata = output.step_output_data.metadata
    assert (metadata["vectors_missing"].value, metadata["documents_deleted"].value) == (1, 1)
    (receipt,) = rows(metadata["deletions"])
    assert (receipt["document"], receipt["gone"], receipt["vectors"]) == (ids["b.txt"], "document", "1")
    (summary,) = rows(metadata["deletions_by_dataset"])
    assert (summary["dataset"], summary["documents"]) == (dataset.id, "1")
    world.process(dataset)
    assert check().passed


def test_the_probe_launches_a_short_pass_for_a_deletion(world: World, instance: dg.DagsterInstance) -> None:
    dataset = world.dataset(world.user(credits=20))
    world.upload(dataset, {"a.txt": b"Some text."})
    world.process(dataset)
    assert isinstance(tick(instance), dg.SkipReason)
    world.change("DELETE FROM documents")
    request = tick(instance)
    assert isinstance(request, dg.RunRequest)
    assert request.run_config["ops"] == {"sweep_all": {"config": {"list_keys": False, "after": ""}}}
    result = (
        build_defs().resolve_job_def("reconcile").execute_in_process(instance=instance, run_config=request.run_config)
    )
    assert result.success
    assert world.keys(dataset) == set()
    assert isinstance(tick(instance), dg.SkipReason)


def test_a_database_that_does_not_answer_is_tried_again(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_all, asked = sweeper.sweep_all, list[bool]()

    def at_the_second_time(*arguments: Any, list_keys: bool, after: str) -> Iterator[Report]:
        asked.append(list_keys)
        if len(asked) == 1:
            raise StoreUnavailable("fltr does not answer")
        return sweep_all(*arguments, list_keys=list_keys, after=after)

    monkeypatch.setattr(sweeper, "sweep_all", at_the_second_time)
    monkeypatch.setattr(op, "_FIRST_RETRY_SECONDS", 0)
    result = build_defs().resolve_job_def("reconcile").execute_in_process(instance=instance)
    assert result.success
    assert asked == [True, True]


def test_what_a_pass_did_before_it_failed_is_told(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.dataset(world.user(credits=20))
    ids = world.upload(dataset, {"a.txt": b"Some text.", "b.txt": b"Other text."})
    world.process(dataset)
    world.change("DELETE FROM documents WHERE id = %s", ids["a.txt"])

    def down(*_: object) -> None:
        raise StoreUnavailable("Milvus does not answer")

    monkeypatch.setattr(VectorStore, "delete_listed", down)
    result = build_defs().resolve_job_def("reconcile").execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    (told,) = [e.user_message for e in instance.all_logs(result.run_id) if "before it failed" in e.user_message]
    assert not [event for event in result.all_events if event.is_step_up_for_retry], "it came to its end"
    assert "documents_deleted: 1" in told
    assert "published" not in told


def test_a_listing_that_was_cut_short_is_tried_again(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.dataset(world.user(credits=20))
    ids = world.upload(dataset, {"a.txt": b"Some text."})
    world.process(dataset)
    world.services.vectors.delete(sorted(world.keys(dataset)))
    missing, asked = pipeline_reconcile.missing, list[str]()

    def at_the_second_time(services: Services, dataset_id: str, keys: Collection[str]) -> set[str]:
        asked.append(dataset_id)
        if len(asked) == 1:
            raise StoreUnavailable("Milvus does not answer")
        return missing(services, dataset_id, keys)

    monkeypatch.setattr(pipeline_reconcile, "missing", at_the_second_time)
    monkeypatch.setattr(op, "_FIRST_RETRY_SECONDS", 0)
    result = build_defs().resolve_job_def("reconcile").execute_in_process(instance=instance)
    assert [event for event in result.all_events if event.is_step_up_for_retry]
    assert asked == [dataset.id] * 2
    assert world.rows("SELECT document_id, stage FROM pipeline.documents") == [(ids["a.txt"], "plan")]


def test_the_probe_reads_the_models_weights_once(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick(instance)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("the weights were read again"))
    tick(instance)


def test_a_schema_that_is_not_ours_ends_the_run_at_once(world: World, instance: dg.DagsterInstance) -> None:
    world.change("ALTER SCHEMA pipeline RENAME TO elsewhere")
    result = build_defs().resolve_job_def("reconcile").execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    (failure,) = result.get_step_failure_events()
    assert "db verify" in str(failure.step_failure_data.error)
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
