"""What a pot had before the ledger: the opening row, written once, under the lock of the pot's balance."""

import threading
import time
from dataclasses import replace

import psycopg

from fltr_pipeline.credits.holds import HoldState, Payer
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline_tests.money import add_key, add_team, available, hold, join, lines, unexplained
from fltr_pipeline_tests.world import World


def opening(world: World) -> tuple[int, int]:
    """What the one opening row says: the balance, and what of it no row explains."""
    (line,) = lines(world, "opening")
    return line.metadata["balance"], line.metadata["opening"]


def another(world: World) -> Ledger:
    """As another process would have it: it has seen no pot yet."""
    return Ledger(world.services.ledger.engine)


def test_the_first_reserve_says_what_there_was_before_it(world: World) -> None:
    payer = world.user(credits=10)
    world.change_auth("UPDATE user_credits SET credits = credits + 15")  # no row explains these
    world.services.ledger.reserve([hold(payer, 3), hold(payer, 4)])
    (line,) = lines(world, "opening")
    assert (line.id, line.user_id, line.amount, line.type) == (payer.pot.opening_id, payer.user_id, 0, "bonus")
    assert opening(world) == (25, 15)
    for ledger in (world.services.ledger, another(world)):
        ledger.reserve([hold(payer, 1)])
        ledger.grant(payer, 50, reason="more")
    assert opening(world) == (25, 15)
    assert unexplained(world, payer.pot) == 0


def test_the_first_grant_says_what_there_was_before_it(world: World) -> None:
    payer = world.user(credits=10)
    assert world.services.ledger.grant(payer, 5, reason="welcome") == 15
    assert opening(world) == (10, 0)
    another(world).reserve([hold(payer)])
    assert opening(world) == (10, 0)


def test_what_takes_nothing_opens_nothing(world: World) -> None:
    payer = world.user(credits=2)
    ledger = world.services.ledger
    poor = hold(payer, 3)
    assert ledger.reserve([poor]) == {poor.id: HoldState.INSUFFICIENT}
    ledger.void([poor], reason="expired")
    assert lines(world, "opening") == []
    ledger.reserve([poor, hold(payer, 1)])
    assert opening(world) == (2, 0)


def test_a_pot_that_lost_what_its_rows_say_opens_below_nothing(world: World) -> None:
    payer = world.user(credits=10)
    world.change_auth("UPDATE user_credits SET credits = 4")
    world.services.ledger.reserve([hold(payer, 1)])
    assert opening(world) == (4, -6)
    assert unexplained(world, payer.pot) == 0


def test_the_opening_of_a_team_or_a_key_is_of_its_owner(world: World) -> None:
    owner, member = world.user(credits=10), world.user(credits=20)
    team = add_team(world, owner, credits=30)
    joined, key = join(world, member, team), add_key(world, owner, credits=40, team=team)
    shared = replace(key.payer, user_id=member.user_id)
    for payer, balance in ((joined, 30), (shared, 40)):
        world.services.ledger.reserve([hold(payer)])
        (line,) = [x for x in lines(world, "opening") if x.id == payer.pot.opening_id]
        assert (line.user_id, line.team_id, line.api_key_id) == (owner.user_id, payer.team_id, payer.api_key_id)
        assert (line.metadata["pot"], line.metadata["balance"]) == (payer.pot.name, balance)
        assert (line.metadata["opening"], unexplained(world, payer.pot)) == (balance, 0)


def test_a_purchase_under_way_is_no_part_of_the_opening(world: World) -> None:
    """The reserve waits for the balance's lock; what it then reads must be what the other transaction committed."""
    payer = world.user(credits=10)
    with psycopg.connect(world.auth_admin) as application:
        application.execute("UPDATE user_credits SET credits = credits + 50")
        application.execute(
            "INSERT INTO credit_transactions (id, user_id, amount, type, operation)"
            " VALUES ('p', %s, 50, 'purchase', 'x')",
            [payer.user_id],
        )
        reserving = threading.Thread(target=world.services.ledger.reserve, args=([hold(payer, 3)],))
        reserving.start()
        while world.auth_rows(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ) == [(0,)]:
            assert reserving.is_alive(), "it did not wait for the purchase"
            time.sleep(0.01)
        application.commit()
    reserving.join()
    assert opening(world) == (60, 0)
    assert unexplained(world, payer.pot) == 0


def test_first_reserves_at_the_same_time_write_one_opening(world: World) -> None:
    for credits in (50, 60, 70):
        payer = world.user(credits)
        start = threading.Barrier(6)

        def reserve(payer: Payer = payer, start: threading.Barrier = start) -> None:
            ledger = another(world)
            start.wait()
            ledger.reserve([hold(payer, 2), hold(payer, 3)])

        threads = [threading.Thread(target=reserve) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [x.metadata["opening"] for x in lines(world, "opening") if x.user_id == payer.user_id] == [0]
        assert (available(world, payer), unexplained(world, payer.pot)) == (credits - 30, 0)
