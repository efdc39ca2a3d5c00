"""Real Dagster runs, in this process, on real stores."""

from typing import Any

import dagster as dg
import pytest

from fltr_pipeline.definitions import build_defs
from fltr_pipeline.defs.document_embeddings import PUBLISHED_CHECK
from fltr_pipeline.defs.op import run_stage
from fltr_pipeline.defs.partitions import DATASET_PARTITIONS
from fltr_pipeline.defs.schedules import nightly_backfill
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.failures import ADVICE
from fltr_pipeline.pipeline.worker import Report
from fltr_pipeline.resources import BlobsResource, CreditsResource, EmbedderResource, FltrResource, MilvusResource
from fltr_pipeline.stores.fltr import requeue
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline_tests.pdfs import pdf
from fltr_pipeline_tests.shelves import move
from fltr_pipeline_tests.world import World

ASSETS = ["datasets", "documents", "processing_jobs", "document_embeddings"]


def run(
    instance: dg.DagsterInstance,
    job: str,
    dataset: Dataset,
    mode: str = "stale",
    selection: list[str] | None = None,
    tags: dict[str, str] | None = None,
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
            tags=tags,
            asset_selection=None if selection is None else [dg.AssetKey(name) for name in selection],
        )
    )


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    (event,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items()}


def test_what_milvus_keeps_of_what_is_retired_fails_no_run(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its documents are published and checked by then; the sweep is repeated by `reconcile`."""
    dataset = world.dataset(world.user(credits=10))
    world.upload(dataset, {"a.txt": b"Alpha and omega."})
    world.change("INSERT INTO pipeline.retired_keys VALUES ('old', %s, 'x')", dataset.id)

    def down(*_: object) -> None:
        raise StoreUnavailable("Milvus does not answer")

    monkeypatch.setattr(VectorStore, "delete_listed", down)
    result = run(instance, "ingest", dataset)
    assert result.success
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    (published,) = [c for c in result.get_asset_check_evaluations() if c.check_name == PUBLISHED_CHECK]
    assert (published.passed, published.metadata["documents"].value) == (True, 1)
    assert metadata(result, "document_embeddings")["documents_done"] == 1
    assert world.rows("SELECT key FROM pipeline.retired_keys") == [("old",)]
    assert [e for e in instance.all_logs(result.run_id) if "left for `reconcile`" in e.user_message]


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
        "pages_have_text": True,
        "ocr_is_sure": True,
        "published_chunks_are_in_milvus": True,
    }
    assert world.statuses(dataset) == {"a.txt": "ready", "b.md": "ready", "c.pdf": "failed", "d.txt": "failed"}


def test_a_run_that_can_take_nothing_follows_what_was_moved_elsewhere(
    world: World, instance: dg.DagsterInstance
) -> None:
    """Else the sensor, which sees it wait here, would launch run after run, until a pass has come to it."""
    payer = world.user(credits=10)
    before, now = world.dataset(payer), world.dataset(payer)
    ids = world.upload(before, {"a.txt": b"Alpha and omega."})
    world.extract(before)
    move(world, ids["a.txt"], now)
    assert world.launchable().keys() == {before.id}
    assert run(instance, "ingest", before).success
    assert world.launchable().keys() == {now.id}
    assert run(instance, "ingest", now).success
    assert world.statuses(now) == {"a.txt": "ready"}


def test_an_asset_may_be_materialised_alone_and_the_rest_later(world: World, instance: dg.DagsterInstance) -> None:
    dataset = world.dataset(world.user(credits=10))
    world.upload(dataset, {"a.txt": b"Alpha and omega."})
    assert run(instance, "ingest", dataset, selection=["datasets", "documents"]).success
    assert world.statuses(dataset) == {"a.txt": "processing"}
    assert run(instance, "ingest", dataset, selection=["processing_jobs"]).success
    result = run(instance, "ingest", dataset, selection=["document_embeddings"])
    assert metadata(result, "document_embeddings")["documents_done"] == 1
    assert world.statuses(dataset) == {"a.txt": "ready"}


def test_a_partition_materialised_by_hand_redoes_what_failed(world: World, instance: dg.DagsterInstance) -> None:
    dataset = world.dataset(world.user(credits=10))
    ids = world.upload(dataset, {"a.txt": b"Alpha and omega.", "b.txt": b""})
    assert run(instance, "ingest", dataset).success
    world.services.blobs.put(dataset.id, ids["b.txt"], "b.txt", b"No longer empty.")
    result = run(instance, "reprocess_dataset", dataset)
    assert metadata(result, "documents")["documents_requeued"] == 1
    assert world.statuses(dataset) == {"a.txt": "ready", "b.txt": "ready"}


def test_a_retry_does_not_requeue_what_its_run_has_tried(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.dataset(world.user(credits=10))
    world.upload(dataset, {"a.txt": b""})
    assert run(instance, "ingest", dataset).success
    tries = []

    def breaking(*arguments: Any) -> Report:
        tries.append(1)
        report = run_stage(*arguments)
        if len(tries) == 1:
            raise StoreUnavailable("Postgres restarts")
        return report

    monkeypatch.setattr("fltr_pipeline.defs.documents.run_stage", breaking)
    monkeypatch.setattr("fltr_pipeline.defs.op._FIRST_RETRY_SECONDS", 0.01)
    result = run(instance, "reprocess_dataset", dataset)
    assert result.success
    assert len(tries) == 2
    attempts = "SELECT count(*) FROM processing_jobs"
    assert world.rows(attempts) == [(2,)], "the upload's, and that of the run"

    # Dagster's own retry of a run whose worker died has the tags of that run, and a process of its own.
    died = instance.get_run_by_id(result.run_id)
    assert died is not None
    again = {**died.tags, "dagster/parent_run_id": died.run_id}
    assert run(instance, "reprocess_dataset", dataset, tags=again | {"dagster/retry_number": "1"}).success
    assert world.rows(attempts) == [(2,)]
    # The retry of a retry whose worker died before it got that far.
    early = run(
        instance, "reprocess_dataset", dataset, selection=["datasets"], tags=again | {"dagster/retry_number": "1"}
    )
    retried = again | {"dagster/parent_run_id": early.run_id, "dagster/retry_number": "2"}
    assert run(instance, "reprocess_dataset", dataset, tags=retried).success
    assert world.rows(attempts) == [(2,)]
    # Who executes it again by hand asks for it again.
    assert run(instance, "reprocess_dataset", dataset, tags=again).success
    assert world.rows(attempts) == [(3,)]


def test_a_retry_goes_on_behind_what_was_queued_and_has_failed_since(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.dataset(world.user(credits=10))
    world.upload(dataset, {"a.txt": b"", "b.txt": b"", "c.txt": b"Alpha and omega."})
    assert run(instance, "ingest", dataset).success
    pages = []

    def cut_off(*arguments: Any) -> int:
        pages.append(1)
        if len(pages) == 3:
            world.process(dataset)  # the sensor's runs take at once what is queued
            raise StoreUnavailable("Postgres restarts")
        return queue_page(*arguments)

    queue_page = requeue.requeue
    monkeypatch.setattr(requeue, "requeue", cut_off)
    monkeypatch.setattr("fltr_pipeline.pipeline.reprocess._PAGE", 1)
    monkeypatch.setattr("fltr_pipeline.defs.op._FIRST_RETRY_SECONDS", 0.01)
    result = run(instance, "reprocess_dataset", dataset, "all")
    assert result.success
    assert metadata(result, "documents")["documents_requeued"] == 1
    jobs = "SELECT count(*) FROM processing_jobs GROUP BY document_id"
    assert world.rows(jobs) == [(2,)] * 3, "the upload's, and one more"


def test_what_failed_stands_in_the_metadata_as_a_table(world: World, instance: dg.DagsterInstance) -> None:
    dataset = world.dataset(world.user(credits=10))
    world.upload(dataset, {"b.txt": b""})
    found = metadata(run(instance, "ingest", dataset), "documents")
    failures, codes = found["failures"], found["failure_codes"]
    assert isinstance(failures, dg.TableMetadataValue)
    (row,) = [record.data for record in failures.records]
    assert (row["document"], row["code"]) == ("b.txt", "empty")
    assert "b.txt" in str(row["reason"])
    assert isinstance(codes, dg.TableMetadataValue)
    (row,) = [record.data for record in codes.records]
    assert row == {
        "code": "empty",
        "documents": "1",
        "for the customer": ADVICE["empty"].customer,
        "for the operator": ADVICE["empty"].operator,
    }


def test_pages_without_text_are_named_and_warned_of(world: World, instance: dg.DagsterInstance) -> None:
    dataset = world.dataset(world.user(credits=20))
    files = {"gaps.pdf": pdf(["words", "", "more", "", "", ""]), "whole.pdf": pdf(["words"])}
    world.upload(dataset, files | {"feeds.txt": b"words" + b"\f" * 1000})
    result = run(instance, "ingest", dataset)
    assert result.success
    assert set(world.statuses(dataset).values()) == {"ready"}
    assert metadata(result, "documents")["blank_pages"] == 1004
    (check,) = [c for c in result.get_asset_check_evaluations() if c.check_name == "pages_have_text"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    pages = check.metadata["without_text"]
    assert isinstance(pages, dg.TableMetadataValue)
    assert sorted((r.data for r in pages.records), key=str) == [
        {"document": "feeds.txt", "pages": "1001", "without text": "2-201 and 800 more"},
        {"document": "gaps.pdf", "pages": "6", "without text": "2, 4-6"},
    ]
    assert (check.metadata["documents"].value, check.metadata["pages"].value) == (2, 1004)


def test_harmful_drift_stops_ingest_and_says_so(world: World, instance: dg.DagsterInstance) -> None:
    dataset = world.dataset(world.user(credits=10))
    world.upload(dataset, {"a.txt": b"Alpha and omega."})
    world.change("CREATE TABLE users (id text)")
    result = run(instance, "ingest", dataset)
    assert not result.success
    (check,) = [c for c in result.get_asset_check_evaluations() if c.check_name == "fltr_matches_specification"]
    assert not check.passed
    assert "users" in str(check.metadata["differences"].value)
    assert world.statuses(dataset) == {"a.txt": "uploaded"}
    assert world.auth_rows("SELECT count(*) FROM credit_transactions WHERE type = 'usage'") == [(0,)]


def test_drift_between_manifest_and_milvus_fails_the_daily_check(world: World, instance: dg.DagsterInstance) -> None:
    world.sweep_all()  # what other tests left in Milvus
    dataset = world.dataset(world.user(credits=10))
    world.upload(dataset, {"a.txt": b"Alpha and omega."})
    assert run(instance, "ingest", dataset).success

    def checked() -> dg.AssetCheckEvaluation:
        result = build_defs().resolve_job_def("verify").execute_in_process(instance=instance)
        assert result.success
        checks = result.get_asset_check_evaluations()
        assert len(checks) == 4
        return next(c for c in checks if c.check_name == "manifest_matches_milvus")

    assert checked().passed
    world.services.vectors.delete(list(world.services.vectors.keys(dataset.id)))
    failed = checked()
    assert not failed.passed
    assert failed.metadata["missing"].value == 1


def test_a_dataset_that_is_gone_ends_the_run_at_once(world: World, instance: dg.DagsterInstance) -> None:
    result = run(instance, "ingest", Dataset("no-such-dataset", "nobody", "gone"))
    assert not result.success
    assert result.retry_attempts_for_node("datasets") == 0
    failure = result.failure_data_for_node("datasets")
    assert failure is not None
    assert failure.error is not None
    assert "no-such-dataset does not exist" in failure.error.message


def test_the_nightly_backfill_names_the_datasets_that_need_it(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer = world.user(credits=20)
    fresh, failed = world.dataset(payer, "fresh"), world.dataset(payer, "failed")
    world.upload(fresh, {"a.txt": b"Alpha and omega."})
    world.upload(failed, {"a.txt": b"", "b.txt": b""})
    for dataset in (fresh, failed):
        world.process(dataset)

    def named() -> list[str]:
        context = dg.build_schedule_context(instance=instance)
        resources = {"fltr": FltrResource(), "credits": CreditsResource(), "milvus": MilvusResource()}
        answer = nightly_backfill(context, **resources, embedder=EmbedderResource(), blobs=BlobsResource())
        requests = answer if isinstance(answer, list) else []
        return [str(request.partition_key) for request in requests if isinstance(request, dg.RunRequest)]

    assert named() == []
    # An empty file stays empty; a failure that was not the document's own may be mended by another night.
    world.change("UPDATE pipeline.documents SET error_code = 'gave_up' WHERE dataset_id = %s", failed.id)
    assert named() == [failed.id]
    monkeypatch.setenv("FLTR_CHUNK_TOKENS", "100")
    assert named() == sorted([fresh.id, failed.id])
