"""Uploads before they are read: where their bytes are, how many, and whether they are those of the live generation.

Belongs here: looking at the blob store, many documents at a time. Does not: parsing, staging (extract).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from fltr_pipeline.errors import NotFound, StoreUnavailable
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.stores.blobs import Blob
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets, texts
from fltr_pipeline.stores.fltr.claims import Claim
from fltr_pipeline.stores.fltr.texts import InlineText, LiveSource, StagedSource

_T = TypeVar("_T")
_U = TypeVar("_U")

_AT_ONCE = 8
"""Requests to the blob store: a round trip to S3 takes some 30 ms, of which a batch needs hundreds."""


@dataclass(frozen=True, slots=True)
class Upload:
    """Where a document's bytes are. `key` is None if in `content`; `found` is None if there is nothing at all."""

    key: str | None
    found: int | None
    is_live: bool = False
    """It is the text that was published last: nothing is new."""
    of_file: bool = False
    """And that text was published of a file, which is gone."""

    @property
    def size(self) -> int:
        """In bytes."""
        return self.found or 0

    @property
    def is_inline(self) -> bool:
        """Whether it was uploaded as text."""
        return self.key is None and not self.of_file


@dataclass(frozen=True, slots=True)
class Known:
    """An upload whose bytes the live generation was made from."""

    pages: int
    reusable: bool
    """Whether its text can be taken over: it is there, and by the extractor of today, or all that is left."""
    current: bool
    """Whether the rest of the configuration is today's, too."""
    lost: bool
    """Whether a chunk has lost its vector."""
    is_redo: bool
    """Nothing was uploaded: we or an operator want what is live made anew."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The uploads of one configuration."""

    services: Services
    extractor: str
    refused: dict[str, StoreUnavailable] = field(default_factory=dict)
    """What the store says of the documents whose bytes it does not give although it answers, by id."""

    def locate(self, claimed: Sequence[Claim]) -> dict[str, Upload]:
        """Where each document's bytes are: in a blob, or in `content`, as text that was uploaded inline."""
        blobs, ids = self.services.blobs, [c.document_id for c in claimed]
        with transaction(self.services.fltr) as tx:
            inline = texts.inline_texts(tx, ids)
        asked = [c for c in claimed if c.document_id not in inline or not inline[c.document_id].stands]
        found = at_once(lambda c: self.ask(c.document_id, lambda: blobs.locate(c.dataset_id, c.document_id)), asked)
        files = {c.document_id: blob for c, blob in zip(asked, found, strict=True)}
        return {i: _upload(files.get(i), None if i in self.refused else inline.get(i)) for i in ids}

    def known(self, claimed: Sequence[Claim], uploads: Mapping[str, Upload]) -> dict[str, Known]:
        """The documents whose bytes are the live ones; only uploads of the same length are read."""
        published = [c.document_id for c in claimed if c.live_generation is not None]
        if not published:
            return {}
        with transaction(self.services.fltr) as tx:
            live = texts.live_sources(tx, published)
        same = {i for i in live if uploads[i].is_live}
        same |= self._unchanged({i: s for i, s in live.items() if i not in same}, uploads)
        return {i: self._known(live[i], uploads[i]) for i in same}

    def _known(self, live: LiveSource, upload: Upload) -> Known:
        of_today = live.extractor == self.extractor
        reusable = live.stands and (of_today or upload.is_live)
        current = reusable and of_today and live.fingerprint == self.services.fingerprint
        return Known(live.pages, reusable, current, live.lost, live.is_redo)

    def begun(self, claimed: Sequence[Claim]) -> tuple[dict[str, StagedSource], list[Claim]]:
        """The documents whose attempt has staged a text: of these very bytes, by id, and of others.

        Neither, where the store refuses the bytes.
        """
        with transaction(self.services.fltr) as tx:
            staged = texts.staged_sources(tx, claimed)
        again = [c for c in claimed if c.document_id in staged]
        same = self._unchanged(staged, self.locate(again)) if again else set()
        others = [c for c in again if c.document_id not in same | self.refused.keys()]
        return {i: s for i, s in staged.items() if i in same}, others

    def ask(self, document_id: str, question: Callable[[], _T]) -> _T | None:
        """The store's answer about a document's bytes; None if there are none, or it does not give them (`refused`).

        Raises:
            StoreUnavailable: it does not answer at all.
        """
        try:
            return question()
        except NotFound:
            return None
        except StoreUnavailable as error:
            self.services.blobs.check()
            self.refused[document_id] = error
            return None

    def _unchanged(self, sources: Mapping[str, LiveSource | StagedSource], uploads: Mapping[str, Upload]) -> set[str]:
        alike = {i: uploads[i] for i, source in sources.items() if source.source_bytes == uploads[i].found}
        digests = dict(zip(alike, at_once(lambda i: self._digest(i, alike[i]), list(alike)), strict=True))
        return {i for i, digest in digests.items() if digest == sources[i].source_sha256}

    def _digest(self, document_id: str, upload: Upload) -> str | None:
        """None if the upload is gone meanwhile, or refused."""
        if (key := upload.key) is not None:
            digest = self.ask(document_id, lambda: self.services.blobs.digest(key))
            return None if digest is None else digest[0]
        with transaction(self.services.fltr) as tx:
            content = datasets.content(tx, document_id)
        return None if content is None else hashlib.sha256(content.encode()).hexdigest()


def _upload(blob: Blob | None, inline: InlineText | None) -> Upload:
    if blob is not None:
        return Upload(blob.key, blob.size)
    return Upload(None, None) if inline is None else Upload(None, inline.size, inline.is_live, inline.of_file)


def at_once(ask: Callable[[_T], _U], subjects: Sequence[_T]) -> list[_U]:
    """Each one's answer, by threads with a share each: a task for each would cost more than a look at a local file."""
    size = max(1, -(-len(subjects) // _AT_ONCE))
    shares = [subjects[first : first + size] for first in range(0, len(subjects), size)]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return [answer for answers in threads.map(lambda share: [ask(s) for s in share], shares) for answer in answers]
