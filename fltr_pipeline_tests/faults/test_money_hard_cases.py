"""Hard cases of money: odd rows of others, balances at their limit, sweeps that come late, payers that change.

Belongs here: what once went wrong, or nearly did, case by case. Does not: the ledger at random (ledger_machine, storm).
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytest

from fltr_pipeline.credits.holds import HoldState, Payer, derived_id
from fltr_pipeline.errors import InvalidValue
from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline import expiry
from fltr_pipeline.pipeline.audit import audit_ledger
from fltr_pipeline.pipeline.billing import hold_of
from fltr_pipeline.pipeline.expiry import Swept
from fltr_pipeline.pipeline.extract import Extract
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import charges, claims, expired, generations
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim, Failure, Wait
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.bills import CONTENT, Desk
from fltr_pipeline_tests.command_line import fltr_pipeline
from fltr_pipeline_tests.money import add_key, add_team, hold, join
from fltr_pipeline_tests.queries import words
from fltr_pipeline_tests.world import World

TEXT = b"The treaty of Westphalia ended the thirty years war in 1648."
INT4_MAX = 2**31 - 1


def odd_row(
    world: World, payer: Payer, metadata: Mapping[str, object], amount: int = -5, row_id: str = "", subject: str = "s"
) -> None:
    """A row as another program, or somebody by hand, may write it."""
    world.change_auth(
        "INSERT INTO credit_transactions (id, user_id, amount, type, operation, resource_id, transaction_metadata,"
        " created_at) VALUES (%s, %s, %s, 'usage', 'document_embed', %s, %s, now())",
        row_id or uuid.uuid4().hex, payer.user_id, amount, subject, json.dumps(metadata),
    )  # fmt: skip


def test_a_balance_at_the_limit_of_its_column_stops_nobody_elses_sweep(world: World) -> None:
    rich, other = Desk.of(world), Desk.of(world)
    for desk in (rich, other):
        desk.hold(desk.claim()[0])
    world.change_auth("UPDATE user_credits SET credits = %s WHERE user_id = %s", INT4_MAX, rich.payer.user_id)
    other.an_hour_passes()
    assert other.sweep().documents == 1
    assert other.totals() == (0, 0, 50)
    assert sorted(state for _, _, state, _ in other.charges()) == ["conflict", "released"]


def test_a_balance_at_the_limit_of_its_column_fails_no_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    payer = world.user(100)
    dataset = world.dataset(payer)
    world.upload(dataset, {"broken.pdf": b"%PDF-1.4 broken"})
    perform = Extract.perform

    def and_tops_up(self: Extract, claimed: Sequence[Claim], mine: Mapping[str, Charge]) -> Sequence[object]:
        world.change_auth("UPDATE user_credits SET credits = %s", INT4_MAX)
        return perform(self, claimed, mine)

    monkeypatch.setattr(Extract, "perform", and_tops_up)
    _, report, *_ = world.process(dataset)
    assert [f.code for f in report.failures] == ["ledger_conflict"]
    assert "at the limit of its column" in report.failures[0].message
    assert world.statuses(dataset) == {"broken.pdf": "failed"}


def test_a_sweep_that_comes_late_makes_nothing_free(world: World) -> None:
    desk, services = Desk.of(world), world.services
    (claim,) = desk.claim()
    desk.fltr.stage_text(claim, CONTENT)
    desk.fltr.advance([claim], Stage.PLAN)
    (claim,) = desk.fltr.claim(desk.dataset, Stage.PLAN, run="a", limit=1)
    desk.fltr.plan(claim, words(CONTENT))
    desk.fltr.advance([claim], Stage.EMBED)
    (claim,) = desk.fltr.claim(desk.dataset, Stage.EMBED, run="a", limit=1)
    desk.hold(claim, Op.DOCUMENT_EMBED, 1)
    desk.an_hour_passes()
    with transaction(services.fltr) as tx:  # a sweep takes the document, and is slower than its own lease
        (taken,) = expired.take(tx, lease_seconds=60, age=60, limit=10)
        mine = charges.charges_of(tx, [(taken.claim.document_id, 1)])
    desk.an_hour_passes()
    (claim,) = desk.fltr.claim(desk.dataset, Stage.EMBED, run="b", limit=1)
    desk.hold(claim, Op.DOCUMENT_EMBED, 1)
    with transaction(services.fltr) as tx:
        generations.assign_keys(tx, [claim])
        generations.decide(tx, [claim])
    world.billing.void(mine, "expired")  # it wakes up; then the worker dies
    desk.an_hour_passes()
    assert desk.sweep().published == 1
    assert desk.charges() == [("document_embed", 2, "settled", 1)]
    assert (world.statuses(desk.dataset), desk.totals()) == ({"a": "ready"}, (1, 0, 49))


@pytest.mark.parametrize("how", ["deleted", "uploaded anew"])
def test_what_was_decided_for_nobody_is_paid_by_nobody(world: World, how: str) -> None:
    desk = Desk.of(world)
    claim = desk.decide(desk.claim()[0])
    desk.hold(claim, Op.DOCUMENT_EMBED, 1)
    if how == "deleted":
        world.change("DELETE FROM documents")
    else:
        desk.fltr.upload_anew(desk.dataset, claim.document_id)
    desk.an_hour_passes()
    desk.sweep()
    assert desk.totals() == (0, 0, 50)


def test_a_key_whose_rows_say_odd_things_pays_all_the_same(world: World) -> None:
    key = add_key(world, world.user(10), 10, daily=5)
    for value in ("soon", "2026-02-31T99:99", ""):
        odd_row(world, key.payer, {"held_at": value}, amount=0)
    world.change_auth("UPDATE credit_transactions SET api_key_id = %s WHERE type = 'usage'", key.digest)
    ledger, h = world.services.ledger, hold(key.payer, 4)
    assert ledger.reserve([h]) == {h.id: HoldState.OPEN}
    assert ledger.spendable([key.payer.pot]) == {key.payer.pot: 1}


def test_a_set_up_that_the_user_could_not_pay_is_paid_by_the_team_that_they_join(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLTR_PRICES__DATASET_SETUP", "1")
    payer = world.user(0)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TEXT})
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "awaiting_credits"}
    join(world, payer, add_team(world, payer, 100))
    world.process(dataset)  # asks the user once more, and then nobody but the team
    assert world.launchable() == {dataset.id: 1}
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert world.auth_rows("SELECT credits FROM teams") == [(97,)]


@pytest.mark.parametrize("changed", ["owner", "row"])
def test_a_set_up_that_is_paid_is_never_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """Whoever owns the dataset by now, and whatever became of the rows of whoever paid."""
    monkeypatch.setenv("FLTR_PRICES__DATASET_SETUP", "1")
    payer, heir = world.user(100), world.user(100)
    dataset = world.dataset(payer)
    world.process(dataset)
    if changed == "owner":
        world.change("UPDATE datasets SET user_id = %s WHERE id = %s", heir.user_id, dataset.id)
        world.change_auth("DELETE FROM users WHERE id = %s", payer.user_id)
    else:
        world.change_auth("UPDATE credit_transactions SET amount = -7 WHERE operation = 'dataset_setup' AND amount < 0")
    world.upload(dataset, {"a.txt": TEXT})
    set_up, *_ = world.process(dataset)
    assert (set_up.done, set_up.credits_charged, set_up.failures) == (1, 0, [])
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert world.statement(heir if changed == "owner" else payer).charged == (2 if changed == "owner" else 9)


def followed(world: World, poor: Payer) -> tuple[Dataset, Dataset]:
    """The datasets that a document was moved from, and to: the latter's set-up is still to be paid."""
    first, second = world.dataset(world.user(100)), world.dataset(poor)
    world.upload(first, {"a.txt": TEXT})
    world.process(first)
    world.change("UPDATE documents SET dataset_id = %s", second.id)
    world.sweep_all(list_keys=False)
    return first, second


def test_a_document_that_was_moved_to_a_dataset_that_nobody_can_set_up_waits_without_runs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLTR_PRICES__DATASET_SETUP", "1")
    poor = world.user(0)
    _, second = followed(world, poor)
    assert world.launchable() == {second.id: 1}
    world.process(second)
    assert (world.launchable(), world.statuses(second)) == ({}, {"a.txt": "ready"})
    world.services.ledger.grant(poor, 1, reason="test")
    assert world.launchable() == {second.id: 1}
    world.process(second)
    assert len(search(world.services, second.id, "treaty")) == 1
    assert world.statement(poor).available == 0


def test_a_hold_that_lands_behind_a_refusal_for_want_of_credits_is_given_back(world: World) -> None:
    """Who was to reserve it was stopped; who replaced them was refused, and the credits came between."""
    desk = Desk.of(world, credits=0)
    (slow,) = desk.claim()
    with transaction(world.services.fltr) as tx:
        (written,) = charges.write_charges(tx, [desk.charge(slow)], {slow.document_id: slow.fence})
    desk.an_hour_passes()
    (claim,) = desk.fltr.claim(desk.dataset, run="next", limit=1)
    (refusal,) = desk.reserve([claim]).refused
    with transaction(world.services.fltr) as tx:
        claims.wait_for_credits(tx, [Wait(claim, refusal.amount, refusal.pot.kind, refusal.pot.id)])
    world.services.ledger.grant(desk.payer, 4, reason="test")
    assert world.services.ledger.reserve([hold_of(written)]) == {hold_of(written).id: "open"}
    desk.an_hour_passes()
    assert audit_ledger(world.services.fltr, world.services.ledger, overdue=timedelta(minutes=1)).overdue == 1
    assert desk.sweep(orphans=True) == Swept(holds=1, credits_returned=3)
    assert (desk.totals(), desk.sweep(orphans=True)) == ((0, 0, 4), Swept())
    (claim,) = desk.fltr.claim(desk.dataset, run="last", limit=1)
    assert desk.hold(claim).sequence == 2
    assert desk.totals() == (0, 3, 1)


def test_a_set_up_whose_team_is_gone_is_paid_by_whoever_pays_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLTR_PRICES__DATASET_SETUP", "1")
    payer = world.user(100)
    join(world, payer, add_team(world, payer, 0))
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TEXT})
    world.process(dataset)
    world.change_auth("UPDATE user_credits SET team_id = NULL")
    world.change_auth("DELETE FROM teams")
    world.process(dataset)
    world.upload(dataset, {"a.txt": TEXT})
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready"}
    assert world.statement(payer).charged == 3


def test_a_set_up_that_nobody_can_pay_fails_the_documents_with_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLTR_PRICES__DATASET_SETUP", "1")
    payer = world.user(0)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TEXT})
    world.change_auth("DELETE FROM user_credits")
    set_up, *_ = world.process(dataset)
    assert [(f.filename, f.code) for f in set_up.failures] == [("a.txt", "pot_gone")]
    assert "has no balance in fltr_auth" in set_up.failures[0].message


def test_what_was_moved_to_a_dataset_that_nobody_can_set_up_leaves_no_vectors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLTR_PRICES__DATASET_SETUP", "1")
    poor = world.user(0)
    first, second = followed(world, poor)
    world.change_auth("DELETE FROM user_credits WHERE user_id = %s", poor.user_id)
    set_up, *_ = world.process(second)
    assert [f.code for f in set_up.failures] == ["pot_gone"]
    assert world.statuses(second) == {"a.txt": "failed"}
    world.sweep_all(list_keys=False)
    assert (world.keys(first), world.keys(second)) == (set(), set())


@pytest.mark.parametrize("odd", ["generation", "amount", "pot", "id"])
def test_an_odd_hold_keeps_no_orphan_open(world: World, odd: str) -> None:
    payer = world.user(50)
    orphan, other = hold(payer, 5), hold(payer, 5)
    world.services.ledger.reserve([orphan])
    metadata: dict[str, object] = {
        "version": 1, "kind": "reserve", "hold_id": other.id, "op": "document_embed", "generation": 1, "sequence": 1,
        "pot": payer.pot.name, "job_id": None, "price_version": "1", "unit_price": 1,
    }  # fmt: skip
    ways: dict[str, dict[str, object]] = {"generation": {"generation": 10**10}, "pot": {"pot": "wallet:1"}}
    changed = ways.get(odd, {})
    amount, row_id = 5 if odd == "amount" else -5, "another" if odd == "id" else other.id
    odd_row(world, payer, metadata | changed, amount, row_id, other.subject_id)
    world.change_auth("UPDATE credit_transactions SET created_at = created_at - interval '1 hour'")
    swept = expiry.sweep(world.services, world.billing, orphans=True)
    assert (swept.holds, swept.credits_returned) == (1, 5)
    assert expiry.sweep(world.services, world.billing, orphans=True).nothing


def test_a_changed_row_costs_the_customer_nothing_and_lets_reconcile_rest(world: World) -> None:
    payer = world.user(100)
    dataset = world.dataset(payer)
    ids = world.upload(dataset, {"bad.txt": TEXT, "good.txt": TEXT})
    taken = derived_id(f"hold:{ids['bad.txt']}:document_embed:1:1")
    odd_row(world, payer, {"kind": "reserve", "pot": payer.pot.name}, -7, taken, ids["bad.txt"])
    *_, embedded = world.process(dataset)
    assert [f.code for f in embedded.failures] == ["ledger_conflict"]
    assert world.statuses(dataset) == {"bad.txt": "failed", "good.txt": "ready"}
    assert world.rows("SELECT op, state FROM pipeline.charges WHERE subject_id = %s ORDER BY 1", ids["bad.txt"]) == [
        ("document_embed", "conflict"), ("document_extract", "refunded"), ("document_plan", "settled"),
    ]  # fmt: skip
    world.change("UPDATE pipeline.charges SET created_at = created_at - interval '1 hour'")
    assert not expiry.overdue(world.services)
    assert expiry.sweep(world.services, world.billing, orphans=True).nothing


def test_a_changed_row_of_a_decided_document_fails_it_and_lets_reconcile_rest(world: World) -> None:
    desk = Desk.of(world)
    (first,) = desk.claim()
    desk.settle(desk.hold(first), 3, first)
    claim = desk.decide(first)
    held = hold_of(desk.hold(claim, Op.DOCUMENT_EMBED, 1))
    world.change_auth("UPDATE credit_transactions SET amount = -2 WHERE id::text = %s", held.id)
    desk.an_hour_passes()
    assert desk.sweep().credits_returned == 3
    assert world.statuses(desk.dataset) == {"a": "failed"}
    assert desk.fltr.jobs(claim.document_id) == ["failed"]
    assert desk.fltr.state(claim.document_id, "stage, error_code") == (None, "ledger_conflict")
    assert [state for _, _, state, _ in desk.charges()] == ["conflict", "refunded"]
    for _ in range(2):
        desk.an_hour_passes()
        assert not expiry.overdue(world.services)
        assert desk.sweep(orphans=True).nothing


def test_a_worker_that_was_taken_over_before_it_failed_gives_nothing_back(world: World) -> None:
    desk = Desk.of(world)
    (slow,) = desk.claim()
    desk.settle(desk.hold(slow), 3, slow)
    desk.an_hour_passes()
    (claim,) = desk.fltr.claim(desk.dataset, run="b", limit=1)
    claim = desk.decide(claim)
    desk.settle(desk.hold(claim, Op.DOCUMENT_EMBED, 1), 1, claim)
    assert desk.publish(claim)
    with transaction(world.services.fltr) as tx:
        ended = claims.fail(tx, [Failure(slow, "internal_error", "late")])
        charges.mark_refunding(tx, [(i, 1) for i in ended])
    assert desk.sweep().nothing
    assert (world.statuses(desk.dataset), desk.totals()) == ({"a": "ready"}, (4, 0, 46))


def test_what_was_claimed_again_one_by_one_is_parked_when_a_store_goes_away(world: World) -> None:
    desk = Desk.of(world)
    (claim,) = desk.claim()
    with transaction(world.services.fltr) as tx:
        claims.refence(tx, [claim])
        assert claims.retry_later(tx, [claim], "no answer") == set()
        assert claims.retry_later(tx, [claim], "no answer", "another") == set()
        assert claims.retry_later(tx, [claim], "no answer", "worker") == {claim.document_id}


def test_addresses_that_differ_in_case_are_different_people(world: World) -> None:
    one, other = world.user(0), world.user(0)
    for payer, email in ((one, "ada@x.org"), (other, "Ada@x.org")):
        world.change_auth("UPDATE users SET email = %s WHERE id = %s", email, payer.user_id)
    ledger = world.services.ledger
    assert ledger.payer_by_email("ada@x.org") == one
    assert ledger.payer_by_email("Ada@x.org") == other
    with pytest.raises(InvalidValue, match="write it exactly"):
        ledger.payer_by_email("ADA@X.ORG")


def test_a_statement_shows_rows_of_others_that_are_about_nothing(world: World) -> None:
    payer = world.user(10)
    odd_row(world, payer, {})
    world.change_auth("UPDATE credit_transactions SET resource_id = NULL WHERE type = 'usage'")
    email = world.auth_rows("SELECT email FROM users WHERE id = %s", payer.user_id)[0][0]
    assert fltr_pipeline("credits", "statement", email).exit_code == 0
