"""The queries on `fltr_auth`, each as the least-privilege role."""

import threading
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import DataError, IntegrityError

from fltr_pipeline.credits.holds import key_digest
from fltr_pipeline.stores.auth import people, pots, rows
from fltr_pipeline.stores.auth.people import Account, KeyPool
from fltr_pipeline.stores.auth.pots import KeyLimits
from fltr_pipeline.stores.auth.rows import LedgerRow, StoredRow
from fltr_pipeline.stores.database import transaction
from fltr_pipeline_tests.large import plans
from fltr_pipeline_tests.money import add_key, add_team
from fltr_pipeline_tests.world import World

POTS = ["user", "team", "api_key"]


def ask(world: World, query: Any, *arguments: object, **named: object) -> Any:
    with transaction(world.services.ledger.engine) as tx:
        return query(tx, *arguments, **named)


def ledger_row(user_id: str, amount: int = -3, metadata: Mapping[str, object] | None = None) -> LedgerRow:
    return LedgerRow(
        id=str(uuid.uuid4()), user_id=user_id, team_id=None, amount=amount, type="usage", operation="document_embed",
        resource_id="a document", metadata=metadata or {},
    )  # fmt: skip


def pot(world: World, kind: str, credits: int = 10) -> str:
    """A pot of that kind, and its id."""
    payer = world.user(credits)
    if kind == "user":
        return payer.user_id
    return add_team(world, payer, credits).id if kind == "team" else add_key(world, payer, credits).digest


def balance(world: World, kind: str, pot_id: str) -> int | None:
    found = ask(world, pots.balances, kind, [pot_id]).get(pot_id)
    assert found is None or isinstance(found, int)
    return found


def test_the_queries_run_as_the_role_that_may_do_nothing_else(world: World) -> None:
    assert world.services.ledger.engine.url.username == "fltr_pipeline"


# --- accounts ---------------------------------------------------------------------------------------------------------


def test_a_user_is_found_by_id_and_by_email_in_any_case(world: World) -> None:
    user_id = world.user().user_id
    world.change_auth("UPDATE users SET email = 'Ada.L@Example.org' WHERE id = %s", user_id)
    expected = Account(user_id, "Ada.L@Example.org", team_id=None)
    assert ask(world, people.account, user_id=user_id) == expected
    assert ask(world, people.account, email="ada.l@example.ORG") == expected
    assert ask(world, people.account, user_id=str(uuid.uuid4())) is None
    assert ask(world, people.account, email="%") is None


def test_an_account_names_the_team_that_pays(world: World) -> None:
    team, payer = pot(world, "team"), world.user()
    world.change_auth("UPDATE user_credits SET team_id = %s WHERE user_id = %s", team, payer.user_id)
    assert ask(world, people.account, user_id=payer.user_id).team_id == team
    world.change_auth("DELETE FROM user_credits WHERE user_id = %s", payer.user_id)
    assert ask(world, people.account, user_id=payer.user_id).team_id is None


def test_only_keys_with_a_balance_of_their_own_are_pools(world: World) -> None:
    owner, stranger = world.user(), world.user()
    team = add_team(world, owner)
    alone, shared, other = add_key(world, owner), add_key(world, owner, team=team), add_key(world, stranger)
    mine = {KeyPool(alone.digest, owner.user_id, None), KeyPool(shared.digest, owner.user_id, team.id)}
    theirs = KeyPool(other.digest, stranger.user_id, None)
    asked = [alone.digest, shared.digest, other.digest, key_digest("a key without a balance")]
    assert set(ask(world, people.pools, asked)) == {*mine, theirs}
    assert ask(world, people.pools, []) == []
    found = ask(world, people.pools_of_user, owner.user_id)
    assert set(found) == mine
    assert [p.digest for p in found] == sorted(p.digest for p in mine)


def test_a_key_is_found_by_its_digest_only_and_whatever_bytes_it_has(world: World) -> None:
    owner = world.user()
    key = "clé \N{KEY} \\ 'quoted'"
    world.change_auth("INSERT INTO api_key_credits (api_key, user_id) VALUES (%s, %s)", key, owner.user_id)
    assert ask(world, people.pools, [key]) == []
    assert ask(world, people.pools, [key_digest(key)]) == [KeyPool(key_digest(key), owner.user_id, None)]


def test_the_owner_of_a_pot_is_the_user_whose_deletion_takes_it_along(world: World) -> None:
    owner = world.user()
    team, key = add_team(world, owner), add_key(world, owner)
    for kind, pot_id in (("user", owner.user_id), ("team", team.id), ("api_key", key.digest)):
        assert ask(world, people.owner_of, kind, pot_id) == owner.user_id


def test_users_that_exist(world: World) -> None:
    one, two = world.user().user_id, world.user().user_id
    assert ask(world, people.existing, [one, str(uuid.uuid4()), two]) == {one, two}
    assert ask(world, people.existing, []) == set()


# --- the ledger's rows ------------------------------------------------------------------------------------------------


def test_a_row_is_inserted_once_and_read_back_as_it_was(world: World) -> None:
    user_id = world.user().user_id
    row = ledger_row(user_id, metadata={"kind": "reserve", "words": 'quoted " \\ \N{SNOWMAN}', "none": None})
    assert ask(world, rows.insert, [row]) == {row.id: -3}
    assert ask(world, rows.insert, [row, replace(row, amount=-9)]) == {}
    found = ask(world, rows.by_id, [row.id, str(uuid.uuid4())])
    assert found == {
        row.id: StoredRow(
            id=row.id, user_id=user_id, team_id=None, api_key_id=None, amount=-3, type="usage",
            operation="document_embed", resource_id="a document", metadata=row.metadata,
            created_at=found[row.id].created_at,
        )
    }  # fmt: skip
    assert ask(world, rows.insert, []) == ask(world, rows.by_id, []) == {}


def test_only_the_new_rows_of_a_batch_are_reported(world: World) -> None:
    user_id = world.user().user_id
    batch = [ledger_row(user_id, amount=-n) for n in range(1, 6)]
    ask(world, rows.insert, batch[1:3])
    assert ask(world, rows.insert, batch) == {r.id: r.amount for r in (batch[0], *batch[3:])}


def test_times_are_utc_whatever_the_servers_zone(world: World) -> None:
    world.change_auth(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %%I SET timezone = ''Asia/Tokyo''', current_database()); END $$"
    )
    row = ledger_row(world.user().user_id)
    ask(world, rows.insert, [row])
    at = ask(world, rows.by_id, [row.id])[row.id].created_at
    assert at.tzinfo is None
    assert abs(at - datetime.now(UTC).replace(tzinfo=None)) < timedelta(minutes=10)
    assert abs(rows.utc_now() - at) < timedelta(minutes=10)


def test_metadata_is_json_once_and_may_be_anything_that_others_wrote(world: World) -> None:
    user_id = world.user(credits=0).user_id
    row = ledger_row(user_id, metadata={"n": 1})
    ask(world, rows.insert, [row])
    assert world.auth_rows("SELECT json_typeof(transaction_metadata::json) FROM credit_transactions") == [("object",)]
    for n, written in enumerate(("null", '"a string"', "[1]")):
        world.change_auth(
            "INSERT INTO credit_transactions (id, user_id, amount, type, operation, transaction_metadata)"
            " VALUES (%s, %s, 1, 'bonus', 'grant', %s)",
            f"other {n}", user_id, written,
        )  # fmt: skip
    found = ask(world, rows.by_id, [row.id, "other 0", "other 1", "other 2"])
    assert [found[i].metadata for i in (row.id, "other 0", "other 1", "other 2")] == [{"n": 1}, {}, {}, {}]


def test_a_key_that_another_program_wrote_into_a_row_stays_where_it_is(world: World) -> None:
    payer = world.user(credits=0)
    key = add_key(world, payer)
    by_key, by_digest = (replace(ledger_row(payer.user_id), api_key_id=k) for k in (key.raw, key.digest))
    for row in (by_key, by_digest):
        ask(world, rows.insert, [row])
    assert [r.api_key_id for r in ask(world, rows.of_user, payer.user_id)] == [None, key.digest]
    assert key.raw not in repr(ask(world, rows.by_id, [by_key.id, by_digest.id]))


def test_the_rows_of_a_user_come_oldest_first_and_are_theirs_alone(world: World) -> None:
    user_id, other = world.user(credits=5).user_id, world.user(credits=7).user_id
    for row in [ledger_row(user_id, amount=-n) for n in (1, 2, 3)]:
        ask(world, rows.insert, [row])
    ask(world, rows.insert, [ledger_row(other)])
    assert [r.amount for r in ask(world, rows.of_user, user_id)] == [5, -1, -2, -3]
    assert ask(world, rows.of_user, str(uuid.uuid4())) == []


def test_a_row_for_a_user_who_is_gone_is_refused(world: World) -> None:
    with pytest.raises(IntegrityError):
        ask(world, rows.insert, [ledger_row(str(uuid.uuid4()))])


def test_a_row_of_a_deleted_team_keeps_its_place_without_the_team(world: World) -> None:
    team, user_id = pot(world, "team"), world.user().user_id
    row = replace(ledger_row(user_id), team_id=team)
    ask(world, rows.insert, [row])
    assert ask(world, rows.by_id, [row.id])[row.id].team_id == team
    world.change_auth("DELETE FROM teams WHERE id = %s", team)
    assert ask(world, rows.by_id, [row.id])[row.id].team_id is None


# --- holds that are open, and what explains a balance ---------------------------------------------------------------


def kind_row(user_id: str, kind: str, hold_id: str, amount: int = 0) -> LedgerRow:
    return ledger_row(user_id, amount, {"kind": kind, "hold_id": hold_id})


def test_a_hold_is_open_until_a_close_names_it(world: World) -> None:
    user_id = world.user().user_id
    first, second, closed = (replace(ledger_row(user_id, -n, {"kind": "reserve"}), id=f"h{n}") for n in (1, 2, 3))
    for row in (first, second, closed):
        ask(world, rows.insert, [row])
    others = [kind_row(user_id, "close", "h3", 3), kind_row(user_id, "refund", "h1"), ledger_row(user_id)]
    ask(world, rows.insert, [*others, kind_row(user_id, "void", "h4")])
    soon = rows.utc_now() + timedelta(minutes=1)
    assert [r.id for r in ask(world, rows.open_before, soon)] == ["h1", "h2"]
    assert ask(world, rows.open_before, rows.utc_now() - timedelta(minutes=1)) == []


def test_open_holds_are_never_looked_for_among_the_closes_one_by_one(world: World) -> None:
    """PostgreSQL has no statistics on this ledger, as soon after a restore, and takes a few rows for one."""
    found = plans(world.services.ledger.engine, lambda tx: rows.open_before(tx, rows.utc_now()), about="NOT EXISTS")
    assert "Hash Join" in found.nodes
    assert "Nested Loop" not in found.nodes


@pytest.mark.parametrize("kind", POTS)
def test_a_pot_is_explained_by_the_rows_that_name_it(world: World, kind: str) -> None:
    user_id, mine = world.user(credits=0).user_id, pot(world, kind, 0)
    rows_of_mine = [ledger_row(user_id, n, {"pot": f"{kind}:{mine}"}) for n in (-5, 2)]
    if kind == "user":
        rows_of_mine = [replace(r, user_id=mine) for r in rows_of_mine]
    elif kind == "team":
        rows_of_mine = [replace(r, team_id=mine) for r in rows_of_mine]
    else:
        rows_of_mine = [replace(r, api_key_id=mine) for r in rows_of_mine]
    elsewhere = [replace(r, id=str(uuid.uuid4()), metadata={"pot": "user:somebody"}) for r in rows_of_mine]
    ask(world, rows.insert, rows_of_mine + elsewhere)
    assert ask(world, rows.sum_of_pot, kind, mine) == -3
    assert ask(world, rows.sum_of_pot, kind, str(uuid.uuid4())) == 0


def test_rows_of_other_programs_explain_the_pot_that_they_would_have_meant(world: World) -> None:
    payer = world.user(credits=0)
    team, key = add_team(world, payer, 0), add_key(world, payer, 0, team=None)
    plain = ledger_row(payer.user_id, 1)
    named = [
        plain,
        replace(ledger_row(payer.user_id, 10), api_key_id="a key without a balance"),
        replace(ledger_row(payer.user_id, 100), team_id=team.id),
        replace(ledger_row(payer.user_id, 1_000), api_key_id=key.raw),
        replace(ledger_row(payer.user_id, 10_000), api_key_id=key.digest, team_id=team.id),
    ]
    ask(world, rows.insert, named)
    assert ask(world, rows.sum_of_pot, "user", payer.user_id) == 11
    assert ask(world, rows.sum_of_pot, "team", team.id) == 100
    assert ask(world, rows.sum_of_pot, "api_key", key.digest) == 11_000


# --- balances ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POTS)
def test_a_balance_is_taken_as_far_as_it_goes_and_given_back(world: World, kind: str) -> None:
    mine, other = pot(world, kind, 10), pot(world, kind, 10)
    assert ask(world, pots.take, kind, mine, 11) is False
    assert ask(world, pots.take, kind, mine, 10) is True
    assert ask(world, pots.take, kind, mine, 1) is False
    assert ask(world, pots.give, kind, mine, 4) is True
    unknown = str(uuid.uuid4())
    assert ask(world, pots.balances, kind, [mine, other, unknown]) == {mine: 4, other: 10}
    assert ask(world, pots.balances, kind, []) == {}
    assert ask(world, pots.take, kind, unknown, 0) is False
    assert ask(world, pots.give, kind, unknown, 1) is False


@pytest.mark.parametrize("kind", POTS)
def test_a_moved_balance_says_when_in_utc(world: World, kind: str) -> None:
    mine = pot(world, kind)
    table, key = {
        "user": ("user_credits", "user_id"),
        "team": ("teams", "id"),
        "api_key": ("api_key_credits", "encode(sha256(api_key::bytea), 'hex')"),
    }[kind]
    for move in (pots.take, pots.give):
        world.change_auth(f"UPDATE {table} SET updated_at = '2000-01-01' WHERE {key} = %s", mine)
        ask(world, move, kind, mine, 1)
        ((at,),) = world.auth_rows(f"SELECT updated_at FROM {table} WHERE {key} = %s", mine)
        assert abs(rows.utc_now() - at) < timedelta(minutes=10)


def test_a_balance_beyond_its_column_is_refused_whole(world: World) -> None:
    mine = pot(world, "user", 10)
    with pytest.raises(DataError):
        ask(world, pots.give, "user", mine, 2**31 - 1)
    assert balance(world, "user", mine) == 10


def test_takers_at_the_same_time_never_overdraw(world: World) -> None:
    mine = pot(world, "user", 10)
    start, took = threading.Barrier(4), list[bool]()

    def work() -> None:
        start.wait()
        took.extend(ask(world, pots.take, "user", mine, 3) for _ in range(2))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(took) == 3
    assert balance(world, "user", mine) == 1


# --- what an API key may spend ----------------------------------------------------------------------------------------


def used(world: World, digest: str) -> tuple[int, int]:
    found = ask(world, pots.limits, [digest], rows.utc_now())[digest]
    return found.used_today, found.used_this_month


def test_limits_are_as_the_key_has_them(world: World) -> None:
    owner = world.user()
    free, tight = add_key(world, owner), add_key(world, owner, daily=5, monthly=9)
    assert ask(world, pots.limits, [free.digest, tight.digest, key_digest("unknown")], rows.utc_now()) == {
        free.digest: KeyLimits(free.digest, None, None, 0, 0),
        tight.digest: KeyLimits(tight.digest, 5, 9, 0, 0),
    }
    assert ask(world, pots.limits, [], rows.utc_now()) == {}


@pytest.mark.parametrize(
    ("daily", "monthly", "left"),
    [(None, None, None), (10, None, 7), (None, 20, 16), (10, 20, 7), (10, 5, 1), (2, 9, -1)],
)
def test_the_tighter_limit_counts(daily: int | None, monthly: int | None, left: int | None) -> None:
    assert KeyLimits("a key", daily, monthly, used_today=3, used_this_month=4).left == left


def test_use_is_net_and_whoever_wrote_it(world: World) -> None:
    payer = world.user()
    key, other = add_key(world, payer, daily=100), add_key(world, payer, monthly=100)
    spent = ledger_row(payer.user_id, -7)
    ask(
        world,
        rows.insert,
        [
            replace(spent, id="ours", api_key_id=key.digest),
            replace(spent, id="by the key itself", api_key_id=key.raw),
            replace(spent, id="given back", api_key_id=key.digest, amount=2, type="refund"),
            replace(spent, id="bought", api_key_id=key.digest, amount=50, type="purchase"),
            replace(spent, id="granted", api_key_id=key.digest, amount=50, type="bonus"),
            replace(spent, id="of another", api_key_id=other.digest, amount=-1),
            replace(spent, id="of none"),
        ],
    )
    assert used(world, key.digest) == (12, 12)
    assert used(world, other.digest) == (1, 1)


def test_what_another_program_calls_held_at_is_its_own_business(world: World) -> None:
    payer = world.user()
    key = add_key(world, payer, daily=100)
    theirs = replace(ledger_row(payer.user_id, -7, {"held_at": "the reception"}), operation="chat")
    ask(world, rows.insert, [replace(theirs, api_key_id=key.digest)])
    assert used(world, key.digest) == (7, 7)


def test_use_counts_in_the_utc_day_and_month_of_its_hold(world: World) -> None:
    payer = world.user()
    key = add_key(world, payer, monthly=100_000)
    today = rows.utc_now().replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    moments = {
        "now": today,
        "yesterday": today - timedelta(seconds=1),
        "month": month,
        "last": month - timedelta(seconds=1),
    }
    for n, (name, at) in enumerate(moments.items()):
        ask(world, rows.insert, [replace(ledger_row(payer.user_id, -(10**n)), id=name, api_key_id=key.digest)])
        world.change_auth("UPDATE credit_transactions SET created_at = %s WHERE id = %s", at, name)
        # What is given back now counts where it was held, in whichever way that is written down.
        held = {"held_at": at.isoformat()} if n % 2 else {"held_at": f"{at.isoformat()}+00:00"}
        back = replace(ledger_row(payer.user_id, 2 * 10**n, held), type="refund", api_key_id=key.digest)
        ask(world, rows.insert, [back])
    in_month = sum(10**n for n, at in enumerate(moments.values()) if at >= month)
    of_today = sum(10**n for n, at in enumerate(moments.values()) if at >= today)
    assert used(world, key.digest) == (-of_today, -in_month)


@pytest.mark.parametrize("raw", ["sk-ünïcode", "back\\slash", r"\x41", r"\\", "'quoted'"])
def test_a_key_is_found_by_its_digest_whatever_its_characters(world: World, raw: str) -> None:
    payer = world.user()
    world.change_auth("INSERT INTO api_key_credits (api_key, user_id, credits) VALUES (%s, %s, 7)", raw, payer.user_id)
    assert ask(world, pots.balances, "api_key", [key_digest(raw)]) == {key_digest(raw): 7}
