"""What is true of one dataset in all stores, asked in plain SQL and of Milvus by key, apart from the pipeline's code.

Belongs here: what is searchable, and what is wrong. Does not: the books (books), setting the scene (path).
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fltr_pipeline.pipeline.search import search
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.world import World

ENDED = {"ready", "failed", "awaiting_credits"}
_HITS = 8

_DOCUMENTS = """
    SELECT d.id::text, d.filename, d.status, d.content, p.stage, p.lease_until IS NOT NULL, p.live_generation,
           p.generation, coalesce(array_agg(j.status ORDER BY j.created_at, j.updated_at)
                                  FILTER (WHERE j.id IS NOT NULL), '{}'),
           coalesce(p.error_code = 'payer_gone', false)
    FROM documents d LEFT JOIN pipeline.documents p ON p.document_id = d.id::text
    LEFT JOIN processing_jobs j ON j.document_id = d.id
    WHERE d.dataset_id = %s GROUP BY d.id, p.document_id ORDER BY d.filename
"""

_CHUNKS = """
    SELECT c.ordinal, c.key, c.digest, c.start_offset, c.end_offset
    FROM pipeline.chunks c WHERE c.document_id = %s AND c.generation = %s ORDER BY c.ordinal
"""

_LEFT = {
    "staged or dead generations": "SELECT count(*) FROM pipeline.generations g JOIN pipeline.documents p USING"
    " (document_id) WHERE p.dataset_id = %s AND p.stage IS NULL AND g.generation IS DISTINCT FROM p.live_generation",
    "chunks of no generation": "SELECT count(*) FROM pipeline.chunks c JOIN pipeline.documents p USING (document_id)"
    " WHERE p.dataset_id = %s AND NOT EXISTS (SELECT FROM pipeline.generations g WHERE g.document_id = c.document_id"
    " AND g.generation = c.generation)",
    "retired keys": "SELECT count(*) FROM pipeline.retired_keys WHERE dataset_id = %s",
    "open charges": "SELECT count(*) FROM pipeline.charges WHERE dataset_id = %s AND amount > 0"
    " AND state IN ('open', 'refunding') AND subject_id NOT IN"
    " (SELECT document_id FROM pipeline.documents WHERE credits_needed IS NOT NULL)",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A document and its chunks, as the databases have them. `live`: the generation that search sees."""

    id: str
    filename: str
    status: str
    content: str | None
    stage: str | None
    leased: bool
    live: int | None
    generation: int | None
    jobs: Sequence[str]
    ownerless: bool
    """It was taken out of search because its dataset's owner is gone."""
    chunks: Mapping[str, str]
    """Key → text, of the live generation."""
    broken: Sequence[str]
    """What is wrong with its chunks."""


def documents(world: World, dataset: Dataset) -> dict[str, Seen]:
    """By filename."""
    return {row[1]: _seen(world, row) for row in world.rows(_DOCUMENTS, dataset.id)}


def _seen(world: World, row: Sequence[Any]) -> Seen:
    content, chunks, broken, end = row[3] or "", {}, [], 0
    for ordinal, key, digest, start, stop in world.rows(_CHUNKS, row[0], row[6]):
        text = content[start:stop]
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            broken.append(f"{row[1]}: chunk {ordinal} is not content[{start}:{stop}]")
        if key is None or key in chunks:
            broken.append(f"{row[1]}: chunk {ordinal} has the key {key}")
        if content[end:start].strip():
            broken.append(f"{row[1]}: {content[end:start]!r} is in no chunk")
        chunks[str(key)], end = text, stop
    if row[6] is not None and content[end:].strip():
        broken.append(f"{row[1]}: {content[end:]!r} is in no chunk")
    facts: dict[str, Any] = dict(zip(Seen.__dataclass_fields__, row, strict=False))
    return Seen(**facts, chunks=chunks, broken=broken)


def searchable(services: Services, world: World, dataset: Dataset) -> dict[str, str]:
    """Filename → text, of the documents that search finds by each of their chunks."""
    found = {}
    for filename, seen in documents(world, dataset).items():
        if (
            seen.chunks
            and not seen.broken
            and all(_finds(services, dataset, filename, t) for t in seen.chunks.values())
        ):
            found[filename] = seen.content or ""
    return found


def _finds(services: Services, dataset: Dataset, filename: str, text: str) -> bool:
    hits = search(services, dataset.id, text, k=_HITS)
    return any((h.place.filename, h.place.text) == (filename, text) for h in hits)


def unfinished(world: World, dataset: Dataset) -> Iterator[str]:
    """What has not come to an end, or does not fit together; nothing of it when all is at rest."""
    for seen in documents(world, dataset).values():
        if seen.status not in ENDED or seen.leased or (seen.stage is not None and seen.status != "awaiting_credits"):
            yield f"{seen.filename}: {seen.status}, at {seen.stage}, leased: {seen.leased}"
        open_jobs = [j for j in seen.jobs if j not in {"completed", "failed", "canceled"}]
        if len(open_jobs) > (seen.status == "awaiting_credits"):
            yield f"{seen.filename}: jobs {seen.jobs}"
        if (seen.live is not None) != (seen.jobs.count("completed") > 0 and not seen.ownerless):
            yield f"{seen.filename}: generation {seen.live} is live, jobs {seen.jobs}"
        yield from seen.broken
    for what, query in _LEFT.items():
        if (left := world.rows(query, dataset.id)) != [(0,)]:
            yield f"{left} {what}"


def receipts(world: World, expected: Mapping[str, int]) -> Iterator[str]:
    """How the receipts of deletions differ from `expected`: documents by what was deleted, each of them once."""
    rows = world.rows("SELECT cause, count(*), count(verified_at), min(vectors) FROM pipeline.deletions GROUP BY 1")
    for cause, documents, verified, least in rows:
        if (documents, verified) != (expected.get(cause), documents) or not least:
            yield f"{documents} deletions ({cause}), {verified} verified, {least} vectors at least"
    if missing := expected.keys() - {row[0] for row in rows}:
        yield f"no deletions: {missing}"


def drift(world: World, dataset: Dataset, rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """How `rows`, what Milvus has of the dataset, differ from the manifest: by key, how often, and in their text."""
    live = {key: (seen.id, text) for seen in documents(world, dataset).values() for key, text in seen.chunks.items()}
    stored = Counter(row["key"] for row in rows)
    yield from (f"{key} of {live[key]} is not in Milvus" for key in live.keys() - stored.keys())
    yield from (f"{key} is in Milvus, not in the manifest" for key in stored.keys() - live.keys())
    yield from (f"{key} is in Milvus {n} times" for key, n in stored.items() if n > 1)
    for row in rows:
        if row["key"] in live and live[row["key"]] != (row["document_id"], row["text"]):
            yield f"{row} stands in Milvus for {live[row['key']]}"
