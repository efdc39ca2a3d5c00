"""Search: what the vector store finds, checked against the manifest and given its place.

A publish in the middle of a search hides no document, and shows none twice. The new version's vectors are in Milvus
before it is published, the old one's leave after that, and it goes to the same or to today's collection. Therefore
- today's collection is asked last: of a document whose old vectors had left another before, it has the new ones;
- one look at the manifest, behind all answers, decides on all hits: each document has one live version in it;
- a hit that does not count, of a document that is searchable, may have counted when it was given, and the new version
  may have come later: all are asked again until the look before the questions told of the same live version.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest
from typing import Literal

from fltr_pipeline.errors import ConfigurationError, SchemaDrift, UnsupportedCapability, WindowExceeded
from fltr_pipeline.models import VectorHit
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.vector_collections import former, model_of
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
"""Most questions to a collection; the eighth, without a publish meanwhile, asks for as much as Milvus gives at once."""
_SKIPPED = (ConfigurationError, SchemaDrift, UnsupportedCapability, WindowExceeded, OSError)
"""An earlier collection is gone, lacks what is asked for, or its model is; or the model reads less than today's."""


@dataclass(frozen=True, slots=True)
class _Question:
    """What each collection is asked."""

    dataset_id: str
    text: str
    k: int
    mode: Mode


@dataclass(frozen=True, eq=False)
class _Asked:
    """A collection that the question is put to, any number of times."""

    question: _Question
    store: VectorStore
    model: Callable[[], EmbeddingModel]
    """That made its vectors."""
    may_hold_nothing: bool = False
    """Of the dataset: then it is asked whether it does."""

    @cached_property
    def _opened(self) -> tuple[VectorStore, Sequence[float] | None]:
        """With the question as a vector, which words alone don't need."""
        if self.question.mode == "bm25":
            return self.store, None
        model = self.model()
        store = self.store.beside(self.store.collection, dimension=model.dimension)
        return store, model.encode([self.question.text])[0]

    def best(self, wanted: int, refused: Collection[str]) -> list[VectorHit]:
        """The best rows, other than those of the refused documents."""
        (store, vector), asked = self._opened, self.question
        return store.search(
            asked.dataset_id, vector=vector, text=asked.text, k=wanted, mode=asked.mode, but_of=sorted(refused)
        )


@dataclass(frozen=True, slots=True)
class Hit:
    """A live chunk that answers the query; of one embedding model, a larger score is better."""

    score: float
    place: Place


def search(services: Services, dataset_id: str, query: str, *, k: int = 10, mode: Mode = "dense") -> Sequence[Hit]:
    """The `k` best live chunks of the dataset; none where no document is searchable, or its owner is gone.

    Where an earlier embedding model has made some of its vectors, that one answers, too: of each, the best come first.
    What lies in an earlier collection that can't be searched is not found until it is made anew; the log says so.
    Of a document that is published meanwhile, the old or the new version is found, unless others follow all the while.

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
    question = _Question(dataset_id, query, k, mode)
    holding = [f for f in former(services) if f.store.holds(dataset_id)]
    earlier = [_Asked(question, f.store, partial(model_of, services, f)) for f in holding]
    best = _best(services, question, earlier)
    return [hit for of_rank in zip_longest(*best) for hit in of_rank if hit is not None][:k]


def _best(services: Services, question: _Question, earlier: Sequence[_Asked]) -> Sequence[list[Hit]]:
    """The best live chunks of each collection, today's first, then from the newest of the earlier to the oldest.

    Vectors that are no longer, or not yet, in the manifest don't count: documents of which nothing is searchable are
    left out of the next question, and more is fetched to make up for the rest, as much as Milvus gives at once; but
    what lies behind more rows that don't count than `ROUNDS` questions pass is not found.
    """
    today = _Asked(question, services.vectors, lambda: services.model, may_hold_nothing=bool(earlier))
    dataset_id, k = question.dataset_id, question.k
    wanted = dict.fromkeys((*reversed(earlier), today), k)
    refused, told, best = set[str](), dict[str, int](), dict[_Asked, list[Hit]]()
    for _ in range(ROUNDS):
        answers = _answers(wanted, today, refused)
        found = [h for answer in answers.values() for h in answer]
        with transaction(services.fltr) as tx:
            live = manifest.places(tx, dataset_id, [(h.key, h.document_id) for h in found])
            stale = {h.document_id for h in found if h.key not in live}
            versions = manifest.live_generations(tx, dataset_id, stale)
        best = {a: [Hit(h.score, live[h.key]) for h in answer if h.key in live][:k] for a, answer in answers.items()}
        gone = sorted(stale - versions.keys())[: _REFUSED - len(refused)]
        short = [a for a, hits in best.items() if len(hits) < k and len(answers[a]) >= wanted[a]]
        more = [a for a in short if wanted[a] < MAX_HITS or gone]
        if not more and versions.items() <= told.items():
            break
        told = versions
        if more:
            refused.update(gone)
        wanted |= {a: min(4 * wanted[a], MAX_HITS) for a in more}
    return list(reversed(best.values()))


def _answers(wanted: dict[_Asked, int], today: _Asked, refused: Collection[str]) -> dict[_Asked, list[VectorHit]]:
    """What each collection answers, in the order of asking; one that can't be asked is not `wanted` any more."""
    answers, unsupported = dict[_Asked, list[VectorHit]](), None
    for each in [a for a in wanted if a is not today]:
        try:
            answers[each] = each.best(wanted[each], refused)
        except _SKIPPED as error:
            unsupported = error if isinstance(error, UnsupportedCapability) else unsupported
            _LOG.warning("what lies in %s is not searched: %s", each.store.collection, error)
            del wanted[each]
    if not today.may_hold_nothing or today.store.holds(today.question.dataset_id):
        answers[today] = today.best(wanted[today], refused)
    elif unsupported and not answers:
        raise unsupported
    return answers
