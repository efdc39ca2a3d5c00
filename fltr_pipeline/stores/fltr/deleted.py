"""What is gone from `public`: documents, datasets, and datasets whose owner is gone.

Belongs here: finding what `pipeline` still has of it, withdrawing that, the receipts. Does not: Milvus, `fltr_auth`.

What somebody works on is left to them: their next step, or the publish, finds the document gone. Charges stay: they are
what the ledger's rows are explained by, and a document that comes back under its id goes on after their generations,
with fences behind those that it had before each of its rows in `deletions`, which stay, too.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from fltr_pipeline.stores.database import id_array
from fltr_pipeline.stores.fltr.charges import mark_refunding
from fltr_pipeline.stores.fltr.generations import undelivered
from fltr_pipeline.stores.fltr.jobs import close_jobs
from fltr_pipeline.stores.fltr.locks import lock_unheld

OWNER_GONE = "payer_gone"
"""Code of a failure: nobody is left to pay."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the documents that `pipeline` knows, in the order of their ids."""

    document_ids: tuple[str, ...]
    gone: frozenset[str]
    """Of these: deleted, or their dataset is."""

    @property
    def last(self) -> str:
        """Where the next page begins; empty: there is none."""
        return self.document_ids[-1] if self.document_ids else ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A deletion whose vectors were all read back as absent."""

    document_id: str
    dataset_id: str
    cause: str
    """What is gone: document, dataset or owner."""
    vectors: int
    verified_at: datetime


# Primary keys.
_PAGE = text("""
    (SELECT document_id FROM pipeline.documents
     WHERE document_id > :after AND (lease_until IS NULL OR lease_until < now())
     ORDER BY document_id LIMIT :limit)
    UNION
    (SELECT document_id FROM pipeline.upload_keys WHERE document_id > :after ORDER BY document_id LIMIT :limit)
    ORDER BY document_id LIMIT :limit
""")

# Indexes: pipeline.documents_live, in its own order, and pipeline.documents_by_stage.
_PAGE_OF = text("""
    (SELECT document_id FROM pipeline.documents
     WHERE dataset_id = :dataset_id AND live_generation IS NOT NULL AND document_id > :after
     ORDER BY document_id LIMIT :limit)
    UNION
    (SELECT document_id FROM pipeline.documents
     WHERE dataset_id = :dataset_id AND stage IS NOT NULL AND document_id > :after
     ORDER BY document_id LIMIT :limit)
    ORDER BY document_id LIMIT :limit
""")

# Primary key of the documents; datasets are few.
_EXISTING = text("""
    SELECT d.id::text FROM public.documents d
    WHERE d.id = ANY(:ids) AND EXISTS (SELECT FROM public.datasets s WHERE s.id::text = d.dataset_id::text)
""")

# Primary key.
_DATASETS_OF = text("SELECT document_id, dataset_id FROM pipeline.documents WHERE document_id = ANY(:ids)")

# Datasets are few.
_GONE_DATASETS = text("""
    SELECT x.dataset_id FROM pipeline.datasets x
    WHERE NOT EXISTS (SELECT FROM public.datasets s WHERE s.id::text = x.dataset_id)
""")

_FORGET_DATASETS = text(f"""
    DELETE FROM pipeline.datasets WHERE dataset_id = ANY(:ids) AND dataset_id IN ({_GONE_DATASETS.text})
""")  # noqa: S608 - of constants

# Index: pipeline.documents_by_stage.
_IN_HAND = text("""
    SELECT DISTINCT dataset_id FROM pipeline.documents
    WHERE dataset_id = ANY(:dataset_ids) AND stage IS NOT NULL AND lease_until >= now()
""")

# Indexes: pipeline.documents_live, pipeline.documents_by_stage.
_AT_WORK_OR_LIVE = text("""
    SELECT document_id FROM pipeline.documents
    WHERE dataset_id = ANY(:dataset_ids) AND live_generation IS NOT NULL
      AND (lease_until IS NULL OR lease_until < now())
    UNION
    SELECT document_id FROM pipeline.documents
    WHERE dataset_id = ANY(:dataset_ids) AND stage IS NOT NULL AND (lease_until IS NULL OR lease_until < now())
    LIMIT :limit
""")

# Primary key. Who writes in a row has a hand on the document: it is left for the next pass.
_LOCK = text("""
    SELECT document_id FROM pipeline.documents
    WHERE document_id = ANY(:ids) AND (lease_until IS NULL OR lease_until < now())
    ORDER BY document_id
    FOR UPDATE SKIP LOCKED
""")

# What was free was so for the sake of what was live: what is tried again is to be paid for, but for a `restore`, and
# for what had failed, free, and was being tried again.
_WITHDRAW = text("""
    UPDATE pipeline.documents
    SET fence = fence + 1, stage = NULL, live_generation = NULL, lease_until = NULL, retry_at = NULL,
        credits_needed = NULL,
        billable = billable OR live_generation IS NOT NULL OR stage IS NOT NULL AND NOT EXISTS (
            SELECT FROM public.documents d
            WHERE d.id = ANY(:public_ids) AND d.id::text = document_id
              AND d.status IN ('processing', 'awaiting_credits'))
    WHERE document_id = ANY(:ids)
    RETURNING job_id
""")

# The primary keys' first column.
_DISCARD = (
    text("""
        INSERT INTO pipeline.retired_keys (key, dataset_id, document_id)
        SELECT c.key, p.dataset_id, p.document_id FROM pipeline.documents p JOIN pipeline.chunks c USING (document_id)
        WHERE p.document_id = ANY(:ids) AND c.key IS NOT NULL
        ON CONFLICT (key) DO NOTHING
    """),
    text("DELETE FROM pipeline.chunks WHERE document_id = ANY(:ids)"),
    text("DELETE FROM pipeline.generations WHERE document_id = ANY(:ids)"),
)

# Index: pipeline.retired_keys_by_document.
_RECORD = text("""
    INSERT INTO pipeline.deletions (document_id, dataset_id, cause, vectors)
    SELECT p.document_id, p.dataset_id,
           CASE WHEN :owner_gone THEN 'owner'
                WHEN EXISTS (SELECT FROM public.datasets s WHERE s.id::text = p.dataset_id) THEN 'document'
                ELSE 'dataset' END,
           (SELECT count(*) FROM pipeline.retired_keys r WHERE r.document_id = p.document_id)
    FROM pipeline.documents p WHERE p.document_id = ANY(:ids)
""")

_FORGET = text("DELETE FROM pipeline.documents WHERE document_id = ANY(:ids)")
_FORGET_UPLOAD_KEYS = text("DELETE FROM pipeline.upload_keys WHERE document_id = ANY(:ids)")

_FAIL = text("UPDATE public.documents SET status = 'failed' WHERE id = ANY(:ids) AND status = ANY(:before)")

_TELL = text("""
    UPDATE pipeline.documents SET error_code = :code, error_message = :message, error_at = now()
    WHERE document_id = ANY(:ids)
""")

# Indexes: pipeline.deletions_unverified, pipeline.retired_keys_by_document. A key is forgotten once it was read back as
# absent, so a document without any has its receipt. Of several sweeps, one gives it.
_LOCK_SWEPT = text("""
    SELECT y.document_id, y.found_at FROM pipeline.deletions y
    WHERE y.verified_at IS NULL
      AND NOT EXISTS (SELECT FROM pipeline.retired_keys r WHERE r.document_id = y.document_id)
    FOR UPDATE OF y SKIP LOCKED
""")

# The primary key, and pipeline.retired_keys_by_document. The look for keys is made again behind the lock: who names a
# late one locks the row, too, and had perhaps not committed at the first.
_VERIFY = text("""
    UPDATE pipeline.deletions x SET verified_at = now()
    FROM unnest(CAST(:ids AS text[]), CAST(:times AS timestamptz[])) AS swept(document_id, found_at)
    WHERE x.document_id = swept.document_id AND x.found_at = swept.found_at
      AND NOT EXISTS (SELECT FROM pipeline.retired_keys r WHERE r.document_id = x.document_id)
    RETURNING x.document_id, x.dataset_id, x.cause, x.vectors, x.verified_at
""")

# Indexes: pipeline.deletions_unverified, pipeline.retired_keys_by_age. With EXISTS, PostgreSQL reads the whole table
# when all its keys are young.
_OVERDUE = text("""
    SELECT coalesce(least((SELECT min(found_at) FROM pipeline.deletions WHERE verified_at IS NULL),
                          (SELECT min(retired_at) FROM pipeline.retired_keys)) < now() - make_interval(secs => :age),
                    false)
""")


def page(tx: Connection, after: str, limit: int) -> Page:
    """The next `limit` documents behind that id on which nobody works, and which of them are gone."""
    ids = tuple(tx.execute(_PAGE, {"after": after, "limit": limit}).scalars())
    return Page(ids, frozenset(ids) - _existing(tx, ids))


def page_of(tx: Connection, dataset_id: str, after: str, limit: int) -> Page:
    """The same, of those that are searchable or at work in one dataset, also in somebody's hands."""
    ids = tuple(tx.execute(_PAGE_OF, {"dataset_id": dataset_id, "after": after, "limit": limit}).scalars())
    return Page(ids, frozenset(ids) - _existing(tx, ids))


def datasets_of(tx: Connection, document_ids: Collection[str]) -> dict[str, str]:
    """Document id → dataset id, as `pipeline` knows it."""
    return {r.document_id: r.dataset_id for r in tx.execute(_DATASETS_OF, {"ids": list(document_ids)})}


def gone_datasets(tx: Connection) -> list[str]:
    """Datasets that were set up and are deleted."""
    return list(tx.execute(_GONE_DATASETS).scalars())


def forget_datasets(tx: Connection, dataset_ids: Sequence[str]) -> int:
    """Forget that deleted datasets were set up; returns how many they were."""
    return tx.execute(_FORGET_DATASETS, {"ids": list(dataset_ids)}).rowcount


def in_hand(tx: Connection, dataset_ids: Sequence[str]) -> set[str]:
    """Those of these datasets of which somebody works on a document."""
    return set(tx.execute(_IN_HAND, {"dataset_ids": list(dataset_ids)}).scalars())


def withdrawable(tx: Connection, dataset_ids: Sequence[str], limit: int) -> list[str]:
    """Documents of these datasets that are searchable or wait for work, and on which nobody works."""
    return list(tx.execute(_AT_WORK_OR_LIVE, {"dataset_ids": list(dataset_ids), "limit": limit}).scalars())


def forget(tx: Connection, document_ids: Sequence[str]) -> int:
    """Drop all that `pipeline` has of documents that are gone, but for charges; their keys are named for the sweep.

    Those that came back, or that somebody works on by now, are left. Returns how many were forgotten.
    """
    locked = set(tx.execute(_LOCK, {"ids": list(document_ids)}).scalars())
    gone = set(document_ids) - _existing(tx, document_ids)
    tx.execute(_FORGET_UPLOAD_KEYS, {"ids": sorted(gone)})
    mine = sorted(gone & locked)
    _withdraw(tx, mine, "canceled", owner_gone=False)
    tx.execute(_FORGET, {"ids": mine})
    return len(mine)


def withdraw(tx: Connection, document_ids: Sequence[str], message: str) -> set[str]:
    """Take documents whose dataset's owner is gone out of search and of work; returns which.

    Their rows stay as long as those in `public`: should the owner come back, they can be done again. What an attempt
    under way was charged goes back to whom it was taken from, if they are there. What somebody holds locked is left.
    """
    ids = sorted(tx.execute(_LOCK, {"ids": lock_unheld(tx, document_ids)}).scalars())
    mark_refunding(tx, undelivered(tx, ids))
    _withdraw(tx, ids, "failed", owner_gone=True)
    tx.execute(_TELL, {"ids": ids, "code": OWNER_GONE, "message": message})
    tx.execute(_FAIL, {"ids": id_array(ids), "before": ["processing", "awaiting_credits"]})
    return set(ids)


def _withdraw(tx: Connection, ids: Sequence[str], job_status: str, *, owner_gone: bool) -> None:
    jobs = tx.execute(_WITHDRAW, {"ids": list(ids), "public_ids": id_array(ids)}).scalars().all()
    close_jobs(tx, [job for job in jobs if job], job_status)
    for statement in _DISCARD:
        tx.execute(statement, {"ids": list(ids)})
    tx.execute(_RECORD, {"ids": list(ids), "owner_gone": owner_gone})


def verify(tx: Connection) -> list[Receipt]:
    """Give the receipts of all deletions whose last key was swept since."""
    swept = tx.execute(_LOCK_SWEPT).all()
    if not swept:
        return []
    asked = {"ids": [r.document_id for r in swept], "times": [r.found_at for r in swept]}
    return [Receipt(*row) for row in tx.execute(_VERIFY, asked)]


def overdue(tx: Connection, *, age: float) -> bool:
    """Whether a receipt or the sweep of a key waits for more than `age` seconds."""
    return bool(tx.execute(_OVERDUE, {"age": age}).scalar_one())


def _existing(tx: Connection, document_ids: Sequence[str]) -> set[str]:
    return set(tx.execute(_EXISTING, {"ids": id_array(document_ids)}).scalars())
