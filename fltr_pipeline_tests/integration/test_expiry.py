"""The sweep, case by case: whatever a worker leaves when it dies is ended once, and the right way."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fltr_pipeline.credits.holds import Close, CloseState
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline import expiry
from fltr_pipeline.pipeline.billing import hold_of
from fltr_pipeline.pipeline.expiry import Swept
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import charges, claims, expired
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim, Wait
from fltr_pipeline_tests.bills import Desk
from fltr_pipeline_tests.moments import Killed, dies
from fltr_pipeline_tests.money import lines, unexplained
from fltr_pipeline_tests.world import World

NOTHING = Swept()


def decided(desk: Desk, units: int) -> tuple[Claim, Charge]:
    """A document whose vectors were all read back, and the hold for its embedding."""
    (first,) = desk.claim()
    claim = desk.decide(first)
    return claim, desk.hold(claim, Op.DOCUMENT_EMBED, units=units)


def reasons(world: World, kind: str) -> list[str]:
    return [line.metadata["reason"] for line in lines(world, kind)]


# --- documents in dead hands ------------------------------------------------------------------------------------------


def test_nothing_is_swept_while_workers_live(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    desk.hold(claim)
    world.change("UPDATE pipeline.charges SET created_at = created_at - interval '1 hour'")
    assert not expiry.overdue(world.services)
    assert desk.sweep() == NOTHING
    assert NOTHING.nothing
    assert desk.charges() == [("document_extract", 1, "open", None)]


def test_a_dead_workers_document_is_put_back_and_its_hold_released(world: World) -> None:
    desk = Desk.of(world)
    (dead,) = desk.claim()
    held = desk.hold(dead)
    desk.an_hour_passes()
    assert expiry.overdue(world.services)
    assert desk.sweep() == Swept(documents=1, credits_returned=3)
    assert not expiry.overdue(world.services)
    assert desk.fltr.state(dead.document_id, "fence, attempts, lease_until, stage") == (
        dead.fence + 1, 1, None, "extract"
    )  # fmt: skip
    assert desk.fltr.jobs(dead.document_id) == ["failed"]
    assert desk.charges() == [("document_extract", 1, "released", 0)]
    assert (desk.totals(), reasons(world, "close")) == ((0, 0, 50), ["expired"])
    assert desk.sweep(orphans=True) == NOTHING
    # Another worker goes on under the next sequence.
    (claim,) = desk.fltr.claim(desk.dataset)
    assert desk.hold(claim) == replace(held, sequence=2)
    assert desk.totals() == (0, 3, 47)


def test_a_hold_that_was_still_on_its_way_never_lands(world: World) -> None:
    desk = Desk.of(world)
    (dead,) = desk.claim()
    with transaction(world.services.fltr) as tx:
        (written,) = charges.write_charges(tx, [_draft(desk, dead)], {dead.document_id: dead.fence})
    desk.an_hour_passes()
    assert desk.sweep() == Swept(documents=1)
    assert desk.charges() == [("document_extract", 1, "released", 0)]
    assert reasons(world, "void") == ["expired"]
    # The dead worker was only slow.
    assert world.services.ledger.reserve([hold_of(written)]) == {hold_of(written).id: "released"}
    reservation = desk.reserve([dead])
    assert (reservation.granted, reservation.refused) == ({}, [])
    assert (desk.totals(), lines(world, "reserve")) == ((0, 0, 50), [])


def _draft(desk: Desk, claim: Claim) -> Charge:
    return Charge(
        subject_id=claim.document_id, op=Op.DOCUMENT_EXTRACT, generation=1, dataset_id=claim.dataset_id, amount=3,
        user_id=desk.payer.user_id, pot_kind="user", pot_id=desk.payer.user_id, price_version="2026-11", unit_price=1,
        job_id=claim.job_id,
    )  # fmt: skip


def test_a_hold_that_was_settled_just_before_its_worker_died_stays_so(world: World) -> None:
    desk = Desk.of(world)
    (dead,) = desk.claim()
    held = desk.hold(dead)
    world.services.ledger.close([Close(hold_of(held), 2, CloseState.SETTLED, "done")])
    desk.an_hour_passes()
    assert desk.sweep() == Swept(documents=1)
    assert desk.charges() == [("document_extract", 1, "settled", 2)]
    assert desk.totals() == (2, 0, 48)
    # It is paid for: whoever does it again charges nothing more.
    (claim,) = desk.fltr.claim(desk.dataset)
    again = desk.hold(claim)
    assert desk.settle(again, 3, claim).charged == 0
    assert desk.totals() == (2, 0, 48)


def test_a_charge_of_nothing_is_closed_too(world: World) -> None:
    desk = Desk.of(world)
    (dead,) = desk.claim()
    desk.hold(dead, units=0)
    desk.an_hour_passes()
    assert desk.sweep() == Swept(documents=1)
    assert desk.charges() == [("document_extract", 1, "released", 0)]
    assert (lines(world, "reserve"), lines(world, "void")) == ([], [])


def test_a_parked_document_gives_back_a_hold_that_grew_old(world: World) -> None:
    """A store did not answer, and no run has come back to it since."""
    desk = Desk.of(world)
    (claim,) = desk.claim()
    desk.hold(claim)
    with transaction(world.services.fltr) as tx:
        claims.retry_later(tx, [claim], "no answer")
    assert desk.sweep() == NOTHING
    desk.an_hour_passes()
    assert desk.sweep() == Swept(documents=1, credits_returned=3)
    assert desk.fltr.jobs(claim.document_id) == ["running"]
    assert desk.fltr.state(claim.document_id, "attempts, retries, lease_until, retry_at > now()") == (0, 1, None, True)
    assert desk.totals() == (0, 0, 50)


def test_documents_that_await_credits_are_left_alone(world: World) -> None:
    desk = Desk.of(world, credits=2)
    (claim,) = desk.claim()
    reservation = desk.reserve([claim])
    with transaction(world.services.fltr) as tx:
        claims.wait_for_credits(tx, [Wait(claim, r.amount, r.pot.kind, r.pot.id) for r in reservation.refused])
    before = world.rows("SELECT * FROM pipeline.documents")
    world.change("UPDATE pipeline.charges SET created_at = created_at - interval '1 hour'")
    assert not expiry.overdue(world.services)
    assert desk.sweep(orphans=True) == NOTHING
    assert world.rows("SELECT * FROM pipeline.documents") == before
    assert desk.charges() == [("document_extract", 1, "open", None)]


def test_a_payer_who_is_gone_leaves_nothing_open(world: World) -> None:
    desk = Desk.of(world)
    (dead,) = desk.claim()
    desk.hold(dead)
    world.change_auth("DELETE FROM users WHERE id = %s", desk.payer.user_id)
    desk.an_hour_passes()
    assert desk.sweep() == Swept(documents=1)
    assert desk.charges() == [("document_extract", 1, "payer_gone", 0)]
    assert desk.sweep() == NOTHING


# --- documents that are decided ---------------------------------------------------------------------------------------


def before_it_settles(_: Desk, __: Charge, ___: Claim) -> None:
    """Nothing was done since the decision."""


def before_the_record(desk: Desk, charge: Charge, _: Claim) -> None:
    desk.world.services.ledger.close([Close(hold_of(charge), 1, CloseState.SETTLED, "done")])


def before_it_publishes(desk: Desk, charge: Charge, claim: Claim) -> None:
    desk.settle(charge, 1, claim)


@pytest.mark.parametrize("killed", [before_it_settles, before_the_record, before_it_publishes])
def test_what_is_decided_is_settled_and_published(world: World, killed: Callable[[Desk, Charge, Claim], None]) -> None:
    desk = Desk.of(world)
    claim, charge = decided(desk, units=5)
    killed(desk, charge, claim)
    desk.an_hour_passes()
    returned = 4 if killed is before_it_settles else 0
    assert desk.sweep() == Swept(documents=1, published=1, credits_returned=returned)
    assert world.statuses(desk.dataset) == {"a": "ready"}
    assert desk.fltr.jobs(claim.document_id) == ["completed"]
    assert desk.fltr.state(claim.document_id, "live_generation, stage, lease_until, attempts") == (1, None, None, 0)
    assert desk.charges() == [("document_embed", 1, "settled", 1)]
    assert desk.totals() == (1, 0, 49)
    assert [(line.metadata["charged"], line.metadata["outcome"]) for line in lines(world, "close")] == [(1, "settled")]
    # The worker was only slow: all that it still does changes nothing.
    assert desk.settle(charge, 1, claim).unpaid == frozenset()
    assert desk.publish(claim) == set()
    assert (desk.totals(), desk.sweep(orphans=True)) == ((1, 0, 49), NOTHING)


def test_two_holds_of_what_is_decided_that_expired_are_had_again_at_once(world: World) -> None:
    desk = Desk.of(world)
    (first,) = desk.claim()
    extract = desk.hold(first, units=2)
    claim = desk.decide(first)
    embed = desk.hold(claim, Op.DOCUMENT_EMBED, units=2)
    world.services.ledger.void([hold_of(extract), hold_of(embed)], reason="expired")
    desk.an_hour_passes()
    swept = desk.sweep()
    assert (swept.documents, swept.published) == (1, 1)
    assert [(sequence, state) for _, sequence, state, _ in desk.charges()] == [(2, "settled")] * 2
    assert desk.totals()[1] == 0


def test_what_is_decided_and_was_uploaded_anew_is_neither_published_nor_paid_for(world: World) -> None:
    desk = Desk.of(world)
    claim, _ = decided(desk, units=1)
    desk.fltr.upload_anew(desk.dataset, claim.document_id)
    desk.an_hour_passes()
    assert desk.sweep() == Swept(documents=1, credits_returned=1)
    assert world.statuses(desk.dataset) == {"a": "uploaded"}
    assert (desk.charges(), desk.totals()) == ([("document_embed", 1, "released", 0)], (0, 0, 50))
    assert desk.sweep() == NOTHING


def test_a_newer_upload_that_a_worker_takes_from_a_sweep_ends_what_was_decided_before_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk.of(world)
    claim, _ = decided(desk, units=1)
    desk.fltr.upload_anew(desk.dataset, claim.document_id)
    desk.an_hour_passes()
    look = expired.deliverable

    def claimed_meanwhile(*asked: Any) -> set[str]:
        desk.fltr.claim(desk.dataset, run="next")
        return look(*asked)

    monkeypatch.setattr(expired, "deliverable", claimed_meanwhile)
    assert desk.sweep() == Swept(documents=1, credits_returned=1)
    assert world.statuses(desk.dataset) == {"a": "processing"}
    assert (desk.charges(), desk.totals()) == ([("document_embed", 1, "released", 0)], (0, 0, 50))


def test_what_is_decided_but_can_no_longer_be_paid_for_waits_and_goes_on_from_there(world: World) -> None:
    desk = Desk.of(world, credits=1)
    claim, charge = decided(desk, units=1)
    world.services.ledger.void([hold_of(charge)], reason="somebody's mistake")
    world.change_auth("UPDATE user_credits SET credits = 0")
    desk.an_hour_passes()
    assert desk.sweep() == Swept(documents=1)
    assert desk.fltr.state(claim.document_id, "credits_needed, lease_until, stage") == (1, None, "embed")
    assert world.statuses(desk.dataset) == {"a": "awaiting_credits"}
    desk.an_hour_passes()
    assert desk.sweep(orphans=True) == NOTHING
    world.services.ledger.grant(desk.payer, 5, reason="top-up")
    (again,) = desk.fltr.claim(desk.dataset, Stage.EMBED)
    held = desk.hold(again, Op.DOCUMENT_EMBED, units=1)
    assert desk.settle(held, 1, again).unpaid == frozenset()
    assert desk.publish(again) == {claim.document_id}
    assert desk.totals()[:2] == (1, 0)


def test_what_is_decided_and_its_payer_gone_is_not_published(world: World) -> None:
    desk = Desk.of(world)
    decided(desk, units=1)
    world.change_auth("DELETE FROM users WHERE id = %s", desk.payer.user_id)
    desk.an_hour_passes()
    assert desk.sweep() == Swept(documents=1)
    assert world.statuses(desk.dataset) == {"a": "processing"}
    assert desk.charges() == [("document_embed", 1, "payer_gone", 0)]
    assert desk.sweep() == NOTHING


def test_what_is_decided_and_its_pot_gone_is_left_to_a_worker_to_fail(world: World) -> None:
    desk = Desk.of(world)
    _, held = decided(desk, units=1)
    world.services.ledger.void([hold_of(held)], reason="expired")
    world.change_auth("DELETE FROM user_credits")
    desk.an_hour_passes()
    assert desk.sweep() == Swept(documents=1)
    desk.an_hour_passes()
    assert desk.sweep() == NOTHING
    (again,) = desk.fltr.claim(desk.dataset, Stage.EMBED)
    assert [r.state for r in desk.reserve([again], Op.DOCUMENT_EMBED, units=1).refused] == ["pot_gone"]


# --- several sweeps, and dead ones ------------------------------------------------------------------------------------


def test_a_sweep_that_dies_is_swept_up_and_counts_as_no_attempt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk.of(world)
    (dead,) = desk.claim()
    desk.hold(dead)
    for where, step in ((Ledger, "void"), (charges, "close_charges"), (expired, "park")):
        desk.an_hour_passes()
        with monkeypatch.context() as patch:
            patch.setattr(where, step, dies)
            with pytest.raises(Killed):
                desk.sweep()
        assert desk.sweep() == NOTHING, "it holds the document until its lease runs out"
    desk.an_hour_passes()
    assert desk.sweep() == Swept(documents=1)
    assert desk.fltr.state(dead.document_id, "attempts, lease_until") == (1, None)
    assert (desk.charges(), desk.totals()) == ([("document_extract", 1, "released", 0)], (0, 0, 50))
    assert [c.attempts for c in desk.fltr.claim(desk.dataset)] == [1]


def test_a_sweep_that_dies_over_a_decided_document_is_finished_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk.of(world)
    claim, _ = decided(desk, units=2)
    for target in ("charges.close_charges", "generations.publish"):
        desk.an_hour_passes()
        with monkeypatch.context() as patch:
            patch.setattr(f"fltr_pipeline.stores.fltr.{target}", dies)
            with pytest.raises(Killed):
                desk.sweep()
    desk.an_hour_passes()
    assert desk.sweep() == Swept(documents=1, published=1)
    assert world.statuses(desk.dataset) == {"a": "ready"}
    assert (desk.charges(), desk.totals()) == ([("document_embed", 1, "settled", 1)], (1, 0, 49))
    assert desk.fltr.jobs(claim.document_id) == ["completed"]


def test_sweeps_at_the_same_time_share_the_work(world: World) -> None:
    desk = Desk.of(world, credits=1_000)
    claimed = desk.claim(*(f"{n:03}" for n in range(220)))
    desk.reserve(claimed, units=2)
    lost = claimed[:20]
    world.change("DELETE FROM pipeline.documents WHERE document_id = ANY(%s)", [c.document_id for c in lost])
    desk.an_hour_passes()
    start, swept = threading.Barrier(3), list[Swept]()

    def work() -> None:
        start.wait()
        swept.append(desk.sweep(orphans=True))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(s.documents for s in swept) == 200
    assert sum(s.credits_returned for s in swept) == 440
    assert desk.totals() == (0, 0, 1_000)
    assert {state for _, _, state, _ in desk.charges()} == {"released"}
    assert (len(lines(world, "close")), unexplained(world, desk.payer.pot)) == (220, 0)
    assert desk.sweep(orphans=True) == NOTHING
