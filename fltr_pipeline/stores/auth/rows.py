"""The ledger's rows: `credit_transactions`, appended to, never updated or deleted.

Belongs here: inserting rows, finding them by id or user, what they add up to for a pot. Does not: balances (pots),
reading the whole table (scan).

Rows travel as one JSON recordset of the table's own row type, so that whatever types the owner chose (text or uuid ids,
json, jsonb or text metadata) are filled in by PostgreSQL itself.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from fltr_pipeline.models import Op
from fltr_pipeline.stores.database import id_array, recordset


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A row to insert. Written once, never changed."""

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
    """A row as found."""

    id: str
    user_id: str
    team_id: str | None
    """NULL once the team was deleted."""
    api_key_id: str | None
    """A digest."""
    amount: int
    type: str
    operation: str
    resource_id: str
    created_at: datetime
    metadata: Mapping[str, Any]
    """Empty where it is no JSON object: other programs write rows, too."""


COLUMNS = """
    t.id::text, t.user_id::text, t.team_id::text,
    CASE WHEN t.api_key_id::text ~ '^[0-9a-f]{64}$' THEN t.api_key_id::text END AS api_key_id,
    t.amount, t.type::text, t.operation, t.resource_id::text, t.created_at, t.transaction_metadata::text AS metadata
"""
"""SQL: what a StoredRow is made of, of the table as `t`. A key that another program wrote there stays where it is."""

KEY_DIGEST = "encode(sha256(replace(api_key, chr(92), repeat(chr(92), 2))::bytea), 'hex')"
"""SQL: what an API key is called outside its own table; of a UTF-8 database. Immutable, as an index needs it, which
`convert_to` is not; the cast to bytea reads a backslash, chr(92), as the beginning of an escape."""

DIGESTS = f"SELECT api_key, {KEY_DIGEST} AS digest FROM api_key_credits"  # noqa: S608 - of constants

POT = """
    coalesce(substring(t.transaction_metadata::text FROM '"pot"\\s*:\\s*"([^"]+)"'),
             'api_key:' || k.digest, 'api_key:' || d.digest, 'team:' || t.team_id, 'user:' || t.user_id)
"""
"""SQL: the pot that a row of the table `t` moves, as its metadata says; of other programs' rows, the pot that they
would have meant. `k` and `d` are DIGESTS joined by key and by digest."""

KIND = """substring({t}.transaction_metadata::text FROM '"kind"\\s*:\\s*"([^"]+)"')"""
HOLD = """substring({t}.transaction_metadata::text FROM '"hold_id"\\s*:\\s*"([^"]+)"')"""

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

_ROWS = text(f"SELECT {COLUMNS} FROM credit_transactions t WHERE t.id = ANY(:ids)")  # noqa: S608 - of constants

_OF_USER = text(f"""
    SELECT {COLUMNS} FROM credit_transactions t WHERE t.user_id = ANY(:ids) ORDER BY t.created_at, t.id
""")  # noqa: S608 - of constants

# Reads the whole ledger: a hold is open while no row of kind `close` names it. One whose metadata was lost still has
# our op, an amount below 0 and an id that we derived, which is a UUID of version 5: other programs' rows have not.
_OPEN_BEFORE = text(f"""
    SELECT {COLUMNS} FROM credit_transactions t
    WHERE t.created_at < :before
      AND (t.type = 'usage' AND {KIND.format(t="t")} = 'reserve'
           OR t.amount < 0 AND t.operation = ANY(:ops) AND t.id::text ~ '^[0-9a-f]{{8}}-[0-9a-f]{{4}}-5')
      AND NOT EXISTS (SELECT FROM credit_transactions c
                      WHERE {KIND.format(t="c")} = 'close' AND {HOLD.format(t="c")} = t.id::text)
    ORDER BY t.created_at, t.id
""")  # noqa: S608 - of constants

# Without statistics, as soon after a restore, it would take all those for one row, and read all closes for each.
_EACH_ONCE = text("SELECT set_config('enable_nestloop', 'off', true)")

_WHOSE = {"user": "t.user_id = ANY(:ids)", "team": "t.team_id = ANY(:ids)", "api_key": "t.api_key_id IS NOT NULL"}

_SUM_OF_POT = {
    kind: text(f"""
        SELECT coalesce(sum(t.amount), 0)::bigint FROM credit_transactions t
        LEFT JOIN ({DIGESTS}) k ON k.api_key = t.api_key_id::text
        LEFT JOIN ({DIGESTS}) d ON d.digest = t.api_key_id::text
        WHERE {whose} AND {POT} = :pot
    """)  # noqa: S608 - of constants
    for kind, whose in _WHOSE.items()
}


def utc_now() -> datetime:
    """UTC without a zone, as the application's `timestamp` columns hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


def insert(tx: Connection, rows: Sequence[LedgerRow], at: datetime | None = None) -> dict[str, int]:
    """Insert the rows that don't exist yet, in id order; returns id → amount of those really inserted.

    `at` (UTC, without a zone): when they were made; None: now.
    """
    made = (at or utc_now()).isoformat()
    values = [
        {
            "id": r.id, "user_id": r.user_id, "team_id": r.team_id, "amount": r.amount, "type": r.type,
            "operation": r.operation, "resource_id": r.resource_id, "api_key_id": r.api_key_id,
            "transaction_metadata": r.metadata, "created_at": made,
        }
        for r in rows
    ]  # fmt: skip
    return {r.id: r.amount for r in tx.execute(_INSERT, {"rows": recordset(values)})}


def by_id(tx: Connection, ids: Sequence[str]) -> dict[str, StoredRow]:
    """Rows by id."""
    return {r.id: stored(r) for r in tx.execute(_ROWS, {"ids": id_array(ids)})}


def of_user(tx: Connection, user_id: str) -> list[StoredRow]:
    """All rows of the user, oldest first."""
    return [stored(r) for r in tx.execute(_OF_USER, {"ids": id_array([user_id])})]


def open_before(tx: Connection, before: datetime) -> list[StoredRow]:
    """Holds without a close that were made before `before` (UTC, without a zone), oldest first.

    Sets how the rest of the transaction is planned: give it one of its own.
    """
    tx.execute(_EACH_ONCE)
    return [stored(r) for r in tx.execute(_OPEN_BEFORE, {"before": before, "ops": [op.value for op in Op]})]


def sum_of_pot(tx: Connection, pot_kind: str, pot_id: str) -> int:
    """What the amounts of all rows that move the pot add up to."""
    parameters = {"pot": f"{pot_kind}:{pot_id}"} | ({} if pot_kind == "api_key" else {"ids": id_array([pot_id])})
    return int(tx.execute(_SUM_OF_POT[pot_kind], parameters).scalar_one())


def stored(row: Row[Any]) -> StoredRow:
    """A row of COLUMNS, its metadata read as far as it can be."""
    try:
        metadata = json.loads(row.metadata or "{}")
    except (ValueError, RecursionError):  # nested too deep for Python is no row of ours either
        metadata = {}
    kept = metadata if isinstance(metadata, dict) else {}
    return StoredRow(
        row.id, row.user_id, row.team_id, row.api_key_id, row.amount, row.type, row.operation, row.resource_id,
        row.created_at, kept,
    )  # fmt: skip
