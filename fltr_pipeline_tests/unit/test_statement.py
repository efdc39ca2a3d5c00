"""Statements by document, op and run; the entries themselves are netted in test_entries."""

import random
from dataclasses import asdict, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltr_pipeline.credits.entries import (
    Opening,
    close_row,
    grant_row,
    hold_row,
    opening_row,
    refund_row,
    void_row,
)
from fltr_pipeline.credits.holds import Close, CloseState, Hold, Payer, Pot
from fltr_pipeline.credits.statement import By, Entry, Group, entries, grouped
from fltr_pipeline.models import Op
from fltr_pipeline.stores.auth.rows import LedgerRow, StoredRow

BEGINNING = datetime(2026, 1, 1)  # noqa: DTZ001 - UTC without a zone, as the ledger has it
ANN = Payer("ann", Pot("user", "ann"))
HOLD = Hold("document", Op.DOCUMENT_EMBED, 1, 1, 10, ANN, "job", "run 1", "2026-11", 1)
NUMBERS = ("reserved", "charged", "returned", "held", "granted")


def stored(row: LedgerRow, minute: int = 0) -> StoredRow:
    return StoredRow(
        id=row.id, user_id=row.user_id, team_id=row.team_id, api_key_id=row.api_key_id, amount=row.amount,
        type=row.type, operation=row.operation, resource_id=row.resource_id, metadata=row.metadata,
        created_at=BEGINNING + timedelta(minutes=minute),
    )  # fmt: skip


def closed(hold: Hold, charged: int) -> StoredRow:
    return stored(close_row(Close(hold, charged, CloseState.SETTLED, "done"), stored(hold_row(hold))), 59)


def other(amount: int, minute: int = 0, metadata: dict[str, object] | None = None) -> StoredRow:
    kind = "usage" if amount < 0 else "purchase"
    row = LedgerRow(f"other {amount} {minute}", "ann", None, amount, kind, "checkout", "x", metadata or {})
    return stored(row, minute)


def line(key: str | None, first: int, last: int, lines: int, *numbers: int) -> Group:
    since, until = (BEGINNING + timedelta(minutes=n) for n in (first, last))
    return Group(key, since, until, lines, *numbers)


EXTRACT = replace(HOLD, op=Op.DOCUMENT_EXTRACT, amount=4)
AGAIN = replace(HOLD, generation=2, run_id="run 2")
ELSEWHERE = replace(HOLD, subject_id="elsewhere", run_id="run 2")
ROWS = [
    other(50, 0), stored(hold_row(EXTRACT), 1), closed(EXTRACT, 4), stored(hold_row(HOLD), 2), closed(HOLD, 3),
    stored(hold_row(AGAIN), 3), closed(AGAIN, 6),
    stored(refund_row(AGAIN, closed(AGAIN, 6), "our fault"), 59), stored(hold_row(ELSEWHERE), 4),
    other(-2, 5), stored(grant_row("gift", ANN, 5, "sorry"), 6),
]  # fmt: skip


def test_lines_of_a_document_are_netted_and_all_others_stand_together() -> None:
    assert grouped(entries(ROWS), By.DOCUMENT) == [
        line("document", 1, 3, 3, 24, 7, 17, 0, 0),
        line("elsewhere", 4, 4, 1, 10, 0, 0, 10, 0),
        line(None, 0, 6, 3, 2, 2, 0, 0, 55),
    ]


def test_lines_of_an_op_are_netted_with_other_programs_operations_beside_them() -> None:
    assert grouped(entries(ROWS), By.OP) == [
        line("document_extract", 1, 1, 1, 4, 4, 0, 0, 0),
        line("document_embed", 2, 4, 3, 30, 3, 17, 10, 0),
        line("checkout", 0, 5, 2, 2, 2, 0, 0, 50),
        line("grant", 6, 6, 1, 0, 0, 0, 0, 5),
    ]


def test_lines_of_a_run_are_netted() -> None:
    assert grouped(entries(ROWS), By.RUN) == [
        line("run 1", 1, 2, 2, 14, 7, 7, 0, 0),
        line("run 2", 3, 4, 2, 20, 0, 10, 10, 0),
        line(None, 0, 6, 3, 2, 2, 0, 0, 55),
    ]


def test_what_never_moved_a_credit_is_no_line() -> None:
    rows = [stored(void_row(HOLD, "expired")), stored(opening_row(Opening(ANN.pot, "ann", 9, 9)))]
    assert list(entries(rows)) == []
    assert grouped([], By.DOCUMENT) == []


@pytest.mark.parametrize("metadata", [{"kind": "close"}, {"kind": "refund", "pot": "x"}, {"kind": ["close"]}])
def test_metadata_of_another_program_in_our_words_is_not_ours(metadata: dict[str, object]) -> None:
    (entry,) = entries([other(7, metadata=metadata)])
    assert (entry.granted, entry.charged) == (7, 0)


WORKS = st.lists(
    st.tuples(st.sampled_from(Op), st.sampled_from("abc"), st.sampled_from(["1", "2", None]), st.integers(0, 9)),
    max_size=20,
)


@given(works=WORKS, by=st.sampled_from([By.DOCUMENT, By.OP, By.RUN]), order=st.randoms())
def test_however_it_is_grouped_it_adds_up_to_the_same(
    works: list[tuple[Op, str, str | None, int]], by: By, order: random.Random
) -> None:
    rows = [other(5)]
    for n, (op, document, run, charged) in enumerate(works):
        hold = replace(HOLD, op=op, subject_id=document, run_id=run, sequence=n)
        rows += [stored(hold_row(hold), n), *([closed(hold, charged)] if charged else [])]
    order.shuffle(rows)
    lines = list(entries(rows))

    def sums(counted: list[Entry] | list[Group]) -> list[int]:
        return [sum(asdict(c)[name] for c in counted) for name in NUMBERS]

    groups = grouped(lines, by)
    assert sums(groups) == sums(lines)
    assert sum(g.lines for g in groups) == len(lines)
    assert len({g.key for g in groups}) == len(groups)
    assert all(g.reserved == g.charged + g.returned + g.held for g in groups)
    assert [g.last for g in groups] == sorted(g.last for g in groups)
