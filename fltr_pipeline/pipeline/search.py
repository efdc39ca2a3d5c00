"""Search: what the vector store finds, checked against the manifest and given its place."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from fltr_pipeline.errors import ConfigurationError, SchemaDrift, UnsupportedCapability, WindowExceeded
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.vector_collections import Former, former, model_of
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets, manifest
from fltr_pipeline.stores.fltr.manifest import Place
from fltr_pipeline.stores.vectors import MAX_HITS, VectorStore
from fltr_pipeline.text.model import EmbeddingModel

_LOG = logging.getLogger(__name__)

Mode = Literal["dense", "bm25", "hybrid"]
_REFUSED = 1000
"""Most documents that one question leaves out: some 40 kB of it."""
ROUNDS = 10
"""Most questions to a collection; the eighth, at the latest, asks for as much as Milvus gives at once."""
_SKIPPED = (ConfigurationError, SchemaDrift, UnsupportedCapability, WindowExceeded, OSError)
"""An earlier collection is gone, lacks what is asked for, or its model is; or the model reads less than today's."""


@dataclass(frozen=True, slots=True)
class _Question:
    """What each collection is asked."""

    dataset_id: str
    text: str
    k: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class Hit:
    """A live chunk that answers the query; of one embedding model, a larger score is better."""

    score: float
    place: Place


def search(services: Services, dataset_id: str, query: str, *, k: int = 10, mode: Mode = "dense") -> Sequence[Hit]:
    """The `k` best live chunks of the dataset; none where no document is searchable, or its owner is gone.

    Where an earlier embedding model has made some of its vectors, that one answers, too: of each, the best come first.
    What lies in an earlier collection that can't be searched is not found until it is made anew; the log says so.

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
    earlier = [f for f in former(services) if f.store.holds(dataset_id)]
    found = []
    question = _Question(dataset_id, query, k, mode)
    if not earlier or services.vectors.holds(dataset_id):
        found.append(_ask(services, services.vectors, question, services.model))
    for f in earlier:
        try:
            found.append(_ask_earlier(services, f, question))
        except _SKIPPED as error:
            if isinstance(error, UnsupportedCapability) and not found:
                raise
            _LOG.warning("what lies in %s is not searched: %s", f.store.collection, error)
    return [hit for of_rank in zip_longest(*found) for hit in of_rank if hit is not None][:k]


def _ask_earlier(services: Services, earlier: Former, question: _Question) -> list[Hit]:
    """By the model that made its vectors, which words alone don't need."""
    if question.mode == "bm25":
        return _ask(services, earlier.store, question, None)
    model = model_of(services, earlier)
    store = earlier.store.beside(earlier.store.collection, dimension=model.dimension)
    return _ask(services, store, question, model)


def _ask(services: Services, store: VectorStore, asked: _Question, model: EmbeddingModel | None) -> list[Hit]:
    """The best live chunks of one collection.

    Vectors that are no longer, or not yet, in the manifest don't count: documents of which nothing is searchable are
    left out of the next question, and more is fetched to make up for the rest, as much as Milvus gives at once; but
    what lies behind more rows that don't count than `ROUNDS` questions pass is not found.
    """
    dataset_id, mode = asked.dataset_id, asked.mode
    wanted, refused, hits = asked.k, set[str](), list[Hit]()
    vector = None if mode == "bm25" or model is None else model.encode([asked.text])[0]
    for _ in range(ROUNDS):
        found = store.search(dataset_id, vector=vector, text=asked.text, k=wanted, mode=mode, but_of=sorted(refused))
        with transaction(services.fltr) as tx:
            live = manifest.places(tx, dataset_id, [(h.key, h.document_id) for h in found])
            stale = {h.document_id for h in found if h.key not in live}
            gone = stale - manifest.searchable(tx, dataset_id, stale)
        hits = [Hit(h.score, live[h.key]) for h in found if h.key in live]
        new = sorted(gone)[: _REFUSED - len(refused)]
        if len(hits) >= asked.k or len(found) < wanted or (wanted == MAX_HITS and not new):
            break
        refused.update(new)
        wanted = min(4 * wanted, MAX_HITS)
    return hits[: asked.k]
