"""Holds, teams and API keys, as tests of the ledger need them.

Belongs here: making them, and reading what the ledger's rows say. Does not: assertions.
"""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fltr_pipeline.credits.holds import Close, CloseState, Hold, Payer, Pot, key_digest
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.models import Op
from fltr_pipeline.stores.auth import pots
from fltr_pipeline.stores.database import transaction
from fltr_pipeline_tests.world import World


def hold(payer: Payer, amount: int = 3, subject: str | None = None, sequence: int = 1) -> Hold:
    return Hold(
        subject_id=subject or uuid.uuid4().hex, op=Op.DOCUMENT_EMBED, generation=1, sequence=sequence, amount=amount,
        payer=payer, job_id="job-1", run_id="run-1", price_version="2026-11", unit_price=1,
    )  # fmt: skip


def settle(h: Hold, charged: int) -> Close:
    return Close(h, charged, CloseState.SETTLED, "done", used=7)


def release(h: Hold, reason: str = "failed") -> Close:
    return Close(h, 0, CloseState.RELEASED, reason)


def balances(ledger: Ledger, wanted: Iterable[Pot]) -> dict[Pot, int]:
    """What each pot has; nothing for pots that don't exist."""
    with transaction(ledger.engine) as tx:
        return {pot: n for pot in wanted for n in pots.balances(tx, pot.kind, [pot.id]).values()}


def available(world: World, payer: Payer) -> int:
    return balances(world.services.ledger, [payer.pot])[payer.pot]


def add_team(world: World, owner: Payer, credits: int = 100) -> Pot:
    team = str(uuid.uuid4())
    world.change_auth(
        "INSERT INTO teams (id, name, credits, owner_id) VALUES (%s, 'Team', %s, %s)", team, credits, owner.user_id
    )
    return Pot("team", team)


def join(world: World, payer: Payer, team: Pot) -> Payer:
    """From now on the team pays for the user."""
    world.change_auth("UPDATE user_credits SET team_id = %s WHERE user_id = %s", team.id, payer.user_id)
    return Payer(payer.user_id, team)


@dataclass(frozen=True, slots=True)
class Key:
    """An API key with a balance of its own."""

    raw: str
    payer: Payer

    @property
    def digest(self) -> str:
        return key_digest(self.raw)


def add_key(
    world: World, owner: Payer, credits: int = 100, *, daily: int | None = None, monthly: int | None = None,
    team: Pot | None = None,
) -> Key:  # fmt: skip
    raw = f"fltr-secret-{uuid.uuid4().hex}"
    world.change_auth(
        "INSERT INTO api_key_credits (api_key, user_id, team_id, credits, daily_limit, monthly_limit)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        raw, owner.user_id, team and team.id, credits, daily, monthly,
    )  # fmt: skip
    digest = key_digest(raw)
    return Key(raw, Payer(owner.user_id, Pot("api_key", digest), digest))


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the ledger."""

    id: str
    user_id: str
    team_id: str | None
    api_key_id: str | None
    amount: int
    type: str
    metadata: Mapping[str, Any]


def lines(world: World, kind: str) -> list[Line]:
    """The rows of that kind."""
    return [
        Line(*row)
        for row in world.auth_rows(
            "SELECT id, user_id, team_id, api_key_id, amount, type, m FROM credit_transactions,"
            " LATERAL (SELECT transaction_metadata::text::jsonb) AS x(m) WHERE m->>'kind' = %s ORDER BY created_at, id",
            kind,
        )
    ]


def unexplained(world: World, pot: Pot) -> int:
    """What the pot has beyond its opening, if any, and the rows that name it, or are its user's and name no pot."""
    opening = world.auth_rows(
        "SELECT transaction_metadata->>'opening' FROM credit_transactions WHERE id = %s", pot.opening_id
    )
    ((explained,),) = world.auth_rows(
        "SELECT coalesce(sum(amount), 0) FROM credit_transactions"
        " WHERE coalesce(transaction_metadata->>'pot', 'user:' || user_id) = %s",
        pot.name,
    )
    return int(balances(world.services.ledger, [pot])[pot] - (int(opening[0][0]) if opening else 0) - explained)
