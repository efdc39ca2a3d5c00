"""The queries on `fltr_auth`, each as the least-privilege role."""

import threading
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import DataError, IntegrityError

from fltr_pipeline.stores import auth
from fltr_pipeline.stores.auth import Account, LedgerRow, StoredRow
from fltr_pipeline.stores.database import transaction
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
    user_id = world.user(credits).user_id
    if kind == "user":
        return user_id
    pot_id = str(uuid.uuid4())
    if kind == "team":
        query = "INSERT INTO teams (id, name, owner_id, credits) VALUES (%s, 'team', %s, %s)"
    else:
        query = "INSERT INTO api_key_credits (api_key, user_id, credits) VALUES (%s, %s, %s)"
    world.change_auth(query, pot_id, user_id, credits)
    return pot_id


def balance(world: World, kind: str, pot_id: str) -> int | None:
    found = ask(world, auth.balances, kind, [pot_id]).get(pot_id)
    assert found is None or isinstance(found, int)
    return found


def test_the_queries_run_as_the_role_that_may_do_nothing_else(world: World) -> None:
    assert world.services.ledger.engine.url.username == "fltr_pipeline"


# --- accounts ---------------------------------------------------------------------------------------------------------


def test_a_user_is_found_by_id_and_by_email_in_any_case(world: World) -> None:
    user_id = world.user().user_id
    world.change_auth("UPDATE users SET email = 'Ada.L@Example.org' WHERE id = %s", user_id)
    expected = Account(user_id, "Ada.L@Example.org", team_id=None, has_credits_row=True)
    assert ask(world, auth.account, user_id=user_id) == expected
    assert ask(world, auth.account, email="ada.l@example.ORG") == expected
    assert ask(world, auth.account, user_id=str(uuid.uuid4())) is None
    assert ask(world, auth.account, email="%") is None


def test_an_account_names_the_team_that_pays_and_whether_there_is_a_balance(world: World) -> None:
    team, user_id = pot(world, "team"), world.user().user_id
    world.change_auth("UPDATE user_credits SET team_id = %s WHERE user_id = %s", team, user_id)
    assert ask(world, auth.account, user_id=user_id).team_id == team
    world.change_auth("DELETE FROM user_credits WHERE user_id = %s", user_id)
    found = ask(world, auth.account, user_id=user_id)
    assert (found.team_id, found.has_credits_row) == (None, False)


# --- the ledger's rows ------------------------------------------------------------------------------------------------


def test_a_row_is_inserted_once_and_read_back_as_it_was(world: World) -> None:
    user_id = world.user().user_id
    row = ledger_row(user_id, metadata={"kind": "reserve", "words": 'quoted " \\ \N{SNOWMAN}', "none": None})
    assert ask(world, auth.insert, [row]) == {row.id: -3}
    assert ask(world, auth.insert, [row, replace(row, amount=-9)]) == {}
    found = ask(world, auth.rows, [row.id, str(uuid.uuid4())])
    assert found == {
        row.id: StoredRow(
            id=row.id, team_id=None, amount=-3, type="usage", operation="document_embed", resource_id="a document",
            metadata=row.metadata, created_at=found[row.id].created_at,
        )
    }  # fmt: skip
    assert ask(world, auth.insert, []) == ask(world, auth.rows, []) == {}


def test_only_the_new_rows_of_a_batch_are_reported(world: World) -> None:
    user_id = world.user().user_id
    batch = [ledger_row(user_id, amount=-n) for n in range(1, 6)]
    ask(world, auth.insert, batch[1:3])
    assert ask(world, auth.insert, batch) == {r.id: r.amount for r in (batch[0], *batch[3:])}


def test_times_are_utc_whatever_the_servers_zone(world: World) -> None:
    world.change_auth(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %%I SET timezone = ''Asia/Tokyo''', current_database()); END $$"
    )
    row = ledger_row(world.user().user_id)
    ask(world, auth.insert, [row])
    at = ask(world, auth.rows, [row.id])[row.id].created_at
    assert at.tzinfo is None
    assert abs(at - datetime.now(UTC).replace(tzinfo=None)) < timedelta(minutes=10)
    assert abs(auth.utc_now() - at) < timedelta(minutes=10)


def test_metadata_is_json_once_and_may_be_anything_that_others_wrote(world: World) -> None:
    user_id = world.user(credits=0).user_id
    row = ledger_row(user_id, metadata={"n": 1})
    ask(world, auth.insert, [row])
    assert world.auth_rows("SELECT json_typeof(transaction_metadata::json) FROM credit_transactions") == [("object",)]
    for n, written in enumerate(("null", '"a string"', "[1]")):
        world.change_auth(
            "INSERT INTO credit_transactions (id, user_id, amount, type, operation, transaction_metadata)"
            " VALUES (%s, %s, 1, 'bonus', 'grant', %s)",
            f"other {n}", user_id, written,
        )  # fmt: skip
    found = ask(world, auth.rows, [row.id, "other 0", "other 1", "other 2"])
    assert [found[i].metadata for i in (row.id, "other 0", "other 1", "other 2")] == [{"n": 1}, {}, {}, {}]


def test_the_rows_of_a_user_come_oldest_first_and_are_theirs_alone(world: World) -> None:
    user_id, other = world.user(credits=5).user_id, world.user(credits=7).user_id
    rows = [ledger_row(user_id, amount=-n) for n in (1, 2, 3)]
    for row in rows:
        ask(world, auth.insert, [row])
    ask(world, auth.insert, [ledger_row(other)])
    assert [r.amount for r in ask(world, auth.rows_of_user, user_id)] == [5, -1, -2, -3]
    assert ask(world, auth.rows_of_user, str(uuid.uuid4())) == []


def test_a_row_for_a_user_who_is_gone_is_refused(world: World) -> None:
    with pytest.raises(IntegrityError):
        ask(world, auth.insert, [ledger_row(str(uuid.uuid4()))])


def test_a_row_of_a_deleted_team_keeps_its_place_without_the_team(world: World) -> None:
    team, user_id = pot(world, "team"), world.user().user_id
    row = replace(ledger_row(user_id), team_id=team)
    ask(world, auth.insert, [row])
    assert ask(world, auth.rows, [row.id])[row.id].team_id == team
    world.change_auth("DELETE FROM teams WHERE id = %s", team)
    assert ask(world, auth.rows, [row.id])[row.id].team_id is None


# --- balances ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POTS)
def test_a_balance_is_taken_as_far_as_it_goes_and_given_back(world: World, kind: str) -> None:
    mine, other = pot(world, kind, 10), pot(world, kind, 10)
    assert ask(world, auth.take, kind, mine, 11) is False
    assert ask(world, auth.take, kind, mine, 10) is True
    assert ask(world, auth.take, kind, mine, 1) is False
    assert ask(world, auth.give, kind, mine, 4) is True
    unknown = str(uuid.uuid4())
    assert ask(world, auth.balances, kind, [mine, other, unknown]) == {mine: 4, other: 10}
    assert ask(world, auth.balances, kind, []) == {}
    assert ask(world, auth.take, kind, unknown, 0) is False
    assert ask(world, auth.give, kind, unknown, 1) is False


@pytest.mark.parametrize("kind", POTS)
def test_a_moved_balance_says_when_in_utc(world: World, kind: str) -> None:
    mine = pot(world, kind)
    table, key = {
        "user": ("user_credits", "user_id"),
        "team": ("teams", "id"),
        "api_key": ("api_key_credits", "api_key"),
    }[kind]
    for move in (auth.take, auth.give):
        world.change_auth(f"UPDATE {table} SET updated_at = '2000-01-01' WHERE {key} = %s", mine)
        ask(world, move, kind, mine, 1)
        ((at,),) = world.auth_rows(f"SELECT updated_at FROM {table} WHERE {key} = %s", mine)
        assert abs(auth.utc_now() - at) < timedelta(minutes=10)


def test_a_balance_beyond_its_column_is_refused_whole(world: World) -> None:
    mine = pot(world, "user", 10)
    with pytest.raises(DataError):
        ask(world, auth.give, "user", mine, 2**31 - 1)
    assert balance(world, "user", mine) == 10


def test_takers_at_the_same_time_never_overdraw(world: World) -> None:
    mine = pot(world, "user", 10)
    start, took = threading.Barrier(4), list[bool]()

    def work() -> None:
        start.wait()
        took.extend(ask(world, auth.take, "user", mine, 3) for _ in range(2))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(took) == 3
    assert balance(world, "user", mine) == 1
