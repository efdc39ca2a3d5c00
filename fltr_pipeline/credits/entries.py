"""From holds and closes to the ledger's rows, and back. Pure.

Belongs here: what each kind of row says in its columns and its metadata. Does not: the values themselves (holds),
any transaction (transfers).

Kinds: reserve, close, void, refund, grant, opening. Usage is negative; purchase, bonus and refund are positive.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fltr_pipeline.credits.holds import POT_KINDS, Close, CloseState, Hold, Payer, Pot
from fltr_pipeline.errors import LedgerConflict
from fltr_pipeline.models import Op
from fltr_pipeline.stores.auth.rows import LedgerRow, StoredRow

METADATA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Opening:
    """What a pot had when the ledger first saw it: `balance`, of which `opening` no row of the ledger explains."""

    pot: Pot
    user_id: str
    balance: int
    opening: int


def outcome_of(close: StoredRow) -> CloseState:
    """How a close, or a void, that was found ended its hold.

    Raises:
        LedgerConflict: it does not say so in our words.
    """
    try:
        return CloseState(str(close.metadata.get("outcome")))
    except ValueError:
        raise LedgerConflict(f"row {close.id} of the ledger does not say how it ended its hold") from None


def is_void(row: StoredRow) -> bool:
    """Whether the row stands in for a hold that never landed, and never will."""
    return bool(row.metadata.get("kind") == "void")


def check_same(hold: Hold, found: StoredRow) -> None:
    """The same id always carries the same amount on the same pot.

    Raises:
        LedgerConflict: it does not.
    """
    pot = found.metadata.get("pot")
    if found.amount != -hold.amount or pot != hold.payer.pot.name:
        raise LedgerConflict(
            f"the hold {hold.id} for {hold.op} of {hold.subject_id} is {hold.amount} credits of {hold.payer.pot.name}, "
            f"but its row in fltr_auth says {-found.amount} of {pot}: somebody changed a row of the ledger; "
            "`fltr-pipeline credits audit` lists what is wrong"
        )


def hold_row(hold: Hold) -> LedgerRow:
    """`usage`, minus the amount."""
    return _row(hold, hold.id, -hold.amount, hold.payer.team_id, "reserve", {})


def void_row(hold: Hold, reason: str) -> LedgerRow:
    """`usage` of 0 under the hold's own id: a reserve that comes late finds it and is refused."""
    return _row(hold, hold.id, 0, hold.payer.team_id, "void", {"outcome": CloseState.RELEASED.value, "reason": reason})


def close_row(close: Close, found: StoredRow) -> LedgerRow:
    """`refund` of what is not charged; `usage` of 0 where that is nothing. `found`: the hold's row as it is now."""
    extra = {
        "outcome": close.outcome.value, "charged": close.charged, "used": close.used, "reason": close.reason,
        "held_at": found.created_at.isoformat(),
    }  # fmt: skip
    back = close.hold.amount - close.charged
    return _row(close.hold, close.hold.close_id, back, found.team_id, "close", extra)


def refund_row(hold: Hold, close: StoredRow, reason: str) -> LedgerRow:
    """`refund` of what a settled hold was charged. `close`: its close as it is now."""
    extra = {"reason": reason, "held_at": close.metadata.get("held_at", close.created_at.isoformat())}
    return _row(hold, hold.refund_id, hold.amount - close.amount, close.team_id, "refund", extra)


def grant_row(row_id: str, payer: Payer, amount: int, reason: str) -> LedgerRow:
    """`bonus`."""
    return LedgerRow(
        id=row_id, user_id=payer.user_id, team_id=payer.team_id, amount=amount, type="bonus", operation="grant",
        resource_id=payer.pot.id, api_key_id=payer.api_key_id,
        metadata={"version": METADATA_VERSION, "kind": "grant", "pot": payer.pot.name, "reason": reason},
    )  # fmt: skip


def opening_row(opening: Opening) -> LedgerRow:
    """`bonus` of 0: an amount would spoil the sums of the web application."""
    pot = opening.pot
    return LedgerRow(
        id=pot.opening_id, user_id=opening.user_id, team_id=pot.id if pot.kind == "team" else None, amount=0,
        type="bonus", operation="opening", resource_id=pot.id, api_key_id=pot.id if pot.kind == "api_key" else None,
        metadata={
            "version": METADATA_VERSION, "kind": "opening", "pot": pot.name, "balance": opening.balance,
            "opening": opening.opening,
        },
    )  # fmt: skip


def open_hold(row: StoredRow) -> Hold:
    """The hold that a row of kind `reserve` stands for.

    Raises:
        LedgerConflict: it is no hold that we wrote.
    """
    hold = hold_of(row)
    if hold.id != row.id or hold.amount <= 0:
        raise LedgerConflict(f"row {row.id} of the ledger says that it is a hold, but it is not one that we wrote")
    return hold


def hold_of(row: StoredRow) -> Hold:
    """The hold that a row of any kind is about, as its metadata says.

    Raises:
        LedgerConflict: its metadata can't be read as one.
    """
    m = row.metadata
    try:
        kind, _, pot_id = str(m["pot"]).partition(":")
        if kind not in POT_KINDS:
            raise ValueError(kind)  # noqa: TRY301 - one error for all that is wrong with a row
        return Hold(
            subject_id=row.resource_id, op=Op(m["op"]), generation=int(m["generation"]), sequence=int(m["sequence"]),
            amount=-row.amount, payer=Payer(row.user_id, Pot(kind, pot_id), row.api_key_id), job_id=m["job_id"],
            run_id=m.get("run_id"), price_version=m["price_version"], unit_price=int(m["unit_price"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LedgerConflict(f"row {row.id} of the ledger is no hold that can be read ({error!r})") from error


def _row(hold: Hold, row_id: str, amount: int, team_id: str | None, kind: str, extra: Mapping[str, Any]) -> LedgerRow:
    metadata = {
        "version": METADATA_VERSION, "kind": kind, "hold_id": hold.id, "job_id": hold.job_id, "run_id": hold.run_id,
        "op": hold.op.value, "generation": hold.generation, "sequence": hold.sequence, "pot": hold.payer.pot.name,
        "unit_price": hold.unit_price, "price_version": hold.price_version, **extra,
    }  # fmt: skip
    return LedgerRow(
        id=row_id, user_id=hold.payer.user_id, team_id=team_id, amount=amount, type="refund" if amount > 0 else "usage",
        operation=hold.op.value, resource_id=hold.subject_id, api_key_id=hold.payer.api_key_id, metadata=metadata,
    )  # fmt: skip
