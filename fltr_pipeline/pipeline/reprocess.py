"""Doing it again: which documents a mode names, and which datasets a nightly backfill is for."""

from fltr_pipeline.failures import RETRYABLE
from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.pipeline import moves
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets
from fltr_pipeline.stores.fltr import requeue as queue


def requeue(
    services: Services, dataset_id: str, mode: ReprocessMode, *, charge: bool, retryable_only: bool = False
) -> int:
    """Queue what the mode names; returns how many documents. Uploads that were moved here can be claimed from now on.

    `retryable_only` leaves failures of the documents' own alone.
    """
    codes = RETRYABLE if retryable_only else None
    with transaction(services.fltr) as tx:
        queued = queue.requeue(
            tx, dataset_id, mode, fingerprint=services.fingerprint, extractor=services.extractor,
            tried_with=services.tried_with, billable=charge, retryable=codes,
        )  # fmt: skip
    moves.follow_arrivals(services, dataset_id)
    return queued


def remaining(services: Services, dataset_id: str) -> int:
    """Documents of the dataset that can be worked on now."""
    with transaction(services.fltr) as tx:
        return sum(b.waiting for b in datasets.backlog(tx) if b.dataset_id == dataset_id)


def datasets_to_backfill(services: Services) -> list[str]:
    """Datasets with stale or retryable documents."""
    with transaction(services.fltr) as tx:
        return queue.backfill_candidates(
            tx, fingerprint=services.fingerprint, extractor=services.extractor, tried_with=services.tried_with,
            retryable=RETRYABLE,
        )  # fmt: skip
