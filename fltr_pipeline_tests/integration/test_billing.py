"""Charges and holds together: retries, take-overs, holds that were released under a worker's hands."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from sqlalchemy import Connection

from fltr_pipeline.credits.holds import Close, CloseState
from fltr_pipeline.errors import InvalidAmount
from fltr_pipeline.models import Op
from fltr_pipeline.pipeline.billing import Billing, Quote, Settlement, hold_of
from fltr_pipeline.pipeline.embed import Embed
from fltr_pipeline.pipeline.expiry import Swept
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.plan import Plan
from fltr_pipeline.pipeline.stage import Result
from fltr_pipeline.settings import Prices
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import charges, claims
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim, Failure
from fltr_pipeline_tests.bills import Desk
from fltr_pipeline_tests.money import lines, unexplained
from fltr_pipeline_tests.world import World

TREATY = b"The treaty of Westphalia ended the thirty years war in 1648."


# --- a price that changes ---------------------------------------------------------------------------------------------


def repriced(world: World) -> Billing:
    return replace(world.billing, prices=Prices(version="2027-01", extract=7))


def test_a_charge_keeps_the_price_that_it_was_made_with(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    first = desk.hold(claim, units=3)
    quote = Quote(claim.document_id, 1, claim.fence, 5, True, desk.payer, "another job", "another run")
    again = repriced(world).reserve(Op.DOCUMENT_EXTRACT, desk.dataset.id, [quote])
    assert (again.granted, again.reserved) == ({claim.document_id: first}, 3)
    settled = repriced(world).settle([Settlement(again.granted[claim.document_id], 2, 2, "done", claim.fence)])
    assert (settled.charged, settled.returned) == (2, 1)
    assert {x.metadata["price_version"] for x in [*lines(world, "reserve"), *lines(world, "close")]} == {"2026-11"}
    assert len(lines(world, "reserve")) == 1


def test_a_released_charge_is_tried_again_at_the_price_that_it_was_made_with(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    first = desk.hold(claim, units=3)
    world.billing.void([first], "expired")
    quote = Quote(claim.document_id, 1, claim.fence, 5, True, desk.payer, claim.job_id, "worker")
    again = repriced(world).reserve(Op.DOCUMENT_EXTRACT, desk.dataset.id, [quote])
    assert again.granted == {claim.document_id: replace(first, sequence=2)}
    assert [(x.amount, x.metadata["sequence"]) for x in lines(world, "reserve")] == [(-3, 1), (-3, 2)]


def test_an_amount_above_the_cap_is_refused_before_anything_is_written(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    with pytest.raises(InvalidAmount, match=claim.document_id):
        desk.reserve([claim], units=1_000_001)
    assert (desk.charges(), lines(world, "reserve")) == ([], [])


# --- a worker that was taken over -------------------------------------------------------------------------------------


def taken_over(desk: Desk) -> None:
    """The lease ran out, and a sweep was there."""
    desk.an_hour_passes()
    assert desk.sweep().documents == 1


def test_a_worker_that_was_taken_over_can_neither_reserve_nor_settle(world: World) -> None:
    desk = Desk.of(world)
    (slow,) = desk.claim()
    held = desk.hold(slow)
    taken_over(desk)
    assert desk.reserve([slow]).granted == {}
    settled = desk.settle(held, 3, slow)
    assert settled.lost == settled.unpaid == {slow.document_id}
    assert (settled.charged, settled.returned) == (0, 0)
    assert desk.charges() == [("document_extract", 1, "released", 0)]
    assert (len(lines(world, "reserve")), desk.totals()) == (1, (0, 0, 50))


def test_a_worker_that_was_taken_over_does_not_end_the_hold_of_the_next(world: World) -> None:
    desk = Desk.of(world)
    (slow,) = desk.claim()
    held = desk.hold(slow)
    taken_over(desk)
    (next_one,) = desk.fltr.claim(desk.dataset)
    again = desk.hold(next_one)
    assert desk.settle(held, 3, slow).lost == {slow.document_id}
    assert desk.charges() == [("document_extract", 2, "open", None)]
    assert desk.settle(again, 2, next_one).unpaid == frozenset()
    assert (desk.charges(), desk.totals()) == ([("document_extract", 2, "settled", 2)], (2, 0, 48))


def test_the_stage_does_not_finish_what_was_taken_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk.of(world)
    world.upload(desk.dataset, {"a.txt": TREATY})
    perform, finished = Extract.perform, list[Sequence[Result]]()

    def slowly(self: Extract, claimed: Sequence[Claim], paid: Mapping[str, Charge]) -> Sequence[Result]:
        results = perform(self, claimed, paid)
        taken_over(desk)
        return results

    with monkeypatch.context() as patch, Extract(world.services) as work:
        patch.setattr(Extract, "perform", slowly)
        patch.setattr(Extract, "finish", lambda _, results: finished.append(results))
        report = world.stage(work, desk.dataset, limit=1)
    assert (report.done, report.lost, report.failures, finished) == (0, 1, [], [])
    assert ("document_extract", 1, "released", 0) in desk.charges()
    assert desk.totals() == (0, 0, 50)
    world.process(desk.dataset)
    assert (world.statuses(desk.dataset), desk.totals()) == ({"a.txt": "ready"}, (2, 0, 48))


# --- a hold that was released while the document is still ours --------------------------------------------------------


def test_a_settle_that_finds_its_hold_released_pays_before_it_is_done(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    held = desk.hold(claim)
    world.services.ledger.void([hold_of(held)], reason="expired")
    settled = desk.settle(held, 2, claim)
    assert (settled.unpaid, settled.refused, settled.charged, settled.returned) == (frozenset(), [], 2, 1)
    assert desk.charges() == [("document_extract", 2, "settled", 2)]
    assert (desk.totals(), unexplained(world, desk.payer.pot)) == ((2, 0, 48), 0)
    assert desk.settle(replace(held, sequence=2), 2, claim).unpaid == frozenset()
    assert desk.totals() == (2, 0, 48)


def test_nothing_is_published_before_it_is_paid_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk.of(world)
    world.upload(desk.dataset, {"a.txt": TREATY})
    world.extract(desk.dataset)
    world.stage(Plan(world.services), desk.dataset)
    perform, finish, states = Embed.perform, Embed.finish, list[object]()

    def and_the_hold_expires(self: Embed, claimed: Sequence[Claim], paid: Mapping[str, Charge]) -> Sequence[Result]:
        world.services.ledger.void([hold_of(c) for c in paid.values()], reason="expired")
        return perform(self, claimed, paid)

    def look(self: Embed, results: Sequence[Result]) -> set[str]:
        states.extend(world.rows("SELECT sequence, state FROM pipeline.charges WHERE op = 'document_embed'"))
        return finish(self, results)

    monkeypatch.setattr(Embed, "perform", and_the_hold_expires)
    monkeypatch.setattr(Embed, "finish", look)
    report = world.stage(Embed(world.services), desk.dataset)
    assert (report.done, states) == (1, [(2, "settled")])
    assert (world.statuses(desk.dataset), desk.totals()) == ({"a.txt": "ready"}, (2, 0, 48))


def test_what_can_not_be_paid_again_waits_and_is_not_embedded_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk.of(world, credits=2)
    world.upload(desk.dataset, {"a.txt": TREATY})
    world.extract(desk.dataset)
    world.stage(Plan(world.services), desk.dataset)
    perform = Embed.perform

    def and_the_hold_expires(self: Embed, claimed: Sequence[Claim], paid: Mapping[str, Charge]) -> Sequence[Result]:
        world.services.ledger.void([hold_of(c) for c in paid.values()], reason="expired")
        world.change_auth("UPDATE user_credits SET credits = 0")
        return perform(self, claimed, paid)

    with monkeypatch.context() as patch:
        patch.setattr(Embed, "perform", and_the_hold_expires)
        report = world.stage(Embed(world.services), desk.dataset)
    assert (report.done, report.awaiting_credits, report.failures) == (0, 1, [])
    assert world.statuses(desk.dataset) == {"a.txt": "awaiting_credits"}
    assert world.rows("SELECT content FROM documents") == [(None,)]
    world.services.ledger.grant(desk.payer, 5, reason="top-up")
    monkeypatch.setattr(type(world.services.model), "encode", lambda *_: pytest.fail("it was embedded again"))
    world.process(desk.dataset)
    assert (world.statuses(desk.dataset), desk.totals()[:2]) == ({"a.txt": "ready"}, (2, 0))


@pytest.mark.parametrize("turn", [1, -1])
def test_a_pot_that_covers_one_of_the_released_holds_pays_the_first_of_the_batch(world: World, turn: int) -> None:
    desk = Desk.of(world, credits=1_000)
    claimed = desk.claim(*(f"{n}.txt" for n in range(200)))[::turn]
    held = desk.reserve(claimed).granted
    world.change("ANALYZE pipeline.charges")  # many: now they are read in the table's order
    world.services.ledger.void([hold_of(c) for c in held.values()], reason="expired")
    world.change_auth("UPDATE user_credits SET credits = 3")
    done = [Settlement(held[c.document_id], 3, 3, "done", c.fence) for c in claimed]
    settled = world.billing.settle(done)
    assert (settled.charged, set(settled.unpaid)) == (3, {c.document_id for c in claimed[1:]})


def test_a_set_up_whose_hold_was_released_is_paid_when_it_is_done(world: World) -> None:
    desk = Desk.of(world)
    billing = replace(world.billing, prices=Prices(dataset_setup=4))
    quote = Quote(desk.dataset.id, 1, None, 1, True, desk.payer, None, "worker")
    charge = billing.reserve(Op.DATASET_SETUP, desk.dataset.id, [quote]).granted[desk.dataset.id]
    world.billing.void([charge], "abandoned")
    assert billing.settle([Settlement(charge, 1, 1, "done", None)]).charged == 4
    assert desk.charges() == [("dataset_setup", 2, "settled", 4)]


def test_work_that_cost_nothing_in_the_end_is_no_loss_when_its_hold_was_released(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    held = desk.hold(claim)
    world.services.ledger.void([hold_of(held)], reason="expired")
    settled = desk.settle(held, 0, claim)
    assert (settled.unpaid, settled.charged) == (frozenset(), 0)
    assert desk.charges() == [("document_extract", 1, "released", 0)]


# --- work that we fail for good ---------------------------------------------------------------------------------------


def test_everything_goes_back_what_was_charged_and_what_is_held(world: World) -> None:
    desk = Desk.of(world)
    (first,) = desk.claim()
    extract = desk.hold(first, units=4)
    desk.settle(extract, 3, first)
    claim = desk.decide(first)
    desk.hold(claim, Op.DOCUMENT_EMBED, units=5)
    key = [(claim.document_id, claim.generation)]
    assert desk.totals() == (3, 5, 42)
    assert world.billing.give_up(key) == 8
    assert world.billing.give_up(key) == 0
    assert desk.charges() == [("document_embed", 1, "released", 0), ("document_extract", 1, "refunded", 0)]
    assert (desk.totals(), unexplained(world, desk.payer.pot)) == ((0, 0, 50), 0)


def test_a_settlement_that_nobody_recorded_goes_back_too(world: World) -> None:
    """Its worker died between the ledger's COMMIT and the record of it."""
    desk = Desk.of(world)
    (claim,) = desk.claim()
    held = desk.hold(claim, units=4)
    world.services.ledger.close([Close(hold_of(held), 3, CloseState.SETTLED, "done")])
    assert desk.charges() == [("document_extract", 1, "open", None)]
    assert world.billing.give_up([(claim.document_id, 1)]) == 3
    assert desk.charges() == [("document_extract", 1, "refunded", 0)]
    assert desk.totals() == (0, 0, 50)


@pytest.mark.parametrize("when", ["before", "after", "after, and recorded"])
def test_what_its_worker_settles_beside_the_failure_of_a_document_goes_back_by_a_sweep(world: World, when: str) -> None:
    """Nobody but the ledger may know of it, and who failed the document dies before anything went back."""
    desk = Desk.of(world)
    (claim,) = desk.claim()
    held = desk.hold(claim, units=4)
    if when == "before":
        world.services.ledger.close([Close(hold_of(held), 3, CloseState.SETTLED, "done")])
    with transaction(world.services.fltr) as tx:
        ended = claims.fail(tx, [Failure(claim, "internal_error", "it broke")])
        charges.mark_refunding(tx, [(i, 1) for i in ended])
    if when == "after":
        world.services.ledger.close([Close(hold_of(held), 3, CloseState.SETTLED, "done")])
    elif when == "after, and recorded":
        desk.settle(held, 3, claim)
    assert desk.sweep() == Swept(charges=1, credits_returned=3)
    assert desk.charges() == [("document_extract", 1, "refunded", 0)]
    assert (desk.totals(), desk.sweep()) == ((0, 0, 50), Swept())


def test_a_hold_that_lands_behind_the_failure_of_its_document_goes_back_by_a_sweep(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    with transaction(world.services.fltr) as tx:
        (written,) = charges.write_charges(tx, [desk.charge(claim)], {claim.document_id: claim.fence})
        ended = claims.fail(tx, [Failure(claim, "internal_error", "it broke")])
        charges.mark_refunding(tx, [(i, 1) for i in ended])
    assert world.services.ledger.reserve([hold_of(written)]) == {hold_of(written).id: "open"}
    assert desk.sweep() == Swept(charges=1, credits_returned=written.amount)
    assert (desk.totals(), desk.sweep()) == ((0, 0, 50), Swept())


def test_a_refund_that_nobody_recorded_is_not_given_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    desk.settle(desk.hold(claim, units=4), 3, claim)
    record = charges.close_charges

    def dies(tx: Connection, closed: Sequence[tuple[Charge, str, int]]) -> None:
        if closed:
            raise KeyboardInterrupt
        record(tx, closed)

    with monkeypatch.context() as patch:
        patch.setattr(charges, "close_charges", dies)
        with pytest.raises(KeyboardInterrupt):
            world.billing.give_up([(claim.document_id, 1)])
    assert desk.totals() == (0, 0, 50)
    assert desk.charges() == [("document_extract", 1, "refunding", 3)]
    assert world.billing.give_up([(claim.document_id, 1)]) == 0
    assert desk.charges() == [("document_extract", 1, "refunded", 0)]
    assert (len(lines(world, "refund")), desk.totals()) == (1, (0, 0, 50))


def test_a_refund_that_was_decided_is_made_by_a_sweep(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    desk.settle(desk.hold(claim, units=4), 3, claim)
    with transaction(world.services.fltr) as tx:
        charges.mark_refunding(tx, [(claim.document_id, 1)])
    assert desk.sweep() == Swept(charges=1, credits_returned=3)
    assert desk.charges() == [("document_extract", 1, "refunded", 0)]
    assert desk.sweep() == Swept()


def test_what_is_to_be_refunded_is_before_it_is_charged_anew(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    charge = desk.hold(claim, units=3)
    world.billing.settle([Settlement(charge, 3, 3, "done", claim.fence)])
    with transaction(world.services.fltr) as tx:  # and whoever decided this died
        charges.mark_refunding(tx, [(claim.document_id, 1)])
    quote = Quote(claim.document_id, 1, claim.fence, 3, True, desk.payer, claim.job_id, "worker")
    again = world.billing.reserve(Op.DOCUMENT_EXTRACT, desk.dataset.id, [quote])
    assert again.granted == {claim.document_id: replace(charge, sequence=2)}
    assert [x.metadata["sequence"] for x in lines(world, "refund")] == [1]
    world.billing.settle([Settlement(again.granted[claim.document_id], 3, 3, "done", claim.fence)])
    assert world.statement(desk.payer).charged == 3


def test_a_hold_on_its_way_while_its_document_is_given_up_never_lands(world: World) -> None:
    desk = Desk.of(world)
    (slow,) = desk.claim()
    reserve = world.services.ledger.reserve
    with transaction(world.services.fltr) as tx:
        draft = desk.charge(slow)
        (written,) = charges.write_charges(tx, [draft], {slow.document_id: slow.fence})
        (ours,) = claims.refence(tx, [slow])
    assert world.billing.give_up([(ours.document_id, ours.generation)]) == 0
    assert reserve([hold_of(written)]) == {hold_of(written).id: "released"}
    assert desk.totals() == (0, 0, 50)


# --- a pot that vanishes ----------------------------------------------------------------------------------------------


def test_what_a_pot_paid_before_it_vanished_is_delivered_by_the_next_worker(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    charge = desk.hold(claim)
    world.change_auth("DELETE FROM user_credits")
    assert desk.settle(charge, 1, claim).unpaid == frozenset()
    assert desk.charges() == [("document_extract", 1, "pot_gone", 1)]
    desk.an_hour_passes()
    (again,) = desk.fltr.claim(desk.dataset, run="another", limit=1)
    granted = desk.hold(again)
    assert (granted.sequence, granted.charged) == (1, 1)
    assert desk.settle(granted, 1, again).unpaid == frozenset()
    world.change("UPDATE pipeline.charges SET state = 'open', charged = NULL")  # its worker died before it was recorded
    assert desk.settle(desk.hold(again), 1, again).unpaid == frozenset()


def test_a_hold_that_was_swept_while_its_pot_vanished_is_refused(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    charge = desk.hold(claim)
    world.change_auth("DELETE FROM user_credits")
    world.billing.void([charge], "expired")
    settled = desk.settle(charge, 1, claim)
    assert ([r.state for r in settled.refused], settled.lost) == (["pot_gone"], frozenset())
