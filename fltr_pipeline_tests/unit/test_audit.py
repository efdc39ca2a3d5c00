"""The audit's rules, one broken row at a time, and its sums, against histories that are known to be right."""

import random
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltr_pipeline.credits.audit import FINDINGS_KEPT, Audit, Books
from fltr_pipeline.credits.entries import (
    Opening,
    close_row,
    grant_row,
    hold_row,
    opening_row,
    refund_row,
    void_row,
)
from fltr_pipeline.credits.holds import Close, CloseState, Hold, Payer, Pot, close_id
from fltr_pipeline.credits.invariants import Finding, Severity
from fltr_pipeline.models import Op
from fltr_pipeline.stores.auth.rows import LedgerRow, StoredRow
from fltr_pipeline.stores.auth.scan import ScannedRow

NOW = datetime(2026, 11, 22, 12)  # noqa: DTZ001 - UTC without a zone, as the ledger has it
HOUR = timedelta(hours=1)
ANN = Payer("ann", Pot("user", "ann"))
RED = Payer("bob", Pot("team", "red"))
KEY = Payer("ann", Pot("api_key", "0123456789abcdef"), "0123456789abcdef")
HOLD = Hold("document", Op.DOCUMENT_EMBED, 2, 3, 10, ANN, "job", "run", "2026-11", 1)
OTHER_HOLD = replace(HOLD, subject_id="another")


def scanned(row: LedgerRow, at: datetime = NOW) -> ScannedRow:
    """As the scan would give it."""
    pot = row.metadata.get("pot") or f"user:{row.user_id}"
    stored = StoredRow(
        id=row.id, user_id=row.user_id, team_id=row.team_id, api_key_id=row.api_key_id, amount=row.amount,
        type=row.type, operation=row.operation, resource_id=row.resource_id, created_at=at, metadata=row.metadata,
    )  # fmt: skip
    return ScannedRow(stored, str(pot))


def changed(row: ScannedRow, metadata: Mapping[str, object] | None = None, **columns: Any) -> ScannedRow:
    """As if somebody had changed that row."""
    if metadata is not None:
        columns["metadata"] = {**row.row.metadata, **metadata}
    return replace(row, row=replace(row.row, **columns))


def without(row: ScannedRow, *names: str) -> ScannedRow:
    return replace(row, row=replace(row.row, metadata={k: v for k, v in row.row.metadata.items() if k not in names}))


def bare(row: ScannedRow) -> ScannedRow:
    return without(row, *row.row.metadata)


def reserved(hold: Hold = HOLD, at: datetime = NOW) -> ScannedRow:
    return scanned(hold_row(hold), at)


def closed(charged: int, outcome: CloseState = CloseState.SETTLED, hold: Hold = HOLD) -> ScannedRow:
    return scanned(close_row(Close(hold, charged, outcome, "done", used=7), reserved(hold).row))


def refunded(charged: int, hold: Hold = HOLD) -> ScannedRow:
    return scanned(refund_row(hold, closed(charged, hold=hold).row, "our fault"))


def voided(hold: Hold = HOLD) -> ScannedRow:
    return scanned(void_row(hold, "expired"))


def granted(amount: int, payer: Payer = ANN, at: datetime = NOW) -> ScannedRow:
    return scanned(grant_row(str(uuid.uuid4()), payer, amount, "sorry"), at)


def opened(pot: Pot, balance: int, opening: int | None = None, at: datetime = NOW - HOUR) -> ScannedRow:
    return scanned(opening_row(Opening(pot, "ann", balance, balance if opening is None else opening)), at)


def foreign(amount: int, at: datetime = NOW, user_id: str = "ann", metadata: object = None) -> ScannedRow:
    """What another program wrote."""
    return scanned(
        LedgerRow(
            id=str(uuid.uuid4()), user_id=user_id, team_id=None, amount=amount,
            type="usage" if amount < 0 else "purchase", operation="document_upload", resource_id="x",
            metadata=metadata if isinstance(metadata, dict) else {},
        ),
        at,
    )  # fmt: skip


def together(rows: Iterable[ScannedRow]) -> Iterator[list[ScannedRow]]:
    """The rows of one hold together, as the scan gives them."""

    def entry(row: ScannedRow) -> str:
        return str(row.row.metadata.get("hold_id") or row.row.id)

    return (list(rows) for _, rows in groupby(sorted(rows, key=lambda r: (entry(r), r.row.id)), key=entry))


def audited(
    rows: Sequence[ScannedRow],
    balances: Mapping[str, int] | None = None,
    deleted: Mapping[Pot, int] | None = None,
    excused: Collection[str] = (),
) -> Audit:
    openings = [row for row in rows if row.row.operation == "opening"]
    books = Books(balances or {}, openings, overdue_before=NOW - HOUR)
    for group in together(rows):
        books.enter(group)
    return books.verdict(deleted or {}, excused)


def problems(*rows: ScannedRow) -> list[tuple[str, str]]:
    findings = audited(rows).findings
    assert all(f.severity is Severity.ERROR and f.remedy and f.pot for f in findings)
    return [(f.row_id, f.problem) for f in findings]


# --- the rows of a hold -----------------------------------------------------------------------------------------------

RIGHT: dict[str, list[ScannedRow]] = {
    "open": [reserved()],
    "settled": [reserved(), closed(4)],
    "settled whole": [reserved(), closed(10)],
    "settled for nothing": [reserved(), closed(0)],
    "released": [reserved(), closed(0, CloseState.RELEASED)],
    "pot gone": [reserved(), closed(4, CloseState.POT_GONE)],
    "refunded": [reserved(), closed(4), refunded(4)],
    "void": [voided()],
    "of a team": [reserved(replace(HOLD, payer=RED)), closed(4, hold=replace(HOLD, payer=RED))],
    "of an API key": [reserved(replace(HOLD, payer=KEY)), closed(4, hold=replace(HOLD, payer=KEY))],
    "tried again": [reserved(), closed(0), reserved(replace(HOLD, sequence=4))],
    "granted": [granted(5)],
    "opened": [opened(ANN.pot, 7)],
    "another program's": [
        foreign(-3), foreign(5, metadata={"kind": "refund"}), foreign(1, metadata={"kind": ["close"], "pot": 1}),
        foreign(-1, metadata={"hold_id": HOLD.id}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_what_the_ledger_writes_keeps_the_rules(case: str) -> None:
    assert problems(*RIGHT[case]) == []


WRONG: dict[str, tuple[list[ScannedRow], ScannedRow, str]] = {
    "a second close under another id": (
        [reserved(), closed(4)], changed(closed(4), id="another"), "its id is not the one of the close of hold"
    ),
    "a close of no hold": ([], closed(4), "which is not there"),
    "a close of another hold's id": (
        [reserved()], changed(closed(4), id=close_id(OTHER_HOLD.id)), "its id is not the one of the close"
    ),
    "a close for other work than its hold": (
        [reserved()], changed(closed(4), resource_id="another"), "says that it is for what hold"
    ),
    "a close to another pot": ([reserved()], replace(closed(4), pot="team:red"), "another pot"),
    "a close of a void": ([voided()], closed(0, CloseState.RELEASED), "which is void"),
    "a refund of a void": ([voided()], refunded(4), "which is void"),
    "more charged than reserved": ([reserved()], changed(closed(4), {"charged": 11}), "11 charged of 10"),
    "less charged than nothing": ([reserved()], changed(closed(4), {"charged": -1}), "-1 charged of 10"),
    "no charge in a close": ([reserved()], without(closed(4), "charged"), "None charged"),
    "a charge that is no number": ([reserved()], changed(closed(4), {"charged": True}), "True charged"),
    "too much given back": ([reserved()], changed(closed(4), amount=7), "gives back 7, but 4 was charged"),
    "too little given back": (
        [reserved()], changed(closed(4, CloseState.POT_GONE), amount=0, type="usage"), "gives back 0"
    ),
    "a close of another type": ([reserved()], changed(closed(4), type="bonus"), "has type bonus"),
    "a close of 0 as a refund": ([reserved()], changed(closed(10), type="refund"), "has type refund"),
    "an unknown outcome": ([reserved()], changed(closed(4), {"outcome": "payer_gone"}), "outcome payer_gone"),
    "a release that charges": ([reserved()], changed(closed(4), {"outcome": "released"}), "a release that charges 4"),
    "a refund under another id": (
        [reserved(), closed(4), refunded(4)], changed(refunded(4), id="another"), "not the one of the refund"
    ),
    "a refund of an open hold": ([reserved()], refunded(4), "was not charged"),
    "a refund of a release": ([reserved(), closed(0, CloseState.RELEASED)], refunded(4), "was not charged"),
    "a refund of more than was charged": ([reserved(), closed(4)], refunded(5), "a refund of 5, but 4"),
    "a refund to another pot": ([reserved(), closed(4)], replace(refunded(4), pot="user:bob"), "another pot"),
    "a refund of no hold": ([], refunded(4), "which is not there"),
    "a hold under another id": ([], changed(reserved(), id="another"), "not the one of the reserve"),
    "a hold for other work": ([], changed(reserved(), {"generation": 9}), "says that it is for what hold"),
    "a hold that gives": ([], changed(reserved(), amount=10, type="refund"), "a hold of -10"),
    "a hold of another type": ([], changed(reserved(), type="purchase"), "has type purchase"),
    "a void that moves something": ([], changed(voided(), amount=-3), "a void of -3"),
    "a hold that is overdue": ([], reserved(at=NOW - 2 * HOUR), "open since 2026-11-22 10:00:00 UTC"),
    "a hold without metadata": ([closed(4)], bare(reserved()), "can't be read"),
    "a hold without its generation": ([], without(reserved(), "generation"), "can't be read"),
    "a hold of an unknown op": ([], changed(reserved(), {"op": "document_shred"}), "can't be read"),
    "a grant of nothing": ([], changed(granted(1), amount=0), "a grant of 0"),
    "a grant of another type": ([], changed(granted(1), type="usage"), "type usage"),
    "an opening that moves something": ([], changed(opened(ANN.pot, 7), amount=7), "an opening of 7"),
    "an opening under another id": ([], changed(opened(ANN.pot, 7), id="another"), "not the one of the opening"),
    "an opening without its amount": ([], without(opened(ANN.pot, 7), "opening"), "can't be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_row_that_breaks_a_rule_is_named_with_what_is_wrong(case: str) -> None:
    right, wrong, words = WRONG[case]
    assert problems(*right, wrong) == [(wrong.row.id, next(p for _, p in problems(*right, wrong) if words in p))]


def test_a_hold_is_overdue_only_while_it_is_open() -> None:
    old = NOW - 2 * HOUR
    audit = audited([reserved(at=old), closed(4), reserved(OTHER_HOLD, at=old), reserved(replace(HOLD, generation=9))])
    assert (audit.holds, audit.open, audit.overdue, audit.errors) == (3, 2, 1, 1)
    (finding,) = audit.findings
    assert (finding.row_id, finding.subject, finding.pot) == (OTHER_HOLD.id, "another", "user:ann")


def test_a_hold_is_not_overdue_while_it_is_in_good_hands() -> None:
    rows = [reserved(at=NOW - 2 * HOUR), reserved(OTHER_HOLD, at=NOW - 2 * HOUR)]
    audit = audited(rows, excused={HOLD.id})
    assert (audit.open, audit.overdue, [f.row_id for f in audit.findings]) == (2, 1, [OTHER_HOLD.id])


# --- balances ---------------------------------------------------------------------------------------------------------


def drift(rows: Sequence[ScannedRow], balance: int, deleted: int = 0) -> list[Finding]:
    return list(audited(rows, {"user:ann": balance}, {ANN.pot: deleted}).findings)


def test_a_balance_is_its_opening_and_all_that_moved_it() -> None:
    rows = [
        foreign(20, NOW - 2 * HOUR), opened(ANN.pot, balance=50, opening=30), reserved(), closed(4), granted(5),
        reserved(OTHER_HOLD), foreign(-1), foreign(1000, user_id="bob"), granted(7, RED),
    ]  # fmt: skip
    audit = audited(rows, {"user:ann": 50 - 4 + 5 - 10 - 1, "user:bob": 3, "team:red": 7})
    assert audit.findings == ()
    assert audit.balanced
    assert (audit.pots, audit.not_opened, audit.gone, audit.rows) == (1, 2, 0, 9)
    totals = audit.totals
    assert (totals.opening, totals.reserved, totals.charged, totals.returned, totals.held) == (30, 20, 4, 6, 10)
    assert (totals.granted, totals.other, totals.available) == (12, 1019, 50)


def test_a_drift_that_only_the_pipeline_can_have_made_is_an_error() -> None:
    opening = opened(ANN.pot, balance=50, opening=30)
    rows = [foreign(20, NOW - 2 * HOUR), opening, reserved(), closed(4)]
    (finding,) = drift(rows, 45)
    assert (finding.severity, finding.row_id, finding.pot) == (Severity.ERROR, opening.row.id, "user:ann")
    assert "the balance is 45, -1 from what its rows add up to" in finding.problem
    assert "member" not in finding.remedy
    assert drift(rows, 46) == []


def test_a_team_that_drifts_may_have_lost_a_member_whom_nothing_tells_of_any_more() -> None:
    rows = [opened(RED.pot, 50)]  # a grant of 7 since went with the member
    (finding,) = audited(rows, {"team:red": 57}).findings
    assert finding.severity is Severity.ERROR
    assert "where a member was deleted" in finding.remedy
    mended = [*rows, ScannedRow(foreign(7).row, RED.pot.name)]
    assert audited(mended, {"team:red": 57}).findings == ()


@pytest.mark.parametrize(
    ("more", "deleted", "words"),
    [
        ([foreign(7)], 0, "another program"),
        ([foreign(7, NOW - 2 * HOUR)], 0, "another program"),  # not there when the pot was opened
        ([closed(0, CloseState.POT_GONE)], 0, "deleted and made again"),
        ([], 2, "2 of its users were deleted"),
    ],
)
def test_a_drift_that_another_program_or_a_deletion_explains_is_a_warning(
    more: list[ScannedRow], deleted: int, words: str
) -> None:
    (finding,) = drift([opened(ANN.pot, 50), reserved(), *more], 12_345, deleted)
    assert finding.severity is Severity.WARNING
    assert words in finding.problem
    assert "12,345" in finding.problem
    assert finding.remedy


@pytest.mark.parametrize(("others", "severity"), [([], Severity.ERROR), ([foreign(-9)], Severity.WARNING)])
def test_a_balance_below_zero_is_told(others: list[ScannedRow], severity: Severity) -> None:
    (finding,) = drift([opened(ANN.pot, 3), *others, reserved()], -7 - 9 * len(others))
    assert finding.severity is severity
    assert "the balance is -" in finding.problem


def test_a_pot_without_opening_row_or_without_balance_is_counted_and_not_judged() -> None:
    audit = audited([opened(RED.pot, 9), foreign(5)], {"user:ann": 1234})
    assert (audit.pots, audit.not_opened, audit.gone, audit.findings) == (0, 1, 1, ())


def test_an_opening_row_that_can_not_be_one_opens_nothing() -> None:
    audit = audited([changed(opened(ANN.pot, 9), id="another")], {"user:ann": 1234})
    assert (audit.pots, audit.not_opened, audit.errors) == (0, 1, 1)


def test_findings_are_all_counted_and_listed_up_to_a_limit_errors_first() -> None:
    many = [reserved(replace(HOLD, subject_id=f"document {n}"), NOW - 2 * HOUR) for n in range(FINDINGS_KEPT + 5)]
    rows = [*many, opened(ANN.pot, 50), opened(Pot("user", "bob"), 50), foreign(1)]
    audit = audited(rows, {"user:ann": 1, "user:bob": 1})
    assert (audit.errors, audit.warnings, audit.overdue) == (FINDINGS_KEPT + 6, 1, FINDINGS_KEPT + 5)
    assert len(audit.findings) == FINDINGS_KEPT + 2
    assert [f.severity for f in audit.findings[-2:]] == [Severity.ERROR, Severity.WARNING]


# --- histories --------------------------------------------------------------------------------------------------------

WORKS = st.lists(
    st.tuples(
        st.sampled_from([ANN, RED, KEY]),
        st.integers(1, 100),
        st.sampled_from(["open", "void", "settled", "released", "refunded"]),
        st.floats(0, 1),
    ),
    max_size=12,
)


def history(works: list[tuple[Payer, int, str, float]]) -> tuple[list[ScannedRow], dict[str, int]]:
    rows = [opened(payer.pot, 1000) for payer in (ANN, RED, KEY)]
    balances = {row.pot: 1000 for row in rows}
    for n, (payer, amount, end, share) in enumerate(works):
        hold = replace(HOLD, subject_id=f"document {n}", amount=amount, payer=payer)
        charged = 0 if end == "released" else max(1, round(share * amount))
        if end == "void":
            rows.append(voided(hold))
            continue
        rows.append(reserved(hold))
        balances[payer.pot.name] -= amount
        if end != "open":
            outcome = CloseState.RELEASED if end == "released" else CloseState.SETTLED
            rows.append(closed(charged, outcome, hold))
            balances[payer.pot.name] += amount - charged
        if end == "refunded":
            rows.append(refunded(charged, hold))
            balances[payer.pot.name] += charged
    return rows, balances


@given(works=WORKS)
def test_a_right_history_is_balanced_and_its_totals_add_up(works: list[tuple[Payer, int, str, float]]) -> None:
    rows, balances = history(works)
    audit = audited(rows, balances)
    assert audit.findings == ()
    t = audit.totals
    assert t.reserved == t.charged + t.returned + t.held == sum(a for _, a, end, _ in works if end != "void")
    assert t.available == t.opening + t.granted + t.other - t.charged - t.held
    assert audit.holds == sum(end != "void" for _, _, end, _ in works)
    assert audit.open == sum(end == "open" for _, _, end, _ in works)


Change = Callable[[ScannedRow], ScannedRow]
CHANGES: dict[str, Change] = {
    "amount": lambda row: changed(row, amount=row.row.amount + 1),
    "id": lambda row: changed(row, id=str(uuid.uuid4())),
    "type": lambda row: changed(row, type="purchase"),
    "metadata": lambda row: without(row, "generation", "balance"),
}


@given(works=WORKS, change=st.sampled_from(sorted(CHANGES)), order=st.randoms())
def test_whatever_row_is_changed_an_error_names_it_or_its_pot(
    works: list[tuple[Payer, int, str, float]], change: str, order: random.Random
) -> None:
    rows, balances = history(works)
    row = order.choice(rows)
    wrong = CHANGES[change](row)
    findings = audited([wrong if r is row else r for r in rows], balances).findings
    errors = {named for f in findings if f.severity is Severity.ERROR for named in (f.row_id, f.pot)}
    # The amount of an open hold stands nowhere else: its pot tells.
    assert wrong.row.id in errors or (change == "amount" and wrong.pot in errors)
