"""Each guard of the ledger is taken away in turn, and the test that stands for it must turn red.

Belongs here: the mutations, each by the text that it changes, and the small tests that catch them. Does not: random
orders of calls (test_ledger_state_machine), races (test_ledger_storm).

A mutation whose text is no longer in the code fails: then the guard has moved, and the mutation must follow it.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from fltr_pipeline.credits import transfers
from fltr_pipeline.credits.holds import Close, Closed, CloseState, Hold, HoldState, Payer, Pot, derived_id, key_digest
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.errors import InvalidAmount, LedgerConflict
from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline.billing import Billing, Quote, Settlement
from fltr_pipeline.settings import Prices
from fltr_pipeline.stores.auth import pots, rows
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import charges, claims
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline_tests.faults.ledger_model import Limits
from fltr_pipeline_tests.faults.ledger_scene import Scene
from fltr_pipeline_tests.money import balances

ADA = Payer("ada", Pot("user", "ada"))
DOCUMENT = "doc"

Mutation = Callable[[pytest.MonkeyPatch], None]


# Small tests, each for one guard --------------------------------------------------------------------------------------


def test_a_pot_is_never_overdrawn(scene: Scene) -> None:
    ledger = begin(scene, credits=5)
    first, second = hold(3), hold(3)
    assert ledger.reserve([first]) == {first.id: HoldState.OPEN}
    assert ledger.reserve([second]) == {second.id: HoldState.INSUFFICIENT}
    assert balance(ledger) == 2


def test_what_must_be_left_is_left(scene: Scene) -> None:
    ledger, h = begin(scene, credits=5), hold(4)
    assert ledger.reserve([h], leaving=2) == {h.id: HoldState.INSUFFICIENT}
    assert ledger.reserve([h], leaving=1) == {h.id: HoldState.OPEN}


def test_a_call_that_comes_twice_takes_and_gives_once(scene: Scene) -> None:
    ledger, h = begin(scene, credits=5), hold(3)
    for _ in range(2):
        assert ledger.reserve([h]) == {h.id: HoldState.OPEN}
        assert balance(ledger) == 2
    for _ in range(2):
        assert ledger.close([settle(h, 1)]) == {h.id: Closed(CloseState.SETTLED, 1)}
        assert balance(ledger) == 4
    assert [ledger.refund([h], reason="gave_up") for _ in range(2)] == [1, 0]
    assert balance(ledger) == 5


def test_a_hold_ends_once_whichever_way(scene: Scene) -> None:
    for settled_first in (True, False):
        ledger, h = begin(scene, credits=5), hold(3)
        ledger.reserve([h])
        ways = [settle(h, 2), Close(h, 0, CloseState.RELEASED, "expired")]
        first, second = ways if settled_first else reversed(ways)
        ended = ledger.close([first])
        assert ledger.close([second]) == ended
        assert balance(ledger) == 5 - ended[h.id].charged


def test_no_more_is_charged_than_was_reserved(scene: Scene) -> None:
    ledger, h = begin(scene, credits=5), hold(3)
    ledger.reserve([h])
    with pytest.raises(InvalidAmount):
        ledger.close([settle(h, 4)])
    assert balance(ledger) == 2


def test_a_void_keeps_a_late_reserve_out(scene: Scene) -> None:
    ledger, h = begin(scene, credits=5), hold(3)
    assert ledger.void([h], reason="expired") == {h.id: Closed(CloseState.RELEASED, 0)}
    assert ledger.reserve([h]) == {h.id: HoldState.RELEASED}
    assert balance(ledger) == 5


def test_a_key_stays_within_its_day(scene: Scene) -> None:
    ledger = begin(scene, credits=0)
    key = Payer("ada", Pot("api_key", key_digest("sk-day")), key_digest("sk-day"))
    first, second = replace(hold(3), payer=key), replace(hold(3), payer=key)
    assert ledger.reserve([first]) == {first.id: HoldState.OPEN}
    assert ledger.reserve([second]) == {second.id: HoldState.INSUFFICIENT}


def test_who_lost_the_document_writes_no_charge(scene: Scene) -> None:
    begin(scene, credits=5)
    slow, _ = claim(scene), claim(scene)
    assert worker(scene).reserve(Op.DOCUMENT_EXTRACT, "d", [quote(slow)]).granted == {}
    assert scene.look_at_fltr()[0] == {}


def test_who_lost_the_document_reserves_nothing_anew(scene: Scene) -> None:
    """An expired hold whose slow worker comes back: it neither pays for the work of the next one, nor twice."""
    begin(scene, credits=9)
    slow, mine = claim(scene), worker(scene)
    charge = mine.reserve(Op.DOCUMENT_EXTRACT, "d", [quote(slow)]).granted[DOCUMENT]
    fast = claim(scene)
    mine.void([charge], "expired")
    late = mine.settle([Settlement(charge, 3, 3, "done", slow.fence)])
    assert (late.lost, late.charged) == (frozenset({DOCUMENT}), 0)
    assert balance(mine.ledger) == 9
    again = mine.reserve(Op.DOCUMENT_EXTRACT, "d", [quote(fast)]).granted[DOCUMENT]
    assert again.sequence == 2
    assert mine.settle([Settlement(again, 3, 3, "done", fast.fence)]).charged == 3


def test_an_expired_hold_is_reserved_anew_by_whom_the_document_is_with(scene: Scene) -> None:
    begin(scene, credits=9)
    slow, mine = claim(scene), worker(scene)
    charge = mine.reserve(Op.DOCUMENT_EXTRACT, "d", [quote(slow)]).granted[DOCUMENT]
    mine.void([charge], "expired")
    settled = mine.settle([Settlement(charge, 3, 3, "done", slow.fence)])
    assert (settled.unpaid, settled.charged) == (frozenset(), 3)
    assert balance(mine.ledger) == 6


def test_the_first_price_stands(scene: Scene) -> None:
    begin(scene, credits=9)
    mine = worker(scene)
    mine.reserve(Op.DOCUMENT_EXTRACT, "d", [quote(claim(scene))])
    dearer = replace(mine, prices=Prices(version="dearer", extract=2))
    charge = dearer.reserve(Op.DOCUMENT_EXTRACT, "d", [quote(claim(scene), 4)]).granted[DOCUMENT]
    assert (charge.amount, charge.unit_price) == (3, 1)
    assert dearer.settle([Settlement(charge, 5, 5, "done", None)]).charged == 3
    assert balance(mine.ledger) == 6


# Mutations ------------------------------------------------------------------------------------------------------------


def in_sql(module: ModuleType, name: str, old: str, new: str = "") -> Mutation:
    """Another statement, or several."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        found = getattr(module, name)
        if isinstance(found, dict):
            assert all(old in statement.text for statement in found.values())
            patch.setattr(module, name, {k: text(s.text.replace(old, new)) for k, s in found.items()})
        else:
            assert old in found.text
            patch.setattr(module, name, text(found.text.replace(old, new)))

    return apply


def in_code(owner: Any, name: str, old: str, new: str) -> Mutation:
    """Another function or method, made of the changed source of the one that is there."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        found = getattr(owner, name)
        function: Callable[..., Any] = getattr(found, "fget", found)
        source = dedent(inspect.getsource(function))
        assert old in source
        module = inspect.getmodule(function)
        namespace = vars(module).copy()
        exec(source.replace(old, new), namespace)
        patch.setattr(owner, name, namespace[name])

    return apply


def a_close_id_per_outcome(patch: pytest.MonkeyPatch) -> None:
    """Settle and release no longer meet in the primary key."""
    close = transfers.close

    def mutated(tx: Any, pot: Pot, closes: Sequence[Close], *, pot_gone: bool = False) -> dict[str, Closed]:
        return close(tx, pot, [_apart(c) for c in closes], pot_gone=pot_gone)

    def _apart(c: Close) -> Close:
        apart = replace(c.hold)
        vars(apart)["close_id"] = derived_id(f"close:{c.outcome}:{c.hold.id}")
        return replace(c, hold=apart)

    patch.setattr(transfers, "close", mutated)


@dataclass(frozen=True)
class Mutant:
    """A guard that was taken away, and the test that says so."""

    name: str
    mutate: Mutation
    caught_by: Callable[[Scene], None]
    red: type[BaseException] | tuple[type[BaseException], ...] = (AssertionError, pytest.fail.Exception)
    """As what the test fails."""


LEFT = " + CAST(:leaving AS bigint)"

MUTANTS = [
    Mutant("credits >= n", in_sql(pots, "_TAKE", f" AND credits >= :amount{LEFT}"), test_a_pot_is_never_overdrawn),
    Mutant("credits >= n + what must be left", in_sql(pots, "_TAKE", LEFT), test_what_must_be_left_is_left),
    Mutant(
        "the fence of a charge",
        in_sql(charges, "_FENCED", "AND f.fence = p.fence"),
        test_who_lost_the_document_writes_no_charge,
    ),
    Mutant(
        "the fence of the next sequence",
        in_sql(charges, "_FENCED", "AND f.fence = p.fence"),
        test_who_lost_the_document_reserves_nothing_anew,
    ),
    Mutant(
        "the fence of a settlement",
        in_code(Billing, "settle", "if s.fence is not None", "if False"),
        test_who_lost_the_document_reserves_nothing_anew,
    ),
    Mutant(
        "ON CONFLICT DO NOTHING",
        in_sql(rows, "_INSERT", "ON CONFLICT (id) DO NOTHING"),
        test_a_call_that_comes_twice_takes_and_gives_once,
        red=IntegrityError,
    ),
    Mutant(
        "what was really inserted",
        in_code(transfers, "reserve", "-sum(inserted.values())", "sum(h.amount for h in holds)"),
        test_a_call_that_comes_twice_takes_and_gives_once,
    ),
    Mutant("the shared close id", a_close_id_per_outcome, test_a_hold_ends_once_whichever_way),
    Mutant(
        "the close bound",
        in_code(Ledger, "close", "if not 0 <= c.charged <= c.hold.amount", "if not 0 <= c.charged"),
        test_no_more_is_charged_than_was_reserved,
    ),
    Mutant(
        "min(actual, reserved)",
        in_code(
            Settlement, "charged", "min(self.units * self.charge.unit_price, self.charge.amount)",
            "self.units * self.charge.unit_price",
        ),
        test_the_first_price_stands,
        red=InvalidAmount,
    ),
    Mutant(
        "the first price",
        in_sql(charges, "_WRITE", "DO NOTHING", "DO UPDATE SET amount = excluded.amount"),
        test_the_first_price_stands,
        red=LedgerConflict,
    ),
    Mutant(
        "the row of a void",
        in_code(transfers, "void", "rows.insert(tx, [void_row(h, reason) for h in holds])", "{h.id: 0 for h in holds}"),
        test_a_void_keeps_a_late_reserve_out,
    ),
    Mutant(
        "a settlement of what had expired",
        in_code(Billing, "settle", "if not late:", "if True:"),
        test_an_expired_hold_is_reserved_anew_by_whom_the_document_is_with,
    ),
    Mutant(
        "a key's limits",
        in_code(transfers, "_take", 'if pot.kind == "api_key":', "if False:"),
        test_a_key_stays_within_its_day,
    ),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_ledger_without_this_guard_is_caught(scene: Scene, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.caught_by(scene)
    mutant.mutate(monkeypatch)
    with pytest.raises(mutant.red):
        mutant.caught_by(scene)


# What the tests above play with ---------------------------------------------------------------------------------------


def begin(scene: Scene, credits: int) -> Ledger:
    """Ada, her key and her document."""
    model = scene.begin()
    scene.sign_up(model, "ada", credits)
    scene.issue_key(model, "sk-day", "ada", 20, Limits(5, None))
    scene.upload(DOCUMENT)
    return Ledger(scene.auth)


_numbers = iter(range(10**9))


def hold(amount: int) -> Hold:
    return Hold(
        subject_id=f"doc-{next(_numbers)}", op=Op.DOCUMENT_EMBED, generation=1, sequence=1, amount=amount, payer=ADA,
        job_id=None, run_id=None, price_version="1", unit_price=1,
    )  # fmt: skip


def settle(h: Hold, charged: int) -> Close:
    return Close(h, charged, CloseState.SETTLED, "done")


def balance(ledger: Ledger) -> int:
    return balances(ledger, [ADA.pot])[ADA.pot]


def worker(scene: Scene) -> Billing:
    return Billing(scene.fltr, Ledger(scene.auth), Prices(extract=1, embed=0), charging=True)


def claim(scene: Scene) -> Claim:
    """The document, from whoever has it."""
    scene.lease_runs_out(DOCUMENT)
    with transaction(scene.fltr) as tx:
        (got,) = claims.claim(
            tx, dataset_id=DOCUMENT, stage=Stage.EXTRACT, run_id=str(next(_numbers)), limit=1, lease_seconds=3600
        )
    return got


def quote(c: Claim, units: int = 3) -> Quote:
    return Quote(c.document_id, c.generation, c.fence, units, True, ADA, None, None)
