"""Embedding and publishing: from a plan to a searchable document. The fourth asset's work."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime

from fltr_pipeline.credits import pricing
from fltr_pipeline.errors import StoreUnavailable
from fltr_pipeline.models import Op, Stage, VectorRow
from fltr_pipeline.pipeline.quarantine import Quarantine
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.stage import Result, grouped
from fltr_pipeline.pipeline.vector_collections import everywhere, note, remove, tell_of
from fltr_pipeline.pipeline.worker import progressed
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, expired, generations, manifest, moved, plans, texts
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.generations import FreshChunk

_LOG = logging.getLogger(__name__)
_SLICE = 512  # chunks embedded and inserted at a time, at most: bounds memory, paces the progress log
_FIRST_SLICE = 16  # and at least: a slow model, too, is to finish one well within FLTR_STALL_SECONDS
_INSERTS = 2  # at a time: the next slice is embedded, and put into a request, while Milvus works on the one before
_GROUP_SECONDS = 10  # of work between two publishes, and of a slice, at the pace of what was before
_GROUP_TOKENS = 20_000  # of the first group, and at least: some ten seconds of a small model on two cores
_GROUP_BYTES = 4_000_000
_SWEEP = 1000  # keys deleted from Milvus at a time


class Embed:
    """Embeds the new chunks, proves that each is there, decides; publishes after the settlement; sweeps last."""

    op = Op.DOCUMENT_EMBED
    stage = Stage.EMBED
    counters = ("chunks_embedded", "tokens_embedded")

    def __init__(self, services: Services) -> None:
        self.quarantine = Quarantine(services)
        self._services = services
        self._group_tokens = _GROUP_TOKENS
        self._slice = _FIRST_SLICE

    def groups(self, claimed: Sequence[Claim]) -> Iterable[Sequence[Claim]]:
        """By tokens: a document is published when it and a few others are done, not when a whole slow batch is.

        And by length, for the whole text is in memory, however little of it is new, with the keys of what is kept.
        """
        claimed = self._planned_here(claimed)
        with transaction(self._services.fltr) as tx:
            tokens = generations.tokens_to_embed(tx, claimed)
            sizes = texts.staged_sizes(tx, claimed)
        for group in grouped(claimed, tokens, lambda: self._group_tokens):
            yield from grouped(group, sizes, lambda: _GROUP_BYTES)

    def quote(self, claimed: Sequence[Claim]) -> Mapping[str, int]:
        """By the tokens of what is new, known exactly; a vector that was lost is made anew free of charge."""
        with transaction(self._services.fltr) as tx:
            tokens = generations.fresh_tokens(tx, claimed)
        return {i: pricing.embed_units(self._services.settings.prices, n) for i, n in tokens.items()}

    def perform(self, claimed: Sequence[Claim], charges: Mapping[str, Charge]) -> Sequence[Result]:
        """Insert under this worker's keys, read back every one, and decide; what was decided only goes forward.

        Keys that the generation keeps are read back first: what Milvus has lost of them is made anew.

        Raises:
            StoreUnavailable: Milvus does not answer, or did not keep what it accepted.
        """
        with transaction(self._services.fltr) as tx:
            before = generations.decided(tx, claimed)
            undecided = [c for c in claimed if c.document_id not in before]
            kept = generations.kept_keys(tx, undecided)
            new = generations.fresh_tokens(tx, claimed)
        lost = self._lost(kept, claimed[0].dataset_id)
        with transaction(self._services.fltr) as tx:
            note(tx, self._services)
            fresh = generations.assign_keys(tx, undecided, lost)
            sources = moved.sources(tx, claimed)
        given = self._given(sources) if sources else {}
        try:
            missing = self._embed(claimed, fresh, given) if fresh else set()
        except Exception:  # a part may have been inserted
            with suppress(StoreUnavailable), transaction(self._services.fltr) as tx:
                generations.held_behind_inserts(tx, claimed, fresh)
            raise
        held = self._decide(claimed, fresh, missing)
        tokens: Counter[str] = Counter()
        chunks: Counter[str] = Counter()
        for chunk in fresh:
            if chunk.key not in given:
                tokens[chunk.document_id] += chunk.tokens
                chunks[chunk.document_id] += 1
        return [
            self._result(c, chunks[c.document_id], tokens[c.document_id], new.get(c.document_id, 0))
            for c in claimed
            if c.document_id in held
        ]

    def finish(self, results: Sequence[Result]) -> set[str]:
        """Publish."""
        with transaction(self._services.fltr) as tx:
            return generations.publish(tx, [r.claim for r in results])

    def _planned_here(self, claimed: Sequence[Claim]) -> Sequence[Claim]:
        """Without what a worker with another setting planned: this model may not read its chunks, and its label would
        be wrong. It goes back, before anything is reserved; what its plan was charged holds for the new one.
        """
        with transaction(self._services.fltr) as tx:
            others = plans.of_another(tx, claimed, self._services.fingerprint)
            if others:
                claims.advance(tx, [c for c in claimed if c.document_id in others], Stage.PLAN)
        if others:
            _LOG.info("%d documents were planned under another configuration: they are planned anew", len(others))
        return [c for c in claimed if c.document_id not in others]

    def _lost(self, kept: set[str], dataset_id: str) -> set[str]:
        """Those of the keys to be kept under which Milvus has nothing."""
        lost = kept - self._services.vectors.present(sorted(kept), dataset_id)
        if lost:
            _LOG.warning("Milvus has lost %d vectors of dataset %s", len(lost), dataset_id)
        return lost

    def _result(self, claim: Claim, chunks: int, tokens: int, new: int) -> Result:
        """`new`: tokens that are paid for, whoever embedded them; `chunks`, `tokens`: what was embedded here."""
        units = pricing.embed_units(self._services.settings.prices, new)
        return Result(claim, units, new, {"chunks_embedded": chunks, "tokens_embedded": tokens})

    def _decide(self, claimed: Sequence[Claim], fresh: Sequence[FreshChunk], missing: set[str]) -> set[str]:
        """What a newer upload replaces is let go, and not charged."""
        with transaction(self._services.fltr) as tx:
            ours = generations.held_behind_inserts(tx, claimed, fresh)
            unread = [c for c in fresh if c.document_id in ours and c.key in missing]
            lost = generations.without_keys(tx, [c for c in claimed if c.document_id in ours])
            wanted = expired.deliverable(tx, [c for c in claimed if c.document_id in ours])
            complete = not (unread or lost)
            held = generations.decide(tx, [c for c in claimed if c.document_id in wanted]) if complete else set()
        if unread:
            raise StoreUnavailable(
                f"Milvus accepted {len(fresh)} vectors of dataset {claimed[0].dataset_id} but {len(unread)} can't be "
                "read back; they are embedded again"
            )
        if lost:
            raise StoreUnavailable(
                f"Milvus lost vectors of {len(lost)} documents of dataset {claimed[0].dataset_id} while others were "
                "embedded; they are made anew"
            )
        if overtaken := [c for c in claimed if c.document_id in ours - wanted]:
            with transaction(self._services.fltr) as tx:
                generations.publish(tx, overtaken)  # ends them
        return held

    def _given(self, sources: Mapping[str, str]) -> dict[str, list[float]]:
        """Vectors of the same texts from the dataset that their document was moved from, where Milvus has them."""
        found = self._services.vectors.vectors(sorted(set(sources.values())))
        return {key: found[source] for key, source in sources.items() if source in found}

    def _encode(
        self, part: Sequence[FreshChunk], words: Sequence[str], given: Mapping[str, list[float]]
    ) -> list[list[float]]:
        new = [w for c, w in zip(part, words, strict=True) if c.key not in given]
        made = iter(self._services.model.encode(new) if new else ())
        return [given[c.key] if c.key in given else next(made) for c in part]

    def _embed(
        self, claimed: Sequence[Claim], fresh: Sequence[FreshChunk], given: Mapping[str, list[float]]
    ) -> set[str]:
        """Embed what is not given, and insert; returns the keys that can't be read back."""
        vectors, dataset_id, started = self._services.vectors, claimed[0].dataset_id, time.monotonic()
        changed = {c.document_id for c in fresh}
        with transaction(self._services.fltr) as tx:
            staged = texts.staged_texts(tx, [c for c in claimed if c.document_id in changed])
        # A document that somebody took over has no text of ours any more; the fence keeps it from the decision.
        fresh = [c for c in fresh if c.document_id in staged]
        done = 0
        inserts: deque[Future[None]] = deque()
        with ThreadPoolExecutor(_INSERTS, thread_name_prefix="insert") as threads:
            for part in _slices(fresh, lambda: self._slice):
                began = time.monotonic()
                words = [staged[c.document_id][c.start : c.end] for c in part]
                encoded = self._encode(part, words, given)
                chunks = zip(part, words, encoded, strict=True)
                rows = [VectorRow(c.key, dataset_id, c.document_id, w, v) for c, w, v in chunks]
                if len(inserts) == _INSERTS:
                    inserts.popleft().result()
                inserts.append(threads.submit(vectors.insert, rows))
                done += len(part)
                progressed()
                pace = len(part) / max(time.monotonic() - began, 1e-9)
                self._slice = min(_SLICE, max(_FIRST_SLICE, int(pace * _GROUP_SECONDS)))
                rate = done / max(time.monotonic() - started, 1e-9)
                _LOG.info("embedded %d of %d chunks of %d documents (%.0f/s)", done, len(fresh), len(claimed), rate)
            while inserts:
                inserts.popleft().result()
        pace = sum(c.tokens for c in fresh) / max(time.monotonic() - started, 1e-9)
        self._group_tokens = max(_GROUP_TOKENS, int(pace * _GROUP_SECONDS))
        return {c.key for c in fresh} - vectors.present([c.key for c in fresh], dataset_id)


def sweep(services: Services, dataset_id: str) -> int:
    """`sweep_datasets` of one; returns how many keys went."""
    return sum(sweep_datasets(services, [dataset_id]))


def sweep_datasets(services: Services, dataset_ids: Iterable[str]) -> Iterator[int]:
    """Delete from Milvus what no generation holds any more, and verify its absence; yields how many keys went.

    In each collection: a document of an earlier model's may be deleted, or made anew in today's.

    Raises:
        StoreUnavailable: Milvus does not answer; or, behind all the rest, it still shows some, which stay to be swept.
    """
    left: Counter[str] = Counter()
    for dataset_id in dataset_ids:
        after = ""
        while keys := _retired(services, dataset_id, after):
            *_, after = keys
            shown = {key for store in everywhere(services) for key in remove(store, list(keys))}
            gone = {key: named_at for key, named_at in keys.items() if key not in shown}
            with transaction(services.fltr) as tx:
                manifest.forget_retired(tx, gone)
            left[dataset_id] += len(shown)
            yield len(gone)
    tell_of(+left)


def _retired(services: Services, dataset_id: str, after: str) -> dict[str, datetime]:
    with transaction(services.fltr) as tx:
        return manifest.retired_keys(tx, dataset_id, after, _SWEEP)


def _slices(chunks: Sequence[FreshChunk], size: Callable[[], int]) -> Iterator[Sequence[FreshChunk]]:
    start = 0
    while start < len(chunks):
        yield (part := chunks[start : start + size()])
        start += len(part)
