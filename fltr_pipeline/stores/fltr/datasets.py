"""Datasets, uploads, and the counts that the sensor, `status` and the schedules read.

Belongs here: reads over a whole dataset or over all of them, and what an uploader writes. Does not: claims.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, text

from fltr_pipeline.models import Stage
from fltr_pipeline.stores.database import id_array, recordset


@dataclass(frozen=True, slots=True)
class Dataset:
    """A row of `public.datasets`."""

    id: str
    user_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in a dataset."""

    dataset_id: str
    user_id: str
    waiting: int
    oldest: datetime | None
    name: str = field(default="", compare=False)
    """Of the dataset, for people."""


@dataclass(frozen=True, slots=True)
class Awaiting:
    """Documents of a dataset that one pot could not pay for."""

    dataset_id: str
    user_id: str
    pot_kind: str
    pot_id: str
    documents: int
    least: int
    """Credits that the cheapest of them needs."""
    name: str = field(default="", compare=False)
    """Of the dataset, for people."""


@dataclass(frozen=True, slots=True)
class FailedDocument:
    """A document whose last attempt failed."""

    document_id: str
    filename: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class WorkInFlight:
    """Documents of a dataset whose next stage is `stage`; those that await credits don't count."""

    stage: str
    working: int
    """In a worker's hands."""
    waiting: int
    """For any worker."""
    retrying: int
    """After a transient failure, until their backoff is over."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Attempts that ended in the last processing window, and its length in seconds."""

    documents: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DatasetCounts:
    """A dataset with its documents by status."""

    dataset: Dataset
    documents: dict[str, int]


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """A dataset at a glance."""

    dataset: Dataset
    documents: dict[str, int]
    """Documents by status."""
    pages: int
    ocr_pages: int
    """Those whose text was read from their pictures."""
    ocr_confidence: float | None
    """Their mean, from 0 to 1; None: there are none."""
    chunks: int
    tokens: int
    seconds: float | None
    """From the first upload to the last publish."""
    failures: tuple[FailedDocument, ...]


_BY_ID = text("SELECT id::text, user_id::text, name FROM public.datasets WHERE id = ANY(:ids)")
_BY_NAME = text("SELECT id::text, user_id::text, name FROM public.datasets WHERE name = :name ORDER BY created_at, id")
_ALL = text("SELECT id::text, user_id::text, name FROM public.datasets ORDER BY created_at, id")

_INSERT_DATASET = text("""
    INSERT INTO public.datasets (id, user_id, name, description, created_at, updated_at)
    SELECT r.id, r.user_id, r.name, r.description, now(), now()
    FROM json_populate_recordset(NULL::public.datasets, :rows) AS r
""")

# Index: documents_waiting (status = 'uploaded'), then pipeline.documents_by_stage. An upload that was moved here waits
# for its file: where that can't be copied, no run has anything to do yet.
_BACKLOG = text("""
    SELECT w.dataset_id, s.user_id::text AS user_id, sum(w.waiting)::int AS waiting, min(w.oldest) AS oldest, s.name
    FROM (
        SELECT d.dataset_id::text AS dataset_id, count(*) AS waiting, min(d.updated_at)::timestamptz AS oldest
        FROM public.documents d WHERE d.status = 'uploaded'
          AND NOT EXISTS (SELECT FROM pipeline.documents p
                          WHERE p.document_id = d.id::text AND p.dataset_id <> d.dataset_id::text
                            AND p.retry_at > now() OFFSET 0)
        GROUP BY 1
        UNION ALL
        SELECT dataset_id, count(*), NULL FROM pipeline.documents
        WHERE stage IS NOT NULL AND credits_needed IS NULL
          AND (lease_until IS NULL OR lease_until < now()) AND (retry_at IS NULL OR retry_at <= now())
        GROUP BY 1
    ) w
    JOIN public.datasets s ON s.id::text = w.dataset_id
    GROUP BY w.dataset_id, s.user_id, s.name
    ORDER BY 1
""")

# Index: documents_waiting_idx and pipeline.documents_by_stage.
_WAITING_AT = text("""
    SELECT (SELECT count(*) FROM public.documents WHERE dataset_id = :of_dataset AND status = 'uploaded' AND :uploaded)
         + (SELECT count(*) FROM pipeline.documents
            WHERE dataset_id = :dataset_id AND stage = :stage AND (lease_until IS NULL OR lease_until < now())
              AND (retry_at IS NULL OR retry_at <= now()) AND (credits_needed IS NULL OR :unpaid))
""")

# Index: pipeline.documents_awaiting.
_AWAITING = text("""
    SELECT p.dataset_id, s.user_id::text AS user_id, p.pot_kind, p.pot_id, count(*)::int AS documents,
           min(p.credits_needed) AS least, s.name
    FROM pipeline.documents p JOIN public.datasets s ON s.id::text = p.dataset_id
    WHERE p.credits_needed IS NOT NULL AND p.lease_until IS NULL AND p.stage IS NOT NULL
    GROUP BY p.dataset_id, s.user_id, p.pot_kind, p.pot_id, s.name
    ORDER BY 1
""")

# Index: documents_dataset_id_idx (also below).
_COUNTS = text(
    "SELECT status, count(*)::int AS n FROM public.documents WHERE dataset_id = :dataset_id GROUP BY 1 ORDER BY 1"
)

# Reads all documents: for a person's look, not for a sensor.
_COUNTS_OF_ALL = text("""
    SELECT s.id::text AS id, s.user_id::text AS user_id, s.name, d.status, count(d.id)::int AS n
    FROM public.datasets s LEFT JOIN public.documents d ON d.dataset_id = s.id
    GROUP BY s.id, d.status
    ORDER BY s.created_at, s.id, d.status
""")

# Index: pipeline.documents_by_stage. A parameter has one type, and the two tables' ids may differ in theirs: two names.
_IN_FLIGHT = text("""
    SELECT p.stage, count(*) FILTER (WHERE p.lease_until >= now())::int AS working,
           count(*) FILTER (WHERE coalesce(p.lease_until < now(), true) AND p.retry_at > now())::int AS retrying,
           count(*)::int AS n
    FROM pipeline.documents p JOIN public.documents d ON d.dataset_id = :of_dataset AND d.id::text = p.document_id
    WHERE p.dataset_id = :dataset_id AND p.stage IS NOT NULL AND p.credits_needed IS NULL AND d.status <> 'uploaded'
    GROUP BY p.stage
""")

# Indexes: documents_dataset_id_idx, processing_jobs_document_id_idx. A job lives from its document's claim to its end;
# one that awaited credits since last week must not stretch the window.
_PACE = text("""
    WITH ended AS (
        SELECT j.created_at, j.updated_at, max(j.updated_at) OVER () - make_interval(secs => :window) AS since
        FROM public.documents d JOIN public.processing_jobs j ON j.document_id = d.id
        WHERE d.dataset_id = :dataset_id AND j.status IN ('completed', 'failed')
    )
    SELECT count(*)::int AS documents,
           extract(epoch FROM max(updated_at) - greatest(min(created_at), max(since)))::float8 AS seconds
    FROM ended WHERE updated_at > since
""")

_TOTALS = text("""
    SELECT coalesce(sum(g.pages), 0)::bigint AS pages, coalesce(sum(cardinality(g.ocr_pages)), 0)::bigint AS ocr_pages,
           (sum((SELECT sum(c) FROM unnest(g.ocr_confidence) AS c))
            / nullif(sum(cardinality(g.ocr_pages)), 0))::float8 AS ocr_confidence,
           coalesce(sum(g.chunks), 0)::bigint AS chunks,
           coalesce(sum(g.tokens), 0)::bigint AS tokens, max(g.published_at) AS last
    FROM pipeline.documents p
    JOIN public.documents d ON d.dataset_id = :of_dataset AND d.id::text = p.document_id
    JOIN pipeline.generations g ON g.document_id = p.document_id AND g.generation = p.live_generation
    WHERE p.dataset_id = :dataset_id AND p.live_generation IS NOT NULL
""")

_FIRST_UPLOAD = text("SELECT min(created_at)::timestamptz FROM public.documents WHERE dataset_id = :dataset_id")

_FAILURES = text("""
    SELECT d.id::text AS document_id, d.filename, coalesce(p.error_code, 'unknown') AS code,
           coalesce(p.error_message, '') AS message
    FROM public.documents d LEFT JOIN pipeline.documents p ON p.document_id = d.id::text
    WHERE d.dataset_id = :dataset_id AND d.status = 'failed'
    ORDER BY d.filename LIMIT :limit
""")

# Index: pipeline.documents_live. With EXISTS, PostgreSQL reads the table from its start to a large dataset's first row.
_IS_SEARCHABLE = text("""
    SELECT true FROM pipeline.documents WHERE dataset_id = :dataset_id AND live_generation IS NOT NULL
    ORDER BY document_id LIMIT 1
""")

# Primary keys.
_NAMES = text("""
    SELECT id::text AS id, name FROM public.datasets WHERE id = ANY(:datasets)
    UNION ALL
    SELECT id::text, filename FROM public.documents WHERE id = ANY(:documents)
""")

_FIND_DOCUMENTS = text("""
    SELECT filename, min(id::text) AS id FROM public.documents
    WHERE dataset_id = :dataset_id AND filename = ANY(:filenames) GROUP BY 1
""")

# Primary key; after the documents' own rows, as a claim does it.
_UPLOADED_WITH_KEY = text("""
    INSERT INTO pipeline.upload_keys (document_id, api_key_id)
    SELECT id, :api_key_id FROM unnest(CAST(:ids AS text[])) AS id ORDER BY id
    ON CONFLICT (document_id) DO UPDATE SET api_key_id = excluded.api_key_id
""")

_UPLOADED_WITHOUT_KEY = text("DELETE FROM pipeline.upload_keys WHERE document_id = ANY(:ids)")

_INSERT_DOCUMENTS = text("""
    INSERT INTO public.documents (id, dataset_id, filename, status, created_at, updated_at)
    SELECT r.id, r.dataset_id, r.filename, 'uploaded', now(), now()
    FROM json_populate_recordset(NULL::public.documents, :rows) AS r
    ON CONFLICT (id) DO UPDATE SET status = 'uploaded', updated_at = clock_timestamp()
    WHERE documents.dataset_id = excluded.dataset_id
    RETURNING id::text
""")

_CONTENT = text("SELECT content FROM public.documents WHERE id = ANY(:ids)")

_IS_SET_UP = text("SELECT 1 FROM pipeline.datasets WHERE dataset_id = :dataset_id")

_MARK_SET_UP = text("""
    INSERT INTO pipeline.datasets (dataset_id, user_id, collection) VALUES (:dataset_id, :user_id, :collection)
    ON CONFLICT (dataset_id) DO UPDATE SET user_id = excluded.user_id, collection = excluded.collection
""")


def get(tx: Connection, dataset_id: str) -> Dataset | None:
    """The dataset of that id."""
    row = tx.execute(_BY_ID, {"ids": id_array([dataset_id])}).first()
    return None if row is None else Dataset(*row)


def named(tx: Connection, name: str) -> list[Dataset]:
    """The datasets of that name, oldest first; names are not unique."""
    return [Dataset(*row) for row in tx.execute(_BY_NAME, {"name": name})]


def every(tx: Connection) -> list[Dataset]:
    """All datasets, oldest first."""
    return [Dataset(*row) for row in tx.execute(_ALL)]


def create(tx: Connection, dataset: Dataset) -> None:
    """Insert the dataset."""
    row = {"id": dataset.id, "user_id": dataset.user_id, "name": dataset.name, "description": ""}
    tx.execute(_INSERT_DATASET, {"rows": recordset([row])})


def mark_set_up(tx: Connection, dataset: Dataset, collection: str) -> None:
    """The dataset's collection is there and was verified."""
    tx.execute(_MARK_SET_UP, {"dataset_id": dataset.id, "user_id": dataset.user_id, "collection": collection})


def is_set_up(tx: Connection, dataset_id: str) -> bool:
    """Whether its set-up is done and paid for."""
    return tx.execute(_IS_SET_UP, {"dataset_id": dataset_id}).first() is not None


def backlog(tx: Connection) -> list[Backlog]:
    """What waits, by dataset: new uploads, parked stages, and what dead workers left behind."""
    return [Backlog(r.dataset_id, r.user_id, r.waiting, r.oldest, r.name) for r in tx.execute(_BACKLOG)]


def awaiting(tx: Connection) -> list[Awaiting]:
    """What awaits credits, by dataset and pot."""
    return [Awaiting(*row) for row in tx.execute(_AWAITING)]


def waiting_at(tx: Connection, dataset_id: str, stage: Stage, *, unpaid: bool = True) -> int:
    """Documents that a worker could claim at the stage now, with those that await credits or without."""
    parameters = {"dataset_id": dataset_id, "of_dataset": dataset_id, "stage": stage.value, "unpaid": unpaid}
    return int(tx.execute(_WAITING_AT, parameters | {"uploaded": stage is Stage.EXTRACT}).scalar_one())


def in_flight(tx: Connection, dataset_id: str) -> list[WorkInFlight]:
    """What is on its way through the stages, in their order."""
    rows = {r.stage: r for r in tx.execute(_IN_FLIGHT, {"dataset_id": dataset_id, "of_dataset": dataset_id})}
    found = [rows[stage.value] for stage in Stage if stage.value in rows]
    return [WorkInFlight(r.stage, r.working, r.n - r.working - r.retrying, r.retrying) for r in found]


def pace(tx: Connection, dataset_id: str, *, window: float) -> Pace | None:
    """How many attempts ended in the last `window` seconds before the latest end; None: none, or all at once."""
    row = tx.execute(_PACE, {"dataset_id": dataset_id, "window": window}).one()
    return Pace(row.documents, row.seconds) if row.seconds else None


def counts_of_all(tx: Connection) -> list[DatasetCounts]:
    """All datasets with their documents by status, oldest first."""
    found: dict[str, DatasetCounts] = {}
    for row in tx.execute(_COUNTS_OF_ALL):
        counts = found.setdefault(row.id, DatasetCounts(Dataset(row.id, row.user_id, row.name), {}))
        if row.n:
            counts.documents[row.status] = row.n
    return list(found.values())


def status(tx: Connection, dataset: Dataset, *, failures: int | None = 1000) -> DatasetStatus:
    """The dataset at a glance, with its first `failures` failures by filename; None: all of them."""
    key = {"dataset_id": dataset.id}
    totals = tx.execute(_TOTALS, key | {"of_dataset": dataset.id}).one()
    first = tx.execute(_FIRST_UPLOAD, key).scalar()
    return DatasetStatus(
        dataset=dataset,
        documents={r.status: r.n for r in tx.execute(_COUNTS, key)},
        pages=totals.pages,
        ocr_pages=totals.ocr_pages,
        ocr_confidence=totals.ocr_confidence,
        chunks=totals.chunks,
        tokens=totals.tokens,
        seconds=(totals.last - first).total_seconds() if totals.last and first else None,
        failures=tuple(FailedDocument(*row) for row in tx.execute(_FAILURES, key | {"limit": failures})),
    )


def is_searchable(tx: Connection, dataset_id: str) -> bool:
    """Whether a document of the dataset was ever published."""
    return bool(tx.execute(_IS_SEARCHABLE, {"dataset_id": dataset_id}).scalar())


def names_of(tx: Connection, *, dataset_ids: Sequence[str], document_ids: Sequence[str]) -> dict[str, str]:
    """Id → name of the datasets, filename of the documents; nothing for those that don't exist."""
    parameters = {"datasets": id_array(dataset_ids), "documents": id_array(document_ids)}
    return {r.id: r.name for r in tx.execute(_NAMES, parameters)}


def find_documents(tx: Connection, dataset_id: str, filenames: Sequence[str]) -> dict[str, str]:
    """Ids of the dataset's documents of these names."""
    rows = tx.execute(_FIND_DOCUMENTS, {"dataset_id": dataset_id, "filenames": list(filenames)})
    return {r.filename: r.id for r in rows}


def upload(
    tx: Connection, dataset_id: str, documents: Sequence[tuple[str, str]], api_key_id: str | None = None
) -> set[str]:
    """(document id, filename): insert as `uploaded`, or mark as uploaded anew. Their blobs must be there already.

    `api_key_id`: the digest of the API key that they are uploaded with. Returns those that are in: one that is in
    another dataset by now is left alone.
    """
    rows = [{"id": i, "dataset_id": dataset_id, "filename": name} for i, name in sorted(documents)]
    ids = sorted(tx.execute(_INSERT_DOCUMENTS, {"rows": recordset(rows)}).scalars())
    if api_key_id is None:
        tx.execute(_UPLOADED_WITHOUT_KEY, {"ids": ids})
    else:
        tx.execute(_UPLOADED_WITH_KEY, {"ids": ids, "api_key_id": api_key_id})
    return set(ids)


def content(tx: Connection, document_id: str) -> str | None:
    """The document's text as it stands."""
    return tx.execute(_CONTENT, {"ids": id_array([document_id])}).scalar()
