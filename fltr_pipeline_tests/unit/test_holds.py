"""Holds, their ids and rows, and the statement that nets them."""

import inspect
import random
import uuid
from dataclasses import fields, replace
from datetime import datetime, timedelta
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltr_pipeline.credits import holds
from fltr_pipeline.credits.holds import (
    Close,
    CloseState,
    Hold,
    Payer,
    Pot,
    close_row,
    hold_row,
    outcome_of,
    refund_row,
)
from fltr_pipeline.credits.statement import Entry, entries
from fltr_pipeline.models import Op
from fltr_pipeline.stores.auth import LedgerRow, StoredRow

ANN = Payer("ann", Pot("user", "ann"))
TEAM = Payer("ann", Pot("team", "red"))
HOLD = Hold("document", Op.DOCUMENT_EMBED, 2, 3, 10, ANN, "job", "2026-11", 1)
IDS = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-_."), min_size=1)
WORK = st.tuples(IDS, st.sampled_from(Op), st.integers(1, 50), st.integers(1, 50))
MOMENTS = count()


def hold(subject: str, op: Op, generation: int, sequence: int) -> Hold:
    return replace(HOLD, subject_id=subject, op=op, generation=generation, sequence=sequence)


def stored(row: LedgerRow) -> StoredRow:
    """As the database would give it back."""
    at = datetime(2026, 1, 1) + timedelta(seconds=next(MOMENTS))  # noqa: DTZ001 - the application's own: UTC, no zone
    return StoredRow(
        id=row.id, team_id=row.team_id, amount=row.amount, type=row.type, operation=row.operation,
        resource_id=row.resource_id, metadata=row.metadata, created_at=at,
    )  # fmt: skip


# --- ids --------------------------------------------------------------------------------------------------------------


@given(works=st.sets(WORK, min_size=2))
def test_different_work_and_different_tries_have_different_ids(works: set[tuple[str, Op, int, int]]) -> None:
    made = [hold(*work) for work in works]
    ids = [i for h in made for i in (h.id, h.close_id, h.refund_id)]
    assert len(set(ids)) == 3 * len(works)
    assert all(str(uuid.UUID(i)) == i for i in ids)


@given(
    amount=st.integers(1, 10**6),
    job=st.none() | IDS,
    version=IDS,
    price=st.integers(0, 9),
    payer=st.sampled_from([ANN, TEAM]),
)
def test_nothing_but_the_work_and_the_try_goes_into_an_id(
    amount: int, job: str | None, version: str, price: int, payer: Payer
) -> None:
    other = replace(HOLD, amount=amount, job_id=job, price_version=version, unit_price=price, payer=payer)
    assert (other.id, other.close_id, other.refund_id) == (HOLD.id, HOLD.close_id, HOLD.refund_id)


def test_the_ids_are_the_same_in_every_release() -> None:
    assert HOLD.id == "7c59ad6b-22ba-505f-8cd8-1bc8522beaaf"
    assert HOLD.close_id == "4037ec94-8a11-50f7-a74c-17ba4344bca5"
    assert HOLD.refund_id == "3d79907d-b3e6-51fa-a08b-c9f25d1dbc82"


def test_a_pot_is_named_by_kind_and_id_and_only_a_teams_pot_has_a_team() -> None:
    assert (ANN.pot.name, TEAM.pot.name) == ("user:ann", "team:red")
    assert (ANN.team_id, TEAM.team_id) == (None, "red")
    assert sorted([Pot("user", "a"), Pot("team", "z"), Pot("team", "b")])[0] == Pot("team", "b")


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payer", [ANN, TEAM])
def test_a_hold_is_usage_of_minus_its_amount(payer: Payer) -> None:
    row = hold_row(replace(HOLD, payer=payer))
    assert (row.id, row.user_id, row.team_id) == (HOLD.id, "ann", payer.team_id)
    assert (row.amount, row.type, row.operation, row.resource_id) == (-10, "usage", "document_embed", "document")
    assert row.metadata == {
        "version": 1, "kind": "reserve", "hold_id": HOLD.id, "job_id": "job", "op": "document_embed", "generation": 2,
        "sequence": 3, "pot": payer.pot.name, "unit_price": 1, "price_version": "2026-11",
    }  # fmt: skip


@pytest.mark.parametrize(("charged", "back", "kind"), [(0, 10, "refund"), (4, 6, "refund"), (10, 0, "usage")])
def test_a_close_gives_back_what_is_not_charged(charged: int, back: int, kind: str) -> None:
    row = close_row(Close(HOLD, charged, CloseState.SETTLED, "done", used=7), "team it has now")
    assert (row.id, row.user_id, row.team_id) == (HOLD.close_id, "ann", "team it has now")
    assert (row.amount, row.type, row.operation, row.resource_id) == (back, kind, "document_embed", "document")
    extra = {"kind": "close", "outcome": "settled", "charged": charged, "used": 7, "reason": "done"}
    assert row.metadata == {**hold_row(HOLD).metadata, **extra}


def test_a_refund_gives_back_what_was_charged() -> None:
    row = refund_row(HOLD, 4, None, "our fault")
    assert (row.id, row.amount, row.type, row.team_id) == (HOLD.refund_id, 4, "refund", None)
    assert row.metadata == {**hold_row(HOLD).metadata, "kind": "refund", "reason": "our fault"}


@pytest.mark.parametrize("outcome", [CloseState.SETTLED, CloseState.RELEASED])
def test_a_close_that_is_found_says_how_it_ended(outcome: CloseState) -> None:
    assert outcome_of(stored(close_row(Close(HOLD, 0, outcome, "x"), None))) is outcome


def test_a_row_carries_no_time_of_its_own() -> None:
    assert "created_at" not in {f.name for f in fields(LedgerRow)}
    assert "time" not in vars(holds)
    assert "datetime" not in inspect.getsource(holds)


# --- the statement ----------------------------------------------------------------------------------------------------


def net(entry: Entry) -> tuple[int, int, int, int, int]:
    return entry.reserved, entry.charged, entry.returned, entry.held, entry.granted


def test_an_open_hold_is_held_and_not_charged() -> None:
    (entry,) = entries([stored(hold_row(HOLD))])
    assert net(entry) == (10, 0, 0, 10, 0)
    assert (entry.operation, entry.resource_id) == ("document_embed", "document")


@pytest.mark.parametrize("charged", [0, 4, 10])
def test_a_hold_is_netted_with_its_close_and_its_refund(charged: int) -> None:
    rows = [stored(hold_row(HOLD)), stored(close_row(Close(HOLD, charged, CloseState.SETTLED, "x"), None))]
    (entry,) = entries(rows)
    assert net(entry) == (10, charged, 10 - charged, 0, 0)
    (given_back,) = entries([*rows, stored(refund_row(HOLD, charged, None, "x"))])
    assert net(given_back) == (10, 0, 10, 0, 0)


def other(amount: int, metadata: dict[str, object] | None = None) -> StoredRow:
    kind = "usage" if amount < 0 else "purchase"
    return stored(LedgerRow("other", "ann", None, amount, kind, "document_upload", "x", metadata or {}))


def test_what_others_wrote_is_spent_or_granted() -> None:
    assert [net(e) for e in entries([other(50), other(-2), other(0), other(7, {"kind": "bonus"})])] == [
        (0, 0, 0, 0, 50),
        (2, 2, 0, 0, 0),
        (0, 0, 0, 0, 0),
        (0, 0, 0, 0, 7),
    ]


ROWS = st.lists(st.tuples(st.integers(1, 100), st.none() | st.floats(0, 1), st.booleans()), unique=True)
GRANTS = st.lists(st.integers(-50, 500))


@given(works=ROWS, grants=GRANTS, order=st.randoms())
def test_a_statement_adds_up_to_the_balance_in_whatever_order_the_rows_come(
    works: list[tuple[int, float | None, bool]], grants: list[int], order: random.Random
) -> None:
    rows = [other(n) for n in grants]
    for n, (amount, share, refunded) in enumerate(works):
        one = replace(HOLD, subject_id=f"document {n}", amount=amount)
        rows.append(stored(hold_row(one)))
        if share is not None:
            charged = round(share * amount)
            rows.append(stored(close_row(Close(one, charged, CloseState.SETTLED, "x"), None)))
            if refunded and charged:
                rows.append(stored(refund_row(one, charged, None, "x")))
    order.shuffle(rows)
    found = list(entries(rows))
    assert sum(e.granted - e.charged - e.held for e in found) == sum(r.amount for r in rows)
    assert all(e.reserved == e.charged + e.returned + e.held for e in found)
    assert all(min(net(e)) >= 0 for e in found)
    kept = [r.created_at for r in rows if r.metadata.get("kind") not in {"close", "refund"}]
    assert [e.at for e in found] == kept
