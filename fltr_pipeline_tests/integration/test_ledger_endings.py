"""How holds end when things go wrong: voids, refunds, conflicts, lost answers, deleted users and teams."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine

from fltr_pipeline.credits.holds import Closed, CloseState, HoldState, Payer, Pot
from fltr_pipeline.errors import LedgerConflict
from fltr_pipeline.stores.auth import rows
from fltr_pipeline_tests.money import add_team, available, hold, join, lines, release, settle, unexplained
from fltr_pipeline_tests.world import World


def delete_user(world: World, payer: Payer) -> None:
    world.change_auth("DELETE FROM users WHERE id = %s", payer.user_id)


def delete_team(world: World, team: Pot) -> None:
    world.change_auth("UPDATE user_credits SET team_id = NULL WHERE team_id = %s", team.id)
    world.change_auth("DELETE FROM teams WHERE id = %s", team.id)


def test_a_void_keeps_a_hold_that_never_landed_from_landing(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(credits=10)
    h = hold(payer, 4)
    for _ in range(2):
        assert ledger.void([h], reason="expired") == {h.id: Closed(CloseState.RELEASED, 0)}
        assert ledger.reserve([h]) == {h.id: HoldState.RELEASED}
        assert ledger.close([settle(h, 4)]) == {h.id: Closed(CloseState.RELEASED, 0)}
        assert ledger.refund([h], reason="x") == 0
    assert available(world, payer) == 10
    (line,) = lines(world, "void")
    assert (line.id, line.amount, line.metadata["reason"]) == (h.id, 0, "expired")
    assert lines(world, "close") == lines(world, "reserve") == []


def test_a_void_releases_what_landed_and_leaves_what_was_settled(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(credits=20)
    landed, settled, never = hold(payer, 4), hold(payer, 5), hold(payer, 6)
    ledger.reserve([landed, settled])
    ledger.close([settle(settled, 2)])
    closed = ledger.void([landed, settled, never], reason="expired")
    assert closed == {
        landed.id: Closed(CloseState.RELEASED, 0),
        settled.id: Closed(CloseState.SETTLED, 2),
        never.id: Closed(CloseState.RELEASED, 0),
    }
    assert [closed[h.id].returned for h in (landed, settled, never)] == [4, 0, 0]
    assert available(world, payer) == 18
    again = ledger.void([landed, settled, never], reason="expired")
    assert (again, sum(c.returned for c in again.values())) == (closed, 0)
    assert (available(world, payer), unexplained(world, payer.pot)) == (18, 0)


def test_a_void_for_a_user_who_is_gone(world: World) -> None:
    ledger, payer = world.services.ledger, world.user()
    landed, never = hold(payer), hold(payer)
    ledger.reserve([landed])
    delete_user(world, payer)
    gone = Closed(CloseState.PAYER_GONE, 0)
    assert ledger.void([landed, never], reason="expired") == {landed.id: gone, never.id: gone}


def test_one_member_of_a_team_who_is_gone_keeps_no_other_from_being_voided(world: World) -> None:
    ledger, owner = world.services.ledger, world.user()
    team = add_team(world, owner, credits=50)
    ann, bob, eve = (join(world, world.user(), team) for _ in range(3))
    landed, lost = [hold(p, 2) for p in (ann, eve, bob)], [hold(p, 3) for p in (eve, ann, bob)]
    ledger.reserve(landed)
    delete_user(world, eve)
    states = {i: c.state for i, c in ledger.void(landed + lost, reason="expired").items()}
    assert states == {h.id: CloseState.PAYER_GONE if h.payer == eve else CloseState.RELEASED for h in landed + lost}
    assert available(world, ann) == 48, "what the deleted member held went with the member's rows"
    assert {x.id for x in lines(world, "void")} == {h.id for h in lost if h.payer != eve}
    assert {x.id for x in lines(world, "close")} == {h.close_id for h in landed if h.payer != eve}


@pytest.mark.parametrize("everything_landed", [True, False])
def test_a_void_of_a_team_that_is_gone_ends_what_landed(world: World, everything_landed: bool) -> None:
    ledger, owner = world.services.ledger, world.user()
    team = add_team(world, owner, credits=50)
    ann = join(world, world.user(), team)
    landed, never = hold(ann, 2), hold(ann, 3)
    ledger.reserve([landed])
    delete_team(world, team)
    asked = [landed] if everything_landed else [landed, never]
    assert ledger.void(asked, reason="expired") == {h.id: Closed(CloseState.POT_GONE, 0) for h in asked}
    (line,) = lines(world, "close")
    assert (line.id, line.team_id, line.metadata["outcome"]) == (landed.close_id, None, "pot_gone")


# --- rows that somebody changed, answers that got lost, people who vanish in between ---------------------------------


def test_a_hold_that_says_something_else_than_its_row_is_a_conflict(world: World) -> None:
    ledger, payer, other = world.services.ledger, world.user(credits=20), world.user()
    h = hold(payer, 4)
    ledger.reserve([h])
    for changed in (replace(h, amount=5), replace(h, payer=other), replace(h, payer=replace(payer, pot=other.pot))):
        for call in (
            partial(ledger.reserve, [changed]),
            partial(ledger.close, [settle(changed, 1)]),
            partial(ledger.close, [release(changed)]),
            partial(ledger.void, [changed], reason="x"),
            partial(ledger.refund, [changed], reason="x"),
        ):
            with pytest.raises(LedgerConflict, match=h.id):
                call()
    assert (available(world, payer), available(world, other), lines(world, "close")) == (16, 100, [])


def answer_is_lost_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next COMMIT is done, but the client never hears of it."""
    commit = engine.dialect.do_commit

    def once(connection: object) -> None:
        monkeypatch.setattr(engine.dialect, "do_commit", commit)
        commit(connection)  # type: ignore[arg-type]
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(engine.dialect, "do_commit", once)


def test_no_answer_to_a_commit_makes_anything_happen_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, payer = world.services.ledger, world.user(credits=20)
    h, late = hold(payer, 4), hold(payer, 5)
    calls: list[tuple[Callable[[], object], object, int]] = [
        (lambda: ledger.grant(payer, 7, reason="sorry"), 27, 27),
        (lambda: ledger.reserve([h]), {h.id: HoldState.OPEN}, 23),
        (lambda: ledger.close([settle(h, 3)]), {h.id: Closed(CloseState.SETTLED, 3)}, 24),
        (lambda: ledger.refund([h], reason="our fault"), 0, 27),
        (lambda: ledger.void([late], reason="expired"), {late.id: Closed(CloseState.RELEASED, 0)}, 27),
    ]
    for call, answer, balance in calls:
        answer_is_lost_once(ledger.engine, monkeypatch)
        assert (call(), available(world, payer)) == (answer, balance)
    assert [len(lines(world, kind)) for kind in ("grant", "reserve", "close", "refund", "void")] == [1] * 5
    assert unexplained(world, payer.pot) == 0


def test_what_settled_holds_were_charged_is_given_back_once(world: World) -> None:
    ledger, payer = world.services.ledger, world.user(credits=40)
    two, all_of_it, open_hold, released, free = (hold(payer, n) for n in (5, 6, 7, 8, 9))
    everything = [two, all_of_it, open_hold, released, free, hold(payer, 1)]
    ledger.reserve(everything[:-1])
    ledger.close([settle(two, 2), settle(all_of_it, 6), release(released), settle(free, 0)])
    assert ledger.refund(everything, reason="our fault") == 8
    assert ledger.refund(everything, reason="our fault") == 0
    assert {(x.id, x.amount) for x in lines(world, "refund")} == {(two.refund_id, 2), (all_of_it.refund_id, 6)}
    assert (available(world, payer), unexplained(world, payer.pot)) == (33, 0)


@pytest.mark.parametrize("call", ["reserve", "close", "void", "refund"])
@pytest.mark.parametrize("whom", ["user", "team"])
def test_who_is_deleted_between_two_statements_of_the_ledger(
    world: World, monkeypatch: pytest.MonkeyPatch, whom: str, call: str
) -> None:
    ledger, owner = world.services.ledger, world.user()
    team = add_team(world, owner, credits=50)
    payer = join(world, world.user(), team)
    h = hold(payer, 4)
    ledger.reserve([h])
    if call == "refund":
        ledger.close([settle(h, 2)])
    # What is read first stands in the way of a reserve; the others write upon what they have read.
    name = {"reserve": "by_id", "void": "by_id"}.get(call, "insert")
    query = getattr(rows, name)

    def somebody_is_faster(*arguments: Any) -> Any:
        monkeypatch.setattr(rows, name, query)
        delete_team(world, team) if whom == "team" else delete_user(world, payer)
        return query(*arguments)

    monkeypatch.setattr(rows, name, somebody_is_faster)
    gone = "payer_gone" if whom == "user" else "pot_gone"
    if call == "reserve":
        assert ledger.reserve([h]) == {h.id: "payer_gone" if whom == "user" else "open"}
    elif call == "refund":
        assert ledger.refund([h], reason="x") == 0
    else:
        closed = ledger.close([settle(h, 1)]) if call == "close" else ledger.void([h], reason="x")
        assert closed[h.id].state == gone


def test_a_close_that_another_worker_wrote_may_vanish_with_its_user(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, payer = world.services.ledger, world.user()
    h = hold(payer, 4)
    ledger.reserve([h])
    by_id = rows.by_id
    closes = [settle(h, 1)]

    def closed_then_deleted(tx: Any, ids: Any) -> Any:
        found = by_id(tx, ids)
        if closes:
            ledger.close([closes.pop()])
        elif found:
            delete_user(world, payer)
            return by_id(tx, ids)
        return found

    monkeypatch.setattr(rows, "by_id", closed_then_deleted)
    assert ledger.close([release(h)]) == {h.id: Closed(CloseState.PAYER_GONE, 0)}
