"""Search: what the vector store finds, checked against the manifest and given its place."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.vector_collections import former, model_of
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets, manifest
from fltr_pipeline.stores.fltr.manifest import Place
from fltr_pipeline.stores.vectors import MAX_HITS, VectorStore
from fltr_pipeline.text.model import EmbeddingModel

Mode = Literal["dense", "bm25", "hybrid"]
_REFUSED = 1000
"""Most documents that one question leaves out: some 40 kB of it."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A live chunk that answers the query; of one embedding model, a larger score is better."""

    score: float
    place: Place


def search(services: Services, dataset_id: str, query: str, *, k: int = 10, mode: Mode = "dense") -> Sequence[Hit]:
    """The `k` best live chunks of the dataset; none where no document is searchable, or its owner is gone.

    Where an earlier embedding model has made some of its vectors, that one answers, too: of each, the best come first.

    Raises:
        InvalidValue: `k` is not 1 to 16,384.
        UnsupportedCapability: bm25 or hybrid on a server that has dense search only.
        StoreUnavailable: Milvus or a database does not answer.
    """
    with transaction(services.fltr) as tx:
        dataset = datasets.get(tx, dataset_id)
        if dataset is None or not datasets.is_searchable(tx, dataset_id):
            return []
    if not services.ledger.existing_users([dataset.user_id]):
        return []
    found = [
        _search_one(services, store, dataset_id, query, None if mode == "bm25" else model.encode([query])[0], k, mode)
        for store, model in _to_be_searched(services, dataset_id)
    ]
    if len(found) == 1:
        return found[0]
    return [hit for of_rank in zip_longest(*found) for hit in of_rank if hit is not None][:k]


def _to_be_searched(services: Services, dataset_id: str) -> list[tuple[VectorStore, EmbeddingModel]]:
    """The collections in which the dataset has vectors, each with its model."""
    today = (services.vectors, services.model)
    earlier = [f for f in former(services) if f.store.holds(dataset_id)]
    if not earlier:
        return [today]
    models = [(f.store, model_of(services, f)) for f in earlier]
    known = [(store, model) for store, model in models if model is not None]
    return [today, *known] if services.vectors.holds(dataset_id) else known


def _search_one(
    services: Services, store: VectorStore, dataset_id: str, query: str, vector: list[float] | None, k: int, mode: Mode
) -> list[Hit]:
    """The best live chunks of one collection.

    Vectors that are no longer, or not yet, in the manifest don't count: documents of which nothing is searchable are
    left out of the next question, and more is fetched to make up for the rest, as much as Milvus gives at once.
    """
    wanted, refused = k, set[str]()
    while True:
        found = store.search(dataset_id, vector=vector, text=query, k=wanted, mode=mode, but_of=sorted(refused))
        with transaction(services.fltr) as tx:
            live = manifest.places(tx, dataset_id, [(h.key, h.document_id) for h in found])
            stale = {h.document_id for h in found if h.key not in live}
            gone = stale - manifest.searchable(tx, dataset_id, stale)
        hits = [Hit(h.score, live[h.key]) for h in found if h.key in live]
        new = sorted(gone)[: _REFUSED - len(refused)]
        if len(hits) >= k or len(found) < wanted or (wanted == MAX_HITS and not new):
            return hits[:k]
        refused.update(new)
        wanted = min(4 * wanted, MAX_HITS)
