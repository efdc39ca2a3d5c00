"""What a worker may write on documents that it claimed, and how leases and jobs go on."""

import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import Connection

from fltr_pipeline.models import Stage
from fltr_pipeline.stores.fltr import claims, leases, locks
from fltr_pipeline.stores.fltr.claims import Claim, Failure, Wait
from fltr_pipeline.stores.fltr.jobs import close_jobs, insert_jobs
from fltr_pipeline_tests.queries import Fltr

# --- fenced writes ----------------------------------------------------------------------------------------------------


def fail(tx: Connection, claimed: list[Claim]) -> set[str]:
    return claims.fail(tx, [Failure(c, "corrupt", "damaged") for c in claimed])


def wait(tx: Connection, claimed: list[Claim]) -> set[str]:
    return claims.wait_for_credits(tx, [Wait(c, 5, "team", "t") for c in claimed])


WRITES: list[Callable[[Connection, list[Claim]], set[str]]] = [
    lambda tx, claimed: claims.advance(tx, claimed, Stage.EMBED),
    lambda tx, claimed: claims.retry_later(tx, claimed, "later"),
    lambda tx, claimed: set(claims.put_back(tx, [Failure(c, "inaccessible", "later") for c in claimed])),
    lambda tx, claimed: {c.document_id for c in claims.refence(tx, claimed)},
    fail,
    wait,
]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_with_an_old_fence_changes_nothing_but_those_with_a_good_one(
    fltr: Fltr, write: Callable[[Connection, list[Claim]], set[str]]
) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "lost", "held")
    lost, held = fltr.claim(dataset)
    fltr.change("UPDATE pipeline.documents SET fence = fence + 1 WHERE document_id = :d", d=lost.document_id)
    before = fltr.state(lost.document_id, "*")
    with fltr.transaction() as tx:
        assert write(tx, []) == set()
        assert write(tx, [lost, held]) == {held.document_id}
    assert fltr.state(lost.document_id, "*") == before
    assert fltr.statuses(dataset)["lost"] == "processing"
    assert fltr.jobs(lost.document_id) == ["running"]


def test_advance_parks_the_document_and_forgives_its_attempts(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a")
    claimed = fltr.claim(dataset)
    fltr.change("UPDATE pipeline.documents SET attempts = 3, retries = 3")
    assert fltr.advance(claimed, Stage.EMBED) == {claimed[0].document_id}
    assert fltr.state(claimed[0].document_id, "stage, lease_until, attempts, retries") == ("embed", None, 0, 0)


@pytest.mark.parametrize(("retries", "seconds"), [(0, 5), (1, 10), (3, 40), (7, 600), (40, 600)])
def test_backoff_doubles_up_to_ten_minutes(fltr: Fltr, retries: int, seconds: int) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a")
    claimed = fltr.claim(dataset)
    fltr.change("UPDATE pipeline.documents SET retries = :n, error_code = 'transient'", n=retries)
    with fltr.transaction() as tx:
        claims.retry_later(tx, claimed, "no answer")
    columns = "stage, lease_until, retries, error_code, error_message, extract(epoch FROM retry_at - error_at)::float"
    *state, waits = fltr.state(claimed[0].document_id, columns)
    assert state == ["extract", None, retries + 1, "transient", "no answer"]
    assert seconds <= waits <= 1.5 * seconds


def test_what_failed_together_does_not_come_back_together(fltr: Fltr) -> None:
    """One of them may be what no other can be done beside."""
    dataset = fltr.dataset()
    fltr.upload(dataset, *"abcdef")
    with fltr.transaction() as tx:
        claims.retry_later(tx, fltr.claim(dataset), "no answer")
    assert fltr.rows("SELECT count(DISTINCT retry_at) FROM pipeline.documents") == [(6,)]


def test_what_is_put_back_for_a_reason_of_its_own_counts_only_its_like(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a", "b")
    tries = []
    for code in ("transient", "transient", "inaccessible", "inaccessible", "transient"):
        fltr.change("UPDATE pipeline.documents SET retry_at = NULL")
        failures = [Failure(c, code, f"{c.filename} waits") for c in fltr.claim(dataset)]
        with fltr.transaction() as tx:
            tries.append(set(claims.put_back(tx, failures[::-1]).values()))
    assert tries == [{1}, {2}, {1}, {2}, {1}]
    columns = "error_message, extract(epoch FROM retry_at - error_at) BETWEEN 5 AND 7.5"
    waits = fltr.rows(f"SELECT {columns} FROM pipeline.documents ORDER BY 1")
    assert waits == [("a waits", True), ("b waits", True)]


def test_a_failure_ends_the_attempt_with_its_reason(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    with fltr.transaction() as tx:
        assert fail(tx, fltr.claim(dataset)) == {document}
    assert fltr.state(document, "stage, lease_until, error_code, error_message") == (None, None, "corrupt", "damaged")
    assert fltr.statuses(dataset) == {"a": "failed"}
    assert fltr.jobs(document) == ["failed"]


@pytest.mark.parametrize("status", ["ready", "uploaded"])
@pytest.mark.parametrize("write", [fail, wait])
def test_a_good_version_stays_ready_and_a_newer_upload_stays_uploaded(
    fltr: Fltr, status: str, write: Callable[[Connection, list[Claim]], set[str]]
) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    claimed = fltr.claim(dataset)
    fltr.change("UPDATE documents SET status = :status", status=status)
    fltr.change("UPDATE pipeline.documents SET live_generation = 1")
    with fltr.transaction() as tx:
        assert write(tx, claimed) == {document}
    assert fltr.statuses(dataset) == {"a": status}


def test_a_document_that_awaits_credits_says_how_many_and_whose(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    with fltr.transaction() as tx:
        wait(tx, fltr.claim(dataset))
    columns = "stage, lease_until, credits_needed, pot_kind, pot_id"
    assert fltr.state(document, columns) == ("extract", None, 5, "team", "t")
    assert fltr.jobs(document) == ["running"]


def test_a_failed_write_on_a_deleted_document_does_no_harm(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    (document,) = fltr.upload(dataset, "a")
    claimed = fltr.claim(dataset)
    fltr.change("DELETE FROM documents")
    with fltr.transaction() as tx:
        assert fail(tx, claimed) == {document}
    assert fltr.state(document, "stage") == (None,)


# --- locks, jobs, leases ----------------------------------------------------------------------------------------------


def test_lock_documents_names_those_that_exist_and_holds_them(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    one, two = fltr.upload(dataset, "a", "b")
    with fltr.transaction() as tx:
        assert locks.lock_documents(tx, []) == {}
        assert locks.lock_documents(tx, [two, str(uuid.uuid4()), one]) == {one: "uploaded", two: "uploaded"}
        assert fltr.claim(dataset) == []


def test_what_somebody_holds_is_left_and_what_is_gone_is_not(fltr: Fltr) -> None:
    dataset, gone = fltr.dataset(), str(uuid.uuid4())
    one, two = fltr.upload(dataset, "a", "b")
    with fltr.transaction() as application, fltr.transaction() as tx:
        locks.lock_documents(application, [one])
        assert locks.lock_unheld(tx, [two, gone, one]) == [two, gone]
        assert locks.lock_free(application, [one, two, gone]) == {one: locks.Locked("a", "uploaded", dataset.id)}
    with fltr.transaction() as tx:
        assert locks.lock_unheld(tx, [two, one]) == [two, one]


def test_insert_jobs_makes_a_job_per_document_and_remembers_it(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    documents = fltr.upload(dataset, "a", "b")
    fltr.claim(dataset)
    with fltr.transaction() as tx:
        assert insert_jobs(tx, [], "queued") == {}
        jobs = insert_jobs(tx, documents, "queued")
    assert {d: fltr.state(d, "job_id") for d in documents} == {d: (jobs[d],) for d in documents}
    assert fltr.rows("SELECT status FROM processing_jobs WHERE id = :j", j=jobs[documents[0]]) == [("queued",)]


def test_close_jobs_ends_open_jobs_and_only_those(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    documents = fltr.upload(dataset, "a", "b", "c")
    jobs = [c.job_id for c in fltr.claim(dataset)]
    for job, status in zip(jobs, ("queued", "indexed", "completed"), strict=True):
        fltr.change("UPDATE processing_jobs SET status = :s WHERE id = :j", s=status, j=job)
    with fltr.transaction() as tx:
        close_jobs(tx, [], "failed")
        close_jobs(tx, [*jobs, str(uuid.uuid4())], "canceled")
    assert [fltr.jobs(d) for d in documents] == [["canceled"], ["canceled"], ["completed"]]


def test_a_heartbeat_renews_the_leases_of_its_run_alone(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    mine, others = fltr.dataset(), fltr.dataset()
    (document,) = fltr.upload(mine, "a")
    (foreign,) = fltr.upload(others, "b")
    (free,) = fltr.upload(dataset, "c")
    fltr.advance(fltr.claim(dataset, run="first"), Stage.PLAN)
    fltr.claim(mine, run="mine")
    fltr.claim(others, run="others")
    with fltr.transaction() as tx:
        leases.heartbeat(tx, run_id="mine", lease_seconds=3600)
        leases.heartbeat(tx, run_id="first", lease_seconds=3600)
        leases.heartbeat(tx, run_id="nobody", lease_seconds=3600)
    renewed = "lease_until > now() + interval '30 min'"
    assert (fltr.state(document, renewed), fltr.state(foreign, renewed)) == ((True,), (False,))
    assert fltr.state(free, "lease_until") == (None,)


def test_a_heartbeat_does_not_wait_for_what_its_worker_is_writing(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "written", "other")
    written, other = fltr.claim(dataset, run="mine")
    with fltr.impatient() as worker, fltr.impatient() as heart:
        claims.advance(worker, [written], Stage.PLAN)
        leases.heartbeat(heart, run_id="mine", lease_seconds=3600)
    assert fltr.state(written.document_id, "stage, lease_until") == ("plan", None)
    assert fltr.state(other.document_id, "lease_until > now() + interval '30 min'") == (True,)


def test_the_leases_of_dead_runs_end_at_once(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a", "b", "c")
    for run in ("one", "two", "three"):
        fltr.claim(dataset, run=run, limit=1)
    with fltr.transaction() as tx:
        assert leases.expire_runs(tx, []) == []
        assert len(leases.expire_runs(tx, ["one", "three", "unknown"])) == 2
    assert sorted(c.filename for _ in range(3) for c in fltr.claim(dataset)) == ["a", "c"]
