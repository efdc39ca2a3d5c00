"""Setting a dataset up: its owner, its collection, its one-off charge. The first asset's work."""

from dataclasses import dataclass

from fltr_pipeline.credits.holds import HoldState, Payer
from fltr_pipeline.errors import NotFound
from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline.billing import Billing, Quote, Settlement
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.worker import Report, Worker
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, datasets
from fltr_pipeline.stores.fltr.claims import Wait
from fltr_pipeline.stores.fltr.datasets import Dataset

_ONCE = 1  # a dataset is set up once: its charge has this generation for ever


@dataclass(frozen=True, slots=True)
class Ground:
    """What every op of a run stands on."""

    dataset: Dataset
    payer: Payer | None
    """None: the owner no longer exists."""


def ground(services: Services, dataset_id: str) -> Ground:
    """The dataset and who pays for it.

    Raises:
        NotFound: the dataset was deleted.
    """
    with transaction(services.fltr) as tx:
        dataset = datasets.get(tx, dataset_id)
    if dataset is None:
        raise NotFound(
            f"dataset {dataset_id} does not exist in fltr: it was deleted, or this partition was added by hand"
        )
    return Ground(dataset, services.ledger.payer(dataset.user_id))


def set_up(services: Services, billing: Billing, worker: Worker, base: Ground) -> Report:
    """Reserve, make sure of the collection, settle; the second time all three find the first.

    Where the pot can't cover the price, the dataset's documents wait for credits.
    """
    report = Report()
    if base.payer is None:
        return report
    dataset = base.dataset
    quote = Quote(dataset.id, _ONCE, None, 1, True, base.payer, None, worker.run_id)
    reservation = billing.reserve(Op.DATASET_SETUP, dataset.id, [quote])
    for refusal in reservation.refused:
        if refusal.state is HoldState.INSUFFICIENT:
            report.awaiting_credits = _hold_back(services, worker, base.payer, dataset, refusal.amount)
        return report
    facts = services.vectors.ensure()
    with transaction(services.fltr) as tx:
        datasets.mark_set_up(tx, dataset, facts.name)
    charge = reservation.granted[dataset.id]
    settled = billing.settle([Settlement(charge, 1, 1, "done", None)])
    report.done = 1
    report.credits_reserved = reservation.reserved
    report.credits_charged = settled.charged
    report.credits_returned = settled.returned
    return report


def _hold_back(services: Services, worker: Worker, payer: Payer, dataset: Dataset, amount: int) -> int:
    """Let everything that waits at the first stage wait for credits instead."""
    held = 0
    while True:
        with transaction(services.fltr) as tx:
            claimed = claims.claim(
                tx, dataset_id=dataset.id, stage=Stage.EXTRACT, run_id=worker.run_id,
                limit=services.settings.batch_size, lease_seconds=worker.lease_seconds,
            )  # fmt: skip
            if not claimed:
                return held
            held += len(claims.wait_for_credits(tx, [Wait(c, amount, payer.pot.kind, payer.pot.id) for c in claimed]))
