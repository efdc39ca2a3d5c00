"""Workers and sweepers on the same documents, in any order: charges, fences and the ledger against the model.

Belongs here: the machine of Billing and the sweep. Does not: the ledger alone (ledger_machine).

A worker here may do more than a real one: go on after its process died, settle what it never decided, all of it twice.
"""

from dataclasses import replace
from typing import Any, cast

from hypothesis import strategies as st

from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline import expiry
from fltr_pipeline.pipeline.billing import Billing, Quote, Settlement, hold_of
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.settings import Prices, Settings
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, generations
from fltr_pipeline.stores.fltr.charges import Charge, mark_refunding
from fltr_pipeline.stores.fltr.claims import Claim, Failure, Wait
from fltr_pipeline_tests.faults.billing_model import OF_STAGE, BillingModel, BillingView, Ended, Granted
from fltr_pipeline_tests.faults.ledger_machine import Fates, Machine, fates
from fltr_pipeline_tests.faults.ledger_model import LedgerModel, check

PRICES = [
    Prices(version="first", extract=1, embed=1, embed_tokens=1),
    Prices(version="dearer", extract=2, embed=2, embed_tokens=2),
    Prices(version="free extraction", extract=0, plan=1, embed=1, embed_tokens=1),
]
SETTINGS = Settings.model_construct(prices=PRICES[0], lease_seconds=0)
"""So that whatever is left behind is overdue at once."""

prices = st.sampled_from([*PRICES, PRICES[0]])
units = st.sampled_from([3, 2, 1, 4, 5, 0])
documents = st.integers(0, 2)


class Worker:
    """A claim, and how far its holder has come."""

    def __init__(self, claim: Claim, op: Op) -> None:
        self.claim, self.op = claim, op
        self.charges: list[Charge] = []
        """What was granted, the latest last."""
        self.paid = self.finished = False

    def __repr__(self) -> str:
        return f"<{self.op} of {self.claim.document_id}, fence {self.claim.fence}>"


class BillingMachine(Machine):
    """Documents that are extracted, then embedded."""

    model: BillingModel
    calls = (*["go_on"] * 8, "claim", "lease_runs_out", "lease_runs_out", "delete_document", "reserve", "reserve",
             "decide", "expire_in_hand", "settle", "settle", "give_up", "sweep", "sweep", "sweep", "grant",
             "beside")  # fmt: skip

    def begin(self, credits: LedgerModel) -> BillingModel:
        self.runs = 0
        self.workers: list[Worker] = []
        self.documents = [f"doc-{n}" for n in range(3)]
        return BillingModel(credits)

    @property
    def credits(self) -> LedgerModel:
        return self.model.ledger

    def look(self) -> BillingView:
        return BillingView(self.scene.look(), *self.scene.look_at_fltr())

    def check(self, seen: BillingView) -> None:
        """Also: an op on a generation is charged at most once, net, never more than was frozen; and `fltr` says so.

        What failed by our fault costs nothing, once that is through.
        """
        check(seen.credits, self.credits)
        net: dict[str, int] = {}
        for row in seen.credits.rows.values():
            if row.hold:
                net[row.hold] = net.get(row.hold, 0) - row.amount
        for charge in self.model.charges.values():
            holds = [hold_of(replace(charge, sequence=n)) for n in range(1, charge.sequence + 1)]
            tries = [net.get(h.id, 0) for h in holds]
            assert sum(tries) <= charge.amount
            assert sum(n > 0 for n in tries) <= 1
            there = self.credits.state(holds[-1]) not in {None, "open"}
            ended = self.credits.closed(holds[-1]).state if there else self.credits.state(holds[-1]) or charge.state
            assert charge.state in {"open", "refunding", "refunded", ended}
            if charge.state == "refunded" and hold_of(charge).payer.pot in self.credits.balances:
                assert sum(tries) == 0

    # Documents ----------------------------------------------------------------------------------------------------

    def claim(self, data: st.DataObject) -> None:
        """What waits, or is uploaded anew; also from a worker who was not heard of."""
        document, anew = self.documents[data.draw(documents)], data.draw(st.integers(0, 9), label="upload anew") == 9
        known = self.model.documents.get(document)
        if known is None or (known.stage is None and known.status != "uploaded") or anew:
            self.scene.upload(document)
            self.model.upload(document)
        elif data.draw(st.booleans(), label="take over"):
            self._expire(document)
        known, same = self.model.documents[document], data.draw(st.booleans(), label="the same bytes")
        stage = Stage.EXTRACT if known.status == "uploaded" else known.stage or Stage.EXTRACT
        self.runs += 1
        with transaction(self.scene.fltr) as tx:
            got = claims.claim(
                tx, dataset_id=document, stage=stage, run_id=f"run-{self.runs}", limit=1, lease_seconds=3600
            )
            if known.status == "uploaded" and known.staged and not same:
                got = claims.renew(tx, got)
            generations.discard_others(tx, [document])
        assert bool(got) == self.model.claim(document, same=same)
        self.scene.extracted(document, self.model.documents[document].generation)
        self.workers += [Worker(c, OF_STAGE[stage]) for c in got]

    def lease_runs_out(self, data: st.DataObject) -> None:
        """Its worker is slow, or dead."""
        self._expire(self.documents[data.draw(documents)])

    def _expire(self, document: str) -> None:
        known = self.model.documents.get(document)
        if known is not None and known.leased:
            self.scene.lease_runs_out(document)
            self.model.change(document, expired=True)

    def delete_document(self, data: st.DataObject) -> None:
        """An id never comes back."""
        which = data.draw(documents)
        document = self.documents[which]
        if document in self.model.documents and self.steps > 20:
            self.documents[which] = f"{document}'"
            del self.model.documents[document]
            self.scene.delete_document(document)

    # A worker's way -----------------------------------------------------------------------------------------------

    def go_on(self, data: st.DataObject) -> None:
        """The next step of one who does as they should."""
        mine = [w for w in self.workers if self._holds(w) and not w.finished]
        if not mine:
            self.claim(data)
            return
        worker = data.draw(st.sampled_from(mine), label="worker")
        if not worker.charges:
            self._reserve(data, [worker])
        elif worker.op is Op.DOCUMENT_EMBED and not self.model.documents[worker.claim.document_id].decided:
            self._decide(worker)
        elif not worker.paid:
            self._settle(data, [worker])
        else:
            self._finish(worker)

    def reserve(self, data: st.DataObject) -> None:
        """Also twice, late, or without the fence."""
        if workers := self._some(data, self.workers):
            self._reserve(data, workers)

    def _reserve(self, data: st.DataObject, workers: list[Worker]) -> None:
        """Under whatever price and payer: what the first wrote stands. Who can't pay waits."""
        price, fate = data.draw(prices), data.draw(fates)
        op, mine = workers[0].op, {w.claim.document_id: w for w in workers}
        quotes = [
            Quote(c.document_id, c.generation, c.fence, data.draw(units), True, self.payer(data), None, None)
            for c in (w.claim for w in workers)
        ]

        def real() -> Granted:
            told = self._billing(price).reserve(op, "d", quotes)
            return Granted(dict(told.granted), {(r.subject_id, r.state) for r in told.refused})

        told = self.call(real, lambda m: m.reserve(op, quotes, price), fate)
        for document, charge in told.granted.items() if told else ():
            mine[document].charges.append(charge)
        poor = [mine[i].claim for i, why in told.refused if why == "insufficient"] if told else []
        with transaction(self.scene.fltr) as tx:
            claims.wait_for_credits(tx, [Wait(c, 1, "user", "ada") for c in poor])
        for c in poor:
            self.model.wait(c.document_id, c.fence)

    def decide(self, data: st.DataObject) -> None:
        """Also late."""
        for worker in self._some(data, self._granted()):
            if worker.op is Op.DOCUMENT_EMBED and not worker.finished:
                self._decide(worker)

    def _decide(self, worker: Worker) -> None:
        """Every vector was read back."""
        with transaction(self.scene.fltr) as tx:
            held = generations.decide(tx, [worker.claim])
        assert bool(held) == self._holds(worker)
        if held:
            self.model.change(worker.claim.document_id, decided=True)

    def expire_in_hand(self, data: st.DataObject) -> None:
        """The hold of a slow worker, who keeps the fence."""
        if workers := self._some(data, self._granted()):
            charge, fate = workers[0].charges[-1], data.draw(fates)
            self.call(lambda: self._billing(PRICES[0]).void([charge], "expired"), lambda m: m.void([charge]), fate)

    def settle(self, data: st.DataObject) -> None:
        """Also twice, late, or without the fence."""
        if workers := self._some(data, self._granted()):
            self._settle(data, workers)

    def _settle(self, data: st.DataObject, workers: list[Worker]) -> None:
        """The charge as it was granted, now or before."""
        fate = data.draw(fates)
        which = [data.draw(st.sampled_from(w.charges[::-1]), label="charge") for w in workers]
        used = [data.draw(units, label="used") for _ in workers]
        settlements = [Settlement(c, n, n, "done", w.claim.fence) for w, c, n in zip(workers, which, used, strict=True)]

        def real() -> Ended:
            told = self._billing(PRICES[0]).settle(settlements)
            return Ended({(r.subject_id, r.state) for r in told.refused}, set(told.unpaid))

        told = self.call(real, lambda m: m.settle(settlements), fate)
        for worker in workers if told else []:
            worker.paid = told is not None and worker.claim.document_id not in told.unpaid

    def _finish(self, worker: Worker) -> None:
        """Hand on what is paid, or publish it."""
        document = worker.claim.document_id
        with transaction(self.scene.fltr) as tx:
            if worker.op is Op.DOCUMENT_EXTRACT:
                claims.advance(tx, [worker.claim], Stage.EMBED)
                self.model.change(document, stage=Stage.EMBED, leased=False, expired=False)
            else:
                generations.publish(tx, [worker.claim])
                self.model.publish(document, worker.claim.fence)
        worker.finished = True

    def give_up(self, data: st.DataObject) -> None:
        """Fails by our fault: everything goes back, if the document is still in its hands."""
        fate = data.draw(fates)
        for worker in self._some(data, self.workers)[:1]:
            self._give_up(worker, fate)

    def _give_up(self, worker: Worker, fate: Fates) -> None:
        c, holds = worker.claim, self._holds(worker)
        if holds and not self.model.documents[c.document_id].leased:
            return  # handed on or parked: who does as they should never fails it
        with transaction(self.scene.fltr) as tx:
            ended = claims.fail(tx, [Failure(c, "internal_error", "")])
            mark_refunding(tx, [(i, c.generation) for i in ended])
            generations.discard_others(tx, list(ended))
        assert bool(ended) == holds
        if ended:
            self.workers.remove(worker)  # its fence stands, so it is to keep its hands off
            self.model.mark_refunding(c.document_id, c.generation)
            self.model.fail(c.document_id)
            self.call(
                lambda: self._billing(PRICES[0]).give_up([(c.document_id, c.generation)]) >= 0,
                lambda m: m.give_up(c.document_id, c.generation), fate,
            )  # fmt: skip

    def sweep(self, data: st.DataObject) -> None:
        """As many as like."""
        orphans, fate = data.draw(st.booleans(), label="orphans"), data.draw(fates)

        def real() -> bool:
            expiry.sweep(self._services(), self._billing(PRICES[0]), orphans=orphans)
            return True

        self.call(real, lambda m: m.sweep(PRICES[0], orphans=orphans), fate)

    def _granted(self) -> list[Worker]:
        """Who may work."""
        return [w for w in self.workers if w.charges]

    def _some(self, data: st.DataObject, workers: list[Worker]) -> list[Worker]:
        """Of the latest, of one op."""
        if not workers:
            return []
        recent = st.sampled_from(workers[:-7:-1])
        unique = st.lists(recent, min_size=1, max_size=3, unique_by=lambda w: w.claim.document_id)
        drawn = data.draw(unique, label="workers")
        return [w for w in drawn if w.op is drawn[0].op]

    def _holds(self, worker: Worker) -> bool:
        return self.model.fenced(worker.claim.document_id, worker.claim.fence)

    def _billing(self, price: Prices) -> Billing:
        return Billing(self.scene.fltr, self.ledger, price, charging=True)

    def _services(self) -> Services:
        """A sweep touches neither vectors nor files nor the model."""
        nothing = cast(Any, None)
        return Services(SETTINGS, self.scene.fltr, self.ledger, nothing, nothing, nothing)
