"""Who exists in `fltr_auth`, and who pays for them.

Belongs here: users, their team, their API keys' pools. Does not: balances (pots).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from fltr_pipeline.errors import InvalidValue
from fltr_pipeline.stores.auth.rows import KEY_DIGEST
from fltr_pipeline.stores.database import id_array


@dataclass(frozen=True, slots=True)
class Account:
    """A user and who pays for them."""

    user_id: str
    email: str
    team_id: str | None


@dataclass(frozen=True, slots=True)
class KeyPool:
    """An API key with a balance of its own, and whose it is."""

    digest: str
    user_id: str
    team_id: str | None


_USER_BY_ID = text("""
    SELECT u.id::text, u.email, c.team_id::text
    FROM users u LEFT JOIN user_credits c ON c.user_id = u.id WHERE u.id = ANY(:ids)
""")

_USER_BY_EMAIL = text("""
    SELECT u.id::text, u.email, c.team_id::text
    FROM users u LEFT JOIN user_credits c ON c.user_id = u.id WHERE lower(u.email) = lower(:email)
    ORDER BY u.email <> :email, u.id LIMIT 2
""")

_POOLS = text(f"""
    SELECT {KEY_DIGEST} AS digest, user_id::text, team_id::text FROM api_key_credits WHERE {KEY_DIGEST} = ANY(:digests)
""")  # noqa: S608 - of constants

_POOLS_OF_USER = text(f"""
    SELECT {KEY_DIGEST} AS digest, user_id::text, team_id::text FROM api_key_credits WHERE user_id = ANY(:ids)
    ORDER BY digest
""")  # noqa: S608 - of constants

_OWNERS = {
    "team": text("SELECT owner_id::text FROM teams WHERE id = ANY(:ids)"),
    "api_key": text(f"SELECT user_id::text FROM api_key_credits WHERE {KEY_DIGEST} = ANY(CAST(:ids AS text[]))"),  # noqa: S608 - of constants
}

_EXISTING = text("SELECT id::text FROM users WHERE id = ANY(:ids)")


def account(tx: Connection, *, user_id: str | None = None, email: str | None = None) -> Account | None:
    """The user of that id or that e-mail address: written exactly so, else in any case.

    Raises:
        InvalidValue: the address is that of several users, but for its case.
    """
    if user_id is not None:
        rows = tx.execute(_USER_BY_ID, {"ids": id_array([user_id])}).all()
    else:
        rows = tx.execute(_USER_BY_EMAIL, {"email": email}).all()
        if len(rows) > 1 and rows[0].email != email:
            raise InvalidValue(f"several users have the e-mail address {email!r}, but for its case: write it exactly")
    return Account(*rows[0]) if rows else None


def pools(tx: Connection, digests: Sequence[str]) -> list[KeyPool]:
    """Those API keys that have a balance of their own."""
    return [KeyPool(*row) for row in tx.execute(_POOLS, {"digests": list(digests)})]


def pools_of_user(tx: Connection, user_id: str) -> list[KeyPool]:
    """The API keys of a user that have a balance of their own."""
    return [KeyPool(*row) for row in tx.execute(_POOLS_OF_USER, {"ids": id_array([user_id])})]


def owner_of(tx: Connection, pot_kind: str, pot_id: str) -> str:
    """The user whose deletion takes the pot along; the pot must exist."""
    if pot_kind == "user":
        return pot_id
    return str(tx.execute(_OWNERS[pot_kind], {"ids": id_array([pot_id])}).scalar_one())


def existing(tx: Connection, user_ids: Sequence[str]) -> set[str]:
    """Those users that exist."""
    return set(tx.execute(_EXISTING, {"ids": id_array(user_ids)}).scalars())
