"""Extraction: from an upload's bytes to staged text. The second asset's work."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from fltr_pipeline.credits import pricing
from fltr_pipeline.errors import DocumentError, MissingUpload, NotFound
from fltr_pipeline.models import Op, ParsedDocument, Stage
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.stage import Result
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, datasets, texts
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.texts import LiveSource, StagedText
from fltr_pipeline.text.fingerprint import extractor_fingerprint
from fltr_pipeline.text.parse.pool import ParserPool

_LOG = logging.getLogger(__name__)
_FLUSH = 16  # texts kept in memory before they are staged


class Extract:
    """Reads each upload once; unchanged bytes under an unchanged extractor are neither parsed nor charged."""

    op = Op.DOCUMENT_EXTRACT
    stage = Stage.EXTRACT

    def __init__(self, services: Services) -> None:
        settings = services.settings
        self._services = services
        self._extractor = extractor_fingerprint(settings.pdf_engine)
        self._pool = ParserPool(
            workers=settings.parse_workers, seconds=settings.parse_seconds, memory_mb=settings.parse_memory_mb,
            max_bytes=settings.max_document_mb * 2**20, pdf_engine=settings.pdf_engine,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def groups(self, claimed: Sequence[Claim]) -> Sequence[Sequence[Claim]]:
        """All at once."""
        return [claimed]

    def quote(self, claimed: Sequence[Claim]) -> Mapping[str, int]:
        """By the pages that a file of this size can have; what it does not have comes back."""
        prices = self._services.settings.prices
        return {
            c.document_id: pricing.extract_price(prices, pricing.estimated_pages(c.filename, self._size(c)))
            for c in claimed
        }

    def perform(self, claimed: Sequence[Claim], charges: Mapping[str, Charge]) -> Sequence[Result]:
        """Parse in the worker processes and stage the texts as they come."""
        by_id = {c.document_id: c for c in claimed}
        with transaction(self._services.fltr) as tx:
            live = texts.live_sources(tx, list(by_id))
        sources: dict[str, tuple[str, int]] = {}
        results: list[Result] = []
        pending: list[StagedText] = []
        for document_id, parsed in self._pool.parse_all(self._sources(claimed, live, sources, results)):
            claim = by_id[document_id]
            if isinstance(parsed, DocumentError):
                results.append(Result(claim, error=parsed))
                continue
            pending.append(self._staged(claim, parsed, *sources.pop(document_id)))
            if len(pending) >= _FLUSH:
                results += self._stage(pending)
                pending = []
        return results + self._stage(pending)

    def finish(self, results: Sequence[Result]) -> set[str]:
        """Park the documents for planning."""
        with transaction(self._services.fltr) as tx:
            return claims.advance(tx, [r.claim for r in results], Stage.PLAN)

    def _size(self, claim: Claim) -> int:
        key = self._services.blobs.find(claim.dataset_id, claim.document_id)
        return self._services.blobs.size(key) if key else 0

    def _sources(
        self,
        claimed: Sequence[Claim],
        live: Mapping[str, LiveSource],
        sources: dict[str, tuple[str, int]],
        results: list[Result],
    ) -> Iterator[tuple[str, str, bytes]]:
        """What has to be parsed; the pool pulls from here, so only a few files are in memory at once."""
        for claim in claimed:
            try:
                filename, data = self._read(claim)
            except DocumentError as error:
                results.append(Result(claim, error=error))
                continue
            digest = hashlib.sha256(data).hexdigest()
            known = live.get(claim.document_id)
            if known == LiveSource(self._extractor, digest) and (result := self._reuse(claim)):
                results.append(result)
                continue
            sources[claim.document_id] = digest, len(data)
            yield claim.document_id, filename, data

    def _read(self, claim: Claim) -> tuple[str, bytes]:
        """The blob, or the text that was uploaded inline (plain text, whatever its name says)."""
        key = self._services.blobs.find(claim.dataset_id, claim.document_id)
        if key is not None:
            try:
                return claim.filename, self._services.blobs.read(key)
            except NotFound as error:
                raise MissingUpload(f"{claim.filename}: {error}") from error
        with transaction(self._services.fltr) as tx:
            content = datasets.content(tx, claim.document_id)
        if content is None:
            raise MissingUpload(
                f"{claim.filename}: marked as uploaded, but there is neither a file nor inline text; upload it again"
            )
        return f"{claim.document_id}.txt", content.encode()

    def _reuse(self, claim: Claim) -> Result | None:
        with transaction(self._services.fltr) as tx:
            reused = texts.reuse_text(tx, claim)
        return None if reused is None else Result(claim, counts={"pages": reused.pages, "unchanged": 1})

    def _staged(self, claim: Claim, parsed: ParsedDocument, digest: str, size: int) -> StagedText:
        return StagedText(
            claim=claim, extractor=self._extractor, source_sha256=digest, source_bytes=size, kind=parsed.kind,
            engine=parsed.engine, text=parsed.text, text_sha256=hashlib.sha256(parsed.text.encode()).hexdigest(),
            pages=parsed.pages, blank_pages=parsed.blank_pages,
        )  # fmt: skip

    def _stage(self, pending: Sequence[StagedText]) -> list[Result]:
        if not pending:
            return []
        with transaction(self._services.fltr) as tx:
            held = texts.stage_texts(tx, pending)
        prices = self._services.settings.prices
        results = []
        for staged in pending:
            if staged.claim.document_id not in held:
                continue
            pages = pricing.counted_pages(staged.kind, staged.pages, len(staged.text))
            if staged.blank_pages:
                _LOG.warning(
                    "%s: no text on %d of %d pages", staged.claim.filename, len(staged.blank_pages), staged.pages
                )
            counts = {"pages": staged.pages, "blank_pages": len(staged.blank_pages)}
            results.append(Result(staged.claim, pricing.extract_price(prices, pages), pages, counts))
        return results
