"""The ledger's words: pots, payers, holds and how they end. Pure.

Belongs here: frozen values and their deterministic ids. Does not: the rows that stand for them (entries), any
transaction (transfers).
"""

import hashlib
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from fltr_pipeline.models import Op

_NAMESPACE = uuid.UUID("6f1c1a52-6b0c-5c53-9a4e-3d1d6b7f0e11")


POT_KINDS = ("user", "team", "api_key")


def derived_id(what: str) -> str:
    """A UUID that is the same for the same words."""
    return str(uuid.uuid5(_NAMESPACE, what))


def close_id(hold_id: str) -> str:
    """Of the one row that ends a hold, whichever way."""
    return derived_id(f"close:{hold_id}")


def refund_id(hold_id: str) -> str:
    """Of the one row that gives back what a hold was charged."""
    return derived_id(f"refund:{hold_id}")


def key_digest(api_key: str) -> str:
    """What an API key is called everywhere but in its own table: the hex SHA-256 of its UTF-8 bytes."""
    return hashlib.sha256(api_key.encode()).hexdigest()


@dataclass(frozen=True, order=True)
class Pot:
    """A balance that pays: `kind` is user, team or api_key; an API key's `id` is its digest."""

    kind: str
    id: str

    @property
    def name(self) -> str:
        """`kind:id`, as rows and messages name it."""
        return f"{self.kind}:{self.id}"

    @cached_property
    def opening_id(self) -> str:
        """Of the row that says what the pot had when the ledger first saw it."""
        return derived_id(f"opening:{self.name}")


@dataclass(frozen=True, slots=True)
class Payer:
    """Who a hold belongs to and which pot pays for it. `api_key_id`: the digest of the key that the upload named."""

    user_id: str
    pot: Pot
    api_key_id: str | None = None

    @property
    def team_id(self) -> str | None:
        """The team, where a team pays."""
        return self.pot.id if self.pot.kind == "team" else None


@dataclass(frozen=True)
class Hold:
    """A reservation of `amount` > 0 credits for one op on one generation of `subject_id`, try number `sequence`."""

    subject_id: str
    op: Op
    generation: int
    sequence: int
    amount: int
    payer: Payer
    job_id: str | None
    run_id: str | None
    price_version: str
    unit_price: int

    @cached_property
    def id(self) -> str:
        """Derived from what is bought and the try: no run, retry number or clock."""
        return derived_id(f"hold:{self.subject_id}:{self.op}:{self.generation}:{self.sequence}")

    @cached_property
    def close_id(self) -> str:
        """Derived from the hold's id, the same for settle, release and expiry."""
        return close_id(self.id)

    @cached_property
    def refund_id(self) -> str:
        """Derived from the hold's id: what was charged is given back once."""
        return refund_id(self.id)


class HoldState(StrEnum):
    """How a hold stands after `reserve`."""

    OPEN = "open"
    """Reserved now, or by an earlier try of the same work."""
    RELEASED = "released"
    """It was given back, or voided before it landed."""
    SETTLED = "settled"
    INSUFFICIENT = "insufficient"
    """The pot can't cover it, or an API key's limit is reached."""
    PAYER_GONE = "payer_gone"
    POT_GONE = "pot_gone"


class CloseState(StrEnum):
    """How a hold stands after `close` or `void`."""

    SETTLED = "settled"
    RELEASED = "released"
    PAYER_GONE = "payer_gone"
    """The user was deleted, and the hold with them: there is nothing to close."""
    POT_GONE = "pot_gone"
    """Closed, but the balance that would get the rest back no longer exists."""


@dataclass(frozen=True, slots=True)
class Close:
    """How a hold is to end: `charged` credits of it are kept, the rest goes back to its pot."""

    hold: Hold
    charged: int
    outcome: CloseState
    reason: str
    used: int = 0
    """Units of work behind the charge: pages or tokens."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The close that stands, ours or an earlier one."""

    state: CloseState
    charged: int
    returned: int = field(default=0, compare=False)
    """Credits that this call gave back; 0 where the hold had ended before."""

    @property
    def paid(self) -> bool:
        """Whether what was to be charged was: a pot that is gone misses what would come back, not what it paid."""
        return self.state is CloseState.SETTLED or (self.state is CloseState.POT_GONE and self.charged > 0)
