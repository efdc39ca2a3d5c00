"""Setting a dataset up: its owner, its collection, its one-off charge. The first asset's work."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from fltr_pipeline.credits.holds import HoldState, Payer
from fltr_pipeline.errors import NotFound
from fltr_pipeline.models import Op, Stage
from fltr_pipeline.pipeline.billing import Billing, Quote, Refusal, Settlement
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.vector_collections import note
from fltr_pipeline.pipeline.worker import Report, Worker
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, datasets, generations, leases
from fltr_pipeline.stores.fltr.claims import Claim, Failure, Wait
from fltr_pipeline.stores.fltr.datasets import Dataset, FailedDocument

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
    if reservation.refused:
        _refuse(services, billing, worker, base, reservation.refused[0], report)
        return report
    facts = services.vectors.ensure()
    charge = reservation.granted[dataset.id]
    # What is paid stays paid, whoever owns the dataset by now, and whatever became of the payer's rows.
    settled = billing.settle([] if charge.paid else [Settlement(charge, 1, 1, "done", None)])
    if settled.refused:
        _refuse(services, billing, worker, base, settled.refused[0], report)
        return report
    with transaction(services.fltr) as tx:
        note(tx, services)
        datasets.mark_set_up(tx, dataset, facts.name)
    report.done = 1
    report.credits_reserved = reservation.reserved
    report.credits_charged = settled.charged
    report.credits_returned = settled.returned
    return report


def _refuse(
    services: Services, billing: Billing, worker: Worker, base: Ground, refusal: Refusal, report: Report
) -> None:
    """Let everything that waits wait for credits instead, or fail, where nobody can pay.

    If somebody else pays by now, or nobody, the charge is ended: the next run asks whoever pays then.
    """
    payer = base.payer
    if refusal.state is not HoldState.INSUFFICIENT or payer is None or refusal.pot != payer.pot:
        billing.void([refusal.charge], "refused")
    pot = refusal.pot if payer is None else payer.pot
    for claimed in _claims(services, worker, base.dataset):
        with transaction(services.fltr) as tx:
            if refusal.state is HoldState.INSUFFICIENT:
                waits = [Wait(c, refusal.amount, pot.kind, pot.id) for c in claimed]
                report.awaiting_credits += len(claims.wait_for_credits(tx, waits))
                continue
            failures = [Failure(c, refusal.state, _nobody_pays(c, base.dataset, refusal)) for c in claimed]
            ended = claims.fail(tx, failures)
            generations.discard_others(tx, list(ended))
        found = [f for f in failures if f.claim.document_id in ended]
        report.failures += [FailedDocument(f.claim.document_id, f.claim.filename, f.code, f.message) for f in found]


def _claims(services: Services, worker: Worker, dataset: Dataset) -> Iterator[list[Claim]]:
    """Everything that waits in the dataset: what was moved to it may be at a later stage."""
    with transaction(services.fltr) as tx:
        since = leases.clock(tx)
    for stage in Stage:
        while claimed := _claim(services, worker, dataset, stage, since):
            yield claimed


def _claim(services: Services, worker: Worker, dataset: Dataset, stage: Stage, since: datetime) -> list[Claim]:
    with transaction(services.fltr) as tx:
        return claims.claim(
            tx, dataset_id=dataset.id, stage=stage, run_id=worker.run_id,
            limit=services.settings.batch_size, lease_seconds=worker.lease_seconds, since=since,
        )  # fmt: skip


def _nobody_pays(claim: Claim, dataset: Dataset, refusal: Refusal) -> str:
    return (
        f"{claim.filename}: nobody can pay for setting up dataset {dataset.name!r}: {refusal.pot.name} has no balance "
        "in fltr_auth; once there is one, reprocess the dataset"
    )
