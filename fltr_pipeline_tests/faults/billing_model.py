"""What charges and documents are to do beside the ledger: the protocol, on dictionaries. Pure.

Belongs here: charges, fences, leases, the sweep, what each call answers. Does not: credits (ledger_model), databases.
Calls are generators as in ledger_model: each `yield` is a COMMIT.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from fltr_pipeline.credits.holds import Close, Closed, CloseState, HoldState, Payer
from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline.billing import ChargeKey, Quote, Settlement, hold_of
from fltr_pipeline.settings import Prices
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline_tests.faults import ledger_model
from fltr_pipeline_tests.faults.ledger_model import Call, LedgerModel

TOKENS = 4
"""Embedded with each document; its extraction has one page."""

OF_STAGE = {Stage.EXTRACT: Op.DOCUMENT_EXTRACT, Stage.EMBED: Op.DOCUMENT_EMBED}


class Document(NamedTuple):
    """A document, as both its rows say."""

    generation: int
    stage: Stage | None
    fence: int
    leased: bool
    expired: bool
    waiting: bool
    """For credits."""
    live: int | None
    status: str
    decided: bool = False
    """The generation's vectors were all read back."""
    staged: bool = False
    """The generation has a text and is not live."""


class ChargeRow(NamedTuple):
    """What a look at a charge shows."""

    sequence: int
    amount: int
    unit_price: int
    pot: str
    state: str
    charged: int | None


class Granted(NamedTuple):
    """What `reserve` answers."""

    granted: dict[str, Charge]
    refused: set[tuple[str, HoldState]]


class Ended(NamedTuple):
    """What `settle` answers."""

    refused: set[tuple[str, HoldState]]
    unpaid: set[str]


class BillingView(NamedTuple):
    """All that can be seen from outside."""

    credits: ledger_model.View
    charges: dict[ChargeKey, ChargeRow]
    documents: dict[str, Document]


@dataclass
class BillingModel:
    """Everything that is in `fltr`, and the ledger."""

    ledger: LedgerModel
    charges: dict[ChargeKey, Charge] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)

    def copy(self) -> Self:
        """One that can go its own way."""
        return type(self)(self.ledger.copy(), dict(self.charges), dict(self.documents))

    def view(self) -> BillingView:
        """What a look into the databases must show."""
        charges = {
            c.key: ChargeRow(c.sequence, c.amount, c.unit_price, f"{c.pot_kind}:{c.pot_id}", c.state, c.charged)
            for c in self.charges.values()
        }
        return BillingView(self.ledger.view(), charges, dict(self.documents))

    def grant(self, payer: Payer, amount: int) -> Call[int]:
        """See LedgerModel.grant."""
        return self.ledger.grant(payer, amount)

    def fenced(self, document: str, fence: int | None) -> bool:
        """Whether whoever holds this fence still holds the document."""
        return document in self.documents and self.documents[document].fence == fence

    def change(self, document: str, **values: object) -> None:
        """Change a document."""
        self.documents[document] = self.documents[document]._replace(**values)  # type: ignore[arg-type]

    # Billing's calls ----------------------------------------------------------------------------------------------

    def reserve(self, op: Op, quotes: Sequence[Quote], prices: Prices) -> Call[Granted]:
        """The first writer's price stands; without the fence nothing is written."""
        unit, after = (prices.extract, prices.embed) if op is Op.DOCUMENT_EXTRACT else (prices.embed, 0)
        leaving = after + (prices.plan if op is Op.DOCUMENT_EXTRACT else 0)
        for q in quotes:
            if (q.subject_id, op, q.generation) not in self.charges and self.fenced(q.subject_id, q.fence):
                self._write(op, q, unit, prices.version)
        yield
        keys = [(q.subject_id, op, q.generation) for q in quotes]
        known = [self.charges[key] for key in keys if key in self.charges]
        granted, refused = yield from self._hold(known, {q.subject_id: q.fence for q in quotes}, leaving)
        return Granted({c.subject_id: c for c in granted}, refused)

    def settle(self, settlements: Sequence[Settlement]) -> Call[Ended]:
        """Close; what was released, or never landed, is reserved again first, by whom the document is with."""
        todo, refused, closed = list(settlements), set[tuple[str, HoldState]](), dict[ChargeKey, Closed]()
        while todo:
            closes = [
                Close(hold_of(s.charge), s.charged, CloseState.SETTLED if s.charged else CloseState.RELEASED, "")
                for s in todo if s.charge.amount
            ]  # fmt: skip
            by_hold = yield from self.ledger.close(closes)
            missing = [c.hold for c in closes if by_hold[c.hold.id].state is CloseState.PAYER_GONE]
            by_hold |= yield from self.ledger.void(missing)
            closed |= {s.charge.key: by_hold.get(hold_of(s.charge).id, Closed(CloseState.SETTLED, 0)) for s in todo}
            late = {s.charge.key: s for s in todo if s.charged and closed[s.charge.key].state is CloseState.RELEASED}
            self._record([s.charge for s in todo if s.charge.key not in late], closed)
            yield
            granted, poor = yield from self._hold(
                [replace(s.charge, state="released") for s in late.values()],
                {s.charge.subject_id: s.fence for s in late.values() if s.fence is not None},
            )
            refused |= poor
            todo = [replace(late[c.key], charge=c) for c in granted]
        ended = [(s.charge.subject_id, closed[s.charge.key]) for s in settlements if s.charged]
        unpaid = {(i, c.state) for i, c in ended if not _is_paid(c.state, c.charged)}
        refused |= {(i, HoldState(end)) for i, end in unpaid if end in {"payer_gone", "pot_gone"}}
        return Ended(refused, {i for i, _ in unpaid | refused})

    def void(self, charges: Sequence[Charge]) -> Call[dict[ChargeKey, Closed]]:
        """End them, and see to it that they never come back."""
        by_hold = yield from self.ledger.void([hold_of(c) for c in charges if c.amount])
        closed = {c.key: by_hold.get(hold_of(c).id, Closed(CloseState.RELEASED, 0)) for c in charges}
        self._record(charges, closed)
        yield
        return closed

    def give_up(self, document: str, generation: int) -> Call[bool]:
        """Everything goes back: that is decided first."""
        self.mark_refunding(document, generation)
        yield
        mine = [c for c in self.charges.values() if (c.subject_id, c.generation) == (document, generation)]
        yield from self._give_back([c for c in mine if c.state == "refunding"])
        return True

    def mark_refunding(self, document: str, generation: int) -> None:
        """What its ops were charged, or may be, is to go back."""
        for c in list(self.charges.values()):
            if (c.subject_id, c.generation) == (document, generation) and (
                c.state == "open" or (c.state == "settled" and c.charged)
            ):
                self.charges[c.key] = replace(c, state="refunding")

    def _give_back(self, charges: Sequence[Charge]) -> Call[None]:
        by_hold = yield from self.ledger.void([hold_of(c) for c in charges if c.amount])
        yield from self.ledger.refund([hold_of(c) for c in charges if c.amount and by_hold[hold_of(c).id].charged])
        for c in charges:
            ended = by_hold.get(hold_of(c).id, Closed(CloseState.RELEASED, 0))
            state = "refunded" if _is_paid(ended.state, ended.charged) else ended.state.value
            self.charges[c.key] = replace(c, state=state, charged=0)
        yield

    # The sweep ----------------------------------------------------------------------------------------------------

    def sweep(self, prices: Prices, *, orphans: bool) -> Call[bool]:
        """What dead workers left: documents, charges, holds."""
        while taken := [i for i in self.documents if self._left_behind(i)]:
            yield from self._take_over(taken, prices)
        while abandoned := [c for c in self.charges.values() if c.state == "open" and self._abandoned(c)]:
            delivered = [c for c in abandoned if self._live(c)]
            yield from self.void([c for c in abandoned if c not in delivered])
            yield from self.settle([self._full(c, prices, None) for c in delivered])
            now = [self.charges[c.key] for c in delivered]
            yield from self.void([c for c in now if c.state == "open"])
        while refunding := [c for c in self.charges.values() if c.state == "refunding"]:
            yield from self._give_back(refunding)
        if orphans:
            yield from self._close_orphans()
        return True

    def _take_over(self, taken: Sequence[str], prices: Prices) -> Call[None]:
        for i in taken:
            self.change(i, fence=self.documents[i].fence + 1, leased=True, expired=True)
        yield
        mine = [
            c for c in self.charges.values()
            if c.subject_id in taken and c.generation == self.documents[c.subject_id].generation
        ]  # fmt: skip
        decided = {i for i in taken if self._complete(i)}
        complete = {i for i in decided if self.documents[i].status != "uploaded"}
        yield from self.void([c for c in mine if c.state == "open" and c.subject_id not in complete])
        if complete:
            full = [
                self._full(c, prices, self.documents[c.subject_id].fence)
                for c in mine if c.subject_id in complete and self._is_owed(c)
            ]  # fmt: skip
            ended = yield from self.settle(full)
            gone = {i for i, why in ended.refused if why is not HoldState.INSUFFICIENT}
            now = [self.charges[s.charge.key] for s in full]
            yield from self.void([c for c in now if c.subject_id in gone and c.state == "open"])
            for i in complete - ended.unpaid:
                self.publish(i, self.documents[i].fence)
            for i, why in ended.refused:
                if why is HoldState.INSUFFICIENT:
                    self.wait(i, self.documents[i].fence)
            yield
        for i in decided - complete:
            self.publish(i, self.documents[i].fence)
        for i in taken:
            self.change(i, leased=False, expired=False)
        yield

    def _is_owed(self, charge: Charge) -> bool:
        embedding = charge.op is Op.DOCUMENT_EMBED and charge.amount
        return charge.state == "open" or bool(embedding and charge.state != "settled")

    def _left_behind(self, document: str) -> bool:
        d = self.documents[document]
        if d.stage is None or d.leased:
            return d.stage is not None and d.expired
        mine = [c for c in self.charges.values() if (c.subject_id, c.generation) == (document, d.generation)]
        return not d.waiting and any(c.state == "open" and c.amount for c in mine)

    def _abandoned(self, charge: Charge) -> bool:
        d = self.documents.get(charge.subject_id)
        return d is None or d.stage is None or d.generation != charge.generation

    def _live(self, charge: Charge) -> bool:
        d = self.documents.get(charge.subject_id)
        return d is not None and d.live == charge.generation

    def _complete(self, document: str) -> bool:
        d = self.documents[document]
        return d.stage is Stage.EMBED and d.decided

    def _full(self, charge: Charge, prices: Prices, fence: int | None) -> Settlement:
        units = -(-TOKENS // prices.embed_tokens) if charge.op is Op.DOCUMENT_EMBED else 1
        return Settlement(charge, units, units, "done", fence)

    def _close_orphans(self) -> Call[None]:
        current = {hold_of(c).id: c for c in self.charges.values()}
        closes = []
        for c in self.charges.values():
            for hold in (hold_of(replace(c, sequence=n)) for n in range(1, c.sequence + 1)):
                known = current.get(hold.id)
                if self.ledger.state(hold) is HoldState.OPEN and (
                    known is None or known.state not in {"open", "refunding", "conflict"} or self._came_late(known)
                ):
                    paid = known is not None and known.state == "settled"
                    charged = (c.charged or 0) if paid else 0
                    closes.append(Close(hold, charged, CloseState.SETTLED if paid else CloseState.RELEASED, ""))
        yield from self.ledger.close(closes)

    def _came_late(self, charge: Charge) -> bool:
        d = self.documents.get(charge.subject_id)
        refused = d is not None and d.stage is not None and d.waiting and d.generation == charge.generation
        return charge.state == "open" and refused

    # Documents ----------------------------------------------------------------------------------------------------

    def claim(self, document: str, *, same: bool) -> bool:
        """Take a new input, or what waits; whether there was either. The same bytes go on with what is done."""
        d = self.documents[document]
        if d.status == "uploaded" and d.staged and same:
            d = d._replace(stage=Stage.EXTRACT)
        elif d.status == "uploaded":
            d = d._replace(generation=d.generation + 1, stage=Stage.EXTRACT, decided=False)
        elif d.stage is None or (d.leased and not d.expired):
            return False
        status = "processing" if d.status in {"uploaded", "awaiting_credits"} else d.status
        taken = d._replace(fence=d.fence + 1, leased=True, expired=False, waiting=False, status=status, staged=True)
        self.documents[document] = taken
        return True

    def upload(self, document: str) -> None:
        """A new document, or a new input of it."""
        new = Document(0, None, 0, leased=False, expired=False, waiting=False, live=None, status="")
        self.documents[document] = self.documents.get(document, new)._replace(status="uploaded")

    def fail(self, document: str) -> None:
        """Its attempt ends without a result."""
        d = self.documents[document]
        status = "failed" if d.status in {"processing", "awaiting_credits"} else d.status
        self.documents[document] = d._replace(
            stage=None, leased=False, expired=False, decided=False, staged=False, status=status
        )

    def wait(self, document: str, fence: int) -> None:
        """Until its pot can pay."""
        if self.fenced(document, fence):
            status = self.documents[document].status
            status = "awaiting_credits" if status == "processing" else status
            self.change(document, leased=False, expired=False, waiting=True, status=status)

    def publish(self, document: str, fence: int) -> None:
        """Unless a newer input waits, for which what is done is kept."""
        if self.fenced(document, fence):
            d = self.documents[document]
            if d.status != "uploaded":
                d = d._replace(live=d.generation, status="ready", decided=False, staged=False)
            self.documents[document] = d._replace(stage=None, leased=False, expired=False)

    def _write(self, op: Op, quote: Quote, unit: int, version: str) -> None:
        pot = quote.payer.pot
        charge = Charge(
            subject_id=quote.subject_id, op=op, generation=quote.generation, dataset_id="d",
            amount=quote.units * unit if quote.billable else 0, user_id=quote.payer.user_id, pot_kind=pot.kind,
            pot_id=pot.id, price_version=version, unit_price=unit, job_id=quote.job_id, run_id=quote.run_id,
            api_key_id=quote.payer.api_key_id,
        )  # fmt: skip
        self.charges[charge.key] = charge

    def _hold(
        self, charges: Sequence[Charge], fences: Mapping[str, int | None], leaving: int = 0
    ) -> Call[tuple[list[Charge], set[tuple[str, HoldState]]]]:
        """A free or settled one is granted; one that ended is tried again under the next sequence, by its owner."""
        granted, refused, todo = list[Charge](), set[tuple[str, HoldState]](), list(charges)
        while todo:
            ended = [c for c in todo if c.amount and c.state != "open" and not _is_paid(c.state, c.charged)]
            open_ones = [c for c in todo if c.amount and c.state == "open"]
            states = yield from self.ledger.reserve([hold_of(c) for c in open_ones], leaving)
            for c in todo:
                state = states.get(hold_of(c).id, HoldState.OPEN)
                if c in ended or state is HoldState.RELEASED:
                    ended += [] if c in ended else [c]
                elif state in {HoldState.OPEN, HoldState.SETTLED}:
                    granted.append(c)
                else:
                    refused.add((c.subject_id, state))
            if owed := [c for c in ended if c.state == "refunding"]:
                yield from self._give_back(owed)
            todo = []
            for c in ended:
                if c.subject_id not in fences or self.fenced(c.subject_id, fences[c.subject_id]):
                    if self.charges[c.key].sequence == c.sequence:
                        self.charges[c.key] = replace(
                            self.charges[c.key], sequence=c.sequence + 1, state="open", charged=None
                        )
                    todo.append(self.charges[c.key])
            yield
        return granted, refused

    def _record(self, charges: Sequence[Charge], closed: Mapping[ChargeKey, Closed]) -> None:
        for c in charges:
            now, how = self.charges[c.key], closed[c.key]
            if now.sequence == c.sequence and now.state == "open":
                self.charges[c.key] = replace(now, state=how.state.value, charged=how.charged)


def _is_paid(state: str, charged: int | None) -> bool:
    """A pot that is gone has paid what it was charged."""
    return state == "settled" or (state == "pot_gone" and bool(charged))
