"""A user's credits, netted: per hold, and by document, op or run. Pure.

Belongs here: reading ledger rows as holds, closes and grants. Does not: fetching them (ledger).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fltr_pipeline.credits.holds import Pot
from fltr_pipeline.credits.invariants import kind_of
from fltr_pipeline.models import Op
from fltr_pipeline.stores.auth.rows import StoredRow

_OPS = frozenset(op.value for op in Op)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a statement: one hold with its close and its refund, a grant, or a line of another program."""

    at: datetime
    operation: str
    resource_id: str
    reserved: int
    charged: int
    returned: int
    held: int
    """Still reserved."""
    granted: int
    run_id: str | None = None
    """The run that reserved it."""


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


class By(StrEnum):
    """What a statement has a line for."""

    HOLD = "hold"
    DOCUMENT = "document"
    OP = "op"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class Group:
    """Entries of one document, op or run, netted: reserved = charged + returned + held."""

    key: str | None
    """Document (for a set-up, dataset), operation or run; None: the lines that have none."""
    first: datetime
    last: datetime
    lines: int
    reserved: int
    charged: int
    returned: int
    held: int
    granted: int


def entries(rows: Sequence[StoredRow]) -> Iterator[Entry]:
    """Holds with their closes and refunds; every other row as it is: a grant, or another program's usage or refund.

    What never moved a credit, a void or an opening, is left out.
    """
    closes = {row.metadata.get("hold_id"): row.amount for row in rows if kind_of(row) == "close"}
    refunds = {row.metadata.get("hold_id"): row.amount for row in rows if kind_of(row) == "refund"}
    for row in rows:
        kind = kind_of(row)
        if kind == "reserve":
            closed = row.id in closes
            back = closes.get(row.id, 0) + refunds.get(row.id, 0)
            yield Entry(
                row.created_at, row.operation, row.resource_id, reserved=-row.amount,
                charged=-row.amount - back if closed else 0, returned=back, held=0 if closed else -row.amount,
                granted=0, run_id=row.metadata.get("run_id"),
            )  # fmt: skip
        elif kind is None and row.type == "refund" and row.amount > 0:
            yield Entry(row.created_at, row.operation, row.resource_id, 0, -row.amount, row.amount, 0, 0)
        elif kind in {None, "grant"}:
            spent = max(0, -row.amount)
            yield Entry(row.created_at, row.operation, row.resource_id, spent, spent, 0, 0, max(0, row.amount))


def grouped(lines: Iterable[Entry], by: By) -> list[Group]:
    """The lines netted by what they have in common, the one that was active last at the end."""
    together: dict[str | None, list[Entry]] = {}
    for entry in lines:
        together.setdefault(_key(entry, by), []).append(entry)
    return sorted((_group(key, mine) for key, mine in together.items()), key=lambda group: group.last)


def _key(entry: Entry, by: By) -> str | None:
    if by is By.OP:
        return entry.operation
    if by is By.RUN:
        return entry.run_id
    return entry.resource_id if entry.operation in _OPS else None


def _group(key: str | None, lines: Sequence[Entry]) -> Group:
    return Group(
        key=key,
        first=min(e.at for e in lines),
        last=max(e.at for e in lines),
        lines=len(lines),
        reserved=sum(e.reserved for e in lines),
        charged=sum(e.charged for e in lines),
        returned=sum(e.returned for e in lines),
        held=sum(e.held for e in lines),
        granted=sum(e.granted for e in lines),
    )
