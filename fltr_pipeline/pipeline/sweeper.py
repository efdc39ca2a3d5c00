"""One pass of every sweeper: what dead workers left, what is deleted, what the manifest and Milvus disagree on.

Belongs here: their order, and repairing vectors. Does not: how each finds what it ends (expiry, deletion, reconcile).

Any number of passes may run beside workers and each other, and die anywhere: what was repaired stays so, the next pass
goes on, and one behind a pass that came to its end finds nothing but what is for people: files that can't be copied,
holds that were changed by hand. A document whose row somebody holds locked is a later pass's.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from itertools import chain

from fltr_pipeline.errors import ConfigurationError, StoreUnavailable
from fltr_pipeline.pipeline import deletion, embed, expiry, moves, reconcile
from fltr_pipeline.pipeline.billing import Billing
from fltr_pipeline.pipeline.deletion import Withdrawn
from fltr_pipeline.pipeline.expiry import Swept
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.vector_collections import drop_empty, everywhere, note, remove, tell_of
from fltr_pipeline.stores.database import reason, transaction
from fltr_pipeline.stores.fltr import datasets, deleted, manifest, requeue
from fltr_pipeline.stores.fltr.deleted import Receipt
from fltr_pipeline.stores.fltr.locks import lock_unheld

_LOG = logging.getLogger(__name__)
_BATCH = 100
_LOOK_SECONDS = 1.0
_UNFINISHED_SECONDS = 24 * 3600.0
"""Nobody writes a file for so long."""
_REFUSED = "a database refuses to have all ended that is to be: the log says what, and why"
_SHORT_PASS_SECONDS = 60.0
"""However long a part takes, leases wait no longer than for the probe; while all keys are listed, it is probed, too."""


class NotAllEnded(StoreUnavailable):
    """A pass came to its end, and a store kept it from a part: what it did is not to be done again for that."""


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
    """Where the pass, or the next look, goes on among the documents; empty: it begins anew."""
    documents: int = 0
    """Looked at now."""


def probe(services: Services, after: str) -> Probe:
    """Whether a short pass would find something, ledger aside; of the documents it looks at those next behind `after`.

    Indexed reads of both databases, and none of Milvus; of the documents, for a second or two. It changes nothing: what
    is found it locks as a pass would, to leave what that would leave, and lets it go at once.
    """
    looked = _look(services, after)
    return replace(looked, found=found) if (found := _overdue(services)) else looked


def _overdue(services: Services) -> str:
    """What is found without a look at each document, in words."""
    with transaction(services.fltr) as tx:
        unswept = deleted.overdue(tx, age=services.settings.lease_seconds)
    if expiry.overdue(services):
        return "a lease ran out, or a charge stayed open"
    if unswept:
        return "vectors that nobody holds were not swept"
    return "a dataset or its owner was deleted" if deletion.waiting(services) else ""


def _look(services: Services, after: str) -> Probe:
    begun, looked = time.monotonic(), 0
    while True:
        page = deletion.page(services, after)
        looked += len(page.document_ids)
        if page.gone:
            return Probe("a document was deleted", after, looked)
        if moves.found(services, page.document_ids):
            return Probe("a document was moved to another dataset", after, looked)
        after = page.last
        if not after or time.monotonic() - begun > _LOOK_SECONDS:
            return Probe("", after, looked)


def sweep_all(services: Services, billing: Billing, *, list_keys: bool, after: str = "") -> Iterator[Report]:
    """One pass; yields what it ended, part by part, so that it can be told of one that goes no further.

    Args:
        services: Where it looks, and what it ends.
        billing: What it closes holds by.
        list_keys: A full pass, which also lists every key on both sides, and reads the whole ledger. Without, it costs
            what there is to end.
        after: Without that: of the documents, it looks at those behind this id, as the probe did.

    Raises:
        NotAllEnded: Milvus did not answer a short pass, or still shows what was deleted; or a database refuses to have
            a row ended. All else was done.
        StoreUnavailable: a database does not answer, or Milvus did not while keys were listed. What was ended stays
            so, the next pass goes on.
    """
    failed, unswept, cut = list[StoreUnavailable](), list[StoreUnavailable](), list[StoreUnavailable]()
    leases = _leases(services, billing, failed)
    ended = _end(services, billing, failed, whole=list_keys, after="" if list_keys else after)
    yield from _minding(chain(ended, _after_withdrawal(services, failed, unswept)), leases)
    if list_keys:
        listed = _going_on(_listed(services, failed, cut), cut)
        yield from _minding(listed, _short_passes(services, billing, failed, unswept))
        unswept.clear()  # all of it is swept again
        yield from _minding(_after_withdrawal(services, failed, unswept), leases)
        yield from _going_on(_drop_empty(services), unswept)
        _remove_unfinished(services)
    if cut:
        raise StoreUnavailable(_said(cut)) from cut[0]
    if failed := failed + unswept:
        raise NotAllEnded(_said(failed)) from failed[0]


def _said(failed: Sequence[StoreUnavailable]) -> str:
    return "; ".join(dict.fromkeys(map(str, failed)))


def _minding(parts: Iterator[Report], other: Iterator[Report]) -> Iterator[Report]:
    """What the parts end, and each minute one of the other, which does not wait for them."""
    begun = time.monotonic()
    for part in parts:
        yield part
        if time.monotonic() - begun > _SHORT_PASS_SECONDS:
            yield next(other)
            begun = time.monotonic()


def _leases(services: Services, billing: Billing, failed: list[StoreUnavailable]) -> Iterator[Report]:
    while True:
        yield _expired(services, billing, failed)


def _expired(services: Services, billing: Billing, failed: list[StoreUnavailable], *, orphans: bool = False) -> Report:
    swept = expiry.sweep(services, billing, orphans=orphans)
    if swept.refused:
        failed.append(StoreUnavailable(_REFUSED))
    return Report(swept)


def _short_passes(
    services: Services, billing: Billing, failed: list[StoreUnavailable], unswept: list[StoreUnavailable]
) -> Iterator[Report]:
    """As the probe would launch them, if this one were not at it."""
    after = ""
    while True:
        probed = probe(services, after)
        after = probed.next
        short = sweep_all(services, billing, list_keys=False, after=after) if probed.found else iter(())
        report = sum(_going_on(short, unswept), Report())
        if report.swept.refused:
            failed.append(StoreUnavailable(_REFUSED))
        yield report


def _going_on(parts: Iterator[Report], failed: list[StoreUnavailable]) -> Iterator[Report]:
    """What the parts end; where a store keeps them from the rest, that is told at the end of the pass."""
    try:
        yield from parts
    except StoreUnavailable as error:
        failed.append(error)


def _despite_refusals(parts: Iterator[Report], failed: list[StoreUnavailable]) -> Iterator[Report]:
    """What the parts end; where a database refuses a row, the next part does not wait for that."""
    try:
        yield from parts
    except expiry.REFUSED as error:
        _LOG.error("what is deleted, moved or lost can't all be ended: %s; a later pass tries again", reason(error))
        failed.append(StoreUnavailable(_REFUSED))


def _end(
    services: Services, billing: Billing, failed: list[StoreUnavailable], *, whole: bool, after: str
) -> Iterator[Report]:
    """The databases first: no credit waits for a file or for Milvus. `whole`: all documents, and the whole ledger."""
    deletion.datasets_without_owner(services)  # that the ledger is not another deployment's
    yield _expired(services, billing, failed)
    moved = set[str]()
    yield from _despite_refusals(_withdrawn(services, moved, whole=whole, after=after), failed)
    yield _expired(services, billing, failed, orphans=whole)  # what attempts at what is gone were charged
    yield from _despite_refusals(_followed(services, moved, whole=whole), failed)
    if moved:  # what the attempts in the old datasets were charged
        yield _expired(services, billing, failed)


def _withdrawn(services: Services, moved: set[str], *, whole: bool, after: str) -> Iterator[Report]:
    """What is gone; `moved` gets what is found elsewhere."""
    for withdrawn, elsewhere in deletion.withdraw(services, after=after, patience=math.inf if whole else _LOOK_SECONDS):
        moved |= elsewhere
        yield Report(withdrawn=withdrawn)


def _followed(services: Services, moved: Collection[str], *, whole: bool) -> Iterator[Report]:
    for some in moves.follow(services, sorted(moved), put_off=whole):
        yield Report(withdrawn=Withdrawn(documents_moved=some.documents, files_not_copied=some.held))


def _after_withdrawal(
    services: Services, failed: list[StoreUnavailable], unswept: list[StoreUnavailable]
) -> Iterator[Report]:
    yield from _going_on(_sweep_retired(services), unswept)
    receipts = deletion.receipts(services)
    for r in receipts:
        _LOG.info("%s of document %s: %d vectors verified absent", r.cause, r.document_id, r.vectors)
    yield Report(receipts=tuple(receipts))
    yield from _despite_refusals(_repair(services), failed)


def _drop_empty(services: Services) -> Iterator[Report]:
    drop_empty(services)
    yield Report()


def _remove_unfinished(services: Services) -> None:
    """Nothing waits for it: a blob store that refuses, or can't be opened here, ends no pass."""
    try:
        if removed := services.blobs.remove_unfinished(seconds=_UNFINISHED_SECONDS):
            _LOG.info("removed %d files that their writers left unfinished in the blob store", removed)
    except (StoreUnavailable, ConfigurationError) as error:
        _LOG.warning("unfinished files can't be removed from the blob store: %s", error)


def _sweep_retired(services: Services) -> Iterator[Report]:
    with transaction(services.fltr) as tx:
        waiting = manifest.datasets_to_sweep(tx)
    if waiting:
        services.vectors.ensure()
    for swept in embed.sweep_datasets(services, waiting):
        yield Report(vectors=Vectors(vectors_retired=swept))


def _repair(services: Services) -> Iterator[Report]:
    after = ""
    while True:
        with transaction(services.fltr) as tx:
            found = requeue.lost(tx, after, _BATCH, tried_with=services.tried_with)
        if not found:
            return
        with transaction(services.fltr) as tx:
            repaired = len(requeue.repair(tx, lock_unheld(tx, found)))
        yield Report(vectors=Vectors(documents_repaired=repaired))
        after = found[-1]


def _listed(services: Services, failed: list[StoreUnavailable], cut: list[StoreUnavailable]) -> Iterator[Report]:
    """Page by page: delete what is in Milvus alone, note what is in the manifest alone.

    `failed` gets what Milvus does not delete, `cut` what keeps us from looking at all keys.
    """
    services.vectors.ensure()
    with transaction(services.fltr) as tx:
        note(tx, services)
    yield from _going_on(_delete_orphans(services, failed), cut)
    with transaction(services.fltr) as tx:
        ids = [d.id for d in datasets.every(tx)]
    for dataset_id in ids:
        for page in reconcile.live_pages(services, dataset_id):
            yield Report(vectors=Vectors(vectors_missing=_note_missing(services, dataset_id, page.keys)))


def _delete_orphans(services: Services, failed: list[StoreUnavailable]) -> Iterator[Report]:
    left: Counter[str] = Counter()
    for store in everywhere(services):
        for orphans in reconcile.orphan_pages(services, store, store.every_key()):
            shown = remove(store, sorted(orphans))
            left.update(shown.values())
            yield Report(vectors=Vectors(vectors_orphaned=len(orphans) - len(shown)))
    try:
        tell_of(left)
    except StoreUnavailable as error:
        failed.append(error)


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
