"""Generations: the versions of a document's text, their chunks, and which of them is live.

Belongs here: keys of new vectors, the decision, publishing, retired keys. Does not: who may do it (claims), what a
generation consists of (texts, plans).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from fltr_pipeline.stores.database import id_array, recordset
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.jobs import close_jobs
from fltr_pipeline.stores.fltr.locks import lock_documents

INLINE = "inline"
"""The engine of a generation whose bytes were uploaded as `content`."""


@dataclass(frozen=True, slots=True)
class FreshChunk:
    """A chunk to embed, with the key that this worker's fence gave it; `start` and `end` in its staged text."""

    document_id: str
    key: str
    start: int
    end: int
    tokens: int


_FRESH_TOKENS = text("""
    SELECT g.document_id, g.fresh_tokens FROM pipeline.generations g
    JOIN json_to_recordset(:rows) AS r(document_id text, generation int) USING (document_id, generation)
    WHERE g.fresh_tokens IS NOT NULL
""")

# The primary key's first columns. What an earlier worker embedded, another embeds again.
_TOKENS_TO_EMBED = text("""
    SELECT c.document_id, sum(c.tokens) AS tokens
    FROM json_to_recordset(:rows) AS r(document_id text, generation int)
    JOIN pipeline.chunks c USING (document_id, generation)
    WHERE c.fresh OR c.key IS NULL
    GROUP BY c.document_id
""")

# The same. By what is rare in a generation (no key, or a kept one) the planner would rather search the whole table.
_CHUNKS_OF = """
    WITH mine AS MATERIALIZED (
        SELECT c.document_id, c.generation, c.key, c.fresh
        FROM json_to_recordset(:rows) AS r(document_id text, generation int)
        JOIN pipeline.chunks c USING (document_id, generation))
"""
_KEPT_KEYS = text(f"{_CHUNKS_OF} SELECT key FROM mine WHERE NOT fresh AND key IS NOT NULL")  # noqa: S608 - of constants

# The primary keys.
_WITHOUT_KEYS = text(f"""{_CHUNKS_OF}
    SELECT DISTINCT document_id FROM mine JOIN pipeline.generations g USING (document_id, generation)
    WHERE key IS NULL AND g.state <> 'indexed'
""")  # noqa: S608 - of constants

_LOCK_FENCED = text("""
    SELECT p.document_id FROM pipeline.documents p
    JOIN json_to_recordset(:rows) AS r(document_id text, fence bigint)
      ON p.document_id = r.document_id AND p.fence = r.fence
    ORDER BY p.document_id
    FOR UPDATE OF p
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

# md5 over a NUL-free, unambiguous string: 128 bits, derived from (document, generation, fence, ordinal) alone. A kept
# key whose vector is lost stays with the live generation, and is retired with it.
_ASSIGN_KEYS = text("""
    UPDATE pipeline.chunks c
    SET key = md5(c.document_id || ':' || c.generation || ':' || r.fence || ':' || c.ordinal), fresh = true
    FROM json_to_recordset(:rows) AS r(document_id text, generation int, fence bigint)
    WHERE c.document_id = r.document_id AND c.generation = r.generation
      AND (c.fresh OR c.key IS NULL OR c.key = ANY(:lost))
""")

_FRESH_CHUNKS = text("""
    SELECT c.document_id, c.key, c.start_offset AS start, c.end_offset AS end, c.tokens
    FROM json_to_recordset(:rows) AS r(document_id text, generation int)
    JOIN pipeline.chunks c USING (document_id, generation)
    WHERE c.fresh
    ORDER BY c.document_id, c.ordinal
""")

# Index: pipeline.chunks_by_key. A key holds its worker's fence, so none that no chunk has comes back. A sweep that is
# at work on it may have looked before it was there: it forgets only what was named before it looked.
_RETIRE_INERT = text("""
    INSERT INTO pipeline.retired_keys (key, dataset_id, document_id)
    SELECT r.key, :dataset_id, r.document_id
    FROM json_to_recordset(:rows) AS r(key text, document_id text)
    WHERE NOT EXISTS (SELECT FROM pipeline.chunks c WHERE c.key = r.key)
    ORDER BY r.key
    ON CONFLICT (key) DO UPDATE SET retired_at = clock_timestamp()
""")

# Primary key. Also what others took over, all in one order: who withdraws such a document has its row locked, and
# behind that its receipt is there to be taken back.
_LOCK_WHOSEVER = text("""
    SELECT p.document_id, p.fence = r.fence AS is_ours FROM pipeline.documents p
    JOIN json_to_recordset(:rows) AS r(document_id text, fence bigint) ON p.document_id = r.document_id
    ORDER BY p.document_id
    FOR UPDATE OF p
""")

# Primary key. Its receipt may have been given before the vectors came, or be about to be: so none is left unlocked.
_TAKE_RECEIPTS_BACK = text("UPDATE pipeline.deletions SET verified_at = NULL WHERE document_id = ANY(:ids)")

_DECIDE = text("""
    UPDATE pipeline.generations g SET state = 'indexed'
    FROM json_to_recordset(:rows) AS r(document_id text, generation int)
    WHERE g.document_id = r.document_id AND g.generation = r.generation
""")

_DECIDED = text("""
    SELECT g.document_id FROM pipeline.generations g
    JOIN json_to_recordset(:rows) AS r(document_id text, generation int) USING (document_id, generation)
    WHERE g.state = 'indexed'
""")

_JOBS_INDEXED = text("""
    UPDATE public.processing_jobs SET status = 'indexed', updated_at = now()
    WHERE id = ANY(:ids) AND status = 'running'
""")

# What failed stays so: its last good version was repaired, the newer input is still not in it.
_PUBLISH = text("""
    UPDATE public.documents d
    SET content = g.text, status = CASE WHEN d.status = 'failed' THEN d.status ELSE 'ready' END  -- of the column's type
    FROM pipeline.documents p
    JOIN pipeline.generations g ON g.document_id = p.document_id AND g.generation = p.generation
    WHERE d.id = ANY(:ids) AND d.id::text = p.document_id AND p.document_id = ANY(:ids_text)
      AND d.status <> 'uploaded' AND g.state = 'indexed' AND g.text IS NOT NULL
    RETURNING d.id::text AS document_id, d.status
""")

# Whether it was a file's text is remembered apart from the generation, which may be dropped before its text is.
_SET_LIVE = text("""
    UPDATE pipeline.documents p
    SET live_generation = p.generation, stage = NULL, lease_until = NULL, attempts = 0, retries = 0, retry_at = NULL,
        published_sha256 = g.text_sha256, published_inline = g.engine = :inline
    FROM pipeline.generations g
    WHERE p.document_id = ANY(:ids) AND g.document_id = p.document_id AND g.generation = p.generation
""")

_CLEAR_ERRORS = text("""
    UPDATE pipeline.documents SET error_code = NULL, error_message = NULL, error_at = NULL
    WHERE document_id = ANY(:ids) AND error_code IS NOT NULL
""")

_SET_GENERATION_LIVE = text("""
    UPDATE pipeline.generations g SET state = 'live', text = NULL, published_at = now()
    FROM pipeline.documents p
    WHERE p.document_id = ANY(:ids) AND g.document_id = p.document_id AND g.generation = p.generation
""")

# A newer input waits as `uploaded` and is claimed anew (one that was claimed already took our fence).
_SET_OVERTAKEN = text("UPDATE pipeline.documents SET stage = NULL, lease_until = NULL WHERE document_id = ANY(:ids)")

# The input is what the live generation was made from: there is nothing to publish.
_SET_READY = text("UPDATE public.documents SET status = 'ready' WHERE id = ANY(:ids) AND status = 'processing'")

_SET_CONFIRMED = text("""
    UPDATE pipeline.documents
    SET stage = NULL, lease_until = NULL, attempts = 0, retries = 0, retry_at = NULL,
        error_code = NULL, error_message = NULL, error_at = NULL
    WHERE document_id = ANY(:ids)
""")

# Primary keys. What an upload ended where it stood is at no stage, and is kept for that.
_UNDELIVERED = text("""
    SELECT p.document_id, p.generation FROM pipeline.documents p
    WHERE p.document_id = ANY(:ids)
      AND (p.stage IS NOT NULL OR EXISTS (SELECT FROM pipeline.generations g
                                          WHERE g.document_id = p.document_id AND g.generation = p.generation
                                            AND g.state <> 'live'))
""")

# Generations that are neither live nor in flight; every chunk has one. Most often there is none, and this is all.
_HAVE_OTHERS = text("""
    SELECT DISTINCT g.document_id FROM pipeline.documents p JOIN pipeline.generations g USING (document_id)
    WHERE p.document_id = ANY(:ids)
      AND g.generation IS DISTINCT FROM p.live_generation AND (p.stage IS NULL OR g.generation <> p.generation)
""")

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


def keyed(claims: Sequence[Claim]) -> str:
    """The claimed generations, each with its fence, as rows for a query."""
    return recordset(
        {"document_id": c.document_id, "generation": c.generation, "fence": c.fence}
        for c in sorted(claims, key=lambda c: c.document_id)
    )


def fresh_tokens(tx: Connection, claims: Sequence[Claim]) -> dict[str, int]:
    """Tokens of chunks that the plan found new, by document: what its embedding costs."""
    return {r.document_id: r.fresh_tokens for r in tx.execute(_FRESH_TOKENS, {"rows": keyed(claims)})}


def tokens_to_embed(tx: Connection, claims: Sequence[Claim]) -> dict[str, int]:
    """Tokens of chunks without a vector that counts, by document."""
    return {r.document_id: r.tokens for r in tx.execute(_TOKENS_TO_EMBED, {"rows": keyed(claims)})}


def kept_keys(tx: Connection, claims: Sequence[Claim]) -> set[str]:
    """Keys that the generations share with the live ones."""
    return set(tx.execute(_KEPT_KEYS, {"rows": keyed(claims)}).scalars())


def without_keys(tx: Connection, claims: Sequence[Claim]) -> set[str]:
    """Undecided documents with a chunk that has no key, also because the one that it kept was found lost meanwhile."""
    return set(tx.execute(_WITHOUT_KEYS, {"rows": keyed(claims)}).scalars())


def _lock_fenced(tx: Connection, claims: Sequence[Claim]) -> set[str]:
    return set(tx.execute(_LOCK_FENCED, {"rows": keyed(claims)}).scalars())


def retire_attempts(tx: Connection, claims: Sequence[Claim]) -> None:
    """Name for the sweep what earlier workers may have inserted for these generations."""
    if claims:
        tx.execute(_RETIRE_ATTEMPT, {"rows": keyed(claims), "dataset_id": claims[0].dataset_id})


def assign_keys(tx: Connection, claims: Sequence[Claim], lost: Collection[str] = ()) -> list[FreshChunk]:
    """Give the chunks to embed this worker's keys, and name an earlier worker's keys for the sweep.

    `lost`: of the kept keys, those whose vectors are to be made anew. A key is md5(document, generation, fence,
    ordinal): inserted at most once, never reused. Documents whose fence was lost have no chunk in the answer.
    """
    held = _lock_fenced(tx, claims)
    mine = [c for c in claims if c.document_id in held]
    if not mine:
        return []
    rows = keyed(mine)
    retire_attempts(tx, mine)
    tx.execute(_ASSIGN_KEYS, {"rows": rows, "lost": list(lost)})
    return [FreshChunk(*row) for row in tx.execute(_FRESH_CHUNKS, {"rows": rows})]


def held(tx: Connection, claims: Sequence[Claim]) -> set[str]:
    """The documents that nobody took over; nobody can until the transaction ends."""
    return _lock_fenced(tx, claims)


def held_behind_inserts(tx: Connection, claims: Sequence[Claim], inserted: Sequence[FreshChunk]) -> set[str]:
    """`held`, and what was inserted for documents that others took over meanwhile is named for the sweep.

    They named it, too, but may have swept it before it was there. The receipt of a document that was deleted is given
    again when that is gone.
    """
    ours = {r.document_id for r in tx.execute(_LOCK_WHOSEVER, {"rows": keyed(claims)}) if r.is_ours}
    if inert := [c for c in inserted if c.document_id not in ours]:
        rows = recordset({"key": c.key, "document_id": c.document_id} for c in inert)
        tx.execute(_RETIRE_INERT, {"rows": rows, "dataset_id": claims[0].dataset_id})
        tx.execute(_TAKE_RECEIPTS_BACK, {"ids": sorted({c.document_id for c in inert})})
    return ours


def decided(tx: Connection, claims: Sequence[Claim]) -> set[str]:
    """Documents whose decision an earlier worker made."""
    return set(tx.execute(_DECIDED, {"rows": keyed(claims)}).scalars())


def decide(tx: Connection, claims: Sequence[Claim]) -> set[str]:
    """The decision: every vector was read back, from here the documents only go forward. Returns those still ours."""
    held = _lock_fenced(tx, claims)
    mine = [c for c in claims if c.document_id in held]
    tx.execute(_DECIDE, {"rows": keyed(mine)})
    tx.execute(_JOBS_INDEXED, {"ids": id_array(c.job_id for c in mine)})
    return held


def publish(tx: Connection, claims: Sequence[Claim]) -> set[str]:
    """Make the claimed generations live: content, status, job and manifest in one transaction.

    A document whose input changed meanwhile is left `uploaded`, with what was done for it; its next claim goes on with
    that or drops it. One whose fence was lost is left alone. Returns the documents that are now `ready`.
    """
    before = lock_documents(tx, [c.document_id for c in claims])
    held = _lock_fenced(tx, claims)
    statuses = {r.document_id: r.status for r in tx.execute(_PUBLISH, {"ids": id_array(held), "ids_text": list(held)})}
    published = statuses.keys()
    tx.execute(_SET_GENERATION_LIVE, {"ids": list(published)})
    tx.execute(_SET_LIVE, {"ids": list(published), "inline": INLINE})
    tx.execute(_CLEAR_ERRORS, {"ids": [i for i, status in statuses.items() if status != "failed"]})
    close_jobs(tx, [c.job_id for c in claims if c.document_id in published], "completed")
    _set_overtaken(tx, [c for c in claims if c.document_id in held - published], before)
    discard_others(tx, list(published))
    return set(published)


def confirm(tx: Connection, claims: Sequence[Claim]) -> set[str]:
    """End the attempts whose input and configuration are those of the live generation: it stays as it is.

    A document whose input changed meanwhile is left `uploaded`, one whose fence was lost is left alone. Returns the
    documents that are `ready`.
    """
    if not claims:
        return set()
    statuses = lock_documents(tx, [c.document_id for c in claims])
    held = _lock_fenced(tx, claims)
    confirmed = {i for i in held if statuses.get(i) in {"processing", "ready"}}
    tx.execute(_SET_READY, {"ids": id_array(confirmed)})
    tx.execute(_SET_CONFIRMED, {"ids": list(confirmed)})
    close_jobs(tx, [c.job_id for c in claims if c.document_id in confirmed], "completed")
    _set_overtaken(tx, [c for c in claims if c.document_id in held - confirmed], statuses)
    discard_others(tx, list(confirmed))
    return confirmed


def _set_overtaken(tx: Connection, claims: Sequence[Claim], statuses: Mapping[str, str]) -> None:
    """What is done is kept for the newer input, which may be the same bytes."""
    if claims:
        ids = [c.document_id for c in claims]
        tx.execute(_SET_OVERTAKEN, {"ids": ids})
        close_jobs(tx, [c.job_id for c in claims], "canceled")
        discard_others(tx, [i for i in ids if statuses.get(i) != "uploaded"])


def undelivered(tx: Connection, document_ids: Sequence[str]) -> list[tuple[str, int]]:
    """The (document, generation)s that are in work, or were until an upload came, and of which nothing is live."""
    return [(r.document_id, r.generation) for r in tx.execute(_UNDELIVERED, {"ids": list(document_ids)})]


def discard_others(tx: Connection, document_ids: Sequence[str]) -> None:
    """Drop what is neither live nor in flight; keys that nothing else holds are named for the sweep."""
    having = list(tx.execute(_HAVE_OTHERS, {"ids": list(document_ids)}).scalars())
    if not having:
        return
    for statement in (_RETIRE_OTHERS, _DELETE_OTHER_CHUNKS, _DELETE_OTHER_GENERATIONS):
        tx.execute(statement, {"ids": having})
