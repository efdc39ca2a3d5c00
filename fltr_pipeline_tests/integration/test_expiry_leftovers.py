"""The sweep, of what no document stands for any more: charges, set-ups, holds; and rows that somebody changed."""

from dataclasses import replace

import pytest

from fltr_pipeline.models import Op
from fltr_pipeline.pipeline import expiry
from fltr_pipeline.pipeline.billing import Quote, Settlement, hold_of
from fltr_pipeline.pipeline.expiry import Swept
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, datasets
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Failure
from fltr_pipeline_tests.bills import Desk
from fltr_pipeline_tests.money import lines
from fltr_pipeline_tests.world import World

NOTHING = Swept()


def reasons(world: World, kind: str) -> list[str]:
    return [line.metadata["reason"] for line in lines(world, kind)]


# --- charges whose document is gone or has moved on -------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["documents", "datasets"])
def test_what_is_deleted_in_a_workers_hands_gives_its_hold_back(world: World, gone: str) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    desk.hold(claim)
    world.change(f"DELETE FROM {gone}")
    assert desk.sweep() == NOTHING
    desk.an_hour_passes()
    assert desk.sweep() == Swept(documents=1, credits_returned=3)
    assert (desk.charges(), desk.totals()) == ([("document_extract", 1, "released", 0)], (0, 0, 50))
    assert desk.sweep() == NOTHING


def test_a_charge_whose_document_is_not_known_any_more_is_closed(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    desk.hold(claim)
    world.change("DELETE FROM pipeline.documents")
    assert desk.sweep() == Swept(charges=1, credits_returned=3)
    assert (desk.charges(), reasons(world, "close")) == ([("document_extract", 1, "released", 0)], ["abandoned"])
    assert desk.sweep() == NOTHING


def test_a_generation_that_was_overtaken_gives_its_hold_back(world: World) -> None:
    desk = Desk.of(world)
    (old,) = desk.claim()
    slow = desk.hold(old)
    desk.fltr.upload_anew(desk.dataset, old.document_id)
    (new,) = desk.fltr.claim(desk.dataset)
    desk.hold(new, units=2)
    assert desk.sweep() == Swept(charges=1, credits_returned=3)
    assert [state for _, _, state, _ in desk.charges()] == ["released", "open"]
    assert desk.totals() == (0, 2, 48)
    assert desk.settle(slow, 3, old).lost == {old.document_id}
    assert desk.totals() == (0, 2, 48)


def test_a_generation_that_is_live_is_paid_for(world: World) -> None:
    """Published, and its charge is still open: no worker leaves that, but a restored database may."""
    desk = Desk.of(world)
    (first,) = desk.claim()
    extract = desk.hold(first, units=4)
    claim = desk.decide(first)
    embed = desk.hold(claim, Op.DOCUMENT_EMBED, units=2)
    desk.publish(claim)
    assert desk.sweep() == Swept(charges=2, credits_returned=4)
    assert desk.charges() == [("document_embed", 1, "settled", 1), ("document_extract", 1, "settled", 1)]
    assert {line.id for line in lines(world, "close")} == {hold_of(c).close_id for c in (extract, embed)}
    assert desk.totals() == (2, 0, 48)


@pytest.mark.parametrize(
    "change", ["UPDATE user_credits SET credits = 0", "DELETE FROM user_credits", "DELETE FROM users"]
)
def test_a_generation_that_is_live_and_that_nobody_can_pay_ends_the_sweep(world: World, change: str) -> None:
    """As above, of a ledger that was set back, too."""
    desk = Desk.of(world)
    (first,) = desk.claim()
    desk.hold(first, units=4)
    desk.publish(desk.decide(first))
    world.change_auth("DELETE FROM credit_transactions")
    world.change_auth(change)
    assert desk.sweep() == Swept(charges=1)
    assert [state for _, _, state, _ in desk.charges()] != ["open"]
    assert lines(world, "reserve") == []
    assert desk.sweep() == NOTHING


def test_what_has_failed_gives_back_what_was_never_closed(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    desk.hold(claim)
    with transaction(world.services.fltr) as tx:
        claims.fail(tx, [Failure(claim, "corrupt", "bad")])
    assert desk.sweep() == Swept(charges=1, credits_returned=3)
    assert world.statuses(desk.dataset) == {"a": "failed"}


# --- setting a dataset up ---------------------------------------------------------------------------------------------


def set_up_reserved(desk: Desk) -> Charge:
    """A worker died in the middle of the first op."""
    quote = Quote(desk.dataset.id, 1, None, 1, True, desk.payer, None, "worker")
    billing = replace(desk.world.billing, prices=desk.world.billing.prices.model_copy(update={"dataset_setup": 6}))
    return billing.reserve(Op.DATASET_SETUP, desk.dataset.id, [quote]).granted[desk.dataset.id]


@pytest.mark.parametrize("done", [False, True])
def test_a_set_up_left_open_is_settled_if_it_was_done(world: World, done: bool) -> None:
    desk = Desk.of(world)
    charge = set_up_reserved(desk)
    if done:
        with transaction(world.services.fltr) as tx:
            datasets.mark_set_up(tx, desk.dataset, "a collection")
    assert (desk.sweep(), expiry.overdue(world.services)) == (NOTHING, False)
    desk.an_hour_passes()
    assert expiry.overdue(world.services)
    assert desk.sweep() == Swept(charges=1, credits_returned=0 if done else 6)
    assert desk.charges() == [("dataset_setup", 1, "settled" if done else "released", 6 if done else 0)]
    # Whoever comes back to it pays for it once.
    assert world.billing.settle([Settlement(charge, 1, 1, "done", None)]).unpaid == frozenset()
    assert desk.totals() == (6, 0, 44)


# --- rows that somebody changed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["leased", "unknown"])
def test_a_row_that_somebody_changed_stops_no_sweep(world: World, caplog: pytest.LogCaptureFixture, left: str) -> None:
    desk = Desk.of(world)
    bad, *good = desk.claim("a", "b", "c")
    for claim in (bad, *good):
        desk.hold(claim)
    world.change_auth("UPDATE credit_transactions SET amount = -2 WHERE resource_id = %s", bad.document_id)
    if left == "unknown":
        world.change("DELETE FROM pipeline.documents")
    desk.an_hour_passes()
    swept = desk.sweep()
    assert (swept.documents, swept.charges, swept.conflicts) == ((2, 0, 1) if left == "leased" else (0, 2, 1))
    assert world.rows("SELECT count(*) FROM pipeline.documents WHERE lease_until IS NOT NULL") == [(0,)]
    assert f"{bad.document_id} is 3 credits" in caplog.text
    assert world.rows("SELECT subject_id FROM pipeline.charges WHERE state <> 'released'") == [(bad.document_id,)]
    assert world.rows("SELECT state FROM pipeline.charges WHERE subject_id = %s", bad.document_id) == [("conflict",)]
    assert [line.amount for line in lines(world, "close")] == [3, 3]
    assert desk.sweep() == NOTHING


# --- holds without a charge -------------------------------------------------------------------------------------------


def test_a_hold_that_no_charge_stands_for_is_found_when_it_is_looked_for(world: World) -> None:
    desk = Desk.of(world)
    orphaned, working = desk.claim("a", "b")
    for claim in (orphaned, working):
        desk.hold(claim)
    world.change("DELETE FROM pipeline.charges WHERE subject_id = %s", orphaned.document_id)
    assert desk.sweep(orphans=True) == NOTHING, "it is too young: its charge may be on its way"
    world.change_auth("UPDATE credit_transactions SET created_at = created_at - interval '1 hour'")
    assert desk.sweep() == NOTHING
    assert desk.sweep(orphans=True) == Swept(holds=1, credits_returned=3)
    assert (desk.totals(), reasons(world, "close")) == ((0, 3, 47), ["orphaned"])
    assert desk.sweep(orphans=True) == NOTHING


def test_an_older_try_that_was_left_open_is_given_back(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    desk.hold(claim)
    world.change("UPDATE pipeline.charges SET sequence = 2")
    world.change_auth("UPDATE credit_transactions SET created_at = created_at - interval '1 hour'")
    assert desk.sweep(orphans=True) == Swept(holds=1, credits_returned=3)
    assert desk.charges() == [("document_extract", 2, "open", None)]


@pytest.mark.parametrize(("state", "charged", "back"), [("settled", 2, 1), ("released", 0, 3), ("refunded", 0, 3)])
def test_a_ledger_that_was_set_back_ends_as_the_charges_say(world: World, state: str, charged: int, back: int) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    desk.hold(claim)
    world.change("UPDATE pipeline.charges SET state = %s, charged = %s", state, charged)
    world.change_auth("UPDATE credit_transactions SET created_at = created_at - interval '1 hour'")
    assert desk.sweep(orphans=True) == Swept(holds=1, credits_returned=back)
    assert desk.totals() == (charged, 0, 50 - charged)


def test_a_row_that_can_not_be_read_as_a_hold_stops_no_sweep(world: World, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    desk.hold(claim)
    world.change("DELETE FROM pipeline.charges")
    world.change_auth(
        "INSERT INTO credit_transactions (id, user_id, amount, type, operation, transaction_metadata, created_at)"
        """ VALUES ('odd', %s, -1, 'usage', 'x', '{"kind": "reserve"}', '2000-01-01')""",
        desk.payer.user_id,
    )
    world.change_auth("UPDATE credit_transactions SET created_at = created_at - interval '1 hour'")
    assert desk.sweep(orphans=True) == Swept(holds=1, credits_returned=3)
    assert "row odd of the ledger" in caplog.text
