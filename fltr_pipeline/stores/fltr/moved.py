"""Documents that were moved to another dataset without an upload: `UPDATE documents SET dataset_id`.

Belongs here: finding them, and queueing them in their new dataset. Does not: their files (pipeline.moves).

A vector carries its dataset, so a searchable document gets a new generation of the text that is live, free of charge;
until that is published, the one before it names the vectors that embedding takes over. An upload that is under way
when it is followed, or not yet claimed, is one to the new dataset, whose owner pays; what an attempt in the old one was
charged goes back, and what was searchable before it is not taken along.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import Connection, text

from fltr_pipeline.stores.database import id_array, recordset
from fltr_pipeline.stores.fltr.charges import mark_refunding
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.generations import discard_others, undelivered
from fltr_pipeline.stores.fltr.jobs import close_jobs
from fltr_pipeline.stores.fltr.locks import lock_unheld
from fltr_pipeline.stores.fltr.requeue import repair

NOT_COPIED = "file_not_copied"
"""Code of a failure: the file of a document could not follow it to another dataset."""


@dataclass(frozen=True, slots=True)
class Move:
    """A document, the dataset in which it was processed, and the one in which it is now."""

    document_id: str
    before: str
    now: str
    input_version: str
    """With another upload, its file may be another, too."""
    due: bool = field(compare=False)
    """False: it was put off, and is not yet to be tried again."""
    refusals: int = field(default=0, compare=False)
    """How many times in a row its file could not be copied, although the blob store answered."""
    uploaded_since: datetime | None = field(default=None, compare=False)
    """Of one that waits as an upload: when the input before it was uploaded."""


# Primary keys; datasets are few. A worker that has an older input in hand than was uploaded since is overtaken.
_AMONG = text("""
    SELECT p.document_id, p.dataset_id AS before, d.dataset_id::text AS now, d.updated_at::text AS input_version,
           p.retry_at IS NULL OR p.retry_at <= now() AS due,
           CASE WHEN p.error_code = :not_copied OR d.status = 'failed' AND p.stage IS NULL
                THEN p.retries ELSE 0 END AS refusals,
           CASE WHEN d.status = 'uploaded' THEN p.input_version END AS uploaded_since
    FROM pipeline.documents p JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = p.document_id
    WHERE p.document_id = ANY(:ids_text) AND p.dataset_id <> d.dataset_id::text
      AND (p.lease_until IS NULL OR p.lease_until < now() OR d.status = 'uploaded')
      AND EXISTS (SELECT FROM public.datasets s WHERE s.id::text = d.dataset_id::text)
    ORDER BY p.document_id
""")

# Primary key.
_NOW = text("SELECT dataset_id::text FROM public.documents WHERE id = ANY(:ids)")

# Index: pipeline.documents_by_stage.
_WAITING = text("""
    SELECT document_id FROM pipeline.documents
    WHERE dataset_id = :dataset_id AND stage IS NOT NULL AND (lease_until IS NULL OR lease_until < now())
""")

# Index: documents_waiting_idx, then the primary key, for each one: they are few beside all documents.
_ARRIVED = text("""
    SELECT d.id::text FROM public.documents d
    WHERE d.dataset_id = :dataset_id AND d.status = 'uploaded'
      AND EXISTS (SELECT FROM pipeline.documents p
                  WHERE p.document_id = d.id::text AND p.dataset_id <> d.dataset_id::text OFFSET 0)
""")

# Primary keys. One that was followed or moved on meanwhile is not touched. What failed keeps its own reason, which may
# be one to try again.
_PUT_OFF = text("""
    WITH free AS MATERIALIZED (
        SELECT p.document_id, r.refusal, p.error_code = :code OR d.id IS NOT NULL AND p.stage IS NULL AS counted,
               r.refusal IS NOT NULL AND d.id IS NULL AS told
        FROM json_to_recordset(:rows) AS r(document_id text, before text, refusal text)
        JOIN pipeline.documents p ON p.document_id = r.document_id AND p.dataset_id = r.before
        LEFT JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = r.document_id AND d.status = 'failed'
        ORDER BY p.document_id FOR UPDATE OF p SKIP LOCKED
    )
    UPDATE pipeline.documents p
    SET retry_at = now() + make_interval(secs => :seconds),
        retries = CASE WHEN f.refusal IS NULL THEN p.retries WHEN f.counted THEN p.retries + 1 ELSE 1 END,
        error_code = CASE WHEN f.told THEN :code ELSE p.error_code END,
        error_message = CASE WHEN f.told THEN f.refusal ELSE p.error_message END,
        error_at = CASE WHEN f.told THEN now() ELSE p.error_at END
    FROM free f WHERE p.document_id = f.document_id
""")

# Primary key. Who writes in a row has a hand on the document: it is left for the next pass.
_LOCK = text("""
    SELECT document_id, job_id FROM pipeline.documents
    WHERE document_id = ANY(:ids)
    ORDER BY document_id
    FOR UPDATE SKIP LOCKED
""")

# An attempt under way ends: what it was made for is elsewhere now. Another owner's API key pays for nothing here. An
# upload is to be paid for, also one that failed while the version before it is live or was made anew, for nothing.
_MOVE = text("""
    UPDATE pipeline.documents p
    SET dataset_id = d.dataset_id::text, fence = p.fence + 1, stage = NULL, lease_until = NULL, retry_at = NULL,
        credits_needed = NULL, attempts = 0, retries = 0,
        input_version = CASE WHEN d.status = 'ready' THEN d.updated_at::text ELSE p.input_version END,
        billable = p.billable OR p.live_generation IS NOT NULL OR (p.stage IS NOT NULL AND d.status = 'failed'),
        api_key_id = CASE WHEN (SELECT s.user_id FROM public.datasets s WHERE s.id::text = d.dataset_id::text)
                             = (SELECT s.user_id FROM public.datasets s WHERE s.id::text = p.dataset_id)
                          THEN p.api_key_id END
    FROM public.documents d
    WHERE d.id = ANY(:ids) AND d.id::text = p.document_id AND p.document_id = ANY(:ids_text)
""")

# Primary keys; datasets are few.
_KEYS = text("""
    SELECT k.document_id, k.api_key_id, s.user_id::text AS owner
    FROM pipeline.upload_keys k
    JOIN pipeline.documents p USING (document_id)
    JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = k.document_id
    JOIN public.datasets s ON s.id::text = d.dataset_id::text
    LEFT JOIN public.datasets b ON b.id::text = p.dataset_id
    WHERE k.document_id = ANY(:ids_text) AND s.user_id IS DISTINCT FROM b.user_id
""")

# Primary key. One that was named anew meanwhile is another upload's.
_FORGET_KEYS = text("""
    DELETE FROM pipeline.upload_keys k USING json_to_recordset(:rows) AS r(document_id text, api_key_id text)
    WHERE k.document_id = r.document_id AND k.api_key_id = r.api_key_id
""")

# Primary key. `updated_at` is the uploader's.
_UPLOAD = text("""
    UPDATE public.documents SET status = :status
    WHERE id = ANY(:ids) AND status IN ('uploaded', 'processing', 'awaiting_credits')
    RETURNING id::text
""")

# Primary keys. What failed before the move is not tried again either: in the new dataset there may be an older file.
_TELL_LOST = text("""
    UPDATE pipeline.documents p SET error_code = :code, error_message = r.refusal, error_at = now()
    FROM json_to_recordset(:rows) AS r(document_id text, refusal text)
    JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = r.document_id AND d.status = 'failed'
    WHERE p.document_id = r.document_id
""")

# Primary key. Its vectors are in the other dataset: search finds them in neither.
_NOT_LIVE = text("UPDATE pipeline.documents SET live_generation = NULL WHERE document_id = ANY(:ids)")

# The primary keys' first columns. The generation that was live before the move is the only one that says so.
_SOURCES = text("""
    SELECT c.key, min(l.key) AS source
    FROM json_to_recordset(:rows) AS r(document_id text, generation int)
    JOIN pipeline.documents p ON p.document_id = r.document_id AND p.live_generation IS NULL
    JOIN pipeline.generations g ON g.document_id = r.document_id AND g.generation = r.generation
    JOIN pipeline.generations before ON before.document_id = r.document_id AND before.state = 'live'
                                    AND before.fingerprint = g.fingerprint
    JOIN pipeline.chunks c ON c.document_id = r.document_id AND c.generation = r.generation AND c.fresh
    JOIN pipeline.chunks l ON l.document_id = r.document_id AND l.generation = before.generation
                          AND l.digest = c.digest AND l.key IS NOT NULL
    WHERE c.key IS NOT NULL
    GROUP BY c.key
""")


def among(tx: Connection, document_ids: Sequence[str]) -> list[Move]:
    """Those that were moved and on which nobody works, unless at an older input than was uploaded since."""
    parameters = {"ids": id_array(document_ids), "ids_text": list(document_ids), "not_copied": NOT_COPIED}
    return [
        Move(r.document_id, r.before, r.now, r.input_version, r.due, r.refusals, _time(r.uploaded_since))
        for r in tx.execute(_AMONG, parameters)
    ]


def dataset_now(tx: Connection, document_id: str) -> str:
    """Where a document is that could not be marked as uploaded, which has locked it."""
    return str(tx.execute(_NOW, {"ids": id_array([document_id])}).scalar_one())


def arrived(tx: Connection, dataset_id: str) -> list[str]:
    """Documents that wait as uploads in a dataset, and were moved to it."""
    return list(tx.execute(_ARRIVED, {"dataset_id": dataset_id}).scalars())


def upload_keys(tx: Connection, moves: Sequence[Move]) -> list[tuple[str, str, str]]:
    """(document id, API key's digest, its dataset's owner now) of the unclaimed uploads that went to another owner."""
    ids = [m.document_id for m in moves]
    found = tx.execute(_KEYS, {"ids": id_array(ids), "ids_text": ids})
    return [(r.document_id, r.api_key_id, r.owner) for r in found]


def waiting(tx: Connection, dataset_id: str) -> list[str]:
    """Documents that wait at a step of a dataset, also where they were moved since."""
    return list(tx.execute(_WAITING, {"dataset_id": dataset_id}).scalars())


def put_off(tx: Connection, moves: Mapping[Move, str | None], *, seconds: float) -> None:
    """Have those that can't be followed now tried again later; those with a reason are told of, and counted."""
    rows = recordset({"document_id": m.document_id, "before": m.before, "refusal": why} for m, why in moves.items())
    ids = id_array(m.document_id for m in moves)
    tx.execute(_PUT_OFF, {"rows": rows, "ids": ids, "code": NOT_COPIED, "seconds": seconds})


def follow(
    tx: Connection,
    moves: Sequence[Move],
    *,
    without_file: Mapping[Move, str] | None = None,
    without_key: Mapping[str, str] | None = None,
) -> int:
    """Queue moved documents in their new dataset; returns how many.

    What somebody works on by now, or was moved on or uploaded anew, or somebody holds locked, is left. Of those
    `without_file`, what is searchable stays so, and an upload fails, for that reason: in the new dataset there may be
    an older file. `without_key`: document id → digest of the API key that its upload named and that is of no use there.
    """
    locked = {r.document_id: r for r in tx.execute(_LOCK, {"ids": lock_unheld(tx, [m.document_id for m in moves])})}
    still = set(among(tx, list(locked)))
    found = [locked[m.document_id] for m in moves if m in still]
    ids = [r.document_id for r in found]
    mark_refunding(tx, undelivered(tx, ids))
    tx.execute(_MOVE, {"ids": id_array(ids), "ids_text": ids})
    if useless := {i: key for i, key in (without_key or {}).items() if i in ids}:
        rows = recordset({"document_id": i, "api_key_id": key} for i, key in useless.items())
        tx.execute(_FORGET_KEYS, {"rows": rows})
    close_jobs(tx, [r.job_id for r in found if r.job_id], "canceled")
    lost = {m.document_id: why for m, why in (without_file or {}).items() if m in still}
    unfinished = set[str]()
    for status, some in (("uploaded", set(ids) - lost.keys()), ("failed", lost.keys())):
        if some:
            unfinished.update(tx.execute(_UPLOAD, {"ids": id_array(sorted(some)), "status": status}).scalars())
    if lost:
        rows = recordset({"document_id": i, "refusal": why} for i, why in lost.items())
        tx.execute(_TELL_LOST, {"rows": rows, "ids": id_array(lost), "code": NOT_COPIED})
    anew = repair(tx, [i for i in ids if i not in unfinished])
    tx.execute(_NOT_LIVE, {"ids": ids})
    discard_others(tx, [i for i in ids if i not in anew])
    return len(ids)


def sources(tx: Connection, claims: Sequence[Claim]) -> dict[str, str]:
    """Keys to embed → keys of the same text's vectors in the dataset that the document was moved from."""
    moved = [c for c in claims if c.live_generation is None and not c.billable]
    if not moved:
        return {}
    rows = recordset({"document_id": c.document_id, "generation": c.generation} for c in moved)
    return {r.key: r.source for r in tx.execute(_SOURCES, {"rows": rows})}


def _time(input_version: str | None) -> datetime | None:
    """None, too, where the application's times are not ISO 8601."""
    with suppress(ValueError):
        time = datetime.fromisoformat(input_version or "")
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    return None
