"""Named queries on the `fltr_auth` database, as its least-privilege role.

Belongs here: SQL on users, teams, user_credits, api_key_credits and credit_transactions, and nothing else of that
database, which belongs to the web application. Does not: what a hold or a close is (credits).

Rows travel as one JSON recordset of the table's own row type, so that whatever types the owner chose (text or uuid ids,
json, jsonb or text metadata) are filled in by PostgreSQL itself. No index beyond the primary keys is relied on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, TextClause, text

from fltr_pipeline.stores.database import id_array, recordset


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A row of `credit_transactions` to insert. Written once, never changed."""

    id: str
    user_id: str
    team_id: str | None
    amount: int
    type: str
    operation: str
    resource_id: str
    metadata: Mapping[str, Any]
    api_key_id: str | None = None


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row of `credit_transactions` as found."""

    id: str
    team_id: str | None
    """NULL once the team was deleted."""
    amount: int
    type: str
    operation: str
    resource_id: str
    metadata: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Account:
    """A user and who pays for them."""

    user_id: str
    email: str
    team_id: str | None
    has_credits_row: bool


_BALANCE_TABLES = {
    "user": ("user_credits", "user_id"),
    "team": ("teams", "id"),
    "api_key": ("api_key_credits", "api_key"),
}

_USER_BY_ID = text("""
    SELECT u.id::text, u.email, c.team_id::text, c.user_id IS NOT NULL
    FROM users u LEFT JOIN user_credits c ON c.user_id = u.id WHERE u.id = ANY(:ids)
""")

_USER_BY_EMAIL = text("""
    SELECT u.id::text, u.email, c.team_id::text, c.user_id IS NOT NULL
    FROM users u LEFT JOIN user_credits c ON c.user_id = u.id WHERE lower(u.email) = lower(:email)
""")

_INSERT = text("""
    INSERT INTO credit_transactions
        (id, user_id, team_id, amount, type, operation, resource_id, api_key_id, transaction_metadata, created_at)
    SELECT r.id, r.user_id, r.team_id, r.amount, r.type, r.operation, r.resource_id, r.api_key_id,
           r.transaction_metadata, r.created_at
    FROM json_populate_recordset(NULL::credit_transactions, :rows) AS r
    ORDER BY r.id
    ON CONFLICT (id) DO NOTHING
    RETURNING id::text, amount
""")

_ROWS = text("""
    SELECT id::text, team_id::text, amount, type::text, operation, resource_id::text, created_at,
           transaction_metadata::text::json AS metadata
    FROM credit_transactions WHERE id = ANY(:ids)
""")

_OF_USER = text("""
    SELECT id::text, team_id::text, amount, type::text, operation, resource_id::text, created_at,
           transaction_metadata::text::json AS metadata
    FROM credit_transactions WHERE user_id = ANY(:ids) ORDER BY created_at, id
""")


def _take(table: str, key: str) -> TextClause:
    return text(
        f"UPDATE {table} SET credits = credits - :amount, updated_at = :now "  # noqa: S608
        f"WHERE {key} = ANY(:ids) AND credits >= :amount + :leaving"
    )


def _give(table: str, key: str) -> TextClause:
    return text(f"UPDATE {table} SET credits = credits + :amount, updated_at = :now WHERE {key} = ANY(:ids)")  # noqa: S608


def _balance(table: str, key: str) -> TextClause:
    return text(f"SELECT {key}::text AS id, credits FROM {table} WHERE {key} = ANY(:ids)")  # noqa: S608


# The names come from the constant above, never from outside.
_TAKE = {kind: _take(*names) for kind, names in _BALANCE_TABLES.items()}
_GIVE = {kind: _give(*names) for kind, names in _BALANCE_TABLES.items()}
_BALANCE = {kind: _balance(*names) for kind, names in _BALANCE_TABLES.items()}


def utc_now() -> datetime:
    """UTC without a zone, as the application's `timestamp` columns hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


def account(tx: Connection, *, user_id: str | None = None, email: str | None = None) -> Account | None:
    """The user of that id or that e-mail address (case-insensitive)."""
    if user_id is not None:
        row = tx.execute(_USER_BY_ID, {"ids": id_array([user_id])}).first()
    else:
        row = tx.execute(_USER_BY_EMAIL, {"email": email}).first()
    return None if row is None else Account(*row)


def insert(tx: Connection, rows: Sequence[LedgerRow]) -> dict[str, int]:
    """Insert the rows that don't exist yet, in id order; returns id → amount of those really inserted."""
    now = utc_now().isoformat()
    values = [
        {
            "id": r.id, "user_id": r.user_id, "team_id": r.team_id, "amount": r.amount, "type": r.type,
            "operation": r.operation, "resource_id": r.resource_id, "api_key_id": r.api_key_id,
            "transaction_metadata": r.metadata, "created_at": now,
        }
        for r in rows
    ]  # fmt: skip
    return {r.id: r.amount for r in tx.execute(_INSERT, {"rows": recordset(values)})}


def rows(tx: Connection, ids: Sequence[str]) -> dict[str, StoredRow]:
    """Rows by id."""
    return {r.id: _stored(r) for r in tx.execute(_ROWS, {"ids": id_array(ids)})}


def rows_of_user(tx: Connection, user_id: str) -> list[StoredRow]:
    """All rows of the user, oldest first."""
    return [_stored(r) for r in tx.execute(_OF_USER, {"ids": id_array([user_id])})]


def _stored(row: Row[Any]) -> StoredRow:
    metadata = row.metadata if isinstance(row.metadata, dict) else {}
    return StoredRow(
        row.id, row.team_id, row.amount, row.type, row.operation, row.resource_id, metadata, row.created_at
    )  # fmt: skip


def take(tx: Connection, pot_kind: str, pot_id: str, amount: int, *, leaving: int = 0) -> bool:
    """Lower the balance by `amount` if it covers that and `leaving` more; whether it did."""
    parameters = {"ids": id_array([pot_id]), "amount": amount, "leaving": leaving, "now": utc_now()}
    return tx.execute(_TAKE[pot_kind], parameters).rowcount == 1


def give(tx: Connection, pot_kind: str, pot_id: str, amount: int) -> bool:
    """Raise the balance by `amount`; False if the pot no longer exists."""
    return tx.execute(_GIVE[pot_kind], {"ids": id_array([pot_id]), "amount": amount, "now": utc_now()}).rowcount == 1


def balances(tx: Connection, pot_kind: str, pot_ids: Sequence[str]) -> dict[str, int]:
    """Balances by pot id; nothing for pots that don't exist."""
    return {r.id: r.credits for r in tx.execute(_BALANCE[pot_kind], {"ids": id_array(pot_ids)})}
