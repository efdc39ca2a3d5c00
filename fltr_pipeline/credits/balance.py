"""What can be spent: the pot that pays for a user, and their API keys' own pools, held apart from available.

Belongs here: reading balances for people. Does not: what a reservation may take (ledger), what was spent (statement).
"""

from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from fltr_pipeline.credits.holds import Payer, Pot
from fltr_pipeline.stores.auth import people, pots, rows, scan
from fltr_pipeline.stores.auth.pots import KeyLimits


@dataclass(frozen=True, slots=True)
class Balance:
    """A pot: `held` for work under way, by whomever, has left `available` already."""

    pot: Pot
    available: int
    held: int


@dataclass(frozen=True, slots=True)
class KeyBalance:
    """An API key's own pool, and what its limits leave in this UTC day and month. None: no limit."""

    digest: str
    """The hex SHA-256 of the key."""
    available: int
    held: int
    daily_limit: int | None
    daily_left: int | None
    monthly_limit: int | None
    monthly_left: int | None


@dataclass(frozen=True, slots=True)
class Balances:
    """What a user can spend."""

    pays: Balance
    keys: tuple[KeyBalance, ...]


def balances_of(engine: Engine, payer: Payer) -> Balances:
    """The pot that pays for the user, and the pools of their API keys, in one snapshot.

    Raises:
        StoreUnavailable: fltr_auth does not answer.
    """
    with scan.snapshot(engine) as tx:
        digests = [pool.digest for pool in people.pools_of_user(tx, payer.user_id)]
        limits = pots.limits(tx, digests, rows.utc_now()) if digests else {}
        keys = tuple(_key(_balance(tx, Pot("api_key", digest)), limits[digest]) for digest in digests)
        return Balances(_balance(tx, payer.pot), keys)


def _balance(tx: Connection, pot: Pot) -> Balance:
    available = pots.balances(tx, pot.kind, [pot.id]).get(pot.id, 0)
    return Balance(pot, available, scan.held(tx, pot.kind, pot.id))


def _key(balance: Balance, limits: KeyLimits) -> KeyBalance:
    return KeyBalance(
        digest=balance.pot.id,
        available=balance.available,
        held=balance.held,
        daily_limit=limits.daily_limit,
        daily_left=_left(limits.daily_limit, limits.used_today),
        monthly_limit=limits.monthly_limit,
        monthly_left=_left(limits.monthly_limit, limits.used_this_month),
    )


def _left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)
