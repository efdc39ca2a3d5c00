"""What the ledger is to do, as arithmetic on dictionaries. Pure; shares nothing with the ledger but its words.

Belongs here: balances, rows, and what each call answers. Does not: charges and documents (billing_model), databases.

A call is a generator: each `yield` is a COMMIT, so whoever runs it can stop at any of them, as a crash would.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, NamedTuple, Self, TypeVar

from fltr_pipeline.credits.holds import Close, Closed, CloseState, Hold, HoldState, Payer, Pot
from fltr_pipeline.errors import PotGone

_T = TypeVar("_T")
Call = Generator[None, None, _T]


class Row(NamedTuple):
    """A row of the ledger."""

    user: str
    pot: str | None
    """`kind:id`, as the metadata says; None in rows of other programs."""
    amount: int
    kind: str
    """reserve, close, void, refund, grant, opening; other."""
    at: datetime
    """When it counts towards a limit: of a close and a refund, when the hold was made."""
    hold: str | None = None
    outcome: str | None = None
    number: int | None = None
    """Charged, of a close; not explained by any row, of an opening."""


class Limits(NamedTuple):
    """Of an API key."""

    daily: int | None
    monthly: int | None


class View(NamedTuple):
    """All that can be seen from outside."""

    balances: dict[str, int]
    rows: dict[str, Row]
    grants: Counter[Row]
    """Apart: their ids are random."""


@dataclass
class LedgerModel:
    """Everything that is in `fltr_auth`."""

    now: datetime
    teams_of: dict[str, str | None] = field(default_factory=dict)
    """user → team that pays for them"""
    owners: dict[Pot, str] = field(default_factory=dict)
    balances: dict[Pot, int] = field(default_factory=dict)
    unexplained: dict[Pot, int] = field(default_factory=dict)
    """Credits that no row explains, from before the ledger, or because the rows went with a deleted user."""
    limits: dict[Pot, Limits] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    meant: dict[str, Pot] = field(default_factory=dict)
    """Row of another program → pot that it moved"""
    grants: int = 0

    def copy(self) -> Self:
        """One that can go its own way."""
        return type(self)(**{f.name: copy(getattr(self, f.name)) for f in fields(self)})

    def view(self) -> View:
        """What a look into the database must show."""
        grants = Counter(r for r in self.rows.values() if r.kind == "grant")
        rest = {i: r for i, r in self.rows.items() if r.kind != "grant"}
        return View({pot.name: n for pot, n in self.balances.items()}, rest, grants)

    # The ledger's calls -------------------------------------------------------------------------------------------

    def payers(self, user: str, keys: Iterable[str]) -> dict[str | None, Payer]:
        """Who pays for a user's uploads with each of these keys (None: without one)."""
        if user not in self.teams_of:
            return {}
        team = self.teams_of[user]
        own = Pot("team", team) if team else Pot("user", user)
        found: dict[str | None, Payer] = {None: Payer(user, own)}
        for key in keys:
            pool = Pot("api_key", key)
            if pool not in self.balances:
                found[key] = Payer(user, own, key)
            elif self.owners[pool] == user:
                found[key] = Payer(user, pool, key)
        return found

    def state(self, hold: Hold) -> HoldState | None:
        """How a hold stands; None: it never landed."""
        row = self.rows.get(hold.id)
        if row is None:
            return None
        if row.kind != "void" and hold.close_id not in self.rows:
            return HoldState.OPEN
        ended = self.closed(hold)
        paid = ended.state is CloseState.POT_GONE and ended.charged > 0
        return HoldState.SETTLED if paid else HoldState(ended.state)

    def reserve(self, holds: Sequence[Hold], leaving: int = 0) -> Call[dict[str, HoldState]]:
        """Each as it stands, else whatever the pot still covers, in order."""
        answers = {}
        for pot, mine in _by_pot(holds):
            left = self.spendable(pot)
            for hold in mine:
                state = self.state(hold) or self._refusal(hold)
                if state is None and hold.amount + leaving > left:
                    state = HoldState.INSUFFICIENT
                if state is None:
                    left -= hold.amount + leaving
                    self._open(pot)
                    row = Row(hold.payer.user_id, pot.name, -hold.amount, "reserve", self.now, hold.id)
                    self._move(hold.id, row, pot)
                    state = HoldState.OPEN
                answers[hold.id] = state
            yield
        return answers

    def close(self, closes: Sequence[Close]) -> Call[dict[str, Closed]]:
        """Each once; the first close stands."""
        answers: dict[str, Closed] = {}
        by_id = {c.hold.id: c for c in closes}
        for pot, mine in _by_pot([c.hold for c in closes]):
            open_ones = [by_id[h.id] for h in mine if self.state(h) is HoldState.OPEN]
            gone = pot not in self.balances and any(c.charged < c.hold.amount for c in open_ones)
            for c in open_ones:
                self._close(c, CloseState.POT_GONE if gone else c.outcome)
            answers |= {h.id: self.closed(h) for h in mine}
            yield
        return answers

    def closed(self, hold: Hold) -> Closed:
        """How a hold that is not open ended."""
        if hold.id not in self.rows:
            return Closed(CloseState.PAYER_GONE, 0)
        ended = self.rows.get(hold.close_id)
        return Closed(CloseState(str(ended.outcome)), ended.number or 0) if ended else Closed(CloseState.RELEASED, 0)

    def void(self, holds: Sequence[Hold]) -> Call[dict[str, Closed]]:
        """As a release; what never landed can't any more."""
        answers = {}
        for pot, mine in _by_pot(holds):
            for hold in mine:
                refusal = None if self.state(hold) else self._refusal(hold, of_nothing=True)
                if self.state(hold) is None and refusal is None:
                    row = Row(hold.payer.user_id, pot.name, 0, "void", self.now, hold.id, "released")
                    self.rows[hold.id] = row
                if self.state(hold) is HoldState.OPEN:
                    gone = pot not in self.balances
                    outcome = CloseState.POT_GONE if gone else CloseState.RELEASED
                    self._close(Close(hold, 0, outcome, ""), outcome)
                answers[hold.id] = Closed(CloseState(refusal), 0) if refusal else self.closed(hold)
            yield
        return answers

    def refund(self, holds: Sequence[Hold]) -> Call[int]:
        """What was charged, once."""
        total = 0
        for pot, mine in _by_pot(holds):
            for hold in mine:
                closed = self.rows.get(hold.close_id)
                charged = (closed.number or 0) if closed else 0
                if pot in self.balances and charged and hold.refund_id not in self.rows:
                    at = self.rows[hold.id].at
                    row = Row(hold.payer.user_id, pot.name, charged, "refund", at, hold.id)
                    self._move(hold.refund_id, row, pot)
                    total += charged
            yield
        return total

    def grant(self, payer: Payer, amount: int) -> Call[int]:
        """A bonus; returns the new balance.

        Raises:
            PotGone: there is no such pot.
        """
        pot = payer.pot
        if payer.user_id not in self.teams_of or pot not in self.balances:
            raise PotGone
        self._open(pot)
        self.grants += 1
        self._move(f"grant {self.grants}", Row(payer.user_id, pot.name, amount, "grant", self.now), pot)
        yield
        return self.balances[pot]

    def spendable(self, pot: Pot) -> int:
        """The balance, within the limits of a key."""
        limits = self.limits.get(pot, Limits(None, None))
        day = self._used(pot, self.now.replace(hour=0))
        month = self._used(pot, self.now.replace(day=1, hour=0))
        left = [limit - used for limit, used in ((limits.daily, day), (limits.monthly, month)) if limit is not None]
        return max(0, min([self.balances.get(pot, 0), *left]))

    # What the application does ------------------------------------------------------------------------------------

    def other(self, row_id: str, user: str, pot: Pot, amount: int) -> None:
        """A purchase or a usage of another program."""
        self.meant[row_id] = pot
        self._move(row_id, Row(user, None, amount, "other", self.now), pot)

    def delete_user(self, user: str) -> None:
        """With all their rows, and all pots that are theirs; a team's members pay by themselves from then on."""
        for pot in [pot for pot, owner in self.owners.items() if owner == user]:
            self.delete_pot(pot)
        for row_id in [i for i, row in self.rows.items() if row.user == user]:
            row = self.rows.pop(row_id)
            for pot in self.unexplained:
                if pot in (self.meant.get(row_id), _named(row.pot)):
                    self.unexplained[pot] += row.amount
        del self.teams_of[user]

    def delete_pot(self, pot: Pot) -> None:
        """What other programs wrote of it can then only be read as the user's own."""
        for known in (self.owners, self.balances, self.unexplained, self.limits):
            known.pop(pot, None)
        for row_id in [i for i, meant in self.meant.items() if meant == pot and i in self.rows]:
            row = self.rows[row_id]
            self.meant[row_id] = heir = Pot("user", row.user)
            if heir in self.unexplained:
                self.unexplained[heir] -= row.amount
        self.teams_of = {u: None if team == pot.id else team for u, team in self.teams_of.items()}

    def _refusal(self, hold: Hold, *, of_nothing: bool = False) -> HoldState | None:
        """Why a row can't be written; a row `of_nothing` needs no balance, but its team must be there."""
        pot = hold.payer.pot
        if hold.payer.user_id not in self.teams_of:
            return HoldState.PAYER_GONE
        needed = not of_nothing or pot.kind == "team"
        return HoldState.POT_GONE if needed and pot not in self.balances else None

    def _open(self, pot: Pot) -> None:
        """At first sight."""
        owner, unexplained = self.owners[pot], self.unexplained[pot]
        row = Row(owner, pot.name, 0, "opening", self.now, number=unexplained)
        self.rows.setdefault(pot.opening_id, row)

    def _move(self, row_id: str, row: Row, pot: Pot) -> None:
        """A row and the balance, together."""
        self.rows[row_id] = row
        if pot in self.balances:
            self.balances[pot] += row.amount

    def _close(self, close: Close, outcome: CloseState) -> None:
        hold = close.hold
        row = Row(hold.payer.user_id, hold.payer.pot.name, hold.amount - close.charged, "close",
                  self.rows[hold.id].at, hold.id, outcome, close.charged)  # fmt: skip
        self._move(hold.close_id, row, hold.payer.pot)

    def _used(self, pot: Pot, since: datetime) -> int:
        spent = ("reserve", "close", "void", "refund")
        mine = [r for i, r in self.rows.items() if r.pot == pot.name and r.kind in spent]
        mine += [r for i, r in self.rows.items() if self.meant.get(i) == pot and r.amount < 0]
        return -sum(r.amount for r in mine if r.at >= since)


def check(seen: View, model: LedgerModel) -> None:
    """The promises, on what was seen; the model only says what no row does."""
    holds: dict[str, Counter[str]] = {}
    for row in seen.rows.values():
        if row.hold:
            mine = holds.setdefault(row.hold, Counter())
            assert row.kind not in mine, "a hold has one row of each kind"
            mine[row.kind] = abs(row.amount)
            assert row.kind != "close" or 0 <= (row.number or 0) <= -seen.rows[row.hold].amount
    for mine in holds.values():
        assert mine["close"] + mine["refund"] <= mine["reserve"], "no more comes back than was reserved"
    for pot, opening in model.unexplained.items():
        amounts = [r.amount for i, r in seen.rows.items() if r.pot == pot.name or model.meant.get(i) == pot]
        amounts += [row.amount * n for row, n in seen.grants.items() if row.pot == pot.name]
        assert seen.balances[pot.name] == opening + sum(amounts) >= 0


def differences(seen: Any, right: Any) -> list[str]:
    """What differs between two views."""
    if isinstance(seen, dict):
        keys = [key for key in seen.keys() | right.keys() if seen.get(key) != right.get(key)]
        return [f"{key}: seen {seen.get(key)}, right is {right.get(key)}" for key in keys]
    return [line for one, other in zip(seen, right, strict=True) for line in differences(one, other)]


def run(call: Call[_T]) -> _T:
    """The whole call, uninterrupted."""
    while True:
        try:
            next(call)
        except StopIteration as end:
            answer: _T = end.value
            return answer


def _by_pot(holds: Sequence[Hold]) -> list[tuple[Pot, list[Hold]]]:
    return [(pot, [h for h in holds if h.payer.pot == pot]) for pot in sorted({h.payer.pot for h in holds})]


def _named(name: str | None) -> Pot | None:
    kind, _, pot_id = (name or "").partition(":")
    return Pot(kind, pot_id) if name else None
