"""Balances: what a user, a team or an API key has, takes and gets back.

Belongs here: `credits` of user_credits, teams and api_key_credits, and the limits of a key. Does not: why (rows).
A balance is only ever changed relatively: others write it, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, TextClause, text

from fltr_pipeline.stores.auth.rows import KEY_DIGEST, utc_now
from fltr_pipeline.stores.database import id_array

_TABLES = {
    "user": ("user_credits", "user_id"),
    "team": ("teams", "id"),
    "api_key": ("api_key_credits", KEY_DIGEST),
}


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What an API key may spend, net, in a UTC day and month, and what it has. None: no limit."""

    digest: str
    daily_limit: int | None
    monthly_limit: int | None
    used_today: int
    """0 where there is no limit at all: then nobody adds it up."""
    used_this_month: int

    @property
    def left(self) -> int | None:
        """What the tighter limit leaves; None: no limit."""
        left = [
            limit - used
            for limit, used in ((self.daily_limit, self.used_today), (self.monthly_limit, self.used_this_month))
            if limit is not None
        ]
        return min(left) if left else None


# The names come from the constant above, never from outside.
# One id is compared by `=`: for `= ANY` PostgreSQL would plan anew each time, which takes as long as the update itself.
def _take(table: str, key: str) -> TextClause:
    return text(
        f"UPDATE {table} SET credits = credits - :amount, updated_at = :now "  # noqa: S608 - of constants
        f"WHERE {key} = :id AND credits >= :amount + CAST(:leaving AS bigint)"
    )


def _give(table: str, key: str) -> TextClause:
    return text(f"UPDATE {table} SET credits = credits + :amount, updated_at = :now WHERE {key} = :id")  # noqa: S608 - of constants


def _balance(table: str, key: str) -> TextClause:
    return text(f"SELECT {key}::text AS id, credits FROM {table} WHERE {key} = ANY(:ids)")  # noqa: S608 - of constants


_TAKE = {kind: _take(*names) for kind, names in _TABLES.items()}
_GIVE = {kind: _give(*names) for kind, names in _TABLES.items()}
_BALANCE = {kind: _balance(*names) for kind, names in _TABLES.items()}

# What a key used: rows that name it by its digest, as ours do, or by itself, as another program may. What a close gives
# back counts in the window of its hold (`held_at`), compared as text: other programs may write anything there.
_LIMITS = text(f"""
    WITH keys AS (
        SELECT api_key, {KEY_DIGEST} AS digest, daily_limit, monthly_limit
        FROM api_key_credits WHERE {KEY_DIGEST} = ANY(:digests)
    ), used AS (
        SELECT k.digest, -t.amount AS amount,
               coalesce(substring(t.transaction_metadata::text FROM '"held_at"\\s*:\\s*"(\\d{{4}}-[^"]+)"'),
                        to_char(t.created_at, 'YYYY-MM-DD"T"HH24:MI:SS')) COLLATE "C" AS held_at
        FROM keys k JOIN credit_transactions t ON t.api_key_id IN (k.digest, k.api_key)
        WHERE t.type IN ('usage', 'refund') AND t.created_at >= :month
          AND (k.daily_limit IS NOT NULL OR k.monthly_limit IS NOT NULL)
    )
    SELECT k.digest, k.daily_limit, k.monthly_limit,
           coalesce(sum(u.amount) FILTER (WHERE u.held_at >= :since_day), 0)::bigint AS used_today,
           coalesce(sum(u.amount) FILTER (WHERE u.held_at >= :since_month), 0)::bigint AS used_this_month
    FROM keys k LEFT JOIN used u USING (digest)
    GROUP BY k.digest, k.daily_limit, k.monthly_limit
""")  # noqa: S608 - of constants


def take(tx: Connection, pot_kind: str, pot_id: str, amount: int, *, leaving: int = 0) -> bool:
    """Lower the balance by `amount` if it covers that and `leaving` more; whether it did."""
    parameters = {"id": pot_id, "amount": amount, "leaving": leaving, "now": utc_now()}
    return tx.execute(_TAKE[pot_kind], parameters).rowcount == 1


def give(tx: Connection, pot_kind: str, pot_id: str, amount: int) -> bool:
    """Raise the balance by `amount`; False if the pot no longer exists."""
    return tx.execute(_GIVE[pot_kind], {"id": pot_id, "amount": amount, "now": utc_now()}).rowcount == 1


def balances(tx: Connection, pot_kind: str, pot_ids: Sequence[str]) -> dict[str, int]:
    """Balances by pot id; nothing for pots that don't exist."""
    return {r.id: r.credits for r in tx.execute(_BALANCE[pot_kind], {"ids": id_array(pot_ids)})}


def limits(tx: Connection, digests: Sequence[str], at: datetime) -> dict[str, KeyLimits]:
    """What API keys may spend and did, by digest, in the windows of `at` (UTC); nothing for keys without a balance.

    In a transaction that has changed a key's balance no other can add to its use: read after that, it is exact.
    """
    today = at.replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    parameters = {"month": month, "since_day": today.isoformat(), "since_month": month.isoformat()}
    found = tx.execute(_LIMITS, {"digests": list(digests), **parameters})
    return {r.digest: KeyLimits(*r) for r in found}
