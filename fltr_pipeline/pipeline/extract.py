"""Extraction: from an upload's bytes to staged text. The second asset's work."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from fltr_pipeline.credits import pricing
from fltr_pipeline.errors import DocumentError, Inaccessible, MissingUpload, TooLarge
from fltr_pipeline.failures import RETRYABLE
from fltr_pipeline.models import Op, ParsedDocument, Recognition, Stage
from fltr_pipeline.pipeline.quarantine import Quarantine
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.pipeline.sources import Known, Sources, Upload
from fltr_pipeline.pipeline.stage import Result
from fltr_pipeline.pipeline.worker import progress, progressed
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import claims, datasets, generations, requeue, texts
from fltr_pipeline.stores.fltr.charges import Charge
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.generations import INLINE
from fltr_pipeline.stores.fltr.quarantine import Content
from fltr_pipeline.stores.fltr.texts import StagedSource, StagedText
from fltr_pipeline.text.parse.pool import ParserPool

_LOG = logging.getLogger(__name__)
_FLUSH, _FLUSH_CHARACTERS = 50, 4_000_000  # texts kept in memory before they are staged
_KEPT = 200  # documents with pages that have no text, and such pages of each, that a run remembers


@dataclass(frozen=True, slots=True)
class Gap:
    """A document that became ready although some of its pages have no text."""

    filename: str
    pages: int
    blank: int
    """How many of them have no text."""
    without_text: tuple[int, ...]
    """Their numbers, from 1; of very many the first."""


@dataclass(slots=True)
class Gaps:
    """All such documents of a run: how many they are, and the first of them."""

    documents: int = 0
    pages: int = 0
    """Those without text."""
    first: list[Gap] = field(default_factory=list)

    def note(self, filename: str, pages: int, without_text: tuple[int, ...]) -> None:
        """One more document; only so much is kept of it as somebody will read."""
        self.documents += 1
        self.pages += len(without_text)
        if len(self.first) < _KEPT:
            self.first.append(Gap(filename, pages, len(without_text), without_text[:_KEPT]))


@dataclass(frozen=True, slots=True)
class Reading:
    """A document of which OCR read pages."""

    filename: str
    pages: tuple[Recognition, ...]


class Extract:
    """Reads each upload once; unchanged bytes under an unchanged extractor are neither parsed nor charged, and what was
    published is not parsed as if it were an upload.

    If the rest of the configuration is unchanged, too, the live generation is what this attempt would make: it ends.
    """

    op = Op.DOCUMENT_EXTRACT
    stage = Stage.EXTRACT
    counters = ("pages", "blank_pages", "ocr_pages", "unchanged")

    def __init__(self, services: Services) -> None:
        settings = services.settings
        self.quarantine = Quarantine(services)
        self._services = services
        self._extractor = services.extractor
        self._most = settings.max_document_mb * 2**20
        self._ocr_pages = settings.ocr_max_pages if settings.ocr else 0
        self._sources = Sources(services, self._extractor)
        self._uploads: Mapping[str, Upload] = {}
        self._known: Mapping[str, Known] = {}
        self._begun: Mapping[str, StagedSource] = {}
        self.gaps = Gaps()
        self.readings: list[Reading] = []
        self._pool = ParserPool(
            workers=settings.parse_workers, seconds=settings.parse_seconds, memory_mb=settings.parse_memory_mb,
            max_bytes=self._most, pdf_engine=settings.pdf_engine,
            ocr_pages=self._ocr_pages,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def groups(self, claimed: Sequence[Claim]) -> Sequence[Sequence[Claim]]:
        """All at once. Where an earlier attempt staged a text of other bytes, this one is a new generation's."""
        self._sources.refused.clear()
        self._begun, others = self._sources.begun(claimed)
        if not others:
            return [claimed]
        with transaction(self._services.fltr) as tx:
            renewed = {c.document_id: c for c in claims.renew(tx, others)}
            generations.discard_others(tx, list(renewed))
        lost = {c.document_id for c in others} - renewed.keys()
        return [[renewed.get(c.document_id, c) for c in claimed if c.document_id not in lost]]

    def quote(self, claimed: Sequence[Claim]) -> Mapping[str, int | DocumentError]:
        """By the pages that a file of this size can have; the rest comes back.

        What is too large fails for free, and what is known already costs nothing. Of what the store refuses nobody
        knows the size, nor whether it is known: a charge, once written, stands.
        """
        self._uploads = self._sources.locate(claimed)
        self._known = self._sources.known([c for c in claimed if not self._is_staged(c)], self._uploads)
        return {c.document_id: self._most_units(c) for c in claimed}

    def _most_units(self, claim: Claim) -> int | DocumentError:
        if claim.document_id in self._sources.refused:
            return self._inaccessible(claim)
        upload = self._uploads[claim.document_id]
        known = self._known.get(claim.document_id)
        if upload.size > self._most or (known and (known.reusable or not known.is_redo)):
            return 0
        name = _name(claim, upload)
        return pricing.extract_units(
            self._services.settings.prices,
            pricing.estimated_pages(name, upload.size),
            pricing.estimated_ocr_pages(name, upload.size, self._ocr_pages),
        )

    def perform(self, claimed: Sequence[Claim], charges: Mapping[str, Charge]) -> Sequence[Result]:
        """Parse in the worker processes and stage the texts as they come."""
        by_id = {c.document_id: c for c in claimed}
        results = [self._staged_before(c) for c in claimed if self._is_staged(c)] + self._unchanged(claimed)
        known = {r.claim.document_id for r in results}
        sources: dict[str, Content] = {}
        pending: list[StagedText] = []
        changed = [c for c in claimed if c.document_id not in known]
        for document_id, parsed in self._pool.parse_all(self._files(changed, sources, results), on_page=progress()):
            progressed()
            claim = by_id[document_id]
            if isinstance(parsed, DocumentError):
                self.quarantine.parser_ended(claim, sources.pop(document_id), parsed)
                results.append(Result(claim, error=parsed))
                continue
            pending.append(self._staged(claim, parsed, sources.pop(document_id)))
            if len(pending) >= _FLUSH or sum(len(p.text) for p in pending) > _FLUSH_CHARACTERS:
                results += self._stage(pending)
                pending = []
        results += self._stage(pending)
        self._remember_unreadable(results)
        return results

    def _remember_unreadable(self, results: Sequence[Result]) -> None:
        errors = [(r.claim, r.error) for r in results if r.error is not None]
        found = [claim for claim, e in errors if e.user_error and e.code not in RETRYABLE]
        with transaction(self._services.fltr) as tx:
            texts.unreadable(tx, found, self._extractor)

    def finish(self, results: Sequence[Result]) -> set[str]:
        """Park the documents for planning; those that are what is live are done."""
        done = [r.claim for r in results]
        new = [c for c in done if not self._is_current(c)]
        with transaction(self._services.fltr) as tx:
            confirmed = generations.confirm(tx, [c for c in done if self._is_current(c)])
            return confirmed | (claims.advance(tx, new, Stage.PLAN) if new else set())

    def _is_staged(self, claim: Claim) -> bool:
        begun = self._begun.get(claim.document_id)
        return begun is not None and begun.extractor == self._extractor

    def _staged_before(self, claim: Claim) -> Result:
        """These very bytes were extracted under the charge of this generation; if it is not settled, it is now."""
        begun = self._begun[claim.document_id]
        counts = {"pages": begun.pages, "ocr_pages": begun.ocr_pages, "unchanged": 1}
        return self._result(claim, begun.kind, begun.pages, begun.characters, counts)

    def _result(self, claim: Claim, kind: str, pages: int, characters: int, counts: Mapping[str, int]) -> Result:
        counted = pricing.counted_pages(kind, pages, characters)
        units = pricing.extract_units(self._services.settings.prices, counted, counts["ocr_pages"])
        return Result(claim, units, counted, counts)

    def _is_current(self, claim: Claim) -> bool:
        known = self._known.get(claim.document_id)
        return known is not None and known.current and not known.lost

    def _is_free(self, claim: Claim) -> bool:
        known = self._known[claim.document_id]
        return known.current or not known.is_redo

    def _unchanged(self, claimed: Sequence[Claim]) -> list[Result]:
        """The documents whose live text is the new generation's text, too.

        What is made anew all the same of bytes that are live is for our reasons, and free: vectors were lost, or the
        configuration is another one. Who asked for just that may have to pay for it.
        """
        known = [c for c in claimed if c.document_id in self._known]
        stale = [c for c in known if not self._is_current(c)]
        reusable = [c for c in stale if self._known[c.document_id].reusable]
        free = [c for c in stale if self._is_free(c)]
        reused: set[str] = set()
        if reusable or free:
            with transaction(self._services.fltr) as tx:
                generations.held(tx, stale)  # some are reused, some made free: all are locked in one order first
                reused = texts.reuse_texts(tx, reusable, self._extractor)
                requeue.make_free(tx, free)
        return [
            Result(c, counts={"pages": self._known[c.document_id].pages, "unchanged": 1})
            for c in known
            if self._is_current(c) or c.document_id in reused
        ]

    def _files(
        self, claimed: Sequence[Claim], sources: dict[str, Content], results: list[Result]
    ) -> Iterator[tuple[str, str, bytes]]:
        """What has to be parsed; the pool pulls from here, so only a few files are in memory at once."""
        poison = self.quarantine.among([self._uploads[c.document_id].size for c in claimed])
        for claim in claimed:
            try:
                filename, data = self._read(claim, self._uploads[claim.document_id])
            except DocumentError as error:
                results.append(Result(claim, error=error))
                continue
            digest = hashlib.sha256(data).hexdigest()
            if digest in poison:
                results.append(Result(claim, error=self.quarantine.turn_away(claim, poison[digest])))
                continue
            sources[claim.document_id] = Content(digest, len(data))
            yield claim.document_id, filename, data

    def _read(self, claim: Claim, upload: Upload) -> tuple[str, bytes]:
        """(filename, bytes)."""
        if upload.found is None:
            raise MissingUpload(
                f"{claim.filename}: marked as uploaded, but there is neither a file nor inline text; upload it again"
            )
        if upload.size > self._most:
            raise TooLarge(
                f"{claim.filename}: has {upload.size:,} bytes, the limit is {self._most:,} (FLTR_MAX_DOCUMENT_MB)"
            )
        if (key := upload.key) is not None:
            data = self._sources.ask(claim.document_id, lambda: self._services.blobs.read(key))
            if claim.document_id in self._sources.refused:
                raise self._inaccessible(claim)
            if data is None:
                raise MissingUpload(f"{claim.filename}: its file went out of the blob store meanwhile; upload it again")
            return _name(claim, upload), data
        with transaction(self._services.fltr) as tx:
            content = datasets.content(tx, claim.document_id)
        return _name(claim, upload), (content or "").encode()

    def _inaccessible(self, claim: Claim) -> Inaccessible:
        return Inaccessible(
            f"{claim.filename}: {self._sources.refused[claim.document_id]}; the store itself answers: let "
            "FLTR_BLOB_URL's role read this file, or restore it from the archive, or upload it again"
        )

    def _staged(self, claim: Claim, parsed: ParsedDocument, source: Content) -> StagedText:
        return StagedText(
            claim=claim, extractor=self._extractor, source_sha256=source.sha256, source_bytes=source.size,
            kind=parsed.kind, engine=INLINE if self._uploads[claim.document_id].is_inline else parsed.engine,
            text=parsed.text,
            text_sha256=hashlib.sha256(parsed.text.encode()).hexdigest(),
            pages=parsed.pages, blank_pages=parsed.blank_pages, recognised=parsed.recognised,
        )  # fmt: skip

    def _stage(self, pending: Sequence[StagedText]) -> list[Result]:
        if not pending:
            return []
        with transaction(self._services.fltr) as tx:
            held = texts.stage_texts(tx, pending)
            self.quarantine.parsed(tx, [s.source_sha256 for s in pending])
        results = []
        for staged in pending:
            if staged.claim.document_id not in held:
                continue
            if staged.blank_pages:
                self.gaps.note(staged.claim.filename, staged.pages, staged.blank_pages)
            if staged.recognised:
                self.readings.append(Reading(staged.claim.filename, staged.recognised))
            counts = {
                "pages": staged.pages, "blank_pages": len(staged.blank_pages), "ocr_pages": len(staged.recognised)
            }  # fmt: skip
            results.append(self._result(staged.claim, staged.kind, staged.pages, len(staged.text), counts))
        return results


def _name(claim: Claim, upload: Upload) -> str:
    """Inline text is plain text, whatever the document's name says."""
    return f"{claim.document_id}.txt" if upload.key is None else claim.filename
