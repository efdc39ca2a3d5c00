"""Doing documents again: which ones each mode queues, and as what."""

import uuid
from collections.abc import Sequence

import pytest
from sqlalchemy import text

from fltr_pipeline.models import ReprocessMode, Stage
from fltr_pipeline.stores.fltr import claims, requeue
from fltr_pipeline.stores.fltr.claims import Claim, Failure
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.queries import FINGERPRINT, Fltr, failed, redoing

UNKNOWN = str(uuid.uuid4())


def requeued(
    fltr: Fltr, dataset_id: str, mode: ReprocessMode, *, billable: bool = False, retryable: Sequence[str] | None = None
) -> int:
    redo = redoing(dataset_id, mode, billable=billable, retryable=retryable)
    with fltr.impatient() as tx:
        return requeue.requeue(tx, redo, requeue.choose(tx, redo))


def backfill(fltr: Fltr, *retryable: str) -> list[str]:
    with fltr.transaction() as tx:
        return requeue.backfill_candidates(
            tx, fingerprint=FINGERPRINT, extractor="extractor-1", tried_with="t", retryable=retryable
        )


@pytest.mark.parametrize(
    ("mode", "queued"),
    [
        (ReprocessMode.pending, set()),
        (ReprocessMode.failed, {"bad"}),
        (ReprocessMode.stale, {"bad", "stale"}),
        (ReprocessMode.all, {"bad", "stale", "fresh"}),
    ],
)
def test_each_mode_requeues_what_the_ones_before_it_do_and_more(
    fltr: Fltr, mode: ReprocessMode, queued: set[str]
) -> None:
    dataset, other = fltr.dataset(), fltr.dataset()
    for name, fingerprint, of in (("stale", "old", dataset), ("fresh", FINGERPRINT, dataset), ("x", "old", other)):
        fltr.upload(of, name)
        fltr.publish(of, "alpha", fingerprint=fingerprint)
    failed(fltr, dataset, "bad")
    fltr.upload(dataset, "new")
    assert requeued(fltr, dataset.id, mode) == len(queued)
    assert fltr.statuses(dataset)["fresh"] == fltr.statuses(dataset)["stale"] == "ready"
    assert {c.filename for c in fltr.claim(dataset)} == queued | {"new"}
    assert fltr.claim(other) == []


def test_of_failures_only_those_of_the_codes_asked_for_are_requeued(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    failed(fltr, dataset, "bad", code="corrupt")
    failed(fltr, dataset, "unlucky", code="gave_up")
    mode = ReprocessMode.failed
    assert requeued(fltr, dataset.id, mode, retryable=[]) == 0
    assert requeued(fltr, dataset.id, mode, retryable=["gave_up"]) == 1
    assert fltr.statuses(dataset) == {"bad": "failed", "unlucky": "uploaded"}


@pytest.mark.parametrize("billable", [True, False])
def test_a_requeued_document_is_a_new_generation_with_a_job_that_waits(fltr: Fltr, *, billable: bool) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    (old,) = fltr.publish(dataset, "alpha")
    requeued(fltr, dataset.id, ReprocessMode.all, billable=billable)
    assert sorted(fltr.jobs(document)) == ["completed", "queued"]
    (claim,) = fltr.claim(dataset)
    assert (claim.generation, claim.live_generation) == (old.generation + 1, old.generation)
    assert claim.billable is billable
    assert sorted(fltr.jobs(document)) == ["completed", "running"]
    assert fltr.statuses(dataset) == {"a": "ready"}


def test_what_is_on_its_way_already_is_not_queued_again(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a", "b")
    for claim in fltr.publish(dataset, "alpha"):
        if claim.filename == "b":
            fltr.upload_anew(dataset, claim.document_id)
    assert requeued(fltr, dataset.id, ReprocessMode.all) == 1
    assert requeued(fltr, dataset.id, ReprocessMode.all) == 0
    assert requeued(fltr, UNKNOWN, ReprocessMode.all) == 0


def test_what_changed_since_it_was_chosen_is_left_alone(fltr: Fltr) -> None:
    dataset, other = fltr.dataset(), fltr.dataset()
    fltr.upload(dataset, *"abcd")
    fltr.publish(dataset, "alpha", fingerprint="old")
    failed(fltr, dataset, "e", "f")
    redo = redoing(dataset.id, ReprocessMode.stale, billable=True)
    with fltr.transaction() as tx:
        chosen = requeue.choose(tx, redo)
    assert len(chosen) == 6
    for change in (
        "UPDATE documents SET dataset_id = :other WHERE filename IN ('a', 'e')",  # whose owner asked for nothing
        "UPDATE documents SET status = 'uploaded', updated_at = now() WHERE filename = 'b'",
        "DELETE FROM documents WHERE filename = 'c'",
    ):
        fltr.change(change, **({"other": other.id} if ":other" in change else {}))
    with fltr.impatient() as tx:
        assert requeue.requeue(tx, redo, chosen) == 2
    assert fltr.statuses(dataset) == {"b": "uploaded", "d": "ready", "f": "uploaded"}
    assert fltr.statuses(other) == {"a": "ready", "e": "failed"}
    assert fltr.rows(
        "SELECT d.filename FROM pipeline.documents p JOIN documents d ON d.id::text = p.document_id"
        " WHERE p.stage IS NOT NULL"
    ) == [("d",)]


def test_what_stays_as_it_is_is_not_locked(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "fresh")
    fltr.publish(dataset, "alpha")
    failed(fltr, dataset, "bad", code="corrupt")
    with fltr.transaction() as application:
        application.execute(text("SELECT FROM documents WHERE dataset_id = :id FOR UPDATE"), {"id": dataset.id})
        assert requeued(fltr, dataset.id, ReprocessMode.stale, retryable=["gave_up"]) == 0


def test_a_backfill_is_for_stale_documents_and_for_failures_that_may_go_away(fltr: Fltr) -> None:
    fresh, stale, retryable, permanent, waiting = (fltr.dataset(name) for name in "abcde")
    for dataset, fingerprint in ((fresh, FINGERPRINT), (stale, "old")):
        fltr.upload(dataset, "a")
        fltr.publish(dataset, "alpha", fingerprint=fingerprint)
    failed(fltr, retryable, "a", "b", code="gave_up")
    failed(fltr, permanent, "a", code="corrupt")
    fltr.upload(waiting, "a")
    assert backfill(fltr, "gave_up", "x") == sorted([stale.id, retryable.id])
    assert backfill(fltr) == [stale.id]
    requeued(fltr, stale.id, ReprocessMode.stale)
    assert backfill(fltr) == []


def behind_a_failure(fltr: Fltr) -> Claim:
    """The repair of a stale version, in a worker's hands; the newer input took too long."""
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    fltr.publish(dataset, "alpha", fingerprint="old")
    fltr.upload_anew(dataset, document)
    with fltr.transaction() as tx:
        claims.fail(tx, [Failure(c, "time_limit", "took too long") for c in fltr.claim(dataset)])
    fltr.change("UPDATE documents SET content = 'alpha'")
    assert requeued(fltr, dataset.id, ReprocessMode.stale, retryable=["time_limit"]) == 1
    (claim,) = fltr.claim(dataset, Stage.PLAN)
    return claim


def test_what_befalls_a_repair_says_nothing_of_the_failure_before_it(fltr: Fltr) -> None:
    claim = behind_a_failure(fltr)
    told = fltr.state(claim.document_id, "error_code, error_message, error_at")
    assert told[0] == "time_limit"
    for tries in (1, 2):
        with fltr.transaction() as tx:
            assert claims.put_back(tx, [Failure(claim, "transient", "Milvus is silent")]) == {claim.document_id: tries}
        assert fltr.state(claim.document_id, "error_code, error_message, error_at") == told
        fltr.change("UPDATE pipeline.documents SET retry_at = NULL")
        (claim,) = fltr.claim(Dataset(claim.dataset_id, "", ""), Stage.PLAN)
    with fltr.transaction() as tx:
        assert claims.fail(tx, [Failure(claim, "internal_error", "a bug")]) == {claim.document_id}
    assert fltr.state(claim.document_id, "error_code, error_message, error_at") == told
    assert fltr.jobs(claim.document_id)[-1] == "failed"


def test_a_repair_that_fails_where_no_failure_is_known_is_told_of(fltr: Fltr) -> None:
    claim = behind_a_failure(fltr)
    fltr.change("UPDATE pipeline.documents SET error_code = NULL, error_message = NULL, error_at = NULL")
    with fltr.transaction() as tx:
        claims.fail(tx, [Failure(claim, "internal_error", "a bug")])
    assert fltr.state(claim.document_id, "error_code, error_message") == ("internal_error", "a bug")


def test_what_todays_extractor_cannot_read_is_read_again_by_another_one_alone(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    fltr.publish(dataset, "alpha", fingerprint="old")
    unreadable = "UPDATE pipeline.documents SET error_code = :code, error_extractor = :extractor"
    fltr.change(unreadable, code="corrupt", extractor="extractor-1")
    assert backfill(fltr) == [dataset.id]
    assert requeued(fltr, dataset.id, ReprocessMode.stale) == 1
    assert fltr.state(document, "stage, billable, error_extractor") == ("plan", False, "extractor-1")
    fltr.change("UPDATE pipeline.documents SET stage = NULL")
    fltr.change(unreadable, code="corrupt", extractor="another")
    assert requeued(fltr, dataset.id, ReprocessMode.stale) == 1
    assert fltr.state(document, "stage, error_extractor") == ("extract", None)


def test_a_new_upload_may_be_read_by_the_extractor_that_could_not_read_the_one_before(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = failed(fltr, dataset, "a")
    fltr.change("UPDATE pipeline.documents SET error_extractor = 'extractor-1'")
    fltr.upload_anew(dataset, document)
    fltr.claim(dataset)
    assert fltr.state(document, "error_extractor") == (None,)
