"""Queueing documents again: failed ones, stale ones, all of a dataset's.

Belongs here: what a reprocessing or a repair writes before any work, and what they are for. Does not: claims.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from fltr_pipeline.models import ReprocessMode
from fltr_pipeline.stores.database import id_array, recordset
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.jobs import insert_jobs
from fltr_pipeline.stores.fltr.locks import lock_documents, lock_unheld
from fltr_pipeline.stores.fltr.quarantine import readmit


@dataclass(frozen=True, slots=True)
class Redo:
    """What of a dataset is to be done again, and under which configuration; each mode includes the ones before it:
    pending, failed, stale, all.

    Whoever asks for every failure lets quarantined contents in again, and with `all` those of ready documents, too.
    """

    dataset_id: str
    mode: ReprocessMode
    fingerprint: str
    extractor: str
    tried_with: str
    billable: bool
    """Of ready documents; the redo of a failed one is charged as its upload is."""
    retryable: Sequence[str] | None = None
    """Codes of the failures to try again, beside those that another than today's extractor had; None: every failure."""


_WITH_LIVE = {ReprocessMode.stale, ReprocessMode.all}

# Primary key.
_QUARANTINED = """EXISTS (
    SELECT FROM pipeline.quarantine q
    WHERE q.source_sha256 = {content} AND q.tried_with = :tried_with AND q.in_force)"""

# Quarantined under what is not used any more: it may be tried again.
_READMITTED = f"(p.error_code = 'quarantined' AND NOT {_QUARANTINED.format(content='p.quarantine_sha256')})"

# Of no kind that was read, or without a text layer: another extractor may read it (one with OCR).
_READABLE = """(p.error_code IN ('no_text_layer', 'unsupported')
                AND p.error_extractor IS DISTINCT FROM :extractor)"""

# Today's extractor could not read the file, by the document's own fault, or is not to try.
_UNREADABLE = f"(p.error_extractor IS NOT DISTINCT FROM :extractor OR {_QUARANTINED.format(content='g.source_sha256')})"

# Of another configuration, and not known to fail under this one. The configuration may have changed between a
# document's extraction and its plan, from which it has its fingerprint.
_STALE = f"""(
    (g.fingerprint IS DISTINCT FROM :fingerprint OR g.extractor <> :extractor) AND NOT {_UNREADABLE})"""

# While the version before it is being made anew, only for who asks for failures alone.
_TO_TRY_AGAIN = f"""d.status = 'failed'
      AND (:failures_alone OR NOT EXISTS (SELECT FROM pipeline.documents p
                                          WHERE p.document_id = d.id::text AND p.stage IS NOT NULL))
      AND (:every_failure OR EXISTS (SELECT FROM pipeline.documents p
                                     WHERE p.document_id = d.id::text
                                       AND (p.error_code = ANY(:retryable) OR {_READMITTED} OR {_READABLE})))"""  # noqa: S608 - of constants

# A document in flight or uploaded anew is on its way already.
_IDLE = """p.live_generation IS NOT NULL AND p.stage IS NULL
      AND g.document_id = p.document_id AND g.generation = p.live_generation AND d.id::text = p.document_id"""
_TO_MAKE_ANEW = f"d.status = 'ready' AND (:everything OR {_STALE})"

# What is searchable of a document whose newer input failed, or that can't be read anew: of another configuration, and
# its text is still there, so that its extractor does not matter. Where workers died at the content, a repair would be
# turned away.
_STALE_BEHIND_A_FAILURE = f"""(
    g.fingerprint IS DISTINCT FROM :fingerprint AND (d.status = 'failed' OR d.status = 'ready' AND {_UNREADABLE})
    AND NOT {_QUARANTINED.format(content="g.source_sha256 AND q.code = 'gave_up'")}
    AND encode(sha256(convert_to(d.content, 'UTF8')), 'hex') = g.text_sha256)"""

# Index: documents by dataset.
_FAILED = text(f"SELECT d.id::text FROM public.documents d WHERE d.dataset_id = :of_dataset AND {_TO_TRY_AGAIN}")  # noqa: S608 - of constants

# What was moved on since it was chosen is another owner's, who asked for nothing. In words that no index answers: that
# of a large dataset would be read for each page.
_STILL_HERE = "(d.dataset_id = :of_dataset) IS TRUE"

# Primary key.
_REQUEUE_FAILED = text(f"""
    UPDATE public.documents d SET status = 'uploaded' WHERE d.id = ANY(:ids) AND {_STILL_HERE} AND {_TO_TRY_AGAIN}
    RETURNING d.id::text
""")  # noqa: S608 - of constants

# Index: pipeline.documents_live.
_LIVE = text(f"""
    SELECT p.document_id FROM pipeline.documents p, pipeline.generations g, public.documents d
    WHERE p.dataset_id = :dataset_id AND d.dataset_id = :of_dataset AND {_IDLE}
      AND ({_TO_MAKE_ANEW} OR {_STALE_BEHIND_A_FAILURE})
""")  # noqa: S608 - of constants

# Primary keys, one row after the other: with the ids of both, each row of the one may be held against all of the other.
# The rows are locked in id order, as others lock them who have no need of the public ones (`manifest.lose`).
_REQUEUE_LIVE = text(f"""
    WITH chosen AS MATERIALIZED (
        SELECT p.document_id, d.updated_at::text AS input_version
        FROM pipeline.documents p, pipeline.generations g, public.documents d
        WHERE d.id = ANY(:ids) AND {_STILL_HERE} AND {_IDLE} AND {_TO_MAKE_ANEW}
        ORDER BY p.document_id FOR UPDATE OF p
    )
    UPDATE pipeline.documents p
    SET stage = 'extract', generation = p.generation + 1, billable = :billable, input_version = chosen.input_version,
        lease_until = NULL, retry_at = NULL, attempts = 0, retries = 0, credits_needed = NULL, job_id = NULL,
        error_extractor = NULL
    FROM chosen WHERE p.document_id = chosen.document_id
    RETURNING p.document_id
""")  # noqa: S608 - of constants

# Primary keys.
_BEHIND_FAILURES = text(f"""
    SELECT p.document_id FROM pipeline.documents p, pipeline.generations g, public.documents d
    WHERE d.id = ANY(:ids) AND {_STILL_HERE} AND {_IDLE} AND {_STALE_BEHIND_A_FAILURE}
""")  # noqa: S608 - of constants

# What a nightly backfill is for: another configuration than today's, or a failure that was not the document's own.
_BACKFILL = text(f"""
    SELECT DISTINCT p.dataset_id
    FROM pipeline.documents p
    LEFT JOIN pipeline.generations g ON g.document_id = p.document_id AND g.generation = p.live_generation
    JOIN public.documents d ON d.id::text = p.document_id
    WHERE p.stage IS NULL
      AND ((d.status = 'ready' AND p.live_generation IS NOT NULL AND {_STALE}) OR {_STALE_BEHIND_A_FAILURE}
           OR (d.status = 'failed' AND (p.error_code = ANY(:retryable) OR {_READMITTED} OR {_READABLE})))
    ORDER BY 1
""")  # noqa: S608 - of constants

# Index: pipeline.chunks_lost. A live chunk without a key has lost its vector. Where workers died at the content, a
# repair would be turned away, pass after pass.
_LOST = text(f"""
    SELECT DISTINCT p.document_id
    FROM pipeline.chunks c
    JOIN pipeline.documents p ON p.document_id = c.document_id AND p.live_generation = c.generation
    JOIN pipeline.generations g ON g.document_id = c.document_id AND g.generation = c.generation
    WHERE c.key IS NULL AND NOT c.fresh AND c.document_id > :after AND p.stage IS NULL
      AND NOT {_QUARANTINED.format(content="g.source_sha256 AND q.code = 'gave_up'")}
    ORDER BY p.document_id LIMIT :limit
""")  # noqa: S608 - of constants

_LOCK_IDLE = text("""
    SELECT document_id FROM pipeline.documents WHERE document_id = ANY(:ids) AND stage IS NULL
    ORDER BY document_id FOR UPDATE
""")

# The live text itself, so that neither the file nor a parser is needed. (`content` may be a newer inline text.) Of a
# document that was moved and is not yet made anew, nothing else says which that is.
_STAGE_LIVE_TEXT = text("""
    INSERT INTO pipeline.generations
        (document_id, generation, state, extractor, source_sha256, source_bytes, kind, engine, text, text_sha256,
         pages, blank_pages, ocr_pages, ocr_confidence)
    SELECT p.document_id, p.generation + 1, 'staged', l.extractor, l.source_sha256, l.source_bytes, l.kind, l.engine,
           d.content, l.text_sha256, l.pages, l.blank_pages,
           l.ocr_pages, l.ocr_confidence
    FROM pipeline.documents p
    JOIN pipeline.generations l ON l.document_id = p.document_id AND l.state = 'live'
    JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = p.document_id
    WHERE p.document_id = ANY(:ids_text) AND d.status IN ('ready', 'failed')
      AND encode(sha256(convert_to(d.content, 'UTF8')), 'hex') = l.text_sha256
    RETURNING document_id
""")

# Primary key. Free: the customer asked for nothing.
_START_AT = text("""
    UPDATE pipeline.documents
    SET stage = :stage, generation = generation + 1, billable = false, lease_until = NULL, retry_at = NULL,
        attempts = 0, retries = 0, credits_needed = NULL, job_id = NULL
    WHERE document_id = ANY(:ids)
    RETURNING document_id
""")

# Primary keys.
_JOBS_OF = text(
    "SELECT document_id, job_id FROM pipeline.documents WHERE document_id = ANY(:ids) AND job_id IS NOT NULL"
)
_BEGUN_SINCE = text("SELECT id::text FROM public.processing_jobs WHERE id = ANY(:ids) AND created_at >= :since")

# Primary key.
_MAKE_FREE = text("""
    UPDATE pipeline.documents p SET billable = false
    FROM json_to_recordset(:rows) AS r(document_id text, fence bigint)
    WHERE p.document_id = r.document_id AND p.fence = r.fence
""")

# Primary keys.
_WITHDRAWN = text("""
    SELECT p.document_id
    FROM pipeline.documents p JOIN public.documents d ON d.id = ANY(:ids) AND d.id::text = p.document_id
    WHERE p.document_id = ANY(:ids_text) AND d.status = 'ready' AND p.stage IS NULL AND p.live_generation IS NULL
      AND p.dataset_id <> ALL(:but_of)
""")


def choose(tx: Connection, redo: Redo) -> list[str]:
    """The documents to be done again, by now; nothing is locked."""
    chosen: list[str] = []
    if redo.mode is not ReprocessMode.pending:
        chosen += tx.execute(_FAILED, _asked(redo)).scalars()
    if redo.mode in _WITH_LIVE:
        chosen += tx.execute(_LIVE, _asked(redo)).scalars()
    return list(dict.fromkeys(chosen))


def begun_since(tx: Connection, document_ids: Sequence[str], since: datetime) -> set[str]:
    """Those of the documents of which an attempt was queued or begun at that time or later."""
    jobs = {r.job_id: r.document_id for r in tx.execute(_JOBS_OF, {"ids": list(document_ids)})}
    return {jobs[i] for i in tx.execute(_BEGUN_SINCE, {"ids": id_array(jobs), "since": since}).scalars()}


def requeue(tx: Connection, redo: Redo, document_ids: Sequence[str]) -> int:
    """Queue those of the documents that are still to be done again; returns how many.

    Failed documents become `uploaded`; ready ones stay ready and searchable while a new generation is made. Where an
    older version of a failed one is searchable and stale, that is made anew first, free, and the document stays
    `failed`; what today's extractor can't read is made anew, free, from its text. May be repeated: what is on its way
    is left alone.
    """
    # As everywhere, public rows are locked first and in id order; not the others, for a lock writes its row.
    statuses = lock_documents(tx, document_ids)
    failed = [i for i, status in statuses.items() if status == "failed"]
    live = [i for i, status in statuses.items() if status == "ready" and redo.mode in _WITH_LIVE]
    anew = []
    if live:
        anew = list(tx.execute(_REQUEUE_LIVE, _asked(redo) | {"ids": id_array(live)}).scalars())
        insert_jobs(tx, anew, "queued")
        if redo.mode is ReprocessMode.all:
            readmit(tx, anew)
    left = sorted({*failed, *live} - {*anew})
    repaired = _repair_behind(tx, redo, left) if redo.mode in _WITH_LIVE else set()
    if failed := [i for i in failed if i not in repaired]:
        failed = list(tx.execute(_REQUEUE_FAILED, _asked(redo) | {"ids": id_array(failed)}).scalars())
        if redo.retryable is None:
            readmit(tx, failed)
    return len(repaired) + len(failed) + len(anew)


def _repair_behind(tx: Connection, redo: Redo, document_ids: Sequence[str]) -> set[str]:
    """Queue the searchable versions that are stale, of documents that failed or can't be read anew."""
    if not document_ids:
        return set()
    behind = list(tx.execute(_BEHIND_FAILURES, _asked(redo) | {"ids": id_array(document_ids)}).scalars())
    if behind:
        repair(tx, behind)
    return set(behind)


def _asked(redo: Redo) -> dict[str, object]:
    return asdict(redo) | {
        "of_dataset": redo.dataset_id,
        "every_failure": redo.retryable is None,
        "failures_alone": redo.mode is ReprocessMode.failed,
        "retryable": list(redo.retryable or ()),
        "everything": redo.mode is ReprocessMode.all,
    }


def backfill_candidates(
    tx: Connection, *, fingerprint: str, extractor: str, tried_with: str, retryable: Sequence[str]
) -> list[str]:
    """Datasets with stale versions, or with failures of a code in `retryable`, or that may end otherwise today."""
    parameters = {"fingerprint": fingerprint, "extractor": extractor, "tried_with": tried_with}
    return list(tx.execute(_BACKFILL, parameters | {"retryable": list(retryable)}).scalars())


def lost(tx: Connection, after: str, limit: int, *, tried_with: str) -> list[str]:
    """The next searchable documents behind that id that have lost vectors, and that nothing is done about yet.

    Not those whose content workers died at under the configuration `tried_with`.
    """
    return list(tx.execute(_LOST, {"after": after, "limit": limit, "tried_with": tried_with}).scalars())


def repair(tx: Connection, document_ids: Sequence[str]) -> set[str]:
    """Queue documents for a new generation of the text that is live, for its vectors' sake; returns which.

    They stay searchable as they are. Where that text is no longer in `content`, a `ready` document is extracted again.
    """
    statuses = lock_documents(tx, document_ids)
    idle = list(tx.execute(_LOCK_IDLE, {"ids": list(document_ids)}).scalars())
    staged = set(tx.execute(_STAGE_LIVE_TEXT, {"ids": id_array(idle), "ids_text": idle}).scalars())
    from_the_file = [i for i in idle if i not in staged and statuses.get(i) == "ready"]
    _start(tx, sorted(staged), "plan")
    _start(tx, from_the_file, "extract")
    return staged.union(from_the_file)


def make_free(tx: Connection, claims: Sequence[Claim]) -> None:
    """What is still to be done for these is a repair, though the customer uploaded the file again."""
    if claims:
        rows = recordset({"document_id": c.document_id, "fence": c.fence} for c in claims)
        tx.execute(_MAKE_FREE, {"rows": rows})


def restore(tx: Connection, document_ids: Sequence[str], *, but_of: Sequence[str]) -> int:
    """Queue what is `ready` and was withdrawn, other than in the datasets `but_of`; returns how many.

    It was withdrawn because its dataset's owner was gone, and now there is one. What somebody holds locked is left.
    """
    parameters: dict[str, object] = {"but_of": list(but_of)}
    parameters |= {"ids": id_array(document_ids), "ids_text": list(document_ids)}
    found = list(tx.execute(_WITHDRAWN, parameters).scalars())
    if not found:
        return 0
    free = lock_unheld(tx, found)
    tx.execute(_LOCK_IDLE, {"ids": free})
    parameters |= {"ids": id_array(free), "ids_text": free}
    again = list(tx.execute(_WITHDRAWN, parameters).scalars())
    _start(tx, again, "extract")
    return len(again)


def _start(tx: Connection, document_ids: Sequence[str], stage: str) -> None:
    insert_jobs(tx, list(tx.execute(_START_AT, {"ids": list(document_ids), "stage": stage}).scalars()), "queued")
