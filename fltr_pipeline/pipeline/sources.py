"""Uploads before they are read: where their bytes are, how many, and whether they are those of the live generation.

Belongs here: looking at the blob store, many documents at a time. Does not: parsing, staging (extract).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from fltr_pipeline.errors import NotFound
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets, texts
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.texts import LiveSource, StagedSource

_T = TypeVar("_T")
_U = TypeVar("_U")

_AT_ONCE = 8
"""Requests to the blob store: a round trip to S3 takes some 30 ms, of which a batch needs hundreds."""


@dataclass(frozen=True, slots=True)
class Upload:
    """Where a document's bytes are. `key` is None for inline text; `found` is None if there is nothing at all."""

    key: str | None
    found: int | None

    @property
    def size(self) -> int:
        """In bytes."""
        return self.found or 0


@dataclass(frozen=True, slots=True)
class Known:
    """An upload whose bytes the live generation was made from, by the extractor of today."""

    pages: int
    current: bool
    """Whether the rest of the configuration is today's, too."""
    lost: bool
    """Whether a chunk has lost its vector."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The uploads of one configuration."""

    services: Services
    extractor: str

    def locate(self, claimed: Sequence[Claim]) -> dict[str, Upload]:
        """Where each document's bytes are: in a blob, or in `content`, as text that was uploaded inline."""
        blobs = self.services.blobs
        found = at_once(lambda c: blobs.locate(c.dataset_id, c.document_id), claimed)
        by_id = {c.document_id: blob for c, blob in zip(claimed, found, strict=True)}
        inline: dict[str, int] = {}
        if without := [i for i, blob in by_id.items() if blob is None]:
            with transaction(self.services.fltr) as tx:
                inline = datasets.content_sizes(tx, without)
        return {i: Upload(blob.key, blob.size) if blob else Upload(None, inline.get(i)) for i, blob in by_id.items()}

    def known(self, claimed: Sequence[Claim], uploads: Mapping[str, Upload]) -> dict[str, Known]:
        """The documents whose bytes are the live ones; only uploads of the same length are read."""
        published = [c.document_id for c in claimed if c.live_generation is not None]
        if not published:
            return {}
        with transaction(self.services.fltr) as tx:
            live = texts.live_sources(tx, published)
        same = self._unchanged({i: s for i, s in live.items() if s.extractor == self.extractor}, uploads)
        return {
            i: Known(s.pages, s.fingerprint == self.services.fingerprint, s.lost) for i, s in live.items() if i in same
        }

    def begun(self, claimed: Sequence[Claim]) -> tuple[dict[str, StagedSource], list[Claim]]:
        """The documents whose attempt has staged a text: of these very bytes, by id, and of others."""
        with transaction(self.services.fltr) as tx:
            staged = texts.staged_sources(tx, claimed)
        again = [c for c in claimed if c.document_id in staged]
        same = self._unchanged(staged, self.locate(again)) if again else set()
        return {i: s for i, s in staged.items() if i in same}, [c for c in again if c.document_id not in same]

    def _unchanged(self, sources: Mapping[str, LiveSource | StagedSource], uploads: Mapping[str, Upload]) -> set[str]:
        alike = {i: uploads[i] for i, source in sources.items() if source.source_bytes == uploads[i].found}
        digests = dict(zip(alike, at_once(lambda i: self._digest(i, alike[i]), list(alike)), strict=True))
        return {i for i, digest in digests.items() if digest == sources[i].source_sha256}

    def _digest(self, document_id: str, upload: Upload) -> str | None:
        """None if the upload is gone meanwhile."""
        if upload.key is not None:
            try:
                return self.services.blobs.digest(upload.key)[0]
            except NotFound:
                return None
        with transaction(self.services.fltr) as tx:
            content = datasets.content(tx, document_id)
        return None if content is None else hashlib.sha256(content.encode()).hexdigest()


def at_once(ask: Callable[[_T], _U], subjects: Sequence[_T]) -> list[_U]:
    """Each one's answer, by threads with a share each: a task for each would cost more than a look at a local file."""
    size = max(1, -(-len(subjects) // _AT_ONCE))
    shares = [subjects[first : first + size] for first in range(0, len(subjects), size)]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return [answer for answers in threads.map(lambda share: [ask(s) for s in share], shares) for answer in answers]
