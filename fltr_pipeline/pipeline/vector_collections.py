"""All collections of ours: today's, which the embedding model names, and those of the models before it.

Belongs here: finding them, and what is to be done in each of them. Does not: one collection (stores.vectors), making
vectors anew with today's model (the backfill does).

A key lies in one of them. A collection is noted in `pipeline` before the first vector is put into it, and never
forgotten, so none is overlooked that still holds something; one that is not there any more is skipped.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fltr_pipeline.errors import ConfigurationError, SchemaDrift, StoreUnavailable
from fltr_pipeline.pipeline.services import Services, collection_of
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import manifest
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline.text.model import EmbeddingModel

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Former:
    """A collection that is not today's and that Milvus still has."""

    store: VectorStore
    model: str | None
    """Name of the embedding model; None: not known."""


def former(services: Services) -> Iterator[Former]:
    """Those of earlier models."""
    with transaction(services.fltr) as tx:
        noted = manifest.collections(tx)
    for name, model in noted.items():
        if name != services.vectors.collection and (store := services.vectors.beside(name)).exists():
            yield Former(store, model)


def everywhere(services: Services) -> Iterator[VectorStore]:
    """Today's collection, and then, if it is asked for, each of the others."""
    yield services.vectors
    yield from (f.store for f in former(services))


def elsewhere(services: Services, keys: Collection[str]) -> set[str]:
    """Those of the keys that lie in a collection of an earlier model: their documents are stale, and searchable."""
    if not keys:
        return set()
    return {key for f in former(services) for key in f.store.datasets_of(sorted(keys))}


def remove(store: VectorStore, keys: Sequence[str]) -> None:
    """Delete the keys and read back that they are gone.

    Raises:
        StoreUnavailable: Milvus does not answer, or still shows some.
    """
    if not keys:
        return
    try:
        store.delete(keys)
        left = store.datasets_of(keys)
    except SchemaDrift:
        if store.exists():
            raise
        return  # with the collection, as another pass drops it
    if left:
        raise StoreUnavailable(f"Milvus still shows {len(left)} deleted vectors; they are swept again by the next pass")


def drop_empty(services: Services) -> None:
    """Drop the collections of earlier models in which nothing lies any more."""
    for f in former(services):
        if not f.store.holds():
            f.store.drop()
            _LOG.info("dropped %s, the collection of an earlier embedding model: it is empty", f.store.collection)


def model_of(services: Services, found: Former) -> EmbeddingModel | None:
    """The model that made the collection's vectors; None where it is not here any more."""
    try:
        settings = services.settings
        model = _loaded(found.model, settings.embedding_batch_size, settings.embedding_threads) if found.model else None
        if model and collection_of(model) == found.store.collection:
            return model
        reason = "the setting names another one now" if model else "its name is not known"
    except ConfigurationError as error:
        reason = str(error)
    _LOG.warning("what lies in %s is not searched, its model can't be had: %s", found.store.collection, reason)
    return None


@lru_cache(maxsize=1)
def _loaded(name: str, batch_size: int, threads: int) -> EmbeddingModel:
    """Its weights stay in memory from search to search."""
    return EmbeddingModel(name, batch_size=batch_size, threads=threads)
