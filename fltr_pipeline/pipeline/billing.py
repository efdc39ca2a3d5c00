"""The cycle that every op goes through: charge written, hold reserved, work done, hold settled.

Belongs here: the order between `pipeline.charges` and the ledger. Does not: counting units (credits.pricing), SQL.
A charge of 0 credits makes no ledger row but takes the same path.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Engine

from fltr_pipeline.credits.holds import Close, Closed, CloseState, Hold, HoldState, Payer, Pot
from fltr_pipeline.credits.ledger import Ledger
from fltr_pipeline.credits.pricing import unit_prices
from fltr_pipeline.errors import CreditError
from fltr_pipeline.models import Op
from fltr_pipeline.settings import Prices
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import charges as store
from fltr_pipeline.stores.fltr.charges import Charge

_LOG = logging.getLogger(__name__)
_TRIES = 5
_GONE = (CloseState.PAYER_GONE, CloseState.POT_GONE)

_FOLLOWING = {
    Op.DATASET_SETUP: (),
    Op.DOCUMENT_EXTRACT: (Op.DOCUMENT_PLAN, Op.DOCUMENT_EMBED),
    Op.DOCUMENT_PLAN: (Op.DOCUMENT_EMBED,),
    Op.DOCUMENT_EMBED: (),
}

ChargeKey = tuple[str, Op, int]


@dataclass(frozen=True, slots=True)
class Quote:
    """The most units that an op on one subject can take. `fence` is None for a dataset; not billable: free."""

    subject_id: str
    generation: int
    fence: int | None
    units: int
    billable: bool
    payer: Payer
    job_id: str | None
    run_id: str | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A subject that could not be paid for, and why."""

    subject_id: str
    state: HoldState
    amount: int
    """Credits that the pot would have to have."""
    pot: Pot
    charge: Charge


@dataclass(frozen=True, slots=True)
class Reservation:
    """What may be worked on, by subject, and what may not."""

    granted: Mapping[str, Charge]
    refused: Sequence[Refusal]
    reserved: int
    """Credits held for the granted ones."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """How the work on a charge ended: `units` of the price list were used, for `used` pages or tokens."""

    charge: Charge
    units: int
    used: int
    reason: str
    fence: int | None
    """Of the document that was worked on; None for a dataset."""

    @property
    def charged(self) -> int:
        """min(actual, reserved), at the price that was frozen with the charge."""
        return min(self.units * self.charge.unit_price, self.charge.amount)


@dataclass(frozen=True, slots=True)
class Settled:
    """What the ledger says after closing."""

    refused: Sequence[Refusal]
    """Subjects that are not paid: their hold was released meanwhile and can't be had again, or their payer is gone."""
    lost: frozenset[str]
    """Subjects whose hold was released because their document was taken over: not paid, and not ours to finish."""
    charged: int
    returned: int

    @property
    def unpaid(self) -> frozenset[str]:
        """Subjects whose work must not be handed on."""
        return self.lost | {r.subject_id for r in self.refused}


@dataclass(frozen=True, slots=True)
class Billing:
    """Reserve and settle for one op. `charging` off makes every quote 0 (another application charges meanwhile)."""

    fltr: Engine
    ledger: Ledger
    prices: Prices
    charging: bool

    def reserve(self, op: Op, dataset_id: str, quotes: Sequence[Quote]) -> Reservation:
        """Write the charges under the fences, then reserve them; a retry finds its earlier charge and hold.

        A new hold also asks that the pot could pay one unit of each step that follows: nobody should be charged for an
        extraction whose document can't then be embedded. Subjects whose fence was lost are in neither answer.

        Raises:
            InvalidAmount: a quote is above the ledger's cap.
            StoreUnavailable: a database does not answer.
        """
        prices = unit_prices(self.prices)
        unit_price = prices[op] if self.charging else 0
        leaving = sum(prices[later] for later in _FOLLOWING[op]) if self.charging else 0
        drafts = [
            Charge(
                subject_id=q.subject_id, op=op, generation=q.generation, dataset_id=dataset_id,
                amount=q.units * unit_price if q.billable else 0, user_id=q.payer.user_id, pot_kind=q.payer.pot.kind,
                pot_id=q.payer.pot.id, price_version=self.prices.version, unit_price=unit_price, job_id=q.job_id,
                run_id=q.run_id, api_key_id=q.payer.api_key_id,
            )
            for q in quotes
        ]  # fmt: skip
        for draft in drafts:
            if draft.amount:
                self.ledger.check_amount(draft.amount, f"{op} of {draft.subject_id}")
        fences = {q.subject_id: q.fence for q in quotes if q.fence is not None}
        with transaction(self.fltr) as tx:
            charges = store.write_charges(tx, drafts, fences)
        granted, refused = self._hold(charges, fences, leaving)
        reserved = sum(c.amount for c in granted if c.state == "open")
        return Reservation({c.subject_id: c for c in granted}, refused, reserved)

    def settle(self, settlements: Sequence[Settlement]) -> Settled:
        """Close each hold as its work ended; one that was released meanwhile is reserved again and settled first."""
        todo = {s.charge.key: s for s in settlements}
        refused: list[Refusal] = []
        closed: dict[ChargeKey, Closed] = {}
        for _ in range(_TRIES):
            closed |= self._close(list(todo.values()))
            late = {k: s for k, s in todo.items() if _late(s, closed)}
            if not late:
                break
            fences = {s.charge.subject_id: s.fence for s in late.values() if s.fence is not None}
            granted, poor = self._hold([replace(s.charge, state="released") for s in late.values()], fences)
            refused += poor
            todo = {c.key: replace(late[c.key], charge=c) for c in granted}
        missing = [(s.charge, closed[s.charge.key].state) for s in settlements if not _paid(s, closed)]
        refused += [_refusal(charge, HoldState(state)) for charge, state in missing if state in _GONE]
        known = {r.subject_id for r in refused}
        unpaid = {charge.subject_id for charge, _ in missing}
        return Settled(refused, frozenset(unpaid - known), *_totals(settlements, closed))

    def give_up(self, generations: Sequence[tuple[str, int]]) -> int:
        """Work on these (document, generation)s failed for good, through our fault: everything goes back.

        Returns the credits that went back.
        """
        with transaction(self.fltr) as tx:
            store.mark_refunding(tx, generations)
            charges = store.charges_of(tx, generations)
        returned, _ = self.give_back([c for c in charges if c.state == "refunding"], "gave_up")
        return returned

    def give_back(self, charges: Sequence[Charge], reason: str) -> tuple[int, int]:
        """End refunding charges: void what is not closed, refund what was charged.

        One whose row in the ledger was changed by hand is set aside for people, alone. Returns the credits that went
        back, and how many charges were set aside.
        """
        if not charges:
            return 0, 0
        try:
            return self._give_back(charges, reason), 0
        except CreditError as error:
            if len(charges) > 1:
                credits, conflicts = zip(*(self.give_back([c], reason) for c in charges), strict=True)
                return sum(credits), sum(conflicts)
            self.set_aside(charges, error)
            return 0, 1

    def set_aside(self, charges: Sequence[Charge], error: CreditError) -> None:
        """End charges that the ledger can't, here alone; a further try is under the next sequence."""
        _LOG.error("%s", error)
        with transaction(self.fltr) as tx:
            store.close_charges(tx, [(c, "conflict", 0) for c in charges])

    def void(self, charges: Sequence[Charge], reason: str) -> dict[ChargeKey, Closed]:
        """End open charges whose hold may never have landed, and see to it that it never will."""
        closed = self._void(charges, reason)
        self._record(charges, closed)
        return closed

    def _void(self, charges: Sequence[Charge], reason: str) -> dict[ChargeKey, Closed]:
        held = [hold_of(c) for c in charges if c.amount > 0]
        by_hold = self.ledger.void(held, reason=reason) if held else {}
        return {c.key: by_hold[hold_of(c).id] if c.amount > 0 else Closed(CloseState.RELEASED, 0) for c in charges}

    def _give_back(self, charges: Sequence[Charge], reason: str) -> int:
        closed = self._void(charges, reason)  # also what was settled: only the ledger knows what its worker did
        paid = [c for c in charges if closed[c.key].paid]
        refunded = self.ledger.refund([hold_of(c) for c in paid], reason=reason) if paid else 0
        ended = [(c, "refunded" if c in paid else closed[c.key].state.value, 0) for c in charges]
        with transaction(self.fltr) as tx:
            store.close_charges(tx, ended)
        return refunded + sum(c.returned for c in closed.values())

    def _hold(
        self, charges: Sequence[Charge], fences: Mapping[str, int], leaving: int = 0
    ) -> tuple[list[Charge], list[Refusal]]:
        """Reserve; a hold that was released is tried again under the next sequence, by whom the document is with.

        Returns the charges that were granted, several of a document perhaps, and those that were refused.
        """
        granted: list[Charge] = []
        refused: list[Refusal] = []
        todo = list(charges)
        for _ in range(_TRIES):
            granted += [c for c in todo if c.amount == 0 or c.paid]
            over = [c for c in todo if c.amount > 0 and c.state != "open" and not c.paid]
            holds = {hold_of(c).id: c for c in todo if c.amount > 0 and c.state == "open"}
            states = self.ledger.reserve([hold_of(c) for c in holds.values()], leaving=leaving) if holds else {}
            for hold_id, charge in holds.items():
                state = states[hold_id]
                if state in {HoldState.OPEN, HoldState.SETTLED}:
                    granted.append(charge)
                elif state is HoldState.RELEASED:
                    over.append(charge)
                else:
                    refused.append(_refusal(charge, state, leaving))
            if not over:
                break
            self.give_back([c for c in over if c.state == "refunding"], "gave_up")  # first: nobody would know of it
            with transaction(self.fltr) as tx:
                todo = store.next_sequence(tx, over, fences)
        return granted, refused

    def _close(self, settlements: Sequence[Settlement]) -> dict[ChargeKey, Closed]:
        closes = {
            s.charge.key: Close(
                hold_of(s.charge), s.charged, CloseState.SETTLED if s.charged else CloseState.RELEASED, s.reason, s.used
            )
            for s in settlements
            if s.charge.amount > 0
        }
        by_hold = self.ledger.close(list(closes.values())) if closes else {}
        # No hold to close: the user is gone, and it with them, or else it never landed.
        missing = [c.hold for c in closes.values() if by_hold[c.hold.id].state is CloseState.PAYER_GONE]
        by_hold |= self.ledger.void(missing, reason="never_landed") if missing else {}
        free = Closed(CloseState.SETTLED, 0)
        closed = {s.charge.key: by_hold[hold_of(s.charge).id] if s.charge.amount > 0 else free for s in settlements}
        # One that is to be had again stays open until it has its next sequence: a sweep must not take it for over.
        self._record([s.charge for s in settlements if not _late(s, closed)], closed)
        return closed

    def _record(self, charges: Sequence[Charge], closed: Mapping[ChargeKey, Closed]) -> None:
        with transaction(self.fltr) as tx:
            store.close_charges(tx, [(c, closed[c.key].state.value, closed[c.key].charged) for c in charges])


def hold_of(charge: Charge) -> Hold:
    """The ledger's hold for a charge, as it was frozen."""
    payer = Payer(charge.user_id, Pot(charge.pot_kind, charge.pot_id), charge.api_key_id)
    return Hold(
        subject_id=charge.subject_id, op=charge.op, generation=charge.generation, sequence=charge.sequence,
        amount=charge.amount, payer=payer, job_id=charge.job_id, run_id=charge.run_id,
        price_version=charge.price_version, unit_price=charge.unit_price,
    )  # fmt: skip


def _refusal(charge: Charge, state: HoldState, leaving: int = 0) -> Refusal:
    return Refusal(charge.subject_id, state, charge.amount + leaving, Pot(charge.pot_kind, charge.pot_id), charge)


def _late(settlement: Settlement, closed: Mapping[ChargeKey, Closed]) -> bool:
    """Whether the hold was released before it could be charged."""
    return settlement.charged > 0 and closed[settlement.charge.key].state is CloseState.RELEASED


def _paid(settlement: Settlement, closed: Mapping[ChargeKey, Closed]) -> bool:
    """Whether what was to be charged was charged."""
    return settlement.charged == 0 or closed[settlement.charge.key].paid


def _totals(settlements: Sequence[Settlement], closed: Mapping[ChargeKey, Closed]) -> tuple[int, int]:
    """Credits charged and returned; what an earlier attempt settled counts as neither."""
    charged = sum(closed[s.charge.key].charged for s in settlements if s.charge.state == "open")
    return charged, sum(c.returned for c in closed.values())
