"""Staged texts: the results of extraction, kept in `pipeline.generations` until they are published.

Belongs here: writing and reading a generation's text. Does not: its chunks (generations).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from fltr_pipeline.stores.database import id_array, recordset
from fltr_pipeline.stores.fltr.claims import Claim


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


# Primary keys.
_LIVE_SOURCES = text("""
    SELECT g.document_id, g.extractor, g.source_sha256
    FROM pipeline.documents p
    JOIN pipeline.generations g ON g.document_id = p.document_id AND g.generation = p.live_generation
    WHERE p.document_id = ANY(:ids)
""")

# Unchanged bytes under an unchanged extractor: the live text is the new generation's text, if it still is in `content`.
_REUSE_TEXT = text("""
    INSERT INTO pipeline.generations AS g
        (document_id, generation, state, extractor, source_sha256, source_bytes, kind, engine, text, text_sha256,
         pages, blank_pages)
    SELECT p.document_id, p.generation, 'staged', l.extractor, l.source_sha256, l.source_bytes, l.kind, l.engine,
           d.content, l.text_sha256, l.pages, l.blank_pages
    FROM pipeline.documents p
    JOIN pipeline.generations l ON l.document_id = p.document_id AND l.generation = p.live_generation
    JOIN public.documents d ON d.id = ANY(:ids)
    WHERE p.document_id = :document_id AND p.fence = :fence
      AND encode(sha256(convert_to(d.content, 'UTF8')), 'hex') = l.text_sha256
    ON CONFLICT (document_id, generation) DO UPDATE SET state = 'staged', text = excluded.text
    RETURNING g.pages, length(g.text) AS characters
""")

_STAGE_TEXT = text("""
    INSERT INTO pipeline.generations AS g
        (document_id, generation, state, extractor, source_sha256, source_bytes, kind, engine, text, text_sha256,
         pages, blank_pages)
    SELECT p.document_id, p.generation, 'staged', :extractor, :source_sha256, :source_bytes, :kind, :engine, :text,
           :text_sha256, :pages, :blank_pages
    FROM pipeline.documents p WHERE p.document_id = :document_id AND p.fence = :fence
    ON CONFLICT (document_id, generation) DO UPDATE SET
        state = 'staged', extractor = excluded.extractor, source_sha256 = excluded.source_sha256,
        source_bytes = excluded.source_bytes, kind = excluded.kind, engine = excluded.engine, text = excluded.text,
        text_sha256 = excluded.text_sha256, pages = excluded.pages, blank_pages = excluded.blank_pages
    RETURNING g.document_id
""")

_STAGED_TEXTS = text("""
    SELECT g.document_id, g.text FROM pipeline.generations g
    JOIN json_to_recordset(:rows) AS r(document_id text, generation int) USING (document_id, generation)
    WHERE g.text IS NOT NULL
""")

_STAGED_SIZES = text("""
    SELECT g.document_id, length(g.text) AS characters FROM pipeline.generations g
    JOIN json_to_recordset(:rows) AS r(document_id text, generation int) USING (document_id, generation)
    WHERE g.text IS NOT NULL
""")


def live_sources(tx: Connection, document_ids: Sequence[str]) -> dict[str, LiveSource]:
    """What the live generations were made from, by document; nothing for documents without one."""
    return {
        r.document_id: LiveSource(r.extractor, r.source_sha256)
        for r in tx.execute(_LIVE_SOURCES, {"ids": list(document_ids)})
    }


def reuse_text(tx: Connection, claim: Claim) -> ReusedText | None:
    """Stage the live text as the claimed generation's; None if the fence was lost, or it is no longer in `content`."""
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


def staged_texts(tx: Connection, claims: Sequence[Claim]) -> dict[str, str]:
    """The claimed generations' staged texts, by document; nothing for those discarded meanwhile."""
    return {r.document_id: r.text for r in tx.execute(_STAGED_TEXTS, {"rows": _generations(claims)})}


def staged_sizes(tx: Connection, claims: Sequence[Claim]) -> dict[str, int]:
    """How long the staged texts are, in characters."""
    return {r.document_id: r.characters for r in tx.execute(_STAGED_SIZES, {"rows": _generations(claims)})}


def _generations(claims: Sequence[Claim]) -> str:
    return recordset({"document_id": c.document_id, "generation": c.generation} for c in claims)
