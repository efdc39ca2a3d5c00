"""Staged texts: the results of extraction, kept in `pipeline.generations` until they are published.

Belongs here: writing and reading a generation's text. Does not: its chunks (plans), who holds it (generations).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from fltr_pipeline.models import Recognition
from fltr_pipeline.stores.database import id_array, recordset
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.generations import held


@dataclass(frozen=True, slots=True)
class InlineText:
    """The text in `content` of a document: an upload, or what a redo has to make do with."""

    size: int
    """In bytes."""
    is_live: bool
    """It is what was published last: nothing is new."""
    of_file: bool
    """And it was published of a file."""
    stands: bool
    """Or it was uploaded as text, and nothing was since: whatever file there is, it is an older one."""


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
    recognised: tuple[Recognition, ...] = ()


@dataclass(frozen=True, slots=True)
class LiveSource:
    """What the live generation was made from, and by what."""

    extractor: str
    source_sha256: str
    source_bytes: int
    pages: int
    fingerprint: str
    """Of the configuration that made it."""
    lost: bool
    """Whether a chunk of it has lost its vector."""
    stands: bool
    """Whether `content` still is its text, rather than a new inline upload, or what an editor's hand left."""
    is_redo: bool
    """Nothing was uploaded: we or an operator want it made anew."""


@dataclass(frozen=True, slots=True)
class StagedSource:
    """What the attempt under way has extracted before, from what and by what."""

    extractor: str
    source_sha256: str
    source_bytes: int
    kind: str
    pages: int
    characters: int
    ocr_pages: int


# Primary keys. What was published of a file is no upload; a redo makes do with it, also when it failed and is tried
# again, free of charge.
_INLINE_TEXTS = text("""
    SELECT d.id::text AS id, octet_length(d.content) AS size, p.document_id IS NOT NULL AS is_live,
           coalesce(NOT p.published_inline, false) AS of_file,
           coalesce(p.published_inline AND d.status = 'ready', false) AS stands
    FROM public.documents d
    LEFT JOIN pipeline.documents p ON p.document_id = d.id::text
                                  AND p.published_sha256 = encode(sha256(convert_to(d.content, 'UTF8')), 'hex')
    WHERE d.id = ANY(:ids) AND d.content IS NOT NULL
      AND (p.document_id IS NULL OR p.published_inline OR d.status = 'ready'
           OR (p.live_generation IS NULL AND NOT p.billable))
""")

# Primary key. A live generation's text is in `content`.
_STAGED_SOURCES = text("""
    SELECT g.document_id, g.extractor, g.source_sha256, g.source_bytes, g.kind, g.pages, length(g.text) AS characters,
           cardinality(g.ocr_pages) AS ocr_pages
    FROM pipeline.generations g
    JOIN json_to_recordset(:rows) AS r(document_id text, generation int) USING (document_id, generation)
    WHERE g.text IS NOT NULL
""")

# Primary keys.
_LIVE_SOURCES = text("""
    SELECT g.document_id, g.extractor, g.source_sha256, g.source_bytes, g.pages,
           g.fingerprint, EXISTS (SELECT FROM pipeline.chunks c WHERE c.document_id = g.document_id
                                                                  AND c.generation = g.generation
                                                                  AND c.key IS NULL) AS lost,
           coalesce(g.text_sha256 = encode(sha256(convert_to(d.content, 'UTF8')), 'hex'), false) AS stands,
           d.status = 'ready' AS is_redo
    FROM pipeline.documents p
    JOIN pipeline.generations g ON g.document_id = p.document_id AND g.generation = p.live_generation
    JOIN public.documents d ON d.id = ANY(:public_ids) AND d.id::text = p.document_id
    WHERE p.document_id = ANY(:ids)
""")

# The live text is the new generation's text, if `content` still is it. Where an earlier extractor made it, nothing else
# is there for today's, either.
_REUSE_TEXTS = text("""
    INSERT INTO pipeline.generations AS g
        (document_id, generation, state, extractor, source_sha256, source_bytes, kind, engine, text, text_sha256,
         pages, blank_pages, ocr_pages, ocr_confidence)
    SELECT p.document_id, p.generation, 'staged', :extractor, l.source_sha256, l.source_bytes, l.kind, l.engine,
           d.content, l.text_sha256, l.pages, l.blank_pages,
           l.ocr_pages, l.ocr_confidence
    FROM json_to_recordset(:rows) AS r(document_id text, fence bigint)
    JOIN pipeline.documents p ON p.document_id = r.document_id AND p.fence = r.fence
    JOIN pipeline.generations l ON l.document_id = p.document_id AND l.generation = p.live_generation
    JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = p.document_id
    WHERE l.text_sha256 = encode(sha256(convert_to(d.content, 'UTF8')), 'hex')
    ON CONFLICT (document_id, generation) DO UPDATE SET
        state = 'staged', extractor = excluded.extractor, source_sha256 = excluded.source_sha256,
        source_bytes = excluded.source_bytes, kind = excluded.kind, engine = excluded.engine, text = excluded.text,
        text_sha256 = excluded.text_sha256, pages = excluded.pages, blank_pages = excluded.blank_pages,
        ocr_pages = excluded.ocr_pages, ocr_confidence = excluded.ocr_confidence
    RETURNING g.document_id
""")

# Texts are elements of an array: as JSON, a large one would be escaped and parsed.
_STAGE_TEXTS = text("""
    INSERT INTO pipeline.generations AS g
        (document_id, generation, state, extractor, source_sha256, source_bytes, kind, engine, text, text_sha256,
         pages, blank_pages, ocr_pages, ocr_confidence)
    SELECT p.document_id, p.generation, 'staged', r.extractor, r.source_sha256, r.source_bytes, r.kind, r.engine,
           t.text, r.text_sha256, r.pages, r.blank_pages,
           r.ocr_pages, r.ocr_confidence
    FROM json_to_recordset(:rows) AS r(ordinal bigint, document_id text, fence bigint, extractor text,
                                       source_sha256 text, source_bytes bigint, kind text, engine text,
                                       text_sha256 text, pages int, blank_pages int[],
                                       ocr_pages int[], ocr_confidence real[])
    JOIN unnest(CAST(:texts AS text[])) WITH ORDINALITY AS t(text, ordinal) USING (ordinal)
    JOIN pipeline.documents p ON p.document_id = r.document_id AND p.fence = r.fence
    ON CONFLICT (document_id, generation) DO UPDATE SET
        state = 'staged', extractor = excluded.extractor, source_sha256 = excluded.source_sha256,
        source_bytes = excluded.source_bytes, kind = excluded.kind, engine = excluded.engine, text = excluded.text,
        text_sha256 = excluded.text_sha256, pages = excluded.pages, blank_pages = excluded.blank_pages,
        ocr_pages = excluded.ocr_pages, ocr_confidence = excluded.ocr_confidence
    RETURNING g.document_id
""")

_STAGED_TEXTS = text("""
    SELECT g.document_id, g.text FROM pipeline.generations g
    JOIN json_to_recordset(:rows) AS r(document_id text, generation int) USING (document_id, generation)
    WHERE g.text IS NOT NULL
""")

_STAGED_SIZES = text("""
    SELECT g.document_id, octet_length(g.text) AS bytes FROM pipeline.generations g
    JOIN json_to_recordset(:rows) AS r(document_id text, generation int) USING (document_id, generation)
    WHERE g.text IS NOT NULL
""")

# Primary keys. Of what was uploaded: whoever asks for a redo and pays for it pays for all of it.
_FORMER_TEXTS = text("""
    SELECT p.document_id, d.content
    FROM pipeline.documents p
    JOIN pipeline.generations l ON l.document_id = p.document_id AND l.generation = p.live_generation
    JOIN public.documents d ON d.id = ANY(:public_ids) AND d.id::text = p.document_id
    WHERE p.document_id = ANY(:ids) AND p.billable AND d.status <> 'ready' AND l.fingerprint <> :fingerprint
      AND l.text_sha256 = encode(sha256(convert_to(d.content, 'UTF8')), 'hex')
""")

# Primary key.
_UNREADABLE = text("""
    UPDATE pipeline.documents p SET error_extractor = :extractor
    FROM json_to_recordset(:rows) AS r(document_id text, fence bigint)
    WHERE p.document_id = r.document_id AND p.fence = r.fence
""")


def inline_texts(tx: Connection, document_ids: Sequence[str]) -> dict[str, InlineText]:
    """What can be read of documents without a file, by id; nothing of uploads that brought no text either."""
    found = tx.execute(_INLINE_TEXTS, {"ids": id_array(document_ids)})
    return {r.id: InlineText(r.size, r.is_live, r.of_file, r.stands) for r in found}


def live_sources(tx: Connection, document_ids: Sequence[str]) -> dict[str, LiveSource]:
    """What the live generations were made from, by document; nothing for documents without one."""
    parameters = {"ids": list(document_ids), "public_ids": id_array(document_ids)}
    return {
        r.document_id: LiveSource(
            r.extractor, r.source_sha256, r.source_bytes, r.pages, r.fingerprint, r.lost, r.stands, r.is_redo
        )
        for r in tx.execute(_LIVE_SOURCES, parameters)
    }


def staged_sources(tx: Connection, claims: Sequence[Claim]) -> dict[str, StagedSource]:
    """What earlier workers have staged of the claimed generations, by document."""
    found = tx.execute(_STAGED_SOURCES, {"rows": _generations(claims)})
    return {document_id: StagedSource(*facts) for document_id, *facts in found}


def reuse_texts(tx: Connection, claims: Sequence[Claim], extractor: str) -> set[str]:
    """Stage the live texts as the claimed generations', unread; returns the documents for which that was possible.

    They count as made by `extractor`, today's; all else is told as it was made.

    Not where the fence was lost, the document is gone, or its `content` is another text by now.
    """
    if not claims:
        return set()
    held(tx, claims)  # none of them changes hands from here on; whose fence was lost is left out below
    rows = recordset({"document_id": c.document_id, "fence": c.fence} for c in claims)
    ids = id_array(c.document_id for c in claims)
    return set(tx.execute(_REUSE_TEXTS, {"rows": rows, "ids": ids, "extractor": extractor}).scalars())


def stage_texts(tx: Connection, staged: Sequence[StagedText]) -> set[str]:
    """Store extracted texts under the claims' fences; returns the documents whose fence held."""
    held(tx, [s.claim for s in staged])  # as above
    rows = recordset(
        {
            "ordinal": n, "document_id": s.claim.document_id, "fence": s.claim.fence, "extractor": s.extractor,
            "source_sha256": s.source_sha256, "source_bytes": s.source_bytes, "kind": s.kind, "engine": s.engine,
            "text_sha256": s.text_sha256, "pages": s.pages, "blank_pages": s.blank_pages,
            "ocr_pages": [r.page for r in s.recognised], "ocr_confidence": [r.confidence for r in s.recognised],
        }
        for n, s in enumerate(staged, start=1)
    )  # fmt: skip
    return set(tx.execute(_STAGE_TEXTS, {"rows": rows, "texts": [s.text for s in staged]}).scalars())


def staged_texts(tx: Connection, claims: Sequence[Claim]) -> dict[str, str]:
    """The claimed generations' staged texts, by document; nothing for those discarded meanwhile."""
    return {r.document_id: r.text for r in tx.execute(_STAGED_TEXTS, {"rows": _generations(claims)})}


def staged_sizes(tx: Connection, claims: Sequence[Claim]) -> dict[str, int]:
    """How long the staged texts are, in bytes, which takes no look into them."""
    return {r.document_id: r.bytes for r in tx.execute(_STAGED_SIZES, {"rows": _generations(claims)})}


def former_texts(tx: Connection, document_ids: Sequence[str], fingerprint: str) -> dict[str, str]:
    """The live texts that were made under another configuration, of documents that were uploaded anew."""
    parameters = {"ids": list(document_ids), "public_ids": id_array(document_ids), "fingerprint": fingerprint}
    return {r.document_id: r.content for r in tx.execute(_FORMER_TEXTS, parameters)}


def unreadable(tx: Connection, claims: Sequence[Claim], extractor: str) -> None:
    """Remember which extractor could not read the documents: another one may (`requeue`)."""
    if claims:
        rows = recordset({"document_id": c.document_id, "fence": c.fence} for c in claims)
        tx.execute(_UNREADABLE, {"rows": rows, "extractor": extractor})


def _generations(claims: Sequence[Claim]) -> str:
    return recordset({"document_id": c.document_id, "generation": c.generation} for c in claims)
