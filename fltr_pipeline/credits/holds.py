"""The ledger's words: pots, payers, holds and closes, and the rows that stand for them.

Belongs here: frozen values, their deterministic ids, their rows. Pure. Does not: any transaction (ledger).
"""

import uuid
from dataclasses import dataclass
from enum import StrEnum

from fltr_pipeline.models import Op
from fltr_pipeline.stores import auth

_NAMESPACE = uuid.UUID("6f1c1a52-6b0c-5c53-9a4e-3d1d6b7f0e11")
METADATA_VERSION = 1


@dataclass(frozen=True, slots=True, order=True)
class Pot:
    """A balance that pays: `kind` is user, team or api_key."""

    kind: str
    id: str

    @property
    def name(self) -> str:
        """`kind:id`, as rows and messages name it."""
        return f"{self.kind}:{self.id}"


@dataclass(frozen=True, slots=True)
class Payer:
    """Who a hold belongs to and which pot pays for it."""

    user_id: str
    pot: Pot

    @property
    def team_id(self) -> str | None:
        """The team, where a team pays."""
        return self.pot.id if self.pot.kind == "team" else None


@dataclass(frozen=True, slots=True)
class Hold:
    """A reservation of `amount` > 0 credits for one op on one generation of `subject_id`, try number `sequence`."""

    subject_id: str
    op: Op
    generation: int
    sequence: int
    amount: int
    payer: Payer
    job_id: str | None
    price_version: str
    unit_price: int

    @property
    def id(self) -> str:
        """Derived from what is bought and the try: no run, retry number or clock."""
        return str(uuid.uuid5(_NAMESPACE, f"hold:{self.subject_id}:{self.op}:{self.generation}:{self.sequence}"))

    @property
    def close_id(self) -> str:
        """Derived from the hold's id, the same for settle and release."""
        return str(uuid.uuid5(_NAMESPACE, f"close:{self.id}"))

    @property
    def refund_id(self) -> str:
        """Derived from the hold's id: what was charged is given back once."""
        return str(uuid.uuid5(_NAMESPACE, f"refund:{self.id}"))


class HoldState(StrEnum):
    """How a hold stands after `reserve`."""

    OPEN = "open"
    """Reserved now, or by an earlier try of the same work."""
    RELEASED = "released"
    SETTLED = "settled"
    INSUFFICIENT = "insufficient"
    PAYER_GONE = "payer_gone"
    POT_GONE = "pot_gone"


class CloseState(StrEnum):
    """How a hold stands after `settle` or `release`."""

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


def outcome_of(close: auth.StoredRow) -> CloseState:
    """How a close that was found ended its hold."""
    return CloseState(close.metadata.get("outcome", CloseState.SETTLED))


def _metadata(hold: Hold, kind: str) -> dict[str, object]:
    return {
        "version": METADATA_VERSION, "kind": kind, "hold_id": hold.id, "job_id": hold.job_id, "op": hold.op.value,
        "generation": hold.generation, "sequence": hold.sequence, "pot": hold.payer.pot.name,
        "unit_price": hold.unit_price, "price_version": hold.price_version,
    }  # fmt: skip


def hold_row(hold: Hold) -> auth.LedgerRow:
    """`usage`, minus the amount."""
    return auth.LedgerRow(
        id=hold.id, user_id=hold.payer.user_id, team_id=hold.payer.team_id, amount=-hold.amount, type="usage",
        operation=hold.op.value, resource_id=hold.subject_id, metadata=_metadata(hold, "reserve"),
    )  # fmt: skip


def close_row(close: Close, team_id: str | None) -> auth.LedgerRow:
    """`refund` of what is not charged; `usage` of 0 where that is nothing. `team_id` as the hold has it now."""
    hold, back = close.hold, close.hold.amount - close.charged
    extra = {"outcome": close.outcome.value, "charged": close.charged, "used": close.used, "reason": close.reason}
    return auth.LedgerRow(
        id=hold.close_id, user_id=hold.payer.user_id, team_id=team_id, amount=back,
        type="refund" if back else "usage", operation=hold.op.value, resource_id=hold.subject_id,
        metadata=_metadata(hold, "close") | extra,
    )  # fmt: skip


def refund_row(hold: Hold, amount: int, team_id: str | None, reason: str) -> auth.LedgerRow:
    """`refund` of what a settled hold was charged."""
    return auth.LedgerRow(
        id=hold.refund_id, user_id=hold.payer.user_id, team_id=team_id, amount=amount, type="refund",
        operation=hold.op.value, resource_id=hold.subject_id, metadata=_metadata(hold, "refund") | {"reason": reason},
    )  # fmt: skip
