"""The pots of a storm, and who draws on them.

Belongs here: making them in a database. Does not: what becomes of them (storm).

Users that are deleted pay by themselves: what a deleted member spent of a team's pot goes with them (`ON DELETE
CASCADE`), and no equation holds.
"""

import hashlib
import uuid
from dataclasses import dataclass

import psycopg

from fltr_pipeline.credits.holds import Payer, Pot
from fltr_pipeline.stores.schema.development import add_user

ENDLESS = 100_000_000


@dataclass(frozen=True)
class Fund:
    """A pot of the storm and one who draws on it."""

    payer: Payer
    weight: float
    unexplained: int = 0
    """Credits that it has from the beginning without any row of the ledger."""
    endless: bool = False
    doomed: bool = False
    """Deleted while the storm goes on."""
    closes: bool = True
    """False: its holds are only ever reserved, so that its use is highest in the end."""
    key: str = ""
    daily_limit: int | None = None


def funds(admin_url: str) -> tuple[Fund, ...]:
    """Of every kind: a hot one of a team without end, a lean one, many cold ones, keys, and some that will go."""
    made = [
        *(Fund(p, 8, unexplained=ENDLESS, endless=True) for p in _team(admin_url, 6, ENDLESS)),
        Fund(_user(admin_url, 60), 14),
        *(Fund(_user(admin_url, 400), 1) for _ in range(16)),
        *(Fund(_user(admin_url, 400), 1, doomed=True) for _ in range(6)),
        *(Fund(_team(admin_url, 1, 400)[0], 1, unexplained=400, doomed=True) for _ in range(4)),
        _key(admin_url, 3, credits=300),
        _key(admin_url, 3, credits=5_000, daily_limit=60),
        _key(admin_url, 3, credits=5_000, daily_limit=100, closes=False),
        *(_key(admin_url, 1, credits=300, doomed=True) for _ in range(4)),
    ]
    bystander = _user(admin_url, 0)
    with psycopg.connect(admin_url) as connection:
        connection.execute(_HISTORY, {"id": bystander.user_id})
    return tuple(made)


# Rows of somebody else, as in a table that is in use: the plans made for one that is empty read all of it for ever.
_HISTORY = b"""
    WITH bought AS (
        INSERT INTO credit_transactions (id, user_id, amount, type, operation, created_at)
        SELECT gen_random_uuid(), %(id)s, 1, 'purchase', 'checkout', now() - interval '1 year'
        FROM generate_series(1, 10000) RETURNING amount
    )
    UPDATE user_credits SET credits = (SELECT sum(amount) FROM bought) WHERE user_id = %(id)s
"""


def _user(admin_url: str, credits: int) -> Payer:
    user_id = add_user(admin_url, f"{uuid.uuid4().hex}@example.org", "Ada", credits)
    return Payer(user_id, Pot("user", user_id))


def _team(admin_url: str, members: int, credits: int) -> list[Payer]:
    team, users = str(uuid.uuid4()), [_user(admin_url, 0).user_id for _ in range(members)]
    with psycopg.connect(admin_url) as connection:
        connection.execute(
            "INSERT INTO teams (id, name, credits, owner_id) VALUES (%s, 'T', %s, %s)", (team, credits, users[0])
        )
        connection.execute("UPDATE user_credits SET team_id = %s WHERE user_id = ANY(%s)", (team, users))
    return [Payer(u, Pot("team", team)) for u in users]


def _key(
    admin_url: str, weight: float, *, credits: int, daily_limit: int | None = None, doomed: bool = False,
    closes: bool = True,
) -> Fund:  # fmt: skip
    key, owner = f"sk-{uuid.uuid4().hex}", _user(admin_url, 0).user_id
    digest = hashlib.sha256(key.encode()).hexdigest()
    with psycopg.connect(admin_url) as connection:
        connection.execute(
            "INSERT INTO api_key_credits (api_key, user_id, credits, daily_limit) VALUES (%s, %s, %s, %s)",
            (key, owner, credits, daily_limit),
        )
    payer = Payer(owner, Pot("api_key", digest), api_key_id=digest)
    return Fund(
        payer, weight, unexplained=credits, doomed=doomed, closes=closes, key=key, daily_limit=daily_limit
    )  # fmt: skip
