"""Database `fltr`: three tables and nothing else, ever.

Belongs here: the target state of its schema `public`. Does not: schema `pipeline`, which is SQL (`steps`).

Tables, columns, keys and what a deletion does are the specification's. It is silent on types, defaults and nullability
here: those are our choice. There are no CHECK constraints: whoever else creates these tables has none, and the words of
a status live in `models`.
"""

from fltr_pipeline.models import DocumentStatus, JobStatus
from fltr_pipeline.stores.schema.specification.terms import (
    IDENTIFIER,
    LONG_TEXT,
    TEXT,
    TIMESTAMPTZ,
    WORD,
    WRITTEN_ID,
    WRITTEN_TIME,
    Column,
    Database,
    ForeignKey,
    Index,
    OnDelete,
    Source,
    Table,
    Type,
    Written,
)


def _ours(name: str, kind: Type, *, nullable: bool = False, default: str | None = None) -> Column:
    return Column(name, kind, nullable, default, Source.SPECIFICATION, Source.OURS)


_NEW_ID = "(gen_random_uuid())::text"
_OUR_ID = _ours("id", IDENTIFIER, default=_NEW_ID)
_OUR_TIMES = (_ours("created_at", TIMESTAMPTZ, default="now()"), _ours("updated_at", TIMESTAMPTZ, default="now()"))

_ROW: Written = {"id": WRITTEN_ID, "created_at": WRITTEN_TIME, "updated_at": WRITTEN_TIME}


def _document(status: DocumentStatus) -> Written:
    content = "Text." if status is DocumentStatus.READY else None
    return {**_ROW, "dataset_id": WRITTEN_ID, "filename": "a.pdf", "content": content, "status": status}


FLTR = Database(
    name="fltr",
    closed=True,
    tables=(
        Table(
            name="datasets",
            primary_key="id",
            columns=(
                _OUR_ID,
                # Refers to fltr_auth.users.id. No constraint can cross databases: each run checks the owner instead.
                _ours("user_id", IDENTIFIER),
                _ours("name", TEXT),
                _ours("description", LONG_TEXT, nullable=True),
                *_OUR_TIMES,
            ),
            indexes=(Index("datasets_user_id_idx", "user_id"),),
            inserted=True,
            writes=({**_ROW, "user_id": WRITTEN_ID, "name": "a"},),
        ),
        Table(
            name="documents",
            primary_key="id",
            columns=(
                _OUR_ID,
                _ours("dataset_id", IDENTIFIER),
                _ours("filename", TEXT),
                _ours("content", LONG_TEXT, nullable=True),
                _ours("status", WORD, default=f"'{DocumentStatus.UPLOADED}'::text"),
                *_OUR_TIMES,
            ),
            foreign_keys=(ForeignKey("documents", "dataset_id", "datasets", OnDelete.CASCADE),),
            indexes=(
                Index("documents_dataset_id_idx", "dataset_id"),
                Index(
                    "documents_waiting_idx",
                    "dataset_id, created_at, id",
                    where=f"status = '{DocumentStatus.UPLOADED}'",
                ),
            ),
            inserted=True,
            writes=tuple(_document(status) for status in DocumentStatus),
        ),
        Table(
            name="processing_jobs",
            primary_key="id",
            columns=(
                _OUR_ID,
                _ours("document_id", IDENTIFIER),
                _ours("status", WORD, default=f"'{JobStatus.QUEUED}'::text"),
                *_OUR_TIMES,
            ),
            foreign_keys=(ForeignKey("processing_jobs", "document_id", "documents", OnDelete.CASCADE),),
            indexes=(Index("processing_jobs_document_id_idx", "document_id"),),
            inserted=True,
            writes=tuple({**_ROW, "document_id": WRITTEN_ID, "status": status} for status in JobStatus),
        ),
    ),
)
