"""The ledger's rows: what each kind says, the hold that is read back from one, and the statement that nets them."""

import random
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltr_pipeline.credits.entries import (
    Opening,
    check_same,
    close_row,
    grant_row,
    hold_of,
    hold_row,
    is_void,
    opening_row,
    outcome_of,
    refund_row,
    void_row,
)
from fltr_pipeline.credits.holds import Close, CloseState, Hold, Payer, Pot
from fltr_pipeline.credits.statement import Entry, entries
from fltr_pipeline.errors import LedgerConflict
from fltr_pipeline.models import Op
from fltr_pipeline.stores.auth.rows import LedgerRow, StoredRow

ANN = Payer("ann", Pot("user", "ann"))
TEAM = Payer("ann", Pot("team", "red"))
KEY = Payer("ann", Pot("api_key", "5e1f"), "5e1f")
PAYERS = [ANN, TEAM, KEY]
HOLD = Hold("document", Op.DOCUMENT_EMBED, 2, 3, 10, ANN, "job", "run", "2026-11", 1)
BEGINNING = datetime(2026, 1, 1)  # noqa: DTZ001 - the application's own: UTC, no zone
MOMENTS = count()
IDS = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-_."), min_size=1)


def stored(row: LedgerRow) -> StoredRow:
    """As the database would give it back."""
    return StoredRow(
        id=row.id, user_id=row.user_id, team_id=row.team_id, api_key_id=row.api_key_id, amount=row.amount,
        type=row.type, operation=row.operation, resource_id=row.resource_id, metadata=row.metadata,
        created_at=BEGINNING + timedelta(seconds=next(MOMENTS)),
    )  # fmt: skip


def settled(hold: Hold, charged: int, outcome: CloseState = CloseState.SETTLED) -> StoredRow:
    return stored(close_row(Close(hold, charged, outcome, "done", used=7), stored(hold_row(hold))))


def refunded(hold: Hold, charged: int) -> StoredRow:
    return stored(refund_row(hold, settled(hold, charged), "our fault"))


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payer", PAYERS)
def test_a_hold_is_usage_of_minus_its_amount(payer: Payer) -> None:
    row = hold_row(replace(HOLD, payer=payer))
    assert (row.id, row.user_id, row.team_id, row.api_key_id) == (HOLD.id, "ann", payer.team_id, payer.api_key_id)
    assert (row.amount, row.type, row.operation, row.resource_id) == (-10, "usage", "document_embed", "document")
    assert row.metadata == {
        "version": 1, "kind": "reserve", "hold_id": HOLD.id, "job_id": "job", "run_id": "run", "op": "document_embed",
        "generation": 2, "sequence": 3, "pot": payer.pot.name, "unit_price": 1, "price_version": "2026-11",
    }  # fmt: skip


@pytest.mark.parametrize("payer", PAYERS)
def test_a_void_stands_where_the_hold_would_and_takes_nothing(payer: Payer) -> None:
    hold = replace(HOLD, payer=payer)
    row = void_row(hold, "expired")
    assert (row.id, row.amount, row.type) == (HOLD.id, 0, "usage")
    assert (row.user_id, row.team_id, row.api_key_id) == ("ann", payer.team_id, payer.api_key_id)
    assert row.metadata == {**hold_row(hold).metadata, "kind": "void", "outcome": "released", "reason": "expired"}
    assert is_void(stored(row))
    assert outcome_of(stored(row)) is CloseState.RELEASED
    assert not is_void(stored(hold_row(hold)))


@pytest.mark.parametrize(("charged", "back", "kind"), [(0, 10, "refund"), (4, 6, "refund"), (10, 0, "usage")])
def test_a_close_gives_back_what_is_not_charged(charged: int, back: int, kind: str) -> None:
    found = replace(stored(hold_row(HOLD)), team_id="team it has now")
    row = close_row(Close(HOLD, charged, CloseState.SETTLED, "done", used=7), found)
    assert (row.id, row.user_id, row.team_id) == (HOLD.close_id, "ann", "team it has now")
    assert (row.amount, row.type, row.operation, row.resource_id) == (back, kind, "document_embed", "document")
    extra = {
        "kind": "close", "outcome": "settled", "charged": charged, "used": 7, "reason": "done",
        "held_at": found.created_at.isoformat(),
    }  # fmt: skip
    assert row.metadata == {**hold_row(HOLD).metadata, **extra}


def test_a_refund_gives_back_what_was_charged_and_says_since_when_it_was_held() -> None:
    close = settled(HOLD, 4)
    row = refund_row(HOLD, replace(close, team_id="team it has now"), "our fault")
    assert (row.id, row.amount, row.type, row.team_id) == (HOLD.refund_id, 4, "refund", "team it has now")
    extra = {"kind": "refund", "reason": "our fault", "held_at": close.metadata["held_at"]}
    assert row.metadata == {**hold_row(HOLD).metadata, **extra}


@pytest.mark.parametrize("payer", PAYERS)
def test_a_grant_is_a_bonus_to_the_pot(payer: Payer) -> None:
    row = grant_row("an id", payer, 5, "sorry")
    assert (row.id, row.amount, row.type, row.operation) == ("an id", 5, "bonus", "grant")
    assert (row.user_id, row.team_id, row.api_key_id) == ("ann", payer.team_id, payer.api_key_id)
    assert row.metadata == {"version": 1, "kind": "grant", "pot": payer.pot.name, "reason": "sorry"}


@pytest.mark.parametrize("payer", PAYERS)
def test_an_opening_is_a_bonus_of_nothing_that_says_what_there_was(payer: Payer) -> None:
    row = opening_row(Opening(payer.pot, "owner", balance=50, opening=20))
    assert (row.id, row.amount, row.type, row.operation) == (payer.pot.opening_id, 0, "bonus", "opening")
    assert (row.user_id, row.team_id, row.api_key_id) == ("owner", payer.team_id, payer.api_key_id)
    assert row.metadata == {"version": 1, "kind": "opening", "pot": payer.pot.name, "balance": 50, "opening": 20}


@pytest.mark.parametrize("outcome", CloseState)
def test_a_close_that_is_found_says_how_it_ended(outcome: CloseState) -> None:
    assert outcome_of(settled(HOLD, 0, outcome)) is outcome


# --- from a row to its hold -------------------------------------------------------------------------------------------


@given(
    subject=IDS,
    op=st.sampled_from(Op),
    numbers=st.tuples(st.integers(1, 99), st.integers(1, 99), st.integers(1, 10**6), st.integers(0, 99)),
    payer=st.sampled_from(PAYERS),
    job=st.none() | IDS,
    run=st.none() | IDS,
    version=IDS,
)
def test_a_hold_is_read_back_from_its_row(
    subject: str, op: Op, numbers: tuple[int, int, int, int], payer: Payer, job: str | None, run: str | None,
    version: str,
) -> None:  # fmt: skip
    generation, sequence, amount, price = numbers
    hold = Hold(subject, op, generation, sequence, amount, payer, job, run, version, price)
    assert hold_of(stored(hold_row(hold))) == hold


def test_a_hold_of_a_version_that_knew_no_runs_is_read_too() -> None:
    metadata = {k: v for k, v in hold_row(HOLD).metadata.items() if k != "run_id"}
    assert hold_of(replace(stored(hold_row(HOLD)), metadata=metadata)) == replace(HOLD, run_id=None)


@pytest.mark.parametrize("broken", [{"op": "baking"}, {"generation": "second"}, {"sequence": None}, {"pot": ...}])
def test_a_row_that_is_no_hold_is_a_conflict_that_names_it(broken: dict[str, object]) -> None:
    metadata = {k: v for k, v in {**hold_row(HOLD).metadata, **broken}.items() if v is not ...}
    with pytest.raises(LedgerConflict, match=HOLD.id):
        hold_of(replace(stored(hold_row(HOLD)), metadata=metadata))


def test_the_same_id_carries_the_same_amount_on_the_same_pot() -> None:
    found = stored(hold_row(HOLD))
    check_same(HOLD, found)
    check_same(replace(HOLD, run_id="another", job_id="another"), found)
    for other in (replace(HOLD, amount=9), replace(HOLD, payer=TEAM)):
        with pytest.raises(LedgerConflict, match=r"10 credits|of user:ann"):
            check_same(other, found)


# --- the statement ----------------------------------------------------------------------------------------------------


def net(entry: Entry) -> tuple[int, int, int, int, int]:
    return entry.reserved, entry.charged, entry.returned, entry.held, entry.granted


def test_an_open_hold_is_held_and_not_charged() -> None:
    (entry,) = entries([stored(hold_row(HOLD))])
    assert net(entry) == (10, 0, 0, 10, 0)
    assert (entry.operation, entry.resource_id) == ("document_embed", "document")


@pytest.mark.parametrize("charged", [0, 4, 10])
def test_a_hold_is_netted_with_its_close_and_its_refund(charged: int) -> None:
    rows = [stored(hold_row(HOLD)), settled(HOLD, charged)]
    (entry,) = entries(rows)
    assert net(entry) == (10, charged, 10 - charged, 0, 0)
    (given_back,) = entries([*rows, refunded(HOLD, charged)])
    assert net(given_back) == (10, 0, 10, 0, 0)


def other(amount: int, metadata: dict[str, object] | None = None) -> StoredRow:
    kind = "usage" if amount < 0 else "purchase"
    return stored(LedgerRow("other", "ann", None, amount, kind, "document_upload", "x", metadata or {}))


def test_what_others_wrote_is_spent_or_granted() -> None:
    rows = [other(50), other(-2), other(7, {"kind": "bonus"})]
    assert [net(e) for e in entries(rows)] == [(0, 0, 0, 0, 50), (2, 2, 0, 0, 0), (0, 0, 0, 0, 7)]


def test_what_others_give_back_lowers_what_they_charged() -> None:
    rows = [other(-10), replace(other(10), type="refund")]
    numbers = [net(e) for e in entries(rows)]
    assert numbers == [(10, 10, 0, 0, 0), (0, -10, 10, 0, 0)]
    assert [sum(column) for column in zip(*numbers, strict=True)] == [10, 0, 10, 0, 0]


ROWS = st.lists(st.tuples(st.integers(1, 100), st.none() | st.floats(0, 1), st.booleans()), unique=True)
GRANTS = st.lists(st.integers(-50, 500))


@given(works=ROWS, grants=GRANTS, order=st.randoms())
def test_a_statement_adds_up_to_the_balance_in_whatever_order_the_rows_come(
    works: list[tuple[int, float | None, bool]], grants: list[int], order: random.Random
) -> None:
    rows = [other(n) for n in grants]
    for n, (amount, share, given_back) in enumerate(works):
        one = replace(HOLD, subject_id=f"document {n}", amount=amount)
        rows.append(stored(hold_row(one)))
        if share is not None:
            charged = round(share * amount)
            rows.append(settled(one, charged))
            if given_back and charged:
                rows.append(refunded(one, charged))
    order.shuffle(rows)
    found = list(entries(rows))
    assert sum(e.granted - e.charged - e.held for e in found) == sum(r.amount for r in rows)
    assert all(e.reserved == e.charged + e.returned + e.held for e in found)
    assert all(min(net(e)) >= 0 for e in found)
    moving = [r.created_at for r in rows if r.metadata.get("kind") not in {"close", "refund"}]
    assert {e.at for e in found} <= set(moving)
