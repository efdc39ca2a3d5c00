"""Do the manifest and Milvus hold the same? Compared by key: counts of a vector store can't be trusted after deletes.

Belongs here: finding drift, page by page, so that a dataset of millions of keys takes no more memory than its drift.
Does not: repairing it (sweeper).

Each finding is confirmed by a second look, so that work under way is none: a key is named in `pipeline` before its
vector is inserted and until it was read back as absent; a live key's vector was read back before it became live.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from fltr_pipeline.pipeline import deletion
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.vector_collections import elsewhere, everywhere
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets, deleted, manifest, moved
from fltr_pipeline.stores.fltr.manifest import LivePage
from fltr_pipeline.stores.vectors import VectorStore

DOCUMENTS_PER_PAGE = 100
KEYS_PER_PAGE = 5_000

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Drift:
    """How the manifest and Milvus differ for a dataset."""

    live: int
    """Keys that the manifest says are searchable."""
    missing: frozenset[str]
    """In the manifest, in no collection of Milvus."""
    orphans: frozenset[str]
    """In Milvus; neither live, nor in flight, nor waiting for the sweep."""
    lost: int = 0
    """Chunks of searchable documents whose vector was found missing, and that wait to be embedded anew."""
    deleted: int = 0
    """Documents that are gone, and not yet withdrawn."""
    moved: int = 0
    """Documents that were moved here from another dataset, and are not yet queued."""

    @property
    def none(self) -> bool:
        """Whether both hold the same."""
        return not (self.missing or self.orphans or self.lost or self.deleted or self.moved)


@dataclass(frozen=True, slots=True)
class Published:
    """The vectors of a run's own documents."""

    documents: int
    chunks: int
    missing: frozenset[str]


def check_published(services: Services, dataset_id: str, document_ids: Sequence[str]) -> Published:
    """Whether every chunk of these documents' live generations is in Milvus: as much work as the run had.

    Of those that are still in the dataset: in another one, what moved there is that run's to check.
    """
    chunks, absent = 0, set[str]()
    for start in range(0, len(document_ids), DOCUMENTS_PER_PAGE):
        with transaction(services.fltr) as tx:
            keys = manifest.keys_of(tx, dataset_id, document_ids[start : start + DOCUMENTS_PER_PAGE])
        chunks += len(keys)
        absent |= missing(services, dataset_id, keys)
    return Published(len(document_ids), chunks, frozenset(absent))


def compare_all(services: Services) -> dict[str, Drift]:
    """Each dataset that differs, by id, also those that only Milvus knows; lists every key on both sides."""
    with transaction(services.fltr) as tx:
        ids = [d.id for d in datasets.every(tx)]
    gone, moved_here = _elsewhere(services)
    services.vectors.ensure()  # behind a change of the model, nobody may have made today's yet
    orphans: defaultdict[str, set[str]] = defaultdict(set)
    for store in everywhere(services):
        for keys in orphan_pages(services, store, store.every_key()):
            for key, dataset_id in keys.items():
                orphans[dataset_id].add(key)
    ids += sorted((gone.keys() | orphans.keys()) - set(ids))
    found = {i: replace(_drift(services, i, orphans[i]), deleted=gone[i], moved=moved_here[i]) for i in ids}
    return {i: drift for i, drift in found.items() if not drift.none}


def compare(services: Services, dataset_id: str) -> Drift:
    """List the dataset's keys on both sides."""
    services.vectors.ensure()
    orphans: set[str] = set()
    for store in everywhere(services):
        listed = ((key, dataset_id) for key in store.keys(dataset_id))
        orphans.update(key for keys in orphan_pages(services, store, listed) for key in keys)
    return _drift(services, dataset_id, orphans)


def live_pages(services: Services, dataset_id: str) -> Iterator[LivePage]:
    """What Milvus must hold for the dataset."""
    after = ""
    while True:
        with transaction(services.fltr) as tx:
            page = manifest.live_page(tx, dataset_id, after, DOCUMENTS_PER_PAGE)
        if not page.last:
            return
        yield page
        after = page.last


def missing(services: Services, dataset_id: str, keys: Collection[str]) -> set[str]:
    """Those of the live keys that today's collection has not, also when asked again, and that are live all the same."""
    absent = set(keys) - services.vectors.present(sorted(keys), dataset_id)
    if absent:
        with transaction(services.fltr) as tx:
            absent = manifest.still_live(tx, absent)
        absent -= services.vectors.present(sorted(absent), dataset_id)
    return absent


def orphan_pages(services: Services, store: VectorStore, listed: Iterable[tuple[str, str]]) -> Iterator[dict[str, str]]:
    """Of (key, dataset id) as that collection lists them, those that `pipeline` does not name: key → dataset id.

    One that was swept between the two looks is no longer in Milvus at the third.
    """
    for page in pages(listed):
        with transaction(services.fltr) as tx:
            unnamed = {key for key, _ in page} - manifest.named(tx, [key for key, _ in page])
        yield store.datasets_of(sorted(unnamed)) if unnamed else {}


def _drift(services: Services, dataset_id: str, orphans: Collection[str]) -> Drift:
    live = lost = 0
    absent: set[str] = set()
    for page in live_pages(services, dataset_id):
        live, lost = live + len(page.keys), lost + page.lost
        gone = missing(services, dataset_id, page.keys)
        absent |= gone - elsewhere(services, gone)
    return Drift(live, frozenset(absent), frozenset(orphans), lost)


def _elsewhere(services: Services) -> tuple[Counter[str], Counter[str]]:
    """Documents that are gone and not yet withdrawn, by dataset; those moved and not yet queued, by the new one."""
    gone, moved_to = Counter[str](), Counter[str]()
    for page in deletion.pages(services):
        with transaction(services.fltr) as tx:
            gone += Counter(deleted.datasets_of(tx, page.gone).values() if page.gone else ())
            moved_to += Counter(move.now for move in moved.among(tx, page.document_ids))
    return gone, moved_to


def pages(listed: Iterable[_T]) -> Iterator[list[_T]]:
    """What is listed, as many at a time as are asked for at a time."""
    rest = iter(listed)
    while page := list(islice(rest, KEYS_PER_PAGE)):
        yield page
