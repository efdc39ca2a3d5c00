"""Charges: frozen by their first writer, reopened and closed by sequence, swept when nobody will finish the work."""

import uuid
from dataclasses import replace

import pytest
from sqlalchemy.exc import IntegrityError

from fltr_pipeline.models import Op, Stage
from fltr_pipeline.stores.fltr import charges, claims
from fltr_pipeline.stores.fltr.charges import Charge
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
        first, amount=9, user_id="bob", pot_kind="team", pot_id="t", price_version="2027-01", unit_price=2, job_id="j"
    )
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
    assert stored(fltr, one) == (1, "refunded", 0, True)


def test_a_released_charge_is_reopened_under_the_next_sequence_once(fltr: Fltr) -> None:
    _, (claim,) = claimed(fltr)
    one = charge(claim)
    write(fltr, one)
    close(fltr, (one, "released", 0))
    for _ in range(2):
        with fltr.transaction() as tx:
            assert charges.next_sequence(tx, [one]) == [replace(one, sequence=2)]
    assert stored(fltr, one) == (2, "open", None, False)
    close(fltr, (one, "settled", 3))
    assert stored(fltr, one) == (2, "open", None, False)
    with fltr.transaction() as tx:
        assert charges.next_sequence(tx, []) == []
        assert charges.next_sequence(tx, [replace(one, subject_id="unknown")]) == []


def test_charges_of_generations(fltr: Fltr) -> None:
    _, (a, b) = claimed(fltr, "a", "b")
    of_a = [charge(a, Op.DOCUMENT_EMBED), charge(a, Op.DOCUMENT_EXTRACT)]
    write(fltr, *of_a)
    write(fltr, charge(b))
    write(fltr, replace(charge(a), generation=2))
    with fltr.transaction() as tx:
        assert charges.charges_of(tx, [(a.document_id, 1), ("unknown", 1)]) == of_a
        assert charges.charges_of(tx, []) == []


def test_charges_whose_work_nobody_will_finish(fltr: Fltr) -> None:
    dataset, (working, deleted, ended, overtaken, settled) = claimed(fltr, "a", "b", "c", "d", "e")
    write(fltr, *(charge(c) for c in (working, deleted, ended, overtaken, settled)))
    write(fltr, replace(charge(working, Op.DATASET_SETUP), subject_id=dataset.id))
    elsewhere, (other,) = claimed(fltr)
    write(fltr, charge(other))
    close(fltr, (charge(settled), "settled", 3))
    fltr.change("DELETE FROM pipeline.documents WHERE document_id = :d", d=deleted.document_id)
    with fltr.transaction() as tx:
        claims.fail(tx, [Failure(ended, "corrupt", "bad"), Failure(settled, "corrupt", "bad")])
    fltr.upload_anew(dataset, overtaken.document_id)
    fltr.claim(dataset)
    fltr.advance([working], Stage.PLAN)
    expected = sorted((charge(c) for c in (deleted, ended, overtaken)), key=lambda c: c.subject_id)
    with fltr.transaction() as tx:
        assert charges.abandoned_charges(tx, dataset.id, 100) == expected
        assert charges.abandoned_charges(tx, dataset.id, 2) == expected[:2]
        assert charges.abandoned_charges(tx, elsewhere.id, 100) == []
        assert charges.abandoned_charges(tx, str(uuid.uuid4()), 100) == []
