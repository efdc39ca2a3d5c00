"""The ledger on a real `fltr_auth`, as its least-privilege role."""

import threading
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fltr_pipeline.credits import transfers
from fltr_pipeline.credits.holds import Closed, CloseState, Hold, HoldState
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.errors import InvalidAmount, NotFound, PotGone
from fltr_pipeline.stores.database import transaction
from fltr_pipeline_tests.money import (
    available,
    hold,
    lines,
    release,
    settle,
    unexplained,
)
from fltr_pipeline_tests.world import World


def test_reserve_then_settle_leaves_two_rows_that_say_everything(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(credits=10)
    h = hold(payer, 5)
    assert ledger.reserve([h]) == {h.id: HoldState.OPEN}
    assert available(world, payer) == 5
    assert ledger.close([settle(h, 2)])[h.id].charged == 2
    assert available(world, payer) == 8
    rows = world.auth_rows(
        "SELECT id, amount, type, operation, resource_id, transaction_metadata FROM credit_transactions"
        " WHERE type <> 'bonus' ORDER BY amount"
    )
    (hold_id, *reserved, about_hold), (close_id, *closed, about_close) = rows
    assert (hold_id, *reserved) == (h.id, -5, "usage", "document_embed", h.subject_id)
    assert (close_id, *closed) == (h.close_id, 3, "refund", "document_embed", h.subject_id)
    common = {
        "version": 1, "hold_id": h.id, "job_id": "job-1", "run_id": "run-1", "op": "document_embed", "generation": 1,
        "sequence": 1, "pot": f"user:{payer.user_id}", "unit_price": 1, "price_version": "2026-11",
    }  # fmt: skip
    assert about_hold == common | {"kind": "reserve"}
    ((held_at,),) = world.auth_rows("SELECT created_at FROM credit_transactions WHERE id = %s", h.id)
    assert about_close == common | {
        "kind": "close", "outcome": "settled", "charged": 2, "used": 7, "reason": "done",
        "held_at": held_at.isoformat(),
    }  # fmt: skip
    assert unexplained(world, payer.pot) == 0


def test_a_charge_of_everything_closes_with_a_row_of_zero(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(credits=5)
    h = hold(payer, 5)
    ledger.reserve([h])
    ledger.close([settle(h, 5)])
    assert world.auth_rows("SELECT amount, type FROM credit_transactions WHERE id = %s", h.close_id) == [(0, "usage")]
    assert available(world, payer) == 0


def test_every_call_may_be_repeated(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(credits=10)
    h = hold(payer, 4)
    for _ in range(3):
        assert ledger.reserve([h]) == {h.id: HoldState.OPEN}
    assert available(world, payer) == 6
    for _ in range(3):
        assert ledger.close([settle(h, 1)])[h.id] == ledger.close([release(h)])[h.id]
    assert available(world, payer) == 9
    assert ledger.reserve([h]) == {h.id: HoldState.SETTLED}
    again = replace(h, sequence=2)
    assert ledger.reserve([again]) == {again.id: HoldState.OPEN}
    assert ledger.close([release(again)])[again.id].state is CloseState.RELEASED
    assert ledger.reserve([again]) == {again.id: HoldState.RELEASED}
    assert unexplained(world, payer.pot) == 0


def test_a_batch_takes_the_first_that_the_pot_covers(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(credits=10)
    batch = [hold(payer, 4) for _ in range(4)]
    states = ledger.reserve(batch)
    assert [states[h.id] for h in batch] == [HoldState.OPEN] * 2 + [HoldState.INSUFFICIENT] * 2
    assert available(world, payer) == 2
    assert world.auth_rows("SELECT count(*) FROM credit_transactions WHERE type = 'usage'") == [(2,)]
    assert unexplained(world, payer.pot) == 0


@pytest.mark.parametrize(
    ("amount", "leaving", "credits", "state"),
    [
        (20_000, 20_000, 40_000, "open"), (20_000, 20_000, 39_999, "insufficient"), (32_767, 1, 32_768, "open"),
        (1_000_000, 2**31 - 1, 2**31 - 1, "insufficient"), (40_000, 2**33, 50_000, "insufficient"),
    ],
)  # fmt: skip
def test_what_must_be_left_is_compared_whatever_its_size(
    world: World, amount: int, leaving: int, credits: int, state: str
) -> None:
    h = hold(world.user(credits), amount)
    assert world.services.ledger.reserve([h], leaving=leaving) == {h.id: state}


def test_a_hold_that_stands_is_found_however_often_others_are_faster(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, payer = world.services.ledger, world.user(credits=3)
    there, new = hold(payer, 3), hold(payer, 1)
    ledger.reserve([there])
    monkeypatch.setattr(Ledger, "spendable", lambda _, pots: dict.fromkeys(pots, 1))
    assert ledger.reserve([there, new]) == {there.id: HoldState.OPEN, new.id: HoldState.INSUFFICIENT}


def test_a_grant_whose_answer_was_lost_and_whose_pot_is_gone_since(world: World) -> None:
    ledger, payer = world.services.ledger, world.user()
    run = partial(transfers.grant, payer=payer, row_id="grant", amount=5, reason="x", known=True)
    with transaction(ledger.engine) as tx:
        assert run(tx) == 105
    world.change_auth("DELETE FROM user_credits")
    with pytest.raises(transfers.PotIsGone), transaction(ledger.engine) as tx:
        run(tx)


def test_pots_of_a_batch_are_charged_apart(world: World) -> None:
    ledger, rich, poor = world.services.ledger, world.user(credits=10), world.user(credits=1)
    batch = [hold(rich, 4), hold(poor, 4), hold(rich, 4)]
    states = ledger.reserve(batch)
    assert [states[h.id] for h in batch] == [HoldState.OPEN, HoldState.INSUFFICIENT, HoldState.OPEN]
    assert (available(world, rich), available(world, poor)) == (2, 1)


@pytest.mark.parametrize("amount", [0, -1, -(2**31), 1_000_001, 2**31, 2**63])
def test_amounts_are_refused_before_any_sql(world: World, amount: int) -> None:
    payer = world.user(credits=10)
    for call in (
        lambda: world.services.ledger.reserve([hold(payer, amount)]),
        lambda: world.services.ledger.grant(payer, amount, reason="x"),
    ):
        with pytest.raises(InvalidAmount):
            call()
    with pytest.raises(InvalidAmount):
        world.services.ledger.close([settle(hold(payer, 3), 4)])
    assert available(world, payer) == 10


def test_a_deleted_user_takes_their_holds_along(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(credits=10)
    h = hold(payer)
    ledger.reserve([h])
    world.change_auth("DELETE FROM users WHERE id = %s", payer.user_id)
    assert ledger.close([settle(h, 3)])[h.id].state is CloseState.PAYER_GONE
    late = hold(payer)
    assert ledger.reserve([late]) == {late.id: HoldState.PAYER_GONE}
    assert ledger.payer(payer.user_id) is None
    with pytest.raises(NotFound, match=r"nobody@example\.org"):
        ledger.payer_by_email("nobody@example.org")


def test_a_pot_that_is_gone_ends_its_holds_all_the_same(world: World, caplog: pytest.LogCaptureFixture) -> None:
    ledger, payer = world.services.ledger, world.user(credits=10)
    h, voided, charged = hold(payer), hold(payer), hold(payer, 2)
    ledger.reserve([h, voided, charged])
    ledger.close([settle(charged, 2)])
    world.change_auth("DELETE FROM user_credits WHERE user_id = %s", payer.user_id)
    for _ in range(2):
        assert ledger.close([settle(h, 1)]) == {h.id: Closed(CloseState.POT_GONE, 1)}
        assert ledger.void([voided], reason="expired") == {voided.id: Closed(CloseState.POT_GONE, 0)}
    assert {line.metadata["outcome"] for line in lines(world, "close") if line.id != charged.close_id} == {"pot_gone"}
    late = hold(payer)
    assert ledger.reserve([late, h]) == {late.id: HoldState.POT_GONE, h.id: HoldState.SETTLED}, "what it paid stands"
    assert lines(world, "reserve") == [line for line in lines(world, "reserve") if line.id != late.id]
    with pytest.raises(PotGone):
        ledger.grant(payer, 5, reason="x")
    caplog.clear()
    assert ledger.refund([charged], reason="our fault") == 0
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    assert f"user:{payer.user_id} is gone" in caplog.text
    assert lines(world, "refund") == []


@pytest.mark.parametrize("kind", ["jsonb", "text"])
def test_metadata_columns_of_other_types(world: World, kind: str) -> None:
    world.change_auth(
        f"ALTER TABLE credit_transactions ALTER COLUMN transaction_metadata"
        f" TYPE {kind} USING transaction_metadata::text::{kind}"
    )
    ledger, payer = world.services.ledger, world.user(credits=10)
    h = hold(payer, 4)
    ledger.reserve([h])
    ledger.close([settle(h, 1)])
    assert ledger.close([release(h)])[h.id].state is CloseState.SETTLED
    statement = ledger.statement(payer)
    assert (statement.reserved, statement.charged, statement.returned, statement.held) == (4, 1, 3, 0)


def test_times_are_utc_whatever_the_servers_zone(world: World) -> None:
    world.change_auth("ALTER ROLE fltr_pipeline SET timezone = 'Asia/Kolkata'")
    try:
        ledger, payer = world.services.ledger, world.user(credits=10)
        ledger.reserve([hold(payer)])
        seconds = (
            "SELECT extract(epoch FROM (now() AT TIME ZONE 'UTC') - max(created_at))::int FROM credit_transactions"
        )
        assert abs(world.auth_rows(seconds)[0][0]) < 60
        assert (
            abs(
                world.auth_rows(
                    seconds.replace("max(created_at)", "max(updated_at)").replace("credit_transactions", "user_credits")
                )[0][0]
            )
            < 60
        )
    finally:
        world.change_auth("ALTER ROLE fltr_pipeline RESET timezone")


def test_the_statement_tells_held_from_spent(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(credits=20)
    open_hold, done, failed = hold(payer, 5), hold(payer, 4), hold(payer, 3)
    ledger.reserve([open_hold, done, failed])
    ledger.close([settle(done, 1), release(failed)])
    ledger.grant(payer, 6, reason="sorry")
    s = ledger.statement(payer)
    assert (s.granted, s.reserved, s.charged, s.returned, s.held, s.available) == (26, 12, 1, 6, 5, 20)
    assert s.granted - s.charged - s.held == s.available


def test_many_workers_on_one_pot_never_overdraw_and_never_lose(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(credits=60)
    shared = [hold(payer, 2, subject=f"doc-{n}") for n in range(20)]
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            mine = shared[seed % 7 :] + shared[: seed % 7]
            states = ledger.reserve(mine)
            got = [h for h in mine if states[h.id] is HoldState.OPEN]
            ledger.close([settle(h, 1) if n % 2 else release(h) for n, h in enumerate(got)])
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert unexplained(world, payer.pot) == 0
    statement = ledger.statement(payer)
    assert (statement.held, statement.reserved) == (0, 40)
    assert 60 - statement.charged == statement.available


Step = tuple[str, int, int]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    balance=st.integers(0, 12),
    steps=st.lists(
        st.tuples(st.sampled_from(["reserve", "settle", "release", "grant"]), st.integers(0, 4), st.integers(1, 5)),
        max_size=14,
    ),
)
def test_the_ledger_agrees_with_a_model(world: World, balance: int, steps: Sequence[Step]) -> None:
    """Any order of calls, repeated or reversed: balance, holds and closes are as a dictionary would have them."""
    ledger, payer = world.services.ledger, world.user(credits=balance)
    model, holds, closed = balance, dict[int, Hold](), dict[int, int]()
    run = uuid.uuid4().hex
    for what, n, amount in steps:
        h = holds.get(n) or hold(payer, amount, subject=f"{run}-{n}")
        if what == "grant":
            ledger.grant(payer, amount, reason="test")
            model += amount
        elif what == "reserve":
            state = ledger.reserve([h])[h.id]
            if n in holds:
                assert state is (
                    HoldState.OPEN if n not in closed else HoldState.SETTLED if closed[n] >= 0 else HoldState.RELEASED
                )
            elif model >= h.amount:
                assert state is HoldState.OPEN
                holds[n], model = h, model - h.amount
            else:
                assert state is HoldState.INSUFFICIENT
        else:
            charged = min(amount, h.amount) if what == "settle" else 0
            result = ledger.close([settle(h, charged) if what == "settle" else release(h)])[h.id]
            if n not in holds:
                assert result.state is CloseState.PAYER_GONE
            elif n not in closed:
                closed[n], model = (charged if what == "settle" else -1), model + h.amount - charged
            else:
                assert (result.state is CloseState.SETTLED) == (closed[n] >= 0)
        assert available(world, payer) == model
    assert unexplained(world, payer.pot) == 0
