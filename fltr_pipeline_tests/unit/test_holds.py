"""Holds, pots and payers: their names and ids."""

import hashlib
import inspect
import uuid
from dataclasses import fields, replace

from hypothesis import given
from hypothesis import strategies as st

from fltr_pipeline.credits import entries, holds
from fltr_pipeline.credits.holds import Closed, CloseState, Hold, Payer, Pot, key_digest
from fltr_pipeline.models import Op
from fltr_pipeline.stores.auth.rows import LedgerRow

ANN = Payer("ann", Pot("user", "ann"))
TEAM = Payer("ann", Pot("team", "red"))
KEY = Payer("ann", Pot("api_key", "5e1f"), "5e1f")
HOLD = Hold("document", Op.DOCUMENT_EMBED, 2, 3, 10, ANN, "job", "run", "2026-11", 1)
IDS = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-_."), min_size=1)
WORK = st.tuples(IDS, st.sampled_from(Op), st.integers(1, 50), st.integers(1, 50))


def hold(subject: str, op: Op, generation: int, sequence: int) -> Hold:
    return replace(HOLD, subject_id=subject, op=op, generation=generation, sequence=sequence)


@given(works=st.sets(WORK, min_size=2))
def test_different_work_and_different_tries_have_different_ids(works: set[tuple[str, Op, int, int]]) -> None:
    made = [hold(*work) for work in works]
    ids = [i for h in made for i in (h.id, h.close_id, h.refund_id)]
    assert len(set(ids)) == 3 * len(works)
    assert all(str(uuid.UUID(i)) == i for i in ids)


@given(
    amount=st.integers(1, 10**6),
    job=st.none() | IDS,
    run=st.none() | IDS,
    version=IDS,
    price=st.integers(0, 9),
    payer=st.sampled_from([ANN, TEAM, KEY]),
)
def test_nothing_but_the_work_and_the_try_goes_into_an_id(
    amount: int, job: str | None, run: str | None, version: str, price: int, payer: Payer
) -> None:
    other = replace(HOLD, amount=amount, job_id=job, run_id=run, price_version=version, unit_price=price, payer=payer)
    assert (other.id, other.close_id, other.refund_id) == (HOLD.id, HOLD.close_id, HOLD.refund_id)


def test_the_ids_are_the_same_in_every_release() -> None:
    assert HOLD.id == "7c59ad6b-22ba-505f-8cd8-1bc8522beaaf"
    assert HOLD.close_id == "4037ec94-8a11-50f7-a74c-17ba4344bca5" == holds.close_id(HOLD.id)
    assert HOLD.refund_id == "3d79907d-b3e6-51fa-a08b-c9f25d1dbc82" == holds.refund_id(HOLD.id)
    assert ANN.pot.opening_id == "61bdf5a3-1167-59b8-ad5f-c5bb2b9a6084"


@given(st.sets(st.tuples(st.sampled_from(["user", "team", "api_key"]), IDS), min_size=2))
def test_every_pot_has_an_opening_of_its_own(named: set[tuple[str, str]]) -> None:
    assert len({Pot(*name).opening_id for name in named}) == len(named)


def test_a_pot_is_named_by_kind_and_id_and_only_a_teams_pot_has_a_team() -> None:
    assert (ANN.pot.name, TEAM.pot.name, KEY.pot.name) == ("user:ann", "team:red", "api_key:5e1f")
    assert (ANN.team_id, TEAM.team_id, KEY.team_id) == (None, "red", None)
    assert sorted([Pot("user", "a"), Pot("team", "z"), Pot("team", "b")])[0] == Pot("team", "b")


@given(st.text(min_size=1))
def test_a_key_is_called_by_the_lower_case_hex_sha256_of_its_utf8(key: str) -> None:
    assert key_digest(key) == hashlib.sha256(key.encode("utf-8")).hexdigest()


def test_what_a_call_gave_back_is_no_part_of_how_a_hold_ended() -> None:
    assert Closed(CloseState.SETTLED, 3, returned=7) == Closed(CloseState.SETTLED, 3)
    assert Closed(CloseState.SETTLED, 3) != Closed(CloseState.SETTLED, 4)


def test_no_id_or_row_carries_a_time_of_its_own() -> None:
    assert "created_at" not in {f.name for f in fields(LedgerRow)}
    for module in (holds, entries):
        assert "time" not in vars(module)
        assert "datetime" not in inspect.getsource(module)
