"""Any order of the ledger's calls, crashed, repeated and reordered, and what others do beside: against the model.

Belongs here: the world that both machines live in, how a call is compared, and the machine of the ledger alone. Does
not: charges and documents (billing_machine), running a machine (test_ledger_state_machine).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fltr_pipeline.credits.holds import Close, CloseState, Hold, Payer, Pot, key_digest
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.errors import InvalidAmount, LedgerConflict, PayerGone, PotGone, StoreUnavailable
from fltr_pipeline.models import Op
from fltr_pipeline_tests.faults.ledger_model import Call, LedgerModel, Limits, check, differences, run
from fltr_pipeline_tests.faults.ledger_scene import Crashed, Fate, Scene
from fltr_pipeline_tests.money import balances

KEYS = {"sk-free": Limits(None, None), "sk-daily": Limits(9, None), "sk-monthly": Limits(12, 20)}
DIGESTS = {key_digest(key): key for key in KEYS}
NAMED = [*DIGESTS, key_digest("sk-without-a-pool")]
"""What an upload may name."""

Fates = tuple[Fate, int] | None
Answer = TypeVar("Answer")

fates: st.SearchStrategy[Fates] = st.one_of(
    st.none(), st.none(), st.none(), st.tuples(st.sampled_from(Fate), st.integers(1, 4))
)
amounts = st.integers(1, 6)


class Beside(StrEnum):
    """What another program does."""

    READ = "read"
    TOP_UP = "top-up"
    USAGE = "usage"
    SIGN_UP = "sign-up"
    DAY = "a day passes"
    DELETE_USER = "delete a user"
    DELETE_POT = "delete a team, a key's pool, or a balance while its user stays"


class Machine(RuleBasedStateMachine):
    """Users, a team, API keys; and another program that writes the same tables."""

    scene: Scene
    calls: Sequence[str]
    """Names of methods that draw what they need, the frequent ones more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.model = self.begin(self.scene.begin())
        for user, credits in (("ada", 12), ("bob", 0), ("cyd", 5)):
            self.scene.sign_up(self.credits, user, credits)
        self.scene.found_team(self.credits, "crew", "bob", ["bob", "cyd"], 15)
        for key, limits in KEYS.items():
            self.scene.issue_key(self.credits, key, "ada", 25, limits)
        self.payers = [p for u in ("ada", "bob", "cyd") for p in self.credits.payers(u, NAMED).values()]
        self.steps = 0
        self.restart()

    def begin(self, credits: LedgerModel) -> Any:
        """The model of this machine, of which the ledger's is a part."""
        return credits

    @property
    def credits(self) -> LedgerModel:
        """The ledger's part."""
        model: LedgerModel = self.model
        return model

    def restart(self) -> None:
        """As a new process."""
        self.ledger = Ledger(self.scene.auth)

    def look(self) -> Any:
        """What the model's view must be."""
        return self.scene.look()

    def call(
        self,
        real: Callable[[], Answer],
        ideal: Callable[[Any], Call[Answer]],
        fate: Fates,
        like: Callable[[Answer, Answer], bool] = lambda told, right: told == right,
    ) -> Answer | None:
        """Both do it. Where the call ends midway, the world must be one in which the model stopped at some COMMIT."""
        try:
            with self.scene.faults.planned(*(fate or (None, 0))):
                told = _or_gone(real)
        except (Crashed, StoreUnavailable):
            if fate is None:
                raise
            if fate[0].deadly:
                self.restart()
            self._resume(ideal)
            return None
        right = _or_gone(lambda: run(ideal(self.model)))
        assert (told is None) == (right is None), (told, right)
        assert told is None or right is None or like(told, right), (told, right)
        return told

    def _resume(self, ideal: Callable[[Any], Call[Answer]]) -> None:
        seen, stopped = self.look(), [self.model.copy()]

        def go_on() -> None:
            for _ in ideal(self.model):
                stopped.append(self.model.copy())

        _or_gone(go_on)
        possible = [m for m in stopped if m.view() == seen]
        assert possible, [differences(seen, m.view()) for m in stopped]
        self.model = possible[-1]

    def payer(self, data: st.DataObject) -> Payer:
        """One of all."""
        return data.draw(st.sampled_from(self.payers), label="payer")

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """One call. Rules of their own would be switched off at random, and what takes five of them never happen."""
        getattr(self, data.draw(st.sampled_from(self.calls), label="call"))(data)

    def grant(self, data: st.DataObject) -> None:
        payer, amount, fate = self.payer(data), data.draw(amounts), data.draw(fates)
        self.call(lambda: self.ledger.grant(payer, amount, reason="sorry"), lambda m: m.grant(payer, amount), fate)

    def beside(self, data: st.DataObject) -> None:
        """What others do. Deletions come late, or there is nothing left to do."""
        payer, what, amount = self.payer(data), data.draw(st.sampled_from(Beside)), data.draw(amounts)
        key, pot = DIGESTS.get(payer.pot.id), payer.pot
        balance = self.credits.balances.get(pot)
        if what is Beside.READ:
            self.read()
        elif what is Beside.DAY:
            self.scene.a_day_passes(self.credits)
        elif what is Beside.SIGN_UP:
            self.scene.sign_up(self.credits, f"dan {self.steps}", 3 * amount)
            self.payers.append(Payer(f"dan {self.steps}", Pot("user", f"dan {self.steps}")))
        elif payer.user_id not in self.credits.teams_of or balance is None:
            return
        elif what in {Beside.TOP_UP, Beside.USAGE}:
            change = amount if what is Beside.TOP_UP else -min(amount, balance)
            self.scene.other(self.credits, pot, payer.user_id, change, key)
        elif what is Beside.DELETE_USER and self.steps > 25:
            self.scene.delete_user(self.credits, payer.user_id)
        elif what is Beside.DELETE_POT and self.steps > 15:
            self.scene.delete_pot(self.credits, pot, key)

    def read(self) -> None:
        """Who pays, and how much there is."""
        for user in ("ada", "bob", "cyd"):
            assert self.ledger.payers(user, NAMED) == self.credits.payers(user, NAMED)
        there = {p.pot for p in self.payers} & self.credits.balances.keys()
        assert balances(self.ledger, [*there, Pot("user", "nobody")]) == {p: self.credits.balances[p] for p in there}
        assert self.ledger.spendable(there) == {p: self.credits.spendable(p) for p in there}

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        self.steps += 1
        seen, right = self.look(), self.model.view()
        assert seen == right, differences(seen, right)
        self.check(seen)

    def check(self, seen: Any) -> None:
        """The promises, on what is there."""
        check(seen, self.credits)


class LedgerMachine(Machine):
    """The ledger alone."""

    calls = ("reserve_new", "reserve_new", "plan", "reserve", "close", "close", "close", "expire", "refund", "grant",
             "what_is_refused", "beside")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.holds: list[Hold] = []

    def reserve_new(self, data: st.DataObject) -> None:
        """Single or batched, of one pot or of several."""
        wanted = data.draw(st.lists(amounts, min_size=1, max_size=5), label="amounts")
        leaving, same, fate = data.draw(st.sampled_from([0, 0, 0, 1, 2])), data.draw(st.booleans()), data.draw(fates)
        first = self.payer(data)
        new = [self._hold(first if same else self.payer(data), n) for n in wanted]
        self.call(lambda: self.ledger.reserve(new, leaving=leaving), lambda m: m.reserve(new, leaving), fate)

    def plan(self, data: st.DataObject) -> None:
        """A hold that is not reserved, for now: its close or void comes first, or never. Maybe of the same work."""
        amount, again = data.draw(amounts), data.draw(st.booleans(), label="again")
        if again and self.holds:
            (before,) = self._some(data, 1)
            self.holds.append(replace(before, sequence=len(self.holds) + 1, amount=amount))
        else:
            self._hold(self.payer(data), amount)

    def reserve(self, data: st.DataObject) -> None:
        """Late, or a second time."""
        batch, fate = self._some(data), data.draw(fates)
        self.call(lambda: self.ledger.reserve(batch), lambda m: m.reserve(batch), fate)

    def close(self, data: st.DataObject) -> None:
        """Settle or release, in any mixture."""
        batch, fate = self._some(data), data.draw(fates)
        charged = [data.draw(st.none() | st.integers(0, h.amount), label="charged") for h in batch]
        closes = [
            Close(h, 0, CloseState.RELEASED, "") if n is None else Close(h, n, CloseState.SETTLED, "done")
            for h, n in zip(batch, charged, strict=True)
        ]
        self.call(lambda: self.ledger.close(closes), lambda m: m.close(closes), fate)

    def expire(self, data: st.DataObject) -> None:
        """The sweeper's void, also of what never landed."""
        batch, fate = self._some(data), data.draw(fates)
        self.call(lambda: self.ledger.void(batch, reason="expired"), lambda m: m.void(batch), fate)

    def refund(self, data: st.DataObject) -> None:
        """Whose answer was lost tells, the second time, of what went back now: nothing."""
        batch, fate = self._some(data), data.draw(fates)
        lost = fate is not None and fate[0] is Fate.UNANSWERED
        self.call(
            lambda: self.ledger.refund(batch, reason="gave_up"), lambda m: m.refund(batch), fate,
            like=lambda told, right: told == right or (lost and told < right),
        )  # fmt: skip

    def what_is_refused(self, data: st.DataObject) -> None:
        """Charging more than was reserved; another amount under the same id."""
        other, (hold,) = data.draw(amounts), self._some(data, 1)
        with pytest.raises(InvalidAmount):
            self.ledger.close([Close(hold, hold.amount + other, CloseState.SETTLED, "done")])
        row, changed = self.credits.rows.get(hold.id), replace(hold, amount=other)
        if other != hold.amount and row is not None and row.kind == "reserve":
            with pytest.raises(LedgerConflict):
                self.ledger.reserve([changed])
            with pytest.raises(LedgerConflict):
                self.ledger.close([Close(changed, 0, CloseState.RELEASED, "")])

    def _some(self, data: st.DataObject, most: int = 4) -> list[Hold]:
        """Of the latest; there is always one."""
        if not self.holds:
            self._hold(self.payer(data), 1)
        recent = st.sampled_from(self.holds[-12:])
        return data.draw(st.lists(recent, min_size=1, max_size=most, unique_by=lambda h: h.id), label="holds")

    def _hold(self, payer: Payer, amount: int) -> Hold:
        hold = Hold(
            subject_id=f"doc-{len(self.holds)}", op=Op.DOCUMENT_EMBED, generation=1, sequence=1, amount=amount,
            payer=payer, job_id=None, run_id=None, price_version="1", unit_price=1,
        )  # fmt: skip
        self.holds.append(hold)
        return hold


def _or_gone(call: Callable[[], Answer]) -> Answer | None:
    """None: it says that the pot is gone."""
    try:
        return call()
    except (PayerGone, PotGone):
        return None
