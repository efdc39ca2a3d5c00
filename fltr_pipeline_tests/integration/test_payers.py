"""Who pays: an API key's own pool within its limits, else the team, else the user. And where the key is never found."""

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import chain, repeat

import pytest

from fltr_pipeline.credits.holds import Hold, HoldState, Payer, Pot, key_digest
from fltr_pipeline.pipeline.uploads import upload
from fltr_pipeline.stores.auth import pots, rows
from fltr_pipeline.stores.auth.rows import utc_now
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.money import Key, add_key, add_team, available, hold, join, lines, release, settle, unexplained
from fltr_pipeline_tests.world import World

TREATY = b"The treaty of Westphalia ended the thirty years war in 1648."
BREAD = b"# Bread\n\nFlour, water, salt and yeast; knead, let it rise, bake at 220 degrees for forty minutes.\n"


def upload_with(world: World, dataset: Dataset, raw_key: str, files: dict[str, bytes]) -> None:
    """As somebody does who shows an API key."""
    for name, data in files.items():
        path = world.blobs.parent / name
        path.write_bytes(data)
        assert list(upload(world.services, dataset, [(name, path)], api_key=raw_key))


def reserved(world: World, *holds: Hold) -> list[HoldState]:
    states = world.services.ledger.reserve(holds)
    return [states[h.id] for h in holds]


def held_at(world: World, what: Hold, days_ago: float) -> None:
    """Moves a hold into the past."""
    world.change_auth(
        "UPDATE credit_transactions SET created_at = %s WHERE id = %s", utc_now() - timedelta(days=days_ago), what.id
    )


# --- who pays ---------------------------------------------------------------------------------------------------------


def test_a_key_with_a_pool_pays_and_a_key_without_one_leaves_it_to_the_user(world: World) -> None:
    user = world.user()
    key, plain = add_key(world, user), key_digest("a key without a balance")
    assert world.services.ledger.payers(user.user_id, [key.digest, plain]) == {
        None: user,
        key.digest: Payer(user.user_id, Pot("api_key", key.digest), key.digest),
        plain: Payer(user.user_id, Pot("user", user.user_id), plain),
    }
    assert world.services.ledger.payers(user.user_id) == {None: user}


def test_a_key_of_another_account_pays_for_nobody_else(world: World) -> None:
    user, stranger = world.user(), world.user()
    mine, theirs = add_key(world, user), add_key(world, stranger)
    payers = world.services.ledger.payers(user.user_id, [theirs.digest, mine.digest])
    assert payers.keys() == {None, mine.digest}
    assert world.services.ledger.payers(stranger.user_id, [theirs.digest])[theirs.digest] == theirs.payer


def test_a_key_shared_with_a_team_pays_for_its_members_and_no_longer_for_others(world: World) -> None:
    owner, member, stranger = world.user(), world.user(), world.user()
    team, other_team = add_team(world, owner), add_team(world, stranger)
    key = add_key(world, owner, team=team)
    ask = world.services.ledger.payers
    assert ask(member.user_id, [key.digest]).keys() == {None}
    joined = join(world, member, team)
    assert ask(member.user_id, [key.digest]) == {None: joined, key.digest: replace(key.payer, user_id=member.user_id)}
    assert ask(owner.user_id, [key.digest])[key.digest] == key.payer, "its owner need not be in the team"
    join(world, stranger, other_team)
    assert ask(stranger.user_id, [key.digest]).keys() == {None}


def test_nobody_pays_for_a_user_who_is_gone(world: World) -> None:
    user = world.user()
    key = add_key(world, user)
    world.change_auth("DELETE FROM users WHERE id = %s", user.user_id)
    assert world.services.ledger.payers(user.user_id, [key.digest, key_digest("plain")]) == {}


def test_the_key_that_an_upload_names_pays_for_it_and_for_nothing_else(world: World) -> None:
    user = world.user(credits=50)
    key, plain = add_key(world, user, credits=9), key_digest("a key without a balance")
    dataset = world.dataset(user)
    upload_with(world, dataset, key.raw, {"a.txt": TREATY})
    upload_with(world, dataset, "a key without a balance", {"b.md": BREAD})
    world.upload(dataset, {"c.txt": TREATY + b" Or so."})
    world.process(dataset)
    assert set(world.statuses(dataset).values()) == {"ready"}
    assert (available(world, key.payer), available(world, user)) == (7, 46)
    spent = {line.api_key_id: line.metadata["pot"] for line in lines(world, "reserve")}
    assert spent == {key.digest: key.payer.pot.name, plain: user.pot.name, None: user.pot.name}
    assert set(world.rows("SELECT DISTINCT api_key_id, pot_kind, pot_id FROM pipeline.charges WHERE amount > 0")) == {
        (key.digest, "api_key", key.digest), (plain, "user", user.user_id), (None, "user", user.user_id)
    }  # fmt: skip
    assert unexplained(world, key.payer.pot) == unexplained(world, user.pot) == 0


def test_a_pot_that_is_deleted_is_not_replaced_by_another(world: World) -> None:
    user = world.user()
    key = add_key(world, user)
    h = hold(key.payer)
    assert reserved(world, h) == ["open"]
    world.change_auth("DELETE FROM api_key_credits")
    late = hold(key.payer)
    assert reserved(world, late) == ["pot_gone"]
    assert world.services.ledger.close([release(h)])[h.id].state == "pot_gone"
    assert available(world, user) == 100


def test_a_key_of_another_account_fails_the_document_and_charges_nothing(world: World) -> None:
    user, stranger = world.user(), world.user()
    theirs = add_key(world, stranger)
    dataset = world.dataset(user)
    upload_with(world, dataset, theirs.raw, {"a.txt": TREATY})
    world.upload(dataset, {"b.md": BREAD})
    _, extracted, *_ = world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "failed", "b.md": "ready"}
    ((code, message),) = world.rows(
        "SELECT error_code, error_message FROM pipeline.documents WHERE stage IS NULL AND error_code IS NOT NULL"
    )
    assert code == "foreign_payer"
    assert "a.txt" in message
    assert theirs.raw not in message
    assert [f.code for f in extracted.failures] == ["foreign_payer"]
    assert (available(world, theirs.payer), available(world, user)) == (100, 98)
    # Uploaded once more without that key, the owner pays.
    world.upload(dataset, {"a.txt": TREATY})
    world.process(dataset)
    assert world.statuses(dataset) == {"a.txt": "ready", "b.md": "ready"}
    assert (available(world, theirs.payer), available(world, user)) == (100, 96)


# --- limits -----------------------------------------------------------------------------------------------------------


def spendable(world: World, key: Key) -> int:
    return world.services.ledger.spendable([key.payer.pot])[key.payer.pot]


def test_a_day_gets_no_more_than_the_daily_limit_net(world: World) -> None:
    key = add_key(world, world.user(), daily=5)
    first = hold(key.payer, 3)
    assert reserved(world, first, hold(key.payer, 3)) == ["open", "insufficient"]
    assert spendable(world, key) == 2
    world.services.ledger.close([settle(first, 1)])
    assert spendable(world, key) == 4
    assert reserved(world, hold(key.payer, 4)) == ["open"]
    assert reserved(world, hold(key.payer, 1)) == ["insufficient"]
    assert (spendable(world, key), available(world, key.payer)) == (0, 95)


def test_a_month_gets_no_more_than_the_monthly_limit(world: World) -> None:
    key = add_key(world, world.user(), monthly=5)
    h = hold(key.payer, 5)
    assert reserved(world, h, hold(key.payer, 1)) == ["open", "insufficient"]
    held_at(world, h, utc_now().day - 1)
    assert reserved(world, hold(key.payer, 1)) == ["insufficient"]
    held_at(world, h, utc_now().day)
    assert reserved(world, hold(key.payer, 5), hold(key.payer, 1)) == ["open", "insufficient"]


def test_no_limit_leaves_the_balance(world: World) -> None:
    user = world.user(credits=30)
    key = add_key(world, user, credits=7)
    assert reserved(world, hold(key.payer, 6), hold(key.payer, 2)) == ["open", "insufficient"]
    limited = add_key(world, user, credits=3, daily=1_000, monthly=2_000)
    pots = [key.payer.pot, limited.payer.pot, user.pot, Pot("api_key", "unknown")]
    assert world.services.ledger.spendable(pots) == {pots[0]: 1, pots[1]: 3, pots[2]: 30}


def test_what_is_given_back_later_counts_in_the_day_of_its_hold(world: World) -> None:
    ledger, key = world.services.ledger, add_key(world, world.user(), daily=5)
    released, refunded = hold(key.payer, 2), hold(key.payer, 3)
    assert reserved(world, released, refunded) == ["open", "open"]
    for h in (released, refunded):
        held_at(world, h, 1)
    ledger.close([release(released), settle(refunded, 3)])
    ledger.refund([refunded], reason="our fault")
    assert available(world, key.payer) == 100
    assert spendable(world, key) == 5
    assert reserved(world, hold(key.payer, 5), hold(key.payer, 1)) == ["open", "insufficient"]


def test_what_other_programs_spent_with_the_key_counts(world: World) -> None:
    user = world.user()
    key = add_key(world, user, daily=10)
    for name, amount, kind in ((key.raw, -2, "usage"), (key.digest, -3, "usage"), (key.raw, 90, "purchase")):
        world.change_auth(
            "INSERT INTO credit_transactions (id, user_id, amount, type, operation, api_key_id, created_at)"
            " VALUES (gen_random_uuid(), %s, %s, %s, 'chat', %s, %s)",
            user.user_id, amount, kind, name, utc_now(),
        )  # fmt: skip
    assert spendable(world, key) == 5
    assert reserved(world, hold(key.payer, 6), hold(key.payer, 5)) == ["insufficient", "open"]


def test_a_hold_that_is_made_as_the_day_ends_counts_in_that_day(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock passes midnight between its row and the look at the limit."""
    key = add_key(world, world.user(), daily=5)
    earlier = hold(key.payer, 3)
    assert reserved(world, earlier) == ["open"]
    held_at(world, earlier, 1)
    midnight = utc_now().replace(hour=0, minute=0, second=0, microsecond=0)
    clock = chain([midnight - timedelta(seconds=1)], repeat(midnight + timedelta(seconds=1)))
    for module in (rows, pots):
        monkeypatch.setattr(module, "utc_now", lambda: next(clock))
    assert reserved(world, hold(key.payer, 4)) == ["open"], "of the day that has begun"
    spent = world.auth_rows(
        "SELECT -sum(amount) FROM credit_transactions WHERE amount < 0 AND created_at < %s", midnight
    )
    assert spent == [(3,)]


def test_what_must_stay_for_later_steps_must_be_within_the_limit_too(world: World) -> None:
    ledger, key = world.services.ledger, add_key(world, world.user(), daily=5)
    h = hold(key.payer, 4)
    assert ledger.reserve([h], leaving=2) == {h.id: HoldState.INSUFFICIENT}
    assert ledger.reserve([h], leaving=1) == {h.id: HoldState.OPEN}
    assert ledger.reserve([h], leaving=9) == {h.id: HoldState.OPEN}, "it is reserved already"


def test_many_at_once_never_exceed_the_limit(world: World) -> None:
    ledger, key = world.services.ledger, add_key(world, world.user(), credits=1_000, daily=20, monthly=50)
    start, states = threading.Barrier(8), list[HoldState]()

    def work() -> None:
        start.wait()
        for _ in range(4):
            states.extend(ledger.reserve([hold(key.payer, 3), hold(key.payer, 2)]).values())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(states) == 64
    assert set(states) == {HoldState.OPEN, HoldState.INSUFFICIENT}
    spent = -sum(line.amount for line in lines(world, "reserve"))
    assert spent <= 20
    assert (available(world, key.payer), spendable(world, key)) == (1_000 - spent, 20 - spent)
    while reserved(world, hold(key.payer, 1)) == ["open"]:
        spent += 1
    assert spent == 20


def test_a_document_that_waits_for_the_limit_goes_on_the_next_day(world: World) -> None:
    user = world.user(credits=50)
    key = add_key(world, user, daily=3)
    dataset = world.dataset(user)
    upload_with(world, dataset, key.raw, {"a.txt": TREATY, "b.md": BREAD})
    world.process(dataset)
    assert sorted(world.statuses(dataset).values()) == ["awaiting_credits", "ready"]
    assert world.rows("SELECT pot_kind, pot_id FROM pipeline.documents WHERE credits_needed IS NOT NULL") == [
        ("api_key", key.digest)
    ]
    world.process(dataset)
    assert (available(world, key.payer), available(world, user)) == (98, 50)
    world.change_auth("UPDATE credit_transactions SET created_at = created_at - interval '1 day'")
    world.process(dataset)
    assert set(world.statuses(dataset).values()) == {"ready"}
    assert (available(world, key.payer), available(world, user)) == (96, 50)


# --- the key itself ---------------------------------------------------------------------------------------------------


def tables(world: World) -> Iterator[tuple[str, str]]:
    """Every table of both databases: which function looks into it, and its name."""
    query = (
        "SELECT quote_ident(table_schema) || '.' || quote_ident(table_name) FROM information_schema.tables"
        " WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')"
    )
    yield from (("rows", name) for (name,) in world.rows(query))
    yield from (("auth_rows", name) for (name,) in world.auth_rows(query))


def tables_with(world: World, secret: str) -> set[str]:
    return {
        name
        for look, name in tables(world)
        if getattr(world, look)(f"SELECT 1 FROM {name} t WHERE position(%s IN t::text) > 0 LIMIT 1", secret)
    }


def test_the_key_itself_is_nowhere_but_in_its_own_table(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    user, stranger = world.user(), world.user()
    key, poor, theirs = add_key(world, user), add_key(world, user, credits=1), add_key(world, stranger)
    dataset = world.dataset(user)
    upload_with(world, dataset, key.raw, {"a.txt": TREATY, "bad.txt": b""})
    upload_with(world, dataset, poor.raw, {"b.md": BREAD})
    upload_with(world, dataset, theirs.raw, {"c.txt": TREATY})
    reports = world.process(dataset)
    statuses = {"a.txt": "ready", "bad.txt": "failed", "b.md": "awaiting_credits", "c.txt": "failed"}
    assert world.statuses(dataset) == statuses
    assert {"public.credit_transactions", "pipeline.charges"} <= tables_with(world, key.digest)
    for secret in (key.raw, poor.raw, theirs.raw):
        assert tables_with(world, secret) == {"public.api_key_credits"}
        assert secret not in caplog.text
        assert secret not in repr(reports)
        assert secret not in repr(world.statement(user))
