"""Generations: the versions of a document's text, their chunks, and which of them is live.

Belongs here: staged text, the chunk manifest, the decision, publishing, retired keys. Does not: who may do it (claims).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from fltr_pipeline.stores.database import id_array, recordset
from fltr_pipeline.stores.fltr.claims import Claim, close_jobs, lock_documents


@dataclass(frozen=True, slots=True)
class StagedText:
    """The result of extraction."""

    claim: Claim
    extractor: str
    source_sha256: str
    source_bytes: int
    kind: str
    engine: str
    text: str
    text_sha256: str
    pages: int
    blank_pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LiveSource:
    """What the live generation was made from, and by what."""

    extractor: str
    source_sha256: str


@dataclass(frozen=True, slots=True)
class ReusedText:
    """Size of a text that was taken over unread."""

    pages: int
    characters: int


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """One row of the manifest; `key` is None where the chunk is to be embedded."""

    ordinal: int
    key: str | None
    digest: str
    page: int
    start: int
    end: int
    tokens: int


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
class FreshChunk:
    """A chunk to embed, with the key that this worker's fence gave it."""

    document_id: str
    ordinal: int
    key: str
    text: str
    tokens: int


# Primary keys.
_LIVE_SOURCES = text("""
    SELECT g.document_id, g.extractor, g.source_sha256
    FROM pipeline.documents p
    JOIN pipeline.generations g ON g.document_id = p.document_id AND g.generation = p.live_generation
    WHERE p.document_id = ANY(:ids)
""")

# Unchanged bytes under an unchanged extractor: the live text is the new generation's text.
_REUSE_TEXT = text("""
    INSERT INTO pipeline.generations AS g
        (document_id, generation, state, extractor, source_sha256, source_bytes, kind, engine, text, text_sha256, pages, blank_pages)
    SELECT p.document_id, p.generation, 'staged', l.extractor, l.source_sha256, l.source_bytes, l.kind, l.engine, d.content,
           l.text_sha256, l.pages, l.blank_pages
    FROM pipeline.documents p
    JOIN pipeline.generations l ON l.document_id = p.document_id AND l.generation = p.live_generation
    JOIN public.documents d ON d.id = ANY(:ids)
    WHERE p.document_id = :document_id AND p.fence = :fence AND d.content IS NOT NULL
    ON CONFLICT (document_id, generation) DO UPDATE SET state = 'staged', text = excluded.text
    RETURNING g.pages, length(g.text) AS characters
""")

_STAGE_TEXT = text("""
    INSERT INTO pipeline.generations AS g
        (document_id, generation, state, extractor, source_sha256, source_bytes, kind, engine, text, text_sha256, pages, blank_pages)
    SELECT p.document_id, p.generation, 'staged', :extractor, :source_sha256, :source_bytes, :kind, :engine, :text,
           :text_sha256, :pages, :blank_pages
    FROM pipeline.documents p WHERE p.document_id = :document_id AND p.fence = :fence
    ON CONFLICT (document_id, generation) DO UPDATE SET
        state = 'staged', extractor = excluded.extractor, source_sha256 = excluded.source_sha256,
        source_bytes = excluded.source_bytes, kind = excluded.kind, engine = excluded.engine, text = excluded.text,
        text_sha256 = excluded.text_sha256, pages = excluded.pages, blank_pages = excluded.blank_pages
    RETURNING g.document_id
""")

_STAGED_TEXT = text("SELECT text FROM pipeline.generations WHERE document_id = :document_id AND generation = :generation")

_FRESH_TOKENS = text("""
    SELECT g.document_id, g.fresh_tokens FROM pipeline.generations g
    JOIN json_to_recordset(:rows) AS r(document_id text, generation int) USING (document_id, generation)
    WHERE g.fresh_tokens IS NOT NULL
""")

_LIVE_CHUNKS = text("""
    SELECT c.document_id, c.digest, c.key
    FROM pipeline.documents p
    JOIN pipeline.chunks c ON c.document_id = p.document_id AND c.generation = p.live_generation
    JOIN pipeline.generations g ON g.document_id = p.document_id AND g.generation = p.live_generation
    WHERE p.document_id = ANY(:ids) AND g.fingerprint = :fingerprint
    ORDER BY c.document_id, c.ordinal
""")

_LOCK_FENCED = text("""
    SELECT p.document_id FROM pipeline.documents p
    JOIN json_to_recordset(:rows) AS r(document_id text, fence bigint) ON p.document_id = r.document_id AND p.fence = r.fence
    ORDER BY p.document_id
    FOR UPDATE OF p
""")

_CLEAR_CHUNKS = text("""
    DELETE FROM pipeline.chunks c USING json_to_recordset(:rows) AS r(document_id text, generation int)
    WHERE c.document_id = r.document_id AND c.generation = r.generation
""")

_INSERT_CHUNKS = text("""
    INSERT INTO pipeline.chunks (document_id, generation, ordinal, key, fresh, digest, page, start_offset, end_offset, tokens)
    SELECT r.document_id, r.generation, r.ordinal, r.key, r.key IS NULL, r.digest, r.page, r.start_offset, r.end_offset, r.tokens
    FROM json_to_recordset(:rows) AS r(document_id text, generation int, ordinal int, key text, digest text, page int,
                                       start_offset int, end_offset int, tokens int)
""")

_SET_PLANNED = text("""
    UPDATE pipeline.generations g
    SET state = 'planned', fingerprint = :fingerprint,
        chunks = s.chunks, tokens = s.tokens, fresh_chunks = s.fresh_chunks, fresh_tokens = s.fresh_tokens
    FROM (
        SELECT r.document_id, r.generation, count(c.ordinal) AS chunks, coalesce(sum(c.tokens), 0) AS tokens,
               count(c.ordinal) FILTER (WHERE c.fresh) AS fresh_chunks,
               coalesce(sum(c.tokens) FILTER (WHERE c.fresh), 0) AS fresh_tokens
        FROM json_to_recordset(:rows) AS r(document_id text, generation int)
        LEFT JOIN pipeline.chunks c USING (document_id, generation)
        GROUP BY r.document_id, r.generation
    ) s
    WHERE g.document_id = s.document_id AND g.generation = s.generation
""")

# What a worker before us may have inserted under its own keys is inert; its keys are named for the sweep.
_RETIRE_ATTEMPT = text("""
    INSERT INTO pipeline.retired_keys (key, dataset_id, document_id)
    SELECT c.key, :dataset_id, c.document_id
    FROM pipeline.chunks c
    JOIN json_to_recordset(:rows) AS r(document_id text, generation int) USING (document_id, generation)
    WHERE c.fresh AND c.key IS NOT NULL
    ON CONFLICT (key) DO NOTHING
""")

# md5 over a NUL-free, unambiguous string: 128 bits, derived from (document, generation, fence, ordinal) alone.
_ASSIGN_KEYS = text("""
    UPDATE pipeline.chunks c
    SET key = md5(c.document_id || ':' || c.generation || ':' || r.fence || ':' || c.ordinal)
    FROM json_to_recordset(:rows) AS r(document_id text, generation int, fence bigint)
    WHERE c.document_id = r.document_id AND c.generation = r.generation AND c.fresh
""")

_FRESH_CHUNKS = text("""
    SELECT c.document_id, c.ordinal, c.key, c.tokens,
           substr(g.text, c.start_offset + 1, c.end_offset - c.start_offset) AS text
    FROM json_to_recordset(:rows) AS r(document_id text, generation int)
    JOIN pipeline.chunks c USING (document_id, generation)
    JOIN pipeline.generations g USING (document_id, generation)
    WHERE c.fresh
    ORDER BY c.document_id, c.ordinal
""")

_DECIDE = text("""
    UPDATE pipeline.generations g SET state = 'indexed'
    FROM json_to_recordset(:rows) AS r(document_id text, generation int)
    WHERE g.document_id = r.document_id AND g.generation = r.generation
""")

_JOBS_INDEXED = text("UPDATE public.processing_jobs SET status = 'indexed', updated_at = now() WHERE id = ANY(:ids) AND status = 'running'")

_PUBLISH = text("""
    UPDATE public.documents d SET content = g.text, status = 'ready'
    FROM pipeline.documents p
    JOIN pipeline.generations g ON g.document_id = p.document_id AND g.generation = p.generation
    WHERE d.id = ANY(:ids) AND d.id::text = p.document_id AND p.document_id = ANY(:ids_text)
      AND d.status <> 'uploaded' AND d.updated_at::text = p.input_version AND g.state = 'indexed' AND g.text IS NOT NULL
    RETURNING d.id::text
""")

_SET_LIVE = text("""
    UPDATE pipeline.documents
    SET live_generation = generation, stage = NULL, lease_until = NULL, attempts = 0, retry_at = NULL,
        error_code = NULL, error_message = NULL, error_at = NULL
    WHERE document_id = ANY(:ids)
""")

_SET_GENERATION_LIVE = text("""
    UPDATE pipeline.generations g SET state = 'live', text = NULL, published_at = now()
    FROM pipeline.documents p
    WHERE p.document_id = ANY(:ids) AND g.document_id = p.document_id AND g.generation = p.generation
""")

# The input changed while we worked on the old one: the document waits as `uploaded` and is claimed anew.
_SET_OVERTAKEN = text("UPDATE pipeline.documents SET stage = NULL, lease_until = NULL WHERE document_id = ANY(:ids)")

# Keys that only generations other than the live one and the one in flight hold.
_RETIRE_OTHERS = text("""
    INSERT INTO pipeline.retired_keys (key, dataset_id, document_id)
    SELECT DISTINCT c.key, p.dataset_id, p.document_id
    FROM pipeline.documents p
    JOIN pipeline.chunks c USING (document_id)
    WHERE p.document_id = ANY(:ids) AND c.key IS NOT NULL
      AND c.generation IS DISTINCT FROM p.live_generation AND (p.stage IS NULL OR c.generation <> p.generation)
      AND NOT EXISTS (
          SELECT FROM pipeline.chunks k
          WHERE k.document_id = c.document_id AND k.key = c.key
            AND (k.generation = p.live_generation OR (p.stage IS NOT NULL AND k.generation = p.generation)))
    ON CONFLICT (key) DO NOTHING
""")

_DELETE_OTHER_CHUNKS = text("""
    DELETE FROM pipeline.chunks c USING pipeline.documents p
    WHERE p.document_id = ANY(:ids) AND c.document_id = p.document_id
      AND c.generation IS DISTINCT FROM p.live_generation AND (p.stage IS NULL OR c.generation <> p.generation)
""")

_DELETE_OTHER_GENERATIONS = text("""
    DELETE FROM pipeline.generations g USING pipeline.documents p
    WHERE p.document_id = ANY(:ids) AND g.document_id = p.document_id
      AND g.generation IS DISTINCT FROM p.live_generation AND (p.stage IS NULL OR g.generation <> p.generation)
""")

# Index: pipeline.retired_keys_by_dataset.
_RETIRED = text("SELECT key FROM pipeline.retired_keys WHERE dataset_id = :dataset_id ORDER BY key LIMIT :limit")
_FORGET_RETIRED = text("DELETE FROM pipeline.retired_keys WHERE key = ANY(:keys)")

# Index: pipeline.documents_live, then the primary key of chunks.
_MANIFEST_KEYS = text("""
    SELECT c.key FROM pipeline.documents p
    JOIN pipeline.chunks c ON c.document_id = p.document_id AND c.generation = p.live_generation
    WHERE p.dataset_id = :dataset_id AND p.live_generation IS NOT NULL
""")

# Keys that may lie in Milvus without being live: an attempt in flight, or named for the sweep.
_TRANSIENT_KEYS = text("""
    SELECT c.key FROM pipeline.documents p
    JOIN pipeline.chunks c ON c.document_id = p.document_id AND c.generation = p.generation
    WHERE p.dataset_id = :dataset_id AND p.stage IS NOT NULL AND c.key IS NOT NULL
    UNION ALL
    SELECT key FROM pipeline.retired_keys WHERE dataset_id = :dataset_id
""")

# Index: pipeline.chunks_by_key; a hit counts if its chunk is of the live generation of a document that exists.
_PLACES = text("""
    SELECT c.key, d.id::text AS document_id, d.filename, c.page, c.start_offset AS start, c.end_offset AS end, c.ordinal,
           substr(d.content, c.start_offset + 1, c.end_offset - c.start_offset) AS text
    FROM pipeline.chunks c
    JOIN pipeline.documents p ON p.document_id = c.document_id AND p.live_generation = c.generation
    JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = c.document_id
    WHERE c.key = ANY(:keys) AND d.dataset_id = :dataset_id
""")


def _keyed(claims: Sequence[Claim]) -> str:
    return recordset(
        {"document_id": c.document_id, "generation": c.generation, "fence": c.fence}
        for c in sorted(claims, key=lambda c: c.document_id)
    )


def live_sources(tx: Connection, document_ids: Sequence[str]) -> dict[str, LiveSource]:
    """What the live generations were made from, by document; nothing for documents without one."""
    return {r.document_id: LiveSource(r.extractor, r.source_sha256) for r in tx.execute(_LIVE_SOURCES, {"ids": list(document_ids)})}


def reuse_text(tx: Connection, claim: Claim) -> ReusedText | None:
    """Stage the live text as the claimed generation's; None if the fence was lost or the document is gone."""
    parameters = {"ids": id_array([claim.document_id]), "document_id": claim.document_id, "fence": claim.fence}
    row = tx.execute(_REUSE_TEXT, parameters).first()
    return None if row is None else ReusedText(row.pages, row.characters)


def stage_texts(tx: Connection, staged: Sequence[StagedText]) -> set[str]:
    """Store extracted texts under the claims' fences; returns the documents whose fence held."""
    return {
        document_id
        for s in staged
        for document_id in tx.execute(
            _STAGE_TEXT,
            {
                "document_id": s.claim.document_id, "fence": s.claim.fence, "extractor": s.extractor,
                "source_sha256": s.source_sha256, "source_bytes": s.source_bytes, "kind": s.kind, "engine": s.engine,
                "text": s.text, "text_sha256": s.text_sha256, "pages": s.pages, "blank_pages": list(s.blank_pages),
            },
        ).scalars()
    }  # fmt: skip


def staged_text(tx: Connection, claim: Claim) -> str | None:
    """The claimed generation's staged text; None if it was discarded meanwhile."""
    return tx.execute(_STAGED_TEXT, {"document_id": claim.document_id, "generation": claim.generation}).scalar()


def fresh_tokens(tx: Connection, claims: Sequence[Claim]) -> dict[str, int]:
    """Tokens to embed, by document."""
    return {r.document_id: r.fresh_tokens for r in tx.execute(_FRESH_TOKENS, {"rows": _keyed(claims)})}


def live_keys(tx: Connection, document_ids: Sequence[str], fingerprint: str) -> dict[str, dict[str, list[str]]]:
    """Keys that can be kept: document id → digest → keys, of live generations of the same configuration."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in tx.execute(_LIVE_CHUNKS, {"ids": list(document_ids), "fingerprint": fingerprint}):
        found.setdefault(row.document_id, {}).setdefault(row.digest, []).append(row.key)
    return found


def store_plan(tx: Connection, plans: Sequence[tuple[Claim, Sequence[PlannedChunk]]], fingerprint: str) -> set[str]:
    """Replace the claimed generations' manifest rows; returns the documents whose fence held."""
    held = _lock_fenced(tx, [claim for claim, _ in plans])
    mine = [(claim, chunks) for claim, chunks in plans if claim.document_id in held]
    keyed = _keyed([claim for claim, _ in mine])
    tx.execute(_CLEAR_CHUNKS, {"rows": keyed})
    for claim, chunks in mine:
        rows = recordset(
            {
                "document_id": claim.document_id, "generation": claim.generation, "ordinal": c.ordinal, "key": c.key,
                "digest": c.digest, "page": c.page, "start_offset": c.start, "end_offset": c.end, "tokens": c.tokens,
            }
            for c in chunks
        )  # fmt: skip
        tx.execute(_INSERT_CHUNKS, {"rows": rows})
    tx.execute(_SET_PLANNED, {"rows": keyed, "fingerprint": fingerprint})
    return held


def _lock_fenced(tx: Connection, claims: Sequence[Claim]) -> set[str]:
    return set(tx.execute(_LOCK_FENCED, {"rows": _keyed(claims)}).scalars())


def assign_keys(tx: Connection, claims: Sequence[Claim]) -> list[FreshChunk]:
    """Give the chunks to embed this worker's keys, and name an earlier worker's keys for the sweep.

    A key is md5(document, generation, fence, ordinal): inserted at most once, never reused. Documents whose fence was
    lost have no chunk in the answer.
    """
    held = _lock_fenced(tx, claims)
    mine = [c for c in claims if c.document_id in held]
    if not mine:
        return []
    keyed = _keyed(mine)
    tx.execute(_RETIRE_ATTEMPT, {"rows": keyed, "dataset_id": mine[0].dataset_id})
    tx.execute(_ASSIGN_KEYS, {"rows": keyed})
    return [FreshChunk(r.document_id, r.ordinal, r.key, r.text, r.tokens) for r in tx.execute(_FRESH_CHUNKS, {"rows": keyed})]


def decide(tx: Connection, claims: Sequence[Claim]) -> set[str]:
    """The decision: every vector was read back, so from here the documents only go forward. Returns those whose fence held."""
    held = _lock_fenced(tx, claims)
    mine = [c for c in claims if c.document_id in held]
    tx.execute(_DECIDE, {"rows": _keyed(mine)})
    tx.execute(_JOBS_INDEXED, {"ids": id_array(c.job_id for c in mine)})
    return held


def publish(tx: Connection, claims: Sequence[Claim]) -> set[str]:
    """Make the claimed generations live: content, status, job and manifest in one transaction.

    A document whose input changed meanwhile is left `uploaded` (its work is dropped, its vectors named for the sweep), and
    so is one whose fence was lost. Returns the documents that are now `ready`.
    """
    lock_documents(tx, [c.document_id for c in claims])
    held = _lock_fenced(tx, claims)
    published = set(tx.execute(_PUBLISH, {"ids": id_array(held), "ids_text": list(held)}).scalars())
    tx.execute(_SET_GENERATION_LIVE, {"ids": list(published)})
    tx.execute(_SET_LIVE, {"ids": list(published)})
    overtaken = held - published
    tx.execute(_SET_OVERTAKEN, {"ids": list(overtaken)})
    close_jobs(tx, [c.job_id for c in claims if c.document_id in published], "completed")
    close_jobs(tx, [c.job_id for c in claims if c.document_id in overtaken], "canceled")
    discard_others(tx, list(held))
    return published


def discard_others(tx: Connection, document_ids: Sequence[str]) -> None:
    """Drop what is neither live nor in flight; keys that nothing else holds are named for the sweep."""
    for statement in (_RETIRE_OTHERS, _DELETE_OTHER_CHUNKS, _DELETE_OTHER_GENERATIONS):
        tx.execute(statement, {"ids": list(document_ids)})


def retired_keys(tx: Connection, dataset_id: str, limit: int) -> list[str]:
    """Keys that may still lie in Milvus and that nothing holds."""
    return list(tx.execute(_RETIRED, {"dataset_id": dataset_id, "limit": limit}).scalars())


def forget_retired(tx: Connection, keys: Sequence[str]) -> None:
    """The keys are gone from Milvus."""
    tx.execute(_FORGET_RETIRED, {"keys": list(keys)})


def manifest_keys(tx: Connection, dataset_id: str) -> set[str]:
    """Keys of the dataset's live generations: exactly what Milvus must hold for it."""
    return set(tx.execute(_MANIFEST_KEYS, {"dataset_id": dataset_id}).scalars())


def transient_keys(tx: Connection, dataset_id: str) -> set[str]:
    """Keys that may lie in Milvus although they are not live: in flight, or waiting for the sweep."""
    return set(tx.execute(_TRANSIENT_KEYS, {"dataset_id": dataset_id}).scalars())


def places(tx: Connection, dataset_id: str, found: Sequence[tuple[str, str]]) -> dict[str, Place]:
    """(key, document id) → where the chunk stands, for those that are live."""
    keys, ids = [k for k, _ in found], sorted({i for _, i in found})
    rows = tx.execute(_PLACES, {"keys": keys, "ids": id_array(ids), "dataset_id": dataset_id}).mappings()
    return {r["key"]: Place(**r) for r in rows}
