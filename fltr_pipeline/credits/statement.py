"""A user's credits, netted per hold. Pure.

Belongs here: reading ledger rows as holds, closes and grants. Does not: fetching them (ledger).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from fltr_pipeline.credits.holds import Pot
from fltr_pipeline.stores.auth.rows import StoredRow


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a statement: one hold with its close, or a grant."""

    at: datetime
    operation: str
    resource_id: str
    reserved: int
    charged: int
    returned: int
    held: int
    """Still reserved."""
    granted: int


@dataclass(frozen=True, slots=True)
class Statement:
    """A user's credits. `available` is the pot's balance; what is `held` has left it already."""

    user_id: str
    email: str
    pot: Pot
    available: int
    reserved: int
    charged: int
    returned: int
    held: int
    granted: int
    entries: tuple[Entry, ...]


def entries(rows: Sequence[StoredRow]) -> Iterator[Entry]:
    """Holds with their closes and refunds; every other row as it is: a grant, or another application's usage."""
    closes = {str(r.metadata["hold_id"]): r for r in rows if r.metadata.get("kind") == "close"}
    refunds = {str(r.metadata["hold_id"]): r.amount for r in rows if r.metadata.get("kind") == "refund"}
    for row in rows:
        kind = row.metadata.get("kind")
        if kind == "reserve":
            close = closes.get(row.id)
            back = (close.amount if close else 0) + refunds.get(row.id, 0)
            yield Entry(
                row.created_at, row.operation, row.resource_id, reserved=-row.amount,
                charged=-row.amount - back if close else 0, returned=back, held=0 if close else -row.amount, granted=0,
            )  # fmt: skip
        elif kind not in {"close", "refund"}:
            spent = max(0, -row.amount)
            yield Entry(row.created_at, row.operation, row.resource_id, spent, spent, 0, 0, max(0, row.amount))
