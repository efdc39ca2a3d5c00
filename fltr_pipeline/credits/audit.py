"""The audit: does each balance equal what its rows say, and does each row keep the ledger's rules?

Belongs here: adding up the ledger per pot, and the verdict. Does not: the rules of single holds (invariants), SQL
(stores.auth.scan), what `fltr` knows of it (pipeline.audit).

The equation of a pot, from its opening row on: balance = opening + the amounts of all rows that move it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Engine

from fltr_pipeline.credits.entries import open_hold
from fltr_pipeline.credits.holds import CloseState, Hold, Pot
from fltr_pipeline.credits.invariants import Finding, Severity, check, count, is_ours, kind_of, open_holds, overdue
from fltr_pipeline.errors import LedgerConflict
from fltr_pipeline.stores.auth import people, rows, scan
from fltr_pipeline.stores.auth.rows import utc_now
from fltr_pipeline.stores.auth.scan import ScannedRow
from fltr_pipeline.stores.database import transaction

FINDINGS_KEPT = 1000
"""More are counted, not listed."""

PayersOf = Callable[[Sequence[Pot]], Mapping[Pot, Collection[str]]]
"""Pots → the ids of the users for whom they are known to have paid."""

InHand = Callable[[Sequence[Hold]], Collection[str]]
"""Holds → the ids of those on whose work a living worker is now."""

OTHERS = "compare that program's changes of the balance with its rows: each must do both, in one transaction"
NONE_LEFT = "nothing: the rows went with the users, and can't come back; the difference stays"
REMADE = "nothing, if that was intended: what the old balance held was lost with it; the difference stays"
OURS = "nobody but the pipeline wrote rows of this pot: compare its rows with `pipeline.charges`, and report it"
MEMBER = "where a member was deleted, whose rows went too: write one row of their sum, and leave the balance; else "

OVERDRAWN = "the pipeline never takes more than there is: see which program does, and grant what is missing"


@dataclass(frozen=True, slots=True)
class Totals:
    """What all rows add up to, in credits: reserved = charged + returned + held."""

    available: int
    """All balances."""
    opening: int
    """What pots had when the ledger first saw them and no row explains."""
    reserved: int
    charged: int
    returned: int
    held: int
    granted: int
    other: int
    """What other programs' rows add up to."""


@dataclass(frozen=True, slots=True)
class Audit:
    """The verdict on one snapshot of the ledger."""

    pots: int
    """Whose equation was checked."""
    not_opened: int
    """Pots that the ledger has not moved yet."""
    gone: int
    """Pots that were deleted after their opening."""
    rows: int
    holds: int
    open: int
    overdue: int
    errors: int
    warnings: int
    totals: Totals
    findings: tuple[Finding, ...]
    """Errors first; of rows and of balances at most FINDINGS_KEPT each."""

    @property
    def balanced(self) -> bool:
        """No errors."""
        return self.errors == 0


def run_audit(
    engine: Engine, *, overdue: timedelta, payers_of: PayersOf | None = None, in_hand: InHand | None = None
) -> Audit:
    """Audit all of the ledger in one snapshot, in memory that grows with the pots, not with the rows.

    `overdue`: how long a hold may be open, unless it is `in_hand`. `payers_of` is asked about pots that drifted.

    Raises:
        StoreUnavailable: fltr_auth does not answer.
    """
    with scan.snapshot(engine) as tx:
        books = Books(scan.balances(tx), scan.openings(tx), overdue_before=utc_now() - overdue)
        for together in scan.by_hold(tx):
            books.enter(together)
        drifted = list(books.drifted())
        known = payers_of(drifted) if payers_of and drifted else {}
        users = {user_id for ids in known.values() for user_id in ids}
        deleted = users - people.existing(tx, sorted(users))
    excused = _excused(engine, holds, in_hand) if (holds := books.overdue()) else set[str]()
    return books.verdict({pot: len(deleted.intersection(ids)) for pot, ids in known.items()}, excused)


def _excused(engine: Engine, holds: Sequence[Hold], in_hand: InHand | None) -> set[str]:
    """Those of the overdue holds that are worked on, or were until they were closed, after the snapshot."""
    excused = set(in_hand(holds)) if in_hand else set[str]()
    with transaction(engine) as tx:
        closed = rows.by_id(tx, [h.close_id for h in holds])
    return excused | {h.id for h in holds if h.close_id in closed}


@dataclass(frozen=True, slots=True)
class _Opening:
    """What a pot had when the ledger first saw it: `explained` by its rows, and `unexplained`."""

    row_id: str
    at: datetime
    explained: int
    unexplained: int


@dataclass(slots=True)
class _Account:
    """What the rows of one pot add up to, and what might explain a drift."""

    opening: _Opening | None = None
    """None: the ledger has not moved it yet."""
    amounts: int = 0
    others_before: int = 0
    """What other programs' rows from before the opening add up to."""
    others_since: bool = False
    lost: bool = False
    """The pot was gone when something was to be given back."""


class Books:
    """The ledger, added up row by row. Its figures are credits."""

    def __init__(
        self, balances: Mapping[str, int], openings: Sequence[ScannedRow], *, overdue_before: datetime
    ) -> None:
        """`balances` are those of all pots, by `kind:id`."""
        self._balances = balances
        self._overdue_before = overdue_before
        self._openings = {o.pot: opening for o in openings if (opening := _opening(o)) is not None}
        self._accounts = {name: _Account(opening) for name, opening in self._openings.items()}
        self._count: Counter[str] = Counter()
        self._findings: list[Finding] = []
        self._overdue: list[ScannedRow] = []

    def enter(self, together: Sequence[ScannedRow]) -> None:
        """Add the rows of one hold, or a row that is of none."""
        for scanned in together:
            self._add(scanned)
        for scanned in open_holds(together):
            self._count["open"] += 1
            self._count["held"] -= scanned.row.amount
            if scanned.row.created_at < self._overdue_before:
                self._overdue.append(scanned)
        self._note(check(together))

    def overdue(self) -> list[Hold]:
        """Holds that are open for too long, of those that can be read."""
        holds = []
        for scanned in self._overdue:
            with suppress(LedgerConflict):
                holds.append(open_hold(scanned.row))
        return holds

    def drifted(self) -> dict[Pot, int]:
        """Pots whose balance is not what their rows say, and by how much it is higher."""
        drifts = (
            (name, self._balances[name] - opening.unexplained - self._accounts[name].amounts)
            for name, opening in self._openings.items()
            if name in self._balances
        )
        return {_pot(name): drift for name, drift in drifts if drift}

    def verdict(self, deleted: Mapping[Pot, int], excused: Collection[str]) -> Audit:
        """The result, once all is entered.

        `deleted`: how many users of a drifted pot are gone; `excused`: ids of overdue holds that are in good hands.
        """
        late = [overdue(scanned) for scanned in self._overdue if scanned.row.id not in excused]
        self._note(late)
        balances = [self._drift(pot, drift, deleted.get(pot, 0)) for pot, drift in self.drifted().items()]
        balances += [self._overdraft(name) for name in self._openings if self._balances.get(name, 0) < 0]
        self._count.update(found.severity for found in balances)
        opened, there = self._openings.keys(), self._balances.keys()
        c = self._count
        return Audit(
            pots=len(opened & there),
            not_opened=len(there - opened),
            gone=len(opened - there),
            rows=c["rows"],
            holds=c["holds"],
            open=c["open"],
            overdue=len(late),
            errors=c[Severity.ERROR],
            warnings=c[Severity.WARNING],
            totals=Totals(
                available=sum(self._balances.values()),
                opening=sum(opening.unexplained for opening in self._openings.values()),
                reserved=c["reserved"],
                charged=c["reserved"] - c["returned"] - c["held"],
                returned=c["returned"],
                held=c["held"],
                granted=c["granted"],
                other=c["other"],
            ),
            findings=tuple(sorted([*balances[:FINDINGS_KEPT], *self._findings], key=_errors_first)),
        )

    def _note(self, found: Iterable[Finding]) -> None:
        for finding in found:
            self._count[finding.severity] += 1
            if len(self._findings) < FINDINGS_KEPT:
                self._findings.append(finding)

    def _add(self, scanned: ScannedRow) -> None:
        row = scanned.row
        account = self._accounts.setdefault(scanned.pot, _Account())
        account.amounts += row.amount
        self._count["rows"] += 1
        match kind_of(row):
            case "reserve":
                self._count["holds"] += 1
                self._count["reserved"] -= row.amount
            case "close" | "refund":
                self._count["returned"] += row.amount
                account.lost |= row.metadata.get("outcome") == CloseState.POT_GONE
            case "grant":
                self._count["granted"] += row.amount
            case _:
                self._count["other"] += row.amount
        if not is_ours(row) and account.opening is not None:
            if row.created_at < account.opening.at:
                account.others_before += row.amount
            else:
                account.others_since = True

    def _drift(self, pot: Pot, drift: int, deleted: int) -> Finding:
        opening, account = self._openings[pot.name], self._accounts[pot.name]
        severity, cause, remedy = _cause(pot, opening, account, deleted)
        problem = f"the balance is {self._balances[pot.name]:,}, {drift:+,} from what its rows add up to: {cause}"
        return Finding(severity, opening.row_id, pot.name, "", problem, remedy)

    def _overdraft(self, name: str) -> Finding:
        opening, account = self._openings[name], self._accounts[name]
        severity = Severity.WARNING if account.others_since else Severity.ERROR
        return Finding(severity, opening.row_id, name, "", f"the balance is {self._balances[name]:,}", OVERDRAWN)


def _cause(pot: Pot, opening: _Opening, account: _Account, deleted: int) -> tuple[Severity, str, str]:
    """Why a balance may have drifted, and what to do."""
    if deleted:
        return Severity.WARNING, f"{deleted} of its users were deleted, and their rows with them", NONE_LEFT
    if account.lost:
        return Severity.WARNING, "it was deleted and made again", REMADE
    # A team's deletion, too, moves other programs' rows: to the pots of their users.
    if account.others_since or account.others_before != opening.explained:
        return Severity.WARNING, "another program wrote or moved rows of it", OTHERS
    # Of a member whose work it never paid for, deleted with purchases or grants to it, nothing tells any more.
    return Severity.ERROR, "only the pipeline wrote rows of it", MEMBER + OURS if pot.kind == "team" else OURS


def _opening(scanned: ScannedRow) -> _Opening | None:
    """None: a row that can't be one."""
    unexplained, balance = (count(scanned.row.metadata.get(name)) for name in ("opening", "balance"))
    if unexplained is None or balance is None or scanned.row.id != _pot(scanned.pot).opening_id:
        return None
    return _Opening(scanned.row.id, scanned.row.created_at, balance - unexplained, unexplained)


def _pot(name: str) -> Pot:
    kind, _, pot_id = name.partition(":")
    return Pot(kind, pot_id)


def _errors_first(found: Finding) -> tuple[bool, str, str]:
    return found.severity is not Severity.ERROR, found.pot, found.row_id
