"""Contents that are not tried again: by the digest of their bytes, under the configuration that they failed with.

Belongs here: what is remembered of them, whom it concerns, who is let in again. Does not: when a content is quarantined
(pipeline.quarantine).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from fltr_pipeline.stores.database import id_array, recordset
from fltr_pipeline.stores.fltr.claims import Claim


@dataclass(frozen=True, slots=True)
class Content:
    """A document's bytes, by their digest."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a content that is not tried again."""

    sha256: str
    code: str
    """How it failed last."""
    tries: int
    failed_at: datetime


# Primary key.
_REMEMBER = text("""
    INSERT INTO pipeline.quarantine AS q (source_sha256, tried_with, source_bytes, code, tries, in_force)
    VALUES (:sha256, :tried_with, :size, :code, CAST(:tries AS int), CAST(:tries AS int) >= :allowed)
    ON CONFLICT (source_sha256, tried_with) DO UPDATE SET
        code = excluded.code, tries = q.tries + excluded.tries, failed_at = now(),
        in_force = q.in_force OR q.tries + excluded.tries >= :allowed
""")

_MARK = text("""
    UPDATE pipeline.documents SET quarantine_sha256 = :sha256 WHERE document_id = :document_id AND fence = :fence
""")

# Index: pipeline.quarantine_by_size.
_OF_SIZES = text("""
    SELECT source_sha256, code, tries, failed_at FROM pipeline.quarantine
    WHERE tried_with = :tried_with AND source_bytes = ANY(:sizes) AND in_force
""")

# Primary keys. What was decided only goes forward, and what was extracted has its parser behind it.
_OF_CLAIMS = text("""
    SELECT g.document_id, q.source_sha256, q.code, q.tries, q.failed_at
    FROM json_to_recordset(:rows) AS r(document_id text, generation int)
    JOIN pipeline.generations g USING (document_id, generation)
    JOIN pipeline.quarantine q ON q.source_sha256 = g.source_sha256 AND q.tried_with = :tried_with
    WHERE q.in_force AND q.code = 'gave_up' AND g.state <> 'indexed'
""")

# Primary keys.
_STAGED_CONTENT = text("""
    SELECT source_sha256, source_bytes FROM pipeline.generations
    WHERE document_id = :document_id AND generation = :generation
""")

_INLINE_CONTENT = text("""
    SELECT encode(sha256(convert_to(content, 'UTF8')), 'hex') AS sha256, octet_length(content) AS size
    FROM public.documents WHERE id = ANY(:ids) AND content IS NOT NULL
""")

# Primary key. What another worker is writing just now failed just now.
_FORGIVE = text("""
    DELETE FROM pipeline.quarantine WHERE tried_with = :tried_with AND source_sha256 IN (
        SELECT source_sha256 FROM pipeline.quarantine
        WHERE source_sha256 = ANY(:digests) AND tried_with = :tried_with AND NOT in_force FOR UPDATE SKIP LOCKED)
""")

# Primary keys. All configurations: whoever asks for everything means it.
_READMIT = text("""
    DELETE FROM pipeline.quarantine q USING pipeline.documents p
    WHERE p.document_id = ANY(:ids) AND q.source_sha256 = p.quarantine_sha256
""")


def remember(
    tx: Connection, claim: Claim, content: Content, *, tried_with: str, code: str, tries: int, allowed: int
) -> None:
    """The content failed `tries` times more; from `allowed` times on it is not tried again."""
    tx.execute(
        _REMEMBER,
        {
            "sha256": content.sha256, "size": content.size, "tried_with": tried_with, "code": code, "tries": tries,
            "allowed": allowed,
        },
    )  # fmt: skip
    mark(tx, claim, content.sha256)


def forgive(tx: Connection, digests: Sequence[str], tried_with: str) -> None:
    """These contents came through: what they failed at before was not theirs. One that is not tried any more stays."""
    tx.execute(_FORGIVE, {"digests": list(digests), "tried_with": tried_with})


def mark(tx: Connection, claim: Claim, sha256: str) -> None:
    """The claimed document fails because of this content."""
    tx.execute(_MARK, {"document_id": claim.document_id, "fence": claim.fence, "sha256": sha256})


def of_sizes(tx: Connection, sizes: Sequence[int], tried_with: str) -> dict[str, Record]:
    """Contents of one of these sizes in bytes that are not tried again, by digest."""
    rows = tx.execute(_OF_SIZES, {"sizes": sorted(set(sizes)), "tried_with": tried_with})
    return {r.source_sha256: Record(*r) for r in rows}


def of_claims(tx: Connection, claims: Sequence[Claim], tried_with: str) -> dict[str, Record]:
    """Extracted documents whose content is not to be tried again meanwhile, by id."""
    rows = recordset({"document_id": c.document_id, "generation": c.generation} for c in claims)
    return {r.document_id: Record(*r[1:]) for r in tx.execute(_OF_CLAIMS, {"rows": rows, "tried_with": tried_with})}


def staged_content(tx: Connection, claim: Claim) -> Content | None:
    """What the claimed generation was extracted from; None before its extraction."""
    row = tx.execute(_STAGED_CONTENT, {"document_id": claim.document_id, "generation": claim.generation}).first()
    return None if row is None else Content(*row)


def inline_content(tx: Connection, document_id: str) -> Content | None:
    """Text that was uploaded inline; digested by the database, whatever its size."""
    row = tx.execute(_INLINE_CONTENT, {"ids": id_array([document_id])}).first()
    return None if row is None else Content(*row)


def readmit(tx: Connection, document_ids: Sequence[str]) -> None:
    """Let the contents that these documents failed because of be tried again, wherever else they are."""
    tx.execute(_READMIT, {"ids": list(document_ids)})
