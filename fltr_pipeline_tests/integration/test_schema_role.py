"""The least-privilege role of `fltr_auth`: what it can do, and above all what it can't."""

from collections.abc import Callable
from importlib import resources

import psycopg
import pytest

from fltr_pipeline.stores import schema
from fltr_pipeline.stores.schema import AUTH_ROLE, init_auth_copy
from fltr_pipeline.stores.schema.connection import as_role, transaction
from fltr_pipeline.stores.schema.development import add_user

SCRIPT = resources.files(schema).joinpath("auth_role.sql").read_bytes()

ALLOWED = [
    "SELECT id, email FROM users",
    "SELECT id, name, owner_id, credits, updated_at FROM teams",
    "SELECT * FROM user_credits",
    "SELECT * FROM api_key_credits",
    "SELECT * FROM credit_transactions",
    "SELECT credits FROM user_credits FOR UPDATE",
    "SELECT credits FROM teams FOR UPDATE",
    "UPDATE user_credits SET credits = credits - 1, updated_at = now() AT TIME ZONE 'UTC' WHERE credits >= 1",
    "UPDATE teams SET credits = credits - 1, updated_at = now() AT TIME ZONE 'UTC' WHERE credits >= 1",
    "UPDATE api_key_credits SET credits = credits - 1, updated_at = now() AT TIME ZONE 'UTC' WHERE credits >= 1",
    "INSERT INTO credit_transactions (id, user_id, amount, type) SELECT 'h', id, -1, 'usage' FROM users"
    " ON CONFLICT (id) DO NOTHING RETURNING id, amount",
]

FORBIDDEN = [
    "SELECT name FROM users",
    "SELECT * FROM users",
    "UPDATE users SET email = 'x'",
    "INSERT INTO users (id, name, email) VALUES ('x', 'x', 'x')",
    "DELETE FROM users",
    "SELECT 1 FROM sessions",
    "SELECT 1 FROM accounts",
    "SELECT 1 FROM verifications",
    "SELECT 1 FROM subscriptions",
    "SELECT 1 FROM __drizzle_migrations",
    "SELECT created_at FROM teams",
    "UPDATE teams SET owner_id = 'x'",
    "INSERT INTO teams (id, name, owner_id) VALUES ('t', 't', 'x')",
    "UPDATE user_credits SET total_credits_purchased = 1",
    "UPDATE user_credits SET team_id = NULL",
    "INSERT INTO user_credits (user_id) VALUES ('x')",
    "DELETE FROM user_credits",
    "UPDATE api_key_credits SET daily_limit = NULL",
    "DELETE FROM api_key_credits",
    "UPDATE credit_transactions SET amount = 0",
    "DELETE FROM credit_transactions",
    "TRUNCATE credit_transactions",
    "CREATE TABLE mine (id text)",
    "CREATE SCHEMA mine",
    "CREATE INDEX ON credit_transactions (user_id)",
    "ALTER TABLE credit_transactions ADD COLUMN mine text",
    "DROP TABLE credit_transactions",
    "CREATE ROLE mine",
    "SET ROLE postgres",
]


@pytest.fixture
def auth(new_database: Callable[[], str]) -> str:
    url = new_database()
    init_auth_copy(url)
    add_user(url, "ada@example.org", "Ada", 10)
    return url


def test_what_the_ledger_does_is_allowed(auth: str) -> None:
    for statement in ALLOWED:
        with transaction(as_role(auth, AUTH_ROLE)) as connection:
            connection.execute(statement.encode())


def test_everything_else_is_refused(auth: str) -> None:
    for statement in FORBIDDEN:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), transaction(as_role(auth, AUTH_ROLE)) as connection:
            connection.execute(statement.encode())


def test_what_was_granted_beyond_it_is_taken_away(auth: str) -> None:
    with transaction(auth) as connection:
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {AUTH_ROLE}".encode())
        connection.execute(f"GRANT CREATE ON SCHEMA public TO {AUTH_ROLE}".encode())
        connection.execute(f"GRANT SELECT (name) ON users TO {AUTH_ROLE}".encode())
    init_auth_copy(auth)
    test_everything_else_is_refused(auth)
    test_what_the_ledger_does_is_allowed(auth)


@pytest.mark.parametrize("more", [f"ALTER ROLE {AUTH_ROLE} CREATEDB", f"GRANT pg_monitor TO {AUTH_ROLE}"])
def test_a_role_that_may_do_more_by_other_ways_is_refused(auth: str, more: str) -> None:
    """In one transaction: the role is the whole server's, and other tests use it."""
    with transaction(auth) as connection:
        connection.execute(more.encode())
        with pytest.raises(psycopg.errors.RaiseException, match="attributes or memberships"):
            connection.execute(SCRIPT)
        connection.rollback()


def test_what_everybody_may_do_is_warned_of(auth: str) -> None:
    said: list[str] = []
    with transaction(auth) as connection:
        connection.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
        connection.execute(SCRIPT)
        assert said == []
        connection.execute(b"GRANT CREATE ON SCHEMA public TO PUBLIC")
        connection.execute(SCRIPT)
    assert said == [f"{AUTH_ROLE} can make tables in schema public, as everybody can"]
