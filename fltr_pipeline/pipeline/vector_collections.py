"""All collections of ours: today's, which the embedding model names, and those of the models before it.

Belongs here: finding them, and what is to be done in each of them. Does not: one collection (stores.vectors), making
vectors anew with today's model (the backfill does).

A key lies in one of them. A collection is noted in `pipeline` before the first vector is put into it, and never
forgotten, so none is overlooked that still holds something; one that is not there any more is skipped.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import Connection

from fltr_pipeline.errors import ConfigurationError, SchemaDrift, StoreUnavailable
from fltr_pipeline.pipeline.services import Services, collection_of
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import manifest
from fltr_pipeline.stores.vectors import VectorStore
from fltr_pipeline.text.model import DEFAULT_MODEL, EmbeddingModel

_LOG = logging.getLogger(__name__)
_NAMED = 5
"""Datasets that an error names."""


@dataclass(frozen=True, slots=True)
class Former:
    """A collection that is not today's and that Milvus still has."""

    store: VectorStore
    model: str | None
    """Name of the embedding model; None: not known."""


def note(tx: Connection, services: Services) -> None:
    """Today's collection, and the model that makes its vectors."""
    manifest.note_collection(tx, services.vectors.collection, services.model.name)


def former(services: Services) -> Iterator[Former]:
    """Those of earlier models."""
    with transaction(services.fltr) as tx:
        noted = manifest.collections(tx)
    noted.pop(services.vectors.collection, None)
    today = services.vectors.own_name() if noted else None  # behind an alias it has another name
    for name, model in noted.items():
        if name != today and (store := services.vectors.beside(name)).exists():
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


def remove(store: VectorStore, keys: Sequence[str]) -> dict[str, str]:
    """Delete the keys and read back that they are gone; returns what Milvus still shows of them: key → dataset id.

    Raises:
        StoreUnavailable: Milvus does not answer.
    """
    if not keys:
        return {}
    try:
        store.delete_listed(keys)
        return store.datasets_of(keys)
    except SchemaDrift:
        if store.exists():
            raise
        return {}  # with the collection, as another pass drops it


def tell_of(left: Counter[str]) -> None:
    """Behind all that could be swept: tell how many deleted vectors Milvus still shows, by dataset.

    Raises:
        StoreUnavailable: it shows some.
    """
    if left:
        of_each = ", ".join(f"dataset {dataset_id}: {n}" for dataset_id, n in left.most_common(_NAMED))
        more = f", and of {len(left) - _NAMED} other datasets" if len(left) > _NAMED else ""
        raise StoreUnavailable(
            f"Milvus still shows {left.total()} of the deleted vectors ({of_each}{more}); all others were swept, and "
            "these are by the next pass"
        )


def drop_empty(services: Services) -> None:
    """Drop the collections of earlier models in which nothing lies any more; none while something is embedded.

    A worker with an old setting may have read back there what it has yet to publish. It is asked for before the look
    at the collection: what is published in between lies there by then.
    """
    with transaction(services.fltr) as tx:
        if manifest.embedding(tx):
            return
    for f in former(services):
        if not f.store.holds():
            f.store.drop()
            _LOG.info("dropped %s, the collection of an earlier embedding model: it is empty", f.store.collection)


def model_of(services: Services, found: Former) -> EmbeddingModel:
    """The model that made the collection's vectors; where its name is not known, the default model may be it.

    Raises:
        ConfigurationError: it is not here any more.
    """
    settings, name = services.settings, found.model or DEFAULT_MODEL
    try:
        model = _loaded(name, settings.embedding_batch_size, settings.embedding_threads)
        if collection_of(model) == found.store.collection:
            return model
    except (KeyError, OSError, ValueError) as error:
        raise ConfigurationError(f"the embedding model {name!r} can't be read: {error!r}") from error
    raise ConfigurationError(
        f"{name!r} names another embedding model now" if found.model else "the embedding model's name is not known"
    )


@lru_cache(maxsize=4)
def _loaded(name: str, batch_size: int, threads: int) -> EmbeddingModel:
    """Its weights stay in memory from search to search."""
    return EmbeddingModel(name, batch_size=batch_size, threads=threads)
