"""Locks on rows of `public.documents`: before those on rows of ours, and in id order, so that nobody deadlocks.

Belongs here: waiting for such a row, or leaving it. Does not: whose a document is (claims).

Workers and uploads wait for who writes in a row. A sweep does not: one row that an application holds, in a transaction
that it forgot, would keep it from all else that dead workers left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from fltr_pipeline.stores.database import id_array


@dataclass(frozen=True, slots=True)
class Locked:
    """A row of `public.documents` that nobody else can write in until the transaction ends."""

    filename: str
    status: str
    dataset_id: str


# Primary key.
_LOCK = text("""
    SELECT id::text AS document_id, filename, status, dataset_id::text AS dataset_id
    FROM public.documents WHERE id = ANY(:ids) ORDER BY id FOR UPDATE
""")

_LOCK_FREE = text(f"{_LOCK.text} SKIP LOCKED")

# Primary key.
_EXISTING = text("SELECT id::text FROM public.documents WHERE id = ANY(:ids)")


def lock_documents(tx: Connection, document_ids: Sequence[str]) -> dict[str, str]:
    """Lock the documents' rows; returns id → status of those that exist."""
    return {r.document_id: r.status for r in tx.execute(_LOCK, {"ids": id_array(document_ids)})}


def lock_free(tx: Connection, document_ids: Sequence[str]) -> dict[str, Locked]:
    """Lock those of the documents' rows that nobody holds; waits for nobody."""
    free = tx.execute(_LOCK_FREE, {"ids": id_array(document_ids)})
    return {r.document_id: Locked(r.filename, r.status, r.dataset_id) for r in free}


def lock_unheld(tx: Connection, document_ids: Sequence[str]) -> list[str]:
    """The same; returns which of the documents are locked now, or gone."""
    free = lock_free(tx, document_ids)
    held = existing(tx, document_ids) - free.keys() if len(free) < len(document_ids) else frozenset[str]()
    return [i for i in document_ids if i not in held]


def existing(tx: Connection, document_ids: Sequence[str]) -> set[str]:
    """Those of the documents that are not deleted."""
    return set(tx.execute(_EXISTING, {"ids": id_array(document_ids)}).scalars())
