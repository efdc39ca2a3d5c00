"""Jobs: the row of `public.processing_jobs` that each attempt at a document has.

Belongs here: how a job begins and ends. Does not: when (claims, generations, requeue). Found by their primary key.
"""

import uuid
from collections.abc import Sequence

from sqlalchemy import Connection, text

from fltr_pipeline.stores.database import id_array, recordset

_CLOSE_JOBS = text("""
    UPDATE public.processing_jobs SET status = :status, updated_at = now()
    WHERE id = ANY(:ids) AND status IN ('queued', 'running', 'indexed')
""")

_START_JOBS = text(
    "UPDATE public.processing_jobs SET status = 'running', updated_at = now() "
    "WHERE id = ANY(:ids) AND status = 'queued'"
)

_INSERT_JOBS = text("""
    INSERT INTO public.processing_jobs (id, document_id, status, created_at, updated_at)
    SELECT r.id, r.document_id, :status, now(), now()
    FROM json_populate_recordset(NULL::public.processing_jobs, :rows) AS r
""")

_SET_JOBS = text("""
    UPDATE pipeline.documents p SET job_id = r.id
    FROM json_to_recordset(:rows) AS r(id text, document_id text) WHERE p.document_id = r.document_id
""")


def insert_jobs(tx: Connection, document_ids: Sequence[str], status: str) -> dict[str, str]:
    """A new job row per document; returns document id → job id."""
    rows = [{"id": str(uuid.uuid4()), "document_id": i} for i in document_ids]
    if rows:
        tx.execute(_INSERT_JOBS, {"rows": recordset(rows), "status": status})
        tx.execute(_SET_JOBS, {"rows": recordset(rows)})
    return {r["document_id"]: r["id"] for r in rows}


def start_jobs(tx: Connection, job_ids: Sequence[str]) -> None:
    """Their wait is over."""
    tx.execute(_START_JOBS, {"ids": id_array(job_ids)})


def close_jobs(tx: Connection, job_ids: Sequence[str], status: str) -> None:
    """End the jobs that are still open."""
    if job_ids:
        tx.execute(_CLOSE_JOBS, {"ids": id_array(job_ids), "status": status})
