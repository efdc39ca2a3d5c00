"""One pass of every sweeper: what dead workers left, what is deleted, what the manifest and Milvus disagree on.

Belongs here: their order, and repairing vectors. Does not: how each finds what it ends (expiry, deletion, reconcile).

Any number of passes may run beside workers and each other, and die anywhere: what was repaired stays so, the next pass
goes on, and one behind a pass that came to its end finds nothing.
"""

import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, astuple, dataclass, field

from fltr_pipeline.pipeline import deletion, embed, expiry, moves, reconcile
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.deletion import Withdrawn
from fltr_pipeline.pipeline.expiry import Swept
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.vector_collections import drop_empty, everywhere, remove
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets, deleted, manifest, requeue
from fltr_pipeline.stores.fltr.deleted import Receipt

_LOG = logging.getLogger(__name__)
_BATCH = 100
_LOOK_SECONDS = 1.0
_SHORT_PASS_SECONDS = 60.0
"""While all keys are listed, the rest of the pass is made again as often as the probe would launch one."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """What was done in Milvus, and because of it."""

    vectors_retired: int = 0
    """Deleted: no document holds them any more."""
    vectors_orphaned: int = 0
    """Deleted: the manifest does not know them."""
    vectors_missing: int = 0
    """Of searchable documents, and Milvus had lost them."""
    documents_repaired: int = 0
    """Queued to have lost vectors made anew, free of charge."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a pass found and ended."""

    swept: Swept = field(default_factory=Swept)
    withdrawn: Withdrawn = field(default_factory=Withdrawn)
    vectors: Vectors = field(default_factory=Vectors)
    receipts: tuple[Receipt, ...] = ()
    """Deletions whose vectors were all read back as absent."""

    def __add__(self, other: "Report") -> "Report":
        return Report(
            self.swept + other.swept,
            Withdrawn(*(a + b for a, b in zip(astuple(self.withdrawn), astuple(other.withdrawn), strict=True))),
            Vectors(*(a + b for a, b in zip(astuple(self.vectors), astuple(other.vectors), strict=True))),
            self.receipts + other.receipts,
        )

    @property
    def nothing(self) -> bool:
        """Whether all was in order."""
        return self == Report()

    @property
    def figures(self) -> dict[str, int]:
        """All counts by name."""
        return asdict(self.swept) | asdict(self.withdrawn) | asdict(self.vectors)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a look by the minute saw."""

    found: str
    """What waits for a pass, in words; empty: nothing."""
    next: str
    """Where the next look goes on among the documents; empty: it begins anew."""
    documents: int = 0
    """Looked at now."""


def probe(services: Services, after: str) -> Probe:
    """Whether a short pass would find something, ledger aside; of the documents it looks at those next behind `after`.

    Indexed reads of both databases, and none of Milvus; of the documents, for a second or two.
    """
    with transaction(services.fltr) as tx:
        unswept = deleted.overdue(tx, age=services.settings.lease_seconds)
    if expiry.overdue(services):
        return Probe("a lease ran out, or a charge stayed open", after)
    if unswept:
        return Probe("vectors that nobody holds were not swept", after)
    if deletion.waiting(services):
        return Probe("a dataset or its owner was deleted", after)
    return _look(services, after)


def _look(services: Services, after: str) -> Probe:
    begun, looked = time.monotonic(), 0
    while True:
        page = deletion.page(services, after)
        looked += len(page.document_ids)
        if page.gone:
            return Probe("a document was deleted", after, looked)
        if moves.waiting(services, page.document_ids):
            return Probe("a document was moved to another dataset", after, looked)
        after = page.last
        if not after or time.monotonic() - begun > _LOOK_SECONDS:
            return Probe("", after, looked)


def sweep_all(services: Services, billing: Billing, *, list_keys: bool) -> Report:
    """One pass. `list_keys`: also list every key on both sides, which takes as long as there are vectors.

    Raises:
        StoreUnavailable: a store does not answer; what was ended stays so, the next pass goes on.
    """
    report = _short_pass(services, billing)
    if not list_keys:
        return report
    services.vectors.ensure()
    begun = time.monotonic()
    for found in _listed(services):
        report += Report(vectors=found)
        if time.monotonic() - begun > _SHORT_PASS_SECONDS:
            report += _short_pass(services, billing)
            begun = time.monotonic()
    report += _after_withdrawal(services)
    drop_empty(services)
    return report


def _short_pass(services: Services, billing: Billing) -> Report:
    """The databases first: no credit waits for Milvus."""
    withdrawn = deletion.withdraw(services)
    swept = expiry.sweep(services, billing, orphans=True)
    return Report(swept, withdrawn) + _after_withdrawal(services)


def _after_withdrawal(services: Services) -> Report:
    retired = _sweep_retired(services)
    receipts = deletion.receipts(services)
    for r in receipts:
        _LOG.info("%s of document %s: %d vectors verified absent", r.cause, r.document_id, r.vectors)
    return Report(
        vectors=Vectors(vectors_retired=retired, documents_repaired=_repair(services)), receipts=tuple(receipts)
    )


def _sweep_retired(services: Services) -> int:
    with transaction(services.fltr) as tx:
        waiting = manifest.datasets_to_sweep(tx)
    if waiting:
        services.vectors.ensure()
    return sum(embed.sweep(services, dataset_id) for dataset_id in waiting)


def _repair(services: Services) -> int:
    repaired, after = 0, ""
    while True:
        with transaction(services.fltr) as tx:
            found = requeue.lost(tx, after, _BATCH, tried_with=services.tried_with)
        if not found:
            return repaired
        with transaction(services.fltr) as tx:
            repaired += requeue.repair(tx, found)
        after = found[-1]


def _listed(services: Services) -> Iterator[Vectors]:
    """Page by page: delete what is in Milvus alone, note what is in the manifest alone."""
    for store in everywhere(services):
        for orphans in reconcile.orphan_pages(services, store, store.every_key()):
            remove(store, sorted(orphans))
            yield Vectors(vectors_orphaned=len(orphans))
    with transaction(services.fltr) as tx:
        ids = [d.id for d in datasets.every(tx)]
    for dataset_id in ids:
        for page in reconcile.live_pages(services, dataset_id):
            yield Vectors(vectors_missing=_note_missing(services, dataset_id, page.keys))


def _note_missing(services: Services, dataset_id: str, keys: Collection[str]) -> int:
    """Not of stale documents: theirs may lie in the collection of an earlier model, and are made anew in any case."""
    missing = reconcile.missing(services, dataset_id, keys)
    if not missing:
        return 0
    with transaction(services.fltr) as tx:
        noted = manifest.lose(tx, missing, services.fingerprint)
    if noted:
        _LOG.warning("Milvus has lost %d vectors of dataset %s", noted, dataset_id)
    return noted
