"""What dead workers left: documents whose lease ran out, and parked ones whose charge was never closed.

Belongs here: taking such documents in hand for a sweep, and putting them back. Does not: claims for work (claims).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from fltr_pipeline.stores.database import id_array, recordset
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.generations import keyed
from fltr_pipeline.stores.fltr.jobs import close_jobs
from fltr_pipeline.stores.fltr.locks import lock_unheld


@dataclass(frozen=True, slots=True)
class Taken:
    """A document in a sweep's hands. `decided`: its vectors were all read back, so it only goes forward."""

    claim: Claim
    decided: bool


@dataclass(frozen=True, slots=True)
class Delivered:
    """What the work on a generation came to."""

    kind: str
    pages: int
    characters: int
    fresh_tokens: int
    ocr_pages: int


# Index: pipeline.documents_leased, then pipeline.charges_open. What awaits credits has no hold, but a late one that
# a full pass finds. A sweep takes no row that is being written, and waits for none: any number may run beside others.
_FOUND = text("""
    SELECT d.document_id FROM pipeline.documents d
    WHERE d.document_id IN (
        SELECT document_id FROM pipeline.documents WHERE lease_until < now() AND stage IS NOT NULL
        UNION
        SELECT w.document_id FROM pipeline.charges c
        JOIN pipeline.documents w ON w.document_id = c.subject_id AND w.generation = c.generation
        WHERE c.state = 'open' AND c.amount > 0 AND c.created_at < now() - make_interval(secs => :age)
          AND w.stage IS NOT NULL AND w.lease_until IS NULL AND w.credits_needed IS NULL)
      AND d.stage IS NOT NULL AND (d.lease_until IS NULL OR d.lease_until < now()) AND d.document_id > :after
    ORDER BY d.document_id LIMIT :limit
    FOR UPDATE OF d SKIP LOCKED
""")

# Primary keys.
_TAKE = text("""
    UPDATE pipeline.documents p
    SET fence = p.fence + 1, lease_until = now() + make_interval(secs => :lease), run_id = '',
        job_id = CASE WHEN o.died AND NOT o.decided THEN NULL ELSE p.job_id END,
        attempts = p.attempts + (o.died AND p.run_id <> '')::int
    FROM (
        SELECT d.document_id, d.job_id, d.lease_until IS NOT NULL AS died,
               d.stage = 'embed' AND coalesce(g.state = 'indexed', false) AS decided
        FROM pipeline.documents d
        LEFT JOIN pipeline.generations g ON g.document_id = d.document_id AND g.generation = d.generation
                                        AND g.document_id = ANY(:ids)
        WHERE d.document_id = ANY(:ids)
    ) o
    WHERE p.document_id = o.document_id AND p.document_id = ANY(:ids)
    RETURNING p.document_id, p.dataset_id, '' AS filename, p.generation, p.live_generation, p.fence,
              coalesce(o.job_id, '') AS job_id, p.billable, p.attempts, p.api_key_id, o.decided, o.died
""")

# The primary key's first columns. A generation's text moves to `content` when it is published.
_DELIVERED = text("""
    SELECT g.document_id, g.generation, g.kind, g.pages, coalesce(g.fresh_tokens, 0) AS fresh_tokens,
           coalesce(length(g.text), length(d.content), 0) AS characters, cardinality(g.ocr_pages) AS ocr_pages
    FROM pipeline.generations g
    JOIN json_to_recordset(:rows) AS r(document_id text, generation int) USING (document_id, generation)
    LEFT JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = g.document_id
""")

# Primary keys. An upload that somebody has claimed meanwhile is `uploaded` no more: the fence tells.
_DELIVERABLE = text("""
    SELECT p.document_id
    FROM json_to_recordset(:rows) AS r(document_id text, fence bigint)
    JOIN pipeline.documents p ON p.document_id = r.document_id AND p.fence = r.fence
    JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = p.document_id AND d.status <> 'uploaded'
    WHERE p.document_id = ANY(:ids_text)
""")

# Primary key.
_AWAITING = text("""
    SELECT document_id, generation FROM pipeline.documents
    WHERE document_id = ANY(:ids) AND stage IS NOT NULL AND lease_until IS NULL AND credits_needed IS NOT NULL
""")

_PARK = text("""
    UPDATE pipeline.documents p SET lease_until = NULL
    FROM json_to_recordset(:rows) AS r(document_id text, fence bigint)
    WHERE p.document_id = r.document_id AND p.fence = r.fence
""")

# Index: pipeline.charges_open.
_CHARGES_OVERDUE = text("""
    SELECT EXISTS (
            SELECT FROM pipeline.charges c LEFT JOIN pipeline.documents d ON d.document_id = c.subject_id
            WHERE c.state = 'open' AND c.created_at < now() - make_interval(secs => :age)
              AND (d.document_id IS NULL OR d.stage IS NULL OR d.generation <> c.generation))
        OR EXISTS (SELECT FROM pipeline.charges
                   WHERE state = 'refunding' AND closed_at < now() - make_interval(secs => :age))
""")


def take(tx: Connection, *, lease_seconds: float, age: float, limit: int) -> list[Taken]:
    """Take over documents whose lease ran out, or that are parked with a charge open for more than `age` seconds.

    A take-over is this one transaction: the fence rises, the dead worker's job is closed; only then may the ledger be
    touched. The lease taken belongs to no run, so that a sweep that dies counts as no worker that died. What somebody
    holds locked, perhaps to delete it with its job, is left.
    """
    ids = _lock_free(tx, age, limit)
    if not ids:
        return []
    rows = tx.execute(_TAKE, {"lease": lease_seconds, "ids": ids}).mappings().all()
    close_jobs(tx, [r["job_id"] for r in rows if r["died"] and not r["decided"] and r["job_id"]], "failed")
    taken = [Taken(Claim(**{k: v for k, v in r.items() if k not in {"decided", "died"}}), r["decided"]) for r in rows]
    return sorted(taken, key=lambda t: t.claim.document_id)


def _lock_free(tx: Connection, age: float, limit: int) -> list[str]:
    """Up to `limit` documents that a sweep may take; nobody holds them but this transaction."""
    free, after = list[str](), ""
    while len(free) < limit:
        found = list(tx.execute(_FOUND, {"age": age, "after": after, "limit": limit}).scalars())
        if not found:
            break
        free += lock_unheld(tx, found)
        after = found[-1]
    return free[:limit]


def delivered(tx: Connection, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Delivered]:
    """What the work on these (document, generation)s came to, of those that still are there."""
    rows = recordset({"document_id": i, "generation": n} for i, n in wanted)
    found = tx.execute(_DELIVERED, {"rows": rows, "ids": id_array(i for i, _ in wanted)})
    return {
        (r.document_id, r.generation): Delivered(r.kind, r.pages, r.characters, r.fresh_tokens, r.ocr_pages)
        for r in found
    }


def deliverable(tx: Connection, claims: Sequence[Claim]) -> set[str]:
    """Documents that nobody took over, and that are neither deleted nor uploaded anew."""
    ids = [c.document_id for c in claims]
    asked = {"rows": keyed(claims), "ids": id_array(ids), "ids_text": ids}
    return set(tx.execute(_DELIVERABLE, asked).scalars())


def awaiting_credits(tx: Connection, document_ids: Sequence[str]) -> set[tuple[str, int]]:
    """(document, generation) of those that were refused for want of credits."""
    return {(r.document_id, r.generation) for r in tx.execute(_AWAITING, {"ids": list(document_ids)})}


def overdue(tx: Connection, *, age: float, limit: int) -> bool:
    """Whether a sweep would end anything: a lease that ran out, or a charge open for more than `age` seconds.

    It locks as the sweep does, up to `limit` documents: what that would leave for being held counts for nothing.
    """
    return bool(_lock_free(tx, age, limit)) or bool(tx.execute(_CHARGES_OVERDUE, {"age": age}).scalar_one())


def park(tx: Connection, claims: Sequence[Claim]) -> None:
    """Put the documents back, for any worker to take."""
    rows = recordset({"document_id": c.document_id, "fence": c.fence} for c in claims)
    tx.execute(_PARK, {"rows": rows})
