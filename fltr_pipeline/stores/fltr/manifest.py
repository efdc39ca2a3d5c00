"""The manifest as others ask it: which keys are live, named at all or retired, and where a live chunk stands.

Belongs here: what search, the sweep and the comparison with Milvus ask and note, also in which collections vectors lie.
Does not: new chunks (generations).
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

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


@dataclass(frozen=True, slots=True)
class LivePage:
    """What Milvus must hold for a part of a dataset's searchable documents, in the order of their ids."""

    last: str
    """Id of the last document; empty: there is none."""
    keys: frozenset[str]
    lost: int
    """Chunks whose vector was lost and is to be made anew."""


# Index: pipeline.retired_keys_by_dataset.
_RETIRED = text("""
    SELECT key, retired_at FROM pipeline.retired_keys
    WHERE dataset_id = :dataset_id AND key > :after ORDER BY key LIMIT :limit
""")

# Primary key. One that was named anew meanwhile is not forgotten: its vector may have come after the look.
_FORGET_RETIRED = text("""
    DELETE FROM pipeline.retired_keys r
    USING unnest(CAST(:keys AS text[]), CAST(:times AS timestamptz[])) AS seen(key, retired_at)
    WHERE r.key = seen.key AND r.retired_at = seen.retired_at
""")

# Index: pipeline.retired_keys_by_dataset, one step of it for each dataset.
_DATASETS_TO_SWEEP = text("""
    WITH RECURSIVE found AS (
        SELECT min(dataset_id) AS dataset_id FROM pipeline.retired_keys
        UNION ALL
        SELECT (SELECT min(dataset_id) FROM pipeline.retired_keys WHERE dataset_id > found.dataset_id) FROM found
        WHERE found.dataset_id IS NOT NULL
    )
    SELECT dataset_id FROM found WHERE dataset_id IS NOT NULL
""")

# Index: pipeline.documents_live, then the primary key of chunks.
_LIVE_PAGE = text("""
    SELECT p.document_id, c.ordinal IS NOT NULL AS is_chunk, c.key
    FROM (SELECT document_id, live_generation FROM pipeline.documents
          WHERE dataset_id = :dataset_id AND live_generation IS NOT NULL AND document_id > :after
          ORDER BY document_id LIMIT :limit) p
    LEFT JOIN pipeline.chunks c ON c.document_id = p.document_id AND c.generation = p.live_generation
""")

# Index: pipeline.chunks_by_key.
_STILL_LIVE = text("""
    SELECT c.key FROM pipeline.chunks c
    JOIN pipeline.documents p ON p.document_id = c.document_id AND p.live_generation = c.generation
    WHERE c.key = ANY(:keys)
""")

# Index: pipeline.chunks_by_key, and the primary key of retired_keys.
_NAMED = text("""
    SELECT key FROM pipeline.chunks WHERE key = ANY(:keys)
    UNION
    SELECT key FROM pipeline.retired_keys WHERE key = ANY(:keys)
""")

# Index: pipeline.chunks_by_key. What was made with another configuration is redone whole, in time.
_LOCK_LOST = text("""
    SELECT document_id FROM pipeline.documents
    WHERE document_id IN (
        SELECT c.document_id FROM pipeline.chunks c
        JOIN pipeline.documents p ON p.document_id = c.document_id AND p.live_generation = c.generation
        JOIN pipeline.generations g ON g.document_id = c.document_id AND g.generation = c.generation
        WHERE c.key = ANY(:keys) AND g.fingerprint = :fingerprint)
    ORDER BY document_id
    FOR UPDATE
""")

# Index: pipeline.chunks_by_key. Should it be in Milvus all the same, the sweep deletes it.
_RETIRE_LOST = text("""
    INSERT INTO pipeline.retired_keys (key, dataset_id, document_id)
    SELECT DISTINCT c.key, p.dataset_id, p.document_id
    FROM pipeline.chunks c
    JOIN pipeline.documents p ON p.document_id = c.document_id AND p.live_generation = c.generation
    WHERE c.key = ANY(:keys) AND c.document_id = ANY(:ids)
    ON CONFLICT (key) DO NOTHING
    RETURNING key
""")

# Also in a generation under way that kept it. Not fresh, for what is still to be embedded has no key either.
_CLEAR_LOST = text("UPDATE pipeline.chunks SET key = NULL, fresh = false WHERE key = ANY(:keys)")

_KEYS_OF = text("""
    SELECT c.key FROM pipeline.documents p
    JOIN pipeline.chunks c ON c.document_id = p.document_id AND c.generation = p.live_generation
    WHERE p.document_id = ANY(:ids) AND p.dataset_id = :dataset_id AND c.key IS NOT NULL
""")

# Primary keys.
_LIVE_GENERATIONS = text("""
    SELECT p.document_id, p.live_generation
    FROM public.documents d JOIN pipeline.documents p ON p.document_id = d.id::text
    WHERE d.id = ANY(:ids) AND p.document_id = ANY(:ids_text)
      AND d.dataset_id = :dataset_id AND p.live_generation IS NOT NULL
""")

# Models are few.
_COLLECTIONS = text("SELECT name, model FROM pipeline.collections ORDER BY first_used_at DESC, name")

_NOTE_COLLECTION = text("""
    INSERT INTO pipeline.collections (name, model) VALUES (:name, :model)
    ON CONFLICT (name) DO UPDATE SET model = excluded.model
""")

# Index: pipeline.documents_leased.
_EMBEDDING = text("""
    SELECT FROM pipeline.documents WHERE lease_until IS NOT NULL AND stage = 'embed' LIMIT 1
""")

# Index: pipeline.chunks_by_key, first of all: the planner would rather read all chunks of the documents that were hit.
# A hit counts if its chunk is of the live generation of a document that exists, in a dataset that does.
_PLACES = text("""
    WITH hits AS MATERIALIZED (SELECT * FROM pipeline.chunks WHERE key = ANY(:keys))
    SELECT c.key, d.id::text AS document_id, d.filename, c.page,
           c.start_offset AS start, c.end_offset AS end, c.ordinal,
           substr(d.content, c.start_offset + 1, c.end_offset - c.start_offset) AS text, c.digest
    FROM hits c
    JOIN pipeline.documents p ON p.document_id = c.document_id AND p.live_generation = c.generation
    JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = c.document_id
    WHERE d.dataset_id = :dataset_id AND EXISTS (SELECT FROM public.datasets WHERE id = ANY(:datasets))
""")


def retired_keys(tx: Connection, dataset_id: str, after: str, limit: int) -> dict[str, datetime]:
    """The next keys behind that one that may still lie in Milvus and that nothing holds → when they were named last."""
    rows = tx.execute(_RETIRED, {"dataset_id": dataset_id, "after": after, "limit": limit})
    return {r.key: r.retired_at for r in rows}


def forget_retired(tx: Connection, keys: Mapping[str, datetime]) -> None:
    """The keys, as `retired_keys` told of them, are gone from Milvus."""
    tx.execute(_FORGET_RETIRED, {"keys": list(keys), "times": list(keys.values())})


def datasets_to_sweep(tx: Connection) -> list[str]:
    """Datasets with retired keys."""
    return list(tx.execute(_DATASETS_TO_SWEEP).scalars())


def live_page(tx: Connection, dataset_id: str, after: str, limit: int) -> LivePage:
    """The keys of the next `limit` searchable documents of the dataset behind that id."""
    rows = tx.execute(_LIVE_PAGE, {"dataset_id": dataset_id, "after": after, "limit": limit}).all()
    chunks = [r.key for r in rows if r.is_chunk]
    keys = frozenset(key for key in chunks if key is not None)
    return LivePage(max((r.document_id for r in rows), default=""), keys, chunks.count(None))


def still_live(tx: Connection, keys: Collection[str]) -> set[str]:
    """Those of the keys that are of a live generation now."""
    return set(tx.execute(_STILL_LIVE, {"keys": list(keys)}).scalars())


def named(tx: Connection, keys: Collection[str]) -> set[str]:
    """Those of the keys that are live, in flight or retired.

    A key is named before its vector is inserted, and until it was read back as absent. So a vector whose key is not
    named is nobody's any more. The keys may be anybody's, also such as PostgreSQL can't hold.
    """
    return set(tx.execute(_NAMED, {"keys": [key for key in keys if "\0" not in key]}).scalars())


def lose(tx: Connection, keys: Collection[str], fingerprint: str) -> int:
    """Note that Milvus has no vector under these live keys: their chunks stay without one until they are embedded anew.

    Those of a generation of another fingerprint are left to the backfill. Returns how many keys were noted.
    """
    ids = list(tx.execute(_LOCK_LOST, {"keys": list(keys), "fingerprint": fingerprint}).scalars())
    lost = list(tx.execute(_RETIRE_LOST, {"keys": list(keys), "ids": ids}).scalars())
    tx.execute(_CLEAR_LOST, {"keys": lost})
    return len(lost)


def keys_of(tx: Connection, dataset_id: str, document_ids: Sequence[str]) -> set[str]:
    """Keys of the live generations of those of the documents that are in the dataset."""
    return set(tx.execute(_KEYS_OF, {"ids": list(document_ids), "dataset_id": dataset_id}).scalars())


def live_generations(tx: Connection, dataset_id: str, document_ids: Collection[str]) -> dict[str, int]:
    """Those of the documents that are in the dataset and searchable → their live generation."""
    parameters = {"ids": id_array(document_ids), "ids_text": list(document_ids), "dataset_id": dataset_id}
    return {r.document_id: r.live_generation for r in tx.execute(_LIVE_GENERATIONS, parameters)}


def collections(tx: Connection) -> dict[str, str | None]:
    """Collections that vectors were ever put into: name → the embedding model's name, where it is known."""
    return {r.name: r.model for r in tx.execute(_COLLECTIONS)}


def note_collection(tx: Connection, name: str, model: str) -> None:
    """Vectors of that model are going to be put into the collection."""
    if collections(tx).get(name) != model:
        tx.execute(_NOTE_COLLECTION, {"name": name, "model": model})


def embedding(tx: Connection) -> bool:
    """Whether a worker has documents in hand whose vectors it makes."""
    return tx.execute(_EMBEDDING).first() is not None


def places(tx: Connection, dataset_id: str, found: Sequence[tuple[str, str]]) -> dict[str, Place]:
    """(key, document id) → where the chunk stands, for those that are live."""
    keys, ids = [k for k, _ in found], sorted({i for _, i in found})
    parameters = {"keys": keys, "ids": id_array(ids), "dataset_id": dataset_id, "datasets": id_array([dataset_id])}
    rows = tx.execute(_PLACES, parameters)
    # A new inline text stands in `content` before it is published: the live offsets mean nothing in it.
    return {r.key: Place(*r[:-1]) for r in rows if hashlib.sha256((r.text or "").encode()).hexdigest() == r.digest}
