"""Planning: from staged text to chunks, and which of them are new. The third asset's work."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from fltr_pipeline.models import Chunk, Op, Stage
from fltr_pipeline.pipeline.quarantine import Quarantine
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.stage import Result, grouped
from fltr_pipeline.pipeline.worker import progressed
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, plans, texts
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.plans import PlannedChunk
from fltr_pipeline.text.chunk import chunk_text
from fltr_pipeline.text.tokenizer import Tokenizer

_GROUP_BYTES = 4_000_000


class Plan:
    """Chunks each text that changed, and keeps the vectors of chunks whose text did not."""

    op = Op.DOCUMENT_PLAN
    stage = Stage.PLAN
    counters = ("chunks", "chunks_reused", "chunks_new", "tokens", "tokens_new")

    def __init__(self, services: Services) -> None:
        self.quarantine = Quarantine(services)
        self._services = services

    def groups(self, claimed: Sequence[Claim]) -> Iterable[Sequence[Claim]]:
        """By length, so that only so much text is in memory: what is staged, and what is live, or the keys of that."""
        with transaction(self._services.fltr) as tx:
            sizes = plans.text_sizes(tx, claimed)
        return grouped(claimed, sizes, lambda: _GROUP_BYTES)

    def quote(self, claimed: Sequence[Claim]) -> Mapping[str, int]:
        """One unit each."""
        return {c.document_id: 1 for c in claimed}

    def perform(self, claimed: Sequence[Claim], charges: Mapping[str, Charge]) -> Sequence[Result]:
        """Chunk, compare with the live generation, and write the manifest rows."""
        fingerprint = self._services.fingerprint
        with transaction(self._services.fltr) as tx:
            unchanged = plans.copy_plans(tx, claimed, fingerprint)
            changed = [c for c in claimed if c.document_id not in unchanged]
            kept = plans.live_keys(tx, [c.document_id for c in changed], fingerprint)
            former = texts.former_texts(tx, [c.document_id for c in changed], fingerprint)
            staged = texts.staged_texts(tx, changed)
        kept |= {i: self._without_keys(text) for i, text in former.items()}
        planned = [
            (claim, self._plan(staged[claim.document_id], kept.get(claim.document_id, {})))
            for claim in changed
            if claim.document_id in staged
        ]
        with transaction(self._services.fltr) as tx:
            held = plans.store_plan(tx, planned, fingerprint)
        done = [
            (claim, [(t, False) for t in unchanged[i]]) for claim in claimed if (i := claim.document_id) in unchanged
        ]
        done += [
            (claim, [(c.tokens, not (c.key or c.lost)) for c in chunks])
            for claim, chunks in planned
            if claim.document_id in held
        ]
        return [_result(claim, chunks) for claim, chunks in done]

    def finish(self, results: Sequence[Result]) -> set[str]:
        """Park the documents for embedding."""
        with transaction(self._services.fltr) as tx:
            return claims.advance(tx, [r.claim for r in results], Stage.EMBED)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return self._services.model.tokenizer

    def _chunks(self, text: str) -> Iterator[tuple[str, Chunk]]:
        """Each with its digest."""
        settings, model = self._services.settings, self._services.model
        most = model.chunk_tokens(settings.chunk_tokens)
        for chunk in chunk_text(text, self._tokenizer, max_tokens=most, overlap=settings.chunk_overlap):
            progressed()
            yield hashlib.sha256(chunk.text.encode()).hexdigest(), chunk

    def _without_keys(self, text: str) -> dict[str, list[str | None]]:
        """The chunks that a text of another configuration has in today's, where none of their vectors counts."""
        return {digest: [None] * n for digest, n in Counter(digest for digest, _ in self._chunks(text)).items()}

    def _plan(self, text: str, kept: Mapping[str, Sequence[str | None]]) -> list[PlannedChunk]:
        """Pair chunks with live vectors of the same text, each vector at most once."""
        free = {digest: list(keys) for digest, keys in kept.items()}
        planned = []
        for digest, chunk in self._chunks(text):
            keys = free.get(digest)
            key, lost = (keys[0], keys.pop(0) is None) if keys else (None, False)
            planned.append(
                PlannedChunk(
                    ordinal=chunk.ordinal, key=key, digest=digest, page=chunk.page,
                    start=chunk.start, end=chunk.end, tokens=chunk.tokens, lost=lost,
                )
            )  # fmt: skip
        return planned


def _result(claim: Claim, chunks: Sequence[tuple[int, bool]]) -> Result:
    """`chunks`: each one's tokens, and whether it is new."""
    new = [tokens for tokens, fresh in chunks if fresh]
    counts = {
        "chunks": len(chunks), "chunks_reused": len(chunks) - len(new), "chunks_new": len(new),
        "tokens": sum(tokens for tokens, _ in chunks), "tokens_new": sum(new),
    }  # fmt: skip
    return Result(claim, 1, 1, counts)
