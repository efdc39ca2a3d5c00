"""What workers do to documents and their charges: the work that is killed, and how another worker goes on after it.

Belongs here: one op's steps through billing, sweep and grant, as functions that travel to another process. Does not:
setting the scene before them (operations), what must hold afterwards (books).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline import expiry
from fltr_pipeline.pipeline.billing import Quote, Reservation, Settlement
from fltr_pipeline.pipeline.setup import Ground, set_up
from fltr_pipeline.pipeline.worker import Worker
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, generations
from fltr_pipeline.stores.fltr.charges import Charge, mark_refunding
from fltr_pipeline.stores.fltr.claims import Claim, Failure, Wait
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.crashes.hands import Hands

RESERVED, USED = 3, 2
"""Credits for the extraction of a document."""

EMBEDDED = 4
"""Credits for embedding it."""

GRANTED = 5


@dataclass(frozen=True, slots=True)
class Scene:
    """What a worker has before it. `granted`: bonuses that its user has."""

    payer: Payer
    dataset: Dataset
    granted: int
    stage: Stage = Stage.EXTRACT
    claims: Sequence[Claim] = ()
    charges: Mapping[str, Charge] = field(default_factory=dict)

    @property
    def op(self) -> Op:
        """What is paid for."""
        return Op.DOCUMENT_EMBED if self.stage is Stage.EMBED else Op.DOCUMENT_EXTRACT


Work = Callable[[Scene, Hands], object]


def reserve(scene: Scene, hands: Hands) -> Reservation:
    """Pay for what is claimed."""
    units = EMBEDDED if scene.stage is Stage.EMBED else RESERVED
    quotes = [
        Quote(c.document_id, c.generation, c.fence, units, True, scene.payer, c.job_id, hands.name)
        for c in scene.claims
    ]
    return hands.billing.reserve(scene.op, scene.dataset.id, quotes)


def settle(scene: Scene, hands: Hands, units: int = USED) -> frozenset[str]:
    """The work took `units`; returns the documents that are not paid."""
    fences = {c.document_id: c.fence for c in scene.claims}
    settlements = [Settlement(charge, units, units, "done", fences[i]) for i, charge in scene.charges.items()]
    return hands.billing.settle(settlements).unpaid


def settle_whole(scene: Scene, hands: Hands) -> None:
    settle(scene, hands, RESERVED)


def settle_nothing(scene: Scene, hands: Hands) -> None:
    settle(scene, hands, 0)


def give_up(scene: Scene, hands: Hands) -> None:
    hands.billing.give_up([(c.document_id, c.generation) for c in scene.claims])


def fail(scene: Scene, hands: Hands) -> None:
    """By our fault: that everything is to go back is decided with it."""
    with transaction(hands.services.fltr) as tx:
        ended = claims.fail(tx, [Failure(c, "internal_error", "broke") for c in scene.claims])
        mark_refunding(tx, [(c.document_id, c.generation) for c in scene.claims if c.document_id in ended])
        generations.discard_others(tx, list(ended))


def void(scene: Scene, hands: Hands) -> None:
    hands.billing.void(list(scene.charges.values()), "given_back")


def sweep(_: Scene, hands: Hands) -> expiry.Swept:
    return expiry.sweep(hands.services, hands.billing, orphans=True)


def grant(scene: Scene, hands: Hands) -> None:
    hands.services.ledger.grant(scene.payer, GRANTED, reason="welcome")


def set_up_dataset(scene: Scene, hands: Hands) -> None:
    worker = Worker(hands.services.fltr, hands.name, hands.services.settings.lease_seconds)
    set_up(hands.services, hands.billing, worker, Ground(scene.dataset, scene.payer))


def claim(scene: Scene, hands: Hands) -> Scene:
    """The scene as of a worker that takes all its documents over; those at which others died come one by one."""
    claimed: list[Claim] = []
    while some := _claim_some(scene, hands):
        claimed += some
    return replace(scene, claims=claimed, charges={})


def _claim_some(scene: Scene, hands: Hands) -> list[Claim]:
    with transaction(hands.services.fltr) as tx:
        return claims.claim(
            tx, dataset_id=scene.dataset.id, stage=scene.stage, run_id=hands.name, limit=100, lease_seconds=60
        )


def decide(scene: Scene, hands: Hands) -> None:
    """All vectors were read back."""
    with transaction(hands.services.fltr) as tx:
        generations.assign_keys(tx, scene.claims)
        generations.decide(tx, scene.claims)


def embed(scene: Scene, hands: Hands) -> None:
    """Decide, settle, publish."""
    decide(scene, hands)
    unpaid = settle(scene, hands, EMBEDDED)
    with transaction(hands.services.fltr) as tx:
        generations.publish(tx, [c for c in scene.claims if c.document_id not in unpaid])


def resume(scene: Scene, hands: Hands, units: int = USED) -> None:
    """Take the documents over and go through the op once more; what can't be paid for waits for credits."""
    mine = claim(scene, hands)
    reservation = reserve(mine, hands)
    mine = replace(mine, charges=reservation.granted)
    by_id = {c.document_id: c for c in mine.claims}
    waits = [Wait(by_id[r.subject_id], r.amount, r.pot.kind, r.pot.id) for r in reservation.refused]
    with transaction(hands.services.fltr) as tx:
        claims.wait_for_credits(tx, waits)
    if scene.stage is not Stage.EMBED:
        settle(mine, hands, units)
    elif mine.claims:
        embed(mine, hands)


def resume_whole(scene: Scene, hands: Hands) -> None:
    resume(scene, hands, RESERVED)


def resume_for_nothing(scene: Scene, hands: Hands) -> None:
    resume(scene, hands, 0)


def sweep_and_resume(scene: Scene, hands: Hands) -> None:
    sweep(scene, hands)
    resume(scene, hands)


def give_up_too(scene: Scene, hands: Hands) -> None:
    """Whoever takes the documents over gives them up as well."""
    give_up(claim(scene, hands), hands)


def grant_unless_there(scene: Scene, hands: Hands) -> None:
    """What a person does who looks at the statement first."""
    if hands.services.ledger.statement(scene.payer).granted == scene.granted:
        grant(scene, hands)
