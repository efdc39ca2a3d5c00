"""`fltr_auth` as production has it before the migration: balances in `users`, no `user_credits`, no journal.

Belongs here: that database with five hundred awkward users, the document's SQL, what a test compares before and after.
Does not: fixtures, and what should come of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg

from fltr_pipeline.stores.schema import ddl
from fltr_pipeline.stores.schema.connection import Connection, transaction
from fltr_pipeline.stores.schema.migration import Plan
from fltr_pipeline.stores.schema.migration.balances import Balances
from fltr_pipeline.stores.schema.specification import FLTR_AUTH
from fltr_pipeline.stores.schema.verify import verify_auth

USERS = 500
INT4 = 2**31 - 1
ORPHANED = {9: "", 10: "team-gone", 11: "tëam-gone-tøo", 12: "'; DROP TABLE users; --"}
"""Of users n with n % 25 equal to the key: teams that don't exist."""

# As the document's "current production" lists them; the types are those of its own migration.
OLD_COLUMNS = """
ALTER TABLE users ADD COLUMN team_id text, ADD COLUMN total_credits_purchased integer DEFAULT 0,
    ADD COLUMN credits integer DEFAULT 0
"""

INSERT_USER = """
INSERT INTO users (id, name, email, email_verified, created_at, updated_at, credits, total_credits_purchased, team_id)
VALUES (%s, %s, %s, true, timestamp '2025-03-30 02:30' + %s * interval '1 hour 7.000001 second',
        now() AT TIME ZONE 'UTC', %s, %s, %s)
"""

DOCUMENT = [
    """CREATE TABLE user_credits (
    user_id TEXT PRIMARY KEY REFERENCES users(id) ON DELETE CASCADE,
    credits INTEGER NOT NULL DEFAULT 0,
    total_credits_purchased INTEGER NOT NULL DEFAULT 0,
    team_id TEXT REFERENCES teams(id),
    created_at TIMESTAMP NOT NULL DEFAULT NOW(),
    updated_at TIMESTAMP NOT NULL DEFAULT NOW()
)""",
    """INSERT INTO user_credits (user_id, credits, total_credits_purchased, team_id, created_at, updated_at)
SELECT id, credits, total_credits_purchased, team_id, created_at, updated_at
FROM users""",
    "ALTER TABLE users DROP COLUMN credits",
    "ALTER TABLE users DROP COLUMN total_credits_purchased",
    "ALTER TABLE users DROP COLUMN team_id",
    """CREATE TABLE __drizzle_migrations (
    id SERIAL PRIMARY KEY,
    hash TEXT NOT NULL,
    created_at BIGINT
)""",
    """INSERT INTO __drizzle_migrations (hash, created_at) VALUES
    ('0baa8af38816a34b1e4470ba4ee5a49a5e0e4a8c1d5e1fde83f26f2b1be57c4b', 1760114263106),
    ('38f04f0b6c736ed30fee6e7d77f08e97c3f2a4f0dc85f5426a3b5bd1dd859f53', 1761915734970),
    ('e3c7a8f2c09fc8ad3e0d5b64f1a8e7c4b2f9a8e1d0c5b3a4f2e8d7c6b5a4e3f2', 1762369692832)""",
]
"""The specification's migration as it stands, statement by statement."""

JOURNAL = [
    ("0baa8af38816a34b1e4470ba4ee5a49a5e0e4a8c1d5e1fde83f26f2b1be57c4b", 1760114263106),
    ("38f04f0b6c736ed30fee6e7d77f08e97c3f2a4f0dc85f5426a3b5bd1dd859f53", 1761915734970),
    ("e3c7a8f2c09fc8ad3e0d5b64f1a8e7c4b2f9a8e1d0c5b3a4f2e8d7c6b5a4e3f2", 1762369692832),
]

TIDY = (
    "UPDATE users SET team_id = NULL WHERE team_id NOT IN (SELECT id FROM teams)",
    "UPDATE users SET credits = coalesce(credits, 0), total_credits_purchased = coalesce(total_credits_purchased, 0)",
)
"""Makes the users such that the document's SQL can copy them."""


@dataclass(frozen=True, slots=True)
class User:
    id: str
    name: str
    credits: int | None
    purchased: int | None
    team: str | None


def users() -> Iterator[User]:
    """Always the same: NULLs, zeros, both ends of int4, negatives, teams real, gone and empty, ids of all sorts."""
    names = ("Ann", "Þóra Ærlig", "王小明", 'O\'Brien \\ "Bob"', "\u202eevil\u202c", "👩🏽‍🚀", "x" * 300)
    balances: tuple[int | None, ...] = (None, 0, INT4, 1, -1, -INT4 - 1, 250, 99_999)
    for n in range(USERS):
        ids = (f"user-{n:03}", f"Üser {n:03} ✓", f"{n:032x}", f"it's {n:03}\\")
        team = ORPHANED.get(n % 25) if n % 25 in ORPHANED else f"team-{n % 3}" if n % 4 == 0 else None
        purchased = None if n % 11 == 0 else n * 1_000_003 % INT4
        yield User(ids[n % len(ids)], names[n % len(names)], balances[n % len(balances)], purchased, team)


def make(url: str) -> None:
    """Turns an empty database into that one."""
    with transaction(url) as connection:
        for statement in ddl.statements(FLTR_AUTH):
            connection.execute(statement.encode())
        connection.execute("DROP TABLE user_credits, __drizzle_migrations")
        connection.execute(OLD_COLUMNS)
        for n, user in enumerate(users()):
            row = (user.id, user.name, f"{n}@example.org", n, user.credits, user.purchased, None)
            connection.execute(INSERT_USER, row)
        connection.execute(
            "INSERT INTO teams (id, name, credits, owner_id) SELECT 'team-' || n, 'Team', 10 * n, 'user-000' "
            "FROM generate_series(0, 2) n"
        )
        for user in users():
            connection.execute("UPDATE users SET team_id = %s WHERE id = %s", (user.team, user.id))
        connection.execute(
            "INSERT INTO credit_transactions (id, user_id, amount, type) "
            "SELECT 'purchase ' || id, id, credits, 'purchase' FROM users WHERE credits > 0"
        )


def expected(nulled: bool = True) -> dict[str, tuple[int, int, str | None]]:
    """What each user has after the migration."""
    teams = {f"team-{n}" for n in range(3)} | (set() if nulled else set(ORPHANED.values()))
    return {u.id: (u.credits or 0, u.purchased or 0, u.team if u.team in teams else None) for u in users()}


def run_document(url: str, statements: Sequence[str] = tuple(DOCUMENT)) -> list[type[psycopg.Error] | None]:
    """As `psql -f` does: each statement for itself, on after an error; returns what became of each."""
    results: list[type[psycopg.Error] | None] = []
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            try:
                connection.execute(statement.encode())
                results.append(None)
            except psycopg.Error as error:
                results.append(type(error))
    return results


def execute(url: str, *statements: str) -> None:
    with transaction(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with transaction(url) as connection:
        return connection.execute(query.encode()).fetchall()


def accounts(url: str) -> dict[str, tuple[int, int, str | None]]:
    """What `user_credits` says."""
    with transaction(url) as connection:
        found = connection.execute("SELECT user_id, credits, total_credits_purchased, team_id FROM user_credits")
        return {user: (credits, purchased, team) for user, credits, purchased, team in found}


def counted(plan: Plan) -> Balances:
    assert plan.balances is not None
    return plan.balances


def drizzle_names(url: str) -> set[object]:
    query = "SELECT conname::text FROM pg_constraint WHERE conrelid = 'user_credits'::regclass AND contype = 'f'"
    return {name for (name,) in rows(url, query)}


def assert_migrated(url: str, balances: dict[str, tuple[int, int, str | None]]) -> None:
    assert accounts(url) == balances
    report = verify_auth(url)
    assert report.conforms, report.harmful
    assert drizzle_names(url) == {"user_credits_user_id_users_id_fk", "user_credits_team_id_teams_id_fk"}
    assert rows(url, "SELECT hash, created_at FROM __drizzle_migrations ORDER BY id") == JOURNAL


def fingerprint(at: str | Connection) -> str:
    """Everything that a migration could change: schema, rights, names, and each row, as one text."""
    if isinstance(at, str):
        with transaction(at) as connection:
            return fingerprint(connection)
    parts = [str(at.execute(query.encode()).fetchall()) for query in _CATALOGUE]
    tables = [name for (name,) in at.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")]
    for name in tables:
        parts.append(f"{name}: {at.execute(f'SELECT t::text FROM {name} t ORDER BY 1'.encode()).fetchall()}")
    return "\n".join(parts)


_CATALOGUE = (
    """SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
       FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
       LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
       WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
       ORDER BY c.relname, a.attname""",
    """SELECT conname, conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint
       WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2""",
    """SELECT relname, relkind, relowner::regrole::text, relacl::text FROM pg_class
       WHERE relnamespace = 'public'::regnamespace ORDER BY 1""",
)
