"""How datasets stand: what is done, what is on its way, how fast, and what it waits for."""

from collections.abc import Sequence
from dataclasses import dataclass

from fltr_pipeline.models import DocumentStatus
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets
from fltr_pipeline.stores.fltr.datasets import Awaiting, Dataset, DatasetCounts, DatasetStatus, Pace, WorkInFlight

PACE_SECONDS = 600.0
"""Throughput is measured over at most this long before the last document's end."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A dataset with its work."""

    status: DatasetStatus
    in_flight: tuple[WorkInFlight, ...]
    awaiting: tuple[Awaiting, ...]
    pace: Pace | None

    @property
    def outstanding(self) -> int:
        """Documents that workers can finish without anybody's help: new uploads, and what is in flight."""
        moving = sum(w.working + w.waiting + w.retrying for w in self.in_flight)
        return self.status.documents.get(DocumentStatus.UPLOADED, 0) + moving

    @property
    def throughput(self) -> float | None:
        """Documents per second over the last processing window."""
        return self.pace.documents / self.pace.seconds if self.pace else None

    @property
    def eta_seconds(self) -> float | None:
        """Until nothing is outstanding, at that throughput; None: nothing is, or nothing was measured yet."""
        return self.outstanding / self.throughput if self.outstanding and self.throughput else None


def overview(services: Services) -> Sequence[DatasetCounts]:
    """All datasets with their documents by status."""
    with transaction(services.fltr) as tx:
        return datasets.counts_of_all(tx)


def standing(services: Services, dataset: Dataset, *, failures: int | None) -> Standing:
    """The dataset with its work, and its first `failures` failures by filename (None: all)."""
    with transaction(services.fltr) as tx:
        return Standing(
            status=datasets.status(tx, dataset, failures=failures),
            in_flight=tuple(datasets.in_flight(tx, dataset.id)),
            awaiting=tuple(a for a in datasets.awaiting(tx) if a.dataset_id == dataset.id),
            pace=datasets.pace(tx, dataset.id, window=PACE_SECONDS),
        )
