"""An `fltr` database for tests of single queries: nothing of Milvus, blobs or money.

Belongs here: what the tests of `stores.fltr` need to set a scene and to look at it. Does not: assertions.
"""

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, text

from fltr_pipeline.models import ReprocessMode, Stage
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, datasets, generations, plans, texts
from fltr_pipeline.stores.fltr.claims import Claim, Failure
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline.stores.fltr.plans import PlannedChunk
from fltr_pipeline.stores.fltr.requeue import Redo
from fltr_pipeline.stores.fltr.texts import StagedText

APPLICATION_TABLES = """
CREATE TABLE datasets (
    id uuid PRIMARY KEY, user_id uuid NOT NULL, name varchar(255) NOT NULL, description varchar,
    created_at timestamp NOT NULL, updated_at timestamp NOT NULL
);
CREATE TABLE documents (
    id uuid PRIMARY KEY, dataset_id uuid NOT NULL REFERENCES datasets (id) ON DELETE CASCADE,
    filename varchar(1000) NOT NULL, content text, status varchar(50) NOT NULL,
    created_at timestamp NOT NULL, updated_at timestamp NOT NULL
);
CREATE TABLE processing_jobs (
    id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    status varchar(50) NOT NULL, created_at timestamp NOT NULL, updated_at timestamp NOT NULL
);
"""
"""As the web application may have made them: uuid ids, times without a zone."""

FINGERPRINT = "config-1"


def redoing(
    dataset_id: str,
    mode: ReprocessMode,
    *,
    fingerprint: str = FINGERPRINT,
    billable: bool = False,
    retryable: Sequence[str] | None = None,
    tried_with: str = "t",
) -> Redo:
    """As a run asks for it, with the extractor of these tests."""
    return Redo(dataset_id, mode, fingerprint, "extractor-1", tried_with, billable, retryable)


@dataclass(frozen=True)
class Fltr:
    """One database, and short words for what tests do to it."""

    engine: Engine

    def transaction(self) -> Any:
        return transaction(self.engine)

    @contextmanager
    def impatient(self) -> Iterator[Connection]:
        """A transaction that fails instead of waiting for another one's lock."""
        with transaction(self.engine) as tx:
            tx.execute(text("SET LOCAL lock_timeout = '2s'"))
            yield tx

    def rows(self, query: str, **parameters: object) -> list[tuple[Any, ...]]:
        with transaction(self.engine) as tx:
            return [tuple(row) for row in tx.execute(text(query), parameters)]

    def one(self, query: str, **parameters: object) -> tuple[Any, ...]:
        (row,) = self.rows(query, **parameters)
        return row

    def change(self, query: str, **parameters: object) -> None:
        with transaction(self.engine) as tx:
            tx.execute(text(query), parameters)

    def dataset(self, name: str = "books", user_id: str | None = None) -> Dataset:
        dataset = Dataset(str(uuid.uuid4()), user_id or str(uuid.uuid4()), name)
        with transaction(self.engine) as tx:
            datasets.create(tx, dataset)
        return dataset

    def upload(self, dataset: Dataset, *filenames: str) -> list[str]:
        """New documents, the first name uploaded first; their ids."""
        ids = [str(uuid.uuid4()) for _ in filenames]
        for document_id, name in zip(ids, filenames, strict=True):
            with transaction(self.engine) as tx:
                datasets.upload(tx, dataset.id, [(document_id, name)])
        return ids

    def upload_anew(self, dataset: Dataset, document_id: str) -> None:
        with transaction(self.engine) as tx:
            datasets.upload(tx, dataset.id, [(document_id, "ignored")])

    def claim(
        self, dataset: Dataset, stage: Stage = Stage.EXTRACT, *, run: str = "run", limit: int = 100, lease: float = 60
    ) -> list[Claim]:
        with transaction(self.engine) as tx:
            return claims.claim(tx, dataset_id=dataset.id, stage=stage, run_id=run, limit=limit, lease_seconds=lease)

    def advance(self, claimed: Sequence[Claim], stage: Stage) -> set[str]:
        with transaction(self.engine) as tx:
            return claims.advance(tx, claimed, stage)

    def let_leases_run_out(self) -> None:
        self.change(
            "UPDATE pipeline.documents SET lease_until = now() - interval '1 s', retry_at = NULL"
            " WHERE lease_until IS NOT NULL"
        )

    def statuses(self, dataset: Dataset) -> dict[str, str]:
        return dict(self.rows("SELECT filename, status FROM documents WHERE dataset_id = :d", d=dataset.id))

    def jobs(self, document_id: str) -> list[str]:
        """Statuses of the document's jobs, oldest first."""
        query = "SELECT status FROM processing_jobs WHERE document_id = :d ORDER BY created_at, updated_at"
        return [status for (status,) in self.rows(query, d=document_id)]

    def state(self, document_id: str, columns: str) -> tuple[Any, ...]:
        return self.one(f"SELECT {columns} FROM pipeline.documents WHERE document_id = :d", d=document_id)

    def stage_text(self, claim: Claim, content: str, *, pages: int = 1) -> set[str]:
        with transaction(self.engine) as tx:
            return texts.stage_texts(tx, [staged(claim, content, pages=pages)])

    def plan(self, claim: Claim, chunks: Sequence[PlannedChunk], fingerprint: str = FINGERPRINT) -> set[str]:
        with transaction(self.engine) as tx:
            return plans.store_plan(tx, [(claim, chunks)], fingerprint)

    def publish(self, dataset: Dataset, content: str, *, fingerprint: str = FINGERPRINT) -> list[Claim]:
        """Everything that waits at the first stage goes through all stages, a chunk per word; the last claims."""
        for claim in (extracted := self.claim(dataset)):
            self.stage_text(claim, content)
        self.advance(extracted, Stage.PLAN)
        for claim in (planned := self.claim(dataset, Stage.PLAN)):
            with transaction(self.engine) as tx:
                kept = plans.live_keys(tx, [claim.document_id], fingerprint).get(claim.document_id, {})
            self.plan(claim, words(content, kept), fingerprint)
        self.advance(planned, Stage.EMBED)
        embedded = self.claim(dataset, Stage.EMBED)
        with transaction(self.engine) as tx:
            generations.assign_keys(tx, embedded)
            generations.decide(tx, embedded)
            generations.publish(tx, embedded)
        return embedded


Copy = AbstractContextManager[Fltr]
"""A fresh database, for as long as the `with` statement lasts."""


def staged(claim: Claim, content: str, *, pages: int = 1, extractor: str = "extractor-1") -> StagedText:
    digest = hashlib.sha256(content.encode()).hexdigest()
    return StagedText(
        claim=claim, extractor=extractor, source_sha256=digest, source_bytes=len(content), kind="text", engine="utf-8",
        text=content, text_sha256=digest, pages=pages, blank_pages=(),
    )  # fmt: skip


def words(content: str, kept: Mapping[str, Sequence[str | None]] | None = None) -> list[PlannedChunk]:
    """A chunk per word, 2 tokens each; a word whose digest has a key in `kept` keeps it, or has lost it."""
    chunks, start, left = [], 0, {digest: list(keys) for digest, keys in (kept or {}).items()}
    for ordinal, word in enumerate(content.split(" ")):
        digest = hashlib.sha256(word.encode()).hexdigest()
        key, lost = (left[digest][0], left[digest].pop(0) is None) if left.get(digest) else (None, False)
        chunks.append(PlannedChunk(ordinal, key, digest, 1, start, start + len(word), 2, lost))
        start += len(word) + 1
    return chunks


def claimed(fltr: Fltr, *filenames: str) -> tuple[Dataset, list[Claim]]:
    """Documents in a worker's hands, from the first upload on."""
    dataset = fltr.dataset()
    fltr.upload(dataset, *(filenames or ("a",)))
    return dataset, fltr.claim(dataset)


def published(fltr: Fltr, content: str) -> tuple[Dataset, Claim]:
    """A searchable document, and the claim that made it so."""
    dataset = fltr.dataset()
    fltr.upload(dataset, "a")
    (claim,) = fltr.publish(dataset, content)
    return dataset, claim


def steal(fltr: Fltr, claim: Claim) -> None:
    """As another worker who takes the document over."""
    fltr.change("UPDATE pipeline.documents SET fence = fence + 1 WHERE document_id = :d", d=claim.document_id)


def failed(fltr: Fltr, dataset: Dataset, *filenames: str, code: str = "corrupt") -> list[str]:
    """Documents that failed; returns their ids."""
    ids = fltr.upload(dataset, *filenames)
    in_hand = fltr.claim(dataset, run="r")
    with fltr.transaction() as tx:
        claims.fail(tx, [Failure(c, code, f"{c.filename} is bad") for c in in_hand])
    return ids
