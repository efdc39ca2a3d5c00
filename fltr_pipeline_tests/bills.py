"""Documents in a worker's hands and what is charged for them, without files, vectors or a model.

Belongs here: claims, charges and holds as a worker makes them, to test billing and sweeps. Does not: assertions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline import expiry
from fltr_pipeline.pipeline.billing import Quote, Reservation, Settled, Settlement
from fltr_pipeline.pipeline.expiry import Swept
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import generations
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.queries import Fltr, words
from fltr_pipeline_tests.world import World

CONTENT = "flour water"
"""Costs a credit to embed."""


@dataclass(frozen=True)
class Desk:
    """One customer's dataset, and the hands of a worker."""

    world: World
    payer: Payer
    dataset: Dataset

    @classmethod
    def of(cls, world: World, credits: int = 50) -> "Desk":
        payer = world.user(credits)
        return cls(world, payer, world.dataset(payer))

    @property
    def fltr(self) -> Fltr:
        return Fltr(self.world.services.fltr)

    def claim(self, *filenames: str, run: str = "worker") -> list[Claim]:
        """New uploads, in the worker's hands for extraction."""
        self.fltr.upload(self.dataset, *(filenames or ("a",)))
        return self.fltr.claim(self.dataset, run=run, limit=1_000)

    def reserve(self, claimed: Sequence[Claim], op: Op = Op.DOCUMENT_EXTRACT, units: int = 3) -> Reservation:
        """A credit per unit."""
        quotes = [
            Quote(c.document_id, c.generation, c.fence, units, True, self.payer, c.job_id, "worker") for c in claimed
        ]
        return self.world.billing.reserve(op, self.dataset.id, quotes)

    def charge(self, claim: Claim, amount: int = 3) -> Charge:
        """Of an extraction, to be written."""
        return Charge(
            subject_id=claim.document_id, op=Op.DOCUMENT_EXTRACT, generation=1, dataset_id=claim.dataset_id,
            amount=amount, user_id=self.payer.user_id, pot_kind="user", pot_id=self.payer.user_id,
            price_version="2026-11", unit_price=1, job_id=claim.job_id,
        )  # fmt: skip

    def hold(self, claim: Claim, op: Op = Op.DOCUMENT_EXTRACT, units: int = 3) -> Charge:
        """The charge of a hold that was had."""
        return self.reserve([claim], op, units).granted[claim.document_id]

    def settle(self, charge: Charge, units: int, claim: Claim) -> Settled:
        return self.world.billing.settle([Settlement(charge, units, units, "done", claim.fence)])

    def decide(self, claim: Claim) -> Claim:
        """From extraction, to where all vectors were read back: the worker's last claim."""
        self.fltr.stage_text(claim, CONTENT)
        self.fltr.advance([claim], Stage.PLAN)
        (claim,) = self.fltr.claim(self.dataset, Stage.PLAN, run="worker", limit=1)
        self.fltr.plan(claim, words(CONTENT))
        self.fltr.advance([claim], Stage.EMBED)
        (claim,) = self.fltr.claim(self.dataset, Stage.EMBED, run="worker", limit=1)
        with transaction(self.world.services.fltr) as tx:
            generations.assign_keys(tx, [claim])
            generations.decide(tx, [claim])
        return claim

    def publish(self, claim: Claim) -> set[str]:
        with transaction(self.world.services.fltr) as tx:
            return generations.publish(tx, [claim])

    def an_hour_passes(self) -> None:
        """Leases run out and holds grow old."""
        self.world.change("UPDATE pipeline.documents SET lease_until = lease_until - interval '1 hour'")
        self.world.change("UPDATE pipeline.charges SET created_at = created_at - interval '1 hour'")
        self.world.change_auth("UPDATE credit_transactions SET created_at = created_at - interval '1 hour'")

    def sweep(self, *, orphans: bool = False) -> Swept:
        return expiry.sweep(self.world.services, self.world.billing, orphans=orphans)

    def charges(self) -> list[tuple[str, int, str, int | None]]:
        """(op, sequence, state, charged) of each charge."""
        query = "SELECT op, sequence, state, charged FROM pipeline.charges ORDER BY subject_id, op, generation"
        return list(self.world.rows(query))

    def totals(self) -> tuple[int, int, int]:
        """Charged, held and available credits."""
        found = self.world.statement(self.payer)
        return found.charged, found.held, found.available
