"""What dead workers left: which documents a sweep takes in hand, in which state it finds them and puts them back."""

import threading
import uuid
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fltr_pipeline.models import Op, Stage
from fltr_pipeline.stores.fltr import charges, claims, expired, generations
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim, Failure, Wait
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.fltr.expired import Delivered, Taken
from fltr_pipeline_tests.queries import Fltr, words

AGE = 60.0


def uploaded(fltr: Fltr, *filenames: str) -> tuple[Dataset, list[Claim]]:
    dataset = fltr.dataset()
    fltr.upload(dataset, *(filenames or ("a",)))
    return dataset, fltr.claim(dataset, run="worker")


def take(fltr: Fltr, *, limit: int = 100) -> list[Taken]:
    with fltr.transaction() as tx:
        return expired.take(tx, lease_seconds=60, age=AGE, limit=limit)


def overdue(fltr: Fltr) -> bool:
    with fltr.transaction() as tx:
        return expired.overdue(tx, age=AGE, limit=100)


def charge(fltr: Fltr, claim: Claim, *, amount: int = 3, op: Op = Op.DOCUMENT_EXTRACT, age: float = 2 * AGE) -> Charge:
    """An open one, made `age` seconds ago."""
    made = Charge(
        subject_id=claim.document_id, op=op, generation=claim.generation, dataset_id=claim.dataset_id, amount=amount,
        user_id="ann", pot_kind="user", pot_id="ann", price_version="2026-11", unit_price=1, job_id=claim.job_id,
    )  # fmt: skip
    with fltr.transaction() as tx:
        charges.write_charges(tx, [made], {})
    fltr.change(
        "UPDATE pipeline.charges SET created_at = now() - make_interval(secs => :age) WHERE subject_id = :d",
        age=age, d=claim.document_id,
    )  # fmt: skip
    return made


def embedded(fltr: Fltr, claim: Claim, content: str = "flour water") -> Claim:
    """The document with all its vectors read back, in its worker's hands; the worker's last claim."""
    dataset = Dataset(claim.dataset_id, "u", "n")
    fltr.stage_text(claim, content)
    fltr.advance([claim], Stage.PLAN)
    (planned,) = fltr.claim(dataset, Stage.PLAN, run="worker")
    fltr.plan(planned, words(content))
    fltr.advance([planned], Stage.EMBED)
    (claim,) = fltr.claim(dataset, Stage.EMBED, run="worker")
    with fltr.transaction() as tx:
        generations.assign_keys(tx, [claim])
        generations.decide(tx, [claim])
    return claim


def ids(taken: Sequence[Taken]) -> set[str]:
    return {t.claim.document_id for t in taken}


# --- leases that ran out ----------------------------------------------------------------------------------------------


def test_what_a_worker_holds_is_not_taken(fltr: Fltr) -> None:
    _, (claim,) = uploaded(fltr)
    charge(fltr, claim)
    assert take(fltr) == []
    assert not overdue(fltr)


def test_a_document_of_a_dead_worker_is_taken_under_a_new_fence_and_its_job_is_closed(fltr: Fltr) -> None:
    dataset, (dead, other) = uploaded(fltr, "a", "b")
    fltr.change("UPDATE pipeline.documents SET api_key_id = 'digest'")
    fltr.change(
        "UPDATE pipeline.documents SET lease_until = now() - interval '1 s' WHERE document_id = :d", d=dead.document_id
    )
    assert overdue(fltr)
    (taken,) = take(fltr)
    assert taken == Taken(
        replace(dead, filename="", fence=dead.fence + 1, attempts=1, api_key_id="digest"), decided=False
    )
    columns = "fence, attempts, run_id, job_id, stage, lease_until > now()"
    assert fltr.state(dead.document_id, columns) == (dead.fence + 1, 1, "", None, "extract", True)
    assert (fltr.jobs(dead.document_id), fltr.jobs(other.document_id)) == (["failed"], ["running"])
    assert fltr.advance([dead], Stage.PLAN) == set()
    assert (fltr.claim(dataset), take(fltr)) == ([], [])
    assert not overdue(fltr)


def test_what_was_put_back_is_claimed_anew_with_a_new_job(fltr: Fltr) -> None:
    dataset, (dead,) = uploaded(fltr)
    fltr.let_leases_run_out()
    (taken,) = take(fltr)
    with fltr.transaction() as tx:
        expired.park(tx, [taken.claim])
    (again,) = fltr.claim(dataset)
    assert (again.generation, again.fence, again.attempts) == (dead.generation, dead.fence + 2, 1)
    assert again.job_id != dead.job_id
    assert fltr.jobs(dead.document_id) == ["failed", "running"]


def test_only_who_still_has_it_puts_a_document_back(fltr: Fltr) -> None:
    dataset, _ = uploaded(fltr)
    fltr.let_leases_run_out()
    (slow,) = take(fltr)
    fltr.let_leases_run_out()
    (claim,) = fltr.claim(dataset, run="another worker")
    with fltr.transaction() as tx:
        expired.park(tx, [slow.claim])
    assert fltr.state(claim.document_id, "lease_until > now(), run_id") == (True, "another worker")


def test_a_sweep_that_dies_counts_as_no_worker_that_died(fltr: Fltr) -> None:
    dataset, (dead,) = uploaded(fltr)
    for n in range(3):
        fltr.let_leases_run_out()
        (taken,) = take(fltr)
        assert (taken.claim.fence, taken.claim.attempts) == (dead.fence + 1 + n, 1)
    fltr.let_leases_run_out()
    assert [c.attempts for c in fltr.claim(dataset)] == [1]
    fltr.let_leases_run_out()
    assert [t.claim.attempts for t in take(fltr)] == [2]


def test_a_document_that_is_decided_keeps_its_job_and_only_goes_forward(fltr: Fltr) -> None:
    _, (first,) = uploaded(fltr)
    claim = embedded(fltr, first)
    fltr.let_leases_run_out()
    (taken,) = take(fltr)
    assert taken == Taken(replace(claim, filename="", fence=claim.fence + 1, attempts=1), decided=True)
    assert fltr.jobs(claim.document_id) == ["indexed"]
    with fltr.transaction() as tx:
        assert generations.publish(tx, [taken.claim]) == {claim.document_id}
    assert fltr.jobs(claim.document_id) == ["completed"]


def test_what_is_live_decides_nothing_about_the_next_generation(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a")
    (live,) = fltr.publish(dataset, "alpha")
    fltr.upload_anew(dataset, live.document_id)
    fltr.claim(dataset)
    fltr.let_leases_run_out()
    assert [(t.claim.generation, t.claim.live_generation, t.decided) for t in take(fltr)] == [(2, 1, False)]


# --- parked with a hold that stands -----------------------------------------------------------------------------------


def parked(fltr: Fltr) -> tuple[Dataset, Claim]:
    dataset, (claim,) = uploaded(fltr)
    fltr.advance([claim], Stage.EXTRACT)
    return dataset, claim


def test_a_parked_document_with_an_old_open_charge_is_taken_and_nobody_died(fltr: Fltr) -> None:
    dataset, claim = parked(fltr)
    assert (take(fltr), overdue(fltr)) == ([], False)
    charge(fltr, claim)
    assert overdue(fltr)
    (taken,) = take(fltr)
    assert taken == Taken(replace(claim, filename="", fence=claim.fence + 1), decided=False)
    assert fltr.jobs(claim.document_id) == ["running"]
    with fltr.transaction() as tx:
        expired.park(tx, [taken.claim])
    assert [c.job_id for c in fltr.claim(dataset)] == [claim.job_id]


@pytest.mark.parametrize("why", ["young", "free", "closed", "another generation", "awaiting credits"])
def test_a_parked_document_that_holds_nothing_is_left_alone(fltr: Fltr, why: str) -> None:
    _, claim = parked(fltr)
    made = charge(
        fltr,
        replace(claim, generation=claim.generation + 1) if why == "another generation" else claim,
        amount=0 if why == "free" else 3,
        age=AGE / 2 if why == "young" else 2 * AGE,
    )
    if why == "closed":
        with fltr.transaction() as tx:
            charges.close_charges(tx, [(made, "settled", 3)])
    if why == "awaiting credits":
        with fltr.transaction() as tx:
            claims.wait_for_credits(tx, [Wait(claim, 3, "user", "ann")])
    assert take(fltr) == []
    assert fltr.state(claim.document_id, "fence, lease_until") == (claim.fence, None)
    assert overdue(fltr) is (why == "another generation")


def test_what_has_ended_is_never_taken(fltr: Fltr) -> None:
    _, (claim,) = uploaded(fltr)
    charge(fltr, claim)
    with fltr.transaction() as tx:
        claims.fail(tx, [Failure(claim, "corrupt", "bad")])
    fltr.change("UPDATE pipeline.documents SET lease_until = now() - interval '1 s'")
    assert take(fltr) == []


@pytest.mark.parametrize("left", ["deleted", "ended", "old set-up"])
def test_a_charge_that_nobody_will_close_is_overdue(fltr: Fltr, left: str) -> None:
    dataset, (claim,) = uploaded(fltr)
    if left == "deleted":
        charge(fltr, replace(claim, document_id=str(uuid.uuid4())))
    elif left == "ended":
        charge(fltr, claim)
        with fltr.transaction() as tx:
            claims.fail(tx, [Failure(claim, "corrupt", "bad")])
    else:
        charge(fltr, replace(claim, document_id=dataset.id), op=Op.DATASET_SETUP)
    assert overdue(fltr)
    fltr.change("UPDATE pipeline.charges SET created_at = now()")
    assert not overdue(fltr)


# --- several sweeps ---------------------------------------------------------------------------------------------------


def test_two_sweeps_at_once_share_the_documents_and_neither_waits(fltr: Fltr) -> None:
    files = [f"{n:02}" for n in range(10)]
    _, claimed = uploaded(fltr, *files)
    fltr.let_leases_run_out()
    with fltr.impatient() as one, fltr.impatient() as two:
        first = ids(expired.take(one, lease_seconds=60, age=AGE, limit=6))
        second = ids(expired.take(two, lease_seconds=60, age=AGE, limit=6))
    assert (len(first), len(second)) == (6, 4)
    assert first | second == {c.document_id for c in claimed}


def test_a_sweep_passes_over_what_is_being_written(fltr: Fltr) -> None:
    _, (busy, free) = uploaded(fltr, "a", "b")
    fltr.let_leases_run_out()
    with fltr.impatient() as worker:
        claims.advance(worker, [busy], Stage.PLAN)
        assert ids(take(fltr)) == {free.document_id}


def test_sweeps_and_workers_at_the_same_time_take_every_document_once(fltr: Fltr) -> None:
    dataset, _ = uploaded(fltr, *(f"{n:02}" for n in range(30)))
    fltr.let_leases_run_out()
    start, taken = threading.Barrier(4), list[tuple[str, int]]()

    def sweep() -> None:
        start.wait()
        while found := take(fltr, limit=3):
            taken.extend((t.claim.document_id, t.claim.fence) for t in found)

    def work(run: str) -> None:
        start.wait()
        while found := fltr.claim(dataset, run=run, limit=3):
            taken.extend((c.document_id, c.fence) for c in found)

    threads = [threading.Thread(target=sweep) for _ in range(2)]
    threads += [threading.Thread(target=work, args=(f"run {n}",)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len({document_id for document_id, _ in taken})
    # What both passed over, because somebody held its row for a moment, is left for the next.
    taken += [(t.claim.document_id, t.claim.fence) for t in take(fltr)]
    assert sorted(taken) == sorted(fltr.rows("SELECT document_id, fence FROM pipeline.documents"))


# --- what the work came to --------------------------------------------------------------------------------------------


def test_what_was_delivered_is_the_same_before_and_after_it_is_published(fltr: Fltr) -> None:
    _, (first,) = uploaded(fltr)
    claim = embedded(fltr, first, "flour water salt")
    key = (claim.document_id, claim.generation)
    wanted = {key: Delivered("text", pages=1, characters=16, fresh_tokens=6, ocr_pages=0)}
    with fltr.transaction() as tx:
        assert expired.delivered(tx, [key, (claim.document_id, 7), (str(uuid.uuid4()), 1)]) == wanted
        generations.publish(tx, [claim])
    with fltr.transaction() as tx:
        assert expired.delivered(tx, [key]) == wanted
        assert expired.delivered(tx, []) == {}


def test_what_is_only_staged_has_embedded_nothing(fltr: Fltr) -> None:
    _, (claim,) = uploaded(fltr)
    fltr.stage_text(claim, "flour", pages=3)
    fltr.change("UPDATE pipeline.generations SET ocr_pages = '{2,3}'")
    with fltr.transaction() as tx:
        assert expired.delivered(tx, [(claim.document_id, 1)]) == {
            (claim.document_id, 1): Delivered("text", 3, 5, 0, ocr_pages=2)
        }
