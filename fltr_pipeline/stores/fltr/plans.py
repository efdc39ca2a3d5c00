"""Plans: which chunks a claimed generation has, and which of them keep a live vector.

Belongs here: the manifest rows of a generation before it is embedded. Does not: keys of new vectors, the decision,
publishing (generations).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import Connection, text

from fltr_pipeline.stores.database import id_array, recordset
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.generations import held, keyed, retire_attempts

_SLICE = 50_000
"""Chunks in one statement: four million, which a text may have, are a gigabyte, and PostgreSQL cuts the connection."""


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
    lost: bool = False
    """It is in the live generation and has lost its vector, which is made anew free of charge."""


# Primary keys. PostgreSQL knows a text's bytes without reading it, unlike its characters.
_TEXT_SIZES = text("""
    SELECT g.document_id, octet_length(g.text) + coalesce(octet_length(d.content), 0) AS bytes
    FROM json_to_recordset(:rows) AS r(document_id text, generation int)
    JOIN pipeline.generations g USING (document_id, generation)
    LEFT JOIN public.documents d ON d.id = ANY(:public_ids) AND d.id::text = g.document_id
    WHERE g.text IS NOT NULL
""")

_LIVE_CHUNKS = text("""
    SELECT c.document_id, c.digest, c.key
    FROM pipeline.documents p
    JOIN pipeline.chunks c ON c.document_id = p.document_id AND c.generation = p.live_generation
    JOIN pipeline.generations g ON g.document_id = p.document_id AND g.generation = p.live_generation
    WHERE p.document_id = ANY(:ids) AND g.fingerprint = :fingerprint
    ORDER BY c.document_id, c.key IS NULL, c.ordinal
""")

_CLEAR_CHUNKS = text("""
    DELETE FROM pipeline.chunks c USING json_to_recordset(:rows) AS r(document_id text, generation int)
    WHERE c.document_id = r.document_id AND c.generation = r.generation
""")

# Primary key of retired_keys. A key that was found lost since it was to be kept is not kept: the sweep deletes it.
_INSERT_CHUNKS = text("""
    INSERT INTO pipeline.chunks
        (document_id, generation, ordinal, key, fresh, digest, page, start_offset, end_offset, tokens)
    SELECT r.document_id, r.generation, r.ordinal, CASE WHEN x.key IS NULL THEN r.key END, r.key IS NULL AND NOT r.lost,
           r.digest, r.page, r.start_offset, r.end_offset, r.tokens
    FROM json_to_recordset(:rows) AS r(document_id text, generation int, ordinal int, key text, digest text, page int,
                                       start_offset int, end_offset int, tokens int, lost boolean)
    LEFT JOIN pipeline.retired_keys x ON x.key = r.key
""")

# Unchanged text under an unchanged configuration: the live plan is the new generation's plan, all of it kept. A chunk
# without a key has lost its vector, which embedding makes anew.
_COPY_PLANS = text("""
    INSERT INTO pipeline.chunks
        (document_id, generation, ordinal, key, fresh, digest, page, start_offset, end_offset, tokens)
    SELECT c.document_id, r.generation, c.ordinal, c.key, false, c.digest, c.page, c.start_offset,
           c.end_offset, c.tokens
    FROM json_to_recordset(:rows) AS r(document_id text, generation int)
    JOIN pipeline.documents p ON p.document_id = r.document_id
    JOIN pipeline.generations g ON g.document_id = r.document_id AND g.generation = r.generation
    JOIN pipeline.generations l ON l.document_id = r.document_id AND l.generation = p.live_generation
    JOIN pipeline.chunks c ON c.document_id = r.document_id AND c.generation = p.live_generation
    WHERE l.text_sha256 = g.text_sha256 AND l.fingerprint = :fingerprint
    RETURNING document_id, tokens
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

# Primary key. What is decided has its vectors, whatever made them.
_OF_ANOTHER = text("""
    SELECT g.document_id FROM pipeline.generations g
    JOIN json_to_recordset(:rows) AS r(document_id text, generation int) USING (document_id, generation)
    WHERE g.state = 'planned' AND g.fingerprint <> :fingerprint
""")


def text_sizes(tx: Connection, claims: Sequence[Claim]) -> dict[str, int]:
    """How long each claimed generation's text and its document's `content` are together, in bytes."""
    parameters = {"rows": keyed(claims), "public_ids": id_array(c.document_id for c in claims)}
    return {r.document_id: r.bytes for r in tx.execute(_TEXT_SIZES, parameters)}


def live_keys(tx: Connection, document_ids: Sequence[str], fingerprint: str) -> dict[str, dict[str, list[str | None]]]:
    """Keys that can be kept: document id → digest → keys, of live generations of the same configuration.

    For a chunk that has lost its vector, there is None; it comes last.
    """
    found: dict[str, dict[str, list[str | None]]] = {}
    for row in tx.execute(_LIVE_CHUNKS, {"ids": list(document_ids), "fingerprint": fingerprint}):
        found.setdefault(row.document_id, {}).setdefault(row.digest, []).append(row.key)
    return found


def store_plan(tx: Connection, plans: Sequence[tuple[Claim, Sequence[PlannedChunk]]], fingerprint: str) -> set[str]:
    """Replace the claimed generations' manifest rows; returns the documents whose fence held."""
    ours = held(tx, [claim for claim, _ in plans])
    mine = [(claim, chunks) for claim, chunks in plans if claim.document_id in ours]
    claimed = keyed([claim for claim, _ in mine])
    retire_attempts(tx, [claim for claim, _ in mine])
    tx.execute(_CLEAR_CHUNKS, {"rows": claimed})
    rows = (
        {
            "document_id": claim.document_id, "generation": claim.generation, "ordinal": c.ordinal, "key": c.key,
            "digest": c.digest, "page": c.page, "start_offset": c.start, "end_offset": c.end, "tokens": c.tokens,
            "lost": c.lost,
        }
        for claim, chunks in mine for c in chunks
    )  # fmt: skip
    while part := list(islice(rows, _SLICE)):
        tx.execute(_INSERT_CHUNKS, {"rows": recordset(part)})
    tx.execute(_SET_PLANNED, {"rows": claimed, "fingerprint": fingerprint})
    return ours


def copy_plans(tx: Connection, claims: Sequence[Claim], fingerprint: str) -> dict[str, list[int]]:
    """Plan the documents whose text and configuration are those of their live generation, without reading the text.

    Returns the tokens of their chunks, by document; the others are still to be chunked.
    """
    ours = held(tx, claims)
    mine = [c for c in claims if c.document_id in ours]
    retire_attempts(tx, mine)
    tx.execute(_CLEAR_CHUNKS, {"rows": keyed(mine)})
    copied: dict[str, list[int]] = {}
    for row in tx.execute(_COPY_PLANS, {"rows": keyed(mine), "fingerprint": fingerprint}):
        copied.setdefault(row.document_id, []).append(row.tokens)
    planned = [c for c in mine if c.document_id in copied]
    tx.execute(_SET_PLANNED, {"rows": keyed(planned), "fingerprint": fingerprint})
    return copied


def of_another(tx: Connection, claims: Sequence[Claim], fingerprint: str) -> set[str]:
    """Undecided documents whose plan was made under another configuration."""
    return set(tx.execute(_OF_ANOTHER, {"rows": keyed(claims), "fingerprint": fingerprint}).scalars())
