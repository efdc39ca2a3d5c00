"""Do the three systems agree? Comparing the manifest with Milvus, by key.

Belongs here: finding drift. Does not yet repair it beyond the sweep of retired keys (embed.sweep).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets, manifest


@dataclass(frozen=True, slots=True)
class Drift:
    """How the manifest and Milvus differ for a dataset."""

    live: int
    """Keys that the manifest says are searchable."""
    missing: frozenset[str]
    """In the manifest, not in Milvus."""
    orphans: frozenset[str]
    """In Milvus; neither live, nor in flight, nor waiting for the sweep."""

    @property
    def none(self) -> bool:
        """Whether both hold the same."""
        return not self.missing and not self.orphans


@dataclass(frozen=True, slots=True)
class Published:
    """The vectors of a run's own documents."""

    documents: int
    chunks: int
    missing: frozenset[str]


def check_published(services: Services, dataset_id: str, document_ids: Sequence[str]) -> Published:
    """Whether every chunk of these documents' live generations is in Milvus: as much work as the run had."""
    with transaction(services.fltr) as tx:
        keys = manifest.keys_of(tx, document_ids)
    missing = keys - services.vectors.present(sorted(keys), dataset_id)
    return Published(len(document_ids), len(keys), frozenset(missing))


def compare_all(services: Services) -> dict[str, Drift]:
    """Each dataset that differs, by id; lists every key on both sides, so it is for a schedule."""
    with transaction(services.fltr) as tx:
        ids = [d.id for d in datasets.every(tx)]
    return {i: drift for i in ids if not (drift := compare(services, i)).none}


def compare(services: Services, dataset_id: str) -> Drift:
    """List the keys on both sides; counts of a vector store can't be trusted after deletes.

    Milvus is read between two readings of the manifest, so that a document published or retired meanwhile is no drift.
    """
    with transaction(services.fltr) as tx:
        before = manifest.manifest_keys(tx, dataset_id)
        transient = manifest.transient_keys(tx, dataset_id)
    stored = set(services.vectors.keys(dataset_id))
    with transaction(services.fltr) as tx:
        after = manifest.manifest_keys(tx, dataset_id)
        transient |= manifest.transient_keys(tx, dataset_id)
    return Drift(
        live=len(after),
        missing=frozenset((before & after) - stored),
        orphans=frozenset(stored - before - after - transient),
    )
