"""Claims: who gets which document. Each test runs with text and with uuid ids."""

import threading
import time
import uuid

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from fltr_pipeline.models import ReprocessMode, Stage
from fltr_pipeline.stores.fltr import claims, datasets, deleted, leases, locks, requeue
from fltr_pipeline.stores.fltr.claims import Claim, Failure, Wait
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.queries import Fltr, redoing


def names(claimed: list[Claim]) -> list[str]:
    return [c.filename for c in claimed]


def parked(fltr: Fltr, dataset: Dataset, *filenames: str) -> list[Claim]:
    """Documents that wait at the second stage; the claims that brought them there."""
    fltr.upload(dataset, *filenames)
    claimed = fltr.claim(dataset, run="first")
    fltr.advance(claimed, Stage.PLAN)
    return claimed


# --- claim: uploads ---------------------------------------------------------------------------------------------------


def test_uploads_are_claimed_oldest_first_up_to_the_limit(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    first, *_ = fltr.upload(dataset, "c", "a", "b")
    claimed = fltr.claim(dataset, run="run-7", limit=2)
    assert names(claimed) == ["c", "a"]
    one = claimed[0]
    assert (one.document_id, one.dataset_id, one.generation, one.live_generation) == (first, dataset.id, 1, None)
    assert (one.fence, one.billable, one.attempts) == (1, True, 0)
    assert fltr.statuses(dataset) == {"a": "processing", "b": "uploaded", "c": "processing"}
    assert fltr.rows("SELECT id::text, status FROM processing_jobs WHERE document_id = :d", d=first) == [
        (one.job_id, "running")
    ]
    state = fltr.state(first, "dataset_id, stage, run_id, lease_until > now(), job_id, live_generation")
    assert state == (dataset.id, "extract", "run-7", True, one.job_id, None)


def test_the_input_version_is_when_the_uploader_said_that_it_is_there(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    uploaded = fltr.one("SELECT updated_at::text FROM documents")
    fltr.claim(dataset)
    assert fltr.state(document, "input_version") == uploaded
    assert fltr.one("SELECT updated_at::text FROM documents") == uploaded


def test_nothing_waits_in_an_empty_an_unknown_or_another_dataset(fltr: Fltr) -> None:
    empty, other = fltr.dataset(), fltr.dataset()
    fltr.upload(other, "a")
    for stage in Stage:
        assert fltr.claim(empty, stage) == []
        assert fltr.claim(Dataset(str(uuid.uuid4()), "u", "n"), stage) == []
    assert fltr.statuses(other) == {"a": "uploaded"}


def test_a_new_input_is_a_new_generation_under_a_new_fence_and_ends_the_old_job(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    (old,) = fltr.claim(dataset)
    fltr.upload_anew(dataset, document)
    (new,) = fltr.claim(dataset)
    assert (new.generation, new.fence) == (old.generation + 1, old.fence + 1)
    assert fltr.jobs(document) == ["canceled", "running"]
    assert fltr.advance([old], Stage.PLAN) == set()


def test_the_same_input_claimed_again_is_the_same_generation(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a")
    (old,) = fltr.claim(dataset)
    fltr.change("UPDATE documents SET status = 'uploaded'")
    (new,) = fltr.claim(dataset)
    assert (new.generation, new.fence) == (old.generation, old.fence + 1)


def test_an_upload_forgets_what_became_of_the_attempt_before(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    (claim,) = fltr.claim(dataset)
    with fltr.transaction() as tx:
        claims.fail(tx, [Failure(claim, "corrupt", "bad")])
    fltr.upload_anew(dataset, document)
    fltr.claim(dataset)
    columns = "attempts, retry_at, credits_needed, error_code, error_message, error_at"
    assert fltr.state(document, columns) == (0, None, None, None, None, None)


def come_back(fltr: Fltr, dataset: Dataset, document_id: str) -> None:
    with fltr.transaction() as tx:
        datasets.upload(tx, dataset.id, [(document_id, "a")])


def test_a_document_that_comes_back_under_its_id_has_a_fence_that_nobody_had(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    fences = [claim.fence for claim in fltr.claim(dataset)]
    for _ in range(2):
        fltr.let_leases_run_out()
        fences += [claim.fence for claim in fltr.claim(dataset)]
        fltr.let_leases_run_out()
        fltr.change("DELETE FROM documents")
        with fltr.transaction() as tx:
            assert deleted.forget(tx, [document]) == 1
        come_back(fltr, dataset, document)
        fences += [claim.fence for claim in fltr.claim(dataset)]
    assert fences[0] == 1
    assert fences == sorted(set(fences))


def test_a_document_that_comes_back_while_it_is_forgotten_has_one_too(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    (before,) = fltr.claim(dataset)
    fltr.let_leases_run_out()
    fltr.change("DELETE FROM documents")
    claimed: list[Claim] = []
    with fltr.transaction() as tx:
        assert deleted.forget(tx, [document]) == 1
        come_back(fltr, dataset, document)
        claiming = threading.Thread(target=lambda: claimed.extend(fltr.claim(dataset)))
        claiming.start()
        deadline = time.monotonic() + 60
        while fltr.one("SELECT count(*) FROM pg_locks WHERE NOT granted") == (0,):
            assert time.monotonic() < deadline, "nobody waits"
            time.sleep(0.01)
    claiming.join()
    (after,) = claimed
    assert after.fence > before.fence


# --- claim: the API key of an upload ----------------------------------------------------------------------------------


def name_key(fltr: Fltr, document_id: str, key: str) -> None:
    """As an uploader does, in the transaction that sets `uploaded`."""
    fltr.change("INSERT INTO pipeline.upload_keys VALUES (:d, :k)", d=document_id, k=key)


def keys_left(fltr: Fltr) -> list[tuple[str]]:
    return fltr.rows("SELECT document_id FROM pipeline.upload_keys ORDER BY 1")


ONE, TWO = "1" * 64, "2" * 64


def test_a_claim_takes_the_key_of_the_upload_along(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    with_key, without, not_yet = fltr.upload(dataset, "a", "b", "c")
    name_key(fltr, with_key, ONE)
    name_key(fltr, not_yet, TWO)
    assert [c.api_key_id for c in fltr.claim(dataset, limit=2)] == [ONE, None]
    assert keys_left(fltr) == [(not_yet,)]
    assert (fltr.state(with_key, "api_key_id"), fltr.state(without, "api_key_id")) == ((ONE,), (None,))


def test_a_claim_that_is_rolled_back_leaves_the_key_where_it_was(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    name_key(fltr, document, ONE)
    with fltr.engine.connect() as tx:
        assert claims.claim(tx, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id="r", limit=5, lease_seconds=60)
        tx.rollback()
    assert keys_left(fltr) == [(document,)]
    assert [c.api_key_id for c in fltr.claim(dataset)] == [ONE]


def test_the_key_stays_with_the_input_through_all_stages(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    name_key(fltr, document, ONE)
    fltr.advance(fltr.claim(dataset), Stage.PLAN)
    assert [c.api_key_id for c in fltr.claim(dataset, Stage.PLAN)] == [ONE]
    fltr.let_leases_run_out()
    assert [c.api_key_id for c in fltr.claim(dataset, Stage.PLAN)] == [ONE]


def test_the_same_input_claimed_again_keeps_its_key_or_takes_a_later_one(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    name_key(fltr, document, ONE)
    fltr.claim(dataset)
    for later, key in ((None, ONE), (TWO, TWO), (None, TWO)):
        if later:
            name_key(fltr, document, later)
        fltr.change("UPDATE documents SET status = 'uploaded'")
        assert [c.api_key_id for c in fltr.claim(dataset)] == [key]


@pytest.mark.parametrize("key", [None, TWO])
def test_a_new_input_has_its_own_key_or_none(fltr: Fltr, key: str | None) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    name_key(fltr, document, ONE)
    fltr.claim(dataset)
    fltr.upload_anew(dataset, document)
    if key:
        name_key(fltr, document, key)
    assert [c.api_key_id for c in fltr.claim(dataset)] == [key]
    assert keys_left(fltr) == []


@pytest.mark.parametrize("key", ["fltr-secret-key", "A" * 64, "1" * 63, "1" * 65, ""])
def test_nothing_but_a_digest_is_taken_for_a_key(fltr: Fltr, key: str) -> None:
    (document,) = fltr.upload(fltr.dataset(), "a")
    with pytest.raises(IntegrityError):
        name_key(fltr, document, key)


# --- claim: what is parked --------------------------------------------------------------------------------------------


def test_parked_documents_are_claimed_at_their_stage_with_the_job_they_have(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (first,) = parked(fltr, dataset, "a")
    assert fltr.claim(dataset, Stage.EXTRACT) == []
    assert fltr.claim(dataset, Stage.EMBED) == []
    (claim,) = fltr.claim(dataset, Stage.PLAN)
    assert (claim.job_id, claim.generation, claim.fence) == (first.job_id, first.generation, first.fence + 1)
    assert (claim.filename, claim.attempts) == ("a", 0)
    assert fltr.jobs(claim.document_id) == ["running"]


def test_parked_documents_fill_up_what_uploads_leave_of_the_limit(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "old1", "old2", "old3")
    fltr.advance(fltr.claim(dataset), Stage.EXTRACT)
    fltr.upload(dataset, "new")
    claimed = fltr.claim(dataset, limit=3)
    assert claimed[0].filename == "new"
    assert len(claimed) == 3
    assert fltr.claim(dataset, limit=0) == []


def test_what_another_worker_holds_is_not_claimed(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a")
    fltr.claim(dataset)
    assert fltr.claim(dataset) == []


def test_what_a_dead_worker_left_is_taken_over_with_a_new_job_and_counts_as_an_attempt(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    (dead,) = fltr.claim(dataset)
    fltr.let_leases_run_out()
    (claim,) = fltr.claim(dataset)
    assert (claim.fence, claim.attempts, claim.generation) == (dead.fence + 1, 1, dead.generation)
    assert claim.job_id != dead.job_id
    assert sorted(fltr.jobs(document)) == ["failed", "running"]


def test_a_deleted_document_is_no_longer_at_any_stage(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (claim,) = parked(fltr, dataset, "a")
    fltr.change("DELETE FROM documents")
    assert fltr.claim(dataset, Stage.PLAN) == []
    assert fltr.state(claim.document_id, "stage, lease_until, fence") == (None, None, claim.fence + 1)


def test_a_parked_document_that_is_uploaded_anew_goes_on_as_an_upload_only(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (claim,) = parked(fltr, dataset, "a")
    fltr.upload_anew(dataset, claim.document_id)
    assert fltr.claim(dataset, Stage.PLAN) == []
    assert fltr.state(claim.document_id, "stage") == (None,)
    (new,) = fltr.claim(dataset)
    assert new.generation == claim.generation + 1


@pytest.mark.parametrize("how", ["parked", "in dead hands"])
def test_what_was_moved_to_another_dataset_is_left_to_be_followed_and_hides_nothing(fltr: Fltr, how: str) -> None:
    here, there = fltr.dataset(), fltr.dataset("there")
    *moved, stays = sorted(c.document_id for c in parked(fltr, here, *"abcde"))
    if how == "in dead hands":
        fltr.claim(here, Stage.PLAN, run="dead")
        fltr.let_leases_run_out()
    for document in moved:
        fltr.change("UPDATE documents SET dataset_id = :d WHERE id = :i", d=there.id, i=document)
    before = [fltr.state(document, "stage, lease_until, fence, run_id") for document in moved]
    assert [c.document_id for c in fltr.claim(here, Stage.PLAN, limit=2)] == [stays]
    assert fltr.claim(here, Stage.PLAN) == fltr.claim(there, Stage.PLAN) == []
    assert [fltr.state(document, "stage, lease_until, fence, run_id") for document in moved] == before


def test_of_what_was_moved_a_claim_holds_a_part_at_most(fltr: Fltr, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it ends, nobody can follow what it holds."""
    monkeypatch.setattr(claims, "_MOVED", 20)
    here, there = fltr.dataset(), fltr.dataset("there")
    moved = [c.document_id for c in parked(fltr, here, *(f"{n:02}" for n in range(30)))]
    for document in moved:
        fltr.change("UPDATE documents SET dataset_id = :d WHERE id = :i", d=there.id, i=document)
    with fltr.transaction() as tx, fltr.transaction() as other:
        claimed = claims.claim(tx, dataset_id=here.id, stage=Stage.PLAN, run_id="r", limit=2, lease_seconds=60)
        assert claimed == []
        assert len(locks.lock_unheld(other, moved)) == 10


def test_what_somebody_writes_in_hides_nothing(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    *written, free = sorted(c.document_id for c in parked(fltr, dataset, *"abcde"))
    with fltr.transaction() as application:
        locks.lock_documents(application, written)
        assert [c.document_id for c in fltr.claim(dataset, Stage.PLAN, limit=2)] == [free]


def test_backoff_is_waited_for(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a")
    with fltr.transaction() as tx:
        claims.retry_later(tx, fltr.claim(dataset), "no answer")
    assert fltr.claim(dataset) == []
    fltr.change("UPDATE pipeline.documents SET retry_at = now()")
    assert [c.attempts for c in fltr.claim(dataset)] == [0]


def test_documents_that_await_credits_are_offered_once_per_run(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a")
    claimed = fltr.claim(dataset, run="one")
    with fltr.transaction() as tx:
        claims.wait_for_credits(tx, [Wait(c, 5, "user", "u") for c in claimed])
    assert fltr.statuses(dataset) == {"a": "awaiting_credits"}
    assert fltr.claim(dataset, run="one") == []
    assert names(fltr.claim(dataset, run="two")) == ["a"]
    assert fltr.statuses(dataset) == {"a": "processing"}
    assert fltr.state(claimed[0].document_id, "credits_needed, attempts") == (None, 0)


def test_two_runs_do_not_hand_what_awaits_credits_to_and_fro(fltr: Fltr) -> None:
    dataset, offered = fltr.dataset(), list[str]()
    fltr.upload(dataset, "a", "b", "c")
    with fltr.transaction() as tx:
        began = leases.clock(tx)
    for run in ["one", "two"] * 3:
        with fltr.transaction() as tx:
            claimed = claims.claim(
                tx, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id=run, limit=9, lease_seconds=60, since=began
            )
            claims.wait_for_credits(tx, [Wait(c, 5, "user", "u") for c in claimed])
        offered += [f"{c.filename} {run}" for c in claimed]
    assert sorted(offered) == ["a one", "b one", "c one"]
    assert sorted(names(fltr.claim(dataset, run="later"))) == ["a", "b", "c"]


# --- concurrency ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [Stage.EXTRACT, Stage.PLAN])
def test_two_workers_at_the_same_time_share_what_waits_and_neither_waits_for_the_other(
    fltr: Fltr, stage: Stage
) -> None:
    dataset = fltr.dataset()
    files = [f"{n:02}" for n in range(10)]
    parked(fltr, dataset, *files) if stage is Stage.PLAN else fltr.upload(dataset, *files)

    def take(tx: Connection, run: str) -> set[str]:
        taken = claims.claim(tx, dataset_id=dataset.id, stage=stage, run_id=run, limit=6, lease_seconds=60)
        return set(names(taken))

    with fltr.impatient() as one, fltr.impatient() as two:
        first = take(one, "one")
        second = take(two, "two")
    assert (len(first), len(second)) == (6, 4)
    assert first | second == set(files)


def test_many_workers_claim_every_document_once(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, *(f"{n:02}" for n in range(40)))
    taken: list[str] = []
    start = threading.Barrier(4)

    def work(run: str) -> None:
        start.wait()
        for stage, then in ((Stage.EXTRACT, Stage.PLAN), (Stage.PLAN, Stage.EMBED)):
            while claimed := fltr.claim(dataset, stage, run=run, limit=3):
                taken.extend(f"{stage} {c.filename}" for c in claimed)
                fltr.advance(claimed, then)

    threads = [threading.Thread(target=work, args=(f"run {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for claimed in iter(lambda: fltr.claim(dataset, Stage.PLAN), []):
        taken.extend(f"{Stage.PLAN} {c.filename}" for c in claimed)
    assert sorted(taken) == sorted(f"{stage} {n:02}" for stage in (Stage.EXTRACT, Stage.PLAN) for n in range(40))


def test_a_document_that_its_uploader_is_writing_is_left_for_the_next_claim(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    busy, _ = fltr.upload(dataset, "busy", "free")
    with fltr.impatient() as uploader:
        datasets.upload(uploader, dataset.id, [(busy, "busy")])
        assert names(fltr.claim(dataset)) == ["free"]
    assert names(fltr.claim(dataset)) == ["busy"]


def test_a_reprocessing_locks_in_the_order_of_ids_as_all_do(fltr: Fltr) -> None:
    """Else it and whoever notes lost vectors of the same documents (`manifest.lose`) wait for each other."""
    dataset = fltr.dataset()
    first, *others = sorted(fltr.upload(dataset, *"abcdefgh"))
    fltr.publish(dataset, "alpha")
    for status in ("uploaded", "ready"):  # its row is the last now: that of a changed index can't stay where it was
        fltr.change("UPDATE documents SET status = :s WHERE id = :d", s=status, d=first)

    def reprocess() -> None:
        with fltr.transaction() as tx:
            tx.execute(text("SET LOCAL enable_indexscan = off"))  # a plan that reads the rows as they are stored
            redo = redoing(dataset.id, ReprocessMode.stale, fingerprint="new")
            requeue.requeue(tx, redo, requeue.choose(tx, redo))

    locked = "SELECT document_id FROM pipeline.documents WHERE document_id = :d FOR UPDATE"
    free = "SELECT document_id FROM pipeline.documents ORDER BY document_id FOR UPDATE SKIP LOCKED"
    asked = threading.Thread(target=reprocess)
    with fltr.transaction() as tx:
        tx.execute(text(locked), {"d": first})
        asked.start()
        deadline = time.monotonic() + 30
        while fltr.one("SELECT count(*) FROM pg_locks WHERE NOT granted") == (0,):
            assert time.monotonic() < deadline, "nobody waits"
            time.sleep(0.01)
        assert [i for (i,) in fltr.rows(free)] == others
    asked.join()
    assert fltr.one("SELECT count(*) FROM pipeline.documents WHERE stage = 'extract'") == (8,)
