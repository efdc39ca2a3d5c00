"""The indexes of `fltr_auth` that would help: which are missing is seen by any role, and each is really used."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, event

from fltr_pipeline.stores.auth import people, pots, rows, scan
from fltr_pipeline.stores.auth.rows import KEY_DIGEST
from fltr_pipeline.stores.schema import AUTH_ROLE, indexes, init_auth_copy
from fltr_pipeline.stores.schema.connection import as_role
from fltr_pipeline.stores.schema.indexes import HELPFUL, HelpfulIndex
from fltr_pipeline_tests.world import World

OF_USER, OF_TEAM, OF_KEY, KEYS_OF_USER, BY_DIGEST = HELPFUL


@pytest.fixture
def auth(new_database: Callable[[], str]) -> str:
    url = new_database()
    init_auth_copy(url)
    return url


def test_an_index_is_named_as_drizzle_names_it() -> None:
    assert OF_USER.name == "credit_transactions_user_id_created_at_idx"
    assert OF_USER.drizzle == 'index("credit_transactions_user_id_created_at_idx").on(t.userId, t.createdAt)'
    assert KEYS_OF_USER.drizzle == 'index("api_key_credits_user_id_idx").on(t.userId)'
    assert BY_DIGEST.drizzle == f'index("api_key_credits_api_key_idx").on(sql`{KEY_DIGEST}`)'


MADE: list[tuple[str, list[HelpfulIndex]]] = [
    ("SELECT", []),
    ("CREATE INDEX ON credit_transactions (user_id, created_at)", [OF_USER]),
    ("CREATE INDEX ON credit_transactions (user_id, created_at, id)", [OF_USER]),
    ("CREATE INDEX ON credit_transactions (user_id, created_at DESC) INCLUDE (amount)", [OF_USER]),
    ("CREATE UNIQUE INDEX ON credit_transactions (team_id, id)", [OF_TEAM]),
    ("CREATE INDEX ON credit_transactions (api_key_id, created_at, lower(type))", [OF_KEY]),
    ("CREATE INDEX ON api_key_credits (user_id)", [KEYS_OF_USER]),
    (f"CREATE INDEX ON api_key_credits (({KEY_DIGEST}), user_id)", [BY_DIGEST]),
    ("ALTER TABLE api_key_credits ALTER api_key TYPE varchar(255);"
     f" CREATE INDEX ON api_key_credits (({KEY_DIGEST}))", [BY_DIGEST]),
    ("CREATE INDEX ON api_key_credits (encode(sha256(api_key::bytea), 'hex'))", []),
    ("CREATE INDEX ON credit_transactions (created_at, user_id)", []),
    ("CREATE INDEX ON credit_transactions (user_id)", []),
    ("CREATE INDEX ON credit_transactions (user_id) INCLUDE (created_at)", []),
    ("CREATE INDEX ON credit_transactions (team_id) WHERE amount < 0", []),
    ("CREATE INDEX ON credit_transactions (lower(team_id))", []),
    ("CREATE INDEX ON credit_transactions USING hash (team_id)", []),
    ("CREATE INDEX ON user_credits (team_id)", []),
    ("CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.credit_transactions (team_id text);"
     " CREATE INDEX ON elsewhere.credit_transactions (team_id)", []),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "there"), MADE)
def test_what_stands_in_for_a_helpful_index(auth: str, statement: str, there: list[HelpfulIndex]) -> None:
    with psycopg.connect(auth) as connection:
        connection.execute(statement.encode())
        assert set(indexes.missing(connection)) == set(HELPFUL) - set(there)


def test_the_least_privilege_role_sees_which_are_missing(auth: str) -> None:
    assert indexes.missing(as_role(auth, AUTH_ROLE)) == HELPFUL


# --- are they used? ---------------------------------------------------------------------------------------------------

LOAD = """
INSERT INTO users (id, name, email, email_verified)
SELECT 'u' || n, 'x', 'u' || n, true FROM generate_series(1, 2000) n;
INSERT INTO teams (id, name, owner_id, credits) SELECT 't' || n, 'x', 'u' || n, 5 FROM generate_series(1, 2000) n;
INSERT INTO api_key_credits (api_key, user_id, credits, daily_limit)
SELECT 'k' || n, 'u' || n, 5, 5 FROM generate_series(1, 2000) n;
INSERT INTO credit_transactions (id, user_id, team_id, api_key_id, amount, type, operation, created_at)
SELECT n, 'u' || n % 2000 + 1, CASE WHEN n % 3 = 0 THEN 't' || n % 2000 + 1 END,
       CASE WHEN n % 3 = 1 THEN encode(sha256(('k' || n % 2000 + 1)::bytea), 'hex') END, -1, 'usage', 'x',
       now() AT TIME ZONE 'UTC'
FROM generate_series(1, 40000) n;
"""

DIGEST = hashlib.sha256(b"k7").hexdigest()

QUERIES: dict[str, tuple[HelpfulIndex, Callable[[Connection], object]]] = {
    "statement": (OF_USER, lambda tx: rows.of_user(tx, "u7")),
    "held of a user": (OF_USER, lambda tx: scan.held(tx, "user", "u7")),
    "first hold on a user's balance": (OF_USER, lambda tx: rows.sum_of_pot(tx, "user", "u7")),
    "held of a team": (OF_TEAM, lambda tx: scan.held(tx, "team", "t7")),
    "first hold on a team's balance": (OF_TEAM, lambda tx: rows.sum_of_pot(tx, "team", "t7")),
    "limits of a key": (OF_KEY, lambda tx: pots.limits(tx, [DIGEST], rows.utc_now())),
    "held of a key": (OF_KEY, lambda tx: scan.held(tx, "api_key", DIGEST)),
    "keys of a user": (KEYS_OF_USER, lambda tx: people.pools_of_user(tx, "u7")),
    "pool of a key": (BY_DIGEST, lambda tx: pots.balances(tx, "api_key", [DIGEST])),
    "who may use a key": (BY_DIGEST, lambda tx: people.pools(tx, [DIGEST])),
}


@contextmanager
def plans_of(tx: Connection) -> Iterator[list[str]]:
    """The plan of each statement, asked for before it runs."""
    found: list[str] = []

    def explain(_: Connection, cursor: Any, statement: str, parameters: Any, *__: object) -> None:
        with cursor.connection.cursor() as other:
            found.append("\n".join(row[0] for row in other.execute(f"EXPLAIN {statement}", parameters)))

    event.listen(tx, "before_cursor_execute", explain)
    yield found
    event.remove(tx, "before_cursor_execute", explain)


def test_each_helps_the_queries_that_it_is_said_to_help(world: World) -> None:
    with psycopg.connect(world.auth_admin, autocommit=True) as connection:
        connection.execute(LOAD.encode())
        for index in HELPFUL:
            connection.execute(f"CREATE INDEX {index.name} ON {index.table} ({index.of})".encode())
        connection.execute("VACUUM ANALYZE")
    for name, (index, query) in QUERIES.items():
        with scan.snapshot(world.services.ledger.engine) as tx, plans_of(tx) as plans:
            query(tx)
        assert index.name in "\n".join(plans), (name, plans)
    assert {index for index, _ in QUERIES.values()} == set(HELPFUL)
