"""Doing it again: which documents a mode names, and which datasets a nightly backfill is for."""

from datetime import datetime

from fltr_pipeline.failures import RETRYABLE
from fltr_pipeline.models import ReprocessMode, Stage
from fltr_pipeline.pipeline import moves
from fltr_pipeline.pipeline.deletion import datasets_without_owner
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets
from fltr_pipeline.stores.fltr import requeue as queue

_PAGE = 1_000
"""Documents in a transaction: the application waits for no more of them."""


def requeue(
    services: Services,
    dataset_id: str,
    mode: ReprocessMode,
    *,
    charge: bool,
    retryable_only: bool = False,
    since: datetime | None = None,
) -> int:
    """Queue what the mode names; returns how many documents. Uploads that were moved here can be claimed from now on.

    May be repeated: where it was cut off, the next call queues the rest, and with `since`, the time of the first one,
    nothing that was tried meanwhile. `retryable_only` leaves failures of the documents' own alone.
    """
    redo = queue.Redo(
        dataset_id, mode, services.fingerprint, services.extractor, services.tried_with, billable=charge,
        retryable=RETRYABLE if retryable_only else None,
    )  # fmt: skip
    with transaction(services.fltr) as tx:
        chosen = queue.choose(tx, redo)
    queued = 0
    for start in range(0, len(chosen), _PAGE):
        page = chosen[start : start + _PAGE]
        with transaction(services.fltr) as tx:
            tried = queue.begun_since(tx, page, since) if since else set()
            queued += queue.requeue(tx, redo, [i for i in page if i not in tried])
    moves.follow_arrivals(services, dataset_id)
    return queued


def remaining(services: Services, dataset_id: str) -> int:
    """Documents of the dataset that wait to be worked on, but for those that await credits."""
    with transaction(services.fltr) as tx:
        return sum(datasets.waiting_at(tx, dataset_id, stage, unpaid=False) for stage in Stage)


def datasets_to_backfill(services: Services) -> list[str]:
    """Datasets with stale or retryable documents, but for those whose owner is gone: nobody would pay, any night.

    Raises:
        ConfigurationError: as `datasets_without_owner`.
    """
    with transaction(services.fltr) as tx:
        found = queue.backfill_candidates(
            tx, fingerprint=services.fingerprint, extractor=services.extractor, tried_with=services.tried_with,
            retryable=RETRYABLE,
        )  # fmt: skip
    ownerless = datasets_without_owner(services) if found else {}
    return [i for i in found if i not in ownerless]
