"""Charges: frozen by their first writer, reopened and closed by sequence, swept when nobody will finish the work."""

import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import Op, Stage
from fltr_pipeline.stores.fltr import charges, claims, datasets, expired
from fltr_pipeline.stores.fltr.charges import Abandoned, Charge
from fltr_pipeline.stores.fltr.claims import Claim, Failure
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.queries import Fltr


def claimed(fltr: Fltr, *filenames: str) -> tuple[Dataset, list[Claim]]:
    dataset = fltr.dataset()
    fltr.upload(dataset, *(filenames or ("a",)))
    return dataset, fltr.claim(dataset)


def charge(claim: Claim, op: Op = Op.DOCUMENT_EXTRACT, amount: int = 3) -> Charge:
    return Charge(
        subject_id=claim.document_id, op=op, generation=claim.generation, dataset_id=claim.dataset_id, amount=amount,
        user_id="ann", pot_kind="user", pot_id="ann", price_version="2026-11", unit_price=1, job_id=claim.job_id,
        run_id="run", api_key_id="5e1f",
    )  # fmt: skip


def write(fltr: Fltr, *drafts: Charge, fences: dict[str, int] | None = None) -> list[Charge]:
    with fltr.transaction() as tx:
        return charges.write_charges(tx, drafts, fences or {})


def close(fltr: Fltr, *closed: tuple[Charge, str, int]) -> None:
    with fltr.transaction() as tx:
        charges.close_charges(tx, closed)


def stored(fltr: Fltr, of: Charge) -> tuple[object, ...]:
    return fltr.one(
        "SELECT sequence, state, charged, closed_at IS NOT NULL FROM pipeline.charges"
        " WHERE subject_id = :s AND op = :op AND generation = :g",
        s=of.subject_id, op=of.op.value, g=of.generation,
    )  # fmt: skip


def test_a_charge_is_written_under_its_fence_and_read_back_whole(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    draft = charge(claim)
    assert write(fltr, draft, fences={claim.document_id: claim.fence}) == [draft]
    assert stored(fltr, draft) == (1, "open", None, False)


def test_the_first_writers_amount_pot_and_price_stand(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    first = charge(claim)
    write(fltr, first)
    later = replace(
        first, amount=9, user_id="bob", pot_kind="team", pot_id="t", price_version="2027-01", unit_price=2, job_id="j",
        run_id="a later run", api_key_id="another key",
    )  # fmt: skip
    assert write(fltr, later) == [first]


def test_ops_and_generations_are_charged_apart_in_the_order_asked_for(fltr: Fltr) -> None:
    _, one = claimed(fltr, "a", "b", "c")
    extract = [charge(c) for c in reversed(one)]
    assert write(fltr, *extract) == extract
    embed = [charge(c, Op.DOCUMENT_EMBED, amount=n) for n, c in enumerate(one)]
    again = [replace(c, generation=2) for c in embed]
    assert write(fltr, *embed) == embed
    assert write(fltr, *again) == again
    assert fltr.one("SELECT count(*) FROM pipeline.charges") == (9,)


def test_a_lost_fence_writes_nothing_but_reads_what_was_written_before(fltr: Fltr) -> None:
    _, (lost, held) = claimed(fltr, "a", "b")
    earlier = charge(lost, Op.DOCUMENT_PLAN)
    write(fltr, earlier, fences={lost.document_id: lost.fence})
    fltr.change("UPDATE pipeline.documents SET fence = fence + 1 WHERE document_id = :d", d=lost.document_id)
    fences = {lost.document_id: lost.fence, held.document_id: held.fence}
    assert write(fltr, charge(lost), charge(held), fences=fences) == [charge(held)]
    assert write(fltr, replace(earlier, amount=9), fences=fences) == [earlier]


def test_a_charge_for_a_dataset_needs_no_fence_and_a_document_that_is_gone_has_none(fltr: Fltr) -> None:
    dataset, (claim,) = claimed(fltr)
    set_up = replace(charge(claim, Op.DATASET_SETUP), subject_id=dataset.id, job_id=None)
    assert write(fltr, set_up) == [set_up]
    gone = replace(charge(claim), subject_id=str(uuid.uuid4()))
    assert write(fltr, gone, fences={gone.subject_id: 1}) == []
    assert write(fltr) == []


def test_an_amount_is_never_negative(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    with pytest.raises(IntegrityError, match="charges_amount_check"):
        write(fltr, charge(claim, amount=-1))


def test_a_charge_is_closed_once(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    one = charge(claim)
    write(fltr, one)
    close(fltr)
    close(fltr, (one, "settled", 2))
    close(fltr, (one, "released", 0))
    assert stored(fltr, one) == (1, "settled", 2, True)
    assert write(fltr, one) == [replace(one, state="settled", charged=2)]


def test_only_the_sequence_that_is_open_is_closed(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    one = charge(claim)
    write(fltr, one)
    close(fltr, (replace(one, sequence=2), "settled", 2), (replace(one, generation=7), "settled", 2))
    assert stored(fltr, one) == (1, "open", None, False)


def test_a_settled_charge_can_be_refunded(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    one = charge(claim)
    write(fltr, one)
    close(fltr, (one, "settled", 2))
    close(fltr, (one, "refunded", 0))
    assert stored(fltr, one) == (1, "settled", 2, True), "that is to be decided first"
    refund(fltr, claim)
    with fltr.transaction() as tx:
        (found,) = charges.refunding_charges(tx, 10)
    assert found.key == one.key
    close(fltr, (one, "refunded", 0))
    assert stored(fltr, one)[1] == "refunding", "by whoever knows of it"
    close(fltr, (found, "refunded", 0))
    assert stored(fltr, one) == (1, "refunded", 0, True)
    with fltr.transaction() as tx:
        assert charges.refunding_charges(tx, 10) == []


def test_what_was_charged_is_given_back_and_what_may_have_been(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    free, still_open = charge(claim), charge(claim, Op.DOCUMENT_EMBED)
    write(fltr, free)
    write(fltr, still_open)
    close(fltr, (free, "settled", 0))
    refund(fltr, claim)
    assert (stored(fltr, free)[1], stored(fltr, still_open)[1]) == ("settled", "refunding")


@pytest.mark.parametrize("state", ["settled", "released", "payer_gone", "pot_gone"])
def test_a_worker_that_comes_late_leaves_what_is_to_be_given_back(fltr: Fltr, state: str) -> None:
    _, (claim,) = claimed(fltr)
    one = charge(claim)
    write(fltr, one)
    refund(fltr, claim)
    close(fltr, (one, state, 2))
    assert stored(fltr, one)[:3] == (1, "refunding", None)


def waiting(fltr: Fltr, sessions: int) -> None:
    """Until so many sessions wait for a lock; only the server knows."""
    deadline = time.monotonic() + 30
    while fltr.one("SELECT count(*) FROM pg_locks WHERE NOT granted") != (sessions,):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def mark(fltr: Fltr, some: Sequence[Charge]) -> None:
    with fltr.transaction() as tx:
        charges.mark_refunding(tx, [(c.subject_id, c.generation) for c in some])


Second = Callable[[Fltr, list[Charge]], object]
SECONDS: dict[str, tuple[Second, tuple[object, ...]]] = {
    "closed": (lambda fltr, some: close(fltr, *((c, "released", 0) for c in some)), (1, "settled", 2, True)),
    "to be given back": (mark, (1, "refunding", 2, True)),
    "reopened": (lambda fltr, some: reopen(fltr, *some, fences={}), (2, "open", None, False)),
}


@pytest.mark.parametrize("second", SECONDS)
def test_several_charges_are_locked_in_one_order_and_each_change_looks_at_them_as_they_are(
    fltr: Fltr, second: str
) -> None:
    """Two sessions that are to change the same ones, each in its own order, meet behind a third at the one between."""
    _, held = claimed(fltr, "a", "b", "c")
    some = write(fltr, *(charge(c) for c in sorted(held, key=lambda c: c.document_id)))
    act, end = SECONDS[second]
    with ThreadPoolExecutor(2) as threads:
        with fltr.transaction() as tx:
            between = {"d": some[1].subject_id}
            tx.execute(text("SELECT FROM pipeline.charges WHERE subject_id = :d FOR UPDATE"), between)
            first = threads.submit(close, fltr, *((c, "settled", 2) for c in some))
            waiting(fltr, 1)
            other = threads.submit(act, fltr, some[::-1])
            waiting(fltr, 2)
        first.result()
        other.result()
    assert {stored(fltr, c) for c in some} == {end}


def refund(fltr: Fltr, claim: Claim) -> None:
    with fltr.transaction() as tx:
        charges.mark_refunding(tx, [(claim.document_id, 1)])


def reopen(fltr: Fltr, *ended: Charge, fences: dict[str, int]) -> list[Charge]:
    with fltr.transaction() as tx:
        return charges.next_sequence(tx, ended, fences)


@pytest.mark.parametrize("state", ["released", "refunded", "payer_gone", "pot_gone", "settled"])
def test_a_charge_that_ended_says_how_and_is_reopened_under_the_next_sequence_once(fltr: Fltr, state: str) -> None:
    _, (claim,) = claimed(fltr)
    one, fences = charge(claim), {claim.document_id: claim.fence}
    write(fltr, one)
    if state == "refunded":
        close(fltr, (one, "settled", 3))
        refund(fltr, claim)
    close(fltr, (replace(one, state="refunding") if state == "refunded" else one, state, 0))
    assert stored(fltr, one) == (1, state, 0, True)
    for _ in range(2):
        assert reopen(fltr, one, fences=fences) == [replace(one, sequence=2)]
    assert stored(fltr, one) == (2, "open", None, False)
    close(fltr, (one, "settled", 3))
    assert stored(fltr, one) == (2, "open", None, False)


def test_no_other_state_is_known(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    write(fltr, charge(claim))
    with pytest.raises(IntegrityError, match="charges_state_check"):
        close(fltr, (charge(claim), "lost", 0))


def test_only_a_settled_charge_is_refunded(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    one = charge(claim)
    write(fltr, one)
    close(fltr, (one, "released", 0))
    close(fltr, (one, "refunded", 0))
    assert stored(fltr, one) == (1, "released", 0, True)


def test_only_whoever_has_the_document_reopens_its_charge(fltr: Fltr) -> None:
    dataset, (lost, held) = claimed(fltr, "a", "b")
    both = [charge(lost), charge(held)]
    write(fltr, *both)
    close(fltr, *((c, "released", 0) for c in both))
    fences = {c.document_id: c.fence for c in (lost, held)}
    fltr.change("UPDATE pipeline.documents SET fence = fence + 1 WHERE document_id = :d", d=lost.document_id)
    assert reopen(fltr, *both, fences=fences) == [replace(charge(held), sequence=2)]
    assert stored(fltr, charge(lost)) == (1, "released", 0, True)
    gone = replace(charge(lost), subject_id=str(uuid.uuid4()))
    assert reopen(fltr, gone, fences={gone.subject_id: 1}) == []
    assert reopen(fltr, fences={}) == reopen(fltr, gone, fences={}) == []
    set_up = replace(charge(held, Op.DATASET_SETUP), subject_id=dataset.id)
    write(fltr, set_up)
    close(fltr, (set_up, "released", 0))
    assert reopen(fltr, set_up, fences=fences) == [replace(set_up, sequence=2)], "datasets have no fence"


def test_a_take_over_waits_for_a_charge_that_is_being_reopened(fltr: Fltr) -> None:
    """Else it could read the old sequence, and end a hold that is no longer the charge's."""
    _, (claim,) = claimed(fltr)
    one = charge(claim)
    write(fltr, one)
    close(fltr, (one, "released", 0))
    fltr.let_leases_run_out()
    with fltr.impatient() as slow:
        charges.next_sequence(slow, [one], {claim.document_id: claim.fence})
        with fltr.impatient() as sweeper:
            assert expired.take(sweeper, lease_seconds=60, age=60, limit=5) == []
        with pytest.raises(StoreUnavailable, match="lock timeout"), fltr.impatient() as other:
            other.execute(text("UPDATE pipeline.documents SET fence = fence + 1"))
    with fltr.transaction() as tx:
        assert [t.claim.document_id for t in expired.take(tx, lease_seconds=60, age=60, limit=5)] == [claim.document_id]
        assert charges.charges_of(tx, [(claim.document_id, 1)]) == [replace(one, sequence=2)]


def test_charges_of_generations(fltr: Fltr) -> None:
    _, (a, b) = claimed(fltr, "a", "b")
    of_a = [charge(a, Op.DOCUMENT_EMBED), charge(a, Op.DOCUMENT_EXTRACT)]
    write(fltr, *of_a)
    write(fltr, charge(b))
    write(fltr, replace(charge(a), generation=2))
    with fltr.transaction() as tx:
        assert charges.charges_of(tx, [(a.document_id, 1), ("unknown", 1)]) == of_a
        assert charges.charges_of(tx, []) == []


def abandoned(fltr: Fltr, age: float = 60, limit: int = 100) -> list[Abandoned]:
    with fltr.transaction() as tx:
        return charges.abandoned_charges(tx, age=age, limit=limit)


def test_charges_whose_work_nobody_will_finish(fltr: Fltr) -> None:
    dataset, (working, deleted, ended, overtaken, settled) = claimed(fltr, "a", "b", "c", "d", "e")
    write(fltr, *(charge(c) for c in (working, deleted, ended, overtaken, settled)))
    _, (other,) = claimed(fltr)
    write(fltr, charge(other))
    close(fltr, (charge(settled), "settled", 3))
    fltr.change("DELETE FROM pipeline.documents WHERE document_id = :d", d=deleted.document_id)
    with fltr.transaction() as tx:
        claims.fail(tx, [Failure(ended, "corrupt", "bad"), Failure(settled, "corrupt", "bad")])
    fltr.upload_anew(dataset, overtaken.document_id)
    fltr.claim(dataset)
    fltr.advance([working], Stage.PLAN)
    expected = sorted((charge(c) for c in (deleted, ended, overtaken)), key=lambda c: c.subject_id)
    assert abandoned(fltr) == [Abandoned(c, False) for c in expected]
    assert abandoned(fltr, limit=2) == [Abandoned(c, False) for c in expected[:2]]


def test_a_charge_left_open_by_a_generation_that_is_live_was_delivered(fltr: Fltr) -> None:
    dataset = fltr.dataset()
    fltr.upload(dataset, "a", "b")
    live, newer = fltr.publish(dataset, "alpha")
    write(fltr, charge(live), charge(newer))
    assert abandoned(fltr) == sorted(
        (Abandoned(charge(c), True) for c in (live, newer)), key=lambda a: a.charge.subject_id
    )
    # The next input is under way: the one before it is still what search sees.
    fltr.upload_anew(dataset, newer.document_id)
    (next_one,) = fltr.claim(dataset)
    write(fltr, charge(next_one))
    assert {(a.charge.subject_id, a.charge.generation, a.delivered) for a in abandoned(fltr)} == {
        (live.document_id, 1, True), (newer.document_id, 1, True)
    }  # fmt: skip
    with fltr.transaction() as tx:
        claims.fail(tx, [Failure(next_one, "corrupt", "bad")])
    assert (next_one.document_id, 2, False) in {
        (a.charge.subject_id, a.charge.generation, a.delivered) for a in abandoned(fltr)
    }


@pytest.mark.parametrize(("state", "charged"), [("released", 0), ("payer_gone", 0), ("pot_gone", 0), ("pot_gone", 3)])
def test_a_set_up_that_ended_unpaid_is_asked_of_whoever_pays_now_and_a_paid_one_of_nobody(
    fltr: Fltr, state: str, charged: int
) -> None:
    """A pot may be gone behind its settlement."""
    dataset, (claim,) = claimed(fltr)
    before = replace(charge(claim, Op.DATASET_SETUP), subject_id=dataset.id, run_id=None)
    write(fltr, before)
    close(fltr, (before, state, charged))
    asked = replace(before, user_id="bob", pot_id="bob", amount=5)
    paid = replace(before, state=state, charged=charged)
    assert write(fltr, asked) == [paid if charged else replace(asked, sequence=2)]


def test_a_set_up_is_abandoned_when_it_is_old_and_delivered_when_the_dataset_is_set_up(fltr: Fltr) -> None:
    dataset, (claim,) = claimed(fltr)
    set_up = replace(charge(claim, Op.DATASET_SETUP), subject_id=dataset.id)
    write(fltr, set_up)
    assert abandoned(fltr) == []
    fltr.change("UPDATE pipeline.charges SET created_at = now() - interval '61 s'")
    assert abandoned(fltr) == [Abandoned(set_up, False)]
    assert abandoned(fltr, age=3600) == []
    with fltr.transaction() as tx:
        datasets.mark_set_up(tx, dataset, "a collection")
    assert abandoned(fltr) == [Abandoned(set_up, True)]
    close(fltr, (set_up, "settled", 3))
    assert abandoned(fltr) == []


def test_whose_work_a_pot_was_to_pay_for(fltr: Fltr) -> None:
    _, (a, b, c) = claimed(fltr, "a", "b", "c")
    write(fltr, charge(a), replace(charge(b), user_id="bob"), replace(charge(c), pot_kind="team", pot_id="t"))
    with fltr.transaction() as tx:
        assert charges.payers_of_pots(tx, [("user", "ann"), ("team", "t"), ("team", "ann"), ("user", "x")]) == {
            ("user", "ann"): {"ann", "bob"}, ("team", "t"): {"ann"}
        }  # fmt: skip
        assert charges.payers_of_pots(tx, []) == {}
