"""What dead workers left behind: leases that ran out, charges that nobody will close, holds that no charge stands for.

Belongs here: ending them the right way, settled where the work was delivered, else released. Does not: the work itself
(stage), vectors (reconcile).

Any number of sweeps may run beside workers and each other, and die anywhere: a document is taken over in one
transaction of `fltr` before the ledger is touched for it, and each hold has one close, whoever writes it first.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from fltr_pipeline.credits import pricing
from fltr_pipeline.credits.holds import Close, CloseState, Hold, HoldState
from fltr_pipeline.errors import CreditError, InvalidValue, LedgerConflict
from fltr_pipeline.models import Op
from fltr_pipeline.pipeline.billing import Billing, Settled, Settlement
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.settings import Prices
from fltr_pipeline.stores.database import reason, transaction
from fltr_pipeline.stores.fltr import charges, claims, expired, generations
from fltr_pipeline.stores.fltr.charges import Abandoned, Charge
from fltr_pipeline.stores.fltr.claims import Failure, Wait
from fltr_pipeline.stores.fltr.expired import Delivered, Taken
from fltr_pipeline.stores.fltr.locks import lock_unheld

_LOG = logging.getLogger(__name__)
_BATCH = 100
REFUSED = (InvalidValue, DBAPIError)
"""By the database, for what one row holds: what all rows would meet has other types."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found and ended."""

    documents: int = 0
    """Taken from dead workers, or parked with a hold open, and put back for any worker."""
    published: int = 0
    """Of these: complete but for the last step, which was done."""
    charges: int = 0
    """Whose document was gone or had moved on."""
    holds: int = 0
    """In the ledger, without a charge that stands for them."""
    credits_returned: int = 0
    conflicts: int = 0
    """Rows of the ledger that were changed by hand: what they stand for is left to people, the audit names them."""
    refused: int = 0
    """Times that a database refused to have something ended, for a trigger as it may be: it is tried again."""

    def __add__(self, other: "Swept") -> "Swept":
        return Swept(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def nothing(self) -> bool:
        """Whether all was in order."""
        return self == Swept()


def overdue(services: Services) -> bool:
    """Whether a sweep would find something, orphaned holds aside. Index-backed: for a probe by the minute."""
    with transaction(services.fltr) as tx:
        return expired.overdue(tx, age=services.settings.lease_seconds, limit=_BATCH)


def sweep(services: Services, billing: Billing, *, orphans: bool = False) -> Swept:
    """End what dead workers left. `orphans`: also look for holds without a charge, which reads the whole ledger.

    Raises:
        StoreUnavailable: a database does not answer; what was ended stays so, the next sweep goes on.
    """
    swept = Swept()
    while (batch := _documents(services, billing)) is not None:
        swept += batch
    for part in (_charges, _refunds):
        after = ""
        while (found := part(services, billing, after)) is not None:
            batch, last = found
            swept += batch
            after = last if batch.refused else after  # what is refused were found again at once
    return swept + _orphans(services, billing) if orphans else swept


def _documents(services: Services, billing: Billing) -> Swept | None:
    lease = services.settings.lease_seconds
    with transaction(services.fltr) as tx:
        taken = expired.take(tx, lease_seconds=lease, age=lease, limit=_BATCH)
        if not taken:
            return None
        found = charges.charges_of(tx, [(t.claim.document_id, t.claim.generation) for t in taken])
    by_document = [(t, [c for c in found if c.subject_id == t.claim.document_id]) for t in taken]
    return _each_if_need_be(
        partial(_end_documents, services, billing), by_document, partial(_set_document_aside, services, billing)
    )


def _end_documents(services: Services, billing: Billing, found: Sequence[tuple[Taken, Sequence[Charge]]]) -> Swept:
    decided = {t.claim.document_id: t.claim for t, _ in found if t.decided}
    with transaction(services.fltr) as tx:
        wanted = expired.deliverable(tx, list(decided.values()))
    complete = {i: claim for i, claim in decided.items() if i in wanted}
    mine = [c for _, of_document in found for c in of_document]
    void = billing.void([c for c in mine if c.state == "open" and c.subject_id not in complete], "expired")
    owed = [c for c in mine if c.subject_id in complete and _is_owed(c)]
    settled = _settle(services, billing, owed, {i: claim.fence for i, claim in complete.items()})
    poor = [r for r in settled.refused if r.state is HoldState.INSUFFICIENT]
    waits = {r.subject_id: Wait(complete[r.subject_id], r.amount, r.pot.kind, r.pot.id) for r in poor}
    with transaction(services.fltr) as tx:
        free = lock_unheld(tx, list(decided))
        generations.held(tx, [t.claim for t, _ in found])  # some end so, some so: all are locked in one order first
        published = generations.publish(tx, [decided[i] for i in free if i not in settled.unpaid])
        claims.wait_for_credits(tx, [waits[i] for i in free if i in waits])
        held = decided.keys() - free  # left in the sweep's hands, for the pass behind its lease
        expired.park(tx, [t.claim for t, _ in found if t.claim.document_id not in held])
    returned = settled.returned + sum(c.returned for c in void.values())
    _LOG.info("took %d documents from dead workers, published %d of them", len(found), len(published))
    return Swept(documents=len(found), published=len(published), credits_returned=returned)


def _is_owed(charge: Charge) -> bool:
    """Whether a decided document's charge is still to be settled: also an embedding whose hold was released."""
    embedding = charge.op is Op.DOCUMENT_EMBED and charge.amount > 0
    return charge.state == "open" or (embedding and charge.state != "settled")


def _each_if_need_be(
    end: Callable[[Sequence[_T]], Swept], found: Sequence[_T], set_aside: Callable[[_T, Exception], Swept]
) -> Swept:
    """End them together; where that is refused, each alone, and set aside the one for which it is."""
    try:
        return end(found)
    except (CreditError, *REFUSED) as error:
        if len(found) == 1:
            return set_aside(found[0], error)
        return sum((_each_if_need_be(end, [one], set_aside) for one in found), Swept())


def _set_aside(billing: Billing, found: Sequence[Charge], error: Exception) -> Swept:
    """Where the ledger's row was changed by hand: that is for people."""
    if not isinstance(error, CreditError):
        return _leave(found[0].subject_id, error)
    billing.set_aside([c for c in found if c.state == "open"], error)
    return Swept(conflicts=1)


def _leave(subject_id: str, error: Exception) -> Swept:
    _LOG.error("what a dead worker left of %s can't be ended: %s; it is tried again", subject_id, reason(error))
    return Swept(refused=1)


def _set_document_aside(
    services: Services, billing: Billing, found: tuple[Taken, Sequence[Charge]], error: Exception
) -> Swept:
    """One that was decided can only go forward, and not unpaid: it fails, and what it was charged goes back.

    So does one whose text the database refuses to publish: a constraint or an index of the application's. Where
    somebody holds its row, or a database refuses that, too, it stays in the sweep's hands, for the pass behind its
    lease.
    """
    taken, mine = found
    refused = isinstance(error, REFUSED)
    if refused and not taken.decided:
        return _leave(taken.claim.document_id, error)
    swept = Swept(documents=1) if refused else _set_aside(billing, mine, error)
    try:
        with transaction(services.fltr) as tx:
            if not taken.decided:
                expired.park(tx, [taken.claim])
            elif lock_unheld(tx, [taken.claim.document_id]):
                code, why = ("internal_error", "it can't be published: ") if refused else (LedgerConflict.code, "")
                ended = claims.fail(tx, [Failure(taken.claim, code, f"{why}{reason(error)}")])
                charges.mark_refunding(tx, [(i, taken.claim.generation) for i in ended])
                generations.discard_others(tx, list(ended))
    except REFUSED as again:
        return _leave(taken.claim.document_id, again)
    return swept


def _settle(services: Services, billing: Billing, owed: Sequence[Charge], fences: Mapping[str, int]) -> Settled:
    """Settle what was decided. What can't be paid since its pot is gone is voided: a worker fails it.

    Left open, it were found by each sweep before that.
    """
    if not owed:
        return Settled((), frozenset(), 0, 0)
    settled = billing.settle(_settlements(services, owed, fences))
    if gone := [r.charge for r in settled.refused if r.state is not HoldState.INSUFFICIENT]:
        billing.void(gone, "unpaid")
    return settled


def _charges(services: Services, billing: Billing, after: str) -> tuple[Swept, str] | None:
    """Ends a batch behind that id; returns the batch's last one, too."""
    with transaction(services.fltr) as tx:
        found = charges.abandoned_charges(tx, age=services.settings.lease_seconds, limit=_BATCH, after=after)
    if not found:
        return None
    swept = _each_if_need_be(
        partial(_end_charges, services, billing), found, lambda bad, error: _set_aside(billing, [bad.charge], error)
    )
    return swept, found[-1].charge.subject_id


def _end_charges(services: Services, billing: Billing, found: Sequence[Abandoned]) -> Swept:
    delivered = [a.charge for a in found if a.delivered]
    void = billing.void([a.charge for a in found if not a.delivered], "abandoned")
    settled = billing.settle(_settlements(services, delivered, {}))
    if settled.refused:  # live and unpaid, as only a database that was set back has it: else it were found for ever
        void |= billing.void([r.charge for r in settled.refused], "unpaid")
    returned = settled.returned + sum(c.returned for c in void.values())
    return Swept(charges=len(found), credits_returned=returned)


def _refunds(services: Services, billing: Billing, after: str) -> tuple[Swept, str] | None:
    """What was to be given back when its worker died; as above."""
    with transaction(services.fltr) as tx:
        found = charges.refunding_charges(tx, _BATCH, after)
    if not found:
        return None
    swept = _each_if_need_be(partial(_give_back, billing), found, lambda bad, error: _leave(bad.subject_id, error))
    return swept, found[-1].subject_id


def _give_back(billing: Billing, found: Sequence[Charge]) -> Swept:
    returned, conflicts = billing.give_back(found, "gave_up")
    return Swept(charges=len(found) - conflicts, credits_returned=returned, conflicts=conflicts)


def _orphans(services: Services, billing: Billing) -> Swept:
    """The ledger is read before the charges: a charge is written before its hold, so one that has none is an orphan.

    So is one that a slow worker's reserve landed for a document that had been refused meanwhile, and awaits credits.
    """
    before = datetime.now(UTC) - timedelta(seconds=services.settings.lease_seconds)
    holds = billing.ledger.open_holds(before)
    with transaction(services.fltr) as tx:
        found = charges.charges_of(tx, [(h.subject_id, h.generation) for h in holds])
        refused = expired.awaiting_credits(tx, [h.subject_id for h in holds])
    late = [c for c in found if c.state == "open" and (c.subject_id, c.generation) in refused]
    known = {c.key: c for c in found if c not in late}
    closes = [c for h in holds if (c := _orphan(h, known.get((h.subject_id, h.op, h.generation)))) is not None]
    return _each_if_need_be(partial(_close_orphans, billing), closes, _tell_orphan)


def _tell_orphan(close: Close, error: Exception) -> Swept:
    if not isinstance(error, CreditError):
        return _leave(close.hold.subject_id, error)
    _LOG.error("%s", error)
    return Swept(conflicts=1)


def _close_orphans(billing: Billing, closes: Sequence[Close]) -> Swept:
    closed = billing.ledger.close(closes)
    return Swept(holds=len(closes), credits_returned=sum(c.returned for c in closed.values()))


def _orphan(hold: Hold, charge: Charge | None) -> Close | None:
    """How a hold is to end that no open charge stands for; None: one does, so it is not for us."""
    if charge is not None and charge.sequence == hold.sequence:
        if charge.state in {"open", "refunding", "conflict"}:
            return None
        if charge.state == "settled":
            return Close(hold, min(charge.charged or 0, hold.amount), CloseState.SETTLED, "orphaned")
    return Close(hold, 0, CloseState.RELEASED, "orphaned")


def _settlements(services: Services, delivered: Sequence[Charge], fences: Mapping[str, int]) -> list[Settlement]:
    with transaction(services.fltr) as tx:
        facts = expired.delivered(tx, [(c.subject_id, c.generation) for c in delivered])
    prices = services.settings.prices
    return [
        Settlement(c, *_units(prices, c.op, facts.get((c.subject_id, c.generation))), "done", fences.get(c.subject_id))
        for c in delivered
    ]


def _units(prices: Prices, op: Op, facts: Delivered | None) -> tuple[int, int]:
    """Units and what they count, of an op whose result is there."""
    if facts is None or op in {Op.DATASET_SETUP, Op.DOCUMENT_PLAN}:
        return 1, 1
    if op is Op.DOCUMENT_EMBED:
        return pricing.embed_units(prices, facts.fresh_tokens), facts.fresh_tokens
    pages = pricing.counted_pages(facts.kind, facts.pages, facts.characters)
    return pricing.extract_units(prices, pages, facts.ocr_pages), pages
