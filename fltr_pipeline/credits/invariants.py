"""What the rows of a hold, and the others of ours, must be. Pure.

Belongs here: the rules, and the findings where one is broken. Does not: balances (audit), fetching rows (stores.auth).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from fltr_pipeline.credits.entries import hold_of
from fltr_pipeline.credits.holds import CloseState, Hold, Pot, close_id, refund_id
from fltr_pipeline.errors import LedgerConflict
from fltr_pipeline.models import Op
from fltr_pipeline.stores.auth.rows import StoredRow
from fltr_pipeline.stores.auth.scan import ScannedRow

KINDS = ("reserve", "close", "void", "refund", "grant", "opening")

RESTORE = "rows of the ledger are never changed: find who changed or wrote it, and restore it from a backup"
CORRECT = "find who wrote it; then change the balance by what it moved wrongly, with a row of its own"
SWEEP = "its worker died, and no sweep has closed it: `fltr-pipeline reconcile` does; see why the sweeper did not"

_OPS = frozenset(op.value for op in Op)
_OUTCOMES = (CloseState.SETTLED, CloseState.RELEASED, CloseState.POT_GONE)


class Severity(StrEnum):
    """`error`: the ledger is wrong. `warning`: another program, or a deletion, explains it."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that breaks a rule: where it is, what is wrong, what to do."""

    severity: Severity
    row_id: str
    pot: str
    """`kind:id`."""
    subject: str
    """The document or dataset that was worked on."""
    problem: str
    remedy: str


def is_ours(row: StoredRow) -> bool:
    """Whether the pipeline wrote the row: it is about one of our ops, or says so in its metadata."""
    return row.operation in _OPS or kind_of(row) is not None


def kind_of(row: StoredRow) -> str | None:
    """What kind of row of ours it is; None where its metadata does not say."""
    m = row.metadata
    kind = m.get("kind")
    return str(kind) if kind in KINDS and "version" in m and "pot" in m else None


def open_holds(together: Sequence[ScannedRow]) -> list[ScannedRow]:
    """Of the rows of one hold, the one that reserves, if none closes it."""
    closed = any(kind_of(scanned.row) == "close" for scanned in together)
    return [] if closed else [scanned for scanned in together if kind_of(scanned.row) == "reserve"]


def check(together: Sequence[ScannedRow]) -> Iterator[Finding]:
    """What is wrong with the rows of one hold, or with a row that is of none."""
    entries: list[_Entry] = []
    readable = True
    for scanned in together:
        if not is_ours(scanned.row):
            continue
        kind = kind_of(scanned.row)
        if kind in {"grant", "opening"}:
            if problem := _grant(scanned.row) if kind == "grant" else _opening(scanned.row):
                yield _error(scanned, problem, RESTORE)
        elif kind is None or (hold := _read(scanned.row)) is None:
            readable = False
            yield _error(scanned, "its metadata can't be read", RESTORE)
        else:
            entries.append(_Entry(scanned, kind, str(scanned.row.metadata.get("hold_id")), hold))
    reserved = next((e for e in entries if e.kind in {"reserve", "void"} and e.row.id == e.hold_id), None)
    closes = [e for e in entries if e.kind == "close"]
    for entry in entries:
        yield from (_error(entry.scanned, problem, RESTORE) for problem in _own_problems(entry))
        if entry.kind in {"close", "refund"} and readable:
            yield from (_error(entry.scanned, p, CORRECT) for p in _problems(entry, reserved, closes))


def overdue(scanned: ScannedRow) -> Finding:
    """What is wrong with a hold that nobody works on and nobody has closed."""
    since = f"open since {scanned.row.created_at:%Y-%m-%d %H:%M:%S} UTC"
    return _error(scanned, f"a hold of {-scanned.row.amount} is {since}", SWEEP)


def count(value: object) -> int | None:
    """A whole number of a row's metadata; None where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of a hold; `hold` is what its metadata says it is for."""

    scanned: ScannedRow
    kind: str
    hold_id: str
    hold: Hold

    @property
    def row(self) -> StoredRow:
        return self.scanned.row

    @property
    def charged(self) -> int | None:
        """What a close says it charged; None where it does not."""
        return count(self.row.metadata.get("charged"))


def _error(scanned: ScannedRow, problem: str, remedy: str) -> Finding:
    return Finding(Severity.ERROR, scanned.row.id, scanned.pot, scanned.row.resource_id or "", problem, remedy)


def _read(row: StoredRow) -> Hold | None:
    try:
        return hold_of(row)
    except LedgerConflict:
        return None


def _expected_id(entry: _Entry) -> str:
    if entry.kind == "close":
        return close_id(entry.hold_id)
    return refund_id(entry.hold_id) if entry.kind == "refund" else entry.hold_id


def _own_problems(entry: _Entry) -> Iterator[str]:
    """What is wrong with a row of a hold, whatever the others say."""
    row, hold_id = entry.row, entry.hold_id
    if entry.hold.id != hold_id:
        yield f"it names hold {hold_id}, but says that it is for what hold {entry.hold.id} is for"
    if row.id != _expected_id(entry):
        yield f"its id is not the one of the {entry.kind} of hold {hold_id}"
    if row.type != ("refund" if row.amount > 0 else "usage"):
        yield f"a {entry.kind} of {row.amount} has type {row.type}"
    if entry.kind == "reserve" and row.amount >= 0:
        yield f"a hold of {-row.amount}"
    if entry.kind == "void" and row.amount != 0:
        yield f"a void of {row.amount}, not 0"
    if entry.kind == "close" and row.metadata.get("outcome") not in _OUTCOMES:
        yield f"a close with outcome {row.metadata.get('outcome')}"


def _problems(entry: _Entry, reserved: _Entry | None, closes: Sequence[_Entry]) -> Iterator[str]:
    """What is wrong with a close or a refund, given its hold and the closes of that."""
    kind = entry.kind
    if reserved is None:
        yield f"a {kind} of hold {entry.hold_id}, which is not there"
    elif reserved.kind == "void":
        yield f"a {kind} of hold {entry.hold_id}, which is void"
    elif entry.scanned.pot != reserved.scanned.pot:
        yield f"a {kind} to another pot than that of its hold, {reserved.scanned.pot}"
    elif kind == "close":
        yield from _close(entry, -reserved.row.amount)
    else:
        yield from _refund(entry, closes)


def _close(close: _Entry, reserved: int) -> Iterator[str]:
    charged = close.charged
    if charged is None or not 0 <= charged <= reserved:
        yield f"{close.row.metadata.get('charged')} charged of {reserved} reserved"
    elif close.row.amount != reserved - charged:
        yield f"it gives back {close.row.amount}, but {charged} was charged of {reserved} reserved"
    elif charged and close.row.metadata.get("outcome") == CloseState.RELEASED:
        yield f"a release that charges {charged}"


def _refund(refund: _Entry, closes: Sequence[_Entry]) -> Iterator[str]:
    charged = next((c.charged for c in closes), None)
    if not charged:
        yield f"a refund of {refund.row.amount}, but its hold was not charged"
    elif refund.row.amount != charged:
        yield f"a refund of {refund.row.amount}, but {charged} was charged"


def _grant(row: StoredRow) -> str | None:
    return None if row.amount > 0 and row.type == "bonus" else f"a grant of {row.amount} with type {row.type}"


def _opening(row: StoredRow) -> str | None:
    kind, _, pot_id = str(row.metadata["pot"]).partition(":")
    if row.id != Pot(kind, pot_id).opening_id:
        return f"its id is not the one of the opening of {row.metadata['pot']}"
    if row.amount or row.type != "bonus":
        return f"an opening of {row.amount} with type {row.type}"
    readable = None not in (count(row.metadata.get("opening")), count(row.metadata.get("balance")))
    return None if readable else "its metadata can't be read"
