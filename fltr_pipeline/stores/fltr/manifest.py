"""Reading the manifest: which keys are live, in flight or retired, and where a live chunk stands.

Belongs here: what search, the sweep and the comparison with Milvus ask. Does not: writing chunks (generations).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from fltr_pipeline.stores.database import id_array


@dataclass(frozen=True, slots=True)
class Place:
    """Where a live chunk stands: `text == content[start:end]` of that document."""

    key: str
    document_id: str
    filename: str
    page: int
    start: int
    end: int
    ordinal: int
    text: str


# Index: pipeline.retired_keys_by_dataset.
_RETIRED = text("SELECT key FROM pipeline.retired_keys WHERE dataset_id = :dataset_id ORDER BY key LIMIT :limit")
_FORGET_RETIRED = text("DELETE FROM pipeline.retired_keys WHERE key = ANY(:keys)")

# Index: pipeline.documents_live, then the primary key of chunks.
_MANIFEST_KEYS = text("""
    SELECT c.key FROM pipeline.documents p
    JOIN pipeline.chunks c ON c.document_id = p.document_id AND c.generation = p.live_generation
    WHERE p.dataset_id = :dataset_id AND p.live_generation IS NOT NULL
""")

_KEYS_OF = text("""
    SELECT c.key FROM pipeline.documents p
    JOIN pipeline.chunks c ON c.document_id = p.document_id AND c.generation = p.live_generation
    WHERE p.document_id = ANY(:ids)
""")

# Keys that may lie in Milvus without being live: an attempt in flight, or named for the sweep.
_TRANSIENT_KEYS = text("""
    SELECT c.key FROM pipeline.documents p
    JOIN pipeline.chunks c ON c.document_id = p.document_id AND c.generation = p.generation
    WHERE p.dataset_id = :dataset_id AND p.stage IS NOT NULL AND c.key IS NOT NULL
    UNION ALL
    SELECT key FROM pipeline.retired_keys WHERE dataset_id = :dataset_id
""")

# Index: pipeline.chunks_by_key, first of all: the planner would rather read all chunks of the documents that were hit.
# A hit counts if its chunk is of the live generation of a document that exists.
_PLACES = text("""
    WITH hits AS MATERIALIZED (SELECT * FROM pipeline.chunks WHERE key = ANY(:keys))
    SELECT c.key, d.id::text AS document_id, d.filename, c.page,
           c.start_offset AS start, c.end_offset AS end, c.ordinal,
           substr(d.content, c.start_offset + 1, c.end_offset - c.start_offset) AS text, c.digest
    FROM hits c
    JOIN pipeline.documents p ON p.document_id = c.document_id AND p.live_generation = c.generation
    JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = c.document_id
    WHERE d.dataset_id = :dataset_id
""")


def retired_keys(tx: Connection, dataset_id: str, limit: int) -> list[str]:
    """Keys that may still lie in Milvus and that nothing holds."""
    return list(tx.execute(_RETIRED, {"dataset_id": dataset_id, "limit": limit}).scalars())


def forget_retired(tx: Connection, keys: Sequence[str]) -> None:
    """The keys are gone from Milvus."""
    tx.execute(_FORGET_RETIRED, {"keys": list(keys)})


def manifest_keys(tx: Connection, dataset_id: str) -> set[str]:
    """Keys of the dataset's live generations: exactly what Milvus must hold for it."""
    return set(tx.execute(_MANIFEST_KEYS, {"dataset_id": dataset_id}).scalars())


def keys_of(tx: Connection, document_ids: Sequence[str]) -> set[str]:
    """Keys of these documents' live generations."""
    return set(tx.execute(_KEYS_OF, {"ids": list(document_ids)}).scalars())


def transient_keys(tx: Connection, dataset_id: str) -> set[str]:
    """Keys that may lie in Milvus although they are not live: in flight, or waiting for the sweep."""
    return set(tx.execute(_TRANSIENT_KEYS, {"dataset_id": dataset_id}).scalars())


def places(tx: Connection, dataset_id: str, found: Sequence[tuple[str, str]]) -> dict[str, Place]:
    """(key, document id) → where the chunk stands, for those that are live."""
    keys, ids = [k for k, _ in found], sorted({i for _, i in found})
    rows = tx.execute(_PLACES, {"keys": keys, "ids": id_array(ids), "dataset_id": dataset_id})
    # A new inline text stands in `content` before it is published: the live offsets mean nothing in it.
    return {r.key: Place(*r[:-1]) for r in rows if hashlib.sha256((r.text or "").encode()).hexdigest() == r.digest}
