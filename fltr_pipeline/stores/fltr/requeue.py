"""Queueing documents again: failed ones, stale ones, all of a dataset's.

Belongs here: what a reprocessing writes before any work, and which datasets a backfill is for. Does not: claims.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.stores.fltr.claims import insert_jobs
from fltr_pipeline.stores.fltr.quarantine import readmit

# Primary key.
_QUARANTINED = """EXISTS (
    SELECT FROM pipeline.quarantine q
    WHERE q.source_sha256 = {content} AND q.tried_with = :tried_with AND q.in_force)"""

# Quarantined under what is not used any more: it may be tried again.
_READMITTED = f"(p.error_code = 'quarantined' AND NOT {_QUARANTINED.format(content='p.quarantine_sha256')})"

# Of another configuration, and not known to fail under this one.
_STALE = f"(g.fingerprint IS DISTINCT FROM :fingerprint AND NOT {_QUARANTINED.format(content='g.source_sha256')})"

# As everywhere, public rows are locked first and in id order.
_LOCK_ENDED = text("""
    SELECT id FROM public.documents
    WHERE dataset_id = :dataset_id AND status IN ('ready', 'failed') ORDER BY id FOR UPDATE
""")

_REQUEUE_FAILED = text(f"""
    UPDATE public.documents d SET status = 'uploaded'
    WHERE d.dataset_id = :dataset_id AND d.status = 'failed'
      AND (:every_failure OR EXISTS (SELECT FROM pipeline.documents p
                                     WHERE p.document_id = d.id::text
                                       AND (p.error_code = ANY(:retryable) OR {_READMITTED})))
    RETURNING d.id::text
""")  # noqa: S608 - of constants

# Index: pipeline.documents_live. A document in flight or uploaded anew is on its way already.
_REQUEUE_LIVE = text(f"""
    UPDATE pipeline.documents p
    SET stage = 'extract', generation = p.generation + 1, billable = :billable, input_version = d.updated_at::text,
        lease_until = NULL, retry_at = NULL, attempts = 0, retries = 0, credits_needed = NULL, job_id = NULL
    FROM pipeline.generations g, public.documents d
    WHERE p.dataset_id = :dataset_id AND p.live_generation IS NOT NULL AND p.stage IS NULL
      AND g.document_id = p.document_id AND g.generation = p.live_generation
      AND d.dataset_id = :of_dataset AND d.id::text = p.document_id AND d.status = 'ready'
      AND (:everything OR {_STALE})
    RETURNING p.document_id
""")  # noqa: S608 - of constants

# What a nightly backfill is for: another configuration than today's, or a failure that was not the document's own.
_BACKFILL = text(f"""
    SELECT DISTINCT p.dataset_id
    FROM pipeline.documents p
    LEFT JOIN pipeline.generations g ON g.document_id = p.document_id AND g.generation = p.live_generation
    JOIN public.documents d ON d.id::text = p.document_id
    WHERE p.stage IS NULL
      AND ((d.status = 'ready' AND {_STALE})
           OR (d.status = 'failed' AND (p.error_code = ANY(:retryable) OR {_READMITTED})))
    ORDER BY 1
""")  # noqa: S608 - of constants


def requeue(
    tx: Connection,
    dataset_id: str,
    mode: ReprocessMode,
    *,
    fingerprint: str,
    tried_with: str,
    billable: bool,
    retryable: Sequence[str] | None = None,
) -> int:
    """Queue documents again; each mode includes the ones before it: pending, failed, stale, all.

    Failed documents (of the codes in `retryable`, or all) become `uploaded`; ready ones stay ready and searchable while
    a new generation is made. May be repeated: what is on its way is left alone. Whoever asks for every
    failure lets quarantined contents in again, and with `all` those of ready documents, too.
    """
    if mode is ReprocessMode.pending:
        return 0
    tx.execute(_LOCK_ENDED, {"dataset_id": dataset_id})
    codes = {"every_failure": retryable is None, "retryable": list(retryable or ()), "tried_with": tried_with}
    failed = list(tx.execute(_REQUEUE_FAILED, {"dataset_id": dataset_id, **codes}).scalars())
    if retryable is None:
        readmit(tx, failed)
    if mode is ReprocessMode.failed:
        return len(failed)
    parameters = {
        "dataset_id": dataset_id, "of_dataset": dataset_id, "billable": billable,
        "fingerprint": fingerprint, "tried_with": tried_with, "everything": mode is ReprocessMode.all,
    }  # fmt: skip
    live = list(tx.execute(_REQUEUE_LIVE, parameters).scalars())
    insert_jobs(tx, live, "queued")
    if mode is ReprocessMode.all:
        readmit(tx, live)
    return len(failed) + len(live)


def backfill_candidates(tx: Connection, *, fingerprint: str, tried_with: str, retryable: Sequence[str]) -> list[str]:
    """Datasets with stale documents, or with failures of a code in `retryable`, or of contents readmitted since."""
    parameters = {"fingerprint": fingerprint, "tried_with": tried_with, "retryable": list(retryable)}
    return list(tx.execute(_BACKFILL, parameters).scalars())
